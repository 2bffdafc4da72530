//! Half precision, long sums, infinities: gradients are as exact as the operator itself, and are numbers where they exist.
#![cfg(feature = "validate")]

use onnx_gradients::onnx::{ElementType, TensorProto, text};
use onnx_gradients::validate::run;
use onnx_gradients::{Gradients, Model, Output, Seed};
use std::collections::BTreeMap;

const INF: f64 = f64::INFINITY;

fn model(graph: &str, opset: i64) -> Model {
    let ir = if opset < 10 { 4 } else { 8 };
    text::parse(&format!("<ir_version: {ir}, opset_import: [\"\": {opset}]>\n{graph}")).unwrap().into()
}

fn tensor(element: ElementType, dims: &[i64], value: impl Fn(usize) -> f64) -> TensorProto {
    let values: Vec<f64> = (0..dims.iter().product::<i64>() as usize).map(value).collect();
    match element.is_float() {
        true => TensorProto::from_floats(element, dims, &values).unwrap(),
        false => TensorProto::from_ints(element, dims, &values.iter().map(|&v| v as i64).collect::<Vec<_>>()).unwrap(),
    }
}

fn half(dims: &[i64], value: impl Fn(usize) -> f64) -> TensorProto {
    tensor(ElementType::Float16, dims, value)
}

fn compute(output: &Output, inputs: &[(&str, TensorProto)]) -> Vec<f64> {
    let inputs: BTreeMap<String, TensorProto> = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
    let computed = run(&output.model.proto, &inputs).unwrap();
    computed[output.gradients[0].name.as_ref().unwrap()].floats().unwrap()
}

/// The gradient of the sum of all elements of y by x.
fn gradient(graph: &str, opset: i64, x: &str, inputs: &[(&str, TensorProto)]) -> Vec<f64> {
    compute(&Gradients::new(["y"], [x]).build(&model(graph, opset)).unwrap(), inputs)
}

fn close(found: &[f64], expected: &[f64], error: f64) {
    let near = |(a, b): (&f64, &f64)| a == b || (a - b).abs() <= error * b.abs();
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{found:?}, not {expected:?}");
}

#[test]
fn the_gradient_of_a_bias_adds_up_more_than_half_precision_counts() {
    let graph = "g (float16[40000,1] x, float16[1] b) => (float16[40000,1] y) { y = Add(x, b) }";
    let found = gradient(graph, 17, "b", &[("x", half(&[40000, 1], |_| 1.0)), ("b", half(&[1], |_| 1.0))]);
    close(&found, &[40000.0], 1e-3);
}

#[test]
fn a_mean_of_more_elements_than_half_precision_has_numbers() {
    let graph = "g (float16[70000] x) => (float16 y) { y = ReduceMean<keepdims=0>(x) }";
    close(&gradient(graph, 17, "x", &[("x", half(&[70000], |_| 1.0))]), &[1.0 / 70000.0; 70000], 1e-2);
    let graph = "g (float16[1,1,280,250] x) => (float16[1,1,1,1] y) { y = GlobalAveragePool(x) }";
    close(&gradient(graph, 17, "x", &[("x", half(&[1, 1, 280, 250], |_| 1.0))]), &[1.0 / 70000.0; 70000], 1e-2);
}

#[test]
fn a_row_that_is_gathered_often_adds_up_in_half_precision() {
    let graph = "g (float16[2] x, int64[9000] i) => (float16[9000] y) { y = Gather(x, i) }";
    let places = tensor(ElementType::Int64, &[9000], |i| (i % 3 == 0).into());
    let inputs = [("x", half(&[2], |_| 1.0)), ("i", places)];
    close(&gradient(graph, 16, "x", &inputs), &[6000.0, 3000.0], 1e-3);
}

#[test]
fn what_all_trips_of_a_loop_share_adds_up_in_half_precision() {
    let graph = "g (float16[1] x, float16[1] s) => (float16[1] y) <int64 n = {5000}> {
        y = Loop<body = body (int64 i, bool c, float16[1] a) => (bool d, float16[1] e) { d = Identity(c) m = Max(x, s) e = Add(a, m) }>(n, , s) }";
    let inputs = [("x", half(&[1], |_| 1.0)), ("s", half(&[1], |_| 0.0))];
    close(&gradient(graph, 17, "x", &inputs), &[5000.0], 1e-3);
}

#[test]
fn log_softmax_sums_more_than_half_precision_holds() {
    let graph = "g (float16[4] x, float16[4] w) => (float16[4] y) { l = LogSoftmax(x) y = Mul(l, w) }";
    let inputs = [("x", half(&[4], |_| 0.0)), ("w", half(&[4], |_| 30000.0))];
    let found = gradient(graph, 17, "x", &inputs);
    // What the rounding of the logarithms leaves of 30000.
    assert!(found.iter().all(|dx| dx.abs() < 60.0), "{found:?}");
}

#[test]
fn the_mean_loss_of_a_large_batch_in_half_precision() {
    let graph = "g (float16[70000,2] x, int64[70000] t) => (float16 y) { l = SoftmaxCrossEntropyLoss(x, t) k = Constant<value_float=1024.0>() h = CastLike(k, l) y = Mul(l, h) }";
    let inputs = [("x", half(&[70000, 2], |_| 0.0)), ("t", tensor(ElementType::Int64, &[70000], |_| 0.0))];
    let expected: Vec<f64> = (0..140_000).map(|i| if i % 2 == 0 { -512.0 } else { 512.0 } / 70000.0).collect();
    close(&gradient(graph, 17, "x", &inputs), &expected, 1e-2);
}

#[test]
fn the_shares_of_a_log_sum_exp_add_up_to_one() {
    let graph = "g (float16[3] x) => (float16 y) { y = ReduceLogSumExp<keepdims=0>(x) }";
    // y is rounded by 0.003, which in an exponent would be too much.
    close(&gradient(graph, 17, "x", &[("x", half(&[3], |_| 9.0))]), &[1.0 / 3.0; 3], 1e-3);
}

#[test]
fn the_gradient_of_a_short_vectors_length_does_not_overflow() {
    let graph = "g (float16[2] x, float16 w) => (float16 y) { l = ReduceL2<keepdims=0>(x) y = Mul(l, w) }";
    // In half precision 10000 over that length is infinite.
    let inputs = [("x", half(&[2], |i| [0.03, 0.04][i])), ("w", half(&[], |_| 10000.0))];
    close(&gradient(graph, 17, "x", &inputs), &[6000.0, 8000.0], 5e-3);
}

#[test]
fn an_infinite_gradient_stays_where_it_belongs() {
    let float = |values: &'static [f64]| tensor(ElementType::Float, &[values.len() as i64], |i| values[i]);
    for opset in [7, 8, 9, 17] {
        let graph = "g (float[4] x) => (float[4] y) { r = Relu(x) y = Sqrt(r) }";
        close(&gradient(graph, opset, "x", &[("x", float(&[-1.0, 0.0, 4.0, 1.0]))]), &[0.0, 0.0, 0.25, 0.5], 1e-6);
        let graph = "g (float[3] x, float[3] z) => (float[3] y) { y = Max(x, z) }";
        let inputs = [("x", float(&[-INF, INF, 0.0])), ("z", float(&[0.0, 0.0, -INF]))];
        close(&gradient(graph, opset, "x", &inputs), &[0.0, 1.0, 1.0], 0.0);
    }
}

#[test]
fn a_square_root_is_linear_in_its_seed_where_the_seed_is_zero() {
    let model = model("g (float[3] x) => (float[3] y) { y = Sqrt(x) }", 17);
    let first = Gradients::new(["y"], ["x"]).seeds(vec![Seed::Input(None)]).build(&model).unwrap();
    let (dx, seed) = (first.gradients[0].name.clone().unwrap(), first.record.seeds[0].seed.clone().unwrap());
    let second = Gradients::new([dx], [seed.as_str()]).build(&first.model).unwrap();
    let float = |values: &'static [f64]| tensor(ElementType::Float, &[3], |i| values[i]);
    let found = compute(&second, &[("x", float(&[1.0, 4.0, 16.0])), (&seed, float(&[0.0, 0.0, 1.0]))]);
    close(&found, &[0.5, 0.25, 0.125], 1e-6);
}
