//! Facts of products of matrices.

use crate::graph::facts::agree;
use crate::graph::facts::{Known, broadcast, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::{Result, bail, ensure};
use std::collections::BTreeMap;

/// As `numpy.matmul`: a vector is a row on the left and a column on the right, and its axis of size 1 goes again.
pub fn matmul(c: &Known, a: usize, b: usize, element: Option<ElementType>) -> Result<Vec<Fact>> {
    let shape = match (c.shape(a), c.shape(b)) {
        (Some(a), Some(b)) => Some(product(c, a, b)?),
        _ => None,
    };
    Ok(vec![tensor(element, shape)])
}

pub fn product(c: &Known, a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let (outer_a, m, k) = match a {
        [] => bail!("a scalar has no matrix product"),
        [k] => (&[][..], None, *k),
        [outer @ .., m, k] => (outer, Some(*m), *k),
    };
    let (outer_b, l, n) = match b {
        [] => bail!("a scalar has no matrix product"),
        [l] => (&[][..], *l, None),
        [outer @ .., l, n] => (outer, *l, Some(*n)),
    };
    let what = || format!("inner dimensions of {} and {}", c.dims().display(a), c.dims().display(b));
    if k != l {
        agree(&what(), k, l)?;
    }
    let mut shape = broadcast(c.dims(), &[outer_a, outer_b])?;
    shape.extend(m.into_iter().chain(n));
    Ok(shape)
}

/// Without shapes of the operands the product is still a matrix.
pub fn gemm(c: &Known) -> Result<Vec<Fact>> {
    let matrix = |i: usize, transposed: bool| -> Result<Option<(Dim, Dim)>> {
        Ok(match c.shape(i) {
            None => None,
            Some(&[rows, columns]) => Some(if transposed { (columns, rows) } else { (rows, columns) }),
            Some(other) => bail!("Gemm multiplies matrices, not a tensor of shape {}", c.dims().display(other)),
        })
    };
    let (a, b) = (matrix(0, c.flag("transA"))?, matrix(1, c.flag("transB"))?);
    if let (Some((_, k)), Some((l, _))) = (a, b) {
        agree("inner dimensions of the matrices", k, l)?;
    }
    let rows = a.map_or_else(|| c.dims().fresh(), |(rows, _)| rows);
    let columns = b.map_or_else(|| c.dims().fresh(), |(_, columns)| columns);
    Ok(vec![tensor(c.element(0).or(c.element(1)), Some(vec![rows, columns]))])
}

pub fn det(c: &Known) -> Result<Vec<Fact>> {
    let shape = match c.shape(0) {
        None => None,
        Some([outer @ .., n, m]) => {
            agree("rows and columns of a determinant", *n, *m)?;
            Some(outer.to_vec())
        }
        Some(other) => bail!("a tensor of shape {} has no determinant", c.dims().display(other)),
    };
    Ok(vec![tensor(c.element(0), shape)])
}

/// Letters name axes, `...` the axes that broadcast; without `->` the output has the letters that occur once, in order.
pub fn einsum(c: &Known) -> Result<Vec<Fact>> {
    let element = (0..c.inputs.len()).find_map(|i| c.element(i));
    let equation: String = c.string("equation").unwrap_or_default().split_whitespace().collect();
    let (terms, output) = match equation.split_once("->") {
        Some((terms, output)) => (terms, Some(output)),
        None => (equation.as_str(), None),
    };
    let mut sizes: BTreeMap<char, (Dim, usize)> = BTreeMap::new();
    let mut ellipsis: Vec<Dim> = Vec::new();
    for (i, term) in terms.split(',').enumerate() {
        let Some(shape) = c.shape(i) else { return Ok(vec![tensor(element, None)]) };
        let (head, tail) = term.split_once("...").unwrap_or((term, ""));
        let (first, last) = (head.chars().count(), tail.chars().count());
        let fits = if term.contains("...") { first + last <= shape.len() } else { first == shape.len() };
        ensure!(fits, "term '{term}' of the equation does not fit shape {}", c.dims().display(shape));
        let (front, rest) = shape.split_at(first);
        let (middle, back) = rest.split_at(rest.len() - last);
        ellipsis = broadcast(c.dims(), &[&ellipsis, middle])?;
        for (letter, &dim) in head.chars().zip(front).chain(tail.chars().zip(back)) {
            let entry = sizes.entry(letter).or_insert((dim, 0));
            let both = broadcast(c.dims(), &[&[entry.0], &[dim]])?;
            *entry = (both.first().copied().unwrap_or(dim), entry.1 + 1);
        }
    }
    let shape = match output {
        Some(output) => {
            let (head, tail) = output.split_once("...").unwrap_or((output, ""));
            let find = |letters: &str| -> Result<Vec<Dim>> {
                let size = |l: char| match sizes.get(&l) {
                    Some((dim, _)) => Ok(*dim),
                    None => bail!("output axis '{l}' of the equation is not in its inputs"),
                };
                letters.chars().map(size).collect()
            };
            let middle = if output.contains("...") { ellipsis } else { Vec::new() };
            [find(head)?, middle, find(tail)?].concat()
        }
        None => {
            let once = sizes.values().filter(|(_, count)| *count == 1).map(|&(dim, _)| dim);
            ellipsis.into_iter().chain(once).collect()
        }
    };
    Ok(vec![tensor(element, Some(shape))])
}

/// The matrices may be transposed first, and the first axis may be one of theirs. A vector stays as it is.
pub fn fused_matmul(c: &Known) -> Result<Vec<Fact>> {
    let operand = |i: usize, transposed: &str, moved: &str| {
        c.shape(i).map(|shape| {
            let mut shape = shape.to_vec();
            let last = shape.len().saturating_sub(1);
            if let (true, Some(stack)) = (c.flag(moved), shape.get_mut(..last)) {
                stack.rotate_left(1.min(stack.len()));
            }
            if let (true, [.., a, b]) = (c.flag(transposed), shape.as_mut_slice()) {
                std::mem::swap(a, b);
            }
            shape
        })
    };
    let shape = match (operand(0, "transA", "transBatchA"), operand(1, "transB", "transBatchB")) {
        (Some(a), Some(b)) => Some(product(c, &a, &b)?),
        _ => None,
    };
    Ok(vec![tensor(c.element(0).or(c.element(1)), shape)])
}

/// The weight is `[N, K]` in blocks of few bits.
pub fn matmul_n_bits(c: &Known) -> Result<Vec<Fact>> {
    let shape = c.shape(0).and_then(<[Dim]>::split_last).map(|(_, outer)| [outer, &[c.int("N", 0).into()]].concat());
    Ok(vec![tensor(c.element(0), shape)])
}
