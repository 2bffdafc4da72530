//! What a user asks for.

use super::losses::LossSpec;
use super::optimizers::Hyper;
use super::select::Choice;
use crate::memory::Budget;
use crate::model::Model;
use crate::onnx::{FunctionProto, ModelProto};

/// A request for a trainable model: from an inference model and losses the models of a training, each a file that any
/// runtime steps through. By default all weights are trained, by AdamW as PyTorch has it.
///
/// ```
/// use onnx_gradients::Model;
/// use onnx_gradients::training::{Choice, LossSpec, Trainable, optimizer};
///
/// # fn main() -> Result<(), onnx_gradients::Error> {
/// let model = Model::load("models/digits-mlp.onnx")?;
/// let hyper = optimizer("sgd").unwrap().defaults().weight_decay(1e-4);
/// let artifacts = Trainable::new([LossSpec::new("cross-entropy")])
///     .choose(Choice::default().freeze(vec!["*.bias".into()]))
///     .optimizer("sgd", Some(hyper))
///     .build(&model)?;
/// assert!(artifacts.manifest.parameters.iter().all(|p| p.name.ends_with(".weight")));
/// let folder = tempfile::tempdir().unwrap();
/// artifacts.write(&folder.path().join("trainable"), false)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Trainable {
    pub(super) losses: Vec<LossSpec>,
    pub(super) loss_model: Option<ModelProto>,
    pub(super) choice: Choice,
    pub(super) optimizer: String,
    pub(super) hyper: Option<Hyper>,
    pub(super) preview: bool,
    pub(super) no_decay: Vec<String>,
    pub(super) groups: Vec<(String, f64)>,
    pub(super) clip_norm: Option<f64>,
    pub(super) clip_value: Option<f64>,
    pub(super) accumulate: usize,
    pub(super) metrics: Option<Vec<String>>,
    pub(super) batch_norm_train: bool,
    pub(super) dropouts: Vec<(String, f64)>,
    pub(super) own_dropouts: bool,
    pub(super) lora: Option<(i64, f64)>,
    pub(super) loss_scale: Option<f64>,
    pub(super) straight_through: bool,
    pub(super) stops: Vec<String>,
    pub(super) functions: Vec<FunctionProto>,
    pub(super) seed: u64,
    pub(super) memory_budget: Option<Budget>,
}

impl Default for Trainable {
    fn default() -> Self {
        Trainable::new([])
    }
}

impl Trainable {
    /// A request for the sum of these losses, with AdamW as PyTorch has it, for all weights.
    pub fn new(losses: impl IntoIterator<Item = LossSpec>) -> Self {
        Trainable {
            losses: losses.into_iter().collect(),
            loss_model: None,
            choice: Choice::default(),
            optimizer: "adamw".to_owned(),
            hyper: None,
            preview: false,
            no_decay: vec![],
            groups: vec![],
            clip_norm: None,
            clip_value: None,
            accumulate: 1,
            metrics: None,
            batch_norm_train: false,
            dropouts: vec![],
            own_dropouts: false,
            lora: None,
            loss_scale: None,
            straight_through: true,
            stops: vec![],
            functions: vec![],
            seed: 0,
            memory_budget: None,
        }
    }

    /// Adds a loss that another model computes: its inputs are tensors of the model by name, or new inputs; its first
    /// output is the loss.
    pub fn loss_model(mut self, model: &Model) -> Self {
        self.loss_model = Some(model.proto.clone());
        self
    }

    /// Which weights are trained.
    pub fn choose(mut self, choice: Choice) -> Self {
        self.choice = choice;
        self
    }

    /// The optimizer by name, and its numbers where they are not the defaults.
    pub fn optimizer(mut self, name: impl Into<String>, hyper: Option<Hyper>) -> Self {
        self.optimizer = name.into();
        self.hyper = hyper;
        self
    }

    /// Whether updates are operators of ai.onnx.preview.training, which few runtimes have, in the place of plain ones.
    pub fn preview(mut self, preview: bool) -> Self {
        self.preview = preview;
        self
    }

    /// Patterns of parameters that have no weight decay.
    pub fn no_decay<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.no_decay = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// Factors on the learning rate by pattern; the first that matches counts.
    pub fn groups(mut self, groups: impl IntoIterator<Item = (String, f64)>) -> Self {
        self.groups = groups.into_iter().collect();
        self
    }

    /// Bounds on the norm of all gradients together, and on each of their elements.
    pub fn clip(mut self, norm: Option<f64>, value: Option<f64>) -> Self {
        self.clip_norm = norm;
        self.clip_value = value;
        self
    }

    /// The number of micro-batches that make a step.
    pub fn accumulate(mut self, count: usize) -> Self {
        self.accumulate = count.max(1);
        self
    }

    /// What comes out beside the loss: `KIND[:OUTPUT]`, as [`METRICS`](super::metrics::METRICS) has them, or
    /// `gradient-norm`. Without it accuracy, where a loss has it, and the norm of the gradients.
    pub fn metrics<S: Into<String>>(mut self, metrics: impl IntoIterator<Item = S>) -> Self {
        self.metrics = Some(metrics.into_iter().map(Into::into).collect());
        self
    }

    /// Whether BatchNormalization is in training mode.
    pub fn train_batch_norm(mut self, train: bool) -> Self {
        self.batch_norm_train = train;
        self
    }

    /// Tensors that are dropped out, with the ratios; `own`: the model's own Dropout nodes are active too.
    pub fn dropout(mut self, sites: impl IntoIterator<Item = (String, f64)>, own: bool) -> Self {
        self.dropouts = sites.into_iter().collect();
        self.own_dropouts = own;
        self
    }

    /// Trains two thin matrices for each chosen weight in its place, of that rank, their product times alpha / rank.
    pub fn lora(mut self, rank: i64, alpha: f64) -> Self {
        self.lora = Some((rank, alpha));
        self
    }

    /// The scale that the loss starts with. Models of float16 have one of 65536 without it.
    pub fn loss_scale(mut self, scale: f64) -> Self {
        self.loss_scale = Some(scale);
        self
    }

    /// Whether gradients pass the rounding of quantized activations as if it were the identity, as they do without
    /// this. Otherwise they stop there, and what lies before it is not trained.
    pub fn straight_through(mut self, straight_through: bool) -> Self {
        self.straight_through = straight_through;
        self
    }

    /// Tensors that count as constants: no gradient passes them.
    pub fn stop<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.stops = names.into_iter().map(Into::into).collect();
        self
    }

    /// Gradients of operators of one's own; see [`crate::Gradients::functions`].
    pub fn functions(mut self, functions: impl IntoIterator<Item = FunctionProto>) -> Self {
        self.functions = functions.into_iter().collect();
        self
    }

    /// How much a step may hold at a time; see [`crate::Gradients::memory_budget`].
    pub fn memory_budget(mut self, budget: Budget) -> Self {
        self.memory_budget = Some(budget);
        self
    }

    /// What random initial values follow from.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}
