//! Operators that move elements, and products along an axis.

use super::{Array, Call, Element, Row, each_index, row};
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};

pub const ROWS: &[Row] = &[
    row("AffineGrid", affine_grid),
    row("CenterCropPad", center_crop_pad),
    row("Col2Im", col2im),
    row("CumProd", cum_prod),
    row("DFT", dft),
    row("DequantizeLinear", dequantize),
    row("DequantizeLinear", dequantize).domain("com.microsoft"),
    row("QuantizeLinear", quantize),
    row("QuantizeLinear", quantize).domain("com.microsoft"),
    row("MaxUnpool", max_unpool),
    row("Pad", pad),
    row("ReverseSequence", reverse_sequence),
    row("STFT", stft),
    row("Squeeze", squeeze),
    row("TensorScatter", tensor_scatter),
    row("Unique", unique),
];

fn positive(values: &[i64]) -> Result<Vec<usize>> {
    values.iter().map(|&v| usize::try_from(v).context("a negative size")).collect()
}

fn affine_grid(c: &Call) -> Result<Vec<Array>> {
    let (theta, size) = (c.x()?, positive(&c.input(1)?.integers())?);
    let corners = c.int("align_corners", 0) != 0;
    ensure!(size.len() >= 4 && theta.rank() == 3, "theta and size do not fit");
    let spatial = &size[2..];
    let rank = spatial.len();
    let mut dims = vec![size[0]];
    dims.extend(spatial);
    dims.push(rank);
    let grid = Array::from_fn(&dims, |index| {
        let along = |k: usize| {
            // x is the last dimension.
            let axis = rank - 1 - k;
            let (i, n) = (index[axis + 1] as f64, spatial[axis] as f64);
            match corners {
                true if n > 1.0 => -1.0 + 2.0 * i / (n - 1.0),
                true => 0.0,
                false => -1.0 + (2.0 * i + 1.0) / n,
            }
        };
        let (batch, row) = (index[0], index[rank + 1]);
        (0..rank).map(|k| theta.at(&[batch, row, k]) * along(k)).sum::<f64>() + theta.at(&[batch, row, rank])
    })?;
    Ok(vec![grid])
}

fn center_crop_pad(c: &Call) -> Result<Vec<Array>> {
    let (x, size) = (c.x()?, positive(&c.input(1)?.integers())?);
    let all = (0..x.rank() as i64).collect();
    let axes = c.ints("axes").unwrap_or(all);
    let (mut dims, mut first) = (x.dims.clone(), vec![0i64; x.rank()]);
    for (&axis, &target) in axes.iter().zip(&size) {
        let axis = c.axis(axis, x.rank())?;
        let old = x.dims[axis];
        first[axis] = if target < old { ((old - target) / 2) as i64 } else { -(((target - old) / 2) as i64) };
        dims[axis] = target;
    }
    let y = Array::from_fn(&dims, |index| {
        x.at_or_zero(&index.iter().zip(&first).map(|(&i, f)| i as i64 + f).collect::<Vec<_>>())
    })?;
    Ok(vec![y])
}

fn pad(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    let pads = match c.opt(1) {
        Some(pads) => pads.integers(),
        None => c.ints("pads").context("no pads")?,
    };
    let axes: Vec<i64> = c.opt(3).map_or_else(|| (0..x.rank() as i64).collect(), Array::integers);
    ensure!(pads.len() == 2 * axes.len(), "{} pads for {} axes", pads.len(), axes.len());
    let value = c.opt(2).and_then(|v| v.values.first().copied()).unwrap_or(c.float("value", 0.0));
    let (mut dims, mut first) = (x.dims.clone(), vec![0i64; x.rank()]);
    for (i, &axis) in axes.iter().enumerate() {
        let axis = c.axis(axis, x.rank())?;
        let size = x.dims[axis] as i64 + pads[i] + pads[axes.len() + i];
        dims[axis] = usize::try_from(size).context("more is cut off than there is")?;
        first[axis] = pads[i];
    }
    let mode = c.string("mode", "constant");
    let beyond =
        |axis: usize| first[axis].max(dims[axis] as i64 - x.dims[axis] as i64 - first[axis]) >= x.dims[axis] as i64;
    // Without a scatter that adds, gradients reflect once: engines take no more, other sizes are tried.
    let once = mode == "reflect" && c.opset < 16;
    ensure!(!once || !(0..x.rank()).any(|a| first[a].max(0) > 0 && beyond(a)), "it reflects more than there is");
    let inside = |place: i64, size: usize| {
        let (size, last) = (size as i64, size as i64 - 1);
        match mode {
            _ if (0..size).contains(&place) => Some(place),
            "edge" if size > 0 => Some(place.clamp(0, last)),
            "reflect" if last > 0 => {
                let place = place.rem_euclid(2 * last);
                Some(if place > last { 2 * last - place } else { place })
            }
            "reflect" if last == 0 => Some(0),
            "wrap" if size > 0 => Some(place.rem_euclid(size)),
            _ => None,
        }
    };
    let y = Array::from_fn(&dims, |index| {
        let places = index.iter().zip(&first).zip(&x.dims).map(|((&i, first), &size)| inside(i as i64 - first, size));
        let places: Option<Vec<usize>> = places.map(|p| p.map(|p| p as usize)).collect();
        places.map_or(value, |places| x.at(&places))
    })?;
    Ok(vec![y])
}

fn col2im(c: &Call) -> Result<Vec<Array>> {
    let (x, image, block) = (c.x()?, positive(&c.input(1)?.integers())?, positive(&c.input(2)?.integers())?);
    let rank = image.len();
    let list = |name: &str, n: usize, default: i64| c.ints(name).unwrap_or_else(|| vec![default; n]);
    let (dilations, pads, strides) = (list("dilations", rank, 1), list("pads", 2 * rank, 0), list("strides", rank, 1));
    ensure!(x.rank() == 3 && block.len() == rank && pads.len() == 2 * rank, "sizes do not fit");
    ensure!(strides.iter().all(|&s| s > 0) && strides.len() == rank && dilations.len() == rank, "strides");
    let area: usize = block.iter().product();
    let places: Vec<usize> = (0..rank)
        .map(|d| {
            let span = image[d] as i64 + pads[d] + pads[rank + d] - dilations[d] * (block[d] as i64 - 1) - 1;
            (span.div_euclid(strides[d]) + 1).max(0) as usize
        })
        .collect();
    let channels = x.dim(1) / area.max(1);
    ensure!(x.dim(1) == channels * area && x.dim(2) == places.iter().product::<usize>(), "sizes do not fit");
    let mut dims = vec![x.dim(0), channels];
    dims.extend(&image);
    let mut y = Array::filled(&dims, 0.0)?;
    let mut all = vec![x.dim(0), channels];
    all.extend(block.iter().chain(&places));
    // Row-major over batch, channel, place in the block, place of the block: the order of x's own elements.
    let mut i = 0;
    each_index(&all, |index| {
        let mut at = index[..2].to_vec();
        let inside = (0..rank).all(|d| {
            let place = index[2 + rank + d] as i64 * strides[d] + index[2 + d] as i64 * dilations[d] - pads[d];
            at.push(place.max(0) as usize);
            (0..image[d] as i64).contains(&place)
        });
        if inside {
            *y.at_mut(&at) += x.values[i];
        }
        i += 1;
    });
    Ok(vec![y])
}

/// Calls `f` with the places of each line along an axis.
fn lines(dims: &[usize], axis: usize, mut f: impl FnMut(Vec<usize>)) {
    let inner: usize = dims[axis + 1..].iter().product();
    let outer: usize = dims[..axis].iter().product();
    for o in 0..outer {
        for i in 0..inner {
            f((0..dims[axis]).map(|k| (o * dims[axis] + k) * inner + i).collect());
        }
    }
}

fn cum_prod(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    let axis = c.input(1)?.integers().first().copied().context("no axis")?;
    let axis = c.axis(axis, x.rank())?;
    let (exclusive, reverse) = (c.int("exclusive", 0) != 0, c.int("reverse", 0) != 0);
    let mut y = x.clone();
    lines(&x.dims, axis, |mut places| {
        if reverse {
            places.reverse();
        }
        let mut product = 1.0;
        for place in places {
            let next = product * x.values[place];
            y.values[place] = if exclusive { product } else { next };
            product = next;
        }
    });
    Ok(vec![y])
}

/// `Σ x e^(∓2πi kn/N)` of pairs of real and imaginary parts along an axis; a real x has one number each.
fn fourier(x: &Array, axis: usize, length: usize, inverse: bool, kept: usize) -> Result<Array> {
    let last = x.rank() - 1;
    let mut dims = x.dims.clone();
    (dims[axis], dims[last]) = (kept, 2);
    let (sign, scale) = if inverse { (1.0, 1.0 / length as f64) } else { (-1.0, 1.0) };
    let mut source: Vec<usize> = Vec::new();
    Array::from_fn(&dims, |index| {
        source.clear();
        source.extend(index);
        let (k, part) = (index[axis], index[last]);
        let mut sum = 0.0;
        for n in 0..length.min(x.dims[axis]) {
            let angle = sign * 2.0 * std::f64::consts::PI * ((k * n) % length) as f64 / length as f64;
            source[axis] = n;
            source[last] = 0;
            let re = x.at(&source);
            source[last] = 1;
            let im = if x.dims[last] == 2 { x.at(&source) } else { 0.0 };
            sum += if part == 0 { re * angle.cos() - im * angle.sin() } else { re * angle.sin() + im * angle.cos() };
        }
        sum * scale
    })
}

fn dft(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    ensure!(x.rank() >= 2, "a signal has a batch and parts");
    let axis = match c.opt(2) {
        Some(axis) => axis.integers().first().copied().context("no axis")?,
        None => c.int("axis", if c.opset >= 20 { -2 } else { 1 }),
    };
    let axis = c.axis(axis, x.rank())?;
    let (inverse, onesided) = (c.int("inverse", 0) != 0, c.int("onesided", 0) != 0);
    ensure!(!(inverse && onesided), "an inverse DFT of one side");
    let length = match c.opt(1) {
        Some(n) => positive(&n.integers())?.first().copied().context("no length")?,
        None => x.dims[axis],
    };
    let kept = if onesided { length / 2 + 1 } else { length };
    Ok(vec![fourier(x, axis, length, inverse, kept)?])
}

fn stft(c: &Call) -> Result<Vec<Array>> {
    let signal = c.x()?;
    let number = |a: &Array| positive(&a.integers())?.first().copied().context("an empty number");
    let step = number(c.input(1)?)?;
    let window = c.opt(2);
    let length = match (c.opt(3), window) {
        (Some(n), _) => number(n)?,
        (None, Some(w)) => w.values.len(),
        (None, None) => bail!("neither a window nor its length"),
    };
    ensure!(step > 0 && length > 0 && signal.dim(1) >= length, "frames are longer than the signal");
    let parts = if signal.rank() == 3 { signal.dim(2) } else { 1 };
    let frames = (signal.dim(1) - length) / step + 1;
    let framed = Array::from_fn(&[signal.dim(0), frames, length, parts], |i| {
        let at = (i[0] * signal.dim(1) + i[1] * step + i[2]) * parts + i[3];
        signal.values[at] * window.map_or(1.0, |w| w.values.get(i[2]).copied().unwrap_or(0.0))
    })?;
    let kept = if c.int("onesided", 1) != 0 { length / 2 + 1 } else { length };
    Ok(vec![fourier(&framed, 2, length, false, kept)?])
}

/// Without axes: all of size 1 go.
fn squeeze(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    let kept: Vec<usize> = x.dims.iter().copied().filter(|&n| n != 1).collect();
    Ok(vec![x.clone().reshaped(&kept)?])
}

/// `(x - zero) scale`
fn dequantize(c: &Call) -> Result<Vec<Array>> {
    Ok(vec![scaled(c, |x, scale, zero| (x - zero) * scale)?.of(Element::Like(1))])
}

/// `x / scale`, rounded half to even, plus zero; the conversion to integers saturates.
fn quantize(c: &Call) -> Result<Vec<Array>> {
    let element = match c.opt(2) {
        Some(_) => Element::Like(2),
        None => c.element("output_dtype", Element::Is(ElementType::Uint8)),
    };
    Ok(vec![scaled(c, |x, scale, zero| (x / scale).round_ties_even() + zero)?.of(element)])
}

/// A function of each element, the scale and the zero point of the whole tensor, of its place on an axis, or of its
/// block.
fn scaled(c: &Call, f: impl Fn(f64, f64, f64) -> f64) -> Result<Array> {
    let (x, scale, zero) = (c.x()?, c.input(1)?, c.opt(2));
    let block = usize::try_from(c.int("block_size", 0)).unwrap_or(0);
    let axis = if scale.values.len() == 1 { 0 } else { c.axis(c.int("axis", 1), x.rank())? };
    let mut at = Vec::new();
    Array::from_fn(&x.dims, |index| {
        at.clear();
        if scale.values.len() > 1 && scale.rank() == x.rank() && block > 0 {
            at.extend(index);
            at[axis] /= block;
        } else if scale.values.len() > 1 {
            at.push(index[axis]);
        } else {
            at.extend(scale.dims.iter().map(|_| 0));
        }
        f(x.at(index), scale.at(&at), zero.map_or(0.0, |z| z.at(&at)))
    })
}

fn max_unpool(c: &Call) -> Result<Vec<Array>> {
    let (x, places) = (c.x()?, c.input(1)?);
    let kernel = positive(&c.ints("kernel_shape").context("no kernel_shape")?)?;
    let rank = kernel.len();
    let strides = positive(&c.ints("strides").unwrap_or_else(|| vec![1; rank]))?;
    let pads = c.ints("pads").unwrap_or_else(|| vec![0; 2 * rank]);
    ensure!(x.rank() == rank + 2 && pads.len() == 2 * rank && strides.len() == rank, "sizes do not fit");
    let mut dims = x.dims[..2].to_vec();
    for d in 0..rank {
        let size = (x.dims[d + 2] as i64 - 1) * strides[d] as i64 + kernel[d] as i64 - pads[d] - pads[rank + d];
        dims.push(usize::try_from(size)?);
    }
    let mut y = Array::filled(&dims, 0.0)?;
    for (&place, &v) in places.values.iter().zip(&x.values) {
        *y.values.get_mut(place as usize).context("a place outside")? = v;
    }
    // Places are counted in the tensor that was pooled; a given size puts it at the beginning of a larger one.
    let Some(size) = c.opt(2).map(|s| positive(&s.integers())).transpose()? else { return Ok(vec![y]) };
    let within = |index: &[usize]| index.iter().zip(&dims).all(|(i, n)| i < n);
    Ok(vec![Array::from_fn(&size, |index| if within(index) { y.at(index) } else { 0.0 })?])
}

fn reverse_sequence(c: &Call) -> Result<Vec<Array>> {
    let (x, lengths) = (c.x()?, c.input(1)?.integers());
    let (batch, time) = (c.axis(c.int("batch_axis", 1), x.rank())?, c.axis(c.int("time_axis", 0), x.rank())?);
    ensure!(lengths.len() == x.dims[batch], "one length a sequence");
    let mut source = Vec::new();
    let y = Array::from_fn(&x.dims, |index| {
        source.clear();
        source.extend(index);
        let length = lengths[index[batch]].clamp(0, x.dims[time] as i64) as usize;
        if index[time] < length {
            source[time] = length - 1 - index[time];
        }
        x.at(&source)
    })?;
    Ok(vec![y])
}

fn tensor_scatter(c: &Call) -> Result<Vec<Array>> {
    let (past, update) = (c.x()?, c.input(1)?);
    let axis = c.axis(c.int("axis", -2), past.rank())?;
    let circular = c.string("mode", "linear") == "circular";
    let starts = c.opt(2).map(Array::integers);
    let mut y = past.clone();
    let mut outside = false;
    each_index(&update.dims, |index| {
        let start = starts.as_ref().map_or(0, |s| s.get(index[0]).copied().unwrap_or(0)).max(0) as usize;
        let mut at = index.to_vec();
        at[axis] += start;
        if circular {
            at[axis] %= past.dims[axis].max(1);
        }
        match at[axis] < past.dims[axis] {
            true => *y.at_mut(&at) = update.at(index),
            false => outside = true,
        }
    });
    ensure!(!outside, "an update outside");
    Ok(vec![y])
}

fn unique(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    let sorted = c.int("sorted", 1) != 0;
    let axis = c.node.attribute.iter().find(|a| a.name() == "axis").map(|a| c.axis(a.i(), x.rank())).transpose()?;
    // Slices along the axis, or single elements.
    let (slices, dims): (Vec<Vec<f64>>, Vec<usize>) = match axis {
        None => (x.values.iter().map(|&v| vec![v]).collect(), vec![x.values.len()]),
        Some(axis) => {
            let mut slices = vec![vec![]; x.dims[axis]];
            each_index(&x.dims, |index| slices[index[axis]].push(x.at(index)));
            (slices, x.dims.clone())
        }
    };
    let mut first: Vec<usize> = Vec::new();
    for (i, slice) in slices.iter().enumerate() {
        if !first.iter().any(|&f| slices[f] == *slice) {
            first.push(i);
        }
    }
    if sorted {
        let order = |a: &usize, b: &usize| {
            slices[*a].iter().zip(&slices[*b]).map(|(a, b)| a.total_cmp(b)).find(|o| o.is_ne()).unwrap_or(a.cmp(b))
        };
        first.sort_by(order);
    }
    let inverse: Vec<f64> =
        (slices.iter()).map(|slice| first.iter().position(|&f| slices[f] == *slice).unwrap_or(0) as f64).collect();
    let mut counts = vec![0.0; first.len()];
    inverse.iter().for_each(|&i| counts[i as usize] += 1.0);
    let list = |values: Vec<f64>| Array { dims: vec![values.len()], values, element: Element::Is(ElementType::Int64) };
    let axis = axis.unwrap_or(0);
    let mut kept = dims.clone();
    kept[axis] = first.len();
    let mut at = Vec::new();
    let source = x.clone().reshaped(&dims)?;
    let y = Array::from_fn(&kept, |index| {
        at.clear();
        at.extend(index);
        at[axis] = first[index[axis]];
        source.at(&at)
    })?;
    Ok(vec![y, list(first.iter().map(|&f| f as f64).collect()), list(inverse), list(counts)])
}
