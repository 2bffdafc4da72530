//! `diff`: what a model has of another, and what it has lost.

use super::console::Stream;
use super::failure::{self, Reported};
use super::one_line;
use crate::Error;
use crate::error::InFile;
use crate::onnx::file::{self, Difference};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Compare two models field by field: is B what A was, with additions or without?
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients diff mlp.onnx mlp-grad.onnx
  onnx-gradients diff before.onnx after.onnx --json

Exit code 0 where B holds all of A, in A's order, and whatever else; 1 where something is lost or changed.
Fields of newer versions of the format are compared like all others.")]
pub struct Args {
    /// The model as it was
    a: PathBuf,
    /// The model as it is
    b: PathBuf,
    /// List every addition, not only how many there are
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Reads both, compares, prints; fails where something is lost or changed.
pub fn run(args: &Args) -> Result<()> {
    let read = |path: &Path| file::read_whole(path).in_file(path);
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    for (bytes, path) in [(&a, &args.a), (&b, &args.b)] {
        file::read_bytes(bytes.clone()).in_file(path)?;
    }
    let difference = file::diff(&a, &b).context("fields of a kind that no model has")?;
    let failure = (!difference.only_adds()).then(|| {
        let (lost, changed) = (difference.lost.len(), difference.changed.len());
        Error::different(format_args!("B is not what A was: {lost} lost, {changed} changed"))
    });
    let mut out = Stream::Report;
    if args.json {
        let mut report: Value = json!(difference);
        report["only_adds"] = json!(difference.only_adds());
        if let Some(error) = &failure {
            failure::add(&mut report, error);
        }
        writeln!(out, "{report}")?;
    } else {
        out.write_all(text(&difference, args.all).as_bytes())?;
    }
    failure.map_or(Ok(()), |error| Err(Reported(error).into()))
}

fn text(difference: &Difference, all: bool) -> String {
    let mut lines = Vec::new();
    lines.extend(difference.lost.iter().map(|path| format!("lost     {path}")));
    lines.extend(difference.changed.iter().map(|c| format!("changed  {}: {} -> {}", c.path, c.from, c.to)));
    for (list, added) in &difference.added {
        match all {
            true => lines.extend(added.iter().map(|name| format!("added    {list}[{name}]"))),
            false => lines.push(format!("added    {list}: {}", added.len())),
        }
    }
    if lines.is_empty() {
        lines.push("nothing differs".to_owned());
    }
    lines.iter().map(|line| one_line(line) + "\n").collect()
}
