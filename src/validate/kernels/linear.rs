//! Products of matrices, and what is made of them.

use super::elementwise::activation;
use super::{Array, Call, Row, broadcast, each_index, row};
use anyhow::{Context, Result, ensure};

const MICROSOFT: &str = "com.microsoft";

pub const ROWS: &[Row] = &[
    row("MatMul", matmul),
    row("Einsum", einsum),
    row("Det", det),
    row("FusedMatMul", fused_matmul).domain(MICROSOFT),
    row("TransposeMatMul", fused_matmul).domain(MICROSOFT),
    row("FusedGemm", fused_gemm).domain(MICROSOFT),
    row("MatMulNBits", matmul_n_bits).domain(MICROSOFT),
];

/// The product of two vectors, matrices or stacks of those.
pub fn product(a: &Array, b: &Array) -> Result<Array> {
    let (a_vector, b_vector) = (a.rank() == 1, b.rank() == 1);
    let a = if a_vector { a.clone().reshaped(&[1, a.dim(0)])? } else { a.clone() };
    let b = if b_vector { b.clone().reshaped(&[b.dim(0), 1])? } else { b.clone() };
    ensure!(a.rank() >= 2 && b.rank() >= 2, "a number is no matrix");
    let (a_stack, a_matrix) = a.dims.split_at(a.rank() - 2);
    let (b_stack, b_matrix) = b.dims.split_at(b.rank() - 2);
    ensure!(a_matrix[1] == b_matrix[0], "{:?} and {:?} have no product", a.dims, b.dims);
    let stack = broadcast(&[a_stack, b_stack])?;
    let mut dims = stack.clone();
    dims.extend([a_matrix[0], b_matrix[1]]);
    let (mut left, mut right) = (vec![0; dims.len()], vec![0; dims.len()]);
    let last = dims.len() - 1;
    let y = Array::from_fn(&dims, |index| {
        left.copy_from_slice(index);
        right.copy_from_slice(index);
        (0..a_matrix[1])
            .map(|k| {
                (left[last], right[last - 1]) = (k, k);
                a.broadcast_at(&left) * b.broadcast_at(&right)
            })
            .sum()
    })?;
    let mut dims = stack;
    dims.extend((!a_vector).then_some(a_matrix[0]));
    dims.extend((!b_vector).then_some(b_matrix[1]));
    y.reshaped(&dims)
}

fn matmul(c: &Call) -> Result<Vec<Array>> {
    Ok(vec![product(c.x()?, c.input(1)?)?])
}

fn fused_matmul(c: &Call) -> Result<Vec<Array>> {
    let operand = |i: usize, flag: &str, batch: &str| -> Result<Array> {
        let mut x = c.input(i)?.clone();
        let rank = x.rank();
        if rank < 2 {
            return Ok(x);
        }
        if c.int(batch, 0) != 0 {
            // The first axis moves to the place before the last.
            let mut perm: Vec<usize> = (1..rank - 1).collect();
            perm.extend([0, rank - 1]);
            x = x.transposed(&perm)?;
        }
        if c.int(flag, 0) != 0 {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.swap(rank - 2, rank - 1);
            x = x.transposed(&perm)?;
        }
        Ok(x)
    };
    let (a, b) = (operand(0, "transA", "transBatchA")?, operand(1, "transB", "transBatchB")?);
    let alpha = c.float("alpha", 1.0);
    Ok(vec![product(&a, &b)?.map(|v| alpha * v)])
}

fn fused_gemm(c: &Call) -> Result<Vec<Array>> {
    let operand = |i: usize, flag: &str| {
        let x = c.input(i)?;
        if c.int(flag, 0) != 0 { x.transposed(&[1, 0]) } else { Ok(x.clone()) }
    };
    let mut y = product(&operand(0, "transA")?, &operand(1, "transB")?)?.map(|v| c.float("alpha", 1.0) * v);
    if let Some(bias) = c.opt(2) {
        let beta = c.float("beta", 1.0);
        y = Array::from_fn(&y.dims, |index| y.at(index) + beta * bias.broadcast_at(index))?;
    }
    let (alpha, beta, gamma) =
        (c.float("activation_alpha", 0.0), c.float("activation_beta", 0.0), c.float("activation_gamma", 0.0));
    Ok(vec![y.map(activation(c.string("activation", ""), [alpha, beta, gamma])?)])
}

/// `y = x Wᵀ + bias`, W from numbers of few bits, in blocks that share a scale and a zero point.
fn matmul_n_bits(c: &Call) -> Result<Vec<Array>> {
    let (x, quantized, scales) = (c.x()?, c.input(1)?, c.input(2)?);
    let groups = c.opt(4).map(Array::integers);
    let positive = |name: &str, default: i64| usize::try_from(c.int(name, default)).ok().filter(|&n| n > 0);
    let size = |name: &str| positive(name, 0).with_context(|| format!("MatMulNBits without {name}"));
    let (k, n, block, bits) = (size("K")?, size("N")?, size("block_size")?, positive("bits", 4).context("bits")?);
    ensure!(bits <= 8 && 8 % bits == 0, "{bits} bits");
    let (blocks, per_byte) = (k.div_ceil(block), 8 / bits);
    let unpack = |bytes: &[f64], i: usize| -> f64 {
        let byte = bytes.get(i / per_byte).copied().unwrap_or(0.0) as u32;
        f64::from((byte >> (i % per_byte * bits)) & ((1 << bits) - 1))
    };
    let (row_bytes, zero_bytes) = (blocks * block / per_byte, blocks.div_ceil(per_byte));
    ensure!(quantized.values.len() >= n * row_bytes && scales.values.len() >= n * blocks, "too few numbers");
    let weights = Array::from_fn(&[k, n], |index| {
        let (k, n) = (index[0], index[1]);
        let b = groups.as_ref().map_or(k / block, |g| g.get(k).map_or(0, |&g| g as usize));
        let zero = match c.opt(3) {
            None => f64::from(1u32 << (bits - 1)),
            Some(z) if !c.is_integer(3) => z.values[n * blocks + b],
            Some(z) => unpack(z.values.get(n * zero_bytes..).unwrap_or(&[]), b),
        };
        (unpack(&quantized.values[n * row_bytes..], k) - zero) * scales.values[n * blocks + b]
    })?;
    let mut y = product(x, &weights)?;
    if let Some(bias) = c.opt(5) {
        y.values.iter_mut().enumerate().for_each(|(i, y)| *y += bias.values.get(i % n).copied().unwrap_or(0.0));
    }
    Ok(vec![y])
}

/// An index of an equation: a letter, or one of those that an ellipsis stands for, counted from the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Hidden(std::cmp::Reverse<usize>),
    Letter(char),
}

fn labels(term: &str, hidden: usize) -> Vec<Label> {
    let expand = |part: &str| part.chars().filter(|c| c.is_alphabetic()).map(Label::Letter).collect::<Vec<_>>();
    match term.split_once("...") {
        Some((before, after)) => {
            let middle = (0..hidden).rev().map(|i| Label::Hidden(std::cmp::Reverse(i)));
            expand(before).into_iter().chain(middle).chain(expand(after)).collect()
        }
        None => expand(term),
    }
}

fn einsum(c: &Call) -> Result<Vec<Array>> {
    let equation = c.string("equation", "").replace(' ', "");
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let operands: Vec<&Array> = (0..c.inputs.len()).map(|i| c.input(i)).collect::<Result<_>>()?;
    let mut terms = Vec::new();
    let mut most_hidden = 0;
    for (term, x) in left.split(',').zip(&operands) {
        let letters = term.chars().filter(|c| c.is_alphabetic()).count();
        let hidden = x.rank().checked_sub(letters).context("more indices than dimensions")?;
        ensure!(hidden == 0 || term.contains("..."), "fewer indices than dimensions");
        most_hidden = most_hidden.max(hidden);
        terms.push(labels(term, hidden));
    }
    ensure!(terms.len() == operands.len(), "{} terms for {} inputs", terms.len(), operands.len());
    let mut all: Vec<Label> = terms.iter().flatten().copied().collect();
    all.sort_unstable();
    let result = match right {
        Some(right) => labels(right, most_hidden),
        None => {
            let once = |l: &Label| matches!(l, Label::Hidden(_)) || all.iter().filter(|other| *other == l).count() == 1;
            let mut kept: Vec<Label> = all.iter().copied().filter(once).collect();
            kept.dedup();
            kept
        }
    };
    all.dedup();
    let mut order = result.clone();
    order.extend(all.into_iter().filter(|l| !result.contains(l)));
    let mut sizes = vec![1; order.len()];
    let mut strides = Vec::new();
    for (labels, x) in terms.iter().zip(&operands) {
        let mut stride = vec![0; order.len()];
        let mut step = 1;
        for (label, &size) in labels.iter().zip(&x.dims).rev() {
            let place = order.iter().position(|l| l == label).context("an index without a place")?;
            ensure!(sizes[place] == size || sizes[place] == 1 || size == 1, "an index of two sizes");
            if size != 1 {
                sizes[place] = size;
                stride[place] += step;
            }
            step *= size;
        }
        strides.push(stride);
    }
    let mut y = Array::filled(&sizes[..result.len()], 0.0)?;
    each_index(&sizes, |index| {
        let offset = |stride: &Vec<usize>| -> usize { index.iter().zip(stride).map(|(i, s)| i * s).sum() };
        let term: f64 = operands.iter().zip(&strides).map(|(x, stride)| x.values[offset(stride)]).product();
        *y.at_mut(&index[..result.len()]) += term;
    });
    Ok(vec![y])
}

/// By elimination, the largest pivot first.
fn det(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    ensure!(x.rank() >= 2, "a determinant is of matrices");
    let (stack, matrix) = x.dims.split_at(x.rank() - 2);
    let n = matrix[0];
    ensure!(n == matrix[1], "the matrices are not square");
    let mut y = Array::filled(stack, 1.0)?;
    for (y, m) in y.values.iter_mut().zip(x.values.chunks_exact((n * n).max(1))) {
        let mut m = m.to_vec();
        for k in 0..n {
            let pivot = (k..n).max_by(|&a, &b| m[a * n + k].abs().total_cmp(&m[b * n + k].abs())).unwrap_or(k);
            if m[pivot * n + k] == 0.0 {
                *y = 0.0;
                break;
            }
            if pivot != k {
                *y = -*y;
                (0..n).for_each(|j| m.swap(k * n + j, pivot * n + j));
            }
            *y *= m[k * n + k];
            for i in k + 1..n {
                let factor = m[i * n + k] / m[k * n + k];
                (k..n).for_each(|j| m[i * n + j] -= factor * m[k * n + j]);
            }
        }
    }
    Ok(vec![y])
}
