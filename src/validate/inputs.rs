//! Values for the inputs of a model: given ones, and random ones of the declared shapes.

use super::tensors::{self, Tensor, Tensors};
use super::{Options, edit};
use crate::onnx::proto::{tensor_shape_proto, type_proto};
use crate::onnx::{ModelProto, ValueInfoProto, attribute, canonical_domain};
use crate::record::Record;
use crate::rules::newest;
use crate::rules::properties::{Axis, Counts};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// An input of more elements is not made up.
const MAX_ELEMENTS: usize = 1 << 26;

/// A way to make up inputs: what the symbols are bound to, and which numbers are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The first symbol, usually the batch.
    first: i64,
    /// The second; the third is one more than that where `distinct`.
    next: i64,
    distinct: bool,
    /// Whether all numbers are positive: for logarithms and roots.
    pub positive: bool,
}

/// The ways, in the order in which they are tried. Small distinct sizes come first: they tell axes apart.
pub const ATTEMPTS: &[Attempt] = &[
    Attempt { first: 2, next: 3, distinct: true, positive: false },
    Attempt { first: 2, next: 3, distinct: true, positive: true },
    Attempt { first: 1, next: 8, distinct: false, positive: false },
    Attempt { first: 2, next: 16, distinct: false, positive: false },
    Attempt { first: 1, next: 32, distinct: false, positive: false },
    Attempt { first: 1, next: 224, distinct: false, positive: false },
    Attempt { first: 1, next: 1, distinct: false, positive: false },
    Attempt { first: 3, next: 3, distinct: false, positive: false },
];

/// The sizes of the symbols of a model's inputs. The same symbol has the same size everywhere.
pub fn bind(model: &ModelProto, record: &Record, options: &Options, attempt: Attempt) -> BTreeMap<String, i64> {
    let mut sizes = options.dims.clone();
    for (symbol, size) in sizes_of_seeds(model, record) {
        sizes.entry(symbol).or_insert(size);
    }
    let mut count = 0;
    for input in free_inputs(model) {
        // What is given binds its symbols.
        let given = options.inputs.get(input.name());
        for (i, dim) in declared(input).into_iter().flatten().enumerate() {
            let Some(tensor_shape_proto::dimension::Value::DimParam(symbol)) = &dim.value else { continue };
            let size = given.and_then(|t| t.dims.get(i)).copied().unwrap_or(match count {
                0 => attempt.first,
                n if attempt.distinct => attempt.next + n - 1,
                _ => attempt.next,
            });
            sizes.entry(symbol.clone()).or_insert_with(|| {
                count += 1;
                size
            });
        }
    }
    sizes
}

/// The symbols of ys whose seeds are constants, with the sizes that those have.
fn sizes_of_seeds(model: &ModelProto, record: &Record) -> Vec<(String, i64)> {
    let Some(graph) = &model.graph else { return vec![] };
    let constants: HashMap<&str, &[i64]> = (graph.node.iter())
        .filter(|n| n.op_type() == "Constant")
        .filter_map(|n| Some((n.output.first()?.as_str(), &*attribute::get_tensor(&n.attribute, "value")?.dims)))
        .collect();
    let outputs: HashMap<&str, &ValueInfoProto> = graph.output.iter().map(|o| (o.name(), o)).collect();
    let mut sizes = Vec::new();
    for seed in &record.seeds {
        let dims = seed.seed.as_deref().and_then(|s| constants.get(s)).copied().unwrap_or_default();
        let declared = outputs.get(seed.y.as_str()).and_then(|y| declared(y)).unwrap_or_default();
        for (dim, &size) in declared.iter().zip(dims) {
            if let Some(tensor_shape_proto::dimension::Value::DimParam(symbol)) = &dim.value {
                sizes.push((symbol.clone(), size));
            }
        }
    }
    sizes
}

/// The inputs of a model that have no default.
pub fn free_inputs(model: &ModelProto) -> impl Iterator<Item = &ValueInfoProto> {
    let graph = model.graph.as_ref();
    let defaults: HashSet<&str> = graph.into_iter().flat_map(|g| &g.initializer).map(|t| t.name()).collect();
    graph.into_iter().flat_map(|g| &g.input).filter(move |i| !defaults.contains(i.name()))
}

fn declared(input: &ValueInfoProto) -> Option<&[tensor_shape_proto::Dimension]> {
    match input.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => t.shape.as_ref().map(|s| s.dim.as_slice()),
        _ => None,
    }
}

/// A value for each input of a model, in the model's own types.
///
/// # Errors
/// An input that is no tensor, is too large, or is given in another element type.
pub fn make(model: &ModelProto, options: &Options, sizes: &BTreeMap<String, i64>, positive: bool) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for (name, given) in &options.inputs {
        tensors.insert(name.clone(), Arc::new(tensors::tensor(given).with_context(|| format!("input '{name}'"))?));
    }
    let indices = indices(model);
    for (i, input) in free_inputs(model).enumerate() {
        let name = input.name();
        let Some(element) = edit::element_type(input.r#type.as_ref()) else { bail!("input '{name}' is no tensor") };
        if let Some(given) = options.inputs.get(name) {
            ensure!(
                given.element_type() == element,
                "input '{name}' is {}; what is given is {}",
                element.name(),
                given.element_type().name()
            );
            continue;
        }
        let dims: Vec<usize> = match declared(input) {
            Some(dims) => dims.iter().map(|d| size(d, sizes)).collect(),
            None => vec![2, 3],
        };
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_ELEMENTS);
        let count = count.with_context(|| format!("input '{name}' of dimensions {dims:?} is too large"))?;
        let mut random = fastrand::Rng::with_seed(options.seed.wrapping_add(i as u64));
        let index = indices.get(name);
        let values: Vec<f64> = (0..count)
            .map(|place| match index {
                _ if element.is_float() => draw(&mut random, positive),
                Some(Index { apart: Some(axis), .. }) => coordinate(place, &dims, *axis) as f64,
                Some(Index { bound, .. }) if *bound > 1 => random.i64(0..*bound) as f64,
                _ => 1.0,
            })
            .collect();
        tensors.insert(name.to_owned(), Arc::new(Tensor::from_values(element, &dims, &values)?));
    }
    Ok(tensors)
}

/// Floating-point numbers of both signs.
///
/// # Errors
/// Dimensions of which there is no tensor.
pub fn random(dims: &[usize], seed: u64) -> Result<Tensor> {
    let mut random = fastrand::Rng::with_seed(seed);
    let values: Vec<f64> = (0..dims.iter().product()).map(|_| draw(&mut random, false)).collect();
    tensors::double(dims, &values)
}

fn size(dim: &tensor_shape_proto::Dimension, sizes: &BTreeMap<String, i64>) -> usize {
    let size = match &dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(n)) => *n,
        Some(tensor_shape_proto::dimension::Value::DimParam(symbol)) => sizes.get(symbol).copied().unwrap_or(2),
        None => 2,
    };
    usize::try_from(size).unwrap_or(1)
}

/// What is known of an integer input that is an index.
struct Index {
    /// How many values it has: as many as the table that it is looked up in, or two.
    bound: i64,
    /// The axis along which it must not repeat itself: two values that are written in one place have no order.
    apart: Option<i64>,
}

/// The integer inputs that are indices. What is no index is 1 everywhere: a mask that hides all leaves nothing to differentiate.
fn indices(model: &ModelProto) -> HashMap<&str, Index> {
    let mut indices: HashMap<&str, Index> = HashMap::new();
    let Some(graph) = &model.graph else { return indices };
    let tables: HashMap<&str, &[i64]> = graph.initializer.iter().map(|t| (t.name(), t.dims.as_slice())).collect();
    let mut source: HashMap<&str, &str> = graph.input.iter().map(|i| (i.name(), i.name())).collect();
    for node in &graph.node {
        let input = |i: usize| node.input.get(i).and_then(|name| source.get(name.as_str()).copied());
        let Some(rule) = newest(canonical_domain(node.domain()), node.op_type()) else { continue };
        for index in rule.indices {
            let (Some(name), Counts::Along(table, axis)) = (input(index.input), index.counts) else { continue };
            let axis = match axis {
                Axis::At(axis) => axis,
                Axis::Named(attribute, default) => attribute::get_int(&node.attribute, attribute).unwrap_or(default),
            };
            let table = node.input.get(table).and_then(|t| tables.get(t.as_str()));
            let size = table.and_then(|dims| {
                let axis = if axis < 0 { axis + dims.len() as i64 } else { axis };
                dims.get(usize::try_from(axis).ok()?).copied()
            });
            let known = indices.entry(name).or_insert(Index { bound: i64::MAX, apart: None });
            known.bound = known.bound.min(size.unwrap_or(2));
            if index.written {
                known.apart = Some(axis);
            }
        }
        if let (true, Some(x), Some(y)) = (rule.keeps_all(), input(0), node.output.first()) {
            source.insert(y, x);
        }
    }
    indices
}

/// The coordinate along an axis of a place in row-major order.
fn coordinate(place: usize, dims: &[usize], axis: i64) -> usize {
    let axis = if axis < 0 { axis + dims.len() as i64 } else { axis };
    let axis = usize::try_from(axis).unwrap_or(0).min(dims.len().saturating_sub(1));
    let inner: usize = dims.iter().skip(axis + 1).product();
    place / inner.max(1) % dims.get(axis).copied().unwrap_or(1).max(1)
}

/// Numbers stay away from zero, where many functions have a kink.
fn draw(random: &mut fastrand::Rng, positive: bool) -> f64 {
    let size = 0.05 + 0.95 * random.f64();
    if !positive && random.bool() { -size } else { size }
}
