//! Operators that compute each element from the elements in the same place.

pub mod facts;

use super::Slot::*;
use super::properties::{Arithmetic, Gives, Moves};
use super::{Call, Cotangents, Rule, rule};
use crate::expr::Expr;
use crate::graph::Poles;
use crate::graph::facts::value;
use crate::rules::facts::{same, unknown};
use anyhow::Result;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

const CONSTANT: &str = "piecewise constant, as in TensorFlow";
const MICROSOFT: &str = "com.microsoft";

/// The rows.
pub const RULES: &[Rule] = &[
    // Arithmetic.
    rule("Add", "da = dy, db = dy", &[Binary(|_a, _b, _y, dy| dy), Binary(|_a, _b, _y, dy| dy)])
        .values(value::add)
        .arithmetic(Arithmetic::Sum(1))
        .weights(&[0, 1]),
    rule("Sub", "da = dy, db = -dy", &[Binary(|_a, _b, _y, dy| dy), Binary(|_a, _b, _y, dy| -dy)])
        .values(value::sub)
        .arithmetic(Arithmetic::Sum(-1)),
    rule("Mul", "da = dy b, db = dy a", &[Binary(|_a, b, _y, dy| dy * b), Binary(|a, _b, _y, dy| dy * a)])
        .values(value::mul)
        .linear(2)
        .weights(&[0, 1])
        .squares(2)
        .arithmetic(Arithmetic::Product),
    rule("Div", "da = dy / b, db = -dy y / b", &[Binary(|_a, b, _y, dy| dy / b), Binary(|_a, b, y, dy| -(dy * y) / b)])
        .values(value::div)
        .linear(1)
        .poles(Poles::Divided)
        .arithmetic(Arithmetic::Within),
    rule("Mod", "da = dy, db = -dy (a - y) / b", &[Binary(|_a, _b, _y, dy| dy), Binary(modulo_b)])
        .facts(facts::modulo)
        .arithmetic(Arithmetic::Within)
        .attributes("fmod"),
    rule("Pow", "da = dy b aᵇ⁻¹, db = dy y ln a", &[Broadcast(pow_a), Broadcast(pow_b)])
        .facts(facts::power)
        .squares(1)
        .poles(Poles::Powers)
        .note("0 where b = 0 (da) and where a <= 0 (db)"),
    rule("Neg", "dx = -dy", &[Unary(|_x, _y, dy| -dy)]).parametrizes().values(value::neg).linear(1),
    rule("Reciprocal", "dx = -dy y²", &[Unary(|_x, y, dy| -(dy * y) * y)])
        .values(value::reciprocal)
        .poles(Poles::Somewhere),
    rule("Sum", "dxᵢ = dy", &[EachBroadcast(|c, _| c.dy())]).values(value::sum),
    rule("Mean", "dxᵢ = dy / n", &[EachBroadcast(|c, _| c.dy() / c.input_count() as i64)]),
    // Operators that hand elements on.
    rule("Identity", "dx = dy", &[Unary(|_x, _y, dy| dy)]).facts(facts::identity).moves(Moves::InOrder),
    rule("Cast", "dx = dy in the type of x", &[Try(cast)])
        .facts(|c| facts::cast(c, c.type_attribute("to")))
        .moves(Moves::InOrder)
        .types(&[("to", None)])
        .attributes("to saturate round_mode"),
    rule("CastLike", "dx = dy in the type of x", &[Try(cast), Stop("only its type matters")])
        .facts(|c| facts::cast(c, c.element(1)))
        .moves(Moves::InOrder)
        .attributes("saturate round_mode"),
    // Choices.
    rule("Abs", "dx = dy sign x", &[Unary(|x, _y, dy| dy * x.sign())])
        .values(value::abs)
        .arithmetic(Arithmetic::Within)
        .note("0 at 0"),
    rule("Sign", "dx = 0", &[Zero]).facts(|c| facts::map(c, value::sign)),
    rule("Floor", "none", &[Rounding(CONSTANT)]).facts(|c| facts::map(c, value::floor)),
    rule("Ceil", "none", &[Rounding(CONSTANT)]).facts(|c| facts::map(c, value::ceil)),
    rule("Round", "none", &[Rounding(CONSTANT)]).facts(|c| facts::map(c, value::round)),
    rule("Max", "dxᵢ = dy where xᵢ = y", &[Together(|c| extremum(c, |best, x| best.less(x)))])
        .facts(|c| facts::variadic(c, value::max))
        .arithmetic(Arithmetic::Within)
        .moves_integers()
        .note("in a tie the first operand gets all"),
    rule("Min", "dxᵢ = dy where xᵢ = y", &[Together(|c| extremum(c, |best, x| best.greater(x)))])
        .facts(|c| facts::variadic(c, value::min))
        .arithmetic(Arithmetic::Within)
        .moves_integers()
        .note("in a tie the first operand gets all"),
    rule(
        "Where",
        "da = dy where c, db = dy where not c",
        &[Stop("a condition"), Broadcast(|c| chosen(c, 1)), Broadcast(|c| chosen(c, 2))],
    )
    .facts(facts::choose)
    .moves(Moves::Chosen(1)),
    rule(
        "Clip",
        "dx = dy where min <= x <= max, dmin = Σ dy where x < min, dmax = Σ dy where x > max",
        &[Formula(clip), Broadcast(clip_min), Broadcast(clip_max)],
    )
    .facts(facts::clip)
    .compares()
    .arithmetic(Arithmetic::Within)
    .moves_integers()
    .attributes("min max")
    .note("dy at the bounds"),
    // Exponentials and logarithms.
    rule("Exp", "dx = dy y", &[Unary(|_x, y, dy| dy * y)]).parametrizes().gives(Gives::Powers),
    rule("Log", "dx = dy / x", &[Unary(|x, _y, dy| dy / x)]).poles(Poles::Somewhere),
    rule("Sqrt", "dx = dy / 2y", &[Unary(sqrt)]).values(value::sqrt).note("infinite at 0, but 0 where dy is"),
    rule("Erf", "dx = dy 2/√π e^(-x²)", &[Unary(|x, _y, dy| dy * (FRAC_2_SQRT_PI * (-(x * x)).exp()))]),
    // Angles and hyperbolic functions.
    rule("Sin", "dx = dy cos x", &[Unary(|x, _y, dy| dy * x.cos())]).periodic(),
    rule("Cos", "dx = -dy sin x", &[Unary(|x, _y, dy| -(dy * x.sin()))]).periodic(),
    rule("Tan", "dx = dy (1 + y²)", &[Unary(|_x, y, dy| dy * (1.0 + y * y))]).poles(Poles::Somewhere),
    rule("Asin", "dx = dy / √(1 - x²)", &[Unary(|x, _y, dy| dy / one_minus_square(x).sqrt())]),
    rule("Acos", "dx = -dy / √(1 - x²)", &[Unary(|x, _y, dy| -dy / one_minus_square(x).sqrt())]),
    rule("Atan", "dx = dy / (1 + x²)", &[Unary(|x, _y, dy| dy / (1.0 + x * x))]),
    rule("Sinh", "dx = dy cosh x", &[Unary(|x, _y, dy| dy * x.cosh())]),
    rule("Cosh", "dx = dy sinh x", &[Unary(|x, _y, dy| dy * x.sinh())]),
    rule("Tanh", "dx = dy (1 - y²)", &[Unary(|_x, y, dy| dy * (1.0 - y * y))]).parametrizes(),
    rule("Asinh", "dx = dy / cosh y", &[Unary(|_x, y, dy| dy / y.cosh())]),
    rule("Acosh", "dx = dy / sinh y", &[Unary(|_x, y, dy| dy / y.sinh())]),
    rule("Atanh", "dx = dy / (1 - x²)", &[Unary(|x, _y, dy| dy / one_minus_square(x))]),
    // Activations.
    rule("Relu", "dx = dy where y > 0", &[Unary(|_x, y, dy| dy.where_open(y))])
        .facts(facts::relu)
        .rectifies()
        .moves_integers()
        .note("0 at 0"),
    rule("LeakyRelu", "dx = dy where x > 0, else α dy", &[Formula(leaky_relu)])
        .facts(same)
        .attributes("alpha")
        .note("α at 0"),
    rule(
        "PRelu",
        "dx = dy where x > 0, else dy slope; dslope = Σ dy x where x <= 0",
        &[
            Binary(|x, slope, _y, dy| x.above(0.0).select(dy, dy * slope)),
            Binary(|x, _slope, _y, dy| (dy * x).unless(x.above(0.0))),
        ],
    )
    .facts(same)
    .weights(&[1])
    .note("slope at 0"),
    rule("ThresholdedRelu", "dx = dy where x > α", &[Formula(|c| c.dy().where_(c.x().above(c.float("alpha", 1.0))))])
        .facts(same)
        .attributes("alpha"),
    rule("Shrink", "dx = dy where |x| > λ", &[Formula(|c| c.dy().where_(c.x().abs().above(c.float("lambd", 0.5))))])
        .facts(same)
        .attributes("lambd bias"),
    rule("Elu", "dx = dy where x >= 0, else dy (y + α)", &[Formula(elu)])
        .facts(same)
        .attributes("alpha")
        .note("1 at 0"),
    rule("Celu", "dx = dy where x >= 0, else dy (y/α + 1)", &[Formula(celu)]).facts(same).attributes("alpha"),
    rule("Selu", "dx = γ dy where x >= 0, else dy (y + γα)", &[Formula(selu)])
        .facts(same)
        .attributes("alpha gamma")
        .note("γ at 0"),
    rule("Sigmoid", "dx = dy y (1 - y)", &[Unary(|_x, y, dy| dy * y * (1.0 - y))])
        .parametrizes()
        .facts(same)
        .gives(Gives::Chances),
    rule("HardSigmoid", "dx = α dy where 0 < y < 1", &[Formula(hard_sigmoid)]).facts(same).attributes("alpha beta"),
    rule("HardSwish", "dx = dy where x >= 3, dy (x/3 + 1/2) where -3 < x < 3, else 0", &[Unary(hard_swish)])
        .facts(same),
    rule("Softplus", "dx = dy σ(x)", &[Unary(|x, _y, dy| dy * x.sigmoid())]).parametrizes().facts(same),
    rule("Softsign", "dx = dy / (1 + |x|)²", &[Unary(|x, _y, dy| dy / (1.0 + x.abs()) / (1.0 + x.abs()))]).facts(same),
    rule("Mish", "dx = dy (t + x (1 - t²) σ(x)), t = tanh(softplus x)", &[Unary(mish)]).facts(same),
    rule("Swish", "dx = dy (s + α y (1 - s)), s = σ(αx)", &[Formula(|c| swish(c, 1.0))])
        .facts(same)
        .attributes("alpha"),
    rule("SwiGLU", "da = dy b swish'(a), db = dy swish(a)", &[Formula(swiglu_a), Formula(swiglu_b)])
        .facts(|c| facts::binary(c, unknown))
        .attributes("alpha"),
    rule("Gelu", "dx = dy (Φ(x) + x φ(x)), or that of the formula with tanh", &[Formula(gelu)])
        .facts(same)
        .attributes("approximate"),
    rule("Gelu", "dx = dy (Φ(x) + x φ(x))", &[Unary(|x, _y, dy| dy * gelu_slope(x))]).facts(same).domain(MICROSOFT),
    rule("BiasGelu", "da = db = dy gelu'(a + b)", &[Binary(bias_gelu), Binary(bias_gelu)])
        .facts(same)
        .weights(&[1])
        .domain(MICROSOFT),
    rule(
        "FastGelu",
        "dx = db = dy gelu'(x + b), of the formula with tanh",
        &[Broadcast(fast_gelu), Broadcast(fast_gelu)],
    )
    .facts(same)
    .weights(&[1])
    .domain(MICROSOFT),
    rule("QuickGelu", "dx = dy (s + α y (1 - s)), s = σ(αx)", &[Formula(|c| swish(c, 1.702))])
        .facts(same)
        .domain(MICROSOFT)
        .attributes("alpha"),
];

fn cast<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(c.dy().cast(c.gradient_element(0)?))
}

/// The quotient `(a - y) / b` is a whole number, which is constant; rounding says so.
fn modulo_b<'g>(a: Expr<'g>, b: Expr<'g>, y: Expr<'g>, dy: Expr<'g>) -> Expr<'g> {
    -dy * ((a - y) / b + 0.5).floor()
}

/// `dy / 2y`. At y = 0 only a dy that is not zero is divided: 0 / 0 would be no number, also where a Where has chosen
/// something else and sends back dy = 0.
fn sqrt<'g>(_x: Expr<'g>, y: Expr<'g>, dy: Expr<'g>) -> Expr<'g> {
    let divides = y.above(0.0).or(dy.is_nonzero());
    0.5 * dy / y.or_one(divides)
}

fn pow_a<'g>(c: &Call<'g>) -> Expr<'g> {
    let (a, b, dy) = (c.x(), c.input(1), c.dy());
    // The exponent's value is no constant to those who differentiate by it.
    let constant = b.constant().filter(|_| !c.wants(b.id()));
    let b = b.cast_like(a);
    match constant {
        Some(0.0) => a.zeros_like(),
        Some(1.0) => dy,
        Some(2.0) => dy * (2.0 * a),
        Some(3.0) => dy * (3.0 * a * a),
        Some(n) => dy * (n * a.pow(a.like(n - 1.0))),
        None => {
            let lower = b.is_nonzero().select(b - 1.0, b.like(0.0));
            dy * (b * a.pow(lower))
        }
    }
}

fn pow_b<'g>(c: &Call<'g>) -> Expr<'g> {
    let (a, b, y, dy) = (c.x(), c.input(1), c.y(), c.dy());
    let log = a.or_one(a.above(0.0)).log();
    (dy * y * log).cast_like(b)
}

/// Takes the operands in turn: one that beats the best of those before it keeps what it gets from the others.
fn extremum<'g>(c: &Call<'g>, beaten: fn(Expr<'g>, Expr<'g>) -> Expr<'g>) -> Result<Cotangents<'g>> {
    let mut best = c.x();
    let mut rounds = Vec::new();
    for (i, x) in c.inputs_from(1).into_iter().enumerate() {
        let beaten = beaten(best, x);
        rounds.push((1 + i, beaten));
        best = beaten.select(x, best);
    }
    let (mut found, mut dy) = (c.cotangents(), c.dy());
    for (i, beaten) in rounds.into_iter().rev() {
        found = found.broadcast(i, || dy.where_(beaten));
        dy = dy.unless(beaten);
    }
    Ok(found.broadcast(0, || dy))
}

fn clip<'g>(c: &Call<'g>) -> Expr<'g> {
    c.dy().where_equal(c.x(), c.y())
}

fn clip_min<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, min, dy) = (c.x(), c.input(1), c.dy());
    let dy = dy.where_(x.less(min));
    c.opt(2).map_or(dy, |max| dy.unless(max.less(min)))
}

/// Where the bounds are crossed, `max` is the result.
fn clip_max<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, max, dy) = (c.x(), c.input(2), c.dy());
    dy.where_(c.opt(1).map_or(x, |min| x.max(min)).greater(max))
}

/// `1 - x²`, exact near ±1.
fn one_minus_square(x: Expr<'_>) -> Expr<'_> {
    (1.0 - x) * (1.0 + x)
}

fn leaky_relu<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, dy, alpha) = (c.x(), c.dy(), c.float("alpha", 0.01));
    dy * x.above(0.0).choose(1.0, alpha, x)
}

fn elu<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, y, dy, alpha) = (c.x(), c.y(), c.dy(), c.float("alpha", 1.0));
    x.below(0.0).select(dy * (y + alpha), dy)
}

fn celu<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, y, dy, alpha) = (c.x(), c.y(), c.dy(), c.float("alpha", 1.0));
    x.below(0.0).select(dy * (y / alpha + 1.0), dy)
}

fn selu<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, y, dy) = (c.x(), c.y(), c.dy());
    let (alpha, gamma) = (c.float("alpha", 1.673_263_2), c.float("gamma", 1.050_701));
    x.below(0.0).select(dy * (y + gamma * alpha), gamma * dy)
}

fn hard_sigmoid<'g>(c: &Call<'g>) -> Expr<'g> {
    let (y, dy) = (c.y(), c.dy());
    (c.float("alpha", 0.2) * dy).where_(y.above(0.0).and(y.below(1.0)))
}

fn hard_swish<'g>(x: Expr<'g>, _y: Expr<'g>, dy: Expr<'g>) -> Expr<'g> {
    let middle = dy * (x / 3.0 + 0.5);
    x.below(3.0).select(middle.where_(x.above(-3.0)), dy)
}

fn mish<'g>(x: Expr<'g>, _y: Expr<'g>, dy: Expr<'g>) -> Expr<'g> {
    let t = x.softplus().tanh();
    dy * (t + x * (1.0 - t * t) * x.sigmoid())
}

fn swish<'g>(c: &Call<'g>, default: f32) -> Expr<'g> {
    let (x, y, dy, alpha) = (c.x(), c.y(), c.dy(), c.float("alpha", default));
    dy * swish_slope(y, (alpha * x).sigmoid(), alpha)
}

/// The derivative of `y = x s` with `s = σ(αx)`.
pub fn swish_slope<'g>(y: Expr<'g>, s: Expr<'g>, alpha: f64) -> Expr<'g> {
    s + alpha * y * (1.0 - s)
}

fn swiglu_a<'g>(c: &Call<'g>) -> Expr<'g> {
    let (a, b, dy, alpha) = (c.x(), c.input(1), c.dy(), c.float("alpha", 1.0));
    let s = (alpha * a).sigmoid();
    dy * b * swish_slope(a * s, s, alpha)
}

fn swiglu_b<'g>(c: &Call<'g>) -> Expr<'g> {
    let (a, dy, alpha) = (c.x(), c.dy(), c.float("alpha", 1.0));
    dy * (a * (alpha * a).sigmoid())
}

fn gelu<'g>(c: &Call<'g>) -> Expr<'g> {
    let (x, dy, approximate) = (c.x(), c.dy(), c.string("approximate", "none"));
    c.ensure_known("approximate", &approximate, &["none", "tanh"]);
    dy * if approximate == "tanh" { gelu_tanh_slope(x) } else { gelu_slope(x) }
}

fn bias_gelu<'g>(a: Expr<'g>, b: Expr<'g>, _y: Expr<'g>, dy: Expr<'g>) -> Expr<'g> {
    dy * gelu_slope(a + b)
}

fn fast_gelu<'g>(c: &Call<'g>) -> Expr<'g> {
    let x = c.x();
    c.dy() * gelu_tanh_slope(c.opt(1).map_or(x, |bias| x + bias))
}

/// The derivative of `x Φ(x)`: `Φ(x) + x φ(x)`, the normal distribution and its density.
pub fn gelu_slope(x: Expr<'_>) -> Expr<'_> {
    let (distribution, density) = (0.5 * (x * FRAC_1_SQRT_2).erf() + 0.5, (-0.5 * (x * x)).exp());
    distribution + x * density * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)
}

const CUBIC: f64 = 0.044715;
const SCALE: f64 = 0.5 * FRAC_2_SQRT_PI * SQRT_2;

/// `x (1 + t) / 2` with `t = tanh(√(2/π) (x + 0.044715 x³))`.
pub fn gelu_tanh(x: Expr<'_>) -> Expr<'_> {
    x * (0.5 * gelu_tanh_factor(x) + 0.5)
}

/// t
fn gelu_tanh_factor(x: Expr<'_>) -> Expr<'_> {
    (SCALE * (x * (1.0 + CUBIC * (x * x)))).tanh()
}

/// The derivative of [`gelu_tanh`]. Squares of x are multiplied to what vanishes
/// where they are large.
fn gelu_tanh_slope(x: Expr<'_>) -> Expr<'_> {
    let t = gelu_tanh_factor(x);
    let u = x * (1.0 - t * t);
    0.5 * t + 0.5 + 0.5 * SCALE * u + 1.5 * SCALE * CUBIC * (u * x * x)
}

/// dy where a Where takes that input. Beside what may be infinite, as the masks of scores that a model is given are, it
/// is put aside whatever it is: of a row that is masked as a whole a softmax makes no numbers.
fn chosen<'g>(c: &Call<'g>, input: usize) -> Expr<'g> {
    let (condition, dy) = (c.input(0), c.dy());
    let other = c.input(3 - input);
    let infinite = other.parameter().map_or(other.is_given(), f64::is_infinite);
    match (input, infinite) {
        (1, true) => condition.select(dy, dy.like(0.0)),
        (_, true) => condition.select(dy.like(0.0), dy),
        (1, false) => dy.where_(condition),
        (_, false) => dy.unless(condition),
    }
}
