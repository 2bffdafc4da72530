//! Runs a model with gradients in tract, and compares its gradients with finite differences.
//!
//! A gradient that passes was computed twice, in float64, by ways that share nothing but the forward nodes. What tract
//! cannot run is reported as that: neither as a right gradient nor as a wrong one.

#[cfg(not(any(feature = "tract", feature = "onnxruntime")))]
compile_error!("validation runs in an engine: the features `tract` and `onnxruntime` have one each");

mod comparison;
mod differences;
mod double;
mod edit;
pub mod engine;
mod float64;
mod inputs;
#[cfg(feature = "tract")]
mod kernels;
#[cfg(feature = "onnxruntime")]
mod onnxruntime;
mod own;
mod report;
mod run;
pub mod tensors;
#[cfg(feature = "tract")]
mod tract;

pub use engine::Choice as Engine;
pub use report::{GradientCheck, OutputCheck, Status, Validation};
pub use run::{random_inputs, run};

use crate::onnx::file::load_external;
use crate::onnx::inline::inline_functions;
use crate::onnx::{ModelProto, TensorProto};
use crate::record::Record;
use differences::Rounding;
use double::Double;
use engine::Trouble;
use own::Own;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

/// How to validate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Random inputs and directions follow from it: equal seeds, equal numbers.
    pub seed: u64,
    /// Sizes of symbolic dimensions.
    pub dims: BTreeMap<String, i64>,
    /// Values of graph inputs; those that are not given are random.
    pub inputs: BTreeMap<String, TensorProto>,
    /// Along how many directions each gradient is compared.
    pub directions: usize,
    /// How long to go on comparing. What is not compared by then is said in the notes.
    pub budget: Duration,
    /// What runs the model.
    pub engine: Engine,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 0,
            dims: BTreeMap::new(),
            inputs: BTreeMap::new(),
            directions: 1,
            budget: Duration::from_secs(20),
            engine: Engine::default(),
        }
    }
}

/// Runs the model and checks the gradients that `record` names. `base` is the folder of the model's external data.
///
/// What is wrong with the model, or with the engine, is in the result.
pub fn validate(model: &ModelProto, base: Option<&Path>, record: &Record, options: &Options) -> Validation {
    let mut validation = Validation {
        status: Status::Skipped,
        reason: None,
        engine: options.engine.name().to_owned(),
        dims: BTreeMap::new(),
        outputs: Vec::new(),
        gradients: (record.gradients.iter())
            .map(|g| GradientCheck {
                x: g.x.clone(),
                gradient: g.name.clone(),
                bound: Rounding::Double.bound(),
                ..Default::default()
            })
            .collect(),
    };
    let check = |model: ModelProto| {
        let engine = options.engine.open()?;
        Check { model: &model, record, options, engine: &*engine, validation: &mut validation }.run()
    };
    let (status, reason) = match prepare(model, base).map_err(Stop::from).and_then(check) {
        Ok(()) => (Status::Passed, None),
        Err(Stop(status, reason)) => (status, Some(reason)),
    };
    validation.status = status;
    validation.reason = reason;
    validation
}

/// Why a validation ends before it has passed.
struct Stop(Status, String);

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Panicked(_) => Stop(Status::Failed, trouble.to_string()),
            _ => skipped(trouble),
        }
    }
}

impl From<anyhow::Error> for Stop {
    fn from(e: anyhow::Error) -> Self {
        skipped(format!("{e:#}"))
    }
}

fn skipped(reason: impl ToString) -> Stop {
    Stop(Status::Skipped, reason.to_string())
}

fn failed(reason: impl ToString) -> Stop {
    Stop(Status::Failed, reason.to_string())
}

/// The model with its tensors in memory and its functions written out.
fn prepare(model: &ModelProto, base: Option<&Path>) -> anyhow::Result<ModelProto> {
    let mut model = inline_functions(model, &|_| true)?;
    model.functions.clear();
    if let Some(base) = base {
        load_external(&mut model, base)?;
    }
    Ok(model)
}

struct Check<'a> {
    model: &'a ModelProto,
    record: &'a Record,
    options: &'a Options,
    engine: &'a dyn engine::Engine,
    validation: &'a mut Validation,
}

impl Check<'_> {
    fn run(mut self) -> Result<(), Stop> {
        let own = self.run_own()?;
        let double = Double::run(&self, &own)?;
        self.check_gradients(&own, &double)?;
        double.compare(&mut self)
    }

    /// The names of the gradients that there are.
    fn gradients(&self) -> Vec<String> {
        unique(self.record.gradients.iter().filter_map(|g| g.name.clone()))
    }

    /// What the model computes besides the gradients.
    fn forward(&self) -> Vec<String> {
        let gradients: HashSet<&str> = self.record.gradients.iter().filter_map(|g| g.name.as_deref()).collect();
        let outputs = self.model.graph.iter().flat_map(|g| &g.output).map(|o| o.name());
        let ys = self.record.seeds.iter().map(|s| s.y.as_str());
        unique(outputs.chain(ys).filter(|o| !gradients.contains(o)).map(str::to_owned))
    }
}

/// Why the model does not run where it is compared with differences.
fn not_compared(trouble: &Trouble) -> Stop {
    match trouble {
        Trouble::Panicked(_) | Trouble::Unsupported(_) => Stop::from(trouble.clone()),
        other => skipped(format!("not compared with differences, the model does not run in float64: {other}")),
    }
}

fn unique(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    names.into_iter().filter(|n| seen.insert(n.clone())).collect()
}

/// The first few, and how many more.
fn listed(problems: &[String]) -> String {
    let shown = problems.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    if problems.len() > 3 { format!("{shown}; and {} more", problems.len() - 3) } else { shown }
}

fn root_mean_square(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64).sqrt()
}
