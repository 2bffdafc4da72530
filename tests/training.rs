//! Trainable models: the numbers of each loss and optimizer against references computed elsewhere, and what must hold of all.
#![cfg(feature = "validate")]

use onnx_gradients::Model;
use onnx_gradients::internals::{self, Precision, Run, Tensors, tensor};
use onnx_gradients::onnx::{ElementType, ModelProto, NodeProto, TensorProto, text};
use onnx_gradients::training::{
    Adapters, Artifacts, CHECKPOINT, Choice, Data, Epoch, Hyper, LOSSES, LossSpec, METRICS, Manifest, OPTIMIZERS,
    Options, Schedule, State, Trainable, export, optimizer, read_state, train,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn parse(opset: i64, graph: &str) -> Model {
    Model::from(text::parse(&format!("<ir_version: 8, opset_import: [\"\": {opset}]>\n{graph}")).unwrap())
}

fn role<'a>(artifacts: &'a Artifacts, role: &str) -> &'a ModelProto {
    &artifacts.models.iter().find(|(r, _)| r == role).unwrap().1
}

type Values = BTreeMap<String, Vec<f64>>;

/// Runs one of the models with the initial state and some tensors of one's own.
fn run(artifacts: &Artifacts, name: &str, precision: Precision, own: &[(&str, TensorProto)]) -> Values {
    let own = own.iter().map(|(n, t)| ((*n).to_owned(), t.clone()));
    let feeds: State = artifacts.state.iter().cloned().chain(own).collect();
    run_with(role(artifacts, name), precision, &feeds)
}

fn run_with(model: &ModelProto, precision: Precision, feeds: &State) -> Values {
    let feeds: Tensors = feeds.iter().map(|(n, t)| (n.clone(), Arc::new(tensor(t).unwrap()))).collect();
    let plan = prepare(model, &feeds, precision);
    let results = plan.run(&feeds).unwrap_or_else(|e| panic!("{e}"));
    results.iter().map(|(n, t)| (n.clone(), t.values())).collect()
}

fn prepare(model: &ModelProto, feeds: &Tensors, precision: Precision) -> Box<dyn Run> {
    internals::prepare(model, feeds, precision).unwrap_or_else(|e| panic!("{e}"))
}

fn float(dims: &[i64], values: &[f64]) -> TensorProto {
    TensorProto::from_floats(ElementType::Float, dims, values).unwrap()
}

fn double(dims: &[i64], values: &[f64]) -> TensorProto {
    TensorProto::from_floats(ElementType::Double, dims, values).unwrap()
}

fn ints(dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto::from_ints(ElementType::Int64, dims, values).unwrap()
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: element {i} is {a}, not {b}");
    }
}

fn digits() -> Data {
    let artifacts = Trainable::new([LossSpec::new("cross-entropy")]).build(&model("digits-mlp")).unwrap();
    Data::read(&folder("data/digits.npz"), &artifacts.manifest).unwrap()
}

fn model(name: &str) -> Model {
    Model::load(folder("models").join(format!("{name}.onnx"))).unwrap()
}

// ---------------------------------------------------------------- references

#[derive(Deserialize)]
struct Optimizers {
    lr: f64,
    shape: Vec<i64>,
    w: Vec<f64>,
    gradients: Vec<Vec<f64>>,
    cases: Vec<OptimizerCase>,
}

#[derive(Deserialize)]
struct OptimizerCase {
    optimizer: String,
    hyper: Hyper,
    path: Vec<Vec<f64>>,
}

#[test]
fn optimizers_agree_with_their_references_over_twenty_steps() {
    let text = std::fs::read_to_string(folder("tests/references/optimizers.json")).unwrap();
    let reference: Optimizers = serde_json::from_str(&text).unwrap();
    // The gradient of Σ x w with respect to w is x: what is fed.
    let mut model = parse(17, "g (double[3,4] x) => (double y) { p = Mul (x, w) y = ReduceSum <keepdims = 0> (p) }");
    let w = TensorProto { name: Some("w".to_owned()), ..double(&reference.shape, &reference.w) };
    model.proto.graph.as_mut().unwrap().initializer.push(w);
    let mut names: Vec<&str> = reference.cases.iter().map(|c| c.optimizer.as_str()).collect();
    names.dedup();
    assert_eq!(names, OPTIMIZERS.iter().map(|o| o.name).collect::<Vec<_>>());
    for case in &reference.cases {
        let request = Trainable::new([LossSpec::new("y")]).optimizer(&case.optimizer, Some(case.hyper));
        let artifacts = request.build(&model).unwrap();
        let mut state: Tensors =
            (artifacts.state.iter()).map(|(n, t)| (n.clone(), Arc::new(tensor(t).unwrap()))).collect();
        let rate = tensor(&double(&[], &[reference.lr])).unwrap();
        state.insert("learning_rate".to_owned(), Arc::new(rate));
        let mut plan = None;
        for (t, (gradient, expected)) in reference.gradients.iter().zip(&case.path).enumerate() {
            let x = tensor(&double(&reference.shape, gradient)).unwrap();
            state.insert("x".to_owned(), Arc::new(x));
            let plan = plan.get_or_insert_with(|| prepare(role(&artifacts, "train"), &state, Precision::Double));
            let results = plan.run(&state).unwrap_or_else(|e| panic!("{}: {e}", case.optimizer));
            for feed in &artifacts.manifest.state {
                state.insert(feed.input.clone(), results[&feed.output].clone());
            }
            let found = state["w"].values();
            assert_close(&format!("{} {:?}, step {t}", case.optimizer, case.hyper), &found, expected, 1e-6);
        }
        assert_eq!(state["step"].values(), [20.0]);
    }
}

#[derive(Deserialize)]
struct LossCase {
    loss: String,
    shape: Vec<i64>,
    x: Vec<f64>,
    targets: BTreeMap<String, Target>,
    value: f64,
    gradient: Vec<f64>,
}

#[derive(Deserialize)]
struct Target {
    shape: Vec<i64>,
    integer: bool,
    values: Vec<f64>,
}

#[test]
fn losses_agree_with_their_references_gradients_included() {
    let text = std::fs::read_to_string(folder("tests/references/losses.json")).unwrap();
    let cases: Vec<LossCase> = serde_json::from_str(&text).unwrap();
    for row in LOSSES {
        assert!(cases.iter().any(|c| c.loss.split(',').next() == Some(row.name)), "{} has no reference", row.name);
    }
    for opset in [11, 13, 17, 21] {
        for case in &cases {
            let mut model = parse(opset, "g (double[N,4] x) => (double[N,4] y) { y = Add (x, w) }");
            let zeros = vec![0.0; case.x.len()];
            let w = TensorProto { name: Some("w".to_owned()), ..double(&case.shape, &zeros) };
            model.proto.graph.as_mut().unwrap().initializer.push(w);
            let artifacts = Trainable::new([LossSpec::parse(&case.loss).unwrap()]).build(&model).unwrap();
            let mut own = vec![("x", double(&case.shape, &case.x))];
            for (name, target) in &case.targets {
                let integers: Vec<i64> = target.values.iter().map(|&v| v as i64).collect();
                let tensor =
                    if target.integer { ints(&target.shape, &integers) } else { double(&target.shape, &target.values) };
                own.push((name, tensor));
            }
            let what = format!("{} at opset {opset}", case.loss);
            let results = run(&artifacts, "gradients", Precision::Double, &own);
            assert_close(&what, &results["loss"], &[case.value], 1e-6);
            assert_close(&what, &results["gradient/w"], &case.gradient, 1e-6);
            let evaluated = run(&artifacts, "evaluate", Precision::Double, &own);
            assert_close(&what, &evaluated["loss"], &[case.value], 1e-6);
        }
    }
}

// ---------------------------------------------------------------- the models of a training

fn batch(n: i64) -> Vec<(&'static str, TensorProto)> {
    let at = |i: i64| ((i as f64 + 0.5) * 0.618_033_988_749_895).fract();
    let image: Vec<f64> = (0..n * 64).map(at).collect();
    vec![("image", float(&[n, 64], &image)), ("labels", ints(&[n], &(0..n).map(|i| i * 7 % 10).collect::<Vec<_>>()))]
}

fn with_rate(mut own: Vec<(&'static str, TensorProto)>, rate: f64) -> Vec<(&'static str, TensorProto)> {
    own.push(("learning_rate", float(&[], &[rate])));
    own
}

#[test]
fn a_step_is_its_gradients_applied() {
    let request = Trainable::new([LossSpec::new("cross-entropy")]).clip(Some(0.1), None).accumulate(2);
    let artifacts = request.build(&model("digits-mlp")).unwrap();
    let whole = run(&artifacts, "train", Precision::Own, &with_rate(batch(8), 0.1));
    let gradients = run(&artifacts, "gradients", Precision::Own, &batch(8));
    let given: Vec<(String, TensorProto)> = (artifacts.manifest.parameters.iter().zip(&artifacts.manifest.state))
        .map(|(p, f)| (p.gradient.clone(), float(&f.shape, &gradients[&p.gradient])))
        .collect();
    let mut own: Vec<(&str, TensorProto)> = given.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    own.push(("learning_rate", float(&[], &[0.1])));
    let applied = run(&artifacts, "apply", Precision::Own, &own);
    for feed in &artifacts.manifest.state {
        assert_close(&feed.output, &applied[&feed.output], &whole[&feed.output], 1e-6);
    }
    // Two micro-batches sum up to the gradients of one batch of the samples of both.
    let mut sums: Vec<(String, TensorProto)> = (artifacts.manifest.parameters.iter().zip(&artifacts.manifest.state))
        .map(|(p, f)| (p.sum.clone(), float(&f.shape, &vec![0.0; f.shape.iter().product::<i64>() as usize])))
        .collect();
    let whole = batch(8);
    for half in 0..2 {
        let mut own = vec![];
        for (name, t) in &whole {
            let part = |n: usize| (half * n / 2, (half + 1) * n / 2);
            let tensor = if t.element_type() == ElementType::Int64 {
                let (from, to) = part(8);
                ints(&[4], &t.integers().unwrap()[from..to])
            } else {
                let (from, to) = part(8 * 64);
                float(&[4, 64], &t.floats().unwrap()[from..to])
            };
            own.push((*name, tensor));
        }
        let given = sums.clone();
        own.extend(given.iter().map(|(n, t)| (&*n.clone().leak(), t.clone())).map(|(n, t)| (n as &'static str, t)));
        let results = run(&artifacts, "accumulate", Precision::Own, &own);
        for ((_, sum), p) in sums.iter_mut().zip(&artifacts.manifest.parameters) {
            *sum = float(&sum.dims, &results[&p.next_sum]);
        }
    }
    for ((name, sum), p) in sums.iter().zip(&artifacts.manifest.parameters) {
        assert_close(name, &sum.floats().unwrap(), &gradients[&p.gradient], 1e-6);
    }
}

#[test]
fn metrics_are_numbers_of_outputs_and_targets() {
    let model = parse(
        17,
        "g (double[N,3] x) => (double[N,3] y, double[N,3] p) <double[3] w = {1, 1, 1}> { y = Mul (x, w) p = Sigmoid (y) }",
    );
    let losses = ["cross-entropy:y,ignore=2", "mse:y,labels=target", "bce:p,labels=bits"];
    let losses = losses.map(|l| LossSpec::parse(l).unwrap());
    let all = ["accuracy", "top-2:y", "mae:y", "mae:p", "mse:y", "gradient-norm"];
    let artifacts = Trainable::new(losses.clone()).metrics(all).build(&model).unwrap();
    let x = [3.0, 2.0, 1.0, 0.0, 1.0, 2.0, 5.0, 0.0, 0.0];
    let own = [
        ("x", double(&[3, 3], &x)),
        ("labels/y", ints(&[3], &[1, 0, 2])),
        ("target", double(&[3, 3], &[1.0; 9])),
        ("bits", double(&[3, 3], &[1., 0., 1., 0., 0., 1., 1., 0., 1.])),
    ];
    let found = run(&artifacts, "evaluate", Precision::Double, &own);
    // The third sample does not count; the right class of the first is the second of its three, that of the second the last.
    assert_close("accuracy of classes", &found["accuracy/y"], &[0.0], 1e-9);
    assert_close("top-2", &found["top-2/y"], &[0.5], 1e-9);
    // Of nine bits, those of 2 and 1 that should be 0 are on the wrong side, and so are the 0 that should be 1.
    assert_close("accuracy of bits", &found["accuracy/p"], &[6.0 / 9.0], 1e-9);
    assert_close("mae", &found["mae/y"], &[(2. + 1. + 0. + 1. + 0. + 1. + 4. + 1. + 1.) / 9.0], 1e-9);
    assert_close("mse", &found["mse/y"], &[(4. + 1. + 0. + 1. + 0. + 1. + 16. + 1. + 1.) / 9.0], 1e-9);
    assert!(found["mae/p"][0] < 1.0 && !found.contains_key("gradient_norm"));
    let wanted = ["accuracy/y", "accuracy/p", "top-2/y", "mae/y", "mae/p", "mse/y", "gradient_norm"];
    let mut names = artifacts.manifest.metrics.clone();
    names.sort();
    assert_eq!(names, BTreeMap::from(wanted.map(|n| (n, ()))).into_keys().collect::<Vec<_>>());
    let none = Trainable::new(losses.clone()).metrics::<String>([]).build(&model).unwrap();
    assert_eq!(role(&none, "train").graph.as_ref().unwrap().output[1].name(), "next/w");
    let error =
        |metric: &str| Trainable::new(losses[..1].to_vec()).metrics([metric]).build(&model).unwrap_err().to_string();
    assert_eq!(error("mae"), "no loss has the metric mae");
    assert_eq!(error("accuracy:p"), "no loss of 'p' has the metric accuracy");
    assert_eq!(error("f1"), "there is no metric 'f1'; there are accuracy, top-K, mae, mse, gradient-norm");
}

#[test]
fn the_last_operator_is_followed_through_what_moves_elements() {
    let built = |opset: i64, graph: &str, loss: &str| {
        Trainable::new([LossSpec::parse(loss).unwrap()]).build(&parse(opset, graph))
    };
    let loss = |artifacts: &Artifacts, labels: TensorProto| {
        let x = double(&[2, 3, 2], &[1., 2., 3., 4., 5., 0., 1., 1., 2., 0., 7., 3.]);
        run(artifacts, "evaluate", Precision::Double, &[("x", x), ("labels", labels)])["loss"][0]
    };
    let head = "(double[N,3,2] x) => (double[N,A,B] y) <double[2] w = {1, 0.5}";
    for opset in [11, 17] {
        // Before opset 13 a softmax along the last axis alone is one along any later axis of size one, too.
        let logits = format!("g {head}> {{ h = Mul (x, w) y = Transpose <perm = [0, 2, 1]> (h) }}");
        let ends = format!(
            "g {head}> {{ h = Mul (x, w) p = Softmax <axis = 2> (h) q = Identity (p) y = Transpose <perm = [0, 2, 1]> (q) }}"
        );
        let labels = || ints(&[2, 3], &[0, 1, 1, 0, 1, 0]);
        let ends = built(opset, &ends, "cross-entropy").unwrap();
        assert!(ends.manifest.decisions.iter().any(|d| d.contains("computed from what goes into its Softmax")));
        assert_eq!(loss(&ends, labels()), loss(&built(opset, &logits, "cross-entropy,axis=1").unwrap(), labels()));
    }
    // A softmax that is spelled out, its sum laid along the powers in one way or another.
    let plain = built(17, &format!("g {head}> {{ y = Mul (x, w) }}"), "cross-entropy,axis=2").unwrap();
    for (keepdims, divided) in
        [(1, "y = Div (e, s)"), (0, "r = Reshape (s, wide) b = Expand (r, whole) y = Div (e, b)")]
    {
        let spelled = format!(
            "g {head}, int64[1] last = {{-1}}, int64[3] wide = {{-1, 3, 1}}, int64[3] whole = {{1, 3, 2}}> {{
                h = Mul (x, w)
                m = ReduceMax <axes = [2], keepdims = 1> (h)
                d = Sub (h, m)
                e = Exp (d)
                s = ReduceSum <keepdims = {keepdims}> (e, last)
                {divided}
            }}"
        );
        let spelled = built(17, &spelled, "cross-entropy").unwrap();
        let said = spelled.manifest.decisions.join("\n");
        assert!(said.contains("computed from what goes into its Exp"), "{said}");
        let labels = || ints(&[2, 3], &[0, 1, 1, 0, 1, 0]);
        assert!((loss(&spelled, labels()) - loss(&plain, labels())).abs() < 1e-12);
    }
    let reshaped = format!(
        "g {head}, int64[3] s = {{-1, 3, 2}}, int64[2] f = {{-1, 2}}> {{ h = Mul (x, w) t = Reshape (h, f) p = LogSoftmax (t) y = Reshape (p, s) }}"
    );
    let plain = format!("g {head}> {{ y = Mul (x, w) }}");
    let labels = || ints(&[2, 3], &[0, 1, 1, 0, 1, 0]);
    let expected = loss(&built(17, &plain, "cross-entropy,axis=2").unwrap(), labels());
    for kind in ["cross-entropy", "nll"] {
        assert_close(kind, &[loss(&built(17, &reshaped, kind).unwrap(), labels())], &[expected], 1e-12);
    }
    let bits = || double(&[2, 3, 2], &[1., 0., 0., 1., 1., 1., 0., 0., 1., 0., 0., 1.]);
    let sigmoid =
        format!("g {head}, int64[3] s = {{-1, 3, 2}}> {{ h = Mul (x, w) p = Sigmoid (h) y = Reshape (p, s) }}");
    let expected = loss(&built(17, &plain, "bce-with-logits").unwrap(), bits());
    for kind in ["bce", "bce-with-logits"] {
        assert_close(kind, &[loss(&built(17, &sigmoid, kind).unwrap(), bits())], &[expected], 1e-12);
    }
    let error = |graph: &str, loss: &str| format!("{:#}", built(11, graph, loss).unwrap_err());
    let flat = format!("g {head}> {{ h = Mul (x, w) y = Softmax <axis = 1> (h) }}");
    assert!(error(&flat, "cross-entropy").contains("normalizes no single axis of it: name the tensor that goes into"));
    let last = format!("g {head}> {{ h = Mul (x, w) y = Softmax <axis = 2> (h) }}");
    assert!(
        error(&last, "cross-entropy,axis=1")
            .contains("axis 1 is asked for, the model's Softmax has its classes along axis 2")
    );
}

#[test]
fn the_manifest_names_inputs_and_outputs_in_their_order() {
    let artifacts = Trainable::new([LossSpec::new("cross-entropy")]).build(&model("digits-cnn")).unwrap();
    let step = artifacts.manifest.model("train").unwrap();
    let fed: Vec<&String> = artifacts.manifest.state.iter().map(|f| &f.input).collect();
    let back: Vec<&String> = artifacts.manifest.state.iter().map(|f| &f.output).collect();
    assert_eq!(step.inputs[..4], ["image", "labels", "learning_rate", "step"]);
    assert!(step.inputs[4..].iter().eq(fed.into_iter().filter(|n| *n != "step")));
    assert_eq!(step.outputs[..3], ["loss", "accuracy", "gradient_norm"]);
    assert!(step.outputs[3..].iter().eq(back));
    let text = serde_json::to_string(&artifacts.manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), artifacts.manifest);
}

#[test]
fn modes_and_choices_are_said() {
    let said = |request: Trainable, model: &Model| request.build(model).unwrap().manifest.decisions.join("\n");
    let cnn = model("digits-cnn");
    let request = || Trainable::new([LossSpec::new("cross-entropy")]);
    let text = said(request(), &cnn);
    assert!(text.contains("2 BatchNormalization stay in inference mode"), "{text}");
    assert!(text.contains("1 Dropout stay in inference mode"), "{text}");
    assert!(text.contains("computed from what goes into its Softmax"), "{text}");
    let text = said(request().train_batch_norm(true).dropout([], true), &cnn);
    assert!(text.contains("2 BatchNormalization are in training mode"), "{text}");
    assert!(text.contains("'kept' is dropped out with ratio 0.25"), "{text}");
    let folded = parse(
        17,
        "g (float[N,1,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {1, 2}, float[2] b = {0, 0}> { y = Conv (x, w, b) }",
    );
    let text = said(Trainable::new([LossSpec::new("mse")]), &folded);
    assert!(text.contains("has been folded into the weights and biases of 1 Conv"), "{text}");
}

#[test]
fn batch_normalization_in_training_mode_uses_the_batch_and_keeps_statistics() {
    let model = parse(
        17,
        "g (double[N,2,3] x) => (double[N,2,3] y)
         <double[2] s = {2, 1}, double[2] b = {1, 0}, double[2] m = {5, 6}, double[2] v = {1, 2}>
         { y = BatchNormalization <momentum = 0.75, epsilon = 0.0> (x, s, b, m, v) }",
    );
    let artifacts = Trainable::new([LossSpec::new("mse")]).train_batch_norm(true).build(&model).unwrap();
    let x = double(&[2, 2, 3], &[1., 2., 3., 0., 0., 4., 4., 5., 9., 2., 2., 4.]);
    let target = double(&[2, 2, 3], &[0.0; 12]);
    let rate = double(&[], &[0.0]);
    let own = [("x", x.clone()), ("labels", target.clone()), ("learning_rate", rate)];
    let results = run(&artifacts, "train", Precision::Double, &own);
    let (mean0, mean1) = (4.0, 2.0);
    let (var0, var1) = ((9. + 4. + 1. + 0. + 1. + 25.) / 6.0, (4. + 4. + 4. + 0. + 0. + 4.) / 6.0);
    let momentum = f64::from(0.75f32);
    let follow = |old: f64, new: f64| momentum * old + (1.0 - momentum) * new;
    assert_close("mean", &results["next/m"], &[follow(5.0, mean0), follow(6.0, mean1)], 1e-6);
    assert_close("variance", &results["next/v"], &[follow(1.0, var0), follow(2.0, var1)], 1e-6);
    // Of normal values times 2 plus 1, and of normal values, the mean square is (4 + 1 + 1) / 2.
    assert_close("loss", &results["loss"], &[3.0], 1e-6);
    // Evaluation takes the running statistics.
    let evaluated = run(&artifacts, "evaluate", Precision::Double, &[("x", x), ("labels", target)]);
    assert_close("y", &evaluated["y"][..1], &[(1.0 - 5.0) * 2.0 + 1.0], 1e-6);
    let (exported, _) = export(&artifacts.manifest, &model.proto, &artifacts.state, Adapters::Merged).unwrap();
    assert_eq!(exported, model.proto, "the initial state put back is the model itself");
}

#[test]
fn dropout_follows_the_step_alone() {
    let model = parse(17, "g (float[N,500] x) => (float[N,500] y) <float[500] w> { h = Mul (x, w) y = Identity (h) }");
    let mut model = model;
    let graph = model.proto.graph.as_mut().unwrap();
    graph.initializer.clear();
    graph.initializer.push(TensorProto { name: Some("w".to_owned()), ..float(&[500], &[1.0; 500]) });
    let mut spec = LossSpec::parse("mae,sum").unwrap();
    spec.labels = Some("t".to_owned());
    let artifacts = Trainable::new([spec]).dropout([("h".to_owned(), 0.3)], false).build(&model).unwrap();
    let loss = |step: i64| {
        let x = float(&[4, 500], &[1.0; 2000]);
        let own = [("x", x), ("t", float(&[4, 500], &[0.0; 2000])), ("step", ints(&[], &[step]))];
        let results = run(&artifacts, "gradients", Precision::Own, &own);
        (results["loss"][0], results["gradient/w"].clone())
    };
    let (first, second) = (loss(0), loss(1));
    assert_eq!(first, loss(0));
    assert_ne!(first.1, second.1);
    let mut kept = 0.0;
    for step in 0..20 {
        let (sum, gradient) = loss(step);
        assert!((gradient.iter().sum::<f64>() - sum).abs() < 1e-4 * sum);
        kept += sum * 0.7 / 2000.0 / 20.0;
    }
    assert!((kept - 0.7).abs() < 0.01, "{kept} are kept");
    let own = [("x", float(&[1, 500], &[1.0; 500])), ("t", float(&[1, 500], &[0.0; 500]))];
    assert_eq!(run(&artifacts, "evaluate", Precision::Own, &own)["loss"], [500.0]);
}

#[test]
fn weights_are_found_where_exporters_hide_them() {
    let model = parse(
        17,
        r#"g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}, int8[2,2] q = {10, -20, 30, 40}, float s = {0.5}, float[2] shift = {1, 2}>
        {
            c = Constant <value = float[2,2] {1, 0, 0, 1}> ()
            t = Transpose <perm = [1, 0]> (w)
            i = Identity (t)
            d = DequantizeLinear (q, s)
            shifted = Sub (x, shift)
            a = MatMul (shifted, i)
            b = MatMul (a, c)
            e = MatMul (b, d)
            y = MatMul (e, t)
        }"#,
    );
    let artifacts = Trainable::new([LossSpec::new("mse")]).build(&model).unwrap();
    let names: Vec<&str> = artifacts.manifest.parameters.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["w", "c", "d"], "w once, though two products take it; the shift is a constant");
    let (exported, notes) = export(&artifacts.manifest, &model.proto, &artifacts.state, Adapters::Merged).unwrap();
    assert_eq!(notes, ["'d' has been rounded to its int8 again"]);
    assert_eq!(exported, model.proto);
    let own = [("x", float(&[1, 2], &[1.0, 4.0])), ("labels", float(&[1, 2], &[0.0, 0.0]))];
    let results = run(&artifacts, "evaluate", Precision::Own, &own);
    // [0, 2] wᵀ = [4, 8]; times d = [[5, -10], [15, 20]]: [140, 120]; times wᵀ: [380, 900].
    assert_close("y", &results["y"], &[380.0, 900.0], 1e-6);
    let choice = Choice::default().train(vec!["shift".to_owned()]);
    let artifacts = Trainable::new([LossSpec::new("mse")]).choose(choice).build(&model).unwrap();
    assert_eq!(artifacts.manifest.parameters.len(), 1);
}

#[test]
fn gradients_pass_quantized_activations() {
    let model = parse(
        13,
        r#"g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 0, 0, 1}, float s = {0.5}, int8 z = {0}>
        { a = MatMul (x, w) q = QuantizeLinear (a, s, z) d = DequantizeLinear (q, s, z) y = MatMul (d, v) }"#,
    );
    let own = [("x", float(&[1, 2], &[1.0, 1.0])), ("labels", float(&[1, 2], &[0.0, 0.0]))];
    let gradients = |request: Trainable| {
        let artifacts = request.build(&model).unwrap();
        let said: Vec<String> =
            artifacts.manifest.decisions.iter().filter(|d| d.contains("rounding")).cloned().collect();
        (run(&artifacts, "gradients", Precision::Own, &own)["gradient/w"].clone(), said.join("; "))
    };
    // y = [4, 6], and the loss is the mean of its squares.
    let (gradient, said) = gradients(Trainable::new([LossSpec::new("mse")]));
    assert_close("straight through", &gradient, &[4.0, 6.0, 4.0, 6.0], 1e-6);
    assert!(said.contains("('q') counts as the identity"), "{said}");
    let (gradient, said) = gradients(Trainable::new([LossSpec::new("mse")]).straight_through(false));
    assert_eq!(gradient, [0.0; 4]);
    assert!(said.contains("stop at the rounding to integers between weights and loss ('q')"), "{said}");
}

#[test]
fn quantized_weights_are_trained_as_they_are_exported() {
    let model = parse(
        13,
        r#"g (float[N,2] x) => (float[N,2] y) <int8[2,2] q = {10, -20, 30, 40}, float[2] s = {0.01, 0.02}, int8[2] z = {0, 1}>
        { w = DequantizeLinear <axis = 1> (q, s, z) y = MatMul (x, w) }"#,
    );
    let mut artifacts = Trainable::new([LossSpec::new("mse")]).build(&model).unwrap();
    let place = artifacts.state.iter().position(|(name, _)| name == "w").unwrap();
    // Between two integers, on one, and beyond both ends of their range.
    artifacts.state[place].1 = float(&[2, 2], &[0.1234, 9.0, -3.0, 0.3801]);
    let own = [("x", float(&[1, 2], &[1.0, 1.0])), ("labels", float(&[1, 2], &[0.0, 0.0]))];
    let found = run(&artifacts, "evaluate", Precision::Own, &own)["y"].clone();
    assert_close("rounded and clipped", &found, &[0.12 - 1.28, 2.52 + 0.38], 1e-6);
    let (exported, _) = export(&artifacts.manifest, &model.proto, &artifacts.state, Adapters::Merged).unwrap();
    assert_eq!(exported.graph.as_ref().unwrap().initializer[0].integers().unwrap(), [12, 127, -128, 20]);
    // dy is y, and nothing passes beyond the range.
    let gradient = run(&artifacts, "gradients", Precision::Own, &own)["gradient/w"].clone();
    assert_close("straight through", &gradient, &[-1.16, 0.0, 0.0, 2.9], 1e-5);
}

#[test]
fn biases_of_32_bits_and_weights_of_4_are_rounded_as_they_are_exported() {
    let mut model = parse(
        21,
        r#"g (float[N,3] x) => (float[N,3] y) <int32[3] b = {100, -200, 3000000}, float[3] s = {0.001, 0.002, 0.003}>
        {
            w = DequantizeLinear <axis = 1> (q, t)
            c = DequantizeLinear <axis = 0> (b, s)
            y = Gemm (x, w, c)
        }"#,
    );
    let scales = TensorProto { name: Some("t".to_owned()), ..float(&[3], &[0.1, 0.2, 0.3]) };
    let integers = TensorProto::from_ints(ElementType::Int4, &[3, 3], &[1, -2, 3, 4, 5, -8, 7, 0, -1]).unwrap();
    let integers = TensorProto { name: Some("q".to_owned()), ..integers };
    model.proto.graph.as_mut().unwrap().initializer.extend([integers, scales]);
    let mut artifacts = Trainable::new([LossSpec::new("mse")]).build(&model).unwrap();
    let place = |name: &str| artifacts.state.iter().position(|(n, _)| n == name).unwrap();
    let (w, c) = (place("w"), place("c"));
    let start = artifacts.state[w].1.floats().unwrap();
    assert!((start[1] + 0.4).abs() < 1e-7 && (start[5] + 2.4).abs() < 1e-6, "{start:?}");
    artifacts.state[w].1 = float(&[3, 3], &[0.14, -0.52, 5.0, 0.4, 1.0, -2.4, -9.0, 0.0, -0.3]);
    artifacts.state[c].1 = float(&[3], &[0.10049, -0.4011, 9000.004]);
    let (exported, notes) = export(&artifacts.manifest, &model.proto, &artifacts.state, Adapters::Merged).unwrap();
    let of = |name: &str| {
        let graph = exported.graph.as_ref().unwrap();
        graph.initializer.iter().find(|t| t.name() == name).unwrap().integers().unwrap()
    };
    assert_eq!(of("q"), [1, -3, 7, 4, 5, -8, -8, 0, -1]);
    assert_eq!(of("b"), [100, -201, 3000001]);
    let said = "'w' has been rounded to its int4 again: 2 of its 9 numbers lie beyond the range of its integers";
    assert!(notes.iter().any(|n| n == said), "{notes:?}");
    // No runtime has a QuantizeLinear to 32 bits.
    let (_, evaluate) = artifacts.models.iter().find(|(role, _)| role == "evaluate").unwrap();
    let quantizing = evaluate.graph.as_ref().unwrap().node.iter().filter(|n| n.op_type() == "QuantizeLinear");
    assert_eq!(quantizing.count(), 1, "that of the weight");
    let mut bias = artifacts;
    bias.state[c].1 = float(&[3], &[0.10001, -0.4001, 9000.001]);
    let (_, notes) = export(&bias.manifest, &model.proto, &bias.state, Adapters::Merged).unwrap();
    let said = "'c' has been rounded to its int32 again: none of its integers has changed";
    assert!(notes.iter().any(|n| n.starts_with(said)), "{notes:?}");
}

#[test]
fn lora_stands_beside_integers() {
    let model = parse(
        17,
        r#"g (float[N,16] x) => (float[N,2] y)
          <uint8[2,1,8] b = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7}, float[2] s = {1, 2}>
        { y = com.microsoft.MatMulNBits <K = 16, N = 2, bits = 4, block_size = 16> (x, b, s) }"#,
    );
    let artifacts = Trainable::new([LossSpec::new("mse")]).lora(2, 2.0).build(&model);
    let artifacts = artifacts.unwrap_or_else(|e| panic!("{e:#}"));
    let shapes: Vec<(&str, [[i64; 2]; 2])> =
        artifacts.manifest.lora.iter().map(|a| (a.weight.as_str(), a.shapes)).collect();
    assert_eq!(shapes, [("b", [[16, 2], [2, 2]])]);
    // The layer gives out y itself, and so does what is added beside it.
    let added = |m: &ModelProto| {
        let graph = m.graph.as_ref().unwrap();
        graph.node.iter().find(|n| n.output[0] == "y").map(|n| n.op_type().to_owned())
    };
    let of_role = |role: &str| artifacts.models.iter().find(|(r, _)| r == role).map(|(_, m)| m).unwrap();
    assert_eq!(added(of_role("gradients")).as_deref(), Some("Add"));
    let constant = |n: &NodeProto| n.op_type() == "Constant" && n.output[0].starts_with("gradient/");
    assert!(!of_role("gradients").graph.as_ref().unwrap().node.iter().any(constant));
    let (exported, notes) = export(&artifacts.manifest, &model.proto, &artifacts.state, Adapters::Merged).unwrap();
    assert!(notes.iter().any(|n| n.contains("'b' holds integers; its LoRA matrices stay apart")), "{notes:?}");
    assert_eq!(added(&exported).as_deref(), Some("Add"));
    let kept = |m: &ModelProto| m.graph.as_ref().unwrap().initializer[..2].to_vec();
    assert_eq!(kept(&exported), kept(&model.proto));
}

#[test]
fn lora_stands_beside_a_table_of_integers() {
    let table = |attributes: &str| {
        let text = format!(
            r#"g (int64[N,3] i) => (float y) <uint8[2,8] b = {{0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7}}, float[2,1] s = {{1, 2}}>
            {{ y = com.microsoft.GatherBlockQuantized <block_size = 16{attributes}> (b, i, s) }}"#
        );
        Trainable::new([LossSpec::new("mse")]).lora(2, 2.0).build(&parse(17, &text))
    };
    // 16 columns are packed into 8 bytes; the type of what comes out is that of the scales.
    let artifacts = table("").unwrap_or_else(|e| panic!("{e:#}"));
    let adapters: Vec<_> =
        artifacts.manifest.lora.iter().map(|a| (a.weight.as_str(), a.shapes, a.left_first)).collect();
    assert_eq!(adapters, [("b", [[2, 2], [2, 16]], false)]);
    assert_eq!(artifacts.manifest.lora[0].beside.as_ref().map(|b| b.lookup), Some(true));
    // Columns that are looked up make no rows that a product could be added to.
    assert!(table(", gather_axis = 1").map_or(true, |a| a.manifest.lora.is_empty()));
}

#[test]
fn weights_out_of_reach_are_named() {
    let text = r#"<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N,2] x, bool c) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}>
        {
            f = own.layer (x)
            h = If (c) <
                then_branch = t () => (float[N,2] a) { a = MatMul (f, w) },
                else_branch = e () => (float[N,2] b) <float[2,2] inner = {1, 0, 0, 1}> { b = MatMul (f, inner) }>
            y = Relu (h)
        }
        <domain: "own", opset_import: ["": 17]>
        layer (x) => (y) { k = Constant <value = float[2,2] {1, 2, 3, 4}> () y = MatMul (x, k) }"#;
    let model = Model::from(text::parse(text).unwrap());
    let artifacts = Trainable::new([LossSpec::new("mse")]).build(&model).unwrap();
    let names: Vec<&str> = artifacts.manifest.parameters.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["w", "inner"], "a body may take a weight of the main graph, and one that it held");
    let said = artifacts.manifest.decisions.join("\n");
    assert!(said.contains("k': inside functions, so not trained"), "{said}");
    assert!(said.contains("'inner': taken out of bodies of control flow"), "{said}");
    // In what is exported the branch takes its weight from the graph, as in the model that the step came from.
    let from = |inference: &ModelProto| {
        let exported = export(&artifacts.manifest, inference, &artifacts.state, Adapters::Merged);
        exported.unwrap_or_else(|e| panic!("{e:#}")).0
    };
    let exported = from(&model.proto);
    assert_eq!(exported, from(&artifacts.inference.proto));
    let graph = exported.graph.as_ref().unwrap();
    let names: Vec<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    assert_eq!((names, graph.initializer[1].floats().unwrap()), (vec!["w", "inner"], vec![1.0, 0.0, 0.0, 1.0]));
}

#[test]
fn choices_are_patterns_and_last_layers() {
    let names = |choice: Choice| -> Vec<String> {
        let request = Trainable::new([LossSpec::new("cross-entropy")]).choose(choice);
        request.build(&model("digits-cnn")).unwrap().manifest.parameters.into_iter().map(|p| p.name).collect()
    };
    assert_eq!(names(Choice::default().last(Some(1))), ["classify.weight", "classify.bias"]);
    let two = ["conv2.weight", "conv2.bias", "norm2.scale", "norm2.bias", "classify.weight", "classify.bias"];
    assert_eq!(names(Choice::default().last(Some(2))), two);
    let choice = Choice::default().train(vec!["conv*".into()]).freeze(vec!["*.bias".into()]);
    assert_eq!(names(choice), ["conv1.weight", "conv2.weight"]);
    let choice = Choice::default().train(vec!["clasify.weight".into()]);
    let error =
        Trainable::new([LossSpec::new("cross-entropy")]).choose(choice).build(&model("digits-cnn")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--train 'clasify.weight' matches no weight that the loss depends on; did you mean 'classify.weight'?"
    );
}

#[test]
fn lora_is_the_same_merged_and_apart() {
    let model = model("digits-cnn");
    let request = Trainable::new([LossSpec::new("cross-entropy")]).lora(2, 4.0).optimizer("sgd", None);
    let artifacts = request.build(&model).unwrap();
    assert_eq!(artifacts.manifest.lora.len(), 3);
    assert!(artifacts.manifest.decisions.iter().any(|d| d.contains("'conv1.bias' is no matrix")));
    let before = run(&artifacts, "evaluate", Precision::Own, &batch(8));
    let plain = Trainable::new([LossSpec::new("cross-entropy")]).build(&model).unwrap();
    assert_close("scores", &before["scores"], &run(&plain, "evaluate", Precision::Own, &batch(8))["scores"], 1e-6);
    let mut state = artifacts.state.clone();
    for _ in 0..3 {
        let mut feeds = state.clone();
        feeds.extend(with_rate(batch(8), 0.5).into_iter().map(|(n, t)| (n.to_owned(), t)));
        let results = run_with(role(&artifacts, "train"), Precision::Own, &feeds);
        for (feed, (_, tensor)) in artifacts.manifest.state.iter().zip(&mut state) {
            if feed.role == "parameter" {
                *tensor = float(&feed.shape, &results[&feed.output]);
            }
        }
    }
    let mut feeds = state.clone();
    feeds.extend(batch(8).into_iter().map(|(n, t)| (n.to_owned(), t)));
    let trained = run_with(role(&artifacts, "evaluate"), Precision::Own, &feeds);
    assert!(trained["loss"][0] < before["loss"][0]);
    let (merged, _) = export(&artifacts.manifest, &model.proto, &state, Adapters::Merged).unwrap();
    let (apart, _) = export(&artifacts.manifest, &model.proto, &state, Adapters::Apart).unwrap();
    let image: State = vec![("image".to_owned(), batch(8).remove(0).1)];
    assert_eq!(merged.graph.as_ref().unwrap().node, model.proto.graph.as_ref().unwrap().node);
    for exported in [merged, apart] {
        assert_close("scores", &run_with(&exported, Precision::Own, &image)["scores"], &trained["scores"], 1e-5);
    }
}

#[test]
fn float16_has_masters_and_skips_steps_that_overflow() {
    let model = parse(
        17,
        "g (float16[N,2] x) => (float16[N,2] y) <float16[2,2] w = {1.0, 2.0, 3.0, 4.0}> { y = MatMul (x, w) }",
    );
    let artifacts = Trainable::new([LossSpec::parse("mse,sum").unwrap()]).optimizer("sgd", None).build(&model).unwrap();
    assert_eq!(artifacts.manifest.state[0].r#type, "float");
    let half = |v: &[f64]| TensorProto::from_floats(ElementType::Float16, &[1, 2], v).unwrap();
    let step = |x: &[f64]| {
        let own = [("x", half(x)), ("labels", float(&[1, 2], &[0.0, 0.0])), ("learning_rate", float(&[], &[0.5]))];
        run(&artifacts, "train", Precision::Own, &own)
    };
    let fine = step(&[0.0625, 0.0]);
    assert_eq!(fine["next/w"], [1.0 - 0.5 * 2.0 * 0.0625 * 0.0625, 2.0 - 0.5 * 2.0 * 0.0625 * 0.125, 3.0, 4.0]);
    assert_eq!((fine["next/step"][0], fine["next/loss_scale"][0], fine["next/good_steps"][0]), (1.0, 65536.0, 1.0));
    let overflow = step(&[200.0, 300.0]);
    assert_eq!(overflow["next/w"], [1.0, 2.0, 3.0, 4.0]);
    assert_eq!((overflow["next/step"][0], overflow["next/loss_scale"][0]), (0.0, 32768.0));
    let (exported, _) = export(&artifacts.manifest, &model.proto, &artifacts.state, Adapters::Merged).unwrap();
    let tensor = &exported.graph.as_ref().unwrap().initializer[0];
    assert_eq!((tensor.element_type(), tensor.floats().unwrap()), (ElementType::Float16, vec![1.0, 2.0, 3.0, 4.0]));
}

#[test]
fn statistics_do_not_follow_a_step_that_overflows() {
    let model = parse(
        17,
        "g (float16[N,2,1] x) => (float16[N,2,1] y)
         <float16[2] s = {1.0, 1.0}, float16[2] b = {0.0, 0.0}, float16[2] m = {0.5, 0.5}, float16[2] v = {2.0, 2.0}>
         { y = BatchNormalization (x, s, b, m, v) }",
    );
    let loss = LossSpec::parse("mse,sum").unwrap();
    let request = Trainable::new([loss]).train_batch_norm(true).accumulate(2).loss_scale(16.0);
    let artifacts = request.build(&model).unwrap();
    let half = |v: &[f64]| TensorProto::from_floats(ElementType::Float16, &[2, 2, 1], v).unwrap();
    for (x, follows) in [([0.0, 0.25, 0.5, 0.25], true), ([0.0, 60000.0, -60000.0, 0.0], false)] {
        for role in ["train", "gradients", "accumulate"] {
            let own = [
                ("x", half(&x)),
                ("labels", float(&[2, 2, 1], &[0.0; 4])),
                ("learning_rate", float(&[], &[0.1])),
                ("sum/s", float(&[2], &[0.0; 2])),
                ("sum/b", float(&[2], &[0.0; 2])),
            ];
            let results = run(&artifacts, role, Precision::Own, &own);
            let still = results["next/m"] == [0.5, 0.5] && results["next/v"] == [2.0, 2.0];
            assert_eq!(still, !follows, "{role}: {results:?}");
        }
    }
}

#[test]
fn groups_decay_and_several_losses() {
    let model = parse(
        17,
        "g (double[N,2] x) => (double[N,2] y, double[N,2] z) <double[2] a = {1, 2}, double[2] b = {3, 4}> { y = Mul (x, a) z = Add (x, b) }",
    );
    let hyper = optimizer("sgd").unwrap().defaults().weight_decay(0.5);
    let losses = [LossSpec::parse("mse:y,sum").unwrap(), LossSpec::parse("0.5*mse:z,sum").unwrap()];
    let request = Trainable::new(losses).optimizer("sgd", Some(hyper)).no_decay(["a"]).groups([("b".to_owned(), 0.1)]);
    let artifacts = request.build(&model).unwrap();
    let zeros = || double(&[1, 2], &[0.0, 0.0]);
    let own = [
        ("x", double(&[1, 2], &[1.0, 1.0])),
        ("labels/y", zeros()),
        ("labels/z", zeros()),
        ("learning_rate", double(&[], &[0.1])),
    ];
    let results = run(&artifacts, "train", Precision::Double, &own);
    assert_close("loss", &results["loss"], &[5.0 + 0.5 * (16.0 + 25.0)], 1e-9);
    assert_close("a", &results["next/a"], &[1.0 - 0.1 * 2.0, 2.0 - 0.1 * 4.0], 1e-9);
    assert_close("b", &results["next/b"], &[3.0 - 0.01 * (4.0 + 1.5), 4.0 - 0.01 * (5.0 + 2.0)], 1e-9);
}

#[test]
fn updates_may_be_operators_of_the_preview_domain() {
    let request = |name: &str| Trainable::new([LossSpec::new("cross-entropy")]).optimizer(name, None).preview(true);
    for (name, op, outputs) in
        [("momentum", "Momentum", 2), ("nesterov", "Momentum", 2), ("adagrad", "Adagrad", 2), ("adam", "Adam", 3)]
    {
        let artifacts = request(name).build(&model("digits-mlp")).unwrap();
        let step = role(&artifacts, "train");
        assert_eq!(step.opset("ai.onnx.preview.training"), Some(1));
        let nodes = step.graph.as_ref().unwrap().node.iter().filter(|n| n.domain() == "ai.onnx.preview.training");
        let found: Vec<(&str, usize)> = nodes.map(|n| (n.op_type(), n.output.len())).collect();
        assert_eq!(found, vec![(op, outputs); 4]);
    }
    let error = request("lion").build(&model("digits-mlp")).unwrap_err().to_string();
    assert_eq!(error, "ai.onnx.preview.training has no lion; it has momentum, nesterov, adagrad, adam");
}

#[test]
fn another_model_may_be_the_loss() {
    let model = parse(17, "g (double[N,2] x) => (double[N,2] y) <double[2] w = {1, 2}> { y = Mul (x, w) }");
    let loss = parse(
        17,
        "l (double[N,2] y, double[N,2] goal) => (double cost) <double[2] w = {3, 1}> { d = Sub (y, goal) s = Mul (d, w) q = Mul (s, d) cost = ReduceSum <keepdims = 0> (q) }",
    );
    let artifacts = Trainable::new([]).loss_model(&loss).optimizer("sgd", None).build(&model).unwrap();
    assert_eq!(artifacts.manifest.parameters.len(), 1, "the loss model's own constants are not trained");
    assert!(artifacts.manifest.decisions.contains(&"the loss model takes 'y', and as new inputs 'goal'".to_owned()));
    let own = [("x", double(&[1, 2], &[1.0, 1.0])), ("goal", double(&[1, 2], &[0.0, 0.0]))];
    let results = run(&artifacts, "gradients", Precision::Double, &own);
    assert_close("loss", &results["loss"], &[3.0 + 4.0], 1e-9);
    assert_close("w", &results["gradient/w"], &[6.0, 4.0], 1e-9);
    let wrong = parse(17, "l (float[N] a) => (float b) { b = ReduceSum <keepdims = 0> (a) }");
    let error = format!("{:#}", Trainable::new([]).loss_model(&wrong).build(&model).unwrap_err());
    assert_eq!(error, "--loss-model: no input of the loss model is called as a tensor of the model");
}

#[test]
fn the_documentation_has_every_loss_optimizer_and_metric() {
    let text = std::fs::read_to_string(folder("docs/training.md")).unwrap().replace("&#124;", "|");
    let losses = LOSSES.iter().map(|l| (l.name, l.formula));
    let optimizers = OPTIMIZERS.iter().map(|o| (o.name, o.formula));
    let metrics = METRICS.iter().map(|m| (m.name, m.formula));
    for (name, formula) in losses.chain(optimizers).chain(metrics) {
        assert!(text.contains(&format!("| `{name}` | {formula} |")), "docs/training.md lacks {name}");
    }
}

// ---------------------------------------------------------------- training

fn trainable(name: &str, request: Trainable, place: &Path) -> PathBuf {
    let folder = place.join("t");
    request.build(&model(name)).unwrap().write(&folder, true).unwrap();
    folder
}

fn silent(folder: &Path, data: &Data, options: &Options, resume: bool) -> anyhow::Result<Vec<Epoch>> {
    Ok(train(folder, data, None, options, resume, &mut |_| ControlFlow::Continue(()))?.epochs)
}

/// The samples of which the label is one of `labels`, every `step`th of them.
fn subset(data: &Data, labels: std::ops::Range<i64>, step: usize) -> Data {
    let artifacts = Trainable::new([LossSpec::new("cross-entropy")]).build(&model("digits-mlp")).unwrap();
    let all: Vec<usize> = (0..data.count()).collect();
    let given: BTreeMap<String, TensorProto> = data.batch(&all).unwrap().into_iter().collect();
    let classes = given["labels"].integers().unwrap();
    let chosen: Vec<usize> = all.into_iter().filter(|&i| labels.contains(&classes[i])).step_by(step).collect();
    Data::new(data.batch(&chosen).unwrap(), &artifacts.manifest).unwrap()
}

#[test]
fn a_training_that_is_resumed_gives_the_same_numbers() {
    let data = subset(&digits(), 0..10, 8);
    let options = Options::default().epochs(3).batch(16).checkpoint_every(4);
    let request = || Trainable::new([LossSpec::new("cross-entropy")]).dropout([("active".to_owned(), 0.1)], false);
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (whole, parts) =
        (trainable("digits-mlp", request(), whole.path()), trainable("digits-mlp", request(), parts.path()));
    let expected = silent(&whole, &data, &options, false).unwrap();
    // Stopped in the middle of the second epoch, by an error in the report's place.
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut steps = 0;
        train(&parts, &data, None, &options, false, &mut |_| {
            steps += 1;
            assert!(steps < 19, "stop here");
            ControlFlow::Continue(())
        })
    }));
    assert!(stopped.is_err());
    // And by somebody who asks for it, at a step at which no checkpoint is due.
    let mut steps = 0;
    let stopped = train(&parts, &data, None, &options, true, &mut |_| {
        steps += 1;
        if steps < 6 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(stopped.unwrap().stopped.is_some());
    let found = silent(&parts, &data, &options, true).unwrap();
    assert_eq!(found, expected);
    let read = |folder: &Path| std::fs::read(folder.join(CHECKPOINT)).unwrap();
    assert_eq!(read(&whole), read(&parts));
    let error = silent(&parts, &data, &options.clone().batch(8), true).unwrap_err().to_string();
    assert!(error.starts_with("the checkpoint is of a training with other options"), "{error}");
    let other = subset(&digits(), 0..10, 9);
    let error = silent(&parts, &other, &options, true).unwrap_err().to_string();
    assert!(error.starts_with("the checkpoint is of a training with other data"), "{error}");
}

#[test]
fn a_training_survives_being_killed() {
    let place = tempfile::tempdir().unwrap();
    let folder = trainable("digits-mlp", Trainable::new([LossSpec::new("cross-entropy")]), place.path());
    let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
    let run = |resume: bool| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-gradients"));
        command.arg("train").arg(&folder).arg("--data").arg(self::folder("data/digits.npz"));
        command.args(["--epochs", "500", "--checkpoint-every", "1", if resume { "--resume" } else { "--force" }]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut last = 0.0;
    for attempt in 0..4 {
        let mut child = run(attempt > 0);
        std::thread::sleep(std::time::Duration::from_millis(2500 + 370 * attempt));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(std::fs::read(folder.join("manifest.json")).unwrap(), manifest);
        let Ok((state, metadata)) = read_state(&folder.join(CHECKPOINT)) else {
            assert_eq!(attempt, 0, "a checkpoint is gone");
            return;
        };
        assert!(metadata.is_some());
        let step = state.iter().find(|(n, _)| n == "step").unwrap().1.integers().unwrap()[0] as f64;
        assert!(step >= last, "the training went back from step {last} to {step}");
        last = step;
        let manifest = Manifest::read(&folder).unwrap();
        export(&manifest, &model("digits-mlp").proto, &state, Adapters::Merged).unwrap();
    }
}

/// Starts the program again and again, and kills it each time a little later; calls `holds` after each.
fn kill_at_any_moment(arguments: &[&str], holds: &mut dyn FnMut()) {
    let start = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-gradients"));
        command.args(arguments).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let begun = std::time::Instant::now();
    assert!(start().wait().unwrap().success(), "{arguments:?}");
    let whole = begun.elapsed();
    for i in 0..24 {
        let mut child = start();
        // Files are moved near the end.
        std::thread::sleep(whole.mul_f64(0.4 + 0.03 * f64::from(i)));
        let _ = child.kill();
        child.wait().unwrap();
        holds();
    }
}

#[test]
fn what_is_replaced_is_there_whole_whenever_the_program_is_killed() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("t");
    let (mlp, out) = (self::folder("models/digits-mlp.onnx"), place.path().join("out.onnx"));
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    let arguments =
        [&text(&mlp), "-o", &text(&folder), "--loss", "cross-entropy", "--force", "--no-validate"].map(str::to_owned);
    let arguments: Vec<&str> = std::iter::once("trainable").chain(arguments.iter().map(String::as_str)).collect();
    kill_at_any_moment(&arguments, &mut || {
        let manifest = Manifest::read(&folder).unwrap();
        for file in &manifest.models {
            Model::load(folder.join(&file.file)).unwrap();
        }
        let (state, _) = read_state(&folder.join(&manifest.initial_state)).unwrap();
        assert_eq!(state.len(), manifest.state.len());
    });
    let state = text(&folder.join("state.safetensors"));
    kill_at_any_moment(&["export", &text(&folder), "-o", &text(&out), "--state", &state, "--force"], &mut || {
        assert_eq!(Model::load(&out).unwrap().proto.graph, model("digits-mlp").proto.graph);
    });
}

#[test]
fn a_fixed_batch_is_said_and_accumulated() {
    let place = tempfile::tempdir().unwrap();
    let mut one = model("digits-mlp");
    let graph = one.proto.graph.as_mut().unwrap();
    let fixed =
        "<ir_version: 8, opset_import: [\"\": 17]> g (float[1,64] image) => (float[1,10] y) { y = Identity (image) }";
    graph.input[0].r#type = text::parse(fixed).unwrap().graph.unwrap().input[0].r#type.clone();
    let folder = place.path().join("t");
    let request = Trainable::new([LossSpec::new("cross-entropy")]).accumulate(8);
    request.build(&one).unwrap().write(&folder, false).unwrap();
    let data = subset(&digits(), 0..10, 60);
    let options = |batch| Options::default().epochs(1).batch(batch).rate(0.01);
    let error = silent(&folder, &data, &options(32), false).unwrap_err().to_string();
    assert_eq!(
        error,
        "the model takes batches of 1 only, not of 32; `trainable --accumulate 32` makes a step of several of them"
    );
    assert_eq!(silent(&folder, &data, &options(1), false).unwrap()[0].steps, 3);
}

/// The share of held-out digits that a trained model gets right, and the model with its weights.
fn trained(model: &Model, request: Trainable, data: &Data, options: &Options) -> (f64, Model) {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("t");
    let artifacts = request.build(model).unwrap();
    artifacts.write(&folder, true).unwrap();
    let history = silent(&folder, data, options, false).unwrap();
    let (state, _) = read_state(&folder.join(CHECKPOINT)).unwrap();
    let (exported, _) = export(&artifacts.manifest, &model.proto, &state, Adapters::Merged).unwrap();
    (history.last().unwrap().held_out.as_ref().unwrap()["accuracy"], Model::from(exported))
}

fn cosine(epochs: usize, rate: f64) -> Options {
    let schedule = Schedule::Cosine;
    Options::default().epochs(epochs).rate(rate).schedule(schedule)
}

fn smoothed() -> Trainable {
    Trainable::new([LossSpec::parse("cross-entropy,smoothing=0.05").unwrap()])
}

#[test]
fn a_perceptron_learns_the_digits() {
    let request = smoothed().dropout([("image".to_owned(), 0.1), ("active".to_owned(), 0.3)], false);
    let (accuracy, _) = trained(&model("digits-mlp"), request, &digits(), &cosine(25, 0.005));
    assert!(accuracy >= 0.97, "{accuracy}");
}

#[test]
fn convolutions_learn_the_digits() {
    let request = smoothed().train_batch_norm(true).dropout([], true);
    let (accuracy, _) = trained(&model("digits-cnn"), request, &digits(), &cosine(6, 0.005));
    assert!(accuracy >= 0.98, "{accuracy}");
}

#[test]
fn a_model_of_five_digits_learns_all_ten() {
    let five = subset(&digits(), 0..5, 1);
    let request = smoothed().train_batch_norm(true);
    let (accuracy, pretrained) = trained(&model("digits-cnn"), request, &five, &cosine(3, 0.005));
    assert!(accuracy >= 0.97, "{accuracy}");
    let body_frozen = smoothed().choose(Choice::default().last(Some(1)));
    for (what, request) in [
        ("body frozen", body_frozen),
        ("LoRA", smoothed().lora(8, 16.0)),
        ("BatchNormalization in inference mode", smoothed()),
        ("BatchNormalization in training mode", smoothed().train_batch_norm(true)),
    ] {
        let (accuracy, _) = trained(&pretrained, request, &digits(), &cosine(3, 0.005));
        assert!(accuracy >= 0.95, "{what}: {accuracy}");
    }
}

#[test]
fn the_command_line_makes_trains_and_exports() {
    let place = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], code: i32| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-gradients"));
        let output = command.args(arguments).current_dir(place.path()).output().unwrap();
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (mlp, data) = (folder("models/digits-mlp.onnx"), folder("data/digits.npz"));
    let (mlp, data) = (mlp.to_str().unwrap(), data.to_str().unwrap());
    let (text, _) = run(&["trainable", mlp, "-o", "t", "--loss", "cross-entropy", "--optimizer", "adam"], 0);
    assert!(text.contains("4 parameters, 9610 numbers; adam: w - η m̂ / (√v̂ + ε)"), "{text}");
    let (_, error) = run(&["trainable", mlp, "-o", "t", "--loss", "cross-entropy"], 1);
    assert_eq!(error, "error: t exists already; --force replaces it\n");
    let options = ["--held-out", "0.9", "--epochs", "2", "--lr", "0.01", "--json"];
    let train = |more: &[&str], code| run(&[&["train", "t", "--data", data], &options[..], more].concat(), code);
    let report: serde_json::Value = serde_json::from_str(&train(&[], 0).0).unwrap();
    let epochs = report["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 2);
    assert!(epochs[1]["held_out"]["loss"].as_f64() < epochs[0]["held_out"]["loss"].as_f64());
    let (_, error) = train(&[], 1);
    assert!(error.contains("--resume goes on from it, --force starts anew"), "{error}");
    assert!(std::fs::read_to_string(place.path().join("t/loss.svg")).unwrap().contains("held out loss"));
    run(&["export", "t", "-o", "trained.onnx"], 0);
    let trained = Model::load(place.path().join("trained.onnx")).unwrap();
    assert_eq!(trained.proto.graph.as_ref().unwrap().node, model("digits-mlp").proto.graph.unwrap().node);
    let (_, error) = run(&["export", "nowhere", "-o", "x.onnx"], 1);
    assert_eq!(
        error,
        "error: nowhere: there is no such folder; `onnx-gradients trainable` writes one that is taken here\n"
    );
}

#[test]
fn wrong_data_are_named() {
    let artifacts = Trainable::new([LossSpec::new("cross-entropy")]).build(&model("digits-mlp")).unwrap();
    let image = |n: i64| float(&[n, 64], &vec![0.5; n as usize * 64]);
    let mut nan = vec![0.5; 128];
    nan[70] = f64::NAN;
    let error = |tensors: Vec<(&str, TensorProto)>| {
        let tensors = tensors.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
        format!("{:#}", Data::new(tensors, &artifacts.manifest).unwrap_err())
    };
    let labels = |v: &[i64]| ints(&[v.len() as i64], v);
    for (tensors, expected) in [
        (vec![("images", image(2))], "it holds no 'image', which the model takes; it holds 'images'"),
        (vec![("image", image(2)), ("labels", labels(&[1]))], "'labels' has 1 samples, the tensors before it have 2"),
        (
            vec![("image", image(2)), ("labels", labels(&[1, 10]))],
            "'labels': sample 1 has the label 10; the model has classes 0 to 9",
        ),
        (
            vec![("image", float(&[2, 64], &nan)), ("labels", labels(&[1, 1]))],
            "'image': sample 1 holds a value that is no finite number",
        ),
        (
            vec![("image", double(&[2, 64], &[0.0; 128])), ("labels", labels(&[1, 1]))],
            "'image': elements of type double, the model takes float",
        ),
        (
            vec![("image", float(&[2, 8, 8], &[0.0; 128])), ("labels", labels(&[1, 1]))],
            "'image': shape [2, 8, 8] does not fit the model's [any, 64]",
        ),
        (vec![("image", image(0)), ("labels", labels(&[]))], "it holds no samples"),
    ] {
        assert_eq!(error(tensors), expected);
    }
}

/// A `.npy` file; `fortran` says whether the first dimension is the fastest.
fn npy(descr: &str, fortran: bool, dims: &[i64], raw: &[u8]) -> Vec<u8> {
    let dims: String = dims.iter().map(|d| format!("{d}, ")).collect();
    let fortran = if fortran { "True" } else { "False" };
    let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({dims}), }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), raw].concat()
}

#[test]
fn samples_stay_in_their_files() {
    let artifacts = Trainable::new([LossSpec::new("cross-entropy")]).build(&model("digits-mlp")).unwrap();
    let data = digits();
    let all: Vec<usize> = (0..data.count()).collect();
    let place = tempfile::tempdir().unwrap();
    let (arrays, shards) = (place.path().join("arrays"), place.path().join("shards"));
    [&arrays, &shards].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    for (name, t) in data.batch(&all).unwrap() {
        let descr = if name == "image" { "<f4" } else { "<i8" };
        let bytes = npy(descr, false, &t.dims, t.raw_data.as_deref().unwrap());
        std::fs::write(arrays.join(format!("{name}.npy")), bytes).unwrap();
    }
    std::fs::write(arrays.join("more.npy"), b"not looked at").unwrap();
    for (i, samples) in all.chunks(700).enumerate() {
        let state = data.batch(samples).unwrap();
        let views = state.iter().map(|(name, t)| {
            let kind = if name == "image" { safetensors::Dtype::F32 } else { safetensors::Dtype::I64 };
            let shape = t.dims.iter().map(|&d| d as usize).collect();
            let view = safetensors::tensor::TensorView::new(kind, shape, t.raw_data.as_deref().unwrap()).unwrap();
            (name.as_str(), view)
        });
        let bytes = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
        std::fs::write(shards.join(format!("{i}.safetensors")), bytes).unwrap();
    }
    // Files whose elements lie in another order, or are packed.
    let (turned, packed) = (place.path().join("turned"), arrays.join("packed.npz"));
    std::fs::create_dir(&turned).unwrap();
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&packed).unwrap());
    for (name, t) in data.batch(&all).unwrap() {
        let raw = t.raw_data.as_deref().unwrap();
        let (size, descr) = if name == "image" { (4, "<f4") } else { (8, "<i8") };
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(&npy(descr, false, &t.dims, raw)).unwrap();
        let samples = raw.chunks(raw.len() / all.len()).collect::<Vec<_>>();
        let columns = (0..samples[0].len()).step_by(size).flat_map(|k| samples.iter().map(move |s| &s[k..k + size]));
        let reversed: Vec<u8> = columns.flat_map(|element| element.iter().rev().copied()).collect();
        let bytes = npy(&descr.replace('<', ">"), true, &t.dims, &reversed);
        std::fs::write(turned.join(format!("{name}.npy")), bytes).unwrap();
    }
    archive.finish().unwrap();
    let chosen = [1796, 5, 700, 699, 5, 1400];
    for folder in [&arrays, &shards, &turned, &packed] {
        let read = Data::read(folder, &artifacts.manifest).unwrap();
        assert_eq!(read.count(), data.count());
        assert_eq!(read.fingerprint(), data.fingerprint());
        assert_eq!(read.batch(&chosen).unwrap(), data.batch(&chosen).unwrap());
    }
    assert_eq!(Data::read(&arrays, &artifacts.manifest).unwrap().skipped, ["more"]);
    std::fs::write(shards.join("3.safetensors"), b"12345678").unwrap();
    let error = format!("{:#}", Data::read(&shards, &artifacts.manifest).unwrap_err());
    assert!(error.contains("3.safetensors: not a safetensors file"), "{error}");
    let cut = Data::read(&arrays, &artifacts.manifest).unwrap();
    std::fs::File::options().write(true).open(arrays.join("image.npy")).unwrap().set_len(1000).unwrap();
    let error = cut.batch(&[1796]).unwrap_err().to_string();
    assert_eq!(error, "samples 1796 to 1796 are not there");
    let empty = Data::read(&place.path().join("shards/.."), &artifacts.manifest).unwrap_err();
    assert!(format!("{empty:#}").ends_with("it holds no .npy files and no shards (.npz, .safetensors)"));
}

/// What is compressed is unpacked where it fits: before that nothing of it is in memory but its header.
#[test]
fn compressed_samples_are_unpacked_when_all_fit() {
    let artifacts = Trainable::new([LossSpec::new("cross-entropy")]).build(&model("digits-mlp")).unwrap();
    let data = digits();
    let all: Vec<usize> = (0..data.count()).collect();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("data.npz");
    let pack = |arrays: &[(&str, Vec<u8>)]| {
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for (name, bytes) in arrays {
            archive.start_file(format!("{name}.npy"), options).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();
        Data::read(&path, &artifacts.manifest)
    };
    let [image, labels] = ["image", "labels"].map(|name| {
        let state = data.batch(&all).unwrap();
        let (_, t) = state.iter().find(|(n, _)| n == name).unwrap();
        npy(if name == "image" { "<f4" } else { "<i8" }, false, &t.dims, t.raw_data.as_deref().unwrap())
    });
    let read = pack(&[("image", image.clone()), ("labels", labels.clone())]).unwrap();
    assert_eq!(read.fingerprint(), data.fingerprint());
    assert_eq!(read.batch(&[5, 1796]).unwrap(), data.batch(&[5, 1796]).unwrap());
    // The header says more than there is, or does not fit; another array is missing.
    let error = |arrays: &[(&str, Vec<u8>)]| format!("{:#}", pack(arrays).unwrap_err());
    let few = npy("<f4", false, &[1 << 28, 64], &[0; 1000]);
    assert!(error(&[("image", few), ("labels", labels.clone())]).contains("bytes for shape"));
    let narrow = npy("<f4", false, &[1797, 63], &vec![0; 1797 * 63 * 4]);
    assert!(error(&[("image", narrow), ("labels", labels)]).contains("does not fit the model's"));
    assert!(error(&[("image", image)]).contains("it holds no 'labels'"));
}

#[test]
fn wrong_requests_are_named() {
    let error = |loss: &str, name: &str| {
        let spec = LossSpec::parse(loss).and_then(|l| Trainable::new([l]).build(&model(name)).map(drop));
        format!("{:#}", spec.unwrap_err())
    };
    assert!(error("cross-entrpy", "digits-mlp").starts_with("'cross-entrpy' is neither a loss (cross-entropy, nll,"));
    assert_eq!(error("mse:logit", "digits-mlp"), "loss: no tensor is called 'logit'; did you mean 'logits'?");
    assert!(
        error("mse", "mlp").starts_with("the model has the outputs logits, loss: say which one the loss mse is of")
    );
    assert!(error("mse,size=3", "digits-mlp").contains("there is no option 'size'"));
    assert!(error("logits", "digits-mlp").contains("'logits' is no scalar"));
    assert!(error("mse,smoothing=0.1", "digits-mlp").ends_with("the loss mse has no option 'smoothing'"));
    assert!(error("cross-entropy,soft,ignore=1", "digits-mlp").ends_with("has no option 'ignore' with soft targets"));
    assert!(error("cross-entropy,class-weights=1/-1", "digits-mlp").ends_with("class weights are not below 0"));
}
