//! Operators through which no gradient passes by nature.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
