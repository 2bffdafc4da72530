//! How windows lie on an image: what convolutions and pools share.
//!
//! There is an image side, of sizes S, and a side of windows, of counts O: one window a place, of K taps at distances
//! d, each window s further than the one before, the first one `begin` before the image. Sizes and pads are lists that
//! fold to constants where they are known and are computed where not; kernel, strides and dilations are numbers.

pub mod facts;
mod geometry;
mod line;
mod spread;
mod weights;

use super::Call;
use crate::expr::{ConvLike, Expr};
use anyhow::{Context, Result, bail, ensure};
use geometry::{AutoPad, Geometry};
pub use line::lowest;

/// More taps than this are not sliced one by one.
const MAX_TAPS: usize = 64;

/// Up to so many taps a product for each is faster than a convolution with batch and channels exchanged.
const FEW_TAPS: usize = 9;

/// Rows of up to so many elements are short: what is done for each of them takes longer than what is done to them.
const NARROW: i64 = 40;

/// An image of so many elements is copied in less time than a node takes.
const FEW_ELEMENTS: i64 = 4096;

/// Windows on an image.
pub struct Window<'g> {
    /// How many axes it has.
    rank: usize,
    /// Kernel, where it is known, strides and dilations, and what the attributes say of padding.
    pub geometry: Geometry,
    /// S
    image: Expr<'g>,
    /// O
    count: Expr<'g>,
    /// From the first tap of the first window to the last tap of the last one.
    reach: Expr<'g>,
    /// Zeros before the image.
    begin: Expr<'g>,
    /// Zeros behind it that windows reach into. May be more than they reach, or negative, by less than s.
    end: Expr<'g>,
    /// Whether there are no more windows than O, whatever the sizes are.
    exact: bool,
}

impl<'g> Window<'g> {
    /// The windows of a convolution or a pool from `image` to `windows`; of a transposed convolution the other way
    /// round. `weights` tell the kernel's sizes where no attribute does.
    ///
    /// # Errors
    /// The rank is not known, or an attribute has a wrong length or is out of range.
    pub fn of(c: &Call<'g>, image: Expr<'g>, windows: Expr<'g>, weights: Option<Expr<'g>>) -> Result<Self> {
        Self::with_kernel(c, image, windows, None, weights)
    }

    /// `block` is the kernel of an operator that has no attribute for it.
    fn with_kernel(
        c: &Call<'g>,
        image: Expr<'g>,
        windows: Expr<'g>,
        block: Option<Vec<i64>>,
        weights: Option<Expr<'g>>,
    ) -> Result<Self> {
        let b = c.builder();
        let full = image.rank().or_else(|e| windows.rank().map_err(|_| e))?;
        let rank = full.checked_sub(2).filter(|&r| r > 0).context("an image needs batch, channels, and axes")?;
        let mut geometry = Geometry::read(c.own_attributes(), rank)?;
        let by_weights = || weights.and_then(|w| (2..full).map(|a| w.known_dim(a)).collect::<Option<Vec<_>>>());
        geometry.kernel = block.or(geometry.kernel).or_else(by_weights);
        let geometry = geometry.in_range()?;
        let sizes = match (&geometry.kernel, weights) {
            (Some(kernel), _) => {
                ensure!(kernel.len() == rank, "kernel_shape = {kernel:?} is not of {rank} axes");
                b.ints(kernel)
            }
            (None, Some(weights)) => weights.dims(2..full),
            (None, None) => bail!("attribute kernel_shape is missing"),
        };
        let (extra, s, image, dense) =
            (&geometry.extra, b.ints(&geometry.strides), image.dims(2..full), geometry.is_dense());
        let (same, shaped) = (geometry.auto_pad.is_same(), geometry.output.is_some());
        // In single steps there are as many windows as elements, by whatever names the model calls the sizes.
        let count = if dense && same && !shaped { image } else { windows.dims(2..full) };
        let reach = (count - 1) * s + (sizes - 1) * b.ints(&geometry.dilations) + 1;
        let (begin, end) = if same || shaped {
            let total = (reach + b.ints(extra) - image).max(b.ints(&vec![0; rank]));
            let half = total / 2;
            let begin = if geometry.auto_pad == AutoPad::SameUpper { half } else { total - half };
            (begin, reach - image - begin)
        } else {
            let begin = b.ints(&geometry.before);
            // Windows that may hang over reach as far as they reach; others by the pads, known whatever the sizes are.
            let end = match geometry.ceil {
                true => reach - image - begin,
                false => b.ints(&geometry.behind.iter().zip(extra).map(|(e, x)| e - x).collect::<Vec<_>>()),
            };
            (begin, end)
        };
        let fixed = !same && !shaped && !geometry.ceil;
        let exact = fixed && extra.iter().zip(&geometry.strides).all(|(x, s)| x < s);
        Ok(Window { rank, geometry, image, count, reach, begin, end, exact })
    }

    /// The windows that Col2Im's blocks are.
    ///
    /// # Errors
    /// As [`Window::of`].
    pub fn blocks(c: &Call<'g>, image: Expr<'g>, block: Vec<i64>) -> Result<Self> {
        let rank = image.rank()?.saturating_sub(2);
        ensure!(block.len() == rank && block.iter().all(|&k| k > 0), "block_shape = {block:?} does not fit the image");
        Self::with_kernel(c, image, image, Some(block), None)
    }

    /// The shape from which a pool without overhanging windows gives that of `windows`, the smallest one.
    ///
    /// # Errors
    /// As [`Window::of`].
    pub fn unpooled(c: &Call<'g>, windows: Expr<'g>) -> Result<Expr<'g>> {
        let window = Window::of(c, windows, windows, None)?;
        Ok(Expr::concat(&[windows.dims([0, 1]), window.reach - window.begin - window.end], 0))
    }

    fn axes(&self) -> Vec<usize> {
        (2..self.rank + 2).collect()
    }

    fn like(&self, pads: Vec<i64>, group: i64) -> ConvLike {
        ConvLike {
            kernel: self.geometry.kernel.clone().unwrap_or_default(),
            strides: self.geometry.strides.clone(),
            dilations: self.geometry.dilations.clone(),
            pads,
            group,
        }
    }

    /// The kernel's sizes.
    ///
    /// # Errors
    /// They are not known.
    pub fn kernel(&self) -> Result<&[i64]> {
        self.geometry
            .kernel
            .as_deref()
            .context("the kernel's sizes are not known: the node has no kernel_shape; say the shape of its weights (--shape NAME=8x4x3x3, or value_info in the model)")
    }

    /// The kernel's sizes, of windows that are small enough to write a node for each tap.
    fn ensure_few_taps(&self) -> Result<&[i64]> {
        let kernel = self.kernel()?;
        ensure!(self.taps().is_some_and(|t| t <= 1024), "a window of more than 1024 elements is not taken apart");
        Ok(kernel)
    }

    /// Where each tap lies in its window.
    ///
    /// # Errors
    /// The kernel's sizes are not known, or they are too many.
    pub fn places(&self) -> Result<Vec<Vec<i64>>> {
        self.ensure_few_taps()?;
        let at = |tap: Vec<i64>| tap.iter().zip(&self.geometry.dilations).map(|(t, d)| t * d).collect();
        Ok(places(self.kernel()?).into_iter().map(at).collect())
    }

    /// The steps of the window and of its taps along an axis.
    pub fn steps(&self, axis: usize) -> (i64, i64) {
        let step = |list: &[i64]| list.get(axis).copied().unwrap_or(1);
        (step(&self.geometry.strides), step(&self.geometry.dilations))
    }

    /// The step of the window along an axis, and how far before the image it starts.
    pub fn step(&self, axis: usize) -> (i64, Expr<'g>) {
        let begin = self.begin.gather(self.begin.builder().int(axis as i64), 0);
        (self.geometry.strides.get(axis).copied().unwrap_or(1), begin)
    }

    /// K, the taps of a window, where it is known and does not overflow.
    fn taps(&self) -> Option<usize> {
        self.geometry.kernel.as_ref()?.iter().try_fold(1usize, |n, &k| n.checked_mul(usize::try_from(k).ok()?))
    }

    /// Whether there is one tap in each place, and a place for each window.
    pub fn is_pointwise(&self) -> bool {
        self.taps() == Some(1) && self.geometry.is_dense() && !self.is_padded()
    }

    /// Whether any window may lie partly outside of the image.
    pub fn is_padded(&self) -> bool {
        let some = |e: Expr<'g>| e.ints().is_none_or(|p| p.iter().any(|&p| p > 0));
        some(self.begin) || some(self.end)
    }

    /// Whether two windows may share an element.
    pub fn overlaps(&self) -> bool {
        let Some(kernel) = &self.geometry.kernel else { return true };
        let within = |((k, d), s): ((&i64, &i64), &i64)| (k - 1).saturating_mul(*d) < *s;
        !kernel.iter().zip(&self.geometry.dilations).zip(&self.geometry.strides).all(within)
    }

    /// The convolution: for each window the sum of the products of its elements and the weights.
    pub fn correlate(&self, image: Expr<'g>, weights: Expr<'g>, group: i64) -> Expr<'g> {
        let b = image.builder();
        let none = vec![0; 2 * self.rank];
        let windows = match (self.begin.ints(), self.end.ints()) {
            (Some(begin), Some(end)) => {
                let pads = begin.into_iter().chain(end.into_iter().map(|e| e.max(0))).collect();
                image.conv(weights, &self.like(pads, group))
            }
            _ => self.padded(image, None).conv(weights, &self.like(none, group)),
        };
        let counted = self.count.fact().dims();
        if self.exact || (counted.is_some() && windows.dims(self.axes()).fact().dims() == counted) {
            return windows;
        }
        let axes: Vec<i64> = self.axes().iter().map(|&a| a as i64).collect();
        let ones = b.ints(&vec![1; self.rank]);
        windows.slice_at(b.ints(&axes), b.ints(&vec![0; self.rank]), self.count, ones)
    }

    /// The image with what windows reach into around it: zeros, or a value. Its last axes are those of the image.
    pub fn padded(&self, image: Expr<'g>, value: Option<Expr<'g>>) -> Expr<'g> {
        let b = image.builder();
        b.attempt(|| {
            let lead = b.ints(&vec![0; image.rank()?.saturating_sub(self.rank)]);
            let end = self.end.max(b.ints(&vec![0; self.rank]));
            Ok(image.pad(Expr::concat(&[lead, self.begin, lead, end], 0), value))
        })
    }

    /// For each tap the elements that it meets, window by window; the last axes are those of the image.
    ///
    /// # Errors
    /// The kernel's sizes are not known, or they are too many.
    pub fn slices(&self, image: Expr<'g>, value: Option<Expr<'g>>) -> Result<Vec<Expr<'g>>> {
        let kernel = self.ensure_few_taps()?;
        let lead = image.rank()?.saturating_sub(self.rank);
        let axes: Vec<usize> = (lead..lead + self.rank).collect();
        let mut padded = self.padded(image, value);
        if let Some(end) = self.end.ints()
            && end.iter().zip(&self.geometry.strides).any(|(e, s)| e + s <= 0)
        {
            // A transposed convolution's output padding that is as much as a window more.
            let ends: Vec<i64> = end.iter().map(|&e| if e < 0 { e } else { i64::MAX }).collect();
            padded = padded.slice(&axes, &vec![0; self.rank], &ends, &vec![1; self.rank]);
        }
        if self.taps() == Some(1) && self.geometry.is_dense() {
            return Ok(vec![padded]);
        }
        // Ends count from the back: they are the same for every size.
        let slice = |part: Expr<'g>, tap: &[i64], axes: std::ops::Range<usize>| {
            let steps = || tap.iter().zip(&self.geometry.dilations);
            let starts: Vec<i64> = steps().map(|(t, d)| t * d).collect();
            let rest = steps().zip(kernel).map(|((t, d), k)| (k - 1 - t) * d);
            let ends: Vec<i64> = rest.map(|r| if r == 0 { i64::MAX } else { -r }).collect();
            let along: Vec<usize> = axes.clone().map(|a| lead + a).collect();
            part.slice(&along, &starts[axes.clone()], &ends[axes.clone()], &self.geometry.strides[axes])
        };
        // Rows are copied one by one, and elements where they are taken in steps; where rows are short, or there are
        // steps, all that taps of one column meet is cut out first, of which whole rows are then neighbours.
        let last = self.rank - 1;
        let narrow = padded.known_dim(lead + last).is_some_and(|width| width <= NARROW);
        let many = padded.fact().element_count().is_none_or(|n| n > FEW_ELEMENTS);
        let steps = self.geometry.strides.last().is_some_and(|&s| s > 1);
        let slice = |tap: Vec<i64>| match (narrow || steps) && many && last > 0 {
            true => slice(slice(padded, &tap, last..self.rank), &tap, 0..last),
            false => slice(padded, &tap, 0..self.rank),
        };
        Ok(places(kernel).into_iter().map(slice).collect())
    }

    /// For each window its elements, of an image with one channel: `[N, taps, O...]`.
    ///
    /// # Errors
    /// The kernel's sizes are not known.
    pub fn patches(&self, image: Expr<'g>, value: f64) -> Result<Expr<'g>> {
        let b = image.builder();
        let value = (value != 0.0).then(|| image.like(value));
        if b.slices_in_steps() || self.geometry.is_dense() {
            return Ok(Expr::concat(&self.slices(image, value)?, 1));
        }
        let one_hot = self.one_hot(image)?;
        Ok(self.padded(image, value).conv(one_hot, &self.like(vec![0; 2 * self.rank], 1)))
    }

    /// The adjoint of [`Window::patches`].
    ///
    /// # Errors
    /// The kernel's sizes are not known.
    pub fn unpatch(&self, patches: Expr<'g>) -> Result<Expr<'g>> {
        Ok(self.spread(patches, self.one_hot(patches)?, 1))
    }

    /// Weights of which each looks at one tap: `[taps, 1, K...]`.
    fn one_hot(&self, like: Expr<'g>) -> Result<Expr<'g>> {
        let taps = self.taps().filter(|&t| t <= 1024).context(
            "a window of more than 1024 elements is too large; convert the model to a newer version of ONNX",
        )?;
        let identity: Vec<f64> = (0..taps * taps).map(|i| if i % (taps + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let dims = [&[taps as i64, 1], self.kernel()?].concat();
        Ok(like.builder().numbers(&identity, &dims, like.element()?))
    }

    /// How many elements each window has, as numbers like `like`, of a shape that broadcasts over the windows. Padding
    /// counts where `pads` are given: those in front, those behind.
    ///
    /// # Errors
    /// The kernel's sizes are not known.
    pub fn counts(&self, like: Expr<'g>, pads: Option<(&[i64], &[i64])>) -> Result<Expr<'g>> {
        let b = like.builder();
        let mut product = like.like(1.0);
        for (i, &k) in self.kernel()?.iter().enumerate() {
            let at = |list: Expr<'g>| list.gather(b.int(i as i64), 0);
            let (s, d) = (b.int(self.geometry.strides[i]), self.geometry.dilations[i]);
            let (before, behind) = pads.map_or((0, 0), |(p, q)| (p[i], q[i]));
            let start = b.range(at(self.count)) * s - at(self.begin);
            // How many taps lie before a place.
            let taps = |place: Expr<'g>| {
                let reached = (place - start + (d - 1)).max(b.int(0)) / d;
                reached.min(b.int(k))
            };
            let inside = taps(at(self.image) + behind) - taps(b.int(-before));
            let mut place = vec![1; self.rank];
            place[i] = -1;
            product = product * inside.cast_like(like).reshape_to(&place);
        }
        Ok(product)
    }

    /// How many elements each window has that does not hang over the image with its padding: all of its taps, or, where
    /// it is the only one along an axis and longer than that, those that lie there. Runtimes round the number of
    /// windows towards one then, if no step is lacking.
    ///
    /// # Errors
    /// The kernel's sizes are not known.
    pub fn most(&self, like: Expr<'g>, pads: Option<(&[i64], &[i64])>) -> Result<Expr<'g>> {
        let b = like.builder();
        let (mut known, mut product) = (1.0, None);
        for (i, &k) in self.kernel()?.iter().enumerate() {
            let size = self.image.gather(b.int(i as i64), 0);
            let (d, pads) = (self.geometry.dilations[i], pads.map_or(0, |(before, behind)| before[i] + behind[i]));
            let reached = |size: i64| ((size + pads + d - 1) / d).min(k);
            match size.ints().as_deref() {
                Some(&[size]) => known *= reached(size) as f64,
                _ if self.geometry.strides[i] == 1 => known *= k as f64,
                _ => {
                    let taps = ((size + (pads + d - 1)) / d).min(b.int(k)).cast_like(like);
                    product = Some(product.map_or(taps, |product: Expr<'g>| product * taps));
                }
            }
        }
        Ok(product.map_or(like.like(known), |product| product * known))
    }

    /// The image as one of one channel, `[N C, 1, S...]`.
    pub fn one_channel(&self, image: Expr<'g>) -> Expr<'g> {
        image.reshape(Expr::concat(&[image.builder().ints(&[-1, 1]), image.dims(self.axes())], 0))
    }
}

/// All index tuples of a tensor of these sizes, in order.
fn places(sizes: &[i64]) -> Vec<Vec<i64>> {
    sizes.iter().fold(vec![vec![]], |places, &n| {
        places.iter().flat_map(|p| (0..n).map(move |i| p.iter().copied().chain([i]).collect())).collect()
    })
}
