//! Facts of attention: outputs, and the keys and values so far.

use crate::graph::facts::{Known, tensor};
use crate::graph::facts::{agree, at};
use crate::graph::{Dim, Fact, Protocol};
use crate::onnx::{AttributeProto, ElementType, attribute};
use anyhow::{Result, bail, ensure};

/// Batch, heads, steps and size of a head, of a tensor that has them apart or has the heads packed in the last axis.
pub fn heads(c: &Known, i: usize, count: i64) -> Result<Option<[Dim; 4]>> {
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
pub fn attention(c: &Known) -> Result<Vec<Fact>> {
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
            Some(_) => vec![batch, heads, dims.add(at(c, c.shape(past), 2), steps), size],
        })
    };
    let (keys, values) = (so_far(4, k), so_far(5, v));
    let products = q.map(|[batch, heads, steps, _]| vec![batch, heads, steps, at(c, keys.as_deref(), 2)]);
    Ok(vec![
        tensor(c.element(0), y),
        tensor(c.element(1).or(c.element(0)), keys),
        tensor(c.element(2), values),
        tensor(c.element(0), products),
    ])
}

/// `[B, T, Hq Dv]`, and the state `[B, Hkv, Dk, Dv]`.
pub fn linear_attention(c: &Known) -> Result<Vec<Fact>> {
    let (queries, stored) = (Dim::Known(c.int("q_num_heads", 0)), Dim::Known(c.int("kv_num_heads", 0)));
    let dims = c.dims();
    let size = |i: usize| dims.floor_div(at(c, c.shape(i), 2), stored);
    let (key, value) = (size(1), size(2));
    let (batch, steps) = (at(c, c.shape(0), 0), at(c, c.shape(0), 1));
    let state = c.element(3).or_else(|| c.element(0).filter(|_| c.input(3).is_none()));
    Ok(vec![
        tensor(c.element(0), Some(vec![batch, steps, dims.mul(queries, value)])),
        tensor(state, Some(vec![batch, stored, key, value])),
    ])
}

/// Batch, heads, steps and size of `[batch, steps, heads * size]`, `[batch, heads, steps, size]` or
/// `[batch, steps, heads, parts, size]`.
pub fn heads_of(c: &Known, i: usize, heads: Dim) -> Option<[Dim; 4]> {
    match *c.shape(i)? {
        [batch, steps, all] => Some([batch, heads, steps, c.dims().floor_div(all, heads)]),
        [batch, heads, steps, size] | [batch, steps, heads, _, size] => Some([batch, heads, steps, size]),
        _ => None,
    }
}

/// The number of heads is an attribute, by which sizes are divided.
pub fn number_of_heads(c: &Known, name: &str) -> Result<Dim> {
    let heads = c.int(name, 0);
    ensure!(heads > 0, "{name} = {heads} is not positive");
    Ok(heads.into())
}

/// The heads of the queries, with the size of the values, side by side.
pub fn attended(c: &Known, queries: Option<[Dim; 4]>, size: Option<Dim>) -> Fact {
    let size = size.unwrap_or_else(|| c.dims().fresh());
    tensor(c.element(0), queries.map(|[batch, heads, steps, _]| vec![batch, steps, c.dims().mul(heads, size)]))
}

/// Keys or values may be packed with each other, or with the queries.
pub fn multi_head_attention(c: &Known) -> Result<Vec<Fact>> {
    let number = number_of_heads(c, "num_heads")?;
    let packed = if c.input(1).is_some() { 1 } else { 0 };
    let now = |i: usize| heads_of(c, if c.input(i).is_some() { i } else { packed }, number);
    let (queries, keys, values) = (heads_of(c, 0, number), now(1), now(2));
    let so_far = |past: usize, now: Option<[Dim; 4]>| {
        now.map(|[batch, heads, steps, size]| match c.input(past) {
            Some(_) => vec![batch, heads, c.dims().add(at(c, c.shape(past), 2), steps), size],
            None => vec![batch, heads, steps, size],
        })
    };
    let (present_keys, present_values) = (so_far(6, keys), so_far(7, values));
    let scores = queries.map(|[batch, heads, steps, _]| vec![batch, heads, steps, at(c, present_keys.as_deref(), 2)]);
    // With a buffer, its length is that of what comes out.
    let cache = |shape| if c.input(8).is_some() { None } else { shape };
    Ok(vec![
        attended(c, queries, values.map(|[.., size]| size)),
        tensor(c.element(0), cache(present_keys)),
        tensor(c.element(0), cache(present_values)),
        tensor(c.element(0), cache(scores)),
    ])
}

/// Queries, keys and values are one product of the input and the weights.
pub fn projected_attention(c: &Known) -> Result<Vec<Fact>> {
    let (dims, number) = (c.dims(), number_of_heads(c, "num_heads")?);
    let (keys, values) = match c.ints("qkv_hidden_sizes") {
        Some(&[_, keys, values]) => (keys.into(), values.into()),
        _ => {
            let third = dims.floor_div(at(c, c.shape(1), 1), 3.into());
            (third, third)
        }
    };
    let Some(&[batch, steps, _]) = c.shape(0) else {
        return Ok(vec![tensor(c.element(0), None), tensor(c.element(0), None)]);
    };
    let present = match (c.input(4), c.input(6)) {
        (None, None) => Some(steps),
        (Some(_), None) => Some(dims.add(at(c, c.shape(4), 3), steps)),
        _ => None,
    };
    let present = present.map(|length| vec![2.into(), batch, number, length, dims.floor_div(keys, number)]);
    Ok(vec![tensor(c.element(0), Some(vec![batch, steps, values])), tensor(c.element(0), present)])
}

/// The cache is as long as the longest sequence so far, or longer where that of before was.
pub fn group_query_attention(c: &Known) -> Result<Vec<Fact>> {
    let dims = c.dims();
    let (number, stored) = (number_of_heads(c, "num_heads")?, number_of_heads(c, "kv_num_heads")?);
    let packed = c.input(1).is_none();
    let all = if packed { dims.add(number, dims.mul(stored, 2.into())) } else { number };
    let queries = heads_of(c, 0, all).map(|[batch, _, steps, size]| [batch, number, steps, size]);
    let total = c.scalar(6);
    let length = match (c.input(3), total) {
        (None, _) => at(c, c.shape(if packed { 0 } else { 1 }), 1),
        (Some(_), Some(total)) => dims.max(total, at(c, c.shape(3), 2)),
        (Some(_), None) => dims.fresh(),
    };
    let present = queries.map(|[batch, _, _, size]| vec![batch, stored, length, size]);
    let cache = |past: usize| tensor(c.element(past).or(c.element(0)), present.clone());
    Ok(vec![attended(c, queries, queries.map(|[.., size]| size)), cache(3), cache(4), tensor(c.element(0), None)])
}

/// `[batch, heads, queries, value size]`
pub fn flex_attention(c: &Known) -> Result<Vec<Fact>> {
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

/// The bodies of a FlexAttention take what they change: `[batch, heads, queries, keys]`, in the precision of its
/// softmax.
pub const SCORES: Protocol = Protocol { inputs: |c, _| vec![scores(c)], states: |_, _| vec![], outputs: None };

fn scores(c: &Known) -> Fact {
    let given = attribute::get_int(c.op.attributes, "softmax_precision").and_then(|n| i32::try_from(n).ok());
    let element = match given {
        Some(number) => Some(ElementType::from_number(number)).filter(|e| e.is_float()),
        None => c.element(0).map(ElementType::widened),
    };
    let shape = match (c.shape(0), c.shape(1)) {
        (Some(&[batch, heads, queries, _]), Some(&[_, _, keys, _])) => Some(vec![batch, heads, queries, keys]),
        _ => None,
    };
    tensor(element, shape)
}

/// Keys and values are as many, where both have axes for heads or none has.
pub fn equal_in_attention(_: &[AttributeProto], shapes: &[Option<&[Dim]>]) -> Vec<(Dim, Dim)> {
    match shapes {
        &[_, Some(k @ &[_, .., keys, _]), Some(v @ &[_, .., values, _]), ..] if k.len() == v.len() => {
            vec![(keys, values)]
        }
        _ => vec![],
    }
}
