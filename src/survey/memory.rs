//! What a step of training holds in memory at its peak: an estimate from the sizes of tensors.

use crate::graph::write::Step;
use crate::graph::{Graph, IdSet, Loaded, ValueId};
use crate::memory::{Ledger, MOST, Sizes};
use crate::onnx::ModelProto;
use crate::onnx::proto::{tensor_shape_proto::dimension::Value as Size, type_proto::Value as Type};
use crate::training::OPTIMIZERS;
use crate::{Gradients, Model, rules};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The memory of a step in bytes, each tensor held from the node that computes it to the last one that takes it, in the
/// order of the nodes; one that only shows another in a new shape takes nothing. What engines need beside it, as work
/// space of their kernels, is not in it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// All initializers and constants.
    pub weights: u64,
    /// What the forward pass holds at its peak beside them.
    pub forward: u64,
    /// What forward and backward pass together hold, beside the weights and the gradients of what is trained; `None`
    /// where no backward pass can be built.
    pub backward: Option<u64>,
    /// The gradients of what is trained.
    pub gradients: u64,
    /// What optimizers keep, by their names.
    pub optimizers: Vec<(&'static str, u64)>,
    /// The names of sizes on which that depends and that were not given: without them it says nothing.
    pub open: Vec<String>,
    /// How many tensors have sizes that follow from values; they count for nothing.
    pub unknown: usize,
}

/// The names of sizes in a model's inputs, in their order.
pub fn symbols(model: &ModelProto) -> Vec<String> {
    let types = model.graph.iter().flat_map(|g| &g.input).filter_map(|i| i.r#type.as_ref()?.value.as_ref());
    let shapes = types.filter_map(|t| if let Type::TensorType(t) = t { t.shape.as_ref() } else { None });
    let symbols = shapes.flat_map(|s| &s.dim).filter_map(|d| match &d.value {
        Some(Size::DimParam(symbol)) => Some(symbol.clone()),
        _ => None,
    });
    let mut seen = BTreeSet::new();
    symbols.filter(|s| seen.insert(s.clone())).collect()
}

/// The memory of a step that trains `weights` by a gradient of `ys`, where symbols have the given sizes.
pub fn memory(
    model: &ModelProto,
    loaded: &Loaded,
    weights: &[ValueId],
    ys: &[ValueId],
    sizes: &BTreeMap<String, i64>,
) -> Memory {
    let graph = &loaded.graph;
    let counted = Sizes::said(graph, sizes);
    let fixed = fixed(graph);
    let mut found = Memory {
        weights: fixed.iter().map(|&v| counted.bytes(v)).sum(),
        gradients: weights.iter().map(|&v| counted.bytes(v)).sum(),
        forward: peak(graph, &counted, &[]),
        ..Memory::default()
    };
    let elements = weights.iter().filter_map(|&v| graph.fact(v).element_count()).map(|n| (n.max(0) as u64).min(MOST));
    let elements: u64 = elements.sum();
    // What is kept of weights of half precision is kept in float32 as well.
    let kept = OPTIMIZERS.iter().filter(|o| matches!(o.name, "momentum" | "adamw"));
    found.optimizers = kept.map(|o| (o.name, elements * o.states.len() as u64 * 4)).collect();
    let name = |v: &ValueId| graph.value(*v).name.as_deref().unwrap_or_default().to_owned();
    let named = |list: &[ValueId]| list.iter().map(name).collect::<Vec<_>>();
    let mut open = BTreeSet::new();
    if !weights.is_empty() {
        let built = Gradients::new(named(ys), named(weights)).build_onto(Model::from(model.clone())).ok();
        found.backward = built.and_then(|built| {
            let whole = rules::load(&built.model.proto).ok()?;
            let ends: Vec<ValueId> =
                built.gradients.iter().filter_map(|g| whole.names.get(g.name.as_deref()?).copied()).collect();
            let within = Sizes::said(&whole.graph, sizes);
            let most = peak(&whole.graph, &within, &ends);
            open.extend(within.open());
            found.unknown = within.unknown();
            Some(most)
        });
    }
    open.extend(counted.open());
    found.open = open.into_iter().collect();
    found.unknown = found.unknown.max(counted.unknown());
    found
}

/// Initializers, and what Constant nodes hold.
fn fixed(graph: &Graph) -> IdSet<ValueId> {
    let scope = graph.scope(Graph::MAIN);
    let constants = scope.nodes.iter().map(|&id| graph.node(id));
    let constants = constants.filter(|n| n.inputs.is_empty() && n.bodies.is_empty());
    let outputs = constants.flat_map(|n| n.outputs.iter().flatten().copied());
    scope.initializers.iter().copied().chain(outputs).collect()
}

/// The most bytes that are held at a time while the nodes of the main graph run in their order; outputs of the model
/// are held to the end, inputs all the time. `apart` is not counted.
fn peak(graph: &Graph, sizes: &Sizes<'_>, apart: &[ValueId]) -> u64 {
    let scope = graph.scope(Graph::MAIN);
    let steps: Vec<Step> = scope.nodes.iter().map(|&id| Step::of(id)).collect();
    let mut ledger = Ledger::new(graph, sizes, &steps, scope.outputs.iter().copied());
    for tensor in apart.iter().filter_map(|v| ledger.tensors[v.number()]) {
        ledger.bytes[tensor as usize] = 0;
    }
    let fixed = fixed(graph);
    let inputs = scope.inputs.iter().filter(|v| !fixed.contains(v)).map(|&v| sizes.bytes(v));
    inputs.fold(ledger.peak(0..steps.len() as u32).0, u64::saturating_add)
}
