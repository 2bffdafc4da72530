//! Attention without Softmax: a state that is carried along.

use super::facts;
use crate::expr::{Along, Expr};
use crate::rules::Slot::*;
use crate::rules::{Call, Rule, rule};
use anyhow::{Result, bail, ensure};

/// The rows.
pub const RULES: &[Rule] = &[LINEAR, LINEAR.domain("com.microsoft")];

const LINEAR: Rule =
    rule("LinearAttention", "the gradients of the recurrence, as a Scan", &[Through(linear_attention)])
        .facts(facts::linear_attention)
        .attributes("chunk_size kv_num_heads q_num_heads scale update_rule")
        .in_float32();

/// One step after the other: the state S of shape `[batch, heads, key size, value size]` fades by e^g, takes in β k (v
/// - Sᵀ k) or k v, and is read with q.
fn linear_attention<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let b = c.builder();
    let (heads, stored) = (c.int("q_num_heads", 0), c.int("kv_num_heads", 0));
    ensure!(heads > 0 && stored > 0 && heads % stored == 0, "{heads} heads cannot share {stored} keys and values");
    let rule = c.string("update_rule", "gated_delta");
    let (gated, delta) = match rule.as_str() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        _ => bail!("update_rule = '{rule}' is not one of linear, gated, delta, gated_delta"),
    };
    // Queries that share a key are rows of one matrix: [batch, steps, stored, group, size]; keys and values are rows,
    // too.
    let q = c.input(0).reshape_to(&[0, 0, stored, heads / stored, -1]);
    let row = |e: Expr<'g>, heads: i64| e.reshape_to(&[0, 0, heads, 1, -1]);
    let (k, v) = (row(c.input(1), stored), row(c.input(2), stored));
    let scale = c.opt_float("scale").filter(|&s| s != 0.0);
    let scale = match (scale, q.known_dim(4)) {
        (Some(scale), _) => q.like(scale),
        (None, Some(size)) => q.like(1.0 / (size as f64).sqrt()),
        (None, None) => q.count(&[4], q).sqrt().reciprocal(),
    };
    let mut along = vec![q * scale, k, v];
    if gated {
        along.push(c.input(4).exp().reshape_to(&[0, 0, stored, -1, 1]));
    }
    if delta {
        let beta = c.input(5);
        along.push(if beta.known_dim(2) == Some(1) { beta.unsqueeze(&[3, 4]) } else { row(beta, stored) });
    }
    let past = match c.opt(3) {
        Some(past) => past,
        None => {
            let shape = Expr::concat(&[q.dims([0]), b.ints(&[stored]), k.dims([4]), v.dims([4])], 0);
            b.full(shape, 0.0, q.element()?)
        }
    };
    let along: Vec<Along<'g>> = along.into_iter().map(|tensor| Along { tensor, axis: 1, reverse: false }).collect();
    let (state, y) = b.run(&[past], &along, |state, now| {
        let (&[state], [q, k, v, gates @ ..]) = (state, now) else { bail!("the recurrence has too few inputs") };
        let mut gates = gates.iter().copied();
        let faded = if gated { gates.next().map_or(state, |g| state * g) } else { state };
        let value = match gates.next() {
            Some(beta) => beta * (*v - k.matmul(faded)),
            None => *v,
        };
        let state = faded + k.transposed() * value;
        Ok((vec![state], vec![q.matmul(state)]))
    })?;
    let (&[state], &[y]) = (&*state, &*y) else { bail!("the recurrence has no result") };
    Ok(vec![Some(y.reshape_to(&[0, 0, -1])), Some(state)])
}
