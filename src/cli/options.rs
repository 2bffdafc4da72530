//! The options that commands share which differentiate a model: what of what, where to write it, whether to run it. And
//! what they do with them: read, write, validate, print.

use super::console::{self, Stream};
use super::running::{Reseeded, RunArgs, failure};
use super::values::USUAL;
use crate::Error;
use crate::backward::read_functions;
use crate::error::InFile;
use crate::error::OrKind;
use crate::onnx::file;
use crate::{Aggregation, Gradients, Model, Unconnected, Wanted};
use anyhow::{Context, Result};
use clap::builder::NonEmptyStringValueParser;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What is differentiated, and how.
#[derive(clap::Args)]
pub struct CallArgs {
    /// Tensors to differentiate [default: all floating-point graph outputs]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub ys: Vec<String>,
    /// Tensors to differentiate with respect to; `*` and `?` are wildcards where the exact name does not exist, and a
    /// name that starts with a dash is written --xs=-name
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub xs: Vec<String>,
    /// Every weight that reaches a y is an x (`inspect` lists the weights and says why; `--xs '*'` takes all tensors)
    #[arg(long)]
    pub params: bool,
    /// Every floating-point graph input is an x
    #[arg(long)]
    pub inputs: bool,
    /// Tensors that count as constants: no gradient passes them
    #[arg(long, value_name = "NAME", num_args = 1..)]
    stop_gradients: Vec<String>,
    /// Rounding counts as the identity: gradients pass QuantizeLinear, within the range of the integers, and what moves
    /// its result to DequantizeLinear, and Round, Floor and Ceil. Without it they stop there, where the true derivative
    /// is zero
    #[arg(long)]
    straight_through: bool,
    /// The scope of all new names [default: that of the command: gradients, jvp, ...]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// How gradients that arrive at one tensor are summed
    #[arg(long, value_enum, default_value = "add-n")]
    aggregation_method: Method,
    /// What stands for the gradient of an x that no y depends on
    #[arg(long, value_enum, default_value = "none")]
    unconnected_gradients: Missing,
    /// Backward nodes take over the devices and the placement metadata of their forward nodes
    #[arg(long)]
    colocate_gradients_with_ops: bool,
    /// A forward node's backward nodes stand together, all its input gradients computed before any is used
    #[arg(long)]
    gate_gradients: bool,
    /// Files with gradients of operators as ONNX functions: inputs the operator's inputs, outputs and output gradients,
    /// outputs its input gradients
    #[arg(long, value_name = "FILE", num_args = 1..)]
    gradient_functions: Vec<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Method {
    /// One Sum of all terms
    AddN,
    /// A balanced tree of Add
    Tree,
    /// A chain that adds each term as it comes
    AccumulateN,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Missing {
    /// Nothing: null in the report
    None,
    /// Zeros of x's type and shape
    Zero,
}

impl CallArgs {
    /// Whether something says with respect to what is differentiated.
    pub fn has_xs(&self) -> bool {
        !self.xs.is_empty() || self.params || self.inputs
    }

    /// The request of the options, where xs need not be given: then x is the main input.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn request_about_input(&self) -> Result<Gradients> {
        let call = self.request()?;
        Ok(if self.has_xs() { call } else { call.with_respect_to(Wanted::MainInput) })
    }

    /// The files with gradients of operators.
    #[cfg(feature = "validate")]
    pub fn functions(&self) -> &[PathBuf] {
        &self.gradient_functions
    }

    /// The request of the options.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn request(&self) -> Result<Gradients> {
        let ys = if self.ys.is_empty() { vec![Wanted::Outputs] } else { wanted(&self.ys) };
        let mut xs = wanted(&self.xs);
        xs.extend(self.params.then_some(Wanted::Parameters));
        xs.extend(self.inputs.then_some(Wanted::Inputs));
        let mut functions = Vec::new();
        for path in &self.gradient_functions {
            let file = || read_functions(file::read_whole(path)?);
            let read = file().or_kind(Error::invalid_data).map_err(anyhow::Error::from);
            functions.extend(read.in_file(path)?);
        }
        let call = Gradients::new(ys, xs)
            .stop(&self.stop_gradients)
            .functions(functions)
            .straight_through(self.straight_through)
            .aggregation(match self.aggregation_method {
                Method::AddN => Aggregation::AddN,
                Method::Tree => Aggregation::Tree,
                Method::AccumulateN => Aggregation::AccumulateN,
            })
            .unconnected(match self.unconnected_gradients {
                Missing::None => Unconnected::None,
                Missing::Zero => Unconnected::Zero,
            })
            .colocate(self.colocate_gradients_with_ops);
        Ok(match &self.name {
            Some(name) => call.name(name),
            None => call,
        })
    }
}

fn wanted(names: &[String]) -> Vec<Wanted> {
    names.iter().map(Wanted::from).collect()
}

/// The model of a path, or for `-` that of stdin, whose external data lie in the current folder.
///
/// # Errors
/// It cannot be read, or is no model.
pub fn load(path: &Path) -> Result<Model> {
    if path != Path::new("-") {
        return Ok(Model::load(path)?);
    }
    let bytes = console::input().context("stdin")?;
    let model = Model::from_bytes(bytes).context("stdin")?;
    Ok(Model { folder: Some(PathBuf::from(".")), ..model })
}

/// The model, and what becomes of it.
#[derive(clap::Args)]
pub struct FileArgs {
    /// The model; `-` for stdin
    pub model: PathBuf,
    /// The file to write; `-` for stdout
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Drop the model's own outputs, and what only they need
    #[arg(long)]
    pub only_gradients: bool,
    #[command(flatten)]
    pub running: RunArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Replace an existing OUT
    #[arg(long)]
    force: bool,
}

impl FileArgs {
    /// The model, once it is sure that OUT can be written.
    pub fn load(&self) -> Result<Model> {
        if !self.to_stdout() {
            if file::same_file(&self.model, &self.output) {
                return Err(
                    Error::usage("OUT is the model itself, which is never overwritten; choose another name").into()
                );
            }
            file::ensure_writable(&self.output, self.force)?;
        }
        let mut model = load(&self.model)?;
        self.running.declare(&mut model)?;
        Ok(model)
    }

    /// Validates what is to be written of a request, and writes it unless that fails; `whole` is the same with the
    /// outputs that it has dropped, `reseeded` makes the same call with random seeds, if there are gradients that ones
    /// make zero. Returns the warnings with those that come of writing, and what the validation says.
    pub fn write_valid(
        &self,
        call: &str,
        model: &Model,
        whole: Option<&Model>,
        warnings: Vec<String>,
        reseeded: Option<Reseeded>,
    ) -> Result<(Vec<String>, Value)> {
        let validation = self.running.validation(call, whole.unwrap_or(model), USUAL, reseeded)?;
        if failure(&validation).is_some() {
            let kept = format!("{} is not written; --no-validate writes it all the same", self.output.display());
            super::note(format_args!("warning: {kept}"));
            return Ok((warnings.into_iter().chain([kept]).collect(), validation));
        }
        Ok((self.write(model, warnings)?, validation))
    }

    /// Writes the model, and the warnings with those that come of it, which are returned.
    pub fn write(&self, model: &Model, mut warnings: Vec<String>) -> Result<Vec<String>> {
        if self.to_stdout() {
            console::write_model(model)?;
        } else {
            warnings.extend(model.write(&self.output, self.force)?);
        }
        for warning in &warnings {
            super::note(format_args!("warning: {warning}"));
        }
        Ok(warnings)
    }

    /// Prints the report. The model itself is what goes to stdout where it is asked for there.
    pub fn print(&self, text: &str) -> Result<()> {
        // Inside a program a model has a buffer of its own.
        let beside_model = self.to_stdout() && !console::is_within();
        let mut stream = if beside_model { Stream::Notes } else { Stream::Report };
        Ok(stream.write_all(text.as_bytes())?)
    }

    /// Whether the result is run before it is written.
    pub fn validates(&self) -> bool {
        cfg!(feature = "validate") && self.running.validates()
    }

    fn to_stdout(&self) -> bool {
        [Path::new("-"), Path::new("/dev/stdout")].contains(&&*self.output)
    }
}
