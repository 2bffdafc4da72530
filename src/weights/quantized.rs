//! Weights that a file holds as integers: what DequantizeLinear makes of them, and the integers of other numbers.
//!
//! [DequantizeLinear](https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html): y = (x - zero point) scale, with one
//! scale for the whole tensor, for each slice along an axis, or for each block of elements along it.

use crate::expr::{Expr, Rounding};
use crate::onnx::{ElementType, NodeProto, TensorProto, attribute, canonical_domain};
use crate::rules::newest;
use anyhow::{Context, Result, ensure};
use std::borrow::Cow;
use std::collections::HashMap;

/// The rounding of a weight to its integers, as a formula.
#[derive(Clone, Debug)]
pub struct Grid {
    element: ElementType,
    scale: (Vec<f64>, Vec<i64>),
    zero: (Vec<f64>, ElementType),
    how: Rounding,
}

impl Grid {
    /// The numbers that the integers nearest to the elements of `x` stand for, in the weight's type.
    pub fn rounded<'g>(&self, x: Expr<'g>) -> Expr<'g> {
        let (values, dims) = &self.scale;
        let scale = x.builder().numbers(values, dims, self.element);
        let zero = x.builder().numbers(&self.zero.0, dims, self.zero.1);
        x.cast(self.element).rounded_to_integers(scale, zero, &self.how)
    }
}

/// The integers of a weight, with their scales.
#[derive(Clone, Debug)]
pub struct Quantized<'m> {
    /// The integers.
    pub integers: Cow<'m, TensorProto>,
    /// The element type of what they stand for.
    pub element: ElementType,
    scales: Vec<f64>,
    /// The dimensions of the scales.
    dims: Vec<i64>,
    zeros: Vec<i64>,
    /// How many elements in a row share a scale, how many such rows there are along the axis, and in how many blocks.
    inner: usize,
    size: usize,
    block: usize,
}

impl<'m> Quantized<'m> {
    /// What a node dequantizes, if all of it is constant; `None` for other nodes and for layouts that cannot be.
    pub fn of(node: &NodeProto, constants: &HashMap<&str, Cow<'m, TensorProto>>) -> Option<Self> {
        newest(canonical_domain(node.domain()), node.op_type()).filter(|r| r.dequantizes)?;
        let constant = |i: usize| constants.get(node.input.get(i)?.as_str());
        let (integers, scale) = (constant(0)?.clone(), constant(1)?);
        let (element, scales) = (scale.element_type(), scale.floats().ok()?);
        let zeros = match node.input.get(2).filter(|z| !z.is_empty()) {
            Some(_) => constant(2)?.integers().ok()?,
            None => vec![0; scales.len()],
        };
        let rank = integers.dims.len() as i64;
        let axis = attribute::get_int(&node.attribute, "axis").unwrap_or(1);
        let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
        let block = attribute::get_int(&node.attribute, "block_size").unwrap_or(0);
        let count = integers.element_count()?;
        let sizes: Vec<usize> = integers.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
        let (inner, size) = match (scales.len(), block) {
            (1, 0) => (count.max(1), 1),
            _ => (sizes.get(axis + 1..)?.iter().product::<usize>().max(1), *sizes.get(axis)?),
        };
        let block = usize::try_from(block).ok()?.max(1);
        let outer = count.checked_div(inner * size).unwrap_or(0);
        let expected = if block > 1 { outer * size.div_ceil(block) * inner } else { size };
        let fits = zeros.len() == scales.len() && scales.len() == expected;
        let dims = scale.dims.clone();
        fits.then_some(Quantized { integers, element, scales, dims, zeros, inner, size, block })
    }

    /// Its rounding as a formula; `node` is the one that dequantizes it.
    pub fn grid(&self, node: &NodeProto) -> Grid {
        let shared = node.attribute.iter().filter(|a| ["axis", "block_size"].contains(&a.name()));
        let zero = self.zeros.iter().map(|&z| z as f64).collect();
        Grid {
            element: self.element,
            scale: (self.scales.clone(), self.dims.clone()),
            zero: (zero, self.integers.element_type()),
            how: Rounding {
                contributed: !canonical_domain(node.domain()).is_empty(),
                attributes: shared.cloned().collect(),
            },
        }
    }

    /// The number of the scale of an element.
    fn scale_of(&self, element: usize) -> usize {
        let (place, along) = (element % self.inner, element / self.inner);
        if self.block <= 1 {
            return along % self.size.max(1);
        }
        let (outer, row) = (along / self.size, along % self.size / self.block);
        (outer * self.size.div_ceil(self.block) + row) * self.inner + place
    }

    /// The scale and the zero point of an element.
    fn steps(&self, element: usize) -> (f64, i64) {
        let i = self.scale_of(element);
        (self.scales.get(i).copied().unwrap_or(1.0), self.zeros.get(i).copied().unwrap_or(0))
    }

    /// The numbers that the integers stand for.
    ///
    /// # Errors
    /// Integers that cannot be read.
    pub fn real(&self) -> Result<TensorProto> {
        let real = |(i, &q): (usize, &i64)| {
            let (scale, zero) = self.steps(i);
            (q - zero) as f64 * scale
        };
        let values: Vec<f64> = self.integers.integers()?.iter().enumerate().map(real).collect();
        TensorProto::from_floats(self.element, &self.integers.dims, &values)
    }

    /// The integers nearest to `values`, halves to the even one, within the range of their type.
    ///
    /// # Errors
    /// Another number of values; a type whose integers are not whole bytes.
    pub fn nearest(&self, values: &[f64]) -> Result<TensorProto> {
        let element = self.integers.element_type();
        ensure!(
            Some(values.len()) == self.integers.element_count(),
            "{} values for {:?}",
            values.len(),
            self.integers.dims
        );
        let bits = element.bits().filter(|&b| b >= 8).with_context(|| format!("{} is not written", element.name()))?;
        let (low, high) = match element.is_signed_integer() {
            true => (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1),
            false => (0, (1i64 << bits.min(62)) - 1),
        };
        let integer = |(i, &v): (usize, &f64)| {
            let (scale, zero) = self.steps(i);
            ((v / scale).round_ties_even() as i64).saturating_add(zero).clamp(low, high)
        };
        let integers: Vec<i64> = values.iter().enumerate().map(integer).collect();
        let tensor = TensorProto::from_ints(element, &self.integers.dims, &integers)?;
        Ok(TensorProto { name: self.integers.name.clone(), ..tensor })
    }
}
