//! Pooling, and regions of interest.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
