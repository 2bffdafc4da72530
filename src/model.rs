//! A model with the folder that its external data lie in.

use crate::error::{Error, OrKind};
use crate::onnx::ModelProto;
use crate::onnx::file::{self, WriteOptions};
use crate::onnx::text;
use anyhow::Result;
use bytes::Bytes;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// An ONNX model.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Its contents.
    pub proto: ModelProto,
    /// The folder that locations of external data are relative to; `None` for a model that does not come from a file.
    pub folder: Option<PathBuf>,
    /// The bytes of the file that it was read from, which its weights share. What the model has in common with them is written
    /// as it was.
    pub(crate) source: Option<Bytes>,
}

impl Model {
    /// Reads a model from a file. Its external data stay where they are.
    ///
    /// # Errors
    /// A file that cannot be read or is no ONNX model.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let (proto, source) = file::read_with_source(path)?;
        Ok(Model { proto, folder: Some(file::folder(path).to_owned()), source: Some(source) })
    }

    /// Reads a model from the bytes of a file, which its weights share. External data have no folder that they could lie in.
    ///
    /// # Errors
    /// What is no ONNX model.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let source = bytes.into();
        let proto = file::read_bytes(source.clone())?;
        Ok(Model { proto, folder: None, source: Some(source) })
    }

    /// The bytes of the model's file.
    ///
    /// # Errors
    /// What one file cannot hold: more than 2 GiB without external data.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        file::write_stream(&self.proto, self.source.as_ref(), &mut bytes).or_kind(Error::unsupported)?;
        Ok(bytes)
    }

    /// Writes the model to a file that does not exist yet, all of it or nothing.
    ///
    /// # Errors
    /// The file exists, or cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.write(path.as_ref(), false).map(drop)
    }

    /// Writes the model, over an existing file if `force` says so. External data that lie in another folder are copied
    /// beside it; the notes that are returned say so.
    ///
    /// # Errors
    /// The file exists and is not to be replaced, or cannot be written.
    pub fn write(&self, path: &Path, force: bool) -> Result<Vec<String>, Error> {
        self.written(path, force).or_kind(Error::io)
    }

    fn written(&self, path: &Path, force: bool) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let options = WriteOptions { force, source: self.source.as_ref(), ..WriteOptions::default() };
        let moves =
            |from: &&Path| !file::same_file(from, file::folder(path)) && !file::locations(&self.proto).is_empty();
        match self.folder.as_deref().filter(moves) {
            None => file::write(&self.proto, path, options)?,
            Some(from) => {
                let mut moved = self.proto.clone();
                notes = file::rebase_external(&mut moved, from, file::folder(path), force)?;
                file::write(&moved, path, options)?;
            }
        }
        Ok(notes)
    }
}

impl Model {
    /// The types of the graph outputs, as the text syntax writes them: `float[batch, 10]`.
    pub fn output_types(&self) -> HashMap<String, String> {
        let outputs = self.proto.graph.iter().flat_map(|g| &g.output);
        outputs.filter_map(|o| Some((o.name().to_owned(), text::print_type(o.r#type.as_ref()?)))).collect()
    }
}

impl From<ModelProto> for Model {
    fn from(proto: ModelProto) -> Self {
        Model { proto, folder: None, source: None }
    }
}
