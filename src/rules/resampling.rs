//! Images at other sizes and places.

mod facts;

use super::Slot::*;
use super::window::Window;
use super::window::facts::convolution;
use super::{Call, Rule, rule};
use crate::expr::{Expr, Resized};
use crate::onnx::ElementType;
use crate::onnx::attribute::ints;
use anyhow::{Context, Result, bail, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Upsample", "dx = Mᵀ dy along each axis", &[Try(|c| resize(c, None, Some(1), None)), Stop("scales")]).facts(facts::upsample).held(&[1])
        .attributes("mode scales")
        .moves_integers(),
    rule("Resize", "dx = Mᵀ dy along each axis", &[Try(|c| resize(c, None, Some(1), None)), Stop("scales")]).facts(facts::resize).held(&[1])
        .until(10)
        .attributes("mode")
        .moves_integers(),
    rule("Resize", "dx = Mᵀ dy along each axis, M the operator applied to the unit matrix", &[
        Try(|c| resize(c, Some(1), Some(2), Some(3))),
        Stop("a region, scales, sizes"),
    ]).facts(facts::resize).held(&[1, 2])
    .since(11)
    .attributes(
        "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value keep_aspect_ratio_policy mode \
         nearest_mode",
    )
    .moves_integers(),
    rule("DeformConv", "through the product of the weights and the elements around each point", &[Through(deformed)]).facts(|c| convolution(c, 0, 1, c.element(0).or(c.element(1))))
        .attributes("dilations group kernel_shape offset_group pads strides")
        .weights(&[1, 3])
        .layer(),
    rule("AffineGrid", "dθ = dyᵀ base", &[Try(affine_grid), Stop("a shape")]).facts(facts::affine_grid).attributes("align_corners"),
    GRID_SAMPLE,
    GRID_SAMPLE.domain("com.microsoft"),
];

const GRID_SAMPLE: Rule =
    rule("GridSample", "through the weighted sum of the elements around each point", &[Through(grid_sample)])
        .facts(facts::grid_sample)
        .attributes("align_corners mode padding_mode");

/// What the node does along one axis.
enum Along<'g> {
    Scale(Expr<'g>),
    Size(Expr<'g>),
}

/// Each axis is resized on its own, by a matrix: what the operator makes of the unit matrix.
fn resize<'g>(c: &Call<'g>, roi: Option<usize>, scales: Option<usize>, sizes: Option<usize>) -> Result<Expr<'g>> {
    let resizing = Resizing::of(c, roi, scales, sizes)?;
    // The form with a region looks at the middles of elements by default, the older ones at their corners.
    let repeats = repeats(c, roi.is_some());
    if repeats && let Some(dx) = resizing.sum_of_squares(c.dy())? {
        return Ok(dx);
    }
    let mut dx = c.dy();
    for (i, &axis) in resizing.axes.iter().enumerate() {
        let along = resizing.along(i)?;
        if resizing.keeps(axis, &along) {
            continue;
        }
        dx = match resizing.factor(axis, &along).filter(|_| repeats) {
            Some(factor) => sum_of_runs(dx, resizing.x, axis, factor),
            None => transposed_product(resizing.matrix(i, &along, dx), dx, axis)?,
        };
    }
    Ok(dx)
}

/// What a node resizes, and how.
struct Resizing<'c, 'g> {
    c: &'c Call<'g>,
    x: Expr<'g>,
    y: Expr<'g>,
    axes: Vec<usize>,
    scales: Option<Expr<'g>>,
    sizes: Option<Expr<'g>>,
    /// The part of x that is looked at, where that is not all.
    part: Option<Expr<'g>>,
    /// The scale that all axes share, as sizes to and from.
    common: Option<(Expr<'g>, Expr<'g>)>,
}

impl<'c, 'g> Resizing<'c, 'g> {
    fn of(c: &'c Call<'g>, roi: Option<usize>, scales: Option<usize>, sizes: Option<usize>) -> Result<Self> {
        let (x, y, b) = (c.x(), c.y(), c.builder());
        let rank = x.rank()?;
        // Before they could be left out, they were empty.
        let listed = |i: Option<usize>| i.and_then(|i| c.opt(i)).filter(|e| e.known_dim(0) != Some(0));
        let given = c.floats("scales").map(|s| b.numbers(&s, &[s.len() as i64], ElementType::Float));
        let (scales, sizes, roi) = (listed(scales).or(given), listed(sizes), listed(roi));
        let axes = match c.ints("axes").filter(|a| !a.is_empty()) {
            Some(axes) => axes.into_iter().map(|a| x.axis(a)).collect::<Result<Vec<_>>>()?,
            None => (0..rank).collect(),
        };
        let policy = c.string("keep_aspect_ratio_policy", "stretch");
        let shared = sizes.filter(|_| policy != "stretch");
        let common = shared.map(|sizes| common_scale(x, &axes, sizes, &policy)).transpose()?;
        let part = roi.filter(|_| c.string("coordinate_transformation_mode", "") == "tf_crop_and_resize");
        Ok(Resizing { c, x, y, axes, scales, sizes, part, common })
    }

    /// One number of a list that has one for each axis.
    fn at(&self, list: Expr<'g>, i: usize) -> Expr<'g> {
        list.gather(self.c.builder().ints(&[i as i64]), 0)
    }

    fn along(&self, i: usize) -> Result<Along<'g>> {
        match (self.sizes, self.scales) {
            (Some(_), _) => Ok(Along::Size(self.y.dims([self.axes[i]]))),
            (None, Some(scales)) => {
                // A scale counts as a constant, even where an initializer holds the list.
                let known = scales.fact().floats().and_then(|numbers| numbers.get(i).copied());
                Ok(Along::Scale(match known {
                    Some(scale) => self.c.builder().numbers(&[scale], &[1], scales.element()?),
                    None => self.at(scales, i),
                }))
            }
            (None, None) => bail!("neither scales nor sizes are given"),
        }
    }

    /// The scale that all axes share, where it is known.
    fn common_numbers(&self) -> Option<(i64, i64)> {
        let (to, from) = self.common?;
        Some((*to.ints()?.first()?, *from.ints()?.first()?))
    }

    /// Whether an axis stays as it is.
    fn keeps(&self, axis: usize, along: &Along<'g>) -> bool {
        if self.part.is_some() {
            return false;
        }
        let size = |e: Expr<'g>| e.dims([axis]).fact().dims();
        match along {
            Along::Size(_) if self.common.is_some() => self.common_numbers().is_some_and(|(to, from)| to == from),
            Along::Size(_) => size(self.x).is_some_and(|from| size(self.y) == Some(from)),
            Along::Scale(scale) => scale.parameter() == Some(1.0),
        }
    }

    /// How often an axis repeats each element, where it may.
    fn factor(&self, axis: usize, along: &Along<'g>) -> Option<i64> {
        let whole = |(to, from): (i64, i64)| (from > 0 && to % from == 0).then(|| to / from);
        match along {
            Along::Scale(scale) => {
                scale.parameter().filter(|s| s.fract() == 0.0 && (1.0..1e6).contains(s)).map(|s| s as i64)
            }
            Along::Size(_) if self.common.is_some() => whole(self.common_numbers()?),
            Along::Size(_) => whole((self.y.known_dim(axis)?, self.x.known_dim(axis)?)),
        }
    }

    /// The sums of the neighbours that are copies of one element, where it is repeated along axes of an image alone:
    /// means of windows beside each other, which engines compute faster than sums along one axis after the other.
    fn sum_of_squares(&self, dy: Expr<'g>) -> Result<Option<Expr<'g>>> {
        let rank = self.x.rank()?;
        let known = (2..rank).all(|axis| self.x.known_dim(axis).is_some());
        if !known || !(3..=5).contains(&rank) || dy.element()? != ElementType::Float {
            return Ok(None);
        }
        let mut factors = vec![1; rank];
        for (i, &axis) in self.axes.iter().enumerate() {
            let along = self.along(i)?;
            if self.keeps(axis, &along) {
                continue;
            }
            match self.factor(axis, &along) {
                Some(factor) if axis >= 2 => factors[axis] = factor,
                _ => return Ok(None),
            }
        }
        let window = &factors[2..];
        if window.iter().all(|&factor| factor == 1) {
            return Ok(None);
        }
        let count = window.iter().fold(1.0, |n, &f| n * f as f64);
        let mean = dy.average_pool_of(vec![ints("kernel_shape", window), ints("strides", window)]);
        Ok(Some(mean * count))
    }

    /// What an axis is multiplied by, `[in, out]`, in the type of another tensor.
    fn matrix(&self, i: usize, along: &Along<'g>, like: Expr<'g>) -> Expr<'g> {
        let (x, b, axis) = (self.x, self.c.builder(), self.axes[i]);
        let (zero, one) = (|e: Expr<'g>| e.like(0.0).reshape_to(&[1]), |e: Expr<'g>| e.like(1.0).reshape_to(&[1]));
        let size = x.dim(axis);
        let places = b.range(size);
        let unit = places.unsqueeze(&[0]).equal(places.unsqueeze(&[1])).cast_like(like);
        let ones = |e: Expr<'g>| [one(e), one(e), one(e)];
        let mut attributes = self.c.attributes(&[
            "antialias",
            "coordinate_transformation_mode",
            "cubic_coeff_a",
            "exclude_outside",
            "keep_aspect_ratio_policy",
            "mode",
            "nearest_mode",
        ]);
        if let (Some((to, from)), Some(sizes)) = (self.common, self.sizes) {
            // An axis beside it keeps the scale that all axes share.
            let shape = Expr::concat(&[b.ints(&[1]), x.dims([axis]), from, x.dims([axis])], 0);
            attributes.push(ints("axes", &[2, 3]));
            let sizes = Some(Expr::concat(&[to, self.at(sizes, i)], 0));
            let p = Resized { attributes, roi: None, scales: None, sizes };
            return unit.unsqueeze(&[0, 2]).expand(shape).resize(&p).narrow(2, 0, 1).squeeze(&[0, 2]);
        }
        let roi = self.part.map(|roi| {
            let (start, end) = (self.at(roi, i), self.at(roi, self.axes.len() + i));
            let zeros = [zero(roi), zero(roi), zero(roi)];
            Expr::concat(&[&zeros[..], &[start], &ones(roi)[..], &[end]].concat(), 0)
        });
        let (scales, sizes) = match along {
            Along::Scale(scale) => (Some(Expr::concat(&[&ones(*scale)[..], &[*scale]].concat(), 0)), None),
            Along::Size(to) => (None, Some(Expr::concat(&[b.ints(&[1, 1]), size.reshape_to(&[1]), *to], 0))),
        };
        unit.unsqueeze(&[0, 1]).resize(&Resized { attributes, roi, scales, sizes }).squeeze(&[0, 1])
    }
}

/// The scale of all axes, the smallest or the largest of theirs: sizes to and from, in lowest terms where they are
/// known.
fn common_scale<'g>(x: Expr<'g>, axes: &[usize], sizes: Expr<'g>, policy: &str) -> Result<(Expr<'g>, Expr<'g>)> {
    let b = x.builder();
    let from = x.dims(axes.iter().copied());
    let scales = sizes.cast(ElementType::Double) / from.cast(ElementType::Double);
    let first = if policy == "not_larger" { scales.arg_min(0) } else { scales.arg_max(0) };
    let at = first.ints().or_else(|| {
        let scales: Vec<f64> =
            sizes.ints()?.iter().zip(from.ints()?).map(|(&to, from)| to as f64 / from as f64).collect();
        let better = |a: f64, b: f64| if policy == "not_larger" { a < b } else { a > b };
        let best = scales.iter().enumerate().reduce(|a, b| if better(*b.1, *a.1) { b } else { a })?;
        Some(vec![best.0 as i64])
    });
    let first = at.map_or(first, |at| b.ints(&at));
    let (to, from) = (sizes.gather(first, 0), from.gather(first, 0));
    let known = |e: Expr<'g>| e.ints().and_then(|e| e.first().copied());
    let (Some(t), Some(f)) = (known(to), known(from)) else { return Ok((to, from)) };
    ensure!(t > 0 && f > 0, "a size of {f} becomes one of {t}");
    let (mut divisor, mut rest) = (t, f);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    Ok((b.ints(&[t / divisor]), b.ints(&[f / divisor])))
}

/// `matrix · dy` along an axis, of the matrix `[in, out]`.
fn transposed_product<'g>(matrix: Expr<'g>, dy: Expr<'g>, axis: usize) -> Result<Expr<'g>> {
    let rank = dy.rank()?;
    Ok(match rank - axis {
        1 => dy.matmul(matrix.transposed()),
        2 => matrix.matmul(dy),
        _ => dy.move_axis(axis, rank - 1).matmul(matrix.transposed()).move_axis(rank - 1, axis),
    })
}

/// Whether a nearest neighbour is, at whole scales, each element so often.
fn repeats(c: &Call<'_>, newest: bool) -> bool {
    let mode = c.string("mode", "nearest");
    let coordinates = c.string("coordinate_transformation_mode", if newest { "half_pixel" } else { "asymmetric" });
    let nearest = c.string("nearest_mode", if newest { "round_prefer_floor" } else { "floor" });
    mode == "nearest"
        && match coordinates.as_str() {
            "half_pixel" | "half_pixel_symmetric" => nearest.starts_with("round_prefer"),
            "asymmetric" => nearest == "floor",
            _ => false,
        }
}

/// The sums of so many neighbours along an axis.
fn sum_of_runs<'g>(dy: Expr<'g>, x: Expr<'g>, axis: usize, length: i64) -> Expr<'g> {
    let b = dy.builder();
    let rank = x.rank().unwrap_or_default();
    let shape = Expr::concat(&[dy.dims(0..axis), x.dims([axis]), b.ints(&[length]), dy.dims(axis + 1..rank)], 0);
    dy.reshape(shape).sum_out(&[axis + 1])
}

/// The points of the unit square, or cube: `[H, W, 3]` of x, y, 1, or `[D, H, W, 4]`.
fn affine_grid<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (theta, dy, b) = (c.x(), c.dy(), c.builder());
    let axes =
        dy.rank()?.checked_sub(2).filter(|&n| n == 2 || n == 3).context("the grid is neither of two nor three axes")?;
    let shape = dy.dims(1..=axes);
    let coordinate = |axis: usize| {
        let n = dy.dim(axis + 1);
        let (place, n) = (b.range(n).cast_like(theta), n.cast_like(theta));
        let at = match c.flag("align_corners", false) {
            true => place * 2.0 / (n - 1.0).max(n.like(1.0)) - 1.0,
            false => (place * 2.0 + 1.0) / n - 1.0,
        };
        let lay: Vec<i64> = (0..axes).map(|a| if a == axis { -1 } else { 1 }).collect();
        at.reshape_to(&lay).expand(shape).unsqueeze(&[axes])
    };
    let mut columns: Vec<Expr<'g>> = (0..axes).rev().map(coordinate).collect();
    columns.push(b.full(Expr::concat(&[shape, b.ints(&[1])], 0), 1.0, theta.element()?));
    let base = Expr::concat(&columns, axes).reshape_to(&[-1, axes as i64 + 1]);
    let rows = dy.reshape_to(&[0, -1, axes as i64]);
    Ok(rows.transposed().matmul(base))
}

/// How many axes an image has. Each doubles the number of neighbours of a point: more than a volume has are not written
/// out.
fn few_axes(rank: usize) -> Result<usize> {
    let axes = rank.checked_sub(2).filter(|&n| n > 0).context("an image needs batch, channels, and axes")?;
    ensure!(axes <= 3, "images of {axes} axes have no gradient here: those of one, two or three have");
    Ok(axes)
}

/// A neighbour of each point along one axis: its place, between 0 and the size, and its weight.
type Neighbour<'g> = (Expr<'g>, Expr<'g>);

/// The neighbours along one axis more, which is the innermost.
fn crossed<'g>(outer: &[Neighbour<'g>], inner: Vec<Neighbour<'g>>, size: Expr<'g>) -> Vec<Neighbour<'g>> {
    if outer.is_empty() {
        return inner;
    }
    let with_all = |&(place, weight): &Neighbour<'g>| {
        inner.iter().map(move |&(p, w)| (place * size + p, weight * w)).collect::<Vec<_>>()
    };
    outer.iter().flat_map(with_all).collect()
}

fn grid_sample<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (x, grid, b) = (c.x(), c.input(1), c.builder());
    let rank = x.rank()?;
    let axes = few_axes(rank)?;
    let points = grid.reshape_to(&[0, -1, axes as i64]);
    let mut terms: Vec<Neighbour<'g>> = vec![];
    for axis in 0..axes {
        let at = points.narrow(2, (axes - 1 - axis) as i64, (axes - axis) as i64).squeeze(&[2]);
        let size = x.dim(axis + 2);
        terms = crossed(&terms, neighbours(c, at, size, x)?, size);
    }
    // One row of channels for each place of each image.
    let rows = x.move_axis(1, rank - 1).reshape(Expr::concat(&[b.ints(&[-1]), x.dims([1])], 0));
    let area = x.dims(2..rank);
    let area = (0..axes).map(|i| area.gather(b.int(i as i64), 0)).reduce(|a, b| a * b).context("no axes")?;
    let first = (b.range(x.dim(0)) * area).unsqueeze(&[1]);
    let sampled: Vec<Expr<'g>> =
        terms.iter().map(|&(place, weight)| rows.gather(place + first, 0) * weight.unsqueeze(&[2])).collect();
    let y = Expr::add_n(&sampled).transpose(&[0, 2, 1]);
    Ok(vec![Some(y.reshape(Expr::concat(&[x.dims([0, 1]), grid.dims(1..=axes)], 0)))])
}

fn neighbours<'g>(c: &Call<'g>, at: Expr<'g>, size: Expr<'g>, x: Expr<'g>) -> Result<Vec<Neighbour<'g>>> {
    let (mode, padding) = (c.string("mode", "linear"), c.string("padding_mode", "zeros"));
    c.ensure_known("padding_mode", &padding, &["zeros", "border", "reflection"]);
    let n = size.cast_like(at);
    let aligned = c.flag("align_corners", false);
    let (first, last) = if aligned { (n.like(0.0), n - 1.0) } else { (n.like(-0.5), n - 0.5) };
    let reflect = |v: Expr<'g>| {
        let span = last - first;
        let distance = (v - first).abs();
        let turns = (distance / span).floor();
        let rest = distance - turns * span;
        let odd = turns - (turns / 2.0).floor() * 2.0;
        let back = odd.greater(n.like(0.5)).select(last - rest, first + rest);
        v.less(first).or(v.greater(last)).select(back, v)
    };
    let limit = |v: Expr<'g>| v.max(n.like(0.0)).min(n - 1.0);
    let mut v = if aligned { (at + 1.0) / 2.0 * (n - 1.0) } else { ((at + 1.0) * n - 1.0) / 2.0 };
    if mode == "nearest" {
        v = v.round();
    }
    v = match padding.as_str() {
        // A cubic goes on outside, over the elements of the border.
        "border" if !mode.ends_with("cubic") => v.less(first).or(v.greater(last)).select(limit(v), v),
        "reflection" => reflect(v),
        _ => v,
    };
    let floor = v.floor();
    let t = v - floor;
    let weights: Vec<(f64, Expr<'g>)> = match mode.as_str() {
        "nearest" => vec![(0.0, t.ones_like())],
        "linear" | "bilinear" => vec![(0.0, 1.0 - t), (1.0, t)],
        "cubic" | "bicubic" => {
            let a = -0.75;
            let near = |t: Expr<'g>| ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
            let far = |t: Expr<'g>| ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a;
            vec![(-1.0, far(t + 1.0)), (0.0, near(t)), (1.0, near(1.0 - t)), (2.0, far(2.0 - t))]
        }
        other => bail!("mode = '{other}' is not one of nearest, linear, cubic"),
    };
    let neighbour = |(step, weight): (f64, Expr<'g>)| {
        let place = floor + step;
        let inside = if padding == "reflection" { reflect(place) } else { place };
        let weight = match padding.as_str() {
            "zeros" => weight.where_(place.less(n.like(0.0)).or(place.greater(n - 1.0)).logical_not()),
            _ => weight,
        };
        (limit(inside).cast(ElementType::Int64), weight.cast_like(x))
    };
    Ok(weights.into_iter().map(neighbour).collect())
}

/// The convolution of the elements that each tap finds at its own place.
fn deformed<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (x, w, offset, b) = (c.x(), c.input(1), c.input(2), c.builder());
    let rank = x.rank()?;
    let axes = few_axes(rank)?;
    let (group, offset_group) = (c.int("group", 1), c.int("offset_group", 1));
    ensure!(group > 0 && offset_group > 0, "a number of groups is not positive");
    let window = Window::of(c, x, offset, Some(w))?;
    let taps = window.places()?;
    let count = taps.len() as i64;
    let outs = offset.dims(2..rank);
    let split = Expr::concat(&[x.dims([0]), b.ints(&[offset_group, count, axes as i64, -1])], 0);
    let offset = offset.reshape(split);
    let mut terms: Vec<Neighbour<'g>> = vec![];
    for axis in 0..axes {
        let (stride, start) = window.step(axis);
        let lay: Vec<i64> = (0..axes).map(|a| if a == axis { -1 } else { 1 }).collect();
        let first = (b.range(outs.gather(b.int(axis as i64), 0)) * stride - start).reshape_to(&lay).expand(outs);
        let tap: Vec<i64> = taps.iter().filter_map(|t| t.get(axis).copied()).collect();
        let base = b.ints(&tap).reshape_to(&[-1, 1]) + first.reshape_to(&[1, -1]);
        let at = offset.narrow(3, axis as i64, axis as i64 + 1).squeeze(&[3]) + base.cast_like(offset);
        let size = x.dim(axis + 2);
        let (n, floor) = (size.cast_like(at), at.floor());
        let corner = |place: Expr<'g>, weight: Expr<'g>| {
            let inside = place.less(n.like(0.0)).or(place.greater(n - 1.0)).logical_not();
            (place.max(n.like(0.0)).min(n - 1.0).cast(ElementType::Int64), weight.where_(inside).cast_like(x))
        };
        let t = at - floor;
        terms = crossed(&terms, vec![corner(floor, 1.0 - t), corner(floor + 1.0, t)], size);
    }
    // [N groups S..., channels of a group], looked up at [N, groups, taps, O].
    let channels = x.dims([1]) / offset_group;
    let grouped = x.reshape(Expr::concat(&[x.dims([0]), b.ints(&[offset_group]), channels, x.dims(2..rank)], 0));
    let rows = grouped.move_axis(2, rank).reshape(Expr::concat(&[b.ints(&[-1]), channels], 0));
    let sizes = x.dims(2..rank);
    let area = (0..axes).map(|i| sizes.gather(b.int(i as i64), 0)).reduce(|a, b| a * b).context("no axes")?;
    let first = (b.range(x.dim(0) * offset_group) * area).reshape_to(&[-1, offset_group, 1, 1]);
    let found: Vec<Expr<'g>> =
        terms.iter().map(|&(place, weight)| rows.gather(place + first, 0) * weight.unsqueeze(&[4])).collect();
    let mut found = Expr::add_n(&found).transpose(&[0, 1, 4, 2, 3]);
    if let Some(mask) = c.opt(4) {
        let split = Expr::concat(&[x.dims([0]), b.ints(&[offset_group, 1, count, -1])], 0);
        found = found * mask.reshape(split);
    }
    let columns = found.reshape(Expr::concat(&[x.dims([0]), b.ints(&[group]), w.dims([1]) * count, b.ints(&[-1])], 0));
    let weights = w.reshape(Expr::concat(&[b.ints(&[group]), w.dims([0]) / group, b.ints(&[-1])], 0));
    let y = weights.matmul(columns).reshape(Expr::concat(&[x.dims([0]), w.dims([0]), outs], 0));
    let lay: Vec<i64> = std::iter::once(-1).chain(vec![1; axes]).collect();
    Ok(vec![Some(c.opt(3).map_or(y, |bias| y + bias.reshape_to(&lay)))])
}
