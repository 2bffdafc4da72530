//! Formulas over tensors that write nodes: `dy * (1.0 - y * y)` is a Mul, a Sub and a Mul.
//!
//! An [`Expr`] is a value of the graph together with the [`Builder`] that appends to it. Arithmetic and the operators
//! of ONNX are methods that return expressions and never fail: what cannot be built is recorded in the builder, once,
//! and whoever called for the formula asks for it. Questions about an expression ([`Expr::rank`], [`Expr::element`]) do
//! fail.

mod arithmetic;
mod bodies;
mod builder;
mod ops;
pub mod rewrite;
mod shut;
mod tame;
mod unbroadcast;
mod zero;

pub use builder::Builder;
pub(crate) use ops::Zeros;
pub use ops::{Along, ConvLike, GRADIENT_DOMAINS, PREVIEW, Pool, Resized, Rounding, View, is_gradient};

use crate::graph::{Dim, Fact, Producer, Scalar, ValueId};
use crate::onnx::ElementType;
use anyhow::{Context, Result};

/// A tensor of the graph that is being built.
#[derive(Clone, Copy)]
pub struct Expr<'g> {
    builder: &'g Builder,
    id: ValueId,
}

impl PartialEq for Expr<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl std::fmt::Debug for Expr<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {:?}", self.id, self.fact())
    }
}

impl<'g> Expr<'g> {
    /// The value in the graph.
    pub(crate) fn id(self) -> ValueId {
        self.id
    }

    /// The builder that the expression appends to.
    pub fn builder(self) -> &'g Builder {
        self.builder
    }

    /// What is known of it.
    pub fn fact(self) -> Fact {
        self.builder.fact(self.id)
    }

    /// The element type.
    ///
    /// # Errors
    /// It is not known, as with the outputs of operators that are not known.
    pub fn element(self) -> Result<ElementType> {
        self.fact()
            .element
            .with_context(|| format!("the element type of {self} is not known; add value_info to the model"))
    }

    /// The number of dimensions.
    ///
    /// # Errors
    /// It is not known.
    pub fn rank(self) -> Result<usize> {
        self.fact().rank().with_context(|| self.builder.graph().why_no_rank(self.id))
    }

    /// The sizes of the dimensions, known or symbolic.
    ///
    /// # Errors
    /// Not even their number is known.
    pub fn sizes(self) -> Result<Vec<Dim>> {
        let shape = self.fact().shape.map(|s| s.to_vec());
        shape.with_context(|| self.builder.graph().why_no_rank(self.id))
    }

    /// The size of one dimension, where it is a known number.
    pub fn known_dim(self, axis: usize) -> Option<i64> {
        self.fact().shape?.get(axis)?.known()
    }

    /// The size of one dimension, of which a formula needs the number.
    ///
    /// # Errors
    /// It is not known.
    pub fn number_along(self, axis: usize) -> Result<i64> {
        self.known_dim(axis).with_context(|| self.builder.graph().why_no_size(self.id, axis))
    }

    /// The elements, where they are known integers.
    pub fn ints(self) -> Option<Vec<i64>> {
        self.fact().ints()
    }

    /// The one value of all elements, where it is a number that may be written in place of the tensor.
    pub fn constant(self) -> Option<f64> {
        if self.builder.is_literal(self.id) { self.parameter() } else { None }
    }

    /// The one value of all elements, where it is a known number: of a parameter of the operator (a scale of Resize,
    /// the ratio of Dropout), which counts as a constant by convention even where an initializer holds it.
    pub fn parameter(self) -> Option<f64> {
        match self.fact().uniform()? {
            Scalar::Float(v) => Some(v),
            Scalar::Int(d) => d.known().map(|n| n as f64),
        }
    }

    /// Whether the model is given it, as an input or an initializer, and does not compute it.
    pub fn is_given(self) -> bool {
        matches!(self.builder.graph().value(self.id).producer, Producer::Input | Producer::Initializer)
    }

    /// Whether it has floating-point elements.
    pub fn is_float(self) -> bool {
        self.fact().element.is_some_and(ElementType::is_float)
    }

    /// An axis that may count from the back, from the front.
    ///
    /// # Errors
    /// The rank is not known, or has no such axis.
    pub fn axis(self, axis: i64) -> Result<usize> {
        normalize_axis(axis, self.rank()?)
    }

    /// Whether the two have the same shape in every run.
    pub fn same_shape(self, other: Expr<'g>) -> bool {
        self.builder.graph().same_shape(self.id, other.id)
    }
}

/// An axis that may count from the back, from the front.
///
/// # Errors
/// A tensor of that rank has no such axis.
pub fn normalize_axis(axis: i64, rank: usize) -> Result<usize> {
    let from_front = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    from_front
        .and_then(|a| usize::try_from(a).ok())
        .filter(|&a| a < rank.max(1))
        .with_context(|| format!("axis {axis} is out of range for rank {rank}"))
}

impl std::fmt::Display for Expr<'_> {
    /// The name where the tensor has one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.builder.graph().value(self.id).name.as_deref() {
            Some(name) => write!(f, "'{name}'"),
            None => write!(f, "an intermediate tensor"),
        }
    }
}
