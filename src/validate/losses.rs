//! The losses of the standard, which tract has not, as operators that it has.

use super::normalize::node;
use crate::onnx::{AttributeProto, ElementType, NodeProto, TensorProto, attribute};

/// SoftmaxCrossEntropyLoss, or NegativeLogLikelihoodLoss, as `Σ w nll / Σ w` with w 0 where the label is the ignored one.
/// Opset 13 and later: axes are inputs.
pub fn expand(loss: NodeProto, nodes: &mut Vec<NodeProto>) {
    let (Some(y), [x, labels, rest @ ..]) = (loss.output.first().filter(|y| !y.is_empty()), loss.input.as_slice())
    else {
        nodes.push(loss);
        return;
    };
    let mut emit = |op: &str, inputs: &[&str], what: &str, attributes: Vec<AttributeProto>| {
        let output = format!("{y}/{what}");
        nodes.push(node(op, inputs, &output, attributes));
        output
    };
    let value = |t: TensorProto| vec![attribute::tensor("value", t)];
    let scalar = |n: i64| TensorProto::from_ints(ElementType::Int64, &[], &[n]);
    let log = match loss.op_type() {
        "SoftmaxCrossEntropyLoss" => emit("LogSoftmax", &[x], "log_softmax", vec![attribute::int("axis", 1)]),
        _ => x.clone(),
    };
    let labels = emit("Cast", &[labels], "labels", vec![attribute::int("to", ElementType::Int64 as i64)]);
    let axis = TensorProto::from_ints(ElementType::Int64, &[1], &[1]);
    let axis = emit("Constant", &[], "axis", value(axis));
    // No label is negative; tract adds and compares extreme integers wrongly.
    let ignored = attribute::get_int(&loss.attribute, "ignore_index");
    let ignored = emit("Constant", &[], "ignored", value(scalar(ignored.unwrap_or(-1))));
    let zero = emit("Constant", &[], "zero", value(scalar(0)));
    let skipped = emit("Equal", &[&labels, &ignored], "skipped", vec![]);
    let safe = emit("Where", &[&skipped, &zero, &labels], "safe", vec![]);
    let counted = emit("Not", &[&skipped], "counted", vec![]);
    let mut weight = emit("CastLike", &[&counted, &log], "weight", vec![]);
    if let Some(weights) = rest.first().filter(|w| !w.is_empty()) {
        let chosen = emit("Gather", &[weights, &safe], "chosen", vec![]);
        weight = emit("Mul", &[&weight, &chosen], "weighted", vec![]);
    }
    let index = emit("Unsqueeze", &[&safe, &axis], "index", vec![]);
    let picked = emit("GatherElements", &[&log, &index], "picked", vec![attribute::int("axis", 1)]);
    let picked = emit("Squeeze", &[&picked, &axis], "log_likelihood", vec![]);
    let negative = emit("Neg", &[&picked], "negative", vec![]);
    let terms = emit("Mul", &[&negative, &weight], "terms", vec![]);
    let all = vec![attribute::int("keepdims", 0)];
    match attribute::get_string(&loss.attribute, "reduction").unwrap_or("mean") {
        "none" => nodes.push(node("Identity", &[&terms], y, vec![])),
        "sum" => nodes.push(node("ReduceSum", &[&terms], y, all)),
        _ => {
            let total = emit("ReduceSum", &[&terms], "total", all.clone());
            let count = emit("ReduceSum", &[&weight], "count", all);
            nodes.push(node("Div", &[&total, &count], y, vec![]));
        }
    }
    if let Some(second) = loss.output.get(1).filter(|o| !o.is_empty()) {
        nodes.push(node("Identity", &[&log], second, vec![]));
    }
}
