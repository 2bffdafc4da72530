//! What attention adds to its scores for how far a key lies from a query: operators of ONNX Runtime.

use crate::expr::Expr;
use crate::graph::Fact;
use crate::graph::facts::{Known, at, tensor};
use crate::onnx::ElementType;
use crate::rules::Slot::*;
use crate::rules::{Call, Rule, rule};
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "RelativePositionBias",
        "dtable = dy, added up in the buckets of the distances",
        &[Through(bucketed), Stop("a size"), Stop("a size")],
    )
    .facts(bucketed_facts)
    .ranks(&[Some(2)])
    .attributes("is_bidirectional max_distance")
    .weights(&[0])
    .domain("com.microsoft"),
    rule(
        "GatedRelativePositionBias",
        "the gradients of (u (r eco_a - 1) + 2) rel_pos, with u and r the sigmoids of the sums of either half of (query + bias) weight + bias",
        &[
            Through(gated),
            Through(gated),
            Through(gated),
            Through(gated),
            Through(gated),
            Through(gated),
            Stop("places of tokens"),
        ],
    )
    .facts(gated_facts)
    .attributes("num_heads")
    .weights(&[1, 3, 4, 5])
    .domain("com.microsoft")
    .note("without token_offset"),
];

/// `[1, heads, queries, keys]`: the row of the table for each distance. Half of the buckets are for one distance each,
/// the others for distances that grow by the same factor up to max_distance; with both directions either has half of
/// the buckets.
fn bucketed<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (table, b) = (c.x(), c.builder());
    let buckets = table.number_along(0)?;
    let (both, furthest) = (c.flag("is_bidirectional", false), c.int("max_distance", 0));
    let buckets = if both { buckets / 2 } else { buckets };
    let exact = buckets / 2;
    ensure!(exact > 0 && furthest > exact, "max_distance = {furthest} with {buckets} buckets a direction");
    let places = |i: usize| b.range(c.input(i).cast(ElementType::Int64).reshape_to(&[]));
    let ahead = places(2).unsqueeze(&[0]) - places(1).unsqueeze(&[1]);
    let distance = if both { ahead.abs() } else { (-ahead).max(b.int(0)) };
    let times = distance.max(b.int(1)).cast(ElementType::Float) / exact as f64;
    let steps = times.log() * ((buckets - exact) as f64 / (furthest as f64 / exact as f64).ln());
    let far = (steps.max(steps.like(0.0)).floor().cast(ElementType::Int64) + exact).min(b.int(buckets - 1));
    let bucket = distance.less(b.int(exact)).select(distance, far);
    let bucket = if both { bucket + ahead.greater(b.int(0)).cast(ElementType::Int64) * buckets } else { bucket };
    Ok(vec![Some(table.gather(bucket, 0).transpose(&[2, 0, 1]).unsqueeze(&[0]))])
}

fn bucketed_facts(c: &Known) -> Result<Vec<Fact>> {
    let size = |i: usize| c.scalar(i).unwrap_or_else(|| c.dims().fresh());
    Ok(vec![tensor(c.element(0), Some(vec![1.into(), at(c, c.shape(0), 1), size(1), size(2)]))])
}

/// `[batch, heads, queries, keys]`
fn gated<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    ensure!(c.opt(6).is_none(), "token_offset has no gradient here");
    let (heads, gates) = (c.int("num_heads", 0), c.input(4));
    ensure!(heads > 0, "num_heads = {heads} is not positive");
    let query = (c.x() + c.input(1)).reshape_to(&[0, 0, heads, -1]).transpose(&[0, 2, 1, 3]);
    let sums = (query.matmul(c.input(3)) + gates).reshape_to(&[0, 0, 0, 2, -1]).sum_out(&[4]).sigmoid();
    let (u, r) = (sums.narrow(3, 0, 1), sums.narrow(3, 1, 2));
    Ok(vec![Some((u * (r * c.input(5) - 1.0) + 2.0) * c.input(2))])
}

fn gated_facts(c: &Known) -> Result<Vec<Fact>> {
    let places = c.shape(2);
    let batch = match (c.input(6), c.shape(0)) {
        (None, Some([batch, ..])) => *batch,
        _ => c.dims().fresh(),
    };
    Ok(vec![tensor(c.element(0), Some(vec![batch, at(c, places, 1), at(c, places, 2), at(c, places, 3)]))])
}
