//! `ops`: the table of operators.

use super::table::Table;
use anyhow::Result;
use onnx_gradients::rules::reference;
use serde_json::json;

/// List the operators that have a gradient, with their formulas
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  onnx-gradients ops\n  onnx-gradients ops --json")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the contents of docs/operators.md
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// Prints the table.
pub fn run(args: &Args) -> Result<()> {
    if args.markdown {
        print!("{}", reference::markdown());
        return Ok(());
    }
    let rows = reference::sorted();
    if args.json {
        let rows = rows.iter().map(|r| {
            json!({
                "operator": r.op, "domain": r.domain, "versions": r.versions(), "formula": r.formula, "inputs": r.inputs(),
                "attributes": r.attributes.split_whitespace().collect::<Vec<_>>(), "note": r.notes(),
            })
        });
        println!("{}", json!(rows.collect::<Vec<_>>()));
        return Ok(());
    }
    let mut table = Table::new(["operator", "versions", "formula", "inputs", "notes"]);
    for r in rows {
        table.row([r.name(), r.versions(), r.formula.to_owned(), r.inputs(), r.notes()]);
    }
    print!("{table}");
    Ok(())
}
