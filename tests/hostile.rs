//! Files that are damaged on purpose: the reader and the pass answer each with a model or with an error.

mod common;

use common::process::process;
use onnx_gradients::onnx::proto::{OperatorSetIdProto, SparseTensorProto, StringStringEntryProto};
use onnx_gradients::onnx::{AttributeProto, ElementType, NodeProto, TensorProto, text};
use onnx_gradients::{Gradients, Model, Wanted};
use prost::Message;

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

#[test]
fn damaged_models_are_answered() {
    let mut random = Random(2026);
    let mut read = 0;
    for case in common::all() {
        let bytes = case.model.encode_to_vec();
        for _ in 0..40 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(damaged.len());
                match random.below(4) {
                    0 => damaged.truncate(at),
                    1 => damaged[at] ^= 1 << random.below(8),
                    2 => damaged[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                    _ => drop(damaged.drain(at..(at + 1 + random.below(8)).min(bytes.len()).min(damaged.len()))),
                }
                if damaged.is_empty() {
                    break;
                }
            }
            read += usize::from(process(damaged).is_ok());
        }
    }
    assert!(read > 0, "some damage is harmless");
}

/// The smallest models of damage that was once not answered.
#[test]
fn sizes_and_types_of_no_model_are_answered() {
    let huge = "4611686018427387904";
    for graph in [
        // Products and sums of sizes above what 64 bits hold.
        "g (float[HUGE,HUGE] x) => (float[HUGE,1] y) { y = ReduceMean<axes = [0, 1]>(x) }",
        "g (float[HUGE,2,HUGE,HUGE] x, float[2] s) => (float[HUGE,2,HUGE,HUGE] y) { y = InstanceNormalization(x, s, s) }",
        "g (float[HUGE,HUGE] x, float[HUGE] s) => (y) { y = LayerNormalization<axis = 0>(x, s) }",
        "g (float[HUGE] a, float[HUGE] b, float[HUGE] c) => (y) { y = Concat<axis = 0>(a, b, c) }",
        "g (float[HUGE,7] x) => (float[1,7] y) { y = ReduceProd<axes = [0]>(x) }",
        // Types that have no zeros.
        "g (float8e4m3fn[2] q, float s) => (float[2] y) { y = DequantizeLinear(q, s) }",
        "g (complex128[2] x) => (complex128[2] y) { y = Identity(x) }",
        // A scale of more dimensions than its tensor.
        "g (int8[4] q, float[2,2] s) => (float[4] y) { y = DequantizeLinear<axis = 1, block_size = 2>(q, s) }",
        // Lists of the sizes of a tensor without any.
        "g (float x, float[1] e) => (y) { y = Slice(x, e, e) }",
        // Scales and zero points of another rank than what they are of.
        "g (uint8[3,20] q, int32 i, float[4] s) => (y) { y = com.microsoft.GatherBlockQuantized<block_size = 16>(q, i, s) }",
        "g (uint8[3,20] q, int32[2] i, float s) => (y) { y = com.microsoft.GatherBlockQuantized<block_size = 16>(q, i, s) }",
        "g (uint8[3,32] q, int32 i, float[3,4] s, uint8[2] z) => (y) {
            y = com.microsoft.GatherBlockQuantized<block_size = 16>(q, i, s, z) }",
        // More starts than axes.
        "g (float[3] x, int64[HUGE] e) => (y) { y = Slice(x, e, e) }",
        "g (float[3] x, int64[HUGE,1] e) => (y) { y = Slice(x, e, e) }",
    ] {
        for opset in [13, 17, 21] {
            let text = format!(
                "<ir_version: 8, opset_import: [\"\": {opset}, \"com.microsoft\": 1]> {}",
                graph.replace("HUGE", huge)
            );
            let _ = process(text::parse(&text).unwrap().encode_to_vec());
        }
    }
}

/// Axes, starts, amounts and sizes that only the run knows, of which a file says that there are a trillion.
#[test]
fn endless_lists_are_answered() {
    let mut lists = 0;
    for case in common::all() {
        let listed = |t: &TensorProto| t.dims.len() == 1 && t.element_type() == ElementType::Int64;
        let graph = case.model.graph.as_ref().unwrap();
        for name in graph.initializer.iter().filter(|t| listed(t)).map(|t| t.name().to_owned()) {
            for shape in ["[1099511627776]", "[1099511627776,1]"] {
                let list = text::parse(&format!("<ir_version: 8> g (int64{shape} {name:?}) => () {{ }}")).unwrap();
                let mut model = case.model.clone();
                let graph = model.graph.as_mut().unwrap();
                graph.initializer.retain(|t| t.name() != name);
                graph.input.retain(|i| i.name() != name);
                graph.input.extend(list.graph.unwrap().input);
                let _ = process(model.encode_to_vec());
                lists += 1;
            }
        }
    }
    assert!(lists > 100, "{lists}");
}

#[test]
fn damaged_attributes_are_answered() {
    // Numbers that a file may hold and no exporter writes.
    let numbers = [i64::MIN, i64::MIN + 1, -1 << 40, -3, -1, 0, 1, 2, 5, 1 << 31, 1 << 40, i64::MAX];
    let mut random = Random(7);
    for case in common::all() {
        for _ in 0..25 {
            let mut model = case.model.clone();
            for node in model.graph.iter_mut().flat_map(|g| &mut g.node) {
                for attribute in &mut node.attribute {
                    if attribute.i.is_some() && random.below(2) == 0 {
                        attribute.i = Some(numbers[random.below(numbers.len())]);
                    }
                    for value in &mut attribute.ints {
                        if random.below(3) == 0 {
                            *value = numbers[random.below(numbers.len())];
                        }
                    }
                    match random.below(4) {
                        0 => drop(attribute.ints.pop()),
                        1 if !attribute.ints.is_empty() => attribute.ints.push(numbers[random.below(numbers.len())]),
                        _ => (),
                    }
                }
                if random.below(4) == 0 {
                    node.input.pop();
                }
            }
            let _ = process(model.encode_to_vec());
        }
    }
}

/// Each attribute that an operator has, as each type of attribute, with values that no exporter writes.
#[test]
fn attributes_of_another_type_are_answered() {
    let mut random = Random(2027);
    let longest = "a".repeat(5000);
    let (ints, floats) = ([i64::MIN, -3, -1, 0, 1, 7, 1 << 40, i64::MAX], [f32::NAN, f32::INFINITY, -0.0, 1e30, -1.5]);
    let texts = ["", "\n", "no such mode", "NaN", &longest, "...i,j->", "\0"];
    let mut tried = 0;
    for case in common::all() {
        // Attributes that the case does not write have defaults, and are read all the same.
        let nodes = case.model.graph.iter().flat_map(|g| &g.node);
        let rows = nodes.filter_map(|n| onnx_gradients::internals::newest(n.domain(), n.op_type()));
        let read: Vec<String> = rows.flat_map(|row| row.attributes.split_whitespace()).map(str::to_owned).collect();
        for _ in 0..4 {
            let mut model = case.model.clone();
            let nodes = &mut model.graph.as_mut().unwrap().node;
            let at = random.below(nodes.len());
            let Some(node) = nodes.get_mut(at) else { continue };
            let own = node.attribute.iter().map(|a| a.name().to_owned());
            let names: Vec<String> = own.chain(read.iter().cloned()).collect();
            let Some(name) = names.get(random.below(names.len())).cloned() else { continue };
            let number = |random: &mut Random| ints[random.below(ints.len())];
            let list =
                |random: &mut Random| (0..[0, 1, 2, 3, 9, 300][random.below(6)]).map(|_| number(random)).collect();
            let float = |random: &mut Random| floats[random.below(floats.len())];
            let mut attribute = AttributeProto { name: Some(name.clone()), ..Default::default() };
            // The type may be that of the value, another one, one that there is not, or missing.
            let kind = 1 + random.below(14) as i32;
            attribute.r#type = Some([kind, kind, kind, random.below(16) as i32][random.below(4)]);
            let many = random.below(4);
            match kind {
                1 => attribute.f = Some(float(&mut random)),
                2 => attribute.i = Some(number(&mut random)),
                3 => attribute.s = Some(texts[random.below(texts.len())].as_bytes().to_vec().into()),
                4 => {
                    let dims: Vec<i64> = list(&mut random);
                    attribute.t = Some(Box::new(TensorProto { dims, data_type: Some(1), ..Default::default() }));
                }
                5 => attribute.g = Some(Box::default()),
                6 => attribute.floats = (0..many).map(|_| float(&mut random)).collect(),
                7 => attribute.ints = list(&mut random),
                8 => attribute.strings = texts[..many].iter().map(|t| t.as_bytes().to_vec().into()).collect(),
                9 => attribute.tensors = vec![TensorProto::from_int64(&[1], &[number(&mut random)])],
                10 => attribute.graphs = vec![Default::default()],
                11 => attribute.sparse_tensor = Some(Box::default()),
                13 => attribute.tp = Some(Box::default()),
                _ => attribute.ref_attr_name = Some("nothing".into()),
            }
            node.attribute.retain(|a| a.name() != name);
            node.attribute.push(attribute);
            let begun = std::time::Instant::now();
            let _ = process(model.encode_to_vec());
            assert!(begun.elapsed().as_secs() < 60, "{}: {name}", case.title);
            tried += 1;
        }
    }
    assert!(tried > 400, "{tried}");
}

/// The header of a `.npy` file, as its first bytes, its length and its text.
fn npy(header: &str) -> Vec<u8> {
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes()].concat()
}

#[test]
fn headers_of_arrays_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let nested = |open: &str, close: &str| format!("{{'descr': {}'<f4'{}}}", open.repeat(40), close.repeat(40));
    for header in [
        nested("[", "]"),
        nested("(", ",)"),
        nested("{'a':", "}"),
        "[".repeat(40),
        "{".repeat(40),
        "{'a':".repeat(30),
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", "1,".repeat(30_000)),
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }".into(),
        // Sizes whose product is no number, beside a zero also.
        "{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551615, 4), }".into(),
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807, 9223372036854775807), }".into(),
        "{'descr': '<c16', 'fortran_order': False, 'shape': (4294967296, 4294967295), }".into(),
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, ), }".into(),
        String::new(),
    ] {
        let path = folder.path().join("a.npy");
        std::fs::write(&path, npy(&header)).unwrap();
        assert!(onnx_gradients::onnx::npy::read_tensor(&path).is_err(), "{header}");
    }
}

/// A pipe that nobody writes to is an error, and one that somebody does, also late, is read to its end.
#[cfg(unix)]
#[test]
fn pipes_do_not_wait_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.npy");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = onnx_gradients::onnx::npy::read_tensor(&pipe).unwrap_err();
    assert!(format!("{error:#}").contains("nobody writes to it"), "{error:#}");
    let written = pipe.clone();
    let writer = std::thread::spawn(move || {
        use std::io::Write;
        std::thread::sleep(std::time::Duration::from_millis(200));
        let mut pipe = std::fs::File::options().write(true).open(written).unwrap();
        let bytes = [npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"), vec![0; 12]].concat();
        for part in bytes.chunks(7) {
            pipe.write_all(part).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let tensor = onnx_gradients::onnx::npy::read_tensor(&pipe).unwrap();
    assert_eq!(tensor.dims, [3]);
    writer.join().unwrap();
}

/// What a file says of an earlier call may complete what inference does not know, and nothing else.
#[test]
fn records_do_not_change_shapes() {
    let record = |name: &str, x: &str| {
        format!(r#"{{"name": "g", "gradients": [{{"x": "{x}", "gradient": "{name}"}}], "seeds": []}}"#)
    };
    for name in ["h", "g/h"] {
        for x in ["z", "three", "flat"] {
            let graph = format!(
                r#"g (float[n,3] x, float[1,3] z, float[3,3] three, float[3] flat) => (y) {{
                    "{name}" = Mul(x, x) y = ReduceMean <keepdims = 0> ("{name}")
                }}"#
            );
            let mut model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]> {graph}")).unwrap();
            model.metadata_props.push(onnx_gradients::onnx::proto::StringStringEntryProto {
                key: Some("onnx-gradients/g".into()),
                value: Some(record(name, x)),
            });
            let loaded = onnx_gradients::internals::load(&model).unwrap();
            let fact = loaded.graph.fact(loaded.names[name]);
            let shape = loaded.graph.dims.display(fact.shape.as_ref().unwrap());
            assert_eq!(shape, "[n, 3]", "{name}, {x}");
        }
    }
}

/// A shape that a model declares is believed until a node contradicts it: what is written then loads nevertheless.
#[test]
fn what_is_declared_wrongly_decides_nothing() {
    let text = r#"<ir_version: 8, opset_import: ["": 17, "m": 1]>
        g (float[2,3] x) => (float[2,3,3] y) <bool[2,1] some = {1, 0}, float[1,1] zero = {0}> {
            s = m.F(x) y = Where(some, zero, s)
        }
        <domain: "m", opset_import: ["": 17, "other": 1]> F (x) => (s) { u = other.Unknown(x) s = LogSoftmax<axis = 1>(u) }"#;
    let model = text::parse(text).unwrap();
    let request = Gradients::new([Wanted::from("y")], [Wanted::from("zero")]);
    let written = request.build(&Model::from(model)).unwrap().model;
    let again = onnx_gradients::internals::load(&written.proto).unwrap();
    let warnings = again.warnings.join("\n");
    assert!(warnings.contains("contradicts its nodes"), "{warnings}");
}

/// A rank that one node requires and another cannot take is not believed: what is written then loads nevertheless.
#[test]
fn ranks_that_contradict_each_other_decide_nothing() {
    let graphs = [
        // What Concat requires of r, r has not, whatever u is: its rank makes sizes of 1, of which x is no continuation.
        (8, "g (float[N,2,H,5] x, w) => (y) { u = o.Unknown(w) r = ReduceProd(u) y = Concat<axis = 0>(r, x) }"),
        (
            8,
            "g (float[N,2,H,5] x, w) => (y) { u = o.Unknown(w) r = ReduceSum(u) s = Neg(r) y = Concat<axis = 1>(s, x) }",
        ),
        // Two nodes require two ranks of one tensor, the one of them in a call that is not on the way.
        (
            17,
            "g (float[2,3,32] x, c, float[5,2] s) => (y, z) <int32[2] last = {2, 2}, int32 total = {3}> {
            y, k = com.microsoft.GroupQueryAttention
                <num_heads = 4, kv_num_heads = 2, do_rotary = 1> (x, \"\", \"\", \"\", \"\", last, total, c, s)
            z = m.F(c, k)
        }
        <domain: \"m\", opset_import: [\"\": 17]> F (c, k) => (z) { z = Conv(k, c) }",
        ),
    ];
    for ((opset, graph), functions) in graphs.into_iter().flat_map(|g| [(g, false), (g, true)]) {
        let imports = format!("[\"\": {opset}, \"com.microsoft\": 1, \"m\": 1, \"o\": 1]");
        // With functions, and bodies in what is written, everything is loaded twice.
        let more = "<domain: \"m\", opset_import: [\"\": 17]> G (a) => (b) { b = Neg(a) }";
        let text = format!("<ir_version: 8, opset_import: {imports}> {graph} {}", if functions { more } else { "" });
        let model = Model::from(text::parse(&text).unwrap());
        let request = Gradients::new([Wanted::from("y")], [Wanted::from("x")]);
        let Ok(written) = request.build(&model) else { panic!("{graph}: {}", request.build(&model).unwrap_err()) };
        let again = onnx_gradients::internals::load(&written.model.proto).unwrap();
        let fact = again.graph.fact(again.names[written.gradients[0].name.as_ref().unwrap().as_str()]);
        assert_eq!(fact.rank(), again.graph.fact(again.names["x"]).rank(), "{graph}");
    }
}

/// Scales that have not as many axes as the numbers that they scale are an error.
#[test]
fn scales_of_another_rank_are_refused() {
    let graph = "g (float[3] s, int64[2] i) => (y) <uint8[3,8] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6}> {
        y = com.microsoft.GatherBlockQuantized<block_size = 16, quantize_axis = 1, bits = 4>(w, i, s)
    }";
    let text = format!("<ir_version: 8, opset_import: [\"\": 17, \"com.microsoft\": 1]> {graph}");
    let error = process(text::parse(&text).unwrap().encode_to_vec()).unwrap_err();
    assert!(format!("{error:#}").contains("rank 1 for data of rank 2"), "{error:#}");
}

#[test]
fn sums_of_many_operands_are_refused() {
    let names: Vec<String> = (0..3000).map(|i| format!("x{i}")).collect();
    let inputs = names.iter().map(|n| format!("float[2] {n}")).collect::<Vec<_>>().join(", ");
    let equation = vec!["i"; names.len()].join(",");
    let text = format!(
        "<ir_version: 8, opset_import: [\"\": 17]> g ({inputs}) => (float[2] y) {{ y = Einsum<equation = \"{equation}->i\">({}) }}",
        names.join(", ")
    );
    let error = process(text::parse(&text).unwrap().encode_to_vec()).unwrap_err();
    assert!(format!("{error:#}").contains("several Einsum nodes"), "{error:#}");
}

/// What a file claims of its parts and they are not: each is an error that names the part, before anything is computed.
#[test]
fn parts_that_do_not_fit_are_refused() {
    let tensor = |element, dims: &[i64], values: &[i64]| TensorProto {
        name: Some("w".into()),
        ..TensorProto::from_numbers(element, dims, &values.iter().map(|&v| v as f64).collect::<Vec<_>>()).unwrap()
    };
    let model = || {
        let graph = "g (float[3] x) => (float[3] y) { y = Mul(x, w) }";
        text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]> {graph}")).unwrap()
    };
    let refused = |model: onnx_gradients::onnx::ModelProto, says: &str| {
        let error = Model::from_bytes(model.encode_to_vec()).unwrap_err();
        assert_eq!(error.code(), "invalid-model", "{error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
    };
    // Sparse initializers, and Constants, whose indices and values do not go together.
    let sparse = |values: &[i64], index_dims: &[i64], indices: &[i64], dims: &[i64]| SparseTensorProto {
        values: Some(tensor(ElementType::Float, &[values.len() as i64], values)),
        indices: Some(TensorProto::from_int64(index_dims, indices)),
        dims: dims.to_vec(),
    };
    let huge = i64::MAX / 2;
    for (tensor, says) in [
        (sparse(&[1, 2], &[2], &[0, 3], &[3]), "index [3] is outside of dimensions [3]"),
        (sparse(&[1, 2], &[2], &[0, -1], &[3]), "index [-1] is outside"),
        (sparse(&[1], &[1], &[i64::MIN], &[3]), "is outside"),
        (sparse(&[1, 2], &[1], &[0], &[3]), "1 indices for values of dimensions [2]"),
        (sparse(&[1], &[3], &[0, 1, 2], &[3]), "3 indices for values of dimensions [1]"),
        (sparse(&[1, 2], &[2], &[1, 1], &[3]), "two values at place 1"),
        (sparse(&[1], &[1], &[0], &[-3]), "no tensor can have the dimensions [-3]"),
        (sparse(&[1], &[1], &[0], &[huge, huge]), "no tensor can have the dimensions"),
        (sparse(&[1], &[1], &[0], &[0]), "is outside"),
        (sparse(&[1], &[1], &[0], &[]), "it has no dimensions"),
        (sparse(&[1, 2], &[2, 2], &[0, 0, 1, 3], &[3, 3]), "index [1, 3] is outside"),
        (sparse(&[1, 2], &[2, 1], &[0, 1], &[3, 3]), "indices of dimensions [2, 1] for 2 axes"),
        (SparseTensorProto { indices: None, ..sparse(&[1], &[1], &[0], &[3]) }, "it has no indices"),
    ] {
        let mut initializer = model();
        initializer.graph.as_mut().unwrap().sparse_initializer.push(tensor.clone());
        refused(initializer, says);
        let mut constant = model();
        let value = AttributeProto {
            name: Some("sparse_value".into()),
            r#type: Some(11),
            sparse_tensor: Some(Box::new(tensor)),
            ..Default::default()
        };
        let node = NodeProto {
            op_type: Some("Constant".into()),
            output: vec!["w".into()],
            attribute: vec![value],
            ..Default::default()
        };
        constant.graph.as_mut().unwrap().node.insert(0, node);
        refused(constant, says);
    }
    // Places in a file that no file has.
    for (key, value, says) in [
        ("offset", "-1", "its offset '-1' is not a number"),
        ("offset", "0.0", "is not a number"),
        ("offset", "18446744073709551616", "is not a number"),
        ("length", "-12", "its length '-12' is not a number"),
        ("length", "11", "11 bytes for float of dimensions [3]"),
    ] {
        let mut external = TensorProto { raw_data: None, ..tensor(ElementType::Float, &[3], &[1, 2, 3]) };
        external.data_location = Some(1);
        for (key, value) in [("location", "w.bin"), (key, value)] {
            let entry = StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
            external.external_data.push(entry);
        }
        let mut model = model();
        model.graph.as_mut().unwrap().initializer.push(external);
        refused(model, says);
    }
    // Versions of the standard that there are not, or of which nobody can say which one is meant.
    for (imports, says) in [
        (vec![("", 0)], "imports version 0 of ai.onnx"),
        (vec![("", -1)], "imports version -1 of ai.onnx"),
        (vec![("", 17), ("", 11)], "two versions of ai.onnx, 17 and 11"),
        (vec![("ai.onnx", 11), ("", 17)], "two versions of ai.onnx, 11 and 17"),
        (vec![("a", 1)], "it has a node of Mul and imports no version of ai.onnx"),
    ] {
        let mut model = model();
        let import = |(domain, version): &(&str, i64)| OperatorSetIdProto {
            domain: Some((*domain).into()),
            version: Some(*version),
        };
        model.opset_import = imports.iter().map(import).collect();
        refused(model, says);
    }
}

/// A message is one line that can be printed and has an end, whatever a file puts into it.
#[test]
fn messages_are_lines_with_an_end() {
    let many = |n: i64| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    let graphs = [
        format!("g (float[3] x) => (y) {{ y = Transpose<perm = [{}]>(x) }}", many(100_000)),
        format!("g (float[1,1,5,5] x, float[1,1,3,3] w) => (y) {{ y = Conv<kernel_shape = [{}]>(x, w) }}", many(5000)),
    ];
    let models =
        graphs.map(|graph| text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]> {graph}")).unwrap());
    let named = |name: &str| {
        let graph = "g (float[3] x) => (y) { y = m.Unknown<a = 1>(x) }";
        let mut model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17, \"m\": 1]> {graph}")).unwrap();
        let node = &mut model.graph.as_mut().unwrap().node[0];
        (node.name, node.op_type) = (Some(name.into()), Some(name.into()));
        model
    };
    let names = ["a\nb", "\u{1b}[31mred", "\u{202e}abc", "a\u{2028}b", "\0", "\t", "\u{feff}", "\u{85}"];
    for model in models.into_iter().chain(names.map(named)).chain([named(&"n".repeat(1 << 20))]) {
        let request = Gradients::new([Wanted::from("y")], [Wanted::from("x")]);
        let error = request.build(&Model::from(model)).unwrap_err();
        let message = error.to_string();
        assert!(message.len() < 2000, "{} bytes: {}", message.len(), &message[..200]);
        let breaks = |c: char| c.is_control() || "\u{2028}\u{2029}\u{202e}\u{feff}".contains(c);
        assert!(!message.contains(breaks), "{message:?}");
    }
}

/// Names that are taken for others, and a node whose inputs are of two types, are answered with what helps.
#[test]
fn what_helps_is_said() {
    let parse =
        |graph: &str| Model::from(text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]> {graph}")).unwrap());
    let model = parse("g (float[3] image) => (float[3] logits) { h = Neg(image) logits = Neg(h) }");
    let unknown = Gradients::new([Wanted::from("qqq")], [Wanted::Inputs]).build(&model).unwrap_err();
    assert_eq!(unknown.details().remedy.as_deref(), Some("there are 'h', 'image', 'logits'"), "{unknown}");
    let nodes: String = (0..20).map(|i| format!("h{i} = Neg(image) ")).collect();
    let large = parse(&format!("g (float[3] image) => (float[3] logits) {{ {nodes} logits = Neg(h3) }}"));
    let unknown = Gradients::new([Wanted::from("qqq")], [Wanted::Inputs]).build(&large).unwrap_err();
    let remedy = "the model's inputs are 'image', its outputs 'logits'";
    assert_eq!(unknown.details().remedy.as_deref(), Some(remedy), "{unknown}");
    let mixed = parse("g (float[3] x, string[3] s) => (y) { y = Mul(s, x) }");
    let error = Gradients::new([Wanted::from("y")], [Wanted::from("x")]).build(&mixed).map(|_| ());
    let message = error.map_or_else(|e| e.to_string(), |()| String::new());
    assert!(!message.contains("please report this"), "{message}");
    // A function that cannot be called so is the model's fault.
    for function in ["F (a, b) => (c) { c = F(a, b) }", "F (a) => (c) { c = Neg(b) }", "F (a) => (c) { b = Neg(a) }"] {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\": 17, \"m\": 1]> g (float[3] x) => (y) {{ y = m.F(x) }}
            <domain: \"m\", opset_import: [\"\": 17, \"m\": 1]> {}",
            function.replace("= F(", "= m.F(")
        );
        let model = Model::from(text::parse(&text).unwrap());
        let error = Gradients::new([Wanted::from("y")], [Wanted::from("x")]).build(&model).unwrap_err();
        assert_eq!(error.code(), "invalid-model", "{function}: {error}");
    }
}

/// A tensor's declaration says nothing of a sequence: neither its shape, nor that of its gradient.
#[test]
fn a_declaration_of_another_container_is_not_believed() {
    let graph = "g (float[2] a, float[2] c) => (y) <float[2,N] s> {
        e = SequenceEmpty() t = SequenceInsert(e, a) s = SequenceInsert(t, c) y = ConcatFromSequence<axis = 0>(s) }";
    let model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]> {graph}")).unwrap();
    let loaded = onnx_gradients::internals::load(&model).unwrap();
    let warnings = loaded.warnings.join("\n");
    assert!(warnings.contains("'s' is declared as a tensor, its node computes a sequence"), "{warnings}");
    let fact = loaded.graph.fact(loaded.names["s"]);
    assert_eq!(fact.shape.as_deref().map(<[_]>::len), Some(1), "{fact:?}");
}

/// A node with thousands of inputs of which nothing is known takes time that grows with them.
#[test]
fn ranks_of_many_unknown_inputs_are_not_looked_for_one_by_one() {
    let count = 6000;
    let nodes: String = (0..count).map(|i| format!("h{i} = o.Unknown(x) ")).collect();
    let inputs: Vec<String> = (0..count).map(|i| format!("h{i}")).collect();
    let graph = format!("g (float[3] x) => (y) {{ {nodes} y = Sum({}) }}", inputs.join(", "));
    let model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17, \"o\": 1]> {graph}")).unwrap();
    let begun = std::time::Instant::now();
    let loaded = onnx_gradients::internals::load(&model).unwrap();
    assert!(loaded.graph.fact(loaded.names["y"]).shape.is_none());
    // Looked at one by one it is ten looks at 6,000 inputs for each of them: minutes in a debug build.
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

/// What fails around a body is an error, whatever is tried out for the nodes in it: ranks that only the run knows.
#[test]
fn what_has_failed_is_not_hidden_by_what_is_tried_out() {
    for node in [
        "com.microsoft.BiasSoftmax<axis = 3, is_inner_broadcast = 1>(x, bias)",
        "DequantizeLinear(q, bias)",
        "Mul(x, bias)",
        "LayerNormalization(x, bias)",
    ] {
        // An If without its condition, of which a branch takes a tensor of unknown rank.
        let graph = format!(
            "g (float[2,3,2,4] x, float w, int8[2,3] q) => (y) {{ bias = o.Unknown(w) b = Mul(w, bias)
            y = If<then_branch = t () => (v) {{ v = {} }}, else_branch = e () => (u) {{ u = o.Unknown(x) }}>() }}",
            node.replace("bias)", "b)")
        );
        let imports = "[\"\": 17, \"com.microsoft\": 1, \"o\": 1]";
        let model = Model::from(text::parse(&format!("<ir_version: 8, opset_import: {imports}> {graph}")).unwrap());
        for x in ["x", "bias"] {
            if let Ok(written) = Gradients::new([Wanted::from("y")], [Wanted::from(x)]).build(&model) {
                let loaded = onnx_gradients::internals::load(&written.model.proto);
                assert!(loaded.is_ok(), "{node}: {}", loaded.map(|_| ()).unwrap_err());
            }
        }
    }
    // The smallest model that was written and could not be read.
    let graph = "g (float[2,3,2,4] x, float[4] w, int64 n, uint8 z) => (y) {
        bias = o.Unknown(w) y = If<then_branch = t () => (v) {
            v = com.microsoft.BiasSoftmax<axis = 4, is_inner_broadcast = 1>(x, bias)
        }, else_branch = e () => (u) { u, i = TopK<axis = 0>(z, n) }>() }";
    let imports = "[\"\": 17, \"com.microsoft\": 1, \"o\": 1]";
    let model = Model::from(text::parse(&format!("<ir_version: 8, opset_import: {imports}> {graph}")).unwrap());
    let error = Gradients::new([Wanted::from("y")], [Wanted::from("x")]).build(&model).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("input 0 is missing"), "{error}");
}
