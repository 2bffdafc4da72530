//! Operators of ONNX Runtime that are neither attention nor the fusion of one operator of the standard with what
//! follows it.

use super::Slot::*;
use super::elementwise::{gelu_slope, gelu_tanh};
use super::properties::{Apart, Moves};
use super::{Call, Rule, rule};
use crate::expr::Expr;
use crate::graph::facts::{Known, at, axis, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use crate::rules::facts::same;
use anyhow::{Result, bail, ensure};
use std::f64::consts::FRAC_1_SQRT_2;

const MICROSOFT: &str = "com.microsoft";

/// The rows.
pub const RULES: &[Rule] = &[
    rule("BiasAdd", "dx = dy, dbias = Σ dy, dskip = dy", &[EachBroadcast(|c, _| c.dy())])
        .facts(same)
        .domain(MICROSOFT)
        .weights(&[1]),
    rule(
        "BiasSplitGelu",
        "of the halves l and r of x + bias: dl = dy gelu(r), dr = dy l gelu'(r); dbias = Σ dx",
        &[Broadcast(split_gelu), Broadcast(split_gelu)],
    )
    .facts(bias_split_gelu_facts)
    .weights(&[1])
    .domain(MICROSOFT),
    rule(
        "CDist",
        "sqeuclidean: dA = 2 (A Σ dC - dC B), dB = 2 (B Σ dCᵀ - dCᵀ A); euclidean: with dC / C in place of 2 dC",
        &[Try(|c| distance(c, 0)), Try(|c| distance(c, 1))],
    )
    .facts(distances_facts)
    .attributes("metric")
    .domain(MICROSOFT)
    .note("0 where a distance is 0"),
    rule("ExpandDims", "dx = dy in the shape of x", &[Unary(|x, _y, dy| dy.reshape_like(x)), Stop("an axis")])
        .facts(expand_dims_facts)
        .moves(Moves::InOrder)
        .domain(MICROSOFT),
    rule("Inverse", "dX = -Yᵀ dY Yᵀ", &[Unary(|_x, y, dy| -y.transposed().matmul(dy).matmul(y.transposed()))])
        .domain(MICROSOFT)
        .apart(Apart::Nowhere),
    rule(
        "MoE",
        "the gradients of Σ p (act(x W₁ᵀ + b₁) W₂ᵀ + b₂) over the experts with the k largest p = softmax(router)",
        &[Through(mixture)],
    )
    .facts(same)
    .weights(&[2, 3, 4, 5, 6, 7])
    .layer()
    .attributes(
        "activation_alpha activation_beta activation_type k normalize_routing_weights swiglu_fusion swiglu_limit \
         swiglu_limit_after_activation use_sparse_mixer",
    )
    .domain(MICROSOFT)
    .note("all experts are computed for all rows; those that are not chosen count nothing"),
];

fn split_gelu<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, dy, b) = (c.x(), c.dy(), c.builder());
    b.attempt(|| {
        let last = x.rank()?.saturating_sub(1);
        let shape = Expr::concat(&[x.dims(0..last), b.ints(&[2, -1])], 0);
        let halves = (x + c.input(1)).reshape(shape);
        let [l, r] = [0, 1].map(|half| halves.narrow(last, half, half + 1).squeeze(&[last]));
        let gelu = r * (0.5 * (r * FRAC_1_SQRT_2).erf() + 0.5);
        let parts = [dy * gelu, dy * l * gelu_slope(r)].map(|d| d.unsqueeze(&[last]));
        Ok(Expr::concat(&parts, last).reshape_like(x))
    })
}

/// The gradient of A (`i` = 0) or of B (`i` = 1), whose rows' distances from each other are the output.
fn distance<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let (own, other, y, dy) = (c.input(i), c.input(1 - i), c.y(), c.dy());
    let pull = match c.string("metric", "sqeuclidean").as_str() {
        "sqeuclidean" => 2.0 * dy,
        "euclidean" => {
            let apart = y.above(0.0);
            (dy / y.or_one(apart)).where_(apart)
        }
        metric => bail!("metric = '{metric}' has no gradient here: sqeuclidean and euclidean have"),
    };
    let pull = if i == 0 { pull } else { pull.transposed() };
    Ok(own * pull.sum(&[1]) - pull.matmul(other))
}

fn mixture<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let b = c.builder();
    for name in ["swiglu_limit_after_activation", "use_sparse_mixer"] {
        ensure!(!c.flag(name, false), "{name} has no gradient here");
    }
    let x = c.x().stacked_before(1);
    // The rows of each expert: [experts, rows, size].
    let layer = |x: Expr<'g>, weights: usize, bias: usize| -> Result<Expr<'g>> {
        let y = x.matmul(c.input(weights).transposed());
        Ok(c.opt(bias).map_or(y, |bias| y + bias.unsqueeze(&[1])))
    };
    let first = layer(x, 2, 3)?;
    let activation = c.string("activation_type", "relu");
    ensure!(c.opt(6).is_none(), "a third layer (fc3_experts_weights) has no gradient here");
    let inner = match activation.as_str() {
        "identity" => first,
        "relu" => first.relu(),
        "silu" => first * first.sigmoid(),
        "gelu" => gelu_tanh(first),
        "swiglu" => swiglu(c, first)?,
        _ => bail!("activation_type = '{activation}' has no gradient here"),
    };
    let second = layer(inner, 4, 5)?;
    let shares = c.input(1).softmax(1);
    // An expert is chosen where less than k come before it: those with larger shares, and of equal ones the first.
    let number = b.range(shares.dim(1));
    let (own, other) = (shares.unsqueeze(&[2]), shares.unsqueeze(&[1]));
    let earlier = number.unsqueeze(&[0]).less(number.unsqueeze(&[1]));
    let before = other.greater(own).or(other.equal(own).and(earlier));
    let chosen = before.cast(ElementType::Int64).sum_out(&[2]).less(b.int(c.int("k", 1)));
    let shares = shares.where_(chosen);
    let shares = if c.flag("normalize_routing_weights", false) { shares / shares.sum(&[1]) } else { shares };
    let y = (second * shares.transposed().unsqueeze(&[2])).sum_out(&[0]);
    Ok(vec![Some(y.reshape_like(c.x()))])
}

/// The gate, times its sigmoid, times the other half, which stands beside it or behind it.
fn swiglu<'g>(c: &Call<'g>, first: Expr<'g>) -> Result<Expr<'g>> {
    let (gate, linear) = match c.int("swiglu_fusion", 0) {
        1 => {
            let pairs = first.reshape_to(&[0, 0, -1, 2]);
            (pairs.narrow(3, 0, 1).squeeze(&[3]), pairs.narrow(3, 1, 2).squeeze(&[3]))
        }
        2 => {
            let halves = first.reshape_to(&[0, 0, 2, -1]);
            (halves.narrow(2, 0, 1).squeeze(&[2]), halves.narrow(2, 1, 2).squeeze(&[2]))
        }
        other => bail!("swiglu_fusion = {other} has no gradient here: 1 and 2 have"),
    };
    let (gate, linear) = match c.opt_float("swiglu_limit") {
        Some(limit) => (gate.min(gate.like(limit)), linear.clamp(-limit, limit)),
        None => (gate, linear),
    };
    let (alpha, beta) = (c.float("activation_alpha", 1.0), c.float("activation_beta", 0.0));
    Ok(gate * (alpha * gate).sigmoid() * (linear + beta))
}

/// Half as many channels.
fn bias_split_gelu_facts(c: &Known) -> Result<Vec<Fact>> {
    let half = |last: Dim| c.dims().floor_div(last, 2.into());
    let shape = c.shape(0).and_then(<[Dim]>::split_last).map(|(&last, outer)| [outer, &[half(last)]].concat());
    Ok(vec![tensor(c.element(0), shape)])
}

/// From each row of one matrix to each of the other.
fn distances_facts(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![tensor(c.element(0), Some(vec![at(c, c.shape(0), 0), at(c, c.shape(1), 0)]))])
}

/// An axis of size 1; it may be counted from the back of the result.
fn expand_dims_facts(c: &Known) -> Result<Vec<Fact>> {
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
