//! RNN, GRU and LSTM, step by step, in both directions and with sequences of different lengths.

use super::{Array, Call, Row, row};
use anyhow::{Result, bail, ensure};

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

/// What one direction computes with.
struct Direction<'a> {
    /// Its number.
    d: usize,
    c: &'a Call<'a>,
    w: &'a Array,
    r: &'a Array,
    gates: usize,
    hidden: usize,
    /// f, g and h of the specification.
    functions: [Box<dyn Fn(f64) -> f64>; 3],
    /// What goes into a function is cut to ± this.
    clip: f64,
    /// Whether a cell forgets what it does not take in.
    coupled: bool,
    /// Whether the reset gate comes behind the product with the state.
    linear: bool,
}

impl<'a> Direction<'a> {
    fn new(c: &'a Call<'a>, d: usize, gates: usize, w: &'a Array, r: &'a Array) -> Result<Self> {
        let attribute = |name: &str| c.node.attribute.iter().find(|a| a.name() == name);
        let names: Vec<String> = attribute("activations")
            .map(|a| a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
            .unwrap_or_default();
        let first = d * if gates == 4 { 3 } else { gates.min(2) };
        let defaults: [&str; 3] = if gates == 1 { ["tanh"; 3] } else { ["sigmoid", "tanh", "tanh"] };
        let function = |i: usize| activation(c, &names, first + i, defaults[i]);
        let functions: [Box<dyn Fn(f64) -> f64>; 3] =
            [Box::new(function(0)?), Box::new(function(1)?), Box::new(function(2)?)];
        let clip = attribute("clip").map_or(f64::INFINITY, |a| a.f().into());
        let (coupled, linear) = (c.int("input_forget", 0) != 0, c.int("linear_before_reset", 0) != 0);
        Ok(Direction { d, c, w, r, gates, hidden: r.dim(2), functions, clip, coupled, linear })
    }

    fn f(&self, x: f64) -> f64 {
        (self.functions[0])(x.clamp(-self.clip, self.clip))
    }

    fn g(&self, x: f64) -> f64 {
        (self.functions[1])(x.clamp(-self.clip, self.clip))
    }

    fn product(&self, weights: &Array, row: usize, values: &[f64], bias: usize) -> f64 {
        let sum: f64 = values.iter().enumerate().map(|(k, v)| weights.at(&[self.d, row, k]) * v).sum();
        sum + self.c.opt(3).map_or(0.0, |b| b.at(&[self.d, bias + row]))
    }

    fn of_x(&self, row: usize, x: &[f64]) -> f64 {
        self.product(self.w, row, x, 0)
    }

    fn of_h(&self, row: usize, state: &[f64]) -> f64 {
        self.product(self.r, row, state, self.gates * self.hidden)
    }

    /// What goes into a gate of unit `k`.
    fn gate(&self, gate: usize, k: usize, x: &[f64], state: &[f64]) -> f64 {
        let row = gate * self.hidden + k;
        self.of_x(row, x) + self.of_h(row, state)
    }

    /// The next state, and the next cell where there is one.
    fn step(&self, x: &[f64], state: &[f64], cell: &[f64]) -> (Vec<f64>, Vec<f64>) {
        match self.gates {
            1 => ((0..self.hidden).map(|k| self.f(self.gate(0, k, x, state))).collect(), cell.to_vec()),
            3 => (self.gru(x, state), cell.to_vec()),
            _ => (0..self.hidden).map(|k| self.lstm(k, x, state, cell[k])).unzip(),
        }
    }

    fn gru(&self, x: &[f64], state: &[f64]) -> Vec<f64> {
        let of_all = |gate: usize| (0..self.hidden).map(|k| self.f(self.gate(gate, k, x, state))).collect::<Vec<_>>();
        let (z, reset) = (of_all(0), of_all(1));
        let kept: Vec<f64> = reset.iter().zip(state).map(|(r, h)| r * h).collect();
        let next = |k: usize| {
            let row = 2 * self.hidden + k;
            let recurrent = if self.linear { reset[k] * self.of_h(row, state) } else { self.of_h(row, &kept) };
            (1.0 - z[k]) * self.g(self.of_x(row, x) + recurrent) + z[k] * state[k]
        };
        (0..self.hidden).map(next).collect()
    }

    /// The next state and cell of unit `k`.
    fn lstm(&self, k: usize, x: &[f64], state: &[f64], cell: f64) -> (f64, f64) {
        let peephole = |gate: usize| self.c.opt(7).map_or(0.0, |p| p.at(&[self.d, gate * self.hidden + k]));
        let gate = |gate: usize, cell: f64| self.f(self.gate(gate, k, x, state) + peephole(gate) * cell);
        let i = gate(0, cell);
        let forget = if self.coupled { 1.0 - i } else { gate(2, cell) };
        let next = forget * cell + i * self.g(self.gate(3, k, x, state));
        (gate(1, next) * (self.functions[2])(next), next)
    }
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
    let mut y = Array::filled(&[steps, directions, batch, hidden], 0.0)?;
    let mut last = Array::filled(&[directions, batch, hidden], 0.0)?;
    let mut last_cell = last.clone();
    let initial = |a: Option<&Array>, d: usize, n: usize| -> Vec<f64> {
        let at = |a: &Array, k: usize| if batch_first { a.at(&[n, d, k]) } else { a.at(&[d, n, k]) };
        (0..hidden).map(|k| a.map_or(0.0, |a| at(a, k))).collect()
    };
    for d in 0..directions {
        let direction = Direction::new(c, d, gates, w, r)?;
        let reverse = d == 1 || c.string("direction", "forward") == "reverse";
        for (n, &length) in lengths.iter().enumerate().take(batch) {
            let mut state = initial(c.opt(5), d, n);
            let mut cell = initial(c.opt(6).filter(|_| gates == 4), d, n);
            let length = usize::try_from(length).unwrap_or(0).min(steps);
            for step in 0..length {
                let t = if reverse { length - 1 - step } else { step };
                let place = |k: usize| if batch_first { [n, t, k] } else { [t, n, k] };
                let now: Vec<f64> = (0..width).map(|k| x.at(&place(k))).collect();
                (state, cell) = direction.step(&now, &state, &cell);
                state.iter().enumerate().for_each(|(k, &v)| *y.at_mut(&[t, d, n, k]) = v);
            }
            state.iter().enumerate().for_each(|(k, &v)| *last.at_mut(&[d, n, k]) = v);
            cell.iter().enumerate().for_each(|(k, &v)| *last_cell.at_mut(&[d, n, k]) = v);
        }
    }
    let mut outputs = match batch_first {
        true => vec![y.transposed(&[2, 0, 1, 3])?, last.transposed(&[1, 0, 2])?, last_cell.transposed(&[1, 0, 2])?],
        false => vec![y, last, last_cell],
    };
    outputs.truncate(if gates == 4 { 3 } else { 2 });
    Ok(outputs)
}
