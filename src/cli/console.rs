//! What commands read from and write to: the streams of the process, or buffers where a program runs a command inside
//! itself.

use crate::Model;
use crate::onnx::file;
use anyhow::Result;
use bytes::Bytes;
use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

/// What a command leaves that a program has run inside itself.
#[derive(Debug, Default)]
pub struct Left {
    /// The exit code: 0 for success, 1 where the work failed, 2 for wrong usage.
    pub code: u8,
    /// What it says: its stdout, a model there excepted.
    pub report: String,
    /// Warnings and the line of an error: its stderr.
    pub notes: String,
    /// The model that it writes for `-o -`, in pieces: its weights lie where they lay in the model that was given.
    pub model: Vec<Bytes>,
}

#[derive(Default)]
struct Inside {
    input: Bytes,
    report: Vec<u8>,
    notes: Vec<u8>,
    model: Vec<Bytes>,
}

thread_local! {
    static INSIDE: RefCell<Option<Inside>> = const { RefCell::new(None) };
    static JSON: RefCell<bool> = const { RefCell::new(false) };
}

static PROGRAM: OnceLock<Vec<OsString>> = OnceLock::new();

/// Runs a command line with buffers for streams: `input` is what `-` stands for as a model. It is not copied, and let
/// go at the end.
pub fn run_within<T: AsRef<[u8]> + Send + 'static>(arguments: Vec<OsString>, input: Option<T>) -> Left {
    let input = input.map(Bytes::from_owner).unwrap_or_default();
    INSIDE.set(Some(Inside { input, ..Inside::default() }));
    let code = super::run_of(arguments);
    let Inside { report, notes, model, .. } = INSIDE.take().unwrap_or_default();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Left { code, report: text(report), notes: text(notes), model }
}

/// Says which program, with which first arguments, is this command line, where that is not the running program itself.
pub fn set_program(program: Vec<OsString>) {
    let _ = PROGRAM.set(program);
}

/// The command line in a process of its own.
///
/// # Errors
/// The running program cannot be told.
pub fn program() -> io::Result<std::process::Command> {
    let own = || Ok(vec![std::env::current_exe()?.into_os_string()]);
    let program = PROGRAM.get().cloned().map_or_else(own, io::Result::Ok)?;
    let (first, rest) = program.split_first().ok_or(io::ErrorKind::NotFound)?;
    let mut command = std::process::Command::new(PathBuf::from(first));
    command.args(rest);
    Ok(command)
}

/// The environment variable that bounds the memory of a command from its start: a batch sets it for each of its own.
pub const MEMORY: &str = "ONNX_GRADIENTS_MEMORY";

/// Bounds the memory of this process and of those that it starts, in bytes. Where the system has no such bound, or not
/// more than a stricter one, it runs without.
pub fn bound_memory(bytes: u64) {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::As).maximum.map_or(bytes, |most| most.min(bytes));
        let _ = setrlimit(Resource::As, Rlimit { current: Some(limit), maximum: Some(limit) });
    }
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    let _ = bytes;
}

/// Lets a process that is about to be started keep what it frees for what comes next, and ask for large pages, where
/// its allocator is glibc's: large tensors come and go, and pages of their own would cost as much as what is computed
/// of them.
pub fn keep_pages(command: &mut std::process::Command) {
    const TUNABLES: &str = "GLIBC_TUNABLES";
    if std::env::var_os(TUNABLES).is_none() {
        let kept =
            "glibc.malloc.mmap_threshold=134217728:glibc.malloc.trim_threshold=4294967296:glibc.malloc.arena_max=1";
        command.env(TUNABLES, format!("{kept}:glibc.malloc.hugetlb=1"));
    }
}

/// Keeps in mind whether the arguments ask for JSON, also those that are wrong.
pub fn set_json(arguments: &[OsString]) {
    JSON.set(asks(arguments));
}

/// Whether the arguments ask for JSON.
pub fn json() -> bool {
    JSON.with_borrow(|json| *json)
}

/// Whether a program runs the command inside itself.
pub fn is_within() -> bool {
    INSIDE.with_borrow(Option::is_some)
}

/// Where something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Results, on stdout.
    Report,
    /// All else, on stderr.
    Notes,
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let buffered = INSIDE.with_borrow_mut(|inside| {
            let inside = inside.as_mut()?;
            let buffer = match self {
                Stream::Report => &mut inside.report,
                Stream::Notes => &mut inside.notes,
            };
            buffer.extend_from_slice(bytes);
            Some(bytes.len())
        });
        match (buffered, self) {
            (Some(count), _) => Ok(count),
            (None, Stream::Notes) => io::stderr().write(bytes),
            (None, _) => io::stdout().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match (is_within(), self) {
            (true, _) => Ok(()),
            (false, Stream::Notes) => io::stderr().flush(),
            (false, _) => io::stdout().flush(),
        }
    }
}

/// Ends this process when its stdin closes, as it does when the one that has started it ends, however that comes about.
pub fn end_with_stdin() {
    if !is_within() {
        std::thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(1);
        });
    }
}

/// Becomes true when the user asks the process to end. A program that runs a command inside itself sees to its signals.
pub fn interrupted() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    if is_within() {
        return stop;
    }
    #[cfg(feature = "validate")]
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Who asks a second time does not want to wait for the step. Without a handler a signal ends the process as
        // ever.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone());
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
    stop
}

/// The bytes of the model that `-` stands for.
///
/// # Errors
/// They cannot be read, or are more than a model can have.
pub fn input() -> Result<Bytes> {
    match INSIDE.with_borrow_mut(|inside| inside.as_mut().map(|i| std::mem::take(&mut i.input))) {
        Some(bytes) => file::within_limit(bytes),
        None => file::read_stream(io::stdin()),
    }
}

/// Gives out the model that is written for `-o -`.
///
/// # Errors
/// It is larger than a model can be, or nobody reads it.
pub fn write_model(model: &Model) -> Result<()> {
    if !is_within() {
        return file::write_stream(&model.proto, model.ready(), io::stdout());
    }
    let pieces = file::pieces(&model.proto, model.ready())?;
    INSIDE.with_borrow_mut(|inside| {
        if let Some(inside) = inside {
            inside.model = pieces;
        }
    });
    Ok(())
}

/// Whether the arguments ask for JSON, also those that are wrong.
fn asks(arguments: &[OsString]) -> bool {
    arguments.iter().take_while(|a| *a != "--").any(|a| a == "--json")
}
