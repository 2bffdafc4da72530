//! What is done with a file that nobody trusts.

use onnx_gradients::{Gradients, Model, Wanted};

/// Reads a model and differentiates all that it can be asked for.
pub fn process(bytes: Vec<u8>) -> anyhow::Result<()> {
    let model = Model::from_bytes(bytes)?;
    Gradients::new([Wanted::Outputs], constants_and_inputs(&model)).build(&model)?;
    Ok(())
}

/// The inputs and initializers of a model.
pub fn constants_and_inputs(model: &Model) -> Vec<Wanted> {
    let initializers = model.proto.graph.iter().flat_map(|g| &g.initializer).map(|t| t.name().into());
    [Wanted::Inputs].into_iter().chain(initializers).collect()
}
