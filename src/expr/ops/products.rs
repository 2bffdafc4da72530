//! Matrix products, convolutions, pooling, softmax.

use super::{ConvLike, Expr, Pool, Resized};
use crate::graph::Origin;
use crate::onnx::attribute::{float, floats, int, ints, string};
use crate::onnx::{AttributeProto, ElementType};

/// A matrix of so many elements is large next to [`FEW_ROWS`].
const LARGE_MATRIX: i64 = 1 << 19;

/// One row is multiplied without laying out anything, more than these take longer than that.
const FEW_ROWS: std::ops::RangeInclusive<i64> = 2..=64;

/// In so many steps it pays to transpose a matrix before them.
const MANY_STEPS: i64 = 6;

/// With so many elements behind each other behind an axis, what goes along that axis is fast.
const LONG_ROW: i64 = 64;

/// How many blocks the rows of a transposed matrix, of that length, are best laid in where they are multiplied with
/// `count` columns, and how long these are: more than one, if any length divides that of the rows.
fn blocks(length: i64, count: i64) -> Option<(i64, i64)> {
    let longest = if count >= 32 && length > 1024 { 1024 } else { 512 };
    let fitting = (longest / 2 + 1..=longest.min(length / 2)).rev().find(|n| length % n == 0)?;
    Some((length / fitting, fitting))
}

impl<'g> Expr<'g> {
    /// The matrix product `[..., n, k] · [..., k, m] -> [..., n, m]` of two tensors of one type, whose dimensions
    /// before the last two broadcast; a list on either side is a row or a column, which the result does not keep (ONNX
    /// MatMul).
    pub fn matmul(self, other: Expr<'g>) -> Expr<'g> {
        self.builder.emit("MatMul", &[Some(self), Some(other)], vec![])
    }

    /// The product of rows, `count` at a time where that is known, with this matrix, which is the same in all `steps`
    /// of a loop, or in many where that is not known. Of few rows and a large matrix most of the time is spent on
    /// laying out the right factor, so here the rows are that factor: `(Bᵀ Aᵀ)ᵀ`, of which Bᵀ is computed once, before
    /// the loop. Where its rows are long, Bᵀ lies in blocks of columns behind each other, which are read from end to
    /// end, and the products of the blocks are added up.
    pub fn multiplies(self, count: Option<i64>, steps: Option<i64>) -> impl Fn(Expr<'g>) -> Expr<'g> {
        let large = self.fact().element_count().is_some_and(|n| n >= LARGE_MATRIX);
        let few = large && steps.is_none_or(|n| n >= MANY_STEPS) && count.is_some_and(|n| FEW_ROWS.contains(&n));
        let blocks = self.known_dim(0).zip(count).and_then(|(length, count)| blocks(length, count));
        let in_blocks = move |e: Expr<'g>| blocks.map_or(e, |(n, length)| e.reshape_to(&[n, length, -1]));
        let turned = few.then(|| in_blocks(self).transposed());
        move |rows| match turned {
            Some(turned) if blocks.is_some() => turned.matmul(in_blocks(rows.transposed())).sum_out(&[0]).transposed(),
            Some(turned) => turned.matmul(rows.transposed()).transposed(),
            None => rows.matmul(self),
        }
    }

    /// `α op(A) op(B)`: the matrix product `[..., n, k] · [..., k, m] -> [..., n, m]` of this tensor, A, and `other`,
    /// B, which are of one type; `transposed` and `other_transposed` say which of the two is transposed in its last two
    /// dimensions first. Of two matrices it is one Gemm, which transposes nothing in memory (ONNX Gemm, MatMul).
    pub fn gemm(self, transposed: bool, other: Expr<'g>, other_transposed: bool, alpha: f64) -> Expr<'g> {
        // A transpose of a factor that the pass has written is a flag of the product.
        let flag =
            |e: Expr<'g>, transposed: bool| match e.operand_of("Transpose").filter(|_| e.fact().rank() == Some(2)) {
                Some(operand) => (operand, !transposed),
                None => (e, transposed),
            };
        let ((left, transposed), (right, other_transposed)) = (flag(self, transposed), flag(other, other_transposed));
        let b = self.builder;
        let flat = left.fact().rank() == Some(2) && right.fact().rank() == Some(2);
        if flat && b.opset() >= 11 && (transposed || other_transposed || alpha != 1.0) {
            let mut attributes = vec![int("transA", transposed.into()), int("transB", other_transposed.into())];
            if alpha != 1.0 {
                attributes.push(float("alpha", alpha as f32));
            }
            return b.emit("Gemm", &[Some(left), Some(right)], attributes);
        }
        let left = if transposed { left.transposed() } else { left };
        let right = if other_transposed { right.transposed() } else { right };
        left.matmul(right) * alpha
    }

    /// `A` and `B` of a product `AᵀB` of two matrices which the pass has written.
    pub fn factors(self) -> Option<(Expr<'g>, Expr<'g>)> {
        use crate::onnx::attribute::{get_int, get_ints};
        let graph = self.builder.graph();
        let written = |value| {
            let (id, _) = graph.producer(value)?;
            Some(graph.node(id)).filter(|n| n.origin != Origin::Model && n.domain.is_empty())
        };
        let node = written(self.id)?;
        let [Some(left), Some(right)] = node.inputs[..] else { return None };
        let flag = |name| get_int(&node.attributes, name).unwrap_or(0) != 0;
        let left = match &*node.op_type {
            "Gemm" if flag("transA") && !flag("transB") && !node.attributes.iter().any(|a| a.name() == "alpha") => left,
            "MatMul" => match written(left)? {
                transpose
                    if &*transpose.op_type == "Transpose"
                        && get_ints(&transpose.attributes, "perm").is_none_or(|perm| perm == [1, 0]) =>
                {
                    transpose.inputs.first().copied().flatten()?
                }
                _ => return None,
            },
            _ => return None,
        };
        let matrices = [left, right].iter().all(|&v| graph.fact(v).rank() == Some(2));
        matrices.then(|| (self.builder.expr(left), self.builder.expr(right)))
    }

    /// A tensor and a vector along the second axis, of whose product the pass has written this one.
    pub fn channel_factor(self) -> Option<(Expr<'g>, Expr<'g>)> {
        let second = {
            let graph = self.builder.graph();
            let (id, _) = graph.producer(self.id)?;
            self.builder.expr(graph.node(id).inputs.get(1).copied().flatten()?)
        };
        let first = self.operand_of("Mul")?;
        let rank = self.fact().rank()?;
        let channels = self.known_dim(1).filter(|&n| n > 1)?;
        let vector = |e: Expr<'g>| {
            let shape = e.fact().known_shape()?;
            let along = shape.len() + 1 >= rank && shape.len() + 1 - rank <= 1;
            let own = shape.get((shape.len() + 1).checked_sub(rank)?)?;
            (along && *own == channels && shape.iter().product::<i64>() == channels).then(|| e.flattened())
        };
        let whole = |e: Expr<'g>| e.same_shape(self);
        match (whole(first), whole(second)) {
            (true, false) => Some((first, vector(second)?)),
            (false, true) => Some((second, vector(first)?)),
            _ => None,
        }
    }

    /// The axes but for the last `kept` as one: `[a, b, c, d] -> [ab, c, d]` for two that are kept.
    pub fn stacked_before(self, kept: usize) -> Expr<'g> {
        let b = self.builder;
        b.attempt(|| {
            let rank = self.rank()?;
            let first = rank.saturating_sub(kept);
            let sizes = || Expr::concat(&[self.one_size(0..first, first..rank), self.dims(first..rank)], 0);
            Ok(if first == 1 { self } else { self.reshape(sizes()) })
        })
    }

    /// The axes behind the first `kept` as one: `[a, b, c, d] -> [a, b, cd]` for two that are kept.
    pub fn stacked_after(self, kept: usize) -> Expr<'g> {
        let b = self.builder;
        b.attempt(|| {
            let rank = self.rank()?;
            let kept = kept.min(rank);
            let sizes = || Expr::concat(&[self.dims(0..kept), self.one_size(kept..rank, 0..kept)], 0);
            Ok(if rank == kept + 1 { self } else { self.reshape(sizes()) })
        })
    }

    /// The size of some axes made one, a list of one number: what is left beside `others`, where these are known.
    /// Beside a size that turns out to be zero nothing says what is left.
    fn one_size(self, axes: std::ops::Range<usize>, others: std::ops::Range<usize>) -> Expr<'g> {
        match self.dims(others).ints() {
            Some(_) => self.builder.ints(&[-1]),
            None => self.dims(axes).product_of_list(),
        }
    }

    /// The sum over products that an equation such as `bij,bjk->bik` describes, of tensors of one type, each with as
    /// many axes as its term has letters (ONNX Einsum, from opset 12 on).
    ///
    /// # Panics
    /// There are no operands.
    pub fn einsum(equation: &str, operands: &[Expr<'g>]) -> Expr<'g> {
        let [first, ..] = operands else { panic!("an equation without operands") };
        let inputs: Vec<_> = operands.iter().copied().map(Some).collect();
        first.since(12, "Einsum", || first.builder.emit("Einsum", &inputs, vec![string("equation", equation)]))
    }

    /// Convolution of this tensor, `[N, C, ...]`, with weights `[O, C/group, ...]` of the same type, to `[N, O, ...]`;
    /// the kernel's size is that of the weights (ONNX Conv).
    pub fn conv(self, weights: Expr<'g>, p: &ConvLike) -> Expr<'g> {
        self.conv_of(weights, p.attributes())
    }

    /// As [`Expr::conv`], with the attributes of a node: those of Conv.
    pub fn conv_of(self, weights: Expr<'g>, attributes: Vec<AttributeProto>) -> Expr<'g> {
        self.builder.emit("Conv", &[Some(self), Some(weights)], attributes)
    }

    /// Transposed convolution of this tensor, `[N, O, ...]`, with weights `[O, C/group, ...]` of the same type, to
    /// `[N, C, ...]`: the adjoint of [`Expr::conv`]. `output_padding` has an entry a spatial axis (ONNX ConvTranspose).
    pub fn conv_transpose(self, weights: Expr<'g>, p: &ConvLike, output_padding: &[i64]) -> Expr<'g> {
        let mut attributes = p.attributes();
        if output_padding.iter().any(|&o| o != 0) {
            attributes.push(ints("output_padding", output_padding));
        }
        self.builder.emit("ConvTranspose", &[Some(self), Some(weights)], attributes)
    }

    /// The mean of each window of `[N, C, ...]`, in this tensor's type, with the attributes of a node (ONNX
    /// AveragePool).
    pub fn average_pool_of(self, attributes: Vec<AttributeProto>) -> Expr<'g> {
        self.builder.emit("AveragePool", &[Some(self)], attributes)
    }

    /// The largest element of each window of `[N, C, ...]`, in this tensor's type (ONNX MaxPool).
    pub fn largest(self, p: &Pool) -> Expr<'g> {
        self.builder.emit("MaxPool", &[Some(self)], p.attributes())
    }

    /// The largest element of each window of `[N, C, ...]`, with its index into the whole flattened input: two tensors
    /// of one shape, the second of int64 (ONNX MaxPool).
    pub fn max_pool(self, p: &Pool) -> (Expr<'g>, Expr<'g>) {
        let outputs = self.since(8, "MaxPool with indices", || self);
        match outputs.builder.emit_many("MaxPool", &[Some(self)], p.attributes(), vec![], 2)[..] {
            [y, indices] => (y, indices),
            _ => (self, self),
        }
    }

    /// This tensor's elements in the places that `indices`, int64 of the same shape, name in the flattened result,
    /// which has the shape that the list `shape` says, and zeros elsewhere (ONNX MaxUnpool).
    pub fn max_unpool(self, indices: Expr<'g>, shape: Expr<'g>, attributes: Vec<AttributeProto>) -> Expr<'g> {
        self.since(9, "MaxUnpool", || {
            self.builder.emit("MaxUnpool", &[Some(self), Some(indices), Some(shape)], attributes)
        })
    }

    /// The image, or any tensor, at the sizes or by the factors that `p` says for each axis, in the same type (ONNX
    /// Resize).
    pub fn resize(self, p: &Resized<'g>) -> Expr<'g> {
        let b = self.builder;
        let empty = || b.numbers(&[], &[0], ElementType::Float);
        match b.opset() {
            ..=8 => {
                let Some(scales) = p.scales.and_then(|s| s.fact().floats()) else {
                    return b.too_old("Upsample by computed scales", 9);
                };
                let scales: Vec<f32> = scales.iter().map(|&s| s as f32).collect();
                let attributes = p.attributes.iter().cloned().chain([floats("scales", &scales)]).collect();
                b.emit("Upsample", &[Some(self)], attributes)
            }
            9 => b.emit("Upsample", &[Some(self), p.scales], p.attributes.clone()),
            10 => b.emit("Resize", &[Some(self), p.scales], p.attributes.clone()),
            // The region and the scales could not be left out.
            11..=12 => {
                let (roi, scales) = (p.roi.unwrap_or_else(empty), p.scales.unwrap_or_else(empty));
                b.emit("Resize", &[Some(self), Some(roi), Some(scales), p.sizes], p.attributes.clone())
            }
            _ => b.emit("Resize", &[Some(self), p.roi, p.scales, p.sizes], p.attributes.clone()),
        }
    }

    /// An axis brought to another size, linearly between the middles of elements: each new one is a sum over the old
    /// ones, of which those nearer than one step count. `size` has no dimensions; the other axes stay as they are.
    ///
    /// # Errors
    /// The rank is not known.
    pub fn interpolated(self, axis: usize, size: Expr<'g>) -> anyhow::Result<Expr<'g>> {
        let b = self.builder();
        let (rank, old) = (self.rank()?, self.dim(axis));
        let [from, to] = [old, size].map(|n| n.cast_like(self));
        let middle = (b.range(size).cast_like(self) + 0.5) * (from / to) - 0.5;
        let place = middle.max(self.like(0.0)).min(from - 1.0);
        let distance = (place.unsqueeze(&[1]) - b.range(old).cast_like(self).unsqueeze(&[0])).abs();
        let matrix = (1.0 - distance).max(self.like(0.0));
        Ok(self.move_axis(axis, rank - 1).matmul(matrix.transposed()).move_axis(rank - 1, axis))
    }

    /// `eˣ / Σ eˣ` along an axis, of this tensor's shape and floating-point type (ONNX Softmax).
    pub fn softmax(self, axis: usize) -> Expr<'g> {
        self.along_axis("Softmax", axis, |x| {
            let e = (x - x.maximum(&[axis])).exp();
            e / e.sum(&[axis])
        })
    }

    /// `ln softmax(x)` along an axis, of this tensor's shape and floating-point type (ONNX LogSoftmax).
    pub fn log_softmax(self, axis: usize) -> Expr<'g> {
        self.along_axis("LogSoftmax", axis, |x| {
            let shifted = x - x.maximum(&[axis]);
            shifted - shifted.exp().sum(&[axis]).log()
        })
    }

    /// Before opset 13 the operator flattens all axes from the given one on: it means one axis where that is the last.
    /// Along an axis before others engines transpose twice, and nodes of its formula do not.
    fn along_axis(self, op: &'static str, axis: usize, formula: impl FnOnce(Expr<'g>) -> Expr<'g>) -> Expr<'g> {
        self.builder.attempt(|| {
            let rank = self.rank()?;
            let last = axis + 1 == rank;
            let behind = (axis + 1..rank).try_fold(1i64, |n, a| n.checked_mul(self.known_dim(a)?));
            let plain = last || behind.is_none_or(|n| n < LONG_ROW);
            let direct = last || (plain && self.builder.opset() >= 13);
            Ok(if direct {
                self.builder.emit(op, &[Some(self)], vec![int("axis", axis as i64)])
            } else {
                formula(self)
            })
        })
    }
}

impl Pool {
    fn attributes(&self) -> Vec<AttributeProto> {
        let lists = [("strides", &self.strides), ("dilations", &self.dilations), ("pads", &self.pads)];
        let lists = lists.into_iter().filter_map(|(name, list)| Some(ints(name, list.as_deref()?)));
        let mut attributes: Vec<_> = [ints("kernel_shape", &self.kernel)].into_iter().chain(lists).collect();
        if self.auto_pad != "NOTSET" {
            attributes.push(string("auto_pad", &self.auto_pad));
        }
        if self.ceil_mode {
            attributes.push(int("ceil_mode", 1));
        }
        attributes
    }
}
