//! Normalizations: tensors brought to mean 0 and variance 1, or to length 1, along some of their axes.
//!
//! With n elements in a set, m their mean, r = 1 / √(variance + ε) and x̂ = (x - m) r, the gradient d of x̂ gives dx =
//! r (d - mean d - x̂ mean(d x̂)). Half-precision tensors are normalized in float32, as the operators themselves do.

mod facts;

use super::Slot::*;
use super::elementwise::swish_slope;
use super::properties::Axis::At;
use super::properties::Counts::Along;
use super::properties::read;
use super::{Call, Cotangents, Rule, rule};
use crate::expr::{Expr, View};
use crate::onnx::ElementType;
use crate::rules::facts::same;
use anyhow::{Result, bail, ensure};

const STASHED: &[(&str, Option<ElementType>)] = &[("stash_type", Some(ElementType::Float))];

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "LayerNormalization",
        "with d = dy scale: dx = r (d - mean d - x̂ mean(d x̂)) + (dm - dr r² x̂) / n, dscale = Σ dy x̂, db = Σ dy",
        &[Together(layer)],
    ).normalizes().facts(facts::layer)
    .attributes("axis epsilon stash_type")
        .view(View::Rows)
        .in_float32()
    .types(STASHED)
    .weights(&[1, 2]),
    rule("RMSNormalization", RMS, &[Together(|c| rms(c, None))]).normalizes().facts(facts::rms)
        .view(View::Rows)
        .attributes("axis epsilon stash_type")
        .in_float32()
        .types(STASHED)
        .weights(&[1]),
    rule("SimplifiedLayerNormalization", RMS, &[Together(|c| rms(c, Some(1)))]).normalizes().facts(facts::simplified)
        .view(View::Rows)
        .attributes("axis epsilon stash_type")
        .in_float32()
        .types(STASHED)
        .weights(&[1]),
    rule("SimplifiedLayerNormalization", RMS, &[Together(|c| rms(c, Some(1)))]).normalizes().facts(facts::simplified)
        .view(View::Rows)
        .attributes("axis epsilon stash_type")
        .in_float32()
        .types(STASHED)
        .weights(&[1])
        .domain("com.microsoft"),
    rule(
        "SkipLayerNormalization",
        "LayerNormalization of x + skip + bias, which all three get the gradient of",
        &[Together(|c| skip(c, true))],
    ).normalizes().facts(facts::skip_layer)
    .weights(&[2, 3, 4])
    .attributes("epsilon")
        .in_float32()
    .domain("com.microsoft"),
    rule(
        "SkipSimplifiedLayerNormalization",
        "RMSNormalization of x + skip + bias, which all three get the gradient of",
        &[Together(|c| skip(c, false))],
    ).normalizes().facts(facts::skip_layer)
    .weights(&[2, 3])
    .attributes("epsilon")
        .in_float32()
    .domain("com.microsoft"),
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
    ).facts(facts::embed_layer)
    .weights(&[2, 3, 4, 5, 6])
    .layer()
    .indices(&[read(0, Along(2, At(0))), read(1, Along(4, At(0))), read(8, Along(3, At(0)))])
    .attributes("epsilon mask_index_type")
        .in_float32()
    .domain("com.microsoft"),
    rule("GroupNormalization", GROUP, &[Together(|c| group(c, true))]).normalizes().facts(same)
        .view(View::Along("", 1))
        .attributes("epsilon num_groups")
        .in_float32()
        .weights(&[1, 2])
        .until(20)
        .note("scale and bias are one a group"),
    rule("GroupNormalization", GROUP, &[Together(|c| group(c, false))]).normalizes().facts(same)
        .view(View::Along("", 1))
        .attributes("epsilon num_groups stash_type")
        .in_float32()
        .types(STASHED)
        .weights(&[1, 2])
        .since(21),
    rule("GroupNorm", GROUP_ACTIVATED, &[Together(group_norm)]).facts(same)
        .weights(&[1, 2])
        .attributes("activation channels_last epsilon groups")
        .in_float32()
        .domain("com.microsoft"),
    rule("SkipGroupNorm", GROUP_ACTIVATED, &[Together(group_norm)]).facts(|c| Ok(vec![c.like(0), c.like(0)]))
        .weights(&[1, 2, 4])
        .attributes("activation channels_last epsilon groups")
        .in_float32()
        .domain("com.microsoft")
        .note("of x + skip + bias, which all three get the gradient of"),
    rule("InstanceNormalization", GROUP, &[Together(instance)]).normalizes().facts(same)
        .view(View::Along("", 1))
        .attributes("epsilon")
        .in_float32()
        .weights(&[1, 2]),
    rule("LpNormalization", "dx = (dy - y Σ dy y) / ‖x‖, sign x in place of y where p is 1", &[Try(lp)]).normalizes().facts(same)
        .view(View::Along("axis", -1))
        .attributes("axis p")
        .in_float32()
        .note("0 where all elements are 0"),
    rule(
        "MeanVarianceNormalization",
        "with s the standard deviation: dx = (dy - mean dy - (x - m) / s mean(dy y)) / (s + ε)",
        &[Try(mean_variance)],
    ).normalizes().facts(same)
    .attributes("axes").in_float32(),
    rule("BatchNormalization", BATCH, &[Together(batch)]).normalizes().facts(facts::batch)
        .view(View::Along("", 1))
        .attributes("epsilon momentum spatial")
        .in_float32()
        .weights(&[1, 2])
        .statistics(&[3, 4])
        .since(7)
        .until(13),
    rule("BatchNormalization", BATCH, &[Together(batch)]).normalizes().facts(facts::batch)
        .view(View::Along("", 1))
        .attributes("epsilon momentum training_mode")
        .in_float32()
        .weights(&[1, 2])
        .statistics(&[3, 4])
        .since(14),
];

const RMS: &str = "with d = dy scale, r = 1 / √(mean x² + ε), x̂ = x r: dx = r (d - x̂ mean(d x̂)), dscale = Σ dy x̂";

const GROUP: &str = "with d = dy scale: dx = r (d - mean d - x̂ mean(d x̂)), dscale = Σ dy x̂, db = Σ dy";

const GROUP_ACTIVATED: &str =
    "as GroupNormalization, with dy silu'(x̂ scale + b) in place of dy where the activation is SiLU";

/// x̂ and what its gradient needs.
struct Normalized<'g> {
    x_hat: Expr<'g>,
    /// r
    scale: Expr<'g>,
    axes: Vec<usize>,
    /// Whether the mean is subtracted.
    centered: bool,
}

impl<'g> Normalized<'g> {
    /// Mean 0 and variance 1 over `axes`; the statistics where they are known.
    fn new(x: Expr<'g>, axes: Vec<usize>, epsilon: f64, mean: Option<Expr<'g>>, inv_std: Option<Expr<'g>>) -> Self {
        let x = x - mean.unwrap_or_else(|| x.mean(&axes));
        Normalized { centered: true, ..Self::by_root_mean_square(x, axes, epsilon, inv_std) }
    }

    /// Mean square 1 over `axes`.
    fn by_root_mean_square(x: Expr<'g>, axes: Vec<usize>, epsilon: f64, known: Option<Expr<'g>>) -> Self {
        let scale = known.unwrap_or_else(|| (x.square().mean(&axes) + epsilon).sqrt().reciprocal());
        Normalized { x_hat: x * scale, scale, axes, centered: false }
    }

    /// The gradient of x, from that of x̂.
    fn dx(&self, d: Expr<'g>) -> Expr<'g> {
        let shifted = if self.centered { d - d.mean(&self.axes) } else { d };
        self.scale * (shifted - self.x_hat * (d * self.x_hat).mean(&self.axes))
    }
}

/// A vector over the channels, the second axis of x, as a factor of x.
fn per_channel<'g>(v: Expr<'g>, x: Expr<'g>) -> Expr<'g> {
    v.builder().attempt(|| Ok(v.unsqueeze(&(1..x.rank()?.saturating_sub(1)).collect::<Vec<_>>())))
}

/// How many groups the channels are in.
fn groups(c: &Call<'_>, name: &str) -> Result<i64> {
    let groups = c.int(name, 0);
    ensure!(groups > 0, "{name} = {groups} is not positive");
    Ok(groups)
}

/// x̂ along the last axes, times a scale: one call of an operator that may put out the mean and r, too.
struct Layer<'g> {
    n: Normalized<'g>,
    scale: Expr<'g>,
    /// The gradients of y, of the mean and of r.
    dys: [Expr<'g>; 3],
}

impl<'g> Layer<'g> {
    /// From `axis` on, with the default of `epsilon`; `mean` and `inv_std` are the numbers of the outputs that hold
    /// them.
    fn new(
        c: &Call<'g>,
        x: Expr<'g>,
        axis: usize,
        scale: Expr<'g>,
        centered: bool,
        [mean, inv_std]: [Option<usize>; 2],
        epsilon: f32,
    ) -> Result<Self> {
        let axes: Vec<usize> = (axis..x.rank()?).collect();
        let output = |i: Option<usize>| i.and_then(|i| c.output(i));
        let epsilon = c.float("epsilon", epsilon);
        let n = match centered {
            true => Normalized::new(x, axes, epsilon, output(mean), output(inv_std)),
            false => Normalized::by_root_mean_square(x, axes, epsilon, output(inv_std)),
        };
        let dy_of = |i: Option<usize>| i.map_or_else(|| n.scale.zero(), |i| c.dy_of(i));
        let dys = [Some(0), mean, inv_std].map(dy_of);
        Ok(Layer { n, scale, dys })
    }

    fn dx(&self) -> Expr<'g> {
        let (n, [dy, dm, dr]) = (&self.n, self.dys);
        let count = n.x_hat.count(&n.axes, n.x_hat);
        n.dx(dy * self.scale) + (dm / count).expand_like(n.x_hat) + -(dr / count * n.scale.square()) * n.x_hat
    }

    fn dscale(&self) -> Expr<'g> {
        self.dys[0] * self.n.x_hat
    }
}

fn layer<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let layer = Layer::new(c, c.x(), c.axis(-1)?, c.input(1), true, [Some(1), Some(2)], 1e-5)?;
    Ok(c.cotangents().input(0, || layer.dx()).broadcast(1, || layer.dscale()).broadcast(2, || c.dy()))
}

fn rms<'g>(c: &Call<'g>, inv_std: Option<usize>) -> Result<Cotangents<'g>> {
    let layer = Layer::new(c, c.x(), c.axis(-1)?, c.input(1), false, [None, inv_std], 1e-5)?;
    Ok(c.cotangents().input(0, || layer.dx()).broadcast(1, || layer.dscale()))
}

/// The inputs are x, skip, scale, the bias of the normalization where it subtracts the mean, and a bias that is added
/// to x and skip beforehand. The sum of these three is what is normalized, and is the last output.
fn skip<'g>(c: &Call<'g>, centered: bool) -> Result<Cotangents<'g>> {
    let bias = if centered { 4 } else { 3 };
    let computed = || c.opt(bias).into_iter().fold(c.x() + c.input(1), |sum, bias| sum + bias);
    let sum = c.output(3).unwrap_or_else(computed);
    let outputs = [Some(1).filter(|_| centered), Some(2)];
    let layer = Layer::new(c, sum, sum.axis(-1)?, c.input(2), centered, outputs, 1e-12)?;
    let dx = || layer.dx() + c.dy_of(3);
    let found = c.cotangents().broadcast(0, dx).broadcast(1, dx).broadcast(2, || layer.dscale());
    Ok(if centered { found.broadcast(3, || c.dy()) } else { found }.broadcast(bias, dx))
}

/// The gradients of the tables of words, positions and, where there are any, segments, of scale and of bias. The sum of
/// what is read from the tables is what is normalized, and is an output, too.
fn embedded<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (words, segments) = (c.x(), c.opt(1));
    let positions = c.opt(8).unwrap_or_else(|| c.builder().range(words.dim(1)).unsqueeze(&[0]));
    let read = |i: usize, indices: Expr<'g>| c.input(i).gather(indices, 0);
    let computed = || {
        let sum = read(2, words) + read(3, positions);
        segments.map_or(sum, |segments| sum + read(4, segments))
    };
    let sum = c.output(2).unwrap_or_else(computed);
    let layer = Layer::new(c, sum, sum.axis(-1)?, c.input(5), true, [None, None], 1e-12)?;
    // One row of positions may serve the whole batch.
    let table = |i: usize, indices: Expr<'g>| {
        c.input(i).ungather(indices, (layer.dx() + c.dy_of(2)).unbroadcast(read(i, indices)), 0)
    };
    let found = c.cotangents().input(2, || table(2, words)).input(3, || table(3, positions));
    let found = found.input(4, || segments.map_or_else(|| c.input(4).zero(), |segments| table(4, segments)));
    Ok(found.broadcast(5, || layer.dscale()).broadcast(6, || c.dy()))
}

/// The statistics are along the last axis of `[N, groups, ...]`. Scale and bias are one a channel, or one a group.
fn group<'g>(c: &Call<'g>, by_groups: bool) -> Result<Cotangents<'g>> {
    let (x, groups) = (c.x(), groups(c, "num_groups")?);
    let grouped = |e: Expr<'g>| e.reshape_to(&[0, groups, -1]);
    let dy = if by_groups { grouped(c.dy()) } else { c.dy() };
    let d = dy * per_channel(c.input(1), dy);
    let d = if by_groups { d } else { grouped(d) };
    let n = Normalized::new(grouped(x), vec![2], c.float("epsilon", 1e-5), None, None);
    let x_hat = || if by_groups { n.x_hat } else { n.x_hat.reshape_like(dy) };
    let found = c.cotangents().input(0, || n.dx(d).reshape_like(x));
    Ok(found.input(1, || (dy * x_hat()).sum_to_axis(1)).input(2, || dy.sum_to_axis(1)))
}

/// ONNX Runtime's own: the channels are the last axis or the second, SiLU may follow, and the inputs from the third on
/// are added to x first.
fn group_norm<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (x, last, groups) = (c.x(), c.flag("channels_last", true), groups(c, "groups")?);
    ensure!(x.rank()? == 4, "{x} has not 4 axes");
    ensure!(last || c.opt(3).is_none(), "skip is known with the channels as the last axis only");
    let image = |e: Expr<'g>| if last { e.transpose(&[0, 3, 1, 2]) } else { e };
    // [N, C] stands for [N, 1, 1, C].
    let flat = |e: Expr<'g>| e.rank().is_ok_and(|rank| rank == 2);
    let over_places = |e: Expr<'g>| if flat(e) { e.unsqueeze(&[1, 2]) } else { e };
    let computed = || [c.opt(3).map(over_places), c.opt(4)].into_iter().flatten().fold(x, |sum, e| sum + e);
    let sum = image(c.output(1).unwrap_or_else(computed));
    let grouped = |e: Expr<'g>| e.reshape_to(&[0, groups, -1]);
    let n = Normalized::new(grouped(sum), vec![2], c.float("epsilon", 1e-5), None, None);
    let (x_hat, scale) = (n.x_hat.reshape_like(sum), per_channel(c.input(1), sum));
    let dy = image(c.dy());
    let d = match c.int("activation", 0) {
        0 => dy,
        1 => {
            let z = x_hat * scale + per_channel(c.input(2), sum);
            let s = z.sigmoid();
            dy * swish_slope(z * s, s, 1.0)
        }
        other => bail!("activation = {other} is neither 0 nor 1"),
    };
    let back = |e: Expr<'g>| if last { e.transpose(&[0, 2, 3, 1]) } else { e };
    let dx = || back(n.dx(grouped(d * scale)).reshape_like(sum)) + c.dy_of(1);
    let dskip = || if flat(c.input(3)) { dx().sum_out(&[1, 2]) } else { dx() };
    let found = c.cotangents().input(0, dx).input(1, || (d * x_hat).sum_to_axis(1)).input(2, || d.sum_to_axis(1));
    Ok(found.broadcast(3, dskip).broadcast(4, dx))
}

fn instance<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (x, dy) = (c.x(), c.dy());
    let n = Normalized::new(x, (2..x.rank()?).collect(), c.float("epsilon", 1e-5), None, None);
    let found = c.cotangents().input(0, || n.dx(dy * per_channel(c.input(1), dy)));
    Ok(found.input(1, || (dy * n.x_hat).sum_to_axis(1)).input(2, || dy.sum_to_axis(1)))
}

fn lp<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy, axis) = (c.x(), c.y(), c.dy(), c.axis(-1)?);
    let (size, direction): (fn(Expr<'g>) -> Expr<'g>, _) = match c.int("p", 2) {
        1 => (Expr::abs, x.sign()),
        2 => (Expr::square, y),
        p => bail!("p = {p} is neither 1 nor 2"),
    };
    // The norm of zeros is taken as 1, for gradients of gradients that are numbers, and nothing passes.
    let sum = size(x).sum(&[axis]);
    let passes = sum.greater(sum.like(0.0));
    let sum = passes.select(sum, sum.like(1.0));
    let norm = if c.int("p", 2) == 2 { sum.sqrt() } else { sum };
    Ok(passes.cast_like(x) / norm * (dy - direction * (dy * y).sum(&[axis])))
}

fn mean_variance<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    let axes = c.ints("axes").unwrap_or_else(|| vec![0, 2, 3]);
    let axes = axes.into_iter().map(|a| x.axis(a)).collect::<Result<Vec<_>>>()?;
    let centered = x - x.mean(&axes);
    let var = centered.square().mean(&axes);
    // Where all are equal, x̂ is 0 whatever it is divided by.
    let varies = var.greater(var.like(0.0));
    let root = varies.select(var, var.like(1.0)).sqrt();
    let std = root * varies.cast_like(root) + 1e-9;
    let share = (dy * centered).mean(&axes) / std;
    Ok((dy - dy.mean(&axes) - centered / root * share) / std)
}

const BATCH: &str = "inference: dx = dy scale r, dscale = Σ dy x̂, db = Σ dy, dmean = -scale r Σ dy, \
     dvar = -½ scale r² Σ dy x̂; training: with d = dy scale, dx = r (d - mean d - x̂ mean(d x̂)), the rest as above";

/// x̂ with the statistics of the batch in training, with given ones in inference.
struct Batch<'g> {
    x: Expr<'g>,
    /// r, without the axes that are summed over: `[C]`.
    inv_std: Expr<'g>,
    /// x less the mean.
    centered: Expr<'g>,
    x_hat: Expr<'g>,
    axes: Vec<usize>,
    /// The places of the summed axes among those of x, but for the first.
    spread: Vec<usize>,
    training: bool,
}

impl<'g> Batch<'g> {
    fn new(c: &Call<'g>) -> Result<Self> {
        let x = c.x();
        let rank = x.rank()?;
        ensure!(rank >= 2, "the input of rank {rank} has no channels");
        // Old models may have statistics for every place, not only every channel.
        let own = if c.flag("spatial", true) { 2 } else { rank };
        let axes: Vec<usize> = [0].into_iter().chain(own..rank).collect();
        let spread: Vec<usize> = (own - 1..rank - 1).collect();
        let training = c.flag("training_mode", (1..c.output_count()).any(|i| c.output(i).is_some()));
        let (mean, var) = match training {
            true => {
                let mean = x.mean(&axes);
                (mean.squeeze(&axes), (x - mean).square().mean(&axes).squeeze(&axes))
            }
            false => (c.input(3), c.input(4)),
        };
        let inv_std = (var + c.float("epsilon", 1e-5)).sqrt().reciprocal();
        let centered = x - mean.unsqueeze(&spread);
        let x_hat = centered * inv_std.unsqueeze(&spread);
        Ok(Batch { x, inv_std, centered, x_hat, axes, spread, training })
    }

    /// The sum over all that shares a statistic.
    fn total(&self, e: Expr<'g>) -> Expr<'g> {
        e.sum_out(&self.axes)
    }

    /// A statistic as a factor of x.
    fn spread(&self, e: Expr<'g>) -> Expr<'g> {
        e.unsqueeze(&self.spread)
    }
}

fn batch<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (b, dy, scale) = (Batch::new(c)?, c.dy(), c.input(1));
    let found = c.cotangents();
    // Σ dy x̂, of which r is a factor of the sum.
    let deviation = || b.total(dy * b.centered) * b.inv_std;
    Ok(match b.training {
        false => found
            .input(0, || dy * b.spread(scale * b.inv_std))
            .input(1, deviation)
            .input(2, || b.total(dy))
            .input(3, || -(b.total(dy) * scale * b.inv_std))
            .input(4, || deviation() * scale * b.inv_std.square() * -0.5),
        true => {
            let momentum = c.float("momentum", 0.9);
            found
                .input(0, || batch_training(c, &b))
                .input(1, || b.total(dy * b.x_hat))
                .input(2, || b.total(dy))
                .input(3, || c.dy_of(1) * momentum)
                .input(4, || c.dy_of(2) * momentum)
        }
    })
}

/// The gradient of a batch that its own statistics normalize. They reach y, the running statistics, of which they are
/// what `momentum` leaves, and in old versions outputs of their own.
fn batch_training<'g>(c: &Call<'g>, b: &Batch<'g>) -> Expr<'g> {
    let new = 1.0 - c.float("momentum", 0.9);
    let n = Normalized { x_hat: b.x_hat, scale: b.spread(b.inv_std), axes: b.axes.clone(), centered: true };
    let dx = n.dx(c.dy() * b.spread(c.input(1)));
    let count = b.x.count(&b.axes, b.x);
    let (dm, dv) = (c.dy_of(1) * new + c.dy_of(3), c.dy_of(2) * new + c.dy_of(4));
    dx + b.spread(dm / count).expand_like(b.x) + b.spread(2.0 * dv / count / b.inv_std) * b.x_hat
}
