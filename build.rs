//! Generates the protobuf types of ONNX from `proto/onnx.proto`, with a compiler that is a crate: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let schema = protox::compile(["proto/onnx.proto"], ["proto"])?;
    // Bytes fields share the buffer of the file that they are read from: weights are never copied. What hardly any attribute
    // holds takes no room in all of them.
    let boxed = ".onnx.AttributeProto.sparse_tensor";
    prost_build::Config::new().bytes(["."]).boxed(boxed).compile_fds(schema)?;
    Ok(())
}
