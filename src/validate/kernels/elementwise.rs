//! Functions of each element.

use super::{Array, Call, Element, Row, broadcast, row};
use crate::onnx::ElementType;
use anyhow::Context;

const MICROSOFT: &str = "com.microsoft";

/// A function of one element: ONNX operator, its attributes with their defaults, its formula.
struct Function {
    name: &'static str,
    a: (&'static str, f32),
    b: (&'static str, f32),
    f: fn(f64, f64, f64) -> f64,
}

const NONE: (&str, f32) = ("", 0.0);

const FUNCTIONS: &[Function] = &[
    Function { name: "Sigmoid", a: NONE, b: NONE, f: |x, _, _| sigmoid(x) },
    Function { name: "Erf", a: NONE, b: NONE, f: |x, _, _| libm::erf(x) },
    Function { name: "Round", a: NONE, b: NONE, f: |x, _, _| x.round_ties_even() },
    Function { name: "Relu", a: NONE, b: NONE, f: |x, _, _| if x < 0.0 { 0.0 } else { x } },
    Function { name: "LeakyRelu", a: ("alpha", 0.01), b: NONE, f: |x, a, _| if x < 0.0 { a * x } else { x } },
    Function { name: "ThresholdedRelu", a: ("alpha", 1.0), b: NONE, f: |x, a, _| if x > a { x } else { 0.0 } },
    Function { name: "Elu", a: ("alpha", 1.0), b: NONE, f: |x, a, _| if x < 0.0 { a * x.exp_m1() } else { x } },
    Function { name: "Celu", a: ("alpha", 1.0), b: NONE, f: |x, a, _| if x < 0.0 { a * (x / a).exp_m1() } else { x } },
    Function {
        name: "Selu",
        a: ("alpha", 1.673_263_2),
        b: ("gamma", 1.050_701),
        f: |x, a, g| g * if x < 0.0 { a * x.exp_m1() } else { x },
    },
    Function { name: "Softplus", a: NONE, b: NONE, f: |x, _, _| softplus(x) },
    Function { name: "Softsign", a: NONE, b: NONE, f: |x, _, _| x / (1.0 + x.abs()) },
    Function { name: "HardSigmoid", a: ("alpha", 0.2), b: ("beta", 0.5), f: |x, a, b| (a * x + b).clamp(0.0, 1.0) },
    Function { name: "HardSwish", a: NONE, b: NONE, f: |x, _, _| x * (x / 6.0 + 0.5).clamp(0.0, 1.0) },
    Function { name: "Swish", a: ("alpha", 1.0), b: NONE, f: |x, a, _| x * sigmoid(a * x) },
    Function { name: "QuickGelu", a: ("alpha", 1.702), b: NONE, f: |x, a, _| x * sigmoid(a * x) },
    Function { name: "Mish", a: NONE, b: NONE, f: |x, _, _| x * softplus(x).tanh() },
    Function { name: "Shrink", a: ("lambd", 0.5), b: ("bias", 0.0), f: shrink },
];

pub const ROWS: &[Row] = &[
    row("Sigmoid", each).alike(),
    row("Erf", each).alike(),
    row("Round", each).alike(),
    row("Relu", each).alike(),
    row("LeakyRelu", each).alike(),
    row("ThresholdedRelu", each).alike(),
    row("Elu", each).alike(),
    row("Celu", each).alike(),
    row("Selu", each).alike(),
    row("Softplus", each).alike(),
    row("Softsign", each).alike(),
    row("HardSigmoid", each).alike(),
    row("HardSwish", each).alike(),
    row("Swish", each).alike(),
    row("QuickGelu", each).alike().domain(MICROSOFT),
    row("Mish", each).alike(),
    row("Gelu", |c| {
        let tanh = c.string("approximate", "none") == "tanh";
        Ok(vec![c.x()?.map(if tanh { gelu_tanh } else { gelu })])
    })
    .alike(),
    row("Gelu", |c| Ok(vec![c.x()?.map(gelu)])).domain(MICROSOFT).alike(),
    row("IsNaN", |c| classified(c, f64::is_nan)),
    row("IsInf", |c| {
        let (negative, positive) = (c.int("detect_negative", 1) != 0, c.int("detect_positive", 1) != 0);
        classified(c, |x| x.is_infinite() && if x < 0.0 { negative } else { positive })
    }),
    row("BiasGelu", |c| binary(c, |x, b| gelu(x + b))).domain(MICROSOFT),
    row("FastGelu", |c| binary(c, |x, b| gelu_tanh(x + b))).domain(MICROSOFT),
    row("SwiGLU", |c| {
        let alpha = c.float("alpha", 1.0);
        binary(c, |a, b| a * sigmoid(alpha * a) * b)
    }),
];

/// The function with the operator's name, of each element.
fn each(c: &Call) -> anyhow::Result<Vec<Array>> {
    let row = FUNCTIONS.iter().find(|f| f.name == c.node.op_type()).context("a row of the table")?;
    let (a, b) = (c.float(row.a.0, row.a.1), c.float(row.b.0, row.b.1));
    Ok(vec![c.x()?.map(|x| (row.f)(x, a, b))])
}

/// Whether each element is of a class.
fn classified(c: &Call, f: impl Fn(f64) -> bool) -> anyhow::Result<Vec<Array>> {
    Ok(vec![c.x()?.map(|x| f64::from(f(x))).of(Element::Is(ElementType::Bool))])
}

/// A second input that is left out is zero.
fn binary(c: &Call, f: impl Fn(f64, f64) -> f64) -> anyhow::Result<Vec<Array>> {
    let zero = Array::scalar(0.0);
    let (a, b) = (c.x()?, c.opt(1).unwrap_or(&zero));
    let dims = broadcast(&[&a.dims, &b.dims])?;
    Ok(vec![Array::from_fn(&dims, |index| f(a.broadcast_at(index), b.broadcast_at(index)))?])
}

/// The activation that an operator has behind it, with its alpha, beta and gamma; for Clip the first two are the
/// bounds.
pub fn activation(name: &str, [a, b, g]: [f64; 3]) -> anyhow::Result<Box<dyn Fn(f64) -> f64>> {
    let f: fn(f64, f64, f64, f64) -> f64 = match name {
        "" => |x, _, _, _| x,
        "Clip" => |x, a, b, _| x.max(a).min(b),
        "Tanh" => |x, _, _, _| x.tanh(),
        "Selu" => |x, a, _, g| g * if x < 0.0 { a * x.exp_m1() } else { x },
        _ => {
            let f = FUNCTIONS.iter().find(|r| r.name == name).with_context(|| format!("activation {name}"))?.f;
            return Ok(Box::new(move |x| f(x, a, b)));
        }
    };
    Ok(Box::new(move |x| f(x, a, b, g)))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn shrink(x: f64, lambd: f64, bias: f64) -> f64 {
    if x < -lambd {
        x + bias
    } else if x > lambd {
        x - bias
    } else {
        0.0
    }
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

pub fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}
