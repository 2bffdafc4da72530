//! Loop and Scan: the states that the backward needs are recorded in a second forward run, then a Loop or Scan of as
//! many trips goes through them in reverse order, with the gradients of the states as its states.
//!
//! What is recorded is only what the derivative of the body reads, and what those states depend on is all that the
//! second run computes. Everything inside an iteration is computed again from the states at its beginning.

mod batched;
mod body;
pub mod facts;
mod record;

use super::Slot::*;
use super::ports::{Port, Ports, as_declared};
use super::properties::{Counts, read};
use super::{Call, Cotangents, Replay, Rule, rule};
use crate::expr::{Builder, Expr};
use crate::graph::{Bodies, ValueId};
use crate::onnx::ElementType;
use anyhow::Result;
use batched::batched_scan;
use body::{Body, scan_body};
use record::{loop_record, scan_record, stacks, states_at};

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

/// The iteration from after to before, as it is written: what its ports are.
struct Reverse<'g> {
    ports: Ports<'g>,
    /// The gradients of the active states.
    dstates: Vec<Port>,
    /// The sums of what the iterations contribute to the captured values.
    sums: Vec<Port>,
    /// All states at the beginning of the iteration.
    before: Vec<Port>,
    /// The captured values whose gradients are one product of what is read or stacked over all iterations.
    products: Vec<(ValueId, [Port; 2])>,
    /// What else has a gradient when the iterations are through, with its port.
    found: Vec<(Expr<'g>, Port)>,
}

impl<'g> Reverse<'g> {
    fn open(b: &'g Builder) -> Self {
        let ports = Ports::open(b);
        Reverse { ports, dstates: vec![], sums: vec![], before: vec![], products: vec![], found: vec![] }
    }

    /// Opens the ports of what goes from iteration to iteration.
    fn carry(&mut self, c: &Call<'g>, body: &Body<'g>) {
        let state = |&s: &usize| self.ports.carried(body.state_input(s).fact(), c.dy_of(s));
        self.dstates = body.active.iter().map(state).collect();
        // Half precision is added up in float32, since there may be many iterations.
        let sum = |x: &Expr<'g>| self.ports.carried(x.widened().fact(), x.zero().widened());
        self.sums = body.captures.iter().map(sum).collect();
    }

    /// Opens the ports of the states, whose values are recorded later.
    fn read_states(&mut self, body: &Body<'g>, along: (i64, bool)) {
        let read = |s: usize| self.ports.read(body.state_input(s).fact(), None, along);
        self.before = (0..body.states).map(read).collect();
    }

    /// The gradients of the active states before, of the captured values, and of `others`, from those of the states
    /// after and from `seeds`.
    fn differentiate(
        &self,
        body: &Body<'g>,
        replay: &Replay<'g>,
        mut seeds: Vec<(Expr<'g>, Expr<'g>)>,
        others: &[Port],
    ) -> Result<[Vec<Option<Expr<'g>>>; 3]> {
        let after = body.active.iter().map(|&s| replay.outputs[body.first.1 + s]);
        seeds.splice(0..0, after.zip(self.ports.all_inside(&self.dstates)));
        let before = body.active.iter().map(|&s| self.ports.inside(self.before[s]));
        let others = self.ports.all_inside(others);
        let xs: Vec<_> = before.chain(body.captures.iter().copied()).chain(others).collect();
        let mut dbefore = if seeds.is_empty() { vec![None; xs.len()] } else { replay.gradients(&seeds, &xs)? };
        let mut dcaptures = dbefore.split_off(body.active.len());
        let dothers = dcaptures.split_off(body.captures.len());
        Ok([dbefore, dcaptures, dothers])
    }

    /// Takes out of the gradients of captured values those that are products of two tensors of the iteration. Such a
    /// gradient is a sum of products over the iterations: of what stands `in_order` it is one product over all of them.
    fn take_products(&mut self, body: &Body<'g>, dcaptures: &mut [Option<Expr<'g>>], in_order: (i64, bool)) {
        for (x, dcapture) in body.captures.iter().zip(dcaptures) {
            let factors = dcapture.and_then(Expr::factors);
            if let Some((left, right)) = factors.filter(|&(a, b)| self.ports.holds(a) && self.ports.holds(b)) {
                self.products.push((x.id(), [left, right].map(|e| self.ports.holding(e, in_order))));
                *dcapture = None;
            }
        }
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
        let in_product = |port: Port| self.products.iter().any(|(_, pair)| pair.contains(&port));
        let is_read = |&s: &usize| self.ports.stays(self.before[s]) || in_product(self.before[s]);
        (0..self.before.len()).filter(is_read).collect()
    }

    /// Says what has been recorded of the states that are needed.
    fn read_from(&mut self, needed: &[usize], recorded: Vec<Expr<'g>>) {
        needed.iter().zip(recorded).for_each(|(&s, states)| self.ports.from(self.before[s], states));
    }

    /// What has come out, each in the type of what it is the gradient of.
    fn cotangents(self, c: &Call<'g>, body: &Body<'g>) -> Cotangents<'g> {
        let all = |port: Port| self.ports.all(port).stacked_before(1);
        let product = |&(x, [left, right]): &(_, [Port; 2])| (x, all(left).gemm(true, all(right), false, 1.0));
        let products: Vec<_> = self.products.iter().map(product).collect();
        let states = body.active.iter().map(|&s| c.input(body.first.0 + s)).zip(self.dstates);
        let captures = body.captures.iter().copied().zip(self.sums);
        let targets = states.chain(captures).chain(self.found);
        let rounded = |(x, port): (Expr<'g>, Port)| {
            let dx = self.ports.result(port)?;
            Some((x.id(), if x.widened() == x { dx } else { dx.cast_like(x) }))
        };
        c.cotangents().values(targets.filter_map(rounded).filter(|(x, _)| c.wants(*x))).values(products)
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
    let [dbefore, dcaptures, _] = reverse.ports.within(|| {
        let entered = as_declared(b.scalar(1.0, ElementType::Bool), body.inputs[1]);
        let replay = c.replay(body.scope, &[&[i, entered], &*reverse.ports.all_inside(&reverse.before)].concat())?;
        let stacked = replay.outputs.iter().skip(1).enumerate().skip(body.states);
        let seeds = stacked.filter_map(|(k, y)| Some((*y, c.opt_dy(k)?.gather(i.reshape_to(&[]), 0)))).collect();
        reverse.differentiate(&body, &replay, seeds, &[])
    })?;
    reverse.hand_on(&dbefore, &dcaptures);
    if reverse.ports.is_empty() {
        return Ok(c.cotangents());
    }
    reverse.ports.close(c, None)?;
    let (needed, again): (Vec<usize>, Vec<usize>) = reverse.needed().into_iter().partition(|&s| stacks(c, &body, s));
    let (trips, recorded) = loop_record(c, &body, &needed)?;
    reverse.read_from(&needed, recorded);
    let before: Vec<Port> = again.iter().map(|&s| reverse.before[s]).collect();
    let at = |trip| Ok(before.into_iter().zip(states_at(c, &body, &again, trip)?).collect());
    reverse.ports.repeat_backward(c, trips, at)?;
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
    let [dbefore, mut dcaptures, dslices] = reverse.ports.within(|| {
        let arguments = reverse.ports.all_inside(&[&*reverse.before, &slices].concat());
        let replay = c.replay(body.scope, &arguments)?;
        let seeds = dys.iter().map(|&(i, port)| (replay.outputs[i], reverse.ports.inside(port))).collect();
        reverse.differentiate(&body, &replay, seeds, &wanted.iter().map(|&j| slices[j]).collect::<Vec<_>>())
    })?;
    for (&j, dslice) in wanted.iter().zip(dslices) {
        let (axis, last_first) = body.slices[j];
        let stack = |d| (c.input(states + j), reverse.ports.stacked(d, (axis, !last_first)));
        reverse.found.extend(dslice.map(stack));
    }
    reverse.take_products(&body, &mut dcaptures, in_order);
    reverse.hand_on(&dbefore, &dcaptures);
    if reverse.ports.is_empty() {
        return Ok(c.cotangents());
    }
    reverse.ports.close(c, slices.first().copied())?;
    let needed = reverse.needed();
    let recorded = scan_record(c, &body, &needed, flip)?;
    reverse.read_from(&needed, recorded);
    reverse.ports.scan();
    Ok(reverse.cotangents(c, &body))
}
