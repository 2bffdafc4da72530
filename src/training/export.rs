//! Puts trained weights back into the model that they come from: the same file, with new numbers.

use super::draft::{Draft, constants};
use super::lora::Adapter;
use super::manifest::Manifest;
use super::select::{Source, quantized};
use super::state::State;
use crate::onnx::{ElementType, ModelProto, TensorProto, attribute};
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;

/// How LoRA matrices are exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adapters {
    /// Their product is added to the weights: the model has the nodes that it had.
    #[default]
    Merged,
    /// They stay apart: the weights are as they were, and the model has nodes that add the product.
    Apart,
}

/// The inference model with the weights of `state`, and what users should know.
///
/// # Errors
/// Tensors that are missing from the state, of other shapes, or no numbers.
pub fn export(
    manifest: &Manifest,
    inference: &ModelProto,
    state: &State,
    adapters: Adapters,
) -> Result<(ModelProto, Vec<String>)> {
    let mut notes = Vec::new();
    let state: HashMap<&str, &TensorProto> = state.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let values = |name: &str, shape: &[i64]| -> Result<Vec<f64>> {
        let tensor = state.get(name).with_context(|| format!("the state holds no '{name}'"))?;
        ensure!(tensor.dims == shape, "'{name}' has shape {:?} in the state, {shape:?} in the model", tensor.dims);
        let values = tensor.floats()?;
        ensure!(values.iter().all(|v| v.is_finite()), "'{name}' holds values that are no finite numbers");
        Ok(values)
    };
    let known = constants(inference);
    let mut model = inference.clone();
    for parameter in &manifest.parameters {
        let feed = manifest.state.iter().find(|f| f.input == parameter.name);
        let shape = &feed.with_context(|| format!("the manifest has no state '{}'", parameter.name))?.shape;
        match &parameter.source {
            Source::Lora { .. } => continue,
            Source::Dequantized => {
                let values = values(&parameter.name, shape)?;
                let nodes = inference.graph.iter().flat_map(|g| &g.node);
                let node = nodes.clone().find(|n| n.output.first() == Some(&parameter.name));
                let node = node.with_context(|| format!("no node computes '{}'", parameter.name))?;
                let tensor = quantized(node, &known, &values);
                let tensor = tensor.with_context(|| format!("'{}' cannot be quantized again", parameter.name))?;
                let name = node.input.first().cloned().unwrap_or_default();
                replace(&mut model, &name, tensor)?;
                notes.push(format!(
                    "'{}' has been rounded to its {} again",
                    parameter.name,
                    known.get(&name).map_or_else(String::new, |t| t.element_type().name())
                ));
            }
            _ => {
                let element = ElementType::from_name(&parameter.model_type).filter(|e| e.is_float());
                let element = element.with_context(|| format!("'{}' is of no known type", parameter.name))?;
                let values = values(&parameter.name, shape)?;
                replace(&mut model, &parameter.name, TensorProto::from_floats(element, shape, &values))?;
            }
        }
    }
    for feed in manifest.state.iter().filter(|f| f.role == "statistic") {
        let element = known.get(&feed.input).map(TensorProto::element_type).filter(|e| e.is_float());
        let element = element.with_context(|| format!("the model has no statistic '{}'", feed.input))?;
        let values = values(&feed.input, &feed.shape)?;
        replace(&mut model, &feed.input, TensorProto::from_floats(element, &feed.shape, &values))?;
    }
    for adapter in &manifest.lora {
        let [left, right] = [&adapter.left, &adapter.right].map(|n| (n, manifest.state.iter().find(|f| f.input == *n)));
        let matrix = |(name, feed): (&String, Option<&super::manifest::Feed>)| {
            values(name, &feed.map_or(vec![], |f| f.shape.clone()))
        };
        let (left, right) = (matrix(left)?, matrix(right)?);
        match (adapters, known.get(&adapter.weight)) {
            (Adapters::Merged, Some(weight)) => {
                let merged = adapter.merged(&weight.floats()?, &left, &right)?;
                let merged = TensorProto::from_floats(weight.element_type(), &weight.dims, &merged);
                replace(&mut model, &adapter.weight, merged)?;
            }
            (Adapters::Merged, None) => {
                notes.push(format!("'{}' is computed by a node; its LoRA matrices stay apart", adapter.weight));
                model = apart(model, adapter, manifest, &left, &right)?;
            }
            (Adapters::Apart, _) => model = apart(model, adapter, manifest, &left, &right)?,
        }
    }
    Ok((model, notes))
}

/// The model with the matrices as initializers, and nodes that add their product to the weight.
fn apart(model: ModelProto, adapter: &Adapter, manifest: &Manifest, left: &[f64], right: &[f64]) -> Result<ModelProto> {
    let parameter = manifest.parameters.iter().find(|p| p.name == adapter.left);
    let element = parameter.and_then(|p| ElementType::from_name(&p.model_type)).filter(|e| e.is_float());
    let element = element.with_context(|| format!("'{}' is of no known type", adapter.left))?;
    let mut draft = Draft::new(model);
    for (name, values, shape) in [(&adapter.left, left, adapter.shapes[0]), (&adapter.right, right, adapter.shapes[1])]
    {
        let mut tensor = TensorProto::from_floats(element, &shape, values);
        tensor.name = Some(name.clone());
        draft.graph()?.initializer.push(tensor);
    }
    adapter.attach(&mut draft, &adapter.left, &adapter.right, element)?;
    draft.finish()
}

/// Gives an initializer, or a Constant node, another value.
fn replace(model: &mut ModelProto, name: &str, mut tensor: TensorProto) -> Result<()> {
    let graph = model.graph.as_mut().context("the model holds no graph")?;
    if let Some(old) = graph.initializer.iter_mut().find(|t| t.name() == name) {
        tensor.name = old.name.clone();
        tensor.doc_string = old.doc_string.clone();
        *old = tensor;
        return Ok(());
    }
    let node = graph.node.iter_mut().find(|n| n.op_type() == "Constant" && n.output.iter().any(|o| o == name));
    let node = node.with_context(|| format!("the model holds no weight '{name}'"))?;
    node.attribute.retain(|a| !a.name().starts_with("value"));
    node.attribute.push(attribute::tensor("value", tensor));
    Ok(())
}
