//! Fourier transforms.
//!
//! A transform is a product with a matrix F of roots of unity, its inverse with Fᴴ / n. The gradient of a product with
//! a complex matrix, of which real and imaginary parts are elements, is the product with its conjugate transpose: n
//! times the inverse transform for the transform, the transform over n for the inverse.

mod facts;

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("DFT", DFT, &[Try(|c| dft(c, 1)), Stop("a size")])
        .facts(facts::dft)
        .spectral()
        .attributes("axis inverse onesided")
        .until(19),
    rule("DFT", DFT, &[Try(|c| dft(c, -2)), Stop("a size or an axis")])
        .facts(facts::dft)
        .spectral()
        .attributes("inverse onesided")
        .since(20),
    rule("STFT", "y = DFT(the frames of x times the window)", &[Through(stft)])
        .facts(facts::stft)
        .spectral()
        .attributes("onesided"),
];

const DFT: &str = "dx = n DFT⁻¹(dy); of the inverse DFT(dy) / n";

/// The axis of the transform, a list of one, counted from the front.
fn axis<'g>(c: &Call<'g>, default: i64) -> Result<Expr<'g>> {
    let (b, rank) = (c.builder(), c.x().rank()?);
    let given = c.opt(2).unwrap_or_else(|| b.int(c.int("axis", default))).reshape_to(&[1]);
    Ok(match given.ints().as_deref() {
        Some(&[axis]) => b.ints(&[c.x().axis(axis)? as i64]),
        _ => given.wrapped(b.int(rank as i64)),
    })
}

fn dft<'g>(c: &Call<'g>, default: i64) -> Result<Expr<'g>> {
    let (x, dy, b) = (c.x(), c.dy(), c.builder());
    let rank = x.rank()?;
    ensure!(rank >= 2, "rank {rank}, where real and imaginary parts are an axis of their own");
    let axis = axis(c, default)?;
    let (inverse, onesided) = (c.flag("inverse", false), c.flag("onesided", false));
    let along = |e: Expr<'g>| match axis.ints().as_deref() {
        Some(&[axis]) => e.dims([axis as usize]),
        _ => e.shape().gather(axis, 0),
    };
    let none = b.ints(&vec![0; rank]);
    // Without the places after a size, or with zeros up to it.
    let fit = |e: Expr<'g>, size: Expr<'g>| -> Result<Expr<'g>> {
        Ok(e.crop(none, (along(e) - size).over_axes(axis, rank, 0)))
    };
    let full = if !inverse {
        let length = match c.opt(1) {
            Some(length) => length.reshape_to(&[1]),
            None => along(x),
        };
        // A one-sided spectrum lacks its other side.
        let dy = if onesided { fit(dy, length)? } else { dy };
        dy.dft(axis, true, false) * length.reshape_to(&[]).cast_like(x)
    } else if !onesided {
        dy.dft(axis, false, false) / along(dy).reshape_to(&[]).cast_like(x)
    } else {
        // Each bin stands for itself and its mirror image, but for the first and, of an even length, the last.
        let length = along(dy);
        let bins = dy.dft(axis, false, true);
        let places = b.range(along(bins).reshape_to(&[]));
        let single = places.equal(b.int(0)).or((places * 2).equal(length));
        let weights = single.select(x.like(1.0), x.like(2.0)) / length.cast_like(x);
        bins * weights.reshape(along(bins).over_axes(axis, rank, 1))
    };
    // Real numbers have no imaginary part.
    let parts = match x.known_dim(rank - 1) {
        Some(2) => full,
        _ => full.slice_at(b.ints(&[rank as i64 - 1]), b.ints(&[0]), x.dims([rank - 1]), b.ints(&[1])),
    };
    fit(parts, along(x))
}

fn stft<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (signal, step, b) = (c.x(), c.input(1).reshape_to(&[]), c.builder());
    let size = signal.dim(1);
    let length = match (c.opt(3), c.opt(2)) {
        (Some(length), _) => length.reshape_to(&[]).cast_like(size),
        (None, Some(window)) => window.dim(0),
        (None, None) => size,
    };
    let step = step.cast_like(size);
    let frames = (size - length) / step + 1;
    let starts = (b.range(frames) * step).unsqueeze(&[1]);
    let places = starts + b.range(length).unsqueeze(&[0]);
    let rank = signal.rank()?;
    let signal = if rank == 2 { signal.unsqueeze(&[2]) } else { signal };
    let parts = signal.gather(places, 1);
    let parts = match c.opt(2) {
        Some(window) => parts * window.reshape_to(&[-1, 1]),
        None => parts,
    };
    Ok(vec![Some(parts.dft(b.ints(&[2]), false, c.flag("onesided", true)))])
}
