//! `grad`: tf.gradients for a file.

use super::options::{CallArgs, FileArgs};
use super::running::{Reseeded, ensure_valid, report, summary};
use super::table::Table;
use crate::derivatives::{Kept, PerSample};
use crate::memory::{Budget, Limit};
use crate::onnx::{TensorProto, npy};
use crate::{Gradients, Model, Output, Seed};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

/// Append the gradients of ys with respect to xs to a model
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients grad mlp.onnx -o mlp-grad.onnx --ys loss --params
  onnx-gradients grad cnn.onnx -o saliency.onnx --ys scores --xs image --only-gradients
  onnx-gradients grad mlp.onnx -o - --ys loss --xs 'layer*.weight' > mlp-grad.onnx
  onnx-gradients grad mlp.onnx -o out.onnx --params --grad-ys -3 --stop-gradients hidden
  onnx-gradients grad mlp.onnx -o out.onnx --ys loss --params --per-sample 0 --clip-norm 1
  onnx-gradients grad gpt.onnx -o out.onnx --ys loss --params --memory-budget 50% --dim batch=8 time=128
  onnx-gradients grad training.onnx -o plain.onnx --lower")]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    call: CallArgs,
    /// Seeds, one a y, in order: ones | NUMBER | input | input:NAME | tensor:NAME | file:PATH (.npy or TensorProto)
    #[arg(long, value_name = "SPEC", num_args = 1..)]
    grad_ys: Vec<String>,
    /// The most that the model may hold at a time, as a share of what it holds without this (0.5, 50%) or in bytes
    /// (300MB): what the gradients need of the forward pass is computed again instead of kept until no more is held.
    /// Inputs and weights do not count, gradients do; --dim says what sizes symbols have
    #[arg(long, value_name = "FRACTION|BYTES", value_parser = super::memory::limit)]
    memory_budget: Option<Limit>,
    #[command(flatten)]
    samples: SampleArgs,
    /// Instead of all that, replace the model's own Gradient nodes (ai.onnx.preview.training) by what computes their
    /// outputs
    #[arg(long, conflicts_with_all = [
        "ys", "xs", "params", "inputs", "grad_ys", "stop_gradients", "name", "aggregation_method", "unconnected_gradients",
        "colocate_gradients_with_ops", "gate_gradients", "only_gradients", "straight_through", "memory_budget",
    ])]
    lower: bool,
}

/// Gradients of each sample.
#[derive(clap::Args)]
struct SampleArgs {
    /// The gradients of each sample alone, of shape [N] + x.shape; the samples lie along this axis of the inputs
    #[arg(long, value_name = "AXIS", conflicts_with_all = ["grad_ys", "lower", "memory_budget"])]
    per_sample: Option<i64>,
    /// The inputs that hold samples [default: those of the size of the first one along the axis]
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "per_sample")]
    samples: Vec<String>,
    /// Only the norm of all gradients of each sample
    #[arg(long, requires = "per_sample", conflicts_with = "clip_norm")]
    norms: bool,
    /// The sums over the samples of gradients scaled down to at most this norm, and the norms
    #[arg(long, value_name = "NORM", requires = "per_sample")]
    clip_norm: Option<f64>,
}

impl SampleArgs {
    fn request(&self, call: Gradients, axis: i64) -> PerSample {
        let kept = match self.clip_norm {
            Some(norm) => Kept::Clipped(norm),
            None if self.norms => Kept::Norms,
            None => Kept::Each,
        };
        PerSample::new(call, axis).inputs(&self.samples).keep(kept)
    }
}

/// Reads, differentiates, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    if !args.call.has_xs() && !args.lower {
        let message = "no xs are given; name tensors with --xs, take --params or --inputs, or --lower the model's own";
        return Err(super::usage("grad", message));
    }
    if let Some(axis) = args.samples.per_sample {
        return super::derivative::run("grad", &args.files, &args.call, |call, model| {
            args.samples.request(call, axis).build_onto(model)
        });
    }
    let model = args.files.load()?;
    if args.lower {
        return lower(args, &model);
    }
    let request = request(args, &model)?;
    let again = args.files.validates().then(|| model.clone());
    // What becomes of forward nodes without the outputs is asked of all nodes.
    let mut output = match args.files.only_gradients {
        true => request.build_onto(model)?,
        false => request.build_file(model)?,
    };
    // Gradients are compared with what the ys do: what is validated still holds them.
    let whole = (args.files.only_gradients && args.files.validates()).then(|| output.model.clone());
    if args.files.only_gradients {
        output.drop_model_outputs();
    }
    output.warnings.extend(output.memory.as_ref().and_then(super::memory::warning));
    let call = &output.record.name;
    let reseeded = || {
        let reseeded = request.clone().seed_each(Seed::Input(None)).build(again.as_ref()?).ok()?;
        Some((reseeded.record.name.clone(), reseeded.model))
    };
    let reseeded: Option<Reseeded> = if args.grad_ys.is_empty() { Some(&reseeded) } else { None };
    let (warnings, validation) =
        args.files.write_valid(call, &output.model, whole.as_ref(), output.warnings.clone(), reseeded)?;
    let json = args.files.json;
    let text = if json { as_json(&output, &validation, &warnings) } else { as_text(&output, &validation) };
    args.files.print(&text)?;
    ensure_valid(&validation)
}

/// Lowers the model's own Gradient nodes. They are not validated: the model comes with no record of what they are to
/// be.
fn lower(args: &Args, model: &Model) -> Result<()> {
    let lowered = model.lower_gradients()?;
    let mut warnings = lowered.warnings.clone();
    if lowered.nodes.is_empty() {
        warnings.push("the model holds no Gradient node of ai.onnx.preview.training".to_owned());
    }
    let warnings = args.files.write(&lowered.model, warnings)?;
    let text = if args.files.json {
        let (nodes, added) = (&lowered.nodes, lowered.nodes_added);
        format!("{}\n", json!({ "lowered": nodes, "nodes_added": added, "warnings": warnings }))
    } else {
        let mut table = Table::new(["node", "y", "x", "gradient"]);
        for node in &lowered.nodes {
            for g in &node.gradients {
                let gradient = g.name.clone().unwrap_or_else(|| "left out".to_owned());
                table.row([node.node.clone(), node.y.clone(), g.x.clone(), gradient]);
            }
        }
        format!("{table}{} Gradient nodes lowered; {} nodes added\n", lowered.nodes.len(), lowered.nodes_added)
    };
    args.files.print(&text)
}

fn request(args: &Args, model: &Model) -> Result<Gradients> {
    let seeds = args.grad_ys.iter().map(|spec| seed(spec)).collect::<Result<Vec<_>>>()?;
    let request = args.call.request()?.seeds(seeds);
    Ok(match args.memory_budget {
        Some(limit) => request.memory_budget(Budget { limit, sizes: args.files.running.sizes(model)? }),
        None => request,
    })
}

/// A seed from its SPEC, which is split at its first colon.
fn seed(spec: &str) -> Result<Seed> {
    Ok(match (spec, spec.split_once(':').filter(|(_, name)| !name.is_empty())) {
        ("ones", _) => Seed::Ones,
        ("input", _) => Seed::Input(None),
        (_, Some(("input", name))) => Seed::Input(Some(name.to_owned())),
        (_, Some(("tensor", name))) => Seed::Tensor(name.to_owned()),
        (_, Some(("file", path))) => {
            let tensor = npy::read_tensor(Path::new(path))?;
            Seed::Constant(TensorProto { name: Some(spec.to_owned()), ..tensor })
        }
        _ => match spec.parse() {
            Ok(number) => Seed::Fill(number),
            Err(_) => {
                let kinds = "ones, a number, input, input:NAME, tensor:NAME or file:PATH";
                return Err(super::usage("grad", format!("'{spec}' is no seed: it is {kinds}")));
            }
        },
    })
}

fn as_json(output: &Output, validation: &Value, warnings: &[String]) -> String {
    let seeds = output.seeds.iter().map(|s| {
        let given = || s.fill.map(|v| if v == 1.0 { "ones".to_owned() } else { v.to_string() });
        json!({ "y": s.y, "seed": s.seed.clone().or_else(given) })
    });
    let mut object = json!({
        "gradients": output.gradients,
        "seeds": seeds.collect::<Vec<_>>(),
        "validation": validation,
        "nodes_added": output.nodes_added,
        "warnings": warnings,
    });
    if let Some(memory) = &output.memory {
        object["memory"] = json!(memory);
    }
    report(object, validation)
}

fn as_text(output: &Output, validation: &Value) -> String {
    let mut table = Table::new(["x", "gradient", "shape", "error"]);
    let types = output.model.output_types();
    for (i, g) in output.gradients.iter().enumerate() {
        let checked = &validation["gradients"][i];
        let error = match (checked["compared"].as_bool(), checked["error"].as_f64()) {
            (Some(true), Some(error)) => format!("{error:.1e}"),
            _ => checked["note"].as_str().unwrap_or_default().to_owned(),
        };
        let name = g.name.clone().unwrap_or_else(|| "none: no y depends on it".to_owned());
        let shape = g.name.as_ref().and_then(|g| types.get(g)).cloned().unwrap_or_default();
        table.row([g.x.clone(), name, shape, error]);
    }
    let memory = output.memory.as_ref().map(super::memory::as_text).unwrap_or_default();
    format!("{table}{memory}{} nodes added; {}\n", output.nodes_added, summary(validation))
}
