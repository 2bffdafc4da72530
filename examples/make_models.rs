//! Writes the models in `models/`: `cargo run --example make_models`.
//!
//! Small networks with random weights, the same at every run: a classifier of vectors with its loss, a convolutional
//! classifier of images, one block of a transformer, and two classifiers of the digits in `data/`. Each has a batch size that is known at run time only.

use anyhow::{Context, Result};
use onnx_gradients::Model;
use onnx_gradients::onnx::{ElementType, TensorProto, text};
use std::path::Path;

/// A perceptron with two hidden layers and cross-entropy on integer labels.
const MLP: &str = r#"
<ir_version: 8, opset_import: ["": 17], producer_name: "onnx-gradients">
mlp (float[batch, 16] image, int64[batch] label) => (float[batch, 10] logits, float loss)
{
    [hidden1] hidden1 = Gemm<transB = 1> (image, "hidden1.weight", "hidden1.bias")
    [relu1] active1 = Relu (hidden1)
    [hidden2] hidden2 = Gemm<transB = 1> (active1, "hidden2.weight", "hidden2.bias")
    [tanh2] active2 = Tanh (hidden2)
    [classify] logits = Gemm<transB = 1> (active2, "classify.weight", "classify.bias")
    [loss] loss = SoftmaxCrossEntropyLoss<reduction = "mean"> (logits, label)
}"#;

/// Convolutions with batch normalization as at inference, a residual connection, pooling, a linear classifier.
const CNN: &str = r#"
<ir_version: 8, opset_import: ["": 17], producer_name: "onnx-gradients">
cnn (float[batch, 3, 16, 16] image) => (float[batch, 10] scores)
{
    [stem] stem = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, "stem.weight", "stem.bias")
    [stem_norm] normal = BatchNormalization (stem, "norm.scale", "norm.bias", "norm.mean", "norm.var")
    [stem_relu] active = Relu (normal)
    [pool] pooled = MaxPool<kernel_shape = [2, 2], strides = [2, 2]> (active)
    [block] mixed = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (pooled, "block.weight", "block.bias")
    [residual] sum = Add (mixed, pooled)
    [block_relu] features = Relu (sum)
    [down] reduced = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (features, "down.weight", "down.bias")
    [mean] mean = GlobalAveragePool (reduced)
    [flatten] flat = Flatten (mean)
    [classify] logits = Gemm<transB = 1> (flat, "classify.weight", "classify.bias")
    [softmax] scores = Softmax<axis = 1> (logits)
}"#;

/// A perceptron for handwritten digits of 8 by 8 pixels.
const DIGITS_MLP: &str = r#"
<ir_version: 8, opset_import: ["": 17], producer_name: "onnx-gradients">
digits_mlp (float[batch, 64] image) => (float[batch, 10] logits)
{
    [hidden] hidden = Gemm<transB = 1> (image, "hidden.weight", "hidden.bias")
    [relu] active = Relu (hidden)
    [classify] logits = Gemm<transB = 1> (active, "classify.weight", "classify.bias")
}"#;

/// Two convolutions for the same, with batch normalization and dropout as at inference, and probabilities for an output.
const DIGITS_CNN: &str = r#"
<ir_version: 8, opset_import: ["": 17], producer_name: "onnx-gradients">
digits_cnn (float[batch, 64] image) => (float[batch, 10] scores)
<int64[4] pixels = {-1, 1, 8, 8}, float ratio = {0.25}>
{
    [square] square = Reshape (image, pixels)
    [conv1] conv1 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (square, "conv1.weight", "conv1.bias")
    [norm1] normal1 = BatchNormalization (conv1, "norm1.scale", "norm1.bias", "norm1.mean", "norm1.var")
    [relu1] active1 = Relu (normal1)
    [conv2] conv2 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (active1, "conv2.weight", "conv2.bias")
    [norm2] normal2 = BatchNormalization (conv2, "norm2.scale", "norm2.bias", "norm2.mean", "norm2.var")
    [relu2] active2 = Relu (normal2)
    [pool] pooled = MaxPool<kernel_shape = [2, 2], strides = [2, 2]> (active2)
    [flatten] flat = Flatten (pooled)
    [dropout] kept = Dropout (flat, ratio)
    [classify] logits = Gemm<transB = 1> (kept, "classify.weight", "classify.bias")
    [softmax] scores = Softmax<axis = 1> (logits)
}"#;

/// Embedding, self-attention with two heads, a feed-forward network with Gelu, layer normalizations, logits over the vocabulary.
const TRANSFORMER: &str = r#"
<ir_version: 8, opset_import: ["": 17], producer_name: "onnx-gradients">
transformer (int64[batch, sequence] tokens) => (float[batch, sequence, 50] logits)
<int64[4] heads = {0, 0, 2, 8}, int64[3] merged = {0, 0, 16}, float scale = {0.35355339}, float half = {0.5}, float one = {1.0}, float root2 = {1.41421356}>
{
    [embed] embedded = Gather (embedding, tokens)
    [norm1] normal1 = LayerNormalization (embedded, "norm1.scale", "norm1.bias")
    [query] q = MatMul (normal1, "query.weight")
    [key] k = MatMul (normal1, "key.weight")
    [value] v = MatMul (normal1, "value.weight")
    q4 = Reshape (q, heads)
    k4 = Reshape (k, heads)
    v4 = Reshape (v, heads)
    qh = Transpose<perm = [0, 2, 1, 3]> (q4)
    kt = Transpose<perm = [0, 2, 3, 1]> (k4)
    vh = Transpose<perm = [0, 2, 1, 3]> (v4)
    [scores] products = MatMul (qh, kt)
    scores = Mul (products, scale)
    [attention] weights = Softmax<axis = -1> (scores)
    mixed = MatMul (weights, vh)
    together = Transpose<perm = [0, 2, 1, 3]> (mixed)
    joined = Reshape (together, merged)
    [out] projected = MatMul (joined, "out.weight")
    [residual1] residual1 = Add (embedded, projected)
    [norm2] normal2 = LayerNormalization (residual1, "norm2.scale", "norm2.bias")
    [up] up = MatMul (normal2, "up.weight")
    [gelu_scaled] scaled = Div (up, root2)
    [gelu_erf] erf = Erf (scaled)
    [gelu_shift] shifted = Add (erf, one)
    [gelu_product] product = Mul (up, shifted)
    [gelu] gelu = Mul (product, half)
    [down] down = MatMul (gelu, "down.weight")
    [residual2] residual2 = Add (residual1, down)
    [classify] logits = MatMul (residual2, "classify.weight")
}"#;

fn main() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    std::fs::create_dir_all(&folder)?;
    write(
        &folder.join("mlp.onnx"),
        MLP,
        &[
            ("hidden1.weight", &[32, 16]),
            ("hidden1.bias", &[32]),
            ("hidden2.weight", &[24, 32]),
            ("hidden2.bias", &[24]),
            ("classify.weight", &[10, 24]),
            ("classify.bias", &[10]),
        ],
    )?;
    write(
        &folder.join("cnn.onnx"),
        CNN,
        &[
            ("stem.weight", &[8, 3, 3, 3]),
            ("stem.bias", &[8]),
            ("norm.scale", &[8]),
            ("norm.bias", &[8]),
            ("norm.mean", &[8]),
            ("norm.var", &[8]),
            ("block.weight", &[8, 8, 3, 3]),
            ("block.bias", &[8]),
            ("down.weight", &[12, 8, 3, 3]),
            ("down.bias", &[12]),
            ("classify.weight", &[10, 12]),
            ("classify.bias", &[10]),
        ],
    )?;
    write(
        &folder.join("digits-mlp.onnx"),
        DIGITS_MLP,
        &[
            ("hidden.weight", &[128, 64]),
            ("hidden.bias", &[128]),
            ("classify.weight", &[10, 128]),
            ("classify.bias", &[10]),
        ],
    )?;
    write(
        &folder.join("digits-cnn.onnx"),
        DIGITS_CNN,
        &[
            ("conv1.weight", &[16, 1, 3, 3]),
            ("conv1.bias", &[16]),
            ("norm1.scale", &[16]),
            ("norm1.bias", &[16]),
            ("norm1.mean", &[16]),
            ("norm1.var", &[16]),
            ("conv2.weight", &[32, 16, 3, 3]),
            ("conv2.bias", &[32]),
            ("norm2.scale", &[32]),
            ("norm2.bias", &[32]),
            ("norm2.mean", &[32]),
            ("norm2.var", &[32]),
            ("classify.weight", &[10, 512]),
            ("classify.bias", &[10]),
        ],
    )?;
    write(
        &folder.join("transformer.onnx"),
        TRANSFORMER,
        &[
            ("embedding", &[50, 16]),
            ("norm1.scale", &[16]),
            ("norm1.bias", &[16]),
            ("query.weight", &[16, 16]),
            ("key.weight", &[16, 16]),
            ("value.weight", &[16, 16]),
            ("out.weight", &[16, 16]),
            ("norm2.scale", &[16]),
            ("norm2.bias", &[16]),
            ("up.weight", &[16, 32]),
            ("down.weight", &[32, 16]),
            ("classify.weight", &[16, 50]),
        ],
    )
}

/// Parses a model, gives it weights, and writes it.
fn write(path: &Path, model: &str, weights: &[(&str, &[i64])]) -> Result<()> {
    let mut proto = text::parse(model)?;
    let graph = proto.graph.as_mut().context("no graph")?;
    let mut random = Random(1);
    for (name, dims) in weights {
        let count = dims.iter().product::<i64>() as usize;
        let fan_in = dims.iter().skip(1).product::<i64>().max(1) as f64;
        let values: Vec<f64> = (0..count)
            .map(|_| match *name {
                n if n.ends_with(".scale") || n.ends_with(".var") => 1.0 + 0.2 * random.next(),
                n if n.ends_with(".bias") || n.ends_with(".mean") => 0.1 * random.next(),
                _ => random.next() * (3.0 / fan_in).sqrt(),
            })
            .collect();
        let tensor = TensorProto::from_floats(ElementType::Float, dims, &values)?;
        graph.initializer.push(TensorProto { name: Some((*name).to_owned()), ..tensor });
    }
    Model::from(proto).write(path, true)?;
    Ok(())
}

/// Numbers between -1 and 1, evenly spread: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
