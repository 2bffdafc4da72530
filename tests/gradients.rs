//! Every case of `tests/cases`: the gradients of each row of the table against finite differences in tract, first and
//! second order.

mod common;

use common::Case;
use libtest_mimic::{Arguments, Failed, Trial};
use onnx_gradients::onnx::TensorProto;
use onnx_gradients::validate::{Options, Status, validate};
use onnx_gradients::{Model, Output, internals};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

/// Operators that tract does not have: the gradients of their cases are built here in both orders, their numbers are checked
/// in `tests/conformance`, which runs other engines. One that tract learns is taken off.
const NOT_IN_TRACT: &[&str] = &[
    // tract has tensors only: no sequences,
    "ConcatFromSequence",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SplitToSequence",
    // and no values that may be absent.
    "Optional",
    "OptionalGetElement",
    // It reads the shape as if there were no pads.
    "ConvTranspose with output_shape",
    // Its axis of batches and its lengths are of that opset alone.
    "Scan before opset 9",
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = common::all().into_iter().map(|case| {
        let name = format!("{}: {} at opset {}", case.family, case.title, case.opset);
        Trial::test(name, move || check(&case))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn check(case: &Case) -> Result<(), Failed> {
    let first = case.differentiate().map_err(|e| format!("{e:#}"))?;
    let missing: Vec<&str> = first.gradients.iter().filter(|g| g.name.is_none()).map(|g| g.x.as_str()).collect();
    let opaque = case.order == 0;
    if !opaque && missing.len() == first.gradients.len() {
        return Err("no input gets a gradient".into());
    }
    compare(case, &first, case.inputs(), "first order")?;
    if case.order < 2 {
        return Ok(());
    }
    let ys: Vec<String> = first.gradients.iter().filter_map(|g| g.name.clone()).collect();
    let second = case.gradients(&first.model, ys).map_err(|e| format!("second order: {e:#}"))?;
    let mut inputs = case.inputs();
    inputs.extend(case.seeds(&first));
    compare(case, &second, inputs, "second order")
}

fn compare(case: &Case, output: &Output, inputs: BTreeMap<String, TensorProto>, order: &str) -> Result<(), Failed> {
    let Model { proto, folder, .. } = &output.model;
    // Every branch is visited.
    let others = if case.family == "control" { 8 } else { 1 };
    let options = Options::default().others(others).closely(false).dims(case.sizes.clone());
    let options = options.inputs(inputs).directions(2);
    let validation = validate(proto, folder.as_deref(), &output.record, &options);
    let reason = validation.reason.unwrap_or_default();
    // Its gradient is not the slope of what it computes: tests/straight_through.rs checks it.
    let conventional =
        || case.operators().iter().any(|(domain, op)| internals::newest(domain, op).is_some_and(|r| r.conventional));
    // All that the case uses of the list is missing, and nothing else is.
    let absent: BTreeSet<&str> = reason.strip_prefix("tract has no ").into_iter().flat_map(|r| r.split(", ")).collect();
    if let Some(learnt) = NOT_IN_TRACT.iter().find(|op| has(case, op) && !absent.contains(*op)) {
        return Err(format!("{order}: tract has {learnt} now: take it off the list; {reason}").into());
    }
    match validation.status {
        // A second derivative that is zero everywhere has no gradients, or only such as are zero where the slope is.
        Status::Skipped if validation.gradients.iter().all(|g| g.zero || g.gradient.is_none()) => Ok(()),
        Status::Skipped if conventional() => Ok(()),
        Status::Skipped if !absent.is_empty() && absent.iter().all(|op| NOT_IN_TRACT.contains(op)) => Ok(()),
        Status::Passed => match validation.gradients.iter().find(|g| g.gradient.is_some() && !g.compared && !g.zero) {
            Some(_) if conventional() => Ok(()),
            Some(g) => Err(format!("{order}: '{}' was not compared: {:?}", g.x, g.note).into()),
            None => Ok(()),
        },
        status => Err(format!("{order}: {status:?}: {reason}").into()),
    }
}

/// Whether a case is about an operator, or about it before an opset.
fn has(case: &Case, op: &str) -> bool {
    let (op, old) = match op.split_once(" before opset ") {
        Some((op, opset)) => (op, opset.parse().is_ok_and(|opset| case.opset < opset)),
        None => (op, true),
    };
    old && case.operators().iter().any(|(_, o)| o == op)
}
