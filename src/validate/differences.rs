//! Gradients against central differences.
//!
//! L(xs) = Σ ⟨seed, y⟩, the seeds held constant. Along a direction v the slope of L is ⟨g, v⟩, and
//! D(h) = (L(x + h v) - L(x - h v)) / 2h is that slope up to h²; Richardson's (4 D(h/2) - D(h)) / 3 is it up to h⁴.
//! Every x is perturbed on its own: one that a node computes gets an input added to it, so that what flows into it from
//! another x stays as it is, and a direction over all xs together has the slope Σ ⟨g, v⟩, whichever depends on which.

use super::engine::Run;
use super::engine::Trouble;
use super::tensors::{self, Tensors};
use std::sync::Arc;
use std::time::Instant;

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
            Rounding::Half => 1e-2,
            Rounding::Single => 2e-2,
        }
    }

    /// The steps that are tried.
    fn steps(self) -> &'static [f64] {
        match self {
            Rounding::Single => &[1e-2, 4e-2, 2e-3],
            _ => &[1e-4, 1e-5, 1e-3, 1e-6],
        }
    }

    fn epsilon(self) -> f64 {
        match self {
            Rounding::Single => f32::EPSILON.into(),
            _ => f64::EPSILON,
        }
    }
}

/// A tensor to perturb: an input of the plan, its value, the gradient that is to be checked.
pub struct Target {
    /// The input of the plan.
    pub input: String,
    /// Its value where nothing is perturbed.
    pub base: Arc<Vec<f64>>,
    /// The dimensions.
    pub dims: Vec<usize>,
    /// What the gradient claims to be.
    pub gradient: Vec<f64>,
    /// How far to go: the size of the elements of x.
    pub reach: f64,
}

/// The function whose slopes are measured.
pub struct Function<'a> {
    /// Computes the ys.
    pub plan: &'a dyn Run,
    /// Every input, unperturbed.
    pub feeds: Tensors,
    /// For each y its name and seed.
    pub seeds: Vec<(String, Vec<f64>)>,
    /// When to stop measuring.
    pub deadline: Instant,
    base: Vec<Vec<f64>>,
    /// Σ |seed y|: what rounding is relative to.
    magnitude: f64,
}

/// What a direction says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// The gradient is the slope, but for this relative error.
    Agrees(f64),
    /// The gradient is not the slope, by this relative error.
    Differs(f64),
    /// There is no slope to speak of: steps of different lengths contradict each other.
    Rough,
}

impl<'a> Function<'a> {
    /// Runs the plan once, unperturbed.
    pub fn new(
        plan: &'a dyn Run,
        feeds: Tensors,
        seeds: Vec<(String, Vec<f64>)>,
        deadline: Instant,
    ) -> Result<Self, Trouble> {
        let mut function = Function { plan, feeds, seeds, deadline, base: vec![], magnitude: 0.0 };
        function.base = function.evaluate(&[], 0.0)?;
        let products = function.seeds.iter().zip(&function.base).flat_map(|((_, s), y)| s.iter().zip(y));
        function.magnitude = products.map(|(s, y)| (s * y).abs()).sum();
        Ok(function)
    }

    /// The slope of L along the direction, compared with that of the gradients.
    pub fn compare(&self, direction: &[(&Target, Vec<f64>)], rounding: Rounding) -> Result<Outcome, Trouble> {
        let (mut expected, mut squares) = (0.0, 0.0);
        for (target, v) in direction {
            for (g, v) in target.gradient.iter().zip(v) {
                expected += g * v;
                squares += (g * v) * (g * v);
            }
        }
        // How large the slope is along directions of this kind, on average; this one may happen to be flat.
        let typical = squares.sqrt();
        let (bound, epsilon) = (rounding.bound(), rounding.epsilon());
        let mut last: Option<f64> = None;
        let mut differs = None;
        for &h in rounding.steps() {
            let [plus, minus] = self.pair(direction, h)?;
            let [near_plus, near_minus] = self.pair(direction, h / 2.0)?;
            let coarse = self.dot(&plus, &minus) / (2.0 * h);
            let fine = self.dot(&near_plus, &near_minus) / h;
            let slope = (4.0 * fine - coarse) / 3.0;
            let noise = 64.0 * epsilon * self.magnitude / h;
            let scale = typical.max(slope.abs());
            let error = (slope - expected).abs();
            if !slope.is_finite() {
                continue;
            }
            // Noise as large as the slope hides every error: such a step proves nothing, unless both are zero.
            if error <= bound * scale + noise && (noise <= 1e-2 * scale || scale <= noise) {
                return Ok(Outcome::Agrees(relative(error, scale)));
            }
            let bend =
                |p: &[Vec<f64>], m: &[Vec<f64>], h: f64| (self.dot(p, &self.base) + self.dot(m, &self.base)).abs() / h;
            let (far, near) = (bend(&plus, &minus, h), bend(&near_plus, &near_minus, h / 2.0));
            // At a kink the slopes on both sides differ, however short the step.
            let kink = near > 0.75 * far && near > 0.1 * error;
            let uncertainty = (coarse - fine).abs() + noise;
            if !kink && uncertainty <= 0.1 * error {
                if last.is_some_and(|last| (last - slope).abs() <= 0.1 * error) {
                    differs = Some(Outcome::Differs(relative(error, scale)));
                }
                last = Some(slope);
            }
        }
        Ok(differs.unwrap_or(Outcome::Rough))
    }

    fn pair(&self, direction: &[(&Target, Vec<f64>)], h: f64) -> Result<[Vec<Vec<f64>>; 2], Trouble> {
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

    /// ⟨seed, a - b⟩: the difference is taken before the sum, where less is lost.
    fn dot(&self, a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
        let terms = self.seeds.iter().zip(a.iter().zip(b));
        terms.map(|((_, s), (a, b))| s.iter().zip(a.iter().zip(b)).map(|(s, (a, b))| s * (a - b)).sum::<f64>()).sum()
    }

    /// Whether the time that was given is over.
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

fn relative(error: f64, scale: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / scale.max(f64::MIN_POSITIVE) }
}

impl Target {
    /// A random direction: a number for each element, none of them near zero.
    pub fn direction(&self, random: &mut fastrand::Rng) -> Vec<f64> {
        let number = |_| (0.25 + 0.75 * random.f64()) * self.reach;
        let mut v: Vec<f64> = (0..self.base.len()).map(number).collect();
        for v in &mut v {
            if random.bool() {
                *v = -*v;
            }
        }
        v
    }

    /// The size of the slope along such a direction.
    pub fn typical(&self) -> f64 {
        self.gradient.iter().map(|g| g * g).sum::<f64>().sqrt() * self.reach
    }
}

/// The root of the mean square, or 1 where that is zero: zeros say nothing about how large an x is.
pub fn reach(values: &[f64]) -> f64 {
    let mean = values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64;
    let reach = mean.sqrt();
    if reach > 0.0 && reach.is_finite() { reach } else { 1.0 }
}
