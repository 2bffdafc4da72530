//! Reductions along axes, cumulative sums, orderings.

use super::Expr;
use crate::onnx::attribute::{int, ints};

impl<'g> Expr<'g> {
    pub(in crate::expr) fn reduce(self, op: &'static str, axes: Option<&[usize]>, keep_dims: bool) -> Expr<'g> {
        if axes.is_some_and(<[_]>::is_empty) {
            return self;
        }
        let mut attributes = vec![int("keepdims", keep_dims.into())];
        let mut inputs = vec![Some(self)];
        if let Some(axes) = axes {
            let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
            let as_input = if op == "ReduceSum" { 13 } else { 18 };
            match self.builder.opset() >= as_input {
                true => inputs.push(Some(self.builder.ints(&axes))),
                false => attributes.push(ints("axes", &axes)),
            }
        }
        self.builder.emit(op, &inputs, attributes)
    }

    /// The sum over axes, which stay with size 1.
    pub fn sum(self, axes: &[usize]) -> Expr<'g> {
        self.simplify_reduce_sum(axes, true).unwrap_or_else(|| self.reduce("ReduceSum", Some(axes), true))
    }

    /// The sum over axes, which go.
    pub fn sum_out(self, axes: &[usize]) -> Expr<'g> {
        self.simplify_reduce_sum(axes, false).unwrap_or_else(|| self.reduce("ReduceSum", Some(axes), false))
    }

    /// The sum over axes that a list of integers names at run time, none if it is empty; they stay with size 1.
    pub fn sum_at(self, axes: Expr<'g>) -> Expr<'g> {
        self.since(13, "ReduceSum over computed axes", || {
            self.builder.emit(
                "ReduceSum",
                &[Some(self), Some(axes)],
                vec![int("keepdims", 1), int("noop_with_empty_axes", 1)],
            )
        })
    }

    /// The sum of all elements, without dimensions.
    pub fn sum_all(self) -> Expr<'g> {
        self.reduce("ReduceSum", None, false)
    }

    /// The sums of blocks of `size` elements along an axis, of which there are `count`; the last may be shorter.
    pub fn block_sums(self, axis: usize, size: i64, count: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        b.attempt(|| {
            let rank = self.rank()?;
            let missing = count * b.int(size) - self.dim(axis);
            let none = b.ints(&[0]);
            let ends = (0..rank).map(|a| if a == axis { missing.reshape_to(&[1]) } else { none });
            let pads: Vec<_> = std::iter::repeat_n(none, rank).chain(ends).collect();
            let mut sizes: Vec<_> = (0..rank).map(|a| self.dims([a])).collect();
            if let Some(own) = sizes.get_mut(axis) {
                *own = Expr::concat(&[count.reshape_to(&[1]), b.ints(&[size])], 0);
            }
            Ok(self.pad(Expr::concat(&pads, 0), None).reshape(Expr::concat(&sizes, 0)).sum_out(&[axis + 1]))
        })
    }

    /// The mean over axes, which stay with size 1.
    pub fn mean(self, axes: &[usize]) -> Expr<'g> {
        self.reduce("ReduceMean", Some(axes), true)
    }

    /// The largest along axes, which stay with size 1.
    pub fn maximum(self, axes: &[usize]) -> Expr<'g> {
        self.reduce("ReduceMax", Some(axes), true)
    }

    /// The smallest along axes, which stay with size 1.
    pub fn minimum(self, axes: &[usize]) -> Expr<'g> {
        self.reduce("ReduceMin", Some(axes), true)
    }

    /// The product along axes, which stay with size 1.
    pub fn product(self, axes: &[usize]) -> Expr<'g> {
        self.reduce("ReduceProd", Some(axes), true)
    }

    /// The index of the first largest element along an axis, which stays with size 1.
    pub fn arg_max(self, axis: usize) -> Expr<'g> {
        self.builder.emit("ArgMax", &[Some(self)], vec![int("axis", axis as i64), int("keepdims", 1)])
    }

    /// The index of the first smallest element along an axis, which stays with size 1.
    pub fn arg_min(self, axis: usize) -> Expr<'g> {
        self.builder.emit("ArgMin", &[Some(self)], vec![int("axis", axis as i64), int("keepdims", 1)])
    }

    /// The sums of all elements up to each along an axis; `exclusive`: without the element itself; `reverse`: from the end.
    pub fn cum_sum(self, axis: usize, exclusive: bool, reverse: bool) -> Expr<'g> {
        self.since(11, "CumSum", || {
            let attributes = vec![int("exclusive", exclusive.into()), int("reverse", reverse.into())];
            self.builder.emit("CumSum", &[Some(self), Some(self.builder.int(axis as i64))], attributes)
        })
    }

    /// The `k` largest (or smallest) elements along an axis, in order, with their indices.
    pub fn top_k(self, k: Expr<'g>, axis: usize, largest: bool) -> (Expr<'g>, Expr<'g>) {
        if self.builder.opset() < 11 && !largest {
            let (values, indices) = (-self).top_k(k, axis, true);
            return (-values, indices);
        }
        let mut attributes = vec![int("axis", axis as i64)];
        if self.builder.opset() >= 11 {
            attributes.extend([int("largest", largest.into()), int("sorted", 1)]);
        }
        let inputs = match (self.builder.opset() < 10, k.ints().as_deref()) {
            (false, _) => vec![Some(self), Some(k.reshape_to(&[1]))],
            (true, Some([k])) => {
                attributes.push(int("k", *k));
                vec![Some(self)]
            }
            (true, _) => return (self.builder.too_old("TopK of a computed k", 10), self),
        };
        match self.builder.emit_many("TopK", &inputs, attributes, vec![], 2)[..] {
            [values, indices] => (values, indices),
            _ => (self, self),
        }
    }
}

impl super::Builder {
    /// Whether the model's opset has [`Expr::sum_at`].
    pub fn sums_over_computed_axes(&self) -> bool {
        self.opset() >= 13
    }
}
