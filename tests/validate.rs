//! Validation says which gradients are right, which are wrong, and of which nothing is known.
#![cfg(feature = "validate")]

use onnx_gradients::onnx::proto::{
    OperatorSetIdProto, StringStringEntryProto, TensorShapeProto, tensor_shape_proto::Dimension,
    tensor_shape_proto::dimension, type_proto,
};
use onnx_gradients::onnx::text;
use onnx_gradients::onnx::{
    AttributeProto, ElementType, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, attribute,
};
use onnx_gradients::validate::{Options, Status, Validation, validate};
use onnx_gradients::{Gradient, Gradients, Model, Record, SeedOf, Wanted};

const FLOAT: ElementType = ElementType::Float;

/// A model that is put together line by line.
#[derive(Clone)]
struct Sketch(ModelProto);

impl Sketch {
    fn new() -> Self {
        let opset = OperatorSetIdProto { domain: Some(String::new()), version: Some(20) };
        Sketch(ModelProto {
            ir_version: Some(9),
            opset_import: vec![opset],
            graph: Some(GraphProto { name: Some("g".into()), ..Default::default() }),
            ..Default::default()
        })
    }

    fn graph(&mut self) -> &mut GraphProto {
        self.0.graph.as_mut().unwrap()
    }

    fn value(name: &str, element: ElementType, dims: &[&str]) -> ValueInfoProto {
        let dim = |d: &&str| Dimension {
            value: Some(match d.parse() {
                Ok(n) => dimension::Value::DimValue(n),
                Err(_) => dimension::Value::DimParam(d.to_string()),
            }),
            ..Default::default()
        };
        let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
        let tensor = type_proto::Tensor { elem_type: Some(element as i32), shape: Some(shape) };
        let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: Some(name.into()), r#type: Some(r#type), ..Default::default() }
    }

    fn input(mut self, name: &str, element: ElementType, dims: &[&str]) -> Self {
        self.graph().input.push(Self::value(name, element, dims));
        self
    }

    fn output(mut self, name: &str, element: ElementType, dims: &[&str]) -> Self {
        self.graph().output.push(Self::value(name, element, dims));
        self
    }

    fn initializer(mut self, name: &str, tensor: TensorProto) -> Self {
        self.graph().initializer.push(TensorProto { name: Some(name.into()), ..tensor });
        self
    }

    fn constant(self, name: &str, value: f64) -> Self {
        self.initializer(name, TensorProto::from_floats(FLOAT, &[], &[value]).unwrap())
    }

    fn node(self, op: &str, inputs: &[&str], output: &str) -> Self {
        self.node_with(op, inputs, output, vec![])
    }

    fn node_with(mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> Self {
        self.graph().node.push(NodeProto {
            op_type: Some(op.into()),
            input: inputs.iter().map(|&i| i.into()).collect(),
            output: vec![output.into()],
            attribute,
            ..Default::default()
        });
        self
    }

    fn check(&self, record: &Record) -> Validation {
        validate(&self.0, None, record, &Options::default())
    }
}

fn record(y: &str, gradients: &[(&str, &str)]) -> Record {
    let gradient = |&(x, g): &(&str, &str)| Gradient::new(x, (!g.is_empty()).then_some(g));
    Record::new("gradients", vec![SeedOf::fill(y, 1.0)], gradients.iter().map(gradient).collect())
}

#[track_caller]
fn passes(validation: &Validation) {
    assert_eq!(validation.status, Status::Passed, "{validation:#?}");
    for gradient in &validation.gradients {
        assert!(gradient.compared && gradient.finite && gradient.shape, "{validation:#?}");
        assert!(gradient.error.unwrap() <= gradient.bound, "{validation:#?}");
    }
}

#[track_caller]
fn fails(validation: &Validation, reason: &str) {
    assert_eq!(validation.status, Status::Failed, "{validation:#?}");
    assert!(validation.reason.as_ref().unwrap().contains(reason), "{validation:#?}");
}

/// y = x², with the nodes that compute g left open.
fn square(element: ElementType) -> Sketch {
    Sketch::new()
        .input("x", element, &["batch-size", "3"])
        .node("Mul", &["x", "x"], "y")
        .output("y", element, &["batch-size", "3"])
        .output("g", element, &["batch-size", "3"])
}

#[test]
fn a_right_gradient_passes() {
    let validation = square(FLOAT).node("Add", &["x", "x"], "g").check(&record("y", &[("x", "g")]));
    passes(&validation);
    assert_eq!(validation.outputs[0].max_difference, Some(0.0));
    assert_eq!(validation.dims["batch-size"], 2);
}

#[test]
fn wrong_gradients_fail() {
    let r = record("y", &[("x", "g")]);
    fails(&square(FLOAT).node("Identity", &["x"], "g").check(&r), "relative error");
    fails(&square(FLOAT).node("Sum", &["x", "x", "x"], "g").check(&r), "relative error");
    let nearly = square(FLOAT).constant("c", 2.0002).node("Mul", &["x", "c"], "g");
    fails(&nearly.check(&r), "relative error");
    let nan = square(FLOAT).constant("c", f64::NAN).node("Mul", &["x", "c"], "g");
    fails(&nan.check(&r), "not finite");
    let transposed = square(FLOAT).node("Add", &["x", "x"], "t").node("Transpose", &["t"], "g");
    fails(&transposed.check(&r), "shape");
    let zero = square(FLOAT).node("Sub", &["x", "x"], "g");
    fails(&zero.check(&r), "relative error");
}

#[test]
fn a_gradient_that_is_wrong_in_one_place_fails() {
    let mask = TensorProto::from_floats(FLOAT, &[3], &[2.0, 2.0, 2.01]).unwrap();
    let sketch = square(FLOAT).initializer("c", mask).node("Mul", &["x", "c"], "g");
    fails(&sketch.check(&record("y", &[("x", "g")])), "relative error");
}

#[test]
fn each_wrong_gradient_is_named() {
    // y = a b c: the gradient of b lacks a factor.
    let sketch = ["a", "b", "c"].iter().fold(Sketch::new(), |s, &x| s.input(x, FLOAT, &["4"]));
    let sketch = (sketch.node("Mul", &["a", "b"], "ab").node("Mul", &["ab", "c"], "y").output("y", FLOAT, &["4"]))
        .node("Mul", &["b", "c"], "ga")
        .node("Identity", &["a"], "gb")
        .node("Identity", &["ab"], "gc");
    let validation = sketch.check(&record("y", &[("a", "ga"), ("b", "gb"), ("c", "gc")]));
    fails(&validation, "'gb' with respect to 'b'");
    let error = |i: usize| validation.gradients[i].error.unwrap();
    assert!(error(0) < 1e-6 && error(1) > 1e-2 && error(2) < 1e-6, "{validation:#?}");
}

#[test]
fn half_precision_and_double_models_pass() {
    for element in [ElementType::Float16, ElementType::Bfloat16, ElementType::Double] {
        passes(&square(element).node("Add", &["x", "x"], "g").check(&record("y", &[("x", "g")])));
        let wrong = square(element).node("Identity", &["x"], "g").check(&record("y", &[("x", "g")]));
        fails(&wrong, "relative error");
    }
}

/// a = 2 x; y = x a: the gradient at x is 4 x, at the tensor a it is x.
fn chain() -> Sketch {
    Sketch::new()
        .input("x", FLOAT, &["5"])
        .constant("two", 2.0)
        .node("Mul", &["x", "two"], "a")
        .node("Mul", &["x", "a"], "y")
        .output("y", FLOAT, &["5"])
}

#[test]
fn a_tensor_inside_is_an_x_and_does_not_cut() {
    let sketch = chain().node("Add", &["a", "a"], "gx").node("Identity", &["x"], "ga");
    passes(&sketch.check(&record("y", &[("x", "gx"), ("a", "ga")])));
    let cut = chain().node("Identity", &["a"], "gx").node("Identity", &["x"], "ga");
    fails(&cut.check(&record("y", &[("x", "gx"), ("a", "ga")])), "'gx'");
}

#[test]
fn a_stop_cuts() {
    let sketch = chain().node("Identity", &["a"], "gx").node("Identity", &["x"], "ga");
    let mut stopped = record("y", &[("x", "gx"), ("a", "ga")]);
    stopped.stops = vec!["a".into()];
    passes(&sketch.check(&stopped));
    let mut marked = sketch.clone();
    let property = StringStringEntryProto { key: Some("stop_gradient".into()), value: Some("true".into()) };
    marked.graph().node[0].metadata_props.push(property);
    passes(&marked.check(&record("y", &[("x", "gx"), ("a", "ga")])));
}

/// A detector: regions are made of the features that they are cut out of, and count as constants where they are cut out,
/// not where they are an output themselves.
#[test]
fn regions_are_constants_where_something_is_cut_out_of_them() {
    let graph = "g (float[1,2,6,6] x) => (float[2,2,2,2] y, float[2,4] rois)
        <float[1,1] one = {1.0}, float[2,4] place = {0.5, 0.5, 3.5, 3.0, 1.0, 0.5, 4.0, 4.5}, int64[2] image = {0, 0}> {
        mean = ReduceMean<axes = [1, 2, 3], keepdims = 0>(x) size = Reshape(mean, shape) moved = Mul(size, small)
        rois = Add(place, moved) features = Tanh(x)
        y = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 2>(features, rois, image) }";
    let graph = graph.replace("int64[2] image", "int64[2] shape = {1, 1}, float small = {0.3}, int64[2] image");
    let model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 16]> {graph}")).unwrap();
    for ys in [&["y"][..], &["rois"], &["y", "rois"]] {
        let request = Gradients::new(ys.iter().map(|&y| Wanted::from(y)), [Wanted::Inputs]);
        let written = request.build(&Model::from(model.clone())).unwrap();
        let found = validate(&written.model.proto, None, &written.record, &Options::default());
        passes(&found);
        // Where they are moved by something else than the gradient says, they are looked at as ever.
        let mut wrong = written.model.proto.clone();
        let nodes = &mut wrong.graph.as_mut().unwrap().node;
        let gradient = written.gradients[0].name.clone().unwrap();
        nodes.iter_mut().flat_map(|n| &mut n.output).filter(|o| **o == gradient).for_each(|o| o.push_str("/right"));
        nodes.push(NodeProto::sum(&format!("{gradient}/right"), &format!("{gradient}/right"), &gradient));
        fails(&validate(&wrong, None, &written.record, &Options::default()), "relative error");
    }
}

#[test]
fn seeds_weigh_the_ys() {
    // The seed depends on x, and is held constant.
    let sketch = chain().node("Exp", &["x"], "seed").node("Add", &["a", "a"], "j").node("Mul", &["j", "seed"], "g");
    let mut r = record("y", &[("x", "g")]);
    r.seeds = vec![SeedOf::tensor("y", "seed")];
    passes(&sketch.check(&r));
    let sketch = chain().constant("c", -12.0).node("Mul", &["x", "c"], "g");
    r.seeds = vec![SeedOf::fill("y", -3.0)];
    passes(&sketch.check(&r));
    r.seeds[0].fill = Some(3.0);
    fails(&sketch.check(&r), "relative error");
}

#[test]
fn initializers_are_xs_and_large_ones_are_inputs() {
    let count = 300;
    let w: Vec<f64> = (0..count).map(|i| (f64::from(i) * 0.7).sin()).collect();
    let sketch = Sketch::new()
        .input("x", FLOAT, &["N", "10"])
        .initializer("W", TensorProto::from_floats(FLOAT, &[10, 30], &w).unwrap())
        .initializer("b", TensorProto::from_floats(FLOAT, &[30], &w[..30]).unwrap())
        .node("Gemm", &["x", "W", "b"], "h")
        .node("Sigmoid", &["h"], "y")
        .output("y", FLOAT, &["N", "30"])
        .constant("one", 1.0)
        .node("Sub", &["one", "y"], "n")
        .node("Mul", &["n", "y"], "dh")
        .node("Transpose", &["x"], "xt")
        .node("MatMul", &["xt", "dh"], "gW")
        .initializer("axes", TensorProto::from_ints(ElementType::Int64, &[1], &[0]).unwrap())
        .node_with("ReduceSum", &["dh", "axes"], "gb", vec![attribute::int("keepdims", 0)])
        .node("Transpose", &["W"], "Wt")
        .node("MatMul", &["dh", "Wt"], "gx");
    passes(&sketch.check(&record("y", &[("W", "gW"), ("b", "gb"), ("x", "gx")])));
}

#[test]
fn what_tract_lacks_is_skipped_by_name() {
    let sketch =
        square(FLOAT).node("Add", &["x", "x"], "g").node("TfIdfVectorizer", &["x"], "d").output("d", FLOAT, &[]);
    let validation = sketch.check(&record("y", &[("x", "g")]));
    assert_eq!(validation.status, Status::Skipped);
    assert_eq!(validation.reason.as_deref(), Some("tract has no TfIdfVectorizer"));
    let mut custom = square(FLOAT).node("Add", &["x", "x"], "g");
    custom.graph().node[0].domain = Some("my.dom".into());
    let validation = custom.check(&record("y", &[("x", "g")]));
    assert_eq!(validation.reason.as_deref(), Some("tract has no my.dom.Mul"));
}

#[test]
fn what_would_kill_the_process_is_skipped() {
    let sketch = square(FLOAT).node_with("Transpose", &["x"], "g", vec![attribute::ints("perm", &[0, 0])]);
    assert_eq!(sketch.check(&record("y", &[("x", "g")])).status, Status::Skipped);
}

#[test]
fn nonsense_is_reported() {
    let empty = validate(&ModelProto::default(), None, &record("y", &[("x", "g")]), &Options::default());
    assert_eq!(empty.status, Status::Skipped);
    for (op, inputs) in [("Concat", &["x"][..]), ("Gather", &["x"]), ("Softmax", &[]), ("Split", &["x", "x"])] {
        let validation = square(FLOAT).node(op, inputs, "g").check(&record("y", &[("x", "g")]));
        assert_eq!(validation.status, Status::Skipped, "{op}: {validation:?}");
    }
}

#[test]
fn kinks_and_conventions_are_no_errors() {
    // Every x is at the kink of |x|.
    let sketch = Sketch::new()
        .input("x", FLOAT, &["3"])
        .node("Sub", &["x", "x"], "zero")
        .node("Add", &["zero", "b"], "h")
        .initializer("b", TensorProto::from_floats(FLOAT, &[3], &[0.0; 3]).unwrap())
        .node("Abs", &["h"], "y")
        .output("y", FLOAT, &["3"])
        .constant("one", 1.0)
        .node("Expand", &["one", "shape"], "g")
        .initializer("shape", TensorProto::from_ints(ElementType::Int64, &[1], &[3]).unwrap());
    let validation = sketch.check(&record("y", &[("b", "g")]));
    assert_eq!(validation.status, Status::Skipped, "{validation:#?}");
    assert!(!validation.gradients[0].compared);
    assert!(validation.gradients[0].note.as_ref().unwrap().contains("not smooth"), "{validation:#?}");
}

#[test]
fn domains_of_functions_are_found() {
    // Of log and sqrt the random numbers are positive ones.
    let sketch = Sketch::new().input("x", FLOAT, &["7"]).node("Log", &["x"], "y").output("y", FLOAT, &["7"]);
    passes(&sketch.node("Reciprocal", &["x"], "g").check(&record("y", &[("x", "g")])));
}

/// Domains that are neither all numbers nor all positive ones, which the random numbers lie in.
#[test]
fn domains_between_inputs_are_found() {
    use onnx_gradients::onnx::text;
    use onnx_gradients::{Gradients, Wanted};
    for (inputs, nodes) in [
        ("float[N,3] a", "y = Acosh(a)"),
        ("float[N,3] a", "l = Log(a) y = Log(l)"),
        ("float[N,3] a, float[N,3] b", "s = Add(a, b) y = Atanh(s)"),
        ("float[N,3] a, float[N,3] b", "s = Sub(a, b) y = Sqrt(s)"),
        ("float[N,3] a, float[N,3] b", "s = Sub(b, a) y = Log(s)"),
        (
            "float[N,3] a, float[N,3] b, float[N,3] c",
            "s = Sub(b, a) t = Sub(c, b) p = Sqrt(s) q = Log(t) y = Mul(p, q)",
        ),
        ("float16[N,64] a", "k = Constant<value = float16 {200.0}>() m = Mul(a, k) y = ReduceSumSquare(m)"),
    ] {
        let text = format!("<ir_version: 8, opset_import: [\"\": 17]> g ({inputs}) => (y) {{ {nodes} }}");
        let model = text::parse(&text).unwrap();
        let output = Gradients::new(["y"], [Wanted::Inputs]).build(&model.into()).unwrap();
        let validation = validate(&output.model.proto, None, &output.record, &Options::default());
        passes(&validation);
        assert!(validation.inputs > 1, "{validation:#?}");
    }
}

/// Validates the gradients of a model in the text syntax, with respect to all of its inputs and weights.
fn of_text(text: &str) -> Validation {
    use onnx_gradients::onnx::text;
    use onnx_gradients::{Gradients, Wanted};
    let model = text::parse(text).unwrap();
    let xs = [Wanted::Inputs, Wanted::Parameters];
    let output = Gradients::new([Wanted::Outputs], xs).build(&model.into()).unwrap();
    validate(&output.model.proto, None, &output.record, &Options::default())
}

/// The largest integer stands for "to the end" in slices, and is compared with sizes where the rank of a tensor is not
/// known before it runs.
#[test]
fn the_largest_integer_is_larger_than_a_size() {
    passes(&of_text(
        "<ir_version: 6, opset_import: [\"\": 9]>
        g (float[N,4,1] x) => (y) <float[4] b = {1, 2, 3, 4}> {
            s = Squeeze(x)
            z = Sigmoid(s)
            t = Add(z, b)
            p = Slice<axes = [0], starts = [0], ends = [1]>(t)
            q = Slice<axes = [0], starts = [1], ends = [9223372036854775807]>(t)
            p2 = Mul(p, p)
            q3 = Mul(q, b)
            y = Concat<axis = 0>(p2, q3)
        }",
    ));
}

/// Inputs that a model does nothing with but compare them with numbers of its own lie around those.
#[test]
fn limits_lie_around_what_they_are_compared_with() {
    let limits = "float low, float high";
    for inputs in [format!("{limits}, float[N,5] x"), format!("float[N,5] x, {limits}")] {
        passes(&of_text(&format!(
            "<ir_version: 8, opset_import: [\"\": 18]>
            g ({inputs}) => (y) <float[5] at = {{40, 80, 160, 320, 640}}, float none = {{-inf}}> {{
                flat = Constant<value = int64[1] {{-1}}>()
                lows = Reshape(low, flat)
                above = GreaterOrEqual(at, lows)
                below = Less(at, high)
                between = And(above, below)
                masked = Where(between, x, none)
                p = Softmax<axis = -1>(masked)
                y = Mul(p, at)
            }}"
        )));
    }
}

/// Both sides of an If are visited, whichever number of an input chooses between them.
#[test]
fn numbers_that_choose_a_branch_are_tried() {
    for test in ["Equal(rate, at)", "Less(rate, at)", "Greater(at, rate)"] {
        let validation = of_text(&format!(
            "<ir_version: 8, opset_import: [\"\": 18]>
            g (float[N,3] x, int64 rate) => (y) <float[3] a = {{1, 2, 3}}, float[3] b = {{3, 4, 5}}, int64[1] at = {{16000}}> {{
                flag = {test}
                y = If(flag) <
                    then_branch = t () => (u) {{ u = Mul(x, a) }},
                    else_branch = e () => (v) {{ w = Mul(x, b) v = Mul(w, w) }}
                >
            }}"
        ));
        passes(&validation);
        assert!(validation.gradients.iter().all(|g| g.compared || g.gradient.is_none()), "{test}: {validation:#?}");
    }
}

#[test]
fn negative_pads_crop() {
    let pads = TensorProto::from_ints(ElementType::Int64, &[2], &[-1, 2]).unwrap();
    let back = TensorProto::from_ints(ElementType::Int64, &[2], &[1, -2]).unwrap();
    let sketch = Sketch::new()
        .input("x", FLOAT, &["5"])
        .initializer("pads", pads)
        .initializer("back", back)
        .node("Pad", &["x", "pads"], "p")
        .node("Mul", &["p", "p"], "y")
        .output("y", FLOAT, &["6"])
        .node("Add", &["p", "p"], "dp")
        .node("Pad", &["dp", "back"], "g");
    passes(&sketch.check(&record("y", &[("x", "g")])));
}

#[test]
fn a_result_is_json() {
    let validation = square(FLOAT).node("Add", &["x", "x"], "g").check(&record("y", &[("x", "g")]));
    let json = serde_json::to_string(&validation).unwrap();
    assert!(json.contains(r#""status":"passed""#), "{json}");
    let back: Validation = serde_json::from_str(&json).unwrap();
    assert!(back.gradients[0].compared && back.status == validation.status);
}

/// The gradient with respect to the initial state of a recurrent layer of one step, which tract runs in float32 only.
#[test]
fn what_tract_has_in_float32_only_is_compared_in_float64() {
    let numbers = |dims: &[i64]| {
        let values: Vec<f64> = (0..dims.iter().product()).map(|i| (i as f64 * 1.3).cos()).collect();
        TensorProto::from_floats(FLOAT, dims, &values).unwrap()
    };
    let mut sketch = Sketch::new()
        .input("x", FLOAT, &["1", "2", "3"])
        .initializer("W", numbers(&[1, 4, 3]))
        .initializer("R", numbers(&[1, 4, 4]))
        .initializer("R0", numbers(&[4, 4]))
        .initializer("b", numbers(&[1, 8]))
        .input("h", FLOAT, &["1", "2", "4"])
        .node_with("RNN", &["x", "W", "R", "b", "", "h"], "unused", vec![attribute::int("hidden_size", 4)])
        .node("Mul", &["y", "y"], "yy")
        .constant("one", 1.0)
        .node("Sub", &["one", "yy"], "d")
        .node("MatMul", &["d", "R0"], "g")
        .output("y", FLOAT, &["1", "2", "4"]);
    sketch.graph().node[0].output = vec![String::new(), "y".into()];
    let right = sketch.check(&record("y", &[("h", "g")]));
    passes(&right);
    assert!(right.gradients[0].bound < 1e-3);
    sketch.graph().node[3].input = vec!["yy".into(), "R0".into()];
    fails(&sketch.check(&record("y", &[("h", "g")])), "relative error");
}

#[test]
fn a_crash_of_tract_in_the_forward_model_says_nothing_of_the_gradient() {
    // An index beyond the depth: a row of zeros in the standard, a panic in tract.
    let sketch = square(FLOAT)
        .node("Add", &["x", "x"], "g")
        .initializer("i", TensorProto::from_ints(ElementType::Int64, &[2], &[1, 7]).unwrap())
        .initializer("depth", TensorProto::from_ints(ElementType::Int64, &[], &[3]).unwrap())
        .initializer("values", TensorProto::from_floats(FLOAT, &[2], &[0.0, 1.0]).unwrap())
        .node("OneHot", &["i", "depth", "values"], "hot")
        .output("hot", FLOAT, &["2", "3"]);
    let validation = sketch.check(&record("y", &[("x", "g")]));
    assert_eq!(validation.status, Status::Skipped);
    assert!(validation.reason.unwrap().contains("crashed"));
}

#[test]
fn losses_of_the_standard_run() {
    let sketch = Sketch::new()
        .input("x", FLOAT, &["4", "3"])
        .input("labels", ElementType::Int64, &["4"])
        .node("SoftmaxCrossEntropyLoss", &["x", "labels"], "loss")
        .output("loss", FLOAT, &[])
        .initializer("depth", TensorProto::from_ints(ElementType::Int64, &[], &[3]).unwrap())
        .initializer("values", TensorProto::from_floats(FLOAT, &[2], &[0.0, 1.0]).unwrap())
        .constant("n", 4.0)
        .node("OneHot", &["labels", "depth", "values"], "hot")
        .node("Softmax", &["x"], "p")
        .node("Sub", &["p", "hot"], "d")
        .node("Div", &["d", "n"], "g");
    passes(&sketch.check(&record("loss", &[("x", "g")])));
    let sum = sketch.node("Identity", &["d"], "h");
    fails(&sum.check(&record("loss", &[("x", "h")])), "relative error");
}

#[test]
fn a_constant_seed_says_which_size_a_symbol_has() {
    let text = r#"<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Mul (x, x) }"#;
    let seed = TensorProto::from_floats(FLOAT, &[5, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]).unwrap();
    let call = onnx_gradients::Gradients::new(["y"], ["x"]).seed("y", onnx_gradients::Seed::Constant(seed));
    let output = call.build(&onnx_gradients::onnx::text::parse(text).unwrap().into()).unwrap();
    let found = validate(&output.model.proto, None, &output.record, &Options::default());
    assert_eq!((found.status, found.dims["N"]), (Status::Passed, 5), "{found:?}");
}

#[test]
fn numbers_of_tuples_that_are_put_together_lie_within_what_they_index() {
    let whole = r#"<ir_version: 8, opset_import: ["": 17]> g (float[2,9] x, int64[5] i) => (float[5,9] y) {
        last = Constant <value = int64[1] {-1}> () t = Unsqueeze (i, last) z = GatherND (x, t) y = Mul (z, z) }"#;
    let parts = r#"<ir_version: 8, opset_import: ["": 17]> g (float[9,2] x, int64[6,1] r, int64[6,1] c) => (float[6] y) {
        t = Concat <axis = 1> (r, c) z = GatherND (x, t) y = Mul (z, z) }"#;
    for text in [whole, parts] {
        let model = onnx_gradients::onnx::text::parse(text).unwrap();
        let output = onnx_gradients::Gradients::new(["y"], ["x"]).build(&model.into()).unwrap();
        passes(&validate(&output.model.proto, None, &output.record, &Options::default()));
    }
}
