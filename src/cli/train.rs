//! `train`: runs a training step in tract.

use super::console::{self, Stream};
use super::curve;
use super::table::Table;
use crate::error::InFile;
use crate::training::{CHECKPOINT, Data, Epoch, Event, Manifest, Options, Schedule, train};
use crate::weights::listed;
use anyhow::{Result, bail, ensure};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Train in tract, to prove a trainable model and to prototype
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients train mlp-training --data digits.npz --epochs 20 --batch-size 32 --lr 0.003
  onnx-gradients train mlp-training --data digits.npz --epochs 40 --schedule cosine --warmup 50 --resume

DATA holds a tensor for each input of the model and each label, by name; the first dimension counts the samples.")]
pub struct Args {
    /// A folder that `trainable` has written
    folder: PathBuf,
    /// The samples: .npz or .safetensors, or a folder of such files or of one .npy a tensor; they are not read into
    /// memory
    #[arg(long, value_name = "FILE|FOLDER")]
    data: PathBuf,
    /// Samples for evaluation in a file of their own, in the place of those that are held out
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// How often all samples are seen
    #[arg(long, default_value_t = 10)]
    epochs: usize,
    /// Samples in a batch, or in a micro-batch where several make a step [default: what the model is fixed to, else 32]
    #[arg(long)]
    batch_size: Option<usize>,
    /// The learning rate
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// How the learning rate goes on after the warm-up
    #[arg(long, value_enum, default_value = "constant")]
    schedule: Shape,
    /// The number of steps over which the learning rate rises from zero
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    warmup: u64,
    /// The share of the samples that are held out for evaluation
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    held_out: f64,
    /// The order of the samples, and which are held out, follow from it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between checkpoints, beside those at the end of each epoch
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    checkpoint_every: u64,
    /// Go on from the checkpoint, to the same numbers as without the interruption
    #[arg(long)]
    resume: bool,
    /// Replace the checkpoint of an earlier training
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Shape {
    /// It stays
    Constant,
    /// It falls to zero in a straight line
    Linear,
    /// It falls to zero as half a wave of the cosine
    Cosine,
}

/// Reads, trains, reports.
pub fn run(args: &Args) -> Result<()> {
    let manifest = Manifest::read(&args.folder)?;
    let checkpoint = args.folder.join(CHECKPOINT);
    ensure!(
        args.resume || args.force || !checkpoint.exists(),
        "{} exists already; --resume goes on from it, --force starts anew",
        checkpoint.display()
    );
    let data = Data::read(&args.data, &manifest)?;
    let evaluation = args.eval_data.as_ref().map(|p| Data::read(p, &manifest)).transpose()?;
    let options = options(args, &manifest)?;
    for (file, given) in [(Some(&args.data), Some(&data)), (args.eval_data.as_ref(), evaluation.as_ref())] {
        if let (Some(file), Some(given)) = (file, given.filter(|g| !g.skipped.is_empty())) {
            super::note(format_args!("{}: {} are not taken by the model", file.display(), listed(&given.skipped)));
        }
    }
    let stop = super::console::interrupted();
    let mut bar = Bar::new();
    let trained = train(&args.folder, &data, evaluation.as_ref(), &options, args.resume, &mut |event| {
        bar.show(&event);
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    bar.clear();
    if let Some(steps) = trained.stopped {
        let checkpoint = checkpoint.display();
        bail!("stopped after {steps} steps, which {checkpoint} holds; the same call with --resume goes on from there");
    }
    let history = trained.epochs;
    let curve = args.folder.join("loss.svg");
    let lines = [
        ("training", history.iter().map(|e| e.loss).collect::<Vec<_>>()),
        ("held out", history.iter().filter_map(|e| loss(e, &manifest)).collect()),
    ];
    std::fs::write(&curve, curve::svg(&lines)).in_file(&curve)?;
    let mut out = Stream::Report;
    if args.json {
        return Ok(writeln!(out, "{}", json!({ "epochs": history, "checkpoint": checkpoint, "curve": curve }))?);
    }
    write!(out, "{}", table(&history, &manifest))?;
    writeln!(out, "loss {}", curve::line(&lines[0].1))?;
    writeln!(out, "checkpoint {}, curve {}", checkpoint.display(), curve.display())?;
    Ok(())
}

fn options(args: &Args, manifest: &Manifest) -> Result<Options> {
    Ok(Options {
        epochs: args.epochs,
        batch: args.batch_size.or(manifest.fixed_batch()?).unwrap_or(32),
        rate: args.lr,
        schedule: match args.schedule {
            Shape::Constant => Schedule::Constant,
            Shape::Linear => Schedule::Linear,
            Shape::Cosine => Schedule::Cosine,
        },
        warmup: args.warmup,
        seed: args.seed,
        held_out: args.held_out,
        checkpoint_every: args.checkpoint_every,
    })
}

fn loss(epoch: &Epoch, manifest: &Manifest) -> Option<f64> {
    epoch.held_out.as_ref()?.get(&manifest.loss).copied()
}

fn table(history: &[Epoch], manifest: &Manifest) -> Table {
    let mut table = Table::new(["epoch", "steps", "loss", "held-out loss", "held-out metrics"]);
    for epoch in history {
        let metrics = epoch.held_out.iter().flatten().filter(|(n, _)| **n != manifest.loss);
        table.row([
            epoch.epoch.to_string(),
            epoch.steps.to_string(),
            format!("{:.5}", epoch.loss),
            loss(epoch, manifest).map_or_else(String::new, |l| format!("{l:.5}")),
            metrics.map(|(n, v)| format!("{n} {v:.4}")).collect::<Vec<_>>().join(", "),
        ]);
    }
    table
}

/// A line on stderr that is written over, where somebody looks; one line an epoch where not.
struct Bar {
    terminal: bool,
    drawn: Instant,
}

impl Bar {
    fn new() -> Self {
        let now = Instant::now();
        Bar {
            terminal: !console::is_within() && std::io::stderr().is_terminal(),
            drawn: now.checked_sub(Duration::from_secs(1)).unwrap_or(now),
        }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Step(epoch, step, steps, loss) => {
                if self.terminal && (self.drawn.elapsed() > Duration::from_millis(50) || step == steps) {
                    self.drawn = Instant::now();
                    let full = step * 30 / (*steps).max(1);
                    let bar = format!("{}{}", "█".repeat(full), "░".repeat(30 - full.min(30)));
                    let _ = write!(Stream::Notes, "\r\x1b[2Kepoch {epoch} {bar} {step}/{steps} loss {loss:.5}");
                }
            }
            Event::Epoch(e) => {
                self.clear();
                let held: Vec<String> = e.held_out.iter().flatten().map(|(n, v)| format!("{n} {v:.4}")).collect();
                let held = if held.is_empty() { String::new() } else { format!(", held out: {}", held.join(", ")) };
                super::note(format_args!("epoch {}: loss {:.5}{held}", e.epoch, e.loss));
            }
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(Stream::Notes, "\r\x1b[2K");
        }
    }
}
