//! [ai.onnx.preview.training][spec]: its optimizers, which few runtimes have, and its operator Gradient.
//!
//! [spec]: https://onnx.ai/onnx/operators/

use super::{Builder, Expr};
use crate::onnx::attribute::{float, string};
use crate::onnx::{AttributeProto, NodeProto};

/// The domain of ONNX's own optimizers, which few runtimes have.
pub const PREVIEW: &str = "ai.onnx.preview.training";

/// The domain of Gradient, and the name that old exporters gave it.
pub const GRADIENT_DOMAINS: [&str; 2] = [PREVIEW, "ai.onnx.preview"];

/// Whether a node says by name what is to be differentiated.
pub fn is_gradient(node: &NodeProto) -> bool {
    GRADIENT_DOMAINS.contains(&node.domain()) && node.op_type() == "Gradient"
}

impl Builder {
    /// One step of SGD with momentum for a weight, its gradient and its velocity, which are `tensors` in this order:
    /// the new weight, and the new velocity. `rate` and `step`, the number of the step, have no dimensions.
    pub fn momentum<'g>(
        &'g self,
        rate: Expr<'g>,
        step: Expr<'g>,
        tensors: &[Expr<'g>],
        momentum: f64,
        decay: f64,
        nesterov: bool,
    ) -> Vec<Expr<'g>> {
        let mode = string("mode", if nesterov { "nesterov" } else { "standard" });
        let attributes = vec![number("alpha", momentum), number("beta", 1.0), mode, number("norm_coefficient", decay)];
        self.optimizer("Momentum", rate, step, tensors, attributes)
    }

    /// One step of Adagrad for a weight, its gradient and the sum of squares of gradients, as [`Builder::momentum`].
    pub fn adagrad<'g>(
        &'g self,
        rate: Expr<'g>,
        step: Expr<'g>,
        tensors: &[Expr<'g>],
        epsilon: f64,
        decay: f64,
    ) -> Vec<Expr<'g>> {
        let attributes = vec![number("epsilon", epsilon), number("norm_coefficient", decay)];
        self.optimizer("Adagrad", rate, step, tensors, attributes)
    }

    /// One step of Adam for a weight, its gradient and its two averages, as [`Builder::momentum`].
    pub fn adam<'g>(
        &'g self,
        rate: Expr<'g>,
        step: Expr<'g>,
        tensors: &[Expr<'g>],
        betas: [f64; 2],
        epsilon: f64,
        decay: f64,
    ) -> Vec<Expr<'g>> {
        let [first, second] = betas;
        let averages = [number("alpha", first), number("beta", second), number("epsilon", epsilon)];
        let attributes = averages.into_iter().chain([number("norm_coefficient", decay)]).collect();
        self.optimizer("Adam", rate, step, tensors, attributes)
    }

    fn optimizer<'g>(
        &'g self,
        op: &'static str,
        rate: Expr<'g>,
        step: Expr<'g>,
        tensors: &[Expr<'g>],
        attributes: Vec<AttributeProto>,
    ) -> Vec<Expr<'g>> {
        let inputs: Vec<_> = [rate, step].iter().chain(tensors).copied().map(Some).collect();
        self.emit_of(PREVIEW, op, &inputs, attributes, Vec::new(), tensors.len() - 1)
    }
}

/// An attribute with a number.
fn number(name: &str, value: f64) -> AttributeProto {
    float(name, value as f32)
}
