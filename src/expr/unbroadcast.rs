//! The transpose of broadcasting: sums over what was repeated.

use super::Expr;
use crate::graph::Dim;
use crate::onnx::ElementType;
use anyhow::{Result, ensure};

impl<'g> Expr<'g> {
    /// The gradient `self` of a broadcast copy of `x`, summed to the shape of `x`.
    ///
    /// Axes that `x` does not have, or has with size 1 where this tensor has more, are summed. Where only the run tells
    /// whether an axis was repeated, it is split in two, `x`'s size and the rest, of which the second is summed: of
    /// sizes n and 1 where it was not repeated, of 1 and n where it was.
    ///
    /// That the rank of one of the two is not known is an error on record, where the model's opset has no reduction
    /// over computed axes.
    pub fn unbroadcast(self, x: Expr<'g>) -> Expr<'g> {
        self.builder().attempt(|| self.summed_to(x))
    }

    /// As [`Expr::unbroadcast`], of a copy that broadcasts x with `others`: where the rank of x is not known, theirs
    /// tell how many axes may have been repeated. They are asked for only then.
    pub fn unbroadcast_beside(self, x: Expr<'g>, others: impl FnOnce() -> Vec<Expr<'g>>) -> Expr<'g> {
        if x.fact().rank().is_some() {
            return self.unbroadcast(x);
        }
        let axes = others().into_iter().filter(|o| !o.same_shape(x)).map(|o| o.fact().rank());
        match axes.collect::<Option<Vec<_>>>().map(|ranks| ranks.into_iter().max().unwrap_or(0)) {
            Some(0) => self,
            Some(axes) => self.summed_in_last(axes, x),
            None => self.unbroadcast(x),
        }
    }

    /// Summed to the shape of x, which may differ in the last axes, as many as given.
    fn summed_in_last(self, axes: usize, x: Expr<'g>) -> Expr<'g> {
        let b = self.builder();
        // Ones stand for the axes that x does not have.
        let target = self.last_sizes(Expr::concat(&[b.ints(&vec![1; axes]), x.shape()], 0), axes);
        let times = self.last_sizes(self.shape(), axes) / target.max(b.ints(&[1]));
        let split = (0..axes).flat_map(|i| [target.item(i), times.item(i)]);
        let split: Vec<_> = [b.ints(&[-1])].into_iter().chain(split).collect();
        let repeated: Vec<usize> = (0..axes).map(|i| 2 * i + 2).collect();
        self.reshape(b.joined(&split)).sum_out(&repeated).reshape_like(x)
    }

    /// The last of a list of sizes.
    fn last_sizes(self, sizes: Expr<'g>, count: usize) -> Expr<'g> {
        let b = self.builder();
        sizes.slice_at(b.ints(&[0]), b.ints(&[-(count as i64)]), b.ints(&[i64::MAX]), b.ints(&[1]))
    }

    fn summed_to(self, x: Expr<'g>) -> Result<Expr<'g>> {
        if self.same_shape(x) {
            return Ok(self);
        }
        if x.fact().rank() == Some(0) {
            return Ok(self.sum_all());
        }
        if (self.fact().rank().is_none() || x.fact().rank().is_none()) && self.builder().sums_over_computed_axes() {
            return Ok(self.unbroadcast_of_any_rank(x));
        }
        if let (None, Some(axes)) = (self.fact().rank(), x.fact().rank()) {
            let b = self.builder();
            let own = self.last_sizes(self.shape(), axes);
            let sizes: Vec<_> = [b.ints(&[-1])].into_iter().chain((0..axes).map(|i| own.item(i))).collect();
            let summed = self.reshape(b.joined(&sizes)).sum_out(&[0]);
            // What cannot be built has no rank, whatever is done to it.
            ensure!(summed.fact().rank().is_some(), "the rank of a gradient is not known");
            return Ok(summed.unbroadcast(x));
        }
        let (own, target) = (self.sizes()?, x.sizes()?);
        let why = || self.builder().why_shapes_contradict();
        let (have, want) = (own.len(), target.len());
        ensure!(have >= want, "a gradient of rank {have} cannot be summed to rank {want}; {}", why());
        let extra = own.len() - target.len();
        let leading: Vec<usize> = (0..extra).collect();
        let certain: Vec<usize> =
            (0..target.len()).filter(|&i| target[i] == Dim::Known(1) && own[extra + i] != Dim::Known(1)).collect();
        let unclear: Vec<usize> = (0..target.len())
            .filter(|&i| {
                matches!(target[i], Dim::Symbol(_)) && own[extra + i] != target[i] && own[extra + i] != Dim::Known(1)
            })
            .collect();
        // One reduction over all of them: engines go through the tensor once, where two of them write most of it anew.
        let summed: Vec<usize> = leading.iter().copied().chain(certain.iter().map(|&i| extra + i)).collect();
        let before_factors = if unclear.is_empty() { self.sum_before_factors(&summed) } else { None };
        let dy = match before_factors {
            Some(sum) => sum.squeeze(&leading),
            None if certain.is_empty() => self.sum_out(&leading),
            None => self.sum(&summed).squeeze(&leading),
        };
        Ok(if unclear.is_empty() { dy } else { dy.summed_where_one(x, &unclear) })
    }

    /// The sum over the axes of those listed in which x has the size 1: only the run knows which they are.
    fn summed_where_one(self, x: Expr<'g>, unclear: &[usize]) -> Expr<'g> {
        let b = self.builder();
        let (mut split, mut summed) = (Vec::new(), Vec::new());
        for i in 0..x.fact().rank().unwrap_or_default() {
            if unclear.contains(&i) {
                let (own, size) = (self.dims([i]), x.dims([i]));
                split.extend([size, own / size.max(b.ints(&[1]))]);
                summed.push(split.len() - 1);
            } else {
                split.push(self.dims([i]));
            }
        }
        self.reshape(b.joined(&split)).sum_out(&summed).reshape_like(x)
    }

    /// The sum to the shape of x where not even the ranks are known: the axes in which the shapes differ are found at
    /// run time.
    fn unbroadcast_of_any_rank(self, x: Expr<'g>) -> Expr<'g> {
        let b = self.builder();
        let (own, size) = (self.shape(), x.shape());
        let ones = b.full((own.size() - size.size()).reshape_to(&[1]), 1.0, ElementType::Int64);
        let aligned = Expr::concat(&[ones, size], 0);
        let repeated = aligned.equal(own).logical_not().non_zero().flattened();
        self.sum_over(repeated, true).reshape(size)
    }
}
