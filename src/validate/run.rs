//! Runs a model once.

use super::engine::Precision;
use super::tensors::{Tensors, datum_type, tensor};
use super::tract::Plan;
use crate::onnx::{ElementType, ModelProto, TensorProto};
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::sync::Arc;
use tract_onnx::prelude::Tensor;

/// The outputs of a model for the given inputs, computed by tract. External data have to be loaded already.
///
/// # Errors
/// Inputs that are missing or do not fit, and whatever tract cannot run.
pub fn run(model: &ModelProto, inputs: &BTreeMap<String, TensorProto>) -> Result<BTreeMap<String, TensorProto>> {
    let feeds = inputs.iter().map(|(name, value)| Ok((name.clone(), Arc::new(tensor(value)?))));
    let feeds: Tensors = feeds.collect::<Result<_>>()?;
    let plan = Plan::new(model, &feeds, Precision::Own).map_err(|e| anyhow!("{e}"))?;
    let outputs = plan.run(&feeds).map_err(|e| anyhow!("{e}"))?;
    let proto = |(name, value): (String, Arc<Tensor>)| {
        let value = to_proto(&value).with_context(|| format!("output '{name}'"))?;
        Ok((name, value))
    };
    outputs.into_iter().map(proto).collect()
}

fn to_proto(tensor: &Tensor) -> Result<TensorProto> {
    let shape: Vec<i64> = tensor.shape().iter().map(|&d| d as i64).collect();
    let types = [
        ElementType::Float,
        ElementType::Double,
        ElementType::Float16,
        ElementType::Int64,
        ElementType::Int32,
        ElementType::Int16,
        ElementType::Int8,
        ElementType::Uint64,
        ElementType::Uint32,
        ElementType::Uint16,
        ElementType::Uint8,
        ElementType::Bool,
    ];
    match types.into_iter().find(|&e| datum_type(e).is_ok_and(|d| d == tensor.datum_type())) {
        Some(element) => Ok(TensorProto::from_raw(element, &shape, tensor.as_bytes().to_vec())),
        None => bail!("tensors of type {:?} are not handed out", tensor.datum_type()),
    }
}
