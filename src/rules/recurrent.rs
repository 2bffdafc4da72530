//! RNN, GRU and LSTM: what all steps compute in one piece for the whole sequence, and a Scan over what goes from step
//! to step.

use super::Slot::*;
use super::properties::Counts::Length;
use super::properties::{Axis, Index, read};
use super::quantization::{INTEGERS, MICROSOFT, Steps};
use super::{Call, Cotangents, Rule, rule};
use crate::expr::Expr;
use crate::graph::facts::{Known, at, tensor};
use crate::graph::{Dim, Fact};
use crate::onnx::{AttributeProto, ElementType, attribute};
use anyhow::{Context, Result, bail, ensure};

const ATTRIBUTES: &str = "activation_alpha activation_beta activations clip direction hidden_size input_forget layout \
                          linear_before_reset output_sequence";

/// The length of each sequence: the axis of time is 1 where the layout is 1, else 0.
/// How many axes the steps, both weights, the biases, the lengths, the initial states and the peepholes have.
const RANKS: &[Option<usize>] = &[Some(3), Some(3), Some(3), Some(2), Some(1), Some(3), Some(3), Some(2)];

const STEPS: &[Index] = &[read(4, Length(0, Axis::Named("layout", 0)))];

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "RNN",
        "of Hₜ = f(A), A = Xₜ Wᵀ + Hₜ₋₁ Rᵀ + b: dA = dHₜ f', dHₜ₋₁ = dA R, dX = dA W, dW = dAᵀ X, dR = dAᵀ Hₜ₋₁, db = Σ dA",
        &[Together(|c| recurrent(c, RNN))],
    )
        .facts(facts)
        .ranks(RANKS)
        .attributes(ATTRIBUTES)
        .weights(&[1, 2, 3])
        .indices(STEPS)
        .equal(equal_sizes)
        .layer(),
    rule(
        "GRU",
        "as RNN, of Hₜ = (1 - z) h + z Hₜ₋₁ with gates z, r and h of Xₜ and Hₜ₋₁",
        &[Together(|c| recurrent(c, GRU))],
    )
    .facts(facts)
    .ranks(RANKS)
        .attributes(ATTRIBUTES)
    .weights(&[1, 2, 3])
    .indices(STEPS)
    .equal(equal_sizes)
    .layer(),
    rule(
        "LSTM",
        "as RNN, of Cₜ = f Cₜ₋₁ + i c, Hₜ = o h(Cₜ) with gates i, o, f and c of Xₜ and Hₜ₋₁",
        &[Together(|c| recurrent(c, LSTM))],
    )
    .facts(facts)
    .ranks(RANKS)
        .attributes(ATTRIBUTES)
    .weights(&[1, 2, 3, 7])
    .indices(STEPS)
    .equal(equal_sizes)
    .layer(),
    rule(
        "DynamicQuantizeLSTM",
        "those of an LSTM with the weights that the integers stand for",
        &[
            Together(quantized_lstm),
            Together(quantized_lstm),
            Together(quantized_lstm),
            Together(quantized_lstm),
            Stop("lengths"),
            Together(quantized_lstm),
            Together(quantized_lstm),
            Together(quantized_lstm),
            Together(quantized_lstm),
            INTEGERS,
            Together(quantized_lstm),
            INTEGERS,
        ],
    )
    .facts(dynamic_lstm)
    .domain(MICROSOFT)
    .ranks(&[Some(3), Some(3), Some(3), Some(2), Some(1), Some(3), Some(3), Some(2)])
    .attributes(ATTRIBUTES)
    .moves_integers()
    .weights(&[1, 2, 3, 7])
    .indices(STEPS)
    .layer()
    .note("the rounding of what its products take counts as the identity, whatever is asked for"),
];

/// The batch is the same in the sequences, their lengths and the states.
fn equal_sizes(attributes: &[AttributeProto], shapes: &[Option<&[Dim]>]) -> Vec<(Dim, Dim)> {
    let batch = usize::from(attribute::get_int(attributes, "layout").unwrap_or(0) == 0);
    let size = |i: usize, axis: usize| shapes.get(i).copied().flatten()?.get(axis).copied();
    let Some(own) = size(0, batch) else { return vec![] };
    let others = [size(4, 0), size(5, batch), size(6, batch)];
    others.into_iter().flatten().map(|other| (own, other)).collect()
}

/// What tells the three operators apart.
struct Kind {
    gates: i64,
    activations: &'static [&'static str],
    cell: bool,
    adjoint: for<'g> fn(&Unit<'_, 'g>) -> Result<Adjoint<'g>>,
}

const RNN: Kind = Kind { gates: 1, activations: &["Tanh"], cell: false, adjoint: rnn };
const GRU: Kind = Kind { gates: 3, activations: &["Sigmoid", "Tanh"], cell: false, adjoint: gru };
const LSTM: Kind = Kind { gates: 4, activations: &["Sigmoid", "Tanh", "Tanh"], cell: true, adjoint: lstm };

/// One direction: its weights and functions, and all of its steps, `[steps, batch, ...]`.
struct Unit<'c, 'g> {
    c: &'c Call<'g>,
    hidden: i64,
    /// X Wᵀ with all biases that are added to it: `[steps, batch, gates hidden]`.
    gates: Expr<'g>,
    /// Hₜ₋₁ of every step.
    before: Expr<'g>,
    /// `[gates hidden, hidden]`
    recurrent: Expr<'g>,
    /// The bias of the recurrent product of a GRU's candidate, where that is reset after the product: `[hidden]`.
    recurrent_bias: Option<Expr<'g>>,
    /// The peephole weights of the input, the output and the forget gate, each `[hidden]`.
    peepholes: Option<[Expr<'g>; 3]>,
    /// C₀
    cell: Option<Expr<'g>>,
    /// What arrives at every step's H from outside.
    dy: Option<Expr<'g>>,
    /// What arrives at the last states.
    last: Vec<Expr<'g>>,
    /// Ones in the steps of a sequence, zeros behind its end: `[steps, batch, 1]`.
    valid: Option<Expr<'g>>,
    reverse: bool,
    activations: Vec<Activation>,
    clip: Option<f64>,
    reset_after: bool,
    coupled: bool,
}

/// What a direction's parts get.
struct Adjoint<'g> {
    /// The gates, as far as X W has a part in them.
    gates: Expr<'g>,
    /// The rows of R, each with the factors that its product has: the gradient of the product, and what R is multiplied
    /// with.
    recurrent: Vec<[Expr<'g>; 2]>,
    recurrent_bias: Option<Expr<'g>>,
    peepholes: Option<[Expr<'g>; 3]>,
    /// The initial states.
    states: Vec<Expr<'g>>,
}

impl<'g> Unit<'_, 'g> {
    fn activate(&self, i: usize, x: Expr<'g>) -> Result<Expr<'g>> {
        let x = self.clip.map_or(x, |limit| x.clamp(-limit, limit));
        self.activation(i)?.apply(x)
    }

    fn activation(&self, i: usize) -> Result<&Activation> {
        self.activations.get(i).context("an activation is missing")
    }

    /// The activation and its slope.
    fn local(&self, i: usize, x: Expr<'g>) -> Result<[Expr<'g>; 2]> {
        let y = self.activate(i, x)?;
        self.slope(y, x)
    }

    /// What goes into a gate, with what the cell adds to it.
    fn peep(&self, x: Expr<'g>, which: usize, cell: Expr<'g>) -> Expr<'g> {
        self.peepholes.map_or(x, |p| x + p[which] * cell)
    }

    /// How much of a cell stays, of what goes into the gate and of how much is taken in.
    fn forgets(&self, x: Expr<'g>, input: Expr<'g>) -> Result<Expr<'g>> {
        if self.coupled { Ok(1.0 - input) } else { self.activate(0, x) }
    }

    /// A function of single elements, and its slope.
    fn slope(&self, y: Expr<'g>, x: Expr<'g>) -> Result<[Expr<'g>; 2]> {
        let slopes = self.c.differentiate(&[(y, y.ones_like())], &[x])?;
        Ok([y, slopes.get(&x.id()).copied().unwrap_or_else(|| x.zeros_like())])
    }

    fn split(&self, x: Expr<'g>, parts: usize) -> Vec<Expr<'g>> {
        x.split(2, &vec![self.hidden; parts])
    }

    /// What multiplies a step's rows with a matrix that is the same in all steps.
    fn multiplies(&self, matrix: Expr<'g>) -> impl Fn(Expr<'g>) -> Expr<'g> {
        matrix.multiplies(self.before.known_dim(1), self.before.known_dim(0))
    }

    /// A factor of what a step gives, which is none behind the end of a sequence.
    fn factor(&self, x: Expr<'g>) -> Expr<'g> {
        self.valid.map_or(x, |valid| x * valid)
    }

    /// From the last step to the first: `step` takes what arrives at the states after a step and the slices of `along`,
    /// and returns what arrives at the states before it, and what is stacked. Behind the end of a sequence the states
    /// stay.
    fn back(
        &self,
        along: &[Expr<'g>],
        step: impl Fn(&[Expr<'g>], &[Expr<'g>]) -> (Vec<Expr<'g>>, Vec<Expr<'g>>),
    ) -> Result<(Vec<Expr<'g>>, Vec<Expr<'g>>)> {
        let dy = self.dy.map(|dy| self.factor(dy));
        let held = self.valid.map(|valid| 1.0 - valid);
        let all: Vec<Expr<'g>> = [dy, held].into_iter().flatten().chain(along.iter().copied()).collect();
        self.c.builder().run_along(&self.last, &all, !self.reverse, |after, now| {
            let mut now = now.iter().copied();
            let mut after = after.to_vec();
            if let Some(dy) = dy.and_then(|_| now.next()) {
                after[0] = after[0] + dy;
            }
            let held = held.and_then(|_| now.next());
            let (before, stacked) = step(&after, &now.collect::<Vec<_>>());
            let hold = |(before, after): (Expr<'g>, &Expr<'g>)| held.map_or(before, |held| before + *after * held);
            Ok((before.into_iter().zip(&after).map(hold).collect(), stacked))
        })
    }
}

/// `H = f(A)` with `A = X Wᵀ + H₋ Rᵀ + b`, where H₋ is H of the step before: dA = dH f', dH₋ = dA R.
fn rnn<'g>(u: &Unit<'_, 'g>) -> Result<Adjoint<'g>> {
    let [_, slope] = u.local(0, u.gates + u.before.matmul(u.recurrent.transposed()))?;
    let to_states = u.multiplies(u.recurrent);
    let (states, stacked) = u.back(&[u.factor(slope)], |d, now| {
        let gates = d[0] * now[0];
        (vec![to_states(gates)], vec![gates])
    })?;
    let gates = only(stacked)?;
    Ok(Adjoint { gates, recurrent: vec![[gates, u.before]], recurrent_bias: None, peepholes: None, states })
}

/// `H = (1 - z) n + z H₋`: dn = dH (1 - z), dz = dH (H₋ - n), dH₋ = dH z, and what the gates hand on.
fn gru<'g>(u: &Unit<'_, 'g>) -> Result<Adjoint<'g>> {
    let x = u.split(u.gates, 3);
    let (of_gates, of_candidate) = halves(u.recurrent.split(0, &[2 * u.hidden, u.hidden]))?;
    if u.reset_after {
        // n = f(x + r q) with q = H₋ Rᵀ + b: all products of a step are one.
        let products = u.split(u.before.matmul(u.recurrent.transposed()), 3);
        let q = u.recurrent_bias.map_or(products[2], |b| products[2] + b);
        let ([z, z_slope], [r, r_slope]) = (u.local(0, x[0] + products[0])?, u.local(0, x[1] + products[1])?);
        let [n, n_slope] = u.local(1, x[2] + r * q)?;
        let to_n = u.factor((1.0 - z) * n_slope);
        let to_zr = [u.factor((u.before - n) * z_slope), to_n * (q * r_slope)];
        let to_products = Expr::concat(&[to_zr[0], to_zr[1], to_n * r], 2);
        let to_states = u.multiplies(u.recurrent);
        let (states, stacked) = u.back(&[to_products, u.factor(z)], |d, now| {
            let products = Expr::concat(&[d[0], d[0], d[0]], 1) * now[0];
            (vec![to_states(products) + d[0] * now[1]], vec![d[0], products])
        })?;
        let (dh, products) = halves(stacked)?;
        let gates = Expr::concat(&[products.narrow(2, 0, 2 * u.hidden), dh * to_n], 2);
        let recurrent_bias = u.recurrent_bias.map(|_| products.narrow(2, 2 * u.hidden, i64::MAX).sum_out(&[0, 1]));
        return Ok(Adjoint { gates, recurrent: vec![[products, u.before]], recurrent_bias, peepholes: None, states });
    }
    // n = f(x + (r H₋) Rᵀ): the gradient of r needs that product's first.
    let products = u.split(u.before.matmul(of_gates.transposed()), 2);
    let ([z, z_slope], [r, r_slope]) = (u.local(0, x[0] + products[0])?, u.local(0, x[1] + products[1])?);
    let reset = r * u.before;
    let [n, n_slope] = u.local(1, x[2] + reset.matmul(of_candidate.transposed()))?;
    let (to_n, to_z) = (u.factor((1.0 - z) * n_slope), u.factor((u.before - n) * z_slope));
    let along = [to_n, to_z, u.factor(u.before * r_slope), u.factor(r), u.factor(z)];
    let (to_states, to_reset) = (u.multiplies(of_gates), u.multiplies(of_candidate));
    let (states, stacked) = u.back(&along, |d, now| {
        let n = d[0] * now[0];
        let reset = to_reset(n);
        let gates = Expr::concat(&[d[0] * now[1], reset * now[2]], 1);
        (vec![to_states(gates) + reset * now[3] + d[0] * now[4]], vec![gates, n])
    })?;
    let (gates, n) = halves(stacked)?;
    let recurrent = vec![[gates, u.before], [n, reset]];
    Ok(Adjoint { gates: Expr::concat(&[gates, n], 2), recurrent, recurrent_bias: None, peepholes: None, states })
}

/// The cells of all steps from the first on, in `x` what goes into the gates and in `g` what may be taken in. They are
/// no output: they are computed again, of gates that are known where no cell has a part in them.
fn cells<'g>(u: &Unit<'_, 'g>, x: &[Expr<'g>], g: Expr<'g>, first: Expr<'g>) -> Result<Expr<'g>> {
    let known = match u.peepholes {
        Some(_) => None,
        None => {
            let input = u.activate(0, x[0])?;
            Some([input, u.forgets(x[2], input)?])
        }
    };
    let held = u.valid.map(|valid| 1.0 - valid);
    let along = match known {
        Some([input, forget]) => vec![u.factor(input * g), held.map_or(forget, |held| u.factor(forget) + held)],
        None => [Some(x[0]), Some(x[2]), Some(g), u.valid, held].into_iter().flatten().collect(),
    };
    let (_, cells) = u.c.builder().run_along(&[first], &along, u.reverse, |states, now| {
        let cell = states[0];
        let next = match known {
            Some(_) => now[1] * cell + now[0],
            None => {
                let input = u.activate(0, u.peep(now[0], 0, cell))?;
                let next = u.forgets(u.peep(now[1], 2, cell), input)? * cell + input * now[2];
                if held.is_some() { next * now[3] + cell * now[4] } else { next }
            }
        };
        Ok((vec![next], vec![next]))
    })?;
    only(cells)
}

/// `C = f C₋ + i g`, `H = o φ(C)`: dC gains dH o φ', di = dC g, df = dC C₋, dg = dC i, do = dH φ, dC₋ = dC f. With
/// peepholes the gates take p C₋, and that of the output p C.
fn lstm<'g>(u: &Unit<'_, 'g>) -> Result<Adjoint<'g>> {
    let first = u.cell.context("an LSTM has a cell")?;
    let x = u.split(u.gates + u.before.matmul(u.recurrent.transposed()), 4);
    let [g, g_slope] = u.local(1, x[3])?;
    let cell = cells(u, &x, g, first)?;
    let before = shifted(cell, first, u.reverse);

    let [i, i_slope] = u.local(0, u.peep(x[0], 0, before))?;
    let [o, o_slope] = u.local(0, u.peep(x[1], 1, cell))?;
    // The limit is for what the gates get, as runtimes have it.
    let [phi, phi_slope] = u.slope(u.activation(2)?.apply(cell)?, cell)?;
    let to_o = u.factor(phi * o_slope);
    let to_g = u.factor(i * g_slope);
    let (f, to_i, to_f) = match u.coupled {
        true => (1.0 - i, u.factor((g - before) * i_slope), before.zeros_like()),
        false => {
            let [f, f_slope] = u.local(0, u.peep(x[2], 2, before))?;
            (f, u.factor(g * i_slope), u.factor(before * f_slope))
        }
    };
    let (mut to_cell, mut on) = (u.factor(o * phi_slope), u.factor(f));
    if let Some([p_i, p_o, p_f]) = u.peepholes {
        (to_cell, on) = (to_cell + p_o * to_o, on + p_i * to_i + p_f * to_f);
    }
    let to_gates = Expr::concat(&[to_i, to_o, to_f, to_g], 2);
    let to_states = u.multiplies(u.recurrent);
    let (states, stacked) = u.back(&[to_gates, to_cell, on], |d, now| {
        let (dh, dc) = (d[0], d[1] + d[0] * now[1]);
        let gates = Expr::concat(&[dc, dh, dc, dc], 1) * now[0];
        (vec![to_states(gates), dc * now[2]], vec![gates])
    })?;
    let gates = only(stacked)?;
    let peepholes = u.peepholes.map(|_| {
        let parts = u.split(gates, 4);
        [(0, before), (1, cell), (2, before)].map(|(gate, cell)| (parts[gate] * cell).sum_out(&[0, 1]))
    });
    Ok(Adjoint { gates, recurrent: vec![[gates, u.before]], recurrent_bias: None, peepholes, states })
}

/// The states before every step, of those after every step and the first.
fn shifted<'g>(all: Expr<'g>, first: Expr<'g>, reverse: bool) -> Expr<'g> {
    let first = first.unsqueeze(&[0]);
    match reverse {
        false => Expr::concat(&[first, all.narrow(0, 0, -1)], 0),
        true => Expr::concat(&[all.narrow(0, 1, i64::MAX), first], 0),
    }
}

fn only(parts: Vec<Expr<'_>>) -> Result<Expr<'_>> {
    parts.into_iter().next().context("nothing is stacked")
}

fn halves<'g>(parts: Vec<Expr<'g>>) -> Result<(Expr<'g>, Expr<'g>)> {
    match parts[..] {
        [a, b] => Ok((a, b)),
        _ => bail!("a tensor is not split in two"),
    }
}

fn recurrent<'g>(c: &Call<'g>, kind: Kind) -> Result<Cotangents<'g>> {
    with_weights(c, kind, c.input(1), c.input(2))
}

/// An LSTM whose weights are integers, `[directions, size, 4 hidden]`, with a scale and a zero point for each
/// direction, or for each row of the weights of an LSTM.
fn quantized_lstm<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let weights = |input: usize, scale: usize| {
        let lay = |p: Expr<'g>| Ok(if p.rank()? == 1 { p.reshape_to(&[-1, 1, 1]) } else { p.unsqueeze(&[1]) });
        Ok::<_, anyhow::Error>(Steps::new(c, scale, lay)?.dequantize(c.input(input)).transpose(&[0, 2, 1]))
    };
    with_weights(c, LSTM, weights(1, 8)?, weights(2, 10)?)
}

/// What the directions of a node have in common.
struct Layer<'c, 'g> {
    c: &'c Call<'g>,
    kind: Kind,
    /// `[steps, batch, size]`
    x: Expr<'g>,
    w: Expr<'g>,
    r: Expr<'g>,
    /// The output Y, as the node gives it.
    y: Expr<'g>,
    /// Whether inputs and outputs have the batch in front of the steps and the directions.
    batch_first: bool,
    hidden: i64,
    /// The numbers of the steps: `[steps, 1, 1]`.
    steps: Expr<'g>,
    /// How many steps each sequence has: `[1, batch, 1]`.
    lengths: Option<Expr<'g>>,
    /// A state of zeros: `[batch, hidden]`.
    zeros: Expr<'g>,
}

/// The weights of one direction.
struct Weights<'g> {
    w: Expr<'g>,
    r: Expr<'g>,
    /// The biases of the product with X and of that with H.
    biases: Option<(Expr<'g>, Expr<'g>)>,
}

impl<'c, 'g> Layer<'c, 'g> {
    fn new(c: &'c Call<'g>, kind: Kind, w: Expr<'g>, r: Expr<'g>) -> Result<Self> {
        let b = c.builder();
        let batch_first = c.flag("layout", false);
        let x = if batch_first { c.x().transpose(&[1, 0, 2]) } else { c.x() };
        ensure!(x.rank()? == 3, "the input has rank {}, where [steps, batch, size] is expected", x.rank()?);
        let hidden = c.opt_int("hidden_size").or_else(|| r.known_dim(2));
        let hidden = hidden.context("hidden_size is neither an attribute nor known from the recurrent weights")?;
        ensure!((1..=1 << 24).contains(&hidden), "hidden_size is {hidden}");
        let steps = b.range(x.dim(0)).cast(ElementType::Int64).unsqueeze(&[1, 2]);
        let lengths = c.opt(4).map(|lengths| lengths.cast(ElementType::Int64).unsqueeze(&[0, 2]));
        let zeros = b.full(Expr::concat(&[x.dims([1]), b.ints(&[hidden])], 0), 0.0, x.element()?);
        let y = match c.output(0) {
            Some(y) => y,
            None => c.demand_output(0, x.element()?),
        };
        Ok(Layer { c, kind, x, w, r, y, batch_first, hidden, steps, lengths, zeros })
    }

    /// What a direction has of weights, `[directions, ...]`.
    fn of(e: Expr<'g>, d: i64) -> Expr<'g> {
        e.narrow(0, d, d + 1).squeeze(&[0])
    }

    /// What a direction has of states, `[directions, batch, hidden]`.
    fn state(&self, e: Expr<'g>, d: i64) -> Expr<'g> {
        Self::of(if self.batch_first { e.transpose(&[1, 0, 2]) } else { e }, d)
    }

    /// The initial state that is that input.
    fn initial(&self, i: usize, d: i64) -> Option<Expr<'g>> {
        self.c.opt(i).map(|state| self.state(state, d))
    }

    /// What a direction has of Y or its gradient, `[steps, directions, batch, hidden]`.
    fn outputs(&self, e: Expr<'g>, d: i64) -> Expr<'g> {
        match self.batch_first {
            false => e.narrow(1, d, d + 1).squeeze(&[1]),
            true => e.narrow(2, d, d + 1).squeeze(&[2]).transpose(&[1, 0, 2]),
        }
    }

    fn weights(&self, d: i64) -> Result<Weights<'g>> {
        let (w, r) = (Self::of(self.w, d), Self::of(self.r, d));
        let rows = self.kind.gates * self.hidden;
        let biases = self.c.opt(3).map(|b| halves(Self::of(b, d).split(0, &[rows, rows]))).transpose()?;
        Ok(Weights { w, r, biases })
    }

    /// The gates of a GRU but for its candidate, and the candidate.
    fn candidate(&self, e: Expr<'g>) -> Result<(Expr<'g>, Expr<'g>)> {
        halves(e.split(0, &[2 * self.hidden, self.hidden]))
    }

    fn unit(&self, weights: &Weights<'g>, d: i64, reverse: bool, functions: Vec<Activation>) -> Result<Unit<'c, 'g>> {
        let (c, x) = (self.c, self.x);
        let reset_after = c.flag("linear_before_reset", false);
        let (bias, recurrent_bias) = match weights.biases {
            // What the reset gate of a GRU multiplies is added to its own product.
            Some((input, recurrent)) if reset_after && self.kind.gates == 3 => {
                let (of_gates, of_candidate) = self.candidate(recurrent)?;
                (Some(input + Expr::concat(&[of_gates, of_candidate.zeros_like()], 0)), Some(of_candidate))
            }
            Some((input, recurrent)) => (Some(input + recurrent), None),
            None => (None, None),
        };
        let peepholes = c.opt(7).filter(|_| self.kind.cell).map(|p| Self::of(p, d).split(0, &[self.hidden; 3]));
        let peepholes = peepholes.and_then(|p| <[Expr<'g>; 3]>::try_from(p).ok());
        let first = self.initial(5, d).unwrap_or(self.zeros);
        let own = self.outputs(self.y, d);
        // Behind the end of a sequence H is zero, and a reversed one begins at its end.
        let before = match self.lengths {
            Some(lengths) if reverse => (self.steps + 1).less(lengths).select(shifted(own, first, true), first),
            _ => shifted(own, first, reverse),
        };
        let product = x.matmul(weights.w.transposed());
        let last = |i: usize| c.opt_dy(i).map_or(self.zeros, |dy| self.state(dy, d));
        Ok(Unit {
            c,
            hidden: self.hidden,
            gates: bias.map_or(product, |bias| product + bias),
            before,
            recurrent: weights.r,
            recurrent_bias,
            peepholes,
            cell: self.kind.cell.then(|| self.initial(6, d).unwrap_or(self.zeros)),
            dy: c.opt_dy(0).map(|dy| self.outputs(dy, d)),
            last: if self.kind.cell { vec![last(1), last(2)] } else { vec![last(1)] },
            valid: self.lengths.map(|lengths| self.steps.less(lengths).cast_like(x)),
            reverse,
            activations: functions,
            clip: c.opt_float("clip").filter(|&limit| limit > 0.0),
            reset_after,
            coupled: c.flag("input_forget", false),
        })
    }

    /// What the parts of the inputs that a direction takes get; how these lie in the inputs, the pass knows.
    fn seeds(
        &self,
        weights: &Weights<'g>,
        d: i64,
        unit: &Unit<'_, 'g>,
        adjoint: &Adjoint<'g>,
    ) -> Result<Vec<(Expr<'g>, Expr<'g>)>> {
        let mut seeds = Vec::new();
        let matrix = |e: Expr<'g>| e.stacked_before(1);
        let product = |d: Expr<'g>, e: Expr<'g>| matrix(d).gemm(true, matrix(e), false, 1.0);
        if self.c.wants_input(0) {
            seeds.push((self.x, adjoint.gates.matmul(weights.w)));
        }
        seeds.push((weights.w, product(adjoint.gates, matrix(self.x))));
        let rows: Vec<_> = adjoint.recurrent.iter().map(|&[d, e]| product(d, e)).collect();
        seeds.push((weights.r, Expr::concat(&rows, 0)));
        if let Some((input, recurrent)) = weights.biases {
            let sum = adjoint.gates.sum_out(&[0, 1]);
            seeds.push((input, sum));
            let own = match adjoint.recurrent_bias {
                Some(own) => Expr::concat(&[self.candidate(sum)?.0, own], 0),
                None => sum,
            };
            seeds.push((recurrent, own));
        }
        seeds.extend(unit.peepholes.into_iter().flatten().zip(adjoint.peepholes.into_iter().flatten()));
        let states = [self.initial(5, d), self.initial(6, d)].into_iter().zip(adjoint.states.iter().copied());
        seeds.extend(states.filter_map(|(state, d)| Some((state?, d))));
        Ok(seeds)
    }
}

/// All H are known from the forward output: the gates of all steps are one product outside of any loop, and so are the
/// slopes of all that a step computes. What arrives at the states goes from step to step by products with these slopes
/// and with R.
fn with_weights<'g>(c: &Call<'g>, kind: Kind, w: Expr<'g>, r: Expr<'g>) -> Result<Cotangents<'g>> {
    let directions: &[bool] = match c.string("direction", "forward").as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => bail!("direction is '{other}'"),
    };
    let layer = Layer::new(c, kind, w, r)?;
    let functions = activations(c, layer.kind.activations, directions.len())?;
    let mut seeds = Vec::new();
    for (d, (&reverse, functions)) in (0..).zip(directions.iter().zip(functions)) {
        let weights = layer.weights(d)?;
        let unit = layer.unit(&weights, d, reverse, functions)?;
        let adjoint = (layer.kind.adjoint)(&unit)?;
        seeds.extend(layer.seeds(&weights, d, &unit, &adjoint)?);
    }
    let wanted: Vec<Expr<'g>> = (0..c.input_count()).filter(|&i| c.wants_input(i)).map(|i| c.input(i)).collect();
    let mut gradients: Vec<_> = c.differentiate(&seeds, &wanted)?.into_iter().collect();
    gradients.sort_unstable_by_key(|(x, _)| *x);
    Ok(c.cotangents().values(gradients))
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

/// The activations of each direction. The lists of parameters hold those of the functions that take any, in their
/// order.
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
        // For each parameter: whether the function takes it, and the default, where runtimes agree on one.
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

/// `Y`, `Y_h` and, for LSTM, `Y_c`; with `layout=1` (version 14) the batch comes first.
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
