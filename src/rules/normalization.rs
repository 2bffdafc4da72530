//! Normalizations: tensors brought to mean 0 and variance 1, or to length 1, along some of their axes.
//!
//! With n elements in a set, m their mean, r = 1 / √(variance + ε) and x̂ = (x - m) r, the gradient d of x̂ gives
//! dx = r (d - mean d - x̂ mean(d x̂)). Half-precision tensors are normalized in float32, as the operators themselves do.

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "LayerNormalization",
        "with d = dy scale: dx = r (d - mean d - x̂ mean(d x̂)) + (dm - dr r² x̂) / n, dscale = Σ dy x̂, db = Σ dy",
        &[Formula(layer_x), Formula(layer_scale), Formula(layer_bias)],
    )
    .attributes("axis epsilon stash_type"),
    rule("BatchNormalization", BATCH, &[Each(batch)]).attributes("epsilon momentum spatial").since(7).until(13),
    rule("BatchNormalization", BATCH, &[Each(batch)]).attributes("epsilon momentum training_mode").since(14),
];

// ---------------------------------------------------------------- shared

/// x̂ and what its gradient needs.
struct Normalized<'g> {
    x_hat: Expr<'g>,
    inv_std: Expr<'g>,
    axes: Vec<usize>,
}

impl<'g> Normalized<'g> {
    /// Over `axes`, of which mean and inverse standard deviation are known or computed.
    fn new(x: Expr<'g>, axes: Vec<usize>, epsilon: f64, mean: Option<Expr<'g>>, inv_std: Option<Expr<'g>>) -> Self {
        let centered = x - mean.map_or_else(|| x.mean(&axes), |m| m.cast_like(x));
        let inv_std =
            inv_std.map_or_else(|| (centered.square().mean(&axes) + epsilon).sqrt().reciprocal(), |r| r.cast_like(x));
        Normalized { x_hat: centered * inv_std, inv_std, axes }
    }

    /// The gradient of x, from that of x̂.
    fn dx(&self, d: Expr<'g>) -> Expr<'g> {
        self.inv_std * (d - d.mean(&self.axes) - self.x_hat * (d * self.x_hat).mean(&self.axes))
    }
}

// ---------------------------------------------------------------- LayerNormalization

fn layer<'g>(c: &Call<'g>) -> Result<Normalized<'g>> {
    let x = c.x()?.widened();
    let axes = (c.axis(-1)?..x.rank()?).collect();
    Ok(Normalized::new(x, axes, c.float("epsilon", 1e-5), c.output(1), c.output(2)))
}

fn layer_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, n) = (c.x()?.widened(), layer(c)?);
    let mut terms = Vec::new();
    if let Some(dy) = c.opt_dy(0) {
        terms.push(n.dx(dy.widened() * c.input(1)?.widened()));
    }
    let count = x.count(&n.axes);
    if let Some(dm) = c.opt_dy(1) {
        terms.push((dm.cast_like(x) / count).expand_like(x));
    }
    if let Some(dr) = c.opt_dy(2) {
        terms.push(-(dr.cast_like(x) / count * n.inv_std.square()) * n.x_hat);
    }
    Ok(sum_of(x, terms).cast_like(c.x()?))
}

/// The sum of gradients that have arrived; zeros where none has.
fn sum_of<'g>(x: Expr<'g>, terms: Vec<Expr<'g>>) -> Expr<'g> {
    terms.into_iter().reduce(|a, b| a + b).unwrap_or_else(|| x.zeros_like())
}

fn layer_scale<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let scale = c.input(1)?;
    Ok((c.dy()?.widened() * layer(c)?.x_hat).unbroadcast(scale)?.cast_like(scale))
}

fn layer_bias<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let bias = c.input(2)?;
    Ok(c.dy()?.widened().unbroadcast(bias)?.cast_like(bias))
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
        let x = c.x()?.widened();
        let rank = x.rank()?;
        ensure!(rank >= 2, "the input of rank {rank} has no channels");
        // Until opset 8 there may be statistics for every place, not only every channel.
        let own = if c.flag("spatial", true) { 2 } else { rank };
        let axes: Vec<usize> = [0].into_iter().chain(own..rank).collect();
        let spread: Vec<usize> = (own - 1..rank - 1).collect();
        let training = c.flag("training_mode", (1..c.output_count()).any(|i| c.output(i).is_some()));
        let wide = |i: usize| Ok::<_, anyhow::Error>(c.input(i)?.widened().cast_like(x));
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
    let zeros = || c.input(i).map(|e| e.widened().zeros_like());
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
    Ok(d.map_or_else(zeros, Ok)?.cast_like(c.input(i)?))
}

/// Of the batch that the statistics are of: the running ones are `momentum` parts old and the rest new, the saved ones, before
/// opset 14, all new.
fn batch_training<'g>(c: &Call<'g>, b: &Batch<'g>, dy: Option<Expr<'g>>) -> Expr<'g> {
    let new = 1.0 - c.float("momentum", 0.9);
    let arrived = |outputs: [(usize, f64); 2]| {
        let terms = outputs.map(|(i, share)| c.opt_dy(i).map(|d| d.widened().cast_like(b.x) * share));
        terms.into_iter().flatten().reduce(|a, b| a + b)
    };
    let mut terms = Vec::new();
    if let Some(dy) = dy {
        let n = Normalized { x_hat: b.x_hat, inv_std: b.spread(b.inv_std), axes: b.axes.clone() };
        terms.push(n.dx(dy * b.spread(b.scale)));
    }
    let count = b.x.count(&b.axes);
    if let Some(dm) = arrived([(1, new), (3, 1.0)]) {
        terms.push(b.spread(dm / count).expand_like(b.x));
    }
    if let Some(dv) = arrived([(2, new), (4, 1.0)]) {
        terms.push(b.spread(2.0 * dv / count / b.inv_std) * b.x_hat);
    }
    sum_of(b.x, terms)
}
