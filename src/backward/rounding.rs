//! Rounding that counts as the identity: the integers between quantization and its inverse carry gradients as the
//! numbers do that they stand for.

use super::Pass;
use super::reach::Known;
use crate::graph::{IdMap, IdSet, NodeId, ValueId};
use crate::onnx::ElementType;
use crate::rules::{Integers, Slot};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// What a pass knows of quantized integers.
#[derive(Default)]
pub struct Rounding {
    /// Whether rounding counts as the identity; where not, there are no such integers.
    straight_through: bool,
    /// The quantized integers that depend on an x, with the element type of their gradients.
    cotangents: RefCell<IdMap<ValueId, ElementType>>,
    /// The nodes that take such integers and pass them no gradient.
    shut: RefCell<BTreeSet<NodeId>>,
}

impl Rounding {
    /// Nothing is known yet.
    pub fn new(straight_through: bool) -> Self {
        Rounding { straight_through, ..Rounding::default() }
    }

    /// Whether rounding counts as the identity.
    pub fn is_straight_through(&self) -> bool {
        self.straight_through
    }

    /// The element type of the gradient of quantized integers that depend on an x.
    pub fn cotangent(&self, value: ValueId) -> Option<ElementType> {
        self.cotangents.borrow().get(&value).copied()
    }

    /// Notes integers whose gradient has that element type.
    pub fn carry(&self, value: ValueId, element: ElementType) {
        self.cotangents.borrow_mut().insert(value, element);
    }

    /// Notes a node that shuts such integers off from the gradient.
    pub fn shut(&self, node: NodeId) {
        self.shut.borrow_mut().insert(node);
    }
}

impl<'g> Pass<'g> {
    /// Whether a node takes live quantized integers, and passes them no gradient though their values matter:
    /// they are not among the `sources` that its outputs carry gradients to, or no output carries any.
    pub(super) fn is_shut(&self, id: NodeId, known: Known<'g>, live: &IdSet<ValueId>, sources: &[ValueId]) -> bool {
        if self.rounding.cotangents.borrow().is_empty() {
            return false;
        }
        let graph = self.builder.graph();
        let node = graph.node(id);
        let carries =
            |&o: &ValueId| graph.fact(o).may_carry_gradient() || self.cotangent_of_output(known, o, sources).is_some();
        let passes = node.outputs.iter().flatten().any(carries);
        let integers = |v: ValueId| live.contains(&v) && self.rounding.cotangent(v).is_some();
        let takes = |i: usize, v: ValueId| {
            let stopped = matches!(known.row().and_then(|r| r.slot(i)), Some(Slot::Stop(_)));
            integers(v) && !stopped && !(passes && sources.contains(&v))
        };
        node.inputs.iter().enumerate().any(|(i, v)| v.is_some_and(|v| takes(i, v)))
            || (!node.bodies.is_empty() && graph.captures(id).into_iter().any(integers))
    }

    /// The nodes on paths to `ys` that take quantized integers which depend on an x, and pass them no gradient.
    pub(super) fn shut_nodes(&self, ys: &[ValueId]) -> Vec<String> {
        let graph = self.builder.graph();
        let sources = graph.sources(ys);
        let leads = |id: &NodeId| graph.node(*id).outputs.iter().flatten().any(|o| sources.contains(o));
        let shut: BTreeSet<NodeId> = self.rounding.shut.borrow().iter().map(|&id| self.origin(id)).collect();
        shut.into_iter().filter(leads).map(|id| graph.describe(id)).collect()
    }

    /// Whether a node's output holds rounded numbers, where its type may not even be known.
    pub(super) fn rounds(&self, known: Known<'g>, output: ValueId) -> bool {
        let float = self.builder.graph().fact(output).element.is_some_and(ElementType::is_float);
        !float && known.row().is_some_and(|r| r.integers == Integers::Rounded)
    }

    /// The element type of the gradient of a node's output that holds quantized integers, where they depend on one of
    /// the `sources` among the node's inputs in a way that its rule knows of.
    pub(super) fn cotangent_of_output(
        &self,
        known: Known<'g>,
        output: ValueId,
        sources: &[ValueId],
    ) -> Option<ElementType> {
        let graph = self.builder.graph();
        let element = |v: ValueId| graph.fact(v).element;
        if !self.rounding.straight_through || element(output).is_some_and(ElementType::is_float) {
            return None;
        }
        let integers = || sources.iter().filter_map(|&v| Some((v, self.rounding.cotangent(v)?)));
        match known.row().map(|r| r.integers) {
            Some(Integers::Ignored) => None,
            Some(Integers::Moved) => integers().find(|&(v, _)| element(v) == element(output)).map(|(_, e)| e),
            Some(Integers::Rounded) => sources.first().and_then(|&v| self.rounding.cotangent(v).or(element(v))),
            None => integers().next().map(|(_, e)| e),
        }
    }
}
