//! Small changes of models in protobuf, and questions about them: parts cut out, tensors opened to become inputs.

use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value as Dim};
use crate::onnx::proto::{TensorShapeProto, type_proto};
use crate::onnx::{
    ElementType, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, attribute, canonical_domain,
};
use crate::rules::newest;
use std::collections::{BTreeSet, HashMap, HashSet};

/// What the output of a node is filled with, where its row says that an attribute holds that: float32 zeros where the
/// node leaves it out, which are written into it.
pub fn filling(node: &mut NodeProto) -> Option<&mut TensorProto> {
    let name = newest(canonical_domain(node.domain()), node.op_type())?.fills?;
    if attribute::find(&node.attribute, name).is_none() {
        node.attribute.push(attribute::tensor(name, TensorProto::from_float32(&[1], &[0.0])));
    }
    node.attribute.iter_mut().find(|a| a.name() == name)?.t.as_deref_mut()
}

/// The element type of a value that is a tensor.
pub fn element_type(r#type: Option<&TypeProto>) -> Option<ElementType> {
    use type_proto::Value;
    match r#type?.value.as_ref()? {
        Value::TensorType(t) => Some(ElementType::from_number(t.elem_type())),
        _ => None,
    }
}

/// The inputs of a model that have no default.
pub fn free_inputs(model: &ModelProto) -> impl Iterator<Item = &ValueInfoProto> {
    let graph = model.graph.as_ref();
    let defaults: HashSet<&str> = graph.into_iter().flat_map(|g| &g.initializer).map(|t| t.name()).collect();
    graph.into_iter().flat_map(|g| &g.input).filter(move |i| !defaults.contains(i.name()))
}

/// The dimensions of a value, where they are declared.
pub fn declared(input: &ValueInfoProto) -> Option<&[Dimension]> {
    match input.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => t.shape.as_ref().map(|s| s.dim.as_slice()),
        _ => None,
    }
}

/// The names that nodes of the main graph compute.
pub fn computed(model: &ModelProto) -> HashSet<&str> {
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    nodes.flat_map(|n| &n.output).map(String::as_str).filter(|o| !o.is_empty()).collect()
}

/// Removes what the chosen tensors do not depend on, and makes these the outputs.
pub fn prune(model: &mut ModelProto, outputs: &[String]) {
    let Some(graph) = &mut model.graph else { return };
    let types: HashMap<String, _> = (graph.output.drain(..)).map(|o| (o.name().to_owned(), o)).collect();
    let output = |name: &String| types.get(name).cloned().unwrap_or_else(|| named(name));
    graph.output = outputs.iter().map(output).collect();
    graph.prune();
}

fn named(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.to_owned()), ..Default::default() }
}

/// What a node's output is called once something else stands under its name.
pub const BEFORE: &str = "/before";

/// Gives the tensors of `names` that nodes compute another name, `<name>/before`, and makes what is left of the name an
/// input (`cut`), or the sum of the tensor and an input `<name>/delta`.
pub fn open(model: &mut ModelProto, names: &HashSet<String>, cut: &HashSet<String>) {
    let present: HashSet<String> = computed(model).into_iter().map(str::to_owned).collect();
    let Some(graph) = &mut model.graph else { return };
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        let mut added = Vec::new();
        for output in &mut node.output {
            if cut.contains(output) {
                *output = format!("{output}{BEFORE}");
            } else if names.contains(output) {
                let before = format!("{output}{BEFORE}");
                added.push(NodeProto::sum(&before, &delta(output), output));
                *output = before;
            }
        }
        nodes.push(node);
        nodes.extend(added);
    }
    graph.node = nodes;
    let mut inputs: Vec<String> = cut.iter().filter(|n| present.contains(*n)).cloned().collect();
    inputs.extend(names.iter().filter(|n| present.contains(*n) && !cut.contains(*n)).map(|n| delta(n)));
    inputs.sort();
    graph.input.extend(inputs.iter().map(|name| double_input(name)));
}

/// What a node's input is called where it takes a copy of a tensor that does not move with it.
const HELD: &str = "/held";

/// The tensors that nodes compute and others take for constants by their rows: the coordinates of a RoiAlign, a
/// computed scale.
pub fn constants_by_rows(model: &ModelProto) -> HashSet<String> {
    let present = computed(model);
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    let taken = nodes.flat_map(held_inputs).filter_map(|i| present.get(i.1));
    taken.map(|&name| name.to_owned()).collect()
}

fn held_inputs(node: &NodeProto) -> impl Iterator<Item = (usize, &str)> {
    let held = newest(canonical_domain(node.domain()), node.op_type()).map_or(&[][..], |row| row.held);
    held.iter().filter_map(|&i| Some((i, node.input.get(i)?.as_str())))
}

/// Has nodes take those of `names` that they take for constants from inputs of their own; returns what each of these is
/// called. Others take them as before.
pub fn hold(model: &mut ModelProto, names: &HashSet<String>) -> Vec<(String, String)> {
    let mut held = BTreeSet::new();
    for node in model.graph.iter_mut().flat_map(|g| &mut g.node) {
        let taken: Vec<(usize, String)> =
            held_inputs(node).filter(|(_, name)| names.contains(*name)).map(|(i, name)| (i, name.to_owned())).collect();
        for (i, name) in taken {
            node.input[i] = format!("{name}{HELD}");
            held.insert(name);
        }
    }
    let held: Vec<(String, String)> = held.into_iter().map(|name| (format!("{name}{HELD}"), name)).collect();
    if let Some(graph) = &mut model.graph {
        graph.input.extend(held.iter().map(|(input, _)| double_input(input)));
    }
    held
}

/// The input that is added to a tensor.
pub fn delta(name: &str) -> String {
    format!("{name}/delta")
}

/// A graph input of float64 elements and any shape.
pub fn double_input(name: &str) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(ElementType::Double as i32), shape: None };
    ValueInfoProto {
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..named(name)
    }
}

/// The shape of a value that is a tensor, to be changed.
fn shape_mut(value: &mut ValueInfoProto) -> Option<&mut Option<TensorShapeProto>> {
    match value.r#type.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(t) => Some(&mut t.shape),
        _ => None,
    }
}

/// Gives every size of an input that has no name one of its own.
pub fn name_sizes(model: &mut ModelProto) {
    for input in model.graph.iter_mut().flat_map(|g| &mut g.input) {
        let name = input.name().to_owned();
        let Some(shape) = shape_mut(input).and_then(Option::as_mut) else { continue };
        for (axis, dim) in shape.dim.iter_mut().enumerate() {
            let unnamed = match &dim.value {
                None => true,
                Some(Dim::DimParam(symbol)) => symbol.is_empty(),
                Some(Dim::DimValue(n)) => *n < 0,
            };
            if unnamed {
                dim.value = Some(Dim::DimParam(format!("{name}[{axis}]")));
            }
        }
    }
}
