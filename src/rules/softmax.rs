//! Softmax and its relatives.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
