//! Operators on sequences and optionals.

use super::context::{Context, Row, axis, tensor};
use super::shape::with_axis;
use crate::graph::{Container, Dim, Fact, Scalar, Shape, Value};
use crate::onnx::proto::type_proto;
use crate::onnx::{ElementType, attribute};
use anyhow::Result;

pub const ROWS: &[Row] = &[
    ("ConcatFromSequence", concat),
    ("Optional", optional),
    ("OptionalGetElement", get_element),
    ("OptionalHasElement", has_element),
    ("SequenceAt", at),
    ("SequenceConstruct", construct),
    ("SequenceEmpty", empty),
    ("SequenceErase", |c| Ok(vec![sequence(c.element(0), c.input(0).and_then(|s| s.shape.clone()))])),
    ("SequenceInsert", insert),
    ("SequenceLength", |_| Ok(vec![tensor(Some(ElementType::Int64), Some(vec![]))])),
    ("SplitToSequence", split),
];

fn sequence(element: Option<ElementType>, shape: Option<Shape>) -> Fact {
    Fact { container: Container::Sequence, element, shape, value: None }
}

fn empty(c: &Context) -> Result<Vec<Fact>> {
    // That it has no elements is all that there is to know of its value.
    let value = Some(Value::Elements([].into()));
    Ok(vec![Fact { value, ..sequence(Some(c.type_attribute("dtype").unwrap_or(ElementType::Float)), None) }])
}

/// A size in which elements may differ stands for another one in each.
fn at(c: &Context) -> Result<Vec<Fact>> {
    let any = |&d: &Dim| if c.dims().is_fresh(d) { c.dims().fresh() } else { d };
    let shape = c.shape(0).map(|shape| shape.iter().map(any).collect());
    Ok(vec![tensor(c.element(0), shape)])
}

/// The shape of every element, with an unknown size where they differ; none where their ranks do.
fn shared(c: &Context, places: std::ops::Range<usize>) -> Option<Shape> {
    let mut shared: Vec<Dim> = c.shape(places.start)?.to_vec();
    for i in places.skip(1) {
        let shape = c.shape(i).filter(|s| s.len() == shared.len())?;
        for (a, &b) in shared.iter_mut().zip(shape) {
            if *a != b {
                *a = c.dims().fresh();
            }
        }
    }
    Some(shared.into())
}

fn construct(c: &Context) -> Result<Vec<Fact>> {
    let element = (0..c.inputs.len()).find_map(|i| c.element(i));
    Ok(vec![sequence(element, shared(c, 0..c.inputs.len()))])
}

fn insert(c: &Context) -> Result<Vec<Fact>> {
    let empty = c.input(0).is_some_and(|s| s.value.is_some());
    Ok(vec![sequence(c.element(0).or(c.element(1)), shared(c, usize::from(empty)..2))])
}

fn concat(c: &Context) -> Result<Vec<Fact>> {
    let shape = match c.shape(0) {
        Some(shape) if c.flag("new_axis") => {
            let (outer, inner) = shape.split_at(c.axis("axis", 0, shape.len() + 1)?);
            Some([outer, &[c.dims().fresh()], inner].concat())
        }
        Some(shape) => Some(with_axis(shape, c.axis("axis", 0, shape.len())?, c.dims().fresh())),
        None => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

/// Without `split` the parts are single slices, whose axis goes unless `keepdims`.
fn split(c: &Context) -> Result<Vec<Fact>> {
    let Some(shape) = c.shape(0) else { return Ok(vec![sequence(c.element(0), None)]) };
    let at = axis(c.int("axis", 0), shape.len())?;
    let size = shape.get(at).copied().and_then(Dim::known);
    let part = match c.input(1) {
        None if c.int("keepdims", 1) == 0 => {
            let mut shape = shape.to_vec();
            shape.remove(at);
            return Ok(vec![sequence(c.element(0), Some(shape.into()))]);
        }
        None => Some(Dim::Known(1)),
        Some(split) => match split.uniform() {
            Some(Scalar::Int(Dim::Known(part))) if split.rank() == Some(0) => {
                // The last part is what is left.
                size.is_some_and(|n| n.checked_rem(part) == Some(0))
                    .then_some(Dim::Known(part))
                    .or_else(|| Some(c.dims().fresh()))
            }
            Some(Scalar::Int(part)) if split.rank() == Some(1) => Some(part),
            _ => Some(c.dims().fresh()),
        },
    };
    Ok(vec![sequence(c.element(0), part.map(|part| with_axis(shape, at, part).into()))])
}

/// An optional that surely holds a sequence is as the sequence: facts do not tell optional sequences from optional tensors,
/// and what takes an optional takes either.
fn optional(c: &Context) -> Result<Vec<Fact>> {
    if let Some(input) = c.input(0) {
        return Ok(vec![match input.container {
            Container::Tensor => Fact { container: Container::Optional, ..c.like(0) },
            _ => c.like(0),
        }]);
    }
    let held = attribute::find(c.op.attributes, "type").and_then(|a| a.tp.as_ref()?.value.as_ref());
    let element = |t: &type_proto::Tensor| Some(ElementType::from_number(t.elem_type()));
    Ok(vec![match held {
        Some(type_proto::Value::TensorType(t)) => {
            Fact { container: Container::Optional, ..Fact::tensor(element(t), None) }
        }
        Some(type_proto::Value::SequenceType(s)) => {
            let inner = s.elem_type.as_ref().and_then(|t| t.value.as_ref());
            let inner = inner.and_then(|v| if let type_proto::Value::TensorType(t) = v { element(t) } else { None });
            sequence(inner, None)
        }
        _ => Fact { container: Container::Optional, ..Fact::default() },
    }])
}

/// Since opset 18 it takes what is no optional too, and gives it back.
fn get_element(c: &Context) -> Result<Vec<Fact>> {
    let Some(input) = c.input(0) else { return Ok(vec![]) };
    Ok(vec![match input.container {
        Container::Optional => Fact { container: Container::Tensor, ..input.clone() },
        _ => input.clone(),
    }])
}

/// Only an optional may be empty.
fn has_element(c: &Context) -> Result<Vec<Fact>> {
    let held = match c.input(0).map(|f| f.container) {
        None => Some(0),
        Some(Container::Tensor) => Some(1),
        Some(_) => None,
    };
    let value = held.map(|held| Value::Uniform(Scalar::Int(Dim::Known(held))));
    Ok(vec![Fact { value, ..tensor(Some(ElementType::Bool), Some(vec![])) }])
}
