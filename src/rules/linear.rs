//! Products of matrices.

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use anyhow::Result;

/// The rows.
pub const RULES: &[Rule] = &[rule("MatMul", "dA = dY Bᵀ, dB = Aᵀ dY", &[Broadcast(matmul_a), Broadcast(matmul_b)])];

fn matmul_a<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (b, dy) = (c.input(1)?, c.dy()?);
    Ok(dy.matmul(b.transposed()))
}

fn matmul_b<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (a, dy) = (c.x()?, c.dy()?);
    Ok(a.transposed().matmul(dy))
}
