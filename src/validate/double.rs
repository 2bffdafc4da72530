//! The run in float64, which gives the gradients that are compared, and where everything is unperturbed.

use super::engine::Precision;
use super::engine::Trouble;
use super::tensors::{self, Tensor, Tensors};
use super::{Check, Own, Stop, edit, failed, float64, listed, not_compared, root_mean_square, unique};
use crate::onnx::{ElementType, ModelProto};
use crate::record::Record;
use std::collections::HashSet;
use std::sync::Arc;

/// Floating-point inputs in float64.
pub fn doubled(feeds: &Tensors) -> Result<Tensors, Trouble> {
    let double = |t: &Arc<Tensor>| match t.is_float() {
        true => anyhow::Ok(Arc::new(t.cast(ElementType::Double)?)),
        false => Ok(t.clone()),
    };
    feeds.iter().map(|(name, t)| Ok((name.clone(), double(t)?))).collect()
}

/// Constants that may be shapes, scales or axes stay constants.
const SMALL: usize = 64;

/// Makes large floating-point initializers inputs, and those that are xs: they can be perturbed then, and need not go
/// through protobuf once more.
pub fn feed_weights(model: &mut ModelProto, xs: &HashSet<String>, feeds: &mut Tensors) -> Result<(), Trouble> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let mut kept = Vec::new();
    for tensor in std::mem::take(&mut graph.initializer) {
        let large = tensor.element_count().is_some_and(|n| n > SMALL);
        if tensor.element_type() == ElementType::Double && (large || xs.contains(tensor.name())) {
            let name = tensor.name().to_owned();
            // What is fed already is a default that was overridden.
            if !feeds.contains_key(&name) {
                feeds.insert(name.clone(), Arc::new(tensors::tensor(&tensor)?));
            }
            graph.input.retain(|i| i.name() != name);
            graph.input.push(edit::double_input(&name));
        } else {
            kept.push(tensor);
        }
    }
    graph.initializer = kept;
    Ok(())
}

/// The whole model in float64, with the values of all that matters.
pub struct Double {
    /// The model, its weights being inputs.
    pub model: ModelProto,
    /// The inputs.
    pub feeds: Tensors,
    /// The gradients, the xs that are computed, the ys and their seeds.
    pub values: Tensors,
    /// What is held constant: the stops.
    pub cut: HashSet<String>,
}

impl Double {
    /// Runs the model once.
    pub fn run(check: &Check, own: &Own) -> Result<Double, Stop> {
        let mut model = check.model.clone();
        let record = check.record;
        let mut cut: HashSet<String> = record.stops.iter().cloned().collect();
        for node in model.graph.iter().flat_map(|g| &g.node) {
            let stops = node.metadata_props.iter().any(|p| p.key() == "stop_gradient" && p.value() == "true");
            if stops {
                cut.extend(node.output.iter().filter(|o| !o.is_empty()).cloned());
            }
        }
        let known = edit::computed(&model);
        cut.retain(|name| known.contains(name.as_str()));
        let xs: HashSet<String> = record.gradients.iter().map(|g| g.x.clone()).collect();
        let seeds = record.seeds.iter().flat_map(|s| [Some(s.y.clone()), s.seed.clone()]).flatten();
        let names =
            unique(check.gradients().into_iter().chain(seeds).chain(cut.iter().cloned()).chain(xs.iter().cloned()));
        edit::prune(&mut model, &names);
        float64::to_double(&mut model)?;
        let mut feeds = doubled(&own.feeds)?;
        feed_weights(&mut model, &xs, &mut feeds)?;
        let values = check
            .engine
            .prepare(&model, &feeds, Precision::Double)
            .and_then(|plan| plan.run(&feeds))
            .map_err(|t| not_compared(&t))?;
        // Integers are not cut: they are not differentiated, and the plan wants them as they were.
        cut.retain(|name| values.get(name).is_some_and(|t| t.is_float()));
        Ok(Double { model, feeds, values, cut })
    }

    /// The value of an input or of a tensor that was computed.
    pub fn value_of(&self, name: &str) -> Option<&Arc<Tensor>> {
        self.values.get(name).or_else(|| self.feeds.get(name))
    }

    /// For each y of floating-point numbers its name and its seed.
    pub fn seeds(&self, record: &Record) -> Result<Vec<(String, Vec<f64>)>, Stop> {
        let mut seeds = Vec::new();
        for seed in &record.seeds {
            let Some(y) = self.value_of(&seed.y) else {
                return Err(failed(format!("nothing computes y '{}'", seed.y)));
            };
            if !y.is_float() {
                continue;
            }
            let values = match &seed.seed {
                Some(name) => {
                    let tensor =
                        self.value_of(name).ok_or_else(|| failed(format!("nothing computes seed '{name}'")))?;
                    if tensor.dims() != y.dims() {
                        return Err(failed(format!(
                            "seed '{name}' has shape {:?}, its y '{}' {:?}",
                            tensor.dims(),
                            seed.y,
                            y.dims()
                        )));
                    }
                    tensor.values()
                }
                None => vec![seed.fill.unwrap_or(1.0); y.count()],
            };
            seeds.push((seed.y.clone(), values));
        }
        Ok(seeds)
    }
}

impl Check<'_> {
    /// Shapes, finiteness, and that both precisions say the same.
    pub(super) fn check_gradients(&mut self, own: &Own, double: &Double) -> Result<(), Stop> {
        let mut problems = Vec::new();
        let rms = |t: &Tensor| root_mean_square(&t.values());
        let wide = |name: &str| double.values.get(name);
        let largest = self.gradients().iter().filter_map(|g| wide(g)).map(|t| rms(t)).fold(0.0, f64::max);
        for check in &mut self.validation.gradients {
            let Some(name) = check.gradient.as_deref() else {
                (check.finite, check.shape) = (true, true);
                continue;
            };
            let Some(gradient) = wide(name) else { continue };
            let narrow = own.tensors.as_ref().and_then(|t| t.get(name));
            check.finite = gradient.is_finite() && narrow.is_none_or(|t| t.is_finite());
            let shape = double.value_of(&check.x).map(|x| x.dims().to_vec());
            check.shape = shape.as_deref() == Some(gradient.dims());
            if !check.shape {
                problems.push(format!(
                    "gradient '{name}' has shape {:?}, its x '{}' {:?}",
                    gradient.dims(),
                    check.x,
                    shape.unwrap_or_default()
                ));
            } else if !check.finite {
                problems.push(format!("gradient '{name}' with respect to '{}' is not finite", check.x));
            } else if let Some(narrow) = narrow.filter(|t| t.dims() == gradient.dims()) {
                let tolerance = if narrow.element().bits().is_some_and(|b| b < 32) { 0.2 } else { 0.02 };
                let (a, b) = (narrow.values(), gradient.values());
                let error = root_mean_square(&a.iter().zip(&b).map(|(a, b)| a - b).collect::<Vec<_>>());
                if error > tolerance * (root_mean_square(&b) + 0.05 * largest) + 1e-6 {
                    problems.push(format!(
                        "gradient '{name}' with respect to '{}' is another one in the model's own precision than in float64",
                        check.x
                    ));
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(failed(listed(&problems))) }
    }
}
