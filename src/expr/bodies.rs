//! Bodies of control flow: scopes inside the one that is being written, and copies of the bodies that a model has.

use super::{Builder, Expr};
use crate::graph::{Fact, IdMap, IdSet, NewNode, NodeId, Origin, ScopeId, ValueId};
use crate::onnx::IDENTITY;

impl Builder {
    /// A new scope inside the current one, with its inputs, which are of the given facts. What is built inside
    /// [`Builder::within`] is appended to it, until it is [`Builder::close`]d.
    pub(crate) fn open(&self, inputs: Vec<Fact>) -> (ScopeId, Vec<Expr<'_>>) {
        let scope = self.graph_mut().open_scope(self.scope());
        (scope, inputs.into_iter().map(|fact| self.add_input(scope, fact)).collect())
    }

    /// One more input of a scope that is open, of which the facts but no elements are known.
    pub(crate) fn add_input(&self, scope: ScopeId, fact: Fact) -> Expr<'_> {
        let input = self.graph_mut().push_input(scope, None, Fact { value: None, ..fact });
        self.expr(input)
    }

    /// Appends what `write` builds to a scope that is open.
    pub(crate) fn within<T>(&self, scope: ScopeId, write: impl FnOnce() -> T) -> T {
        let outside = self.scope.replace(scope);
        let result = write();
        self.scope.set(outside);
        result
    }

    /// Says what the outputs of a scope are, and drops the nodes that none of them needs, and the inputs after the
    /// first `inputs` that no node uses.
    pub(crate) fn close(&self, scope: ScopeId, outputs: &[Expr<'_>], inputs: usize) {
        let mut seen = IdSet::default();
        let outputs = self.within(scope, || {
            // An output of a body is computed in it, and is one only: others get a node of their own.
            let own = |e: &Expr<'_>| {
                let e = self.written(*e);
                let inside = {
                    let graph = self.graph();
                    graph.value(e.id).scope == scope && graph.producer(e.id).is_some()
                };
                if inside && seen.insert(e.id) { e.id } else { self.copy(e.id) }
            };
            outputs.iter().map(own).collect()
        });
        let mut graph = self.graph_mut();
        graph.set_outputs(scope, outputs);
        graph.prune(scope, inputs);
    }

    /// An Identity of its own, which is no other value whatever is built.
    pub(crate) fn copy(&self, id: ValueId) -> ValueId {
        let node = self.append(NewNode {
            op_type: self.string(IDENTITY),
            inputs: [Some(id)].into_iter().collect(),
            outputs: [Some(None)].into_iter().collect(),
            origin: Origin::Backward(self.forward.get()),
            ..NewNode::default()
        });
        self.graph().node(node).outputs.iter().flatten().next().copied().unwrap_or(id)
    }

    /// Writes the nodes of a body into the current scope, its inputs replaced by `inputs`, and returns its outputs with
    /// the nodes that have been written.
    pub(crate) fn splice<'g>(&'g self, body: ScopeId, inputs: &[Expr<'g>]) -> (Vec<Expr<'g>>, Vec<NodeId>) {
        let mut map: IdMap<ValueId, ValueId> = IdMap::default();
        let inputs: Vec<ValueId> = inputs.iter().map(|&e| self.written(e).id).collect();
        map.extend(self.graph().scope(body).inputs.iter().copied().zip(inputs));
        let before = self.graph().scope(self.scope()).nodes.len();
        self.copy_nodes(body, &mut map);
        let nodes = self.graph().scope(self.scope()).nodes.get(before..).unwrap_or_default().to_vec();
        let outputs = self.graph().scope(body).outputs.clone();
        (outputs.iter().map(|o| self.expr(*map.get(o).unwrap_or(o))).collect(), nodes)
    }

    fn copy_nodes(&self, from: ScopeId, map: &mut IdMap<ValueId, ValueId>) {
        let nodes = self.graph().scope(from).nodes.clone();
        self.copy_all(&nodes, map);
    }

    /// Writes copies of nodes, which are in topological order, into the current scope. `map` says what stands for their
    /// inputs, where that is another value than theirs, and then what stands for those of their outputs that it knew
    /// nothing of.
    pub(crate) fn copy_all(&self, nodes: &[NodeId], map: &mut IdMap<ValueId, ValueId>) {
        for &id in nodes {
            let node = self.graph().node(id).clone();
            let inputs = node.inputs.iter().map(|i| i.map(|i| *map.get(&i).unwrap_or(&i))).collect();
            let bodies = node.bodies.iter().map(|(name, scope)| (name.clone(), self.copy_scope(*scope, map))).collect();
            let copy = self.append(NewNode {
                op_type: node.op_type,
                domain: node.domain,
                inputs,
                outputs: node.outputs.iter().map(|o| o.map(|_| None)).collect(),
                attributes: node.attributes,
                bodies,
                name: None,
                origin: Origin::Backward(self.forward.get()),
                stop: node.stop,
            });
            let copies = self.graph().node(copy).outputs.clone();
            for (old, new) in node.outputs.iter().zip(copies) {
                if let (Some(old), Some(new)) = (*old, new) {
                    map.entry(old).or_insert(new);
                    self.complete(new, self.fact(old));
                }
            }
        }
    }

    /// What the model says of a tensor holds for its copy, where inference knows nothing.
    fn complete(&self, copy: ValueId, original: Fact) {
        let mut graph = self.graph_mut();
        let fact = graph.fact_mut(copy);
        if *fact == Fact::default() {
            *fact = Fact { value: None, ..original };
            return;
        }
        fact.element = fact.element.or(original.element);
        fact.shape = fact.shape.take().or(original.shape);
    }

    fn copy_scope(&self, from: ScopeId, map: &mut IdMap<ValueId, ValueId>) -> ScopeId {
        let facts: Vec<Fact> = self.graph().scope(from).inputs.iter().map(|&i| self.fact(i)).collect();
        let (scope, inputs) = self.open(facts);
        map.extend(self.graph().scope(from).inputs.iter().copied().zip(inputs.iter().map(|e| e.id)));
        let broken = self.graph().is_broken(from);
        if broken {
            self.graph_mut().note_broken(scope);
        }
        let outside = self.in_broken.replace(self.in_broken.get() || broken);
        self.within(scope, || self.copy_nodes(from, map));
        self.in_broken.set(outside);
        let outputs = self.graph().scope(from).outputs.iter().map(|o| *map.get(o).unwrap_or(o)).collect();
        self.graph_mut().set_outputs(scope, outputs);
        scope
    }
}
