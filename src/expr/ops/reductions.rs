//! Reductions along axes, cumulative sums, orderings.

use super::Expr;
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
    /// They are products over 1, 2, 4, ... neighbours: CumProd is new in opset 26.
    pub fn cum_prod(self, axis: usize, exclusive: bool, reverse: bool) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 26 && self.known_dim(axis).is_none() {
            let attributes = vec![int("exclusive", exclusive.into()), int("reverse", reverse.into())];
            return b.emit("CumProd", &[Some(self), Some(b.int(axis as i64))], attributes);
        }
        let products = if exclusive { self.shifted(axis, b.int(1), reverse, 1.0) } else { self };
        b.attempt(|| {
            let products = b.doubling(self.dim(axis), &[products], |distance, products| {
                products.iter().map(|&p| p * p.shifted(axis, distance, reverse, 1.0)).collect()
            })?;
            Ok(products[0])
        })
    }

    /// The gradient of [`Expr::cum_prod`] of this tensor along an axis, without a division.
    ///
    /// It is Π xⱼ, j < i, times sᵢ = dyᵢ + xᵢ₊₁ sᵢ₊₁, which is found over 1, 2, 4, ... neighbours.
    pub fn cum_prod_gradient(self, axis: usize, dy: Expr<'g>, exclusive: bool, reverse: bool) -> Expr<'g> {
        let b = self.builder;
        // The elements that come behind each, `distance` away.
        let behind = |e: Expr<'g>, distance: Expr<'g>| e.shifted(axis, distance, !reverse, 0.0);
        let dy = if exclusive { behind(dy, b.int(1)) } else { dy };
        b.attempt(|| {
            let sums = b.doubling(self.dim(axis), &[dy, behind(self, b.int(1))], |distance, states| match *states {
                [sums, factors] => {
                    vec![sums + factors * behind(sums, distance), factors * behind(factors, distance)]
                }
                _ => states.to_vec(),
            })?;
            Ok(sums[0] * self.cum_prod(axis, true, reverse))
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
    /// Whether the model's opset has [`Expr::sum_over`].
    pub fn sums_over_computed_axes(&self) -> bool {
        self.opset() >= 13
    }
}
