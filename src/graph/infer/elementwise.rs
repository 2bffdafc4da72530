//! Operators that compute each element of the output from one element of each input, which broadcast.

use super::context::{Context, Row, broadcast_known, tensor};
use super::value::{self, Calculator, Function};
use crate::graph::{Dim, Fact, Shape};
use crate::onnx::ElementType;
use anyhow::Result;

pub const ROWS: &[Row] = &[
    ("Abs", |c| map(c, value::abs)),
    ("Acos", same),
    ("Acosh", same),
    ("Add", |c| binary(c, value::add)),
    ("And", |c| compare(c, value::and)),
    ("Asin", same),
    ("Asinh", same),
    ("Atan", same),
    ("Atanh", same),
    ("BitCast", bit_cast),
    ("BitShift", |c| binary(c, unknown)),
    ("BitwiseAnd", |c| binary(c, unknown)),
    ("BitwiseNot", same),
    ("BitwiseOr", |c| binary(c, unknown)),
    ("BitwiseXor", |c| binary(c, unknown)),
    ("Cast", |c| cast(c, c.type_attribute("to"))),
    ("CastLike", |c| cast(c, c.element(1))),
    ("Ceil", |c| map(c, value::ceil)),
    ("Celu", same),
    ("Clip", clip),
    ("Cos", same),
    ("Cosh", same),
    ("Div", |c| binary(c, value::div)),
    ("Elu", same),
    ("Equal", |c| compare(c, value::equal)),
    ("Erf", same),
    ("Exp", same),
    ("Floor", |c| map(c, value::floor)),
    ("Gelu", same),
    ("Greater", |c| compare(c, value::greater)),
    ("GreaterOrEqual", |c| compare(c, value::greater_or_equal)),
    ("HardSigmoid", same),
    ("HardSwish", same),
    ("Identity", identity),
    ("IsInf", predicate),
    ("IsNaN", predicate),
    ("LeakyRelu", same),
    ("Less", |c| compare(c, value::less)),
    ("LessOrEqual", |c| compare(c, value::less_or_equal)),
    ("Log", same),
    ("Max", |c| variadic(c, value::max)),
    ("Mean", |c| variadic(c, unknown)),
    ("Min", |c| variadic(c, value::min)),
    ("Mish", same),
    ("Mod", modulo),
    ("Mul", |c| binary(c, value::mul)),
    ("Neg", |c| map(c, value::neg)),
    ("Not", |c| compare(c, value::not)),
    ("Or", |c| compare(c, value::or)),
    ("PRelu", same),
    ("Pow", |c| binary(c, value::pow)),
    ("Reciprocal", |c| map(c, value::reciprocal)),
    ("Relu", relu),
    ("Round", |c| map(c, value::round)),
    ("Selu", same),
    ("Shrink", same),
    ("Sigmoid", same),
    ("Sign", |c| map(c, value::sign)),
    ("Sin", same),
    ("Sinh", same),
    ("Softplus", same),
    ("Softsign", same),
    ("Sqrt", |c| map(c, value::sqrt)),
    ("Sub", |c| binary(c, value::sub)),
    ("Sum", |c| variadic(c, value::sum)),
    ("SwiGLU", |c| binary(c, unknown)),
    ("Swish", same),
    ("Tan", same),
    ("Tanh", same),
    ("ThresholdedRelu", same),
    ("Where", choose),
    ("Xor", |c| compare(c, value::xor)),
];

/// The output is like the first input.
pub fn same(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![c.like(0)])
}

/// The output is the first input.
fn identity(c: &Context) -> Result<Vec<Fact>> {
    Ok(c.input(0).cloned().into_iter().collect())
}

/// Of values that are not followed.
fn unknown(_: &Calculator, _: &[crate::graph::Scalar]) -> Option<crate::graph::Scalar> {
    None
}

fn map(c: &Context, f: Function) -> Result<Vec<Fact>> {
    broadcasting(c, 1, c.element(0), f)
}

/// Every operand has the element type of the result, but for the exponent of Pow, which comes second.
fn binary(c: &Context, f: Function) -> Result<Vec<Fact>> {
    let same_types = c.op.op_type != "Pow";
    broadcasting(c, 2, c.element(0).or_else(|| c.element(1).filter(|_| same_types)), f)
}

fn variadic(c: &Context, f: Function) -> Result<Vec<Fact>> {
    let element = (0..c.inputs.len()).find_map(|i| c.element(i));
    broadcasting(c, c.inputs.len(), element, f)
}

fn compare(c: &Context, f: Function) -> Result<Vec<Fact>> {
    broadcasting(c, if c.op.op_type == "Not" { 1 } else { 2 }, Some(ElementType::Bool), f)
}

fn predicate(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: Some(ElementType::Bool), ..c.like(0) }])
}

fn cast(c: &Context, element: Option<ElementType>) -> Result<Vec<Fact>> {
    let mut facts = broadcasting(c, 1, element, value::cast)?;
    if element.is_none() {
        facts.iter_mut().for_each(|f| f.value = None);
    }
    Ok(facts)
}

fn bit_cast(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.type_attribute("to"), ..c.like(0) }])
}

/// With `fmod` the remainder has the sign of the dividend.
fn modulo(c: &Context) -> Result<Vec<Fact>> {
    binary(c, if c.flag("fmod") { unknown } else { value::modulo })
}

fn relu(c: &Context) -> Result<Vec<Fact>> {
    map(c, |c, x| {
        let zero = match x.first()? {
            crate::graph::Scalar::Int(_) => c.int(0)?,
            crate::graph::Scalar::Float(_) => c.float(0.0)?,
        };
        value::max(c, &[*x.first()?, zero])
    })
}

/// The bounds are inputs since opset 11, attributes before.
fn clip(c: &Context) -> Result<Vec<Fact>> {
    let mut fact = c.like(0);
    if !c.has("min")
        && !c.has("max")
        && let (Some(element), Some(x)) = (c.element(0), c.input(0))
    {
        let calculator = Calculator { dims: c.dims(), element };
        fact.value = x.value.clone();
        for (i, f) in [(1, value::max as Function), (2, value::min)] {
            if let (Some(bound), true) = (c.input(i), fact.value.is_some()) {
                let so_far = Fact { value: fact.value.take(), ..fact.clone() };
                fact.value = value::elementwise(&calculator, so_far.shape.as_deref(), &[&so_far, bound], f);
            }
        }
    }
    Ok(vec![fact])
}

fn choose(c: &Context) -> Result<Vec<Fact>> {
    broadcasting(c, 3, c.element(1).or(c.element(2)), value::choose)
}

/// The inputs, `count` of them, broadcast.
fn broadcasting(c: &Context, count: usize, element: Option<ElementType>, f: Function) -> Result<Vec<Fact>> {
    let operands: Option<Vec<&Fact>> = (0..count).map(|i| c.input(i)).collect();
    let Some(operands) = operands.filter(|o| !o.is_empty()) else { return Ok(vec![tensor(element, None)]) };
    let shapes: Vec<Option<&[Dim]>> = operands.iter().map(|o| o.shape.as_deref()).collect();
    let shape: Option<Shape> = match shared_shape(&operands) {
        Some(shape) => Some(shape),
        None => broadcast_known(c.dims(), &shapes)?.map(Shape::from),
    };
    let value = element.and_then(|element| {
        value::elementwise(&Calculator { dims: c.dims(), element }, shape.as_deref(), &operands, f)
    });
    Ok(vec![Fact { value, ..Fact::tensor(element, shape) }])
}

/// The shape of every operand, where it is one: nothing is stored again.
fn shared_shape(operands: &[&Fact]) -> Option<Shape> {
    let (first, rest) = operands.split_first()?;
    let shape = first.shape.as_ref()?;
    rest.iter().all(|o| o.shape.as_deref() == Some(shape)).then(|| shape.clone())
}
