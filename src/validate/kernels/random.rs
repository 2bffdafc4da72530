//! Operators that draw numbers: the same ones in every run, different ones for every node, so that a function of them
//! can be compared with itself.

use super::{Array, Call, Element, Row, row};
use crate::onnx::ElementType;
use crate::validate::edit::BEFORE;
use anyhow::{Context, Result};

pub const ROWS: &[Row] = &[
    row("BiasDropout", bias_dropout).domain("com.microsoft"),
    row("Bernoulli", |c| {
        let mut random = generator(c);
        Ok(vec![c.x()?.map_with(|p| f64::from(random.f64() < p)).of(c.element("dtype", Element::Like(0)))])
    }),
    row("Dropout", dropout),
    row("RandomNormal", |c| drawn(c, normal)),
    row("RandomNormalLike", |c| drawn(c, normal)),
    row("RandomUniform", |c| drawn(c, uniform)),
    row("RandomUniformLike", |c| drawn(c, uniform)),
];

/// Seeded by the name of the first output.
fn generator(c: &Call) -> fastrand::Rng {
    let name = c.node.output.first().map_or("", String::as_str);
    let name = name.strip_suffix(BEFORE).unwrap_or(name);
    fastrand::Rng::with_seed(
        name.bytes().fold(1469598103934665603, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(1099511628211)),
    )
}

/// By Box and Muller.
fn normal(c: &Call, random: &mut fastrand::Rng) -> f64 {
    let (radius, angle) = ((-2.0 * (1.0 - random.f64()).ln()).sqrt(), 2.0 * std::f64::consts::PI * random.f64());
    c.float("mean", 0.0) + c.float("scale", 1.0) * radius * angle.cos()
}

fn uniform(c: &Call, random: &mut fastrand::Rng) -> f64 {
    let (low, high) = (c.float("low", 0.0), c.float("high", 1.0));
    low + (high - low) * random.f64()
}

fn drawn(c: &Call, draw: fn(&Call, &mut fastrand::Rng) -> f64) -> Result<Vec<Array>> {
    let (dims, element) = match c.opt(0) {
        Some(x) => (x.dims.clone(), Element::Like(0)),
        None => {
            let shape = c.ints("shape").context("no shape")?;
            (shape.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>()?, Element::Is(ElementType::Float))
        }
    };
    let mut random = generator(c);
    Ok(vec![Array::from_fn(&dims, |_| draw(c, &mut random))?.of(c.element("dtype", element))])
}

/// Its mask is the second output. Before opset 12 nothing is dropped.
fn dropout(c: &Call) -> Result<Vec<Array>> {
    dropped(c, c.x()?, 1, 2)
}

/// Drops out x + bias, and adds a residual to what is left.
fn bias_dropout(c: &Call) -> Result<Vec<Array>> {
    let (x, bias) = (c.x()?, c.input(1)?);
    let mut outputs = dropped(c, &Array::from_fn(&x.dims, |i| x.at(i) + bias.broadcast_at(i))?, 3, 4)?;
    if let (Some(residual), Some(y)) = (c.opt(2), outputs.first_mut()) {
        *y = Array::from_fn(&x.dims, |i| y.at(i) + residual.broadcast_at(i))?;
    }
    Ok(outputs)
}

fn dropped(c: &Call, x: &Array, ratio: usize, training: usize) -> Result<Vec<Array>> {
    let number = |i: usize| c.opt(i).and_then(|t| t.values.first().copied());
    let ratio = number(ratio).unwrap_or(0.5);
    let mask = match number(training) {
        Some(training) if training != 0.0 && ratio != 0.0 => {
            let mut random = generator(c);
            x.map_with(|_| f64::from(random.f64() >= ratio))
        }
        _ => return Ok(vec![x.clone(), x.map(|_| 1.0).of(Element::Is(ElementType::Bool))]),
    };
    let kept = Array::from_fn(&x.dims, |index| x.at(index) * mask.at(index) / (1.0 - ratio))?;
    Ok(vec![kept, mask.of(Element::Is(ElementType::Bool))])
}
