//! Facts of operators that pick elements out by indices.

use crate::graph::facts::{Known, axis, axis_of, tensor, value};
use crate::graph::{Dim, Fact, Scalar, Value};
use anyhow::{Result, bail};

pub fn gather(c: &Known) -> Result<Vec<Fact>> {
    let (Some(data), Some(indices)) = (c.input(0), c.input(1)) else { return Ok(vec![tensor(c.element(0), None)]) };
    let Some(at) = axis_of(c, 0, 0)? else {
        let value = data.uniform().map(Value::Uniform);
        return Ok(vec![Fact { value, ..tensor(data.element, None) }]);
    };
    let shape = data.shape.as_deref().zip(indices.shape.as_deref()).map(|(d, i)| {
        let (outer, rest) = d.split_at(at);
        [outer, i, rest.get(1..).unwrap_or_default()].concat()
    });
    let value = gathered(data, indices, shape.as_deref(), at);
    Ok(vec![Fact { value, ..tensor(data.element, shape) }])
}

fn gathered(data: &Fact, indices: &Fact, shape: Option<&[Dim]>, axis: usize) -> Option<Value> {
    if let Some(Value::Uniform(scalar)) = data.value {
        return Some(Value::Uniform(scalar));
    }
    data.value.as_ref()?;
    let size = data.shape.as_deref()?.get(axis)?.known()?;
    let (index, rank) = (value::Operand::new(indices)?, indices.rank()?);
    value::rearrange(data, shape, |at| {
        let Scalar::Int(Dim::Known(i)) = index.get(at.get(axis..axis + rank)?)? else { return None };
        let i = usize::try_from(if i < 0 { i + size } else { i }).ok().filter(|&i| (i as i64) < size)?;
        Some([at.get(..axis)?, &[i], at.get(axis + rank..)?].concat())
    })
}

pub fn gather_elements(c: &Known) -> Result<Vec<Fact>> {
    axis_of(c, 0, 0)?;
    Ok(vec![Fact { element: c.element(0), ..c.like(1) }])
}

pub fn gather_nd(c: &Known) -> Result<Vec<Fact>> {
    let shape = match (c.shape(0), c.shape(1)) {
        (Some(data), Some(indices)) => match indices.split_last() {
            Some((Dim::Known(depth), outer)) => {
                let taken = usize::try_from(c.int("batch_dims", 0).saturating_add(*depth)).ok();
                let Some(rest) = taken.and_then(|taken| data.get(taken..)) else {
                    bail!(
                        "indices of shape {} reach deeper than {}",
                        c.dims().display(indices),
                        c.dims().display(data)
                    );
                };
                Some([outer, rest].concat())
            }
            _ => None,
        },
        _ => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

pub fn one_hot(c: &Known) -> Result<Vec<Fact>> {
    let shape = match c.shape(0) {
        Some(indices) => {
            let at = axis(c.int("axis", -1), indices.len() + 1)?;
            let depth = match c.input(1).and_then(|d| d.uniform()) {
                Some(Scalar::Int(depth)) => Some(depth),
                Some(Scalar::Float(depth)) if depth.fract() == 0.0 => Some(Dim::Known(depth as i64)),
                _ => None,
            };
            let (outer, inner) = indices.split_at(at);
            Some([outer, &[depth.unwrap_or_else(|| c.dims().fresh())], inner].concat())
        }
        None => None,
    };
    Ok(vec![tensor(c.element(2), shape)])
}
