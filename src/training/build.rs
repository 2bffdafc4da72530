//! The choices that follow from a request and a model: which weights, which inputs, what is said of it.

use super::artifacts::Artifacts;
use super::assemble::Parts;
use super::losses::{self, LossSpec};
use super::modes::{self, Constants};
use super::optimizers::{self, Hyper};
use super::parameters::{self, SCOPE, Trained};
use super::plan::{Plan, Scaling};
use super::request::Trainable;
use super::select::{self, Chosen, Entry, Weight};
use super::{lora, loss_model, metrics, step};
use crate::Error;
use crate::backward::Selection;
use crate::expr::rewrite::Rewrite;
use crate::graph::{Loaded, Node, ValueId};
use crate::model::Model;
use crate::onnx::bodies::take_out_constants;
use crate::onnx::inline::inline_functions;
use crate::onnx::{ElementType, GraphProto, ModelProto, Names, file};
use crate::rules::{self, Integers, OPERATORS, load};
use crate::weights::{Kind, listed};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A model that is to be trained, with its losses.
struct Subject {
    /// The model as it was, its weights in memory.
    inference: Model,
    /// The model without functions and defaults of inputs, and with the loss model.
    base: ModelProto,
    loaded: Loaded,
    losses: Vec<LossSpec>,
    /// The model's own outputs.
    outputs: Vec<String>,
    /// The tensors that the losses are of.
    ys: Vec<ValueId>,
    /// What the loss model has been connected to.
    connected: Option<String>,
    /// The constants that bodies of control flow held before.
    taken: Vec<String>,
}

impl Trainable {
    /// Makes a model trainable.
    ///
    /// # Errors
    /// Names and patterns of nothing, outputs that a loss cannot be computed from, operators without a gradient.
    pub fn build(&self, model: &Model) -> Result<Artifacts, Error> {
        self.built(model).map_err(|e| Error::from(e).in_file(model.file.clone()))
    }

    fn built(&self, model: &Model) -> Result<Artifacts> {
        let subject = self.subject(model)?;
        let constants: Constants<'_> = subject.base.graph.iter().flat_map(GraphProto::constants).collect();
        let dropouts = self.dropouts(&subject.base, &constants)?;
        let mut decisions = modes::decisions(&subject.base, self.batch_norm_train, &dropouts);
        let statistics = if self.batch_norm_train { modes::statistics(&subject.base, &constants)? } else { vec![] };
        let Chosen { weights, mut entries } = self.chosen(&subject, &statistics, &mut decisions)?;
        let trained = self.trained(&weights, &mut decisions)?;
        self.count(&trained, &mut entries, &mut decisions);

        let mut names = subject.base.names();
        let mut plan = self.plan(&subject, &trained, &mut names, &mut decisions)?;
        let next = statistics.iter().map(|s| [s.clone(), format!("{SCOPE}/{s}"), format!("next/{s}")]);
        plan.statistics = next.map(|[s, inner, next]| [s, names.fresh(inner), names.fresh(next)]).collect();
        let reserved: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let (evaluation, rewrite) = self.opened(&subject.base, &trained, &statistics)?;
        let evaluation = applied(evaluation, rewrite.reserve(reserved.iter().cloned()))?;
        let (training, rewrite) = self.opened(&subject.base, &trained, &statistics)?;
        let training = self.in_training(training, rewrite.reserve(reserved), &plan, &dropouts)?;
        let Subject { inference, outputs, .. } = subject;
        Parts { inference, training, evaluation, plan, trained, entries, outputs, decisions }.assemble()
    }

    /// Reads the request's model and its losses.
    fn subject(&self, model: &Model) -> Result<Subject> {
        let mut inference = model.clone();
        if let Some(folder) = &model.folder {
            file::load_external_kept(&mut inference.proto, folder)?;
            inference.folder = None;
        }
        let taken = take_out_constants(&mut inference.proto);
        let mut base = inline_functions(&inference.proto, &|_| true)?;
        // Where elements lay belongs to the model as it was alone.
        file::forget_external(&mut base);
        base.functions.clear();
        // An input that has a default is a constant: nobody is asked for it.
        base.graph.iter_mut().for_each(GraphProto::close_defaults);
        let mut losses = self.losses.clone();
        let mut connected = None;
        if let Some(loss) = &self.loss_model {
            let (name, said) = loss_model::attach(&mut base, loss).context("--loss-model")?;
            losses.push(LossSpec::new(&name));
            connected = Some(said);
        }
        let loaded = load(&base)?;
        let outputs: Vec<String> = base.graph.iter().flat_map(|g| &g.output).map(|o| o.name().to_owned()).collect();
        // A model with several outputs has its loss at the one that holds floating-point numbers, if there is only one.
        let element = |name: &str| loaded.graph.fact(*loaded.names.get(name)?).element;
        let mut floats = outputs.iter().filter(|o| element(o).is_none_or(ElementType::is_float));
        if let (Some(only), None, true) = (floats.next(), floats.next(), outputs.len() > 1) {
            let of_table = losses.iter_mut().filter(|s| s.output.is_none() && losses::find(&s.kind).is_some());
            of_table.for_each(|spec| spec.output = Some(only.clone()));
        }
        let ys = self.outputs(&losses, &loaded, &outputs)?;
        Ok(Subject { inference, base, loaded, losses, outputs, ys, connected, taken })
    }

    /// The weights that are trained, and what becomes of the others.
    fn chosen(&self, subject: &Subject, statistics: &[String], decisions: &mut Vec<String>) -> Result<Chosen> {
        let Subject { inference, base, loaded, ys, connected, .. } = subject;
        let taken: HashSet<&str> = subject.taken.iter().map(String::as_str).collect();
        // What the loss model holds, and what lies inside functions, cannot be put back into the model.
        let nodes = inference.proto.graph.iter().flat_map(|g| &g.node);
        let mut own: HashSet<&str> = nodes.flat_map(|n| &n.output).map(String::as_str).collect();
        own.extend(inference.proto.graph.iter().flat_map(|g| &g.initializer).map(|t| t.name()));
        let all = select::tensors(base, loaded, ys).into_iter().filter(|t| !statistics.contains(&t.name));
        let (tensors, lost): (Vec<_>, Vec<_>) =
            all.partition(|t| t.kind == Kind::Inside || own.contains(t.name.as_str()));
        let scope = format!("{}/", loss_model::SCOPE);
        let lost = lost.iter().filter(|t| t.kind == Kind::Weight && !t.name.starts_with(&scope));
        let of = |kind| tensors.iter().filter(move |t| t.kind == kind).map(|t| t.name.as_str());
        let integers = "integers of a quantized weight, so not trained (--lora trains matrices beside it)";
        let said = [
            (lost.map(|t| t.name.as_str()).collect::<Vec<_>>(), "inside functions, so not trained"),
            (of(Kind::Inside).collect(), "inside bodies of control flow, so not trained"),
            (
                of(Kind::Integers).collect(),
                if self.lora.is_some() { "integers, which stay as they are" } else { integers },
            ),
            (of(Kind::Constant).collect(), "constants by their place, not weights, so not trained; --train names them"),
        ];
        let said: Vec<String> = (said.iter().filter(|(names, _)| !names.is_empty()))
            .map(|(names, what)| format!("{}: {what}", listed(names)))
            .collect();
        let find = |name: &str| self.lora.and_then(|_| lora::beside(base.graph.as_ref()?, loaded, name));
        let chosen = self.choice.select(base, tensors, &find)?;
        decisions.extend(said);
        decisions.extend(connected.clone());
        let taken: Vec<&str> =
            chosen.weights.iter().map(|w| &w.name).filter(|n| taken.contains(n.as_str())).map(String::as_str).collect();
        if !taken.is_empty() {
            let what = "taken out of bodies of control flow, which use them as initializers of the graph from now on";
            decisions.push(format!("{}: {what}", listed(&taken)));
        }
        decisions.extend(copies(&chosen.weights));
        decisions.extend(self.rounding(loaded, &chosen.weights, ys));
        Ok(chosen)
    }

    /// Says how many weights are trained, and which of them are not after all.
    fn count(&self, trained: &[Trained], entries: &mut [Entry], decisions: &mut Vec<String>) {
        let own: HashSet<&str> = trained.iter().map(|t| t.weight.name.as_str()).collect();
        for entry in entries.iter_mut().filter(|e| e.trained && !own.contains(e.name.as_str())) {
            entry.trained = false;
            entry.why += "; no matrix of a product, so it has no LoRA";
        }
        let weights = entries.iter().filter(|e| e.kind == Kind::Weight || e.trained).count();
        let what = if self.lora.is_some() { "get LoRA matrices, which are trained" } else { "are trained" };
        decisions.insert(0, format!("{} of {weights} weights {what}", own.len()));
    }

    /// The tensors that are dropped out in training, with the ratios.
    fn dropouts(&self, base: &ModelProto, constants: &Constants<'_>) -> Result<Vec<(String, f64)>> {
        let mut dropouts = self.dropouts.clone();
        if self.own_dropouts {
            let own = modes::own_dropouts(base, constants);
            ensure!(
                !own.is_empty() || !dropouts.is_empty(),
                "the model has no Dropout; name tensors as --dropout NAME=RATIO"
            );
            dropouts.extend(own.into_iter().filter(|(name, _)| !self.dropouts.iter().any(|(n, _)| n == name)));
        }
        for (name, ratio) in &dropouts {
            ensure!((0.0..1.0).contains(ratio), "the dropout ratio of '{name}' is not in 0 .. 1");
            let taken = base.graph.iter().flat_map(|g| &g.node).any(|n| n.takes(name));
            ensure!(taken, "no node takes '{name}', so dropping it out changes nothing");
        }
        Ok(dropouts)
    }

    /// What all models of the training have in common, with names that nothing has.
    fn plan(
        &self,
        subject: &Subject,
        trained: &[Trained],
        names: &mut Names,
        decisions: &mut Vec<String>,
    ) -> Result<Plan> {
        let optimizer = optimizers::find(&self.optimizer)?;
        let hyper = self.hyper.unwrap_or(optimizer.defaults());
        check_numbers(&hyper)?;
        let slots = self.slots(trained, optimizer, &hyper, names)?;
        let half = trained.iter().any(|t| t.weight.value.element_type() == ElementType::Float16);
        let scale = self.loss_scale.or(half.then_some(65536.0));
        if let Some(scale) = scale {
            ensure!(scale >= 1.0 && scale.is_finite(), "a loss scale is at least 1");
            decisions.push(format!(
                "the loss is scaled by {scale} at first; a step whose gradients overflow changes nothing but the scale"
            ));
        }
        let mut pair = |base: &str| [names.fresh(base.to_owned()), names.fresh(format!("next/{base}"))];
        let scaling = scale.map(|initial| Scaling { initial, scale: pair("loss_scale"), good: pair("good_steps") });
        let double = slots.iter().all(|s| s.element == ElementType::Double);
        let step = pair("step");
        let defaults = || vec!["accuracy".to_owned(), metrics::GRADIENT_NORM.to_owned()];
        let (measured, norm) = metrics::parse(self.metrics.clone().unwrap_or_else(defaults))?;
        let loss = if subject.outputs.iter().any(|o| o == "loss") { "total_loss" } else { "loss" };
        let mut plan = Plan {
            slots,
            losses: subject.losses.clone(),
            statistics: vec![],
            optimizer,
            hyper,
            preview: self.preview,
            clip_norm: self.clip_norm,
            clip_value: self.clip_value,
            scaling,
            accumulate: self.accumulate,
            metrics: metrics::named(measured, &mut |kind| names.fresh(kind.to_owned())),
            insists: self.metrics.is_some(),
            straight_through: self.straight_through,
            stops: self.stops(&subject.loaded)?,
            functions: self.functions.clone(),
            memory_budget: self.memory_budget.clone(),
            rate: (
                names.fresh("learning_rate".to_owned()),
                if double { ElementType::Double } else { ElementType::Float },
            ),
            step,
            loss: names.fresh(loss.to_owned()),
            norm: norm.then(|| names.fresh("gradient_norm".to_owned())),
        };
        name_labels(&mut plan.losses, &subject.outputs, names);
        Ok(plan)
    }

    /// The model in the modes of training: BatchNormalization and dropout.
    fn in_training(
        &self,
        mut model: ModelProto,
        mut rewrite: Rewrite<'_>,
        plan: &Plan,
        dropouts: &[(String, f64)],
    ) -> Result<ModelProto> {
        let updated: HashMap<String, String> =
            plan.statistics.iter().map(|[old, inner, _]| (old.clone(), inner.clone())).collect();
        if self.batch_norm_train {
            rewrite =
                rewrite.nodes(modes::is_batch_norm, move |here, node| modes::train_batch_norm(here, node, &updated));
        }
        if !dropouts.is_empty() {
            let graph = model.graph.as_mut().context("the model holds no graph")?;
            graph.input.push(parameters::input(&plan.step[0], ElementType::Int64, &[]));
        }
        for (site, (name, ratio)) in dropouts.iter().enumerate() {
            let (ratio, step) = (*ratio, plan.step[0].clone());
            rewrite = rewrite.behind(name, move |here, x| modes::drop_out(x, ratio, site, here.tensor(&step)?));
        }
        applied(model, rewrite)
    }

    /// The tensors that no gradient passes, their wildcards expanded.
    fn stops(&self, loaded: &Loaded) -> Result<Vec<String>> {
        let selection = Selection::new(loaded);
        let found = selection.find_all("--stop-gradients", &self.stops)?;
        Ok(found.into_iter().flatten().map(|id| selection.name(id)).collect())
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
                let names = names.join(", ");
                let what = format_args!("'{}' is neither a loss ({names}) nor a tensor of the model", spec.kind);
                return Err(Error::name(what).with_tensor(&spec.kind).into());
            }
            let name = if scalar { spec.kind.as_str() } else { step::output_of(spec, outputs)? };
            let selection = Selection::new(loaded);
            let mut found = vec![name.to_owned()];
            found.extend(spec.other.clone());
            let found = selection.find("loss", &found)?;
            if let Some(element) = found.first().and_then(|&y| loaded.graph.fact(y).element).filter(|e| !e.is_float()) {
                bail!("'{name}' is of type {}: a loss is of floating-point numbers", element.name());
            }
            ys.extend(found);
        }
        Ok(ys)
    }

    /// What the report says of rounding between the weights and the loss.
    fn rounding(&self, loaded: &Loaded, chosen: &[Weight], ys: &[ValueId]) -> Option<String> {
        let weights: Vec<ValueId> = chosen.iter().filter_map(|w| loaded.names.get(w.name.as_str()).copied()).collect();
        let rounds = |node: &Node| rules::row(&loaded.graph, node).is_some_and(|r| r.integers == Integers::Rounded);
        let found = Selection::new(loaded).between(&weights, ys, &rounds);
        let mut found: Vec<String> = found.iter().map(|name| name.to_string()).collect();
        found.sort_unstable();
        let list = listed(&found);
        (!found.is_empty()).then(|| match self.straight_through {
            true => format!(
                "rounding to integers between weights and loss ({list}) counts as the identity for gradients \
                 (--rounding true: they stop there)"
            ),
            false => format!(
                "gradients stop at the rounding to integers between weights and loss ({list}): nothing before it \
                 is trained (--rounding straight-through: they pass)"
            ),
        })
    }
}

/// The model with the changes made.
fn applied(mut model: ModelProto, rewrite: Rewrite<'_>) -> Result<ModelProto> {
    rewrite.apply(&mut model, OPERATORS)?;
    Ok(model)
}

fn check_numbers(h: &Hyper) -> Result<()> {
    let share = |v: f64| (0.0..1.0).contains(&v);
    ensure!(share(h.momentum) && share(h.beta1) && share(h.beta2), "momentum and betas are from 0 to below 1");
    ensure!(h.epsilon > 0.0 && h.epsilon.is_finite(), "epsilon is above 0");
    ensure!(h.weight_decay >= 0.0 && h.weight_decay.is_finite(), "the weight decay is not below 0");
    Ok(())
}

/// What is said of weights that look like copies of one: exporters that fold constants write a class token once for
/// each sample of the batch that they trace with, and a tied matrix once for each place. Weights that were learned one
/// by one are never equal; those that training begins with may be, all ones or zeros.
fn copies(weights: &[Weight]) -> Vec<String> {
    let mut equal: BTreeMap<(&[i64], Vec<u64>), Vec<&str>> = BTreeMap::new();
    let mut said = Vec::new();
    let own = weights.iter().filter(|w| w.beside.is_none() && w.value.element_count() > Some(1));
    for weight in own {
        let Ok(values) = weight.value.floats() else { continue };
        if values.iter().all(|v| Some(v) == values.first()) {
            continue;
        }
        if let [count, _, ..] = *weight.value.dims
            && count > 1
        {
            let mut rows = values.chunks_exact((values.len() / count as usize).max(1));
            let first = rows.next();
            if rows.all(|row| Some(row) == first) {
                said.push(format!(
                    "'{}' holds the same numbers {count} times along its first axis, like a weight that was copied for a batch \
                     of {count}: each copy is trained by itself; an export with a free batch size has it once",
                    weight.name
                ));
            }
        }
        // Enough of it to tell, and a sum of all.
        let mut key: Vec<u64> = values.iter().take(64).map(|v| v.to_bits()).collect();
        key.push(values.iter().sum::<f64>().to_bits());
        equal.entry((&weight.value.dims, key)).or_default().push(&weight.name);
    }
    let alike = equal.into_values().filter(|names| names.len() > 1);
    said.extend(alike.map(|names| {
        let names = listed(&names);
        format!(
            "{names} hold the same numbers, like copies of one weight: each is trained by itself, so they will differ"
        )
    }));
    said
}

/// Gives the targets of each loss a name, where none is given.
fn name_labels(losses: &mut [LossSpec], outputs: &[String], names: &mut Names) {
    let several = losses.len() > 1;
    for spec in losses.iter_mut().filter(|s| s.labels.is_none() && losses::find(&s.kind).is_some()) {
        let base = match (several, step::output_of(spec, outputs)) {
            (true, Ok(output)) => format!("labels/{output}"),
            _ => "labels".to_owned(),
        };
        spec.labels = Some(names.fresh(base));
    }
}
