//! Normalizations: tensors brought to mean 0 and variance 1, or to length 1, along some of their axes.
//!
//! With n elements in a set, m their mean, r = 1 / √(variance + ε) and x̂ = (x - m) r, the gradient d of x̂ gives
//! dx = r (d - mean d - x̂ mean(d x̂)). Half-precision tensors are normalized in float32, as the operators themselves do.

mod facts;

use super::Slot::*;
use super::elementwise::swish_slope;
use super::properties::Axis::At;
use super::properties::Counts::Along;
use super::properties::read;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use crate::onnx::ElementType;
use crate::rules::facts::same;
use anyhow::{Result, bail, ensure};

const STASHED: &[(&str, Option<ElementType>)] = &[("stash_type", Some(ElementType::Float))];

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "LayerNormalization",
        "with d = dy scale: dx = r (d - mean d - x̂ mean(d x̂)) + (dm - dr r² x̂) / n, dscale = Σ dy x̂, db = Σ dy",
        &[Try(layer_x), Try(layer_scale), Formula(layer_bias)],
    ).facts(facts::layer)
    .attributes("axis epsilon stash_type")
    .types(STASHED)
    .weights(&[1, 2]),
    rule("RMSNormalization", RMS, &[Try(rms_x), Try(rms_scale)]).facts(facts::rms)
        .attributes("axis epsilon stash_type")
        .types(STASHED)
        .weights(&[1]),
    rule("SimplifiedLayerNormalization", RMS, &[Try(simplified_x), Try(simplified_scale)]).facts(facts::simplified)
        .attributes("axis epsilon stash_type")
        .types(STASHED)
        .weights(&[1]),
    rule("SimplifiedLayerNormalization", RMS, &[Try(simplified_x), Try(simplified_scale)]).facts(facts::simplified)
        .attributes("axis epsilon stash_type")
        .types(STASHED)
        .weights(&[1])
        .domain("com.microsoft"),
    rule(
        "SkipLayerNormalization",
        "LayerNormalization of x + skip + bias, which all three get the gradient of",
        &[TryEach(|c, i| skip(c, i, Some(3), 4))],
    ).facts(facts::skip_layer)
    .weights(&[2, 3, 4])
    .attributes("epsilon")
    .domain("com.microsoft"),
    rule(
        "SkipSimplifiedLayerNormalization",
        "RMSNormalization of x + skip + bias, which all three get the gradient of",
        &[TryEach(|c, i| skip(c, i, None, 3))],
    ).facts(facts::skip_layer)
    .weights(&[2, 3])
    .attributes("epsilon")
    .domain("com.microsoft"),
    rule(
        "EmbedLayerNormalization",
        "LayerNormalization of the sum of embeddings; each table gets its gradient added up in the places of the indices",
        &[
            Stop("indices"),
            Stop("indices"),
            Try(|c| Ok(embedded(c)?.table(c, 2))),
            Try(|c| Ok(embedded(c)?.table(c, 3))),
            Try(|c| Ok(embedded(c)?.table(c, 4))),
            Try(|c| Ok(embedded(c)?.layer.dscale(c.input(5)))),
            Formula(|c| reduced(c.dy().widened(), c.input(6))),
            Stop("a mask"),
            Stop("indices"),
        ],
    ).facts(facts::embed_layer)
    .weights(&[2, 3, 4, 5, 6])
    .layer()
    .indices(&[read(0, Along(2, At(0))), read(1, Along(4, At(0))), read(8, Along(3, At(0)))])
    .attributes("epsilon mask_index_type")
    .domain("com.microsoft"),
    rule("GroupNormalization", GROUP, &[Try(group_x_by_groups), TryEach(group_parameter_by_groups)]).facts(same)
        .attributes("epsilon num_groups")
        .weights(&[1, 2])
        .until(20)
        .note("scale and bias are one a group"),
    rule("GroupNormalization", GROUP, &[Try(group_x), TryEach(group_parameter)]).facts(same)
        .attributes("epsilon num_groups stash_type")
        .types(STASHED)
        .weights(&[1, 2])
        .since(21),
    rule("GroupNorm", GROUP_ACTIVATED, &[TryEach(group_norm)]).facts(same)
        .weights(&[1, 2])
        .attributes("activation channels_last epsilon groups")
        .domain("com.microsoft"),
    rule("SkipGroupNorm", GROUP_ACTIVATED, &[TryEach(group_norm)]).facts(|c| Ok(vec![c.like(0), c.like(0)]))
        .weights(&[1, 2, 4])
        .attributes("activation channels_last epsilon groups")
        .domain("com.microsoft")
        .note("of x + skip + bias, which all three get the gradient of"),
    rule("InstanceNormalization", GROUP, &[Try(instance_x), TryEach(instance_parameter)]).facts(same)
        .attributes("epsilon")
        .weights(&[1, 2]),
    rule("LpNormalization", "dx = (dy - y Σ dy y) / ‖x‖, sign x in place of y where p is 1", &[Try(lp)]).facts(same)
        .attributes("axis p")
        .note("0 where all elements are 0"),
    rule(
        "MeanVarianceNormalization",
        "with s the standard deviation: dx = (dy - mean dy - (x - m) / s mean(dy y)) / (s + ε)",
        &[Try(mean_variance)],
    ).facts(same)
    .attributes("axes"),
    rule("BatchNormalization", BATCH, &[TryEach(batch)]).facts(facts::batch)
        .attributes("epsilon momentum spatial")
        .weights(&[1, 2])
        .since(7)
        .until(13),
    rule("BatchNormalization", BATCH, &[TryEach(batch)]).facts(facts::batch)
        .attributes("epsilon momentum training_mode")
        .weights(&[1, 2])
        .since(14),
];

const RMS: &str = "with d = dy scale, r = 1 / √(mean x² + ε), x̂ = x r: dx = r (d - x̂ mean(d x̂)), dscale = Σ dy x̂";

const GROUP: &str = "with d = dy scale: dx = r (d - mean d - x̂ mean(d x̂)), dscale = Σ dy x̂, db = Σ dy";

const GROUP_ACTIVATED: &str =
    "as GroupNormalization, with dy silu'(x̂ scale + b) in place of dy where the activation is SiLU";

// ---------------------------------------------------------------- shared

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
        let x = x - mean.map_or_else(|| x.mean(&axes), |m| m.cast_like(x));
        Normalized { centered: true, ..Self::by_root_mean_square(x, axes, epsilon, inv_std) }
    }

    /// Mean square 1 over `axes`.
    fn by_root_mean_square(x: Expr<'g>, axes: Vec<usize>, epsilon: f64, known: Option<Expr<'g>>) -> Self {
        let computed = || (x.square().mean(&axes) + epsilon).sqrt().reciprocal();
        let scale = known.map_or_else(computed, |r| r.cast_like(x));
        Normalized { x_hat: x * scale, scale, axes, centered: false }
    }

    /// The gradient of x, from that of x̂.
    fn dx(&self, d: Expr<'g>) -> Expr<'g> {
        let shifted = if self.centered { d - d.mean(&self.axes) } else { d };
        self.scale * (shifted - self.x_hat * (d * self.x_hat).mean(&self.axes))
    }
}

/// The sum of the gradients that have arrived; zeros where none has.
fn sum_of<'g>(x: Expr<'g>, terms: impl IntoIterator<Item = Option<Expr<'g>>>) -> Expr<'g> {
    terms.into_iter().flatten().reduce(|a, b| a + b).unwrap_or_else(|| x.zeros_like())
}

/// What a factor or a summand of x̂ gets, from the gradient of their product or sum.
fn reduced<'g>(d: Expr<'g>, parameter: Expr<'g>) -> Expr<'g> {
    d.unbroadcast(parameter).cast_like(parameter)
}

// ---------------------------------------------------------------- along the last axes

/// One call of an operator that normalizes along the last axes and has a scale.
struct Layer<'g> {
    n: Normalized<'g>,
    x: Expr<'g>,
    scale: Expr<'g>,
    /// The gradients of y, of the mean and of r.
    dys: [Option<Expr<'g>>; 3],
}

impl<'g> Layer<'g> {
    /// `mean` and `inv_std` are the numbers of the outputs that have the statistics; `epsilon` is the default.
    fn new(
        c: &Call<'g>,
        x: Expr<'g>,
        axis: usize,
        scale: Expr<'g>,
        centered: bool,
        [mean, inv_std]: [Option<usize>; 2],
        epsilon: f32,
    ) -> Result<Self> {
        let x = x.widened();
        let axes: Vec<usize> = (axis..x.rank()?).collect();
        let output = |i: Option<usize>| i.and_then(|i| c.output(i));
        let epsilon = c.float("epsilon", epsilon);
        let n = match centered {
            true => Normalized::new(x, axes, epsilon, output(mean), output(inv_std)),
            false => Normalized::by_root_mean_square(x, axes, epsilon, output(inv_std)),
        };
        let dys = [Some(0), mean, inv_std].map(|i| Some(c.opt_dy(i?)?.cast_like(x)));
        Ok(Layer { n, x, scale: scale.cast_like(x), dys })
    }

    fn dx(&self) -> Expr<'g> {
        let (x, n, [dy, dm, dr]) = (self.x, &self.n, self.dys);
        let count = x.count(&n.axes, x);
        sum_of(
            x,
            [
                dy.map(|dy| n.dx(dy * self.scale)),
                dm.map(|dm| (dm / count).expand_like(x)),
                dr.map(|dr| -(dr / count * n.scale.square()) * n.x_hat),
            ],
        )
    }

    fn dscale(&self, scale: Expr<'g>) -> Expr<'g> {
        reduced(self.dys[0].unwrap_or_else(|| self.x.zeros_like()) * self.n.x_hat, scale)
    }
}

fn layer<'g>(c: &Call<'g>) -> Result<Layer<'g>> {
    Layer::new(c, c.x(), c.axis(-1)?, c.input(1), true, [Some(1), Some(2)], 1e-5)
}

fn layer_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(layer(c)?.dx().cast_like(c.x()))
}

fn layer_scale<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(layer(c)?.dscale(c.input(1)))
}

fn layer_bias<'g>(c: &Call<'g>) -> Expr<'g> {
    reduced(c.dy().widened(), c.input(2))
}

/// Some of these operators put r out, too.
fn rms<'g>(c: &Call<'g>, inv_std: Option<usize>) -> Result<Layer<'g>> {
    Layer::new(c, c.x(), c.axis(-1)?, c.input(1), false, [None, inv_std], 1e-5)
}

fn rms_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(rms(c, None)?.dx().cast_like(c.x()))
}

fn rms_scale<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(rms(c, None)?.dscale(c.input(1)))
}

fn simplified_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(rms(c, Some(1))?.dx().cast_like(c.x()))
}

fn simplified_scale<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(rms(c, Some(1))?.dscale(c.input(1)))
}

/// The sum of x, skip and bias is normalized, and is an output, too. The numbers are those of the inputs.
fn skip<'g>(c: &Call<'g>, i: usize, beta: Option<usize>, bias: usize) -> Result<Expr<'g>> {
    let input = c.input(i);
    if Some(i) == beta {
        return Ok(reduced(c.dy().widened(), input));
    }
    let computed = || {
        let sum = c.x().widened() + c.input(1).widened();
        c.opt(bias).map_or(sum, |b| sum + b.widened())
    };
    let sum = c.output(3).map_or_else(computed, Expr::widened);
    let axis = sum.axis(-1)?;
    let layer = Layer::new(c, sum, axis, c.input(2), beta.is_some(), [beta.map(|_| 1), Some(2)], 1e-12)?;
    if i == 2 {
        return Ok(layer.dscale(input));
    }
    let d = [Some(layer.dx()).filter(|_| (0..3).any(|o| c.has_dy(o))), c.opt_dy(3).map(|d| d.cast_like(sum))];
    Ok(reduced(sum_of(sum, d), input))
}

// ---------------------------------------------------------------- of embeddings

/// The embeddings of words, positions and, where there are any, segments, added and normalized.
struct Embedded<'g> {
    layer: Layer<'g>,
    words: Expr<'g>,
    positions: Expr<'g>,
    segments: Option<Expr<'g>>,
    sum: Expr<'g>,
}

fn embedded<'g>(c: &Call<'g>) -> Result<Embedded<'g>> {
    let (words, segments) = (c.x(), c.opt(1));
    let positions = c.opt(8).unwrap_or_else(|| c.builder().range(words.dim(1)).unsqueeze(&[0]));
    let computed = || {
        let sum = c.input(2).gather(words, 0).widened() + c.input(3).gather(positions, 0).widened();
        segments.map_or(sum, |segments| sum + c.input(4).gather(segments, 0).widened())
    };
    let sum = c.output(2).map_or_else(computed, Expr::widened);
    let layer = Layer::new(c, sum, sum.axis(-1)?, c.input(5), true, [None, None], 1e-12)?;
    Ok(Embedded { layer, words, positions, segments, sum })
}

impl<'g> Embedded<'g> {
    /// Of the table that is input `i`.
    fn table(&self, c: &Call<'g>, i: usize) -> Expr<'g> {
        let table = c.input(i);
        let indices = match (i, self.segments) {
            (2, _) => self.words,
            (3, _) => self.positions,
            (_, Some(segments)) => segments,
            (_, None) => return table.zeros_like(),
        };
        let d = [c.opt_dy(0).map(|_| self.layer.dx()), c.opt_dy(2).map(|d| d.cast_like(self.sum))];
        // One row of positions may serve the whole batch.
        let d = sum_of(self.sum, d).unbroadcast(table.gather(indices, 0)).cast_like(table);
        table.ungather(indices, d, 0)
    }
}

// ---------------------------------------------------------------- in groups of channels, in instances

/// A vector over the channels as a factor of x.
fn per_channel<'g>(v: Expr<'g>, x: Expr<'g>) -> Result<Expr<'g>> {
    let spread: Vec<usize> = (1..x.rank()?.saturating_sub(1)).collect();
    Ok(v.cast_like(x).unsqueeze(&spread))
}

/// A tensor as `[N, groups, ...]`, its statistics along the last axis.
fn grouped<'g>(c: &Call<'g>, e: Expr<'g>) -> Result<Expr<'g>> {
    let groups = c.int("num_groups", 0);
    ensure!(groups > 0, "num_groups = {groups} is not positive");
    Ok(e.reshape_to(&[0, groups, -1]))
}

fn group_normalized<'g>(c: &Call<'g>) -> Result<Normalized<'g>> {
    let x = grouped(c, c.x().widened())?;
    Ok(Normalized::new(x, vec![2], c.float("epsilon", 1e-5), None, None))
}

fn group_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy().widened());
    let d = grouped(c, dy * per_channel(c.input(1), dy)?)?;
    Ok(group_normalized(c)?.dx(d).reshape_like(x).cast_like(x))
}

/// Of scale and bias of each channel.
fn group_parameter<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let (parameter, dy) = (c.input(i), c.dy().widened());
    let product = if i == 1 { dy * group_normalized(c)?.x_hat.reshape_like(dy) } else { dy };
    Ok(over_channels(product).cast_like(parameter))
}

fn group_x_by_groups<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), grouped(c, c.dy().widened())?);
    let d = dy * per_channel(c.input(1), dy)?;
    Ok(group_normalized(c)?.dx(d).reshape_like(x).cast_like(x))
}

/// Of scale and bias of each group.
fn group_parameter_by_groups<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let (parameter, dy) = (c.input(i), grouped(c, c.dy().widened())?);
    let product = if i == 1 { dy * group_normalized(c)?.x_hat } else { dy };
    Ok(over_channels(product).cast_like(parameter))
}

/// The sum over all axes but the one of the channels.
fn over_channels(e: Expr<'_>) -> Expr<'_> {
    e.sum_to_axis(1)
}

/// Of ONNX Runtime's own: the channels are the last axis or the second, SiLU may follow, and the inputs from the third on are
/// added to x first.
fn group_norm<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let (x, input, last) = (c.x(), c.input(i), c.flag("channels_last", true));
    ensure!(x.rank()? == 4, "{x} has not 4 axes");
    ensure!(last || c.opt(3).is_none(), "skip is known with the channels as the last axis only");
    let image = |e: Expr<'g>| if last { e.transpose(&[0, 3, 1, 2]) } else { e };
    // [N, C] stands for [N, 1, 1, C].
    let flat = |e: Expr<'g>| e.rank().is_ok_and(|rank| rank == 2);
    let over_places = |e: Expr<'g>| if flat(e) { e.unsqueeze(&[1, 2]) } else { e };
    let computed =
        || [c.opt(3).map(over_places), c.opt(4)].into_iter().flatten().fold(x.widened(), |sum, e| sum + e.widened());
    let sum = image(c.output(1).map_or_else(computed, Expr::widened));
    let groups = c.int("groups", 0);
    ensure!(groups > 0, "groups = {groups} is not positive");
    let grouped = |e: Expr<'g>| e.reshape_to(&[0, groups, -1]);
    let n = Normalized::new(grouped(sum), vec![2], c.float("epsilon", 1e-5), None, None);
    let x_hat = n.x_hat.reshape_like(sum);
    let scale = per_channel(c.input(1), sum)?;
    let dy = c.opt_dy(0).map(|dy| image(dy.widened()));
    let d = match c.int("activation", 0) {
        0 => dy,
        1 => {
            let z = x_hat * scale + per_channel(c.input(2), sum)?;
            let s = z.sigmoid();
            dy.map(|dy| dy * swish_slope(z * s, s, 1.0))
        }
        other => bail!("activation = {other} is neither 0 nor 1"),
    };
    if i == 1 || i == 2 {
        let Some(d) = d else { return Ok(input.zeros_like()) };
        return Ok(over_channels(if i == 1 { d * x_hat } else { d }).cast_like(input));
    }
    let back = |e: Expr<'g>| if last { e.transpose(&[0, 2, 3, 1]) } else { e };
    let dx = d.map(|d| back(n.dx(grouped(d * scale)).reshape_like(sum)));
    let dx = sum_of(x.widened(), [dx, c.opt_dy(1).map(Expr::widened)]);
    let dx = if i == 3 && flat(input) { dx.sum_out(&[1, 2]) } else { dx };
    Ok(reduced(dx, input))
}

fn instance_normalized<'g>(c: &Call<'g>) -> Result<Normalized<'g>> {
    let x = c.x().widened();
    Ok(Normalized::new(x, (2..x.rank()?).collect(), c.float("epsilon", 1e-5), None, None))
}

fn instance_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy().widened());
    Ok(instance_normalized(c)?.dx(dy * per_channel(c.input(1), dy)?).cast_like(x))
}

/// Of scale and bias.
fn instance_parameter<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let (parameter, dy) = (c.input(i), c.dy().widened());
    let product = if i == 1 { dy * instance_normalized(c)?.x_hat } else { dy };
    Ok(over_channels(product).cast_like(parameter))
}

// ---------------------------------------------------------------- without parameters

fn lp<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy, axis) = (c.x().widened(), c.y().widened(), c.dy().widened(), c.axis(-1)?);
    let (size, direction): (fn(Expr<'g>) -> Expr<'g>, _) = match c.int("p", 2) {
        1 => (Expr::abs, x.sign()),
        2 => (Expr::square, y),
        p => bail!("p = {p} is neither 1 nor 2"),
    };
    // Of zeros the norm is taken as 1, for gradients of gradients that are numbers, and nothing passes.
    let sum = size(x).sum(&[axis]);
    let passes = sum.greater(sum.like(0.0));
    let sum = passes.select(sum, sum.like(1.0));
    let norm = if c.int("p", 2) == 2 { sum.sqrt() } else { sum };
    let dx = passes.cast_like(x) / norm * (dy - direction * (dy * y).sum(&[axis]));
    Ok(dx.cast_like(c.x()))
}

fn mean_variance<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x().widened(), c.dy().widened());
    let axes = c.ints("axes").unwrap_or_else(|| vec![0, 2, 3]);
    let axes = axes.into_iter().map(|a| x.axis(a)).collect::<Result<Vec<_>>>()?;
    let centered = x - x.mean(&axes);
    let var = centered.square().mean(&axes);
    // Where all are equal, x̂ is 0 whatever it is divided by.
    let varies = var.greater(var.like(0.0));
    let root = varies.select(var, var.like(1.0)).sqrt();
    let std = root * varies.cast_like(root) + 1e-9;
    let share = (dy * centered).mean(&axes) / std;
    Ok(((dy - dy.mean(&axes) - centered / root * share) / std).cast_like(c.x()))
}

// ---------------------------------------------------------------- BatchNormalization

const BATCH: &str = "inference: dx = dy scale r, dscale = Σ dy x̂, db = Σ dy, dmean = -scale r Σ dy, \
     dvar = -½ scale r² Σ dy x̂; training: with d = dy scale, dx = r (d - mean d - x̂ mean(d x̂)), the rest as above";

/// Of one call the parts that the gradients of several inputs are made of.
struct Batch<'g> {
    x: Expr<'g>,
    scale: Expr<'g>,
    /// Without the axes that are summed over: `[C]`.
    inv_std: Expr<'g>,
    x_hat: Expr<'g>,
    axes: Vec<usize>,
    /// The places of the summed axes among those of x, but for the first.
    spread: Vec<usize>,
    training: bool,
}

impl<'g> Batch<'g> {
    fn new(c: &Call<'g>) -> Result<Self> {
        let x = c.x().widened();
        let rank = x.rank()?;
        ensure!(rank >= 2, "the input of rank {rank} has no channels");
        // Old models may have statistics for every place, not only every channel.
        let own = if c.flag("spatial", true) { 2 } else { rank };
        let axes: Vec<usize> = [0].into_iter().chain(own..rank).collect();
        let spread: Vec<usize> = (own - 1..rank - 1).collect();
        let training = c.flag("training_mode", (1..c.output_count()).any(|i| c.output(i).is_some()));
        let wide = |i: usize| Ok::<_, anyhow::Error>(c.input(i).widened().cast_like(x));
        let epsilon = c.float("epsilon", 1e-5);
        let (mean, var) = match training {
            true => {
                let mean = x.mean(&axes);
                (mean.squeeze(&axes), (x - mean).square().mean(&axes).squeeze(&axes))
            }
            false => (wide(3)?, wide(4)?),
        };
        let inv_std = (var + epsilon).sqrt().reciprocal();
        let x_hat = (x - mean.unsqueeze(&spread)) * inv_std.unsqueeze(&spread);
        Ok(Batch { x, scale: wide(1)?, inv_std, x_hat, axes, spread, training })
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

fn batch<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let b = Batch::new(c)?;
    let dy = c.opt_dy(0).map(|dy| dy.widened());
    let momentum = c.float("momentum", 0.9);
    // Of the running statistic that a training step puts out.
    let running = |output: usize| c.opt_dy(output).map(|d| d.widened().cast_like(b.x));
    let zeros = || c.input(i).widened().zeros_like();
    let own = |factor: Expr<'g>| dy.map(|dy| b.total(dy * factor));
    let d = match (i, b.training) {
        (0, false) => dy.map(|dy| dy * b.spread(b.scale * b.inv_std)),
        (0, true) => Some(batch_training(c, &b, dy)),
        (1, _) => own(b.x_hat),
        (2, _) => dy.map(|dy| b.total(dy)),
        (3, false) => dy.map(|dy| -(b.total(dy) * b.scale * b.inv_std)),
        (4, false) => own(b.x_hat).map(|s| s * b.scale * b.inv_std.square() * -0.5),
        (3 | 4, true) => running(i - 2).map(|d| d * momentum),
        _ => None,
    };
    Ok(d.unwrap_or_else(zeros).cast_like(c.input(i)))
}

/// Of the batch that the statistics are of: the running ones are `momentum` parts old and the rest new, the saved ones of old
/// versions all new.
fn batch_training<'g>(c: &Call<'g>, b: &Batch<'g>, dy: Option<Expr<'g>>) -> Expr<'g> {
    let new = 1.0 - c.float("momentum", 0.9);
    let arrived = |outputs: [(usize, f64); 2]| {
        let terms = outputs.map(|(i, share)| c.opt_dy(i).map(|d| d.widened().cast_like(b.x) * share));
        terms.into_iter().flatten().reduce(|a, b| a + b)
    };
    let mut terms = Vec::new();
    if let Some(dy) = dy {
        let n = Normalized { x_hat: b.x_hat, scale: b.spread(b.inv_std), axes: b.axes.clone(), centered: true };
        terms.push(Some(n.dx(dy * b.spread(b.scale))));
    }
    let count = b.x.count(&b.axes, b.x);
    if let Some(dm) = arrived([(1, new), (3, 1.0)]) {
        terms.push(Some(b.spread(dm / count).expand_like(b.x)));
    }
    if let Some(dv) = arrived([(2, new), (4, 1.0)]) {
        terms.push(Some(b.spread(2.0 * dv / count / b.inv_std) * b.x_hat));
    }
    sum_of(b.x, terms)
}
