//! One method for each operator of ONNX that gradients are made of, in the form that the model's opset knows.
//!
//! This is the only place that knows how an operator was written at which opset. Shapes, axes and element types are as the
//! ONNX operator specification says; where an operator is too new for the model and has no older equivalent, the builder
//! records an error that names both opsets.

use super::{Builder, Expr, normalize_axis};
use crate::graph::{Dim, ScopeId};
use crate::onnx::attribute::{float, int, ints, string};
use crate::onnx::{AttributeProto, ElementType, TensorProto, attribute};
use anyhow::{Result, bail, ensure};

/// Axes, shapes, pads or indices: numbers where they are known, a tensor where they are computed.
pub type Pads = Vec<i64>;

/// What Conv, ConvTranspose and im2col share: one entry a spatial axis, `pads` first all begins, then all ends.
#[derive(Clone, Debug, Default)]
pub struct ConvLike {
    /// Sizes of the window.
    pub kernel: Vec<i64>,
    /// Steps of the window.
    pub strides: Vec<i64>,
    /// Distances of its taps.
    pub dilations: Vec<i64>,
    /// Zeros around the input.
    pub pads: Pads,
    /// Groups of channels.
    pub group: i64,
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident = $op:literal since $since:literal;)*) => {
        impl<'g> Expr<'g> {
            $($(#[$doc])* pub fn $name(self) -> Expr<'g> {
                self.since($since, $op, || self.builder.emit($op, &[Some(self)], vec![]))
            })*
        }
    };
}

unary! {
    /// `eˣ`
    exp = "Exp" since 1;
    /// `ln x`
    log = "Log" since 1;
    /// `√x`
    sqrt = "Sqrt" since 1;
    /// `1 / x`
    reciprocal = "Reciprocal" since 1;
    /// `|x|`
    abs = "Abs" since 1;
    /// -1, 0 or 1
    sign = "Sign" since 9;
    /// `⌊x⌋`
    floor = "Floor" since 1;
    /// `⌈x⌉`
    ceil = "Ceil" since 1;
    /// The nearest integer, halves to the even one.
    round = "Round" since 11;
    /// `sin x`
    sin = "Sin" since 7;
    /// `cos x`
    cos = "Cos" since 7;
    /// `tan x`
    tan = "Tan" since 7;
    /// `arctan x`
    atan = "Atan" since 7;
    /// `sinh x`
    sinh = "Sinh" since 9;
    /// `cosh x`
    cosh = "Cosh" since 9;
    /// `tanh x`
    tanh = "Tanh" since 1;
    /// `1 / (1 + e⁻ˣ)`
    sigmoid = "Sigmoid" since 1;
    /// `ln(1 + eˣ)`
    softplus = "Softplus" since 1;
    /// `max(x, 0)`
    relu = "Relu" since 1;
    /// `2/√π ∫₀ˣ e^(-t²) dt`
    erf = "Erf" since 9;
    /// Logical not.
    not = "Not" since 1;
    /// Whether each element is not a number.
    is_nan = "IsNaN" since 9;
    /// The indices of the elements that are not zero, of shape `[rank, count]`.
    non_zero = "NonZero" since 9;
    /// The determinants of the matrices in the last two dimensions.
    det = "Det" since 11;
}

impl<'g> Expr<'g> {
    /// Builds with an operator that the model may be too old for.
    fn since(self, opset: i64, op: &str, build: impl FnOnce() -> Expr<'g>) -> Expr<'g> {
        self.builder.since(opset, op, build)
    }

    fn binary(self, op: &'static str, other: Expr<'g>) -> Expr<'g> {
        self.builder.emit(op, &[Some(self), Some(other)], vec![])
    }

    pub(super) fn plus(self, other: Expr<'g>) -> Expr<'g> {
        self.simplify_sum(other).unwrap_or_else(|| self.binary("Add", other))
    }

    /// The sum as a node, whatever is known of the terms.
    pub(crate) fn plus_node(self, other: Expr<'g>) -> Expr<'g> {
        self.binary("Add", other)
    }

    /// The sum of tensors of one shape, as one node.
    ///
    /// # Panics
    /// Without terms.
    pub(crate) fn add_n(terms: &[Expr<'g>]) -> Expr<'g> {
        let [first, ..] = terms else { panic!("a sum without terms") };
        let inputs: Vec<_> = terms.iter().copied().map(Some).collect();
        first.builder.emit("Sum", &inputs, vec![])
    }

    pub(super) fn minus(self, other: Expr<'g>) -> Expr<'g> {
        self.simplify_difference(other).unwrap_or_else(|| self.binary("Sub", other))
    }

    pub(super) fn times(self, other: Expr<'g>) -> Expr<'g> {
        self.simplify_product(other).unwrap_or_else(|| self.binary("Mul", other))
    }

    pub(super) fn over(self, other: Expr<'g>) -> Expr<'g> {
        self.simplify_quotient(other).unwrap_or_else(|| self.binary("Div", other))
    }

    pub(super) fn negated(self) -> Expr<'g> {
        self.simplify_negation().unwrap_or_else(|| self.builder.emit("Neg", &[Some(self)], vec![]))
    }

    /// `selfᵉ`, broadcasting.
    pub fn pow(self, exponent: Expr<'g>) -> Expr<'g> {
        self.binary("Pow", exponent)
    }

    /// `x²`
    pub fn square(self) -> Expr<'g> {
        self * self
    }

    /// The same value as a node of its own: for what needs a name that is not taken yet.
    pub fn identity(self) -> Expr<'g> {
        self.builder.emit("Identity", &[Some(self)], vec![])
    }

    /// Whether each element equals the other's, broadcasting.
    pub fn equal(self, other: Expr<'g>) -> Expr<'g> {
        match self.is_float() && self.builder.opset() < 11 {
            true => self.less(other).or(other.less(self)).not().and(self.is_number()).and(other.is_number()),
            false => self.binary("Equal", other),
        }
    }

    /// `self < other`, broadcasting.
    pub fn less(self, other: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 9 && !self.is_float() {
            // Before opset 9 only floating-point numbers are ordered.
            true => self.cast(ElementType::Double).binary("Less", other.cast(ElementType::Double)),
            false => self.binary("Less", other),
        }
    }

    /// `self > other`, broadcasting.
    pub fn greater(self, other: Expr<'g>) -> Expr<'g> {
        other.less(self)
    }

    /// `self <= other`, broadcasting.
    pub fn less_or_equal(self, other: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 12 {
            true => self.less(other).or(self.equal(other)),
            false => self.binary("LessOrEqual", other),
        }
    }

    /// `self >= other`, broadcasting.
    pub fn greater_or_equal(self, other: Expr<'g>) -> Expr<'g> {
        other.less_or_equal(self)
    }

    /// Logical and, broadcasting.
    pub fn and(self, other: Expr<'g>) -> Expr<'g> {
        self.binary("And", other)
    }

    /// Logical or, broadcasting.
    pub fn or(self, other: Expr<'g>) -> Expr<'g> {
        self.binary("Or", other)
    }

    /// Whether each element is a number: not NaN.
    fn is_number(self) -> Expr<'g> {
        match self.builder.opset() < 9 {
            true => self.less(self.like(0.0)).or(self.like(0.0).less(self + 1.0)),
            false => self.is_nan().not(),
        }
    }

    /// The larger of the two, broadcasting.
    pub fn max(self, other: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 12 && !self.is_float() {
            true => self.less(other).select(other, self),
            false => self.binary("Max", other),
        }
    }

    /// The smaller of the two, broadcasting.
    pub fn min(self, other: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 12 && !self.is_float() {
            true => self.less(other).select(self, other),
            false => self.binary("Min", other),
        }
    }

    /// `self` limited to `[low, high]`.
    pub fn clamp(self, low: f64, high: f64) -> Expr<'g> {
        self.max(self.like(low)).min(self.like(high))
    }

    /// The remainder of integer division, with the divisor's sign.
    pub fn modulo(self, divisor: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 10 {
            // For indices and sizes, which are not negative, division rounds as the remainder needs it.
            true => self - (self / divisor) * divisor,
            false => self.binary("Mod", divisor),
        }
    }

    /// `then` where this condition holds, `otherwise` where not, broadcasting.
    pub fn select(self, then: Expr<'g>, otherwise: Expr<'g>) -> Expr<'g> {
        if then == otherwise && then.fact().rank() >= self.fact().rank() && then.same_shape(self) {
            return then;
        }
        if self.builder.opset() >= 9 {
            return self.builder.emit("Where", &[Some(self), Some(then), Some(otherwise)], vec![]);
        }
        self.builder.attempt(|| {
            let element = then.element()?;
            Ok(then * self.cast(element) + otherwise * self.not().cast(element))
        })
    }

    /// This where the condition holds, zero where not.
    pub fn where_(self, condition: Expr<'g>) -> Expr<'g> {
        condition.select(self, self.like(0.0))
    }

    /// The elements in another type.
    pub fn cast(self, element: ElementType) -> Expr<'g> {
        if self.fact().element == Some(element) {
            return self;
        }
        self.builder.emit("Cast", &[Some(self)], vec![int("to", element as i64)])
    }

    /// The elements in the type of another tensor.
    pub fn cast_like(self, other: Expr<'g>) -> Expr<'g> {
        self.builder.attempt(|| Ok(self.cast(other.element()?)))
    }

    // ---------------------------------------------------------------- shapes

    /// The shape: a constant where all of it is known.
    pub fn shape(self) -> Expr<'g> {
        match self.fact().known_shape() {
            Some(shape) => self.builder.ints(&shape),
            None => self.builder.emit("Shape", &[Some(self)], vec![]),
        }
    }

    /// The size of a dimension, as an integer without dimensions.
    pub fn dim(self, axis: usize) -> Expr<'g> {
        match self.known_dim(axis) {
            Some(n) => self.builder.int(n),
            None => self.shape().gather(self.builder.int(axis as i64), 0),
        }
    }

    /// The sizes of some dimensions, as a list.
    pub fn dims(self, axes: impl IntoIterator<Item = usize>) -> Expr<'g> {
        let axes: Vec<i64> = axes.into_iter().map(|a| a as i64).collect();
        let known: Option<Vec<i64>> = axes.iter().map(|&a| self.known_dim(a as usize)).collect();
        match known {
            Some(sizes) => self.builder.ints(&sizes),
            None => self.shape().gather(self.builder.ints(&axes), 0),
        }
    }

    /// How many elements there are, as an integer without dimensions.
    pub fn size(self) -> Expr<'g> {
        match self.fact().element_count() {
            Some(n) => self.builder.int(n),
            None => self.builder.emit("Size", &[Some(self)], vec![]),
        }
    }

    /// The product of some dimensions as a number of this tensor's element type: what a mean divides by.
    pub fn count(self, axes: &[usize]) -> Expr<'g> {
        let known: Option<i64> = axes.iter().map(|&a| self.known_dim(a)).product();
        match known {
            Some(n) => self.like(n as f64),
            None => self.dims(axes.iter().copied()).cast_like(self).reduce("ReduceProd", Some(&[0]), false),
        }
    }

    /// The elements in another shape, which is a list of integers. What of it is known at build time is written as a constant.
    pub fn reshape(self, shape: Expr<'g>) -> Expr<'g> {
        self.simplify_reshape(shape).unwrap_or_else(|| {
            let target = self.reshape_target(shape);
            // A size that turns out to be zero means zero, not "as the input".
            let literal = target.is_none() && self.builder.opset() >= 14;
            let attributes = if literal { vec![int("allowzero", 1)] } else { vec![] };
            self.builder.emit("Reshape", &[Some(self), Some(target.unwrap_or(shape))], attributes)
        })
    }

    /// The elements in another shape, with the meaning of 0 and -1 that Reshape gives them.
    pub fn reshape_to(self, shape: &[i64]) -> Expr<'g> {
        self.reshape(self.builder.ints(shape))
    }

    /// The elements in the shape of another tensor.
    pub fn reshape_like(self, other: Expr<'g>) -> Expr<'g> {
        match self.same_shape(other) {
            true => self,
            false => self.reshape(other.shape()),
        }
    }

    /// Broadcast to a shape that is a list of integers.
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

    /// Broadcast to the shape of another tensor.
    pub fn expand_like(self, other: Expr<'g>) -> Expr<'g> {
        match self.same_shape(other) {
            true => self,
            false => self.expand(other.shape()),
        }
    }

    /// A tensor of this one's element type and shape with `value` in every place.
    pub fn full_like(self, value: f64) -> Expr<'g> {
        self.builder.attempt(|| Ok(self.builder.full(self.shape(), value, self.element()?)))
    }

    /// Zeros of this tensor's element type and shape.
    pub fn zeros_like(self) -> Expr<'g> {
        self.full_like(0.0)
    }

    /// Ones of this tensor's element type and shape.
    pub fn ones_like(self) -> Expr<'g> {
        self.full_like(1.0)
    }

    /// The axes in another order: axis `i` of the result is axis `perm[i]`.
    pub fn transpose(self, perm: &[usize]) -> Expr<'g> {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return self;
        }
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        self.builder.emit("Transpose", &[Some(self)], vec![ints("perm", &perm)])
    }

    /// The last two axes exchanged.
    pub fn transposed(self) -> Expr<'g> {
        self.builder.attempt(|| {
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

    /// Without the given axes, whose sizes are 1.
    pub fn squeeze(self, axes: &[usize]) -> Expr<'g> {
        self.with_axes("Squeeze", axes, 13)
    }

    /// With new axes of size 1, which the result has at the given places.
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

    /// The elements in one dimension.
    pub fn flattened(self) -> Expr<'g> {
        self.reshape_to(&[-1])
    }

    // ---------------------------------------------------------------- reductions

    pub(super) fn reduce(self, op: &'static str, axes: Option<&[usize]>, keep_dims: bool) -> Expr<'g> {
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

    /// The sum of all elements, without dimensions.
    pub fn sum_all(self) -> Expr<'g> {
        self.reduce("ReduceSum", None, false)
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

    // ---------------------------------------------------------------- products

    /// The matrix product over the last two dimensions, as numpy's matmul.
    pub fn matmul(self, other: Expr<'g>) -> Expr<'g> {
        self.binary("MatMul", other)
    }

    /// The sum over products that an equation such as `bij,bjk->bik` describes.
    pub fn einsum(equation: &str, operands: &[Expr<'g>]) -> Expr<'g> {
        let [first, ..] = operands else { panic!("an equation without operands") };
        let inputs: Vec<_> = operands.iter().copied().map(Some).collect();
        first.since(12, "Einsum", || first.builder.emit("Einsum", &inputs, vec![string("equation", equation)]))
    }

    /// Convolution of `[N, C, ...]` with weights `[O, C/group, ...]`; the kernel's size is that of the weights.
    pub fn conv(self, weights: Expr<'g>, p: &ConvLike) -> Expr<'g> {
        self.builder.emit("Conv", &[Some(self), Some(weights)], p.attributes())
    }

    /// Transposed convolution of `[N, O, ...]` with weights `[O, C/group, ...]`: the adjoint of [`Expr::conv`].
    pub fn conv_transpose(self, weights: Expr<'g>, p: &ConvLike, output_padding: &[i64]) -> Expr<'g> {
        let mut attributes = p.attributes();
        if output_padding.iter().any(|&o| o != 0) {
            attributes.push(ints("output_padding", output_padding));
        }
        self.builder.emit("ConvTranspose", &[Some(self), Some(weights)], attributes)
    }

    /// The largest element of each window, with its index into the whole flattened input.
    pub fn max_pool(self, p: &ConvLike, ceil_mode: bool) -> (Expr<'g>, Expr<'g>) {
        let mut attributes = vec![ints("kernel_shape", &p.kernel), ints("strides", &p.strides), ints("pads", &p.pads)];
        if p.dilations.iter().any(|&d| d != 1) {
            attributes.push(ints("dilations", &p.dilations));
        }
        if ceil_mode {
            attributes.push(int("ceil_mode", 1));
        }
        let outputs = self.since(8, "MaxPool with indices", || self);
        match outputs.builder.emit_many("MaxPool", &[Some(self)], attributes, vec![], 2)[..] {
            [y, indices] => (y, indices),
            _ => (self, self),
        }
    }

    /// The mean of each window, padding counted.
    pub fn average_pool(self, p: &ConvLike) -> Expr<'g> {
        let attributes = vec![
            ints("kernel_shape", &p.kernel),
            ints("strides", &p.strides),
            ints("pads", &p.pads),
            int("count_include_pad", 1),
        ];
        self.builder.emit("AveragePool", &[Some(self)], attributes)
    }

    /// `eˣ / Σ eˣ` along an axis.
    pub fn softmax(self, axis: usize) -> Expr<'g> {
        self.along_axis("Softmax", axis, |x| {
            let e = (x - x.maximum(&[axis])).exp();
            e / e.sum(&[axis])
        })
    }

    /// `ln softmax(x)` along an axis.
    pub fn log_softmax(self, axis: usize) -> Expr<'g> {
        self.along_axis("LogSoftmax", axis, |x| {
            let shifted = x - x.maximum(&[axis]);
            shifted - shifted.exp().sum(&[axis]).log()
        })
    }

    /// Before opset 13 the operator flattens all axes from the given one on: it means one axis where that is the last.
    fn along_axis(self, op: &'static str, axis: usize, formula: impl FnOnce(Expr<'g>) -> Expr<'g>) -> Expr<'g> {
        self.builder.attempt(|| {
            let direct = self.builder.opset() >= 13 || axis + 1 == self.rank()?;
            Ok(if direct { self.builder.emit(op, &[Some(self)], vec![int("axis", axis as i64)]) } else { formula(self) })
        })
    }

    // ---------------------------------------------------------------- parts

    /// Tensors joined along an axis.
    pub fn concat(parts: &[Expr<'g>], axis: usize) -> Expr<'g> {
        match parts {
            [] => panic!("nothing to join"),
            [only] => *only,
            [first, ..] => {
                let inputs: Vec<_> = parts.iter().copied().map(Some).collect();
                first.builder.emit("Concat", &inputs, vec![int("axis", axis as i64)])
            }
        }
    }

    /// The part `starts[i] .. ends[i]` in steps along `axes[i]`, numbers known at build time.
    pub fn slice(self, axes: &[usize], starts: &[i64], ends: &[i64], steps: &[i64]) -> Expr<'g> {
        let b = self.builder;
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        if b.opset() >= 10 {
            return self.slice_at(b.ints(&axes), b.ints(starts), b.ints(ends), b.ints(steps));
        }
        if steps.iter().any(|&s| s != 1) {
            return b.too_old("Slice with steps", 10);
        }
        b.emit("Slice", &[Some(self)], vec![ints("axes", &axes), ints("starts", starts), ints("ends", ends)])
    }

    /// The part `start .. end` along an axis.
    pub fn narrow(self, axis: usize, start: i64, end: i64) -> Expr<'g> {
        self.slice(&[axis], &[start], &[end], &[1])
    }

    /// The part that lists of integers, computed or not, describe.
    pub fn slice_at(self, axes: Expr<'g>, starts: Expr<'g>, ends: Expr<'g>, steps: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 10 {
            return b.emit("Slice", &[Some(self), Some(starts), Some(ends), Some(axes), Some(steps)], vec![]);
        }
        match (axes.ints(), starts.ints(), ends.ints(), steps.ints()) {
            (Some(axes), Some(starts), Some(ends), Some(steps)) => {
                let axes: Vec<usize> = axes.into_iter().map(|a| a as usize).collect();
                self.slice(&axes, &starts, &ends, &steps)
            }
            _ => b.too_old("Slice at computed places", 10),
        }
    }

    /// The elements along an axis in reverse order.
    pub fn reversed(self, axis: usize) -> Expr<'g> {
        self.slice(&[axis], &[-1], &[i64::MIN], &[-1])
    }

    /// Parts of the given sizes along an axis.
    pub fn split(self, axis: usize, sizes: &[i64]) -> Vec<Expr<'g>> {
        let b = self.builder;
        let mut attributes = vec![int("axis", axis as i64)];
        let mut inputs = vec![Some(self)];
        match b.opset() >= 13 {
            true => inputs.push(Some(b.ints(sizes))),
            false => attributes.push(ints("split", sizes)),
        }
        b.emit_many("Split", &inputs, attributes, vec![], sizes.len())
    }

    /// The tensor with zeros, or another value, around it: `pads` of all begins, then of all ends, none negative.
    pub fn pad(self, pads: Expr<'g>, value: Option<Expr<'g>>) -> Expr<'g> {
        let b = self.builder;
        if pads.ints().is_some_and(|p| p.iter().all(|&p| p == 0)) {
            return self;
        }
        if b.opset() >= 11 {
            return b.emit("Pad", &[Some(self), Some(pads), value], vec![]);
        }
        match (pads.ints(), value.map(|v| v.constant())) {
            (Some(pads), None) => b.emit("Pad", &[Some(self)], vec![ints("pads", &pads)]),
            (Some(pads), Some(Some(v))) => b.emit("Pad", &[Some(self)], vec![ints("pads", &pads), float("value", v as f32)]),
            _ => b.too_old("Pad by computed amounts", 11),
        }
    }

    /// Copies side by side, as often along each axis as the list says.
    pub fn tile(self, repeats: Expr<'g>) -> Expr<'g> {
        self.builder.emit("Tile", &[Some(self), Some(repeats)], vec![])
    }

    /// The upper (or lower) triangles of matrices, from diagonal `k` on.
    pub fn trilu(self, k: Expr<'g>, upper: bool) -> Expr<'g> {
        self.since(14, "Trilu", || self.builder.emit("Trilu", &[Some(self), Some(k)], vec![int("upper", upper.into())]))
    }

    // ---------------------------------------------------------------- indexing

    /// The slices at `indices` along an axis, in the place of that axis.
    pub fn gather(self, indices: Expr<'g>, axis: usize) -> Expr<'g> {
        self.builder.emit("Gather", &[Some(self), Some(indices)], vec![int("axis", axis as i64)])
    }

    /// For each place the element that `indices` names along an axis.
    pub fn gather_elements(self, indices: Expr<'g>, axis: usize) -> Expr<'g> {
        self.since(11, "GatherElements", || {
            self.builder.emit("GatherElements", &[Some(self), Some(indices)], vec![int("axis", axis as i64)])
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
        let op = if self.builder.opset() < 11 { "Scatter" } else { "ScatterElements" };
        self.since(9, op, || self.builder.emit(op, &[Some(self), Some(indices), Some(updates)], vec![int("axis", axis as i64)]))
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
        self.since(11, "ScatterND", || self.builder.emit("ScatterND", &[Some(self), Some(indices), Some(updates)], vec![]))
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
            let rows = updates.reshape(Expr::concat(&[tuples.dims([0]), b.ints(&[-1])], 0));
            let sums = same.matmul(rows).reshape_like(updates);
            let old = self.gather_nd(indices, 0);
            Ok(self.scatter_nd(indices, sums + old))
        })
    }

    /// What [`Expr::gather`] along `axis` of a tensor like `self` is the transpose of: `updates`, which stand where the
    /// gathered slices stood, added up in a tensor of zeros of this one's shape.
    pub fn ungather(self, indices: Expr<'g>, updates: Expr<'g>, axis: usize) -> Expr<'g> {
        let b = self.builder;
        b.attempt(|| {
            let (rank, index_rank) = (self.rank()?, indices.rank()?);
            // The axes of the indices to the front, those before the gathered one behind them.
            let mut front: Vec<usize> = (axis..axis + index_rank).collect();
            front.extend((0..axis).chain(axis + index_rank..index_rank + rank - 1));
            let rows = updates.transpose(&front);
            let mut order: Vec<usize> = vec![axis];
            order.extend((0..rank).filter(|&a| a != axis));
            let zeros = b.full(self.dims(order.iter().copied()), 0.0, updates.element()?);
            let summed = match b.opset() >= 11 {
                true => zeros.scatter_nd_add(indices.cast(ElementType::Int64).unsqueeze(&[index_rank]), rows),
                false => {
                    // One column for each slice: which place each index names.
                    let size = self.dim(axis);
                    let flat = indices.wrapped(size.cast_like(indices)).flattened();
                    let hit = b.range(size).cast_like(flat).unsqueeze(&[1]).equal(flat.unsqueeze(&[0]));
                    let rows = rows.reshape(Expr::concat(&[flat.shape(), b.ints(&[-1])], 0));
                    hit.cast_like(rows).matmul(rows).reshape_like(zeros)
                }
            };
            let mut back: Vec<usize> = (1..=axis).collect();
            back.push(0);
            back.extend(axis + 1..rank);
            Ok(summed.transpose(&back))
        })
    }

    /// `on` in the place that each index names along a new axis of size `depth`, zero elsewhere, in the type of `on`.
    pub fn one_hot(self, depth: Expr<'g>, axis: i64, on: Expr<'g>) -> Expr<'g> {
        self.since(9, "OneHot", || {
            let values = Expr::concat(&[on.like(0.0).reshape_to(&[1]), on.reshape_to(&[1])], 0);
            self.builder.emit("OneHot", &[Some(self), Some(depth), Some(values)], vec![int("axis", axis)])
        })
    }
}

/// A shape of ones but for -1 at one place: what lays a list along an axis.
fn place(rank: usize, axis: usize) -> Vec<i64> {
    (0..rank).map(|a| if a == axis { -1 } else { 1 }).collect()
}

impl ConvLike {
    fn attributes(&self) -> Vec<AttributeProto> {
        let mut attributes = Vec::new();
        if !self.kernel.is_empty() {
            attributes.push(ints("kernel_shape", &self.kernel));
        }
        attributes.extend([
            ints("strides", &self.strides),
            ints("dilations", &self.dilations),
            ints("pads", &self.pads),
            int("group", self.group),
        ]);
        attributes
    }
}

impl Builder {
    fn too_old(&self, what: &str, needed: i64) -> Expr<'_> {
        let remedy = "convert the model to a newer opset";
        self.fail(anyhow::anyhow!("{what} needs opset {needed}; the model is at {}: {remedy}", self.opset()))
    }

    fn since<'g>(&'g self, opset: i64, op: &str, build: impl FnOnce() -> Expr<'g>) -> Expr<'g> {
        if self.opset() < opset { self.too_old(op, opset) } else { build() }
    }

    /// A tensor with `value` in every place, of a shape that is a list of integers, computed or not.
    pub fn full<'g>(&'g self, shape: Expr<'g>, value: f64, element: ElementType) -> Expr<'g> {
        let known = shape.ints();
        if known.as_ref().is_some_and(Vec::is_empty) {
            return self.scalar(value, element);
        }
        if self.opset() >= 9 {
            let tensor = match element.is_float() {
                true => TensorProto::from_floats(element, &[1], &[value]),
                false if element.bits().is_some_and(|b| b >= 8 && !matches!(element, ElementType::Complex64)) => {
                    TensorProto::from_ints(element, &[1], &[value as i64])
                }
                false => return self.fail(anyhow::anyhow!("a constant of type {} cannot be written", element.name())),
            };
            return self.emit("ConstantOfShape", &[Some(shape)], vec![attribute::tensor("value", tensor)]);
        }
        let scalar = self.scalar(value, element);
        if self.opset() == 8 {
            return self.emit("Expand", &[Some(scalar), Some(shape)], vec![]);
        }
        match shape.fact().shape.as_deref() {
            Some(&[Dim::Known(rank)]) => scalar.reshape_to(&vec![1; rank as usize]).tile(shape),
            _ => self.too_old("a tensor of computed rank", 8),
        }
    }

    /// The integers from 0 up to a size.
    pub fn range<'g>(&'g self, size: Expr<'g>) -> Expr<'g> {
        if let Some([n]) = size.ints().as_deref()
            && *n <= 1 << 16
        {
            return self.ints(&(0..*n).collect::<Vec<i64>>());
        }
        if self.opset() >= 11 {
            return self.emit("Range", &[Some(self.int(0)), Some(size), Some(self.int(1))], vec![]);
        }
        // The places of the elements of a list of ones that are not zero.
        let ones = self.full(size.reshape_to(&[1]), 1.0, ElementType::Float);
        self.since(9, "a list of all places", || ones.non_zero().flattened())
    }

    /// One of two results, computed by the branches, which are scopes without inputs.
    pub fn if_<'g>(&'g self, condition: Expr<'g>, then: ScopeId, otherwise: ScopeId) -> Vec<Expr<'g>> {
        let outputs = self.graph().scope(then).outputs.len();
        self.emit_many("If", &[Some(condition)], vec![], vec![("then_branch", then), ("else_branch", otherwise)], outputs)
    }

    /// A loop whose body takes the trip number, a condition and the states, and returns a condition, the states, and what is stacked.
    pub fn loop_<'g>(
        &'g self,
        trips: Option<Expr<'g>>,
        condition: Option<Expr<'g>>,
        states: &[Expr<'g>],
        body: ScopeId,
    ) -> Vec<Expr<'g>> {
        let mut inputs = vec![trips, condition];
        inputs.extend(states.iter().copied().map(Some));
        let outputs = self.graph().scope(body).outputs.len().saturating_sub(1);
        self.emit_many("Loop", &inputs, vec![], vec![("body", body)], outputs)
    }
}

/// `axis` of a tensor of that rank, for messages that a rule gives of an attribute.
pub(crate) fn axes_of(axes: &[i64], rank: usize) -> Result<Vec<usize>> {
    axes.iter().map(|&a| normalize_axis(a, rank)).collect()
}
