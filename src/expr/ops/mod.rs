//! One method for each operator of ONNX that gradients are made of, in the form that the model's opset knows.
//!
//! This is the only place that knows how an operator was written at which opset. Shapes, axes and element types are as
//! the ONNX operator specification says; where an operator is too new for the model and has no older equivalent, the
//! builder records an error that names both opsets.

mod construct;
mod delay;
mod elementwise;
mod indexing;
mod parts;
mod preview;
mod products;
mod quantization;
mod ranks;
mod reductions;
mod sequences;
mod shapes;
mod simplify;
mod views;

pub use construct::Along;
pub(crate) use delay::Zeros;
pub use preview::{GRADIENT_DOMAINS, PREVIEW, is_gradient};
pub use quantization::Rounding;
pub use views::View;

use super::{Builder, Expr};
use crate::onnx::AttributeProto;
use crate::onnx::attribute::{int, ints};

/// Axes, shapes, pads or indices: numbers where they are known, a tensor where they are computed.
pub type Pads = Vec<i64>;

/// What Conv, ConvTranspose and im2col share: one entry a spatial axis, `pads` first all begins, then all ends.
#[derive(Clone, Debug, Default)]
pub struct ConvLike {
    /// Sizes of the window.
    pub kernel: Vec<i64>,
    /// Steps of the window.
    pub strides: Vec<i64>,
    /// Distances of its taps.
    pub dilations: Vec<i64>,
    /// Zeros around the input.
    pub pads: Pads,
    /// Groups of channels.
    pub group: i64,
}

/// What a pool is: one entry a spatial axis; what is left out is as the operator has it.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Sizes of the window.
    pub kernel: Vec<i64>,
    /// Steps of the window.
    pub strides: Option<Vec<i64>>,
    /// Distances of its taps.
    pub dilations: Option<Vec<i64>>,
    /// Padding: first all begins, then all ends.
    pub pads: Option<Vec<i64>>,
    /// `NOTSET`, or a rule for the padding.
    pub auto_pad: String,
    /// Whether a last window may hang over.
    pub ceil_mode: bool,
}

/// What a change of size is given, each list as the newest form of the operator has it.
pub struct Resized<'g> {
    /// Attributes, of those that the model's version of the operator has.
    pub attributes: Vec<AttributeProto>,
    /// The part to look at: the begins of all axes, then the ends.
    pub roi: Option<Expr<'g>>,
    /// Factors of all axes.
    pub scales: Option<Expr<'g>>,
    /// Sizes of all axes, in place of factors.
    pub sizes: Option<Expr<'g>>,
}

impl<'g> Expr<'g> {
    /// Builds with an operator that the model may be too old for.
    pub(in crate::expr) fn since(self, opset: i64, op: &str, build: impl FnOnce() -> Expr<'g>) -> Expr<'g> {
        self.builder.since(opset, op, build)
    }
}

/// A shape of ones but for -1 at one place: what lays a list along an axis.
pub(in crate::expr) fn place(rank: usize, axis: usize) -> Vec<i64> {
    (0..rank).map(|a| if a == axis { -1 } else { 1 }).collect()
}

impl ConvLike {
    pub(in crate::expr) fn attributes(&self) -> Vec<AttributeProto> {
        let mut attributes = Vec::new();
        if !self.kernel.is_empty() {
            attributes.push(ints("kernel_shape", &self.kernel));
        }
        attributes.extend([
            ints("strides", &self.strides),
            ints("dilations", &self.dilations),
            ints("pads", &self.pads),
            int("group", self.group),
        ]);
        attributes
    }
}

impl Builder {
    pub(in crate::expr) fn too_old(&self, what: &str, needed: i64) -> Expr<'_> {
        let remedy = format!("convert the model to opset {needed} or newer");
        self.fail(anyhow::anyhow!("{what} needs opset {needed}, and the model is at {}; {remedy}", self.opset()))
    }

    pub(in crate::expr) fn since<'g>(&'g self, opset: i64, op: &str, build: impl FnOnce() -> Expr<'g>) -> Expr<'g> {
        if self.opset() < opset { self.too_old(op, opset) } else { build() }
    }
}
