//! What is said of the shapes of a model's tensors.

use super::values::pair;
use crate::Model;
use anyhow::{Result, ensure};
#[cfg(feature = "validate")]
use std::ffi::OsString;

/// Shapes of tensors.
#[derive(clap::Args, Clone, Default)]
pub struct ShapeArgs {
    /// The shape of a tensor, of numbers and names: x=1x64xT. Of an input in the place of what it is declared as, of a
    /// tensor that a node computes where that node does not tell
    #[arg(long, value_name = "NAME=SHAPE", num_args = 1.., value_parser = shape)]
    shape: Vec<(String, Vec<String>)>,
}

impl ShapeArgs {
    /// Declares the shapes in a model.
    ///
    /// # Errors
    /// The errors of [`Model::declare`].
    pub fn declare(&self, model: &mut Model) -> Result<()> {
        Ok(model.declare(&self.shape)?)
    }

    /// The arguments that say the same.
    #[cfg(feature = "validate")]
    pub fn arguments(&self) -> impl Iterator<Item = OsString> {
        self.shape.iter().map(|(name, dims)| format!("--shape={name}={}", dims.join("x")).into())
    }
}

/// `NAME=1x64xT`: numbers and names.
fn shape(text: &str) -> Result<(String, Vec<String>)> {
    let (name, dims) = pair(text)?;
    let dims: Vec<String> = dims.split('x').filter(|d| !dims.is_empty() || !d.is_empty()).map(str::to_owned).collect();
    let sized = |d: &String| d.parse::<i64>().map_or_else(|_| !d.is_empty(), |n| n > 0);
    ensure!(dims.iter().all(sized), "a shape is of sizes from 1 and names, as 1x64xT");
    Ok((name, dims))
}
