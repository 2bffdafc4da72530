//! How long the stations of a call take, over chains of layers, over a transformer, and where many tensors meet in one node:
//! `cargo bench --no-default-features`.
//!
//! The times mean little by themselves; that ten times the layers take ten times as long is what they show.

use divan::Bencher;
use onnx_gradients::internals::load;
use onnx_gradients::onnx::{ModelProto, text};
use onnx_gradients::{Gradients, Model};
use prost::Message;

const LAYERS: [usize; 3] = [1_000, 10_000, 100_000];
const WIDTHS: [usize; 3] = [100, 1_000, 10_000];
const BLOCKS: [usize; 3] = [1, 12, 48];

fn main() {
    divan::main();
}

fn model(nodes: &str, y: &str, weights: &str) -> Model {
    let text = format!(
        "<ir_version: 8, opset_import: [\"\": 17]>\ng (float[N,S,8] x) => (float[N,S,8] {y}) <{weights}> {{ {nodes} }}"
    );
    text::parse(&text).expect("a model of ours").into()
}

/// Layers of a Mul by a weight and a Tanh, one behind the other.
fn chain(layers: usize) -> Model {
    let mut nodes = String::from("h0 = Identity(x)\n");
    for i in 0..layers {
        nodes.push_str(&format!("m{i} = Mul(h{i}, w)\nh{} = Tanh(m{i})\n", i + 1));
    }
    model(&nodes, &format!("h{layers}"), "float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}")
}

/// Branches of a Mul by a weight, joined along an axis whose size only the run knows.
fn branches(width: usize) -> Model {
    let mut nodes: String = (0..width).map(|i| format!("h{i} = Mul(x, w)\nt{i} = Tanh(h{i})\n")).collect();
    let names: Vec<String> = (0..width).map(|i| format!("t{i}")).collect();
    nodes.push_str(&format!("y = Concat<axis = 1>({})", names.join(", ")));
    model(&nodes, "y", "float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}")
}

/// Blocks of self-attention with one head, a feed-forward network, and residual connections.
fn transformer(blocks: usize) -> Model {
    let mut nodes = String::from("h0 = Identity(x)\n");
    for i in 0..blocks {
        let next = i + 1;
        nodes.push_str(&format!(
            "a{i} = LayerNormalization(h{i}, g)\nq{i} = MatMul(a{i}, w)\nk{i} = MatMul(a{i}, w)\nv{i} = MatMul(a{i}, w)\n\
             t{i} = Transpose<perm = [0, 2, 1]>(k{i})\ns{i} = MatMul(q{i}, t{i})\np{i} = Softmax<axis = -1>(s{i})\nm{i} = MatMul(p{i}, v{i})\n\
             r{i} = Add(h{i}, m{i})\nb{i} = LayerNormalization(r{i}, g)\nu{i} = MatMul(b{i}, w)\ne{i} = Relu(u{i})\nd{i} = MatMul(e{i}, w)\n\
             h{next} = Add(r{i}, d{i})\n"
        ));
    }
    let row: Vec<String> = (0..64).map(|i| format!("0.{i}")).collect();
    let weights = format!("float[8] g = {{1, 1, 1, 1, 1, 1, 1, 1}}, float[8,8] w = {{{}}}", row.join(", "));
    model(&nodes, &format!("h{blocks}"), &weights)
}

fn gradients(model: &Model) -> ModelProto {
    let y = model.proto.graph.as_ref().expect("a graph").output[0].name();
    Gradients::new([y], ["x", "w"]).build(model).expect("a gradient").model.proto
}

#[divan::bench(args = LAYERS, sample_count = 5)]
fn read_chain(bencher: Bencher, layers: usize) {
    let bytes = bytes::Bytes::from(chain(layers).proto.encode_to_vec());
    bencher.bench(|| Model::from_bytes(bytes.clone()).expect("a model"));
}

#[divan::bench(args = LAYERS, sample_count = 5)]
fn load_chain(bencher: Bencher, layers: usize) {
    let model = chain(layers);
    bencher.bench(|| load(&model.proto).expect("a model"));
}

#[divan::bench(args = LAYERS, sample_count = 5)]
fn differentiate_chain(bencher: Bencher, layers: usize) {
    let model = chain(layers);
    bencher.bench(|| gradients(&model));
}

#[divan::bench(args = LAYERS, sample_count = 5)]
fn write_chain(bencher: Bencher, layers: usize) {
    let written = Model::from(gradients(&chain(layers)));
    bencher.bench(|| written.to_bytes().expect("memory takes it"));
}

#[divan::bench(args = WIDTHS, sample_count = 5)]
fn differentiate_branches(bencher: Bencher, width: usize) {
    let model = branches(width);
    bencher.bench(|| gradients(&model));
}

#[divan::bench(args = BLOCKS, sample_count = 10)]
fn differentiate_transformer(bencher: Bencher, blocks: usize) {
    let model = transformer(blocks);
    bencher.bench(|| gradients(&model));
}
