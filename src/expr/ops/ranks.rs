//! An operator on tensors of which only the run knows the rank, as the same operator on tensors of each rank that they
//! may have: an If asks which.

use super::{Builder, Expr};
use crate::graph::{NewNode, Node, Origin, ScopeId, ValueId};

/// Tensors and the ranks that they may have at a time.
pub(crate) type Ranks = [(ValueId, usize)];

impl Builder {
    /// The outputs of a node, computed of its inputs as tensors of these ranks. They are there to be differentiated:
    /// formulas that ask for them find what the node itself has computed. A run in which a tensor has another rank
    /// fails.
    pub(crate) fn through_ranks<'g>(&'g self, node: &Node, ranks: &Ranks) -> Vec<Option<Expr<'g>>> {
        let ranked = |value: ValueId| match ranks.iter().find(|r| r.0 == value) {
            Some(&(_, rank)) => self.expr(value).of_rank(rank).id(),
            None => value,
        };
        let new = self.append(NewNode {
            op_type: node.op_type.clone(),
            domain: node.domain.clone(),
            inputs: node.inputs.iter().map(|i| i.map(ranked)).collect(),
            outputs: node.outputs.iter().map(|o| o.map(|_| None)).collect(),
            attributes: node.attributes.clone(),
            origin: Origin::Backward(self.forward.get()),
            ..NewNode::default()
        });
        let outputs = self.graph().node(new).outputs.clone();
        for (&y, &computed) in outputs.iter().zip(&node.outputs) {
            if let (Some(y), Some(computed)) = (y, computed) {
                self.stand_in(self.expr(y), self.expr(computed));
            }
        }
        outputs.into_iter().map(|o| o.map(|o| self.expr(o))).collect()
    }

    /// Lets formulas that ask for an output find what is computed already.
    fn stand_in<'g>(&'g self, y: Expr<'g>, computed: Expr<'g>) {
        let known = computed.fact().rank().is_some();
        let computed = match y.fact().shape.filter(|_| !known) {
            Some(shape) => {
                let ranked = computed.of_rank(shape.len());
                self.graph_mut().fact_mut(ranked.id()).shape = Some(shape);
                ranked
            }
            None => computed,
        };
        self.computed.borrow_mut().insert(y.id(), computed.id());
    }

    /// What a formula finds that asks for an output of a node.
    pub(crate) fn output_of(&self, output: ValueId) -> Expr<'_> {
        self.expr(self.computed.borrow().get(&output).copied().unwrap_or(output))
    }

    /// What the branch of those ranks computes that the tensors have in a run: of branches that are closed and have
    /// outputs of the same number. The last one is taken where no other is.
    pub(crate) fn by_ranks<'g>(&'g self, branches: &[(&Ranks, ScopeId)]) -> Vec<Expr<'g>> {
        let has = |&(value, rank): &(ValueId, usize)| self.expr(value).shape().size().equal(self.int(rank as i64));
        // Outside of all branches, which are inside of each other.
        let conditions: Vec<Option<Expr<'g>>> =
            branches.iter().map(|(ranks, _)| ranks.iter().map(has).reduce(Expr::and)).collect();
        let mut rest = branches.iter().zip(conditions).rev();
        let Some((&(_, mut otherwise), _)) = rest.next() else { return vec![] };
        let mut rest = rest.peekable();
        while let Some((&(_, branch), Some(condition))) = rest.next() {
            if rest.peek().is_none() {
                return self.if_(condition, branch, otherwise);
            }
            let (around, _) = self.open(vec![]);
            self.graph_mut().move_scope(branch, around);
            self.graph_mut().move_scope(otherwise, around);
            let outputs = self.within(around, || self.if_(condition, branch, otherwise));
            self.close(around, &outputs, 0);
            otherwise = around;
        }
        vec![]
    }
}

impl<'g> Expr<'g> {
    /// The tensor as one of that rank, which it has, or there is an error in the run.
    pub(crate) fn of_rank(self, rank: usize) -> Expr<'g> {
        if self.fact().rank().is_some() {
            return self;
        }
        // A list of that length the sizes are, or they are none; a length of zero would mean "as the input".
        let sizes = if rank == 0 { self.builder.ints(&[]) } else { self.shape().reshape_to(&[rank as i64]) };
        self.reshape(sizes)
    }
}
