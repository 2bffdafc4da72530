//! Resize, grids and other resampling.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
