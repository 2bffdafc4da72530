//! Parts of tensors and tensors of parts: slices, splits, paddings, tiles.

use super::{Builder, Expr};
use crate::onnx::attribute::{float, int, ints};

impl Builder {
    /// Whether slices can be in steps.
    pub fn slices_in_steps(&self) -> bool {
        self.opset() >= 10
    }
}

impl<'g> Expr<'g> {
    /// Tensors joined along an axis.
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

    /// The part `starts[i] .. ends[i]` in steps along `axes[i]`, numbers known at build time.
    pub fn slice(self, axes: &[usize], starts: &[i64], ends: &[i64], steps: &[i64]) -> Expr<'g> {
        let b = self.builder;
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        if b.opset() >= 10 {
            return self.slice_at(b.ints(&axes), b.ints(starts), b.ints(ends), b.ints(steps));
        }
        if steps.iter().any(|&s| s != 1) {
            return b.too_old("Slice with steps", 10);
        }
        b.emit("Slice", &[Some(self)], vec![ints("axes", &axes), ints("starts", starts), ints("ends", ends)])
    }

    /// The part `start .. end` along an axis.
    pub fn narrow(self, axis: usize, start: i64, end: i64) -> Expr<'g> {
        self.slice(&[axis], &[start], &[end], &[1])
    }

    /// The part that lists of integers, computed or not, describe.
    pub fn slice_at(self, axes: Expr<'g>, starts: Expr<'g>, ends: Expr<'g>, steps: Expr<'g>) -> Expr<'g> {
        let b = self.builder;
        if b.opset() >= 10 {
            return b.emit("Slice", &[Some(self), Some(starts), Some(ends), Some(axes), Some(steps)], vec![]);
        }
        match (axes.ints(), starts.ints(), ends.ints(), steps.ints()) {
            (Some(axes), Some(starts), Some(ends), Some(steps)) => {
                let axes: Vec<usize> = axes.into_iter().map(|a| a as usize).collect();
                self.slice(&axes, &starts, &ends, &steps)
            }
            _ => b.too_old("Slice at computed places", 10),
        }
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

    /// The tensor with zeros, or another value, around it: `pads` of all begins, then of all ends, none negative.
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
            _ => b.too_old("Pad by computed amounts", 11),
        }
    }

    /// Copies side by side, as often along each axis as the list says.
    pub fn tile(self, repeats: Expr<'g>) -> Expr<'g> {
        self.builder.emit("Tile", &[Some(self), Some(repeats)], vec![])
    }

    /// The upper (or lower) triangles of matrices, from diagonal `k` on.
    pub fn trilu(self, k: Expr<'g>, upper: bool) -> Expr<'g> {
        self.since(14, "Trilu", || self.builder.emit("Trilu", &[Some(self), Some(k)], vec![int("upper", upper.into())]))
    }
}
