//! Pools: one number for each window.

use super::Slot::*;
use super::window::Window;
use super::{Call, Rule, rule};
use crate::expr::{Expr, Pool};
use anyhow::Result;

/// The rows.
pub const RULES: &[Rule] = &[
    rule("AveragePool", "dx = dy / count, in every place of each window", &[Formula(average)])
        .attributes("auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides"),
    rule("GlobalAveragePool", "dx = dy / count", &[Unary(global_average)]),
    rule("GlobalMaxPool", "dx = dy where x is the largest", &[Formula(global_max)])
        .note("the first of equals gets all"),
    rule("MaxPool", "dx = dy where x is the largest of its window", &[Formula(max)])
        .attributes("auto_pad ceil_mode dilations kernel_shape pads storage_order strides")
        .note("the first of equals gets all"),
];

fn average<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x()?, c.dy()?);
    let window = Window::of(c, x, c.y()?, None)?;
    let rank = window.kernel()?.len();
    let with_pads = c.flag("count_include_pad", false);
    let full = !window.is_padded() || (with_pads && !c.flag("ceil_mode", false));
    let each = if full {
        dy / window.kernel()?.iter().map(|&k| k as f64).product::<f64>()
    } else {
        let pads = c.ints("pads").filter(|p| with_pads && p.len() == 2 * rank).unwrap_or_else(|| vec![0; 2 * rank]);
        let (before, behind) = pads.split_at(rank);
        dy / window.counts(dy, with_pads.then_some((before, behind)))?
    };
    window.spread_evenly(each, x)
}

fn global_average<'g>(x: Expr<'g>, _y: Expr<'g>, dy: Expr<'g>) -> Expr<'g> {
    match x.rank() {
        Ok(rank) => (dy / x.count(&(2..rank).collect::<Vec<_>>())).expand_like(x),
        Err(error) => x.builder().fail(error),
    }
}

fn global_max<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x()?, c.dy()?);
    let flat = x.reshape_to(&[0, 0, -1]);
    let first = flat.arg_max(2).equal(c.builder().range(flat.dim(2)));
    Ok(dy.reshape_to(&[0, 0, 1]).where_(first).reshape_like(x))
}

fn max<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy, b) = (c.x()?, c.dy()?, c.builder());
    let window = Window::of(c, x, c.y()?, None)?;
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
    let patches = window.patches(window.one_channel(x), f64::from(f32::MIN))?;
    let first = patches.arg_max(1);
    let taps: i64 = window.kernel()?.iter().product();
    let rank = window.kernel()?.len();
    let place: Vec<i64> = [1, taps].into_iter().chain(vec![1; rank]).collect();
    let hit = first.equal(b.range(b.int(taps)).reshape_to(&place));
    Ok(window.unpatch(window.one_channel(dy).where_(hit))?.reshape_like(x))
}
