//! Control flow: rules that enter the pass again for the nodes of a body.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
