//! Constants, and tensors that are made to measure.

use super::Slot::*;
use super::{Rule, Slot, opaque};
use crate::graph::facts::value::{self, Calculator};
use crate::graph::facts::{self, from_sizes};
use crate::graph::facts::{Known, tensor};
use crate::graph::{Dim, Fact, Scalar, Value};
use crate::onnx::ElementType;
use anyhow::{Result, ensure};

const SHAPE: &[Slot] = &[Stop("only its shape matters")];
const SIZE: &[Slot] = &[Stop("a size")];
const FLOORED: &[Slot] = &[Stop("frequencies are rounded to bins")];
const DATATYPE: &[(&str, Option<ElementType>)] = &[("output_datatype", Some(ElementType::Float))];

/// The rows.
pub const RULES: &[Rule] = &[
    opaque("EyeLike", SHAPE).facts(eye_like).types(&[("dtype", None)]).shapes_only(),
    opaque("BlackmanWindow", SIZE).facts(window).types(DATATYPE),
    opaque("Constant", SIZE).facts(facts::constant_node),
    opaque("ConstantOfShape", SIZE).facts(constant_of_shape).sizes(0).fills("value"),
    opaque("HammingWindow", SIZE).facts(window).types(DATATYPE),
    opaque("HannWindow", SIZE).facts(window).types(DATATYPE),
    opaque("MelWeightMatrix", FLOORED).facts(mel_weight_matrix).types(DATATYPE),
];

/// Without a value it is a 32-bit zero.
pub fn constant_of_shape(c: &Known) -> Result<Vec<Fact>> {
    let zero =
        Fact { value: Some(Value::Uniform(Scalar::Float(0.0))), ..tensor(Some(ElementType::Float), Some(vec![])) };
    let fill = c.constant("value").unwrap_or(zero);
    let shape = from_sizes(c, c.sizes(0, ""));
    Ok(vec![Fact { value: fill.uniform().map(Value::Uniform), ..Fact::tensor(fill.element, shape) }])
}

pub fn eye_like(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.type_attribute("dtype").or(c.element(0)), ..c.like(0) }])
}

pub fn window(c: &Known) -> Result<Vec<Fact>> {
    let element = c.type_attribute("output_datatype").unwrap_or(ElementType::Float);
    let size = c.scalar(0).unwrap_or_else(|| c.dims().fresh());
    Ok(vec![tensor(Some(element), Some(vec![size]))])
}

pub fn mel_weight_matrix(c: &Known) -> Result<Vec<Fact>> {
    let element = c.type_attribute("output_datatype").unwrap_or(ElementType::Float);
    let dims = c.dims();
    let bins = c.scalar(0).unwrap_or_else(|| dims.fresh());
    let length = c.scalar(1).unwrap_or_else(|| dims.fresh());
    Ok(vec![tensor(Some(element), Some(vec![dims.add(dims.floor_div(length, 2.into()), 1.into()), bins]))])
}

/// `max(⌈(limit - start) / delta⌉, 0)` elements.
pub fn range(c: &Known) -> Result<Vec<Fact>> {
    let element = (0..3).find_map(|i| c.element(i));
    let bounds = [0, 1, 2].map(|i| c.input(i).and_then(Fact::uniform));
    let dims = c.dims();
    let count = match bounds {
        [Some(Scalar::Int(start)), Some(Scalar::Int(limit)), Some(Scalar::Int(Dim::Known(delta)))] => {
            ensure!(delta != 0, "a range with a step of zero");
            let span = if delta > 0 { dims.sub(limit, start) } else { dims.sub(start, limit) };
            delta.checked_abs().map(|step| {
                let count = dims.ceil_div(span, step.into());
                if dims.is_non_negative(span) { count } else { dims.max(count, 0.into()) }
            })
        }
        [Some(Scalar::Float(start)), Some(Scalar::Float(limit)), Some(Scalar::Float(delta))] => {
            let count = (limit - start) / delta;
            // Just above a whole number, the precision of the runtime decides.
            let doubtful = count.fract() != 0.0 && count.fract().abs() < 1e-3;
            (count.abs() < 1e15 && !doubtful).then(|| Dim::Known((count.ceil() as i64).max(0)))
        }
        _ => None,
    };
    let shape = [count.unwrap_or_else(|| dims.fresh())];
    let value = match (bounds, element) {
        ([Some(Scalar::Int(Dim::Known(start))), _, Some(Scalar::Int(Dim::Known(delta)))], Some(element)) => {
            let calculator = Calculator { dims, element };
            value::build(&shape, |at| calculator.int(delta.checked_mul(*at.first()? as i64)?.checked_add(start)?))
        }
        _ => None,
    };
    Ok(vec![Fact { value, ..tensor(element, Some(shape.to_vec())) }])
}
