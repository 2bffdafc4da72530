//! What is the same in all operators that tract gets of us.

use tract_onnx::tract_hir::internal::*;

pub type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// What an operator makes of what is known of inputs, of outputs, and of what is observed.
pub type Infer<O> = fn(
    &mut O,
    TVec<&InferenceFact>,
    TVec<&InferenceFact>,
    TVec<&InferenceFact>,
) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)>;

/// What tract asks of every operator of ours beside what it computes: no two are equal, and nothing is known of the
/// outputs before they are computed but what `facts` says of the first, from the first input; or else `infer`.
macro_rules! operator {
    ($of:ty, name: $name:expr, outputs: $outputs:expr, facts: $facts:expr) => {
        operator!($of, name: $name, outputs: $outputs, infer: |op, inputs, outputs, observed| {
            let owned = |facts: TVec<&InferenceFact>| facts.into_iter().cloned().collect::<TVec<_>>();
            let (inputs, mut outputs, observed) = (owned(inputs), owned(outputs), owned(observed));
            let facts: fn(&$of, &InferenceFact, &mut InferenceFact) = $facts;
            if let (Some(x), Some(y)) = (inputs.first(), outputs.first_mut()) {
                facts(op, x, y);
            }
            Ok((inputs, outputs, observed))
        });
    };
    ($of:ty, name: $name:expr, outputs: $outputs:expr, infer: $infer:expr) => {
        impl PartialEq for $of {
            fn eq(&self, _: &Self) -> bool {
                false
            }
        }
        impl Eq for $of {}

        impl Op for $of {
            fn name(&self) -> StaticName {
                let name: fn(&$of) -> String = $name;
                name(self).into()
            }

            not_a_typed_op!();
        }

        impl InferenceOp for $of {
            fn infer_facts(
                &mut self,
                inputs: TVec<&InferenceFact>,
                outputs: TVec<&InferenceFact>,
                observed: TVec<&InferenceFact>,
            ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
                let infer: $crate::validate::tract::operator::Infer<$of> = $infer;
                infer(self, inputs, outputs, observed)
            }

            fn nboutputs(&self) -> TractResult<usize> {
                let outputs: fn(&$of) -> usize = $outputs;
                Ok(outputs(self))
            }

            as_op!();
        }
    };
}
pub(super) use operator;
