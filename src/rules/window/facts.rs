//! Facts of convolutions and pools: how many windows fit.

use super::geometry::{AutoPad, Geometry};
use crate::graph::facts::{Known, Parameter, agree, tensor};
use crate::graph::{Dim, Dims, Fact};
use crate::onnx::ElementType;
use anyhow::{Result, ensure};

/// How windows lie on one axis.
struct Window {
    kernel: Dim,
    stride: i64,
    dilation: i64,
    before: i64,
    after: i64,
    auto_pad: AutoPad,
    ceil: bool,
}

impl Window {
    fn new(g: &Geometry, axis: usize, kernel: Dim) -> Self {
        Window {
            kernel,
            stride: g.strides[axis],
            dilation: g.dilations[axis],
            before: g.before[axis],
            after: g.behind[axis],
            auto_pad: g.auto_pad,
            ceil: g.ceil,
        }
    }

    /// How far the window reaches: `(kernel - 1) dilation + 1`.
    fn extent(&self, dims: &Dims) -> Dim {
        dims.add(dims.mul(dims.sub(self.kernel, 1.into()), self.dilation.into()), 1.into())
    }

    /// How many windows fit; a fresh size where runtimes do not agree, or what is known does not tell.
    fn count(&self, c: &Known, size: Dim) -> Dim {
        let (dims, stride) = (c.dims(), Dim::Known(self.stride));
        if self.stride <= 0 {
            return dims.fresh();
        }
        if self.auto_pad.is_same() {
            // Runtimes leave the dilation out of a pool's padding.
            let left_out = self.dilation != 1 && c.op.op_type.ends_with("Pool");
            return if left_out { dims.fresh() } else { dims.ceil_div(size, stride) };
        }
        let (before, after) = (self.before, self.after);
        let extent = self.extent(dims);
        let start = dims.add(size, before.into());
        let span = dims.sub(dims.add(start, after.into()), extent);
        if span.known().is_some_and(|n| n < 0 && n % self.stride != 0) {
            // By the formula none fits; most runtimes round towards nothing, and compute one.
            return dims.fresh();
        }
        let down = dims.add(dims.floor_div(span, stride), 1.into());
        let up = dims.add(dims.ceil_div(span, stride), 1.into());
        let count = match (self.ceil, up.known(), start.known(), extent.known()) {
            (false, ..) => down,
            (true, ..) if self.auto_pad == AutoPad::Valid && up != down => return dims.fresh(),
            // A last window that would start in the padding behind the input is left out.
            (true, Some(up), Some(start), _) => {
                Dim::Known(if (up - 1).saturating_mul(self.stride) >= start { up - 1 } else { up })
            }
            // Here none can.
            (true, _, _, Some(extent)) if after.saturating_add(self.stride) <= extent => up,
            _ => return dims.fresh(),
        };
        if count.known().is_some_and(|n| n < 0) { dims.fresh() } else { count }
    }
}

/// The sizes of the kernel: the attribute, or the weight's dimensions behind its first two.
pub fn kernel(c: &Known, weight: Option<usize>) -> Option<Vec<Dim>> {
    match (c.ints("kernel_shape"), weight.and_then(|w| c.shape(w))) {
        (Some(sizes), _) if !sizes.is_empty() => Some(sizes.iter().map(|&n| n.into()).collect()),
        (_, weight) => weight?.get(2..).map(<[Dim]>::to_vec),
    }
}

/// Fails where something of an image is known for another number of axes than it has.
pub fn same_axes(c: &Known, sizes: &[Dim], axes: Option<usize>) -> Result<()> {
    ensure!(
        axes.is_none_or(|axes| axes == sizes.len()),
        "an image with {} axes and what belongs to {} of them do not fit: {}",
        sizes.len(),
        axes.unwrap_or_default(),
        c.dims().display(sizes)
    );
    Ok(())
}

/// Batch and channels of an image, and its sizes.
pub fn image<'a>(c: &Known<'a>, i: usize) -> Result<Option<(Dim, Dim, &'a [Dim])>> {
    let Some(shape) = c.shape(i) else { return Ok(None) };
    match shape {
        [batch, channels, sizes @ ..] => Ok(Some((*batch, *channels, sizes))),
        _ => anyhow::bail!("an image needs batch and channels, its shape is {}", c.dims().display(shape)),
    }
}

pub fn convolution(c: &Known, x: usize, w: usize, element: Option<ElementType>) -> Result<Vec<Fact>> {
    let (image, weight) = (image(c, x)?, c.shape(w));
    let kernel = kernel(c, Some(w));
    if let (Some((_, channels, sizes)), Some(weight)) = (image, weight) {
        ensure!(
            weight.len() == sizes.len() + 2,
            "an image with {} axes and a weight of shape {} do not fit",
            sizes.len(),
            c.dims().display(weight)
        );
        if let Some(&Dim::Known(n)) = weight.get(1) {
            let needed = n.saturating_mul(c.int("group", 1));
            agree("channels of the image and the weight", channels, needed.into())?;
        }
    }
    let out = weight.and_then(|w| w.first().copied()).unwrap_or_else(|| c.dims().fresh());
    let shape = match (image, kernel) {
        (Some((batch, _, sizes)), kernel) => {
            let mut shape = vec![batch, out];
            shape.extend(windows(c, sizes, kernel.as_deref()));
            Some(shape)
        }
        (None, Some(kernel)) => Some([&[c.dims().fresh(), out][..], &c.fresh(kernel.len())].concat()),
        (None, None) => None,
    };
    Ok(vec![tensor(element, shape)])
}

pub fn windows(c: &Known, sizes: &[Dim], kernel: Option<&[Dim]>) -> Vec<Dim> {
    let geometry = Geometry::read(c.op.attributes, sizes.len()).ok();
    let count = |(i, &size): (usize, &Dim)| match (&geometry, kernel.and_then(|k| k.get(i))) {
        (Some(geometry), Some(&kernel)) => Window::new(geometry, i, kernel).count(c, size),
        _ => c.dims().fresh(),
    };
    sizes.iter().enumerate().map(count).collect()
}

/// MaxPool has the indices of the maxima for a second output.
pub fn pool(c: &Known) -> Result<Vec<Fact>> {
    let kernel = kernel(c, None);
    let shape = match (image(c, 0)?, kernel) {
        (Some((batch, channels, sizes)), kernel) => {
            let mut shape = vec![batch, channels];
            shape.extend(windows(c, sizes, kernel.as_deref()));
            Some(shape)
        }
        (None, Some(kernel)) => Some(c.fresh(kernel.len() + 2)),
        (None, None) => None,
    };
    Ok(vec![tensor(c.element(0), shape.clone()), tensor(Some(ElementType::Int64), shape)])
}

pub fn global(c: &Known) -> Result<Vec<Fact>> {
    let shape = image(c, 0)?.map(|(batch, channels, sizes)| {
        let mut shape = vec![batch, channels];
        shape.resize(sizes.len() + 2, Dim::Known(1));
        shape
    });
    Ok(vec![tensor(c.element(0), shape)])
}

pub fn transposed(c: &Known) -> Result<Vec<Fact>> {
    let element = c.element(0).or(c.element(1));
    let dims = c.dims();
    let Some((batch, channels, sizes)) = image(c, 0)? else {
        return Ok(vec![tensor(element, c.rank(1).map(|rank| c.fresh(rank)))]);
    };
    same_axes(c, sizes, c.rank(1).map(|rank| rank.saturating_sub(2)))?;
    let out = match c.shape(1) {
        Some([input, group, ..]) => {
            agree("channels of the image and the weight", channels, *input)?;
            dims.mul(*group, c.int("group", 1).into())
        }
        _ => dims.fresh(),
    };
    let geometry = Geometry::read(c.op.attributes, sizes.len()).ok();
    let kernel = kernel(c, Some(1));
    let size = |(i, &size): (usize, &Dim)| {
        let Some(g) = &geometry else { return dims.fresh() };
        // Some exporters write batch and channels too.
        let given = g.output.as_ref().and_then(|s| s.get(s.len().checked_sub(sizes.len())?..));
        if let Some(&given) = given.and_then(|s| s.get(i)) {
            return given.into();
        }
        let Some(&kernel) = kernel.as_ref().and_then(|k| k.get(i)) else { return dims.fresh() };
        let (window, extra) = (Window::new(g, i, kernel), g.extra[i]);
        if g.auto_pad.is_same() {
            // Pads only take away: windows with gaps between them do not fill the whole.
            let full = extra == 0 && window.extent(dims).known().is_some_and(|n| n >= window.stride);
            return if full { dims.mul(size, window.stride.into()) } else { dims.fresh() };
        }
        let pads = window.before.saturating_add(window.after);
        let last = dims.mul(dims.sub(size, 1.into()), window.stride.into());
        let all = dims.add(dims.add(last, window.extent(dims)), extra.into());
        let result = dims.sub(all, pads.into());
        if result.known().is_some_and(|n| n < 0) { dims.fresh() } else { result }
    };
    let mut shape = vec![batch, out];
    shape.extend(sizes.iter().enumerate().map(size));
    Ok(vec![tensor(element, Some(shape))])
}

pub fn max_unpool(c: &Known) -> Result<Vec<Fact>> {
    let Some((batch, channels, sizes)) = image(c, 0)? else { return Ok(vec![tensor(c.element(0), None)]) };
    let shape = match c.sizes(2, "output_shape") {
        Parameter::Known(shape) if shape.len() == sizes.len() + 2 => shape,
        Parameter::Absent => {
            let dims = c.dims();
            let kernel = kernel(c, None);
            let geometry = Geometry::read(c.op.attributes, sizes.len()).ok();
            let size = |(i, &size): (usize, &Dim)| match geometry.as_ref().zip(kernel.as_ref().and_then(|k| k.get(i))) {
                Some((geometry, &kernel)) => {
                    let window = Window::new(geometry, i, kernel);
                    let last = dims.mul(dims.sub(size, 1.into()), window.stride.into());
                    dims.sub(dims.add(last, kernel), window.before.saturating_add(window.after).into())
                }
                None => dims.fresh(),
            };
            [batch, channels].into_iter().chain(sizes.iter().enumerate().map(size)).collect()
        }
        _ => c.fresh(sizes.len() + 2),
    };
    Ok(vec![tensor(c.element(0), Some(shape))])
}

/// Blocks are the columns of the input: `[N, C ∏block, L]`.
pub fn col2im(c: &Known) -> Result<Vec<Fact>> {
    let dims = c.dims();
    let (batch, columns) = match c.shape(0) {
        Some(&[batch, columns, _]) => (batch, Some(columns)),
        _ => (dims.fresh(), None),
    };
    let channels = match (columns, c.sizes(2, "block_shape")) {
        (Some(columns), Parameter::Known(block)) => dims.floor_div(columns, dims.product(block)),
        _ => dims.fresh(),
    };
    let image = match c.sizes(1, "image_shape") {
        Parameter::Known(image) => Some(image),
        Parameter::Unknown(rank) => rank.map(|rank| c.fresh(rank)),
        Parameter::Absent => None,
    };
    Ok(vec![tensor(c.element(0), image.map(|image| [&[batch, channels][..], &image].concat()))])
}
