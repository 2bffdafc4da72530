//! What a model holds while it runs, node after node in the order of the file: in which order its new nodes hold least,
//! and what is computed again instead of kept where that is too much.
//!
//! A tensor is held from the node that computes it to the last one that takes it, an output of the model to the end.
//! Tensors that only show another one in a new shape take nothing; what goes into a model, its initializers and
//! constants are there anyway. Bodies of control flow count by what they take from outside.

mod flow;
mod ledger;
mod moves;
mod order;
mod recompute;
mod sizes;

pub use ledger::Ledger;
pub use recompute::{Budget, Limit, Recomputed, Report};
pub use sizes::{MOST, Sizes};

use crate::expr::Builder;
use crate::graph::write::Step;
use crate::graph::{Graph, IdSet, NodeId, Origin, ValueId};
use anyhow::Result;
use order::Tried;
use std::collections::BTreeMap;

/// Of larger graphs less is tried.
const LARGE: usize = 20_000;

/// What may be computed again.
#[derive(Clone, Copy, Debug)]
pub enum Again<'a> {
    /// Nothing.
    Nothing,
    /// What takes next to no time, or all that a budget asks for.
    Within(Option<&'a Budget>),
}

/// In which order new nodes are written, and what comes of a budget. `ends` are held to the end.
///
/// # Errors
/// The budget cannot be met, or depends on sizes that are not known.
pub fn schedule(
    builder: &Builder,
    new: Vec<NodeId>,
    ends: &[ValueId],
    again: Again<'_>,
) -> Result<(Vec<Step>, Option<Report>)> {
    match again {
        Again::Within(Some(budget)) => {
            let (steps, report) = recompute::recompute(builder, new, ends, budget)?;
            Ok((steps, Some(report)))
        }
        Again::Within(None) if builder.graph().scope(Graph::MAIN).nodes.len() <= LARGE => {
            Ok((recompute::freely(builder, new, ends)?, None))
        }
        Again::Nothing | Again::Within(None) => {
            let (graph, bound) = (builder.graph(), BTreeMap::new());
            let nodes = order::ordered(&graph, &Sizes::new(&graph, &bound), new, ends, Tried::Moves);
            Ok((nodes.into_iter().map(Step::of).collect(), None))
        }
    }
}

/// The nodes of the main graph that are there before the new ones.
fn forward(graph: &Graph, new: &[NodeId]) -> Vec<NodeId> {
    let new: IdSet<NodeId> = new.iter().copied().collect();
    let nodes = graph.scope(Graph::MAIN).nodes.iter().copied();
    nodes.filter(|id| !new.contains(id) && graph.node(*id).origin == Origin::Model).collect()
}
