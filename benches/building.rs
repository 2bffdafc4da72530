//! What building a gradient takes for each node of a model, from file to file, and how much of that is due to its length:
//! `cargo bench --no-default-features --features cli --bench building`.
//!
//! Every model is differentiated in a process of its own, so that the peak of memory is that of one call. The first column of
//! ratios holds each against the first row: a call that takes time and memory in proportion to the model stays near 1.

use onnx_gradients::onnx::text;
use onnx_gradients::{Model, command_line_of};
use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const NODES: [usize; 3] = [10_000, 100_000, 1_000_000];
/// Set for the process that differentiates: the model, and where to write what comes of it.
const CALL: &str = "BUILDING_CALL";

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::var(CALL) {
        Ok(folder) => call(Path::new(&folder)),
        Err(_) => table(),
    }
}

/// Sines, sums, products and hyperbolic tangents behind each other, with weights in every second one.
fn chain(nodes: usize) -> Result<Model, Box<dyn Error>> {
    let mut text = "<ir_version: 8, opset_import: [\"\": 17]>\ng (float[N,8] x) => (float[N,8] y) <".to_owned();
    let weights = (0..16).map(|i| format!("float[8] w{i} = {{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.{i}1}}"));
    text += &weights.collect::<Vec<_>>().join(", ");
    text += "> {\n";
    let mut x = "x".to_owned();
    for i in 0..nodes {
        let y = if i + 1 == nodes { "y".to_owned() } else { format!("h{i}") };
        let (op, weight) = [("Sin", false), ("Add", true), ("Mul", true), ("Tanh", false)][i % 4];
        let weight = if weight { format!(", w{}", i % 16) } else { String::new() };
        text += &format!("{y} = {op}({x}{weight})\n");
        x = y;
    }
    Ok(text::parse(&(text + "}"))?.into())
}

/// Prints the table, a row for each length.
fn table() -> Result<(), Box<dyn Error>> {
    println!("{:>9} {:>12} {:>14} {:>14} {:>14}", "nodes", "µs a node", "bytes a node", "time: ratio", "memory: ratio");
    let mut first: Option<(f64, f64)> = None;
    for nodes in NODES {
        let folder = tempfile::tempdir()?;
        chain(nodes)?.save(folder.path().join("chain.onnx"))?;
        let output = Command::new(std::env::current_exe()?).env(CALL, folder.path()).output()?;
        let text = String::from_utf8(output.stdout)?;
        // Behind what the command has printed.
        let mut numbers = text.lines().last().unwrap_or_default().split_whitespace().map(str::parse::<f64>);
        let (Some(Ok(seconds)), Some(Ok(bytes))) = (numbers.next(), numbers.next()) else {
            return Err(format!("the call has failed: {}", String::from_utf8_lossy(&output.stderr)).into());
        };
        let (time, memory) = (seconds * 1e6 / nodes as f64, bytes / nodes as f64);
        let (time_before, memory_before) = *first.get_or_insert((time, memory));
        let (slower, larger) = (time / time_before, memory / memory_before);
        println!("{nodes:>9} {time:>12.2} {memory:>14.0} {slower:>14.2} {larger:>14.2}");
    }
    Ok(())
}

/// Differentiates the chain of a folder with respect to its input and all weights, and prints the seconds and the peak in bytes,
/// of which nothing is known but on Linux.
fn call(folder: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let [model, output] = ["chain.onnx", "gradients.onnx"].map(|name| folder.join(name).into_os_string());
    let options = ["onnx-gradients", "grad", "--ys", "y", "--xs", "x", "--params", "--no-validate", "--json", "-o"]
        .map(OsString::from);
    let code = command_line_of(options.into_iter().chain([output, model]).collect());
    if code != 0 {
        return Err(format!("exit code {code}").into());
    }
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: f64 = peak.map_or(Ok(f64::NAN), |kilobytes| kilobytes.trim().parse())?;
    println!("\n{seconds} {}", peak * 1024.0);
    Ok(())
}
