//! `hessian`: whole Hessians, and their diagonals.

use super::derivative;
use super::jacobian::MatrixArgs;
use crate::derivatives::Hessian;
use anyhow::Result;

/// Append the Hessian of the sum of ys with respect to xs, of shape x.shape + x.shape, to a model
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients hessian energy.onnx -o out.onnx --ys energy --xs positions
  onnx-gradients hessian pinn.onnx -o out.onnx --ys u --xs points --batch 0 --diagonal

The Hessian by x and z is the output `hessian/<x>/<z>`, a diagonal the output `hessian/<x>`.")]
pub struct Args {
    #[command(flatten)]
    common: derivative::DerivativeArgs,
    #[command(flatten)]
    matrix: MatrixArgs,
    /// Only second derivatives by the same element twice, in the shape of x: with --batch their sum over a sample is
    /// its Laplacian
    #[arg(long)]
    diagonal: bool,
}

/// Appends, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    args.common.run("hessian", |call, model| {
        let request = Hessian::from(call).mode(args.matrix.mode.into()).diagonal(args.diagonal);
        let request = if let Some(axis) = args.matrix.batch { request.batch(axis) } else { request };
        request.build_onto(model)
    })
}
