//! The engines that there are: tract, or an ONNX Runtime that is installed.

use super::engine::{Engine, Trouble};
use super::tract::Tract;
#[cfg(feature = "onnxruntime")]
use std::path::PathBuf;

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
