//! Facts of operators on shapes: those that read them, and those that give the same elements another one.

use crate::graph::fact::MAX_ELEMENTS;
use crate::graph::facts::value;
use crate::graph::facts::{Known, Parameter, boundary, broadcast, mask, tensor};
use crate::graph::{Dim, Fact, Scalar, Value};
use crate::onnx::ElementType;
use anyhow::{Result, bail, ensure};

/// `start` and `end` exist since version 15.
pub fn shape(c: &Known) -> Result<Vec<Fact>> {
    let Some(shape) = c.shape(0) else {
        return Ok(vec![tensor(Some(ElementType::Int64), Some(c.fresh(1)))]);
    };
    let rank = shape.len() as i64;
    let clamp = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let (start, end) = (clamp(c.int("start", 0)), clamp(c.int("end", rank)));
    let dims = shape.get(start..end).unwrap_or_default();
    let value = (dims.len() <= MAX_ELEMENTS).then(|| Value::Elements(dims.iter().map(|&d| Scalar::Int(d)).collect()));
    Ok(vec![Fact { value, ..tensor(Some(ElementType::Int64), Some(vec![Dim::Known(dims.len() as i64)])) }])
}

pub fn size(c: &Known) -> Result<Vec<Fact>> {
    let count = c.shape(0).map(|s| c.dims().product(s.iter().copied()));
    let value = count.map(|n| Value::Uniform(Scalar::Int(n)));
    Ok(vec![Fact { value, ..tensor(Some(ElementType::Int64), Some(vec![])) }])
}

/// The elements of the input, in their order, in another shape.
fn relabeled(input: Option<&Fact>, shape: Option<Vec<Dim>>) -> Fact {
    let Some(input) = input else { return tensor(None, shape) };
    let value = match &input.value {
        Some(Value::Elements(_)) => input.value.clone().filter(|_| shape.as_deref().and_then(value::small).is_some()),
        uniform => uniform.clone(),
    };
    Fact { value, ..tensor(input.element, shape) }
}

/// 0 copies the input's size, unless `allowzero` (version 14) says that it is one; -1 is what is left.
pub fn reshape(c: &Known) -> Result<Vec<Fact>> {
    let shape = match c.sizes(1, "shape") {
        Parameter::Absent | Parameter::Unknown(None) => None,
        Parameter::Unknown(Some(rank)) => Some(c.fresh(rank)),
        Parameter::Known(target) => Some(reshaped(c, &target)?),
    };
    Ok(vec![relabeled(c.input(0), shape)])
}

pub fn reshaped(c: &Known, target: &[Dim]) -> Result<Vec<Dim>> {
    let (dims, input) = (c.dims(), c.shape(0));
    let mut shape = Vec::with_capacity(target.len());
    let mut rest = None;
    for (i, &size) in target.iter().enumerate() {
        shape.push(match (size, input) {
            (Dim::Known(-1), _) => {
                ensure!(rest.replace(i).is_none(), "target shape {} has more than one -1", dims.display(target));
                Dim::Known(1)
            }
            (Dim::Known(0), _) if c.flag("allowzero") => size,
            (Dim::Known(0), None) => dims.fresh(),
            (Dim::Known(0), Some(input)) => match input.get(i) {
                Some(&dim) => dim,
                None => {
                    bail!("target shape {} copies a dimension that {} lacks", dims.display(target), dims.display(input))
                }
            },
            (Dim::Known(n), _) if n < 0 => bail!("target shape {} has a negative size", dims.display(target)),
            _ => size,
        });
    }
    let total = input.map(|input| dims.product(input.iter().copied()));
    let others = dims.product(shape.iter().copied());
    let contradiction = match (total, others) {
        (Some(Dim::Known(total)), Dim::Known(others)) if rest.is_none() => total != others,
        (Some(Dim::Known(total)), Dim::Known(others)) => others != 0 && total.checked_rem(others) != Some(0),
        _ => false,
    };
    if contradiction && let Some(input) = input {
        bail!("a tensor of shape {} cannot be reshaped to {}", dims.display(input), dims.display(target));
    }
    if let Some(slot) = rest.and_then(|rest| shape.get_mut(rest)) {
        *slot = match total {
            Some(total) if others != Dim::Known(0) => dims.floor_div(total, others),
            _ => dims.fresh(),
        };
    }
    Ok(shape)
}

pub fn flatten(c: &Known) -> Result<Vec<Fact>> {
    let shape = match c.shape(0) {
        None => c.fresh(2),
        Some(shape) => {
            let (outer, inner) = shape.split_at(boundary(c.int("axis", 1), shape.len())?);
            [outer, inner].map(|dims| c.dims().product(dims.iter().copied())).into()
        }
    };
    Ok(vec![relabeled(c.input(0), Some(shape))])
}

/// The axes are an attribute before version 13, an input since; without them every dimension of one element goes.
pub fn squeeze(c: &Known) -> Result<Vec<Fact>> {
    let shape = match (c.shape(0), c.integers(1, "axes")) {
        (Some(shape), Parameter::Known(list)) => {
            let gone = mask(&list, shape.len())?;
            let mut kept = Vec::with_capacity(shape.len());
            for (&dim, gone) in shape.iter().zip(gone) {
                if !gone {
                    kept.push(dim);
                } else if dim.known().is_some_and(|n| n != 1) {
                    bail!("axes {list:?} of shape {} are not all of size 1", c.dims().display(shape));
                }
            }
            Some(kept)
        }
        (Some(shape), Parameter::Absent) => {
            let known = shape.iter().all(|d| d.known().is_some());
            known.then(|| shape.iter().copied().filter(|&d| d != Dim::Known(1)).collect())
        }
        (Some(shape), Parameter::Unknown(Some(count))) => shape.len().checked_sub(count).map(|rank| c.fresh(rank)),
        _ => None,
    };
    Ok(vec![relabeled(c.input(0), shape)])
}

pub fn unsqueeze(c: &Known) -> Result<Vec<Fact>> {
    let shape = match (c.shape(0), c.integers(1, "axes")) {
        (Some(shape), Parameter::Known(list)) => {
            let rank = shape.len() + list.len();
            let mut old = shape.iter().copied();
            let new = mask(&list, rank)?.into_iter();
            let dims: Vec<Option<Dim>> = new.map(|new| if new { Some(Dim::Known(1)) } else { old.next() }).collect();
            match dims.into_iter().collect() {
                Some(dims) if old.next().is_none() => Some(dims),
                _ => bail!("axes {list:?} name a dimension twice"),
            }
        }
        (Some(shape), Parameter::Unknown(Some(count))) => Some(c.fresh(shape.len() + count)),
        _ => None,
    };
    Ok(vec![relabeled(c.input(0), shape)])
}

pub fn transpose(c: &Known) -> Result<Vec<Fact>> {
    let Some(input) = c.input(0) else { return Ok(vec![]) };
    let Some(shape) = input.shape.as_deref() else {
        let rank = c.ints("perm").map(<[i64]>::len);
        let value = input.uniform().map(Value::Uniform);
        return Ok(vec![Fact { value, ..tensor(input.element, rank.map(|r| c.fresh(r))) }]);
    };
    let perm: Vec<usize> = match c.ints("perm") {
        Some(perm) => {
            let mut seen = vec![false; shape.len()];
            let new = |&a: &i64| {
                usize::try_from(a).ok().filter(|&a| seen.get_mut(a).is_some_and(|s| !std::mem::replace(s, true)))
            };
            match perm.iter().map(new).collect::<Option<Vec<_>>>() {
                Some(perm) if perm.len() == shape.len() => perm,
                _ => bail!("perm {perm:?} is no permutation of {} axes", shape.len()),
            }
        }
        None => (0..shape.len()).rev().collect(),
    };
    let dims: Vec<Dim> = perm.iter().filter_map(|&a| shape.get(a).copied()).collect();
    let value = value::rearrange(input, Some(&dims), |at| {
        let mut source = vec![0; at.len()];
        for (&from, &i) in perm.iter().zip(at) {
            *source.get_mut(from)? = i;
        }
        Some(source)
    });
    Ok(vec![Fact { value, ..tensor(input.element, Some(dims)) }])
}

/// Broadcasting goes both ways: where the input is larger, the input's size stays.
pub fn expand(c: &Known) -> Result<Vec<Fact>> {
    let Some(input) = c.input(0) else { return Ok(vec![]) };
    let target = match c.sizes(1, "shape") {
        Parameter::Absent | Parameter::Unknown(None) => None,
        Parameter::Unknown(Some(rank)) => Some(c.fresh(rank)),
        Parameter::Known(target) => Some(target),
    };
    let shape = match (input.shape.as_deref(), target) {
        (Some(shape), Some(target)) => Some(broadcast(c.dims(), &[shape, &target])?),
        _ => None,
    };
    let value = match (&input.value, input.rank()) {
        (None, _) => None,
        (Some(uniform @ Value::Uniform(_)), _) => Some(uniform.clone()),
        (Some(Value::Elements(_)), _) => input.uniform().map(Value::Uniform).or_else(|| {
            let operand = value::Operand::new(input)?;
            value::build(shape.as_deref()?, |at| operand.get(at))
        }),
    };
    Ok(vec![Fact { value, ..tensor(input.element, shape) }])
}

pub fn tile(c: &Known) -> Result<Vec<Fact>> {
    let Some(input) = c.input(0) else { return Ok(vec![]) };
    let repeats = c.sizes(1, "repeats");
    let shape: Option<Vec<Dim>> = match (input.shape.as_deref(), &repeats) {
        (Some(shape), Parameter::Known(repeats)) => {
            ensure!(
                shape.len() == repeats.len(),
                "{} repeats do not fit a tensor of shape {}",
                repeats.len(),
                c.dims().display(shape)
            );
            Some(shape.iter().zip(repeats).map(|(&d, &r)| c.dims().mul(d, r)).collect())
        }
        (Some(shape), _) => Some(c.fresh(shape.len())),
        (None, Parameter::Known(repeats)) => Some(c.fresh(repeats.len())),
        (None, Parameter::Unknown(length)) => length.map(|rank| c.fresh(rank)),
        (None, Parameter::Absent) => None,
    };
    let sizes = input.shape.as_deref().and_then(value::small);
    let value = value::rearrange(input, shape.as_deref(), |at| {
        at.iter().zip(sizes.as_deref()?).map(|(&i, &n)| i.checked_rem(n)).collect()
    });
    Ok(vec![Fact { value, ..tensor(input.element, shape) }])
}
