//! The files of a trainable model.

use super::manifest::{self, Manifest};
use super::state::{self, State};
use crate::error::InFile;
use crate::error::{Error, OrKind};
use crate::model::Model;
use crate::onnx::file::{self, WriteOptions, unfinished};
use crate::onnx::{ModelProto, TensorProto};
use crate::record::Record;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs::rename;
use std::io;
use std::path::Path;

/// A trainable model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Artifacts {
    /// The models by their role.
    pub models: Vec<(String, ModelProto)>,
    /// The model as it was.
    pub inference: Model,
    /// The value that each fed tensor starts with.
    pub state: State,
    /// What belongs together.
    pub manifest: Manifest,
    /// What the outputs of `gradients` are.
    pub record: Record,
}

/// The file of the initial state.
pub(super) const STATE_FILE: &str = "state.safetensors";
/// The file of the model as it was.
pub(super) const INFERENCE_FILE: &str = "inference.onnx";

impl Artifacts {
    /// The model `gradients` at the values that a training starts with, with a record of what its outputs are the
    /// gradients of: what a validation takes. Matrices of LoRA stay inputs, since half of them start as zeros, where
    /// gradients are zero.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn evidence(&self) -> Result<Model, Error> {
        Ok(self.step_with_gradients()?)
    }

    fn step_with_gradients(&self) -> Result<Model> {
        let manifest = &self.manifest;
        let (_, gradients) =
            self.models.iter().find(|(role, _)| role == "gradients").context("no model 'gradients'")?;
        let mut proto = gradients.clone();
        let own = |name: &str| manifest.lora.iter().any(|a| a.left == name || a.right == name);
        let state = self.state.iter().filter(|(name, _)| !own(name));
        let mut values: HashMap<&str, &TensorProto> = state.map(|(name, value)| (name.as_str(), value)).collect();
        if let Some(graph) = &mut proto.graph {
            let mut initial = Vec::new();
            graph.input.retain(|input| match values.remove(input.name()) {
                Some(value) => {
                    initial.push(TensorProto { name: input.name.clone(), ..value.clone() });
                    false
                }
                None => true,
            });
            graph.initializer.extend(initial);
        }
        self.record.attach(&mut proto)?;
        Ok(Model { proto, folder: self.inference.folder.clone(), source: None, appended: None, file: None })
    }

    /// Checks that [`Artifacts::write`] may write into a folder, before there is anything to be written.
    ///
    /// # Errors
    /// It exists and is not to be replaced, or holds something else; the folder that it is to lie in is missing.
    pub fn ensure_writable(folder: &Path, force: bool) -> Result<(), Error> {
        let shown = folder.display();
        let problem = |what: std::fmt::Arguments<'_>| Err(Error::io(what).in_file(Some(shown.to_string())));
        if folder.exists() && !folder.is_dir() {
            return problem(format_args!("{shown}: it is no folder, and a trainable model is one"));
        }
        if folder.exists() && !force {
            return problem(format_args!("{shown} exists already; --force replaces it"));
        }
        let ours = !folder.exists() || folder.join(manifest::FILE).exists() || is_empty(folder);
        if !ours {
            return problem(format_args!("{shown} holds something else than a trainable model; choose another name"));
        }
        let parent = file::folder(folder);
        if !parent.is_dir() {
            return problem(format_args!("{shown}: there is no folder '{}'", parent.display()));
        }
        Ok(())
    }

    /// Writes everything into a folder, all or nothing: beside its place first, then renamed.
    ///
    /// # Errors
    /// The folder exists and is not to be replaced, or cannot be written.
    pub fn write(&self, folder: &Path, force: bool) -> Result<(), Error> {
        self.written(folder, force).or_kind(Error::io)
    }

    fn written(&self, folder: &Path, force: bool) -> Result<()> {
        Self::ensure_writable(folder, force)?;
        let parent = file::folder(folder);
        let (place, _lock) = unfinished::folder(parent)
            .with_context(|| format!("cannot write into the folder '{}'", parent.display()))?;
        for ((_, model), entry) in self.models.iter().zip(&self.manifest.models) {
            file::write(model, &place.path().join(&entry.file), Default::default())?;
        }
        let options = WriteOptions { ready: self.inference.ready(), ..Default::default() };
        let mut inference = self.inference.proto.clone();
        // Data keep their names, unless one of these files has it.
        let own = self.manifest.models.iter().map(|entry| entry.file.as_str());
        let own: Vec<&str> = own.chain([INFERENCE_FILE, STATE_FILE, manifest::FILE]).collect();
        let name = |old: &str| if own.contains(&old) { format!("inference.{old}") } else { old.to_owned() };
        file::unload_external(&mut inference, place.path(), &name, false)?;
        file::write(&inference, &place.path().join(INFERENCE_FILE), options)?;
        state::write(&place.path().join(STATE_FILE), &self.state, None, false)?;
        let text = serde_json::to_string_pretty(&self.manifest)?;
        std::fs::write(place.path().join(manifest::FILE), text + "\n")?;
        let moved =
            if folder.exists() { exchange(place.path(), folder) } else { rename(place.keep().as_path(), folder) };
        moved.in_file(folder)
    }
}

/// Gives two folders each other's place, in one step where the system can: there is the old or the new one at any
/// moment.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    // The old one stands aside for a moment, and comes back if the new one cannot take its place.
    let aside = new.join("replaced");
    rename(old, &aside)?;
    rename(new, old).inspect_err(|_| {
        let _ = rename(&aside, old);
    })?;
    std::fs::remove_dir_all(old.join("replaced"))
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
