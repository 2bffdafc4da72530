//! The gradient of the largest of each window, axis by axis.

use super::{MAX_TAPS, Window};
use crate::expr::{Expr, Pool};
use crate::onnx::ElementType;
use anyhow::Result;

/// A pool that looks at fewer elements in all is one node, whatever that takes.
const LARGE_POOL: i64 = 1 << 16;

impl<'g> Window<'g> {
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
            (*self.geometry.kernel.as_ref()?.get(axis)?, at(self.image)?, at(self.count)?, at(self.begin)?);
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
        let sum = |parts: &Vec<Expr<'g>>| if parts.is_empty() { nothing() } else { Ok(Expr::add_n(parts)) };
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
