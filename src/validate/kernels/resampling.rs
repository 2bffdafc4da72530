//! Images at other sizes and places.

use super::{Array, Call, Row, each_index, row};
use anyhow::{Context, Result, bail, ensure};

pub const ROWS: &[Row] = &[
    row("DeformConv", deform_conv),
    row("GlobalLpPool", global_lp_pool),
    row("GridSample", grid_sample),
    row("GridSample", grid_sample).domain("com.microsoft"),
    row("LpPool", lp_pool),
    row("MaxRoiPool", max_roi_pool),
    row("Resize", resize),
    row("RoiAlign", roi_align),
    row("Upsample", resize),
];

/// The weight of an element at that distance.
fn weight(mode: &str, a: f64, distance: f64) -> f64 {
    let t = distance.abs();
    match mode {
        "cubic" | "bicubic" if t <= 1.0 => ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0,
        "cubic" | "bicubic" if t < 2.0 => ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a,
        "cubic" | "bicubic" => 0.0,
        _ => (1.0 - t).max(0.0),
    }
}

fn support(mode: &str) -> f64 {
    if matches!(mode, "cubic" | "bicubic") { 2.0 } else { 1.0 }
}

/// The elements around a place, with their weights; they may lie outside.
fn taps(mode: &str, a: f64, place: f64, stretch: f64) -> Vec<(i64, f64)> {
    let reach = support(mode) / stretch;
    let (first, last) = ((place - reach).floor() as i64 + 1, (place + reach).floor() as i64);
    (first..=last).map(|j| (j, weight(mode, a, (place - j as f64) * stretch))).collect()
}

/// Each axis on its own.
fn resize(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    let newest = c.node.op_type() == "Resize" && c.opset >= 11;
    let list = |i: usize| c.opt(i).filter(|t| !t.values.is_empty()).map(|t| t.values.clone());
    let (roi, scales, sizes) = if newest { (list(1), list(2), list(3)) } else { (None, list(1), None) };
    let attribute = c.node.attribute.iter().find(|a| a.name() == "scales");
    let scales = scales.or_else(|| Some(attribute?.floats.iter().map(|&s| s.into()).collect()));
    let axes: Vec<usize> = match c.ints("axes").filter(|a| !a.is_empty()) {
        Some(axes) => axes.iter().map(|&a| c.axis(a, x.rank())).collect::<Result<_>>()?,
        None => (0..x.rank()).collect(),
    };
    let policy = c.string("keep_aspect_ratio_policy", "stretch");
    let (mut y, mut outside) = (x.clone(), Vec::new());
    let ratio = |i: usize| sizes.as_ref().map_or(1.0, |s| s[i] / x.dims[axes[i]] as f64);
    let all = (0..axes.len()).map(ratio);
    let common = if policy == "not_larger" { all.fold(f64::INFINITY, f64::min) } else { all.fold(0.0, f64::max) };
    for (i, &axis) in axes.iter().enumerate() {
        let size = x.dims[axis];
        let (scale, new) = match (&scales, &sizes) {
            (Some(s), _) => {
                let scale = *s.get(i).context("too few scales")?;
                (scale, (size as f64 * scale).floor() as usize)
            }
            (None, Some(_)) if policy != "stretch" => (common, (size as f64 * common + 0.5).floor() as usize),
            (None, Some(s)) => (s[i] / size as f64, s[i] as usize),
            _ => bail!("neither scales nor sizes"),
        };
        let (start, end) = match &roi {
            Some(roi) if roi.len() == 2 * axes.len() => (roi[i], roi[axes.len() + i]),
            _ => (0.0, 1.0),
        };
        if scale == 1.0 && new == size && (start, end) == (0.0, 1.0) {
            continue;
        }
        let mut rows = Vec::new();
        for k in 0..new {
            let place = coordinate(c, newest, k as f64, size as f64, new as f64, scale, start, end)?;
            let crop = c.string("coordinate_transformation_mode", "") == "tf_crop_and_resize";
            if crop && !(0.0..=size as f64 - 1.0).contains(&place) {
                outside.push((axis, k));
            }
            rows.push(along(c, newest, place, size, scale)?);
        }
        y = applied(&y, axis, &rows)?;
    }
    if !outside.is_empty() {
        let value = c.float("extrapolation_value", 0.0);
        let given = y.clone();
        y = Array::from_fn(&given.dims, |index| match outside.iter().any(|&(axis, k)| index[axis] == k) {
            true => value,
            false => given.at(index),
        })?;
    }
    Ok(vec![y])
}

/// Where an element of the result lies in x.
#[allow(clippy::too_many_arguments)]
fn coordinate(c: &Call, newest: bool, k: f64, size: f64, new: f64, scale: f64, start: f64, end: f64) -> Result<f64> {
    let default = if newest { "half_pixel" } else { "asymmetric" };
    let half = (k + 0.5) / scale - 0.5;
    Ok(match c.string("coordinate_transformation_mode", default) {
        "half_pixel" => half,
        "half_pixel_symmetric" => size / 2.0 * (1.0 - new / (scale * size)) + half,
        "pytorch_half_pixel" => {
            if new > 1.0 {
                half
            } else {
                0.0
            }
        }
        "align_corners" => {
            if new > 1.0 {
                k * (size - 1.0) / (new - 1.0)
            } else {
                0.0
            }
        }
        "asymmetric" => k / scale,
        "tf_half_pixel_for_nn" => (k + 0.5) / scale,
        "tf_crop_and_resize" if new > 1.0 => start * (size - 1.0) + k * (end - start) * (size - 1.0) / (new - 1.0),
        "tf_crop_and_resize" => 0.5 * (start + end) * (size - 1.0),
        other => bail!("coordinate_transformation_mode {other}"),
    })
}

/// The elements that make one element of the result, with their weights.
fn along(c: &Call, newest: bool, place: f64, size: usize, scale: f64) -> Result<Vec<(usize, f64)>> {
    let last = size as i64 - 1;
    let mode = c.string("mode", "nearest");
    if mode == "nearest" {
        let rounded = match c.string("nearest_mode", if newest { "round_prefer_floor" } else { "floor" }) {
            "round_prefer_floor" => (place - 0.5).ceil(),
            "round_prefer_ceil" => (place + 0.5).floor(),
            "floor" => place.floor(),
            "ceil" => place.ceil(),
            other => bail!("nearest_mode {other}"),
        };
        return Ok(vec![((rounded as i64).clamp(0, last) as usize, 1.0)]);
    }
    let smooth = c.int("antialias", 0) != 0;
    let stretch = if smooth { scale.min(1.0) } else { 1.0 };
    let mut taps = taps(mode, c.float("cubic_coeff_a", -0.75), place, stretch);
    if c.int("exclude_outside", 0) != 0 || smooth {
        taps.retain(|(j, _)| (0..=last).contains(j));
    }
    let total: f64 = taps.iter().map(|(_, w)| w).sum();
    Ok(taps.into_iter().map(|(j, w)| (j.clamp(0, last) as usize, w / total)).collect())
}

fn applied(x: &Array, axis: usize, rows: &[Vec<(usize, f64)>]) -> Result<Array> {
    let mut dims = x.dims.clone();
    dims[axis] = rows.len();
    let mut at = Vec::new();
    Array::from_fn(&dims, |index| {
        at.clear();
        at.extend(index);
        let mut sum = 0.0;
        for &(j, w) in &rows[index[axis]] {
            at[axis] = j;
            sum += w * x.at(&at);
        }
        sum
    })
}

fn reflected(i: f64, low: f64, high: f64) -> f64 {
    let range = high - low;
    if range <= 0.0 {
        return low;
    }
    let d = if i < low {
        low - i
    } else if i > high {
        i - high
    } else {
        return i;
    };
    let (turns, rest) = ((d / range).floor(), d % range);
    if (turns % 2.0 == 0.0) == (i < low) { low + rest } else { high - rest }
}

fn grid_sample(c: &Call) -> Result<Vec<Array>> {
    let (x, grid) = (c.x()?, c.input(1)?);
    let rank = x.rank().checked_sub(2).filter(|&r| r > 0 && grid.rank() == r + 2).context("ranks")?;
    ensure!(grid.dim(rank + 1) == rank, "a place has {rank} numbers");
    let corners = c.int("align_corners", 0) != 0;
    let (mode, padding) = (c.string("mode", "linear"), c.string("padding_mode", "zeros"));
    let mut dims = vec![x.dim(0), x.dim(1)];
    dims.extend(&grid.dims[1..=rank]);
    let y = Array::from_fn(&dims, |index| {
        let mut at = vec![index[0]];
        at.extend(&index[2..]);
        at.push(0);
        // For each axis the elements that count; x is the last axis.
        let around: Vec<Vec<(i64, f64)>> = (0..rank)
            .map(|d| {
                at[rank + 1] = rank - 1 - d;
                let (g, n) = (grid.at(&at), x.dims[d + 2] as f64);
                let place = if corners { (g + 1.0) / 2.0 * (n - 1.0) } else { ((g + 1.0) * n - 1.0) / 2.0 };
                let taps = match mode {
                    "nearest" => vec![(place.round_ties_even() as i64, 1.0)],
                    mode => taps(mode, -0.75, place, 1.0),
                };
                let (low, high) = if corners { (0.0, n - 1.0) } else { (-0.5, n - 0.5) };
                let inside = |j: i64| match padding {
                    "border" => j.clamp(0, n as i64 - 1),
                    "reflection" => (reflected(j as f64, low, high) as i64).clamp(0, n as i64 - 1),
                    _ => j,
                };
                taps.into_iter().map(|(j, w)| (inside(j), w)).collect()
            })
            .collect();
        let counts: Vec<usize> = around.iter().map(Vec::len).collect();
        let mut sum = 0.0;
        let mut source = vec![index[0] as i64, index[1] as i64];
        each_index(&counts, |choice| {
            source.truncate(2);
            let mut product = 1.0;
            for (taps, &i) in around.iter().zip(choice) {
                source.push(taps[i].0);
                product *= taps[i].1;
            }
            sum += product * x.at_or_zero(&source);
        });
        sum
    })?;
    Ok(vec![y])
}

/// The four corners around a place in an image, with their weights; none far outside.
fn corners(y: f64, x: f64, height: usize, width: usize) -> Vec<(usize, usize, f64)> {
    if y < -1.0 || y > height as f64 || x < -1.0 || x > width as f64 {
        return vec![];
    }
    let axis = |v: f64, n: usize| {
        let v = v.clamp(0.0, n as f64 - 1.0);
        let low = (v as usize).min(n - 1);
        (low, (low + 1).min(n - 1), v - low as f64)
    };
    let ((y0, y1, b), (x0, x1, a)) = (axis(y, height), axis(x, width));
    vec![(y0, x0, (1.0 - b) * (1.0 - a)), (y0, x1, (1.0 - b) * a), (y1, x0, b * (1.0 - a)), (y1, x1, b * a)]
}

fn roi_align(c: &Call) -> Result<Vec<Array>> {
    let (x, rois, batch) = (c.x()?, c.input(1)?, c.input(2)?.integers());
    let size = |name: &str| usize::try_from(c.int(name, 1)).context("a negative size");
    let (height, width) = (size("output_height")?, size("output_width")?);
    let (ratio, scale) = (c.int("sampling_ratio", 0), c.float("spatial_scale", 1.0));
    let default = if c.opset >= 16 { "half_pixel" } else { "output_half_pixel" };
    let half = c.string("coordinate_transformation_mode", default) == "half_pixel";
    let largest = c.string("mode", "avg") == "max";
    ensure!(x.rank() == 4 && rois.rank() == 2 && rois.dim(1) == 4 && batch.len() == rois.dim(0), "sizes");
    ensure!(
        batch.iter().all(|&b| (0..x.dim(0) as i64).contains(&b)) && x.dim(2) > 0 && x.dim(3) > 0,
        "a batch outside"
    );
    let y = Array::from_fn(&[rois.dim(0), x.dim(1), height, width], |index| {
        let corner = |k: usize| rois.at(&[index[0], k]) * scale - if half { 0.5 } else { 0.0 };
        let (x0, y0) = (corner(0), corner(1));
        let extent = |e: f64| if half { e } else { e.max(1.0) };
        let (bin_w, bin_h) = (extent(corner(2) - x0) / width as f64, extent(corner(3) - y0) / height as f64);
        let samples = |bin: f64| if ratio > 0 { ratio as usize } else { bin.ceil().max(0.0) as usize };
        let (rows, columns) = (samples(bin_h), samples(bin_w));
        let (mut sum, mut greatest) = (0.0, f64::NEG_INFINITY);
        for i in 0..rows {
            for j in 0..columns {
                let at = |start: f64, bin: f64, k: usize, i: usize, n: usize| {
                    start + bin * (k as f64 + (i as f64 + 0.5) / n as f64)
                };
                let (py, px) = (at(y0, bin_h, index[2], i, rows), at(x0, bin_w, index[3], j, columns));
                for (r, q, w) in corners(py, px, x.dim(2), x.dim(3)) {
                    let term = w * x.at(&[batch[index[0]] as usize, index[1], r, q]);
                    sum += term;
                    greatest = greatest.max(term);
                }
            }
        }
        match largest {
            true if greatest.is_finite() => greatest,
            true => 0.0,
            false => sum / (rows * columns).max(1) as f64,
        }
    })?;
    Ok(vec![y])
}

fn max_roi_pool(c: &Call) -> Result<Vec<Array>> {
    let (x, rois) = (c.x()?, c.input(1)?);
    let shape = c.ints("pooled_shape").context("no pooled_shape")?;
    let (scale, &[rows, columns]) = (c.float("spatial_scale", 1.0), &shape[..]) else {
        bail!("pooled_shape has 2 sizes")
    };
    ensure!(x.rank() == 4 && rois.rank() == 2 && rois.dim(1) == 5 && rows > 0 && columns > 0, "sizes");
    ensure!((0..rois.dim(0)).all(|i| (0.0..x.dim(0) as f64).contains(&rois.at(&[i, 0]))), "a batch outside");
    let y = Array::from_fn(&[rois.dim(0), x.dim(1), rows as usize, columns as usize], |index| {
        let corner = |k: usize| (rois.at(&[index[0], k]) * scale).round();
        let range = |low: f64, high: f64, k: usize, n: i64, size: usize| {
            let bin = (high - low + 1.0).max(1.0) / n as f64;
            let at = |v: f64| (v + low).clamp(0.0, size as f64) as usize;
            at((k as f64 * bin).floor())..at(((k + 1) as f64 * bin).ceil())
        };
        let across = range(corner(2), corner(4), index[2], rows, x.dim(2));
        let down = range(corner(1), corner(3), index[3], columns, x.dim(3));
        let batch = rois.at(&[index[0], 0]) as usize;
        let places = across.flat_map(|i| down.clone().map(move |j| (i, j)));
        let largest = places.map(|(i, j)| x.at(&[batch, index[1], i, j])).fold(f64::NEG_INFINITY, f64::max);
        if largest.is_finite() { largest } else { 0.0 }
    })?;
    Ok(vec![y])
}

fn deform_conv(c: &Call) -> Result<Vec<Array>> {
    let (x, w, offset) = (c.x()?, c.input(1)?, c.input(2)?);
    ensure!(x.rank() == 4 && w.rank() == 4 && offset.rank() == 4, "DeformConv of images only");
    let list = |name: &str, n: usize, default: i64| c.ints(name).unwrap_or_else(|| vec![default; n]);
    let (strides, pads, dilations) = (list("strides", 2, 1), list("pads", 4, 0), list("dilations", 2, 1));
    let count = |name: &str| usize::try_from(c.int(name, 1)).ok().filter(|&n| n > 0).context("a group");
    let (groups, offset_groups) = (count("group")?, count("offset_group")?);
    let (kh, kw) = (w.dim(2), w.dim(3));
    let (per_group, outputs) = (w.dim(1), w.dim(0) / groups);
    ensure!(per_group * groups == x.dim(1) && x.dim(1) % offset_groups == 0, "groups");
    let y = Array::from_fn(&[x.dim(0), w.dim(0), offset.dim(2), offset.dim(3)], |index| {
        let [n, m, i, j] = [index[0], index[1], index[2], index[3]];
        let mut sum = c.opt(3).map_or(0.0, |b| b.at(&[m]));
        for k in 0..per_group {
            let channel = m / outputs * per_group + k;
            let own = channel / (x.dim(1) / offset_groups);
            for (p, q) in (0..kh).flat_map(|p| (0..kw).map(move |q| (p, q))) {
                let tap = own * kh * kw + p * kw + q;
                let at = |o: usize, step: usize, tap: usize, d: usize| {
                    (step as i64 * strides[d] - pads[d] + tap as i64 * dilations[d]) as f64
                        + offset.at(&[n, 2 * o + d, i, j])
                };
                let (py, px) = (at(tap, i, p, 0), at(tap, j, q, 1));
                let mut value = 0.0;
                for (r, a) in taps("linear", 0.0, py, 1.0) {
                    for (s, b) in taps("linear", 0.0, px, 1.0) {
                        value += a * b * x.at_or_zero(&[n as i64, channel as i64, r, s]);
                    }
                }
                let mask = c.opt(4).map_or(1.0, |mask| mask.at(&[n, tap, i, j]));
                sum += value * mask * w.at(&[m, k, p, q]);
            }
        }
        sum
    })?;
    Ok(vec![y])
}

fn global_lp_pool(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    ensure!(x.rank() >= 2, "GlobalLpPool of rank {}", x.rank());
    let (channels, places) = x.dims.split_at(2);
    let (p, size) = (c.int("p", 2) as f64, places.iter().product::<usize>());
    let mut dims = channels.to_vec();
    dims.extend(places.iter().map(|_| 1));
    let mut y = Array::filled(&dims, 0.0)?;
    for (y, window) in y.values.iter_mut().zip(x.values.chunks(size.max(1))) {
        *y = window.iter().map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p);
    }
    Ok(vec![y])
}

fn lp_pool(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    let kernel = c.ints("kernel_shape").context("no kernel_shape")?;
    let rank = kernel.len();
    ensure!(x.rank() == rank + 2 && kernel.iter().all(|&k| k > 0), "kernel_shape");
    let list = |name: &str, n: usize, default: i64| c.ints(name).unwrap_or_else(|| vec![default; n]);
    let (strides, dilations, mut pads) =
        (list("strides", rank, 1), list("dilations", rank, 1), list("pads", 2 * rank, 0));
    ensure!(strides.iter().all(|&s| s > 0) && strides.len() == rank && dilations.len() == rank, "strides");
    ensure!(pads.len() == 2 * rank, "pads");
    let (p, up) = (c.int("p", 2) as f64, c.int("ceil_mode", 0) != 0);
    let mut dims = x.dims[..2].to_vec();
    for d in 0..rank {
        let (size, span) = (x.dims[d + 2] as i64, dilations[d] * (kernel[d] - 1) + 1);
        let auto = c.string("auto_pad", "NOTSET");
        if auto.starts_with("SAME") {
            let total = ((((size + strides[d] - 1) / strides[d]) - 1) * strides[d] + span - size).max(0);
            let less = total / 2;
            (pads[d], pads[rank + d]) = if auto == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
        }
        let room = size + pads[d] + pads[rank + d] - span;
        let steps = if up { (room + strides[d] - 1).div_euclid(strides[d]) } else { room.div_euclid(strides[d]) };
        dims.push(usize::try_from(steps + 1).context("the kernel is larger than x")?);
    }
    let kernel: Vec<usize> = kernel.iter().map(|&k| k as usize).collect();
    let mut at = Vec::new();
    let y = Array::from_fn(&dims, |index| {
        let mut sum = 0.0;
        each_index(&kernel, |k| {
            at.clear();
            at.extend(index[..2].iter().map(|&i| i as i64));
            at.extend((0..rank).map(|d| index[d + 2] as i64 * strides[d] - pads[d] + k[d] as i64 * dilations[d]));
            sum += x.at_or_zero(&at).abs().powf(p);
        });
        sum.powf(1.0 / p)
    })?;
    Ok(vec![y])
}
