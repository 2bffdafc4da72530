//! Operators that reduce along axes, that accumulate along one, and that order elements.

pub mod facts;

use super::Slot::*;
use super::properties::Axis::Named;
use super::properties::Counts::{AxisOf, Length};
use super::properties::{Index, Moves, read};
use super::{Call, Rule, rule};
use crate::expr::{Expr, View};
use crate::graph::facts::value;
use crate::onnx::ElementType;
use crate::rules::facts::same;
use anyhow::Result;

const AXES: &str = "axes keepdims noop_with_empty_axes";
const AXIS: &[Index] = &[read(1, AxisOf(0))];

/// The rows.
pub const RULES: &[Rule] = &[
    rule("ReduceSum", "dx = dy, copied along the axes", &[Try(sum), Stop("axes")])
        .facts(|c| facts::reduce(c, Some(facts::sum)))
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS)
        .linear(1)
        .sums(),
    rule("ReduceMean", "dx = dy / n, copied along the axes", &[Try(mean), Stop("axes")])
        .facts(|c| facts::reduce(c, None))
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS)
        .linear(1)
        .in_float32(),
    rule("ReduceMax", "dx = dy [x = y] / Σ [x = y]", &[Try(extreme), Stop("axes")])
        .compares()
        .facts(|c| facts::reduce(c, Some(value::max)))
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS)
        .note("ties share equally")
        .moves_integers(),
    rule("ReduceMin", "dx = dy [x = y] / Σ [x = y]", &[Try(extreme), Stop("axes")])
        .compares()
        .facts(|c| facts::reduce(c, Some(value::min)))
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS)
        .note("ties share equally")
        .moves_integers(),
    rule("ReduceProd", "dxᵢ = dy Π xⱼ, j ≠ i", &[Try(product), Stop("axes")])
        .facts(|c| facts::reduce(c, Some(facts::product)))
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS)
        .note("exact with zeros"),
    rule("ReduceSumSquare", "dx = 2 dy x", &[Try(sum_square), Stop("axes")])
        .facts(|c| facts::reduce(c, None))
        .squares(1)
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS),
    rule("ReduceL1", "dx = dy sign x", &[Try(l1), Stop("axes")])
        .facts(|c| facts::reduce(c, None))
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS),
    rule("ReduceL2", "dx = dy x / y", &[Try(l2), Stop("axes")])
        .facts(|c| facts::reduce(c, None))
        .squares(1)
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS)
        .note("0 where the norm is 0"),
    rule("ReduceLogSum", "dx = dy e⁻ʸ", &[Try(log_sum), Stop("axes")])
        .facts(|c| facts::reduce(c, None))
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS),
    rule("ReduceLogSumExp", "dx = dy e^(x - y)", &[Try(log_sum_exp), Stop("axes")])
        .facts(|c| facts::reduce(c, None))
        .attributes(AXES)
        .view(View::Over)
        .indices(AXIS),
    rule("CumSum", "dx = the sums of dy from the other end", &[Formula(cum_sum), Stop("axis")])
        .facts(same)
        .linear(1)
        .indices(AXIS)
        .attributes("exclusive reverse"),
    rule("CumProd", "dxᵢ = Σₖ dyₖ Π xⱼ, j ≠ i, j ≤ k", &[Try(cum_prod), Stop("axis")])
        .facts(same)
        .indices(AXIS)
        .attributes("exclusive reverse")
        .note("exact with zeros"),
    rule("TopK", "dx = dy in the places of the indices", &[Try(top_k), Stop("k")])
        .facts(facts::top_k)
        .attributes("axis k largest sorted")
        .view(View::Along("axis", -1))
        .moves(Moves::Parts)
        .indices(&[read(1, Length(0, Named("axis", -1)))])
        .note("of equal elements the one that the operator has chosen"),
];

/// What a node reduces over.
enum Over<'g> {
    All,
    Axes(Vec<usize>),
    /// Axes that the run computes, as the node's input.
    Computed(Expr<'g>),
}

impl<'g> Over<'g> {
    fn of(c: &Call<'g>) -> Result<Self> {
        let noop = c.flag("noop_with_empty_axes", false);
        match c.list_at(1, "axes") {
            Some(axes) if axes.ints().is_none() && axes.known_dim(0) != Some(0) => Ok(Over::Computed(axes)),
            Some(axes) if axes.known_dim(0) != Some(0) => Ok(Over::Axes(c.axes()?)),
            _ if noop => Ok(Over::Axes(vec![])),
            _ => Ok(Over::All),
        }
    }
}

/// An output, or its gradient, with the reduced axes in place, so that it broadcasts with the input.
fn kept<'g>(c: &Call<'g>, e: Expr<'g>) -> Result<Expr<'g>> {
    if c.flag("keepdims", true) {
        return Ok(e);
    }
    Ok(match Over::of(c)? {
        Over::All => e,
        Over::Axes(axes) => e.unsqueeze(&axes),
        Over::Computed(axes) => e.reshape(c.x().shape_kept(axes, c.flag("noop_with_empty_axes", false))),
    })
}

/// The sums over the axes that the node reduces, which stay with size 1.
fn sums<'g>(c: &Call<'g>, e: Expr<'g>) -> Result<Expr<'g>> {
    Ok(match Over::of(c)? {
        Over::All => e.sum_all_kept(),
        Over::Axes(axes) => e.sum(&axes),
        Over::Computed(axes) => e.sum_over(axes, c.flag("noop_with_empty_axes", false)),
    })
}

fn sum<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(kept(c, c.dy())?.expand_like(c.x()))
}

fn mean<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy) = (c.x(), c.y(), c.dy());
    let n = match Over::of(c)? {
        Over::Axes(axes) => x.count(&axes, dy),
        Over::All => x.size().cast_like(dy),
        Over::Computed(_) => (x.size() / y.size().max(c.builder().int(1))).cast_like(dy),
    };
    Ok(kept(c, dy / n)?.expand_like(x))
}

fn extreme<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy) = (c.x(), kept(c, c.y())?, kept(c, c.dy())?);
    let chosen = x.equal(y);
    let ties = sums(c, chosen.cast_like(dy))?;
    Ok((dy / ties).where_(chosen))
}

fn product<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), kept(c, c.dy())?);
    let rank = x.rank()?;
    let (mut others, mut rest) = (dy, x);
    match Over::of(c)? {
        Over::Computed(axes) => {
            // Which axes count is known at run time only: of the others the factor is 1.
            let reduced = axes.is_axis(c.builder().int(rank as i64), c.flag("noop_with_empty_axes", false));
            for axis in 0..rank {
                let yes = reduced.gather(c.builder().int(axis as i64), 0);
                others = others * yes.select(product_of_others(rest, axis), rest.like(1.0));
                rest = yes.select(rest.product(&[axis]), rest);
            }
        }
        over => {
            let axes = if let Over::Axes(axes) = over { axes } else { (0..rank).collect() };
            for axis in axes {
                others = others * product_of_others(rest, axis);
                rest = rest.product(&[axis]);
            }
        }
    }
    Ok(others.expand_like(x))
}

/// For each element the product of all others along an axis, in the shape of x.
fn product_of_others(x: Expr<'_>, axis: usize) -> Expr<'_> {
    match x.known_dim(axis) {
        Some(1) => x.ones_like(),
        _ => x.cum_prod(axis, true, false) * x.cum_prod(axis, true, true),
    }
}

fn sum_square<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(kept(c, c.dy())? * 2.0 * c.x())
}

fn l1<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(kept(c, c.dy())? * c.x().sign())
}

fn l2<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy) = (c.x(), kept(c, c.y())?, kept(c, c.dy())?);
    let none = y.equal(y.like(0.0));
    let norm = none.select(y.like(1.0), y);
    // No part of a vector is longer than it: the quotient does not overflow, however short the vector is. Where the
    // norm is 0, so is the gradient, also beside that place: its derivative is not that of a quotient by one.
    Ok(dy.unless(none) * (x / norm))
}

fn log_sum<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy) = (c.x(), c.y(), c.dy());
    Ok(kept(c, dy * (-y).exp())?.expand_like(x))
}

fn log_sum_exp<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, y, dy) = (c.x(), kept(c, c.y())?, kept(c, c.dy())?);
    // Where all elements are -∞, so is y, and none gets anything.
    let none = y.equal(y.like(f64::NEG_INFINITY));
    // A large y is rounded by more than its exponential can bear: the shares are made to sum to one.
    let shares = (x - none.select(y.like(0.0), y)).exp();
    let total = sums(c, shares)?;
    Ok(dy * (shares / none.select(total.like(1.0), total)))
}

fn cum_sum<'g>(c: &Call<'g>) -> Expr<'g> {
    c.dy().cum_sum_at(c.input(1), c.flag("exclusive", false), !c.flag("reverse", false))
}

fn cum_prod<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy) = (c.x(), c.dy());
    let (exclusive, reverse) = (c.flag("exclusive", false), c.flag("reverse", false));
    let axis = c.input(1).reshape_to(&[1]);
    if let Some(&[axis]) = axis.ints().as_deref() {
        return Ok(x.cum_prod_gradient(x.axis(axis)?, dy, exclusive, reverse));
    }
    // Only the run knows the axis: of all, the one that it is.
    let rank = x.rank()?;
    let chosen = axis.cast(ElementType::Int64).wrapped(c.builder().int(rank as i64));
    Ok((0..rank).fold(dy, |dx, axis| {
        let along = x.cum_prod_gradient(axis, dy, exclusive, reverse);
        chosen.equal(c.builder().int(axis as i64)).select(along, dx)
    }))
}

fn top_k<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let indices = match c.output(1) {
        Some(indices) => indices,
        None => c.demand_output(1, ElementType::Int64),
    };
    let dy = c.dy();
    Ok(dy.zeros_shaped(c.x()).scatter_elements(indices, dy, c.axis(-1)?))
}
