//! Tensors that stand in several places: weights that a network shares, and those that an exporter has merged because
//! they were equal when it looked.

use crate::onnx::{GraphProto, IDENTITY, ModelProto};
use crate::weights::{Kind, Tensor};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// A weight that several nodes take.
#[derive(Clone, Debug, Serialize)]
pub struct Shared {
    /// Its name.
    pub name: String,
    /// The nodes that take it, each with the number of the input, in the order of the model.
    pub places: Vec<String>,
    /// The names that stand for it, of nodes that hand it on.
    pub aliases: Vec<String>,
    /// Whether the network shares it or an exporter has merged equal tensors, as far as that can be told, and why.
    pub why: String,
    /// Whether it has most likely been several.
    pub merged: bool,
}

/// The weights among `tensors` that stand in more than one place.
pub fn shared(model: &ModelProto, tensors: &[Tensor<'_>]) -> Vec<Shared> {
    let nodes = || model.graph.iter().flat_map(|g| &g.node);
    let mut owners: HashMap<&str, &str> =
        tensors.iter().filter(|t| t.kind == Kind::Weight).map(|t| (t.name.as_str(), t.name.as_str())).collect();
    let mut aliases: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in nodes().filter(|n| n.is(IDENTITY)) {
        let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else { continue };
        if let Some(&owner) = owners.get(x.as_str()) {
            owners.insert(y, owner);
            aliases.entry(owner).or_default().push(y.clone());
        }
    }
    let mut places: HashMap<&str, Vec<String>> = HashMap::new();
    let outputs: HashMap<&str, &GraphProto> =
        model.graph.iter().flat_map(|g| g.output.iter().map(move |o| (o.name(), g))).collect();
    for node in nodes() {
        for (i, input) in node.input.iter().enumerate() {
            let hands_on = node.is(IDENTITY) && !node.output.first().is_some_and(|y| outputs.contains_key(y.as_str()));
            if let Some(&owner) = owners.get(input.as_str()).filter(|_| !hands_on) {
                let name = node.name.as_deref().filter(|n| !n.is_empty()).or(node.output.first().map(String::as_str));
                let place = format!("{} ({}, input {i})", name.unwrap_or_default(), node.op_type());
                places.entry(owner).or_default().push(place);
            }
        }
    }
    let found = |t: &Tensor<'_>| {
        let places = places.remove(t.name.as_str()).filter(|p| p.len() > 1)?;
        let aliases = aliases.remove(t.name.as_str()).unwrap_or_default();
        let several = t.value.element_count().is_some_and(|n| n > 1);
        let uniform = several.then(|| t.value.floats().ok()).flatten();
        let uniform = uniform.filter(|v| v.iter().all(|x| v.first() == Some(x))).and_then(|v| v.first().copied());
        let (merged, why) = match (aliases.len() > 1, uniform) {
            (true, _) => {
                (true, format!("{} names stand for it: the exporter has merged tensors that were equal", aliases.len()))
            }
            (false, Some(number)) => (
                true,
                format!(
                    "all its elements are {number}: most likely tensors of several layers that the exporter has merged because they were equal"
                ),
            ),
            (false, None) => {
                (false, "the network shares it, or the exporter has merged tensors that were equal".to_owned())
            }
        };
        Some(Shared { name: t.name.clone(), places, aliases, why, merged })
    };
    tensors.iter().filter_map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{onnx::text, rules, weights};

    #[test]
    fn merged_biases_are_named_with_their_places() {
        let graph = "g (float[1,2] x) => (float[1,2] y) <float[2,2] v = {1, 2, 3, 4}, float[2] b = {0, 0}, float[2] c = {1, 2}> {
            c2 = Identity(c) c3 = Identity(c)
            [first] h = Gemm(x, v, b) [second] i = Gemm(h, v, b) [third] j = Gemm(i, v, c2) [fourth] y = Gemm(j, v, c3) }";
        let model = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
        let loaded = rules::load(&model).unwrap();
        let tensors = weights::tensors(&model, &loaded, &[loaded.names["y"]]);
        let found = shared(&model, &tensors);
        let of = |name: &str| found.iter().find(|s| s.name == name).unwrap();
        assert_eq!(of("b").places, ["first (Gemm, input 2)", "second (Gemm, input 2)"]);
        assert!(of("b").merged && of("b").why.contains("all its elements are 0"), "{:?}", of("b"));
        assert!(of("c").merged && of("c").aliases == ["c2", "c3"] && of("c").places.len() == 2, "{:?}", of("c"));
        assert!(!of("v").merged && of("v").places.len() == 4);
    }
}
