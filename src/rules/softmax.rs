//! Softmax and its relatives.

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::{Expr, normalize_axis};
use anyhow::Result;

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Softmax", "dx = (dy - Σ dy y) y", &[Formula(|c| softmax(c, &[c.axis(-1)?]))]).attributes("axis").since(13),
    rule("Softmax", "dx = (dy - Σ dy y) y", &[Formula(|c| softmax(c, &flattened(c)?))])
        .attributes("axis")
        .until(12)
        .note("the sum is over all axes from the given one on"),
    rule("LogSoftmax", "dx = dy - eʸ Σ dy", &[Formula(|c| log_softmax(c, &[c.axis(-1)?]))])
        .attributes("axis")
        .since(13),
    rule("LogSoftmax", "dx = dy - eʸ Σ dy", &[Formula(|c| log_softmax(c, &flattened(c)?))])
        .attributes("axis")
        .until(12)
        .note("the sum is over all axes from the given one on"),
    rule("Hardmax", "none", &[Stop("piecewise constant, as in TensorFlow")]).attributes("axis"),
];

/// The axes that the operator flattens into one: from `axis` on, none where that is the rank.
fn flattened(c: &Call<'_>) -> Result<Vec<usize>> {
    let (rank, axis) = (c.x()?.rank()?, c.int("axis", 1));
    let first = if axis == rank as i64 { rank } else { normalize_axis(axis, rank)? };
    Ok((first..rank).collect())
}

fn softmax<'g>(c: &Call<'g>, axes: &[usize]) -> Result<Expr<'g>> {
    let (y, dy) = (c.y()?, c.dy()?);
    let sum = (dy * y).sum(axes);
    Ok(guarded(c, sum, (dy - sum) * y))
}

fn log_softmax<'g>(c: &Call<'g>, axes: &[usize]) -> Result<Expr<'g>> {
    let (y, dy) = (c.y()?, c.dy()?);
    Ok(guarded(c, y, dy - y.exp() * dy.sum(axes)))
}

/// The gradient where `y` is a number. A row of nothing but -inf, as masks make them, has a softmax of NaN: where the model
/// puts that aside, its zero gradient stays zero.
fn guarded<'g>(c: &Call<'g>, y: Expr<'g>, dx: Expr<'g>) -> Expr<'g> {
    match (c.is_alternative(), c.opt_dy(0)) {
        (true, Some(dy)) => y.is_nan().select(dy, dx),
        _ => dx,
    }
}
