//! Ranks that no node says of what it computes, but that those who take it require.
//!
//! A Squeeze without axes, or an If whose branches differ, leaves the rank to the run. A Conv that takes the result, or
//! an LSTM, takes one rank only: a run that comes to an end has that one. Which ranks an operator takes its row says,
//! or its inference is asked: of those that it accepts, with outputs of the ranks that are known or required by then,
//! only one may be left.

use super::{Bodies, Container, Dim, Fact, Graph, IdMap, NewNode, Node, NodeId, Number, Producer, Shape, ValueId};

/// Tensors of more dimensions are left alone.
const MAX_RANK: usize = 8;

/// How often what is found may help to find more, back and forth through the graph.
const MAX_ROUNDS: usize = 4;

/// Completes the facts of tensors whose rank is not known by what their consumers require.
pub fn complete(graph: &mut Graph) {
    let unknown = |graph: &Graph, id: ValueId| graph.fact(id).shape.is_none();
    if !(0..graph.values.len()).any(|i| unknown(graph, ValueId(Number::new(i)))) {
        return;
    }
    for _ in 0..MAX_ROUNDS {
        let required = requirements(graph);
        if required.is_empty() {
            return;
        }
        for (&id, &rank) in &required {
            let shape = shape_of_rank(graph, id, rank);
            graph.fact_mut(id).shape = Some(shape);
        }
        infer_again(graph, required);
    }
}

/// A node as it would be appended.
fn as_new(node: &Node) -> NewNode {
    NewNode {
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        inputs: node.inputs.clone(),
        outputs: node.outputs.iter().map(|o| o.map(|_| None)).collect(),
        attributes: node.attributes.clone(),
        bodies: node.bodies.clone(),
        ..NewNode::default()
    }
}

/// The ranks that consumers require of tensors whose rank is not known, from the last node to the first.
fn requirements(graph: &Graph) -> IdMap<ValueId, usize> {
    let mut required: IdMap<ValueId, usize> = IdMap::default();
    for node in graph.nodes.iter().rev() {
        if !node.bodies.is_empty() {
            continue;
        }
        let open = |i: &usize| node.inputs[*i].is_some_and(|v| graph.fact(v).shape.is_none() && is_own(graph, node, v));
        for i in (0..node.inputs.len()).filter(open) {
            let Some(value) = node.inputs[i].filter(|v| !required.contains_key(v)) else { continue };
            if let Some(rank) = only_rank(graph, node, i, &required) {
                required.insert(value, rank);
            }
        }
    }
    required
}

/// Whether a tensor is one of the node's own scope: what a branch requires of others holds only where it is taken.
fn is_own(graph: &Graph, node: &Node, value: ValueId) -> bool {
    let info = graph.value(value);
    info.scope == node.scope && info.fact.container == Container::Tensor && info.producer != Producer::Initializer
}

/// The one rank of an input with which the node can be computed.
fn only_rank(graph: &Graph, node: &Node, input: usize, required: &IdMap<ValueId, usize>) -> Option<usize> {
    if let Some(&Some(rank)) = graph.traits(node).ranks.get(input) {
        return Some(rank);
    }
    let new = as_new(node);
    let known: Vec<Option<Fact>> = node
        .inputs
        .iter()
        .map(|i| {
            i.map(|i| {
                let mut fact = graph.fact(i).clone();
                if let (None, Some(&rank)) = (&fact.shape, required.get(&i)) {
                    fact.shape = Some(any_shape(graph, rank));
                }
                fact
            })
        })
        .collect();
    let rank_of = |o: &Option<ValueId>| o.and_then(|o| graph.fact(o).rank().or_else(|| required.get(&o).copied()));
    let outputs: Vec<Option<usize>> = node.outputs.iter().map(rank_of).collect();
    let fits = |rank: &usize| {
        let mut facts = known.clone();
        let taken = node.inputs[input];
        for (fact, id) in facts.iter_mut().zip(&node.inputs).filter(|(_, id)| **id == taken) {
            *fact = id.and(fact.take()).map(|f| Fact { shape: Some(any_shape(graph, *rank)), ..f });
        }
        let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        graph.infer_from(&new, &facts).is_ok_and(|found| {
            let contradicts = |(f, rank): (&Fact, &Option<usize>)| f.rank().zip(*rank).is_some_and(|(a, b)| a != b);
            !found.iter().zip(&outputs).any(contradicts)
        })
    };
    let mut ranks = (0..=MAX_RANK).filter(fits);
    match (ranks.next(), ranks.next()) {
        (Some(rank), None) => Some(rank),
        _ => None,
    }
}

/// Which tensor leaves the rank of another to the run, and the node that computes it: the first on the way there.
pub fn cause(graph: &Graph, mut id: ValueId) -> (ValueId, Option<NodeId>) {
    // A list of sizes of unknown length leaves a rank open, too.
    let unknown = |v: &ValueId| {
        let fact = graph.fact(*v);
        fact.container == Container::Tensor
            && (fact.shape.is_none()
                || (!fact.may_carry_gradient() && matches!(fact.shape.as_deref(), Some([Dim::Symbol(_)]))))
    };
    loop {
        let Some((node, _)) = graph.producer(id) else { return (id, None) };
        match graph.node(node).inputs.iter().flatten().copied().find(unknown) {
            Some(before) => id = before,
            None => return (id, Some(node)),
        }
    }
}

/// For each output of a node that is to be appended the input whose shape it has, of those of which not even the rank
/// is known: an operator that makes three sizes of their own of three such sizes makes of any shape the same.
pub fn like(graph: &Graph, new: &NewNode) -> Vec<Option<ValueId>> {
    // What is made to the measure of a tensor has its shape.
    let sizes = graph.traits_of(&new.domain, &new.op_type).sizes;
    if let Some((shape, _)) =
        sizes.and_then(|i| new.inputs.get(i).copied().flatten()).and_then(|sizes| graph.producer(sizes))
    {
        let shape = graph.node(shape);
        let whole = graph.traits(shape).measures && shape.attributes.is_empty();
        return vec![shape.inputs.first().copied().flatten().filter(|_| whole)];
    }
    let tensors = |v: &&ValueId| graph.fact(**v).shape.is_none() && graph.fact(**v).container == Container::Tensor;
    let Some(&first) = new.inputs.iter().flatten().find(tensors) else { return vec![] };
    if !new.bodies.is_empty() {
        return vec![];
    }
    let mark = any_shape(graph, 3);
    let facts = new.inputs.iter().map(|input| {
        input.map(|v| match graph.same_shape(v, first) {
            true => Fact { shape: Some(mark.clone()), value: None, ..graph.fact(v).clone() },
            false => graph.fact(v).clone(),
        })
    });
    let facts: Vec<Option<Fact>> = facts.collect();
    let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    // A list or a number has no part in the shape, a matrix might be broadcast.
    let small = |f: &&Fact| f.shape.as_deref() == Some(&*mark) || f.rank().is_some_and(|rank| rank == 0);
    let clear = facts.iter().flatten().all(small) || new.inputs.len() == 1;
    let found = graph.infer_from(new, &facts).unwrap_or_default();
    found.into_iter().map(|f| (clear && f.shape.as_deref() == Some(&*mark)).then_some(first)).collect()
}

fn any_shape(graph: &Graph, rank: usize) -> Shape {
    (0..rank).map(|_| graph.dims.fresh()).collect()
}

/// The shape of a tensor that turns out to have that rank, by the node that computes it.
fn shape_of_rank(graph: &Graph, id: ValueId, rank: usize) -> Shape {
    let by_node = || {
        let (node, output) = graph.producer(id)?;
        let node = graph.node(node);
        let traits = graph.traits(node);
        match traits.bodies {
            // The shape is that of the only branch that gives the rank.
            Bodies::Branches => {
                let given = |&(_, body): &(_, super::ScopeId)| {
                    graph.fact(*graph.scope(body).outputs.get(output)?).shape.clone()
                };
                let mut fit = node.bodies.iter().filter_map(given).filter(|s| s.len() == rank);
                let other = |body: &(_, super::ScopeId)| given(body).is_none_or(|s| s.len() == rank);
                fit.next().filter(|_| node.bodies.iter().filter(|b| other(b)).count() == 1)
            }
            // As many sizes of one have gone as that leaves.
            _ if traits.squeezes => {
                let input = graph.fact(node.inputs.first().copied().flatten()?).shape.clone()?;
                let kept: Shape = input.iter().copied().filter(|&d| d != Dim::Known(1)).collect();
                (kept.len() == rank).then_some(kept)
            }
            _ => None,
        }
    };
    by_node().unwrap_or_else(|| any_shape(graph, rank))
}

/// Finds the facts of the nodes behind the changed tensors again, and fills in what was not known.
fn infer_again(graph: &mut Graph, changed: IdMap<ValueId, usize>) {
    let mut changed: super::IdSet<ValueId> = changed.into_keys().collect();
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let bodies_change =
            || node.bodies.iter().any(|&(_, body)| graph.scope(body).outputs.iter().any(|o| changed.contains(o)));
        if !node.inputs.iter().flatten().any(|v| changed.contains(v)) && !bodies_change() {
            continue;
        }
        let new = as_new(node);
        let Ok(facts) = graph.infer(&new) else { continue };
        for (output, found) in graph.node(NodeId(Number::new(i))).outputs.clone().into_iter().zip(facts) {
            let Some(id) = output else { continue };
            let fact = graph.fact_mut(id);
            let more =
                (fact.shape.is_none() && found.shape.is_some()) || (fact.value.is_none() && found.value.is_some());
            fact.element = fact.element.or(found.element);
            fact.shape = fact.shape.take().or(found.shape);
            fact.value = fact.value.take().or(found.value);
            if more {
                changed.insert(id);
            }
        }
    }
}
