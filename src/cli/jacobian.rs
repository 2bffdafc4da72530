//! `jacobian`: whole Jacobians.

use super::derivative;
use crate::derivatives::{Jacobian, Mode};
use anyhow::Result;

/// Append the Jacobian of each y with respect to each x, of shape y.shape + x.shape, to a model
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients jacobian surrogate.onnx -o out.onnx --ys force --xs state
  onnx-gradients jacobian policy.onnx -o out.onnx --ys action --xs observation --batch 0
  onnx-gradients jacobian decoder.onnx -o out.onnx --ys image --xs code --mode forward

The Jacobian is the output `jacobian/<y>/<x>`.")]
pub struct Args {
    #[command(flatten)]
    common: derivative::DerivativeArgs,
    #[command(flatten)]
    matrix: MatrixArgs,
}

/// How a matrix of derivatives is computed.
#[derive(clap::Args)]
pub struct MatrixArgs {
    /// The axis of ys and xs along which samples lie that do not depend on each other: the result holds each sample's
    /// own, and takes as many passes as one sample needs
    #[arg(long, value_name = "AXIS")]
    pub batch: Option<i64>,
    /// By which passes
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) mode: Passes,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum Passes {
    /// The fewer of the two
    Auto,
    /// One for each element of x
    Forward,
    /// One for each element of y
    Reverse,
}

impl From<Passes> for Mode {
    fn from(passes: Passes) -> Self {
        match passes {
            Passes::Auto => Mode::Auto,
            Passes::Forward => Mode::Forward,
            Passes::Reverse => Mode::Reverse,
        }
    }
}

/// Appends, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    args.common.run("jacobian", |call, model| {
        let request = Jacobian::from(call).mode(args.matrix.mode.into());
        let request = if let Some(axis) = args.matrix.batch { request.batch(axis) } else { request };
        request.build_onto(model)
    })
}
