//! What is known of the bodies of control flow, as far as it is the same for every operator that has some.
//!
//! How the inputs of a body follow from those of its node, and the outputs of the node from those of the body, its row
//! says ([`super::Protocol`]).

use super::facts::{Op, either};
use super::{Bodies, Dim, Fact, Graph, NewNode, Producer, Protocol, Scalar, ScopeId, ValueId};
use crate::onnx::ElementType;
use std::collections::HashSet;
use std::rc::Rc;

/// Replaces what the body turns out to change of its states by what is sure, and says whether there was anything to
/// replace. `free` holds the sizes that stand for "another one in each iteration": a body may change those.
pub fn weaken_states(
    graph: &Graph,
    protocol: &Protocol,
    op: &Op,
    body: ScopeId,
    known: &mut [Fact],
    free: &mut HashSet<Dim>,
) -> bool {
    let scope = graph.scope(body);
    let mut weakened = false;
    for (input, output) in (protocol.states)(op, scope.inputs.len()) {
        let Some(before) = known.get_mut(input) else { continue };
        let Some(shape) = before.shape.clone() else { continue };
        match scope.outputs.get(output).and_then(|&o| graph.fact(o).shape.as_deref()) {
            Some(after) if after.len() == shape.len() => {
                let dim = |(&a, &b): (&Dim, &Dim)| {
                    if a == b || free.contains(&a) {
                        return a;
                    }
                    weakened = true;
                    let any = graph.dims.fresh();
                    free.insert(any);
                    any
                };
                before.shape = Some(shape.iter().zip(after.iter()).map(dim).collect());
            }
            _ => {
                weakened = true;
                before.shape = None;
            }
        }
    }
    weakened
}

/// Forgets the shapes of the states altogether: only what the body declares of them remains.
pub fn forget_states(protocol: &Protocol, op: &Op, known: &mut [Fact]) {
    for (input, _) in (protocol.states)(op, known.len()) {
        if let Some(fact) = known.get_mut(input) {
            fact.shape = None;
        }
    }
}

/// What a condition is whatever the inputs and the weights hold, because it follows from shapes and integers alone.
pub fn truth(graph: &Graph, condition: ValueId) -> Option<bool> {
    /// A condition that follows from more tensors than this is left to the run.
    const MAX_TENSORS: usize = 1000;
    let Scalar::Int(known) = graph.fact(condition).uniform()? else { return None };
    let (mut seen, mut open) = (HashSet::new(), vec![condition]);
    while let Some(value) = open.pop() {
        let weight = graph.value(value).producer == Producer::Initializer
            && graph.fact(value).element.is_none_or(ElementType::is_float);
        if weight || seen.len() > MAX_TENSORS {
            return None;
        }
        if let Some((node, _)) = graph.producer(value)
            && !graph.reads_shapes_only(node)
            && seen.insert(value)
        {
            open.extend(graph.node(node).inputs.iter().flatten());
        }
    }
    known.known().map(|truth| truth != 0)
}

/// The branch that an If takes in every run: by its condition, or because the other one cannot be computed.
pub fn taken(graph: &Graph, condition: Option<ValueId>, bodies: &[(Rc<str>, ScopeId)]) -> Option<ScopeId> {
    let [(first, a), (_, b)] = bodies else { return None };
    match (condition.and_then(|condition| truth(graph, condition)), graph.is_broken(*a), graph.is_broken(*b)) {
        (Some(truth), ..) => Some(if truth == (&**first == "then_branch") { *a } else { *b }),
        (None, true, false) => Some(*b),
        (None, false, true) => Some(*a),
        (None, ..) => None,
    }
}

/// The facts of the outputs of a node whose bodies are in the graph already; `None` where its row says them otherwise.
pub fn infer(graph: &Graph, node: &NewNode, op: &Op, inputs: &[Option<&Fact>]) -> Option<Vec<Fact>> {
    let outputs = |body: ScopeId| graph.scope(body).outputs.iter().map(|&o| graph.fact(o)).collect::<Vec<_>>();
    match (graph.traits_of(&node.domain, &node.op_type).bodies, node.bodies.as_slice()) {
        (Bodies::Branches, [(_, a), (_, b)]) => {
            let branch = taken(graph, node.inputs.first().copied().flatten(), &node.bodies);
            Some(match branch {
                Some(branch) => outputs(branch).into_iter().cloned().collect(),
                None => outputs(*a).into_iter().zip(outputs(*b)).map(|(a, b)| either(a, b, &graph.dims)).collect(),
            })
        }
        (Bodies::Protocol(Protocol { outputs: Some(of_body), .. }), [(_, body)]) => {
            let known = super::facts::Known { op, inputs };
            Some(of_body(&known, graph.scope(*body).inputs.len(), &outputs(*body)))
        }
        _ => None,
    }
}
