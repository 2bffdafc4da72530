//! What is said where something fails: a line on stderr, and with `--json` an object on stdout, from every subcommand.

use super::console::{self, Stream};
use crate::Error;
use serde_json::{Value, json};
use std::fmt;
use std::io::Write;

/// An error of which the report on stdout has told already.
#[derive(Debug)]
pub struct Reported(pub Error);

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Reported {}

/// Adds what an error says to a report: its code, message, place and remedy.
pub fn add(report: &mut Value, error: &Error) {
    let Some(report) = report.as_object_mut() else { return };
    report.insert("code".to_owned(), json!(error.code()));
    if let Value::Object(details) = json!(error.details()) {
        report.extend(details);
    }
}

/// What an object says that [`add`] has made, in this process or another one.
#[cfg(feature = "validate")]
pub fn read(report: &str) -> Option<Error> {
    let report: Value = serde_json::from_str(report).ok()?;
    Error::of_code(report["code"].as_str()?, serde_json::from_value(report.clone()).ok()?)
}

/// Prints what the program fails with.
pub fn tell(error: anyhow::Error) {
    super::note(format_args!("error: {error:#}"));
    if error.downcast_ref::<Reported>().is_none() {
        tell_json(&Error::from(error));
    }
}

/// The object for an error, where the arguments ask for JSON.
pub fn tell_json(error: &Error) {
    if !console::json() {
        return;
    }
    let mut object = json!({});
    add(&mut object, error);
    // Where stdout is closed, nobody is left to be told.
    let _ = writeln!(Stream::Report, "{object}");
}
