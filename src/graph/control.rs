//! Facts of the outputs of If, Loop and Scan, from those of their bodies.

use super::{Fact, Graph, NewNode};

/// The facts of the outputs of a node with bodies, which are in the graph already.
pub fn infer(_graph: &Graph, node: &NewNode, _inputs: &[Option<&Fact>]) -> Vec<Fact> {
    vec![Fact::default(); node.outputs.len()]
}
