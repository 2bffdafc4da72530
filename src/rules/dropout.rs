//! Dropout and the operators that draw random numbers.

mod facts;

use super::Slot::*;
use super::properties::Random;
use super::{Call, Rule, Slot, rule};
use crate::expr::Expr;
use crate::onnx::ElementType;

const DRAWN: &[Slot] = &[Stop("what is drawn does not follow it smoothly")];
const DTYPE: &[(&str, Option<ElementType>)] = &[("dtype", Some(ElementType::Float))];
const RATIO: &str = "the ratio is a constant";
const MODE: &str = "the mode is a truth value";
const SHAPE: &[Slot] = &[Stop("only its shape matters")];

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Dropout", "dx = dy", &[Unary(|_x, _y, dy| dy)])
        .facts(facts::dropout)
        .drops_out()
        .until(11)
        .attributes("ratio")
        .note("inference"),
    rule(
        "Dropout",
        "dx = dy / (1 - ratio) where the mask holds; dy in inference",
        &[Formula(|c| dropout(c, 1, 2)), Stop(RATIO), Stop(MODE)],
    )
    .facts(facts::dropout)
    .random(Random::Where(2))
    .drops_out()
    .since(12)
    .attributes("seed")
    .note("the mask is the forward node's own"),
    rule(
        "BiasDropout",
        "of x + bias: dx = dy / (1 - ratio) where the mask holds, dy in inference; dbias = Σ dx, dresidual = dy",
        &[
            Formula(|c| dropout(c, 3, 4)),
            Broadcast(|c| dropout(c, 3, 4)),
            Broadcast(|c| c.dy()),
            Stop(RATIO),
            Stop(MODE),
        ],
    )
    .facts(facts::masked)
    .random(Random::Where(4))
    .weights(&[1])
    .attributes("seed")
    .domain("com.microsoft")
    .note("the mask is the forward node's own"),
    rule("Bernoulli", "none", DRAWN).facts(facts::like).random(Random::Always).types(&[("dtype", None)]),
    rule("Multinomial", "none", DRAWN).facts(facts::multinomial).random(Random::Always),
    rule("RandomNormal", "none", DRAWN).facts(facts::random).random(Random::Always).types(DTYPE),
    rule("RandomNormalLike", "none", SHAPE)
        .facts(facts::like)
        .random(Random::Always)
        .types(&[("dtype", None)])
        .shapes_only(),
    rule("RandomUniform", "none", DRAWN).facts(facts::random).random(Random::Always).types(DTYPE),
    rule("RandomUniformLike", "none", SHAPE)
        .facts(facts::like)
        .random(Random::Always)
        .types(&[("dtype", None)])
        .shapes_only(),
];

/// In inference the mask holds everywhere, and nothing is scaled.
fn dropout<'g>(c: &Call<'g>, ratio: usize, training: usize) -> Expr<'g> {
    let dy = c.dy();
    let Some(training) = c.opt(training).filter(|t| t.constant() != Some(0.0)) else { return dy };
    let ratio = c.opt(ratio).map_or(dy.like(0.5), |ratio| ratio.cast_like(dy));
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
