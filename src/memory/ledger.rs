//! Which node begins to hold what, and which is the last one to take it.

use super::Sizes;
use crate::graph::write::Step;
use crate::graph::{Graph, NodeId, ValueId};
use crate::rules::{self, Moves};
use smallvec::SmallVec;

/// Numbers of tensors, or of nodes, in a [`Ledger`].
pub type Numbers = SmallVec<[u32; 4]>;

/// What one node takes and computes.
#[derive(Debug, Default)]
pub struct Entry {
    /// The tensors that it takes, each once.
    pub reads: Numbers,
    /// The tensors that it computes.
    pub writes: Numbers,
    /// The nodes that compute what it takes, each once.
    pub after: Numbers,
}

impl Entry {
    /// Whether the node is there before anything runs.
    pub fn is_constant(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty() && self.after.is_empty()
    }
}

/// The nodes of the main graph with what they take and compute. Tensors that share memory count as one.
#[derive(Debug, Default)]
pub struct Ledger {
    /// For each node, in the order in which they were given.
    pub entries: Vec<Entry>,
    /// The bytes of each tensor.
    pub bytes: Vec<u64>,
    /// Whether a tensor is held to the end.
    pub stays: Vec<bool>,
    /// For each value of the graph the node that computes it.
    pub makers: Vec<Option<u32>>,
    /// For each value of the graph the tensor that holds its elements; `None` for what is there anyway.
    pub tensors: Vec<Option<u32>>,
}

impl Ledger {
    /// Over steps in topological order; `ends` are held to the end.
    pub fn new(graph: &Graph, sizes: &Sizes<'_>, steps: &[Step], ends: impl IntoIterator<Item = ValueId>) -> Self {
        let mut ledger = Ledger { makers: vec![None; graph.value_count()], ..Ledger::default() };
        let mut tensors: Vec<Option<u32>> = vec![None; graph.value_count()];
        for (i, step) in steps.iter().enumerate() {
            let node = graph.node(step.node);
            let mut entry = Entry::default();
            let captured = graph.captures(step.node);
            for value in node.inputs.iter().flatten().chain(&captured).map(|&v| step.taken(v).number()) {
                entry.reads.extend(tensors[value]);
                entry.after.extend(ledger.makers[value]);
            }
            for numbers in [&mut entry.reads, &mut entry.after] {
                numbers.sort_unstable();
                numbers.dedup();
            }
            // Constants are there before the first node runs, and what shows an input is that input.
            let constant = node.inputs.is_empty() && captured.is_empty() && rules::drawing(graph, step.node).is_none();
            let view = is_view(graph, step.node);
            for &output in node.outputs.iter().flatten() {
                ledger.makers[output.number()] = Some(i as u32);
                tensors[output.number()] = match node.inputs.first() {
                    _ if constant => None,
                    Some(&Some(source)) if view => tensors[step.taken(source).number()],
                    _ => {
                        let tensor = ledger.bytes.len() as u32;
                        entry.writes.push(tensor);
                        ledger.bytes.push(sizes.bytes(output));
                        Some(tensor)
                    }
                };
            }
            ledger.entries.push(entry);
        }
        ledger.stays = vec![false; ledger.bytes.len()];
        ends.into_iter().filter_map(|end| tensors[end.number()]).for_each(|t| ledger.stays[t as usize] = true);
        ledger.tensors = tensors;
        ledger
    }

    /// The most bytes that are held at a time when the nodes run in an order, and the place in it where that is.
    pub fn peak(&self, order: impl Iterator<Item = u32> + Clone) -> (u64, usize) {
        let entries = order.map(|n| &self.entries[n as usize]).map(|e| (&e.reads, &e.writes));
        peak(entries, &self.bytes, &self.stays)
    }

    /// The bytes of what the nodes before `first` compute and later ones take.
    pub fn kept(&self, first: usize) -> u64 {
        let readers = self.readers(first as u32..self.entries.len() as u32);
        let own = self.entries[..first].iter().flat_map(|e| &e.writes).filter(|&&t| readers[t as usize] > 0);
        own.map(|&t| self.bytes[t as usize]).sum()
    }

    /// How many of these nodes take each tensor.
    pub fn readers(&self, nodes: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut readers = vec![0u32; self.bytes.len()];
        for t in nodes.flat_map(|n| &self.entries[n as usize].reads) {
            readers[*t as usize] += 1;
        }
        readers
    }
}

/// The most bytes that are held at a time while nodes run that take and compute these tensors, and at which of them.
pub fn peak<'a>(
    entries: impl Iterator<Item = (&'a Numbers, &'a Numbers)> + Clone,
    bytes: &[u64],
    stays: &[bool],
) -> (u64, usize) {
    let mut left = vec![0u32; bytes.len()];
    entries.clone().flat_map(|(reads, _)| reads).for_each(|&t| left[t as usize] += 1);
    peak_before(entries, left, bytes, stays)
}

/// As [`peak`], where others run after these nodes: `left` says how many nodes take each tensor, these and the others.
pub fn peak_before<'a>(
    entries: impl Iterator<Item = (&'a Numbers, &'a Numbers)>,
    mut left: Vec<u32>,
    bytes: &[u64],
    stays: &[bool],
) -> (u64, usize) {
    let (mut held, mut most, mut place) = (0u64, 0u64, 0);
    for (i, (reads, writes)) in entries.enumerate() {
        held += writes.iter().map(|&t| bytes[t as usize]).sum::<u64>();
        if held > most {
            (most, place) = (held, i);
        }
        reads.iter().for_each(|&t| left[t as usize] -= 1);
        let ended = |&&t: &&u32| left[t as usize] == 0 && !stays[t as usize];
        held -= reads.iter().chain(writes).filter(ended).map(|&t| bytes[t as usize]).sum::<u64>();
    }
    (most, place)
}

/// Whether all that a node gives out is its first input in another shape.
pub fn is_view(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let Some(&Some(source)) = node.inputs.first() else { return false };
    let rule = rules::row(graph, node);
    let same = |&o: &ValueId| graph.fact(o).element == graph.fact(source).element;
    rule.is_some_and(|r| r.moves == Moves::InOrder)
        && node.outputs.len() == 1
        && node.outputs.iter().flatten().all(same)
}
