//! A call of tf.gradients: what is asked for.

use super::Aggregation;
use super::wanted::Wanted;
use crate::memory::Budget;
use crate::onnx::{FunctionProto, TensorProto};
use crate::rules::Rule;

/// The gradient that a y starts with.
#[expect(clippy::large_enum_variant, reason = "there is one for each y")]
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Seed {
    /// Ones: the derivative of the sum of y's elements.
    #[default]
    Ones,
    /// A number in every place.
    Fill(f64),
    /// A new graph input of y's type and shape, of that name or of one that is made up.
    Input(Option<String>),
    /// A tensor of the graph, which counts as a constant in this call.
    Tensor(String),
    /// A constant.
    Constant(TensorProto),
}

/// What stands for the gradient of an x that no y depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unconnected {
    /// Nothing.
    #[default]
    None,
    /// Zeros of x's type and shape.
    Zero,
}

/// A request for gradients, as of tf.gradients: the sum of the derivatives of ys with respect to each of xs.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    pub(super) ys: Vec<Wanted>,
    pub(super) xs: Vec<Wanted>,
    pub(super) stops: Vec<Wanted>,
    /// Seeds in the order of the ys.
    pub(super) seeds: Vec<Seed>,
    /// Seeds of single ys by name, which go before those.
    pub(super) own_seeds: Vec<(String, Seed)>,
    /// The seed of every other y.
    pub(super) common_seed: Seed,
    /// The scope of all new names; `None` for that of the request.
    pub(crate) name: Option<String>,
    pub(crate) aggregation: Aggregation,
    pub(crate) unconnected: Unconnected,
    pub(crate) colocate: bool,
    pub(crate) only_gradients: bool,
    pub(crate) rules: Vec<Rule>,
    pub(crate) functions: Vec<FunctionProto>,
    pub(crate) straight_through: bool,
    pub(crate) memory_budget: Option<Budget>,
}

impl Seed {
    /// The tensor of the graph that it is, by name.
    pub(super) fn tensor(&self) -> Option<&str> {
        match self {
            Seed::Tensor(name) => Some(name),
            _ => None,
        }
    }
}

impl Gradients {
    /// The derivatives of `ys` with respect to `xs`, which are tensors of the main graph: inputs, initializers, node
    /// outputs; see [`Wanted`] for what says which.
    pub fn new<Y: Into<Wanted>, X: Into<Wanted>>(
        ys: impl IntoIterator<Item = Y>,
        xs: impl IntoIterator<Item = X>,
    ) -> Self {
        Gradients {
            ys: ys.into_iter().map(Into::into).collect(),
            xs: xs.into_iter().map(Into::into).collect(),
            ..Gradients::default()
        }
    }

    /// One more x, or all that are meant by it.
    pub fn with_respect_to(mut self, x: impl Into<Wanted>) -> Self {
        self.xs.push(x.into());
        self
    }

    /// Seeds for all ys, in their order. Without any, each is [`Seed::Ones`].
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = Seed>) -> Self {
        self.seeds = seeds.into_iter().collect();
        self
    }

    /// The seed of one y. The others keep theirs. That no y has the name is an error of [`Gradients::build`].
    pub fn seed(mut self, y: impl Into<String>, seed: Seed) -> Self {
        self.own_seeds.push((y.into(), seed));
        self
    }

    /// The seed of every y that is given none of its own.
    pub fn seed_each(mut self, seed: Seed) -> Self {
        self.common_seed = seed;
        self
    }

    /// Whether any seed was given.
    pub(crate) fn has_seeds(&self) -> bool {
        !self.seeds.is_empty() || !self.own_seeds.is_empty() || self.common_seed != Seed::Ones
    }

    /// Tensors that no gradient passes: they count as constants.
    pub fn stop<S: Into<Wanted>>(mut self, stops: impl IntoIterator<Item = S>) -> Self {
        self.stops.extend(stops.into_iter().map(Into::into));
        self
    }

    /// This request about other tensors, without seeds.
    pub(crate) fn about(&self, ys: &[String], xs: &[String], stops: &[String]) -> Self {
        let wanted = |names: &[String]| names.iter().map(Wanted::from).collect();
        let (seeds, own_seeds, common_seed) = (vec![], vec![], Seed::Ones);
        Gradients {
            ys: wanted(ys),
            xs: wanted(xs),
            stops: wanted(stops),
            seeds,
            own_seeds,
            common_seed,
            ..self.clone()
        }
    }

    /// The scope of all new names; made unique where the model has names in it.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The scope of all new names where none is given.
    pub(crate) fn named_by_default(mut self, name: &str) -> Self {
        self.name.get_or_insert_with(|| name.to_owned());
        self
    }

    /// The scope of all new names.
    pub(crate) fn scope(&self) -> &str {
        self.name.as_deref().unwrap_or("gradients")
    }

    /// How gradients that arrive at one tensor are summed.
    pub fn aggregation(mut self, aggregation: Aggregation) -> Self {
        self.aggregation = aggregation;
        self
    }

    /// What stands for the gradient of an x that no y depends on.
    pub fn unconnected(mut self, unconnected: Unconnected) -> Self {
        self.unconnected = unconnected;
        self
    }

    /// Whether backward nodes take over the devices and the placement metadata of their forward nodes.
    pub fn colocate(mut self, colocate: bool) -> Self {
        self.colocate = colocate;
        self
    }

    /// Whether the model's own outputs go, with what only they need.
    pub fn only_gradients(mut self, only: bool) -> Self {
        self.only_gradients = only;
        self
    }

    /// A row of one's own, for an operator of one's own or in place of the table's. What it says of the outputs' facts
    /// counts where the request loads the model itself ([`Gradients::build`]).
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Gradients for operators, as ONNX functions of the operators' own domains and names. Their inputs are the node's
    /// inputs, its outputs, and the gradients of those; their outputs are the gradients of the inputs, in their order.
    pub fn functions(mut self, functions: impl IntoIterator<Item = FunctionProto>) -> Self {
        self.functions.extend(functions);
        self
    }

    /// Whether rounding in quantization counts as the identity, as it does in training by custom (the straight-through
    /// estimate): what lies within the range of the integers passes its gradient on, and integers carry gradients of
    /// floating-point type through what moves them. Round, Floor and Ceil pass theirs, too. Otherwise derivatives are
    /// the true ones, and nothing passes integers.
    pub fn straight_through(mut self, straight_through: bool) -> Self {
        self.straight_through = straight_through;
        self
    }

    /// How much the model may hold at a time, its nodes running in their order: tensors of the forward pass are
    /// computed again for the backward pass instead of kept until no more is held. The gradients are the same, bit by
    /// bit; what draws random numbers runs once. That the budget cannot be met is an error of [`Gradients::build`].
    pub fn memory_budget(mut self, budget: Budget) -> Self {
        self.memory_budget = Some(budget);
        self
    }
}
