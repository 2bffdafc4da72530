//! What the commands have in common that write derivatives other than gradients: read, request, write, validate,
//! report.

use super::options::{CallArgs, FileArgs};
use super::running::{ensure_valid, report, summary};
use super::table::Table;
use crate::derivatives::Derived;
use crate::{Error, Gradients, Model};
use anyhow::Result;
use serde_json::{Value, json};

/// What all of them take; those for products take nothing else.
#[derive(clap::Args)]
pub struct DerivativeArgs {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    call: CallArgs,
}

impl DerivativeArgs {
    /// Runs a command.
    pub fn run(&self, command: &str, build: impl FnOnce(Gradients, Model) -> Result<Derived, Error>) -> Result<()> {
        run(command, &self.files, &self.call, build)
    }
}

/// Runs a command: `build` makes its request of the options that all have.
pub fn run(
    command: &str,
    files: &FileArgs,
    call: &CallArgs,
    build: impl FnOnce(Gradients, Model) -> Result<Derived, Error>,
) -> Result<()> {
    if !call.has_xs() {
        let message = "no xs are given; name tensors with --xs, or take --params or --inputs";
        return Err(super::usage(command, message));
    }
    run_with(files, call.request()?, build)
}

/// Loads, builds, runs and writes a derivative of any request.
pub fn run_with(
    files: &FileArgs,
    request: Gradients,
    build: impl FnOnce(Gradients, Model) -> Result<Derived, Error>,
) -> Result<()> {
    let mut derived = build(request, files.load()?)?;
    // What is validated still holds the ys.
    let whole = (files.only_gradients && files.validates()).then(|| derived.model.clone());
    if files.only_gradients {
        derived.drop_model_outputs();
    }
    let call = &derived.claim.name;
    let (warnings, validation) =
        files.write_valid(call, &derived.model, whole.as_ref(), derived.warnings.clone(), None)?;
    let json = files.json;
    let text = if json { as_json(&derived, &validation, &warnings) } else { as_text(&derived, &validation) };
    files.print(&text)?;
    ensure_valid(&validation)
}

fn as_json(derived: &Derived, validation: &Value, warnings: &[String]) -> String {
    let object = json!({
        "derivative": derived.claim.kind,
        "outputs": derived.outputs,
        "vectors": derived.vectors,
        "validation": validation,
        "nodes_added": derived.nodes_added,
        "warnings": warnings,
    });
    report(object, validation)
}

fn as_text(derived: &Derived, validation: &Value) -> String {
    let types = derived.model.output_types();
    let mut table = Table::new(["y", "x", "derivative", "shape"]);
    for e in &derived.outputs {
        let name = e.name.clone().unwrap_or_else(|| "none: nothing depends on it".to_owned());
        let shape = e.name.as_ref().and_then(|n| types.get(n)).cloned().unwrap_or_default();
        table.row([e.y.clone().unwrap_or_default(), e.x.clone().unwrap_or_default(), name, shape]);
    }
    let mut inputs = Table::new(["new input", "of"]);
    for v in &derived.vectors {
        inputs.row([v.name.clone(), v.of.clone()]);
    }
    let inputs = if derived.vectors.is_empty() { String::new() } else { inputs.to_string() };
    format!("{table}{inputs}{} nodes added; {}\n", derived.nodes_added, summary(validation))
}
