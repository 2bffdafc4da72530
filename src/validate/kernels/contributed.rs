//! Fusions of ONNX Runtime: what several operators of the standard compute, as one.

use super::elementwise::{activation, gelu, gelu_tanh};
use super::{Array, Call, Element, Row, row};
use crate::onnx::{ElementType, attribute};
use anyhow::{Context, Result, bail, ensure};

const MICROSOFT: &str = "com.microsoft";

pub const ROWS: &[Row] = &[
    row("BiasAdd", bias_add).domain(MICROSOFT),
    row("BiasSoftmax", bias_softmax).domain(MICROSOFT),
    row("BiasSplitGelu", bias_split_gelu).domain(MICROSOFT),
    row("CDist", distances).domain(MICROSOFT),
    row("EmbedLayerNormalization", embed_layer).domain(MICROSOFT),
    row("ExpandDims", expand_dims).domain(MICROSOFT),
    row("FusedConv", fused_conv).domain(MICROSOFT),
    row("GroupNorm", group_norm).domain(MICROSOFT),
    row("Inverse", inverse).domain(MICROSOFT),
    row("MoE", mixture).domain(MICROSOFT),
    row("NhwcConv", channels_last).domain(MICROSOFT),
    row("SkipGroupNorm", group_norm).domain(MICROSOFT),
];

/// Each place of the result is a sum over the window that it sees; then bias, another tensor, and an activation.
fn fused_conv(c: &Call) -> Result<Vec<Array>> {
    let (x, w) = (c.x()?, c.input(1)?);
    ensure!(x.rank() == w.rank() && x.rank() > 2, "an image and weights");
    ensure!(c.string("auto_pad", "NOTSET") == "NOTSET", "auto_pad");
    let (axes, outputs) = (x.rank() - 2, w.dim(0));
    let list = |name: &str, length: usize, default: i64| c.ints(name).unwrap_or_else(|| vec![default; length]);
    let (strides, dilations) = (list("strides", axes, 1), list("dilations", axes, 1));
    let pads = list("pads", 2 * axes, 0);
    let groups = usize::try_from(c.int("group", 1))?.max(1);
    ensure!(outputs.is_multiple_of(groups) && x.dim(1) == groups * w.dim(1), "channels in {groups} groups");
    let lists = strides.len() == axes && dilations.len() == axes && pads.len() == 2 * axes;
    let small = [&strides, &dilations, &pads].iter().all(|list| list.iter().all(|n| (0..1 << 16).contains(n)));
    ensure!(lists && small && !strides.contains(&0), "strides, dilations or pads");
    let mut dims = vec![x.dim(0), outputs];
    for a in 0..axes {
        let seen = (w.dim(a + 2) as i64 - 1) * dilations[a] + 1;
        dims.push(usize::try_from((x.dim(a + 2) as i64 + pads[a] + pads[axes + a] - seen) / strides[a] + 1)?);
    }
    let params = attribute::find(&c.node.attribute, "activation_params").map_or(vec![], |p| p.floats.clone());
    let parameter = |i: usize| params.get(i).copied().unwrap_or_default().into();
    let activation = activation(c.string("activation", ""), [parameter(0), parameter(1), parameter(2)])?;
    ensure!(c.opt(2).is_none_or(|b| b.values.len() == outputs), "one bias a channel");
    ensure!(c.opt(3).is_none_or(|z| z.dims == dims), "what is added has other sizes");
    let own = (outputs / groups).max(1);
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

/// As above without what follows the convolution, of tensors whose channels are their last axis.
fn channels_last(c: &Call) -> Result<Vec<Array>> {
    let (x, w) = (c.x()?, c.input(1)?);
    ensure!(x.rank() == w.rank() && x.rank() > 2, "an image and weights");
    let last = x.rank() - 1;
    let front: Vec<usize> = [0, last].into_iter().chain(1..last).collect();
    let inputs = vec![Some(x.transposed(&front)?), Some(w.transposed(&front)?), c.opt(2).cloned()];
    let call = Call { node: c.node, opset: c.opset, inputs, types: c.types.clone(), body: c.body };
    let back: Vec<usize> = std::iter::once(0).chain(2..=last).chain([1]).collect();
    fused_conv(&call)?.iter().map(|y| y.transposed(&back)).collect()
}

/// Words, positions and segments are looked up, added, and normalized along the last axis.
fn embed_layer(c: &Call) -> Result<Vec<Array>> {
    let (words, table, gamma, beta) = (c.x()?, c.input(2)?, c.input(5)?, c.input(6)?);
    let (steps, size) = (words.dim(1), table.dim(1));
    ensure!(words.rank() == 2 && gamma.values.len() == size && beta.values.len() == size, "sizes");
    ensure!([1, 7].iter().all(|&i| c.opt(i).is_none_or(|a| a.dims == words.dims)), "segments or mask");
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

fn bias_add(c: &Call) -> Result<Vec<Array>> {
    let (x, bias, skip) = (c.x()?, c.input(1)?, c.input(2)?);
    Ok(vec![Array::from_fn(&x.dims, |i| x.at(i) + bias.broadcast_at(i) + skip.broadcast_at(i))?])
}

/// The sum of x and the bias, all axes from the given one on as one: exponentials, divided by their sum.
fn bias_softmax(c: &Call) -> Result<Vec<Array>> {
    let (x, bias) = (c.x()?, c.input(1)?);
    let axis = c.int("axis", 1);
    let axis = usize::try_from(if axis < 0 { axis + x.rank() as i64 } else { axis })?;
    let mut y = Array::from_fn(&x.dims, |i| x.at(i) + bias.broadcast_at(i))?;
    let size: usize = x.dims.iter().skip(axis).product();
    for row in y.values.chunks_exact_mut(size.max(1)) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
        row.iter_mut().for_each(|v| *v = (*v - largest).exp() / sum);
    }
    Ok(vec![y])
}

/// The first half of the channels times Gelu of the second, after a bias.
fn bias_split_gelu(c: &Call) -> Result<Vec<Array>> {
    let (x, bias) = (c.x()?, c.input(1)?);
    ensure!(x.rank() == 3 && bias.values.len() == x.dim(2), "channels and bias");
    let half = x.dim(2) / 2;
    let at = |i: &[usize], d: usize| x.at(&[i[0], i[1], d]) + bias.values[d];
    let y = Array::from_fn(&[x.dim(0), x.dim(1), half], |i| at(i, i[2]) * gelu(at(i, half + i[2])))?;
    Ok(vec![y])
}

/// Between each row of one matrix and each of the other.
fn distances(c: &Call) -> Result<Vec<Array>> {
    let (a, b) = (c.x()?, c.input(1)?);
    ensure!(a.rank() == 2 && b.rank() == 2 && a.dim(1) == b.dim(1), "matrices of equally long rows");
    let root = match c.string("metric", "sqeuclidean") {
        "sqeuclidean" => false,
        "euclidean" => true,
        other => bail!("metric {other}"),
    };
    let y = Array::from_fn(&[a.dim(0), b.dim(0)], |i| {
        let square: f64 = (0..a.dim(1)).map(|d| (a.at(&[i[0], d]) - b.at(&[i[1], d])).powi(2)).sum();
        if root { square.sqrt() } else { square }
    })?;
    Ok(vec![y])
}

fn expand_dims(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    let at = *c.input(1)?.integers().first().context("no axis")?;
    let mut dims = x.dims.clone();
    dims.insert(c.axis(at, x.rank() + 1)?, 1);
    Ok(vec![x.clone().reshaped(&dims)?])
}

/// By elimination, the largest pivot first.
fn inverse(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    let n = *x.dims.last().context("a number has no inverse")?;
    ensure!(x.rank() >= 2 && x.dim(x.rank() - 2) == n, "the matrices are not square");
    let mut y = x.clone();
    for matrix in y.values.chunks_exact_mut((n * n).max(1)) {
        // The matrix, and beside it what the same steps make of the identity.
        let mut rows: Vec<Vec<f64>> = (0..n)
            .map(|i| matrix[i * n..][..n].iter().copied().chain((0..n).map(|j| f64::from(u8::from(i == j)))).collect())
            .collect();
        for k in 0..n {
            let pivot = (k..n).max_by(|&a, &b| rows[a][k].abs().total_cmp(&rows[b][k].abs())).unwrap_or(k);
            rows.swap(k, pivot);
            let scale = 1.0 / rows[k][k];
            rows[k].iter_mut().for_each(|v| *v *= scale);
            let row = rows[k].clone();
            for (_, other) in rows.iter_mut().enumerate().filter(|&(i, _)| i != k) {
                let factor = other[k];
                other.iter_mut().zip(&row).for_each(|(v, r)| *v -= factor * r);
            }
        }
        matrix.iter_mut().enumerate().for_each(|(i, v)| *v = rows[i / n][n + i % n]);
    }
    Ok(vec![y])
}

/// GroupNorm of `x + skip + bias`, which is the second output; channels last or second; SiLU may follow.
fn group_norm(c: &Call) -> Result<Vec<Array>> {
    let (x, gamma, beta) = (c.x()?, c.input(1)?, c.input(2)?);
    let last = c.int("channels_last", 1) != 0;
    ensure!(x.rank() == 4, "an image");
    let axis = if last { 3 } else { 1 };
    let (channels, groups) = (x.dim(axis), usize::try_from(c.int("groups", 0))?);
    ensure!(groups > 0 && channels % groups == 0, "{groups} groups of {channels} channels");
    let each = |a: &Array| a.values.len() == channels;
    ensure!(each(gamma) && each(beta) && c.opt(4).is_none_or(each), "one number a channel");
    ensure!(c.opt(3).is_none_or(|s| last && (s.rank() == 4 || s.dims == [x.dim(0), channels])), "skip");
    let skip = |i: &[usize]| match c.opt(3) {
        Some(skip) if skip.rank() == 2 => skip.at(&[i[0], i[3]]),
        Some(skip) => skip.broadcast_at(i),
        None => 0.0,
    };
    let sum = Array::from_fn(&x.dims, |i| x.at(i) + skip(i) + c.opt(4).map_or(0.0, |b| b.values[i[axis]]))?;
    let size = channels / groups;
    let group = |i: &[usize]| i[0] * groups + i[axis] / size;
    let mut members = vec![Vec::new(); x.dim(0) * groups];
    super::each_index(&x.dims, |i| members[group(i)].push(sum.at(i)));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let statistics = members.iter().map(|m| {
        let mu = mean(m);
        (mu, mean(&m.iter().map(|v| (v - mu).powi(2)).collect::<Vec<_>>()))
    });
    let statistics: Vec<(f64, f64)> = statistics.collect();
    let silu = c.int("activation", 0) == 1;
    let y = Array::from_fn(&x.dims, |i| {
        let (mu, var) = statistics[group(i)];
        let x_hat = (sum.at(i) - mu) / (var + c.float("epsilon", 1e-5)).sqrt();
        let z = x_hat * gamma.values[i[axis]] + beta.values[i[axis]];
        if silu { z / (1.0 + (-z).exp()) } else { z }
    })?;
    Ok(vec![y, sum])
}

/// Each row goes through the k experts that its router has the largest probabilities for.
fn mixture(c: &Call) -> Result<Vec<Array>> {
    let (x, router, up, down) = (c.x()?, c.input(1)?, c.input(2)?, c.input(4)?);
    ensure!(up.rank() == 3 && down.rank() == 3 && router.rank() == 2 && c.opt(6).is_none(), "two layers of experts");
    let (size, wide, inner, experts) = (up.dim(2), up.dim(1), down.dim(2), up.dim(0));
    let kind = c.string("activation_type", "relu");
    let gated = kind == "swiglu";
    let rows = x.values.len() / size.max(1);
    ensure!(router.dims == [rows, experts] && down.dims == [experts, size, inner], "sizes");
    ensure!(wide == if gated { 2 * inner } else { inner }, "sizes of the layers");
    let biased = |bias: Option<&Array>, e: usize, i: usize| bias.map_or(0.0, |b| b.broadcast_at(&[e, i]));
    let limit = attribute::get_float(&c.node.attribute, "swiglu_limit").map_or(f64::INFINITY, f64::from);
    let (alpha, beta) = (c.float("activation_alpha", 1.0), c.float("activation_beta", 0.0));
    let activated = |h: &[f64], i: usize| -> Result<f64> {
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        Ok(match kind {
            "identity" => h[i],
            "relu" => h[i].max(0.0),
            "silu" => h[i] * sigmoid(h[i]),
            "gelu" => gelu_tanh(h[i]),
            "swiglu" => {
                let together = c.int("swiglu_fusion", 0) == 1;
                let (gate, linear) = if together { (h[2 * i], h[2 * i + 1]) } else { (h[i], h[inner + i]) };
                let gate = gate.min(limit);
                gate * sigmoid(alpha * gate) * (linear.max(-limit).min(limit) + beta)
            }
            other => bail!("activation {other}"),
        })
    };
    let mut y = Array::filled(&x.dims, 0.0)?;
    for t in 0..rows {
        let row = &x.values[t * size..][..size];
        let exp: Vec<f64> = (0..experts).map(|e| router.at(&[t, e]).exp()).collect();
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| exp[b].total_cmp(&exp[a]));
        order.truncate(usize::try_from(c.int("k", 1))?);
        let kept = if c.int("normalize_routing_weights", 0) != 0 { &order } else { &(0..experts).collect() };
        let total: f64 = kept.iter().map(|&e| exp[e]).sum();
        for &e in &order {
            let h = |i: usize| row.iter().enumerate().map(|(d, v)| v * up.at(&[e, i, d])).sum::<f64>();
            let h: Vec<f64> = (0..wide).map(|i| h(i) + biased(c.opt(3), e, i)).collect();
            let h = (0..inner).map(|i| activated(&h, i)).collect::<Result<Vec<_>>>()?;
            for d in 0..size {
                let out: f64 = h.iter().enumerate().map(|(i, v)| v * down.at(&[e, d, i])).sum();
                y.values[t * size + d] += exp[e] / total * (out + biased(c.opt(5), e, d));
            }
        }
    }
    Ok(vec![y])
}
