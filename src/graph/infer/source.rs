//! Constants, and tensors that are made to measure.

use super::context::{Context, Row, tensor};
use super::shape::from_sizes;
use super::value::{self, Calculator};
use crate::graph::fact::MAX_ELEMENTS;
use crate::graph::{Dim, Fact, Scalar, Value};
use crate::onnx::{AttributeProto, ElementType, TensorProto, attribute};
use anyhow::{Result, ensure};

pub const ROWS: &[Row] = &[
    ("BlackmanWindow", window),
    ("Constant", constant_node),
    ("ConstantOfShape", constant_of_shape),
    ("EyeLike", eye_like),
    ("HammingWindow", window),
    ("HannWindow", window),
    ("MelWeightMatrix", mel_weight_matrix),
    ("Range", range),
];

/// What is known of a constant tensor: element type, shape, and the elements where they are few and can be read.
pub fn constant(tensor: &TensorProto) -> Fact {
    let element = tensor.element_type();
    let small = tensor.element_count().is_some_and(|n| n <= MAX_ELEMENTS) && !tensor.is_external();
    let value = match element {
        _ if !small => None,
        e if e.is_float() => tensor.floats().ok().map(|v| v.into_iter().map(Scalar::Float).collect()),
        _ => tensor.integers().ok().map(|v| v.into_iter().map(|n| Scalar::Int(n.into())).collect::<Vec<_>>()),
    };
    // The upper half of 64 bits without a sign is read as negative numbers.
    let wrapped = |v: &Vec<Scalar>| v.iter().any(|s| matches!(s, Scalar::Int(Dim::Known(n)) if *n < 0));
    let value = value.filter(|v| element != ElementType::Uint64 || !wrapped(v));
    let shape: Vec<Dim> = tensor.dims.iter().map(|&n| n.into()).collect();
    let known = (element != ElementType::Undefined).then_some(element);
    Fact { value: value.map(|v| Value::Elements(v.into())), ..super::context::tensor(known, Some(shape)) }
}

/// The one attribute says what: a tensor, a sparse one, numbers, strings.
fn constant_node(c: &Context) -> Result<Vec<Fact>> {
    let known = |a: &AttributeProto| {
        let list = |element, elements: Vec<Scalar>, scalar: bool| {
            let shape = if scalar { vec![] } else { vec![Dim::Known(elements.len() as i64)] };
            let value = (elements.len() <= MAX_ELEMENTS).then(|| Value::Elements(elements.into()));
            Fact { value, ..tensor(Some(element), Some(shape)) }
        };
        Some(match a.name() {
            "value" => constant(a.t.as_ref()?),
            "sparse_value" => {
                let sparse = a.sparse_tensor.as_ref()?;
                let element = sparse.values.as_ref()?.element_type();
                tensor(Some(element), Some(sparse.dims.iter().map(|&n| n.into()).collect()))
            }
            "value_float" => list(ElementType::Float, vec![Scalar::Float(a.f().into())], true),
            "value_floats" => {
                list(ElementType::Float, a.floats.iter().map(|&v| Scalar::Float(v.into())).collect(), false)
            }
            "value_int" => list(ElementType::Int64, vec![Scalar::Int(a.i().into())], true),
            "value_ints" => list(ElementType::Int64, a.ints.iter().map(|&n| Scalar::Int(n.into())).collect(), false),
            "value_string" => tensor(Some(ElementType::String), Some(vec![])),
            "value_strings" => tensor(Some(ElementType::String), Some(vec![Dim::Known(a.strings.len() as i64)])),
            _ => return None,
        })
    };
    Ok(vec![c.op.attributes.iter().find_map(known).unwrap_or_default()])
}

/// Without a value it is a 32-bit zero.
fn constant_of_shape(c: &Context) -> Result<Vec<Fact>> {
    let zero =
        Fact { value: Some(Value::Uniform(Scalar::Float(0.0))), ..tensor(Some(ElementType::Float), Some(vec![])) };
    let fill = attribute::get_tensor(c.op.attributes, "value").map_or(zero, constant);
    let shape = from_sizes(c, c.sizes(0, ""));
    Ok(vec![Fact { value: fill.uniform().map(Value::Uniform), ..Fact::tensor(fill.element, shape) }])
}

fn eye_like(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.type_attribute("dtype").or(c.element(0)), ..c.like(0) }])
}

fn window(c: &Context) -> Result<Vec<Fact>> {
    let element = c.type_attribute("output_datatype").unwrap_or(ElementType::Float);
    let size = c.scalar(0).unwrap_or_else(|| c.dims().fresh());
    Ok(vec![tensor(Some(element), Some(vec![size]))])
}

fn mel_weight_matrix(c: &Context) -> Result<Vec<Fact>> {
    let element = c.type_attribute("output_datatype").unwrap_or(ElementType::Float);
    let dims = c.dims();
    let bins = c.scalar(0).unwrap_or_else(|| dims.fresh());
    let length = c.scalar(1).unwrap_or_else(|| dims.fresh());
    Ok(vec![tensor(Some(element), Some(vec![dims.add(dims.floor_div(length, 2.into()), 1.into()), bins]))])
}

/// `max(⌈(limit - start) / delta⌉, 0)` elements.
fn range(c: &Context) -> Result<Vec<Fact>> {
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
