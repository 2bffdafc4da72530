//! Attention and what belongs to it.
//!
//! The attention operators are formulas of products and a Softmax, which the pass differentiates: their scores are not among
//! their outputs, so that nearly all of them has to be computed again whatever the form.

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::{Along, Expr};
use crate::graph::Fact;
use crate::onnx::ElementType;
use anyhow::{Result, bail, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Attention", "the gradients of softmax(scale Q Kᵀ, capped, masked) V", &[Through(attention)]).attributes(
        "is_causal kv_num_heads q_num_heads qk_matmul_output_mode scale softcap softmax_precision left_window_size \
         right_window_size",
    ),
    rule("MultiHeadAttention", "the gradients of softmax(scale Q Kᵀ + bias) V", &[Through(multi_head)])
        .attributes("num_heads scale unidirectional mask_filter_value")
        .domain("com.microsoft")
        .note("without key_padding_mask, packed keys and shared buffers"),
    rule(
        "Attention",
        "the gradients of softmax(scale Q Kᵀ + bias) V, with Q, K and V from one product of x",
        &[Through(packed)],
    )
    .attributes("num_heads scale unidirectional mask_filter_value qkv_hidden_sizes")
    .domain("com.microsoft")
    .note("without past, with no mask or one of shape [batch, keys]"),
    rule(
        "RotaryEmbedding",
        ROTARY,
        &[
            Formula(|c| Rotary::new(c, [1, 2, 3])?.dx(c)),
            Formula(|c| Rotary::new(c, [1, 2, 3])?.dcache(c, 1)),
            Formula(|c| Rotary::new(c, [1, 2, 3])?.dcache(c, 2)),
            Stop("positions"),
        ],
    )
    .attributes("interleaved num_heads rotary_embedding_dim"),
    rule(
        "RotaryEmbedding",
        ROTARY,
        &[
            Formula(|c| Rotary::new(c, [2, 3, 1])?.dx(c)),
            Stop("positions"),
            Formula(|c| Rotary::new(c, [2, 3, 1])?.dcache(c, 2)),
            Formula(|c| Rotary::new(c, [2, 3, 1])?.dcache(c, 3)),
        ],
    )
    .attributes("interleaved num_heads rotary_embedding_dim")
    .domain("com.microsoft"),
    rule("LinearAttention", "the gradients of the recurrence, as a Scan", &[Through(linear_attention)])
        .attributes("chunk_size kv_num_heads q_num_heads scale update_rule"),
];

// ---------------------------------------------------------------- heads

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

/// The other way round.
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

// ---------------------------------------------------------------- scores

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
    /// Whether there may be queries that may look at no key.
    may_be_blind: bool,
    precision: ElementType,
}

/// The result, and the scores on the way to it.
struct Attended<'g> {
    y: Expr<'g>,
    /// Of the product, capped, with bias, as probabilities.
    stages: [Expr<'g>; 4],
}

impl<'g> Scores<'g> {
    fn attend(&self) -> Result<Attended<'g>> {
        let (q, k, v) = (self.q, self.k, self.v);
        let b = q.builder();
        // Heads that share keys are further rows of one product; nothing is repeated.
        let shared = q.sizes()?.get(1) != k.sizes()?.get(1);
        let gathered = |e: Expr<'g>| match shared {
            true => e.reshape(Expr::concat(&[e.dims([0]), k.dims([1]), b.ints(&[-1]), e.dims([3])], 0)),
            false => e,
        };
        let spread = |e: Expr<'g>, last: Expr<'g>| match shared {
            true => e.reshape(Expr::concat(&[q.dims([0, 1, 2]), last], 0)),
            false => e,
        };
        let product = spread(gathered(q * self.scale).matmul(k.transposed()), k.dims([2]));
        let capped = match self.softcap {
            cap if cap > 0.0 => (product / cap).tanh() * cap,
            _ => product,
        };
        let (biased, safe, sees) = self.masked(capped);
        let probabilities = safe.cast(self.precision).softmax(3).cast_like(q);
        let y = spread(gathered(probabilities).matmul(v.cast_like(q)), v.dims([3]));
        // The zero rows of queries that see no key.
        let seen = |e: Expr<'g>| sees.map_or(e, |sees| e.where_(sees));
        Ok(Attended { y: seen(y), stages: [product, capped, biased, seen(probabilities)] })
    }

    /// The scores with bias and -∞ where a query may not look; the same but with a row of other scores for a query that may
    /// look nowhere; and which queries may look somewhere, where that is in question.
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
                (scores + bias, scores + bias.where_(sees), Some(sees))
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

/// The number of each key minus that of each query, whose first one is at `offset`: `[queries, keys]`, or with the axes of
/// `offset` before them.
fn distances<'g>(q: Expr<'g>, k: Expr<'g>, offset: Option<Expr<'g>>) -> Expr<'g> {
    let b = q.builder();
    let queries = b.range(q.dim(2)).unsqueeze(&[1]);
    b.range(k.dim(2)).unsqueeze(&[0]) - offset.map_or(queries, |o| queries + o)
}

// ---------------------------------------------------------------- Attention of the standard

fn attention<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let packed = c.x()?.rank()? == 3;
    let stored = c.int("kv_num_heads", 0);
    let q = split_heads(c.x()?, c.int("q_num_heads", 0))?;
    let cached = |past: usize, now: usize| -> Result<Expr<'g>> {
        let now = split_heads(c.input(now)?, stored)?;
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
        _ => q.widened().element()?,
    };
    let scores = Scores {
        q,
        k,
        v,
        scale: scale_of(q, c.opt_float("scale")),
        softcap: c.float("softcap", 0.0),
        allowed,
        bias,
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

// ---------------------------------------------------------------- ONNX Runtime's

/// A scale of 0 stands for none.
fn given_scale(c: &Call<'_>) -> Option<f64> {
    c.opt_float("scale").filter(|&s| s != 0.0)
}

fn causal<'g>(c: &Call<'g>, q: Expr<'g>, k: Expr<'g>, past: Option<Expr<'g>>) -> Option<Expr<'g>> {
    let offset = past.map(|p| p.dim(2));
    c.flag("unidirectional", false).then(|| distances(q, k, offset).less_or_equal(c.builder().int(0)))
}

fn multi_head<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let heads = c.int("num_heads", 0);
    ensure!(c.opt(4).is_none(), "key_padding_mask has no gradient yet; pass it as attention_bias");
    ensure!((8..c.input_count()).all(|i| c.opt(i).is_none()), "shared buffers of keys and values have no gradient yet");
    let (q, Some(k), Some(v)) = (c.x()?, c.opt(1), c.opt(2)) else {
        bail!("packed keys and values have no gradient yet")
    };
    let mut parts = [q, k, v];
    if let Some(bias) = c.opt(3) {
        let b = c.builder();
        let mut start = b.ints(&[0]);
        for part in &mut parts {
            let end = start + part.dims([part.rank()?.saturating_sub(1)]);
            *part = *part + bias.slice_at(b.ints(&[0]), start, end, b.ints(&[1]));
            start = end;
        }
    }
    let [q, k, v] = parts.map(|e| split_heads(e, heads));
    let cached = |past: usize, now: Expr<'g>| c.opt(past).map_or(now, |past| Expr::concat(&[past, now], 2));
    let (q, k, v) = (q?, cached(6, k?), cached(7, v?));
    let scores = Scores {
        q,
        k,
        v,
        scale: scale_of(q, given_scale(c)),
        softcap: 0.0,
        allowed: causal(c, q, k, c.opt(6)),
        bias: c.opt(5),
        may_be_blind: false,
        precision: q.widened().element()?,
    };
    Ok(vec![Some(join_heads(scores.attend()?.y)), Some(k), Some(v)])
}

fn packed<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (x, weights, heads) = (c.x()?, c.input(1)?, c.int("num_heads", 0));
    let shared = (6..c.input_count()).any(|i| c.opt(i).is_some());
    ensure!(c.opt(4).is_none() && !shared, "past keys and values have no gradient yet");
    let all = x.matmul(weights);
    let all = c.opt(2).map_or(all, |bias| all + bias);
    let sizes = match (c.ints("qkv_hidden_sizes"), weights.known_dim(1)) {
        (Some(sizes), _) if sizes.len() == 3 && sizes.iter().all(|&s| s > 0) => sizes,
        (None, Some(total)) => vec![total / 3; 3],
        (None, None) => bail!("the size of the weights is not known; add value_info to the model"),
        _ => bail!("qkv_hidden_sizes is not a list of three sizes"),
    };
    let [q, k, v] = all.split(2, &sizes)[..] else { bail!("the product cannot be split into three") };
    let (q, k, v) = (split_heads(q, heads)?, split_heads(k, heads)?, split_heads(v, heads)?);
    let mut bias = c.opt(5);
    if let Some(mask) = c.opt(3) {
        ensure!(mask.rank()? == 2, "a mask_index of rank {} has no gradient yet: [batch, keys] has", mask.rank()?);
        let filter = (1.0 - mask.cast_like(q)).unsqueeze(&[1, 2]) * c.float("mask_filter_value", -10000.0);
        bias = Some(bias.map_or(filter, |b| b + filter));
    }
    let scores = Scores {
        q,
        k,
        v,
        scale: scale_of(q, given_scale(c)),
        softcap: 0.0,
        allowed: causal(c, q, k, None),
        bias,
        may_be_blind: false,
        precision: q.widened().element()?,
    };
    let present = || Expr::concat(&[k.unsqueeze(&[0]), v.unsqueeze(&[0])], 0);
    Ok(vec![Some(join_heads(scores.attend()?.y)), c.has_dy(1).then(present)])
}

// ---------------------------------------------------------------- RotaryEmbedding

const ROTARY: &str = "each pair of x is turned by an angle, each pair of dx back: dx = dy turned with -sin; \
     dcos = Σ dy₁ x₁ + dy₂ x₂, dsin = Σ dy₂ x₁ - dy₁ x₂ over the heads";

/// The turn of one call.
struct Rotary<'g> {
    /// Cosines and sines that broadcast to half of what is turned.
    cos: Expr<'g>,
    sin: Expr<'g>,
    /// The positions that they are at in the caches.
    positions: Option<Expr<'g>>,
    /// Where the axis of heads is.
    heads: usize,
    interleaved: bool,
    /// Whether some elements at the end of each head stay.
    partial: bool,
}

impl<'g> Rotary<'g> {
    /// Of the inputs `[cos, sin, positions]`.
    fn new(c: &Call<'g>, [cos, sin, positions]: [usize; 3]) -> Result<Self> {
        let x = c.x()?;
        let heads = if x.rank()? == 4 { 1 } else { 2 };
        let mut positions = c.opt(positions);
        if let Some(first) = positions.filter(|p| p.rank().is_ok_and(|r| r == 1)) {
            let steps = x.dim(if heads == 1 { 2 } else { 1 });
            positions = Some(c.builder().range(steps).cast_like(first).unsqueeze(&[0]) + first.reshape_to(&[1, 1]));
        }
        let read = |cache: usize| -> Result<Expr<'g>> {
            let cache = c.input(cache)?;
            Ok(positions.map_or(cache, |p| cache.gather(p, 0)).unsqueeze(&[heads]))
        };
        Ok(Rotary {
            cos: read(cos)?,
            sin: read(sin)?,
            positions,
            heads,
            interleaved: c.flag("interleaved", false),
            partial: c.int("rotary_embedding_dim", 0) > 0,
        })
    }

    /// x with an axis of heads.
    fn unpacked(&self, c: &Call<'g>, x: Expr<'g>) -> Result<Expr<'g>> {
        if x.rank()? == 4 {
            return Ok(x);
        }
        let heads = c.int("num_heads", 0);
        ensure!(heads > 0 || !self.partial, "num_heads = {heads} is not positive");
        Ok(match heads {
            1.. => x.reshape_to(&[0, 0, heads, -1]),
            _ => {
                let b = c.builder();
                let size = self.cos.dims([3]) * b.int(2);
                x.reshape(Expr::concat(&[x.dims([0, 1]), b.ints(&[-1]), size], 0))
            }
        })
    }

    /// The first and the second of each pair, and what stays.
    fn parts(&self, x: Expr<'g>) -> [Expr<'g>; 3] {
        let b = x.builder();
        let half = self.cos.dims([3]);
        let turned = half * b.int(2);
        let part = |start: Expr<'g>, end: Expr<'g>, step: i64| x.slice_at(b.ints(&[3]), start, end, b.ints(&[step]));
        let (zero, one, end) = (b.ints(&[0]), b.ints(&[1]), b.ints(&[i64::MAX]));
        let rest = part(turned, end, 1);
        match self.interleaved {
            true => [part(zero, turned, 2), part(one, turned, 2), rest],
            false => [part(zero, half, 1), part(half, turned, 1), rest],
        }
    }

    fn dx(&self, c: &Call<'g>) -> Result<Expr<'g>> {
        let dy = self.unpacked(c, c.dy()?)?;
        let [first, second, rest] = self.parts(dy);
        let pair = [first * self.cos + second * self.sin, second * self.cos - first * self.sin];
        let turned = match self.interleaved {
            true => Expr::concat(&pair.map(|e| e.unsqueeze(&[4])), 4).reshape_to(&[0, 0, 0, -1]),
            false => Expr::concat(&pair, 3),
        };
        let dx = if self.partial { Expr::concat(&[turned, rest], 3) } else { turned };
        Ok(dx.reshape_like(c.x()?))
    }

    /// Of the cosines or the sines, the input `i`.
    fn dcache(&self, c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
        let [x1, x2, _] = self.parts(self.unpacked(c, c.x()?)?);
        let [dy1, dy2, _] = self.parts(self.unpacked(c, c.dy()?)?);
        let cosines = i == if self.positions_first(c) { 2 } else { 1 };
        let d = if cosines { dy1 * x1 + dy2 * x2 } else { dy2 * x1 - dy1 * x2 };
        let (cache, d) = (c.input(i)?, d.sum_out(&[self.heads]));
        match self.positions {
            Some(p) => {
                // One row of positions may serve the whole batch.
                let read = cache.gather(p, 0);
                Ok(cache.ungather(p, d.unbroadcast(read)?, 0))
            }
            None => d.unbroadcast(cache),
        }
    }

    /// Whether the positions come before the caches: where the cosines are input 2.
    fn positions_first(&self, c: &Call<'g>) -> bool {
        c.opt(1).is_some_and(|p| !p.is_float())
    }
}

// ---------------------------------------------------------------- LinearAttention

/// One step after the other: the state S of shape `[batch, heads, key size, value size]` fades by e^g, takes in β k (v - Sᵀ k)
/// or k v, and is read with q.
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
    let wide = |i: usize| -> Result<Expr<'g>> { Ok(c.input(i)?.widened()) };
    // Queries that share a key are rows of one matrix: [batch, steps, stored, group, size]; keys and values are rows, too.
    let q = wide(0)?.reshape_to(&[0, 0, stored, heads / stored, -1]);
    let row = |e: Expr<'g>, heads: i64| e.reshape_to(&[0, 0, heads, 1, -1]);
    let (k, v) = (row(wide(1)?, stored), row(wide(2)?, stored));
    let scale = c.opt_float("scale").filter(|&s| s != 0.0);
    let scale = match (scale, q.known_dim(4)) {
        (Some(scale), _) => q.like(scale),
        (None, Some(size)) => q.like(1.0 / (size as f64).sqrt()),
        (None, None) => q.count(&[4], q).sqrt().reciprocal(),
    };
    let mut along = vec![q * scale, k, v];
    if gated {
        along.push(wide(4)?.exp().reshape_to(&[0, 0, stored, -1, 1]));
    }
    if delta {
        let beta = wide(5)?;
        along.push(if beta.known_dim(2) == Some(1) { beta.unsqueeze(&[3, 4]) } else { row(beta, stored) });
    }
    let past = match c.opt(3) {
        Some(past) => past.widened().cast_like(q),
        None => {
            let shape = Expr::concat(&[q.dims([0]), b.ints(&[stored]), k.dims([4]), v.dims([4])], 0);
            b.full(shape, 0.0, q.element()?)
        }
    };
    let fact = |e: Expr<'g>| {
        let fact = e.fact();
        let shape = fact.shape.map(|s| s.iter().enumerate().filter(|&(a, _)| a != 1).map(|(_, &d)| d).collect());
        Fact::tensor(fact.element, shape)
    };
    let mut inputs = vec![Fact::tensor(past.fact().element, past.fact().shape)];
    inputs.extend(along.iter().map(|&e| fact(e)));
    let (body, inputs) = b.open(inputs);
    let step = || {
        let [state, q, k, v, ref gates @ ..] = inputs[..] else { bail!("the recurrence has too few inputs") };
        let mut gates = gates.iter().copied();
        let faded = if gated { gates.next().map_or(state, |g| state * g) } else { state };
        let value = match gates.next() {
            Some(beta) => beta * (v - k.matmul(faded)),
            None => v,
        };
        let state = faded + k.transposed() * value;
        Ok([state, q.matmul(state)])
    };
    let outputs = b.within(body, step)?;
    b.close(body, &outputs, inputs.len());
    let along: Vec<Along<'g>> = along.into_iter().map(|tensor| Along { tensor, axis: 1, reverse: false }).collect();
    let [state, y] = b.scan(&[past], &along, &[(1, false)], body)[..] else { bail!("the recurrence has no result") };
    let state = match c.output(1) {
        Some(present) => state.cast_like(present),
        None => state,
    };
    Ok(vec![Some(y.reshape_to(&[0, 0, -1]).cast_like(c.x()?)), Some(state)])
}
