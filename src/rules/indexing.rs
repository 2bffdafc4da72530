//! Operators that pick and place elements by index.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
