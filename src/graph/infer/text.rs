//! Operators on strings and encoded data.

use super::context::{Context, Row, broadcast_known, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

pub const ROWS: &[Row] = &[
    ("ImageDecoder", image_decoder),
    ("RegexFullMatch", |c| Ok(vec![Fact { element: Some(ElementType::Bool), ..c.like(0) }])),
    ("StringConcat", |c| {
        let shape = broadcast_known(c.dims(), &[c.shape(0), c.shape(1)])?;
        Ok(vec![tensor(Some(ElementType::String), shape)])
    }),
    // Stop words are left out.
    ("StringNormalizer", |c| Ok(vec![tensor(Some(ElementType::String), c.rank(0).map(|rank| c.fresh(rank)))])),
    ("StringSplit", string_split),
    ("TfIdfVectorizer", tf_idf),
];

fn image_decoder(c: &Context) -> Result<Vec<Fact>> {
    let channels = if c.string("pixel_format") == Some("Grayscale") { 1 } else { 3 };
    let shape = vec![c.dims().fresh(), c.dims().fresh(), Dim::Known(channels)];
    Ok(vec![tensor(Some(ElementType::Uint8), Some(shape))])
}

/// The parts are padded to as many as the longest has; behind them is how many there are.
fn string_split(c: &Context) -> Result<Vec<Fact>> {
    let shape = c.shape(0).map(|shape| [shape, &[c.dims().fresh()]].concat());
    let counts = Fact { element: Some(ElementType::Int64), ..c.like(0) };
    Ok(vec![tensor(Some(ElementType::String), shape), counts])
}

/// One number for each entry of the largest index.
fn tf_idf(c: &Context) -> Result<Vec<Fact>> {
    let largest = c.ints("ngram_indexes").and_then(|i| i.iter().max()).and_then(|&n| n.checked_add(1));
    let count = largest.map_or_else(|| c.dims().fresh(), Dim::Known);
    let shape = match c.shape(0) {
        Some([batch, _]) => Some(vec![*batch, count]),
        Some([_]) => Some(vec![count]),
        _ => None,
    };
    Ok(vec![tensor(Some(ElementType::Float), shape)])
}
