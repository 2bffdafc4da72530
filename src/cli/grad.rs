//! `grad`: tf.gradients for a file.

use super::table::Table;
use anyhow::{Context, Result, ensure};
use clap::builder::NonEmptyStringValueParser;
use onnx_gradients::backward::{Selection, read_functions};
use onnx_gradients::onnx::{file, npy};
use onnx_gradients::{Aggregation, Gradients, Model, Output, Seed, Unconnected, graph};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Append the gradients of ys with respect to xs to a model
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients grad mlp.onnx -o mlp-grad.onnx --ys loss --params
  onnx-gradients grad cnn.onnx -o saliency.onnx --ys scores --xs image --only-gradients
  onnx-gradients grad mlp.onnx -o - --ys loss --xs 'layer*.weight' > mlp-grad.onnx
  onnx-gradients grad mlp.onnx -o out.onnx --params --grad-ys -3 --stop-gradients hidden
  onnx-gradients grad training.onnx -o plain.onnx --lower")]
pub struct Args {
    /// The model; `-` for stdin
    model: PathBuf,
    /// The file to write; `-` for stdout
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Tensors to differentiate [default: all floating-point graph outputs]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    ys: Vec<String>,
    /// Tensors to differentiate with respect to; `*` and `?` are wildcards where the exact name does not exist, and a name that
    /// starts with a dash is written --xs=-name
    #[arg(long, value_name = "NAME", num_args = 1..)]
    xs: Vec<String>,
    /// Every floating-point initializer that reaches a y is an x
    #[arg(long)]
    params: bool,
    /// Every floating-point graph input is an x
    #[arg(long)]
    inputs: bool,
    /// Seeds, one a y, in order: ones | NUMBER | input | input:NAME | tensor:NAME | file:PATH (.npy or TensorProto)
    #[arg(long, value_name = "SPEC", num_args = 1.., allow_negative_numbers = true)]
    grad_ys: Vec<String>,
    /// Tensors that count as constants: no gradient passes them
    #[arg(long, value_name = "NAME", num_args = 1..)]
    stop_gradients: Vec<String>,
    /// Rounding in quantization counts as the identity within the range of the integers: gradients pass QuantizeLinear and what
    /// moves its result to DequantizeLinear. Without it they stop there, where the true derivative is zero
    #[arg(long)]
    straight_through: bool,
    /// The scope of all new names
    #[arg(long, default_value = "gradients", value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// How gradients that arrive at one tensor are summed
    #[arg(long, value_enum, default_value = "add-n")]
    aggregation_method: Method,
    /// What stands for the gradient of an x that no y depends on
    #[arg(long, value_enum, default_value = "none")]
    unconnected_gradients: Missing,
    /// Backward nodes take over the devices and the placement metadata of their forward nodes
    #[arg(long)]
    colocate_gradients_with_ops: bool,
    /// A forward node's backward nodes stand together, all its input gradients computed before any is used
    #[arg(long)]
    gate_gradients: bool,
    /// Files with gradients of operators as ONNX functions: inputs the operator's inputs, outputs and output gradients, outputs its
    /// input gradients
    #[arg(long, value_name = "FILE", num_args = 1..)]
    gradient_functions: Vec<PathBuf>,
    /// Drop the model's own outputs, and what only they need
    #[arg(long)]
    only_gradients: bool,
    /// Instead of all that, replace the model's own Gradient nodes (ai.onnx.preview.training) by what computes their outputs
    #[arg(long, conflicts_with_all = [
        "ys", "xs", "params", "inputs", "grad_ys", "stop_gradients", "name", "aggregation_method", "unconnected_gradients",
        "colocate_gradients_with_ops", "gate_gradients", "only_gradients", "straight_through",
    ])]
    lower: bool,
    /// Do not run the result
    #[arg(long)]
    no_validate: bool,
    #[cfg(feature = "validate")]
    #[command(flatten)]
    engine: super::check::EngineArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Replace an existing OUT
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Method {
    /// One Sum of all terms
    AddN,
    /// A balanced tree of Add
    Tree,
    /// A chain that adds each term as it comes
    AccumulateN,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Missing {
    /// Nothing: null in the report
    None,
    /// Zeros of x's type and shape
    Zero,
}

/// Reads, differentiates, writes, validates, reports.
pub fn run(args: &Args) -> Result<()> {
    if args.xs.is_empty() && !args.params && !args.inputs && !args.lower {
        super::usage(
            "grad",
            "no xs are given: name tensors with --xs, or take --params or --inputs; or --lower the model's own",
        );
    }
    if !to_stdout(args) {
        ensure!(!file::same_file(&args.model, &args.output), "OUT is the model itself, which is never overwritten");
        file::ensure_writable(&args.output, args.force)?;
    }
    let model = load(&args.model)?;
    if args.lower {
        return lower(args, &model);
    }
    let loaded = graph::load(&model.proto)?;
    let mut output = request(args, &loaded)?.build_loaded(model, loaded)?;
    // Gradients are compared with what the ys do: what is validated still holds them.
    let whole = args.only_gradients.then(|| output.model.clone());
    if args.only_gradients {
        output.drop_model_outputs();
    }
    let warnings = write(args, &output.model, output.warnings.clone())?;
    let validation = validation(args, &output, whole.as_ref());
    let text = if args.json { as_json(&output, &validation, &warnings) } else { as_text(&output, &validation) };
    print(args, &text)?;
    ensure!(
        validation["status"] != "failed",
        "the validation failed: {}",
        validation["reason"].as_str().unwrap_or_default()
    );
    Ok(())
}

/// Lowers the model's own Gradient nodes. They are not validated: the model comes with no record of what they are to be.
fn lower(args: &Args, model: &Model) -> Result<()> {
    let lowered = model.lower_gradients()?;
    let mut warnings = lowered.warnings.clone();
    if lowered.nodes.is_empty() {
        warnings.push("the model holds no Gradient node of ai.onnx.preview.training".to_owned());
    }
    let warnings = write(args, &lowered.model, warnings)?;
    let text = if args.json {
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
    print(args, &text)
}

/// Writes the model, and the warnings with those that come of it, which are returned.
fn write(args: &Args, model: &Model, mut warnings: Vec<String>) -> Result<Vec<String>> {
    if to_stdout(args) {
        file::write_to(&model.proto, std::io::stdout().lock())?;
    } else {
        warnings.extend(model.write(&args.output, args.force)?);
    }
    for warning in &warnings {
        super::note(format_args!("warning: {warning}"));
    }
    Ok(warnings)
}

/// The model itself is what goes to stdout where it is asked for there.
fn print(args: &Args, text: &str) -> Result<()> {
    match to_stdout(args) {
        true => std::io::stderr().write_all(text.as_bytes())?,
        false => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(())
}

fn to_stdout(args: &Args) -> bool {
    [Path::new("-"), Path::new("/dev/stdout")].contains(&&*args.output)
}

/// What running the result has shown.
fn validation(args: &Args, output: &Output, whole: Option<&Model>) -> Value {
    if args.no_validate {
        return json!({ "status": "skipped", "reason": "--no-validate" });
    }
    run_in_engine(args, output, whole)
        .unwrap_or_else(|error| json!({ "status": "failed", "reason": format!("{error:#}") }))
}

#[cfg(not(feature = "validate"))]
fn run_in_engine(_: &Args, _: &Output, _: Option<&Model>) -> Result<Value> {
    Ok(json!({ "status": "skipped", "reason": "this build is without tract" }))
}

#[cfg(feature = "validate")]
fn run_in_engine(args: &Args, output: &Output, whole: Option<&Model>) -> Result<Value> {
    use super::check;
    // What went into a pipe or a device cannot be read again.
    let gone = to_stdout(args) || !args.output.is_file();
    let validation = match whole.or(gone.then_some(&output.model)) {
        Some(model) => match check::temporary(model) {
            Ok(file) => check::after_grad(file.path(), &output.record.name, &args.engine)?,
            Err(error) => return Ok(json!({ "status": "skipped", "reason": format!("no copy to run: {error:#}") })),
        },
        None => check::after_grad(&args.output, &output.record.name, &args.engine)?,
    };
    let mut value = json!(validation);
    value["summary"] = json!(check::summary(&validation));
    Ok(value)
}

/// The model of a file, or of stdin.
fn load(path: &Path) -> Result<Model> {
    if path != Path::new("-") {
        return Model::load(path);
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("stdin")?;
    Ok(Model { proto: file::read_bytes(bytes.into()).context("stdin")?, folder: Some(PathBuf::from(".")) })
}

fn request(args: &Args, loaded: &graph::Loaded) -> Result<Gradients> {
    let selection = Selection::new(loaded);
    let names = |ids: &[graph::ValueId]| ids.iter().map(|&id| selection.name(id)).collect::<Vec<_>>();
    let ys = match args.ys.is_empty() {
        true => names(&selection.outputs()),
        false => selection.expand(&args.ys),
    };
    let mut xs = selection.expand(&args.xs);
    if args.params {
        let ys = selection.find("ys", &ys)?;
        xs.extend(names(&selection.reaching(&selection.parameters(), &ys)));
    }
    if args.inputs {
        xs.extend(names(&selection.inputs()));
    }
    let mut functions = Vec::new();
    for path in &args.gradient_functions {
        let file = || read_functions(std::fs::read(path)?.into());
        functions.extend(file().with_context(|| path.display().to_string())?);
    }
    let seeds = args.grad_ys.iter().map(|spec| seed(spec)).collect::<Result<Vec<_>>>()?;
    Ok(Gradients::new(ys, xs)
        .seeds(seeds)
        .stop(selection.expand(&args.stop_gradients))
        .functions(functions)
        .straight_through(args.straight_through)
        .name(&args.name)
        .aggregation(match args.aggregation_method {
            Method::AddN => Aggregation::AddN,
            Method::Tree => Aggregation::Tree,
            Method::AccumulateN => Aggregation::AccumulateN,
        })
        .unconnected(match args.unconnected_gradients {
            Missing::None => Unconnected::None,
            Missing::Zero => Unconnected::Zero,
        })
        .colocate(args.colocate_gradients_with_ops))
}

/// A seed from its SPEC, which is split at its first colon.
fn seed(spec: &str) -> Result<Seed> {
    Ok(match (spec, spec.split_once(':').filter(|(_, name)| !name.is_empty())) {
        ("ones", _) => Seed::Ones,
        ("input", _) => Seed::Input(None),
        (_, Some(("input", name))) => Seed::Input(Some(name.to_owned())),
        (_, Some(("tensor", name))) => Seed::Tensor(name.to_owned()),
        (_, Some(("file", path))) => Seed::Constant(npy::read_tensor(Path::new(path))?),
        _ => match spec.parse() {
            Ok(number) => Seed::Fill(number),
            Err(_) => super::usage(
                "grad",
                format!("'{spec}' is no seed: it is ones, a number, input, input:NAME, tensor:NAME or file:PATH"),
            ),
        },
    })
}

fn as_json(output: &Output, validation: &Value, warnings: &[String]) -> String {
    let seeds = output.seeds.iter().map(|s| {
        let given = || s.fill.map(|v| if v == 1.0 { "ones".to_owned() } else { v.to_string() });
        json!({ "y": s.y, "seed": s.seed.clone().or_else(given) })
    });
    let object = json!({
        "gradients": output.gradients,
        "seeds": seeds.collect::<Vec<_>>(),
        "validation": validation,
        "nodes_added": output.nodes_added,
        "warnings": warnings,
    });
    format!("{object}\n")
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
    let summary = match (validation["summary"].as_str(), validation["reason"].as_str()) {
        (Some(summary), _) => summary.to_owned(),
        (None, reason) => format!("not validated: {}", reason.unwrap_or_default()),
    };
    format!("{table}{} nodes added; {summary}\n", output.nodes_added)
}
