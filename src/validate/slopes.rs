//! Gradients against central differences.
//!
//! L(xs) = Σ ⟨seed, y⟩, the seeds held constant. Along a direction v the slope of L is ⟨g, v⟩, and
//! D(h) = (L(x + h v) - L(x - h v)) / 2h is that slope up to h²; Richardson's (4 D(h/2) - D(h)) / 3 is it up to h⁴.
//! Every x is perturbed on its own: one that a node computes gets an input added to it, so that what flows into it from
//! another x stays as it is, and a direction over all xs together has the slope Σ ⟨g, v⟩, whichever depends on which.
//!
//! Rounding makes noise of a known size. What is no larger than it says nothing, neither for a gradient nor against
//! one.

use super::engine::{Run, Trouble};
use super::tensors::{self, Tensors};
use std::cell::Cell;
use std::sync::Arc;

/// How precisely a slope is known. What is less precise comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rounding {
    /// All is computed in float64; constants of the model have 32 bits.
    Double,
    /// Constants of the model have 16 bits.
    Half,
    /// An operator computes in float32.
    Single,
}

impl Rounding {
    /// The largest error, relative to the slope, that is taken for rounding.
    pub fn bound(self) -> f64 {
        match self {
            Rounding::Double => 1e-5,
            Rounding::Half => 2e-3,
            Rounding::Single => 2e-2,
        }
    }

    /// The largest error of one element, relative to that element, that is taken for rounding; `None` where single
    /// elements are not resolved.
    pub fn element_bound(self) -> Option<f64> {
        match self {
            Rounding::Double => Some(4e-4),
            Rounding::Half => Some(4e-3),
            Rounding::Single => None,
        }
    }

    /// The steps that are tried.
    fn steps(self) -> &'static [f64] {
        match self {
            Rounding::Single => &[1e-2, 4e-2, 2e-3],
            _ => &[1e-4, 1e-5, 1e-3, 1e-6, 1e-2, FINEST],
        }
    }

    fn epsilon(self) -> f64 {
        match self {
            Rounding::Single => f32::EPSILON.into(),
            _ => f64::EPSILON,
        }
    }
}

/// A step that is shorter than most distances to a kink, for networks of many: rounding is so near that it speaks for a
/// gradient only, and only where that is sure.
const FINEST: f64 = 1e-7;

/// A tensor to perturb: an input of the plan, its value, the gradient that is to be checked.
#[derive(Clone, Debug)]
pub struct Target {
    /// The input of the plan.
    pub input: String,
    /// Its value where nothing is perturbed.
    pub base: Arc<Vec<f64>>,
    /// The dimensions.
    pub dims: Vec<usize>,
    /// What the gradient claims to be.
    pub gradient: Arc<Vec<f64>>,
    /// How far to go: the size of the elements of x.
    pub reach: f64,
}

/// Where to go from the base: for each target how far in each element.
pub type Direction<'t> = Vec<(&'t Target, Vec<f64>)>;

/// The function whose slopes are measured.
pub struct Function<'a> {
    /// Computes the ys.
    pub plan: &'a dyn Run,
    /// Every input, unperturbed.
    pub feeds: Tensors,
    /// For each y its name and seed.
    pub seeds: Vec<(String, Vec<f64>)>,
    base: Vec<Vec<f64>>,
    /// Σ |seed y|: what rounding is relative to.
    magnitude: f64,
    /// The step that told something last.
    first: Cell<f64>,
}

/// A slope along a direction, and what the gradients claim it to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// What the gradients claim.
    pub claimed: f64,
    /// The slope.
    pub slope: f64,
    /// The difference, relative to the size of slopes along such directions.
    pub error: f64,
}

impl Measured {
    fn new(claimed: f64, slope: f64, scale: f64) -> Self {
        let error = (slope - claimed).abs();
        let error = if error == 0.0 { 0.0 } else { error / scale.max(f64::MIN_POSITIVE) };
        Measured { claimed, slope, error: if error.is_nan() { f64::INFINITY } else { error } }
    }
}

/// What a direction says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// The gradient is the slope, but for the error.
    Agrees(Measured),
    /// The gradient is not the slope.
    Differs(Measured),
    /// There is no slope to speak of: steps of different lengths contradict each other.
    Rough,
    /// The gradient and the slope are both zero, or no larger than rounding: that says nothing.
    Zero,
    /// Rounding is so large that an error would not show.
    Hidden,
}

/// By how much a slope may differ.
#[derive(Clone, Copy, Debug)]
pub enum Tolerance {
    /// Relative to the size of slopes along directions of the kind.
    Relative(f64),
    /// This much, of slopes that are made of parts of this size.
    Part(f64, f64),
}

impl<'a> Function<'a> {
    /// Runs the plan once, unperturbed.
    ///
    /// # Errors
    /// The plan does not run.
    pub fn new(plan: &'a dyn Run, feeds: Tensors, seeds: Vec<(String, Vec<f64>)>) -> Result<Self, Trouble> {
        let mut function = Function { plan, feeds, seeds, base: vec![], magnitude: 0.0, first: Cell::default() };
        function.base = function.evaluate(&[], 0.0)?;
        let products = function.seeds.iter().zip(&function.base).flat_map(|((_, s), y)| s.iter().zip(y));
        function.magnitude = products.map(|(s, y)| (s * y).abs()).sum();
        Ok(function)
    }

    /// Whether every y is a finite number where nothing is perturbed.
    pub fn is_finite(&self) -> bool {
        self.base.iter().flatten().all(|v| v.is_finite())
    }

    /// The slope of L along the direction, compared with that of the gradients.
    ///
    /// # Errors
    /// The plan does not run beside its base.
    pub fn compare(&self, direction: &Direction, rounding: Rounding, tolerance: Tolerance) -> Result<Outcome, Trouble> {
        let (claimed, typical) = claims(direction);
        let claim = Claim { claimed, typical, tolerance };
        let mut last: Option<(f64, f64)> = None;
        let (mut differs, mut agrees, mut zero, mut hidden) = (None, None, false, true);
        for h in self.steps(rounding) {
            let near = self.pair(direction, h / 2.0)?;
            let fine = self.dot(&near[0], &near[1]) / h;
            let noise = 64.0 * rounding.epsilon() * self.magnitude / h;
            let by_itself = claim.beside(fine, noise);
            // Where the half of a step agrees, the whole one has nothing to add.
            if by_itself.agrees && by_itself.is_sure && (h != FINEST || by_itself.error <= by_itself.allowed) {
                self.first.set(h);
                return Ok(Outcome::Agrees(by_itself.measured(fine)));
            }
            let around = self.around(direction, h, near, fine)?;
            let slope = (4.0 * around.fine - around.coarse) / 3.0;
            if !slope.is_finite() {
                continue;
            }
            let found = claim.beside(slope, noise);
            zero |= claimed.is_finite() && found.size <= noise.max(0.0);
            hidden &= noise > 1e-2 * found.scale;
            if h == FINEST && !(found.is_sure && found.error <= found.allowed) {
                continue;
            }
            if found.agrees {
                if found.is_sure {
                    self.first.set(h);
                    return Ok(Outcome::Agrees(found.measured(slope)));
                }
                // What rounding makes of it is no error.
                let beyond = slope + (claimed - slope).clamp(-noise, noise);
                agrees = agrees.or(Some(Outcome::Agrees(found.measured(beyond))));
                continue;
            }
            // What is no number is wrong by as much as the slope.
            let error = if claimed.is_finite() { found.error } else { 0.1 * slope.abs().max(10.0 * noise) };
            if !self.is_steady(&around, error, noise) {
                continue;
            }
            let confirms = |(before, noisy): (f64, f64)| {
                (before - slope).abs() <= 0.1 * error && steady(before, slope, noise + noisy)
            };
            if last.is_some_and(confirms) {
                differs = Some(Outcome::Differs(found.measured(slope)));
            }
            last = Some((slope, noise));
        }
        Ok(match (agrees, differs) {
            (Some(agrees), _) => agrees,
            (None, Some(differs)) => differs,
            _ if zero => Outcome::Zero,
            _ if hidden => Outcome::Hidden,
            _ => Outcome::Rough,
        })
    }

    /// Whether the slope between these steps is known to a part of this error.
    fn is_steady(&self, around: &Around, error: f64, noise: f64) -> bool {
        let uncertainty = (around.coarse - around.fine).abs() + noise;
        let is_sure = uncertainty <= 0.1 * error && steady(around.coarse, around.fine, noise);
        error > 0.0 && is_sure && !self.has_kink(around, error)
    }

    /// The steps that are tried: first the one that has told something before, as the kinks are as near as they were.
    fn steps(&self, rounding: Rounding) -> Vec<f64> {
        let mut steps = rounding.steps().to_vec();
        steps.sort_by_key(|&h| h != self.first.get());
        steps
    }

    /// Runs the function at a step, forwards and backwards, beside what is known at half of it.
    fn around(&self, direction: &Direction, h: f64, near: Pair, fine: f64) -> Result<Around, Trouble> {
        let far = self.pair(direction, h)?;
        let coarse = self.dot(&far[0], &far[1]) / (2.0 * h);
        Ok(Around { h, far, near, coarse, fine })
    }

    /// Whether the slopes on both sides differ by a part of an error, however short the step.
    fn has_kink(&self, around: &Around, error: f64) -> bool {
        let bend = |[plus, minus]: &Pair, h: f64| self.bend(plus, minus) / h;
        let (far, near) = (bend(&around.far, around.h), bend(&around.near, around.h / 2.0));
        near > 0.75 * far && near > 0.1 * error
    }

    fn pair(&self, direction: &Direction, h: f64) -> Result<Pair, Trouble> {
        Ok([self.evaluate(direction, h)?, self.evaluate(direction, -h)?])
    }

    fn evaluate(&self, direction: &[(&Target, Vec<f64>)], h: f64) -> Result<Vec<Vec<f64>>, Trouble> {
        let mut feeds = self.feeds.clone();
        for (target, v) in direction {
            let moved: Vec<f64> = target.base.iter().zip(v).map(|(x, v)| x + h * v).collect();
            feeds.insert(target.input.clone(), Arc::new(tensors::double(&target.dims, &moved)?));
        }
        let outputs = self.plan.run(&feeds)?;
        let values = self.seeds.iter().map(|(y, seed)| {
            let tensor = outputs.get(y).ok_or_else(|| Trouble::Failed(format!("'{y}' was not computed")))?;
            let values = tensor.values();
            match values.len() == seed.len() {
                true => Ok(values),
                false => {
                    Err(Trouble::Failed(format!("the seed of '{y}' has {} elements for {}", seed.len(), values.len())))
                }
            }
        });
        values.collect()
    }

    /// Σ |seed (a - 2 y + b)|: kinks of different ys do not cancel.
    fn bend(&self, a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
        let mut sum = 0.0;
        for (i, (_, seed)) in self.seeds.iter().enumerate() {
            for (((s, y), a), b) in seed.iter().zip(&self.base[i]).zip(&a[i]).zip(&b[i]) {
                sum += (s * ((a - y) + (b - y))).abs();
            }
        }
        sum
    }

    /// ⟨seed, a - b⟩: the difference is taken before the sum, where less is lost.
    fn dot(&self, a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
        let terms = self.seeds.iter().zip(a.iter().zip(b));
        terms.map(|((_, s), (a, b))| s.iter().zip(a.iter().zip(b)).map(|(s, (a, b))| s * (a - b)).sum::<f64>()).sum()
    }
}

/// The ys at plus and minus a step.
type Pair = [Vec<Vec<f64>>; 2];

/// The ys at ± one step and at ± half of it, and the slopes that each pair says.
struct Around {
    h: f64,
    far: Pair,
    near: Pair,
    coarse: f64,
    fine: f64,
}

/// Whether two slopes say the same: steps that are longer than what the function does between them say anything, each
/// something else.
fn steady(a: f64, b: f64, noise: f64) -> bool {
    (a - b).abs() <= 0.1 * a.abs().max(b.abs()) + noise
}

/// What the gradients say of a direction.
struct Claim {
    claimed: f64,
    /// The size of slopes along such directions.
    typical: f64,
    tolerance: Tolerance,
}

/// A claim beside a slope that was measured.
struct Beside {
    claimed: f64,
    /// The size of the slope, or of slopes along such directions.
    size: f64,
    /// What errors are relative to.
    scale: f64,
    error: f64,
    allowed: f64,
    agrees: bool,
    /// Whether noise is far below the error that is looked for: what is nearly as large is not taken for the last word.
    is_sure: bool,
}

impl Claim {
    fn beside(&self, slope: f64, noise: f64) -> Beside {
        let size = self.typical.max(slope.abs());
        let (allowed, scale) = match self.tolerance {
            Tolerance::Relative(bound) => (bound * size, size),
            Tolerance::Part(allowed, part) => (allowed, part),
        };
        let error = (slope - self.claimed).abs();
        let agrees = error <= allowed + noise && noise <= 1e-2 * scale && scale > 0.0;
        let is_sure = noise <= 0.1 * allowed.max(1e-4 * scale);
        Beside { claimed: self.claimed, size, scale, error, allowed, agrees, is_sure }
    }
}

impl Beside {
    fn measured(&self, slope: f64) -> Measured {
        Measured::new(self.claimed, slope, self.size)
    }
}

/// The slope that the gradients claim, and how large it is along directions of this kind, on average: this one may
/// happen to be flat.
fn claims(direction: &Direction) -> (f64, f64) {
    let (mut claimed, mut squares) = (0.0, 0.0);
    for (target, v) in direction {
        for (g, v) in target.gradient.iter().zip(v) {
            claimed += g * v;
            squares += (g * v) * (g * v);
        }
    }
    (claimed, if claimed.is_finite() { f64::sqrt(squares) } else { 0.0 })
}

impl Target {
    /// This target with a gradient that claims to be zero.
    pub fn without_gradient(&self) -> Target {
        Target { gradient: Arc::new(vec![0.0; self.base.len()]), ..self.clone() }
    }

    /// A random direction: a number for each element, none of them near zero.
    pub fn direction(&self, random: &mut fastrand::Rng) -> Vec<f64> {
        (0..self.base.len()).map(|_| sign(random) * (0.25 + 0.75 * random.f64()) * self.reach).collect()
    }

    /// The size of the slope along such a direction.
    pub fn typical(&self) -> f64 {
        self.gradient.iter().map(|g| g * g).sum::<f64>().sqrt() * self.reach
    }

    /// The size of the part that an element has in the slope, where it has one.
    pub fn part(&self) -> f64 {
        let (count, squares) =
            self.gradient.iter().filter(|g| **g != 0.0).fold((0, 0.0), |(n, sum), g| (n + 1, sum + g * g));
        if count == 0 { 0.0 } else { (squares / f64::from(count)).sqrt() * self.reach }
    }

    /// A direction in which each of these elements has an equal part in the slope, or as near to it as a step may be
    /// large.
    pub fn balanced(&self, elements: &[usize], random: &mut fastrand::Rng) -> Vec<f64> {
        let (part, mut v) = (self.part(), vec![0.0; self.base.len()]);
        for &i in elements {
            let g = self.gradient[i].abs();
            let size = if g > 0.0 { (part / g).min(100.0 * self.reach) } else { self.reach };
            v[i] = sign(random) * (0.5 + 0.5 * random.f64()) * size;
        }
        v
    }
}

fn sign(random: &mut fastrand::Rng) -> f64 {
    if random.bool() { -1.0 } else { 1.0 }
}

/// The root of the mean square, or 1 where that is zero: zeros say nothing about how large an x is. Nor do masks of
/// huge numbers about the numbers beside them.
pub fn reach(values: &[f64]) -> f64 {
    let mean = |values: &mut dyn Iterator<Item = &f64>| {
        let (count, squares) = values.fold((0usize, 0.0), |(n, sum), v| (n + 1, sum + v * v));
        (count > 0).then(|| (squares / count as f64).sqrt())
    };
    let usual = mean(&mut values.iter().filter(|v| v.abs() < HUGE));
    let reach = usual.or_else(|| mean(&mut values.iter())).unwrap_or(1.0);
    if reach > 0.0 && reach.is_finite() { reach } else { 1.0 }
}

/// What is no smaller than this stands for infinity.
const HUGE: f64 = 1e4;
