//! Classical machine learning, in what the standard leaves open as ONNX Runtime computes it.

use super::{Array, Call, Element, Row, row};
use crate::onnx::{ElementType, attribute};
use anyhow::{Context, Result, bail, ensure};

const ML: &str = "ai.onnx.ml";

pub const ROWS: &[Row] = &[
    row("ArrayFeatureExtractor", extract).domain(ML),
    row("FeatureVectorizer", vectorize).domain(ML),
    row("Imputer", impute).domain(ML),
    row("LinearClassifier", linear_classifier).domain(ML),
    row("LinearRegressor", linear_regressor).domain(ML),
    row("Normalizer", normalize).domain(ML),
    row("SVMClassifier", svm_classifier).domain(ML),
    row("SVMRegressor", svm_regressor).domain(ML),
    row("Scaler", scale).domain(ML),
];

fn floats(c: &Call, name: &str) -> Vec<f64> {
    let found = attribute::find(&c.node.attribute, name);
    found.map_or(vec![], |a| a.floats.iter().map(|&f| f.into()).collect())
}

/// The rows of a tensor; a tensor of one dimension is one row.
fn rows(x: &Array) -> Result<Vec<&[f64]>> {
    let width = x.dims.last().copied().unwrap_or(0);
    ensure!((1..=2).contains(&x.rank()) && width > 0, "dimensions {:?} are not samples of features", x.dims);
    Ok(x.values.chunks_exact(width).collect())
}

/// A matrix of such rows.
fn table(rows: Vec<Vec<f64>>) -> Result<Array> {
    let dims = [rows.len(), rows.first().map_or(0, Vec::len)];
    Array::filled(&[0], 0.0).and_then(|a| Array { values: rows.concat(), ..a }.reshaped(&dims))
}

fn extract(c: &Call) -> Result<Vec<Array>> {
    let (x, places) = (c.x()?, c.input(1)?.integers());
    let (&width, outer) = x.dims.split_last().context("a number has no features")?;
    ensure!(width > 0 && places.iter().all(|&p| (0..width as i64).contains(&p)), "a place that is not one of {width}");
    let outer = if outer.is_empty() { &[1] } else { outer };
    let picked = x.values.chunks_exact(width).flat_map(|row| places.iter().map(|&p| row[p as usize])).collect();
    let flat = Array { values: picked, ..Array::filled(&[0], 0.0)? };
    Ok(vec![flat.reshaped(&[outer, &[places.len()]].concat())?])
}

fn vectorize(c: &Call) -> Result<Vec<Array>> {
    let sizes = c.ints("inputdimensions").context("inputdimensions is missing")?;
    ensure!(sizes.iter().all(|n| (0..1 << 20).contains(n)), "inputdimensions {sizes:?}");
    let count = rows(c.x()?)?.len();
    let mut joined = vec![Vec::new(); count];
    for (i, &size) in sizes.iter().enumerate() {
        let parts = rows(c.input(i)?)?;
        ensure!(parts.len() == count, "inputs of different numbers of rows");
        for (row, part) in joined.iter_mut().zip(parts) {
            row.extend((0..size).map(|at| part.get(at as usize).copied().unwrap_or(0.0)));
        }
    }
    Ok(vec![table(joined)?])
}

fn impute(c: &Call) -> Result<Vec<Array>> {
    let (mut y, values) = (c.x()?.clone(), floats(c, "imputed_value_floats"));
    let replaced = c.float("replaced_value_float", 0.0);
    for (i, v) in y.values.iter_mut().enumerate() {
        if *v == replaced || (v.is_nan() && replaced.is_nan()) {
            *v = *values.get(i % values.len().max(1)).context("there are no values to put in")?;
        }
    }
    Ok(vec![y])
}

fn scale(c: &Call) -> Result<Vec<Array>> {
    let (mut y, offsets, scales) = (c.x()?.clone(), floats(c, "offset"), floats(c, "scale"));
    let at = |list: &[f64], i: usize, default: f64| list.get(i % list.len().max(1)).copied().unwrap_or(default);
    for (i, v) in y.values.iter_mut().enumerate() {
        *v = (*v - at(&offsets, i, 0.0)) * at(&scales, i, 1.0);
    }
    Ok(vec![y])
}

fn normalize(c: &Call) -> Result<Vec<Array>> {
    let norm = c.string("norm", "MAX").to_owned();
    let mut y = c.x()?.clone();
    let width = y.dims.last().copied().unwrap_or(1).max(1);
    for row in y.values.chunks_exact_mut(width) {
        let divisor = match norm.as_str() {
            "L1" => row.iter().map(|v| v.abs()).sum(),
            "L2" => row.iter().map(|v| v * v).sum::<f64>().sqrt(),
            _ => row.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
        row.iter_mut().filter(|_| divisor != 0.0).for_each(|v| *v /= divisor);
    }
    Ok(vec![y])
}

/// The number below which that share of a normal distribution lies, by halving.
fn probit(share: f64) -> f64 {
    if !(0.0..=1.0).contains(&share) {
        return f64::NAN;
    }
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..100 {
        let middle: f64 = (low + high) / 2.0;
        let below = 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2);
        if below < share { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

fn sigmoid(s: f64) -> f64 {
    1.0 / (1.0 + (-s).exp())
}

/// What the post_transform makes of the scores of one sample, of so many classes.
fn transformed(c: &Call, scores: Vec<f64>, classes: usize, complement: bool) -> Result<Vec<f64>> {
    let transform = c.string("post_transform", "NONE");
    if let (&[s], 2) = (scores.as_slice(), classes) {
        return Ok(match transform {
            "LOGISTIC" => vec![sigmoid(-s), sigmoid(s)],
            "PROBIT" => bail!("PROBIT of one score of two classes"),
            "NONE" if !complement => vec![-s, s],
            _ => vec![1.0 - s, s],
        });
    }
    Ok(match transform {
        "PROBIT" => scores.into_iter().map(probit).collect(),
        _ if scores.len() == 1 => scores,
        "LOGISTIC" => scores.into_iter().map(sigmoid).collect(),
        "SOFTMAX" | "SOFTMAX_ZERO" => {
            let counts = |s: f64| transform == "SOFTMAX" || s != 0.0;
            let sum: f64 = scores.iter().filter(|&&s| counts(s)).map(|s| s.exp()).sum();
            scores.into_iter().map(|s| if counts(s) { s.exp() / sum } else { 0.0 }).collect()
        }
        _ => scores,
    })
}

/// The class of each sample, by its place, and the scores.
fn classified(c: &Call, raw: Vec<Vec<f64>>, classes: usize, complement: bool) -> Result<Vec<Array>> {
    let best = |s: &Vec<f64>| match s.as_slice() {
        &[s] => f64::from(u8::from(s > 0.0)),
        many => (1..many.len()).fold(0, |best, i| if many[i] > many[best] { i } else { best }) as f64,
    };
    let labels: Vec<f64> = raw.iter().map(best).collect();
    let named = c.ints("classlabels_ints").unwrap_or_default();
    let labels = labels.into_iter().map(|l| named.get(l as usize).map_or(l, |&name| name as f64)).collect();
    let labels = Array { dims: vec![raw.len()], values: labels, element: Element::Is(ElementType::Int64) };
    let scores = raw.into_iter().map(|s| transformed(c, s, classes, complement)).collect::<Result<_>>()?;
    Ok(vec![labels, table(scores)?])
}

fn classes(c: &Call) -> usize {
    let names = attribute::find(&c.node.attribute, "classlabels_strings").map_or(0, |a| a.strings.len());
    c.ints("classlabels_ints").map_or(0, |l| l.len()) + names
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The scores of each sample: products with rows of coefficients, and so many numbers added.
fn linear(c: &Call, count: usize, added: &[f64]) -> Result<Vec<Vec<f64>>> {
    let (x, weights) = (rows(c.x()?)?, floats(c, "coefficients"));
    let width = c.x()?.dims.last().copied().unwrap_or(0);
    ensure!(weights.len() == count * width, "{} coefficients for {count} scores of {width} features", weights.len());
    let added = |i: usize| added.get(i).copied().unwrap_or(0.0);
    let score = |row: &[f64]| weights.chunks_exact(width).enumerate().map(|(i, w)| dot(row, w) + added(i)).collect();
    Ok(x.into_iter().map(score).collect())
}

fn linear_regressor(c: &Call) -> Result<Vec<Array>> {
    let scores = linear(c, usize::try_from(c.int("targets", 1))?, &floats(c, "intercepts"))?;
    Ok(vec![table(scores.into_iter().map(|s| transformed(c, s, 0, false)).collect::<Result<_>>()?)?])
}

fn linear_classifier(c: &Call) -> Result<Vec<Array>> {
    let intercepts = floats(c, "intercepts");
    let scores = linear(c, intercepts.len(), &intercepts)?;
    classified(c, scores, classes(c), true)
}

/// k(x, s) of one sample with each support vector.
fn kernels(c: &Call, x: &[f64]) -> Result<Vec<f64>> {
    let (vectors, parameters) = (floats(c, "support_vectors"), floats(c, "kernel_params"));
    let parameter = |i: usize| parameters.get(i).copied().unwrap_or(0.0);
    let (gamma, shift, degree) = (parameter(0), parameter(1), parameter(2));
    let kernel = |s: &[f64]| match c.string("kernel_type", "LINEAR") {
        "POLY" => (gamma * dot(x, s) + shift).powf(degree),
        "RBF" => (-gamma * x.iter().zip(s).map(|(x, s)| (x - s) * (x - s)).sum::<f64>()).exp(),
        "SIGMOID" => (gamma * dot(x, s) + shift).tanh(),
        _ => dot(x, s),
    };
    Ok(vectors.chunks_exact(x.len()).map(kernel).collect())
}

fn svm_regressor(c: &Call) -> Result<Vec<Array>> {
    let (weights, rho) = (floats(c, "coefficients"), floats(c, "rho"));
    let score = |x: &[f64]| -> Result<f64> {
        let along = if c.int("n_supports", 0) == 0 { x.to_vec() } else { kernels(c, x)? };
        let score = dot(&along, &weights) + rho.first().copied().unwrap_or(0.0);
        Ok(if c.int("one_class", 0) == 0 { score } else { score.signum() })
    };
    Ok(vec![table(rows(c.x()?)?.into_iter().map(|x| Ok(vec![score(x)?])).collect::<Result<_>>()?)?])
}

fn svm_classifier(c: &Call) -> Result<Vec<Array>> {
    ensure!(floats(c, "prob_a").is_empty(), "probabilities are not computed");
    let (classes, rho) = (classes(c), floats(c, "rho"));
    let Some(sizes) = c.ints("vectors_per_class") else {
        let added = vec![rho.first().copied().unwrap_or(0.0); classes];
        return classified(c, linear(c, classes, &added)?, classes, false);
    };
    let weights = floats(c, "coefficients");
    let sizes: Vec<usize> = sizes.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>()?;
    let vectors = sizes.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
    ensure!(sizes.len() == classes && classes > 1, "vectors of {} classes, where there are {classes}", sizes.len());
    // The contribution of one class's vectors against another class.
    let against = |k: &[f64], class: usize, other: usize| -> f64 {
        let row = if other > class { other - 1 } else { other };
        let first: usize = sizes[..class].iter().sum();
        (first..first + sizes[class]).map(|v| weights[row * vectors + v] * k[v]).sum()
    };
    let mut raw = Vec::new();
    for x in rows(c.x()?)? {
        let k = kernels(c, x)?;
        ensure!(k.len() == vectors && weights.len() == vectors.saturating_mul(classes - 1), "coefficients and vectors");
        let pairs = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j)));
        let scores = pairs.zip(rho.iter()).map(|((i, j), r)| against(&k, i, j) + against(&k, j, i) + r);
        raw.push(scores.collect());
    }
    classified(c, raw, classes, false)
}
