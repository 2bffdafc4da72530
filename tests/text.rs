//! ONNX's text syntax: what is written comes back as it was, and what is wrong is named.

use onnx_gradients::onnx::proto::type_proto::Value as Type;
use onnx_gradients::onnx::text::{parse, print_nodes, print_whole};
use onnx_gradients::onnx::{ElementType, attribute};

const WHOLE: &str = r#"<ir_version: 8, opset_import: ["" : 17, "com.x" : 1], producer_name: "a \"test\" \\", model_version: 3, metadata_props: ["k": "v"]>
main (float[2,N,"batch size",?] x, int64[3] i, seq(float[]) s, optional(seq(int64)) o, map(string, double) m, bool b, sparse_tensor(float[3]) p, opaque(d.e,n) q) => (float[2] y, float z) <
   float[2] w = {1, -0.5},
   int64 k = {3},
   float[0] none = {},
   double[4] d = {1e-300, inf, -inf, nan},
   float16[2] h = {0.5, 1.0},
   bfloat16 bf = {2.0},
   bool[2] flags = {1, 0},
   string[2] text = {"a, b", "\"{}"},
   uint64 big = {18446744073709551615},
   int8[2] small = {-128, 127},
   float8e4m3fn f8 = {56},
   complex64 c = {1, 2},
   float[2] "far/away" = ["location": "weights.bin", "offset": "16"],
   float[3] inner
> {
   [first] a, "", "b/c" = Op <axis = 1, alpha = 0.5, perm = [1, 0], mode = "linear", scales = [1.0, 2.5], names = ["p", "q"], empty: ints = [], value = float[2] {1, 2}, to = seq(float[N])> (x, "", w)
   ["second node"] y = com.x.My:over (a)
   z = If (b) <then_branch = then () => (float t) {
      t = Relu (a)
   }, else_branch = "else branch" () => (float e) <
      float one = {1}
   > {
      "float" = Identity (one)
      e = Identity ("float")
   }>
    = Sink ()
}
<domain: "com.x", overload: "over", opset_import: ["" : 17]>
My <n, alpha = 1.0> (X, Y) => (Z) <float[N] t> {
   Z = LeakyRelu <alpha: float = @alpha> (X)
}
"#;

#[test]
fn text_comes_back_as_it_was() {
    assert_eq!(print_whole(&parse(WHOLE).unwrap()), WHOLE);
}

#[test]
fn a_name_may_be_empty() {
    let text = "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float x) => (float y) <\n   int64[1] \"\" = {3}\n> {\n   y = Neg (x)\n}\n";
    assert_eq!(print_whole(&parse(text).unwrap()), text);
}

#[test]
fn what_is_printed_is_what_was_parsed() {
    let model = parse(WHOLE).unwrap();
    let graph = model.graph.as_ref().unwrap();
    assert_eq!(model.opset(""), Some(17));
    assert_eq!(graph.input.len(), 8);
    assert_eq!(graph.initializer[0].floats().unwrap(), [1.0, -0.5]);
    assert_eq!(graph.initializer[4].floats().unwrap(), [0.5, 1.0]);
    let node = &graph.node[0];
    assert_eq!((node.name(), node.op_type(), node.domain()), ("first", "Op", ""));
    assert_eq!(node.input, ["x", "", "w"]);
    assert_eq!(attribute::get_ints(&node.attribute, "perm"), Some(&[1, 0][..]));
    assert_eq!(attribute::get_tensor(&node.attribute, "value").unwrap().floats().unwrap(), [1.0, 2.0]);
    assert_eq!((graph.node[1].domain(), graph.node[1].overload()), ("com.x", "over"));
    assert_eq!(attribute::find(&graph.node[2].attribute, "else_branch").unwrap().g.as_ref().unwrap().node.len(), 2);
    assert_eq!(model.functions[0].node[0].attribute[0].ref_attr_name(), "alpha");
}

#[test]
fn spellings_that_are_only_read() {
    let model = parse(
        "g (float x = {2}, t) => (y) # a comment\n// another\n{ y = Op<a:float=1, b=[float{1},float{2}]>(,x,,x)\n\
         [n] u = Op (x) <c = -3, d = bool[2] {true, false}, e: floats = [1, 2]> }",
    )
    .unwrap();
    assert_eq!((model.ir_version(), model.opset("")), (10, Some(18)));
    let graph = model.graph.as_ref().unwrap();
    assert_eq!((graph.initializer[0].name(), graph.node[0].input.len()), ("x", 4));
    assert_eq!(attribute::get_float(&graph.node[0].attribute, "a"), Some(1.0));
    assert_eq!(graph.node[0].attribute[1].tensors.len(), 2);
    assert_eq!(attribute::get_int(&graph.node[1].attribute, "c"), Some(-3));
    assert_eq!(graph.node[1].attribute[2].floats, [1.0, 2.0]);
}

#[test]
fn large_tensors_are_abbreviated() {
    let mut model = parse("g () => (y) { y = Constant <value = float[2] {1, 2}> () }").unwrap();
    let node = &mut model.graph.as_mut().unwrap().node[0];
    let values: Vec<f64> = (0..1000).map(f64::from).collect();
    node.attribute[0] = attribute::tensor(
        "value",
        onnx_gradients::onnx::TensorProto::from_floats(ElementType::Float, &[10, 100], &values).unwrap(),
    );
    let text = print_nodes(std::slice::from_ref(node));
    assert_eq!(text, "y = Constant <value = float[10,100] {0, 1, 2, 3, 4, 5, 6, 7, ...}> ()\n");
    assert!(parse(&format!("g () => (y) {{ {text} }}")).unwrap_err().to_string().contains("abbreviated"));
}

#[test]
fn metadata_are_comments() {
    let mut model = parse("g () => (y) { y = Op <b = h () => () { }> () }").unwrap();
    let graph = model.graph.as_mut().unwrap();
    let entry =
        onnx_gradients::onnx::proto::StringStringEntryProto { key: Some("k".into()), value: Some("a\nb".into()) };
    graph.node[0].metadata_props.push(entry.clone());
    graph.node[0].attribute[0].g.as_mut().unwrap().metadata_props.push(entry);
    let text = print_nodes(&graph.node);
    assert_eq!(text, "y = Op () <b = h () => () { # \"k\": \"a\\nb\"\n}> # \"k\": \"a\\nb\"\n");
}

#[test]
fn errors_say_where() {
    for (text, message) in [
        ("g () => () {\n  y = Op (x\n}", "line 3, column 1: expected ')', found '}'"),
        ("g () => () { y = Op <a = [1, \"s\"]> () }", "line 1, column 33: a list has elements of one type"),
        ("g () => () { y = Op <a = []> () }", "an empty list needs its type"),
        ("g () => () { y = Op <a: int = 1.5> () }", "expected a value of type int, not float"),
        ("g () => () <float[2] w = {1}> {}", "1 elements for dimensions [2]"),
        ("g () => () <int8 w = {300}> {}", "300 is out of range"),
        ("g () => () <\"w> {}", "without closing quote"),
        ("<ir_version: 8, colour: 3> g () => () {}", "no 'colour'"),
        ("g () => () {", "found the end"),
        ("é", "line 1, column 1: expected a name, found 'é'"),
        ("", "expected a name, found the end"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn hostile_nesting_is_an_error() {
    let graphs = "g () => () { y = Op <a = ".repeat(10_000);
    assert!(parse(&graphs).unwrap_err().to_string().contains("nest deeper"));
    let types = format!("g ({}", "seq(".repeat(100_000));
    assert!(parse(&types).unwrap_err().to_string().contains("nest deeper"));
}

#[test]
fn types_without_an_inner_one_are_printed_and_read() {
    let mut model =
        parse("<ir_version: 8, opset_import: [\"\": 17]> g (seq(float) s, optional(float) o) => () {}").unwrap();
    for input in &mut model.graph.as_mut().unwrap().input {
        match input.r#type.as_mut().unwrap().value.as_mut().unwrap() {
            Type::SequenceType(t) => t.elem_type = None,
            Type::OptionalType(t) => t.elem_type = None,
            _ => unreachable!(),
        }
    }
    let text = print_whole(&model);
    let again = print_whole(&parse(&text).unwrap());
    assert_eq!(print_whole(&parse(&again).unwrap()), again, "{text}");
}
