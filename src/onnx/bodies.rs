//! Constants of the bodies of control flow, taken out into the graph around them.

use super::{GraphProto, ModelProto, Names, NodeProto, TensorProto};
use std::collections::{HashMap, HashSet};

/// Makes the floating-point tensors with axes that the bodies in a model hold initializers of its main graph, which the
/// bodies use from there. A name that something else has, too, gets a number. What a body gives out
/// as it is stays, as does all in models before IR version 4, where an initializer is an input. Returns the names.
pub(crate) fn take_out_constants(model: &mut ModelProto) -> Vec<String> {
    if model.ir_version() < 4 {
        return Vec::new();
    }
    let Some(graph) = &mut model.graph else { return Vec::new() };
    let mut found = Found { names: Names::default(), once: HashSet::new(), tensors: Vec::new() };
    let mut twice = HashSet::new();
    graph.defines(&mut |name| {
        found.names.extend([name]);
        if !found.once.insert(name.to_owned()) {
            twice.insert(name.to_owned());
        }
    });
    found.once.retain(|name| !twice.contains(name));
    graph.node.iter_mut().for_each(|node| found.take_from_bodies(node));
    let names = found.tensors.iter().map(|t| t.name().to_owned()).collect();
    graph.initializer.append(&mut found.tensors);
    names
}

/// What has been taken out.
struct Found {
    names: Names,
    /// Names that one thing has.
    once: HashSet<String>,
    tensors: Vec<TensorProto>,
}

impl Found {
    fn take_from_bodies(&mut self, node: &mut NodeProto) {
        node.bodies_mut().for_each(|body| self.take_from(body));
    }

    fn take_from(&mut self, body: &mut GraphProto) {
        body.node.iter_mut().for_each(|node| self.take_from_bodies(node));
        let given: HashSet<&str> = body.output.iter().chain(&body.input).map(|v| v.name()).collect();
        let wanted = |name: &str, value: &TensorProto| {
            value.element_type().is_float() && !value.dims.is_empty() && !given.contains(name)
        };
        let taken: HashMap<String, TensorProto> = (body.constants().filter(|(name, value)| wanted(name, value)))
            .map(|(name, value)| (name.to_owned(), value.into_owned()))
            .collect();
        let mut renamed = HashMap::new();
        let order = body.initializer.iter().map(|t| t.name().to_owned());
        let order: Vec<String> = order.chain(body.node.iter().flat_map(|n| n.output.clone())).collect();
        for name in order {
            let Some(tensor) = taken.get(&name) else { continue };
            let new = if self.once.contains(&name) { name.clone() } else { self.names.fresh(name.clone()) };
            self.tensors.push(TensorProto { name: Some(new.clone()), ..tensor.clone() });
            if new != name {
                renamed.insert(name, new);
            }
        }
        let gone: HashSet<&str> = taken.keys().map(String::as_str).collect();
        body.initializer.retain(|t| !gone.contains(t.name()));
        body.node.retain(|n| !n.output.iter().any(|o| gone.contains(o.as_str())));
        body.value_info.retain(|v| !gone.contains(v.name()));
        if !renamed.is_empty() {
            body.node.iter_mut().for_each(|n| n.redirect(&renamed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::take_out_constants;
    use crate::onnx::text;

    #[test]
    fn names_of_several_bodies_stay_apart() {
        let mut model = text::parse(
            r#"<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x, bool c) => (float[N,2] y) {
                y = If (c) <
                    then_branch = t () => (float[N,2] a) <float[2,2] w = {1, 2, 3, 4}, float[2] only = {5, 6}> {
                        p = MatMul (x, w)
                        a = If (c) <
                            then_branch = u () => (float[N,2] d) { k = Constant <value_floats = [7.0, 8.0]> () d = Add (p, k) },
                            else_branch = v () => (float[2] only_2) { only_2 = Add (only, w) }>
                    },
                    else_branch = e () => (float[2] z) <float[2,2] w = {9, 8, 7, 6}, float half = {0.5}, float[2] z = {1, 2}> {
                        b = MatMul (x, w)
                    }>
            }"#,
        )
        .unwrap();
        assert_eq!(take_out_constants(&mut model), ["k", "w_1", "only", "w_2"]);
        let graph = model.graph.as_ref().unwrap();
        let values = |name: &str| graph.initializer.iter().find(|t| t.name() == name).unwrap().floats().unwrap();
        assert_eq!((values("w_1"), values("w_2")), (vec![1.0, 2.0, 3.0, 4.0], vec![9.0, 8.0, 7.0, 6.0]));
        let [then, other] = graph.node[0].bodies().collect::<Vec<_>>()[..] else { panic!("two branches") };
        assert_eq!((then.initializer.len(), &then.node[0].input), (0, &vec!["x".to_owned(), "w_1".to_owned()]));
        let nested: Vec<_> = then.node[1].bodies().collect();
        assert_eq!(nested[0].node.len(), 1);
        assert_eq!(nested[1].node[0].input, ["only", "w_1"]);
        // What a body gives out as it is, and numbers of formulas, stay.
        let left: Vec<&str> = other.initializer.iter().map(|t| t.name()).collect();
        assert_eq!((left, other.node[0].input[1].as_str()), (vec!["half", "z"], "w_2"));
    }
}
