//! The first phase: the run in the model's own element types. Which inputs it takes, and that its outputs are the same
//! with the gradients.

use super::case::Case;
use super::draw::{self, Draw};
use super::engine::{Precision, Trouble};
use super::tensors::{Tensor, Tensors};
use super::{OutputCheck, Stop, edit, skipped, widen};
use crate::onnx::ElementType;
use crate::record::Record;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Inputs on which the model runs, and what it computes of them.
pub struct Point {
    /// How the inputs were drawn.
    pub draw: Draw,
    /// The sizes of the symbols.
    pub dims: BTreeMap<String, i64>,
    /// The inputs.
    pub feeds: Tensors,
    /// The outputs and ys, without the gradients.
    pub outputs: Tensors,
    /// Whether they were computed in the model's own element types, rather than in float64.
    pub typed: bool,
}

/// Looks for inputs on which the model runs and is finite; `fits` says what else has to hold there.
///
/// # Errors
/// There are none: why, for the inputs that are tried first.
pub fn find<T>(case: &Case, mut fits: impl FnMut(&Point) -> Result<T, Stop>) -> Result<(Point, T), Stop> {
    let mut trouble = None;
    let mut seen = HashSet::new();
    for attempt in draw::attempts(&case.sizes, case.takes_turns()) {
        let dims = case.sizes.bind(attempt.scale);
        // Other sizes that come to the same are not tried again.
        if !seen.insert((dims.clone(), format!("{:?}{:?}{}", attempt.floats, attempt.whole, attempt.seed))) {
            continue;
        }
        let stop = match at(case, attempt) {
            Ok(point) => match fits(&point) {
                Ok(found) => return Ok((point, found)),
                Err(stop) => stop,
            },
            Err(Miss::Unsupported(trouble)) => return Err(trouble.into()),
            Err(Miss::Unfit(stop)) => stop,
        };
        trouble = trouble.or(Some(stop));
        if case.is_late() {
            break;
        }
    }
    Err(trouble.unwrap_or_else(|| skipped("the model does not run")))
}

/// Why inputs are not taken.
pub enum Miss {
    /// The engine lacks what the model needs, whatever the inputs.
    Unsupported(Trouble),
    /// The model does not run on these inputs, or is not finite there.
    Unfit(Stop),
}

impl From<Stop> for Miss {
    fn from(stop: Stop) -> Self {
        Miss::Unfit(stop)
    }
}

impl From<anyhow::Error> for Miss {
    fn from(e: anyhow::Error) -> Self {
        Miss::Unfit(e.into())
    }
}

/// The inputs of a draw, where the model runs on them and is finite.
///
/// # Errors
/// The model does not run on the inputs, or is not finite there.
pub fn at(case: &Case, draw: Draw) -> Result<Point, Miss> {
    let dims = case.sizes.bind(draw.scale);
    let feeds = draw::make(case, &dims, draw)?;
    let mut typed = case.typed;
    let feeds = fit_earlier_seeds(case, feeds, draw.seed, typed)?;
    let mut names = case.outputs();
    let own: HashSet<String> = names.iter().cloned().collect();
    names.extend(case.claims.iter().map(|(name, _)| name.clone()).filter(|n| !own.contains(n)));
    let mut ran = run_part(case, &names, &feeds, typed);
    if typed && matches!(&ran, Err(trouble) if !trouble.is_unsupported()) {
        // An engine may have an operator in some element types only.
        if let Ok(outputs) = run_part(case, &names, &feeds, false) {
            (ran, typed) = (Ok(outputs), false);
        }
    }
    let mut outputs = ran.map_err(|trouble| match trouble.is_unsupported() {
        true => Miss::Unsupported(trouble),
        false => Miss::Unfit(skipped(trouble)),
    })?;
    if let Some(message) = case.claims.iter().find_map(|claim| broken_claim(claim, &outputs)) {
        return Err(Miss::Unfit(skipped(message)));
    }
    outputs.retain(|name, _| own.contains(name));
    if !outputs.values().all(|t| t.is_finite()) {
        let message = "the model's outputs are not finite for random inputs; give --input or --range";
        return Err(Miss::Unfit(skipped(message)));
    }
    let feeds = fit_seeds(case, case.record, feeds, &outputs, draw.seed)?;
    Ok(Point { draw, dims, feeds, outputs, typed })
}

/// What a run says against what is declared of a tensor's shape.
fn broken_claim((name, declared): &(String, Vec<Option<i64>>), outputs: &Tensors) -> Option<String> {
    let dims = outputs.get(name)?.dims();
    let fits = |(&n, declared): (&usize, &Option<i64>)| declared.is_none_or(|d| d == n as i64);
    let same = dims.len() == declared.len() && dims.iter().zip(declared).all(fits);
    let message =
        || format!("'{name}' is declared with another shape than {dims:?}, which it has here; give --dim or --input");
    (!same).then(message)
}

/// Runs what some tensors need of the model.
fn run_part(case: &Case, names: &[String], feeds: &Tensors, typed: bool) -> Result<Tensors, Trouble> {
    let mut part = case.model.clone();
    edit::prune(&mut part, names);
    if typed {
        return case.prepare(&part, feeds, Precision::Own)?.run(feeds);
    }
    widen::to_double(&mut part)?;
    let mut feeds = widen::doubled(feeds)?;
    widen::feed_weights(&mut part, &HashSet::new(), &mut feeds)?;
    case.prepare(&part, &feeds, Precision::Double)?.run(&feeds)
}

/// The seeds of earlier calls, which this one's gradients may depend on, get the shapes of their ys, one call after the
/// other.
fn fit_earlier_seeds(case: &Case, mut feeds: Tensors, random: u64, typed: bool) -> Result<Tensors, Stop> {
    let records = Record::all(&case.model)?;
    for record in records.iter().take_while(|r| r.name != case.record.name) {
        let ys: Vec<String> = record.seeds.iter().filter(|s| s.seed.is_some()).map(|s| s.y.clone()).collect();
        if ys.is_empty() {
            continue;
        }
        // What does not run says so in the run of the whole.
        if let Ok(outputs) = run_part(case, &ys, &feeds, typed) {
            feeds = fit_seeds(case, record, feeds, &outputs, random)?;
        }
    }
    Ok(feeds)
}

/// Seeds that are inputs get the shapes of their ys, which their symbols alone do not tell.
fn fit_seeds(
    case: &Case,
    record: &Record,
    mut feeds: Tensors,
    outputs: &Tensors,
    random: u64,
) -> Result<Tensors, Stop> {
    for seed in &record.seeds {
        let Some(name) = seed.seed.as_ref().filter(|name| !case.options.inputs.contains_key(*name)) else {
            continue;
        };
        let (Some(given), Some(y)) = (feeds.get(name), outputs.get(&seed.y)) else { continue };
        if given.dims() != y.dims() {
            let fitting = draw::random(y.dims(), case.options.seed.wrapping_add(random))?;
            feeds.insert(name.clone(), Arc::new(fitting.cast(given.element())?));
        }
    }
    Ok(feeds)
}

/// Runs the whole model, gradients too, in its own element types, and compares its outputs with those of the model
/// without gradients. `None` where the engine does not run it so: float64 may do.
///
/// # Errors
/// An output is another one with the gradients than without.
pub fn with_gradients(case: &Case, point: &Point) -> Result<Option<(Tensors, Vec<OutputCheck>)>, Stop> {
    if !point.typed {
        return Ok(None);
    }
    let mut names: Vec<String> = point.outputs.keys().cloned().collect();
    names.extend(case.gradients());
    let mut full = case.model.clone();
    edit::prune(&mut full, &names);
    let ran = case.prepare(&full, &point.feeds, Precision::Own).and_then(|plan| plan.run(&point.feeds));
    let tensors = match ran {
        Ok(tensors) => tensors,
        Err(trouble) if trouble.is_unsupported() => return Err(trouble.into()),
        Err(_) => return Ok(None),
    };
    let mut checks = Vec::new();
    for (name, expected) in &point.outputs {
        let difference = tensors.get(name).and_then(|t| difference(expected, t));
        checks.push(OutputCheck { name: name.clone(), max_difference: difference });
        if tensors.get(name).is_none_or(|t| t != expected) {
            return Err(super::failed(format!("output '{name}' is another one with the gradients than without")));
        }
    }
    Ok(Some((tensors, checks)))
}

fn difference(a: &Tensor, b: &Tensor) -> Option<f64> {
    if a.dims() != b.dims() {
        return None;
    }
    let (a, b) = (a.values(), b.values());
    Some(a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
}

/// How far apart two precisions may be in what they say of a model: where they are further, rounding decides what it
/// computes, and there is nothing to compare.
pub fn is_apart(own: &Tensor, wide: &Tensor) -> bool {
    let narrow = matches!(own.element(), ElementType::Float16 | ElementType::Bfloat16);
    let tolerance = if narrow { 0.2 } else { 0.01 };
    let (a, b) = (own.values(), wide.values());
    let rms = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = rms(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    let allowed = tolerance * rms(&mut b.iter().copied()) + 1e-6 * (b.len() as f64).sqrt();
    error.is_nan() || error > allowed
}
