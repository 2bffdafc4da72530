//! Facts of conversions between numbers and small integers with a scale.

use crate::graph::Fact;
use crate::graph::facts::{Known, tensor};
use crate::onnx::ElementType;
use anyhow::Result;

/// The type is that of the zero point; without one, `output_dtype` (version 21) or uint8.
pub fn quantize(c: &Known) -> Result<Vec<Fact>> {
    let element = match c.input(2) {
        Some(zero_point) => zero_point.element.or_else(|| c.type_attribute("output_dtype")),
        None => Some(c.type_attribute("output_dtype").unwrap_or(ElementType::Uint8)),
    };
    Ok(vec![Fact { element, ..c.like(0) }])
}

/// The type is `output_dtype` (version 23), or that of the scale.
pub fn dequantize(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.type_attribute("output_dtype").or(c.element(1)), ..c.like(0) }])
}

pub fn dynamic(c: &Known) -> Result<Vec<Fact>> {
    let scalar = |element| tensor(Some(element), Some(vec![]));
    let y = Fact { element: Some(ElementType::Uint8), ..c.like(0) };
    Ok(vec![y, scalar(ElementType::Float), scalar(ElementType::Uint8)])
}
