//! A model with the folder that its external data lie in.

use crate::error::{Error, OrKind};
use crate::onnx::file::{self, Appended, Ready, WriteOptions};
use crate::onnx::proto::TensorShapeProto;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value as Dim};
use crate::onnx::proto::type_proto::{self, Value};
use crate::onnx::{
    ElementType, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto, did_you_mean, note_given, text,
};
use crate::rules;
use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An ONNX model.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Model {
    /// Its contents.
    pub proto: ModelProto,
    /// The folder that locations of external data are relative to; `None` for a model that does not come from a file.
    pub folder: Option<PathBuf>,
    /// The bytes of the file that it was read from, which its weights share. What the model has in common with them is
    /// written as it was.
    pub(crate) source: Option<Bytes>,
    /// Nodes that stand behind those of `proto`. Only a model that nobody does anything with but write it has such:
    /// see [`Gradients::build_file`](crate::Gradients::build_file).
    pub(crate) appended: Option<Arc<Appended>>,
    /// The file that it was read from, as it was named.
    pub(crate) file: Option<String>,
}

impl Model {
    /// Reads a model from a file. Its external data stay where they are.
    ///
    /// # Errors
    /// A file that cannot be read or is no ONNX model.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let (proto, source) = file::read_with_source(path)?;
        Ok(Model {
            proto,
            folder: Some(file::folder(path).to_owned()),
            source: Some(source),
            appended: None,
            file: Some(path.display().to_string()),
        })
    }

    /// Reads a model from the bytes of a file, which its weights share. External data have no folder that they could
    /// lie in.
    ///
    /// # Errors
    /// What is no ONNX model.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let source = bytes.into();
        let proto = file::read_bytes(source.clone())?;
        Ok(Model { proto, folder: None, source: Some(source), appended: None, file: None })
    }

    /// The bytes of the model's file.
    ///
    /// # Errors
    /// What one file cannot hold: more than 2 GiB without external data.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        file::write_stream(&self.proto, self.ready(), &mut bytes).or_kind(Error::unsupported)?;
        Ok(bytes)
    }

    /// What there is of its file.
    pub(crate) fn ready(&self) -> Ready<'_> {
        Ready { source: self.source.as_ref(), appended: self.appended.as_deref() }
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
        let options = WriteOptions { force, ready: self.ready(), ..WriteOptions::default() };
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

impl Model {
    /// Declares shapes of tensors, of numbers and names: of an input in the place of what it is declared as, and of a
    /// tensor that a node of the graph or of a body computes. The latter is believed where that node does not tell.
    ///
    /// # Errors
    /// Names of no tensor; shapes that contradict what is declared of an input, or what a node computes.
    pub fn declare(&mut self, shapes: &[(String, Vec<String>)]) -> Result<(), Error> {
        self.declared(shapes).or_kind(Error::usage)
    }

    fn declared(&mut self, shapes: &[(String, Vec<String>)]) -> Result<()> {
        if shapes.is_empty() {
            return Ok(());
        }
        let wanted: Vec<(&str, TensorShapeProto)> = shapes.iter().map(|(n, dims)| (n.as_str(), shape(dims))).collect();
        let said = |name: &str, shape: &TensorShapeProto| format!("--shape {name}={}", sizes(shape));
        let mut computed = Vec::new();
        for (name, shape) in wanted {
            let Some(input) = self.proto.graph.iter_mut().flat_map(|g| &mut g.input).find(|i| i.name() == name) else {
                computed.push((name, shape));
                continue;
            };
            let before = input.r#type.as_ref().map(text::print_type).unwrap_or_default();
            let Some(Value::TensorType(tensor)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) else {
                bail!("{}: the input is no tensor", said(name, &shape))
            };
            let fits = tensor.shape.as_ref().is_none_or(|old| agree(&old.dim, &shape.dim, false));
            ensure!(fits, "{}: the input is declared as {before}", said(name, &shape));
            tensor.shape = Some(shape);
        }
        if computed.is_empty() {
            return Ok(());
        }
        let loaded = rules::load(&self.proto)?;
        let elements: HashMap<&str, ElementType> =
            loaded.graph.named().filter_map(|(n, f)| Some((n, f.element?))).collect();
        for (name, shape) in &computed {
            let own = loaded.names.get(*name).and_then(|&id| loaded.graph.fact(id).shape.as_deref());
            if let Some(own) = own {
                let own: Vec<Dimension> = own.iter().map(|d| dimension(d.known().map(Dim::DimValue))).collect();
                let fits = agree(&own, &shape.dim, true);
                let own = || TensorShapeProto { dim: own.clone() };
                ensure!(fits, "{}: the tensor has the shape {}", said(name, shape), sizes(&own()));
            }
        }
        let tensor = |(name, shape): &(&str, TensorShapeProto)| {
            let elem_type = elements.get(name).map(|&e| e as i32);
            ((*name).to_owned(), type_proto::Tensor { elem_type, shape: Some(shape.clone()) })
        };
        let wanted: HashMap<String, type_proto::Tensor> = computed.iter().map(tensor).collect();
        let mut found = HashSet::new();
        self.proto.graph.iter_mut().for_each(|g| declare_computed(g, &wanted, &mut found));
        let unknown: Vec<&str> = computed.iter().map(|(name, _)| *name).filter(|n| !found.contains(*n)).collect();
        let Some(first) = unknown.first() else { return Ok(()) };
        let said =
            |name: &&str| format!("--shape: the model has no '{name}'{}", did_you_mean(name, elements.keys().copied()));
        let said: Vec<String> = unknown.iter().map(said).collect();
        Err(Error::name(said.join("; ")).with_tensor(first).into())
    }
}

/// Declares the types of tensors that nodes of a graph, or of bodies in it, compute. `found` are those that are there,
/// initializers among them.
fn declare_computed(graph: &mut GraphProto, wanted: &HashMap<String, type_proto::Tensor>, found: &mut HashSet<String>) {
    let there = |name: &&str| wanted.contains_key(*name);
    found.extend(graph.initializer.iter().map(|t| t.name()).filter(there).map(str::to_owned));
    let outputs = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
    let own: BTreeSet<String> = outputs.filter(there).map(str::to_owned).collect();
    let mut open = own.clone();
    for info in graph.output.iter().chain(&graph.value_info) {
        open.remove(info.name());
    }
    let new = |name: String| ValueInfoProto { name: Some(name), ..Default::default() };
    graph.value_info.extend(open.into_iter().map(new));
    for info in graph.output.iter_mut().chain(&mut graph.value_info).filter(|v| own.contains(v.name())) {
        let Some(tensor) = wanted.get(info.name()) else { continue };
        match info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            Some(Value::TensorType(declared)) => declared.shape = tensor.shape.clone(),
            _ => info.r#type = Some(TypeProto { value: Some(Value::TensorType(tensor.clone())), ..Default::default() }),
        }
        note_given(info);
    }
    found.extend(own);
    graph.node.iter_mut().flat_map(NodeProto::bodies_mut).for_each(|body| declare_computed(body, wanted, found));
}

/// Whether two shapes may be one. A number in the place of a name is not what is known, unless that is `open`.
fn agree(old: &[Dimension], new: &[Dimension], open: bool) -> bool {
    let same = |(old, new): (&Dimension, &Dimension)| match (&old.value, &new.value) {
        (Some(Dim::DimValue(old)), Some(Dim::DimValue(new))) => old == new,
        (Some(Dim::DimValue(_)), _) => open,
        _ => true,
    };
    old.len() == new.len() && old.iter().zip(new).all(same)
}

/// A shape of numbers and names.
fn shape(dims: &[String]) -> TensorShapeProto {
    let value = |d: &String| d.parse().map_or_else(|_| Dim::DimParam(d.clone()), Dim::DimValue);
    TensorShapeProto { dim: dims.iter().map(|d| dimension(Some(value(d)))).collect() }
}

fn dimension(value: Option<Dim>) -> Dimension {
    Dimension { value, ..Default::default() }
}

fn sizes(shape: &TensorShapeProto) -> String {
    let size = |d: &Dimension| match &d.value {
        Some(Dim::DimValue(n)) => n.to_string(),
        Some(Dim::DimParam(name)) => name.clone(),
        None => "?".to_owned(),
    };
    shape.dim.iter().map(size).collect::<Vec<_>>().join("x")
}

impl From<ModelProto> for Model {
    fn from(proto: ModelProto) -> Self {
        Model { proto, folder: None, source: None, appended: None, file: None }
    }
}
