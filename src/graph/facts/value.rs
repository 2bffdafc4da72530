//! Arithmetic on the known elements of small tensors, exactly as running the model would compute it, or not at all.

use crate::graph::fact::MAX_ELEMENTS;
use crate::graph::{Dim, Dims, Fact, Scalar, Value};
use crate::onnx::ElementType;
use half::{bf16, f16};
use std::cmp::Ordering;

/// Arithmetic whose results have one element type.
pub struct Calculator<'a> {
    /// The symbolic sizes of the graph.
    pub dims: &'a Dims,
    /// The element type of the output.
    pub element: ElementType,
}

/// What an elementwise operator does to one element of each operand; `None` where the result is not known.
pub type Function = fn(&Calculator, &[Scalar]) -> Option<Scalar>;

impl Calculator<'_> {
    /// The integer, where the element type can hold it.
    pub fn int(&self, n: i64) -> Option<Scalar> {
        let bits = self.element.bits()?;
        let fits = match self.element {
            ElementType::Bool => (0..=1).contains(&n),
            ElementType::Uint64 => n >= 0,
            e if e.is_signed_integer() => bits == 64 || (-(1i64 << (bits - 1))..1i64 << (bits - 1)).contains(&n),
            e if e.is_integer() => (0..1i64 << bits).contains(&n),
            _ => false,
        };
        fits.then_some(Scalar::Int(Dim::Known(n)))
    }

    /// The integer, where the element type can hold it; sizes fit the types that shapes are computed in.
    pub fn dim(&self, dim: Dim) -> Option<Scalar> {
        match dim {
            Dim::Known(n) => self.int(n),
            Dim::Symbol(_) => {
                matches!(self.element, ElementType::Int64 | ElementType::Int32).then_some(Scalar::Int(dim))
            }
        }
    }

    /// The number rounded to the element type; `None` for types whose arithmetic is not followed.
    pub fn float(&self, v: f64) -> Option<Scalar> {
        Some(Scalar::Float(match self.element {
            ElementType::Double => v,
            ElementType::Float => (v as f32).into(),
            // By way of 32 bits, as operators compute.
            ElementType::Float16 => f16::from_f32(v as f32).into(),
            ElementType::Bfloat16 => bf16::from_f32(v as f32).into(),
            _ => return None,
        }))
    }

    /// As [`Calculator::float`], but for infinities and what is no number: they come of overflow and division by zero.
    fn finite(&self, v: f64) -> Option<Scalar> {
        self.float(v).filter(|s| matches!(s, Scalar::Float(v) if v.is_finite()))
    }

    fn binary(
        &self,
        x: &[Scalar],
        ints: fn(i64, i64) -> Option<i64>,
        symbols: impl Fn(Dim, Dim) -> Option<Dim>,
        floats: fn(f64, f64) -> f64,
    ) -> Option<Scalar> {
        match *x {
            [Scalar::Int(Dim::Known(a)), Scalar::Int(Dim::Known(b))] => self.int(ints(a, b)?),
            [Scalar::Int(a), Scalar::Int(b)] => self.dim(symbols(a, b)?),
            [Scalar::Float(a), Scalar::Float(b)] => self.finite(floats(a, b)),
            _ => None,
        }
    }

    /// One of two operands; infinities are among them.
    fn select(
        &self,
        a: Scalar,
        b: Scalar,
        ints: fn(i64, i64) -> i64,
        symbols: fn(&Dims, Dim, Dim) -> Dim,
        floats: fn(f64, f64) -> f64,
    ) -> Option<Scalar> {
        match (a, b) {
            (Scalar::Int(Dim::Known(a)), Scalar::Int(Dim::Known(b))) => self.int(ints(a, b)),
            (Scalar::Int(a), Scalar::Int(b)) => self.dim(symbols(self.dims, a, b)),
            (Scalar::Float(a), Scalar::Float(b)) => self.float(floats(a, b)),
            _ => None,
        }
    }

    fn bool(&self, v: bool) -> Option<Scalar> {
        Some(Scalar::Int(Dim::Known(v.into())))
    }
}

pub fn add(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    c.binary(x, i64::checked_add, |a, b| Some(c.dims.add(a, b)), |a, b| a + b)
}

pub fn sub(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    c.binary(x, i64::checked_sub, |a, b| Some(c.dims.sub(a, b)), |a, b| a - b)
}

pub fn mul(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    c.binary(x, i64::checked_mul, |a, b| Some(c.dims.mul(a, b)), |a, b| a * b)
}

/// Integers are divided towards zero.
pub fn div(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    let symbols = |a: Dim, b: Dim| {
        let quotient = (b != Dim::Known(0)).then(|| c.dims.floor_div(a, b))?;
        // Rounding down is rounding towards zero where nothing is negative, or nothing is left.
        let same = c.dims.is_non_negative(a) && c.dims.is_non_negative(b) || c.dims.mul(quotient, b) == a;
        same.then_some(quotient)
    };
    c.binary(x, i64::checked_div, symbols, |a, b| a / b)
}

/// The remainder with the sign of the divisor, as integers have it.
pub fn modulo(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    match *x {
        [Scalar::Int(Dim::Known(a)), Scalar::Int(Dim::Known(b))] => {
            let remainder = a.checked_rem(b)?;
            c.int(if remainder != 0 && (remainder < 0) != (b < 0) { remainder + b } else { remainder })
        }
        [Scalar::Int(a), Scalar::Int(Dim::Known(b))] if b > 0 => c.dim(c.dims.modulo(a, b.into())),
        _ => None,
    }
}

pub fn neg(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    match *x {
        [Scalar::Int(Dim::Known(a))] => c.int(a.checked_neg()?),
        [Scalar::Int(a)] => c.dim(c.dims.mul(a, Dim::Known(-1))),
        [Scalar::Float(a)] => c.float(-a),
        _ => None,
    }
}

pub fn abs(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    match *x {
        [Scalar::Int(Dim::Known(a))] => c.int(a.checked_abs()?),
        [Scalar::Int(a)] if c.dims.is_non_negative(a) => c.dim(a),
        [Scalar::Float(a)] => c.float(a.abs()),
        _ => None,
    }
}

pub fn sign(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    match *x {
        [Scalar::Int(Dim::Known(a))] => c.int(a.signum()),
        [Scalar::Float(0.0)] => c.float(0.0),
        [Scalar::Float(a)] if !a.is_nan() => c.float(a.signum()),
        _ => None,
    }
}

pub fn sqrt(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    float_only(x, |a| c.finite(a.sqrt()))
}

pub fn reciprocal(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    float_only(x, |a| c.finite(1.0 / a))
}

pub fn floor(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    float_only(x, |a| c.float(a.floor()))
}

pub fn ceil(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    float_only(x, |a| c.float(a.ceil()))
}

/// Halves go to the even neighbour.
pub fn round(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    float_only(x, |a| c.float(a.round_ties_even()))
}

fn float_only(x: &[Scalar], f: impl Fn(f64) -> Option<Scalar>) -> Option<Scalar> {
    match *x {
        [Scalar::Float(a)] => f(a),
        _ => None,
    }
}

/// Powers that are products: others differ in the last bit from one runtime to the next.
pub fn pow(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    let [base, exponent] = *x else { return None };
    let exponent = match exponent {
        Scalar::Int(n) => n.known()?,
        Scalar::Float(v) if v.fract() == 0.0 && v.abs() < 64.0 => v as i64,
        Scalar::Float(_) => return None,
    };
    match base {
        Scalar::Int(Dim::Known(a)) => c.int(a.checked_pow(u32::try_from(exponent).ok()?)?),
        Scalar::Int(a) if exponent == 1 => c.dim(a),
        Scalar::Int(a) if exponent == 2 => c.dim(c.dims.mul(a, a)),
        Scalar::Float(a) => match exponent {
            0 => c.float(1.0),
            1 => c.float(a),
            2 => c.finite(a * a),
            -1 => c.finite(1.0 / a),
            _ => None,
        },
        Scalar::Int(_) => None,
    }
}

pub fn max(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    fold(x, |a, b| c.select(a, b, |a, b| a.max(b), Dims::max, larger))
}

pub fn min(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    fold(x, |a, b| c.select(a, b, |a, b| a.min(b), Dims::min, smaller))
}

pub fn sum(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    fold(x, |a, b| add(c, &[a, b]))
}

fn fold(x: &[Scalar], f: impl Fn(Scalar, Scalar) -> Option<Scalar>) -> Option<Scalar> {
    let (&first, rest) = x.split_first()?;
    rest.iter().try_fold(first, |a, &b| f(a, b))
}

pub fn not(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    match *x {
        [a] => c.bool(!truth(a)?),
        _ => None,
    }
}

pub fn and(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    c.bool(x.iter().map(|&a| truth(a)).collect::<Option<Vec<_>>>()?.into_iter().all(|a| a))
}

pub fn or(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    c.bool(x.iter().map(|&a| truth(a)).collect::<Option<Vec<_>>>()?.into_iter().any(|a| a))
}

pub fn xor(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    match *x {
        [a, b] => c.bool(truth(a)? != truth(b)?),
        _ => None,
    }
}

pub fn equal(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    match *x {
        [Scalar::Float(a), Scalar::Float(b)] => c.bool(a == b),
        [Scalar::Int(a), Scalar::Int(b)] => c.bool(compare(c.dims, a, b)? == Ordering::Equal),
        _ => None,
    }
}

pub fn greater(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    ordered(c, x, |o| o == Ordering::Greater)
}

pub fn less(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    ordered(c, x, |o| o == Ordering::Less)
}

pub fn greater_or_equal(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    ordered(c, x, |o| o != Ordering::Less).or_else(|| at_least(c, x.first()?, x.get(1)?))
}

pub fn less_or_equal(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    ordered(c, x, |o| o != Ordering::Greater).or_else(|| at_least(c, x.get(1)?, x.first()?))
}

fn ordered(c: &Calculator, x: &[Scalar], test: fn(Ordering) -> bool) -> Option<Scalar> {
    match *x {
        [Scalar::Float(a), Scalar::Float(b)] => c.bool(a.partial_cmp(&b).is_some_and(test)),
        [Scalar::Int(a), Scalar::Int(b)] => c.bool(test(compare(c.dims, a, b)?)),
        _ => None,
    }
}

/// True where `a - b` is a size; it tells nothing otherwise.
fn at_least(c: &Calculator, a: &Scalar, b: &Scalar) -> Option<Scalar> {
    let (Scalar::Int(a), Scalar::Int(b)) = (*a, *b) else { return None };
    c.dims.is_non_negative(c.dims.sub(a, b)).then(|| c.bool(true)).flatten()
}

/// How two integers compare where that is the same in every run.
fn compare(dims: &Dims, a: Dim, b: Dim) -> Option<Ordering> {
    let above = |a, b| dims.is_non_negative(dims.sub(dims.sub(a, b), Dim::Known(1)));
    match (a, b) {
        (Dim::Known(a), Dim::Known(b)) => Some(a.cmp(&b)),
        _ if a == b => Some(Ordering::Equal),
        _ if above(a, b) => Some(Ordering::Greater),
        _ if above(b, a) => Some(Ordering::Less),
        _ => None,
    }
}

/// `x[0] ? x[1] : x[2]`
pub fn choose(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    let [condition, yes, no] = *x else { return None };
    if yes == no { keep(c, &[yes]) } else { keep(c, &[if truth(condition)? { yes } else { no }]) }
}

/// The element itself.
pub fn keep(_: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    x.first().copied()
}

/// What Cast does: floating-point numbers are cut off towards zero. Casts that overflow depend on the runtime.
pub fn cast(c: &Calculator, x: &[Scalar]) -> Option<Scalar> {
    let [a] = *x else { return None };
    match a {
        _ if c.element == ElementType::Bool => c.bool(truth(a)?),
        Scalar::Int(a) if c.element.is_integer() => c.dim(a),
        Scalar::Int(a) => a.known().filter(|a| a.unsigned_abs() <= 1 << 53).and_then(|a| c.finite(a as f64)),
        Scalar::Float(a) if c.element.is_integer() => {
            (a.abs() < (1i64 << 53) as f64).then_some(a.trunc() as i64).and_then(|a| c.int(a))
        }
        Scalar::Float(a) => c.float(a).filter(|&s| s == Scalar::Float(a) || c.finite(a).is_some()),
    }
}

/// Whether the element counts as true.
pub fn truth(a: Scalar) -> Option<bool> {
    match a {
        Scalar::Int(a) => a.known().map(|a| a != 0),
        Scalar::Float(a) => (!a.is_nan()).then_some(a != 0.0),
    }
}

/// The larger number; unlike [`f64::max`] it is no number where an operand is none.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

/// The dimensions as numbers, where the tensor is small enough for its elements to be followed.
pub fn small(shape: &[Dim]) -> Option<Vec<usize>> {
    let sizes: Vec<usize> = shape.iter().map(|d| usize::try_from(d.known()?).ok()).collect::<Option<_>>()?;
    let count = sizes.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (count <= MAX_ELEMENTS).then_some(sizes)
}

/// The elements of a tensor of that shape, each from its coordinates.
pub fn build(shape: &[Dim], mut element: impl FnMut(&[usize]) -> Option<Scalar>) -> Option<Value> {
    let sizes = small(shape)?;
    let count = sizes.iter().product();
    let mut at = vec![0; sizes.len()];
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        elements.push(element(&at)?);
        for (i, size) in at.iter_mut().zip(&sizes).rev() {
            *i += 1;
            if *i < *size {
                break;
            }
            *i = 0;
        }
    }
    Some(Value::Elements(elements.into()))
}

/// An operand whose elements are looked up by coordinates of the shape that it broadcasts to.
pub struct Operand {
    elements: std::rc::Rc<[Scalar]>,
    sizes: Vec<usize>,
}

impl Operand {
    pub fn new(fact: &Fact) -> Option<Self> {
        let sizes = small(fact.shape.as_deref()?)?;
        Some(Operand { elements: fact.elements()?, sizes })
    }

    /// The element there; dimensions of one element repeat it.
    pub fn get(&self, at: &[usize]) -> Option<Scalar> {
        let at = at.get(at.len().checked_sub(self.sizes.len())?..)?;
        let index = self.sizes.iter().zip(at).fold(0, |index, (&n, &i)| index * n + if n == 1 { 0 } else { i });
        self.elements.get(index).copied()
    }
}

/// The value of an elementwise function of operands that broadcast to `shape`.
pub fn elementwise(c: &Calculator, shape: Option<&[Dim]>, operands: &[&Fact], f: Function) -> Option<Value> {
    if operands.iter().any(|o| o.value.is_none()) {
        return None;
    }
    if let Some(scalars) = operands.iter().map(|o| o.uniform()).collect::<Option<Vec<_>>>() {
        return f(c, &scalars).map(Value::Uniform);
    }
    let shape = shape?;
    let operands: Vec<Operand> = operands.iter().map(|o| Operand::new(o)).collect::<Option<_>>()?;
    let mut scalars = Vec::with_capacity(operands.len());
    build(shape, |at| {
        scalars.clear();
        for operand in &operands {
            scalars.push(operand.get(at)?);
        }
        f(c, &scalars)
    })
}

/// The value of a tensor that holds elements of another in other places: `source` gives the coordinates.
pub fn rearrange(fact: &Fact, shape: Option<&[Dim]>, source: impl Fn(&[usize]) -> Option<Vec<usize>>) -> Option<Value> {
    match fact.value.as_ref()? {
        Value::Uniform(scalar) => Some(Value::Uniform(*scalar)),
        Value::Elements(_) => {
            let operand = Operand::new(fact)?;
            build(shape?, |at| operand.get(&source(at)?))
        }
    }
}
