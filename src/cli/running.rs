//! What all commands have in common that run what they have made.

use super::shapes::ShapeArgs;
use crate::{Error, Model};
#[cfg(feature = "validate")]
use anyhow::Context;
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;
#[cfg(feature = "validate")]
use std::time::Instant;

/// Whether what was made is run, and on what.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Do not run the result
    #[arg(long)]
    no_validate: bool,
    #[command(flatten)]
    shapes: ShapeArgs,
    #[cfg(feature = "validate")]
    #[command(flatten)]
    engine: super::check::EngineArgs,
    #[cfg(not(feature = "validate"))]
    /// The size of a symbolic dimension
    #[arg(long, value_name = "SYMBOL=SIZE", num_args = 1.., value_parser = super::values::dim)]
    dim: Vec<(String, i64)>,
}

/// Makes a request once more, with random seeds: its name and its model.
pub type Reseeded<'a> = &'a dyn Fn() -> Option<(String, Model)>;

impl RunArgs {
    /// Whether what was made is to be run.
    pub fn validates(&self) -> bool {
        !self.no_validate
    }

    /// The sizes that are given for symbolic dimensions of a model.
    ///
    /// # Errors
    /// A symbol that the model does not have.
    pub fn sizes(&self, model: &Model) -> Result<BTreeMap<String, i64>> {
        #[cfg(feature = "validate")]
        let given = self.engine.dims();
        #[cfg(not(feature = "validate"))]
        let given = &self.dim;
        super::values::sizes(given, model)
    }

    /// Declares the shapes that are given for tensors of a model.
    ///
    /// # Errors
    /// The errors of [`Model::declare`].
    pub fn declare(&self, model: &mut Model) -> Result<()> {
        self.shapes.declare(model)
    }

    /// How to validate a model in this process.
    ///
    /// # Errors
    /// Names that the model does not have; values that do not fit.
    #[cfg(feature = "validate")]
    pub fn options(&self, model: &Model, seed: u64) -> Result<crate::validate::Options> {
        self.engine.options(model, seed)
    }

    /// What running a model shows of one request. What is run is a copy of what is written, before anybody else sees
    /// it. It takes so many seconds at most, where the user does not say how many.
    pub fn validation(&self, call: &str, model: &Model, seconds: u64, reseeded: Option<Reseeded>) -> Result<Value> {
        if self.no_validate {
            return Ok(json!({ "status": "skipped", "reason": "--no-validate" }));
        }
        self.run_in_engine(call, model, seconds, reseeded)
    }

    #[cfg(not(feature = "validate"))]
    fn run_in_engine(&self, _: &str, _: &Model, _: u64, _: Option<Reseeded>) -> Result<Value> {
        Ok(json!({ "status": "skipped", "reason": "this build is without an engine" }))
    }

    #[cfg(feature = "validate")]
    fn run_in_engine(&self, call: &str, model: &Model, seconds: u64, reseeded: Option<Reseeded>) -> Result<Value> {
        use super::check;
        let engine = self.engine.within(seconds);
        engine.fits(model)?;
        let run = |call: &str, model: &Model, engine: &check::EngineArgs, reseeded: bool| {
            let copy = check::temporary(model).context("no copy to run")?;
            check::after(copy.path(), call, &self.shapes, engine, reseeded)
        };
        let start = Instant::now();
        let mut validation = match run(call, model, &engine, reseeded.is_some()) {
            Ok(validation) => validation,
            Err(error) => return Ok(json!({ "status": "skipped", "reason": format!("{error:#}") })),
        };
        if validation.gradients.iter().any(|g| g.zero)
            && let Some(engine) = engine.after(start.elapsed())
            && let Some((call, model)) = reseeded.and_then(|reseeded| reseeded())
            && let Ok(other) = run(&call, &model, &engine, false)
        {
            validation.complete(other);
        }
        let mut value = json!(validation);
        value["summary"] = json!(check::summary(&validation));
        Ok(value)
    }
}

/// What a validation fails with, where it has failed.
pub fn failure(validation: &Value) -> Option<Error> {
    let reason = validation["reason"].as_str().unwrap_or_default();
    let error = || Error::validation_failed(format_args!("the validation failed: {reason}")).with_remedy(None);
    (validation["status"] == "failed").then(error)
}

/// Fails where a validation has, once the report has said so.
pub fn ensure_valid(validation: &Value) -> Result<()> {
    failure(validation).map_or(Ok(()), |error| Err(super::failure::Reported(error).into()))
}

/// A report as a line of JSON; where the validation has failed, with the code and the message of that.
pub fn report(mut report: Value, validation: &Value) -> String {
    if let Some(error) = failure(validation) {
        super::failure::add(&mut report, &error);
    }
    format!("{report}\n")
}

/// What a validation says, for people.
pub fn summary(validation: &Value) -> String {
    match (validation["summary"].as_str(), validation["reason"].as_str()) {
        (Some(summary), _) => summary.to_owned(),
        (None, reason) => format!("not validated: {}", reason.unwrap_or_default()),
    }
}
