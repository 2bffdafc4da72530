//! Operators through which no gradient passes by nature.

use super::Slot::*;
use super::{Rule, Slot, rule};
use crate::onnx::ElementType;

/// An operator that passes nothing, for the reason given.
const fn opaque(op: &'static str, slots: &'static [Slot]) -> Rule {
    rule(op, "none", slots)
}

const JUMPS: &[Slot] = &[Stop("an index jumps")];
const TRUTH: &[Slot] = &[Stop("a truth value")];
const DISCRETE: &[Slot] = &[Stop("integers or truth values")];
const SHAPE: &[Slot] = &[Stop("only its shape matters")];
const SIZE: &[Slot] = &[Stop("a size")];
const TEXT: &[Slot] = &[Stop("text, tokens or bytes")];
const MAPS: &[Slot] = &[Stop("maps carry no gradient")];
const STEPS: &[Slot] = &[Stop("piecewise constant")];
const BITS: &[Slot] = &[Stop("the bits of a number, not its value")];
const DATATYPE: &[(&str, Option<ElementType>)] = &[("output_datatype", Some(ElementType::Float))];
const FLOORED: &[Slot] = &[Stop("frequencies are rounded to bins")];

/// The rows.
pub const RULES: &[Rule] = &[
    // Indices.
    opaque("ArgMax", JUMPS),
    opaque("ArgMin", JUMPS),
    opaque("NonMaxSuppression", JUMPS).single(&[0, 1, 3, 4], &[]),
    opaque("NonZero", JUMPS),
    // Comparisons and tests.
    opaque("Equal", TRUTH),
    opaque("Greater", TRUTH),
    opaque("GreaterOrEqual", TRUTH),
    opaque("IsAllFinite", TRUTH).domain("com.microsoft"),
    opaque("IsInf", TRUTH),
    opaque("IsNaN", TRUTH),
    opaque("Less", TRUTH),
    opaque("LessOrEqual", TRUTH),
    // Truth values and bits.
    opaque("And", DISCRETE),
    opaque("BitCast", BITS),
    opaque("BitShift", DISCRETE),
    opaque("BitwiseAnd", DISCRETE),
    opaque("BitwiseNot", DISCRETE),
    opaque("BitwiseOr", DISCRETE),
    opaque("BitwiseXor", DISCRETE),
    opaque("Not", DISCRETE),
    opaque("Or", DISCRETE),
    opaque("Xor", DISCRETE),
    // Only the shape matters.
    opaque("EyeLike", SHAPE).types(&[("dtype", None)]).shapes_only(),
    opaque("Shape", SHAPE).shapes_only(),
    opaque("Size", SHAPE).shapes_only(),
    // Values out of sizes and attributes.
    opaque("BlackmanWindow", SIZE).types(DATATYPE),
    opaque("Constant", SIZE),
    opaque("ConstantOfShape", SIZE),
    opaque("HammingWindow", SIZE).types(DATATYPE),
    opaque("HannWindow", SIZE).types(DATATYPE),
    opaque("MelWeightMatrix", FLOORED).types(DATATYPE),
    // Text and encoded images.
    opaque("ImageDecoder", TEXT),
    opaque("RegexFullMatch", TEXT),
    opaque("StringConcat", TEXT),
    opaque("StringNormalizer", TEXT),
    opaque("StringSplit", TEXT),
    opaque("TfIdfVectorizer", TEXT),
    // Trees, thresholds and categories of classical machine learning.
    opaque("Binarizer", STEPS).domain("ai.onnx.ml"),
    opaque("CastMap", MAPS).domain("ai.onnx.ml"),
    opaque("CategoryMapper", TEXT).domain("ai.onnx.ml"),
    opaque("DictVectorizer", MAPS).domain("ai.onnx.ml"),
    opaque("LabelEncoder", STEPS).domain("ai.onnx.ml"),
    opaque("OneHotEncoder", STEPS).domain("ai.onnx.ml"),
    opaque("TreeEnsemble", STEPS).domain("ai.onnx.ml"),
    opaque("TreeEnsembleClassifier", STEPS).domain("ai.onnx.ml"),
    opaque("TreeEnsembleRegressor", STEPS).domain("ai.onnx.ml"),
    opaque("ZipMap", MAPS).domain("ai.onnx.ml"),
];
