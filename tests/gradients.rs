//! Every case of `tests/cases`: the gradients of each row of the table against finite differences in tract, first and
//! second order.

mod common;

use common::{Case, SIZES};
use libtest_mimic::{Arguments, Failed, Trial};
use onnx_gradients::validate::{Options, Status, validate};
use onnx_gradients::{Model, Output};
use std::process::ExitCode;

/// Operators that tract does not have, or gets wrong: their cases are built and their structure is checked here, their
/// numbers in `tests/conformance`, which runs other engines. One that tract learns is taken off.
const NOT_IN_TRACT: &[&str] = &[
    "CumProd",
    "ConcatFromSequence",
    "Loop",
    "Optional",
    "SequenceAt",
    "SequenceEmpty",
    "SequenceMap",
    "SplitToSequence",
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
    let missing: Vec<&str> = first.gradients.iter().filter(|g| g.gradient.is_none()).map(|g| g.x.as_str()).collect();
    let opaque = case.order == 0;
    if !opaque && missing.len() == first.gradients.len() {
        return Err("no input gets a gradient".into());
    }
    compare(case, &first, "first order")?;
    if case.order < 2 {
        return Ok(());
    }
    let ys: Vec<String> = first.gradients.iter().filter_map(|g| g.gradient.clone()).collect();
    let second = common::gradients(&first.model, ys, case.xs()).map_err(|e| format!("second order: {e:#}"))?;
    compare(case, &second, "second order")
}

fn compare(case: &Case, output: &Output, order: &str) -> Result<(), Failed> {
    let Model { proto, folder } = &output.model;
    let options = Options {
        dims: SIZES.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect(),
        inputs: case.inputs(),
        directions: 2,
        ..Options::default()
    };
    let validation = validate(proto, folder.as_deref(), &output.record, &options);
    let reason = validation.reason.unwrap_or_default();
    let absent = case.operators().iter().any(|(_, op)| NOT_IN_TRACT.contains(&op.as_str()));
    match validation.status {
        Status::Skipped if absent => Ok(()),
        Status::Passed if absent => Err("tract runs this operator now: take it off the list".into()),
        Status::Passed => match validation.gradients.iter().find(|g| g.gradient.is_some() && !g.compared) {
            Some(g) => Err(format!("{order}: '{}' was not compared: {:?}", g.x, g.note).into()),
            None => Ok(()),
        },
        status => Err(format!("{order}: {status:?}: {reason}").into()),
    }
}
