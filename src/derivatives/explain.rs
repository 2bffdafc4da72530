//! Explanations of a classifier's prediction: which parts of its input speak for a class, by the formulas of the
//! papers.

use super::claim::{Claim, Kind};
use super::products::{entries, of_x};
use super::workspace::Workspace;
use super::{Derived, Entry, Vector};
use crate::backward::Gradients;
use crate::expr::Expr;
use crate::graph::{Dim, Fact, Shape, ValueId};
use crate::model::Model;
use crate::onnx::ElementType;
use anyhow::{Context, Result, bail, ensure};

/// How a prediction is explained. `S` is the score of a class, x the input, [N, C, H, W] of images.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Method {
    /// `max |∂S/∂x|` over the channels: an image without them (Simonyan, Vedaldi, Zisserman 2013, "Deep inside
    /// convolutional networks").
    Saliency,
    /// `x ∂S/∂x`, of x's shape (Shrikumar, Greenside, Shcherbina, Kundaje 2016, "Not just a black box").
    InputXGradient,
    /// `relu(Σ αₖ Aᵏ)` over the channels `Aᵏ` of a layer, `αₖ` the mean of `∂S/∂Aᵏ` over the places (Selvaraju et al.
    /// 2016, "Grad-CAM"): of the layer's size, and enlarged to x's, linearly.
    GradCam {
        /// The layer; else the last tensor between x and the scores that has places like x.
        layer: Option<String>,
    },
    /// `(x - x₀) ∫ ∂S(x₀ + α (x - x₀))/∂x dα`, α from 0 to 1, of x's shape (Sundararajan, Taly, Yan 2017, "Axiomatic
    /// attribution for deep networks"), by Gauss and Legendre's rule. It sums up to `S(x) - S(x₀)`.
    IntegratedGradients {
        /// The number of points.
        steps: usize,
        /// x₀: a number in every place; `None` for a new input of x's shape.
        baseline: Option<f64>,
    },
    /// The saliency of the mean of `∂S(x + n)/∂x` over several n of normal noise, whose standard deviation is a share
    /// of the range of x in its sample (Smilkov, Thorat, Kim, Viégas, Wattenberg 2017, "SmoothGrad").
    SmoothGrad {
        /// The number of n.
        samples: usize,
        /// The share of the range.
        noise: f64,
        /// What the noise follows from; `None` for standard normal numbers from a new input of shape `[samples] +
        /// x.shape`.
        seed: Option<i64>,
    },
}

impl Method {
    fn name(&self) -> &'static str {
        match self {
            Method::Saliency => "saliency",
            Method::InputXGradient => "input-x-gradient",
            Method::GradCam { .. } => "grad-cam",
            Method::IntegratedGradients { .. } => "integrated-gradients",
            Method::SmoothGrad { .. } => "smooth-grad",
        }
    }
}

/// Which class is explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// The class with the highest score.
    #[default]
    Predicted,
    /// The class with this number.
    Number(i64),
    /// The one that a new input says, an integer a sample: scores' shape without the axis of classes.
    Input,
}

/// A request for an explanation of one y, scores of classes, by each of xs.
#[derive(Clone, Debug)]
pub struct Explain {
    call: Gradients,
    method: Method,
    class: Class,
    class_axis: i64,
    channels: Option<i64>,
    keep_softmax: bool,
}

builds!(
    Explain, "the explanation",
    "Names of no tensor, several ys, tensors of unknown rank or without the axes that are needed, no layer that"
    "Grad-CAM could look at, operators without a gradient between y and xs."
);

impl Explain {
    /// By a method, of the y and xs of a call.
    pub fn new(call: Gradients, method: Method) -> Self {
        let call = call.named_by_default(method.name());
        Explain { call, method, class: Class::Predicted, class_axis: -1, channels: None, keep_softmax: false }
    }

    /// Which class is explained.
    pub fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// The axis of y that runs over classes: the last one if none is given. A y without axes behind the samples, or
    /// with one class, is a score itself.
    pub fn class_axis(mut self, axis: i64) -> Self {
        self.class_axis = axis;
        self
    }

    /// The axis of x that runs over channels: 1 of four axes and more, else the last one of three (the features of
    /// tokens).
    pub fn channels(mut self, axis: i64) -> Self {
        self.channels = Some(axis);
        self
    }

    /// Whether probabilities are explained where the model ends in a Softmax: the papers explain the scores before it.
    pub fn keep_softmax(mut self, keep: bool) -> Self {
        self.keep_softmax = keep;
        self
    }

    fn derived(&self, model: Model) -> Result<Derived> {
        let mut w = Workspace::open(&self.call, model)?;
        if !self.keep_softmax {
            w.take_off_softmax()?;
        }
        let (_, names) = w.names();
        let (mut outputs, mut vectors) = (Vec::new(), Vec::new());
        let found = {
            let y = w.only_y()?;
            let selected = self.selected(&w, y, &mut vectors)?;
            let xs = w.xs();
            if let Method::GradCam { layer } = &self.method {
                self.grad_cam(&w, &mut outputs, y, selected, layer.as_deref())?
            } else {
                let gradients = w.gradients(&[(y, selected)], &xs)?;
                let each = xs.iter().zip(&names).zip(gradients).map(|((x, name), g)| {
                    let explained = g.map(|g| self.map(&w, name, *x, g, selected, &mut vectors));
                    explained.transpose().with_context(|| format!("the explanation by '{name}'"))
                });
                let maps = each.collect::<Result<Vec<_>>>()?;
                let like: Vec<Expr<'_>> = maps.iter().zip(&xs).map(|(map, x)| map.unwrap_or(*x)).collect();
                entries(&w, &mut outputs, &maps, &like, &names, of_x)
            }
        };
        w.finish(outputs, found, vectors, Claim::of(Kind::Explanation))
    }

    /// Ones in the places of y that hold the scores of the class, zeros elsewhere.
    fn selected<'g>(&self, w: &'g Workspace, y: Expr<'g>, vectors: &mut Vec<Vector>) -> Result<Expr<'g>> {
        let rank = y.rank()?;
        if self.class == Class::Predicted && (rank == 0 || y.known_dim(y.axis(self.class_axis)?) == Some(1)) {
            return Ok(y.ones_like());
        }
        ensure!(rank > 0, "y is a single score and has no axis of classes");
        let b = w.builder();
        let axis = y.axis(self.class_axis)?;
        let class = match self.class {
            Class::Predicted => y.arg_max(axis),
            Class::Number(n) => {
                let count = y.known_dim(axis);
                ensure!(
                    n >= 0 && count.is_none_or(|count| n < count),
                    "there is no class {n}: y has {} classes, counted from 0",
                    count.unwrap_or_default()
                );
                b.int(n)
            }
            Class::Input => {
                let shape: Shape =
                    (y.sizes()?.iter().enumerate()).filter(|(a, _)| *a != axis).map(|(_, d)| *d).collect();
                let (class, name) = w.input("class", Fact::tensor(Some(ElementType::Int64), Some(shape)));
                vectors.push(Vector { of: "class".to_owned(), name });
                class.unsqueeze(&[axis])
            }
        };
        let places: Vec<i64> = (0..rank).map(|a| if a == axis { -1 } else { 1 }).collect();
        Ok(b.range(y.dim(axis)).reshape_to(&places).equal(class).cast_like(y).expand_like(y))
    }

    fn map<'g>(
        &self,
        w: &'g Workspace,
        name: &str,
        x: Expr<'g>,
        g: Expr<'g>,
        selected: Expr<'g>,
        vectors: &mut Vec<Vector>,
    ) -> Result<Expr<'g>> {
        // The class is that of x itself wherever the gradient is taken.
        let gradient_at = |other: Expr<'g>| {
            let found = w.again(&[(x, other), (selected, selected)], &[g]).first().copied();
            found.context("a gradient without a value")
        };
        // A tensor of the user's instead of a number.
        let mut given = |what: &str, fact: Fact| {
            let (input, vector) = w.input(&format!("{what}/{name}"), fact);
            vectors.push(Vector { of: name.to_owned(), name: vector });
            input
        };
        match &self.method {
            Method::Saliency | Method::GradCam { .. } => self.without_channels(g),
            Method::InputXGradient => Ok(x * g),
            Method::IntegratedGradients { steps, baseline } => {
                ensure!(*steps > 0, "integrated gradients need one step at least");
                let start = baseline.map_or_else(|| given("baseline", x.fact()), |number| x.full_like(number));
                integrated(x, start, *steps, &gradient_at)
            }
            Method::SmoothGrad { samples, noise, seed } => {
                ensure!(*samples > 0, "SmoothGrad needs one sample at least");
                let along = match seed {
                    None => {
                        let mut shape = vec![Dim::Known(*samples as i64)];
                        shape.extend(x.sizes()?);
                        given("noise", Fact::tensor(x.fact().element, Some(shape.into())))
                    }
                    Some(_) => w.builder().range(w.builder().int(*samples as i64)),
                };
                let sum = smoothed(x, along, *noise, *seed, &gradient_at)?;
                self.without_channels(sum * (1.0 / *samples as f64))
            }
        }
    }

    /// The largest of a gradient's magnitudes over the channels, which go.
    fn without_channels<'g>(&self, g: Expr<'g>) -> Result<Expr<'g>> {
        Ok(match channel_axis(g, self.channels)? {
            Some(axis) => g.abs().maximum(&[axis]).squeeze(&[axis]),
            None => g.abs(),
        })
    }

    fn grad_cam(
        &self,
        w: &Workspace,
        outputs: &mut Vec<(ValueId, String)>,
        y: Expr<'_>,
        selected: Expr<'_>,
        layer: Option<&str>,
    ) -> Result<Vec<Entry>> {
        let (_, xs) = w.names();
        let [x] = w.xs()[..] else { bail!("Grad-CAM is about one x; {} are given", xs.len()) };
        let a = match layer {
            Some(name) => w.tensor(name)?,
            None => w.last_like(x, y).context(
                "no layer between x and y has channels and places like x; name one whose axis 1 runs over channels (--layer)",
            )?,
        };
        let rank = a.rank()?;
        ensure!(rank >= 3, "layer {a} has {rank} axes; Grad-CAM averages over the places of channels, axes 2 and on");
        let places: Vec<usize> = (2..rank).collect();
        let Some(g) = w.gradients(&[(y, selected)], &[a])?.first().copied().flatten() else {
            bail!("y does not depend on layer {a}; name another (--layer)")
        };
        let cam = (g.mean(&places) * a).sum_out(&[1]).relu();
        let name = w.output(outputs, cam, "layer", cam.fact());
        let mut found = vec![Entry { x: Some(w.name_of(a)), name: Some(name), ..Entry::default() }];
        if rank == x.rank()? {
            let mut enlarged = cam;
            for axis in 1..rank - 1 {
                enlarged = enlarged.interpolated(axis, x.dim(axis + 1))?;
            }
            let sizes = x.sizes()?;
            let shape: Shape = sizes.iter().take(1).chain(sizes.iter().skip(2)).copied().collect();
            let fact = Fact::tensor(x.fact().element, Some(shape));
            let name = w.output(outputs, enlarged, &xs[0], fact);
            found.insert(0, of_x(xs[0].clone(), Some(name)));
        }
        Ok(found)
    }
}

/// The axis of channels.
fn channel_axis(x: Expr<'_>, given: Option<i64>) -> Result<Option<usize>> {
    Ok(match (given, x.rank()?) {
        (Some(axis), _) => Some(x.axis(axis)?),
        (None, 4..) => Some(1),
        (None, 3) => Some(2),
        (None, _) => None,
    })
}

/// `(x - start) Σ weight gradient`, over points between both (Gauss-Legendre).
fn integrated<'g>(
    x: Expr<'g>,
    start: Expr<'g>,
    steps: usize,
    gradient_at: &impl Fn(Expr<'g>) -> Result<Expr<'g>>,
) -> Result<Expr<'g>> {
    let (b, way, element) = (x.builder(), x - start, x.element()?);
    let (points, weights) = gauss_legendre(steps);
    let list = |values: &[f64]| b.numbers(values, &[values.len() as i64], element);
    let step = |sum: &[Expr<'g>], now: &[Expr<'g>]| {
        let (&[sum], &[point, weight]) = (sum, now) else { bail!("a step without its tensors") };
        Ok((vec![sum + gradient_at(start + way * point)? * weight], vec![]))
    };
    let (sum, _) = b.run_along(&[x.zeros_like()], &[list(&points), list(&weights)], false, step)?;
    Ok(way * *sum.first().context("a sum without a value")?)
}

/// The sum of the gradients at x with noise: as much of what lies `along` the steps, or of numbers that each step draws
/// from a seed, as the range of x says.
fn smoothed<'g>(
    x: Expr<'g>,
    along: Expr<'g>,
    noise: f64,
    seed: Option<i64>,
    gradient_at: &impl Fn(Expr<'g>) -> Result<Expr<'g>>,
) -> Result<Expr<'g>> {
    let axes: Vec<usize> = (1..x.rank()?).collect();
    let deviation = (x.maximum(&axes) - x.minimum(&axes)) * noise;
    let step = |sum: &[Expr<'g>], now: &[Expr<'g>]| {
        let (&[sum], &[now]) = (sum, now) else { bail!("a step without its tensors") };
        // Numbers that are drawn in the step are others in the next one.
        let normal = seed.map_or(now, |seed| x.random_normal_like(seed));
        Ok((vec![sum + gradient_at(x + normal * deviation)?], vec![]))
    };
    let (sum, _) = x.builder().run_along(&[x.zeros_like()], &[along], false, step)?;
    sum.first().copied().context("a sum without a value")
}

/// The points and weights of Gauss and Legendre's rule of `n` points on the interval from 0 to 1: the zeros of the
/// Legendre polynomial `Pₙ`, found by Newton's method, and `2 / ((1 - z²) Pₙ'(z)²)`.
fn gauss_legendre(n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut rule = Vec::with_capacity(n);
    for i in 0..n {
        let mut z = (std::f64::consts::PI * (i as f64 + 0.75) / (n as f64 + 0.5)).cos();
        let mut slope = 0.0;
        for _ in 0..100 {
            let (mut before, mut value) = (0.0, 1.0);
            for k in 0..n {
                let k = k as f64;
                (before, value) = (value, ((2.0 * k + 1.0) * z * value - k * before) / (k + 1.0));
            }
            slope = n as f64 * (z * value - before) / (z * z - 1.0);
            let step = value / slope;
            z -= step;
            if step.abs() < 1e-16 {
                break;
            }
        }
        rule.push(((1.0 - z) / 2.0, 1.0 / ((1.0 - z * z) * slope * slope)));
    }
    rule.into_iter().unzip()
}

#[cfg(test)]
mod tests {
    use super::gauss_legendre;

    #[test]
    fn polynomials_are_integrated_exactly() {
        for n in [1, 2, 5, 50] {
            let (points, weights) = gauss_legendre(n);
            for power in 0..2 * n as i32 {
                let sum: f64 = points.iter().zip(&weights).map(|(z, weight)| weight * z.powi(power)).sum();
                assert!((sum - 1.0 / (f64::from(power) + 1.0)).abs() < 1e-14, "{n} points, power {power}: {sum}");
            }
        }
    }
}
