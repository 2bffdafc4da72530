//! A model in pieces that one can look at: each layer with what follows it, in the order in which they are computed.

use super::flow::{Flow, State, taken};
use crate::graph::{Graph, IdMap, IdSet, NodeId, ValueId};
use crate::rules;
use std::collections::BTreeMap;

/// Nodes that belong together: one that has weights and is the main operator of a layer, and what follows it.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// The nodes, in the order of the model.
    pub nodes: Vec<NodeId>,
    /// The node that it is named after.
    pub main: Option<NodeId>,
    /// What becomes of gradients in it: the worst that is missing, else what passes, else what stops.
    pub state: State,
    /// At how many nodes a gradient stops on its way into an input.
    pub stops: usize,
    /// How many layers lie before it on the longest path.
    pub rank: usize,
}

/// The layers of a model, and what goes from one to another.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// The layers: what one takes, earlier ones compute.
    pub layers: Vec<Layer>,
    /// From which layer to which something goes, and whether a gradient comes back.
    pub edges: BTreeMap<(usize, usize), bool>,
    /// Which layers take a graph input, by the input's place, and whether a gradient arrives there.
    pub inputs: BTreeMap<(usize, usize), bool>,
    /// Which layer computes a graph output, by the output's place.
    pub outputs: BTreeMap<usize, usize>,
}

/// The layers of the main graph. Up to `single` nodes each is one of its own; there are no more than `most`.
pub fn layers(graph: &Graph, flow: &Flow, single: usize, most: usize) -> Layers {
    /// More than that is no piece that one can look at.
    const LARGEST: usize = 64;
    let scope = graph.scope(Graph::MAIN);
    let (held, outer) = (held(graph), scope.nodes.len() <= single);
    let mut of: IdMap<NodeId, usize> = IdMap::default();
    let mut found: Vec<Layer> = vec![Layer::default()];
    let mut follows: BTreeMap<usize, usize> = BTreeMap::new();
    for &id in &scope.nodes {
        let node = graph.node(id);
        let constant = !node.outputs.is_empty() && node.outputs.iter().flatten().all(|o| held.contains(o));
        if constant && !outer {
            continue;
        }
        let weights = rules::row(graph, node).filter(|r| r.layer).map(|r| r.weights).unwrap_or_default();
        let begins = weights.iter().any(|&i| node.inputs.get(i).copied().flatten().is_some_and(|v| held.contains(&v)));
        let behind = taken(graph, id, node).filter_map(|v| graph.producer(v)).filter_map(|(p, _)| of.get(&p)).max();
        let behind = behind.copied().unwrap_or(0);
        let mut place = behind;
        if begins || outer {
            found.push(Layer { main: Some(id), ..Layer::default() });
            place = found.len() - 1;
        }
        // What follows a layer that is full stands in one of its own.
        while found[place].nodes.len() >= LARGEST {
            let next = *follows.entry(place).or_insert(found.len());
            if next == found.len() {
                found.push(Layer::default());
            }
            follows.insert(behind, next);
            place = next;
        }
        found[place].nodes.push(id);
        of.insert(id, place);
    }
    place_constants(graph, &held, &mut of, &mut found);
    let mut layers = merged(found, &mut of, most);
    for layer in &mut layers.layers {
        let states = || layer.nodes.iter().map(|&id| flow.state(id));
        layer.state = states().max().unwrap_or_default();
        layer.stops = layer.nodes.iter().filter(|id| flow.stops_in(**id)).count();
    }
    connect(graph, flow, &of, &mut layers);
    layers
}

/// What is made of constants alone.
fn held(graph: &Graph) -> IdSet<ValueId> {
    let scope = graph.scope(Graph::MAIN);
    let inputs: IdSet<ValueId> = scope.inputs.iter().copied().collect();
    let mut held: IdSet<ValueId> = scope.initializers.iter().copied().filter(|v| !inputs.contains(v)).collect();
    for &id in &scope.nodes {
        let node = graph.node(id);
        if taken(graph, id, node).all(|v| held.contains(&v)) {
            held.extend(node.outputs.iter().flatten());
        }
    }
    held
}

/// Puts what is made of constants into the first layer that takes it.
fn place_constants(graph: &Graph, held: &IdSet<ValueId>, of: &mut IdMap<NodeId, usize>, found: &mut [Layer]) {
    let mut wanted: IdMap<ValueId, usize> = IdMap::default();
    let mut placed: Vec<(NodeId, usize)> = Vec::new();
    for &id in graph.scope(Graph::MAIN).nodes.iter().rev() {
        let node = graph.node(id);
        let place = match of.get(&id) {
            Some(&place) => place,
            None => {
                let place = node.outputs.iter().flatten().filter_map(|o| wanted.get(o)).min().copied().unwrap_or(0);
                placed.push((id, place));
                place
            }
        };
        for value in taken(graph, id, node).filter(|v| held.contains(v)) {
            wanted.entry(value).and_modify(|first| *first = place.min(*first)).or_insert(place);
        }
    }
    for (id, place) in placed {
        of.insert(id, place);
        found[place].nodes.push(id);
    }
    // Ids grow along the model.
    found.iter_mut().for_each(|layer| layer.nodes.sort_unstable());
}

/// The layers without those that hold nothing, neighbours put together until there are few enough.
fn merged(found: Vec<Layer>, of: &mut IdMap<NodeId, usize>, most: usize) -> Layers {
    let found: Vec<Layer> = found.into_iter().filter(|layer| !layer.nodes.is_empty()).collect();
    let run = found.len().div_ceil(most.max(1)).max(1);
    let mut layers = Vec::new();
    for part in found.chunks(run) {
        let mut nodes: Vec<NodeId> = part.iter().flat_map(|l| l.nodes.iter().copied()).collect();
        nodes.sort_unstable();
        of.extend(nodes.iter().map(|&id| (id, layers.len())));
        layers.push(Layer { nodes, main: part.iter().find_map(|l| l.main), ..Layer::default() });
    }
    Layers { layers, ..Layers::default() }
}

fn connect(graph: &Graph, flow: &Flow, of: &IdMap<NodeId, usize>, layers: &mut Layers) {
    let scope = graph.scope(Graph::MAIN);
    let inputs: IdMap<ValueId, usize> = scope.inputs.iter().enumerate().map(|(i, &v)| (v, i)).collect();
    for &id in &scope.nodes {
        let Some(&to) = of.get(&id) else { continue };
        for value in taken(graph, id, graph.node(id)) {
            let carries = flow.carries(value) && matches!(flow.state(id), State::Flows | State::Missing);
            let from = graph.producer(value).and_then(|(p, _)| of.get(&p).copied());
            match (from, inputs.get(&value)) {
                (Some(from), _) if from != to => *layers.edges.entry((from, to)).or_default() |= carries,
                (None, Some(&input)) => *layers.inputs.entry((input, to)).or_default() |= carries,
                _ => (),
            }
        }
    }
    // Constants may stand in a layer behind one that takes them through another; what goes back is not drawn.
    layers.edges.retain(|&(from, to), _| from < to);
    for &(from, to) in layers.edges.keys() {
        // In the order of where they come from, so that each is final when it is asked.
        layers.layers[to].rank = layers.layers[to].rank.max(layers.layers[from].rank + 1);
    }
    for (place, &output) in scope.outputs.iter().enumerate() {
        let from = graph.producer(output).and_then(|(p, _)| of.get(&p).copied());
        layers.outputs.extend(from.map(|from| (place, from)));
    }
}
