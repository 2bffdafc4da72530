//! Operators by the words of their specification, in float64. They are slow and plain on purpose; they share nothing
//! with the formulas of the gradients, and know no engine.

mod array;
mod attention;
mod contributed;
mod elementwise;
mod linear;
mod losses;
mod ml;
mod movement;
mod normalization;
mod optimizers;
mod quantized;
mod random;
mod recurrent;
mod reduction;
mod resampling;

pub use array::{Array, Element, broadcast, each_index};
#[cfg(test)]
pub use linear::product;

use crate::onnx::{ElementType, NodeProto, attribute};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::sync::LazyLock;

/// What computes the outputs of a node.
pub type Kernel = fn(&Call) -> Result<Vec<Array>>;

/// An operator, its domain, and how it is computed.
pub struct Row {
    pub op: &'static str,
    pub domain: &'static str,
    pub run: Kernel,
    /// Whether the output has the first input's shape and element type.
    pub alike: bool,
}

const fn row(op: &'static str, run: Kernel) -> Row {
    Row { op, domain: "", run, alike: false }
}

impl Row {
    const fn domain(mut self, domain: &'static str) -> Self {
        self.domain = domain;
        self
    }

    const fn alike(mut self) -> Self {
        self.alike = true;
        self
    }
}

const FAMILIES: &[&[Row]] = &[
    attention::ROWS,
    contributed::ROWS,
    elementwise::ROWS,
    linear::ROWS,
    losses::ROWS,
    ml::ROWS,
    movement::ROWS,
    normalization::ROWS,
    optimizers::ROWS,
    quantized::ROWS,
    random::ROWS,
    recurrent::ROWS,
    reduction::ROWS,
    resampling::ROWS,
];

/// The rows by domain and operator.
static TABLE: LazyLock<HashMap<(&str, &str), &Row>> = LazyLock::new(|| rows().map(|r| ((r.domain, r.op), r)).collect());

/// All rows.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    FAMILIES.iter().copied().flatten()
}

/// The row of an operator.
pub fn find(domain: &str, op: &str) -> Option<&'static Row> {
    TABLE.get(&(domain, op)).copied()
}

/// What a body with one input and one output makes of a tensor; `None` where the node has no body of that name.
pub type Body<'a> = dyn Fn(&str, &Array) -> Result<Option<Array>> + 'a;

/// A node as a kernel sees it.
pub struct Call<'a> {
    pub node: &'a NodeProto,
    /// The version of the operator's domain.
    pub opset: i64,
    /// The inputs; `None` where one is left out.
    pub inputs: Vec<Option<Array>>,
    /// The element types of the inputs.
    pub types: Vec<Option<ElementType>>,
    /// Runs a body of the node.
    pub body: &'a Body<'a>,
}

impl Call<'_> {
    pub fn input(&self, i: usize) -> Result<&Array> {
        self.opt(i).with_context(|| format!("input {i} is missing"))
    }

    pub fn opt(&self, i: usize) -> Option<&Array> {
        self.inputs.get(i)?.as_ref()
    }

    pub fn x(&self) -> Result<&Array> {
        self.input(0)
    }

    /// Whether an input holds truth values.
    pub fn is_bool(&self, i: usize) -> bool {
        self.types.get(i) == Some(&Some(ElementType::Bool))
    }

    /// Whether an input holds integers.
    pub fn is_integer(&self, i: usize) -> bool {
        self.types.get(i).copied().flatten().is_some_and(|t| t.is_integer())
    }

    /// Whether the node has an output of that number.
    pub fn has_output(&self, i: usize) -> bool {
        self.node.output.get(i).is_some_and(|o| !o.is_empty())
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        attribute::get_int(&self.node.attribute, name).unwrap_or(default)
    }

    pub fn float(&self, name: &str, default: f32) -> f64 {
        attribute::get_float(&self.node.attribute, name).unwrap_or(default).into()
    }

    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        attribute::get_ints(&self.node.attribute, name).map(<[i64]>::to_vec)
    }

    pub fn string(&self, name: &str, default: &'static str) -> &str {
        attribute::get_string(&self.node.attribute, name).unwrap_or(default)
    }

    /// The element type that an attribute names.
    pub fn element(&self, name: &str, default: Element) -> Element {
        let number = attribute::get_int(&self.node.attribute, name).and_then(|n| i32::try_from(n).ok());
        number.map_or(default, |n| Element::Is(ElementType::from_number(n)))
    }

    /// An axis, counted from the front.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let from_front = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(from_front)
            .ok()
            .filter(|&a| a < rank)
            .with_context(|| format!("rank {rank} has no axis {axis}"))
    }
}
