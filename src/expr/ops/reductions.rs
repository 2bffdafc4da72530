//! Reductions along axes, cumulative sums, orderings.

use super::{Expr, place};
use crate::onnx::ElementType;
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

    /// What `sum` makes of this tensor; half precision is summed in float32 and rounded once: terms of a sum that is
    /// kept in float16 vanish from the 2048th on, and above 65504 it is infinite.
    pub(in crate::expr) fn in_float32(self, sum: impl FnOnce(Expr<'g>) -> Expr<'g>) -> Expr<'g> {
        let wide = self.widened();
        if wide == self { sum(self) } else { sum(wide).cast_like(self) }
    }

    /// The sum over axes, which stay with size 1, in this tensor's type; half precision is added up in float32 (ONNX
    /// ReduceSum).
    pub fn sum(self, axes: &[usize]) -> Expr<'g> {
        self.simplify_reduce_sum(axes, true)
            .unwrap_or_else(|| self.in_float32(|x| x.reduce("ReduceSum", Some(axes), true)))
    }

    /// The sum over axes, which the result does not have, in this tensor's type (ONNX ReduceSum).
    pub fn sum_out(self, axes: &[usize]) -> Expr<'g> {
        self.simplify_reduce_sum(axes, false)
            .unwrap_or_else(|| self.in_float32(|x| x.reduce("ReduceSum", Some(axes), false)))
    }

    /// The sum of all elements, a tensor without dimensions of this tensor's type (ONNX ReduceSum).
    pub fn sum_all(self) -> Expr<'g> {
        self.in_float32(|x| x.reduce("ReduceSum", None, false))
    }

    /// The sum of all elements, with as many axes as this tensor, all of size 1 (ONNX ReduceSum).
    pub fn sum_all_kept(self) -> Expr<'g> {
        self.in_float32(|x| x.reduce("ReduceSum", None, true))
    }

    /// The sum over axes that the run computes, which stay with size 1. Without axes all are summed, or none if `noop`.
    pub fn sum_over(self, axes: Expr<'g>, noop: bool) -> Expr<'g> {
        self.since(13, "ReduceSum over computed axes", || {
            let mut attributes = vec![int("keepdims", 1)];
            if noop {
                attributes.push(int("noop_with_empty_axes", 1));
            }
            self.in_float32(|x| x.builder.emit("ReduceSum", &[Some(x), Some(axes)], attributes))
        })
    }

    /// For each of `rank` axes whether this list of axes names it, `bool[rank]`; an empty list names all, or none if
    /// `noop`.
    pub fn is_axis(self, rank: Expr<'g>, noop: bool) -> Expr<'g> {
        let axes = self.cast(ElementType::Int64).wrapped(rank);
        let hits = self.builder.range(rank).reshape_to(&[-1, 1]).equal(axes.reshape_to(&[1, -1]));
        let named = hits.cast(ElementType::Int64).sum_out(&[1]).greater(self.builder.int(0));
        match noop || self.known_dim(0).is_some() {
            true => named,
            false => named.or(self.size().equal(self.builder.int(0))),
        }
    }

    /// The shape of this tensor with size 1 at the axes that the run computes.
    pub fn shape_kept(self, axes: Expr<'g>, noop: bool) -> Expr<'g> {
        let shape = self.shape();
        axes.is_axis(shape.size(), noop).select(self.builder.int(1), shape)
    }

    /// The mean over axes, which stay with size 1, in this tensor's type (ONNX ReduceMean).
    pub fn mean(self, axes: &[usize]) -> Expr<'g> {
        self.in_float32(|x| x.reduce("ReduceMean", Some(axes), true))
    }

    /// The sum over all axes but one: a vector along that axis. The rank must be known.
    pub fn sum_to_axis(self, axis: usize) -> Expr<'g> {
        self.builder.attempt(|| {
            let others: Vec<usize> = (0..self.rank()?).filter(|&a| a != axis).collect();
            Ok(self.sum_out(&others))
        })
    }

    /// The largest element along axes, which stay with size 1, in this tensor's type (ONNX ReduceMax).
    pub fn maximum(self, axes: &[usize]) -> Expr<'g> {
        self.reduce("ReduceMax", Some(axes), true)
    }

    /// The smallest element along axes, which stay with size 1, in this tensor's type (ONNX ReduceMin).
    pub fn minimum(self, axes: &[usize]) -> Expr<'g> {
        self.reduce("ReduceMin", Some(axes), true)
    }

    /// The product along axes, which stay with size 1, in this tensor's type (ONNX ReduceProd).
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

    /// The sums of all elements up to each along an axis; `exclusive`: without the element itself; `reverse`: from the
    /// end.
    pub fn cum_sum(self, axis: usize, exclusive: bool, reverse: bool) -> Expr<'g> {
        self.cum_sum_at(self.builder.int(axis as i64), exclusive, reverse)
    }

    /// As [`Expr::cum_sum`], along an axis that may be computed: an integer without dimensions (ONNX CumSum, from opset
    /// 11 on).
    pub fn cum_sum_at(self, axis: Expr<'g>, exclusive: bool, reverse: bool) -> Expr<'g> {
        self.since(11, "CumSum", || {
            let attributes = vec![int("exclusive", exclusive.into()), int("reverse", reverse.into())];
            self.builder.emit("CumSum", &[Some(self), Some(axis)], attributes)
        })
    }

    /// The products of all elements up to each along an axis; `exclusive`: without the element itself; `reverse`: from
    /// the end.
    ///
    /// CumProd is new in opset 26. Where the size is known, products over 1, 2, 4, ... neighbours do as well; where it
    /// is not, before that, each product is taken on its own.
    pub fn cum_prod(self, axis: usize, exclusive: bool, reverse: bool) -> Expr<'g> {
        let b = self.builder;
        let Some(size) = self.known_dim(axis) else {
            if b.opset() >= 26 {
                let attributes = vec![int("exclusive", exclusive.into()), int("reverse", reverse.into())];
                return b.emit("CumProd", &[Some(self), Some(b.int(axis as i64))], attributes);
            }
            return b.attempt(|| {
                let (rank, places) = (self.rank()?, b.range(self.dim(axis)));
                let (to, from) =
                    (places.reshape_to(&place(rank + 1, axis)), places.reshape_to(&place(rank + 1, axis + 1)));
                let (low, high) = if reverse { (to, from) } else { (from, to) };
                let counts = if exclusive { low.less(high) } else { low.less_or_equal(high) };
                let factors = counts.select(self.unsqueeze(&[axis]), self.like(1.0));
                Ok(factors.reduce("ReduceProd", Some(&[axis + 1]), false))
            });
        };
        let along = |distance: i64| if reverse { -distance } else { distance };
        let mut products = if exclusive { self.shifted(axis, along(1), 1.0) } else { self };
        let mut distance = 1;
        while distance < size {
            products = products * products.shifted(axis, along(distance), 1.0);
            distance = distance.saturating_mul(2);
        }
        products
    }

    /// The gradient of [`Expr::cum_prod`] of this tensor along an axis, without a division.
    ///
    /// It is Π xⱼ, j < i, times sᵢ = dyᵢ + xᵢ₊₁ sᵢ₊₁, which is found over 1, 2, 4, ... neighbours.
    pub fn cum_prod_gradient(self, axis: usize, dy: Expr<'g>, exclusive: bool, reverse: bool) -> Expr<'g> {
        if reverse {
            let turned = self.reversed(axis).cum_prod_gradient(axis, dy.reversed(axis), exclusive, false);
            return turned.reversed(axis);
        }
        let b = self.builder;
        let dy = if exclusive { dy.shifted(axis, -1, 0.0) } else { dy };
        let Some(size) = self.known_dim(axis) else {
            return b.attempt(|| {
                // The gradient of each product by each factor: the product with a 1 in its place.
                let (rank, places) = (self.rank()?, b.range(self.dim(axis)));
                let (by, of) =
                    (places.reshape_to(&place(rank + 1, axis)), places.reshape_to(&place(rank + 1, axis + 1)));
                let others = by.equal(of).select(self.like(1.0), self.unsqueeze(&[axis]));
                let terms = dy.unsqueeze(&[axis]) * others.cum_prod(axis + 1, false, false);
                Ok(terms.where_(by.less_or_equal(of)).sum_out(&[axis + 1]))
            });
        };
        let (mut sums, mut factors) = (dy, self.shifted(axis, -1, 0.0));
        let mut distance = 1;
        while distance < size {
            sums = sums + factors * sums.shifted(axis, -distance, 0.0);
            factors = factors * factors.shifted(axis, -distance, 0.0);
            distance = distance.saturating_mul(2);
        }
        sums * self.cum_prod(axis, true, false)
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
    /// Whether the model's opset has [`Expr::sum_over`].
    pub fn sums_over_computed_axes(&self) -> bool {
        self.opset() >= 13
    }
}
