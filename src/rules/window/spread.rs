//! Windows laid on an image: the transpose of a convolution, in the form that is fastest for the sizes.

use super::{FEW_TAPS, Window};
use crate::expr::{ConvLike, Expr};
use crate::onnx::ElementType;
use anyhow::Result;

/// Up to so many windows an image, those of all images are multiplied at once.
const FEW_WINDOWS: i64 = 8;

impl<'g> Window<'g> {
    /// The adjoint of [`Window::correlate`]: each window's number, times the weights, added up where its taps lie.
    pub fn spread(&self, windows: Expr<'g>, weights: Expr<'g>, group: i64) -> Expr<'g> {
        let b = windows.builder();
        // In single steps windows leave nothing over.
        let dense = self.exact && self.geometry.is_dense();
        let end = if dense { self.end } else { self.reach - self.begin - self.image };
        let largest: Vec<i64> = self.geometry.strides.iter().map(|s| s - 1).collect();
        let slice = |whole: Expr<'g>, from: Expr<'g>| {
            let axes: Vec<i64> = self.axes().iter().map(|&a| a as i64).collect();
            whole.slice_at(b.ints(&axes), from, from + self.image, b.ints(&vec![1; self.rank]))
        };
        let zeros = vec![0; self.rank];
        if group == 1
            && dense
            && let Some(spread) = self.spread_by_product(windows, weights)
        {
            return spread;
        }
        if group == 1
            && dense
            && let Some(spread) = self.spread_by_convolution(windows, weights)
        {
            return spread;
        }
        match (self.begin.ints(), end.ints(), self.end.ints()) {
            (Some(begin), Some(end), _) => {
                let pads = begin.into_iter().chain(end.iter().map(|&e| e.max(0))).collect();
                let rest: Vec<i64> = end.iter().map(|&e| (-e).max(0)).collect();
                windows.conv_transpose(weights, &self.like(pads, group), &rest)
            }
            // What no window covers is known at run time only: up to a stride less one.
            (Some(begin), None, Some(end)) => {
                let pads = begin.into_iter().chain(end.iter().map(|&e| e.max(0))).collect();
                slice(windows.conv_transpose(weights, &self.like(pads, group), &largest), b.ints(&zeros))
            }
            _ => {
                let pads = vec![0; 2 * self.rank];
                slice(windows.conv_transpose(weights, &self.like(pads, group), &largest), self.begin)
            }
        }
    }

    /// [`Window::spread`] where images are so small that ConvTranspose, which multiplies the weights with one image
    /// after the other, takes most of its time to read the weights: one product for all images, of which every tap is
    /// laid in its place.
    fn spread_by_product(&self, windows: Expr<'g>, weights: Expr<'g>) -> Option<Expr<'g>> {
        let places = self.axes().iter().try_fold(1i64, |n, &a| n.checked_mul(windows.known_dim(a)?))?;
        let taps = self.taps()?;
        let (begin, end) = (self.begin.ints()?, self.end.ints()?);
        let exact = matches!(windows.fact().element, Some(ElementType::Float | ElementType::Double));
        let inside = begin.iter().chain(&end).all(|&p| p >= 0);
        if places > FEW_WINDOWS || taps > FEW_TAPS || !exact || !inside {
            return None;
        }
        let b = windows.builder();
        Some(b.attempt(|| {
            let (batch, channels) = (windows.dims([0]), weights.dims([1]));
            let product = weights.stacked_after(1).gemm(true, self.rows(windows), false, 1.0);
            let shape = Expr::concat(&[channels, b.ints(&[taps as i64]), batch, windows.dims(self.axes())], 0);
            let parts = product.reshape(shape).split(1, &vec![1; taps]);
            let laid = parts.into_iter().zip(self.places()?).map(|(part, tap)| {
                let rest =
                    tap.iter().zip(self.kernel()?).zip(&self.geometry.dilations).map(|((t, k), d)| (k - 1) * d - t);
                let lead = [0, 0];
                let pads = lead.into_iter().chain(tap.iter().copied()).chain(lead).chain(rest).collect::<Vec<_>>();
                Ok(part.squeeze(&[1]).pad(b.ints(&pads), None))
            });
            let laid = laid.collect::<Result<Vec<_>>>()?;
            let whole = Expr::add_n(&laid);
            let ends: Vec<i64> = end.iter().map(|&e| if e == 0 { i64::MAX } else { -e }).collect();
            Ok(whole.slice(&self.axes(), &begin, &ends, &vec![1; self.rank]).move_axis(1, 0))
        }))
    }

    /// [`Window::spread`] in single steps as a convolution with the weights turned around and their channels exchanged:
    /// faster than ConvTranspose where there are more channels in the image than in the windows, and so many windows
    /// that turning the weights does not count.
    fn spread_by_convolution(&self, windows: Expr<'g>, weights: Expr<'g>) -> Option<Expr<'g>> {
        let b = windows.builder();
        let reach: Vec<i64> =
            self.geometry.kernel.as_ref()?.iter().zip(&self.geometry.dilations).map(|(k, d)| (k - 1) * d).collect();
        let around = |pads: Vec<i64>| -> Vec<i64> { reach.iter().zip(pads).map(|(r, p)| r - p).collect() };
        let pads = [around(self.begin.ints()?), around(self.end.ints()?)].concat();
        let [outputs, channels] = [weights.known_dim(0)?, weights.known_dim(1)?];
        let places = self.axes().iter().try_fold(1i64, |n, &a| n.checked_mul(windows.known_dim(a)?))?;
        let places = places.saturating_mul(windows.known_dim(0).unwrap_or(1));
        let pays = outputs <= channels && places >= outputs.saturating_mul(16);
        if !pays || self.taps()? == 1 || pads.iter().any(|&p| p < 0) || !b.slices_in_steps() {
            return None;
        }
        let (last, first, back) = (vec![-1; self.rank], vec![i64::MIN; self.rank], vec![-1; self.rank]);
        let turned = weights.move_axis(1, 0).slice(&self.axes(), &last, &first, &back);
        Some(windows.conv(turned, &ConvLike { strides: vec![1; self.rank], ..self.like(pads, 1) }))
    }

    /// For each window its number in the places of all its taps, added up, `[N, C, S...]`.
    ///
    /// # Errors
    /// The kernel's sizes are not known.
    pub fn spread_evenly(&self, windows: Expr<'g>, image: Expr<'g>) -> Result<Expr<'g>> {
        let b = windows.builder();
        let kernel = [&[1, 1], self.kernel()?].concat();
        let ones = b.full(b.ints(&kernel), 1.0, windows.element()?);
        Ok(self.spread(self.one_channel(windows), ones, 1).reshape_like(image))
    }
}
