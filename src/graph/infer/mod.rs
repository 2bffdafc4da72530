//! Facts of a node's outputs from those of its inputs: element types, shapes, and the values of computations on shapes.
//!
//! One row an operator, in one file a family. A rule says what is certain and leaves out the rest; it fails only for
//! inputs that make the operator fail at run time.

mod context;
mod elementwise;
mod linear;
mod loss;
mod microsoft;
mod ml;
mod movement;
mod normalize;
mod preview;
mod quantize;
mod random;
mod recurrent;
mod reduce;
mod select;
mod sequence;
mod shape;
mod signal;
mod source;
mod text;
mod value;
mod window;

use super::dim::Dims;
use super::fact::Fact;
use crate::onnx::AttributeProto;
use anyhow::Result;
use context::{Context, Row, Rule};
use rustc_hash::FxHashMap;
use std::sync::LazyLock;

pub use source::constant;

/// An operator as inference sees it.
pub struct Op<'a> {
    /// The operator.
    pub op_type: &'a str,
    /// Its domain, in canonical spelling.
    pub domain: &'a str,
    /// The version of the domain that the model imports: the opset, not the version of the operator.
    pub version: i64,
    /// The attributes.
    pub attributes: &'a [AttributeProto],
    /// How many outputs the node has, those that are left out among them.
    pub outputs: usize,
    /// The symbolic sizes.
    pub dims: &'a Dims,
}

/// The rules by domain and operator.
static RULES: LazyLock<FxHashMap<(&str, &str), Rule>> = LazyLock::new(|| {
    let standard: [&[Row]; 16] = [
        elementwise::ROWS,
        linear::ROWS,
        loss::ROWS,
        movement::ROWS,
        normalize::ROWS,
        quantize::ROWS,
        random::ROWS,
        recurrent::ROWS,
        reduce::ROWS,
        select::ROWS,
        sequence::ROWS,
        shape::ROWS,
        signal::ROWS,
        source::ROWS,
        text::ROWS,
        window::ROWS,
    ];
    let standard = standard.into_iter().flatten().map(|&(name, rule)| (("", name), rule));
    let mut rules: FxHashMap<_, Rule> = standard.collect();
    for name in microsoft::STANDARD {
        rules.extend(rules.get(&("", *name)).map(|&rule| (("com.microsoft", *name), rule)));
    }
    let others = [
        ("ai.onnx.ml", ml::ROWS),
        ("ai.onnx.preview", preview::ROWS),
        ("ai.onnx.preview.training", preview::TRAINING),
        ("com.microsoft", microsoft::ROWS),
    ];
    rules.extend(
        others.into_iter().flat_map(|(domain, rows)| rows.iter().map(move |&(name, rule)| ((domain, name), rule))),
    );
    rules
});

/// The facts of the outputs, as many as [`Op::outputs`]. What is not known, and every output of an operator that is not
/// known, is a [`Fact`] that says nothing.
///
/// # Errors
/// Inputs that the operator cannot take, so that running it would fail: dimensions that contradict each other, a rank that
/// it does not have. The message says what, not where.
pub fn infer(op: &Op, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
    let rules: &FxHashMap<(&str, &str), Rule> = &RULES;
    let mut facts = match rules.get(&(op.domain, op.op_type)) {
        Some(rule) => rule(&Context { op, inputs })?,
        None => Vec::new(),
    };
    facts.resize(op.outputs, Fact::default());
    Ok(facts)
}

#[cfg(test)]
mod tests;
