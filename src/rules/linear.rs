//! Products of matrices.

use super::Slot::*;
use super::{Call, Rule, rule};
use crate::expr::Expr;
use anyhow::Result;

/// The rows.
pub const RULES: &[Rule] = &[
    rule("MatMul", "dA = dY Bᵀ, dB = Aᵀ dY", &[Formula(matmul_a), Formula(matmul_b)]),
    rule(
        "Gemm",
        "dA = α dY op(B)ᵀ, dB = α op(A)ᵀ dY, transposed back where the operator transposes; dC = β dY",
        &[Formula(gemm_a), Formula(gemm_b), Broadcast(gemm_c)],
    )
    .attributes("alpha beta transA transB")
    .since(7),
];

// ---------------------------------------------------------------- MatMul

/// A, B and dY of a product as stacks of matrices: a vector on the left is a row, one on the right a column.
fn matrices<'g>(c: &Call<'g>) -> Result<[Expr<'g>; 3]> {
    let (mut a, mut b, mut dy) = (c.x()?, c.input(1)?, c.dy()?);
    let (row, column) = (a.rank()? == 1, b.rank()? == 1);
    if column {
        b = b.unsqueeze(&[1]);
        dy = dy.unsqueeze(&[dy.rank()?]);
    }
    if row {
        a = a.unsqueeze(&[0]);
        dy = dy.unsqueeze(&[dy.rank()?.saturating_sub(1)]);
    }
    Ok([a, b, dy])
}

fn matmul_a<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let [a, b, dy] = matrices(c)?;
    let da = match (a.rank()?, b.rank()?) {
        (2, 3..) => {
            // A is the same in the whole stack: the sum over the stack is part of one product.
            let rank = dy.rank()?;
            let columns = dy.move_axis(rank - 2, 0).stacked_after(1)?;
            columns.gemm(false, b.transposed().stacked_before(1)?, false, 1.0)
        }
        _ => dy.gemm(false, b, true, 1.0).unbroadcast(a)?,
    };
    Ok(if c.x()?.rank()? == 1 { da.squeeze(&[0]) } else { da })
}

fn matmul_b<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let [a, b, dy] = matrices(c)?;
    let db = match (a.rank()?, b.rank()?) {
        (3.., 2) => a.stacked_before(1)?.gemm(true, dy.stacked_before(1)?, false, 1.0),
        _ => a.gemm(true, dy, false, 1.0).unbroadcast(b)?,
    };
    Ok(if c.input(1)?.rank()? == 1 { db.squeeze(&[1]) } else { db })
}

// ---------------------------------------------------------------- Gemm

fn gemm_a<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (b, dy, alpha) = (c.input(1)?, c.dy()?, c.float("alpha", 1.0));
    let (trans_a, trans_b) = (c.flag("transA", false), c.flag("transB", false));
    Ok(match trans_a {
        false => dy.gemm(false, b, !trans_b, alpha),
        true => b.gemm(trans_b, dy, true, alpha),
    })
}

fn gemm_b<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (a, dy, alpha) = (c.x()?, c.dy()?, c.float("alpha", 1.0));
    let (trans_a, trans_b) = (c.flag("transA", false), c.flag("transB", false));
    Ok(match trans_b {
        false => a.gemm(!trans_a, dy, false, alpha),
        true => dy.gemm(true, a, trans_a, alpha),
    })
}

fn gemm_c<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(c.dy()? * c.float("beta", 1.0))
}
