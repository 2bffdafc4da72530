//! `Gradient` nodes of [ai.onnx.preview.training][spec], which hardly any engine runs, as nodes of the standard's
//! operators.
//!
//! A node `Gradient <xs, zs, y> (inputs)` means: the tensors named by xs and zs are independent variables that
//! determine the tensor y of the graph around the node; the outputs are the derivatives of y with respect to each of
//! xs, zs held constant, where the variables have the values of the inputs. Whatever computes a variable in the graph
//! is thereby cut off. Where an input is not the tensor of that name itself, what lies between it and y is computed
//! once more.
//!
//! Each node is lowered where it stands, and what it becomes counts as the model's own from then on, so that one whose
//! y another one has computed differentiates that.
//!
//! [spec]: https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Gradient.html

use super::{Aggregation, Flow, Pass};
use crate::error::Error;
use crate::expr::rewrite::{Here, Named, Rewrite, Rewritten};
use crate::expr::{Builder, Expr, GRADIENT_DOMAINS, is_gradient};
use crate::graph::{Graph, IdMap, IdSet, NodeId, ValueId};
use crate::model::Model;
use crate::onnx::order::{arranged, by_needs};
use crate::onnx::{ModelProto, NodeProto, attribute, did_you_mean};
use crate::record::Gradient;
use crate::rules::{self, OPERATORS};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::{HashMap, HashSet};

/// What to do first where one of these operators, named with their domains, has no gradient because it is one.
pub(super) fn remedy<'a>(mut operators: impl Iterator<Item = &'a str>) -> &'static str {
    let is = |op: &str| op.strip_suffix(".Gradient").is_some_and(|domain| GRADIENT_DOMAINS.contains(&domain));
    match operators.any(is) {
        true => "write Gradient nodes out first (grad --lower), ",
        false => "",
    }
}

/// A model without `Gradient` nodes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Lowered {
    /// The model as it was but for these nodes, in whose places others stand.
    pub model: Model,
    /// What has been lowered, in the order in which it was.
    pub nodes: Vec<LoweredNode>,
    /// How many nodes have been added.
    pub nodes_added: usize,
    /// What users should know.
    pub warnings: Vec<String>,
}

/// A `Gradient` node that has been lowered.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct LoweredNode {
    /// Its name, maybe empty.
    pub node: String,
    /// The tensor that is differentiated.
    pub y: String,
    /// The tensors that are held constant.
    pub zs: Vec<String>,
    /// For each x the tensor that holds its gradient; `None` for an output that the node leaves out.
    pub gradients: Vec<Gradient>,
    /// How many nodes between the variables and y are computed once more, for inputs that are other tensors than those
    /// named.
    pub copied: usize,
}

impl Model {
    /// Replaces the `Gradient` nodes of ai.onnx.preview.training in the main graph by what computes their outputs.
    ///
    /// Each y starts with ones, as in tf.gradients: of a tensor of many elements the sum is differentiated. An x on
    /// which y does not depend gets zeros where y depends on another one. The domain is imported no more if nothing
    /// else needs it.
    ///
    /// # Errors
    /// Names of no tensor; inputs that do not fit xs and zs; a y that depends on none of its xs, or on its own
    /// gradient; operators between them without a gradient; a `Gradient` node in a body of control flow or in a
    /// function.
    pub fn lower_gradients(&self) -> Result<Lowered, Error> {
        Ok(self.lowered()?)
    }

    fn lowered(&self) -> Result<Lowered> {
        let mut model = self.clone();
        check_places(&model.proto)?;
        if let Some(graph) = &mut model.proto.graph {
            graph.node = ordered(std::mem::take(&mut graph.node))?;
        }
        let (mut nodes, mut unconnected) = (Vec::new(), Vec::new());
        let rewrite = Rewrite::new("gradients").nodes(is_gradient, |here, node| {
            let (lowered, outputs) = lower(here, node, &mut unconnected)?;
            nodes.push(lowered);
            Ok(outputs)
        });
        let Rewritten { mut warnings, nodes_added, demanded } = rewrite.apply(&mut model.proto, OPERATORS)?;
        warnings.extend(unconnected);
        let demand = |(node, output)| format!("{node} has got the output '{output}', which its gradient needs");
        warnings.extend(demanded.into_iter().map(demand));
        if !nodes.is_empty() && !uses_domain(&model.proto) {
            model.proto.opset_import.retain(|o| !GRADIENT_DOMAINS.contains(&o.domain()));
        }
        // Calls of functions stay as they are and were not looked into: what they take had no known shape until now.
        if !nodes.is_empty() && !model.proto.functions.is_empty() {
            rules::load(&model.proto).context("a function of the model cannot take what a Gradient node computes")?;
        }
        Ok(Lowered { model, nodes, nodes_added, warnings })
    }
}

/// The outputs of a `Gradient` node, and what the report says of it.
fn lower<'g>(here: &Here<'g>, node: &NodeProto, warnings: &mut Vec<String>) -> Result<(LoweredNode, Named<'g>)> {
    let attributes = &node.attribute;
    let y = attribute::get_string(attributes, "y").context("attribute 'y' names no tensor")?;
    let xs = attribute::get_strings(attributes, "xs").context("attribute 'xs' names no tensors")?;
    let zs = attribute::get_strings(attributes, "zs").unwrap_or_default();
    let asked = asked(here, node, y, &xs, &zs)?;
    let built = build(here.builder(), &asked)?;
    let unconnected = built.unconnected.iter().filter_map(|&x| xs.get(x));
    warnings.extend(unconnected.map(|x| format!("'{y}' does not depend on '{x}', the gradient is zero")));
    let gradient = |(x, output): (&&str, &String)| Gradient {
        x: (*x).to_owned(),
        name: (!output.is_empty()).then(|| output.clone()),
    };
    let lowered = LoweredNode {
        node: node.name().to_owned(),
        y: y.to_owned(),
        zs: zs.iter().map(|&z| z.to_owned()).collect(),
        gradients: xs.iter().zip(&asked.outputs).map(gradient).collect(),
        copied: built.copied,
    };
    Ok((lowered, built.outputs))
}

/// What a node asks for.
struct Asked {
    y: ValueId,
    /// The tensor and the value of each x, then of each z.
    variables: Vec<(ValueId, ValueId)>,
    xs: usize,
    /// For each x the name of the output; empty where it is left out.
    outputs: Vec<String>,
}

/// The tensors that the node names, beside those that it takes.
fn asked(here: &Here<'_>, node: &NodeProto, y: &str, xs: &[&str], zs: &[&str]) -> Result<Asked> {
    let graph = here.builder().graph();
    let find = |what: &str, name: &str| {
        let hint = || did_you_mean(name, here.names());
        here.tensor(name).map(Expr::id).map_err(|_| anyhow!("{what}: no tensor is called '{name}'{}", hint()))
    };
    ensure!(!xs.is_empty(), "attribute 'xs' names no tensors");
    let count = xs.len() + zs.len();
    ensure!(node.input.len() == count, "{} inputs are given for {count} names in xs and zs", node.input.len());
    ensure!(node.output.len() <= xs.len(), "{} outputs are asked for of {} xs", node.output.len(), xs.len());
    let y = find("y", y)?;
    ensure!(graph.fact(y).may_carry_gradient(), "y is not of a floating-point type and has no gradient");
    let mut variables = Vec::with_capacity(count);
    let mut seen = IdSet::default();
    for (i, (name, input)) in xs.iter().chain(zs).zip(&node.input).enumerate() {
        let what = if i < xs.len() { "xs" } else { "zs" };
        let (variable, value) = (find(what, name)?, find("its inputs", input)?);
        ensure!(seen.insert(variable), "'{name}' is a variable twice");
        ensure!(
            i >= xs.len() || graph.fact(variable).may_carry_gradient(),
            "x '{name}' is not of a floating-point type and has no gradient"
        );
        if let (Some(a), Some(b)) = (graph.fact(variable).element, graph.fact(value).element) {
            ensure!(a == b, "input '{input}' is of type {}, '{name}' of type {}", b.name(), a.name());
        }
        variables.push((variable, value));
    }
    let output = |i: usize| node.output.get(i).cloned().unwrap_or_default();
    Ok(Asked { y, variables, xs: xs.len(), outputs: (0..xs.len()).map(output).collect() })
}

struct Built<'g> {
    /// The outputs by name.
    outputs: Named<'g>,
    /// The xs on which y does not depend.
    unconnected: Vec<usize>,
    copied: usize,
}

fn build<'g>(builder: &'g Builder, asked: &Asked) -> Result<Built<'g>> {
    // A value that stands for another tensor may be used elsewhere, too: only as an Identity it is a variable.
    let leaf = |&(variable, value): &(ValueId, ValueId)| if variable == value { value } else { builder.copy(value) };
    let leaves: Vec<ValueId> = asked.variables.iter().map(leaf).collect();
    let variables: IdSet<ValueId> = asked.variables.iter().map(|&(variable, _)| variable).collect();
    let mut map: IdMap<ValueId, ValueId> = (asked.variables.iter().zip(&leaves))
        .filter(|((variable, _), leaf)| variable != *leaf)
        .map(|(&(variable, _), &leaf)| (variable, leaf))
        .collect();

    let between = cone(&builder.graph(), asked.y, &variables);
    let (changed, mut nodes) = split_changed(&builder.graph(), between, map.keys().copied().collect());
    let before = builder.graph().scope(Graph::MAIN).nodes.len();
    builder.copy_all(&changed, &mut map);
    nodes.extend(builder.graph().scope(Graph::MAIN).nodes.iter().skip(before));
    let y = builder.expr(map.get(&asked.y).copied().unwrap_or(asked.y));

    let (xs, _) = leaves.split_at(asked.xs.min(leaves.len()));
    let pass = Pass::new(builder, Aggregation::AddN, leaves.iter().copied().collect(), &[]);
    let flows = pass.differentiate(&nodes, &[(y.id(), y.ones_like())], xs)?;
    ensure!(flows.iter().any(Option::is_some), "y does not depend on any of its xs");
    let mut built = Built { outputs: Vec::new(), unconnected: Vec::new(), copied: changed.len() };
    for (i, ((&x, flow), name)) in xs.iter().zip(flows).zip(&asked.outputs).enumerate() {
        if name.is_empty() {
            continue;
        }
        if flow.is_none() {
            built.unconnected.push(i);
        }
        let gradient = match flow {
            Some(Flow::Value(dx)) => dx.id(),
            Some(Flow::Zero) | None => builder.expr(x).zeros_like().id(),
        };
        built.outputs.push((name.clone(), builder.expr(gradient)));
    }
    Ok(built)
}

/// The nodes on which `y` depends, not looking behind the variables, in topological order.
fn cone(graph: &Graph, y: ValueId, variables: &IdSet<ValueId>) -> Vec<NodeId> {
    let mut found = IdSet::default();
    let mut open = vec![y];
    while let Some(value) = open.pop() {
        if let Some((id, _)) = graph.producer(value).filter(|_| !variables.contains(&value))
            && found.insert(id)
        {
            open.extend(graph.node(id).inputs.iter().flatten());
            open.extend(graph.captures(id));
        }
    }
    let mut nodes: Vec<NodeId> = found.into_iter().collect();
    nodes.sort_unstable();
    nodes
}

/// Parts nodes into those that depend on one of the values, and the others.
fn split_changed(graph: &Graph, nodes: Vec<NodeId>, mut changed: IdSet<ValueId>) -> (Vec<NodeId>, Vec<NodeId>) {
    nodes.into_iter().partition(|&id| {
        let node = graph.node(id);
        let depends = node.inputs.iter().flatten().any(|i| changed.contains(i))
            || (!node.bodies.is_empty() && graph.captures(id).iter().any(|v| changed.contains(v)));
        if depends {
            changed.extend(node.outputs.iter().flatten());
        }
        depends
    })
}

/// Whether a node, or one in its bodies, is wanted. Nesting is as deep as protobuf allows.
fn any_node(node: &NodeProto, wanted: &impl Fn(&NodeProto) -> bool) -> bool {
    wanted(node) || node.bodies().any(|body| body.node.iter().any(|n| any_node(n, wanted)))
}

fn check_places(model: &ModelProto) -> Result<()> {
    for node in model.graph.iter().flat_map(|g| &g.node) {
        let inside = node.bodies().any(|body| body.node.iter().any(|n| any_node(n, &is_gradient)));
        ensure!(
            !inside,
            "node '{}' ({}) holds a Gradient node in its body, where it cannot be lowered; move it to the main graph",
            node.name(),
            node.op_type()
        );
    }
    for function in &model.functions {
        ensure!(
            !function.node.iter().any(|n| any_node(n, &is_gradient)),
            "function '{}' holds a Gradient node, which cannot be lowered there; inline the function",
            function.name()
        );
    }
    Ok(())
}

fn uses_domain(model: &ModelProto) -> bool {
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    let functions = model.functions.iter().flat_map(|f| &f.node);
    nodes.chain(functions).any(|node| any_node(node, &|n| GRADIENT_DOMAINS.contains(&n.domain())))
}

/// What a node needs before it: its inputs, what its bodies use, and the tensors that a `Gradient` node names.
fn needs(node: &NodeProto) -> HashSet<String> {
    let mut names = HashSet::new();
    node.uses(&mut |name| {
        names.insert(name.to_owned());
    });
    if is_gradient(node) {
        let listed = ["xs", "zs"].into_iter().filter_map(|a| attribute::get_strings(&node.attribute, a)).flatten();
        names.extend(listed.chain(attribute::get_string(&node.attribute, "y")).map(str::to_owned));
    }
    names
}

/// The nodes with every `Gradient` node behind the tensors that it names, which ONNX does not ask for; otherwise as
/// they are.
///
/// # Errors
/// What a `Gradient` node names depends on its outputs.
fn ordered(nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        producer.extend(node.output.iter().filter(|o| !o.is_empty()).map(|o| (o.as_str(), i)));
    }
    let early = |(i, node): (usize, &NodeProto)| {
        is_gradient(node) && needs(node).iter().any(|n| producer.get(n.as_str()).is_some_and(|&p| p >= i))
    };
    if !nodes.iter().enumerate().any(early) {
        return Ok(nodes);
    }
    let before = |node: &NodeProto| needs(node).iter().filter_map(|n| producer.get(n.as_str()).copied()).collect();
    let before: Vec<Vec<usize>> = nodes.iter().map(before).collect();
    let order = by_needs(&before);
    let placed: HashSet<usize> = order.iter().copied().collect();
    if let Some(stuck) = (0..nodes.len()).find(|i| !placed.contains(i) && is_gradient(&nodes[*i])) {
        bail!("node '{}' (Gradient): what it differentiates depends on its own outputs", nodes[stuck].name());
    }
    ensure!(order.len() == nodes.len(), "the graph is cyclic");
    Ok(arranged(nodes, order))
}
