//! Which tensors a gradient can reach: forward from xs through operators that let one pass, and what is missing on the
//! way.

use super::{Aggregation, Pass, lower};
use crate::expr::{Builder, Expr};
use crate::graph::{Graph, IdMap, IdSet, Loaded, NodeId, Origin, ValueId};
use crate::onnx::FunctionProto;
use crate::rules::{self, Differentiate, Integers, Rule, Slot};
use anyhow::{Error, Result};
use std::collections::{BTreeSet, HashMap};

/// What gives the gradient of a node.
#[derive(Clone, Copy)]
pub(super) enum Known<'g> {
    /// A row of the table, or of the user.
    Row(&'g Rule),
    /// A function of the user.
    Function(&'g FunctionProto),
    /// Neither.
    Nothing,
}

impl<'g> Known<'g> {
    /// The row, if it is one.
    pub fn row(self) -> Option<&'g Rule> {
        match self {
            Known::Row(rule) => Some(rule),
            _ => None,
        }
    }
}

impl<'g> Pass<'g> {
    /// What gives the gradient of a node: it is looked up once.
    pub(super) fn known(&self, id: NodeId) -> Known<'g> {
        if let Some(&Some(known)) = self.known.borrow().get(id.number()) {
            return known;
        }
        let graph = self.builder.graph();
        let node = graph.node(id);
        let own = || self.own_rules.iter().find(|r| r.op == &*node.op_type && r.domain == &*node.domain);
        let row = || own().or_else(|| rules::row(&graph, node));
        let known = match self.own_function(node) {
            Some(function) => Known::Function(function),
            None => row().map_or(Known::Nothing, Known::Row),
        };
        let mut all = self.known.borrow_mut();
        let count = all.len().max(graph.node_count());
        all.resize(count, None);
        all[id.number()] = Some(known);
        known
    }

    /// The tensors through which a gradient can reach one of `xs`, of those that `nodes` compute from them: forward
    /// from xs through floating-point tensors, and quantized integers where rounding counts as the identity, past no
    /// stop.
    pub(super) fn live(&self, nodes: &[NodeId], xs: &[ValueId]) -> IdSet<ValueId> {
        let graph = self.builder.graph();
        let may = |x: &ValueId| graph.fact(*x).may_carry_gradient() || self.cotangent(*x).is_some();
        let mut live: IdSet<ValueId> = xs.iter().copied().filter(may).collect();
        for &id in nodes {
            let node = graph.node(id);
            if node.stop {
                continue;
            }
            let known = self.known(id);
            let sources = self.entered(id, &live);
            if self.is_shut(id, known, &live, &sources) {
                self.rounding.shut(id);
            }
            if sources.is_empty() && self.live_captures(id, &live).is_empty() {
                continue;
            }
            for &output in node.outputs.iter().flatten().filter(|o| !self.stops.contains(o)) {
                let cotangent = self.cotangent_of_output(known, output, &sources);
                if let Some(element) = cotangent {
                    self.rounding.carry(output, element);
                }
                if cotangent.is_some() || (graph.fact(output).may_carry_gradient() && !self.rounds(known, output)) {
                    live.insert(output);
                }
            }
        }
        live
    }

    /// The inputs of a node that a gradient passes to on its way to an x.
    pub(super) fn entered(&self, id: NodeId, live: &IdSet<ValueId>) -> Vec<ValueId> {
        let (graph, known) = (self.builder.graph(), self.known(id));
        let inputs = graph.node(id).inputs.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?)));
        inputs.filter(|&(i, v)| live.contains(&v) && self.enters(known, i, v)).map(|(_, v)| v).collect()
    }

    /// Whether what a node's operator gives an input may pass to it.
    fn enters(&self, known: Known<'g>, input: usize, value: ValueId) -> bool {
        match known {
            Known::Row(rule) => {
                let known = rule.integers != Integers::Ignored || self.cotangent(value).is_none();
                let open = match rule.slot(input) {
                    Some(Slot::Stop(_)) => false,
                    Some(Slot::Rounding(_)) => self.rounding.is_straight_through(),
                    _ => true,
                };
                known && open
            }
            // An operator that is not known stands in the way of all that it takes.
            Known::Nothing => true,
            Known::Function(_) => self.cotangent(value).is_none(),
        }
    }

    /// The captured values of a node's bodies that lead to an x. Quantized integers do not lead out of bodies.
    pub(super) fn live_captures(&self, id: NodeId, live: &IdSet<ValueId>) -> Vec<ValueId> {
        let graph = self.builder.graph();
        if graph.node(id).bodies.is_empty() {
            return vec![];
        }
        graph.captures(id).into_iter().filter(|v| live.contains(v) && self.cotangent(*v).is_none()).collect()
    }

    /// The nodes that the builder has written between the leaves and the roots, in topological order.
    pub(super) fn between(&self, roots: impl Iterator<Item = ValueId>, leaves: &BTreeSet<ValueId>) -> Vec<NodeId> {
        let graph = self.builder.graph();
        let mut found = BTreeSet::new();
        let mut open: Vec<ValueId> = roots.collect();
        while let Some(value) = open.pop() {
            if leaves.contains(&value) {
                continue;
            }
            if let Some((id, _)) = graph.producer(value)
                && graph.node(id).origin != Origin::Model
                && found.insert(id)
            {
                open.extend(graph.node(id).inputs.iter().flatten());
                open.extend(graph.captures(id));
            }
        }
        found.into_iter().collect()
    }

    /// Looks for a rule for every node on a path from a y to an x, before anything is built.
    ///
    /// # Errors
    /// All operators that have none, with their nodes.
    pub(super) fn check_rules(
        &self,
        nodes: &[NodeId],
        seeds: &[(ValueId, Expr<'g>)],
        live: &IdSet<ValueId>,
    ) -> Result<()> {
        let graph = self.builder.graph();
        let mut reached: IdSet<ValueId> = seeds.iter().map(|&(y, _)| y).filter(|y| live.contains(y)).collect();
        let mut missing: Vec<(String, Vec<NodeId>)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for &id in nodes.iter().rev() {
            let node = graph.node(id);
            let passes = |o: &ValueId| reached.contains(o) && !node.stop && !self.stops.contains(o);
            if !node.outputs.iter().flatten().any(passes) {
                continue;
            }
            let before = reached.len();
            reached.extend(self.entered(id, live));
            reached.extend(self.live_captures(id, live));
            let leads_on = reached.len() > before || node.inputs.iter().flatten().any(|v| live.contains(v));
            if leads_on && matches!(self.known(id), Known::Nothing) {
                let op = match &*node.domain {
                    "" => node.op_type.to_string(),
                    domain => format!("{domain}.{}", node.op_type),
                };
                let place = *places.entry(op.clone()).or_insert(missing.len());
                if place == missing.len() {
                    missing.push((op, vec![]));
                }
                missing[place].1.push(self.origin(id));
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(self.missing(&missing)) }
    }

    /// The error that says which operators have no rule, with their nodes, and what to do.
    fn missing(&self, missing: &[(String, Vec<NodeId>)]) -> Error {
        let graph = self.builder.graph();
        let list = missing.iter().rev().map(|(op, nodes)| {
            let first: Vec<String> = nodes.iter().rev().take(3).map(|&n| graph.describe(n)).collect();
            let more = if nodes.len() > 3 { format!(" and {} more", nodes.len() - 3) } else { String::new() };
            format!("{op}: {}{more}", first.join(", "))
        });
        let remedy = format!(
            "{}stop the gradient before them (--stop-gradients) or give one (--gradient-functions)",
            lower::remedy(missing.iter().map(|(op, _)| op.as_str()))
        );
        let first = missing.iter().flat_map(|(_, nodes)| nodes).min().map(|&id| graph.place(id)).unwrap_or_default();
        let list = list.collect::<Vec<_>>().join("; ");
        let error = crate::Error::no_gradient(format_args!("no gradient is known for {list}; {remedy}"));
        error.at(&first).with_remedy(Some(remedy)).into()
    }
}

/// For each y those of `xs` that it depends on by paths that let gradients pass, whether their operators have a row or
/// not; in the order of the xs. The time is that of a walk over the model for every 64 xs, however many ys there are.
pub fn dependencies(loaded: Loaded, ys: &[ValueId], xs: &[ValueId]) -> Vec<Vec<ValueId>> {
    let builder = Builder::new(loaded.graph);
    let pass = Pass::new(&builder, Aggregation::default(), IdSet::default(), &[]);
    let nodes = builder.graph().scope(Graph::MAIN).nodes.clone();
    let live = pass.live(&nodes, xs);
    let mut steps: Vec<(Vec<ValueId>, Vec<ValueId>)> = Vec::new();
    for &id in &nodes {
        let graph = builder.graph();
        let node = graph.node(id);
        let sources = [pass.entered(id, &live), pass.live_captures(id, &live)].concat();
        let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().filter(|o| live.contains(o)).collect();
        if !node.stop && !sources.is_empty() && !outputs.is_empty() {
            steps.push((sources, outputs));
        }
    }
    let mut found = vec![Vec::new(); ys.len()];
    for block in xs.chunks(64) {
        let mut bits: IdMap<ValueId, u64> = IdMap::default();
        for (i, x) in block.iter().enumerate().filter(|(_, x)| live.contains(x)) {
            *bits.entry(*x).or_default() |= 1 << i;
        }
        for (sources, outputs) in &steps {
            let all = sources.iter().filter_map(|s| bits.get(s)).fold(0, |all, b| all | b);
            outputs.iter().for_each(|o| *bits.entry(*o).or_default() |= all);
        }
        for (y, found) in ys.iter().zip(&mut found) {
            let reached = bits.get(y).copied().unwrap_or_default();
            found.extend(block.iter().enumerate().filter(|(i, _)| reached >> i & 1 == 1).map(|(_, x)| *x));
        }
    }
    found
}
