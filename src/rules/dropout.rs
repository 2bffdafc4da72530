//! Dropout and the operators that draw random numbers.

use super::Slot::*;
use super::{Call, Rule, Slot, rule};
use crate::expr::Expr;
use crate::onnx::ElementType;

const DRAWN: &[Slot] = &[Stop("what is drawn does not follow it smoothly")];
const SHAPE: &[Slot] = &[Stop("only its shape matters")];

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Dropout", "dx = dy", &[Unary(|_x, _y, dy| dy)]).until(11).attributes("ratio").note("inference"),
    rule(
        "Dropout",
        "dx = dy / (1 - ratio) where the mask holds; dy in inference",
        &[Formula(dropout), Stop("the ratio is a constant"), Stop("the mode is a truth value")],
    )
    .since(12)
    .attributes("seed")
    .note("the mask is the forward node's own"),
    rule("Bernoulli", "none", DRAWN),
    rule("Multinomial", "none", DRAWN),
    rule("RandomNormal", "none", DRAWN),
    rule("RandomNormalLike", "none", SHAPE),
    rule("RandomUniform", "none", DRAWN),
    rule("RandomUniformLike", "none", SHAPE),
];

/// In inference the mask holds everywhere, and nothing is scaled.
fn dropout<'g>(c: &Call<'g>) -> Expr<'g> {
    let dy = c.dy();
    let Some(training) = c.opt(2).filter(|t| t.constant() != Some(0.0)) else { return dy };
    let ratio = c.opt(1).map_or(dy.like(0.5), |ratio| ratio.cast_like(dy));
    if ratio.parameter() == Some(0.0) {
        return dy;
    }
    let kept = match training.constant() {
        Some(_) => 1.0 - ratio,
        None => training.select(1.0 - ratio, dy.like(1.0)),
    };
    let mask = c.demand_output(1, ElementType::Bool);
    (dy / kept).where_(mask)
}
