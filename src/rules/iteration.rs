//! Loop and Scan: the states that the backward needs are recorded in a second forward run, then a Loop or Scan of as many
//! trips goes through them in reverse order, with the gradients of the states as its states.
//!
//! What is recorded is only what the derivative of the body reads, and what those states depend on is all that the second
//! run computes. Everything inside an iteration is computed again from the states at its beginning.

use super::Slot::*;
use super::control::close;
use super::{Call, Cotangents, Rule, rule};
use crate::expr::{Along, Expr};
use crate::graph::{Container, Dim, Fact, Graph, IdSet, NodeId, ScopeId, ValueId};
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Loop", "the body's gradient, also by what it captures, from the last trip to the first", &[Together(loop_)])
        .facts_of_bodies()
        .attributes("body")
        .note("carried states must keep their shapes where the gradient needs their values"),
    rule("Scan", "the body's gradient, also by what it captures, from the last step to the first", &[Together(scan)])
        .facts_of_bodies()
        .attributes(
            "body num_scan_inputs scan_input_axes scan_input_directions scan_output_axes scan_output_directions",
        )
        .since(9),
    rule(
        "Scan",
        "the body's gradient, also by what it captures, step by step for each entry of the batch",
        &[Together(batched_scan)],
    )
    .facts_of_bodies()
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
    /// The captured values that get a gradient.
    captures: Vec<Expr<'g>>,
    /// The states through which a gradient flows back.
    active: Vec<usize>,
}

impl<'g> Body<'g> {
    fn new(c: &Call<'g>, states: usize, first: (usize, usize), stacked: usize) -> Result<Self> {
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
        let mut this = Body { scope, inputs, outputs, nodes, first, states, captures: vec![], active: vec![] };
        this.find_active(c, stacked);
        Ok(this)
    }

    fn state_input(&self, i: usize) -> Expr<'g> {
        self.inputs[self.first.0 + i]
    }

    fn state_output(&self, i: usize) -> ValueId {
        self.outputs[self.first.1 + i]
    }

    fn facts(&self, inputs: impl IntoIterator<Item = usize>) -> Vec<Fact> {
        inputs.into_iter().map(|i| self.inputs[i].fact()).collect()
    }

    /// A state is active if it depends on something that is asked for, in this or an earlier iteration, and something that
    /// has a gradient depends on it. `stacked` inputs follow the states, one a scan input of the node.
    fn find_active(&mut self, c: &Call<'g>, stacked: usize) {
        let b = c.builder();
        let captures = c.wanted_captures();
        let wanted = |i: usize| c.opt(i).is_some_and(|x| c.wants(x.id()));
        // Of Loop and Scan alike, inputs of the node and of the body are in the same places.
        let mut sources: IdSet<ValueId> = captures.iter().map(|e| e.id()).collect();
        let places = self.first.0..self.first.0 + self.states + stacked;
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

/// Adds what an iteration contributes, half precision in float32: there may be many.
fn plus<'g>(sum: Expr<'g>, term: Option<Expr<'g>>) -> Expr<'g> {
    term.map_or(sum, |term| sum + term.widened())
}

/// What is known of the sum of what the iterations contribute to a captured value.
fn sum_fact(x: Expr<'_>) -> Fact {
    Fact { value: None, ..x.widened().fact() }
}

/// A sum in the type of what it is the gradient of.
fn rounded<'g>(sum: Expr<'g>, x: Expr<'g>) -> Expr<'g> {
    if x.widened() == x { sum } else { sum.cast_like(x) }
}

/// A number without dimensions in the rank that a body declares of it: runtimes take one element of rank 1 for it, too.
fn as_declared<'g>(number: Expr<'g>, input: Expr<'g>) -> Expr<'g> {
    if input.fact().rank() == Some(1) { number.reshape_to(&[1]) } else { number }
}

/// The places of those that are used.
fn places(used: &IdSet<ValueId>, inputs: &[Expr<'_>]) -> Vec<usize> {
    (0..inputs.len()).filter(|&i| used.contains(&inputs[i].id())).collect()
}

fn loop_<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let b = c.builder();
    let states = c.input_count().saturating_sub(2);
    let body = Body::new(c, states, (2, 1), 0)?;
    let step = loop_step(c, &body)?;
    let Some(step) = step else { return Ok(c.cotangents()) };

    let (trips, recorded) = loop_record(c, &body, &step.needed)?;
    let last = trips - 1;
    let mut initial: Vec<Expr<'g>> = body.active.iter().map(|&s| c.dy_of(s)).collect();
    initial.extend(step.captures.iter().map(|x| x.zeros_like().widened()));

    let mut facts = vec![Fact::tensor(Some(ElementType::Int64), Some([].into()))];
    facts.push(Fact::tensor(Some(ElementType::Bool), Some([].into())));
    facts.extend(body.facts(body.active.iter().map(|s| 2 + s)));
    facts.extend(step.captures.iter().map(|x| sum_fact(*x)));
    let (scope, inputs) = b.open(facts);
    let outputs = b.within(scope, || {
        let i = last - inputs[0];
        let mut replaced = vec![as_declared(i, body.inputs[0])];
        replaced.extend(recorded.iter().map(|r| r.gather(i, 0)));
        replaced.extend(&inputs[2..]);
        let (outputs, _) = b.splice(step.scope, &replaced);
        [vec![inputs[1]], outputs].concat()
    });
    close(c, scope, &outputs, inputs.len())?;
    let gradients = b.loop_(Some(trips), None, &initial, scope);
    let active = body.active.iter().map(|&s| c.input(2 + s));
    let targets = active.chain(step.captures.iter().copied());
    let pairs = targets.zip(gradients).map(|(x, dx)| (x.id(), rounded(dx, x)));
    Ok(c.cotangents().values(pairs.filter(|(x, _)| c.wants(*x))))
}

/// The derivative of one iteration: a scope that takes the trip number, the states that it `needed`, the gradients of the
/// active states and the sums for the captures, and gives the latter two.
struct Step<'g> {
    scope: ScopeId,
    needed: Vec<usize>,
    captures: Vec<Expr<'g>>,
}

fn loop_step<'g>(c: &Call<'g>, body: &Body<'g>) -> Result<Option<Step<'g>>> {
    let b = c.builder();
    let states = body.states;
    let mut facts = body.facts((0..1).chain(2..2 + states));
    facts.extend(body.facts(body.active.iter().map(|s| 2 + s)));
    facts.extend(body.captures.iter().map(|x| sum_fact(*x)));
    let (scope, inputs) = b.open(facts);
    let (i, before) = (inputs[0], &inputs[1..1 + states]);
    let (dstates, sums) = inputs[1 + states..].split_at(body.active.len());
    let (outputs, captures) = b.within(scope, || {
        let entered = as_declared(b.scalar(1.0, ElementType::Bool), body.inputs[1]);
        let replay = c.replay(body.scope, &[&[i, entered], before].concat())?;
        let after = &replay.outputs[1..];
        let mut seeds: Vec<_> = body.active.iter().map(|&s| after[s]).zip(dstates.iter().copied()).collect();
        for (k, y) in after.iter().enumerate().skip(states) {
            seeds.extend(c.opt_dy(k).map(|dy| (*y, dy.gather(i.reshape_to(&[]), 0))));
        }
        let xs: Vec<_> = body.active.iter().map(|&s| before[s]).chain(body.captures.iter().copied()).collect();
        let dxs = replay.gradients(&seeds, &xs)?;
        let (dbefore, dcaptures) = dxs.split_at(body.active.len());
        let mut outputs: Vec<_> =
            dbefore.iter().zip(dstates).map(|(d, after)| d.unwrap_or_else(|| after.zeros_like())).collect();
        let connected: Vec<usize> = (0..sums.len()).filter(|&k| dcaptures[k].is_some()).collect();
        outputs.extend(connected.iter().map(|&k| plus(sums[k], dcaptures[k])));
        anyhow::Ok((outputs, connected))
    })?;
    if outputs.is_empty() {
        return Ok(None);
    }
    close(c, scope, &outputs, 1)?;
    let used: IdSet<ValueId> = b.graph().scope(scope).inputs.iter().copied().collect();
    let needed = places(&used, before);
    let mut kept = vec![i.id()];
    kept.extend(needed.iter().map(|&s| before[s].id()));
    kept.extend(dstates.iter().map(|d| d.id()));
    kept.extend(captures.iter().map(|&k| sums[k].id()));
    b.graph_mut().set_inputs(scope, kept);
    Ok(Some(Step { scope, needed, captures: captures.into_iter().map(|k| body.captures[k]).collect() }))
}

/// How many trips the Loop has made, and the needed states at the beginning of each.
fn loop_record<'g>(c: &Call<'g>, body: &Body<'g>, needed: &[usize]) -> Result<(Expr<'g>, Vec<Expr<'g>>)> {
    let b = c.builder();
    let stacked = (body.states..c.output_count()).find_map(|k| c.output(k));
    let trips = stacked.map(|y| y.dim(0)).or_else(|| counted(c, body));
    if let (Some(trips), []) = (trips, needed) {
        return Ok((trips, vec![]));
    }
    for &s in needed {
        keeps_shape(c, body, s)?;
    }
    // Where the number of trips is known, the condition need not be computed again.
    let carried = {
        let graph = b.graph();
        let condition = trips.is_none().then(|| body.outputs[0]);
        let states = needed.iter().map(|&s| body.state_input(s).id());
        body.states_behind(&graph, states.chain(condition))
    };
    let (scope, inputs) = b.open(body.inputs.iter().map(|x| x.fact()).collect());
    let outputs = b.within(scope, || {
        let replay = c.replay(body.scope, &inputs)?;
        let mut outputs = vec![if trips.is_some() { inputs[1] } else { replay.outputs[0] }];
        outputs.extend(carried.iter().map(|&s| replay.outputs[1 + s]));
        outputs.extend(needed.iter().map(|&s| inputs[2 + s]));
        if needed.is_empty() {
            outputs.push(inputs[0]);
        }
        anyhow::Ok(outputs)
    })?;
    close(c, scope, &outputs, 2)?;
    // States that only others would need have gone from the inputs; those that are carried stay, whether they are read or not.
    {
        let mut kept = vec![inputs[0].id(), inputs[1].id()];
        kept.extend(carried.iter().map(|&s| inputs[2 + s].id()));
        b.graph_mut().set_inputs(scope, kept);
    }
    let initial = carried.iter().map(|&s| c.input(2 + s)).collect::<Vec<_>>();
    let (limit, condition) = match trips {
        Some(trips) => (Some(trips), None),
        None => (c.opt(0), c.opt(1)),
    };
    let outputs = b.loop_(limit, condition, &initial, scope);
    let recorded = outputs.get(carried.len()..).unwrap_or_default().to_vec();
    let trips = match (trips, recorded.first()) {
        (Some(trips), _) => trips,
        (None, Some(first)) => first.dim(0),
        (None, None) => bail!("the number of trips is not known"),
    };
    Ok((trips, if needed.is_empty() { vec![] } else { recorded }))
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

    // Of each output the entries of the batch.
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

/// Axes and directions of a Scan, one for each scan input or output.
fn list(c: &Call<'_>, name: &str, count: usize) -> Result<Vec<i64>> {
    let given = c.ints(name).unwrap_or_else(|| vec![0; count]);
    ensure!(given.len() == count, "{name} has {} entries for {count} tensors", given.len());
    Ok(given)
}

fn scan<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let b = c.builder();
    let scanned = usize::try_from(c.int("num_scan_inputs", 0)).unwrap_or(0);
    ensure!((1..=c.input_count()).contains(&scanned), "num_scan_inputs is {scanned}, of {} inputs", c.input_count());
    let states = c.input_count() - scanned;
    let body = Body::new(c, states, (0, 0), scanned)?;
    ensure!(
        body.inputs.len() == states + scanned,
        "its body has {} inputs for {}",
        body.inputs.len(),
        states + scanned
    );
    let stacked = body.outputs.len() - states;
    let (input_axes, output_axes) = (list(c, "scan_input_axes", scanned)?, list(c, "scan_output_axes", stacked)?);
    let input_directions = list(c, "scan_input_directions", scanned)?;
    let output_directions = list(c, "scan_output_directions", stacked)?;

    // States: gradients of states, sums for captures. Scan inputs: recorded states, the node's own, gradients of its stacked outputs.
    let dys: Vec<usize> = (0..stacked).filter(|k| c.has_dy(states + k)).collect();
    let mut facts = body.facts(body.active.iter().copied());
    facts.extend(body.captures.iter().map(|x| sum_fact(*x)));
    facts.extend(body.facts(0..states + scanned));
    facts.extend(dys.iter().map(|k| b.graph().fact(body.outputs[states + k]).clone()));
    let (scope, inputs) = b.open(facts);
    let (dstates, rest) = inputs.split_at(body.active.len());
    let (sums, rest) = rest.split_at(body.captures.len());
    let (before, dslices) = rest.split_at(states + scanned);
    let slices: Vec<usize> = (0..scanned).filter(|j| c.opt(states + j).is_some_and(|x| c.wants(x.id()))).collect();
    let (dxs, seeded) = b.within(scope, || {
        let replay = c.replay(body.scope, before)?;
        let mut seeds: Vec<_> = body.active.iter().map(|&s| replay.outputs[s]).zip(dstates.iter().copied()).collect();
        seeds.extend(dys.iter().map(|k| replay.outputs[states + k]).zip(dslices.iter().copied()));
        let mut xs: Vec<_> = body.active.iter().map(|&s| before[s]).collect();
        xs.extend(&body.captures);
        xs.extend(slices.iter().map(|j| before[states + j]));
        anyhow::Ok((replay.gradients(&seeds, &xs)?, !seeds.is_empty()))
    })?;
    if !seeded {
        return Ok(c.cotangents());
    }
    let (dbefore, rest) = dxs.split_at(body.active.len());
    let (dcaptures, dinputs) = rest.split_at(body.captures.len());
    let sliced: Vec<usize> = (0..slices.len()).filter(|&j| dinputs[j].is_some()).collect();
    // What is stacked stands in the order of the first scan input, so that it can stand beside the node's own tensors.
    let flip = input_directions[0] != 0;
    let in_order = |j: usize| input_axes[j] == 0 && (input_directions[j] != 0) == flip;
    // The gradient of a matrix is a sum of products over the steps: of what is stacked it is one product over all steps.
    let inside = |e: Expr<'g>| b.graph().value(e.id()).scope == scope;
    let product = |k: usize| dcaptures[k]?.factors().filter(|(left, right)| inside(*left) && inside(*right));
    let products: Vec<(usize, (Expr<'g>, Expr<'g>))> = (0..sums.len()).filter_map(|k| Some((k, product(k)?))).collect();
    let is_product = |k: &usize| products.iter().any(|(p, _)| p == k);
    let captured: Vec<usize> = (0..sums.len()).filter(|k| dcaptures[*k].is_some() && !is_product(k)).collect();
    let mut extra: Vec<Expr<'g>> = Vec::new();
    let mut stack = |e: Expr<'g>| {
        let of_input = || (0..scanned).find(|&j| before[states + j] == e && in_order(j)).map(Stacked::Input);
        let of_state = || (0..states).find(|&s| before[s] == e).map(Stacked::State);
        let of_output =
            || sliced.iter().position(|&j| dinputs[j] == Some(e) && in_order(slices[j])).map(Stacked::Output);
        of_input().or_else(of_state).or_else(of_output).unwrap_or_else(|| {
            let place = extra.iter().position(|known| *known == e).unwrap_or_else(|| {
                extra.push(e);
                extra.len() - 1
            });
            Stacked::Output(sliced.len() + place)
        })
    };
    let products: Vec<_> = products.into_iter().map(|(k, (left, right))| (k, stack(left), stack(right))).collect();
    let outputs: Vec<_> = b.within(scope, || {
        let states = dbefore.iter().zip(dstates).map(|(d, after)| d.unwrap_or_else(|| after.zeros_like()));
        let sums = captured.iter().map(|&k| plus(sums[k], dcaptures[k]));
        let sliced = sliced.iter().filter_map(|&j| dinputs[j]);
        states.chain(sums).chain(sliced).chain(extra.iter().copied()).collect()
    });
    if outputs.is_empty() {
        return Ok(c.cotangents());
    }
    close(c, scope, &outputs, 0)?;
    let used: IdSet<ValueId> = b.graph().scope(scope).inputs.iter().copied().collect();
    let needed = places(&used, &before[..states]);
    let stacked_states = products.iter().flat_map(|(_, left, right)| [*left, *right]).filter_map(|of| match of {
        Stacked::State(s) => Some(s),
        _ => None,
    });
    let mut record: Vec<usize> = needed.iter().copied().chain(stacked_states).collect();
    record.sort_unstable();
    record.dedup();
    let mut read = places(&used, &before[states..]);
    let used_dys = places(&used, dslices);
    if needed.is_empty() && read.is_empty() && used_dys.is_empty() {
        // Something has to say how many steps there are.
        read.push(0);
    }
    let recorded: HashMap<usize, Expr<'g>> =
        record.iter().copied().zip(scan_record(c, &body, &record, scanned, flip)?).collect();

    let mut kept: Vec<ValueId> = dstates.iter().map(|x| x.id()).collect();
    kept.extend(captured.iter().map(|&k| sums[k].id()));
    kept.extend(needed.iter().map(|&s| before[s].id()));
    kept.extend(read.iter().map(|&j| before[states + j].id()));
    kept.extend(used_dys.iter().map(|&k| dslices[k].id()));
    b.graph_mut().set_inputs(scope, kept);

    let mut initial: Vec<Expr<'g>> = body.active.iter().map(|&s| c.dy_of(s)).collect();
    initial.extend(captured.iter().map(|&k| body.captures[k].zeros_like().widened()));
    let mut along = Vec::new();
    let states_recorded = needed.iter().filter_map(|s| recorded.get(s).copied());
    along.extend(states_recorded.map(|tensor| Along { tensor, axis: 0, reverse: !flip }));
    for &j in &read {
        along.push(Along { tensor: c.input(states + j), axis: input_axes[j], reverse: input_directions[j] == 0 });
    }
    for &k in &used_dys {
        let dy = c.opt_dy(states + dys[k]).context("a gradient is missing")?;
        along.push(Along { tensor: dy, axis: output_axes[dys[k]], reverse: output_directions[dys[k]] == 0 });
    }
    let placed = sliced.iter().map(|&j| slices[j]).map(|j| (input_axes[j], input_directions[j] == 0));
    let placed: Vec<(i64, bool)> = placed.chain(extra.iter().map(|_| (0, !flip))).collect();
    let gradients = b.scan(&initial, &along, &placed, scope);
    let all_steps = |of: Stacked| -> Result<Expr<'g>> {
        let tensor = match of {
            Stacked::Input(j) => c.input(states + j),
            Stacked::State(s) => *recorded.get(&s).context("a state is not recorded")?,
            Stacked::Output(i) => *gradients.get(initial.len() + i).context("a stacked output is missing")?,
        };
        Ok(tensor.stacked_before(1))
    };
    let of_products = products.iter().map(|&(k, left, right)| {
        Ok((body.captures[k].id(), all_steps(left)?.gemm(true, all_steps(right)?, false, 1.0)))
    });
    let of_products = of_products.collect::<Result<Vec<_>>>()?;
    let mut targets: Vec<Expr<'g>> = body.active.iter().map(|&s| c.input(s)).collect();
    targets.extend(captured.iter().map(|&k| body.captures[k]));
    targets.extend(sliced.iter().map(|&j| c.input(states + slices[j])));
    let pairs = targets.into_iter().zip(gradients).map(|(x, dx)| (x.id(), rounded(dx, x)));
    Ok(c.cotangents().values(pairs.filter(|(x, _)| c.wants(*x)).chain(of_products)))
}

/// Where a tensor of each step stands beside those of the other steps.
#[derive(Clone, Copy)]
enum Stacked {
    /// It is a scan input of the node.
    Input(usize),
    /// It is a recorded state.
    State(usize),
    /// It is a stacked output of the backward Scan.
    Output(usize),
}

/// The needed states at the beginning of each step, stacked along the first axis, those of the last step first if `flip`.
fn scan_record<'g>(
    c: &Call<'g>,
    body: &Body<'g>,
    needed: &[usize],
    scanned: usize,
    flip: bool,
) -> Result<Vec<Expr<'g>>> {
    let b = c.builder();
    if needed.is_empty() {
        return Ok(vec![]);
    }
    let carried = {
        let graph = b.graph();
        body.states_behind(&graph, needed.iter().map(|&s| body.state_input(s).id()))
    };
    let (scope, inputs) = b.open(body.inputs.iter().map(|x| x.fact()).collect());
    let outputs = b.within(scope, || {
        let replay = c.replay(body.scope, &inputs)?;
        let mut outputs: Vec<_> = carried.iter().map(|&s| replay.outputs[s]).collect();
        outputs.extend(needed.iter().map(|&s| inputs[s]));
        anyhow::Ok(outputs)
    })?;
    close(c, scope, &outputs, 0)?;
    let used: IdSet<ValueId> = b.graph().scope(scope).inputs.iter().copied().collect();
    let mut read = places(&used, &inputs[body.states..]);
    if read.is_empty() {
        read.push(0);
    }
    let mut kept: Vec<ValueId> = carried.iter().map(|&s| inputs[s].id()).collect();
    kept.extend(read.iter().map(|&j| inputs[body.states + j].id()));
    b.graph_mut().set_inputs(scope, kept);
    let initial: Vec<Expr<'g>> = carried.iter().map(|&s| c.input(s)).collect();
    let (axes, directions) = (list(c, "scan_input_axes", scanned)?, list(c, "scan_input_directions", scanned)?);
    let along = |&j: &usize| Along { tensor: c.input(body.states + j), axis: axes[j], reverse: directions[j] != 0 };
    let along: Vec<_> = read.iter().map(along).collect();
    let outputs = b.scan(&initial, &along, &vec![(0, flip); needed.len()], scope);
    Ok(outputs.get(carried.len()..).unwrap_or_default().to_vec())
}
