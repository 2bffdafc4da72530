//! `jvp`: Jacobian times vector.

use super::options::{CallArgs, FileArgs};
use crate::derivatives::Jvp;
use anyhow::Result;

/// Append the product of the Jacobian with vectors along xs, which are new inputs, to a model
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients jvp surrogate.onnx -o out.onnx --ys force --xs state
  onnx-gradients jvp mlp.onnx -o out.onnx --params --only-gradients --json

The vector along x is the input `jvp/v/<x>`, the product of y the output `jvp/<y>`.")]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    call: CallArgs,
}

/// Appends, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    super::derivative::run("jvp", &args.files, &args.call, |call, model| Jvp::from(call).build_onto(model))
}
