//! Operators on strings and encoded data.

use super::Slot::*;
use super::{Rule, Slot, opaque};
use crate::graph::facts::{Known, broadcast_known, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

const TEXT: &[Slot] = &[Stop("text, tokens or bytes")];

/// The rows.
pub const RULES: &[Rule] = &[
    opaque("ImageDecoder", TEXT).facts(image_decoder),
    opaque("RegexFullMatch", TEXT).facts(|c| Ok(vec![Fact { element: Some(ElementType::Bool), ..c.like(0) }])),
    opaque("StringConcat", TEXT).facts(string_concat),
    opaque("StringNormalizer", TEXT).facts(string_normalizer),
    opaque("StringSplit", TEXT).facts(string_split),
    opaque("TfIdfVectorizer", TEXT).facts(tf_idf),
];

fn image_decoder(c: &Known) -> Result<Vec<Fact>> {
    let channels = if c.string("pixel_format") == Some("Grayscale") { 1 } else { 3 };
    let shape = vec![c.dims().fresh(), c.dims().fresh(), Dim::Known(channels)];
    Ok(vec![tensor(Some(ElementType::Uint8), Some(shape))])
}

/// The parts are padded to as many as the longest has; behind them is how many there are.
fn string_split(c: &Known) -> Result<Vec<Fact>> {
    let shape = c.shape(0).map(|shape| [shape, &[c.dims().fresh()]].concat());
    let counts = Fact { element: Some(ElementType::Int64), ..c.like(0) };
    Ok(vec![tensor(Some(ElementType::String), shape), counts])
}

/// One number for each entry of the largest index.
fn tf_idf(c: &Known) -> Result<Vec<Fact>> {
    let largest = c.ints("ngram_indexes").and_then(|i| i.iter().max()).and_then(|&n| n.checked_add(1));
    let count = largest.map_or_else(|| c.dims().fresh(), Dim::Known);
    let shape = match c.shape(0) {
        Some([batch, _]) => Some(vec![*batch, count]),
        Some([_]) => Some(vec![count]),
        _ => None,
    };
    Ok(vec![tensor(Some(ElementType::Float), shape)])
}

fn string_concat(c: &Known) -> Result<Vec<Fact>> {
    let shape = broadcast_known(c.dims(), &[c.shape(0), c.shape(1)])?;
    Ok(vec![tensor(Some(ElementType::String), shape)])
}

/// Stop words are left out.
fn string_normalizer(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![tensor(Some(ElementType::String), c.rank(0).map(|rank| c.fresh(rank)))])
}
