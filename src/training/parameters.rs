//! What a step takes as inputs: the chosen weights, or the LoRA matrices in their place, and what the optimizer keeps
//! of each.

use super::lora::{self, Adapter};
use super::optimizers::{Hyper, Optimizer};
use super::plan::Slot;
use super::request::Trainable;
use super::select::{Weight, is_match};
use super::state::Random;
use crate::expr::rewrite::Rewrite;
use crate::graph::{self, Dim, Fact, Graph};
use crate::onnx::{ElementType, ModelProto, Names, TensorProto, ValueInfoProto};
use crate::rules::OPERATORS;
use crate::weights::Source;
use anyhow::{Context, Result, ensure};
use std::collections::{HashMap, HashSet};

/// A parameter on its way into the step.
pub struct Trained {
    /// The weight in the model.
    pub weight: Weight,
    /// The input.
    pub name: String,
    /// What it starts with, in the type of the input.
    pub value: TensorProto,
    /// The matrices that it is one of.
    pub adapter: Option<Adapter>,
}

impl Trainable {
    /// What is an input of the step, and how it gets into the model.
    pub(super) fn trained(&self, chosen: &[Weight], decisions: &mut Vec<String>) -> Result<Vec<Trained>> {
        let mut trained = Vec::new();
        let mut random = Random::new(self.seed);
        for weight in chosen {
            let element = weight.value.element_type();
            let master = if element == ElementType::Double { element } else { ElementType::Float };
            let Some((rank, alpha)) = self.lora else {
                if weight.source == Source::Dequantized {
                    let how = match self.straight_through {
                        true => {
                            "its real values are trained, and rounded to its integers in every step, as export does"
                        }
                        false => {
                            "its real values are trained without rounding (--rounding true), and rounded by export"
                        }
                    };
                    decisions.push(format!("'{}' is quantized; {how}", weight.name));
                }
                let value = TensorProto::from_floats(master, &weight.value.dims, &weight.value.floats()?)?;
                trained.push(Trained { weight: weight.clone(), name: weight.name.clone(), value, adapter: None });
                continue;
            };
            ensure!((1..=1 << 16).contains(&rank) && alpha.is_finite(), "a LoRA rank is from 1 to 65536");
            match lora::adapter(weight, rank, alpha) {
                None => decisions
                    .push(format!("'{}' is no matrix of a product and has no LoRA: it is not trained", weight.name)),
                Some(adapter) => {
                    let [left, right] = adapter.initial(master, &mut random)?;
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

    pub(super) fn slots(
        &self,
        trained: &[Trained],
        optimizer: &Optimizer,
        hyper: &Hyper,
        names: &mut Names,
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
                names.fresh(name.clone());
            }
            let mut pair = |base: String| [names.fresh(base.clone()), names.fresh(format!("next/{base}"))];
            let states = optimizer.states.iter().map(|s| pair(format!("state/{s}/{name}"))).collect();
            let sum = pair(format!("sum/{name}"));
            let exempt = self.no_decay.iter().any(|p| is_match(p, name));
            Slot {
                name: name.clone(),
                element: t.value.element_type(),
                dims: t.value.dims.clone(),
                next: names.fresh(format!("next/{name}")),
                gradient: names.fresh(format!("gradient/{name}")),
                sum,
                states,
                rate: self.groups.iter().find(|(p, _)| is_match(p, name)).map_or(1.0, |(_, f)| *f),
                decay: if exempt { 0.0 } else { hyper.weight_decay },
            }
        };
        Ok(trained.iter().map(slot).collect())
    }

    /// The model with its parameters and statistics as inputs, and the formulas that stand behind them: a weight of 16
    /// bits is rounded from its master, a product of LoRA matrices is added to another.
    pub(super) fn opened<'t>(
        &self,
        model: &ModelProto,
        trained: &'t [Trained],
        statistics: &[String],
    ) -> Result<(ModelProto, Rewrite<'t>)> {
        let mut model = model.clone();
        let graph = model.graph.as_mut().context("the model holds no graph")?;
        let constants: HashMap<&str, _> = graph.constants().collect();
        let statistic = |name: &String| {
            let value = constants.get(name.as_str()).with_context(|| format!("'{name}' is no constant"))?;
            Ok(input(name, value.element_type(), &value.dims))
        };
        let mut inputs = statistics.iter().map(statistic).collect::<Result<Vec<_>>>()?;
        inputs.extend(trained.iter().map(|t| input(&t.name, t.value.element_type(), &t.value.dims)));
        let whole = trained.iter().filter(|t| t.adapter.is_none());
        let opened: HashSet<&str> = statistics.iter().chain(whole.map(|t| &t.name)).map(String::as_str).collect();
        graph.remove(&opened);
        graph.input.extend(inputs);
        let mut rewrite = Rewrite::new(SCOPE);
        for t in trained {
            let element = t.weight.value.element_type();
            match &t.adapter {
                None => {
                    // What is trained is what is exported: the integers nearest to the master, of which the gradient
                    // passes to the master within their range.
                    let grid = t.weight.grid.as_ref().filter(|_| self.straight_through);
                    if let Some(grid) = grid {
                        rewrite = rewrite.behind(&t.name, move |_, master| Ok(grid.rounded(master)));
                    } else if element != t.value.element_type() {
                        rewrite = rewrite.behind(&t.name, move |_, master| Ok(master.cast(element)));
                    }
                }
                Some(adapter) if adapter.left == t.name => {
                    rewrite = rewrite.in_place_of(adapter.place(), |here, w| adapter.sum(here, w));
                }
                _ => {}
            }
        }
        Ok((model, rewrite))
    }
}

/// The scope of the names of what stands behind weights.
pub(super) const SCOPE: &str = "trained";

/// A graph input of that type and shape.
pub(super) fn input(name: &str, element: ElementType, dims: &[i64]) -> ValueInfoProto {
    let fact = Fact::tensor(Some(element), Some(dims.iter().map(|&d| Dim::Known(d)).collect()));
    graph::write::value_info(&Graph::new([], OPERATORS), name, &fact)
}
