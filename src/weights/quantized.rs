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
        if self.zero.1 == ElementType::Int32 {
            // QuantizeLinear does not give 32 bits, and no zero point goes with them.
            return (x.cast(self.element) / scale).round() * scale;
        }
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
        let element = self.integers.element_type();
        // Integers of 32 bits are rounded by plain arithmetic, in which the scales broadcast.
        let each = || (0..self.integers.element_count().unwrap_or(0)).map(|i| self.steps(i).0).collect();
        let scale = match element == ElementType::Int32 && self.scales.len() > 1 {
            true => (each(), self.integers.dims.clone()),
            false => (self.scales.clone(), self.dims.clone()),
        };
        Grid {
            element: self.element,
            scale,
            zero: (zero, element),
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

    /// `v / scale`, rounded as QuantizeLinear rounds it: in float32 for types of 32 bits and fewer, of what the type
    /// holds of v. What lies halfway between two integers in one type may not in another.
    fn quotient(&self, v: f64, scale: f64) -> f64 {
        let v = match self.element {
            ElementType::Double => return v / scale,
            ElementType::Float16 => half::f16::from_f32(v as f32).into(),
            ElementType::Bfloat16 => half::bf16::from_f32(v as f32).into(),
            _ => v as f32,
        };
        (v / scale as f32).into()
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

    /// What is to be said of integers that were rounded again to `new`, those nearest to `values`: that none of them
    /// has changed, or how many numbers lie beyond their range.
    pub fn remark(&self, values: &[f64], new: &TensorProto) -> Option<String> {
        let (before, after) = (self.integers.integers().ok()?, new.integers().ok()?);
        if before == after {
            // What nobody has trained is what its integers stand for.
            let own = self.real().and_then(|t| t.floats());
            if own.is_ok_and(|own| own.iter().zip(values).all(|(&a, &b)| a as f32 == b as f32)) {
                return None;
            }
            let what = "none of its integers has changed, since training moved it by less than half a step of its scale, or out of their range";
            return Some(what.to_owned());
        }
        let (low, high) = self.integers.element_type().quantized_range()?;
        let beyond = |(i, &v): (usize, &f64)| {
            let (scale, zero) = self.steps(i);
            let q = self.quotient(v, scale).round_ties_even() + zero as f64;
            q < low || q > high
        };
        let clipped = values.iter().enumerate().filter(|&(i, v)| beyond((i, v))).count();
        (clipped > 0).then(|| format!("{clipped} of its {} numbers lie beyond the range of its integers", values.len()))
    }

    /// The integers nearest to `values`, halves to the even one, within the range of their type.
    ///
    /// # Errors
    /// Another number of values; a type of integers of less than four bits.
    pub fn nearest(&self, values: &[f64]) -> Result<TensorProto> {
        let element = self.integers.element_type();
        ensure!(
            Some(values.len()) == self.integers.element_count(),
            "{} values for {:?}",
            values.len(),
            self.integers.dims
        );
        let bits = element.bits().filter(|&b| b >= 4).with_context(|| format!("{} is not written", element.name()))?;
        let (low, high) = match element.is_signed_integer() {
            true => (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1),
            false => (0, (1i64 << bits.min(62)) - 1),
        };
        let integer = |(i, &v): (usize, &f64)| {
            let (scale, zero) = self.steps(i);
            (self.quotient(v, scale).round_ties_even() as i64).saturating_add(zero).clamp(low, high)
        };
        let integers: Vec<i64> = values.iter().enumerate().map(integer).collect();
        let tensor = TensorProto::from_ints(element, &self.integers.dims, &integers)?;
        Ok(TensorProto { name: self.integers.name.clone(), ..tensor })
    }
}
