//! Which operators a file holds, read from its fields alone: whatever else is wrong with it, and without building a
//! model.

use super::wire;
use bytes::Bytes;
use std::collections::BTreeMap;

/// How many nodes there are of each operator, with its domain where that is not the standard's, in the graph, in the
/// bodies of its nodes and in functions; of a file that is no message, what stands before that shows.
pub fn operators(model: &Bytes) -> BTreeMap<String, u64> {
    /// Models have fewer; what a hostile one has beyond that is left out.
    const MOST: usize = 1000;
    const GRAPH: u32 = 7;
    const FUNCTIONS: u32 = 25;
    const NODES_OF_GRAPH: u32 = 1;
    const NODES_OF_FUNCTION: u32 = 7;
    const ATTRIBUTE: u32 = 5;
    const BODIES: [u32; 2] = [6, 11];
    let (mut counts, mut open) = (BTreeMap::new(), Vec::new());
    for field in wire::each(model) {
        match field.tag {
            GRAPH => open.push((field.payload, NODES_OF_GRAPH)),
            FUNCTIONS => open.push((field.payload, NODES_OF_FUNCTION)),
            _ => (),
        }
    }
    while let Some((graph, nodes)) = open.pop() {
        for node in wire::each(&graph).filter(|f| f.tag == nodes && f.wire == 2) {
            let operator = operator(&node.payload);
            if counts.len() < MOST || counts.contains_key(&operator) {
                *counts.entry(operator).or_default() += 1;
            }
            let attributes = wire::each(&node.payload).filter(|f| f.tag == ATTRIBUTE);
            for attribute in attributes.filter(|a| a.wire == 2) {
                let bodies = wire::each(&attribute.payload);
                open.extend(
                    bodies.filter(|b| BODIES.contains(&b.tag) && b.wire == 2).map(|b| (b.payload, NODES_OF_GRAPH)),
                );
            }
        }
    }
    counts
}

fn operator(node: &Bytes) -> String {
    let text = |tag| wire::first(node, tag).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default();
    let (op, domain) = (text(4), text(7));
    match super::super::canonical_domain(&domain) {
        "" => op,
        domain => format!("{domain}.{op}"),
    }
}
