//! What a validation says.

use super::Engine;
use crate::record::Record;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The outcome of a validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// Gradients agree with slopes that are not zero, and none differs. Which ones were compared is said of each.
    Passed,
    /// A gradient is not the slope, at two inputs on which the model runs and is finite.
    Failed,
    /// Nothing could be compared: nothing is known.
    Skipped,
}

/// What a validation found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Validation {
    /// The outcome.
    pub status: Status,
    /// Why it failed or was skipped, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What ran the model.
    pub engine: String,
    /// The sizes that symbolic dimensions had at the first input.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dims: BTreeMap<String, i64>,
    /// At how many inputs gradients were compared.
    #[serde(default)]
    pub inputs: usize,
    /// The forward outputs, compared with those of the model without gradients.
    pub outputs: Vec<OutputCheck>,
    /// The gradients, in the order of the record.
    pub gradients: Vec<GradientCheck>,
}

impl Validation {
    /// That nothing is known of the gradients of a call.
    pub fn skipped(record: &Record, engine: &Engine, reason: &str) -> Self {
        Validation {
            status: Status::Skipped,
            reason: Some(reason.to_owned()),
            engine: engine.name().to_owned(),
            dims: BTreeMap::new(),
            inputs: 0,
            outputs: Vec::new(),
            gradients: (record.gradients.iter())
                .map(|g| GradientCheck { x: g.x.clone(), gradient: g.name.clone(), ..Default::default() })
                .collect(),
        }
    }

    /// What is known where the engine has ended before the validation: of some gradients what was found by then, with
    /// what speaks against those that are wrong; of the others nothing, for this reason.
    pub(crate) fn interrupted(
        record: &Record,
        engine: &Engine,
        reason: &str,
        found: Vec<(usize, GradientCheck, Option<String>)>,
    ) -> Self {
        let mut validation = Validation::skipped(record, engine, reason);
        let mut wrong: BTreeMap<usize, String> = BTreeMap::new();
        for (i, check, problem) in found {
            let Some(place) = validation.gradients.get_mut(i) else { continue };
            *place = check;
            wrong.extend(problem.map(|problem| (i, problem)));
        }
        for gradient in validation.gradients.iter_mut().filter(|g| g.gradient.is_some() && !g.compared) {
            gradient.note.get_or_insert_with(|| format!("not compared: {reason}"));
        }
        if validation.counted().0 > 0 {
            (validation.status, validation.reason, validation.inputs) = (Status::Passed, None, 1);
        }
        if !wrong.is_empty() {
            validation.status = Status::Failed;
            validation.reason = Some(super::listed(&wrong.into_values().collect::<Vec<_>>()));
        }
        validation
    }

    /// Takes over what another validation has found of the gradients that are zero here: one of the same call with
    /// other seeds.
    pub fn complete(&mut self, other: Validation) {
        for (here, there) in self.gradients.iter_mut().zip(other.gradients) {
            if here.zero && here.x == there.x && there.compared {
                let note = "ones as seeds make it zero: compared with random seeds".to_owned();
                *here = GradientCheck { gradient: here.gradient.clone(), note: Some(note), zero: false, ..there };
            } else if here.zero && here.x == there.x {
                here.note = there.note.map(|note| format!("{note}, with random seeds as with ones"));
            }
        }
        self.inputs = self.inputs.max(other.inputs);
        match (self.status, other.status) {
            (Status::Failed, _) | (_, Status::Skipped) => (),
            (_, Status::Failed) => {
                self.status = Status::Failed;
                self.reason = other.reason.map(|reason| format!("with random seeds, {reason}"));
            }
            (_, Status::Passed) => {
                if self.counted().0 > 0 {
                    (self.status, self.reason) = (Status::Passed, None);
                }
            }
        }
    }

    /// How many gradients were compared, and how many there are.
    pub fn counted(&self) -> (usize, usize) {
        let claimed = || self.gradients.iter().filter(|g| g.gradient.is_some());
        (claimed().filter(|g| g.compared).count(), claimed().count())
    }
}

/// A forward output of the model with gradients beside that of the model without.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OutputCheck {
    /// The output.
    pub name: String,
    /// The largest difference of two elements; `None` where they were not computed, or have other shapes.
    pub max_difference: Option<f64>,
}

/// What was found about one gradient.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GradientCheck {
    /// The tensor with respect to which is differentiated.
    pub x: String,
    /// The tensor that holds the gradient; `None` where no y depends on x.
    pub gradient: Option<String>,
    /// Whether every element is a finite number.
    pub finite: bool,
    /// Whether the gradient has x's shape.
    pub shape: bool,
    /// The gradient's norm, the root of the sum of its squares, at the first input, where it is finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<f64>,
    /// The largest relative error along the directions.
    pub error: Option<f64>,
    /// The largest that is taken for rounding.
    pub bound: f64,
    /// Whether it was compared with a slope that is not zero, alone or together with others.
    pub compared: bool,
    /// Whether gradient and slope are both zero, or no larger than rounding, wherever they were compared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero: bool,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
