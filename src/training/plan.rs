//! What the models of a training have in common: parameters, losses, the optimizer, and every name.

use super::losses::LossSpec;
use super::metrics::MetricSpec;
use super::optimizers::{Hyper, Optimizer};
use crate::memory::Budget;
use crate::onnx::{ElementType, FunctionProto};

pub use crate::expr::PREVIEW;

/// A parameter as the step has it.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The input.
    pub name: String,
    /// The element type of the input.
    pub element: ElementType,
    /// The sizes.
    pub dims: Vec<i64>,
    /// The updated one.
    pub next: String,
    /// The gradient.
    pub gradient: String,
    /// The sum of gradients, and the updated sum.
    pub sum: [String; 2],
    /// The states of the optimizer, and the updated ones.
    pub states: Vec<[String; 2]>,
    /// The factor on the learning rate.
    pub rate: f64,
    /// The weight decay.
    pub decay: f64,
}

/// Dynamic loss scaling: the scale and the count of good steps since it last changed, with their updated ones.
#[derive(Clone, Debug)]
pub struct Scaling {
    /// What the factor starts with.
    pub initial: f64,
    /// The factor on the loss.
    pub scale: [String; 2],
    /// The count.
    pub good: [String; 2],
}

/// After so many steps without overflow the loss is scaled by twice as much.
pub const GROWTH_INTERVAL: i64 = 2000;

/// What all models of a training have in common.
#[derive(Clone)]
pub struct Plan {
    /// The parameters.
    pub slots: Vec<Slot>,
    /// The losses.
    pub losses: Vec<LossSpec>,
    /// Statistics that come out updated: the input, the tensor of the model, the output.
    pub statistics: Vec<[String; 3]>,
    /// The optimizer.
    pub optimizer: &'static Optimizer,
    /// Its numbers.
    pub hyper: Hyper,
    /// Whether its updates are operators of [`PREVIEW`].
    pub preview: bool,
    /// The bound on the norm of all gradients.
    pub clip_norm: Option<f64>,
    /// The bound on each element.
    pub clip_value: Option<f64>,
    /// The scaling of the loss.
    pub scaling: Option<Scaling>,
    /// The number of micro-batches.
    pub accumulate: usize,
    /// The metrics of outputs, with their names.
    pub metrics: Vec<(MetricSpec, String)>,
    /// Whether each of them must be one of some loss.
    pub insists: bool,
    /// Whether rounding counts as the identity.
    pub straight_through: bool,
    /// The tensors that no gradient passes.
    pub stops: Vec<String>,
    /// Gradients of operators that the user gives.
    pub functions: Vec<FunctionProto>,
    /// How much a step may hold at a time.
    pub memory_budget: Option<Budget>,
    /// The input for the learning rate, and its type.
    pub rate: (String, ElementType),
    /// The input that counts steps, and the updated one.
    pub step: [String; 2],
    /// The name of the loss.
    pub loss: String,
    /// The name of the norm of all gradients, where it comes out.
    pub norm: Option<String>,
}
