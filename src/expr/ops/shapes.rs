//! Shapes as tensors, and tensors in other shapes.

use super::Expr;
use crate::onnx::attribute::{int, ints};
use anyhow::ensure;

impl<'g> Expr<'g> {
    /// The shape, `int64[rank]`: a constant where all of it is known, else computed (ONNX Shape).
    pub fn shape(self) -> Expr<'g> {
        match self.fact().known_shape() {
            Some(shape) => self.builder.ints(&shape),
            None => self.builder.emit("Shape", &[Some(self.before_cast())], vec![]),
        }
    }

    /// The size of a dimension, an int64 without dimensions.
    pub fn dim(self, axis: usize) -> Expr<'g> {
        match self.known_dim(axis) {
            Some(n) => self.builder.int(n),
            None => self.shape().gather(self.builder.int(axis as i64), 0),
        }
    }

    /// The sizes of some dimensions, in their order, `int64[axes]`.
    pub fn dims(self, axes: impl IntoIterator<Item = usize>) -> Expr<'g> {
        let axes: Vec<i64> = axes.into_iter().map(|a| a as i64).collect();
        let known: Option<Vec<i64>> = axes.iter().map(|&a| self.known_dim(a as usize)).collect();
        match known {
            Some(sizes) => self.builder.ints(&sizes),
            None => self.shape().gather(self.builder.ints(&axes), 0),
        }
    }

    /// The shape with another size, a list of one, along an axis.
    pub fn shape_with(self, axis: usize, size: Expr<'g>) -> Expr<'g> {
        self.builder.attempt(|| {
            let sizes = (0..self.rank()?).map(|a| if a == axis { size } else { self.dims([a]) });
            Ok(self.builder.joined(&sizes.collect::<Vec<_>>()))
        })
    }

    /// How many elements there are, an int64 without dimensions (ONNX Size).
    pub fn size(self) -> Expr<'g> {
        match self.fact().element_count() {
            Some(n) => self.builder.int(n),
            None => self.builder.emit("Size", &[Some(self.before_cast())], vec![]),
        }
    }

    /// A tensor of the same shape that needs no Cast.
    fn before_cast(self) -> Expr<'g> {
        self.operand_of("Cast").unwrap_or(self)
    }

    /// The product of some dimensions as a number of the element type of `like`: what a mean divides by. Half precision
    /// has no numbers above 65504, which images and batches reach: there `like` is something wider.
    pub fn count(self, axes: &[usize], like: Expr<'g>) -> Expr<'g> {
        let known = axes.iter().try_fold(1i64, |n, &a| n.checked_mul(self.known_dim(a)?));
        match known {
            Some(n) => like.like(n as f64),
            None => self.dims(axes.iter().copied()).cast_like(like).reduce("ReduceProd", Some(&[0]), false),
        }
    }

    /// The elements in another shape, which is a list of integers. What of it is known at build time is written as a
    /// constant.
    pub fn reshape(self, shape: Expr<'g>) -> Expr<'g> {
        self.reshape_by(shape, self.names_zero(shape))
    }

    /// A size that is or turns out to be zero means zero where the shape stands for itself, not "as the input".
    fn reshape_by(self, shape: Expr<'g>, for_itself: bool) -> Expr<'g> {
        self.simplify_reshape(shape).unwrap_or_else(|| {
            let target = if for_itself { None } else { self.reshape_target(shape) };
            let literal = target.is_none() && self.builder.opset() >= 14;
            let attributes = if literal { vec![int("allowzero", 1)] } else { vec![] };
            self.builder.emit("Reshape", &[Some(self), Some(target.unwrap_or(shape))], attributes)
        })
    }

    /// The elements in another shape, with the meaning of 0 and -1 that Reshape gives them.
    pub fn reshape_to(self, shape: &[i64]) -> Expr<'g> {
        self.reshape_by(self.builder.ints(shape), false)
    }

    /// This tensor, of which it is known that it has the shape of another, if nothing else is.
    fn noted_like(self, other: Expr<'g>) -> Expr<'g> {
        self.builder.graph_mut().note_like(self.id, other.id);
        self
    }

    /// The elements in the shape of another tensor of as many elements, in this tensor's type; nothing is written where
    /// the two have one shape (ONNX Reshape).
    pub fn reshape_like(self, other: Expr<'g>) -> Expr<'g> {
        match self.same_shape(other) {
            true => self,
            false => self.reshape(other.shape()).noted_like(other),
        }
    }

    /// Broadcast to a shape, `int64[rank]`: sizes of 1 are repeated, axes that are missing in front are new (ONNX
    /// Expand).
    pub fn expand(self, shape: Expr<'g>) -> Expr<'g> {
        if let (Some(own), Some(target)) = (self.fact().shape, shape.fact().dims())
            && *own == *target
        {
            return self;
        }
        if let Some(value) = self.constant()
            && self.fact().rank() == Some(0)
        {
            return self.builder.attempt(|| Ok(self.builder.full(shape, value, self.element()?)));
        }
        if self.builder.opset() >= 8 {
            return self.builder.emit("Expand", &[Some(self), Some(shape)], vec![]);
        }
        // A sum with zeros broadcasts; they are made without Expand, of what is there.
        self.builder.attempt(|| Ok(self + self.builder.full(shape, 0.0, self.element()?)))
    }

    /// Broadcast to the shape of another tensor, in this tensor's type (ONNX Expand).
    pub fn expand_like(self, other: Expr<'g>) -> Expr<'g> {
        match self.same_shape(other) {
            true => self,
            false => self.expand(other.shape()).noted_like(other),
        }
    }

    /// A tensor of this one's element type and shape with `value` in every place; of a sequence a sequence of such.
    pub fn full_like(self, value: f64) -> Expr<'g> {
        if self.is_sequence() {
            return self.full_sequence(value);
        }
        self.builder.attempt(|| Ok(self.builder.full(self.shape(), value, self.element()?).noted_like(self)))
    }

    /// Zeros of this tensor's element type and shape.
    pub fn zeros_like(self) -> Expr<'g> {
        self.full_like(0.0)
    }

    /// Zeros of this tensor's element type in the shape of another.
    pub fn zeros_shaped(self, like: Expr<'g>) -> Expr<'g> {
        self.builder.attempt(|| Ok(self.builder.full(like.shape(), 0.0, self.element()?)))
    }

    /// Ones of this tensor's element type and shape.
    pub fn ones_like(self) -> Expr<'g> {
        self.full_like(1.0)
    }

    /// The axes in another order: axis `i` of the result is axis `perm[i]`; `perm` names each axis once (ONNX
    /// Transpose).
    pub fn transpose(self, perm: &[usize]) -> Expr<'g> {
        self.simplify_transpose(perm).unwrap_or_else(|| {
            let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
            self.builder.emit("Transpose", &[Some(self)], vec![ints("perm", &perm)])
        })
    }

    /// The axes in reverse order.
    pub fn axes_reversed(self) -> Expr<'g> {
        match self.rank() {
            Ok(rank) => self.transpose(&(0..rank).rev().collect::<Vec<_>>()),
            Err(_) => self.builder.emit("Transpose", &[Some(self)], vec![]),
        }
    }

    /// The last two axes exchanged; of a tensor of unknown rank, which has as many at least, as a stack of matrices.
    pub fn transposed(self) -> Expr<'g> {
        self.builder.attempt(|| {
            let b = self.builder;
            if self.fact().rank().is_none() && b.opset() >= 10 {
                let sizes = self.shape();
                let part =
                    |from: i64, end: i64| sizes.slice_at(b.ints(&[0]), b.ints(&[from]), b.ints(&[end]), b.ints(&[1]));
                let (stack, rows, columns) = (part(0, -2), part(-2, -1), part(-1, i64::MAX));
                let stacked = self.reshape(b.joined(&[b.ints(&[-1]), rows, columns]));
                return Ok(stacked.transpose(&[0, 2, 1]).reshape(b.joined(&[stack, columns, rows])));
            }
            let rank = self.rank()?;
            ensure!(rank >= 2, "{self} of rank {rank} has no last two axes");
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.swap(rank - 1, rank - 2);
            Ok(self.transpose(&perm))
        })
    }

    /// An axis moved to another place; the others keep their order.
    pub fn move_axis(self, from: usize, to: usize) -> Expr<'g> {
        self.builder.attempt(|| {
            let mut perm: Vec<usize> = (0..self.rank()?).filter(|&a| a != from).collect();
            perm.insert(to.min(perm.len()), from);
            Ok(self.transpose(&perm))
        })
    }

    /// Without the given axes, whose sizes are 1 (ONNX Squeeze).
    pub fn squeeze(self, axes: &[usize]) -> Expr<'g> {
        self.with_axes("Squeeze", axes, 13)
    }

    /// With new axes of size 1, which the result has at the given places (ONNX Unsqueeze).
    pub fn unsqueeze(self, axes: &[usize]) -> Expr<'g> {
        self.with_axes("Unsqueeze", axes, 13)
    }

    fn with_axes(self, op: &'static str, axes: &[usize], as_input: i64) -> Expr<'g> {
        if axes.is_empty() {
            return self;
        }
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        match self.builder.opset() >= as_input {
            true => self.builder.emit(op, &[Some(self), Some(self.builder.ints(&axes))], vec![]),
            false => self.builder.emit(op, &[Some(self)], vec![ints("axes", &axes)]),
        }
    }

    /// The elements in one dimension, the last axis first to go through (ONNX Reshape).
    pub fn flattened(self) -> Expr<'g> {
        self.reshape_to(&[-1])
    }
}
