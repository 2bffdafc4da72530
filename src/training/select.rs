//! Which tensors of a model are its weights, and which of them are trained.

use super::modes::Constants;
use crate::backward::{Selection, nearest};
use crate::graph::{Graph, Loaded, Producer, ValueId};
use crate::onnx::{ElementType, GraphProto, ModelProto, NodeProto, TensorProto, attribute, canonical_domain};
use crate::rules::{self, Rule};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Where a weight lies in the model's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It is an initializer.
    Initializer,
    /// It is the value of a Constant node.
    Constant,
    /// It is what a DequantizeLinear node makes of integers that are constant.
    Dequantized,
    /// It is one of the two matrices whose product is added to a weight; the weight's name.
    Lora {
        /// The weight that the product is added to.
        of: String,
    },
    /// It is a statistic of BatchNormalization, which is not trained but follows the data.
    Statistic,
}

/// A tensor of constants of floating-point numbers.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Its name in the model.
    pub name: String,
    /// Where it lies.
    pub source: Source,
    /// Its value.
    pub value: TensorProto,
    /// The number of the layer that it belongs to, in the order of the nodes.
    pub layer: usize,
    /// Whether it stands where weights stand, and not where constants do.
    pub usual: bool,
    /// The matrix products and convolutions that take it.
    pub products: Vec<Product>,
}

/// A matrix product or convolution that takes a weight.
#[derive(Clone, Debug)]
pub struct Product {
    /// The operator.
    pub op: String,
    /// Whether the weight is the second factor.
    pub second: bool,
    /// Whether it transposes the weight.
    pub transposes: bool,
}

/// Every weight that a path leads from to one of `ys`, in the order in which nodes use them.
pub fn weights(model: &ModelProto, loaded: &Loaded, ys: &[ValueId]) -> Vec<Weight> {
    let Some(graph) = &model.graph else { return vec![] };
    let constants: Constants<'_> = graph.constants().collect();
    let producers: HashMap<&str, &NodeProto> =
        graph.node.iter().flat_map(|n| n.output.iter().map(move |o| (o.as_str(), n))).collect();
    let mut found: Vec<Weight> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let (mut layer, mut owner) = (0, None);
    let uses = graph.node.iter().enumerate().flat_map(|(index, node)| {
        let mut inner = Vec::new();
        node.bodies().for_each(|body| nodes_of(body, &mut inner));
        std::iter::once((index, node, false)).chain(inner.into_iter().map(move |n| (index, n, true)))
    });
    for (index, node, inner) in uses {
        for (i, input) in node.input.iter().enumerate() {
            let Some((name, source, value)) = origin(input, &constants, &producers) else { continue };
            let op = node.op_type();
            if !inner && (passes(node) || op == "DequantizeLinear") {
                continue;
            }
            let rule = row(node);
            let place = rule.is_some_and(|r| r.weights.contains(&i));
            let product = place && matches!(op, "MatMul" | "Gemm" | "Conv") && i != 2;
            let known = places.get(&name).copied();
            if known.is_none() && rule.is_some_and(|r| r.layer) && owner != Some(index) {
                layer += 1;
                owner = Some(index);
            }
            let at = known.unwrap_or_else(|| {
                let usual = false;
                found.push(Weight { name: name.clone(), source, value, layer, usual, products: Vec::new() });
                places.insert(name, found.len() - 1);
                found.len() - 1
            });
            if let Some(weight) = found.get_mut(at) {
                weight.usual |= place && weight.value.element_count().is_some_and(|n| n > 1);
                if product {
                    let transposes = attribute::get_int(&node.attribute, if i == 0 { "transA" } else { "transB" });
                    let transposes = transposes.unwrap_or(0) != 0;
                    weight.products.push(Product { op: op.to_owned(), second: i == 1, transposes });
                }
            }
        }
    }
    let selection = Selection::new(loaded);
    let ids: Vec<ValueId> = found.iter().filter_map(|w| loaded.names.get(w.name.as_str()).copied()).collect();
    let reaching: HashSet<String> = selection.reaching(&ids, ys).into_iter().map(|v| selection.name(v)).collect();
    found.retain(|w| reaching.contains(&w.name));
    found
}

fn nodes_of<'a>(body: &'a GraphProto, found: &mut Vec<&'a NodeProto>) {
    for node in &body.node {
        found.push(node);
        node.bodies().for_each(|b| nodes_of(b, found));
    }
}

/// The tensors of constants that lie inside bodies of control flow, where no step can feed them.
pub fn inside_bodies(model: &ModelProto) -> Vec<String> {
    fn collect(body: &GraphProto, names: &mut Vec<String>) {
        let large = |t: &TensorProto| t.element_type().is_float() && t.element_count().is_some_and(|n| n > 1);
        names.extend(body.initializer.iter().filter(|t| large(t)).map(|t| t.name().to_owned()));
        for node in &body.node {
            let value = node.constant_value().ok().flatten();
            names.extend(value.filter(|t| large(t)).and(node.output.first()).cloned());
            node.bodies().for_each(|b| collect(b, names));
        }
    }
    let mut names = Vec::new();
    model.graph.iter().flat_map(|g| &g.node).flat_map(NodeProto::bodies).for_each(|body| collect(body, &mut names));
    names
}

/// Names in quotes, no more than five of them.
pub fn listed(names: &[String]) -> String {
    let first: Vec<String> = names.iter().take(5).map(|n| format!("'{n}'")).collect();
    let more = names.len().saturating_sub(first.len());
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// The row of a node's operator.
fn row(node: &NodeProto) -> Option<&'static Rule> {
    rules::newest(canonical_domain(node.domain()), node.op_type())
}

/// Whether a node hands a weight on.
fn passes(node: &NodeProto) -> bool {
    row(node).is_some_and(Rule::keeps_all)
}

/// The weight behind an input, through operators that hand it on.
fn origin(
    input: &str,
    constants: &Constants<'_>,
    producers: &HashMap<&str, &NodeProto>,
) -> Option<(String, Source, TensorProto)> {
    let mut name = input;
    // A chain is no longer than the graph has nodes.
    for _ in 0..=producers.len() {
        let producer = producers.get(name);
        if let Some(value) = constants.get(name) {
            let source = if producer.is_some() { Source::Constant } else { Source::Initializer };
            return value.element_type().is_float().then(|| (name.to_owned(), source, value.clone().into_owned()));
        }
        let node = producer?;
        match node.op_type() {
            "DequantizeLinear" => {
                let value = dequantized(node, constants)?;
                return Some((name.to_owned(), Source::Dequantized, value));
            }
            _ if passes(node) => name = node.input.first()?,
            _ => return None,
        }
    }
    None
}

/// Scale and zero point for each element of a quantized weight.
fn scales(node: &NodeProto, constants: &Constants<'_>) -> Option<(TensorProto, ElementType, Vec<f64>, Vec<i64>)> {
    let x = constants.get(node.input.first()?.as_str())?;
    let scale = constants.get(node.input.get(1)?.as_str())?;
    let scales = scale.floats().ok()?;
    let zeros = match node.input.get(2).filter(|z| !z.is_empty()) {
        Some(z) => constants.get(z.as_str())?.integers().ok()?,
        None => vec![0; scales.len()],
    };
    let rank = x.dims.len() as i64;
    let axis = attribute::get_int(&node.attribute, "axis").unwrap_or(1);
    let axis = if axis < 0 { axis + rank } else { axis };
    let blocked = attribute::get_int(&node.attribute, "block_size").unwrap_or(0) != 0;
    if blocked || zeros.len() != scales.len() || scales.is_empty() {
        return None;
    }
    let count = x.element_count()?;
    let inner: usize = match scales.len() {
        1 => count.max(1),
        _ => {
            let axis = usize::try_from(axis).ok()?;
            let size = usize::try_from(*x.dims.get(axis)?).ok()?;
            if size != scales.len() {
                return None;
            }
            x.dims.get(axis + 1..)?.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))?
        }
    };
    let of = |i: usize| (i / inner.max(1)) % scales.len();
    let each_scale = (0..count).map(|i| scales.get(of(i)).copied().unwrap_or(1.0)).collect();
    let each_zero = (0..count).map(|i| zeros.get(of(i)).copied().unwrap_or(0)).collect();
    Some((x.clone().into_owned(), scale.element_type(), each_scale, each_zero))
}

fn dequantized(node: &NodeProto, constants: &Constants<'_>) -> Option<TensorProto> {
    let (x, element, scales, zeros) = scales(node, constants)?;
    let values: Vec<f64> =
        x.integers().ok()?.iter().zip(scales).zip(zeros).map(|((&q, s), z)| (q - z) as f64 * s).collect();
    TensorProto::from_floats(element, &x.dims, &values).ok()
}

/// The integers nearest to `values`, with the scales that the DequantizeLinear node has.
pub fn quantized(node: &NodeProto, constants: &Constants<'_>, values: &[f64]) -> Option<TensorProto> {
    let (x, _, scales, zeros) = scales(node, constants)?;
    let bits = x.element_type().bits().filter(|&b| b >= 8)? as u32;
    let (low, high) = match x.element_type().is_signed_integer() {
        true => (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1),
        false => (0, (1i64 << bits.min(62)) - 1),
    };
    let round =
        |((&v, s), z): ((&f64, f64), i64)| ((v / s).round_ties_even() as i64).saturating_add(z).clamp(low, high);
    let ints: Vec<i64> = values.iter().zip(scales).zip(zeros).map(round).collect();
    let mut tensor = TensorProto::from_ints(x.element_type(), &x.dims, &ints).ok()?;
    tensor.name = x.name.clone();
    Some(tensor)
}

/// What is trained, as it is asked for.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Patterns of names; all weights where there are none.
    pub train: Vec<String>,
    /// Patterns of names that are not trained.
    pub freeze: Vec<String>,
    /// How many layers, counted from the last.
    pub last: Option<usize>,
}

impl Choice {
    /// Those of the weights that are trained, and what the report says of it.
    ///
    /// # Errors
    /// Patterns that match no weight; nothing is left.
    pub fn select(&self, weights: Vec<Weight>) -> Result<(Vec<Weight>, Vec<String>)> {
        for (option, patterns) in [("--train", &self.train), ("--freeze", &self.freeze)] {
            for pattern in patterns {
                if !weights.iter().any(|w| is_match(pattern, &w.name)) {
                    let near = nearest(pattern, weights.iter().map(|w| w.name.as_str()));
                    let hint = near.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
                    bail!("{option} '{pattern}' matches no weight that the loss depends on{hint}");
                }
            }
        }
        let layers: HashSet<usize> = weights.iter().filter(|w| w.usual).map(|w| w.layer).collect();
        let mut layers: Vec<usize> = layers.into_iter().collect();
        layers.sort_unstable();
        let first = self.last.map(|n| layers.get(layers.len().saturating_sub(n)).copied().unwrap_or(usize::MAX));
        let total = weights.len();
        let (mut chosen, mut constant) = (Vec::new(), Vec::new());
        for weight in weights {
            let named = self.train.iter().any(|p| is_match(p, &weight.name));
            let wanted = if self.train.is_empty() { weight.usual } else { named };
            if self.train.is_empty() && !weight.usual {
                constant.push(weight.name.clone());
            }
            let frozen = self.freeze.iter().any(|p| is_match(p, &weight.name));
            if wanted && !frozen && first.is_none_or(|f| weight.layer >= f) {
                chosen.push(weight);
            }
        }
        ensure!(total > 0, "there is nothing to train: the loss depends on no constant of floating-point numbers");
        ensure!(
            !chosen.is_empty(),
            "nothing is left to train: the loss depends on {total} weights, none of them is chosen"
        );
        let mut decisions = vec![format!("{} of {total} weights are trained", chosen.len())];
        if !constant.is_empty() {
            decisions.push(format!(
                "{}: constants by their place, not weights, so not trained; --train names them",
                listed(&constant)
            ));
        }
        Ok((chosen, decisions))
    }
}

/// Whether a name is, or matches, a pattern of `*` and `?`.
pub fn is_match(pattern: &str, name: &str) -> bool {
    pattern == name || crate::backward::matches(pattern, name)
}

/// The tensors of the main graph that are given out.
pub fn outputs(loaded: &Loaded) -> Vec<ValueId> {
    loaded.graph.scope(Graph::MAIN).outputs.clone()
}

/// Whether a tensor is constant: an initializer that is no input.
pub fn is_initializer(loaded: &Loaded, id: ValueId) -> bool {
    loaded.graph.value(id).producer == Producer::Initializer
}
