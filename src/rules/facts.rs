//! Where the facts of a node's outputs come from: its row.
//!
//! Most rows of elementwise operators need not say anything: the kind of their slots does. The others name a function,
//! which stands in the family's file, or in its `facts.rs`.

use super::properties::Apart;
use super::{Rule, Slot, find, newest};
use crate::graph::facts::value::{self, Calculator, Function};
use crate::graph::facts::{Infer, Known, Op, broadcast_known, tensor};
use crate::graph::{Bodies, Dim, Fact, Protocol, Scalar, Shape};
use crate::onnx::ElementType;
use anyhow::Result;

/// Where the facts of an operator's outputs come from.
#[derive(Clone, Copy)]
pub enum Facts {
    /// The kind of its slots: with [`Slot::Unary`] the output is like the input, with slots that are summed to the
    /// shape of their inputs it has the shape that these broadcast to. The function computes known elements, where
    /// there is one.
    BySlots(Option<Function>),
    /// A function of the row's own.
    Of(Infer),
    /// The outputs of its bodies, which are in the graph already ([`crate::graph::Graph::infer`]).
    Bodies,
}

impl Rule {
    /// What is known of the outputs follows from what is known of the inputs by this function.
    pub const fn facts(mut self, infer: Infer) -> Self {
        self.facts = Facts::Of(infer);
        self
    }

    /// What it does with its bodies, and so what is known of its outputs, where that follows from the bodies.
    pub const fn bodies(mut self, bodies: Bodies) -> Self {
        if !matches!(bodies, Bodies::Protocol(Protocol { outputs: None, .. })) {
            self.facts = Facts::Bodies;
        }
        self.bodies = bodies;
        self
    }

    /// Known elements of the output follow from those of the inputs in the same place by this function.
    pub const fn values(mut self, f: Function) -> Self {
        self.facts = Facts::BySlots(Some(f));
        self
    }

    /// Whether the row says what is known of the outputs.
    pub fn has_facts(&self) -> bool {
        !matches!(self.facts, Facts::BySlots(_)) || self.by_slots().is_some()
    }

    /// Whether each element of the output follows from those of the inputs in the same place, which broadcast.
    pub fn is_elementwise(&self) -> bool {
        matches!((self.facts, self.apart), (Facts::BySlots(_), Apart::BySlots)) && self.by_slots().is_some()
    }

    /// How many inputs the output broadcasts, as the slots say it; all of them where the number is none.
    fn by_slots(&self) -> Option<Option<usize>> {
        match self.slots {
            [Slot::Unary(_)] => Some(Some(1)),
            [Slot::Binary(_) | Slot::Broadcast(_), Slot::Binary(_) | Slot::Broadcast(_)] => Some(Some(2)),
            [Slot::EachBroadcast(_)] => Some(None),
            _ => None,
        }
    }

    /// The facts of the outputs, as many as [`Op::outputs`].
    fn outputs(&self, op: &Op, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let mut facts = self.infer(&Known { op, inputs })?;
        facts.resize(op.outputs, Fact::default());
        Ok(facts)
    }

    /// The facts of the outputs of a node; none where the row does not say them.
    fn infer(&self, c: &Known) -> Result<Vec<Fact>> {
        match (self.facts, self.by_slots()) {
            (Facts::Of(infer), _) => infer(c),
            (Facts::BySlots(f), Some(count)) => {
                let count = count.unwrap_or(c.inputs.len());
                let element = (0..count).find_map(|i| c.element(i));
                broadcasting(c, count, element, f.unwrap_or(unknown))
            }
            (Facts::BySlots(_), None) | (Facts::Bodies, _) => Ok(vec![]),
        }
    }
}

/// The facts of the outputs, as many as [`Op::outputs`]. What is not known, and every output of an operator that has no
/// row, is a [`Fact`] that says nothing.
///
/// # Errors
/// What the row's [`Infer`] finds wrong with the node.
pub fn infer(op: &Op, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
    // Gradients may have a first version; facts are the same for what came before.
    let rule = find(op.domain, op.op_type, op.version).or_else(|| newest(op.domain, op.op_type));
    match rule {
        Some(rule) => rule.outputs(op, inputs),
        None => Ok(vec![Fact::default(); op.outputs]),
    }
}

/// As [`infer`], of an operator for which there is one of these rows.
pub fn infer_own(rules: &[Rule], op: &Op, inputs: &[Option<&Fact>]) -> Option<Result<Vec<Fact>>> {
    let rule = rules.iter().find(|r| r.op == op.op_type && r.domain == op.domain && r.has_facts())?;
    Some(rule.outputs(op, inputs))
}

/// Elements that are not followed.
pub fn unknown(_: &Calculator, _: &[Scalar]) -> Option<Scalar> {
    None
}

/// The output is like the first input.
pub fn same(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![c.like(0)])
}

/// The inputs, `count` of them, broadcast.
pub fn broadcasting(c: &Known, count: usize, element: Option<ElementType>, f: Function) -> Result<Vec<Fact>> {
    let operands: Option<Vec<&Fact>> = (0..count).map(|i| c.input(i)).collect();
    let Some(operands) = operands.filter(|o| !o.is_empty()) else { return Ok(vec![tensor(element, None)]) };
    let shapes: Vec<Option<&[Dim]>> = operands.iter().map(|o| o.shape.as_deref()).collect();
    let shape: Option<Shape> = match shared_shape(&operands) {
        Some(shape) => Some(shape),
        None => broadcast_known(c.dims(), &shapes)?.map(Shape::from),
    };
    let value = element.and_then(|element| {
        value::elementwise(&Calculator { dims: c.dims(), element }, shape.as_deref(), &operands, f)
    });
    Ok(vec![Fact { value, ..Fact::tensor(element, shape) }])
}

/// The shape of every operand, where it is one: nothing is stored again.
fn shared_shape(operands: &[&Fact]) -> Option<Shape> {
    let (first, rest) = operands.split_first()?;
    let shape = first.shape.as_ref()?;
    rest.iter().all(|o| o.shape.as_deref() == Some(shape)).then(|| shape.clone())
}

#[cfg(test)]
mod tests;
