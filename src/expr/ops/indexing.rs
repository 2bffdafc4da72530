//! Gathering, scattering, and the transposes of gathering.

use super::{Builder, Expr, place};
use crate::onnx::ElementType;
use crate::onnx::attribute::{int, string};
use anyhow::{Context, Result, bail, ensure};

/// Comparing an index with so many places takes as long as scattering one element.
const FEW_PLACES: i64 = 32;

/// Of so many updates all steps are written out, however few name one place.
const WRITTEN_OUT: i64 = 16;

impl Builder {
    /// Whether scattering costs what it scatters: with sums where places may be named twice, as `twice` says.
    pub fn scatters(&self, twice: bool) -> bool {
        self.opset() >= if twice { 16 } else { 9 }
    }
}

impl<'g> Expr<'g> {
    /// The slices at `indices`, integers of any shape, along an axis. The shape of the indices stands in the place of
    /// that axis: `[a, n, b]` gathered along axis 1 at `[i, j]` is `[a, i, j, b]` (ONNX Gather).
    pub fn gather(self, indices: Expr<'g>, axis: usize) -> Expr<'g> {
        // A table is not widened as a whole: what is read of it is.
        if let Some(table) = self.operand_of("Cast").filter(|table| table.is_float() && self.is_float()) {
            return table.gather(indices, axis).widened().cast_like(self);
        }
        self.builder.emit("Gather", &[Some(self), Some(indices)], vec![int("axis", axis as i64)])
    }

    /// For each place of `indices`, integers of this tensor's rank, the element that they name along an axis: of their
    /// shape and this tensor's type (ONNX GatherElements).
    pub fn gather_elements(self, indices: Expr<'g>, axis: usize) -> Expr<'g> {
        self.gather_elements_along(indices, axis as i64)
    }

    /// As [`Expr::gather_elements`], along an axis that may be counted from the end, of a tensor of any rank.
    pub fn gather_elements_along(self, indices: Expr<'g>, axis: i64) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 11 {
            return b.emit("GatherElements", &[Some(self), Some(indices)], vec![int("axis", axis)]);
        }
        b.attempt(|| {
            let axis = self.axis(axis)?;
            let flat = self.flat_places(indices.cast(ElementType::Int64).wrapped(self.dim(axis)), axis)?;
            Ok(self.flattened().gather(flat, 0))
        })
    }

    /// Where the elements that indices along an axis name, none negative, lie in this tensor flattened.
    fn flat_places(self, indices: Expr<'g>, axis: usize) -> Result<Expr<'g>> {
        let rank = self.rank()?;
        let places = (0..rank).map(|a| match a == axis {
            true => indices,
            false => self.builder.range(indices.dim(a)).reshape_to(&place(rank, a)),
        });
        let flat = places.enumerate().reduce(|(_, sum), (a, next)| (a, sum * self.dim(a) + next));
        Ok(flat.context("a tensor without dimensions has no axis")?.1)
    }

    /// The slices that index tuples name: `indices` is int64 of shape `[batch..., i..., t]`, each tuple of length t an
    /// index into the axes behind the first `batch_dims`, which both have in common; the result is `[batch..., i...,
    /// rest...]` (ONNX GatherND).
    pub fn gather_nd(self, indices: Expr<'g>, batch_dims: usize) -> Expr<'g> {
        let (since, attributes) = match batch_dims {
            0 => (11, vec![]),
            _ => (12, vec![int("batch_dims", batch_dims as i64)]),
        };
        self.since(since, "GatherND", || self.builder.emit("GatherND", &[Some(self), Some(indices)], attributes))
    }

    /// This tensor with `updates` in the places that `indices` names along an axis; no place may be named twice.
    pub fn scatter_elements(self, indices: Expr<'g>, updates: Expr<'g>, axis: usize) -> Expr<'g> {
        self.scatter_elements_along(indices, updates, axis as i64)
    }

    /// As [`Expr::scatter_elements`], along an axis that may be counted from the end, of a tensor of any rank.
    pub fn scatter_elements_along(self, indices: Expr<'g>, updates: Expr<'g>, axis: i64) -> Expr<'g> {
        if self.builder.opset() < 9 && self.constant() == Some(0.0) {
            return self.scatter_elements_add_along(indices, updates, axis);
        }
        let op = if self.builder.opset() < 11 { "Scatter" } else { "ScatterElements" };
        self.since(9, op, || {
            self.builder.emit(op, &[Some(self), Some(indices), Some(updates)], vec![int("axis", axis)])
        })
    }

    /// This tensor with `updates` added in the places that `indices` names along an axis, each as often as it is named.
    ///
    /// Before opset 16 no operator adds: then as a sum over a comparison of the indices with all places, where there
    /// are few of either, else as [`Expr::scatter_nd_add`].
    pub fn scatter_elements_add(self, indices: Expr<'g>, updates: Expr<'g>, axis: usize) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 16 {
            return self.scatter_elements_add_along(indices, updates, axis as i64);
        }
        b.attempt(|| {
            let rank = self.rank()?;
            let size = self.dim(axis);
            let positive = indices.cast(ElementType::Int64).wrapped(size);
            let few = [self, indices].iter().any(|e| e.known_dim(axis).is_some_and(|n| n <= FEW_PLACES));
            if !few && b.opset() >= 11 {
                let flat = self.flat_places(positive, axis)?.reshape_to(&[-1, 1]);
                return Ok(self.flattened().scatter_nd_add(flat, updates.flattened()).reshape_like(self));
            }
            // [..., places, named, ...]: whether the index names the place.
            let places = b.range(size).reshape_to(&place(rank + 1, axis));
            let hit = places.equal(positive.unsqueeze(&[axis]));
            let sums = updates.unsqueeze(&[axis]).where_(hit).sum_out(&[axis + 1]);
            let sums = sums.pad_to(self, axis)?;
            Ok(self + sums)
        })
    }

    /// As [`Expr::scatter_elements_add`], along an axis that may be counted from the end, of a tensor of any rank.
    pub fn scatter_elements_add_along(self, indices: Expr<'g>, updates: Expr<'g>, axis: i64) -> Expr<'g> {
        let b = self.builder;
        if b.opset() < 16 {
            return b.attempt(|| Ok(self.scatter_elements_add(indices, updates, self.axis(axis)?)));
        }
        let attributes = vec![int("axis", axis), string("reduction", "add")];
        self.in_float32(|to| {
            b.emit("ScatterElements", &[Some(to), Some(indices), Some(updates.cast_like(to))], attributes)
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

    /// This tensor multiplied by `updates` in the places that `indices` names along an axis, which may be counted from
    /// the end; of a tensor of any rank.
    pub fn scatter_elements_mul_along(self, indices: Expr<'g>, updates: Expr<'g>, axis: i64) -> Expr<'g> {
        self.since(16, "ScatterElements with a product", || {
            let attributes = vec![int("axis", axis), string("reduction", "mul")];
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

    /// This cache of shape `[batch, ...]` with `update` along an axis, from the index on that `starts` gives for each
    /// batch.
    pub fn tensor_scatter(self, update: Expr<'g>, starts: Option<Expr<'g>>, axis: i64, mode: &str) -> Expr<'g> {
        self.since(24, "TensorScatter", || {
            let attributes = vec![int("axis", axis), string("mode", mode)];
            self.builder.emit("TensorScatter", &[Some(self), Some(update), starts], attributes)
        })
    }

    /// This tensor with `updates` added in the places of index tuples, each as often as it is named.
    ///
    /// Before opset 16 no operator adds. Then the updates are put in the order of their places, those of one place are
    /// added up, and the sums are written, no place twice, so that the gradient of this is right, too.
    pub fn scatter_nd_add(self, indices: Expr<'g>, updates: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 16 {
            return self.in_float32(|to| {
                let inputs = [Some(to), Some(indices), Some(updates.cast_like(to))];
                b.emit("ScatterND", &inputs, vec![string("reduction", "add")])
            });
        }
        b.attempt(|| {
            let (rank, index_rank) = (self.rank()?, indices.rank()?);
            let depth = match indices.known_dim(index_rank.saturating_sub(1)) {
                Some(depth) if depth > 0 && depth <= rank as i64 => depth as usize,
                _ => {
                    bail!(
                        "scatter-add at index tuples of unknown length needs opset 16, and the model is at {}; convert the \
                         model to opset 16 or newer",
                        b.opset()
                    )
                }
            };
            let tuples = indices.wrapped(self.dims(0..depth)).reshape_to(&[-1, depth as i64]);
            // The axes that the tuples index as one.
            let place = |a: usize| tuples.slice(&[1], &[a as i64], &[a as i64 + 1], &[1]);
            let places = (1..depth).fold(place(0), |sum, a| sum * self.dim(a) + place(a)).reshape_to(&[-1]);
            let (count, size) = (self.dims(0..depth).product_of_list(), updates.dims(index_rank - 1..updates.rank()?));
            let rows = updates.reshape(b.joined(&[places.shape(), size]));
            let (places, sums) = rows.widened().summed_by(places)?;
            // What is no sum goes to a place behind the end, which is cut off.
            let places = places.0.select(places.1, count).unsqueeze(&[1]);
            let sums = sums.cast_like(updates);
            let more = b.full(b.joined(&[count + 1, size]), 0.0, sums.element()?);
            let laid = more.scatter_nd(places, sums).slice(&[0], &[0], &[-1], &[1]);
            Ok(self + if depth == 1 { laid } else { laid.reshape(self.shape()) })
        })
    }

    /// The rows of this tensor in the order of their places, a list of integers, and each with all before it of the
    /// same place added: the last of each place has the sum. Before them, for each row in this order whether it is the
    /// last of its place, and the place.
    fn summed_by(self, places: Expr<'g>) -> Result<((Expr<'g>, Expr<'g>), Expr<'g>)> {
        let b = self.builder;
        let (zero, one) = (b.int(0), b.int(1));
        let count = places.dim(0);
        let (places, order) = places.top_k(count, 0, false);
        let row = b.range(count);
        let next = places.gather((row + one).min(count - one), 0);
        let last = next.equal(places).logical_not().or(row.equal(count - one));
        let longest = match count.ints().as_deref() {
            Some([n]) if *n <= WRITTEN_OUT => count,
            _ => {
                let ends = last.non_zero().flattened();
                let before = Expr::concat(&[b.ints(&[-1]), ends.slice(&[0], &[0], &[-1], &[1])], 0);
                Expr::concat(&[b.ints(&[0]), ends - before], 0).maximum(&[0]).reshape_to(&[])
            }
        };
        let rank = self.rank()?;
        let sums = b.doubling(longest, &[self.gather(order, 0)], |distance, sums| {
            let from = row - distance;
            let before = from.max(zero);
            let same = places.gather(before, 0).equal(places).and(from.greater_or_equal(zero));
            let same = same.reshape_to(&place(rank, 0));
            sums.iter().map(|&s| s + s.gather(before, 0).where_(same)).collect()
        })?;
        Ok(((last, places), sums[0]))
    }

    /// The transpose of [`Expr::gather`] along `axis`, of a tensor with this one's shape: `updates`, of the shape and
    /// in the places of what was gathered at `indices`, are added up in a tensor of zeros of this one's shape and of
    /// their own type. Of this tensor only the shape counts. Its rank must be known; that it is not is an error on
    /// record.
    pub fn ungather(self, indices: Expr<'g>, updates: Expr<'g>, axis: usize) -> Expr<'g> {
        self.builder.attempt(|| {
            let mut order: Vec<usize> = vec![axis];
            order.extend((0..self.rank()?).filter(|&a| a != axis));
            updates.laid_by(indices, axis, self.dims(order), true)
        })
    }

    /// The slices along an axis, each in another place: slice i stands at `places[i]`, int64 and a list as long as the
    /// axis, in an axis that is `size` long, a list of one number; in all other places are zeros. `twice` says that a
    /// place may be named more than once, and its slices are added up. Shape `[a, n, b]` becomes `[a, size, b]`, of the
    /// same type.
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
        let mut indices = indices.cast(ElementType::Int64);
        if indices.ints().is_some() {
            // Not every engine takes indices that count from the end here.
            indices = indices.wrapped(sizes.item(0));
        }
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

    /// This tensor less one in the place that each index names along an axis, of whose place the index has size 1. Of
    /// few places, for images of indices, all are compared.
    pub fn minus_one_at(self, indices: Expr<'g>, axis: usize) -> Expr<'g> {
        let b = self.builder;
        b.attempt(|| {
            let rank = self.rank()?;
            let few = self.known_dim(axis).is_some_and(|n| n <= FEW_PLACES);
            if !few || axis + 1 == rank {
                let ones = indices.cast_like(self).full_like(-1.0);
                return Ok(self.scatter_elements_add(indices, ones, axis));
            }
            let places = b.range(self.dim(axis)).cast_like(indices).reshape_to(&place(rank, axis));
            Ok(self - indices.equal(places).cast_like(self))
        })
    }

    /// `on`, a single number, in the place that each of these indices names along a new axis of size `depth`, and zero
    /// elsewhere, in the type of `on`: `[i...]` becomes `[i..., depth]` for axis -1 (ONNX OneHot).
    pub fn one_hot(self, depth: Expr<'g>, axis: i64, on: Expr<'g>) -> Expr<'g> {
        self.since(9, "OneHot", || {
            let values = Expr::concat(&[on.like(0.0).reshape_to(&[1]), on.reshape_to(&[1])], 0);
            self.builder.emit("OneHot", &[Some(self), Some(depth), Some(values)], vec![int("axis", axis)])
        })
    }
}
