//! The language in which a row says what is known of its outputs before anything runs: element types, shapes, and the
//! values of computations on shapes.
//!
//! [`Known`] is a node as the function of a row sees it, `value` the arithmetic on known elements. A function says what
//! is certain and leaves out the rest; it fails only for inputs that make the operator fail at run time. The functions
//! themselves stand with the rows, in the families of [`crate::rules`].

mod known;
pub(crate) mod value;

pub use known::*;

use super::dim::{Dim, Dims};
use super::fact::{Fact, MAX_ELEMENTS, Scalar, Value};
use crate::onnx::constant_value;
use crate::onnx::{AttributeProto, ElementType, TensorProto};
use anyhow::Result;

/// An operator as facts are asked for.
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

/// The facts of the outputs of an operator; outputs that are missing at the end have facts that say nothing.
///
/// It fails for inputs that the operator cannot take, so that running it would fail: dimensions that contradict each
/// other, a rank that it does not have. The message says what, not where.
pub type Infer = fn(&Known) -> Result<Vec<Fact>>;

/// As [`Infer`], of any operator; nothing is known of one that is not in the table.
pub type InferAny = fn(&Op, &[Option<&Fact>]) -> Result<Vec<Fact>>;

/// As [`InferAny`], of operators that only one request knows.
pub type InferOwn = dyn Fn(&Op, &[Option<&Fact>]) -> Option<Result<Vec<Fact>>>;

/// What is known of a constant tensor: element type, shape, and the elements where they are few and can be read.
pub fn constant(tensor: &TensorProto) -> Fact {
    let element = tensor.element_type();
    let small = tensor.element_count().is_some_and(|n| n <= MAX_ELEMENTS) && !tensor.is_external();
    let value = match element {
        _ if !small => None,
        e if e.is_float() => tensor.floats().ok().map(|v| v.into_iter().map(Scalar::Float).collect()),
        _ => tensor.integers().ok().map(|v| v.into_iter().map(|n| Scalar::Int(n.into())).collect::<Vec<_>>()),
    };
    // The upper half of 64 bits without a sign is read as negative numbers.
    let wrapped = |v: &Vec<Scalar>| v.iter().any(|s| matches!(s, Scalar::Int(Dim::Known(n)) if *n < 0));
    let value = value.filter(|v| element != ElementType::Uint64 || !wrapped(v));
    let shape: Vec<Dim> = tensor.dims.iter().map(|&n| n.into()).collect();
    let known = (element != ElementType::Undefined).then_some(element);
    Fact { value: value.map(|v| Value::Elements(v.into())), ..known::tensor(known, Some(shape)) }
}

/// The one attribute says what: a tensor, a sparse one, numbers, strings. A sparse one is not written out to be known.
pub fn constant_node(c: &Known) -> Result<Vec<Fact>> {
    let known = |a: &AttributeProto| {
        Some(match a.name() {
            "sparse_value" => {
                let sparse = a.sparse_tensor.as_ref()?;
                let element = sparse.values.as_ref()?.element_type();
                tensor(Some(element), Some(sparse.dims.iter().map(|&n| n.into()).collect()))
            }
            "value_string" => tensor(Some(ElementType::String), Some(vec![])),
            "value_strings" => tensor(Some(ElementType::String), Some(vec![Dim::Known(a.strings.len() as i64)])),
            _ => constant(&*constant_value(std::slice::from_ref(a)).ok()??),
        })
    };
    Ok(vec![c.op.attributes.iter().find_map(known).unwrap_or_default()])
}
