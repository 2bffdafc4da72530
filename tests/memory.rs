//! What a memory budget does: the same bits, no more held than it says, what is random drawn once, errors that say what helps.
#![cfg(feature = "validate")]

use onnx_gradients::onnx::{AttributeProto, ElementType, ModelProto, NodeProto, TensorProto, text};
use onnx_gradients::validate::run;
use onnx_gradients::{Error, Gradients, MemoryBudget, MemoryLimit, Model, Output, Seed};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

fn model(graph: &str) -> Model {
    text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap().into()
}

fn share(share: f64) -> MemoryBudget {
    MemoryBudget::new(MemoryLimit::Share(share), BTreeMap::new())
}

/// Numbers that follow from where they stand.
fn tensor(dims: &[i64], seed: i64) -> TensorProto {
    let count: i64 = dims.iter().product();
    let values: Vec<f64> = (0..count).map(|i| ((i * 37 + seed * 11) % 23) as f64 / 23.0 - 0.5).collect();
    TensorProto::from_floats(ElementType::Float, dims, &values).unwrap()
}

fn floats(element: ElementType, dims: &[i64], values: &[f64]) -> TensorProto {
    TensorProto::from_floats(element, dims, values).unwrap()
}

/// Layers of a product, a normalization and a GELU that is spelled out, with a skip around each; the inputs are x and weights.
fn deep(layers: usize, rows: &str) -> (Model, Vec<String>, Vec<(String, TensorProto)>) {
    deep_and_wide(layers, rows, 16)
}

/// The same with layers of some width; a number of rows that is not said is 64.
fn deep_and_wide(layers: usize, rows: &str, width: i64) -> (Model, Vec<String>, Vec<(String, TensorProto)>) {
    let (mut inputs, mut nodes) = (format!("float[{rows}, {width}] x"), String::new());
    let mut feeds = vec![("x".to_owned(), tensor(&[rows.parse().unwrap_or(64), width], 1))];
    let mut weights = Vec::new();
    for l in 0..layers {
        write!(inputs, ", float[{width}, {width}] w{l}, float[{width}] b{l}, float[{width}] s{l}").unwrap();
        let before = if l == 0 { "x".to_owned() } else { format!("h{}", l - 1) };
        write!(
            nodes,
            "n{l} = LayerNormalization({before}, s{l}, b{l}) m{l} = MatMul(n{l}, w{l}) a{l} = Add(m{l}, b{l})
             r{l} = Div(a{l}, root) e{l} = Erf(r{l}) o{l} = Add(e{l}, one) p{l} = Mul(a{l}, o{l}) g{l} = Mul(p{l}, half)
             h{l} = Add(g{l}, {before})\n"
        )
        .unwrap();
        for (name, dims) in [("w", &[width, width][..]), ("b", &[width]), ("s", &[width])] {
            feeds.push((format!("{name}{l}"), tensor(dims, l as i64 + 2)));
            weights.push(format!("{name}{l}"));
        }
    }
    let last = layers - 1;
    let graph = format!(
        "g ({inputs}) => (float loss) <float root = {{1.41421}}, float one = {{1}}, float half = {{0.5}}> {{
         {nodes} sq = Mul(h{last}, h{last}) loss = ReduceMean <keepdims = 0> (sq) }}"
    );
    (model(&graph), weights, feeds)
}

/// Convolutions with normalization, skips across them, and pooling.
fn convolved() -> (Model, Vec<String>, Vec<(String, TensorProto)>) {
    const LAYERS: usize = 8;
    let (mut inputs, mut nodes) = ("float[2, 3, 16, 16] x, float[8, 3, 3, 3] w".to_owned(), String::new());
    let mut feeds = vec![("x".to_owned(), tensor(&[2, 3, 16, 16], 1)), ("w".to_owned(), tensor(&[8, 3, 3, 3], 2))];
    feeds.push(("c".to_owned(), tensor(&[8], 3)));
    let mut weights = vec!["w".to_owned(), "c".to_owned()];
    for l in 0..LAYERS {
        write!(inputs, ", float[8, 8, 3, 3] w{l}").unwrap();
        let before = if l == 0 { "first".to_owned() } else { format!("h{}", l - 1) };
        write!(
            nodes,
            "c{l} = Conv <pads = [1, 1, 1, 1]> ({before}, w{l}) n{l} = BatchNormalization (c{l}, c, c, mean, var)
             r{l} = Relu (n{l}) h{l} = Add (r{l}, {before})\n"
        )
        .unwrap();
        feeds.push((format!("w{l}"), tensor(&[8, 8, 3, 3], l as i64 + 4)));
        weights.push(format!("w{l}"));
    }
    let graph = format!(
        "g ({inputs}, float[8] c) => (float loss) <float[8] mean = {{0,0,0,0,0,0,0,0}}, float[8] var = {{1,2,1,2,1,2,1,2}}> {{
         first = Conv <pads = [1, 1, 1, 1]> (x, w) {nodes}
         p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (h{}) sq = Mul (p, p) loss = ReduceMean <keepdims = 0> (sq) }}",
        LAYERS - 1
    );
    (model(&graph), weights, feeds)
}

fn computed(output: &Output, feeds: &[(String, TensorProto)]) -> BTreeMap<String, TensorProto> {
    run(&output.model.proto, &feeds.iter().cloned().collect()).unwrap()
}

/// The bytes of every tensor of a run: all are made outputs.
fn sizes(model: &ModelProto, feeds: &[(String, TensorProto)]) -> HashMap<String, usize> {
    let mut probe = model.clone();
    let graph = probe.graph.as_mut().unwrap();
    let known: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let names = graph.node.iter().flat_map(|n| n.output.clone()).filter(|n| !n.is_empty() && !known.contains(n));
    let outputs: Vec<_> = names
        .map(|name| onnx_gradients::onnx::proto::ValueInfoProto { name: Some(name), ..Default::default() })
        .collect();
    graph.output.extend(outputs);
    let bits = |t: &TensorProto| t.dims.iter().product::<i64>() as usize * t.element_type().bits().unwrap() / 8;
    let found = run(&probe, &feeds.iter().cloned().collect()).unwrap();
    found.iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect()
}

/// The most that is held when nodes run in the order of the file, counted here from names and a run.
fn peak(model: &ModelProto, feeds: &[(String, TensorProto)]) -> usize {
    const VIEWS: [&str; 5] = ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"];
    let size = sizes(model, feeds);
    let graph = model.graph.as_ref().unwrap();
    let nodes: Vec<&NodeProto> = graph.node.iter().filter(|n| n.op_type() != "Constant").collect();
    let mut root: HashMap<&str, &str> = HashMap::new();
    for n in nodes.iter().filter(|n| VIEWS.contains(&n.op_type())) {
        let source = n.input[0].as_str();
        root.insert(&n.output[0], root.get(source).copied().unwrap_or(source));
    }
    let of = |name: &str| root.get(name).copied().unwrap_or(name).to_owned();
    let mut last: HashMap<String, usize> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        last.extend(n.input.iter().map(|t| (of(t), i)));
    }
    last.extend(graph.output.iter().map(|o| (of(o.name()), nodes.len())));
    let (mut held, mut most) = (0, 0);
    let mut ends: HashMap<usize, Vec<&str>> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        for o in n.output.iter().filter(|o| !o.is_empty() && !root.contains_key(o.as_str())) {
            held += size[o];
            ends.entry(last.get(o).copied().unwrap_or(i).max(i)).or_default().push(o);
        }
        most = most.max(held);
        held -= ends.remove(&i).unwrap_or_default().iter().map(|o| size[*o]).sum::<usize>();
    }
    most
}

#[test]
fn a_budget_is_met_and_changes_no_bit() {
    for (what, (model, weights, feeds), shares) in
        [("deep", deep(6, "64"), [0.9, 0.6, 0.4]), ("convolved", convolved(), [0.9, 0.75, 0.6])]
    {
        let call = Gradients::new(["loss"], weights);
        let plain = call.build(&model).unwrap();
        let expected = computed(&plain, &feeds);
        let before = peak(&plain.model.proto, &feeds);
        for part in shares {
            let output = call.clone().memory_budget(share(part)).build(&model).unwrap();
            let report = output.memory.clone().unwrap();
            let after = peak(&output.model.proto, &feeds);
            assert!(after as f64 <= part * before as f64, "{what} {part}: {after} of {before}");
            assert_eq!((report.peak, report.peak_without), (after as u64, before as u64), "{what} {part}");
            assert!(!report.recomputed.is_empty() && report.cost > 0.0 && report.kept < report.kept_without, "{what}");
            let found = computed(&output, &feeds);
            for g in &output.gradients {
                let name = g.name.as_ref().unwrap();
                assert!(expected[name] == found[name], "{what} {part}: {name} has other bits");
            }
        }
    }
}

#[test]
fn the_forward_nodes_stay_as_they_are() {
    let (model, weights, _) = deep(4, "64");
    let output = Gradients::new(["loss"], weights).memory_budget(share(0.5)).build(&model).unwrap();
    let nodes = |m: &ModelProto| m.graph.as_ref().unwrap().node.clone();
    let before = nodes(&model.proto);
    assert_eq!(nodes(&output.model.proto)[..before.len()], before);
}

#[test]
fn a_budget_in_bytes_asks_for_sizes() {
    let (model, weights, feeds) = deep(4, "N");
    let call = Gradients::new(["loss"], weights);
    let plain = call.build(&model).unwrap();
    let limit = MemoryLimit::Bytes(peak(&plain.model.proto, &feeds) as u64 / 2);
    let budget = MemoryBudget::new(limit, BTreeMap::new());
    let error = call.clone().memory_budget(budget.clone()).build(&model).unwrap_err();
    assert_eq!((error.code(), error.details().remedy.as_deref()), ("usage", Some("--dim N=SIZE")), "{error}");
    let budget = MemoryBudget::new(limit, [("N".to_owned(), 64)].into());
    let output = call.clone().memory_budget(budget.clone()).build(&model).unwrap();
    assert!(peak(&output.model.proto, &feeds) as u64 <= output.memory.unwrap().budget);
    let output = call.memory_budget(share(0.7)).build(&model).unwrap();
    assert_eq!(output.memory.unwrap().assumed, [("N".to_owned(), 32)].into());
}

#[test]
fn a_budget_that_cannot_be_met_names_the_least() {
    let (model, weights, _) = deep(4, "64");
    let call = Gradients::new(["loss"], weights);
    let error = call.clone().memory_budget(share(0.01)).build(&model).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
    let message = error.to_string();
    let least: u64 = message.split(" bytes is the least").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let budget = |bytes| MemoryBudget::new(MemoryLimit::Bytes(bytes), BTreeMap::new());
    assert!(call.clone().memory_budget(budget(least - 1)).build(&model).is_err());
    let report = call.memory_budget(budget(least)).build(&model).unwrap().memory.unwrap();
    assert!(report.peak <= least, "{} instead of {least}", report.peak);
}

/// The inner tensors of GELUs that are spelled out follow from their inputs: where a model is large enough for that to
/// matter, they are computed again also where nobody gives a budget, and the report does not speak of one.
#[test]
fn what_takes_next_to_no_time_is_computed_again_unasked() {
    let (model, weights, feeds) = deep_and_wide(4, "512", 512);
    let call = Gradients::new(["loss"], weights);
    let erfs = |output: &Output| {
        let nodes = &output.model.proto.graph.as_ref().unwrap().node;
        nodes.iter().filter(|n| n.op_type() == "Erf").count()
    };
    let free = call.clone().build(&model).unwrap();
    let kept = call.clone().memory_budget(share(1.0)).build(&model).unwrap();
    assert_eq!((erfs(&free), erfs(&kept)), (8, 4));
    assert!(free.memory.is_none());
    let held = |output: &Output| peak(&output.model.proto, &feeds) as f64;
    assert!(held(&free) < 0.75 * held(&kept), "{} of {}", held(&free), held(&kept));
    let (small, weights, _) = deep(4, "64");
    assert_eq!(erfs(&Gradients::new(["loss"], weights).build(&small).unwrap()), 4, "not worth being read");
}

/// `dy s + dy x s'` is one product of dy, whose other factor follows from the forward pass.
#[test]
fn terms_with_a_common_gradient_are_one_product() {
    let graph = "g (float[4] x, float[4] t) => (float[4] y) { s = Sigmoid (x) p = Mul (x, s) y = Mul (p, t) }";
    let output = Gradients::new(["y"], ["x"]).seed("y", Seed::Input(None)).build(&model(graph)).unwrap();
    let nodes = &output.model.proto.graph.as_ref().unwrap().node;
    let count = |op: &str| nodes[3..].iter().filter(|n| n.op_type() == op).count();
    assert_eq!((count("Mul"), count("Add") + count("Sum"), count("Sub")), (4, 1, 1), "{nodes:?}");
}

/// What is drawn is kept: drawn again, it would be other numbers.
#[test]
fn random_numbers_are_drawn_once() {
    let mut nodes = "h0 = Mul (x, w)".to_owned();
    for l in 1..9 {
        write!(
            nodes,
            " r{l} = RandomUniformLike <seed = 1.0> (h{0}) d{l} = Mul (r{l}, h{0}) c{l} = If (yes) <
                then_branch = t{l} () => (float[256, 16] ty{l}) {{ ty{l} = RandomUniform <shape = [256, 16]> () }},
                else_branch = f{l} () => (float[256, 16] fy{l}) {{ fy{l} = RandomNormal <shape = [256, 16]> () }}>
             e{l} = Mul (c{l}, d{l}) h{l} = Tanh (e{l})",
            l - 1
        )
        .unwrap();
    }
    let graph = format!(
        "g (float[256, 16] x, float[16] w, bool yes) => (float loss) {{ {nodes} loss = ReduceSum <keepdims = 0> (h8) }}"
    );
    let call = Gradients::new(["loss"], ["w"]);
    let plain = call.build(&model(&graph)).unwrap();
    let output = call.memory_budget(share(0.85)).build(&model(&graph)).unwrap();
    fn drawn(nodes: &[NodeProto]) -> usize {
        let bodies = |n: &NodeProto| -> usize {
            n.attribute.iter().filter_map(|a: &AttributeProto| a.g.as_ref()).map(|g| drawn(&g.node)).sum()
        };
        nodes.iter().map(|n| usize::from(n.op_type().starts_with("Random")) + bodies(n)).sum()
    }
    let count = |o: &Output| drawn(&o.model.proto.graph.as_ref().unwrap().node);
    assert_eq!(count(&output), count(&plain));
    let report = output.memory.unwrap();
    assert!(!report.recomputed.is_empty());
    assert!(report.recomputed.iter().all(|r| r.operator != "If" && !r.operator.starts_with("Random")), "{report:?}");
}

/// The gradients of what a call with a budget has written are those of what one without has written.
#[test]
fn second_derivatives_pass_what_is_computed_again() {
    let (model, weights, feeds) = deep(3, "64");
    let call = Gradients::new(["loss"], weights);
    let second = |first: Output| {
        let ys = first.gradients[0].name.clone().unwrap();
        computed(&Gradients::new([ys], ["w1", "x"]).build(&first.model).unwrap(), &feeds)
    };
    let plain = second(call.build(&model).unwrap());
    let found = second(call.memory_budget(share(0.6)).build(&model).unwrap());
    for name in ["gradients_1/w1", "gradients_1/x"] {
        let (a, b) = (plain[name].floats().unwrap(), found[name].floats().unwrap());
        let norm = a.iter().map(|v| v * v).sum::<f64>().sqrt();
        let far = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        assert!(norm > 0.0 && far < 1e-4 * norm, "{name}: {far} of {norm}");
    }
}

/// Numbers that are ±0, infinite or none keep their bits behind what delays them.
#[test]
fn odd_numbers_keep_their_bits() {
    let mut nodes = "h0 = Mul (x, w)".to_owned();
    for l in 1..12 {
        write!(nodes, " t{l} = Tanh (h{0}) h{l} = Add (t{l}, h{0})", l - 1).unwrap();
    }
    let graph =
        format!("g (float[1024] x, float[1024] w) => (float loss) {{ {nodes} loss = ReduceSum <keepdims = 0> (h11) }}");
    let model = model(&graph);
    let call = Gradients::new(["loss"], ["w", "x"]);
    let odd = [0.0, -0.0, 1e-42, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1.5, -2.5];
    let values: Vec<f64> = (0..1024).map(|i| odd[i % 8]).collect();
    let feeds =
        vec![("x".to_owned(), floats(ElementType::Float, &[1024], &values)), ("w".to_owned(), tensor(&[1024], 3))];
    let plain = computed(&call.build(&model).unwrap(), &feeds);
    let output = call.memory_budget(share(0.6)).build(&model).unwrap();
    assert!(!output.memory.as_ref().unwrap().recomputed.is_empty());
    let found = computed(&output, &feeds);
    let bits = |t: &TensorProto| -> Vec<u32> {
        t.floats().unwrap().iter().map(|&v| if v.is_nan() { 0 } else { (v as f32).to_bits() }).collect()
    };
    for name in ["gradients/w", "gradients/x"] {
        assert_eq!(bits(&plain[name]), bits(&found[name]), "{name}");
    }
}

/// What is held against another tensor that it was chosen from comes of the same computation: a runtime may fuse the
/// nodes before a copy in another way, and its numbers differ in the last bit.
#[test]
fn maxima_are_compared_with_what_they_are_the_maxima_of() {
    const LAYERS: usize = 12;
    let (mut inputs, mut nodes) = ("float[256, 16] h0".to_owned(), String::new());
    let mut weights = Vec::new();
    for l in 0..LAYERS {
        write!(inputs, ", float[16, 16] w{l}").unwrap();
        write!(
            nodes,
            "m{l} = MatMul (h{l}, w{l}) c{l} = Clip (m{l}, low, high) t{l} = ReduceMax <keepdims = 1> (c{l}, last)
             h{} = Sub (c{l}, t{l})\n",
            l + 1
        )
        .unwrap();
        weights.push(format!("w{l}"));
    }
    let graph = format!(
        "g ({inputs}) => (float loss) <float low = {{-1}}, float high = {{1}}, int64[1] last = {{-1}}> {{
         {nodes} sq = Mul (h{LAYERS}, h{LAYERS}) loss = ReduceMean <keepdims = 0> (sq) }}"
    );
    let model: Model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 18]>\n{graph}")).unwrap().into();
    let call = Gradients::new(["loss"], weights);
    let (mut anew, mut again) = (0, 0);
    for part in [0.8, 0.7, 0.6, 0.5, 0.4] {
        let Ok(output) = call.clone().memory_budget(share(part)).build(&model) else { continue };
        let nodes = &output.model.proto.graph.as_ref().unwrap().node;
        let copy = |name: &String| name.starts_with("gradients/");
        for equal in nodes.iter().filter(|n| n.op_type() == "Equal") {
            let (x, y) = (&equal.input[0], &equal.input[1]);
            assert!(!copy(x) || copy(y), "{part}: {x} is computed again, {y} is not");
            anew += usize::from(copy(x));
            again += 1;
        }
    }
    assert!(anew > 0 && anew < again, "{anew} of {again}");
}
