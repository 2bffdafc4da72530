//! What a step takes as inputs: the chosen weights, or the LoRA matrices in their place, and what the optimizer keeps of each.

use super::draft::{self, Draft};
use super::lora::{self, Adapter};
use super::optimizers::{Hyper, Optimizer};
use super::request::Trainable;
use super::select::{Source, Weight, is_match};
use super::state::Random;
use super::step::Slot;
use crate::onnx::{ElementType, TensorProto, attribute};
use anyhow::{Context, Result, ensure};

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
                    decisions.push(format!(
                        "'{}' is quantized; its real values are trained, and rounded again by export",
                        weight.name
                    ));
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
    pub(super) fn prepared(&self, mut draft: Draft, trained: &[Trained], statistics: &[String]) -> Result<Draft> {
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
                adapter.attach(&mut draft, &l, &r, left.weight.value.element_type())?;
            }
        }
        Ok(draft)
    }
}

/// Makes a parameter an input, and returns the tensor of the model's own type that nodes take.
fn rounded(draft: &mut Draft, t: &Trained) -> String {
    let (element, master) = (t.weight.value.element_type(), t.value.element_type());
    draft.input(&t.name, master, &t.value.dims);
    if element == master {
        t.name.clone()
    } else {
        let to = attribute::int("to", element as i64);
        draft.first("Cast", &[&t.name], &format!("{}/rounded", t.name), vec![to])
    }
}
