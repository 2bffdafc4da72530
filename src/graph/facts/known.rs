//! A node as the function of a row sees it.

use super::Op;
use crate::graph::{Container, Dim, Dims, Fact, Shape};
use crate::onnx::{ElementType, attribute};
use anyhow::{Result, bail, ensure};

/// Lists of integers that are longer than this are not shapes: no tensor has so many dimensions.
const MAX_RANK: i64 = 64;

/// A node: its operator, and what is known of its inputs.
pub struct Known<'a> {
    /// The operator.
    pub op: &'a Op<'a>,
    /// What is known of each input; `None` for an optional one that is left out.
    pub inputs: &'a [Option<&'a Fact>],
}

/// A list of integers that is an attribute in some versions of an operator and an input in others.
pub enum Parameter<T> {
    /// Neither is there.
    Absent,
    /// The values are not known, maybe their number.
    Unknown(Option<usize>),
    /// The values.
    Known(Vec<T>),
}

impl<'a> Known<'a> {
    /// What is known of an input; `None` where the node leaves it out.
    pub fn input(&self, i: usize) -> Option<&'a Fact> {
        self.inputs.get(i).copied().flatten()
    }

    /// The element type of an input; `None` where it is left out, or its type is not known.
    pub fn element(&self, i: usize) -> Option<ElementType> {
        self.input(i)?.element
    }

    /// The dimensions of an input, numbers or symbols; `None` where it is left out, or its rank is not known.
    pub fn shape(&self, i: usize) -> Option<&'a [Dim]> {
        self.input(i)?.shape.as_deref()
    }

    /// The number of dimensions of an input; `None` where it is left out, or its rank is not known.
    pub fn rank(&self, i: usize) -> Option<usize> {
        self.input(i)?.rank()
    }

    /// The symbolic sizes, which are added and multiplied by it.
    pub fn dims(&self) -> &'a Dims {
        self.op.dims
    }

    /// So many dimensions of unknown size, no two known to be equal.
    pub fn fresh(&self, rank: usize) -> Vec<Dim> {
        (0..rank).map(|_| self.dims().fresh()).collect()
    }

    /// An attribute that is an integer, or the default where the node leaves it out.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        attribute::get_int(self.op.attributes, name).unwrap_or(default)
    }

    /// An attribute that is a truth value, false without it.
    pub fn flag(&self, name: &str) -> bool {
        self.int(name, 0) != 0
    }

    /// An attribute that is a list of integers; `None` where the node leaves it out.
    pub fn ints(&self, name: &str) -> Option<&'a [i64]> {
        attribute::get_ints(self.op.attributes, name)
    }

    /// An attribute that is a list of numbers; `None` where the node leaves it out.
    pub fn floats(&self, name: &str) -> Option<Vec<f64>> {
        Some(attribute::find(self.op.attributes, name)?.floats.iter().map(|&v| v.into()).collect())
    }

    /// How many elements a list has; 0 where it is not there.
    pub fn count(&self, name: &str) -> usize {
        attribute::find(self.op.attributes, name).map_or(0, |a| a.ints.len().max(a.strings.len()).max(a.floats.len()))
    }

    /// The tensor that an attribute is; `None` where the node leaves it out.
    pub fn constant(&self, name: &str) -> Option<Fact> {
        attribute::get_tensor(self.op.attributes, name).map(super::constant)
    }

    /// The type that an attribute is.
    pub fn declared(&self, name: &str) -> Option<Fact> {
        let declared = attribute::find(self.op.attributes, name)?.tp.as_deref()?;
        Some(crate::graph::fact_of_type(Some(declared), self.dims()))
    }

    /// An attribute that is text; `None` where the node leaves it out, or it is no UTF-8.
    pub fn string(&self, name: &str) -> Option<&'a str> {
        attribute::get_string(self.op.attributes, name)
    }

    /// Whether the node has an attribute.
    pub fn has(&self, name: &str) -> bool {
        attribute::find(self.op.attributes, name).is_some()
    }

    /// The element type that an attribute names by number; absent and 0 alike say nothing.
    pub fn type_attribute(&self, name: &str) -> Option<ElementType> {
        let number = attribute::get_int(self.op.attributes, name)?;
        let element = ElementType::from_number(i32::try_from(number).ok()?);
        (element != ElementType::Undefined).then_some(element)
    }

    /// The attribute that names an axis of a tensor of that rank, counted from the front.
    ///
    /// # Errors
    /// A tensor of that rank has no such axis.
    pub fn axis(&self, name: &str, default: i64, rank: usize) -> Result<usize> {
        axis(self.int(name, default), rank)
    }

    /// The integers, maybe symbolic, of the attribute, or else of the input.
    pub fn sizes(&self, input: usize, name: &str) -> Parameter<Dim> {
        if let Some(ints) = self.ints(name) {
            return Parameter::Known(ints.iter().map(|&n| Dim::Known(n)).collect());
        }
        let Some(fact) = self.input(input) else { return Parameter::Absent };
        match fact.dims() {
            Some(dims) => Parameter::Known(dims),
            None => match list_length(fact) {
                Some(0) => Parameter::Known(Vec::new()),
                length => Parameter::Unknown(length),
            },
        }
    }

    /// The integers of the attribute, or else of the input.
    pub fn integers(&self, input: usize, name: &str) -> Parameter<i64> {
        match self.sizes(input, name) {
            Parameter::Absent => Parameter::Absent,
            Parameter::Unknown(length) => Parameter::Unknown(length),
            Parameter::Known(dims) => {
                let length = dims.len();
                match dims.into_iter().map(Dim::known).collect() {
                    Some(ints) => Parameter::Known(ints),
                    None => Parameter::Unknown(Some(length)),
                }
            }
        }
    }

    /// The one integer that an input holds, maybe symbolic.
    pub fn scalar(&self, input: usize) -> Option<Dim> {
        match self.input(input)?.uniform()? {
            crate::graph::Scalar::Int(dim) => Some(dim),
            crate::graph::Scalar::Float(_) => None,
        }
    }

    /// Each output is like the input: element type and shape, no value.
    pub fn like(&self, i: usize) -> Fact {
        let Some(input) = self.input(i) else { return Fact::default() };
        Fact { value: None, ..input.clone() }
    }
}

/// How many integers a list holds, where that many can be a shape.
fn list_length(fact: &Fact) -> Option<usize> {
    match fact.shape.as_deref()? {
        [] => Some(1),
        [Dim::Known(n)] if (0..=MAX_RANK).contains(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

/// A tensor of an element type and a shape.
pub fn tensor(element: Option<ElementType>, shape: Option<Vec<Dim>>) -> Fact {
    Fact::tensor(element, shape.map(Shape::from))
}

/// The axis counted from the front.
pub fn axis(axis: i64, rank: usize) -> Result<usize> {
    let positive = if axis < 0 { axis.saturating_add_unsigned(rank as u64) } else { axis };
    match usize::try_from(positive) {
        Ok(positive) if positive < rank => Ok(positive),
        _ => bail!("axis {axis} is out of range for rank {rank}"),
    }
}

/// As [`axis`], for a place between axes: the rank is one too.
pub fn boundary(at: i64, rank: usize) -> Result<usize> {
    let positive = if at < 0 { at.saturating_add_unsigned(rank as u64) } else { at };
    match usize::try_from(positive) {
        Ok(positive) if positive <= rank => Ok(positive),
        _ => bail!("axis {at} is out of range for rank {rank}"),
    }
}

/// The axes counted from the front.
pub fn axes(axes: &[i64], rank: usize) -> Result<Vec<usize>> {
    axes.iter().map(|&a| axis(a, rank)).collect()
}

/// For each axis whether it is listed.
pub fn mask(listed: &[i64], rank: usize) -> Result<Vec<bool>> {
    let mut mask = vec![false; rank];
    for &a in listed {
        if let Some(flag) = mask.get_mut(axis(a, rank)?) {
            *flag = true;
        }
    }
    Ok(mask)
}

/// What is certain of a size that two sources say: the number, where one is.
///
/// `None` where they contradict each other.
pub fn unify(a: Dim, b: Dim) -> Option<Dim> {
    match (a, b) {
        (Dim::Known(a), Dim::Known(b)) => (a == b).then_some(Dim::Known(a)),
        (Dim::Known(_), Dim::Symbol(_)) => Some(a),
        (Dim::Symbol(_), Dim::Known(_)) => Some(b),
        (Dim::Symbol(_), Dim::Symbol(_)) => Some(a),
    }
}

/// The shape to which shapes broadcast (ONNX, "Broadcasting in ONNX", the multidirectional kind).
pub fn broadcast(dims: &Dims, shapes: &[&[Dim]]) -> Result<Vec<Dim>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut result: Vec<Dim> = Vec::with_capacity(rank);
    for from_end in (1..=rank).rev() {
        let (mut number, mut symbol, mut several) = (None, None, false);
        for shape in shapes {
            let Some(&dim) = shape.len().checked_sub(from_end).and_then(|at| shape.get(at)) else { continue };
            match dim {
                Dim::Known(1) => (),
                Dim::Known(n) => {
                    ensure!(
                        number.is_none_or(|known| known == n),
                        "dimensions {} do not broadcast",
                        shapes.iter().map(|s| dims.display(s)).collect::<Vec<_>>().join(" and ")
                    );
                    number = Some(n);
                }
                Dim::Symbol(_) => {
                    several |= symbol.is_some_and(|s| s != dim);
                    symbol = Some(dim);
                }
            }
        }
        result.push(match (number, symbol) {
            (Some(n), _) => Dim::Known(n),
            (None, Some(_)) if several => dims.fresh(),
            (None, Some(symbol)) => symbol,
            (None, None) => Dim::Known(1),
        });
    }
    Ok(result)
}

/// As [`broadcast`], where some shapes may not be known.
pub fn broadcast_known(dims: &Dims, shapes: &[Option<&[Dim]>]) -> Result<Option<Vec<Dim>>> {
    match shapes.iter().copied().collect::<Option<Vec<_>>>() {
        Some(shapes) => broadcast(dims, &shapes).map(Some),
        None => Ok(None),
    }
}

/// The shape that an input's values say, of a tensor that is made to measure.
pub fn from_sizes(c: &Known, sizes: Parameter<Dim>) -> Option<Shape> {
    match sizes {
        Parameter::Known(dims) if dims.iter().all(|d| d.known().is_none_or(|n| n >= 0)) => Some(dims.into()),
        Parameter::Known(dims) => Some(c.fresh(dims.len()).into()),
        Parameter::Unknown(Some(rank)) => Some(c.fresh(rank).into()),
        Parameter::Unknown(None) | Parameter::Absent => None,
    }
}

/// The shape with another size on one axis.
pub fn with_axis(shape: &[Dim], axis: usize, size: Dim) -> Vec<Dim> {
    let mut dims = shape.to_vec();
    if let Some(dim) = dims.get_mut(axis) {
        *dim = size;
    }
    dims
}

/// The axis that an attribute names, of an input whose rank is known.
pub fn axis_of(c: &Known, i: usize, default: i64) -> Result<Option<usize>> {
    c.rank(i).map(|rank| c.axis("axis", default, rank)).transpose()
}

/// Fails where two sizes that are known differ.
pub fn agree(what: &str, a: Dim, b: Dim) -> Result<Dim> {
    match unify(a, b) {
        Some(dim) => Ok(dim),
        None => bail!("{what}: {} and {} differ", a.known().unwrap_or(-1), b.known().unwrap_or(-1)),
    }
}

/// A size of a shape; one of which nothing is known where there is none.
pub fn at(c: &Known, shape: Option<&[Dim]>, axis: usize) -> Dim {
    shape.and_then(|s| s.get(axis)).copied().unwrap_or_else(|| c.dims().fresh())
}

/// What holds of a value that is one of two: a dimension in which they differ is unknown.
pub fn either(a: &Fact, b: &Fact, dims: &Dims) -> Fact {
    let shape = a.shape.as_ref().zip(b.shape.as_ref()).and_then(|(a, b)| {
        let dim = |(&a, &b): (&Dim, &Dim)| if a == b { a } else { dims.fresh() };
        (a.len() == b.len()).then(|| a.iter().zip(b.iter()).map(dim).collect())
    });
    Fact {
        container: if a.container == Container::Tensor { b.container } else { a.container },
        element: a.element.or(b.element),
        shape,
        value: None,
    }
}

/// Sizes that stand opposite each other when two shapes broadcast, none of them one.
pub fn opposite(a: &[Dim], b: &[Dim]) -> Vec<(Dim, Dim)> {
    let one = |d: Dim| d.known() == Some(1);
    let pairs = a.iter().rev().copied().zip(b.iter().rev().copied());
    pairs.filter(|&(a, b)| !one(a) && !one(b)).collect()
}
