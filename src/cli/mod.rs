//! The command line: one file a subcommand. Results go to stdout, everything else to stderr.

#[cfg(feature = "validate")]
mod check;
#[cfg(feature = "validate")]
mod curve;
mod export;
mod grad;
mod inspect;
mod ops;
mod table;
#[cfg(feature = "validate")]
mod train;
mod trainable;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// tf.gradients for ONNX: appends the nodes that compute derivatives to a model.
#[derive(Parser)]
#[command(name = "onnx-gradients", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Grad(grad::Args),
    #[cfg(feature = "validate")]
    Check(check::Args),
    Inspect(inspect::Args),
    Ops(ops::Args),
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
/// The exit code is 0 for success, 1 where the work failed, 2 for wrong usage (which clap sees to).
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Grad(args) => grad::run(&args),
        #[cfg(feature = "validate")]
        Command::Check(args) => check::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Ops(args) => ops::run(&args),
        Command::Trainable(args) => trainable::run(&args),
        #[cfg(feature = "validate")]
        Command::Train(args) => train::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "onnx-gradients", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ends the program because of its arguments, as clap does.
fn usage(message: impl std::fmt::Display) -> ! {
    Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit()
}
