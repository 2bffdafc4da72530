//! Attention, linear attention, and the convolution and the rotation that stand beside them.

use super::{Array, Call, Element, Row, row};
use anyhow::{Context, Result, bail, ensure};

const MICROSOFT: &str = "com.microsoft";

pub const ROWS: &[Row] = &[
    row("GatedRelativePositionBias", gated_bias).domain("com.microsoft"),
    row("RelativePositionBias", position_bias).domain("com.microsoft"),
    row("Attention", attention),
    row("FlexAttention", flex).domain("ai.onnx.preview"),
    row("Attention", packed).domain(MICROSOFT),
    row("GroupQueryAttention", group_query).domain(MICROSOFT),
    row("MultiHeadAttention", multi_head).domain(MICROSOFT),
    row("RotaryEmbedding", rotary).domain(MICROSOFT),
    row("LinearAttention", linear),
    row("LinearAttention", linear).domain(MICROSOFT),
    row("CausalConvWithState", causal_conv),
];

fn heads(c: &Call, name: &str) -> Result<usize> {
    usize::try_from(c.int(name, 0)).ok().filter(|&n| n > 0).with_context(|| format!("{name} is not positive"))
}

/// `[batch, steps, heads * size]` as `[batch, heads, steps, size]`.
fn split(a: &Array, heads: impl FnOnce() -> Result<usize>) -> Result<Array> {
    if a.rank() == 4 {
        return Ok(a.clone());
    }
    ensure!(a.rank() == 3, "rank {} is neither 3 nor 4", a.rank());
    let heads = heads()?;
    ensure!(a.dim(2).is_multiple_of(heads), "{} is not divided by {heads} heads", a.dim(2));
    a.clone().reshaped(&[a.dim(0), a.dim(1), heads, a.dim(2) / heads])?.transposed(&[0, 2, 1, 3])
}

/// `[batch, heads, steps, size]` as `[batch, steps, heads * size]`.
fn join(a: &Array) -> Result<Array> {
    let dims = [a.dim(0), a.dim(2), a.dim(1) * a.dim(3)];
    a.transposed(&[0, 2, 1, 3])?.reshaped(&dims)
}

/// The keys or values of before, and those of now.
fn cached(past: Option<&Array>, now: Array) -> Result<Array> {
    let Some(past) = past else { return Ok(now) };
    ensure!(past.rank() == 4 && past.dims[..2] == now.dims[..2] && past.dim(3) == now.dim(3), "past of other sizes");
    let before = past.dim(2);
    Array::from_fn(&[now.dim(0), now.dim(1), before + now.dim(2), now.dim(3)], |index| {
        let &[n, h, t, d] = index else { return 0.0 };
        if t < before { past.at(index) } else { now.at(&[n, h, t - before, d]) }
    })
}

/// What a query sees: the result, and the scores of the product, capped, with bias, as probabilities. The bias is -∞
/// where a query may not look; one that may look nowhere gets zeros. A head may have a score of looking at nothing.
fn attend(
    [q, k, v]: [&Array; 3],
    scale: Option<f64>,
    softcap: f64,
    bias: impl Fn(&[usize]) -> f64,
    sink: impl Fn(usize) -> Option<f64>,
) -> Result<(Array, [Array; 4])> {
    let product = product(q, k, scale)?;
    ensure!(v.rank() == 4 && v.dims[..3] == k.dims[..3], "keys {:?} and values {:?}", k.dims, v.dims);
    let capped = if softcap > 0.0 { product.map(|s| softcap * (s / softcap).tanh()) } else { product.clone() };
    let biased = Array::from_fn(&capped.dims, |index| capped.at(index) + bias(index))?;
    let probabilities = softmax(&biased, sink);
    Ok((weighted(&probabilities, v)?, [product, capped, biased, probabilities]))
}

/// The scores of each query with each key.
fn product(q: &Array, k: &Array, scale: Option<f64>) -> Result<Array> {
    ensure!(q.rank() == 4 && k.rank() == 4 && k.dim(1) > 0 && q.dim(1).is_multiple_of(k.dim(1)), "heads");
    ensure!(q.dim(0) == k.dim(0) && q.dim(3) == k.dim(3), "{:?} and {:?} have no product", q.dims, k.dims);
    let (group, size) = (q.dim(1) / k.dim(1), q.dim(3));
    let scale = scale.unwrap_or(1.0 / (size as f64).sqrt());
    Array::from_fn(&[q.dim(0), q.dim(1), q.dim(2), k.dim(2)], |i| {
        let terms = (0..size).map(|d| q.at(&[i[0], i[1], i[2], d]) * k.at(&[i[0], i[1] / group, i[3], d]));
        scale * terms.sum::<f64>()
    })
}

/// Over the keys, and a score of each head for seeing nothing; zeros for a query that sees none.
fn softmax(scores: &Array, sink: impl Fn(usize) -> Option<f64>) -> Array {
    let mut probabilities = scores.clone();
    for (i, row) in probabilities.values.chunks_exact_mut(scores.dim(3).max(1)).enumerate() {
        let sink = sink(i / scores.dim(2) % scores.dim(1)).unwrap_or(f64::NEG_INFINITY);
        let largest = row.iter().copied().fold(sink, f64::max);
        let seen = largest > f64::NEG_INFINITY;
        row.iter_mut().for_each(|p| *p = if seen { (*p - largest).exp() } else { 0.0 });
        let sum: f64 = row.iter().sum::<f64>() + (sink - largest).exp();
        row.iter_mut().filter(|_| seen).for_each(|p| *p /= sum);
    }
    probabilities
}

/// The values, each with its weight.
fn weighted(weights: &Array, v: &Array) -> Result<Array> {
    let &[batch, heads, queries, keys] = weights.dims.as_slice() else { bail!("weights of rank {}", weights.rank()) };
    let shared = v.dim(1) > 0 && heads.is_multiple_of(v.dim(1));
    ensure!(v.rank() == 4 && v.dim(0) == batch && v.dim(2) == keys && shared, "values {:?}", v.dims);
    let group = heads / v.dim(1);
    Array::from_fn(&[batch, heads, queries, v.dim(3)], |i| {
        (0..keys).map(|j| weights.at(&[i[0], i[1], i[2], j]) * v.at(&[i[0], i[1] / group, j, i[3]])).sum()
    })
}

/// Attention whose scores and probabilities bodies change.
fn flex(c: &Call) -> Result<Vec<Array>> {
    let modified = |a: Array, name: &str| Ok::<_, anyhow::Error>((c.body)(name, &a)?.unwrap_or(a));
    let scores = modified(product(c.x()?, c.input(1)?, scale(c))?, "score_mod")?;
    Ok(vec![weighted(&modified(softmax(&scores, |_| None), "prob_mod")?, c.input(2)?)?])
}

/// A given scale.
fn scale(c: &Call) -> Option<f64> {
    c.node.attribute.iter().find(|a| a.name() == "scale").map(|a| a.f().into())
}

/// Attention of the standard: with GQA, a cache inside or outside, masks, and from opset 25 on a window.
fn attention(c: &Call) -> Result<Vec<Array>> {
    let q = split(c.x()?, || heads(c, "q_num_heads"))?;
    let k = cached(c.opt(4), split(c.input(1)?, || heads(c, "kv_num_heads"))?)?;
    let v = cached(c.opt(5), split(c.input(2)?, || heads(c, "kv_num_heads"))?)?;
    let (queries, keys) = (q.dim(2) as i64, k.dim(2));
    let valid = c.opt(6).map(Array::integers);
    ensure!(valid.as_ref().is_none_or(|n| n.len() == q.dim(0)), "one number of keys a sequence");
    let (left, right) = (c.int("left_window_size", -1), c.int("right_window_size", -1));
    let causal = c.int("is_causal", 0) != 0;
    let mask = c.opt(3);
    let bias = |index: &[usize]| {
        let (batch, key) = (index[0], index[3] as i64);
        let count = valid.as_ref().map(|n| n[batch]);
        let offset = match c.opt(4) {
            Some(past) => past.dim(2) as i64,
            None => count.map_or(0, |n| n - queries),
        };
        let place = index[2] as i64 + offset;
        let hidden = (causal && key > place)
            || (left >= 0 && key < place - left)
            || (right >= 0 && key > place + right)
            || count.is_some_and(|n| key >= n)
            || mask.is_some_and(|m| m.dims.last().is_some_and(|&n| index[3] >= n));
        match mask.map(|m| m.broadcast_at(index)) {
            _ if hidden => f64::NEG_INFINITY,
            Some(sees) if c.is_bool(3) => {
                if sees != 0.0 {
                    0.0
                } else {
                    f64::NEG_INFINITY
                }
            }
            added => added.unwrap_or(0.0),
        }
    };
    ensure!(mask.is_none_or(|m| m.rank() <= 4 && m.dims.last().is_none_or(|&n| n <= keys)), "a mask that is too large");
    let (y, stages) = attend([&q, &k, &v], scale(c), c.float("softcap", 0.0), bias, |_| None)?;
    let y = if c.x()?.rank() == 3 { join(&y)? } else { y };
    let mode = usize::try_from(c.int("qk_matmul_output_mode", 0)).unwrap_or(usize::MAX);
    let stage = stages.into_iter().nth(mode).context("qk_matmul_output_mode is none of 0, 1, 2, 3")?;
    Ok(vec![y, k.of(Element::Like(1)), v.of(Element::Like(2)), stage])
}

/// A given scale that is not 0, which stands for none.
fn scale_or_none(c: &Call) -> Option<f64> {
    scale(c).filter(|&s| s != 0.0)
}

/// What a mask adds to a score of ONNX Runtime's own operators. Of one axis it has for each sequence its number of
/// keys, or all ends and then all starts, or numbers of keys and more; of two and three it is not positive where a key
/// is not to be seen.
fn filter(c: &Call, mask: usize, batch: usize) -> Result<impl Fn(&[usize]) -> f64> {
    let (mask, value) = (c.opt(mask).cloned(), c.float("mask_filter_value", -10000.0));
    let size = mask.as_ref().map_or(0, |m| m.values.len());
    let lists = mask.as_ref().is_none_or(|m| m.rank() > 1 || [batch, 2 * batch, 3 * batch + 2].contains(&size));
    ensure!(lists && mask.as_ref().is_none_or(|m| m.rank() <= 3 && m.dim(0) >= batch), "a mask of another shape");
    Ok(move |i: &[usize]| {
        let Some(mask) = &mask else { return 0.0 };
        let (n, query, key) = (i[0], i[2], i[3] as f64);
        let seen = match mask.rank() {
            1 => key < mask.values[n] && (size != 2 * batch || key >= mask.values[batch + n]),
            2 => mask.broadcast_at(&[n, i[3]]) > 0.0,
            _ => mask.broadcast_at(&[n, query, i[3]]) > 0.0,
        };
        if seen { 0.0 } else { value }
    })
}

/// One of the tensors that are packed along the axis before the last.
fn unpacked(a: &Array, part: usize) -> Result<Array> {
    ensure!(a.rank() == 5 && part < a.dim(3), "{:?} is not packed", a.dims);
    let size = a.dim(4);
    Array::from_fn(&[a.dim(0), a.dim(1), a.dim(2) * size], |i| a.at(&[i[0], i[1], i[2] / size, part, i[2] % size]))
}

fn multi_head(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    ensure!((8..c.inputs.len()).all(|i| c.opt(i).is_none()), "shared buffers");
    let (q, k, v) = match (c.opt(1), c.opt(2)) {
        (Some(k), Some(v)) => (x.clone(), k.clone(), v.clone()),
        (Some(kv), None) => (x.clone(), unpacked(kv, 0)?, unpacked(kv, 1)?),
        _ => (unpacked(x, 0)?, unpacked(x, 1)?, unpacked(x, 2)?),
    };
    let mut start = 0;
    let mut with_bias = |a: &Array| -> Result<Array> {
        if a.rank() == 4 {
            return Ok(a.clone());
        }
        let first = start;
        start += a.dim(2);
        ensure!(c.opt(3).is_none_or(|b| b.values.len() >= start), "too few numbers in the bias");
        let bias = |i: usize| c.opt(3).map_or(0.0, |b| b.values[first + i]);
        let biased = Array::from_fn(&a.dims, |i| a.at(i) + i.last().map_or(0.0, |&i| bias(i)))?;
        split(&biased, || heads(c, "num_heads"))
    };
    let (q, k, v) = (with_bias(&q)?, with_bias(&k)?, with_bias(&v)?);
    let (k, v) = (cached(c.opt(6), k)?, cached(c.opt(7), v)?);
    let (causal, before) = (c.int("unidirectional", 0) != 0, c.opt(6).map_or(0, |past| past.dim(2)));
    let filter = filter(c, 4, q.dim(0))?;
    let bias = |i: &[usize]| match causal && i[3] > i[2] + before {
        true => f64::NEG_INFINITY,
        false => c.opt(5).map_or(0.0, |b| b.broadcast_at(i)) + filter(i),
    };
    let (y, [_, _, scores, _]) = attend([&q, &k, &v], scale_or_none(c), 0.0, bias, |_| None)?;
    Ok(vec![join(&y)?, k, v, scores])
}

/// Q of all heads, K and V of those that are stored: of three inputs, or of one that holds them together.
fn in_groups(c: &Call, all: usize, stored: usize) -> Result<(Array, Array, Array)> {
    Ok(match (c.opt(1), c.opt(2)) {
        (Some(k), Some(v)) => (split(c.x()?, || Ok(all))?, split(k, || Ok(stored))?, split(v, || Ok(stored))?),
        _ => {
            let together = split(c.x()?, || Ok(all.saturating_add(stored.saturating_mul(2))))?;
            let part = |first: usize, count: usize| {
                let dims = [together.dim(0), count, together.dim(2), together.dim(3)];
                Array::from_fn(&dims, |i| together.at(&[i[0], first + i[1], i[2], i[3]]))
            };
            (part(0, all)?, part(all, stored)?, part(all + stored, stored)?)
        }
    })
}

/// Heads that share keys, in a cache of which each sequence has used as much as it is told, and turned by their
/// positions.
fn group_query(c: &Call) -> Result<Vec<Array>> {
    let (all, stored) = (heads(c, "num_heads")?, heads(c, "kv_num_heads")?);
    ensure!((12..16).all(|i| c.opt(i).is_none()), "a quantized cache, or norms");
    let (q, k, v) = in_groups(c, all, stored)?;
    let (batch, steps) = (q.dim(0), q.dim(2));
    let last = c.input(5)?.integers();
    let total = *c.input(6)?.integers().first().context("total_sequence_length")?;
    let own = c.opt(16).map(Array::integers);
    let small = |numbers: &[i64]| numbers.len() == batch && numbers.iter().all(|n| (0..1 << 32).contains(n));
    ensure!(small(&last) && own.as_ref().is_none_or(|own| small(own)), "one number of keys a sequence");
    ensure!(k.dim(0) == batch && k.dim(2) == steps && v.dims == k.dims, "keys and values");
    let given = c.opt(9).map(Array::integers);
    ensure!(given.as_ref().is_none_or(|given| given.len() == batch * steps), "one position a step");
    let fits = |past: &Array| past.rank() == 4 && past.dims[..2] == k.dims[..2] && past.dim(3) == k.dim(3);
    ensure!([3, 4].iter().all(|&i| c.opt(i).is_none_or(fits)), "past of other sizes");
    ensure!(c.opt(11).is_none_or(|sinks| sinks.values.len() == all), "one sink a head");
    let before: Vec<i64> =
        (0..batch).map(|n| last[n] + 1 - own.as_ref().map_or((last[n] + 1).min(steps as i64), |o| o[n])).collect();
    let position = |n: usize, t: usize| match &given {
        Some(given) if steps as i64 == total => given[0].saturating_add(t as i64),
        Some(given) => given[n * steps + t],
        None => before[n] + t as i64,
    };
    let turned = |a: &Array| -> Result<Array> {
        if c.int("do_rotary", 0) == 0 {
            return Ok(a.clone());
        }
        let angles = [c.input(7)?, c.input(8)?];
        turned(a, angles, c.int("rotary_interleaved", 0) != 0, position)
    };
    let (q, k) = (turned(&q)?, turned(&k)?);
    let cache = |past: Option<&Array>, now: &Array| -> Result<Array> {
        let Some(past) = past else { return Ok(now.clone()) };
        let length = past.dim(2).max(usize::try_from(total)?);
        Array::from_fn(&[batch, stored, length, now.dim(3)], |i| {
            let now_at = i[2] as i64 - before[i[0]];
            match now_at {
                ..0 => past.at_or_zero(&i.iter().map(|&i| i as i64).collect::<Vec<_>>()),
                at if at < steps as i64 => now.at(&[i[0], i[1], at as usize, i[3]]),
                _ => 0.0,
            }
        })
    };
    let (k, v) = (cache(c.opt(3), &k)?, cache(c.opt(4), &v)?);
    let (causal, window) = (c.int("causal", 1) != 0, c.int("local_window_size", -1));
    let bias = |i: &[usize]| {
        let (key, place) = (i[3] as i64, before[i[0]] + i[2] as i64);
        let hidden = if causal { key > place } else { key > last[i[0]] };
        match hidden || (window > 0 && key <= place - window) {
            true => f64::NEG_INFINITY,
            false => c.opt(10).map_or(0.0, |b| b.broadcast_at(i)),
        }
    };
    let smooth = (c.int("smooth_softmax", -1) > 0).then_some(0.0);
    let sink = |head: usize| c.opt(11).map_or(smooth, |sinks| Some(sinks.values[head]));
    let (y, _) = attend([&q, &k, &v], scale_or_none(c), c.float("softcap", 0.0), bias, sink)?;
    Ok(vec![join(&y)?, k, v])
}

/// ONNX Runtime's own: one product of x gives queries, keys and values.
fn packed(c: &Call) -> Result<Vec<Array>> {
    let (x, w) = (c.x()?, c.input(1)?);
    ensure!((6..c.inputs.len()).all(|i| c.opt(i).is_none()), "shared buffers");
    ensure!(x.rank() == 3 && w.rank() == 2 && w.dim(0) == x.dim(2), "sizes");
    let sizes = c.ints("qkv_hidden_sizes").unwrap_or_else(|| vec![w.dim(1) as i64 / 3; 3]);
    ensure!(sizes.len() == 3 && sizes.iter().sum::<i64>() == w.dim(1) as i64, "qkv_hidden_sizes");
    let mut start = 0;
    let mut part = |size: i64| -> Result<Array> {
        let (first, size) = (start, usize::try_from(size)?);
        start += size;
        let part = Array::from_fn(&[x.dim(0), x.dim(1), size], |i| {
            let column = first + i[2];
            let terms = (0..x.dim(2)).map(|d| x.at(&[i[0], i[1], d]) * w.at(&[d, column]));
            terms.sum::<f64>() + c.opt(2).map_or(0.0, |b| b.at(&[column]))
        })?;
        split(&part, || heads(c, "num_heads"))
    };
    let (q, k, v) = (part(sizes[0])?, part(sizes[1])?, part(sizes[2])?);
    ensure!(c.opt(4).is_none_or(|past| past.rank() == 5 && past.dim(0) == 2), "past keys and values");
    let past = |i: usize| {
        let past = c.opt(4)?;
        let half = past.values.len() / 2;
        Some(Array { dims: past.dims[1..].to_vec(), values: past.values[i * half..][..half].to_vec(), ..past.clone() })
    };
    let (k, v) = (cached(past(0).as_ref(), k)?, cached(past(1).as_ref(), v)?);
    let (causal, before) = (c.int("unidirectional", 0) != 0, c.opt(4).map_or(0, |past| past.dim(3)));
    let filter = filter(c, 3, q.dim(0))?;
    let bias = |i: &[usize]| match causal && i[3] > i[2] + before {
        true => f64::NEG_INFINITY,
        false => c.opt(5).map_or(0.0, |b| b.broadcast_at(i)) + filter(i),
    };
    let (y, _) = attend([&q, &k, &v], scale_or_none(c), 0.0, bias, |_| None)?;
    let mut dims = vec![2];
    dims.extend(&k.dims);
    let present = match c.has_output(1) {
        true => Array { dims, values: k.values.into_iter().chain(v.values).collect(), element: Element::Like(0) },
        false => Array::scalar(0.0),
    };
    Ok(vec![join(&y)?, present])
}

/// Each pair of x, `[batch, heads, steps, size]`, turned by the angle of its position.
fn turned(
    x: &Array,
    [cos, sin]: [&Array; 2],
    interleaved: bool,
    position: impl Fn(usize, usize) -> i64,
) -> Result<Array> {
    let half = cos.dim(1);
    ensure!(cos.rank() == 2 && sin.dims == cos.dims && 2 * half <= x.dim(3), "caches");
    Array::from_fn(&x.dims, |i| {
        let (d, at) = (i[3], |d: usize| x.at(&[i[0], i[1], i[2], d]));
        if d >= 2 * half {
            return at(d);
        }
        let (pair, second) = if interleaved { (d / 2, d % 2 == 1) } else { (d % half, d >= half) };
        let (first_at, second_at) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
        let angle = [position(i[0], i[2]), pair as i64];
        let (cos, sin) = (cos.at_or_zero(&angle), sin.at_or_zero(&angle));
        if second { at(first_at) * sin + at(second_at) * cos } else { at(first_at) * cos - at(second_at) * sin }
    })
}

fn rotary(c: &Call) -> Result<Vec<Array>> {
    let (x, positions, cos, sin) = (c.x()?, c.input(1)?, c.input(2)?, c.input(3)?);
    let (half, given) = (cos.dim(1), c.int("num_heads", 0));
    let split_x =
        split(x, || if given > 0 { heads(c, "num_heads") } else { Ok((x.dim(2) / (2 * half).max(1)).max(1)) })?;
    let steps = split_x.dim(2);
    let numbers = positions.integers();
    ensure!(numbers.len() == 1 || numbers.len() == split_x.dim(0) * steps, "one position a step");
    let position = |n: usize, t: usize| if numbers.len() == 1 { numbers[0] + t as i64 } else { numbers[n * steps + t] };
    let y = turned(&split_x, [cos, sin], c.int("interleaved", 0) != 0, position)?;
    Ok(vec![if x.rank() == 3 { join(&y)? } else { y }])
}

/// The recurrence of linear attention, one sequence and one head of keys after the other.
fn linear(c: &Call) -> Result<Vec<Array>> {
    let (all, stored) = (heads(c, "q_num_heads")?, heads(c, "kv_num_heads")?);
    let (q, k, v) =
        (split(c.x()?, || Ok(all))?, split(c.input(1)?, || Ok(stored))?, split(c.input(2)?, || Ok(stored))?);
    let (gated, delta) = match c.string("update_rule", "gated_delta") {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => bail!("update_rule {other}"),
    };
    ensure!(all % stored == 0 && q.dim(3) == k.dim(3), "heads");
    let (width, depth) = (k.dim(3), v.dim(3));
    let decay = if gated { Some(split(c.input(4)?, || Ok(stored))?) } else { None };
    let beta = if delta { Some(c.input(5)?) } else { None };
    let scale = scale_or_none(c).unwrap_or(1.0 / (width as f64).sqrt());
    let mut y = Array::filled(&[q.dim(0), all, q.dim(2), depth], 0.0)?;
    let mut state = match c.opt(3) {
        Some(past) => past.clone(),
        None => Array::filled(&[q.dim(0), stored, width, depth], 0.0)?,
    };
    ensure!(state.dims == [q.dim(0), stored, width, depth], "a past state of other sizes");
    for (n, h) in (0..q.dim(0)).flat_map(|n| (0..stored).map(move |h| (n, h))) {
        for t in 0..q.dim(2) {
            for i in 0..width {
                let fade = decay.as_ref().map_or(1.0, |g| g.broadcast_at(&[n, h, t, i]).exp());
                (0..depth).for_each(|j| *state.at_mut(&[n, h, i, j]) *= fade);
            }
            for j in 0..depth {
                let value = v.at(&[n, h, t, j]);
                let told: f64 = (0..width).map(|i| k.at(&[n, h, t, i]) * state.at(&[n, h, i, j])).sum();
                let news = beta.map_or(value, |b| b.broadcast_at(&[n, t, h]) * (value - told));
                (0..width).for_each(|i| *state.at_mut(&[n, h, i, j]) += k.at(&[n, h, t, i]) * news);
                for head in h * (all / stored)..(h + 1) * (all / stored) {
                    let read: f64 = (0..width).map(|i| q.at(&[n, head, t, i]) * state.at(&[n, h, i, j])).sum();
                    *y.at_mut(&[n, head, t, j]) = scale * read;
                }
            }
        }
    }
    Ok(vec![join(&y)?, state.of(Element::Like(if c.opt(3).is_some() { 3 } else { 0 }))])
}

/// Each channel with its own kernel, over this step and those before.
fn causal_conv(c: &Call) -> Result<Vec<Array>> {
    let (x, w) = (c.x()?, c.input(1)?);
    ensure!(x.rank() == 3 && w.rank() == 3 && w.dim(2) > 0 && w.dim(0) == x.dim(1), "sizes");
    let before = w.dim(2) - 1;
    ensure!(c.opt(3).is_none_or(|s| s.dims == [x.dim(0), x.dim(1), before]), "a past state of other sizes");
    let all = Array::from_fn(&[x.dim(0), x.dim(1), before + x.dim(2)], |i| match i[2].checked_sub(before) {
        Some(now) => x.at(&[i[0], i[1], now]),
        None => c.opt(3).map_or(0.0, |s| s.at(i)),
    })?;
    let activated = match c.string("activation", "none") {
        "silu" | "swish" => |v: f64| v / (1.0 + (-v).exp()),
        "none" => |v: f64| v,
        other => bail!("activation {other}"),
    };
    let y = Array::from_fn(&x.dims, |i| {
        let terms = (0..=before).map(|k| w.at(&[i[1], 0, k]) * all.at(&[i[0], i[1], i[2] + k]));
        activated(terms.sum::<f64>() + c.opt(2).map_or(0.0, |b| b.at(&[i[1]])))
    })?;
    let state = Array::from_fn(&[x.dim(0), x.dim(1), before], |i| all.at(&[i[0], i[1], i[2] + x.dim(2)]))?;
    Ok(vec![y, state])
}

/// The bucket of a distance: one each for short ones, then as many for each factor of the same size.
fn bucket(ahead: i64, buckets: i64, both: bool, furthest: i64) -> i64 {
    let (buckets, first) = if both { (buckets / 2, if ahead > 0 { buckets / 2 } else { 0 }) } else { (buckets, 0) };
    let distance = if both { ahead.abs() } else { (-ahead).max(0) };
    let exact = buckets / 2;
    if distance < exact {
        return first + distance;
    }
    let factor = (distance as f64 / exact as f64).ln() / (furthest as f64 / exact as f64).ln();
    first + (exact + (factor * (buckets - exact) as f64) as i64).min(buckets - 1)
}

/// For each head, query and key the table's entry for how far the key lies ahead.
fn position_bias(c: &Call) -> Result<Vec<Array>> {
    let table = c.x()?;
    let size = |i: usize| Ok::<_, anyhow::Error>(c.input(i)?.values.first().copied().unwrap_or(0.0) as usize);
    let (both, furthest) = (c.int("is_bidirectional", 0) != 0, c.int("max_distance", 0));
    let y = Array::from_fn(&[1, table.dim(1), size(1)?, size(2)?], |i| {
        let row = bucket(i[3] as i64 - i[2] as i64, table.dim(0) as i64, both, furthest);
        table.at_or_zero(&[row, i[1] as i64])
    })?;
    Ok(vec![y])
}

/// Places that two gates of the query scale: each is the sigmoid of the sum of half of what a linear layer makes of it.
fn gated_bias(c: &Call) -> Result<Vec<Array>> {
    let (query, bias, places, w, b, scale) = (c.x()?, c.input(1)?, c.input(2)?, c.input(3)?, c.input(4)?, c.input(5)?);
    let (size, gates) = (w.dim(0), w.dim(1));
    let y = Array::from_fn(&[query.dim(0), places.dim(1), places.dim(2), places.dim(3)], |i| {
        let (n, head, t, k) = (i[0], i[1], i[2], i[3]);
        let gate = |columns: std::ops::Range<usize>| {
            let column = |j: usize| {
                let of = |d: usize| query.at(&[n, t, head * size + d]) + bias.values[head * size + d];
                (0..size).map(|d| of(d) * w.at(&[d, j])).sum::<f64>() + b.values[j]
            };
            1.0 / (1.0 + (-columns.map(column).sum::<f64>()).exp())
        };
        let (u, r) = (gate(0..gates / 2), gate(gates / 2..gates));
        (u * (r * scale.at(&[0, head, 0, 0]) - 1.0) + 2.0) * places.at(&[0, head, t, k])
    })?;
    Ok(vec![y])
}
