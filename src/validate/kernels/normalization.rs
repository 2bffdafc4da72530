//! Normalizations.

use super::{Array, Call, Row, broadcast, row};
use anyhow::{Result, ensure};

const MICROSOFT: &str = "com.microsoft";

pub const ROWS: &[Row] = &[
    row("BatchNormalization", batch),
    row("GroupNormalization", group),
    row("LayerNormalization", |c| layer(c, [c.x()?, c.input(1)?], c.opt(2), true, 1e-5)),
    row("RMSNormalization", rms),
    row("SimplifiedLayerNormalization", rms),
    row("SimplifiedLayerNormalization", rms).domain(MICROSOFT),
    row("SkipLayerNormalization", |c| skip(c, 4, true)).domain(MICROSOFT),
    row("SkipSimplifiedLayerNormalization", |c| skip(c, 3, false)).domain(MICROSOFT),
];

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count();
    values.sum::<f64>() / count as f64
}

/// In training: the statistics are those of the batch, and the running ones move towards them.
fn batch(c: &Call) -> Result<Vec<Array>> {
    ensure!(c.opset >= 14, "BatchNormalization in training before opset 14");
    let (x, scale, b) = (c.x()?, c.input(1)?, c.input(2)?);
    let (epsilon, momentum) = (c.float("epsilon", 1e-5), c.float("momentum", 0.9));
    let (channels, inner) = (x.dim(1), x.dims.iter().skip(2).product::<usize>());
    let mut y = x.clone();
    let (mut running_mean, mut running_var) = (c.input(3)?.clone(), c.input(4)?.clone());
    ensure!([scale, b, &running_mean, &running_var].iter().all(|a| a.values.len() == channels), "one number a channel");
    for k in 0..channels {
        let own = |i: &usize| i / inner.max(1) % channels == k;
        let places: Vec<usize> = (0..x.values.len()).filter(own).collect();
        let mu = mean(places.iter().map(|&i| x.values[i]));
        let var = mean(places.iter().map(|&i| (x.values[i] - mu).powi(2)));
        for i in places {
            y.values[i] = (x.values[i] - mu) / (var + epsilon).sqrt() * scale.values[k] + b.values[k];
        }
        running_mean.values[k] = running_mean.values[k] * momentum + mu * (1.0 - momentum);
        running_var.values[k] = running_var.values[k] * momentum + var * (1.0 - momentum);
    }
    use super::Element::Like;
    Ok(vec![y, running_mean.of(Like(3)), running_var.of(Like(4))])
}

fn group(c: &Call) -> Result<Vec<Array>> {
    let (x, scale, b) = (c.x()?, c.input(1)?, c.input(2)?);
    let groups = usize::try_from(c.int("num_groups", 0)).unwrap_or(0);
    let channels = x.dim(1);
    ensure!(groups > 0 && channels % groups == 0, "{groups} groups of {channels} channels");
    let epsilon = c.float("epsilon", 1e-5);
    let inner: usize = x.dims[2..].iter().product();
    let mut y = x.clone();
    for (g, chunk) in y.values.chunks_exact_mut((channels / groups * inner).max(1)).enumerate() {
        let mu = mean(chunk.iter().copied());
        let var = mean(chunk.iter().map(|v| (v - mu).powi(2)));
        for (i, v) in chunk.iter_mut().enumerate() {
            let (group, channel) = (g % groups, g % groups * (channels / groups) + i / inner.max(1));
            // A scale for each group before opset 21, for each channel from then on.
            let k = if scale.values.len() == channels { channel } else { group };
            *v = (*v - mu) / (var + epsilon).sqrt() * scale.values[k] + b.values[k];
        }
    }
    Ok(vec![y])
}

/// Over the axes from `axis` on; with the statistics.
fn layer(c: &Call, [x, scale]: [&Array; 2], b: Option<&Array>, centered: bool, epsilon: f32) -> Result<Vec<Array>> {
    let axis = c.axis(c.int("axis", -1), x.rank())?;
    let epsilon = c.float("epsilon", epsilon);
    let (outer, inner) = x.dims.split_at(axis);
    let mut kept = outer.to_vec();
    kept.extend(inner.iter().map(|_| 1));
    let (mut means, mut inverses) = (Array::filled(&kept, 0.0)?, Array::filled(&kept, 0.0)?);
    let mut y = x.clone();
    let over_x = |a: &Array| -> Result<Array> {
        ensure!(broadcast(&[&a.dims, &x.dims])? == x.dims, "{:?} is no scale for {:?}", a.dims, x.dims);
        Array::from_fn(&x.dims, |index| a.broadcast_at(index))
    };
    let (scale, b) = (over_x(scale)?, b.map(over_x).transpose()?);
    let size = inner.iter().product::<usize>().max(1);
    for (k, chunk) in y.values.chunks_exact_mut(size).enumerate() {
        let mu = if centered { mean(chunk.iter().copied()) } else { 0.0 };
        let var = mean(chunk.iter().map(|v| (v - mu).powi(2)));
        let inverse = 1.0 / (var + epsilon).sqrt();
        (means.values[k], inverses.values[k]) = (mu, inverse);
        for (i, v) in chunk.iter_mut().enumerate() {
            let at = k * size + i;
            *v = (*v - mu) * inverse * scale.values[at] + b.as_ref().map_or(0.0, |b| b.values[at]);
        }
    }
    Ok(vec![y, means, inverses])
}

fn rms(c: &Call) -> Result<Vec<Array>> {
    let mut outputs = layer(c, [c.x()?, c.input(1)?], None, false, 1e-5)?;
    outputs.remove(1);
    Ok(outputs)
}

/// The normalization of `x + skip + bias`, which is the fourth output. The inputs are x, skip, gamma, for some beta,
/// and bias.
fn skip(c: &Call, bias: usize, centered: bool) -> Result<Vec<Array>> {
    let (x, skip, bias) = (c.x()?, c.input(1)?, c.opt(bias));
    let sum = Array::from_fn(&x.dims, |index| {
        x.at(index) + skip.broadcast_at(index) + bias.map_or(0.0, |b| b.broadcast_at(index))
    })?;
    let beta = if centered { c.opt(3) } else { None };
    let mut outputs = layer(c, [&sum, c.input(2)?], beta, centered, 1e-12)?;
    outputs.push(sum);
    Ok(outputs)
}
