//! Zeros that no node computes: gradients of outputs at which none arrives.
//!
//! Such a zero has the facts of a tensor and can stand wherever a tensor can. Sums drop it, what is linear in it is
//! such a zero again, and where something else needs its elements, nodes for them are written then. A product with it
//! is zero whatever the other factor holds, NaN and infinity among it: nothing has arrived that could be multiplied.
//! Tensors whose elements merely happen to be zeros are not meant here; they are values like all others
//! (`ops/simplify.rs`).

use super::{Builder, Expr};
use crate::graph::{Fact, Linear, NewNode, ValueId};
use crate::onnx::{AttributeProto, ElementType};
use anyhow::anyhow;

/// How the elements of a zero are written where they are needed.
#[derive(Clone)]
pub(super) enum Zero {
    /// In the shape of a value.
    Like(ValueId, ElementType),
    /// As the result of a node that hands zeros on.
    Handed {
        op: &'static str,
        inputs: Vec<Option<ValueId>>,
        attributes: Vec<AttributeProto>,
        output: usize,
        outputs: usize,
    },
    /// Not at all: the node leaves out the output whose gradient it is.
    LeftOut(usize),
}

impl Builder {
    fn zero(&self, fact: Fact, zero: Zero) -> Expr<'_> {
        let id = self.graph_mut().push_input(self.orphan, None, Fact { value: None, ..fact });
        self.zeros.borrow_mut().insert(id, zero);
        self.expr(id)
    }

    /// Zeros in the shape of a value, of an element type of their own.
    pub(crate) fn zero_like<'g>(&'g self, y: Expr<'g>, element: ElementType) -> Expr<'g> {
        self.zero(Fact { element: Some(element), ..y.fact() }, Zero::Like(y.id, element))
    }

    /// What takes the place of the gradient of an output that the node leaves out. It has no shape but that of a
    /// number.
    pub(crate) fn zero_left_out(&self, output: usize, element: Option<ElementType>) -> Expr<'_> {
        self.zero(Fact::tensor(element, Some([].into())), Zero::LeftOut(output))
    }

    fn as_zero(&self, id: ValueId) -> Option<Zero> {
        self.zeros.borrow().get(&id).cloned()
    }

    /// The output that the node leaves out, where this is its gradient or follows from it.
    fn left_out(&self, id: ValueId) -> Option<usize> {
        match self.as_zero(id)? {
            Zero::LeftOut(output) => Some(output),
            _ => None,
        }
    }

    fn is_zero(&self, input: Option<Expr<'_>>) -> bool {
        input.is_some_and(Expr::is_zero)
    }

    /// What stands for the outputs of a node some of whose inputs are zeros, if that is known without writing it.
    pub(super) fn with_zeros<'g>(
        &'g self,
        op: &'static str,
        inputs: &[Option<Expr<'g>>],
        attributes: &[AttributeProto],
        outputs: usize,
    ) -> Option<Vec<Expr<'g>>> {
        let traits = self.graph().traits_of("", op);
        let given = |i: usize| inputs.get(i).copied().flatten();
        let added = traits.added.is_some_and(|i| given(i).is_some());
        let vanishes = match traits.linear {
            Linear::Never => false,
            Linear::InEach(factors) => !added && inputs.iter().take(factors).any(|&i| self.is_zero(i)),
            Linear::InFirst => !added && outputs == 1 && self.is_zero(given(0)),
            Linear::InAll(first) => {
                let zero = |i: &Option<Expr<'g>>| self.is_zero(*i) || i.is_some_and(|e| e.constant() == Some(0.0));
                let joined = inputs.get(first..)?;
                joined.iter().all(zero) && joined.iter().any(|&i| self.is_zero(i))
            }
        };
        vanishes.then(|| self.handed_on(op, inputs, attributes, outputs))
    }

    fn handed_on<'g>(
        &'g self,
        op: &'static str,
        inputs: &[Option<Expr<'g>>],
        attributes: &[AttributeProto],
        outputs: usize,
    ) -> Vec<Expr<'g>> {
        let ids: Vec<Option<ValueId>> = inputs.iter().map(|i| i.map(|e| e.id)).collect();
        let left_out = ids.iter().flatten().find_map(|&id| self.left_out(id));
        let new = NewNode {
            op_type: self.string(op),
            domain: self.string(""),
            inputs: ids.iter().copied().collect(),
            outputs: (0..outputs).map(|_| Some(None)).collect(),
            attributes: attributes.into(),
            ..NewNode::default()
        };
        // A gradient without a shape may not be what the operator takes: then nothing is known of the result.
        let facts = self.graph().infer(&new).unwrap_or_default();
        let hand_on = |output: usize| match left_out {
            Some(left_out) => {
                let element = inputs.iter().flatten().find_map(|e| e.fact().element.filter(|e| e.is_float()));
                self.zero_left_out(left_out, facts.get(output).and_then(|f| f.element).or(element))
            }
            None => {
                let attributes = attributes.to_vec();
                let fact = facts.get(output).cloned().unwrap_or_default();
                self.zero(fact, Zero::Handed { op, inputs: ids.clone(), attributes, output, outputs })
            }
        };
        (0..outputs).map(hand_on).collect()
    }

    /// The terms of a sum that are no zeros, or one zero where all are; `None` where zeros give the sum its shape, or
    /// there are none.
    pub(super) fn without_zeros<'g>(&'g self, terms: &[Expr<'g>]) -> Option<Vec<Expr<'g>>> {
        let (zeros, rest): (Vec<_>, Vec<_>) = terms.iter().copied().partition(|e| e.is_zero());
        let shaped = || zeros.iter().find(|zero| self.left_out(zero.id).is_none());
        let kept = *rest.first().or_else(shaped).or(zeros.first())?;
        let dropped = |zero: &Expr<'g>| self.left_out(zero.id).is_some() || kept.unless_broadcast(*zero).is_some();
        let all = !zeros.is_empty() && zeros.iter().all(dropped);
        all.then(|| if rest.is_empty() { vec![kept] } else { rest })
    }

    /// A zero as nodes that compute it; other values as they are.
    pub(crate) fn written<'g>(&'g self, e: Expr<'g>) -> Expr<'g> {
        match self.as_zero(e.id) {
            None => e,
            Some(Zero::Like(y, element)) if self.expr(y).fact().element == Some(element) => self.expr(y).zeros_like(),
            Some(Zero::Like(y, element)) => self.full(self.expr(y).shape(), 0.0, element),
            Some(Zero::LeftOut(output)) => self.fail(anyhow!("output {output} is left out")),
            Some(Zero::Handed { op, inputs, attributes, output, outputs }) => {
                let inputs: Vec<_> = inputs.into_iter().map(|i| Some(self.written(self.expr(i?)))).collect();
                let results = self.emit_many(op, &inputs, attributes, vec![], outputs);
                results.get(output).copied().unwrap_or(e)
            }
        }
    }
}

impl<'g> Expr<'g> {
    /// Zeros of this tensor's element type and shape, which are not written where nothing needs their elements.
    pub fn zero(self) -> Expr<'g> {
        self.builder.attempt(|| Ok(self.builder.zero_like(self, self.element()?)))
    }

    /// Whether this is a gradient that has not arrived, or what is linear in such.
    pub fn is_zero(self) -> bool {
        let zeros = self.builder.zeros.borrow();
        !zeros.is_empty() && zeros.contains_key(&self.id)
    }
}
