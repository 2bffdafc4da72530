//! Real numbers as integers, and back.

use super::Expr;
use crate::onnx::AttributeProto;

/// How numbers are rounded to integers.
#[derive(Clone, Debug, Default)]
pub struct Rounding {
    /// Whether the operators are those of com.microsoft, as before the standard had them for all types.
    pub contributed: bool,
    /// The attributes that both operators have: `axis`, `block_size`.
    pub attributes: Vec<AttributeProto>,
}

impl<'g> Expr<'g> {
    /// `(clamp(round(x / scale) + zero) - zero) scale`, by QuantizeLinear and DequantizeLinear, in the range of the
    /// type of `zero`: the numbers that integers stand for. All in the type of `scale`.
    pub fn rounded_to_integers(self, scale: Expr<'g>, zero: Expr<'g>, how: &Rounding) -> Expr<'g> {
        let domain = if how.contributed { "com.microsoft" } else { "" };
        let needed = if how.contributed { 7 } else { 10 };
        self.since(needed, "QuantizeLinear", || {
            let emit = |op, x| {
                let inputs = [Some(x), Some(scale), Some(zero)];
                let outputs = self.builder().emit_of(domain, op, &inputs, how.attributes.clone(), Vec::new(), 1);
                outputs.into_iter().next().unwrap_or(self)
            };
            emit("DequantizeLinear", emit("QuantizeLinear", self))
        })
    }
}
