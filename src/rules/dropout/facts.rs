//! Facts of operators that draw random numbers.

use crate::graph::facts::{Known, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

pub fn random(c: &Known) -> Result<Vec<Fact>> {
    let element = c.type_attribute("dtype").unwrap_or(ElementType::Float);
    let shape = c.ints("shape").map(|shape| shape.iter().map(|&n| Dim::Known(n)).collect());
    Ok(vec![tensor(Some(element), shape)])
}

pub fn like(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.type_attribute("dtype").or(c.element(0)), ..c.like(0) }])
}

pub fn multinomial(c: &Known) -> Result<Vec<Fact>> {
    let element = c.type_attribute("dtype").unwrap_or(ElementType::Int32);
    let batch = c.shape(0).and_then(|s| s.first().copied()).unwrap_or_else(|| c.dims().fresh());
    Ok(vec![tensor(Some(element), Some(vec![batch, c.int("sample_size", 1).into()]))])
}

/// The mask is boolean since version 10, of the input's element type before.
pub fn dropout(c: &Known) -> Result<Vec<Fact>> {
    let mask = if c.op.version < 10 { c.element(0) } else { Some(ElementType::Bool) };
    Ok(vec![c.like(0), Fact { element: mask, ..c.like(0) }])
}

/// The mask is boolean.
pub fn masked(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![c.like(0), Fact { element: Some(ElementType::Bool), ..c.like(0) }])
}
