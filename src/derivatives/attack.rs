//! Adversarial examples: inputs close to x for which a classifier's loss is large.

use super::claim::{Claim, Kind};
use super::products::{entries, of_x};
use super::workspace::Workspace;
use super::{Derived, Vector};
use crate::backward::Gradients;
use crate::expr::Expr;
use crate::graph::{Fact, Shape};
use crate::model::Model;
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};

/// How an input is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Steps {
    /// `x + ε sign(∂L/∂x)`, limited to the range (Goodfellow, Shlens, Szegedy 2014, "Explaining and harnessing
    /// adversarial examples").
    Fgsm,
    /// Several steps `x + α sign(∂L/∂x)`, each brought back to at most ε from the first x in every place, and limited
    /// to the range (Madry, Makelov, Schmidt, Tsipras, Vladu 2017, "Towards deep learning models resistant to
    /// adversarial attacks").
    Pgd {
        /// How many.
        count: usize,
        /// α.
        size: f64,
        /// What the first step's random place within ε follows from; `None` to start at x itself.
        random_start: Option<i64>,
    },
}

/// A request for adversarial examples of each x: outputs `<name>/<x>` of its shape.
///
/// The loss is the cross-entropy of y, scores of classes, with labels that are a new input `<name>/label`, unless y is
/// a loss itself.
#[derive(Clone, Debug)]
pub struct Attack {
    call: Gradients,
    steps: Steps,
    epsilon: f64,
    range: Option<(f64, f64)>,
    class_axis: i64,
    targeted: bool,
    is_loss: bool,
}

builds!(
    Attack,
    "the examples",
    "Names of no tensor, several ys, numbers that make no sense, operators without a gradient between y and xs."
);

impl Attack {
    /// By steps of at most `epsilon` in every place, of the y and xs of a call.
    pub fn new(call: Gradients, steps: Steps, epsilon: f64) -> Self {
        let call = call.named_by_default(if steps == Steps::Fgsm { "fgsm" } else { "pgd" });
        Attack { call, steps, epsilon, range: None, class_axis: -1, targeted: false, is_loss: false }
    }

    /// The least and the largest number that an input may hold.
    pub fn range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    /// The axis of y that runs over classes: the last one if none is given.
    pub fn class_axis(mut self, axis: i64) -> Self {
        self.class_axis = axis;
        self
    }

    /// Whether the labels are those that the classifier shall be led to, not away from.
    pub fn targeted(mut self, targeted: bool) -> Self {
        self.targeted = targeted;
        self
    }

    /// Whether y is the loss: the model takes the labels then.
    pub fn is_loss(mut self, is_loss: bool) -> Self {
        self.is_loss = is_loss;
        self
    }

    fn derived(&self, model: Model) -> Result<Derived> {
        ensure!(self.epsilon >= 0.0 && self.epsilon.is_finite(), "epsilon is {}, and no distance", self.epsilon);
        if let Some((low, high)) = self.range {
            ensure!(low <= high, "the range from {low} to {high} is empty");
        }
        let mut w = Workspace::open(&self.call, model)?;
        if !self.is_loss {
            w.take_off_softmax()?;
        }
        let (_, names) = w.names();
        let (mut outputs, mut vectors) = (Vec::new(), Vec::new());
        let found = {
            let y = w.only_y()?;
            let loss = if self.is_loss { y } else { self.cross_entropy(&w, y, &mut vectors)? };
            let seed = if self.targeted { loss.full_like(-1.0) } else { loss.ones_like() };
            let xs = w.xs();
            let gradients = w.gradients(&[(loss, seed)], &xs)?;
            for (name, g) in names.iter().zip(&gradients) {
                ensure!(g.is_some(), "the loss does not depend on '{name}', which cannot change it");
            }
            let gradients: Vec<Expr<'_>> = gradients.into_iter().flatten().collect();
            let found: Vec<_> = self.changed(&w, &xs, &gradients)?.into_iter().map(Some).collect();
            entries(&w, &mut outputs, &found, &xs, &names, of_x)
        };
        w.finish(outputs, found, vectors, Claim::of(Kind::Attack))
    }

    /// The sum of `-ln softmax(y)` at the labels.
    fn cross_entropy<'g>(&self, w: &'g Workspace, y: Expr<'g>, vectors: &mut Vec<Vector>) -> Result<Expr<'g>> {
        let rank = y.rank()?;
        if rank == 0 {
            bail!("y is a single number: where it is the loss itself, say so (--loss)");
        }
        let axis = y.axis(self.class_axis)?;
        ensure!(y.known_dim(axis) != Some(1), "y has one class only; where it is the loss itself, say so (--loss)");
        let shape: Shape = (y.sizes()?.iter().enumerate()).filter(|(a, _)| *a != axis).map(|(_, d)| *d).collect();
        let (label, name) = w.input("label", Fact::tensor(Some(ElementType::Int64), Some(shape)));
        vectors.push(Vector { of: "label".to_owned(), name });
        let places: Vec<i64> = (0..rank).map(|a| if a == axis { -1 } else { 1 }).collect();
        let classes = w.builder().range(y.dim(axis)).reshape_to(&places);
        let chosen = classes.equal(label.unsqueeze(&[axis])).cast_like(y);
        Ok(-(y.log_softmax(axis) * chosen).sum_all())
    }

    fn limited<'g>(&self, x: Expr<'g>) -> Expr<'g> {
        self.range.map_or(x, |(low, high)| x.clamp(low, high))
    }

    fn changed<'g>(&self, w: &'g Workspace, xs: &[Expr<'g>], gradients: &[Expr<'g>]) -> Result<Vec<Expr<'g>>> {
        let Steps::Pgd { count, size, random_start } = self.steps else {
            let step = |(x, g): (&Expr<'g>, &Expr<'g>)| self.limited(*x + g.sign() * self.epsilon);
            return Ok(xs.iter().zip(gradients).map(step).collect());
        };
        ensure!(count > 0, "PGD needs one step at least");
        ensure!(size >= 0.0 && size.is_finite(), "a step of {size} is none");
        let b = w.builder();
        let start = |(i, x): (usize, &Expr<'g>)| match random_start {
            Some(seed) => self.limited(*x + x.random_uniform_like(seed + i as i64, -self.epsilon, self.epsilon)),
            None => *x,
        };
        let start: Vec<Expr<'g>> = xs.iter().enumerate().map(start).collect();
        let step = |now: &[Expr<'g>], _: &[Expr<'g>]| {
            let from: Vec<_> = xs.iter().copied().zip(now.iter().copied()).collect();
            let gradients = w.again(&from, gradients);
            let next = xs.iter().zip(now).zip(gradients).map(|((x, now), g)| {
                let moved = *now + g.sign() * size;
                // Back to the box of size ε around the first x.
                self.limited(moved.max(*x - x.like(self.epsilon)).min(*x + x.like(self.epsilon)))
            });
            Ok((next.collect(), vec![]))
        };
        let (last, _) = b.run_along(&start, &[b.range(b.int(count as i64))], false, step).context("the steps")?;
        Ok(last)
    }
}
