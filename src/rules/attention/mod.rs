//! Attention and what belongs to it.
//!
//! The attention operators are formulas of products and a Softmax, which the pass differentiates: their scores are not
//! among their outputs, so that nearly all of them has to be computed again whatever the form.

pub mod contributed;
pub mod flex;
pub mod linear;
pub mod position;
pub mod rotary;

mod facts;

use super::Slot::*;
use super::properties::Counts::Length;
use super::properties::{Axis, read};
use super::{Call, Rule, rule};
use crate::expr::Expr;
use crate::onnx::ElementType;
use anyhow::{Result, bail, ensure};

/// The rows.
pub const RULES: &[Rule] =
    &[rule("Attention", "the gradients of softmax(scale Q Kᵀ, capped, masked) V", &[Through(attention)])
        .facts(facts::attention)
        .equal(facts::equal_in_attention)
        .attributes(
            "is_causal kv_num_heads q_num_heads qk_matmul_output_mode scale softcap softmax_precision left_window_size \
             right_window_size",
        )
        .types(&[("softmax_precision", None)])
        .indices(&[read(6, Length(1, Axis::At(-2)))])];

/// `[batch, steps, heads * size]` as `[batch, heads, steps, size]`.
fn split_heads<'g>(e: Expr<'g>, heads: i64) -> Result<Expr<'g>> {
    match e.rank()? {
        4 => Ok(e),
        3 => {
            ensure!(heads > 0, "a number of heads of {heads} is not positive");
            Ok(e.reshape_to(&[0, 0, heads, -1]).transpose(&[0, 2, 1, 3]))
        }
        rank => bail!("{e} of rank {rank} has no heads: 3 and 4 are possible"),
    }
}

/// The transpose of [`split_heads`]: `[batch, heads, steps, size]` as `[batch, steps, heads size]`.
fn join_heads(e: Expr<'_>) -> Expr<'_> {
    e.transpose(&[0, 2, 1, 3]).reshape_to(&[0, 0, -1])
}

/// `scale`, or one over the root of the size of a head, as a factor of the queries.
fn scale_of<'g>(q: Expr<'g>, scale: Option<f64>) -> Expr<'g> {
    match (scale, q.known_dim(3)) {
        (Some(scale), _) => q.like(scale),
        (None, Some(size)) => q.like(1.0 / (size as f64).sqrt()),
        (None, None) => q.count(&[3], q).sqrt().reciprocal(),
    }
}

/// The matrix product of each head. Heads that share keys are further rows of one product; nothing is repeated.
fn by_heads<'g>(rows: Expr<'g>, columns: Expr<'g>) -> Result<Expr<'g>> {
    if rows.sizes()?.get(1) == columns.sizes()?.get(1) {
        return Ok(rows.matmul(columns));
    }
    let b = rows.builder();
    let together = Expr::concat(&[rows.dims([0]), columns.dims([1]), b.ints(&[-1]), rows.dims([3])], 0);
    let product = rows.reshape(together).matmul(columns);
    Ok(product.reshape(Expr::concat(&[rows.dims([0, 1, 2]), columns.dims([3])], 0)))
}

/// What attention is computed from: queries, keys and values of shape `[batch, heads, steps, size]`.
struct Scores<'g> {
    q: Expr<'g>,
    k: Expr<'g>,
    v: Expr<'g>,
    scale: Expr<'g>,
    softcap: f64,
    /// Where a query may look at a key; all where `None`.
    allowed: Option<Expr<'g>>,
    /// Added to the scores.
    bias: Option<Expr<'g>>,
    /// The score, for each head, of looking at nothing, that broadcasts to `[batch, heads, queries, 1]`.
    sink: Option<Expr<'g>>,
    /// Whether there may be queries that may look at no key.
    may_be_blind: bool,
    precision: ElementType,
}

/// The result, and the scores on the way to it.
struct Attended<'g> {
    y: Expr<'g>,
    /// The scores as the product gives them, after the cap, with the bias, and as probabilities.
    stages: [Expr<'g>; 4],
}

impl<'g> Scores<'g> {
    fn attend(&self) -> Result<Attended<'g>> {
        let (q, k, v) = (self.q, self.k, self.v);
        let product = by_heads(q * self.scale, k.transposed())?;
        let capped = match self.softcap {
            cap if cap > 0.0 => (product / cap).tanh() * cap,
            _ => product,
        };
        let (biased, safe, sees) = self.masked(capped);
        let probabilities = self.probabilities(safe).cast_like(q);
        let y = by_heads(probabilities, v.cast_like(q))?;
        // The zero rows of queries that see no key.
        let seen = |e: Expr<'g>| sees.map_or(e, |sees| e.where_(sees));
        Ok(Attended { y: seen(y), stages: [product, capped, biased, seen(probabilities)] })
    }

    fn probabilities(&self, scores: Expr<'g>) -> Expr<'g> {
        let scores = scores.cast(self.precision);
        let Some(sink) = self.sink else { return scores.softmax(3) };
        let places = Expr::concat(&[scores.dims([0, 1, 2]), scores.builder().ints(&[1])], 0);
        let all = Expr::concat(&[scores, sink.cast_like(scores).expand(places)], 3);
        all.softmax(3).narrow(3, 0, -1)
    }

    /// The scores with bias and -∞ where a query may not look; the same but with a row of other scores for a query that
    /// may look nowhere; and which queries may look somewhere, where that is in question.
    fn masked(&self, scores: Expr<'g>) -> (Expr<'g>, Expr<'g>, Option<Expr<'g>>) {
        let never = scores.like(f64::NEG_INFINITY);
        let bias = match (self.bias, self.allowed) {
            (Some(bias), Some(allowed)) => Some(allowed.select(bias, never)),
            (bias, _) => bias,
        };
        match (bias, self.allowed) {
            (None, None) => (scores, scores, None),
            (Some(bias), _) if self.may_be_blind => {
                let last = [bias.rank().unwrap_or(1).saturating_sub(1)];
                let sees = never.less(bias.maximum(&last));
                // Not a product with zeros and ones: the bias is infinite where it hides a key.
                let safe = sees.select(bias, bias.like(0.0));
                (scores + bias, scores + safe, Some(sees))
            }
            (None, Some(allowed)) if self.may_be_blind => {
                let last = [allowed.rank().unwrap_or(1).saturating_sub(1)];
                let sees = allowed.cast(ElementType::Float).maximum(&last).above(0.5);
                let safe = allowed.or(sees.logical_not());
                (allowed.select(scores, never), safe.select(scores, never), Some(sees))
            }
            (Some(bias), _) => (scores + bias, scores + bias, None),
            (None, Some(allowed)) => (allowed.select(scores, never), allowed.select(scores, never), None),
        }
    }
}

/// Which of both holds, where there are both.
fn both<'g>(a: Option<Expr<'g>>, b: Expr<'g>) -> Option<Expr<'g>> {
    Some(a.map_or(b, |a| a.and(b)))
}

/// The number of each key minus that of each query, whose first one is at `offset`: `[queries, keys]`, or with the axes
/// of `offset` before them.
fn distances<'g>(q: Expr<'g>, k: Expr<'g>, offset: Option<Expr<'g>>) -> Expr<'g> {
    let b = q.builder();
    let queries = b.range(q.dim(2)).unsqueeze(&[1]);
    b.range(k.dim(2)).unsqueeze(&[0]) - offset.map_or(queries, |o| queries + o)
}

fn attention<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let packed = c.x().rank()? == 3;
    let stored = c.int("kv_num_heads", 0);
    let q = split_heads(c.x(), c.int("q_num_heads", 0))?;
    let cached = |past: usize, now: usize| -> Result<Expr<'g>> {
        let now = split_heads(c.input(now), stored)?;
        Ok(c.opt(past).map_or(now, |past| Expr::concat(&[past, now], 2)))
    };
    let (k, v) = (cached(4, 1)?, cached(5, 2)?);
    let (left, right) = (c.int("left_window_size", -1), c.int("right_window_size", -1));
    let valid = c.opt(6);
    // How many keys come before the first query.
    let offset = match (c.opt(4), valid) {
        (Some(past), _) => Some(past.dim(2)),
        (None, Some(valid)) => Some((valid - q.dim(2)).unsqueeze(&[1, 2, 3])),
        (None, None) => None,
    };
    let (mut allowed, mut bias) = (None, None);
    if let Some(mask) = c.opt(3) {
        let mask = padded(mask, k)?;
        if mask.is_float() { bias = Some(mask.cast_like(q)) } else { allowed = Some(mask) }
    }
    if c.flag("is_causal", false) {
        allowed = both(allowed, distances(q, k, offset).less_or_equal(c.builder().int(0)));
    }
    if left >= 0 {
        allowed = both(allowed, distances(q, k, offset).greater_or_equal(c.builder().int(-left)));
    }
    if right >= 0 {
        allowed = both(allowed, distances(q, k, offset).less_or_equal(c.builder().int(right)));
    }
    if let Some(valid) = valid {
        allowed = both(allowed, c.builder().range(k.dim(2)).less(valid.unsqueeze(&[1, 2, 3])));
    }
    let precision = match c.int("softmax_precision", 0) {
        11 => ElementType::Double,
        _ => q.element()?.widened(),
    };
    let scores = Scores {
        q,
        k,
        v,
        scale: scale_of(q, c.opt_float("scale")),
        softcap: c.float("softcap", 0.0),
        allowed,
        bias,
        sink: None,
        may_be_blind: c.opt(3).is_some() || valid.is_some() || left >= 0 || right >= 0,
        precision,
    };
    let Attended { y, stages } = scores.attend()?;
    let mode = usize::try_from(c.int("qk_matmul_output_mode", 0)).ok();
    let stage = mode.and_then(|m| stages.get(m)).copied();
    ensure!(stage.is_some() || !c.has_dy(3), "qk_matmul_output_mode is none of 0, 1, 2, 3");
    Ok(vec![Some(if packed { join_heads(y) } else { y }), Some(k), Some(v), stage])
}

/// A mask with -∞, or false, for the keys that it is too short for.
fn padded<'g>(mask: Expr<'g>, k: Expr<'g>) -> Result<Expr<'g>> {
    let (b, rank) = (mask.builder(), mask.rank()?);
    let last = rank.saturating_sub(1);
    if mask.sizes()?.get(last) == k.sizes()?.get(2) {
        return Ok(mask);
    }
    let missing = k.dims([2]) - mask.dims([last]);
    let pads = Expr::concat(&[b.ints(&vec![0; rank + last]), missing], 0);
    Ok(mask.pad(pads, Some(if mask.is_float() { mask.like(f64::NEG_INFINITY) } else { mask.like(0.0) })))
}
