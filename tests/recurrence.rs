//! A recurrent model that is trained for real by its own gradients: a Scan that adds up what it sees.
#![cfg(feature = "validate")]

use onnx_gradients::onnx::{ElementType, TensorProto, text};
use onnx_gradients::validate::run;
use onnx_gradients::{Gradients, Model};
use std::collections::BTreeMap;

/// A state of four numbers, updated by tanh(x W + h R + b) at each step; its last value is read out by v. The loss is the mean
/// squared distance from the targets.
const MODEL: &str = r#"
<ir_version: 8, opset_import: ["": 17]>
sums (float[T,B,1] x, float[B,1] target, float[1,4] W, float[4,4] R, float[4] b, float[4,1] v) => (float loss)
<int64[3] sizes = {0, 0, 4}, float zero = {0}>
{
    batch = Shape <start = 1, end = 2> (x)
    four = Constant <value_ints = [4]> ()
    shape = Concat <axis = 0> (batch, four)
    h0 = Expand (zero, shape)
    h, all = Scan <num_scan_inputs = 1, body = step (float[B,4] before, float[B,1] seen) => (float[B,4] after, float[B,4] state) {
        in = MatMul (seen, W)
        back = MatMul (before, R)
        both = Add (in, back)
        shifted = Add (both, b)
        after = Tanh (shifted)
        state = Identity (after)
    }> (h0, x)
    y = MatMul (h, v)
    off = Sub (y, target)
    squares = Mul (off, off)
    loss = ReduceMean <keepdims = 0> (squares)
}
"#;

const WEIGHTS: [(&str, &[i64]); 4] = [("W", &[1, 4]), ("R", &[4, 4]), ("b", &[4]), ("v", &[4, 1])];

#[test]
fn the_loss_of_a_scan_falls_by_its_own_gradients() {
    let names = WEIGHTS.map(|(name, _)| name);
    let output = Gradients::new(["loss"], names).build(&Model::from(text::parse(MODEL).unwrap())).unwrap();
    let mut seed = 1.0f64;
    let mut number = || {
        seed = (seed * 997.0 + 0.618).fract();
        seed - 0.5
    };
    let tensor = |dims: &[i64], values: &[f64]| TensorProto::from_floats(ElementType::Float, dims, values).unwrap();
    let (steps, batch) = (6usize, 8usize);
    let x: Vec<f64> = (0..steps * batch).map(|_| number()).collect();
    let target: Vec<f64> = (0..batch).map(|b| (0..steps).map(|t| x[t * batch + b]).sum()).collect();
    let mut weights: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, dims) in WEIGHTS {
        weights.insert(name, (0..dims.iter().product::<i64>()).map(|_| number()).collect());
    }
    let mut losses = Vec::new();
    for _ in 0..200 {
        let mut feeds: BTreeMap<String, TensorProto> = BTreeMap::new();
        feeds.insert("x".into(), tensor(&[steps as i64, batch as i64, 1], &x));
        feeds.insert("target".into(), tensor(&[batch as i64, 1], &target));
        for (name, dims) in WEIGHTS {
            feeds.insert(name.into(), tensor(dims, &weights[name]));
        }
        let values = run(&output.model.proto, &feeds).unwrap();
        losses.push(values["loss"].floats().unwrap()[0]);
        for (name, weight) in &mut weights {
            let gradient = values[&format!("gradients/{name}")].floats().unwrap();
            weight.iter_mut().zip(gradient).for_each(|(w, g)| *w -= 0.1 * g);
        }
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.1 * first, "the loss went from {first} to {last}");
}
