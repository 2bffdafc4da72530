//! Ranks that no node says of what it computes, but that those who take it require.
//!
//! A Squeeze without axes, or an If whose branches differ, leaves the rank to the run. A Conv that takes the result, or
//! an LSTM, takes one rank only: a run that comes to an end has that one. Which ranks an operator takes its row says,
//! or its inference is asked: of those that it accepts, with outputs of the ranks that are known or required by then,
//! only one may be left.

use super::{
    Bodies, Container, Dim, Fact, Graph, IdMap, IdSet, NewNode, Node, NodeId, Number, Producer, Shape, ValueId,
};

/// Tensors of more dimensions are left alone.
const MAX_RANK: usize = 8;

/// Of so many inputs that may each have any rank all ways are tried out.
const MAX_UNKNOWN: usize = 2;

/// Of a node with many inputs so many are tried out that at most this many inputs are looked at in all, for each rank:
/// a sum of thousands of unknown tensors requires nothing of them that is worth a look at all for each.
const MAX_LOOKS: usize = 1 << 16;

/// A node is written in at most so many ways.
const MAX_WAYS: usize = MAX_RANK + 1;

/// How often what is found may help to find more, back and forth through the graph.
const MAX_ROUNDS: usize = 4;

/// Completes the facts of tensors whose rank is not known by what their consumers require. Where nodes cannot take what
/// follows from that, no run comes to an end, and what is written of such a model says so: a requirement that leads to
/// a contradiction is not believed.
pub fn complete(graph: &mut Graph) {
    let unknown = |graph: &Graph, id: ValueId| graph.fact(id).shape.is_none();
    if !(0..graph.values.len()).any(|i| unknown(graph, ValueId(Number::new(i)))) {
        return;
    }
    let mut refused = IdSet::default();
    for _ in 0..MAX_ROUNDS {
        let required = requirements(graph, &refused);
        if required.is_empty() {
            return;
        }
        let mut trial = Trial { required: &required, before: IdMap::default() };
        for (&id, &rank) in &required {
            let shape = shape_of_rank(graph, id, rank);
            let fact = graph.fact(id).clone();
            trial.set(graph, id, Fact { shape: Some(shape), ..fact });
        }
        let contradicted = trial.infer_again(graph);
        if !contradicted.is_empty() {
            trial.undo(graph);
            refused.extend(contradicted);
        }
    }
}

/// A node as it would be appended.
pub fn as_new(node: &Node) -> NewNode {
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

/// The ranks that consumers require of tensors whose rank is not known, from the last node to the first, but
/// of those that are refused.
fn requirements(graph: &Graph, refused: &IdSet<ValueId>) -> IdMap<ValueId, usize> {
    let mut required: IdMap<ValueId, usize> = IdMap::default();
    for node in graph.nodes.iter().rev() {
        if !node.bodies.is_empty() {
            continue;
        }
        let open = |i: &usize| node.inputs[*i].is_some_and(|v| graph.fact(v).shape.is_none() && is_own(graph, node, v));
        let tried = MAX_LOOKS / node.inputs.len().max(1);
        for i in (0..node.inputs.len()).filter(open).take(tried.max(1)) {
            let asked = |v: &ValueId| !required.contains_key(v) && !refused.contains(v);
            let Some(value) = node.inputs[i].filter(asked) else { continue };
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
    let taken = node.inputs[input]?;
    let fits = |rank: &usize| takes(graph, node, required, &[(taken, any_shape(graph, *rank))]);
    let mut ranks = (0..=MAX_RANK).filter(fits);
    match (ranks.next(), ranks.next()) {
        (Some(rank), None) => Some(rank),
        _ => None,
    }
}

/// Whether a node can be computed of inputs of these shapes, and of what is known or required of the others; its
/// outputs have the ranks that are known or required of them.
fn takes(graph: &Graph, node: &Node, required: &IdMap<ValueId, usize>, shapes: &[(ValueId, Shape)]) -> bool {
    let fact = |id: ValueId| {
        let fact = graph.fact(id).clone();
        let shape = match shapes.iter().find(|s| s.0 == id) {
            Some((_, shape)) => Some(shape.clone()),
            None => fact.shape.or_else(|| required.get(&id).map(|&rank| any_shape(graph, rank))),
        };
        Fact { shape, ..fact }
    };
    let facts: Vec<Option<Fact>> = node.inputs.iter().map(|i| i.map(fact)).collect();
    let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let rank_of = |o: &Option<ValueId>| o.and_then(|o| graph.fact(o).rank().or_else(|| required.get(&o).copied()));
    let contradicts = |(f, o): (&Fact, &Option<ValueId>)| f.rank().zip(rank_of(o)).is_some_and(|(a, b)| a != b);
    graph.infer_from(&as_new(node), &facts).is_ok_and(|found| !found.iter().zip(&node.outputs).any(contradicts))
}

/// The ranks that those inputs of a node may have of which they are not known, one list for each way in which the node
/// can be computed; none where these are more than [`MAX_WAYS`].
pub fn possible(graph: &Graph, node: &Node) -> Vec<Vec<(ValueId, usize)>> {
    let ranks = graph.traits(node).ranks;
    let unknown = |v: &ValueId| graph.fact(*v).shape.is_none() && graph.fact(*v).container == Container::Tensor;
    // Tensors of one shape have one rank.
    let mut groups: Vec<(Vec<ValueId>, Option<usize>)> = Vec::new();
    for (i, input) in node.inputs.iter().enumerate() {
        let Some(input) = input.filter(unknown) else { continue };
        let own = ranks.get(i).copied().flatten();
        match groups.iter_mut().find(|(values, _)| graph.same_shape(values[0], input)) {
            Some((values, rank)) => {
                values.push(input);
                *rank = rank.or(own);
            }
            None => groups.push((vec![input], own)),
        }
    }
    if groups.is_empty() || groups.len() > MAX_UNKNOWN {
        return vec![];
    }
    let mut ways: Vec<Vec<usize>> = vec![vec![]];
    for (_, rank) in &groups {
        let own = rank.map_or(0..=MAX_RANK, |rank| rank..=rank);
        ways = ways.iter().flat_map(|way| own.clone().map(move |rank| [&way[..], &[rank]].concat())).collect();
    }
    let none = IdMap::default();
    let fits = |way: &Vec<usize>| {
        let shapes = groups.iter().zip(way).flat_map(|((values, _), &rank)| {
            let shape = any_shape(graph, rank);
            values.iter().map(move |&v| (v, shape.clone()))
        });
        takes(graph, node, &none, &shapes.collect::<Vec<_>>())
    };
    ways.retain(fits);
    let ranked = |way: Vec<usize>| {
        groups.iter().zip(way).flat_map(|((values, _), rank)| values.iter().map(move |&v| (v, rank))).collect()
    };
    if ways.len() > MAX_WAYS { vec![] } else { ways.into_iter().map(ranked).collect() }
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
        // What a branch gives may be what it takes from around it.
        match graph.node(node).inputs.iter().flatten().copied().chain(graph.captures(node)).find(unknown) {
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
            // All sizes of one have gone, if that leaves so many.
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

/// What is known while it is tried out what ranks that are required lead to.
struct Trial<'r> {
    required: &'r IdMap<ValueId, usize>,
    /// What was known before of what has changed.
    before: IdMap<ValueId, Fact>,
}

impl Trial<'_> {
    fn set(&mut self, graph: &mut Graph, id: ValueId, fact: Fact) {
        let old = std::mem::replace(graph.fact_mut(id), fact);
        self.before.entry(id).or_insert(old);
    }

    fn undo(self, graph: &mut Graph) {
        for (id, fact) in self.before {
            *graph.fact_mut(id) = fact;
        }
    }

    /// Finds the facts of the nodes behind the changed tensors again, and fills in what was not known. Returns the
    /// required ranks of which a node that runs in any run cannot take what follows.
    fn infer_again(&mut self, graph: &mut Graph) -> IdSet<ValueId> {
        let (mut contradicted, mut seen) = (IdSet::default(), IdSet::default());
        for i in 0..graph.nodes.len() {
            let id = NodeId(Number::new(i));
            let node = graph.node(id);
            let changed = |v: &ValueId| self.before.contains_key(v);
            let bodies_change = || node.bodies.iter().any(|&(_, body)| graph.scope(body).outputs.iter().any(changed));
            let required = |o: &ValueId| self.required.contains_key(o);
            if !node.inputs.iter().flatten().any(changed)
                && !node.outputs.iter().flatten().any(required)
                && !bodies_change()
            {
                continue;
            }
            match self.inferred(graph, node) {
                Some(facts) => {
                    for (output, found) in graph.node(id).outputs.clone().into_iter().zip(facts) {
                        output.into_iter().for_each(|output| self.learn(graph, output, found.clone()));
                    }
                }
                None if graph.is_dead(node.scope) => (),
                None => self.roots(graph, id, &mut seen, &mut contradicted),
            }
        }
        contradicted
    }

    /// What is inferred of the outputs of a node; nothing where it contradicts what is known, or required.
    fn inferred(&self, graph: &Graph, node: &Node) -> Option<Vec<Fact>> {
        let rank = |v: &Option<ValueId>| v.and_then(|v| graph.fact(v).rank());
        let other = |a: Option<usize>, b: Option<usize>| a.zip(b).is_some_and(|(a, b)| a != b);
        let ranks = graph.traits(node).ranks;
        let facts = graph.infer(&as_new(node)).ok()?;
        let contradicts = node.inputs.iter().zip(ranks).any(|(input, &own)| other(rank(input), own))
            || node.outputs.iter().zip(&facts).any(|(output, found)| other(rank(output), found.rank()));
        (!contradicts).then_some(facts)
    }

    /// Completes what is known of a tensor by what its node computes. Of sizes that stand for any the node's are taken.
    fn learn(&mut self, graph: &mut Graph, id: ValueId, found: Fact) {
        let own = graph.fact(id).clone();
        let any = self.required.contains_key(&id);
        let more =
            (found.shape.is_some() && (own.shape.is_none() || any)) || (found.value.is_some() && own.value.is_none());
        let shape = if any { found.shape.or(own.shape) } else { own.shape.or(found.shape) };
        let fact = Fact {
            container: own.container,
            element: own.element.or(found.element),
            shape,
            value: own.value.or(found.value),
        };
        match more {
            true => self.set(graph, id, fact),
            false => *graph.fact_mut(id) = fact,
        }
    }

    /// Adds the required ranks from which follows what a node takes, or gives out, but of what was seen before.
    fn roots(&self, graph: &Graph, node: NodeId, seen: &mut IdSet<ValueId>, roots: &mut IdSet<ValueId>) {
        let ends = graph.node(node).outputs.iter().chain(&graph.node(node).inputs);
        let mut open: Vec<ValueId> = ends.flatten().copied().chain(graph.captures(node)).collect();
        while let Some(id) = open.pop() {
            if !self.before.contains_key(&id) || !seen.insert(id) {
                continue;
            }
            if self.required.contains_key(&id) {
                roots.insert(id);
            } else if let Some((producer, _)) = graph.producer(id) {
                let bodies = graph.node(producer).bodies.iter().flat_map(|(_, body)| &graph.scope(*body).outputs);
                open.extend(graph.node(producer).inputs.iter().flatten().chain(bodies));
            }
        }
    }
}
