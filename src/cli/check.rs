//! `check`: runs a model with gradients in an engine, and compares the gradients with finite differences.

use super::console::{self, Stream};
use super::one_line;
use super::shapes::ShapeArgs;
use super::table::Table;
use super::values::sizes;
use super::values::{known, pair};
use crate::Error;
use crate::Model;
use crate::backward::Selection;
use crate::derivatives::{Evidence, evidence};
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value as Dim};
use crate::onnx::proto::{TensorShapeProto, type_proto::Value};
use crate::onnx::{TensorProto, TypeProto, npy, text};
use crate::record::{Gradient, Record, SeedOf};
use crate::rules;
use crate::validate::{Engine, GradientCheck, Options, Status, Validation, validate_and_tell};
use anyhow::{Context, Result, bail, ensure};
use clap::builder::RangedU64ValueParser;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Run a model and compare its gradients with finite differences
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients check mlp-grad.onnx
  onnx-gradients check mlp-grad.onnx --dim batch=4 --input image=images.npy --seed 7 --json
  onnx-gradients check theirs.onnx --ys loss --xs w1 w2 --gradients w1_grad w2_grad")]
pub struct Args {
    /// A model with gradients: that a command of this program has written, or with --gradients any
    model: PathBuf,
    /// Check one call of `grad` alone, by its --name [default: all]
    #[arg(long, value_name = "NAME")]
    call: Option<String>,
    #[command(flatten)]
    given: GivenArgs,
    /// Random inputs and directions follow from it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Along how many random directions each gradient is compared
    #[arg(long, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    directions: usize,
    /// At how many further inputs gradients are compared, at most: other sizes, large, tiny and whole numbers
    #[arg(long, value_name = "N", default_value_t = Options::default().others)]
    others: usize,
    #[command(flatten)]
    shapes: ShapeArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Validate in this process: what a crash of the engine takes with it
    #[arg(long, hide = true)]
    in_process: bool,
    /// A validation with other seeds follows where these make gradients zero
    #[arg(long, hide = true)]
    reseeded: bool,
}

impl Args {
    fn load(&self) -> Result<Model> {
        let mut model = Model::load(&self.model)?;
        self.shapes.declare(&mut model)?;
        Ok(model)
    }
}

/// Gradients that are said by name, whoever wrote them.
#[derive(clap::Args, Clone, Default)]
struct GivenArgs {
    /// The tensors that are differentiated, of a gradient graph that another tool wrote
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "gradients", conflicts_with = "call")]
    ys: Vec<String>,
    /// The tensors with respect to which they are
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "gradients", conflicts_with = "call")]
    xs: Vec<String>,
    /// The tensors that hold the gradients, one for each of --xs, in their order
    #[arg(long, value_name = "NAME", num_args = 1.., requires = "ys", requires = "xs")]
    gradients: Vec<String>,
    /// What the gradients start with, one for each of --ys: a number, or tensor:NAME [default: 1]
    #[arg(long, value_name = "SPEC", num_args = 1.., requires = "gradients")]
    grad_ys: Vec<String>,
}

impl GivenArgs {
    /// What is said, as a record of ours would say it.
    fn record(&self, model: &Model) -> Result<Option<Record>> {
        if self.gradients.is_empty() {
            return Ok(None);
        }
        let (xs, gradients, ys, seeds) = (self.xs.len(), self.gradients.len(), self.ys.len(), self.grad_ys.len());
        ensure!(xs == gradients, "{gradients} --gradients are given for {xs} --xs");
        ensure!(seeds == 0 || seeds == ys, "{seeds} --grad-ys are given for {ys} --ys");
        let loaded = rules::load(&model.proto)?;
        let seeds = self.grad_ys.iter().map(|spec| match (spec.strip_prefix("tensor:"), spec.parse::<f64>()) {
            (Some(name), _) => Ok((Some(name.to_owned()), None)),
            (_, Ok(number)) if number.is_finite() => Ok((None, Some(number))),
            _ => bail!("--grad-ys: '{spec}' is neither a number nor tensor:NAME"),
        });
        let mut seeds = seeds.collect::<Result<Vec<_>>>()?;
        seeds.resize(ys, (None, Some(1.0)));
        let named: Vec<String> = seeds.iter().filter_map(|(name, _)| name.clone()).collect();
        let lists = [("--ys", &self.ys), ("--xs", &self.xs), ("--gradients", &self.gradients), ("--grad-ys", &named)];
        let selection = Selection::new(&loaded);
        let unknown: Vec<String> =
            lists.iter().filter_map(|(what, names)| selection.find(what, names).err()).map(|e| e.to_string()).collect();
        ensure!(unknown.is_empty(), "{}", unknown.join("; "));
        let gradient = |(x, name): (&String, &String)| Gradient { x: x.clone(), name: Some(name.clone()) };
        let seed = |(y, (seed, fill)): (&String, (Option<String>, Option<f64>))| SeedOf { y: y.clone(), seed, fill };
        Ok(Some(Record {
            name: "given".to_owned(),
            gradients: self.xs.iter().zip(&self.gradients).map(gradient).collect(),
            seeds: self.ys.iter().zip(seeds).map(seed).collect(),
            ..Record::default()
        }))
    }

    /// The arguments that say the same.
    fn arguments(&self) -> Vec<String> {
        let lists =
            [("--ys", &self.ys), ("--xs", &self.xs), ("--gradients", &self.gradients), ("--grad-ys", &self.grad_ys)];
        lists.iter().flat_map(|(option, values)| values.iter().map(move |v| format!("{option}={v}"))).collect()
    }
}

/// A year: more seconds are no time that anybody waits.
const MOST_SECONDS: u64 = 365 * 24 * 3600;

/// What validates, on which inputs, and how long.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Validation")]
pub struct EngineArgs {
    /// The value of a graph input, as .npy or TensorProto; random where none is given
    #[arg(long, value_name = "NAME=FILE", num_args = 1.., value_parser = pair)]
    input: Vec<(String, String)>,
    /// The size of a symbolic dimension
    #[arg(long, value_name = "SYMBOL=SIZE", num_args = 1.., value_parser = super::values::dim)]
    dim: Vec<(String, i64)>,
    /// The range that random values of a graph input are drawn from: x=0..1
    #[arg(long, value_name = "NAME=LOW..HIGH", num_args = 1.., value_parser = range)]
    range: Vec<(String, (f64, f64))>,
    /// Seconds after which the validation ends [default: 30; of trainable 15]
    #[arg(long, value_name = "SECONDS", alias = "budget", value_parser = RangedU64ValueParser::<u64>::new().range(1..=MOST_SECONDS))]
    time: Option<u64>,
    /// Memory that the validation may take: 2GB, 500MB
    #[arg(long, value_name = "BYTES", default_value = "2GB", value_parser = super::memory::bytes)]
    memory: u64,
    /// What runs the model
    #[arg(long, value_enum, default_value_t)]
    engine: EngineName,
    /// ONNX Runtime's shared library [default: $ORT_DYLIB_PATH, or what the system finds]
    #[cfg(feature = "onnxruntime")]
    #[arg(long, value_name = "PATH")]
    engine_library: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum EngineName {
    /// Part of this program
    #[cfg(feature = "tract")]
    #[default]
    Tract,
    /// An installed ONNX Runtime; runs nearly every model, but many of them in float32 only, where less can be told
    #[cfg(feature = "onnxruntime")]
    #[cfg_attr(not(feature = "tract"), default)]
    Onnxruntime,
}

impl EngineArgs {
    fn choice(&self) -> Engine {
        match self.engine {
            #[cfg(feature = "tract")]
            EngineName::Tract => Engine::Tract,
            #[cfg(feature = "onnxruntime")]
            EngineName::Onnxruntime => Engine::OnnxRuntime(self.engine_library.clone()),
        }
    }

    /// The arguments that say the same.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        arguments.extend(self.input.iter().map(|(name, path)| format!("--input={name}={path}").into()));
        arguments.extend(self.dim.iter().map(|(symbol, size)| format!("--dim={symbol}={size}").into()));
        arguments.extend(self.range.iter().map(|(name, (a, b))| format!("--range={name}={a}..{b}").into()));
        arguments.push(format!("--time={}", self.seconds()).into());
        arguments.push(format!("--memory={}", self.memory).into());
        match self.choice() {
            #[cfg(feature = "onnxruntime")]
            Engine::OnnxRuntime(library) => {
                arguments.extend(["--engine", "onnxruntime"].map(OsString::from));
                let library = library.map(|path| [OsString::from("--engine-library"), path.into()]);
                arguments.extend(library.into_iter().flatten());
            }
            _ => (),
        }
        arguments
    }

    /// These options with what is left of the time; `None` where nothing is.
    pub fn after(&self, spent: Duration) -> Option<Self> {
        let time = self.seconds().checked_sub(spent.as_secs() + 1).filter(|&left| left > 0)?;
        Some(EngineArgs { time: Some(time), ..self.clone() })
    }

    /// These options with another time where none is given.
    pub fn within(&self, seconds: u64) -> Self {
        EngineArgs { time: self.time.or(Some(seconds)), ..self.clone() }
    }

    /// After how many seconds the validation ends.
    fn seconds(&self) -> u64 {
        self.time.unwrap_or(super::values::USUAL)
    }

    /// The sizes that are given for symbolic dimensions.
    pub fn dims(&self) -> &[(String, i64)] {
        &self.dim
    }

    /// Checks that the names and values are those of a model.
    ///
    /// # Errors
    /// Names that the model does not have; values that do not fit.
    pub fn fits(&self, model: &Model) -> Result<()> {
        self.options(model, 0).map(drop)
    }

    /// How to validate a model.
    ///
    /// # Errors
    /// Names that the model does not have; values that do not fit.
    pub fn options(&self, model: &Model, seed: u64) -> Result<Options> {
        let declared = || model.proto.graph.iter().flat_map(|g| &g.input).map(|i| i.name());
        known("--range", self.range.iter().map(|(name, _)| name), declared())?;
        Ok(Options {
            seed,
            dims: sizes(&self.dim, model)?,
            inputs: inputs(self, model)?,
            ranges: self.range.iter().cloned().collect(),
            // What has begun by then comes to an end before the time is over.
            budget: Duration::from_secs_f64(self.seconds() as f64 * 0.7),
            engine: self.choice(),
            ..Options::default()
        })
    }
}

/// Checks, prints, and fails where a gradient is wrong.
pub fn run(args: &Args) -> Result<()> {
    let checks = match args.in_process {
        true => {
            bound(&args.engine);
            checks(args)?
        }
        false => in_child(args)?,
    };
    let wrong = checks.values().filter(|v| v.status == Status::Failed).count();
    let wrong =
        (wrong > 0).then(|| Error::validation_failed(format_args!("{wrong} of {} calls are wrong", checks.len())));
    let mut out = Stream::Report;
    if args.json || args.in_process {
        let mut report = serde_json::to_value(&checks)?;
        if let Some(error) = wrong.as_ref().filter(|_| !args.in_process) {
            super::failure::add(&mut report, error);
        }
        writeln!(out, "{report}")?;
    } else {
        for (name, validation) in &checks {
            writeln!(out, "{}", one_line(&format!("{name}: {}", summary(validation))))?;
            write!(out, "{}", table(validation))?;
        }
    }
    match wrong.filter(|_| !args.in_process) {
        Some(error) => Err(super::failure::Reported(error).into()),
        None => Ok(()),
    }
}

/// What a child says while it validates, a line each: what has been found stays, however the child ends.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// What has been found of one gradient: the numbers of its record and its own, and what speaks against it where it
    /// is wrong.
    Found(usize, usize, GradientCheck, Option<String>),
    /// All that has been found of the record with that number.
    Ended(usize, Validation),
}

/// What is judged: the model with the records that are asked for.
fn judged(args: &Args) -> Result<Evidence> {
    let model = args.load()?;
    let mut evidence = match args.given.record(&model)? {
        Some(record) => Evidence { model, records: vec![record], hints: BTreeMap::new() },
        None => evidence(&model)?,
    };
    ensure!(
        !evidence.records.is_empty(),
        "{}: no gradients of ours are in the model; name those of another tool (--ys, --xs, --gradients)",
        args.model.display()
    );
    let mut names = BTreeSet::new();
    if let Some(twice) = Record::all(&evidence.model.proto)?.into_iter().find(|r| !names.insert(r.name.clone())) {
        bail!(
            "{}: two records of gradients are named '{}': which holds is not known",
            args.model.display(),
            twice.name
        );
    }
    if let Some(name) = &args.call {
        known("--call", [name], evidence.records.iter().map(|r| r.name.as_str()))?;
        evidence.records.retain(|r| r.name == *name);
    }
    Ok(evidence)
}

fn checks(args: &Args) -> Result<BTreeMap<String, Validation>> {
    let start = Instant::now();
    let Evidence { model, records, hints } = judged(args)?;
    let mut options = args.engine.options(&model, args.seed)?.directions(args.directions).others(args.others);
    options.reseeded = args.reseeded;
    let folder = model.folder.as_deref();
    let say = |line: &Line| {
        // Where nobody reads, the process ends with its parent.
        if let (true, Ok(text)) = (args.in_process, serde_json::to_string(line)) {
            let _ = writeln!(Stream::Report, "{text}").and_then(|()| Stream::Report.flush());
        }
    };
    let mut checks = BTreeMap::new();
    for (n, record) in records.iter().enumerate() {
        // Each has its part of the time.
        let left = options.budget.saturating_sub(start.elapsed());
        let options = Options { budget: left / (records.len() - n) as u32, ..options.clone() };
        let tell = |i: usize, check: &GradientCheck, wrong: Option<&str>| {
            say(&Line::Found(n, i, check.clone(), wrong.map(str::to_owned)));
        };
        let mut check = validate_and_tell(&model.proto, folder, record, &options, &tell);
        if let (Status::Failed, Some(reason), Some(hint)) = (check.status, &mut check.reason, hints.get(&record.name)) {
            *reason += &format!("; {hint}");
        }
        say(&Line::Ended(n, check.clone()));
        join(&mut checks, record, check);
    }
    Ok(checks)
}

/// Adds to what is known of a request what has been found of one of its records: a request is as good as the worst.
fn join(checks: &mut BTreeMap<String, Validation>, record: &Record, other: Validation) {
    let rank = |status| match status {
        Status::Passed => 0,
        Status::Skipped => 1,
        Status::Failed => 2,
    };
    let Some(known) = checks.get_mut(&record.name) else {
        checks.insert(record.name.clone(), other);
        return;
    };
    if rank(other.status) > rank(known.status) {
        (known.status, known.reason) = (other.status, other.reason);
    }
    known.gradients.extend(other.gradients);
}

/// The tensors that are given for graph inputs.
fn inputs(args: &EngineArgs, model: &Model) -> Result<BTreeMap<String, TensorProto>> {
    let declared = || model.proto.graph.iter().flat_map(|g| &g.input);
    known("--input", args.input.iter().map(|(name, _)| name), declared().map(|i| i.name()))?;
    let tensor = |(name, path): &(String, String)| {
        let tensor = npy::read_tensor(Path::new(path))?;
        let r#type = declared().find(|i| i.name() == name).and_then(|i| i.r#type.as_ref());
        if let Some(r#type) = r#type.filter(|t| !fits(&tensor, t)) {
            let (given, wanted) = (tensor.element_type().name(), text::print_type(r#type));
            bail!("--input {name}={path}: it is {given}{:?}, the input {wanted}", tensor.dims);
        }
        Ok((name.clone(), tensor))
    };
    args.input.iter().map(tensor).collect()
}

/// Whether a tensor is of a type, as far as that is a tensor's and says its sizes.
fn fits(tensor: &TensorProto, r#type: &TypeProto) -> bool {
    let Some(Value::TensorType(wanted)) = &r#type.value else { return true };
    let size = |(given, wanted): (&i64, &Dimension)| !matches!(wanted.value, Some(Dim::DimValue(n)) if n != *given);
    let shape = |s: &TensorShapeProto| s.dim.len() == tensor.dims.len() && tensor.dims.iter().zip(&s.dim).all(size);
    wanted.elem_type() == tensor.data_type() && wanted.shape.as_ref().is_none_or(shape)
}

/// `NAME=LOW..HIGH`.
fn range(text: &str) -> Result<(String, (f64, f64))> {
    let (name, range) = pair(text)?;
    let ends = range.split_once("..").and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    let (low, high): (f64, f64) = ends.context("a range is of the form LOW..HIGH")?;
    ensure!(
        low <= high && low.is_finite() && high.is_finite(),
        "a range goes from a number to one that is not smaller"
    );
    Ok((name, (low, high)))
}

/// At how many further inputs a command looks at what it is about to write, which nobody has tampered with: as many as
/// show what depends on a size, a sign or a mask. `check` looks at more.
const FEW_OTHERS: usize = 8;

/// Validates one call of a file that has just been written; `reseeded` says whether that with other seeds follows.
pub fn after(path: &Path, call: &str, shapes: &ShapeArgs, engine: &EngineArgs, reseeded: bool) -> Result<Validation> {
    let args = Args {
        model: path.to_owned(),
        call: Some(call.to_owned()),
        given: GivenArgs::default(),
        seed: 0,
        directions: 1,
        others: FEW_OTHERS,
        shapes: shapes.clone(),
        engine: engine.clone(),
        json: true,
        in_process: false,
        reseeded,
    };
    in_child(&args)?.remove(call).context("the validation has no result")
}

/// How much longer than its time a validation may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs the same command in a process of its own, which an engine may take down: by an abort, an endless loop, all
/// memory. It ends when its time is over, and when this process does: its stdin closes then.
fn in_child(args: &Args) -> Result<BTreeMap<String, Validation>> {
    let mut command = console::program()?;
    command.arg("check").args(["--in-process", "--json", "--seed", &args.seed.to_string()]);
    command.args([format!("--directions={}", args.directions), format!("--others={}", args.others)]);
    command.args(args.shapes.arguments()).args(args.engine.arguments()).args(args.given.arguments());
    if args.reseeded {
        command.arg("--reseeded");
    }
    if let Some(call) = &args.call {
        command.arg(format!("--call={call}"));
    }
    command.arg("--").arg(&args.model);
    console::keep_pages(&mut command);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let alive = child.stdin.take();
    let read = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).map(|_| text)
        })
    };
    let output = read(Box::new(child.stdout.take().context("no stdout")?));
    let errors = read(Box::new(child.stderr.take().context("no stderr")?));
    let (start, time) = (Instant::now(), Duration::from_secs(args.engine.seconds()) + PATIENCE);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > time {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    drop(alive);
    let text =
        |t: std::thread::JoinHandle<std::io::Result<String>>| t.join().ok().and_then(Result::ok).unwrap_or_default();
    let (output, errors) = (text(output), text(errors));
    let engine = args.engine.choice().name();
    let last = output.lines().next_back().unwrap_or_default();
    let interrupted = |reason: &str| interrupted(args, reason, &output);
    match status.map(|status| status.code()) {
        Some(Some(0)) => serde_json::from_str(last).context("the validation's answer cannot be read"),
        Some(Some(1)) => match super::failure::read(last) {
            Some(error) => Err(error.into()),
            None => bail!("{}", errors.trim().strip_prefix("error: ").unwrap_or(errors.trim())),
        },
        None | Some(Some(TIME_IS_OVER)) => interrupted(&format!(
            "{engine} has not answered within {} seconds; --time gives it more",
            args.engine.seconds()
        )),
        // The allocator ends the process where there is no memory.
        Some(_) if errors.contains("memory allocation") || errors.contains("allocate memory") => {
            let limit = args.engine.memory / (1 << 20);
            interrupted(&format!("{engine} needs more than {limit} MB of memory; --memory gives it more"))
        }
        Some(_) => interrupted(&format!("{engine} crashed on the model")),
    }
}

/// The exit code of a child whose time is over.
const TIME_IS_OVER: i32 = 75;

/// What is known where the child has ended before its work: what its lines say.
fn interrupted(args: &Args, reason: &str, output: &str) -> Result<BTreeMap<String, Validation>> {
    let (mut ended, mut found) = (BTreeMap::new(), BTreeMap::<usize, Vec<_>>::new());
    // The last line may be half of one.
    for line in output.lines().filter_map(|line| serde_json::from_str(line).ok()) {
        match line {
            Line::Found(record, gradient, check, wrong) => {
                found.entry(record).or_default().push((gradient, check, wrong));
            }
            Line::Ended(record, validation) => drop(ended.insert(record, validation)),
        }
    }
    let engine = args.engine.choice();
    let mut checks = BTreeMap::new();
    for (n, record) in judged(args)?.records.iter().enumerate() {
        let partly = || Validation::interrupted(record, &engine, reason, found.remove(&n).unwrap_or_default());
        let check = ended.remove(&n).unwrap_or_else(partly);
        join(&mut checks, record, check);
    }
    Ok(checks)
}

/// Bounds this process, which is a child that validates: in memory, and in time. It does not outlive its parent.
fn bound(engine: &EngineArgs) {
    console::bound_memory(engine.memory);
    let time = Duration::from_secs(engine.seconds());
    std::thread::spawn(move || {
        std::thread::sleep(time);
        std::process::exit(TIME_IS_OVER);
    });
    std::thread::spawn(|| {
        // The parent never writes: this returns when it is gone.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(TIME_IS_OVER);
    });
}

/// One line for people.
pub fn summary(v: &Validation) -> String {
    let (compared, total) = v.counted();
    match (v.status, &v.reason) {
        (Status::Passed, _) => {
            let rest = match total - compared {
                0 => String::new(),
                n => format!(", {n} not compared"),
            };
            let inputs = if v.inputs == 1 { "1 input".to_owned() } else { format!("{} inputs", v.inputs) };
            format!(
                "validated in {}: {compared} of {total} gradients compared with finite differences agree, at {inputs}{rest}",
                v.engine
            )
        }
        (Status::Failed, reason) => format!("VALIDATION FAILED: {}", reason.as_deref().unwrap_or("no reason is known")),
        (Status::Skipped, reason) => format!("not validated: {}", reason.as_deref().unwrap_or("no reason is known")),
    }
}

fn table(v: &Validation) -> Table {
    let mut table = Table::new(["x", "gradient", "error", "bound", "note"]);
    for g in &v.gradients {
        let number = |n: f64| format!("{n:.1e}");
        let error = if g.compared { g.error.map_or_else(String::new, number) } else { String::new() };
        table.row([
            g.x.clone(),
            g.gradient.clone().unwrap_or_else(|| "none".to_owned()),
            error,
            number(g.bound),
            g.note.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// A temporary copy of a model, for validation of what went to stdout.
pub fn temporary(model: &Model) -> Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.suffix(".onnx");
    // External data are found from the model's own folder.
    let external = !crate::onnx::file::locations(&model.proto).is_empty();
    let mut file = match model.folder.as_deref().filter(|_| external) {
        Some(folder) => builder.tempfile_in(folder)?,
        None => builder.tempfile()?,
    };
    crate::onnx::file::write_stream(&model.proto, model.ready(), file.as_file_mut())?;
    file.flush()?;
    Ok(file)
}
