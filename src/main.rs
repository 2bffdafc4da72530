//! The command line of onnx-gradients.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    onnx_gradients::command_line()
}
