//! Where gradients flow in a model, node by node, and where they stop.

use crate::graph::{Graph, IdMap, IdSet, Node, NodeId, ValueId};
use crate::rules::{self, Rule, Slot};
use serde::Serialize;

/// What becomes of a gradient at a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// None arrives, or nothing that it could lead to stands before the node.
    #[default]
    Idle,
    /// It stops here, although what stands before depends on an x.
    Stops,
    /// It passes on its way to an x.
    Flows,
    /// It would pass, but no gradient of the operator is known.
    Missing,
}

/// A place where a gradient stops.
#[derive(Clone, Debug, Serialize)]
pub struct Stop {
    /// The node, by its name or its first output's.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// The tensor that it takes and that gets nothing.
    pub input: String,
    /// Why.
    pub why: String,
}

/// Where gradients of `ys` flow on their way to `xs`.
pub struct Flow {
    states: IdMap<NodeId, State>,
    /// The places where they stop, in the order of the nodes.
    pub stops: Vec<Stop>,
    /// The nodes of these places.
    stopping: IdSet<NodeId>,
    /// What both depends on an x and leads to a y, by paths that let gradients pass.
    carries: IdSet<ValueId>,
}

impl Flow {
    /// Two walks over the main graph: forwards from the xs, backwards from the ys.
    pub fn new(graph: &Graph, xs: &[ValueId], ys: &[ValueId]) -> Flow {
        let nodes = &graph.scope(Graph::MAIN).nodes;
        let floats = |v: &ValueId| graph.fact(*v).may_carry_gradient();
        let mut depends: IdSet<ValueId> = xs.iter().copied().collect();
        let mut live: IdSet<ValueId> = xs.iter().copied().filter(floats).collect();
        for &id in nodes {
            let node = graph.node(id);
            let row = rules::row(graph, node);
            let outputs = || node.outputs.iter().flatten().copied();
            // A shape does not depend on the elements.
            let reads = row.is_none_or(|r| !r.shapes_only);
            if reads && taken(graph, id, node).any(|v| depends.contains(&v)) {
                depends.extend(outputs());
            }
            let enters = entering(graph, id, node, row, &live).next().is_some();
            if enters && !node.stop {
                live.extend(outputs().filter(floats));
            }
        }
        let mut flow = Flow {
            states: IdMap::default(),
            stops: Vec::new(),
            stopping: IdSet::default(),
            carries: ys.iter().copied().filter(|y| live.contains(y)).collect(),
        };
        let mut reached: IdSet<ValueId> = ys.iter().copied().filter(floats).collect();
        for &id in nodes.iter().rev() {
            let node = graph.node(id);
            if !node.outputs.iter().flatten().any(|o| reached.contains(o)) {
                continue;
            }
            let row = rules::row(graph, node);
            let entered: Vec<ValueId> =
                if node.stop { vec![] } else { entering(graph, id, node, row, &live).collect() };
            let stops = flow.stops_at(graph, id, node, row, &entered, &depends);
            let state = match (entered.is_empty(), row, stops) {
                (false, Some(_), _) => State::Flows,
                (false, None, _) => State::Missing,
                (true, _, true) => State::Stops,
                (true, _, false) => State::Idle,
            };
            flow.states.insert(id, state);
            flow.carries.extend(&entered);
            // What leads to no x is followed, too: it may be why nothing does.
            let open =
                node.inputs.iter().enumerate().filter(|(i, _)| !node.stop && is_open(row, *i)).filter_map(|(_, v)| *v);
            reached.extend(open.filter(floats));
            reached.extend(entered);
        }
        flow.stops.reverse();
        flow
    }

    /// What becomes of a gradient at a node.
    pub fn state(&self, id: NodeId) -> State {
        self.states.get(&id).copied().unwrap_or_default()
    }

    /// Whether a gradient stops on its way into one of a node's inputs.
    pub fn stops_in(&self, id: NodeId) -> bool {
        self.stopping.contains(&id)
    }

    /// Whether a gradient of a value is part of what leads to an x.
    pub fn carries(&self, value: ValueId) -> bool {
        self.carries.contains(&value)
    }

    /// Notes the inputs of a node that depend on an x and get nothing here; whether there are any.
    fn stops_at(
        &mut self,
        graph: &Graph,
        id: NodeId,
        node: &Node,
        row: Option<&Rule>,
        entered: &[ValueId],
        depends: &IdSet<ValueId>,
    ) -> bool {
        let before = self.stops.len();
        for (i, value) in node.inputs.iter().enumerate() {
            let Some(value) = value.filter(|v| depends.contains(v) && !entered.contains(v)) else { continue };
            let fact = graph.fact(value);
            let why = match row.and_then(|r| r.slot(i)) {
                _ if node.stop => "its metadata say that no gradient passes".to_owned(),
                Some(Slot::Stop(why)) => (*why).to_owned(),
                Some(Slot::Rounding(why)) => format!("{why} (--straight-through lets it pass)"),
                _ if !fact.may_carry_gradient() => {
                    let element = fact.element.map_or_else(|| "of no known type".to_owned(), |e| e.name());
                    format!("the tensor is {element}, through which no gradient passes")
                }
                // It has stopped above.
                _ => continue,
            };
            let place = graph.place(id);
            self.stops.push(Stop {
                node: place.node.unwrap_or_default(),
                operator: place.operator.unwrap_or_default(),
                input: graph.value(value).name.as_deref().unwrap_or_default().to_owned(),
                why,
            });
        }
        let found = self.stops.len() > before;
        if found {
            // They are reversed in the end.
            self.stops[before..].reverse();
            self.stopping.insert(id);
        }
        found
    }
}

/// What a node takes: its inputs, and what its bodies use from outside.
pub(super) fn taken<'a>(graph: &Graph, id: NodeId, node: &'a Node) -> impl Iterator<Item = ValueId> + 'a {
    let captured = graph.captures(id);
    node.inputs.iter().flatten().copied().chain(captured)
}

/// Whether an operator may hand a gradient to an input. One that is not known stands in the way of all.
fn is_open(row: Option<&Rule>, input: usize) -> bool {
    !matches!(row.and_then(|r| r.slot(input)), Some(Slot::Stop(_) | Slot::Rounding(_)))
}

/// What a node takes of `live` and may hand a gradient to.
fn entering<'a>(
    graph: &Graph,
    id: NodeId,
    node: &'a Node,
    row: Option<&'static Rule>,
    live: &'a IdSet<ValueId>,
) -> impl Iterator<Item = ValueId> + 'a {
    let captured = graph.captures(id);
    let inputs = node.inputs.iter().enumerate().filter(move |(i, _)| is_open(row, *i)).filter_map(|(_, v)| *v);
    inputs.chain(captured).filter(|v| live.contains(v))
}
