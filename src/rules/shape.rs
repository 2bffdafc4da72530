//! Operators that move elements and leave their values.

pub mod facts;
mod padding;
pub mod parts;

use super::Slot::*;
use super::properties::Axis::*;
use super::properties::Counts::*;
use super::properties::Moves::*;
use super::properties::read;
use super::{Call, Cotangents, Rule, rule};
use crate::expr::{Expr, View, normalize_axis};
use crate::onnx::ElementType;
use crate::rules::facts::same;
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Reshape", "dx = dy in the shape of x", &[Unary(|x, _y, dy| dy.reshape_like(x)), Stop("shape")])
        .facts(facts::reshape)
        .moves(InOrder)
        .sizes(1)
        .attributes("allowzero"),
    rule("Flatten", "dx = dy in the shape of x", &[Unary(|x, _y, dy| dy.reshape_like(x))])
        .facts(facts::flatten)
        .moves(InOrder)
        .attributes("axis"),
    rule("Squeeze", "dx = dy in the shape of x", &[Try(squeeze), Stop("axes")])
        .facts(facts::squeeze)
        .moves(InOrder)
        .squeezes()
        .indices(&[read(1, AxisOf(0))])
        .attributes("axes"),
    rule("Unsqueeze", "dx = dy in the shape of x", &[Try(unsqueeze), Stop("axes")])
        .facts(facts::unsqueeze)
        .moves(InOrder)
        .indices(&[read(1, AxisOf(0))])
        .attributes("axes"),
    rule("Transpose", "dx = dy, its axes put back", &[Try(transpose)])
        .facts(facts::transpose)
        .moves(Transposed)
        .attributes("perm"),
    rule("Concat", "dxᵢ = the part of dy in the place of xᵢ", &[Together(concat)])
        .facts(parts::concat)
        .equal(parts::equal_in_concat)
        .moves(Joined(0))
        .view(View::Joined("axis", 1))
        .attributes("axis"),
    rule("Split", "dx = dy₀, dy₁, ... joined", &[Try(split), Stop("sizes")])
        .facts(parts::split)
        .moves(Parts)
        .view(View::Along("axis", 0))
        .linear(1)
        .attributes("axis split num_outputs"),
    rule("Slice", "dx = dy in its place, zeros around", &[Try(slice), Stop("bounds")])
        .facts(parts::slice)
        .moves(Parts)
        .indices(&[read(3, AxisOf(0))])
        .view(View::Part)
        .attributes("axes starts ends"),
    rule("Expand", "dx = dy, summed over the copies", &[Broadcast(|c| c.dy()), Stop("shape")])
        .facts(facts::expand)
        .moves(Parts),
    PAD,
    PAD.domain(MICROSOFT),
    rule("Tile", "dx = dy, summed over the copies", &[Try(tile), Stop("repeats")]).facts(facts::tile).moves(Parts),
    rule("DepthToSpace", "dx = dy, its squares as channels", &[Try(depth_to_space)])
        .facts(|c| padding::blocks(c, true))
        .moves(Parts)
        .attributes("blocksize mode"),
    rule("SpaceToDepth", "dx = dy, its channels as squares", &[Try(space_to_depth)])
        .facts(|c| padding::blocks(c, false))
        .moves(Parts)
        .attributes("blocksize mode"),
    TRILU,
    TRILU.domain(MICROSOFT),
    rule("Compress", "dx = dy in the chosen places", &[Try(compress), Stop("truth values")])
        .facts(parts::compress)
        .moves(Parts)
        .view(View::Along("axis", 0))
        .attributes("axis"),
    rule("ReverseSequence", "dx = dy, put back", &[Formula(reverse_sequence), Stop("lengths")])
        .facts(same)
        .moves(Parts)
        .indices(&[read(1, Length(0, Named("time_axis", 0)))])
        .attributes("batch_axis time_axis"),
    rule("CenterCropPad", "dx = dy, cropped where x was padded", &[Formula(center_crop_pad), Stop("shape")])
        .facts(padding::center_crop_pad)
        .moves(Parts)
        .attributes("axes"),
    rule("Unique", "dx = dy in the place of the first of its kind", &[Try(unique)])
        .facts(parts::unique)
        .view(View::Along("axis", 0))
        .attributes("axis sorted"),
];

const MICROSOFT: &str = "com.microsoft";
const PAD: Rule = rule(
    "Pad",
    "dx = the part of dy in the place of x; dvalue = Σ dy around it",
    &[Try(pad), Stop("amounts"), Try(pad_value), Stop("axes")],
)
.facts(padding::pad)
.moves(Parts)
.added(2)
.indices(&[read(3, AxisOf(0))])
.attributes("mode pads paddings value");
const TRILU: Rule = rule("Trilu", "dx = the triangle of dy", &[Formula(trilu), Stop("a diagonal")])
    .facts(same)
    .moves(Parts)
    .attributes("upper");

fn squeeze<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    match c.list_at(1, "axes").map(Expr::ints) {
        Some(Some(axes)) if x.fact().rank().is_some() => {
            let axes: Result<Vec<usize>> = axes.iter().map(|&a| x.axis(a)).collect();
            Ok(dy.unsqueeze(&sorted(axes?)))
        }
        _ => Ok(dy.reshape_like(x)),
    }
}

fn unsqueeze<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy) = (c.x(), c.y(), c.dy());
    match c.list_at(1, "axes").map(Expr::ints) {
        Some(Some(axes)) if y.fact().rank().is_some() => {
            let axes: Result<Vec<usize>> = axes.iter().map(|&a| y.axis(a)).collect();
            Ok(dy.squeeze(&sorted(axes?)))
        }
        _ => Ok(dy.reshape_like(x)),
    }
}

fn sorted(mut axes: Vec<usize>) -> Vec<usize> {
    axes.sort_unstable();
    axes.dedup();
    axes
}

fn transpose<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let Some(perm) = c.ints("perm") else {
        return Ok(c.dy().axes_reversed());
    };
    let mut inverse = vec![usize::MAX; perm.len()];
    for (to, &from) in perm.iter().enumerate() {
        let from = normalize_axis(from, perm.len())?;
        inverse[from] = to;
    }
    ensure!(!inverse.contains(&usize::MAX), "perm names an axis twice");
    Ok(c.dy().transpose(&inverse))
}

fn concat<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (parts, axis, dy) = (c.inputs_from(0), c.axis(1)?, c.dy());
    let sizes: Option<Vec<i64>> = parts.iter().map(|p| p.known_dim(axis)).collect();
    let wanted: Vec<usize> = (0..parts.len()).filter(|&i| c.wants_input(i)).collect();
    let dxs = match sizes {
        Some(sizes) if wanted.len() > 1 => {
            let all = dy.split(axis, &sizes);
            wanted.iter().map(|&i| all[i]).collect()
        }
        _ => dy.parts(axis, &parts, &wanted),
    };
    let found = c.cotangents();
    Ok(wanted.into_iter().zip(dxs).fold(found, |found, (i, dx)| found.input(i, || dx)))
}

fn split<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, axis, n) = (c.x(), c.axis(0)?, c.output_count());
    let size = |i: usize| match (c.output(i), c.list_at(1, "split")) {
        (Some(y), _) => y.dims([axis]),
        (None, Some(sizes)) => sizes.gather(c.builder().ints(&[i as i64]), 0),
        (None, None) => {
            // Equal parts, the last one smaller where they do not come out even.
            let part = (x.dims([axis]) + (n as i64 - 1)) / n as i64;
            if i + 1 < n { part } else { x.dims([axis]) - part * (n as i64 - 1) }
        }
    };
    // What no gradient arrives at is zeros: on either end padding, in between a tensor.
    let first = (0..n).find(|&i| c.has_dy(i)).unwrap_or(0);
    let last = (0..n).rfind(|&i| c.has_dy(i)).unwrap_or(first);
    let element = c.dy_of(first).element()?;
    let zeros = |i: usize| Ok(c.builder().full(x.shape_with(axis, size(i)), 0.0, element));
    let parts: Result<Vec<Expr<'g>>> = (first..=last).map(|i| c.opt_dy(i).map_or_else(|| zeros(i), Ok)).collect();
    let none = c.builder().ints(&[0]);
    let before = (0..first).fold(none, |sum, i| sum + size(i));
    let after = (last + 1..n).fold(none, |sum, i| sum + size(i));
    Ok(Expr::concat(&parts?, axis).pad_axis(axis, before, after))
}

fn slice<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy, b) = (c.x(), c.dy(), c.builder());
    let rank = x.rank()?;
    let Some(starts) = c.list_at(1, "starts") else { return Ok(dy) };
    let axes = c.list_at(3, "axes");
    let steps = c.opt(4);
    let count = parts::sliced_axes(starts.known_dim(0).or_else(|| axes?.known_dim(0)), rank)?;
    let axes = match (axes, count) {
        (Some(axes), _) => axes,
        (None, Some(n)) => b.ints(&(0..n).collect::<Vec<i64>>()),
        (None, None) => b.range(starts.size()),
    };
    let starts = starts.over_axes(axes, rank, 0);
    let steps = steps.map_or(b.ints(&vec![1; rank]), |s| s.over_axes(axes, rank, 1));
    Ok(x.unslice(starts, steps, dy))
}

/// The amounts of all begins, then of all ends.
fn pads<'g>(c: &Call<'g>, rank: usize) -> (Expr<'g>, Expr<'g>) {
    let b = c.builder();
    let zeros = || b.ints(&vec![0; 2 * rank]);
    let amounts = c.list_at(1, "pads").or_else(|| c.list_at(1, "paddings")).unwrap_or_else(zeros);
    // ONNX Runtime's own operator takes them as a row, too.
    let amounts = if amounts.fact().rank() == Some(2) { amounts.flattened() } else { amounts };
    let (begins, ends) = amounts.halves();
    match c.opt(3) {
        Some(axes) => (begins.over_axes(axes, rank, 0), ends.over_axes(axes, rank, 0)),
        None => (begins, ends),
    }
}

fn pad<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    let (begins, ends) = pads(c, x.rank()?);
    let mode = c.string("mode", "constant");
    c.ensure_known("mode", &mode, &["constant", "reflect", "edge", "wrap"]);
    Ok(match &*mode {
        "constant" => dy.crop(begins, ends),
        mode => x.unpad(begins, ends, mode, dy),
    })
}

fn pad_value<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, value, dy) = (c.x(), c.input(2), c.dy());
    let (begins, ends) = pads(c, x.rank()?);
    if c.string("mode", "constant") != "constant" {
        return Ok(value.zeros_like());
    }
    let b = c.builder();
    let zero = b.ints(&[0]);
    let inside = dy.zeros_shaped(x).crop((-begins).max(zero), (-ends).max(zero));
    let amounts = Expr::concat(&[begins.max(zero), ends.max(zero)], 0);
    let around = inside.pad(amounts, Some(dy.like(1.0)));
    Ok((dy * around).sum_all().reshape_like(value))
}

fn tile<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy, repeats) = (c.x(), c.dy(), c.input(1));
    // Each axis as copies and places, of which the copies are summed.
    if x.fact().rank().is_none() {
        let b = c.builder();
        let column = |list: Expr<'g>| list.reshape_to(&[-1, 1]);
        let split = Expr::concat(&[column(repeats), column(x.shape())], 1).flattened();
        return Ok(dy.reshape(split).sum_over(b.range(repeats.size()) * 2, true).reshape_like(x));
    }
    let (mut split, mut copies) = (Vec::new(), Vec::new());
    for axis in 0..x.rank()? {
        let count = repeats.item(axis);
        if count.ints().is_none_or(|n| n != [1]) {
            copies.push(split.len());
            split.push(count);
        }
        split.push(x.dims([axis]));
    }
    if copies.is_empty() { Ok(dy) } else { Ok(dy.reshape(c.builder().joined(&split)).sum_out(&copies)) }
}

fn blocks(c: &Call<'_>) -> Result<(i64, String)> {
    let (block, mode) = (c.int("blocksize", 1), c.string("mode", "DCR"));
    c.ensure_known("mode", &mode, &["DCR", "CRD"]);
    ensure!(block > 0, "blocksize is {block}");
    Ok((block, mode))
}

fn depth_to_space<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (block, mode) = blocks(c)?;
    Ok(c.dy().space_to_depth(block, &mode))
}

fn space_to_depth<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (block, mode) = blocks(c)?;
    Ok(c.dy().depth_to_space(block, &mode))
}

fn trilu<'g>(c: &Call<'g>) -> Expr<'g> {
    c.dy().trilu(c.opt(1).unwrap_or(c.builder().int(0)), c.flag("upper", true))
}

fn compress<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy, places) = (c.x(), c.dy(), c.input(1).non_zero().flattened());
    match c.opt_int("axis") {
        Some(axis) => {
            let axis = x.axis(axis)?;
            Ok(dy.to_places(places, axis, x.dims([axis]), false))
        }
        None => Ok(dy.to_places(places, 0, x.size().reshape_to(&[1]), false).reshape_like(x)),
    }
}

fn reverse_sequence<'g>(c: &Call<'g>) -> Expr<'g> {
    c.dy().reverse_sequence(c.input(1), c.int("batch_axis", 1), c.int("time_axis", 0))
}

fn center_crop_pad<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, dy, zero) = (c.x(), c.dy(), c.builder().ints(&[0]));
    let added = dy.shape() - x.shape();
    // Half of what is added or cut off comes before, rounded towards nothing.
    let before = added.max(zero) / 2 - (-added).max(zero) / 2;
    dy.crop(before, added - before)
}

fn unique<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    let places = match c.output(1) {
        Some(places) => places,
        None => c.demand_output(1, ElementType::Int64),
    };
    match c.opt_int("axis") {
        Some(axis) => {
            let axis = x.axis(axis)?;
            Ok(dy.to_places(places, axis, x.dims([axis]), false))
        }
        None => Ok(dy.to_places(places, 0, x.size().reshape_to(&[1]), false).reshape_like(x)),
    }
}
