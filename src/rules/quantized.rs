//! The quantized operators of ONNX Runtime's own domain: what its quantizer writes in place of those of the standard.
//!
//! Each is the operator on the numbers that the integers stand for, quantized again; see [`super::quantization`].

mod facts;

use super::Slot::*;
use super::facts::same;
use super::properties::IntegerLayer;
use super::quantization::{INTEGERS, MICROSOFT, Steps, along, columns, laid, rows};
use super::{Call, Rule, rule};
use super::{linear, window};
use crate::expr::{Expr, normalize_axis};
use anyhow::{Result, ensure};

/// A row of an operator that takes two tensors, each followed by its scale and zero point, and then the scale and zero
/// point of the result.
macro_rules! binary {
    ($op:literal, $formula:literal, $forward:expr) => {
        Rule {
            slots: &[
                Through($forward),
                Through($forward),
                INTEGERS,
                Through($forward),
                Through($forward),
                INTEGERS,
                Through($forward),
                INTEGERS,
            ],
            ..contributed($op, $formula)
        }
    };
}

/// A row of an operator that takes a tensor, its scale and zero point, and the scale and zero point of the result.
macro_rules! unary {
    ($op:literal, $formula:literal, $forward:expr) => {
        Rule {
            slots: &[Through($forward), Through($forward), INTEGERS, Through($forward), INTEGERS],
            ..contributed($op, $formula)
        }
    };
}

/// The rows.
pub const RULES: &[Rule] = &[
    binary!("QLinearAdd", "those of a + b, dequantized, and quantized again", |c| pairwise(c, |a, b| a + b))
        .facts(|c| facts::broadcast_of(c, &[0, 3])),
    binary!("QLinearMul", "those of a b, dequantized, and quantized again", |c| pairwise(c, |a, b| a * b))
        .facts(|c| facts::broadcast_of(c, &[0, 3])),
    unary!("QLinearAveragePool", "those of AveragePool, dequantized, and quantized again", average)
        .facts(|c| if c.flag("channels_last") { facts::unknown(c) } else { window::facts::pool(c) })
        .attributes("auto_pad ceil_mode channels_last count_include_pad kernel_shape pads strides"),
    unary!(
        "QLinearGlobalAveragePool",
        "those of the mean of each channel, dequantized, and quantized again",
        global_average
    )
    .facts(|c| if c.flag("channels_last") { facts::unknown(c) } else { window::facts::global(c) })
    .attributes("channels_last"),
    unary!("QLinearLeakyRelu", "those of LeakyRelu, dequantized, and quantized again", |c| {
        let alpha = c.float("alpha", 0.01);
        elementwise(c, |x| Ok(x.above(0.0).select(x, x * alpha)))
    })
    .facts(same)
    .attributes("alpha"),
    unary!("QLinearSigmoid", "those of the sigmoid, dequantized, and quantized again", |c| {
        elementwise(c, |x| Ok(x.sigmoid()))
    })
    .facts(same),
    unary!("QLinearSoftmax", "those of the softmax, dequantized, and quantized again", |c| {
        elementwise(c, |x| softmax(c, x))
    })
    .facts(same)
    .attributes("axis opset"),
    Rule {
        slots: &[Through(concat)],
        ..contributed("QLinearConcat", "those of the joined numbers, dequantized, and quantized again")
    }
    .facts(facts::joined)
    .attributes("axis"),
    Rule {
        slots: &[
            Through(where_),
            Through(where_),
            Through(where_),
            INTEGERS,
            Through(where_),
            Through(where_),
            INTEGERS,
            Through(where_),
            INTEGERS,
        ],
        ..contributed("QLinearWhere", "those of the chosen numbers, dequantized, and quantized again")
    }
    .facts(facts::choose),
    Rule {
        slots: &[
            Through(gemm),
            Through(gemm),
            INTEGERS,
            Through(gemm),
            Through(gemm),
            INTEGERS,
            Through(gemm),
            Through(gemm),
            INTEGERS,
        ],
        ..contributed("QGemm", "those of α A B + C, dequantized, and quantized again where the result is")
    }
    .facts(facts::gemm)
    .attributes("alpha transA transB"),
    Rule {
        slots: &[
            Through(matmul_to_float),
            Through(matmul_to_float),
            Through(matmul_to_float),
            Through(matmul_to_float),
            INTEGERS,
            INTEGERS,
            Through(matmul_to_float),
        ],
        ..rule("MatMulIntegerToFloat", "those of A B + bias, dequantized", &[])
    }
    .facts(|c| linear::facts::matmul(c, 0, 1, c.element(2)))
    .integer_layer(IntegerLayer::Scaled)
    .domain(MICROSOFT)
    .moves_integers()
    .weights(&[6])
    .layer(),
    Rule {
        slots: &[
            Through(dynamic_matmul),
            Through(dynamic_matmul),
            Through(dynamic_matmul),
            INTEGERS,
            Through(dynamic_matmul),
        ],
        ..rule("DynamicQuantizeMatMul", "those of A B + bias, B dequantized", &[])
    }
    .facts(|c| linear::facts::matmul(c, 0, 1, c.element(0)))
    .integer_layer(IntegerLayer::Whole)
    .domain(MICROSOFT)
    .moves_integers()
    .weights(&[4])
    .layer()
    .note("the rounding of A counts as the identity, whatever is asked for: its result holds floating-point numbers"),
];

const fn contributed(op: &'static str, formula: &'static str) -> Rule {
    rule(op, formula, &[]).domain(MICROSOFT).rounds().conventional()
}

type Outputs<'g> = Result<Vec<Option<Expr<'g>>>>;

/// The tensor at `input` with the scale and the zero point behind it, which are one number each, as numbers.
fn number<'g>(c: &Call<'g>, input: usize) -> Result<Expr<'g>> {
    Ok(Steps::new(c, input + 1, columns)?.dequantize(c.input(input)))
}

/// What the operator computes as the integers that it is rounded to, before rounding; the scale is that input.
fn rounded<'g>(c: &Call<'g>, y: Expr<'g>, scale: usize) -> Outputs<'g> {
    let y = Steps::new(c, scale, columns)?.quantize(y, c.y().element()?)?;
    Ok(vec![Some(y.cast_like(c.dy()))])
}

fn pairwise<'g>(c: &Call<'g>, f: fn(Expr<'g>, Expr<'g>) -> Expr<'g>) -> Outputs<'g> {
    rounded(c, f(number(c, 0)?, number(c, 3)?), 6)
}

fn elementwise<'g>(c: &Call<'g>, f: impl FnOnce(Expr<'g>) -> Result<Expr<'g>>) -> Outputs<'g> {
    rounded(c, f(number(c, 0)?)?, 3)
}

fn channels_first(c: &Call<'_>) -> Result<()> {
    ensure!(!c.flag("channels_last", false), "channels_last has no gradient here");
    Ok(())
}

fn average<'g>(c: &Call<'g>) -> Outputs<'g> {
    channels_first(c)?;
    let attributes = c.attributes(&["auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"]);
    elementwise(c, |x| Ok(x.average_pool_of(attributes)))
}

fn global_average<'g>(c: &Call<'g>) -> Outputs<'g> {
    channels_first(c)?;
    elementwise(c, |x| Ok(x.mean(&(2..x.rank()?).collect::<Vec<_>>())))
}

/// The attribute `opset` says which Softmax is meant: before 13 one over all axes from the given one on.
fn softmax<'g>(c: &Call<'g>, x: Expr<'g>) -> Result<Expr<'g>> {
    let rank = x.rank()?;
    if c.int("opset", 13) >= 13 {
        return Ok(x.softmax(normalize_axis(c.int("axis", -1), rank)?));
    }
    let axis = normalize_axis(c.int("axis", 1), rank)?;
    let rows = Expr::concat(&[x.dims(0..axis), c.builder().ints(&[-1])], 0);
    Ok(x.reshape(rows).softmax(axis).reshape_like(x))
}

/// The scale and the zero point of the result come first, then each tensor with its own.
fn concat<'g>(c: &Call<'g>) -> Outputs<'g> {
    let inputs = c.input_count();
    ensure!(
        inputs >= 5 && inputs % 3 == 2,
        "{inputs} inputs are no result and tensors with a scale and a zero point each"
    );
    let parts: Vec<Expr<'g>> = (2..inputs).step_by(3).map(|i| number(c, i)).collect::<Result<_>>()?;
    let axis = parts[0].axis(c.int("axis", 0))?;
    rounded(c, Expr::concat(&parts, axis), 0)
}

fn where_<'g>(c: &Call<'g>) -> Outputs<'g> {
    rounded(c, c.x().select(number(c, 1)?, number(c, 4)?), 7)
}

/// C is in steps of the product of α and both scales.
fn gemm<'g>(c: &Call<'g>) -> Outputs<'g> {
    let (transposed, turned) = (c.flag("transA", false), c.flag("transB", false));
    let of_b = Steps::new(c, 4, if turned { rows } else { columns })?;
    let (a, b) = (number(c, 0)?, of_b.dequantize(c.input(3)));
    let turn = |e: Expr<'g>, turned: bool| if turned { e.transposed() } else { e };
    let mut y = turn(a, transposed).matmul(turn(b, turned));
    if let Some(bias) = c.opt(6) {
        let scale = laid(c.input(1).widened(), Ok)? * laid(c.input(4).widened(), |p| Ok(along(p, 1, 2)))?;
        y = y + bias.cast_like(y) * scale;
    }
    let y = y * c.float("alpha", 1.0);
    if c.opt(7).is_none() {
        return Ok(vec![Some(y.cast_like(c.dy()))]);
    }
    rounded(c, y, 7)
}

/// A, B, their scales, their zero points, and what is added.
fn matmul_to_float<'g>(c: &Call<'g>) -> Outputs<'g> {
    let a = Steps::of(c, 2, 4, rows)?.dequantize(c.x());
    let b = Steps::of(c, 3, 5, columns)?.dequantize(c.input(1));
    let y = a.matmul(b);
    Ok(vec![Some(c.opt(6).map_or(y, |bias| y + bias).cast_like(c.dy()))])
}

fn dynamic_matmul<'g>(c: &Call<'g>) -> Outputs<'g> {
    let y = c.x().matmul(Steps::new(c, 2, columns)?.dequantize(c.input(1)));
    Ok(vec![Some(c.opt(4).map_or(y, |bias| y + bias).cast_like(c.dy()))])
}
