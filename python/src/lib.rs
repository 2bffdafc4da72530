//! The native part of the Python package: the command line as one function.
//!
//! Every function of the package builds the arguments of a command and reads its JSON. So the package has each option that the
//! command line has, and says the same words where something fails.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use std::ffi::OsString;

/// What a command leaves: its exit code, what it printed, its notes, and the model that it wrote to stdout.
type Left<'py> = (u8, String, String, Bound<'py, PyBytes>);

/// Runs a command. A model is given for `-`, and given back for `-o -`; other Python threads run meanwhile.
#[pyfunction]
fn run<'py>(py: Python<'py>, arguments: Vec<OsString>, model: Option<PyBackedBytes>) -> PyResult<Left<'py>> {
    let left = py.detach(|| onnx_gradients::command_line_within(arguments, model));
    // Weights are copied once, from the bytes that were given into those that are given back.
    let model = PyBytes::new_with(py, left.model.iter().map(|piece| piece.len()).sum(), |mut rest| {
        for piece in &left.model {
            let (here, behind) = rest.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            rest = behind;
        }
        Ok(())
    })?;
    Ok((left.code, left.report, left.notes, model))
}

/// Runs a command with the streams of this process, and returns its exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| onnx_gradients::command_line_of(arguments))
}

/// Says which program and arguments run this same command line in a process of its own, as validation does.
#[pyfunction]
fn set_program(program: Vec<OsString>) {
    onnx_gradients::set_command_line_program(program);
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(run, module)?)?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(set_program, module)?)
}
