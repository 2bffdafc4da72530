//! Derivatives beside gradients: numbers that are known, and what is refused.
#![cfg(feature = "validate")]

use onnx_gradients::derivatives::{
    Attack, Class, Derived, Explain, Hessian, Hvp, Jacobian, Jvp, Kept, Method, Mode, PerSample, Steps, Vjp, evidence,
};
use onnx_gradients::onnx::proto::{
    ValueInfoProto, tensor_shape_proto::Dimension, tensor_shape_proto::dimension, type_proto,
};
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

/// The shape of an input, with that size where the run decides.
fn sizes(input: &ValueInfoProto, any: i64) -> Vec<i64> {
    let type_proto = input.r#type.as_ref().and_then(|t| t.value.as_ref()).unwrap();
    let type_proto::Value::TensorType(tensor) = type_proto else { panic!("{type_proto:?}") };
    let size = |d: &Dimension| match &d.value {
        Some(dimension::Value::DimValue(n)) => *n,
        _ => any,
    };
    tensor.shape.iter().flat_map(|s| &s.dim).map(size).collect()
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

fn refused(built: Result<Derived, onnx_gradients::Error>, expected: &str) {
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

/// What y is linear in has a gradient and no Hessian; its rows are not those of the x beside it.
#[test]
fn a_hessian_beside_what_is_linear() {
    let graph = "g (double[4] a, double[3] x) => (double[1] y) {
        s = ReduceSum(a) c = Mul(x, x) d = Mul(c, x) t = ReduceSum(d) u = Add(s, t) y = Reshape(u, one)
    }";
    let graph = graph.replace("=> (double[1] y)", "=> (double[1] y) <int64[1] one = {1}>");
    let x: (&str, &[i64], &[f64]) = ("x", &[3], &[1.0, 2.0, 3.0]);
    for mode in [Mode::Auto, Mode::Forward, Mode::Reverse] {
        let hessian = Hessian::from(call(&["y"], &["a", "x"])).mode(mode).build(&model(&graph)).unwrap();
        let found = compute(&hessian, &[("a", &[4], &[1.0; 4]), x]);
        close(&found["hessian/x/x"], &[3, 3], &[6.0, 0.0, 0.0, 0.0, 12.0, 0.0, 0.0, 0.0, 18.0]);
        holds(&hessian);
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

/// A small image classifier with weights that differ everywhere.
const CLASSIFIER: &str = "g (double[N,2,5,5] x) => (double[N,3] scores) <
        double[4,2,3,3] k = {0.3,-0.2,0.5,0.1,0.4,-0.6,0.2,0.7,-0.1,0.6,0.2,-0.3,0.8,-0.5,0.1,0.4,-0.2,0.3,
            -0.4,0.1,0.6,-0.7,0.2,0.5,0.3,-0.1,0.2,0.5,0.4,-0.2,0.1,0.3,-0.6,0.7,0.2,-0.4,
            0.2,0.6,-0.1,0.3,-0.5,0.4,0.1,0.2,0.8,-0.3,0.5,0.1,-0.2,0.6,0.4,-0.1,0.3,0.2,
            0.7,-0.4,0.2,0.1,0.5,0.3,-0.2,0.6,-0.1,0.4,0.2,0.3,-0.5,0.1,0.6,-0.3,0.2,0.8},
        double[4,3] w = {1.0,-0.5,0.25,0.3,0.8,-0.7,-0.9,0.4,0.6,0.2,-0.3,0.5}
    > { c = Conv<pads=[1,1,1,1]>(x, k)  a = Tanh(c)  p = GlobalAveragePool(a)  f = Flatten(p)  scores = MatMul(f, w) }";

fn image(samples: usize) -> (Vec<i64>, Vec<f64>) {
    let values = (0..samples * 50).map(|i| ((i as f64 + 1.0) * 0.618_033_988_749_895).fract() * 2.0 - 1.0);
    (vec![samples as i64, 2, 5, 5], values.collect())
}

fn explain(method: Method) -> Explain {
    Explain::new(call(&["scores"], &["x"]), method)
}

/// The gradient of the score of a class, from the general machinery.
fn score_gradient(class: usize) -> Vec<f64> {
    let vjp = Vjp::from(call(&["scores"], &["x"])).build(&model(CLASSIFIER)).unwrap();
    let (dims, x) = image(2);
    let mut seed = [0.0; 6];
    (seed[class], seed[3 + class]) = (1.0, 1.0);
    compute(&vjp, &[("x", &dims, &x), ("vjp/v/scores", &[2, 3], &seed)])["vjp/x"].1.clone()
}

#[test]
fn saliency_is_the_largest_slope_of_the_channels() {
    let g = score_gradient(1);
    let (dims, x) = image(2);
    let largest = |i: usize| g[i / 25 * 50 + i % 25].abs().max(g[i / 25 * 50 + 25 + i % 25].abs());
    let saliency = explain(Method::Saliency).class(Class::Number(1)).build(&model(CLASSIFIER)).unwrap();
    let expected: Vec<f64> = (0..50).map(largest).collect();
    close(&compute(&saliency, &[("x", &dims, &x)])["saliency/x"], &[2, 5, 5], &expected);
    let product = explain(Method::InputXGradient).class(Class::Number(1)).build(&model(CLASSIFIER)).unwrap();
    let expected: Vec<f64> = g.iter().zip(&x).map(|(g, x)| g * x).collect();
    close(&compute(&product, &[("x", &dims, &x)])["input-x-gradient/x"], &dims, &expected);
    // Without noise the mean gradient is the gradient.
    let smooth = explain(Method::SmoothGrad { samples: 3, noise: 0.0, seed: Some(1) }).class(Class::Number(1));
    let smooth = smooth.build(&model(CLASSIFIER)).unwrap();
    let expected: Vec<f64> = (0..50).map(largest).collect();
    close(&compute(&smooth, &[("x", &dims, &x)])["smooth-grad/x"], &[2, 5, 5], &expected);
}

#[test]
fn the_class_is_predicted_or_given() {
    let (dims, x) = image(2);
    let scores = |class: Class| {
        let built = explain(Method::InputXGradient).class(class).build(&model(CLASSIFIER)).unwrap();
        let mut feeds: BTreeMap<String, TensorProto> = BTreeMap::new();
        feeds.insert("x".to_owned(), TensorProto::from_floats(ElementType::Double, &dims, &x).unwrap());
        if class == Class::Input {
            let name = built.vectors[0].name.clone();
            feeds.insert(name, TensorProto::from_ints(ElementType::Int64, &[2], &[1, 1]).unwrap());
        }
        let found = run(&built.model.proto, &feeds).unwrap();
        (found["scores"].floats().unwrap(), found["input-x-gradient/x"].floats().unwrap())
    };
    assert_eq!(scores(Class::Input), scores(Class::Number(1)));
    let (values, predicted) = scores(Class::Predicted);
    for sample in 0..2 {
        let row = &values[sample * 3..sample * 3 + 3];
        let best = (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let of_best = scores(Class::Number(best as i64)).1;
        assert_eq!(predicted[sample * 50..sample * 50 + 50], of_best[sample * 50..sample * 50 + 50]);
    }
}

#[test]
fn integrated_gradients_sum_up_to_the_difference_of_the_scores() {
    let (dims, x) = image(2);
    let method = Method::IntegratedGradients { steps: 30, baseline: None };
    let built = explain(method).class(Class::Number(2)).build(&model(CLASSIFIER)).unwrap();
    let start: Vec<f64> = x.iter().map(|x| 0.3 - 0.2 * x).collect();
    let found = compute(&built, &[("x", &dims, &x), ("integrated-gradients/baseline/x", &dims, &start)]);
    let at_start = compute(&built, &[("x", &dims, &start), ("integrated-gradients/baseline/x", &dims, &start)]);
    for sample in 0..2 {
        let sum: f64 = found["integrated-gradients/x"].1[sample * 50..sample * 50 + 50].iter().sum();
        let difference = found["scores"].1[sample * 3 + 2] - at_start["scores"].1[sample * 3 + 2];
        assert!((sum - difference).abs() < 1e-9 && difference.abs() > 1e-3, "{sum} {difference}");
    }
}

#[test]
fn grad_cam_finds_its_layer() {
    let (dims, x) = image(2);
    let built = explain(Method::GradCam { layer: None }).class(Class::Number(0)).build(&model(CLASSIFIER)).unwrap();
    assert_eq!(built.outputs[1].x.as_deref(), Some("a"));
    let named = explain(Method::GradCam { layer: Some("a".into()) }).class(Class::Number(0));
    let named = named.build(&model(CLASSIFIER)).unwrap();
    let found = compute(&built, &[("x", &dims, &x)]);
    assert_eq!(found, compute(&named, &[("x", &dims, &x)]));
    // Behind a mean over 25 places each weight is w / 25; the layer has the image's size, which nothing enlarges.
    let a =
        Jvp::from(call(&["a"], &["x"])).build(&model(&CLASSIFIER.replace("scores) <", "scores, double a) <"))).unwrap();
    let a = compute(&a, &[("x", &dims, &x), ("jvp/v/x", &dims, &vec![0.0; 100])])["a"].1.clone();
    let cam = |i: usize| {
        let sum: f64 =
            [1.0, 0.3, -0.9, 0.2].iter().enumerate().map(|(k, w)| w * a[(i / 25 * 4 + k) * 25 + i % 25]).sum();
        (sum / 25.0).max(0.0)
    };
    let expected: Vec<f64> = (0..50).map(cam).collect();
    close(&found["grad-cam/layer"], &[2, 5, 5], &expected);
    close(&found["grad-cam/x"], &[2, 5, 5], &expected);
}

#[test]
fn examples_are_adversarial_and_close() {
    let (dims, x) = image(2);
    let labels = TensorProto::from_ints(ElementType::Int64, &[2], &[0, 2]).unwrap();
    let loss = |x: &[f64]| {
        let jvp = Jvp::from(call(&["scores"], &["x"])).build(&model(CLASSIFIER)).unwrap();
        let scores = compute(&jvp, &[("x", &dims, x), ("jvp/v/x", &dims, &vec![0.0; 100])])["scores"].1.clone();
        let nll = |row: &[f64], label: usize| row.iter().map(|s| s.exp()).sum::<f64>().ln() - row[label];
        nll(&scores[..3], 0) + nll(&scores[3..], 2)
    };
    let pgd = Steps::Pgd { count: 5, size: 0.04, random_start: None };
    let mut losses = vec![loss(&x)];
    for steps in [Steps::Fgsm, pgd, Steps::Pgd { count: 5, size: 0.04, random_start: Some(1) }] {
        let attack = Attack::new(call(&["scores"], &["x"]), steps, 0.1).range(-1.0, 0.95);
        let built = attack.build(&model(CLASSIFIER)).unwrap();
        let mut feeds: BTreeMap<String, TensorProto> = BTreeMap::new();
        feeds.insert("x".to_owned(), TensorProto::from_floats(ElementType::Double, &dims, &x).unwrap());
        feeds.insert(built.vectors[0].name.clone(), labels.clone());
        let found = run(&built.model.proto, &feeds).unwrap();
        let changed = found[built.outputs[0].name.as_ref().unwrap()].floats().unwrap();
        for (a, b) in changed.iter().zip(&x) {
            let limited = b.clamp(-1.0, 0.95);
            assert!((a - b).abs() <= 0.1 + 1e-12 || *a == limited, "{a} {b}");
            assert!((-1.0..=0.95).contains(a));
        }
        losses.push(loss(&changed));
    }
    assert!(losses[1..].iter().all(|l| *l > losses[0] + 0.1), "{losses:?}");
    // The steps follow the loss where one step overshoots.
    assert!(losses[2] >= losses[1] - 1e-3, "{losses:?}");
}

#[test]
fn explanations_of_what_makes_no_sense() {
    let built = explain(Method::Saliency).class(Class::Number(3)).build(&model(CLASSIFIER));
    refused(built, "there is no class 3: y has 3 classes, counted from 0");
    let built = explain(Method::GradCam { layer: Some("f".into()) }).build(&model(CLASSIFIER));
    refused(built, "layer 'f' has 2 axes");
    let built = explain(Method::GradCam { layer: Some("cc".into()) }).build(&model(CLASSIFIER));
    refused(built, "no tensor is called 'cc'");
    let built = Explain::new(call(&["scores", "f"], &["x"]), Method::Saliency).build(&model(CLASSIFIER));
    refused(built, "2 ys are given (scores, f); name the one with the scores");
    let attack = |epsilon: f64| Attack::new(call(&["scores"], &["x"]), Steps::Fgsm, epsilon);
    refused(attack(-1.0).build(&model(CLASSIFIER)), "epsilon is -1");
    refused(attack(1.0).range(1.0, 0.0).build(&model(CLASSIFIER)), "the range from 1 to 0 is empty");
}

#[test]
fn scores_are_those_before_a_softmax() {
    let graph = CLASSIFIER.replace("scores = MatMul(f, w)", "l = MatMul(f, w) scores = Softmax(l)");
    let (dims, x) = image(2);
    let number = |graph: &str, keep: bool| {
        let explained = explain(Method::InputXGradient).class(Class::Number(1)).keep_softmax(keep);
        let built = explained.build(&model(graph)).unwrap();
        (compute(&built, &[("x", &dims, &x)])["input-x-gradient/x"].1.clone(), built.warnings.len())
    };
    assert_eq!(number(&graph, false), (number(CLASSIFIER, false).0, 1));
    assert_ne!(number(&graph, true).0, number(CLASSIFIER, false).0);
}

/// The tensor that a stored number describes.
fn stored(value: &serde_json::Value, element: ElementType) -> TensorProto {
    let dims: Vec<i64> = value["dims"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).collect();
    let values: Vec<f64> = value["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    TensorProto::from_floats(element, &dims, &values).unwrap()
}

/// tests/references/derivatives.py has these numbers from JAX. Of an energy's second derivatives float32 keeps fewer digits.
#[test]
fn derivatives_agree_with_jax() {
    let text = include_str!("references/derivatives.json");
    let cases: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    assert!(cases.len() >= 12);
    for case in &cases {
        for (element, word, bound) in [(ElementType::Double, "double", 1e-10), (ElementType::Float, "float", 1e-5)] {
            let graph =
                case["graph"].as_str().unwrap().replace("real", word).replace("STASH", &(element as i32).to_string());
            agrees_with_jax(case, &model(&graph), element, bound);
        }
    }
}

fn agrees_with_jax(case: &serde_json::Value, model: &Model, element: ElementType, bound: f64) {
    let names = |key: &str| case[key].as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>();
    let mut feeds: BTreeMap<String, TensorProto> =
        names("inputs").iter().map(|n| ((*n).to_owned(), stored(&case["inputs"][n], element))).collect();
    for name in names("integers") {
        let n = case["integers"][name].as_i64().unwrap();
        feeds.insert(name.to_owned(), TensorProto::from_ints(ElementType::Int64, &[], &[n]).unwrap());
    }
    for x in names("u") {
        feeds.insert(format!("jvp/v/{x}"), stored(&case["u"][x], element));
        feeds.insert(format!("hvp/v/{x}"), stored(&case["u"][x], element));
    }
    feeds.insert("vjp/v/y".to_owned(), stored(&case["v"], element));
    let xs = names("vjp");
    let second: Vec<&str> = xs.iter().copied().filter(|x| case["hessian"].get(format!("{x}/{x}")).is_some()).collect();
    let all = call(&["y"], &xs).unconnected(Unconnected::Zero);
    let seconds = call(&["y"], &second).unconnected(Unconnected::Zero);
    let compare = |derived: Derived, expected: Vec<(String, &serde_json::Value)>| {
        let inputs = derived.model.proto.graph.as_ref().unwrap().input.iter().map(|i| i.name());
        let feeds = inputs.map(|i| (i.to_owned(), feeds[i].clone())).collect();
        let found = run(&derived.model.proto, &feeds).unwrap();
        for (name, value) in expected {
            let (expected, found) = (stored(value, ElementType::Double), &found[&name]);
            assert_eq!(expected.dims, found.dims, "{}: {name}", case["name"]);
            let (expected, found) = (expected.floats().unwrap(), found.floats().unwrap());
            let size = expected.iter().fold(1.0, |size: f64, v| size.max(v.abs()));
            let error = expected.iter().zip(&found).fold(0.0, |error: f64, (a, b)| error.max((a - b).abs()));
            assert!(error <= bound * size, "{} {name} {element:?}: {error:e} of {size}", case["name"]);
        }
    };
    compare(
        Jvp::from(all.clone()).build(model).unwrap(),
        vec![("jvp/y".into(), &case["jvp"]), ("y".into(), &case["y"])],
    );
    let each = |what: &str| xs.iter().map(|x| (format!("{what}/{x}"), &case[what][x])).collect::<Vec<_>>();
    compare(Vjp::from(all.clone()).build(model).unwrap(), each("vjp"));
    compare(Hvp::from(all.clone()).build(model).unwrap(), each("hvp"));
    for mode in [Mode::Forward, Mode::Reverse] {
        let expected = xs.iter().map(|x| (format!("jacobian/y/{x}"), &case["jacobian"][x]));
        compare(Jacobian::from(all.clone()).mode(mode).build(model).unwrap(), expected.collect());
        let pairs = case["hessian"].as_object().unwrap().iter();
        let expected = pairs.map(|(pair, value)| (format!("hessian/{pair}"), value)).collect();
        compare(Hessian::from(seconds.clone()).mode(mode).build(model).unwrap(), expected);
    }
}

/// A layer that mixes samples: each is centred by the mean of the batch, which alone is itself.
#[test]
fn gradients_of_samples_are_those_of_each_alone() {
    let graph = "g (double[N,2] x, double[N,1] t, double[2,1] w, double[1] b) => (double loss) <double[1] s = {2.0}> {
        m = ReduceMean<axes=[0], keepdims=1>(x)  half = Div(m, s)  c = Sub(x, half)  ww = Mul(w, w)  p = MatMul(c, ww)
        y = Add(p, b)  e = Sub(y, t)  ee = Mul(e, e)  loss = ReduceMean<keepdims=0>(ee)
    }";
    let request = || PerSample::new(call(&["loss"], &["w", "b"]), 0);
    let feeds: Vec<(&str, &[i64], &[f64])> = vec![
        ("x", &[2, 2], &[2.0, 4.0, 6.0, -2.0]),
        ("t", &[2, 1], &[1.0, 0.0]),
        ("w", &[2, 1], &[1.0, 2.0]),
        ("b", &[1], &[0.5]),
    ];
    // Alone c is x / 2: p = 1 + 8 and 3 - 4, e = 8.5 and -0.5; de²/dw = 2 e c 2 w.
    let built = request().build(&model(graph)).unwrap();
    assert_eq!(built.claim.samples, ["x", "t"]);
    let found = compute(&built, &feeds);
    close(&found["gradients/w"], &[2, 2, 1], &[34.0, 136.0, -6.0, 4.0]);
    close(&found["gradients/b"], &[2, 1], &[17.0, -1.0]);
    holds(&built);
    let norms = [(34.0f64 * 34.0 + 136.0 * 136.0 + 17.0 * 17.0).sqrt(), (36.0f64 + 16.0 + 1.0).sqrt()];
    let built = request().keep(Kept::Norms).build(&model(graph)).unwrap();
    close(&compute(&built, &feeds)["gradients/norms"], &[2], &norms);
    let built = request().keep(Kept::Clipped(10.0)).build(&model(graph)).unwrap();
    let found = compute(&built, &feeds);
    close(&found["gradients/norms"], &[2], &norms);
    let factor = 10.0 / (norms[0] + 1e-6);
    close(&found["gradients/w"], &[2, 1], &[34.0 * factor - 6.0, 136.0 * factor + 4.0]);
    close(&found["gradients/b"], &[1], &[17.0 * factor - 1.0]);
}

/// Out of one pass over all samples where these stay apart, else by a Scan: the same numbers as by the Scan, which a request
/// that stops somewhere always takes. The last number says which outer nodes are a Scan: none, of what mixes samples, of all.
#[test]
fn samples_in_one_pass_have_the_gradients_of_each_alone() {
    // Gemm in both forms with bias and numbers, MatMul with Add, a bias of one element, a mean over the batch.
    let mlp = "g (double[N,3] x, double[N,2] t, double[4,3] w, double[4] b, double[4,2] v, double[1] c, double[1,2] d) => (double loss) {
        p = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)  h = Tanh(p)  q = MatMul(h, v)  r = Add(c, q)  y = Mul(r, d)
        e = Sub(y, t)  ee = Mul(e, e)  loss = ReduceMean<keepdims=0>(ee)
    }";
    let all = ["w", "b", "v", "c", "d"].as_slice();
    let apart = "g (double[N,3] x, double[3,4] w, double[4] b) => (double[N,4] y, double[N,4] h) { p = MatMul(x, w)  h = Add(p, b)  y = Tanh(h) }";
    let rows = "g (double[N,2,3] x, double[3,4] w, double[2,1] b, double[4,2] v, double[8,3] u) => (double[N,3] y) <int64[2] s = {0, -1}> {
        p = MatMul(x, w)  q = Mul(p, b)  h = Tanh(q)  f = Reshape(h, s)  y = MatMul(f, u)  z = MatMul(h, v)
    }";
    let second = "g (double[2,N,3] x, double[3,4] w, double[4] b) => (double[2,N,4] y) { p = MatMul(x, w)  q = Add(p, b)  y = Tanh(q) }";
    let deep = "g (double[N,2,2,3] x, double[3,4] w, double[2,1,4] b) => (double s) { p = MatMul(x, w)  q = Add(p, b)  y = Sigmoid(q)  s = ReduceSum<keepdims=0>(y) }";
    let run_time = "g (double[N,T,3] x, double[3,4] w) => (double[N,T,4] y) { p = MatMul(x, w)  y = Tanh(p) }";
    let shared =
        "g (double[N,3] x, double[3,3] w) => (double[N,3] y) { p = MatMul(x, w)  h = Tanh(p)  y = MatMul(h, w) }";
    let decay = "g (double[N,3] x, double[3,3] w) => (double[N,3] y, double r) { y = MatMul(x, w)  ww = Mul(w, w)  r = ReduceSum<keepdims=0>(ww) }";
    let conv = "g (double[N,2,3,3] x, double[2,2,2,2] k, double[2] b) => (double[N,2,2,2] y) { c = Conv(x, k, b)  y = Tanh(c) }";
    let centred = "g (double[N,3] x, double[3,4] w) => (double[N,4] y) { m = ReduceMean<axes=[0], keepdims=1>(x)  c = Sub(x, m)  p = MatMul(x, w)  q = MatMul(c, w)  y = Tanh(p) }";
    let mixed = "g (double[N,3] x, double[3,4] w) => (double[N,4] y) { m = ReduceMean<axes=[0], keepdims=1>(x)  h = Div(x, m)  p = MatMul(h, w)  y = Tanh(p) }";
    let tail = "g (double[N,3] x, double[3,4] w, double[4] b) => (double[N,4] y) { p = MatMul(x, w)  m = ReduceMean<axes=[0], keepdims=1>(p)  h = Mul(p, m)  q = Softmax(h)  y = Add(q, p) }";
    let transposed = "g (double[3,N] x, double[3,4] w) => (double[N,4] y) { p = Gemm<transA=1>(x, w)  y = Tanh(p) }";
    let by_rows = "g (double[N,3] x, double[4,2] w) => (double[4,2] y) <int64[2] s = {3, -1}> { r = Reshape(x, s)  t = Transpose(r)  a = MatMul(r, t)  m = ReduceMean<keepdims=1>(a)  y = Mul(w, m) }";
    let numbers = |n: usize| (0..n).map(|i| (i as f64 * 0.754_877_666).fract() * 2.0 - 0.9).collect::<Vec<_>>();
    for (graph, axis, ys, xs, scans) in [
        (mlp, 0, &["loss"][..], all, [1, 1, 1]),
        (mlp, 0, &["y"], all, [0, 0, 0]),
        (apart, 0, &["y", "h"], &["w", "b"], [0, 0, 0]),
        (rows, 0, &["y"], &["w", "b", "u"], [0, 0, 0]),
        (rows, 0, &["z"], &["w", "v", "b"], [0, 0, 0]),
        (rows, 0, &["y"], &["w", "v"], [0, 0, 0]),
        (second, 1, &["y"], &["w", "b"], [0, 0, 0]),
        (deep, 0, &["s"], &["w", "b"], [1, 1, 1]),
        (run_time, 0, &["y"], &["w"], [0, 1, 1]),
        (shared, 0, &["y"], &["w"], [1, 1, 1]),
        (decay, 0, &["y", "r"], &["w"], [1, 1, 1]),
        (conv, 0, &["y"], &["k", "b"], [1, 1, 1]),
        (centred, 0, &["y"], &["w"], [0, 0, 0]),
        (mixed, 0, &["y"], &["w"], [1, 1, 1]),
        (tail, 0, &["y"], &["w"], [1, 1, 1]),
        (tail, 0, &["y"], &["w", "b"], [1, 1, 1]),
        (transposed, 1, &["y"], &["w"], [1, 1, 1]),
        (by_rows, 0, &["y"], &["w"], [1, 1, 1]),
    ] {
        let kinds = [Kept::Each, Kept::Norms, Kept::Clipped(0.7)];
        for (kept, scans) in kinds.into_iter().zip(scans) {
            let build = |call: Gradients| PerSample::new(call, axis).inputs(["x"]).keep(kept).build(&model(graph));
            let found = build(call(ys, xs)).unwrap();
            let nodes = &found.model.proto.graph.as_ref().unwrap().node;
            let what = format!("{kept:?} of {graph}");
            assert_eq!(nodes.iter().filter(|n| n.op_type() == "Scan").count(), scans, "{what}");
            if kept == Kept::Each {
                holds(&found);
            }
            let by_scan = build(call(ys, xs).stop(["x"])).unwrap();
            let feeds = model(graph).proto.graph.unwrap().input.into_iter().map(|input| {
                let dims = sizes(&input, 5);
                let values = numbers(dims.iter().product::<i64>() as usize);
                (input.name.unwrap(), TensorProto::from_floats(ElementType::Double, &dims, &values).unwrap())
            });
            let feeds: BTreeMap<_, _> = feeds.collect();
            let [found, expected] = [found, by_scan].map(|built| run(&built.model.proto, &feeds).unwrap());
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
            for (name, tensor) in &expected {
                let pair = [&found[name], tensor].map(|t| (t.dims.clone(), t.floats().unwrap()));
                let near = pair[0].1.iter().zip(&pair[1].1).all(|(a, b)| (a - b).abs() <= 1e-12 * b.abs().max(1.0));
                assert!(near && pair[0].0 == pair[1].0, "{name}, {what}: {pair:?}");
            }
        }
    }
}

#[test]
fn samples_are_found_or_named() {
    let graph = "g (double[N,2] x, double[M,2] u, double[2] w) => (double[N,2] y) { a = Mul(x, w)  s = ReduceSum(u)  y = Mul(a, s) }";
    let request = |axis: i64| PerSample::new(call(&["y"], &["w"]), axis);
    assert_eq!(request(0).build(&model(graph)).unwrap().claim.samples, ["x"]);
    assert_eq!(request(0).inputs(["u"]).build(&model(graph)).unwrap().claim.samples, ["u"]);
    refused(request(2).build(&model(graph)), "the ys depend on no input with an axis 2");
    refused(request(0).inputs(["w"]).build(&model(graph)), "'w' is an x");
    refused(request(0).keep(Kept::Clipped(0.0)).build(&model(graph)), "cannot be clipped to a norm of 0");
    let fixed =
        "g (double[4,6] x, double[8] w) => (double[3,8] y) <int64[2] s = {3, 8}> { r = Reshape(x, s)  y = Mul(r, w) }";
    refused(request(0).build(&model(fixed)), "the model on a sample alone (along axis 0 of 'x'");
}

/// What other tools have written: right, with the mean's weight of a cross-entropy lost, with a product that lost its transpose.
#[test]
fn gradients_of_other_tools_are_checked_by_name() {
    let theirs = |scale: &str, product: &str| {
        format!(
            "g (float[N,4] x, int64[N] label, float[4,4] w, float[4,4] v)
            => (float loss, float[4,4] their_dw, float[4,4] their_dv) <float[2] hot = {{0, 1}}, int64[1] four = {{4}}> {{
                h = MatMul(x, w)  z = MatMul(h, v)  loss = SoftmaxCrossEntropyLoss(z, label)
                p = Softmax<axis=-1>(z)  o = OneHot(label, four, hot)  d = Sub(p, o)
                s = Shape(label)  n = Cast<to=1>(s)  mean = Div(d, n)  dz = {scale}
                ht = Transpose<perm=[1,0]>(h)  their_dv = MatMul(ht, dz)  vt = Transpose<perm=[1,0]>(v)
                dh = {product}  xt = Transpose<perm=[1,0]>(x)  their_dw = MatMul(xt, dh)
            }}"
        )
    };
    let folder = tempfile::TempDir::new().unwrap();
    let check = |name: &str, graph: &str, options: &[&str]| {
        let path = folder.path().join(name);
        model(graph).save(&path).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-gradients"));
        command.arg("check").arg(&path).args(["--ys", "loss", "--xs", "w", "v"]).args(options).arg("--json");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let named = ["--gradients", "their_dw", "their_dv"];
    let right = ("Identity(mean)", "MatMul(dz, vt)");
    let (code, text) = check("right.onnx", &theirs(right.0, right.1), &named);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("passed"), "{text}");
    for (name, scale, product) in [("scale.onnx", "Identity(d)", right.1), ("transpose.onnx", right.0, "MatMul(dz, v)")]
    {
        let (code, text) = check(name, &theirs(scale, product), &named);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("failed"), "{text}");
    }
    let (code, text) = check("right2.onnx", &theirs(right.0, right.1), &["--gradients", "their_dx", "their_dv"]);
    assert!(code == Some(1) && text.contains("their_dx"), "{text}");
    let (code, text) = check("right3.onnx", &theirs(right.0, right.1), &["--gradients", "their_dw"]);
    assert!(code == Some(1) && text.contains("1 --gradients are given for 2 --xs"), "{text}");
    let seeded = [&named[..], &["--grad-ys", "2"]].concat();
    let (code, text) = check("right4.onnx", &theirs(right.0, right.1), &seeded);
    assert!(code == Some(1), "{text}");
}

/// tests/references/explanations.py has these numbers from Captum and Opacus.
#[test]
fn explanations_agree_with_captum_and_clipped_sums_with_opacus() {
    let references: serde_json::Value = serde_json::from_str(include_str!("references/explanations.json")).unwrap();
    let feeds = |case: &serde_json::Value| -> BTreeMap<String, TensorProto> {
        let inputs = case["inputs"].as_object().unwrap().iter();
        inputs.map(|(name, value)| (name.clone(), stored(value, ElementType::Double))).collect()
    };
    let integers = |value: &serde_json::Value| {
        let values: Vec<i64> = value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
        TensorProto::from_ints(ElementType::Int64, &[values.len() as i64], &values).unwrap()
    };
    let compare = |found: &TensorProto, value: &serde_json::Value, what: &str| {
        let expected = stored(value, ElementType::Double);
        assert_eq!(found.dims, expected.dims, "{what}");
        let pairs = found.floats().unwrap().into_iter().zip(expected.floats().unwrap()).collect::<Vec<_>>();
        assert!(pairs.iter().all(|(a, b)| (a - b).abs() <= 1e-10), "{what}: {pairs:?}");
    };

    let case = &references["cnn"];
    let net = model(case["graph"].as_str().unwrap());
    for (method, output, key) in [
        (Method::Saliency, "x", "saliency"),
        (Method::InputXGradient, "x", "input-x-gradient"),
        (Method::IntegratedGradients { steps: 50, baseline: None }, "x", "integrated-gradients"),
        (Method::GradCam { layer: None }, "layer", "grad-cam"),
    ] {
        let built = Explain::new(call(&["scores"], &["x"]), method).class(Class::Input).build(&net).unwrap();
        let mut feeds = feeds(case);
        feeds.insert(format!("{key}/class"), integers(&case["class"]));
        if key == "integrated-gradients" {
            feeds.insert(format!("{key}/baseline/x"), stored(&case["baseline"], ElementType::Double));
        }
        let found = run(&built.model.proto, &feeds).unwrap();
        compare(&found[&format!("{key}/{output}")], &case[key], key);
    }

    let case = &references["dp-sgd"];
    let net = model(case["graph"].as_str().unwrap());
    let weights = ["w1", "b1", "w2", "b2"];
    for (kept, key) in [(Kept::Each, "each"), (Kept::Clipped(case["bound"].as_f64().unwrap()), "clipped")] {
        let built = PerSample::new(call(&["loss"], &weights), 0).keep(kept).build(&net).unwrap();
        let mut feeds = feeds(case);
        feeds.insert("label".to_owned(), integers(&case["label"]));
        let found = run(&built.model.proto, &feeds).unwrap();
        for w in weights {
            compare(&found[&format!("gradients/{w}")], &case[key][w], w);
        }
    }
}

/// The models and commands of docs/derivatives.md, in their order, in one folder.
#[test]
fn the_documentation_runs() {
    let home = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(home.join("docs/derivatives.md")).unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("models")).unwrap();
    for name in ["cnn", "mlp"] {
        let file = format!("models/{name}.onnx");
        std::fs::copy(home.join(&file), folder.path().join(&file)).unwrap();
    }
    let mut commands = 0;
    for block in text.split("\n```").skip(1).step_by(2) {
        let (head, body) = block.split_once('\n').unwrap();
        if let Some(file) = head.strip_prefix("onnx ") {
            model(body).save(folder.path().join(file)).unwrap();
            continue;
        }
        assert_eq!(head, "sh");
        for line in body.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words[0], "onnx-gradients");
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-gradients"));
            let output = command.args(&words[1..]).current_dir(folder.path()).output().unwrap();
            let printed = String::from_utf8_lossy(&output.stdout);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {said}");
            let checked =
                printed.contains("finite differences agree") || printed.contains("it runs, and claims no gradient");
            assert!(checked || line.contains("--no-validate"), "{line}: {printed}");
            commands += 1;
        }
    }
    assert!(commands >= 20, "{commands}");
}

/// A gradient of Tanh that is wrong, as users may give one.
const WRONG: &str = r#"
<ir_version: 9, opset_import: ["": 17]>
unused (float a) => (float b) { b = Identity (a) }
<domain: "", opset_import: ["": 17]>
Tanh (x, y, dy) => (dx) { dx = Mul (y, dy) }
"#;

#[test]
fn a_wrong_gradient_is_cut_to_its_node() {
    let graph = "g (float[N,4] x, int64[N] rows, float[4,4] w, float[4] b) => (float[N,4] out) {
        [first] a = MatMul(x, w)  [second] c = Add(a, b)  e = Exp(c)  l = Log(e)  [picked] p = Gather(l, rows)
        [wrong] t = Tanh(p)  [after] s = Sigmoid(t)  m = Mul(s, a)  out = Softmax<axis=-1>(m)
    }";
    let folder = tempfile::TempDir::new().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    model(graph).save(file("model.onnx")).unwrap();
    Model::from(text::parse(WRONG).unwrap()).save(file("wrong.onnx")).unwrap();
    let tool = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-gradients")).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (model, wrong, piece) = (file("model.onnx"), file("wrong.onnx"), file("piece.onnx"));
    let common = ["reduce", &model, "-o", &piece, "--ys", "out", "--xs", "w", "b", "--json"];
    let (code, out, said) = tool(&[&common[..], &["--gradient-functions", &wrong]].concat());
    assert_eq!(code, Some(0), "{said}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["nodes"], serde_json::json!(["'wrong' (Tanh)"]), "{report}");
    assert_eq!((&report["xs"], &report["ys"]), (&serde_json::json!(["p"]), &serde_json::json!(["t"])));
    let replay = report["replay"].as_str().unwrap();
    let words: Vec<&str> = replay.split(' ').skip(1).collect();
    let (code, _, said) = tool(&words);
    assert!(code == Some(1) && said.contains("validation failed"), "{replay}: {said}");
    let (code, _, said) = tool(&[&common[..], &["--force"]].concat());
    assert!(code == Some(1) && said.contains("passes its check"), "{said}");
}

/// What the fuzzer has found: derivatives of what has no samples, and of what depends on nothing, are answered.
#[test]
fn tensors_without_axes_and_without_gradients_are_answered() {
    let model = model("g (float[N,3] x, float[2] z) => (float y) { y = ReduceSum<keepdims = 0>(x) }");
    let jacobian = Jacobian::from(call(&["y"], &["x"])).batch(0).build(&model);
    refused(jacobian, "a tensor without axes has no samples along axis 0");
    let hessian = Hessian::from(call(&["y"], &["z"])).build(&model).unwrap();
    assert_eq!(hessian.outputs[0].name, None);
    assert!(evidence(&hessian.model).is_ok());
}
