//! Gradients of each sample out of one backward pass over all samples, where these stay apart.
//!
//! Up to some tensors, the *ends*, each place along the samples' axis follows from the same place of the inputs alone:
//! the rows of the operators say so ([`Apart`]). What comes behind the ends may mix samples as it likes (a mean over
//! the batch), so it is run on one sample after the other, with its gradient; from there an ordinary backward pass goes
//! on with all samples at once. What a weight gets from one sample is then a function of that sample's part of what its
//! layer takes, x, and of the gradient dz of what it gives: `xᵀ dz` of a product. Its norm does not need it: of one row
//! a sample it is `|x| |dz|`, of several the Gram matrices of both know it (Goodfellow 2015, "Efficient per-example
//! gradient computations").

use super::workspace::Workspace;
use crate::expr::Expr;
use crate::graph::{Dim, Graph, IdMap, IdSet, Node, NodeId, ValueId};
use crate::rules;
use crate::rules::properties::{Apart, Moves, Random, Rows};
use anyhow::{Context, Result};
use std::cell::RefCell;

/// What is kept of the gradients of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Kept {
    /// All: of each x a tensor `<name>/<x>` of shape `[N] + x.shape`.
    #[default]
    Each,
    /// The Euclidean norm of all gradients of each sample: `<name>/norms` of shape `[N]`.
    Norms,
    /// The norms, and the sums over the samples of gradients that are scaled down to at most this norm, of x's shape:
    /// what DP-SGD adds its noise to (Abadi et al. 2016, "Deep learning with differential privacy").
    Clipped(f64),
}

/// What is kept of the gradients, one for each x; and the norms.
type Found<'g> = (Vec<Option<Expr<'g>>>, Option<Expr<'g>>);

/// A request of which every x has its gradients of samples out of one pass.
pub(super) struct Together<'g> {
    workspace: &'g Workspace,
    /// The one use of each x; `None` for one that no y depends on.
    uses: Vec<Option<Use<'g>>>,
    /// The ends, each with the axis along which samples lie.
    ends: Vec<(Expr<'g>, usize)>,
    /// Whether anything comes behind the ends.
    mixes: bool,
}

/// The use of an x by a node that keeps samples apart.
struct Use<'g> {
    node: NodeId,
    x: Expr<'g>,
    z: Expr<'g>,
    /// The axis of z along which samples lie.
    axis: usize,
    how: How<'g>,
}

/// What a node does with an x.
enum How<'g> {
    /// It multiplies rows by it, those of that tensor, whose samples lie along the same axis as those of z.
    Multiplies(Expr<'g>, Rows),
    /// It adds it, times a number.
    Adds(f64),
    /// It broadcasts it with something, element by element.
    Broadcasts,
}

/// Where samples lie in the tensors that depend on them.
struct Places<'a> {
    graph: &'a Graph,
    /// How many samples there are.
    count: Dim,
    /// The axis of each such tensor; `None` where samples may have mixed.
    axes: IdMap<ValueId, Option<usize>>,
}

impl Places<'_> {
    fn sizes(&self, v: ValueId) -> Option<&[Dim]> {
        self.graph.fact(v).shape.as_deref()
    }

    /// The axis of a node's output along which each place follows from the same place of its inputs.
    fn of_output(&self, node: &Node) -> Option<usize> {
        let rule = rules::row(self.graph, node)?;
        let plain = node.bodies.is_empty() && !node.stop && matches!(rule.random, Random::Never);
        let [Some(z)] = node.outputs[..] else { return None };
        let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        if !plain || inputs.iter().any(|v| self.axes.get(v) == Some(&None)) {
            return None;
        }
        let sizes = self.sizes(z)?;
        let first = *inputs.first()?;
        let axis = match rule.apart {
            Apart::Rows(rows) => {
                rows(node)?;
                let axis = (*self.axes.get(&first)?)?;
                let matrix = inputs.get(1).is_some_and(|w| self.sizes(*w).is_some_and(|sizes| sizes.len() == 2));
                let fits = matrix && self.sizes(first)?.len() == sizes.len() && axis + 1 < sizes.len();
                (fits && inputs.iter().skip(1).all(|v| !self.axes.contains_key(v))).then_some(axis)?
            }
            Apart::BySlots if rule.is_elementwise() => {
                let mut axes = inputs.iter().filter_map(|&v| {
                    let axis = (*self.axes.get(&v)?)?;
                    Some(sizes.len().checked_sub(self.sizes(v)?.len())? + axis)
                });
                let axis = axes.next()?;
                // The attributes of old versions say along which axes to broadcast.
                let numpy = !node.attributes.iter().any(|a| matches!(a.name(), "axis" | "broadcast"));
                (numpy && axes.all(|a| a == axis)).then_some(axis)?
            }
            Apart::BySlots if matches!(rule.moves, Moves::InOrder) => {
                let alone = inputs.iter().skip(1).all(|v| !self.axes.contains_key(v));
                // A shape with a number of samples in it does not hold for one of them.
                let any = inputs.len() == 1 || self.count.known().is_none();
                let same = self.sizes(first)?.first() == Some(&self.count);
                return (alone
                    && any
                    && same
                    && self.axes.get(&first) == Some(&Some(0))
                    && sizes.first() == Some(&self.count))
                .then_some(0);
            }
            _ => return None,
        };
        let fits = |v: &ValueId| {
            let own = self.sizes(*v)?;
            let size = match (axis + own.len()).checked_sub(sizes.len()) {
                None => return Some(!self.axes.contains_key(v)),
                Some(place) => own.get(place)?,
            };
            Some(if self.axes.contains_key(v) { *size == self.count } else { size.known() == Some(1) })
        };
        let rows = matches!(rule.apart, Apart::Rows(_));
        let broadcast = inputs.iter().enumerate().filter(|(i, _)| !(rows && *i == 1));
        let all = broadcast.map(|(_, v)| fits(v)).all(|fits| fits == Some(true));
        (all && sizes.get(axis) == Some(&self.count)).then_some(axis)
    }
}

impl<'g> Together<'g> {
    /// The request, if all of its xs are used once and by nodes that keep samples apart, up to which they have not
    /// mixed, and if what is to be kept takes no more memory in this way than from one sample after the other.
    ///
    /// # Errors
    /// A sample has no size.
    pub fn find(w: &'g Workspace, samples: &[(Expr<'g>, usize)], kept: Kept) -> Result<Option<Self>> {
        let (ys, xs) = (w.ys(), w.xs());
        let Some(&(first, axis)) = samples.first() else { return Ok(None) };
        let count = first.sizes()?[axis];
        for (e, axis) in samples {
            if e.sizes()?[*axis] != count {
                return Ok(None);
            }
        }
        if !w.takes_rows_alone() || count.known() == Some(1) || xs.iter().any(|x| ys.contains(x)) {
            return Ok(None);
        }
        let b = w.builder();
        let from: Vec<Expr<'g>> = samples.iter().map(|(e, _)| *e).chain(xs.iter().copied()).collect();
        let nodes = w.depending(0, &from, &ys);
        let graph = b.graph();
        let axes = samples.iter().map(|(e, axis)| (e.id(), Some(*axis))).collect();
        let mut places = Places { graph: &graph, count, axes };
        let mut ends: Vec<(Expr<'g>, usize)> = Vec::new();
        let mut ended: IdSet<ValueId> = IdSet::default();
        let mut mixes = false;
        let mut users: IdMap<ValueId, Vec<(NodeId, Option<usize>)>> = xs.iter().map(|x| (x.id(), vec![])).collect();
        for &id in &nodes {
            let node = graph.node(id);
            let captured = graph.captures(id);
            let inputs = node.inputs.iter().enumerate().filter_map(|(i, v)| Some(((*v)?, Some(i))));
            let takes: Vec<_> = inputs.chain(captured.into_iter().map(|v| (v, None))).collect();
            for (v, i) in &takes {
                if let Some(users) = users.get_mut(v) {
                    users.push((id, *i));
                }
            }
            if !takes.iter().any(|(v, _)| places.axes.contains_key(v)) {
                continue;
            }
            let axis = places.of_output(node);
            places.axes.extend(node.outputs.iter().flatten().map(|&o| (o, axis)));
            if axis.is_none() {
                mixes = true;
                let apart = takes.iter().filter_map(|(v, _)| Some((*v, (*places.axes.get(v)?)?)));
                ends.extend(apart.filter(|(v, _)| ended.insert(*v)).map(|(v, axis)| (b.expr(v), axis)));
            }
        }
        let last = ys.iter().filter_map(|y| Some((*y, (*places.axes.get(&y.id())?)?)));
        ends.extend(last.filter(|(y, _)| ended.insert(y.id())));
        let mut uses = Vec::new();
        for x in xs {
            let one = match users.get(&x.id()).map(Vec::as_slice) {
                Some([]) => None,
                Some(&[(id, Some(i))]) if !places.axes.contains_key(&x.id()) => {
                    let Some(one) = one_use(&places, (x, id, i), kept, |v| b.expr(v)) else { return Ok(None) };
                    Some(one)
                }
                _ => return Ok(None),
            };
            uses.push(one);
        }
        Ok((!ends.is_empty()).then_some(Together { workspace: w, uses, ends, mixes }))
    }

    /// What is kept of the gradients of so many samples.
    ///
    /// # Errors
    /// An operator on the way has no gradient, the ys depend on none of the xs where a norm is asked for.
    pub fn run(&self, count: Expr<'g>, kept: Kept) -> Result<Found<'g>> {
        let w = self.workspace;
        let used: Vec<&Use<'g>> = self.uses.iter().flatten().collect();
        let zs: Vec<Expr<'g>> = used.iter().map(|u| u.z).collect();
        let mut dzs = w.gradients(&self.seeds(count)?, &zs)?.into_iter();
        let pairs: Vec<Option<(&Use<'g>, Expr<'g>)>> =
            self.uses.iter().map(|u| Some((u.as_ref()?, dzs.next().flatten()?))).collect();
        if kept == Kept::Each {
            let each = pairs.iter().map(|pair| pair.map(|(u, dz)| u.each(w, dz)).transpose());
            return Ok((each.collect::<Result<_>>()?, None));
        }
        let squares: Vec<Expr<'g>> = pairs.iter().flatten().map(|(u, dz)| u.square(w, *dz)).collect::<Result<_>>()?;
        let norms = norm(squares)?;
        let Kept::Clipped(bound) = kept else { return Ok((vec![None; pairs.len()], Some(norms))) };
        let factors = clipping(norms, bound);
        let sum = |(u, dz): &(&Use<'g>, Expr<'g>)| {
            let behind: Vec<usize> = (1..u.z.rank()? - u.axis).collect();
            let scaled = *dz * factors.unsqueeze(&behind).cast_like(*dz);
            Ok(w.through(&[u.node], &[(u.z, scaled)], &[u.x])?.first().copied().flatten())
        };
        let sums = pairs.iter().map(|pair| pair.as_ref().map_or(Ok(None), sum));
        Ok((sums.collect::<Result<_>>()?, Some(norms)))
    }

    /// The gradients of the ends, each sample's being that of the ys of that sample alone.
    fn seeds(&self, count: Expr<'g>) -> Result<Vec<(Expr<'g>, Expr<'g>)>> {
        let w = self.workspace;
        if !self.mixes {
            return Ok(self.ends.iter().map(|(y, _)| (*y, y.ones_like())).collect());
        }
        let connected = RefCell::new(vec![]);
        let b = w.builder();
        let step = |_: &[Expr<'g>], now: &[Expr<'g>]| {
            let place = now[0].reshape_to(&[1]);
            let from: Vec<_> = self.ends.iter().map(|&(e, axis)| (e, e.gather(place, axis))).collect();
            let real = from.iter().zip(&self.ends).filter(|((e, _), _)| e.fact().may_carry_gradient());
            let (slices, ends): (Vec<_>, Vec<_>) = real.map(|((_, slice), end)| (*slice, *end)).unzip();
            let gradients = w.gradients_of_sum_again(&from, &w.ys(), &slices)?;
            let found = gradients.into_iter().zip(ends).filter_map(|(g, end)| Some((g?, end)));
            let (gradients, ends): (Vec<_>, Vec<_>) = found.unzip();
            *connected.borrow_mut() = ends;
            anyhow::Ok((vec![], gradients))
        };
        let (_, stacks) = b.run_along(&[], &[b.range(count)], false, step)?;
        let lay = |(stack, &(end, axis)): (Expr<'g>, &(Expr<'g>, usize))| {
            (end, stack.squeeze(&[axis + 1]).move_axis(0, axis).reshape_like(end))
        };
        Ok(stacks.into_iter().zip(connected.borrow().iter()).map(lay).collect())
    }
}

/// The use of an x as an input of a node, if its gradients of samples, or what is kept of them, are worth to be
/// computed so.
fn one_use<'g>(
    places: &Places<'_>,
    (x, id, input): (Expr<'g>, NodeId, usize),
    kept: Kept,
    expr: impl Fn(ValueId) -> Expr<'g>,
) -> Option<Use<'g>> {
    let node = places.graph.node(id);
    let z = (*node.outputs.first()?)?;
    let axis = (*places.axes.get(&z)?)?;
    let rule = rules::row(places.graph, node)?;
    let how = match (rule.apart, input) {
        (Apart::Rows(rows), 1) => {
            let rows = rows(node)?;
            let of = (*node.inputs.first()?)?;
            let sizes = places.sizes(of)?;
            let few = sizes.len() == 2 || kept == Kept::Each || {
                let product = |sizes: &[Dim]| sizes.iter().try_fold(1i64, |n, d| n.checked_mul(d.known()?));
                let between: Vec<Dim> =
                    (0..sizes.len() - 1).filter(|a| *a != axis).filter_map(|a| sizes.get(a).copied()).collect();
                let rows = product(&between)?;
                rows.checked_mul(rows)? <= product(places.sizes(x.id())?)?
            };
            few.then(|| How::Multiplies(expr(of), rows))?
        }
        (Apart::Rows(rows), 2) => How::Adds(rows(node)?.beta),
        _ if rule.is_elementwise() => How::Broadcasts,
        _ => return None,
    };
    Some(Use { node: id, x, z: expr(z), axis, how })
}

impl<'g> Use<'g> {
    /// What x gets from each sample, `[N] + x.shape`, from the gradient of z.
    fn each(&self, w: &'g Workspace, dz: Expr<'g>) -> Result<Expr<'g>> {
        match &self.how {
            How::Multiplies(rows, how) => {
                let (left, right) = if how.transposed { (dz, *rows) } else { (*rows, dz) };
                if self.z.rank()? == 2 {
                    // With one row a sample it is a product of each element with each, which engines write at the speed
                    // of memory.
                    return Ok((left * how.alpha).unsqueeze(&[2]) * right.unsqueeze(&[1]));
                }
                Ok(self.matrices(left)?.gemm(true, self.matrices(right)?, false, how.alpha))
            }
            How::Adds(factor) => {
                let own = self.one_for_each_sample()?;
                self.samples_first((dz * *factor).unbroadcast(own))
            }
            How::Broadcasts => {
                let own = self.one_for_each_sample()?;
                let z = w.copy(&[self.node], &[(self.x, own)], &[self.z]);
                let copied = w.builder().graph().producer(z[0].id()).map(|(id, _)| id);
                let nodes: Vec<NodeId> = copied.into_iter().collect();
                let found = w.through(&nodes, &[(z[0], dz)], &[own])?.first().copied().flatten();
                self.samples_first(found.unwrap_or_else(|| own.zeros_like()))
            }
        }
    }

    /// The sum of the squares of what x gets from each sample, `[N]`.
    fn square(&self, w: &'g Workspace, dz: Expr<'g>) -> Result<Expr<'g>> {
        let How::Multiplies(rows, how) = &self.how else {
            let each = self.each(w, dz)?.widened().square();
            return Ok(each.sum_out(&(1..each.rank()?).collect::<Vec<_>>()));
        };
        let (rows, dz) = (rows.widened(), dz.widened());
        let square = match rows.rank()? {
            2 => rows.square().sum_out(&[1]) * dz.square().sum_out(&[1]),
            _ => {
                let gram = |e: Expr<'g>| Ok(self.matrices(e)?.gemm(false, self.matrices(e)?, true, 1.0));
                let both: Result<Expr<'g>> = gram(rows).and_then(|rows| Ok(rows * gram(dz)?));
                both?.sum_out(&[1, 2])
            }
        };
        Ok(square * how.alpha.powi(2))
    }

    /// A tensor whose samples lie as those of z do, as a matrix of rows for each sample.
    fn matrices(&self, e: Expr<'g>) -> Result<Expr<'g>> {
        let (e, rank) = (e.move_axis(self.axis, 0), e.rank()?);
        Ok(match rank {
            2 => e.unsqueeze(&[1]),
            3 => e,
            _ => e.reshape(Expr::concat(&[e.dims([0]), e.builder().ints(&[-1]), e.dims([rank - 1])], 0)),
        })
    }

    /// One x for each sample, along the axis of z where x has one place or none.
    fn one_for_each_sample(&self) -> Result<Expr<'g>> {
        let new: Vec<usize> = (0..self.z.rank()?.saturating_sub(self.x.rank()?)).collect();
        let x = if new.is_empty() { self.x } else { self.x.unsqueeze(&new) };
        Ok(x.expand(x.shape_with(self.axis, self.z.dims([self.axis]))))
    }

    /// A tensor like that as one of shape `[N] + x.shape`.
    fn samples_first(&self, e: Expr<'g>) -> Result<Expr<'g>> {
        Ok(e.move_axis(self.axis, 0).reshape(Expr::concat(&[self.z.dims([self.axis]), self.x.shape()], 0)))
    }
}

/// The norm of gradients, from the sums of the squares of each.
pub(super) fn norm<'g>(squares: impl IntoIterator<Item = Expr<'g>>) -> Result<Expr<'g>> {
    let sum = squares.into_iter().reduce(|sum, square| sum + square.cast_like(sum));
    Ok(sum.context("the ys depend on none of the xs")?.sqrt())
}

/// What gradients are multiplied by to have at most the norm `bound`.
pub(super) fn clipping<'g>(norm: Expr<'g>, bound: f64) -> Expr<'g> {
    // The small number keeps a gradient of zero from being divided by zero.
    (norm.like(bound) / (norm + 1e-6)).min(norm.like(1.0))
}
