//! What an engine is: it prepares models and runs them, or says why it does not.

use super::tensors::Tensors;
use crate::error::NO_MEMORY;
use crate::onnx::ModelProto;
use std::fmt;

/// In which arithmetic a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// The model's own element types, the engine's own kernels.
    Own,
    /// The model is one that `float64` has rewritten. Kernels that tract lacks are ours; where ONNX Runtime lacks one
    /// it computes in float32, from float64 inputs to float64 outputs all the same.
    Double,
}

/// Runs models.
pub trait Engine {
    /// Prepares a model for inputs of the shapes and types of `feeds`, which may hold more tensors than the model
    /// takes.
    ///
    /// # Errors
    /// The engine cannot run the model.
    fn prepare(&self, model: &ModelProto, feeds: &Tensors, precision: Precision) -> Result<Box<dyn Run>, Trouble>;
}

/// A model that has been prepared, to be run many times.
pub trait Run {
    /// Runs the model once. The outputs are those of the graph, by name.
    ///
    /// # Errors
    /// Inputs that are missing or do not fit, and whatever the engine fails at.
    fn run(&self, feeds: &Tensors) -> Result<Tensors, Trouble>;

    /// Whether a model in float64 is in truth computed in float32, so that its slopes are known less well.
    fn is_single(&self) -> bool {
        false
    }
}

/// Why a model does not run.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// tract has no such operator, or is known to compute another function for it.
    Unsupported(Vec<String>),
    /// tract says why.
    Failed(String),
    /// It needs more memory than there is.
    OutOfMemory,
    /// tract crashed.
    Panicked(String),
    /// Another engine says why, its name in front.
    Elsewhere {
        /// What it says.
        message: String,
        /// Whether it lacks what the model needs, rather than that the model is wrong.
        unsupported: bool,
    },
}

impl Trouble {
    /// Whether the engine lacks what the model needs.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Trouble::Unsupported(_) | Trouble::Elsewhere { unsupported: true, .. })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Unsupported(operators) => write!(f, "tract has no {}", operators.join(", ")),
            Trouble::Failed(message) => write!(f, "tract: {message}"),
            Trouble::OutOfMemory => f.write_str("tract: it needs more memory than it has; --memory gives it more"),
            Trouble::Panicked(message) => write!(f, "tract crashed: {message}"),
            Trouble::Elsewhere { message, .. } => f.write_str(message),
        }
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(e: anyhow::Error) -> Self {
        match format!("{e:#}") {
            // tract hands errors of kernels on as texts.
            text if text.contains(NO_MEMORY) => Trouble::OutOfMemory,
            text => Trouble::Failed(one_line(&text)),
        }
    }
}

/// tract repeats itself in its messages, with dumps of nodes; the first words and the innermost cause say it.
pub(super) fn one_line(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let count = message.chars().count();
    if count <= 300 {
        return message;
    }
    let head: String = message.chars().take(140).collect();
    let tail: String = message.chars().skip(count - 140).collect();
    format!("{head} ... {tail}")
}
