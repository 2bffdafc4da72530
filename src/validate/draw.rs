//! Values for the inputs of a model: given ones, and random ones of the declared shapes.

use super::case::Case;
use super::edit;
use super::integers::Kind;
use super::sizes::Scale;
use super::tensors::{self, Tensor, Tensors};
use crate::onnx::ElementType;
use crate::onnx::proto::tensor_shape_proto;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An input of more elements is not made up.
const MAX_ELEMENTS: usize = 1 << 26;

/// Which floating-point numbers are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Floats {
    /// Numbers of both signs and these sizes.
    Both(f64, f64),
    /// Positive ones: for logarithms and roots.
    Positive(f64, f64),
    /// Negative ones.
    Negative(f64, f64),
    /// Numbers of both signs, every third of them exactly zero.
    Zeros,
    /// Positive ones below 1, those of each input below those of the one before it: for the root of a difference.
    Falling,
    /// The same, above those of the one before it.
    Rising,
}

/// Which integers and truth values are drawn, where nothing says what they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// From 0 to 3; true and false.
    Several,
    /// Zeros and ones, most of them ones, as masks are.
    Mask,
    /// Ones; true.
    Ones,
}

/// A way to make up inputs.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// The sizes of symbols.
    pub scale: Scale,
    /// The floating-point numbers.
    pub floats: Floats,
    /// The integers.
    pub whole: Whole,
    /// What the random numbers follow from, with the seed of the options.
    pub seed: u64,
}

const USUAL: Floats = Floats::Both(0.05, 1.0);
const POSITIVE: Floats = Floats::Positive(0.05, 1.0);
/// For acosh, and logarithms of logarithms.
const ABOVE_ONE: Floats = Floats::Positive(1.05, 8.0);
/// Sums of several of these are inside ±1, and powers of large multiples of them within 16 bits.
const SMALL: Floats = Floats::Both(0.001, 0.05);

/// The ways in which a first input is looked for that the model runs on. Small distinct sizes come first: they tell
/// axes apart.
pub fn attempts() -> Vec<Draw> {
    let scale = |first, next, distinct| Scale { first, next, distinct };
    let mut attempts = Vec::new();
    let small = scale(2, 3, true);
    for whole in [Whole::Several, Whole::Mask, Whole::Ones] {
        for floats in [USUAL, POSITIVE] {
            attempts.push(Draw { scale: small, floats, whole, seed: 0 });
        }
    }
    // Domains that are no half line: above 1, near zero, one input above another.
    for floats in [ABOVE_ONE, SMALL, Floats::Falling, Floats::Rising] {
        attempts.push(Draw { scale: small, floats, whole: Whole::Several, seed: 0 });
    }
    let others = [
        scale(3, 3, false),
        scale(1, 1, false),
        scale(1, 8, false),
        scale(2, 16, false),
        scale(1, 32, false),
        scale(1, 224, false),
        scale(1, 4096, false),
    ];
    for scale in others {
        for (floats, whole) in [(USUAL, Whole::Mask), (USUAL, Whole::Ones), (POSITIVE, Whole::Ones)] {
            attempts.push(Draw { scale, floats, whole, seed: 0 });
        }
    }
    attempts
}

/// Other inputs than the first: other batch sizes, numbers that are large, tiny, zero, of one sign, other integers.
pub fn others(main: Draw, sizes_are_free: bool) -> Vec<Draw> {
    let batch = |first: i64| if sizes_are_free { Scale { first, ..main.scale } } else { main.scale };
    let floats = match main.floats {
        USUAL => vec![
            (1, Floats::Both(0.001, 8.0)),
            (3, Floats::Negative(0.05, 1.0)),
            (5, ABOVE_ONE),
            (2, Floats::Both(1e-4, 9e-3)),
            (9, Floats::Zeros),
            (1, Floats::Negative(1.0, 8.0)),
            (3, Floats::Both(2.0, 8.0)),
            (4, USUAL),
        ],
        POSITIVE => {
            vec![(1, Floats::Positive(0.001, 8.0)), (3, ABOVE_ONE), (5, Floats::Positive(1e-4, 9e-3)), (9, POSITIVE)]
        }
        same => [1, 3, 5, 9].map(|first| (first, same)).to_vec(),
    };
    let draw = |(i, (first, floats)): (usize, (i64, Floats))| {
        let whole = if main.whole == Whole::Several && i % 2 == 1 { Whole::Mask } else { main.whole };
        Draw { scale: batch(first), floats, whole, seed: 1 + i as u64 }
    };
    floats.into_iter().enumerate().map(draw).collect()
}

/// A value for each input of a model, in the model's own types.
///
/// # Errors
/// An input that is no tensor, is too large, or is given in another element type.
pub fn make(case: &Case, sizes: &BTreeMap<String, i64>, draw: Draw) -> Result<Tensors> {
    let options = case.options;
    let mut tensors = Tensors::new();
    for (name, given) in &options.inputs {
        tensors.insert(name.clone(), Arc::new(tensors::tensor(given).with_context(|| format!("input '{name}'"))?));
    }
    let inputs = edit::free_inputs(&case.model).count();
    for (i, input) in edit::free_inputs(&case.model).enumerate() {
        let name = input.name();
        let Some(element) = edit::element_type(input.r#type.as_ref()) else { bail!("input '{name}' is no tensor") };
        if let Some(given) = options.inputs.get(name) {
            ensure!(
                given.element_type() == element,
                "input '{name}' is {}; what is given is {}",
                element.name(),
                given.element_type().name()
            );
            continue;
        }
        let dims: Vec<usize> = match edit::declared(input) {
            Some(dims) => dims.iter().map(|d| size(d, sizes)).collect(),
            None => vec![2, 3],
        };
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_ELEMENTS);
        let count = count.with_context(|| format!("input '{name}' of dimensions {dims:?} is too large"))?;
        let mut random = generator(options.seed, draw.seed, i as u64);
        let values: Vec<f64> = match (options.ranges.get(name), element) {
            (Some(&(low, high)), e) if e.is_float() => (0..count).map(|_| low + (high - low) * random.f64()).collect(),
            (Some(&(low, high)), _) => {
                let (low, high) = (low.ceil() as i64, high.floor() as i64);
                ensure!(low <= high, "input '{name}': no whole number lies in its range");
                (0..count).map(|_| random.i64(low..=high) as f64).collect()
            }
            (None, e) if e.is_float() => {
                let floats = draw.floats.of(i, inputs);
                (0..count).map(|_| float(&mut random, floats)).collect()
            }
            // A condition alone takes turns, so that both branches are visited, and with others every combination.
            (None, ElementType::Bool) if count == 1 && draw.whole != Whole::Ones => {
                vec![f64::from((draw.seed >> (i % 3)) & 1 == 0)]
            }
            (None, ElementType::Bool) => (0..count).map(|_| whole(&mut random, draw.whole, true)).collect(),
            (None, _) => match case.integers.kind(name) {
                Some(kind) => integers(case, kind, &dims, count, sizes, draw, &mut random),
                None => (0..count).map(|_| whole(&mut random, draw.whole, false)).collect(),
            },
        };
        tensors.insert(name.to_owned(), Arc::new(Tensor::from_values(element, &dims, &values)?));
    }
    Ok(tensors)
}

/// Random numbers of the options' seed, for one draw and one input.
fn generator(seed: u64, draw: u64, input: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed.wrapping_add(input).wrapping_add(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Floating-point numbers of both signs.
///
/// # Errors
/// Dimensions of which there is no tensor.
pub fn random(dims: &[usize], seed: u64) -> Result<Tensor> {
    let mut random = fastrand::Rng::with_seed(seed);
    let values: Vec<f64> = (0..dims.iter().product()).map(|_| float(&mut random, USUAL)).collect();
    tensors::double(dims, &values)
}

fn size(dim: &tensor_shape_proto::Dimension, sizes: &BTreeMap<String, i64>) -> usize {
    let size = match &dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(n)) => *n,
        Some(tensor_shape_proto::dimension::Value::DimParam(symbol)) => sizes.get(symbol).copied().unwrap_or(2),
        None => 2,
    };
    usize::try_from(size).unwrap_or(1)
}

impl Floats {
    /// What input `i` of `n` gets.
    fn of(self, i: usize, n: usize) -> Floats {
        let step = |i: usize| Floats::Positive((i as f64 + 0.1) / n as f64, (i as f64 + 0.9) / n as f64);
        match self {
            Floats::Rising => step(i),
            Floats::Falling => step(n.saturating_sub(1 + i)),
            floats => floats,
        }
    }
}

/// Numbers stay away from zero, where many functions have a kink; of a wide range small ones are as many as large ones.
fn float(random: &mut fastrand::Rng, floats: Floats) -> f64 {
    let mut size = |low: f64, high: f64| match high / low > 100.0 {
        true => low * (high / low).powf(random.f64()),
        false => low + (high - low) * random.f64(),
    };
    match floats {
        Floats::Both(low, high) => {
            let size = size(low, high);
            if random.bool() { -size } else { size }
        }
        Floats::Positive(low, high) => size(low, high),
        Floats::Negative(low, high) => -size(low, high),
        // Which input it is has been said before.
        Floats::Falling | Floats::Rising => size(0.1, 0.9),
        Floats::Zeros => match random.u8(0..3) {
            0 => 0.0,
            _ => float(random, USUAL),
        },
    }
}

fn whole(random: &mut fastrand::Rng, whole: Whole, truth: bool) -> f64 {
    match whole {
        Whole::Several if truth => f64::from(random.bool()),
        Whole::Several => random.i64(0..4) as f64,
        Whole::Mask => f64::from(random.u8(0..4) != 0),
        Whole::Ones => 1.0,
    }
}

/// Integers of which it is known what they count.
fn integers(
    case: &Case,
    kind: &Kind,
    dims: &[usize],
    count: usize,
    sizes: &BTreeMap<String, i64>,
    draw: Draw,
    random: &mut fastrand::Rng,
) -> Vec<f64> {
    let evaluate = |dim| case.sizes.evaluate(dim, sizes).filter(|&n| n > 0);
    let range = (kind.bounds.iter())
        .map(|b| b.range(b.size.and_then(evaluate).unwrap_or(2)))
        .reduce(|a, b| (a.0.max(b.0), a.1.min(b.1)));
    if !kind.tuples.is_empty() {
        let width = dims.last().copied().unwrap_or(1).max(1);
        // What is indexed elsewhere by the same numbers bounds them, too.
        let highest = range.map_or(i64::MAX, |(_, high)| high.max(1));
        let bounds: Vec<i64> = (0..width)
            .map(|k| kind.tuples.get(k).copied().flatten().and_then(evaluate).unwrap_or(2).min(highest))
            .collect();
        let orders: Vec<Vec<i64>> = bounds.iter().map(|&n| shuffled(n.min(1 << 20), random)).collect();
        let value = |place: usize, random: &mut fastrand::Rng| {
            let (row, k) = (place / width, place % width);
            // Rows that all differ: each coordinate goes through its values at its own pace.
            let inner: i64 = bounds[k + 1..].iter().product::<i64>().max(1);
            match kind.written {
                Some(_) => orders[k][(row as i64 / inner) as usize % orders[k].len()] as f64,
                None => random.i64(0..bounds[k]) as f64,
            }
        };
        return (0..count).map(|place| value(place, random)).collect();
    }
    if let Some((low, high)) = range {
        let high = high.max(low + 1);
        if let Some(axis) = kind.written {
            let axis = if axis < 0 { axis + dims.len() as i64 } else { axis };
            let along = usize::try_from(axis).unwrap_or(0).min(dims.len().saturating_sub(1));
            let order = shuffled((high - low).min(1 << 20), random);
            let length = dims.get(along).copied().unwrap_or(1).max(1);
            // As many places as there are numbers, if there are: else those along the axis differ.
            let all = count <= order.len();
            let inner: usize = dims.iter().skip(along + 1).product::<usize>().max(1);
            let place = |i: usize| if all { i } else { i / inner % length };
            return (0..count).map(|i| (low + order[place(i) % order.len()]) as f64).collect();
        }
        let low = if kind.counts { low.max(1).min(high - 1) } else { low };
        return (0..count).map(|_| random.i64(low..high) as f64).collect();
    }
    if kind.counts {
        return (0..count).map(|_| random.i64(1..4) as f64).collect();
    }
    if !kind.choices.is_empty() {
        return (0..count).map(|_| kind.choices[random.usize(0..kind.choices.len())] as f64).collect();
    }
    (0..count).map(|_| whole(random, draw.whole, false)).collect()
}

/// The numbers below one, in random order.
fn shuffled(below: i64, random: &mut fastrand::Rng) -> Vec<i64> {
    let mut order: Vec<i64> = (0..below.max(1)).collect();
    random.shuffle(&mut order);
    order
}
