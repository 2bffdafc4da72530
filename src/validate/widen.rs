//! A model as its copy in float64: differences of float32 numbers say little about a slope.
//!
//! Every floating-point tensor becomes float64. Where an operator takes float32 only, a Cast stands before and after
//! it.

use super::edit::{double_input, filling};
use super::engine::Trouble;
use super::tensors::{self, Tensor, Tensors};
use crate::onnx::proto::type_proto;
use crate::onnx::{
    CONSTANT, ElementType, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, attribute, canonical_domain,
};
use crate::rules::newest;
use anyhow::Result;
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

const DOUBLE: i64 = ElementType::Double as i64;

/// Rewrites a model to float64, in place.
///
/// # Errors
/// Tensors whose elements cannot be read.
pub fn to_double(model: &mut ModelProto) -> Result<()> {
    model.graph.as_mut().map_or(Ok(()), graph)
}

fn graph(graph: &mut GraphProto) -> Result<()> {
    graph.value_info.clear();
    graph.initializer.iter_mut().try_for_each(widen)?;
    for sparse in &mut graph.sparse_initializer {
        sparse.values.iter_mut().try_for_each(widen)?;
    }
    let values = graph.input.iter_mut().chain(&mut graph.output);
    values.filter_map(|v| v.r#type.as_mut()).for_each(retype);
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        node.bodies_mut().try_for_each(self::graph)?;
        rewrite(node, &mut nodes)?;
    }
    graph.node = nodes;
    Ok(())
}

fn retype(r#type: &mut TypeProto) {
    match &mut r#type.value {
        Some(type_proto::Value::TensorType(t)) if ElementType::from_number(t.elem_type()).is_float() => {
            t.elem_type = Some(ElementType::Double as i32);
        }
        Some(type_proto::Value::SequenceType(s)) => s.elem_type.as_deref_mut().into_iter().for_each(retype),
        Some(type_proto::Value::OptionalType(o)) => o.elem_type.as_deref_mut().into_iter().for_each(retype),
        _ => (),
    }
}

/// What stands for infinity in float32, as masks have it, swallows in a sum what is added to it, so that nothing has a
/// slope any more. A number that is large enough for a softmax does not.
fn moderate(value: f64) -> f64 {
    if value.is_finite() && value.abs() >= HUGE { value.signum() * LARGE } else { value }
}

const HUGE: f64 = 1e30;
const LARGE: f64 = 1e4;

fn widen(tensor: &mut TensorProto) -> Result<()> {
    if tensor.element_type().is_float() {
        let values: Vec<f64> = tensor.floats()?.into_iter().map(moderate).collect();
        let wide = TensorProto::from_floats(ElementType::Double, &tensor.dims, &values)?;
        *tensor = TensorProto { name: tensor.name.take(), ..wide };
    }
    Ok(())
}

fn rewrite(mut node: NodeProto, nodes: &mut Vec<NodeProto>) -> Result<()> {
    if !canonical_domain(node.domain()).is_empty() {
        nodes.push(node);
        return Ok(());
    }
    if node.is(CONSTANT) {
        constant(&mut node)?;
    }
    let Some(rule) = newest("", node.op_type()) else {
        nodes.push(node);
        return Ok(());
    };
    for (name, default) in rule.types {
        element_attribute(&mut node, name, *default);
    }
    filling(&mut node).map_or(Ok(()), widen)?;
    let (inputs, outputs) = rule.single;
    let prefix = node.output.first().cloned().unwrap_or_default();
    for &i in inputs {
        if let Some(input) = node.input.get_mut(i).filter(|i| !i.is_empty()) {
            let cast = format!("{prefix}/float{i}");
            nodes.push(NodeProto::cast(input, &cast, ElementType::Float));
            *input = cast;
        }
    }
    let mut after = Vec::new();
    for &i in outputs {
        if let Some(output) = node.output.get_mut(i).filter(|o| !o.is_empty()) {
            let narrow = format!("{output}/float");
            after.push(NodeProto::cast(&narrow, output, ElementType::Double));
            *output = narrow;
        }
    }
    nodes.push(node);
    nodes.extend(after);
    Ok(())
}

/// What a Constant holds, whichever attribute holds it. Sparse tensors stay sparse, strings strings.
fn constant(node: &mut NodeProto) -> Result<()> {
    if let Some(sparse) = node.attribute.iter_mut().find_map(|a| a.sparse_tensor.as_mut()) {
        return sparse.values.as_mut().map_or(Ok(()), widen);
    }
    let value = node.constant_value()?.filter(|v| v.element_type().is_float()).map(Cow::into_owned);
    if let Some(mut value) = value {
        widen(&mut value)?;
        node.attribute = vec![attribute::tensor("value", value)];
    }
    Ok(())
}

fn set_int(node: &mut NodeProto, name: &str, value: i64) {
    node.attribute.retain(|a| a.name() != name);
    node.attribute.push(attribute::int(name, value));
}

/// An attribute that names an element type names float64 where it named a narrower floating-point type.
fn element_attribute(node: &mut NodeProto, name: &str, default: Option<ElementType>) {
    let named = attribute::get_int(&node.attribute, name).and_then(|n| i32::try_from(n).ok());
    if named.map(ElementType::from_number).or(default).is_some_and(ElementType::is_float) {
        set_int(node, name, DOUBLE);
    }
}

/// Floating-point inputs in float64.
///
/// # Errors
/// There are none for tensors that an engine has taken.
pub fn doubled(feeds: &Tensors) -> Result<Tensors, Trouble> {
    let double = |t: &Arc<Tensor>| match t.is_float() {
        true => anyhow::Ok(Arc::new(t.cast(ElementType::Double)?)),
        false => Ok(t.clone()),
    };
    feeds.iter().map(|(name, t)| Ok((name.clone(), double(t)?))).collect()
}

/// Constants that may be shapes, scales or axes stay constants.
const SMALL: usize = 64;

/// Makes large floating-point initializers inputs, and those that are xs: they can be perturbed then, and need not go
/// through protobuf once more.
///
/// # Errors
/// Initializers whose elements cannot be read.
pub fn feed_weights(model: &mut ModelProto, xs: &HashSet<String>, feeds: &mut Tensors) -> Result<(), Trouble> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let mut kept = Vec::new();
    for tensor in std::mem::take(&mut graph.initializer) {
        let large = tensor.element_count().is_some_and(|n| n > SMALL);
        if tensor.element_type() == ElementType::Double && (large || xs.contains(tensor.name())) {
            let name = tensor.name().to_owned();
            // What is fed already is a default that was overridden.
            if !feeds.contains_key(&name) {
                feeds.insert(name.clone(), Arc::new(tensors::tensor(&tensor)?));
            }
            graph.input.retain(|i| i.name() != name);
            graph.input.push(double_input(&name));
        } else {
            kept.push(tensor);
        }
    }
    graph.initializer = kept;
    Ok(())
}
