//! What is known of a tensor before anything runs.

use super::dim::Dim;
use crate::onnx::ElementType;
use std::rc::Rc;

/// The dimensions of a tensor whose rank is known.
pub type Shape = Rc<[Dim]>;

/// What holds the elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Container {
    /// A tensor.
    #[default]
    Tensor,
    /// A sequence of tensors; its [`Fact::shape`] is that of every element, where they share one.
    Sequence,
    /// An optional tensor or an optional sequence.
    Optional,
    /// A map, a sparse tensor, an opaque value: nothing that carries gradients.
    Other,
}

impl Container {
    /// What messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Container::Tensor => "a tensor",
            Container::Sequence => "a sequence",
            Container::Optional => "an optional",
            Container::Other => "neither a tensor nor a sequence",
        }
    }
}

/// One element of a small tensor: of a shape, an index, a scale. Booleans are 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// An integer, maybe symbolic.
    Int(Dim),
    /// A number.
    Float(f64),
}

/// The elements of a tensor, where they are known.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Each element, in row-major order, of a tensor that is small and whose shape is known.
    Elements(Rc<[Scalar]>),
    /// One value in every place, whatever the shape.
    Uniform(Scalar),
}

/// Tensors of more elements than this are not worth following element by element.
pub const MAX_ELEMENTS: usize = 1024;

/// What is known of a tensor. Every fact is true of every run; what is not sure is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fact {
    /// What holds the elements.
    pub container: Container,
    /// The element type.
    pub element: Option<ElementType>,
    /// The dimensions; `None` where not even their number is known.
    pub shape: Option<Shape>,
    /// The elements.
    pub value: Option<Value>,
}

impl Fact {
    /// A tensor of which element type and shape may be known.
    pub fn tensor(element: Option<ElementType>, shape: Option<Shape>) -> Self {
        Fact { element, shape, ..Fact::default() }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(|s| s.len())
    }

    /// The dimensions, where every one is a number.
    pub fn known_shape(&self) -> Option<Vec<i64>> {
        self.shape.as_ref()?.iter().map(|d| d.known()).collect()
    }

    /// The number of elements, where every dimension is a number.
    pub fn element_count(&self) -> Option<i64> {
        self.known_shape()?.iter().try_fold(1i64, |n, &d| n.checked_mul(d))
    }

    /// Each element of a small tensor, also of one that holds one value in every place.
    pub fn elements(&self) -> Option<Rc<[Scalar]>> {
        match self.value.as_ref()? {
            Value::Elements(elements) => Some(elements.clone()),
            Value::Uniform(scalar) => {
                let count = usize::try_from(self.element_count()?).ok()?;
                (count <= MAX_ELEMENTS).then(|| vec![*scalar; count].into())
            }
        }
    }

    /// The elements as integers, maybe symbolic.
    pub fn dims(&self) -> Option<Vec<Dim>> {
        let int = |s: &Scalar| match s {
            Scalar::Int(d) => Some(*d),
            Scalar::Float(_) => None,
        };
        self.elements()?.iter().map(int).collect()
    }

    /// The elements as integers, where each is a number.
    pub fn ints(&self) -> Option<Vec<i64>> {
        self.dims()?.into_iter().map(Dim::known).collect()
    }

    /// The elements as floating-point numbers.
    pub fn floats(&self) -> Option<Vec<f64>> {
        let float = |s: &Scalar| match s {
            Scalar::Float(v) => Some(*v),
            Scalar::Int(_) => None,
        };
        self.elements()?.iter().map(float).collect()
    }

    /// The value that stands in every place.
    pub fn uniform(&self) -> Option<Scalar> {
        match self.value.as_ref()? {
            Value::Uniform(scalar) => Some(*scalar),
            Value::Elements(elements) => {
                let (first, rest) = elements.split_first()?;
                rest.iter().all(|e| e == first).then_some(*first)
            }
        }
    }

    /// Whether the tensor is one of floating-point elements, or may be.
    pub fn may_carry_gradient(&self) -> bool {
        self.container != Container::Other && self.element.is_none_or(ElementType::is_float)
    }
}
