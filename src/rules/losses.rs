//! Losses over classes. Half precision is computed in float32: batches have more samples than it has numbers.
//!
//! With t the class of a sample, w its weight (1 without weights, 0 where t is ignored) and W = Σ w: a loss is -w x[t],
//! their sum, or their sum divided by W.

use super::Slot::*;
use super::properties::Counts::Along;
use super::properties::{Axis, Index, read};
use super::{Call, Rule, rule};
use crate::expr::Expr;
use crate::graph::Fact;
use crate::graph::facts::{Known, tensor};
use anyhow::{Result, bail, ensure};

const CLASSES: &[Index] = &[read(1, Along(0, Axis::At(1)))];

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "NegativeLogLikelihoodLoss",
        "dx[t] = -h with h = dy w (dy w / W for the mean); dweight[t] = Σ -dy x[t] (Σ -dy (x[t] + y) / W)",
        &[Try(nll_x), Stop("classes"), Try(nll_weight)],
    )
    .facts(facts)
    .ranks(&[None, None, Some(1)])
    .indices(CLASSES)
    .attributes("ignore_index reduction")
    .in_float32(),
    rule(
        "SoftmaxCrossEntropyLoss",
        "dx = h (softmax x - 1 at t) with h = dy w (dy w / W for the mean); dweight as with ln softmax x in place of x",
        &[Try(cross_entropy_x), Stop("classes"), Try(cross_entropy_weight)],
    )
    .facts(facts)
    .ranks(&[None, None, Some(1)])
    .indices(CLASSES)
    .attributes("ignore_index reduction")
    .in_float32(),
];

/// What both losses are made of.
struct Samples<'g> {
    /// The classes, an ignored one replaced by 0.
    classes: Expr<'g>,
    /// The ignored ones' weight is 0; `None` where all are 1.
    weights: Option<Expr<'g>>,
    /// Which are ignored, `None` where nothing is.
    ignored: Option<Expr<'g>>,
    mean: bool,
}

impl<'g> Samples<'g> {
    fn new(c: &Call<'g>) -> Result<Self> {
        let (x, labels) = (c.x(), c.input(1));
        let mean = match c.string("reduction", "mean").as_str() {
            "mean" => true,
            "sum" | "none" => false,
            other => bail!("reduction = '{other}' is not one of mean, sum, none"),
        };
        let ignored = c.opt_int("ignore_index").map(|i| labels.equal(labels.like(i as f64)));
        let classes = ignored.map_or(labels, |i| i.select(labels.like(0.0), labels));
        let weights = match (c.opt(2).map(|w| w.gather(classes, 0)), ignored) {
            (Some(w), Some(ignored)) => Some(w.unless(ignored)),
            (w, ignored) => w.or(ignored.map(|i| i.logical_not().cast_like(x))),
        };
        Ok(Samples { classes, weights, ignored, mean })
    }

    /// The gradient of a sum of the samples: a mean divides by W.
    fn dy(&self, c: &Call<'g>) -> Expr<'g> {
        let dy = c.dy();
        match (self.mean, self.weights) {
            (false, _) => dy,
            (true, Some(w)) => dy / w.sum_all(),
            (true, None) => dy / self.classes.size().cast_like(dy),
        }
    }

    /// h, of each sample.
    fn share(&self, c: &Call<'g>) -> Expr<'g> {
        let dy = self.dy(c);
        self.weights.map_or(dy, |w| dy * w).expand_like(self.classes)
    }

    /// The element of each sample's class; the axis of classes stays with size 1.
    fn chosen(&self, x: Expr<'g>) -> Expr<'g> {
        x.gather_elements(self.classes.unsqueeze(&[1]), 1)
    }

    /// The gradient of the weights, `x` being what the loss takes elements of.
    fn weight(&self, c: &Call<'g>, x: Expr<'g>) -> Expr<'g> {
        let (dy, picked) = (self.dy(c), self.chosen(x).squeeze(&[1]));
        let d = -dy * if self.mean { picked + c.y() } else { picked };
        let d = self.ignored.map_or(d, |ignored| d.unless(ignored));
        c.input(2).ungather(self.classes, d, 0)
    }
}

fn nll_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, s) = (c.x(), Samples::new(c)?);
    Ok(x.zeros_like().scatter_elements(s.classes.unsqueeze(&[1]), -s.share(c).unsqueeze(&[1]), 1))
}

fn nll_weight<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(Samples::new(c)?.weight(c, c.x()))
}

/// The second output, where the node has it.
fn log_probabilities<'g>(c: &Call<'g>) -> Expr<'g> {
    let x = c.x();
    c.output(1).unwrap_or_else(|| x.log_softmax(1))
}

fn cross_entropy_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let s = Samples::new(c)?;
    let p = c.output(1).map_or_else(|| c.x().softmax(1), Expr::exp);
    let of_loss = || s.share(c).unsqueeze(&[1]) * p.minus_one_at(s.classes.unsqueeze(&[1]), 1);
    let of_logs = |d: Expr<'g>| d - p * d.sum(&[1]);
    let dx = match (c.has_dy(0), c.opt_dy(1)) {
        (true, Some(d)) => of_loss() + of_logs(d),
        (false, Some(d)) => of_logs(d),
        _ => of_loss(),
    };
    Ok(dx)
}

fn cross_entropy_weight<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(Samples::new(c)?.weight(c, log_probabilities(c)))
}

/// A scalar, or with `reduction="none"` one loss for each label; behind it the logarithms of the probabilities.
fn facts(c: &Known) -> Result<Vec<Fact>> {
    if let (Some(scores), Some(classes)) = (c.shape(0), c.shape(1)) {
        let fit = scores.len() == classes.len() + 1;
        ensure!(fit, "classes of {} dimensions do not fit scores of {}", classes.len(), scores.len());
    }
    let loss = match c.string("reduction") {
        Some("none") => Fact { element: c.element(0), ..c.like(1) },
        _ => tensor(c.element(0), Some(vec![])),
    };
    Ok(vec![loss, c.like(0)])
}
