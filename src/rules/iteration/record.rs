//! The second forward run, which records what the derivative of a body reads.

use super::body::Body;
use crate::expr::Expr;
use crate::graph::{Container, Dim, Fact, ValueId};
use crate::rules::Call;
use crate::rules::ports::{Port, Ports};
use anyhow::{Context, Result, ensure};

/// A second forward run as it is written: the ports of what goes into the body.
struct Again<'g> {
    ports: Ports<'g>,
    given: Vec<Port>,
    states: Vec<Port>,
    slices: Vec<Port>,
}

impl Again<'_> {
    /// Stacks states at the beginning of each iteration.
    fn stack(&mut self, states: &[usize], last_first: bool) -> Vec<Port> {
        let ports = &mut self.ports;
        states.iter().map(|&s| ports.stacked(ports.inside(self.states[s]), (0, last_first))).collect()
    }
}

/// Runs the body again for the `needed` states. Only those that these depend on are carried, or that the `condition`
/// does, if it is to be computed again.
fn again<'g>(c: &Call<'g>, body: &Body<'g>, needed: &[usize], condition: bool) -> Result<Again<'g>> {
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
    Ok(Again { ports, given, states, slices })
}

/// Whether the values of a state can be stacked: it is a tensor.
pub fn stacks(c: &Call<'_>, body: &Body<'_>, s: usize) -> bool {
    c.input(body.first.0 + s).fact().container == Container::Tensor
}

/// States of a Loop at the beginning of a trip: all trips before it are run again. For sequences, of which nothing can
/// be stacked.
pub fn states_at<'g>(c: &Call<'g>, body: &Body<'g>, needed: &[usize], trip: Expr<'g>) -> Result<Vec<Expr<'g>>> {
    if needed.is_empty() {
        return Ok(vec![]);
    }
    let mut again = again(c, body, needed, false)?;
    again.ports.close(c, None)?;
    again.ports.repeat(Some(trip), None);
    let state = |&s: &usize| again.ports.result(again.states[s]).context("a state that is not carried");
    needed.iter().map(state).collect()
}

/// How many trips the Loop has made, and the needed states at the beginning of each.
pub fn loop_record<'g>(c: &Call<'g>, body: &Body<'g>, needed: &[usize]) -> Result<(Expr<'g>, Vec<Expr<'g>>)> {
    let stacked = (body.states..c.output_count()).find_map(|k| c.output(k));
    // Where the number of trips is known, the condition need not be computed again.
    let trips = stacked.map(|y| y.dim(0)).or_else(|| counted(c, body));
    if let (Some(trips), []) = (trips, needed) {
        return Ok((trips, vec![]));
    }
    needed.iter().try_for_each(|&s| keeps_shape(c, body, s))?;
    let mut again = again(c, body, needed, trips.is_none())?;
    let mut stacked = again.stack(needed, false);
    if needed.is_empty() {
        stacked.push(again.ports.stacked(again.ports.inside(again.given[0]), (0, false)));
    }
    again.ports.close(c, None)?;
    match trips {
        Some(trips) => again.ports.repeat(Some(trips), None),
        None => again.ports.repeat(c.opt(0), c.opt(1)),
    }
    let recorded: Vec<_> = stacked.iter().map(|&p| again.ports.all(p)).collect();
    let trips = trips.or_else(|| Some(recorded.first()?.dim(0))).context("the number of trips is not known")?;
    Ok((trips, if needed.is_empty() { vec![] } else { recorded }))
}

/// The needed states at the beginning of each step, stacked along the first axis, those of the last step first if
/// `flip`.
pub fn scan_record<'g>(c: &Call<'g>, body: &Body<'g>, needed: &[usize], flip: bool) -> Result<Vec<Expr<'g>>> {
    if needed.is_empty() {
        return Ok(vec![]);
    }
    let mut again = again(c, body, needed, false)?;
    let stacked = again.stack(needed, flip);
    again.ports.close(c, again.slices.first().copied())?;
    again.ports.scan();
    Ok(stacked.iter().map(|&p| again.ports.all(p)).collect())
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
        let node_before = |&value: &ValueId| Some(graph.node(graph.producer(value)?.0));
        let handed_on = |value: &ValueId| {
            let node = node_before(value).filter(|node| &*node.op_type == "Identity")?;
            node.inputs.first().copied().flatten()
        };
        std::iter::successors(body.outputs.first().copied(), handed_on).last()?
    };
    let condition = b.expr(condition);
    let handed_on = body.inputs.get(1) == Some(&condition);
    (handed_on || sure(condition)).then(|| limit.reshape_to(&[]).max(b.int(0)))
}

/// What is recorded is stacked: a tensor must keep its shape.
fn keeps_shape<'g>(c: &Call<'g>, body: &Body<'g>, s: usize) -> Result<()> {
    let graph = c.builder().graph();
    let (before, after) = (c.input(body.first.0 + s), body.state_output(s));
    let (before, after) = (graph.fact(before.id()), graph.fact(after));
    let name = graph.value(body.state_input(s).id()).name.clone();
    let name = name.as_deref().unwrap_or_default();
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
