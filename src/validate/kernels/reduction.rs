//! Sums, products and the like along axes, and the largest elements.

use super::{Array, Call, Element, Row, row};
use crate::onnx::ElementType;
use anyhow::{Context, Result, ensure};

pub const ROWS: &[Row] = &[
    row("ReduceL1", |c| reduced(c, |v| v.iter().map(|v| v.abs()).sum())),
    row("ReduceL2", |c| reduced(c, |v| v.iter().map(|v| v * v).sum::<f64>().sqrt())),
    row("ReduceLogSum", |c| reduced(c, |v| v.iter().sum::<f64>().ln())),
    row("ReduceLogSumExp", |c| reduced(c, |v| v.iter().map(|v| v.exp()).sum::<f64>().ln())),
    row("ReduceMax", |c| reduced(c, |v| v.iter().copied().fold(f64::NEG_INFINITY, f64::max))),
    row("ReduceMean", |c| reduced(c, |v| v.iter().sum::<f64>() / v.len() as f64)),
    row("ReduceMin", |c| reduced(c, |v| v.iter().copied().fold(f64::INFINITY, f64::min))),
    row("ReduceProd", |c| reduced(c, |v| v.iter().product())),
    row("ReduceSum", |c| reduced(c, |v| v.iter().sum())),
    row("ReduceSumSquare", |c| reduced(c, |v| v.iter().map(|v| v * v).sum())),
    row("TopK", top),
];

/// A function of the elements along the axes.
fn reduced(c: &Call, f: impl Fn(&[f64]) -> f64) -> Result<Vec<Array>> {
    let x = c.x()?;
    let axes = c.ints("axes").or_else(|| c.opt(1).map(Array::integers)).filter(|axes| !axes.is_empty());
    if axes.is_none() && c.int("noop_with_empty_axes", 0) != 0 {
        return Ok(vec![x.clone()]);
    }
    let all = (0..x.rank() as i64).collect();
    let axes = axes.unwrap_or(all).into_iter().map(|a| c.axis(a, x.rank())).collect::<Result<Vec<_>>>()?;
    let kept: Vec<usize> = x.dims.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
    let inner: Vec<usize> = x.dims.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { d } else { 1 }).collect();
    let y = Array::from_fn(&kept, |index| {
        let mut values = Vec::new();
        super::each_index(&inner, |along| {
            values.push(x.at(&index.iter().zip(along).map(|(i, j)| i + j).collect::<Vec<_>>()));
        });
        f(&values)
    })?;
    let dims: Vec<usize> = match c.int("keepdims", 1) {
        0 => kept.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect(),
        _ => kept,
    };
    Ok(vec![y.reshaped(&dims)?])
}

/// The k largest along an axis, or the smallest; of equal ones the first.
fn top(c: &Call) -> Result<Vec<Array>> {
    let x = c.x()?;
    // Before opset 10 it is an attribute.
    let k = c.opt(1).and_then(|k| k.values.first().copied()).map_or(c.int("k", -1), |k| k as i64);
    let k = usize::try_from(k).context("TopK of no number of elements")?;
    let axis = c.axis(c.int("axis", -1), x.rank())?;
    ensure!(k <= x.dim(axis), "{k} of {} elements", x.dim(axis));
    let largest = c.int("largest", 1) != 0;
    let mut dims = x.dims.clone();
    dims[axis] = k;
    let (mut values, mut places) = (Array::filled(&dims, 0.0)?, Array::filled(&dims, 0.0)?);
    let mut lines = x.dims.clone();
    lines[axis] = 1;
    super::each_index(&lines, |line| {
        let mut index = line.to_vec();
        let mut at = |i: usize| {
            index[axis] = i;
            x.at(&index)
        };
        let along: Vec<f64> = (0..x.dim(axis)).map(&mut at).collect();
        let mut order: Vec<usize> = (0..along.len()).collect();
        order.sort_by(|&i, &j| if largest { along[j].total_cmp(&along[i]) } else { along[i].total_cmp(&along[j]) });
        let mut index = line.to_vec();
        for (rank, &place) in order.iter().take(k).enumerate() {
            index[axis] = rank;
            *values.at_mut(&index) = along[place];
            *places.at_mut(&index) = place as f64;
        }
    });
    Ok(vec![values, places.of(Element::Is(ElementType::Int64))])
}
