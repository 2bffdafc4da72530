//! Puts trained weights back into the model that they come from: the same file, with new numbers.

use super::lora::Adapter;
use super::manifest::{Manifest, Parameter};
use super::modes::Constants;
use super::parameters::SCOPE;
use super::state::State;
use crate::error::Error;
use crate::expr::rewrite::Rewrite;
use crate::onnx::bodies::take_out_constants;
use crate::onnx::{CONSTANT, ElementType, GraphProto, ModelProto, NodeProto, TensorProto, attribute};
use crate::rules::OPERATORS;
use crate::weights::{Quantized, Source};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{HashMap, HashSet};

/// How LoRA matrices are exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
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
) -> Result<(ModelProto, Vec<String>), Error> {
    let mut taken_out = None;
    if !holds(inference, manifest) {
        take_out_constants(taken_out.insert(inference.clone()));
    }
    Ok(exported(manifest, taken_out.as_ref().unwrap_or(inference), state, adapters)?)
}

/// Whether the graph of a model, outside of bodies of control flow, has all weights that were trained.
fn holds(inference: &ModelProto, manifest: &Manifest) -> bool {
    let graph = inference.graph.iter();
    let nodes = graph.clone().flat_map(|g| &g.node).flat_map(|n| &n.output).map(String::as_str);
    let known: HashSet<&str> = nodes.chain(graph.flat_map(|g| &g.initializer).map(|t| t.name())).collect();
    manifest.parameters.iter().all(|p| match &p.source {
        Source::Lora { of } => known.contains(of.as_str()),
        _ => known.contains(p.name.as_str()),
    })
}

fn exported(
    manifest: &Manifest,
    inference: &ModelProto,
    state: &State,
    adapters: Adapters,
) -> Result<(ModelProto, Vec<String>)> {
    let held = Held {
        state: state.iter().map(|(n, t)| (n.as_str(), t)).collect(),
        shapes: manifest.state.iter().map(|f| (f.input.as_str(), f.shape.as_slice())).collect(),
        known: inference.graph.iter().flat_map(GraphProto::constants).collect(),
    };
    let (mut notes, mut model, mut new) = (Vec::new(), inference.clone(), HashMap::new());
    held.weights(manifest, inference, &mut new, &mut notes)?;
    for feed in manifest.state.iter().filter(|f| f.role == "statistic") {
        let element = held.known.get(feed.input.as_str()).map(|t| t.element_type()).filter(|e| e.is_float());
        let element = element.with_context(|| format!("the model has no statistic '{}'", feed.input))?;
        let values = held.values(&feed.input)?;
        new.insert(feed.input.clone(), TensorProto::from_floats(element, &feed.shape, &values)?);
    }
    let parameters: HashMap<&str, &Parameter> = manifest.parameters.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut rewrite = Rewrite::new(SCOPE);
    for adapter in &manifest.lora {
        let (left, right) = (held.values(&adapter.left)?, held.values(&adapter.right)?);
        let merged = held.known.get(adapter.weight.as_str());
        if let Some(weight) = merged.filter(|_| adapters == Adapters::Merged && adapter.beside.is_none()) {
            let merged = adapter.merged(&weight.floats()?, &left, &right)?;
            let merged = TensorProto::from_floats(weight.element_type(), &weight.dims, &merged)?;
            new.insert(adapter.weight.clone(), merged);
            continue;
        }
        if adapters == Adapters::Merged {
            let why = if adapter.beside.is_some() { "holds integers" } else { "is computed by a node" };
            notes.push(format!("'{}' {why}; its LoRA matrices stay apart", adapter.weight));
        }
        let parameter = parameters.get(adapter.left.as_str());
        let parameter = parameter.with_context(|| format!("the manifest has no '{}'", adapter.left))?;
        add(&mut model, adapter, float(parameter)?, &left, &right)?;
        rewrite = rewrite.in_place_of(adapter.place(), |here, w| adapter.sum(here, w));
    }
    rewrite.apply(&mut model, OPERATORS)?;
    replace(&mut model, new)?;
    Ok((model, notes))
}

/// The tensors of a state, the shapes that they are to have, and the constants of the model that they go into.
struct Held<'a> {
    state: HashMap<&'a str, &'a TensorProto>,
    shapes: HashMap<&'a str, &'a [i64]>,
    known: Constants<'a>,
}

impl<'a> Held<'a> {
    fn shape(&self, name: &str) -> Result<&'a [i64]> {
        self.shapes.get(name).copied().with_context(|| format!("the manifest has no state '{name}'"))
    }

    /// The numbers of a tensor of the state.
    fn values(&self, name: &str) -> Result<Vec<f64>> {
        let shape = self.shape(name)?;
        let tensor = self.state.get(name).with_context(|| format!("the state holds no '{name}'"))?;
        ensure!(tensor.dims == shape, "'{name}' has shape {:?} in the state, {shape:?} in the model", tensor.dims);
        let values = tensor.floats()?;
        if values.iter().any(|v| !v.is_finite()) {
            // What was infinite before, as the distances of a mask, may stay so.
            let before = self.known.get(name).and_then(|t| t.floats().ok()).filter(|b| b.len() == values.len());
            let same = |(now, then): (&f64, &f64)| now.is_finite() || now.to_bits() == then.to_bits();
            let fine = before.is_some_and(|before| values.iter().zip(&before).all(same));
            ensure!(fine, "'{name}' holds values that are no finite numbers");
        }
        Ok(values)
    }

    /// Adds the weights themselves to what is `new`: integers are rounded again, which the notes say.
    fn weights(
        &self,
        manifest: &Manifest,
        inference: &ModelProto,
        new: &mut HashMap<String, TensorProto>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let nodes = inference.graph.iter().flat_map(|g| &g.node);
        let producers: HashMap<&str, &NodeProto> =
            nodes.filter_map(|n| Some((n.output.first()?.as_str(), n))).collect();
        for parameter in &manifest.parameters {
            let name = parameter.name.as_str();
            match &parameter.source {
                Source::Lora { .. } => continue,
                Source::Dequantized => {
                    let values = self.values(name)?;
                    let node = producers.get(name).with_context(|| format!("no node computes '{name}'"))?;
                    let quantized = Quantized::of(node, &self.known).context("its integers are not constant");
                    let both = quantized.and_then(|q| Ok((q.nearest(&values)?, q)));
                    let (tensor, quantized) = both.with_context(|| format!("'{name}' cannot be quantized again"))?;
                    let remark = quantized.remark(&values, &tensor).map(|r| format!(": {r}")).unwrap_or_default();
                    let element = tensor.element_type().name();
                    notes.push(format!("'{name}' has been rounded to its {element} again{remark}"));
                    new.insert(node.input.first().cloned().unwrap_or_default(), tensor);
                }
                _ => {
                    let tensor = TensorProto::from_floats(float(parameter)?, self.shape(name)?, &self.values(name)?)?;
                    new.insert(name.to_owned(), tensor);
                }
            }
        }
        Ok(())
    }
}

/// The element type of a parameter in the model.
fn float(parameter: &Parameter) -> Result<ElementType> {
    let element = ElementType::from_name(&parameter.model_type).filter(|e| e.is_float());
    element.with_context(|| format!("'{}' is of no known type", parameter.name))
}

/// Adds the matrices of an adapter as initializers.
fn add(model: &mut ModelProto, adapter: &Adapter, element: ElementType, left: &[f64], right: &[f64]) -> Result<()> {
    let graph = model.graph.as_mut().context("the model holds no graph")?;
    for (name, values, shape) in [(&adapter.left, left, adapter.shapes[0]), (&adapter.right, right, adapter.shapes[1])]
    {
        let mut tensor = TensorProto::from_floats(element, &shape, values)?;
        tensor.name = Some(name.clone());
        graph.initializer.push(tensor);
    }
    Ok(())
}

/// Gives initializers, and Constant nodes, other values.
fn replace(model: &mut ModelProto, mut new: HashMap<String, TensorProto>) -> Result<()> {
    let graph = model.graph.as_mut().context("the model holds no graph")?;
    for old in &mut graph.initializer {
        if let Some(mut tensor) = new.remove(old.name()) {
            tensor.name = old.name.take();
            tensor.doc_string = old.doc_string.take();
            tensor.metadata_props = std::mem::take(&mut old.metadata_props);
            tensor.external_data = std::mem::take(&mut old.external_data);
            *old = tensor;
        }
    }
    for node in graph.node.iter_mut().filter(|n| n.is(CONSTANT)) {
        let Some(mut tensor) = node.output.first().and_then(|o| new.remove(o)) else { continue };
        // A tensor in an attribute is named as it was, if it was.
        if let Some(old) = attribute::get_tensor(&node.attribute, "value") {
            tensor.name = old.name.clone();
            tensor.doc_string = old.doc_string.clone();
            tensor.metadata_props = old.metadata_props.clone();
            tensor.external_data = old.external_data.clone();
        }
        node.attribute.retain(|a| !a.name().starts_with("value"));
        node.attribute.push(attribute::tensor("value", tensor));
    }
    match new.into_keys().min() {
        Some(name) => bail!("the model holds no weight '{name}'"),
        None => Ok(()),
    }
}
