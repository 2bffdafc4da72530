//! Facts of classical machine learning. A tensor of one dimension is a batch of one.

use crate::graph::facts::{Known, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::Result;

/// The output has the shape of the input, and is float32.
pub fn float(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: Some(ElementType::Float), ..c.like(0) }])
}

/// `[batch, size]`, in float32.
pub fn batch(c: &Known, size: Option<Dim>) -> Fact {
    let rows = match c.shape(0) {
        Some([_]) => Dim::Known(1),
        Some(&[rows, ..]) => rows,
        _ => c.dims().fresh(),
    };
    tensor(Some(ElementType::Float), Some(vec![rows, size.unwrap_or_else(|| c.dims().fresh())]))
}

/// What a tree ensemble counts.
pub fn targets(c: &Known) -> Option<Dim> {
    size(c.int("n_targets", -1))
}

/// A size that an attribute says.
pub fn size(n: i64) -> Option<Dim> {
    (n >= 0).then_some(Dim::Known(n))
}

/// How many classes have names.
pub fn labels(c: &Known) -> usize {
    c.count("classlabels_ints") + c.count("classlabels_int64s") + c.count("classlabels_strings")
}

/// The class of each row, and its scores.
pub fn classifier(c: &Known, scores: Option<usize>) -> Result<Vec<Fact>> {
    let scores = batch(c, scores.map(|n| Dim::Known(n as i64)));
    let named = if c.has("classlabels_strings") { ElementType::String } else { ElementType::Int64 };
    let rows = scores.shape.as_deref().and_then(|s| s.first().copied());
    Ok(vec![tensor(Some(named), rows.map(|n| vec![n])), scores])
}

/// One for each row of coefficients; one alone is written as two where there are two classes.
pub fn linear_scores(c: &Known) -> Option<usize> {
    match (c.count("intercepts"), labels(c)) {
        (1, 2) => Some(2),
        (1.., 1) | (0, _) => None,
        (rows, _) => Some(rows),
    }
}

/// One for each class, or without probabilities one for each pair of classes; a pair alone has two.
pub fn vector_scores(c: &Known) -> Option<usize> {
    let classes = labels(c);
    let pairs = c.has("support_vectors") && !c.has("prob_a") && classes > 2;
    Some(if pairs { classes * (classes - 1) / 2 } else { classes }).filter(|&n| n > 1)
}

pub fn extract(c: &Known) -> Result<Vec<Fact>> {
    let indices = c.shape(1).map(|s| c.dims().product(s.iter().copied()));
    let shape = match (c.shape(0), indices) {
        (Some([_]), Some(n)) => Some(vec![Dim::Known(1), n]),
        (Some([outer @ .., _]), Some(n)) => Some([outer, &[n]].concat()),
        _ => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

pub fn vectorize(c: &Known) -> Result<Vec<Fact>> {
    let sum = |sizes: &[i64]| sizes.iter().try_fold(0i64, |n, &s| n.checked_add(s).filter(|_| s >= 0));
    Ok(vec![batch(c, c.ints("inputdimensions").and_then(sum).and_then(size))])
}

pub fn one_hot(c: &Known) -> Result<Vec<Fact>> {
    let categories = Dim::Known((c.count("cats_int64s") + c.count("cats_strings")) as i64);
    Ok(vec![tensor(Some(ElementType::Float), c.shape(0).map(|s| [s, &[categories]].concat()))])
}

/// Names become numbers, numbers become names.
pub fn renamed(c: &Known) -> Option<ElementType> {
    c.element(0).map(|e| if e == ElementType::String { ElementType::Int64 } else { ElementType::String })
}

pub fn encoded(c: &Known) -> Option<ElementType> {
    let lists = [
        ("values_floats", ElementType::Float),
        ("values_int64s", ElementType::Int64),
        ("values_strings", ElementType::String),
    ];
    let listed = lists.iter().find(|(name, _)| c.has(name)).map(|&(_, element)| element);
    let given = || c.constant("values_tensor")?.element;
    listed.or_else(given).or_else(|| c.has("classes_strings").then(|| renamed(c)).flatten())
}

pub fn cast_map(c: &Known) -> Result<Vec<Fact>> {
    let element = match c.string("cast_to") {
        Some("TO_STRING") => ElementType::String,
        Some("TO_INT64") => ElementType::Int64,
        _ => ElementType::Float,
    };
    Ok(vec![tensor(Some(element), None)])
}

/// One number for each entry of the vocabulary, in float32, int64 or text as the values of the map are, which no fact
/// tells.
pub fn dict_vectorizer(c: &Known) -> Result<Vec<Fact>> {
    let entries = c.count("int64_vocabulary") + c.count("string_vocabulary");
    Ok(vec![tensor(None, Some(vec![1.into(), Dim::Known(entries as i64)]))])
}
