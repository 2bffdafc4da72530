//! `report.html`: what a batch has found, as one page that needs nothing else.
//!
//! The page is complete without its script, which only filters and sorts: a browser that runs none shows all of it.

use super::Line;
use super::compare::{self, Change, Way};
use super::entry::Entry;
use super::reasons::Reason;
use crate::cli::html::{self, Plain, path, size, time};
use crate::rules;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};

const SCRIPT: &str = include_str!("page.js");

/// The page lists so many gradients of a model; report.jsonl has all.
const MOST_GRADIENTS: usize = 200;

/// The page; `changes` are since an earlier report, if one is compared, and `warnings` what is to be known of all.
///
/// # Errors
/// None but those of formatting.
pub fn page(
    command: &[String],
    entries: &[Entry],
    reasons: &[Reason],
    changes: Option<&[Change]>,
    warnings: &[String],
) -> Result<String, fmt::Error> {
    let command = command.join(" ");
    let mut out = html::head(&format!("onnx-gradients batch: {command}"), "");
    write!(
        out,
        "<h1>onnx-gradients batch</h1>\n<div class=\"dim\"><code>{}</code> · version {}</div>\n",
        Plain(&command),
        env!("CARGO_PKG_VERSION"),
    )?;
    summary(&mut out, entries)?;
    for warning in warnings {
        writeln!(out, "<p><span class=\"allowed\">warning:</span> {}</p>", Plain(warning))?;
    }
    if let Some(changes) = changes {
        compared(&mut out, entries, changes)?;
    }
    obstacles(&mut out, entries, reasons)?;
    table(&mut out, entries)?;
    writeln!(out, "<h2>Each model</h2>")?;
    entries.iter().enumerate().try_for_each(|(n, entry)| section(&mut out, n, entry))?;
    writeln!(out, "<script>\n{SCRIPT}</script>\n</body>\n</html>")?;
    Ok(out)
}

/// How many there are of each code.
fn summary(out: &mut String, entries: &[Entry]) -> fmt::Result {
    let good = entries.iter().filter(|e| e.success).count();
    let seconds: f64 = entries.iter().map(|e| e.line.seconds).sum();
    let tiles = [
        ("", entries.len().to_string(), "models"),
        ("good", good.to_string(), "succeeded"),
        (if good < entries.len() { "bad" } else { "" }, (entries.len() - good).to_string(), "failed"),
        ("", time(seconds), "of work"),
    ];
    writeln!(out, "<div class=\"tiles\">")?;
    for (class, number, what) in tiles {
        writeln!(out, "<div class=\"tile\"><b class=\"{class}\">{number}</b>{what}</div>")?;
    }
    writeln!(out, "</div>")?;
    let mut codes: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for entry in entries {
        *codes.entry((entry.class(), &entry.line.code)).or_default() += 1;
    }
    // What succeeded stands first.
    let mut codes: Vec<_> = codes.into_iter().collect();
    codes.sort_by_key(|((class, _), count)| {
        (["good", "allowed", "bad"].iter().position(|c| c == class), usize::MAX - count)
    });
    write!(out, "<div class=\"share\" aria-hidden=\"true\">")?;
    for ((class, code), count) in &codes {
        write!(out, "<span class=\"{class}\" style=\"flex:{count}\" title=\"{}: {count}\"></span>", Plain(code))?;
    }
    write!(out, "</div>\n<p>")?;
    for (n, ((class, code), count)) in codes.iter().enumerate() {
        let comma = if n > 0 { ", " } else { "" };
        write!(out, "{comma}{count} <span class=\"{class}\">{}</span>", Plain(code))?;
    }
    writeln!(out, "</p>")
}

/// What has changed since an earlier report.
fn compared(out: &mut String, entries: &[Entry], changes: &[Change]) -> fmt::Result {
    writeln!(out, "<h2>Since the earlier report</h2>")?;
    if changes.is_empty() {
        return writeln!(out, "<p>Nothing has changed.</p>");
    }
    let class = |way| match way {
        Way::Worse => "bad",
        Way::Better => "good",
        Way::Other | Way::New | Way::Gone => "dim",
    };
    let counts = compare::counts(changes).into_iter();
    let counts = counts.map(|(way, n)| format!("{n} <span class=\"{}\">{}</span>", class(way), way.name()));
    writeln!(out, "<p>{}</p>", counts.collect::<Vec<_>>().join(", "))?;
    let places: HashMap<&str, usize> = entries.iter().enumerate().map(|(n, e)| (e.line.model.as_str(), n)).collect();
    writeln!(
        out,
        "<div class=\"wide\"><table id=\"changes\"><thead><tr><th></th><th>model</th><th>what</th></tr></thead>"
    )?;
    writeln!(out, "<tbody>")?;
    for change in changes {
        let (class, way, name) = (class(change.way), change.way.name(), path(&change.model));
        write!(out, "<tr><td class=\"code {class}\">{way}</td><td class=\"name\">")?;
        match places.get(change.model.as_str()) {
            Some(n) => write!(out, "<a href=\"#m{n}\"><bdi>{name}</bdi></a>")?,
            None => write!(out, "<bdi>{name}</bdi>")?,
        }
        writeln!(out, "</td><td class=\"message\">{}</td></tr>", Plain(&change.what))?;
    }
    writeln!(out, "</tbody></table></div>")
}

/// What stands in the way, the most frequent first.
fn obstacles(out: &mut String, entries: &[Entry], reasons: &[Reason]) -> fmt::Result {
    if reasons.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>What stands in the way</h2>\n<div class=\"wide\"><table id=\"reasons\"><thead><tr>")?;
    writeln!(out, "<th>models</th><th>code</th><th>first</th></tr></thead><tbody>")?;
    for Reason { code, text, models, .. } in reasons {
        let first = models[0];
        let (class, name) = (entries[first].class(), path(&entries[first].line.model));
        write!(out, "<tr><td class=\"message\">{}</td><td class=\"code {class}\">{}</td>", Plain(text), Plain(code))?;
        writeln!(out, "<td class=\"name\"><a href=\"#m{first}\"><bdi>{name}</bdi></a></td></tr>")?;
    }
    writeln!(out, "</tbody></table></div>")
}

/// A row for each model.
fn table(out: &mut String, entries: &[Entry]) -> fmt::Result {
    fn options<'a>(out: &mut String, name: &str, of: impl Iterator<Item = &'a str>) -> fmt::Result {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        of.filter(|value| !value.is_empty()).for_each(|value| *counts.entry(value).or_default() += 1);
        write!(out, "<select name=\"{name}\" aria-label=\"{name}\"><option value=\"\">every {name}</option>")?;
        for (value, count) in counts {
            write!(out, "<option value=\"{0}\">{0} ({count})</option>", Plain(value))?;
        }
        writeln!(out, "</select>")
    }
    writeln!(out, "<h2>Models</h2>\n<form id=\"filter\">")?;
    writeln!(
        out,
        "<input name=\"text\" type=\"search\" placeholder=\"name or reason\" aria-label=\"name or reason\">"
    )?;
    options(out, "code", entries.iter().map(|e| e.line.code.as_str()))?;
    options(out, "operator", entries.iter().map(Entry::operator))?;
    writeln!(
        out,
        "<span class=\"dim\" id=\"shown\"></span></form>\n<div class=\"wide\"><table id=\"models\"><thead><tr>"
    )?;
    for (name, numbers) in [
        ("model", false),
        ("code", false),
        ("seconds", true),
        ("size", true),
        ("nodes added", true),
        ("gradients", true),
        ("largest error", true),
        ("what is said", false),
    ] {
        let class = if numbers { " class=\"n\"" } else { "" };
        write!(out, "<th{class}><button type=\"button\">{name}</button></th>")?;
    }
    writeln!(out, "</tr></thead><tbody>")?;
    for (n, entry) in entries.iter().enumerate() {
        let line = entry.line;
        let (code, operator, class) = (Plain(&line.code), Plain(entry.operator()), entry.class());
        writeln!(out, "<tr data-section=\"m{n}\" data-code=\"{code}\" data-operator=\"{operator}\">")?;
        write!(out, "<td class=\"name\"><a href=\"#m{n}\"><bdi>{}</bdi></a></td>", path(&line.model))?;
        write!(out, "<td class=\"code {class}\">{code}</td>")?;
        write!(out, "<td class=\"n\" data-v=\"{0}\">{0:.2}</td>", line.seconds)?;
        write!(out, "<td class=\"n\" data-v=\"{}\">{}</td>", line.bytes, size(line.bytes))?;
        let added = line.report["nodes_added"].as_u64().map_or_else(String::new, |n| n.to_string());
        write!(out, "<td class=\"n\">{added}</td>")?;
        let gradients = match entry.checks().iter().filter(|g| g["gradient"].is_string()).count() {
            0 => String::new(),
            n => n.to_string(),
        };
        write!(out, "<td class=\"n\">{gradients}</td>")?;
        match entry.error() {
            Some(error) => write!(out, "<td class=\"n\" data-v=\"{error}\">{error:.1e}</td>")?,
            None => write!(out, "<td class=\"n\"></td>")?,
        }
        writeln!(out, "<td class=\"message\">{}</td></tr>", Plain(&entry.reason()))?;
    }
    writeln!(out, "</tbody></table></div>")
}

/// All that is known of one model.
fn section(out: &mut String, n: usize, entry: &Entry) -> fmt::Result {
    let line = entry.line;
    let class = entry.class();
    write!(out, "<details id=\"m{n}\"><summary><bdi>{}</bdi> ", Plain(&line.model))?;
    writeln!(out, "<span class=\"{class}\">{}</span></summary>\n<dl>", Plain(&line.code))?;
    if let Some(message) = &line.message {
        writeln!(out, "<dt>message</dt><dd>{}</dd>", Plain(message))?;
    }
    let said = line.report.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value));
    let validation = line.report["validation"].as_object().into_iter().flatten();
    let said = said.chain(validation.map(|(name, value)| (if name == "status" { "validation" } else { name }, value)));
    for (name, value) in said.filter(|(name, _)| !matches!(*name, "code" | "message")) {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Object(sizes) if name == "dims" => {
                sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(", ")
            }
            _ => continue,
        };
        writeln!(out, "<dt>{}</dt><dd>{}</dd>", Plain(&name.replace('_', " ")), Plain(&text))?;
    }
    writeln!(out, "<dt>took</dt><dd>{} for {}</dd></dl>", time(line.seconds), size(line.bytes))?;
    for warning in line.report["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        writeln!(out, "<p><span class=\"allowed\">warning:</span> {}</p>", Plain(warning))?;
    }
    gradients(out, &entry.checks())?;
    recomputed(out, &line.report)?;
    operators(out, line)?;
    writeln!(out, "</details>")
}

/// What is computed again in the backward pass instead of held, where the command has been given a budget of memory.
fn recomputed(out: &mut String, report: &Value) -> fmt::Result {
    let memory = &report["memory"];
    let list = [&memory["recomputed"], &report["recomputed"]].into_iter().find_map(Value::as_array);
    let Some(list) = list.filter(|list| !list.is_empty()) else { return Ok(()) };
    let name = |value: &Value| match value {
        Value::String(name) => name.clone(),
        Value::Object(object) => {
            let said = ["name", "tensor", "node", "operator"].iter().filter_map(|key| object.get(*key)?.as_str());
            let bytes = object.get("bytes").and_then(Value::as_u64).map(size);
            said.map(str::to_owned).chain(bytes).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    write!(out, "<p>Recomputed in the backward pass:")?;
    for (n, value) in list.iter().take(MOST_GRADIENTS).enumerate() {
        write!(out, "{} <code>{}</code>", if n > 0 { "," } else { "" }, Plain(&name(value)))?;
    }
    match list.len().saturating_sub(MOST_GRADIENTS) {
        0 => writeln!(out, "</p>"),
        more => writeln!(out, " and {more} more</p>"),
    }
}

/// The operators of a model, the most frequent first; in the colour of what is missing those that no row knows.
fn operators(out: &mut String, line: &Line) -> fmt::Result {
    if line.operators.is_empty() {
        return Ok(());
    }
    let mut operators: Vec<(&String, &u64)> = line.operators.iter().collect();
    operators.sort_by_key(|(name, count)| (u64::MAX - **count, (*name).clone()));
    write!(out, "<p>Operators: ")?;
    for (n, (name, count)) in operators.into_iter().enumerate() {
        let (domain, op) = name.rsplit_once('.').unwrap_or(("", name));
        let class =
            if rules::newest(domain, op).is_some() { "" } else { " class=\"allowed\" title=\"no gradient is known\"" };
        write!(out, "{}<code{class}>{}</code> {count}", if n > 0 { ", " } else { "" }, Plain(name))?;
    }
    writeln!(out, "</p>")
}

/// A number of a gradient as a bar on a logarithmic scale from `low` to `high`, powers of ten.
fn bar(number: f64, [low, high]: [f64; 2], class: &str) -> String {
    let width = ((number.max(1e-300).log10() - low) / (high - low) * 100.0).clamp(1.0, 100.0);
    format!("<td class=\"bar\"><span{class} style=\"width:{width:.0}%\"></span></td>")
}

/// The scale of norms: whole powers of ten around all that are not zero.
fn scale(norms: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let logs = norms.filter(|n| n.is_finite() && *n > 0.0).map(f64::log10);
    let [low, high] = logs.fold([f64::MAX, f64::MIN], |[low, high], log| [low.min(log), high.max(log)]);
    (low <= high).then(|| [(low - 0.01).floor(), (high + 0.01).ceil()])
}

/// A model's gradients, their norms and errors as bars on logarithmic scales.
fn gradients(out: &mut String, checks: &[&Value]) -> fmt::Result {
    if !checks.iter().any(|g| g["x"].is_string()) {
        return Ok(());
    }
    let error = |g: &Value| if g["compared"] == true { g["error"].as_f64() } else { None };
    let norms = scale(checks.iter().filter_map(|g| g["norm"].as_f64()));
    let compared = checks.iter().any(|g| error(g).is_some());
    write!(out, "<div class=\"wide\"><table><thead><tr><th>x</th><th>gradient</th>")?;
    if let Some([low, high]) = norms {
        write!(out, "<th class=\"n\">norm</th><th>1e{} to 1e{}</th>", low as i64, high as i64)?;
    }
    if compared {
        write!(out, "<th class=\"n\">error</th><th>1e-16 to 1</th><th class=\"n\">bound</th>")?;
    }
    writeln!(out, "<th>note</th></tr></thead><tbody>")?;
    let mut sorted: Vec<&Value> = checks.to_vec();
    if sorted.len() > MOST_GRADIENTS {
        sorted.sort_by(|a, b| error(b).unwrap_or(-1.0).total_cmp(&error(a).unwrap_or(-1.0)));
    }
    for g in sorted.iter().take(MOST_GRADIENTS) {
        let text = |name: &str| g[name].as_str().unwrap_or_default().to_owned();
        write!(out, "<tr><td class=\"name\"><code>{}</code></td>", Plain(&text("x")))?;
        match g["gradient"].as_str() {
            Some(name) => write!(out, "<td class=\"name\"><code>{}</code></td>", Plain(name))?,
            None => write!(out, "<td class=\"dim\">none: no y depends on it</td>")?,
        }
        let none = "<td class=\"n\"></td><td class=\"bar\"></td>";
        if let Some(scale) = norms {
            match g["norm"].as_f64() {
                Some(0.0) => write!(out, "<td class=\"n\">0</td><td class=\"bar\"></td>")?,
                Some(norm) => write!(out, "<td class=\"n\">{norm:.2e}</td>{}", bar(norm, scale, ""))?,
                None => write!(out, "{none}")?,
            }
        }
        if compared {
            let bound = g["bound"].as_f64().filter(|&b| b > 0.0);
            match error(g) {
                Some(error) => {
                    let over = if bound.is_some_and(|b| error > b) { " class=\"over\"" } else { "" };
                    write!(out, "<td class=\"n\">{error:.1e}</td>{}", bar(error, [-16.0, 0.0], over))?;
                }
                None => write!(out, "{none}")?,
            }
            write!(out, "<td class=\"n\">{}</td>", bound.map_or_else(String::new, |b| format!("{b:.0e}")))?;
        }
        writeln!(out, "<td>{}</td></tr>", Plain(&text("note")))?;
    }
    writeln!(out, "</tbody></table></div>")?;
    match checks.len().saturating_sub(MOST_GRADIENTS) {
        0 => Ok(()),
        rest => writeln!(out, "<p class=\"dim\">{rest} more, of smaller errors, are in report.jsonl.</p>"),
    }
}
