//! What a request says that it has written, as the model's metadata keep it.

use super::{Entry, Vector};
use crate::onnx::ModelProto;
use crate::onnx::proto::StringStringEntryProto;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What has been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// Jacobian times vector.
    #[default]
    Jvp,
    /// Vector times Jacobian.
    Vjp,
    /// Hessian times vector.
    Hvp,
    /// Jacobians.
    Jacobian,
    /// Hessians.
    Hessian,
    /// Diagonals of Hessians.
    HessianDiagonal,
    /// Gradients of each sample.
    PerSample,
    /// Explanations of a prediction, which say nothing that finite differences know.
    Explanation,
    /// Adversarial examples, which say nothing that finite differences know.
    Attack,
}

/// One request: enough to check its outputs later, from the model alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Claim {
    /// The scope of the request's names.
    pub name: String,
    /// What has been written.
    pub kind: Kind,
    /// The tensors that are differentiated.
    pub ys: Vec<String>,
    /// The tensors with respect to which is differentiated.
    pub xs: Vec<String>,
    /// The tensors that count as constants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<String>,
    /// Whether rounding counted as the identity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub straight_through: bool,
    /// The axis along which samples lie that do not depend on each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<i64>,
    /// The inputs that hold samples.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<String>,
    /// The derivatives.
    pub outputs: Vec<Entry>,
    /// The new inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vectors: Vec<Vector>,
}

/// The metadata of a model hold one claim a request, each under this prefix and the request's name.
const KEY: &str = "onnx-gradients-derivative/";

impl Claim {
    /// A claim of which the rest follows from the request.
    pub(super) fn of(kind: Kind) -> Self {
        Claim { kind, ..Claim::default() }
    }

    /// Adds the claim to a model's metadata.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn attach(&self, model: &mut ModelProto) -> Result<()> {
        let (key, value) = (format!("{KEY}{}", self.name), serde_json::to_string(self)?);
        model.metadata_props.push(StringStringEntryProto { key: Some(key), value: Some(value) });
        Ok(())
    }

    /// The claims of a model, in the order of the requests.
    ///
    /// # Errors
    /// An entry is not one that [`Claim::attach`] has written.
    pub fn all(model: &ModelProto) -> Result<Vec<Claim>> {
        let ours = model.metadata_props.iter().filter(|p| p.key().starts_with(KEY));
        ours.map(|p| {
            serde_json::from_str(p.value()).with_context(|| format!("metadata '{}' is not a claim of ours", p.key()))
        })
        .collect()
    }
}
