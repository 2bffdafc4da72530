//! How many bytes tensors take, where symbolic sizes are what a user says, or a number that stands for all others.

use crate::graph::{Dim, Graph, ValueId};
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
    open: RefCell<BTreeSet<String>>,
}

impl<'a> Sizes<'a> {
    /// Sizes by name.
    pub fn new(graph: &'a Graph, bound: &'a BTreeMap<String, i64>) -> Self {
        Sizes { graph, bound, open: RefCell::default() }
    }

    /// The bytes of a tensor. One of which not even the rank is known counts as nothing.
    pub fn bytes(&self, value: ValueId) -> u64 {
        let fact = self.graph.fact(value);
        let (Some(shape), Some(bits)) = (&fact.shape, fact.element.and_then(|e| e.bits())) else { return 0 };
        let elements = shape.iter().fold(1u64, |n, &d| n.saturating_mul(self.size(d)));
        elements.saturating_mul(bits as u64).div_ceil(8).min(MOST)
    }

    /// The number that a size is.
    fn size(&self, dim: Dim) -> u64 {
        let named = |name: &str| {
            Some(self.bound.get(name).copied().unwrap_or_else(|| {
                self.open.borrow_mut().insert(name.to_owned());
                USUAL
            }))
        };
        let size = match dim {
            Dim::Known(n) => n,
            dim => self.graph.dims.evaluate(dim, &named).unwrap_or(USUAL),
        };
        u64::try_from(size).unwrap_or(0)
    }

    /// The names of the sizes that were asked for and that nobody has said.
    pub fn open(&self) -> Vec<String> {
        self.open.borrow().iter().cloned().collect()
    }
}
