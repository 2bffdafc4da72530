//! Files that are hostile on purpose: the reader and the pass answer each with a model or with an error.
//!
//! `cargo fuzz run model`, with the models of `models/` for a corpus. What it finds becomes a test in `tests/hostile.rs`, which
//! damages every case of `tests/cases` in the same spirit at each run of the tests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onnx_gradients::backward::Selection;
use onnx_gradients::onnx::file::read_bytes;
use onnx_gradients::{Gradients, Model, graph};

fn process(bytes: &[u8]) -> anyhow::Result<()> {
    let model = Model::from(read_bytes(bytes.to_vec().into())?);
    let loaded = graph::load(&model.proto)?;
    let selection = Selection::new(&loaded);
    let names = |ids: Vec<graph::ValueId>| ids.into_iter().map(|id| selection.name(id)).collect::<Vec<_>>();
    let xs = names([selection.inputs(), selection.parameters()].concat());
    Gradients::new(names(selection.outputs()), xs).build(&model)?;
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let _ = process(bytes);
});
