//! Runs a model once.

use super::case::Case;
use super::choice::Choice;
use super::engine::Precision;
use super::tensors::{Tensors, tensor};
use super::{Options, forward};
use crate::error::Error;
use crate::onnx::{ModelProto, TensorProto};
use crate::record::Record;
use anyhow::{Result, anyhow};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The outputs of a model for the given inputs, computed by the default engine. External data have to be loaded
/// already.
///
/// # Errors
/// Inputs that are missing or do not fit, and whatever the engine cannot run.
pub fn run(model: &ModelProto, inputs: &BTreeMap<String, TensorProto>) -> Result<BTreeMap<String, TensorProto>, Error> {
    Ok(outputs(model, inputs)?)
}

fn outputs(model: &ModelProto, inputs: &BTreeMap<String, TensorProto>) -> Result<BTreeMap<String, TensorProto>> {
    let feeds = inputs.iter().map(|(name, value)| Ok((name.clone(), Arc::new(tensor(value)?))));
    let feeds: Tensors = feeds.collect::<Result<_>>()?;
    let plan = Choice::default().open().and_then(|engine| engine.prepare(model, &feeds, Precision::Own));
    let outputs = plan.and_then(|plan| plan.run(&feeds)).map_err(|e| anyhow!("{e}"))?;
    Ok(outputs.into_iter().map(|(name, value)| (name, value.to_proto())).collect())
}

/// Inputs that a model runs with, as a check makes them up: given ones, and random ones of the declared shapes.
///
/// # Errors
/// It runs with none of those that are tried.
pub fn random_inputs(model: &ModelProto, options: &Options) -> Result<BTreeMap<String, TensorProto>, Error> {
    Ok(made_up_inputs(model, options)?)
}

fn made_up_inputs(model: &ModelProto, options: &Options) -> Result<BTreeMap<String, TensorProto>> {
    let engine = options.engine.open().map_err(|e| anyhow!("{e}"))?;
    let record = Record::default();
    let case = Case::new(model, None, &record, options, &*engine)?;
    let (point, ()) =
        forward::find(&case, |_| Ok(())).map_err(|stop| anyhow!("{}", stop.1).context("the model does not run"))?;
    Ok(point.feeds.into_iter().map(|(name, value)| (name, value.to_proto())).collect())
}
