//! What runs models: tract, or an ONNX Runtime that is installed.

use super::tract::{Tensors, Tract, Trouble};
use crate::onnx::ModelProto;
#[cfg(feature = "onnxruntime")]
use std::path::PathBuf;

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
    /// Prepares a model for inputs of the shapes and types of `feeds`, which may hold more tensors than the model takes.
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

/// Which engine validates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// tract, which is part of this library.
    #[default]
    Tract,
    /// An installed ONNX Runtime of version 1.17 or later: the shared library at the path, else the one that the environment
    /// variable `ORT_DYLIB_PATH` names, else the one that the system finds. A process loads one.
    #[cfg(feature = "onnxruntime")]
    OnnxRuntime(Option<PathBuf>),
}

impl Choice {
    /// What reports call it.
    pub fn name(&self) -> &'static str {
        match self {
            Choice::Tract => "tract",
            #[cfg(feature = "onnxruntime")]
            Choice::OnnxRuntime(_) => "ONNX Runtime",
        }
    }

    /// The engine, loaded.
    pub(super) fn open(&self) -> Result<Box<dyn Engine>, Trouble> {
        match self {
            Choice::Tract => Ok(Box::new(Tract)),
            #[cfg(feature = "onnxruntime")]
            Choice::OnnxRuntime(path) => Ok(Box::new(super::onnxruntime::OnnxRuntime::load(path.as_deref())?)),
        }
    }
}
