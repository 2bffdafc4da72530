//! Model-local functions: differentiated through their bodies, inlined only where they lie on a path.
#![cfg(feature = "validate")]

use onnx_gradients::onnx::{ElementType, TensorProto, text};
use onnx_gradients::validate::run;
use onnx_gradients::{Gradients, Model, Output, Wanted};

const MODEL: &str = r#"
<ir_version: 9, opset_import: ["": 17, "local": 1]>
g (float[N] x, float[N] other) => (float[N] y) {
    [first] h = local.Outer<slope = 0.25> (x)
    [aside] c = local.Square (other)
    y = Mul (h, c)
}
<domain: "local", opset_import: ["": 17, "local": 1]>
Outer <slope> (a) => (b) {
    q = local.Square (a)
    b = LeakyRelu <alpha: float = @slope> (q)
}
<domain: "local", opset_import: ["": 17]>
Square (a) => (b) { b = Mul (a, a) }
"#;

#[test]
fn functions_on_a_path_are_inlined() {
    let model = Model::from(text::parse(MODEL).unwrap());
    let output = Gradients::new(["y"], ["x"]).build(&model).unwrap();
    let nodes = &output.model.proto.graph.as_ref().unwrap().node;
    let calls: Vec<&str> = nodes.iter().filter(|n| n.domain() == "local").map(|n| n.name()).collect();
    assert_eq!(calls, ["aside"], "what is not on a path stays a call");
    assert!(nodes.iter().any(|n| n.output[0].starts_with("first/")), "names say where nodes come from");
    assert_eq!(output.model.proto.functions.len(), 2);
}

#[test]
fn their_gradients_are_right() {
    let model = Model::from(text::parse(MODEL).unwrap());
    let output = Gradients::new(["y"], ["x", "other"]).build(&model).unwrap();
    let tensor = |v: &[f64]| TensorProto::from_floats(ElementType::Float, &[v.len() as i64], v).unwrap();
    let feeds = [("x".to_owned(), tensor(&[1.0, -2.0])), ("other".to_owned(), tensor(&[3.0, 0.5]))];
    let values = run(&output.model.proto, &feeds.into_iter().collect()).unwrap();
    // y = x² other², for x² is never negative.
    assert_eq!(values["gradients/x"].floats().unwrap(), [18.0, -1.0]);
    assert_eq!(values["gradients/other"].floats().unwrap(), [6.0, 4.0]);
}

/// An operator that nobody knows, and its gradient: y = scale x², dx = 2 scale x dy.
const CUSTOM: &str = r#"
<ir_version: 9, opset_import: ["": 17, "my": 1]>
g (float[2] x, float[2] w) => (float[2] y) {
    [square] h = my.ScaledSquare <scale = 3.0> (x, w)
    y = Exp (h)
}
"#;

const GRADIENT: &str = r#"
<ir_version: 9, opset_import: ["": 17, "my": 1]>
unused (float a) => (float b) { b = Identity (a) }
<domain: "my", opset_import: ["": 17]>
ScaledSquare <scale> (x, w, y, dy) => (dx) {
    k = Constant <value_float: float = @scale> ()
    two = Constant <value_float = 2.0> ()
    a = Mul (two, x)
    b = Mul (a, k)
    dx = Mul (b, dy)
}
"#;

#[test]
fn users_give_gradients_as_functions() {
    let mut model = text::parse(CUSTOM).unwrap();
    // Nobody infers the outputs of an operator that nobody knows.
    let h = model.graph.as_ref().unwrap().output[0].r#type.clone();
    let info = onnx_gradients::onnx::ValueInfoProto { name: Some("h".into()), r#type: h, ..Default::default() };
    model.graph.as_mut().unwrap().value_info.push(info);
    let model = Model::from(model);
    let call = Gradients::new(["h"], ["x"]);
    let missing = format!("{:#}", call.build(&model).unwrap_err());
    assert!(missing.contains("my.ScaledSquare") && missing.contains("--gradient-functions"), "{missing}");
    let functions = text::parse(GRADIENT).unwrap().functions;
    let output = call.functions(functions).build(&model).unwrap();
    let mut proto = output.model.proto.clone();
    let graph = proto.graph.as_mut().unwrap();
    assert!(graph.node[2..].iter().all(|n| n.domain().is_empty()), "the gradient is of the standard's operators");
    // Without the node that no engine knows, its gradient runs.
    graph.node.drain(..2);
    graph.output.retain(|o| o.name().starts_with("gradients/"));
    let tensor = |v: &[f64]| TensorProto::from_floats(ElementType::Float, &[2], v).unwrap();
    let feeds = [("x".to_owned(), tensor(&[1.0, -2.0])), ("w".to_owned(), tensor(&[0.0, 0.0]))];
    assert_eq!(run(&proto, &feeds.into_iter().collect()).unwrap()["gradients/x"].floats().unwrap(), [6.0, -12.0]);
}

/// What lies inside a function has no name outside of it, and weights in front of calls are found through them.
#[test]
fn what_is_wanted_is_found_around_calls() {
    let model = MODEL.replace(
        "g (float[N] x, float[N] other) => (float[N] y) {",
        "g (float[N] x, float[N] other) => (float[N] y) <float[3] w = {1, 2, 3}> { v = Mul (x, w)",
    );
    let model = Model::from(text::parse(&model.replace("(x)\n    [aside]", "(v)\n    [aside]")).unwrap());
    let output = Gradients::new([Wanted::Outputs], [Wanted::Parameters]).build(&model).unwrap();
    assert_eq!(output.gradients.iter().map(|g| g.x.as_str()).collect::<Vec<_>>(), ["w"]);
    let calls = |output: &Output| {
        let nodes = &output.model.proto.graph.as_ref().unwrap().node;
        nodes.iter().filter(|n| n.domain() == "local").map(|n| n.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(calls(&output), ["aside"]);
    let all = Gradients::new(["y"], ["*"]).build(&model).unwrap();
    assert!(all.gradients.iter().all(|g| !g.x.contains('/')), "{:?}", all.gradients);
    assert_eq!(calls(&all), [""; 0]);
    let error = Gradients::new(["y"], ["first/q"]).build(&model).unwrap_err().to_string();
    assert!(error.contains("'first/q' lies inside a function"), "{error}");
}
