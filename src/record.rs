//! What a call made, as a model's metadata keeps it: which tensor is the gradient of what.

use serde::{Deserialize, Serialize};

/// One call of `grad`: enough to check its gradients later, from the model alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The scope of the call's names: `gradients`, `gradients_1`.
    pub name: String,
    /// The gradients, in the order of the xs.
    pub gradients: Vec<Gradient>,
    /// The seeds, in the order of the ys; a y that is named twice has two.
    pub seeds: Vec<SeedOf>,
    /// The tensors that no gradient passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<String>,
}

/// The gradient with respect to one x.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gradient {
    /// The tensor with respect to which is differentiated.
    pub x: String,
    /// The tensor that holds the gradient; `None` where no y depends on x.
    pub gradient: Option<String>,
}

/// The gradient that a y starts with: a tensor, or else one number in every place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeedOf {
    /// The tensor that is differentiated.
    pub y: String,
    /// The tensor of the model, maybe one of its inputs, that holds the seed.
    #[serde(default)]
    pub seed: Option<String>,
    /// The number that stands in every place of the seed.
    #[serde(default)]
    pub fill: Option<f64>,
}
