//! Reductions, cumulative sums and products, orderings.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
