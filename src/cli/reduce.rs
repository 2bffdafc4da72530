//! `reduce`: the smallest piece of a model whose gradient fails its check.

use super::options::{CallArgs, FileArgs};
use super::table::Table;
use crate::derivatives::reduce;
use anyhow::Result;
use serde_json::json;
use std::path::PathBuf;

/// Cut a model whose gradient fails its check to the smallest piece that fails by itself
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients reduce mlp.onnx -o piece.onnx --ys loss --params
  onnx-gradients reduce mlp.onnx -o piece.onnx --ys loss --params --gradient-functions mine.onnx --seed 3

The piece holds the numbers that its nodes took as initializers. The command that is printed replays the failure.")]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    call: CallArgs,
    /// The numbers of the check follow from it
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Reduces, writes, reports.
pub fn run(args: &Args) -> Result<()> {
    if !args.call.has_xs() {
        let message = "no xs are given; name tensors with --xs, or take --params or --inputs";
        return Err(super::usage("reduce", message));
    }
    let model = args.files.load()?;
    let call = args.call.request()?;
    let reduced = reduce(&call, &model, &args.files.running.options(&model, args.seed)?)?;
    let warnings = args.files.write(&reduced.model, vec![])?;
    let functions = args.call.functions();
    let replay = replay(&args.files.output, &reduced.ys, &reduced.xs, functions);
    let reason = reduced.validation.reason.clone().unwrap_or_default();
    let text = if args.files.json {
        let (nodes, of, ys, xs) = (&reduced.nodes, reduced.of, &reduced.ys, &reduced.xs);
        let object = json!({
            "nodes": nodes, "of": of, "ys": ys, "xs": xs, "reason": reason, "replay": replay, "warnings": warnings,
        });
        format!("{object}\n")
    } else {
        let mut table = Table::new(["node"]);
        reduced.nodes.iter().for_each(|node| table.row([node.clone()]));
        format!("{table}{} of {} nodes: {reason}\nreplay: {replay}\n", reduced.nodes.len(), reduced.of)
    };
    args.files.print(&text)
}

/// The command that fails as the piece does.
fn replay(piece: &std::path::Path, ys: &[String], xs: &[String], functions: &[PathBuf]) -> String {
    let quoted = |text: &str| match text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=".contains(c)) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    };
    let list = |option: &str, values: &[String]| {
        values.iter().map(|v| format!(" {}", quoted(&format!("--{option}={v}")))).collect::<String>()
    };
    let functions: Vec<String> = functions.iter().map(|f| f.display().to_string()).collect();
    let piece = quoted(&piece.display().to_string());
    format!(
        "onnx-gradients grad {piece} -o {} --force{}{}{}{}",
        quoted(&format!("{}.grad.onnx", piece.trim_matches('\''))),
        list("ys", ys),
        list("xs", xs),
        list("grad-ys", &vec!["input".to_owned(); ys.len()]),
        list("gradient-functions", &functions)
    )
}
