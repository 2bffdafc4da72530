//! Quantization: numbers as small integers with a scale and a zero point.
//!
//! Integers carry no gradient, and rounding passes none: the scales of DequantizeLinear have the only gradients. Where
//! a request counts rounding as the identity, the integers stand for the numbers that they are rounded from, and the
//! formulas below, which do not round, are what is differentiated.

mod facts;

use super::Slot::*;
use super::properties::IntegerLayer;
use super::{Call, Rule, Slot, rule};
use super::{linear, window};
use crate::expr::Expr;
use crate::onnx::ElementType;
use anyhow::{Context, Result, ensure};

pub(super) const INTEGERS: Slot = Stop("integers");
pub(super) const MICROSOFT: &str = "com.microsoft";
const CONV: &str = "auto_pad dilations group kernel_shape pads strides";

/// The rows.
pub const RULES: &[Rule] = &[
    QUANTIZE,
    QUANTIZE.domain(MICROSOFT),
    DEQUANTIZE,
    DEQUANTIZE.domain(MICROSOFT),
    rule(
        "DynamicQuantizeLinear",
        "dx = dy / y_scale, and that of y_scale = (max(x, 0) - min(x, 0)) / 255",
        &[Through(dynamic)],
    )
    .facts(facts::dynamic)
    .conventional()
    .single(&[0], &[1])
    .rounds(),
    rule(
        "QLinearMatMul",
        "those of A B, dequantized, and quantized again",
        &[
            Through(matmul),
            Through(matmul),
            INTEGERS,
            Through(matmul),
            Through(matmul),
            INTEGERS,
            Through(matmul),
            INTEGERS,
        ],
    )
    .facts(|c| linear::facts::matmul(c, 0, 3, c.element(7)))
    .conventional()
    .single(&[1, 4, 6], &[])
    .in_float32()
    .rounds(),
    rule(
        "QLinearConv",
        "those of the convolution of x and w, dequantized, and quantized again",
        &[Through(conv), Through(conv), INTEGERS, Through(conv), Through(conv), INTEGERS, Through(conv), INTEGERS],
    )
    .facts(|c| window::facts::convolution(c, 0, 3, c.element(7)))
    .attributes(CONV)
    .conventional()
    .single(&[1, 4, 6], &[])
    .in_float32()
    .rounds(),
    rule(
        "MatMulInteger",
        "those of (A - its zero point) (B - its zero point)",
        &[Through(matmul_integer), Through(matmul_integer), INTEGERS],
    )
    .facts(|c| linear::facts::matmul(c, 0, 1, Some(ElementType::Int32)))
    .integer_layer(IntegerLayer::Bare)
    .rounds(),
    rule(
        "ConvInteger",
        "those of the convolution of x and w, less their zero points",
        &[Through(conv_integer), Through(conv_integer), INTEGERS],
    )
    .facts(|c| window::facts::convolution(c, 0, 1, Some(ElementType::Int32)))
    .attributes(CONV)
    .rounds(),
];

const QUANTIZE: Rule = rule(
    "QuantizeLinear",
    "dx = dy / scale where x / scale + zero_point lies within the range of the integers, ends included, else 0; dscale = \
     -Σ dx x / scale, over each axis slice or block that shares a scale",
    &[Through(quantize), Through(quantize), INTEGERS],
).facts(facts::quantize)
.attributes("axis block_size output_dtype precision saturate")
.conventional()
.single(&[0, 1], &[])
.in_float32()
.rounds();

const DEQUANTIZE: Rule = rule(
    "DequantizeLinear",
    "dx = dy scale; dscale = Σ dy (x - zero_point), over each axis slice or block that shares a scale",
    &[Through(dequantize), Through(dequantize), INTEGERS],
)
.facts(facts::dequantize)
.dequantizes()
.attributes("axis block_size output_dtype")
.in_float32()
.moves_integers();

/// A scale and a zero point that broadcast to the tensor that is quantized.
pub(super) struct Steps<'g> {
    pub scale: Expr<'g>,
    zero: Option<Expr<'g>>,
}

impl<'g> Steps<'g> {
    /// The input of that number and the one behind it, each in the shape that `lay` gives it. Half precision does not
    /// hold the ends of all ranges.
    pub fn new(c: &Call<'g>, input: usize, lay: impl Fn(Expr<'g>) -> Result<Expr<'g>>) -> Result<Self> {
        Self::of(c, input, input + 1, lay)
    }

    /// As [`Steps::new`], of a zero point that does not stand behind its scale.
    pub fn of(c: &Call<'g>, scale: usize, zero: usize, lay: impl Fn(Expr<'g>) -> Result<Expr<'g>>) -> Result<Self> {
        let scale = c.input(scale).widened();
        let shaped = |z: Expr<'g>| if z.fact().rank().is_some() { z } else { z.reshape_like(scale) };
        let zero = c.opt(zero).map(|z| lay(shaped(z).cast_like(scale))).transpose()?;
        Ok(Steps { scale: lay(scale)?, zero })
    }

    /// The number of steps, not rounded, within the range of a type.
    pub fn quantize(&self, x: Expr<'g>, element: ElementType) -> Result<Expr<'g>> {
        let steps = x.cast_like(self.scale) / self.scale;
        let (low, high) = element
            .quantized_range()
            .with_context(|| format!("the range of {} is not known to quantization", element.name()))?;
        Ok(self.zero.map_or(steps, |zero| steps + zero).clamp(low, high))
    }

    /// The number that so many steps are.
    pub fn dequantize(&self, steps: Expr<'g>) -> Expr<'g> {
        let steps = steps.cast_like(self.scale);
        self.zero.map_or(steps, |zero| steps - zero) * self.scale
    }
}

/// One number as a tensor without dimensions, a list of them as `lay` has it, tensors of more dimensions as they are.
pub(super) fn laid<'g>(p: Expr<'g>, lay: impl Fn(Expr<'g>) -> Result<Expr<'g>>) -> Result<Expr<'g>> {
    match p.rank()? {
        1 if p.known_dim(0) == Some(1) => Ok(p.reshape_to(&[])),
        1 => lay(p),
        _ => Ok(p),
    }
}

/// A list as a tensor of that rank, along an axis.
pub(super) fn along(p: Expr<'_>, axis: usize, rank: usize) -> Expr<'_> {
    p.reshape_to(&(0..rank).map(|a| if a == axis { -1 } else { 1 }).collect::<Vec<i64>>())
}

/// A number for each row of a matrix.
pub(super) fn rows(p: Expr<'_>) -> Result<Expr<'_>> {
    laid(p, |p| Ok(p.unsqueeze(&[1])))
}

/// A number for each column of a matrix.
pub(super) fn columns(p: Expr<'_>) -> Result<Expr<'_>> {
    laid(p, Ok)
}

/// One number for the whole tensor, for each slice along the axis, or for each block along it.
fn linear<'g>(c: &Call<'g>) -> Result<Steps<'g>> {
    let x = c.x();
    Steps::new(c, 1, |p| match p.rank()? {
        0 | 1 => laid(p, |p| Ok(along(p, c.axis(1)?, x.rank()?))),
        rank => {
            let (axis, size) = (c.axis(1)?, c.int("block_size", 0));
            ensure!(size > 0, "block_size = {size} is not positive, and the scale has {rank} dimensions");
            ensure!(x.rank()? == rank, "the scale has {rank} dimensions, the tensor {}", x.rank()?);
            Ok(p.repeated(axis, size, x.dims([axis])))
        }
    })
}

fn quantize<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let y = linear(c)?.quantize(c.x(), c.y().element()?)?;
    Ok(vec![Some(y)])
}

fn dequantize<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    Ok(vec![Some(linear(c)?.dequantize(c.x()))])
}

fn dynamic<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let x = c.x();
    let (flat, zero) = (x.flattened(), x.like(0.0));
    let (high, low) = (flat.maximum(&[0]).squeeze(&[0]), flat.minimum(&[0]).squeeze(&[0]));
    let scale = (high.max(zero) - low.min(zero)) / 255.0;
    Ok(vec![Some(x / scale), Some(scale), None])
}

fn matmul<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let a = Steps::new(c, 1, rows)?.dequantize(c.x());
    let b = Steps::new(c, 4, columns)?.dequantize(c.input(3));
    let y = Steps::new(c, 6, rows)?.quantize(a.matmul(b), c.y().element()?)?;
    Ok(vec![Some(y)])
}

fn conv<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (w, attributes) = (c.input(3), c.attributes(&CONV.split(' ').collect::<Vec<_>>()));
    let rank = w.rank()?;
    let (in_x, in_w) = (Steps::new(c, 1, columns)?, Steps::new(c, 4, |p| laid(p, |p| Ok(along(p, 0, rank))))?);
    let mut y = in_x.dequantize(c.x()).conv_of(in_w.dequantize(w), attributes);
    if let Some(bias) = c.opt(8) {
        // It is in steps of the product of both scales.
        let scale = laid(c.input(4), |p| Ok(along(p, 0, rank - 1)))?;
        y = y + along(bias.cast_like(scale), 0, rank - 1) * in_x.scale * scale;
    }
    let y = Steps::new(c, 6, columns)?.quantize(y, c.y().element()?)?;
    Ok(vec![Some(y)])
}

/// An input less the zero point that another one is.
fn centred<'g>(
    c: &Call<'g>,
    input: usize,
    zero: usize,
    lay: impl Fn(Expr<'g>) -> Result<Expr<'g>>,
) -> Result<Expr<'g>> {
    let (x, dy) = (c.input(input), c.dy());
    let x = x.cast_like(dy);
    Ok(match c.opt(zero) {
        Some(zero) => x - lay(zero.cast_like(dy))?,
        None => x,
    })
}

fn matmul_integer<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    Ok(vec![Some(centred(c, 0, 2, rows)?.matmul(centred(c, 1, 3, columns)?))])
}

fn conv_integer<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (rank, attributes) = (c.input(1).rank()?, c.attributes(&CONV.split(' ').collect::<Vec<_>>()));
    let w = centred(c, 1, 3, |p| laid(p, |p| Ok(along(p, 0, rank))))?;
    Ok(vec![Some(centred(c, 0, 2, columns)?.conv_of(w, attributes))])
}
