//! Facts of changes of size and of sampled images.

use crate::graph::facts::{Known, Parameter, tensor, with_axis};
use crate::graph::{Dim, Dims, Fact};
use crate::rules::window::facts::{image, same_axes};
use anyhow::{Result, ensure};

pub fn grid_sample(c: &Known) -> Result<Vec<Fact>> {
    if let Some((_, _, sizes)) = image(c, 0)? {
        same_axes(c, sizes, c.rank(1).map(|rank| rank.saturating_sub(2)))?;
    }
    let shape = match (image(c, 0)?, c.shape(1)) {
        (Some((batch, channels, _)), Some([_, sizes @ .., _])) => Some([&[batch, channels], sizes].concat()),
        (Some((batch, channels, sizes)), _) => Some([&[batch, channels][..], &c.fresh(sizes.len())].concat()),
        (None, Some(grid)) => Some(c.fresh(grid.len())),
        (None, None) => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

/// The size is that of the image to be sampled: `[N, C, H, W]` or `[N, C, D, H, W]`.
pub fn affine_grid(c: &Known) -> Result<Vec<Fact>> {
    let sizes = match c.sizes(1, "size") {
        Parameter::Known(sizes) => Some(sizes),
        Parameter::Unknown(rank) => rank.map(|rank| c.fresh(rank)),
        Parameter::Absent => None,
    };
    let shape = sizes.as_deref().and_then(|sizes| match sizes {
        [batch, _, sizes @ ..] => Some([&[*batch], sizes, &[Dim::Known(sizes.len() as i64)]].concat()),
        _ => None,
    });
    Ok(vec![tensor(c.element(0), shape)])
}

/// `⌊size · scale⌋`
fn scaled(dims: &Dims, size: Dim, scale: f64) -> Dim {
    match size {
        Dim::Known(size) => {
            // Runtimes multiply in 32 bits or in 64.
            let (narrow, wide) = ((size as f32 * scale as f32).floor() as i64, (size as f64 * scale).floor() as i64);
            if narrow == wide && wide >= 0 { Dim::Known(wide) } else { dims.fresh() }
        }
        Dim::Symbol(_) => {
            let denominator = (0..=10).map(|bits| 1i64 << bits).find(|&d| (scale * d as f64).fract() == 0.0);
            match denominator {
                Some(d) if scale > 0.0 && scale < 1e6 => {
                    dims.floor_div(dims.mul(size, ((scale * d as f64) as i64).into()), d.into())
                }
                _ => dims.fresh(),
            }
        }
    }
}

/// The scales are an attribute before version 9, an input since.
pub fn upsample(c: &Known) -> Result<Vec<Fact>> {
    let scales = c.floats("scales").or_else(|| c.input(1).and_then(Fact::floats));
    Ok(vec![tensor(c.element(0), c.shape(0).map(|shape| rescaled(c, shape, None, scales)))])
}

pub fn rescaled(c: &Known, shape: &[Dim], axes: Option<&[usize]>, scales: Option<Vec<f64>>) -> Vec<Dim> {
    let Some(scales) = scales.filter(|s| s.len() == axes.map_or(shape.len(), <[usize]>::len)) else {
        return c.fresh(shape.len());
    };
    let mut result = shape.to_vec();
    for (i, scale) in scales.into_iter().enumerate() {
        let axis = axes.map_or(Some(i), |axes| axes.get(i).copied());
        if let Some(dim) = axis.and_then(|axis| result.get_mut(axis)) {
            *dim = scaled(c.dims(), *dim, scale);
        }
    }
    result
}

/// Inputs are `X, scales` in version 10 and `X, roi, scales, sizes` since; an empty list counts as absent.
pub fn resize(c: &Known) -> Result<Vec<Fact>> {
    let element = c.element(0);
    let listed = |i: usize| c.input(i).filter(|f| f.shape.as_deref() != Some(&[Dim::Known(0)]));
    let (scales, sizes) = if c.op.version < 11 { (listed(1), None) } else { (listed(2), listed(3)) };
    // Without axes there is a number for each.
    let count = |f: &Fact| f.known_shape()?.first().and_then(|&n| usize::try_from(n).ok().filter(|n| *n < 64));
    let rank = sizes.or(scales).and_then(count).filter(|_| c.ints("axes").is_none());
    let Some(shape) = c.shape(0) else { return Ok(vec![tensor(element, rank.map(|rank| c.fresh(rank)))]) };
    ensure!(
        rank.is_none_or(|rank| rank == shape.len()),
        "{} scales or sizes do not fit a tensor of shape {}",
        rank.unwrap_or_default(),
        c.dims().display(shape)
    );
    let axes = c.ints("axes").map(|axes| crate::graph::facts::axes(axes, shape.len())).transpose()?;
    let result = match (scales, sizes) {
        (_, Some(sizes)) => resized(c, shape, axes.as_deref(), sizes),
        (Some(_), None) if c.string("coordinate_transformation_mode") == Some("tf_crop_and_resize") => None,
        (Some(scales), None) => Some(rescaled(c, shape, axes.as_deref(), scales.floats())),
        (None, None) => None,
    };
    Ok(vec![tensor(element, Some(result.unwrap_or_else(|| c.fresh(shape.len()))))])
}

pub fn resized(c: &Known, shape: &[Dim], axes: Option<&[usize]>, sizes: &Fact) -> Option<Vec<Dim>> {
    let sizes = sizes.dims()?;
    let all: Vec<usize> = (0..shape.len()).collect();
    let axes = axes.unwrap_or(&all);
    if axes.len() != sizes.len() {
        return None;
    }
    let policy = c.string("keep_aspect_ratio_policy").unwrap_or("stretch");
    if policy == "stretch" {
        return Some(axes.iter().zip(&sizes).fold(shape.to_vec(), |s, (&axis, &size)| with_axis(&s, axis, size)));
    }
    let from: Vec<i64> = axes.iter().map(|&a| shape.get(a)?.known().filter(|&n| n > 0)).collect::<Option<_>>()?;
    let ratios =
        from.iter().zip(&sizes).map(|(&from, size)| Some((size.known()?, from))).collect::<Option<Vec<_>>>()?;
    let larger = |a: (i64, i64), b: (i64, i64)| i128::from(a.0) * i128::from(b.1) > i128::from(b.0) * i128::from(a.1);
    let smallest = policy == "not_larger";
    let scale = ratios.into_iter().reduce(|a, b| if larger(a, b) == smallest { b } else { a })?;
    let mut result = shape.to_vec();
    for (&axis, &from) in axes.iter().zip(&from) {
        // Halves are rounded up.
        let doubled = i128::from(scale.0) * i128::from(from) * 2 + i128::from(scale.1);
        *result.get_mut(axis)? = Dim::Known(i64::try_from(doubled.div_euclid(i128::from(scale.1) * 2)).ok()?);
    }
    Some(result)
}
