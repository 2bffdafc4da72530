//! What stands in the way of the models of a batch, counted: by operator where one is named, by message where none is.

use super::page::Entry;
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
    let mut found: BTreeMap<(&str, &str, String), Vec<usize>> = BTreeMap::new();
    for (n, entry) in entries.iter().enumerate().filter(|(_, e)| e.line.code != "ok") {
        let (code, operator) = (entry.line.code.as_str(), entry.operator());
        // Messages of these codes say what differs from model to model.
        let known = !operator.is_empty() || matches!(code, "timeout" | "out-of-memory" | "different");
        let message = if known { String::new() } else { entry.reason() };
        found.entry((code, operator, message)).or_default().push(n);
    }
    let said = |((code, operator, message), models): ((&'a str, &'a str, String), Vec<usize>)| {
        let text = sentence(code, operator, &message, models.len());
        Reason { code, operator, text, models }
    };
    let mut reasons: Vec<Reason> = found.into_iter().map(said).collect();
    reasons.sort_by_key(|reason| usize::MAX - reason.models.len());
    reasons
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
        (_, false) if message.is_empty() => format!("{n}: {code}, of {operator}"),
        _ if message.is_empty() => format!("{n}: {code}"),
        _ => format!("{n}: {message}"),
    }
}
