//! What a weight is: which constants of a model are learned, and which are constants of its formulas.
//!
//! Files do not say it: a weight, a mask, the frequencies of positions and the 0.5 of a formula are all tensors that do
//! not change. The answer here follows from what the rows of operators say of their inputs
//! ([`crate::rules::Rule::weights`]) and from where a tensor stands, through all operators that only move elements.
//! `inspect`, `grad --params` and `trainable` ask nobody else; docs/weights.md says the same in words.

mod filters;
mod flow;
mod judge;
mod look;
mod quantized;
#[cfg(test)]
mod tests;

pub use quantized::{Grid, Quantized};

use crate::expr::is_gradient;
use crate::graph::{Graph, IdSet, Loaded, ValueId};
use crate::onnx::{ElementType, ModelProto, NodeProto, TensorProto};
use crate::record::Record;
use flow::{Flow, Operand};
use judge::Asks;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;

/// Where a weight lies in the model's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
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

/// What a constant tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// It is learned.
    Weight,
    /// It is a weight, and inside a body of control flow, where it has no name that anything outside could use.
    Inside,
    /// It holds the integers of a quantized weight that no DequantizeLinear node makes real numbers of.
    Integers,
    /// It is a statistic of data.
    Statistic,
    /// It is a constant: of a formula, of positions, a mask.
    Constant,
}

/// A constant tensor, and what it is.
#[derive(Clone, Debug)]
pub struct Tensor<'m> {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub source: Source,
    /// What it is.
    pub kind: Kind,
    /// Why it is that.
    pub why: String,
    /// The element type of its numbers.
    pub element: ElementType,
    /// Its value; of a tensor that is [`Source::Dequantized`] that of its integers.
    pub value: Cow<'m, TensorProto>,
    /// The number of layers behind its own.
    pub layer: usize,
    /// Where it stands: the node that says what it is.
    pub place: Option<Place>,
    /// The first layer that takes it: the operator, the input, and the attributes of its node.
    pub product: Option<Product>,
}

/// An input of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The node, by its name or its first output's.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// The number of the input.
    pub input: usize,
}

/// What a weight is in the layer that takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A matrix that multiplies rows.
    Matrix,
    /// The kernel of a convolution.
    Kernel,
    /// Something else.
    Other,
}

/// A matrix product, convolution or other layer that takes a weight.
#[derive(Clone, Debug)]
pub struct Product {
    /// What the weight is in it.
    pub form: Form,
    /// Whether the weight is the second factor.
    pub second: bool,
    /// Whether it transposes the weight.
    pub transposes: bool,
}

/// Every constant tensor of floating-point numbers, or of integers that are quantized numbers, from which a path leads
/// to one of `ys`, in the order in which nodes use them. `loaded` is the model, which calls no functions any more.
pub fn tensors<'m>(model: &'m ModelProto, loaded: &Loaded, ys: &[ValueId]) -> Vec<Tensor<'m>> {
    let Some(proto) = &model.graph else { return vec![] };
    let graph = &loaded.graph;
    let sources = graph.sources(ys);
    let mut found: Vec<Candidate<'m>> = Vec::new();
    let constants: HashMap<&str, Cow<'m, TensorProto>> = proto.constants().collect();
    let computed: HashMap<&str, &NodeProto> =
        proto.node.iter().filter_map(|n| Some((n.output.first()?.as_str(), n))).collect();
    for (name, value) in proto.constants() {
        let source = if computed.contains_key(name) { Source::Constant } else { Source::Initializer };
        found.extend(loaded.names.get(name).map(|&id| Candidate { id, name: name.to_owned(), source, value }));
    }
    for node in &proto.node {
        let (Some(y), Some(quantized)) = (node.output.first(), Quantized::of(node, &constants)) else { continue };
        let Some(&id) = loaded.names.get(y.as_str()) else { continue };
        found.push(Candidate { id, name: y.clone(), source: Source::Dequantized, value: quantized.integers });
    }
    let inner = inner_constants(graph);
    let values = found.iter().map(|c| (c.id, &*c.value)).collect();
    let flow = Flow::new(graph, values, &inner);
    let written = written(model);
    let stands: IdSet<ValueId> = found.iter().map(|c| c.id).collect();
    let asks = Asks { graph, flow: &flow, written: &written, stands: &stands };
    let mut tensors: Vec<(Option<Operand>, Tensor<'m>)> = Vec::new();
    tensors.extend(found.iter().filter(|c| sources.contains(&c.id)).filter_map(|c| asks.tensor(c)));
    tensors.extend(inner.into_iter().filter_map(|id| asks.inner(id)));
    tensors.sort_by_key(|(first, _)| *first);
    tensors.into_iter().map(|(_, tensor)| tensor).collect()
}

/// Names in quotes, no more than five of them.
pub fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let first: Vec<String> = names.iter().take(5).map(|n| format!("'{}'", n.as_ref())).collect();
    let more = names.len().saturating_sub(first.len());
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// What could be a weight.
struct Candidate<'m> {
    id: ValueId,
    name: String,
    source: Source,
    value: Cow<'m, TensorProto>,
}

/// The scopes of the names that earlier calls of `grad` have written.
fn written(model: &ModelProto) -> Vec<String> {
    let records = Record::all(model).unwrap_or_default();
    records.into_iter().filter(|r| !r.name.is_empty()).map(|r| format!("{}/", r.name)).collect()
}

/// The constants of the bodies of control flow.
fn inner_constants(graph: &Graph) -> Vec<ValueId> {
    let mut found = Vec::new();
    let mut open: Vec<_> = graph.scope(Graph::MAIN).nodes.clone();
    while let Some(id) = open.pop() {
        for &(_, body) in &graph.node(id).bodies {
            for &inner in &graph.scope(body).nodes {
                open.push(inner);
                let node = graph.node(inner);
                if node.is_constant() {
                    found.extend(node.outputs.iter().flatten());
                }
            }
        }
    }
    found
}

/// What to say where no weight is found: what was looked at, and what may be done about it.
pub fn none_found<'t>(model: &ModelProto, tensors: impl Iterator<Item = (&'t str, Kind)> + Clone) -> String {
    let mut looked = Vec::new();
    for (kind, what) in [
        (Kind::Inside, "inside bodies of control flow (branches, loops), from which trainable takes them out"),
        (Kind::Integers, "integers of quantized weights"),
        (Kind::Constant, "constants by their place, not weights"),
        (Kind::Statistic, "statistics of BatchNormalization"),
    ] {
        let names: Vec<&str> = tensors.clone().filter(|(_, k)| *k == kind).map(|(name, _)| name).collect();
        if !names.is_empty() {
            looked.push(format!("{}: {what}", listed(&names)));
        }
    }
    if looked.is_empty() {
        looked.push("it depends on no initializer and on no Constant node of floating-point numbers".to_owned());
    }
    let mut nodes = model.graph.iter().flat_map(|g| &g.node);
    let numbers = |n: &&NodeProto| n.domain() == "ai.onnx.ml" && n.attribute.iter().any(|a| a.floats.len() > 1);
    if let Some(node) = nodes.clone().find(numbers) {
        let name = Some(node.name()).filter(|name| !name.is_empty());
        let name = name.or(node.output.first().map(String::as_str)).unwrap_or_default();
        looked.push(format!(
            "node '{name}' ({}) holds its numbers as attributes, which are no tensors: a linear model is trained where it is written as a \
             MatMul and an Add",
            node.op_type()
        ));
    }
    if nodes.any(is_gradient) {
        looked.push("a Gradient node hides what it differentiates: write it out first (grad --lower)".to_owned());
    }
    looked.join("; ")
}
