//! Operators on sequences of steps: recurrent networks and attention.

use super::context::{Context, Row, tensor};
use super::elementwise::same;
use crate::graph::{Dim, Fact};
use anyhow::{Result, bail};

pub const ROWS: &[Row] = &[
    ("Attention", attention),
    ("CausalConvWithState", causal_convolution),
    ("GRU", recurrent),
    ("LSTM", recurrent),
    ("LinearAttention", linear_attention),
    ("RNN", recurrent),
    ("RotaryEmbedding", same),
];

fn at(shape: Option<&[Dim]>, axis: usize, c: &Context) -> Dim {
    shape.and_then(|s| s.get(axis).copied()).unwrap_or_else(|| c.dims().fresh())
}

/// `Y`, `Y_h` and, for LSTM, `Y_c`; with `layout=1` (opset 14) the batch comes first.
pub fn recurrent(c: &Context) -> Result<Vec<Fact>> {
    let element = c.element(0).or(c.element(1));
    let directions = Dim::Known(if c.string("direction") == Some("bidirectional") { 2 } else { 1 });
    let hidden = match c.int("hidden_size", 0) {
        0 => at(c.shape(2), 2, c),
        size => size.into(),
    };
    let (first, second) = (at(c.shape(0), 0, c), at(c.shape(0), 1, c));
    let (all, last) = match c.flag("layout") {
        false => (vec![first, directions, second, hidden], vec![directions, second, hidden]),
        true => (vec![first, second, directions, hidden], vec![first, directions, hidden]),
    };
    let last = tensor(element, Some(last));
    Ok(vec![tensor(element, Some(all)), last.clone(), last])
}

/// Batch, heads, steps and size of a head, of a tensor that has them apart or has the heads packed in the last axis.
fn heads(c: &Context, i: usize, count: i64) -> Result<Option<[Dim; 4]>> {
    Ok(match c.shape(i) {
        None => None,
        Some(&[batch, heads, steps, size]) => Some([batch, heads, steps, size]),
        Some(&[batch, steps, packed]) if count > 0 => {
            Some([batch, count.into(), steps, c.dims().floor_div(packed, count.into())])
        }
        Some(_) => bail!("attention takes tensors of rank 3, with the number of heads, or 4"),
    })
}

/// `Y`, the keys and values so far, and the products of queries and keys.
fn attention(c: &Context) -> Result<Vec<Fact>> {
    let dims = c.dims();
    let queries = c.int("q_num_heads", 0);
    let stored = c.int("kv_num_heads", 0);
    let (q, k, v) = (heads(c, 0, queries)?, heads(c, 1, stored)?, heads(c, 2, stored)?);
    let size = v.map_or_else(|| dims.fresh(), |[.., size]| size);
    let y = q.map(|[batch, heads, steps, _]| match c.rank(0) {
        Some(3) => vec![batch, steps, dims.mul(heads, size)],
        _ => vec![batch, heads, steps, size],
    });
    let so_far = |past: usize, now: Option<[Dim; 4]>| {
        now.map(|[batch, heads, steps, size]| match c.input(past) {
            None => vec![batch, heads, steps, size],
            Some(_) => vec![batch, heads, dims.add(at(c.shape(past), 2, c), steps), size],
        })
    };
    let (keys, values) = (so_far(4, k), so_far(5, v));
    let products = q.map(|[batch, heads, steps, _]| vec![batch, heads, steps, at(keys.as_deref(), 2, c)]);
    Ok(vec![
        tensor(c.element(0), y),
        tensor(c.element(1).or(c.element(0)), keys),
        tensor(c.element(2), values),
        tensor(c.element(0), products),
    ])
}

/// `[B, T, Hq Dv]`, and the state `[B, Hkv, Dk, Dv]`.
fn linear_attention(c: &Context) -> Result<Vec<Fact>> {
    let (queries, stored) = (Dim::Known(c.int("q_num_heads", 0)), Dim::Known(c.int("kv_num_heads", 0)));
    let dims = c.dims();
    let size = |i: usize| dims.floor_div(at(c.shape(i), 2, c), stored);
    let (key, value) = (size(1), size(2));
    let (batch, steps) = (at(c.shape(0), 0, c), at(c.shape(0), 1, c));
    let state = c.element(3).or_else(|| c.element(0).filter(|_| c.input(3).is_none()));
    Ok(vec![
        tensor(c.element(0), Some(vec![batch, steps, dims.mul(queries, value)])),
        tensor(state, Some(vec![batch, stored, key, value])),
    ])
}

/// The state holds as many steps as the kernel reaches back.
fn causal_convolution(c: &Context) -> Result<Vec<Fact>> {
    let reach = c.dims().sub(at(c.shape(1), 2, c), 1.into());
    let state = vec![at(c.shape(0), 0, c), at(c.shape(0), 1, c), reach];
    Ok(vec![c.like(0), tensor(c.element(0), Some(state))])
}
