//! A budget for what a model holds, and what has come of it.

use super::table::Table;
use crate::memory::{Limit, Report};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write;

/// How many recomputed tensors the text names; `--json` has all.
const NAMED: usize = 8;

/// A number of bytes, maybe with a unit.
pub fn bytes(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        other => bail!("'{other}' is no unit of memory: K, M, G or T, with B or without"),
    };
    let bytes = digits.parse::<f64>().ok().map(|n| n * unit as f64).filter(|b| (1.0..1e18).contains(b));
    Ok(bytes.context("memory is a number of bytes, as 2GB")? as u64)
}

/// `0.5`, `50%`, `300MB`, `1000000`: up to one a share, above it bytes.
pub fn limit(text: &str) -> Result<Limit> {
    let share = match text.strip_suffix('%') {
        Some(percent) => Some(percent.parse::<f64>().context("a share is a number, as 50%")? / 100.0),
        None => text.parse::<f64>().ok().filter(|&n| n <= 1.0),
    };
    match share {
        Some(share) => {
            ensure!(share > 0.0 && share <= 1.0, "a share is above 0 and at most 1");
            Ok(Limit::Share(share))
        }
        None => Ok(Limit::Bytes(bytes(text).context("a budget is a share, as 0.5 or 50%, or bytes, as 300MB")?)),
    }
}

/// What has come of a budget, for people.
pub fn as_text(report: &Report) -> String {
    let mut text = format!(
        "holds {} at most, {} without recomputation; keeps {} for the backward nodes, {} without; takes {:.1}% longer by an \
         estimate\n",
        amount(report.peak),
        amount(report.peak_without),
        amount(report.kept),
        amount(report.kept_without),
        100.0 * report.cost
    );
    if !report.recomputed.is_empty() {
        let mut table = Table::new(["computed again", "operator", "times", "saves", "takes"]);
        for r in report.recomputed.iter().take(NAMED) {
            let cost = format!("{:.2}%", 100.0 * r.cost);
            table.row([r.tensor.clone(), r.operator.clone(), r.times.to_string(), amount(r.bytes), cost]);
        }
        let more = report.recomputed.len().saturating_sub(NAMED);
        let rest = if more > 0 { format!("and {more} more: --json names all\n") } else { String::new() };
        // Into a string nothing fails.
        let _ = write!(text, "{table}{rest}");
    }
    text
}

/// What users should know of sizes that were made up.
pub fn warning(report: &Report) -> Option<String> {
    let sizes: Vec<String> = report.assumed.iter().map(|(name, size)| format!("{name}={size}")).collect();
    (!sizes.is_empty()).then(|| {
        format!("the budget is met for {}, which nobody has said; --dim {} says it", sizes.join(", "), sizes.join(" "))
    })
}

fn amount(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_shares_or_bytes() {
        assert_eq!(limit("0.5").unwrap(), Limit::Share(0.5));
        assert_eq!(limit("50%").unwrap(), Limit::Share(0.5));
        assert_eq!(limit("1").unwrap(), Limit::Share(1.0));
        assert_eq!(limit("3MB").unwrap(), Limit::Bytes(3 << 20));
        assert_eq!(limit("1000").unwrap(), Limit::Bytes(1000));
        for wrong in ["0", "-1", "150%", "much", "3 cats", ""] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }
}
