//! Which engines there are.

use super::engine::{Engine, Trouble};
#[cfg(feature = "onnxruntime")]
use std::path::PathBuf;

/// Which engine validates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// tract, which is part of this library.
    #[cfg(feature = "tract")]
    Tract,
    /// An installed ONNX Runtime of version 1.17 or later: the shared library at the path, else the one that the
    /// environment variable `ORT_DYLIB_PATH` names, else the one that the system finds. A process loads one.
    #[cfg(feature = "onnxruntime")]
    OnnxRuntime(Option<PathBuf>),
}

impl Default for Choice {
    /// tract, where this build has it.
    fn default() -> Self {
        #[cfg(feature = "tract")]
        return Choice::Tract;
        #[cfg(not(feature = "tract"))]
        Choice::OnnxRuntime(None)
    }
}

impl Choice {
    /// What reports call it.
    pub fn name(&self) -> &'static str {
        match self {
            #[cfg(feature = "tract")]
            Choice::Tract => "tract",
            #[cfg(feature = "onnxruntime")]
            Choice::OnnxRuntime(_) => "ONNX Runtime",
        }
    }

    /// The engine, loaded.
    ///
    /// # Errors
    /// The library of an ONNX Runtime is not found, or is no ONNX Runtime.
    pub(crate) fn open(&self) -> Result<Box<dyn Engine>, Trouble> {
        match self {
            #[cfg(feature = "tract")]
            Choice::Tract => Ok(Box::new(super::tract::Tract)),
            #[cfg(feature = "onnxruntime")]
            Choice::OnnxRuntime(path) => Ok(Box::new(super::onnxruntime::OnnxRuntime::load(path.as_deref())?)),
        }
    }
}
