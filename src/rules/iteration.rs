//! Loop and Scan: the states that the backward needs are recorded in a second forward run, then a Loop or Scan of as
//! many trips goes through them in reverse order, with the gradients of the states as its states.
//!
//! What is recorded is only what the derivative of the body reads, and what those states depend on is all that the
//! second run computes. Everything inside an iteration is computed again from the states at its beginning.

pub mod facts;

use super::Slot::*;
use super::ports::{Port, Ports, as_declared};
use super::properties::{Counts, read};
use super::{Call, Cotangents, Replay, Rule, rule};
use crate::expr::{Builder, Expr};
use crate::graph::{Bodies, Container, Dim, Fact, Graph, IdSet, NodeId, ScopeId, ValueId};
use crate::onnx::ElementType;
use anyhow::{Context, Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Loop", "the body's gradient, also by what it captures, from the last trip to the first", &[Together(loop_)])
        .bodies(Bodies::Protocol(&facts::LOOP))
        .indices(&[read(0, Counts::Times)])
        .attributes("body")
        .note("carried states must keep their shapes where the gradient needs their values"),
    rule("Scan", "the body's gradient, also by what it captures, from the last step to the first", &[Together(scan)])
        .bodies(Bodies::Protocol(&facts::SCAN))
        .attributes(
            "body num_scan_inputs scan_input_axes scan_input_directions scan_output_axes scan_output_directions",
        )
        .since(9),
    rule(
        "Scan",
        "the body's gradient, also by what it captures, step by step for each entry of the batch",
        &[Together(batched_scan)],
    )
    .bodies(Bodies::Protocol(&facts::SCAN))
    .attributes("body num_scan_inputs directions")
    .until(8)
    .note("written out step by step: batch and length must be known, and sequence_lens left out"),
];

/// The body of a Loop or Scan, and what its gradient is about.
struct Body<'g> {
    scope: ScopeId,
    inputs: Vec<Expr<'g>>,
    outputs: Vec<ValueId>,
    nodes: Vec<NodeId>,
    /// The place of the first state among the inputs and among the outputs.
    first: (usize, usize),
    states: usize,
    /// The inputs behind the states of which each iteration gets a part: the axis, and whether the last comes first.
    slices: Vec<(i64, bool)>,
    /// The captured values that get a gradient.
    captures: Vec<Expr<'g>>,
    /// The states through which a gradient flows back.
    active: Vec<usize>,
}

impl<'g> Body<'g> {
    fn new(c: &Call<'g>, states: usize, first: (usize, usize), slices: Vec<(i64, bool)>) -> Result<Self> {
        let scope = c.body("body")?;
        let graph = c.builder().graph();
        let body = graph.scope(scope);
        let (inputs, outputs) = (first.0 + states, first.1 + states);
        ensure!(
            body.inputs.len() >= inputs && body.outputs.len() >= outputs,
            "its body has {} inputs and {} outputs, which do not fit {states} carried states",
            body.inputs.len(),
            body.outputs.len()
        );
        let inputs = body.inputs.iter().map(|&i| c.builder().expr(i)).collect();
        let (outputs, nodes) = (body.outputs.clone(), body.nodes.clone());
        drop(graph);
        let mut this = Body { scope, inputs, outputs, nodes, first, states, slices, captures: vec![], active: vec![] };
        this.find_active(c);
        Ok(this)
    }

    fn state_input(&self, i: usize) -> Expr<'g> {
        self.inputs[self.first.0 + i]
    }

    fn state_output(&self, i: usize) -> ValueId {
        self.outputs[self.first.1 + i]
    }

    /// Reads the parts of the inputs, in the order of the node or from its end.
    fn read(&self, c: &Call<'g>, ports: &mut Ports<'g>, backward: bool) -> Vec<Port> {
        let mut read = Vec::new();
        for (j, &(axis, last_first)) in self.slices.iter().enumerate() {
            let i = self.first.0 + self.states + j;
            read.push(ports.read(self.inputs[i].fact(), Some(c.input(i)), (axis, last_first != backward)));
        }
        read
    }

    /// A state is active if it depends on something that is asked for, in this or an earlier iteration, and something
    /// that has a gradient depends on it.
    fn find_active(&mut self, c: &Call<'g>) {
        let b = c.builder();
        let captures = c.wanted_captures();
        let wanted = |i: usize| c.opt(i).is_some_and(|x| c.wants(x.id()));
        // In Loop and Scan alike, inputs of the node and of the body are in the same places.
        let mut sources: IdSet<ValueId> = captures.iter().map(|e| e.id()).collect();
        let places = self.first.0..self.first.0 + self.states + self.slices.len();
        sources.extend(places.filter(|&i| wanted(i)).filter_map(|i| self.inputs.get(i)).map(|e| e.id()));
        loop {
            let list: Vec<ValueId> = sources.iter().copied().collect();
            let live = c.live(&self.nodes, &list);
            let before = sources.len();
            sources.extend(
                (0..self.states).filter(|&s| live.contains(&self.state_output(s))).map(|s| self.state_input(s).id()),
            );
            if sources.len() == before {
                break;
            }
        }
        let graph = b.graph();
        let mut targets: IdSet<ValueId> = IdSet::default();
        let seeded = c.dys().iter().enumerate().filter(|(_, dy)| dy.is_some());
        targets.extend(seeded.filter_map(|(i, _)| self.outputs.get(self.first.1 + i)));
        self.close_over(&graph, &mut targets);
        let may = |e: &Expr<'g>| graph.fact(e.id()).may_carry_gradient() && targets.contains(&e.id());
        self.captures = captures.into_iter().filter(|e| targets.contains(&e.id())).collect();
        let states = 0..self.states;
        self.active = states
            .filter(|&s| {
                let seeded = c.has_dy(s) || may(&self.state_input(s));
                seeded
                    && sources.contains(&self.state_input(s).id())
                    && graph.fact(self.state_input(s).id()).may_carry_gradient()
            })
            .collect();
    }

    /// Adds to a set of values all that they depend on, through any number of iterations.
    fn close_over(&self, graph: &Graph, values: &mut IdSet<ValueId>) {
        loop {
            for &id in self.nodes.iter().rev() {
                let node = graph.node(id);
                if node.outputs.iter().flatten().any(|o| values.contains(o)) {
                    values.extend(node.inputs.iter().flatten());
                    values.extend(graph.captures(id));
                }
            }
            let before = values.len();
            for s in 0..self.states {
                if values.contains(&self.state_input(s).id()) {
                    values.insert(self.state_output(s));
                }
            }
            if values.len() == before {
                break;
            }
        }
    }

    /// The states on which some values depend.
    fn states_behind(&self, graph: &Graph, values: impl IntoIterator<Item = ValueId>) -> Vec<usize> {
        let mut values: IdSet<ValueId> = values.into_iter().collect();
        self.close_over(graph, &mut values);
        (0..self.states).filter(|&s| values.contains(&self.state_input(s).id())).collect()
    }
}

/// What is known of the sum of what the iterations contribute to a captured value: half precision is added up in
/// float32, since there may be many.
fn sum_fact(x: Expr<'_>) -> Fact {
    x.widened().fact()
}

/// The iteration from after to before, as it is written: what its ports are.
struct Reverse<'g> {
    ports: Ports<'g>,
    /// The gradients of the active states.
    dstates: Vec<Port>,
    /// The sums of what the iterations contribute to the captured values.
    sums: Vec<Port>,
    /// All states at the beginning of the iteration.
    before: Vec<Port>,
    /// What else has a gradient when the iterations are through, with its port.
    found: Vec<(Expr<'g>, Port)>,
}

impl<'g> Reverse<'g> {
    fn open(b: &'g Builder) -> Self {
        let ports = Ports::open(b);
        Reverse { ports, dstates: vec![], sums: vec![], before: vec![], found: vec![] }
    }

    /// Opens the ports of what goes from iteration to iteration.
    fn carry(&mut self, c: &Call<'g>, body: &Body<'g>) {
        let state = |&s: &usize| self.ports.carried(body.state_input(s).fact(), c.dy_of(s));
        self.dstates = body.active.iter().map(state).collect();
        let sum = |x: &Expr<'g>| self.ports.carried(sum_fact(*x), x.zero().widened());
        self.sums = body.captures.iter().map(sum).collect();
    }

    /// Opens the ports of the states, whose values are recorded later.
    fn read_states(&mut self, body: &Body<'g>, along: (i64, bool)) {
        let read = |s: usize| self.ports.read(body.state_input(s).fact(), None, along);
        self.before = (0..body.states).map(read).collect();
    }

    /// The gradients of the active states before, of the captured values, and of `others`, from those of the states
    /// after and from `seeds`; `None` where nothing has any.
    fn differentiate(
        &self,
        body: &Body<'g>,
        replay: &Replay<'g>,
        mut seeds: Vec<(Expr<'g>, Expr<'g>)>,
        others: &[Port],
    ) -> Result<Option<[Vec<Option<Expr<'g>>>; 3]>> {
        let after = body.active.iter().map(|&s| replay.outputs[body.first.1 + s]);
        seeds.splice(0..0, after.zip(self.ports.all_inside(&self.dstates)));
        if seeds.is_empty() {
            return Ok(None);
        }
        let before = body.active.iter().map(|&s| self.ports.inside(self.before[s]));
        let others = self.ports.all_inside(others);
        let xs: Vec<_> = before.chain(body.captures.iter().copied()).chain(others).collect();
        let mut dbefore = replay.gradients(&seeds, &xs)?;
        let mut dcaptures = dbefore.split_off(body.active.len());
        let dothers = dcaptures.split_off(body.captures.len());
        Ok(Some([dbefore, dcaptures, dothers]))
    }

    /// Takes out of the gradients of captured values those that are products of two tensors of the iteration. Such a
    /// gradient is a sum of products over the iterations: of what stands `in_order` it is one product over all of them.
    fn products(&mut self, dcaptures: &mut [Option<Expr<'g>>], in_order: (i64, bool)) -> Vec<(usize, [Port; 2])> {
        let mut found = Vec::new();
        for (k, dcapture) in dcaptures.iter_mut().enumerate() {
            let factors = dcapture.and_then(Expr::factors);
            if let Some((left, right)) = factors.filter(|&(a, b)| self.ports.holds(a) && self.ports.holds(b)) {
                found.push((k, [left, right].map(|e| self.ports.holding(e, in_order))));
                *dcapture = None;
            }
        }
        found
    }

    /// Hands the gradients of the states on, and the sums, with what this iteration contributes.
    fn hand_on(&mut self, dbefore: &[Option<Expr<'g>>], dcaptures: &[Option<Expr<'g>>]) {
        for (&port, d) in self.dstates.iter().zip(dbefore) {
            let zeros = || self.ports.inside(port).zeros_like();
            let before = self.ports.within(|| d.unwrap_or_else(zeros));
            self.ports.hand_on(port, before);
        }
        for (&port, d) in self.sums.iter().zip(dcaptures) {
            let Some(d) = *d else { continue };
            let sum = self.ports.within(|| self.ports.inside(port) + d.widened());
            self.ports.hand_on(port, sum);
        }
    }

    /// The states that the derivative reads.
    fn needed(&self) -> Vec<usize> {
        (0..self.before.len()).filter(|&s| self.ports.stays(self.before[s])).collect()
    }

    /// What has come out, each in the type of what it is the gradient of.
    fn cotangents(self, c: &Call<'g>, body: &Body<'g>) -> Cotangents<'g> {
        let states = body.active.iter().map(|&s| c.input(body.first.0 + s)).zip(self.dstates);
        let captures = body.captures.iter().copied().zip(self.sums);
        let targets = states.chain(captures).chain(self.found);
        let rounded = |(x, port): (Expr<'g>, Port)| {
            let dx = self.ports.result(port)?;
            Some((x.id(), if x.widened() == x { dx } else { dx.cast_like(x) }))
        };
        c.cotangents().values(targets.filter_map(rounded).filter(|(x, _)| c.wants(*x)))
    }
}

fn loop_<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let b = c.builder();
    let body = Body::new(c, c.input_count().saturating_sub(2), (2, 1), vec![])?;
    let mut reverse = Reverse::open(b);
    let trip = reverse.ports.given(body.inputs[0].fact());
    reverse.read_states(&body, (0, false));
    reverse.carry(c, &body);
    let i = reverse.ports.inside(trip);
    let dxs = reverse.ports.within(|| {
        let entered = as_declared(b.scalar(1.0, ElementType::Bool), body.inputs[1]);
        let replay = c.replay(body.scope, &[&[i, entered], &*reverse.ports.all_inside(&reverse.before)].concat())?;
        let stacked = replay.outputs.iter().skip(1).enumerate().skip(body.states);
        let seeds = stacked.filter_map(|(k, y)| Some((*y, c.opt_dy(k)?.gather(i.reshape_to(&[]), 0)))).collect();
        reverse.differentiate(&body, &replay, seeds, &[])
    })?;
    let Some([dbefore, dcaptures, _]) = dxs else { return Ok(c.cotangents()) };
    reverse.hand_on(&dbefore, &dcaptures);
    if reverse.ports.is_empty() {
        return Ok(c.cotangents());
    }
    reverse.ports.close(c, None)?;
    let needed = reverse.needed();
    let (trips, recorded) = loop_record(c, &body, &needed)?;
    needed.iter().zip(recorded).for_each(|(&s, states)| reverse.ports.from(reverse.before[s], states));
    reverse.ports.repeat_backward(c, trips)?;
    Ok(reverse.cotangents(c, &body))
}

fn scan<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (body, outputs) = scan_body(c)?;
    // What is stacked stands in the order of the first scan input, so that it can stand beside the node's own tensors.
    let flip = body.slices[0].1;
    let (states, in_order) = (body.states, (0, !flip));
    let mut reverse = Reverse::open(c.builder());
    reverse.carry(c, &body);
    reverse.read_states(&body, in_order);
    let slices = body.read(c, &mut reverse.ports, true);
    let mut dys = Vec::new();
    for (k, &(axis, last_first)) in outputs.iter().enumerate() {
        let Some(dy) = c.opt_dy(states + k) else { continue };
        let fact = c.builder().expr(body.outputs[states + k]).fact();
        dys.push((states + k, reverse.ports.read(fact, Some(dy), (axis, !last_first))));
    }
    let wanted: Vec<usize> = (0..slices.len()).filter(|&j| c.wants_input(states + j)).collect();
    let dxs = reverse.ports.within(|| {
        let arguments = reverse.ports.all_inside(&[&*reverse.before, &slices].concat());
        let replay = c.replay(body.scope, &arguments)?;
        let seeds = dys.iter().map(|&(i, port)| (replay.outputs[i], reverse.ports.inside(port))).collect();
        reverse.differentiate(&body, &replay, seeds, &wanted.iter().map(|&j| slices[j]).collect::<Vec<_>>())
    })?;
    let Some([dbefore, mut dcaptures, dslices]) = dxs else { return Ok(c.cotangents()) };
    for (&j, dslice) in wanted.iter().zip(dslices) {
        let (axis, last_first) = body.slices[j];
        let stack = |d| (c.input(states + j), reverse.ports.stacked(d, (axis, !last_first)));
        reverse.found.extend(dslice.map(stack));
    }
    let products = reverse.products(&mut dcaptures, in_order);
    reverse.hand_on(&dbefore, &dcaptures);
    if reverse.ports.is_empty() {
        return Ok(c.cotangents());
    }
    reverse.ports.close(c, slices.first().copied())?;
    let in_product = |s: &usize| products.iter().any(|(_, pair)| pair.contains(&reverse.before[*s]));
    let recorded: Vec<usize> =
        (0..states).filter(|s| reverse.ports.stays(reverse.before[*s]) || in_product(s)).collect();
    let tensors = scan_record(c, &body, &recorded, flip)?;
    recorded.iter().zip(tensors).for_each(|(&s, states)| reverse.ports.from(reverse.before[s], states));
    reverse.ports.scan();
    let all = |port: Port| reverse.ports.all(port).stacked_before(1);
    let product = |&(k, [left, right]): &(usize, [Port; 2])| {
        (body.captures[k].id(), all(left).gemm(true, all(right), false, 1.0))
    };
    let products: Vec<_> = products.iter().map(product).collect();
    Ok(reverse.cotangents(c, &body).values(products))
}

/// A second forward run as it is written: the ports of the states, and of what is stacked of them.
struct Again<'g> {
    ports: Ports<'g>,
    given: Vec<Port>,
    slices: Vec<Port>,
    stacked: Vec<Port>,
}

/// Runs the body again and stacks the `needed` states at the beginning of each iteration. Only the states that these
/// depend on are carried, or that the `condition` does, if it is to be computed again.
fn again<'g>(c: &Call<'g>, body: &Body<'g>, needed: &[usize], condition: bool, last_first: bool) -> Result<Again<'g>> {
    let mut ports = Ports::open(c.builder());
    let given: Vec<Port> = body.inputs[..body.first.0].iter().map(|x| ports.given(x.fact())).collect();
    let state = |s: usize| ports.carried(body.state_input(s).fact(), c.input(body.first.0 + s));
    let states: Vec<Port> = (0..body.states).map(state).collect();
    let slices = body.read(c, &mut ports, false);
    let carried = {
        let states = needed.iter().map(|&s| body.state_input(s).id());
        body.states_behind(&c.builder().graph(), states.chain(condition.then(|| body.outputs[0])))
    };
    let arguments = ports.all_inside(&[&*given, &states, &slices].concat());
    let outputs = ports.within(|| c.replay(body.scope, &arguments))?.outputs;
    if let Some(&port) = given.get(1) {
        ports.hand_on(port, if condition { outputs[0] } else { ports.inside(port) });
    }
    carried.iter().for_each(|&s| ports.hand_on(states[s], outputs[body.first.1 + s]));
    let stacked = needed.iter().map(|&s| ports.stacked(ports.inside(states[s]), (0, last_first))).collect();
    Ok(Again { ports, given, slices, stacked })
}

/// How many trips the Loop has made, and the needed states at the beginning of each.
fn loop_record<'g>(c: &Call<'g>, body: &Body<'g>, needed: &[usize]) -> Result<(Expr<'g>, Vec<Expr<'g>>)> {
    let stacked = (body.states..c.output_count()).find_map(|k| c.output(k));
    // Where the number of trips is known, the condition need not be computed again.
    let trips = stacked.map(|y| y.dim(0)).or_else(|| counted(c, body));
    if let (Some(trips), []) = (trips, needed) {
        return Ok((trips, vec![]));
    }
    needed.iter().try_for_each(|&s| keeps_shape(c, body, s))?;
    let mut again = again(c, body, needed, trips.is_none(), false)?;
    if needed.is_empty() {
        again.stacked.push(again.ports.stacked(again.ports.inside(again.given[0]), (0, false)));
    }
    again.ports.close(c, None)?;
    match trips {
        Some(trips) => again.ports.repeat(Some(trips), None),
        None => again.ports.repeat(c.opt(0), c.opt(1)),
    }
    let recorded: Vec<_> = again.stacked.iter().map(|&p| again.ports.all(p)).collect();
    let trips = trips.or_else(|| Some(recorded.first()?.dim(0))).context("the number of trips is not known")?;
    Ok((trips, if needed.is_empty() { vec![] } else { recorded }))
}

/// The needed states at the beginning of each step, stacked along the first axis, those of the last step first if
/// `flip`.
fn scan_record<'g>(c: &Call<'g>, body: &Body<'g>, needed: &[usize], flip: bool) -> Result<Vec<Expr<'g>>> {
    if needed.is_empty() {
        return Ok(vec![]);
    }
    let mut again = again(c, body, needed, false, flip)?;
    again.ports.close(c, again.slices.first().copied())?;
    again.ports.scan();
    Ok(again.stacked.iter().map(|&p| again.ports.all(p)).collect())
}

/// The number of trips of a Loop that never ends early.
fn counted<'g>(c: &Call<'g>, body: &Body<'g>) -> Option<Expr<'g>> {
    let b = c.builder();
    let limit = c.opt(0)?;
    let sure = |e: Expr<'g>| e.parameter() == Some(1.0);
    if !c.opt(1).is_none_or(sure) {
        return None;
    }
    let condition = {
        let graph = b.graph();
        let mut value = *body.outputs.first()?;
        // The condition handed on as it came.
        while let Some((id, _)) = graph.producer(value)
            && &*graph.node(id).op_type == "Identity"
        {
            value = graph.node(id).inputs.first().copied().flatten()?;
        }
        b.expr(value)
    };
    let handed_on = body.inputs.get(1) == Some(&condition);
    (handed_on || sure(condition)).then(|| limit.reshape_to(&[]).max(b.int(0)))
}

/// Axes and directions of a Scan's inputs or outputs: whether the last part comes first.
fn laid(c: &Call<'_>, axes: &str, directions: &str, count: usize) -> Result<Vec<(i64, bool)>> {
    let (axes, directions) = (list(c, axes, count)?, list(c, directions, count)?);
    Ok(axes.into_iter().zip(directions.into_iter().map(|d| d != 0)).collect())
}

/// The body of a Scan, and how what it stacks is laid.
fn scan_body<'g>(c: &Call<'g>) -> Result<(Body<'g>, Vec<(i64, bool)>)> {
    let scanned = usize::try_from(c.int("num_scan_inputs", 0)).unwrap_or(0);
    ensure!((1..=c.input_count()).contains(&scanned), "num_scan_inputs is {scanned}, of {} inputs", c.input_count());
    let states = c.input_count() - scanned;
    let slices = laid(c, "scan_input_axes", "scan_input_directions", scanned)?;
    let body = Body::new(c, states, (0, 0), slices)?;
    let inputs = body.inputs.len();
    ensure!(inputs == states + scanned, "its body has {inputs} inputs for {}", states + scanned);
    let outputs = laid(c, "scan_output_axes", "scan_output_directions", body.outputs.len() - states)?;
    Ok((body, outputs))
}

/// What is recorded is stacked: a state must be a tensor that keeps its shape.
fn keeps_shape<'g>(c: &Call<'g>, body: &Body<'g>, s: usize) -> Result<()> {
    let graph = c.builder().graph();
    let (before, after) = (c.input(body.first.0 + s), body.state_output(s));
    let (before, after) = (graph.fact(before.id()), graph.fact(after));
    let name = graph.value(body.state_input(s).id()).name.clone();
    let name = name.as_deref().unwrap_or_default();
    ensure!(
        before.container == Container::Tensor,
        "carried state '{name}' is no tensor, and its values are needed for the gradient"
    );
    let differ = |(&a, &b): (&Dim, &Dim)| graph.dims.sub(a, b).known().is_some_and(|d| d != 0);
    let inside = graph.fact(body.state_input(s).id());
    let grows = |a: &Fact, b: &Fact| match (&a.shape, &b.shape) {
        (Some(a), Some(b)) => a.len() != b.len() || a.iter().zip(b.iter()).any(differ),
        _ => false,
    };
    ensure!(
        !grows(inside, after) && !grows(before, after),
        "the shape of carried state '{name}' changes from one iteration to the next, and its values are needed for the \
         gradient; keep it in a tensor of fixed shape or in a scan output"
    );
    Ok(())
}

/// More steps than this are not written out.
const MAX_STEPS: i64 = 1024;

/// The first Scan, with a batch in front of everything.
fn batched_scan<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let body = c.body("body")?;
    ensure!(
        c.opt(0).is_none(),
        "a Scan with sequence_lens has no gradient; convert the model to Scan 9, which has none"
    );
    let inputs = c.inputs_from(1);
    let scanned = usize::try_from(c.int("num_scan_inputs", 0)).unwrap_or(0);
    ensure!((1..=inputs.len()).contains(&scanned), "num_scan_inputs is {scanned}, of {} inputs", inputs.len());
    let (states, along) = inputs.split_at(inputs.len() - scanned);
    let size = |axis| {
        along[0]
            .known_dim(axis)
            .with_context(|| "batch and length of a Scan 8 must be known; convert the model to Scan 9".to_owned())
    };
    let (batch, steps) = (size(0)?, size(1)?);
    let few = batch.checked_mul(steps).is_some_and(|n| (1..=MAX_STEPS).contains(&n));
    ensure!(few, "a Scan 8 of {batch} by {steps} steps is too long to be written out; convert the model to Scan 9");
    let directions = list(c, "directions", scanned)?;
    let at = |e: Expr<'g>, axis: usize, i: i64| e.narrow(axis, i, i + 1).squeeze(&[axis]);

    // For each output the entries of the batch.
    let mut outputs: Vec<Vec<Expr<'g>>> = vec![Vec::new(); c.output_count()];
    for entry in 0..batch {
        let mut now: Vec<_> = states.iter().map(|s| at(*s, 0, entry)).collect();
        let mut stacked: Vec<Vec<Expr<'g>>> = Vec::new();
        for step in 0..steps {
            let slice = |(x, direction): (&Expr<'g>, &i64)| {
                at(at(*x, 0, entry), 0, if *direction == 0 { step } else { steps - 1 - step })
            };
            let arguments: Vec<_> = now.iter().copied().chain(along.iter().zip(&directions).map(slice)).collect();
            let mut after = c.replay(body, &arguments)?.outputs;
            ensure!(after.len() >= states.len(), "its body has {} outputs", after.len());
            let new = after.split_off(states.len());
            stacked.resize(new.len(), Vec::new());
            stacked.iter_mut().zip(new).for_each(|(all, new)| all.push(new.unsqueeze(&[0])));
            now = after;
        }
        let all = now.into_iter().chain(stacked.iter().map(|parts| Expr::concat(parts, 0)));
        outputs.iter_mut().zip(all).for_each(|(entries, y)| entries.push(y.unsqueeze(&[0])));
    }
    let seeded = outputs.iter().enumerate().filter(|(_, entries)| !entries.is_empty());
    let ys: Vec<_> = seeded.filter_map(|(i, entries)| Some((Expr::concat(entries, 0), c.opt_dy(i)?))).collect();
    let wanted = inputs.iter().copied().filter(|x| c.wants(x.id())).chain(c.wanted_captures());
    let mut gradients: Vec<_> = c.differentiate(&ys, &wanted.collect::<Vec<_>>())?.into_iter().collect();
    gradients.sort_unstable_by_key(|&(x, _)| x);
    Ok(c.cotangents().values(gradients))
}

/// Axes or directions of a Scan, one for each scan input or output.
fn list(c: &Call<'_>, name: &str, count: usize) -> Result<Vec<i64>> {
    let given = c.ints(name).unwrap_or_else(|| vec![0; count]);
    ensure!(given.len() == count, "{name} has {} entries for {count} tensors", given.len());
    Ok(given)
}
