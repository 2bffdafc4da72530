//! Runs the step in tract: to prove a trainable model and to prototype. The step itself is for real runtimes.

use super::data::Data;
use super::manifest::Manifest;
use super::state::{self, Random, State};
use crate::error::Error;
use crate::model::Model;
use crate::onnx::{ElementType, ModelProto, TensorProto};
use crate::validate::Engine;
use crate::validate::engine::{Precision, Run, Trouble};
use crate::validate::tensors::{self, Tensor, Tensors};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file of the checkpoint in the folder of a trainable model.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// It falls to zero in a straight line.
    Linear,
    /// It falls to zero as half a wave of the cosine.
    Cosine,
}

impl Schedule {
    /// How it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Constant => "constant",
            Schedule::Linear => "linear",
            Schedule::Cosine => "cosine",
        }
    }
}

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Options {
    /// How often all samples are seen.
    pub epochs: usize,
    /// Samples in a batch, or in a micro-batch where several make a step.
    pub batch: usize,
    /// The learning rate after the warm-up.
    pub rate: f64,
    /// How it goes on.
    pub schedule: Schedule,
    /// The number of steps over which it rises from zero.
    pub warmup: u64,
    /// The order of the samples, and which are held out, follow from it.
    pub seed: u64,
    /// The share of the samples that are held out for evaluation.
    pub held_out: f64,
    /// Steps between checkpoints; at the end of an epoch there is always one.
    pub checkpoint_every: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            epochs: 10,
            batch: 32,
            rate: 1e-3,
            schedule: Schedule::Constant,
            warmup: 0,
            seed: 0,
            held_out: 0.2,
            checkpoint_every: 0,
        }
    }
}

setters!(Options {
    epochs: usize,
    batch: usize,
    rate: f64,
    schedule: Schedule,
    warmup: u64,
    seed: u64,
    held_out: f64,
    checkpoint_every: u64,
});

/// What an epoch came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Epoch {
    /// Its number, from 1 on.
    pub epoch: usize,
    /// How many steps have been made at its end.
    pub steps: u64,
    /// The mean loss of its steps.
    pub loss: f64,
    /// The means of the metrics of its steps.
    pub metrics: BTreeMap<String, f64>,
    /// The loss of the samples that are held out, and the metrics.
    pub held_out: Option<BTreeMap<String, f64>>,
}

/// Where a training stands: what a checkpoint holds beside the tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    epoch: usize,
    /// Steps of the current epoch.
    position: usize,
    steps: u64,
    /// Sums over the steps of the current epoch.
    sums: BTreeMap<String, f64>,
    history: Vec<Epoch>,
    options: Options,
    data: String,
    /// The fingerprint of the tensors, in the order of their names.
    #[serde(default)]
    sum: Option<String>,
}

/// What is reported while it goes on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A step has been made: the epoch from 1 on, its step from 1 on, how many there are, the loss.
    Step(usize, usize, usize, f64),
    /// An epoch has ended.
    Epoch(&'a Epoch),
}

/// What a training came to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Trained {
    /// Its epochs.
    pub epochs: Vec<Epoch>,
    /// The number of steps after which somebody stopped it, if anybody did. The checkpoint is of then.
    pub stopped: Option<u64>,
}

/// Trains, and leaves a checkpoint in the folder. With `resume` it goes on from the checkpoint that is there, and comes
/// to the same numbers as without the interruption. Where `report` breaks, it stops behind the step and leaves a
/// checkpoint.
///
/// # Errors
/// Data and options that do not fit the model; a checkpoint of another training; a loss that is no number; what tract
/// cannot run.
pub fn train(
    folder: &Path,
    data: &Data,
    evaluation: Option<&Data>,
    options: &Options,
    resume: bool,
    report: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Trained, Error> {
    Ok(trained(folder, data, evaluation, options, resume, report)?)
}

fn trained(
    folder: &Path,
    data: &Data,
    evaluation: Option<&Data>,
    options: &Options,
    resume: bool,
    report: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Trained> {
    let manifest = Manifest::read(folder)?;
    check(options, &manifest)?;
    let mut trainer = Trainer::new(folder, manifest)?;
    let checkpoint = folder.join(CHECKPOINT);
    let begun = Progress { options: options.clone(), data: data.fingerprint(), ..Progress::default() };
    let mut progress = match resume {
        true => resumed(&mut trainer, &checkpoint, begun)?,
        false => {
            let (state, _) = state::read(&folder.join(&trainer.manifest.initial_state))?;
            trainer.restore(&state)?;
            begun
        }
    };
    let held_out = if evaluation.is_some() { 0.0 } else { options.held_out };
    let course = Course::new(data.count(), held_out, options, &trainer.manifest)?;
    course.ensure_holds(&progress)?;
    while progress.epoch < options.epochs {
        let order = course.order_of(progress.epoch, options.seed);
        for micro in course.steps_of(&order).skip(progress.position) {
            let loss = progress.step(&mut trainer, data, &micro, course.total)?;
            if report(Event::Step(progress.epoch + 1, progress.position, course.steps, loss)).is_break() {
                trainer.save(&checkpoint, &progress)?;
                return Ok(Trained { epochs: progress.history, stopped: Some(progress.steps) });
            }
            if options.checkpoint_every > 0 && progress.steps.is_multiple_of(options.checkpoint_every) {
                trainer.save(&checkpoint, &progress)?;
            }
        }
        let held_out = match evaluation {
            Some(other) => trainer.evaluate(other, &(0..other.count()).collect::<Vec<_>>(), options.batch)?,
            None => trainer.evaluate(data, &course.held_out, options.batch)?,
        };
        let epoch = progress.end_epoch(&trainer.manifest.loss, course.steps, held_out);
        let going = report(Event::Epoch(&epoch));
        progress.history.push(epoch);
        trainer.save(&checkpoint, &progress)?;
        if going.is_break() && progress.epoch < options.epochs {
            return Ok(Trained { epochs: progress.history, stopped: Some(progress.steps) });
        }
    }
    Ok(Trained { epochs: progress.history, stopped: None })
}

/// How far a checkpoint is, of the training that `begun` begins; the trainer gets its tensors.
fn resumed(trainer: &mut Trainer, checkpoint: &Path, begun: Progress) -> Result<Progress> {
    let (state, metadata) = state::read(checkpoint).context("nothing to resume")?;
    let text = metadata.with_context(|| format!("{}: not a checkpoint of `train`", checkpoint.display()))?;
    let saved: Progress = serde_json::from_str(&text).context("the checkpoint is of another version")?;
    same_training(&saved, &begun)?;
    let elements = state.iter().map(|(n, t)| (n.as_str(), t.raw_data.as_deref().unwrap_or_default()));
    let sum = state::fingerprint(elements);
    ensure!(
        saved.sum.as_ref().is_none_or(|s| *s == sum),
        "{}: its tensors are not those that were written: it is damaged",
        checkpoint.display()
    );
    trainer.restore(&state)?;
    Ok(Progress { options: begun.options, ..saved })
}

/// Which samples make which steps.
struct Course {
    /// The samples to train with.
    order: Vec<usize>,
    /// The samples that are held out.
    held_out: Vec<usize>,
    /// Samples in a micro-batch.
    batch: usize,
    /// Micro-batches in a step.
    group: usize,
    /// Micro-batches in an epoch.
    batches: usize,
    /// Steps in an epoch.
    steps: usize,
    /// Steps in all.
    total: u64,
}

impl Course {
    fn new(samples: usize, held_out: f64, options: &Options, manifest: &Manifest) -> Result<Self> {
        let mut order = Random::new(options.seed).shuffled(samples);
        let held = (samples as f64 * held_out).round() as usize;
        let held_out = order.split_off(samples - held.min(samples));
        let (batch, group) = (options.batch, manifest.accumulate.max(1));
        let fixed = manifest.fixed_batch()?;
        if let Some(n) = fixed.filter(|&n| n != batch) {
            bail!(
                "the model takes batches of {n} only, not of {batch}; `trainable --accumulate {}` makes a step of several of them",
                batch.div_ceil(n.max(1)).max(2)
            );
        }
        let whole = order.len() / batch;
        let batches = if fixed.is_some() || group > 1 { whole } else { order.len().div_ceil(batch) };
        let steps = batches / group;
        ensure!(steps > 0, "{} samples to train with do not make one step of {group} times {batch}", order.len());
        let total = (steps as u64).checked_mul(options.epochs as u64);
        let total = total.context("so many epochs have more steps than can be counted")?;
        Ok(Course { order, held_out, batch, group, batches, steps, total })
    }

    /// Whether a checkpoint says of steps what follows from its epochs.
    fn ensure_holds(&self, progress: &Progress) -> Result<()> {
        let (epoch, position, steps) = (progress.epoch, progress.position, self.steps);
        let made = (steps as u64).checked_mul(epoch as u64).and_then(|n| n.checked_add(position as u64));
        ensure!(
            position <= steps && progress.history.len() == epoch && made == Some(progress.steps),
            "the checkpoint contradicts itself: epoch {epoch} of {} recorded, step {position} of {steps}, {} steps in all",
            progress.history.len(),
            progress.steps
        );
        Ok(())
    }

    /// The samples in the order of an epoch, the first being 0.
    fn order_of(&self, epoch: usize, seed: u64) -> Vec<usize> {
        let seed = seed.wrapping_add((epoch as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let places = Random::new(seed).shuffled(self.order.len());
        places.into_iter().filter_map(|i| self.order.get(i).copied()).collect()
    }

    /// The micro-batches of each step of an epoch.
    fn steps_of<'a>(&self, order: &'a [usize]) -> impl Iterator<Item = Vec<&'a [usize]>> {
        let batches: Vec<&[usize]> = order.chunks(self.batch).take(self.batches).collect();
        let (group, steps) = (self.group, self.steps);
        (0..steps).map(move |i| batches[i * group..(i + 1) * group].to_vec())
    }
}

impl Progress {
    /// Makes a step, and returns its loss.
    fn step(&mut self, trainer: &mut Trainer, data: &Data, micro: &[&[usize]], total: u64) -> Result<f64> {
        let scalars = trainer.step(data, micro, rate(&self.options, self.steps, total))?;
        let loss = scalars.get(&trainer.manifest.loss).copied().unwrap_or(f64::NAN);
        ensure!(
            loss.is_finite(),
            "the loss is {loss} in step {} (epoch {}): the learning rate may be too high, or the model's own numbers overflow; the checkpoint is from before",
            self.steps + 1,
            self.epoch + 1
        );
        for (name, value) in scalars {
            *self.sums.entry(name).or_default() += value;
        }
        self.position += 1;
        self.steps += 1;
        Ok(loss)
    }

    /// What the epoch comes to, of so many steps; the next one begins.
    fn end_epoch(&mut self, loss: &str, steps: usize, held_out: Option<BTreeMap<String, f64>>) -> Epoch {
        let sums = std::mem::take(&mut self.sums).into_iter();
        let mut metrics: BTreeMap<String, f64> = sums.map(|(n, v)| (n, v / steps as f64)).collect();
        let loss = metrics.remove(loss).unwrap_or(f64::NAN);
        self.epoch += 1;
        self.position = 0;
        Epoch { epoch: self.epoch, steps: self.steps, loss, metrics, held_out }
    }
}

fn check(options: &Options, manifest: &Manifest) -> Result<()> {
    ensure!(options.batch > 0, "a batch has at least one sample");
    ensure!(options.rate.is_finite() && options.rate >= 0.0, "the learning rate is a number that is not below 0");
    ensure!((0.0..1.0).contains(&options.held_out), "the share that is held out is from 0 to below 1");
    ensure!(!manifest.data.is_empty() || !manifest.labels.is_empty(), "the step takes no data");
    Ok(())
}

/// Whether a checkpoint is one of this training.
fn same_training(saved: &Progress, now: &Progress) -> Result<()> {
    ensure!(saved.data == now.data, "the checkpoint is of a training with other data; without --resume it starts anew");
    let mut options = saved.options.clone();
    options.checkpoint_every = now.options.checkpoint_every;
    if options.schedule == Schedule::Constant {
        options.epochs = now.options.epochs;
    }
    let (then, now) = (&options, &now.options);
    let both = |name: &str, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
        let (a, b) = (a.to_string(), b.to_string());
        (a != b).then(|| format!("{name} {a}, not {b}"))
    };
    let differ = [
        both("--epochs", &then.epochs, &now.epochs),
        both("--batch-size", &then.batch, &now.batch),
        both("--lr", &then.rate, &now.rate),
        both("--schedule", &then.schedule.name(), &now.schedule.name()),
        both("--warmup", &then.warmup, &now.warmup),
        both("--seed", &then.seed, &now.seed),
        both("--held-out", &then.held_out, &now.held_out),
    ];
    let differ: Vec<String> = differ.into_iter().flatten().collect();
    ensure!(differ.is_empty(), "the checkpoint is of a training with other options: {}", differ.join("; "));
    Ok(())
}

/// The learning rate of a step, the first being 0.
fn rate(options: &Options, step: u64, total: u64) -> f64 {
    if step < options.warmup {
        return options.rate * (step + 1) as f64 / options.warmup as f64;
    }
    let done = (step - options.warmup) as f64 / total.saturating_sub(options.warmup).max(1) as f64;
    match options.schedule {
        Schedule::Constant => options.rate,
        Schedule::Linear => options.rate * (1.0 - done).max(0.0),
        Schedule::Cosine => options.rate * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
    }
}

struct Trainer {
    manifest: Manifest,
    folder: PathBuf,
    models: BTreeMap<String, ModelProto>,
    /// Ready to run, by role and number of samples.
    plans: BTreeMap<(String, usize), Box<dyn Run>>,
    state: Tensors,
    precision: Precision,
}

impl Trainer {
    fn new(folder: &Path, manifest: Manifest) -> Result<Self> {
        let double = manifest.state.iter().any(|f| f.r#type == "double");
        let precision = if double { Precision::Double } else { Precision::Own };
        Ok(Trainer {
            manifest,
            folder: folder.to_owned(),
            models: BTreeMap::new(),
            plans: BTreeMap::new(),
            state: Tensors::new(),
            precision,
        })
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let given: BTreeMap<&str, &TensorProto> = state.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for feed in &self.manifest.state {
            let tensor =
                given.get(feed.input.as_str()).with_context(|| format!("the state holds no '{}'", feed.input))?;
            let fits = tensor.dims == feed.shape && tensor.element_type().name() == feed.r#type;
            ensure!(fits, "'{}' of the state does not fit the model", feed.input);
            self.state.insert(feed.input.clone(), Arc::new(tensors::tensor(tensor)?));
        }
        Ok(())
    }

    /// Makes a step with micro-batches; returns the loss and the metrics.
    fn step(&mut self, data: &Data, micro: &[&[usize]], rate: f64) -> Result<BTreeMap<String, f64>> {
        let learning_rate = (self.manifest.learning_rate.name.clone(), self.scalar(rate)?);
        let scalars = std::iter::once(&self.manifest.loss).chain(&self.manifest.metrics).cloned().collect::<Vec<_>>();
        if let ([only], 1) = (micro, self.manifest.accumulate) {
            let mut feeds = self.feeds(data, only)?;
            feeds.extend([learning_rate]);
            let results = self.run("train", only.len(), &feeds)?;
            self.take(&results);
            return numbers(&results, &scalars);
        }
        let mut sums = Tensors::new();
        for p in &self.manifest.parameters {
            let like = self.state.get(&p.name).with_context(|| format!("no '{}'", p.name))?;
            sums.insert(p.sum.clone(), Arc::new(zeros(like)?));
        }
        let mut mean: BTreeMap<String, f64> = BTreeMap::new();
        let first = self.state.get(&self.manifest.step).map(|t| t.values());
        let first = first.and_then(|v| v.first().copied()).unwrap_or(0.0) as i64;
        for (i, samples) in micro.iter().enumerate() {
            let mut feeds = self.feeds(data, samples)?;
            feeds.append(&mut sums.clone());
            // Each micro-batch counts as a step for what is dropped out.
            let count = first.saturating_mul(micro.len() as i64).saturating_add(i as i64);
            let count = TensorProto::from_int64(&[], &[count]);
            feeds.insert(self.manifest.step.clone(), Arc::new(tensors::tensor(&count)?));
            let results = self.run("accumulate", samples.len(), &feeds)?;
            self.take(&results);
            for p in &self.manifest.parameters {
                let sum = results.get(&p.next_sum).with_context(|| format!("the step gives no '{}'", p.next_sum))?;
                sums.insert(p.sum.clone(), sum.clone());
            }
            for (name, value) in numbers(&results, &scalars)? {
                *mean.entry(name).or_default() += value / micro.len() as f64;
            }
        }
        let mut feeds = self.state.clone();
        feeds.extend([learning_rate]);
        for p in &self.manifest.parameters {
            feeds.insert(p.gradient.clone(), sums.get(&p.sum).cloned().context("a sum is missing")?);
        }
        let results = self.run("apply", 0, &feeds)?;
        self.take(&results);
        mean.extend(numbers(&results, &scalars)?);
        Ok(mean)
    }

    /// The losses and metrics over samples, weighted by their number; `None` without samples.
    fn evaluate(&mut self, data: &Data, samples: &[usize], batch: usize) -> Result<Option<BTreeMap<String, f64>>> {
        let fixed = self.manifest.fixed_batch()?.is_some();
        let scalars = std::iter::once(&self.manifest.loss).chain(&self.manifest.metrics).cloned().collect::<Vec<_>>();
        let (mut sums, mut count): (BTreeMap<String, f64>, usize) = Default::default();
        for samples in samples.chunks(batch.max(1)).filter(|s| !fixed || s.len() == batch) {
            let feeds = self.feeds(data, samples)?;
            let results = self.run("evaluate", samples.len(), &feeds)?;
            for (name, value) in numbers(&results, &scalars)? {
                *sums.entry(name).or_default() += value * samples.len() as f64;
            }
            count += samples.len();
        }
        sums.values_mut().for_each(|v| *v /= count as f64);
        Ok((count > 0).then_some(sums))
    }

    fn feeds(&self, data: &Data, samples: &[usize]) -> Result<Tensors> {
        let mut feeds = self.state.clone();
        for (name, tensor) in data.batch(samples)? {
            feeds.insert(name, Arc::new(tensors::tensor(&tensor)?));
        }
        Ok(feeds)
    }

    fn scalar(&self, value: f64) -> Result<Arc<Tensor>> {
        let element = ElementType::from_name(&self.manifest.learning_rate.r#type).filter(|e| e.is_float());
        let element = element.context("the manifest gives the learning rate no type")?;
        Ok(Arc::new(tensors::tensor(&TensorProto::from_floats(element, &[], &[value])?)?))
    }

    /// Runs a model, which is prepared once for each number of samples.
    fn run(&mut self, role: &str, samples: usize, feeds: &Tensors) -> Result<Tensors> {
        let key = (role.to_owned(), samples);
        if !self.plans.contains_key(&key) {
            if !self.models.contains_key(role) {
                let path = self.folder.join(&self.manifest.model(role)?.file);
                self.models.insert(role.to_owned(), Model::load(path)?.proto);
            }
            let model = self.models.get(role).context("a model is missing")?;
            let plan = Engine::default().open().and_then(|engine| engine.prepare(model, feeds, self.precision));
            let plan = plan.map_err(|t| trouble(role, samples, t))?;
            self.plans.insert(key.clone(), plan);
        }
        let plan = self.plans.get(&key).context("a plan is missing")?;
        plan.run(feeds).map_err(|t| trouble(role, samples, t))
    }

    /// Takes what comes out over for the next step.
    fn take(&mut self, results: &Tensors) {
        for feed in &self.manifest.state {
            if let Some(tensor) = results.get(&feed.output) {
                self.state.insert(feed.input.clone(), tensor.clone());
            }
        }
    }

    fn save(&self, path: &Path, progress: &Progress) -> Result<()> {
        let tensor = |feed: &super::manifest::Feed| {
            let tensor = self.state.get(&feed.input).with_context(|| format!("no '{}'", feed.input))?;
            let element = ElementType::from_name(&feed.r#type).context("a tensor of no known type")?;
            Ok((feed.input.clone(), TensorProto::from_raw(element, &feed.shape, tensor.bytes().to_vec())))
        };
        let mut state = self.manifest.state.iter().map(tensor).collect::<Result<State>>()?;
        state.sort_by(|a, b| a.0.cmp(&b.0));
        let elements = state.iter().map(|(n, t)| (n.as_str(), t.raw_data.as_deref().unwrap_or_default()));
        let progress = Progress { sum: Some(state::fingerprint(elements)), ..progress.clone() };
        Ok(state::write(path, &state, Some(&serde_json::to_string(&progress)?), true)?)
    }
}

fn zeros(like: &Tensor) -> Result<Tensor> {
    Tensor::new(like.element(), like.dims(), vec![0; like.bytes().len()])
}

/// The scalars that are there.
fn numbers(results: &Tensors, names: &[String]) -> Result<BTreeMap<String, f64>> {
    let mut found = BTreeMap::new();
    for name in names {
        if let Some(tensor) = results.get(name) {
            found.insert(name.clone(), tensor.values().first().copied().unwrap_or(f64::NAN));
        }
    }
    Ok(found)
}

/// Why a model did not run on so many samples.
fn trouble(role: &str, samples: usize, trouble: Trouble) -> anyhow::Error {
    match trouble {
        Trouble::OutOfMemory => {
            let error =
                Error::out_of_memory(format_args!("{role}.onnx needs more memory than there is for {samples} samples"));
            error.with_remedy(Some("a smaller --batch-size takes less".to_owned())).into()
        }
        other => anyhow!("{role}.onnx: {other}"),
    }
}
