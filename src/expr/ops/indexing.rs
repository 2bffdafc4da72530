//! Gathering, scattering, and the transposes of gathering.

use super::{Builder, Expr, place};
use crate::onnx::ElementType;
use crate::onnx::attribute::{int, string};
use anyhow::{Context, Result, bail, ensure};

impl Builder {
    /// Whether scattering costs what it scatters: with sums where places may be named twice, as `twice` says.
    pub fn scatters(&self, twice: bool) -> bool {
        self.opset() >= if twice { 16 } else { 9 }
    }
}

impl<'g> Expr<'g> {
    /// The slices at `indices` along an axis, in the place of that axis.
    pub fn gather(self, indices: Expr<'g>, axis: usize) -> Expr<'g> {
        self.builder.emit("Gather", &[Some(self), Some(indices)], vec![int("axis", axis as i64)])
    }

    /// For each place the element that `indices` names along an axis.
    pub fn gather_elements(self, indices: Expr<'g>, axis: usize) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 11 {
            return b.emit("GatherElements", &[Some(self), Some(indices)], vec![int("axis", axis as i64)]);
        }
        b.attempt(|| {
            // The places of the elements in the flattened tensor.
            let rank = self.rank()?;
            let places = (0..rank).map(|a| match a == axis {
                true => indices.cast(ElementType::Int64).wrapped(self.dim(a)),
                false => b.range(indices.dim(a)).reshape_to(&place(rank, a)),
            });
            let flat = places.enumerate().reduce(|(_, sum), (a, next)| (a, sum * self.dim(a) + next));
            let (_, flat) = flat.context("a tensor without dimensions has no axis")?;
            Ok(self.flattened().gather(flat, 0))
        })
    }

    /// The slices at index tuples, behind `batch_dims` common dimensions.
    pub fn gather_nd(self, indices: Expr<'g>, batch_dims: usize) -> Expr<'g> {
        let (since, attributes) = match batch_dims {
            0 => (11, vec![]),
            _ => (12, vec![int("batch_dims", batch_dims as i64)]),
        };
        self.since(since, "GatherND", || self.builder.emit("GatherND", &[Some(self), Some(indices)], attributes))
    }

    /// This tensor with `updates` in the places that `indices` names along an axis; no place may be named twice.
    pub fn scatter_elements(self, indices: Expr<'g>, updates: Expr<'g>, axis: usize) -> Expr<'g> {
        if self.builder.opset() < 9 && self.constant() == Some(0.0) {
            return self.scatter_elements_add(indices, updates, axis);
        }
        let op = if self.builder.opset() < 11 { "Scatter" } else { "ScatterElements" };
        self.since(9, op, || {
            self.builder.emit(op, &[Some(self), Some(indices), Some(updates)], vec![int("axis", axis as i64)])
        })
    }

    /// This tensor with `updates` added in the places that `indices` names along an axis, each as often as it is named.
    ///
    /// Before opset 16 no operator adds: then as a sum over a comparison of the indices with all places.
    pub fn scatter_elements_add(self, indices: Expr<'g>, updates: Expr<'g>, axis: usize) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 16 {
            let attributes = vec![int("axis", axis as i64), string("reduction", "add")];
            return b.emit("ScatterElements", &[Some(self), Some(indices), Some(updates)], attributes);
        }
        b.attempt(|| {
            let rank = self.rank()?;
            let size = self.dim(axis);
            let positive = indices.wrapped(size);
            // [..., places, named, ...]: whether the index names the place.
            let places = b.range(size).reshape_to(&place(rank + 1, axis));
            let hit = places.equal(positive.unsqueeze(&[axis])).cast_like(updates);
            let sums = (hit * updates.unsqueeze(&[axis])).sum_out(&[axis + 1]);
            let sums = sums.pad_to(self, axis)?;
            Ok(self + sums)
        })
    }

    /// Zeros after the end of each axis but one, up to the size of another tensor.
    fn pad_to(self, other: Expr<'g>, except: usize) -> Result<Expr<'g>> {
        let rank = self.rank()?;
        let (own, target) = (self.sizes()?, other.sizes()?);
        if (0..rank).all(|a| a == except || own.get(a) == target.get(a)) {
            return Ok(self);
        }
        let missing = other.shape() - self.shape();
        let zeros = self.builder.ints(&vec![0; rank]);
        Ok(self.pad(Expr::concat(&[zeros, missing], 0), None))
    }

    /// Indices that may count from the end, counted from the front.
    pub fn wrapped(self, size: Expr<'g>) -> Expr<'g> {
        let size = size.cast_like(self);
        if self.ints().is_some_and(|i| i.iter().all(|&i| i >= 0)) {
            return self;
        }
        self.less(self.like(0.0)).select(self + size, self)
    }

    /// This tensor with `updates` in the places of index tuples; no place may be named twice.
    pub fn scatter_nd(self, indices: Expr<'g>, updates: Expr<'g>) -> Expr<'g> {
        self.since(11, "ScatterND", || {
            self.builder.emit("ScatterND", &[Some(self), Some(indices), Some(updates)], vec![])
        })
    }

    /// This tensor multiplied by `updates` in the places that `indices` names along an axis.
    pub fn scatter_elements_mul(self, indices: Expr<'g>, updates: Expr<'g>, axis: usize) -> Expr<'g> {
        self.since(16, "ScatterElements with a product", || {
            let attributes = vec![int("axis", axis as i64), string("reduction", "mul")];
            self.builder.emit("ScatterElements", &[Some(self), Some(indices), Some(updates)], attributes)
        })
    }

    /// This tensor multiplied by `updates` in the places of index tuples.
    pub fn scatter_nd_mul(self, indices: Expr<'g>, updates: Expr<'g>) -> Expr<'g> {
        self.since(16, "ScatterND with a product", || {
            let inputs = [Some(self), Some(indices), Some(updates)];
            self.builder.emit("ScatterND", &inputs, vec![string("reduction", "mul")])
        })
    }

    /// This cache of shape `[batch, ...]` with `update` along an axis, from the index on that `starts` gives for each batch.
    pub fn tensor_scatter(self, update: Expr<'g>, starts: Option<Expr<'g>>, axis: i64, mode: &str) -> Expr<'g> {
        self.since(24, "TensorScatter", || {
            let attributes = vec![int("axis", axis), string("mode", mode)];
            self.builder.emit("TensorScatter", &[Some(self), Some(update), starts], attributes)
        })
    }

    /// This tensor with `updates` added in the places of index tuples, each as often as it is named.
    ///
    /// Before opset 16 no operator adds. Then each update is first replaced by the sum of all that name its place, so that it
    /// does not matter which of them is written last: a product with the matrix that compares every tuple with every other.
    pub fn scatter_nd_add(self, indices: Expr<'g>, updates: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 16 {
            let inputs = [Some(self), Some(indices), Some(updates)];
            return b.emit("ScatterND", &inputs, vec![string("reduction", "add")]);
        }
        b.attempt(|| {
            let Some(depth) = indices.known_dim(indices.rank()?.saturating_sub(1)) else {
                bail!("scatter-add at index tuples of unknown length needs opset 16; the model is at {}", b.opset())
            };
            let sizes = self.dims(0..depth as usize);
            let tuples = indices.wrapped(sizes).reshape_to(&[-1, depth]);
            let names = tuples.unsqueeze(&[0]).equal(tuples.unsqueeze(&[1]));
            let same = names.cast_like(updates).reduce("ReduceMin", Some(&[2]), false);
            let count = tuples.dims([0]);
            let rows = updates.reshape(Expr::concat(&[count, b.ints(&[-1])], 0));
            let tail: Vec<usize> = (depth as usize..self.rank()?).collect();
            let slices = |rows: Expr<'g>| match tail.is_empty() {
                true => rows.flattened(),
                false => rows.reshape(Expr::concat(&[count, self.dims(tail.iter().copied())], 0)),
            };
            let sums = slices(same.matmul(rows));
            let sums = if self.constant() == Some(0.0) { sums } else { sums + self.gather_nd(tuples, 0) };
            // Only the first of those that name a place is written there, the others to a slice that is dropped again: a
            // gradient of this sum reaches each update once.
            let order = b.range(tuples.dim(0));
            let earlier = order.unsqueeze(&[0]).less(order.unsqueeze(&[1])).cast_like(same);
            let first = (same * earlier).sum_out(&[1]).below(0.5);
            let size = self.dims([0]);
            let aside = Expr::concat(&[size, b.ints(&vec![0; (depth as usize).saturating_sub(1)])], 0);
            let places = first.unsqueeze(&[1]).select(tuples, aside.cast_like(tuples));
            let rest: Vec<usize> = (1..self.rank()?).collect();
            let spare = b.full(Expr::concat(&[b.ints(&[1]), self.dims(rest)], 0), 0.0, self.element()?);
            let written = Expr::concat(&[self, spare], 0).scatter_nd(places, sums);
            Ok(written.slice_at(b.ints(&[0]), b.ints(&[0]), size, b.ints(&[1])))
        })
    }

    /// What [`Expr::gather`] along `axis` of a tensor like `self` is the transpose of: `updates`, which stand where the
    /// gathered slices stood, added up in a tensor of zeros of this one's shape.
    pub fn ungather(self, indices: Expr<'g>, updates: Expr<'g>, axis: usize) -> Expr<'g> {
        self.builder.attempt(|| {
            let mut order: Vec<usize> = vec![axis];
            order.extend((0..self.rank()?).filter(|&a| a != axis));
            updates.laid_by(indices, axis, self.dims(order), true)
        })
    }

    /// The slices along an axis, each laid in the place that its entry in the list `places` names, in an axis of that size, a
    /// list of one; `twice`: a place may be named more than once, its slices are added up.
    pub fn to_places(self, places: Expr<'g>, axis: usize, size: Expr<'g>, twice: bool) -> Expr<'g> {
        self.builder.attempt(|| {
            let others: Vec<usize> = (0..self.rank()?).filter(|&a| a != axis).collect();
            let sizes = if others.is_empty() { size } else { Expr::concat(&[size, self.dims(others)], 0) };
            self.laid_by(places, axis, sizes, twice)
        })
    }

    /// The slices at the axes of `indices`, which begin at `axis`, laid where the indices say; `sizes` are those of the
    /// result, first the indexed axis, then the others.
    fn laid_by(self, indices: Expr<'g>, axis: usize, sizes: Expr<'g>, twice: bool) -> Result<Expr<'g>> {
        let b = self.builder;
        let (rank, index_rank) = (self.rank()?, indices.rank()?);
        ensure!(axis + index_rank <= rank, "indices of rank {index_rank} at axis {axis} of a tensor of rank {rank}");
        // The axes of the indices to the front, those before the gathered one behind them.
        let mut front: Vec<usize> = (axis..axis + index_rank).collect();
        front.extend((0..axis).chain(axis + index_rank..rank));
        let rows = self.transpose(&front);
        let indices = indices.cast(ElementType::Int64);
        let summed = if b.opset() >= 11 {
            let (zeros, tuples) = (b.full(sizes, 0.0, self.element()?), indices.unsqueeze(&[index_rank]));
            if twice { zeros.scatter_nd_add(tuples, rows) } else { zeros.scatter_nd(tuples, rows) }
        } else {
            // A matrix that says which place each index names, times one row for each slice.
            let size = sizes.item(0);
            let flat = indices.wrapped(size).flattened();
            let hit = b.range(size.reshape_to(&[])).unsqueeze(&[1]).equal(flat.unsqueeze(&[0]));
            let width = self.dims((0..axis).chain(axis + index_rank..rank)).product_of_list();
            let rows = rows.reshape(Expr::concat(&[flat.shape(), width], 0));
            hit.cast_like(rows).matmul(rows).reshape(sizes)
        };
        let mut back: Vec<usize> = (1..=axis).collect();
        back.push(0);
        back.extend(axis + 1..rank + 1 - index_rank);
        Ok(summed.transpose(&back))
    }

    /// The product of a list of sizes, as a list of one.
    pub fn product_of_list(self) -> Expr<'g> {
        match self.ints() {
            Some(sizes) if sizes.iter().try_fold(1i64, |p, &n| p.checked_mul(n)).is_some() => {
                self.builder.ints(&[sizes.iter().product()])
            }
            _ => self.reduce("ReduceProd", Some(&[0]), true),
        }
    }

    /// `on` in the place that each index names along a new axis of size `depth`, zero elsewhere, in the type of `on`.
    pub fn one_hot(self, depth: Expr<'g>, axis: i64, on: Expr<'g>) -> Expr<'g> {
        self.since(9, "OneHot", || {
            let values = Expr::concat(&[on.like(0.0).reshape_to(&[1]), on.reshape_to(&[1])], 0);
            self.builder.emit("OneHot", &[Some(self), Some(depth), Some(values)], vec![int("axis", axis)])
        })
    }
}
