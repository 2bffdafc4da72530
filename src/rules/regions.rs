//! Pools over regions that a tensor gives.

use super::Slot::*;
use super::properties::Counts::Along;
use super::properties::{Axis, Index, read};
use super::window::lowest;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use crate::graph::Dim;
use crate::graph::Fact;
use crate::graph::facts::{Known, tensor};
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};

/// The number of the image that each region is cut out of.
const IMAGES: &[Index] = &[read(2, Along(0, Axis::At(0)))];

/// The rows.
pub const RULES: &[Rule] = &[
    rule("MaxRoiPool", "dx = dy where x is the largest of its bin", &[Try(max_bins), Stop("coordinates")])
        .facts(max_roi_pool)
        .ranks(REGIONS)
        .attributes("pooled_shape spatial_scale")
        .note("equals share as in ReduceMax"),
    rule(
        "RoiAlign",
        "dx = Ayᵀ dy Ax, the bilinear weights of each bin",
        &[Try(|c| align(c, false)), Stop("coordinates and indices")],
    )
    .facts(roi_align)
    .held(&[1])
    .indices(IMAGES)
    .until(15)
    .ranks(REGIONS)
    .attributes("mode output_height output_width sampling_ratio spatial_scale")
    .note("where mode is max, equals share as in ReduceMax"),
    rule(
        "RoiAlign",
        "dx = Ayᵀ dy Ax, the bilinear weights of each bin",
        &[Try(|c| align(c, true)), Stop("coordinates and indices")],
    )
    .facts(roi_align)
    .held(&[1])
    .indices(IMAGES)
    .since(16)
    .ranks(REGIONS)
    .attributes("coordinate_transformation_mode mode output_height output_width sampling_ratio spatial_scale")
    .note("where mode is max, equals share as in ReduceMax"),
];

/// How many axes images, regions and the numbers of their images have.
const REGIONS: &[Option<usize>] = &[Some(4), Some(2), Some(1)];

/// A column of the regions, one number a region.
fn column(rois: Expr<'_>, i: i64) -> Expr<'_> {
    rois.narrow(1, i, i + 1).squeeze(&[1])
}

/// The gradient of x through a formula of it.
fn through<'g>(c: &Call<'g>, y: Expr<'g>) -> Result<Expr<'g>> {
    let x = c.x();
    let dx = c.differentiate(&[(y, c.dy())], &[x])?;
    Ok(dx.get(&x.id()).copied().unwrap_or_else(|| x.zeros_like()))
}

fn max_bins<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, rois, b) = (c.x(), c.input(1), c.builder());
    let scale = c.float("spatial_scale", 1.0);
    let pooled = c.ints("pooled_shape").context("attribute pooled_shape is missing")?;
    let &[rows, columns] = pooled.as_slice() else { bail!("pooled_shape = {pooled:?} is not two sizes") };
    ensure!(rows > 0 && columns > 0, "pooled_shape = {pooled:?} is not positive");
    let place = |i: i64| (column(rois, i) * scale + 0.5).floor();
    // Which elements of an axis each bin sees: [regions, bins, size].
    let seen = |first: Expr<'g>, last: Expr<'g>, bins: i64, size: Expr<'g>| {
        let length = (last - first + 1.0).max(first.like(1.0)) / bins as f64;
        let bin = b.range(b.int(bins)).cast_like(first).unsqueeze(&[0]);
        let (first, length) = (first.unsqueeze(&[1]), length.unsqueeze(&[1]));
        let start = ((bin * length).floor() + first).unsqueeze(&[2]);
        let end = (((bin + 1.0) * length).ceil() + first).unsqueeze(&[2]);
        let at = b.range(size).cast_like(first).reshape_to(&[1, 1, -1]);
        at.less(start).or(at.greater_or_equal(end)).logical_not()
    };
    let down = seen(place(2), place(4), rows, x.dim(2));
    let across = seen(place(1), place(3), columns, x.dim(3));
    let images = x.gather(column(rois, 0).cast(ElementType::Int64), 0);
    let lowest = x.like(lowest(x)?);
    let strips = across.unsqueeze(&[1, 2]).select(images.unsqueeze(&[3]), lowest).maximum(&[4]).squeeze(&[4]);
    let bins = down.unsqueeze(&[1, 4]).select(strips.unsqueeze(&[2]), lowest).maximum(&[3]).squeeze(&[3]);
    let empty = bins.equal(lowest);
    through(c, empty.select(x.like(0.0), bins))
}

/// Where the samples of each bin lie along one axis.
struct Samples<'g> {
    /// Places within the image: `[regions, bins, samples]`.
    at: Expr<'g>,
    /// Whether the sample is one, and lies in the image.
    valid: Expr<'g>,
    /// Whether the sample is one: there are as many as the region with the most needs.
    counted: Expr<'g>,
    /// How many each region has: `[regions, 1, 1]`.
    count: Expr<'g>,
}

fn samples<'g>(c: &Call<'g>, half: bool, rois: (Expr<'g>, Expr<'g>), bins: i64, size: Expr<'g>) -> Result<Samples<'g>> {
    let b = c.builder();
    let (scale, ratio) = (c.float("spatial_scale", 1.0), c.int("sampling_ratio", 0));
    ensure!(bins > 0 && ratio >= 0, "output sizes and sampling_ratio are not negative");
    let shift = if half { 0.5 } else { 0.0 };
    let (start, end) = (rois.0 * scale - shift, rois.1 * scale - shift);
    let length = if half { end - start } else { (end - start).max(start.like(1.0)) };
    let bin = length / bins as f64;
    let (count, most) = match ratio {
        0 => {
            let count = bin.ceil().max(bin.like(1.0));
            (count, count.maximum(&[0]).cast(ElementType::Int64).reshape_to(&[]))
        }
        _ => (bin.full_like(ratio as f64), b.int(ratio)),
    };
    let (start, bin, count) = (start.unsqueeze(&[1, 2]), bin.unsqueeze(&[1, 2]), count.unsqueeze(&[1, 2]));
    let number = b.range(most).cast_like(start).reshape_to(&[1, 1, -1]);
    let which = b.range(b.int(bins)).cast_like(start).reshape_to(&[1, -1, 1]);
    let at = start + which * bin + (number + 0.5) * bin / count;
    let n = size.cast_like(start);
    let counted = number.less(count);
    let outside = at.less(n.like(-1.0)).or(at.greater(n));
    let valid = outside.logical_not().and(counted);
    Ok(Samples { at: at.max(n.like(0.0)).min(n - 1.0), valid, counted, count })
}

fn align<'g>(c: &Call<'g>, has_mode: bool) -> Result<Expr<'g>> {
    let (x, rois, batch, dy, b) = (c.x(), c.input(1), c.input(2), c.dy(), c.builder());
    let coordinates = c.string("coordinate_transformation_mode", "half_pixel");
    let half = has_mode && coordinates == "half_pixel";
    let (rows, columns) = (c.int("output_height", 1), c.int("output_width", 1));
    let down = samples(c, half, (column(rois, 1), column(rois, 3)), rows, x.dim(2))?;
    let across = samples(c, half, (column(rois, 0), column(rois, 2)), columns, x.dim(3))?;
    // How near each sample is to each element: 1 at the element, 0 at its neighbours.
    let places = |size: Expr<'g>| b.range(size).cast_like(rois).reshape_to(&[1, 1, 1, -1]);
    if c.string("mode", "avg") == "avg" {
        let weights = |s: &Samples<'g>, size: Expr<'g>| {
            let near = (1.0 - (s.at.unsqueeze(&[3]) - places(size)).abs()).relu().where_(s.valid.unsqueeze(&[3]));
            (near.sum_out(&[2]) / s.count).cast_like(x).unsqueeze(&[1])
        };
        let (down, across) = (weights(&down, x.dim(2)), weights(&across, x.dim(3)));
        let regions = down.transposed().matmul(dy).matmul(across);
        return Ok(x.ungather(batch, regions, 0));
    }
    // The largest of the four corners' weighted elements, of all samples.
    let corners = |s: &Samples<'g>, size: Expr<'g>| {
        let floor = s.at.floor();
        let t = s.at - floor;
        let last = size.cast_like(rois) - 1.0;
        [(floor, 1.0 - t), ((floor + 1.0).min(last), t)].map(|(place, weight)| {
            let hit = place.unsqueeze(&[3]).equal(places(size));
            let weight = weight.where_(s.valid).unsqueeze(&[3]);
            let matrix = weight.where_(hit).cast_like(x);
            matrix.reshape(Expr::concat(&[rois.dims([0]), b.ints(&[1, -1]), size.reshape_to(&[1])], 0))
        })
    };
    let images = x.gather(batch, 0);
    let (ys, xs) = (corners(&down, x.dim(2)), corners(&across, x.dim(3)));
    let value = |y: Expr<'g>, x: Expr<'g>| y.matmul(images).matmul(x.transposed());
    let best = value(ys[0], xs[0]).max(value(ys[0], xs[1])).max(value(ys[1], xs[0])).max(value(ys[1], xs[1]));
    let split =
        [rois.dims([0]), x.dims([1]), b.ints(&[rows]), down.at.dims([2]), b.ints(&[columns]), across.at.dims([2])];
    let counted = down.counted.unsqueeze(&[1, 4, 5]).and(across.counted.unsqueeze(&[1, 2, 3]));
    let best = counted.select(best.reshape(c.builder().joined(&split)), x.like(lowest(x)?));
    through(c, best.maximum(&[3, 5]).squeeze(&[3, 5]))
}

fn roi_align(c: &Known) -> Result<Vec<Fact>> {
    let pooled = [c.int("output_height", 1), c.int("output_width", 1)];
    Ok(vec![tensor(c.element(0), Some(pooled_rois(c, &pooled)))])
}

fn max_roi_pool(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![tensor(c.element(0), c.ints("pooled_shape").map(|pooled| pooled_rois(c, pooled)))])
}

fn pooled_rois(c: &Known, pooled: &[i64]) -> Vec<Dim> {
    let of = |i: usize, axis: usize| c.shape(i).and_then(|s| s.get(axis).copied()).unwrap_or_else(|| c.dims().fresh());
    [of(1, 0), of(0, 1)].into_iter().chain(pooled.iter().map(|&n| n.into())).collect()
}
