//! Quantization: straight through the rounding.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
