//! BatchNormalization that an exporter has folded into convolutions. No file says so: it is a guess, with its reason.

use crate::onnx::{ModelProto, NodeProto, canonical_domain};
use crate::rules::newest;
use serde::Serialize;

/// Convolutions whose biases look as if they were those of BatchNormalization.
#[derive(Clone, Debug, Serialize)]
pub struct Folded {
    /// The nodes, by their names or their outputs'.
    pub nodes: Vec<String>,
    /// What they have in common.
    pub why: String,
}

/// The groups of convolutions of the main graph that look like that, each with its reason.
pub fn folded(model: &ModelProto) -> Vec<Folded> {
    let nodes = || model.graph.iter().flat_map(|g| &g.node);
    let biased = |n: &&NodeProto| {
        let rule = newest(canonical_domain(n.domain()), n.op_type());
        rule.is_some_and(|r| r.convolves) && n.input.get(2).is_some_and(|b| !b.is_empty())
    };
    let name = |n: &NodeProto| {
        let output = || n.output.first().cloned().unwrap_or_default();
        n.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(output)
    };
    let convolutions: Vec<&NodeProto> = nodes().filter(biased).collect();
    let initializer = |n: &str| model.graph.iter().flat_map(|g| &g.initializer).any(|t| t.name() == n);
    // What PyTorch's exporters call the results: of the newer one the weight's name with an ending, of the older one a
    // number.
    let ending = |n: &NodeProto| n.input[2].strip_prefix(n.input[1].as_str()) == Some("_bias");
    let counted = |name: &str| {
        let number = name.strip_prefix("onnx::Conv_").or(name.strip_prefix("onnx::ConvTranspose_"));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let numbered = |n: &NodeProto| counted(&n.input[1]) && counted(&n.input[2]);
    let mut groups: [(Vec<String>, &str); 2] = [
        (
            vec![],
            "each bias is called as its weight with '_bias' behind it, as PyTorch's exporter calls what it makes of a BatchNormalization",
        ),
        (
            vec![],
            "weights and biases are called by numbers (onnx::Conv_…), as PyTorch's exporter calls what it has computed of a BatchNormalization; what it leaves as it is keeps its name",
        ),
    ];
    let mut others = Vec::new();
    for node in &convolutions {
        match (ending(node), numbered(node)) {
            (true, _) => groups[0].0.push(name(node)),
            (_, true) => groups[1].0.push(name(node)),
            _ => others.push(*node),
        }
    }
    let mut found: Vec<Folded> = groups
        .into_iter()
        .filter(|(nodes, _)| !nodes.is_empty())
        .map(|(nodes, why)| Folded { nodes, why: why.to_owned() })
        .collect();
    // Deep convolutional networks are trained with a normalization; where none is left, it has gone somewhere.
    const DEEP: usize = 8;
    let normalized = nodes().any(|n| n.op_type().ends_with("Normalization") || n.op_type().ends_with("Norm"));
    if found.is_empty() && !normalized && others.len() >= DEEP && others.iter().all(|n| initializer(&n.input[2])) {
        let why = format!(
            "{} convolutions have biases and nothing in the model normalizes, as it is where BatchNormalization was folded; networks without one look the same",
            others.len()
        );
        found.push(Folded { nodes: others.into_iter().map(name).collect(), why });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::text;

    #[test]
    fn names_tell_what_was_folded() {
        let of = |w: &str, b: &str, rest: &str| {
            let graph = format!(
                "g (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[1,1,1,1] \"{w}\" = {{2}}, float[1] \"{b}\" = {{3}}> {{
                    {rest} [conv] y = Conv(x, \"{w}\", \"{b}\") }}"
            );
            folded(&text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap())
        };
        assert_eq!(of("c.weight", "c.weight_bias", "")[0].nodes, ["conv"]);
        assert_eq!(of("onnx::Conv_12", "onnx::Conv_13", "")[0].nodes, ["conv"]);
        assert!(of("c.weight", "c.bias", "").is_empty() && of("onnx::Conv_12", "c.bias", "").is_empty());
    }
}
