//! The page of `inspect --html`: a picture of the graph, and all that is found of the model, as one file that needs
//! nothing else.

use super::{Seen, listed, typed};
use crate::cli::html::{self, Plain};
use crate::graph::{Graph, NodeId};
use crate::survey::{Flow, Layer, Layers, State, layers};
use crate::weights::Kind;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};

const STYLE: &str = include_str!("page.css");

/// A graph of so many nodes is drawn node by node, a larger one by layers.
const SINGLE: usize = 40;
/// So many boxes can still be looked at.
const MOST_BOXES: usize = 300;
/// So many names stand in a list of a layer.
const MOST_NAMES: usize = 200;
/// So many inputs and outputs are drawn.
const MOST_ENDS: usize = 12;

/// The page of a model of that name.
///
/// # Errors
/// None but those of formatting.
pub fn page(name: &str, seen: &Seen<'_>) -> Result<String, fmt::Error> {
    let graph = &seen.loaded.graph;
    let layers = layers(graph, &seen.flow, SINGLE, MOST_BOXES);
    let mut out = html::head(&format!("onnx-gradients inspect: {name}"), STYLE);
    let opsets = seen.opsets().into_iter().map(|(domain, version)| format!("{domain} {version}"));
    let opsets = opsets.collect::<Vec<_>>().join(", ");
    writeln!(
        out,
        "<h1>{}</h1>\n<div class=\"dim\">{} nodes · imports {}</div>",
        Plain(name),
        seen.nodes,
        Plain(&opsets)
    )?;
    tiles(&mut out, seen)?;
    for warning in &seen.loaded.warnings {
        writeln!(out, "<p><span class=\"allowed\">warning:</span> {}</p>", Plain(warning))?;
    }
    picture(&mut out, seen, &layers)?;
    ys(&mut out, seen)?;
    stops(&mut out, seen)?;
    let notes = seen.notes();
    if !notes.is_empty() {
        writeln!(out, "<h2>What else there is to know</h2>\n<ul>")?;
        notes.iter().try_for_each(|note| writeln!(out, "<li>{}</li>", Plain(note)))?;
        writeln!(out, "</ul>")?;
    }
    tensors(&mut out, seen)?;
    operators(&mut out, seen)?;
    writeln!(
        out,
        "<h2>Each {}</h2>",
        if layers.layers.len() == graph.scope(Graph::MAIN).nodes.len() { "node" } else { "layer" }
    )?;
    for (n, layer) in layers.layers.iter().enumerate() {
        section(&mut out, seen, n, layer)?;
    }
    writeln!(out, "<script>\n{SCRIPT}</script>\n</body>\n</html>")?;
    Ok(out)
}

/// What a link leads to is opened.
const SCRIPT: &str = "\"use strict\";
function open() {
  const section = location.hash && document.getElementById(location.hash.slice(1));
  if (section && section.tagName === \"DETAILS\") section.open = true;
}
addEventListener(\"hashchange\", open);
open();
";

fn tiles(out: &mut String, seen: &Seen<'_>) -> fmt::Result {
    let trained = seen.constants.iter().filter(|t| seen.training(t) == "trained");
    let (count, elements) =
        trained.fold((0usize, 0usize), |(n, all), t| (n + 1, all + t.value.element_count().unwrap_or(0)));
    let stops = seen.flow.stops.len();
    writeln!(out, "<div class=\"tiles\">")?;
    for (class, number, what) in [
        ("", seen.nodes.to_string(), "nodes"),
        ("", count.to_string(), "parameters trained by default"),
        ("", counted(elements), "numbers in them"),
        (
            if stops > 0 { "allowed" } else { "" },
            stops.to_string(),
            if stops == 1 { "place where gradients stop" } else { "places where gradients stop" },
        ),
    ] {
        writeln!(out, "<div class=\"tile\"><b class=\"{class}\">{number}</b>{what}</div>")?;
    }
    writeln!(out, "</div>")
}

fn class(state: State) -> &'static str {
    match state {
        State::Flows => "flows",
        State::Stops => "stops",
        State::Missing => "missing",
        State::Idle => "idle",
    }
}

/// A box of the picture.
struct Drawn {
    class: &'static str,
    title: String,
    /// Below the title.
    lines: [String; 2],
    state: String,
    /// The section that tells more.
    link: Option<usize>,
    rank: usize,
    /// The row that it stands in, from above.
    row: usize,
    x: f64,
    y: f64,
}

const WIDTH: f64 = 228.0;
const HEIGHT: f64 = 72.0;
const BESIDE: f64 = 20.0;
const BELOW: f64 = 34.0;
/// So many boxes stand side by side.
const COLUMNS: usize = 5;
/// How far apart the lines beside the boxes are, and how many there are before they fall together.
const LANE: f64 = 7.0;
const LANES: usize = 24;

/// The boxes: inputs, layers, outputs.
fn boxes(seen: &Seen<'_>, layers: &Layers) -> (Vec<Drawn>, BTreeMap<(usize, usize), bool>) {
    let graph = &seen.loaded.graph;
    let scope = graph.scope(Graph::MAIN);
    let weights: HashMap<&str, usize> = (seen.constants.iter())
        .filter(|t| t.kind == Kind::Weight)
        .map(|t| (t.name.as_str(), t.value.element_count().unwrap_or(0)))
        .collect();
    let mut drawn: Vec<Drawn> =
        layers.layers.iter().enumerate().map(|(n, l)| layer_box(graph, &seen.flow, &weights, n, l)).collect();
    let mut edges = layers.edges.clone();
    let end = |id, title: &str, rank, carries| Drawn {
        class: if carries { "flows" } else { "idle" },
        title: graph.value(id).name.as_deref().unwrap_or_default().to_owned(),
        lines: [super::display(graph, graph.fact(id)), title.to_owned()],
        state: String::new(),
        link: None,
        rank,
        row: 0,
        x: 0.0,
        y: 0.0,
    };
    let mut places: BTreeMap<usize, usize> = BTreeMap::new();
    // Initializers that are inputs too are parameters, and unused inputs lead nowhere.
    for (&(input, to), &carries) in &layers.inputs {
        let id = scope.inputs[input];
        if weights.contains_key(graph.value(id).name.as_deref().unwrap_or_default()) {
            continue;
        }
        if !places.contains_key(&input) && places.len() >= MOST_ENDS {
            continue;
        }
        let place = *places.entry(input).or_insert(drawn.len());
        if place == drawn.len() {
            drawn.push(end(id, "input", 0, carries));
        }
        if carries {
            drawn[place].class = "flows";
        }
        edges.insert((place, to), carries);
    }
    // Inputs stand above all layers.
    let below = usize::from(!places.is_empty());
    drawn[..layers.layers.len()].iter_mut().for_each(|d| d.rank += below);
    let last = drawn.iter().map(|d| d.rank).max().unwrap_or(0) + 1;
    for (&output, &from) in layers.outputs.iter().take(MOST_ENDS) {
        let id = scope.outputs[output];
        let carries = seen.flow.carries(id);
        edges.insert((from, drawn.len()), carries);
        drawn.push(end(id, "output", last, carries));
    }
    (drawn, edges)
}

fn layer_box(graph: &Graph, flow: &Flow, weights: &HashMap<&str, usize>, n: usize, layer: &Layer) -> Drawn {
    let main = layer.main.or(layer.nodes.first().copied());
    let single = layer.nodes.len() == 1;
    let name = |id: NodeId| graph.place(id).node.unwrap_or_default();
    let operator = |id: NodeId| graph.place(id).operator.unwrap_or_default();
    let mut operators: Vec<(String, usize)> = Vec::new();
    // What computes shapes and the like is told apart by the gradient that it has none of.
    let flowing = |id: &&NodeId| flow.state(**id) != State::Idle;
    let all = layer.state == State::Idle;
    for op in layer.nodes.iter().filter(|id| all || flowing(id)).map(|&id| operator(id)) {
        match operators.iter_mut().find(|(known, _)| *known == op) {
            Some((_, count)) => *count += 1,
            None => operators.push((op, 1)),
        }
    }
    let own = main.map(operator).unwrap_or_default();
    operators.sort_by_key(|(op, count)| (*op != own, usize::MAX - count));
    let listed = |(op, count): &(String, usize)| if *count > 1 { format!("{op} ×{count}") } else { op.clone() };
    let shape = layer.nodes.last().and_then(|&id| graph.node(id).outputs.iter().flatten().next());
    let shape = shape.map(|&v| super::display(graph, graph.fact(v))).unwrap_or_default();
    let inputs = layer.nodes.iter().flat_map(|&id| graph.node(id).inputs.iter().flatten());
    let mut names: Vec<&str> = inputs.filter_map(|&v| graph.value(v).name.as_deref()).collect();
    names.sort_unstable();
    names.dedup();
    let held: Vec<usize> = names.iter().filter_map(|name| weights.get(name).copied()).collect();
    let held = match held.len() {
        0 => String::new(),
        1 => format!(" · 1 parameter of {}", counted(held[0])),
        n => format!(" · {n} parameters of {}", counted(held.iter().sum())),
    };
    let first = match single {
        true => shape.clone(),
        false => operators.iter().map(listed).collect::<Vec<_>>().join(", "),
    };
    let second = match single {
        true => held.trim_start_matches(" · ").to_owned(),
        false => format!("{}{held}", many(layer.nodes.len())),
    };
    let stops = match layer.stops {
        0 => String::new(),
        1 if single => "not to all inputs".to_owned(),
        n => format!("stops on {n} ways aside"),
    };
    let state = match (layer.state, layer.stops) {
        (State::Flows, 0) => "gradient flows".to_owned(),
        (State::Flows, _) => format!("gradient flows, {stops}"),
        (State::Stops, _) => "gradient stops here".to_owned(),
        (State::Missing, _) => "no gradient is known".to_owned(),
        (State::Idle, _) => "no gradient".to_owned(),
    };
    // Exporters call nodes by their module and operator.
    let short = |id| name(id).strip_suffix(&format!("/{}", operator(id))).map_or_else(|| name(id), str::to_owned);
    let title = main.map(|id| format!("{} {}", operator(id), short(id))).unwrap_or_default();
    let class = class(layer.state);
    Drawn { class, title, lines: [first, second], state, link: Some(n), rank: layer.rank, row: 0, x: 0.0, y: 0.0 }
}

/// Gives each box its place, and returns the width of the boxes and the height of all.
fn arranged(drawn: &mut [Drawn]) -> (f64, f64) {
    let mut ranks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    drawn.iter().enumerate().for_each(|(n, d)| ranks.entry(d.rank).or_default().push(n));
    let widest = ranks.values().map(Vec::len).max().unwrap_or(1).min(COLUMNS);
    let width = widest as f64 * (WIDTH + BESIDE) - BESIDE;
    let mut y = 1.0;
    let mut line = 0;
    for boxes in ranks.values() {
        for row in boxes.chunks(COLUMNS) {
            let used = row.len() as f64 * (WIDTH + BESIDE) - BESIDE;
            for (i, &n) in row.iter().enumerate() {
                drawn[n].x = 1.0 + (width - used) / 2.0 + i as f64 * (WIDTH + BESIDE);
                drawn[n].y = y;
                drawn[n].row = line;
            }
            line += 1;
            y += HEIGHT + BELOW;
        }
    }
    (width, y - BELOW + 1.0)
}

fn picture(out: &mut String, seen: &Seen<'_>, layers: &Layers) -> fmt::Result {
    let (mut drawn, edges) = boxes(seen, layers);
    let (width, height) = arranged(&mut drawn);
    let nodes = seen.loaded.graph.scope(Graph::MAIN).nodes.len();
    let what = match layers.layers.len() {
        n if n == nodes => "each node a box".to_owned(),
        n => format!("{nodes} nodes in {n} boxes: a layer with what follows it"),
    };
    writeln!(
        out,
        "<h2>Where gradients flow</h2>\n<p class=\"dim\">From the outputs back to the inputs and parameters; {what}.</p>"
    )?;
    writeln!(
        out,
        "<ul class=\"key\"><li><span class=\"flows\"></span>a gradient flows</li><li><span class=\"stops\"></span>it stops \
         here, although an x lies before</li><li><span class=\"missing\"></span>no gradient of an operator is known</li>\
         <li><span class=\"idle\"></span>none arrives, or there is nothing before</li></ul>"
    )?;
    // Lines that pass boxes go beside all of them, each in the first lane that is free there.
    let mut lanes: Vec<f64> = Vec::new();
    let mut lines = String::new();
    let mut edges: Vec<((usize, usize), bool)> = edges.into_iter().collect();
    edges.sort_by(|a, b| drawn[a.0.0].y.total_cmp(&drawn[b.0.0].y).then(a.0.cmp(&b.0)));
    for ((from, to), carries) in edges {
        let (a, b) = (&drawn[from], &drawn[to]);
        let class = if carries { " class=\"carries\"" } else { "" };
        if b.row == a.row + 1 {
            let (x1, y1, x2, y2) = (a.x + WIDTH / 2.0, a.y + HEIGHT, b.x + WIDTH / 2.0, b.y);
            let (above, below) = (y1 + BELOW / 2.0, y2 - BELOW / 2.0);
            writeln!(
                lines,
                "<path{class} d=\"M{x1:.0} {y1:.0}C{x1:.0} {above:.0} {x2:.0} {below:.0} {x2:.0} {y2:.0}\"/>"
            )?;
            continue;
        }
        let (x1, y1, x2, y2) = (a.x + WIDTH * 0.8, a.y + HEIGHT, b.x + WIDTH * 0.8, b.y);
        let free = lanes.iter().position(|&end| end <= y1);
        let lane = free.unwrap_or(lanes.len()).min(LANES - 1);
        if lane == lanes.len() {
            lanes.push(y2);
        } else {
            lanes[lane] = lanes[lane].max(y2);
        }
        // Between the rows neighbours of the lane lie apart as well.
        let (side, apart) = (width + 12.0 + lane as f64 * LANE, (lane % 4) as f64 * 3.0);
        let (out, back) = (y1 + 6.0 + apart, y2 - 6.0 - apart);
        writeln!(lines, "<path{class} d=\"M{x1:.0} {y1:.0}V{out:.0}H{side:.0}V{back:.0}H{x2:.0}V{y2:.0}\"/>")?;
    }
    let widest = lanes.len();
    let whole = width + 2.0 + if widest > 0 { 16.0 + widest as f64 * LANE } else { 0.0 };
    writeln!(
        out,
        "<div class=\"picture\"><svg width=\"{whole:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {whole:.0} {height:.0}\" \
         role=\"img\" aria-label=\"The graph, from its inputs above to its outputs below\">\n{lines}"
    )?;
    drawn.iter().try_for_each(|d| draw(out, d))?;
    writeln!(out, "</svg></div>")
}

fn draw(out: &mut String, d: &Drawn) -> fmt::Result {
    let Drawn { class, title, lines, state, link, x, y, .. } = d;
    if let Some(n) = link {
        write!(out, "<a href=\"#g{n}\">")?;
    }
    let whole = [title.as_str(), &lines[0], &lines[1], state].join("\n");
    write!(out, "<g class=\"{class}\" transform=\"translate({x:.0} {y:.0})\"><title>{}</title>", Plain(&whole))?;
    let round = if link.is_some() { 6.0 } else { HEIGHT / 2.0 };
    write!(out, "<rect class=\"box\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"{round}\"/>")?;
    let left = if link.is_some() { 14.0 } else { 26.0 };
    if link.is_some() {
        write!(out, "<rect class=\"band\" width=\"6\" height=\"{HEIGHT}\" rx=\"3\"/>")?;
    }
    let rows = [("", title, 17.0), ("small", &lines[0], 33.0), ("small", &lines[1], 48.0), ("state", state, 64.0)];
    for (class, text, at) in rows.into_iter().filter(|(_, text, _)| !text.is_empty()) {
        let at = if link.is_some() { at } else { at + 9.0 };
        write!(
            out,
            "<text class=\"{class}\" x=\"{left}\" y=\"{at}\">{}</text>",
            Plain(&cut(text, if class.is_empty() { 30 } else { 35 }))
        )?;
    }
    writeln!(out, "</g>{}", if link.is_some() { "</a>" } else { "" })
}

fn many(nodes: usize) -> String {
    if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") }
}

/// A number with its thousands apart.
fn counted(n: usize) -> String {
    let digits = n.to_string();
    let parts = digits.as_bytes().rchunks(3).rev().map(|part| String::from_utf8_lossy(part).into_owned());
    parts.collect::<Vec<_>>().join(",")
}

/// What fits into a box: of a long name the begin and the end.
fn cut(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= most {
        return text.to_owned();
    }
    let (front, back) = (most / 3, most - most / 3 - 1);
    chars[..front].iter().chain(&['…']).chain(&chars[chars.len() - back..]).collect()
}

/// What each output depends on, or what stands in its way.
fn ys(out: &mut String, seen: &Seen<'_>) -> fmt::Result {
    writeln!(out, "<h2>Outputs</h2>\n<dl>")?;
    for (y, xs, obstacle) in &seen.reach {
        let text = match obstacle {
            Some(obstacle) => format!("<span class=\"bad\">{}</span>", Plain(obstacle)),
            None if xs.is_empty() => "depends on nothing".to_owned(),
            None => format!("depends on {}", Plain(&listed(xs))),
        };
        writeln!(out, "<dt><code>{}</code></dt><dd>{text}</dd>", Plain(y))?;
    }
    writeln!(out, "</dl>")
}

fn stops(out: &mut String, seen: &Seen<'_>) -> fmt::Result {
    if seen.flow.stops.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>Where gradients stop, and why</h2>\n<div class=\"wide\"><table><thead><tr><th>node</th>")?;
    writeln!(out, "<th>operator</th><th>input that gets nothing</th><th>why</th></tr></thead><tbody>")?;
    for stop in seen.flow.stops.iter().take(MOST_NAMES) {
        writeln!(
            out,
            "<tr><td class=\"name\">{}</td><td><code>{}</code></td><td class=\"name\">{}</td><td class=\"message\">{}</td></tr>",
            Plain(&stop.node),
            Plain(&stop.operator),
            Plain(&stop.input),
            Plain(&stop.why)
        )?;
    }
    writeln!(out, "</tbody></table></div>")?;
    match seen.flow.stops.len().saturating_sub(MOST_NAMES) {
        0 => Ok(()),
        more => writeln!(out, "<p class=\"dim\">and {more} more (--json lists all)</p>"),
    }
}

fn tensors(out: &mut String, seen: &Seen<'_>) -> fmt::Result {
    for (what, wanted) in [("Parameters", true), ("Constants", false)] {
        let of = seen.constants.iter().filter(|t| (t.kind == Kind::Weight) == wanted);
        let of: Vec<_> = of.collect();
        if of.is_empty() {
            continue;
        }
        writeln!(out, "<h2>{what}</h2>\n<div class=\"wide\"><table><thead><tr><th>name</th><th>type</th>")?;
        writeln!(out, "<th>training by default</th><th>why</th></tr></thead><tbody>")?;
        for t in of {
            writeln!(
                out,
                "<tr><td class=\"name\">{}</td><td class=\"code\">{}</td><td class=\"code\">{}</td><td class=\"message\">{}</td></tr>",
                Plain(&t.name),
                Plain(&typed(t)),
                seen.training(t),
                Plain(seen.why(t))
            )?;
        }
        writeln!(out, "</tbody></table></div>")?;
    }
    Ok(())
}

fn operators(out: &mut String, seen: &Seen<'_>) -> fmt::Result {
    writeln!(out, "<h2>Operators</h2>\n<div class=\"wide\"><table><thead><tr><th>operator</th>")?;
    writeln!(out, "<th class=\"n\">nodes</th><th>gradient</th></tr></thead><tbody>")?;
    for (op, (count, what)) in &seen.operators {
        let class = if what == "not known" { " class=\"bad\"" } else { "" };
        writeln!(
            out,
            "<tr><td><code>{}</code></td><td class=\"n\">{count}</td><td{class}>{}</td></tr>",
            Plain(op),
            Plain(what)
        )?;
    }
    writeln!(out, "</tbody></table></div>")
}

/// The nodes of a layer.
fn section(out: &mut String, seen: &Seen<'_>, n: usize, layer: &Layer) -> fmt::Result {
    let graph = &seen.loaded.graph;
    let place = |id: NodeId| graph.place(id);
    let title = layer.main.or(layer.nodes.first().copied()).map(|id| place(id).text).unwrap_or_default();
    writeln!(
        out,
        "<details id=\"g{n}\"><summary>{} <span class=\"dim\">{}</span></summary>",
        Plain(&title),
        many(layer.nodes.len())
    )?;
    writeln!(
        out,
        "<div class=\"wide\"><table><thead><tr><th>node</th><th>operator</th><th>output</th><th>gradient</th></tr>"
    )?;
    writeln!(out, "</thead><tbody>")?;
    for &id in layer.nodes.iter().take(MOST_NAMES) {
        let (node, at) = (graph.node(id), place(id));
        let output = node.outputs.iter().flatten().next();
        let output = output.map(|&v| super::display(graph, graph.fact(v))).unwrap_or_default();
        let state = match (seen.flow.state(id), seen.flow.stops_in(id)) {
            (State::Flows, false) => "flows",
            (State::Flows, true) => "flows, but not to all inputs",
            (State::Stops, _) => "stops",
            (State::Missing, _) => "is not known",
            (State::Idle, _) => "",
        };
        writeln!(
            out,
            "<tr><td class=\"name\">{}</td><td><code>{}</code></td><td class=\"code\">{}</td><td>{state}</td></tr>",
            Plain(at.node.as_deref().unwrap_or_default()),
            Plain(at.operator.as_deref().unwrap_or_default()),
            Plain(&output)
        )?;
    }
    writeln!(out, "</tbody></table></div></details>")
}
