//! Options of single models, from a TOML file beside their list.
//!
//! ```toml
//! ["bert-*"]
//! dim = { batch = 2, seq = 8 }
//! ys = ["loss"]
//!
//! ["speech/whisper.onnx"]
//! input = { mel = "mel.npy" }
//! time = 120
//! ```

use super::Takes;
use crate::backward::matches;
use crate::error::{Error, OrKind};
use crate::onnx::did_you_mean;
use crate::onnx::file;
use anyhow::{Context, Result};
use clap::{Arg, ArgAction, Command, error::ErrorKind};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use toml_edit::{Document, Item, Key, Value};

/// The entries of a file, in their order.
#[derive(Default)]
pub struct Settings {
    entries: Vec<Entry>,
    file: String,
}

/// The options of the models that a name or pattern means.
struct Entry {
    pattern: String,
    line: usize,
    options: Vec<Setting>,
    met: Cell<bool>,
}

/// An option, and what stands for it in place of what a command says of it.
struct Setting {
    option: Arg,
    arguments: Vec<String>,
}

/// What is needed to read an entry.
struct Reader<'a> {
    /// The file's name and text.
    file: String,
    text: &'a str,
    /// Where files that it names lie.
    folder: &'a Path,
    command: &'a Command,
    takes: &'a Takes,
}

/// Where the settings lie of what is given as the models: for a list `LIST.toml`, or else `batch.toml` in the folder.
pub fn beside(models: &Path, base: &Path) -> PathBuf {
    let is_list = models.is_file() && models.extension().is_none_or(|e| e != "onnx");
    if is_list { models.with_extension("toml") } else { base.join("batch.toml") }
}

impl Settings {
    /// The settings of a file, for a subcommand.
    ///
    /// # Errors
    /// A file that cannot be read, that is no TOML, or that sets what the command does not take: with line and key.
    pub fn read(path: &Path, command: &Command, takes: &Takes) -> Result<Settings> {
        let file = path.display().to_string();
        let text = file::read_text(path).or_kind(Error::invalid_data).with_context(|| file.clone())?;
        let text = text.as_str();
        let reader = Reader { file: file.clone(), text, folder: file::folder(path), command, takes };
        let document = Document::parse(text).map_err(|error| reader.error(error.span(), &one_line(error.message())))?;
        let table = document.as_table();
        let mut entries = Vec::new();
        for (pattern, _) in table {
            let Some((key, item)) = table.get_key_value(pattern) else { continue };
            entries.push(reader.entry(key, item)?);
        }
        Ok(Settings { entries, file })
    }

    /// The command with the options of a model: what a later entry sets stands in place of what was set before, and of
    /// what the command says.
    pub fn applied(&self, command: &[String], model: &str) -> Vec<String> {
        let mut command = command.to_vec();
        for entry in self.entries.iter().filter(|e| means(&e.pattern, model)) {
            entry.met.set(true);
            for setting in &entry.options {
                command = without(&command, &setting.option);
                command.extend(setting.arguments.iter().cloned());
            }
        }
        command
    }

    /// What matches none of the models that options were asked for.
    pub fn warnings(&self) -> Vec<String> {
        let unmet = self.entries.iter().filter(|e| !e.met.get());
        unmet.map(|e| format!("{}: line {}: '{}' matches no model", self.file, e.line, e.pattern)).collect()
    }
}

/// Whether a pattern means a model: its path, the file's name, or either without the ending.
fn means(pattern: &str, model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or(model);
    let stem = |text: &str| text.strip_suffix(".onnx").unwrap_or(text).to_owned();
    [model.to_owned(), name.to_owned(), stem(model), stem(name)]
        .iter()
        .any(|text| pattern == text || matches(pattern, text))
}

/// A command without an option and its values.
fn without(command: &[String], option: &Arg) -> Vec<String> {
    let mut names: Vec<String> =
        option.get_long_and_visible_aliases().into_iter().flatten().map(|l| format!("--{l}")).collect();
    names.extend(option.get_short().map(|s| format!("-{s}")));
    let most = if takes_values(option) { option.get_num_args().map_or(1, |n| n.max_values()) } else { 0 };
    let mut kept = Vec::new();
    let mut rest = command.iter().peekable();
    while let Some(argument) = rest.next() {
        let name = argument.split_once('=').map_or(argument.as_str(), |(name, _)| name);
        if !names.iter().any(|n| n == name) {
            kept.push(argument.clone());
            continue;
        }
        let mut open = if name == argument { most } else { 0 };
        let is_value = |text: &&String| !text.starts_with('-') || text.parse::<f64>().is_ok() || text.len() == 1;
        while open > 0 && rest.next_if(is_value).is_some() {
            open -= 1;
        }
    }
    kept
}

fn takes_values(option: &Arg) -> bool {
    option.get_action().takes_values()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Reader<'_> {
    fn line(&self, span: Option<std::ops::Range<usize>>) -> usize {
        let start = span.map_or(0, |s| s.start).min(self.text.len());
        self.text.as_bytes()[..start].iter().filter(|&&b| b == b'\n').count() + 1
    }

    fn error(&self, span: Option<std::ops::Range<usize>>, what: &str) -> anyhow::Error {
        Error::invalid_data(format_args!("{}: line {}: {what}", self.file, self.line(span))).into()
    }

    fn entry(&self, key: &Key, item: &Item) -> Result<Entry> {
        let pattern = key.get();
        let line = self.line(key.span());
        let Some(table) = item.as_table_like() else {
            let what =
                format!("'{pattern}' stands outside of a model; options stand below [\"MODEL\"] or [\"PATTERN\"]");
            return Err(self.error(key.span(), &what));
        };
        let mut options = Vec::new();
        for (name, _) in table.iter() {
            let Some((key, item)) = table.get_key_value(name) else { continue };
            options.push(self.setting(pattern, key, item)?);
        }
        Ok(Entry { pattern: pattern.to_owned(), line, options, met: Cell::new(false) })
    }

    fn setting(&self, pattern: &str, key: &Key, item: &Item) -> Result<Setting> {
        let name = key.get();
        let wrong = |what: String| self.error(key.span().or(item.span()), &format!("'{name}': {what}"));
        let longs = |arg: &Arg| {
            arg.get_long_and_visible_aliases().unwrap_or_default().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let own = ["output", "force", "json", "model", "help"];
        if own.contains(&name) {
            return Err(wrong("a batch says this itself".to_owned()));
        }
        let known: Vec<&Arg> =
            self.command.get_arguments().filter(|a| !a.is_hide_set() && !own.contains(&a.get_id().as_str())).collect();
        let Some(option) = known.iter().find(|a| longs(a).iter().any(|l| l == name)) else {
            if item.is_table() {
                let what = format!("a name with a point in it is quoted: [\"{pattern}.{name}\"]");
                return Err(wrong(what));
            }
            let names: Vec<String> = known.iter().flat_map(|a| longs(a)).collect();
            let hint = did_you_mean(&name.replace('_', "-"), names.iter().map(String::as_str));
            return Err(wrong(format!("{} has no such option{hint}", self.command.get_name())));
        };
        let arguments = self.arguments(name, option, item).map_err(wrong)?;
        self.try_out(&arguments).map_err(wrong)?;
        Ok(Setting { option: (*option).clone(), arguments })
    }

    /// The arguments that a value stands for.
    fn arguments(&self, name: &str, option: &Arg, item: &Item) -> Result<Vec<String>, String> {
        let several = matches!(option.get_action(), ArgAction::Append);
        let form = option.get_value_names().and_then(<[_]>::first).map(|n| n.as_str().to_owned()).unwrap_or_default();
        let pairs = form.contains('=');
        if !takes_values(option) {
            return match item.as_bool() {
                Some(true) => Ok(vec![format!("--{name}")]),
                Some(false) => Ok(vec![]),
                None => Err("it is true or false".to_owned()),
            };
        }
        let one = |value: &Value| {
            scalar(value).map(|text| self.located(&form, text)).ok_or_else(|| format!("it is of the form {form}"))
        };
        let values = match item {
            Item::Value(Value::Array(list)) if several => list.iter().map(one).collect::<Result<Vec<_>, _>>()?,
            Item::Value(Value::Array(_)) => return Err("it has one value".to_owned()),
            _ if item.as_table_like().is_some_and(|_| pairs) => {
                let joint = if form.contains("..") { ".." } else { "x" };
                let table = item.as_table_like().into_iter().flat_map(|t| t.iter());
                let pair = |(name, item): (&str, &Item)| {
                    let text = match item {
                        Item::Value(Value::Array(list)) => {
                            let parts: Option<Vec<String>> = list.iter().map(scalar).collect();
                            parts.map(|parts| parts.join(joint))
                        }
                        _ => item.as_value().and_then(scalar),
                    };
                    let text = text.ok_or_else(|| format!("of '{name}' it is a number or a text"))?;
                    Ok(self.located(&form, format!("{name}={text}")))
                };
                table.map(pair).collect::<Result<Vec<_>, String>>()?
            }
            _ => vec![one(item.as_value().ok_or_else(|| format!("it is of the form {form}"))?)?],
        };
        Ok(values.into_iter().map(|value| format!("--{name}={value}")).collect())
    }

    /// A value whose file lies beside the settings.
    fn located(&self, form: &str, value: String) -> String {
        let names_file = form.ends_with("FILE") || form.ends_with("PATH");
        let (front, path) = match (value.rsplit_once('='), value.strip_prefix("file:")) {
            (Some((name, path)), _) if form.contains('=') && names_file => (format!("{name}="), path),
            (_, Some(path)) if form == "SPEC" => ("file:".to_owned(), path),
            _ if names_file => (String::new(), value.as_str()),
            _ => return value,
        };
        format!("{front}{}", self.folder.join(path).display())
    }

    /// Whether the subcommand takes the arguments, whatever else it is given.
    fn try_out(&self, arguments: &[String]) -> Result<(), String> {
        let name = self.command.get_name().to_owned();
        let rest = if self.takes.output { vec!["-o".to_owned(), "out".to_owned()] } else { vec![] };
        let all = std::iter::once(name)
            .chain(rest)
            .chain(arguments.iter().cloned())
            .chain(["--".to_owned(), "model".to_owned()]);
        let Err(error) = self.command.clone().try_get_matches_from(all) else { return Ok(()) };
        // What an option needs beside it, and what it excludes, the whole command tells.
        match error.kind() {
            ErrorKind::ArgumentConflict | ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand => Ok(()),
            _ => {
                let text = error.to_string();
                let first = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
                Err(one_line(first))
            }
        }
    }
}

/// A number, a text or a truth as an argument has it.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.value().clone()),
        Value::Integer(number) => Some(number.value().to_string()),
        Value::Float(number) => Some(number.value().to_string()),
        Value::Boolean(truth) => Some(truth.value().to_string()),
        _ => None,
    }
}
