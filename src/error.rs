//! What can go wrong, in kinds that one can match on.
//!
//! Inside the library errors are chains of text, each link with the place that it knows of. At its face they are an
//! [`Error`]: one kind, one line, and where it happened.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Why something could not be done.
///
/// The message is one line: what, where, and what helps. [`Error::code`] is the same for ever; messages may change.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// A name of no tensor, call, symbol or input of the model.
    Name(Box<Details>),
    /// Operators on a path from a y to an x that have no gradient, all of them in one message; the details are of the
    /// first.
    NoGradient(Box<Details>),
    /// A file that is no ONNX model, or a model that contradicts itself or the standard.
    InvalidModel(Box<Details>),
    /// Another file whose contents are not what they should be: a tensor, a data set, a manifest, a checkpoint.
    InvalidData(Box<Details>),
    /// A request that the model is right for and that is not supported, or not for this model.
    Unsupported(Box<Details>),
    /// A file that cannot be read or written.
    Io(Box<Details>),
    /// The gradients are not what the model's slopes are.
    ValidationFailed(Box<Details>),
    /// The gradients could not be compared with anything.
    NotValidated(Box<Details>),
    /// Something took longer than it was given.
    Timeout(Box<Details>),
    /// Something took more memory than it was given, or than there is.
    OutOfMemory(Box<Details>),
    /// The engine ended without an answer.
    EngineCrashed(Box<Details>),
    /// A request that contradicts itself.
    Usage(Box<Details>),
    /// A model that is not what another one was.
    Different(Box<Details>),
    /// A fault of this library.
    Internal(Box<Details>),
}

/// Where an [`Error`] happened, as far as that can be said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Details {
    /// The whole message, one line.
    pub message: String,
    /// The name of the node, or of its first output where it has none.
    pub node: Option<String>,
    /// The node's operator, with its domain where that is not the standard's: `Conv`, `com.microsoft.FusedConv`.
    pub operator: Option<String>,
    /// The node's input that it is about.
    pub input: Option<String>,
    /// The tensor that it is about.
    pub tensor: Option<String>,
    /// The file that it is about, as it was named.
    #[serde(default)]
    pub file: Option<String>,
    /// What helps.
    pub remedy: Option<String>,
}

/// The kinds, each with its code and what one is told of it.
macro_rules! kinds {
    ($($kind:ident, $make:ident, $code:literal, $about:literal;)*) => {
        impl Error {
            /// The codes, each with what it says: the contents of docs/errors.md.
            pub const CODES: &[(&str, &str)] = &[$(($code, $about)),*];

            /// A word for the kind that never changes: `unknown-name`, `unsupported-operator`, ...
            pub fn code(&self) -> &'static str {
                match self { $(Error::$kind(_) => $code),* }
            }

            /// The error of a code; `None` where no kind has it.
            #[allow(dead_code, reason = "what another process has said is read by the command line")]
            pub(crate) fn of_code(code: &str, details: Details) -> Option<Error> {
                match code {
                    $($code => Some(Error::$kind(Box::new(details))),)*
                    _ => None,
                }
            }

            /// The message, and where it happened.
            pub fn details(&self) -> &Details {
                match self { $(Error::$kind(details) => details),* }
            }

            fn details_mut(&mut self) -> &mut Details {
                match self { $(Error::$kind(details) => details),* }
            }

            $(
                #[allow(dead_code, reason = "which kinds are made depends on the features")]
                pub(crate) fn $make(message: impl fmt::Display) -> Self {
                    Error::$kind(Box::new(Details::new(message)))
                }
            )*
        }
    };
}

kinds! {
    Name, name, "unknown-name", "A name of no tensor, call, symbol or input of the model; `tensor` is the name";
    NoGradient, no_gradient, "unsupported-operator",
        "Operators on a path from a y to an x have no gradient; `node` and `operator` are those of the first, the message names all";
    InvalidModel, invalid_model, "invalid-model", "The file is no ONNX model, or the model contradicts itself or the standard";
    InvalidData, invalid_data, "invalid-data",
        "Another file does not hold what it should: a tensor, a data set, a manifest, a checkpoint";
    Unsupported, unsupported, "unsupported", "What is asked for is not supported, or not for this model";
    Io, io, "io", "A file cannot be read or written";
    ValidationFailed, validation_failed, "validation-failed", "A gradient is not the slope of the model";
    NotValidated, not_validated, "not-validated", "Nothing could be compared";
    Timeout, timeout, "timeout", "Something took longer than it was given";
    OutOfMemory, out_of_memory, "out-of-memory", "Something took more memory than it was given, or than there is";
    EngineCrashed, engine_crashed, "engine-crashed", "The engine of the validation ended without an answer";
    Usage, usage, "usage", "The request or the command line contradicts itself";
    Different, different, "different", "A model has lost or changed something that another has";
    Internal, internal, "internal", "A fault of this tool, which its authors want to know of";
}

/// How the message of [`reserve`] begins.
pub(crate) const NO_MEMORY: &str = "there is no memory for";

/// Makes room for so many elements more of what is about to be read or computed.
///
/// # Errors
/// There is none: [`Error::OutOfMemory`].
pub(crate) fn reserve<T>(list: &mut Vec<T>, more: usize) -> Result<(), Error> {
    let bytes = more.saturating_mul(size_of::<T>());
    let room = list.try_reserve(more);
    room.map_err(|_| Error::out_of_memory(format_args!("{NO_MEMORY} {bytes} bytes of it")))
}

impl Details {
    fn new(message: impl fmt::Display) -> Self {
        let message = shortened(message.to_string());
        let remedy = advice(&message);
        Details { message, remedy, ..Details::default() }
    }
}

impl Error {
    pub(crate) fn with_tensor(mut self, name: &str) -> Self {
        self.details_mut().tensor = Some(name.to_owned());
        self
    }

    pub(crate) fn with_remedy(mut self, remedy: Option<String>) -> Self {
        self.details_mut().remedy = remedy;
        self
    }

    /// The same, about a file, where it is about none yet.
    pub(crate) fn in_file(mut self, file: Option<String>) -> Self {
        let details = self.details_mut();
        details.file = details.file.take().or(file);
        self
    }

    /// The same kind and place with another message.
    pub(crate) fn with_message(mut self, message: String) -> Self {
        self.details_mut().message = shortened(message);
        self
    }

    pub(crate) fn at(mut self, place: &At) -> Self {
        let details = self.details_mut();
        details.node = place.node.clone();
        details.operator = place.operator.clone();
        details.input = place.input.clone();
        self
    }

    /// What a chain of causes comes to: the kind of the first cause that has one, else what the system said, else
    /// `other`.
    pub(crate) fn of(error: anyhow::Error, other: fn(String) -> Error) -> Error {
        let message = shortened(format!("{error:#}"));
        let kind = error.chain().find_map(|cause| cause.downcast_ref::<Error>()).cloned();
        let system = || {
            let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>())?;
            Some(match io.kind() {
                std::io::ErrorKind::OutOfMemory => Error::out_of_memory(&message),
                _ => Error::io(&message),
            })
        };
        let known = kind.is_some();
        let mut result = kind.or_else(system).unwrap_or_else(|| other(message.clone()));
        let details = result.details_mut();
        if known && details.remedy.is_none() {
            details.remedy = advice(&message);
        }
        details.message = message;
        if let Some(OfFile(file)) = error.downcast_ref::<OfFile>() {
            details.file.get_or_insert_with(|| file.clone());
        }
        if let Some(place) = error.downcast_ref::<At>().filter(|_| details.node.is_none()) {
            return result.at(place);
        }
        result
    }
}

/// Words of a message that are longer stand for themselves by their beginning and end: names are as long as a file
/// says.
const LONG_WORD: usize = 400;

/// A message that is longer is cut in its middle: what helps stands at the end.
const LONG_MESSAGE: usize = 16_000;

/// A list of numbers in brackets that is longer is cut: perms, shapes and kernels are as long as a file says.
const LONG_LIST: usize = 24;

/// A message for people, whatever names and lists a file holds: one line of what can be printed, with an end.
pub(crate) fn shortened(message: String) -> String {
    let message = one_line(message);
    if message.len() <= LONG_LIST * 3 {
        return message;
    }
    let message = with_short_lists(&message);
    if message.len() <= LONG_WORD {
        return message;
    }
    let mut short = String::new();
    for part in message.split_inclusive(char::is_whitespace) {
        push_shortened(&mut short, part, LONG_WORD);
    }
    let mut whole = String::new();
    push_shortened(&mut whole, &short, LONG_MESSAGE);
    whole
}

/// Text with what is no part of a line written out: names may hold control characters, line feeds, marks that turn the
/// direction of all that follows.
pub(crate) fn one_line(text: String) -> String {
    let breaks = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(breaks) {
        return text;
    }
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if breaks(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// A message whose bracketed lists have an end: their first elements, the last one, and how many there are.
fn with_short_lists(message: &str) -> String {
    let mut short = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('[') {
        short.extend([before, "["]);
        rest = after;
        let list = after.split(['[', ']']).next().unwrap_or_default();
        let count = list.matches(',').count() + 1;
        if count > LONG_LIST && after[list.len()..].starts_with(']') {
            let shown = list.match_indices(',').nth(LONG_LIST / 2 - 1).map_or(list.len(), |(at, _)| at);
            let last = list.rsplit(',').next().unwrap_or_default().trim();
            short.push_str(&format!("{}, … {last}: {count} in all", &list[..shown]));
            rest = &after[list.len()..];
        }
    }
    short + rest
}

/// Appends a text, or three quarters of what may be long from its beginning and a quarter from its end.
fn push_shortened(to: &mut String, text: &str, longest: usize) {
    if text.len() <= longest {
        return to.push_str(text);
    }
    let (head, tail) = (text.floor_char_boundary(longest * 3 / 4), text.ceil_char_boundary(text.len() - longest / 4));
    to.extend([&text[..head], "…", &text[tail..]]);
}

/// By the habit of our messages what helps stands at the end, behind a semicolon.
fn advice(message: &str) -> Option<String> {
    message.rsplit_once("; ").map(|(_, advice)| advice.to_owned()).filter(|advice| !advice.is_empty())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.details().message)
    }
}

impl std::error::Error for Error {}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Error::of(error, Error::unsupported)
    }
}

/// A node in a chain of causes: it reads like the text that it is, and tells its parts.
#[derive(Clone, Debug, Default)]
pub(crate) struct At {
    pub text: String,
    pub node: Option<String>,
    pub operator: Option<String>,
    pub input: Option<String>,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A file in a chain of causes: it reads as it was named.
#[derive(Clone, Debug)]
struct OfFile(String);

impl fmt::Display for OfFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says of failures which file they are about.
pub(crate) trait InFile<T> {
    /// The result with what fails in that file.
    fn in_file(self, path: &Path) -> anyhow::Result<T>;
}

impl<T, E> InFile<T> for Result<T, E>
where
    Result<T, E>: anyhow::Context<T, E>,
{
    fn in_file(self, path: &Path) -> anyhow::Result<T> {
        anyhow::Context::with_context(self, || OfFile(path.display().to_string()))
    }
}

/// Gives failures without a kind one.
pub(crate) trait OrKind<T> {
    /// The result with what fails of a kind: its own, the system's, or `kind`.
    fn or_kind(self, kind: fn(String) -> Error) -> Result<T, Error>;
}

impl<T> OrKind<T> for anyhow::Result<T> {
    fn or_kind(self, kind: fn(String) -> Error) -> Result<T, Error> {
        self.map_err(|error| Error::of(error, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn names_in_messages_have_an_end() {
        let (long, spaced) = ("ä".repeat(100_000), "a b ".repeat(100_000));
        let error = Error::name(format_args!("no tensor is called '{long}'; the outputs are 'y'"));
        assert!(error.to_string().len() < 500, "{error}");
        assert!(error.to_string().starts_with("no tensor is called 'ä"), "{error}");
        assert_eq!(error.details().remedy.as_deref(), Some("the outputs are 'y'"));
        let error = Error::from(anyhow!("'{spaced}' is no tensor; name one").context(long));
        assert!(error.to_string().len() < 20_000 && error.to_string().ends_with("name one"), "{error}");
        let usual = "node 'n' (Add): no".repeat(30);
        assert_eq!(Error::name(&usual).to_string(), usual);
    }

    #[test]
    fn a_chain_has_the_kind_of_its_first_cause_that_has_one() {
        let place = || At { text: "node 'n' (Foo)".into(), node: Some("n".into()), ..At::default() };
        let chain = Err::<(), _>(Error::io("the disk is full; make room")).context(place()).context("a.onnx");
        let error = Error::from(chain.unwrap_err());
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            ("io", "a.onnx: node 'n' (Foo): the disk is full; make room")
        );
        assert_eq!(
            (error.details().node.as_deref(), error.details().remedy.as_deref()),
            (Some("n"), Some("make room"))
        );
        let system = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull)).context("a.onnx");
        assert_eq!(Error::from(system).code(), "io");
        assert_eq!(Error::of(anyhow!("cut off"), Error::invalid_model).code(), "invalid-model");
        let again = Error::from(anyhow::Error::from(Error::name("no 'x'")).context("ys"));
        assert_eq!((again.code(), again.to_string().as_str()), ("unknown-name", "ys: no 'x'"));
    }
}
