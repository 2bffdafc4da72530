//! `Gradient` nodes of ai.onnx.preview.training become plain ONNX that computes what their specification says.

use onnx_gradients::onnx::text;
use onnx_gradients::{Lowered, Model};

/// A model at opset 17 that may hold Gradient nodes, from its graph in text syntax.
fn model(graph: &str) -> Model {
    let header = r#"<ir_version: 8, opset_import: ["": 17, "ai.onnx.preview.training": 1]>"#;
    text::parse(&format!("{header}\n{graph}").replace("Gradient", "ai.onnx.preview.training.Gradient")).unwrap().into()
}

fn lowered(graph: &str) -> Lowered {
    let lowered = model(graph).lower_gradients().unwrap();
    let proto = &lowered.model.proto;
    let nodes = &proto.graph.as_ref().unwrap().node;
    assert!(nodes.iter().all(|n| n.domain().is_empty()), "{}", text::print_nodes(nodes));
    assert_eq!(proto.opset("ai.onnx.preview.training"), None);
    onnx_gradients::internals::load(proto).unwrap();
    lowered
}

fn error(graph: &str) -> String {
    format!("{:#}", model(graph).lower_gradients().unwrap_err())
}

#[test]
fn gradients_stand_where_the_node_stood() {
    let graph = r#"g (float x) => (float y, float z) {
        y = Mul(x, x)
        [d] dx = Gradient<xs = ["x"], y = "y">(x)
        z = Mul(dx, x)
    }"#;
    let lowered = lowered(graph);
    let nodes = &lowered.model.proto.graph.as_ref().unwrap().node;
    let producer = |name: &str| nodes.iter().position(|n| n.output.contains(&name.to_owned())).unwrap();
    assert!(producer("y") < producer("dx") && producer("dx") < producer("z"));
    assert_eq!(producer("z") + 1, nodes.len());
    assert!(nodes[1..nodes.len() - 1].iter().all(|n| n.name().starts_with("d/")));
    assert_eq!(lowered.nodes_added, nodes.len() - 2);
    assert_eq!(lowered.nodes[0].copied, 0);
}

#[test]
fn nothing_else_changes() {
    let mut plain = model("g (float x) => (float y) { y = Mul(x, x) }");
    assert_eq!(
        plain.lower_gradients().unwrap().model.proto,
        plain.proto,
        "without a Gradient node not even the domain"
    );
    let graph = "g (float x) => (float y, float dx) { y = Mul(x, x) dx = Gradient<xs = [\"x\"], y = \"y\">(x) }";
    let before = model(graph).proto;
    let mut after = lowered(graph).model.proto;
    plain = before.clone().into();
    plain.proto.graph.as_mut().unwrap().node.truncate(1);
    after.graph.as_mut().unwrap().node.truncate(1);
    after.opset_import = before.opset_import.clone();
    assert_eq!(after, plain.proto);
}

#[test]
fn the_domain_stays_where_it_is_needed() {
    let graph = r#"g (float x, float r, int64 t) => (float dx, float n) {
        y = Mul(x, x)
        dx = Gradient<xs = ["x"], y = "y">(x)
        n, v = ai.onnx.preview.training.Momentum<alpha = 0.9, beta = 0.1, mode = "standard", norm_coefficient = 0.0>(r, t, x, dx, x)
    }"#;
    let lowered = model(graph).lower_gradients().unwrap();
    assert_eq!(lowered.model.proto.opset("ai.onnx.preview.training"), Some(1));
}

#[test]
fn outputs_may_be_left_out() {
    let graph = r#"g (float a, float b) => (float db) {
        y = Mul(a, b)
        , db = Gradient<xs = ["a", "b"], y = "y">(a, b)
    }"#;
    let lowered = lowered(graph);
    let gradients: Vec<_> = lowered.nodes[0].gradients.iter().map(|g| g.name.as_deref()).collect();
    assert_eq!(gradients, [None, Some("db")]);
}

#[test]
fn a_gradient_node_is_lowered_before_it_is_differentiated() {
    let model = model(r#"g (float x) => (float dx) { y = Mul(x, x) dx = Gradient<xs = ["x"], y = "y">(x) }"#);
    let call = onnx_gradients::Gradients::new(["dx"], ["x"]);
    let message = call.build(&model).unwrap_err().to_string();
    assert!(message.contains("write Gradient nodes out first (grad --lower)"), "{message}");
    assert!(call.build(&model.lower_gradients().unwrap().model).is_ok());
}

#[test]
fn what_cannot_be_lowered_is_an_error() {
    let one = |node: &str| error(&format!("g (float x, float u, int64 i) => (float y) {{ y = Mul(x, x) {node} }}"));
    for (node, message) in [
        (
            r#"[d] q = Gradient<xs = ["x"], y = "yy">(x)"#,
            "node 'd' (Gradient): y: no tensor is called 'yy'; did you mean 'y'?",
        ),
        (r#"q = Gradient<xs = ["w"], y = "y">(x)"#, "xs: no tensor is called 'w'"),
        (r#"q = Gradient<xs = ["x"], zs = ["w"], y = "y">(x, u)"#, "zs: no tensor is called 'w'"),
        (r#"q = Gradient<xs = ["u"], y = "y">(u)"#, "y does not depend on any of its xs"),
        (r#"q = Gradient<xs = ["x"], y = "y">(x, u)"#, "2 inputs are given for 1 names in xs and zs"),
        (r#"q, r = Gradient<xs = ["x"], y = "y">(x)"#, "2 outputs are asked for of 1 xs"),
        (r#"q = Gradient<xs = ["x"], y = "y">(i)"#, "input 'i' is of type int64, 'x' of type float"),
        (r#"q = Gradient<xs = ["i"], y = "y">(i)"#, "x 'i' is not of a floating-point type"),
        (r#"q = Gradient<xs = ["x"], zs = ["x"], y = "y">(x, x)"#, "'x' is a variable twice"),
        (r#"q = Gradient<xs = ["x"]>(x)"#, "attribute 'y' names no tensor"),
        (r#"q = Gradient<y = "y">(x)"#, "attribute 'xs' names no tensors"),
        (r#"v = Foo(x) q = Gradient<xs = ["x"], y = "v">(x)"#, "no gradient is known for Foo"),
        (
            r#"[d] q = Gradient<xs = ["x"], y = "v">(x) v = Mul(q, x)"#,
            "node 'd' (Gradient): what it differentiates depends on its own outputs",
        ),
    ] {
        let found = one(node);
        assert!(found.contains(message), "{node}: {found}");
    }
    let inside = r#"g (float x, bool c) => (float y) {
        z = Mul(x, x)
        [choice] y = If(c) <then_branch = t () => (float a) { a = Gradient<xs = ["x"], y = "z">(x) },
                   else_branch = e () => (float b) { b = Identity(x) }>
    }"#;
    let found = error(inside);
    assert!(found.contains("node 'choice' (If) holds a Gradient node in its body"), "{found}");
}

#[cfg(feature = "validate")]
mod numbers {
    use super::lowered;
    use onnx_gradients::onnx::{ElementType, TensorProto};
    use onnx_gradients::validate::run;

    /// The outputs of a model after lowering, for inputs without dimensions or with one.
    fn values(graph: &str, feeds: &[(&str, &[f64])], outputs: &[&str]) -> Vec<Vec<f64>> {
        let tensor = |v: &[f64]| match v {
            [one] => TensorProto::from_floats(ElementType::Float, &[], &[*one]).unwrap(),
            many => TensorProto::from_floats(ElementType::Float, &[many.len() as i64], many).unwrap(),
        };
        let feeds = feeds.iter().map(|(name, v)| ((*name).to_owned(), tensor(v))).collect();
        let computed = run(&lowered(graph).model.proto, &feeds).unwrap();
        outputs.iter().map(|o| computed[*o].floats().unwrap()).collect()
    }

    #[test]
    fn first_order() {
        let graph = r#"g (float a, float b) => (float y, float da, float db) {
            c = Mul(a, b)
            y = Mul(c, a)
            da, db = Gradient<xs = ["a", "b"], y = "y">(a, b)
        }"#;
        assert_eq!(values(graph, &[("a", &[3.0]), ("b", &[5.0])], &["y", "da", "db"]), [[45.0], [30.0], [9.0]]);
    }

    #[test]
    fn second_order() {
        // y = w³ x: dy/dw = 3w²x, d²y/dw² = 6wx, d²y/dw dx = 3w², d³y/dw³ = 6x.
        let graph = r#"g (float w, float x) => (float dw, float dww, float dwx, float dwww) {
            w2 = Mul(w, w) w3 = Mul(w2, w) y = Mul(w3, x)
            [first] dw = Gradient<xs = ["w"], zs = ["x"], y = "y">(w, x)
            [second] dww, dwx = Gradient<xs = ["w", "x"], y = "dw">(w, x)
            [third] dwww = Gradient<xs = ["w"], zs = ["x"], y = "dww">(w, x)
        }"#;
        let found = values(graph, &[("w", &[2.0]), ("x", &[5.0])], &["dw", "dww", "dwx", "dwww"]);
        assert_eq!(found, [[60.0], [60.0], [12.0], [30.0]]);
    }

    #[test]
    fn what_is_computed_from_a_gradient_is_differentiated() {
        // The penalty p = (dy/dx)² of y = x³ is 9x⁴, its derivative 36x³.
        let graph = r#"g (float x) => (float p, float dp) {
            x2 = Mul(x, x) y = Mul(x2, x)
            dx = Gradient<xs = ["x"], y = "y">(x)
            p = Mul(dx, dx)
            dp = Gradient<xs = ["x"], y = "p">(x)
        }"#;
        assert_eq!(values(graph, &[("x", &[2.0])], &["p", "dp"]), [[144.0], [288.0]]);
    }

    #[test]
    fn a_node_may_stand_before_its_y() {
        let graph = r#"g (float x) => (float y, float dx, float ddx) {
            ddx = Gradient<xs = ["x"], y = "dx">(x)
            dx = Gradient<xs = ["x"], y = "y">(x)
            x2 = Mul(x, x)
            y = Mul(x2, x)
        }"#;
        assert_eq!(values(graph, &[("x", &[2.0])], &["y", "dx", "ddx"]), [[8.0], [12.0], [12.0]]);
    }

    #[test]
    fn variables_are_independent() {
        // h = 2a is a variable itself: y = a h has dy/da = h, as z it is held constant, as x it gets a.
        let graph = |xs: &str| {
            format!(
                r#"g (float a) => (float d, float e) <float two = {{2}}> {{
                    h = Mul(a, two) y = Mul(a, h)
                    d = Gradient<xs = ["a"], zs = ["h"], y = "y">(a, h)
                    e = Gradient<xs = ["h"{xs}>(h, a)
                }}"#
            )
        };
        for xs in [r#", "a"], y = "y""#, r#"], zs = ["a"], y = "y""#] {
            assert_eq!(values(&graph(xs), &[("a", &[3.0])], &["d", "e"]), [[6.0], [3.0]]);
        }
    }

    #[test]
    fn an_output_of_a_node_that_is_a_variable_cuts_there_only() {
        let graph = r#"g (float[2] x) => (float[2] dx, float[1] da) {
            a, b = Split<axis = 0>(x)
            y = Mul(a, b)
            dx = Gradient<xs = ["x"], zs = ["a"], y = "y">(x, a)
            da = Gradient<xs = ["a"], y = "y">(b)
        }"#;
        let found = values(graph, &[("x", &[3.0, 5.0])], &["dx", "da"]);
        assert_eq!(found, [vec![0.0, 3.0], vec![5.0]]);
    }

    #[test]
    fn other_inputs_than_the_named_tensors() {
        // y = exp(a²) b, at a = u and b = v, and y of the graph as it was.
        let graph = r#"g (float a, float b, float u, float v) => (float y, float da, float db) {
            a2 = Mul(a, a) e = Exp(a2) y = Mul(e, b)
            da, db = Gradient<xs = ["a", "b"], y = "y">(u, v)
        }"#;
        let at = |a: f64, b: f64| (a * a).exp() * b;
        let (u, v, h) = (0.5, 2.0, 1e-6);
        let found = values(graph, &[("a", &[1.0]), ("b", &[3.0]), ("u", &[u]), ("v", &[v])], &["y", "da", "db"]);
        let expected =
            [at(1.0, 3.0), (at(u + h, v) - at(u - h, v)) / (2.0 * h), (at(u, v + h) - at(u, v - h)) / (2.0 * h)];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found[0] - expected).abs() < 1e-5 * expected, "{found:?} {expected}");
        }
    }

    #[test]
    fn inputs_that_are_variables_of_another_name() {
        // y = a² b with a and b exchanged, both the same, or one in the place of the other.
        let graph = |inputs: &str| {
            format!(
                r#"g (float a, float b) => (float da, float db) {{
                    c = Mul(a, a) y = Mul(c, b)
                    da, db = Gradient<xs = ["a", "b"], y = "y">({inputs})
                }}"#
            )
        };
        for (inputs, expected) in
            [("a, b", [30.0, 9.0]), ("b, a", [30.0, 25.0]), ("b, b", [50.0, 25.0]), ("a, a", [18.0, 9.0])]
        {
            let found = values(&graph(inputs), &[("a", &[3.0]), ("b", &[5.0])], &["da", "db"]);
            assert_eq!(found, expected.map(|v| vec![v]), "{inputs}");
        }
        // An input that is computed from another variable is a value all the same.
        let graph = r#"g (float a, float b) => (float da) <float two = {2}> {
            y = Mul(a, b) t = Mul(a, two)
            da = Gradient<xs = ["a"], zs = ["b"], y = "y">(a, t)
        }"#;
        assert_eq!(values(graph, &[("a", &[3.0]), ("b", &[5.0])], &["da"]), [[6.0]]);
    }

    #[test]
    fn bodies_are_copied_with_what_they_capture() {
        let graph = r#"g (float x, float u, bool c) => (float dx) {
            t = Exp(x)
            y = If(c) <then_branch = th () => (float p) { p = Mul(x, t) }, else_branch = el () => (float q) { q = Mul(x, x) }>
            dx = Gradient<xs = ["x"], y = "y">(u)
        }"#;
        let proto = lowered(graph).model.proto;
        let feed = |v: f64| TensorProto::from_floats(ElementType::Float, &[], &[v]).unwrap();
        for (c, expected) in [(1, 1.5 * 0.5f64.exp()), (0, 1.0)] {
            let condition = TensorProto::from_ints(ElementType::Bool, &[], &[c]).unwrap();
            let feeds = [("x", feed(7.0)), ("u", feed(0.5)), ("c", condition)].map(|(n, t)| (n.to_owned(), t));
            let found = run(&proto, &feeds.into_iter().collect()).unwrap()["dx"].floats().unwrap();
            assert!((found[0] - expected).abs() < 1e-5, "{c}: {found:?}");
        }
    }

    #[test]
    fn a_variable_that_y_ignores_gets_zeros() {
        let graph = r#"g (float[2] x, float u) => (float[2] dx, float du) {
            y = Mul(x, x)
            dx, du = Gradient<xs = ["x", "u"], y = "y">(x, u)
        }"#;
        assert_eq!(values(graph, &[("x", &[3.0, 4.0]), ("u", &[1.0])], &["dx", "du"]), [vec![6.0, 8.0], vec![0.0]]);
        assert!(lowered(graph).warnings[0].contains("'y' does not depend on 'u'"));
    }

    #[test]
    fn gradients_that_are_tensors_of_the_model() {
        // da is b itself, and so is dc; y is a variable itself.
        let graph = r#"g (float a, float b, float c) => (float da, float dc, float one) {
            s = Add(a, c) y = Mul(s, b)
            da, dc = Gradient<xs = ["a", "c"], zs = ["b"], y = "y">(a, c, b)
            one = Gradient<xs = ["y"], y = "y">(y)
        }"#;
        let found = values(graph, &[("a", &[3.0]), ("b", &[5.0]), ("c", &[7.0])], &["da", "dc", "one"]);
        assert_eq!(found, [[5.0], [5.0], [1.0]]);
    }
}

#[test]
fn a_function_that_cannot_take_a_gradient_is_an_error() {
    let text = r#"<ir_version: 8, opset_import: ["": 17, "ai.onnx.preview.training": 1, "m": 1]>
        g (float[2,3] x) => (z) {
            y = Mul(x, x)
            dx = ai.onnx.preview.training.Gradient<xs = ["x"], y = "y">(x)
            z = m.F(dx, x)
        }
        <domain: "m", opset_import: ["": 17]> F (a, b) => (c) { c = MatMul(a, b) }"#;
    let error = Model::from(text::parse(text).unwrap()).lower_gradients().unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("a function of the model cannot take what a Gradient node computes"), "{message}");
}
