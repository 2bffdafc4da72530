//! What a validation says.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The outcome of a validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The model ran, and nothing that was compared is wrong.
    Passed,
    /// The model ran and something is wrong with its gradients, or the engine crashed on those.
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
