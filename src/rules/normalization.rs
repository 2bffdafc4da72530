//! Normalizations: tensors brought to mean 0 and variance 1, or to length 1, along some of their axes.
//!
//! With n elements in a set, m their mean, r = 1 / √(variance + ε) and x̂ = (x - m) r, the gradient d of x̂ gives dx =
//! r (d - mean d - x̂ mean(d x̂)). Half-precision tensors are normalized in float32, as the operators themselves do.

mod batch;
mod facts;

use super::Slot::*;
use super::elementwise::swish_slope;
use super::properties::Axis::At;
use super::properties::Counts::Along;
use super::properties::read;
use super::{Call, Cotangents, Rule, Slot, rule};
use crate::expr::{Expr, View};
use crate::onnx::ElementType;
use crate::rules::facts::same;
use anyhow::{Result, bail, ensure};

/// A row that takes means over the last axes, from `axis` on.
const fn last_axes(op: &'static str, formula: &'static str, together: &'static [Slot]) -> Rule {
    rule(op, formula, together)
        .normalizes()
        .in_float32()
        .view(View::Rows)
        .attributes("axis epsilon stash_type")
        .types(STASHED)
}

/// A row that takes means for each channel, or group of them, with a scale and a bias.
const fn channels(op: &'static str, formula: &'static str, together: &'static [Slot]) -> Rule {
    rule(op, formula, together).normalizes().in_float32().view(View::Along("", 1)).weights(&[1, 2])
}

const STASHED: &[(&str, Option<ElementType>)] = &[("stash_type", Some(ElementType::Float))];

const SIMPLIFIED: Rule = last_axes("SimplifiedLayerNormalization", RMS, &[Together(|c| layer(c, &Layout::SIMPLIFIED))])
    .facts(facts::simplified)
    .weights(&[1]);

/// The rows.
pub const RULES: &[Rule] = &[
    last_axes(
        "LayerNormalization",
        "with d = dy scale: dx = r (d - mean d - x̂ mean(d x̂)) + (dm - dr r² x̂) / n, dscale = Σ dy x̂, db = Σ dy",
        &[Together(|c| layer(c, &Layout::LAYER))],
    ).facts(facts::layer).weights(&[1, 2]),
    last_axes("RMSNormalization", RMS, &[Together(|c| layer(c, &Layout::RMS))]).facts(facts::rms).weights(&[1]),
    SIMPLIFIED,
    SIMPLIFIED.domain("com.microsoft"),
    rule(
        "SkipLayerNormalization",
        "LayerNormalization of x + skip + bias, which all three get the gradient of",
        &[Together(|c| skip(c, &Layout::SKIP, 4))],
    ).normalizes().in_float32().facts(facts::skip_layer)
    .weights(&[2, 3, 4]).attributes("epsilon").domain("com.microsoft"),
    rule(
        "SkipSimplifiedLayerNormalization",
        "RMSNormalization of x + skip + bias, which all three get the gradient of",
        &[Together(|c| skip(c, &Layout::SKIP_SIMPLIFIED, 3))],
    ).normalizes().in_float32().facts(facts::skip_layer)
    .weights(&[2, 3]).attributes("epsilon").domain("com.microsoft"),
    rule(
        "EmbedLayerNormalization",
        "LayerNormalization of the sum of embeddings; each table gets its gradient added up in the places of the indices",
        &[
            Stop("indices"),
            Stop("indices"),
            Together(embedded),
            Together(embedded),
            Together(embedded),
            Together(embedded),
            Together(embedded),
            Stop("a mask"),
            Stop("indices"),
        ],
    ).in_float32().facts(facts::embed_layer)
    .weights(&[2, 3, 4, 5, 6]).layer()
    .indices(&[read(0, Along(2, At(0))), read(1, Along(4, At(0))), read(8, Along(3, At(0)))])
    .ranks(&[Some(2), Some(2), Some(2), Some(2), Some(2), Some(1), Some(1)])
    .attributes("epsilon mask_index_type").domain("com.microsoft"),
    channels("GroupNormalization", GROUP, &[Together(by_groups)]).facts(same)
        .attributes("epsilon num_groups")
        .until(20)
        .note("scale and bias are one a group"),
    channels("GroupNormalization", GROUP, &[Together(group)]).facts(same)
        .attributes("epsilon num_groups stash_type")
        .types(STASHED)
        .since(21),
    rule("GroupNorm", GROUP_ACTIVATED, &[Together(group_norm)]).in_float32().facts(same)
        .weights(&[1, 2]).ranks(&[Some(4), Some(1), Some(1)])
        .attributes("activation channels_last epsilon groups").domain("com.microsoft"),
    rule("SkipGroupNorm", GROUP_ACTIVATED, &[Together(group_norm)]).in_float32().facts(|c| Ok(vec![c.like(0); 2]))
        .weights(&[1, 2, 4]).ranks(&[Some(4), Some(1), Some(1), None, Some(1)])
        .attributes("activation channels_last epsilon groups").domain("com.microsoft")
        .note("of x + skip + bias, which all three get the gradient of"),
    channels("InstanceNormalization", GROUP, &[Together(instance)]).facts(same).attributes("epsilon"),
    rule("LpNormalization", "dx = (dy - y Σ dy y) / ‖x‖, sign x in place of y where p is 1", &[Try(lp)])
        .normalizes().in_float32().facts(same)
        .view(View::Along("axis", -1))
        .attributes("axis p")
        .note("0 where all elements are 0"),
    rule(
        "MeanVarianceNormalization",
        "with s the standard deviation: dx = (dy - mean dy - (x - m) / s mean(dy y)) / (s + ε)",
        &[Try(mean_variance)],
    ).normalizes().in_float32().facts(same).attributes("axes"),
    channels("BatchNormalization", BATCH, &[Together(batch::batch)]).facts(facts::batch)
        .attributes("epsilon momentum spatial")
        .statistics(&[3, 4])
        .since(7)
        .until(13),
    channels("BatchNormalization", BATCH, &[Together(batch::batch)]).facts(facts::batch)
        .attributes("epsilon momentum training_mode")
        .statistics(&[3, 4])
        .since(14),
];

const RMS: &str = "with d = dy scale, r = 1 / √(mean x² + ε), x̂ = x r: dx = r (d - x̂ mean(d x̂)), dscale = Σ dy x̂";

const GROUP: &str = "with d = dy scale: dx = r (d - mean d - x̂ mean(d x̂)), dscale = Σ dy x̂, db = Σ dy";

const GROUP_ACTIVATED: &str =
    "as GroupNormalization, with dy silu'(x̂ scale + b) in place of dy where the activation is SiLU";

const BATCH: &str = "inference: dx = dy scale r, dscale = Σ dy x̂, db = Σ dy, dmean = -scale r Σ dy, \
     dvar = -½ scale r² Σ dy x̂; training: with d = dy scale, dx = r (d - mean d - x̂ mean(d x̂)), the rest as above";

/// x̂ and what its gradient needs.
struct Normalized<'g> {
    x_hat: Expr<'g>,
    r: Expr<'g>,
    axes: Vec<usize>,
    /// Whether the mean is subtracted.
    centered: bool,
}

impl<'g> Normalized<'g> {
    /// Mean 0, if `centered`, and mean square 1 over `axes`; with the statistics where they are known.
    fn new(x: Expr<'g>, axes: Vec<usize>, epsilon: f64, centered: bool, [mean, r]: [Option<Expr<'g>>; 2]) -> Self {
        let x = if centered { x - mean.unwrap_or_else(|| x.mean(&axes)) } else { x };
        let r = r.unwrap_or_else(|| (x.square().mean(&axes) + epsilon).sqrt().reciprocal());
        Normalized { x_hat: x * r, r, axes, centered }
    }

    /// Mean 0 and variance 1 of each group of channels, in the shape `[N, groups, ...]` of groups.
    fn grouped(c: &Call<'g>, x: Expr<'g>) -> Self {
        Normalized::new(x, vec![2], c.float("epsilon", 1e-5), true, [None; 2])
    }

    /// The gradient of x, from that of x̂.
    fn dx(&self, d: Expr<'g>) -> Expr<'g> {
        let shifted = if self.centered { d - d.mean(&self.axes) } else { d };
        self.r * (shifted - self.x_hat * (d * self.x_hat).mean(&self.axes))
    }

    /// The gradient of x, from those of the mean and of r where these are outputs, too.
    fn dx_of_statistics(&self, dm: Expr<'g>, dr: Expr<'g>) -> Expr<'g> {
        let n = self.x_hat.count(&self.axes, self.x_hat);
        (dm / n).expand_like(self.x_hat) + -(dr / n * self.r.square()) * self.x_hat
    }
}

/// Where an operator that normalizes the last axes has what: the numbers of its inputs and outputs.
struct Layout {
    scale: usize,
    /// Without one no mean is subtracted.
    bias: Option<usize>,
    /// The outputs that hold the mean and r.
    statistics: [Option<usize>; 2],
    /// The default of the attribute.
    epsilon: f32,
}

impl Layout {
    const LAYER: Layout = Layout { scale: 1, bias: Some(2), statistics: [Some(1), Some(2)], epsilon: 1e-5 };
    const RMS: Layout = Layout { scale: 1, bias: None, statistics: [None, None], epsilon: 1e-5 };
    const SIMPLIFIED: Layout = Layout { statistics: [None, Some(1)], ..Layout::RMS };
    const SKIP: Layout = Layout { scale: 2, bias: Some(3), statistics: [Some(1), Some(2)], epsilon: 1e-12 };
    const SKIP_SIMPLIFIED: Layout = Layout { bias: None, statistics: [None, Some(2)], ..Layout::SKIP };
    const EMBED: Layout = Layout { scale: 5, bias: Some(6), statistics: [None, None], epsilon: 1e-12 };

    /// What x, of which the last axes are normalized, gets, and what is found with scale and bias.
    fn found<'g>(
        &self,
        c: &Call<'g>,
        x: Expr<'g>,
        found: impl FnOnce(Cotangents<'g>, &dyn Fn() -> Expr<'g>) -> Cotangents<'g>,
    ) -> Result<Cotangents<'g>> {
        let axes = (x.axis(c.int("axis", -1))?..x.rank()?).collect();
        let known = self.statistics.map(|i| c.output(i?));
        let n = Normalized::new(x, axes, c.float("epsilon", self.epsilon), self.bias.is_some(), known);
        let [dm, dr] = self.statistics.map(|i| i.map_or_else(|| n.r.zero(), |i| c.dy_of(i)));
        let dx = || n.dx(c.dy() * c.input(self.scale)) + n.dx_of_statistics(dm, dr);
        let found = found(c.cotangents(), &dx).broadcast(self.scale, || c.dy() * n.x_hat);
        Ok(match self.bias {
            Some(bias) => found.broadcast(bias, || c.dy()),
            None => found,
        })
    }
}

fn layer<'g>(c: &Call<'g>, layout: &Layout) -> Result<Cotangents<'g>> {
    layout.found(c, c.x(), |found, dx| found.input(0, dx))
}

/// A skip and a bias are added to x beforehand: the sum of these three is what is normalized, and is the last output.
fn skip<'g>(c: &Call<'g>, layout: &Layout, bias: usize) -> Result<Cotangents<'g>> {
    let computed = || c.opt(bias).into_iter().fold(c.x() + c.input(1), |sum, bias| sum + bias);
    layout.found(c, c.output(3).unwrap_or_else(computed), |found, dx| {
        let dx = || dx() + c.dy_of(3);
        found.broadcast(0, dx).broadcast(1, dx).broadcast(bias, dx)
    })
}

/// The tables of words, positions and, where there are any, segments. The sum of what is read from them is what is
/// normalized, and is an output, too.
fn embedded<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let positions = c.opt(8).unwrap_or_else(|| c.builder().range(c.x().dim(1)).unsqueeze(&[0]));
    let tables = [(2, Some(c.x())), (3, Some(positions)), (4, c.opt(1))];
    let read = |i: usize, indices: Expr<'g>| c.input(i).gather(indices, 0);
    let computed = || {
        let rows = tables.into_iter().filter_map(|(i, indices)| Some(read(i, indices?)));
        rows.reduce(|sum, rows| sum + rows).unwrap_or_else(|| c.x())
    };
    Layout::EMBED.found(c, c.output(2).unwrap_or_else(computed), |found, dx| {
        // One row of positions may serve the whole batch.
        let rows = |i: usize, indices: Expr<'g>| (dx() + c.dy_of(2)).unbroadcast(read(i, indices));
        let table = |(i, indices): (usize, Option<Expr<'g>>)| {
            let dx = move |at: Expr<'g>| c.input(i).ungather(at, rows(i, at), 0);
            indices.map_or_else(|| c.input(i).zero(), dx)
        };
        tables.into_iter().fold(found, |found, at| found.input(at.0, || table(at)))
    })
}

/// A vector over the channels, the second axis of x, as a factor of x.
fn per_channel<'g>(v: Expr<'g>, x: Expr<'g>) -> Expr<'g> {
    v.builder().attempt(|| Ok(v.unsqueeze(&(1..x.rank()?.saturating_sub(1)).collect::<Vec<_>>())))
}

/// What x gets, from the gradient of x̂, and a scale and a bias for each channel.
fn by_channel<'g>(c: &Call<'g>, x_hat: Expr<'g>, dy: Expr<'g>, dx: impl Fn(Expr<'g>) -> Expr<'g>) -> Cotangents<'g> {
    let found = c.cotangents().input(0, || dx(dy * per_channel(c.input(1), dy)));
    found.input(1, || (dy * x_hat).sum_to_axis(1)).input(2, || dy.sum_to_axis(1))
}

/// What brings a tensor into the shape `[N, groups, ...]`.
fn groups<'g>(c: &Call<'g>, name: &str) -> Result<impl Fn(Expr<'g>) -> Expr<'g>> {
    let groups = c.int(name, 0);
    ensure!(groups > 0, "{name} = {groups} is not positive");
    Ok(move |e: Expr<'g>| e.reshape_to(&[0, groups, -1]))
}

fn group<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (x, grouped) = (c.x(), groups(c, "num_groups")?);
    let n = Normalized::grouped(c, grouped(x));
    Ok(by_channel(c, n.x_hat.reshape_like(c.dy()), c.dy(), |d| n.dx(grouped(d)).reshape_like(x)))
}

/// Each group has a scale and a bias, as if it was one channel.
fn by_groups<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (x, grouped) = (c.x(), groups(c, "num_groups")?);
    let n = Normalized::grouped(c, grouped(x));
    Ok(by_channel(c, n.x_hat, grouped(c.dy()), |d| n.dx(d).reshape_like(x)))
}

fn instance<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let axes = (2..c.x().rank()?).collect();
    let n = Normalized::new(c.x(), axes, c.float("epsilon", 1e-5), true, [None; 2]);
    Ok(by_channel(c, n.x_hat, c.dy(), |d| n.dx(d)))
}

/// ONNX Runtime's own: the channels are the last axis or the second, SiLU may follow, and the inputs from the third on
/// are added to x first.
fn group_norm<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (x, last, grouped) = (c.x(), c.flag("channels_last", true), groups(c, "groups")?);
    ensure!(x.rank()? == 4, "{x} has not 4 axes");
    ensure!(last || c.opt(3).is_none(), "skip is known with the channels as the last axis only");
    let image = |e: Expr<'g>| if last { e.move_axis(3, 1) } else { e };
    // [N, C] stands for [N, 1, 1, C].
    let flat = |e: Expr<'g>| e.rank().is_ok_and(|rank| rank == 2);
    let over_places = |e: Expr<'g>| if flat(e) { e.unsqueeze(&[1, 2]) } else { e };
    let computed = || [c.opt(3).map(over_places), c.opt(4)].into_iter().flatten().fold(x, |sum, e| sum + e);
    let sum = image(c.output(1).unwrap_or_else(computed));
    let n = Normalized::grouped(c, grouped(sum));
    let (x_hat, dy, scale) = (n.x_hat.reshape_like(sum), image(c.dy()), per_channel(c.input(1), sum));
    let d = match c.int("activation", 0) {
        0 => dy,
        1 => {
            let z = x_hat * scale + per_channel(c.input(2), sum);
            let s = z.sigmoid();
            dy * swish_slope(z * s, s, 1.0)
        }
        other => bail!("activation = {other} is neither 0 nor 1"),
    };
    let back = |e: Expr<'g>| if last { e.move_axis(1, 3) } else { e };
    let dx = |d: Expr<'g>| back(n.dx(grouped(d)).reshape_like(sum)) + c.dy_of(1);
    let dsum = || dx(d * scale);
    let dskip = || if flat(c.input(3)) { dsum().sum_out(&[1, 2]) } else { dsum() };
    Ok(by_channel(c, x_hat, d, dx).broadcast(3, dskip).broadcast(4, dsum))
}

fn lp<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy, axis) = (c.x(), c.y(), c.dy(), c.axis(-1)?);
    let (size, root, direction): (_, fn(Expr<'g>) -> Expr<'g>, _) = match c.int("p", 2) {
        1 => (x.abs(), |e| e, x.sign()),
        2 => (x.square(), Expr::sqrt, y),
        p => bail!("p = {p} is neither 1 nor 2"),
    };
    // The norm of zeros is taken as 1, for gradients of gradients that are numbers, and nothing passes.
    let sum = size.sum(&[axis]);
    let passes = sum.above(0.0);
    Ok(passes.cast_like(x) / root(sum.or_one(passes)) * (dy - direction * (dy * y).sum(&[axis])))
}

fn mean_variance<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    let axes = c.ints("axes").unwrap_or_else(|| vec![0, 2, 3]);
    let axes = axes.into_iter().map(|a| x.axis(a)).collect::<Result<Vec<_>>>()?;
    let centered = x - x.mean(&axes);
    let var = centered.square().mean(&axes);
    // Where all are equal, x̂ is 0 whatever it is divided by.
    let varies = var.above(0.0);
    let root = var.or_one(varies).sqrt();
    let std = root * varies.cast_like(root) + 1e-9;
    let share = (dy * centered).mean(&axes) / std;
    Ok((dy - dy.mean(&axes) - centered / root * share) / std)
}
