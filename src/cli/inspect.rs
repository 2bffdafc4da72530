//! `inspect`: what a model holds, and what stands in the way of its gradients.

use super::console::Stream;
use super::table::Table;
use super::{note, one_line};
use crate::backward::{Selection, dependencies, support};
use crate::graph::{Fact, Graph, ValueId};
use crate::onnx::ElementType;
use crate::rules;
use crate::weights::{self, Kind, Tensor};
use crate::{Gradients, Model};
use anyhow::Result;
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::PathBuf;

/// Show a model's inputs, outputs, parameters and operators, and what has a gradient
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  onnx-gradients inspect model.onnx\n  onnx-gradients inspect model.onnx --json")]
pub struct Args {
    /// The model
    model: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Loads, looks, prints.
pub fn run(args: &Args) -> Result<()> {
    let model = Model::load(&args.model)?;
    let loaded = rules::load(&model.proto)?;
    let selection = Selection::new(&loaded);
    let scope = loaded.graph.scope(Graph::MAIN);
    let kind = |id: &ValueId| display(&loaded.graph, loaded.graph.fact(*id));
    let named = |ids: &[ValueId]| ids.iter().map(|id| (selection.name(*id), kind(id))).collect::<Vec<_>>();
    let outputs = named(&scope.outputs);
    let ys: Vec<String> = scope.outputs.iter().map(|&y| selection.name(y)).collect();
    let constants = weights::of(&model.proto, &loaded, &ys)?;
    let is_weight = |t: &&Tensor<'_>| t.kind == Kind::Weight;
    let defaults: HashSet<&str> = model.proto.graph.iter().flat_map(|g| &g.initializer).map(|t| t.name()).collect();
    let given: Vec<ValueId> =
        scope.inputs.iter().copied().filter(|&i| !defaults.contains(selection.name(i).as_str())).collect();
    let mut operators: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for &id in &scope.nodes {
        let node = loaded.graph.node(id);
        let op =
            if node.domain.is_empty() { node.op_type.to_string() } else { format!("{}.{}", node.domain, node.op_type) };
        let entry = operators.entry(op).or_insert_with(|| (0, support(&loaded.graph, id)));
        entry.0 += 1;
    }
    // Which xs each y reaches, and what is missing on the way, is what the pass itself finds.
    let parameters = constants.iter().filter(is_weight).filter_map(|t| loaded.names.get(t.name.as_str()).copied());
    let float = |v: &ValueId| loaded.graph.fact(*v).element.is_some_and(ElementType::is_float);
    let xs: Vec<ValueId> = given.iter().copied().filter(float).chain(parameters).collect();
    let inputs = named(&given);
    let names = |ids: &[ValueId]| ids.iter().map(|&id| selection.name(id)).collect::<Vec<String>>();
    let ys = selection.outputs();
    let mut obstacles = Obstacles { model: &model, xs: names(&xs), builds: 0, found: Vec::new() };
    obstacles.find(&names(&ys));
    let connected = dependencies(rules::load(&model.proto)?, &ys, &xs);
    let reach: Vec<(String, Vec<String>, Option<String>)> = names(&ys)
        .into_iter()
        .zip(connected)
        .zip(obstacles.found)
        .map(|((y, connected), obstacle)| (y, if obstacle.is_some() { vec![] } else { names(&connected) }, obstacle))
        .collect();
    let mut out = Stream::Report;
    if args.json {
        let tensors = |list: &[(String, String)]| {
            list.iter().map(|(name, kind)| json!({ "name": name, "type": kind })).collect::<Vec<_>>()
        };
        let shown = |t: &Tensor<'_>| json!({ "name": t.name, "type": typed(t), "kind": t.kind, "source": t.source, "why": t.why });
        let reach = reach.iter().map(|(y, xs, obstacle)| json!({ "y": y, "xs": xs, "obstacle": obstacle }));
        let operators = operators.iter().map(|(op, (n, what))| json!({ "operator": op, "nodes": n, "gradient": what }));
        let object = json!({
            "opset": model.proto.opset(""),
            "inputs": tensors(&inputs),
            "outputs": tensors(&outputs),
            "parameters": constants.iter().filter(is_weight).map(shown).collect::<Vec<_>>(),
            "constants": constants.iter().filter(|t| !is_weight(t)).map(shown).collect::<Vec<_>>(),
            "operators": operators.collect::<Vec<_>>(),
            "reach": reach.collect::<Vec<_>>(),
            "warnings": loaded.warnings,
        });
        return Ok(writeln!(out, "{object}")?);
    }
    writeln!(out, "opset {}, {} nodes", model.proto.opset("").unwrap_or(1), scope.nodes.len())?;
    for (what, tensors) in [("inputs", &inputs), ("outputs", &outputs)] {
        writeln!(out, "\n{what}")?;
        for (name, kind) in tensors {
            writeln!(out, "  {}  {kind}", one_line(name))?;
        }
    }
    for (what, wanted) in [("parameters", true), ("constants", false)] {
        let mut table = Table::new([what, "type", "why"]);
        let of = constants.iter().filter(|t| (t.kind == Kind::Weight) == wanted);
        of.for_each(|t| table.row([t.name.clone(), typed(t), t.why.clone()]));
        write!(out, "\n{table}")?;
    }
    let mut table = Table::new(["operator", "nodes", "gradient"]);
    operators.into_iter().for_each(|(op, (count, what))| table.row([op, count.to_string(), what]));
    write!(out, "\n{table}")?;
    for (y, connected, obstacle) in reach {
        match obstacle {
            Some(obstacle) => writeln!(out, "\n{}", one_line(&format!("{y}: {obstacle}")))?,
            None => {
                let xs = if connected.is_empty() { "nothing".to_owned() } else { listed(&connected) };
                writeln!(out, "\n{}", one_line(&format!("{y} depends on {xs}")))?;
            }
        }
    }
    loaded.warnings.iter().for_each(|w| note(format_args!("warning: {w}")));
    Ok(())
}

/// The element type and the sizes of a constant.
fn typed(t: &Tensor<'_>) -> String {
    let sizes: Vec<String> = t.value.dims.iter().map(i64::to_string).collect();
    format!("{}[{}]", t.element.name(), sizes.join(", "))
}

/// What stands in the way of the gradients of ys, which is what the pass itself says.
struct Obstacles<'a> {
    model: &'a Model,
    xs: Vec<String>,
    builds: usize,
    /// One for each y that has been asked for.
    found: Vec<Option<String>>,
}

impl Obstacles<'_> {
    /// A whole build tells of one y or of many: where all of a group can be differentiated, each can; else both halves are asked.
    /// After some builds the ys of a group share what is said of it, since each build takes as long as the model is large.
    fn find(&mut self, ys: &[String]) {
        const MOST_BUILDS: usize = 100;
        if ys.is_empty() {
            return;
        }
        self.builds += 1;
        let built = Gradients::new(ys.iter().cloned(), self.xs.iter().cloned()).build(self.model);
        let Some(error) = built.err().map(|error| error.to_string()) else {
            return self.found.extend(ys.iter().map(|_| None));
        };
        if ys.len() == 1 || self.builds >= MOST_BUILDS {
            return self.found.extend(ys.iter().map(|_| Some(error.clone())));
        }
        let (left, right) = ys.split_at(ys.len() / 2);
        self.find(left);
        self.find(right);
    }
}

/// A list for people: of many names the first.
fn listed(names: &[String]) -> String {
    const MOST: usize = 50;
    match names.len().saturating_sub(MOST) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..MOST].join(", ")),
    }
}

fn display(graph: &Graph, fact: &Fact) -> String {
    let element = fact.element.map_or_else(|| "?".to_owned(), |e| e.name());
    let shape = fact.shape.as_ref().map_or_else(|| "[...]".to_owned(), |s| graph.dims.display(s));
    format!("{element}{shape}")
}
