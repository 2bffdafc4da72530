//! A model with the folder that its external data lie in.

use crate::onnx::ModelProto;
use std::path::PathBuf;

/// An ONNX model.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Its contents.
    pub proto: ModelProto,
    /// The folder that locations of external data are relative to; `None` for a model that does not come from a file.
    pub folder: Option<PathBuf>,
}

impl From<ModelProto> for Model {
    fn from(proto: ModelProto) -> Self {
        Model { proto, folder: None }
    }
}
