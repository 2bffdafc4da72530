//! One step of an optimizer as an operator: the new values of tensors and of what is kept of each.
//!
//! Inputs are the learning rate r, the number of the step t, and then of all tensors the values x, the gradients g and
//! the states, group by group; the outputs are the new values and the new states. λ is norm_coefficient.

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use crate::graph::Fact;
use crate::graph::facts::Known;
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    step("Adagrad", "the gradients of x - r g' / (√h' + ε) and h' = h + g'², where g' = g + λx", &[Through(adagrad)]).facts(|c| stepped(c, 1))
        .attributes("decay_factor epsilon norm_coefficient"),
    step(
        "Adam",
        "the gradients of (1 - λ') (x - r v' / (√h' + ε)), v' = αv + (1 - α)g' and h' = βh + (1 - β)g'², where g' = g + λx",
        &[Through(adam)],
    ).facts(|c| stepped(c, 2))
    .attributes("alpha beta epsilon norm_coefficient norm_coefficient_post"),
    step(
        "Momentum",
        "the gradients of x - r v' (x - r (g' + αv') in mode nesterov) and v' = αv + βg', where g' = g + λx",
        &[Through(momentum)],
    ).facts(|c| stepped(c, 1))
    .attributes("alpha beta mode norm_coefficient"),
];

const fn step(op: &'static str, formula: &'static str, slots: &'static [super::Slot]) -> Rule {
    rule(op, formula, slots).domain("ai.onnx.preview.training")
}

/// A tensor, its gradient with the decay in it, and `N` states.
struct Updated<'g, const N: usize> {
    x: Expr<'g>,
    g: Expr<'g>,
    states: [Expr<'g>; N],
}

/// The outputs: of each tensor the new value, and then state by state of each the new one.
fn each<'g, const N: usize>(
    c: &Call<'g>,
    update: impl Fn(Updated<'g, N>) -> (Expr<'g>, [Expr<'g>; N]),
) -> Result<Vec<Option<Expr<'g>>>> {
    let tensors = c.inputs_from(2);
    ensure!(tensors.len().is_multiple_of(N + 2), "{} tensors are not groups of {}", tensors.len(), N + 2);
    let count = tensors.len() / (N + 2);
    let decay = c.float("norm_coefficient", 0.0);
    let mut outputs = vec![None; count * (N + 1)];
    for i in 0..count {
        let (x, g) = (tensors[i], tensors[count + i]);
        let states = std::array::from_fn(|s| tensors[(s + 2) * count + i]);
        let g = if decay == 0.0 { g } else { decay * x + g };
        let (x, states) = update(Updated { x, g, states });
        outputs[i] = Some(x);
        states.into_iter().enumerate().for_each(|(s, state)| outputs[(s + 1) * count + i] = Some(state));
    }
    Ok(outputs)
}

/// √h, with the derivative 0 at 0: a gradient that is 0 at the first step leaves its tensor as it is.
fn root(h: Expr<'_>) -> Expr<'_> {
    h.sqrt().where_(h.above(0.0))
}

fn adagrad<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (r, t) = (c.input(0), c.input(1));
    let r = r / (1.0 + t.cast_like(r) * c.float("decay_factor", 0.0));
    let epsilon = c.float("epsilon", 1e-6);
    each(c, |Updated { x, g, states: [h] }| {
        let h = h + g.square();
        (x - r.cast_like(x) * g / (root(h) + epsilon), [h])
    })
}

fn adam<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (r, t) = (c.input(0), c.input(1));
    let (alpha, beta, epsilon) = (c.float("alpha", 0.9), c.float("beta", 0.999), c.float("epsilon", 1e-6));
    let steps = t.cast_like(r);
    let rest = |share: f64| 1.0 - r.like(share).pow(steps);
    let r = r * steps.above(0.0).select(rest(beta).sqrt() / rest(alpha), r.like(1.0));
    let kept = 1.0 - c.float("norm_coefficient_post", 0.0);
    each(c, |Updated { x, g, states: [v, h] }| {
        let (v, h) = (alpha * v + (1.0 - alpha) * g, beta * h + (1.0 - beta) * g.square());
        (kept * (x - r.cast_like(x) * v / (root(h) + epsilon)), [v, h])
    })
}

fn momentum<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (r, t) = (c.input(0), c.input(1));
    let (alpha, beta, mode) = (c.float("alpha", 0.0), c.float("beta", 0.0), c.string("mode", ""));
    c.ensure_known("mode", &mode, &["standard", "nesterov"]);
    let beta = t.above(0.0).select(r.like(beta), r.like(1.0));
    each(c, |Updated { x, g, states: [v] }| {
        let v = alpha * v + beta.cast_like(x) * g;
        let direction = if mode == "nesterov" { g + alpha * v } else { v };
        (x - r.cast_like(x) * direction, [v])
    })
}

/// Behind the rate and the number of the step stand tensors, their gradients and their states: new tensors and states
/// are like the old ones.
fn stepped(c: &Known, states: usize) -> Result<Vec<Fact>> {
    let count = c.inputs.len().saturating_sub(2) / (states + 2);
    Ok((2..2 + count).chain(2 + 2 * count..2 + (states + 2) * count).map(|i| c.like(i)).collect())
}
