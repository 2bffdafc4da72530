//! Derivatives at inference, beside gradients: products of Jacobians and Hessians with vectors, whole Jacobians and
//! Hessians, gradients of each sample, explanations of a prediction, inputs that change it.
//!
//! Each request is made of [`Gradients`](crate::Gradients), which says of what, with respect to what, and how; it
//! appends nodes to a model and gives it outputs. All of them are formulas over three things (`workspace.rs`):
//! gradients of what is there; the *linear functions* that derivatives are, `v -> vJ` and `u -> Ju`, which can be
//! applied to an input once or, in the body of a Scan, to one unit vector after the other; and a part of the model
//! computed again from other values.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use onnx_gradients::{Gradients, Model, derivatives::Hvp};
//!
//! let model = Model::load("energy.onnx")?;
//! let result = Hvp::from(Gradients::new(["energy"], ["positions"])).build(&model)?;
//! result.model.save("energy-hvp.onnx")?;
//! let vector = &result.vectors[0].name; // "hvp/v/positions"
//! let product = &result.outputs[0].name; // Some("hvp/positions")
//! # Ok(())
//! # }
//! ```

/// How a request that has a method `derived` is built: what it appends, and what can go wrong.
macro_rules! builds {
    ($of:ident, $what:literal, $($errors:literal)*) => {
        impl $of {
            #[doc = concat!("Appends ", $what, " to a model.")]
            ///
            /// # Errors
            $(#[doc = $errors])*
            pub fn build(&self, model: &crate::Model) -> Result<crate::derivatives::Derived, crate::Error> {
                self.build_onto(model.clone())
            }

            #[doc = concat!("Appends ", $what, " to a model, without copying it.")]
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($of), "::build`].")]
            pub fn build_onto(&self, model: crate::Model) -> Result<crate::derivatives::Derived, crate::Error> {
                let file = model.file.clone();
                self.derived(model).map_err(|e| crate::Error::from(e).in_file(file))
            }
        }
    };
}

mod attack;
mod claim;
mod evidence;
mod explain;
mod matrices;
mod per_sample;
mod products;
#[cfg(feature = "validate")]
mod reduce;
mod samples;
mod workspace;

pub use attack::{Attack, Steps};
pub use claim::{Claim, Kind};
pub use evidence::{Evidence, evidence};
pub use explain::{Class, Explain, Method};
pub use matrices::{Hessian, Jacobian, Mode};
pub use per_sample::PerSample;
pub use products::{Hvp, Jvp, Vjp};
#[cfg(feature = "validate")]
pub use reduce::{Reduced, reduce};
pub use samples::Kept;

use crate::expr::Expr;
use crate::model::Model;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The axis along which the samples of a tensor lie.
fn batch_axis(e: Expr<'_>, axis: i64) -> Result<usize> {
    ensure!(e.rank()? > 0, "a tensor without axes has no samples along axis {axis}; leave --batch out");
    e.axis(axis)
}

/// A model with derivatives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Derived {
    /// The model as it was, with the new nodes behind its own, and a graph output for each derivative.
    pub model: Model,
    /// The derivatives.
    pub outputs: Vec<Entry>,
    /// The new inputs.
    pub vectors: Vec<Vector>,
    /// How many nodes have been added.
    pub nodes_added: usize,
    /// What users should know.
    pub warnings: Vec<String>,
    /// The request as the model's metadata keep it, to be checked later.
    pub claim: Claim,
    /// The names of all outputs that the request has added.
    own: HashSet<String>,
}

impl Derived {
    /// Drops the model's own outputs, with what only they need.
    pub fn drop_model_outputs(&mut self) {
        if let Some(graph) = &mut self.model.proto.graph {
            graph.keep_outputs(|name| self.own.contains(name));
        }
    }
}

/// One derivative: of which y and with respect to which x, where it is about one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// The tensor that is differentiated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    /// The tensor with respect to which is differentiated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// The second x, of a second derivative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// The tensor that holds the derivative; `None` where y does not depend on x.
    pub name: Option<String>,
}

/// A new input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Vector {
    /// The tensor whose type and shape it has, or what it is of.
    pub of: String,
    /// The name of the input.
    pub name: String,
}
