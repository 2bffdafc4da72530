//! ONNX text syntax.
