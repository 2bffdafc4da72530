//! The choices that follow from a request and a model: which weights, which inputs, what is said of it.

use super::artifacts::Artifacts;
use super::assemble::Parts;
use super::draft::{self, Draft};
use super::losses::{self, LossSpec};
use super::optimizers::{self, Hyper};
use super::request::Trainable;
use super::select::{self, Weight};
use super::step::{self, Plan, Scaling};
use super::{loss_model, metrics, modes};
use crate::backward::Selection;
use crate::graph::{Loaded, Node, ValueId};
use crate::model::Model;
use crate::onnx::inline::inline_functions;
use crate::onnx::{ElementType, file};
use crate::rules::{self, Integers, load};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashSet;

impl Trainable {
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
        let (kept, lost): (Vec<_>, Vec<_>) =
            weights.into_iter().partition(|w| own.contains_key(&w.name) || computed.contains(w.name.as_str()));
        weights = kept;
        let scope = format!("{}/", loss_model::SCOPE);
        let lost = lost.into_iter().filter(|w| w.usual && !w.name.starts_with(&scope)).map(|w| w.name);
        let hidden = [("functions", lost.collect()), ("bodies of control flow", select::inside_bodies(&base))];
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
        for (place, names) in hidden.into_iter().filter(|(_, names)| !names.is_empty()) {
            decisions.push(format!("{}: inside {place}, so not trained", select::listed(&names)));
        }

        let mut names = Draft::new(base.clone());
        let trained = self.trained(&chosen, &mut decisions)?;
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
        let defaults = || vec!["accuracy".to_owned(), metrics::GRADIENT_NORM.to_owned()];
        let (measured, norm) = metrics::parse(self.metrics.clone().unwrap_or_else(defaults))?;
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
            metrics: metrics::named(measured, &mut |kind| names.unique(kind)),
            insists: self.metrics.is_some(),
            straight_through: self.straight_through,
            rate: (names.unique("learning_rate"), if double { ElementType::Double } else { ElementType::Float }),
            step,
            loss: names.unique(if outputs.iter().any(|o| o == "loss") { "total_loss" } else { "loss" }),
            norm: norm.then(|| names.unique("gradient_norm")),
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
        Parts { inference, training, evaluation, plan, trained, scale, outputs, decisions }.assemble()
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
        let mut found: Vec<String> = found.iter().map(|name| name.to_string()).collect();
        found.sort_unstable();
        let list = select::listed(&found);
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

fn check_numbers(h: &Hyper) -> Result<()> {
    let share = |v: f64| (0.0..1.0).contains(&v);
    ensure!(share(h.momentum) && share(h.beta1) && share(h.beta2), "momentum and betas are from 0 to below 1");
    ensure!(h.epsilon > 0.0 && h.epsilon.is_finite(), "epsilon is above 0");
    ensure!(h.weight_decay >= 0.0 && h.weight_decay.is_finite(), "the weight decay is not below 0");
    Ok(())
}
