//! The operators of onnxruntime's own domain that exported and optimized models use most.

use super::context::{Context, Row, axis, broadcast_known, tensor};
use super::elementwise::same;
use super::linear::{gemm, matmul, product};
use super::normalize::layer;
use super::recurrent::recurrent;
use super::select::concat;
use super::window::{convolution, global, pool};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::{Result, ensure};

/// What the standard has under the same name, with the same meaning.
pub const STANDARD: &[&str] = &[
    "DequantizeLinear",
    "GatherND",
    "GridSample",
    "LinearAttention",
    "Pad",
    "QuantizeLinear",
    "Range",
    "SimplifiedLayerNormalization",
    "Trilu",
];

pub const ROWS: &[Row] = &[
    ("Attention", projected_attention),
    ("BiasAdd", same),
    ("BiasGelu", same),
    ("BiasSplitGelu", bias_split_gelu),
    ("CDist", distances),
    ("DynamicQuantizeLSTM", dynamic_lstm),
    ("DynamicQuantizeMatMul", |c| matmul(c, 0, 1, c.element(0))),
    ("EmbedLayerNormalization", embed_layer),
    ("ExpandDims", expand_dims),
    ("FastGelu", same),
    ("FusedConv", |c| convolution(c, 0, 1, c.element(0).or(c.element(1)))),
    ("FusedGemm", gemm),
    ("FusedMatMul", fused_matmul),
    ("Gelu", same),
    ("GroupNorm", same),
    ("GroupQueryAttention", group_query_attention),
    ("Inverse", same),
    ("IsAllFinite", |_| Ok(vec![tensor(Some(ElementType::Bool), Some(vec![]))])),
    ("LayerNormalization", layer),
    ("MatMulNBits", matmul_n_bits),
    ("MatMulIntegerToFloat", |c| matmul(c, 0, 1, c.element(2))),
    ("MoE", same),
    ("MultiHeadAttention", multi_head_attention),
    ("QGemm", quantized_gemm),
    ("QLinearAdd", |c| broadcast_of(c, &[0, 3])),
    ("QLinearAveragePool", |c| if c.flag("channels_last") { unknown(c) } else { pool(c) }),
    ("QLinearConcat", quantized_concat),
    ("QLinearGlobalAveragePool", |c| if c.flag("channels_last") { unknown(c) } else { global(c) }),
    ("QLinearLeakyRelu", same),
    ("QLinearMul", |c| broadcast_of(c, &[0, 3])),
    ("QLinearSigmoid", same),
    ("QLinearSoftmax", same),
    ("QLinearWhere", |c| Ok(vec![Fact { element: c.element(1), ..broadcast_of(c, &[0, 1, 4])?.remove(0) }])),
    ("QuickGelu", same),
    ("RotaryEmbedding", same),
    ("SkipGroupNorm", |c| Ok(vec![c.like(0), c.like(0)])),
    ("SkipLayerNormalization", skip_layer),
    ("SkipSimplifiedLayerNormalization", skip_layer),
    ("TransposeMatMul", fused_matmul),
];

/// An image whose channels come last.
fn unknown(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![tensor(c.element(0), c.rank(0).map(|rank| c.fresh(rank)))])
}

/// Of the integers' type, in the shape to which some inputs broadcast.
fn broadcast_of(c: &Context, inputs: &[usize]) -> Result<Vec<Fact>> {
    let shapes: Vec<_> = inputs.iter().map(|&i| c.shape(i)).collect();
    Ok(vec![tensor(c.element(0), broadcast_known(c.dims(), &shapes)?)])
}

/// The result's scale and zero point come first, then each tensor with its own.
fn quantized_concat(c: &Context) -> Result<Vec<Fact>> {
    let parts: Vec<Option<&Fact>> = (2..c.inputs.len()).step_by(3).map(|i| c.input(i)).collect();
    concat(&Context { op: c.op, inputs: &parts })
}

/// A and B stand at 0 and 3; without a scale of the result, that is of the scales' type.
fn quantized_gemm(c: &Context) -> Result<Vec<Fact>> {
    let matrices = gemm(&Context { op: c.op, inputs: &[c.input(0), c.input(3)] })?;
    let element = if c.input(7).is_some() { c.element(8).or(c.element(0)) } else { c.element(1) };
    Ok(matrices.into_iter().map(|y| Fact { element, ..y }).collect())
}

/// As those of an LSTM, whose weights have the other order: `[directions, size, 4 hidden]`.
fn dynamic_lstm(c: &Context) -> Result<Vec<Fact>> {
    let turned = c.shape(2).and_then(|s| Some(Fact::tensor(None, Some([*s.first()?, *s.get(2)?, *s.get(1)?].into()))));
    recurrent(&Context { op: c.op, inputs: &[c.input(0), None, turned.as_ref()] })
}

/// The matrices may be transposed first, and the first axis may be one of theirs. A vector stays as it is.
fn fused_matmul(c: &Context) -> Result<Vec<Fact>> {
    let operand = |i: usize, transposed: &str, moved: &str| {
        c.shape(i).map(|shape| {
            let mut shape = shape.to_vec();
            let last = shape.len().saturating_sub(1);
            if let (true, Some(stack)) = (c.flag(moved), shape.get_mut(..last)) {
                stack.rotate_left(1.min(stack.len()));
            }
            if let (true, [.., a, b]) = (c.flag(transposed), shape.as_mut_slice()) {
                std::mem::swap(a, b);
            }
            shape
        })
    };
    let shape = match (operand(0, "transA", "transBatchA"), operand(1, "transB", "transBatchB")) {
        (Some(a), Some(b)) => Some(product(c, &a, &b)?),
        _ => None,
    };
    Ok(vec![tensor(c.element(0).or(c.element(1)), shape)])
}

/// Half as many channels.
fn bias_split_gelu(c: &Context) -> Result<Vec<Fact>> {
    let half = |last: Dim| c.dims().floor_div(last, 2.into());
    let shape = c.shape(0).and_then(<[Dim]>::split_last).map(|(&last, outer)| [outer, &[half(last)]].concat());
    Ok(vec![tensor(c.element(0), shape)])
}

/// From each row of one matrix to each of the other.
fn distances(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![tensor(c.element(0), Some(vec![at(c, c.shape(0), 0), at(c, c.shape(1), 0)]))])
}

/// An axis of size 1; it may be counted from the back of the result.
fn expand_dims(c: &Context) -> Result<Vec<Fact>> {
    let shape = match (c.shape(0), c.scalar(1)) {
        (Some(shape), Some(Dim::Known(at))) => {
            let at = axis(at, shape.len() + 1)?;
            Some([&shape[..at], &[Dim::Known(1)], &shape[at..]].concat())
        }
        (Some(shape), _) => Some(c.fresh(shape.len() + 1)),
        _ => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

/// The weight is `[N, K]` in blocks of few bits.
fn matmul_n_bits(c: &Context) -> Result<Vec<Fact>> {
    let shape = c.shape(0).and_then(<[Dim]>::split_last).map(|(_, outer)| [outer, &[c.int("N", 0).into()]].concat());
    Ok(vec![tensor(c.element(0), shape)])
}

/// The statistics, and then the sum of the inputs.
fn skip_layer(c: &Context) -> Result<Vec<Fact>> {
    let statistics = c.shape(0).and_then(<[Dim]>::split_last).map(|(_, outer)| [outer, &[Dim::Known(1)]].concat());
    let statistics = tensor(Some(ElementType::Float), statistics);
    Ok(vec![c.like(0), statistics.clone(), statistics, c.like(0)])
}

/// The sum of embeddings, normalized; how many words each sequence has; the sum.
fn embed_layer(c: &Context) -> Result<Vec<Fact>> {
    let shape = match (c.shape(0), c.shape(2)) {
        (Some(words), Some([_, size])) => Some([words, &[*size]].concat()),
        _ => None,
    };
    let y = tensor(c.element(2), shape);
    let batch = c.shape(0).and_then(<[Dim]>::first).copied().unwrap_or_else(|| c.dims().fresh());
    Ok(vec![y.clone(), tensor(Some(ElementType::Int32), Some(vec![batch])), y])
}

/// A size of a shape; one of which nothing is known where there is none.
fn at(c: &Context, shape: Option<&[Dim]>, axis: usize) -> Dim {
    shape.and_then(|s| s.get(axis)).copied().unwrap_or_else(|| c.dims().fresh())
}

/// Batch, heads, steps and size of `[batch, steps, heads * size]`, `[batch, heads, steps, size]` or
/// `[batch, steps, heads, parts, size]`.
fn heads(c: &Context, i: usize, heads: Dim) -> Option<[Dim; 4]> {
    match *c.shape(i)? {
        [batch, steps, all] => Some([batch, heads, steps, c.dims().floor_div(all, heads)]),
        [batch, heads, steps, size] | [batch, steps, heads, _, size] => Some([batch, heads, steps, size]),
        _ => None,
    }
}

/// The number of heads is an attribute, by which sizes are divided.
fn number_of_heads(c: &Context, name: &str) -> Result<Dim> {
    let heads = c.int(name, 0);
    ensure!(heads > 0, "{name} = {heads} is not positive");
    Ok(heads.into())
}

/// The heads of the queries, with the size of the values, side by side.
fn attended(c: &Context, queries: Option<[Dim; 4]>, size: Option<Dim>) -> Fact {
    let size = size.unwrap_or_else(|| c.dims().fresh());
    tensor(c.element(0), queries.map(|[batch, heads, steps, _]| vec![batch, steps, c.dims().mul(heads, size)]))
}

/// Keys or values may be packed with each other, or with the queries.
fn multi_head_attention(c: &Context) -> Result<Vec<Fact>> {
    let number = number_of_heads(c, "num_heads")?;
    let packed = if c.input(1).is_some() { 1 } else { 0 };
    let now = |i: usize| heads(c, if c.input(i).is_some() { i } else { packed }, number);
    let (queries, keys, values) = (heads(c, 0, number), now(1), now(2));
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
fn projected_attention(c: &Context) -> Result<Vec<Fact>> {
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
fn group_query_attention(c: &Context) -> Result<Vec<Fact>> {
    let dims = c.dims();
    let (number, stored) = (number_of_heads(c, "num_heads")?, number_of_heads(c, "kv_num_heads")?);
    let packed = c.input(1).is_none();
    let all = if packed { dims.add(number, dims.mul(stored, 2.into())) } else { number };
    let queries = heads(c, 0, all).map(|[batch, _, steps, size]| [batch, number, steps, size]);
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
