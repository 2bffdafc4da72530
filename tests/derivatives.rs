//! Derivatives beside gradients: numbers that are known, and what is refused.
#![cfg(feature = "validate")]

use onnx_gradients::derivatives::{Derived, Hessian, Hvp, Jacobian, Jvp, Mode, Vjp, evidence};
use onnx_gradients::onnx::{ElementType, TensorProto, text};
use onnx_gradients::validate::{Options, Status, run, validate};
use onnx_gradients::{Gradients, Model, Unconnected};
use std::collections::BTreeMap;

fn model(graph: &str) -> Model {
    Model::from(text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap())
}

fn call(ys: &[&str], xs: &[&str]) -> Gradients {
    Gradients::new(ys.iter().copied(), xs.iter().copied())
}

/// The outputs of a model for inputs in float64, each with its shape.
fn compute(derived: &Derived, feeds: &[(&str, &[i64], &[f64])]) -> BTreeMap<String, (Vec<i64>, Vec<f64>)> {
    let feed = |(name, dims, values): &(&str, &[i64], &[f64])| {
        ((*name).to_owned(), TensorProto::from_floats(ElementType::Double, dims, values).unwrap())
    };
    let computed = run(&derived.model.proto, &feeds.iter().map(feed).collect()).unwrap();
    computed.into_iter().map(|(name, t)| (name, (t.dims.clone(), t.floats().unwrap()))).collect()
}

fn close(found: &(Vec<i64>, Vec<f64>), dims: &[i64], expected: &[f64]) {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * b.abs().max(1.0);
    let same = found.1.len() == expected.len() && found.1.iter().zip(expected).all(near);
    assert!(found.0 == dims && same, "{found:?}, not {dims:?} {expected:?}");
}

/// Everything that the model claims agrees with finite differences.
fn holds(derived: &Derived) {
    let evidence = evidence(&derived.model).unwrap();
    assert!(!evidence.records.is_empty());
    for record in evidence.records {
        let validation = validate(&evidence.model.proto, None, &record, &Options::default());
        assert_eq!(validation.status, Status::Passed, "{validation:?}");
        assert!(validation.gradients.iter().all(|g| g.compared), "{validation:?}");
    }
}

fn refused(built: anyhow::Result<Derived>, expected: &str) {
    let error = format!("{:#}", built.map(|d| d.outputs).unwrap_err());
    assert!(error.contains(expected), "{error}");
}

/// `y = a² b` for each of two samples.
const CUBIC: &str = "g (double[N,2] x) => (double[N,1] y) <int64[1] i = {0}, int64[1] j = {1}> {
    a = Gather<axis=1>(x, i)  b = Gather<axis=1>(x, j)  aa = Mul(a, a)  y = Mul(aa, b)
}";

#[test]
fn products_of_a_cubic() {
    let x: (&str, &[i64], &[f64]) = ("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let jvp = Jvp::from(call(&["y"], &["x"])).build(&model(CUBIC)).unwrap();
    let found = compute(&jvp, &[x, ("jvp/v/x", &[2, 2], &[1.0, 0.0, 0.5, 1.0])]);
    close(&found["jvp/y"], &[2, 1], &[4.0, 21.0]);
    holds(&jvp);
    let vjp = Vjp::from(call(&["y"], &["x"])).build(&model(CUBIC)).unwrap();
    let found = compute(&vjp, &[x, ("vjp/v/y", &[2, 1], &[1.0, 2.0])]);
    close(&found["vjp/x"], &[2, 2], &[4.0, 1.0, 48.0, 18.0]);
    holds(&vjp);
    let hvp = Hvp::from(call(&["y"], &["x"])).build(&model(CUBIC)).unwrap();
    let found = compute(&hvp, &[x, ("hvp/v/x", &[2, 2], &[1.0, 0.0, 1.0, 1.0])]);
    close(&found["hvp/x"], &[2, 2], &[4.0, 2.0, 14.0, 6.0]);
    holds(&hvp);
}

#[test]
fn a_product_with_the_jacobian_is_one_more_pass() {
    let graph = "g (float[N,8] x, float[8,8] v, float[8,8] w) => (float[N,8] y) {
        a = MatMul(x, v)  h = Tanh(a)  y = MatMul(h, w)
    }";
    let jvp = Jvp::from(call(&["y"], &["x"])).build(&model(graph)).unwrap();
    let products = |derived: &Derived| {
        let nodes = &derived.model.proto.graph.as_ref().unwrap().node;
        nodes.iter().filter(|n| n.op_type() == "MatMul").count()
    };
    assert_eq!(products(&jvp), 4, "two of the model, two along the vector");
    let hvp = Hvp::from(call(&["y"], &["x"])).build(&model(graph)).unwrap();
    assert!(products(&hvp) <= 8, "{} products, of which a gradient has 4", products(&hvp));
}

#[test]
fn a_derivative_of_a_derivative() {
    // The Jacobian of x³ times u, along v again: 6 x u v.
    let graph = "g (double[3] x) => (double[3] y) { xx = Mul(x, x) y = Mul(xx, x) }";
    let first = Jvp::from(call(&["y"], &["x"])).build(&model(graph)).unwrap();
    let second = Jvp::from(call(&["jvp/y"], &["x"])).build(&first.model).unwrap();
    assert_eq!(second.outputs[0].name.as_deref(), Some("jvp_1/jvp/y"));
    let found = compute(
        &second,
        &[("x", &[3], &[1.0, 2.0, 3.0]), ("jvp/v/x", &[3], &[1.0, 1.0, 2.0]), ("jvp_1/v/x", &[3], &[1.0, 3.0, 1.0])],
    );
    close(&found["jvp_1/jvp/y"], &[3], &[6.0, 36.0, 36.0]);
    holds(&second);
}

#[test]
fn what_does_not_depend_has_no_derivative() {
    let graph = "g (double[3] x, double[3] w) => (double[3] y) { y = Add(x, w) }";
    let hvp = Hvp::from(call(&["y"], &["x"])).build(&model(graph)).unwrap();
    assert_eq!(hvp.outputs[0].name, None);
    let hvp = Hvp::from(call(&["y"], &["x"]).unconnected(Unconnected::Zero)).build(&model(graph)).unwrap();
    let found = compute(&hvp, &[("x", &[3], &[1.0; 3]), ("w", &[3], &[1.0; 3]), ("hvp/v/x", &[3], &[1.0; 3])]);
    close(&found["hvp/x"], &[3], &[0.0; 3]);
}

#[test]
fn stops_count_as_constants_in_every_order() {
    let graph = "g (double[3] x) => (double[3] y) { h = Mul(x, x) y = Mul(h, x) }";
    let jvp = Jvp::from(call(&["y"], &["x"]).stop(["h"])).build(&model(graph)).unwrap();
    let found = compute(&jvp, &[("x", &[3], &[1.0, 2.0, 3.0]), ("jvp/v/x", &[3], &[1.0; 3])]);
    close(&found["jvp/y"], &[3], &[1.0, 4.0, 9.0]);
}

#[test]
fn only_the_derivatives_may_be_kept() {
    let call = call(&["y"], &["x"]).only_gradients(true);
    let jvp = Jvp::from(call).build(&model(CUBIC)).unwrap();
    let outputs: Vec<&str> = jvp.model.proto.graph.as_ref().unwrap().output.iter().map(|o| o.name()).collect();
    assert_eq!(outputs, ["jvp/y"]);
}

#[test]
fn what_is_asked_for_makes_sense() {
    let graph = "g (double[3] x, int64[3] i) => (double[3] y, int64[3] k) {
        h = Mul(x, x)  y = Exp(h)  k = Mul(i, i)
    }";
    let jvp = |ys: &[&str], xs: &[&str]| Jvp::from(call(ys, xs)).build(&model(graph));
    refused(jvp(&["k"], &["x"]), "'k' is of type int64, and only real numbers have derivatives");
    refused(jvp(&["y"], &["i"]), "'i' is of type int64, and only real numbers have derivatives");
    refused(jvp(&["y"], &["x", "h"]), "xs overlap: 'h' depends on 'x'");
    refused(jvp(&["y"], &["x", "x"]), "'x' is named twice");
    refused(jvp(&["y"], &["X"]), "did you mean 'x'?");
    refused(jvp(&["y"], &[]), "no xs are given");
}

#[test]
fn xs_may_depend_on_each_other_where_a_stop_parts_them() {
    let graph = "g (double[3] x) => (double[3] y) { h = Mul(x, x)  y = Exp(h) }";
    let apart = Jvp::from(call(&["y"], &["x", "h"]).stop(["h"])).build(&model(graph)).unwrap();
    let feeds: [(&str, &[i64], &[f64]); 2] = [("x", &[3], &[1.0; 3]), ("jvp/v/h", &[3], &[1.0; 3])];
    let mut feeds = feeds.to_vec();
    feeds.push(("jvp/v/x", &[3], &[1.0; 3]));
    let found = compute(&apart, &feeds);
    close(&found["jvp/y"], &[3], &[1f64.exp(); 3]);
}

/// Every mode, with samples apart and not: `y = (a² b, a + b³)`.
#[test]
fn jacobians_of_two_outputs() {
    let graph = "g (double[N,2] x) => (double[N,2] y) <int64[1] i = {0}, int64[1] j = {1}> {
        a = Gather<axis=1>(x, i)  b = Gather<axis=1>(x, j)  aa = Mul(a, a)  p = Mul(aa, b)
        bb = Mul(b, b)  bbb = Mul(bb, b)  q = Add(a, bbb)  y = Concat<axis=1>(p, q)
    }";
    let x: (&str, &[i64], &[f64]) = ("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let [first, second] = [[4.0, 1.0, 1.0, 12.0], [24.0, 9.0, 1.0, 48.0]];
    for mode in [Mode::Auto, Mode::Forward, Mode::Reverse] {
        let each = Jacobian::from(call(&["y"], &["x"])).mode(mode).batch(0).build(&model(graph)).unwrap();
        let found = compute(&each, &[x]);
        close(&found["jacobian/y/x"], &[2, 2, 2], &[first, second].concat());
        holds(&each);
        let whole = Jacobian::from(call(&["y"], &["x"])).mode(mode).build(&model(graph)).unwrap();
        let found = compute(&whole, &[x]);
        let mut expected = vec![0.0; 16];
        for (k, entries) in [first, second].iter().enumerate() {
            for (i, value) in entries.iter().enumerate() {
                expected[k * 8 + (i / 2) * 4 + k * 2 + i % 2] = *value;
            }
        }
        close(&found["jacobian/y/x"], &[2, 2, 2, 2], &expected);
        holds(&whole);
    }
}

#[test]
fn hessians_of_a_cubic() {
    let x: (&str, &[i64], &[f64]) = ("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let [first, second] = [[4.0, 2.0, 2.0, 0.0], [8.0, 6.0, 6.0, 0.0]];
    for mode in [Mode::Auto, Mode::Forward, Mode::Reverse] {
        let hessian = || Hessian::from(call(&["y"], &["x"])).mode(mode);
        let each = hessian().batch(0).build(&model(CUBIC)).unwrap();
        close(&compute(&each, &[x])["hessian/x/x"], &[2, 2, 2], &[first, second].concat());
        holds(&each);
        let whole = hessian().build(&model(CUBIC)).unwrap();
        let found = &compute(&whole, &[x])["hessian/x/x"];
        assert_eq!(found.1.iter().sum::<f64>(), 28.0);
        holds(&whole);
        for diagonal in [hessian().diagonal(true), hessian().diagonal(true).batch(0)] {
            let diagonal = diagonal.build(&model(CUBIC)).unwrap();
            close(&compute(&diagonal, &[x])["hessian/x"], &[2, 2], &[4.0, 0.0, 8.0, 0.0]);
            holds(&diagonal);
        }
    }
}

#[test]
fn matrices_of_tensors_of_any_rank_and_axis() {
    // Samples along the last axis of y and the first but one of x; more elements than are written out one by one.
    let graph = "g (double[3,N,4] x, double[4,5] w) => (double[3,N,5] y) { a = MatMul(x, w) y = Tanh(a) }";
    for mode in [Mode::Forward, Mode::Reverse] {
        for batch in [Some(1), Some(-2), None] {
            let request = Jacobian::from(call(&["y"], &["x"])).mode(mode);
            let request = if let Some(axis) = batch { request.batch(axis) } else { request };
            let built = request.build(&model(graph)).unwrap();
            let shape = &built.model.output_types()["jacobian/y/x"];
            let expected = if batch.is_some() { "double[3,N,5,3,4]" } else { "double[3,N,5,3,N,4]" };
            assert_eq!(shape, expected);
            holds(&built);
        }
    }
    let hessian = Hessian::from(call(&["y"], &["x", "w"])).build(&model(graph)).unwrap();
    assert_eq!(hessian.outputs.len(), 4);
    holds(&hessian);
}

#[test]
fn samples_that_mix_fail_the_check() {
    let graph = "g (double[N,3] x) => (double[N,3] y) { m = ReduceMean<axes=[0]>(x)  c = Sub(x, m)  y = Mul(c, c) }";
    let built = Jacobian::from(call(&["y"], &["x"])).batch(0).build(&model(graph)).unwrap();
    let evidence = evidence(&built.model).unwrap();
    let validation = validate(&evidence.model.proto, None, &evidence.records[0], &Options::default());
    assert_eq!(validation.status, Status::Failed);
    assert!(evidence.hints["jacobian"].contains("if samples mix along axis 0"));
}

#[test]
fn matrices_that_no_memory_holds_are_refused() {
    let graph = "g (float[1000,1000] x) => (float[1000,1000] y) { y = Tanh(x) }";
    let built = Jacobian::from(call(&["y"], &["x"])).build(&model(graph));
    refused(built, "'y' and 'x': a result of shape [1000, 1000, 1000, 1000] takes 4000.0 GB");
    let built = Hessian::from(call(&["y"], &["x"])).diagonal(true).build(&model(graph));
    assert!(built.is_ok());
    let graph = "g (float[5,3] x, float[3,4] w) => (float[5,4] y) { y = MatMul(x, w) }";
    let built = Jacobian::from(call(&["y"], &["x", "w"])).batch(0).build(&model(graph));
    refused(built, "'y' and 'w': there are 5 samples along axis 0 of the one and 3 along that of the other");
}
