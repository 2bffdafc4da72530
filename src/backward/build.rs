//! What comes of a call: seeds, the pass, outputs, the model that is written.

use super::open::{Given, Opened};
use super::request::{Gradients, Seed, Unconnected};
use super::select::free_scope;
use super::wanted::{Chosen, ids};
use super::{Flow, Pass};
use crate::error::Error;
use crate::expr::{Builder, Expr};
use crate::graph::write::{self, Request};
use crate::graph::{EachValue, Fact, Graph, IdMap, IdSet, Loaded, Origin, Producer, ValueId};
use crate::memory;
use crate::model::Model;
#[cfg(feature = "cli")]
use crate::onnx::file;
use crate::onnx::{ElementType, ModelProto, Names, TensorProto};
use crate::record::{Gradient, Record, SeedOf};
use anyhow::{Context, Result, ensure};
use std::collections::HashSet;
use std::rc::Rc;

/// A model with gradients.
#[derive(Clone, Debug)]
#[non_exhaustive]
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
    /// What has come of [`Gradients::memory_budget`].
    pub memory: Option<memory::Report>,
}

impl Output {
    /// Drops the model's own outputs, with what only they need. What is left computes the gradients all the same, but
    /// can no longer be compared with the ys.
    pub fn drop_model_outputs(&mut self) {
        let kept: HashSet<&str> = self.gradients.iter().filter_map(|g| g.name.as_deref()).collect();
        if let Some(graph) = &mut self.model.proto.graph {
            graph.keep_outputs(|name| kept.contains(name));
        }
    }
}

impl Gradients {
    /// Appends the gradients to a model.
    ///
    /// # Errors
    /// Names of no tensor, seeds that do not fit their ys, operators on a path from a y to an x without a gradient, and
    /// models that contradict themselves.
    pub fn build(&self, model: &Model) -> Result<Output, Error> {
        self.build_onto(model.clone())
    }

    /// Appends the gradients to a model, without copying it.
    ///
    /// # Errors
    /// As [`Gradients::build`].
    pub fn build_onto(&self, model: Model) -> Result<Output, Error> {
        let file = model.file.clone();
        self.appended(model, Form::Model).map_err(|e| Error::from(e).in_file(file))
    }

    /// As [`Gradients::build_onto`], for who does nothing with the model but write it: the new nodes are in bytes only,
    /// which takes half of the memory, and not in [`Model::proto`]: no outputs can be dropped.
    ///
    /// # Errors
    /// As [`Gradients::build`].
    #[cfg(feature = "cli")]
    pub(crate) fn build_file(&self, model: Model) -> Result<Output, Error> {
        let file = model.file.clone();
        self.appended(model, Form::File).map_err(|e| Error::from(e).in_file(file))
    }

    fn appended(&self, model: Model, form: Form) -> Result<Output> {
        let Opened { mut model, loaded, ys, xs, stops, seeds: given } = self.open(model)?;
        let names = names_of(&loaded, &model.proto);
        let scope = free_scope(self.scope(), names.iter());
        let Loaded { graph, mut warnings, names: by_name, .. } = loaded;
        drop(by_name);
        let forward: Vec<_> = graph.scope(Graph::MAIN).nodes.clone();
        let builder = Builder::new(graph);
        let mut call = Building { builder: &builder, scope: &scope, taken: names, inputs: Vec::new() };

        let seeded = call.seeds(&ys, &given, &self.common_seed, &mut warnings)?;
        let (y_ids, x_ids): (Vec<ValueId>, Vec<ValueId>) = (ids(&ys), ids(&xs));
        let pass = Pass::new(&builder, self.aggregation, stops.iter().map(|s| s.id).collect(), &self.rules)
            .with_functions(&self.functions)
            .with_straight_through(self.straight_through);
        let flows = pass.differentiate(&forward, &seeded, &x_ids)?;
        for node in pass.shut_nodes(&y_ids) {
            warnings.push(format!("{node} passes no gradient to the quantized integers that it takes"));
        }
        let outputs = call.outputs(&xs, &flows, self.unconnected)?;
        if let Some(error) = builder.take_error() {
            return Err(error);
        }
        let Building { taken, inputs, .. } = call;
        let gradient = |(x, o): (&Chosen, &Option<(ValueId, String)>)| Gradient {
            x: x.name.clone(),
            name: o.as_ref().map(|(_, name)| name.clone()),
        };
        let gradients: Vec<Gradient> = xs.iter().zip(&outputs).map(gradient).collect();
        let distinct = distinct(outputs);
        let seed_of = |i: usize| given.get(i).and_then(Option::as_ref).map_or(&self.common_seed, |given| &given.seed);
        let seeded: Vec<(ValueId, ValueId)> = seeded.iter().map(|(y, seed)| (*y, seed.id())).collect();
        let kept = kept_seeds(&y_ids, &seed_of, &seeded);
        let results: Vec<ValueId> = distinct.iter().map(|&(v, _)| v).collect();
        let (steps, memory) = self.scheduled(&builder, results, kept)?;
        let request = Request { name: scope.clone(), inputs, outputs: distinct, steps, colocate: self.colocate };
        // What the builder and the pass have kept of nodes goes before these are written.
        let graph = builder.into_graph();
        let written = self.write(form, &graph, &mut model, &request, taken)?;
        for (node, output) in &written.demanded {
            warnings.push(format!("{node} has got the output '{output}', which its gradient needs"));
        }
        let seeds = seeds_of(&graph, &ys, &seed_of, &seeded, &written.names);
        let record = Record {
            name: scope.clone(),
            gradients: gradients.clone(),
            seeds: seeds.clone(),
            stops: stops.into_iter().map(|s| s.name).collect(),
            straight_through: self.straight_through,
        };
        record.attach(&mut model.proto)?;
        let mut output = Output { model, gradients, seeds, nodes_added: written.nodes, warnings, record, memory };
        if self.only_gradients {
            output.drop_model_outputs();
        }
        Ok(output)
    }

    /// The new nodes that results and seeds need, in their order.
    fn scheduled(
        &self,
        builder: &Builder,
        results: Vec<ValueId>,
        seeds: impl IntoIterator<Item = ValueId>,
    ) -> Result<(Vec<write::Step>, Option<memory::Report>)> {
        let (nodes, ends) = {
            let graph = builder.graph();
            let nodes = write::needed(&graph, results.iter().copied().chain(seeds));
            let own = if self.only_gradients { &[][..] } else { &graph.scope(Graph::MAIN).outputs };
            (nodes, [&results, own].concat())
        };
        memory::schedule(builder, nodes, &ends, memory::Again::Within(self.memory_budget.as_ref()))
    }

    /// Writes the new nodes behind those of the model.
    fn write(
        &self,
        form: Form,
        graph: &Graph,
        model: &mut Model,
        request: &Request,
        taken: Names,
    ) -> Result<write::Written> {
        match form {
            #[cfg(feature = "cli")]
            // Which outputs are dropped, and with them which nodes, is found out in the model; data in other files move
            // with it.
            Form::File if !self.only_gradients && file::locations(&model.proto).is_empty() => {
                let mut nodes = file::Appended::default();
                let proto = &mut model.proto;
                let written = write::write_into(graph, proto, request, taken, &mut |node| nodes.push(&node))?;
                model.appended = Some(nodes.into());
                Ok(written)
            }
            _ => write::write(graph, &mut model.proto, request, taken),
        }
    }
}

/// What becomes of the new nodes.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// They are in the model.
    Model,
    /// They may be in bytes only.
    #[cfg(feature = "cli")]
    File,
}

/// Each output once: several xs may have the same gradient.
fn distinct(outputs: Vec<Option<(ValueId, String)>>) -> Vec<(ValueId, String)> {
    let mut seen = HashSet::new();
    outputs.into_iter().flatten().filter(|(_, name)| seen.insert(name.clone())).collect()
}

/// The seeds that are constants: one may be folded into what is multiplied by it, and who checks the gradients later
/// needs it.
fn kept_seeds<'s>(
    ys: &[ValueId],
    seed_of: &dyn Fn(usize) -> &'s Seed,
    seeded: &[(ValueId, ValueId)],
) -> impl Iterator<Item = ValueId> {
    let constant = |(i, &y): (usize, &ValueId)| matches!(seed_of(i), Seed::Constant(_)).then_some(y);
    let constant: HashSet<ValueId> = ys.iter().enumerate().filter_map(constant).collect();
    seeded.iter().filter(move |(y, _)| constant.contains(y)).map(|(_, seed)| *seed)
}

/// The seeds as they are reported: a tensor or input of the written model, or a number.
fn seeds_of<'s>(
    graph: &Graph,
    ys: &[Chosen],
    seed_of: &dyn Fn(usize) -> &'s Seed,
    seeded: &[(ValueId, ValueId)],
    names: &EachValue<Rc<str>>,
) -> Vec<SeedOf> {
    let mut seeded = seeded.iter().peekable();
    let seed_of = |(i, y): (usize, &Chosen)| {
        let seed = seeded.next_if(|(of, _)| *of == y.id).map(|(_, seed)| *seed);
        let name = seed.and_then(|seed| {
            let name = graph.value(seed).name.as_ref().or_else(|| names.get(&seed))?;
            Some(name.as_ref().to_owned())
        });
        let fill = match seed_of(i) {
            Seed::Ones if seed.is_some() => Some(1.0),
            Seed::Fill(v) => Some(*v),
            _ => None,
        };
        SeedOf { y: y.name.clone(), seed: name, fill }
    };
    ys.iter().enumerate().map(seed_of).collect()
}

/// The names and inputs of a call while it is being built.
struct Building<'g, 's> {
    builder: &'g Builder,
    scope: &'s str,
    taken: Names,
    inputs: Vec<(ValueId, String)>,
}

impl<'g> Building<'g, '_> {
    /// The ys with their seeds; those that have no gradient are said in the warnings.
    fn seeds(
        &mut self,
        ys: &[Chosen],
        given: &[Option<Given>],
        common: &Seed,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<(ValueId, Expr<'g>)>> {
        let mut seeded = Vec::new();
        for (y, given) in ys.iter().zip(given) {
            let seed = self.seed(y, given.as_ref(), common);
            match seed.with_context(|| format!("the seed of y '{}'", y.name))? {
                Some(seed) => seeded.push((y.id, seed)),
                None => {
                    let graph = self.builder.graph();
                    let behind = graph.numbers_behind(y.id).and_then(|x| graph.value(x).name.clone());
                    let behind = behind.map(|x| format!("; it is made of '{x}', which has one (--ys {x})"));
                    let behind = behind.unwrap_or_default();
                    warnings
                        .push(format!("y '{}' is not of a floating-point type and has no gradient{behind}", y.name));
                }
            }
        }
        Ok(seeded)
    }

    /// The seed of a y; `None` where y has no gradient.
    fn seed(&mut self, y: &Chosen, given: Option<&Given>, common: &Seed) -> Result<Option<Expr<'g>>> {
        let expr = self.builder.expr(y.id);
        let fact = expr.fact();
        if !fact.may_carry_gradient() {
            ensure!(
                given.is_none(),
                "y is of type {}, which has no gradient",
                fact.element.map(ElementType::name).unwrap_or_default()
            );
            return Ok(None);
        }
        let seed = given.map_or(common, |given| &given.seed);
        let called = match seed {
            Seed::Tensor(name) => format!("'{name}'"),
            Seed::Constant(tensor) if !tensor.name().is_empty() => format!("'{}'", tensor.name()),
            _ => "the seed".to_owned(),
        };
        let seed = match seed {
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
            Seed::Tensor(_) => {
                let tensor = given.and_then(|given| given.tensor);
                self.builder.expr(tensor.context("one tensor cannot be the seed of all ys; give each its own")?)
            }
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
            Seed::Input(wanted) => self.seed_input(y, wanted.as_deref(), &fact)?,
        };
        if let Some(error) = self.builder.take_error() {
            return Err(error);
        }
        self.check(&called, &fact, &seed.fact())?;
        Ok(Some(seed))
    }

    /// An input of the model that holds the seed of a y.
    fn seed_input(&mut self, y: &Chosen, wanted: Option<&str>, fact: &Fact) -> Result<Expr<'g>> {
        let base = wanted.map_or_else(|| format!("{}/grad_ys/{}", self.scope, y.name), str::to_owned);
        ensure!(wanted.is_none() || !self.taken.contains(&base), "the model has a tensor called '{base}' already");
        let unique = self.taken.fresh(base);
        let input = Fact { value: None, ..fact.clone() };
        let id = self.builder.graph_mut().push_input(Graph::MAIN, None, input);
        self.inputs.push((id, unique));
        Ok(self.builder.expr(id))
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
        xs: &[Chosen],
        flows: &[Option<Flow<'g>>],
        unconnected: Unconnected,
    ) -> Result<Vec<Option<(ValueId, String)>>> {
        let mut of_x: IdMap<ValueId, Option<(ValueId, String)>> = IdMap::default();
        let mut used = IdSet::default();
        let mut outputs = Vec::with_capacity(xs.len());
        for (Chosen { id: x, name }, flow) in xs.iter().zip(flows) {
            let x = *x;
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

/// Every name of a tensor or a node, in bodies too: what new names must differ from.
pub(crate) fn names_of(loaded: &Loaded, model: &ModelProto) -> Names {
    let mut names = Names::default();
    names.reserve(loaded.names.len() + loaded.inner_names.len());
    names.extend(loaded.names.keys().chain(&loaded.inner_names).cloned());
    if let Some(graph) = &model.graph {
        let nodes = graph.node.iter().map(|n| n.name());
        names.extend(nodes.chain(graph.value_info.iter().map(|v| v.name())));
    }
    // The record may be all that is left of an earlier call.
    names.extend(Record::all(model).unwrap_or_default().iter().map(|r| &*r.name));
    names
}
