//! Quantization. Integers carry no gradient; the scales that turn them into numbers do.

use super::Slot::*;
use super::{Call, Rule, Slot, rule};
use crate::expr::Expr;
use anyhow::{Result, ensure};

const ROUNDED: &[Slot] = &[Stop("the result is integers, rounded")];
const INTEGERS: &[Slot] = &[Stop("integers")];

/// The rows.
pub const RULES: &[Rule] = &[
    rule("QuantizeLinear", "none", ROUNDED),
    rule("QuantizeLinear", "none", ROUNDED).domain(MICROSOFT),
    DEQUANTIZE,
    DEQUANTIZE.domain(MICROSOFT),
    rule("DynamicQuantizeLinear", "dx = that of y_scale = (max(x, 0) - min(x, 0)) / 255", &[Through(dynamic)])
        .note("only y_scale passes a gradient"),
    rule("QLinearConv", "none", ROUNDED),
    rule("QLinearMatMul", "none", ROUNDED),
    rule("ConvInteger", "none", INTEGERS),
    rule("MatMulInteger", "none", INTEGERS),
];

const MICROSOFT: &str = "com.microsoft";
const DEQUANTIZE: Rule = rule(
    "DequantizeLinear",
    "dscale = Σ dy (x - zero_point), over each axis slice or block that shares a scale",
    &[Stop("integers"), Formula(scale), Stop("integers")],
)
.attributes("axis block_size output_dtype");

fn scale<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, scale, dy) = (c.x()?, c.input(1)?, c.dy()?);
    let x = x.cast_like(dy);
    let zero_point = c.opt(2).map(|z| z.cast_like(dy));
    let centred = |zero_point: Option<Expr<'g>>| zero_point.map_or(x, |z| x - z);
    let dscale = if scale.rank()? == 0 || (scale.rank()? == 1 && scale.known_dim(0) == Some(1)) {
        (dy * centred(zero_point)).sum_all()
    } else if scale.rank()? == 1 {
        let axis = c.axis(1)?;
        let rank = x.rank()?;
        let place: Vec<i64> = (0..rank).map(|a| if a == axis { -1 } else { 1 }).collect();
        let others: Vec<usize> = (0..rank).filter(|&a| a != axis).collect();
        (dy * centred(zero_point.map(|z| z.reshape_to(&place)))).sum_out(&others)
    } else {
        let (axis, size) = (c.axis(1)?, c.int("block_size", 0));
        ensure!(size > 0, "block_size = {size} is not positive, and the scale has {} dimensions", scale.rank()?);
        let block = x.builder().range(x.dim(axis)) / x.builder().int(size);
        (dy * centred(zero_point.map(|z| z.gather(block, axis)))).block_sums(axis, size, scale.dim(axis))
    };
    Ok(dscale.reshape_like(scale).cast_like(scale))
}

fn dynamic<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let x = c.x()?.flattened();
    let zero = x.like(0.0);
    let (high, low) = (x.maximum(&[0]).squeeze(&[0]), x.minimum(&[0]).squeeze(&[0]));
    Ok(vec![None, Some((high.max(zero) - low.min(zero)) / 255.0), None])
}
