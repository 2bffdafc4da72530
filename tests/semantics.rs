//! What tf.gradients does, case by case: which tensors get which gradient, and what the graph that computes it looks like.
#![cfg(feature = "validate")]

use onnx_gradients::onnx::proto::{NodeDeviceConfigurationProto, StringStringEntryProto};
use onnx_gradients::onnx::{ElementType, ModelProto, TensorProto, text};
use onnx_gradients::validate::run;
use onnx_gradients::{Aggregation, Gradients, Model, Output, Seed, Unconnected, Wanted};
use std::collections::BTreeMap;

/// A model at opset 17 from its graph in text syntax.
fn model(graph: &str) -> Model {
    text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap().into()
}

/// The gradients of a call, for inputs given as lists of float32.
fn values(output: &Output, feeds: &[(&str, &[f64])]) -> Vec<Option<Vec<f64>>> {
    let computed = evaluate(&output.model.proto, feeds);
    output.gradients.iter().map(|g| g.name.as_ref().map(|g| computed[g].floats().unwrap())).collect()
}

fn evaluate(model: &ModelProto, feeds: &[(&str, &[f64])]) -> BTreeMap<String, TensorProto> {
    let tensor = |v: &[f64]| match v {
        [one] => TensorProto::from_floats(ElementType::Float, &[], &[*one]).unwrap(),
        many => TensorProto::from_floats(ElementType::Float, &[many.len() as i64], many).unwrap(),
    };
    run(model, &feeds.iter().map(|(name, v)| ((*name).to_owned(), tensor(v))).collect()).unwrap()
}

/// The gradients of ys with respect to xs as numbers, of a model without inputs or with scalar ones.
fn gradients(graph: &str, call: &Gradients, feeds: &[(&str, &[f64])]) -> Vec<Option<Vec<f64>>> {
    values(&call.build(&model(graph)).unwrap(), feeds)
}

fn some(value: f64) -> Option<Vec<f64>> {
    Some(vec![value])
}

fn error(graph: &str, call: &Gradients) -> String {
    format!("{:#}", call.build(&model(graph)).unwrap_err())
}

/// The documentation's own example: b = 2a, of which a + b is differentiated.
const EXAMPLE: &str = "g (float a) => (float y) <float two = {2}> { b = Mul(a, two) y = Add(a, b) }";

#[test]
fn an_x_does_not_cut_but_a_stop_does() {
    let call = Gradients::new(["y"], ["a", "b"]);
    for (stops, expected) in
        [(vec![], [3.0, 1.0]), (vec!["a", "b"], [1.0, 1.0]), (vec!["a"], [3.0, 1.0]), (vec!["b"], [1.0, 1.0])]
    {
        let found = gradients(EXAMPLE, &call.clone().stop(stops.clone()), &[("a", &[0.5])]);
        assert_eq!(found, expected.map(some), "stops {stops:?}");
    }
}

#[test]
fn stops_that_change_nothing() {
    let graph = "g (float a, float c) => (float y, float z) <int64 i = {1}> { b = Mul(a, a) y = Exp(b) z = Mul(y, c) }";
    let plain = gradients(graph, &Gradients::new(["y"], ["a"]), &[("a", &[0.5]), ("c", &[1.0])]);
    for stop in ["c", "z", "i", "a", "y2"] {
        let graph = graph.replace("z = Mul", "y2 = Neg(c) z = Mul");
        let found =
            gradients(&graph, &Gradients::new(["y"], ["a"]).stop([stop, stop]), &[("a", &[0.5]), ("c", &[1.0])]);
        assert_eq!(found, plain, "stop {stop}");
    }
}

#[test]
fn a_stopped_y_keeps_its_seed_and_passes_nothing() {
    let graph = "g (float a) => (float y, float z) { y = Mul(a, a) z = Exp(a) }";
    let call = Gradients::new(["y", "z"], ["a", "y"]).stop(["y"]);
    let found = gradients(graph, &call, &[("a", &[2.0])]);
    assert!((found[0].as_ref().unwrap()[0] - 2f64.exp()).abs() < 1e-5);
    assert_eq!(found[1], some(1.0));
}

#[test]
fn a_node_whose_metadata_say_so_stops() {
    let mut m = model("g (float a) => (float y) { b = Mul(a, a) c = Identity(b) y = Mul(c, b) }");
    let node = &mut m.proto.graph.as_mut().unwrap().node[1];
    node.metadata_props.push(StringStringEntryProto { key: Some("stop_gradient".into()), value: Some("true".into()) });
    // y = stop(a²) a², of which the derivative is a² 2a.
    let output = Gradients::new(["y"], ["a", "c", "b"]).build(&m).unwrap();
    assert_eq!(values(&output, &[("a", &[3.0])]), [some(54.0), some(9.0), some(9.0)]);
    // A stop on the way decides before the node does.
    let output = Gradients::new(["y"], ["a"]).stop(["b"]).build(&m).unwrap();
    assert_eq!(values(&output, &[("a", &[3.0])]), [None]);
}

#[test]
fn stopping_one_output_leaves_the_others() {
    let graph = "g (float[2] x) => (float y) <int64[2] s = {1, 1}> { a, b = Split<axis = 0>(x, s) c = Mul(a, b) y = ReduceSum<keepdims = 0>(c) }";
    let found = gradients(graph, &Gradients::new(["y"], ["x"]).stop(["a"]), &[("x", &[3.0, 5.0])]);
    assert_eq!(found, [Some(vec![0.0, 3.0])]);
}

#[test]
fn xs_in_their_order_twice_and_equal_to_y() {
    let graph = "g (float a) => (float y) { b = Mul(a, a) y = Mul(b, b) }";
    let output = Gradients::new(["y"], ["b", "a", "b", "y"]).build(&model(graph)).unwrap();
    assert_eq!(values(&output, &[("a", &[2.0])]), [some(8.0), some(32.0), some(8.0), some(1.0)]);
    assert_eq!(output.gradients[0].name, output.gradients[2].name);
    let outputs = output.model.proto.graph.as_ref().unwrap().output.len();
    assert_eq!(outputs, 4, "y, and a gradient for each distinct x");
}

#[test]
fn ys_add_up() {
    let graph = "g (float a) => (float y, float z) { y = Mul(a, a) z = Mul(y, a) }";
    let found = |call: Gradients| gradients(graph, &call, &[("a", &[2.0])])[0].clone();
    assert_eq!(found(Gradients::new(["y", "z"], ["a"])), some(16.0), "2a + 3a²");
    assert_eq!(found(Gradients::new(["y", "y"], ["a"])), some(8.0));
    assert_eq!(found(Gradients::new(["y", "y"], ["a"]).seeds([Seed::Fill(2.0), Seed::Fill(3.0)])), some(20.0));
    assert_eq!(found(Gradients::new(["z", "y"], ["y"])), some(3.0), "a y above another: dz/dy + 1");
}

#[test]
fn nothing_asked_nothing_added() {
    let none: [&str; 0] = [];
    let output = Gradients::new(["y"], none).build(&model(EXAMPLE)).unwrap();
    assert_eq!((output.nodes_added, output.gradients.len()), (0, 0));
    assert_eq!(gradients(EXAMPLE, &Gradients::new(none, ["a"]), &[("a", &[1.0])]), [None]);
}

#[test]
fn unconnected_xs() {
    let graph = "g (float[2] a, float[2] b, float[N] u, int64 i) => (float[2] y) <float zero = {0}> {
        s = Shape(b) f = Cast<to = 1>(s) t = ReduceSum<keepdims = 0>(f) n = Floor(b) z = Mul(a, zero) p = Add(z, t) y = Add(p, n) down = Exp(y) }";
    let xs = ["a", "b", "u", "down", "i", "s"];
    let feeds: [(&str, &[f64]); 3] = [("a", &[1.0, 2.0]), ("b", &[0.5, 2.5]), ("u", &[1.0, 2.0, 3.0])];
    let feeds_with_index = |m: &ModelProto| {
        let mut all: BTreeMap<String, TensorProto> = feeds
            .iter()
            .map(|(n, v)| {
                ((*n).to_owned(), TensorProto::from_floats(ElementType::Float, &[v.len() as i64], v).unwrap())
            })
            .collect();
        all.insert("i".into(), TensorProto::from_ints(ElementType::Int64, &[], &[0]).unwrap());
        run(m, &all).unwrap()
    };
    let output = Gradients::new(["y"], xs).build(&model(graph)).unwrap();
    let connected: Vec<bool> = output.gradients.iter().map(|g| g.name.is_some()).collect();
    assert_eq!(
        connected,
        [true, false, false, false, false, false],
        "x * 0 is connected; Shape, Floor and integers pass nothing"
    );
    let output = Gradients::new(["y"], xs).unconnected(Unconnected::Zero).build(&model(graph)).unwrap();
    let computed = feeds_with_index(&output.model.proto);
    for (x, gradient) in output.gradients.iter().map(|g| (&g.x, g.name.as_ref().unwrap())) {
        let zeros = &computed[gradient];
        let value: Vec<f64> = match zeros.element_type().is_float() {
            true => zeros.floats().unwrap(),
            false => zeros.integers().unwrap().iter().map(|&i| i as f64).collect(),
        };
        assert!(value.iter().all(|&v| v == 0.0), "{x}");
        assert_eq!(
            value.len(),
            match x.as_str() {
                "u" => 3,
                "i" | "s" => 1,
                _ => 2,
            },
            "{x} has zeros of its own shape"
        );
    }
}

#[test]
fn sign_is_connected_and_zero() {
    let graph = "g (float a) => (float y) { s = Sign(a) y = Exp(s) }";
    assert_eq!(gradients(graph, &Gradients::new(["y"], ["a"]), &[("a", &[2.0])]), [some(0.0)]);
}

#[test]
fn every_form_of_seed() {
    let graph = "g (float[2] a, float[2] w) => (float[2] y) { y = Mul(a, a) }";
    let feeds: &[(&str, &[f64])] = &[("a", &[1.0, 2.0]), ("w", &[10.0, 100.0])];
    let call = |seed: Seed| Gradients::new(["y"], ["a"]).seed("y", seed);
    assert_eq!(gradients(graph, &call(Seed::Ones), feeds), [Some(vec![2.0, 4.0])]);
    assert_eq!(gradients(graph, &call(Seed::Fill(-3.0)), feeds), [Some(vec![-6.0, -12.0])]);
    assert_eq!(gradients(graph, &call(Seed::Tensor("w".into())), feeds), [Some(vec![20.0, 400.0])]);
    let constant = TensorProto::from_floats(ElementType::Float, &[2], &[0.5, 0.25]).unwrap();
    assert_eq!(gradients(graph, &call(Seed::Constant(constant)), feeds), [Some(vec![1.0, 1.0])]);
    let output = call(Seed::Input(Some("v".into()))).build(&model(graph)).unwrap();
    assert_eq!(output.seeds[0].seed.as_deref(), Some("v"));
    let feeds: &[(&str, &[f64])] = &[("a", &[1.0, 2.0]), ("w", &[0.0, 0.0]), ("v", &[7.0, 1.0])];
    assert_eq!(values(&output, feeds), [Some(vec![14.0, 4.0])]);
}

#[test]
fn seeds_that_do_not_fit() {
    let graph = "g (float[2] a, float s, double[2] d) => (float[2] y, bool b) { y = Mul(a, a) b = Less(a, y) }";
    let call = |seed: Seed| Gradients::new(["y"], ["a"]).seeds([seed]);
    let two = Gradients::new(["y", "y"], ["a"]).seeds([Seed::Ones]);
    assert_eq!(error(graph, &two), "1 grad_ys are given for 2 ys");
    assert_eq!(error(graph, &call(Seed::Tensor("s".into()))), "the seed of y 'y': 's' has shape [], y has shape [2]");
    assert_eq!(
        error(graph, &call(Seed::Tensor("d".into()))),
        "the seed of y 'y': 'd' is of type double, y of type float"
    );
    let error_of_bool = error(graph, &Gradients::new(["b"], ["a"]).seeds([Seed::Ones]));
    assert_eq!(error_of_bool, "the seed of y 'b': y is of type bool, which has no gradient");
    let none = Gradients::new(["b"], ["a"]).build(&model(graph)).unwrap();
    assert_eq!(none.gradients[0].name, None);
}

#[test]
fn a_seed_that_depends_on_x_is_a_constant_now_and_differentiated_next() {
    let graph = "g (float a) => (float y) { y = Mul(a, a) }";
    let first = Gradients::new(["y"], ["a"]).seed("y", Seed::Tensor("a".into())).build(&model(graph)).unwrap();
    assert_eq!(values(&first, &[("a", &[3.0])]), [some(18.0)], "a · 2a");
    let second = Gradients::new([first.gradients[0].name.clone().unwrap()], ["a"]).build(&first.model).unwrap();
    assert_eq!(values(&second, &[("a", &[3.0])]), [some(12.0)], "d(2a²)/da");
}

#[test]
fn higher_order_by_calling_again() {
    let mut current = model("g (float x) => (float y) <float four = {4}> { y = Pow(x, four) }");
    let mut y = "y".to_owned();
    let mut scopes = Vec::new();
    for expected in [32.0, 48.0, 48.0, 24.0] {
        let output = Gradients::new([y], ["x"]).build(&current).unwrap();
        let value = values(&output, &[("x", &[2.0])])[0].clone().unwrap()[0];
        assert!((value - expected).abs() < 1e-3, "{value} is not {expected}");
        y = output.gradients[0].name.clone().unwrap();
        scopes.push(output.record.name.clone());
        current = output.model;
    }
    assert_eq!(scopes, ["gradients", "gradients_1", "gradients_2", "gradients_3"]);
    assert_eq!(y, "gradients_3/x");
}

#[test]
fn the_second_derivative_of_what_is_linear() {
    let linear = Gradients::new(["y"], ["a"]).build(&model(EXAMPLE)).unwrap();
    let again = Gradients::new(["gradients/a"], ["a"]).build(&linear.model).unwrap();
    assert_eq!(again.gradients[0].name, None);
    let relu = Gradients::new(["y"], ["x"]).build(&model("g (float x) => (float y) { y = Relu(x) }")).unwrap();
    let again = Gradients::new(["gradients/x"], ["x"]).build(&relu.model).unwrap();
    assert!(values(&again, &[("x", &[2.0])]).iter().all(|g| g.as_ref().is_none_or(|g| g == &[0.0])));
}

#[test]
fn forward_mode_is_two_calls() {
    // J u by differentiating the gradient by its seed.
    let graph = "g (float[2] x, float[2] u) => (float[2] y) { e = Exp(x) y = Mul(e, x) }";
    let backward = Gradients::new(["y"], ["x"]).seed("y", Seed::Input(Some("v".into()))).build(&model(graph)).unwrap();
    let forward = Gradients::new(["gradients/x"], ["v"])
        .seed("gradients/x", Seed::Tensor("u".into()))
        .build(&backward.model)
        .unwrap();
    let feeds: &[(&str, &[f64])] = &[("x", &[0.0, 1.0]), ("u", &[1.0, 2.0]), ("v", &[0.3, 0.7])];
    let found = values(&forward, feeds)[0].clone().unwrap();
    let expected = [1.0, 2.0 * 2.0 * 1f64.exp()];
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}");
}

/// A tensor that three nodes use.
const REJOINING: &str = "g (float a) => (float y) { p = Exp(a) q = Tanh(a) r = Mul(a, a) s = Add(p, q) y = Add(s, r) }";

#[test]
fn aggregation_is_visible_in_the_graph() {
    let count = |aggregation: Aggregation| {
        let output = Gradients::new(["y"], ["a"]).aggregation(aggregation).build(&model(REJOINING)).unwrap();
        let nodes = &output.model.proto.graph.as_ref().unwrap().node[5..];
        let of = |op: &str| nodes.iter().filter(|n| n.op_type() == op).count();
        let value = values(&output, &[("a", &[0.5])])[0].clone().unwrap()[0];
        let expected = 0.5f64.exp() + 1.0 - 0.5f64.tanh().powi(2) + 1.0;
        assert!((value - expected).abs() < 1e-5, "{aggregation:?}: {value}");
        (of("Sum"), of("Add"))
    };
    // Mul(a, a) sends two terms.
    assert_eq!(count(Aggregation::AddN), (1, 0));
    assert_eq!(count(Aggregation::Tree), (0, 3));
    assert_eq!(count(Aggregation::AccumulateN), (0, 3));
}

#[test]
fn a_tree_is_balanced_and_a_chain_is_not() {
    let uses: String = (0..8).map(|i| format!("t{i} = Exp(a) ")).collect();
    let sum = "y = Sum(t0, t1, t2, t3, t4, t5, t6, t7)";
    let graph = format!("g (float a) => (float y) {{ {uses} {sum} }}");
    let depth = |aggregation: Aggregation| {
        let output = Gradients::new(["y"], ["a"]).aggregation(aggregation).build(&model(&graph)).unwrap();
        let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
        let nodes = &output.model.proto.graph.as_ref().unwrap().node;
        for node in nodes.iter().filter(|n| n.op_type() == "Add") {
            let below = node.input.iter().filter_map(|i| depths.get(i.as_str())).max().copied().unwrap_or(0);
            depths.insert(&node.output[0], below + 1);
        }
        depths.values().max().copied().unwrap_or(0)
    };
    assert_eq!((depth(Aggregation::Tree), depth(Aggregation::AccumulateN)), (3, 7));
}

#[test]
fn one_term_takes_no_node() {
    let output = Gradients::new(["y"], ["a"]).build(&model("g (float a) => (float y) { y = Exp(a) }")).unwrap();
    let nodes = &output.model.proto.graph.as_ref().unwrap().node;
    assert!(nodes.iter().all(|n| n.op_type() != "Sum"));
}

#[test]
fn backward_nodes_of_a_forward_node_stand_together() {
    let output = Gradients::new(["y"], ["a"]).build(&model(REJOINING)).unwrap();
    let nodes = &output.model.proto.graph.as_ref().unwrap().node[5..];
    let mut groups: Vec<&str> = nodes.iter().map(|n| n.name().split('/').nth(1).unwrap()).collect();
    groups.dedup();
    let distinct: std::collections::BTreeSet<&&str> = groups.iter().collect();
    assert_eq!(distinct.len(), groups.len(), "{groups:?}");
}

#[test]
fn colocation_takes_over_the_placement() {
    let mut m = model("g (float a) => (float y) { y = Exp(a) }");
    let node = &mut m.proto.graph.as_mut().unwrap().node[0];
    node.device_configurations.push(NodeDeviceConfigurationProto {
        configuration_id: Some("two".into()),
        pipeline_stage: Some(1),
        ..Default::default()
    });
    node.metadata_props.push(StringStringEntryProto { key: Some("device".into()), value: Some("gpu:1".into()) });
    let seed = Gradients::new(["y"], ["a"]).seed("y", Seed::Input(None));
    let backward = |call: Gradients| call.build(&m).unwrap().model.proto.graph.unwrap().node[1].clone();
    let (with, without) = (backward(seed.clone().colocate(true)), backward(seed));
    assert_eq!(with.device_configurations[0].configuration_id(), "two");
    assert_eq!(with.metadata_props[0].value(), "gpu:1");
    assert!(without.device_configurations.is_empty() && without.metadata_props.is_empty());
}

#[test]
fn names_tell_where_nodes_come_from() {
    let graph = "g (float a, float \"gradients/taken\") => (float y) { [exponential] y = Exp(a) }";
    let output = Gradients::new(["y"], ["a"]).seed("y", Seed::Input(None)).build(&model(graph)).unwrap();
    assert_eq!(output.record.name, "gradients_1");
    let node = &output.model.proto.graph.as_ref().unwrap().node[1];
    assert_eq!((node.name(), node.output[0].as_str()), ("gradients_1/exponential/Mul", "gradients_1/a"));
    let named = Gradients::new(["y"], ["a"]).name("train/back").build(&model(graph)).unwrap();
    assert_eq!(named.gradients[0].name.as_deref(), Some("train/back/a"));
}

#[test]
fn equal_input_equal_bytes() {
    use prost::Message;
    let bytes = || Gradients::new(["y"], ["a"]).build(&model(REJOINING)).unwrap().model.proto.encode_to_vec();
    assert_eq!(bytes(), bytes());
}

#[test]
fn the_forward_nodes_come_out_as_they_went_in() {
    let before = model(REJOINING).proto.graph.unwrap();
    let after = Gradients::new(["y"], ["a"]).build(&model(REJOINING)).unwrap().model.proto.graph.unwrap();
    assert_eq!(after.node[..before.node.len()], before.node[..]);
    assert_eq!(after.output[..1], before.output[..]);
    assert_eq!(after.input, before.input);
}

#[test]
fn only_gradients_drops_what_only_the_outputs_need() {
    let graph = "g (float a, float c) => (float y, float z) <float two = {2}, float three = {3}> { y = Exp(a) z = Mul(c, three) }";
    let output = Gradients::new(["y"], ["a"]).only_gradients(true).build(&model(graph)).unwrap();
    let left = output.model.proto.graph.as_ref().unwrap();
    let names =
        |list: &[onnx_gradients::onnx::ValueInfoProto]| list.iter().map(|v| v.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&left.output), ["gradients/a"]);
    assert_eq!(names(&left.input), ["a"]);
    assert!(left.initializer.is_empty());
}

#[test]
fn outputs_that_are_dropped_stay_declared_where_gradients_need_them() {
    // Only the declaration says the rank of s, and the gradient is made of s.
    let graph = "g (float[N,1,3] a) => (float[N,3] s) { t = Squeeze(a) s = Exp(t) }";
    let mut output = Gradients::new(["s"], ["a"]).build(&model(graph)).unwrap();
    let before = output.model.proto.graph.as_ref().unwrap().output[0].clone();
    output.drop_model_outputs();
    let left = output.model.proto.graph.as_ref().unwrap();
    assert_eq!(left.value_info.iter().filter(|v| v.name() == "s").collect::<Vec<_>>(), [&before]);
}

#[test]
fn unknown_names_come_all_at_once_with_suggestions() {
    let message = error(EXAMPLE, &Gradients::new(["yy", "y"], ["aa", "zzz"]).stop(["bb"]));
    for part in
        ["'yy'; did you mean 'y'?", "'aa'; did you mean 'a'?", "'bb'; did you mean 'b'?", "no tensor is called 'zzz'"]
    {
        assert!(message.contains(part), "{message}");
    }
    let many = error(EXAMPLE, &Gradients::new(["y"], (0..30).map(|i| format!("none{i}"))));
    assert!(many.contains("'none7'") && many.ends_with("; 22 more names of no tensor"), "{many}");
}

#[test]
fn missing_rules_come_all_at_once_and_only_on_a_path() {
    let graph =
        "g (float a, float c) => (float y) { p = my.One(a) q = my.Two(p) r = my.Three(c) [last] y = Add(q, r) }";
    let custom = |call: &Gradients| {
        let mut m = model(graph);
        let import = onnx_gradients::onnx::proto::OperatorSetIdProto { domain: Some("my".into()), version: Some(1) };
        m.proto.opset_import.push(import);
        call.build(&m)
    };
    let message = format!("{:#}", custom(&Gradients::new(["y"], ["a", "c"])).unwrap_err());
    assert!(message.contains("my.Two") && message.contains("my.Three"), "{message}");
    assert!(custom(&Gradients::new(["y"], ["q"])).is_ok(), "an operator above the x is not on a path");
    assert!(custom(&Gradients::new(["y"], ["a"]).stop(["q", "r"])).is_ok(), "nor is one above a stop");
}

#[test]
fn an_attribute_that_the_rule_does_not_know_is_an_error() {
    let message = error("g (float a) => (float y) { [odd] y = Exp<base = 2.0>(a) }", &Gradients::new(["y"], ["a"]));
    assert!(message.contains("node 'odd' (Exp)") && message.contains("'base'"), "{message}");
}

#[test]
fn a_model_before_opset_7_is_an_error() {
    let text = "<ir_version: 3, opset_import: [\"\": 6]>\ng (float[2] x) => (float[2] y) { y = Tanh(x) }";
    let old: Model = text::parse(text).unwrap().into();
    let message = format!("{:#}", Gradients::new(["y"], ["x"]).build(&old).unwrap_err());
    assert!(message.contains("a gradient needs opset 7, and the model is at 6; convert the model"), "{message}");
}

#[test]
fn weights_are_tensors_and_not_the_numbers_that_they_hold() {
    // The scale is 1 today: whoever trains it, or differentiates by it again, means the tensor.
    let graph = "g (float[2] x) => (float[2] y) <float[2] w = {1, 1}> { y = Mul(x, w) }";
    let first = Gradients::new(["y"], ["x"]).seed("y", Seed::Input(Some("v".into()))).build(&model(graph)).unwrap();
    let second = Gradients::new(["gradients/x"], ["w"]).build(&first.model).unwrap();
    let found = values(&second, &[("x", &[5.0, 6.0]), ("v", &[2.0, 3.0])]);
    assert_eq!(found, [Some(vec![2.0, 3.0])]);
}

#[test]
fn equal_symbols_need_no_arithmetic_on_shapes() {
    let graph = "g (float[N,4] x, float[N,3] t) => (float y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,2,3}> {
        h = MatMul(x, w) s = Add(h, b) p = Softmax(s) d = Sub(p, t) e = Mul(d, d) y = ReduceSum<keepdims = 0>(e) }";
    let output = Gradients::new(["y"], ["w", "b", "x"]).build(&model(graph)).unwrap();
    let added = &output.model.proto.graph.as_ref().unwrap().node[6..];
    let shapes = ["Shape", "Reshape", "Gather", "Concat", "Div", "Max"];
    let found: Vec<&str> = added.iter().filter(|n| shapes.contains(&n.op_type())).map(|n| n.name()).collect();
    assert_eq!(found, [""; 0]);
}

#[test]
fn a_branch_that_is_never_taken_is_connected_and_zero() {
    let graph = "g (float[2] a, float[2] b, float[2] u) => (float[2] y) {
        n = Size(a) two = Constant<value = int64 {2}>() c = Equal(n, two)
        y = If(c) <then_branch = t () => (float[2] p) { p = Mul(a, a) },
                   else_branch = e () => (float[2] q) { s = Shape(u) f = Cast<to = 1>(s) r = Mul(b, b) q = Add(r, f) }> }";
    let call = Gradients::new(["y"], ["a", "b", "u"]);
    let found = gradients(graph, &call, &[("a", &[1.0, 2.0]), ("b", &[3.0, 4.0]), ("u", &[5.0, 6.0])]);
    assert_eq!(found, [Some(vec![2.0, 4.0]), Some(vec![0.0, 0.0]), None]);
    let output = call.build(&model(graph)).unwrap();
    let nodes = &output.model.proto.graph.as_ref().unwrap().node;
    assert_eq!(nodes.iter().filter(|n| n.op_type() == "If").count(), 1, "nothing is left to decide");
}

#[test]
fn sizes_that_the_model_calls_the_same_are_not_computed() {
    let graph = "g (float[N,6,4] x, float[4,4] w) => (float[N,6,2,2] y) <int64[4] s = {0, 0, 2, 2}> { a = MatMul(x, w) b = Relu(a) y = Reshape(b, s) }";
    let output = Gradients::new(["y"], ["x", "w"]).seeds(vec![Seed::Input(None)]).build(&model(graph)).unwrap();
    let nodes = &output.model.proto.graph.as_ref().unwrap().node;
    assert!(nodes.iter().all(|n| n.op_type() != "Shape"), "{nodes:?}");
}

#[test]
fn what_a_concat_adds_grows_with_its_inputs() {
    let added = |n: usize| {
        let list = |prefix: &str| (0..n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        let (inputs, names) = (list("float[?,2] x").join(", "), list("x"));
        let graph = format!("g ({inputs}) => (float[M,2] y) {{ y = Concat<axis = 0>({}) }}", names.join(", "));
        Gradients::new(["y"], names).build(&model(&graph)).unwrap().nodes_added
    };
    let (few, many) = (added(200), added(2000));
    assert!(many <= 10 * few, "{few} nodes for 200 inputs, {many} for 2000");
}

#[test]
fn errors_have_kinds_and_places() {
    let graph = "g (float[2] a) => (float[2] y) { [odd] b = own.Odd(a) y = Mul(b, b) }";
    let error = |call: Gradients| call.build(&model(graph)).unwrap_err();
    let error_of_seed = error(Gradients::new(["y"], ["b"]).seed("yy", Seed::Fill(2.0)));
    assert!(matches!(error_of_seed, onnx_gradients::Error::Name(_)), "{error_of_seed}");
    assert_eq!(error_of_seed.to_string(), "a seed is given for 'yy', which is none of the ys; did you mean 'y'?");
    assert!(matches!(error(Gradients::new(["q"], ["a"])), onnx_gradients::Error::Name(_)));
    let missing = error(Gradients::new(["y"], ["a"]));
    assert_eq!((missing.code(), missing.details().node.as_deref()), ("unsupported-operator", Some("odd")));
    let none = Model::load("no/such/model.onnx").unwrap_err();
    assert!(matches!(none, onnx_gradients::Error::Io(_)), "{none}");
}

/// The xs of a call, as the answer names them.
fn xs(graph: &str, call: &Gradients) -> Vec<String> {
    call.build(&model(graph)).unwrap().gradients.into_iter().map(|g| g.x).collect()
}

#[test]
fn what_is_wanted_is_said_without_a_model() {
    let graph = r#"g (float[N,3] x, float[N] mask, int64[2] i, float[2] d) => (float[N,2] y, int64[2] j)
        <float[3,2] "fc.weight" = {1, 2, 3, 4, 5, 6}, float[2] "fc.bias" = {1, 2}, float[2] d = {1, 2}, float two = {2}> {
        [fc] h = MatMul (x, "fc.weight") b = Add (h, "fc.bias") s = Mul (b, two) y = Add (s, d) j = Identity (i)
    }"#;
    let of = |x: Wanted| xs(graph, &Gradients::new([Wanted::Outputs], [x]));
    assert_eq!(of(Wanted::Inputs), ["x", "mask"], "neither integers nor what has a default");
    assert_eq!(of(Wanted::Parameters), ["fc.weight", "fc.bias"], "two and d bring y to its units");
    assert_eq!(of(Wanted::MainInput), ["x"]);
    assert_eq!(of("fc.*".into()), ["fc.weight", "fc.bias"]);
    assert_eq!(of("fc:0".into()), ["h"], "as TensorFlow names outputs");
    let several = Gradients::new(["y"], [Wanted::MainInput, "?".into(), Wanted::Outputs]);
    assert_eq!(xs(graph, &several).first().map(String::as_str), Some("x"));
    let output = Gradients::new([Wanted::Outputs], ["h"]).seed("y", Seed::Fill(3.0)).build(&model(graph)).unwrap();
    assert_eq!(output.seeds.iter().map(|s| (s.y.as_str(), s.fill)).collect::<Vec<_>>(), [("y", Some(3.0))]);
    let by_node = Gradients::new(["fc:0"], ["x"]).seed("fc:0", Seed::Fill(2.0)).stop(["*.bias"]);
    let output = by_node.build(&model(graph)).unwrap();
    assert_eq!(output.seeds[0].fill, Some(2.0));
    assert_eq!(output.record.stops, ["fc.bias"]);
    for (call, said) in [
        (Gradients::new(["y"], ["fc:1"]), "no tensor is called 'fc:1'"),
        (Gradients::new(["y"], ["none*"]), "no tensor matches 'none*'"),
        (Gradients::new(["x"], [Wanted::Parameters]), "no weight that 'x' depends on"),
        (Gradients::new(["z"], ["q".into(), Wanted::Parameters]), "ys: no tensor is called 'z'"),
        (Gradients::new([Wanted::Outputs], ["x"]).seed("h", Seed::Ones), "'h', which is none of the ys"),
    ] {
        let said_of = error(graph, &call);
        assert!(said_of.contains(said), "{said_of}");
    }
    let both = error(graph, &Gradients::new(["z"], ["q"]));
    assert!(both.contains("'z'") && both.contains("'q'"), "{both}");
}

#[test]
fn every_y_may_have_the_same_seed() {
    let graph = "g (float a) => (float y, float z) { y = Mul(a, a) z = Identity(a) }";
    let call = Gradients::new([Wanted::Outputs], ["a"]).seed_each(Seed::Fill(2.0));
    assert_eq!(gradients(graph, &call, &[("a", &[3.0])]), [some(14.0)]);
    assert_eq!(gradients(graph, &call.seed("z", Seed::Ones), &[("a", &[3.0])]), [some(13.0)]);
}
