//! Where a model ends in a Softmax or Sigmoid that a loss has in it already: the tensor to compute the loss from.

use crate::expr::{Builder, Expr, normalize_axis};
use crate::graph::{Dim, Graph, IdMap, Node, NodeId, Poles, ValueId};
use crate::onnx::attribute;
use crate::rules::properties::{Arithmetic, Gives, Moves};
use crate::rules::{self, Rule};
use anyhow::{Context, Result};
use std::rc::Rc;

/// What a loss is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Any numbers.
    Numbers,
    /// Numbers that a softmax makes probabilities of.
    Logits,
    /// Logarithms of probabilities.
    LogProbabilities,
    /// Numbers that a sigmoid makes probabilities of.
    SigmoidLogits,
    /// Probabilities.
    Probabilities,
}

/// The last operator of an output, taken off.
pub struct Ending<'g> {
    /// The output as it would be without the operator, in the same shape.
    pub x: Expr<'g>,
    /// The operator.
    pub op: Rc<str>,
    /// The axis of the output that it normalizes, where it normalizes one.
    pub axis: Option<usize>,
}

/// What the output would be without its last operator, where a loss of the domain has that operator in it. Operators
/// that only move elements may follow it.
///
/// # Errors
/// A softmax whose axis is not one of the output's.
pub fn find<'g>(builder: &'g Builder, (name, id): (&str, ValueId), of: Domain) -> Result<Option<Ending<'g>>> {
    let ends = |gives: Gives| match of {
        Domain::Logits | Domain::LogProbabilities => matches!(gives, Gives::AlongAxis | Gives::FromAxis),
        Domain::SigmoidLogits | Domain::Probabilities => gives == Gives::Chances,
        Domain::Numbers => false,
    };
    let (mut value, mut moves) = (id, Vec::new());
    loop {
        let Some((node_id, 0)) = builder.graph().producer(value) else { return Ok(None) };
        let node = builder.graph().node(node_id).clone();
        let Some(Some(input)) = node.inputs.first().copied().filter(|_| node.domain.is_empty()) else {
            return Ok(None);
        };
        let rule = rules::find("", &node.op_type, builder.graph().opset(""));
        if let Some((op, power, axis)) = spelled_out(builder, &node).filter(|_| ends(Gives::AlongAxis)) {
            moves.reverse();
            // An axis that cannot be followed is one that the loss looks for by itself.
            let axis = followed(builder, axis, &moves);
            let mut map = IdMap::from_iter([(value, power)]);
            builder.copy_all(&moves, &mut map);
            return Ok(Some(Ending { x: builder.expr(*map.get(&id).unwrap_or(&power)), op, axis }));
        }
        if let Some(gives) = rule.map(|r| r.gives).filter(|&gives| ends(gives)) {
            moves.reverse();
            let op = node.op_type.clone();
            let sizes = || Some(builder.graph().fact(input).shape.clone()?.to_vec());
            let axis = || followed(builder, normalized(&node, gives, &sizes()?)?, &moves);
            let axis = match gives {
                Gives::Chances => None,
                _ => Some(axis().with_context(|| {
                    format!(
                        "'{name}' comes from a {op} that normalizes no single axis of it: name the tensor that goes into the {op} as the loss's output"
                    )
                })?),
            };
            let mut map = IdMap::from_iter([(value, input)]);
            builder.copy_all(&moves, &mut map);
            return Ok(Some(Ending { x: builder.expr(*map.get(&id).unwrap_or(&input)), op, axis }));
        }
        let keeps_all = rule.is_some_and(Rule::keeps_all);
        let float = builder.expr(input).is_float();
        if !keeps_all || !float || node.scope != Graph::MAIN {
            return Ok(None);
        }
        moves.push(node_id);
        value = input;
    }
}

/// Of a softmax that is spelled out, exp(x) / Σ exp(x), whose division this is: the operator of the powers, x, and the
/// axis that is summed.
fn spelled_out(builder: &Builder, division: &Node) -> Option<(Rc<str>, ValueId, usize)> {
    let graph = builder.graph();
    let rule = |node: &Node| rules::find("", &node.op_type, graph.opset("")).filter(|_| node.domain.is_empty());
    let &[Some(powers), Some(divisor)] = division.inputs.as_slice() else { return None };
    rule(division).filter(|r| r.arithmetic == Arithmetic::Within && r.poles == Poles::Divided)?;
    let power = graph.node(graph.producer(powers)?.0);
    rule(power).filter(|r| r.gives == Gives::Powers)?;
    let (rank, of_sum) = (graph.fact(powers).rank()?, graph.fact(divisor).rank()?);
    // The sum is laid along the powers again.
    let mut value = divisor;
    let sum = loop {
        let node = graph.node(graph.producer(value)?.0);
        match rule(node)? {
            r if r.sums => break node,
            r if matches!(r.moves, Moves::InOrder | Moves::Parts) => value = node.inputs.first().copied().flatten()?,
            _ => return None,
        }
    };
    let listed = |v: &Option<ValueId>| builder.expr((*v)?).ints();
    let axes = attribute::get_ints(&sum.attributes, "axes").map(<[i64]>::to_vec);
    let axes = axes.or_else(|| sum.inputs.get(1).and_then(listed))?;
    let &[axis] = axes.as_slice() else { return None };
    let whole = rank == of_sum && sum.inputs.first() == Some(&Some(powers));
    let axis = normalize_axis(axis, rank).ok().filter(|_| whole)?;
    Some((power.op_type.clone(), power.inputs.first().copied().flatten()?, axis))
}

/// The axis that a softmax normalizes, behind operators that move elements.
fn followed(builder: &Builder, mut axis: usize, moves: &[NodeId]) -> Option<usize> {
    let shape = |value: Option<ValueId>| Some(builder.graph().fact(value?).shape.clone()?.to_vec());
    for &id in moves {
        let node = builder.graph().node(id).clone();
        let (before, after) = (shape(*node.inputs.first()?)?, shape(*node.outputs.first()?)?);
        let rule = rules::find("", &node.op_type, builder.graph().opset(""))?;
        axis = match rule.moves {
            _ if before == after && rule.moves == Moves::InOrder => axis,
            Moves::Transposed => match attribute::get_ints(&node.attributes, "perm") {
                Some(perm) => perm.iter().position(|&p| usize::try_from(p) == Ok(axis))?,
                None => before.len().checked_sub(axis + 1)?,
            },
            // In the order of memory an axis stays one where as many elements lie behind it.
            _ => {
                let behind = |shape: &[Dim], axis: usize| -> Option<Dim> {
                    let rest = shape.get(axis + 1..)?.iter().copied();
                    Some(builder.dims(|d| d.product(rest)))
                };
                let rest = behind(&before, axis);
                (0..after.len()).find(|&a| after.get(a) == before.get(axis) && behind(&after, a) == rest)?
            }
        };
    }
    Some(axis)
}

/// The one axis that a softmax normalizes: of several only one may be longer than 1.
fn normalized(softmax: &Node, gives: Gives, sizes: &[Dim]) -> Option<usize> {
    let given = attribute::get_int(&softmax.attributes, "axis");
    if gives == Gives::AlongAxis {
        return normalize_axis(given.unwrap_or(-1), sizes.len()).ok();
    }
    let first = normalize_axis(given.unwrap_or(1), sizes.len()).ok()?;
    let mut long = (first..sizes.len()).filter(|&a| sizes.get(a) != Some(&Dim::Known(1)));
    match (long.next(), long.next()) {
        (None, _) => Some(first),
        (Some(axis), None) => Some(axis),
        _ => None,
    }
}
