//! Operators that compute each element from the elements in the same place.

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use anyhow::Result;

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Add", "da = dy, db = dy", &[Binary(|_a, _b, _y, dy| dy), Binary(|_a, _b, _y, dy| dy)]),
    rule("Sub", "da = dy, db = -dy", &[Binary(|_a, _b, _y, dy| dy), Binary(|_a, _b, _y, dy| -dy)]),
    rule("Mul", "da = dy b, db = dy a", &[Binary(|_a, b, _y, dy| dy * b), Binary(|a, _b, _y, dy| dy * a)]),
    rule("Div", "da = dy / b, db = -dy y / b", &[Binary(|_a, b, _y, dy| dy / b), Binary(|_a, b, y, dy| -(dy * y) / b)]),
    rule("Neg", "dx = -dy", &[Unary(|_x, _y, dy| -dy)]),
    rule("Exp", "dx = dy y", &[Unary(|_x, y, dy| dy * y)]),
    rule("Log", "dx = dy / x", &[Unary(|x, _y, dy| dy / x)]),
    rule("Tanh", "dx = dy (1 - y²)", &[Unary(|_x, y, dy| dy * (1.0 - y * y))]),
    rule("Sigmoid", "dx = dy y (1 - y)", &[Unary(|_x, y, dy| dy * y * (1.0 - y))]),
    rule("Relu", "dx = dy where y > 0", &[Unary(|_x, y, dy| dy.where_(y.greater(y.like(0.0))))]),
    rule("Identity", "dx = dy", &[Unary(|_x, _y, dy| dy)]),
    rule("Sum", "dxᵢ = dy", &[EachBroadcast(|c, _| c.dy())]),
    rule("Sign", "dx = 0", &[Zero]),
    rule("Floor", "none", &[Stop("piecewise constant, as in TensorFlow")]),
    rule("Cast", "dx = dy in the type of x", &[Formula(cast)]).attributes("to saturate round_mode"),
];

fn cast<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(c.dy()?.cast_like(c.x()?))
}
