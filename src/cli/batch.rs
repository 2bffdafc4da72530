//! `batch`: one command over many models, a process each.

mod compare;
mod entry;
mod page;
mod process;
mod reasons;
mod settings;

use super::console::{self, Stream};
use super::failure::Reported;
use super::table::Table;
use crate::Error;
use crate::backward::matches;
use crate::error::InFile;
use crate::onnx::file;
use anyhow::{Context, Result, ensure};
use clap::CommandFactory;
use clap::builder::RangedU64ValueParser;
use compare::Change;
use entry::Entry;
use reasons::Reason;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use settings::Settings;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{IsTerminal, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Run a command over many models, a process each, with limits, a report and the means to go on after an interruption
#[derive(clap::Args)]
#[command(after_help = r#"Examples:
  onnx-gradients batch models -o out -- grad --params
  onnx-gradients batch 'zoo/*-int8.onnx' -o out --jobs 4 --timeout 60 --allow not-validated -- grad --inputs --straight-through
  onnx-gradients batch list.txt -o out --no-write --resume -- grad --params

Options of single models stand in a TOML file beside them: list.toml for list.txt, batch.toml in a folder, or --settings FILE.
Each of its tables is called by a model or a pattern, each key is an option of the command, in place of what the command says:
  ["bert-*"]
  dim = { batch = 2, seq = 8 }
  input = { ids = "ids.npy" }
  ys = ["loss"]

OUT/report.jsonl gets a line as each model ends: its code (ok, or one of docs/errors.md), seconds, and what the command has
said. OUT/report.html shows all of it. What the command writes lies in OUT by the path of its model. Exit code 0 where all succeed or have an allowed code."#)]
pub struct Args {
    /// A folder (all .onnx files in it and below), a pattern with `*` and `?`, a list of paths in a text file, or a
    /// model
    models: String,
    /// The folder for the report and for what is written
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// How many processes run at a time [default: as many as there are processors]
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    jobs: Option<usize>,
    /// Seconds that each model has
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=365 * 24 * 3600))]
    timeout: u64,
    /// Bytes of address space that each process has, with K, M or G behind them for more (Linux)
    #[arg(long, value_name = "BYTES", value_parser = super::memory::bytes)]
    memory: Option<u64>,
    /// Go on with a report: a model with a line of the same contents, command and version is done
    #[arg(long)]
    resume: bool,
    /// Begin anew where OUT holds a report
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Codes that count as success
    #[arg(long, value_name = "CODE", num_args = 1.., value_parser = code)]
    allow: Vec<String>,
    /// Keep nothing of what the command writes
    #[arg(long)]
    no_write: bool,
    /// Hold what is written against its model (see diff): it only adds, or its code is `different`
    #[arg(long)]
    round_trip: bool,
    /// Options of single models, by name or pattern [default: LIST.toml beside a list, batch.toml in a folder, where
    /// there is one]
    #[arg(long, value_name = "FILE.toml")]
    settings: Option<PathBuf>,
    /// An earlier report.jsonl: say what is better or worse now
    #[arg(long, value_name = "OLD.jsonl")]
    compare: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The command and its options, without model and output
    #[arg(last = true, required = true, num_args = 1.., allow_hyphen_values = true)]
    command: Vec<String>,
}

fn code(text: &str) -> Result<String> {
    let mut known = Error::CODES.iter().map(|(code, _)| *code);
    ensure!(known.any(|code| code == text), "it is no code of an error; docs/errors.md lists them");
    Ok(text.to_owned())
}

/// A model, and where what comes of it lies in OUT.
struct Job {
    path: PathBuf,
    name: String,
    /// The command with the options of this model.
    command: Vec<String>,
}

/// A line of the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    /// The path of the model from the folder or list that it was found by.
    model: String,
    /// What must be the same for the line to stand for the model.
    key: String,
    /// `ok`, or the code of the error.
    code: String,
    /// What failed.
    message: Option<String>,
    /// The exit code of the command, if it has ended by itself.
    #[serde(default)]
    exit: Option<i32>,
    seconds: f64,
    bytes: u64,
    /// How many nodes the model has of each operator.
    #[serde(default)]
    operators: BTreeMap<String, u64>,
    /// The command and its options.
    #[serde(default)]
    command: Vec<String>,
    /// The version of this program.
    #[serde(default)]
    version: String,
    /// What the command has said.
    report: Value,
}

/// What the command takes, of what a batch gives it.
struct Takes {
    output: bool,
    force: bool,
    json: bool,
}

/// Finds the models, runs the command for each that is not done, reports.
pub fn run(args: &Args) -> Result<()> {
    let takes = takes(&args.command)?;
    if args.round_trip && !takes.output {
        return Err(Error::usage(format_args!("'{}' writes no model to compare", args.command[0])).into());
    }
    let (base, mut jobs) = find(args)?;
    let mut warnings = settle(args, &takes, &base, &mut jobs)?;
    // Before the first line is written: it may be the report that this run replaces.
    let old = args.compare.as_deref().map(compare::read).transpose()?;
    if args.output.exists() && !args.output.is_dir() {
        return Err(Error::io(format_args!("{}: it is no folder, and OUT is one", args.output.display())).into());
    }
    let made = fs::create_dir_all(&args.output).map_err(file::plain);
    made.with_context(|| format!("cannot make the folder '{}'", args.output.display()))?;
    let report = args.output.join("report.jsonl");
    let (lines, resumed) = lines(args, &takes, &jobs, &report)?;
    // In the order of the models, one line each, however often it was interrupted.
    let text = lines.iter().map(|line| Ok(serde_json::to_string(line)? + "\n")).collect::<Result<String>>()?;
    file::replace(&report, true, |out| out.write_all(text.as_bytes()))?;
    let lines: Vec<&Line> = lines.iter().collect();
    let entries: Vec<Entry> = lines.iter().map(|line| Entry { line, success: is_success(line, args) }).collect();
    let changes = old.as_deref().map(|old| compare::compare(old, &entries, |line| is_success(line, args)));
    warnings.extend(old.as_deref().into_iter().flat_map(|old| compare::conditions(old, &lines)));
    let reasons = reasons::reasons(&entries);
    let page = page::page(&args.command, &entries, &reasons, changes.as_deref(), &warnings)?;
    file::replace(&args.output.join("report.html"), true, |out| out.write_all(page.as_bytes()))?;
    for warning in &warnings {
        super::note(format_args!("warning: {warning}"));
    }
    let error = failed(args, &entries);
    match args.json {
        true => as_json(&entries, &reasons, resumed, changes.as_deref(), &warnings, error.as_ref())?,
        false => as_text(&entries, &reasons, changes.as_deref())?,
    }
    error.map_or(Ok(()), |error| Err(Reported(error).into()))
}

/// A line for each model, in their order, and how many of them an earlier run has written. Those of this run are
/// appended to the report as they come.
fn lines(args: &Args, takes: &Takes, jobs: &[Job], report: &Path) -> Result<(Vec<Line>, usize)> {
    let done = earlier(args, report)?;
    let mut out = File::options().append(true).create(true).open(report).map_err(file::plain)?;
    // The contents of a model that has no line yet are read when its turn comes.
    let keys: Vec<Option<String>> =
        jobs.iter().map(|job| done.contains_key(&job.name).then(|| key(job, args))).collect();
    let mut lines: BTreeMap<usize, Line> = BTreeMap::new();
    for (i, (job, key)) in jobs.iter().zip(&keys).enumerate() {
        let line = done.get(&job.name).filter(|line| key.as_ref() == Some(&line.key));
        lines.extend(line.map(|line| (i, line.clone())));
    }
    let (resumed, open) = (lines.len(), (0..jobs.len()).filter(|i| !lines.contains_key(i)).collect::<Vec<_>>());
    let parallel = std::thread::available_parallelism().map_or(1, usize::from);
    let mut progress = Progress { start: Instant::now(), total: open.len(), ended: 0, failed: 0 };
    let (next, mut failure) = (AtomicUsize::new(0), None);
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.unwrap_or(parallel).min(open.len()) {
            let sender = sender.clone();
            let (open, keys, next) = (&open, &keys, &next);
            scope.spawn(move || {
                while let Some(&i) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let key = keys[i].clone().unwrap_or_else(|| key(&jobs[i], args));
                    let line = process::one(args, takes, &jobs[i], key);
                    if sender.send((i, line)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (i, line) in Ended::new(&ended, report, jobs.len()) {
            // One write a line: what a kill leaves of one is dropped by the next run.
            let written = serde_json::to_string(&line).map_err(anyhow::Error::from);
            let written = written.and_then(|text| Ok(out.write_all(format!("{text}\n").as_bytes())?));
            if let Err(error) = written {
                failure = Some(error.context(report.display().to_string()));
                next.store(usize::MAX / 2, Ordering::Relaxed);
            }
            progress.tick(!is_success(&line, args));
            lines.insert(i, line);
        }
    });
    failure.map_or(Ok(()), Err)?;
    progress.end();
    Ok((lines.into_values().collect(), resumed))
}

fn is_success(line: &Line, args: &Args) -> bool {
    line.code == "ok" || args.allow.contains(&line.code)
}

fn takes_model(command: &clap::Command) -> bool {
    command.get_arguments().any(|a| a.get_id() == "model")
}

/// The subcommand that a command begins with, which may be one of another: `explain saliency`.
fn subcommand<'c>(cli: &'c clap::Command, command: &[String]) -> Option<&'c clap::Command> {
    let found = cli.find_subcommand(command.first()?)?;
    Some(command.get(1).and_then(|name| found.find_subcommand(name)).unwrap_or(found))
}

/// What the command takes; an error where there is no such command.
fn takes(command: &[String]) -> Result<Takes> {
    let cli = super::Cli::command();
    let name = command.first().context("no command")?;
    let Some(found) = subcommand(&cli, command).filter(|c| takes_model(c)) else {
        let takers = cli.get_subcommands().flat_map(|c| {
            let own = takes_model(c).then(|| c.get_name().to_owned());
            let within = c.get_subcommands().filter(|s| takes_model(s));
            own.into_iter().chain(within.map(|s| format!("{} {}", c.get_name(), s.get_name()))).collect::<Vec<_>>()
        });
        let names: Vec<String> = takers.collect();
        return Err(
            Error::usage(format_args!("'{name}' is no command for a model; these are: {}", names.join(", "))).into()
        );
    };
    let has = |id: &str| found.get_arguments().any(|a| a.get_id() == id);
    Ok(Takes { output: has("output"), force: has("force"), json: has("json") })
}

/// Gives each model the command with its own options; returns what is to be said of them.
fn settle(args: &Args, takes: &Takes, base: &Path, jobs: &mut [Job]) -> Result<Vec<String>> {
    let beside = settings::beside(Path::new(&args.models), base);
    let path = args.settings.clone().or_else(|| beside.is_file().then_some(beside));
    let settings = match path {
        Some(path) => {
            let mut cli = super::Cli::command();
            cli.build();
            Settings::read(&path, subcommand(&cli, &args.command).context("no command")?, takes)?
        }
        None => Settings::default(),
    };
    for job in jobs.iter_mut() {
        job.command = settings.applied(&args.command, &job.name);
    }
    Ok(settings.warnings())
}

/// The models, in the order of their paths or of the list, and the folder from which they are named.
fn find(args: &Args) -> Result<(PathBuf, Vec<Job>)> {
    let given = Path::new(&args.models);
    let is_model = |path: &Path| path.extension() == Some(OsStr::new("onnx"));
    let (base, mut paths) = if given.is_dir() {
        (given.to_owned(), walk(given, &args.output)?.into_iter().filter(|p| is_model(p)).collect())
    } else if given.is_file() && is_model(given) {
        (file::folder(given).to_owned(), vec![given.to_owned()])
    } else if given.is_file() {
        let base = file::folder(given).to_owned();
        let text = file::read_text(given).with_context(|| args.models.clone())?;
        let named = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let paths: Vec<PathBuf> = named.map(|line| base.join(line)).collect();
        if paths.is_empty() {
            return Err(Error::io(format_args!("{}: the list names no model", args.models)).into());
        }
        let jobs = named_jobs(&base, paths);
        return Ok((base, jobs));
    } else if args.models.contains(['*', '?']) {
        let plain = given.components().take_while(|c| !c.as_os_str().to_string_lossy().contains(['*', '?']));
        let base: PathBuf = plain.collect();
        let base = if base.as_os_str().is_empty() { PathBuf::from(".") } else { base };
        let pattern = given.strip_prefix(&base).unwrap_or(given).to_string_lossy().into_owned();
        let fits = |path: &PathBuf| matches(&pattern, &path.strip_prefix(&base).unwrap_or(path).to_string_lossy());
        let found = walk(&base, &args.output)?.into_iter().filter(fits).collect();
        (base, found)
    } else {
        return Err(Error::io(format_args!("{}: there is no such folder, list or model", args.models)).into());
    };
    paths.sort();
    if paths.is_empty() {
        return Err(Error::io(format_args!("{}: no model is found; models end in .onnx", args.models)).into());
    }
    let jobs = named_jobs(&base, paths);
    Ok((base, jobs))
}

/// The files in a folder and below. Links to files are followed, links to folders, hidden folders and OUT are not.
fn walk(folder: &Path, output: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(file::plain).in_file(&folder)? {
            let entry = entry.map_err(file::plain)?;
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if entry.file_type().map_err(file::plain)?.is_dir() {
                if !hidden && !file::same_file(&path, output) {
                    open.push(path);
                }
            } else if !hidden && path.is_file() {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// Jobs with names that stay inside of OUT and differ.
fn named_jobs(base: &Path, paths: Vec<PathBuf>) -> Vec<Job> {
    let mut taken = HashSet::new();
    let name = |path: &Path| {
        let inside = path.strip_prefix(base).unwrap_or(path);
        let parts = inside.components().filter_map(|c| match c {
            Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        });
        parts.collect::<Vec<_>>().join("/")
    };
    let mut jobs = Vec::new();
    for path in paths {
        let name = name(&path);
        let unique =
            (1..).map(|n| if n == 1 { name.clone() } else { format!("{n}/{name}") }).find(|n| taken.insert(n.clone()));
        jobs.extend(unique.map(|name| Job { path, name, command: Vec::new() }));
    }
    jobs
}

/// The lines of an earlier run, by their models.
fn earlier(args: &Args, report: &Path) -> Result<HashMap<String, Line>> {
    if !report.exists() {
        return Ok(HashMap::new());
    }
    if args.resume || args.force {
        process::tidy(&args.output);
    }
    if args.force {
        fs::remove_file(report).map_err(file::plain)?;
        return Ok(HashMap::new());
    }
    if !args.resume {
        let path = report.display();
        return Err(
            Error::io(format_args!("{path} exists already; --resume goes on with it, --force begins anew")).into()
        );
    }
    let text = file::read_text(report).in_file(report)?;
    // A kill may have left a part of the last line, which is no line.
    let lines: Vec<Line> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let whole = lines.iter().map(|line| Ok(serde_json::to_string(line)? + "\n")).collect::<Result<String>>()?;
    file::replace(report, true, |out| out.write_all(whole.as_bytes()))?;
    Ok(lines.into_iter().map(|line| (line.model.clone(), line)).collect())
}

/// A digest of a model's contents, its external data, the command and this version.
fn key(job: &Job, args: &Args) -> String {
    let mut hasher = DefaultHasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.write(bytes);
        hasher.write_u8(0xff);
    };
    part(env!("CARGO_PKG_VERSION").as_bytes());
    job.command.iter().for_each(|a| part(a.as_bytes()));
    let limits = format!("{} {:?} {} {}", args.timeout, args.memory, args.no_write, args.round_trip);
    part(limits.as_bytes());
    let external = contents(&mut hasher, &job.path);
    // Few models have external data: the others are not decoded.
    let located =
        if external { file::read(&job.path).map(|m| file::locations(&m)).unwrap_or_default() } else { BTreeSet::new() };
    for location in located {
        hasher.write(location.as_bytes());
        hasher.write_u8(0xff);
        let path = file::folder(&job.path).join(location);
        contents(&mut hasher, &path);
    }
    // What options name belongs to it as well: values of inputs, seeds.
    for argument in &job.command {
        let values = argument.rsplit(['=', ':']).next().into_iter().chain([argument.as_str()]);
        for value in values {
            contents(&mut hasher, Path::new(value));
        }
    }
    format!("{:016x}", hasher.finish())
}

/// Hashes a file's contents. Whether they hold the word by which tensors name the file of their elements.
fn contents(hasher: &mut DefaultHasher, path: &Path) -> bool {
    const WORD: &[u8] = b"location";
    // Pipes and devices have no contents, and may have no end.
    let Some(mut file) = path.is_file().then(|| File::open(path).ok()).flatten() else { return false };
    let mut buffer = vec![0; 1 << 16];
    // A word may lie across two pieces: the end of a piece is kept in front of the next.
    let (mut kept, mut found) = (0, false);
    while let Ok(n @ 1..) = file.read(&mut buffer[kept..]) {
        hasher.write(&buffer[kept..kept + n]);
        let end = kept + n;
        found = found || buffer[..end].windows(WORD.len()).any(|window| window == WORD);
        kept = end.min(WORD.len() - 1);
        buffer.copy_within(end - kept..end, 0);
    }
    hasher.write_u8(0xff);
    found
}

/// What is shown while a batch runs, where somebody looks.
/// What has ended, as it comes, until the user asks the process to end: what has a line in the report by then stays
/// there, and the processes for the other models end with this one.
struct Ended<'r> {
    lines: &'r Receiver<(usize, Line)>,
    stop: Arc<AtomicBool>,
    report: &'r Path,
    models: usize,
}

impl<'r> Ended<'r> {
    fn new(lines: &'r Receiver<(usize, Line)>, report: &'r Path, models: usize) -> Self {
        Ended { lines, stop: super::console::interrupted(), report, models }
    }
}

impl Iterator for Ended<'_> {
    type Item = (usize, Line);

    fn next(&mut self) -> Option<(usize, Line)> {
        loop {
            let ended = self.lines.recv_timeout(Duration::from_millis(100));
            // A key that ends this process has ended those for the models, too: what they say by then is not theirs.
            if self.stop.load(Ordering::Relaxed) {
                let done = fs::read_to_string(self.report).map_or(0, |text| text.lines().count());
                let (report, models) = (self.report.display(), self.models);
                let what = format!("stopped: {report} holds {done} of {models} models");
                super::failure::tell(
                    Error::unsupported(format_args!("{what}; --resume goes on with the others")).into(),
                );
                std::process::exit(130);
            }
            match ended {
                Err(RecvTimeoutError::Timeout) => (),
                other => return other.ok(),
            }
        }
    }
}

struct Progress {
    start: Instant,
    total: usize,
    ended: usize,
    failed: usize,
}

impl Progress {
    fn tick(&mut self, failed: bool) {
        self.ended += 1;
        self.failed += usize::from(failed);
        if std::io::stderr().is_terminal() && !console::is_within() {
            let rate = self.ended as f64 / self.start.elapsed().as_secs_f64().max(1e-3);
            let left = (self.total - self.ended) as f64 / rate;
            let (ended, total, failed) = (self.ended, self.total, self.failed);
            let _ =
                write!(Stream::Notes, "\r{ended} of {total}, {failed} failed, {rate:.1} a second, {left:.0} s left  ");
        }
    }

    fn end(&self) {
        if std::io::stderr().is_terminal() && !console::is_within() && self.ended > 0 {
            let _ = writeln!(Stream::Notes);
        }
    }
}

/// What the batch fails with, where a model has not succeeded.
fn failed(args: &Args, entries: &[Entry]) -> Option<Error> {
    let (failed, total) = (entries.iter().filter(|entry| !entry.success).count(), entries.len());
    let report = args.output.join("report.jsonl");
    let why = || format!("{failed} of {total} models have not succeeded; {} says why", report.display());
    (failed > 0).then(|| Error::unsupported(why()))
}

/// How many models have succeeded, and the first of them.
fn good<'e>(entries: &'e [Entry]) -> Option<(usize, &'e Line)> {
    let mut good = entries.iter().filter(|entry| entry.line.code == "ok").map(|entry| entry.line);
    let first = good.next()?;
    Some((1 + good.count(), first))
}

/// Prints how many there are of each reason, for programs.
fn as_json(
    entries: &[Entry],
    reasons: &[Reason],
    resumed: usize,
    changes: Option<&[Change]>,
    warnings: &[String],
    error: Option<&Error>,
) -> Result<()> {
    let ok = good(entries).map(|(count, _)| json!({ "code": "ok", "operator": null, "count": count }));
    let codes = reasons.iter().map(|reason| {
        let operator = (!reason.operator.is_empty()).then_some(reason.operator);
        json!({
            "code": reason.code, "operator": operator, "count": reason.models.len(), "what": reason.text,
            "first": entries[reason.models[0]].line.model,
        })
    });
    let mut report = json!({
        "models": entries.len(), "resumed": resumed, "failed": entries.iter().filter(|entry| !entry.success).count(),
        "codes": ok.into_iter().chain(codes).collect::<Vec<_>>(), "warnings": warnings,
    });
    if let Some(changes) = changes {
        report["changes"] = json!(changes);
    }
    if let Some(error) = error {
        super::failure::add(&mut report, error);
    }
    writeln!(Stream::Report, "{report}")?;
    Ok(())
}

/// Prints how many there are of each reason, for people.
fn as_text(entries: &[Entry], reasons: &[Reason], changes: Option<&[Change]>) -> Result<()> {
    let mut out = Stream::Report;
    let mut table = Table::new(["what", "code", "first"]);
    if let Some((count, first)) = good(entries) {
        table.row([count.to_string(), "ok".to_owned(), first.model.clone()]);
    }
    for reason in reasons {
        table.row([reason.text.clone(), reason.code.to_owned(), entries[reason.models[0]].line.model.clone()]);
    }
    write!(out, "{table}")?;
    let Some(changes) = changes else { return Ok(()) };
    let counts = compare::counts(changes).into_iter().map(|(way, n)| format!("{n} {}", way.name()));
    let counts = counts.collect::<Vec<_>>().join(", ");
    let counts = if counts.is_empty() { "nothing has changed" } else { &counts };
    writeln!(out, "since the earlier report: {counts}")?;
    let mut table = Table::new(["", "model", "what"]);
    for change in changes {
        table.row([change.way.name().to_owned(), change.model.clone(), change.what.clone()]);
    }
    if !changes.is_empty() {
        write!(out, "{table}")?;
    }
    Ok(())
}
