//! What a trainable model is made of, as JSON beside its files: which output feeds which input, shapes, types, choices.

use super::lora::Adapter;
use super::optimizers::Hyper;
use super::select::Entry;
use crate::Error;
use crate::error::InFile;
use crate::memory::Report;
use crate::onnx::file::{self, is_inside};
use crate::weights::Source;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name.
pub const FILE: &str = "manifest.json";

/// The version of the format.
const FORMAT: u32 = 1;

/// The whole of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// The version of this format.
    pub format: u32,
    /// The models: `train`, `gradients`, `accumulate`, `apply`, `evaluate`.
    pub models: Vec<ModelFile>,
    /// The model as it was, in a file of its own.
    pub inference: String,
    /// The safetensors file with the initial value of every tensor of `state`.
    pub initial_state: String,
    /// The data that the model takes.
    pub data: Vec<Input>,
    /// The targets that the losses take.
    pub labels: Vec<Input>,
    /// The name of the input for the learning rate, a scalar.
    pub learning_rate: Input,
    /// The name of the input that counts the steps, a scalar: 0 in the first one.
    pub step: String,
    /// The output with the loss, a scalar.
    pub loss: String,
    /// Outputs with scalars that tell how the training goes.
    pub metrics: Vec<String>,
    /// The losses, as they were asked for.
    pub losses: Vec<String>,
    /// The optimizer.
    pub optimizer: OptimizerEntry,
    /// How many micro-batches make a step.
    pub accumulate: usize,
    /// What is trained.
    pub parameters: Vec<Parameter>,
    /// Everything that a step is fed and gives back: parameters, states of the optimizer, statistics, counters.
    pub state: Vec<Feed>,
    /// The LoRA matrices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<Adapter>,
    /// What becomes of every constant tensor of the model that the loss depends on.
    #[serde(default)]
    pub weights: Vec<Entry>,
    /// What has been decided, in words.
    pub decisions: Vec<String>,
}

/// One of the models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelFile {
    /// What it is for.
    pub role: String,
    /// Its file.
    pub file: String,
    /// Its inputs, in order.
    pub inputs: Vec<String>,
    /// Its outputs, in order.
    pub outputs: Vec<String>,
    /// What has come of a memory budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Report>,
}

/// An input for data, targets or the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Input {
    /// Its name.
    pub name: String,
    /// The element type, as ONNX's text syntax calls it.
    pub r#type: String,
    /// The sizes; null where any will do.
    pub shape: Vec<Option<i64>>,
    /// The number of classes, where the elements are numbers of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<i64>,
    /// The number of no class, which does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<i64>,
}

/// The optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OptimizerEntry {
    /// Its name.
    pub name: String,
    /// Its update.
    pub formula: String,
    /// Its numbers.
    pub hyper: Hyper,
    /// The norm that all gradients together have at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// The size that an element of a gradient has at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_value: Option<f64>,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Parameter {
    /// Its name: the input of the step, and the tensor of the model.
    pub name: String,
    /// Where it lies in the model.
    pub source: Source,
    /// The element type in the model.
    pub model_type: String,
    /// The output of `gradients` with its gradient, which `apply` takes.
    pub gradient: String,
    /// The input of `accumulate` with the sum of its gradients.
    pub sum: String,
    /// The output of `accumulate` with the new sum.
    pub next_sum: String,
    /// The factor on the learning rate.
    pub learning_rate: f64,
    /// The weight decay.
    pub weight_decay: f64,
}

/// A tensor that a step is fed and gives back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Feed {
    /// The input.
    pub input: String,
    /// The output to feed it with in the next step.
    pub output: String,
    /// What it is: `parameter`, `optimizer`, `statistic`, `counter`, `loss_scale`.
    pub role: String,
    /// The element type.
    pub r#type: String,
    /// The sizes.
    pub shape: Vec<i64>,
}

impl Manifest {
    /// The format that this version writes.
    pub const FORMAT: u32 = FORMAT;

    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// There is none, or it is of another version.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        Ok(Self::read_from(folder)?)
    }

    fn read_from(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !folder.is_dir() {
            let what = if folder.exists() { "it is no folder" } else { "there is no such folder" };
            let what = format_args!("{what}; `onnx-gradients trainable` writes one that is taken here");
            return Err(Error::io(what)).in_file(folder);
        }
        let read = || {
            let text = file::read_text(&path)?;
            let manifest: Manifest = serde_json::from_str(&text).context("not a manifest of a trainable model")?;
            ensure!(manifest.format == FORMAT, "format {}; this version reads {FORMAT}", manifest.format);
            let files = manifest.models.iter().map(|m| m.file.as_str());
            for file in files.chain([manifest.inference.as_str(), manifest.initial_state.as_str()]) {
                ensure!(is_inside(file), "it names a file outside of its folder: '{file}'");
                // A link may lead out as well.
                let (Ok(base), Ok(real)) = (folder.canonicalize(), folder.join(file).canonicalize()) else { continue };
                ensure!(real.starts_with(base), "it names a file that is a link out of its folder: '{file}'");
            }
            Ok(manifest)
        };
        read().context("written by `onnx-gradients trainable`").in_file(&path)
    }

    /// The number of samples that the model's inputs are fixed to, if they are.
    ///
    /// # Errors
    /// They are fixed to different numbers.
    pub fn fixed_batch(&self) -> Result<Option<usize>, Error> {
        Ok(self.one_batch()?)
    }

    fn one_batch(&self) -> Result<Option<usize>> {
        let sizes = self.data.iter().chain(&self.labels).filter_map(|i| *i.shape.first()?);
        let mut sizes: Vec<usize> = sizes.map(usize::try_from).collect::<Result<_, _>>()?;
        sizes.dedup();
        match sizes[..] {
            [] => Ok(None),
            [n] => Ok(Some(n)),
            _ => bail!("the model's inputs are fixed to different numbers of samples"),
        }
    }

    /// The model of that role.
    ///
    /// # Errors
    /// There is none.
    pub fn model(&self, role: &str) -> Result<&ModelFile, Error> {
        let found = self.models.iter().find(|m| m.role == role);
        Ok(found.with_context(|| format!("the manifest names no model '{role}'"))?)
    }
}
