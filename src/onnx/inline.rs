//! Model-local functions: replaces calls of them by their bodies.
//!
//! A function is an operator that the model defines itself, out of nodes ([ONNX IR, Functions][spec]). Its body sees
//! its own inputs and attributes only; in the place of a call, its names get the call's name in front.
//!
//! [spec]: https://onnx.ai/onnx/repo-docs/IR.html#functions

use super::proto::{
    NodeDeviceConfigurationProto, OperatorSetIdProto, TypeProto, tensor_shape_proto::dimension::Value as Dimension,
    type_proto::Value as Type,
};
use super::{AttributeProto, FunctionProto, GraphProto, ModelProto, Names, NodeProto, TensorProto, canonical_domain};
use crate::error::{Error, OrKind};
use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use std::collections::HashMap;

/// Calls in bodies, and graphs in nodes, nest no deeper.
const DEEPEST: usize = 64;
/// What inlining may add, in bytes as they are written and a flat rate a node, beside a multiple of the model's own
/// size: bodies that call others twice double each time, and what one call or body carries is carried by every node.
const LARGEST: usize = if cfg!(test) { 1 << 20 } else { 1 << 26 };
const GROWTH: usize = 8;
const NODE: usize = 256;
/// Names get no longer prefix.
const LONGEST_PREFIX: usize = 256;

/// Replaces the wanted calls of model-local functions by the functions' bodies, in the main graph and in its subgraphs.
/// What the bodies call is inlined with them: nothing of a call is left.
///
/// Nodes and values of a body are called `<call>/<name>`, made unique. Nodes without metadata or device configurations
/// get those of the call. The model imports the domains that the bodies use; its functions stay.
///
/// # Errors
/// A function that calls itself; calls with more inputs or outputs than the function has; a body that does not compute
/// its outputs, uses names that it does not define, or operators of a version that the model does not use; more nodes
/// than fit.
pub fn inline_functions(model: &ModelProto, wanted: &dyn Fn(&NodeProto) -> bool) -> Result<ModelProto> {
    let mut result = model.clone();
    let Some(graph) = result.graph.as_mut() else { return Ok(result) };
    let mut functions = HashMap::new();
    for function in &model.functions {
        functions
            .entry((canonical_domain(function.domain()), function.name(), function.overload()))
            .or_insert(function);
    }
    let mut inliner = Inliner { functions, wanted, calls: Vec::new(), ..Inliner::new(&model.opset_import) };
    if !inliner.has_calls(graph) {
        return Ok(result);
    }
    // Elements of weights do not stand in functions: they are no measure of what their calls may come to.
    let own = model.functions.iter().map(Message::encoded_len).chain(graph.node.iter().map(Message::encoded_len));
    inliner.largest = own.fold(0, usize::saturating_add).saturating_mul(GROWTH).saturating_add(LARGEST);
    inliner.take_names(graph);
    graph.node = inliner.nodes(std::mem::take(&mut graph.node), 0).or_kind(Error::invalid_model)?;
    result.opset_import = inliner.opsets;
    Ok(result)
}

type Key<'a> = (&'a str, &'a str, &'a str);

struct Inliner<'a> {
    functions: HashMap<Key<'a>, &'a FunctionProto>,
    wanted: &'a dyn Fn(&NodeProto) -> bool,
    opsets: Vec<OperatorSetIdProto>,
    values: Names,
    nodes: Names,
    /// The functions whose bodies are being inlined, the innermost last.
    calls: Vec<Key<'a>>,
    size: usize,
    largest: usize,
}

fn key(node: &NodeProto) -> Key<'_> {
    (canonical_domain(node.domain()), node.op_type(), node.overload())
}

fn describe((domain, name, _): Key) -> String {
    if domain.is_empty() { name.to_owned() } else { format!("{domain}.{name}") }
}

impl<'a> Inliner<'a> {
    fn new(opsets: &[OperatorSetIdProto]) -> Self {
        Inliner {
            functions: HashMap::new(),
            wanted: &|_| false,
            opsets: opsets.to_vec(),
            values: Names::default(),
            nodes: Names::default(),
            calls: Vec::new(),
            size: 0,
            largest: LARGEST,
        }
    }

    /// The function that the node calls, if the call is to be inlined.
    fn called(&self, node: &NodeProto) -> Option<(Key<'a>, &'a FunctionProto)> {
        let function: &'a FunctionProto = self.functions.get(&key(node)).copied()?;
        let key = (canonical_domain(function.domain()), function.name(), function.overload());
        // What an inlined body calls is inlined with it.
        (!self.calls.is_empty() || (self.wanted)(node)).then_some((key, function))
    }

    fn has_calls(&self, graph: &GraphProto) -> bool {
        graph.node.iter().any(|node| self.called(node).is_some() || node.bodies().any(|g| self.has_calls(g)))
    }

    fn take_names(&mut self, graph: &GraphProto) {
        let infos = graph.input.iter().chain(&graph.output).chain(&graph.value_info).map(|v| v.name());
        let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
        let initializers = graph.initializer.iter().chain(sparse).map(|t| t.name());
        let outputs = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
        self.values.extend(infos.chain(initializers).chain(outputs));
        self.nodes.extend(graph.node.iter().map(|n| n.name()));
        graph.node.iter().flat_map(NodeProto::bodies).for_each(|g| self.take_names(g));
    }

    /// The nodes with the wanted calls among and inside them replaced.
    fn nodes(&mut self, nodes: Vec<NodeProto>, depth: usize) -> Result<Vec<NodeProto>> {
        let deep = || Error::unsupported(format_args!("calls of functions and graphs nest deeper than {DEEPEST}"));
        ensure!(depth <= DEEPEST, deep());
        let mut result = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            if let Some((key, function)) = self.called(&node) {
                if self.calls.contains(&key) {
                    let calls: Vec<String> = self.calls.iter().chain([&key]).map(|&k| describe(k)).collect();
                    bail!("function '{}' calls itself: {}", describe(key), calls.join(" -> "));
                }
                let body = self.body(&node, function);
                let body =
                    body.with_context(|| format!("node '{}' ({}), a call of a function", label(&node), describe(key)))?;
                self.calls.push(key);
                result.extend(self.nodes(body, depth + 1)?);
                self.calls.pop();
                continue;
            }
            for graph in node.bodies_mut() {
                graph.node = self.nodes(std::mem::take(&mut graph.node), depth + 1)?;
            }
            result.push(node);
        }
        Ok(result)
    }

    /// What stands in the place of a call.
    fn body(&mut self, call: &NodeProto, function: &FunctionProto) -> Result<Vec<NodeProto>> {
        for (kind, given, known) in
            [("inputs", &call.input, &function.input), ("outputs", &call.output, &function.output)]
        {
            ensure!(given.len() <= known.len(), "{} {kind} for a function of {}", given.len(), known.len());
        }
        self.import(function, &function.node)?;
        let defaults = function.attribute_proto.iter();
        let mut body = Body {
            prefix: label(call).chars().take(LONGEST_PREFIX).collect(),
            call,
            attributes: defaults.chain(&call.attribute).map(|a| (a.name(), a)).collect(),
            outputs: HashMap::new(),
            scopes: vec![HashMap::new()],
            inliner: self,
        };
        let given = |names: &[String], i: usize| names.get(i).cloned().unwrap_or_default();
        for (i, input) in function.input.iter().enumerate() {
            body.define(input, given(&call.input, i));
        }
        // An output that is an input too, or another output, is computed by no node of the body but by an Identity.
        let mut copies = Vec::new();
        for (i, output) in function.output.iter().enumerate() {
            let name = given(&call.output, i);
            if body.resolve(output).is_ok() || body.outputs.contains_key(output.as_str()) {
                copies.extend(Some((output, name)).filter(|c| !c.1.is_empty()));
            } else {
                body.outputs.insert(output, name);
            }
        }
        let mut nodes = function.node.iter().map(|node| body.node(node)).collect::<Result<Vec<_>>>()?;
        for output in &function.output {
            body.resolve(output).context("the function does not compute its output")?;
        }
        for (output, name) in copies {
            let source = body.resolve(output)?;
            ensure!(!source.is_empty(), "output '{name}' is the input '{output}', which is left out");
            let label = body.inliner.nodes.fresh(format!("{}/Identity", body.prefix));
            nodes.push(NodeProto {
                name: Some(label),
                metadata_props: call.metadata_props.clone(),
                ..NodeProto::identity(&source, &name)
            });
        }
        Ok(nodes)
    }

    /// Makes the model import what the nodes of a function need.
    fn import(&mut self, function: &FunctionProto, nodes: &[NodeProto]) -> Result<()> {
        for node in nodes {
            let domain = canonical_domain(node.domain());
            let same = |o: &&OperatorSetIdProto| canonical_domain(o.domain()) == domain;
            if let Some(needed) = function.opset_import.iter().find(same) {
                match self.opsets.iter().find(same) {
                    None => self.opsets.push(needed.clone()),
                    Some(found) => {
                        let same = found.version() == needed.version() || self.functions.contains_key(&key(node));
                        let versions = || {
                            Error::unsupported(format_args!(
                                "the function uses version {} of domain '{domain}' ({}), the model uses version {}; \
                                 convert one of them",
                                needed.version(),
                                node.op_type(),
                                found.version()
                            ))
                        };
                        ensure!(same, versions());
                    }
                }
            }
            node.bodies().try_for_each(|g| self.import(function, &g.node))?;
        }
        Ok(())
    }
}

/// What a call is called: by its name, or its first output.
fn label(call: &NodeProto) -> &str {
    let names = [call.name()].into_iter().chain(call.output.iter().map(String::as_str));
    names.into_iter().find(|n| !n.is_empty()).unwrap_or(call.op_type())
}

/// The body of a function in the place of a call.
struct Body<'b, 'a> {
    inliner: &'b mut Inliner<'a>,
    call: &'b NodeProto,
    prefix: String,
    attributes: HashMap<&'b str, &'b AttributeProto>,
    /// The function's outputs that its nodes are to compute, with their names outside.
    outputs: HashMap<&'b str, String>,
    /// New names by old ones, of the body and of the subgraphs around the place that is being copied.
    scopes: Vec<HashMap<String, String>>,
}

impl Body<'_, '_> {
    fn define(&mut self, old: &str, new: String) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(old.to_owned(), new);
        }
    }

    /// Gives what a node, graph or initializer defines its new name.
    fn fresh(&mut self, old: &str) -> Result<String> {
        if old.is_empty() {
            return Ok(String::new());
        }
        let outside = if self.scopes.len() == 1 { self.outputs.remove(old) } else { None };
        let new = match outside.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => self.inliner.values.fresh(format!("{}/{old}", self.prefix)),
        };
        self.define(old, new.clone());
        Ok(new)
    }

    fn resolve(&self, old: &str) -> Result<String> {
        if old.is_empty() {
            return Ok(String::new());
        }
        let found = self.scopes.iter().rev().find_map(|scope| scope.get(old));
        found.cloned().with_context(|| format!("'{old}' is not defined before it is used"))
    }

    /// Counts what is about to be copied.
    fn charge(&mut self, size: usize) -> Result<()> {
        self.inliner.size = self.inliner.size.saturating_add(size);
        let most = self.inliner.largest;
        let large = || {
            let most = most >> 20;
            let what = "the model gets too large when its functions are inlined";
            Error::unsupported(format_args!("{what}: more than {most} MB"))
        };
        ensure!(self.inliner.size <= most, large());
        Ok(())
    }

    fn node(&mut self, node: &NodeProto) -> Result<NodeProto> {
        // The names that a node gets in the place of its own are longer, by the call's.
        let names = (node.input.len() + node.output.len() + 1).saturating_mul(self.prefix.len());
        self.charge(NODE.saturating_add(names))?;
        let attributes = node.attribute.iter().filter(|a| a.g.is_none() && a.graphs.is_empty());
        let own = attributes.map(Message::encoded_len).fold(0, usize::saturating_add);
        let metadata = if node.metadata_props.is_empty() { &self.call.metadata_props } else { &node.metadata_props };
        let devices = if node.device_configurations.is_empty() {
            &self.call.device_configurations
        } else {
            &node.device_configurations
        };
        let carried = metadata.iter().map(Message::encoded_len).chain(devices.iter().map(Message::encoded_len));
        let carried = carried.fold(own, usize::saturating_add);
        self.charge(carried.saturating_add(node.doc_string().len()))?;
        let input = node.input.iter().map(|name| self.resolve(name)).collect::<Result<Vec<_>>>()?;
        let attribute = node.attribute.iter().filter_map(|a| self.attribute(a).transpose()).collect::<Result<_>>()?;
        let output = node.output.iter().map(|name| self.fresh(name)).collect::<Result<Vec<_>>>()?;
        let name = match node.name() {
            "" => node.name.clone(),
            name => Some(self.inliner.nodes.fresh(format!("{}/{name}", self.prefix))),
        };
        let named = input.iter().chain(&output).chain(&name).map(String::len).fold(0, usize::saturating_add);
        self.charge(named)?;
        let metadata_props = inherited(&node.metadata_props, &self.call.metadata_props);
        let device_configurations = self.devices(node, &input, &output);
        Ok(NodeProto {
            input,
            output,
            name,
            op_type: node.op_type.clone(),
            domain: node.domain.clone(),
            overload: node.overload.clone(),
            attribute,
            doc_string: node.doc_string.clone(),
            metadata_props,
            device_configurations,
        })
    }

    /// A node's device configurations with the new names; the call's where it has none, as far as they speak of its
    /// tensors.
    fn devices(&self, node: &NodeProto, input: &[String], output: &[String]) -> Vec<NodeDeviceConfigurationProto> {
        let mut devices = inherited(&node.device_configurations, &self.call.device_configurations);
        for device in &mut devices {
            if !node.device_configurations.is_empty() {
                for spec in &mut device.sharding_spec {
                    spec.tensor_name = self.resolve(spec.tensor_name()).ok();
                }
            }
            device.sharding_spec.retain(|s| input.iter().chain(output).any(|name| name == s.tensor_name()));
        }
        devices
    }

    /// An attribute with its reference resolved; `None` where it refers to one that the call does not give.
    fn attribute(&mut self, a: &AttributeProto) -> Result<Option<AttributeProto>> {
        let reference = a.ref_attr_name();
        if !reference.is_empty() {
            let Some(&value) = self.attributes.get(reference) else { return Ok(None) };
            ensure!(
                a.r#type.is_none() || value.r#type.is_none() || a.r#type == value.r#type,
                "attribute '{reference}' has another type than '{}' in the function",
                a.name()
            );
            // Graphs come from where the call is: their names are right already.
            self.charge(value.encoded_len())?;
            return Ok(Some(AttributeProto { name: a.name.clone(), ref_attr_name: None, ..value.clone() }));
        }
        if a.g.is_none() && a.graphs.is_empty() {
            return Ok(Some(a.clone()));
        }
        let g = a.g.as_ref().map(|g| self.graph(g).map(Box::new)).transpose()?;
        let graphs = a.graphs.iter().map(|g| self.graph(g)).collect::<Result<_>>()?;
        Ok(Some(AttributeProto { name: a.name.clone(), r#type: a.r#type, g, graphs, ..Default::default() }))
    }

    fn graph(&mut self, graph: &GraphProto) -> Result<GraphProto> {
        let initializers = graph.initializer.iter().map(Message::encoded_len);
        let size = initializers.chain([graph.frame().encoded_len()]).fold(0, usize::saturating_add);
        self.charge(size)?;
        self.scopes.push(HashMap::new());
        let mut result = GraphProto { initializer: graph.initializer.clone(), ..graph.frame() };
        for input in &mut result.input {
            input.name = Some(self.fresh(input.name())?);
        }
        let sparse = result.sparse_initializer.iter_mut().filter_map(|s| s.values.as_mut());
        for TensorProto { name, .. } in result.initializer.iter_mut().chain(sparse) {
            let old = name.take().unwrap_or_default();
            // An initializer may be the default of an input.
            let known = self.scopes.last().and_then(|scope| scope.get(&old)).cloned();
            *name = Some(known.map_or_else(|| self.fresh(&old), Ok)?);
        }
        for node in &graph.node {
            result.node.push(self.node(node)?);
        }
        for output in &mut result.output {
            output.name = Some(self.resolve(output.name())?);
        }
        result.value_info.retain_mut(|value| {
            value.name = self.resolve(value.name()).ok();
            value.name.is_some()
        });
        result.quantization_annotation.retain_mut(|annotation| {
            annotation.tensor_name = self.resolve(annotation.tensor_name()).ok();
            for entry in &mut annotation.quant_parameter_tensor_names {
                entry.value = self.resolve(entry.value()).ok();
            }
            annotation.tensor_name.is_some()
        });
        // A symbol of the function may stand for different sizes in different calls.
        let values = result.input.iter_mut().chain(&mut result.output).chain(&mut result.value_info);
        values.filter_map(|v| v.r#type.as_mut()).for_each(forget_symbols);
        self.scopes.pop();
        Ok(result)
    }
}

/// A node's own, or the call's where it has none.
fn inherited<T: Clone>(own: &[T], call: &[T]) -> Vec<T> {
    if own.is_empty() { call.to_vec() } else { own.to_vec() }
}

fn forget_symbols(r#type: &mut TypeProto) {
    let shape = match &mut r#type.value {
        Some(Type::TensorType(t)) => &mut t.shape,
        Some(Type::SparseTensorType(t)) => &mut t.shape,
        Some(Type::SequenceType(t)) => return t.elem_type.iter_mut().for_each(|t| forget_symbols(t)),
        Some(Type::OptionalType(t)) => return t.elem_type.iter_mut().for_each(|t| forget_symbols(t)),
        Some(Type::MapType(t)) => return t.value_type.iter_mut().for_each(|t| forget_symbols(t)),
        Some(Type::OpaqueType(_)) | None => return,
    };
    for dim in shape.iter_mut().flat_map(|s| &mut s.dim) {
        dim.value.take_if(|v| matches!(v, Dimension::DimParam(_)));
    }
}

#[cfg(test)]
mod tests;
