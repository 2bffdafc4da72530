//! The model of a request, loaded: calls of model-local functions are written out where the request leads through them,
//! and what it is about is found by name. Both happen here, and once.

use super::request::{Gradients, Seed};
use super::select::Selection;
use super::wanted::{Chosen, Wanted};
use crate::error::Error;
use crate::graph::{self, Loaded, ValueId};
use crate::model::Model;
use crate::onnx::inline::inline_functions;
use crate::onnx::nearest;
use crate::onnx::{GraphProto, ModelProto, NodeProto, canonical_domain};
use crate::rules::operators_with;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashSet};

/// A model, and what a request means in it.
pub(crate) struct Opened {
    pub model: Model,
    pub loaded: Loaded,
    pub ys: Vec<Chosen>,
    pub xs: Vec<Chosen>,
    pub stops: Vec<Chosen>,
    /// The seed that each y was given, if it was given one.
    pub seeds: Vec<Option<Given>>,
}

/// A seed that was given, and the tensor that it names, if it is one.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub seed: Seed,
    pub tensor: Option<ValueId>,
}

impl Gradients {
    /// Loads a model, and finds in it what the request is about.
    ///
    /// # Errors
    /// A model that cannot be loaded, functions that cannot be written out; names of no tensor; seeds for what is no y,
    /// or of another number than the ys.
    pub(crate) fn open(&self, mut model: Model) -> Result<Opened> {
        let operators = operators_with(&self.rules);
        if !graph::calls_functions(&model.proto) {
            let loaded = graph::load(&model.proto, operators)?;
            let found = self.find(&loaded, &model.proto)?;
            return Ok(found.opened(model, loaded));
        }
        // With all calls written out everything is known: what the request is about, and which calls lie on its way.
        let whole = inline_functions(&model.proto, &|_| true)?;
        let mut loaded = graph::load(&whole, operators.clone())?;
        let own = own_names(&model.proto);
        let inside: Vec<_> = loaded.names.keys().filter(|name| !own.contains(&***name)).cloned().collect();
        for name in inside {
            loaded.names.remove(&name);
            loaded.inner_names.insert(name);
        }
        let mut found = self.find(&loaded, &whole)?;
        let (passed, others) = calls_between(&model.proto, &found.xs, &found.ys);
        found.notes.extend(inlined_calls(&model.proto, &passed));
        if others == 0 {
            model.proto = whole;
        } else {
            if !passed.is_empty() {
                let wanted = |node: &NodeProto| node.output.iter().any(|o| passed.contains(o));
                model.proto = inline_functions(&model.proto, &wanted)?;
            }
            loaded = graph::load_beside(&model.proto, operators, loaded)?;
            found.look_up(&loaded)?;
        }
        Ok(found.opened(model, loaded))
    }

    fn find(&self, loaded: &Loaded, model: &ModelProto) -> Result<Found> {
        let selection = Selection::new(loaded);
        let mut notes = Vec::new();
        let mut resolve =
            |what: &str, wanted: &[Wanted], ys: &[Chosen]| selection.resolve(what, wanted, ys, model, &mut notes);
        let ys = resolve("ys", &self.ys, &[]);
        let xs = match &ys {
            Ok(ys) => resolve("xs", &self.xs, ys),
            // What depends on ys cannot be asked for; names can be.
            Err(_) => {
                let named: Vec<Wanted> = self.xs.iter().filter(|x| matches!(x, Wanted::Named(_))).cloned().collect();
                resolve("xs", &named, &[])
            }
        };
        let stops = resolve("stop_gradients", &self.stops, &[]);
        let [ys, xs, stops] = all_or_errors([ys, xs, stops])?;
        let seeds = self.seeds_in(&selection, &ys)?;
        Ok(Found { ys, xs, stops, seeds, notes })
    }

    /// The seeds in the order of the ys.
    fn seeds_in(&self, selection: &Selection, ys: &[Chosen]) -> Result<Vec<Option<Given>>> {
        let (given, wanted) = (self.seeds.len(), ys.len());
        if given != 0 && given != wanted {
            return Err(Error::usage(format_args!("{given} grad_ys are given for {wanted} ys")).into());
        }
        let mut seeds: Vec<Option<&Seed>> = ys.iter().enumerate().map(|(i, _)| self.seeds.get(i)).collect();
        for (name, seed) in &self.own_seeds {
            let mut fits = false;
            for (_, slot) in
                ys.iter().zip(&mut seeds).filter(|(y, _)| y.name == *name || selection.by_name(name) == Some(y.id))
            {
                (*slot, fits) = (Some(seed), true);
            }
            if !fits {
                let near = nearest(name, ys.iter().map(|y| y.name.as_str())).map(|y| format!("did you mean '{y}'?"));
                let hint = near.as_ref().map(|near| format!("; {near}")).unwrap_or_default();
                let error = Error::name(format_args!("a seed is given for '{name}', which is none of the ys{hint}"));
                return Err(error.with_tensor(name).with_remedy(near).into());
            }
        }
        let names: Vec<&str> = seeds.iter().flatten().filter_map(|seed| seed.tensor()).collect();
        let mut tensors = selection.find("grad_ys", &names)?.into_iter();
        let mut given = |seed: &Seed| Given { seed: seed.clone(), tensor: seed.tensor().and_then(|_| tensors.next()) };
        Ok(seeds.into_iter().map(|seed| seed.map(&mut given)).collect())
    }
}

/// What a request is about.
struct Found {
    ys: Vec<Chosen>,
    xs: Vec<Chosen>,
    stops: Vec<Chosen>,
    seeds: Vec<Option<Given>>,
    /// What users should know.
    notes: Vec<String>,
}

impl Found {
    /// What the request finds open, its notes among the warnings of the loaded model.
    fn opened(self, model: Model, mut loaded: Loaded) -> Opened {
        let Found { ys, xs, stops, seeds, notes } = self;
        loaded.warnings.extend(notes);
        Opened { model, loaded, ys, xs, stops, seeds }
    }

    /// Takes the numbers that the tensors have in a model that was loaded again; names of tensors outlive that.
    fn look_up(&mut self, loaded: &Loaded) -> Result<()> {
        let id = |name: &str| loaded.names.get(name).copied().with_context(|| format!("tensor '{name}' is lost"));
        for chosen in self.ys.iter_mut().chain(&mut self.xs).chain(&mut self.stops) {
            chosen.id = id(&chosen.name)?;
        }
        for given in self.seeds.iter_mut().flatten() {
            given.tensor = given.seed.tensor().map(id).transpose()?;
        }
        Ok(())
    }
}

/// The tensors of the main graph.
fn own_names(model: &ModelProto) -> HashSet<&str> {
    let mut names = HashSet::new();
    if let Some(graph) = &model.graph {
        graph.defines(&mut |name| {
            names.insert(name);
        });
    }
    names
}

/// The outputs of those calls of model-local functions that lie between an x and a y, or in the body of a node that
/// does: only their insides have gradients. With the number of the other calls.
fn calls_between(model: &ModelProto, xs: &[Chosen], ys: &[Chosen]) -> (HashSet<String>, usize) {
    let functions: HashSet<(&str, &str)> =
        model.functions.iter().map(|f| (canonical_domain(f.domain()), f.name())).collect();
    let nodes: &[NodeProto] = model.graph.as_ref().map_or(&[], |g| &g.node);
    let mut below: HashSet<&str> = xs.iter().map(|x| x.name.as_str()).collect();
    let mut path = Vec::new();
    for node in nodes {
        let mut takes = false;
        node.uses(&mut |name| takes |= below.contains(name));
        if takes {
            below.extend(node.output.iter().map(String::as_str));
            path.push(node);
        }
    }
    let mut above: HashSet<&str> = ys.iter().map(|y| y.name.as_str()).collect();
    let (mut on_path, mut calls) = (HashSet::new(), 0);
    for node in path.into_iter().rev().filter(|node| !node.output.is_empty()) {
        if node.output.iter().any(|o| !o.is_empty() && above.contains(o.as_str())) {
            node.uses(&mut |name| {
                above.insert(name);
            });
            each_call(node, &functions, &mut |call| {
                calls += 1;
                on_path.extend(call.output.iter().filter(|o| !o.is_empty()).cloned());
            });
        }
    }
    let mut all = 0;
    nodes.iter().for_each(|node| each_call(node, &functions, &mut |_| all += 1));
    (on_path, all - calls)
}

/// The calls that a node is or holds in its bodies. Nesting is as deep as protobuf allows.
fn each_call<'m>(node: &'m NodeProto, functions: &HashSet<(&str, &str)>, found: &mut dyn FnMut(&'m NodeProto)) {
    if functions.contains(&(canonical_domain(node.domain()), node.op_type())) {
        found(node);
    }
    for body in node.bodies() {
        body.node.iter().for_each(|inner| each_call(inner, functions, found));
    }
}

/// The values, or what is wrong with any of them in one message.
fn all_or_errors<const N: usize, T: std::fmt::Debug>(results: [Result<T>; N]) -> Result<[T; N]> {
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) => errors.push(error),
        }
    }
    let text = errors.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>().join("; ");
    if let Some(first) = errors.into_iter().next() {
        return Err(Error::from(first).with_message(text).into());
    }
    values.try_into().map_err(|_| anyhow::anyhow!("a name could not be resolved"))
}

/// Says which calls of functions are written as what they compute, by the functions.
fn inlined_calls(model: &ModelProto, calls: &HashSet<String>) -> Vec<String> {
    fn collect<'a>(graph: &'a GraphProto, calls: &HashSet<String>, found: &mut BTreeMap<String, Vec<&'a str>>) {
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
