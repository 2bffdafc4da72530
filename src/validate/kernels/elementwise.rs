//! Functions of each element: tract has them in float32 only, and some of them not to the letter.

use super::{Array, Call, broadcast, row};

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::element_wise::ElementWiseMiniOp;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::element_wise::ElementWiseOp;

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// A function of one element and two attributes.
#[derive(Clone, Debug, PartialEq)]
struct Function {
    name: &'static str,
    a: f64,
    b: f64,
}

impl Eq for Function {}

/// ONNX operator, its attributes with their defaults, its formula.
struct Row {
    name: &'static str,
    a: (&'static str, f32),
    b: (&'static str, f32),
    f: fn(f64, f64, f64) -> f64,
}

const NONE: (&str, f32) = ("", 0.0);

const ROWS: &[Row] = &[
    Row { name: "Sigmoid", a: NONE, b: NONE, f: |x, _, _| sigmoid(x) },
    Row { name: "Erf", a: NONE, b: NONE, f: |x, _, _| libm::erf(x) },
    Row { name: "Round", a: NONE, b: NONE, f: |x, _, _| x.round_ties_even() },
    Row { name: "Relu", a: NONE, b: NONE, f: |x, _, _| if x < 0.0 { 0.0 } else { x } },
    Row { name: "LeakyRelu", a: ("alpha", 0.01), b: NONE, f: |x, a, _| if x < 0.0 { a * x } else { x } },
    Row { name: "ThresholdedRelu", a: ("alpha", 1.0), b: NONE, f: |x, a, _| if x > a { x } else { 0.0 } },
    Row { name: "Elu", a: ("alpha", 1.0), b: NONE, f: |x, a, _| if x < 0.0 { a * x.exp_m1() } else { x } },
    Row { name: "Celu", a: ("alpha", 1.0), b: NONE, f: |x, a, _| if x < 0.0 { a * (x / a).exp_m1() } else { x } },
    Row {
        name: "Selu",
        a: ("alpha", 1.673_263_2),
        b: ("gamma", 1.050_701),
        f: |x, a, g| g * if x < 0.0 { a * x.exp_m1() } else { x },
    },
    Row { name: "Softplus", a: NONE, b: NONE, f: |x, _, _| softplus(x) },
    Row { name: "Softsign", a: NONE, b: NONE, f: |x, _, _| x / (1.0 + x.abs()) },
    Row { name: "HardSigmoid", a: ("alpha", 0.2), b: ("beta", 0.5), f: |x, a, b| (a * x + b).clamp(0.0, 1.0) },
    Row { name: "HardSwish", a: NONE, b: NONE, f: |x, _, _| x * (x / 6.0 + 0.5).clamp(0.0, 1.0) },
    Row { name: "Swish", a: ("alpha", 1.0), b: NONE, f: |x, a, _| x * sigmoid(a * x) },
    Row { name: "QuickGelu", a: ("alpha", 1.702), b: NONE, f: |x, a, _| x * sigmoid(a * x) },
    Row { name: "Mish", a: NONE, b: NONE, f: |x, _, _| x * softplus(x).tanh() },
    Row { name: "Shrink", a: ("lambd", 0.5), b: ("bias", 0.0), f: shrink },
];

/// Functions of two inputs that broadcast.
pub const SUMS: &[super::Row] = &[
    row("BiasGelu", |c| binary(c, |x, b| gelu(x + b))).domain("com.microsoft"),
    row("FastGelu", |c| binary(c, |x, b| gelu_tanh(x + b))).domain("com.microsoft"),
    row("SwiGLU", |c| {
        let alpha = c.float("alpha", 1.0);
        binary(c, |a, b| a * sigmoid(alpha * a) * b)
    }),
];

/// A second input that is left out is zero.
fn binary(c: &Call, f: impl Fn(f64, f64) -> f64) -> anyhow::Result<Vec<Array>> {
    let zero = Array::scalar(0.0);
    let (a, b) = (c.x()?, c.opt(1).unwrap_or(&zero));
    let dims = broadcast(&[&a.dims, &b.dims])?;
    Ok(vec![Array::from_fn(&dims, |index| f(a.broadcast_at(index), b.broadcast_at(index)))?])
}

/// The activation that an operator has behind it, with its alpha, beta and gamma; for Clip the first two are the bounds.
pub fn activation(name: &str, [a, b, g]: [f64; 3]) -> anyhow::Result<Box<dyn Fn(f64) -> f64>> {
    let f: fn(f64, f64, f64, f64) -> f64 = match name {
        "" => |x, _, _, _| x,
        "Clip" => |x, a, b, _| x.max(a).min(b),
        "Tanh" => |x, _, _, _| x.tanh(),
        "Selu" => |x, a, _, g| g * if x < 0.0 { a * x.exp_m1() } else { x },
        _ => {
            let f = ROWS.iter().find(|r| r.name == name).with_context(|| format!("activation {name}"))?.f;
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

impl ElementWiseMiniOp for Function {
    fn name(&self) -> String {
        format!("{}64", self.name)
    }

    fn eval_in_place(&self, t: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        let f = match self.name {
            "Gelu" => |x, _, _| gelu(x),
            "GeluTanh" => |x, _, _| gelu_tanh(x),
            name => ROWS.iter().find(|r| r.name == name).context("a row of the table")?.f,
        };
        match t.datum_type() {
            DatumType::F64 => {
                for x in t.try_as_plain_ram_mut()?.as_slice_mut::<f64>()? {
                    *x = f(*x, self.a, self.b);
                }
            }
            // Relu takes integers too, and what an operator holds back in float32 stays so.
            other => {
                let mut wide = t.cast_to_dt(DatumType::F64)?.into_owned();
                for x in wide.try_as_plain_ram_mut()?.as_slice_mut::<f64>()? {
                    *x = f(*x, self.a, self.b);
                }
                *t = wide.cast_to_dt(other)?.into_owned();
            }
        }
        Ok(())
    }
}

/// IsNaN and IsInf.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    nan: bool,
    negative: bool,
    positive: bool,
}

impl ElementWiseMiniOp for Class {
    fn name(&self) -> String {
        if self.nan { "IsNaN64" } else { "IsInf64" }.to_owned()
    }

    fn output_type(&self, _: DatumType) -> Option<DatumType> {
        Some(DatumType::Bool)
    }

    fn eval_out_of_place(&self, t: &Tensor, _: Option<DatumType>) -> TractResult<Tensor> {
        let wide = t.cast_to_dt(DatumType::F64)?;
        let is = |x: f64| match self.nan {
            true => x.is_nan(),
            false => x.is_infinite() && if x < 0.0 { self.negative } else { self.positive },
        };
        let found: Vec<bool> = wide.try_as_plain_ram()?.as_slice::<f64>()?.iter().map(|&x| is(x)).collect();
        Tensor::from_shape(t.shape(), &found)
    }
}

fn attribute(node: &NodeProto, (name, default): (&str, f32)) -> f64 {
    node.attribute.iter().find(|a| a.name == name).map_or(default, |a| a.f).into()
}

fn flag(node: &NodeProto, name: &str) -> bool {
    node.attribute.iter().find(|a| a.name == name).is_none_or(|a| a.i != 0)
}

fn function(_: &ParsingContext, node: &NodeProto) -> Built {
    let row = ROWS.iter().find(|r| r.name == node.op_type).context("a row of the table")?;
    build(Function { name: row.name, a: attribute(node, row.a), b: attribute(node, row.b) })
}

fn build(op: impl ElementWiseMiniOp) -> Built {
    Ok((expand(ElementWiseOp(Box::new(op))), vec![]))
}

/// Puts the kernels in the place of tract's own.
pub fn register(operators: &mut OnnxOpRegister) {
    for row in ROWS {
        operators.insert(row.name, function);
    }
    operators.insert("Gelu", |_, node| {
        let tanh = node.attribute.iter().any(|a| a.name == "approximate" && a.s == b"tanh"[..]);
        build(Function { name: if tanh { "GeluTanh" } else { "Gelu" }, a: 0.0, b: 0.0 })
    });
    operators.insert("IsNaN", |_, _| build(Class { nan: true, negative: false, positive: false }));
    operators.insert("IsInf", |_, node| {
        build(Class { nan: false, negative: flag(node, "detect_negative"), positive: flag(node, "detect_positive") })
    });
}
