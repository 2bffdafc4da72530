//! The operators of onnxruntime's own domain that exported and optimized models use most.

use super::context::{Context, Row, tensor};
use super::elementwise::same;
use super::linear::{gemm, product};
use super::normalize::layer;
use super::quantize::{dequantize, quantize};
use super::window::convolution;
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

pub const ROWS: &[Row] = &[
    ("BiasAdd", same),
    ("BiasGelu", same),
    ("BiasSplitGelu", |c| Ok(vec![tensor(c.element(0), None)])),
    ("DequantizeLinear", dequantize),
    ("FastGelu", same),
    ("FusedConv", |c| convolution(c, 0, 1, c.element(0).or(c.element(1)))),
    ("FusedGemm", gemm),
    ("FusedMatMul", fused_matmul),
    ("Gelu", same),
    ("GroupNorm", same),
    ("LayerNormalization", layer),
    ("MatMulNBits", matmul_n_bits),
    ("QuantizeLinear", quantize),
    ("QuickGelu", same),
    ("RotaryEmbedding", same),
    ("SimplifiedLayerNormalization", layer),
    ("SkipLayerNormalization", skip_layer),
    ("SkipSimplifiedLayerNormalization", skip_layer),
];

/// The matrices may be transposed first; transposed batches are left unknown.
fn fused_matmul(c: &Context) -> Result<Vec<Fact>> {
    let element = c.element(0).or(c.element(1));
    let transposed = |i: usize, flag: &str| {
        c.shape(i).map(|shape| {
            let mut shape = shape.to_vec();
            if let (true, [.., a, b]) = (c.flag(flag), shape.as_mut_slice()) {
                std::mem::swap(a, b);
            }
            shape
        })
    };
    let shape = match (transposed(0, "transA"), transposed(1, "transB")) {
        (Some(a), Some(b)) if !c.flag("transBatchA") && !c.flag("transBatchB") => Some(product(c, &a, &b)?),
        _ => None,
    };
    Ok(vec![tensor(element, shape)])
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
