//! Facts of Fourier transforms.

use crate::graph::facts::with_axis;
use crate::graph::facts::{Known, axis, tensor};
use crate::graph::{Dim, Fact};
use anyhow::Result;

/// The last axis holds real and imaginary part. The axis of the transform is an attribute before version 20, an input
/// since.
pub fn dft(c: &Known) -> Result<Vec<Fact>> {
    let (element, dims) = (c.element(0), c.dims());
    let Some(shape) = c.shape(0).filter(|s| !s.is_empty()) else { return Ok(vec![tensor(element, None)]) };
    let last = shape.len() - 1;
    let at = match (c.op.version < 20, c.input(2)) {
        (true, _) => Some(c.axis("axis", 1, shape.len())?),
        (false, None) => Some(axis(-2, shape.len())?),
        (false, Some(_)) => c.scalar(2).and_then(Dim::known).map(|given| axis(given, shape.len())).transpose()?,
    };
    let (onesided, inverse) = (c.flag("onesided"), c.flag("inverse"));
    let parts = if onesided && inverse { Dim::Known(1) } else { Dim::Known(2) };
    let Some(at) = at else {
        return Ok(vec![tensor(element, Some(with_axis(&c.fresh(shape.len()), last, parts)))]);
    };
    let given = c.input(1).map(|_| c.scalar(1).unwrap_or_else(|| dims.fresh()));
    let length = match (given, shape.get(at)) {
        (Some(length), _) => length,
        // Half of a symmetric spectrum leaves two lengths, an even and an odd one: the default is the even one.
        (None, Some(_)) if onesided && inverse => dims.fresh(),
        (None, size) => size.copied().unwrap_or_else(|| dims.fresh()),
    };
    let bins = if onesided && !inverse { half(c, length) } else { length };
    Ok(vec![tensor(element, Some(with_axis(&with_axis(shape, at, bins), last, parts)))])
}

/// The bins of the transform of real numbers: `⌊n / 2⌋ + 1`.
pub fn half(c: &Known, length: Dim) -> Dim {
    c.dims().add(c.dims().floor_div(length, 2.into()), 1.into())
}

pub fn stft(c: &Known) -> Result<Vec<Fact>> {
    let dims = c.dims();
    let window = c.shape(2).and_then(|s| s.first().copied());
    let length = c.scalar(3).or(window).unwrap_or_else(|| dims.fresh());
    let step = c.scalar(1).unwrap_or_else(|| dims.fresh());
    let (batch, signal) = match c.shape(0) {
        Some([batch, signal, ..]) => (*batch, *signal),
        _ => (dims.fresh(), dims.fresh()),
    };
    let frames = dims.add(dims.floor_div(dims.sub(signal, length), step), 1.into());
    let bins = if c.int("onesided", 1) != 0 { half(c, length) } else { length };
    Ok(vec![tensor(c.element(0), Some(vec![batch, frames, bins, 2.into()]))])
}
