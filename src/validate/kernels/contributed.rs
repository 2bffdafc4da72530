//! Fusions of ONNX Runtime: what several operators of the standard compute, as one.

use super::elementwise::activation;
use super::{Array, Call, Element, Row, row};
use crate::onnx::{ElementType, attribute};
use anyhow::{Result, ensure};

const MICROSOFT: &str = "com.microsoft";

pub const ROWS: &[Row] =
    &[row("EmbedLayerNormalization", embed_layer).domain(MICROSOFT), row("FusedConv", fused_conv).domain(MICROSOFT)];

/// Each place of the result is a sum over the window that it sees; then bias, another tensor, and an activation.
fn fused_conv(c: &Call) -> Result<Vec<Array>> {
    let (x, w) = (c.x()?, c.input(1)?);
    ensure!(x.rank() == w.rank() && x.rank() > 2, "an image and weights");
    ensure!(c.string("auto_pad", "NOTSET") == "NOTSET", "auto_pad");
    let axes = x.rank() - 2;
    let list = |name: &str, length: usize, default: i64| c.ints(name).unwrap_or_else(|| vec![default; length]);
    let (strides, dilations) = (list("strides", axes, 1), list("dilations", axes, 1));
    let pads = list("pads", 2 * axes, 0);
    let groups = usize::try_from(c.int("group", 1))?.max(1);
    let mut dims = vec![x.dim(0), w.dim(0)];
    for a in 0..axes {
        let seen = (w.dim(a + 2) as i64 - 1) * dilations[a] + 1;
        dims.push(usize::try_from((x.dim(a + 2) as i64 + pads[a] + pads[axes + a] - seen) / strides[a] + 1)?);
    }
    let params = attribute::find(&c.node.attribute, "activation_params").map_or(vec![], |p| p.floats.clone());
    let parameter = |i: usize| params.get(i).copied().unwrap_or_default().into();
    let activation = activation(c.string("activation", ""), [parameter(0), parameter(1), parameter(2)])?;
    let own = w.dim(0) / groups;
    let y = Array::from_fn(&dims, |i| {
        let mut sum = c.opt(2).map_or(0.0, |b| b.values[i[1]]) + c.opt(3).map_or(0.0, |z| z.at(i));
        super::each_index(&w.dims[1..], |k| {
            let mut at = vec![i[0] as i64, (i[1] / own * w.dim(1) + k[0]) as i64];
            at.extend((0..axes).map(|a| i[a + 2] as i64 * strides[a] + k[a + 1] as i64 * dilations[a] - pads[a]));
            let weight: Vec<usize> = [i[1]].iter().chain(k).copied().collect();
            sum += w.at(&weight) * x.at_or_zero(&at);
        });
        activation(sum)
    })?;
    Ok(vec![y])
}

/// Words, positions and segments are looked up, added, and normalized along the last axis.
fn embed_layer(c: &Call) -> Result<Vec<Array>> {
    let (words, table, gamma, beta) = (c.x()?, c.input(2)?, c.input(5)?, c.input(6)?);
    let (steps, size) = (words.dim(1), table.dim(1));
    let found = |table: &Array, row: f64, d: usize| table.at_or_zero(&[row as i64, d as i64]);
    let segments = c.opt(1).map(|s| c.input(4).map(|table| (s, table))).transpose()?;
    let positions = c.input(3)?;
    let sum = Array::from_fn(&[words.dim(0), steps, size], |i| {
        let (n, t, d) = (i[0], i[1], i[2]);
        let position = c.opt(8).map_or(t as f64, |p| p.broadcast_at(&[n, t]));
        found(table, words.at(&[n, t]), d)
            + found(positions, position, d)
            + segments.map_or(0.0, |(s, table)| found(table, s.at(&[n, t]), d))
    })?;
    let mut y = sum.clone();
    for chunk in y.values.chunks_exact_mut(size.max(1)) {
        let mean = chunk.iter().sum::<f64>() / size as f64;
        let var = chunk.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / size as f64;
        let scale = 1.0 / (var + c.float("epsilon", 1e-12)).sqrt();
        chunk.iter_mut().enumerate().for_each(|(d, v)| *v = (*v - mean) * scale * gamma.values[d] + beta.values[d]);
    }
    let counts = Array::from_fn(&[words.dim(0)], |i| match c.opt(7) {
        Some(mask) => (0..steps).take_while(|&t| mask.at(&[i[0], t]) != 0.0).count() as f64,
        None => 0.0,
    })?;
    let like = Element::Like(2);
    Ok(vec![y.of(like), counts.of(Element::Is(ElementType::Int32)), sum.of(like)])
}
