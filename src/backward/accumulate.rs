//! Sums of the gradients that arrive at a tensor.

use super::Flow;
use crate::expr::Expr;
use smallvec::{SmallVec, smallvec};

/// Among up to so many terms it is looked for a common factor.
const FEW: usize = 8;

/// How the gradients that arrive at one tensor are summed. The numbers are the same but for rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Aggregation {
    /// One Sum of all terms, in order of arrival.
    #[default]
    AddN,
    /// A balanced tree of Add: rounding errors grow with the logarithm of the number of terms.
    Tree,
    /// A chain that adds each term as it comes, so that at most one sum is alive.
    AccumulateN,
}

/// What has arrived at a tensor so far.
#[derive(Debug, Default)]
pub struct Accumulator<'g> {
    terms: SmallVec<[Expr<'g>; 1]>,
    zero: bool,
}

impl<'g> Accumulator<'g> {
    /// Takes one more.
    pub fn push(&mut self, flow: Flow<'g>, aggregation: Aggregation) {
        match flow {
            Flow::Zero => self.zero = true,
            Flow::Value(term) => match (aggregation, self.terms.as_mut_slice()) {
                (Aggregation::AccumulateN, [sum]) => *sum = sum.plus_node(term),
                _ => self.terms.push(term),
            },
        }
    }

    /// The sum; of one term that term itself.
    pub fn total(&mut self, aggregation: Aggregation) -> Option<Flow<'g>> {
        if aggregation == Aggregation::AddN && self.terms.len() <= FEW {
            self.factor();
        }
        if aggregation == Aggregation::AddN && self.terms.len() > 1 {
            self.terms = Expr::with_joined_pieces(&self.terms).into();
        }
        let sum = match self.terms.as_slice() {
            [] => return self.zero.then_some(Flow::Zero),
            [only] => *only,
            [a, b] if aggregation != Aggregation::AddN => a.plus_node(*b),
            terms if aggregation == Aggregation::Tree => tree(terms),
            terms => Expr::add_n(terms),
        };
        // Asked again, of an x, it is the same sum.
        self.terms = smallvec![sum];
        Some(Flow::Value(sum))
    }

    /// One term in place of two that are multiples of one gradient.
    fn factor(&mut self) {
        let mut terms: SmallVec<[Expr<'g>; 1]> = SmallVec::new();
        for term in self.terms.drain(..) {
            let joined = terms.iter().enumerate().find_map(|(i, other)| Some((i, other.with_common_factor(term)?)));
            match joined {
                Some((i, sum)) => terms[i] = sum,
                None => terms.push(term),
            }
        }
        self.terms = terms;
    }
}

fn tree<'g>(terms: &[Expr<'g>]) -> Expr<'g> {
    match terms {
        [only] => *only,
        _ => {
            let (left, right) = terms.split_at(terms.len().div_ceil(2));
            tree(left).plus_node(tree(right))
        }
    }
}
