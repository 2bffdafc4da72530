//! Pools: one number for each window.

use super::Slot::*;
use super::properties::{Counts, written};
use super::window::facts;
use super::window::{Window, lowest};
use super::{Call, Rule, rule};
use crate::expr::{Expr, Pool};
use crate::onnx::ElementType;
use crate::rules::facts::same;
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    AVERAGE.until(18),
    Rule { slots: &[Try(|c| average(c, true))], ..AVERAGE }.since(19),
    rule("LpPool", "dx = x |x|ᵖ⁻² Σ dy y¹⁻ᵖ over the windows of x", &[Try(lp)])
        .facts(facts::pool)
        .attributes("auto_pad ceil_mode dilations kernel_shape p pads strides")
        .in_float32()
        .note("0 where y is 0"),
    rule("GlobalLpPool", "dx = x |x|ᵖ⁻² dy y¹⁻ᵖ", &[Try(global_lp)])
        .facts(facts::global)
        .attributes("p")
        .in_float32()
        .note("0 where y is 0"),
    rule("MaxUnpool", "dx = dy at the indices", &[Try(max_unpool), Stop("indices"), Stop("a shape")])
        .facts(facts::max_unpool)
        .indices(&[written(1, Counts::Flat)])
        .attributes("kernel_shape pads strides"),
    rule(
        "LRN",
        "dx = dy s⁻ᵝ - 2 α β / size x Σ dy x s⁻ᵝ⁻¹ over the channels around, s = bias + α / size Σ x²",
        &[Try(local_response)],
    )
    .facts(same)
    .attributes("alpha beta bias size")
    .in_float32(),
    rule("GlobalAveragePool", "dx = dy / count", &[Try(global_average)]).facts(facts::global).in_float32(),
    rule("GlobalMaxPool", "dx = dy where x is the largest", &[Formula(global_max)])
        .facts(facts::global)
        .note("the first of equals gets all"),
    rule("MaxPool", "dx = dy where x is the largest of its window", &[Try(max)])
        .facts(facts::pool)
        .compares()
        .moves_integers()
        .attributes("auto_pad ceil_mode dilations kernel_shape pads storage_order strides")
        .note("the first of equals gets all"),
];

const AVERAGE: Rule =
    rule("AveragePool", "dx = dy / count, in every place of each window", &[Try(|c| average(c, false))])
        .facts(facts::pool)
        .attributes("auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides")
        .note("of a window larger than all of x, only what it meets counts, as runtimes have it");

/// `clipped`: of a window that is larger than the image with its padding, only what lies in that counts, also where
/// padding does.
fn average<'g>(c: &Call<'g>, clipped: bool) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    let window = Window::of(c, x, c.y(), None)?;
    let (geometry, with_pads) = (&window.geometry, c.flag("count_include_pad", false));
    let pads = with_pads.then_some((&*geometry.before, &*geometry.behind));
    // Sizes that are padded to the same number of windows leave none that hangs over.
    let each = if with_pads && (geometry.auto_pad.is_same() || (!clipped && !geometry.ceil)) {
        dy / window.kernel()?.iter().map(|&k| k as f64).product::<f64>()
    } else if !window.is_padded() || (with_pads && !geometry.ceil) {
        dy / window.most(dy, pads)?
    } else {
        dy / window.counts(dy, pads)?
    };
    window.spread_evenly(each, x)
}

fn global_average<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    Ok((dy / x.count(&(2..x.rank()?).collect::<Vec<_>>(), dy)).expand_like(x))
}

fn global_max<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, dy) = (c.x(), c.dy());
    let flat = x.reshape_to(&[0, 0, -1]);
    let first = flat.arg_max(2).equal(c.builder().range(flat.dim(2)));
    dy.reshape_to(&[0, 0, 1]).where_(first).reshape_like(x)
}

fn max<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy) = (c.x(), c.y(), c.dy());
    match x.is_rectified_for_one() {
        true => Ok(max_of(c, dy.where_open(y))?.note_shut(x)),
        false => max_of(c, dy),
    }
}

fn max_of<'g>(c: &Call<'g>, dy: Expr<'g>) -> Result<Expr<'g>> {
    let (x, b) = (c.x(), c.builder());
    let window = Window::of(c, x, c.y(), None)?;
    if c.output(1).is_none()
        && let Some(dx) = window.unpool(x, c.y(), dy)?
    {
        return Ok(dx);
    }
    if b.scatters(window.overlaps()) {
        let indices = match c.output(1).filter(|_| c.int("storage_order", 0) == 0) {
            Some(indices) => indices,
            None => {
                let ints = |name| c.ints(name).filter(|v| !v.is_empty());
                x.max_pool(&Pool {
                    kernel: window.kernel()?.to_vec(),
                    strides: ints("strides"),
                    dilations: ints("dilations"),
                    pads: ints("pads"),
                    auto_pad: c.string("auto_pad", "NOTSET"),
                    ceil_mode: c.flag("ceil_mode", false),
                })
                .1
            }
        };
        // They are places in the whole tensor.
        let zeros = b.full(x.size().reshape_to(&[1]), 0.0, dy.element()?);
        let (indices, dy) = (indices.flattened(), dy.flattened());
        let dx = match window.overlaps() {
            true => zeros.scatter_elements_add(indices, dy, 0),
            false => zeros.scatter_elements(indices, dy, 0),
        };
        return Ok(dx.reshape_like(x));
    }
    // Integers may not be lowest enough for what lies around the image.
    let numbers = x.cast_like(dy);
    let patches = window.patches(window.one_channel(numbers), lowest(numbers)?)?;
    let first = patches.arg_max(1);
    let taps: i64 = window.kernel()?.iter().product();
    let rank = window.kernel()?.len();
    let place: Vec<i64> = [1, taps].into_iter().chain(vec![1; rank]).collect();
    let hit = first.equal(b.range(b.int(taps)).reshape_to(&place));
    Ok(window.unpatch(window.one_channel(dy).where_(hit))?.reshape_like(x))
}

/// The derivative of `|x|ᵖ / p`.
fn power<'g>(x: Expr<'g>, p: i64) -> Expr<'g> {
    match p {
        1 => x.sign(),
        2 => x,
        _ => x * x.abs().pow(x.like((p - 2) as f64)),
    }
}

/// `dy y¹⁻ᵖ`, zero where y is.
fn normed<'g>(y: Expr<'g>, dy: Expr<'g>, p: i64) -> Expr<'g> {
    let zero = y.equal(y.like(0.0));
    let positive = zero.select(y.like(1.0), y);
    let dy = zero.select(dy.like(0.0), dy);
    match p {
        1 => dy,
        2 => dy / positive,
        _ => dy / positive.pow(y.like((p - 1) as f64)),
    }
}

fn order(c: &Call<'_>) -> Result<i64> {
    let p = c.int("p", 2);
    ensure!(p >= 1, "p = {p} is not positive");
    Ok(p)
}

fn lp<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, p) = (c.x(), c.y(), order(c)?);
    let window = Window::of(c, x, y, None)?;
    Ok(power(x, p) * window.spread_evenly(normed(y, c.dy(), p), x)?)
}

fn global_lp<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let p = order(c)?;
    Ok(power(c.x(), p) * normed(c.y(), c.dy(), p))
}

/// The indices are places in the tensor that x had been pooled from. Where a shape is given that is not the smallest
/// one, engines differ: some take it for that tensor's, others put that tensor at its beginning. There the operator
/// itself is asked, with numbers in place of the elements, where it lays each.
fn max_unpool<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, indices, dy, b) = (c.x(), c.input(1), c.dy(), c.builder());
    let smallest = Window::unpooled(c, x)?.fact().dims();
    let Some(shape) = c.opt(2).filter(|_| smallest.is_none() || smallest != dy.shape().fact().dims()) else {
        return Ok(dy.flattened().gather(indices, 0));
    };
    let (count, places) = (x.size(), dy.size());
    ensure!(x.fact().element_count().is_none_or(|n| n < 1 << 24), "more than 2²⁴ elements cannot be told apart");
    let numbers = (b.range(count) + 1).cast(ElementType::Float).reshape_like(x);
    let laid = numbers.max_unpool(indices, shape, c.attributes(&["kernel_shape", "pads", "strides"]));
    // What no element lies in goes before the first one; what lies nowhere is zero, behind the end of dy.
    let nowhere = b.full((count + 1).reshape_to(&[1]), 0.0, ElementType::Int64) + places;
    let found = nowhere.scatter_elements(laid.flattened().cast(ElementType::Int64), b.range(places), 0);
    let zero = b.full(b.ints(&[1]), 0.0, dy.element()?);
    Ok(Expr::concat(&[dy.flattened(), zero], 0).gather(found.narrow(0, 1, i64::MAX).reshape_like(x), 0))
}

fn local_response<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy, b) = (c.x(), c.dy(), c.builder());
    let (alpha, beta, size) = (c.float("alpha", 0.0001), c.float("beta", 0.75), c.int("size", 1));
    ensure!(size >= 1, "size = {size} is not positive");
    // A matrix of ones where the channel of the column counts for that of the row.
    let channels = b.range(x.dim(1));
    let distance = channels.unsqueeze(&[0]) - channels.unsqueeze(&[1]);
    let (before, after) = ((size - 1) / 2, size / 2);
    let outside = distance.less(b.int(-before)).or(distance.greater(b.int(after)));
    let near = outside.logical_not().cast_like(x);
    let (flat, dy) = (x.reshape_to(&[0, 0, -1]), dy.reshape_to(&[0, 0, -1]));
    let s = near.matmul(flat.square()) * (alpha / size as f64) + c.float("bias", 1.0);
    let direct = dy * s.pow(s.like(-beta));
    let around = near.transposed().matmul(direct * flat / s);
    Ok((direct - flat * around * (2.0 * alpha * beta / size as f64)).reshape_like(x))
}
