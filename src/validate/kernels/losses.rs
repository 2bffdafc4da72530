//! The losses of the standard.

use super::{Array, Call, Row, row};
use anyhow::{Result, ensure};

pub const ROWS: &[Row] = &[
    row("NegativeLogLikelihoodLoss", |c| Ok(vec![likelihood(c, c.x()?)?])),
    row("SoftmaxCrossEntropyLoss", |c| {
        let log = log_softmax(c.x()?)?;
        Ok(vec![likelihood(c, &log)?, log])
    }),
];

/// Along the second axis.
fn log_softmax(x: &Array) -> Result<Array> {
    let (classes, inner) = sizes(x)?;
    let mut y = x.clone();
    for batch in y.values.chunks_exact_mut((classes * inner).max(1)) {
        for i in 0..inner {
            let largest = (0..classes).map(|c| batch[c * inner + i]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..classes).map(|c| (batch[c * inner + i] - largest).exp()).sum();
            (0..classes).for_each(|c| batch[c * inner + i] -= largest + sum.ln());
        }
    }
    Ok(y)
}

/// How many classes there are, and places for each.
fn sizes(x: &Array) -> Result<(usize, usize)> {
    ensure!(x.rank() >= 2, "scores are of rank 2 at least");
    Ok((x.dim(1), x.dims[2..].iter().product()))
}

/// `-Σ w[t] log[t]`, a label that is ignored having the weight 0.
fn likelihood(c: &Call, log: &Array) -> Result<Array> {
    let labels = c.input(1)?;
    let (classes, inner) = sizes(log)?;
    let ignored = c.node.attribute.iter().find(|a| a.name() == "ignore_index").map(|a| a.i());
    let (mut losses, mut weights) = (labels.clone(), 0.0);
    for (place, loss) in losses.values.iter_mut().enumerate() {
        let label = labels.values[place] as i64;
        if Some(label) == ignored {
            *loss = 0.0;
            continue;
        }
        ensure!((0..classes as i64).contains(&label), "label {label} of {classes} classes");
        let weight = c.opt(2).map_or(1.0, |w| w.values.get(label as usize).copied().unwrap_or(0.0));
        let (batch, i) = (place / inner.max(1), place % inner.max(1));
        *loss = -weight * log.values[(batch * classes + label as usize) * inner + i];
        weights += weight;
    }
    let total: f64 = losses.values.iter().sum();
    Ok(match c.string("reduction", "mean") {
        "none" => losses,
        "sum" => Array::scalar(total),
        _ => Array::scalar(total / weights),
    })
}
