//! Operators that move elements and leave their values.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
