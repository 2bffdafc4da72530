//! From an inference model to a trainable one: losses, gradients and an optimizer's step, as plain models.
//!
//! A [`Trainable`] is a request; its [`Artifacts`] are models that any runtime runs, a manifest that says which output feeds
//! which input, and the initial state. [`export`] puts weights back into the model that they come from.

mod artifacts;
mod assemble;
mod build;
#[cfg(feature = "validate")]
pub mod data;
pub(crate) mod ending;
pub mod export;
pub mod lora;
mod loss_model;
pub mod losses;
pub mod manifest;
pub mod metrics;
pub mod modes;
pub mod optimizers;
mod parameters;
pub mod plan;
mod request;
pub mod select;
pub mod state;
pub mod step;
#[cfg(feature = "validate")]
pub mod trainer;

pub use artifacts::Artifacts;
pub use losses::LossSpec;
pub use manifest::Manifest;
pub use metrics::MetricSpec;
pub use request::Trainable;
