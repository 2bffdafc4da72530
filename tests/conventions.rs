//! Where a derivative does not exist, or more than one would do: kinks, ties, boundaries. docs/conventions.md lists them.
#![cfg(feature = "validate")]

mod common;

use onnx_gradients::onnx::{ElementType, ModelProto, TensorProto, text};
use onnx_gradients::validate::run;
use onnx_gradients::{Gradients, Model};
use std::collections::BTreeMap;

const INF: f64 = f64::INFINITY;

/// Inputs with their values and the gradients that the sum of all elements of y has there.
type Point<'a> = &'a [(&'a str, &'a [f64], &'a [f64])];

fn check(graph: &str, point: Point) {
    let model: Model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 18]>\n{graph}")).unwrap().into();
    let output = Gradients::new(["y"], point.iter().map(|(x, ..)| *x)).build(&model).unwrap();
    let computed = evaluate(&output.model.proto, point);
    for ((x, _, expected), found) in point.iter().zip(&output.gradients) {
        let found = found.name.as_ref().map(|g| computed[g].floats().unwrap()).unwrap_or_default();
        let close = |(a, b): (&f64, &f64)| a == b || (a - b).abs() < 1e-5;
        let same = found.len() == expected.len() && found.iter().zip(*expected).all(close);
        assert!(same, "d{x} is {found:?}, not {expected:?}: {graph}");
    }
}

fn evaluate(model: &ModelProto, point: Point) -> BTreeMap<String, TensorProto> {
    let tensor = |v: &[f64]| TensorProto::from_floats(ElementType::Float, &[v.len() as i64], v).unwrap();
    run(model, &point.iter().map(|(name, v, _)| ((*name).to_owned(), tensor(v))).collect()).unwrap()
}

/// A second derivative at a place where the first one is a convention.
#[test]
fn beside_a_norm_of_zero_the_gradient_is_zero() {
    for graph in [
        "g (float[2] x) => (float y) { y = ReduceL2<keepdims=0>(x) }",
        "g (float[2] x) => (float[1,1,1] y) <int64[3] s = {1, 1, 2}> { r = Reshape(x, s)\n y = GlobalLpPool(r) }",
        "g (float[2] x) => (float[2] y) { y = LpNormalization(x) }",
    ] {
        let model: Model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 18]>\n{graph}")).unwrap().into();
        let first = Gradients::new(["y"], ["x"]).build(&model).unwrap();
        let dx = first.gradients[0].name.clone().unwrap();
        let second = Gradients::new([dx], ["x"]).build(&first.model).unwrap();
        let computed = evaluate(&second.model.proto, &[("x", &[0.0, 0.0], &[])]);
        let found = computed[second.gradients[0].name.as_ref().unwrap()].floats().unwrap();
        assert_eq!(found, [0.0, 0.0], "{graph}");
    }
}

/// Where a size turns out to be zero, gradients have the shapes of their xs, and what is summed over nothing is zero.
#[test]
fn of_nothing_gradients_have_the_shape_of_nothing() {
    for (graph, shapes) in [
        ("g (float[2,3,K] a, float[K,4] b) => (float[2,3,4] y) { y = MatMul(a, b) }", [vec![2, 3, 0], vec![0, 4]]),
        ("g (float[K,4] a, float[2,4,3] b) => (float[2,K,3] y) { y = MatMul(a, b) }", [vec![0, 4], vec![2, 4, 3]]),
        ("g (float[N,3,K] a, float[K,4] b) => (float[N,3,4] y) { y = MatMul(a, b) }", [vec![0, 3, 0], vec![0, 4]]),
        ("g (float[N,3] a, float[M,3] b) => (float[K,3] y) { y = Mul(a, b) }", [vec![0, 3], vec![1, 3]]),
    ] {
        for opset in [14, 18] {
            let text = format!("<ir_version: 8, opset_import: [\"\": {opset}]>\n{graph}");
            let output = Gradients::new(["y"], ["a", "b"]).build(&text::parse(&text).unwrap().into()).unwrap();
            let ones = |shape: &[i64]| vec![1.0; shape.iter().product::<i64>() as usize];
            let tensor = |s: &Vec<i64>| TensorProto::from_floats(ElementType::Float, s, &ones(s)).unwrap();
            let inputs = ["a", "b"].map(str::to_owned).into_iter().zip(shapes.iter().map(tensor)).collect();
            let computed = run(&output.model.proto, &inputs).unwrap();
            for (gradient, shape) in output.gradients.iter().zip(&shapes) {
                let found = &computed[gradient.name.as_ref().unwrap()];
                assert_eq!(&found.dims, shape, "{}: {graph}", gradient.x);
                assert!(found.floats().unwrap().iter().all(|&v| v == 0.0), "{}: {graph}", gradient.x);
            }
        }
    }
}

macro_rules! conventions {
    ($($name:ident: $graph:literal, $($x:ident at [$($at:expr),*] => [$($expected:expr),*]),+;)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            check($graph, &[$((stringify!($x), &[$($at),*], &[$($expected),*])),+]);
        })*
    };
}

conventions! {
    // Kinks.
    relu: "g (float[3] x) => (float[3] y) { y = Relu(x) }", x at [-1.0, 0.0, 1.0] => [0.0, 0.0, 1.0];
    abs: "g (float[3] x) => (float[3] y) { y = Abs(x) }", x at [-1.0, 0.0, 1.0] => [-1.0, 0.0, 1.0];
    sign: "g (float[3] x) => (float[3] y) { y = Sign(x) }", x at [-1.0, 0.0, 1.0] => [0.0, 0.0, 0.0];
    leaky_relu: "g (float[3] x) => (float[3] y) { y = LeakyRelu<alpha=0.25>(x) }", x at [-1.0, 0.0, 1.0] => [0.25, 0.25, 1.0];
    prelu: "g (float[3] x, float[1] slope) => (float[3] y) { y = PRelu(x, slope) }",
        x at [-1.0, 0.0, 1.0] => [0.25, 0.25, 1.0], slope at [0.25] => [-1.0];
    elu: "g (float[3] x) => (float[3] y) { y = Elu<alpha=0.5>(x) }", x at [-100.0, 0.0, 1.0] => [0.0, 1.0, 1.0];
    selu: "g (float[3] x) => (float[3] y) { y = Selu<alpha=2.0, gamma=1.5>(x) }", x at [-100.0, 0.0, 1.0] => [0.0, 1.5, 1.5];
    celu: "g (float[3] x) => (float[3] y) { y = Celu<alpha=0.5>(x) }", x at [-100.0, 0.0, 1.0] => [0.0, 1.0, 1.0];
    thresholded_relu: "g (float[3] x) => (float[3] y) { y = ThresholdedRelu<alpha=1.0>(x) }", x at [0.5, 1.0, 2.0] => [0.0, 0.0, 1.0];
    shrink: "g (float[4] x) => (float[4] y) { y = Shrink<lambd=0.5>(x) }", x at [-1.0, -0.5, 0.5, 1.0] => [1.0, 0.0, 0.0, 1.0];
    hard_sigmoid: "g (float[3] x) => (float[3] y) { y = HardSigmoid<alpha=0.25, beta=0.5>(x) }", x at [-2.0, 0.0, 2.0] => [0.0, 0.25, 0.0];
    hard_swish: "g (float[4] x) => (float[4] y) { y = HardSwish(x) }", x at [-3.0, 0.0, 3.0, 4.0] => [0.0, 0.5, 1.0, 1.0];
    // Boundaries.
    clip: "g (float[4] x) => (float[4] y) <float low = {-1}, float high = {1}> { y = Clip(x, low, high) }",
        x at [-2.0, -1.0, 1.0, 2.0] => [0.0, 1.0, 1.0, 0.0];
    clip_to_a_point: "g (float[3] x) => (float[3] y) <float low = {1}, float high = {1}> { y = Clip(x, low, high) }",
        x at [0.0, 1.0, 2.0] => [0.0, 1.0, 0.0];
    relu6: "g (float[4] x) => (float[4] y) <float six = {6}> { r = Relu(x) y = Clip(r, , six) }",
        x at [0.0, 1.0, 6.0, 7.0] => [0.0, 1.0, 1.0, 0.0];
    // Ties.
    max: "g (float[3] a, float[3] b) => (float[3] y) { y = Max(a, b) }",
        a at [0.0, 1.0, 2.0] => [0.0, 1.0, 1.0], b at [1.0, 1.0, 1.0] => [1.0, 0.0, 0.0];
    min: "g (float[3] a, float[3] b) => (float[3] y) { y = Min(a, b) }",
        a at [0.0, 1.0, 2.0] => [1.0, 1.0, 0.0], b at [1.0, 1.0, 1.0] => [0.0, 0.0, 1.0];
    max_of_three: "g (float[2] a, float[2] b, float[2] c) => (float[2] y) { y = Max(a, b, c) }",
        a at [1.0, 0.0] => [1.0, 0.0], b at [1.0, 1.0] => [0.0, 1.0], c at [1.0, 1.0] => [0.0, 0.0];
    reduce_max: "g (float[4] x) => (float y) { y = ReduceMax<keepdims=0>(x) }", x at [2.0, 1.0, 2.0, 0.0] => [0.5, 0.0, 0.5, 0.0];
    reduce_min: "g (float[4] x) => (float y) { y = ReduceMin<keepdims=0>(x) }", x at [2.0, 1.0, 1.0, 3.0] => [0.0, 0.5, 0.5, 0.0];
    max_pool: "g (float[4] x) => (float[1,1,2] y) <int64[3] s = {1, 1, 4}> { z = Reshape(x, s) y = MaxPool<kernel_shape=[2], strides=[2]>(z) }",
        x at [1.0, 1.0, 0.0, 2.0] => [1.0, 0.0, 0.0, 1.0];
    top_k: "g (float[4] x) => (float[1] y) <int64[1] k = {1}> { y, i = TopK(x, k) }", x at [0.0, 1.0, 1.0, 1.0] => [0.0, 1.0, 0.0, 0.0];
    scatter_max: "g (float[2] x, float[3] u) => (float[2] y) <int64[3] i = {0, 0, 1}> { y = ScatterElements<reduction=\"max\">(x, i, u) }",
        x at [1.0, 5.0] => [1.0 / 3.0, 1.0], u at [1.0, 1.0, 2.0] => [1.0 / 3.0, 1.0 / 3.0, 0.0];
    scatter_min: "g (float[2] x, float[3] u) => (float[2] y) <int64[3,1] i = {0, 0, 1}> { y = ScatterND<reduction=\"min\">(x, i, u) }",
        x at [1.0, 5.0] => [0.5, 0.0], u at [3.0, 1.0, 2.0] => [0.0, 0.5, 1.0];
    // Zeros.
    scatter_mul_with_zeros: "g (float[2] x, float[4] u) => (float[2] y) <int64[4] i = {0, 0, 1, 1}> { y = ScatterElements<reduction=\"mul\">(x, i, u) }",
        x at [2.0, 0.0] => [0.0, 12.0], u at [0.0, 5.0, 3.0, 4.0] => [10.0, 0.0, 0.0, 0.0];
    reduce_prod_with_a_zero: "g (float[3] x) => (float y) { y = ReduceProd<keepdims=0>(x) }", x at [2.0, 0.0, 3.0] => [0.0, 6.0, 0.0];
    reduce_prod_with_two_zeros: "g (float[3] x) => (float y) { y = ReduceProd<keepdims=0>(x) }", x at [2.0, 0.0, 0.0] => [0.0, 0.0, 0.0];
    sqrt: "g (float[2] x) => (float[2] y) { y = Sqrt(x) }", x at [0.0, 4.0] => [INF, 0.25];
    guarded_sqrt: "g (float[2] x) => (float[2] y) <float zero = {0}> { c = Greater(x, zero) r = Sqrt(x) y = Where(c, r, zero) }",
        x at [0.0, 4.0] => [0.0, 0.25];
    rectified_sqrt: "g (float[3] x) => (float[3] y) { r = Relu(x) y = Sqrt(r) }", x at [-1.0, 0.0, 4.0] => [0.0, 0.0, 0.25];
    rectified_log: "g (float[3] x) => (float[1] y) <int64[2] s = {3, 1}, int64[1] one = {1}> {
        c = Reshape(x, s) r = Relu(c) two = Concat<axis = 1>(r, r) m = Constant<value_ints = [-1]>() l = Log(two) t = Transpose(l) q = Reshape(t, m)
        p = ReduceMax<keepdims = 0>(q) y = Reshape(p, one) }",
        x at [-1.0, 0.0, 4.0] => [0.0, 0.0, 0.25];
    clipped_quotient: "g (float[3] x) => (float[3] y) <float low = {0}, float one = {1}> { r = Clip(x, low) q = Div(one, r) y = Sqrt(q) }",
        x at [-1.0, 4.0, 16.0] => [0.0, -0.0625, -0.0078125];
    masked_softmax: "g (float[4] x) => (float y) <float[2,2] mask = {0, 0, -inf, -inf}, float zero = {0}> {
        s = Constant<value_ints = [2, 2]>() r = Reshape(x, s) m = Add(r, mask) p = Softmax(m) n = IsNaN(p) k = Where(n, zero, p)
        q = Mul(k, r) y = ReduceSum<keepdims = 0>(q) }",
        x at [0.0, 0.0, 1.0, 1.0] => [0.5, 0.5, 0.0, 0.0];
    masked_log_softmax: "g (float[2] x) => (float y) <float[2] mask = {-inf, -inf}, float zero = {0}> {
        m = Add(x, mask) p = LogSoftmax(m) n = IsNaN(p) k = Where(n, zero, p) y = ReduceSum<keepdims = 0>(k) }",
        x at [1.0, 2.0] => [0.0, 0.0];
    power_zero: "g (float[3] x, float[3] p) => (float[3] y) { y = Pow(x, p) }",
        x at [0.0, 2.0, -2.0] => [0.0, 0.0, 0.0], p at [0.0, 0.0, 0.0] => [0.0, std::f64::consts::LN_2, 0.0];
    power_of_a_negative_number: "g (float[2] x, float[2] p) => (float[2] y) { y = Pow(x, p) }",
        x at [-2.0, 0.0] => [-4.0, 0.0], p at [2.0, 2.0] => [0.0, 0.0];
    norm: "g (float[2] x) => (float y) { y = ReduceL2<keepdims=0>(x) }", x at [0.0, 0.0] => [0.0, 0.0];
    sum_of_magnitudes: "g (float[2] x) => (float y) { y = ReduceL1<keepdims=0>(x) }", x at [0.0, -2.0] => [0.0, -1.0];
}

#[test]
fn every_convention_is_documented() {
    let text = std::fs::read_to_string(common::folder("docs/conventions.md")).unwrap();
    let missing: Vec<&&str> = NAMES.iter().filter(|name| !text.contains(&format!("| `{name}` |"))).collect();
    assert!(missing.is_empty(), "docs/conventions.md does not mention {missing:?}");
}

/// Large pools are written in another form than small ones, and than those that put out where their maxima lie.
#[test]
fn the_first_of_equals_gets_all_in_large_pools_too() {
    let pools: &[(&[i64], &[i64], &str)] = &[
        (&[210, 208], &[106, 104], "kernel_shape = [3, 2], strides = [2, 2], pads = [2, 0, 1, 1]"),
        (&[56, 52], &[56, 52], "kernel_shape = [5, 5], pads = [2, 2, 2, 2]"),
        (&[260, 256], &[130, 128], "kernel_shape = [2, 2], strides = [2, 2]"),
        (&[220, 201], &[74, 100], "kernel_shape = [3, 3], strides = [3, 2], ceil_mode = 1"),
        (&[120, 200], &[118, 99], "kernel_shape = [2, 3], strides = [1, 2], dilations = [2, 1]"),
        (&[70001], &[35000], "kernel_shape = [3], strides = [2]"),
        (&[400, 401], &[133, 134], "kernel_shape = [2, 2], strides = [3, 3], pads = [0, 1, 0, 0]"),
        (&[28, 30, 32], &[13, 14, 15], "kernel_shape = [3, 3, 3], strides = [2, 2, 2]"),
    ];
    for (image, windows, attributes) in pools {
        let numbers = |sizes: &[i64]| sizes.iter().product::<i64>();
        let shape = |sizes: &[i64]| sizes.iter().map(|n| format!(",{n}")).collect::<String>();
        // Few values, so that most windows hold equals.
        let tensor = |sizes: &[i64], below: i64| {
            let values = (0..numbers(sizes)).map(|i| ((i * 7919 + i * i % 31) % below) as f64).collect::<Vec<_>>();
            TensorProto::from_floats(ElementType::Float, &[&[1, 1], sizes].concat(), &values).unwrap()
        };
        let inputs = [("x".to_owned(), tensor(image, 3)), ("w".to_owned(), tensor(windows, 1009))];
        let gradient = |places: &str, output: &str| {
            let (image, windows) = (shape(image), shape(windows));
            let graph = format!(
                "<ir_version: 8, opset_import: [\"\": 18]>
                 g (float[1,1{image}] x, float[1,1{windows}] w) => (float[1,1{windows}] z{output})
                 {{ y{places} = MaxPool<{attributes}>(x) z = Mul(y, w) }}"
            );
            let model: Model = text::parse(&graph).unwrap().into();
            let output = Gradients::new(["z"], ["x"]).build(&model).unwrap();
            let nodes = &output.model.proto.graph.as_ref().unwrap().node;
            let scatters = nodes.iter().any(|node| node.op_type() == "ScatterElements");
            let name = output.gradients[0].name.clone().unwrap();
            (run(&output.model.proto, &inputs.iter().cloned().collect()).unwrap()[&name].floats().unwrap(), scatters)
        };
        let (found, by_places) = gradient("", "");
        let (expected, by_indices) = gradient(", i", &format!(", int64[1,1{}] i", shape(windows)));
        assert!(!by_places && by_indices, "{attributes}: both are written in one form");
        assert!(found == expected, "{attributes}");
    }
}

/// Behind a Relu the smaller tensor of the maxima is masked in the place of all elements, if nothing else takes these.
#[test]
fn a_maximum_behind_a_relu_passes_what_the_relu_passes() {
    let pooled = "y = MaxPool<kernel_shape=[2], strides=[2]>(r)";
    let model = |nodes: &str| -> Model {
        let head =
            "<ir_version: 8, opset_import: [\"\": 18]> g (float[4] x) => (float[1,1,2] y) <int64[3] s = {1, 1, 4}>";
        text::parse(&format!("{head} {{ c = Reshape(x, s) r = Relu(c) {nodes} }}")).unwrap().into()
    };
    let gradients = |nodes: &str, xs: &[&str]| -> (usize, Vec<Vec<f64>>) {
        let output = Gradients::new(["y"], xs.iter().copied()).build(&model(nodes)).unwrap();
        let computed = evaluate(&output.model.proto, &[("x", &[-1.0, 0.0, 3.0, 2.0], &[])]);
        let masks = output.model.proto.graph.as_ref().unwrap().node.iter().filter(|n| n.op_type() == "Less").count();
        (masks, output.gradients.iter().map(|g| computed[g.name.as_ref().unwrap()].floats().unwrap()).collect())
    };
    assert_eq!(gradients(pooled, &["x"]), (1, vec![vec![0.0, 0.0, 1.0, 0.0]]));
    // The maximum's own gradient is asked for, where it is 0 as well.
    assert_eq!(gradients(pooled, &["x", "r"]).1, [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]]);
    // Another node takes all elements.
    let skipped = "p = MaxPool<kernel_shape=[2], strides=[2]>(r) m = ReduceSum(r) y = Add(p, m)";
    assert_eq!(gradients(skipped, &["x"]).1, [[0.0, 0.0, 3.0, 2.0]]);
}
