//! Runs a model with gradients in tract, and compares its gradients with finite differences.
//!
//! A gradient that passes was computed twice, in float64, by ways that share nothing but the forward nodes. What tract
//! cannot run is reported as that: neither as a right gradient nor as a wrong one.

mod differences;
mod float64;
mod inputs;
mod kernels;
mod losses;
mod normalize;
mod run;
pub mod tract;

pub use run::run;

use crate::onnx::file::load_external;
use crate::onnx::{ElementType, GraphProto, ModelProto, TensorProto};
use crate::record::Record;
use differences::{BOUND, Function, Outcome, SINGLE_BOUND, Target};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tract::{Plan, Precision, Tensor, Tensors, Trouble};

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
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 0,
            dims: BTreeMap::new(),
            inputs: BTreeMap::new(),
            directions: 1,
            budget: Duration::from_secs(20),
        }
    }
}

/// The outcome of a validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The model ran, and nothing that was compared is wrong.
    Passed,
    /// The model ran and something is wrong, or the engine crashed on it.
    Failed,
    /// The engine cannot run the model: nothing is known.
    Skipped,
}

/// What a validation found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Validation {
    /// The outcome.
    pub status: Status,
    /// Why it failed or was skipped, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What ran the model.
    pub engine: String,
    /// The sizes that symbolic dimensions had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dims: BTreeMap<String, i64>,
    /// The forward outputs, compared with those of the model without gradients.
    pub outputs: Vec<OutputCheck>,
    /// The gradients, in the order of the record.
    pub gradients: Vec<GradientCheck>,
}

/// A forward output of the model with gradients beside that of the model without.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputCheck {
    /// The output.
    pub name: String,
    /// The largest difference of two elements; `None` where they were not computed, or have other shapes.
    pub max_difference: Option<f64>,
}

/// What was found about one gradient.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GradientCheck {
    /// The tensor with respect to which is differentiated.
    pub x: String,
    /// The tensor that holds the gradient; `None` where no y depends on x.
    pub gradient: Option<String>,
    /// Whether every element is a finite number.
    pub finite: bool,
    /// Whether the gradient has x's shape.
    pub shape: bool,
    /// The largest relative error along the directions.
    pub error: Option<f64>,
    /// The largest that is taken for rounding.
    pub bound: f64,
    /// Whether it was compared with differences, alone or together with others.
    pub compared: bool,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Runs the model and checks the gradients that `record` names. `base` is the folder of the model's external data.
///
/// What is wrong with the model, or with the engine, is in the result.
pub fn validate(model: &ModelProto, base: Option<&Path>, record: &Record, options: &Options) -> Validation {
    let mut validation = Validation {
        status: Status::Skipped,
        reason: None,
        engine: "tract".to_owned(),
        dims: BTreeMap::new(),
        outputs: Vec::new(),
        gradients: (record.gradients.iter())
            .map(|g| GradientCheck { x: g.x.clone(), gradient: g.gradient.clone(), bound: BOUND, ..Default::default() })
            .collect(),
    };
    let (status, reason) = match prepare(model, base)
        .map_err(Stop::from)
        .and_then(|model| Check { model: &model, record, options, validation: &mut validation }.run())
    {
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

/// The model with its tensors in memory.
fn prepare(model: &ModelProto, base: Option<&Path>) -> anyhow::Result<ModelProto> {
    let mut model = model.clone();
    if let Some(base) = base {
        load_external(&mut model, base)?;
    }
    Ok(model)
}

struct Check<'a> {
    model: &'a ModelProto,
    record: &'a Record,
    options: &'a Options,
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
        unique(self.record.gradients.iter().filter_map(|g| g.gradient.clone()))
    }

    /// What the model computes besides the gradients.
    fn forward(&self) -> Vec<String> {
        let gradients: HashSet<&str> = self.record.gradients.iter().filter_map(|g| g.gradient.as_deref()).collect();
        let outputs = self.model.graph.iter().flat_map(|g| &g.output).map(|o| o.name());
        let ys = self.record.seeds.iter().map(|s| s.y.as_str());
        unique(outputs.chain(ys).filter(|o| !gradients.contains(o)).map(str::to_owned))
    }

    /// Runs the model in its own element types, without its gradients and with them.
    fn run_own(&mut self) -> Result<Own, Stop> {
        let forward = self.forward();
        let typed = !uses(self.model.graph.as_ref(), ElementType::Bfloat16);
        let mut trouble = None;
        for &attempt in inputs::ATTEMPTS {
            let dims = inputs::bind(self.model, self.options, attempt);
            let feeds = inputs::make(self.model, self.options, &dims, attempt.positive)?;
            let mut bare = self.model.clone();
            normalize::prune(&mut bare, &forward);
            let precision = if typed { Precision::Own } else { Precision::Double };
            let run = match typed {
                true => Plan::new(&bare, &feeds, precision).and_then(|p| p.run(&feeds)),
                false => double_run(bare, &feeds),
            };
            match run {
                Err(unsupported @ Trouble::Unsupported(_)) => return Err(unsupported.into()),
                // The first one is of the sizes that are tried first.
                Err(other) => trouble = trouble.or(Some(Stop::from(other))),
                Ok(outputs) => {
                    let finite = outputs.values().filter(|t| tract::is_float(t)).all(|t| is_finite(t));
                    if !finite && trouble.is_none() {
                        trouble = Some(skipped("the model's outputs are not finite for random inputs; give --input"));
                    }
                    if finite {
                        self.validation.dims = dims;
                        return self.run_with_gradients(feeds, outputs, typed);
                    }
                }
            }
        }
        Err(trouble.unwrap_or_else(|| skipped("the model does not run")))
    }

    fn run_with_gradients(&mut self, feeds: Tensors, bare: Tensors, typed: bool) -> Result<Own, Stop> {
        if !typed {
            return Ok(Own { feeds, tensors: None });
        }
        let mut names: Vec<String> = bare.keys().cloned().collect();
        names.extend(self.gradients());
        let mut full = self.model.clone();
        normalize::prune(&mut full, &names);
        let random = is_random(full.graph.as_ref());
        let tensors = Plan::new(&full, &feeds, Precision::Own).and_then(|p| p.run(&feeds)).map_err(|t| match t {
            Trouble::Unsupported(_) => Stop::from(t),
            other => failed(format!("the model runs, but not with its gradients: {other}")),
        })?;
        for (name, expected) in &bare {
            let difference = tensors.get(name).and_then(|t| difference(expected, t));
            self.validation.outputs.push(OutputCheck { name: name.clone(), max_difference: difference });
            let same = tensors.get(name).is_some_and(|t| tract::identical(expected, t));
            if !same && !random {
                return Err(failed(format!("output '{name}' is another one with the gradients than without")));
            }
        }
        Ok(Own { feeds, tensors: (!random).then_some(tensors) })
    }

    /// Shapes, finiteness, and that both precisions say the same.
    fn check_gradients(&mut self, own: &Own, double: &Double) -> Result<(), Stop> {
        let mut problems = Vec::new();
        let rms = |t: &Tensor| tract::values(t).map(|v| root_mean_square(&v)).unwrap_or(0.0);
        let wide = |name: &str| double.values.get(name);
        let largest = self.gradients().iter().filter_map(|g| wide(g)).map(|t| rms(t)).fold(0.0, f64::max);
        for check in &mut self.validation.gradients {
            let Some(name) = check.gradient.as_deref() else {
                (check.finite, check.shape) = (true, true);
                continue;
            };
            let Some(gradient) = wide(name) else { continue };
            let narrow = own.tensors.as_ref().and_then(|t| t.get(name));
            check.finite = is_finite(gradient) && narrow.is_none_or(|t| is_finite(t));
            let shape = double.value_of(&check.x).map(|x| x.shape().to_vec());
            check.shape = shape.as_deref() == Some(gradient.shape());
            if !check.shape {
                problems.push(format!(
                    "gradient '{name}' has shape {:?}, its x '{}' {:?}",
                    gradient.shape(),
                    check.x,
                    shape.unwrap_or_default()
                ));
            } else if !check.finite {
                problems.push(format!("gradient '{name}' with respect to '{}' is not finite", check.x));
            } else if let Some(narrow) = narrow.filter(|t| t.shape() == gradient.shape()) {
                let tolerance = if narrow.datum_type().size_of() < 4 { 0.2 } else { 0.02 };
                let (a, b) = (tract::values(narrow)?, tract::values(gradient)?);
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

/// A run in the model's own element types.
struct Own {
    feeds: Tensors,
    /// The outputs and gradients; `None` where tract has not the element type, or numbers are drawn anew in each run.
    tensors: Option<Tensors>,
}

fn double_run(mut model: ModelProto, feeds: &Tensors) -> Result<Tensors, Trouble> {
    float64::to_double(&mut model)?;
    let mut feeds = doubled(feeds)?;
    feed_weights(&mut model, &HashSet::new(), &mut feeds)?;
    Plan::new(&model, &feeds, Precision::Double)?.run(&feeds)
}

/// Floating-point inputs in float64.
fn doubled(feeds: &Tensors) -> Result<Tensors, Trouble> {
    let double = |t: &Arc<Tensor>| match tract::is_float(t) {
        true => anyhow::Ok(Arc::new(tract::double(t.shape(), &tract::values(t)?)?)),
        false => Ok(t.clone()),
    };
    feeds.iter().map(|(name, t)| Ok((name.clone(), double(t)?))).collect()
}

/// Constants that may be shapes, scales or axes stay constants.
const SMALL: usize = 64;

/// Makes large floating-point initializers inputs, and those that are xs: they can be perturbed then, and need not go
/// through protobuf once more.
fn feed_weights(model: &mut ModelProto, xs: &HashSet<String>, feeds: &mut Tensors) -> Result<(), Trouble> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let mut kept = Vec::new();
    for tensor in std::mem::take(&mut graph.initializer) {
        let large = tensor.element_count().is_some_and(|n| n > SMALL);
        if tensor.element_type() == ElementType::Double && (large || xs.contains(tensor.name())) {
            let name = tensor.name().to_owned();
            // What is fed already is a default that was overridden.
            if !feeds.contains_key(&name) {
                feeds.insert(name.clone(), Arc::new(tract::tensor(&tensor)?));
            }
            graph.input.retain(|i| i.name() != name);
            graph.input.push(normalize::double_input(&name));
        } else {
            kept.push(tensor);
        }
    }
    graph.initializer = kept;
    Ok(())
}

/// The whole model in float64, with the values of all that matters.
struct Double {
    /// The model, its weights being inputs.
    model: ModelProto,
    feeds: Tensors,
    values: Tensors,
    /// What is held constant: the stops, and what is random.
    cut: HashSet<String>,
}

impl Double {
    fn run(check: &Check, own: &Own) -> Result<Double, Stop> {
        let mut model = check.model.clone();
        let record = check.record;
        let mut cut: HashSet<String> = record.stops.iter().cloned().collect();
        for node in model.graph.iter().flat_map(|g| &g.node) {
            let stops = node.metadata_props.iter().any(|p| p.key() == "stop_gradient" && p.value() == "true");
            if stops || RANDOM.contains(&node.op_type()) {
                cut.extend(node.output.iter().filter(|o| !o.is_empty()).cloned());
            }
        }
        let known = tract::computed(&model);
        cut.retain(|name| known.contains(name.as_str()));
        let xs: HashSet<String> = record.gradients.iter().map(|g| g.x.clone()).collect();
        let seeds = record.seeds.iter().flat_map(|s| [Some(s.y.clone()), s.seed.clone()]).flatten();
        let names =
            unique(check.gradients().into_iter().chain(seeds).chain(cut.iter().cloned()).chain(xs.iter().cloned()));
        normalize::prune(&mut model, &names);
        float64::to_double(&mut model)?;
        let mut feeds = doubled(&own.feeds)?;
        feed_weights(&mut model, &xs, &mut feeds)?;
        let values = Plan::new(&model, &feeds, Precision::Double)
            .and_then(|plan| plan.run(&feeds))
            .map_err(|t| not_compared(&t))?;
        // Integers are not cut: they are not differentiated, and the plan wants them as they were.
        cut.retain(|name| values.get(name).is_some_and(|t| tract::is_float(t)));
        Ok(Double { model, feeds, values, cut })
    }

    fn value_of(&self, name: &str) -> Option<&Arc<Tensor>> {
        self.values.get(name).or_else(|| self.feeds.get(name))
    }

    fn seeds(&self, record: &Record) -> Result<Vec<(String, Vec<f64>)>, Stop> {
        let mut seeds = Vec::new();
        for seed in &record.seeds {
            let Some(y) = self.value_of(&seed.y) else {
                return Err(failed(format!("nothing computes y '{}'", seed.y)));
            };
            if !tract::is_float(y) {
                continue;
            }
            let values = match &seed.seed {
                Some(name) => {
                    let tensor =
                        self.value_of(name).ok_or_else(|| failed(format!("nothing computes seed '{name}'")))?;
                    if tensor.shape() != y.shape() {
                        return Err(failed(format!(
                            "seed '{name}' has shape {:?}, its y '{}' {:?}",
                            tensor.shape(),
                            seed.y,
                            y.shape()
                        )));
                    }
                    tract::values(tensor)?
                }
                None => vec![seed.fill.unwrap_or(1.0); y.len()],
            };
            seeds.push((seed.y.clone(), values));
        }
        Ok(seeds)
    }

    /// Compares every gradient with differences, all together first, then each.
    fn compare(self, check: &mut Check) -> Result<(), Stop> {
        let seeds = self.seeds(check.record)?;
        if seeds.is_empty() {
            return Ok(());
        }
        let mut model = self.model.clone();
        let xs: HashSet<String> = (check.record.gradients.iter())
            .filter(|g| self.value_of(&g.x).is_some_and(|t| tract::is_float(t)))
            .map(|g| g.x.clone())
            .collect();
        normalize::open(&mut model, &xs, &self.cut);
        let ys = unique(seeds.iter().map(|(y, _)| y.clone()));
        normalize::prune(&mut model, &ys);
        let inputs: HashSet<String> = model.graph.iter().flat_map(|g| &g.input).map(|i| i.name().to_owned()).collect();
        let mut feeds = self.feeds.clone();
        let mut targets = BTreeMap::new();
        for x in &xs {
            let Some(value) = self.value_of(x) else { continue };
            let values = tract::values(value)?;
            let reach = differences::reach(&values);
            let (input, base) = match inputs.contains(&normalize::delta(x)) {
                true => (normalize::delta(x), vec![0.0; values.len()]),
                false => (x.clone(), values),
            };
            feeds.insert(input.clone(), Arc::new(tract::double(value.shape(), &base)?));
            if inputs.contains(&input) {
                let dims = value.shape().to_vec();
                targets.insert(x.clone(), Target { input, base: Arc::new(base), dims, gradient: vec![], reach });
            }
        }
        for name in &self.cut {
            if let Some(value) = self.values.get(name) {
                feeds.insert(name.clone(), value.clone());
            }
        }
        let plan = Plan::new(&model, &feeds, Precision::Double).map_err(|t| not_compared(&t))?;
        let function = Function::new(&plan, feeds, seeds, Instant::now() + check.options.budget);
        let function = function.map_err(|t| not_compared(&t))?;
        let paths = Paths::new(model.graph.as_ref());
        Comparison { function, targets, paths, double: &self }.run(check)
    }
}

fn not_compared(trouble: &Trouble) -> Stop {
    match trouble {
        Trouble::Panicked(_) | Trouble::Unsupported(_) => Stop::from(trouble.clone()),
        other => skipped(format!("not compared with differences, the model does not run in float64: {other}")),
    }
}

struct Comparison<'a> {
    function: Function<'a>,
    /// For each x that reaches a y, what is perturbed.
    targets: BTreeMap<String, Target>,
    paths: Paths,
    double: &'a Double,
}

impl Comparison<'_> {
    fn run(mut self, check: &mut Check) -> Result<(), Stop> {
        let options = check.options;
        let mut problems = Vec::new();
        let checks = &mut check.validation.gradients;
        let mut single = false;
        let mut joint = Vec::new();
        for (i, c) in checks.iter_mut().enumerate() {
            let gradient = c.gradient.as_ref().and_then(|g| self.double.value_of(g));
            let values = gradient.map(|g| tract::values(g)).transpose()?;
            let Some(target) = self.targets.get_mut(&c.x) else {
                // No y depends on x any more: whatever is not zero is wrong.
                match values {
                    Some(values) if values.iter().any(|&v| v != 0.0) => {
                        problems.push(format!(
                            "the gradient with respect to '{}' is not zero, but no y depends on it",
                            c.x
                        ));
                    }
                    Some(_) => (c.compared, c.error) = (true, Some(0.0)),
                    None => (),
                }
                continue;
            };
            let path = self.paths.from(&target.input);
            if let Some(op) = path.iter().find(|op| CONVENTIONAL.contains(&op.as_str())) {
                c.note = Some(format!("not compared: the gradient of {op} is a convention, not a slope"));
                continue;
            }
            let coarse = path.iter().any(|op| SINGLE.contains(&op.as_str()));
            single |= coarse;
            c.bound = if coarse { SINGLE_BOUND } else { BOUND };
            if let Some(values) = values {
                target.gradient = values;
                joint.push(i);
            }
        }
        let mut random = fastrand::Rng::with_seed(options.seed ^ 0x9e37_79b9_7f4a_7c15);
        // One direction over all xs, to which each contributes alike: it finds an error in any of them.
        let mut together = None;
        if joint.len() > 1 {
            let names: BTreeSet<&String> = joint.iter().map(|&i| &checks[i].x).collect();
            let targets: Vec<&Target> = names.iter().filter_map(|&x| self.targets.get(x)).collect();
            let largest = targets.iter().map(|t| t.typical()).fold(0.0, f64::max);
            let direction: Vec<_> = (targets.into_iter())
                .map(|t| {
                    let weight = if t.typical() > 0.0 { (largest / t.typical()).min(100.0) } else { 1.0 };
                    (t, t.direction(&mut random).into_iter().map(|v| v * weight).collect::<Vec<f64>>())
                })
                .collect();
            together = Some(self.function.compare(&direction, single).map_err(|t| not_compared(&t))?);
        }
        for c in checks.iter_mut().filter(|c| c.note.is_none()) {
            let Some(target) = self.targets.get(&c.x) else { continue };
            let zeros;
            let target = match c.gradient {
                Some(_) => target,
                None => {
                    zeros = Target {
                        gradient: vec![0.0; target.base.len()],
                        base: target.base.clone(),
                        dims: target.dims.clone(),
                        input: target.input.clone(),
                        reach: target.reach,
                    };
                    &zeros
                }
            };
            if self.function.is_late() && !matches!(together, Some(Outcome::Differs(_))) {
                if let (Some(Outcome::Agrees(error)), true) = (together, c.gradient.is_some()) {
                    (c.compared, c.error) = (true, Some(error));
                    c.note = Some("compared together with the other xs, not alone: the time was over".to_owned());
                } else {
                    c.note = Some("not compared: the time was over".to_owned());
                }
                continue;
            }
            let coarse = c.bound == SINGLE_BOUND;
            let (mut agreed, mut rough) = (0, 0);
            while agreed < options.directions.max(1) && rough < 3 {
                let direction = [(target, target.direction(&mut random))];
                match self.function.compare(&direction, coarse).map_err(|t| not_compared(&t))? {
                    Outcome::Agrees(error) => {
                        agreed += 1;
                        c.compared = true;
                        c.error = Some(c.error.map_or(error, |e| e.max(error)));
                    }
                    Outcome::Differs(error) => {
                        c.compared = true;
                        c.error = Some(error);
                        break;
                    }
                    Outcome::Rough => rough += 1,
                }
            }
            let differs = agreed < options.directions.max(1) && rough < 3;
            match (&c.gradient, differs) {
                (Some(g), true) => problems.push(format!(
                    "gradient '{g}' with respect to '{}' is not the slope: relative error {:.1e}, bound {:.0e}",
                    c.x,
                    c.error.unwrap_or(f64::NAN),
                    c.bound
                )),
                (None, true) => {
                    (c.compared, c.error) = (false, None);
                    c.note = Some(
                        "no gradient, yet the ys change with it: an operator on the way stops it by convention"
                            .to_owned(),
                    );
                }
                _ if rough >= 3 && !c.compared => {
                    c.note = Some("not compared: the function is not smooth here".to_owned())
                }
                _ => (),
            }
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(failed(listed(&problems))),
        }
    }
}

/// Operators that draw numbers.
const RANDOM: &[&str] =
    &["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"];
/// Operators whose gradient lets through what their steps would not.
const CONVENTIONAL: &[&str] = &["QuantizeLinear", "DynamicQuantizeLinear"];
/// Operators that tract computes in float32.
const SINGLE: &[&str] = &[
    "Attention",
    "DequantizeLinear",
    "DFT",
    "GRU",
    "GridSample",
    "GroupNormalization",
    "LSTM",
    "RMSNormalization",
    "RNN",
    "Resize",
    "STFT",
];

/// Which operators stand between an input and the ys.
struct Paths {
    nodes: Vec<(String, Vec<String>, Vec<String>)>,
}

impl Paths {
    fn new(graph: Option<&GraphProto>) -> Self {
        let nodes = graph.into_iter().flat_map(|g| &g.node).map(|node| {
            let mut used = Vec::new();
            normalize::uses(node, &mut |name| used.push(name.to_owned()));
            (node.op_type().to_owned(), used, node.output.clone())
        });
        Paths { nodes: nodes.collect() }
    }

    fn from(&self, input: &str) -> BTreeSet<String> {
        let mut reached: HashSet<&str> = HashSet::from([input]);
        let mut operators = BTreeSet::new();
        for (op, used, outputs) in &self.nodes {
            if !matches!(op.as_str(), "Shape" | "Size") && used.iter().any(|u| reached.contains(u.as_str())) {
                operators.insert(op.clone());
                reached.extend(outputs.iter().map(String::as_str));
            }
        }
        operators
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

fn is_finite(tensor: &Tensor) -> bool {
    tract::values(tensor).is_ok_and(|v| v.iter().all(|v| v.is_finite()))
}

fn root_mean_square(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

fn difference(a: &Tensor, b: &Tensor) -> Option<f64> {
    if a.shape() != b.shape() {
        return None;
    }
    let (a, b) = (tract::values(a).ok()?, tract::values(b).ok()?);
    Some(a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
}

/// Whether a graph, or a body in it, names this element type.
fn uses(graph: Option<&GraphProto>, element: ElementType) -> bool {
    let Some(graph) = graph else { return false };
    let number = element as i32;
    let typed = |v: &crate::onnx::ValueInfoProto| tract::element_type(v.r#type.as_ref()) == Some(element);
    graph.initializer.iter().any(|t| t.data_type() == number)
        || graph.input.iter().any(typed)
        || graph.node.iter().any(|n| {
            n.attribute.iter().any(|a| {
                a.t.as_ref().is_some_and(|t| t.data_type() == number)
                    || (matches!(a.name(), "to" | "dtype" | "output_datatype") && a.i() == i64::from(number))
            }) || normalize::bodies(n).any(|b| uses(Some(b), element))
        })
}

/// Whether a graph, or a body in it, draws numbers.
fn is_random(graph: Option<&GraphProto>) -> bool {
    graph.is_some_and(|g| {
        g.node.iter().any(|n| RANDOM.contains(&n.op_type()) || normalize::bodies(n).any(|b| is_random(Some(b))))
    })
}
