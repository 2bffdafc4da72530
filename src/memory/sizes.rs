//! How many bytes tensors take, where symbolic sizes are what a user says, or a number that stands for all others.

use crate::graph::{Dim, Graph, IdSet, ValueId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// What a size is taken for that nobody says: it matters only how tensors compare, and most hold samples.
pub const USUAL: i64 = 32;
/// A tensor of more bytes counts as one of so many, which no machine holds: sums over all tensors of a file stay
/// numbers.
pub const MOST: u64 = 1 << 40;

/// The sizes that symbols have.
pub struct Sizes<'a> {
    graph: &'a Graph,
    bound: &'a BTreeMap<String, i64>,
    /// What a size is taken for that is not known.
    usual: i64,
    open: RefCell<BTreeSet<String>>,
    unknown: RefCell<IdSet<ValueId>>,
}

impl<'a> Sizes<'a> {
    /// Sizes by name, and [`USUAL`] ones.
    pub fn new(graph: &'a Graph, bound: &'a BTreeMap<String, i64>) -> Self {
        Sizes { graph, bound, usual: USUAL, open: RefCell::default(), unknown: RefCell::default() }
    }

    /// Sizes by name alone: a tensor that has others takes nothing.
    pub fn said(graph: &'a Graph, bound: &'a BTreeMap<String, i64>) -> Self {
        Sizes { usual: 0, ..Sizes::new(graph, bound) }
    }

    /// The bytes of a tensor. One of which not even the rank is known counts as nothing.
    pub fn bytes(&self, value: ValueId) -> u64 {
        let fact = self.graph.fact(value);
        let (Some(shape), Some(bits)) = (&fact.shape, fact.element.and_then(|e| e.bits())) else {
            self.unknown.borrow_mut().insert(value);
            return 0;
        };
        let size = |dim: Dim| {
            let known = self.size(dim);
            if known.is_none() {
                self.unknown.borrow_mut().insert(value);
            }
            u64::try_from(known.unwrap_or(self.usual)).unwrap_or(0)
        };
        let elements = shape.iter().fold(1u64, |n, &d| n.saturating_mul(size(d)));
        elements.saturating_mul(bits as u64).div_ceil(8).min(MOST)
    }

    /// The number that a size is; `None` where that follows from values.
    fn size(&self, dim: Dim) -> Option<i64> {
        let named = |name: &str| {
            Some(self.bound.get(name).copied().unwrap_or_else(|| {
                self.open.borrow_mut().insert(name.to_owned());
                self.usual
            }))
        };
        match dim {
            Dim::Known(n) => Some(n),
            dim => self.graph.dims.evaluate(dim, &named),
        }
    }

    /// The names of the sizes that were asked for and that nobody has said.
    pub fn open(&self) -> Vec<String> {
        self.open.borrow().iter().cloned().collect()
    }

    /// How many of the tensors that were asked for have sizes that follow from values.
    pub fn unknown(&self) -> usize {
        self.unknown.borrow().len()
    }
}
