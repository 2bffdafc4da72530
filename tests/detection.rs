//! How surely validation finds gradients that are wrong: by tampering with right ones. The figures stand in docs/validation.md.
#![cfg(feature = "validate")]

use onnx_gradients::onnx::{ElementType, ModelProto, NodeProto, TensorProto, text};
use onnx_gradients::validate::{Options, Status, Validation, validate};
use onnx_gradients::{Gradient, Gradients, Output, Record, SeedOf};
use std::time::Duration;

/// Time enough, however busy the machine is.
fn options() -> Options {
    Options::default().budget(Duration::from_secs(600))
}

/// A network whose every weight matters: softmax over a product of tanh layers, and a convolution.
const NETWORK: &str = r#"<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,8] x) => (float[N] y) {
    c = Conv (x, K, k)
    t = Tanh (c)
    f = Flatten (t)
    h = Gemm (f, W, b)
    a = Sigmoid (h)
    p = MatMul (a, V)
    s = Softmax (p)
    q = Mul (s, p)
    y = ReduceSum <keepdims = 0> (q, axes)
}"#;

/// Small numbers that repeat late.
fn numbers(count: i64, phase: f64) -> Vec<f64> {
    (0..count).map(|i| 0.7 * (i as f64 * 1.7 + phase).sin()).collect()
}

fn network(element: ElementType) -> ModelProto {
    let name = if element == ElementType::Float16 { "float16" } else { "float" };
    let mut model = text::parse(&NETWORK.replace("float[", &format!("{name}["))).unwrap();
    let graph = model.graph.as_mut().unwrap();
    graph.initializer.clear();
    let shapes: [(&str, &[i64]); 5] = [("K", &[4, 3, 3]), ("k", &[4]), ("W", &[24, 5]), ("b", &[5]), ("V", &[5, 6])];
    for (i, (name, dims)) in shapes.into_iter().enumerate() {
        let tensor = TensorProto::from_floats(element, dims, &numbers(dims.iter().product(), i as f64)).unwrap();
        graph.initializer.push(TensorProto { name: Some(name.to_owned()), ..tensor });
    }
    graph.initializer.push(TensorProto { name: Some("axes".to_owned()), ..TensorProto::from_int64(&[1], &[1]) });
    model
}

fn differentiated(element: ElementType) -> Output {
    Gradients::new(["y"], ["K", "k", "W", "b", "V"]).build(&network(element).into()).unwrap()
}

/// Multiplies elements of a gradient by factors.
fn tampered(output: &Output, x: &str, element: ElementType, dims: &[i64], factors: &[f64]) -> Validation {
    let mut model = output.model.proto.clone();
    let gradient = output.gradients.iter().find(|g| g.x == x).and_then(|g| g.name.clone()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let right = format!("{gradient}/right");
    let produces = |n: &&mut NodeProto| n.output.contains(&gradient);
    let node = graph.node.iter_mut().find(produces).unwrap();
    node.output.iter_mut().filter(|o| **o == gradient).for_each(|o| *o = right.clone());
    for node in &mut graph.node {
        node.input.iter_mut().filter(|i| **i == gradient).for_each(|i| *i = right.clone());
    }
    let tensor = TensorProto::from_floats(element, dims, factors).unwrap();
    graph.initializer.push(TensorProto { name: Some("factors".to_owned()), ..tensor });
    graph.node.push(NodeProto {
        op_type: Some("Mul".to_owned()),
        input: vec![right, "factors".to_owned()],
        output: vec![gradient],
        ..Default::default()
    });
    validate(&model, None, &output.record, &options())
}

/// What an element is multiplied by, and how many of so many are found. `count` elements, spread over all weights.
fn found(element: ElementType, count: usize, factor: f64) -> usize {
    let output = differentiated(element);
    let shapes: [(&str, &[i64]); 5] = [("K", &[4, 3, 3]), ("k", &[4]), ("W", &[24, 5]), ("b", &[5]), ("V", &[5, 6])];
    let tries = (0..count).filter(|i| {
        let (x, dims) = shapes[i % shapes.len()];
        let size: i64 = dims.iter().product();
        let mut factors = vec![1.0; size as usize];
        factors[i * 7 % size as usize] = factor;
        tampered(&output, x, element, dims, &factors).status == Status::Failed
    });
    tries.count()
}

#[test]
fn right_gradients_pass() {
    for element in [ElementType::Float, ElementType::Float16] {
        let output = differentiated(element);
        let validation = validate(&output.model.proto, None, &output.record, &options());
        assert_eq!(validation.status, Status::Passed, "{validation:#?}");
        assert_eq!(validation.counted(), (5, 5), "{validation:#?}");
    }
}

/// At some of the inputs that are tried the model itself is infinite on the way, or does not run beside them.
#[test]
fn right_gradients_that_some_inputs_say_nothing_of_pass() {
    let infinite =
        "g (float[N,4] x, float[4,4] w) => (float[N,4] y) { s = MatMul(x, w) e = Exp(s) l = Log(e) y = Tanh(l) }";
    let counted = "g (float[2,3] x) => (float[a] y) { y = Unique(x) }";
    for (graph, x) in [(infinite, "w"), (counted, "x")] {
        let model = text::parse(graph).unwrap();
        let output = Gradients::new(["y"], [x]).build(&model.into()).unwrap();
        let validation = validate(&output.model.proto, None, &output.record, &options());
        assert_eq!(validation.status, Status::Passed, "{validation:#?}");
    }
}

#[test]
fn one_element_of_a_gradient_is_found() {
    for factor in [1.001, -1.0, 0.0, 1.01] {
        assert_eq!(found(ElementType::Float, 25, factor), 25, "times {factor}");
    }
}

#[test]
fn one_element_of_a_float16_gradient_is_found() {
    for factor in [1.01, 0.0] {
        assert_eq!(found(ElementType::Float16, 10, factor), 10, "times {factor}");
    }
}

/// `y` of x, its right gradient, and another one where a condition holds: what is wrong in a part of the domain only.
struct Partly {
    what: &'static str,
    /// Nodes that compute y, the right gradient `r`, the wrong one `w`, and where that stands, `c`.
    nodes: String,
}

fn square(what: &'static str, condition: &str) -> Partly {
    let nodes = format!(
        "y = Mul (x, x) two = Constant <value = float {{2.0}}> () r = Mul (x, two)
         f = Constant <value = float {{1.5}}> () w = Mul (r, f) {condition}"
    );
    Partly { what, nodes }
}

fn batch(what: &'static str, condition: &str) -> Partly {
    square(what, &format!("s = Shape (x) i = Constant <value = int64 {{0}}> () n = Gather (s, i) {condition}"))
}

/// The size of the second symbol.
fn length(what: &'static str, condition: &str) -> Partly {
    square(what, &format!("s = Shape (l) i = Constant <value = int64 {{1}}> () n = Gather (s, i) {condition}"))
}

/// What the integers of `l` are.
fn integers(what: &'static str, condition: &str) -> Partly {
    square(what, &format!("{condition} any = Cast <to = 1> (e) d = ReduceMax <keepdims = 0> (any) {NOT_ZERO}"))
}

const NOT_ZERO: &str = "no = Constant <value = float {0.0}> () c = Greater (d, no)";

fn above(what: &'static str, op: &str, than: &str, of: &str) -> Partly {
    square(what, &format!("{of} t = Constant <value = float {{{than}}}> () c = {op} (m, t)"))
}

const SOME: &str = "m = ReduceMax <keepdims = 0> (x)";
const LEAST: &str = "m = ReduceMin <keepdims = 0> (x)";
const LARGEST: &str = "a = Abs (x) m = ReduceMax <keepdims = 0> (a)";
const EACH: &str = "m = Identity (x)";

/// x² or its exponential, as a condition says; the gradient of one of them may be wrong.
fn branch(first: &str, second: &str) -> String {
    format!(
        "y = If (cond) <then_branch = a () => (float[N,3] a1) {{ a1 = Mul (x, x) }}, \
         else_branch = b () => (float[N,3] b1) {{ b1 = Exp (x) }}> \
         two = Constant <value = float {{2.0}}> () s = Mul (x, two) t = Exp (x) r = Where (cond, s, t) w = Add (r, two) \
         right = Constant <value = bool {{0}}> () wrong = Constant <value = bool {{1}}> () \
         c = Where (cond, {}, {})",
        if first == "w" { "wrong" } else { "right" },
        if second == "w" { "wrong" } else { "right" },
    )
}

/// x that a Loop multiplies with 0.9 as often as an input says, wrong where that compares so with a number.
fn trips(compares: &str, with: i64) -> String {
    format!(
        "yes = Constant <value = bool {{1}}> () y = Loop (trips, yes, x) <body = b (int64 i, bool go, float[N,3] s) => \
         (bool on, float[N,3] t) {{ on = Identity (go) nine = Constant <value = float {{0.9}}> () t = Mul (s, nine) }}> \
         n = Cast <to = 1> (trips) nine = Constant <value = float {{0.9}}> () p = Pow (nine, n) z = Sub (x, x) \
         r = Add (z, p) one = Constant <value = float {{1.0}}> () w = Add (r, one) \
         k = Constant <value = int64 {{{with}}}> () c = {compares} (trips, k)"
    )
}

fn domains() -> Vec<Partly> {
    let number = |n: i64| format!("k = Constant <value = int64 {{{n}}}> ()");
    let larger = |n| format!("{} c = Greater (n, k)", number(n));
    let remainder = |n| format!("{} q = Mod (n, k) z = Constant <value = int64 {{{n}}}> ()", number(2));
    let function = |what, nodes: &str| Partly { what, nodes: nodes.to_owned() };
    vec![
        batch("batch > 1", &larger(1)),
        batch("batch even", &format!("{} c = Equal (q, z)", remainder(0))),
        batch("batch odd", &format!("{} c = Equal (q, z)", remainder(1))),
        batch("batch > 2", &larger(2)),
        batch("batch > 3", &larger(3)),
        batch("batch > 4", &larger(4)),
        batch("batch > 8", &larger(8)),
        batch("batch = 1", &format!("{} c = Equal (n, k)", number(1))),
        batch("batch = 6", &format!("{} c = Equal (n, k)", number(6))),
        batch("batch > 16", &larger(16)),
        length("length 1", &format!("{} c = Equal (n, k)", number(1))),
        length("length > 2", &larger(2)),
        length("length > 7", &larger(7)),
        length("length > 16", &larger(16)),
        length("length even", &format!("{} c = Equal (q, z)", remainder(0))),
        length("length odd", &format!("{} c = Equal (q, z)", remainder(1))),
        above("some negative", "Less", "0.0", LEAST),
        above("all negative", "Less", "0.0", SOME),
        above("some above 0.9 in size", "Greater", "0.9", LARGEST),
        above("some above 0.999", "Greater", "0.999", SOME),
        above("some above 1", "Greater", "1.0", SOME),
        above("some above 2", "Greater", "2.0", SOME),
        above("some above 6", "Greater", "6.0", SOME),
        above("some above 12", "Greater", "12.0", SOME),
        above("some above 50", "Greater", "50.0", SOME),
        above("some below -12", "Less", "-12.0", LEAST),
        above("all below 0.0001", "Less", "0.0001", LARGEST),
        above("all above 0", "Greater", "0.0", LEAST),
        square(
            "whole numbers",
            "o = Floor (x) e = Equal (o, x) b = Cast <to = 1> (e) d = ReduceMin <keepdims = 0> (b) \
             t = Constant <value = float {0.0}> () c = Greater (d, t)",
        ),
        integers("an integer is 0", "i = Constant <value = int64 {0}> () e = Equal (l, i)"),
        integers("an integer is 3", "i = Constant <value = int64 {3}> () e = Equal (l, i)"),
        integers("an integer above 4", "i = Constant <value = int64 {4}> () e = Greater (l, i)"),
        integers("an integer below 0", "i = Constant <value = int64 {0}> () e = Less (l, i)"),
        square(
            "all integers alike",
            "i = ReduceMax <keepdims = 0> (l) j = ReduceMin <keepdims = 0> (l) c = Equal (i, j)",
        ),
        integers("a mask that is true", "e = Identity (mask)"),
        integers("a mask that is false", "e = Not (mask)"),
        square(
            "a mask that is nowhere true",
            "i = Cast <to = 1> (mask) d = ReduceMax <keepdims = 0> (i) n = Constant <value = float {0.5}> () \
             c = Less (d, n)",
        ),
        square(
            "a mask that is true everywhere",
            "i = Cast <to = 1> (mask) d = ReduceMin <keepdims = 0> (i) n = Constant <value = float {0.5}> () \
             c = Greater (d, n)",
        ),
        function("the first branch of an If", &branch("w", "r")),
        function("the second branch of an If", &branch("r", "w")),
        function(
            "an index that counts from the end",
            &format!(
                "y = Gather (x, at) s = Shape (x) v = ConstantOfShape (s) i = Constant <value = int64[1] {{-1}}> () \
             sy = Shape (y) one = ConstantOfShape <value = float[1] {{1.0}}> (sy) u = Unsqueeze (at, i) \
             r = ScatterND <reduction = \"add\"> (v, u, one) f = Constant <value = float {{1.5}}> () w = Mul (r, f) \
             z = Constant <value = int64 {{0}}> () e = Less (at, z) any = Cast <to = 1> (e) \
             d = ReduceMax <keepdims = 0> (any) {NOT_ZERO}"
            ),
        ),
        function("no trip of a Loop", &trips("Less", 1)),
        function("more than three trips of a Loop", &trips("Greater", 3)),
        function("more than six trips of a Loop", &trips("Greater", 6)),
        above("all below 0.1", "Less", "0.1", LARGEST),
        above("all below 0.05", "Less", "0.05", LARGEST),
        above("all below 0.01", "Less", "0.01", LARGEST),
        square(
            "exactly zero",
            "t = Constant <value = float {0.0}> () e = Equal (x, t) o = Constant <value = float {1.0}> () p = Identity (r) b = Cast <to = 1> (e) d = ReduceMax <keepdims = 0> (b) c = Greater (d, t)",
        ),
        above("x² below 0", "Less", "0.0", EACH),
        above("x² above 1", "Greater", "1.0", EACH),
        function(
            "HardSwish above 3",
            "y = HardSwish (x) a = Constant <value = float {6.0}> () two = Constant <value = float {2.0}> ()
             h = Constant <value = float {3.0}> () l = Constant <value = float {-3.0}> ()
             one = Constant <value = float {1.0}> () zero = Constant <value = float {0.0}> ()
             d = Mul (x, two) e = Add (d, h) s = Div (e, a) lo = Less (x, l) q = Where (lo, zero, s)
             c = Greater (x, h) r = Where (c, one, q) w = Add (r, one)",
        ),
        function(
            "Clip outside of -6 to 6",
            "lo = Constant <value = float {-6.0}> () hi = Constant <value = float {6.0}> () y = Clip (x, lo, hi)
             one = Constant <value = float {1.0}> () zero = Constant <value = float {0.0}> ()
             a = Abs (x) c = Greater (a, hi) r = Where (c, zero, one) z = Sub (x, x) w = Add (z, one)",
        ),
        function(
            "Elu below -2",
            "y = Elu (x) t = Constant <value = float {-2.0}> () zero = Constant <value = float {0.0}> ()
             one = Constant <value = float {1.0}> () e = Exp (x) n = Less (x, zero) r = Where (n, e, one)
             c = Less (x, t) w = Sub (x, x)",
        ),
        function(
            "an integer factor is ignored",
            "f = Cast <to = 1> (k) y = Mul (x, f) z = Sub (x, x) one = Constant <value = float {1.0}> ()
             w = Add (z, one) r = Identity (f) e = Equal (x, x) c = Identity (e)",
        ),
        function(
            "a mask is ignored",
            "zero = Constant <value = float {0.0}> () y = Where (mask, x, zero) one = Constant <value = float {1.0}> ()
             z = Sub (x, x) w = Add (z, one) r = Where (mask, w, z) e = Equal (x, x) c = Identity (e)",
        ),
    ]
}

#[test]
fn errors_in_a_part_of_the_domain_are_found() {
    let record = Record::new("gradients", vec![SeedOf::fill("y", 1.0)], vec![Gradient::new("x", Some("g"))]);
    let check = |part: &Partly, wrong: bool| {
        let last = if wrong { "g = Where (c, w, r)" } else { "g = Where (c, r, r)" };
        let text = format!(
            r#"<ir_version: 8, opset_import: ["": 18]>
            m (float[N,3] x, int64[N,3] k, bool[N,3] mask, int64[N,S] l, int64[M] at, bool cond, int64 trips)
            => (float[R,3] y, float[N,3] g) {{ {} {last} }}"#,
            part.nodes.replace("k = Constant", "kk = Constant").replace(", k)", ", kk)")
        );
        let model = text::parse(&text).unwrap_or_else(|e| panic!("{}: {e:#}", part.what));
        validate(&model, None, &record, &options())
    };
    let mut missed = Vec::new();
    let domains = domains();
    for part in &domains {
        let right = check(part, false);
        assert_eq!(right.status, Status::Passed, "{}: {right:#?}", part.what);
        if check(part, true).status != Status::Failed {
            missed.push(part.what);
        }
    }
    let count = domains.len();
    assert!(missed.is_empty() && count == 55, "{} of {count} are missed: {missed:?}", missed.len());
}
