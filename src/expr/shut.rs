//! Which gradients are zero anyway where a rectifier has shut.
//!
//! The gradient of a Relu is dy where its output is above 0. A maximum of windows hands its gradient on to the places
//! where the maxima stand, and one of zeros is handed on as zeros: so the smaller tensor of the maxima can be masked in
//! the place of the larger one of all elements, if nothing else takes that.

use super::{Builder, Expr};
use crate::graph::{Origin, Producer, ValueId};

impl<'g> Expr<'g> {
    /// This gradient where the output `y` of a rectifier is above 0, zero elsewhere. It is itself where it is known to
    /// be that.
    pub fn where_open(self, y: Expr<'g>) -> Expr<'g> {
        let known = self.builder.shut.borrow().get(&self.id) == Some(&y.id);
        if known { self } else { self.where_(y.above(0.0)) }
    }

    /// Notes that this gradient of `y` is zero wherever `y` is not above 0.
    pub fn note_shut(self, y: Expr<'g>) -> Expr<'g> {
        self.builder.shut.borrow_mut().insert(self.id, y.id);
        self
    }

    /// Whether a rectifier computes this, one node of the model alone takes it, and nobody asks for its own gradient,
    /// which counts where it is 0, too.
    pub fn is_rectified_for_one(self) -> bool {
        let producer = self.builder.graph().value(self.id).producer;
        let Producer::Node(node, 0) = producer else { return false };
        let rectifies = {
            let graph = self.builder.graph();
            graph.traits(graph.node(node)).rectifies
        };
        rectifies && !self.builder.is_leaf(self.id) && self.builder.is_taken_once(self.id)
    }
}

impl Builder {
    /// Whether the nodes of the model take a value once, those in bodies too.
    fn is_taken_once(&self, value: ValueId) -> bool {
        let takers = self.takers.get_or_init(|| {
            let graph = self.graph();
            let mut takers = vec![0u32; graph.value_count()];
            for node in graph.nodes().filter(|node| node.origin == Origin::Model) {
                node.inputs.iter().flatten().for_each(|v| takers[v.number()] += 1);
            }
            takers
        });
        takers.get(value.number()) == Some(&1)
    }
}
