//! What a step of training holds in memory at its peak: an estimate from the sizes of tensors.

use crate::graph::{Dim, Graph, IdMap, IdSet, Loaded, ValueId};
use crate::memory::MOST;
use crate::onnx::proto::{tensor_shape_proto::dimension::Value as Size, type_proto::Value as Type};
use crate::onnx::{ElementType, ModelProto};
use crate::training::OPTIMIZERS;
use crate::{Gradients, Model, rules};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// The memory of a step in bytes, each tensor held from the node that computes it to the last one that takes it, in the
/// order of the nodes. What engines need beside it, as work space of their kernels, is not in it.
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
    let counted = Sizes { graph, sizes, open: RefCell::default(), unknown: Cell::default() };
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
    if !weights.is_empty() {
        let built = Gradients::new(named(ys), named(weights)).build_onto(Model::from(model.clone())).ok();
        found.backward = built.and_then(|built| {
            let whole = rules::load(&built.model.proto).ok()?;
            let ends: Vec<ValueId> =
                built.gradients.iter().filter_map(|g| whole.names.get(g.name.as_deref()?).copied()).collect();
            let within = Sizes { graph: &whole.graph, sizes, open: RefCell::default(), unknown: Cell::default() };
            let most = peak(&whole.graph, &within, &ends);
            counted.open.borrow_mut().append(&mut within.open.borrow_mut());
            counted.unknown.set(counted.unknown.get().max(within.unknown.get()));
            Some(most)
        });
    }
    found.open = counted.open.take().into_iter().collect();
    found.unknown = counted.unknown.get();
    found
}

/// The sizes of tensors, and what they depend on that is not known.
struct Sizes<'a> {
    graph: &'a Graph,
    sizes: &'a BTreeMap<String, i64>,
    open: RefCell<BTreeSet<String>>,
    unknown: Cell<usize>,
}

impl Sizes<'_> {
    fn bytes(&self, value: ValueId) -> u64 {
        let fact = self.graph.fact(value);
        let bits = fact.element.and_then(ElementType::bits);
        let (Some(shape), Some(bits)) = (&fact.shape, bits) else {
            self.unknown.set(self.unknown.get() + 1);
            return 0;
        };
        let named = |name: &str| {
            let size = self.sizes.get(name).copied();
            if size.is_none() {
                self.open.borrow_mut().insert(name.to_owned());
            }
            // One that is not given makes the whole unknown, and is said.
            Some(size.unwrap_or(1))
        };
        let size = |dim: &Dim| match dim {
            Dim::Known(n) => Some(*n),
            dim => self.graph.dims.evaluate(*dim, &named),
        };
        let elements =
            shape.iter().try_fold(1u64, |all, dim| Some(all.saturating_mul(u64::try_from(size(dim)?).ok()?)));
        if elements.is_none() {
            self.unknown.set(self.unknown.get() + 1);
        }
        elements.unwrap_or(0).saturating_mul(bits as u64).div_ceil(8).min(MOST)
    }
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
/// are held to the end, `apart` is not counted.
fn peak(graph: &Graph, sizes: &Sizes<'_>, apart: &[ValueId]) -> u64 {
    let scope = graph.scope(Graph::MAIN);
    let mut last: IdMap<ValueId, usize> = IdMap::default();
    for (n, &id) in scope.nodes.iter().enumerate() {
        last.extend(super::flow::taken(graph, id, graph.node(id)).map(|v| (v, n)));
    }
    last.extend(scope.outputs.iter().map(|&v| (v, usize::MAX)));
    let mut free = fixed(graph);
    free.extend(apart);
    let (mut held, mut most) = (0u64, 0u64);
    for &input in scope.inputs.iter().filter(|v| !free.contains(v)) {
        held = held.saturating_add(sizes.bytes(input));
    }
    let mut ends: BTreeMap<usize, u64> = BTreeMap::new();
    for (n, &id) in scope.nodes.iter().enumerate() {
        for &output in graph.node(id).outputs.iter().flatten().filter(|v| !free.contains(v)) {
            let bytes = sizes.bytes(output);
            held = held.saturating_add(bytes);
            *ends.entry(last.get(&output).copied().unwrap_or(n)).or_default() += bytes;
        }
        most = most.max(held);
        held = held.saturating_sub(ends.remove(&n).unwrap_or(0));
    }
    most
}
