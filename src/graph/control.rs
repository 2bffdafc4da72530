//! What is known of the bodies of control flow: of their inputs from the node's inputs, of the node's outputs from theirs.

use super::{Container, Dim, Dims, Fact, Graph, NewNode, Producer, Scalar, ScopeId, Shape, ValueId};
use crate::onnx::{AttributeProto, ElementType, attribute};
use std::collections::HashSet;
use std::rc::Rc;

/// How the inputs and outputs of a Scan's body lie among those of the node.
struct ScanLayout {
    /// Inputs of the node before the states: 1 at opset 8, whose first input is `sequence_lens`.
    skipped: usize,
    states: usize,
    scan_inputs: usize,
}

impl ScanLayout {
    fn new(version: i64, attributes: &[AttributeProto], node_inputs: usize) -> Self {
        let skipped = usize::from(version < 9);
        let scan_inputs =
            attribute::get_int(attributes, "num_scan_inputs").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let scan_inputs = scan_inputs.min(node_inputs.saturating_sub(skipped));
        ScanLayout { skipped, states: node_inputs.saturating_sub(skipped + scan_inputs), scan_inputs }
    }
}

/// An axis of a Scan's scan input or output, counted from the front.
fn scan_axis(attributes: &[AttributeProto], name: &str, i: usize, rank: usize) -> Option<usize> {
    let axis = attribute::get_ints(attributes, name).and_then(|a| a.get(i).copied()).unwrap_or(0);
    usize::try_from(if axis < 0 { axis.checked_add(rank as i64)? } else { axis }).ok().filter(|&a| a < rank)
}

/// What is known of each input of a body, supposing that carried states keep the shapes of their initial values.
pub fn body_inputs(
    op_type: &str,
    version: i64,
    attributes: &[AttributeProto],
    inputs: &[Option<Fact>],
    body_inputs: usize,
) -> Vec<Fact> {
    let unvalued = |f: &Option<Fact>| Fact { value: None, ..f.clone().unwrap_or_default() };
    let scalar = |element| Fact::tensor(Some(element), Some([].into()));
    let mut facts = match op_type {
        "Loop" => {
            let mut facts = vec![scalar(ElementType::Int64), scalar(ElementType::Bool)];
            facts.extend(inputs.iter().skip(2).map(unvalued));
            facts
        }
        "Scan" => {
            let layout = ScanLayout::new(version, attributes, inputs.len());
            let inputs = &inputs[layout.skipped.min(inputs.len())..];
            let mut facts: Vec<Fact> = inputs.iter().map(unvalued).collect();
            for (i, fact) in facts.iter_mut().enumerate() {
                let axis = |rank| scan_axis(attributes, "scan_input_axes", i - layout.states, rank);
                fact.shape = fact.shape.take().and_then(|shape| {
                    Some(match (version < 9, i < layout.states) {
                        (true, state) => shape.get(if state { 1 } else { 2 }..)?.into(),
                        (false, true) => shape,
                        (false, false) => without(&shape, axis(shape.len())?),
                    })
                });
            }
            facts
        }
        "SequenceMap" => inputs
            .iter()
            .map(|f| match f {
                Some(f) => Fact { container: Container::Tensor, value: None, ..f.clone() },
                None => Fact::default(),
            })
            .collect(),
        "FlexAttention" => vec![scores(attributes, inputs)],
        _ => Vec::new(),
    };
    facts.resize_with(body_inputs, Fact::default);
    facts
}

/// What the bodies of a FlexAttention change: `[batch, heads, queries, keys]`, in the precision of its softmax.
fn scores(attributes: &[AttributeProto], inputs: &[Option<Fact>]) -> Fact {
    let input = |i: usize| inputs.get(i).and_then(Option::as_ref);
    let given = attribute::get_int(attributes, "softmax_precision").and_then(|n| i32::try_from(n).ok());
    let element = match given {
        Some(number) => Some(ElementType::from_number(number)).filter(|e| e.is_float()),
        None => input(0).and_then(|q| q.element).map(ElementType::widened),
    };
    let shape = match (input(0).and_then(|q| q.shape.as_deref()), input(1).and_then(|k| k.shape.as_deref())) {
        (Some(&[batch, heads, queries, _]), Some(&[_, _, keys, _])) => Some([batch, heads, queries, keys].into()),
        _ => None,
    };
    Fact::tensor(element, shape)
}

/// The carried states of a body: the input and the output of each.
fn states(
    graph: &Graph,
    op_type: &str,
    version: i64,
    attributes: &[AttributeProto],
    body: ScopeId,
) -> Vec<(usize, Fact)> {
    let scope = graph.scope(body);
    let output = |i: usize| scope.outputs.get(i).map(|&o| graph.fact(o).clone()).unwrap_or_default();
    state_inputs(op_type, version, attributes, scope.inputs.len()).map(|(input, out)| (input, output(out))).collect()
}

/// The positions of the carried states among a body's inputs, with those among its outputs.
fn state_inputs(
    op_type: &str,
    version: i64,
    attributes: &[AttributeProto],
    inputs: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let (first, count, offset) = match op_type {
        "Loop" => (2, inputs.saturating_sub(2), 1),
        "Scan" => (0, ScanLayout::new(version.max(9), attributes, inputs).states, 0),
        _ => (0, 0, 0),
    };
    (0..count).map(move |i| (first + i, offset + i))
}

/// Replaces what the body turns out to change of its states by what is sure, and says whether there was anything to replace.
/// `free` holds the sizes that stand for "another one in each iteration": a body may change those.
pub fn weaken_states(
    graph: &Graph,
    op_type: &str,
    version: i64,
    attributes: &[AttributeProto],
    body: ScopeId,
    known: &mut [Fact],
    free: &mut HashSet<Dim>,
) -> bool {
    let mut weakened = false;
    for (input, after) in states(graph, op_type, version, attributes, body) {
        let Some(before) = known.get_mut(input) else { continue };
        let Some(shape) = before.shape.clone() else { continue };
        match after.shape {
            Some(after) if after.len() == shape.len() => {
                let dim = |(&a, &b): (&Dim, &Dim)| {
                    if a == b || free.contains(&a) {
                        return a;
                    }
                    weakened = true;
                    let any = graph.dims.fresh();
                    free.insert(any);
                    any
                };
                before.shape = Some(shape.iter().zip(after.iter()).map(dim).collect());
            }
            _ => {
                weakened = true;
                before.shape = None;
            }
        }
    }
    weakened
}

/// Forgets the shapes of the states altogether: only what the body declares of them remains.
pub fn forget_states(op_type: &str, version: i64, attributes: &[AttributeProto], known: &mut [Fact]) {
    for (input, _) in state_inputs(op_type, version, attributes, known.len()) {
        if let Some(fact) = known.get_mut(input) {
            fact.shape = None;
        }
    }
}

/// What a condition is whatever the inputs and the weights hold, because it follows from shapes and integers alone.
pub fn truth(graph: &Graph, condition: ValueId) -> Option<bool> {
    /// A condition that follows from more tensors than this is left to the run.
    const MAX_TENSORS: usize = 1000;
    let Scalar::Int(known) = graph.fact(condition).uniform()? else { return None };
    let (mut seen, mut open) = (HashSet::new(), vec![condition]);
    while let Some(value) = open.pop() {
        let weight = graph.value(value).producer == Producer::Initializer
            && graph.fact(value).element.is_none_or(ElementType::is_float);
        if weight || seen.len() > MAX_TENSORS {
            return None;
        }
        if let Some((node, _)) = graph.producer(value)
            && !graph.reads_shapes_only(node)
            && seen.insert(value)
        {
            open.extend(graph.node(node).inputs.iter().flatten());
        }
    }
    known.known().map(|truth| truth != 0)
}

/// The branch that an If takes in every run: by its condition, or because the other one cannot be computed.
pub fn taken(graph: &Graph, condition: Option<ValueId>, bodies: &[(Rc<str>, ScopeId)]) -> Option<ScopeId> {
    let [(first, a), (_, b)] = bodies else { return None };
    match (condition.and_then(|condition| truth(graph, condition)), graph.is_broken(*a), graph.is_broken(*b)) {
        (Some(truth), ..) => Some(if truth == (&**first == "then_branch") { *a } else { *b }),
        (None, true, false) => Some(*b),
        (None, false, true) => Some(*a),
        (None, ..) => None,
    }
}

/// What holds of a value that is one of two: a dimension in which they differ is unknown.
fn join(a: &Fact, b: &Fact, dims: &Dims) -> Fact {
    let shape = a.shape.as_ref().zip(b.shape.as_ref()).and_then(|(a, b)| {
        let dim = |(&a, &b): (&Dim, &Dim)| if a == b { a } else { dims.fresh() };
        (a.len() == b.len()).then(|| a.iter().zip(b.iter()).map(dim).collect())
    });
    Fact {
        container: if a.container == Container::Tensor { b.container } else { a.container },
        element: a.element.or(b.element),
        shape,
        value: None,
    }
}

fn without(shape: &Shape, axis: usize) -> Shape {
    shape.iter().enumerate().filter(|&(i, _)| i != axis).map(|(_, &d)| d).collect()
}

fn with(shape: &Shape, axis: usize, dim: Dim) -> Shape {
    let mut dims = shape.to_vec();
    dims.insert(axis.min(dims.len()), dim);
    dims.into()
}

/// The facts of the outputs of a node whose bodies are in the graph already.
pub fn infer(graph: &Graph, node: &NewNode, inputs: &[Option<&Fact>]) -> Vec<Fact> {
    let version = graph.opset("");
    let outputs = |body: ScopeId| graph.scope(body).outputs.iter().map(|&o| graph.fact(o)).collect::<Vec<_>>();
    let stacked = |f: &Fact, axis: usize, dim: Dim| Fact {
        shape: f.shape.as_ref().map(|s| with(s, axis, dim)),
        value: None,
        ..f.clone()
    };
    let input = |i: usize| inputs.get(i).copied().flatten().cloned().unwrap_or_default();
    match (&*node.op_type, node.bodies.as_slice()) {
        ("If", [(_, a), (_, b)]) => match taken(graph, node.inputs.first().copied().flatten(), &node.bodies) {
            Some(branch) => outputs(branch).into_iter().cloned().collect(),
            None => outputs(*a).into_iter().zip(outputs(*b)).map(|(a, b)| join(a, b, &graph.dims)).collect(),
        },
        ("Loop", [(_, body)]) => {
            let states = graph.scope(*body).inputs.len().saturating_sub(2);
            let trips = graph.dims.fresh();
            let after = outputs(*body).into_iter().skip(1).enumerate();
            after
                .map(|(i, f)| if i < states { join(&input(2 + i), f, &graph.dims) } else { stacked(f, 0, trips) })
                .collect()
        }
        ("Scan", [(_, body)]) => {
            let layout = ScanLayout::new(version, &node.attributes, inputs.len());
            let first_scan = input(layout.skipped + layout.states);
            let batch = |i: usize| {
                first_scan.shape.as_ref().and_then(|s| s.get(i).copied()).unwrap_or_else(|| graph.dims.fresh())
            };
            let after = outputs(*body).into_iter().enumerate();
            after
                .map(|(i, f)| match (i.checked_sub(layout.states), version < 9) {
                    (None, false) => join(&input(i), f, &graph.dims),
                    (None, true) => stacked(f, 0, batch(0)),
                    (Some(_), true) => stacked(&stacked(f, 0, batch(1)), 0, batch(0)),
                    (Some(k), false) => {
                        let axis = first_scan.rank().filter(|_| layout.scan_inputs > 0);
                        let axis = axis.and_then(|rank| scan_axis(&node.attributes, "scan_input_axes", 0, rank));
                        let length = axis.map(batch).unwrap_or_else(|| graph.dims.fresh());
                        let rank = f.rank().map_or(0, |r| r + 1);
                        match scan_axis(&node.attributes, "scan_output_axes", k, rank) {
                            Some(axis) => stacked(f, axis, length),
                            None => Fact { shape: None, ..f.clone() },
                        }
                    }
                })
                .collect()
        }
        ("SequenceMap", [(_, body)]) => outputs(*body)
            .into_iter()
            .map(|f| Fact { container: Container::Sequence, value: None, ..f.clone() })
            .collect(),
        _ => vec![Fact::default(); node.outputs.len()],
    }
}
