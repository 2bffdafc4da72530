//! One language to change a model: formulas in the places of nodes, and behind tensors.
//!
//! A [`Rewrite`] says which nodes get which formula. The model is loaded as for a gradient; where the loader comes to
//! such a node, the formula is built from what is loaded by then, with every fact known, and counts as the model's own
//! from there on. Afterwards the nodes are written back where they stand: those that nobody asked about come out as
//! they went in. What an operator is called and how it is written at the model's opset stays the business of the
//! expressions.

use super::{Builder, Expr};
use crate::graph::write::{self, Part};
use crate::graph::{Graph, IdMap, NodeId, Operators, Place, Replace, Replacement, ScopeId, ValueId, load_replacing};
use crate::onnx::{GraphProto, ModelProto, Names, NodeProto};
use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Where a formula stands: what is loaded before it.
pub struct Here<'g> {
    builder: &'g Builder,
    scopes: &'g [HashMap<Rc<str>, ValueId>],
}

impl<'g> Here<'g> {
    /// What writes the formula.
    pub fn builder(&self) -> &'g Builder {
        self.builder
    }

    /// The tensor of that name, of this graph or of one around it.
    ///
    /// # Errors
    /// Nothing before this place is called so.
    pub fn tensor(&self, name: &str) -> Result<Expr<'g>> {
        let found = self.scopes.iter().rev().find_map(|names| names.get(name));
        found.map(|&id| self.builder.expr(id)).with_context(|| format!("no tensor before it is called '{name}'"))
    }

    /// Every name that [`Here::tensor`] finds, in no order.
    pub fn names(&self) -> impl Iterator<Item = &'g str> {
        self.scopes.iter().flat_map(|names| names.keys().map(|n| &**n))
    }

    /// An input of the node; `None` where it is left out.
    ///
    /// # Errors
    /// Nothing before this place is called so.
    pub fn opt(&self, node: &NodeProto, i: usize) -> Result<Option<Expr<'g>>> {
        node.input.get(i).filter(|name| !name.is_empty()).map(|name| self.tensor(name)).transpose()
    }

    /// An input that the node must have.
    ///
    /// # Errors
    /// It is left out.
    pub fn input(&self, node: &NodeProto, i: usize) -> Result<Expr<'g>> {
        self.opt(node, i)?.with_context(|| format!("input {i} is missing"))
    }
}

/// Tensors with the names that they get.
pub type Named<'g> = Vec<(String, Expr<'g>)>;

type Wanted<'a> = Box<dyn Fn(&NodeProto) -> bool + 'a>;
type InPlace<'a> = Box<dyn for<'g> FnMut(&Here<'g>, &NodeProto) -> Result<Named<'g>> + 'a>;
type Behind<'a> = Box<dyn for<'g> FnMut(&Here<'g>, Expr<'g>) -> Result<Expr<'g>> + 'a>;

/// What is to be changed in a model.
pub struct Rewrite<'a> {
    scope: String,
    formulas: Vec<(Wanted<'a>, InPlace<'a>)>,
    behind: HashMap<String, Vec<Behind<'a>>>,
    /// The tensors whose names go over to what stands behind them.
    renamed: HashSet<String>,
    reserved: Vec<String>,
}

impl<'a> Rewrite<'a> {
    /// No change yet. New names begin with the name of the node whose place they take, else with `scope`.
    pub fn new(scope: &str) -> Self {
        Rewrite {
            scope: scope.to_owned(),
            formulas: Vec::new(),
            behind: HashMap::new(),
            renamed: HashSet::new(),
            reserved: Vec::new(),
        }
    }

    /// Puts a formula in the place of every wanted node, in bodies of control flow too. The formula returns the node's
    /// outputs by name, and other tensors that are to have a name.
    pub fn nodes(
        mut self,
        wanted: impl Fn(&NodeProto) -> bool + 'a,
        formula: impl for<'g> FnMut(&Here<'g>, &NodeProto) -> Result<Named<'g>> + 'a,
    ) -> Self {
        self.formulas.push((Box::new(wanted), Box::new(formula)));
        self
    }

    /// Lets every node take what the formula makes of a tensor of the main graph in the place of the tensor, which
    /// stays the graph's output where it is one. A second formula for the same tensor takes what the first has made of
    /// it.
    pub fn behind(
        mut self,
        tensor: &str,
        formula: impl for<'g> FnMut(&Here<'g>, Expr<'g>) -> Result<Expr<'g>> + 'a,
    ) -> Self {
        self.behind.entry(tensor.to_owned()).or_default().push(Box::new(formula));
        self
    }

    /// As [`Rewrite::behind`], and where the tensor is an output of the graph, what the formula makes of it is that.
    pub fn in_place_of(
        mut self,
        tensor: &str,
        formula: impl for<'g> FnMut(&Here<'g>, Expr<'g>) -> Result<Expr<'g>> + 'a,
    ) -> Self {
        self.renamed.insert(tensor.to_owned());
        self.behind(tensor, formula)
    }

    /// Keeps names free that something else is to have.
    pub fn reserve(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.reserved.extend(names);
        self
    }

    /// Makes the changes. `operators` is what is known of operators: [`crate::rules::OPERATORS`].
    ///
    /// # Errors
    /// The model cannot be loaded, or a formula not be built: the errors of both, with the node or tensor; a tensor
    /// that the model does not have. The model is as it was then.
    pub fn apply(self, model: &mut ModelProto, operators: Operators) -> Result<Rewritten> {
        let missing: HashSet<String> = self.behind.keys().cloned().collect();
        let mut names = model.names();
        names.extend(self.reserved.iter().map(String::as_str));
        let mut changes = Changes {
            rewrite: self,
            names,
            missing,
            written: IdMap::default(),
            replaced: HashSet::new(),
            redirected: HashMap::new(),
        };
        let loaded = load_replacing(model, operators, &mut changes)?;
        if let Some(name) = changes.missing.iter().min() {
            anyhow::bail!("no tensor is called '{name}'");
        }
        let mut rewritten =
            Rewritten { warnings: loaded.warnings, nodes_added: changes.written.len(), demanded: Vec::new() };
        if let Some(graph) = &mut model.graph {
            changes.write_back(&loaded.graph, Graph::MAIN, graph, &mut rewritten.demanded);
            changes.rename(graph);
        }
        Ok(rewritten)
    }
}

/// What has been changed.
#[derive(Debug, Default)]
pub struct Rewritten {
    /// The model cannot be loaded.
    pub warnings: Vec<String>,
    /// How many nodes the formulas have written, in bodies once for each attempt to load them.
    pub nodes_added: usize,
    /// The outputs that nodes of the model have got because a formula needs them: the node, and the name of the output.
    pub demanded: Vec<(String, String)>,
}

/// A rewrite while the loader walks over the model.
struct Changes<'a> {
    rewrite: Rewrite<'a>,
    names: Names,
    /// The tensors that have not been come to yet.
    missing: HashSet<String>,
    /// The nodes that formulas have written.
    written: IdMap<NodeId, NodeProto>,
    /// The nodes that are replaced: the scope, and the number among its nodes.
    replaced: HashSet<(ScopeId, usize)>,
    /// What nodes take in the place of a tensor.
    redirected: HashMap<String, String>,
}

impl Replace for Changes<'_> {
    fn node(&mut self, place: Place<'_>, index: usize, node: &NodeProto) -> Result<Option<Replacement>> {
        let Some(k) = self.rewrite.formulas.iter().position(|(wanted, _)| wanted(node)) else { return Ok(None) };
        self.replaced.insert((place.scope, index));
        let scope = if node.name().is_empty() { self.rewrite.scope.clone() } else { node.name().to_owned() };
        let Some((_, formula)) = self.rewrite.formulas.get_mut(k) else { return Ok(None) };
        write(place, &scope, &mut self.names, &mut self.written, &mut |here| formula(here, node)).map(Some)
    }

    fn tensor(&mut self, place: Place<'_>, name: &str) -> Result<Option<ValueId>> {
        let Some(mut formulas) = self.rewrite.behind.remove(name) else { return Ok(None) };
        self.missing.remove(name);
        let scope = format!("{}/{name}", self.rewrite.scope);
        let result = self.names.fresh(scope.clone());
        let outputs = write(place, &scope, &mut self.names, &mut self.written, &mut |here| {
            let x = here.tensor(name)?;
            let behind = formulas.iter_mut().try_fold(x, |x, formula| formula(here, x))?;
            Ok(vec![(result.clone(), behind)])
        });
        let outputs = outputs.with_context(|| format!("behind '{name}'"))?;
        self.redirected.insert(name.to_owned(), result);
        Ok(outputs.first().map(|&(_, id)| id))
    }
}

/// Builds a formula in its place, and makes what it has written the model's own.
fn write(
    place: Place<'_>,
    name: &str,
    names: &mut Names,
    written: &mut IdMap<NodeId, NodeProto>,
    formula: &mut dyn for<'g> FnMut(&Here<'g>) -> Result<Named<'g>>,
) -> Result<Replacement> {
    let Place { graph, scope, scopes } = place;
    let (first, value, kept) = (graph.node_count(), graph.value_count(), graph.scope(scope).nodes.len());
    let builder = Builder::new(graph.take());
    let built = builder.within(scope, || {
        let outputs = formula(&Here { builder: &builder, scopes })?;
        let named = own(&builder, outputs);
        builder.take_error().map_or(Ok(named), Err)
    });
    *graph = builder.into_graph();
    let outputs = built?;
    let demanded: Vec<(ValueId, NodeId)> = graph.demanded(first, value).collect();
    let ids = outputs.iter().map(|(name, id)| (*id, name.clone())).collect();
    let Part { nodes, names: new } = write::part(graph, scope, name, ids, demanded, names);
    let node_names = nodes.iter().map(|(id, node)| (*id, Rc::from(node.name())));
    graph.adopt(scope, first, kept, node_names, new);
    written.extend(nodes);
    Ok(outputs)
}

/// The outputs as values that have no other name: one that has one, or that is another output too, gets a node of its
/// own.
fn own(builder: &Builder, outputs: Named<'_>) -> Replacement {
    let mut used = HashSet::new();
    let own = |(name, e): (String, Expr<'_>)| {
        let taken = !used.insert(e.id()) || {
            let graph = builder.graph();
            let value = graph.value(e.id());
            value.name.is_some() || value.scope != builder.scope() || graph.producer(e.id()).is_none()
        };
        (name.into(), if taken { builder.copy(e.id()) } else { e.id() })
    };
    outputs.into_iter().map(own).collect()
}

impl Changes<'_> {
    /// Gives what stands behind an output of the graph its name, and the output another, where that is asked for.
    fn rename(&mut self, graph: &mut GraphProto) {
        let outputs: Vec<&str> = graph.output.iter().map(|o| o.name()).collect();
        let mut renamed = HashMap::new();
        for (tensor, behind) in &self.redirected {
            if self.rewrite.renamed.contains(tensor) && outputs.contains(&tensor.as_str()) {
                renamed.insert(tensor.clone(), self.names.fresh(format!("{}/{tensor}/before", self.rewrite.scope)));
                renamed.insert(behind.clone(), tensor.clone());
            }
        }
        if renamed.is_empty() {
            return;
        }
        for node in &mut graph.node {
            node.redirect(&renamed);
            for output in &mut node.output {
                if let Some(new) = renamed.get(output) {
                    output.clone_from(new);
                }
            }
        }
    }

    /// Puts what has been written into the graph, each node where it has been loaded.
    fn write_back(
        &mut self,
        graph: &Graph,
        scope: ScopeId,
        proto: &mut GraphProto,
        demanded: &mut Vec<(String, String)>,
    ) {
        let nodes = std::mem::take(&mut proto.node);
        let kept = nodes.into_iter().enumerate().filter(|(i, _)| !self.replaced.contains(&(scope, *i)));
        let mut kept = kept.map(|(_, node)| node).collect::<Vec<_>>().into_iter();
        // The initializers of a body are nodes of its scope, the first ones.
        let scope = graph.scope(scope);
        for &id in scope.nodes.iter().skip(scope.constants) {
            if let Some(node) = self.written.remove(&id) {
                proto.node.push(node);
                continue;
            }
            let Some(mut node) = kept.next() else { continue };
            if !self.redirected.is_empty() {
                node.redirect(&self.redirected);
            }
            if let Some(name) = demand(graph, id, &mut node) {
                demanded.push((graph.describe(id), name));
            }
            for attribute in &mut node.attribute {
                let body = graph.node(id).bodies.iter().find(|(name, _)| **name == *attribute.name());
                if let (Some(&(_, inner)), Some(body)) = (body, attribute.g.as_mut()) {
                    self.write_back(graph, inner, body, demanded);
                }
            }
            proto.node.push(node);
        }
    }
}

/// Writes into a node the outputs that it has got since it was loaded; returns the name of one.
fn demand(graph: &Graph, id: NodeId, node: &mut NodeProto) -> Option<String> {
    let mut demanded = None;
    for (i, &output) in graph.node(id).outputs.iter().enumerate() {
        let Some(name) = output.and_then(|o| graph.value(o).name.as_deref()) else { continue };
        if node.output.get(i).is_none_or(|o| o.is_empty()) {
            node.output.resize(node.output.len().max(i + 1), String::new());
            node.output[i] = name.to_owned();
            demanded = Some(name.to_owned());
        }
    }
    demanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::text;
    use crate::rules::OPERATORS;

    const MODEL: &str = r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, bool c) => (float[2] y, float[2] n) <float[2] w = {1, 2}>
        {
            n = Neg (x)
            y = If (c) <
                then_branch = t () => (float[2] a) <float[2] k = {3, 4}> { m = Neg (n) p = Mul (m, k) a = Add (p, w) },
                else_branch = e () => (float[2] b) { b = Neg (w) }>
        }"#;

    fn operators(graph: &GraphProto) -> Vec<String> {
        let mut found: Vec<String> =
            graph.node.iter().map(|n| format!("{}({})", n.op_type(), n.input.join(","))).collect();
        found.extend(graph.node.iter().flat_map(NodeProto::bodies).flat_map(operators));
        found
    }

    #[test]
    fn formulas_stand_in_bodies_and_all_else_stays() {
        let mut model = text::parse(MODEL).unwrap();
        let before = model.graph.clone().unwrap();
        let rewrite = Rewrite::new("new").nodes(
            |node| node.is("Neg"),
            |here, node| Ok(vec![(node.output[0].clone(), here.input(node, 0)?.square())]),
        );
        rewrite.apply(&mut model, OPERATORS).unwrap();
        let graph = model.graph.unwrap();
        let expected = ["Mul(x,x)", "If(c)", "Mul(n,n)", "Mul(m,k)", "Add(p,w)", "Mul(w,w)"];
        assert_eq!(operators(&graph), expected);
        let body = |g: &GraphProto| g.node[1].bodies().next().cloned().unwrap();
        assert_eq!(body(&graph).initializer, body(&before).initializer);
        assert_eq!((graph.input, graph.output), (before.input, before.output));
    }

    #[test]
    fn what_stands_behind_a_tensor_is_taken_in_bodies_too() {
        let mut model = text::parse(MODEL).unwrap();
        let rewrite = Rewrite::new("new").behind("w", |_, w| Ok(w * 2.0)).behind("n", |_, n| Ok(n.square()));
        rewrite.apply(&mut model, OPERATORS).unwrap();
        let graph = model.graph.unwrap();
        let found = operators(&graph);
        for expected in ["Neg(x)", "Mul(n,n)", "Neg(new/n)", "Add(p,new/w)", "Neg(new/w)"] {
            assert!(found.iter().any(|f| f == expected), "{expected} in {found:?}");
        }
        assert_eq!(graph.output[1].name(), "n", "an output of the graph stays what it was");
        let mut model = text::parse(MODEL).unwrap();
        Rewrite::new("new").in_place_of("n", |_, n| Ok(n.square())).apply(&mut model, OPERATORS).unwrap();
        let graph = model.graph.unwrap();
        let expected =
            ["Neg(x)", "Mul(new/n/before,new/n/before)", "If(c)", "Neg(n)", "Mul(m,k)", "Add(p,w)", "Neg(w)"];
        assert_eq!(operators(&graph), expected);
        assert_eq!((graph.node[1].output[0].as_str(), graph.output[1].name()), ("n", "n"));
        let missing =
            Rewrite::new("new").behind("nothing", |_, x| Ok(x)).apply(&mut text::parse(MODEL).unwrap(), OPERATORS);
        assert_eq!(missing.unwrap_err().to_string(), "no tensor is called 'nothing'");
    }
}
