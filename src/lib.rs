//! tf.gradients for ONNX: reads a model, appends the nodes that compute the derivatives of chosen tensors with respect to
//! others, and writes a model of standard operators only.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod graph;
pub mod onnx;
pub mod record;
#[cfg(feature = "validate")]
pub mod validate;
