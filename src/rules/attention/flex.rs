//! Attention whose scores and probabilities bodies change.

use super::facts;
use super::{by_heads, scale_of};
use crate::expr::Expr;
use crate::graph::Bodies;
use crate::onnx::ElementType;
use crate::rules::Slot::*;
use crate::rules::control::repeatable;
use crate::rules::{Call, Rule, rule};
use anyhow::{Result, bail, ensure};

/// The rows.
pub const RULES: &[Rule] = &[rule(
    "FlexAttention",
    "the gradients of prob_mod(softmax(score_mod(scale Q Kᵀ))) V, and of what the bodies capture",
    &[Through(flex_attention)],
)
.facts(facts::flex_attention)
.bodies(Bodies::Protocol(&facts::SCORES))
.ranks(&[Some(4), Some(4), Some(4)])
.attributes("prob_mod scale score_mod softmax_precision")
.types(&[("softmax_precision", None)])
.domain("ai.onnx.preview")];

fn flex_attention<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (q, k, v) = (c.x(), c.input(1), c.input(2));
    ensure!(q.rank()? == 4, "queries of rank {}, where [batch, heads, steps, size] is expected", q.rank()?);
    let precision = match c.opt_int("softmax_precision") {
        Some(number) => i32::try_from(number).map_or(ElementType::Undefined, ElementType::from_number),
        None => q.element()?.widened(),
    };
    ensure!(precision.is_float(), "softmax_precision is {}", precision.name());
    let modified = |e: Expr<'g>, name: &str| -> Result<Expr<'g>> {
        let Some(body) = c.opt_body(name) else { return Ok(e) };
        repeatable(c, body)?;
        let outputs = c.replay(body, &[e])?.outputs;
        let &[y] = outputs.as_slice() else { bail!("{name} has {} outputs, where one is wanted", outputs.len()) };
        Ok(y)
    };
    let scores = by_heads(q * scale_of(q, c.opt_float("scale")), k.transposed())?.cast(precision);
    let probabilities = modified(modified(scores, "score_mod")?.softmax(3), "prob_mod")?;
    Ok(vec![Some(by_heads(probabilities, v.cast(precision))?)])
}
