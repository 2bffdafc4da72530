//! Products of matrices.

pub mod facts;

use super::Slot::*;
use super::properties::{Apart, Rows};
use super::{Call, Rule, Slot, activation, rule};
use crate::expr::{Expr, View};
use crate::graph::{Node, Poles};
use crate::onnx::ElementType;
use crate::onnx::attribute::{get_float, get_int};
use anyhow::{Context, Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("MatMul", "dA = dY Bᵀ, dB = Aᵀ dY", &[Try(matmul_a), Try(matmul_b)])
        .facts(|c| facts::matmul(c, 0, 1, c.element(0).or(c.element(1))))
        .apart(Apart::Rows(|_| Some(Rows { alpha: 1.0, beta: 1.0, transposed: false })))
        .linear(2)
        .contracts()
        .equal(facts::equal_in_product)
        .weights(&[0, 1])
        .view(View::Rows)
        .layer(),
    rule(
        "Gemm",
        "dA = α dY op(B)ᵀ, dB = α op(A)ᵀ dY, transposed back where the operator transposes; dC = β dY",
        &[Formula(|c| gemm_a(c, c.dy())), Formula(|c| gemm_b(c, c.dy())), Broadcast(|c| gemm_c(c, c.dy()))],
    )
    .facts(facts::gemm)
    .attributes("alpha beta transA transB")
    .apart(Apart::Rows(gemm_rows))
    .linear(2)
    .added(2)
    .contracts()
    .equal(facts::equal_in_gemm)
    .weights(&[0, 1, 2])
    .layer()
    .since(7),
    rule(
        "FusedGemm",
        "with d = dy act'(α op(A) op(B) + β C), read from y: those of Gemm with d in place of dy",
        &[Formula(|c| gemm_a(c, inner(c))), Formula(|c| gemm_b(c, inner(c))), Broadcast(|c| gemm_c(c, inner(c)))],
    )
    .facts(facts::gemm)
    .attributes("activation activation_alpha activation_beta activation_gamma alpha beta transA transB")
    .weights(&[0, 1, 2])
    .layer()
    .domain("com.microsoft")
    .note("at the bounds of Clip 0, elsewhere as the activation has it on its own"),
    rule(
        "Einsum",
        "dxᵢ = the Einsum of dy and the other operands to the indices of xᵢ, on the diagonal where one is repeated",
        &[TryEach(einsum)],
    )
    .facts(facts::einsum)
    .linear(usize::MAX)
    .contracts()
    .equal(facts::equal_in_einsum)
    .weights(&[0, 1, 2])
    .layer()
    .attributes("equation"),
    rule("Det", "dX = dy cof X, the determinants of its minors with alternating signs", &[Try(det)])
        .facts(facts::det)
        .poles(Poles::Somewhere)
        .note("singular matrices have their true gradient"),
    rule("FusedMatMul", FUSED, FUSED_OPERANDS)
        .facts(facts::fused_matmul)
        .attributes("alpha transA transB transBatchA transBatchB")
        .weights(&[0, 1])
        .layer()
        .domain("com.microsoft"),
    rule("TransposeMatMul", FUSED, FUSED_OPERANDS)
        .facts(facts::fused_matmul)
        .attributes("alpha transA transB")
        .weights(&[0, 1])
        .layer()
        .domain("com.microsoft"),
];

const FUSED: &str = "dA = α dY op(B)ᵀ, dB = α op(A)ᵀ dY, transposed back where the operator transposes";
const FUSED_OPERANDS: &[Slot] = &[Try(|c| fused(c, 0)), Try(|c| fused(c, 1))];

/// A, B and dY of a product as stacks of matrices: a vector on the left is a row, one on the right a column.
fn matrices<'g>(c: &Call<'g>) -> Result<[Expr<'g>; 3]> {
    let (mut a, mut b, mut dy) = (c.x(), c.input(1), c.dy());
    if a.fact().rank().is_none() || b.fact().rank().is_none() {
        return Ok(matrices_of_any_rank(a, b, dy));
    }
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

/// A, B and dY as stacks of matrices where only the run knows which of the two is a vector.
fn matrices_of_any_rank<'g>(a: Expr<'g>, b: Expr<'g>, dy: Expr<'g>) -> [Expr<'g>; 3] {
    let to = dy.builder();
    let part = |sizes: Expr<'g>, from: Expr<'g>, end: Expr<'g>| {
        sizes.slice_at(to.ints(&[0]), from.reshape_to(&[1]), end.reshape_to(&[1]), to.ints(&[1]))
    };
    let missing = |e: Expr<'g>| (to.int(2) - e.shape().size()).max(to.int(0)).reshape_to(&[1]);
    let ones = |e: Expr<'g>| to.full(missing(e), 1.0, ElementType::Int64);
    let (left, right) = (Expr::concat(&[ones(a), a.shape()], 0), Expr::concat(&[b.shape(), ones(b)], 0));
    let (zero, end) = (to.int(0), to.int(i64::MAX));
    let stack = part(dy.shape(), zero, left.size().max(right.size()) - 2);
    let (rows, columns) = (part(left, to.int(-2), to.int(-1)), part(right, to.int(-1), end));
    [a.reshape(left), b.reshape(right), dy.reshape(Expr::concat(&[stack, rows, columns], 0))]
}

fn matmul_a<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let [a, b, dy] = matrices(c)?;
    if c.x().fact().rank().is_none() || c.input(1).fact().rank().is_none() {
        return Ok(dy.gemm(false, b, true, 1.0).unbroadcast(a).reshape_like(c.x()));
    }
    let da = match (a.rank()?, b.rank()?) {
        (2, 3..) => {
            // A is the same in the whole stack: the sum over the stack is part of one product.
            let rank = dy.rank()?;
            let columns = dy.move_axis(rank - 2, 0).stacked_after(1);
            columns.gemm(false, b.transposed().stacked_before(1), false, 1.0)
        }
        _ => dy.gemm(false, b, true, 1.0).unbroadcast(a),
    };
    Ok(if c.x().rank()? == 1 { da.squeeze(&[0]) } else { da })
}

fn matmul_b<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let [a, b, dy] = matrices(c)?;
    if c.x().fact().rank().is_none() || c.input(1).fact().rank().is_none() {
        return Ok(a.gemm(true, dy, false, 1.0).unbroadcast(b).reshape_like(c.input(1)));
    }
    let db = match (a.rank()?, b.rank()?) {
        (3.., 2) => a.stacked_before(1).gemm(true, dy.stacked_before(1), false, 1.0),
        _ => a.gemm(true, dy, false, 1.0).unbroadcast(b),
    };
    Ok(if c.input(1).rank()? == 1 { db.squeeze(&[1]) } else { db })
}

/// Factors of a product, each transposed or not, with a number before it.
struct Factors<'g> {
    a: Expr<'g>,
    b: Expr<'g>,
    trans_a: bool,
    trans_b: bool,
    alpha: f64,
}

impl<'g> Factors<'g> {
    fn da(&self, dy: Expr<'g>) -> Expr<'g> {
        match self.trans_a {
            false => dy.gemm(false, self.b, !self.trans_b, self.alpha),
            true => self.b.gemm(self.trans_b, dy, true, self.alpha),
        }
    }

    fn db(&self, dy: Expr<'g>) -> Expr<'g> {
        match self.trans_b {
            false => self.a.gemm(!self.trans_a, dy, false, self.alpha),
            true => dy.gemm(true, self.a, self.trans_a, self.alpha),
        }
    }
}

/// The rows of A lie one after the other where it is not transposed.
fn gemm_rows(node: &Node) -> Option<Rows> {
    let float = |name| f64::from(get_float(&node.attributes, name).unwrap_or(1.0));
    let flag = |name| get_int(&node.attributes, name).unwrap_or(0) != 0;
    let rows = Rows { alpha: float("alpha"), beta: float("beta"), transposed: flag("transB") };
    (!flag("transA")).then_some(rows)
}

fn gemm<'g>(c: &Call<'g>) -> Factors<'g> {
    Factors {
        a: c.x(),
        b: c.input(1),
        trans_a: c.flag("transA", false),
        trans_b: c.flag("transB", false),
        alpha: c.float("alpha", 1.0),
    }
}

fn gemm_a<'g>(c: &Call<'g>, dy: Expr<'g>) -> Expr<'g> {
    gemm(c).da(dy)
}

fn gemm_b<'g>(c: &Call<'g>, dy: Expr<'g>) -> Expr<'g> {
    gemm(c).db(dy)
}

fn gemm_c<'g>(c: &Call<'g>, dy: Expr<'g>) -> Expr<'g> {
    dy * c.float("beta", 1.0)
}

/// What arrives before the activation.
fn inner<'g>(c: &Call<'g>) -> Expr<'g> {
    let named = ["activation_alpha", "activation_beta", "activation_gamma"];
    let parameters: Vec<f64> = named.iter().filter_map(|name| c.opt_float(name)).collect();
    activation::before(&c.string("activation", ""), &parameters, c.y(), c.dy())
}

/// The gradient of operand `i` of a stack of matrix products. The attribute that transposes it does nothing to a
/// vector.
fn fused<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    let [a, b, dy] = matrices(c)?;
    let is = |flag: &str, i: usize| -> Result<bool> { Ok(c.flag(flag, false) && c.input(i).rank()? > 1) };
    // The first axis can be the rows' or the columns', and the stack's stand before them.
    let moves = [is("transBatchA", 0)?, is("transBatchB", 1)?];
    let moved = |e: Expr<'g>, moves: bool| -> Result<Expr<'g>> {
        Ok(if moves { e.move_axis(0, e.rank()?.saturating_sub(2)) } else { e })
    };
    let (a, b) = (moved(a, moves[0])?, moved(b, moves[1])?);
    let (trans_a, trans_b) = (is("transA", 0)?, is("transB", 1)?);
    let turned = trans_a || moves[0];
    ensure!(!turned || c.input(1).rank()? > 1, "engines differ in what a transposed matrix times a vector is");
    let factors = Factors { a, b, trans_a, trans_b, alpha: c.float("alpha", 1.0) };
    let d = if i == 0 { factors.da(dy).unbroadcast(a) } else { factors.db(dy).unbroadcast(b) };
    let d = if moves[i] { d.move_axis(d.rank()?.saturating_sub(2), 0) } else { d };
    Ok(if c.input(i).rank()? == 1 { d.reshape_like(c.input(i)) } else { d })
}

/// The indices of operands and output, a letter each; those of an ellipsis are letters that the equation does not use.
struct Equation {
    terms: Vec<Vec<char>>,
    output: Vec<char>,
}

impl Equation {
    fn new(c: &Call<'_>) -> Result<Self> {
        let equation = c.string("equation", "");
        let rank = |i: usize| Self::rank_of(&equation, i).map_or_else(|| c.input(i).rank(), Ok);
        let ranks: Vec<usize> = (0..c.input_count()).map(rank).collect::<Result<_>>()?;
        Self::parse(&equation, &ranks)
    }

    /// How many axes operand `i` has, if its term says so: one for each letter, where there is no ellipsis.
    fn rank_of(text: &str, i: usize) -> Option<usize> {
        let term: String = text.split("->").next()?.split(',').nth(i)?.split_whitespace().collect();
        (!term.contains('.')).then_some(term.len())
    }

    /// Reads the equation for operands that have so many axes. Without `->` the output has the letters that occur once,
    /// in their order.
    fn parse(text: &str, ranks: &[usize]) -> Result<Self> {
        let text: String = text.split_whitespace().collect();
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (text.as_str(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        ensure!(terms.len() == ranks.len(), "'{text}' is not about {} operands", ranks.len());
        let fresh: Vec<char> = ('a'..='z').chain('A'..='Z').filter(|l| !text.contains(*l)).collect();
        let mut longest = 0;
        let mut expanded = Vec::new();
        for (term, &rank) in terms.iter().zip(ranks) {
            let own = letters(term)?;
            let hidden = if term.contains("...") { rank.checked_sub(own) } else { (rank == own).then_some(0) };
            let hidden = hidden.with_context(|| format!("'{term}' does not describe a tensor of rank {rank}"))?;
            ensure!(hidden <= fresh.len(), "'{text}' has more than 52 indices");
            longest = longest.max(hidden);
            expanded.push(expand(term, &fresh, hidden));
        }
        let output = match right {
            Some(right) => {
                letters(right)?;
                expand(right, &fresh, longest)
            }
            None => {
                let once = |l: &char| left.matches(*l).count() == 1;
                let mut once: Vec<char> = left.chars().filter(char::is_ascii_alphabetic).filter(once).collect();
                once.sort_unstable();
                expand("...", &fresh, longest).into_iter().chain(once).collect()
            }
        };
        Ok(Equation { terms: expanded, output })
    }
}

/// How many letters a term has besides an ellipsis.
fn letters(term: &str) -> Result<usize> {
    let rest = term.replacen("...", "", 1);
    ensure!(rest.chars().all(|l| l.is_ascii_alphabetic()), "'{term}' is not a term of an equation");
    Ok(rest.len())
}

/// A term with letters in place of an ellipsis: the last of them for the last axis, as in broadcasting.
fn expand(term: &str, fresh: &[char], hidden: usize) -> Vec<char> {
    let stand_in: String = fresh.iter().take(hidden).rev().collect();
    term.replacen("...", &stand_in, 1).chars().collect()
}

/// The gradient of each operand takes all the others: their number is squared in what is written.
const MOST_OPERANDS: usize = 128;

fn einsum<'g>(c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
    ensure!(
        c.input_count() <= MOST_OPERANDS,
        "{} operands, of which each one's gradient takes all the others; up to {MOST_OPERANDS} are differentiated: write \
         the product as several Einsum nodes",
        c.input_count()
    );
    let Equation { terms, output } = Equation::new(c)?;
    let x = c.input(i);
    let own = terms.get(i).context("more operands than terms")?;
    let mut operands = vec![(output, c.dy())];
    for (j, term) in terms.iter().enumerate().filter(|&(j, _)| j != i) {
        operands.push((term.clone(), c.input(j)));
    }
    let first = |p: usize| own.iter().position(|l| Some(l) == own.get(p)).unwrap_or(p);
    let occurs = |p: usize| operands.iter().any(|(term, _)| own.get(p).is_some_and(|l| term.contains(l)));
    // Axes that only x has were summed, repeated ones are diagonals: here both have size 1.
    let (found, absent): (Vec<usize>, Vec<usize>) = (0..own.len()).partition(|&p| first(p) == p && occurs(p));
    let target: Vec<char> = found.iter().filter_map(|&p| own.get(p).copied()).collect();
    let dx = contract(&operands, &target)?.unsqueeze(&absent);
    let repeated: Vec<usize> = (0..own.len()).filter(|&p| first(p) != p).collect();
    if repeated.is_empty() {
        return Ok(dx.unbroadcast(x).expand_like(x));
    }
    // A sum over what x repeats is one over the diagonal only.
    let along = |p: usize| {
        let others: Vec<usize> = (0..own.len()).filter(|&a| a != p).collect();
        c.builder().range(x.dim(p)).unsqueeze(&others)
    };
    let diagonal = repeated.iter().map(|&p| along(p).equal(along(first(p)))).reduce(|a, b| a.and(b));
    Ok(diagonal.map_or(dx, |d| dx.where_(d)).expand_like(x))
}

/// The sum of products of tensors with the given indices over those that are not in `target`.
fn contract<'g>(operands: &[(Vec<char>, Expr<'g>)], target: &[char]) -> Result<Expr<'g>> {
    let (scalars, tensors): (Vec<_>, Vec<_>) = operands.iter().partition(|(term, _)| term.is_empty());
    let scale = scalars.into_iter().map(|(_, e)| *e).reduce(|a, b| a * b);
    let scaled = |e: Expr<'g>| scale.map_or(e, |s| e * s);
    match tensors.as_slice() {
        [] => scale.context("an equation without operands"),
        [(term, e)] if (1..term.len()).all(|i| !term[..i].contains(&term[i])) => {
            let summed: Vec<usize> = (0..term.len()).filter(|&a| !target.contains(&term[a])).collect();
            let left: Vec<char> = term.iter().filter(|l| target.contains(l)).copied().collect();
            let order = target.iter().filter_map(|l| left.iter().position(|k| k == l)).collect::<Vec<_>>();
            Ok(scaled(e.sum_out(&summed)).transpose(&order))
        }
        [(first, _), ..] => {
            let terms: Vec<String> = tensors.iter().map(|(term, _)| term.iter().collect()).collect();
            // Not all is summed at once: to no index at all, engines differ.
            let kept: Vec<char> =
                if target.is_empty() { first.iter().take(1).copied().collect() } else { target.into() };
            let equation = format!("{}->{}", terms.join(","), kept.iter().collect::<String>());
            let product = Expr::einsum(&equation, &tensors.iter().map(|(_, e)| *e).collect::<Vec<_>>());
            Ok(scaled(if target.is_empty() { product.sum_out(&[0]) } else { product }))
        }
    }
}

/// The matrix without one row and one column, for each of both; no division, so that singular matrices are like all
/// others.
fn det<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, dy, b) = (c.x(), c.dy(), c.builder());
    let rank = x.rank()?;
    ensure!(rank >= 2, "an input of rank {rank} is no matrix");
    let (row, column) = (rank - 2, rank - 1);
    let dy = dy.unsqueeze(&[row, column]);
    if x.known_dim(column) == Some(1) {
        return Ok(dy);
    }
    let n = x.dim(column);
    let (all, rest) = (b.range(n).unsqueeze(&[1]), b.range(n - 1));
    // [left out, kept]: those from the one that is left out on are one further.
    let kept = rest + rest.greater_or_equal(all).cast_like(rest);
    // [.., row left out, row, column left out, column]
    let minors = x.gather(kept, column).gather(kept, row);
    let mut order: Vec<usize> = (0..row).collect();
    order.extend([row, row + 2, row + 1, row + 3]);
    let odd = (all + b.range(n)).modulo(b.int(2)).cast_like(x);
    Ok(dy * (1.0 - 2.0 * odd) * minors.transpose(&order).det())
}
