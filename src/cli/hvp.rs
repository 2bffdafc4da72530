//! `hvp`: Hessian times vector.

use super::options::{CallArgs, FileArgs};
use crate::derivatives::Hvp;
use anyhow::Result;

/// Append the product of the Hessian of the sum of ys with vectors along xs, which are new inputs, to a model
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients hvp energy.onnx -o out.onnx --ys energy --xs positions
  onnx-gradients hvp mlp.onnx -o out.onnx --ys loss --params --only-gradients

The vector along x is the input `hvp/v/<x>`, the product the output `hvp/<x>`.")]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    call: CallArgs,
}

/// Appends, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    super::derivative::run("hvp", &args.files, &args.call, |call, model| Hvp::from(call).build_onto(model))
}
