//! Fourier transforms.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
