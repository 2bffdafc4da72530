//! Operators that draw random numbers.

use super::context::{Context, Row, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

pub const ROWS: &[Row] = &[
    ("Bernoulli", like),
    ("Multinomial", multinomial),
    ("RandomNormal", random),
    ("RandomNormalLike", like),
    ("RandomUniform", random),
    ("RandomUniformLike", like),
];

fn random(c: &Context) -> Result<Vec<Fact>> {
    let element = c.type_attribute("dtype").unwrap_or(ElementType::Float);
    let shape = c.ints("shape").map(|shape| shape.iter().map(|&n| Dim::Known(n)).collect());
    Ok(vec![tensor(Some(element), shape)])
}

fn like(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.type_attribute("dtype").or(c.element(0)), ..c.like(0) }])
}

fn multinomial(c: &Context) -> Result<Vec<Fact>> {
    let element = c.type_attribute("dtype").unwrap_or(ElementType::Int32);
    let batch = c.shape(0).and_then(|s| s.first().copied()).unwrap_or_else(|| c.dims().fresh());
    Ok(vec![tensor(Some(element), Some(vec![batch, c.int("sample_size", 1).into()]))])
}
