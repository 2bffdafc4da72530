//! Runs a model with gradients in tract, and compares its gradients with finite differences.
//!
//! A gradient that passes was computed twice, in float64, by ways that share nothing but the forward nodes. What tract
//! cannot run is reported as that: neither as a right gradient nor as a wrong one.

#[cfg(not(any(feature = "tract", feature = "onnxruntime")))]
compile_error!("validation runs in an engine: the features `tract` and `onnxruntime` have one each");

mod case;
mod choice;
mod draw;
mod edit;
pub(crate) mod engine;
mod forward;
mod integers;
#[cfg(feature = "tract")]
mod kernels;
#[cfg(feature = "onnxruntime")]
mod onnxruntime;
mod report;
mod run;
mod sizes;
mod slopes;
pub(crate) mod tensors;
mod thresholds;
#[cfg(feature = "tract")]
mod tract;
mod verdict;
mod wide;
mod widen;

pub use choice::Choice as Engine;
pub use report::{GradientCheck, OutputCheck, Status, Validation};
pub use run::{random_inputs, run};

use crate::onnx::{ModelProto, TensorProto};
use crate::record::Record;
use case::Case;
use engine::Trouble;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// How to validate.
///
/// ```
/// use onnx_gradients::validate::{Options, Status, validate};
/// use onnx_gradients::{Gradients, Model, Wanted};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), onnx_gradients::Error> {
/// let model = Model::load("models/digits-mlp.onnx")?;
/// let output = Gradients::new([Wanted::Outputs], [Wanted::Parameters]).build(&model)?;
/// let options = Options::default().seed(7).directions(2).budget(Duration::from_secs(5));
/// let validation = validate(&output.model.proto, None, &output.record, &options);
/// assert_eq!(validation.status, Status::Passed, "{:?}", validation.reason);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Random inputs and directions follow from it: equal seeds, equal numbers.
    pub seed: u64,
    /// Sizes of symbolic dimensions.
    pub dims: BTreeMap<String, i64>,
    /// Values of graph inputs; those that are not given are random.
    pub inputs: BTreeMap<String, TensorProto>,
    /// Ranges that random values of graph inputs are drawn from, both ends included.
    pub ranges: BTreeMap<String, (f64, f64)>,
    /// Along how many directions each gradient is compared.
    pub directions: usize,
    /// At how many other inputs than the first gradients are compared, at most.
    pub others: usize,
    /// Whether single elements are looked at, too, as long as there is time.
    pub closely: bool,
    /// How long to go on comparing. What is not compared by then is said in the notes.
    pub budget: Duration,
    /// What runs the model.
    pub engine: Engine,
    /// Whether a validation with other seeds follows where these make gradients zero: it needs most of the time then.
    pub(crate) reseeded: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 0,
            dims: BTreeMap::new(),
            inputs: BTreeMap::new(),
            ranges: BTreeMap::new(),
            directions: 1,
            others: 24,
            closely: true,
            budget: Duration::from_secs(20),
            engine: Engine::default(),
            reseeded: false,
        }
    }
}

setters!(Options {
    seed: u64,
    dims: BTreeMap<String, i64>,
    inputs: BTreeMap<String, TensorProto>,
    ranges: BTreeMap<String, (f64, f64)>,
    directions: usize,
    others: usize,
    closely: bool,
    budget: Duration,
    engine: Engine,
});

/// Runs the model and checks the gradients that `record` names. `base` is the folder of the model's external data.
///
/// What is wrong with the model, or with the engine, is in the result.
pub fn validate(model: &ModelProto, base: Option<&Path>, record: &Record, options: &Options) -> Validation {
    validate_and_tell(model, base, record, options, &|_, _, _| ())
}

/// Hears of the gradient of this number what has been found of it, and what speaks against it where it is wrong.
pub(crate) type Tell<'a> = &'a dyn Fn(usize, &GradientCheck, Option<&str>);

/// Validates, and tells what has been found of a gradient as soon as it is known: an engine may end the process.
pub(crate) fn validate_and_tell(
    model: &ModelProto,
    base: Option<&Path>,
    record: &Record,
    options: &Options,
    tell: Tell,
) -> Validation {
    // Gradients that are asked for twice are compared once, and told of twice.
    let (distinct, places) = record.distinct();
    let mut same = vec![vec![]; distinct.gradients.len()];
    places.iter().enumerate().for_each(|(i, &place)| same[place].push(i));
    let tell_all = |i: usize, check: &GradientCheck, wrong: Option<&str>| {
        same.get(i).into_iter().flatten().for_each(|&i| tell(i, check, wrong));
    };
    let mut validation = Validation::skipped(&distinct, &options.engine, "nothing has run");
    let mut check = || {
        let engine = options.engine.open()?;
        let case = Case::new(model, base, &distinct, options, &*engine)?;
        verdict::run(&case, &mut validation, &tell_all)
    };
    let (status, reason) = match check() {
        Ok(()) => (Status::Passed, None),
        Err(Stop(status, reason)) => (status, Some(reason)),
    };
    validation.status = status;
    validation.reason = reason;
    validation.gradients = places.iter().filter_map(|&place| validation.gradients.get(place).cloned()).collect();
    validation
}

/// Why a validation ends before it has passed.
#[derive(Debug)]
struct Stop(Status, String);

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        skipped(trouble)
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

/// The first few, and how many more.
fn listed(problems: &[String]) -> String {
    let shown = problems.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    if problems.len() > 3 { format!("{shown}; and {} more", problems.len() - 3) } else { shown }
}
