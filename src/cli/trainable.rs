//! `trainable`: an inference model into a trainable one.

use super::console::Stream;
use super::options;
use super::running::{RunArgs, ensure_valid, failure, report, summary};
use super::table::Table;
use crate::Model;
use crate::error::InFile;
use crate::memory::{Budget, Limit};
use crate::training::{Artifacts, Choice, Input, LossSpec, Trainable, optimizer};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Make an inference model trainable: a training step, its halves and an evaluation as plain models, with a manifest
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients trainable mlp.onnx -o mlp-training --loss cross-entropy:logits
  onnx-gradients trainable cnn.onnx -o t --loss cross-entropy --optimizer sgd --train 'head.*' --batch-norm train
  onnx-gradients trainable vae.onnx -o t --loss mse:image,labels=target --loss 0.1*kl_term --lora 8 --clip-norm 1

A loss is [WEIGHT*]KIND[:OUTPUT][,OPTION=VALUE...]; KIND is cross-entropy, nll, bce, bce-with-logits, mse, mae, huber,
kl-divergence, cosine-embedding, or the name of a scalar that the model computes. Options: labels=INPUT, other=OUTPUT,
smoothing=0.1, ignore=-100, class-weights=1/2/1, soft, axis=1, delta=1, margin=0, sum.")]
pub struct Args {
    /// The model; `-` for stdin
    model: PathBuf,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Losses, which are summed
    #[arg(long, value_name = "LOSS", num_args = 1.., required_unless_present = "loss_model")]
    loss: Vec<String>,
    /// A model of one more loss: its inputs are tensors of the model by name or new inputs, its first output is the
    /// loss
    #[arg(long, value_name = "FILE")]
    loss_model: Option<PathBuf>,
    /// sgd, momentum, nesterov, rmsprop, adagrad, adam, adamw, lamb or lion
    #[arg(long, default_value = "adamw")]
    optimizer: String,
    /// Write updates as operators of ai.onnx.preview.training (momentum, nesterov, adagrad, adam), which few runtimes
    /// have
    #[arg(long)]
    preview_operators: bool,
    /// The share of the momentum that stays, or alpha of rmsprop [default: as PyTorch has it, here and below]
    #[arg(long)]
    momentum: Option<f64>,
    /// The share of the running mean of gradients that stays
    #[arg(long)]
    beta1: Option<f64>,
    /// The share of the running mean of squared gradients that stays
    #[arg(long)]
    beta2: Option<f64>,
    /// What keeps denominators from zero
    #[arg(long)]
    epsilon: Option<f64>,
    /// Weight decay
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Parameters without weight decay, by pattern
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    no_decay: Vec<String>,
    /// Factors on the learning rate, by pattern
    #[arg(long, value_name = "PATTERN=FACTOR", num_args = 1..)]
    lr_group: Vec<String>,
    /// The most that the norm of all gradients together may be
    #[arg(long, value_name = "NORM")]
    clip_norm: Option<f64>,
    /// The most that an element of a gradient may be
    #[arg(long, value_name = "VALUE")]
    clip_value: Option<f64>,
    /// Weights to train, by pattern [default: all]. +PATTERN trains others in addition, =-PATTERN (--train=-PATTERN)
    /// all but those. A pattern with wildcards means weights; constants are named
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    train: Vec<String>,
    /// Weights not to train, by pattern; --freeze=-PATTERN excepts some of them
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    freeze: Vec<String>,
    /// Train the last N layers only
    #[arg(long, value_name = "N")]
    last_layers: Option<usize>,
    /// Train LoRA matrices of this rank in the place of the chosen weights
    #[arg(long, value_name = "RANK")]
    lora: Option<i64>,
    /// The factor of the LoRA product is ALPHA / RANK [default: the rank]
    #[arg(long, value_name = "ALPHA", requires = "lora")]
    lora_alpha: Option<f64>,
    /// The mode of BatchNormalization
    #[arg(long, value_enum, default_value = "inference")]
    batch_norm: Mode,
    /// Tensors that count as constants: no gradient passes them
    #[arg(long, value_name = "NAME", num_args = 1..)]
    stop_gradients: Vec<String>,
    /// Files with gradients of operators as ONNX functions, as `grad` takes them
    #[arg(long, value_name = "FILE", num_args = 1..)]
    gradient_functions: Vec<PathBuf>,
    /// The same as --rounding straight-through, which holds without it
    #[arg(long, conflicts_with = "rounding")]
    straight_through: bool,
    /// What gradients make of rounding in quantization between the weights and the loss
    #[arg(long, value_enum, default_value = "straight-through")]
    rounding: Rounding,
    /// Drop out tensors, or with `train` what the model's own Dropout nodes drop
    #[arg(long, value_name = "train|NAME=RATIO", num_args = 1..)]
    dropout: Vec<String>,
    /// The number of micro-batches that make a step
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// The scale that the loss starts with [default: 65536 for models of float16, else none]
    #[arg(long, value_name = "SCALE")]
    loss_scale: Option<f64>,
    /// Metrics beside the loss: accuracy, top-K, mae, mse, of one output as METRIC:OUTPUT; gradient-norm
    /// [default: accuracy where a loss has it, and gradient-norm]
    #[arg(long, value_name = "METRIC", num_args = 1..)]
    metric: Vec<String>,
    /// No metrics
    #[arg(long, conflicts_with = "metric")]
    no_metrics: bool,
    /// The most that a step may hold at a time, as a share of what it holds without this (0.5, 50%) or in bytes
    /// (300MB): what the gradients need of the forward pass is computed again instead of kept until no more is held.
    /// Inputs and weights do not count, results do
    #[arg(long, value_name = "FRACTION|BYTES", value_parser = super::memory::limit)]
    memory_budget: Option<Limit>,
    /// Random initial values follow from it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    running: RunArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Replace an existing DIR
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// With the statistics of the model
    Inference,
    /// With the statistics of the batch; those of the model follow
    Train,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rounding {
    /// They pass it as if it were the identity
    StraightThrough,
    /// They stop: its true derivative is zero
    True,
}

/// Reads, builds, writes, reports.
pub fn run(args: &Args) -> Result<()> {
    Artifacts::ensure_writable(&args.output, args.force)?;
    let mut model = options::load(&args.model)?;
    args.running.declare(&mut model)?;
    let artifacts = request(args, &model)?.build(&model)?;
    let (call, evidence) = (&artifacts.record.name, artifacts.evidence()?);
    let validation = args.running.validation(call, &evidence, super::values::OF_A_STEP, None)?;
    if failure(&validation).is_some() {
        let kept = format!("{} is not written; --no-validate writes it all the same", args.output.display());
        super::note(format_args!("warning: {kept}"));
    } else {
        artifacts.write(&args.output, args.force)?;
    }
    let mut out = Stream::Report;
    if args.json {
        let object = json!({ "folder": args.output, "manifest": artifacts.manifest, "validation": validation });
        write!(out, "{}", report(object, &validation))?;
    } else {
        print(&artifacts, &mut out)?;
        writeln!(out, "gradients: {}", summary(&validation))?;
        if failure(&validation).is_none() {
            writeln!(out, "wrote {}", args.output.display())?;
        }
    }
    ensure_valid(&validation)
}

fn request(args: &Args, model: &Model) -> Result<Trainable> {
    let losses = args.loss.iter().map(|l| LossSpec::parse(l)).collect::<Result<Vec<_>, _>>()?;
    let mut hyper = optimizer(&args.optimizer)?.defaults();
    let given = [
        (&mut hyper.momentum, args.momentum),
        (&mut hyper.beta1, args.beta1),
        (&mut hyper.beta2, args.beta2),
        (&mut hyper.epsilon, args.epsilon),
        (&mut hyper.weight_decay, args.weight_decay),
    ];
    given.into_iter().for_each(|(slot, value)| *slot = value.unwrap_or(*slot));
    let (own, sites): (Vec<&String>, Vec<&String>) = args.dropout.iter().partition(|d| *d == "train");
    let sites = sites.into_iter().map(|s| pair("--dropout", s)).collect::<Result<Vec<_>>>()?;
    let groups = args.lr_group.iter().map(|g| pair("--lr-group", g)).collect::<Result<Vec<_>>>()?;
    for (option, bound) in [("--clip-norm", args.clip_norm), ("--clip-value", args.clip_value)] {
        ensure!(bound.is_none_or(|b| b > 0.0 && b.is_finite()), "{option} is above 0");
    }
    ensure!(args.accumulate > 0, "--accumulate is at least 1");
    let mut functions = Vec::new();
    for path in &args.gradient_functions {
        let file = || crate::backward::read_functions(crate::onnx::file::read_whole(path)?);
        functions.extend(file().in_file(path)?);
    }
    let choice = Choice { train: args.train.clone(), freeze: args.freeze.clone(), last: args.last_layers };
    let mut request = Trainable::new(losses)
        .choose(choice)
        .optimizer(&args.optimizer, Some(hyper))
        .preview(args.preview_operators)
        .no_decay(args.no_decay.clone())
        .groups(groups)
        .clip(args.clip_norm, args.clip_value)
        .accumulate(args.accumulate)
        .train_batch_norm(args.batch_norm == Mode::Train)
        .dropout(sites, !own.is_empty())
        .straight_through(args.straight_through || args.rounding == Rounding::StraightThrough)
        .stop(args.stop_gradients.clone())
        .functions(functions)
        .seed(args.seed);
    if args.no_metrics || !args.metric.is_empty() {
        request = request.metrics(args.metric.clone());
    }
    if let Some(rank) = args.lora {
        request = request.lora(rank, args.lora_alpha.unwrap_or(rank as f64));
    }
    if let Some(path) = &args.loss_model {
        let mut loss = Model::load(path)?;
        if let Some(folder) = &loss.folder {
            crate::onnx::file::load_external(&mut loss.proto, folder)?;
        }
        request = request.loss_model(&loss);
    }
    if let Some(limit) = args.memory_budget {
        request = request.memory_budget(Budget { limit, sizes: args.running.sizes(model)? });
    }
    Ok(match args.loss_scale {
        Some(scale) => request.loss_scale(scale),
        None => request,
    })
}

/// `NAME=NUMBER`; names may hold any character.
fn pair(option: &str, text: &str) -> Result<(String, f64)> {
    let (name, number) = text.rsplit_once('=').with_context(|| format!("{option} '{text}' is not NAME=NUMBER"))?;
    let number = number.parse().with_context(|| format!("{option} '{text}': '{number}' is no number"))?;
    Ok((name.to_owned(), number))
}

fn print(artifacts: &Artifacts, out: &mut impl Write) -> std::io::Result<()> {
    let m = &artifacts.manifest;
    let mut table = Table::new(["parameter", "type", "shape", "lr", "decay"]);
    for (p, feed) in m.parameters.iter().zip(&m.state) {
        table.row([
            p.name.clone(),
            feed.r#type.clone(),
            format!("{:?}", feed.shape),
            p.learning_rate.to_string(),
            p.weight_decay.to_string(),
        ]);
    }
    write!(out, "{table}")?;
    let numbers: i64 = m.state.iter().filter(|f| f.role == "parameter").map(|f| f.shape.iter().product::<i64>()).sum();
    writeln!(
        out,
        "{} parameters, {numbers} numbers; {}: {}",
        m.parameters.len(),
        m.optimizer.name,
        m.optimizer.formula
    )?;
    let mut table = Table::new(["constant", "shape", "", "why"]);
    for e in &m.weights {
        let what = if e.trained { "trained" } else { "constant" };
        table.row([e.name.clone(), format!("{}{:?}", e.r#type, e.shape), what.to_owned(), e.why.clone()]);
    }
    write!(out, "\n{table}\n")?;
    for loss in &m.losses {
        writeln!(out, "loss {loss}")?;
    }
    for decision in &m.decisions {
        writeln!(out, "- {decision}")?;
    }
    let names =
        |inputs: &[Input]| inputs.iter().map(|i| format!("'{}' ({})", i.name, i.r#type)).collect::<Vec<_>>().join(", ");
    writeln!(out, "data: {}", names(&m.data))?;
    if !m.labels.is_empty() {
        writeln!(out, "labels: {}", names(&m.labels))?;
    }
    for (file, memory) in m.models.iter().filter_map(|f| Some((&f.file, f.memory.as_ref()?))) {
        write!(out, "{file} {}", super::memory::as_text(memory))?;
    }
    Ok(())
}
