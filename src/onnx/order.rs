//! The order of nodes. The standard asks for each node behind those that it takes something from; converters append
//! nodes at the end all the same, and runtimes take them.

use super::{GraphProto, NodeProto};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Brings the nodes of a graph, and of the bodies in it, into an order in which each stands behind those that it takes
/// something from. Nodes that do stay where they are. A graph for which there is no such order stays as it is.
pub fn sort(graph: &mut GraphProto) {
    graph.node.iter_mut().flat_map(NodeProto::bodies_mut).for_each(sort);
    if is_sorted(graph) {
        return;
    }
    let Some(order) = order(&graph.node) else { return };
    graph.node = arranged(std::mem::take(&mut graph.node), order);
}

/// Whether every node takes what stands before it, or comes from outside.
fn is_sorted(graph: &GraphProto) -> bool {
    // From the end: what is taken must not be computed by a node that comes later.
    let mut later: HashSet<&str> = HashSet::with_capacity(graph.node.len());
    graph.node.iter().rev().all(|node| {
        later.extend(node.output.iter().map(String::as_str).filter(|o| !o.is_empty()));
        let mut fits = true;
        node.uses(&mut |name| fits &= !later.contains(name));
        fits
    })
}

/// The nodes in the order of these numbers.
pub fn arranged(nodes: Vec<NodeProto>, order: Vec<usize>) -> Vec<NodeProto> {
    let mut nodes: Vec<Option<NodeProto>> = nodes.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| nodes.get_mut(i)?.take()).collect()
}

/// The numbers of nodes of which each needs others, given by their numbers, in an order in which it stands behind them:
/// of those that may come next always the first (Kahn 1962). What needs itself is left out.
pub fn by_needs(needs: &[Vec<usize>]) -> Vec<usize> {
    let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut takers = vec![Vec::new(); needs.len()];
    for (i, before) in needs.iter().enumerate() {
        before.iter().for_each(|&b| takers[b].push(i));
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..needs.len()).filter(|&i| missing[i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(needs.len());
    while let Some(Reverse(next)) = ready.pop() {
        order.push(next);
        for &taker in &takers[next] {
            missing[taker] -= 1;
            if missing[taker] == 0 {
                ready.push(Reverse(taker));
            }
        }
    }
    order
}

/// The numbers of the nodes in order; `None` where a node needs itself, or two compute one name.
fn order(nodes: &[NodeProto]) -> Option<Vec<usize>> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if producer.insert(output, i).is_some() {
                return None;
            }
        }
    }
    let mut needs = vec![Vec::new(); nodes.len()];
    for (node, needs) in nodes.iter().zip(&mut needs) {
        node.uses(&mut |name| needs.extend(producer.get(name)));
    }
    let order = by_needs(&needs);
    (order.len() == nodes.len()).then_some(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::text;

    fn sorted(body: &str) -> Vec<String> {
        let model = format!("<ir_version: 8, opset_import: [\"\": 17]> g (float x) => (float y) {{ {body} }}");
        let mut graph = text::parse(&model).unwrap().graph.unwrap();
        sort(&mut graph);
        graph.node.iter().map(|n| n.output[0].clone()).collect()
    }

    #[test]
    fn nodes_stand_behind_those_that_they_need() {
        assert_eq!(sorted("y = Add (b, a) b = Exp (a) a = Cast <to = 1> (x)"), ["a", "b", "y"]);
        assert_eq!(sorted("a = Exp (x) y = Add (a, c) c = Exp (a) d = Abs (x)"), ["a", "c", "y", "d"]);
        assert_eq!(sorted("b = Exp (x) a = Exp (x) y = Add (a, b)"), ["b", "a", "y"]);
    }

    #[test]
    fn what_has_no_order_stays() {
        assert_eq!(sorted("y = Add (a, x) a = Exp (y)"), ["y", "a"]);
        assert_eq!(sorted("y = Add (a, x) a = Exp (x) a = Abs (x)"), ["y", "a", "a"]);
    }
}
