//! `attack`: inputs close to x that a classifier gets wrong.

use super::options::{CallArgs, FileArgs};
use crate::derivatives::{Attack, Steps};
use anyhow::{Context, Result};
use clap::{Subcommand, builder::RangedU64ValueParser};

/// Append adversarial examples to a model: outputs of the shape of its inputs, for which its loss is larger
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients attack fgsm cnn.onnx -o out.onnx --epsilon 0.03 --bounds 0..1
  onnx-gradients attack pgd cnn.onnx -o out.onnx --ys scores --xs image --epsilon 0.03 --steps 20
  onnx-gradients attack fgsm mlp.onnx -o out.onnx --ys loss --xs image --loss --epsilon 0.1

Labels are the input `fgsm/label` (`pgd/label`), the example the output `fgsm/<x>`. With --loss, --ys is the loss itself.")]
pub struct Args {
    #[command(subcommand)]
    steps: By,
}

#[derive(Subcommand)]
enum By {
    /// One step: x + epsilon sign(dL/dx) (Goodfellow et al. 2014)
    Fgsm {
        #[command(flatten)]
        common: Common,
    },
    /// Several steps, each brought back to within epsilon of x (Madry et al. 2017)
    Pgd {
        #[command(flatten)]
        common: Common,
        /// How many steps
        #[arg(long, default_value_t = 10, value_parser = RangedU64ValueParser::<usize>::new().range(1..100_000))]
        steps: usize,
        /// The size of a step [default: 2.5 epsilon / steps]
        #[arg(long, value_name = "ALPHA")]
        step_size: Option<f64>,
        /// Start at a random place within epsilon of x, which follows from this number
        #[arg(long, value_name = "SEED")]
        random_start: Option<i64>,
    },
}

#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    call: CallArgs,
    /// How far each place of x may change
    #[arg(long)]
    epsilon: f64,
    /// The least and the largest number that an input may hold
    #[arg(long, value_name = "LOW..HIGH", allow_hyphen_values = true, value_parser = range)]
    bounds: Option<(f64, f64)>,
    /// The axis of y that runs over classes
    #[arg(long, value_name = "AXIS", default_value_t = -1)]
    class_axis: i64,
    /// Labels are what the classifier shall be led to, not away from
    #[arg(long)]
    targeted: bool,
    /// --ys is the loss itself, with the labels that the model takes
    #[arg(long)]
    loss: bool,
}

fn range(text: &str) -> Result<(f64, f64)> {
    let (low, high) = text.split_once("..").context("it is of the form LOW..HIGH")?;
    Ok((low.parse()?, high.parse()?))
}

/// Appends, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    let (common, steps) = match &args.steps {
        By::Fgsm { common } => (common, Steps::Fgsm),
        By::Pgd { common, steps, step_size, random_start } => {
            let size = step_size.unwrap_or(2.5 * common.epsilon / *steps as f64);
            (common, Steps::Pgd { count: *steps, size, random_start: *random_start })
        }
    };
    let request = common.call.request_about_input()?;
    super::derivative::run_with(&common.files, request, |call, model| {
        let request = Attack::new(call, steps, common.epsilon).class_axis(common.class_axis);
        let request = if let Some((low, high)) = common.bounds { request.range(low, high) } else { request };
        request.targeted(common.targeted).is_loss(common.loss).build_onto(model)
    })
}
