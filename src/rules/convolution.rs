//! Convolutions, forward and transposed.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
