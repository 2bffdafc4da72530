//! Facts of operators that take a tensor apart, or put tensors together.

use crate::graph::facts::value;
use crate::graph::facts::with_axis;
use crate::graph::facts::{Known, Parameter, axis, tensor, unify};
use crate::graph::{Dim, Dims, Fact, Value};
use crate::onnx::{AttributeProto, ElementType, attribute};
use anyhow::{Result, bail, ensure};

pub fn concat(c: &Known) -> Result<Vec<Fact>> {
    let inputs: Vec<&Fact> = c.inputs.iter().flatten().copied().collect();
    let element = inputs.iter().find_map(|f| f.element);
    let Some(rank) = inputs.iter().find_map(|f| f.rank()) else { return Ok(vec![tensor(element, None)]) };
    let at = c.axis("axis", 1, rank)?;
    let mut shape: Vec<Option<Dim>> = vec![None; rank];
    let mut length = Some(Dim::Known(0));
    for input in &inputs {
        let Some(dims) = input.shape.as_deref() else {
            length = None;
            continue;
        };
        let mut fits = dims.len() == rank;
        for (i, (slot, &dim)) in shape.iter_mut().zip(dims).enumerate() {
            if i == at {
                length = length.map(|n| c.dims().add(n, dim));
            } else {
                let both = slot.map_or(Some(dim), |slot| unify(slot, dim));
                fits &= both.is_some();
                *slot = both;
            }
        }
        if !fits {
            let shapes: Vec<_> = inputs.iter().flat_map(|f| f.shape.as_deref()).map(|s| c.dims().display(s)).collect();
            bail!("shapes {} do not concatenate on axis {at}", shapes.join(" and "));
        }
    }
    let sizes = shape.into_iter().enumerate();
    let shape: Vec<Dim> =
        sizes.map(|(i, d)| if i == at { length } else { d }.unwrap_or_else(|| c.dims().fresh())).collect();
    let value = concatenated(&inputs, &shape, at);
    Ok(vec![Fact { value, ..tensor(element, Some(shape)) }])
}

/// All sizes are equal but those of the axis.
pub fn equal_in_concat(attributes: &[AttributeProto], shapes: &[Option<&[Dim]>]) -> Vec<(Dim, Dim)> {
    let Some((&Some(first), rest)) = shapes.split_first() else { return vec![] };
    let at = axis(attribute::get_int(attributes, "axis").unwrap_or(1), first.len()).ok();
    let rest = rest.iter().flatten().filter(|shape| shape.len() == first.len());
    let pairs = rest.flat_map(|shape| first.iter().copied().zip(shape.iter().copied()).enumerate());
    pairs.filter(|(i, _)| Some(*i) != at).map(|(_, pair)| pair).collect()
}

fn concatenated(inputs: &[&Fact], shape: &[Dim], axis: usize) -> Option<Value> {
    if let Some((first, rest)) = inputs.split_first()
        && let Some(scalar) = first.uniform()
        && rest.iter().all(|f| f.uniform() == Some(scalar))
    {
        return Some(Value::Uniform(scalar));
    }
    value::small(shape)?;
    // Which operand each place on the axis belongs to, and which place in it.
    let mut places = Vec::new();
    for input in inputs {
        let operand = std::rc::Rc::new(value::Operand::new(input)?);
        let size = input.shape.as_deref()?.get(axis)?.known()?;
        places.extend((0..usize::try_from(size).ok()?).map(|i| (operand.clone(), i)));
    }
    value::build(shape, |at| {
        let mut at = at.to_vec();
        let (operand, i) = places.get(*at.get(axis)?)?;
        *at.get_mut(axis)? = *i;
        operand.get(&at)
    })
}

/// Without an axis the input is flattened.
pub fn compress(c: &Known) -> Result<Vec<Fact>> {
    let count = || c.dims().fresh();
    let shape = match (c.has("axis"), c.shape(0)) {
        (false, _) => Some(vec![count()]),
        (true, Some(shape)) => Some(with_axis(shape, c.axis("axis", 0, shape.len())?, count())),
        (true, None) => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

pub fn unique(c: &Known) -> Result<Vec<Fact>> {
    let count = c.dims().fresh();
    let (shape, inverse) = match (c.has("axis"), c.shape(0)) {
        (false, shape) => (Some(vec![count]), shape.map(|s| c.dims().product(s.iter().copied()))),
        (true, Some(shape)) => {
            let at = c.axis("axis", 0, shape.len())?;
            (Some(with_axis(shape, at, count)), shape.get(at).copied())
        }
        (true, None) => (None, None),
    };
    let list = |size: Dim| tensor(Some(ElementType::Int64), Some(vec![size]));
    let inverse = inverse.unwrap_or_else(|| c.dims().fresh());
    Ok(vec![tensor(c.element(0), shape), list(count), list(inverse), list(count)])
}

/// What stands for "to the end", or for "to the beginning" when negative.
const FAR: i64 = i32::MAX as i64;

/// How many axes a Slice has bounds for: no more than its input has.
pub fn sliced_axes(bounds: Option<i64>, rank: usize) -> Result<Option<i64>> {
    ensure!(bounds.is_none_or(|n| n <= rank as i64), "it slices more axes than the {rank} of its input");
    Ok(bounds)
}

/// Bounds are attributes before version 10, inputs since.
pub fn slice(c: &Known) -> Result<Vec<Fact>> {
    let Some(input) = c.input(0) else { return Ok(vec![]) };
    let Some(shape) = input.shape.as_deref() else {
        let value = input.uniform().map(Value::Uniform);
        return Ok(vec![Fact { value, ..tensor(input.element, None) }]);
    };
    let (starts, ends) = (c.sizes(1, "starts"), c.sizes(2, "ends"));
    let count = length(&starts).or_else(|| length(&ends)).map(|n| n as i64);
    let count = sliced_axes(count, shape.len())?;
    let axes = match c.integers(3, "axes") {
        Parameter::Known(axes) => Some(axes),
        Parameter::Absent => count.map(|n| (0..n).collect()),
        Parameter::Unknown(_) => None,
    };
    let Some(axes) = axes else {
        let value = input.uniform().map(Value::Uniform);
        return Ok(vec![Fact { value, ..tensor(input.element, Some(c.fresh(shape.len()))) }]);
    };
    let steps = match c.integers(4, "steps") {
        Parameter::Known(steps) => Some(steps),
        Parameter::Absent => Some(vec![1; axes.len()]),
        Parameter::Unknown(_) => None,
    };
    let mut dims = shape.to_vec();
    // The first element and the step on each axis, where they are known.
    let mut origin: Vec<Option<(i64, i64)>> = vec![Some((0, 1)); shape.len()];
    for (i, &a) in axes.iter().enumerate() {
        let at = axis(a, shape.len())?;
        let (Some(dim), Some(origin)) = (dims.get_mut(at), origin.get_mut(at)) else { continue };
        let bounds = (get(&starts, i), get(&ends, i), steps.as_ref().and_then(|s| s.get(i).copied()));
        let (Some(start), Some(end), Some(step)) = bounds else {
            (*dim, *origin) = (c.dims().fresh(), None);
            continue;
        };
        ensure!(step != 0, "a step of zero on axis {at}");
        *origin = first(*dim, start, step).map(|first| (first, step));
        *dim = sliced(c.dims(), *dim, start, end, step).unwrap_or_else(|| c.dims().fresh());
    }
    let value = value::rearrange(input, Some(&dims), |at| {
        let source = |(&i, origin): (&usize, &Option<(i64, i64)>)| {
            let (first, step) = (*origin)?;
            usize::try_from(step.checked_mul(i as i64)?.checked_add(first)?).ok()
        };
        at.iter().zip(&origin).map(source).collect()
    });
    Ok(vec![Fact { value, ..tensor(input.element, Some(dims)) }])
}

fn length(list: &Parameter<Dim>) -> Option<usize> {
    match list {
        Parameter::Known(values) => Some(values.len()),
        Parameter::Unknown(length) => *length,
        Parameter::Absent => None,
    }
}

fn get(list: &Parameter<Dim>, i: usize) -> Option<Dim> {
    match list {
        Parameter::Known(values) => values.get(i).copied(),
        _ => None,
    }
}

/// The first element of a slice, where it is known.
fn first(size: Dim, start: Dim, step: i64) -> Option<i64> {
    let (size, start) = (size.known()?, start.known()?);
    let start = if start < 0 { start.saturating_add(size) } else { start };
    Some(if step > 0 { start.min(size) } else { start.min(size - 1) }.max(0))
}

/// How many elements a slice has.
fn sliced(dims: &Dims, size: Dim, start: Dim, end: Dim, step: i64) -> Option<Dim> {
    if step > 0 {
        // A start behind the end, and an end before the beginning, leave nothing all the same: each needs one bound
        // only.
        let start = at_least_zero(dims, from_front(dims, size, start)?);
        let end = at_most(dims, from_front(dims, size, end)?, size);
        let span = at_least_zero(dims, dims.sub(end, start));
        return Some(if step == 1 { span } else { dims.ceil_div(span, step.into()) });
    }
    let (start, end) = (start.known()?, end.known()?);
    let stride = Dim::Known(step.checked_neg()?);
    match size {
        Dim::Known(size) => {
            let wrap = |at: i64| if at < 0 { at.saturating_add(size) } else { at }.clamp(-1, size.max(0) - 1);
            let (first, last) = (wrap(start), wrap(end));
            // Runtimes do not agree on a start before the beginning, nor on the largest number for an end.
            let agreed = end < FAR && (first >= 0 || size <= 0);
            agreed.then(|| dims.ceil_div(Dim::Known((first - last).max(0)), stride))
        }
        Dim::Symbol(_) => ((start >= FAR || start == -1) && end <= -FAR).then(|| dims.ceil_div(size, stride)),
    }
}

/// A bound of a slice as a distance from the front.
fn from_front(dims: &Dims, size: Dim, at: Dim) -> Option<Dim> {
    match at {
        Dim::Known(n) if n >= FAR => Some(size),
        Dim::Known(n) if n <= -FAR => Some(Dim::Known(0)),
        Dim::Known(n) if n < 0 => Some(dims.add(size, at)),
        // What may be negative may count from the end.
        _ => dims.is_non_negative(at).then_some(at),
    }
}

fn at_most(dims: &Dims, n: Dim, limit: Dim) -> Dim {
    match () {
        _ if dims.is_non_negative(dims.sub(limit, n)) => n,
        _ if dims.is_non_negative(dims.sub(n, limit)) => limit,
        _ => dims.min(limit, n),
    }
}

fn at_least_zero(dims: &Dims, n: Dim) -> Dim {
    if dims.is_non_negative(n) { n } else { dims.max(n, Dim::Known(0)) }
}

/// The sizes of the parts are an attribute before version 13, an input since; without them the parts are equal, but for
/// the last one where `num_outputs` (version 18) does not divide the size.
pub fn split(c: &Known) -> Result<Vec<Fact>> {
    let Some(input) = c.input(0) else { return Ok(vec![]) };
    let count = c.op.outputs;
    let Some(shape) = input.shape.as_deref() else {
        let value = input.uniform().map(Value::Uniform);
        return Ok(vec![Fact { value, ..tensor(input.element, None) }; count]);
    };
    let at = c.axis("axis", 0, shape.len())?;
    let size = shape.get(at).copied().unwrap_or(Dim::Known(0));
    let sizes = match c.sizes(1, "split") {
        Parameter::Known(sizes) => {
            let sum = sizes.iter().fold(Dim::Known(0), |a, &b| c.dims().add(a, b));
            if unify(sum, size).is_none() {
                bail!(
                    "parts of sizes {} do not make up axis {at} of {}",
                    c.dims().display(&sizes),
                    c.dims().display(shape)
                );
            }
            sizes
        }
        Parameter::Unknown(_) => c.fresh(count),
        Parameter::Absent => parts(c, size, count),
    };
    let mut start = Some(0);
    let mut facts = Vec::with_capacity(count);
    for &part in sizes.iter().take(count) {
        let dims = with_axis(shape, at, part);
        let value = value::rearrange(input, Some(&dims), |place| {
            let mut place = place.to_vec();
            *place.get_mut(at)? += start?;
            Some(place)
        });
        start = start.and_then(|start: usize| start.checked_add(usize::try_from(part.known()?).ok()?));
        facts.push(Fact { value, ..tensor(input.element, Some(dims)) });
    }
    Ok(facts)
}

pub fn parts(c: &Known, size: Dim, count: usize) -> Vec<Dim> {
    let n = Dim::Known(count as i64);
    let part = c.dims().floor_div(size, n);
    if c.dims().mul(part, n) == size || !c.has("num_outputs") && size.known().is_none() {
        return vec![part; count];
    }
    let (Some(size), true) = (size.known(), c.has("num_outputs")) else { return c.fresh(count) };
    let part = (size as u64).div_ceil(count.max(1) as u64) as i64;
    let last = part.checked_mul(count as i64 - 1).and_then(|before| size.checked_sub(before)).filter(|&n| n >= 0);
    match last {
        Some(last) => (0..count).map(|i| Dim::Known(if i + 1 == count { last } else { part })).collect(),
        None => c.fresh(count),
    }
}
