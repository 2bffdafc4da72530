//! Whole Jacobians and Hessians, of tensors whose sizes may be known only when the model runs.
//!
//! A derivative is a linear function; its matrix is what it makes of one unit vector after the other. A Scan goes
//! through these, and its body holds the linear function alone: what it reads of the model is computed once. Few unit
//! vectors are written out one by one.

use super::claim::{Claim, Kind};
use super::products::of_x;
use super::workspace::{Linear, Workspace};
use super::{Derived, Entry, batch_axis};
use crate::backward::Gradients;
use crate::expr::Expr;
use crate::graph::{Dim, Fact, Shape, ValueId};
use crate::model::Model;
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};

/// By which passes a matrix is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// By the fewer passes of the two, as far as sizes are known.
    #[default]
    Auto,
    /// A pass for each element of x: `Ju`.
    Forward,
    /// A pass for each element of y: `vJ`.
    Reverse,
}

/// A request for Jacobians: of each y with respect to each x a tensor `<name>/<y>/<x>` of shape `y.shape + x.shape`, of
/// the samples of a batch each its own: `y.shape + x.shape` without the batch axis of x.
#[derive(Clone, Debug)]
pub struct Jacobian {
    call: Gradients,
    mode: Mode,
    batch: Option<i64>,
}

/// A request for the Hessian of the sum of all elements of the ys: for each pair of xs a tensor `<name>/<x>/<x>` of
/// shape `x.shape + x.shape`, of the samples of a batch each its own.
#[derive(Clone, Debug)]
pub struct Hessian {
    call: Gradients,
    mode: Mode,
    batch: Option<i64>,
    diagonal: bool,
}

impl From<Gradients> for Jacobian {
    /// The derivatives of these ys with respect to these xs, with the stops and options that are given there.
    fn from(call: Gradients) -> Self {
        Jacobian { call: call.named_by_default("jacobian"), mode: Mode::Auto, batch: None }
    }
}

impl From<Gradients> for Hessian {
    /// The derivatives of the sum of these ys with respect to these xs, with the stops and options that are given
    /// there.
    fn from(call: Gradients) -> Self {
        Hessian { call: call.named_by_default("hessian"), mode: Mode::Auto, batch: None, diagonal: false }
    }
}

builds!(
    Jacobian, "the Jacobians",
    "Names of no tensor, ys or xs that are not real or of unknown rank, xs that depend on each other, operators"
    "without a gradient between them, tensors without a batch axis, a result that no memory holds."
);

impl Jacobian {
    /// By which passes it is computed.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The axis of ys and xs along which samples lie that do not depend on each other: then there are as many passes as
    /// one sample of y has elements, whatever the size of the batch. Where samples do mix, the result is wrong, and
    /// fails its check.
    pub fn batch(mut self, axis: i64) -> Self {
        self.batch = Some(axis);
        self
    }

    fn derived(&self, model: Model) -> Result<Derived> {
        let w = Workspace::open(&self.call, model)?;
        let (ys, xs) = w.names();
        let mut outputs = Vec::new();
        let entries = {
            let ys: Vec<_> = ys.into_iter().zip(w.ys()).collect();
            let xs: Vec<_> = xs.into_iter().zip(w.xs()).collect();
            let rows: Vec<_> = ys.iter().map(|(name, y)| (name.clone(), Some(*y))).collect();
            let entry =
                |y: &str, x: &str, name| Entry { y: Some(y.to_owned()), x: Some(x.to_owned()), second: None, name };
            matrices(&w, &mut outputs, &rows, &ys, &xs, self.mode, self.batch, entry)?
        };
        w.finish(outputs, entries, vec![], Claim { batch: self.batch, ..Claim::of(Kind::Jacobian) })
    }
}

builds!(Hessian, "the Hessians", "As [`Jacobian::build`].");

impl Hessian {
    /// By which passes it is computed.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The axis of ys and xs along which samples lie that do not depend on each other; see [`Jacobian::batch`].
    pub fn batch(mut self, axis: i64) -> Self {
        self.batch = Some(axis);
        self
    }

    /// Only the second derivatives by the same element twice: for each x a tensor `<name>/<x>` of its shape. With a
    /// batch it takes as many passes as one sample of x has elements, and the sum over a sample is its Laplacian.
    pub fn diagonal(mut self, diagonal: bool) -> Self {
        self.diagonal = diagonal;
        self
    }

    fn derived(&self, model: Model) -> Result<Derived> {
        let w = Workspace::open(&self.call, model)?;
        let (_, names) = w.names();
        let mut outputs = Vec::new();
        let entries = {
            let gradients = w.gradients_of_sum()?;
            let xs: Vec<_> = names.iter().cloned().zip(w.xs()).collect();
            if self.diagonal {
                let each = gradients.iter().zip(&xs).map(|(g, (name, x))| {
                    let diagonal = g.map(|g| diagonal(&w, g, *x, self.mode, self.batch)).transpose();
                    let diagonal = diagonal.with_context(|| format!("the Hessian's diagonal of '{name}'"))?.flatten();
                    let diagonal = diagonal.or_else(|| w.fills_unconnected().then(|| x.zeros_like()));
                    let output = diagonal.map(|d| w.output(&mut outputs, d, name, x.fact()));
                    Ok(of_x(name.clone(), output))
                });
                each.collect::<Result<Vec<_>>>()?
            } else {
                let rows: Vec<_> = names.iter().cloned().zip(gradients).collect();
                let entry = |x: &str, second: &str, name| Entry {
                    y: None,
                    x: Some(x.to_owned()),
                    second: Some(second.to_owned()),
                    name,
                };
                matrices(&w, &mut outputs, &rows, &xs, &xs, self.mode, self.batch, entry)?
            }
        };
        let kind = if self.diagonal { Kind::HessianDiagonal } else { Kind::Hessian };
        w.finish(outputs, entries, vec![], Claim { batch: self.batch, ..Claim::of(kind) })
    }
}

/// Up to so many passes are written out one by one, if that makes no more nodes than the limit that follows.
const FEW: i64 = 16;
const FEW_NODES: i64 = 2048;

/// No result is larger, as far as sizes are known.
const MAX_BYTES: f64 = (1u64 << 33) as f64;

/// The unit vectors of a tensor's shape; with a batch axis those of one sample, the same for each of them.
pub(super) struct Units<'g> {
    like: Expr<'g>,
    /// How many there are, where that is known.
    known: Option<i64>,
    /// The numbers of all places.
    places: Expr<'g>,
    /// The shape, with size 1 along the batch axis.
    shape: Expr<'g>,
}

impl<'g> Units<'g> {
    pub fn new(like: Expr<'g>, batch: Option<i64>) -> Result<Self> {
        let b = like.builder();
        let (shape, count) = match batch {
            None => (like.shape(), like.size()),
            Some(axis) => {
                let axis = batch_axis(like, axis)?;
                let rest = (0..like.rank()?).filter(|&a| a != axis);
                let count = like.dims(rest).product_of_list().reshape_to(&[]);
                (like.shape_with(axis, b.ints(&[1])), count)
            }
        };
        let known = count.ints().and_then(|n| n.first().copied());
        Ok(Units { like, known, places: b.range(count), shape })
    }

    /// The unit vector of a place.
    pub fn at(&self, place: Expr<'g>) -> Expr<'g> {
        self.places.equal(place).cast_like(self.like).reshape(self.shape).expand_like(self.like)
    }

    /// The last place.
    pub fn last(&self) -> Expr<'g> {
        self.places.shape().reshape_to(&[]) - self.like.builder().int(1)
    }

    /// How many, where a function of so many nodes is better written out for each.
    fn few(&self, nodes: usize) -> Option<i64> {
        self.known.filter(|&n| n > 0 && n <= FEW && n.saturating_mul(nodes as i64) <= FEW_NODES)
    }
}

/// What a linear function makes of each unit vector, stacked along a new first axis.
fn stacked<'g>(linear: &Linear<'g>, units: &Units<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let b = units.like.builder();
    let mut stacks = match units.few(linear.node_count()) {
        Some(few) => {
            let rows: Vec<Vec<Expr<'g>>> = (0..few)
                .map(|i| linear.at(&[units.at(b.int(i))]).into_iter().flatten().map(|e| e.unsqueeze(&[0])).collect())
                .collect();
            let outputs = rows.first().map_or(0, Vec::len);
            (0..outputs).map(|k| Expr::concat(&rows.iter().map(|r| r[k]).collect::<Vec<_>>(), 0)).collect()
        }
        None => {
            let step = |_: &[Expr<'g>], place: &[Expr<'g>]| {
                let unit = units.at(*place.first().context("a Scan without a slice")?);
                Ok((vec![], linear.at(&[unit]).into_iter().flatten().collect()))
            };
            b.run_along(&[], &[units.places], false, step)?.1
        }
    }
    .into_iter();
    Ok(linear.outputs().iter().map(|e| e.and_then(|_| stacks.next())).collect())
}

/// The batch axis of each of two tensors, which have to have the same number of samples.
fn common_axis(y: Expr<'_>, x: Expr<'_>, batch: i64) -> Result<[usize; 2]> {
    let [a, b] = [batch_axis(y, batch)?, batch_axis(x, batch)?];
    let (dy, dx) = (y.sizes()?[a], x.sizes()?[b]);
    let same = dy.known().zip(dx.known()).is_none_or(|(m, n)| m == n);
    ensure!(
        same,
        "there are {} samples along axis {batch} of the one and {} along that of the other; leave --batch out",
        dy.known().unwrap_or_default(),
        dx.known().unwrap_or_default()
    );
    Ok([a, b])
}

/// The sizes but for the batch axis.
fn without<T: Copy>(sizes: &[T], axis: Option<usize>) -> Vec<T> {
    sizes.iter().enumerate().filter(|(a, _)| Some(*a) != axis).map(|(_, d)| *d).collect()
}

/// The number of elements in a shape, sizes that are not known being guessed.
fn guess(sizes: &[Dim], unknown: f64) -> f64 {
    sizes.iter().map(|d| d.known().map_or(unknown, |n| n as f64)).product()
}

/// The shape of a matrix.
fn matrix_shape(y: Expr<'_>, x: Expr<'_>, batch: Option<i64>) -> Result<Shape> {
    let axis = batch.map(|axis| batch_axis(x, axis)).transpose()?;
    Ok([y.sizes()?, without(&x.sizes()?, axis)].concat().into())
}

/// Fails where a result is larger than any machine's memory.
fn ensure_fits(y: Expr<'_>, x: Expr<'_>, batch: Option<i64>) -> Result<()> {
    let bits = x.fact().element.and_then(ElementType::bits).unwrap_or(32);
    let shape = matrix_shape(y, x, batch)?;
    let bytes = guess(&shape, 1.0) * bits as f64 / 8.0;
    if bytes > MAX_BYTES {
        let b = x.builder();
        bail!(
            "a result of shape {} takes {:.1} GB; ask for less: fewer ys and xs, each sample alone (--batch AXIS), a \
             Hessian's --diagonal, or products with vectors (jvp, vjp, hvp)",
            b.dims(|dims| dims.display(&shape)),
            bytes / 1e9
        );
    }
    Ok(())
}

/// Makes outputs of the Jacobian of each row with respect to each column. `like` are the tensors that rows have the
/// shape of.
#[expect(clippy::too_many_arguments, reason = "two requests have all of it in common")]
fn matrices<'g>(
    w: &'g Workspace,
    outputs: &mut Vec<(ValueId, String)>,
    rows: &[(String, Option<Expr<'g>>)],
    like: &[(String, Expr<'g>)],
    columns: &[(String, Expr<'g>)],
    mode: Mode,
    batch: Option<i64>,
    entry: impl Fn(&str, &str, Option<String>) -> Entry,
) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let xs: Vec<Expr<'g>> = columns.iter().map(|(_, x)| *x).collect();
    for ((row, y), (_, like)) in rows.iter().zip(like) {
        for (column, x) in columns {
            let fits = || {
                batch.map(|batch| common_axis(*like, *x, batch)).transpose()?;
                ensure_fits(*like, *x, batch)
            };
            fits().with_context(|| format!("'{row}' and '{column}'"))?;
        }
        let found = match y {
            Some(y) => jacobians(w, *y, *like, &xs, mode, batch).with_context(|| format!("the Jacobian of '{row}'"))?,
            None => vec![None; xs.len()],
        };
        for ((column, x), matrix) in columns.iter().zip(found) {
            let matrix = match matrix {
                None if w.fills_unconnected() => {
                    Some(w.builder().full(laid_shape(*like, *x, batch)?, 0.0, x.element()?))
                }
                matrix => matrix,
            };
            let fact = Fact::tensor(x.fact().element, Some(matrix_shape(*like, *x, batch)?));
            let name = matrix.map(|m| w.output(outputs, m, &format!("{row}/{column}"), fact));
            entries.push(entry(row, column, name));
        }
    }
    Ok(entries)
}

/// The shape of a matrix as the run computes it.
fn laid_shape<'g>(y: Expr<'g>, x: Expr<'g>, batch: Option<i64>) -> Result<Expr<'g>> {
    let axis = batch.map(|axis| batch_axis(x, axis)).transpose()?;
    let columns: Vec<usize> = (0..x.rank()?).collect();
    Ok(Expr::concat(&[y.shape(), x.dims(without(&columns, axis))], 0))
}

/// The Jacobian of y, which has the shape of `like`, with respect to each x.
fn jacobians<'g>(
    w: &'g Workspace,
    y: Expr<'g>,
    like: Expr<'g>,
    xs: &[Expr<'g>],
    mode: Mode,
    batch: Option<i64>,
) -> Result<Vec<Option<Expr<'g>>>> {
    let count = |e: Expr<'g>| {
        let axis = batch.map(|axis| batch_axis(e, axis)).transpose()?;
        // What two sizes are that nobody knows does not say which is the larger.
        anyhow::Ok(guess(&without(&e.sizes()?, axis), 64.0))
    };
    let forward = match mode {
        Mode::Forward => true,
        Mode::Reverse => false,
        Mode::Auto => xs.iter().map(|x| count(*x)).sum::<Result<f64>>()? < count(like)?,
    };
    if !forward {
        let linear = w.reverse(&[y], xs)?;
        let stacks = stacked(&linear, &Units::new(like, batch)?)?;
        let lay = |(stack, x): (Option<Expr<'g>>, &Expr<'g>)| stack.map(|s| from_rows(s, like, *x, batch)).transpose();
        return stacks.into_iter().zip(xs).map(lay).collect();
    }
    let each = xs.iter().map(|x| {
        let linear = w.forward(&[y], &[*x])?;
        let stacks = stacked(&linear, &Units::new(*x, batch)?)?;
        let stack = stacks.first().copied().flatten();
        // The places of x come behind those of y.
        stack.map(|s| Ok(s.move_axis(0, like.rank()?).reshape(laid_shape(like, *x, batch)?))).transpose()
    });
    each.collect()
}

/// Rows of a matrix, each of x's shape, stacked along a first axis that runs over the places of y, as a tensor of shape
/// `y.shape + x.shape`; with a batch, which each row holds all samples of, as one of `y.shape +` the shape of a sample
/// of x.
fn from_rows<'g>(rows: Expr<'g>, y: Expr<'g>, x: Expr<'g>, batch: Option<i64>) -> Result<Expr<'g>> {
    let shape = laid_shape(y, x, batch)?;
    let Some(batch) = batch else { return Ok(rows.reshape(shape)) };
    let [of_y, of_x] = common_axis(y, x, batch)?;
    let samples = rows.move_axis(1 + of_x, 0);
    if of_y == 0 {
        return Ok(samples.reshape(shape));
    }
    let places: Vec<usize> = (0..y.rank()?).filter(|&a| a != of_y).collect();
    let columns: Vec<usize> = (0..x.rank()?).filter(|&a| a != of_x).collect();
    let first = Expr::concat(&[y.dims([of_y]), y.dims(places), x.dims(columns)], 0);
    Ok(samples.reshape(first).move_axis(0, of_y))
}

/// The diagonal of the Jacobian of `g`, which has the shape of x, with respect to x.
fn diagonal<'g>(
    w: &'g Workspace,
    g: Expr<'g>,
    x: Expr<'g>,
    mode: Mode,
    batch: Option<i64>,
) -> Result<Option<Expr<'g>>> {
    let linear = match mode {
        Mode::Forward => w.forward(&[g], &[x])?,
        Mode::Auto | Mode::Reverse => w.reverse(&[g], &[x])?,
    };
    let units = Units::new(x, batch)?;
    let term = |place: Expr<'g>| {
        let unit = units.at(place);
        linear.at(&[unit]).first().copied().flatten().map(|column| unit * column)
    };
    let b = w.builder();
    if linear.outputs().first().copied().flatten().is_none() {
        return Ok(None);
    }
    if let Some(few) = units.few(linear.node_count()) {
        return Ok((0..few).filter_map(|i| term(b.int(i))).reduce(|sum, next| sum + next));
    }
    let step = |sum: &[Expr<'g>], place: &[Expr<'g>]| {
        let (sum, place) = sum.first().copied().zip(place.first().copied()).context("a Scan without a state")?;
        Ok((vec![term(place).map_or(sum, |term| sum + term)], vec![]))
    };
    let (last, _) = b.run_along(&[x.zeros_like()], &[units.places], false, step)?;
    Ok(last.first().copied())
}
