//! Dropout and the operators that draw random numbers.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
