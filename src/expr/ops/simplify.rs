//! What need not be computed: products with one, sums with zero, reshapes to the same shape.
//!
//! Each rule returns what stands for the operation, or `None` where the operation is needed. They hold for every input,
//! NaN and infinity among them: a product with zero is not one of them.

use super::Expr;
use crate::graph::{Dim, Origin, Producer};
use crate::onnx::{ElementType, attribute};

/// In how many gradients of which a term is a multiple one is looked for that another term has, too.
const FACTORS: usize = 16;

/// By what a gradient is multiplied.
#[derive(Clone, Copy)]
enum Factor<'g> {
    Times(Expr<'g>),
    Over(Expr<'g>),
    Minus,
}

impl<'g> Expr<'g> {
    /// This tensor in place of an elementwise operation with one whose value does not matter, where the shape stays the
    /// same.
    pub(in crate::expr) fn unless_broadcast(self, other: Expr<'g>) -> Option<Expr<'g>> {
        let (own, other) = (self.fact().shape?, other.fact().shape?);
        let offset = own.len().checked_sub(other.len())?;
        let covered = other.iter().enumerate().all(|(i, &d)| d == Dim::Known(1) || d == own[offset + i]);
        covered.then_some(self)
    }

    /// A tensor of one value as a number without dimensions, where the other operand has the shape of the result
    /// already.
    fn as_scalar(self, other: Expr<'g>) -> Option<Expr<'g>> {
        let value = self.constant()?;
        if self.fact().rank()? == 0 {
            return None;
        }
        other.unless_broadcast(self)?;
        Some(other.like(value))
    }

    pub(in crate::expr) fn simplify_sum(self, other: Expr<'g>) -> Option<Expr<'g>> {
        match (self.constant(), other.constant()) {
            (_, Some(0.0)) => self.unless_broadcast(other),
            (Some(0.0), _) => other.unless_broadcast(self),
            _ => None,
        }
    }

    /// `g (r₁ + r₂)` in place of the sum of `g r₁` and `g r₂`, products that the pass has written with one gradient: a
    /// product less, and what `g` is multiplied by follows from the forward pass alone. Not in half precision, where a
    /// product of factors overflows that one with a small gradient does not.
    pub(crate) fn with_common_factor(self, other: Expr<'g>) -> Option<Expr<'g>> {
        let wide = matches!(self.fact().element, Some(ElementType::Float | ElementType::Double));
        if !wide || self == other || !self.same_shape(other) {
            return None;
        }
        let (own, others) = (self.gradients_in(), other.gradients_in());
        let (g, left, right) = own.iter().find_map(|(g, left)| {
            let (_, right) = others.iter().find(|(other, _)| other == g)?;
            Some((*g, left, right))
        })?;
        Some(g * (self.product_of(left) + other.product_of(right)))
    }

    /// The gradients of which this is a multiple, the nearest first, each with the factors on the way to it, the last
    /// first.
    fn gradients_in(self) -> Vec<(Expr<'g>, Vec<Factor<'g>>)> {
        let mut found: Vec<(Expr<'g>, Vec<Factor<'g>>)> = vec![(self, Vec::new())];
        let mut next = 0;
        while next < found.len() && found.len() < FACTORS {
            let (product, factors) = found[next].clone();
            next += 1;
            let mut add = |operand: Expr<'g>, factor: Factor<'g>| {
                let written = self.builder.graph().producer(operand.id).is_some_and(|(node, _)| {
                    let graph = self.builder.graph();
                    graph.node(node).origin != Origin::Model && !graph.node(node).inputs.is_empty()
                });
                if written && !found.iter().any(|(known, _)| *known == operand) {
                    let factors = factors.iter().copied().chain([factor]).collect();
                    found.push((operand, factors));
                }
            };
            if let Some((a, b)) = product.operands_of("Mul") {
                add(a, Factor::Times(b));
                add(b, Factor::Times(a));
            } else if let Some((a, b)) = product.operands_of("Div") {
                add(a, Factor::Over(b));
            } else if let Some(a) = product.operand_of("Neg") {
                add(a, Factor::Minus);
            }
        }
        found
    }

    /// The product of factors, those that come first in the pass first.
    fn product_of(self, factors: &[Factor<'g>]) -> Expr<'g> {
        let one = || self.like(1.0);
        let apply = |product: Option<Expr<'g>>, factor: &Factor<'g>| {
            Some(match (product, *factor) {
                (None, Factor::Times(by)) => by,
                (Some(product), Factor::Times(by)) => product * by,
                (product, Factor::Over(by)) => product.unwrap_or_else(one) / by,
                (product, Factor::Minus) => -product.unwrap_or_else(one),
            })
        };
        factors.iter().rev().fold(None, apply).unwrap_or_else(one)
    }

    /// The sum over axes, which stay with size 1, before what all terms of a sum are multiplied with: of products,
    /// quotients and negatives that the rule has just written, with factors that do not change along these axes. What
    /// other rules have written is needed by others, too. Not in half precision, where a sum overflows that the sum of
    /// the products does not.
    pub(in crate::expr) fn sum_before_factors(self, axes: &[usize]) -> Option<Expr<'g>> {
        let wide = matches!(self.fact().element, Some(ElementType::Float | ElementType::Double));
        let rank = self.fact().rank().filter(|_| wide)?;
        let constant = |e: Expr<'g>| {
            let shape = e.fact().shape?;
            let beyond = rank.checked_sub(shape.len())?;
            let one = |&axis: &usize| axis < beyond || shape.get(axis - beyond) == Some(&Dim::Known(1));
            axes.iter().all(one).then_some(e)
        };
        let mut terms = self;
        let mut factors = Vec::new();
        while factors.len() < FACTORS && self.builder.is_of_this_node(terms.id) {
            let (inner, factor) = if let Some((a, b)) = terms.operands_of("Mul") {
                match (constant(a), constant(b)) {
                    (_, Some(b)) if a.same_shape(self) => (a, Factor::Times(b)),
                    (Some(a), _) if b.same_shape(self) => (b, Factor::Times(a)),
                    _ => break,
                }
            } else if let Some((a, b)) = terms.operands_of("Div") {
                match constant(b) {
                    Some(b) if a.same_shape(self) => (a, Factor::Over(b)),
                    _ => break,
                }
            } else if let Some(a) = terms.operand_of("Neg") {
                (a, Factor::Minus)
            } else {
                break;
            };
            terms = inner;
            factors.push(factor);
        }
        let apply = |sum: Expr<'g>, factor: &Factor<'g>| match *factor {
            Factor::Times(by) => sum * by,
            Factor::Over(by) => sum / by,
            Factor::Minus => -sum,
        };
        (!factors.is_empty()).then(|| factors.iter().rev().fold(terms.sum(axes), apply))
    }

    /// The two operands of a node of that operator which the pass has written.
    fn operands_of(self, op: &str) -> Option<(Expr<'g>, Expr<'g>)> {
        let first = self.operand_of(op)?;
        let graph = self.builder.graph();
        let (node, _) = graph.producer(self.id)?;
        Some((first, self.builder.expr((*graph.node(node).inputs.get(1)?)?)))
    }

    pub(in crate::expr) fn simplify_difference(self, other: Expr<'g>) -> Option<Expr<'g>> {
        match (self.constant(), other.constant()) {
            (_, Some(0.0)) => self.unless_broadcast(other),
            (Some(0.0), _) => other.unless_broadcast(self).map(|e| -e),
            _ => None,
        }
    }

    pub(in crate::expr) fn simplify_product(self, other: Expr<'g>) -> Option<Expr<'g>> {
        match (self.constant(), other.constant()) {
            (_, Some(1.0)) if let Some(e) = self.unless_broadcast(other) => Some(e),
            (Some(1.0), _) if let Some(e) = other.unless_broadcast(self) => Some(e),
            (_, Some(-1.0)) if let Some(e) = self.unless_broadcast(other) => Some(-e),
            (Some(-1.0), _) if let Some(e) = other.unless_broadcast(self) => Some(-e),
            (Some(_), _) => self.as_scalar(other).map(|s| s.times(other)),
            (_, Some(_)) => other.as_scalar(self).map(|s| self.times(s)),
            _ => None,
        }
    }

    pub(in crate::expr) fn simplify_quotient(self, other: Expr<'g>) -> Option<Expr<'g>> {
        match (self.constant(), other.constant()) {
            (_, Some(1.0)) => self.unless_broadcast(other),
            (Some(1.0), _) if self.is_float() => other.unless_broadcast(self).map(Expr::reciprocal),
            (Some(_), _) => self.as_scalar(other).map(|s| s.over(other)),
            (_, Some(_)) => other.as_scalar(self).map(|s| self.over(s)),
            _ => None,
        }
    }

    /// What a condition that is known everywhere takes.
    pub(in crate::expr) fn simplify_select(self, then: Expr<'g>, otherwise: Expr<'g>) -> Option<Expr<'g>> {
        let (taken, left) = if self.constant()? == 0.0 { (otherwise, then) } else { (then, otherwise) };
        taken.unless_broadcast(self)?.unless_broadcast(left)
    }

    /// `-(-x)` is `x`.
    pub(in crate::expr) fn simplify_negation(self) -> Option<Expr<'g>> {
        self.operand_of("Neg")
    }

    /// One permutation in place of two, nothing where the second takes the first back.
    pub(in crate::expr) fn simplify_transpose(self, perm: &[usize]) -> Option<Expr<'g>> {
        if perm.iter().copied().eq(0..perm.len()) {
            return Some(self);
        }
        // Where only axes of size 1 move, the elements stay in their order.
        if let Some(shape) = self.fact().known_shape()
            && shape.len() == perm.len()
            && perm.iter().filter(|&&p| shape.get(p) != Some(&1)).is_sorted()
        {
            let moved: Vec<i64> = perm.iter().filter_map(|&p| shape.get(p).copied()).collect();
            return Some(self.reshape(self.builder.ints(&moved)));
        }
        let inner = self.operand_of("Transpose").or_else(|| self.transposed_weight())?;
        let first: Vec<i64> = {
            let graph = self.builder.graph();
            let (node, _) = graph.producer(self.id)?;
            let given = attribute::get_ints(&graph.node(node).attributes, "perm").map(<[i64]>::to_vec);
            given.unwrap_or_else(|| (0..perm.len() as i64).rev().collect())
        };
        let both = perm.iter().map(|&p| usize::try_from(*first.get(p)?).ok()).collect::<Option<Vec<_>>>()?;
        Some(inner.transpose(&both))
    }

    /// The weight that the model transposes into this. What transposes it back takes the weight itself: the transposed
    /// one is not held for it. Not where somebody differentiates with respect to the transposed one, or stops gradients
    /// there.
    fn transposed_weight(self) -> Option<Expr<'g>> {
        if self.builder.is_leaf(self.id) {
            return None;
        }
        let graph = self.builder.graph();
        let (node, _) = graph.producer(self.id)?;
        let node = graph.node(node);
        let weight = *node.inputs.first()?.as_ref()?;
        let stored = graph.value(weight).producer == Producer::Initializer;
        (stored && &*node.op_type == "Transpose" && node.domain.is_empty()).then(|| self.builder.expr(weight))
    }

    /// The first input of the node that computes this, where it is a node of that operator which the pass has written.
    /// Not where somebody asks for the gradient at this: what is computed of the input instead would not lead to it.
    pub(in crate::expr) fn operand_of(self, op: &str) -> Option<Expr<'g>> {
        if self.builder.is_leaf(self.id) {
            return None;
        }
        let graph = self.builder.graph();
        let (node, _) = graph.producer(self.id)?;
        let node = graph.node(node);
        let operand = *node.inputs.first()?.as_ref()?;
        (&*node.op_type == op && node.domain.is_empty() && node.origin != Origin::Model)
            .then(|| self.builder.expr(operand))
    }

    /// What is repeated and the shape, where this is an Expand that the pass has written.
    pub(in crate::expr) fn operands_of_expand(self) -> Option<(Expr<'g>, Expr<'g>)> {
        self.operands_of("Expand")
    }

    /// A sum over axes of size 1 is nothing or a reshape.
    pub(in crate::expr) fn simplify_reduce_sum(self, axes: &[usize], keep_dims: bool) -> Option<Expr<'g>> {
        if !axes.iter().all(|&a| self.known_dim(a) == Some(1)) {
            return None;
        }
        Some(if keep_dims { self } else { self.squeeze(axes) })
    }

    /// A slice that takes all is nothing.
    pub(in crate::expr) fn simplify_slice(
        self,
        axes: Expr<'g>,
        starts: Expr<'g>,
        ends: Expr<'g>,
        steps: Expr<'g>,
    ) -> Option<Expr<'g>> {
        let (axes, ends) = (axes.ints()?, ends.ints()?);
        let size = |axis: i64| self.known_dim(self.axis(axis).ok()?);
        let whole = |(&axis, &end): (&i64, &i64)| end == i64::MAX || size(axis).is_some_and(|n| end >= n);
        let all = |list: Expr<'g>, n: i64| list.ints().is_some_and(|list| list.iter().all(|&i| i == n));
        (all(starts, 0) && all(steps, 1) && axes.iter().zip(&ends).all(whole)).then_some(self)
    }

    /// Nothing where the shape stays the same, one reshape in place of two.
    pub(in crate::expr) fn simplify_reshape(self, shape: Expr<'g>) -> Option<Expr<'g>> {
        let target = shape.fact().dims();
        if target.is_some() && self.fact().shape.as_deref() == target.as_deref() {
            return Some(self);
        }
        let inner = self.operand_of("Reshape")?;
        // In numbers, 0 is relative to what is reshaped; a computed shape stands for itself.
        let absolute = match shape.ints() {
            Some(numbers) => !numbers.contains(&0),
            None => self.reshape_target(shape).is_none() || inner.reshape_target(shape).is_some(),
        };
        let restored = target.is_some() && inner.fact().shape.as_deref() == target.as_deref();
        (absolute || restored).then(|| inner.reshape(shape))
    }

    /// Whether a shape has a size of zero where this tensor has another, and numbers would say "as the input".
    pub(in crate::expr) fn names_zero(self, shape: Expr<'g>) -> bool {
        let (own, target) = (self.fact().shape, shape.fact().dims().unwrap_or_default());
        let here = |i: usize| own.as_ref().and_then(|s| s.get(i)) == Some(&Dim::Known(0));
        let numbers = || target.iter().all(|d| !matches!(d, Dim::Known(n) if *n < 0));
        target.iter().enumerate().any(|(i, &d)| d == Dim::Known(0) && !here(i)) && numbers()
    }

    /// A constant for a computed shape: 0 for a size that stays in its place, -1 for one that follows from the others.
    pub(in crate::expr) fn reshape_target(self, shape: Expr<'g>) -> Option<Expr<'g>> {
        let target = shape.fact().dims()?;
        let own = self.fact().shape;
        let stays = |i: usize, d: Dim| own.as_ref().and_then(|s| s.get(i)) == Some(&d);
        let mut open = 0;
        let mut numbers = Vec::with_capacity(target.len());
        for (i, &d) in target.iter().enumerate() {
            numbers.push(match d {
                Dim::Known(n) => n,
                d if stays(i, d) => 0,
                Dim::Symbol(_) => {
                    open += 1;
                    -1
                }
            });
        }
        // A zero among the numbers would make -1 ambiguous, and is no "stays": such shapes stay computed.
        let zero = target.contains(&Dim::Known(0));
        let minus = target.iter().any(|d| matches!(d, Dim::Known(n) if *n < 0));
        (open == 0 || (open == 1 && !zero && !minus)).then(|| self.builder.ints(&numbers))
    }
}
