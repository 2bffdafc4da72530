//! What is better or worse than in an earlier report of the same models.

use super::Line;
use super::entry::Entry;
use crate::Error;
use crate::onnx::file;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// Which way something has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    Worse,
    Better,
    /// Neither: another error, another number of nodes.
    Other,
    New,
    Gone,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::Worse => "worse",
            Way::Better => "better",
            Way::Other => "other",
            Way::New => "new",
            Way::Gone => "gone",
        }
    }
}

/// A model of which something has changed.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub way: Way,
    pub model: String,
    pub what: String,
}

/// The lines of an earlier report.
///
/// # Errors
/// It cannot be read, or is no report. Its last line may be cut off.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let name = path.display();
    let bytes = file::read_whole(path).with_context(|| name.to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    let last = text.lines().count();
    let mut lines = Vec::new();
    for (n, line) in text.lines().enumerate() {
        match serde_json::from_str::<Line>(line) {
            Ok(line) => lines.push(line),
            // A run that was killed may have left a part of a line.
            Err(_) if n + 1 == last && n > 0 => (),
            Err(error) => {
                let what = format_args!("{name}: line {} is no line of a batch's report ({error})", n + 1);
                return Err(Error::invalid_data(what).into());
            }
        }
    }
    Ok(lines)
}

/// What has changed, what is worse first.
pub fn compare(old: &[Line], new: &[Entry], is_success: impl Fn(&Line) -> bool) -> Vec<Change> {
    // The last line of a model counts: it has been done again.
    let before: HashMap<&str, &Line> = old.iter().map(|line| (line.model.as_str(), line)).collect();
    let mut changes = Vec::new();
    let mut add = |way, model: &str, what: String| changes.push(Change { way, model: model.to_owned(), what });
    for entry in new {
        let model = &entry.line.model;
        let Some(&line) = before.get(model.as_str()) else {
            add(Way::New, model, verdict(entry));
            continue;
        };
        let was = Entry { line, success: is_success(line) };
        if let Some((way, what)) = change(&was, entry) {
            add(way, model, what);
        }
    }
    let known: HashSet<&str> = new.iter().map(|entry| entry.line.model.as_str()).collect();
    for (model, line) in before.iter().filter(|(model, _)| !known.contains(*model)) {
        add(Way::Gone, model, format!("was {}", verdict(&Entry { line, success: false })));
    }
    changes.sort_by(|a, b| (a.way, &a.model).cmp(&(b.way, &b.model)));
    changes
}

/// What is to be known of the comparison itself: other versions, other commands.
pub fn conditions(old: &[Line], new: &[&Line]) -> Vec<String> {
    let mut said = Vec::new();
    // Reports of before these were kept say nothing of them.
    let was: HashMap<&str, &Line> =
        old.iter().filter(|l| !l.version.is_empty()).map(|l| (l.model.as_str(), l)).collect();
    let both = || new.iter().filter_map(|line| Some((*line, *was.get(line.model.as_str())?)));
    let versions: BTreeSet<(&str, &str)> =
        both().filter(|(a, b)| a.version != b.version).map(|(a, b)| (a.version.as_str(), b.version.as_str())).collect();
    said.extend(
        versions.iter().map(|(now, then)| format!("the earlier report is of version {then}, this one of {now}")),
    );
    let mut commands: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (now, then) in both().filter(|(a, b)| a.command != b.command) {
        *commands.entry((now.command.join(" "), then.command.join(" "))).or_default() += 1;
    }
    let mut commands: Vec<_> = commands.into_iter().collect();
    commands.sort_by_key(|(_, count)| usize::MAX - count);
    if let Some(((now, then), count)) = commands.first() {
        let more = if commands.len() > 1 { ", and others" } else { "" };
        said.push(format!("the earlier report is of another command: '{now}' was '{then}', of {count} models{more}"));
    }
    said
}

/// How many there are of each way.
pub fn counts(changes: &[Change]) -> BTreeMap<Way, usize> {
    let mut counts = BTreeMap::new();
    changes.iter().for_each(|change| *counts.entry(change.way).or_default() += 1);
    counts
}

/// A code, with the operator that it is about.
fn verdict(entry: &Entry) -> String {
    match entry.operator() {
        "" => entry.line.code.clone(),
        operator => format!("{} ({operator})", entry.line.code),
    }
}

fn change(was: &Entry, is: &Entry) -> Option<(Way, String)> {
    /// Times of one computation differ by less on a machine that does other things too, if not by less than a second.
    const TIMES: f64 = 2.0;
    const SECONDS: f64 = 1.0;
    /// Errors are of rounding below, and differ by less where nothing has changed.
    const ERRORS: f64 = 10.0;
    const ROUNDING: f64 = 1e-7;
    let (before, now) = (verdict(was), verdict(is));
    if before != now {
        let rank = |e: &Entry| u8::from(e.success) + u8::from(e.line.code == "ok");
        let way = match rank(is).cmp(&rank(was)) {
            std::cmp::Ordering::Less => Way::Worse,
            std::cmp::Ordering::Greater => Way::Better,
            std::cmp::Ordering::Equal => Way::Other,
        };
        return Some((way, format!("{now}, was {before}")));
    }
    let mut found = Vec::new();
    if was.line.exit.is_some() && was.line.exit != is.line.exit {
        let exit =
            |e: &Entry| e.line.exit.map_or_else(|| "no exit code".to_owned(), |code| format!("exit code {code}"));
        found.push((Way::Other, format!("{}, was {}", exit(is), exit(was))));
    }
    let direction = |is_less: bool| if is_less { Way::Better } else { Way::Worse };
    if let (Some(a), Some(b)) = (was.error(), is.error()) {
        let (low, high) = (a.min(b), a.max(b));
        if high > ROUNDING && high > ERRORS * low {
            found.push((direction(b < a), format!("largest error {b:.1e}, was {a:.1e}")));
        }
    }
    let (a, b) = (was.line.seconds, is.line.seconds);
    if a.max(b) > TIMES * a.min(b) && (a - b).abs() > SECONDS {
        found.push((direction(b < a), format!("{b:.1} s, was {a:.1} s")));
    }
    let added = |e: &Entry| e.line.report["nodes_added"].as_u64();
    if let (Some(a), Some(b)) = (added(was), added(is))
        && a != b
    {
        found.push((Way::Other, format!("{b} nodes added, were {a}")));
    }
    let way = found.iter().map(|(way, _)| *way).min()?;
    Some((way, found.into_iter().map(|(_, what)| what).collect::<Vec<_>>().join("; ")))
}
