//! Normalizations and what else keeps the shape of its first input.

use super::context::{Context, Row, tensor};
use super::elementwise::same;
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

pub const ROWS: &[Row] = &[
    ("BatchNormalization", batch),
    ("Dropout", dropout),
    ("GroupNormalization", same),
    ("Hardmax", same),
    ("InstanceNormalization", same),
    ("LRN", same),
    ("LayerNormalization", layer),
    ("LogSoftmax", same),
    ("LpNormalization", same),
    ("MeanVarianceNormalization", same),
    ("RMSNormalization", rms),
    ("SimplifiedLayerNormalization", |c| layer(c).map(|facts| facts.into_iter().take(2).collect())),
    ("Softmax", same),
];

/// The running and saved statistics are like the mean that goes in.
fn batch(c: &Context) -> Result<Vec<Fact>> {
    let mut facts = vec![c.like(0)];
    let statistics = Fact { element: c.element(3), ..c.like(3) };
    facts.resize(c.op.outputs.max(1), statistics);
    Ok(facts)
}

/// The mask is boolean since opset 10, of the input's element type before.
fn dropout(c: &Context) -> Result<Vec<Fact>> {
    let mask = if c.op.version < 10 { c.element(0) } else { Some(ElementType::Bool) };
    Ok(vec![c.like(0), Fact { element: mask, ..c.like(0) }])
}

/// Mean and inverse standard deviation have the stash type and one element for each group that is normalized.
pub fn layer(c: &Context) -> Result<Vec<Fact>> {
    let stash = c.type_attribute("stash_type").unwrap_or(ElementType::Float);
    let shape = match c.shape(0) {
        Some(shape) => {
            let axis = c.axis("axis", -1, shape.len())?;
            Some(shape.iter().enumerate().map(|(i, &d)| if i < axis { d } else { Dim::Known(1) }).collect::<Vec<_>>())
        }
        None => None,
    };
    let statistics = tensor(Some(stash), shape);
    Ok(vec![c.like(0), statistics.clone(), statistics])
}

/// The output has the element type of the scale.
fn rms(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.element(1), ..c.like(0) }])
}
