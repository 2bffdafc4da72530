//! Gradients of each sample: what the gradient would be if the model ran on that sample alone.

use super::claim::{Claim, Kind};
use super::products::of_x;
use super::samples::{Kept, Together, clipping, norm};
use super::workspace::Workspace;
use super::{Derived, Entry};
use crate::backward::Gradients;
use crate::expr::Expr;
use crate::graph::{Dim, Fact};
use crate::model::Model;
use anyhow::{Context, Result, bail, ensure};

/// A request for gradients of each sample of a batch.
///
/// They are exact whatever the layers: statistics of a batch, a mean over it, and attention across it are those of that
/// sample alone, for which a Scan runs the model forward and backward on one sample after the other. Where every x is
/// used once, in a layer up to which the samples stay apart, they follow from one backward pass over all of them
/// (`samples.rs`).
#[derive(Clone, Debug)]
pub struct PerSample {
    call: Gradients,
    axis: i64,
    kept: Kept,
    inputs: Vec<String>,
}

builds!(
    PerSample, "the gradients",
    "Names of no tensor, no input with samples, xs that hold samples themselves, a model that runs on batches of one"
    "size only, operators without a gradient between ys and xs."
);

impl PerSample {
    /// The gradients of the samples along an axis of the model's inputs.
    pub fn new(call: Gradients, axis: i64) -> Self {
        PerSample { call: call.named_by_default("gradients"), axis, kept: Kept::Each, inputs: vec![] }
    }

    /// What is kept of them.
    pub fn keep(mut self, kept: Kept) -> Self {
        self.kept = kept;
        self
    }

    /// The inputs that hold samples; if none is named, those of the size of the first one along the axis.
    pub fn inputs<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.inputs.extend(names.into_iter().map(Into::into));
        self
    }

    fn derived(&self, model: Model) -> Result<Derived> {
        let w = Workspace::open(&self.call, model)?;
        let mut outputs = Vec::new();
        let (found, samples) = {
            let samples = self.samples(&w)?;
            let (first, axis) = samples.first().copied().context("no input holds samples")?;
            let count = first.dim(axis);
            let found = self.run(&w, &samples, count).with_context(|| {
                format!("the model on a sample alone (along axis {} of {first}, which is to have any size)", self.axis)
            })?;
            let sizes = first.sizes()?;
            let names = samples.iter().map(|(e, _)| w.name_of(*e)).collect();
            (self.named(&w, &mut outputs, found, sizes[axis])?, names)
        };
        w.finish(outputs, found, vec![], Claim { batch: Some(self.axis), samples, ..Claim::of(Kind::PerSample) })
    }

    /// The inputs that hold samples, each with the axis that they lie along.
    fn samples<'g>(&self, w: &'g Workspace) -> Result<Vec<(Expr<'g>, usize)>> {
        let xs = w.xs();
        let lies = |e: &Expr<'g>| e.axis(self.axis).ok().filter(|&a| e.rank().is_ok_and(|rank| a < rank));
        if !self.inputs.is_empty() {
            let named = self.inputs.iter().map(|name| {
                let e = w.tensor(name)?;
                ensure!(!xs.contains(&e), "'{name}' is an x, with respect to which every sample is differentiated");
                Ok((e, lies(&e).with_context(|| format!("'{name}' has no axis {}", self.axis))?))
            });
            return named.collect();
        }
        let candidates: Vec<_> = w.inputs_behind().into_iter().filter(|e| !xs.contains(e)).collect();
        let first = candidates.iter().find_map(|e| Some((*e, lies(e)?)));
        let Some((first, axis)) = first else {
            bail!("the ys depend on no input with an axis {} that is no x, so there are no samples", self.axis)
        };
        let size = first.sizes()?[axis];
        let same = |e: &Expr<'g>| Some((*e, lies(e)?)).filter(|(e, a)| e.sizes().is_ok_and(|sizes| sizes[*a] == size));
        Ok(candidates.iter().filter_map(same).collect())
    }

    /// What is kept: of each x the gradients or their sum, `None` where there is none; and the norms.
    fn run<'g>(
        &self,
        w: &'g Workspace,
        samples: &[(Expr<'g>, usize)],
        count: Expr<'g>,
    ) -> Result<(Vec<Option<Expr<'g>>>, Option<Expr<'g>>)> {
        if let Kept::Clipped(bound) = self.kept {
            ensure!(bound > 0.0 && bound.is_finite(), "gradients cannot be clipped to a norm of {bound}");
        }
        if let Some(together) = Together::find(w, samples, self.kept)? {
            return together.run(count, self.kept);
        }
        let b = w.builder();
        let (ys, xs) = (w.ys(), w.xs());
        let connected = std::cell::RefCell::new(vec![false; xs.len()]);
        let alone = |place: Expr<'g>| {
            let place = place.reshape_to(&[1]);
            let from: Vec<_> = samples.iter().map(|&(e, axis)| (e, e.gather(place, axis))).collect();
            let gradients = w.gradients_of_sum_again(&from, &ys, &xs)?;
            *connected.borrow_mut() = gradients.iter().map(Option::is_some).collect();
            anyhow::Ok(gradients.into_iter().flatten().collect::<Vec<_>>())
        };
        let norm = |gradients: &[Expr<'g>]| norm(gradients.iter().map(|g| g.widened().square().sum_all()));
        let along = [b.range(count)];
        let spread = |found: Vec<Expr<'g>>| {
            let mut found = found.into_iter();
            connected.borrow().iter().map(|c| if *c { found.next() } else { None }).collect::<Vec<_>>()
        };
        match self.kept {
            Kept::Each => {
                let (_, stacked) = b.run_along(&[], &along, false, |_, now| Ok((vec![], alone(now[0])?)))?;
                Ok((spread(stacked), None))
            }
            Kept::Norms => {
                let (_, norms) =
                    b.run_along(&[], &along, false, |_, now| Ok((vec![], vec![norm(&alone(now[0])?)?])))?;
                Ok((vec![None; xs.len()], norms.first().copied()))
            }
            Kept::Clipped(bound) => {
                let zeros: Vec<_> = xs.iter().map(|x| x.zeros_like().widened()).collect();
                let step = |sums: &[Expr<'g>], now: &[Expr<'g>]| {
                    let gradients = alone(now[0])?;
                    let norm = norm(&gradients)?;
                    let factor = clipping(norm, bound);
                    let mut gradients = gradients.into_iter();
                    let connected = connected.borrow().clone();
                    let sums = sums.iter().zip(connected).map(|(sum, connected)| {
                        let term = if connected { gradients.next() } else { None };
                        term.map_or(*sum, |g| *sum + g.widened() * factor.cast_like(*sum))
                    });
                    Ok((sums.collect(), vec![norm]))
                };
                let (sums, norms) = b.run_along(&zeros, &along, false, step)?;
                let connected = connected.borrow();
                let sums = sums.iter().zip(&xs).zip(connected.iter());
                Ok((sums.map(|((sum, x), c)| c.then(|| sum.cast_like(*x))).collect(), norms.first().copied()))
            }
        }
    }

    fn named(
        &self,
        w: &Workspace,
        outputs: &mut Vec<(crate::graph::ValueId, String)>,
        (found, norms): (Vec<Option<Expr<'_>>>, Option<Expr<'_>>),
        samples: Dim,
    ) -> Result<Vec<Entry>> {
        let (_, names) = w.names();
        let mut entries = Vec::new();
        for ((found, x), name) in found.into_iter().zip(w.xs()).zip(names).filter(|_| self.kept != Kept::Norms) {
            let shape = match self.kept {
                Kept::Each => x.sizes().map(|sizes| [vec![samples], sizes].concat().into()).ok(),
                _ => x.fact().shape,
            };
            let fact = Fact::tensor(x.fact().element, shape);
            entries.push(of_x(name.clone(), found.map(|e| w.output(outputs, e, &name, fact))));
        }
        if let Some(norms) = norms {
            let fact = Fact::tensor(norms.fact().element, Some([samples].into()));
            entries.push(Entry { name: Some(w.output(outputs, norms, "norms", fact)), ..Entry::default() });
        }
        Ok(entries)
    }
}
