//! What gradients hold in memory: of each case that names its sizes, with large ones, no more than a few times of what goes in
//! and comes out, whatever numbers stand in the model.

mod common;

use onnx_gradients::internals::{Graph, ScopeId, ValueId, load};
use onnx_gradients::onnx::ModelProto;
use onnx_gradients::onnx::proto::{tensor_shape_proto::dimension, type_proto};
use std::collections::HashMap;

/// How often as much as goes in and comes out may be held at a time.
const MOST: i64 = 16;

/// Lists of sizes and the like, however small the tensors are.
const SMALL: i64 = 4 << 10;

/// The sizes of symbolic dimensions, times this, so that what grows faster shows.
const TIMES: i64 = 32;

fn sized(model: &mut ModelProto, sizes: &HashMap<String, i64>) {
    let Some(graph) = &mut model.graph else { return };
    for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
        let Some(type_proto::Value::TensorType(t)) = value.r#type.as_mut().and_then(|t| t.value.as_mut()) else {
            continue;
        };
        for dim in t.shape.iter_mut().flat_map(|s| &mut s.dim) {
            if let Some(dimension::Value::DimParam(name)) = &dim.value
                && let Some(&size) = sizes.get(name)
            {
                dim.value = Some(dimension::Value::DimValue(size));
            }
        }
    }
}

fn bytes(graph: &Graph, id: ValueId) -> i64 {
    let fact = graph.fact(id);
    let bits = fact.element.and_then(|e| e.bits()).unwrap_or(32) as i64;
    fact.element_count().unwrap_or(0).saturating_mul(bits) / 8
}

/// The most that is held at a time: each tensor from the node that computes it to the last one that takes it.
fn peak(graph: &Graph, scope: ScopeId) -> (i64, String) {
    let body = graph.scope(scope);
    let mut last: HashMap<ValueId, usize> = HashMap::new();
    for (i, &node) in body.nodes.iter().enumerate() {
        let captured = graph.captures(node);
        last.extend(graph.node(node).inputs.iter().flatten().chain(&captured).map(|&v| (v, i)));
    }
    last.extend(body.outputs.iter().map(|&o| (o, usize::MAX)));
    let (mut held, mut most, mut where_) = (0i64, 0i64, String::new());
    let mut ends: Vec<Vec<ValueId>> = vec![vec![]; body.nodes.len()];
    for (i, &node) in body.nodes.iter().enumerate() {
        let inside = graph.node(node).bodies.iter().map(|(_, b)| peak(graph, *b).0).max().unwrap_or(0);
        for &output in graph.node(node).outputs.iter().flatten() {
            held += bytes(graph, output);
            match last.get(&output) {
                Some(&end) if end < ends.len() => ends[end].push(output),
                Some(_) => (),
                None => ends[i].push(output),
            }
        }
        if held + inside > most {
            (most, where_) = (held + inside, graph.describe(node));
        }
        for value in std::mem::take(&mut ends[i]) {
            held -= bytes(graph, value);
        }
    }
    (most, where_)
}

#[test]
fn what_is_held_is_a_small_multiple_of_what_goes_in_and_out() {
    let mut dear = Vec::new();
    let mut measured = 0;
    for case in common::all().into_iter().filter(|c| c.order > 0) {
        let Ok(output) = case.differentiate() else { continue };
        let scaled = |(name, size): (&String, &i64)| {
            let free = common::SIZES.contains(&(name.as_str(), *size));
            (name.clone(), if free { size * TIMES } else { *size })
        };
        let sizes: HashMap<String, i64> = case.sizes.iter().map(scaled).collect();
        let (mut plain, mut model) = (case.model.clone(), output.model.proto);
        sized(&mut plain, &sizes);
        sized(&mut model, &sizes);
        // Sizes that follow from others are right as they are.
        let (Ok(plain), Ok(loaded)) = (load(&plain), load(&model)) else { continue };
        measured += 1;
        let graph = &loaded.graph;
        let main = graph.scope(Graph::MAIN);
        let ends = main.inputs.iter().chain(&main.initializers).chain(&main.outputs);
        let all = ends.map(|&v| bytes(graph, v)).sum::<i64>() + peak(&plain.graph, Graph::MAIN).0;
        let (held, node) = peak(graph, Graph::MAIN);
        if held > SMALL + MOST * all {
            dear.push(format!("{} at opset {}: {held} bytes of {all}, at {node}", case.title, case.opset));
        }
    }
    assert!(measured > 500, "{measured} cases");
    assert!(dear.is_empty(), "{}", dear.join("\n"));
}
