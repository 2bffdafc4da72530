//! A model while it is being made trainable, as protobuf: names, new nodes, weights that become inputs.

use crate::graph::{self, Dims, Fact};
use crate::onnx::{ElementType, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute};
use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};

/// A model that is being changed.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The model.
    pub model: ModelProto,
    taken: HashSet<String>,
    /// Nodes that stand before all others.
    first: Vec<NodeProto>,
    behind: HashMap<String, Vec<NodeProto>>,
    removed: HashSet<String>,
    redirected: HashMap<String, String>,
    inputs: Vec<ValueInfoProto>,
}

impl Draft {
    /// A draft of a model, all of whose weights are in memory.
    pub fn new(model: ModelProto) -> Self {
        let mut taken = HashSet::new();
        if let Some(graph) = &model.graph {
            names(graph, &mut taken);
        }
        Draft { model, taken, ..Draft::default() }
    }

    /// The main graph.
    ///
    /// # Errors
    /// The model holds none.
    pub fn graph(&mut self) -> Result<&mut GraphProto> {
        self.model.graph.as_mut().context("the model holds no graph")
    }

    /// A name that nothing in the model has yet.
    pub fn unique(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        let mut count = 0;
        while !self.taken.insert(name.clone()) {
            count += 1;
            name = format!("{base}_{count}");
        }
        name
    }

    /// A new graph input.
    pub fn input(&mut self, name: &str, element: ElementType, dims: &[i64]) {
        let shape = dims.iter().map(|&d| graph::Dim::Known(d)).collect();
        let fact = Fact::tensor(Some(element), Some(shape));
        let empty = graph::Graph::new([], crate::rules::OPERATORS);
        let info = graph::write::value_info(&empty, name, &fact);
        self.inputs.push(info);
    }

    /// Takes out the initializer of that name and its entry among the inputs, or the node that computes it.
    pub fn remove(&mut self, name: &str) {
        self.removed.insert(name.to_owned());
    }

    /// A node that stands before all nodes of the model; its output's name is made unique and returned.
    pub fn first(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<crate::onnx::AttributeProto>,
    ) -> String {
        let output = self.unique(output);
        self.first.push(node(op, inputs, &output, attributes));
        output
    }

    /// A tensor that stands before all nodes of the model.
    pub fn constant(&mut self, name: &str, value: TensorProto) -> String {
        self.first("Constant", &[], name, vec![attribute::tensor("value", value)])
    }

    /// Where nodes of the model take `old`, they take `new`; those behind it, and those before all others, do not.
    pub fn redirect(&mut self, old: &str, new: &str) {
        self.redirected.insert(old.to_owned(), new.to_owned());
    }

    /// Nodes that stand directly behind the one that computes `name`; before all where it is an input or initializer.
    pub fn behind(&mut self, name: &str, nodes: Vec<NodeProto>) {
        self.behind.entry(name.to_owned()).or_default().extend(nodes);
    }

    /// The model with all that has been asked for: one walk over it.
    ///
    /// # Errors
    /// The model holds no graph.
    pub fn finish(mut self) -> Result<ModelProto> {
        let (removed, redirected) = (std::mem::take(&mut self.removed), std::mem::take(&mut self.redirected));
        let (first, mut behind) = (std::mem::take(&mut self.first), std::mem::take(&mut self.behind));
        let new = std::mem::take(&mut self.inputs);
        let graph = self.graph()?;
        graph.initializer.retain(|t| !removed.contains(t.name()));
        graph.input.retain(|i| !removed.contains(i.name()));
        graph.input.extend(new);
        graph.node.retain(|n| !n.output.iter().any(|o| removed.contains(o)));
        redirect(graph, &redirected);
        let mut nodes = first;
        let at_first = graph.node.iter().flat_map(|n| &n.output).collect::<HashSet<_>>();
        let mut early: Vec<String> = behind.keys().filter(|n| !at_first.contains(n)).cloned().collect();
        early.sort_unstable();
        nodes.extend(early.iter().filter_map(|n| behind.remove(n)).flatten());
        for node in std::mem::take(&mut graph.node) {
            let follow: Vec<NodeProto> = node.output.iter().filter_map(|o| behind.remove(o)).flatten().collect();
            nodes.push(node);
            nodes.extend(follow);
        }
        graph.node = nodes;
        Ok(self.model)
    }
}

/// A node of the standard's, called as its output.
pub fn node(op: &str, inputs: &[&str], output: &str, attributes: Vec<crate::onnx::AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(output.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: attributes,
        ..NodeProto::default()
    }
}

/// Bodies too: a name means the same there as outside.
fn redirect(graph: &mut GraphProto, names: &HashMap<String, String>) {
    if names.is_empty() {
        return;
    }
    for node in &mut graph.node {
        for input in &mut node.input {
            if let Some(new) = names.get(input) {
                input.clone_from(new);
            }
        }
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|body| redirect(body, names));
        }
    }
}

fn names(graph: &GraphProto, taken: &mut HashSet<String>) {
    taken.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
    taken.extend(graph.input.iter().chain(&graph.output).map(|v| v.name().to_owned()));
    for node in &graph.node {
        taken.extend(node.output.iter().chain(&node.name).cloned());
        for attribute in &node.attribute {
            attribute.g.iter().chain(&attribute.graphs).for_each(|body| names(body, taken));
        }
    }
}

/// The constants of the main graph by name: initializers, and the outputs of Constant nodes.
pub fn constants(model: &ModelProto) -> HashMap<String, TensorProto> {
    let mut found = HashMap::new();
    let Some(graph) = &model.graph else { return found };
    for node in graph.node.iter().filter(|n| n.op_type() == "Constant") {
        let Some(output) = node.output.first() else { continue };
        let floats = |v: &[f32], dims: &[i64]| TensorProto::from_float32(dims, v);
        let value = attribute::get_tensor(&node.attribute, "value").cloned();
        let value = value.or_else(|| Some(floats(&[attribute::get_float(&node.attribute, "value_float")?], &[])));
        let list =
            || attribute::find(&node.attribute, "value_floats").map(|a| floats(&a.floats, &[a.floats.len() as i64]));
        if let Some(value) = value.or_else(list) {
            found.insert(output.clone(), value);
        }
    }
    found.extend(graph.initializer.iter().map(|t| (t.name().to_owned(), t.clone())));
    found
}

/// The sizes of a declared tensor that are numbers; others are -1.
pub fn declared_dims(info: &crate::onnx::ValueInfoProto) -> Option<(ElementType, Vec<i64>)> {
    let fact = graph::fact_of_type(info.r#type.as_ref(), &Dims::default());
    let dims = fact.shape?.iter().map(|d| d.known().unwrap_or(-1)).collect();
    Some((fact.element?, dims))
}
