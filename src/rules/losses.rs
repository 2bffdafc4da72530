//! Losses over classes.
//!
//! With t the class of a sample, w its weight (1 without weights, 0 where t is ignored) and W = Σ w: a loss is -w x[t], their
//! sum, or their sum divided by W.

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use anyhow::{Result, bail};

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "NegativeLogLikelihoodLoss",
        "dx[t] = -h with h = dy w (dy w / W for the mean); dweight[t] = Σ -dy x[t] (Σ -dy (x[t] + y) / W)",
        &[Formula(nll_x), Stop("classes"), Formula(nll_weight)],
    )
    .attributes("ignore_index reduction"),
    rule(
        "SoftmaxCrossEntropyLoss",
        "dx = h (softmax x - 1 at t) with h = dy w (dy w / W for the mean); dweight as with ln softmax x in place of x",
        &[Formula(cross_entropy_x), Stop("classes"), Formula(cross_entropy_weight)],
    )
    .attributes("ignore_index reduction"),
];

/// What both losses are made of.
struct Samples<'g> {
    /// The classes, an ignored one replaced by 0.
    classes: Expr<'g>,
    /// The ignored ones' weight is 0; `None` where all are 1.
    weights: Option<Expr<'g>>,
    /// Zero where ignored, one elsewhere, `None` where nothing is ignored.
    counted: Option<Expr<'g>>,
    mean: bool,
}

impl<'g> Samples<'g> {
    fn new(c: &Call<'g>) -> Result<Self> {
        let (x, labels) = (c.x()?, c.input(1)?);
        let mean = match c.string("reduction", "mean").as_str() {
            "mean" => true,
            "sum" | "none" => false,
            other => bail!("reduction = '{other}' is not one of mean, sum, none"),
        };
        let ignored = c.opt_int("ignore_index").map(|i| labels.equal(labels.like(i as f64)));
        let classes = ignored.map_or(labels, |i| i.select(labels.like(0.0), labels));
        let counted = ignored.map(|i| i.logical_not().cast_like(x));
        let weights = match (c.opt(2).map(|w| w.gather(classes, 0)), counted) {
            (Some(w), Some(counted)) => Some(w * counted),
            (w, counted) => w.or(counted),
        };
        Ok(Samples { classes, weights, counted, mean })
    }

    /// W, of the type of x.
    fn total(&self, x: Expr<'g>) -> Result<Expr<'g>> {
        match self.weights {
            Some(w) => Ok(w.sum_all()),
            None => Ok(x.count(&(0..x.rank()?).filter(|&a| a != 1).collect::<Vec<_>>())),
        }
    }

    /// h, of each sample.
    fn share(&self, c: &Call<'g>) -> Result<Expr<'g>> {
        let dy = c.dy()?;
        let dy = if self.mean { dy / self.total(c.x()?)? } else { dy };
        Ok(self.weights.map_or(dy, |w| dy * w).expand_like(self.classes))
    }

    /// The element of each sample's class; the axis of classes stays with size 1.
    fn chosen(&self, x: Expr<'g>) -> Expr<'g> {
        x.gather_elements(self.classes.unsqueeze(&[1]), 1)
    }

    /// The gradient of the weights, `x` being what the loss takes elements of.
    fn weight(&self, c: &Call<'g>, x: Expr<'g>) -> Result<Expr<'g>> {
        let (dy, picked) = (c.dy()?, self.chosen(x).squeeze(&[1]));
        let d = match self.mean {
            true => -(dy / self.total(x)?) * (picked + c.y()?),
            false => -dy * picked,
        };
        let d = self.counted.map_or(d, |counted| d * counted);
        Ok(c.input(2)?.ungather(self.classes, d, 0))
    }
}

fn nll_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, s) = (c.x()?, Samples::new(c)?);
    Ok(x.zeros_like().scatter_elements(s.classes.unsqueeze(&[1]), -s.share(c)?.unsqueeze(&[1]), 1))
}

fn nll_weight<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Samples::new(c)?.weight(c, c.x()?)
}

/// The second output, where the node has it.
fn log_probabilities<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let x = c.x()?;
    Ok(c.output(1).unwrap_or_else(|| x.log_softmax(1)))
}

fn cross_entropy_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (s, p) = (Samples::new(c)?, log_probabilities(c)?.exp());
    let of_loss = || -> Result<Expr<'g>> {
        let h = s.share(c)?.unsqueeze(&[1]);
        Ok((h * p).scatter_elements_add(s.classes.unsqueeze(&[1]), -h, 1))
    };
    Ok(match (c.has_dy(0), c.opt_dy(1)) {
        (true, Some(d)) => of_loss()? + (d - p * d.sum(&[1])),
        (false, Some(d)) => d - p * d.sum(&[1]),
        _ => of_loss()?,
    })
}

fn cross_entropy_weight<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Samples::new(c)?.weight(c, log_probabilities(c)?)
}
