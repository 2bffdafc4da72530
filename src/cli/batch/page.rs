//! `report.html`: what a batch has found, as one page that needs nothing else.
//!
//! The page is complete without its script, which only filters and sorts: a browser that runs none shows all of it.

use super::Line;
use super::compare::{self, Change, Way};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display, Write};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Of a model's gradients the page lists as many; report.jsonl has all.
const MOST_GRADIENTS: usize = 200;

/// Text from a model or a path, as text of the page: no markup, and nothing that hides or turns around what stands
/// beside it.
struct Plain<'a>(&'a str);

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(' ')?,
                // Marks that change the direction of text, and those of no width.
                '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                    write!(f, "\\u{{{:x}}}", c as u32)?;
                }
                c if c.is_control() => write!(f, "\\u{{{:x}}}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A path as text of the page, which may be broken behind each folder.
fn path(name: &str) -> String {
    Plain(name).to_string().replace('/', "/<wbr>")
}

/// A line, and how it counts.
pub struct Entry<'a> {
    pub line: &'a Line,
    pub success: bool,
}

impl Entry<'_> {
    /// How it is coloured.
    fn class(&self) -> &'static str {
        match (self.line.code.as_str(), self.success) {
            ("ok", _) => "good",
            (_, true) => "allowed",
            (_, false) => "bad",
        }
    }

    /// The operator that its error is about, or nothing.
    pub fn operator(&self) -> &str {
        self.line.report["operator"].as_str().unwrap_or_default()
    }

    /// What is found of each gradient: by `grad` and the like below `validation`, by `check` at the top.
    fn checks(&self) -> &[Value] {
        let report = &self.line.report;
        let lists = [&report["validation"]["gradients"], &report["gradients"], &report["nodes"]];
        lists.into_iter().find_map(|list| list.as_array().filter(|l| !l.is_empty())).map_or(&[], Vec::as_slice)
    }

    /// The largest error of a gradient that was compared.
    pub fn error(&self) -> Option<f64> {
        let compared = self.checks().iter().filter(|g| g["compared"] == true);
        compared.filter_map(|g| g["error"].as_f64()).reduce(f64::max)
    }

    /// Its message without the names in it, by which messages of one kind are counted together.
    fn reason(&self) -> String {
        let message = self.line.message.as_deref().unwrap_or_default();
        // Messages begin with the path of the model, which no two share.
        let message = message
            .find(&self.line.model)
            .map_or(message, |at| message[at + self.line.model.len()..].trim_start_matches([':', ' ']));
        let mut reason = String::new();
        for (n, part) in message.split('\'').enumerate() {
            if n > 0 {
                reason.push('\'');
            }
            reason.push_str(if n % 2 == 1 { "…" } else { part });
        }
        reason
    }
}

/// The page; `changes` are since an earlier report, if one is compared.
///
/// # Errors
/// None but those of formatting.
pub fn page(command: &[String], entries: &[Entry], changes: Option<&[Change]>) -> Result<String, fmt::Error> {
    let mut out = String::new();
    let command = command.join(" ");
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src \
         'unsafe-inline'\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>onnx-gradients batch: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>onnx-gradients batch</h1>\n<div class=\"dim\"><code>{}</code> · version {}</div>\n",
        Plain(&command),
        Plain(&command),
        env!("CARGO_PKG_VERSION"),
    )?;
    summary(&mut out, entries)?;
    if let Some(changes) = changes {
        compared(&mut out, entries, changes)?;
    }
    reasons(&mut out, entries)?;
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

/// What stands in the way, the most frequent first: by operator where one is named, by message where none is.
fn reasons(out: &mut String, entries: &[Entry]) -> fmt::Result {
    let mut reasons: BTreeMap<(&str, &str, String), Vec<usize>> = BTreeMap::new();
    for (n, entry) in entries.iter().enumerate().filter(|(_, e)| e.line.code != "ok") {
        let operator = entry.operator();
        let reason = if operator.is_empty() { entry.reason() } else { String::new() };
        reasons.entry((&entry.line.code, operator, reason)).or_default().push(n);
    }
    if reasons.is_empty() {
        return Ok(());
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, models)| usize::MAX - models.len());
    writeln!(
        out,
        "<h2>What stands in the way</h2>\n<div class=\"wide\"><table><thead><tr><th class=\"n\">models</th>"
    )?;
    writeln!(out, "<th>code</th><th>operator or reason</th><th>first</th></tr></thead><tbody>")?;
    for ((code, operator, reason), models) in &reasons {
        let first = models[0];
        let (class, count) = (entries[first].class(), models.len());
        write!(
            out,
            "<tr><td class=\"n\">{count}</td><td class=\"code {class}\">{}</td><td class=\"message\">",
            Plain(code)
        )?;
        match operator.is_empty() {
            true => write!(out, "{}", Plain(reason))?,
            false => write!(out, "<code>{}</code>", Plain(operator))?,
        }
        let name = path(&entries[first].line.model);
        writeln!(out, "</td><td class=\"name\"><a href=\"#m{first}\"><bdi>{name}</bdi></a></td></tr>")?;
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
    gradients(out, entry.checks())?;
    writeln!(out, "</details>")
}

/// A model's gradients, their errors as bars on a logarithmic scale.
fn gradients(out: &mut String, checks: &[Value]) -> fmt::Result {
    if !checks.iter().any(|g| g["x"].is_string()) {
        return Ok(());
    }
    writeln!(out, "<div class=\"wide\"><table><thead><tr><th>x</th><th>gradient</th><th class=\"n\">error</th>")?;
    writeln!(out, "<th>1e-16 to 1</th><th class=\"n\">bound</th><th>note</th></tr></thead><tbody>")?;
    let mut sorted: Vec<&Value> = checks.iter().collect();
    let error = |g: &Value| if g["compared"] == true { g["error"].as_f64() } else { None };
    if sorted.len() > MOST_GRADIENTS {
        sorted.sort_by(|a, b| error(b).unwrap_or(-1.0).total_cmp(&error(a).unwrap_or(-1.0)));
    }
    for g in sorted.iter().take(MOST_GRADIENTS) {
        let text = |name: &str| g[name].as_str().unwrap_or_default().to_owned();
        let bound = g["bound"].as_f64().filter(|&b| b > 0.0);
        write!(out, "<tr><td class=\"name\"><code>{}</code></td>", Plain(&text("x")))?;
        match g["gradient"].as_str() {
            Some(name) => write!(out, "<td class=\"name\"><code>{}</code></td>", Plain(name))?,
            None => write!(out, "<td class=\"dim\">none: no y depends on it</td>")?,
        }
        match error(g) {
            Some(error) => {
                let width = ((error.max(1e-300).log10() + 16.0) / 16.0 * 100.0).clamp(1.0, 100.0);
                let over = if bound.is_some_and(|b| error > b) { " class=\"over\"" } else { "" };
                write!(
                    out,
                    "<td class=\"n\">{error:.1e}</td><td class=\"bar\"><span{over} style=\"width:{width:.0}%\"></span></td>"
                )?;
            }
            None => write!(out, "<td class=\"n\"></td><td class=\"bar\"></td>")?,
        }
        let bound = bound.map_or_else(String::new, |b| format!("{b:.0e}"));
        writeln!(out, "<td class=\"n\">{bound}</td><td>{}</td></tr>", Plain(&text("note")))?;
    }
    writeln!(out, "</tbody></table></div>")?;
    match checks.len().saturating_sub(MOST_GRADIENTS) {
        0 => Ok(()),
        rest => writeln!(out, "<p class=\"dim\">{rest} more, of smaller errors, are in report.jsonl.</p>"),
    }
}

fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let unit = (0..3).find(|n| bytes < 1000_u64.pow(n + 2)).unwrap_or(2);
    format!("{:.1} {}", bytes as f64 / 1000_f64.powi(unit as i32 + 1), units[unit as usize])
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
