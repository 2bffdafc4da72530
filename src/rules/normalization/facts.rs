//! Facts of normalizations that have more outputs than one, or another element type.

use crate::graph::facts::{Known, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

/// The running and saved statistics are like the mean that goes in.
pub fn batch(c: &Known) -> Result<Vec<Fact>> {
    let mut facts = vec![c.like(0)];
    let statistics = Fact { element: c.element(3), ..c.like(3) };
    facts.resize(c.op.outputs.max(1), statistics);
    Ok(facts)
}

/// Mean and inverse standard deviation have the stash type and one element for each group that is normalized.
pub fn layer(c: &Known) -> Result<Vec<Fact>> {
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
pub fn rms(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.element(1), ..c.like(0) }])
}

/// The statistics, and then the sum of the inputs.
pub fn skip_layer(c: &Known) -> Result<Vec<Fact>> {
    let statistics = c.shape(0).and_then(<[Dim]>::split_last).map(|(_, outer)| [outer, &[Dim::Known(1)]].concat());
    let statistics = tensor(Some(ElementType::Float), statistics);
    Ok(vec![c.like(0), statistics.clone(), statistics, c.like(0)])
}

/// The sum of embeddings, normalized; how many words each sequence has; the sum.
pub fn embed_layer(c: &Known) -> Result<Vec<Fact>> {
    let shape = match (c.shape(0), c.shape(2)) {
        (Some(words), Some([_, size])) => Some([words, &[*size]].concat()),
        _ => None,
    };
    let y = tensor(c.element(2), shape);
    let batch = c.shape(0).and_then(<[Dim]>::first).copied().unwrap_or_else(|| c.dims().fresh());
    Ok(vec![y.clone(), tensor(Some(ElementType::Int32), Some(vec![batch])), y])
}

/// Without a mean it has one statistic.
pub fn simplified(c: &Known) -> Result<Vec<Fact>> {
    Ok(layer(c)?.into_iter().take(2).collect())
}
