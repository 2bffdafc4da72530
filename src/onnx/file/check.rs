//! What a file must hold to be a model that the rest of the program can trust.

use super::super::{AttributeProto, ElementType, GraphProto, ModelProto, NodeProto, TensorProto};
use super::{external, visit};
use anyhow::{Context, Result, ensure};
use std::collections::HashSet;

/// Checks the parts of a model, and that its tensors and names are consistent.
pub fn model(model: &ModelProto) -> Result<()> {
    let graph = model.graph.as_ref().context("not an ONNX model: it has no graph")?;
    // Before IR version 3 there was no opset_import, and all operators were of version 1.
    ensure!(
        !model.opset_import.is_empty() || model.ir_version() < 3,
        "not a valid ONNX model: it does not say which opset it uses (opset_import)"
    );
    visit::tensors(model, &mut tensor)?;
    unique_names(graph)
}

fn unique_names(graph: &GraphProto) -> Result<()> {
    let mut names = HashSet::new();
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    for tensor in graph.initializer.iter().chain(sparse) {
        ensure!(names.insert(tensor.name()), "graph '{}' has two initializers '{}'", graph.name(), tensor.name());
    }
    let attributes = graph.node.iter().flat_map(|n: &NodeProto| &n.attribute);
    attributes.flat_map(|a: &AttributeProto| a.g.as_deref().into_iter().chain(&a.graphs)).try_for_each(unique_names)
}

/// Checks that a tensor has as many elements as its dimensions say, or lies in a place where external data may lie.
pub fn tensor(tensor: &TensorProto) -> Result<()> {
    check(tensor).with_context(|| format!("tensor '{}'", tensor.name()))
}

fn check(tensor: &TensorProto) -> Result<()> {
    use ElementType as E;
    let element = tensor.element_type();
    let count = tensor.element_count();
    let count = count.with_context(|| format!("no tensor can have the dimensions {:?}", tensor.dims))?;
    if tensor.is_external() {
        external::location(tensor)?;
        return Ok(());
    }
    let Some(bits) = element.bits() else {
        let strings = tensor.string_data.len();
        ensure!(element != E::String || strings == count, "{strings} strings for dimensions {:?}", tensor.dims);
        return Ok(());
    };
    let bytes = tensor.byte_size()?;
    if let Some(raw) = &tensor.raw_data {
        ensure!(raw.len() == bytes, "{} bytes for {} of dimensions {:?}", raw.len(), element.name(), tensor.dims);
        return Ok(());
    }
    let found = match element {
        E::Float | E::Complex64 => tensor.float_data.len(),
        E::Double | E::Complex128 => tensor.double_data.len(),
        E::Int64 => tensor.int64_data.len(),
        E::Uint32 | E::Uint64 => tensor.uint64_data.len(),
        _ => tensor.int32_data.len(),
    };
    let wanted = match element {
        E::Complex64 | E::Complex128 => count.checked_mul(2),
        // Elements of less than a byte are packed, by some writers one a number nevertheless.
        _ if bits < 8 && found == bytes => Some(bytes),
        _ => Some(count),
    };
    ensure!(Some(found) == wanted, "{found} elements for {} of dimensions {:?}", element.name(), tensor.dims);
    Ok(())
}
