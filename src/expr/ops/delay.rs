//! Values that are what they are, but not before something else is computed.
//!
//! Runtimes compute equal nodes once and keep the result. What is to be computed again, to be forgotten in between,
//! must therefore take something that differs: here the sum of an input and a zero that follows from a tensor of the
//! backward pass. It also tells the runtime not to begin earlier.

use crate::expr::Builder;
use crate::graph::{IdMap, NewNode, Origin, ValueId};
use crate::onnx::{AttributeProto, ElementType, TensorProto, attribute};

/// The zeros that have been written, by what they follow and their type and rank.
#[derive(Default)]
pub(crate) struct Zeros(IdMap<(ValueId, ElementType, usize), ValueId>);

impl Builder {
    /// The value, every bit of it, but not before `after`, a tensor of numbers with at least one element, is computed:
    /// `x + (-0)`, which is x also where that is -0, infinite or no number.
    ///
    /// What it writes are nodes of their own: none stands for what another place computes, nor is folded.
    pub(crate) fn delayed(&self, value: ValueId, after: ValueId, zeros: &mut Zeros) -> Option<ValueId> {
        let fact = self.fact(value);
        let (element, shape) = (fact.element?, fact.shape?);
        // Numbers meet tensors in the shape in which engines broadcast them fast.
        let narrow = shape.last().and_then(|d| d.known()).is_some_and(|n| n < 8);
        let rank = if narrow { shape.len() } else { shape.len().min(1) };
        let zero = match zeros.0.get(&(after, element, rank)) {
            Some(&zero) => zero,
            None => {
                let zero = self.zero_after(after, element, rank)?;
                zeros.0.insert((after, element, rank), zero);
                zero
            }
        };
        self.raw("Add", &[value, zero], vec![])
    }

    /// A zero with `rank` dimensions of size 1 that follows from a tensor.
    fn zero_after(&self, after: ValueId, element: ElementType, rank: usize) -> Option<ValueId> {
        let list = |values: &[i64]| {
            let tensor = TensorProto::from_int64(&[values.len() as i64], values);
            self.raw("Constant", &[], vec![attribute::tensor("value", tensor)])
        };
        let flat = self.raw("Reshape", &[after, list(&[-1])?], vec![])?;
        let first = self.raw("Gather", &[flat, list(&[0])?], vec![attribute::int("axis", 0)])?;
        // Whatever number that is, also none: false or true.
        let bit = self.raw("Cast", &[first], vec![attribute::int("to", ElementType::Bool as i64)])?;
        let number = self.raw("Cast", &[bit], vec![attribute::int("to", element as i64)])?;
        let zero = match element.is_float() {
            true => TensorProto::from_floats(element, &[1], &[-0.0]),
            false => TensorProto::from_ints(element, &[1], &[0]),
        };
        let zero = self.raw("Constant", &[], vec![attribute::tensor("value", zero.ok()?)])?;
        let zero = self.raw("Mul", &[number, zero], vec![])?;
        match rank {
            1 => Some(zero),
            rank => self.raw("Reshape", &[zero, list(&vec![1; rank])?], vec![]),
        }
    }

    /// The output of a node of its own, of which no element counts as known.
    fn raw(&self, op: &'static str, inputs: &[ValueId], attributes: Vec<AttributeProto>) -> Option<ValueId> {
        let node = self.append(NewNode {
            op_type: self.string(op),
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: [Some(None)].into_iter().collect(),
            attributes: attributes.into(),
            origin: Origin::Backward(self.forward.get()),
            ..NewNode::default()
        });
        let output = self.graph().node(node).outputs.iter().flatten().next().copied()?;
        if op != "Constant" {
            self.graph_mut().fact_mut(output).value = None;
        }
        Some(output)
    }
}
