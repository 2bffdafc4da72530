//! Writes what the backward pass has appended to a [`Graph`] behind the nodes of the model that it was loaded from.

use super::{EachValue, Fact, Graph, IdMap, IdSet, NodeId, Origin, Producer, ScopeId, ValueId};
use crate::onnx::proto::{NodeProto, OperatorSetIdProto, tensor_shape_proto::dimension};
use crate::onnx::proto::{TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto::Dimension, type_proto};
use crate::onnx::{GraphProto, ModelProto, Names, attribute};
use anyhow::{Context, Result};
use std::rc::Rc;

/// What to write.
#[derive(Debug, Default)]
pub struct Request {
    /// The scope of all new names, which no name of the model has.
    pub name: String,
    /// The new graph inputs.
    pub inputs: Vec<(ValueId, String)>,
    /// The new graph outputs, with the names that they get: values that backward nodes compute, each once.
    pub outputs: Vec<(ValueId, String)>,
    /// The new nodes of the main graph that are written, as [`needed`] finds them, in the order in which they stand.
    pub steps: Vec<Step>,
    /// Whether backward nodes take over the devices and the placement metadata of their forward nodes.
    pub colocate: bool,
}

/// A new node of the main graph in its place.
#[derive(Clone, Debug)]
pub struct Step {
    /// The node.
    pub node: NodeId,
    /// What it takes, in its bodies too, in the place of other values.
    pub instead: Option<Rc<IdMap<ValueId, ValueId>>>,
}

impl Step {
    /// A node that takes its own inputs.
    pub fn of(node: NodeId) -> Self {
        Step { node, instead: None }
    }

    /// What is taken where the node names a value.
    pub fn taken(&self, value: ValueId) -> ValueId {
        taken(self.instead.as_deref(), value)
    }
}

fn taken(instead: Option<&IdMap<ValueId, ValueId>>, value: ValueId) -> ValueId {
    instead.and_then(|instead| instead.get(&value)).copied().unwrap_or(value)
}

/// What has been written.
#[derive(Debug, Default)]
pub struct Written {
    /// How many nodes have been added to the main graph.
    pub nodes: usize,
    /// The names that the new values have got.
    pub names: EachValue<Rc<str>>,
    /// Outputs that forward nodes have got in addition: the node, and the name of the output.
    pub demanded: Vec<(String, String)>,
}

/// The new nodes of the main graph on which values depend, in the order in which they were appended.
pub fn needed(graph: &Graph, values: impl IntoIterator<Item = ValueId>) -> Vec<NodeId> {
    let mut seen = vec![false; graph.node_count()];
    let new = |id: NodeId| !std::mem::replace(&mut seen[id.number()], true);
    let mut nodes = live_nodes(graph, Graph::MAIN, values.into_iter(), new);
    nodes.sort_unstable();
    nodes
}

/// Appends nodes of the backward pass to `model`.
///
/// # Errors
/// `graph` is not that of `model`.
pub fn write(graph: &Graph, model: &mut ModelProto, request: &Request, taken: Names) -> Result<Written> {
    let mut nodes = Vec::with_capacity(request.steps.len());
    let written = write_into(graph, model, request, taken, &mut |node| nodes.push(node))?;
    if let Some(graph) = &mut model.graph {
        graph.node.reserve_exact(nodes.len());
        graph.node.append(&mut nodes);
    }
    Ok(written)
}

/// As [`write()`], the nodes handed on in the order in which they are to stand behind those of `model`.
///
/// # Errors
/// As [`write()`].
pub fn write_into(
    graph: &Graph,
    model: &mut ModelProto,
    request: &Request,
    taken: Names,
    into: &mut dyn FnMut(NodeProto),
) -> Result<Written> {
    let imports = model.opset("").is_some();
    let version = model.opset_or_default();
    let proto = model.graph.as_mut().context("the model holds no graph")?;
    let main = &graph.scope(Graph::MAIN).nodes;
    let placed = if request.colocate { proto.node.as_slice() } else { &[] };
    let mut writer = Writer {
        graph,
        scope: &request.name,
        names: request.outputs.iter().chain(&request.inputs).map(|(v, name)| (*v, Rc::from(&**name))).collect(),
        unique: taken,
        placed: main.iter().copied().zip(placed.iter().cloned()).collect(),
        instead: None,
    };
    writer.unique.reserve(request.steps.len());
    writer.unique.extend(request.outputs.iter().chain(&request.inputs).map(|(_, name)| name.as_str()));
    let mut written = Written::default();
    for (k, &id) in main.iter().enumerate().take(proto.node.len()) {
        for (i, output) in graph.node(id).outputs.iter().enumerate() {
            let Some(output) = output.filter(|&o| graph.value(o).name.is_none()) else { continue };
            let name = writer.name_value(output, id, "output");
            let node = proto.node.get_mut(k).context("the graph has fewer nodes than were loaded")?;
            if node.output.len() <= i {
                node.output.resize(i + 1, String::new());
            }
            node.output[i] = name.as_ref().into();
            written.demanded.push((graph.describe(id), node.output[i].clone()));
        }
    }
    for step in &request.steps {
        writer.instead = step.instead.clone();
        into(writer.node(step.node));
    }
    written.nodes = request.steps.len();
    for (value, name) in &request.inputs {
        proto.input.push(value_info(graph, name, graph.fact(*value)));
    }
    for (value, name) in &request.outputs {
        proto.output.push(value_info(graph, name, graph.fact(*value)));
    }
    written.names = writer.names;
    if written.nodes > 0 && !imports {
        model.opset_import.push(OperatorSetIdProto { domain: Some(String::new()), version: Some(version) });
    }
    Ok(written)
}

/// The nodes that [`part`] has written, and what it has named.
#[derive(Debug, Default)]
pub struct Part {
    /// The nodes, in topological order.
    pub nodes: Vec<(NodeId, NodeProto)>,
    /// The names of the values that had none.
    pub names: IdMap<ValueId, Rc<str>>,
}

/// The new nodes of `inside` on which the values of the given names depend. `demanded` are outputs that forward nodes
/// have got in addition; `scope` is in front of all new names.
pub fn part(
    graph: &Graph,
    inside: ScopeId,
    scope: &str,
    outputs: IdMap<ValueId, Rc<str>>,
    demanded: impl IntoIterator<Item = (ValueId, NodeId)>,
    unique: &mut Names,
) -> Part {
    let mut seen = IdSet::default();
    let mut ids = live_nodes(graph, inside, outputs.keys().copied(), |id| seen.insert(id));
    let (placed, unique_names) = (IdMap::default(), std::mem::take(unique));
    let mut writer = Writer { graph, scope, names: outputs, unique: unique_names, placed, instead: None };
    for (output, node) in demanded {
        writer.name_value(output, node, "output");
    }
    ids.sort_unstable();
    let nodes = ids.into_iter().map(|id| (id, writer.node(id))).collect();
    *unique = writer.unique;
    Part { nodes, names: writer.names }
}

/// The new nodes of a scope on which the outputs depend, also from inside bodies.
/// `new` says of each whether it is met for the first time.
fn live_nodes(
    graph: &Graph,
    scope: ScopeId,
    outputs: impl Iterator<Item = ValueId>,
    mut new: impl FnMut(NodeId) -> bool,
) -> Vec<NodeId> {
    let mut live = Vec::new();
    let mut open: Vec<ValueId> = outputs.collect();
    while let Some(value) = open.pop() {
        let Producer::Node(id, _) = graph.value(value).producer else { continue };
        let node = graph.node(id);
        if node.scope == scope && node.origin != Origin::Model && new(id) {
            live.push(id);
            open.extend(node.inputs.iter().flatten());
            open.extend(graph.captures(id));
        }
    }
    live
}

/// The names of values: of all that a model gets, or of the few that stand for one of its nodes.
trait Naming {
    fn name(&self, value: ValueId) -> Option<&Rc<str>>;
    fn give(&mut self, value: ValueId, name: Rc<str>);
}

impl Naming for EachValue<Rc<str>> {
    fn name(&self, value: ValueId) -> Option<&Rc<str>> {
        self.get(&value)
    }

    fn give(&mut self, value: ValueId, name: Rc<str>) {
        self.insert(value, name);
    }
}

impl Naming for IdMap<ValueId, Rc<str>> {
    fn name(&self, value: ValueId) -> Option<&Rc<str>> {
        self.get(&value)
    }

    fn give(&mut self, value: ValueId, name: Rc<str>) {
        self.insert(value, name);
    }
}

struct Writer<'a, N> {
    graph: &'a Graph,
    scope: &'a str,
    names: N,
    unique: Names,
    /// The model's nodes, where their placement is wanted.
    placed: IdMap<NodeId, NodeProto>,
    /// What the step takes in the place of other values.
    instead: Option<Rc<IdMap<ValueId, ValueId>>>,
}

impl<N: Naming> Writer<'_, N> {
    fn node(&mut self, id: NodeId) -> NodeProto {
        let node = self.graph.node(id);
        let forward = match node.origin {
            Origin::Backward(forward) => forward,
            Origin::Model => None,
        };
        let base = self.base(forward, &node.op_type);
        let name = self.unique.shared(&base);
        let written = |name: Rc<str>| name.as_ref().to_owned();
        let input =
            node.inputs.iter().map(|i| i.map_or_else(String::new, |i| written(self.name_of(i, &name)))).collect();
        let mut attributes = node.attributes.to_vec();
        for (attribute, scope) in &node.bodies {
            attributes.push(attribute::graph(attribute, self.body(*scope, &format!("{name}/{attribute}"))));
        }
        let only = node.outputs.iter().flatten().count() == 1;
        let output = node.outputs.iter().enumerate().map(|(i, output)| match output {
            None => String::new(),
            Some(output) => written(match self.names.name(*output) {
                Some(name) => name.clone(),
                None => {
                    let unique = if only { name.clone() } else { self.unique.shared(&format!("{name}:{i}")) };
                    self.names.give(*output, unique.clone());
                    unique
                }
            }),
        });
        let mut proto = NodeProto {
            output: output.collect(),
            input,
            name: Some(written(name)),
            op_type: Some(node.op_type.to_string()),
            domain: (!node.domain.is_empty()).then(|| node.domain.to_string()),
            attribute: attributes,
            ..NodeProto::default()
        };
        if let Some(model) = forward.and_then(|f| self.placed.get(&f)) {
            proto.device_configurations = model.device_configurations.clone();
            proto.metadata_props =
                model.metadata_props.iter().filter(|p| p.key() != "stop_gradient").cloned().collect();
        }
        proto
    }

    /// `gradients/<forward node>/<Op>`
    fn base(&self, forward: Option<NodeId>, op: &str) -> String {
        let label = forward.map(|id| {
            let node = self.graph.node(id);
            let output = || node.outputs.iter().flatten().find_map(|&o| self.graph.value(o).name.clone());
            node.name.clone().or_else(output).unwrap_or_else(|| node.op_type.clone())
        });
        match label {
            Some(label) => [self.scope, "/", &label, "/", op].concat(),
            None => [self.scope, "/", op].concat(),
        }
    }

    fn body(&mut self, scope: ScopeId, name: &str) -> GraphProto {
        let inputs = self.graph.scope(scope).inputs.clone();
        let input = inputs.iter().enumerate().map(|(i, &v)| self.declare(v, &format!("{name}/input_{i}"))).collect();
        let node = self.graph.scope(scope).nodes.iter().map(|&n| self.node(n)).collect();
        let outputs = self.graph.scope(scope).outputs.clone();
        let output = outputs.iter().enumerate().map(|(i, &v)| self.declare(v, &format!("{name}/output_{i}"))).collect();
        GraphProto { name: Some(name.to_owned()), input, node, output, ..GraphProto::default() }
    }

    fn declare(&mut self, value: ValueId, base: &str) -> ValueInfoProto {
        let name = self.name_of(value, base);
        value_info(self.graph, &name, self.graph.fact(value))
    }

    /// The name of a value: the model's, the one that it has got, or a new one.
    fn name_of(&mut self, value: ValueId, base: &str) -> Rc<str> {
        let value = taken(self.instead.as_deref(), value);
        if let Some(name) = self.names.name(value).or(self.graph.value(value).name.as_ref()) {
            return name.clone();
        }
        let name = self.unique.shared(base);
        self.names.give(value, name.clone());
        name
    }

    fn name_value(&mut self, value: ValueId, forward: NodeId, what: &str) -> Rc<str> {
        let base = self.base(Some(forward), what);
        self.name_of(value, &base)
    }
}

/// The declaration of a tensor, with all that is known of its type. A size that is not known is an empty dimension.
pub fn value_info(graph: &Graph, name: &str, fact: &Fact) -> ValueInfoProto {
    use super::Container;
    let dimension = |&d: &super::Dim| Dimension {
        value: match d {
            super::Dim::Known(n) => Some(dimension::Value::DimValue(n)),
            d => graph.dims.name(d).map(dimension::Value::DimParam),
        },
        denotation: None,
    };
    let shape = fact.shape.as_ref().map(|s| TensorShapeProto { dim: s.iter().map(dimension).collect() });
    let tensor = TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: fact.element.map(|e| e as i32),
            shape,
        })),
        denotation: None,
    };
    let elem_type = Some(Box::new(tensor.clone()));
    let wrap = |value| Some(TypeProto { value: Some(value), denotation: None });
    let r#type = match fact.container {
        Container::Tensor => Some(tensor),
        Container::Sequence => wrap(type_proto::Value::SequenceType(Box::new(type_proto::Sequence { elem_type }))),
        Container::Optional => wrap(type_proto::Value::OptionalType(Box::new(type_proto::Optional { elem_type }))),
        Container::Other => None,
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: if fact.element.is_some() { r#type } else { None },
        ..ValueInfoProto::default()
    }
}
