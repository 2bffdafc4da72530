//! RNN, GRU and LSTM, step by step, in both directions and with sequences of different lengths.

use super::{Array, Call, Row, row};
use anyhow::{Context, Result, bail, ensure};

pub const ROWS: &[Row] = &[
    row("RNN", |c| run(c, 1, c.input(1)?, c.input(2)?)),
    row("GRU", |c| run(c, 3, c.input(1)?, c.input(2)?)),
    row("LSTM", |c| run(c, 4, c.input(1)?, c.input(2)?)),
    row("DynamicQuantizeLSTM", quantized).domain("com.microsoft"),
];

/// With weights `[directions, size, 4 hidden]` of integers. What the products take is not rounded here: no slope shows
/// through that.
fn quantized(c: &Call) -> Result<Vec<Array>> {
    let weights = |x: usize, scale: usize| {
        let (x, scale, zero) = (c.input(x)?, c.input(scale)?, c.opt(scale + 1));
        let fits = |p: &Array| p.dim(0) == x.dim(0) && (p.rank() == 1 || p.dim(1) == x.dim(2));
        ensure!(x.rank() == 3 && fits(scale) && zero.is_none_or(fits), "scales of the weights");
        let one = |p: &Array, i: &[usize]| if p.rank() == 1 { p.at(&[i[0]]) } else { p.at(&[i[0], i[1]]) };
        Array::from_fn(&[x.dim(0), x.dim(2), x.dim(1)], |i| {
            (x.at(&[i[0], i[2], i[1]]) - zero.map_or(0.0, |z| one(z, i))) * one(scale, i)
        })
    };
    run(c, 4, &weights(1, 8)?, &weights(2, 10)?)
}

/// The functions that have an alpha alone.
const ALPHA: &[&str] = &["leakyrelu", "thresholdedrelu", "elu"];
/// The functions that have an alpha and a beta.
const BETA: &[&str] = &["affine", "scaledtanh", "hardsigmoid"];

fn activation<'a>(c: &'a Call, names: &[String], i: usize, default: &'a str) -> Result<impl Fn(f64) -> f64 + use<>> {
    let name = names.get(i).map_or(default, String::as_str).to_lowercase();
    // The functions that have a parameter take one each, in their order.
    let at = |list: &str, takers: &[&str], otherwise: f64| {
        let takes = |name: &str| takers.contains(&name.to_lowercase().as_str());
        let taken = names.iter().take(i).filter(|name| takes(name)).count();
        let found = c.node.attribute.iter().find(|a| a.name() == list).and_then(|a| a.floats.get(taken));
        found.filter(|_| takes(&name)).map_or(otherwise, |&v| v.into())
    };
    let f: fn(f64, f64, f64) -> f64 = match name.as_str() {
        "sigmoid" => |x, _, _| 1.0 / (1.0 + (-x).exp()),
        "tanh" => |x, _, _| x.tanh(),
        "relu" => |x, _, _| x.max(0.0),
        "softsign" => |x, _, _| x / (1.0 + x.abs()),
        "softplus" => |x, _, _| x.max(0.0) + (-x.abs()).exp().ln_1p(),
        "affine" => |x, a, b| a * x + b,
        "leakyrelu" => |x, a, _| if x < 0.0 { a * x } else { x },
        "thresholdedrelu" => |x, a, _| if x > a { x } else { 0.0 },
        "scaledtanh" => |x, a, b| a * (b * x).tanh(),
        "hardsigmoid" => |x, a, b| (a * x + b).clamp(0.0, 1.0),
        "elu" => |x, a, _| if x < 0.0 { a * x.exp_m1() } else { x },
        other => bail!("activation {other}"),
    };
    let defaults = match name.as_str() {
        "leakyrelu" => (0.01, 0.0),
        "hardsigmoid" => (0.2, 0.5),
        _ => (1.0, 0.0),
    };
    let a = at("activation_alpha", &[BETA, ALPHA].concat(), defaults.0);
    let b = at("activation_beta", BETA, defaults.1);
    Ok(move |x| f(x, a, b))
}

/// `gates` is how many rows of weights each unit has.
fn run(c: &Call, gates: usize, w: &Array, r: &Array) -> Result<Vec<Array>> {
    let x = c.x()?;
    ensure!(x.rank() == 3 && w.rank() == 3 && r.rank() == 3, "ranks");
    let (directions, hidden, width) = (w.dim(0), r.dim(2), w.dim(2));
    ensure!(w.dim(1) == gates * hidden && r.dim(1) == gates * hidden && width == x.dim(2), "sizes");
    let batch_first = c.int("layout", 0) == 1;
    let (steps, batch) = if batch_first { (x.dim(1), x.dim(0)) } else { (x.dim(0), x.dim(1)) };
    let lengths = c.opt(4).map_or_else(|| vec![steps as i64; batch], Array::integers);
    ensure!(lengths.len() == batch, "one length a sequence");
    let names: Vec<String> = (c.node.attribute.iter().find(|a| a.name() == "activations"))
        .map(|a| a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
        .unwrap_or_default();
    let kinds = if gates == 4 { 3 } else { gates.min(2) };
    let clip = c.node.attribute.iter().find(|a| a.name() == "clip").map_or(f64::INFINITY, |a| a.f().into());
    let (coupled, linear) = (c.int("input_forget", 0) != 0, c.int("linear_before_reset", 0) != 0);
    let mut y = Array::filled(&[steps, directions, batch, hidden], 0.0)?;
    let mut last = Array::filled(&[directions, batch, hidden], 0.0)?;
    let mut last_cell = last.clone();
    let state = |a: Option<&Array>, d: usize, n: usize, h: usize| {
        a.map_or(0.0, |a| if batch_first { a.at(&[n, d, h]) } else { a.at(&[d, n, h]) })
    };
    for d in 0..directions {
        let defaults: [&str; 3] = if gates == 1 { ["tanh"; 3] } else { ["sigmoid", "tanh", "tanh"] };
        let f = activation(c, &names, d * kinds, defaults[0])?;
        let g = activation(c, &names, d * kinds + 1, defaults[1])?;
        let h = activation(c, &names, d * kinds + 2, defaults[2])?;
        let reverse = d == 1 || c.string("direction", "forward") == "reverse";
        for (n, &length) in lengths.iter().enumerate().take(batch) {
            let mut hidden_state: Vec<f64> = (0..hidden).map(|k| state(c.opt(5), d, n, k)).collect();
            let mut cell: Vec<f64> = (0..hidden).map(|k| state(c.opt(6).filter(|_| gates == 4), d, n, k)).collect();
            let length = usize::try_from(length).unwrap_or(0).min(steps);
            for step in 0..length {
                let t = if reverse { length - 1 - step } else { step };
                let input = |k: usize| if batch_first { x.at(&[n, t, k]) } else { x.at(&[t, n, k]) };
                let bias = |row: usize, recurrent: bool| {
                    c.opt(3).map_or(0.0, |b| b.at(&[d, row + if recurrent { gates * hidden } else { 0 }]))
                };
                let of_x =
                    |row: usize| (0..width).map(|k| w.at(&[d, row, k]) * input(k)).sum::<f64>() + bias(row, false);
                let of_h = |row: usize, state: &[f64]| {
                    state.iter().enumerate().map(|(k, s)| r.at(&[d, row, k]) * s).sum::<f64>() + bias(row, true)
                };
                let clipped = |v: f64| v.clamp(-clip, clip);
                let both = |gate: usize, k: usize, state: &[f64]| {
                    let row = gate * hidden + k;
                    of_x(row) + of_h(row, state)
                };
                let peephole = |gate: usize, k: usize| c.opt(7).map_or(0.0, |p| p.at(&[d, gate * hidden + k]));
                let before = hidden_state.clone();
                match gates {
                    1 => (0..hidden).for_each(|k| hidden_state[k] = f(clipped(both(0, k, &before)))),
                    3 => {
                        let z: Vec<f64> = (0..hidden).map(|k| f(clipped(both(0, k, &before)))).collect();
                        let reset: Vec<f64> = (0..hidden).map(|k| f(clipped(both(1, k, &before)))).collect();
                        let kept: Vec<f64> = reset.iter().zip(&before).map(|(r, h)| r * h).collect();
                        for k in 0..hidden {
                            let row = 2 * hidden + k;
                            let recurrent = if linear { reset[k] * of_h(row, &before) } else { of_h(row, &kept) };
                            hidden_state[k] = (1.0 - z[k]) * g(clipped(of_x(row) + recurrent)) + z[k] * before[k];
                        }
                    }
                    _ => {
                        let old = cell.clone();
                        for k in 0..hidden {
                            let i = f(clipped(both(0, k, &before) + peephole(0, k) * old[k]));
                            let forget = match coupled {
                                true => 1.0 - i,
                                false => f(clipped(both(2, k, &before) + peephole(2, k) * old[k])),
                            };
                            cell[k] = forget * old[k] + i * g(clipped(both(3, k, &before)));
                            let o = f(clipped(both(1, k, &before) + peephole(1, k) * cell[k]));
                            hidden_state[k] = o * h(cell[k]);
                        }
                    }
                }
                hidden_state.iter().enumerate().for_each(|(k, &v)| *y.at_mut(&[t, d, n, k]) = v);
            }
            hidden_state.iter().enumerate().for_each(|(k, &v)| *last.at_mut(&[d, n, k]) = v);
            cell.iter().enumerate().for_each(|(k, &v)| *last_cell.at_mut(&[d, n, k]) = v);
        }
    }
    let mut outputs = match batch_first {
        true => vec![y.transposed(&[2, 0, 1, 3])?, last.transposed(&[1, 0, 2])?, last_cell.transposed(&[1, 0, 2])?],
        false => vec![y, last, last_cell],
    };
    outputs.truncate(if gates == 4 { 3 } else { 2 });
    outputs.first().context("no output")?;
    Ok(outputs)
}
