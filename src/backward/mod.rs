//! The backward pass: from the seeds of ys, through the nodes in reverse order, to the gradients of xs.
//!
//! It knows neither operators nor protobuf: rules say what an operator's inputs get, expressions write the nodes. It runs
//! over any list of nodes in topological order, so that rules for control flow enter it again for the nodes of a body, and
//! rules that are a formula for the one that they have written.

mod accumulate;
mod function;
mod lower;
mod request;
mod rounding;
mod select;

pub use accumulate::Aggregation;
pub use function::read_functions;
pub use lower::{Lowered, LoweredNode};
pub use request::{Gradients, Output, Seed, Unconnected};
pub(crate) use request::{all_or_errors, names_of};
pub use select::{Selection, nearest};
pub(crate) use select::{free_scope, matches};

use crate::expr::{Builder, Expr};
use crate::graph::{Dim, Graph, IdMap, IdSet, Node, NodeId, Origin, ValueId};
use crate::onnx::{ElementType, FunctionProto};
use crate::rules::{self, Call, Differentiate, Integers, Rule, Slot};
use accumulate::Accumulator;
use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use rounding::Rounding;
use std::collections::{BTreeSet, HashMap};

/// What arrives at a tensor. Absence of a flow is the third case: the tensor is not connected.
#[derive(Clone, Copy, Debug)]
pub enum Flow<'g> {
    /// A gradient.
    Value(Expr<'g>),
    /// Connected, but zero whatever the inputs are; written out only where it arrives at an x.
    Zero,
}

/// Differentiates lists of nodes.
pub struct Pass<'g> {
    builder: &'g Builder,
    aggregation: Aggregation,
    stops: IdSet<ValueId>,
    /// Rows that go before those of the table: the user's own.
    own_rules: &'g [Rule],
    /// Functions that go before every row: the user's own gradients.
    own_functions: &'g [FunctionProto],
    rounding: Rounding,
}

impl<'g> Pass<'g> {
    /// A pass that sums gradients in the given way and lets none through the outputs `stops`.
    pub fn new(builder: &'g Builder, aggregation: Aggregation, stops: IdSet<ValueId>, own_rules: &'g [Rule]) -> Self {
        Pass { builder, aggregation, stops, own_rules, own_functions: &[], rounding: Rounding::default() }
    }

    /// The pass for which rounding counts as the identity, or not.
    pub fn with_straight_through(self, straight_through: bool) -> Self {
        Pass { rounding: Rounding::new(straight_through), ..self }
    }

    /// The pass with gradients that the user gives as functions.
    pub fn with_functions(self, own_functions: &'g [FunctionProto]) -> Self {
        Pass { own_functions, ..self }
    }

    /// The gradients that arrive at `xs` from the seeds, through `nodes`, which are in topological order. `None` for an x that
    /// is not connected.
    ///
    /// # Errors
    /// An operator on a path has no rule, or its rule cannot be applied.
    pub fn differentiate(
        &'g self,
        nodes: &[NodeId],
        seeds: &[(ValueId, Expr<'g>)],
        xs: &[ValueId],
    ) -> Result<Vec<Option<Flow<'g>>>> {
        let live = self.live(nodes, xs);
        // What depends on an x is no constant, even where its value is known: folded, it would have no gradient.
        for &value in &live {
            self.builder.graph_mut().fact_mut(value).value = None;
        }
        self.check_rules(nodes, seeds, &live)?;
        let mut arrived: IdMap<ValueId, Accumulator<'g>> = IdMap::default();
        for &(y, seed) in seeds {
            if live.contains(&y) {
                arrived.entry(y).or_default().push(seed.into_flow(), self.aggregation);
            }
        }
        let wanted_xs: IdSet<ValueId> = xs.iter().copied().collect();
        for &id in nodes.iter().rev() {
            if !self.builder.graph().node(id).outputs.iter().flatten().any(|o| arrived.contains_key(o)) {
                continue;
            }
            let node = self.builder.graph().node(id).clone();
            let outside = self.builder.set_forward(Some(self.origin(id)));
            let flows = self.take_outputs(&node, &mut arrived, &wanted_xs);
            for (value, flow) in self.backward(id, &node, &flows, &live)? {
                arrived.entry(value).or_default().push(flow, self.aggregation);
            }
            self.builder.set_forward(outside);
        }
        let finish = |x: &ValueId| arrived.get_mut(x).and_then(|a| a.total(self.aggregation));
        let result = xs.iter().map(finish).collect();
        match self.builder.take_error() {
            Some(error) => Err(error),
            None => Ok(result),
        }
    }

    /// Looks for a rule for every node on a path from a y to an x, before anything is built.
    ///
    /// # Errors
    /// All operators that have none, with their nodes.
    fn check_rules(&self, nodes: &[NodeId], seeds: &[(ValueId, Expr<'g>)], live: &IdSet<ValueId>) -> Result<()> {
        let graph = self.builder.graph();
        let mut reached: IdSet<ValueId> = seeds.iter().map(|&(y, _)| y).filter(|y| live.contains(y)).collect();
        let mut missing: Vec<(String, Vec<NodeId>)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for &id in nodes.iter().rev() {
            let node = graph.node(id);
            let passes = |o: &ValueId| reached.contains(o) && !node.stop && !self.stops.contains(o);
            if !node.outputs.iter().flatten().any(passes) {
                continue;
            }
            let rule = self.rule(node);
            let before = reached.len();
            let inputs = node.inputs.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?)));
            reached.extend(inputs.filter(|&(i, v)| live.contains(&v) && self.enters(node, i, v)).map(|(_, v)| v));
            reached.extend(self.live_captures(id, live));
            let leads_on = reached.len() > before || node.inputs.iter().flatten().any(|v| live.contains(v));
            if rule.is_none() && self.own_function(node).is_none() && leads_on {
                let op = match &*node.domain {
                    "" => node.op_type.to_string(),
                    domain => format!("{domain}.{}", node.op_type),
                };
                let place = *places.entry(op.clone()).or_insert(missing.len());
                if place == missing.len() {
                    missing.push((op, vec![]));
                }
                missing[place].1.push(self.origin(id));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let list = missing.iter().rev().map(|(op, nodes)| {
            let first: Vec<String> = nodes.iter().rev().take(3).map(|&n| graph.describe(n)).collect();
            let more = if nodes.len() > 3 { format!(" and {} more", nodes.len() - 3) } else { String::new() };
            format!("{op}: {}{more}", first.join(", "))
        });
        let remedy = format!(
            "{}stop the gradient before them (--stop-gradients) or give one (--gradient-functions)",
            lower::remedy(missing.iter().map(|(op, _)| op.as_str()))
        );
        let first = missing.iter().flat_map(|(_, nodes)| nodes).min().map(|&id| graph.place(id)).unwrap_or_default();
        let list = list.collect::<Vec<_>>().join("; ");
        let error = crate::Error::no_gradient(format_args!("no gradient is known for {list}; {remedy}"));
        Err(error.at(&first).with_remedy(Some(remedy)).into())
    }

    /// The nodes that the builder has written between the leaves and the roots, in topological order.
    fn between(&self, roots: impl Iterator<Item = ValueId>, leaves: &BTreeSet<ValueId>) -> Vec<NodeId> {
        let graph = self.builder.graph();
        let mut found = BTreeSet::new();
        let mut open: Vec<ValueId> = roots.collect();
        while let Some(value) = open.pop() {
            if leaves.contains(&value) {
                continue;
            }
            if let Some((id, _)) = graph.producer(value)
                && graph.node(id).origin != Origin::Model
                && found.insert(id)
            {
                open.extend(graph.node(id).inputs.iter().flatten());
                open.extend(graph.captures(id));
            }
        }
        found.into_iter().collect()
    }

    /// Whether what a node's rule gives an input may pass to it.
    fn enters(&self, node: &Node, input: usize, value: ValueId) -> bool {
        match self.rule(node) {
            Some(rule) => {
                let known = rule.integers != Integers::Ignored || self.cotangent(value).is_none();
                let open = match rule.slot(input) {
                    Some(Slot::Stop(_)) => false,
                    Some(Slot::Rounding(_)) => self.rounding.is_straight_through(),
                    _ => true,
                };
                known && open
            }
            // An operator that is not known stands in the way of all that it takes.
            None => self.own_function(node).is_none() || self.cotangent(value).is_none(),
        }
    }

    /// The captured values of a node's bodies that lead to an x. Quantized integers do not lead out of bodies.
    fn live_captures(&self, id: NodeId, live: &IdSet<ValueId>) -> Vec<ValueId> {
        let graph = self.builder.graph();
        if graph.node(id).bodies.is_empty() {
            return vec![];
        }
        graph.captures(id).into_iter().filter(|v| live.contains(v) && self.cotangent(*v).is_none()).collect()
    }

    /// What has arrived at the outputs of a node. What has arrived at an x stays for the result, at a stop goes no further.
    fn take_outputs(
        &self,
        node: &Node,
        arrived: &mut IdMap<ValueId, Accumulator<'g>>,
        xs: &IdSet<ValueId>,
    ) -> Vec<Option<Flow<'g>>> {
        let mut take = |output: ValueId| {
            if node.stop || self.stops.contains(&output) {
                return None;
            }
            let total = arrived.get_mut(&output)?.total(self.aggregation);
            if !xs.contains(&output) {
                arrived.remove(&output);
            }
            total
        };
        node.outputs.iter().map(|o| o.and_then(&mut take)).collect()
    }

    /// What the inputs, and the values that bodies capture, get from a node whose outputs have got `flows`.
    fn backward(
        &'g self,
        id: NodeId,
        node: &Node,
        flows: &[Option<Flow<'g>>],
        live: &IdSet<ValueId>,
    ) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let inputs = node.inputs.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?)));
        let entering = inputs.filter(|&(i, v)| live.contains(&v) && self.enters(node, i, v));
        let mut wanted: Vec<ValueId> = entering.map(|(_, v)| v).collect();
        wanted.extend(self.live_captures(id, live));
        // A tensor that is taken twice gets the sum of both, once.
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() || flows.iter().all(Option::is_none) {
            return Ok(vec![]);
        }
        if let Some(function) = self.own_function(node) {
            let gradients = self.apply_function(function, node, flows, &wanted).and_then(|g| self.checked(g, false));
            return self.blame(gradients, id, None);
        }
        let Some(rule) = self.rule(node) else { return Ok(vec![]) };
        self.check_attributes(id, node, rule)?;
        let only_zeros = flows.iter().flatten().all(|f| matches!(f, Flow::Zero));
        let dys = flows.iter().map(|f| match f {
            Some(Flow::Value(dy)) => Some(*dy),
            _ => None,
        });
        let call = Call::new(self, id, dys.collect(), wanted.clone(), rule.in_float32);
        match rule.common_slot() {
            // Where only zeros arrive, zeros leave: derivatives are linear.
            _ if only_zeros => Ok(wanted.iter().map(|&v| (v, Flow::Zero)).collect()),
            Some(Slot::Through(forward)) => {
                let gradients = self.through(&call, *forward, &wanted).and_then(|g| self.checked(g, rule.in_float32));
                self.blame(gradients, id, None)
            }
            Some(Slot::Together(together)) => {
                let gradients = together(&call).and_then(|g| self.checked(g.into_found(), rule.in_float32));
                self.blame(gradients, id, None)
            }
            _ => self.slots(&call, id, node, rule),
        }
    }

    /// What each input gets by its slot. All are computed before any is used.
    fn slots(&self, call: &Call<'g>, id: NodeId, node: &Node, rule: &Rule) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let mut gradients = Vec::new();
        for (i, input) in node.inputs.iter().enumerate() {
            let Some(value) = input.filter(|v| call.wants(*v)) else { continue };
            let x = self.builder.expr(value);
            let flow = match rule.slot(i) {
                None => Err(anyhow!("the operator has no input {i}")),
                Some(slot) => self.slot(call, slot, i, x),
            };
            let flow = flow.and_then(|f| self.checked(f.map(|f| (value, f)).into_iter().collect(), rule.in_float32));
            gradients.extend(self.blame(flow, id, Some(i))?);
        }
        Ok(gradients)
    }

    fn slot(&self, c: &Call<'g>, slot: &Slot, i: usize, x: Expr<'g>) -> Result<Option<Flow<'g>>> {
        let dx = match slot {
            Slot::Stop(_) => return Ok(None),
            Slot::Zero => return Ok(Some(Flow::Zero)),
            Slot::Rounding(_) => c.dy(),
            Slot::Unary(f) => f(c.x(), c.y(), c.dy()),
            Slot::Binary(f) => f(c.input(0), c.input(1), c.y(), c.dy()).unbroadcast(x),
            Slot::Formula(f) => f(c),
            Slot::Try(f) => f(c)?,
            Slot::Broadcast(f) => f(c).unbroadcast(x),
            Slot::Each(f) => f(c, i),
            Slot::TryEach(f) => f(c, i)?,
            Slot::EachBroadcast(f) => f(c, i).unbroadcast(x),
            Slot::Through(_) | Slot::Together(_) => bail!("a formula for all inputs stands in for each of them"),
        };
        Ok(Some(dx.into_flow()))
    }

    /// The gradients of a formula that computes the node's outputs from its inputs and what its bodies capture.
    fn through(
        &'g self,
        c: &Call<'g>,
        forward: rules::Forward,
        wanted: &[ValueId],
    ) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let outputs = forward(c)?;
        // A formula may compute in another type than its result has.
        let typed = |y: Expr<'g>, dy: Expr<'g>| (dy.fact().element.map_or(y, |element| y.cast(element)), dy);
        let ys: Vec<_> = outputs.into_iter().enumerate().filter_map(|(i, y)| Some(typed(y?, c.opt_dy(i)?))).collect();
        let leaves: Vec<Expr<'g>> = wanted.iter().map(|&x| self.builder.expr(x)).collect();
        let gradients = self.through_formula(&ys, &leaves)?;
        // What the formula does not lead to is connected all the same: the operator takes it.
        Ok(wanted.iter().map(|x| (*x, gradients.get(x).map_or(Flow::Zero, |dx| Flow::Value(*dx)))).collect())
    }

    /// The gradients as flows, each held against its input. That of quantized integers has one type, whichever their consumers
    /// compute in; `rounded`: what a row returns that computes in a type of its own gets the type of its input.
    fn checked<T: IntoFlow<'g>>(
        &self,
        gradients: Vec<(ValueId, T)>,
        rounded: bool,
    ) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let own = |x: ValueId| self.builder.graph().fact(x).element.filter(|_| rounded);
        let check = |(x, flow): (ValueId, T)| {
            let flow = match (flow.into_flow(), self.cotangent(x).or_else(|| own(x))) {
                (Flow::Value(dx), Some(element)) => Flow::Value(dx.cast(element)),
                (flow, _) => flow,
            };
            if let Flow::Value(dx) = flow {
                self.hold_against(x, dx.id())?;
            }
            Ok((x, flow))
        };
        gradients.into_iter().map(check).collect()
    }

    /// A gradient has the shape and the element type of its input, or its rule is wrong. What inference does not know of it is
    /// known of the input.
    fn hold_against(&self, x: ValueId, dx: ValueId) -> Result<()> {
        let mut graph = self.builder.graph_mut();
        let (of_x, of_dx) = (graph.fact(x), graph.fact(dx));
        let element = self.cotangent(x).or(of_x.element);
        ensure!(
            element.zip(of_dx.element).is_none_or(|(a, b)| a == b),
            "its rule gives a gradient of type {:?} for {element:?}; please report this",
            of_dx.element
        );
        let Some(shape) = &of_x.shape else { return Ok(()) };
        let known = match &of_dx.shape {
            None => shape.clone(),
            Some(own) if own == shape => return Ok(()),
            Some(own) => {
                let contradict = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
                ensure!(
                    own.len() == shape.len() && !own.iter().zip(shape.iter()).any(contradict),
                    "its rule gives a gradient of shape {} for {}; please report this",
                    graph.dims.display(own),
                    graph.dims.display(shape)
                );
                own.iter().zip(shape.iter()).map(|(&own, &dim)| if own.known().is_some() { own } else { dim }).collect()
            }
        };
        graph.fact_mut(dx).shape = Some(known);
        Ok(())
    }

    /// Adds to an error, returned or recorded by the builder, which node and input it is about.
    fn blame<T>(&self, result: Result<T>, id: NodeId, input: Option<usize>) -> Result<T> {
        let recorded = self.builder.take_error();
        let result = match recorded {
            Some(error) => Err(error),
            None => result,
        };
        result.map_err(|error: Error| {
            let graph = self.builder.graph();
            let mut place = graph.place(self.origin(id));
            let value = input.and_then(|i| Some((i, graph.node(id).inputs.get(i).copied().flatten()?)));
            if let Some((i, value)) = value {
                let name = graph.value(value).name.as_deref().unwrap_or("");
                place.text.push_str(&format!(", input {i} '{name}'"));
                place.input = Some(name.to_owned());
            }
            error.context(place)
        })
    }

    /// The model's own node behind a node that the pass has written, which is the one that users know.
    fn origin(&self, id: NodeId) -> NodeId {
        let graph = self.builder.graph();
        match graph.node(id).origin {
            Origin::Backward(Some(forward)) => forward,
            _ => id,
        }
    }

    /// An attribute of which the rule does not know may change the formula.
    fn check_attributes(&self, id: NodeId, node: &Node, rule: &Rule) -> Result<()> {
        let bodies = node.bodies.iter().map(|(name, _)| &**name);
        let unknown = node.attributes.iter().map(|a| a.name()).chain(bodies).find(|name| !rule.knows(name));
        match unknown {
            Some(name) => {
                Err(anyhow!("attribute '{name}' is not known to the operator's gradient, which might be wrong with it"))
                    .with_context(|| self.builder.graph().describe(self.origin(id)))
            }
            None => Ok(()),
        }
    }

    fn rule(&self, node: &Node) -> Option<&'g Rule> {
        if self.own_function(node).is_some() {
            return None;
        }
        let own = self.own_rules.iter().find(|r| r.op == &*node.op_type && r.domain == &*node.domain);
        own.or_else(|| rules::find(&node.domain, &node.op_type, self.builder.graph().opset(&node.domain)))
    }
}

impl<'g> Differentiate<'g> for Pass<'g> {
    fn builder(&self) -> &'g Builder {
        self.builder
    }

    fn through_nodes(
        &'g self,
        nodes: &[NodeId],
        seeds: &[(Expr<'g>, Expr<'g>)],
        xs: &[Expr<'g>],
    ) -> Result<Vec<Option<Expr<'g>>>> {
        let seeds: Vec<_> = seeds.iter().map(|(y, dy)| (y.id(), *dy)).collect();
        let ids: Vec<_> = xs.iter().map(|x| x.id()).collect();
        let value = |(flow, x): (Option<Flow<'g>>, &Expr<'g>)| match flow? {
            Flow::Value(dx) => Some(dx),
            Flow::Zero => Some(x.zeros_like()),
        };
        Ok(self.differentiate(nodes, &seeds, &ids)?.into_iter().zip(xs).map(value).collect())
    }

    fn through_formula(&'g self, seeds: &[(Expr<'g>, Expr<'g>)], xs: &[Expr<'g>]) -> Result<IdMap<ValueId, Expr<'g>>> {
        let leaves: BTreeSet<ValueId> = xs.iter().map(|x| x.id()).collect();
        let nodes = self.between(seeds.iter().map(|(y, _)| y.id()), &leaves);
        let seeds: Vec<_> = seeds.iter().map(|(y, dy)| (y.id(), *dy)).collect();
        let xs: Vec<ValueId> = leaves.into_iter().collect();
        let flows = self.differentiate(&nodes, &seeds, &xs)?;
        let value = |(x, flow)| match flow? {
            Flow::Value(dx) => Some((x, dx)),
            Flow::Zero => None,
        };
        Ok(xs.into_iter().zip(flows).filter_map(value).collect())
    }

    /// Forward from xs through floating-point tensors, and quantized integers where rounding counts as the identity, past no
    /// stop.
    fn live(&self, nodes: &[NodeId], xs: &[ValueId]) -> IdSet<ValueId> {
        let graph = self.builder.graph();
        let may = |x: &ValueId| graph.fact(*x).may_carry_gradient() || self.cotangent(*x).is_some();
        let mut live: IdSet<ValueId> = xs.iter().copied().filter(may).collect();
        for &id in nodes {
            let node = graph.node(id);
            if node.stop {
                continue;
            }
            let inputs = node.inputs.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?)));
            let entering = |&(i, v): &(usize, ValueId)| live.contains(&v) && self.enters(node, i, v);
            let sources: Vec<ValueId> = inputs.filter(entering).map(|(_, v)| v).collect();
            if self.is_shut(id, node, &live, &sources) {
                self.rounding.shut(id);
            }
            if sources.is_empty() && self.live_captures(id, &live).is_empty() {
                continue;
            }
            for &output in node.outputs.iter().flatten().filter(|o| !self.stops.contains(o)) {
                let cotangent = self.cotangent_of_output(node, output, &sources);
                if let Some(element) = cotangent {
                    self.rounding.carry(output, element);
                }
                if cotangent.is_some() || (graph.fact(output).may_carry_gradient() && !self.rounds(node, output)) {
                    live.insert(output);
                }
            }
        }
        live
    }

    fn cotangent(&self, value: ValueId) -> Option<ElementType> {
        self.rounding.cotangent(value)
    }
}

/// What is known of the gradient of a node's operator, in a few words: its formula, or that there is none.
pub fn support(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let floats = node.outputs.iter().flatten().any(|&o| graph.fact(o).may_carry_gradient());
    match rules::find(&node.domain, &node.op_type, graph.opset(&node.domain)) {
        Some(rule) if rule.integers == Integers::Rounded && !floats => {
            format!("straight-through only: {}", rule.formula)
        }
        Some(rule) => rule.formula.to_owned(),
        None if !floats => "none: it computes no floating-point numbers".to_owned(),
        None => "not known".to_owned(),
    }
}

/// What a rule may return for an input.
trait IntoFlow<'g> {
    fn into_flow(self) -> Flow<'g>;
}

impl<'g> IntoFlow<'g> for Flow<'g> {
    fn into_flow(self) -> Flow<'g> {
        self
    }
}

impl<'g> IntoFlow<'g> for Expr<'g> {
    fn into_flow(self) -> Flow<'g> {
        if self.is_zero() { Flow::Zero } else { Flow::Value(self) }
    }
}
