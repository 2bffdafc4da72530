//! RNN, GRU and LSTM: the products with the input weights in one piece for the whole sequence, and a Scan over the rest.

use super::Slot::*;
use super::properties::Counts::Length;
use super::properties::{Axis, Index, read};
use super::quantization::{INTEGERS, MICROSOFT, Steps};
use super::{Call, Rule, rule};
use crate::expr::Expr;
use crate::graph::facts::{Known, at, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};

const ATTRIBUTES: &str = "activation_alpha activation_beta activations clip direction hidden_size input_forget layout \
                          linear_before_reset output_sequence";

/// The length of each sequence: the axis of time is 1 where the layout is 1, else 0.
const STEPS: &[Index] = &[read(4, Length(0, Axis::Named("layout", 0)))];

/// The rows.
pub const RULES: &[Rule] = &[
    rule("RNN", "through Hₜ = f(Xₜ Wᵀ + Hₜ₋₁ Rᵀ + b)", &[Through(|c| recurrent(c, RNN))])
        .facts(facts)
        .attributes(ATTRIBUTES)
        .weights(&[1, 2, 3])
        .indices(STEPS)
        .layer(),
    rule(
        "GRU",
        "through Hₜ = (1 - z) h + z Hₜ₋₁ with gates z, r and h of Xₜ and Hₜ₋₁",
        &[Through(|c| recurrent(c, GRU))],
    )
    .facts(facts)
    .attributes(ATTRIBUTES)
    .weights(&[1, 2, 3])
    .indices(STEPS)
    .layer(),
    rule(
        "LSTM",
        "through Cₜ = f Cₜ₋₁ + i c, Hₜ = o h(Cₜ) with gates i, o, f and c of Xₜ and Hₜ₋₁",
        &[Through(|c| recurrent(c, LSTM))],
    )
    .facts(facts)
    .attributes(ATTRIBUTES)
    .weights(&[1, 2, 3, 7])
    .indices(STEPS)
    .layer(),
    rule(
        "DynamicQuantizeLSTM",
        "those of an LSTM with the weights that the integers stand for",
        &[
            Through(quantized_lstm),
            Through(quantized_lstm),
            Through(quantized_lstm),
            Through(quantized_lstm),
            Stop("lengths"),
            Through(quantized_lstm),
            Through(quantized_lstm),
            Through(quantized_lstm),
            Through(quantized_lstm),
            INTEGERS,
            Through(quantized_lstm),
            INTEGERS,
        ],
    )
    .facts(dynamic_lstm)
    .domain(MICROSOFT)
    .attributes(ATTRIBUTES)
    .moves_integers()
    .weights(&[1, 2, 3, 7])
    .indices(STEPS)
    .layer()
    .note("the rounding of what its products take counts as the identity, whatever is asked for"),
];

/// What tells the three operators apart.
struct Kind {
    gates: usize,
    activations: &'static [&'static str],
    cell: bool,
    /// The nonlinear part of a step: the new states from the gates' inputs and the states before.
    step: for<'g> fn(&Unit<'g>, Expr<'g>, &[Expr<'g>]) -> Result<Vec<Expr<'g>>>,
}

const RNN: Kind = Kind { gates: 1, activations: &["Tanh"], cell: false, step: rnn_step };
const GRU: Kind = Kind { gates: 3, activations: &["Sigmoid", "Tanh"], cell: false, step: gru_step };
const LSTM: Kind = Kind { gates: 4, activations: &["Sigmoid", "Tanh", "Tanh"], cell: true, step: lstm_step };

/// The weights and functions of one direction.
struct Unit<'g> {
    hidden: i64,
    /// `[hidden, gates hidden]`
    recurrent: Expr<'g>,
    /// Of the recurrent product of a GRU's candidate, where it is reset after the product: `[hidden]`.
    recurrent_bias: Option<Expr<'g>>,
    /// Of the input, output and forget gate: `[hidden]`.
    peepholes: Option<[Expr<'g>; 3]>,
    activations: Vec<Activation>,
    clip: Option<f64>,
    reset_after: bool,
    coupled: bool,
}

impl<'g> Unit<'g> {
    fn activate(&self, i: usize, x: Expr<'g>) -> Result<Expr<'g>> {
        let x = self.clip.map_or(x, |limit| x.clamp(-limit, limit));
        self.activations.get(i).context("an activation is missing")?.apply(x)
    }

    fn split(&self, x: Expr<'g>, gates: usize) -> Vec<Expr<'g>> {
        x.split(1, &vec![self.hidden; gates])
    }
}

fn rnn_step<'g>(u: &Unit<'g>, x: Expr<'g>, states: &[Expr<'g>]) -> Result<Vec<Expr<'g>>> {
    Ok(vec![u.activate(0, x + states[0].matmul(u.recurrent))?])
}

fn gru_step<'g>(u: &Unit<'g>, x: Expr<'g>, states: &[Expr<'g>]) -> Result<Vec<Expr<'g>>> {
    let [h] = states else { bail!("a GRU has one state") };
    let x = u.split(x, 3);
    let (z, candidate) = match u.reset_after {
        true => {
            let product = u.split(h.matmul(u.recurrent), 3);
            let (z, r) = (u.activate(0, x[0] + product[0])?, u.activate(0, x[1] + product[1])?);
            let product = u.recurrent_bias.map_or(product[2], |b| product[2] + b);
            (z, x[2] + r * product)
        }
        false => {
            let (of_gates, of_candidate) = halves(u.recurrent.split(1, &[2 * u.hidden, u.hidden]))?;
            let product = u.split(h.matmul(of_gates), 2);
            let (z, r) = (u.activate(0, x[0] + product[0])?, u.activate(0, x[1] + product[1])?);
            (z, x[2] + (r * *h).matmul(of_candidate))
        }
    };
    let candidate = u.activate(1, candidate)?;
    Ok(vec![(1.0 - z) * candidate + z * *h])
}

fn lstm_step<'g>(u: &Unit<'g>, x: Expr<'g>, states: &[Expr<'g>]) -> Result<Vec<Expr<'g>>> {
    let [h, cell] = states else { bail!("an LSTM has two states") };
    let gates = u.split(x + h.matmul(u.recurrent), 4);
    let peep =
        |gate: usize, which: usize, cell: Expr<'g>| u.peepholes.map_or(gates[gate], |p| gates[gate] + p[which] * cell);
    let input = u.activate(0, peep(0, 0, *cell))?;
    let forget = match u.coupled {
        true => 1.0 - input,
        false => u.activate(0, peep(2, 2, *cell))?,
    };
    let new = forget * *cell + input * u.activate(1, gates[3])?;
    let output = u.activate(0, peep(1, 1, new))?;
    // The limit is for what the gates get, as runtimes have it.
    let activation = u.activations.get(2).context("an activation is missing")?;
    Ok(vec![output * activation.apply(new)?, new])
}

fn halves<'g>(parts: Vec<Expr<'g>>) -> Result<(Expr<'g>, Expr<'g>)> {
    match parts[..] {
        [a, b] => Ok((a, b)),
        _ => bail!("a tensor is not split in two"),
    }
}

fn recurrent<'g>(c: &Call<'g>, kind: Kind) -> Result<Vec<Option<Expr<'g>>>> {
    with_weights(c, kind, c.input(1), c.input(2))
}

/// An LSTM whose weights are integers, `[directions, size, 4 hidden]`, with a scale and a zero point for each direction, or for
/// each row of the weights of an LSTM.
fn quantized_lstm<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let weights = |input: usize, scale: usize| {
        let lay = |p: Expr<'g>| Ok(if p.rank()? == 1 { p.reshape_to(&[-1, 1, 1]) } else { p.unsqueeze(&[1]) });
        Ok::<_, anyhow::Error>(Steps::new(c, scale, lay)?.dequantize(c.input(input)).transpose(&[0, 2, 1]))
    };
    with_weights(c, LSTM, weights(1, 8)?, weights(2, 10)?)
}

/// `Y`, `Y_h` and `Y_c`, those of them that have a gradient.
fn with_weights<'g>(c: &Call<'g>, kind: Kind, w: Expr<'g>, r: Expr<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    let batch_first = c.flag("layout", false);
    let time_major = |e: Expr<'g>| if batch_first { e.transpose(&[1, 0, 2]) } else { e };
    let x = time_major(c.x());
    ensure!(x.rank()? == 3, "the input has rank {}, where [steps, batch, size] is expected", x.rank()?);
    let hidden = c.opt_int("hidden_size").or_else(|| r.known_dim(2));
    let hidden = hidden.context("hidden_size is neither an attribute nor known from the recurrent weights")?;
    ensure!((1..=1 << 24).contains(&hidden), "hidden_size is {hidden}");
    let directions = match c.string("direction", "forward").as_str() {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => bail!("direction is '{other}'"),
    };
    let gates = kind.gates as i64;
    let (reset_after, coupled) = (c.flag("linear_before_reset", false), c.flag("input_forget", false));
    let activations = activations(c, kind.activations, directions.len())?;
    let valid = c.opt(4).map(|lengths| {
        let steps = c.builder().range(x.dim(0)).cast(ElementType::Int64).unsqueeze(&[1, 2]);
        steps.less(lengths.cast(ElementType::Int64).unsqueeze(&[0, 2]))
    });
    let zeros = c.builder().full(Expr::concat(&[x.dims([1]), c.builder().ints(&[hidden])], 0), 0.0, x.element()?);

    let mut stacked: Vec<Vec<Expr<'g>>> = vec![Vec::new(); 3];
    for (d, (&reverse, activations)) in directions.iter().zip(activations).enumerate() {
        let of = |e: Expr<'g>| e.narrow(0, d as i64, d as i64 + 1).squeeze(&[0]);
        let biases = c.opt(3).map(|b| halves(of(b).split(0, &[gates * hidden, gates * hidden]))).transpose()?;
        let (bias, recurrent_bias) = match biases {
            // What the reset gate of a GRU multiplies stays inside.
            Some((input, recurrent)) if reset_after && gates == 3 => {
                let (gates, candidate) = halves(recurrent.split(0, &[2 * hidden, hidden]))?;
                (Some(input + Expr::concat(&[gates, candidate.zeros_like()], 0)), Some(candidate))
            }
            Some((input, recurrent)) => (Some(input + recurrent), None),
            None => (None, None),
        };
        let peepholes = match c.opt(7).filter(|_| kind.cell) {
            Some(p) => match of(p).split(0, &[hidden; 3])[..] {
                [i, o, f] => Some([i, o, f]),
                _ => None,
            },
            None => None,
        };
        let unit = Unit {
            hidden,
            recurrent: of(r).transposed(),
            recurrent_bias,
            peepholes,
            activations,
            clip: c.opt_float("clip").filter(|&limit| limit > 0.0),
            reset_after,
            coupled,
        };
        let product = x.matmul(of(w).transposed());
        let product = bias.map_or(product, |bias| product + bias);
        let initial = |i: usize| c.opt(i).map_or(zeros, |e| of(if batch_first { e.transpose(&[1, 0, 2]) } else { e }));
        let mut states = vec![initial(5)];
        if kind.cell {
            states.push(initial(6));
        }
        let along: Vec<_> = [Some(product), valid].into_iter().flatten().collect();
        let (last, all) = c.builder().run_along(&states, &along, reverse, |before, now| {
            let after = (kind.step)(&unit, now[0], before)?;
            let Some(&valid) = now.get(1) else { return Ok((after.clone(), after[..1].to_vec())) };
            let held = after.iter().zip(before).map(|(after, before)| valid.select(*after, *before)).collect();
            Ok((held, vec![after[0].where_(valid)]))
        })?;
        stacked[0].extend(all);
        for (i, state) in last.into_iter().enumerate() {
            stacked[1 + i].push(state);
        }
    }
    let join = |(i, parts): (usize, &Vec<Expr<'g>>)| {
        if parts.is_empty() || !c.has_dy(i) {
            return None;
        }
        // Y is [steps, directions, batch, hidden], or [batch, steps, directions, hidden].
        let axis = if i == 0 { 1 } else { 0 };
        let parts: Vec<_> = parts.iter().map(|p| p.unsqueeze(&[axis])).collect();
        let y = Expr::concat(&parts, axis);
        Some(match (batch_first, i) {
            (false, _) => y,
            (true, 0) => y.transpose(&[2, 0, 1, 3]),
            (true, _) => y.transpose(&[1, 0, 2]),
        })
    };
    Ok(stacked.iter().enumerate().map(join).collect())
}

/// An activation function with its parameters.
#[derive(Clone, Debug)]
struct Activation {
    name: String,
    alpha: f64,
    beta: f64,
}

impl Activation {
    fn apply<'g>(&self, x: Expr<'g>) -> Result<Expr<'g>> {
        let (alpha, beta) = (self.alpha, self.beta);
        let positive = || x.greater(x.like(0.0));
        Ok(match self.name.as_str() {
            "relu" => x.relu(),
            "tanh" => x.tanh(),
            "sigmoid" => x.sigmoid(),
            "affine" => x * alpha + beta,
            "leakyrelu" => positive().select(x, x * alpha),
            "thresholdedrelu" => x.where_(x.greater(x.like(alpha))),
            "scaledtanh" => (x * beta).tanh() * alpha,
            "hardsigmoid" => (x * alpha + beta).clamp(0.0, 1.0),
            "elu" => positive().select(x, (x.min(x.like(0.0)).exp() - 1.0) * alpha),
            "softsign" => x / (x.abs() + 1.0),
            "softplus" => x.softplus(),
            other => bail!("the activation '{other}' is not known"),
        })
    }
}

/// The activations of each direction. The lists of parameters hold those of the functions that take any, in their order.
fn activations(c: &Call<'_>, defaults: &[&str], directions: usize) -> Result<Vec<Vec<Activation>>> {
    let names = c.strings("activations").unwrap_or_default();
    let names: Vec<String> = match names.len() {
        0 => defaults.iter().cycle().take(defaults.len() * directions).map(|n| n.to_lowercase()).collect(),
        n if n == defaults.len() * directions => names.iter().map(|n| n.to_lowercase()).collect(),
        n => bail!("activations has {n} entries for {directions} directions with {} functions each", defaults.len()),
    };
    let mut alphas = c.floats("activation_alpha").unwrap_or_default().into_iter();
    let mut betas = c.floats("activation_beta").unwrap_or_default().into_iter();
    let activation = |name: String| {
        // Of each parameter the default, and whether there is one on which runtimes agree.
        let (alpha, beta) = match name.as_str() {
            "leakyrelu" => (Some(Some(0.01)), None),
            "elu" => (Some(Some(1.0)), None),
            "hardsigmoid" => (Some(Some(0.2)), Some(Some(0.5))),
            "thresholdedrelu" => (Some(None), None),
            "affine" | "scaledtanh" => (Some(None), Some(None)),
            _ => (None, None),
        };
        let parameter = |list: &mut std::vec::IntoIter<f64>, which: &str, default: Option<Option<f64>>| {
            match default {
            None => Ok(0.0),
            Some(default) => list.next().or(default).with_context(|| {
                format!("the activation '{name}' has no {which}, for which runtimes have different values; give one in activation_{which}")
            }),
        }
        };
        let (alpha, beta) = (parameter(&mut alphas, "alpha", alpha)?, parameter(&mut betas, "beta", beta)?);
        Ok(Activation { name, alpha, beta })
    };
    let all: Vec<Activation> = names.into_iter().map(activation).collect::<Result<_>>()?;
    Ok(all.chunks(defaults.len()).map(<[Activation]>::to_vec).collect())
}

/// `Y`, `Y_h` and, for LSTM, `Y_c`; with `layout=1` (opset 14) the batch comes first.
fn facts(c: &Known) -> Result<Vec<Fact>> {
    let three = |i: usize| c.rank(i).is_none_or(|rank| rank == 3);
    ensure!(three(0) && three(1) && three(2), "a recurrent network takes steps, and weights, of rank 3");
    let element = c.element(0).or(c.element(1));
    let directions = Dim::Known(if c.string("direction") == Some("bidirectional") { 2 } else { 1 });
    let hidden = match c.int("hidden_size", 0) {
        0 => at(c, c.shape(2), 2),
        size => size.into(),
    };
    let (first, second) = (at(c, c.shape(0), 0), at(c, c.shape(0), 1));
    let (all, last) = match c.flag("layout") {
        false => (vec![first, directions, second, hidden], vec![directions, second, hidden]),
        true => (vec![first, second, directions, hidden], vec![first, directions, hidden]),
    };
    let last = tensor(element, Some(last));
    Ok(vec![tensor(element, Some(all)), last.clone(), last])
}

/// As those of an LSTM, whose weights have the other order: `[directions, size, 4 hidden]`.
fn dynamic_lstm(c: &Known) -> Result<Vec<Fact>> {
    let turned = c.shape(2).and_then(|s| Some(Fact::tensor(None, Some([*s.first()?, *s.get(2)?, *s.get(1)?].into()))));
    facts(&Known { op: c.op, inputs: &[c.input(0), None, turned.as_ref()] })
}
