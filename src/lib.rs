//! tf.gradients for ONNX: reads a model, appends the nodes that compute the derivatives of chosen tensors with respect to
//! others, and writes a model of standard operators only.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use onnx_gradients::{Gradients, Model, Seed};
//!
//! let model = Model::load("mlp.onnx")?;
//! let result = Gradients::new(["loss"], ["W1", "b1"]).stop(["h"]).seed("loss", Seed::Ones).build(&model)?;
//! result.model.save("mlp-grad.onnx")?;
//! let name: &Option<String> = &result.gradients[0].name; // "gradients/W1"
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]
// They panic where nobody reads: `cli::note` and `writeln!` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

// Rooms that rules, training and validation share with the tests: open, but no part of the interface.
#[doc(hidden)]
pub mod backward;
#[cfg(feature = "cli")]
mod cli;
pub mod derivatives;
mod error;
#[doc(hidden)]
pub mod expr;
#[doc(hidden)]
pub mod graph;
mod model;
pub mod onnx;
#[doc(hidden)]
pub mod record;
#[doc(hidden)]
pub mod rules;
pub mod training;
#[cfg(feature = "validate")]
pub mod validate;
#[doc(hidden)]
pub mod weights;

/// For those who write rules of their own: what [`Gradients::rule`] takes.
pub mod rule {
    pub use crate::expr::Expr;
    pub use crate::rules::{Call, Rule, Slot, rule};
}

#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::console::{run_within as command_line_within, set_program as set_command_line_program};
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::{run as command_line, run_of as command_line_of};

pub use backward::{Aggregation, Gradients, Output, Seed, Unconnected};
pub use error::{Details, Error};
pub use model::Model;
