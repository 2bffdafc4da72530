//! From an inference model to a trainable one: losses, gradients and an optimizer's step, as plain models.
//!
//! A [`Trainable`] is a request; its [`Artifacts`] are models that any runtime runs, a manifest that says which output feeds
//! which input, and the initial state. [`export`] puts weights back into the model that they come from.

#[cfg(feature = "validate")]
pub mod data;
mod draft;
pub mod export;
pub mod lora;
mod loss_model;
pub mod losses;
pub mod manifest;
pub mod modes;
pub mod optimizers;
pub mod select;
pub mod state;
pub mod step;
#[cfg(feature = "validate")]
pub mod trainer;

pub use losses::LossSpec;
pub use manifest::Manifest;

use crate::backward::Selection;
use crate::graph::{Loaded, Node, ValueId, load};
use crate::model::Model;
use crate::onnx::inline::inline_functions;
use crate::onnx::{ElementType, ModelProto, TensorProto, file};
use crate::rules::{self, Integers};
use anyhow::{Context, Result, bail, ensure};
use draft::Draft;
use lora::Adapter;
use manifest::{Feed, Input, ModelFile, OptimizerEntry};
use optimizers::Hyper;
use select::{Choice, Source, Weight, is_match};
use state::{Random, State};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use step::{Forward, Plan, Scaling, Slot};

/// A request for a trainable model.
#[derive(Clone, Debug)]
pub struct Trainable {
    losses: Vec<LossSpec>,
    loss_model: Option<ModelProto>,
    choice: Choice,
    optimizer: String,
    hyper: Option<Hyper>,
    preview: bool,
    no_decay: Vec<String>,
    groups: Vec<(String, f64)>,
    clip_norm: Option<f64>,
    clip_value: Option<f64>,
    accumulate: usize,
    metrics: bool,
    batch_norm_train: bool,
    dropouts: Vec<(String, f64)>,
    own_dropouts: bool,
    lora: Option<(i64, f64)>,
    loss_scale: Option<f64>,
    straight_through: bool,
    seed: u64,
}

/// A trainable model.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The models by their role.
    pub models: Vec<(String, ModelProto)>,
    /// The model as it was.
    pub inference: Model,
    /// The value that each fed tensor starts with.
    pub state: State,
    /// What belongs together.
    pub manifest: Manifest,
}

/// The file of the initial state.
const STATE_FILE: &str = "state.safetensors";
/// The file of the model as it was.
const INFERENCE_FILE: &str = "inference.onnx";

impl Default for Trainable {
    fn default() -> Self {
        Trainable::new([])
    }
}

impl Trainable {
    /// A request for the sum of these losses, with AdamW as PyTorch has it, for all weights.
    pub fn new(losses: impl IntoIterator<Item = LossSpec>) -> Self {
        Trainable {
            losses: losses.into_iter().collect(),
            loss_model: None,
            choice: Choice::default(),
            optimizer: "adamw".to_owned(),
            hyper: None,
            preview: false,
            no_decay: vec![],
            groups: vec![],
            clip_norm: None,
            clip_value: None,
            accumulate: 1,
            metrics: true,
            batch_norm_train: false,
            dropouts: vec![],
            own_dropouts: false,
            lora: None,
            loss_scale: None,
            straight_through: true,
            seed: 0,
        }
    }

    /// Adds a loss that another model computes: its inputs are tensors of the model by name, or new inputs; its first output
    /// is the loss.
    pub fn loss_model(mut self, model: &Model) -> Self {
        self.loss_model = Some(model.proto.clone());
        self
    }

    /// Which weights are trained.
    pub fn choose(mut self, choice: Choice) -> Self {
        self.choice = choice;
        self
    }

    /// The optimizer by name, and its numbers where they are not the defaults.
    pub fn optimizer(mut self, name: impl Into<String>, hyper: Option<Hyper>) -> Self {
        self.optimizer = name.into();
        self.hyper = hyper;
        self
    }

    /// Whether updates are operators of ai.onnx.preview.training, which few runtimes have, in the place of plain ones.
    pub fn preview(mut self, preview: bool) -> Self {
        self.preview = preview;
        self
    }

    /// Patterns of parameters that have no weight decay.
    pub fn no_decay<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.no_decay = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// Factors on the learning rate by pattern; the first that matches counts.
    pub fn groups(mut self, groups: impl IntoIterator<Item = (String, f64)>) -> Self {
        self.groups = groups.into_iter().collect();
        self
    }

    /// Bounds on the norm of all gradients together, and on each of their elements.
    pub fn clip(mut self, norm: Option<f64>, value: Option<f64>) -> Self {
        self.clip_norm = norm;
        self.clip_value = value;
        self
    }

    /// The number of micro-batches that make a step.
    pub fn accumulate(mut self, count: usize) -> Self {
        self.accumulate = count.max(1);
        self
    }

    /// Whether accuracy and the norm of the gradients come out beside the loss.
    pub fn metrics(mut self, metrics: bool) -> Self {
        self.metrics = metrics;
        self
    }

    /// Whether BatchNormalization is in training mode.
    pub fn train_batch_norm(mut self, train: bool) -> Self {
        self.batch_norm_train = train;
        self
    }

    /// Tensors that are dropped out, with the ratios; `own`: the model's own Dropout nodes are active too.
    pub fn dropout(mut self, sites: impl IntoIterator<Item = (String, f64)>, own: bool) -> Self {
        self.dropouts = sites.into_iter().collect();
        self.own_dropouts = own;
        self
    }

    /// Trains two thin matrices for each chosen weight in its place, of that rank, their product times alpha / rank.
    pub fn lora(mut self, rank: i64, alpha: f64) -> Self {
        self.lora = Some((rank, alpha));
        self
    }

    /// The scale that the loss starts with. Models of float16 have one of 65536 without it.
    pub fn loss_scale(mut self, scale: f64) -> Self {
        self.loss_scale = Some(scale);
        self
    }

    /// Whether gradients pass the rounding of quantized activations as if it were the identity, as they do without this.
    /// Otherwise they stop there, and what lies before it is not trained.
    pub fn straight_through(mut self, straight_through: bool) -> Self {
        self.straight_through = straight_through;
        self
    }

    /// What random initial values follow from.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Makes a model trainable.
    ///
    /// # Errors
    /// Names and patterns of nothing, outputs that a loss cannot be computed from, operators without a gradient.
    pub fn build(&self, model: &Model) -> Result<Artifacts> {
        let mut inference = model.clone();
        if let Some(folder) = &model.folder {
            file::load_external(&mut inference.proto, folder)?;
            inference.folder = None;
        }
        let mut base = inline_functions(&inference.proto, &|_| true)?;
        base.functions.clear();
        let mut losses = self.losses.clone();
        let mut connected = None;
        if let Some(loss) = &self.loss_model {
            let (name, said) = loss_model::attach(&mut base, loss).context("--loss-model")?;
            losses.push(LossSpec::new(&name));
            connected = Some(said);
        }
        let loaded = load(&base)?;
        let outputs: Vec<String> = base.graph.iter().flat_map(|g| &g.output).map(|o| o.name().to_owned()).collect();
        let ys = self.outputs(&losses, &loaded, &outputs)?;
        let mut weights = select::weights(&base, &loaded, &ys);
        // What the loss model holds, and what lies inside functions, cannot be put back into the model.
        let own = draft::constants(&inference.proto);
        let nodes = inference.proto.graph.iter().flat_map(|g| &g.node);
        let computed: HashSet<&str> = nodes.flat_map(|n| &n.output).map(String::as_str).collect();
        weights.retain(|w| own.contains_key(&w.name) || computed.contains(w.name.as_str()));
        let statistics = modes::statistics(&base, &loaded);
        let statistics = if self.batch_norm_train { statistics? } else { vec![] };
        weights.retain(|w| !statistics.contains(&w.name));
        let constants = draft::constants(&base);
        let mut dropouts = self.dropouts.clone();
        if self.own_dropouts {
            let own = modes::own_dropouts(&base, &constants);
            ensure!(
                !own.is_empty() || !dropouts.is_empty(),
                "the model has no Dropout; name tensors as --dropout NAME=RATIO"
            );
            dropouts.extend(own.into_iter().filter(|(name, _)| !self.dropouts.iter().any(|(n, _)| n == name)));
        }
        let mut decisions = modes::decisions(&base, self.batch_norm_train, &dropouts);
        let (chosen, said) = self.choice.select(weights)?;
        decisions.extend(said);
        decisions.extend(connected);
        decisions.extend(self.rounding(&loaded, &chosen, &ys));

        let mut names = Draft::new(base.clone());
        let trained = self.trained(&base, &chosen, &mut decisions)?;
        let optimizer = optimizers::find(&self.optimizer)?;
        let hyper = self.hyper.unwrap_or(optimizer.defaults());
        check_numbers(&hyper)?;
        let slots = self.slots(&trained, optimizer, &hyper, &mut names)?;
        let half = chosen.iter().any(|w| w.value.element_type() == ElementType::Float16);
        let scale = self.loss_scale.or(half.then_some(65536.0));
        if let Some(scale) = scale {
            ensure!(scale >= 1.0 && scale.is_finite(), "a loss scale is at least 1");
            decisions.push(format!(
                "the loss is scaled by {scale} at first; a step whose gradients overflow changes nothing but the scale"
            ));
        }
        let mut pair = |base: &str| -> [String; 2] { [names.unique(base), names.unique(&format!("next/{base}"))] };
        let scaling = scale.map(|_| Scaling { scale: pair("loss_scale"), good: pair("good_steps") });
        let double = slots.iter().all(|s| s.element == ElementType::Double);
        let step = pair("step");
        let fed: Vec<[String; 2]> =
            statistics.iter().map(|s| [s.clone(), names.unique(&format!("next/{s}"))]).collect();
        let mut plan = Plan {
            slots,
            losses,
            statistics: vec![],
            optimizer,
            hyper,
            preview: self.preview,
            clip_norm: self.clip_norm,
            clip_value: self.clip_value,
            scaling,
            accumulate: self.accumulate,
            metrics: self.metrics,
            straight_through: self.straight_through,
            rate: (names.unique("learning_rate"), if double { ElementType::Double } else { ElementType::Float }),
            step,
            loss: names.unique(if outputs.iter().any(|o| o == "loss") { "total_loss" } else { "loss" }),
            norm: names.unique("gradient_norm"),
            accuracy: names.unique("accuracy"),
        };
        let several = plan.losses.len() > 1;
        for spec in &mut plan.losses {
            if spec.labels.is_none() && losses::find(&spec.kind).is_some() {
                let base = match (several, step::output_of(spec, &outputs)) {
                    (true, Ok(output)) => format!("labels/{output}"),
                    _ => "labels".to_owned(),
                };
                spec.labels = Some(names.unique(&base));
            }
        }
        let mut training = self.prepared(names.clone(), &trained, &statistics)?;
        let updated = if self.batch_norm_train { modes::train_batch_norm(&mut training, &loaded)? } else { vec![] };
        plan.statistics = updated
            .into_iter()
            .map(|s| {
                let next = fed.iter().find(|[input, _]| *input == s.name).map(|[_, next]| next.clone());
                Ok([s.name.clone(), s.updated, next.context("a statistic without a name")?])
            })
            .collect::<Result<_>>()?;
        if !dropouts.is_empty() {
            training.input(&plan.step[0], ElementType::Int64, &[]);
            modes::drop_out(&mut training, &loaded, &dropouts, &plan.step[0])?;
        }
        let evaluation = self.prepared(names, &trained, &statistics)?;
        self.assemble(inference, training, evaluation, &plan, &trained, scale, &outputs, decisions)
    }

    /// The tensors that the losses are of.
    fn outputs(&self, losses: &[LossSpec], loaded: &Loaded, outputs: &[String]) -> Result<Vec<ValueId>> {
        ensure!(!losses.is_empty(), "no loss is given");
        let mut ys = Vec::new();
        for spec in losses {
            ensure!(spec.weight.is_finite(), "the weight of the loss {} is no number", spec.kind);
            let scalar = losses::find(&spec.kind).is_none() && loaded.names.contains_key(spec.kind.as_str());
            if losses::find(&spec.kind).is_none() && !scalar {
                let names: Vec<&str> = losses::LOSSES.iter().map(|l| l.name).collect();
                bail!("'{}' is neither a loss ({}) nor a tensor of the model", spec.kind, names.join(", "));
            }
            let name = if scalar { spec.kind.as_str() } else { step::output_of(spec, outputs)? };
            let selection = Selection::new(loaded);
            let mut found = vec![name.to_owned()];
            found.extend(spec.other.clone());
            ys.extend(selection.find("loss", &found)?);
        }
        Ok(ys)
    }

    /// What the report says of rounding between the weights and the loss.
    fn rounding(&self, loaded: &Loaded, chosen: &[Weight], ys: &[ValueId]) -> Option<String> {
        let weights: Vec<ValueId> = chosen.iter().filter_map(|w| loaded.names.get(w.name.as_str()).copied()).collect();
        let rounds = |node: &Node| {
            let rule = rules::find(&node.domain, &node.op_type, loaded.graph.opset(&node.domain));
            rule.is_some_and(|r| r.integers == Integers::Rounded)
        };
        let found = Selection::new(loaded).between(&weights, ys, &rounds);
        let mut found: Vec<&str> = found.iter().map(|name| &**name).collect();
        found.sort_unstable();
        let first = found.iter().take(3).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        let more = if found.len() > 3 { format!(" and {} more", found.len() - 3) } else { String::new() };
        (!first.is_empty()).then(|| match self.straight_through {
            true => format!(
                "rounding to integers between weights and loss ({first}{more}) counts as the identity for gradients \
                 (--rounding true: they stop there)"
            ),
            false => format!(
                "gradients stop at the rounding to integers between weights and loss ({first}{more}): nothing before it \
                 is trained (--rounding straight-through: they pass)"
            ),
        })
    }

    /// What is an input of the step, and how it gets into the model.
    fn trained(&self, base: &ModelProto, chosen: &[Weight], decisions: &mut Vec<String>) -> Result<Vec<Trained>> {
        let mut trained = Vec::new();
        let mut random = Random::new(self.seed);
        for weight in chosen {
            let element = weight.value.element_type();
            let master = if element == ElementType::Double { element } else { ElementType::Float };
            let Some((rank, alpha)) = self.lora else {
                if weight.source == Source::Dequantized {
                    decisions.push(format!(
                        "'{}' is quantized; its real values are trained, and rounded again by export",
                        weight.name
                    ));
                }
                let value = TensorProto::from_floats(master, &weight.value.dims, &weight.value.floats()?);
                trained.push(Trained { weight: weight.clone(), name: weight.name.clone(), value, adapter: None });
                continue;
            };
            ensure!((1..=1 << 16).contains(&rank) && alpha.is_finite(), "a LoRA rank is from 1 to 65536");
            match lora::adapter(weight, base, rank, alpha) {
                None => decisions
                    .push(format!("'{}' is no matrix of a product and has no LoRA: it is not trained", weight.name)),
                Some(adapter) => {
                    let [left, right] = adapter.initial(master, &mut random);
                    for (name, value) in [(&adapter.left, left), (&adapter.right, right)] {
                        let (weight, name) = (weight.clone(), name.clone());
                        trained.push(Trained { weight, name, value, adapter: Some(adapter.clone()) });
                    }
                }
            }
        }
        if chosen.iter().any(|w| matches!(w.value.element_type(), ElementType::Float16 | ElementType::Bfloat16)) {
            decisions
                .push("weights of 16 bits have float32 masters, which the step rounds before it uses them".to_owned());
        }
        ensure!(
            !trained.is_empty(),
            "none of the chosen weights is a matrix of a product, so there is nothing for LoRA"
        );
        Ok(trained)
    }

    fn slots(
        &self,
        trained: &[Trained],
        optimizer: &optimizers::Optimizer,
        hyper: &Hyper,
        names: &mut Draft,
    ) -> Result<Vec<Slot>> {
        for (pattern, factor) in &self.groups {
            ensure!(factor.is_finite(), "the factor of '{pattern}' is no number");
        }
        for pattern in self.no_decay.iter().chain(self.groups.iter().map(|(p, _)| p)) {
            ensure!(
                trained.iter().any(|t| is_match(pattern, &t.name)),
                "the pattern '{pattern}' matches no trained parameter"
            );
        }
        let slot = |t: &Trained| {
            let name = &t.name;
            if t.adapter.is_some() {
                names.unique(name);
            }
            let mut pair = |base: String| [names.unique(&base), names.unique(&format!("next/{base}"))];
            let states = optimizer.states.iter().map(|s| pair(format!("state/{s}/{name}"))).collect();
            let sum = pair(format!("sum/{name}"));
            let exempt = self.no_decay.iter().any(|p| is_match(p, name));
            Slot {
                name: name.clone(),
                element: t.value.element_type(),
                dims: t.value.dims.clone(),
                next: names.unique(&format!("next/{name}")),
                gradient: names.unique(&format!("gradient/{name}")),
                sum,
                states,
                rate: self.groups.iter().find(|(p, _)| is_match(p, name)).map_or(1.0, |(_, f)| *f),
                decay: if exempt { 0.0 } else { hyper.weight_decay },
            }
        };
        Ok(trained.iter().map(slot).collect())
    }

    /// The model with its parameters and statistics as inputs.
    fn prepared(&self, mut draft: Draft, trained: &[Trained], statistics: &[String]) -> Result<Draft> {
        let constants = draft::constants(&draft.model);
        for name in statistics {
            let value = constants.get(name).with_context(|| format!("'{name}' is no constant"))?;
            draft.remove(name);
            draft.input(name, value.element_type(), &value.dims);
        }
        for t in trained.iter().filter(|t| t.adapter.is_none()) {
            let name = &t.name;
            draft.remove(name);
            let inner = rounded(&mut draft, t);
            if inner != *name {
                draft.redirect(name, &inner);
            }
        }
        for pair in trained.iter().filter(|t| t.adapter.is_some()).collect::<Vec<_>>().chunks(2) {
            let [left, right] = pair else { continue };
            let (l, r) = (rounded(&mut draft, left), rounded(&mut draft, right));
            if let Some(adapter) = &left.adapter {
                adapter.attach(&mut draft, &l, &r, left.weight.value.element_type());
            }
        }
        Ok(draft)
    }

    #[allow(clippy::too_many_arguments)]
    fn assemble(
        &self,
        inference: Model,
        training: Draft,
        evaluation: Draft,
        plan: &Plan,
        trained: &[Trained],
        scale: Option<f64>,
        outputs: &[String],
        mut decisions: Vec<String>,
    ) -> Result<Artifacts> {
        let labels = |plan: &Plan| plan.losses.iter().filter_map(|l| l.labels.clone()).collect::<Vec<_>>();
        let mut order = labels(plan);
        order.push(plan.rate.0.clone());
        order.push(plan.step[0].clone());
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
                feed([input, output], "optimizer", zeros(slot));
            }
        }
        let constants = draft::constants(&inference.proto);
        for [name, _, next] in &plan.statistics {
            let value = constants.get(name).with_context(|| format!("'{name}' is no constant"))?;
            let value = TensorProto::from_floats(value.element_type(), &value.dims, &value.floats()?);
            feed([name, next], "statistic", value);
        }
        let counter = |n| TensorProto::from_ints(ElementType::Int64, &[], &[n]);
        feed([&plan.step[0], &plan.step[1]], "counter", counter(0));
        if let (Some(s), Some(scale)) = (&plan.scaling, scale) {
            feed([&s.scale[0], &s.scale[1]], "loss_scale", TensorProto::from_floats(ElementType::Float, &[], &[scale]));
            feed([&s.good[0], &s.good[1]], "counter", counter(0));
        }
        order.extend(feeds.iter().map(|f| f.input.clone()).filter(|n| *n != plan.step[0]));
        order.extend(plan.slots.iter().flat_map(|s| [s.sum[0].clone(), s.gradient.clone()]));

        let mut reserved = order.clone();
        reserved.extend(feeds.iter().map(|f| f.output.clone()));
        reserved.extend(plan.slots.iter().map(|s| s.sum[1].clone()));
        reserved.extend([plan.loss.clone(), plan.norm.clone(), plan.accuracy.clone()]);

        let mut models = Vec::new();
        let forward = Forward::new(training.finish()?, reserved.iter().cloned())?;
        let total = forward.total(plan, outputs)?;
        decisions.extend(total.decisions.iter().cloned());
        let gradients = forward.gradients(plan, total.loss)?;
        let (next, norm) = forward.update(plan, &gradients)?;
        let statistics = || forward.statistics(plan);
        let loss = || {
            let mut outputs = vec![(total.loss, plan.loss.clone())];
            outputs.extend(total.metrics.iter().cloned());
            outputs
        };
        let mut metrics: Vec<String> = total.metrics.iter().map(|(_, n)| n.clone()).collect();
        let mut step = loss();
        if plan.metrics {
            step.push((norm, plan.norm.clone()));
            metrics.push(plan.norm.clone());
        }
        let mut next: Vec<_> = next.into_iter().chain(statistics()?).collect();
        let places: HashMap<&str, usize> = feeds.iter().enumerate().map(|(i, f)| (f.output.as_str(), i)).collect();
        let place = |name: &str| places.get(name).copied().unwrap_or(usize::MAX);
        next.sort_by_key(|(_, name)| place(name));
        step.extend(next);
        models.push(("train", forward.write(step, &[], &order)?));
        let mut own = loss();
        own.extend(gradients.iter().copied().zip(plan.slots.iter().map(|s| s.gradient.clone())));
        own.extend(statistics()?);
        models.push(("gradients", forward.write(own, &[], &order)?));
        if plan.accumulate > 1 {
            let mut sums = loss();
            sums.extend(forward.accumulated(plan, &gradients));
            sums.extend(statistics()?);
            models.push(("accumulate", forward.write(sums, &[], &order)?));
        }
        let labels = total.labels.clone();

        let mut empty = inference.proto.clone();
        empty.functions.clear();
        empty.graph = Some(crate::onnx::GraphProto { name: Some("apply".to_owned()), ..Default::default() });
        let half = Forward::new(empty, reserved.iter().cloned())?;
        let (mut next, norm) = half.update(plan, &half.given(plan))?;
        next.sort_by_key(|(_, name)| place(name));
        if plan.metrics {
            next.insert(0, (norm, plan.norm.clone()));
        }
        models.push(("apply", half.write(next, &[], &order)?));

        let forward = Forward::new(evaluation.finish()?, reserved)?;
        let total = forward.total(plan, outputs)?;
        let mut results = vec![(total.loss, plan.loss.clone())];
        results.extend(total.metrics.iter().cloned());
        // An output that needs more data than the step is none that a user of the step can have.
        let needed = data(&models, &order);
        let loaded = load(&inference.proto)?;
        let selection = crate::backward::Selection::new(&loaded);
        let inputs: Vec<ValueId> = loaded.graph.scope(crate::graph::Graph::MAIN).inputs.clone();
        let possible = |o: &&String| {
            let ys: Vec<ValueId> = loaded.names.get(o.as_str()).copied().into_iter().collect();
            let mut names = selection.reaching(&inputs, &ys).into_iter().map(|v| selection.name(v));
            names.all(|n| needed.iter().any(|i| i.name == n) || order.contains(&n))
        };
        let kept: Vec<String> = outputs.iter().filter(possible).cloned().collect();
        models.push(("evaluate", forward.write(results, &kept, &order)?));
        for (role, model) in &mut models {
            model.producer_name = Some("onnx-gradients".to_owned());
            if let Some(graph) = &mut model.graph {
                graph.doc_string = Some(format!("{role}: see {}", manifest::FILE));
            }
        }

        let data = data(&models, &order);
        let file = |(role, model): &(&str, ModelProto)| {
            let graph = model.graph.clone().unwrap_or_default();
            let names = |v: &[crate::onnx::ValueInfoProto]| v.iter().map(|v| v.name().to_owned()).collect();
            ModelFile {
                role: (*role).to_owned(),
                file: format!("{role}.onnx"),
                inputs: names(&graph.input),
                outputs: names(&graph.output),
            }
        };
        let parameter = |(t, s): (&Trained, &Slot)| manifest::Parameter {
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
        };
        let mut adapters: Vec<Adapter> = trained.iter().filter_map(|t| t.adapter.clone()).collect();
        adapters.dedup();
        let manifest = Manifest {
            format: Manifest::FORMAT,
            models: models.iter().map(file).collect(),
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
            parameters: trained.iter().zip(&plan.slots).map(parameter).collect(),
            state: feeds,
            lora: adapters,
            decisions,
        };
        let models = models.into_iter().map(|(role, model)| (role.to_owned(), model)).collect();
        Ok(Artifacts { models, inference, state, manifest })
    }
}

/// A parameter on its way into the step.
struct Trained {
    weight: Weight,
    /// The input.
    name: String,
    /// What it starts with, in the type of the input.
    value: TensorProto,
    adapter: Option<Adapter>,
}

/// Makes a parameter an input, and returns the tensor of the model's own type that nodes take.
fn rounded(draft: &mut Draft, t: &Trained) -> String {
    let (element, master) = (t.weight.value.element_type(), t.value.element_type());
    draft.input(&t.name, master, &t.value.dims);
    if element == master {
        t.name.clone()
    } else {
        let to = crate::onnx::attribute::int("to", element as i64);
        draft.first("Cast", &[&t.name], &format!("{}/rounded", t.name), vec![to])
    }
}

fn zeros(slot: &Slot) -> TensorProto {
    let count = slot.dims.iter().product::<i64>().max(0) as usize;
    TensorProto::from_floats(slot.element, &slot.dims, &vec![0.0; count])
}

/// The inputs of the step that are none of those in `order`: the data.
fn data(models: &[(&str, ModelProto)], order: &[String]) -> Vec<Input> {
    let step = models.iter().find(|(role, _)| *role == "train").and_then(|(_, m)| m.graph.as_ref());
    let order: HashSet<&str> = order.iter().map(String::as_str).collect();
    let inputs = step.iter().flat_map(|g| &g.input).filter(|i| !order.contains(i.name()));
    let input = |i: &crate::onnx::ValueInfoProto| {
        let (element, dims) = draft::declared_dims(i).unwrap_or((ElementType::Undefined, vec![]));
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

fn describe(spec: &LossSpec) -> String {
    let output = spec.output.as_ref().map(|o| format!(":{o}")).unwrap_or_default();
    let weight = if spec.weight == 1.0 { String::new() } else { format!("{}*", spec.weight) };
    let formula = losses::find(&spec.kind).map(|l| format!(" = {}", l.formula)).unwrap_or_default();
    format!("{weight}{}{output}{formula}", spec.kind)
}

fn check_numbers(h: &Hyper) -> Result<()> {
    let share = |v: f64| (0.0..1.0).contains(&v);
    ensure!(share(h.momentum) && share(h.beta1) && share(h.beta2), "momentum and betas are from 0 to below 1");
    ensure!(h.epsilon > 0.0 && h.epsilon.is_finite(), "epsilon is above 0");
    ensure!(h.weight_decay >= 0.0 && h.weight_decay.is_finite(), "the weight decay is not below 0");
    Ok(())
}

impl Artifacts {
    /// Writes everything into a folder, all or nothing: beside its place first, then renamed.
    ///
    /// # Errors
    /// The folder exists and is not to be replaced, or cannot be written.
    pub fn write(&self, folder: &Path, force: bool) -> Result<()> {
        ensure!(force || !folder.exists(), "{} exists already; --force replaces it", folder.display());
        let ours = !folder.exists() || folder.join(manifest::FILE).exists() || is_empty(folder);
        ensure!(ours, "{} holds something else than a trainable model; choose another name", folder.display());
        let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".onnx-gradients-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let place = builder
            .tempdir_in(parent)
            .with_context(|| format!("cannot write into the folder '{}'", parent.display()))?;
        for ((_, model), entry) in self.models.iter().zip(&self.manifest.models) {
            file::write(model, &place.path().join(&entry.file), Default::default())?;
        }
        file::write(&self.inference.proto, &place.path().join(INFERENCE_FILE), Default::default())?;
        state::write(&place.path().join(STATE_FILE), &self.state, None, false)?;
        let text = serde_json::to_string_pretty(&self.manifest)?;
        std::fs::write(place.path().join(manifest::FILE), text + "\n")?;
        if folder.exists() {
            std::fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        std::fs::rename(place.keep(), folder).with_context(|| folder.display().to_string())
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
