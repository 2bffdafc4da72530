//! Files that are damaged on purpose: the reader and the pass answer each with a model or with an error.

mod common;

use common::process::process;
use onnx_gradients::onnx::{ElementType, TensorProto, text};
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
        // More starts than axes.
        "g (float[3] x, int64[HUGE] e) => (y) { y = Slice(x, e, e) }",
        "g (float[3] x, int64[HUGE,1] e) => (y) { y = Slice(x, e, e) }",
    ] {
        for opset in [13, 17, 21] {
            let text = format!("<ir_version: 8, opset_import: [\"\": {opset}]> {}", graph.replace("HUGE", huge));
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
    assert!(format!("{error:#}").contains("axis 1"), "{error:#}");
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
