//! `explain`: what in an input speaks for a class.

use super::options::{CallArgs, FileArgs};
use crate::derivatives::{Class, Explain, Method};
use anyhow::Result;
use clap::{Subcommand, builder::RangedU64ValueParser};

/// Append an explanation of a classifier's prediction to a model: an output of the size of its input
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients explain grad-cam resnet.onnx -o out.onnx
  onnx-gradients explain saliency cnn.onnx -o out.onnx --ys scores --xs image --class 3
  onnx-gradients explain integrated-gradients bert.onnx -o out.onnx --ys logits --xs embeddings --class input

--ys names the scores of classes [default: the output], --xs the input [default: the one with the most axes], or any tensor
behind it, as the embeddings of tokens.")]
pub struct Args {
    #[command(subcommand)]
    method: By,
}

#[derive(Subcommand)]
enum By {
    /// The largest |dS/dx| over the channels (Simonyan et al. 2013)
    Saliency {
        #[command(flatten)]
        common: Common,
    },
    /// x dS/dx (Shrikumar et al. 2016)
    InputXGradient {
        #[command(flatten)]
        common: Common,
    },
    /// A layer's channels, weighted by their mean gradients (Selvaraju et al. 2016)
    GradCam {
        #[command(flatten)]
        common: Common,
        /// The layer [default: the last one with channels and places like x]
        #[arg(long, value_name = "NAME")]
        layer: Option<String>,
    },
    /// (x - baseline) times the mean gradient on the way from the baseline to x (Sundararajan et al. 2017)
    IntegratedGradients {
        #[command(flatten)]
        common: Common,
        /// On how many points of the way
        #[arg(long, default_value_t = 50, value_parser = RangedU64ValueParser::<usize>::new().range(1..100_000))]
        steps: usize,
        /// A number in every place, or `input` for a new input of x's shape
        #[arg(long, default_value = "0", value_parser = number_or_input)]
        baseline: Given,
    },
    /// The saliency of the mean gradient over several noisy copies of x (Smilkov et al. 2017)
    SmoothGrad {
        #[command(flatten)]
        common: Common,
        /// How many copies
        #[arg(long, default_value_t = 50, value_parser = RangedU64ValueParser::<usize>::new().range(1..100_000))]
        samples: usize,
        /// The noise's standard deviation as a share of the range of x
        #[arg(long, default_value_t = 0.15)]
        noise: f64,
        /// What the noise follows from
        #[arg(long, default_value_t = 0, conflicts_with = "noise_input")]
        seed: i64,
        /// Standard normal numbers come from a new input of shape [samples] + x.shape
        #[arg(long)]
        noise_input: bool,
    },
}

#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    call: CallArgs,
    /// The class that is explained: `predicted`, its number, or `input` for a new input with one number a sample
    #[arg(long, default_value = "predicted", value_parser = class)]
    class: Class,
    /// The axis of y that runs over classes
    #[arg(long, value_name = "AXIS", default_value_t = -1)]
    class_axis: i64,
    /// The axis of x that runs over channels [default: 1 of images, the last one of tokens]
    #[arg(long, value_name = "AXIS")]
    channels: Option<i64>,
    /// Explain the probability where the model ends in a Softmax, not the score before it
    #[arg(long)]
    keep_softmax: bool,
}

#[derive(Clone, Copy)]
enum Given {
    Number(f64),
    Input,
}

fn number_or_input(text: &str) -> Result<Given, String> {
    match (text, text.parse::<f64>()) {
        ("input", _) => Ok(Given::Input),
        (_, Ok(number)) if number.is_finite() => Ok(Given::Number(number)),
        _ => Err("it is a number, or `input`".to_owned()),
    }
}

fn class(text: &str) -> Result<Class, String> {
    match (text, text.parse::<i64>()) {
        ("predicted", _) => Ok(Class::Predicted),
        ("input", _) => Ok(Class::Input),
        (_, Ok(number)) if number >= 0 => Ok(Class::Number(number)),
        _ => Err("it is `predicted`, a number from 0, or `input`".to_owned()),
    }
}

/// Appends, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    let (common, method) = match &args.method {
        By::Saliency { common } => (common, Method::Saliency),
        By::InputXGradient { common } => (common, Method::InputXGradient),
        By::GradCam { common, layer } => (common, Method::GradCam { layer: layer.clone() }),
        By::IntegratedGradients { common, steps, baseline } => {
            let baseline = if let Given::Number(number) = baseline { Some(*number) } else { None };
            (common, Method::IntegratedGradients { steps: *steps, baseline })
        }
        By::SmoothGrad { common, samples, noise, seed, noise_input } => {
            let seed = (!noise_input).then_some(*seed);
            (common, Method::SmoothGrad { samples: *samples, noise: *noise, seed })
        }
    };
    let request = common.call.request_about_input()?;
    super::derivative::run_with(&common.files, request, |call, model| {
        let request = Explain::new(call, method).class(common.class).class_axis(common.class_axis);
        let request = if let Some(axis) = common.channels { request.channels(axis) } else { request };
        request.keep_softmax(common.keep_softmax).build_onto(model)
    })
}
