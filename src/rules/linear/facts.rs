//! Facts of products of matrices.

use super::Equation;
use crate::graph::facts::{Known, agree, broadcast, opposite, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::{AttributeProto, ElementType, attribute};
use anyhow::{Context, Result, bail};
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

/// The inner sizes are equal, and the sizes of the stacks that stand opposite each other.
pub fn equal_in_product(_: &[AttributeProto], shapes: &[Option<&[Dim]>]) -> Vec<(Dim, Dim)> {
    let &[Some(a), Some(b)] = shapes else { return vec![] };
    let stack = |shape: &'_ [Dim]| shape.len().saturating_sub(2);
    let mut pairs = opposite(&a[..stack(a)], &b[..stack(b)]);
    pairs.extend(a.last().copied().zip(b.get(stack(b)).copied()));
    pairs
}

/// The inner sizes are equal.
pub fn equal_in_gemm(attributes: &[AttributeProto], shapes: &[Option<&[Dim]>]) -> Vec<(Dim, Dim)> {
    let (Some(&[Some(&[n, k]), Some(&[m, l])]), flag) =
        (shapes.first_chunk(), |name: &str| attribute::get_int(attributes, name).unwrap_or(0) != 0)
    else {
        return vec![];
    };
    vec![(if flag("transA") { n } else { k }, if flag("transB") { l } else { m })]
}

/// Sizes that have one letter are equal, but for sizes of one, which broadcast.
pub fn equal_in_einsum(attributes: &[AttributeProto], shapes: &[Option<&[Dim]>]) -> Vec<(Dim, Dim)> {
    let Some(shapes) = shapes.iter().copied().collect::<Option<Vec<&[Dim]>>>() else { return vec![] };
    let ranks: Vec<usize> = shapes.iter().map(|s| s.len()).collect();
    let equation = attribute::get_string(attributes, "equation").unwrap_or_default();
    let Ok(Equation { terms, .. }) = Equation::parse(equation, &ranks) else { return vec![] };
    let letters = terms.iter().zip(shapes).flat_map(|(term, shape)| term.iter().zip(shape));
    let mut first: BTreeMap<char, Dim> = BTreeMap::new();
    letters
        .filter(|(_, dim)| dim.known() != Some(1))
        .map(|(&letter, &dim)| (*first.entry(letter).or_insert(dim), dim))
        .collect()
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

/// Sizes of one letter broadcast.
pub fn einsum(c: &Known) -> Result<Vec<Fact>> {
    let element = (0..c.inputs.len()).find_map(|i| c.element(i));
    let equation = c.string("equation").unwrap_or_default();
    // A term without an ellipsis says how many axes its operand has.
    let shape = |i: usize| match c.shape(i) {
        Some(shape) => Some(shape.to_vec()),
        None => Equation::rank_of(equation, i).map(|rank| c.fresh(rank)),
    };
    let shapes: Option<Vec<Vec<Dim>>> = (0..c.inputs.len()).map(shape).collect();
    let Some(shapes) = shapes else { return Ok(vec![tensor(element, None)]) };
    let ranks: Vec<usize> = shapes.iter().map(Vec::len).collect();
    let Equation { terms, output } = Equation::parse(equation, &ranks)?;
    let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
    for (&letter, &dim) in terms.iter().zip(&shapes).flat_map(|(term, shape)| term.iter().zip(shape)) {
        let size = sizes.entry(letter).or_insert(dim);
        *size = broadcast(c.dims(), &[&[*size], &[dim]])?.first().copied().unwrap_or(dim);
    }
    let size = |l: &char| sizes.get(l).copied().with_context(|| format!("output axis '{l}' is not in the inputs"));
    Ok(vec![tensor(element, Some(output.iter().map(size).collect::<Result<_>>()?))])
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
