//! Normalizations, in inference and in training.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
