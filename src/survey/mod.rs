//! What people look for in a model before they differentiate or train it: where gradients flow and where they stop,
//! which tensors stand for several, what exporters have folded away, and what nobody uses.
//!
//! All of it is read from a loaded model and the rows of operators; what a step holds is counted in one that is
//! built for it.

mod flow;
mod folded;
mod layers;
mod memory;
mod shared;
mod unused;

pub use flow::{Flow, State};
pub use folded::Folded;
pub use layers::{Layer, Layers, layers};
pub use memory::{Memory, memory, symbols};
pub use shared::{Shared, shared};
pub use unused::{Unused, unused};

pub use folded::folded;
