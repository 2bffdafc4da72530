//! ONNX Runtime's operators on quantized integers: on the numbers that they stand for, rounded again where the result
//! is quantized.

use super::linear::product;
use super::{Array, Call, Element, Row, broadcast, each_index, row};
use crate::onnx::ElementType;
use anyhow::{Result, ensure};

const MICROSOFT: &str = "com.microsoft";

pub const ROWS: &[Row] = &[
    row("DynamicQuantizeMatMul", dynamic_matmul).domain(MICROSOFT),
    row("GatherBlockQuantized", look_up).domain(MICROSOFT),
    row("MatMulIntegerToFloat", matmul_to_float).domain(MICROSOFT),
    row("QGemm", gemm).domain(MICROSOFT),
    row("QLinearAdd", |c| pairwise(c, |a, b| a + b)).domain(MICROSOFT),
    row("QLinearAveragePool", average).domain(MICROSOFT),
    row("QLinearConcat", concat).domain(MICROSOFT),
    row("QLinearGlobalAveragePool", global_average).domain(MICROSOFT),
    row("QLinearLeakyRelu", |c| {
        let alpha = c.float("alpha", 0.01);
        rounded(c, number(c, 0)?.map(|x| if x < 0.0 { alpha * x } else { x }), 3, 0)
    })
    .domain(MICROSOFT),
    row("QLinearMul", |c| pairwise(c, |a, b| a * b)).domain(MICROSOFT),
    row("QLinearSigmoid", |c| rounded(c, number(c, 0)?.map(|x| 1.0 / (1.0 + (-x).exp())), 3, 0)).domain(MICROSOFT),
    row("QLinearSoftmax", softmax).domain(MICROSOFT),
    row("QLinearWhere", choose).domain(MICROSOFT),
];

/// `(x - zero) scale` of the tensor, with the scale and the zero point at those places, which are one number, or one
/// for each place along the last axis, or along the last but one.
pub fn dequantized(c: &Call, x: usize, scale: usize, zero: usize, by_rows: bool) -> Result<Array> {
    let (x, scale, zero) = (c.input(x)?, c.input(scale)?, c.opt(zero));
    let axis = x.rank().saturating_sub(if by_rows { 2 } else { 1 });
    let one = |p: &Array, i: &[usize]| if p.values.len() == 1 { p.values[0] } else { p.at(&[i[axis]]) };
    let fits = |p: &Array| p.values.len() == 1 || p.dims == [x.dim(axis)];
    ensure!(fits(scale) && zero.is_none_or(fits), "scales or zero points");
    Array::from_fn(&x.dims, |i| (x.at(i) - zero.map_or(0.0, |z| one(z, i))) * one(scale, i))
}

fn number(c: &Call, input: usize) -> Result<Array> {
    dequantized(c, input, input + 1, input + 2, false)
}

/// Quantized by the scale at that place and the zero point behind it, in the type of an input. The conversion
/// saturates.
fn rounded(c: &Call, y: Array, scale: usize, like: usize) -> Result<Vec<Array>> {
    let (scale, zero) = (c.input(scale)?.values[0], c.opt(scale + 1).map_or(0.0, |z| z.values[0]));
    Ok(vec![y.map(|y| (y / scale).round_ties_even() + zero).of(Element::Like(like))])
}

fn pairwise(c: &Call, f: fn(f64, f64) -> f64) -> Result<Vec<Array>> {
    let (a, b) = (number(c, 0)?, number(c, 3)?);
    let dims = broadcast(&[&a.dims, &b.dims])?;
    rounded(c, Array::from_fn(&dims, |i| f(a.broadcast_at(i), b.broadcast_at(i)))?, 6, 0)
}

fn choose(c: &Call) -> Result<Vec<Array>> {
    let (condition, a, b) = (c.x()?, number(c, 1)?, number(c, 4)?);
    let dims = broadcast(&[&condition.dims, &a.dims, &b.dims])?;
    let pick = |i: &[usize]| if condition.broadcast_at(i) != 0.0 { a.broadcast_at(i) } else { b.broadcast_at(i) };
    rounded(c, Array::from_fn(&dims, pick)?, 7, 1)
}

/// The mean of the elements that each window meets, of all its places if padding counts.
fn average(c: &Call) -> Result<Vec<Array>> {
    let x = number(c, 0)?;
    let axes = x.rank().saturating_sub(2);
    let list = |name: &str, length: usize, default: i64| c.ints(name).unwrap_or_else(|| vec![default; length]);
    let (kernel, strides, pads) = (list("kernel_shape", axes, 0), list("strides", axes, 1), list("pads", 2 * axes, 0));
    let plain =
        c.string("auto_pad", "NOTSET") == "NOTSET" && c.int("ceil_mode", 0) == 0 && c.int("channels_last", 0) == 0;
    ensure!(plain && axes > 0 && kernel.len() == axes && strides.len() == axes && pads.len() == 2 * axes, "windows");
    let sizes = [&kernel, &strides].iter().all(|list| list.iter().all(|n| (1..1 << 16).contains(n)));
    ensure!(sizes && pads.iter().all(|n| (0..1 << 16).contains(n)), "windows");
    let mut dims = x.dims[..2].to_vec();
    for a in 0..axes {
        let room = x.dim(a + 2) as i64 + pads[a] + pads[axes + a] - kernel[a];
        ensure!(room >= 0, "a window larger than the image");
        dims.push(usize::try_from(room / strides[a] + 1)?);
    }
    let taps: Vec<usize> = kernel.iter().map(|&k| k as usize).collect();
    let all = c.int("count_include_pad", 0) != 0;
    let y = Array::from_fn(&dims, |i| {
        let (mut sum, mut count) = (0.0, 0);
        each_index(&taps, |k| {
            let mut at = vec![i[0] as i64, i[1] as i64];
            at.extend((0..axes).map(|a| i[a + 2] as i64 * strides[a] + k[a] as i64 - pads[a]));
            let inside = at.iter().zip(&x.dims).all(|(&i, &n)| (0..n as i64).contains(&i));
            sum += x.at_or_zero(&at);
            count += i32::from(inside || all);
        });
        sum / f64::from(count)
    })?;
    rounded(c, y, 3, 0)
}

fn global_average(c: &Call) -> Result<Vec<Array>> {
    let x = number(c, 0)?;
    ensure!(x.rank() > 2 && c.int("channels_last", 0) == 0, "an image");
    let size: usize = x.dims[2..].iter().product();
    let mut dims = x.dims[..2].to_vec();
    dims.resize(x.rank(), 1);
    let mean = |i: &[usize]| {
        let channel = i[0] * x.dim(1) + i[1];
        x.values.get(channel * size..(channel + 1) * size).unwrap_or_default().iter().sum::<f64>() / size as f64
    };
    rounded(c, Array::from_fn(&dims, mean)?, 3, 0)
}

/// Over one axis, or, as before opset 13, over all from that one on.
fn softmax(c: &Call) -> Result<Vec<Array>> {
    let x = number(c, 0)?;
    let flat = c.int("opset", 13) < 13;
    let axis = c.axis(c.int("axis", if flat { 1 } else { -1 }), x.rank())?;
    let last = if flat { x.rank() } else { axis + 1 };
    let row = |i: &[usize]| -> Vec<usize> {
        i.iter().enumerate().map(|(a, &i)| if (axis..last).contains(&a) { 0 } else { i }).collect()
    };
    let mut sums = Array::filled(&x.dims, 0.0)?;
    each_index(&x.dims, |i| *sums.at_mut(&row(i)) += x.at(i).exp());
    rounded(c, Array::from_fn(&x.dims, |i| x.at(i).exp() / sums.at(&row(i)))?, 3, 0)
}

/// The scale and the zero point of the result come first, then each tensor with its own.
fn concat(c: &Call) -> Result<Vec<Array>> {
    let mut parts = Vec::new();
    while c.opt(2 + 3 * parts.len()).is_some() {
        parts.push(number(c, 2 + 3 * parts.len())?);
    }
    let first = c.input(2)?;
    let axis = c.axis(c.int("axis", 0), first.rank())?;
    let mut dims = first.dims.clone();
    dims[axis] = parts.iter().map(|p| p.dim(axis)).sum();
    let fits = |p: &Array| p.rank() == dims.len() && (0..dims.len()).all(|a| a == axis || p.dim(a) == dims[a]);
    ensure!(parts.iter().all(fits), "parts of other sizes");
    let y = Array::from_fn(&dims, |i| {
        let mut i = i.to_vec();
        for part in &parts {
            if i[axis] < part.dim(axis) {
                return part.at(&i);
            }
            i[axis] -= part.dim(axis);
        }
        0.0
    })?;
    rounded(c, y, 0, 1)
}

/// `α (A B + C)`, C in steps of both scales.
fn gemm(c: &Call) -> Result<Vec<Array>> {
    let (transposed, turned) = (c.int("transA", 0) != 0, c.int("transB", 0) != 0);
    let (a, b) = (number(c, 0)?, dequantized(c, 3, 4, 5, turned)?);
    ensure!(a.rank() == 2 && b.rank() == 2, "matrices");
    let a = if transposed { a.transposed(&[1, 0])? } else { a };
    let b = if turned { b.transposed(&[1, 0])? } else { b };
    let (product, of_a, of_b, alpha) = (product(&a, &b)?, c.input(1)?, c.input(4)?, c.float("alpha", 1.0));
    let step = |n: usize| of_a.values[0] * if of_b.values.len() == 1 { of_b.values[0] } else { of_b.values[n] };
    let y = Array::from_fn(&product.dims, |i| {
        alpha * (product.at(i) + c.opt(6).map_or(0.0, |bias| bias.broadcast_at(i) * step(i[1])))
    })?;
    if c.opt(7).is_none() { Ok(vec![y.of(Element::Like(1))]) } else { rounded(c, y, 7, 0) }
}

fn biased(mut y: Array, bias: Option<&Array>, like: usize) -> Result<Vec<Array>> {
    if let Some(bias) = bias {
        y = Array::from_fn(&y.dims, |i| y.at(i) + bias.broadcast_at(i))?;
    }
    Ok(vec![y.of(Element::Like(like))])
}

fn matmul_to_float(c: &Call) -> Result<Vec<Array>> {
    let y = product(&dequantized(c, 0, 2, 4, true)?, &dequantized(c, 1, 3, 5, false)?)?;
    biased(y, c.opt(6), 2)
}

/// With A as it is: its rounding is within the operator, and no slope shows through it.
fn dynamic_matmul(c: &Call) -> Result<Vec<Array>> {
    biased(product(c.x()?, &dequantized(c, 1, 2, 3, false)?)?, c.opt(4), 0)
}

/// The number at an index of what `bits` bits each are packed into bytes of along the last axis, the lowest first.
fn unpacked(bytes: &Array, bits: usize, index: &[usize]) -> f64 {
    let Some((&last, outer)) = index.split_last() else { return 0.0 };
    let byte = bytes.at(&[outer, &[last * bits / 8]].concat()) as u32;
    f64::from((byte >> (last * bits % 8)) & ((1 << bits) - 1))
}

/// `(data - zero point) scale` of the places along an axis that the indices name, in blocks along another axis, or the
/// same; zeros where there is no such place.
fn look_up(c: &Call) -> Result<Vec<Array>> {
    let (data, indices, scales) = (c.x()?, c.input(1)?, c.input(2)?);
    let (rank, many, bytes) = (data.rank(), indices.rank(), c.types.first() == Some(&Some(ElementType::Uint8)));
    let (along, blocked) = (c.axis(c.int("gather_axis", 0), rank)?, c.axis(c.int("quantize_axis", 1), rank)?);
    let (bits, block) = (if bytes { c.int("bits", 4) as usize } else { 8 }, c.int("block_size", 128) as usize);
    ensure!(matches!(bits, 2 | 4 | 8) && scales.rank() == rank, "bits, or scales");
    ensure!(!bytes || (along == 0 && blocked + 1 == rank && rank > 1), "the axes of bytes");
    let mut sizes = data.dims.clone();
    sizes[rank - 1] *= if bytes { 8 / bits } else { 1 };
    let (size, blocks) = (data.dims[along], scales.dims[blocked]);
    ensure!(blocks == if block == 0 { 1 } else { sizes[blocked].div_ceil(block) }, "{blocks} scales");
    let fits = |a: usize| a == blocked || scales.dims[a] == 1 || scales.dims[a] == sizes[a];
    ensure!((0..rank).all(fits), "scales {:?} of {:?}", scales.dims, data.dims);
    let dims = [&sizes[..along], &indices.dims, &sizes[along + 1..]].concat();
    let y = Array::from_fn(&dims, |i| {
        let named = indices.at(&i[along..along + many]) as i64;
        let named = if named < 0 { named + size as i64 } else { named };
        if !(0..size as i64).contains(&named) {
            return 0.0;
        }
        let place = [&i[..along], &[named as usize], &i[along + many..]].concat();
        let mut step = place.clone();
        step[blocked] = place[blocked].checked_div(block).unwrap_or(0);
        let q = if bytes { unpacked(data, bits, &place) } else { data.at(&place) };
        let zero = match c.opt(3) {
            Some(zeros) if bytes => unpacked(zeros, bits, &step),
            Some(zeros) => zeros.at(&step),
            None if bytes => f64::from(1u32 << (bits - 1)),
            None => 0.0,
        };
        (q - zero) * scales.broadcast_at(&step)
    })?;
    Ok(vec![y.of(Element::Like(2))])
}
