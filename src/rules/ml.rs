//! Linear models, support vector machines, and what prepares features for them.
//!
//! Rows of x are samples; a tensor of one dimension is one sample. Models hold their weights as attributes, and compute
//! in the type of x scores that are float32. What the standard leaves open is as ONNX Runtime has it.

pub mod facts;

use super::Slot::*;
use super::opaque;
use super::{Call, Rule, Slot, rule};
use crate::expr::Expr;
use crate::graph::{Container, Fact};
use crate::rules::facts::same;
use anyhow::{Context, Result, bail, ensure};
use std::f64::consts::PI;

const TEXT: &[Slot] = &[Stop("text, tokens or bytes")];
const MAPS: &[Slot] = &[Stop("maps carry no gradient")];
const STEPS: &[Slot] = &[Stop("piecewise constant")];

/// The rows.
pub const RULES: &[Rule] = &[
    classical("FeatureVectorizer", "dx = its columns of dy", &[TryEach(vectorized)]).facts(facts::vectorize).attributes("inputdimensions"),
    classical("Imputer", "dx = dy [x is not replaced]", &[Formula(impute)]).facts(same)
        .attributes("imputed_value_floats imputed_value_int64s replaced_value_float replaced_value_int64"),
    classical(
        "LinearClassifier",
        "dx = ds W, ds the gradient of the scores before the post_transform",
        &[Try(linear_classifier)],
    ).facts(|c| facts::classifier(c, facts::linear_scores(c)))
    .layer()
    .attributes("classlabels_ints classlabels_strings coefficients intercepts multi_class post_transform")
    .note(PAIRS),
    classical(
        "LinearRegressor",
        "dx = ds W, ds the gradient of the scores before the post_transform",
        &[Try(linear_regressor)],
    ).facts(|c| Ok(vec![facts::batch(c, facts::size(c.int("targets", 1)))]))
    .layer()
    .attributes("coefficients intercepts post_transform targets")
    .note(ALONE),
    classical("Normalizer", "the gradients of x / max x, x / Σ|x| or x / √Σx² of each row", &[Through(normalizer)]).facts(facts::float)
        .attributes("norm")
        .note("a row whose divisor is 0 stays as it is; equals share the maximum"),
    classical(
        "SVMClassifier",
        "dx = the gradients of Σ αᵢ k(x, sᵢ) of each pair of classes from ds, that of the scores before the post_transform",
        &[Try(svm_classifier)],
    ).facts(|c| facts::classifier(c, facts::vector_scores(c)))
    .layer()
    .attributes(
        "classlabels_ints classlabels_strings coefficients kernel_params kernel_type post_transform prob_a prob_b rho \
         support_vectors vectors_per_class",
    )
    .note("without probabilities (prob_a), which an iteration estimates; two classes have the scores -s and s or 1 - s and s"),
    classical("SVMRegressor", "the gradients of Σ αᵢ k(x, sᵢ)", &[Try(svm_regressor)]).facts(|c| Ok(vec![facts::batch(c, Some(1.into()))]))
        .layer()
    .attributes("coefficients kernel_params kernel_type n_supports one_class post_transform rho support_vectors")
        .note("without post_transform; zero where one_class asks for the sign alone"),
    classical("Scaler", "dx = dy scale", &[Try(scaler)]).facts(facts::float).attributes("offset scale"),
    // Trees, thresholds and categories.
    without("Binarizer", STEPS).facts(same),
    without("CastMap", MAPS).facts(facts::cast_map),
    without("CategoryMapper", TEXT).facts(|c| Ok(vec![Fact { element: facts::renamed(c), ..c.like(0) }])),
    without("DictVectorizer", MAPS).facts(facts::dict_vectorizer),
    without("LabelEncoder", STEPS).facts(|c| Ok(vec![Fact { element: facts::encoded(c), ..c.like(0) }])),
    without("OneHotEncoder", STEPS).facts(facts::one_hot),
    without("TreeEnsemble", STEPS).facts(|c| Ok(vec![Fact { element: c.element(0), ..facts::batch(c, facts::targets(c)) }])),
    without("TreeEnsembleClassifier", STEPS).facts(|c| facts::classifier(c, Some(facts::labels(c)).filter(|&n| n > 1))),
    without("TreeEnsembleRegressor", STEPS).facts(|c| Ok(vec![facts::batch(c, facts::targets(c))])),
    without("ZipMap", MAPS).facts(|_| Ok(vec![Fact { container: Container::Other, ..Fact::default() }])),
];

const PAIRS: &str = "one score of two classes is written as 1 - s and s, with LOGISTIC as σ(-s) and σ(s)";
const ALONE: &str = "one target alone has no post_transform but PROBIT";

/// As [`classical`], for one through which no gradient passes.
const fn without(op: &'static str, slots: &'static [Slot]) -> Rule {
    opaque(op, slots).domain("ai.onnx.ml")
}

const fn classical(op: &'static str, formula: &'static str, slots: &'static [Slot]) -> Rule {
    rule(op, formula, slots).domain("ai.onnx.ml").in_float32()
}

/// Whether x is one sample.
fn is_single(x: Expr<'_>) -> Result<bool> {
    match x.rank()? {
        1 => Ok(true),
        2 => Ok(false),
        rank => bail!("{x} of rank {rank} holds no samples; reshape it to [samples, features]"),
    }
}

/// x as `[samples, features]`.
fn samples<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let x = c.x();
    Ok(if is_single(x)? { x.unsqueeze(&[0]) } else { x })
}

/// The transpose of [`samples`]: `[samples, features]` in the shape of x.
fn unbatched<'g>(x: Expr<'g>, dx: Expr<'g>) -> Result<Expr<'g>> {
    Ok(if is_single(x)? { dx.squeeze(&[0]) } else { dx })
}

fn scaler<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    is_single(x)?;
    Ok(match c.floats("scale").as_deref() {
        None => dy,
        Some(&[scale]) => dy * scale,
        Some(scale) => dy * c.builder().numbers(scale, &[scale.len() as i64], x.element()?),
    })
}

fn impute<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, replaced) = (c.x(), c.float("replaced_value_float", 0.0));
    // NaN alone differs from itself.
    let kept = if replaced.is_nan() { x.equal(x) } else { x.equal(x.like(replaced)).logical_not() };
    c.dy().where_(kept)
}

fn vectorized<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let (x, dy) = (c.input(i), c.dy());
    let sizes = c.ints("inputdimensions").context("attribute inputdimensions is missing")?;
    let &size = sizes.get(i).with_context(|| format!("inputdimensions has no number for input {i}"))?;
    ensure!(sizes.iter().all(|n| (0..=i64::from(i32::MAX)).contains(n)), "inputdimensions = {sizes:?} are no sizes");
    let start: i64 = sizes[..i].iter().sum();
    let (part, axis) = (dy.narrow(1, start, start + size), usize::from(!is_single(x)?));
    if x.known_dim(axis) == Some(size) {
        return unbatched(x, part);
    }
    // Features beyond the size are left out, missing ones are zeros.
    let (b, features) = (c.builder(), x.dims([axis]));
    let padded = part.pad_axis(1, b.ints(&[0]), features);
    unbatched(x, padded.slice_at(b.ints(&[1]), b.ints(&[0]), features, b.ints(&[1])))
}

fn normalizer<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let x = c.x();
    let axis = [if is_single(x)? { 0 } else { 1 }];
    let or_one = |e: Expr<'g>| e.equal(e.like(0.0)).select(e.like(1.0), e);
    let divisor = match c.string("norm", "MAX").as_str() {
        "MAX" => or_one(x.maximum(&axis)),
        "L1" => or_one(x.abs().sum(&axis)),
        "L2" => or_one(x.square().sum(&axis)).sqrt(),
        other => bail!("norm = '{other}' is not one of MAX, L1, L2"),
    };
    Ok(vec![Some(x / divisor)])
}

/// The gradient of scores from that of what the post_transform makes of them, in the type of x.
///
/// A score alone is another matter: where there are two classes it is written as two, and else ONNX Runtime does not
/// transform it.
fn untransformed<'g>(c: &Call<'g>, output: usize, rows: usize, classes: usize) -> Result<Expr<'g>> {
    let y = c.output(output).with_context(|| format!("output {output} is left out"))?;
    let dy = c.dy_of(output);
    let transform = c.string("post_transform", "NONE");
    c.ensure_known("post_transform", &transform, &["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"]);
    let transform = transform.as_str();
    if (rows, classes) == (1, 2) {
        ensure!(transform != "PROBIT", "post_transform = 'PROBIT' of one score of two classes is not defined");
        let ds = dy.narrow(1, 1, 2) - dy.narrow(1, 0, 1);
        return Ok(if transform == "LOGISTIC" { ds * y.product(&[1]) } else { ds });
    }
    ensure!(
        rows > 1 || ["NONE", "PROBIT"].contains(&transform),
        "post_transform = '{transform}' of one score: ONNX Runtime leaves it out, where the standard has it; write it as a \
         node of its own"
    );
    Ok(match transform {
        "LOGISTIC" => dy * y * (1.0 - y),
        // A score of 0, which SOFTMAX_ZERO leaves alone, stays 0.
        "SOFTMAX" | "SOFTMAX_ZERO" => (dy - (dy * y).sum(&[1])) * y,
        "PROBIT" => dy * (2.0 * PI).sqrt() * (0.5 * y.square()).exp(),
        _ => dy,
    })
}

/// A list of numbers as a matrix of so many rows, in the type of x.
fn matrix<'g>(c: &Call<'g>, name: &str, rows: usize) -> Result<Expr<'g>> {
    let numbers = c.floats(name).unwrap_or_default();
    ensure!(
        rows > 0 && !numbers.is_empty() && numbers.len().is_multiple_of(rows),
        "the {} numbers of {name} are not {rows} rows",
        numbers.len()
    );
    let dims = [rows as i64, (numbers.len() / rows) as i64];
    Ok(c.builder().numbers(&numbers, &dims, c.x().element()?))
}

fn count(numbers: Option<Vec<f64>>) -> usize {
    numbers.map_or(0, |n| n.len())
}

/// How many classes have names.
fn classes(c: &Call<'_>) -> usize {
    c.ints("classlabels_ints").map_or(0, |l| l.len()) + c.strings("classlabels_strings").map_or(0, |l| l.len())
}

fn linear_regressor<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let targets = usize::try_from(c.int("targets", 1)).context("targets is negative")?;
    unbatched(c.x(), untransformed(c, 0, targets, 0)?.matmul(matrix(c, "coefficients", targets)?))
}

fn linear_classifier<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let classes = classes(c);
    let rows = match count(c.floats("intercepts")) {
        0 => classes,
        rows => rows,
    };
    unbatched(c.x(), untransformed(c, 1, rows, classes)?.matmul(matrix(c, "coefficients", rows)?))
}

/// k(x, s) of each sample with each of so many support vectors.
fn kernel<'g>(c: &Call<'g>, x: Expr<'g>, vectors: usize) -> Result<Expr<'g>> {
    let s = matrix(c, "support_vectors", vectors)?;
    let products = x.matmul(s.transposed());
    let parameters = c.floats("kernel_params").unwrap_or_default();
    let parameter = |i: usize| parameters.get(i).copied().unwrap_or(0.0);
    let (gamma, shift, degree) = (parameter(0), parameter(1), parameter(2));
    Ok(match c.string("kernel_type", "LINEAR").as_str() {
        "LINEAR" => products,
        "POLY" => (gamma * products + shift).pow(x.like(degree)),
        "SIGMOID" => (gamma * products + shift).tanh(),
        "RBF" => {
            let squares = x.square().sum(&[1]) + s.square().sum_out(&[1]);
            (-gamma * (squares - 2.0 * products)).exp()
        }
        other => bail!("kernel_type = '{other}' is not one of LINEAR, POLY, RBF, SIGMOID"),
    })
}

/// The gradient of x from that of the scores, each of which adds the kernels up with a column of weights.
fn machine<'g>(c: &Call<'g>, weights: Expr<'g>, vectors: usize, ds: Expr<'g>) -> Result<Expr<'g>> {
    let x = c.x();
    let scores = kernel(c, samples(c)?, vectors)?.matmul(weights);
    let dx = c.differentiate(&[(scores, ds)], &[x])?;
    Ok(dx.get(&x.id()).copied().unwrap_or_else(|| x.zeros_like()))
}

fn svm_regressor<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let vectors = usize::try_from(c.int("n_supports", 0)).context("n_supports is negative")?;
    if c.flag("one_class", false) {
        return Ok(c.x().zeros_like());
    }
    ensure!(c.string("post_transform", "NONE") != "PROBIT", "post_transform = 'PROBIT' is not supported");
    let ds = untransformed(c, 0, 1, 0)?;
    match vectors {
        // Without support vectors the coefficients are the weights.
        0 => unbatched(c.x(), ds.matmul(matrix(c, "coefficients", 1)?)),
        _ => machine(c, matrix(c, "coefficients", 1)?.transposed(), vectors, ds),
    }
}

fn svm_classifier<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    ensure!(
        count(c.floats("prob_a")) == 0,
        "probabilities (prob_a) are estimated by an iteration; use the scores, without prob_a and prob_b"
    );
    let classes = classes(c);
    let sizes = c.ints("vectors_per_class").unwrap_or_default();
    if sizes.is_empty() {
        // Without support vectors the coefficients are the weights.
        return unbatched(c.x(), untransformed(c, 1, classes, classes)?.matmul(matrix(c, "coefficients", classes)?));
    }
    let coefficients = c.floats("coefficients").unwrap_or_default();
    let sizes: Vec<usize> = sizes.into_iter().filter_map(|n| usize::try_from(n).ok().filter(|&n| n > 0)).collect();
    let vectors = sizes.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
    ensure!(
        sizes.len() == classes && classes > 1 && coefficients.len() == vectors.saturating_mul(classes - 1),
        "{} coefficients for {vectors} support vectors of {classes} classes",
        coefficients.len()
    );
    // To which class each vector belongs.
    let owners: Vec<usize> = sizes.iter().enumerate().flat_map(|(class, &n)| std::iter::repeat_n(class, n)).collect();
    // A vector has one coefficient against each other class.
    let pairs: Vec<(usize, usize)> = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j))).collect();
    let weight = |vector: usize, &(i, j): &(usize, usize)| match owners[vector] {
        owner if owner == i => coefficients[(j - 1) * vectors + vector],
        owner if owner == j => coefficients[i * vectors + vector],
        _ => 0.0,
    };
    let weights: Vec<f64> =
        (0..vectors).flat_map(|v| pairs.iter().map(move |p| (v, p))).map(|(v, p)| weight(v, p)).collect();
    let weights = c.builder().numbers(&weights, &[vectors as i64, pairs.len() as i64], c.x().element()?);
    machine(c, weights, vectors, untransformed(c, 1, pairs.len(), classes)?)
}
