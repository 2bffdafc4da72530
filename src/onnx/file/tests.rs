//! Model and tensor files: what is refused, and that what is written is what was read.

use crate::onnx::file::{self, WriteOptions};
use crate::onnx::proto::{StringStringEntryProto, tensor_proto::DataLocation};
use crate::onnx::{ElementType, ModelProto, TensorProto, attribute, npy, text};
use anyhow::Result;
use prost::Message;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn model() -> ModelProto {
    let mut model = text::parse(
        r#"<ir_version: 8, opset_import: ["" : 17], metadata_props: ["k": "v"]>
        g (float[2] x, bool b) => (float[2] y) <float[2] w = {1, 2}, int64[2] i = {3, 4}> {
            c = Constant <value = float[2] {5, 6}> ()
            [if] z = If (b) <then_branch = t () => (float[2] p) <float[2] v = {7, 8}> { p = Add (v, c) },
                             else_branch = e () => (float[2] q) { q = Mul (x, w) }>
            y = com.x.F (z)
        }
        <domain: "com.x", opset_import: ["" : 17]>
        F (a) => (b) { k = Constant <value = float {9}> () b = Mul (a, k) }"#,
    )
    .unwrap();
    let graph = model.graph.as_mut().unwrap();
    graph.initializer.push(TensorProto {
        name: Some("typed".into()),
        dims: vec![3],
        data_type: Some(ElementType::Float as i32),
        float_data: vec![1.0, -2.0, f32::NAN],
        ..Default::default()
    });
    graph.initializer.push(TensorProto {
        name: Some("halves".into()),
        dims: vec![1],
        data_type: Some(ElementType::Float16 as i32),
        int32_data: vec![0x3c00],
        ..Default::default()
    });
    model
}

fn initializer(model: &mut ModelProto) -> &mut TensorProto {
    &mut model.graph.as_mut().unwrap().initializer[0]
}

fn make_external(tensor: &mut TensorProto, entries: &[(&str, &str)]) {
    tensor.raw_data = None;
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = entries
        .iter()
        .map(|(k, v)| StringStringEntryProto { key: Some(k.to_string()), value: Some(v.to_string()) })
        .collect();
}

fn error<T>(result: Result<T>) -> String {
    let error = match result {
        Ok(_) => panic!("no error"),
        Err(error) => format!("{error:#}"),
    };
    assert!(!error.contains('\n'), "{error}");
    error
}

#[track_caller]
fn refused(model: &ModelProto, message: &str) {
    let error = error(file::read_bytes(model.encode_to_vec().into()));
    assert!(error.contains(message), "{error}");
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Models with NaN in them are not equal to themselves; their bytes are.
fn assert_same(a: &ModelProto, b: &ModelProto) {
    assert_eq!(a.encode_to_vec(), b.encode_to_vec());
}

#[test]
fn what_is_no_model_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("m.onnx");
    assert!(error(file::read(&path)).contains("m.onnx: there is no such file"));
    assert!(error(file::read(folder.path())).contains("it is a directory"));
    fs::write(&path, "")?;
    assert!(error(file::read(&path)).contains("it is empty"));
    fs::write(&path, "hello, world")?;
    assert!(error(file::read(&path)).contains("not an ONNX model"));
    let bytes = model().encode_to_vec();
    for length in 1..bytes.len() {
        // Cut between fields, a model may lack its functions only.
        if let Ok(part) = file::read_bytes(bytes::Bytes::copy_from_slice(&bytes[..length])) {
            assert!(part.graph.is_some());
        }
    }
    fs::write(&path, &bytes[..bytes.len() / 2])?;
    assert!(error(file::read(&path)).contains("it is cut off"));
    Ok(())
}

#[test]
fn inconsistent_models_are_refused() {
    let mut m = model();
    m.graph = None;
    refused(&m, "it has no graph");
    let mut m = model();
    m.opset_import.clear();
    refused(&m, "opset_import");
    m.ir_version = Some(2);
    assert!(file::read_bytes(m.encode_to_vec().into()).is_ok());
    for dims in [vec![3], vec![-2], vec![i64::MAX, i64::MAX], vec![i64::MAX], vec![1 << 62], vec![]] {
        let mut m = model();
        initializer(&mut m).dims = dims;
        refused(&m, "tensor 'w'");
    }
    let mut m = model();
    m.graph.as_mut().unwrap().initializer[2].float_data.pop();
    refused(&m, "tensor 'typed': 2 elements for float of dimensions [3]");
    let mut m = model();
    initializer(&mut m).name = Some("i".into());
    refused(&m, "two initializers 'i'");
    let mut m = model();
    m.functions[0].node[0].attribute[0].t.as_mut().unwrap().dims = vec![7];
    refused(&m, "[7]");
}

#[test]
fn nesting_without_end_is_refused() {
    let mut graph = crate::onnx::GraphProto::default();
    for _ in 0..200 {
        let attribute = vec![attribute::graph("body", std::mem::take(&mut graph))];
        graph.node = vec![crate::onnx::NodeProto { attribute, ..Default::default() }];
    }
    let m = ModelProto { graph: Some(graph), ..model() };
    refused(&m, "nest too deeply");
}

#[test]
fn a_model_comes_back_and_shares_the_buffer() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("m.onnx");
    let model = model();
    file::write(&model, &path, WriteOptions::default())?;
    assert_same(&file::read(&path)?, &model);
    let mut stream = Vec::new();
    file::write_stream(&model, Default::default(), &mut stream)?;
    assert_eq!(stream, fs::read(&path)?);
    let bytes = bytes::Bytes::from(stream);
    let range = bytes.as_ptr_range();
    let mut read = file::read_bytes(bytes.clone())?;
    assert!(range.contains(&initializer(&mut read).raw_data.as_ref().unwrap().as_ptr()));
    assert_eq!(entries(folder.path()), ["m.onnx"]);
    Ok(())
}

#[test]
#[cfg(feature = "cli")]
fn appended_nodes_are_the_bytes_of_the_same_nodes_in_the_model() -> Result<()> {
    let source = bytes::Bytes::from(model().encode_to_vec());
    let new: Vec<_> = model().graph.unwrap().node.into_iter().cycle().take(60_000).collect();
    let (mut appended, mut whole) = (file::Appended::default(), model());
    new.iter().for_each(|node| appended.push(node));
    whole.graph.as_mut().unwrap().node.extend(new);
    for source in [Some(&source), None] {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        file::write_stream(&whole, file::Ready { source, appended: None }, &mut a)?;
        file::write_stream(&model(), file::Ready { source, appended: Some(&appended) }, &mut b)?;
        assert!(a == b);
        assert!(a.len() > 2 << 20, "more than one piece");
    }
    Ok(())
}

#[test]
fn existing_files_are_replaced_by_force_only() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("m.onnx");
    fs::write(&path, "old")?;
    assert!(error(file::write(&model(), &path, WriteOptions::default())).contains("--force"));
    assert_eq!(fs::read(&path)?, b"old");
    file::write(&model(), &path, WriteOptions { force: true, ..Default::default() })?;
    assert_same(&file::read(&path)?, &model());
    let force = WriteOptions { force: true, ..Default::default() };
    assert!(error(file::write(&model(), folder.path(), force)).contains("it is a directory"));
    assert!(error(file::write(&model(), &folder.path().join("no/m.onnx"), force)).contains("there is no folder"));
    assert_eq!(entries(folder.path()), ["m.onnx"]);
    Ok(())
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_any_new_file() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new()?;
    let (path, ordinary) = (folder.path().join("m.onnx"), folder.path().join("ordinary"));
    file::write(&model(), &path, WriteOptions::default())?;
    fs::write(&ordinary, "")?;
    assert_eq!(fs::metadata(&path)?.permissions().mode(), fs::metadata(&ordinary)?.permissions().mode());
    file::write(&model(), Path::new("/dev/null"), WriteOptions::default())?;
    assert!(!fs::metadata("/dev/null")?.is_file());
    Ok(())
}

#[cfg(unix)]
#[test]
fn links_lead_to_the_same_file() -> Result<()> {
    let folder = TempDir::new()?;
    let [a, b, soft, hard] = ["a", "b", "soft", "hard"].map(|name| folder.path().join(name));
    fs::write(&a, "")?;
    fs::write(&b, "")?;
    std::os::unix::fs::symlink(&a, &soft)?;
    fs::hard_link(&a, &hard)?;
    assert!(file::same_file(&a, &a) && file::same_file(&a, &soft) && file::same_file(&a, &hard));
    assert!(!file::same_file(&a, &b) && !file::same_file(&a, &folder.path().join("none")));
    Ok(())
}

#[test]
fn large_models_put_their_initializers_beside_them() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("m.onnx");
    let mut model = model();
    let values: Vec<f64> = (0..1000).map(f64::from).collect();
    let graph = model.graph.as_mut().unwrap();
    for name in ["u", "v"] {
        let tensor = TensorProto::from_floats(ElementType::Float, &[1000], &values).unwrap();
        graph.initializer.push(TensorProto { name: Some(name.into()), ..tensor });
    }
    let float_data = values.iter().map(|&v| v as f32).collect();
    let typed =
        TensorProto { name: Some("t".into()), dims: vec![1000], data_type: Some(1), float_data, ..Default::default() };
    graph.initializer.push(typed);
    file::write(&model, &path, WriteOptions { limit: 4000, ..Default::default() })?;
    assert_eq!(entries(folder.path()), ["m.onnx", "m.onnx.data"]);
    assert!(fs::metadata(&path)?.len() < 4000);
    assert_eq!(fs::metadata(folder.path().join("m.onnx.data"))?.len(), 2 * 4096 + 4000);

    let mut read = file::read(&path)?;
    assert!(read.graph.as_ref().unwrap().initializer[4].is_external());
    assert!(
        error(file::write(&read, &path, WriteOptions { force: true, limit: 100, ..Default::default() }))
            .contains("choose another name")
    );
    file::load_external(&mut read, folder.path())?;
    for tensor in &read.graph.as_ref().unwrap().initializer[4..] {
        assert_eq!(tensor.floats()?, values);
    }
    // A data file in the way, too, needs force, and nothing is left behind without.
    fs::remove_file(&path)?;
    assert!(
        error(file::write(&model, &path, WriteOptions { limit: 4000, ..Default::default() })).contains("m.onnx.data")
    );
    assert_eq!(entries(folder.path()), ["m.onnx.data"]);
    Ok(())
}

#[test]
fn external_data_are_loaded_from_inside_the_folder_only() -> Result<()> {
    let folder = TempDir::new()?;
    let inside = folder.path().join("inside");
    fs::create_dir(&inside)?;
    fs::write(folder.path().join("secret"), [0; 64])?;
    fs::write(inside.join("data"), [0, 0, 128, 63, 0, 0, 0, 64, 9, 9])?;
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path().join("secret"), inside.join("link"))?;
    let load = |entries: &[(&str, &str)]| {
        let mut m = model();
        make_external(initializer(&mut m), entries);
        let mut m = file::read_bytes(m.encode_to_vec().into())?;
        file::load_external(&mut m, &inside)?;
        initializer(&mut m).floats()
    };
    assert_eq!(load(&[("location", "data"), ("offset", "0"), ("length", "8")])?, [1.0, 2.0]);
    assert_eq!(load(&[("location", "./data")])?, [1.0, 2.0]);
    let secret = folder.path().join("secret");
    for (entries, message) in [
        (&[("location", secret.to_str().unwrap())][..], "outside the model's folder"),
        (&[("location", "../secret")], "outside the model's folder"),
        (&[("location", "..\\secret")], "outside the model's folder"),
        (&[("location", "a/../../secret")], "outside the model's folder"),
        #[cfg(unix)]
        (&[("location", "link")], "leads out of the model's folder"),
        (&[("location", "none")], "there is no such file"),
        (&[("location", ".")], "it is not a file"),
        (&[("offset", "0")], "without location"),
        (&[("location", "data"), ("offset", "3")], "8 bytes at 3 are not in the file"),
        (&[("location", "data"), ("offset", "18446744073709551615")], "are not in the file"),
        (&[("location", "data"), ("offset", "-1")], "not a number"),
        (&[("location", "data"), ("length", "4")], "4 bytes for float of dimensions [2]"),
    ] {
        let error = error(load(entries));
        assert!(error.contains(message), "{entries:?}: {error}");
    }
    Ok(())
}

#[test]
fn references_to_external_data_move_with_the_model() -> Result<()> {
    let folder = TempDir::new()?;
    let [from, other] = ["models", "other"].map(|name| folder.path().join(name));
    fs::create_dir_all(from.join("sub"))?;
    fs::create_dir(&other)?;
    fs::write(from.join("sub/data"), [0, 0, 128, 63, 0, 0, 0, 64])?;
    let mut original = model();
    make_external(initializer(&mut original), &[("location", "sub/data")]);
    let rebase = |to: &Path, force| -> Result<(ModelProto, Vec<String>)> {
        let mut m = original.clone();
        let notes = file::rebase_external(&mut m, &from, to, force)?;
        let mut loaded = m.clone();
        file::load_external(&mut loaded, to)?;
        assert_eq!(initializer(&mut loaded).floats()?, [1.0, 2.0]);
        Ok((m, notes))
    };
    let (same, notes) = rebase(&from, false)?;
    assert_same(&same, &original);
    assert!(notes.is_empty());

    let (mut above, notes) = rebase(folder.path(), false)?;
    assert_eq!(initializer(&mut above).external_data[0].value(), "models/sub/data");
    assert!(notes.is_empty());

    let (mut copied, notes) = rebase(&other, false)?;
    assert_eq!(initializer(&mut copied).external_data[0].value(), "sub/data");
    assert!(notes.len() == 1 && notes[0].contains("sub/data"), "{notes:?}");
    assert!(rebase(&other, false)?.1.is_empty(), "an equal copy is there");

    fs::write(other.join("sub/data"), [1; 8])?;
    assert!(error(rebase(&other, false)).contains("--force"));
    assert_eq!(rebase(&other, true)?.1.len(), 1);
    assert_eq!(entries(&other.join("sub")), ["data"]);
    Ok(())
}

#[test]
fn npy_and_pb_tensors() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("t.npy");
    use ElementType as E;
    let floats = [E::Float, E::Double, E::Float16]
        .map(|e| TensorProto::from_floats(e, &[2, 3], &[1., 2., 3., 4., 5., -6.5]).unwrap());
    let ints = [E::Int8, E::Int16, E::Int32, E::Int64, E::Uint8, E::Uint16, E::Uint32, E::Uint64, E::Bool]
        .map(|e| TensorProto::from_ints(e, &[2], &[0, 1]).unwrap());
    let scalar = TensorProto::from_ints(E::Int64, &[], &[7]).unwrap();
    let empty = TensorProto::from_floats(E::Float, &[0, 2], &[]).unwrap();
    for tensor in floats.iter().chain(&ints).chain([&scalar, &empty]) {
        npy::write_npy(tensor, &path, true)?;
        assert_eq!(npy::read_tensor(&path)?, *tensor);
        assert_eq!((fs::metadata(&path)?.len() as usize - tensor.raw_data.as_ref().unwrap().len()) % 64, 0);
        fs::write(&path, tensor.encode_to_vec())?;
        assert_eq!(npy::read_tensor(&path)?, *tensor);
    }
    assert!(error(npy::write_npy(&scalar, &path, false)).contains("--force"));
    let bf16 = TensorProto::from_floats(E::Bfloat16, &[1], &[1.0]).unwrap();
    assert!(error(npy::write_npy(&bf16, &path, true)).contains("NumPy has no elements of type bfloat16"));

    // Fortran order and big-endian, as NumPy writes np.asfortranarray([[1, 2, 3], [4, 5, 6]], dtype='>i2').
    let mut bytes = b"\x93NUMPY\x01\x00\x36\x00".to_vec();
    bytes.extend(format!("{:<53}\n", "{'descr': '>i2', 'fortran_order': True, 'shape': (2,3)}").bytes());
    let header = bytes.len();
    bytes[8] = (header - 10) as u8;
    bytes.extend([1i16, 4, 2, 5, 3, 6].iter().flat_map(|v| v.to_be_bytes()));
    fs::write(&path, &bytes)?;
    let tensor = npy::read_tensor(&path)?;
    assert_eq!((tensor.dims.as_slice(), tensor.integers()?), (&[2, 3][..], vec![1, 2, 3, 4, 5, 6]));
    bytes.pop();
    fs::write(&path, &bytes)?;
    assert!(error(npy::read_tensor(&path)).contains("11 bytes for shape [2, 3]"));
    fs::write(&path, "neither")?;
    assert!(error(npy::read_tensor(&path)).contains("neither a .npy file nor a TensorProto"));
    Ok(())
}

#[cfg(unix)]
#[test]
fn links_lead_no_data_in_or_out() -> Result<()> {
    let place = TempDir::new()?;
    let [from, to, elsewhere] = ["from", "to", "elsewhere"].map(|name| place.path().join(name));
    for folder in [&from, &to, &elsewhere, &from.join("sub")] {
        fs::create_dir_all(folder)?;
    }
    fs::write(elsewhere.join("secret"), [0; 8])?;
    fs::hard_link(elsewhere.join("secret"), from.join("linked.bin"))?;
    fs::write(from.join("sub/own.bin"), [0; 8])?;
    let mut model = model();
    make_external(initializer(&mut model), &[("location", "linked.bin")]);
    assert!(error(file::load_external(&mut model.clone(), &from)).contains("hard link"));
    make_external(initializer(&mut model), &[("location", "sub/own.bin")]);
    file::load_external(&mut model.clone(), &from)?;
    std::os::unix::fs::symlink(&elsewhere, to.join("sub"))?;
    assert!(error(file::rebase_external(&mut model.clone(), &from, &to, true)).contains("leads out of the folder"));
    assert_eq!(entries(&elsewhere), ["secret"]);
    fs::remove_file(to.join("sub"))?;
    assert_eq!(file::rebase_external(&mut model, &from, &to, true)?.len(), 1);
    assert_eq!(entries(&to.join("sub")), ["own.bin"]);
    Ok(())
}

/// A field of bytes as protobuf writes it.
fn field(tag: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
    [out, bytes.to_vec()].concat()
}

/// A file of a newer version, in an order and a spelling of its own: fields that nothing is known of at every level,
/// nodes whose fields stand from the last to the first, integers that are packed.
fn strange() -> Vec<u8> {
    let unknown = |what: &str| field(400, what.as_bytes());
    let attribute = [field(1, b"perm"), field(8, &[1, 0]), vec![0xa0, 1, 7], unknown("attribute")].concat();
    let node = |output: &str, input: &str, rest: &[u8]| {
        [
            unknown(output),
            rest.to_vec(),
            field(4, b"Transpose"),
            field(2, output.as_bytes()),
            field(1, input.as_bytes()),
        ]
        .concat()
    };
    let dim = [vec![8, 2], unknown("dim")].concat();
    let tensor = |dims: &[u8]| [vec![8, 1], field(2, dims), unknown("tensor type")].concat();
    let value = |name: &str| {
        let shape = [field(1, &dim), field(1, &dim)].concat();
        let r#type = [field(1, &tensor(&shape)), unknown("type")].concat();
        [unknown("value"), field(2, &r#type), field(1, name.as_bytes())].concat()
    };
    let weight = [field(9, &[0; 16]), field(1, &[2, 2]), vec![16, 1], unknown("weight"), field(8, b"w")].concat();
    let graph = [
        field(11, &value("x")),
        unknown("graph"),
        field(1, &node("h", "x", &field(5, &attribute))),
        field(5, &weight),
        field(1, &[field(4, b"MatMul"), field(1, b"h"), field(1, b"w"), field(2, b"y"), unknown("second")].concat()),
        field(12, &value("y")),
        field(2, b"g"),
    ]
    .concat();
    let opset = [unknown("opset"), vec![16, 17]].concat();
    [unknown("model"), field(8, &opset), field(7, &graph), vec![8, 8]].concat()
}

#[test]
fn what_a_file_holds_is_written_as_it_was() -> Result<()> {
    let folder = TempDir::new()?;
    let [from, same, to] = ["from.onnx", "same.onnx", "to.onnx"].map(|name| folder.path().join(name));
    let bytes = strange();
    fs::write(&from, &bytes)?;
    let model = crate::Model::load(&from)?;
    model.save(&same)?;
    assert_eq!(fs::read(&same)?, bytes);

    let output = crate::Gradients::new(["y"], ["x", "w"]).build(&model)?;
    output.model.save(&to)?;
    let written = fs::read(&to)?;
    assert_eq!(file::read(&to)?, output.model.proto, "it says what the model says");
    // A byte diff shows additions only: everything is there, in its order, but for the lengths of what has grown.
    let graph = file::wire::first(&bytes.clone().into(), 7).unwrap();
    let mut rest = written.as_slice();
    for part in file::wire::fields(&graph).unwrap() {
        let at = rest.windows(part.whole.len()).position(|w| w == part.whole).expect("a field of the graph");
        rest = &rest[at + part.whole.len()..];
    }
    for part in file::wire::fields(&bytes.into()).unwrap().iter().filter(|f| f.tag != 7) {
        assert!(written.windows(part.whole.len()).any(|w| w == part.whole), "a field of the model");
    }

    // What is changed keeps what is not known of it.
    let mut changed = output.model.clone();
    let graph = changed.proto.graph.as_mut().unwrap();
    graph.node[0].attribute[0].ints = vec![0, 1];
    graph.initializer[0].raw_data = Some(vec![1; 16].into());
    graph.node.remove(1);
    changed.write(&to, true)?;
    let written = fs::read(&to)?;
    assert_eq!(file::read(&to)?, changed.proto);
    for (text, kept) in [("attribute", true), ("weight", true), ("dim", true), ("second", false)] {
        assert_eq!(written.windows(text.len()).any(|w| w == text.as_bytes()), kept, "{text}");
    }
    Ok(())
}

/// What the comparison of a model with a changed one says.
fn compared(model: &ModelProto, change: impl FnOnce(&mut ModelProto)) -> file::Difference {
    let mut changed = model.clone();
    change(&mut changed);
    file::diff(&model.encode_to_vec().into(), &changed.encode_to_vec().into()).unwrap()
}

#[test]
fn every_change_of_a_model_is_found() {
    type Change = fn(&mut ModelProto);
    fn graph(m: &mut ModelProto) -> &mut crate::onnx::GraphProto {
        m.graph.as_mut().unwrap()
    }
    let changes: [(&str, Change); 24] = [
        ("ir_version", |m| m.ir_version = Some(9)),
        ("opset_import", |m| m.opset_import[0].version = Some(18)),
        ("metadata_props['k'].value", |m| m.metadata_props[0].value = Some("w".into())),
        ("metadata_props['k']", |m| m.metadata_props.clear()),
        ("functions['F'].node['b'].op_type", |m| m.functions[0].node[1].op_type = Some("Add".into())),
        ("functions['F']", |m| m.functions.clear()),
        ("functions['F'].node", |m| m.functions[0].node.swap(0, 1)),
        ("graph.name", |m| graph(m).name = Some("h".into())),
        ("graph.node['y']", |m| drop(graph(m).node.pop())),
        ("graph.node['c'].attribute['value'].t.raw_data", |m| {
            graph(m).node[0].attribute[0].t.as_mut().unwrap().raw_data = Some(vec![0; 8].into());
        }),
        ("graph.node['c'].attribute['value']", |m| graph(m).node[0].attribute.clear()),
        ("graph.node['c'].attribute['extra']", |m| graph(m).node[0].attribute.push(attribute::int("extra", 1))),
        ("graph.node['z'].name", |m| graph(m).node[1].name = None),
        ("graph.node['z'].input[0]", |m| graph(m).node[1].input[0] = "other".into()),
        ("graph.node['z'].attribute['then_branch'].g.initializer['v'].raw_data", |m| {
            let body = graph(m).node[1].attribute[0].g.as_mut().unwrap();
            body.initializer[0].raw_data = Some(vec![1; 8].into());
        }),
        ("graph.node['z'].attribute['else_branch'].g.node['twin']", |m| {
            let body = graph(m).node[1].attribute[1].g.as_mut().unwrap();
            let twin = crate::onnx::NodeProto { output: vec!["twin".into()], ..body.node[0].clone() };
            body.node.push(twin);
        }),
        ("graph.node['y'].domain", |m| graph(m).node[2].domain = Some("com.y".into())),
        ("graph.initializer['w'].dims", |m| graph(m).initializer[0].dims = vec![2, 1]),
        ("graph.initializer['w'].data_type", |m| graph(m).initializer[0].data_type = Some(6)),
        ("graph.initializer['typed'].float_data", |m| graph(m).initializer[2].float_data[0] = 1.5),
        ("graph.initializer['halves']", |m| drop(graph(m).initializer.pop())),
        ("graph.input['b']", |m| drop(graph(m).input.pop())),
        ("graph.output['y'].type", |m| graph(m).output[0].r#type = None),
        ("graph.node['z']", |m| graph(m).node.swap(0, 1)),
    ];
    let model = model();
    assert_eq!(compared(&model, |_| ()), file::Difference::default());
    for (path, change) in changes {
        let difference = compared(&model, change);
        let found = difference.lost.iter().chain(difference.changed.iter().map(|c| &c.path));
        assert!(found.clone().any(|found| found.starts_with(path)), "{path}: {difference:?}");
        assert!(!difference.only_adds(), "{path}");
    }
    let added = compared(&model, |m| {
        let node = crate::onnx::NodeProto { output: vec!["new".into()], ..graph(m).node[0].clone() };
        graph(m).node.insert(1, node);
        graph(m).node[2].output.push("mask".into());
    });
    assert!(added.only_adds(), "{added:?}");
    assert_eq!(added.added["graph.node"], ["'new'"]);
    // An output that was left out gets a name, also the first one, by which the node is called otherwise.
    let mut left_out = model.clone();
    graph(&mut left_out).node[1].output.insert(0, String::new());
    let filled = compared(&left_out, |m| graph(m).node[1].output[0] = "filled".into());
    assert!(filled.only_adds() && !filled.added.is_empty(), "{filled:?}");
    let renamed = compared(&left_out, |m| graph(m).node[1].output[1] = "renamed".into());
    assert!(!renamed.only_adds(), "{renamed:?}");
}

#[test]
fn unknown_fields_are_compared() {
    let bytes = strange();
    let at = bytes.windows(4).position(|w| w == b"dim\x0a" || &w[..3] == b"dim").unwrap();
    let mut changed = bytes.clone();
    changed[at] = b'D';
    let difference = file::diff(&bytes.into(), &changed.into()).unwrap();
    assert_eq!(difference.changed.len(), 1, "{difference:?}");
    assert!(difference.changed[0].path.ends_with("dim[0].#400"), "{difference:?}");
}
