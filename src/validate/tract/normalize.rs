//! The copy of a model that is handed to tract: what tract cannot run, or runs wrongly, said in another way; and what
//! cannot be said in another way, found before it runs.

use super::kernels::COMPUTED;
use crate::expr::Expr;
use crate::expr::rewrite::{Here, Named, Rewrite};
use crate::onnx::proto::{tensor_shape_proto, type_proto};
use crate::onnx::{CONSTANT, ElementType, GraphProto, ModelProto, NodeProto, TypeProto, attribute, canonical_domain};
use crate::rules::OPERATORS;
use crate::validate::edit::filling;
use crate::validate::engine::Precision;
use crate::validate::kernels;
use anyhow::{Context, Result, ensure};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// A copy of a model for tract. The graph's outputs keep their order, not always their names.
///
/// # Errors
/// Sparse tensors whose parts contradict each other.
pub fn normalize(model: &ModelProto, precision: Precision) -> Result<ModelProto> {
    let mut copy = model.clone();
    copy.metadata_props.clear();
    copy.training_info.clear();
    let mut integers = HashMap::new();
    if let Some(graph) = &mut copy.graph {
        normalize_graph(graph)?;
        constant_integers(graph, &mut integers);
        mark_computed(graph, &integers);
    }
    // In float64 it is computed by ourselves (`dense.rs`).
    let is_gemm = |node: &NodeProto| precision == Precision::Own && node.is("Gemm");
    let said_otherwise = |node: &NodeProto| is_gemm(node) || crops(node, &integers);
    if copy.graph.as_ref().is_some_and(|graph| holds(graph, &said_otherwise)) {
        let rewrite = Rewrite::new("tract").nodes(is_gemm, gemm).nodes(|n| crops(n, &integers), crop_first);
        rewrite.apply(&mut copy, OPERATORS)?;
    }
    Ok(copy)
}

/// Whether a graph, or a body in it, holds such a node.
fn holds(graph: &GraphProto, wanted: &dyn Fn(&NodeProto) -> bool) -> bool {
    graph.node.iter().any(|node| wanted(node) || node.bodies().any(|body| holds(body, wanted)))
}

fn normalize_graph(graph: &mut GraphProto) -> Result<()> {
    graph.value_info.clear();
    for sparse in std::mem::take(&mut graph.sparse_initializer) {
        graph.initializer.push(sparse.dense()?);
    }
    // An initializer that is an input too is a default, and what is fed is no initializer any more.
    graph.close_defaults();
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(r#type) = &mut value.r#type {
            forget_symbols(r#type);
        }
    }
    for node in &mut graph.node {
        node.bodies_mut().try_for_each(normalize_graph)?;
        if node.is(CONSTANT)
            && let Some(Cow::Owned(value)) = node.constant_value()?
        {
            node.attribute = vec![attribute::tensor("value", value)];
        }
        // tract asks for what the standard lets a node leave out.
        filling(node);
    }
    // What a graph gives out has to come from a node: tract forgets the types of inputs and constants that are outputs.
    let copied: Vec<(usize, String)> = {
        let outputs: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let output = graph.output.iter().enumerate().filter(|(_, o)| !outputs.contains(o.name()));
        output.map(|(i, o)| (i, o.name().to_owned())).collect()
    };
    for (i, name) in copied {
        let output = format!("{name}/output{i}");
        graph.node.push(NodeProto::identity(&name, &output));
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

/// The integers of the small constants of a graph and of the bodies in it.
fn constant_integers(graph: &GraphProto, found: &mut HashMap<String, Vec<i64>>) {
    for (name, tensor) in graph.constants() {
        if tensor.element_type() == ElementType::Int64
            && tensor.element_count().is_some_and(|n| n <= 64)
            && let Ok(integers) = tensor.integers()
        {
            found.insert(name.to_owned(), integers);
        }
    }
    graph.node.iter().flat_map(NodeProto::bodies).for_each(|body| constant_integers(body, found));
}

/// Marks the Pads whose amounts the run computes: they are for the kernel.
fn mark_computed(graph: &mut GraphProto, integers: &HashMap<String, Vec<i64>>) {
    for node in &mut graph.node {
        node.bodies_mut().for_each(|body| mark_computed(body, integers));
        let known = match node.input.get(1) {
            Some(pads) => integers.contains_key(pads),
            None => attribute::get_ints(&node.attribute, "pads").is_some(),
        };
        if node.is("Pad") && !known {
            node.attribute.push(attribute::int(COMPUTED, 1));
        }
    }
}

/// Whether a Pad has negative amounts, in a version that takes them as an input.
fn crops(node: &NodeProto, integers: &HashMap<String, Vec<i64>>) -> bool {
    let known = |i: usize| node.input.get(i).filter(|name| !name.is_empty()).map(|name| integers.get(name));
    let negative = known(1).flatten().is_some_and(|pads| pads.iter().any(|&p| p < 0));
    node.is("Pad") && negative && known(3).is_none_or(|axes| axes.is_some())
}

/// Negative amounts crop: a Slice in front does that, and a Pad adds the others.
fn crop_first<'g>(here: &Here<'g>, pad: &NodeProto) -> Result<Named<'g>> {
    let x = here.input(pad, 0)?;
    let pads = here.input(pad, 1)?.ints().context("the amounts are not known")?;
    let axes = match here.opt(pad, 3)? {
        Some(axes) => {
            let axes = axes.ints().context("the axes are not known")?;
            axes.into_iter().map(|a| x.axis(a)).collect::<Result<Vec<usize>>>()?
        }
        None => (0..pads.len() / 2).collect(),
    };
    ensure!(pads.len() == 2 * axes.len(), "{} amounts for {} axes", pads.len(), axes.len());
    let (begins, ends) = pads.split_at(axes.len());
    let starts: Vec<i64> = begins.iter().map(|&p| p.min(0).saturating_neg()).collect();
    let stops: Vec<i64> = ends.iter().map(|&p| if p < 0 { p } else { i64::MAX }).collect();
    let cropped = x.slice(&axes, &starts, &stops, &vec![1; axes.len()]);
    let rank = if here.opt(pad, 3)?.is_some() { x.rank()? } else { axes.len() };
    let mut rest = vec![0; 2 * rank];
    for (i, &axis) in axes.iter().enumerate() {
        (rest[axis], rest[rank + axis]) = (begins[i].max(0), ends[i].max(0));
    }
    let rest = here.builder().ints(&rest);
    let y = match attribute::get_string(&pad.attribute, "mode").unwrap_or("constant") {
        "constant" => cropped.pad(rest, here.opt(pad, 2)?),
        mode => cropped.pad_mode(rest, mode),
    };
    Ok(vec![(pad.output.first().context("it has no output")?.clone(), y)])
}

/// `α A B + β C`, of which tract has the product and the sum in float32 only.
fn gemm<'g>(here: &Here<'g>, gemm: &NodeProto) -> Result<Named<'g>> {
    let number = |name: &str| f64::from(attribute::get_float(&gemm.attribute, name).unwrap_or(1.0));
    let operand = |i: usize, flag: &str| -> Result<Expr<'g>> {
        let matrix = here.input(gemm, i)?;
        Ok(match attribute::get_int(&gemm.attribute, flag).unwrap_or(0) {
            0 => matrix,
            _ => matrix.transpose(&[1, 0]),
        })
    };
    let product = operand(0, "transA")?.matmul(operand(1, "transB")?) * number("alpha");
    let y = match here.opt(gemm, 2)? {
        Some(c) => product + c * number("beta"),
        None => product,
    };
    Ok(vec![(gemm.output.first().context("it has no output")?.clone(), y)])
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
        for body in node.bodies() {
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
