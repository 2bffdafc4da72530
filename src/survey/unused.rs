//! What a model holds and nobody uses.

use super::flow::taken;
use crate::graph::{Graph, IdSet, Loaded, ValueId};
use crate::onnx::ModelProto;
use serde::Serialize;
use std::collections::HashSet;

/// What leads to no output of the model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Unused {
    /// Nodes, by their names or their outputs'.
    pub nodes: Vec<String>,
    /// Initializers.
    pub initializers: Vec<String>,
    /// Graph inputs.
    pub inputs: Vec<String>,
    /// Domains that are imported and of which no node is.
    pub domains: Vec<String>,
    /// Functions that no node calls.
    pub functions: Vec<String>,
}

impl Unused {
    /// The lists that hold something, each with what it is of.
    pub fn lists(&self) -> impl Iterator<Item = (&'static str, &Vec<String>)> {
        let lists = [
            ("nodes", &self.nodes),
            ("initializers", &self.initializers),
            ("inputs", &self.inputs),
            ("imported domains", &self.domains),
            ("functions", &self.functions),
        ];
        lists.into_iter().filter(|(_, list)| !list.is_empty())
    }
}

/// What of a model leads to none of its outputs. `loaded` is the model.
pub fn unused(model: &ModelProto, loaded: &Loaded) -> Unused {
    let graph = &loaded.graph;
    let scope = graph.scope(Graph::MAIN);
    let mut needed: IdSet<ValueId> = scope.outputs.iter().copied().collect();
    let mut nodes = Vec::new();
    for &id in scope.nodes.iter().rev() {
        let node = graph.node(id);
        if node.outputs.iter().flatten().any(|o| needed.contains(o)) {
            needed.extend(taken(graph, id, node));
        } else {
            nodes.push(graph.place(id).node.unwrap_or_default());
        }
    }
    nodes.reverse();
    let missing = |name: &str| loaded.names.get(name).is_none_or(|id| !needed.contains(id));
    let proto = || model.graph.iter();
    let initializers: Vec<String> =
        proto().flat_map(|g| &g.initializer).map(|t| t.name()).filter(|n| missing(n)).map(str::to_owned).collect();
    let known: HashSet<&str> = proto().flat_map(|g| &g.initializer).map(|t| t.name()).collect();
    let inputs = proto().flat_map(|g| &g.input).map(|i| i.name()).filter(|n| missing(n) && !known.contains(n));
    let inputs = inputs.map(str::to_owned).collect();
    let mut operators: HashSet<(String, String)> = HashSet::new();
    let mut open: Vec<_> = proto().flat_map(|g| &g.node).chain(model.functions.iter().flat_map(|f| &f.node)).collect();
    while let Some(node) = open.pop() {
        operators.insert((crate::onnx::canonical_domain(node.domain()).to_owned(), node.op_type().to_owned()));
        open.extend(node.bodies().flat_map(|b| &b.node));
    }
    let used: HashSet<&str> = operators.iter().map(|(domain, _)| domain.as_str()).collect();
    let domains = model.opset_import.iter().map(|o| crate::onnx::canonical_domain(o.domain()));
    let domains =
        domains.filter(|d| !used.contains(d)).map(|d| if d.is_empty() { "ai.onnx" } else { d }.to_owned()).collect();
    let called = |f: &&crate::onnx::FunctionProto| {
        !operators.contains(&(crate::onnx::canonical_domain(f.domain()).to_owned(), f.name().to_owned()))
    };
    let functions = model.functions.iter().filter(called).map(|f| format!("{}.{}", f.domain(), f.name())).collect();
    Unused { nodes, initializers, inputs, domains, functions }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{onnx::text, rules};

    #[test]
    fn what_leads_nowhere_is_named() {
        let graph = "g (float x, float z, bool c) => (float y) <float w = {1}, float v = {2}, float u = {3}> {
            y = If(c) <then_branch = a () => (float t) { t = Mul(x, w) }, else_branch = b () => (float e) { e = Neg(x) }>
            [lost] l = Mul(x, v) [too] m = Exp(l) }";
        let model =
            text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17, \"com.own\": 1]>\n{graph}")).unwrap();
        let found = unused(&model, &rules::load(&model).unwrap());
        assert_eq!(found.nodes, ["lost", "too"]);
        assert_eq!(found.initializers, ["v", "u"]);
        assert_eq!(found.inputs, ["z"]);
        assert_eq!(found.domains, ["com.own"]);
    }
}
