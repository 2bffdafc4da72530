//! `export`: the inference model with trained weights.

use super::console::Stream;
use crate::Model;
use crate::onnx::file::{self, same_file};
use crate::training::{Adapters, Manifest, export, read_state};
use anyhow::{Result, ensure};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Put trained weights back into the inference model
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients export mlp-training -o mlp-trained.onnx
  onnx-gradients export mlp-training -o mlp-lora.onnx --state my-state.safetensors --lora apart")]
pub struct Args {
    /// A folder that `trainable` has written
    folder: PathBuf,
    /// The model to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// A safetensors file with the parameters by name [default: the checkpoint of `train` in the folder]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// What becomes of LoRA matrices
    #[arg(long, value_enum, default_value = "merged")]
    lora: Lora,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Replace an existing OUT
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Lora {
    /// Their product is added to the weights
    Merged,
    /// They stay apart, with nodes that add the product
    Apart,
}

/// Reads, replaces, writes.
pub fn run(args: &Args) -> Result<()> {
    let manifest = Manifest::read(&args.folder)?;
    let path = args.state.clone().unwrap_or_else(|| args.folder.join("checkpoint.safetensors"));
    let inference = args.folder.join(&manifest.inference);
    ensure!(!same_file(&inference, &args.output), "OUT is the original model, which is never overwritten");
    let mut model = Model::load(&inference)?;
    if let Some(folder) = &model.folder {
        file::load_external_kept(&mut model.proto, folder)?;
    }
    let (state, _) = read_state(&path)?;
    let adapters = match args.lora {
        Lora::Merged => Adapters::Merged,
        Lora::Apart => Adapters::Apart,
    };
    let (mut proto, notes) = export(&manifest, &model.proto, &state, adapters)?;
    file::ensure_writable(&args.output, args.force)?;
    let to = file::folder(&args.output);
    file::unload_external(&mut proto, to, &|old| data_name(&args.output, old), args.force)?;
    let source = model.source.take();
    Model { proto, folder: Some(to.to_owned()), source, appended: None, file: None }.write(&args.output, args.force)?;
    for note in &notes {
        super::note(format_args!("note: {note}"));
    }
    let count = manifest.parameters.len();
    let mut out = Stream::Report;
    match args.json {
        true => {
            writeln!(out, "{}", json!({ "model": args.output, "state": path, "parameters": count, "notes": notes }))?
        }
        false => writeln!(out, "{}: {count} parameters from {}", args.output.display(), path.display())?,
    }
    Ok(())
}

/// What the data of a location are called beside OUT: its name without ending, and the path of the location.
fn data_name(output: &Path, location: &str) -> String {
    let stem = output.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = format!("{stem}.{}", location.replace('/', "."));
    // What a model that is too large leaves out of its file has that name.
    let taken = output.file_name().is_some_and(|n| format!("{}.data", n.to_string_lossy()) == name);
    if taken { format!("{stem}.external.data") } else { name }
}
