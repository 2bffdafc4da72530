//! Sequences and optionals, as carriers of gradients.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
