//! tf.gradients for ONNX: reads a model, appends the nodes that compute the derivatives of chosen tensors with respect
//! to others, and writes a model of standard operators only.
//!
//! ```
//! use onnx_gradients::{Gradients, Model, Seed, Wanted};
//!
//! # fn main() -> Result<(), onnx_gradients::Error> {
//! let model = Model::load("models/digits-mlp.onnx")?;
//! let result = Gradients::new([Wanted::Outputs], [Wanted::Parameters]).seed_each(Seed::Input(None)).build(&model)?;
//! let folder = tempfile::tempdir().unwrap();
//! result.model.save(folder.path().join("mlp-grad.onnx"))?;
//! let first = &result.gradients[0];
//! assert_eq!(first.name, Some(format!("gradients/{}", first.x)));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs, unnameable_types)]
// They panic where nobody reads: `cli::note` and `writeln!` do not.
#![cfg_attr(
    not(all(feature = "cli", feature = "validate")),
    allow(dead_code, unused_imports, reason = "much of the library is for the command line or for an engine")
)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

/// For what is built from defaults, a method for each field that gives it another value.
macro_rules! setters {
    ($of:ident { $($name:ident: $type:ty),* $(,)? }) => {
        impl $of {
            $(
                #[doc = concat!("The same with another [`", stringify!($name), "`](#structfield.", stringify!($name), ").")]
                #[must_use]
                pub fn $name(mut self, $name: $type) -> Self {
                    self.$name = $name;
                    self
                }
            )*
        }
    };
}

mod backward;
#[cfg(feature = "cli")]
mod cli;
pub mod derivatives;
mod error;
mod expr;
mod graph;
mod memory;
mod model;
pub mod onnx;
mod record;
mod rules;
mod survey;
pub mod training;
#[cfg(feature = "validate")]
pub mod validate;
mod weights;

/// For those who write rows of their own: what [`Gradients::rule`] takes.
///
/// A row says what each input of an operator gets ([`Slot`](rule::Slot)), as formulas over tensors
/// ([`Expr`](rule::Expr)), and what is known of the outputs before anything runs ([`Known`](rule::Known)).
///
/// ```
/// use onnx_gradients::rule::{Rule, Slot::Unary, rule};
/// use onnx_gradients::{Gradients, onnx::text};
///
/// const CUBE: Rule = rule("Cube", "dx = 3 dy x²", &[Unary(|x, _y, dy| 3.0 * dy * x * x)]).domain("made.up");
///
/// let text = r#"<ir_version: 8, opset_import: ["": 18, "made.up": 1]> g (float[5] x) => (y) { y = made.up.Cube(x) }"#;
/// let output = Gradients::new(["y"], ["x"]).rule(CUBE).build(&text::parse(text).unwrap().into())?;
/// assert_eq!(output.gradients[0].name.as_deref(), Some("gradients/x"));
/// # Ok::<(), onnx_gradients::Error>(())
/// ```
pub mod rule {
    pub use crate::expr::{Along, Builder, ConvLike, Expr, Pool, Resized, Rounding, View};
    pub use crate::graph::facts::value::Calculator;
    pub use crate::graph::facts::{Known, Op, Parameter, tensor};
    pub use crate::graph::{Bodies, Container, Dim, Dims, Fact, Linear, Poles, Protocol, Scalar, Shape, Symbol, Value};
    pub use crate::rules::properties::{Arithmetic, Axis, Counts, Gives, Index, IntegerLayer, Random, read, written};
    pub use crate::rules::{Call, Cotangents, Integers, Moves, Rule, Slot, rule};
}

/// For the tests, the benchmarks and the fuzzing of this crate, which look at what a user has no use for: the table of
/// rules, and the graph that a model is loaded into. Nothing in it is stable.
#[doc(hidden)]
pub mod internals {
    pub use crate::backward::support;
    pub use crate::graph::{
        Fact, Graph, Loaded, NewNode, Node, NodeId, Operators, Origin, Producer, Scope, ScopeId, Traits, ValueId,
        ValueInfo,
    };
    pub use crate::onnx::file::{Change, Difference, diff, operators};
    pub use crate::rules::reference::markdown;
    pub use crate::rules::{all, find, load, newest};
    #[cfg(feature = "validate")]
    pub use crate::validate::engine::{Precision, Run, Trouble};
    #[cfg(feature = "validate")]
    pub use crate::validate::tensors::{Tensor, Tensors, tensor};

    /// Opens a model in the engine that validation takes by default.
    ///
    /// # Errors
    /// The engine cannot run it.
    #[cfg(feature = "validate")]
    pub fn prepare(
        model: &crate::onnx::ModelProto,
        feeds: &Tensors,
        precision: Precision,
    ) -> Result<Box<dyn Run>, Trouble> {
        crate::validate::Engine::default().open()?.prepare(model, feeds, precision)
    }
}

#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::console::{Left, run_within as command_line_within, set_program as set_command_line_program};
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::{run as command_line, run_of as command_line_of};

pub use backward::{Aggregation, Gradients, Lowered, LoweredNode, Output, Seed, Unconnected, Wanted};
pub use error::{Details, Error};
pub use memory::{Budget as MemoryBudget, Limit as MemoryLimit, Recomputed, Report as MemoryReport};
pub use model::Model;
pub use record::{Gradient, Record, SeedOf};
