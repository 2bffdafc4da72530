//! Parts of tensors and tensors of parts: slices, splits, paddings, tiles.

use super::{Builder, Expr};
use crate::expr::normalize_axis;
use crate::onnx::ElementType;
use crate::onnx::attribute::{self, float, int, ints, string};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::iter;

/// A part of a tensor that is zero before and behind it along an axis.
struct Piece<'g> {
    part: Expr<'g>,
    axis: usize,
    before: i64,
    size: i64,
    behind: i64,
}

impl<'g> Piece<'g> {
    /// The sum of pieces each of which begins where the one before it ends.
    fn join(pieces: &[(usize, Self)]) -> Option<Expr<'g>> {
        let ([(_, first), ..], [.., (_, last)]) = (pieces, pieces) else { return None };
        let b = first.part.builder;
        let parts: Vec<_> = pieces.iter().map(|(_, p)| p.part).collect();
        let joined = Expr::concat(&parts, first.axis);
        Some(joined.pad_axis(first.axis, b.ints(&[first.before]), b.ints(&[last.behind])))
    }
}

impl Builder {
    /// Lists of integers one behind the other: the sizes of a tensor, axis by axis. A tensor without axes has the empty
    /// list.
    pub fn joined<'g>(&'g self, lists: &[Expr<'g>]) -> Expr<'g> {
        if lists.is_empty() { self.ints(&[]) } else { Expr::concat(lists, 0) }
    }

    /// Whether slices can be in steps.
    pub fn slices_in_steps(&self) -> bool {
        self.opset() >= 10
    }
}

impl<'g> Expr<'g> {
    /// Tensors of one type joined along an axis; in all other axes they have equal sizes (ONNX Concat).
    ///
    /// # Panics
    /// There are none.
    pub fn concat(parts: &[Expr<'g>], axis: usize) -> Expr<'g> {
        match parts {
            [] => panic!("nothing to join"),
            [only] => *only,
            [first, ..] => {
                let inputs: Vec<_> = parts.iter().copied().map(Some).collect();
                first.builder.emit("Concat", &inputs, vec![int("axis", axis as i64)])
            }
        }
    }

    /// Terms of a sum, tensors of one shape, with those joined that are pieces between zeros, one behind the other
    /// along an axis, as slices of one tensor give them back: where they cover it, they are the sum.
    pub(crate) fn with_joined_pieces(terms: &[Expr<'g>]) -> Vec<Expr<'g>> {
        let pieces = terms.iter().enumerate().filter_map(|(i, &term)| Some((i, term.between_zeros()?)));
        let mut pieces: Vec<(usize, Piece<'g>)> = pieces.collect();
        if pieces.len() < 2 {
            return terms.to_vec();
        }
        pieces.sort_by_key(|(_, p)| (p.axis, p.before));
        // What is joined so far, by the axis and the place along it where the last part ends.
        let mut open: BTreeMap<(usize, i64), Vec<(usize, Piece<'g>)>> = BTreeMap::new();
        let mut closed = Vec::new();
        for (i, piece) in pieces {
            let mut joined = open.remove(&(piece.axis, piece.before)).unwrap_or_default();
            let end = (piece.axis, piece.before + piece.size);
            joined.push((i, piece));
            closed.extend(open.insert(end, joined));
        }
        closed.extend(open.into_values());
        let mut sums: Vec<Option<Expr<'g>>> = terms.iter().copied().map(Some).collect();
        for joined in closed {
            if let [(first, _), _, ..] = joined[..] {
                joined.iter().for_each(|&(i, _)| sums[i] = None);
                sums[first] = Piece::join(&joined);
            }
        }
        sums.into_iter().flatten().collect()
    }

    /// What stands between zeros, where this is a Pad along one axis which the pass has written.
    fn between_zeros(self) -> Option<Piece<'g>> {
        let part = self.operand_of("Pad")?;
        let pads = {
            let graph = self.builder.graph();
            let (id, _) = graph.producer(self.id)?;
            let node = graph.node(id);
            let plain =
                node.inputs.get(2).is_none_or(Option::is_none) && node.attributes.iter().all(|a| a.name() == "pads");
            let listed = attribute::get_ints(&node.attributes, "pads").map(<[i64]>::to_vec);
            let given = node.inputs.get(1).copied().flatten();
            plain.then(|| listed.or_else(|| graph.fact(given?).ints()))??
        };
        let (before, behind) = pads.split_at(pads.len() / 2);
        let mut padded = (0..before.len()).filter(|&a| before[a] != 0 || behind.get(a) != Some(&0));
        let (axis, None) = (padded.next()?, padded.next()) else { return None };
        let (before, behind) = (*before.get(axis)?, *behind.get(axis)?);
        let size = part.known_dim(axis)?;
        (before >= 0 && behind >= 0 && size > 0).then_some(Piece { part, axis, before, size, behind })
    }

    /// The part `starts[i] .. ends[i]` in steps along `axes[i]`, numbers known at build time.
    pub fn slice(self, axes: &[usize], starts: &[i64], ends: &[i64], steps: &[i64]) -> Expr<'g> {
        let b = self.builder;
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        if b.opset() >= 10 {
            return self.slice_at(b.ints(&axes), b.ints(starts), b.ints(ends), b.ints(steps));
        }
        if let Some(simple) = self.simplify_slice(b.ints(&axes), b.ints(starts), b.ints(ends), b.ints(steps)) {
            return simple;
        }
        if steps.iter().any(|&s| s != 1) {
            return self.gathered(&axes, b.ints(starts), b.ints(ends), steps);
        }
        b.emit("Slice", &[Some(self)], vec![ints("axes", &axes), ints("starts", starts), ints("ends", ends)])
    }

    /// The part `start .. end` along an axis.
    pub fn narrow(self, axis: usize, start: i64, end: i64) -> Expr<'g> {
        self.slice(&[axis], &[start], &[end], &[1])
    }

    /// The part that lists of int64 describe, computed or not, with an entry for each of `axes` (ONNX Slice).
    pub fn slice_at(self, axes: Expr<'g>, starts: Expr<'g>, ends: Expr<'g>, steps: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        if let Some(simple) = self.simplify_slice(axes, starts, ends, steps) {
            return simple;
        }
        if b.opset() >= 10 {
            return b.emit("Slice", &[Some(self), Some(starts), Some(ends), Some(axes), Some(steps)], vec![]);
        }
        match (axes.ints(), starts.ints(), ends.ints(), steps.ints()) {
            (Some(axes), Some(starts), Some(ends), Some(steps)) => {
                let axes: Vec<usize> = axes.into_iter().map(|a| a as usize).collect();
                self.slice(&axes, &starts, &ends, &steps)
            }
            (Some(axes), _, _, Some(steps)) => self.gathered(&axes, starts, ends, &steps),
            _ => b.too_old("Slice along computed axes or in computed steps", 10),
        }
    }

    /// A slice as the elements at its places: before opset 10 Slice takes neither computed places nor steps.
    fn gathered(self, axes: &[i64], starts: Expr<'g>, ends: Expr<'g>, steps: &[i64]) -> Expr<'g> {
        let b = self.builder;
        b.attempt(|| {
            let (rank, zero, one) = (self.rank()?, b.ints(&[0]), b.ints(&[1]));
            let mut part = self;
            for (i, (&axis, &step)) in axes.iter().zip(steps).enumerate() {
                ensure!(step != 0, "a slice in steps of 0");
                let axis = normalize_axis(axis, rank)?;
                let size = self.dims([axis]);
                let (low, high) = if step > 0 { (zero, size) } else { (-one, size - one) };
                let place = |e: Expr<'g>| e.item(i).wrapped(size).max(low).min(high);
                let (start, end) = (place(starts), place(ends));
                let length = if step > 0 { end - start } else { start - end };
                let count = (length.max(zero) + (step.abs() - 1)) / step.abs();
                part = part.gather(b.range(count.reshape_to(&[])) * step + start, axis);
            }
            Ok(part)
        })
    }

    /// The elements along an axis in reverse order.
    pub fn reversed(self, axis: usize) -> Expr<'g> {
        self.slice(&[axis], &[-1], &[i64::MIN], &[-1])
    }

    /// Parts of the given sizes along an axis.
    pub fn split(self, axis: usize, sizes: &[i64]) -> Vec<Expr<'g>> {
        let b = self.builder;
        let mut attributes = vec![int("axis", axis as i64)];
        let mut inputs = vec![Some(self)];
        match b.opset() >= 13 {
            true => inputs.push(Some(b.ints(sizes))),
            false => attributes.push(ints("split", sizes)),
        }
        b.emit_many("Split", &inputs, attributes, vec![], sizes.len())
    }

    /// The tensor with zeros, or another value of its type, around it: `pads` is a list of int64, first how many before
    /// each axis, then how many behind each, none negative (ONNX Pad).
    pub fn pad(self, pads: Expr<'g>, value: Option<Expr<'g>>) -> Expr<'g> {
        let b = self.builder;
        if pads.ints().is_some_and(|p| p.iter().all(|&p| p == 0)) {
            return self;
        }
        if b.opset() >= 11 {
            return b.emit("Pad", &[Some(self), Some(pads), value], vec![]);
        }
        match (pads.ints(), value.map(|v| v.constant())) {
            (Some(pads), None) => b.emit("Pad", &[Some(self)], vec![ints("pads", &pads)]),
            (Some(pads), Some(Some(v))) => {
                b.emit("Pad", &[Some(self)], vec![ints("pads", &pads), float("value", v as f32)])
            }
            (None, None) => b.attempt(|| {
                let (begins, ends) = pads.halves();
                let mut padded = self;
                for axis in 0..self.rank()? {
                    let zeros = |amounts: Expr<'g>| {
                        let amount = amounts.item(axis);
                        let none = amount.ints().is_some_and(|a| a == [0]);
                        let shape = padded.shape_with(axis, amount);
                        if none { Ok(None) } else { Ok(Some(b.full(shape, 0.0, self.element()?))) }
                    };
                    let parts: Result<Vec<_>> =
                        vec![zeros(begins), Ok(Some(padded)), zeros(ends)].into_iter().collect();
                    let parts: Vec<_> = parts?.into_iter().flatten().collect();
                    padded = Expr::concat(&parts, axis);
                }
                Ok(padded)
            }),
            _ => b.too_old("Pad by computed amounts", 11),
        }
    }

    /// The tensor continued around its borders: `mode` is one that the model's own Pad has.
    pub fn pad_mode(self, pads: Expr<'g>, mode: &str) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 11 {
            return b.emit("Pad", &[Some(self), Some(pads)], vec![string("mode", mode)]);
        }
        match pads.ints() {
            Some(pads) => b.emit("Pad", &[Some(self)], vec![string("mode", mode), ints("pads", &pads)]),
            None => b.too_old("Pad by computed amounts", 11),
        }
    }

    /// The tensor with zeros before and after it along one axis, as many as the lists of one number `before` and
    /// `after` say.
    pub fn pad_axis(self, axis: usize, before: Expr<'g>, after: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        let zero = b.ints(&[0]);
        b.attempt(|| {
            let rank = self.rank()?;
            let at = |amount: Expr<'g>| (0..rank).map(move |a| if a == axis { amount } else { zero });
            Ok(self.pad(b.joined(&at(before).chain(at(after)).collect::<Vec<_>>()), None))
        })
    }

    /// The tensor without so many elements at the beginning and at the end of each axis: lists of int64 with an entry
    /// for every axis. Negative numbers add zeros instead. It is the transpose of a constant Pad.
    pub fn crop(self, begins: Expr<'g>, ends: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        let zero = b.ints(&[0]);
        let inside = match (begins.ints(), ends.ints()) {
            (Some(begins), Some(ends)) => {
                let cut = begins.iter().zip(&ends).enumerate().filter(|(_, (b, e))| **b > 0 || **e > 0);
                let (axes, cut): (Vec<usize>, Vec<_>) = cut.unzip();
                let starts: Vec<i64> = cut.iter().map(|(b, _)| (**b).max(0)).collect();
                let ends: Vec<i64> = cut.iter().map(|(_, e)| if **e > 0 { -**e } else { i64::MAX }).collect();
                if axes.is_empty() { self } else { self.slice(&axes, &starts, &ends, &vec![1; axes.len()]) }
            }
            _ => b.attempt(|| {
                let rank = self.rank()?;
                let axes: Vec<i64> = (0..rank as i64).collect();
                let ends = self.shape() - ends.max(zero);
                Ok(self.slice_at(b.ints(&axes), begins.max(zero), ends, b.ints(&vec![1; rank])))
            }),
        };
        inside.pad(Expr::concat(&[(-begins).max(zero), (-ends).max(zero)], 0), None)
    }

    /// The transpose of a Pad of this tensor in a mode other than constant: each element of `dy`, which has the padded
    /// shape, is added where its value came from, in a tensor of this one's shape. `begins` and `ends` have an entry
    /// for every axis. The rank must be known.
    pub fn unpad(self, begins: Expr<'g>, ends: Expr<'g>, mode: &str, dy: Expr<'g>) -> Expr<'g> {
        self.builder.attempt(|| self.transposed_pad(begins, ends, mode, dy))
    }

    fn transposed_pad(self, begins: Expr<'g>, ends: Expr<'g>, mode: &str, dy: Expr<'g>) -> Result<Expr<'g>> {
        let b = self.builder;
        let mut dx = dy;
        for axis in 0..self.rank()? {
            let amounts = Expr::concat(&[begins.item(axis), ends.item(axis)], 0);
            if amounts.ints().is_some_and(|a| a == [0, 0]) {
                continue;
            }
            // Where no operator adds scattered elements, tables of places cost the square of the length.
            if !b.scatters(true) && matches!(mode, "reflect" | "edge") {
                dx = dx.folded_in(axis, begins.item(axis), ends.item(axis), mode);
                continue;
            }
            let places = b.range(self.dim(axis));
            // Before opset 11 Pad knows floating-point numbers only.
            let from = match b.opset() >= 11 {
                true => places.pad_mode(amounts, mode),
                false => places.cast(ElementType::Float).pad_mode(amounts, mode).cast(ElementType::Int64),
            };
            dx = dx.to_places(from, axis, self.dims([axis]), true);
        }
        Ok(dx)
    }

    /// Along an axis, what lies beyond a border added to the elements that it continues (`edge`: the last one,
    /// `reflect`: those before it, in reverse order), in amounts that are lists of one. What negative amounts have cut
    /// off is zero.
    fn folded_in(self, axis: usize, begin: Expr<'g>, end: Expr<'g>, mode: &str) -> Expr<'g> {
        let b = self.builder;
        let (zero, one, axes) = (b.ints(&[0]), b.ints(&[1]), b.ints(&[axis as i64]));
        let (before, behind) = (begin.max(zero), end.max(zero));
        let size = self.dims([axis]) - before - behind;
        let part = |from: Expr<'g>, to: Expr<'g>| self.slice_at(axes, from, to, one);
        let mut dx = part(before, before + size);
        for (amount, outside, first) in
            [(before, part(zero, before), true), (behind, part(before + size, b.ints(&[i64::MAX])), false)]
        {
            if amount.ints().is_some_and(|a| a == [0]) {
                continue;
            }
            // How far from the border the elements lie that get it, and how many there are.
            let (laid, from, count) = match mode {
                "edge" => (outside.sum(&[axis]), zero, one),
                _ => (outside.reversed(axis), one, amount),
            };
            let rest = size - from - count;
            dx = dx + if first { laid.pad_axis(axis, from, rest) } else { laid.pad_axis(axis, rest, from) };
        }
        dx.pad_axis(axis, (-begin).max(zero), (-end).max(zero))
    }

    /// The transpose of a Slice of this tensor: `dy`, of the slice's shape, in its place in a tensor of this one's
    /// shape, zeros around and between. `starts` and `steps` are lists of int64 with an entry for every axis. The rank
    /// must be known.
    pub fn unslice(self, starts: Expr<'g>, steps: Expr<'g>, dy: Expr<'g>) -> Expr<'g> {
        self.builder.attempt(|| self.transposed_slice(starts, steps, dy))
    }

    /// A slice by computed numbers: each axis with its start, end and step, lists of one.
    fn turned(self, axes: &[(usize, Expr<'g>, Expr<'g>, Expr<'g>)]) -> Expr<'g> {
        let list = |f: fn(&(usize, Expr<'g>, Expr<'g>, Expr<'g>)) -> Expr<'g>| {
            Expr::concat(&axes.iter().map(f).collect::<Vec<_>>(), 0)
        };
        let numbers: Vec<i64> = axes.iter().map(|t| t.0 as i64).collect();
        self.slice_at(self.builder.ints(&numbers), list(|t| t.1), list(|t| t.2), list(|t| t.3))
    }

    fn transposed_slice(self, starts: Expr<'g>, steps: Expr<'g>, dy: Expr<'g>) -> Result<Expr<'g>> {
        let b = self.builder;
        let rank = self.rank()?;
        let (zero, one) = (b.ints(&[0]), b.ints(&[1]));
        let (own, part) = (self.sizes()?, dy.sizes()?);
        ensure!(own.len() == part.len(), "a slice of rank {} of a tensor of rank {rank}", part.len());
        let (mut turned, mut spread, mut dx) = (Vec::new(), Vec::new(), dy);
        let (mut begins, mut ends) = (Vec::new(), Vec::new());
        for axis in 0..rank {
            let (start, step, size, count) = (starts.item(axis), steps.item(axis), self.dims([axis]), dy.dims([axis]));
            // A step beyond the size takes one element at most, as one of the size does: what is spread stays that
            // small.
            let most = size.max(one);
            let known = step.ints().and_then(|s| s.first().copied());
            let step = match known {
                Some(-2..=2) => step,
                _ => step.cast(ElementType::Int64).max(-most).min(most),
            };
            if own.get(axis) == part.get(axis) && known == Some(1) {
                begins.push(zero);
                ends.push(zero);
                continue;
            }
            let first = start.wrapped(size);
            if known.is_none() && b.opset() < 14 {
                // Before opset 14 no Reshape to computed sizes makes a tensor without elements.
                let first = step.less(zero).select(first.min(size - one), first.max(zero));
                dx = dx.to_places(b.range(dy.dim(axis)) * step + first, axis, size, false);
                begins.push(zero);
                ends.push(zero);
                continue;
            }
            let (begin, length) = if known == Some(1) {
                (first.max(zero).min(size), count)
            } else {
                let back =
                    known.map_or_else(|| step.less(zero), |s| b.numbers(&[f64::from(s < 0)], &[1], ElementType::Bool));
                let stride = step.max(-step);
                let length = ((count - one) * stride + one).max(zero);
                let last = first.max(zero - one).min(size - one) - (count - one) * stride;
                let begin = back.select(last, first.max(zero)).min(size - length).max(zero);
                if known.is_none_or(|s| s < 0) {
                    let end = back.select(b.ints(&[i64::MIN]), b.ints(&[i64::MAX]));
                    turned.push((axis, back.select(-one, zero), end, back.select(-one, one)));
                }
                if known != Some(-1) {
                    spread.push((axis, stride, length));
                }
                (begin, length)
            };
            begins.push(begin);
            ends.push(size - begin - length);
        }
        let dx = if turned.is_empty() { dx } else { dx.turned(&turned) };
        let dx = if spread.is_empty() { dx } else { dx.spread(&spread)? };
        if rank == 0 { Ok(dx) } else { Ok(dx.pad(Expr::concat(&[begins, ends].concat(), 0), None)) }
    }

    /// The elements `stride` apart along each of some axes, with zeros between them, and the length that it comes to.
    fn spread(self, along: &[(usize, Expr<'g>, Expr<'g>)]) -> Result<Expr<'g>> {
        let b = self.builder;
        let (zero, one) = (b.ints(&[0]), b.ints(&[1]));
        let find = |axis: usize| along.iter().find(|a| a.0 == axis).map(|a| a.1);
        // Behind each such axis one of size 1, padded to the stride, then the two made one.
        let (mut behind, mut gaps, mut joined) = (Vec::new(), Vec::new(), Vec::new());
        for axis in 0..self.rank()? {
            let size = self.dims([axis]);
            gaps.push(zero);
            match find(axis) {
                Some(stride) => {
                    behind.push(gaps.len());
                    gaps.push(stride - one);
                    joined.push(size * stride);
                }
                None => joined.push(size),
            }
        }
        let amounts: Vec<_> = vec![zero; gaps.len()].into_iter().chain(gaps).collect();
        let padded = self.unsqueeze(&behind).pad(b.joined(&amounts), None);
        let joined = padded.reshape(b.joined(&joined));
        let axes: Vec<i64> = along.iter().map(|a| a.0 as i64).collect();
        let ends: Vec<_> = along.iter().map(|a| a.2).collect();
        let n = axes.len();
        Ok(joined.slice_at(b.ints(&axes), b.ints(&vec![0; n]), b.joined(&ends), b.ints(&vec![1; n])))
    }

    /// The parts of a concatenation of `joined` along `axis` that have the wanted numbers. Places are counted from the
    /// end where only that is known.
    pub fn parts(self, axis: usize, joined: &[Expr<'g>], wanted: &[usize]) -> Vec<Expr<'g>> {
        let b = self.builder;
        let known: Vec<Option<i64>> = joined.iter().map(|p| p.known_dim(axis)).collect();
        let add = |sum: &mut Option<i64>, size: &Option<i64>| {
            *sum = sum.zip(*size).and_then(|(a, b)| a.checked_add(b));
            Some(*sum)
        };
        let before: Vec<Option<i64>> = iter::once(Some(0)).chain(known.iter().scan(Some(0), add)).collect();
        let after: Vec<Option<i64>> = iter::once(Some(0)).chain(known.iter().rev().scan(Some(0), add)).collect();
        let mut total = b.ints(&[0]);
        let mut borders = Vec::with_capacity(before.len());
        for (i, (before, after)) in before.into_iter().zip(after.into_iter().rev()).enumerate() {
            borders.push(match (before, after) {
                (_, Some(0)) => b.ints(&[i64::MAX]),
                (Some(n), _) => b.ints(&[n]),
                (None, Some(n)) => b.ints(&[-n]),
                (None, None) => total,
            });
            total = joined.get(i).map_or(total, |p| total + p.dims([axis]));
        }
        let (axes, steps) = (b.ints(&[axis as i64]), b.ints(&[1]));
        wanted.iter().map(|&i| self.slice_at(axes, borders[i], borders[i + 1], steps)).collect()
    }

    /// Moved along an axis, to the back or, `forward`, to the front, by a number from 0 up to the size of the axis, an
    /// int64 without dimensions; `value` comes in, as much falls out.
    pub fn shifted(self, axis: usize, by: Expr<'g>, forward: bool, value: f64) -> Expr<'g> {
        let b = self.builder;
        b.attempt(|| {
            let rank = self.rank()?;
            let known = by.ints().filter(|_| self.known_dim(axis).is_some());
            let Some(&[known]) = known.as_deref() else {
                // Elements that are looked up, so that the shape is known to stay.
                let (size, place) = (self.dim(axis), b.range(self.dim(axis)));
                let from = if forward { place + by } else { place - by };
                let (inside, from) = match forward {
                    true => (from.less(size), from.min(size - 1)),
                    false => (from.greater_or_equal(b.int(0)), from.max(b.int(0))),
                };
                let inside = inside.reshape_to(&super::place(rank, axis));
                return Ok(inside.select(self.gather(from, axis), self.like(value)));
            };
            let mut pads = vec![0; 2 * rank];
            let (start, end, padded) = if forward { (known, i64::MAX, rank + axis) } else { (0, -known, axis) };
            if let Some(pad) = pads.get_mut(padded) {
                *pad = known;
            }
            let fill = (value != 0.0).then(|| self.like(value));
            Ok(self.narrow(axis, start, end).pad(b.ints(&pads), fill))
        })
    }

    /// The two halves of a list.
    pub fn halves(self) -> (Expr<'g>, Expr<'g>) {
        let b = self.builder;
        if let Some(values) = self.ints() {
            let (first, second) = values.split_at(values.len() / 2);
            return (b.ints(first), b.ints(second));
        }
        let half = match self.known_dim(0) {
            Some(n) => b.ints(&[n / 2]),
            None => (self.size() / 2).reshape_to(&[1]),
        };
        let (axis, step) = (b.ints(&[0]), b.ints(&[1]));
        let end = b.ints(&[i64::MAX]);
        (self.slice_at(axis, axis, half, step), self.slice_at(axis, half, end, step))
    }

    /// One entry of a list, as a list.
    pub fn item(self, i: usize) -> Expr<'g> {
        match self.ints().as_ref().and_then(|values| values.get(i)) {
            Some(&value) => self.builder.ints(&[value]),
            None => self.gather(self.builder.ints(&[i as i64]), 0),
        }
    }

    /// A list with an entry for each of some axes, made one with an entry for each of all axes: entry i of this list of
    /// int64 stands at `axes[i]`, a list as long and of int64, of a list of `rank` numbers that holds `default`
    /// elsewhere. An axis that is out of range is an error on record.
    pub fn over_axes(self, axes: Expr<'g>, rank: usize, default: i64) -> Expr<'g> {
        let b = self.builder;
        let list = self.cast(ElementType::Int64);
        let Some(axes) = axes.ints() else {
            let axes = axes.cast(ElementType::Int64).wrapped(b.int(rank as i64));
            return b.ints(&vec![default; rank]).scatter_elements(axes, list, 0);
        };
        let mut entries = vec![b.ints(&[default]); rank];
        b.attempt(|| {
            for (i, &axis) in axes.iter().enumerate() {
                if let Some(entry) = entries.get_mut(normalize_axis(axis, rank)?) {
                    *entry = list.item(i);
                }
            }
            Ok(b.joined(&entries))
        })
    }

    /// Copies side by side, as often along each axis as the list of int64 `repeats` says for it (ONNX Tile).
    pub fn tile(self, repeats: Expr<'g>) -> Expr<'g> {
        self.builder.emit("Tile", &[Some(self), Some(repeats)], vec![])
    }

    /// Each slice along an axis `size` times, one behind the other, as far as `length`, a list of one.
    pub fn repeated(self, axis: usize, size: i64, length: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        b.attempt(|| {
            let rank = self.rank()?;
            ensure!(axis < rank, "axis {axis} is out of range for rank {rank}");
            let mut sizes: Vec<_> = (0..rank).map(|a| self.dims([a])).collect();
            let mut joined = sizes.clone();
            let all = self.dims([axis]) * size;
            joined[axis] = all;
            sizes.insert(axis + 1, b.ints(&[size]));
            let copies = self.unsqueeze(&[axis + 1]).expand(b.joined(&sizes));
            let copies = copies.reshape(b.joined(&joined));
            match all.ints().is_some() && all.ints() == length.ints() {
                true => Ok(copies),
                false => Ok(copies.slice_at(b.ints(&[axis as i64]), b.ints(&[0]), length, b.ints(&[1]))),
            }
        })
    }

    /// Squares of pixels as channels, those of one square side by side (`DCR`) or those of one channel (`CRD`).
    pub fn space_to_depth(self, block: i64, mode: &str) -> Expr<'g> {
        let b = self.builder;
        if mode == "DCR" {
            return b.emit("SpaceToDepth", &[Some(self)], vec![int("blocksize", block)]);
        }
        if b.opset() >= 28 {
            return b.emit("SpaceToDepth", &[Some(self)], vec![int("blocksize", block), string("mode", mode)]);
        }
        let side = b.ints(&[block]);
        let [n, c, h, w] = [0, 1, 2, 3].map(|a| self.dims([a]));
        let (h, w) = (h / block, w / block);
        let squares = self.reshape(Expr::concat(&[n, c, h, side, w, side], 0)).transpose(&[0, 1, 3, 5, 2, 4]);
        squares.reshape(Expr::concat(&[n, c * side * side, h, w], 0))
    }

    /// Channels as squares of pixels: the inverse of [`Expr::space_to_depth`].
    pub fn depth_to_space(self, block: i64, mode: &str) -> Expr<'g> {
        let mut attributes = vec![int("blocksize", block)];
        if mode != "DCR" {
            attributes.push(string("mode", mode));
        }
        self.builder.emit("DepthToSpace", &[Some(self)], attributes)
    }

    /// The first `lengths[i]` elements along the time axis of each sequence in reverse order.
    pub fn reverse_sequence(self, lengths: Expr<'g>, batch_axis: i64, time_axis: i64) -> Expr<'g> {
        self.since(10, "ReverseSequence", || {
            let attributes = vec![int("batch_axis", batch_axis), int("time_axis", time_axis)];
            self.builder.emit("ReverseSequence", &[Some(self), Some(lengths)], attributes)
        })
    }

    /// The discrete Fourier transform of `[..., 1]` or `[..., 2]`, real or complex numbers, along an axis, a list of
    /// one; the inverse divides by the length.
    pub fn dft(self, axis: Expr<'g>, inverse: bool, onesided: bool) -> Expr<'g> {
        let b = self.builder;
        let mut attributes = vec![int("inverse", inverse.into()), int("onesided", onesided.into())];
        if b.opset() >= 20 {
            return b.emit("DFT", &[Some(self), None, Some(axis.reshape_to(&[]))], attributes);
        }
        b.since(17, "DFT", || match axis.ints().as_deref() {
            Some(&[axis]) => {
                attributes.push(int("axis", axis));
                b.emit("DFT", &[Some(self)], attributes)
            }
            _ => b.too_old("DFT along a computed axis", 20),
        })
    }

    /// The upper (or lower) triangles of matrices, from diagonal `k` on.
    pub fn trilu(self, k: Expr<'g>, upper: bool) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 14 {
            return b.emit("Trilu", &[Some(self), Some(k)], vec![int("upper", upper.into())]);
        }
        b.attempt(|| {
            let rank = self.rank()?;
            let (row, column) = (rank.saturating_sub(2), rank.saturating_sub(1));
            let diagonal = b.range(self.dim(column)).unsqueeze(&[0]) - b.range(self.dim(row)).unsqueeze(&[1]);
            let k = k.reshape_to(&[1, 1]);
            Ok(self.where_(if upper { diagonal.greater_or_equal(k) } else { diagonal.less_or_equal(k) }))
        })
    }
}
