//! Weights of few bits, packed into bytes, of which each block shares a scale and a zero point: ONNX Runtime's own
//! operators that multiply by them and look rows up in them.

use super::Slot::*;
use super::properties::Counts::Along;
use super::properties::{Axis, IntegerLayer, read};
use super::{Call, Rule, rule};
use crate::expr::Expr;
use crate::graph::facts::{Known, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "MatMulNBits",
        "with W = (q - zero point) scale, unpacked: dA = dY W, dscale = Σ (q - zero point) dYᵀ A, dzero = -Σ scale dYᵀ A, \
         dbias = Σ dY",
        &[
            Try(n_bits_a),
            Stop("quantized weights"),
            Try(n_bits_scales),
            Try(n_bits_zero_points),
            Stop("indices of groups"),
            Broadcast(|c| c.dy()),
        ],
    ).facts(matmul_n_bits)
    .ranks(&[None, None, None, None, None, Some(1)])
    .attributes("K N bits block_size accuracy_level")
    .integer_layer(IntegerLayer::Whole)
    .weights(&[2, 3, 5])
    .layer()
    .domain("com.microsoft"),
    rule(
        "GatherBlockQuantized",
        "dscales = Σ dy (q - zero point) over the numbers that share a scale, added up in the places of the indices",
        &[Stop("quantized weights"), Stop("indices"), Through(looked_up), Stop("quantized weights")],
    )
    .facts(gather_block_quantized)
    .indices(&[read(1, Along(0, GATHER_AXIS))])
    .attributes("bits block_size gather_axis quantize_axis")
    .integer_layer(IntegerLayer::Table(GATHER_AXIS))
    .in_float32()
    .weights(&[2])
    .layer()
    .domain("com.microsoft")
    .note("an index out of range, for which the operator gives zeros, is an error where the gradient is computed"),
];

const GATHER_AXIS: Axis = Axis::Named("gather_axis", 0);

/// How many bits a number has.
fn bits(c: &Call<'_>) -> Result<i64> {
    let bits = c.int("bits", 4);
    ensure!(matches!(bits, 2 | 4 | 8), "weights of {bits} bits are not known here: 2, 4 and 8 are");
    Ok(bits)
}

/// Bytes as the numbers that they are made of, the lowest bits first, along a new last axis.
fn unpacked(bytes: Expr<'_>, bits: i64) -> Result<Expr<'_>> {
    let b = bytes.builder();
    let bytes = bytes.cast(ElementType::Int32);
    let numbers = |values: &[f64]| b.numbers(values, &[values.len() as i64], ElementType::Int32);
    let shifts: Vec<f64> = (0..8 / bits).map(|i| f64::from(1 << (i * bits))).collect();
    let shifted = bytes.unsqueeze(&[bytes.rank()?]) / numbers(&shifts);
    Ok(shifted.modulo(numbers(&[f64::from(1 << bits)])))
}

/// Packed weights: N rows of blocks, each block of `size` numbers of some bits that share a scale and a zero point.
struct Packed<'g> {
    rows: i64,
    columns: i64,
    blocks: i64,
    size: i64,
    bits: i64,
    /// For each column the block whose scale and zero point are its; without it the one that it is in.
    groups: Option<Expr<'g>>,
}

impl<'g> Packed<'g> {
    fn new(c: &Call<'g>) -> Result<Self> {
        let (rows, columns, size) = (c.int("N", 0), c.int("K", 0), c.int("block_size", 0));
        let bits = bits(c)?;
        ensure!(
            rows > 0 && columns > 0 && size > 0,
            "N = {rows}, K = {columns}, block_size = {size}: not all positive"
        );
        ensure!(columns.checked_add(size).is_some(), "block_size = {size} is out of range");
        Ok(Packed { rows, columns, blocks: (columns + size - 1) / size, size, bits, groups: c.opt(4) })
    }

    /// The numbers, `[N, blocks, block_size]`, or `[N, K]` where there are groups.
    fn numbers(&self, c: &Call<'g>) -> Result<Expr<'g>> {
        let q = unpacked(c.input(1), self.bits)?.reshape_to(&[self.rows, self.blocks, -1]).cast_like(c.x());
        let q = q.narrow(2, 0, self.size);
        Ok(if self.groups.is_some() { self.matrix(q) } else { q })
    }

    /// Numbers in blocks as a matrix of N rows and K columns.
    fn matrix(&self, e: Expr<'g>) -> Expr<'g> {
        e.reshape_to(&[self.rows, -1]).narrow(1, 0, self.columns)
    }

    /// One number a block, such that it broadcasts to the numbers.
    fn spread(&self, e: Expr<'g>) -> Expr<'g> {
        match self.groups {
            Some(groups) => e.reshape_to(&[self.rows, self.blocks]).gather(groups, 1),
            None => e.reshape_to(&[self.rows, self.blocks, 1]),
        }
    }

    /// The transpose of [`Packed::spread`]: for each entry of `parameter` the sum over the numbers that share it.
    fn total(&self, e: Expr<'g>, parameter: Expr<'g>) -> Expr<'g> {
        let sums = match self.groups {
            Some(groups) => parameter.cast_like(e).reshape_to(&[self.rows, self.blocks]).ungather(groups, e, 1),
            None => e.sum_out(&[2]),
        };
        sums.cast_like(parameter).reshape_like(parameter)
    }

    /// q - zero point
    fn steps(&self, c: &Call<'g>) -> Result<Expr<'g>> {
        let (a, q) = (c.x(), self.numbers(c)?);
        Ok(match c.opt(3) {
            None => q - f64::from(1 << (self.bits - 1)),
            Some(zero) if zero.is_float() => q - self.spread(zero.cast_like(a)),
            Some(zero) => {
                let zero = unpacked(zero, self.bits)?.reshape_to(&[self.rows, -1]).narrow(1, 0, self.blocks);
                q - self.spread(zero.cast_like(a))
            }
        })
    }

    /// The gradient of the weights, in the layout of [`Packed::numbers`].
    fn gradient(&self, c: &Call<'g>) -> Result<Expr<'g>> {
        let (a, dy) = (c.x(), c.dy());
        let dw = dy.stacked_before(1).gemm(true, a.stacked_before(1), false, 1.0);
        if self.groups.is_some() {
            return Ok(dw);
        }
        let missing = self.blocks.checked_mul(self.size).context("block_size is out of range")? - self.columns;
        Ok(dw.pad(c.builder().ints(&[0, 0, 0, missing]), None).reshape_to(&[self.rows, self.blocks, self.size]))
    }
}

fn n_bits_a<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (a, p) = (c.x(), Packed::new(c)?);
    let weights = p.steps(c)? * p.spread(c.input(2).cast_like(a));
    Ok(c.dy().matmul(p.matrix(weights)))
}

fn n_bits_scales<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let p = Packed::new(c)?;
    Ok(p.total(p.gradient(c)? * p.steps(c)?, c.input(2)))
}

/// The gradient of zero points, where they are floating-point numbers and not packed.
fn n_bits_zero_points<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let p = Packed::new(c)?;
    Ok(p.total(-p.gradient(c)? * p.spread(c.input(2).cast_like(c.x())), c.input(3)))
}

/// What each lookup gives: (q - zero point) scale. Only what is looked up is unpacked.
fn looked_up<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let (data, indices, scales, size) = (c.x(), c.input(1), c.input(2), c.int("block_size", 128));
    let (rank, many) = (data.rank()?, indices.rank()?);
    let (along, blocked) = (data.axis(c.int("gather_axis", 0))?, data.axis(c.int("quantize_axis", 1))?);
    let packed = data.element()? == ElementType::Uint8;
    ensure!(
        !packed || (along == 0 && blocked == rank - 1 && rank > 1),
        "bytes are looked up along the first axis, and the last has the blocks"
    );
    ensure!(size >= 0, "block_size = {size} is negative");
    // No lookup of the standard takes numbers of 4 bits, or floating-point ones of 8: the next larger type holds them.
    let table = match data.element()? {
        ElementType::Uint8 => data,
        integers if integers.is_integer() => data.cast(ElementType::Int8),
        _ => data.cast(ElementType::Float16),
    };
    let numbers = |e: Expr<'g>| -> Result<Expr<'g>> {
        if e.element()? != ElementType::Uint8 {
            return Ok(e);
        }
        let outer = e.dims(0..e.rank()?.saturating_sub(1));
        Ok(unpacked(e, bits(c)?)?.reshape(Expr::concat(&[outer, c.builder().ints(&[-1])], 0)))
    };
    let q = numbers(table.gather(indices, along))?.cast_like(scales);
    // For each number that is looked up its scale, or zero point.
    let own = |p: Expr<'g>| -> Result<Expr<'g>> {
        let own_rank = p.rank()?;
        ensure!(own_rank == rank, "scales or zero points of rank {own_rank} for data of rank {rank}");
        let place = if p.known_dim(along) == Some(1) || (along == blocked && size == 0) {
            c.builder().numbers(&[0.0], &vec![1; many], ElementType::Int64)
        } else if along == blocked {
            let (indices, length) = (indices.cast(ElementType::Int64), data.dim(along));
            (indices + length).modulo(length) / c.builder().int(size)
        } else {
            indices
        };
        let p = numbers(p.gather(place, along))?;
        let axis = if blocked > along { blocked + many - 1 } else { blocked };
        Ok(match along == blocked || size == 0 || p.known_dim(axis) == Some(1) {
            true => p,
            false => p.repeated(axis, size, q.dims([axis])),
        })
    };
    let steps = match c.opt(3) {
        Some(zero) if packed => q - own(zero)?.cast_like(q),
        Some(zero) => q - own(zero.cast(ElementType::Int8))?.cast_like(q),
        None if packed => q - f64::from(1 << (bits(c)? - 1)),
        None => q,
    };
    Ok(vec![Some(steps * own(scales)?)])
}

/// The weight is `[N, K]` in blocks of few bits.
pub fn matmul_n_bits(c: &Known) -> Result<Vec<Fact>> {
    let shape = c.shape(0).and_then(<[Dim]>::split_last).map(|(_, outer)| [outer, &[c.int("N", 0).into()]].concat());
    Ok(vec![tensor(c.element(0), shape)])
}

/// As a lookup has it; the last axis of bytes counts what is packed into them. The element type is that of the scales.
fn gather_block_quantized(c: &Known) -> Result<Vec<Fact>> {
    let (Some(data), Some(indices)) = (c.shape(0), c.shape(1)) else { return Ok(vec![tensor(c.element(2), None)]) };
    let at = c.axis("gather_axis", 0, data.len())?;
    let mut numbers = data.to_vec();
    if let (Some(ElementType::Uint8), Some(last)) = (c.element(0), numbers.last_mut()) {
        match c.int("bits", 4) {
            bits @ (2 | 4 | 8) => *last = c.dims().mul(*last, Dim::Known(8 / bits)),
            bits => bail!("{bits} bits"),
        }
    }
    let shape = [&numbers[..at], indices, &numbers[at + 1..]].concat();
    Ok(vec![tensor(c.element(2), Some(shape))])
}
