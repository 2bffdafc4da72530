//! What options say: names with values, and whether the model has them.

use crate::onnx::did_you_mean;
use crate::{Error, Model};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// The most that a validation takes, in seconds.
pub const USUAL: u64 = 30;
/// The most that the validation of a training's step takes, in seconds: a user waits for the folder.
pub const OF_A_STEP: u64 = 15;

/// Names may hold any character, files and numbers hardly ever an equals sign.
pub fn pair(text: &str) -> Result<(String, String)> {
    let (name, value) = text.rsplit_once('=').context("it is not of the form NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The size of a symbol: `batch=4`.
pub fn dim(text: &str) -> Result<(String, i64)> {
    let (symbol, size) = pair(text)?;
    let size = size.parse().ok().filter(|&size| size > 0).context("a size is a whole number from 1")?;
    Ok((symbol, size))
}

/// The sizes that are given for symbols of a model's inputs.
///
/// # Errors
/// A symbol that the model does not have.
pub fn sizes(given: &[(String, i64)], model: &Model) -> Result<BTreeMap<String, i64>> {
    let symbols = crate::survey::symbols(&model.proto);
    known("--dim", given.iter().map(|(symbol, _)| symbol), symbols.iter().map(String::as_str))?;
    Ok(given.iter().cloned().collect())
}

/// Fails for names that the model does not have: they would change nothing.
///
/// # Errors
/// All of them at once.
pub fn known<'a>(
    option: &str,
    given: impl IntoIterator<Item = &'a String>,
    names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let names: BTreeSet<&str> = names.collect();
    let unknown: Vec<&String> = given.into_iter().filter(|name| !names.contains(name.as_str())).collect();
    let Some(first) = unknown.first() else { return Ok(()) };
    let said: Vec<String> = (unknown.iter())
        .map(|name| format!("{option}: the model has no '{name}'{}", did_you_mean(name, names.iter().copied())))
        .collect();
    Err(Error::name(said.join("; ")).with_tensor(first).into())
}
