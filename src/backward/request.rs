//! A call of tf.gradients: what is asked for, and what comes of it.

use super::select::{Selection, free_scope, nearest};
use super::{Aggregation, Flow, Pass};
use crate::error::Error;
use crate::expr::{Builder, Expr};
use crate::graph::write::{self, Request};
use crate::graph::{self, Fact, Graph, IdMap, IdSet, Loaded, Origin, Producer, ValueId};
use crate::model::Model;
use crate::onnx::inline::inline_functions;
use crate::onnx::{
    ElementType, FunctionProto, GraphProto, ModelProto, Names, NodeProto, TensorProto, canonical_domain,
};
use crate::record::{Gradient, Record, SeedOf};
use crate::rules::{Rule, operators_with};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

/// The gradient that a y starts with.
#[expect(clippy::large_enum_variant, reason = "there is one for each y")]
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Seed {
    /// Ones: the derivative of the sum of y's elements.
    #[default]
    Ones,
    /// A number in every place.
    Fill(f64),
    /// A new graph input of y's type and shape, of that name or of one that is made up.
    Input(Option<String>),
    /// A tensor of the graph, which counts as a constant in this call.
    Tensor(String),
    /// A constant.
    Constant(TensorProto),
}

/// What stands for the gradient of an x that no y depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unconnected {
    /// Nothing.
    #[default]
    None,
    /// Zeros of x's type and shape.
    Zero,
}

/// A request for gradients, as of tf.gradients: the sum of the derivatives of ys with respect to each of xs.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    pub(crate) ys: Vec<String>,
    pub(crate) xs: Vec<String>,
    pub(crate) seeds: Vec<Seed>,
    /// What seeds were given for that is no y.
    pub(crate) misplaced: Vec<String>,
    pub(crate) stops: Vec<String>,
    /// The scope of all new names; `None` for that of the request.
    pub(crate) name: Option<String>,
    pub(crate) aggregation: Aggregation,
    pub(crate) unconnected: Unconnected,
    pub(crate) colocate: bool,
    pub(crate) only_gradients: bool,
    pub(crate) rules: Vec<Rule>,
    pub(crate) functions: Vec<FunctionProto>,
    pub(crate) straight_through: bool,
}

/// A model with gradients.
#[derive(Clone, Debug)]
pub struct Output {
    /// The model as it was, with the backward nodes behind its own, and a graph output for each gradient.
    pub model: Model,
    /// The gradients, in the order of the xs.
    pub gradients: Vec<Gradient>,
    /// The seeds, in the order of the ys.
    pub seeds: Vec<SeedOf>,
    /// How many nodes have been added.
    pub nodes_added: usize,
    /// What users should know.
    pub warnings: Vec<String>,
    /// The call as the model's metadata keep it.
    pub record: Record,
}

impl Output {
    /// Drops the model's own outputs, with what only they need. What is left computes the gradients all the same, but
    /// can no longer be compared with the ys.
    pub fn drop_model_outputs(&mut self) {
        let kept: HashSet<&str> = self.gradients.iter().filter_map(|g| g.name.as_deref()).collect();
        if let Some(graph) = &mut self.model.proto.graph {
            graph.output.retain(|o| kept.contains(o.name()));
        }
        self.model.proto.prune();
    }
}

impl Gradients {
    /// The derivatives of `ys` with respect to `xs`, which are tensors of the main graph: inputs, initializers, node
    /// outputs.
    pub fn new<Y: Into<String>, X: Into<String>>(
        ys: impl IntoIterator<Item = Y>,
        xs: impl IntoIterator<Item = X>,
    ) -> Self {
        Gradients {
            ys: ys.into_iter().map(Into::into).collect(),
            xs: xs.into_iter().map(Into::into).collect(),
            ..Gradients::default()
        }
    }

    /// One more x.
    pub fn with_respect_to(mut self, x: impl Into<String>) -> Self {
        self.xs.push(x.into());
        self
    }

    /// Seeds for all ys, in their order. Without any, each is [`Seed::Ones`].
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = Seed>) -> Self {
        self.seeds = seeds.into_iter().collect();
        self
    }

    /// The seed of one y. The others keep theirs. That no y has the name is an error of [`Gradients::build`].
    pub fn seed(mut self, y: &str, seed: Seed) -> Self {
        if !self.ys.iter().any(|name| name == y) {
            self.misplaced.push(y.to_owned());
        }
        self.seeds.resize(self.ys.len().max(self.seeds.len()), Seed::Ones);
        for (name, slot) in self.ys.iter().zip(&mut self.seeds) {
            if name == y {
                *slot = seed.clone();
            }
        }
        self
    }

    /// Tensors that no gradient passes: they count as constants.
    pub fn stop<S: Into<String>>(mut self, stops: impl IntoIterator<Item = S>) -> Self {
        self.stops.extend(stops.into_iter().map(Into::into));
        self
    }

    /// The scope of all new names; made unique where the model has names in it.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The scope of all new names where none is given.
    pub(crate) fn named_by_default(mut self, name: &str) -> Self {
        self.name.get_or_insert_with(|| name.to_owned());
        self
    }

    /// The scope of all new names.
    pub(crate) fn scope(&self) -> &str {
        self.name.as_deref().unwrap_or("gradients")
    }

    /// How gradients that arrive at one tensor are summed.
    pub fn aggregation(mut self, aggregation: Aggregation) -> Self {
        self.aggregation = aggregation;
        self
    }

    /// What stands for the gradient of an x that no y depends on.
    pub fn unconnected(mut self, unconnected: Unconnected) -> Self {
        self.unconnected = unconnected;
        self
    }

    /// Whether backward nodes take over the devices and the placement metadata of their forward nodes.
    pub fn colocate(mut self, colocate: bool) -> Self {
        self.colocate = colocate;
        self
    }

    /// Whether the model's own outputs go, with what only they need.
    pub fn only_gradients(mut self, only: bool) -> Self {
        self.only_gradients = only;
        self
    }

    /// A row of one's own, for an operator of one's own or in place of the table's. What it says of the outputs' facts
    /// counts where the request loads the model itself ([`Gradients::build`]).
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Gradients for operators, as ONNX functions of the operators' own domains and names. Their inputs are the node's
    /// inputs, its outputs, and the gradients of those; their outputs are the gradients of the inputs, in their order.
    pub fn functions(mut self, functions: impl IntoIterator<Item = FunctionProto>) -> Self {
        self.functions.extend(functions);
        self
    }

    /// Whether rounding in quantization counts as the identity, as it does in training by custom (the straight-through
    /// estimate): what lies within the range of the integers passes its gradient on, and integers carry gradients of
    /// floating-point type through what moves them. Round, Floor and Ceil pass theirs, too. Otherwise derivatives are
    /// the true ones, and nothing passes integers.
    pub fn straight_through(mut self, straight_through: bool) -> Self {
        self.straight_through = straight_through;
        self
    }

    /// Appends the gradients to a model.
    ///
    /// # Errors
    /// Names of no tensor, seeds that do not fit their ys, operators on a path from a y to an x without a gradient, and
    /// models that contradict themselves.
    pub fn build(&self, model: &Model) -> Result<Output, Error> {
        self.build_loaded(model.clone(), self.load(&model.proto)?)
    }

    /// Appends the gradients to a model that has been loaded already, without copying it.
    ///
    /// # Errors
    /// As [`Gradients::build`].
    pub(crate) fn build_loaded(&self, model: Model, loaded: Loaded) -> Result<Output, Error> {
        Ok(self.appended(model, loaded)?)
    }

    fn appended(&self, model: Model, loaded: Loaded) -> Result<Output> {
        if let Some(name) = self.misplaced.first() {
            let near = nearest(name, self.ys.iter().map(String::as_str)).map(|y| format!("did you mean '{y}'?"));
            let hint = near.as_ref().map(|near| format!("; {near}")).unwrap_or_default();
            let error = Error::name(format_args!("a seed is given for '{name}', which is none of the ys{hint}"));
            return Err(error.with_tensor(name).with_remedy(near).into());
        }
        let (mut model, loaded) = self.inlined(model, loaded)?;
        let selection = Selection::new(&loaded);
        let found = [("ys", &self.ys), ("xs", &self.xs), ("stop_gradients", &self.stops)]
            .map(|(what, names)| selection.find(what, names));
        let [ys, xs, stops] = all_or_errors(found)?;
        let (given, wanted) = (self.seeds.len(), ys.len());
        if given != 0 && given != wanted {
            return Err(Error::usage(format_args!("{given} grad_ys are given for {wanted} ys")).into());
        }
        let names = names_of(&loaded, &model.proto);
        let scope = free_scope(self.scope(), names.iter());
        let seed_tensors = self.seed_tensors(&selection)?;
        let Loaded { graph, mut warnings, names: by_name, .. } = loaded;
        drop(by_name);
        let forward: Vec<_> = graph.scope(Graph::MAIN).nodes.clone();
        let builder = Builder::new(graph);
        let mut call = Building { builder: &builder, scope: &scope, taken: names, inputs: Vec::new() };

        let mut seeded = Vec::new();
        for (i, &y) in ys.iter().enumerate() {
            let given = self.seeds.get(i);
            let seed = call.seed(y, &self.ys[i], given, seed_tensors.get(i).copied().flatten());
            match seed.with_context(|| format!("the seed of y '{}'", self.ys[i]))? {
                Some(seed) => seeded.push((y, seed)),
                None => {
                    warnings.push(format!("y '{}' is not of a floating-point type and has no gradient", self.ys[i]))
                }
            }
        }
        let pass = Pass::new(&builder, self.aggregation, stops.into_iter().collect(), &self.rules)
            .with_functions(&self.functions)
            .with_straight_through(self.straight_through);
        let flows = pass.differentiate(&forward, &seeded, &xs)?;
        for node in pass.shut_nodes(&ys) {
            warnings.push(format!("{node} passes no gradient to the quantized integers that it takes"));
        }
        let outputs = call.outputs(&xs, &self.xs, &flows, self.unconnected)?;
        if let Some(error) = builder.take_error() {
            return Err(error);
        }
        let Building { taken, inputs, .. } = call;
        let gradients: Vec<Gradient> = self
            .xs
            .iter()
            .zip(&outputs)
            .map(|(x, o)| Gradient { x: x.clone(), name: o.as_ref().map(|(_, name)| name.clone()) })
            .collect();
        let mut distinct: Vec<(ValueId, String)> = Vec::new();
        let mut seen = HashSet::new();
        distinct.extend(outputs.into_iter().flatten().filter(|(_, name)| seen.insert(name.clone())));
        // A seed that is given may be folded into what is multiplied by it; who checks the gradients later needs it.
        let constant = |y: &ValueId| {
            let of = |(i, other): (usize, &ValueId)| other == y && matches!(self.seeds.get(i), Some(Seed::Constant(_)));
            ys.iter().enumerate().any(of)
        };
        let seeded: Vec<(ValueId, ValueId)> = seeded.iter().map(|(y, seed)| (*y, seed.id())).collect();
        let kept = seeded.iter().filter(|(y, _)| constant(y)).map(|(_, seed)| *seed).collect();
        let request = Request { name: scope.clone(), inputs, outputs: distinct, kept, colocate: self.colocate };
        let proto = &mut model.proto;
        // What the builder and the pass have kept of nodes goes before these are written.
        let graph = builder.into_graph();
        let written = write::write(&graph, proto, &request, taken)?;
        for (node, output) in &written.demanded {
            warnings.push(format!("{node} has got the output '{output}', which its gradient needs"));
        }
        let seeds = self.seeds_of(&graph, &ys, &seeded, &written.names);
        let record = Record {
            name: scope.clone(),
            gradients: gradients.clone(),
            seeds: seeds.clone(),
            stops: self.stops.clone(),
            straight_through: self.straight_through,
        };
        record.attach(proto)?;
        let mut output = Output { model, gradients, seeds, nodes_added: written.nodes, warnings, record };
        if self.only_gradients {
            output.drop_model_outputs();
        }
        Ok(output)
    }

    /// Loads a model with what the table and the request's own rows say of operators.
    fn load(&self, model: &ModelProto) -> Result<Loaded> {
        graph::load(model, operators_with(&self.rules))
    }

    /// The model with those calls of model-local functions written out that lie between an x and a y.
    pub(crate) fn inlined(&self, mut model: Model, mut loaded: Loaded) -> Result<(Model, Loaded)> {
        let calls = self.calls_on_a_path(&model.proto, &loaded)?;
        if !calls.is_empty() {
            let wanted = |node: &NodeProto| node.output.iter().any(|o| calls.contains(o.as_str()));
            let notes = inlined_calls(&model.proto, &calls);
            model.proto = inline_functions(&model.proto, &wanted)?;
            loaded = self.load(&model.proto)?;
            loaded.warnings.extend(notes);
        }
        Ok((model, loaded))
    }

    /// The outputs of those calls of model-local functions that lie between an x and a y: only their insides have
    /// gradients.
    fn calls_on_a_path(&self, model: &ModelProto, loaded: &Loaded) -> Result<HashSet<Rc<str>>> {
        if model.functions.is_empty() {
            return Ok(HashSet::new());
        }
        let selection = Selection::new(loaded);
        let (ys, xs) = (selection.find("ys", &self.ys)?, selection.find("xs", &self.xs)?);
        let names: HashSet<(&str, &str)> =
            model.functions.iter().map(|f| (canonical_domain(f.domain()), f.name())).collect();
        Ok(selection.between(&xs, &ys, &|node| names.contains(&(&*node.domain, &*node.op_type))))
    }

    fn seed_tensors(&self, selection: &Selection) -> Result<Vec<Option<ValueId>>> {
        let names: Vec<String> = self
            .seeds
            .iter()
            .filter_map(|s| match s {
                Seed::Tensor(name) => Some(name.clone()),
                _ => None,
            })
            .collect();
        let mut found = selection.find("grad_ys", &names)?.into_iter();
        Ok(self.seeds.iter().map(|s| if matches!(s, Seed::Tensor(_)) { found.next() } else { None }).collect())
    }

    /// The seeds as they are reported: a tensor or input of the written model, or a number.
    fn seeds_of(
        &self,
        graph: &Graph,
        ys: &[ValueId],
        seeded: &[(ValueId, ValueId)],
        names: &IdMap<ValueId, Rc<str>>,
    ) -> Vec<SeedOf> {
        let mut seeded = seeded.iter().peekable();
        let seed_of = |(i, &y): (usize, &ValueId)| {
            let given = self.seeds.get(i).unwrap_or(&Seed::Ones);
            let seed = seeded.next_if(|(of, _)| *of == y).map(|(_, seed)| *seed);
            let name = seed.and_then(|seed| {
                let name = graph.value(seed).name.as_ref().or_else(|| names.get(&seed))?;
                Some(name.as_ref().to_owned())
            });
            let fill = match given {
                Seed::Ones if seed.is_some() => Some(1.0),
                Seed::Fill(v) => Some(*v),
                _ => None,
            };
            SeedOf { y: self.ys[i].clone(), seed: name, fill }
        };
        ys.iter().enumerate().map(seed_of).collect()
    }
}

/// The names and inputs of a call while it is being built.
struct Building<'g, 's> {
    builder: &'g Builder,
    scope: &'s str,
    taken: Names,
    inputs: Vec<(ValueId, String)>,
}

impl<'g> Building<'g, '_> {
    /// The seed of a y; `None` where y has no gradient.
    fn seed(
        &mut self,
        y: ValueId,
        name: &str,
        given: Option<&Seed>,
        tensor: Option<ValueId>,
    ) -> Result<Option<Expr<'g>>> {
        let expr = self.builder.expr(y);
        let fact = expr.fact();
        if !fact.may_carry_gradient() {
            ensure!(
                given.is_none(),
                "y is of type {}, which has no gradient",
                fact.element.map(ElementType::name).unwrap_or_default()
            );
            return Ok(None);
        }
        let called = match given {
            Some(Seed::Tensor(name)) => format!("'{name}'"),
            Some(Seed::Constant(tensor)) if !tensor.name().is_empty() => format!("'{}'", tensor.name()),
            _ => "the seed".to_owned(),
        };
        let seed = match given.unwrap_or(&Seed::Ones) {
            Seed::Ones => expr.ones_like(),
            Seed::Fill(value) => {
                let element = expr.element()?;
                let rounded = TensorProto::from_floats(element, &[1], &[*value])?.floats()?;
                ensure!(
                    rounded.iter().all(|v| v.is_finite()),
                    "{value} is no finite number of type {}",
                    element.name()
                );
                expr.full_like(*value)
            }
            Seed::Tensor(_) => self.builder.expr(tensor.context("its tensor is not known")?),
            Seed::Constant(value) => {
                let element = expr.element()?;
                ensure!(
                    value.element_type() == element,
                    "{called} is of type {}, y of type {}",
                    value.element_type().name(),
                    element.name()
                );
                let values = value.floats()?;
                self.builder.numbers(&values, &value.dims, element)
            }
            Seed::Input(wanted) => {
                let base = wanted.clone().unwrap_or_else(|| format!("{}/grad_ys/{name}", self.scope));
                if wanted.is_some() {
                    ensure!(!self.taken.contains(&base), "the model has a tensor called '{base}' already");
                }
                let unique = self.taken.fresh(base);
                let input = Fact { value: None, ..fact.clone() };
                let id = self.builder.graph_mut().push_input(Graph::MAIN, None, input);
                self.inputs.push((id, unique));
                self.builder.expr(id)
            }
        };
        if let Some(error) = self.builder.take_error() {
            return Err(error);
        }
        self.check(&called, &fact, &seed.fact())?;
        Ok(Some(seed))
    }

    fn check(&self, called: &str, y: &Fact, seed: &Fact) -> Result<()> {
        if let (Some(a), Some(b)) = (y.element, seed.element) {
            ensure!(a == b, "{called} is of type {}, y of type {}", b.name(), a.name());
        }
        if let (Some(a), Some(b)) = (&y.shape, &seed.shape) {
            let same = a.len() == b.len()
                && a.iter().zip(b.iter()).all(|(a, b)| a.known().zip(b.known()).is_none_or(|(a, b)| a == b));
            let graph = self.builder.graph();
            ensure!(same, "{called} has shape {}, y has shape {}", graph.dims.display(b), graph.dims.display(a));
        }
        Ok(())
    }

    /// For each x the value that holds its gradient, and the name of the graph output. One x named twice has one
    /// output.
    fn outputs(
        &mut self,
        xs: &[ValueId],
        names: &[String],
        flows: &[Option<Flow<'g>>],
        unconnected: Unconnected,
    ) -> Result<Vec<Option<(ValueId, String)>>> {
        let mut of_x: IdMap<ValueId, Option<(ValueId, String)>> = IdMap::default();
        let mut used = IdSet::default();
        let mut outputs = Vec::with_capacity(xs.len());
        for ((&x, name), flow) in xs.iter().zip(names).zip(flows) {
            if let Some(known) = of_x.get(&x) {
                outputs.push(known.clone());
                continue;
            }
            let expr = self.builder.expr(x);
            // Integers that carry gradients on the way to another x have none to be given out.
            let gradient = match flow.filter(|_| expr.fact().may_carry_gradient()) {
                Some(Flow::Value(dx)) => Some(dx),
                Some(Flow::Zero) => Some(expr.zeros_like()),
                None if unconnected == Unconnected::Zero && expr.fact().element.is_some() => Some(expr.zeros_like()),
                None => None,
            };
            if let Some(error) = self.builder.take_error() {
                return Err(error.context(format!("the gradient of '{name}'")));
            }
            let output = gradient.map(|dx| {
                let own = {
                    let graph = self.builder.graph();
                    let producer = graph.value(dx.id()).producer;
                    matches!(producer, Producer::Node(n, _) if matches!(graph.node(n).origin, Origin::Backward(_)))
                };
                // A tensor of the model, or one that is another x's gradient, gets a node of its own to be named by.
                let id = if own && used.insert(dx.id()) { dx.id() } else { self.builder.copy(dx.id()) };
                self.describe(id, x);
                (id, self.taken.fresh(format!("{}/{name}", self.scope)))
            });
            of_x.insert(x, output.clone());
            outputs.push(output);
        }
        Ok(outputs)
    }

    /// A gradient has the type and the shape of its x, whose sizes may have better names.
    fn describe(&self, gradient: ValueId, x: ValueId) {
        let mut graph = self.builder.graph_mut();
        let Fact { element, shape, container, .. } = graph.fact(x).clone();
        let fact = graph.fact_mut(gradient);
        fact.container = container;
        fact.element = element.or(fact.element);
        fact.shape = shape.or_else(|| fact.shape.clone());
    }
}

pub(crate) fn all_or_errors<const N: usize, T: std::fmt::Debug>(results: [Result<T>; N]) -> Result<[T; N]> {
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) => errors.push(error),
        }
    }
    let text = errors.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>().join("; ");
    if let Some(first) = errors.into_iter().next() {
        let first = Error::from(first);
        return Err(Error::name(text).with_details_of(&first).into());
    }
    values.try_into().map_err(|_| anyhow::anyhow!("a name could not be resolved"))
}

/// Says which calls of functions are written as what they compute, by the functions.
fn inlined_calls(model: &ModelProto, calls: &HashSet<Rc<str>>) -> Vec<String> {
    fn collect<'a>(graph: &'a GraphProto, calls: &HashSet<Rc<str>>, found: &mut BTreeMap<String, Vec<&'a str>>) {
        for node in &graph.node {
            if node.output.iter().any(|o| calls.contains(o.as_str())) {
                let names = [node.name()].into_iter().chain(node.output.iter().map(String::as_str));
                let name = names.into_iter().find(|n| !n.is_empty()).unwrap_or_default();
                found.entry(format!("{}.{}", node.domain(), node.op_type())).or_default().push(name);
            }
            node.bodies().for_each(|body| collect(body, calls, found));
        }
    }
    let mut found = BTreeMap::new();
    model.graph.iter().for_each(|graph| collect(graph, calls, &mut found));
    let note = |(function, nodes): (String, Vec<&str>)| {
        let first: Vec<String> = nodes.iter().take(3).map(|n| format!("'{n}'")).collect();
        let more = if nodes.len() > 3 { format!(" and {} more", nodes.len() - 3) } else { String::new() };
        format!(
            "calls of the function {function} are written as its nodes, which have gradients: {}{more}",
            first.join(", ")
        )
    };
    found.into_iter().map(note).collect()
}

/// Every name of a tensor or a node, in bodies too: what new names must differ from.
pub(crate) fn names_of(loaded: &Loaded, model: &ModelProto) -> Names {
    let mut names: Names = loaded.names.keys().chain(&loaded.inner_names).cloned().collect();
    if let Some(graph) = &model.graph {
        let nodes = graph.node.iter().map(|n| n.name());
        names.extend(nodes.chain(graph.value_info.iter().map(|v| v.name())));
    }
    // The record may be all that is left of an earlier call.
    names.extend(Record::all(model).unwrap_or_default().iter().map(|r| &*r.name));
    names
}
