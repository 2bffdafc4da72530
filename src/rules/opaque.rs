//! Operators through which no gradient passes by nature.

use super::Slot::*;
use super::elementwise::facts::{binary, bit_cast, compare, predicate};
use super::facts::{same, unknown};
use super::properties::Arithmetic;
use super::{Rule, Slot};
use super::{opaque, reduction, shape};
use crate::graph::facts::{Known, tensor, value};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

const JUMPS: &[Slot] = &[Stop("an index jumps")];
const TRUTH: &[Slot] = &[Stop("a truth value")];
const DISCRETE: &[Slot] = &[Stop("integers or truth values")];
const SHAPE: &[Slot] = &[Stop("only its shape matters")];
const BITS: &[Slot] = &[Stop("the bits of a number, not its value")];

/// The rows.
pub const RULES: &[Rule] = &[
    // Indices.
    opaque("ArgMax", JUMPS).facts(reduction::facts::arg),
    opaque("ArgMin", JUMPS).facts(reduction::facts::arg),
    opaque("NonMaxSuppression", JUMPS)
        .facts(|c| Ok(vec![tensor(Some(ElementType::Int64), Some(vec![c.dims().fresh(), 3.into()]))]))
        .single(&[0, 1, 3, 4], &[]),
    opaque("NonZero", JUMPS).facts(non_zero),
    // Comparisons and tests.
    opaque("Equal", TRUTH).facts(|c| compare(c, value::equal)).arithmetic(Arithmetic::Equal),
    opaque("Greater", TRUTH).facts(|c| compare(c, value::greater)).arithmetic(Arithmetic::Order),
    opaque("GreaterOrEqual", TRUTH).facts(|c| compare(c, value::greater_or_equal)).arithmetic(Arithmetic::Order),
    opaque("IsAllFinite", TRUTH)
        .facts(|_| Ok(vec![tensor(Some(ElementType::Bool), Some(vec![]))]))
        .domain("com.microsoft"),
    opaque("IsInf", TRUTH).facts(predicate),
    opaque("IsNaN", TRUTH).facts(predicate),
    opaque("Less", TRUTH).facts(|c| compare(c, value::less)).arithmetic(Arithmetic::Order),
    opaque("LessOrEqual", TRUTH).facts(|c| compare(c, value::less_or_equal)).arithmetic(Arithmetic::Order),
    // Truth values and bits.
    opaque("And", DISCRETE).facts(|c| compare(c, value::and)),
    opaque("BitCast", BITS).facts(bit_cast),
    opaque("BitShift", DISCRETE).facts(|c| binary(c, unknown)),
    opaque("BitwiseAnd", DISCRETE).facts(|c| binary(c, unknown)),
    opaque("BitwiseNot", DISCRETE).facts(same),
    opaque("BitwiseOr", DISCRETE).facts(|c| binary(c, unknown)),
    opaque("BitwiseXor", DISCRETE).facts(|c| binary(c, unknown)),
    opaque("Not", DISCRETE).facts(|c| compare(c, value::not)),
    opaque("Or", DISCRETE).facts(|c| compare(c, value::or)),
    opaque("Xor", DISCRETE).facts(|c| compare(c, value::xor)),
    // Only the shape matters.
    opaque("Shape", SHAPE).facts(shape::facts::shape).measures(),
    opaque("Size", SHAPE).facts(shape::facts::size).shapes_only(),
];

fn non_zero(c: &Known) -> Result<Vec<Fact>> {
    let rank = c.rank(0).filter(|&r| r > 0).map_or_else(|| c.dims().fresh(), |r| Dim::Known(r as i64));
    Ok(vec![tensor(Some(ElementType::Int64), Some(vec![rank, c.dims().fresh()]))])
}
