//! The attention operators of ONNX Runtime.

use super::facts;
use super::rotary::Turn;
use super::{Scores, both, distances, join_heads, padded, scale_of, split_heads};
use crate::expr::Expr;
use crate::onnx::ElementType;
use crate::rules::Slot::*;
use crate::rules::properties::Counts::Along;
use crate::rules::properties::{Axis, read};
use crate::rules::{Call, Rule, rule};
use anyhow::{Context, Result, bail, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("MultiHeadAttention", "the gradients of softmax(scale Q Kᵀ + bias) V", &[Through(multi_head)])
        .facts(facts::multi_head_attention)
        .equal(facts::equal_in_attention)
        .attributes("num_heads scale unidirectional mask_filter_value")
        .weights(&[3])
        .domain("com.microsoft")
        .note("without shared buffers of past keys and values"),
    rule(
        "Attention",
        "the gradients of softmax(scale Q Kᵀ + bias) V, with Q, K and V from one product of x",
        &[Through(projected)],
    )
    .facts(facts::projected_attention)
    .weights(&[1, 2])
    .layer()
    .ranks(&[Some(3), Some(2), Some(1), None, Some(5)])
    .attributes("num_heads scale unidirectional mask_filter_value qkv_hidden_sizes")
    .domain("com.microsoft")
    .note("without shared buffers of past keys and values; a mask has at most 3 axes"),
    rule(
        "GroupQueryAttention",
        "the gradients of softmax(scale Q Kᵀ, capped, masked) V, with Q and K turned where do_rotary is set",
        &[Through(group_query)],
    )
    .facts(facts::group_query_attention)
    .ranks(&[Some(3), Some(3), Some(3), Some(4), Some(4), None, None, Some(2), Some(2)])
    .attributes(
        "causal do_rotary k_quant_type kv_num_heads local_window_size num_heads qk_output rotary_interleaved scale \
         smooth_softmax softcap v_quant_type",
    )
    .indices(&[read(9, Along(7, Axis::At(0)))])
    .domain("com.microsoft")
    .note("rows of padding see each other; a window is of that many keys, the query's own among them"),
];

/// A scale of 0 stands for none.
fn given_scale(c: &Call<'_>) -> Option<f64> {
    c.opt_float("scale").filter(|&s| s != 0.0)
}

/// Scores of which every query may look at some key, neither capped nor with a sink.
fn plain<'g>(
    c: &Call<'g>,
    [q, k, v]: [Expr<'g>; 3],
    allowed: Option<Expr<'g>>,
    bias: Option<Expr<'g>>,
) -> Result<Scores<'g>> {
    let (scale, precision) = (scale_of(q, given_scale(c)), q.element()?.widened());
    Ok(Scores { q, k, v, scale, softcap: 0.0, allowed, bias, sink: None, may_be_blind: false, precision })
}

/// Keys of before and of now.
fn cached<'g>(past: Option<Expr<'g>>, now: Expr<'g>) -> Expr<'g> {
    past.map_or(now, |past| Expr::concat(&[past, now], 2))
}

fn causal<'g>(c: &Call<'g>, q: Expr<'g>, k: Expr<'g>, past: Option<Expr<'g>>, axis: usize) -> Result<Option<Expr<'g>>> {
    if !c.flag("unidirectional", false) {
        return Ok(None);
    }
    if let (None, Some(queries), Some(keys)) = (past, q.known_dim(2), k.known_dim(2)) {
        ensure!(queries == keys, "engines differ in what the first of {queries} queries sees of {keys} keys");
    }
    let offset = past.map(|p| p.dim(axis));
    Ok(Some(distances(q, k, offset).less_or_equal(c.builder().int(0))))
}

/// The bias, and what a mask adds to the scores where a key is not to be seen: a mask of `[batch, keys]` or of `[batch,
/// queries, keys]` has zeros there; of `[batch]` it has the number of keys, of `[2 batch]` first the ends, then the
/// starts of what is seen, of `[3 batch + 2]` the numbers of keys and more.
fn biased<'g>(c: &Call<'g>, q: Expr<'g>, k: Expr<'g>, mask: usize, bias: usize) -> Result<Option<Expr<'g>>> {
    let (bias, Some(mask)) = (c.opt(bias), c.opt(mask)) else { return Ok(c.opt(bias)) };
    let b = c.builder();
    let seen = match mask.rank()? {
        1 => {
            let place = b.range(k.dim(2));
            let (sizes, batches) = (mask.sizes()?, k.sizes()?);
            let (size, batch) = (sizes.first().copied(), batches.first().copied());
            let times = |n: i64| batch.map(|batch| b.dims(|d| d.mul(batch, n.into())));
            let part = |i: i64| -> Expr<'g> {
                let size = k.dims([0]);
                let part = mask.slice_at(b.ints(&[0]), size * b.int(i), size * b.int(i + 1), b.ints(&[1]));
                part.cast(ElementType::Int64).unsqueeze(&[1])
            };
            let ends = place.less(part(0));
            match size {
                size if size == times(2) => ends.and(place.greater_or_equal(part(1))),
                size if size == batch || size == times(3).map(|n| b.dims(|d| d.add(n, 2.into()))) => ends,
                _ => {
                    // It is a list of ends, of starts and ends, or of more, by how long it is.
                    let (length, batch) = (mask.number_along(0)?, k.number_along(0)?);
                    bail!("{mask} has {length} elements, which is no multiple of the batch, {batch}, that is known")
                }
            }
            .unsqueeze(&[1, 2])
        }
        2 => mask.greater(mask.like(0.0)).unsqueeze(&[1, 2]),
        3 => mask.greater(mask.like(0.0)).unsqueeze(&[1]),
        rank => bail!("a mask of rank {rank} has no gradient here: [batch, queries, keys] has"),
    };
    let filter = seen.select(q.like(0.0), q.like(c.float("mask_filter_value", -10000.0)));
    Ok(Some(bias.map_or(filter, |bias| bias + filter)))
}

/// The part of `[batch, steps, heads, parts, size]` as `[batch, steps, heads * size]`.
fn unpacked<'g>(e: Expr<'g>, part: i64) -> Expr<'g> {
    e.narrow(3, part, part + 1).reshape_to(&[0, 0, -1])
}

fn multi_head<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let heads = c.int("num_heads", 0);
    ensure!((8..c.input_count()).all(|i| c.opt(i).is_none()), "shared buffers of keys and values have no gradient yet");
    let x = c.x();
    let mut parts = match (c.opt(1), c.opt(2)) {
        (Some(k), Some(v)) => [x, k, v],
        (Some(kv), None) if kv.rank()? == 5 => [x, unpacked(kv, 0), unpacked(kv, 1)],
        (None, None) if x.rank()? == 5 => [0, 1, 2].map(|part| unpacked(x, part)),
        _ => bail!("keys and values are neither given nor packed"),
    };
    if let Some(bias) = c.opt(3) {
        let b = c.builder();
        let mut start = b.ints(&[0]);
        for part in &mut parts {
            // Keys and values that come with an axis of heads have had their biases.
            if part.rank()? == 3 {
                let end = start + part.dims([2]);
                *part = *part + bias.slice_at(b.ints(&[0]), start, end, b.ints(&[1]));
                start = end;
            }
        }
    }
    let [q, k, v] = parts.map(|e| split_heads(e, heads));
    let (q, k, v) = (q?, cached(c.opt(6), k?), cached(c.opt(7), v?));
    let allowed = causal(c, q, k, c.opt(6), 2)?;
    let scores = plain(c, [q, k, v], allowed, biased(c, q, k, 4, 5)?)?;
    let attended = scores.attend()?;
    let [_, _, biased, _] = attended.stages;
    Ok(vec![Some(join_heads(attended.y)), Some(k), Some(v), Some(biased)])
}

fn projected<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (x, weights, heads) = (c.x(), c.input(1), c.int("num_heads", 0));
    ensure!((6..c.input_count()).all(|i| c.opt(i).is_none()), "shared buffers of keys and values have no gradient yet");
    let all = x.matmul(weights);
    let all = c.opt(2).map_or(all, |bias| all + bias);
    let sizes = match c.ints("qkv_hidden_sizes") {
        Some(sizes) if sizes.len() == 3 && sizes.iter().all(|&s| s > 0) => sizes,
        Some(_) => bail!("qkv_hidden_sizes is not a list of three sizes"),
        None => vec![weights.number_along(1)? / 3; 3],
    };
    let [q, k, v] = all.split(2, &sizes)[..] else { bail!("the product cannot be split into three") };
    let q = split_heads(q, heads)?;
    let past = |i: i64| c.opt(4).map(|past| past.narrow(0, i, i + 1).squeeze(&[0]));
    let (k, v) = (cached(past(0), split_heads(k, heads)?), cached(past(1), split_heads(v, heads)?));
    let allowed = causal(c, q, k, c.opt(4), 3)?;
    let scores = plain(c, [q, k, v], allowed, biased(c, q, k, 3, 5)?)?;
    let present = || Expr::concat(&[k.unsqueeze(&[0]), v.unsqueeze(&[0])], 0);
    Ok(vec![Some(join_heads(scores.attend()?.y)), c.has_dy(1).then(present)])
}

/// Q, K and V in heads, of one packed input or of three.
fn queries_keys_values<'g>(c: &Call<'g>) -> Result<[Expr<'g>; 3]> {
    let (heads, stored) = (c.int("num_heads", 0), c.int("kv_num_heads", 0));
    ensure!(heads > 0 && stored > 0 && heads % stored == 0, "{heads} heads cannot share {stored} keys and values");
    let together = stored.checked_mul(2).and_then(|n| n.checked_add(heads)).context("too many heads")?;
    match (c.opt(1), c.opt(2)) {
        (Some(k), Some(v)) => Ok([split_heads(c.x(), heads)?, split_heads(k, stored)?, split_heads(v, stored)?]),
        (None, None) => {
            let all = c.x().reshape_to(&[0, 0, together, -1]).transpose(&[0, 2, 1, 3]);
            let bounds = [(0, heads), (heads, heads + stored), (heads + stored, together)];
            Ok(bounds.map(|(start, end)| all.narrow(1, start, end)))
        }
        _ => bail!("keys without values"),
    }
}

/// How many keys each sequence has, and how many of them come before those of now, as columns; and how many all
/// sequences have at most.
fn lengths<'g>(c: &Call<'g>, steps: Expr<'g>) -> [Expr<'g>; 3] {
    let integer = |e: Expr<'g>| e.cast(ElementType::Int64);
    let count = integer(c.input(5)).reshape_to(&[-1, 1]) + 1;
    let total = integer(c.input(6)).reshape_to(&[]);
    let now = c.opt(16).map_or_else(|| count.min(steps), |n| integer(n).reshape_to(&[-1, 1]));
    [count, count - now, total]
}

/// The keys that each query may attend to.
fn allowed<'g>(c: &Call<'g>, q: Expr<'g>, k: Expr<'g>, count: Expr<'g>, before: Expr<'g>) -> Option<Expr<'g>> {
    let b = c.builder();
    let offset = c.opt(3).map(|_| before.unsqueeze(&[2, 3]));
    let allowed = match c.flag("causal", true) {
        // The keys of padding come after those of the queries that count.
        true => Some(distances(q, k, offset).less_or_equal(b.int(0))),
        false => Some(b.range(k.dim(2)).less(count.unsqueeze(&[1, 2]))),
    };
    match c.int("local_window_size", -1) {
        window @ 1.. => both(allowed, distances(q, k, offset).greater(b.int(-window))),
        _ => allowed,
    }
}

fn group_query<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    for name in ["k_quant_type", "v_quant_type"] {
        c.ensure_known(name, &c.string(name, "NONE"), &["NONE"]);
    }
    ensure!((12..16).all(|i| c.opt(i).is_none()), "scales of the cache and norms of Q and K have no gradient yet");
    ensure!(!c.has_dy(3), "output_qk has no gradient yet");
    let [q, k, v] = queries_keys_values(c)?;
    let steps = q.dim(2);
    let [count, before, total] = lengths(c, steps);
    let (q, k) = match c.flag("do_rotary", false) {
        true => {
            let turn = turn(c, q, before, total)?;
            (turn.turned(q), turn.turned(k))
        }
        false => (q, k),
    };
    let (k, v, written) = match (c.opt(3), c.opt(4)) {
        (Some(past_k), Some(past_v)) => {
            let length = total.max(past_k.dim(2));
            let place = c.builder().range(length).unsqueeze(&[0]);
            let written = place.less(before + steps).unsqueeze(&[1, 3]);
            let (k, v) = (placed(past_k, k, before, place), placed(past_v, v, before, place));
            (k, v, Some(written))
        }
        (None, None) => (k, v, None),
        _ => bail!("past keys without past values"),
    };
    let allowed = allowed(c, q, k, count, before);
    let bias = c.opt(10).map(|bias| padded(bias, k)).transpose()?;
    let sink = match c.opt(11) {
        Some(sink) => Some(sink.reshape_to(&[1, -1, 1, 1])),
        None => (c.int("smooth_softmax", -1) > 0).then(|| q.like(0.0).reshape_to(&[1, 1, 1, 1])),
    };
    let (scale, softcap, precision) = (scale_of(q, given_scale(c)), c.float("softcap", 0.0), q.element()?.widened());
    let scores = Scores { q, k, v, scale, softcap, allowed, bias, sink, may_be_blind: false, precision };
    let kept = |e: Expr<'g>| written.map_or(e, |written| e.where_(written));
    Ok(vec![Some(join_heads(scores.attend()?.y)), Some(kept(k)), Some(kept(v))])
}

/// What is in the cache after the call: at each of the places, counted from the first of the sequence, that of before
/// or of now.
fn placed<'g>(past: Expr<'g>, now: Expr<'g>, before: Expr<'g>, place: Expr<'g>) -> Expr<'g> {
    let all = Expr::concat(&[past, now], 2);
    let last = all.dim(2) - 1;
    let source = place.less(before).select(place, (place + past.dim(2) - before).min(last)).unsqueeze(&[1, 3]);
    let shape = Expr::concat(&[all.dims([0, 1]), source.dims([2]), all.dims([3])], 0);
    all.gather_elements(source.expand(shape), 2)
}

/// The angles of queries and keys: those of their places in the sequence, or of the positions that are given. Of a
/// first prompt the first of these positions counts alone.
fn turn<'g>(c: &Call<'g>, q: Expr<'g>, before: Expr<'g>, total: Expr<'g>) -> Result<Turn<'g>> {
    let steps = c.builder().range(q.dim(2)).unsqueeze(&[0]);
    let positions = match c.opt(9) {
        Some(given) => {
            let first = given.flattened().gather(c.builder().int(0), 0);
            q.dim(2).equal(total).select(first + steps, given)
        }
        None => before + steps,
    };
    let read = |i: usize| Ok::<_, anyhow::Error>(c.input(i).gather(positions, 0).unsqueeze(&[1]));
    let (cos, sin) = (read(7).context("do_rotary without cos_cache")?, read(8).context("do_rotary without sin_cache")?);
    let turned = cos.known_dim(3).and_then(|half| half.checked_mul(2));
    let partial = turned.is_none() || turned != q.known_dim(3);
    Ok(Turn { cos, sin, interleaved: c.flag("rotary_interleaved", false), partial })
}
