//! Generates the protobuf types of ONNX from `proto/onnx.proto`, with a compiler that is a crate: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let schema = protox::compile(["proto/onnx.proto"], ["proto"])?;
    // Bytes fields share the buffer of the file that they are read from: weights are never copied. What hardly any attribute
    // holds takes no room in all of them: they have a third of their size.
    write_schema(&schema)?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    for field in ["t", "g", "tp", "sparse_tensor"] {
        config.boxed(format!(".onnx.AttributeProto.{field}"));
    }
    config.compile_fds(schema)?;
    Ok(())
}

/// Writes what the schema says of each message's fields, for what reads files field by field (`onnx/file/wire.rs`).
fn write_schema(schema: &prost_types::FileDescriptorSet) -> Result<(), Box<dyn std::error::Error>> {
    fn collect<'a>(
        prefix: &str,
        messages: &'a [prost_types::DescriptorProto],
        all: &mut Vec<(String, &'a prost_types::DescriptorProto)>,
    ) {
        for message in messages {
            let name = format!("{prefix}{}", message.name());
            all.push((name.clone(), message));
            collect(&format!("{name}."), &message.nested_type, all);
        }
    }
    let mut all = Vec::new();
    schema.file.iter().for_each(|file| collect("", &file.message_type, &mut all));
    let mut text = "/// The messages of the schema.\npub static MESSAGES: &[Message] = &[\n".to_owned();
    for (name, message) in &all {
        text += &format!("    Message {{ name: {name:?}, fields: &[\n");
        for field in &message.field {
            let repeated = field.label() == prost_types::field_descriptor_proto::Label::Repeated;
            let target = field.type_name().trim_start_matches(".onnx.");
            let message = all.iter().position(|(name, _)| name == target);
            let (tag, name) = (field.number(), field.name());
            text += &format!(
                "        Known {{ tag: {tag}, name: {name:?}, repeated: {repeated}, message: {message:?} }},\n"
            );
        }
        text += "    ] },\n";
    }
    text += "];\n";
    let folder = std::env::var("OUT_DIR")?;
    Ok(std::fs::write(std::path::Path::new(&folder).join("schema.rs"), text)?)
}
