//! The backward pass: from the seeds of ys, through the nodes in reverse order, to the gradients of xs.
//!
//! It knows neither operators nor protobuf: rules say what an operator's inputs get, expressions write the nodes. It
//! runs over any list of nodes in topological order, so that rules for control flow enter it again for the nodes of a
//! body, and rules that are a formula for the one that they have written.

mod accumulate;
mod build;
mod function;
mod held;
mod lower;
mod open;
mod reach;
mod request;
mod rounding;
mod select;
mod wanted;

pub use accumulate::Aggregation;
pub use build::Output;
pub(crate) use build::names_of;
pub use function::read_functions;
pub use lower::{Lowered, LoweredNode};
pub(crate) use open::Opened;
pub use reach::dependencies;
pub use request::{Gradients, Seed, Unconnected};
pub use select::Selection;
pub(crate) use select::{free_scope, matches};
pub use wanted::Wanted;

use crate::expr::{Builder, Expr, View};
use crate::graph::{Graph, IdMap, IdSet, Node, NodeId, ValueId};
use crate::onnx::{ElementType, FunctionProto};
use crate::rules::{self, Call, Cotangents, Differentiate, Integers, Rule, Slot};
use accumulate::Accumulator;
use anyhow::{Result, anyhow, bail};
use reach::Known;
use rounding::Rounding;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

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
    /// What gives the gradient of each node, by the node's number, where somebody has asked.
    known: RefCell<Vec<Option<Known<'g>>>>,
    rounding: Rounding,
    /// Whether what is being written is for one of several ranks.
    in_ranks: Cell<bool>,
}

impl<'g> Pass<'g> {
    /// A pass that sums gradients in the given way and lets none through the outputs `stops`.
    pub fn new(builder: &'g Builder, aggregation: Aggregation, stops: IdSet<ValueId>, own_rules: &'g [Rule]) -> Self {
        let (known, rounding) = (RefCell::default(), Rounding::default());
        Pass { builder, aggregation, stops, own_rules, own_functions: &[], known, rounding, in_ranks: Cell::new(false) }
    }

    /// The pass for which rounding counts as the identity, or not.
    pub fn with_straight_through(self, straight_through: bool) -> Self {
        Pass { rounding: Rounding::new(straight_through), ..self }
    }

    /// The pass with gradients that the user gives as functions.
    pub fn with_functions(self, own_functions: &'g [FunctionProto]) -> Self {
        Pass { own_functions, ..self }
    }

    /// The gradients that arrive at `xs` from the seeds, through `nodes`, which are in topological order. `None` for an
    /// x that is not connected.
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
        self.builder.note_leaves(xs.iter().chain(&self.stops).copied());
        self.builder.graph_mut().count_as_variable(live.iter().copied());
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
            // What has failed before, around this pass or in a sum, is no fault of this node, and nothing that is tried
            // out for it must hide that.
            if let Some(error) = self.builder.take_error() {
                return Err(error);
            }
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

    /// What has arrived at the outputs of a node. What has arrived at an x stays for the result, at a stop goes no
    /// further.
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
        let known = self.known(id);
        let mut wanted = self.entered(id, live);
        wanted.extend(self.live_captures(id, live));
        // A tensor that is taken twice gets the sum of both, once.
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() || flows.iter().all(Option::is_none) {
            return Ok(vec![]);
        }
        let rule = match known {
            Known::Row(rule) => rule,
            Known::Function(function) => {
                let gradients =
                    self.apply_function(function, node, flows, &wanted).and_then(|g| self.checked(g, false));
                return self.blame(gradients, id, None);
            }
            Known::Nothing => return Ok(vec![]),
        };
        self.check_attributes(id, node, rule)?;
        let only_zeros = flows.iter().flatten().all(|f| matches!(f, Flow::Zero));
        let dys = flows.iter().map(|f| match f {
            Some(Flow::Value(dy)) => Some(*dy),
            _ => None,
        });
        let dys: Vec<_> = dys.collect();
        let error = match self.by_rule(id, node, rule, dys.clone(), &wanted, only_zeros) {
            Err(error) => error,
            found => return found,
        };
        if let Some(view) = rule.view
            && let Some(found) = self.by_view(id, node, view, &dys, &wanted)?
        {
            return Ok(found);
        }
        self.by_ranks(id, node, &dys, &wanted).ok_or(error)
    }

    /// What the inputs get from a node whose rank is not known, of an operator that can be computed of views of few
    /// axes: the gradients of that computation, which need no rank. `None` where the rank is not what is missing.
    fn by_view(
        &'g self,
        id: NodeId,
        node: &Node,
        view: View,
        dys: &[Option<Expr<'g>>],
        wanted: &[ValueId],
    ) -> Result<Option<Vec<(ValueId, Flow<'g>)>>> {
        let Some(outputs) = self.builder.through_view(node, view) else { return Ok(None) };
        let ys = outputs.into_iter().zip(dys).filter_map(|(y, dy)| Some((y?, (*dy)?))).collect();
        let gradients = self.led_to(ys, wanted).and_then(|g| self.checked(g, false));
        self.blame(gradients, id, None).map(Some)
    }

    /// What the inputs get from a node on tensors of unknown rank, for each rank that these may have: which it is, is
    /// asked in the run. `None` where the rank is not what is missing, or none of them helps.
    fn by_ranks(
        &'g self,
        id: NodeId,
        node: &Node,
        dys: &[Option<Expr<'g>>],
        wanted: &[ValueId],
    ) -> Option<Vec<(ValueId, Flow<'g>)>> {
        let b = self.builder;
        // What is drawn again is another number.
        if self.in_ranks.get() || !node.bodies.is_empty() || rules::drawing(&b.graph(), id).is_some() {
            return None;
        }
        let through = |ranks: &[(ValueId, usize)]| {
            let like = |y: Expr<'g>, dy: Expr<'g>| y.fact().rank().map_or(dy, |rank| dy.of_rank(rank));
            let outputs = b.through_ranks(node, ranks).into_iter().zip(dys);
            let ys = outputs.filter_map(|(y, dy)| Some((y?, like(y?, (*dy)?)))).collect();
            let gradients = self.led_to(ys, wanted).and_then(|g| self.checked(g, false));
            self.blame(gradients, id, None).ok()
        };
        let ways = b.graph().possible_ranks(node);
        self.in_ranks.set(true);
        // A rank of which the operator knows no gradient it does not take, or a run in which it has it fails.
        let branches = ways.iter().filter_map(|ranks| {
            let (scope, _) = b.open(vec![]);
            Some((&ranks[..], scope, b.within(scope, || through(ranks))?))
        });
        let branches: Vec<_> = branches.collect();
        let only = match branches[..] {
            [(ranks, ..)] => Some(through(ranks)),
            _ => None,
        };
        self.in_ranks.set(false);
        if let Some(only) = only {
            return only;
        }
        let connected = |i: &usize| branches.iter().any(|(.., found)| matches!(found[*i].1, Flow::Value(_)));
        let connected: Vec<usize> = (0..branches.first()?.2.len()).filter(connected).collect();
        for (_, scope, found) in &branches {
            let dx = |&i: &usize| match found[i] {
                (_, Flow::Value(dx)) => dx,
                (x, Flow::Zero) => match self.cotangent(x) {
                    Some(element) => b.zero_like(b.expr(x), element),
                    None => b.expr(x).zeros_like(),
                },
            };
            let outputs: Vec<_> = b.within(*scope, || connected.iter().map(dx).collect());
            b.close(*scope, &outputs, 0);
        }
        let scopes: Vec<_> = branches.iter().map(|(ranks, scope, _)| (*ranks, *scope)).collect();
        let dxs = if connected.is_empty() { vec![] } else { b.by_ranks(&scopes) };
        let mut found: Vec<_> = wanted.iter().map(|&x| (x, Flow::Zero)).collect();
        connected.into_iter().zip(dxs).for_each(|(i, dx)| found[i].1 = Flow::Value(dx));
        self.blame(self.checked(found, false), id, None).ok()
    }

    /// What the inputs get by the slots of a row.
    fn by_rule(
        &'g self,
        id: NodeId,
        node: &Node,
        rule: &Rule,
        dys: Vec<Option<Expr<'g>>>,
        wanted: &[ValueId],
        only_zeros: bool,
    ) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let call = Call::new(self, id, dys, wanted.to_vec(), rule.in_float32);
        match rule.common_slot() {
            // Where only zeros arrive, zeros leave: derivatives are linear.
            _ if only_zeros => Ok(wanted.iter().map(|&v| (v, Flow::Zero)).collect()),
            Some(Slot::Through(forward)) => {
                self.checked_each(self.through(&call, *forward, wanted), id, node, rule.in_float32)
            }
            Some(Slot::Together(together)) => {
                let found = together(&call).map(Cotangents::into_found);
                self.checked_each(found, id, node, rule.in_float32)
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
            Slot::Binary(f) => f(c.input(0), c.input(1), c.y(), c.dy()).unbroadcast_beside(x, || c.inputs()),
            Slot::Formula(f) => f(c),
            Slot::Try(f) => f(c)?,
            Slot::Broadcast(f) => f(c).unbroadcast_beside(x, || c.inputs()),
            Slot::Each(f) => f(c, i),
            Slot::TryEach(f) => f(c, i)?,
            Slot::EachBroadcast(f) => f(c, i).unbroadcast_beside(x, || c.inputs()),
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
        // What is written must be seen to be made of them.
        self.builder.note_leaves(wanted.iter().copied());
        let outputs = forward(c)?;
        // A formula may compute in another type than its result has.
        let typed = |y: Expr<'g>, dy: Expr<'g>| (dy.fact().element.map_or(y, |element| y.cast(element)), dy);
        let ys = outputs.into_iter().enumerate().filter_map(|(i, y)| Some(typed(y?, c.opt_dy(i)?))).collect();
        self.led_to(ys, wanted)
    }

    /// What a formula that has been written gives to `wanted`: of each y the gradient that arrives.
    fn led_to(&'g self, ys: Vec<(Expr<'g>, Expr<'g>)>, wanted: &[ValueId]) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let leaves: Vec<Expr<'g>> = wanted.iter().map(|&x| self.builder.expr(x)).collect();
        let gradients = self.through_formula(&ys, &leaves)?;
        // What the formula does not lead to is connected all the same: the operator takes it.
        Ok(wanted.iter().map(|x| (*x, gradients.get(x).map_or(Flow::Zero, |dx| Flow::Value(*dx)))).collect())
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

    fn live(&self, nodes: &[NodeId], xs: &[ValueId]) -> IdSet<ValueId> {
        Pass::live(self, nodes, xs)
    }

    fn cotangent(&self, value: ValueId) -> Option<ElementType> {
        self.rounding.cotangent(value)
    }
}

/// What is known of the gradient of a node's operator, in a few words: its formula, or that there is none.
pub fn support(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let floats = node.outputs.iter().flatten().any(|&o| graph.fact(o).may_carry_gradient());
    match rules::row(graph, node) {
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
