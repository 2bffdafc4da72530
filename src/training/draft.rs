//! A model while it is being made trainable, as protobuf: names, new nodes, weights that become inputs.

use crate::graph::{self, Dims, Fact};
use crate::onnx::{ElementType, GraphProto, ModelProto, NodeProto, TensorProto, attribute};
use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};

/// A model that is being changed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The model.
    pub model: ModelProto,
    taken: HashSet<String>,
    /// Nodes that stand before all others.
    first: Vec<NodeProto>,
}

impl Draft {
    /// A draft of a model, all of whose weights are in memory.
    pub fn new(model: ModelProto) -> Self {
        let mut taken = HashSet::new();
        if let Some(graph) = &model.graph {
            names(graph, &mut taken);
        }
        Draft { model, taken, first: Vec::new() }
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
    ///
    /// # Errors
    /// The model holds no graph.
    pub fn input(&mut self, name: &str, element: ElementType, dims: &[i64]) -> Result<()> {
        let shape = dims.iter().map(|&d| graph::Dim::Known(d)).collect();
        let fact = Fact::tensor(Some(element), Some(shape));
        let empty = graph::Graph::new([]);
        let info = graph::write::value_info(&empty, name, &fact);
        self.graph()?.input.push(info);
        Ok(())
    }

    /// Takes an initializer out, and its entry among the inputs.
    ///
    /// # Errors
    /// The model holds no graph.
    pub fn remove_initializer(&mut self, name: &str) -> Result<()> {
        let graph = self.graph()?;
        graph.initializer.retain(|t| t.name() != name);
        graph.input.retain(|i| i.name() != name);
        Ok(())
    }

    /// Takes out the node that computes `output`.
    ///
    /// # Errors
    /// The model holds no graph.
    pub fn remove_node(&mut self, output: &str) -> Result<()> {
        self.graph()?.node.retain(|n| !n.output.iter().any(|o| o == output));
        Ok(())
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

    /// Where nodes of the model take `old`, they take `new`; bodies too, where the name cannot mean anything else.
    ///
    /// # Errors
    /// The model holds no graph.
    pub fn redirect(&mut self, old: &str, new: &str) -> Result<()> {
        redirect(self.graph()?, old, new);
        Ok(())
    }

    /// The model with all new nodes in it.
    ///
    /// # Errors
    /// The model holds no graph.
    pub fn finish(mut self) -> Result<ModelProto> {
        let first = std::mem::take(&mut self.first);
        self.graph()?.node.splice(0..0, first);
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

fn redirect(graph: &mut GraphProto, old: &str, new: &str) {
    for node in &mut graph.node {
        node.input.iter_mut().filter(|i| *i == old).for_each(|i| *i = new.to_owned());
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|body| redirect(body, old, new));
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

/// Drops nodes, initializers and inputs that no output needs.
///
/// # Errors
/// The model holds no graph.
pub fn prune(model: &mut ModelProto) -> Result<()> {
    let graph = model.graph.as_mut().context("the model holds no graph")?;
    let mut needed: HashSet<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        if node.output.iter().any(|o| needed.contains(o)) {
            needed.extend(node.input.iter().filter(|i| !i.is_empty()).cloned());
            node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).for_each(|b| b.used_names(&mut needed));
            nodes.push(node);
        }
    }
    nodes.reverse();
    graph.node = nodes;
    graph.initializer.retain(|t| needed.contains(t.name()));
    graph.sparse_initializer.retain(|t| t.values.as_ref().is_some_and(|v| needed.contains(v.name())));
    graph.input.retain(|i| needed.contains(i.name()));
    let produced: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    graph.value_info.retain(|v| produced.contains(v.name()));
    Ok(())
}

/// The constants of the main graph by name: initializers, and the outputs of Constant nodes.
pub fn constants(model: &ModelProto) -> HashMap<String, TensorProto> {
    let mut found = HashMap::new();
    let Some(graph) = &model.graph else { return found };
    for node in graph.node.iter().filter(|n| n.op_type() == "Constant") {
        let Some(output) = node.output.first() else { continue };
        let floats = |v: &[f32], dims: &[i64]| {
            let v: Vec<f64> = v.iter().map(|&v| v.into()).collect();
            TensorProto::from_floats(ElementType::Float, dims, &v)
        };
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
