//! What a weight is (docs/weights.md), by models of the kinds that exporters write.

use crate::graph::{Dims, Fact, Graph, fact_of_type};
use crate::onnx::inline::inline_functions;
use crate::onnx::{TensorProto, text};
use crate::training::Choice;
use crate::training::{LossSpec, Trainable};
use crate::weights::{self, Kind};
use crate::{Gradients, Model, Seed, Wanted, rules};

/// A model; tensors that are declared without values hold different ones.
fn parse(body: &str) -> Model {
    let text = format!("<ir_version: 8, opset_import: [\"\": 17, \"com.microsoft\": 1]> g {body}");
    let mut proto = text::parse(&text).unwrap_or_else(|e| panic!("{body}: {e:#}"));
    let graph = proto.graph.as_mut().unwrap();
    for info in std::mem::take(&mut graph.value_info) {
        let Fact { shape, .. } = fact_of_type(info.r#type.as_ref(), &Dims::default());
        let dims: Vec<i64> = shape.unwrap().iter().map(|d| d.known().unwrap()).collect();
        let values: Vec<f32> = (0..dims.iter().product()).map(|i: i64| i as f32 * 0.1 + 0.3).collect();
        graph.initializer.push(TensorProto { name: info.name, ..TensorProto::from_float32(&dims, &values) });
    }
    Model::from(proto)
}

/// The weights of a model, sorted, and the others with why they are none.
fn found(model: &Model) -> (Vec<String>, Vec<(String, Kind, String)>) {
    let proto = inline_functions(&model.proto, &|_| true).unwrap();
    let loaded = rules::load(&proto).unwrap();
    let ys = &loaded.graph.scope(Graph::MAIN).outputs;
    let tensors = weights::tensors(&proto, &loaded, ys);
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for t in tensors {
        match t.kind {
            Kind::Weight => own.push(t.name),
            kind => others.push((t.name, kind, t.why)),
        }
    }
    own.sort();
    (own, others)
}

#[track_caller]
fn check(body: &str, expected: &[&str]) {
    let (own, others) = found(&parse(body));
    assert_eq!(own, expected, "{others:?}");
}

#[test]
fn one_element_counts_by_its_place() {
    check(
        "(float[N,3] x) => (float[N,1] y) <float[3,1] w = {1, 2, 3}, float[1] b = {1}, float half = {0.5}>
         { a = MatMul (x, w) c = Add (a, b) y = Mul (c, half) }",
        &["b", "w"],
    );
    // A vector as the factor, a bias without dimensions, a sum over atoms before it.
    check(
        "(float[N,3] x) => (float[N] y) <float[3] w = {1, 2, 3}, float b = {1}> { a = MatMul (x, w) y = Add (a, b) }",
        &["b", "w"],
    );
    check(
        "(float[N,A,3] x) => (float[N,1] y) <float[3,1] w = {1, 2, 3}, float[1] b = {1}, int64[1] axis = {1}>
         { a = MatMul (x, w) s = ReduceSum <keepdims = 0> (a, axis) y = Add (s, b) }",
        &["b", "w"],
    );
    check(
        "(float[N,1,4,4] x) => (float[N,1,4,4] y) <float[1,1,1,1] w = {2}, float[1] b = {1}, float[1,1,1] s = {3}>
         { a = Conv (x, w, b) y = Mul (a, s) }",
        &["b", "s", "w"],
    );
    check(
        "(float[N,1] x) => (float[N,1] y) <float[1] w = {2}, float[1] b = {1}> { a = Mul (x, w) y = Add (a, b) }",
        &["b", "w"],
    );
    // Numbers of formulas: HardSwish and the tanh GELU by hand, an epsilon.
    check(
        "(float[N,3] x) => (float[N,1] y) <float[3,1] w = {1, 2, 3}, float[1] b = {1}, float three = {3}, float six = {6}, float zero = {0}>
         { h = Gemm (x, w, b) a = Add (h, three) c = Clip (a, zero, six) d = Div (c, six) y = Mul (h, d) }",
        &["b", "w"],
    );
    check(
        "(float[N,3] x) => (float[N,3] y) <float[3] g = {1, 2, 3}, float[3] b = {0, 1, 2}, float[1] e = {0.00001}>
         { m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) q = Mul (d, d) v = ReduceMean <axes = [-1]> (q)
           t = Add (v, e) r = Sqrt (t) n = Div (d, r) k = Mul (n, g) y = Add (k, b) }",
        &["b", "g"],
    );
}

#[test]
fn recurrent_weights_are_found_behind_what_moves_them() {
    check(
        "(float[T,N,3] x) => (float[T,1,N,2] y) <float[8,3] wi, float[8,2] wh, float[8] bi, float[8] bh,
          int64[1] z = {0}, int64[1] four = {4}, int64[1] eight = {8}>
         { w1 = Slice (wi, z, four, z) w2 = Slice (wi, four, eight, z) w = Concat <axis = 0> (w2, w1) u = Unsqueeze (w, z)
           r = Unsqueeze (wh, z) b0 = Concat <axis = 0> (bi, bh) b = Unsqueeze (b0, z)
           y, h, c = LSTM <hidden_size = 2> (x, u, r, b) }",
        &["bh", "bi", "wh", "wi"],
    );
}

#[test]
fn tokens_and_learned_positions_are_weights() {
    check(
        "(int64[B,T] ids) => (float[B,T,6] y) <float[9,4] words, float[8,4] places, float[2,4] kinds, float[4,6] w, int64 zero = {0}, int64 one = {1}, int64[1] z = {0}>
         { e = Gather (words, ids) s = Shape (ids) n = Gather (s, one) r = Range (zero, n, one) p = Gather (places, r)
           k = Gather (kinds, z) a = Add (e, p) h = Add (a, k) y = MatMul (h, w) }",
        &["kinds", "places", "w", "words"],
    );
    // The bias of relative positions (T5, Swin): looked up by constants, added to scores.
    check(
        "(float[B,2,2,4] x) => (float[B,2,2,2] y) <float[4,4] w, float[3,2] table, int64[2,2] index = {1, 0, 2, 1}>
         { q = MatMul (x, w) k = Transpose <perm = [0,1,3,2]> (x) s = MatMul (q, k) t = Gather (table, index)
           b = Transpose <perm = [2,0,1]> (t) a = Add (s, b) y = Softmax (a) }",
        &["table", "w"],
    );
    // Padding with zeros is no token.
    check(
        "(float[1,T,4] x) => (float[1,U,4] y) <float[1,1,4] cls = {1, 2, 3, 4}, float[1,2,4] pad = {0, 0, 0, 0, 0, 0, 0, 0}, float[4,4] w>
         { a = Concat <axis = 1> (pad, cls, x) y = MatMul (a, w) }",
        &["cls", "w"],
    );
}

#[test]
fn what_positions_alone_reach_is_no_weight() {
    // As Llama is exported: a product of matrices, frequencies with the given positions.
    check(
        "(float[B,T,4] x, int64[B,T] at) => (float[B,T,4] y) <float[1,2,1] inv_freq = {1, 0.01}, float[4,4] w, int64[1] one = {1}>
         { q = MatMul (x, w) u = Unsqueeze (at, one) f = Cast <to = 1> (u) a = MatMul (inv_freq, f) t = Transpose <perm = [0,2,1]> (a)
           e = Concat <axis = -1> (t, t) c = Cos (e) s = Sin (e) qc = Mul (q, c) qs = Mul (q, s) y = Add (qc, qs) }",
        &["w"],
    );
    // Tables of cosines, looked up by given positions or cut off at the length.
    check(
        "(float[B,T,2] x, int64[T] at) => (float[B,T,2] y) <float[3,2] cos = {1, 1, 0.5403, 0.9211, -0.4161, 0.6967}, float[3,2] sin = {0, 0, 0.8415, 0.3894, 0.9093, 0.7174}, float[2,2] w>
         { q = MatMul (x, w) c = Gather (cos, at) s = Gather (sin, at) qc = Mul (q, c) qs = Mul (q, s) y = Add (qc, qs) }",
        &["w"],
    );
    // Factors that are looked up and begin with zeros for padding are no sines.
    check(
        "(float[B,T,2] x, int64[T] at) => (float[B,T,2] y) <float[4,2] factors = {0, 0, 0.1, -0.2, 0.3, 0.1, -0.4, 0.2}, float[2,2] w>
         { q = MatMul (x, w) f = Gather (factors, at) y = Mul (q, f) }",
        &["factors", "w"],
    );
    // Slopes of ALiBi.
    check(
        "(float[B,2,T,T] x) => (float[B,2,T,T] y) <float[2,1,1] slopes = {0.5, 0.25}, float[2,2,1,1] w, int64 zero = {0}, int64 one = {1}, int64 two = {2}>
         { q = Conv (x, w) s = Shape (x) n = Gather (s, two) r = Range (zero, n, one) f = Cast <to = 1> (r) b = Mul (slopes, f)
           a = Add (q, b) y = Softmax (a) }",
        &["w"],
    );
}

#[test]
fn masks_bounds_and_normalization_are_constants() {
    check(
        "(float[B,3,3] x) => (float[B,3,3] y) <float[3,3] w, float[3,3] m = {0, -3.4e38, -3.4e38, 0, 0, -3.4e38, 0, 0, 0}, float[3,3] bits = {1, 0, 0, 1, 1, 0, 1, 1, 1}>
         { q = MatMul (x, w) s = Mul (q, bits) a = Add (s, m) y = Softmax (a) }",
        &["w"],
    );
    check(
        "(float[N,3,4,4] image) => (float[N,2,4,4] y) <float[1,3,1,1] scale = {4, 5, 6}, float[1,3,1,1] shift = {1, 2, 3}, float[2,3,1,1] w>
         { a = Mul (image, scale) b = Add (a, shift) y = Conv (b, w) }",
        &["w"],
    );
    check(
        "(float[N,2,4,4] x) => (float[N,2,8,8] y) <float[2,2,1,1] w, float[2] g, float[2] o, float[2] mean, float[2] var, float[8] roi, float[4] scales = {1, 1, 2, 2}>
         { a = Conv (x, w) b = BatchNormalization (a, g, o, mean, var) y = Resize (b, roi, scales) }",
        &["g", "o", "w"],
    );
}

#[test]
fn weights_lie_in_inputs_constants_and_integers() {
    let body = "(float[N,3] x, float[3,2] w) => (float[N,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}, int8[2,2] q = {1, 2, 3, 4}, float s = {0.5}, int8[2,2] raw = {1, 2, 3, 4}>
         { c = Constant <value_floats = [1.0, 2.0]> () a = MatMul (x, w) b = Add (a, c) d = DequantizeLinear (q, s) e = MatMul (b, d)
           t, u, z = DynamicQuantizeLinear (e) i = MatMulInteger (t, raw, z) f = Cast <to = 1> (i) g = Mul (f, u) y = Add (g, e) }";
    let (own, others) = found(&parse(body));
    assert_eq!(own, ["c", "d", "w"]);
    assert!(others.iter().any(|(name, kind, _)| name == "raw" && *kind == Kind::Integers), "{others:?}");
    // A step asks nobody for a tensor that has a default.
    let artifacts = Trainable::new([LossSpec::new("mse")]).build(&parse(body)).unwrap();
    let data: Vec<&str> = artifacts.manifest.data.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(data, ["x"]);
    let raw = artifacts.manifest.weights.iter().find(|e| e.name == "raw").unwrap();
    assert!(!raw.trained && raw.why.contains("MatMulInteger"), "{}", raw.why);
}

#[test]
fn what_an_earlier_call_wrote_is_no_weight() {
    let model = parse("(float[2,3] x) => (float[2,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}> { y = MatMul (x, w) }");
    let output = Gradients::new(["y"], ["x"]).seed("y", Seed::Ones).build(&model).unwrap();
    assert_eq!(found(&output.model).0, ["w"]);
}

#[test]
fn choices_compose() {
    let body =
        "(float[N,4] x) => (float[N,2] y) <float[4,4] a, float[4] ab, float[4,2] b, float[2] bb, float half = {0.5}>
         { p = Gemm (x, a, ab) h = Mul (p, half) y = Gemm (h, b, bb) }";
    let trained = |train: &[&str], freeze: &[&str], last: Option<usize>| -> Vec<String> {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let choice = Choice { train: owned(train), freeze: owned(freeze), last };
        let artifacts = Trainable::new([LossSpec::new("mse")]).choose(choice).build(&parse(body)).unwrap();
        let mut names: Vec<String> = artifacts.manifest.parameters.iter().map(|p| p.name.clone()).collect();
        names.sort();
        names
    };
    assert_eq!(trained(&[], &[], None), ["a", "ab", "b", "bb"]);
    assert_eq!(trained(&["+half"], &[], None), ["a", "ab", "b", "bb", "half"]);
    assert_eq!(trained(&["-a*"], &[], None), ["b", "bb"]);
    assert_eq!(trained(&["b*", "+half"], &[], None), ["b", "bb", "half"]);
    assert_eq!(trained(&["*"], &["a*", "-ab"], None), ["ab", "b", "bb"]);
    assert_eq!(trained(&[], &[], Some(1)), ["b", "bb"]);
}

#[test]
fn groups_that_are_normalized_as_instances_have_their_scale_behind() {
    let group = |ones: &str, behind: &str| {
        let (own, _) = found(&parse(&format!(
            "(float[n,4,h] x, int64[3] whole) => (float[n,4,h] y) <float[2] one = {ones}, float[2] zero = {{0, 0}}, float[4,1] w, float[4,1] b,
                int64[3] groups = {{0, 2, -1}}> {{
                r = Reshape (x, groups)
                i = InstanceNormalization (r, one, zero)
                k = Reshape (i, whole)
                {behind}
            }}"
        )));
        own
    };
    let scaled = "m = Mul (k, w) y = Add (m, b)";
    assert_eq!(group("{1, 1}", scaled), ["b", "w"]);
    // A scale that is none of ones was learned, and one behind which nothing scales is the only one.
    assert_eq!(group("{1, 2}", scaled), ["b", "one", "w"]);
    assert_eq!(group("{1, 1}", "y = Add (k, b)"), ["b", "one", "zero"]);
}

#[test]
fn fixed_filters_are_no_weights() {
    // The real and the imaginary part of a spectrum, its power, and triangles over its frequencies.
    check(
        "(float[N,1,t] x) => (float[N,s,2] y) <float[4,1,3] basis, float[2,3] mel = {0.5, 0, 0, 0, 0, 0.7}, float[3] mean, float[3,2] w> {
            f = Conv (x, basis)
            re, im = Split <axis = 1> (f)
            a = Mul (re, re)
            b = Mul (im, im)
            p = Add (a, b)
            q = Transpose <perm = [0, 2, 1]> (p)
            m = MatMul (q, mel)
            l = Log (m)
            c = Sub (l, mean)
            y = MatMul (c, w)
        }",
        &["w"],
    );
    // What is squared at the end of a model was learned: nothing else was.
    check("(float[N,1,t] x) => (float[N,2,s] y) <float[2,1,4] w> { h = Conv (x, w) y = Mul (h, h) }", &["w"]);
    // What is squared behind a layer was learned, as is a first layer that something else takes.
    check(
        "(float[N,4] x) => (float[N,2] y, float[N,4] f) <float[4,4] v, float[4,4] w, float[4,2] u> {
            f = MatMul (x, v)
            g = MatMul (f, w)
            h = Mul (g, g)
            y = MatMul (h, u)
        }",
        &["u", "v", "w"],
    );
    let kernels = |values: &str| {
        let body = format!(
            "(float[N,2,h,h] x) => (float[N,2,k,k] y) <float[2,2,3,3] w, float[2,1,1,3] k = {values}> {{
                c = Conv (x, w)
                y = Conv <group = 2> (c, k)
            }}"
        );
        found(&parse(&body)).0
    };
    assert_eq!(kernels("{1, 2, 1, 1, 2, 1}"), ["w"]);
    assert_eq!(kernels("{1, 2, 1, 1, 2, 2}"), ["k", "w"]);
    assert_eq!(kernels("{0, 0, 0, 0, 0, 0}"), ["k", "w"], "what training begins with");
}

#[test]
fn units_of_an_output_are_no_weights() {
    let tail = "<float[4,2] w, float[2] b, float[2] scale, float[2] mean>";
    check(
        &format!(
            "(float[N,4] x) => (float[N,2] y) {tail} {{ a = Gemm (x, w, b) s = Mul (a, scale) y = Add (s, mean) }}"
        ),
        &["b", "w"],
    );
    // Without a bias the layer has none but this; and what something else takes is no output's unit.
    check(
        &format!(
            "(float[N,4] x) => (float[N,2] y) {tail} {{ a = MatMul (x, w) s = Mul (a, scale) y = Add (s, mean) }}"
        ),
        &["mean", "scale", "w"],
    );
    check(
        &format!(
            "(float[N,4] x) => (float[N,2] y) {tail} {{ a = Gemm (x, w, b) s = Mul (a, scale) t = Add (s, mean) y = Relu (t) }}"
        ),
        &["b", "mean", "scale", "w"],
    );
}

#[test]
fn tokens_may_begin_as_zeros() {
    let token = |value: &str, behind: &str| {
        let body = format!(
            "(float[N,3,2] x) => (float[N,4,2] y) <float[1,1,2] token = {value}, float[1,4,2] positions, float[2,2] w, int64[3] many = {{1, 1, 1}}> {{
                e = Expand (token, many)
                j = Concat <axis = 1> (e, x)
                {behind}
            }}"
        );
        found(&parse(&body)).0
    };
    let added = "k = Add (j, positions) y = MatMul (k, w)";
    assert_eq!(token("{0, 0}", added), ["positions", "token", "w"]);
    assert_eq!(token("{0.02, 0.02}", "y = MatMul (j, w)"), ["token", "w"]);
    assert_eq!(token("{0, 0}", "y = MatMul (j, w)"), ["w"], "zeros fill up");
}

#[test]
fn copies_of_one_weight_are_said_to_be_some() {
    let body = "(float[2,3,2] x) => (float[2,4,2] y) <float[2,1,2] token = {1, 2, 1, 2}, float[2,2] w, float[2,2] v> {
        j = Concat <axis = 1> (token, x)
        k = MatMul (j, w)
        y = MatMul (k, v)
    }";
    let artifacts = Trainable::new([LossSpec::new("mse")]).build(&parse(body)).unwrap();
    let said = artifacts.manifest.decisions.join("\n");
    assert!(said.contains("'token' holds the same numbers 2 times along its first axis"), "{said}");
    assert!(said.contains("'w', 'v' hold the same numbers"), "{said}");
}

#[test]
fn functions_keep_weights_positive_or_bounded() {
    check(
        "(float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4] decay, float[1,4] rate, float scale = {2.6}, float half = {0.5}> {
            a = MatMul (x, w)
            e = Exp (decay)
            n = Neg (e)
            b = Mul (a, n)
            s = Softplus (rate)
            c = Add (b, s)
            t = Exp (scale)
            d = Mul (c, t)
            h = Neg (half)
            y = Mul (d, h)
        }",
        &["decay", "rate", "scale", "w"],
    );
}

#[test]
fn what_layers_multiply_with_their_weights_may_be_positions_or_nothing() {
    let table = |values: &str| {
        let body = format!(
            "(float[N,2,4] x) => (float[N,2,4] y) <float[1,2,4] p = {values}, float[4,4] w, float[4,4] v> {{
                a = MatMul (p, w)
                b = MatMul (x, v)
                y = Add (a, b)
            }}"
        );
        found(&parse(&body)).0
    };
    assert_eq!(table("{0.6, 0.8, 1, 0, 0.8, 0.6, 0, -1}"), ["v", "w"], "sines and cosines");
    assert_eq!(table("{0, 0, 0, 0, 0, 0, 0, 0}"), ["v", "w"], "what a decoder begins with");
    assert_eq!(table("{0.6, 0.8, 1, 0, 0.8, 0.6, 0, 2}"), ["p", "v", "w"], "queries are learned");
    // What is added to scores for distances is computed once, for a slope a head.
    let distances = |values: &str| {
        let body = format!(
            "(float[N,2,3,3] x) => (float[N,2,3,3] y) <float[2,1,3] d = {values}, float[3,3] w> {{
                a = MatMul (x, w)
                b = Add (a, d)
                y = Softmax (b)
            }}"
        );
        found(&parse(&body)).0
    };
    assert_eq!(distances("{0, 0.5, 1, 0, 0.25, 0.5}"), ["w"]);
    assert_eq!(distances("{0, 0.5, 1, 0, 0.25, 0.6}"), ["d", "w"]);
    // A mask of no padding is one of zeros.
    check(
        "(float[N,2,3,3] x) => (float[N,2,3,3] y) <float[1,1,3,3] mask = {0, 0, 0, 0, 0, 0, 0, 0, 0}, float[3,3] w> {
            a = MatMul (x, w)
            b = Add (a, mask)
            y = Softmax (b)
        }",
        &["w"],
    );
}

#[test]
fn classical_models_hold_their_numbers_as_attributes() {
    let model = |y: &str, last: &str| {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\": 17, \"ai.onnx.ml\": 1]>
             g (float[N,2] x) => ({y} y) <float[2] scale = {{2, 3}}, float[2] least = {{1, -1}}> {{
                s = Mul (x, scale)
                t = Add (s, least)
                y = {last}
             }}"
        );
        Model::from(text::parse(&text).unwrap())
    };
    let linear = model("float[N,1]", "ai.onnx.ml.LinearRegressor <coefficients = [0.5, 0.7], intercepts = [0.1]> (t)");
    let (own, others) = found(&linear);
    assert!(own.is_empty(), "what scales an input before them is no weight: {own:?}, {others:?}");
    let error = Gradients::new(["y"], [Wanted::Parameters]).build(&linear).unwrap_err().to_string();
    assert!(error.contains("'y' (LinearRegressor) holds its numbers as attributes"), "{error}");
    let named = model("seq(map(int64, float))", "ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1]> (t)");
    let error = Gradients::new([Wanted::Outputs], ["x"]).build(&named).unwrap_err().to_string();
    assert!(error.contains("'y' is made of 't' (--ys t)"), "{error}");
    // An input of the model is no answer, and what a choice was made from is one, however far behind it.
    let chosen = "g (float[N,2] x) => (int64[N] y, seq(map(int64, float)) z) {
        p = Softmax(x) m = ArgMax<keepdims = 0>(p) y = Neg(m) z = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1]>(x) }";
    let imports = "[\"\": 17, \"ai.onnx.ml\": 1]";
    let model = Model::from(text::parse(&format!("<ir_version: 8, opset_import: {imports}> {chosen}")).unwrap());
    let error = Gradients::new([Wanted::Outputs], ["x"]).build(&model).unwrap_err().to_string();
    assert!(error.contains("'y' is made of 'p' (--ys p)"), "{error}");
    let warnings = Gradients::new(["y"], ["x"]).build(&model).unwrap().warnings.join("\n");
    assert!(warnings.contains("'y' is not of a floating-point type") && warnings.ends_with("(--ys p)"), "{warnings}");
}

/// Gives a tensor of a model other values.
fn set(model: &mut Model, name: &str, value: impl Fn(usize) -> f64) {
    let graph = model.proto.graph.as_mut().unwrap();
    let tensor = graph.initializer.iter_mut().find(|t| t.name() == name).unwrap();
    let count = tensor.element_count().unwrap();
    let values: Vec<f32> = (0..count).map(|i| value(i) as f32).collect();
    *tensor = TensorProto { name: tensor.name.clone(), ..TensorProto::from_float32(&tensor.dims, &values) };
}

/// A number between -1 and 1 that follows no formula.
fn learned(i: usize) -> f64 {
    let state = (i as u64 + 7).wrapping_mul(6364136223846793005).rotate_left(17).wrapping_mul(1442695040888963407);
    (state >> 40) as f64 / f64::from(1 << 23) - 1.0
}

const TURN: f64 = std::f64::consts::TAU;

#[test]
fn transforms_whose_parts_are_squared_later_are_fixed() {
    // Octaves of a constant-Q transform: a filter halves the rate, one bank is used again, all is scaled before it is
    // squared, and the biases are zeros.
    let mut model = parse(
        "(float[N,1,t] x) => (float[N,2,s] y) <float[1,1,31] half, float[4,1,32] bank, float[4] none = {0, 0, 0, 0},
          float[1] zero = {0}, float[4,1] lengths = {1.5, 1.4, 1.3, 1.2}, float[2,4,3] w, float[2] b> {
            a = Conv <strides = [32]> (x, bank, none)
            l = Conv <strides = [2], pads = [15, 15]> (x, half, zero)
            c = Conv <strides = [16]> (l, bank, none)
            j = Add (a, c)
            m = Mul (j, lengths)
            p = Mul (m, m)
            y = Conv (p, w, b)
        }",
    );
    set(&mut model, "w", learned);
    let windowed = |size: usize, n: usize| 0.5 - 0.5 * (TURN * n as f64 / size as f64).cos();
    let bank = |i: usize| (TURN * (i / 32 + 2) as f64 * (i % 32) as f64 / 32.0).sin() * windowed(32, i % 32);
    set(&mut model, "bank", bank);
    let sinc = |n: usize| if n == 15 { 1.0 } else { ((n as f64 - 15.0) / 2.0).sin() / ((n as f64 - 15.0) / 2.0) };
    set(&mut model, "half", |n| sinc(n) * windowed(32, n + 1));
    let (own, others) = found(&model);
    assert_eq!(own, ["b", "w"], "{others:?}");
    // One step of training, and it is a weight.
    let touched = |i: usize| bank(i) + 0.01 * learned(i);
    set(&mut model, "bank", touched);
    assert_eq!(found(&model).0, ["b", "bank", "lengths", "none", "w"]);
}

#[test]
fn windows_cut_signals_into_frames() {
    let body = |tail: &str| {
        format!(
            "(float[N,t] x) => (float[N,s,2] y) <float[32] window, float[4,2] w, float[32,4] v, int64[3] frames = {{0, -1, 32}}> {{
                f = Reshape (x, frames)
                g = Concat <axis = -1> (f)
                n = ReduceL2 <axes = [-1]> (g)
                d = Div (g, n)
                m = Mul (d, window)
                {tail}
            }}"
        )
    };
    let mut model = parse(&body("q = MatMul (m, v) y = MatMul (q, w)"));
    set(&mut model, "w", learned);
    set(&mut model, "v", learned);
    set(&mut model, "window", |n| 0.5 - 0.5 * (TURN * n as f64 / 32.0).cos());
    let (own, others) = found(&model);
    assert_eq!(own, ["v", "w"], "{others:?}");
    set(&mut model, "window", learned);
    assert_eq!(found(&model).0, ["v", "w", "window"]);
}

#[test]
fn what_a_choice_stands_for_is_no_weight() {
    // Pitches, of which the most likely is given out; words of a codebook are learned.
    let mut model = parse(
        "(float[N,4] x) => (float[N] y) <float[4,9] w, float[9] b, float[9] pitches> {
            a = Gemm (x, w, b)
            i = ArgMax <axis = -1, keepdims = 0> (a)
            y = Gather (pitches, i)
        }",
    );
    set(&mut model, "pitches", |i| 1200.0 * (1.0 + i as f64).log2());
    let by_pitches = |model: &Model| found(model).1.into_iter().find(|(name, ..)| name == "pitches");
    assert_eq!(by_pitches(&model).map(|(_, kind, _)| kind), Some(Kind::Constant));
    set(&mut model, "pitches", learned);
    assert_eq!(by_pitches(&model), None, "what follows no order was learned");
    // The mean of places by chances, as a matrix, as a kernel (detectors), and element by element.
    for (how, shape) in [
        ("y = MatMul (c, places)", "16,1"),
        ("t = Transpose <perm = [0, 2, 1]> (c) y = Conv (t, places)", "1,16,1"),
        ("m = Mul (c, places) y = ReduceSum <axes = [-1]> (m)", "16"),
    ] {
        let mut model = parse(&format!(
            "(float[N,k,4] x) => (float y) <float[4,16] w, float[{shape}] places> {{
                a = MatMul (x, w)
                c = Softmax <axis = -1> (a)
                {how}
            }}"
        ));
        set(&mut model, "w", learned);
        set(&mut model, "places", |i| i as f64);
        assert_eq!(found(&model).0, ["w"], "{how}");
        set(&mut model, "places", learned);
        assert_eq!(found(&model).0, ["places", "w"], "{how}");
    }
}

#[test]
fn places_of_pixels_make_outputs_of_detectors() {
    let mut model = parse(
        "(float[N,3,8,8] x) => (float[N,4,64] y) <float[4,3,1,1] w, float[4] b, float[1,2,64] anchors, float[1,64] strides, int64[3] flat = {0, 4, 64}> {
            c = Conv (x, w, b)
            f = Reshape (c, flat)
            near, far = Split <axis = 1> (f)
            low = Sub (anchors, near)
            high = Add (anchors, far)
            j = Concat <axis = 1> (low, high)
            y = Mul (j, strides)
        }",
    );
    set(&mut model, "anchors", |i| (if i < 64 { i % 8 } else { i % 64 / 8 }) as f64 + 0.5);
    set(&mut model, "strides", |i| if i < 48 { 8.0 } else { 16.0 });
    let (own, others) = found(&model);
    assert_eq!(own, ["b", "w"], "{others:?}");
    set(&mut model, "anchors", learned);
    assert_eq!(found(&model).0, ["anchors", "b", "w"]);
}

#[test]
fn noise_that_was_traced_is_no_scale() {
    let noise = |deviation: &str| {
        let body = format!(
            "(float[1,4] x) => (float[1,4] y) <float[4,3] m, float[4,3] s, float[1,3] eps = {{0.41, -1.37, 0.22}}, float[3,4] w, float half = {{0.5}}> {{
                mean = MatMul (x, m)
                log = MatMul (x, s)
                h = Mul (log, half)
                d = {deviation} (h)
                n = Mul (eps, d)
                z = Add (mean, n)
                y = MatMul (z, w)
            }}"
        );
        found(&parse(&body)).0
    };
    assert_eq!(noise("Exp"), ["m", "s", "w"]);
    assert_eq!(noise("Softplus"), ["m", "s", "w"]);
    assert_eq!(noise("Relu"), ["eps", "m", "s", "w"]);
}

#[test]
fn one_scale_and_one_shift_between_layers_are_weights_if_no_formula_has_them() {
    let pair = |scale: &str, shift: &str| {
        let body = format!(
            "(float[N,3,h,h] x) => (float[N,2,h,h] y) <float[4,3,1,1] w, float[4] b, {scale}, {shift}, float[2,4,1,1] v> {{
                c = Conv (x, w, b)
                s = Mul (scale, c)
                a = Add (s, shift)
                r = Relu (a)
                y = Conv (r, v)
            }}"
        );
        found(&parse(&body)).0
    };
    let learned = pair("float[1] scale = {0.94316906}, float[1] more", "float[1] shift = {0.5042972}");
    assert_eq!(learned, ["b", "scale", "shift", "v", "w"]);
    let formulas = [("0.2", "0.5"), ("0.70710678", "0.5"), ("0.79788456", "3.1415927"), ("1.6732632", "-1.6732632")];
    for (scale, shift) in formulas {
        let found = pair(&format!("float[1] scale = {{{scale}}}"), &format!("float[1] shift = {{{shift}}}"));
        assert_eq!(found, ["b", "v", "w"], "{scale} {shift}");
    }
}
