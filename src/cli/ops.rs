//! `ops`: the table of operators.

use super::console::Stream;
use super::table::Table;
use crate::rules::reference;
use anyhow::Result;
use serde_json::json;
use std::io::Write;

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
    let mut out = Stream::Report;
    if args.markdown {
        return Ok(out.write_all(reference::markdown().as_bytes())?);
    }
    let rows = reference::sorted();
    if args.json {
        let rows = rows.iter().map(|r| {
            json!({
                "operator": r.op, "domain": r.domain, "versions": r.versions(), "formula": r.formula, "inputs": r.inputs(),
                "attributes": r.attributes.split_whitespace().collect::<Vec<_>>(), "note": r.notes(),
            })
        });
        return Ok(writeln!(out, "{}", json!(rows.collect::<Vec<_>>()))?);
    }
    let mut table = Table::new(["operator", "versions", "formula", "inputs", "notes"]);
    for r in rows {
        table.row([r.name(), r.versions(), r.formula.to_owned(), r.inputs(), r.notes()]);
    }
    Ok(write!(out, "{table}")?)
}
