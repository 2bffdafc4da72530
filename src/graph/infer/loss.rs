//! Losses of classifiers.

use super::context::{Context, Row, tensor};
use crate::graph::Fact;
use anyhow::Result;

pub const ROWS: &[Row] = &[("NegativeLogLikelihoodLoss", loss), ("SoftmaxCrossEntropyLoss", loss)];

/// A scalar, or with `reduction="none"` one loss for each label; behind it the logarithms of the probabilities.
fn loss(c: &Context) -> Result<Vec<Fact>> {
    let loss = match c.string("reduction") {
        Some("none") => Fact { element: c.element(0), ..c.like(1) },
        _ => tensor(c.element(0), Some(vec![])),
    };
    Ok(vec![loss, c.like(0)])
}
