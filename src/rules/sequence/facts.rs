//! Facts of operators on sequences and optionals.

use crate::graph::facts::with_axis;
use crate::graph::facts::{Known, axis, tensor};
use crate::graph::{Container, Dim, Fact, Protocol, Scalar, Shape, Value};
use crate::onnx::ElementType;
use anyhow::Result;

/// The body takes an element of each sequence, and the tensors; what it gives are elements of sequences.
pub const MAP: Protocol = Protocol {
    inputs: |c, _| {
        let element = |f: &Fact| Fact { container: Container::Tensor, value: None, ..f.clone() };
        c.inputs.iter().map(|f| f.map(element).unwrap_or_default()).collect()
    },
    states: |_, _| vec![],
    outputs: Some(|_, _, body| {
        body.iter().map(|&f| Fact { container: Container::Sequence, value: None, ..f.clone() }).collect()
    }),
};

fn sequence(element: Option<ElementType>, shape: Option<Shape>) -> Fact {
    Fact { container: Container::Sequence, element, shape, value: None }
}

pub fn empty(c: &Known) -> Result<Vec<Fact>> {
    // That it has no elements is all that there is to know of its value.
    let value = Some(Value::Elements([].into()));
    Ok(vec![Fact { value, ..sequence(Some(c.type_attribute("dtype").unwrap_or(ElementType::Float)), None) }])
}

/// A size in which elements may differ stands for another one in each.
pub fn at(c: &Known) -> Result<Vec<Fact>> {
    let any = |&d: &Dim| if c.dims().is_fresh(d) { c.dims().fresh() } else { d };
    let shape = c.shape(0).map(|shape| shape.iter().map(any).collect());
    Ok(vec![tensor(c.element(0), shape)])
}

/// The shape of every element, with an unknown size where they differ; none where their ranks do.
pub fn shared(c: &Known, places: std::ops::Range<usize>) -> Option<Shape> {
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

pub fn construct(c: &Known) -> Result<Vec<Fact>> {
    let element = (0..c.inputs.len()).find_map(|i| c.element(i));
    Ok(vec![sequence(element, shared(c, 0..c.inputs.len()))])
}

pub fn insert(c: &Known) -> Result<Vec<Fact>> {
    let empty = c.input(0).is_some_and(|s| s.value.is_some());
    Ok(vec![sequence(c.element(0).or(c.element(1)), shared(c, usize::from(empty)..2))])
}

pub fn concat(c: &Known) -> Result<Vec<Fact>> {
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
pub fn split(c: &Known) -> Result<Vec<Fact>> {
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

/// An optional that surely holds a sequence is as the sequence: facts do not tell optional sequences from optional
/// tensors, and what takes an optional takes either.
pub fn optional(c: &Known) -> Result<Vec<Fact>> {
    if let Some(input) = c.input(0) {
        return Ok(vec![match input.container {
            Container::Tensor => Fact { container: Container::Optional, ..c.like(0) },
            _ => c.like(0),
        }]);
    }
    Ok(vec![match c.declared("type") {
        Some(held) if held.container == Container::Sequence => sequence(held.element, None),
        Some(held) if held.container == Container::Tensor => {
            Fact { container: Container::Optional, ..Fact::tensor(held.element, None) }
        }
        _ => Fact { container: Container::Optional, ..Fact::default() },
    }])
}

/// Since version 18 it takes what is no optional too, and gives it back.
pub fn get_element(c: &Known) -> Result<Vec<Fact>> {
    let Some(input) = c.input(0) else { return Ok(vec![]) };
    Ok(vec![match input.container {
        Container::Optional => Fact { container: Container::Tensor, ..input.clone() },
        _ => input.clone(),
    }])
}

/// Only an optional may be empty.
pub fn has_element(c: &Known) -> Result<Vec<Fact>> {
    let held = match c.input(0).map(|f| f.container) {
        None => Some(0),
        Some(Container::Tensor) => Some(1),
        Some(_) => None,
    };
    let value = held.map(|held| Value::Uniform(Scalar::Int(Dim::Known(held))));
    Ok(vec![Fact { value, ..tensor(Some(ElementType::Bool), Some(vec![])) }])
}

pub fn erase(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![sequence(c.element(0), c.input(0).and_then(|s| s.shape.clone()))])
}
