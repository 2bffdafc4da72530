//! Operators of ONNX Runtime that are neither attention nor the fusion of one operator of the standard with what follows it.

use super::Slot::*;
use super::elementwise::gelu_slope;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use anyhow::{Result, bail};
use std::f64::consts::FRAC_1_SQRT_2;

const MICROSOFT: &str = "com.microsoft";

/// The rows.
pub const RULES: &[Rule] = &[
    rule("BiasAdd", "dx = dy, dbias = Σ dy, dskip = dy", &[EachBroadcast(|c, _| c.dy())]).domain(MICROSOFT),
    rule(
        "BiasSplitGelu",
        "of the halves l and r of x + bias: dl = dy gelu(r), dr = dy l gelu'(r); dbias = Σ dx",
        &[Broadcast(split_gelu), Broadcast(split_gelu)],
    )
    .domain(MICROSOFT),
    rule(
        "CDist",
        "sqeuclidean: dA = 2 (A Σ dC - dC B), dB = 2 (B Σ dCᵀ - dCᵀ A); euclidean: with dC / C in place of 2 dC",
        &[Formula(|c| distance(c, 0)), Formula(|c| distance(c, 1))],
    )
    .attributes("metric")
    .domain(MICROSOFT)
    .note("0 where a distance is 0"),
    rule("ExpandDims", "dx = dy in the shape of x", &[Unary(|x, _y, dy| dy.reshape_like(x)), Stop("an axis")])
        .domain(MICROSOFT),
    rule("Inverse", "dX = -Yᵀ dY Yᵀ", &[Unary(|_x, y, dy| -y.transposed().matmul(dy).matmul(y.transposed()))])
        .domain(MICROSOFT),
];

fn split_gelu<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy, b) = (c.x()?, c.dy()?, c.builder());
    let last = x.rank()?.saturating_sub(1);
    let halves = Expr::concat(&[x.dims(0..last), b.ints(&[2, -1])], 0);
    let halves = (x + c.input(1)?).reshape(halves);
    let (l, r) = (halves.narrow(last, 0, 1).squeeze(&[last]), halves.narrow(last, 1, 2).squeeze(&[last]));
    let gelu = r * (0.5 * (r * FRAC_1_SQRT_2).erf() + 0.5);
    let parts = [dy * gelu, dy * l * gelu_slope(r)].map(|d| d.unsqueeze(&[last]));
    Ok(Expr::concat(&parts, last).reshape_like(x))
}

/// Of the rows whose distances from each other are taken: those of A, or of B.
fn distance<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let (own, other, y, dy) = (c.input(i)?, c.input(1 - i)?, c.y()?, c.dy()?);
    let pull = match c.string("metric", "sqeuclidean").as_str() {
        "sqeuclidean" => 2.0 * dy,
        "euclidean" => {
            let apart = y.above(0.0);
            (dy / apart.select(y, y.like(1.0))).where_(apart)
        }
        metric => bail!("metric = '{metric}' has no gradient here: sqeuclidean and euclidean have"),
    };
    let pull = if i == 0 { pull } else { pull.transposed() };
    Ok(own * pull.sum(&[1]) - pull.matmul(other))
}
