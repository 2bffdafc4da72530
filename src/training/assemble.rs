//! From drafts and a plan to the models of a training and their manifest.

use super::artifacts::{Artifacts, INFERENCE_FILE, STATE_FILE};
use super::lora::Adapter;
use super::losses::{self, LossSpec};
use super::manifest::{self, Feed, Input, Manifest, ModelFile, OptimizerEntry};
use super::parameters::Trained;
use super::plan::{Plan, Slot};
use super::select::Entry;
use super::state::State;
use super::step::{Forward, Total};
use crate::backward::Selection;
use crate::expr::Expr;
use crate::graph::{self, Dims, Graph, ValueId};
use crate::memory::Report;
use crate::model::Model;
use crate::onnx::{ElementType, GraphProto, ModelProto, TensorProto, ValueInfoProto};
use crate::record::{Gradient, Record, SeedOf};
use crate::rules::load;
use crate::weights::Source;
use anyhow::{Context, Result, ensure};
use std::collections::{HashMap, HashSet};

/// Everything that the models are made of.
pub struct Parts {
    /// The model as it was.
    pub inference: Model,
    /// The model with its parameters as inputs, in the modes of training.
    pub training: ModelProto,
    /// The model with its parameters as inputs, in the modes of inference.
    pub evaluation: ModelProto,
    /// What the models have in common.
    pub plan: Plan,
    /// What is trained, in the order of the plan's slots.
    pub trained: Vec<Trained>,
    /// What becomes of every constant tensor.
    pub entries: Vec<Entry>,
    /// The model's own outputs.
    pub outputs: Vec<String>,
    /// What has been decided so far.
    pub decisions: Vec<String>,
}

impl Parts {
    /// Writes the models, the state and the manifest.
    ///
    /// # Errors
    /// Outputs that a loss cannot be computed from, operators without a gradient, metrics of no loss.
    pub fn assemble(self) -> Result<Artifacts> {
        let Parts { inference, training, evaluation, plan, trained, entries, outputs, mut decisions } = self;
        let (feeds, state) = feeds(&plan, &trained, &inference.proto)?;
        let order = input_order(&plan, &feeds);
        let reserved: Vec<String> = order.iter().cloned().chain(output_names(&plan, &feeds)).collect();
        let places: HashMap<&str, usize> = feeds.iter().enumerate().map(|(i, f)| (f.output.as_str(), i)).collect();
        let writing = Writing { plan: &plan, order: &order, places };

        let forward = Forward::new(training, reserved.iter().cloned())?.within(plan.memory_budget.clone());
        let total = forward.total(&plan, &outputs)?;
        decisions.extend(total.decisions.iter().cloned());
        let (labels, metrics) = (total.labels.clone(), named_metrics(&plan, &total)?);
        let mut models = writing.of_the_step(&forward, &total)?;
        models.push(writing.apply(&inference.proto, &reserved)?);
        let data = data(&models, &order);
        let forward = Forward::new(evaluation, reserved)?;
        let total = forward.total(&plan, &outputs)?;
        let known = |n: &str| data.iter().any(|i| i.name == n) || order.iter().any(|o| o == n);
        let kept = computable(&inference.proto, outputs, known)?;
        models.push(writing.written("evaluate", &forward, scalars(&total, &plan), &kept)?);

        let mut adapters: Vec<Adapter> = trained.iter().filter_map(|t| t.adapter.clone()).collect();
        adapters.dedup();
        let (name, element) = &plan.rate;
        let learning_rate =
            Input { name: name.clone(), r#type: element.name(), shape: vec![], classes: None, ignore: None };
        let manifest = Manifest {
            format: Manifest::FORMAT,
            models: models.iter().map(Written::entry).collect(),
            inference: INFERENCE_FILE.to_owned(),
            initial_state: STATE_FILE.to_owned(),
            data,
            labels,
            learning_rate,
            step: plan.step[0].clone(),
            loss: plan.loss.clone(),
            metrics,
            losses: plan.losses.iter().map(describe).collect(),
            optimizer: OptimizerEntry {
                name: plan.optimizer.name.to_owned(),
                formula: plan.optimizer.formula.to_owned(),
                hyper: plan.hyper,
                clip_norm: plan.clip_norm,
                clip_value: plan.clip_value,
            },
            accumulate: plan.accumulate,
            parameters: trained.iter().zip(&plan.slots).map(|(t, s)| parameter(t, s)).collect(),
            state: feeds,
            lora: adapters,
            weights: entries,
            decisions,
        };
        let models = models.into_iter().map(|m| (m.role.to_owned(), m.model)).collect();
        let record = record(&plan, &manifest);
        Ok(Artifacts { models, inference, state, manifest, record })
    }
}

/// One of the models of a training.
struct Written {
    role: &'static str,
    model: ModelProto,
    /// What a memory budget has led to.
    memory: Option<Report>,
}

impl Written {
    fn entry(&self) -> ModelFile {
        let names = |v: &[ValueInfoProto]| v.iter().map(|v| v.name().to_owned()).collect();
        ModelFile {
            role: self.role.to_owned(),
            file: format!("{}.onnx", self.role),
            inputs: self.model.graph.as_ref().map(|g| names(&g.input)).unwrap_or_default(),
            outputs: self.model.graph.as_ref().map(|g| names(&g.output)).unwrap_or_default(),
            memory: self.memory.clone(),
        }
    }
}

/// How the models are written: inputs in one order, what goes from step to step in the order of the manifest.
struct Writing<'a> {
    plan: &'a Plan,
    order: &'a [String],
    places: HashMap<&'a str, usize>,
}

impl Writing<'_> {
    fn written<'g>(
        &self,
        role: &'static str,
        from: &'g Forward,
        outputs: Vec<(Expr<'g>, String)>,
        kept: &[String],
    ) -> Result<Written> {
        let (mut model, memory) = from.write(outputs, kept, self.order)?;
        model.producer_name = Some("onnx-gradients".to_owned());
        if let Some(graph) = &mut model.graph {
            graph.doc_string = Some(format!("{role}: see {}", manifest::FILE));
        }
        Ok(Written { role, model, memory })
    }

    /// The models that compute gradients: with the update behind them, alone, and added to sums.
    fn of_the_step<'g>(&self, forward: &'g Forward, total: &Total<'g>) -> Result<Vec<Written>> {
        let plan = self.plan;
        let gradients = forward.gradients(plan, total.loss)?;
        let statistics = || forward.statistics(plan, &gradients);
        let (mut next, norm) = forward.update(plan, &gradients)?;
        next.extend(statistics()?);
        let step = scalars(total, plan).into_iter().chain(self.behind(norm, next)).collect();
        let mut models = vec![self.written("train", forward, step, &[])?];
        let mut own = scalars(total, plan);
        own.extend(gradients.iter().copied().zip(plan.slots.iter().map(|s| s.gradient.clone())));
        own.extend(statistics()?);
        models.push(self.written("gradients", forward, own, &[])?);
        if plan.accumulate > 1 {
            let mut sums = scalars(total, plan);
            sums.extend(forward.accumulated(plan, &gradients));
            sums.extend(statistics()?);
            models.push(self.written("accumulate", forward, sums, &[])?);
        }
        Ok(models)
    }

    /// The model that takes gradients and updates the parameters: it holds nothing of the forward model.
    fn apply(&self, inference: &ModelProto, reserved: &[String]) -> Result<Written> {
        let mut empty = inference.clone();
        empty.functions.clear();
        empty.graph = Some(GraphProto { name: Some("apply".to_owned()), ..Default::default() });
        let half = Forward::new(empty, reserved.iter().cloned())?;
        let (next, norm) = half.update(self.plan, &half.given(self.plan))?;
        self.written("apply", &half, self.behind(norm, next), &[])
    }

    /// The norm of the gradients, if it is asked for, and what goes to the next step.
    fn behind<'g>(&self, norm: Expr<'g>, mut next: Vec<(Expr<'g>, String)>) -> Vec<(Expr<'g>, String)> {
        next.sort_by_key(|(_, name)| self.places.get(name.as_str()).copied().unwrap_or(usize::MAX));
        self.plan.norm.clone().map(|n| (norm, n)).into_iter().chain(next).collect()
    }
}

/// The inputs of a step that are no data, in their order.
fn input_order(plan: &Plan, feeds: &[Feed]) -> Vec<String> {
    let mut order: Vec<String> = plan.losses.iter().filter_map(|l| l.labels.clone()).collect();
    order.extend([plan.rate.0.clone(), plan.step[0].clone()]);
    order.extend(feeds.iter().map(|f| f.input.clone()).filter(|n| *n != plan.step[0]));
    order.extend(plan.slots.iter().flat_map(|s| [s.sum[0].clone(), s.gradient.clone()]));
    order
}

/// The outputs that a training has beside those of the model.
fn output_names(plan: &Plan, feeds: &[Feed]) -> impl Iterator<Item = String> {
    let next = feeds.iter().map(|f| f.output.clone()).chain(plan.slots.iter().map(|s| s.sum[1].clone()));
    let metrics = plan.metrics.iter().map(|(_, name)| name.clone()).chain(plan.norm.clone());
    next.chain(metrics).chain([plan.loss.clone()])
}

/// The names of the metrics that the step puts out.
fn named_metrics(plan: &Plan, total: &Total<'_>) -> Result<Vec<String>> {
    let mut metrics: Vec<String> = total.metrics.iter().map(|(_, n)| n.clone()).collect();
    for (spec, name) in &plan.metrics {
        let found = metrics.iter().any(|m| m == name || m.strip_prefix(name).is_some_and(|m| m.starts_with('/')));
        let of = spec.output.as_ref().map(|o| format!(" of '{o}'")).unwrap_or_default();
        ensure!(found || !plan.insists, "no loss{of} has the metric {}", spec.kind);
    }
    metrics.extend(plan.norm.clone());
    Ok(metrics)
}

/// What is validated: the gradients of the loss.
fn record(plan: &Plan, manifest: &Manifest) -> Record {
    let gradient = |p: &manifest::Parameter| Gradient::new(&p.name, Some(&p.gradient));
    let gradients = manifest.parameters.iter().map(gradient).collect();
    Record {
        stops: plan.stops.clone(),
        straight_through: plan.straight_through,
        ..Record::new("trainable", vec![SeedOf::fill(&plan.loss, 1.0)], gradients)
    }
}

/// What goes from step to step, in the order of the manifest, and what it starts with.
fn feeds(plan: &Plan, trained: &[Trained], model: &ModelProto) -> Result<(Vec<Feed>, State)> {
    let (mut feeds, mut state): (Vec<Feed>, State) = (vec![], vec![]);
    let mut feed = |[input, output]: [&String; 2], role: &str, value: TensorProto| {
        let (r#type, shape) = (value.element_type().name(), value.dims.clone());
        feeds.push(Feed { input: input.clone(), output: output.clone(), role: role.to_owned(), r#type, shape });
        state.push((input.clone(), value));
    };
    for (t, slot) in trained.iter().zip(&plan.slots) {
        feed([&slot.name, &slot.next], "parameter", t.value.clone());
    }
    for slot in &plan.slots {
        for [input, output] in &slot.states {
            feed([input, output], "optimizer", zeros(slot)?);
        }
    }
    let constants: HashMap<&str, _> = model.graph.iter().flat_map(GraphProto::constants).collect();
    for [name, _, next] in &plan.statistics {
        let value = constants.get(name.as_str()).with_context(|| format!("'{name}' is no constant"))?;
        let value = TensorProto::from_floats(value.element_type(), &value.dims, &value.floats()?)?;
        feed([name, next], "statistic", value);
    }
    let counter = |n| TensorProto::from_int64(&[], &[n]);
    feed([&plan.step[0], &plan.step[1]], "counter", counter(0));
    if let Some(s) = &plan.scaling {
        feed([&s.scale[0], &s.scale[1]], "loss_scale", TensorProto::from_float32(&[], &[s.initial as f32]));
        feed([&s.good[0], &s.good[1]], "counter", counter(0));
    }
    Ok((feeds, state))
}

fn zeros(slot: &Slot) -> Result<TensorProto> {
    let count = slot.dims.iter().product::<i64>().max(0) as usize;
    TensorProto::from_floats(slot.element, &slot.dims, &vec![0.0; count])
}

/// The loss and the metrics.
fn scalars<'g>(total: &Total<'g>, plan: &Plan) -> Vec<(Expr<'g>, String)> {
    std::iter::once((total.loss, plan.loss.clone())).chain(total.metrics.iter().cloned()).collect()
}

/// The inputs of the step that are none of those in `order`: the data.
fn data(models: &[Written], order: &[String]) -> Vec<Input> {
    let step = models.iter().find(|m| m.role == "train").and_then(|m| m.model.graph.as_ref());
    let order: HashSet<&str> = order.iter().map(String::as_str).collect();
    let inputs = step.iter().flat_map(|g| &g.input).filter(|i| !order.contains(i.name()));
    let input = |i: &ValueInfoProto| {
        let (element, dims) = declared_dims(i).unwrap_or((ElementType::Undefined, vec![]));
        Input {
            name: i.name().to_owned(),
            r#type: element.name(),
            shape: dims.into_iter().map(|d| (d >= 0).then_some(d)).collect(),
            classes: None,
            ignore: None,
        }
    };
    inputs.map(input).collect()
}

/// The element type and the sizes of a declared tensor; a size that is no number is -1.
fn declared_dims(info: &ValueInfoProto) -> Option<(ElementType, Vec<i64>)> {
    let fact = graph::fact_of_type(info.r#type.as_ref(), &Dims::default());
    let dims = fact.shape?.iter().map(|d| d.known().unwrap_or(-1)).collect();
    Some((fact.element?, dims))
}

/// The outputs of the model that need no inputs but the `known` ones: a user of the step has no other data.
fn computable(model: &ModelProto, outputs: Vec<String>, known: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let loaded = load(model)?;
    let selection = Selection::new(&loaded);
    let inputs: Vec<ValueId> = loaded.graph.scope(Graph::MAIN).inputs.clone();
    let possible = |output: &String| {
        let ys: Vec<ValueId> = loaded.names.get(output.as_str()).copied().into_iter().collect();
        selection.reaching(&inputs, &ys).into_iter().all(|v| known(&selection.name(v)))
    };
    Ok(outputs.into_iter().filter(possible).collect())
}

fn parameter(t: &Trained, s: &Slot) -> manifest::Parameter {
    manifest::Parameter {
        name: s.name.clone(),
        source: match &t.adapter {
            Some(a) => Source::Lora { of: a.weight.clone() },
            None => t.weight.source.clone(),
        },
        model_type: t.weight.value.element_type().name(),
        gradient: s.gradient.clone(),
        sum: s.sum[0].clone(),
        next_sum: s.sum[1].clone(),
        learning_rate: s.rate,
        weight_decay: s.decay,
    }
}

fn describe(spec: &LossSpec) -> String {
    let output = spec.output.as_ref().map(|o| format!(":{o}")).unwrap_or_default();
    let weight = if spec.weight == 1.0 { String::new() } else { format!("{}*", spec.weight) };
    let formula = losses::find(&spec.kind).map(|l| format!(" = {}", l.formula)).unwrap_or_default();
    format!("{weight}{}{output}{formula}", spec.kind)
}
