use super::*;
use crate::graph::{Container, Dims, Value};
use crate::onnx::attribute::{float, floats, int, ints, string, strings, tensor};
use crate::onnx::{AttributeProto, TensorProto};

/// The facts of the outputs in the standard's domain.
fn run(dims: &Dims, version: i64, op_type: &str, attributes: &[AttributeProto], inputs: &[&Fact]) -> Result<Vec<Fact>> {
    let inputs: Vec<Option<&Fact>> = inputs.iter().map(|&f| Some(f)).collect();
    infer(&Op { op_type, domain: "", version, attributes, outputs: 3, dims }, &inputs)
}

fn first(dims: &Dims, op_type: &str, attributes: &[AttributeProto], inputs: &[&Fact]) -> Fact {
    run(dims, 21, op_type, attributes, inputs).unwrap().swap_remove(0)
}

fn fails(dims: &Dims, op_type: &str, attributes: &[AttributeProto], inputs: &[&Fact]) -> String {
    let error = run(dims, 21, op_type, attributes, inputs).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

fn float_of(shape: &[Dim]) -> Fact {
    Fact::tensor(Some(ElementType::Float), Some(shape.into()))
}

fn floats_of(sizes: &[i64]) -> Fact {
    float_of(&sizes.iter().map(|&n| n.into()).collect::<Vec<Dim>>())
}

fn list(values: &[Dim]) -> Fact {
    let shape = [Dim::Known(values.len() as i64)];
    let elements = values.iter().map(|&d| Scalar::Int(d)).collect();
    Fact {
        value: Some(Value::Elements(elements)),
        ..Fact::tensor(Some(ElementType::Int64), Some(shape.as_slice().into()))
    }
}

fn numbers(values: &[i64]) -> Fact {
    list(&values.iter().map(|&n| n.into()).collect::<Vec<Dim>>())
}

fn scalar(value: Dim) -> Fact {
    let value = Some(Value::Elements([Scalar::Int(value)].into()));
    Fact { value, ..Fact::tensor(Some(ElementType::Int64), Some([].into())) }
}

fn shape(fact: &Fact) -> Vec<Dim> {
    fact.shape.as_deref().unwrap().to_vec()
}

/// `y.reshape(x.shape[0], -1)` as exporters write it.
#[test]
fn shapes_are_followed_through_computations() {
    let d = &Dims::default();
    let (n, h) = (d.named("N"), d.named("H"));
    let x = float_of(&[n, 4.into(), h]);
    let all = first(d, "Shape", &[], &[&x]);
    assert_eq!(all.dims().unwrap(), [n, 4.into(), h]);
    let batch = first(d, "Gather", &[int("axis", 0)], &[&all, &scalar(0.into())]);
    assert_eq!((shape(&batch), batch.dims().unwrap()), (vec![], vec![n]));
    let batch = first(d, "Unsqueeze", &[], &[&batch, &numbers(&[0])]);
    let target = first(d, "Concat", &[int("axis", 0)], &[&batch, &numbers(&[-1])]);
    let y = first(d, "Reshape", &[], &[&x, &target]);
    assert_eq!(shape(&y), [n, d.mul(h, 4.into())]);
    let tail = first(d, "Slice", &[], &[&all, &numbers(&[-1]), &numbers(&[-9]), &numbers(&[0]), &numbers(&[-2])]);
    assert_eq!(tail.dims().unwrap(), [h, n]);
}

/// `torch.expand` with -1 for sizes that stay.
#[test]
fn minus_one_is_told_from_sizes() {
    let d = &Dims::default();
    let n = d.named("N");
    let target = list(&[n, Dim::Known(-1), 3.into()]);
    let ones = first(
        d,
        "ConstantOfShape",
        &[tensor("value", TensorProto::from_ints(ElementType::Int64, &[1], &[1]).unwrap())],
        &[&numbers(&[3])],
    );
    let negative = first(d, "Mul", &[], &[&ones, &scalar(Dim::Known(-1))]);
    let is_kept = first(d, "Equal", &[], &[&target, &negative]);
    assert_eq!(is_kept.ints().unwrap(), [0, 1, 0]);
    let sizes = first(d, "Where", &[], &[&is_kept, &ones, &target]);
    assert_eq!(sizes.dims().unwrap(), [n, 1.into(), 3.into()]);
    let y = first(d, "Expand", &[], &[&floats_of(&[5, 1]), &sizes]);
    assert_eq!(shape(&y), [n, 5.into(), 3.into()]);
}

#[test]
fn different_symbols_broadcast_to_neither() {
    let d = &Dims::default();
    let (n, m) = (d.named("N"), d.named("M"));
    let sum = shape(&first(d, "Add", &[], &[&float_of(&[n, n, n, 1.into()]), &float_of(&[n, 3.into(), m, m])]));
    assert_eq!((sum[0], sum[1], sum[3]), (n, 3.into(), m));
    assert!(sum[2] != n && sum[2] != m);
    assert_eq!(
        fails(d, "Add", &[], &[&floats_of(&[2, 3]), &floats_of(&[4, 3])]),
        "dimensions [2, 3] and [4, 3] do not broadcast"
    );
}

#[test]
fn reshape_finds_what_is_left() {
    let d = &Dims::default();
    let n = d.named("N");
    let x = float_of(&[n, 6.into(), 4.into()]);
    let to = |sizes: &[i64]| shape(&first(d, "Reshape", &[], &[&x, &numbers(sizes)]));
    assert_eq!(to(&[0, -1, 8]), [n, 3.into(), 8.into()]);
    assert_eq!(to(&[-1, 24]), [n, 24.into()]);
    assert!(fails(d, "Reshape", &[], &[&floats_of(&[2, 3]), &numbers(&[4, -1])]).contains("[2, 3] cannot be reshaped"));
    assert!(run(d, 21, "Reshape", &[int("allowzero", 1)], &[&floats_of(&[0, 3]), &numbers(&[3, 0])]).is_ok());
    let of_rank = Fact::tensor(Some(ElementType::Int64), Some([Dim::Known(2)].as_slice().into()));
    assert_eq!(first(d, "Reshape", &[], &[&x, &of_rank]).rank(), Some(2));
}

#[test]
fn windows_of_convolutions() {
    let d = &Dims::default();
    let (n, h) = (d.named("N"), d.named("H"));
    let x = float_of(&[n, 3.into(), h, 7.into()]);
    let conv = |a: &[AttributeProto]| shape(&first(d, "Conv", a, &[&x, &floats_of(&[8, 3, 3, 3])]));
    assert_eq!(conv(&[ints("pads", &[1, 1, 1, 1])]), [n, 8.into(), h, 7.into()]);
    assert_eq!(conv(&[string("auto_pad", "SAME_UPPER"), ints("strides", &[1, 2])]), [n, 8.into(), h, 4.into()]);
    assert_eq!(conv(&[ints("dilations", &[1, 3])])[3], 1.into());
    fails(d, "Conv", &[int("group", 2)], &[&x, &floats_of(&[8, 3, 3, 3])]);
    let back = [ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1]), ints("output_padding", &[1, 1])];
    let up = shape(&first(d, "ConvTranspose", &back, &[&x, &floats_of(&[3, 5, 3, 3])]));
    assert_eq!(up, [n, 5.into(), d.mul(h, 2.into()), 14.into()]);
}

/// A window that would start in the padding behind the input is left out.
#[test]
fn rounding_up_counts_windows_that_start_in_the_input() {
    let d = &Dims::default();
    let pool = |size: i64, kernel: i64, stride: i64, pads: [i64; 2]| {
        let attributes =
            [ints("kernel_shape", &[kernel]), ints("strides", &[stride]), ints("pads", &pads), int("ceil_mode", 1)];
        shape(&first(d, "MaxPool", &attributes, &[&floats_of(&[1, 1, size])]))[2]
    };
    assert_eq!(pool(4, 3, 2, [0, 0]), 2.into());
    assert_eq!(pool(3, 1, 2, [1, 1]), 2.into());
    assert_eq!(pool(5, 3, 3, [1, 1]), 2.into());
}

#[test]
fn slices_of_symbolic_sizes() {
    let d = &Dims::default();
    let n = d.named("N");
    let x = float_of(&[n, 5.into()]);
    let rows = |start: i64, end: i64| shape(&first(d, "Slice", &[], &[&x, &numbers(&[start]), &numbers(&[end])]))[0];
    assert_eq!(rows(0, i64::MAX), n);
    assert_eq!(rows(1, i64::MAX), rows(0, -1));
    assert_ne!(rows(1, i64::MAX), n);
    let backwards = [&x, &numbers(&[-1]), &numbers(&[i64::MIN]), &numbers(&[1]), &numbers(&[-2])];
    assert_eq!(shape(&first(d, "Slice", &[], &backwards)), [n, 3.into()]);
    let old = [ints("starts", &[1]), ints("ends", &[-1]), ints("axes", &[1])];
    assert_eq!(shape(&run(d, 9, "Slice", &old, &[&x]).unwrap()[0]), [n, 3.into()]);
}

/// The fold equals the run time: 0.1 + 0.2 in 32 bits.
#[test]
fn arithmetic_has_the_precision_of_the_element_type() {
    let d = &Dims::default();
    let constant = |v: f32| first(d, "Constant", &[float("value_float", v)], &[]);
    let sum = first(d, "Add", &[], &[&constant(0.1), &constant(0.2)]);
    assert_eq!(sum.floats().unwrap(), [f64::from(0.1f32 + 0.2f32)]);
    assert_eq!(first(d, "Div", &[], &[&constant(1.0), &constant(0.0)]).value, None);
    let int = |n: i64| scalar(n.into());
    assert_eq!(first(d, "Div", &[], &[&int(-7), &int(2)]).ints().unwrap(), [-3]);
    assert_eq!(first(d, "Mod", &[], &[&int(-7), &int(2)]).ints().unwrap(), [1]);
    assert_eq!(first(d, "Mul", &[], &[&int(i64::MAX), &int(2)]).value, None);
    assert_eq!(first(d, "Div", &[], &[&int(1), &int(0)]).value, None);
}

#[test]
fn fills_stay_fills() {
    let d = &Dims::default();
    let unknown = Fact::tensor(Some(ElementType::Int64), None);
    let zeros = first(d, "ConstantOfShape", &[], &[&unknown]);
    assert_eq!((zeros.element, zeros.shape.clone()), (Some(ElementType::Float), None));
    let ones = first(d, "Constant", &[float("value_float", 1.0)], &[]);
    let sum = first(d, "Add", &[], &[&zeros, &ones]);
    assert_eq!(first(d, "Transpose", &[], &[&sum]).uniform(), Some(Scalar::Float(1.0)));
    assert_eq!(first(d, "Cast", &[int("to", 7)], &[&sum]).uniform(), Some(Scalar::Int(1.into())));
}

#[test]
fn products_of_matrices() {
    let d = &Dims::default();
    let (n, k) = (d.named("N"), d.named("K"));
    let product = |a: &Fact, b: &Fact| shape(&first(d, "MatMul", &[], &[a, b]));
    assert_eq!(
        product(&float_of(&[n, 1.into(), 2.into(), k]), &float_of(&[3.into(), k, 5.into()])),
        [n, 3.into(), 2.into(), 5.into()]
    );
    assert_eq!(product(&floats_of(&[4]), &floats_of(&[2, 4, 3])), [2.into(), 3.into()]);
    assert_eq!(product(&floats_of(&[4]), &floats_of(&[4])), []);
    assert!(fails(d, "MatMul", &[], &[&floats_of(&[2, 3]), &floats_of(&[4, 5])]).contains("[2, 3] and [4, 5]"));
    let einsum = |equation: &str, inputs: &[&Fact]| shape(&first(d, "Einsum", &[string("equation", equation)], inputs));
    assert_eq!(
        einsum("...ij, ...jk -> ...ik", &[&float_of(&[n, 2.into(), k]), &float_of(&[k, 3.into()])]),
        [n, 2.into(), 3.into()]
    );
    assert_eq!(einsum("ba,cb", &[&floats_of(&[2, 3]), &floats_of(&[4, 2])]), [3.into(), 4.into()]);
    assert_eq!(einsum("ii", &[&floats_of(&[3, 3])]), []);
}

#[test]
fn the_type_of_the_mask_changed() {
    let d = &Dims::default();
    let mask = |version| run(d, version, "Dropout", &[], &[&floats_of(&[2])]).unwrap()[1].element;
    assert_eq!((mask(7), mask(10)), (Some(ElementType::Float), Some(ElementType::Bool)));
}

#[test]
fn reductions() {
    let d = &Dims::default();
    let n = d.named("N");
    let x = float_of(&[n, 3.into(), 4.into()]);
    let reduce = |attributes: &[AttributeProto], inputs: &[&Fact]| shape(&first(d, "ReduceSum", attributes, inputs));
    assert_eq!(reduce(&[int("keepdims", 0)], &[&x, &numbers(&[-1])]), [n, 3.into()]);
    assert_eq!(reduce(&[ints("axes", &[0, 2])], &[&x]), [1.into(), 3.into(), 1.into()]);
    assert_eq!(reduce(&[int("noop_with_empty_axes", 1)], &[&x, &numbers(&[])]), shape(&x));
    let count = first(d, "ReduceProd", &[int("keepdims", 0)], &[&list(&[n, 3.into(), 4.into()])]);
    assert_eq!((shape(&count), count.dims().unwrap()), (vec![], vec![d.mul(n, 12.into())]));
    fails(d, "ReduceSum", &[ints("axes", &[3])], &[&x]);
}

#[test]
fn sizes_of_images() {
    let d = &Dims::default();
    let h = d.named("H");
    let x = float_of(&[1.into(), 3.into(), h, 9.into()]);
    let half = run(d, 7, "Upsample", &[floats("scales", &[1.0, 1.0, 2.0, 0.5])], &[&x]).unwrap().swap_remove(0);
    assert_eq!(shape(&half), [1.into(), 3.into(), d.mul(h, 2.into()), 4.into()]);
    let (none, y) = (floats_of(&[0]), floats_of(&[1, 1, 4, 6]));
    let fit = [ints("axes", &[2, 3]), string("keep_aspect_ratio_policy", "not_larger")];
    assert_eq!(shape(&first(d, "Resize", &fit, &[&y, &none, &none, &numbers(&[7, 8])])), [1, 1, 5, 8].map(Dim::Known));
}

#[test]
fn sequences_know_what_their_elements_share() {
    let d = &Dims::default();
    let (a, b) = (floats_of(&[2, 3]), floats_of(&[4, 3]));
    let both = first(d, "SequenceConstruct", &[], &[&a, &b]);
    assert_eq!((both.container, both.element), (Container::Sequence, Some(ElementType::Float)));
    assert!(matches!(shape(&both)[..], [Dim::Symbol(_), Dim::Known(3)]), "what all elements share");
    let same = first(d, "SequenceConstruct", &[], &[&a, &a]);
    assert_eq!(first(d, "SequenceAt", &[], &[&same, &scalar(0.into())]), a);
}

/// Shapes and element types as ONNX Runtime has them.
#[test]
fn classical_models_have_shapes() {
    let d = &Dims::default();
    let batch = floats_of(&[2, 3]);
    let outputs = |op_type: &str, attributes: &[AttributeProto], inputs: &[&Fact]| {
        let inputs: Vec<Option<&Fact>> = inputs.iter().map(|&f| Some(f)).collect();
        let op = Op { op_type, domain: "ai.onnx.ml", version: 1, attributes, outputs: 2, dims: d };
        infer(&op, &inputs).unwrap()
    };
    let sizes = |fact: &Fact| shape(fact).into_iter().map(|d| d.known()).collect::<Option<Vec<i64>>>();
    let (two, three) = (ints("classlabels_ints", &[4, 5]), ints("classlabels_ints", &[4, 5, 6]));
    let (one, four) = (floats("intercepts", &[0.0]), ints("classlabels_ints", &[4, 5, 6, 7]));
    let vectors = floats("support_vectors", &[0.0; 12]);
    let places = numbers(&[0, 2]);
    for (op, attributes, expected) in [
        ("FeatureVectorizer", vec![ints("inputdimensions", &[3])], vec![2, 3]),
        ("LinearRegressor", vec![int("targets", 4)], vec![2, 4]),
        ("OneHotEncoder", vec![ints("cats_int64s", &[1, 2, 3, 4])], vec![2, 3, 4]),
        ("SVMRegressor", vec![], vec![2, 1]),
        ("Scaler", vec![], vec![2, 3]),
        ("TreeEnsembleRegressor", vec![int("n_targets", 2)], vec![2, 2]),
    ] {
        assert_eq!(sizes(&outputs(op, &attributes, &[&batch])[0]), Some(expected), "{op}");
    }
    for (op, attributes, expected) in [
        ("LinearClassifier", vec![two.clone(), one.clone()], Some(vec![2, 2])),
        ("LinearClassifier", vec![three.clone(), floats("intercepts", &[0.0; 3])], Some(vec![2, 3])),
        ("SVMClassifier", vec![four.clone(), vectors.clone()], Some(vec![2, 6])),
        ("SVMClassifier", vec![four.clone(), vectors.clone(), floats("prob_a", &[0.0; 6])], Some(vec![2, 4])),
        ("SVMClassifier", vec![three.clone()], Some(vec![2, 3])),
        ("SVMClassifier", vec![two.clone(), vectors.clone()], Some(vec![2, 2])),
        ("TreeEnsembleClassifier", vec![ints("classlabels_int64s", &[1, 2])], Some(vec![2, 2])),
        ("TreeEnsembleClassifier", vec![ints("classlabels_int64s", &[1])], None),
    ] {
        let facts = outputs(op, &attributes, &[&batch]);
        assert_eq!((sizes(&facts[0]), facts[0].element), (Some(vec![2]), Some(ElementType::Int64)), "{op}");
        assert_eq!((sizes(&facts[1]), facts[1].element), (expected, Some(ElementType::Float)), "{op}");
    }
    let named = outputs("LinearClassifier", &[strings("classlabels_strings", &["a", "b"]), one], &[&batch]);
    assert_eq!(named[0].element, Some(ElementType::String));
    let one_sample = floats_of(&[3]);
    assert_eq!(sizes(&outputs("LinearRegressor", &[], &[&one_sample])[0]), Some(vec![1, 1]));
    assert_eq!(sizes(&outputs("ArrayFeatureExtractor", &[], &[&one_sample, &places])[0]), Some(vec![1, 2]));
    assert_eq!(sizes(&outputs("ArrayFeatureExtractor", &[], &[&batch, &places])[0]), Some(vec![2, 2]));
    assert_eq!(outputs("ZipMap", &[], &[&batch])[0].container, Container::Other);
}

/// Sizes that a file claims do not allocate, and do not overflow.
#[test]
fn absurd_sizes_are_harmless() {
    let d = &Dims::default();
    let huge = floats_of(&[i64::MAX, i64::MAX]);
    assert_eq!(first(d, "Reshape", &[], &[&huge, &floats_of(&[1 << 40])]).shape, None);
    for (op, inputs) in [
        ("Size", vec![&huge]),
        ("Flatten", vec![&huge]),
        ("Transpose", vec![&huge]),
        ("Reshape", vec![&huge, &numbers(&[-1, i64::MAX])]),
        ("Slice", vec![&huge, &numbers(&[i64::MIN]), &numbers(&[i64::MAX]), &numbers(&[1]), &numbers(&[i64::MIN])]),
        ("Tile", vec![&huge, &numbers(&[i64::MAX, -1])]),
        ("Split", vec![&huge, &numbers(&[i64::MAX, i64::MIN])]),
        ("Range", vec![&scalar(i64::MIN.into()), &scalar(i64::MAX.into()), &scalar(i64::MIN.into())]),
        ("Pad", vec![&huge, &numbers(&[i64::MAX, i64::MIN, i64::MAX, i64::MIN])]),
    ] {
        let _ = run(d, 21, op, &[], &inputs);
    }
    for op in ["MaxPool", "AveragePool", "MaxUnpool", "LpPool"] {
        let x = floats_of(&[1, 1, i64::MAX]);
        for extreme in [i64::MIN, -1, 0, i64::MAX] {
            let attributes =
                ["kernel_shape", "strides", "pads", "dilations"].map(|name| ints(name, &[extreme, extreme]));
            let _ = run(d, 21, op, &[&attributes[..], &[int("ceil_mode", 1)]].concat(), &[&x]);
        }
    }
}
