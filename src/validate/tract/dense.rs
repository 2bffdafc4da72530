//! Products of matrices and convolutions. tract has them fast in float32 only, and copies for a convolution all windows
//! of its input at once; here they are taken in float64 as in float32, a strip of windows at a time.

use super::operator::{Built, operator};
use crate::error;
use crate::onnx::{NodeProto, attribute};
use crate::validate::kernels::{broadcast, each_index};
use anyhow::{Context, Result, bail, ensure};
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_ndarray::linalg::general_mat_mul;
use tract_onnx::tract_hir::tract_ndarray::{ArrayD, ArrayView2, ArrayViewMut2, Axis, LinalgScalar, Slice};
use tract_onnx::tract_hir::tract_num_traits::AsPrimitive;

/// The bytes of the windows that are copied at once.
const STRIP: usize = 4 << 20;
/// So many windows are copied at once at least, or so much of each that they are.
const COLUMNS: usize = 64;
/// A convolution in float32 whose windows have more bytes than this is taken here, too.
const LARGE: usize = 64 << 20;

/// Of so many products of numbers a work is shared among processors; of so few in the tests below that theirs are.
const SHARED: usize = if cfg!(test) { 1 << 6 } else { 1 << 22 };

/// What is computed.
#[derive(Clone, Debug)]
enum Product {
    /// Of stacks of matrices.
    MatMul,
    /// `alpha A B + beta C`, each matrix transposed or not.
    Gemm { alpha: f64, beta: f64, transposed: [bool; 2] },
    /// Of an input and windows that slide over it.
    Conv(Conv),
}

/// A node that is computed here where that is faster, or takes less memory; elsewhere by the engine.
#[derive(Clone, Debug)]
struct Dense {
    product: Product,
    /// Whether it is the copy of a model in float64.
    double: bool,
    otherwise: Box<dyn InferenceOp>,
}

/// An operator that is a product: `otherwise` computes what is not for this room.
pub fn product(node: &NodeProto, double: bool, (otherwise, names): (Box<dyn InferenceOp>, Vec<String>)) -> Built {
    let number = |name: &str| f64::from(attribute::get_float(&node.attribute, name).unwrap_or(1.0));
    let flag = |name: &str| attribute::get_int(&node.attribute, name).unwrap_or(0) != 0;
    let product = match node.op_type() {
        "MatMul" => Product::MatMul,
        "Gemm" => {
            let transposed = [flag("transA"), flag("transB")];
            Product::Gemm { alpha: number("alpha"), beta: number("beta"), transposed }
        }
        _ => Product::Conv(Conv::new(node)),
    };
    Ok((Box::new(Dense { product, double, otherwise }), names))
}

operator!(
    Dense,
    name: |op| op.otherwise.name().into_owned(),
    outputs: |_| 1,
    infer: |op, inputs, outputs, observed| op.otherwise.infer_facts(inputs, outputs, observed)
);

impl EvalOp for Dense {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let alike = inputs.windows(2).all(|pair| pair[0].datum_type() == pair[1].datum_type());
        let datum = inputs.first().filter(|_| alike).map(|x| x.datum_type());
        let computed = match datum {
            Some(DatumType::F64) if self.double => self.compute::<f64>(&inputs)?,
            Some(DatumType::F64) if self.is_large(&inputs, 8) => self.compute::<f64>(&inputs)?,
            Some(DatumType::F32) if self.is_large(&inputs, 4) => self.compute::<f32>(&inputs)?,
            _ => None,
        };
        match computed {
            Some(y) => Ok(tvec!(y.into_tvalue())),
            None => self.otherwise.eval(context, inputs),
        }
    }
}

impl Dense {
    /// Whether the engine would copy very much.
    fn is_large(&self, inputs: &[TValue], element: usize) -> bool {
        let (Product::Conv(conv), [x, w, ..]) = (&self.product, inputs) else { return false };
        conv.place(x.shape(), w.shape()).is_some_and(|place| {
            place.depth().saturating_mul(place.outputs.iter().product()).saturating_mul(x.shape()[0] * element) > LARGE
        })
    }

    /// The product, where the inputs are of those that are computed here.
    fn compute<T: Number>(&self, inputs: &[TValue]) -> Result<Option<Tensor>>
    where
        f64: AsPrimitive<T>,
    {
        match (&self.product, inputs) {
            (Product::MatMul, [a, b]) => matmul::<T>(a, b),
            (Product::Gemm { alpha, beta, transposed }, [a, b, c @ ..]) => {
                gemm::<T>([a, b], c.first().map(|c| &**c), *alpha, *beta, *transposed)
            }
            (Product::Conv(conv), [x, w, bias @ ..]) => {
                let Some(place) = conv.place(x.shape(), w.shape()) else { return Ok(None) };
                let bias = bias.first().map(|b| elements::<T>(b)).transpose()?;
                if bias.is_some_and(|b| b.len() != w.shape()[0]) {
                    return Ok(None);
                }
                let y = place.convolve(elements::<T>(x)?, elements::<T>(w)?, bias, STRIP)?;
                Ok(Some(tensor(&place.shape(), y)?))
            }
            _ => Ok(None),
        }
    }
}

/// What is multiplied.
trait Number: Datum + LinalgScalar {}
impl Number for f32 {}
impl Number for f64 {}

fn elements<T: Number>(tensor: &Tensor) -> Result<&[T]> {
    tensor.to_plain_array_view::<T>()?.to_slice().context("elements that do not lie in order")
}

fn tensor<T: Number>(dims: &[usize], elements: Vec<T>) -> Result<Tensor> {
    Ok(ArrayD::from_shape_vec(dims, elements)?.into_tensor())
}

/// As many of one number, where there is room for them.
fn filled<T: Number>(count: usize, value: T) -> Result<Vec<T>> {
    let mut elements = Vec::new();
    error::reserve(&mut elements, count)?;
    elements.resize(count, value);
    Ok(elements)
}

/// The products of two stacks of matrices; a vector is a matrix of one row or column.
fn matmul<T: Number>(a: &Tensor, b: &Tensor) -> Result<Option<Tensor>> {
    let (a_dims, b_dims) = (a.shape(), b.shape());
    if a_dims.is_empty() || b_dims.is_empty() || a.len() == 0 || b.len() == 0 {
        return Ok(None);
    }
    let (a_stack, [m, k]) = match a_dims {
        [k] => (&[][..], [1, *k]),
        [stack @ .., m, k] => (stack, [*m, *k]),
        [] => return Ok(None),
    };
    let (b_stack, [rows, n]) = match b_dims {
        [k] => (&[][..], [*k, 1]),
        [stack @ .., k, n] => (stack, [*k, *n]),
        [] => return Ok(None),
    };
    ensure!(k == rows, "{a_dims:?} and {b_dims:?} have no product");
    let stack = broadcast(&[a_stack, b_stack])?;
    let mut dims = stack.clone();
    dims.extend((a_dims.len() > 1).then_some(m));
    dims.extend((b_dims.len() > 1).then_some(n));
    let mut y = filled(dims.iter().product(), T::zero())?;
    let (a, b) = (elements::<T>(a)?, elements::<T>(b)?);
    if b_stack.iter().all(|&d| d == 1) {
        // One matrix for the whole stack: the rows of the others are those of one.
        let rows = a.len() / k;
        multiply(T::one(), ArrayView2::from_shape((rows, k), a)?, ArrayView2::from_shape((k, n), b)?, &mut y)?;
        return Ok(Some(tensor(&dims, y)?));
    }
    let offset = |index: &[usize], stack: &[usize]| {
        let inner = index[index.len() - stack.len()..].iter().zip(stack);
        inner.fold(0, |offset, (&i, &d)| offset * d + if d == 1 { 0 } else { i })
    };
    let mut places = Vec::new();
    each_index(&stack, |index| places.push((offset(index, a_stack) * m * k, offset(index, b_stack) * k * n)));
    for ((at, bt), y) in places.into_iter().zip(y.chunks_mut(m * n)) {
        let (a, b) = (&a[at..at + m * k], &b[bt..bt + k * n]);
        multiply(T::one(), ArrayView2::from_shape((m, k), a)?, ArrayView2::from_shape((k, n), b)?, y)?;
    }
    Ok(Some(tensor(&dims, y)?))
}

/// `y += alpha a b`, y in rows.
fn multiply<T: Number>(alpha: T, a: ArrayView2<T>, b: ArrayView2<T>, y: &mut [T]) -> Result<()> {
    let mut y = ArrayViewMut2::from_shape((a.nrows(), b.ncols()), y)?;
    let threads = threads(a.len().saturating_mul(b.ncols()));
    let rows = a.nrows().div_ceil(threads).max(1);
    let parts = a.axis_chunks_iter(Axis(0), rows).zip(y.axis_chunks_iter_mut(Axis(0), rows));
    shared(
        threads,
        parts,
        || Ok(()),
        |(), (a, mut y)| {
            general_mat_mul(alpha, &a, &b, T::one(), &mut y);
            Ok(())
        },
    )
}

/// How many processors a work of so many products of numbers is shared among: several where it pays, but few, as each
/// holds a strip of windows. The system is asked once: it reads files to answer.
fn threads(products: usize) -> usize {
    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, |n| n.get().min(4)));
    if products < SHARED { 1 } else { *PROCESSORS }
}

/// Does all parts of a work on so many processors. Each begins with what `start` makes.
fn shared<P: Send, S: Send>(
    threads: usize,
    parts: impl Iterator<Item = P> + Send,
    start: impl Fn() -> Result<S>,
    part: impl Fn(&mut S, P) -> Result<()> + Sync,
) -> Result<()> {
    let mut starts = (0..threads).map(|_| start()).collect::<Result<Vec<S>>>()?.into_iter();
    let Some(mut own) = starts.next() else { return Ok(()) };
    let parts = Mutex::new(parts);
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = |state: &mut S| {
        while let Some(one) = next() {
            part(state, one)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let thread = |mut state| std::thread::Builder::new().spawn_scoped(scope, move || work(&mut state));
        // Where there is no room for another thread, those that run do its part.
        let others: Vec<_> = starts.map_while(|state| thread(state).ok()).collect();
        let mut result = work(&mut own);
        for other in others {
            result = result.and(other.join().unwrap_or_else(|_| bail!("a product could not be computed")));
        }
        result
    })
}

fn gemm<T: Number>(
    [a, b]: [&Tensor; 2],
    c: Option<&Tensor>,
    alpha: f64,
    beta: f64,
    transposed: [bool; 2],
) -> Result<Option<Tensor>>
where
    f64: AsPrimitive<T>,
{
    let (&[a_rows, a_columns], &[b_rows, b_columns]) = (a.shape(), b.shape()) else { return Ok(None) };
    let mut left = ArrayView2::from_shape((a_rows, a_columns), elements::<T>(a)?)?;
    let mut right = ArrayView2::from_shape((b_rows, b_columns), elements::<T>(b)?)?;
    if transposed[0] {
        left = left.reversed_axes();
    }
    if transposed[1] {
        right = right.reversed_axes();
    }
    ensure!(left.ncols() == right.nrows(), "{:?} and {:?} have no product", left.dim(), right.dim());
    let dims = [left.nrows(), right.ncols()];
    let mut y = filled(dims[0] * dims[1], T::zero())?;
    if let Some(c) = c {
        let c = c.to_plain_array_view::<T>()?;
        let c = c.broadcast(dims).with_context(|| format!("{:?} does not broadcast to {dims:?}", c.shape()))?;
        y.iter_mut().zip(c.iter()).for_each(|(y, &c)| *y = beta.as_() * c);
    }
    multiply(alpha.as_(), left, right, &mut y)?;
    Ok(Some(tensor(&dims, y)?))
}

/// How windows slide over an input.
#[derive(Clone, Debug)]
struct Conv {
    padding: Padding,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    group: i64,
}

#[derive(Clone, Debug)]
enum Padding {
    /// These amounts at the beginnings of the axes, and then at the ends.
    Explicit(Vec<i64>),
    /// As much as makes one output of a stride of inputs; whether the larger half is at the end.
    Same(bool),
}

impl Conv {
    fn new(node: &NodeProto) -> Self {
        let a = &node.attribute;
        let list = |name: &str| attribute::get_ints(a, name).map(<[i64]>::to_vec).unwrap_or_default();
        let padding = match attribute::get_string(a, "auto_pad") {
            Some("SAME_UPPER") => Padding::Same(true),
            Some("SAME_LOWER") => Padding::Same(false),
            Some("VALID") => Padding::Explicit(vec![]),
            _ => Padding::Explicit(list("pads")),
        };
        let group = attribute::get_int(a, "group").unwrap_or(1);
        Conv { padding, strides: list("strides"), dilations: list("dilations"), group }
    }

    /// Where the windows lie of an input of these dimensions; `None` where that is not for this room.
    fn place(&self, x: &[usize], w: &[usize]) -> Option<Place> {
        let ([batch, channels, inputs @ ..], [features, depth, window @ ..]) = (x, w) else { return None };
        let (rank, group) = (inputs.len(), usize::try_from(self.group).ok().filter(|&g| g > 0)?);
        let fits = window.len() == rank && channels == &(depth * group) && features % group == 0;
        if rank == 0 || !fits || x.contains(&0) || w.contains(&0) {
            return None;
        }
        let steps = |list: &[i64]| -> Option<Vec<usize>> {
            match list {
                [] => Some(vec![1; rank]),
                list if list.len() == rank => {
                    list.iter().map(|&n| usize::try_from(n).ok().filter(|&n| n > 0)).collect()
                }
                _ => None,
            }
        };
        let (strides, dilations) = (steps(&self.strides)?, steps(&self.dilations)?);
        let (mut before, mut outputs) = (vec![0; rank], vec![0; rank]);
        for d in 0..rank {
            let span = dilations[d].checked_mul(window[d] - 1)?.checked_add(1)?;
            (before[d], outputs[d]) = match &self.padding {
                Padding::Same(upper) => {
                    let count = inputs[d].div_ceil(strides[d]);
                    let total = ((count - 1) * strides[d]).checked_add(span)?.saturating_sub(inputs[d]);
                    (if *upper { total / 2 } else { total - total / 2 }, count)
                }
                Padding::Explicit(pads) => {
                    let pad = |i: usize| usize::try_from(pads.get(i).copied().unwrap_or(0)).ok();
                    let (begin, end) = (pad(d)?, pad(rank + d)?);
                    let padded = inputs[d].checked_add(begin)?.checked_add(end)?;
                    (begin, padded.checked_sub(span)? / strides[d] + 1)
                }
            };
        }
        outputs.iter().try_fold(batch.checked_mul(*features)?, |n, &d| n.checked_mul(d))?;
        Some(Place {
            batch: *batch,
            group,
            depth: *depth,
            features: *features,
            inputs: inputs.to_vec(),
            outputs,
            window: window.to_vec(),
            strides,
            dilations,
            before,
        })
    }
}

/// Windows on an input. All lists have a number for each axis that windows slide along.
#[derive(Clone, Debug)]
struct Place {
    batch: usize,
    group: usize,
    /// The channels of a group.
    depth: usize,
    /// The channels of the output.
    features: usize,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    window: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    before: Vec<usize>,
}

/// Outputs that lie side by side along the last axis: the index of the first, and how many there are.
struct Run {
    first: Vec<usize>,
    count: usize,
}

impl Place {
    /// The elements that a window looks at.
    fn depth(&self) -> usize {
        self.window.iter().fold(self.depth, |n, &d| n.saturating_mul(d))
    }

    fn shape(&self) -> Vec<usize> {
        [self.batch, self.features].into_iter().chain(self.outputs.iter().copied()).collect()
    }

    /// The outputs. Windows are copied, as the columns of a matrix, of no more than about `strip` bytes at a time.
    fn convolve<T: Number>(&self, x: &[T], w: &[T], bias: Option<&[T]>, strip: usize) -> Result<Vec<T>> {
        let (depth, features) = (self.depth(), self.features / self.group);
        let (image, area): (usize, usize) = (self.inputs.iter().product(), self.outputs.iter().product());
        let mut y = filled(self.batch * self.features * area, T::zero())?;
        if let Some(bias) = bias {
            y.chunks_mut(area.max(1)).zip(bias.iter().cycle()).for_each(|(y, &b)| y.fill(b));
        }
        let held = (strip / size_of::<T>()).max(1);
        let rows = depth.min(held.div_ceil(COLUMNS));
        let columns = (held / rows).clamp(1, area.max(1));
        for (n, y) in y.chunks_mut((features * area).max(1)).enumerate() {
            let (sample, group) = (n / self.group, n % self.group);
            let x = &x[(sample * self.group + group) * self.depth * image..][..self.depth * image];
            let w = ArrayView2::from_shape((features, depth), &w[group * features * depth..][..features * depth])?;
            let mut y = ArrayViewMut2::from_shape((features, area), y)?;
            let strips = y.axis_chunks_iter_mut(Axis(1), columns).enumerate();
            let start = || filled(rows * columns, T::zero());
            shared(threads(features * depth * area), strips, start, |windows, (strip, mut y)| {
                let from = strip * columns;
                let to = from + y.ncols();
                let runs = self.runs(from..to);
                for top in (0..depth).step_by(rows) {
                    let bottom = (top + rows).min(depth);
                    let windows = &mut windows[..(bottom - top) * (to - from)];
                    self.copy(x, top..bottom, &runs, windows);
                    let windows = ArrayView2::from_shape((bottom - top, to - from), &*windows)?;
                    let w = w.slice_axis(Axis(1), Slice::from(top..bottom));
                    general_mat_mul(T::one(), &w, &windows, T::one(), &mut y);
                }
                Ok(())
            })?;
        }
        Ok(y)
    }

    /// The outputs of these numbers.
    fn runs(&self, outputs: Range<usize>) -> Vec<Run> {
        let last = self.outputs.last().copied().unwrap_or(1);
        let (mut runs, mut from) = (Vec::new(), outputs.start);
        while from < outputs.end {
            let to = ((from / last + 1) * last).min(outputs.end);
            let (mut first, mut rest) = (vec![0; self.outputs.len()], from);
            for (i, &d) in first.iter_mut().zip(&self.outputs).rev() {
                (*i, rest) = (rest % d, rest / d);
            }
            runs.push(Run { first, count: to - from });
            from = to;
        }
        runs
    }

    /// Copies what these elements of all windows see: a row for each element, a column for each output.
    fn copy<T: Number>(&self, x: &[T], elements: Range<usize>, runs: &[Run], windows: &mut [T]) {
        let (rank, image): (usize, usize) = (self.window.len(), self.inputs.iter().product());
        let columns: usize = runs.iter().map(|r| r.count).sum();
        let mut tap = vec![0; rank];
        for (element, row) in elements.zip(windows.chunks_mut(columns.max(1))) {
            let mut rest = element;
            for (i, &d) in tap.iter_mut().zip(&self.window).rev() {
                (*i, rest) = (rest % d, rest / d);
            }
            let channel = &x[rest * image..][..image];
            let mut row = row;
            for run in runs {
                let (into, others) = row.split_at_mut(run.count);
                row = others;
                self.copy_run(channel, &tap, run, into);
            }
        }
    }

    /// Copies what one element of the windows sees for outputs that lie side by side; beyond the borders zeros.
    fn copy_run<T: Number>(&self, channel: &[T], tap: &[usize], run: &Run, into: &mut [T]) {
        let inside = |d: usize| -> Option<usize> {
            let place = run.first[d] * self.strides[d] + tap[d] * self.dilations[d];
            place.checked_sub(self.before[d]).filter(|&i| i < self.inputs[d])
        };
        let last = self.window.len() - 1;
        let line = (0..last).try_fold(0, |line, d| Some(line * self.inputs[d] + inside(d)?));
        let Some(line) = line else { return into.fill(T::zero()) };
        let size = self.inputs[last];
        let line = &channel[line * size..][..size];
        let (stride, before) = (self.strides[last], self.before[last]);
        let place = run.first[last] * stride + tap[last] * self.dilations[last];
        // Which of the outputs see something: those before begin left of the border, those behind end right of it.
        let begin = before.saturating_sub(place).div_ceil(stride).min(into.len());
        let end = (size + before).saturating_sub(place).div_ceil(stride).clamp(begin, into.len());
        into[..begin].fill(T::zero());
        into[end..].fill(T::zero());
        if begin == end {
            return;
        }
        let first = place + begin * stride - before;
        match stride {
            1 => into[begin..end].copy_from_slice(&line[first..first + end - begin]),
            _ => into[begin..end].iter_mut().zip(line[first..].iter().step_by(stride)).for_each(|(y, &x)| *y = x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::NodeProto;
    use crate::validate::kernels::Array;

    fn array(dims: &[usize]) -> Array {
        let mut next = 0.0;
        Array::from_fn(dims, |_| {
            next = (next + 0.37) % 1.7;
            next - 0.8
        })
        .unwrap()
    }

    /// A convolution by the words of the specification.
    fn plain(place: &Place, x: &Array, w: &Array, bias: &Array) -> Array {
        let mut seen: Vec<usize> = vec![place.depth];
        seen.extend(&place.window);
        Array::from_fn(&place.shape(), |index| {
            let mut sum = bias.values[index[1]];
            each_index(&seen, |tap| {
                let group = index[1] / (place.features / place.group);
                let mut from = vec![index[0] as i64, (group * place.depth + tap[0]) as i64];
                from.extend((0..place.window.len()).map(|d| {
                    (index[2 + d] * place.strides[d] + tap[1 + d] * place.dilations[d]) as i64 - place.before[d] as i64
                }));
                let mut element = vec![index[1]];
                element.extend(tap);
                sum += x.at_or_zero(&from) * w.at(&element);
            });
            sum
        })
        .unwrap()
    }

    #[test]
    fn strips_of_a_convolution_are_the_convolution() {
        for (x, w, group, attributes) in [
            (vec![2, 3, 7], vec![4, 3, 3], 1, vec![("pads", vec![1, 2]), ("strides", vec![2])]),
            (vec![1, 4, 5, 6], vec![6, 2, 3, 2], 2, vec![("pads", vec![1, 0, 2, 3]), ("dilations", vec![1, 2])]),
            (vec![2, 3, 9, 4], vec![3, 1, 2, 4], 3, vec![("pads", vec![3, 5, 0, 4]), ("strides", vec![3, 2])]),
            (vec![1, 2, 4, 3, 5], vec![2, 2, 2, 3, 1], 1, vec![("strides", vec![1, 1, 2])]),
            (vec![1, 1, 1, 40], vec![2, 1, 1, 33], 1, vec![("dilations", vec![1, 1])]),
        ] {
            let mut node = NodeProto::identity("x", "y");
            node.attribute = attributes.iter().map(|(name, list)| attribute::ints(name, list)).collect();
            node.attribute.push(attribute::int("group", group));
            let place = Conv::new(&node).place(&x, &w).unwrap();
            let (x, bias) = (array(&x), array(&w[..1]));
            let w = array(&w);
            let expected = plain(&place, &x, &w, &bias);
            for strip in [1, 100, 1000, STRIP] {
                let y = place.convolve(&x.values, &w.values, Some(&bias.values), strip).unwrap();
                let error = y.iter().zip(&expected.values).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(y.len() == expected.values.len() && error < 1e-12, "{place:?} {strip}: {error}");
            }
        }
    }

    #[test]
    fn borders_are_as_wide_as_the_attribute_says() {
        let place = |auto: &str, x: usize, w: usize, stride: i64| {
            let mut node = NodeProto::identity("x", "y");
            node.attribute = vec![attribute::string("auto_pad", auto), attribute::ints("strides", &[stride])];
            Conv::new(&node).place(&[1, 1, x], &[1, 1, w]).map(|p| (p.before[0], p.outputs[0]))
        };
        assert_eq!(place("SAME_UPPER", 7, 4, 1), Some((1, 7)));
        assert_eq!(place("SAME_LOWER", 7, 4, 1), Some((2, 7)));
        assert_eq!(place("SAME_UPPER", 7, 3, 2), Some((1, 4)));
        assert_eq!(place("VALID", 7, 3, 2), Some((0, 3)));
        assert_eq!(place("VALID", 2, 3, 1), None);
    }

    #[test]
    fn stacks_of_matrices_broadcast() {
        let both = |a: &[usize], b: &[usize]| {
            let (a, b) = (array(a), array(b));
            let of = |x: &Array| tensor(&x.dims, x.values.clone()).unwrap();
            let y = matmul::<f64>(&of(&a), &of(&b)).unwrap().unwrap();
            let expected = crate::validate::kernels::product(&a, &b).unwrap();
            assert_eq!(y.shape(), expected.dims);
            let close = elements::<f64>(&y).unwrap().iter().zip(&expected.values).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(close, "{:?} {:?}", a.dims, b.dims);
        };
        for (a, b) in [
            (&[2, 3][..], &[3, 4][..]),
            (&[5, 1, 2, 3], &[4, 3, 2]),
            (&[2, 3], &[5, 3, 2]),
            (&[5, 2, 3], &[1, 3, 2]),
            (&[3], &[2, 3, 2]),
            (&[2, 2, 3], &[3]),
            (&[1, 2, 3], &[5, 3, 1]),
        ] {
            both(a, b);
        }
    }

    #[test]
    fn a_gemm_transposes_and_adds() {
        let (a, b, c) = (array(&[3, 2]), array(&[4, 3]), array(&[4]));
        let of = |x: &Array| tensor(&x.dims, x.values.clone()).unwrap();
        let y = gemm::<f64>([&of(&a), &of(&b)], Some(&of(&c)), 0.5, 2.0, [true, true]).unwrap().unwrap();
        let ab = crate::validate::kernels::product(&a.transposed(&[1, 0]).unwrap(), &b.transposed(&[1, 0]).unwrap());
        let expected =
            ab.unwrap().values.iter().enumerate().map(|(i, v)| 0.5 * v + 2.0 * c.values[i % 4]).collect::<Vec<_>>();
        let close = elements::<f64>(&y).unwrap().iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close && y.shape() == [2, 4]);
    }
}
