//! The preview domains: steps of optimizers.

use super::context::{Context, Row};
use crate::graph::Fact;
use anyhow::Result;

/// `ai.onnx.preview.training`
pub const TRAINING: &[Row] = &[("Adagrad", |c| step(c, 1)), ("Adam", |c| step(c, 2)), ("Momentum", |c| step(c, 1))];

/// Behind the rate and the number of the step stand tensors, their gradients and their states: new tensors and states are
/// like the old ones.
fn step(c: &Context, states: usize) -> Result<Vec<Fact>> {
    let count = c.inputs.len().saturating_sub(2) / (states + 2);
    Ok((2..2 + count).chain(2 + 2 * count..2 + (states + 2) * count).map(|i| c.like(i)).collect())
}
