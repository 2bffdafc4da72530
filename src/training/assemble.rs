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
    /// The same in the modes of inference.
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
        let mut order: Vec<String> = plan.losses.iter().filter_map(|l| l.labels.clone()).collect();
        order.extend([plan.rate.0.clone(), plan.step[0].clone()]);
        order.extend(feeds.iter().map(|f| f.input.clone()).filter(|n| *n != plan.step[0]));
        order.extend(plan.slots.iter().flat_map(|s| [s.sum[0].clone(), s.gradient.clone()]));
        let mut reserved = order.clone();
        reserved.extend(feeds.iter().map(|f| f.output.clone()));
        reserved.extend(plan.slots.iter().map(|s| s.sum[1].clone()));
        reserved.extend(plan.metrics.iter().map(|(_, name)| name.clone()).chain(plan.norm.clone()));
        reserved.push(plan.loss.clone());
        let places: HashMap<&str, usize> = feeds.iter().enumerate().map(|(i, f)| (f.output.as_str(), i)).collect();
        let place = |name: &str| places.get(name).copied().unwrap_or(usize::MAX);

        let mut models = Vec::new();
        let mut budgets: HashMap<&str, Report> = HashMap::new();
        let forward = Forward::new(training, reserved.iter().cloned())?.within(plan.memory_budget.clone());
        let total = forward.total(&plan, &outputs)?;
        let labels = total.labels.clone();
        decisions.extend(total.decisions.iter().cloned());
        let mut metrics: Vec<String> = total.metrics.iter().map(|(_, n)| n.clone()).collect();
        for (spec, name) in &plan.metrics {
            let found = metrics.iter().any(|m| m == name || m.strip_prefix(name).is_some_and(|m| m.starts_with('/')));
            let of = spec.output.as_ref().map(|o| format!(" of '{o}'")).unwrap_or_default();
            ensure!(found || !plan.insists, "no loss{of} has the metric {}", spec.kind);
        }
        metrics.extend(plan.norm.clone());
        let gradients = forward.gradients(&plan, total.loss)?;
        let statistics = || forward.statistics(&plan, &gradients);
        let (mut next, norm) = forward.update(&plan, &gradients)?;
        next.extend(statistics()?);
        next.sort_by_key(|(_, name)| place(name));
        let step = scalars(&total, &plan).into_iter().chain(plan.norm.clone().map(|n| (norm, n))).chain(next);
        models.push(("train", forward.write(step.collect(), &[], &order)?));
        budgets.extend(forward.memory().map(|report| ("train", report)));
        let mut own = scalars(&total, &plan);
        own.extend(gradients.iter().copied().zip(plan.slots.iter().map(|s| s.gradient.clone())));
        own.extend(statistics()?);
        models.push(("gradients", forward.write(own, &[], &order)?));
        budgets.extend(forward.memory().map(|report| ("gradients", report)));
        if plan.accumulate > 1 {
            let mut sums = scalars(&total, &plan);
            sums.extend(forward.accumulated(&plan, &gradients));
            sums.extend(statistics()?);
            models.push(("accumulate", forward.write(sums, &[], &order)?));
            budgets.extend(forward.memory().map(|report| ("accumulate", report)));
        }

        let mut empty = inference.proto.clone();
        empty.functions.clear();
        empty.graph = Some(GraphProto { name: Some("apply".to_owned()), ..Default::default() });
        let half = Forward::new(empty, reserved.iter().cloned())?;
        let (mut next, norm) = half.update(&plan, &half.given(&plan))?;
        next.sort_by_key(|(_, name)| place(name));
        let apply = plan.norm.clone().map(|n| (norm, n)).into_iter().chain(next);
        models.push(("apply", half.write(apply.collect(), &[], &order)?));

        let data = data(&models, &order);
        let forward = Forward::new(evaluation, reserved)?;
        let total = forward.total(&plan, &outputs)?;
        let known = |n: &str| data.iter().any(|i| i.name == n) || order.iter().any(|o| o == n);
        let kept = computable(&inference.proto, outputs, known)?;
        models.push(("evaluate", forward.write(scalars(&total, &plan), &kept, &order)?));
        for (role, model) in &mut models {
            model.producer_name = Some("onnx-gradients".to_owned());
            if let Some(graph) = &mut model.graph {
                graph.doc_string = Some(format!("{role}: see {}", manifest::FILE));
            }
        }
        let mut adapters: Vec<Adapter> = trained.iter().filter_map(|t| t.adapter.clone()).collect();
        adapters.dedup();
        let manifest = Manifest {
            format: Manifest::FORMAT,
            models: (models.iter())
                .map(|(role, model)| ModelFile { memory: budgets.remove(role), ..model_file(role, model) })
                .collect(),
            inference: INFERENCE_FILE.to_owned(),
            initial_state: STATE_FILE.to_owned(),
            data,
            labels,
            learning_rate: Input {
                name: plan.rate.0.clone(),
                r#type: plan.rate.1.name(),
                shape: vec![],
                classes: None,
                ignore: None,
            },
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
        let models = models.into_iter().map(|(role, model)| (role.to_owned(), model)).collect();
        let gradient = |p: &manifest::Parameter| Gradient { x: p.name.clone(), name: Some(p.gradient.clone()) };
        let record = Record {
            name: "trainable".to_owned(),
            gradients: manifest.parameters.iter().map(gradient).collect(),
            seeds: vec![SeedOf { y: plan.loss.clone(), seed: None, fill: Some(1.0) }],
            stops: plan.stops.clone(),
            straight_through: plan.straight_through,
        };
        Ok(Artifacts { models, inference, state, manifest, record })
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
fn data(models: &[(&str, ModelProto)], order: &[String]) -> Vec<Input> {
    let step = models.iter().find(|(role, _)| *role == "train").and_then(|(_, m)| m.graph.as_ref());
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

fn model_file(role: &str, model: &ModelProto) -> ModelFile {
    let names = |v: &[ValueInfoProto]| v.iter().map(|v| v.name().to_owned()).collect();
    ModelFile {
        role: role.to_owned(),
        file: format!("{role}.onnx"),
        inputs: model.graph.as_ref().map(|g| names(&g.input)).unwrap_or_default(),
        outputs: model.graph.as_ref().map(|g| names(&g.output)).unwrap_or_default(),
        memory: None,
    }
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
