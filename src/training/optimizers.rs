//! Optimizers: one row each, the update of a parameter as its paper writes it.
//!
//! w is the parameter, g its gradient, η the learning rate, λ the weight decay, t the number of the step from 1 on.

use crate::error::Error;
use crate::expr::Expr;
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// A row of the table.
#[non_exhaustive]
pub struct Optimizer {
    /// How it is asked for.
    pub name: &'static str,
    /// The update, for the reader.
    pub formula: &'static str,
    /// What it keeps of each parameter, all zeros at first.
    pub states: &'static [&'static str],
    /// Whether the update of an element needs no others of its parameter, so that parameters may be updated as one
    /// vector.
    pub elementwise: bool,
    defaults: Hyper,
    f: for<'g> fn(&Update<'g>) -> (Expr<'g>, Vec<Expr<'g>>),
}

/// The numbers of an optimizer that do not change during training: those of its row ([`Optimizer::defaults`]), or
/// others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hyper {
    /// μ, the share of the momentum that stays; α of RMSProp.
    pub momentum: f64,
    /// β₁, of the mean of gradients.
    pub beta1: f64,
    /// β₂, of the mean of squares.
    pub beta2: f64,
    /// ε, what keeps denominators from zero.
    pub epsilon: f64,
    /// λ, the weight decay.
    pub weight_decay: f64,
}

setters!(Hyper { momentum: f64, beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64 });

const HYPER: Hyper = Hyper { momentum: 0.9, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };

/// What an update is made of.
pub(crate) struct Update<'g> {
    /// The parameter.
    pub w: Expr<'g>,
    /// Its gradient.
    pub g: Expr<'g>,
    /// The states, as many as the row names.
    pub states: Vec<Expr<'g>>,
    /// The learning rate, in the parameter's type.
    pub lr: Expr<'g>,
    /// The number of the step, from 1 on, in the parameter's type.
    pub t: Expr<'g>,
    /// The rest.
    pub hyper: Hyper,
}

/// Every optimizer. Where the weight decay is a part of the gradient, g is g + λw.
pub const OPTIMIZERS: &[Optimizer] = &[
    Optimizer {
        name: "sgd",
        formula: "w - ηg",
        states: &[],
        elementwise: true,
        defaults: HYPER,
        f: |u| (u.w - u.lr * u.decayed(), vec![]),
    },
    Optimizer {
        name: "momentum",
        formula: "w - ηb, b ← μb + g",
        states: &["b"],
        elementwise: true,
        defaults: HYPER,
        f: |u| {
            let b = u.hyper.momentum * u.states[0] + u.decayed();
            (u.w - u.lr * b, vec![b])
        },
    },
    Optimizer {
        name: "nesterov",
        formula: "w - η(g + μb), b ← μb + g",
        states: &["b"],
        elementwise: true,
        defaults: HYPER,
        f: |u| {
            let (g, mu) = (u.decayed(), u.hyper.momentum);
            let b = mu * u.states[0] + g;
            (u.w - u.lr * (g + mu * b), vec![b])
        },
    },
    Optimizer {
        name: "rmsprop",
        formula: "w - ηg / (√v + ε), v ← αv + (1 - α)g²",
        states: &["v"],
        elementwise: true,
        defaults: Hyper { momentum: 0.99, ..HYPER },
        f: |u| {
            let (g, alpha) = (u.decayed(), u.hyper.momentum);
            let v = mean(u.states[0], g.square(), alpha);
            (u.w - u.lr * g / (v.sqrt() + u.hyper.epsilon), vec![v])
        },
    },
    Optimizer {
        name: "adagrad",
        formula: "w - ηg / (√s + ε), s ← s + g²",
        states: &["s"],
        elementwise: true,
        defaults: Hyper { epsilon: 1e-10, ..HYPER },
        f: |u| {
            let g = u.decayed();
            let s = u.states[0] + g.square();
            (u.w - u.lr * g / (s.sqrt() + u.hyper.epsilon), vec![s])
        },
    },
    Optimizer {
        name: "adam",
        formula: "w - η m̂ / (√v̂ + ε), m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ), m ← β₁m + (1 - β₁)g, v ← β₂v + (1 - β₂)g²",
        states: &["m", "v"],
        elementwise: true,
        defaults: HYPER,
        f: |u| {
            let (step, states) = u.adaptive(u.decayed(), u.lr);
            (u.w - step, states)
        },
    },
    Optimizer {
        name: "adamw",
        formula: "w - η(λw + m̂ / (√v̂ + ε)), m and v as adam has them",
        states: &["m", "v"],
        elementwise: true,
        defaults: Hyper { weight_decay: 0.01, ..HYPER },
        f: |u| {
            let (step, states) = u.adaptive(u.g, u.lr);
            (u.shrunk() - step, states)
        },
    },
    Optimizer {
        name: "lamb",
        formula: "w - η ‖w‖/‖r‖ r, r = m̂ / (√v̂ + ε) + λw, m and v as adam has them; ‖w‖/‖r‖ is 1 where either is zero",
        states: &["m", "v"],
        elementwise: false,
        defaults: Hyper { epsilon: 1e-6, weight_decay: 0.01, ..HYPER },
        f: |u| {
            let (step, states) = u.adaptive(u.g, u.w.like(1.0));
            let r = step + u.hyper.weight_decay * u.w;
            let (w_norm, r_norm, one) = (norm(u.w), norm(r), u.w.like(1.0));
            let known = w_norm.above(0.0).and(r_norm.above(0.0));
            let trust = known.select(w_norm / known.select(r_norm, one), one);
            (u.w - u.lr * trust * r, states)
        },
    },
    Optimizer {
        name: "lion",
        formula: "w - η(λw + sign(β₁m + (1 - β₁)g)), m ← β₂m + (1 - β₂)g",
        states: &["m"],
        elementwise: true,
        defaults: Hyper { beta2: 0.99, ..HYPER },
        f: |u| {
            let (m, h) = (u.states[0], &u.hyper);
            let step = mean(m, u.g, h.beta1).sign();
            (u.w - u.lr * (h.weight_decay * u.w + step), vec![mean(m, u.g, h.beta2)])
        },
    },
];

/// The optimizer of that name.
///
/// # Errors
/// There is none; the message names all.
pub fn find(name: &str) -> Result<&'static Optimizer, Error> {
    Ok(found(name)?)
}

fn found(name: &str) -> Result<&'static Optimizer> {
    let Some(row) = OPTIMIZERS.iter().find(|o| o.name == name) else {
        let names: Vec<&str> = OPTIMIZERS.iter().map(|o| o.name).collect();
        bail!("there is no optimizer '{name}'; there are {}", names.join(", "));
    };
    Ok(row)
}

impl Optimizer {
    /// The numbers that PyTorch, or else the paper, has.
    pub fn defaults(&self) -> Hyper {
        self.defaults
    }

    /// The updated parameter and states.
    ///
    /// # Errors
    /// Another number of states than the row names.
    pub(crate) fn update<'g>(&self, u: &Update<'g>) -> Result<(Expr<'g>, Vec<Expr<'g>>)> {
        ensure!(u.states.len() == self.states.len(), "{} keeps {} states", self.name, self.states.len());
        Ok((self.f)(u))
    }
}

/// √Σx²
fn norm(x: Expr<'_>) -> Expr<'_> {
    x.square().sum_all().sqrt()
}

/// βa + (1 - β)b
fn mean<'g>(a: Expr<'g>, b: Expr<'g>, beta: f64) -> Expr<'g> {
    beta * a + (1.0 - beta) * b
}

impl<'g> Update<'g> {
    /// g + λw
    fn decayed(&self) -> Expr<'g> {
        match self.hyper.weight_decay {
            0.0 => self.g,
            decay => self.g + decay * self.w,
        }
    }

    /// w - ηλw
    fn shrunk(&self) -> Expr<'g> {
        match self.hyper.weight_decay {
            0.0 => self.w,
            decay => (1.0 - self.lr * decay) * self.w,
        }
    }

    /// η m̂ / (√v̂ + ε), and m and v. The corrections 1 - βᵗ of both means are numbers: they are taken out of the
    /// quotient of tensors, which is η √(1 - β₂ᵗ) / (1 - β₁ᵗ) m / (√v + ε √(1 - β₂ᵗ)).
    fn adaptive(&self, g: Expr<'g>, rate: Expr<'g>) -> (Expr<'g>, Vec<Expr<'g>>) {
        let Hyper { beta1, beta2, epsilon, .. } = self.hyper;
        let (m, v) = (mean(self.states[0], g, beta1), mean(self.states[1], g.square(), beta2));
        let correction = |beta: f64| 1.0 - self.t.like(beta).pow(self.t);
        let root = correction(beta2).sqrt();
        (m / (v.sqrt() + epsilon * root) * (rate * root / correction(beta1)), vec![m, v])
    }
}
