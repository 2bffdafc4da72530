//! What is done with a file that nobody trusts.

use onnx_gradients::internals::{Selection, ValueId, load};
use onnx_gradients::{Gradients, Model};

/// Reads a model and differentiates all that it can be asked for.
pub fn process(bytes: Vec<u8>) -> anyhow::Result<()> {
    let model = Model::from_bytes(bytes)?;
    let loaded = load(&model.proto)?;
    let selection = Selection::new(&loaded);
    let names = |ids: Vec<ValueId>| ids.into_iter().map(|id| selection.name(id)).collect::<Vec<_>>();
    let xs = names([selection.inputs(), selection.parameters()].concat());
    Gradients::new(names(selection.outputs()), xs).build(&model)?;
    Ok(())
}
