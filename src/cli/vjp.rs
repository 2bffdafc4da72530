//! `vjp`: vector times Jacobian.

use super::options::{CallArgs, FileArgs};
use crate::derivatives::Vjp;
use anyhow::Result;

/// Append the product of vectors for ys, which are new inputs, with the Jacobian to a model: grad --grad-ys input
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients vjp unet.onnx -o guided.onnx --ys noise --xs sample
  onnx-gradients vjp surrogate.onnx -o out.onnx --ys force --xs state --only-gradients

The vector for y is the input `vjp/v/<y>`, the product for x the output `vjp/<x>`.")]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    call: CallArgs,
}

/// Appends, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    super::derivative::run("vjp", &args.files, &args.call, |call, model| Vjp::from(call).build_onto(model))
}
