//! The command line of onnx-gradients.
#![forbid(unsafe_code)]
// They panic where nobody reads: `cli::note` and `writeln!` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
