//! A loaded model on which requests write formulas, with what formulas of derivatives are made of: gradients of what is
//! there, the linear functions that derivatives are, and parts of the model computed again from other values.

use super::claim::Claim;
use super::{Derived, Entry, Vector};
use crate::backward::{Flow, Gradients, Opened, Pass, Unconnected, free_scope, names_of};
use crate::expr::{Builder, Expr};
use crate::graph::write::{self, Request};
use crate::graph::{Container, Fact, Graph, IdMap, IdSet, Loaded, NodeId, Origin, Producer, ValueId};
use crate::memory;
use crate::model::Model;
use crate::onnx::Names;
use crate::training::ending::{self, Domain};
use anyhow::{Context, Result, bail, ensure};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// A model under construction.
pub(super) struct Workspace {
    model: Model,
    builder: Builder,
    call: Gradients,
    /// The scope of all new names.
    scope: String,
    ys: Vec<ValueId>,
    xs: Vec<ValueId>,
    stops: IdSet<ValueId>,
    /// The names of ys, xs and stops, by which a request calls them.
    called: [Vec<String>; 3],
    names: HashMap<Rc<str>, ValueId>,
    taken: RefCell<Names>,
    inputs: RefCell<Vec<(ValueId, String)>>,
    warnings: Vec<String>,
}

impl Workspace {
    /// Over a loaded model, with the ys, xs and stops that a request names.
    ///
    /// # Errors
    /// Names of no tensor; ys and xs that hold no floating-point numbers; xs that depend on each other, for along them
    /// a derivative would count what lies between twice; seeds, which these requests choose themselves.
    pub fn open(call: &Gradients, model: Model) -> Result<Self> {
        ensure!(!call.has_seeds(), "seeds are given, which only gradients have");
        let Opened { model, loaded, ys, xs, stops, .. } = call.open(model)?;
        for (what, tensors) in [("ys", &ys), ("xs", &xs)] {
            ensure!(!tensors.is_empty(), "no {what} are given");
            for tensor in tensors {
                let fact = loaded.graph.fact(tensor.id);
                ensure!(
                    fact.may_carry_gradient(),
                    "{what}: '{}' is {}, and only real numbers have derivatives; name a floating-point tensor",
                    tensor.name,
                    match (fact.container, fact.element) {
                        (Container::Tensor, Some(element)) => format!("of type {}", element.name()),
                        (container, _) => container.name().to_owned(),
                    }
                );
            }
        }
        let [(ys, y_names), (xs, x_names), (stops, stop_names)] =
            [ys, xs, stops].map(|tensors| tensors.into_iter().map(|t| (t.id, t.name)).unzip());
        let called = [y_names, x_names, stop_names];
        let stops: IdSet<ValueId> = Vec::into_iter(stops).collect();
        apart(&loaded.graph, &xs, &stops)?;
        let taken = names_of(&loaded, &model.proto);
        let scope = free_scope(call.scope(), taken.iter());
        let Loaded { graph, names, warnings, .. } = loaded;
        Ok(Workspace {
            model,
            builder: Builder::new(graph),
            call: call.clone(),
            scope,
            ys,
            xs,
            stops,
            called,
            names,
            taken: RefCell::new(taken),
            inputs: RefCell::default(),
            warnings,
        })
    }

    /// What writes nodes.
    pub fn builder(&self) -> &Builder {
        &self.builder
    }

    /// The tensors that are differentiated.
    pub fn ys(&self) -> Vec<Expr<'_>> {
        self.ys.iter().map(|&y| self.builder.expr(y)).collect()
    }

    /// The tensors with respect to which is differentiated.
    pub fn xs(&self) -> Vec<Expr<'_>> {
        self.xs.iter().map(|&x| self.builder.expr(x)).collect()
    }

    /// Whether zeros stand for derivatives that there are not.
    pub fn fills_unconnected(&self) -> bool {
        self.call.unconnected == Unconnected::Zero
    }

    /// The tensor of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn tensor(&self, name: &str) -> Result<Expr<'_>> {
        let id = self.names.get(name).with_context(|| {
            let hint = crate::onnx::did_you_mean(name, self.names.keys().map(|n| &**n));
            format!("no tensor is called '{name}'{hint}")
        })?;
        Ok(self.builder.expr(*id))
    }

    /// A new input of the model, of what is known of it. Its name is made unique.
    pub fn input(&self, name: &str, fact: Fact) -> (Expr<'_>, String) {
        let name = self.taken.borrow_mut().fresh(format!("{}/{name}", self.scope));
        let id = self.builder.graph_mut().push_input(Graph::MAIN, None, Fact { value: None, ..fact });
        self.inputs.borrow_mut().push((id, name.clone()));
        (self.builder.expr(id), name)
    }

    /// A new input of the shape and type of each tensor, called after it: `<scope>/<what>/<tensor>`.
    pub fn vectors(&self, what: &str, like: &[Expr<'_>], names: &[String]) -> (Vec<Expr<'_>>, Vec<Vector>) {
        let vector = |(e, of): (&Expr<'_>, &String)| {
            let (input, name) = self.input(&format!("{what}/{of}"), e.fact());
            (input, Vector { of: of.clone(), name })
        };
        like.iter().zip(names).map(vector).unzip()
    }

    /// The gradients of `xs` from the seeds of ys, through all that is written; `None` for an x that is not connected.
    ///
    /// # Errors
    /// An operator on the way has no gradient.
    pub fn gradients<'g>(&'g self, seeds: &[(Expr<'g>, Expr<'g>)], xs: &[Expr<'g>]) -> Result<Vec<Option<Expr<'g>>>> {
        self.through(&self.nodes_from(0), seeds, xs)
    }

    /// Whether each operator's gradient is what its row in the table says, and none is stopped on its way.
    pub fn takes_rows_alone(&self) -> bool {
        let call = &self.call;
        self.stops.is_empty() && call.rules.is_empty() && call.functions.is_empty() && !call.straight_through
    }

    /// The gradients of xs from the seeds of ys, through a list of nodes in topological order.
    pub fn through<'g>(
        &'g self,
        nodes: &[NodeId],
        seeds: &[(Expr<'g>, Expr<'g>)],
        xs: &[Expr<'g>],
    ) -> Result<Vec<Option<Expr<'g>>>> {
        let ids: Vec<ValueId> = xs.iter().map(|x| x.id()).collect();
        let found: Vec<Option<ValueId>> = {
            let pass = Pass::new(&self.builder, self.call.aggregation, self.stops.clone(), &self.call.rules)
                .with_functions(&self.call.functions)
                .with_straight_through(self.call.straight_through);
            let seeds: Vec<_> = seeds.iter().map(|(y, dy)| (y.id(), *dy)).collect();
            let flows = pass.differentiate(nodes, &seeds, &ids)?;
            let id = |(flow, x): (&Option<Flow<'_>>, &Expr<'_>)| {
                Some(match flow.as_ref()? {
                    Flow::Value(dx) => dx.id(),
                    Flow::Zero => x.zeros_like().id(),
                })
            };
            flows.iter().zip(xs).map(id).collect()
        };
        self.check()?;
        Ok(found.into_iter().map(|id| id.map(|id| self.builder.expr(id))).collect())
    }

    /// The y of a request that is about one.
    ///
    /// # Errors
    /// There are several.
    pub fn only_y(&self) -> Result<Expr<'_>> {
        let [y] = self.ys[..] else {
            bail!("{} ys are given ({}); name the one with the scores (--ys)", self.ys.len(), self.called[0].join(", "))
        };
        Ok(self.builder.expr(y))
    }

    /// Takes the scores before it for a y that a Softmax computes, and says so in a warning.
    ///
    /// # Errors
    /// A Softmax over several axes.
    pub fn take_off_softmax(&mut self) -> Result<()> {
        for i in 0..self.ys.len() {
            let (y, name) = (self.ys[i], &self.called[0][i]);
            let Some(ending) = ending::find(&self.builder, (name, y), Domain::Logits)? else { continue };
            let before = ending.x.id();
            self.warnings.push(format!("the scores are those before the {} that computes '{name}'", ending.op));
            self.ys[i] = before;
        }
        Ok(())
    }

    /// The name of a tensor of the model.
    pub fn name_of(&self, e: Expr<'_>) -> String {
        self.builder.graph().value(e.id()).name.as_deref().unwrap_or_default().to_owned()
    }

    /// The last tensor of the model between x and y that has as many axes as x, and more than one place along those
    /// behind the second.
    pub fn last_like<'g>(&'g self, x: Expr<'g>, y: Expr<'g>) -> Option<Expr<'g>> {
        let rank = x.fact().rank().filter(|&rank| rank > 2)?;
        let between = self.depending(0, &[x], &[y]);
        let graph = self.builder.graph();
        let fits = |&v: &ValueId| {
            let fact = graph.fact(v);
            let places = fact.shape.as_ref().filter(|s| s.len() == rank).and_then(|s| s.get(2..).map(<[_]>::to_vec));
            graph.value(v).name.is_some()
                && fact.may_carry_gradient()
                && places.is_some_and(|p| p.iter().any(|d| d.known() != Some(1)))
        };
        let found = between.iter().rev().find_map(|&id| graph.node(id).outputs.iter().flatten().copied().find(fits));
        found.map(|id| self.builder.expr(id))
    }

    /// The gradients of the sum of all elements of the ys, one for each x.
    ///
    /// # Errors
    /// An operator on the way has no gradient.
    pub fn gradients_of_sum(&self) -> Result<Vec<Option<Expr<'_>>>> {
        let seeds: Vec<_> = self.ys().into_iter().map(|y| (y, y.ones_like())).collect();
        self.gradients(&seeds, &self.xs())
    }

    fn nodes_from(&self, first: usize) -> Vec<NodeId> {
        self.builder.graph().scope(Graph::MAIN).nodes.get(first..).unwrap_or_default().to_vec()
    }

    fn node_count(&self) -> usize {
        self.builder.graph().scope(Graph::MAIN).nodes.len()
    }

    /// A tensor of which only type and shape count: those of another one.
    fn stand_in<'g>(&'g self, like: Expr<'g>) -> Expr<'g> {
        let id = self.builder.copy(like.id());
        self.builder.graph_mut().fact_mut(id).value = None;
        self.builder.expr(id)
    }

    /// The vector-Jacobian product as a function of the vectors, one for each y: `v -> vJ`, one for each x.
    ///
    /// # Errors
    /// An operator on the way has no gradient.
    pub fn reverse<'g>(&'g self, ys: &[Expr<'g>], xs: &[Expr<'g>]) -> Result<Linear<'g>> {
        let first = self.node_count();
        let from: Vec<Expr<'g>> = ys.iter().map(|y| self.stand_in(*y)).collect();
        let seeds: Vec<_> = ys.iter().copied().zip(from.iter().copied()).collect();
        let to = self.gradients(&seeds, xs)?;
        Ok(self.linear(first, from, to))
    }

    /// The Jacobian-vector product as a function of the vectors, one for each x: `u -> Ju`, one for each y. It is the
    /// gradient of `vJ` with respect to `v`, in which `v` itself does not occur since `vJ` is linear.
    ///
    /// # Errors
    /// An operator on the way has no gradient.
    pub fn forward<'g>(&'g self, ys: &[Expr<'g>], xs: &[Expr<'g>]) -> Result<Linear<'g>> {
        let transposed = self.reverse(ys, xs)?;
        let first = self.node_count();
        let from: Vec<Expr<'g>> = xs.iter().map(|x| self.stand_in(*x)).collect();
        let seeds: Vec<_> = transposed.to.iter().zip(&from).filter_map(|(g, u)| Some(((*g)?, *u))).collect();
        let to = self.through(&self.nodes_from(transposed.first), &seeds, &transposed.from)?;
        Ok(self.linear(first, from, to))
    }

    fn linear<'g>(&'g self, first: usize, from: Vec<Expr<'g>>, to: Vec<Option<Expr<'g>>>) -> Linear<'g> {
        let nodes = self.depending(first, &from, &to.iter().copied().flatten().collect::<Vec<_>>());
        Linear { workspace: self, first, from, to, nodes }
    }

    /// The nodes of the main graph, from a place on, on which one of `to` depends and which depend on one of `from`.
    pub fn depending(&self, first: usize, from: &[Expr<'_>], to: &[Expr<'_>]) -> Vec<NodeId> {
        let graph = self.builder.graph();
        let all = graph.scope(Graph::MAIN).nodes.get(first..).unwrap_or_default();
        let mut below: IdSet<ValueId> = from.iter().map(|e| e.id()).collect();
        let mut path = Vec::new();
        for &id in all {
            let node = graph.node(id);
            let depends = node.inputs.iter().flatten().any(|v| below.contains(v))
                || (!node.bodies.is_empty() && graph.captures(id).iter().any(|v| below.contains(v)));
            let given = node.outputs.iter().flatten().any(|o| from.iter().any(|e| e.id() == *o));
            if depends && !given {
                below.extend(node.outputs.iter().flatten());
                path.push(id);
            }
        }
        let mut above: IdSet<ValueId> = to.iter().map(|e| e.id()).collect();
        let mut needed = Vec::new();
        for id in path.into_iter().rev() {
            let node = graph.node(id);
            if node.outputs.iter().flatten().any(|o| above.contains(o)) {
                above.extend(node.inputs.iter().flatten());
                above.extend(graph.captures(id));
                needed.push(id);
            }
        }
        needed.reverse();
        needed
    }

    /// What `to` would be if each of `from` had another value: all that lies between, once more, in the current scope.
    pub fn again<'g>(&'g self, from: &[(Expr<'g>, Expr<'g>)], to: &[Expr<'g>]) -> Vec<Expr<'g>> {
        let old: Vec<Expr<'g>> = from.iter().map(|(old, _)| *old).collect();
        let nodes = self.depending(0, &old, to);
        self.copy(&nodes, from, to)
    }

    /// The gradients of the sum of ys with respect to xs if each of `from` had another value: the model and its
    /// gradient once more, in the current scope, with what is known of the sizes of the other values.
    ///
    /// # Errors
    /// The model does not take them, or has an operator without a gradient.
    pub fn gradients_of_sum_again<'g>(
        &'g self,
        from: &[(Expr<'g>, Expr<'g>)],
        ys: &[Expr<'g>],
        xs: &[Expr<'g>],
    ) -> Result<Vec<Option<Expr<'g>>>> {
        // What depends on an x alone leads from it to ys, too.
        let given: Vec<_> = from.iter().copied().chain(xs.iter().map(|&x| (x, x))).collect();
        let old: Vec<Expr<'g>> = given.iter().map(|(old, _)| *old).collect();
        let nodes = self.depending(0, &old, ys);
        let before = self.builder.graph().scope(self.builder.scope()).nodes.len();
        let ys = self.copy(&nodes, &given, ys);
        self.check()?;
        let copies = self.builder.graph().scope(self.builder.scope()).nodes.get(before..).unwrap_or_default().to_vec();
        let seeds: Vec<_> = ys.into_iter().map(|y| (y, y.ones_like())).collect();
        self.through(&copies, &seeds, xs)
    }

    /// The inputs of the model on which ys depend, in its order.
    pub fn inputs_behind(&self) -> Vec<Expr<'_>> {
        let graph = self.builder.graph();
        let sources = graph.sources(&self.ys);
        let inputs = graph.scope(Graph::MAIN).inputs.iter().filter(|i| sources.contains(i));
        inputs.map(|&id| self.builder.expr(id)).collect()
    }

    /// What `to` would be if each of `from` had another value, `nodes` being all that lies between.
    pub fn copy<'g>(&'g self, nodes: &[NodeId], from: &[(Expr<'g>, Expr<'g>)], to: &[Expr<'g>]) -> Vec<Expr<'g>> {
        let mut map: IdMap<ValueId, ValueId> = from.iter().map(|(old, new)| (old.id(), new.id())).collect();
        self.builder.copy_all(nodes, &mut map);
        to.iter().map(|e| self.builder.expr(map.get(&e.id()).copied().unwrap_or(e.id()))).collect()
    }

    /// What could not be built.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<()> {
        self.builder.take_error().map_or(Ok(()), Err)
    }

    /// A tensor as an output of the model, of the name `<scope>/<name>`, with what is known of its type and shape. It
    /// has a node of its own where it is not one that this workspace has written, or is an output already.
    pub fn output(&self, outputs: &mut Vec<(ValueId, String)>, e: Expr<'_>, name: &str, fact: Fact) -> String {
        let own = {
            let graph = self.builder.graph();
            let producer = graph.value(e.id()).producer;
            matches!(producer, Producer::Node(n, _) if matches!(graph.node(n).origin, Origin::Backward(_)))
        };
        let free = own && !outputs.iter().any(|(id, _)| *id == e.id());
        let id = if free { e.id() } else { self.builder.copy(e.id()) };
        {
            let mut graph = self.builder.graph_mut();
            let known = graph.fact_mut(id);
            known.element = fact.element.or(known.element);
            known.shape = fact.shape.or_else(|| known.shape.clone());
        }
        let name = self.taken.borrow_mut().fresh(format!("{}/{name}", self.scope));
        outputs.push((id, name.clone()));
        name
    }

    /// Writes the outputs behind the model, and says what came of the request.
    ///
    /// # Errors
    /// Something could not be built.
    pub fn finish(
        self,
        outputs: Vec<(ValueId, String)>,
        entries: Vec<Entry>,
        vectors: Vec<Vector>,
        claim: Claim,
    ) -> Result<Derived> {
        let own: HashSet<String> = outputs.iter().map(|(_, name)| name.clone()).collect();
        let (call, scope) = (self.call.clone(), self.scope.clone());
        let [ys, xs, stops] = self.called.clone();
        let (mut model, nodes_added, warnings) = self.write(outputs)?;
        let claim = Claim {
            name: scope,
            ys,
            xs,
            stops,
            straight_through: call.straight_through,
            outputs: entries.clone(),
            vectors: vectors.clone(),
            ..claim
        };
        claim.attach(&mut model.proto)?;
        let mut derived = Derived { model, outputs: entries, vectors, nodes_added, warnings, claim, own };
        if call.only_gradients {
            derived.drop_model_outputs();
        }
        Ok(derived)
    }

    /// Writes the outputs behind the model: returned with the number of new nodes, and warnings.
    ///
    /// # Errors
    /// Something could not be built.
    pub fn write(self, outputs: Vec<(ValueId, String)>) -> Result<(Model, usize, Vec<String>)> {
        self.check()?;
        let Workspace { mut model, builder, call, scope, taken, inputs, mut warnings, .. } = self;
        let (nodes, ends) = {
            let graph = builder.graph();
            let results: Vec<ValueId> = outputs.iter().map(|&(v, _)| v).collect();
            let own = if call.only_gradients { &[][..] } else { &graph.scope(Graph::MAIN).outputs };
            (write::needed(&graph, results.iter().copied()), [&results, own].concat())
        };
        let (steps, _) = memory::schedule(&builder, nodes, &ends, memory::Again::Nothing)?;
        let request = Request { name: scope, inputs: inputs.into_inner(), outputs, steps, colocate: call.colocate };
        let written = write::write(&builder.graph(), &mut model.proto, &request, taken.into_inner())?;
        for (node, output) in &written.demanded {
            warnings.push(format!("{node} has got the output '{output}', which its gradient needs"));
        }
        Ok((model, written.nodes, warnings))
    }

    /// The request's own names.
    pub fn names(&self) -> (Vec<String>, Vec<String>) {
        (self.called[0].clone(), self.called[1].clone())
    }
}

/// A linear function of tensors, written out as nodes behind stand-ins for them.
pub(super) struct Linear<'g> {
    workspace: &'g Workspace,
    /// The place of the first of its nodes in the main graph.
    first: usize,
    /// The stand-ins.
    from: Vec<Expr<'g>>,
    /// What comes out; `None` for what does not depend on anything that goes in.
    to: Vec<Option<Expr<'g>>>,
    /// The nodes that depend on what goes in: all others are computed once, however often the function is.
    nodes: Vec<NodeId>,
}

impl<'g> Linear<'g> {
    /// The value at some tensors, written into the current scope.
    pub fn at(&self, values: &[Expr<'g>]) -> Vec<Option<Expr<'g>>> {
        let from: Vec<_> = self.from.iter().copied().zip(values.iter().copied()).collect();
        let to: Vec<Expr<'g>> = self.to.iter().copied().flatten().collect();
        let mut copies = self.workspace.copy(&self.nodes, &from, &to).into_iter();
        self.to.iter().map(|e| e.and_then(|_| copies.next())).collect()
    }

    /// What comes out, for the stand-ins: `None` where it does not depend on what goes in.
    pub fn outputs(&self) -> &[Option<Expr<'g>>] {
        &self.to
    }

    /// How many nodes one evaluation is.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }
}

/// Ensures that no x depends on another.
fn apart(graph: &Graph, xs: &[ValueId], stops: &IdSet<ValueId>) -> Result<()> {
    let name = |v: ValueId| graph.value(v).name.as_deref().unwrap_or_default().to_owned();
    let mut source: IdMap<ValueId, ValueId> = IdMap::default();
    for &x in xs {
        ensure!(source.insert(x, x).is_none(), "xs: '{}' is named twice", name(x));
    }
    let own: IdSet<ValueId> = xs.iter().copied().collect();
    for &id in &graph.scope(Graph::MAIN).nodes {
        let node = graph.node(id);
        let captures = graph.captures(id);
        let mut inputs = node.inputs.iter().flatten().chain(&captures);
        let passes =
            |v: &&ValueId| source.contains_key(v) && !stops.contains(v) && graph.fact(**v).may_carry_gradient();
        let Some(&from) = inputs.find(passes) else { continue };
        let x = source[&from];
        for &output in node.outputs.iter().flatten() {
            if own.contains(&output) && !stops.contains(&output) && graph.fact(output).may_carry_gradient() {
                bail!(
                    "xs overlap: '{}' depends on '{}', so that the way between them would count twice; leave one out, or \
                     hold '{}' constant (--stop-gradients)",
                    name(output),
                    name(x),
                    name(output)
                );
            }
            source.entry(output).or_insert(x);
        }
    }
    Ok(())
}
