//! The command line: one file a subcommand. Results go to stdout, everything else to stderr.

mod attack;
mod batch;
#[cfg(feature = "validate")]
mod check;
pub mod console;
#[cfg(feature = "validate")]
mod curve;
mod derivative;
mod diff;
mod explain;
mod export;
mod failure;
mod grad;
mod hessian;
mod html;
mod inspect;
mod jacobian;
mod memory;
mod ops;
mod options;
mod print;
#[cfg(feature = "validate")]
mod reduce;
mod running;
mod shapes;
mod table;
#[cfg(feature = "validate")]
mod train;
mod trainable;
mod values;

use crate::derivatives::{Hvp, Jvp, Vjp};
use anyhow::Result;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use console::Stream;

/// tf.gradients for ONNX: appends the nodes that compute derivatives to a model.
#[derive(Parser)]
#[command(name = "onnx-gradients", version, about, max_term_width = 110)]
struct Cli {
    /// End when stdin closes: a batch's processes do not outlive it
    #[arg(long, hide = true)]
    end_with_stdin: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Grad(grad::Args),
    /// Append the product of the Jacobian with vectors along xs, which are new inputs, to a model
    #[command(after_help = "Examples:
  onnx-gradients jvp surrogate.onnx -o out.onnx --ys force --xs state
  onnx-gradients jvp mlp.onnx -o out.onnx --params --only-gradients --json

The vector along x is the input `jvp/v/<x>`, the product of y the output `jvp/<y>`.")]
    Jvp(derivative::DerivativeArgs),
    /// Append the product of vectors for ys, which are new inputs, with the Jacobian to a model: grad --grad-ys input
    #[command(after_help = "Examples:
  onnx-gradients vjp unet.onnx -o guided.onnx --ys noise --xs sample
  onnx-gradients vjp surrogate.onnx -o out.onnx --ys force --xs state --only-gradients

The vector for y is the input `vjp/v/<y>`, the product for x the output `vjp/<x>`.")]
    Vjp(derivative::DerivativeArgs),
    /// Append the product of the Hessian of the sum of ys with vectors along xs, which are new inputs, to a model
    #[command(after_help = "Examples:
  onnx-gradients hvp energy.onnx -o out.onnx --ys energy --xs positions
  onnx-gradients hvp mlp.onnx -o out.onnx --ys loss --params --only-gradients

The vector along x is the input `hvp/v/<x>`, the product the output `hvp/<x>`.")]
    Hvp(derivative::DerivativeArgs),
    Jacobian(jacobian::Args),
    Hessian(hessian::Args),
    Explain(Box<explain::Args>),
    Attack(Box<attack::Args>),
    #[cfg(feature = "validate")]
    Reduce(reduce::Args),
    #[cfg(feature = "validate")]
    Check(check::Args),
    Inspect(inspect::Args),
    Ops(ops::Args),
    Diff(diff::Args),
    Print(print::Args),
    Batch(batch::Args),
    Trainable(Box<trainable::Args>),
    #[cfg(feature = "validate")]
    Train(train::Args),
    Export(export::Args),
    /// Print a shell's completions
    #[command(
        after_help = "Example:\n  onnx-gradients completions bash > ~/.local/share/bash-completion/completions/onnx-gradients"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Parses the arguments, runs the subcommand, and prints what it fails with: in one line, the whole chain of causes.
///
/// The exit code is 0 for success, 1 where the work failed, 2 for wrong usage (which clap sees to). A reader of stdout
/// that leaves early, as `head` does, has got what it wanted.
pub fn run() -> ExitCode {
    if let Some(bytes) = std::env::var(console::MEMORY).ok().and_then(|bytes| bytes.parse().ok()) {
        console::bound_memory(bytes);
    }
    run_of(std::env::args_os().collect()).into()
}

/// Runs the command line that a program gives, the first argument being the command's name; returns the exit code.
pub fn run_of(arguments: Vec<OsString>) -> u8 {
    console::set_json(&arguments);
    let matches = interface().try_get_matches_from(arguments.into_iter().map(plain_number));
    let command = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => {
            if cli.end_with_stdin {
                console::end_with_stdin();
            }
            cli.command
        }
        Err(error) => return wrong_usage(error),
    };
    match dispatch(command).and_then(|()| Ok(Stream::Report.flush()?)) {
        Ok(()) => 0,
        Err(error) if error.downcast_ref().is_some_and(|e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe) => 0,
        Err(error) => match error.downcast() {
            Ok(usage) => wrong_usage(usage),
            Err(error) => {
                failure::tell(error);
                1
            }
        },
    }
}

/// The arguments. What looks like a number is one, also where it is negative: whether an option takes it, its own
/// message says.
fn interface() -> clap::Command {
    fn with_numbers(command: clap::Command) -> clap::Command {
        let takes = |arg: clap::Arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        };
        command.mut_args(takes).mut_subcommands(with_numbers)
    }
    with_numbers(Cli::command())
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Grad(args) => grad::run(&args),
        Command::Jvp(args) => args.run("jvp", |call, model| Jvp::from(call).build_onto(model)),
        Command::Vjp(args) => args.run("vjp", |call, model| Vjp::from(call).build_onto(model)),
        Command::Hvp(args) => args.run("hvp", |call, model| Hvp::from(call).build_onto(model)),
        Command::Jacobian(args) => jacobian::run(&args),
        Command::Hessian(args) => hessian::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Attack(args) => attack::run(&args),
        #[cfg(feature = "validate")]
        Command::Reduce(args) => reduce::run(&args),
        #[cfg(feature = "validate")]
        Command::Check(args) => check::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Ops(args) => ops::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Print(args) => print::run(&args),
        Command::Batch(args) => batch::run(&args),
        Command::Trainable(args) => trainable::run(&args),
        #[cfg(feature = "validate")]
        Command::Train(args) => train::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut interface(), "onnx-gradients", &mut script);
            Ok(Stream::Report.write_all(&script)?)
        }
    }
}

/// A negative number with an exponent in plain digits: clap takes `-1e-3` for options.
fn plain_number(argument: OsString) -> OsString {
    let number = argument.to_str().filter(|text| text.starts_with('-')).and_then(|text| text.parse::<f64>().ok());
    number.filter(|n| n.is_finite()).map_or(argument, |n| n.to_string().into())
}

/// A line on stderr. Where stderr is closed, nobody is left to be told.
fn note(text: impl Display) {
    let _ = writeln!(Stream::Notes, "{}", crate::error::shortened(text.to_string()));
}

/// Text with what is no part of a line written out.
fn one_line(text: &str) -> String {
    crate::error::one_line(text.to_owned())
}

/// What is wrong with the arguments of a subcommand, as clap says it.
fn usage(subcommand: &str, message: impl Display) -> anyhow::Error {
    let mut command = interface();
    command.build();
    let command = match command.find_subcommand(subcommand) {
        Some(found) => &mut found.clone(),
        None => &mut command,
    };
    command.error(clap::error::ErrorKind::ValueValidation, message).into()
}

/// Prints what clap says, and returns its exit code: wrong usage, or the help and the version that were asked for.
fn wrong_usage(mut error: clap::Error) -> u8 {
    // That what is no option might be a value behind `--` helps nobody: commands take a model there.
    if let Some(ContextValue::StyledStrs(tips)) = error.get(ContextKind::Suggested) {
        let tips = tips.iter().filter(|tip| !tip.to_string().contains("as a value, use")).cloned().collect();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    let text = error.render().to_string();
    if error.use_stderr() {
        let message = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
        let message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let told = crate::Error::usage(message);
        let tip = text.lines().find_map(|line| line.trim_start().strip_prefix("tip: ")).map(str::to_owned);
        let remedy = tip.or_else(|| told.details().remedy.clone());
        failure::tell_json(&told.with_remedy(remedy));
    }
    // Where the streams are closed, nobody is left to be told.
    let _ = match (console::is_within(), error.use_stderr()) {
        (false, _) => error.print(),
        (true, true) => Stream::Notes.write_all(text.as_bytes()),
        (true, false) => Stream::Report.write_all(text.as_bytes()),
    };
    error.exit_code().try_into().unwrap_or(2)
}
