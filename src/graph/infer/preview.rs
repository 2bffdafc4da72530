//! The preview domains: attention by bodies, and steps of optimizers.

use super::context::{Context, Row, tensor};
use super::shape::agree;
use crate::graph::Fact;
use anyhow::Result;

/// `ai.onnx.preview`
pub const ROWS: &[Row] = &[("FlexAttention", flex_attention)];

/// `ai.onnx.preview.training`
pub const TRAINING: &[Row] = &[("Adagrad", |c| step(c, 1)), ("Adam", |c| step(c, 2)), ("Momentum", |c| step(c, 1))];

/// `[batch, heads, queries, value size]`
fn flex_attention(c: &Context) -> Result<Vec<Fact>> {
    let shape = match (c.shape(0), c.shape(1), c.shape(2)) {
        (Some(&[batch, heads, queries, size]), Some(&[_, _, keys, key_size]), Some(&[_, _, values, value_size])) => {
            agree("sizes of queries and keys", size, key_size)?;
            agree("numbers of keys and values", keys, values)?;
            Some(vec![batch, heads, queries, value_size])
        }
        _ => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

/// Behind the rate and the number of the step stand tensors, their gradients and their states: new tensors and states are
/// like the old ones.
fn step(c: &Context, states: usize) -> Result<Vec<Fact>> {
    let count = c.inputs.len().saturating_sub(2) / (states + 2);
    Ok((2..2 + count).chain(2 + 2 * count..2 + (states + 2) * count).map(|i| c.like(i)).collect())
}
