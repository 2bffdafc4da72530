//! Values for the inputs of a model: given ones, and random ones of the declared shapes.

use super::case::Case;
use super::edit;
use super::integers::Kind;
use super::sizes::{Scale, Sizes};
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
    /// Positive ones below 1, those of each input above those of the one before it.
    Rising,
    /// Whole numbers of both signs, from 1 to 3 in size.
    Whole,
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
    /// Zeros; false.
    Zeros,
    /// From -4 to 9; counts from 0 on, indices that count from the end.
    Wide,
    /// One number for all elements of an input.
    Same,
}

/// A way to make up inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
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
const TINY: Floats = Floats::Both(1e-4, 9e-3);

/// A model whose tensors have more elements together is costly: its first input has a batch of 1, and it is run on no
/// input at which they have even more.
const COSTLY: usize = 1 << 27;

/// Whether a model is costly at these sizes, and more so than at others.
pub fn is_too_costly(sizes: &Sizes, scale: Scale, than: Scale) -> bool {
    let elements = |scale: Scale| sizes.elements(&sizes.bind(scale));
    let here = elements(scale);
    here > COSTLY && here > elements(than)
}

/// The ways in which a first input is looked for that the model runs on. Small distinct sizes come first: they tell
/// axes apart. `turns` says whether some input decides what is computed.
pub fn attempts(sizes: &Sizes, turns: bool) -> Vec<Draw> {
    let scale = |first, next, distinct| Scale { first, next, distinct };
    let mut attempts = Vec::new();
    let (small, smallest) = (scale(2, 3, true), scale(1, 3, true));
    let small = if is_too_costly(sizes, small, smallest) { smallest } else { small };
    for whole in [Whole::Several, Whole::Mask, Whole::Ones] {
        for floats in [USUAL, POSITIVE] {
            attempts.push(Draw { scale: small, floats, whole, seed: 0 });
        }
    }
    for seed in if turns { 1..4 } else { 0..0 } {
        attempts.push(Draw { scale: small, floats: USUAL, whole: Whole::Several, seed });
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

/// So many of the other inputs are looked at in any case, as long as there is time, and the rest where that is quick.
pub const IN_ANY_CASE: usize = 8;

/// What other inputs are like: the size of the first symbol, that of the next, the numbers, and what is drawn for
/// integers.
const OTHERS: &[(i64, i64, Floats, Whole)] = &[
    (1, 4, Floats::Both(0.001, 8.0), Whole::Several),
    (3, 1, Floats::Negative(0.05, 1.0), Whole::Mask),
    (5, 2, ABOVE_ONE, Whole::Several),
    (2, 5, TINY, Whole::Mask),
    (9, 3, Floats::Zeros, Whole::Several),
    (1, 6, Floats::Negative(1.0, 8.0), Whole::Mask),
    (3, 7, Floats::Both(2.0, 8.0), Whole::Wide),
    (4, 8, USUAL, Whole::Zeros),
    (6, 9, POSITIVE, Whole::Wide),
    (7, 2, Floats::Both(1e-6, 9e-5), Whole::Several),
    (8, 3, Floats::Both(0.5, 120.0), Whole::Mask),
    (4, 1, Floats::Both(8.0, 20.0), Whole::Wide),
    (2, 16, USUAL, Whole::Same),
    (16, 3, Floats::Negative(1e-4, 9e-3), Whole::Several),
    (1, 4, Floats::Whole, Whole::Wide),
    (3, 17, Floats::Positive(1e-4, 9e-3), Whole::Zeros),
    (17, 1, Floats::Negative(1.0, 120.0), Whole::Wide),
    (2, 33, USUAL, Whole::Several),
    (33, 2, USUAL, Whole::Wide),
    (1, 1, Floats::Positive(1.0, 120.0), Whole::Same),
    (5, 10, Floats::Zeros, Whole::Wide),
    (10, 5, Floats::Whole, Whole::Mask),
    (2, 3, USUAL, Whole::Wide),
    (3, 12, SMALL, Whole::Wide),
];

/// Further inputs of a model that takes positive numbers only.
const OTHERS_ABOVE_ZERO: &[(i64, i64, Floats, Whole)] = &[
    (1, 4, Floats::Positive(0.001, 8.0), Whole::Several),
    (3, 1, ABOVE_ONE, Whole::Mask),
    (5, 2, Floats::Positive(1e-4, 9e-3), Whole::Several),
    (9, 5, POSITIVE, Whole::Zeros),
    (2, 6, Floats::Positive(2.0, 8.0), Whole::Wide),
    (6, 7, POSITIVE, Whole::Wide),
    (7, 2, Floats::Positive(1e-6, 9e-5), Whole::Several),
    (4, 8, Floats::Positive(1.0, 120.0), Whole::Same),
    (8, 9, Floats::Positive(8.0, 20.0), Whole::Mask),
    (16, 3, POSITIVE, Whole::Wide),
    (3, 16, POSITIVE, Whole::Several),
    (33, 2, POSITIVE, Whole::Wide),
    (2, 33, POSITIVE, Whole::Wide),
];

/// Other inputs than the first: other sizes, other integers, numbers that are large, tiny, zero, whole, of one sign.
/// Each with what stands in for it where the model does not run on it.
pub fn others(main: Draw, sizes_are_free: bool) -> Vec<Vec<Draw>> {
    let (others, same) = match main.floats {
        USUAL => (OTHERS, None),
        POSITIVE => (OTHERS_ABOVE_ZERO, None),
        floats => (OTHERS_ABOVE_ZERO, Some(floats)),
    };
    let mut all = Vec::new();
    for (i, &(first, next, floats, whole)) in others.iter().enumerate() {
        let usual = Draw { floats: same.unwrap_or(floats), seed: 1 + i as u64, ..main };
        let batch = Draw { scale: Scale { first, ..main.scale }, ..usual };
        let sized = match main.scale {
            Scale { first: a, next: b, distinct: false } if a == b => Scale { first, next: first, distinct: false },
            Scale { next: ..=3, .. } => Scale { first, next, ..main.scale },
            scale => Scale { first, ..scale },
        };
        let sized = Draw { scale: sized, ..usual };
        let mut draws = match sizes_are_free {
            true => vec![Draw { whole, ..sized }, sized, batch, usual],
            false => vec![Draw { whole, ..usual }, usual],
        };
        draws.dedup();
        all.push(draws);
    }
    all
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
            (None, e) if e.is_float() => match case.thresholds.range(name, draw.seed) {
                Some((low, high)) => (0..count).map(|_| low + (high - low) * random.f64()).collect(),
                None => {
                    let floats = draw.floats.of(i, inputs);
                    (0..count).map(|_| float(&mut random, floats)).collect()
                }
            },
            // A condition alone takes turns, so that both branches are visited, and with others every combination.
            (None, ElementType::Bool) if count == 1 && !matches!(draw.whole, Whole::Ones | Whole::Zeros) => {
                vec![f64::from((draw.seed >> (i % 3)) & 1 == 0)]
            }
            (None, ElementType::Bool) => (0..count).map(|_| whole(&mut random, draw.whole, true)).collect(),
            (None, _) => match case.integers.kind(name) {
                Some(kind) => integers(case, kind, &dims, count, sizes, draw, &mut random),
                None => (0..count).map(|_| whole(&mut random, draw.whole, false)).collect(),
            },
        };
        let written = || case.integers.kind(name).is_some_and(|k| k.written.is_some());
        let values = match values.first() {
            Some(&first) if draw.whole == Whole::Same && !element.is_float() && !written() => vec![first; count],
            _ => values,
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

/// How many elements the inputs have that are made up.
pub fn count(case: &Case, sizes: &BTreeMap<String, i64>) -> usize {
    let inputs = edit::free_inputs(&case.model).filter(|input| !case.options.inputs.contains_key(input.name()));
    let dims = inputs.filter_map(edit::declared);
    let elements =
        |dims: &[tensor_shape_proto::Dimension]| dims.iter().map(|d| size(d, sizes)).fold(1, usize::saturating_mul);
    dims.map(elements).fold(0, usize::saturating_add)
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
        Floats::Whole => f64::from(random.i8(1..4)) * if random.bool() { -1.0 } else { 1.0 },
        Floats::Zeros => match random.u8(0..3) {
            0 => 0.0,
            _ => float(random, USUAL),
        },
    }
}

fn whole(random: &mut fastrand::Rng, whole: Whole, truth: bool) -> f64 {
    match whole {
        Whole::Several | Whole::Same | Whole::Wide if truth => f64::from(random.bool()),
        Whole::Several | Whole::Same => random.i64(0..4) as f64,
        Whole::Mask => f64::from(random.u8(0..4) != 0),
        Whole::Ones => 1.0,
        Whole::Zeros => 0.0,
        Whole::Wide => random.i64(-4..10) as f64,
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
        let bound = |k: usize| kind.tuples.get(k).copied().flatten().and_then(evaluate).unwrap_or(2).min(highest);
        return tuples(kind, &(0..width).map(bound).collect::<Vec<_>>(), count, random);
    }
    if let Some(range) = range {
        // A place may be said from the end, by a negative number.
        let sizes: Vec<Option<i64>> =
            kind.bounds.iter().map(|b| b.size.filter(|_| b.from_end).and_then(evaluate)).collect();
        let size = sizes.first().copied().flatten();
        let size = size.filter(|_| draw.whole == Whole::Wide && sizes.windows(2).all(|w| w[0] == w[1]));
        return places(kind, range, size.unwrap_or(0), dims, count, random);
    }
    if kind.counts {
        // Which number follows from the seed alone: inputs that confirm what one says have the same.
        const COUNTS: [i64; TURNS as usize] = [0, 4, 9, 6, 8, 5, 10, 7];
        let turn = COUNTS[(draw.seed % TURNS) as usize];
        let number = |random: &mut fastrand::Rng| if draw.whole == Whole::Wide { turn } else { random.i64(1..4) };
        return (0..count).map(|_| number(random) as f64).collect();
    }
    if count == 1 && !(kind.choices.is_empty() && kind.near.is_empty()) {
        return vec![chosen(kind, draw, random)];
    }
    let value = |random: &mut fastrand::Rng| match (&*kind.choices, &*kind.near) {
        ([], []) => whole(random, draw.whole, false),
        // Half of them beside the bounds, the others anywhere.
        ([], near) if random.bool() => (near[random.usize(0..near.len())].saturating_add(random.i64(-1..2))) as f64,
        ([], _) => whole(random, draw.whole, false),
        (choices, _) => {
            let beside = i64::from(draw.whole == Whole::Wide && random.bool());
            choices[random.usize(0..choices.len())].saturating_add(beside) as f64
        }
    };
    (0..count).map(|_| value(random)).collect()
}

/// One number that decides what a model computes: in turn each of those that it is compared with, and those beside
/// them. Which one follows from the seed alone, as with counts.
fn chosen(kind: &Kind, draw: Draw, random: &mut fastrand::Rng) -> f64 {
    let mut all: Vec<f64> = kind.choices.iter().map(|&v| v as f64).collect();
    all.extend(kind.choices.iter().max().map(|&v| v.saturating_add(1) as f64));
    if !kind.near.is_empty() {
        all.push(whole(random, draw.whole, false));
        for beside in [0, -1, 1] {
            all.extend(kind.near.iter().map(|v| v.saturating_add(beside) as f64));
        }
    }
    all[(draw.seed % TURNS) as usize % all.len()]
}

/// Seeds that differ by a multiple of this take the same turn: inputs that confirm what one says.
const TURNS: u64 = 8;

/// Places of several numbers each, every number below its bound; where they are written to, all differ if there are so
/// many: each number goes through its values at its own pace.
fn tuples(kind: &Kind, bounds: &[i64], count: usize, random: &mut fastrand::Rng) -> Vec<f64> {
    let orders: Vec<Vec<i64>> = bounds.iter().map(|&n| shuffled(n.min(1 << 20), random)).collect();
    let mut value = |place: usize| {
        let (row, k) = (place / bounds.len(), place % bounds.len());
        let inner: i64 = bounds[k + 1..].iter().product::<i64>().max(1);
        match kind.written {
            Some(_) => orders[k][(row as i64 / inner) as usize % orders[k].len()] as f64,
            None => random.i64(0..bounds[k]) as f64,
        }
    };
    (0..count).map(&mut value).collect()
}

/// Places along an axis, from the first number of the range on and below the second; some of them less the size, which
/// says them from the end.
fn places(
    kind: &Kind,
    (low, high): (i64, i64),
    size: i64,
    dims: &[usize],
    count: usize,
    random: &mut fastrand::Rng,
) -> Vec<f64> {
    let high = high.max(low + 1);
    let from_end = |value: i64, turned: bool| (if turned { value - size } else { value }) as f64;
    if let Some(axis) = kind.written {
        let axis = if axis < 0 { axis + dims.len() as i64 } else { axis };
        let along = usize::try_from(axis).unwrap_or(0).min(dims.len().saturating_sub(1));
        let order = shuffled((high - low).min(1 << 20), random);
        let length = dims.get(along).copied().unwrap_or(1).max(1);
        // All places differ where there are so many; else those along the axis do.
        let all = count <= order.len();
        let inner: usize = dims.iter().skip(along + 1).product::<usize>().max(1);
        let place = |i: usize| if all { i } else { i / inner % length };
        let value = |i: usize| low + order[place(i) % order.len()];
        return (0..count).map(|i| from_end(value(i), i % 2 == 0)).collect();
    }
    let low = if kind.counts { low.max(1).min(high - 1) } else { low };
    let value = |random: &mut fastrand::Rng| {
        let value = random.i64(low..high);
        from_end(value, random.bool())
    };
    (0..count).map(|_| value(random)).collect()
}

/// The numbers below one, in random order.
fn shuffled(below: i64, random: &mut fastrand::Rng) -> Vec<i64> {
    let mut order: Vec<i64> = (0..below.max(1)).collect();
    random.shuffle(&mut order);
    order
}
