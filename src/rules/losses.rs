//! Losses of classification.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
