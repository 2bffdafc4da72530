//! Convolutions, forward and transposed.

use super::Slot::*;
use super::window::Window;
use super::window::facts::{self, convolution};
use super::{Call, Rule, activation, rule};
use crate::expr::{ConvLike, Expr};
use crate::graph::Fact;
use crate::graph::facts::{Known, at, tensor};
use anyhow::{Context, Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "Conv",
        "dx = ConvTranspose(dy, w), dw = Σ over windows of dy times what they see, db = Σ dy",
        &[Try(|c| conv_x(c, c.dy())), Try(|c| conv_w(c, c.dy())), Formula(|c| bias(c.dy()))],
    )
    .facts(|c| convolution(c, 0, 1, c.element(0).or(c.element(1))))
    .attributes("auto_pad dilations group kernel_shape pads strides")
    .convolves()
    .linear(2)
    .added(2)
    .contracts()
    .weights(&[1, 2])
    .layer(),
    rule(
        "FusedConv",
        "with d = dy act'(x * w + b + z), read from y: those of Conv with d in place of dy, and dz = d",
        &[Try(|c| conv_x(c, inner(c))), Try(|c| conv_w(c, inner(c))), Formula(|c| bias(inner(c))), Formula(inner)],
    )
    .facts(|c| convolution(c, 0, 1, c.element(0).or(c.element(1))))
    .attributes("activation activation_params auto_pad dilations group kernel_shape pads strides")
    .convolves()
    .weights(&[1, 2])
    .layer()
    .domain("com.microsoft")
    .note("at the bounds of Clip 0, elsewhere as the activation has it on its own"),
    rule(
        "ConvTranspose",
        "dx = Conv(dy, w), dw = Σ over windows of x times what they see of dy, db = Σ dy",
        &[Try(transposed_x), Try(transposed_w), Formula(|c| bias(c.dy()))],
    )
    .facts(facts::transposed)
    .attributes("auto_pad dilations group kernel_shape output_padding output_shape pads strides")
    .convolves()
    .linear(2)
    .added(2)
    .contracts()
    .weights(&[1, 2])
    .layer(),
    rule("CausalConvWithState", "through the convolution of past state and input", &[Through(causal)])
        .facts(causal_convolution)
        .ranks(&[Some(3), Some(3), Some(1), Some(3)])
        .attributes("activation")
        .weights(&[1, 2])
        .layer(),
    rule("NhwcConv", "those of Conv, the channels of x, w and y being their last axis", &[Through(channels_last)])
        .facts(channels_last_facts)
        .attributes("auto_pad dilations group kernel_shape pads strides")
        .weights(&[1, 2])
        .layer()
        .domain("com.microsoft"),
    rule("Col2Im", "dx = the blocks of dy", &[Try(blocks), Stop("shapes")])
        .facts(facts::col2im)
        .attributes("dilations pads strides"),
];

fn group(c: &Call<'_>) -> Result<i64> {
    let group = c.int("group", 1);
    ensure!(group > 0, "group = {group} is not positive");
    Ok(group)
}

/// What arrives before the activation.
fn inner<'g>(c: &Call<'g>) -> Expr<'g> {
    let parameters = c.floats("activation_params").unwrap_or_default();
    activation::before(&c.string("activation", ""), &parameters, c.y(), c.dy())
}

fn conv_x<'g>(c: &Call<'g>, dy: Expr<'g>) -> Result<Expr<'g>> {
    let (x, w) = (c.x(), c.input(1));
    let (window, group) = (Window::of(c, x, c.y(), Some(w))?, group(c)?);
    let (dy, scale) = unscaled(dy, w);
    let w = scale.map_or(w, |scale| w * scale);
    if group == 1 && window.is_pointwise() {
        let axes: Vec<usize> = (2..w.rank()?).collect();
        let matrix = w.squeeze(&axes);
        if axes.iter().all(|&a| dy.known_dim(a) == Some(1)) {
            return Ok(dy.squeeze(&axes).matmul(matrix).reshape_like(x));
        }
        return Ok(matrix.transposed().matmul(dy.reshape_to(&[0, 0, -1])).reshape_like(x));
    }
    Ok(window.spread(dy, w, group))
}

fn conv_w<'g>(c: &Call<'g>, dy: Expr<'g>) -> Result<Expr<'g>> {
    let (x, w) = (c.x(), c.input(1));
    let (dy, scale) = unscaled(dy, w);
    let dw = Window::of(c, x, c.y(), Some(w))?.weights(x, dy, w, group(c)?);
    Ok(scale.map_or(dw, |scale| dw * scale))
}

/// What the pass has multiplied by a factor for each channel, as BatchNormalization behind a convolution does, and that
/// factor as one of the weights' rows: where there are more windows than weights, the weights are multiplied instead.
fn unscaled<'g>(dy: Expr<'g>, w: Expr<'g>) -> (Expr<'g>, Option<Expr<'g>>) {
    let more = || Some(dy.fact().element_count()? > w.fact().element_count()?);
    match dy.channel_factor().filter(|_| more() == Some(true)) {
        Some((rest, factor)) => {
            let rows = |rank: usize| factor.unsqueeze(&(1..rank).collect::<Vec<_>>());
            (rest, Some(factor.builder().attempt(|| Ok(rows(w.rank()?)))))
        }
        None => (dy, None),
    }
}

/// One number a channel.
fn bias(dy: Expr<'_>) -> Expr<'_> {
    dy.sum_to_axis(1)
}

fn transposed_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let w = c.input(1);
    Ok(Window::of(c, c.y(), c.x(), Some(w))?.correlate(c.dy(), w, group(c)?))
}

fn transposed_w<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, w) = (c.x(), c.input(1));
    Ok(Window::of(c, c.y(), x, Some(w))?.weights(c.dy(), x, w, group(c)?))
}

fn causal<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (x, w, b) = (c.x(), c.input(1), c.builder());
    let (channels, taps) = (w.number_along(0)?, w.number_along(2)?);
    ensure!(channels > 0 && taps > 0, "the weights are empty");
    let past = match c.opt(3) {
        Some(past) => past,
        None => b.full(Expr::concat(&[x.dims([0, 1]), b.ints(&[taps - 1])], 0), 0.0, x.element()?),
    };
    let seen = Expr::concat(&[past, x], 2);
    let depthwise =
        ConvLike { kernel: vec![taps], strides: vec![1], dilations: vec![1], pads: vec![0, 0], group: channels };
    let mut y = seen.conv(w, &depthwise);
    if let Some(bias) = c.opt(2) {
        y = y + bias.unsqueeze(&[1]);
    }
    let activation = c.string("activation", "none");
    c.ensure_known("activation", &activation, &["none", "silu", "swish"]);
    if activation != "none" {
        y = y * y.sigmoid();
    }
    let state = match taps {
        1 => past,
        _ => seen.narrow(2, 1 - taps, i64::MAX),
    };
    Ok(vec![Some(y), c.output(1).map(|_| state)])
}

/// The order of axes that brings the last one behind the first, and the one that takes it back.
fn channels_to_front(rank: usize) -> (Vec<usize>, Vec<usize>) {
    let last = rank.saturating_sub(1);
    let front = [0, last].into_iter().chain(1..last).collect();
    (front, std::iter::once(0).chain(2..rank).chain([1]).collect())
}

fn channels_last<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (x, w) = (c.x(), c.input(1));
    let rank = x.rank()?;
    ensure!(rank > 2, "an image of {rank} axes");
    let (front, back) = channels_to_front(rank);
    let attributes = c.attributes(&["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]);
    let y = x.transpose(&front).conv_of(w.transpose(&front), attributes).transpose(&back);
    Ok(vec![Some(c.opt(2).map_or(y, |bias| y + bias))])
}

fn blocks<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy, block) = (c.x(), c.dy(), c.input(2));
    let Some(known) = block.ints() else { return computed_blocks(c, block) };
    let taps = Window::blocks(c, dy, known)?.slices(dy, None)?;
    let taps: Vec<Expr<'g>> = taps.into_iter().map(|t| t.unsqueeze(&[2])).collect();
    Ok(Expr::concat(&taps, 2).reshape_like(x))
}

/// Blocks of a shape that only the run tells: the places of all their elements, looked up.
fn computed_blocks<'g>(c: &Call<'g>, block: Expr<'g>) -> Result<Expr<'g>> {
    let (x, dy, b) = (c.x(), c.dy(), c.builder());
    let axes = dy.rank()?.checked_sub(2).filter(|&n| n > 0).context("an image needs batch, channels, and axes")?;
    let window = Window::blocks(c, dy, vec![1; axes])?;
    let image = window.padded(dy, None);
    let mut place: Option<Expr<'g>> = None;
    for axis in 0..axes {
        let (size, taps) = (image.dim(axis + 2), block.gather(b.int(axis as i64), 0));
        let (stride, dilation) = window.steps(axis);
        let count = (size - (taps - 1) * dilation - 1) / stride + 1;
        let lay = |at: usize| (0..2 * axes).map(|a| if a == at { -1 } else { 1 }).collect::<Vec<i64>>();
        let taps = (b.range(taps) * dilation).reshape_to(&lay(axis));
        let here = taps + (b.range(count) * stride).reshape_to(&lay(axes + axis));
        place = Some(place.map_or(here, |outer| outer * size + here));
    }
    let place = place.context("an image without axes")?;
    Ok(image.reshape_to(&[0, 0, -1]).gather(place.flattened(), 2).reshape_like(x))
}

/// The state holds as many steps as the kernel reaches back.
fn causal_convolution(c: &Known) -> Result<Vec<Fact>> {
    let reach = c.dims().sub(at(c, c.shape(1), 2), 1.into());
    let state = vec![at(c, c.shape(0), 0), at(c, c.shape(0), 1), reach];
    Ok(vec![c.like(0), tensor(c.element(0), Some(state))])
}

/// The facts of NhwcFusedConv and its like: those of a convolution whose channels come first, the channels put last.
fn channels_last_facts(c: &Known) -> Result<Vec<Fact>> {
    let ordered = |fact: &Fact, front: bool| {
        let shape = fact.shape.as_deref().map(|shape| {
            let (to_front, back) = channels_to_front(shape.len());
            let order = if front { to_front } else { back };
            order.into_iter().filter_map(|axis| shape.get(axis).copied()).collect()
        });
        Fact { value: None, ..Fact::tensor(fact.element, shape) }
    };
    let [x, w] = [0, 1].map(|i| c.input(i).map(|fact| ordered(fact, true)));
    let inputs = [x.as_ref(), w.as_ref()];
    let y = convolution(&Known { op: c.op, inputs: &inputs }, 0, 1, c.element(0).or(c.element(1)))?;
    Ok(y.iter().map(|fact| ordered(fact, false)).collect())
}
