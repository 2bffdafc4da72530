//! From an inference model to a trainable one: losses, gradients and an optimizer's step, as plain models.
//!
//! A [`Trainable`] is a request; its [`Artifacts`] are models that any runtime runs, a manifest that says which output
//! feeds which input, and the initial state. [`export`] puts weights back into the model that they come from.

mod artifacts;
mod assemble;
mod build;
#[cfg(feature = "validate")]
mod data;
pub(crate) mod ending;
mod export;
mod lora;
mod loss_model;
mod losses;
mod manifest;
mod metrics;
pub(crate) mod modes;
mod optimizers;
mod parameters;
mod plan;
mod request;
#[cfg(feature = "validate")]
mod samples;
mod select;
mod state;
mod step;
#[cfg(feature = "validate")]
mod trainer;

pub use crate::weights::{Kind, Source};
pub use artifacts::Artifacts;
#[cfg(feature = "validate")]
pub use data::Data;
pub use export::{Adapters, export};
pub use lora::Adapter;
pub use losses::{LOSSES, Loss, LossSpec, Target};
pub use manifest::{Feed, Input, Manifest, ModelFile, OptimizerEntry, Parameter};
pub use metrics::{METRICS, Metric};
pub use optimizers::{Hyper, OPTIMIZERS, Optimizer, find as optimizer};
pub use request::Trainable;
pub use select::{Beside, Choice, Entry};
pub use state::{State, read as read_state, write as write_state};
#[cfg(feature = "validate")]
pub use trainer::{CHECKPOINT, Epoch, Event, Options, Schedule, Trained, train};
