//! Which gradients may be multiplied by zero to put them aside.
//!
//! A gradient is infinite in the places where a function has a pole, such as the square root at 0, and a choice (Relu,
//! Clip, Where) may put just those places aside. There a product with zeros and ones would be no number, and a Where is
//! needed. All other gradients are finite as long as the training is sound, and if one of them overflows, no choice
//! saves the step.

use super::{Builder, Expr};
use crate::graph::{NodeId, Origin, Poles, Producer, Traits, ValueId};

impl<'g> Expr<'g> {
    /// Whether this was written by the pass, and has no pole of a function in it.
    pub(in crate::expr) fn is_tame(self) -> bool {
        let written = {
            let graph = self.builder.graph();
            graph.producer(self.id).is_some_and(|(node, _)| graph.node(node).origin != Origin::Model)
        };
        written && self.is_float() && !self.builder.is_wild(self.id)
    }
}

impl Builder {
    /// Notes of a new node's outputs whether poles are in them.
    pub(super) fn note_wild(&self, node: NodeId, traits: &Traits) {
        let wild = self.has_pole(node, traits) || self.passes_poles(node, traits);
        if wild {
            let outputs = self.graph().node(node).outputs.clone();
            self.wild.borrow_mut().extend(outputs.into_iter().flatten());
        }
    }

    fn is_wild(&self, value: ValueId) -> bool {
        let of_model = |node: NodeId| self.graph().node(node).origin == Origin::Model;
        let producer = self.graph().value(value).producer;
        match producer {
            Producer::Node(node, _) if of_model(node) => {
                let traits = self.graph().traits(self.graph().node(node));
                self.has_pole(node, &traits)
            }
            Producer::Node(..) => self.wild.borrow().contains(&value),
            Producer::Input | Producer::Initializer => false,
        }
    }

    /// Whether an operator's own function has a pole, in single elements of its output.
    fn has_pole(&self, node: NodeId, traits: &Traits) -> bool {
        let graph = self.graph();
        let node = graph.node(node);
        let second = node.inputs.get(1).copied().flatten().map(|id| self.expr(id));
        match traits.poles {
            Poles::Somewhere => true,
            // What many elements are divided by is no matter of one of them.
            Poles::Divided => second.is_some_and(|by| by.constant().is_none() && self.covers(by.id, &node.outputs)),
            Poles::Powers => second.is_none_or(|exponent| exponent.constant().is_none_or(|e| e < 0.0)),
            Poles::Nowhere => !node.domain.is_empty() || !node.bodies.is_empty(),
        }
    }

    /// Whether poles in an input are poles in an output: sums of products spread them over all that they compute.
    fn passes_poles(&self, node: NodeId, traits: &Traits) -> bool {
        let graph = self.graph();
        let node = graph.node(node);
        let through = |&id: &ValueId| self.is_wild(id);
        let part = |&&input: &&ValueId| !traits.elementwise || self.covers(input, &node.outputs);
        !traits.contracts && node.inputs.iter().flatten().filter(part).any(through)
    }

    /// Whether a value has an element for each of the outputs', as far as is known.
    fn covers(&self, value: ValueId, outputs: &[Option<ValueId>]) -> bool {
        let graph = self.graph();
        let shape = |id: ValueId| graph.fact(id).shape.as_deref();
        match (shape(value), outputs.first().copied().flatten().and_then(shape)) {
            (Some(own), Some(whole)) => own == whole,
            _ => true,
        }
    }
}
