//! The gradient of a convolution's weights, in the form that is fastest for the sizes.

use super::{FEW_TAPS, MAX_TAPS, NARROW, Window};
use crate::expr::{ConvLike, Expr};
use anyhow::Result;

/// From so many windows an image on, products of rows are faster than a convolution in which each channel is a group,
/// of kernels with less than [`WIDE`] times as many taps.
const MANY_WINDOWS: i64 = 25;
const WIDE: i64 = 3;

/// Where there are more windows below each other than so many kernels, most of the products of rows are of rows that no
/// window sees together.
const TALL: i64 = 24;

/// So many elements of all windows are more than caches hold from one product of elements to the next.
const LARGE: i64 = 3 << 19;

/// Up to so many taps beside each other, what they meet is laid side by side.
const MAX_COLUMNS: i64 = 31;

/// From so many windows an image on, a product of elements for each of few taps is faster than a convolution, where
/// windows lie further apart.
const MANY_STEPS: i64 = 196;

impl<'g> Window<'g> {
    /// The gradient of the weights of the convolution from `image` to `windows`, in the weights' shape. Which form is
    /// the fastest depends on the sizes; docs/performance.md has the figures.
    pub fn weights(&self, image: Expr<'g>, windows: Expr<'g>, weights: Expr<'g>, group: i64) -> Expr<'g> {
        let b = image.builder();
        let dense = self.geometry.is_dense();
        let channels = weights.known_dim(1);
        let depthwise = group > 1 && channels == Some(1) && weights.known_dim(0) == Some(group);
        if depthwise && let Some(sizes) = self.few_rows(windows) {
            return b.attempt(|| self.weights_by_rows(image, windows, weights, sizes));
        }
        let Some(taps) = self.taps().filter(|&t| t <= MAX_TAPS && (dense || b.slices_in_steps())) else {
            return self.weights_by_convolution(image, windows, weights, group);
        };
        let each = self.few_for_each_channel(windows, taps);
        // Under large windows an image of colours has many taps for each of few channels.
        let colours = group == 1 && channels.is_some_and(|c| c <= 4) && taps > FEW_TAPS;
        b.attempt(|| match group {
            _ if depthwise && each => self.weights_by_channels(image, windows, weights),
            _ if depthwise || colours => Ok(self.weights_by_convolution(image, windows, weights, group)),
            1 => self.weights_by_taps(image, windows, weights),
            _ => self.weights_by_groups(image, windows, weights, group, taps as i64),
        })
    }

    /// Whether products of elements for each tap are faster than a convolution in which each channel is a group.
    fn few_for_each_channel(&self, windows: Expr<'g>, taps: usize) -> bool {
        let sides = self.axes().into_iter().map(|a| windows.known_dim(a));
        let sides = sides.collect::<Option<Vec<_>>>().unwrap_or_default();
        let narrow = sides.last().is_some_and(|&width| width <= NARROW);
        let places = sides.into_iter().fold(1, i64::saturating_mul);
        match self.geometry.is_dense() {
            true => taps <= FEW_TAPS || (narrow && places >= MANY_WINDOWS),
            false => taps <= FEW_TAPS && places >= MANY_STEPS,
        }
    }

    /// How many windows and how many taps lie below each other, where products of rows are faster than a product of
    /// elements for each tap.
    fn few_rows(&self, windows: Expr<'g>) -> Option<(i64, i64)> {
        let &[height, width] = self.kernel().ok()? else { return None };
        let places = [windows.known_dim(2)?, windows.known_dim(3)?];
        let (taps, count) = (height.saturating_mul(width), places[0].saturating_mul(places[1]));
        let inside = |e: Expr<'g>| e.ints().is_some_and(|pads| pads.iter().all(|&p| p >= 0));
        let plain = self.exact && self.geometry.is_dense() && inside(self.begin) && inside(self.end);
        let many = taps > FEW_TAPS as i64 || windows.fact().element_count().is_some_and(|n| n >= LARGE);
        let few = width <= MAX_COLUMNS && places[0] <= TALL.saturating_mul(height);
        (plain && many && few && count >= MANY_WINDOWS && taps < WIDE.saturating_mul(count))
            .then_some((places[0], height))
    }

    /// The gradient of the weights where each channel of the image meets one window only, in single steps, as a product
    /// of matrices for each channel: each row of windows with each row of what the taps of one column meet. Of these
    /// products the weights' are those of rows that are as far apart as a tap and its window: they lie on diagonals,
    /// which are columns where each row of the product is taken to be one element longer than it is.
    fn weights_by_rows(
        &self,
        image: Expr<'g>,
        windows: Expr<'g>,
        weights: Expr<'g>,
        (places, height): (i64, i64),
    ) -> Result<Expr<'g>> {
        let b = image.builder();
        let width = self.kernel()?.last().copied().unwrap_or(1);
        let (channels, rest) = (weights.dims([0]), b.ints(&[-1]));
        let rows = |e: Expr<'g>| e.transpose(&[1, 2, 0, 3]);
        let shaped = |e: Expr<'g>, rows: i64| e.reshape(b.joined(&[channels, b.ints(&[rows]), rest]));
        let padded = rows(self.padded(image, None));
        let column = |tap: i64| {
            let end = if tap + 1 == width { i64::MAX } else { tap + 1 - width };
            padded.narrow(3, tap, end).unsqueeze(&[2])
        };
        let met = Expr::concat(&(0..width).map(column).collect::<Vec<_>>(), 2);
        let met = shaped(met, (places + height - 1) * width);
        let products = shaped(rows(windows), places).gemm(false, met, true, 1.0).reshape(b.joined(&[channels, rest]));
        let longer = products.pad(b.ints(&[0, 0, 0, places * width]), None);
        let diagonals = shaped(longer, places).narrow(2, 0, height * width);
        Ok(diagonals.sum_out(&[1]).reshape_like(weights))
    }

    /// The gradient of the weights where each channel of the image meets one window only: channels share nothing, and
    /// each tap's is the sum of a product of elements.
    fn weights_by_channels(&self, image: Expr<'g>, windows: Expr<'g>, weights: Expr<'g>) -> Result<Expr<'g>> {
        let others: Vec<usize> = [0].into_iter().chain(self.axes()).collect();
        let each = |met: Expr<'g>| (met * windows).sum_out(&others).unsqueeze(&[1]);
        let taps: Vec<_> = self.slices(image, None)?.into_iter().map(each).collect();
        Ok(Expr::concat(&taps, 1).reshape_like(weights))
    }

    /// An image or windows, channel by channel, as rows of a matrix: `[C, N S]`.
    pub(super) fn rows(&self, e: Expr<'g>) -> Expr<'g> {
        match self.axes().iter().all(|&a| e.known_dim(a) == Some(1)) {
            true => e.squeeze(&self.axes()).transposed(),
            false => e.move_axis(1, 0).stacked_after(1),
        }
    }

    /// Products of matrices: the windows, `[M, N O]`, with what each tap meets, `[C, N O]`; or with what all taps meet
    /// in one piece, where that is smaller than the weights, or there are too few channels for a product to be worth
    /// its while. Weights are large: in neither form they are transposed.
    fn weights_by_taps(&self, image: Expr<'g>, windows: Expr<'g>, weights: Expr<'g>) -> Result<Expr<'g>> {
        let rows = self.rows(windows);
        if self.taps() == Some(1) && self.geometry.is_dense() && !self.is_padded() {
            return Ok(rows.gemm(false, self.rows(image), true, 1.0).reshape_like(weights));
        }
        let met = self.slices(image.move_axis(1, 0), None)?.into_iter().map(|tap| tap.stacked_after(1));
        let few = weights.known_dim(1).is_some_and(|channels| channels < 16);
        let small = rows.known_dim(1).zip(weights.known_dim(0)).is_some_and(|(places, outputs)| places < outputs);
        let product = if few || small {
            let met: Vec<_> = met.map(|tap| tap.unsqueeze(&[1])).collect();
            rows.gemm(false, Expr::concat(&met, 1).stacked_before(1), true, 1.0)
        } else {
            let product = |tap: Expr<'g>| rows.gemm(false, tap, true, 1.0).unsqueeze(&[2]);
            Expr::concat(&met.map(product).collect::<Vec<_>>(), 2)
        };
        Ok(product.reshape_like(weights))
    }

    /// A product of matrices for each group: its windows, `[M, N O]`, and what its taps meet, `[C taps, N O]`.
    fn weights_by_groups(
        &self,
        image: Expr<'g>,
        windows: Expr<'g>,
        weights: Expr<'g>,
        group: i64,
        taps: i64,
    ) -> Result<Expr<'g>> {
        let b = image.builder();
        let (groups, places) = (b.ints(&[group]), b.ints(&[-1]));
        let (outputs, channels) = (weights.dims([0]) / group, weights.dims([1]));
        let met = self.slices(image.move_axis(1, 0), None)?;
        let one = b.ints(&[1]);
        let met = met.into_iter().map(|tap| tap.reshape(Expr::concat(&[groups, channels, one, places], 0)));
        let met = Expr::concat(&met.collect::<Vec<_>>(), 2);
        let met = met.reshape(Expr::concat(&[groups, channels * taps, places], 0));
        let rows = windows.move_axis(1, 0).reshape(Expr::concat(&[groups, outputs, places], 0));
        Ok(rows.gemm(false, met, true, 1.0).reshape_like(weights))
    }

    /// A convolution in which batch and channels, strides and dilations have changed places.
    fn weights_by_convolution(&self, image: Expr<'g>, windows: Expr<'g>, weights: Expr<'g>, group: i64) -> Expr<'g> {
        let b = image.builder();
        let (pads, image) = match (self.begin.ints(), self.end.ints()) {
            (Some(begin), Some(end)) => (begin.into_iter().chain(end.into_iter().map(|e| e.max(0))).collect(), image),
            _ => (vec![0; 2 * self.rank], self.padded(image, None)),
        };
        let sizes = image.dims(self.axes());
        let swapped = match group {
            1 => image.move_axis(1, 0),
            _ => {
                let (groups, channels, batch) = (b.ints(&[group]), weights.dims([1]), image.dims([0]));
                let grouped = image.reshape(Expr::concat(&[batch, groups, channels, sizes], 0));
                let order: Vec<usize> = [2, 1, 0].into_iter().chain(3..self.rank + 3).collect();
                grouped.transpose(&order).reshape(Expr::concat(&[channels, groups * batch, sizes], 0))
            }
        };
        let exchanged = ConvLike {
            kernel: vec![],
            strides: self.geometry.dilations.clone(),
            dilations: self.geometry.strides.clone(),
            pads,
            group,
        };
        let whole = swapped.conv(windows.move_axis(1, 0), &exchanged);
        let axes: Vec<i64> = self.axes().iter().map(|&a| a as i64).collect();
        let kernel = weights.dims(self.axes());
        let part = match whole.dims(self.axes()).fact().dims().is_some_and(|d| Some(d) == kernel.fact().dims()) {
            true => whole,
            false => {
                let ones = b.ints(&vec![1; self.rank]);
                whole.slice_at(b.ints(&axes), b.ints(&vec![0; self.rank]), kernel, ones)
            }
        };
        part.move_axis(1, 0)
    }
}
