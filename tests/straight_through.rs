//! Gradients with rounding counted as the identity, in tract: against numbers written out by the rule "what lies within the
//! range of the integers passes".
#![cfg(feature = "validate")]

use onnx_gradients::onnx::proto::OperatorSetIdProto;
use onnx_gradients::onnx::{ElementType, TensorProto, text};
use onnx_gradients::validate::{Options, Status, run, validate};
use onnx_gradients::{Gradients, Model, Output};
use std::collections::BTreeMap;

/// Inputs with their sizes and values, and the gradients that the sum of all elements of y has there; `None`: none.
type Point<'a> = &'a [(&'a str, &'a [i64], &'a [f64], Option<&'a [f64]>)];

fn model(opset: i64, graph: &str) -> Model {
    let mut model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": {opset}]>\n{graph}")).unwrap();
    if graph.contains("com.microsoft") {
        let domain = Some("com.microsoft".to_owned());
        model.opset_import.push(OperatorSetIdProto { domain, version: Some(1) });
    }
    model.into()
}

fn gradients(opset: i64, graph: &str, xs: &[&str]) -> Output {
    let request = Gradients::new(["y"], xs.iter().copied()).straight_through(true).only_gradients(true);
    request.build(&model(opset, graph)).unwrap()
}

fn check(opset: i64, graph: &str, point: Point) {
    let output = gradients(opset, graph, &point.iter().map(|(x, ..)| *x).collect::<Vec<_>>());
    compare(&output, graph, point);
}

fn compare(output: &Output, graph: &str, point: Point) {
    let tensor = |dims: &[i64], v: &[f64]| TensorProto::from_floats(ElementType::Float, dims, v).unwrap();
    let used: Vec<&str> = output.model.proto.graph.iter().flat_map(|g| &g.input).map(|i| i.name()).collect();
    let given = point.iter().filter(|(name, ..)| used.contains(name));
    let feeds = given.map(|(name, dims, v, _)| ((*name).to_owned(), tensor(dims, v))).collect();
    let computed: BTreeMap<String, TensorProto> = run(&output.model.proto, &feeds).unwrap();
    for ((x, dims, _, expected), found) in point.iter().zip(&output.gradients) {
        let found = found.name.as_ref().map(|g| (computed[g].dims.clone(), computed[g].floats().unwrap()));
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
        let same = match (&found, expected) {
            (Some((d, found)), Some(expected)) => {
                d == dims && found.len() == expected.len() && found.iter().zip(*expected).all(close)
            }
            (None, None) => true,
            _ => false,
        };
        assert!(same, "d{x} is {found:?}, not {expected:?}: {graph}");
    }
}

macro_rules! checks {
    ($($name:ident at $opset:literal: $graph:literal, $($x:ident $dims:tt at $at:tt => $expected:expr),+;)*) => {
        $(#[test]
        fn $name() {
            check($opset, $graph, &[$((stringify!($x), &$dims, &$at, $expected)),+]);
        })*
    };
}

checks! {
    // Steps of 0.5 from -64 to 63.5: the ends pass, what lies above by less than half a step is clipped already. The scale gets,
    // from within, the rounded number of steps less the number of steps, from outside the end of the range.
    ends_of_the_range at 13: "g (float[6] x, float s) => (float[6] y) <int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        x [6] at [-64.0, -64.1, 63.5, 63.6, 0.2, -100.0] => Some(&[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
        s [] at [0.5] => Some(&[0.0 - 128.0 + 0.0 + 127.0 + (0.0 - 0.4) - 128.0]);
    zero_point at 10: "g (float[5] x, float s) => (float[5] y) <uint8 z = {128}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        x [5] at [-64.0, -64.25, 63.5, 64.0, 1.2] => Some(&[1.0, 0.0, 1.0, 0.0, 1.0]),
        s [] at [0.5] => Some(&[-128.0 + 127.0 + (2.0 - 2.4)]);
    no_zero_point at 13: "g (float[3] x, float[1] s) => (float[3] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
        x [3] at [-0.1, 127.5, 128.0] => Some(&[0.0, 1.0, 0.0]), s [1] at [0.5] => Some(&[255.0]);
    two_scales at 13: "g (float[3] x, float s, float t) => (float[3] y) <int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z) }",
        x [3] at [1.2, -1.2, 70.0] => Some(&[4.0, 4.0, 0.0]), s [] at [0.5] => Some(&[-4.0 * 1.2 / 0.5 + 4.0 * 1.2 / 0.5]),
        t [] at [2.0] => Some(&[2.0 - 2.0 + 127.0]);
    cotangents_are_weighted at 13: "g (float[3] x, float s, float[3] w) => (float[3] y) <int8 z = {0}> { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Mul(d, w) }",
        x [3] at [1.2, -1.2, 70.0] => Some(&[2.0, -3.0, 0.0]), s [] at [0.5] => Some(&[2.0 * (2.0 - 2.4) - 3.0 * (2.4 - 2.0) + 5.0 * 127.0]),
        w [3] at [2.0, -3.0, 5.0] => Some(&[1.0, -1.0, 63.5]);
    axis at 13: "g (float[2,3] x, float[3] s) => (float[2,3] y) <int8[3] z = {0, 0, 1}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        x [2, 3] at [0.3, 130.0, -300.0, -70.0, 1.4, 5.0] => Some(&[1.0, 0.0, 0.0, 0.0, 1.0, 1.0]),
        s [3] at [0.5, 1.0, 2.0] => Some(&[0.4 - 128.0, 127.0 - 0.4, -129.0 - 0.5]);
    first_axis at 19: "g (float[2,3] x, float[2] s) => (float[2,3] y) { q = QuantizeLinear<axis=0>(x, s) y = DequantizeLinear<axis=-2>(q, s) }",
        x [2, 3] at [0.3, 130.0, -1.0, 300.0, 5.0, 0.6] => Some(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        s [2] at [0.5, 2.0] => Some(&[0.4 + 255.0 + 0.0, 0.0 - 0.5 - 0.3]);
    blocks at 21: "g (float[1,4] x, float[1,2] s) => (float[1,4] y) <int8[1,2] z = {0, 0}> { q = QuantizeLinear<axis=1, block_size=2>(x, s, z) y = DequantizeLinear<axis=1, block_size=2>(q, s, z) }",
        x [1, 4] at [0.3, -70.0, 5.0, 300.0] => Some(&[1.0, 0.0, 1.0, 0.0]), s [1, 2] at [0.5, 2.0] => Some(&[0.4 - 128.0, -0.5 + 127.0]);
    a_shorter_block at 21: "g (float[3,1] x, float[2,1] s) => (float[3,1] y) <int8[2,1] z = {0, 0}> { q = QuantizeLinear<axis=0, block_size=2>(x, s, z) y = DequantizeLinear<axis=0, block_size=2>(q, s, z) }",
        x [3, 1] at [0.3, -70.0, 5.0] => Some(&[1.0, 0.0, 1.0]), s [2, 1] at [0.5, 2.0] => Some(&[0.4 - 128.0, -0.5]);
    domain_of_onnxruntime at 17: "g (float[3] x, float s) => (float[3] y) <uint8 z = {1}> { q = com.microsoft.QuantizeLinear(x, s, z) y = com.microsoft.DequantizeLinear(q, s, z) }",
        x [3] at [-0.5, -1.0, 0.2] => Some(&[1.0, 0.0, 1.0]), s [] at [0.5] => Some(&[0.0 - 1.0 - 0.4]);
    // Types that tract does not have: 16 bits, 4 bits, floating-point of 8 and of 4.
    int16 at 21: "g (float[3] x) => (float[3] y) <float s = {1}> { q = QuantizeLinear<output_dtype=5>(x, s) y = DequantizeLinear(q, s) }",
        x [3] at [32767.0, 32768.0, -32768.0] => Some(&[1.0, 0.0, 1.0]);
    uint16 at 21: "g (float[3] x) => (float[3] y) <float s = {1}> { q = QuantizeLinear<output_dtype=4>(x, s) y = DequantizeLinear(q, s) }",
        x [3] at [65535.0, 65536.0, -1.0] => Some(&[1.0, 0.0, 0.0]);
    int4 at 21: "g (float[4] x) => (float[4] y) <float s = {1}> { q = QuantizeLinear<output_dtype=22>(x, s) y = DequantizeLinear(q, s) }",
        x [4] at [7.0, 7.1, -8.0, -8.1] => Some(&[1.0, 0.0, 1.0, 0.0]);
    uint4 at 21: "g (float[4] x) => (float[4] y) <float s = {1}> { q = QuantizeLinear<output_dtype=21>(x, s) y = DequantizeLinear(q, s) }",
        x [4] at [15.0, 15.1, 0.0, -0.1] => Some(&[1.0, 0.0, 1.0, 0.0]);
    float8e4m3fn at 21: "g (float[4] x) => (float[4] y) <float s = {1}> { q = QuantizeLinear<output_dtype=17, saturate=0>(x, s) y = DequantizeLinear(q, s) }",
        x [4] at [448.0, 449.0, -448.0, -449.0] => Some(&[1.0, 0.0, 1.0, 0.0]);
    float8e5m2 at 23: "g (float[2] x) => (float[2] y) <float s = {1}> { q = QuantizeLinear<output_dtype=19, precision=1>(x, s) y = DequantizeLinear<output_dtype=1>(q, s) }",
        x [2] at [57344.0, 57345.0] => Some(&[1.0, 0.0]);
    // What moves integers moves their gradients.
    transposed_and_sliced at 13: "g (float[2,3] x, float[4] w) => (float[4] y) <float s = {0.5}, int64[1] one = {1}, int64[1] three = {3}, int64[1] zero = {0}, int64[1] all = {-1}> {
        q = QuantizeLinear(x, s) t = Transpose(q) r = Slice(t, one, three, zero) f = Reshape(r, all) d = DequantizeLinear(f, s) y = Mul(d, w) }",
        x [2, 3] at [1.0, 1.0, 1.0, 1.0, 1.0, 1.0] => Some(&[0.0, 1.0, 3.0, 0.0, 2.0, 4.0]), w [4] at [1.0, 2.0, 3.0, 4.0] => Some(&[1.0, 1.0, 1.0, 1.0]);
    joined_and_split at 13: "g (float[2] a, float[2] b, float[1] w) => (float[1] y) <float s = {0.5}, float t = {2}, int64[3] parts = {1, 1, 2}> {
        p = QuantizeLinear(a, s) q = QuantizeLinear(b, s) c = Concat<axis=0>(p, q) u, v, r = Split<axis=0>(c, parts) d = DequantizeLinear(v, t) y = Mul(d, w) }",
        a [2] at [1.0, 1.0] => Some(&[0.0, 3.0 * 4.0]), b [2] at [1.0, 1.0] => Some(&[0.0, 0.0]), w [1] at [3.0] => Some(&[4.0]);
    gathered at 17: "g (float[3] x, float[4] w) => (float[4] y) <float s = {0.5}, int64[4] i = {0, 2, 2, -1}> {
        q = QuantizeLinear(x, s) t = Gather(q, i) d = DequantizeLinear(t, s) y = Mul(d, w) }",
        x [3] at [1.0, 1.0, 1.0] => Some(&[1.0, 0.0, 2.0 + 3.0 + 4.0]), w [4] at [1.0, 2.0, 3.0, 4.0] => Some(&[1.0, 1.0, 1.0, 1.0]);
    gathered_elements at 17: "g (float[3] x, float[2] w) => (float[2] y) <float s = {0.5}, int64[2] i = {2, 2}> {
        q = QuantizeLinear(x, s) t = GatherElements(q, i) d = DequantizeLinear(t, s) y = Mul(d, w) }",
        x [3] at [1.0, 1.0, 1.0] => Some(&[0.0, 0.0, 3.0]), w [2] at [1.0, 2.0] => Some(&[1.0, 1.0]);
    padded at 13: "g (float[2] x, float[4] w) => (float[4] y) <float s = {0.5}, uint8 z = {3}, int64[2] p = {1, 1}> {
        q = QuantizeLinear(x, s, z) t = Pad(q, p, z) d = DequantizeLinear(t, s, z) y = Mul(d, w) }",
        x [2] at [1.0, 2.0] => Some(&[2.0, 3.0]), w [4] at [1.0, 2.0, 3.0, 4.0] => Some(&[0.0, 1.0, 2.0, 0.0]);
    rectified at 14: "g (float[3] x) => (float[3] y) <float s = {0.5}, int8 z = {0}> { q = QuantizeLinear(x, s, z) t = Relu(q) y = DequantizeLinear(t, s, z) }",
        x [3] at [-1.0, 0.1, 2.0] => Some(&[0.0, 0.0, 1.0]);
    clipped at 13: "g (float[3] x) => (float[3] y) <float s = {0.5}, int8 z = {0}, int8 low = {-1}, int8 high = {3}> { q = QuantizeLinear(x, s, z) t = Clip(q, low, high) y = DequantizeLinear(t, s, z) }",
        x [3] at [-1.0, -0.5, 1.5] => Some(&[0.0, 1.0, 1.0]);
    larger_of_two at 13: "g (float[2] a, float[2] b) => (float[2] y) <float s = {0.5}, int8 z = {0}> { p = QuantizeLinear(a, s, z) q = QuantizeLinear(b, s, z) t = Max(p, q) y = DequantizeLinear(t, s, z) }",
        a [2] at [1.0, 2.0] => Some(&[0.0, 1.0]), b [2] at [1.5, 1.0] => Some(&[1.0, 0.0]);
    pooled at 17: "g (float[1,1,3] x) => (float[1,1,2] y) <float s = {0.5}, uint8 z = {0}> { q = QuantizeLinear(x, s, z) t = MaxPool<kernel_shape=[2]>(q) y = DequantizeLinear(t, s, z) }",
        x [1, 1, 3] at [1.0, 2.0, 1.0] => Some(&[0.0, 2.0, 0.0]);
    resized at 13: "g (float[1,1,2] x, float[1,1,4] w) => (float[1,1,4] y) <float s = {0.5}, uint8 z = {0}, float[3] k = {1, 1, 2}> {
        q = QuantizeLinear(x, s, z) t = Resize<mode=\"nearest\", coordinate_transformation_mode=\"asymmetric\", nearest_mode=\"floor\">(q, , k) d = DequantizeLinear(t, s, z) y = Mul(d, w) }",
        x [1, 1, 2] at [1.0, 2.0] => Some(&[3.0, 7.0]), w [1, 1, 4] at [1.0, 2.0, 3.0, 4.0] => Some(&[1.0, 1.0, 2.0, 2.0]);
    largest at 13: "g (float[4] x) => (float[1] y) <float s = {0.5}, uint8 z = {0}> { q = QuantizeLinear(x, s, z) t = ReduceMax(q) y = DequantizeLinear(t, s, z) }",
        x [4] at [1.0, 2.0, 2.1, 1.5] => Some(&[0.0, 0.5, 0.5, 0.0]);
    largest_two at 13: "g (float[4] x, float[2] w) => (float[2] y) <float s = {0.5}, uint8 z = {0}, int64[1] k = {2}> { q = QuantizeLinear(x, s, z) t, i = TopK(q, k) d = DequantizeLinear(t, s, z) y = Mul(d, w) }",
        x [4] at [1.0, 2.0, 3.0, 1.5] => Some(&[0.0, 5.0, 4.0, 0.0]), w [2] at [4.0, 5.0] => Some(&[3.0, 2.0]);
    cast_to_numbers at 13: "g (float[2] x) => (float[2] y) <float s = {0.5}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = Cast<to=1>(q) }",
        x [2] at [1.0, 100.0] => Some(&[2.0, 0.0]);
    in_a_branch at 13: "g (float[2] x, float s) => (float[2] y) <bool c = {1}> {
        y = If(c) <then_branch = t () => (float[2] a) { q = QuantizeLinear(x, s) a = DequantizeLinear(q, s) }, else_branch = e () => (float[2] b) { b = Identity(x) }> }",
        x [2] at [1.2, -1.0] => Some(&[1.0, 0.0]), s [] at [0.5] => Some(&[2.0 - 2.4]);
    // Nothing passes the rest.
    added_integers at 14: "g (float[2] x, float s) => (float[2] y) { q = QuantizeLinear(x, s) t = Add(q, q) y = DequantizeLinear(t, s) }",
        x [2] at [1.0, 2.0] => None, s [] at [0.5] => Some(&[12.0]);
    cast_to_integers at 13: "g (float[2] x, float s) => (float[2] y) { q = Cast<to=3>(x) y = DequantizeLinear(q, s) }",
        x [2] at [1.0, 2.0] => None, s [] at [0.5] => Some(&[3.0]);
    compared_integers at 13: "g (float[2] x, float[2] a) => (float[2] y) <float s = {0.5}, uint8 z = {3}> { q = QuantizeLinear(x, s, z) c = Equal(q, z) y = Where(c, a, s) }",
        x [2] at [1.0, 0.0] => None, a [2] at [1.0, 2.0] => Some(&[0.0, 1.0]);
    // With s = 2.55 / 255 the steps are 50, 255 and 100.42: the scale gets 100 - 100.42, and a 255th of it goes to the largest.
    dynamic at 11: "g (float[3] x) => (float[3] y) { q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }",
        x [3] at [0.5, 2.55, 1.0042] => Some(&[1.0, 1.0 - 0.42 / 255.0, 1.0]);
    dynamic_product at 11: "g (float[1,2] x) => (float[1,1] y) <uint8[2,1] b = {7, 130}, uint8 o = {100}> {
        q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, b, z, o) f = Cast<to=1>(p) y = Mul(f, s) }",
        // q is 100 and 255: the scale gets the product of steps less that of numbers of steps, none here.
        x [1, 2] at [1.0, 2.55] => Some(&[-93.0, 30.0]);
    product_of_integers at 13: "g (float[2,2] a, float[2,1] b) => (float[2,1] y) <float[2] s = {0.5, 1}, float t = {0.25}, int8 z = {1}, int8[2] zs = {1, 2}> {
        p = QuantizeLinear<axis=0>(a, s, zs) q = QuantizeLinear(b, t, z) m = MatMulInteger(p, q, zs, z) y = Cast<to=1>(m) }",
        a [2, 2] at [1.0, 2.0, 3.0, -4.0] => Some(&[8.0, -4.0, 4.0, -2.0]), b [2, 1] at [1.0, -0.5] => Some(&[4.0 * (2.0 + 3.0), 4.0 * (4.0 - 4.0)]);
    convolution_of_integers at 13: "g (float[1,1,3] x, float[2,1,2] w) => (float[1,2,2] y) <float s = {0.5}, uint8 z = {3}> {
        p = QuantizeLinear(x, s, z) q = QuantizeLinear(w, s, z) c = ConvInteger(p, q, z, z) y = Cast<to=1>(c) }",
        x [1, 1, 3] at [1.0, 2.0, 3.0] => Some(&[2.0 * (2.0 + 1.0), 2.0 * (2.0 + 1.0 + 4.0 - 1.0), 2.0 * (4.0 - 1.0)]),
        w [2, 1, 2] at [1.0, 2.0, 0.5, -0.5] => Some(&[12.0, 20.0, 12.0, 20.0]);
    // [1 2] [3; -1] = 1, in steps of 0.25 between -8 and 7.75.
    quantized_product at 10: "g (float[1,2] a, float[2,1] b, float s) => (float[1,1] y) <float t = {0.25}, uint8 z = {128}, uint8 o = {32}> {
        p = QuantizeLinear(a, s, z) q = QuantizeLinear(b, s, z) m = QLinearMatMul(p, s, z, q, s, z, t, o) y = DequantizeLinear(m, t, o) }",
        a [1, 2] at [1.0, 2.0] => Some(&[3.0, -1.0]), b [2, 1] at [3.0, -1.0] => Some(&[1.0, 2.0]), s [] at [0.5] => Some(&[0.0]);
    // Above 223 steps of 0.25 all is clipped.
    quantized_product_out_of_range at 10: "g (float[2,1] a, float[1,1] b, float t) => (float[2,1] y) <float s = {0.5}, uint8 z = {128}, uint8 o = {32}> {
        p = QuantizeLinear(a, s, z) q = QuantizeLinear(b, s, z) m = QLinearMatMul(p, s, z, q, s, z, t, o) y = DequantizeLinear(m, t, o) }",
        a [2, 1] at [1.0, 20.0] => Some(&[10.0, 0.0]), b [1, 1] at [10.0] => Some(&[1.0]), t [] at [0.25] => Some(&[0.0 + 223.0]);
    quantized_convolution at 10: "g (float[1,1,3] x, float[1,1,2] w, float r) => (float[1,1,2] y) <float s = {0.5}, float t = {0.25}, uint8 z = {128}, int32[1] bias = {4}> {
        p = QuantizeLinear(x, r, z) q = QuantizeLinear(w, s, z) m = QLinearConv<kernel_shape=[2]>(p, r, z, q, s, z, t, z, bias) y = DequantizeLinear(m, t, z) }",
        x [1, 1, 3] at [1.0, 2.0, 3.0] => Some(&[0.5, 0.5 + 1.5, 1.5]), w [1, 1, 2] at [0.5, 1.5] => Some(&[1.0 + 2.0, 2.0 + 3.0]),
        // The bias is in steps of r s: 4 * 0.5 for each of two elements.
        r [] at [0.5] => Some(&[4.0]);
}

checks! {
    // Of steps of 0.5, between -1 and 1.
    fake_quantization at 13: "g (float[4] x, float s) => (float[4] y) <float low = {-1}, float high = {1}> {
        u = Div(x, s) r = Round(u) v = Mul(r, s) c = Clip(v, low, high) y = Mul(c, c) }",
        x [4] at [0.3, -0.6, 0.9, 2.0] => Some(&[1.0, -1.0, 2.0, 0.0]),
        s [] at [0.5] => Some(&[2.0 * (0.5 * (1.0 - 0.6) - 0.5 * (-1.0 + 1.2) + 1.0 * (2.0 - 1.8))]);
    floor_and_ceil at 11: "g (float[2] x) => (float[2] y) { f = Floor(x) c = Ceil(x) y = Mul(f, c) }",
        x [2] at [1.3, -0.6] => Some(&[3.0, -1.0]);
    // The formula of GridSample takes floors, which stay.
    sampled at 16: "g (float[1,1,1,2] x, float[1,1,1,2] p) => (float[1,1,1,1] y) { y = GridSample<align_corners = 1>(x, p) }",
        x [1, 1, 1, 2] at [1.0, 3.0] => Some(&[0.25, 0.75]), p [1, 1, 1, 2] at [0.5, 0.0] => Some(&[1.0, 0.0]);
}

const PAIR: &str = "g (float[3] x, float s) => (float[3] y) <int8 z = {0}> { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Mul(d, d) }";

#[test]
fn without_the_option_nothing_passes() {
    let output = Gradients::new(["y"], ["x", "s"]).build(&model(13, PAIR)).unwrap();
    let found: Vec<bool> = output.gradients.iter().map(|g| g.name.is_some()).collect();
    assert_eq!(found, [false, true]);
    // Nor where the type of the integers cannot be told.
    let graph =
        "g (float[3] x, float s) => (float[3] y) { z = my.Zero() q = QuantizeLinear(x, s, z) y = Cast<to=1>(q) }";
    let mut unknown = model(13, graph);
    let domain = Some("my".to_owned());
    unknown.proto.opset_import.push(OperatorSetIdProto { domain, version: Some(1) });
    let output = Gradients::new(["y"], ["x"]).build(&unknown).unwrap();
    assert_eq!(output.gradients[0].name, None);
    let error = Gradients::new(["y"], ["x"]).straight_through(true).build(&unknown).unwrap_err();
    assert!(format!("{error:#}").contains("element type"), "{error:#}");
}

#[test]
fn second_derivatives() {
    let values: &[f64] = &[1.2, 70.0, -1.2];
    let first = Gradients::new(["y"], ["x"]).straight_through(true).build(&model(13, PAIR)).unwrap();
    let dx = first.gradients[0].name.clone().unwrap();
    let request = Gradients::new([dx], ["x", "s"]).straight_through(true).only_gradients(true);
    let second = request.build(&first.model).unwrap();
    // dx = 2 d where d passes, so d²y / dx² is 2 there, and d²y / dx ds is 2 (round(x / s) - x / s).
    let ds = 2.0 * (2.0 - 2.4) + 2.0 * (-2.0 + 2.4);
    compare(&second, PAIR, &[("x", &[3], values, Some(&[2.0, 0.0, 2.0])), ("s", &[], &[0.5], Some(&[ds]))]);
}

#[test]
fn integers_that_are_xs_or_stops() {
    let output = gradients(13, PAIR, &["x", "q"]);
    assert_eq!(output.gradients[1].name, None);
    assert!(output.gradients[0].name.is_some());
    let stopped = Gradients::new(["y"], ["x"]).stop(["q"]).straight_through(true).build(&model(13, PAIR)).unwrap();
    assert_eq!(stopped.gradients[0].name, None);
}

#[test]
fn what_passes_integers_no_gradient_is_named() {
    let warnings = |graph: &str| gradients(17, graph, &["x"]).warnings.join("; ");
    let added = "g (float[2] x, float s) => (float[2] y) { q = QuantizeLinear(x, s) t = Add(q, q) u = Sub(q, q) y = DequantizeLinear(t, s) }";
    assert_eq!(warnings(added), "node of 't' (Add) passes no gradient to the quantized integers that it takes");
    let captured = "g (float[2] x, bool c, float s) => (float[2] y) {
        q = QuantizeLinear(x, s)
        y = If(c) <then_branch = t () => (float[2] a) { a = DequantizeLinear(q, s) }, else_branch = e () => (float[2] b) { b = Identity(x) }> }";
    assert_eq!(warnings(captured), "node of 'y' (If) passes no gradient to the quantized integers that it takes");
    // A wider type would hold the same numbers, but a narrower one would not.
    let cast = "g (float[2] x, float s) => (float[2] y) { q = QuantizeLinear(x, s) t = Cast<to=6>(q) y = DequantizeLinear(t, s) }";
    assert_eq!(warnings(cast), "node of 't' (Cast) passes no gradient to the quantized integers that it takes");
    let compared = "g (float[2] x, float s) => (float[2] y) { q = QuantizeLinear(x, s) n = Shape(q) d = DequantizeLinear(q, s) y = Reshape(d, n) }";
    assert_eq!(warnings(compared) + &warnings(PAIR), "");
    let dynamic = "g (float[1,2] x) => (float[1,1] y) <uint8[2,1] b = {7, 130}> { q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, b, z) y = Cast<to=1>(p) }";
    assert_eq!(warnings(dynamic), "");
}

#[test]
fn operators_that_are_not_known_stand_in_the_way() {
    let graph = "g (float[3] x, float s) => (float[3] y) { q = QuantizeLinear(x, s) t = com.microsoft.QLinearUnknown(q, s, , q, s, , s) y = DequantizeLinear(t, s) }";
    let request = Gradients::new(["y"], ["x"]);
    assert_eq!(request.build(&model(13, graph)).unwrap().gradients[0].name, None);
    let error = request.straight_through(true).build(&model(13, graph)).unwrap_err();
    assert!(format!("{error:#}").contains("com.microsoft.QLinearUnknown"), "{error:#}");
}

#[test]
fn validation_says_what_it_does_not_compare() {
    let graph = "g (float[3] x, float s, float[3] b) => (float[3] y) <int8 z = {0}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Mul(d, b) }";
    let output = Gradients::new(["y"], ["x", "b"]).straight_through(true).build(&model(13, graph)).unwrap();
    let validation = validate(&output.model.proto, None, &output.record, &Options::default());
    assert_eq!(validation.status, Status::Passed, "{:?}", validation.reason);
    let [x, b] = validation.gradients.as_slice() else { panic!("{:?}", validation.gradients) };
    assert!(x.note.as_ref().is_some_and(|n| n.starts_with("not compared: straight-through")), "{:?}", x.note);
    assert!(!x.compared && b.compared);
}
