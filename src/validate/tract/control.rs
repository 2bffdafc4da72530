//! Loop and Scan: a body that runs once a trip. Its sizes need not be known before.

use super::convert::sized;
use super::operator::{Built, operator};
use anyhow::{Context, Result, ensure};
use std::sync::Arc;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};
use tract_onnx::tract_core::plan::SimplePlan;
use tract_onnx::tract_hir::internal::*;

pub type Body = Arc<SimplePlan<InferenceFact, Box<dyn InferenceOp>>>;

/// More trips than this are endless.
const MAX_TRIPS: usize = 1 << 20;

/// A Loop, or a Scan.
#[derive(Clone)]
struct Repeated {
    body: Body,
    /// How many outputs the body has.
    results: usize,
    /// For each output of the node whether it is left out.
    kept: Vec<bool>,
    /// How many inputs come from around the node.
    captures: usize,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    /// Whether the node gives a number of trips, and a condition.
    Loop { count: bool, condition: bool },
    /// For each scan input and output its axis, and whether it is reversed.
    Scan { inputs: Vec<(i64, bool)>, outputs: Vec<(i64, bool)> },
}

fn find<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

fn body(context: &ParsingContext, node: &NodeProto) -> Result<(Body, usize, Vec<String>)> {
    let graph = find(node, "body").and_then(|a| a.g.as_ref()).context("the node has no body")?;
    let (body, captures) = plan(context, graph)?;
    Ok((body.clone(), body.model().output_outlets()?.len(), captures))
}

/// A body that can run, and what it takes from around the node behind its inputs.
pub fn plan(context: &ParsingContext, graph: &GraphProto) -> Result<(Body, Vec<String>)> {
    let parsed = context.parse_graph(graph)?;
    Ok((SimplePlan::new(parsed.model)?, parsed.unresolved_inputs))
}

fn built(repeated: Repeated, captures: Vec<String>) -> Built {
    Ok((Box::new(repeated), captures))
}

/// Builds a Loop.
pub fn loop_(context: &ParsingContext, node: &NodeProto) -> Built {
    let (body, results, captures) = body(context, node)?;
    let given = |i: usize| node.input.get(i).is_some_and(|i| !i.is_empty());
    let kind = Kind::Loop { count: given(0), condition: given(1) };
    let kept = node.output.iter().map(|o| !o.is_empty()).collect();
    built(Repeated { body, results, kept, captures: captures.len(), kind }, captures)
}

/// Builds a Scan of opset 9 or later.
pub fn scan(context: &ParsingContext, node: &NodeProto) -> Built {
    ensure!(context.onnx_operator_set_version >= 9, "Scan before opset 9 has a batch");
    let (body, results, captures) = body(context, node)?;
    let scanned = find(node, "num_scan_inputs").context("Scan without num_scan_inputs")?.i;
    let scanned = usize::try_from(scanned).ok().filter(|&n| n <= node.input.len()).context("more than all inputs")?;
    let states = node.input.len() - scanned;
    let list = |axes: &str, directions: &str, count: usize| -> Vec<(i64, bool)> {
        let at = |name: &str, i: usize| find(node, name).and_then(|a| a.ints.get(i).copied()).unwrap_or(0);
        (0..count).map(|i| (at(axes, i), at(directions, i) == 1)).collect()
    };
    let inputs = list("scan_input_axes", "scan_input_directions", scanned);
    let outputs = list("scan_output_axes", "scan_output_directions", results.saturating_sub(states));
    let kept = node.output.iter().map(|o| !o.is_empty()).collect();
    built(Repeated { body, results, kept, captures: captures.len(), kind: Kind::Scan { inputs, outputs } }, captures)
}

fn axis_of(axis: i64, rank: usize) -> Result<usize> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front).ok().filter(|&a| a < rank).with_context(|| format!("rank {rank} has no axis {axis}"))
}

/// What the trips gave, one beside the other along a new axis.
fn stacked(mut slices: Vec<Tensor>, axis: i64, reversed: bool) -> Result<TValue> {
    if reversed {
        slices.reverse();
    }
    let rank = slices.first().context("without trips nothing is known of what is stacked")?.rank() + 1;
    let axis = axis_of(axis, rank)?;
    for slice in &mut slices {
        slice.insert_axis(axis)?;
    }
    Ok(Tensor::stack_tensors(axis, &slices)?.into_tvalue())
}

impl Repeated {
    fn run_body(&self, feeds: TVec<TValue>) -> Result<TVec<TValue>> {
        let sized = |feed: TValue| Ok(sized(feed.into_arc_tensor())?.into_tvalue());
        self.body.run(feeds.into_iter().map(sized).collect::<Result<_>>()?)
    }

    fn run_loop(&self, count: bool, condition: bool, inputs: &[TValue]) -> Result<Vec<TValue>> {
        let mut inputs = inputs.iter();
        let scalar = |t: Option<&TValue>| t.context("an input is missing").and_then(|t| t.cast_to_scalar::<i64>());
        let trips = if count { usize::try_from(scalar(inputs.next())?).unwrap_or(0) } else { MAX_TRIPS };
        let mut goes_on = if condition { scalar(inputs.next())? != 0 } else { true };
        let mut states: Vec<TValue> = inputs.cloned().collect();
        let captures = states.split_off(states.len().checked_sub(self.captures).context("inputs are missing")?);
        let mut slices = vec![Vec::new(); self.results.saturating_sub(1 + states.len())];
        let declared = |i: usize| Ok::<_, anyhow::Error>(self.body.model().input_fact(i)?.shape.rank().concretize());
        // Runtimes make one element of rank 1 for a body that declares it.
        let (number, flag) = (declared(0)? == Some(1), declared(1)? == Some(1));
        let mut trip = 0;
        while trip < trips && goes_on {
            ensure!(trip < MAX_TRIPS, "a loop of more than {MAX_TRIPS} trips");
            let at = if number { tensor1(&[trip as i64]) } else { tensor0(trip as i64) };
            let entered = if flag { tensor1(&[true]) } else { tensor0(true) };
            let mut feeds: TVec<TValue> = tvec![at.into_tvalue(), entered.into_tvalue()];
            feeds.extend(states.iter().chain(&captures).cloned());
            let mut results = self.run_body(feeds)?.into_iter();
            goes_on = results.next().context("the body has no condition")?.cast_to_scalar::<bool>()?;
            for state in &mut states {
                *state = results.next().context("the body has too few outputs")?;
            }
            slices.iter_mut().zip(results).for_each(|(s, r)| s.push(r.into_tensor()));
            trip += 1;
        }
        for slices in slices {
            states.push(stacked(slices, 0, false)?);
        }
        Ok(states)
    }

    fn run_scan(&self, scanned: &[(i64, bool)], stacks: &[(i64, bool)], inputs: &[TValue]) -> Result<Vec<TValue>> {
        let count = inputs.len().checked_sub(self.captures + scanned.len()).context("inputs are missing")?;
        let mut states = inputs[..count].to_vec();
        let (sequences, captures) = inputs[count..].split_at(scanned.len());
        let axes: Vec<usize> =
            scanned.iter().zip(sequences).map(|((a, _), t)| axis_of(*a, t.rank())).collect::<Result<_>>()?;
        let trips = axes.first().zip(sequences.first()).map(|(&a, t)| t.shape()[a]).context("Scan scans nothing")?;
        ensure!(axes.iter().zip(sequences).all(|(&a, t)| t.shape()[a] == trips), "scanned inputs of different lengths");
        let mut slices = vec![Vec::new(); stacks.len()];
        for trip in 0..trips {
            let mut feeds: TVec<TValue> = states.iter().cloned().collect();
            for ((t, &axis), (_, reversed)) in sequences.iter().zip(&axes).zip(scanned) {
                let at = if *reversed { trips - 1 - trip } else { trip };
                let mut slice = t.slice(axis, at, at + 1)?;
                slice.remove_axis(axis)?;
                feeds.push(slice.into_tvalue());
            }
            feeds.extend(captures.iter().cloned());
            let mut results = self.run_body(feeds)?.into_iter();
            for state in &mut states {
                *state = results.next().context("the body has too few outputs")?;
            }
            slices.iter_mut().zip(results).for_each(|(s, r)| s.push(r.into_tensor()));
        }
        for (slices, &(axis, reversed)) in slices.into_iter().zip(stacks) {
            states.push(stacked(slices, axis, reversed)?);
        }
        Ok(states)
    }
}

impl std::fmt::Debug for Repeated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

operator!(
    Repeated,
    name: |op| match op.kind {
        Kind::Loop { .. } => "Loop".to_owned(),
        Kind::Scan { .. } => "Scan".to_owned(),
    },
    outputs: |op| op.kept.iter().filter(|kept| **kept).count(),
    facts: |_, _, _| ()
);

impl EvalOp for Repeated {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let results = match &self.kind {
            Kind::Loop { count, condition } => self.run_loop(*count, *condition, &inputs)?,
            Kind::Scan { inputs: scanned, outputs } => self.run_scan(scanned, outputs, &inputs)?,
        };
        ensure!(results.len() >= self.kept.len(), "the node has more outputs than its body");
        Ok(results.into_iter().zip(&self.kept).filter(|(_, kept)| **kept).map(|(r, _)| r).collect())
    }
}
