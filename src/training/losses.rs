//! Losses: one row each, a formula over an output of the model and what it should have been.

use std::rc::Rc;

use super::ending::{self, Domain};
use crate::error::Error;
use crate::expr::{Builder, Expr};
use crate::graph::{Dim, Fact, ValueId};
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};

/// A row of the table.
#[non_exhaustive]
pub struct Loss {
    /// How it is asked for.
    pub name: &'static str,
    /// What it computes; x is the output, t the target, N the number of samples.
    pub formula: &'static str,
    /// What the target is.
    pub target: Target,
    /// What the output is expected to be, and so which last operator of the model is taken off.
    pub(crate) of: Domain,
    f: for<'g> fn(&Call<'g>) -> Result<Expr<'g>>,
}

/// What a loss compares the output with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A class number for each sample, or with `soft` a probability for each class.
    Classes,
    /// A tensor like the output.
    Like,
    /// A tensor like the output, and 1 or -1 for each sample: whether the two belong together.
    Pair,
}

use Domain::*;

/// Every loss.
pub const LOSSES: &[Loss] = &[
    Loss {
        name: "cross-entropy",
        formula: "Σ w_t (log Σ exp x - x_t) / Σ w_t",
        target: Target::Classes,
        of: Logits,
        f: |c| c.classes(c.x.log_softmax(c.axis)),
    },
    Loss {
        name: "nll",
        formula: "Σ -w_t x_t / Σ w_t",
        target: Target::Classes,
        of: LogProbabilities,
        f: |c| c.classes(c.x),
    },
    Loss {
        name: "bce",
        formula: "mean -(t log x + (1 - t) log(1 - x)), logarithms at least -100",
        target: Target::Like,
        of: Probabilities,
        f: |c| {
            let floor = c.x.like(-100.0);
            c.reduce(-(c.t * c.x.log().max(floor) + (1.0 - c.t) * (1.0 - c.x).log().max(floor)))
        },
    },
    Loss {
        name: "bce-with-logits",
        formula: "mean log(1 + exp x) - t x",
        target: Target::Like,
        of: SigmoidLogits,
        f: bits,
    },
    Loss {
        name: "mse",
        formula: "mean (x - t)²",
        target: Target::Like,
        of: Numbers,
        f: |c| c.reduce((c.x - c.t).square()),
    },
    Loss {
        name: "mae",
        formula: "mean |x - t|",
        target: Target::Like,
        of: Numbers,
        f: |c| c.reduce((c.x - c.t).abs()),
    },
    Loss {
        name: "huber",
        formula: "mean c (|x - t| - c/2) with c = min(|x - t|, δ)",
        target: Target::Like,
        of: Numbers,
        f: |c| {
            let d = (c.x - c.t).abs();
            let limited = d.min(d.like(c.delta));
            c.reduce(limited * (d - 0.5 * limited))
        },
    },
    Loss {
        name: "kl-divergence",
        formula: "Σ t (log t - x) / N, zero where t is",
        target: Target::Like,
        of: LogProbabilities,
        f: |c| {
            let positive = c.t.above(0.0);
            let log = positive.select(c.t, c.t.like(1.0)).log();
            let sum = (c.t * (log - c.x)).sum_all();
            Ok(if c.sum { sum } else { sum / c.x.count(&[0], sum) })
        },
    },
    Loss {
        name: "cosine-embedding",
        formula: "mean 1 - cos(x, t) where y = 1, max(0, cos(x, t) - margin) where y = -1",
        target: Target::Pair,
        of: Numbers,
        f: |c| {
            let axes: Vec<usize> = (1..c.x.rank()?).collect();
            let norms = (c.x.square().sum_out(&axes) + 1e-12) * (c.t.square().sum_out(&axes) + 1e-12);
            let cos = (c.x * c.t).sum_out(&axes) / norms.sqrt();
            let y = c.pair.context("the loss needs a label for each pair")?;
            c.reduce(y.above(0.0).select(1.0 - cos, (cos - c.margin).max(cos.like(0.0))))
        },
    },
];

/// The loss of that name.
pub fn find(name: &str) -> Option<&'static Loss> {
    LOSSES.iter().find(|l| l.name == name)
}

/// A loss that is asked for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LossSpec {
    /// The name of a row of the table, or of a scalar that the model computes.
    pub kind: String,
    /// The output that it is of; where there is none, the model's only one.
    pub output: Option<String>,
    /// Its factor in the sum of all losses.
    pub weight: f64,
    /// The name of the input for the target.
    pub labels: Option<String>,
    /// The output that stands for the target: of a pair of outputs.
    pub other: Option<String>,
    /// The share of the target that is spread over all classes.
    pub smoothing: f64,
    /// The class number of samples that do not count.
    pub ignore: Option<i64>,
    /// A weight for each class.
    pub class_weights: Vec<f64>,
    /// Whether targets are probabilities of the classes.
    pub soft: bool,
    /// The axis of the classes.
    pub axis: Option<i64>,
    /// Where Huber's loss turns from square to linear.
    pub delta: f64,
    /// The cosine above which pairs that do not belong together cost.
    pub margin: f64,
    /// Whether samples are summed, not averaged.
    pub sum: bool,
}

setters!(LossSpec {
    output: Option<String>,
    weight: f64,
    labels: Option<String>,
    other: Option<String>,
    smoothing: f64,
    ignore: Option<i64>,
    class_weights: Vec<f64>,
    soft: bool,
    axis: Option<i64>,
    delta: f64,
    margin: f64,
    sum: bool,
});

impl LossSpec {
    /// A loss with all options as PyTorch has them.
    pub fn new(kind: &str) -> Self {
        LossSpec {
            kind: kind.to_owned(),
            output: None,
            weight: 1.0,
            labels: None,
            other: None,
            smoothing: 0.0,
            ignore: None,
            class_weights: Vec::new(),
            soft: false,
            axis: None,
            delta: 1.0,
            margin: 0.0,
            sum: false,
        }
    }

    /// `[WEIGHT*]KIND[:OUTPUT][,OPTION=VALUE...]`, as the command line has it.
    ///
    /// # Errors
    /// Options that do not exist, and values that are no numbers.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Ok(Self::parsed(text)?)
    }

    fn parsed(text: &str) -> Result<Self> {
        let (weight, rest) = match text.split_once('*').map(|(w, rest)| (w.parse::<f64>(), rest)) {
            Some((Ok(weight), rest)) => (weight, rest),
            _ => (1.0, text),
        };
        let mut parts = rest.split(',');
        let head = parts.next().unwrap_or_default();
        let (kind, output) = match head.split_once(':') {
            Some((kind, output)) if find(kind).is_some() => (kind, Some(output.to_owned())),
            _ => (head, None),
        };
        let mut spec = LossSpec { weight, output, ..LossSpec::new(kind) };
        for part in parts {
            spec.option(part).with_context(|| format!("loss '{text}'"))?;
        }
        Ok(spec)
    }

    fn option(&mut self, text: &str) -> Result<()> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let number = || value.parse::<f64>().with_context(|| format!("'{value}' is no number for {key}"));
        match key {
            "labels" => self.labels = Some(value.to_owned()),
            "other" => self.other = Some(value.to_owned()),
            "smoothing" => self.smoothing = number()?,
            "ignore" => self.ignore = Some(value.parse().with_context(|| format!("'{value}' is no class number"))?),
            "class-weights" => {
                let weights = value.split('/').map(|w| w.parse().with_context(|| format!("'{w}' is no number")));
                self.class_weights = weights.collect::<Result<_>>()?;
            }
            "soft" => self.soft = true,
            "axis" => self.axis = Some(value.parse().with_context(|| format!("'{value}' is no axis"))?),
            "delta" => self.delta = number()?,
            "margin" => self.margin = number()?,
            "sum" => self.sum = true,
            _ => bail!(
                "there is no option '{key}'; there are labels, other, smoothing, ignore, class-weights, soft, axis, delta, margin, sum"
            ),
        }
        ensure!((0.0..=1.0).contains(&self.smoothing), "smoothing is from 0 to 1");
        ensure!(self.delta > 0.0, "delta is above 0");
        Ok(())
    }
}

impl LossSpec {
    /// An option that the loss does not have must not go unnoticed.
    fn check(&self, row: &Loss) -> Result<()> {
        let classes = row.target == Target::Classes;
        let options = [
            ("smoothing", self.smoothing != 0.0, classes),
            ("ignore", self.ignore.is_some(), classes && !self.soft),
            ("class-weights", !self.class_weights.is_empty(), classes),
            ("soft", self.soft, classes),
            ("axis", self.axis.is_some(), classes),
            ("other", self.other.is_some(), !classes),
            ("delta", self.delta != 1.0, row.name == "huber"),
            ("margin", self.margin != 0.0, row.name == "cosine-embedding"),
        ];
        for (option, given, known) in options {
            let soft = if self.soft { " with soft targets" } else { "" };
            ensure!(!given || known, "the loss {} has no option '{option}'{soft}", row.name);
        }
        ensure!(self.class_weights.iter().all(|w| *w >= 0.0 && w.is_finite()), "class weights are not below 0");
        ensure!(self.margin.is_finite(), "the margin is no number");
        Ok(())
    }
}

/// A loss that is being built.
struct Call<'g> {
    x: Expr<'g>,
    t: Expr<'g>,
    pair: Option<Expr<'g>>,
    axis: usize,
    counted: Option<Expr<'g>>,
    spec: &'g LossSpec,
    delta: f64,
    margin: f64,
    sum: bool,
}

impl<'g> Call<'g> {
    fn reduce(&self, each: Expr<'g>) -> Result<Expr<'g>> {
        let axes: Vec<usize> = (0..each.rank()?).collect();
        let total = each.widened().sum_all();
        let loss = if self.sum { total } else { total / each.count(&axes, total) };
        Ok(loss.cast_like(each))
    }

    /// The cross-entropy between the target distribution and logarithms of probabilities.
    fn classes(&self, log: Expr<'g>) -> Result<Expr<'g>> {
        let (b, rank) = (log.builder(), log.rank()?);
        let place: Vec<i64> = (0..rank).map(|a| if a == self.axis { -1 } else { 1 }).collect();
        let weights = match self.spec.class_weights.as_slice() {
            [] => None,
            w => Some(b.numbers(w, &[w.len() as i64], log.element()?).reshape_to(&place)),
        };
        let smoothing = self.spec.smoothing;
        let spread = || smoothing / log.count(&[self.axis], log);
        if self.spec.soft {
            let t = if smoothing > 0.0 { self.t * (1.0 - smoothing) + spread() } else { self.t };
            let total = -weighted(t * log, weights).sum_all();
            let others: Vec<usize> = (0..rank).filter(|&a| a != self.axis).collect();
            return Ok(if self.sum { total } else { total / log.count(&others, total) });
        }
        let classes = b.range(log.dim(self.axis)).reshape_to(&place);
        let hit = classes.equal(self.t.cast(ElementType::Int64).unsqueeze(&[self.axis])).cast_like(log);
        let counted = self.counted.map(|c| c.unsqueeze(&[self.axis]));
        let hit = counted.map_or(hit, |c| hit * c);
        let mut t = if smoothing > 0.0 { hit * (1.0 - smoothing) + spread() } else { hit };
        if let Some(counted) = counted.filter(|_| smoothing > 0.0) {
            t = t * counted;
        }
        let total = -weighted(t * log, weights).sum_all();
        let mass = match (weights, counted) {
            (None, None) => self.t.cast_like(log).count_all(log)?,
            (None, Some(counted)) => counted.sum_all(),
            (Some(_), _) => weighted(hit, weights).sum_all(),
        };
        Ok(if self.sum { total } else { total / mass })
    }
}

/// The cross-entropy of bits whose probability is the sigmoid of x.
fn bits<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    c.reduce(c.x.softplus() - c.t * c.x)
}

fn weighted<'g>(x: Expr<'g>, weights: Option<Expr<'g>>) -> Expr<'g> {
    weights.map_or(x, |w| x * w)
}

impl<'g> Expr<'g> {
    /// How many elements there are, as a number of another tensor's type.
    fn count_all(self, like: Expr<'g>) -> Result<Expr<'g>> {
        Ok(match self.fact().element_count() {
            Some(n) => like.like(n as f64),
            None => self.size().cast_like(like),
        })
    }
}

/// A new input that a loss wants.
pub struct Wanted {
    /// What the input is called, if nobody says otherwise.
    pub name: String,
    /// What is known of it.
    pub fact: Fact,
    /// How many classes there are, where the input holds class numbers and it is known.
    pub classes: Option<i64>,
    /// The class number that does not count.
    pub ignore: Option<i64>,
}

/// A loss as it has been built, with what metrics are made of.
pub struct Built<'g> {
    /// The scalar, in float32 or float64, without its weight.
    pub loss: Expr<'g>,
    /// The output, in float32 or float64.
    pub y: Expr<'g>,
    /// What the loss is computed from: the output, or what goes into its last operator.
    pub x: Expr<'g>,
    /// What `x` is.
    pub of: Domain,
    /// The target.
    pub t: Expr<'g>,
    /// What the target is.
    pub target: Target,
    /// Whether targets are probabilities of the classes.
    pub soft: bool,
    /// The axis of the classes.
    pub axis: usize,
    /// One for each sample that counts, zero for the others; where there are others.
    pub counted: Option<Expr<'g>>,
    /// What has been chosen, for the report.
    pub decisions: Vec<String>,
}

/// Builds a loss of the output `x`; `input` makes the inputs that it wants.
///
/// # Errors
/// Outputs whose rank or element type is not known or does not fit the loss.
pub fn build<'g>(
    builder: &'g Builder,
    spec: &'g LossSpec,
    output: (&str, ValueId),
    other: Option<ValueId>,
    mut input: impl FnMut(Wanted) -> Result<Expr<'g>>,
) -> Result<Built<'g>> {
    let row = find(&spec.kind).with_context(|| {
        let names: Vec<&str> = LOSSES.iter().map(|l| l.name).collect();
        format!("there is no loss '{}', and no output of that name; there are {}", spec.kind, names.join(", "))
    })?;
    spec.check(row)?;
    let mut decisions = Vec::new();
    let (name, id) = output;
    let y = builder.expr(id).widened();
    let element = y.element()?;
    ensure!(element.is_float(), "output '{name}' is of type {}, which has no loss", element.name());
    let end = ending::find(builder, output, row.of)?;
    let (mut x, mut of, mut f) = (y, row.of, row.f);
    if let Some(end) = &end {
        let op = &end.op;
        decisions
            .push(format!("the loss of '{name}' is computed from what goes into its {op}, not from what comes out"));
        x = end.x.widened();
        match (row.of, end.axis) {
            (LogProbabilities, Some(axis)) => x = x.log_softmax(axis),
            (Probabilities, _) => (of, f) = (SigmoidLogits, bits),
            _ => {}
        }
    }
    let (delta, margin, sum) = (spec.delta, spec.margin, spec.sum);
    let mut call = Call { x, t: x, pair: None, axis: 0, counted: None, spec, delta, margin, sum };
    match row.target {
        Target::Classes => {
            call.axis = class_axis(x, spec, end.and_then(|e| e.axis.map(|axis| (e.op, axis))))?;
            call.take_classes(element, &mut input)?;
            if x.rank()? > 2 {
                decisions.push(format!("the classes of '{name}' lie along axis {}", call.axis));
            }
        }
        Target::Like | Target::Pair => {
            call.take_numbers((name, element), row.target, other.map(|id| builder.expr(id).widened()), &mut input)?;
        }
    }
    let loss = f(&call)?;
    if let Some(error) = builder.take_error() {
        return Err(error.context(format!("the loss {} of '{name}'", row.name)));
    }
    let Call { t, axis, counted, .. } = call;
    Ok(Built { loss, y, x, of, t, target: row.target, soft: spec.soft, axis, counted, decisions })
}

impl<'g> Call<'g> {
    fn label(&self) -> String {
        self.spec.labels.clone().unwrap_or_else(|| "labels".to_owned())
    }

    /// Takes classes for the targets: their numbers, or their probabilities.
    fn take_classes(&mut self, element: ElementType, input: &mut impl FnMut(Wanted) -> Result<Expr<'g>>) -> Result<()> {
        let (x, spec) = (self.x, self.spec);
        let (classes, count) = (x.known_dim(self.axis), spec.class_weights.len() as i64);
        ensure!(
            count == 0 || classes.is_none_or(|c| c == count),
            "{count} class weights are given for {} classes",
            classes.unwrap_or_default()
        );
        let sizes = x.sizes()?;
        let others = sizes.iter().enumerate().filter(|(a, _)| *a != self.axis).map(|(_, d)| *d);
        let (element, shape, classes) = match spec.soft {
            true => (element, sizes.as_slice().into(), None),
            false => (ElementType::Int64, others.collect(), classes),
        };
        let fact = Fact::tensor(Some(element), Some(shape));
        self.t = input(Wanted { name: self.label(), fact, classes, ignore: spec.ignore })?;
        if let Some(ignore) = spec.ignore {
            self.counted = Some(self.t.equal(self.t.like(ignore as f64)).logical_not().cast_like(x));
        }
        Ok(())
    }

    /// Takes numbers like those of the output for the targets, those of another output where there is one; with a label
    /// for each pair of samples where pairs are compared.
    fn take_numbers(
        &mut self,
        (name, element): (&str, ElementType),
        target: Target,
        other: Option<Expr<'g>>,
        input: &mut impl FnMut(Wanted) -> Result<Expr<'g>>,
    ) -> Result<()> {
        let sizes = self.x.sizes()?;
        let mut plain = |name: String, shape: &[Dim]| {
            let fact = Fact::tensor(Some(element), Some(shape.into()));
            input(Wanted { name, fact, classes: None, ignore: None })
        };
        let pair = target == Target::Pair;
        self.t = match other {
            Some(other) => other,
            None => plain(if pair { "targets".to_owned() } else { self.label() }, &sizes)?,
        };
        if pair {
            let batch = sizes.first().with_context(|| format!("output '{name}' has no dimension of samples"))?;
            self.pair = Some(plain(self.label(), &[*batch])?);
        }
        Ok(())
    }
}

/// The axis that is asked for, or that the model's own softmax has; else the last axis of vectors and sequences, axis 1
/// of images, as frameworks have it.
fn class_axis(x: Expr<'_>, spec: &LossSpec, own: Option<(Rc<str>, usize)>) -> Result<usize> {
    let rank = x.rank()?;
    ensure!(rank >= 2, "an output of rank {rank} has no axis of classes");
    let Some((op, own)) = own else {
        return x.axis(spec.axis.unwrap_or(if rank > 3 { 1 } else { rank as i64 - 1 }));
    };
    let asked = spec.axis.map_or(Ok(own), |axis| x.axis(axis))?;
    ensure!(asked == own, "axis {asked} is asked for, the model's {op} has its classes along axis {own}");
    Ok(own)
}
