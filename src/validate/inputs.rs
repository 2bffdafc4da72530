//! Values for the inputs of a model: given ones, and random ones of the declared shapes.

use super::Options;
use super::tract::{self, Tensor, Tensors};
use crate::onnx::proto::{tensor_shape_proto, type_proto};
use crate::onnx::{ElementType, ModelProto, ValueInfoProto};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashSet};
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
pub fn bind(model: &ModelProto, options: &Options, attempt: Attempt) -> BTreeMap<String, i64> {
    let mut sizes = options.dims.clone();
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

/// A value for each input of a model, in the model's own types; bfloat16 and narrower ones as float64.
///
/// # Errors
/// An input that is no tensor, is too large, or is given in another element type.
pub fn make(model: &ModelProto, options: &Options, sizes: &BTreeMap<String, i64>, positive: bool) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for (name, given) in &options.inputs {
        tensors
            .insert(name.clone(), Arc::new(tract::tensor_or_double(given).with_context(|| format!("input '{name}'"))?));
    }
    for (i, input) in free_inputs(model).enumerate() {
        let name = input.name();
        let Some(element) = tract::element_type(input.r#type.as_ref()) else { bail!("input '{name}' is no tensor") };
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
        let values: Vec<f64> = (0..count).map(|_| draw(&mut random, element, positive)).collect();
        tensors.insert(name.to_owned(), Arc::new(tract::cast(tract::double(&dims, &values)?, element)?));
    }
    Ok(tensors)
}

/// Floating-point numbers of both signs.
///
/// # Errors
/// Dimensions of which there is no tensor.
pub fn random(dims: &[usize], seed: u64) -> Result<Tensor> {
    let mut random = fastrand::Rng::with_seed(seed);
    let values: Vec<f64> = (0..dims.iter().product()).map(|_| draw(&mut random, ElementType::Double, false)).collect();
    tract::double(dims, &values)
}

fn size(dim: &tensor_shape_proto::Dimension, sizes: &BTreeMap<String, i64>) -> usize {
    let size = match &dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(n)) => *n,
        Some(tensor_shape_proto::dimension::Value::DimParam(symbol)) => sizes.get(symbol).copied().unwrap_or(2),
        None => 2,
    };
    usize::try_from(size).unwrap_or(1)
}

/// Numbers stay away from zero, where many functions have a kink; integers are often indices, and small ones are valid.
fn draw(random: &mut fastrand::Rng, element: ElementType, positive: bool) -> f64 {
    if element.is_float() {
        let size = 0.05 + 0.95 * random.f64();
        if !positive && random.bool() { -size } else { size }
    } else {
        f64::from(random.u8(0..2))
    }
}
