//! Facts of the quantized operators of ONNX Runtime.

use crate::graph::Fact;
use crate::graph::facts::{Known, broadcast_known, tensor};
use crate::rules::linear;
use crate::rules::shape::parts;
use anyhow::Result;

/// An image whose channels come last.
pub fn unknown(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![tensor(c.element(0), c.rank(0).map(|rank| c.fresh(rank)))])
}

/// The output has the type of the integers and the shape to which some inputs broadcast.
pub fn broadcast_of(c: &Known, inputs: &[usize]) -> Result<Vec<Fact>> {
    let shapes: Vec<_> = inputs.iter().map(|&i| c.shape(i)).collect();
    Ok(vec![tensor(c.element(0), broadcast_known(c.dims(), &shapes)?)])
}

/// The result's scale and zero point come first, then each tensor with its own.
pub fn joined(c: &Known) -> Result<Vec<Fact>> {
    let parts: Vec<Option<&Fact>> = (2..c.inputs.len()).step_by(3).map(|i| c.input(i)).collect();
    parts::concat(&Known { op: c.op, inputs: &parts })
}

/// A and B stand at 0 and 3; without a scale of the result, that is of the scales' type.
pub fn gemm(c: &Known) -> Result<Vec<Fact>> {
    let matrices = linear::facts::gemm(&Known { op: c.op, inputs: &[c.input(0), c.input(3)] })?;
    let element = if c.input(7).is_some() { c.element(8).or(c.element(0)) } else { c.element(1) };
    Ok(matrices.into_iter().map(|y| Fact { element, ..y }).collect())
}

/// The chosen tensors have their scales and zero points behind them.
pub fn choose(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.element(1), ..broadcast_of(c, &[0, 1, 4])?.remove(0) }])
}
