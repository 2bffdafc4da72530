//! Facts of operators that reduce axes of a tensor.

use crate::graph::facts::value::{self, Calculator, Function};
use crate::graph::facts::with_axis;
use crate::graph::facts::{Known, Parameter, mask, tensor};
use crate::graph::{Dim, Fact, Scalar, Value};
use crate::onnx::ElementType;
use anyhow::Result;

/// Sums of floating-point numbers depend on the order, which is the runtime's.
pub fn sum(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    exact(c, x, value::add, 0)
}

pub fn product(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    exact(c, x, value::mul, 1)
}

fn exact(c: &Calculator, x: &[Scalar], f: Function, neutral: i64) -> Option<Scalar> {
    match x {
        [only] => Some(*only),
        _ => x.iter().try_fold(c.int(neutral)?, |a, &b| f(c, &[a, b])),
    }
}

/// The axes are an attribute in old versions, an input since version 13 (ReduceSum) and 18 (the others).
pub fn reduce(c: &Known, f: Option<Function>) -> Result<Vec<Fact>> {
    let element = c.element(0);
    let keep = c.int("keepdims", 1) != 0;
    let Some(shape) = c.shape(0) else {
        let all = !keep && matches!(c.integers(1, "axes"), Parameter::Absent) && !c.flag("noop_with_empty_axes");
        return Ok(vec![tensor(element, all.then(Vec::new))]);
    };
    let reduced: Vec<bool> = match c.integers(1, "axes") {
        Parameter::Known(list) if !list.is_empty() => mask(&list, shape.len())?,
        Parameter::Unknown(count) => {
            let rank = if keep { Some(shape.len()) } else { count.and_then(|n| shape.len().checked_sub(n)) };
            return Ok(vec![tensor(element, rank.map(|rank| c.fresh(rank)))]);
        }
        _ => vec![!c.flag("noop_with_empty_axes"); shape.len()],
    };
    let dims = remaining(shape, &reduced, keep);
    let value = c.input(0).zip(f).and_then(|(data, f)| reduced_value(c, data, &reduced, f));
    Ok(vec![Fact { value, ..tensor(element, Some(dims)) }])
}

fn remaining(shape: &[Dim], reduced: &[bool], keep: bool) -> Vec<Dim> {
    let sizes = shape.iter().zip(reduced).filter(|&(_, &r)| keep || !r);
    sizes.map(|(&d, &r)| if r { Dim::Known(1) } else { d }).collect()
}

pub fn reduced_value(c: &Known, data: &Fact, reduced: &[bool], f: Function) -> Option<Value> {
    data.value.as_ref()?;
    let calculator = Calculator { dims: c.dims(), element: data.element? };
    let shape = data.shape.as_deref()?;
    let outer = value::small(&remaining(shape, reduced, true))?;
    let mut groups: Vec<Vec<Scalar>> = vec![Vec::new(); outer.iter().product()];
    let operand = value::Operand::new(data)?;
    value::build(shape, |at| {
        let kept = at.iter().zip(reduced).map(|(&i, &r)| if r { 0 } else { i });
        let group = kept.zip(&outer).fold(0, |index, (i, &n)| index * n + i);
        let element = operand.get(at)?;
        groups.get_mut(group)?.push(element);
        Some(element)
    })?;
    groups.iter().map(|group| f(&calculator, group)).collect::<Option<Vec<_>>>().map(|v| Value::Elements(v.into()))
}

pub fn arg(c: &Known) -> Result<Vec<Fact>> {
    let shape = match c.shape(0) {
        Some(shape) => {
            let axis = c.axis("axis", 0, shape.len())?;
            let reduced: Vec<bool> = (0..shape.len()).map(|i| i == axis).collect();
            Some(remaining(shape, &reduced, c.int("keepdims", 1) != 0))
        }
        None => None,
    };
    Ok(vec![tensor(Some(ElementType::Int64), shape)])
}

/// `k` is an input since version 10.
pub fn top_k(c: &Known) -> Result<Vec<Fact>> {
    let k = match c.has("k") {
        true => Some(Dim::Known(c.int("k", 0))),
        false => c.scalar(1),
    };
    let shape = match c.shape(0) {
        Some(shape) => Some(with_axis(shape, c.axis("axis", -1, shape.len())?, k.unwrap_or_else(|| c.dims().fresh()))),
        None => None,
    };
    Ok(vec![tensor(c.element(0), shape.clone()), tensor(Some(ElementType::Int64), shape)])
}
