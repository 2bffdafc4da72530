//! Classical machine learning: `ai.onnx.ml`. A tensor of one dimension is a batch of one.

use super::context::{Context, Row, tensor};
use super::elementwise::same;
use crate::graph::{Container, Dim, Fact};
use crate::onnx::{ElementType, attribute};
use anyhow::Result;

pub const ROWS: &[Row] = &[
    ("ArrayFeatureExtractor", extract),
    ("Binarizer", same),
    ("CastMap", cast_map),
    ("CategoryMapper", |c| Ok(vec![Fact { element: renamed(c), ..c.like(0) }])),
    ("FeatureVectorizer", vectorize),
    ("Imputer", same),
    ("LabelEncoder", |c| Ok(vec![Fact { element: encoded(c), ..c.like(0) }])),
    ("LinearClassifier", |c| classifier(c, linear_scores(c))),
    ("LinearRegressor", |c| Ok(vec![batch(c, size(c.int("targets", 1)))])),
    ("Normalizer", float),
    ("OneHotEncoder", one_hot),
    ("SVMClassifier", |c| classifier(c, vector_scores(c))),
    ("SVMRegressor", |c| Ok(vec![batch(c, Some(1.into()))])),
    ("Scaler", float),
    ("TreeEnsemble", |c| Ok(vec![Fact { element: c.element(0), ..batch(c, targets(c)) }])),
    ("TreeEnsembleClassifier", |c| classifier(c, Some(labels(c)).filter(|&n| n > 1))),
    ("TreeEnsembleRegressor", |c| Ok(vec![batch(c, targets(c))])),
    ("ZipMap", |_| Ok(vec![Fact { container: Container::Other, ..Fact::default() }])),
];

/// Of the input's shape, in float32.
fn float(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: Some(ElementType::Float), ..c.like(0) }])
}

/// `[batch, size]`, in float32.
fn batch(c: &Context, size: Option<Dim>) -> Fact {
    let rows = match c.shape(0) {
        Some([_]) => Dim::Known(1),
        Some(&[rows, ..]) => rows,
        _ => c.dims().fresh(),
    };
    tensor(Some(ElementType::Float), Some(vec![rows, size.unwrap_or_else(|| c.dims().fresh())]))
}

/// How many elements a list has.
fn count(c: &Context, name: &str) -> usize {
    attribute::find(c.op.attributes, name).map_or(0, |a| a.ints.len().max(a.strings.len()).max(a.floats.len()))
}

/// What a tree ensemble counts.
fn targets(c: &Context) -> Option<Dim> {
    size(c.int("n_targets", -1))
}

/// A size that an attribute says.
fn size(n: i64) -> Option<Dim> {
    (n >= 0).then_some(Dim::Known(n))
}

/// How many classes have names.
fn labels(c: &Context) -> usize {
    count(c, "classlabels_ints") + count(c, "classlabels_int64s") + count(c, "classlabels_strings")
}

/// The class of each row, and its scores.
fn classifier(c: &Context, scores: Option<usize>) -> Result<Vec<Fact>> {
    let scores = batch(c, scores.map(|n| Dim::Known(n as i64)));
    let named = if c.has("classlabels_strings") { ElementType::String } else { ElementType::Int64 };
    let rows = scores.shape.as_deref().and_then(|s| s.first().copied());
    Ok(vec![tensor(Some(named), rows.map(|n| vec![n])), scores])
}

/// One for each row of coefficients; one alone is written as two where there are two classes.
fn linear_scores(c: &Context) -> Option<usize> {
    match (count(c, "intercepts"), labels(c)) {
        (1, 2) => Some(2),
        (1.., 1) | (0, _) => None,
        (rows, _) => Some(rows),
    }
}

/// One for each class, or without probabilities one for each pair of classes; a pair alone has two.
fn vector_scores(c: &Context) -> Option<usize> {
    let classes = labels(c);
    let pairs = c.has("support_vectors") && !c.has("prob_a") && classes > 2;
    Some(if pairs { classes * (classes - 1) / 2 } else { classes }).filter(|&n| n > 1)
}

fn extract(c: &Context) -> Result<Vec<Fact>> {
    let indices = c.shape(1).map(|s| c.dims().product(s.iter().copied()));
    let shape = match (c.shape(0), indices) {
        (Some([_]), Some(n)) => Some(vec![Dim::Known(1), n]),
        (Some([outer @ .., _]), Some(n)) => Some([outer, &[n]].concat()),
        _ => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

fn vectorize(c: &Context) -> Result<Vec<Fact>> {
    let sum = |sizes: &[i64]| sizes.iter().try_fold(0i64, |n, &s| n.checked_add(s).filter(|_| s >= 0));
    Ok(vec![batch(c, c.ints("inputdimensions").and_then(sum).and_then(size))])
}

fn one_hot(c: &Context) -> Result<Vec<Fact>> {
    let categories = Dim::Known((count(c, "cats_int64s") + count(c, "cats_strings")) as i64);
    Ok(vec![tensor(Some(ElementType::Float), c.shape(0).map(|s| [s, &[categories]].concat()))])
}

/// Names become numbers, numbers become names.
fn renamed(c: &Context) -> Option<ElementType> {
    c.element(0).map(|e| if e == ElementType::String { ElementType::Int64 } else { ElementType::String })
}

fn encoded(c: &Context) -> Option<ElementType> {
    let lists = [
        ("values_floats", ElementType::Float),
        ("values_int64s", ElementType::Int64),
        ("values_strings", ElementType::String),
    ];
    let listed = lists.iter().find(|(name, _)| c.has(name)).map(|&(_, element)| element);
    let given = || attribute::find(c.op.attributes, "values_tensor")?.t.as_ref().map(|t| t.element_type());
    listed.or_else(given).or_else(|| c.has("classes_strings").then(|| renamed(c)).flatten())
}

fn cast_map(c: &Context) -> Result<Vec<Fact>> {
    let element = match c.string("cast_to") {
        Some("TO_STRING") => ElementType::String,
        Some("TO_INT64") => ElementType::Int64,
        _ => ElementType::Float,
    };
    Ok(vec![tensor(Some(element), None)])
}
