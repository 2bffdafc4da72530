//! Validation in an installed ONNX Runtime, of what tract cannot run. Without `ORT_DYLIB_PATH` these tests say that they
//! have not run, and pass.

use onnx_gradients::onnx::text;
use onnx_gradients::validate::{Engine, Options, Status, Validation, validate};
use onnx_gradients::{Gradients, Model, Output};
use std::path::PathBuf;
use std::process::Command;

/// The library to run in.
fn library() -> Option<PathBuf> {
    let path = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    if path.is_none() {
        println!("skipped: ORT_DYLIB_PATH names no library of ONNX Runtime");
    }
    path
}

fn model(graph: &str) -> Model {
    text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap().into()
}

fn differentiated(graph: &str, xs: &[&str]) -> Output {
    Gradients::new(["y"], xs.iter().copied()).build(&model(graph)).unwrap()
}

fn check(output: &Output, library: Option<PathBuf>) -> Validation {
    let options = Options::default().engine(Engine::OnnxRuntime(library));
    validate(&output.model.proto, None, &output.record, &options)
}

/// Kernels for all of it exist in float64.
const DOUBLE: &str =
    "g (float[N,3] x, float[3,2] w) => (float y) { h = MatMul(x, w) t = Tanh(h) y = ReduceSum<keepdims = 0>(t) }";
/// HardSigmoid has no float64 kernel.
const SINGLE: &str = "g (float[N,3] x, float[3,2] w) => (float y) { h = MatMul(x, w) t = HardSigmoid<alpha = 0.1>(h) s = Mul(t, h) y = ReduceSum<keepdims = 0>(s) }";
/// tract has no Loop.
const LOOP: &str = r#"g (float[2] x, float[2] w) => (float y) <int64 n = {3}, bool go = {1}> {
    h, hs = Loop(n, go, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {
        d = Identity(c) p = Mul(s, w) t = Tanh(p) o = Identity(t)
    }>
    a = ReduceSum<keepdims = 0>(h) b = ReduceSum<keepdims = 0>(hs) y = Add(a, b)
}"#;

#[test]
fn right_gradients_pass() {
    let Some(library) = library() else { return };
    for (graph, bound) in [(DOUBLE, 1e-5), (SINGLE, 2e-2)] {
        let found = check(&differentiated(graph, &["x", "w"]), Some(library.clone()));
        assert_eq!((found.status, found.engine.as_str()), (Status::Passed, "ONNX Runtime"), "{found:?}");
        for gradient in &found.gradients {
            assert!(gradient.compared && gradient.bound == bound, "{gradient:?}");
        }
    }
}

#[test]
fn wrong_gradients_fail() {
    let Some(library) = library() else { return };
    for graph in [DOUBLE, SINGLE] {
        let mut output = differentiated(graph, &["x", "w"]);
        // The gradient of w is doubled behind the record's back.
        let proto = output.model.proto.graph.as_mut().unwrap();
        let name = output.gradients[1].name.clone().unwrap();
        let node = proto.node.iter_mut().find(|n| n.output.contains(&name)).unwrap();
        node.output[0] = "half".into();
        let twice = text::parse("g () => () { d = Sum(half, half) }").unwrap().graph.unwrap().node.remove(0);
        proto.node.push(onnx_gradients::onnx::NodeProto { output: vec![name.clone()], ..twice });
        let found = check(&output, Some(library.clone()));
        assert_eq!(found.status, Status::Failed, "{found:?}");
        assert!(found.reason.unwrap().contains(&name));
    }
}

#[test]
fn loops_run() {
    let Some(library) = library() else { return };
    let output = differentiated(LOOP, &["x", "w"]);
    let found = check(&output, Some(library));
    assert_eq!(found.status, Status::Passed, "{found:?}");
    assert!(found.gradients.iter().all(|g| g.compared), "{found:?}");
}

#[test]
fn what_it_lacks_is_neither_right_nor_wrong() {
    let Some(library) = library() else { return };
    let graph = "g (float[2] x) => (float[2] y, float[2] z) { y = Mul(x, x) z = my.domain.Op(x) }";
    let mut output = differentiated(graph, &["x"]);
    output
        .model
        .proto
        .opset_import
        .push(onnx_gradients::onnx::proto::OperatorSetIdProto { domain: Some("my.domain".into()), version: Some(1) });
    let found = check(&output, Some(library));
    assert_eq!(found.status, Status::Skipped, "{found:?}");
    assert!(found.reason.unwrap().starts_with("ONNX Runtime: "));
}

#[test]
fn a_library_that_is_none_is_said() {
    if library().is_some() {
        // A process loads one library: what is asked for here is another process.
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("m.onnx");
        differentiated(DOUBLE, &["x"]).model.save(&path).unwrap();
        let tool = |arguments: &[&str]| {
            let output =
                Command::new(env!("CARGO_BIN_EXE_onnx-gradients")).arg("check").arg(&path).args(arguments).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let found = tool(&["--engine", "onnxruntime", "--engine-library", "/nowhere/libonnxruntime.so"]);
        assert!(found.contains("not validated: ONNX Runtime: ") && found.contains("/nowhere"), "{found}");
        let found = tool(&["--engine", "onnxruntime"]);
        assert!(found.contains("validated in ONNX Runtime: 1 of 1"), "{found}");
    }
}
