//! What a file must hold to be a model that the rest of the program can trust.

use super::super::proto::SparseTensorProto;
use super::super::{ElementType, GraphProto, ModelProto, NodeProto, TensorProto, canonical_domain};
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
    opset(model, graph)?;
    visit::tensors(model, &mut tensor)?;
    in_graph(graph)?;
    model.functions.iter().try_for_each(|function| in_nodes(&function.node))
}

/// The operators of the standard are of one version, and of one that there is.
fn opset(model: &ModelProto, graph: &GraphProto) -> Result<()> {
    let is_standard = |domain| canonical_domain(domain).is_empty();
    let mut versions = model.opset_import.iter().filter(|o| is_standard(o.domain())).map(|o| o.version());
    let Some(version) = versions.next() else {
        let used = graph.node.iter().find(|n| is_standard(n.domain())).filter(|_| !model.opset_import.is_empty());
        let op = used.map(NodeProto::op_type).unwrap_or_default();
        ensure!(used.is_none(), "not a valid ONNX model: it has a node of {op} and imports no version of ai.onnx");
        return Ok(());
    };
    ensure!(version > 0, "not a valid ONNX model: it imports version {version} of ai.onnx; versions begin with 1");
    let other = versions.find(|&v| v != version);
    let second = other.unwrap_or_default();
    ensure!(other.is_none(), "not a valid ONNX model: it imports two versions of ai.onnx, {version} and {second}");
    Ok(())
}

/// Names are those of one initializer each, and the parts of sparse tensors belong together, in bodies too.
fn in_graph(graph: &GraphProto) -> Result<()> {
    let mut names = HashSet::new();
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    for tensor in graph.initializer.iter().chain(sparse) {
        ensure!(names.insert(tensor.name()), "graph '{}' has two initializers '{}'", graph.name(), tensor.name());
    }
    graph.sparse_initializer.iter().try_for_each(sparse_tensor)?;
    in_nodes(&graph.node)
}

fn in_nodes(nodes: &[NodeProto]) -> Result<()> {
    for attribute in nodes.iter().flat_map(|n| &n.attribute) {
        attribute.sparse_tensor.as_deref().into_iter().chain(&attribute.sparse_tensors).try_for_each(sparse_tensor)?;
        attribute.g.as_deref().into_iter().chain(&attribute.graphs).try_for_each(in_graph)?;
    }
    Ok(())
}

fn sparse_tensor(sparse: &SparseTensorProto) -> Result<()> {
    let name = sparse.values.as_ref().map(TensorProto::name).unwrap_or_default();
    sparse.check().with_context(|| format!("sparse tensor '{name}'"))
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
        // How many elements it has is all that is known of a type that this library does not.
        if element != ElementType::Undefined {
            external::extent(tensor)?;
        }
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
