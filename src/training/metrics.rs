//! Metrics: one row each, a formula over an output and its target that tells people how a training goes.

use super::ending::Domain;
use super::losses::{Built, Target};
use crate::expr::Expr;
use anyhow::{Context, Result, bail, ensure};

/// A row of the table.
#[non_exhaustive]
pub struct Metric {
    /// How it is asked for.
    pub name: &'static str,
    /// What it computes; x is the output, t the target.
    pub formula: &'static str,
    f: for<'g> fn(&Built<'g>, usize) -> Option<Result<Expr<'g>>>,
}

/// Every metric of an output.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "accuracy",
        formula: "the share of samples whose largest x is that of the right class, or of elements on t's side of one half",
        f: |b, _| match b.target {
            Target::Classes => Some(correct(b)),
            Target::Like => sides(b),
            Target::Pair => None,
        },
    },
    Metric {
        name: "top-K",
        formula: "the share of samples with fewer than K classes above the right one",
        f: |b, k| (b.target == Target::Classes).then(|| among(b, k)),
    },
    Metric { name: "mae", formula: "mean |x - t|", f: |b, _| likewise(b, |d| d.abs()) },
    Metric { name: "mse", formula: "mean (x - t)²", f: |b, _| likewise(b, |d| d.square()) },
];

/// The norm of all gradients, which is a metric of no output.
pub const GRADIENT_NORM: &str = "gradient-norm";

/// A metric that is asked for: `KIND[:OUTPUT]`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricSpec {
    row: usize,
    k: usize,
    /// As it was asked for, without the output.
    pub kind: String,
    /// The output that it is of; all where it fits the loss, if there is none.
    pub output: Option<String>,
}

impl MetricSpec {
    /// A metric of the table by its name, K being a number; `None` for the norm of the gradients.
    ///
    /// # Errors
    /// There is none of that name; the message names all.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let (kind, output) = text.split_once(':').map_or((text, None), |(k, o)| (k, Some(o.to_owned())));
        if kind == GRADIENT_NORM && output.is_none() {
            return Ok(None);
        }
        let k = kind.strip_prefix("top-").and_then(|k| k.parse().ok()).filter(|&k| k > 0);
        let name = if k.is_some() { "top-K" } else { kind };
        let Some(row) = METRICS.iter().position(|m| m.name == name && (name == "top-K") == k.is_some()) else {
            let names: Vec<&str> = METRICS.iter().map(|m| m.name).chain([GRADIENT_NORM]).collect();
            bail!("there is no metric '{text}'; there are {}", names.join(", "));
        };
        Ok(Some(MetricSpec { row, k: k.unwrap_or(0), kind: kind.to_owned(), output }))
    }

    /// The metric of an output with its target, a scalar; `None` where the two have no such metric.
    ///
    /// # Errors
    /// The rank or the element type of the output is not known.
    pub fn of<'g>(&self, built: &Built<'g>) -> Result<Option<Expr<'g>>> {
        let row = METRICS.get(self.row).context("a metric without a row")?;
        (row.f)(built, self.k).transpose()
    }
}

/// Metrics as they are asked for: of outputs, and whether the norm of the gradients is one.
///
/// # Errors
/// The errors of [`MetricSpec::parse`]; a metric that is named twice.
pub fn parse<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<(Vec<MetricSpec>, bool)> {
    let (mut specs, mut norm) = (Vec::<MetricSpec>::new(), false);
    for text in texts {
        match MetricSpec::parse(text.as_ref())? {
            Some(spec) => {
                ensure!(!specs.contains(&spec), "the metric '{}' is named twice", text.as_ref());
                specs.push(spec);
            }
            None => norm = true,
        }
    }
    Ok((specs, norm))
}

/// Metrics with the names of what comes out, one a kind.
pub fn named(specs: Vec<MetricSpec>, unique: &mut dyn FnMut(&str) -> String) -> Vec<(MetricSpec, String)> {
    let mut kinds: Vec<(String, String)> = Vec::new();
    let name = |spec: MetricSpec| {
        let known = kinds.iter().find(|(kind, _)| *kind == spec.kind).map(|(_, name)| name.clone());
        let name = known.unwrap_or_else(|| unique(&spec.kind));
        kinds.push((spec.kind.clone(), name.clone()));
        (spec, name)
    };
    specs.into_iter().map(name).collect()
}

/// The mean over the samples that count.
fn share<'g>(b: &Built<'g>, each: Expr<'g>) -> Result<Expr<'g>> {
    let axes: Vec<usize> = (0..each.rank()?).collect();
    Ok(match b.counted {
        Some(counted) => (each * counted).sum_all() / counted.sum_all(),
        None => each.sum_all() / each.count(&axes, each),
    })
}

fn correct<'g>(b: &Built<'g>) -> Result<Expr<'g>> {
    let best = |x: Expr<'g>| x.arg_max(b.axis).squeeze(&[b.axis]);
    let right = if b.soft { best(b.t) } else { b.t };
    share(b, best(b.x).equal(right).cast_like(b.x))
}

fn among<'g>(b: &Built<'g>, k: usize) -> Result<Expr<'g>> {
    if let Some(classes) = b.x.known_dim(b.axis) {
        ensure!((k as i64) < classes, "top-{k} of {classes} classes is always 1: it takes fewer than {classes}");
    }
    let right = if b.soft { b.t.arg_max(b.axis).squeeze(&[b.axis]) } else { b.t };
    let place: Vec<i64> = (0..b.x.rank()?).map(|a| if a == b.axis { -1 } else { 1 }).collect();
    let classes = b.x.builder().range(b.x.dim(b.axis)).reshape_to(&place);
    let hit = classes.equal(right.unsqueeze(&[b.axis]));
    let of_right = hit.select(b.x, b.x.like(0.0)).sum(&[b.axis]);
    let above = b.x.greater(of_right).cast_like(b.x).sum_out(&[b.axis]);
    share(b, above.below(k as f64).cast_like(b.x))
}

/// For outputs that are, or become, probabilities of two classes.
fn sides<'g>(b: &Built<'g>) -> Option<Result<Expr<'g>>> {
    let middle = match b.of {
        Domain::Probabilities => 0.5,
        Domain::SigmoidLogits => 0.0,
        _ => return None,
    };
    let (x, t) = (b.x.above(middle).cast_like(b.x), b.t.above(0.5).cast_like(b.x));
    Some(share(b, 1.0 - (x - t).square()))
}

fn likewise<'g>(b: &Built<'g>, f: fn(Expr<'g>) -> Expr<'g>) -> Option<Result<Expr<'g>>> {
    // What has been taken off made probabilities of logits.
    let numbers = b.y != b.x || matches!(b.of, Domain::Numbers | Domain::Probabilities);
    (b.target == Target::Like && numbers).then(|| share(b, f(b.y - b.t)))
}
