//! `print`: a model as text.

use super::console::{self, Stream};
use crate::onnx::{file, text};
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Print a model in ONNX's text syntax
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients print mlp-grad.onnx
  onnx-gradients print small.onnx --whole > small.txt

Long tensors are abbreviated, which no parser reads; --whole writes all of their elements, as onnx.parser takes them.")]
pub struct Args {
    /// The model; `-` for stdin
    model: PathBuf,
    /// All elements of all tensors
    #[arg(long)]
    whole: bool,
    /// Print JSON: an object with the text
    #[arg(long)]
    json: bool,
}

/// Reads and prints.
pub fn run(args: &Args) -> Result<()> {
    let model = match args.model == Path::new("-") {
        true => file::read_bytes(console::input().context("stdin")?).context("stdin")?,
        false => file::read(&args.model)?,
    };
    let text = if args.whole { text::print_whole(&model) } else { text::print(&model) };
    let text = if args.json { json!({ "text": text }).to_string() + "\n" } else { text };
    Ok(Stream::Report.write_all(text.as_bytes())?)
}
