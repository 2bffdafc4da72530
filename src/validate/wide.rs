//! The second phase: the run in float64, which gives the gradients that are compared, and where everything is
//! unperturbed.

use super::case::{Case, unique};
use super::engine::{Precision, Run, Trouble};
use super::forward::{self, Point};
use super::slopes::{self, Target};
use super::tensors::{self, Tensor, Tensors};
use super::{Stop, edit, skipped, widen};
use crate::onnx::ModelProto;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The whole model in float64, with the values of all that matters.
pub struct Wide {
    /// The model, its weights being inputs.
    model: ModelProto,
    /// The inputs.
    feeds: Tensors,
    /// The gradients, the xs that are computed, the ys and their seeds.
    values: Tensors,
    /// What is held constant: the stops.
    cut: HashSet<String>,
    /// What is held constant for those nodes that take it for a constant by their rows.
    held_by_rows: HashSet<String>,
}

/// The ys as a function of every x, each by itself.
pub struct Opened {
    /// Computes the ys.
    pub plan: Box<dyn Run>,
    /// Every input, unperturbed.
    pub feeds: Tensors,
    /// For each y its name and seed.
    pub seeds: Vec<(String, Vec<f64>)>,
    /// By x what is perturbed; those are missing that no y depends on.
    pub targets: HashMap<String, Target>,
    /// The model that computes the ys.
    pub model: ModelProto,
}

/// Runs the model once, in float64.
///
/// # Errors
/// The model does not run, or computes something else than in its own precision.
pub fn run(case: &Case, point: &Point) -> Result<Wide, Stop> {
    let mut model = case.model.clone();
    let record = case.record;
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
    let names = unique(case.gradients().into_iter().chain(seeds).chain(cut.iter().cloned()).chain(xs.iter().cloned()));
    edit::prune(&mut model, &names);
    let mut held_by_rows = edit::constants_by_rows(&model);
    edit::prune(&mut model, &unique(names.into_iter().chain(held_by_rows.iter().cloned())));
    widen::to_double(&mut model)?;
    let mut feeds = widen::doubled(&point.feeds)?;
    widen::feed_weights(&mut model, &xs, &mut feeds)?;
    let values = case.prepare(&model, &feeds, Precision::Double).and_then(|plan| plan.run(&feeds));
    let values = values.map_err(|t| not_compared(&t))?;
    for (name, own) in &point.outputs {
        if let (Some(wide), true) = (values.get(name), point.typed && own.is_float())
            && (own.dims() != wide.dims() || forward::is_apart(own, wide))
        {
            return Err(skipped(format!(
                "'{name}' is another one in the model's own precision than in float64 for random inputs: rounding decides; \
                 give --input or --range"
            )));
        }
    }
    // Integers are not cut: they are not differentiated, and the plan wants them as they were.
    cut.retain(|name| values.get(name).is_some_and(|t| t.is_float()));
    held_by_rows.retain(|name| values.get(name).is_some_and(|t| t.is_float()));
    Ok(Wide { model, feeds, values, cut, held_by_rows })
}

impl Wide {
    /// The value of an input or of a tensor that was computed.
    pub fn value_of(&self, name: &str) -> Option<&Arc<Tensor>> {
        self.values.get(name).or_else(|| self.feeds.get(name))
    }

    /// For each y of floating-point numbers its name and its seed.
    fn seeds(&self, case: &Case) -> Result<Vec<(String, Vec<f64>)>, Stop> {
        let mut seeds = Vec::new();
        for seed in &case.record.seeds {
            let Some(y) = self.value_of(&seed.y) else {
                return Err(skipped(format!("nothing computes y '{}'", seed.y)));
            };
            if !y.is_float() {
                continue;
            }
            let values = match &seed.seed {
                Some(name) => {
                    let tensor =
                        self.value_of(name).ok_or_else(|| skipped(format!("nothing computes seed '{name}'")))?;
                    if tensor.dims() != y.dims() {
                        let (given, wanted) = (tensor.dims(), y.dims());
                        return Err(skipped(format!(
                            "seed '{name}' has shape {given:?}, its y '{}' {wanted:?}",
                            seed.y
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

    /// Makes every x an input of its own.
    ///
    /// # Errors
    /// What computes the ys does not run by itself; seeds that do not fit.
    pub fn open(&self, case: &Case) -> Result<Opened, Stop> {
        let seeds = self.seeds(case)?;
        let mut model = self.model.clone();
        let xs: HashSet<String> = (case.record.gradients.iter())
            .filter(|g| self.value_of(&g.x).is_some_and(|t| t.is_float()))
            .map(|g| g.x.clone())
            .collect();
        let held = edit::hold(&mut model, &self.held_by_rows);
        edit::open(&mut model, &xs, &self.cut);
        edit::prune(&mut model, &unique(seeds.iter().map(|(y, _)| y.clone())));
        let inputs: HashSet<String> = model.graph.iter().flat_map(|g| &g.input).map(|i| i.name().to_owned()).collect();
        let mut feeds = self.feeds.clone();
        let mut targets = HashMap::new();
        for x in &xs {
            let Some(value) = self.value_of(x) else { continue };
            let values = value.values();
            let reach = slopes::reach(&values);
            let (input, base) = match inputs.contains(&edit::delta(x)) {
                true => (edit::delta(x), vec![0.0; values.len()]),
                false => (x.clone(), values),
            };
            let dims = value.dims().to_vec();
            feeds.insert(input.clone(), Arc::new(tensors::double(&dims, &base)?));
            if inputs.contains(&input) {
                let target = Target { input, base: Arc::new(base), dims, gradient: Arc::default(), reach };
                targets.insert(x.clone(), target);
            }
        }
        let cut = self.cut.iter().map(|name| (name.clone(), name.clone()));
        for (input, name) in cut.chain(held) {
            if let Some(value) = self.values.get(&name) {
                feeds.insert(input, value.clone());
            }
        }
        let plan = case.prepare(&model, &feeds, Precision::Double).map_err(|t| not_compared(&t))?;
        Ok(Opened { plan, feeds, seeds, targets, model })
    }
}

impl Opened {
    /// Whether all that is computed on the way to the ys is finite, as far as the engine tells it of the main graph.
    pub fn is_defined(&self, case: &Case) -> bool {
        let mut model = self.model.clone();
        let mut computed: Vec<String> = edit::computed(&model).into_iter().map(str::to_owned).collect();
        computed.sort();
        edit::prune(&mut model, &computed);
        let values = case.prepare(&model, &self.feeds, Precision::Double).and_then(|plan| plan.run(&self.feeds));
        values.is_ok_and(|values| values.values().all(|tensor| tensor.is_finite()))
    }
}

/// Why the model does not run where it is compared with differences.
pub fn not_compared(trouble: &Trouble) -> Stop {
    match trouble {
        Trouble::Unsupported(_) => Stop::from(trouble.clone()),
        other => skipped(format!("not compared with differences, the model does not run in float64: {other}")),
    }
}
