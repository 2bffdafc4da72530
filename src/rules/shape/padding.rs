//! Facts of operators that add, cut off or interleave places.

use crate::graph::facts::{self, Known, Parameter, tensor};
use crate::graph::{Dim, Fact, Value};
use anyhow::{Result, bail, ensure};

/// The pads are an attribute before version 11, an input since; first all that come before, then all that come after.
pub fn pad(c: &Known) -> Result<Vec<Fact>> {
    let Some(shape) = c.shape(0) else { return Ok(vec![tensor(c.element(0), None)]) };
    let rank = shape.len();
    let axes = match c.integers(3, "axes") {
        Parameter::Absent => Some((0..rank).collect()),
        Parameter::Known(axes) => Some(facts::axes(&axes, rank)?),
        Parameter::Unknown(_) => None,
    };
    let mut result = shape.to_vec();
    match (axes, c.sizes(1, "pads")) {
        (Some(axes), Parameter::Known(pads)) => {
            ensure!(
                pads.len() == axes.len().saturating_mul(2),
                "{} pads do not fit {} axes of shape {}",
                pads.len(),
                axes.len(),
                c.dims().display(shape)
            );
            let (before, after) = pads.split_at(axes.len());
            for (&axis, (&before, &after)) in axes.iter().zip(before.iter().zip(after)) {
                if let Some(dim) = result.get_mut(axis) {
                    *dim = c.dims().add(*dim, c.dims().add(before, after));
                }
            }
        }
        (Some(axes), _) => {
            for axis in axes {
                if let Some(dim) = result.get_mut(axis) {
                    *dim = c.dims().fresh();
                }
            }
        }
        (None, _) => result = c.fresh(rank),
    }
    Ok(vec![tensor(c.element(0), Some(result))])
}

pub fn center_crop_pad(c: &Known) -> Result<Vec<Fact>> {
    let Some(shape) = c.shape(0) else { return Ok(vec![tensor(c.element(0), None)]) };
    let axes = match c.ints("axes") {
        Some(axes) => facts::axes(axes, shape.len())?,
        None => (0..shape.len()).collect(),
    };
    let sizes = match c.sizes(1, "shape") {
        Parameter::Known(sizes) if sizes.len() == axes.len() => sizes,
        _ => c.fresh(axes.len()),
    };
    let mut result = shape.to_vec();
    for (axis, size) in axes.into_iter().zip(sizes) {
        if let Some(dim) = result.get_mut(axis) {
            *dim = size;
        }
    }
    let value = c.input(0).and_then(|x| x.value.clone()).filter(|v| result == shape && matches!(v, Value::Elements(_)));
    Ok(vec![Fact { value, ..tensor(c.element(0), Some(result)) }])
}

/// Channels become squares of pixels, or the other way.
pub fn blocks(c: &Known, to_space: bool) -> Result<Vec<Fact>> {
    let (dims, size) = (c.dims(), Dim::Known(c.int("blocksize", 1)));
    let shape = match c.shape(0) {
        None => c.fresh(4),
        Some(&[batch, depth, height, width]) => {
            let square = dims.mul(size, size);
            let (up, down) = (|d| dims.mul(d, size), |d| dims.floor_div(d, size));
            if to_space {
                vec![batch, dims.floor_div(depth, square), up(height), up(width)]
            } else {
                vec![batch, dims.mul(depth, square), down(height), down(width)]
            }
        }
        Some(other) => bail!("an image has four dimensions, not shape {}", dims.display(other)),
    };
    Ok(vec![tensor(c.element(0), Some(shape))])
}
