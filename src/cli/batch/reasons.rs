//! What stands in the way of the models of a batch, counted: by operator where one is named, by message where none is.

use super::entry::Entry;
use std::collections::BTreeMap;

/// Models for which the same is to be said.
pub struct Reason<'a> {
    pub code: &'a str,
    /// The operator that it is about, or nothing.
    pub operator: &'a str,
    /// What is to be said, with how many of them there are.
    pub text: String,
    /// Their places among the entries, in order.
    pub models: Vec<usize>,
}

/// The reasons of what is not `ok`, the most frequent first.
pub fn reasons<'a>(entries: &'a [Entry<'_>]) -> Vec<Reason<'a>> {
    /// With the first message, as long as all others are the same.
    type Models = (Vec<usize>, Option<String>);
    type Key<'a> = (&'a str, &'a str, String);
    let mut found: BTreeMap<Key<'_>, Models> = BTreeMap::new();
    for (n, entry) in entries.iter().enumerate().filter(|(_, e)| e.line.code != "ok") {
        let (code, operator) = (entry.line.code.as_str(), entry.operator());
        // Messages of these codes say what differs from model to model.
        let known = matches!(code, "unsupported-operator" | "timeout" | "out-of-memory" | "different");
        let message = if known { String::new() } else { entry.reason() };
        let (models, first) =
            found.entry((code, operator, without_numbers(&message))).or_insert_with(|| (vec![], Some(message.clone())));
        models.push(n);
        if first.as_ref() != Some(&message) {
            *first = None;
        }
    }
    let said = found.into_iter().map(|((code, operator, common), (models, same))| {
        let text = sentence(code, operator, &same.unwrap_or(common), models.len());
        Reason { code, operator, text, models }
    });
    let mut reasons: Vec<Reason> = said.collect();
    reasons.sort_by_key(|reason| usize::MAX - reason.models.len());
    reasons
}

/// A message without its numbers, in which messages of one kind differ.
fn without_numbers(message: &str) -> String {
    let mut text = String::new();
    // Lists of names differ in their lengths.
    let mut message = message.to_owned();
    while message.contains("'…', '…'") {
        message = message.replace("'…', '…'", "'…'");
    }
    for c in message.chars() {
        match c.is_ascii_digit() {
            true if text.ends_with('…') => (),
            true => text.push('…'),
            false => text.push(c),
        }
    }
    text
}

/// `12 need a gradient of com.own.Odd`, `3: tract has no Loop`.
fn sentence(code: &str, operator: &str, message: &str, n: usize) -> String {
    let many = |one: &str, several: &str| format!("{n} {}", if n == 1 { one } else { several });
    match (code, operator.is_empty()) {
        ("unsupported-operator", false) => format!("{} a gradient of {operator}", many("needs", "need")),
        ("timeout", _) => many("has not ended in its time", "have not ended in their time"),
        ("out-of-memory", _) => many("takes more memory than it has", "take more memory than they have"),
        ("different", _) => many("has lost or changed something", "have lost or changed something"),
        ("invalid-model", true) => format!("{}: {message}", many("is no valid model", "are no valid models")),
        _ if message.is_empty() => format!("{n}: {code}"),
        _ => format!("{n}: {message}"),
    }
}
