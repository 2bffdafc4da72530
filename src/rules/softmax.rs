//! Softmax and its relatives. Half precision is computed in float32: a sum of dy may be more than it can hold.

use super::Slot::*;
use super::properties::Gives;
use super::{Call, Rule, rule};
use crate::expr::{Expr, View, normalize_axis};
use crate::rules::facts::same;
use anyhow::Result;

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Softmax", "dx = (dy - Σ dy y) y", &[Try(|c| Ok(softmax(c, &[c.axis(-1)?])))])
        .facts(same)
        .attributes("axis")
        .in_float32()
        .view(View::Along("axis", -1))
        .gives(Gives::AlongAxis)
        .since(13),
    rule("Softmax", "dx = (dy - Σ dy y) y", &[Try(|c| Ok(softmax(c, &flattened(c)?)))])
        .facts(same)
        .attributes("axis")
        .in_float32()
        .view(View::From("axis", 1))
        .gives(Gives::FromAxis)
        .until(12)
        .note("the sum is over all axes from the given one on"),
    rule("LogSoftmax", "dx = dy - eʸ Σ dy", &[Try(|c| Ok(log_softmax(c, &[c.axis(-1)?])))])
        .facts(same)
        .attributes("axis")
        .in_float32()
        .view(View::Along("axis", -1))
        .gives(Gives::AlongAxis)
        .since(13),
    rule("LogSoftmax", "dx = dy - eʸ Σ dy", &[Try(|c| Ok(log_softmax(c, &flattened(c)?)))])
        .facts(same)
        .attributes("axis")
        .in_float32()
        .view(View::From("axis", 1))
        .gives(Gives::FromAxis)
        .until(12)
        .note("the sum is over all axes from the given one on"),
    rule("BiasSoftmax", "of x + bias: dx = (dy - Σ dy y) y, dbias = Σ dx", &[Broadcast(biased), Broadcast(biased)])
        .attributes("axis is_inner_broadcast")
        .domain("com.microsoft")
        .in_float32()
        .note("the sum is over all axes from the given one on"),
    rule("Hardmax", "none", &[Stop("piecewise constant, as in TensorFlow")]).facts(same).attributes("axis"),
];

/// The axes that the operator flattens into one: from `axis` on, none where that is the rank.
fn flattened(c: &Call<'_>) -> Result<Vec<usize>> {
    let (rank, axis) = (c.x().rank()?, c.int("axis", 1));
    let first = if axis == rank as i64 { rank } else { normalize_axis(axis, rank)? };
    Ok((first..rank).collect())
}

fn softmax<'g>(c: &Call<'g>, axes: &[usize]) -> Expr<'g> {
    let (y, dy) = (finite(c), c.dy());
    (dy - (dy * y).sum(axes)) * y
}

fn biased<'g>(c: &Call<'g>) -> Expr<'g> {
    c.builder().attempt(|| Ok(softmax(c, &flattened(c)?)))
}

fn log_softmax<'g>(c: &Call<'g>, axes: &[usize]) -> Expr<'g> {
    let (y, dy) = (finite(c), c.dy());
    dy - y.exp() * dy.sum(axes)
}

/// y, and 0 where it is no number. A row of nothing but -inf, as masks make them, has a softmax of NaN: where the model
/// puts that aside, dy is zero there, and so is dx, and what is differentiated again.
fn finite<'g>(c: &Call<'g>) -> Expr<'g> {
    let y = c.y();
    if c.is_alternative() { y.is_nan().select(y.like(0.0), y) } else { y }
}
