//! The copy of a model that is handed to tract: what tract cannot run, or runs wrongly, said in another way; and what
//! cannot be said in another way, found before it runs.

use super::kernels::COMPUTED;
use crate::onnx::proto::{SparseTensorProto, tensor_shape_proto, type_proto};
use crate::onnx::{
    AttributeProto, ElementType, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, attribute, canonical_domain,
};
use crate::validate::edit::{bodies, bodies_mut, node};
use crate::validate::kernels;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{HashMap, HashSet};

/// Tensors of more elements than this are not made from a few bytes of a file.
const MAX_ELEMENTS: usize = 1 << 28;

/// The same model, for tract. The graph's outputs have the same order, not always the same names.
///
/// # Errors
/// Sparse tensors whose parts contradict each other.
pub fn normalize(model: &ModelProto) -> Result<ModelProto> {
    let mut copy = model.clone();
    copy.metadata_props.clear();
    copy.training_info.clear();
    let opset = copy.opset("").unwrap_or(1);
    if let Some(graph) = &mut copy.graph {
        normalize_graph(graph, opset)?;
    }
    Ok(copy)
}

fn normalize_graph(graph: &mut GraphProto, opset: i64) -> Result<()> {
    graph.value_info.clear();
    for sparse in std::mem::take(&mut graph.sparse_initializer) {
        graph.initializer.push(dense(&sparse)?);
    }
    // An initializer that is an input too is a default, and what is fed is no initializer any more.
    let initialized: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    graph.input.retain(|i| !initialized.contains(i.name()));
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(r#type) = &mut value.r#type {
            forget_symbols(r#type);
        }
    }
    let integers = constant_integers(graph);
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        for body in bodies_mut(&mut node) {
            normalize_graph(body, opset)?;
        }
        if !canonical_domain(node.domain()).is_empty() {
            nodes.push(node);
            continue;
        }
        match node.op_type() {
            "Constant" => constant(&mut node)?,
            "ConstantOfShape" if attribute::find(&node.attribute, "value").is_none() => {
                let zero = TensorProto::from_float32(&[1], &[0.0]);
                node.attribute.push(attribute::tensor("value", zero));
            }
            "Pad" => crop_first(&mut node, &integers, opset, &mut nodes),
            "Gemm" if node.input.len() >= 2 && !node.output.is_empty() => {
                gemm(&node, &mut nodes);
                continue;
            }
            _ => (),
        }
        nodes.push(node);
    }
    graph.node = nodes;
    // What a graph gives out has to come from a node: tract forgets the types of inputs and constants that are outputs.
    let copied: Vec<(usize, String)> = {
        let outputs: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let output = graph.output.iter().enumerate().filter(|(_, o)| !outputs.contains(o.name()));
        output.map(|(i, o)| (i, o.name().to_owned())).collect()
    };
    for (i, name) in copied {
        let output = format!("{name}/output{i}");
        graph.node.push(self::node("Identity", &[&name], &output, vec![]));
        graph.output[i].name = Some(output);
    }
    Ok(())
}

/// Symbolic sizes become unknown: tract would read `batch-size` as a difference.
fn forget_symbols(r#type: &mut TypeProto) {
    let Some(type_proto::Value::TensorType(tensor)) = &mut r#type.value else { return };
    for dim in tensor.shape.iter_mut().flat_map(|s| &mut s.dim) {
        if let Some(tensor_shape_proto::dimension::Value::DimParam(_)) = dim.value {
            dim.value = None;
        }
    }
}

/// Every Constant holds its tensor in `value`.
fn constant(node: &mut NodeProto) -> Result<()> {
    let Some(a) = node.attribute.iter().find(|a| a.name().starts_with("value_") || a.name() == "sparse_value") else {
        return Ok(());
    };
    let tensor = match a.name() {
        "value_float" => TensorProto::from_float32(&[], &[a.f()]),
        "value_floats" => TensorProto::from_float32(&[a.floats.len() as i64], &a.floats),
        "value_int" => TensorProto::from_int64(&[], &[a.i()]),
        "value_ints" => TensorProto::from_int64(&[a.ints.len() as i64], &a.ints),
        "sparse_value" => dense(a.sparse_tensor.as_ref().context("sparse_value holds no tensor")?)?,
        _ => return Ok(()),
    };
    node.attribute = vec![attribute::tensor("value", tensor)];
    Ok(())
}

/// The dense form of a sparse tensor: indices are numbers of places, or a row of coordinates for each element.
fn dense(sparse: &SparseTensorProto) -> Result<TensorProto> {
    let (Some(values), Some(indices)) = (&sparse.values, &sparse.indices) else {
        bail!("a sparse tensor lacks a part")
    };
    let mut tensor = TensorProto { dims: sparse.dims.clone(), ..Default::default() };
    let count = tensor.element_count().filter(|&n| n <= MAX_ELEMENTS);
    let count = count.with_context(|| format!("sparse tensor '{}' is too large", values.name()))?;
    let coordinates = indices.integers()?;
    let places: Vec<usize> = if indices.dims.len() <= 1 {
        coordinates.iter().map(|&i| usize::try_from(i)).collect::<Result<_, _>>()?
    } else {
        ensure!(!sparse.dims.is_empty(), "sparse tensor '{}' has no dimensions", values.name());
        let place = |row: &[i64]| {
            row.iter().zip(&sparse.dims).try_fold(0i64, |place, (&i, &d)| {
                (0..d).contains(&i).then(|| place.checked_mul(d)?.checked_add(i)).flatten()
            })
        };
        let rows = coordinates.chunks_exact(sparse.dims.len()).map(|row| Some(place(row)? as usize));
        rows.collect::<Option<_>>().context("an index of a sparse tensor is out of range")?
    };
    let element = values.element_type();
    tensor = if element.is_float() {
        let mut all = vec![0.0; count];
        scatter(&mut all, &places, &values.floats()?)?;
        TensorProto::from_floats(element, &sparse.dims, &all)?
    } else {
        ensure!(element.bits().is_some_and(|b| (8..=64).contains(&b)), "a sparse tensor of {}", element.name());
        let mut all = vec![0; count];
        scatter(&mut all, &places, &values.integers()?)?;
        TensorProto::from_ints(element, &sparse.dims, &all)?
    };
    tensor.name = values.name.clone();
    Ok(tensor)
}

fn scatter<T: Copy>(all: &mut [T], places: &[usize], values: &[T]) -> Result<()> {
    for (&place, &value) in places.iter().zip(values) {
        *all.get_mut(place).context("an index of a sparse tensor is out of range")? = value;
    }
    Ok(())
}

/// The integers of the small constants of a graph.
fn constant_integers(graph: &GraphProto) -> HashMap<String, Vec<i64>> {
    let read = |t: &TensorProto| {
        (t.element_type() == ElementType::Int64 && t.element_count()? <= 64).then(|| t.integers().ok())?
    };
    let initializers = graph.initializer.iter().filter_map(|t| Some((t.name().to_owned(), read(t)?)));
    let nodes = graph.node.iter().filter(|n| n.op_type() == "Constant").filter_map(|n| {
        let a = n.attribute.first()?;
        let values = match a.name() {
            "value" => read(a.t.as_deref()?)?,
            "value_ints" => a.ints.clone(),
            _ => return None,
        };
        Some((n.output.first()?.clone(), values))
    });
    initializers.chain(nodes).collect()
}

/// Negative pads crop: a Slice in front does that, and the Pad keeps the others.
fn crop_first(node: &mut NodeProto, integers: &HashMap<String, Vec<i64>>, opset: i64, nodes: &mut Vec<NodeProto>) {
    let pads = match node.input.get(1) {
        Some(name) if opset >= 11 => integers.get(name).cloned(),
        _ => attribute::get_ints(&node.attribute, "pads").map(<[i64]>::to_vec),
    };
    if pads.is_none() {
        node.attribute.push(attribute::int(COMPUTED, 1));
    }
    let Some(pads) = pads.filter(|p| p.iter().any(|&p| p < 0) && opset >= 11 && node.output.len() == 1) else { return };
    let rank = pads.len() / 2;
    let axes = match node.input.get(3).filter(|a| !a.is_empty()) {
        Some(name) => match integers.get(name) {
            Some(axes) if axes.len() == rank => axes.clone(),
            _ => return,
        },
        None => (0..rank as i64).collect(),
    };
    let starts: Vec<i64> = pads[..rank].iter().map(|&p| p.min(0).saturating_neg()).collect();
    let ends: Vec<i64> = pads[rank..].iter().map(|&p| if p < 0 { p } else { i64::MAX }).collect();
    let rest: Vec<i64> = pads.iter().map(|&p| p.max(0)).collect();
    let prefix = node.output[0].clone();
    let mut ints = |what: &str, values: &[i64]| {
        let name = format!("{prefix}/{what}");
        let tensor = TensorProto::from_int64(&[values.len() as i64], values);
        nodes.push(self::node("Constant", &[], &name, vec![attribute::tensor("value", tensor)]));
        name
    };
    let (starts, ends, axes, rest) =
        (ints("starts", &starts), ints("ends", &ends), ints("axes", &axes), ints("pads", &rest));
    let cropped = format!("{prefix}/cropped");
    nodes.push(self::node("Slice", &[&node.input[0], &starts, &ends, &axes], &cropped, vec![]));
    node.input[0] = cropped;
    node.input[1] = rest;
}

/// `alpha A B + beta C`, of which tract has the product and the sum in float32 only.
fn gemm(gemm: &NodeProto, nodes: &mut Vec<NodeProto>) {
    let (Some(y), [a, b, rest @ ..]) = (gemm.output.first(), gemm.input.as_slice()) else { return };
    let mut emit = |op: &str, inputs: &[&str], output: String, attributes: Vec<AttributeProto>| {
        nodes.push(node(op, inputs, &output, attributes));
        output
    };
    let mut operand = |name: &str, flag: &str| match attribute::get_int(&gemm.attribute, flag).unwrap_or(0) {
        0 => name.to_owned(),
        _ => emit("Transpose", &[name], format!("{y}/{flag}"), vec![attribute::ints("perm", &[1, 0])]),
    };
    let (a, b) = (operand(a, "transA"), operand(b, "transB"));
    let product = emit("MatMul", &[&a, &b], format!("{y}/product"), vec![]);
    let mut scaled = |name: &str, by: &str| {
        let factor = attribute::get_float(&gemm.attribute, by).unwrap_or(1.0);
        if factor == 1.0 {
            return name.to_owned();
        }
        let value = attribute::tensor("value", TensorProto::from_float32(&[], &[factor]));
        let factor = emit("Constant", &[], format!("{y}/{by}"), vec![value]);
        let factor = emit("CastLike", &[&factor, name], format!("{y}/{by}/typed"), vec![]);
        emit("Mul", &[name, &factor], format!("{y}/{by}/scaled"), vec![])
    };
    let product = scaled(&product, "alpha");
    match rest.first().filter(|c| !c.is_empty()) {
        Some(c) => {
            let c = scaled(c, "beta");
            emit("Add", &[&product, &c], y.clone(), vec![])
        }
        None => emit("Identity", &[&product], y.clone(), vec![]),
    };
}

/// Contributed operators that tract computes as ONNX Runtime does.
const CONTRIBUTED: &[&str] = &["Gelu", "GatherND", "Pad", "QuickGelu", "Range", "Trilu"];
const MAX_KERNEL: i64 = 1 << 20;

/// The operators of a model, of its bodies too, that tract has not (`known` says which it has), computes wrongly, or
/// does not survive. Each once, sorted.
pub fn unsupported(model: &ModelProto, known: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let functions: HashSet<(&str, &str)> =
        model.functions.iter().map(|f| (canonical_domain(f.domain()), f.name())).collect();
    if let Some(graph) = &model.graph {
        let opset =
            (model.opset_import.iter()).find(|o| canonical_domain(o.domain()).is_empty()).map_or(1, |o| o.version());
        look(graph, opset, known, &functions, &mut found);
    }
    found.sort();
    found.dedup();
    found
}

fn look(
    graph: &GraphProto,
    opset: i64,
    known: &dyn Fn(&str) -> bool,
    functions: &HashSet<(&str, &str)>,
    found: &mut Vec<String>,
) {
    for node in &graph.node {
        let (domain, op) = (canonical_domain(node.domain()), node.op_type());
        let ours = match domain {
            "" | "ai.onnx.ml" => true,
            "com.microsoft" if CONTRIBUTED.contains(&op) => true,
            _ => kernels::find(domain, op).is_some(),
        };
        if !ours || !known(op) || functions.contains(&(domain, op)) {
            found.push(if domain.is_empty() { op.to_owned() } else { format!("{domain}.{op}") });
        } else if let Some(what) = wrong(node, opset) {
            found.push(format!("{op} {what}"));
        }
        for body in bodies(node) {
            look(body, opset, known, functions, found);
        }
    }
}

/// What about this node tract computes wrongly or does not survive.
fn wrong(node: &NodeProto, opset: i64) -> Option<&'static str> {
    let a = node.attribute.as_slice();
    let inputs = node.input.iter().filter(|i| !i.is_empty()).count();
    match node.op_type() {
        "ConvTranspose" if attribute::find(a, "output_shape").is_some() => Some("with output_shape"),
        "SpaceToDepth" if attribute::get_string(a, "mode") == Some("CRD") => Some("in CRD order"),
        "Transpose" => {
            let perm = attribute::get_ints(a, "perm")?;
            let mut sorted = perm.to_vec();
            sorted.sort_unstable();
            (!sorted.iter().copied().eq(0..perm.len() as i64)).then_some("with a perm that is no permutation")
        }
        "Scan" if opset < 9 => Some("before opset 9"),
        "Scan" => {
            let scanned = attribute::get_int(a, "num_scan_inputs").unwrap_or(0);
            (!(0..=inputs as i64).contains(&scanned)).then_some("with more scan inputs than inputs")
        }
        "MaxPool" | "AveragePool" | "Conv" | "ConvTranspose" => {
            let kernel = attribute::get_ints(a, "kernel_shape")?;
            let size = kernel.iter().try_fold(1i64, |n, &k| n.checked_mul(k));
            (kernel.iter().any(|&k| k < 0) || size.is_none_or(|n| n > MAX_KERNEL)).then_some("with a huge kernel")
        }
        _ => None,
    }
}
