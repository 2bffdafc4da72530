//! What is known of the bodies of Loop and Scan, and of what their nodes give out.

use crate::graph::facts::{Known, Op, axis, either, tensor};
use crate::graph::{Dim, Fact, Protocol, Shape};
use crate::onnx::{AttributeProto, ElementType, attribute};

/// The body takes the trip number, a condition and the states; it gives a condition, the states, and what is stacked.
pub const LOOP: Protocol = Protocol {
    inputs: loop_inputs,
    states: |_, inputs| (2..inputs).map(|input| (input, input - 1)).collect(),
    outputs: Some(loop_outputs),
};

/// The body takes the states and parts of the scanned inputs; it gives the states, and what is stacked.
pub const SCAN: Protocol = Protocol {
    inputs: scan_inputs,
    states: |op, inputs| (0..Layout::of_body(op.attributes, inputs).states).map(|state| (state, state)).collect(),
    outputs: Some(scan_outputs),
};

/// What is known of a tensor but for its elements, which are others in each step.
fn unvalued(fact: Option<&Fact>) -> Fact {
    Fact { value: None, ..fact.cloned().unwrap_or_default() }
}

fn without(shape: &Shape, axis: usize) -> Shape {
    shape.iter().enumerate().filter(|&(i, _)| i != axis).map(|(_, &d)| d).collect()
}

/// What every step gives, stacked along a new axis.
fn stacked(fact: &Fact, axis: usize, steps: Dim) -> Fact {
    let stack = |shape: &Shape| {
        let mut dims = shape.to_vec();
        dims.insert(axis.min(dims.len()), steps);
        dims.into()
    };
    Fact { shape: fact.shape.as_ref().map(stack), value: None, ..fact.clone() }
}

fn loop_inputs(c: &Known, declared: &[Fact]) -> Vec<Fact> {
    let number = |element| tensor(Some(element), Some(vec![]));
    let mut facts = vec![number(ElementType::Int64), number(ElementType::Bool)];
    // Runtimes take one element of rank 1, too, and make it so for a body that declares it.
    for (fact, declared) in facts.iter_mut().zip(declared) {
        if declared.rank() == Some(1) {
            fact.shape = Some([Dim::Known(1)].into());
        }
    }
    facts.extend(c.inputs.iter().skip(2).map(|&state| unvalued(state)));
    facts
}

fn loop_outputs(c: &Known, inputs: usize, body: &[&Fact]) -> Vec<Fact> {
    let (states, trips) = (inputs.saturating_sub(2), c.dims().fresh());
    let initial = |i: usize| c.input(2 + i).cloned().unwrap_or_default();
    let output = |(i, &after): (usize, &&Fact)| match i < states {
        true => either(&initial(i), after, c.dims()),
        false => stacked(after, 0, trips),
    };
    body.iter().skip(1).enumerate().map(output).collect()
}

/// How the inputs of a Scan's node, or of its body, lie.
struct Layout {
    /// Inputs of the node before the states: 1 in version 8, whose first input is `sequence_lens`.
    skipped: usize,
    states: usize,
    scanned: usize,
}

impl Layout {
    fn of_node(op: &Op, inputs: usize) -> Self {
        let skipped = usize::from(op.version < 9);
        Layout { skipped, ..Self::of_body(op.attributes, inputs.saturating_sub(skipped)) }
    }

    fn of_body(attributes: &[AttributeProto], inputs: usize) -> Self {
        let scanned = attribute::get_int(attributes, "num_scan_inputs").and_then(|n| usize::try_from(n).ok());
        let scanned = scanned.unwrap_or(0).min(inputs);
        Layout { skipped: 0, states: inputs - scanned, scanned }
    }
}

/// An axis of a scanned input or output, counted from the front.
fn scan_axis(attributes: &[AttributeProto], name: &str, i: usize, rank: usize) -> Option<usize> {
    axis(attribute::get_ints(attributes, name).and_then(|a| a.get(i).copied()).unwrap_or(0), rank).ok()
}

fn scan_inputs(c: &Known, _declared: &[Fact]) -> Vec<Fact> {
    let layout = Layout::of_node(c.op, c.inputs.len());
    // In version 8 every input has an axis for the batch, and what is scanned an axis for the steps behind it.
    let part = |i: usize, shape: Shape| match (c.op.version < 9, i.checked_sub(layout.states)) {
        (true, scanned) => shape.get(if scanned.is_some() { 2 } else { 1 }..).map(Shape::from),
        (false, None) => Some(shape),
        (false, Some(i)) => {
            scan_axis(c.op.attributes, "scan_input_axes", i, shape.len()).map(|axis| without(&shape, axis))
        }
    };
    let inputs = c.inputs.iter().skip(layout.skipped).enumerate();
    let input = |(i, &input): (usize, &Option<&Fact>)| {
        let mut fact = unvalued(input);
        fact.shape = fact.shape.take().and_then(|shape| part(i, shape));
        fact
    };
    inputs.map(input).collect()
}

fn scan_outputs(c: &Known, _inputs: usize, body: &[&Fact]) -> Vec<Fact> {
    let layout = Layout::of_node(c.op, c.inputs.len());
    let first = c.shape(layout.skipped + layout.states);
    let size = |axis: Option<usize>| {
        let known = axis.and_then(|axis| first?.get(axis).copied());
        known.unwrap_or_else(|| c.dims().fresh())
    };
    let output = |(i, &after): (usize, &&Fact)| match (i.checked_sub(layout.states), c.op.version < 9) {
        (None, false) => either(&c.input(i).cloned().unwrap_or_default(), after, c.dims()),
        (None, true) => stacked(after, 0, size(Some(0))),
        (Some(_), true) => stacked(&stacked(after, 0, size(Some(1))), 0, size(Some(0))),
        (Some(k), false) => {
            let scanned = first.filter(|_| layout.scanned > 0);
            let steps = size(scanned.and_then(|shape| scan_axis(c.op.attributes, "scan_input_axes", 0, shape.len())));
            match scan_axis(c.op.attributes, "scan_output_axes", k, after.rank().map_or(0, |rank| rank + 1)) {
                Some(axis) => stacked(after, axis, steps),
                None => Fact { shape: None, ..after.clone() },
            }
        }
    };
    body.iter().enumerate().map(output).collect()
}
