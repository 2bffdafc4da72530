//! How windows lie on an image: what convolutions and pools share.
//!
//! There is an image side, of sizes S, and a side of windows, of counts O: one window a place, of K taps at distances
//! d, each window s further than the one before, the first one `begin` before the image. Sizes and pads are lists that
//! fold to constants where they are known and are computed where not; kernel, strides and dilations are numbers.

pub mod facts;

use super::Call;
use crate::expr::{ConvLike, Expr, Pool};
use crate::onnx::ElementType;
use anyhow::{Context, Result, ensure};

/// More taps than this are not sliced one by one.
const MAX_TAPS: usize = 64;

/// Up to so many taps a product for each is faster than a convolution with batch and channels exchanged.
const FEW_TAPS: usize = 9;

/// Rows of up to so many elements are short: what is done for each of them takes longer than what is done to them.
const NARROW: i64 = 40;

/// An image of so many elements is copied in less time than a node takes.
const FEW_ELEMENTS: i64 = 4096;

/// From so many windows an image on, a product of elements for each of many taps is faster than a convolution.
const MANY_WINDOWS: i64 = 36;

/// The same of few taps, where windows lie further apart.
const MANY_STEPS: i64 = 196;

/// Up to so many windows an image, those of all images are multiplied at once.
const FEW_WINDOWS: i64 = 8;

/// A pool that looks at fewer elements in all is one node, whatever that takes.
const LARGE_POOL: i64 = 1 << 16;

/// Windows on an image.
pub struct Window<'g> {
    /// How many axes it has.
    rank: usize,
    /// K, where it is known.
    kernel: Option<Vec<i64>>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
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

/// The attribute: one number at least `least` for each axis, `default` where it is left out.
fn numbers(c: &Call<'_>, name: &str, length: usize, default: i64, least: i64) -> Result<Vec<i64>> {
    let values = c.ints(name).filter(|v| !v.is_empty()).unwrap_or_else(|| vec![default; length]);
    ensure!(values.len() == length, "{name} has {} entries, where {length} are needed", values.len());
    let limit = i64::from(i32::MAX);
    ensure!(values.iter().all(|v| (least..=limit).contains(v)), "{name} = {values:?} is out of range");
    Ok(values)
}

impl<'g> Window<'g> {
    /// The windows of a convolution or a pool from `image` to `windows`; of a transposed convolution the other way
    /// round. `weights` tell the kernel's sizes where no attribute does.
    ///
    /// # Errors
    /// The rank is not known, or an attribute has a wrong length or is out of range.
    pub fn of(c: &Call<'g>, image: Expr<'g>, windows: Expr<'g>, weights: Option<Expr<'g>>) -> Result<Self> {
        let given = c.ints("kernel_shape").filter(|k| !k.is_empty());
        Self::with_kernel(c, image, windows, given, weights)
    }

    fn with_kernel(
        c: &Call<'g>,
        image: Expr<'g>,
        windows: Expr<'g>,
        kernel: Option<Vec<i64>>,
        weights: Option<Expr<'g>>,
    ) -> Result<Self> {
        let b = c.builder();
        let full = image.rank().or_else(|e| windows.rank().map_err(|_| e))?;
        let rank = full.checked_sub(2).filter(|&r| r > 0).context("an image needs batch, channels, and axes")?;
        let strides = numbers(c, "strides", rank, 1, 1)?;
        let dilations = numbers(c, "dilations", rank, 1, 1)?;
        let by_weights = || weights.and_then(|w| (2..full).map(|a| w.known_dim(a)).collect::<Option<Vec<_>>>());
        let kernel = kernel.or_else(by_weights);
        if let Some(kernel) = &kernel {
            let sound = kernel.len() == rank && kernel.iter().all(|k| (1..=i64::from(i32::MAX)).contains(k));
            ensure!(sound, "kernel_shape = {kernel:?} is out of range, or not of {rank} axes");
        }
        let sizes = match (&kernel, weights) {
            (Some(kernel), _) => b.ints(kernel),
            (None, Some(weights)) => weights.dims(2..full),
            (None, None) => return Err(anyhow::anyhow!("attribute kernel_shape is missing")),
        };
        let extra = numbers(c, "output_padding", rank, 0, 0)?;
        let auto_pad = c.string("auto_pad", "NOTSET");
        c.ensure_known("auto_pad", &auto_pad, &["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]);
        let (s, image, dense) = (b.ints(&strides), image.dims(2..full), strides.iter().all(|&s| s == 1));
        let shaped = c.ints("output_shape").is_some_and(|s| !s.is_empty());
        // In single steps there are as many windows as elements, by whatever names the model calls the sizes.
        let same = dense && auto_pad.starts_with("SAME") && !shaped;
        let count = if same { image } else { windows.dims(2..full) };
        let reach = (count - 1) * s + (sizes - 1) * b.ints(&dilations) + 1;
        let (begin, end) = if auto_pad.starts_with("SAME") || shaped {
            let total = (reach + b.ints(&extra) - image).max(b.ints(&vec![0; rank]));
            let half = total / 2;
            let begin = if auto_pad == "SAME_UPPER" { half } else { total - half };
            (begin, reach - image - begin)
        } else {
            let pads = match auto_pad.as_str() {
                "VALID" => vec![0; 2 * rank],
                _ => numbers(c, "pads", 2 * rank, 0, 0)?,
            };
            let (begin, end) = pads.split_at(rank);
            let begin = b.ints(begin);
            // Windows that may hang over reach as far as they reach; others by the pads, known whatever the sizes are.
            let end = match c.flag("ceil_mode", false) {
                true => reach - image - begin,
                false => b.ints(&end.iter().zip(&extra).map(|(e, x)| e - x).collect::<Vec<_>>()),
            };
            (begin, end)
        };
        let fixed = !auto_pad.starts_with("SAME") && !shaped && !c.flag("ceil_mode", false);
        let exact = fixed && extra.iter().zip(&strides).all(|(x, s)| x < s);
        Ok(Window { rank, kernel, strides, dilations, image, count, reach, begin, end, exact })
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
            kernel: self.kernel.clone().unwrap_or_default(),
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            pads,
            group,
        }
    }

    /// The kernel's sizes.
    ///
    /// # Errors
    /// They are not known.
    pub fn kernel(&self) -> Result<&[i64]> {
        self.kernel
            .as_deref()
            .context("the kernel's sizes are not known; write kernel_shape, or add value_info for the weights")
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
        let at = |tap: Vec<i64>| tap.iter().zip(&self.dilations).map(|(t, d)| t * d).collect();
        Ok(places(self.kernel()?).into_iter().map(at).collect())
    }

    /// The steps of the window and of its taps along an axis.
    pub fn steps(&self, axis: usize) -> (i64, i64) {
        let step = |list: &[i64]| list.get(axis).copied().unwrap_or(1);
        (step(&self.strides), step(&self.dilations))
    }

    /// The step of the window along an axis, and how far before the image it starts.
    pub fn step(&self, axis: usize) -> (i64, Expr<'g>) {
        let begin = self.begin.gather(self.begin.builder().int(axis as i64), 0);
        (self.strides.get(axis).copied().unwrap_or(1), begin)
    }

    /// K, the taps of a window, where it is known and does not overflow.
    fn taps(&self) -> Option<usize> {
        self.kernel.as_ref()?.iter().try_fold(1usize, |n, &k| n.checked_mul(usize::try_from(k).ok()?))
    }

    /// Whether there is one tap in each place, and a place for each window.
    pub fn is_pointwise(&self) -> bool {
        self.taps() == Some(1) && self.strides.iter().all(|&s| s == 1) && !self.is_padded()
    }

    /// Whether any window may lie partly outside of the image.
    pub fn is_padded(&self) -> bool {
        let some = |e: Expr<'g>| e.ints().is_none_or(|p| p.iter().any(|&p| p > 0));
        some(self.begin) || some(self.end)
    }

    /// Whether two windows may share an element.
    pub fn overlaps(&self) -> bool {
        let Some(kernel) = &self.kernel else { return true };
        let within = |((k, d), s): ((&i64, &i64), &i64)| (k - 1).saturating_mul(*d) < *s;
        !kernel.iter().zip(&self.dilations).zip(&self.strides).all(within)
    }

    /// The adjoint of [`Window::correlate`]: each window's number, times the weights, added up where its taps lie.
    pub fn spread(&self, windows: Expr<'g>, weights: Expr<'g>, group: i64) -> Expr<'g> {
        let b = windows.builder();
        // In single steps windows leave nothing over.
        let dense = self.exact && self.strides.iter().all(|&s| s == 1);
        let end = if dense { self.end } else { self.reach - self.begin - self.image };
        let largest: Vec<i64> = self.strides.iter().map(|s| s - 1).collect();
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
                let rest = tap.iter().zip(self.kernel()?).zip(&self.dilations).map(|((t, k), d)| (k - 1) * d - t);
                let lead = [0, 0];
                let pads = lead.into_iter().chain(tap.iter().copied()).chain(lead).chain(rest).collect::<Vec<_>>();
                Ok(part.squeeze(&[1]).pad(b.ints(&pads), None))
            });
            let laid = laid.collect::<Result<Vec<_>>>()?;
            let whole = if let [only] = laid[..] { only } else { Expr::add_n(&laid) };
            let ends: Vec<i64> = end.iter().map(|&e| if e == 0 { i64::MAX } else { -e }).collect();
            Ok(whole.slice(&self.axes(), &begin, &ends, &vec![1; self.rank]).move_axis(1, 0))
        }))
    }

    /// [`Window::spread`] in single steps as a convolution with the weights turned around and their channels exchanged:
    /// faster than ConvTranspose where there are more channels in the image than in the windows, and so many windows
    /// that turning the weights does not count.
    fn spread_by_convolution(&self, windows: Expr<'g>, weights: Expr<'g>) -> Option<Expr<'g>> {
        let b = windows.builder();
        let reach: Vec<i64> = self.kernel.as_ref()?.iter().zip(&self.dilations).map(|(k, d)| (k - 1) * d).collect();
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
            && end.iter().zip(&self.strides).any(|(e, s)| e + s <= 0)
        {
            // A transposed convolution's output padding that is as much as a window more.
            let ends: Vec<i64> = end.iter().map(|&e| if e < 0 { e } else { i64::MAX }).collect();
            padded = padded.slice(&axes, &vec![0; self.rank], &ends, &vec![1; self.rank]);
        }
        if self.taps() == Some(1) && self.strides.iter().all(|&s| s == 1) {
            return Ok(vec![padded]);
        }
        // Ends count from the back: they are the same for every size.
        let slice = |part: Expr<'g>, tap: &[i64], axes: std::ops::Range<usize>| {
            let steps = || tap.iter().zip(&self.dilations);
            let starts: Vec<i64> = steps().map(|(t, d)| t * d).collect();
            let rest = steps().zip(kernel).map(|((t, d), k)| (k - 1 - t) * d);
            let ends: Vec<i64> = rest.map(|r| if r == 0 { i64::MAX } else { -r }).collect();
            let along: Vec<usize> = axes.clone().map(|a| lead + a).collect();
            part.slice(&along, &starts[axes.clone()], &ends[axes.clone()], &self.strides[axes])
        };
        // Rows are copied one by one, and elements where they are taken in steps; where rows are short, or there are
        // steps, all that taps of one column meet is cut out first, of which whole rows are then neighbours.
        let last = self.rank - 1;
        let narrow = padded.known_dim(lead + last).is_some_and(|width| width <= NARROW);
        let many = padded.fact().element_count().is_none_or(|n| n > FEW_ELEMENTS);
        let steps = self.strides.last().is_some_and(|&s| s > 1);
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
        if b.slices_in_steps() || self.strides.iter().all(|&s| s == 1) {
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

    /// What the largest of each window is the transpose of: each window's number in the place of the first of its
    /// largest elements, axis by axis. Pools that only tell the largest are twenty times as fast as those that tell its
    /// place, too, and comparisons are fast. `None` where images are so small that one slow node is faster than many,
    /// and where their sizes are not known.
    ///
    /// # Errors
    /// The kernel's sizes, or the rank, are not known.
    pub fn unpool(&self, image: Expr<'g>, largest: Expr<'g>, windows: Expr<'g>) -> Result<Option<Expr<'g>>> {
        let kernel = self.kernel()?;
        let known = |i: usize| largest.known_dim(i).unwrap_or(1);
        let work = kernel.iter().copied().chain((0..largest.rank()?).map(known)).fold(1, i64::saturating_mul);
        let exact = matches!(image.fact().element, Some(ElementType::Float | ElementType::Double));
        let axes = (0..self.rank).map(|axis| self.line(axis)).collect::<Option<Vec<_>>>();
        let few = |lines: &Vec<Line>| lines.iter().all(|line| line.taps.max(line.stride) <= MAX_TAPS as i64);
        let Some(lines) = axes.filter(|lines| exact && work >= LARGE_POOL && few(lines)) else { return Ok(None) };
        let mut dx = windows;
        for axis in 0..self.rank {
            // The largest along the axes behind this one, and along this one, too.
            let [before, after] = [axis + 1, axis].map(|first| match first {
                0 => largest,
                _ if first == self.rank => image,
                _ => image.largest(&self.pool_behind(first, &lines)),
            });
            dx = lines[axis].unpool(before, after, dx, axis + 2)?;
        }
        Ok(Some(dx))
    }

    /// The windows along one axis, where all of its sizes are known.
    fn line(&self, axis: usize) -> Option<Line> {
        let at = |list: Expr<'g>| list.ints()?.get(axis).copied();
        let (stride, dilation) = self.steps(axis);
        let (taps, size, count, begin) =
            (*self.kernel.as_ref()?.get(axis)?, at(self.image)?, at(self.count)?, at(self.begin)?);
        let reach = (count - 1) * stride + (taps - 1) * dilation + 1;
        let line = Line { taps, stride, dilation, size, count, begin, reach };
        // Engines refuse pools whose windows may lie in the padding alone.
        let sound = size > 0 && count > 0 && (0..taps).contains(&begin) && line.end() < taps;
        sound.then_some(line)
    }

    /// The pool over windows along the axes from `first` on alone.
    fn pool_behind(&self, first: usize, lines: &[Line]) -> Pool {
        let list = |of: fn(&Line) -> i64, none: i64| -> Vec<i64> {
            lines.iter().enumerate().map(|(axis, line)| if axis < first { none } else { of(line) }).collect()
        };
        Pool {
            kernel: list(|l| l.taps, 1),
            strides: Some(list(|l| l.stride, 1)),
            dilations: lines.iter().any(|l| l.dilation != 1).then(|| list(|l| l.dilation, 1)),
            pads: Some([list(|l| l.begin, 0), list(Line::end, 0)].concat()),
            auto_pad: "NOTSET".into(),
            ceil_mode: false,
        }
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

    /// The gradient of the weights of the convolution from `image` to `windows`, in the weights' shape. Which form is
    /// the fastest depends on the sizes; docs/performance.md has the figures.
    pub fn weights(&self, image: Expr<'g>, windows: Expr<'g>, weights: Expr<'g>, group: i64) -> Expr<'g> {
        let b = image.builder();
        let dense = self.strides.iter().all(|&s| s == 1);
        let Some(taps) = self.taps().filter(|&t| t <= MAX_TAPS && (dense || b.slices_in_steps())) else {
            return self.weights_by_convolution(image, windows, weights, group);
        };
        let channels = weights.known_dim(1);
        let depthwise = group > 1 && channels == Some(1) && weights.known_dim(0) == Some(group);
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
        match self.strides.iter().all(|&s| s == 1) {
            true => taps <= FEW_TAPS || (narrow && places >= MANY_WINDOWS),
            false => taps <= FEW_TAPS && places >= MANY_STEPS,
        }
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
    fn rows(&self, e: Expr<'g>) -> Expr<'g> {
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
        if self.taps() == Some(1) && self.strides.iter().all(|&s| s == 1) && !self.is_padded() {
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
        let exchanged =
            ConvLike { kernel: vec![], strides: self.dilations.clone(), dilations: self.strides.clone(), pads, group };
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
            let (s, d) = (b.int(self.strides[i]), self.dilations[i]);
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
    pub fn most(&self, like: Expr<'g>, before: &[i64], behind: &[i64]) -> Result<Expr<'g>> {
        let b = like.builder();
        let (mut known, mut product) = (1.0, None);
        for (i, &k) in self.kernel()?.iter().enumerate() {
            let size = self.image.gather(b.int(i as i64), 0);
            let (d, pads) = (self.dilations[i], before[i] + behind[i]);
            let reached = |size: i64| ((size + pads + d - 1) / d).min(k);
            match size.ints().as_deref() {
                Some(&[size]) => known *= reached(size) as f64,
                _ if self.strides[i] == 1 => known *= k as f64,
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

/// Windows along one axis, all numbers known.
struct Line {
    taps: i64,
    stride: i64,
    dilation: i64,
    size: i64,
    count: i64,
    begin: i64,
    reach: i64,
}

impl Line {
    /// How far windows reach beyond the end.
    fn end(&self) -> i64 {
        (self.reach - self.size - self.begin).max(0)
    }

    /// The tensor along the axis with what windows reach into, a part for each remainder that places have when they
    /// are divided by the stride: what a tap meets in window after window lies side by side in one of them.
    fn phases<'g>(&self, e: Expr<'g>, axis: usize, value: f64) -> Result<Vec<Expr<'g>>> {
        let (b, rank) = (e.builder(), e.rank()?);
        let at = |n: i64| (0..rank).map(move |a| if a == axis { n } else { 0 });
        let pads: Vec<i64> = at(self.begin).chain(at(self.end())).collect();
        let padded = e.pad(b.ints(&pads), Some(e.like(value)));
        let phase = |first: i64| match self.stride {
            1 => padded,
            _ => padded.slice(&[axis], &[first], &[i64::MAX], &[self.stride]),
        };
        Ok((0..self.stride).map(phase).collect())
    }

    /// Each window's number where the first of its elements that equals its largest one is, added up.
    fn unpool<'g>(&self, image: Expr<'g>, largest: Expr<'g>, windows: Expr<'g>, axis: usize) -> Result<Expr<'g>> {
        let b = image.builder();
        let phases = self.phases(image, axis, lowest(image)?)?;
        let length = (self.reach + self.stride - 1) / self.stride;
        let mut laid: Vec<Vec<Expr<'g>>> = phases.iter().map(|_| Vec::new()).collect();
        let mut taken: Option<Expr<'g>> = None;
        for tap in 0..self.taps {
            let (phase, first) = ((tap * self.dilation % self.stride) as usize, tap * self.dilation / self.stride);
            let hit = phases[phase].narrow(axis, first, first + self.count).equal(largest);
            let here = taken.map_or(hit, |taken| hit.and(taken.logical_not()));
            taken = Some(taken.map_or(hit, |taken| taken.or(hit)));
            let rest = b.ints(&[length - first - self.count]);
            laid[phase].push(windows.where_(here).pad_axis(axis, b.ints(&[first]), rest));
        }
        let nothing = || Ok(b.full(windows.shape_with(axis, b.ints(&[length])), 0.0, windows.element()?));
        let sum = |parts: &Vec<Expr<'g>>| match parts[..] {
            [] => nothing(),
            [only] => Ok(only),
            _ => Ok(Expr::add_n(parts)),
        };
        let sums = laid.iter().map(sum).collect::<Result<Vec<_>>>()?;
        let whole = match sums[..] {
            [only] => only,
            _ => {
                let sides: Vec<_> = sums.iter().map(|e| e.unsqueeze(&[axis + 1])).collect();
                Expr::concat(&sides, axis + 1).reshape(windows.shape_with(axis, b.ints(&[length * self.stride])))
            }
        };
        let inside = whole.narrow(axis, self.begin, (self.begin + self.size).min(length * self.stride));
        let missing = self.begin + self.size - length * self.stride;
        Ok(inside.pad_axis(axis, b.ints(&[0]), b.ints(&[missing.max(0)])))
    }
}

/// What is less than every number that matters, of x's type: finite, since without Where a selection is a product.
///
/// # Errors
/// The element type is not known.
pub fn lowest(x: Expr<'_>) -> Result<f64> {
    Ok(match x.element()? {
        ElementType::Float16 => -65504.0,
        ElementType::Double => f64::MIN,
        _ => -3.38e38,
    })
}

/// All index tuples of a tensor of these sizes, in order.
fn places(sizes: &[i64]) -> Vec<Vec<i64>> {
    sizes.iter().fold(vec![vec![]], |places, &n| {
        places.iter().flat_map(|p| (0..n).map(move |i| p.iter().copied().chain([i]).collect())).collect()
    })
}
