//! What ARCHITECTURE.md says of the house, read from its source: who knows operators and opsets, who writes nodes, who
//! prints.

mod common;

use onnx_gradients::internals;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The source files with their text.
fn files() -> Vec<(String, String)> {
    fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { collect(&path, files) } else { files.push(path) }
        }
    }
    let root = common::folder("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let name = |path: &PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
    files.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// The source files with their lines, without comments and test modules.
fn source() -> Vec<(String, Vec<String>)> {
    let code = |text: &str| {
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        code.lines().map(|l| l.split("//").next().unwrap_or_default().to_owned()).collect()
    };
    let own = files().into_iter().filter(|(name, _)| !name.ends_with("tests.rs"));
    own.map(|(name, text)| (name, code(&text))).collect()
}

/// Lines that hold one of the words, outside the files and folders where they may be.
fn strangers(words: &[&str], allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, lines) in source() {
        if allowed.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        let line = |(n, line): (usize, &String)| {
            words.iter().any(|w| line.contains(w)).then(|| format!("{name}:{}: {}", n + 1, line.trim()))
        };
        found.extend(lines.iter().enumerate().filter_map(line));
    }
    found
}

#[test]
fn nodes_are_written_by_expressions() {
    let words = ["NodeProto {", "NodeProto::new(", "NewNode {", "emit(\""];
    let allowed = [
        "onnx/",
        "graph/",
        "expr/",
        // Calls of functions: what an operator is called there is the model's own business.
        "backward/function.rs",
        "training/loss_model.rs",
        "rules/call.rs",
    ];
    let signatures = |l: &String| l.contains("impl ") || l.contains("fn ") || l.contains("for NodeProto");
    let found: Vec<String> = strangers(&words, &allowed).into_iter().filter(|l| !signatures(l)).collect();
    assert!(found.is_empty(), "nodes are written by formulas (expr/ops, expr/rewrite):\n{}", found.join("\n"));
}

#[test]
fn operators_are_known_to_their_rows() {
    let names: BTreeSet<String> = internals::all().map(|rule| format!("\"{}\"", rule.op)).collect();
    // Operators without a row, too: whoever compares a name knows something of it.
    let compared = ["op_type() == \"", "op_type == \"", "op_type() != \"", "op_type != \""];
    let words: Vec<&str> = names.iter().map(String::as_str).chain(compared).collect();
    let allowed = [
        "rules/",
        // How an operator is written at which opset.
        "expr/ops/",
        // What an operator computes, by the words of its specification.
        "validate/kernels/",
        // What one engine lacks, or computes wrongly.
        "validate/tract/",
        // How a format holds a constant, and the nodes that stand around others in a copy for an engine.
        "onnx/node.rs",
    ];
    let found = strangers(&words, &allowed);
    assert!(found.is_empty(), "what is known of an operator is said in its row (src/rules):\n{}", found.join("\n"));
}

#[test]
fn opsets_are_known_to_few() {
    let words = [".opset(", "opset_or_default("];
    let allowed = [
        "onnx/",
        "graph/",
        "expr/",
        // Two models become one; a function says of which version it is.
        "training/loss_model.rs",
        "backward/function.rs",
        // What the model says of itself is shown.
        "cli/inspect.rs",
        // What an engine has of a version.
        "validate/",
    ];
    // Which row an operator of a version has, anybody may ask.
    let found: Vec<String> = strangers(&words, &allowed).into_iter().filter(|l| !l.contains("find(")).collect();
    assert!(found.is_empty(), "how an operator is written at which opset is known to expr/ops:\n{}", found.join("\n"));
    for (name, lines) in source().iter().filter(|(name, _)| name.starts_with("rules/")) {
        let asks = lines.iter().any(|l| l.contains("opset(") && !l.contains("find("));
        assert!(!asks, "{name}: rules do not know opsets");
    }
}

#[test]
fn nothing_prints_but_the_command_line() {
    let words = ["println!", "eprintln!", "print!(", "stdout()", "stderr()"];
    let found = strangers(&words, &["cli/", "main.rs"]);
    assert!(found.is_empty(), "only cli prints:\n{}", found.join("\n"));
}

#[test]
fn protobuf_is_walked_in_one_place() {
    let words =
        ["g.iter().chain(&a.graphs)", "g.iter_mut().chain(&mut a.graphs)", "\"value_floats\"", "\"value_ints\""];
    let found = strangers(&words, &["onnx/"]);
    assert!(
        found.is_empty(),
        "onnx/node.rs has the bodies of nodes and the values of constants:\n{}",
        found.join("\n")
    );
}

#[test]
fn comments_fit_into_their_lines() {
    let mut found = Vec::new();
    for (name, text) in files() {
        let long = |line: &str| line.trim_start().starts_with("//") && line.chars().count() > 120;
        found.extend(text.lines().enumerate().filter(|(_, l)| long(l)).map(|(n, l)| format!("{name}:{}: {l}", n + 1)));
    }
    assert!(found.is_empty(), "comments are at most 120 columns wide:\n{}", found.join("\n"));
}

/// The most lines of a function.
const LONGEST: usize = 60;

#[test]
fn functions_are_read_without_scrolling() {
    let mut found = Vec::new();
    for (name, lines) in source() {
        for (first, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let begins = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "const fn ", "pub const fn "];
            if !begins.iter().any(|b| code.starts_with(b)) || code.ends_with([';', '}']) {
                continue;
            }
            // The source is formatted: what ends a function stands below its first word.
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let length = lines[first..].iter().position(|l| l.trim_end() == end).map_or(1, |n| n + 1);
            if length > LONGEST {
                found.push(format!("{name}:{}: {length} lines: {code}", first + 1));
            }
        }
    }
    assert!(found.is_empty(), "functions have at most {LONGEST} lines:\n{}", found.join("\n"));
}
