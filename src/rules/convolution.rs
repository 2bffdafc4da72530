//! Convolutions, forward and transposed.

use super::Slot::*;
use super::window::Window;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "Conv",
        "dx = ConvTranspose(dy, w), dw = Σ over windows of dy times what they see, db = Σ dy",
        &[Formula(conv_x), Formula(conv_w), Formula(bias)],
    )
    .attributes("auto_pad dilations group kernel_shape pads strides"),
    rule(
        "ConvTranspose",
        "dx = Conv(dy, w), dw = Σ over windows of x times what they see of dy, db = Σ dy",
        &[Formula(transposed_x), Formula(transposed_w), Formula(bias)],
    )
    .attributes("auto_pad dilations group kernel_shape output_padding output_shape pads strides"),
];

fn group(c: &Call<'_>) -> Result<i64> {
    let group = c.int("group", 1);
    ensure!(group > 0, "group = {group} is not positive");
    Ok(group)
}

fn conv_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, w, dy) = (c.x()?, c.input(1)?, c.dy()?);
    let (window, group) = (Window::of(c, x, c.y()?, Some(w))?, group(c)?);
    if group == 1 && window.is_pointwise() {
        let matrix = w.squeeze(&(2..w.rank()?).collect::<Vec<_>>());
        return Ok(matrix.transposed().matmul(dy.reshape_to(&[0, 0, -1])).reshape_like(x));
    }
    Ok(window.spread(dy, w, group))
}

fn conv_w<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, w) = (c.x()?, c.input(1)?);
    Window::of(c, x, c.y()?, Some(w))?.weights(x, c.dy()?, w, group(c)?)
}

/// One number a channel.
fn bias<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let dy = c.dy()?;
    let others: Vec<usize> = (0..dy.rank()?).filter(|&a| a != 1).collect();
    Ok(dy.sum_out(&others))
}

fn transposed_x<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let w = c.input(1)?;
    Ok(Window::of(c, c.y()?, c.x()?, Some(w))?.correlate(c.dy()?, w, group(c)?))
}

fn transposed_w<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, w) = (c.x()?, c.input(1)?);
    Window::of(c, c.y()?, x, Some(w))?.weights(c.dy()?, x, w, group(c)?)
}
