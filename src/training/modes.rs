//! Operators that do something else in training: BatchNormalization and Dropout. Nothing changes unless it is asked
//! for.

use crate::expr::Expr;
use crate::expr::rewrite::{Here, Named};
use crate::onnx::{ModelProto, NodeProto, TensorProto, attribute, canonical_domain};
use crate::rules::{Rule, newest};
use anyhow::{Context, Error, Result, ensure};
use std::borrow::Cow;
use std::collections::HashMap;

fn row(node: &NodeProto) -> Option<&'static Rule> {
    newest(canonical_domain(node.domain()), node.op_type())
}

fn drops_out(node: &NodeProto) -> bool {
    row(node).is_some_and(|r| r.drops_out)
}

fn batch_norms(model: &ModelProto) -> impl Iterator<Item = &NodeProto> {
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    nodes.filter(|n| is_batch_norm(n))
}

/// The constants of a model by name.
pub type Constants<'a> = HashMap<&'a str, Cow<'a, TensorProto>>;

/// What the report says of the modes of a model.
pub fn decisions(model: &ModelProto, batch_norm_train: bool, dropouts: &[(String, f64)]) -> Vec<String> {
    let mut said = Vec::new();
    let nodes = || model.graph.iter().flat_map(|g| &g.node);
    let count = batch_norms(model).count();
    let own_mode = |n: &&NodeProto| attribute::get_int(&n.attribute, "training_mode").unwrap_or(0) != 0;
    let already = batch_norms(model).filter(own_mode).count();
    match (count - already, batch_norm_train) {
        (0, _) if already > 0 => {}
        (0, _) => {
            let biased = |n: &&NodeProto| {
                row(n).is_some_and(|r| r.convolves) && n.input.get(2).is_some_and(|b| !b.is_empty())
            };
            let normalized = nodes().any(|n| row(n).is_some_and(|r| r.normalizes));
            let convolutions = nodes().filter(biased).count();
            if convolutions > 0 && !normalized {
                said.push(format!(
                    "no BatchNormalization is in the model; if it was trained with it, it has been folded into the weights and biases of {convolutions} Conv, and is trained as a part of them"
                ));
            }
        }
        (n, false) => said.push(format!(
            "{n} BatchNormalization stay in inference mode: their statistics are constant (--batch-norm train changes that)"
        )),
        (n, true) => said.push(format!(
            "{n} BatchNormalization are in training mode: they normalize with the statistics of the batch, and the running statistics are state"
        )),
    }
    if already > 0 {
        said.push(format!(
            "{already} BatchNormalization are in training mode in the model itself (training_mode = 1): they normalize with the statistics of the batch, in evaluation too"
        ));
    }
    let random = nodes().filter(|n| drops_out(n) && n.input.get(2).is_some_and(|mode| !mode.is_empty())).count();
    if random > 0 {
        said.push(format!(
            "{random} Dropout say by an input of their own whether they are in training mode: where it is true, they drop out at random in evaluation too"
        ));
    }
    let own = nodes().filter(|n| drops_out(n)).count() - random;
    if own > 0 && dropouts.is_empty() {
        said.push(format!("{own} Dropout stay in inference mode, where they do nothing (--dropout changes that)"));
    }
    said.extend(dropouts.iter().map(|(name, ratio)| format!("'{name}' is dropped out with ratio {ratio} in training")));
    said
}

/// The names of the running statistics of all BatchNormalization.
///
/// # Errors
/// One that is not constant.
pub fn statistics(model: &ModelProto, constants: &Constants<'_>) -> Result<Vec<String>> {
    let (mut names, mut seen) = (Vec::new(), std::collections::HashSet::new());
    for node in batch_norms(model) {
        for i in [3, 4] {
            let name =
                node.input.get(i).with_context(|| format!("node '{}' has no running statistics", node.name()))?;
            ensure!(
                constants.contains_key(name.as_str()),
                "the running statistic '{name}' of node '{}' is computed: only one that is constant can follow the data",
                node.name()
            );
            ensure!(seen.insert(name.clone()), "two BatchNormalization share the running statistic '{name}'");
            names.push(name.clone());
        }
    }
    Ok(names)
}

/// Whether a node is a BatchNormalization: it normalizes by statistics that training can let follow the data.
pub fn is_batch_norm(node: &NodeProto) -> bool {
    row(node).is_some_and(|r| !r.statistics.is_empty())
}

/// A BatchNormalization as training mode computes it: y = (x - mean) / √(var + ε) scale + bias with the mean and the
/// variance of the batch, over all axes but the channels; the running statistics become `momentum old + (1 - momentum)
/// new`, the variance being that of the population (ONNX, opset 15). `names` says what the updated ones are called.
///
/// # Errors
/// The rank of an input is not known; the node is in training mode itself.
pub fn train_batch_norm<'g>(here: &Here<'g>, node: &NodeProto, names: &HashMap<String, String>) -> Result<Named<'g>> {
    ensure!(
        attribute::get_int(&node.attribute, "training_mode").unwrap_or(0) == 0,
        "node '{}' is in training mode in the model itself (training_mode = 1): leave out --batch-norm train, or set it to 0",
        node.name()
    );
    let number = |name: &str, default: f32| attribute::get_float(&node.attribute, name).unwrap_or(default).into();
    let (epsilon, momentum): (f64, f64) = (number("epsilon", 1e-5), number("momentum", 0.9));
    let x = here.input(node, 0)?;
    let rank = x.rank()?;
    ensure!(rank >= 2, "the BatchNormalization of {x} has no axis of channels");
    let axes: Vec<usize> = (0..rank).filter(|&a| a != 1).collect();
    let channels: Vec<i64> = (0..rank).map(|a| if a == 1 { -1 } else { 1 }).collect();
    let spread = |i: usize| Ok::<_, Error>(here.input(node, i)?.cast_like(x).reshape_to(&channels));

    let mean = x.mean(&axes);
    let centered = x - mean;
    let variance = centered.square().mean(&axes);
    let y = centered / (variance + epsilon).sqrt() * spread(1)? + spread(2)?;
    let mut outputs = vec![(node.output.first().context("it has no output")?.clone(), y)];
    for (i, batch) in [(3, mean), (4, variance)] {
        let running = here.input(node, i)?;
        let updated = momentum * running + (1.0 - momentum) * batch.reshape_to(&[-1]).cast_like(running);
        outputs.extend(names.get(&node.input[i]).map(|name| (name.clone(), updated)));
    }
    Ok(outputs)
}

/// The prime below which the pseudo-random numbers of dropout lie: squares of them fit into 64 bits.
const PRIME: i64 = (1 << 31) - 1;

/// Drops elements of a tensor: with the ratio each is zero, else divided by 1 - ratio.
///
/// Which ones, follows from the place of the element, the number of the site and the number of the step alone, by
/// integer arithmetic that is the same on every runtime: the step stays a pure function, and a training that is resumed
/// repeats itself.
///
/// # Errors
/// A tensor that is not of floating-point type; opsets before 9.
pub fn drop_out<'g>(x: Expr<'g>, ratio: f64, site: usize, step: Expr<'g>) -> Result<Expr<'g>> {
    ensure!(x.is_float(), "{x} is of type {}, which is not dropped out", x.element()?.name());
    let b = x.builder();
    let (prime, offset) = (b.int(PRIME), (12_345 + 7919 * site) as f64);
    let key = step * 40503.0 + offset;
    // h ← (a h + k) mod p and h ← (h² + k) mod p by turns.
    let mut h = (b.range(x.size()) + key).modulo(prime);
    for factor in [48271.0, 69621.0] {
        h = ((h * factor + key).modulo(prime).square() + offset).modulo(prime);
    }
    let dropped = h.less(b.int((ratio * PRIME as f64) as i64));
    Ok(x * dropped.logical_not().cast_like(x).reshape_like(x) * (1.0 / (1.0 - ratio)))
}

/// The model's own Dropout nodes that have a ratio: what is dropped out, and the ratio.
pub fn own_dropouts(model: &ModelProto, constants: &Constants<'_>) -> Vec<(String, f64)> {
    let nodes = model.graph.iter().flat_map(|g| &g.node).filter(|n| drops_out(n));
    let site = |n: &NodeProto| {
        // The attribute is a float32: the decimal number that was meant is the one that it is printed as.
        let input =
            n.input.get(1).and_then(|r| constants.get(r.as_str())).and_then(|r| r.floats().ok()?.first().copied());
        let ratio =
            input.or_else(|| attribute::get_float(&n.attribute, "ratio")?.to_string().parse().ok()).unwrap_or(0.5);
        Some((n.output.first()?.clone(), ratio))
    };
    nodes.filter_map(site).collect()
}
