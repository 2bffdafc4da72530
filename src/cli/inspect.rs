//! `inspect`: what a model holds, what stands in the way of its gradients, and a picture of where they flow.

mod page;

use super::console::Stream;
use super::html;
use super::options::load;
use super::shapes::ShapeArgs;
use super::table::Table;
use super::values::{dim, known};
use super::{note, one_line};
use crate::backward::{Selection, dependencies, support};
use crate::graph::{Fact, Graph, Loaded, ValueId};
use crate::onnx::bodies::take_out_constants;
use crate::onnx::inline::inline_functions;
use crate::onnx::{ElementType, ModelProto, canonical_domain, file};
use crate::rules;
use crate::survey::{self, Flow, Folded, Memory, Shared, Unused};
use crate::training::modes;
use crate::training::{Choice, Entry};
use crate::weights::{self, Kind, Tensor};
use crate::{Gradients, Model};
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;

/// Show a model's inputs, outputs, parameters and operators, what has a gradient, and where gradients stop
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-gradients inspect model.onnx
  onnx-gradients inspect model.onnx --dim batch=32 --json
  onnx-gradients inspect model.onnx --html model.html")]
pub struct Args {
    /// The model; `-` for stdin
    model: PathBuf,
    /// The size of a symbolic dimension, for the memory of a step
    #[arg(long, value_name = "SYMBOL=SIZE", num_args = 1.., value_parser = dim)]
    dim: Vec<(String, i64)>,
    /// Write a page with all of it and a picture of the graph: its layers, where gradients flow, where they stop and
    /// why
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Replace an existing FILE
    #[arg(long, requires = "html")]
    force: bool,
    #[command(flatten)]
    shapes: ShapeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A y, the xs on which it depends, and what stands in the way.
type Reach = (String, Vec<String>, Option<String>);

/// All that is found of a model.
struct Seen<'a> {
    model: &'a ModelProto,
    /// The model with its functions written out.
    loaded: &'a Loaded,
    inputs: Vec<(String, String)>,
    outputs: Vec<(String, String)>,
    constants: Vec<Tensor<'a>>,
    /// What training without further options does with each of the constants.
    trained: HashMap<String, Entry>,
    /// What training does with the modes of operators, and why nothing is trained.
    decisions: Vec<String>,
    /// Each operator with the number of its nodes and its gradient.
    operators: BTreeMap<String, (usize, String)>,
    /// For each y the xs on which it depends, or what stands in the way.
    reach: Vec<Reach>,
    nodes: usize,
    flow: Flow,
    shared: Vec<Shared>,
    folded: Vec<Folded>,
    unused: Unused,
    memory: Memory,
}

/// Loads, looks, prints.
pub fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.html {
        file::ensure_writable(path, args.force)?;
    }
    let mut model = load(&args.model)?;
    args.shapes.declare(&mut model)?;
    let bodies = model.proto.graph.iter().flat_map(|g| &g.node).any(|n| n.bodies().next().is_some());
    let mut inlined = match model.proto.functions.is_empty() && !bodies {
        true => None,
        false => Some(inline_functions(&model.proto, &|_| true)?),
    };
    // What bodies hold counts as trainable has it.
    inlined.as_mut().map(take_out_constants);
    let flat = inlined.as_ref().unwrap_or(&model.proto);
    let loaded = rules::load(flat)?;
    let seen = look(args, &model, flat, &loaded)?;
    if let Some(path) = &args.html {
        let name = args.model.file_name().map_or_else(|| "-".into(), |n| n.to_string_lossy());
        let page = page::page(&name, &seen)?;
        file::write_text(path, args.force, &page)?;
    }
    let mut out = Stream::Report;
    match args.json {
        true => writeln!(out, "{}", seen.json())?,
        false => {
            out.write_all(seen.text().as_bytes())?;
            loaded.warnings.iter().for_each(|w| note(format_args!("warning: {w}")));
            if let Some(path) = &args.html {
                note(format_args!("note: the page is {}", path.display()));
            }
        }
    }
    Ok(())
}

fn look<'a>(args: &Args, model: &'a Model, flat: &'a ModelProto, loaded: &'a Loaded) -> Result<Seen<'a>> {
    let sizes = sizes(args, flat)?;
    let graph = &loaded.graph;
    let selection = Selection::new(loaded);
    let scope = graph.scope(Graph::MAIN);
    let kind = |id: &ValueId| display(graph, graph.fact(*id));
    let named = |ids: &[ValueId]| ids.iter().map(|id| (selection.name(*id), kind(id))).collect::<Vec<_>>();
    let constants = weights::tensors(flat, loaded, &scope.outputs);
    let defaults: HashSet<&str> = flat.graph.iter().flat_map(|g| &g.initializer).map(|t| t.name()).collect();
    let given: Vec<ValueId> =
        scope.inputs.iter().copied().filter(|&i| !defaults.contains(selection.name(i).as_str())).collect();
    // What a user reads of operators is what the file holds: calls of functions as calls.
    let whole;
    let file = match model.proto.functions.is_empty() {
        true => loaded,
        false => {
            whole = rules::load(&model.proto)?;
            &whole
        }
    };
    let is_weight = |t: &&Tensor<'_>| t.kind == Kind::Weight;
    let parameters = constants.iter().filter(is_weight).filter_map(|t| loaded.names.get(t.name.as_str()).copied());
    let float = |v: &ValueId| graph.fact(*v).element.is_some_and(ElementType::is_float);
    let xs: Vec<ValueId> = given.iter().copied().filter(float).chain(parameters).collect();
    let ys = selection.outputs();
    let mut decisions = modes::decisions(flat, false, &[]);
    let chosen = Choice::default().select(flat, constants.clone(), &|_| None);
    let chosen = chosen.map_err(|error| decisions.push(error.to_string())).ok();
    let trained: HashMap<String, Entry> =
        chosen.into_iter().flat_map(|c| c.entries).map(|e| (e.name.clone(), e)).collect();
    let weights: Vec<ValueId> =
        trained.values().filter(|e| e.trained).filter_map(|e| loaded.names.get(e.name.as_str()).copied()).collect();
    let memory = survey::memory(flat, loaded, &weights, &ys, &sizes);
    Ok(Seen {
        model: &model.proto,
        loaded,
        inputs: named(&given),
        outputs: named(&scope.outputs),
        trained,
        decisions,
        operators: operators(&file.graph),
        reach: reach(model, flat, &selection, file, (&ys, &xs))?,
        nodes: file.graph.scope(Graph::MAIN).nodes.len(),
        flow: Flow::new(graph, &xs, &ys),
        shared: survey::shared(flat, &constants),
        folded: survey::folded(flat),
        unused: survey::unused(&model.proto, loaded),
        memory,
        constants,
    })
}

/// Each operator with the number of its nodes and its gradient.
fn operators(graph: &Graph) -> BTreeMap<String, (usize, String)> {
    let mut operators: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for &id in &graph.scope(Graph::MAIN).nodes {
        let node = graph.node(id);
        let op =
            if node.domain.is_empty() { node.op_type.to_string() } else { format!("{}.{}", node.domain, node.op_type) };
        operators.entry(op).or_insert_with(|| (0, support(graph, id))).0 += 1;
    }
    operators
}

/// For each y the xs on which it depends, or what stands in the way: what the pass itself finds.
fn reach(
    model: &Model,
    flat: &ModelProto,
    selection: &Selection<'_>,
    file: &Loaded,
    (ys, xs): (&[ValueId], &[ValueId]),
) -> Result<Vec<Reach>> {
    let names = |ids: &[ValueId]| ids.iter().map(|&id| selection.name(id)).collect::<Vec<String>>();
    // What lies inside a function has no name outside of it.
    let mut asked = names(xs);
    asked.retain(|x| file.names.contains_key(x.as_str()));
    let mut obstacles = Obstacles { model, xs: asked, builds: 0, found: Vec::new() };
    obstacles.find(&names(ys));
    let connected = dependencies(rules::load(flat)?, ys, xs);
    let of_y = |((y, connected), obstacle): ((String, Vec<ValueId>), Option<String>)| {
        (y, if obstacle.is_some() { vec![] } else { names(&connected) }, obstacle)
    };
    Ok(names(ys).into_iter().zip(connected).zip(obstacles.found).map(of_y).collect())
}

/// The sizes of symbols that are given.
fn sizes(args: &Args, model: &ModelProto) -> Result<BTreeMap<String, i64>> {
    let symbols = survey::symbols(model);
    known("--dim", args.dim.iter().map(|(symbol, _)| symbol), symbols.iter().map(String::as_str))?;
    Ok(args.dim.iter().cloned().collect())
}

impl Seen<'_> {
    /// The domains with their versions, as the model imports them.
    fn opsets(&self) -> Vec<(&str, i64)> {
        let domain = |d| if canonical_domain(d).is_empty() { "ai.onnx" } else { d };
        self.model.opset_import.iter().map(|o| (domain(o.domain()), o.version())).collect()
    }

    /// The functions with the numbers of their nodes.
    fn functions(&self) -> Vec<(String, usize)> {
        self.model.functions.iter().map(|f| (format!("{}.{}", f.domain(), f.name()), f.node.len())).collect()
    }

    /// What training without further options does with a constant.
    fn training(&self, t: &Tensor<'_>) -> &'static str {
        match self.trained.get(&t.name) {
            Some(entry) if entry.trained => "trained",
            _ if t.kind == Kind::Statistic => "stays",
            _ => "not trained",
        }
    }

    /// Why it does that.
    fn why<'s>(&'s self, t: &'s Tensor<'_>) -> &'s str {
        self.trained.get(&t.name).map_or(t.why.as_str(), |entry| entry.why.as_str())
    }

    fn json(&self) -> Value {
        let tensors = |list: &[(String, String)]| {
            list.iter().map(|(name, kind)| json!({ "name": name, "type": kind })).collect::<Vec<_>>()
        };
        let is_weight = |t: &&Tensor<'_>| t.kind == Kind::Weight;
        let shown = |t: &Tensor<'_>| {
            json!({
                "name": t.name, "type": typed(t), "kind": t.kind, "source": t.source, "layer": t.layer, "place": t.place,
                "trained": self.training(t) == "trained", "why": self.why(t),
            })
        };
        let reach = self.reach.iter().map(|(y, xs, obstacle)| json!({ "y": y, "xs": xs, "obstacle": obstacle }));
        let operators =
            self.operators.iter().map(|(op, (n, what))| json!({ "operator": op, "nodes": n, "gradient": what }));
        let opsets = self.opsets().into_iter().map(|(domain, version)| (domain.to_owned(), json!(version)));
        let functions = self.functions().into_iter().map(|(name, nodes)| json!({ "name": name, "nodes": nodes }));
        json!({
            "opset": self.model.opset(""),
            "opsets": opsets.collect::<serde_json::Map<_, _>>(),
            "functions": functions.collect::<Vec<_>>(),
            "inputs": tensors(&self.inputs),
            "outputs": tensors(&self.outputs),
            "parameters": self.constants.iter().filter(is_weight).map(shown).collect::<Vec<_>>(),
            "constants": self.constants.iter().filter(|t| !is_weight(t)).map(shown).collect::<Vec<_>>(),
            "training": self.decisions,
            "operators": operators.collect::<Vec<_>>(),
            "reach": reach.collect::<Vec<_>>(),
            "stops": self.flow.stops,
            "shared": self.shared,
            "folded": self.folded,
            "unused": self.unused,
            "memory": self.memory,
            "warnings": self.loaded.warnings,
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut say = |text: String| out += &text;
        let opsets = self.opsets().into_iter().map(|(domain, version)| format!("{domain} {version}"));
        let opsets = opsets.collect::<Vec<_>>().join(", ");
        say(one_line(&format!("opset {}, {} nodes; imports {opsets}", self.model.opset("").unwrap_or(1), self.nodes))
            + "\n");
        for (what, tensors) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            say(format!("\n{what}\n"));
            tensors.iter().for_each(|(name, kind)| say(format!("  {}  {kind}\n", one_line(name))));
        }
        for (what, wanted) in [("parameters", true), ("constants", false)] {
            let mut table = Table::new([what, "type", "training", "why"]);
            let of = self.constants.iter().filter(|t| (t.kind == Kind::Weight) == wanted);
            of.for_each(|t| table.row([t.name.clone(), typed(t), self.training(t).to_owned(), self.why(t).to_owned()]));
            if !table.is_empty() {
                say(format!("\n{table}"));
            }
        }
        let mut table = Table::new(["operator", "nodes", "gradient"]);
        for (op, (count, what)) in &self.operators {
            table.row([op.clone(), count.to_string(), what.clone()]);
        }
        say(format!("\n{table}"));
        let mut table = Table::new(["function", "nodes"]);
        self.functions().into_iter().for_each(|(name, nodes)| table.row([name, nodes.to_string()]));
        if !table.is_empty() {
            say(format!("\n{table}"));
        }
        /// More are in the JSON.
        const MOST_STOPS: usize = 20;
        let mut table = Table::new(["gradients stop at", "input", "why"]);
        for stop in self.flow.stops.iter().take(MOST_STOPS) {
            table.row([format!("{} ({})", stop.node, stop.operator), stop.input.clone(), stop.why.clone()]);
        }
        if !table.is_empty() {
            say(format!("\n{table}"));
        }
        if let more @ 1.. = self.flow.stops.len().saturating_sub(MOST_STOPS) {
            say(format!("and {more} more (--json)\n"));
        }
        let notes = self.notes();
        if !notes.is_empty() {
            say(format!("\n{}\n", notes.iter().map(|n| one_line(n)).collect::<Vec<_>>().join("\n")));
        }
        for (y, connected, obstacle) in &self.reach {
            let text = match obstacle {
                Some(obstacle) => format!("{y}: {obstacle}"),
                None if connected.is_empty() => format!("{y} depends on nothing"),
                None => format!("{y} depends on {}", listed(connected)),
            };
            say(format!("\n{}\n", one_line(&text)));
        }
        out
    }

    /// What else there is to know, a sentence each.
    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        for shared in &self.shared {
            let names = match shared.aliases.is_empty() {
                true => String::new(),
                false => format!(", as {}", listed(&shared.aliases)),
            };
            let (n, places) = (shared.places.len(), listed(&shared.places));
            notes.push(format!("'{}' stands in {n} places{names}: {places}. {}", shared.name, upper(&shared.why)));
        }
        for folded in &self.folded {
            let (n, nodes) = (folded.nodes.len(), listed(&folded.nodes));
            notes.push(format!(
                "BatchNormalization is folded into {n} convolutions, most likely: {nodes}. {}",
                upper(&folded.why)
            ));
        }
        notes.extend(self.unused.lists().map(|(what, list)| format!("unused {what}: {}", listed(list))));
        // What was folded has been said.
        let known = |text: &&String| self.folded.is_empty() || !text.starts_with("no BatchNormalization");
        notes.extend(self.decisions.iter().filter(known).map(|text| format!("training: {text}")));
        notes.push(self.memory_text());
        notes
    }

    /// The memory of a step in words.
    fn memory_text(&self) -> String {
        let m = &self.memory;
        if !m.open.is_empty() {
            let symbols: Vec<String> = m.open.iter().map(|s| format!("{s}=…")).collect();
            return format!(
                "memory of a step: not known without the sizes of its dimensions; --dim {} says it",
                symbols.join(" ")
            );
        }
        let size = html::size;
        let mut parts = vec![format!("weights {}", size(m.weights)), format!("forward {}", size(m.forward))];
        match m.backward {
            Some(backward) => parts.push(format!("forward and backward {}", size(backward))),
            None => parts.push("no backward can be built".to_owned()),
        }
        parts.push(format!("gradients of what is trained {}", size(m.gradients)));
        parts.extend(m.optimizers.iter().map(|(name, bytes)| format!("state of {name} {}", size(*bytes))));
        let unknown = match m.unknown {
            0 => String::new(),
            n => format!("; without {n} tensors whose sizes follow from values"),
        };
        format!("memory of a step, at its peak, in the order of the nodes: {}{unknown}", parts.join(", "))
    }
}

fn upper(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
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
    /// A whole build tells of one y or of many: where all of a group can be differentiated, each can; else both halves
    /// are asked. After some builds the ys of a group share what is said of it, since each build takes as long as the
    /// model is large.
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
