//! The smallest piece of a model whose gradient fails its check.

use crate::backward::{Gradients, Seed};
use crate::error::Error;
use crate::graph::Graph;
use crate::model::Model;
use crate::onnx::file::load_external;
use crate::onnx::inline::inline_functions;
use crate::onnx::{ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::record::Record;
use crate::rules::load;
use crate::validate::{Options, Status, Validation, random_inputs, run, validate};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A piece of a model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reduced {
    /// The piece, with the numbers that its nodes took as initializers.
    pub model: Model,
    /// Its ys: what its nodes give to others.
    pub ys: Vec<String>,
    /// Its xs: what its nodes take of what depends on an x.
    pub xs: Vec<String>,
    /// The nodes, each as messages name it.
    pub nodes: Vec<String>,
    /// How many nodes lie between the xs and the ys of the whole model.
    pub of: usize,
    /// What the check of the piece says.
    pub validation: Validation,
}

/// Cuts a model whose gradient fails its check to the smallest run of nodes that fails by itself.
///
/// The model runs once; a piece takes the numbers that its nodes have got then, so that it fails for the same reason.
/// First the end is moved to the front as long as the gradient of what stands before it fails, then the beginning to
/// the end.
///
/// # Errors
/// The errors of [`Gradients::build`]; a model that does not run; a gradient that does not fail.
pub fn reduce(call: &Gradients, model: &Model, options: &Options) -> Result<Reduced, Error> {
    Ok(reduced(call, model, options)?)
}

fn reduced(call: &Gradients, model: &Model, options: &Options) -> Result<Reduced> {
    // Ones, where none are given, would hide what is wrong behind a softmax.
    let seeded = if call.has_seeds() { call.clone() } else { call.clone().seed_each(Seed::Input(None)) };
    let mut proto = inline_functions(&model.proto, &|_| true)?;
    proto.functions.clear();
    if let Some(folder) = &model.folder {
        load_external(&mut proto, folder)?;
    }
    let whole = seeded.build(&Model::from(proto.clone()))?;
    let validation = validate(&whole.model.proto, None, &whole.record, options);
    match validation.status {
        Status::Failed => {}
        Status::Passed => bail!("the gradient passes its check: there is nothing to reduce; try another --seed"),
        Status::Skipped => bail!(
            "the gradient cannot be checked, so nothing can be reduced: {}",
            validation.reason.unwrap_or_default()
        ),
    }
    let cutter = Cutter::new(call, &whole.record, proto, options)?;
    let count = cutter.path.len();
    // The whole fails by its own inputs; if it does not with the recorded ones, ends move on from there all the same.
    let Some(end) = first(1, count, |end| cutter.fails(0, end)) else {
        bail!("no piece of the model fails by itself; the gradient of the whole does: {}", listed(&validation))
    };
    let start = last(0, end - 1, |start| cutter.fails(start, end)).unwrap_or(0);
    let piece = cutter.piece(start, end).context("the piece cannot be built")?;
    let (output, nodes) = (cutter.differentiate(&piece)?, cutter.names(start, end));
    let validation = validate(&output.model.proto, None, &output.record, options);
    Ok(Reduced { model: piece.model, ys: piece.ys, xs: piece.xs, nodes, of: count, validation })
}

fn listed(validation: &Validation) -> String {
    validation.reason.clone().unwrap_or_default()
}

/// The first number from `low` to `high` that holds, if those that do follow those that do not; else one that holds, if
/// the search meets one.
fn first(low: usize, high: usize, holds: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high, mut found) = (low, high, None);
    while low <= high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            found = Some(middle);
            if middle == low {
                break;
            }
            high = middle - 1;
        } else {
            low = middle + 1;
        }
    }
    found
}

/// The last number from `low` to `high` that holds, as [`first`].
fn last(low: usize, high: usize, holds: impl Fn(usize) -> bool) -> Option<usize> {
    first(0, high - low, |back| holds(high - back)).map(|back| high - back)
}

struct Piece {
    model: Model,
    ys: Vec<String>,
    xs: Vec<String>,
}

struct Cutter<'a> {
    call: &'a Gradients,
    /// The call for the whole model.
    record: &'a Record,
    options: &'a Options,
    proto: ModelProto,
    /// The places of the nodes between xs and ys.
    path: Vec<usize>,
    /// The tensors that depend on an x.
    live: HashSet<String>,
    /// The value of every tensor in one run.
    values: BTreeMap<String, TensorProto>,
}

impl<'a> Cutter<'a> {
    fn new(call: &'a Gradients, record: &'a Record, proto: ModelProto, options: &'a Options) -> Result<Self> {
        let graph = proto.graph.as_ref().context("the model holds no graph")?;
        let mut live: HashSet<String> = record.gradients.iter().map(|g| g.x.clone()).collect();
        let mut path = Vec::new();
        for (i, node) in graph.node.iter().enumerate() {
            if needs(node).iter().any(|n| live.contains(n)) {
                live.extend(node.output.iter().filter(|o| !o.is_empty()).cloned());
                path.push(i);
            }
        }
        let mut above: HashSet<String> = record.seeds.iter().map(|s| s.y.clone()).collect();
        let mut between = Vec::new();
        for i in path.into_iter().rev() {
            if graph.node[i].output.iter().any(|o| above.contains(o)) {
                above.extend(needs(&graph.node[i]));
                between.push(i);
            }
        }
        between.reverse();
        let values = recorded(&proto, options)?;
        Ok(Cutter { call, record, options, path: between, live, values, proto })
    }

    fn nodes(&self) -> &[NodeProto] {
        self.proto.graph.as_ref().map_or(&[], |g| &g.node)
    }

    fn names(&self, start: usize, end: usize) -> Vec<String> {
        let name = |&i: &usize| {
            let node = &self.nodes()[i];
            let own = if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
            format!("'{own}' ({})", node.op_type())
        };
        self.path[start..end].iter().map(name).collect()
    }

    /// Some of the nodes between xs and ys, alone.
    fn piece(&self, start: usize, end: usize) -> Result<Piece> {
        let all = self.nodes();
        let inside: Vec<&NodeProto> = self.path[start..end].iter().map(|&i| &all[i]).collect();
        let made: HashSet<&str> = inside.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let mut taken: Vec<String> = Vec::new();
        for node in &inside {
            let mut names: Vec<String> = needs(node).into_iter().filter(|n| !made.contains(n.as_str())).collect();
            names.sort();
            names.retain(|n| !taken.contains(n));
            taken.extend(names);
        }
        let later: HashSet<String> = self.path[end..].iter().flat_map(|&i| needs(&all[i])).collect();
        let given = |name: &str| later.contains(name) || self.record.seeds.iter().any(|s| s.y == name);
        let outputs = inside.iter().flat_map(|n| &n.output).filter(|o| !o.is_empty());
        let mut ys: Vec<String> = outputs.filter(|o| given(o)).cloned().collect();
        ys.dedup();
        let mut model = self.proto.clone();
        let graph = model.graph.as_mut().context("the model holds no graph")?;
        let initializers: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name(), t)).collect();
        let mut values = Vec::with_capacity(taken.len());
        for name in &taken {
            let value = self.values.get(name).or_else(|| initializers.get(name.as_str()).copied());
            let value = value.with_context(|| format!("the value of '{name}' is not known"))?;
            values.push(TensorProto { name: Some(name.clone()), ..value.clone() });
        }
        let real = |name: &String| values.iter().any(|t| t.name() == name && t.element_type().is_float());
        let xs: Vec<String> = taken.iter().filter(|n| self.live.contains(*n) && real(n)).cloned().collect();
        graph.node = inside.into_iter().cloned().collect();
        (graph.initializer, graph.input) = (values, vec![]);
        graph.sparse_initializer.clear();
        let known: HashMap<String, ValueInfoProto> =
            (graph.output.drain(..)).chain(graph.value_info.drain(..)).map(|v| (v.name().to_owned(), v)).collect();
        let named = |name: &String| ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() };
        graph.output = ys.iter().map(|y| known.get(y).cloned().unwrap_or_else(|| named(y))).collect();
        model.metadata_props.clear();
        // What is an output has a type, which loading finds.
        let loaded = load(&model)?;
        let scope = loaded.graph.scope(Graph::MAIN).outputs.clone();
        if let Some(graph) = &mut model.graph {
            graph.output = ys
                .iter()
                .zip(&scope)
                .map(|(y, id)| crate::graph::write::value_info(&loaded.graph, y, loaded.graph.fact(*id)))
                .collect();
        }
        ys.retain(|y| loaded.names.get(y.as_str()).is_some_and(|id| loaded.graph.fact(*id).may_carry_gradient()));
        ensure!(!ys.is_empty() && !xs.is_empty(), "nothing is differentiated in the piece");
        Ok(Piece { model: Model::from(model), ys, xs })
    }

    fn differentiate(&self, piece: &Piece) -> Result<crate::backward::Output> {
        let stops = self.record.stops.iter().filter(|s| piece.model.proto.graph.iter().any(|g| has(g, s)));
        let stops: Vec<String> = stops.cloned().collect();
        Ok(self.call.about(&piece.ys, &piece.xs, &stops).seed_each(Seed::Input(None)).build(&piece.model)?)
    }

    /// Whether the gradient of a piece can be checked, and is wrong.
    fn fails(&self, start: usize, end: usize) -> bool {
        let output = self.piece(start, end).and_then(|piece| self.differentiate(&piece));
        output.is_ok_and(|o| validate(&o.model.proto, None, &o.record, self.options).status == Status::Failed)
    }
}

fn has(graph: &crate::onnx::GraphProto, name: &str) -> bool {
    graph.node.iter().any(|n| n.output.iter().any(|o| o == name)) || graph.initializer.iter().any(|t| t.name() == name)
}

/// What a node takes, its bodies included.
fn needs(node: &NodeProto) -> HashSet<String> {
    let mut names = HashSet::new();
    node.uses(&mut |name| {
        names.insert(name.to_owned());
    });
    names
}

/// The value of every tensor of the main graph in one run.
fn recorded(proto: &ModelProto, options: &Options) -> Result<BTreeMap<String, TensorProto>> {
    let mut model = proto.clone();
    let graph = model.graph.as_mut().context("the model holds no graph")?;
    let mut known: HashSet<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    for node in &graph.node {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if known.insert(output.clone()) {
                graph.output.push(ValueInfoProto { name: Some(output.clone()), ..ValueInfoProto::default() });
            }
        }
    }
    let inputs = random_inputs(&model, options)?;
    let mut values = run(&model, &inputs).context("the model does not run")?;
    values.extend(inputs);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::{first, last};

    #[test]
    fn borders_are_found() {
        for border in 1..=9 {
            assert_eq!(first(1, 9, |i| i >= border), Some(border));
            assert_eq!(last(1, 9, |i| i <= border), Some(border));
        }
        assert_eq!(first(1, 9, |_| false), None);
        assert_eq!(last(3, 3, |_| true), Some(3));
    }
}
