//! Sequences and optionals, as carriers of gradients.
//!
//! The gradient of a sequence is a sequence of as many tensors, that of an optional is that of what it holds.

mod facts;

use super::Slot::*;
use super::ports::{Port, Ports};
use super::properties::Counts::Item;
use super::properties::read;
use super::{Call, Cotangents, Rule, rule};
use crate::expr::Expr;
use crate::graph::facts::tensor;
use crate::graph::{Bodies, Container, Fact};
use crate::onnx::ElementType;
use anyhow::{Context, Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("SequenceConstruct", "dxᵢ = dy[i]", &[Each(|c, i| c.dy().sequence_at(c.builder().int(i as i64)))])
        .facts(facts::construct),
    rule("SequenceEmpty", "none", &[Stop("no inputs")])
        .facts(facts::empty)
        .attributes("dtype")
        .types(&[("dtype", Some(ElementType::Float))]),
    rule("SequenceAt", "ds = zeros with dy in the place", &[Formula(at), Stop("position")])
        .facts(facts::at)
        .indices(&[read(1, Item(0))]),
    rule(
        "SequenceInsert",
        "ds = dy without the place, dx = dy at the place",
        &[
            Formula(|c| c.dy().sequence_erase(inserted_at(c))),
            Formula(|c| c.dy().sequence_at(inserted_at(c).unwrap_or(c.builder().int(-1)))),
            Stop("position"),
        ],
    )
    .facts(facts::insert)
    .indices(&[read(2, Item(0))]),
    rule("SequenceErase", "ds = dy with zeros in the place", &[Formula(erase), Stop("position")])
        .facts(facts::erase)
        .indices(&[read(1, Item(0))]),
    rule("SequenceLength", "none", &[Stop("a size")])
        .facts(|_| Ok(vec![tensor(Some(ElementType::Int64), Some(vec![]))])),
    rule("ConcatFromSequence", "ds = dy, split", &[Try(concat)]).facts(facts::concat).attributes("axis new_axis"),
    rule("SplitToSequence", "dx = dy, joined", &[Try(split), Stop("sizes")])
        .facts(facts::split)
        .attributes("axis keepdims"),
    rule(
        "SequenceMap",
        "the body's gradient, of each element; summed for tensors and for what it captures",
        &[Together(map)],
    )
    .bodies(Bodies::Protocol(&facts::MAP))
    .attributes("body"),
    rule("Optional", "dx = dy", &[Formula(|c| c.dy())]).facts(facts::optional).attributes("type"),
    rule("OptionalGetElement", "dx = dy", &[Formula(|c| c.dy())]).facts(facts::get_element),
    rule("OptionalHasElement", "none", &[Stop("a truth value")]).facts(facts::has_element),
];

/// A position in a sequence of that length, counted from the front.
fn from_front<'g>(position: Expr<'g>, s: Expr<'g>) -> Expr<'g> {
    let position = position.cast(ElementType::Int64).reshape_to(&[]);
    match position.ints().as_deref() {
        Some([p]) if *p >= 0 => position,
        Some([_]) => position + s.sequence_length(),
        _ => position.wrapped(s.sequence_length()),
    }
}

fn at<'g>(c: &Call<'g>) -> Expr<'g> {
    let s = c.x();
    s.zeros_like().sequence_replace(from_front(c.input(1), s), c.dy())
}

fn inserted_at<'g>(c: &Call<'g>) -> Option<Expr<'g>> {
    let s = c.x();
    c.opt(2).map(|position| from_front(position, s))
}

fn erase<'g>(c: &Call<'g>) -> Expr<'g> {
    let s = c.x();
    let zeros = s.sequence_at(c.opt(1).unwrap_or(c.builder().int(-1))).zeros_like();
    c.dy().sequence_insert(zeros, c.opt(1).map(|position| from_front(position, s)))
}

fn concat<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (s, dy) = (c.x(), c.dy());
    let axis = dy.axis(c.int("axis", 0))?;
    let known = s.elements();
    if c.flag("new_axis", false) {
        return Ok(match known {
            Some(elements) if !elements.is_empty() => {
                let parts = dy.split(axis, &vec![1; elements.len()]);
                let parts: Vec<_> = parts.into_iter().map(|p| p.squeeze(&[axis])).collect();
                c.builder().sequence(&parts, None)
            }
            _ => dy.split_to_sequence(axis as i64, None),
        });
    }
    let sizes = match known {
        Some(elements) if !elements.is_empty() => {
            let sizes: Option<Vec<i64>> = elements.iter().map(|e| e.known_dim(axis)).collect();
            if let Some(sizes) = sizes {
                return Ok(c.builder().sequence(&dy.split(axis, &sizes), None));
            }
            Expr::concat(&elements.iter().map(|e| e.dims([axis])).collect::<Vec<_>>(), 0)
        }
        _ => {
            let sizes = c.builder().map_sequences(&[s], |e| Ok(e.iter().take(1).map(|e| e.dims([axis])).collect()));
            sizes.first().context("a sequence has no sizes")?.concat_sequence(0, false)
        }
    };
    Ok(dy.split_to_sequence(axis as i64, Some(sizes)))
}

fn split<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (axis, dy) = (c.axis(0)?, c.dy());
    let new_axis = c.opt(1).is_none() && !c.flag("keepdims", true);
    Ok(match dy.elements() {
        Some(elements) if !elements.is_empty() => {
            let parts = elements.iter().map(|e| if new_axis { e.unsqueeze(&[axis]) } else { *e });
            Expr::concat(&parts.collect::<Vec<_>>(), axis)
        }
        _ => dy.concat_sequence(axis as i64, new_axis),
    })
}

fn map<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (b, body, inputs) = (c.builder(), c.body("body")?, c.inputs_from(0));
    let mut ports = Ports::open(b);
    let mut read = |e: Expr<'g>| ports.read(Fact { container: Container::Tensor, ..e.fact() }, Some(e), (0, false));
    let dys: Vec<(usize, Port)> = (0..c.output_count()).filter_map(|i| Some((i, read(c.opt_dy(i)?)))).collect();
    let slices: Vec<Port> = inputs.iter().map(|x| read(*x)).collect();
    ensure!(!dys.is_empty(), "no output has a gradient");
    dys.iter().for_each(|&(_, port)| ports.keep(port));
    let wanted = (0..inputs.len()).filter(|&i| c.wants_input(i)).map(|i| (inputs[i], ports.inside(slices[i])));
    let captures = c.wanted_captures().into_iter().map(|x| (x, x));
    let (targets, xs): (Vec<_>, Vec<_>) = wanted.chain(captures).unzip();
    let dxs = ports.within(|| {
        let replay = c.replay(body, &ports.all_inside(&slices))?;
        let seed = |&(i, port): &(usize, Port)| Some((*replay.outputs.get(i)?, ports.inside(port)));
        replay.gradients(&dys.iter().filter_map(seed).collect::<Vec<_>>(), &xs)
    })?;
    // A sequence has its gradient element by element; what an element does not matter for is zeros there.
    let stack = |(x, dx): (Expr<'g>, Option<Expr<'g>>)| Some((x, ports.stacked(dx?, (0, false))));
    let found: Vec<(Expr<'g>, Port)> = targets.into_iter().zip(dxs).filter_map(stack).collect();
    if found.is_empty() {
        return Ok(c.cotangents());
    }
    ports.close(c, None)?;
    ports.map();
    let sum = |(x, port): (Expr<'g>, Port)| {
        let dx = match x.is_sequence() {
            true => ports.all(port),
            // With zeros in front the sum is right for an empty sequence too.
            false => {
                ports.all(port).sequence_insert(x.zeros_like(), Some(b.int(0))).concat_sequence(0, true).sum_out(&[0])
            }
        };
        (x.id(), dx)
    };
    Ok(c.cotangents().values(found.into_iter().map(sum)))
}
