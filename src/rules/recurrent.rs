//! Recurrent networks: RNN, GRU, LSTM.

use super::Rule;

/// The rows.
pub const RULES: &[Rule] = &[];
