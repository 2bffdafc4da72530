//! The command for one model, in a process of its own, and what has become of it.

use super::super::console;
use super::{Args, Job, Line, Takes};
use crate::Error;
use crate::onnx::file;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How the names of folders begin whose contents are not kept.
const SCRATCH: &str = ".batch-";

/// Runs the command for one model.
pub fn one(args: &Args, takes: &Takes, job: &Job, key: String) -> Line {
    let start = Instant::now();
    let bytes = fs::metadata(&job.path).map_or(0, |m| m.len());
    let outcome = attempt(args, takes, job).unwrap_or_else(|error| {
        let error = Error::from(error);
        Outcome { code: error.code().to_owned(), message: Some(error.to_string()), exit: None, report: Value::Null }
    });
    // Protobuf ends at two gigabytes, and pipes may have no end.
    let whole = (job.path.is_file() && bytes < 1 << 31).then(|| file::read_whole(&job.path).ok()).flatten();
    let operators = whole.map(|whole| file::operators(&whole)).unwrap_or_default();
    let seconds = (start.elapsed().as_secs_f64() * 1e3).round() / 1e3;
    let Outcome { code, message, exit, report } = outcome;
    let (model, command) = (job.name.clone(), job.command.clone());
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Line { model, key, code, message, exit, seconds, bytes, operators, command, version, report }
}

/// What has become of a command.
struct Outcome {
    code: String,
    message: Option<String>,
    exit: Option<i32>,
    report: Value,
}

/// Why nothing is known of the gradients, where a report says that they were not validated although they should have
/// been.
fn not_validated(report: &Value) -> Option<String> {
    let validation = &report["validation"];
    let skipped = |v: &&Value| v["status"] == "skipped" && v["reason"] != "--no-validate";
    // `check` says of each call what it has found.
    let calls =
        report.as_object().into_iter().flat_map(|calls| calls.values()).filter(|call| call["gradients"].is_array());
    let found = std::iter::once(validation).chain(calls).find(skipped)?;
    Some(found["reason"].as_str().unwrap_or_default().to_owned())
}

fn attempt(args: &Args, takes: &Takes, job: &Job) -> Result<Outcome> {
    let scratch =
        args.no_write.then(|| tempfile::Builder::new().prefix(SCRATCH).tempdir_in(&args.output)).transpose()?;
    let folder = scratch.as_ref().map_or(args.output.as_path(), |s| s.path());
    let target = folder.join(&job.name);
    if takes.output {
        fs::create_dir_all(file::folder(&target)).map_err(file::plain)?;
    }
    match ended(command(args, takes, job, &target)?, Duration::from_secs(args.timeout))? {
        Some(ended) => ended.outcome(args, job, &target),
        None => {
            let message = format!("it has not ended within {} seconds; --timeout gives it more", args.timeout);
            Ok(Outcome { code: "timeout".to_owned(), message: Some(message), exit: None, report: Value::Null })
        }
    }
}

/// The command for one model, which writes to `target` if it writes anything.
fn command(args: &Args, takes: &Takes, job: &Job, target: &Path) -> Result<Command> {
    let mut command = console::program()?;
    command.arg("--end-with-stdin").args(&job.command);
    if takes.output {
        command.arg("-o").arg(target);
    }
    for (taken, option) in [(takes.force && takes.output, "--force"), (takes.json, "--json")] {
        if taken && !job.command.iter().any(|a| a == option) {
            command.arg(option);
        }
    }
    command.arg("--").arg(&job.path);
    if let Some(memory) = args.memory {
        command.env(console::MEMORY, memory.to_string());
    }
    Ok(command)
}

/// What a command has said before it ended.
struct Ended {
    status: ExitStatus,
    report: Value,
    notes: String,
}

/// Runs a command to its end; `None` for one that was ended because its time was over.
fn ended(mut command: Command, patience: Duration) -> Result<Option<Ended>> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // It closes when this process ends, however it does: the child then ends too.
    let alive = child.stdin.take();
    let said = reader(child.stdout.take())?;
    let noted = reader(child.stderr.take())?;
    let status = wait(&mut child, patience)?;
    drop(alive);
    let Some(status) = status else { return Ok(None) };
    let text = |t: std::thread::JoinHandle<String>| t.join().unwrap_or_default();
    let report = serde_json::from_str(&text(said)).unwrap_or(Value::Null);
    Ok(Some(Ended { status, report, notes: text(noted) }))
}

impl Ended {
    fn outcome(self, args: &Args, job: &Job, target: &Path) -> Result<Outcome> {
        let last = || self.notes.lines().last().map(|line| line.trim_start_matches("error: ").to_owned());
        let no_memory = || self.notes.contains("memory allocation") || self.notes.contains("allocate memory");
        let (status, exit) = (self.status, self.status.code());
        let (code, message) = match exit {
            Some(0) => match not_validated(&self.report) {
                Some(reason) => ("not-validated", Some(reason)),
                None if args.round_trip => match lost(&job.path, target)? {
                    Some(path) => ("different", Some(format!("what is written has lost or changed {path}"))),
                    None => ("ok", None),
                },
                None => ("ok", None),
            },
            Some(1 | 2) => match self.report["code"].as_str() {
                Some(code) => (code, self.report["message"].as_str().map(str::to_owned)),
                None => ("unsupported", last()),
            },
            // A panic ends by itself, unless it was for want of memory.
            Some(101) if !no_memory() => ("internal", last()),
            // What ends by a signal under a limit of memory has most likely met it.
            _ if args.memory.is_some() => {
                ("out-of-memory", Some(format!("it ended with {status}; --memory gives it more")))
            }
            _ if no_memory() => ("out-of-memory", last()),
            _ => ("internal", Some(format!("it ended with {status}"))),
        };
        Ok(Outcome { code: code.to_owned(), message, exit, report: self.report.clone() })
    }
}

/// The first path in a model of what its copy has lost or changed.
fn lost(model: &Path, copy: &Path) -> Result<Option<String>> {
    let (a, b) = (file::read_whole(model)?, file::read_whole(copy)?);
    let difference = file::diff(&a, &b).context("fields of a kind that no model has")?;
    Ok(difference.lost.iter().chain(difference.changed.iter().map(|c| &c.path)).next().cloned())
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> Result<std::thread::JoinHandle<String>> {
    /// More is not kept of what one model says.
    const MOST: u64 = 64 << 20;
    let pipe = pipe.context("no pipe")?;
    Ok(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut pipe = pipe;
        let _ = pipe.by_ref().take(MOST).read_to_end(&mut bytes);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

/// How a process has ended; `None` for one that was ended because its time was over.
fn wait(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes what a run that was killed has left of models that it had begun.
pub fn tidy(output: &Path) {
    for entry in fs::read_dir(output).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_folder && entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
