//! Operators on images: convolutions, pools, and changes of size.

use super::context::{Context, Parameter, Row, tensor};
use super::shape::{agree, with_axis};
use crate::graph::{Dim, Dims, Fact};
use crate::onnx::{ElementType, attribute};
use anyhow::{Result, ensure};

pub const ROWS: &[Row] = &[
    ("AffineGrid", affine_grid),
    ("AveragePool", pool),
    ("Col2Im", col2im),
    ("Conv", |c| convolution(c, 0, 1, c.element(0).or(c.element(1)))),
    ("ConvInteger", |c| convolution(c, 0, 1, Some(ElementType::Int32))),
    ("ConvTranspose", transposed),
    ("DeformConv", |c| convolution(c, 0, 1, c.element(0).or(c.element(1)))),
    ("GlobalAveragePool", global),
    ("GlobalLpPool", global),
    ("GlobalMaxPool", global),
    ("GridSample", grid_sample),
    ("LpPool", pool),
    ("MaxPool", pool),
    ("MaxRoiPool", max_roi_pool),
    ("MaxUnpool", max_unpool),
    ("NonMaxSuppression", |c| Ok(vec![tensor(Some(ElementType::Int64), Some(vec![c.dims().fresh(), Dim::Known(3)]))])),
    ("QLinearConv", |c| convolution(c, 0, 3, c.element(7))),
    ("Resize", resize),
    ("RoiAlign", roi_align),
    ("Upsample", upsample),
];

/// How windows lie on one axis.
struct Window {
    kernel: Dim,
    stride: i64,
    dilation: i64,
    before: i64,
    after: i64,
}

impl Window {
    fn new(c: &Context, axis: usize, rank: usize, kernel: Dim) -> Self {
        let get = |name: &str, i: usize, default| c.ints(name).and_then(|v| v.get(i).copied()).unwrap_or(default);
        Window {
            kernel,
            stride: get("strides", axis, 1),
            dilation: get("dilations", axis, 1),
            before: get("pads", axis, 0),
            after: get("pads", axis + rank, 0),
        }
    }

    /// How far the window reaches: `(kernel - 1) dilation + 1`.
    fn extent(&self, dims: &Dims) -> Dim {
        dims.add(dims.mul(dims.sub(self.kernel, 1.into()), self.dilation.into()), 1.into())
    }

    /// How many windows fit; a fresh size where runtimes do not agree, or what is known does not tell.
    fn count(&self, c: &Context, size: Dim) -> Dim {
        let dims = c.dims();
        let (ceil, stride) = (c.flag("ceil_mode"), Dim::Known(self.stride));
        let auto_pad = c.string("auto_pad").unwrap_or("NOTSET");
        if self.stride <= 0 {
            return dims.fresh();
        }
        let (before, after) = match auto_pad {
            // Runtimes leave the dilation out of a pool's padding.
            "SAME_UPPER" | "SAME_LOWER" if self.dilation != 1 && c.op.op_type.ends_with("Pool") => return dims.fresh(),
            "SAME_UPPER" | "SAME_LOWER" => return dims.ceil_div(size, stride),
            "VALID" => (0, 0),
            _ => (self.before, self.after),
        };
        let extent = self.extent(dims);
        let start = dims.add(size, before.into());
        let span = dims.sub(dims.add(start, after.into()), extent);
        if span.known().is_some_and(|n| n < 0 && n % self.stride != 0) {
            // By the formula none fits; most runtimes round towards nothing, and compute one.
            return dims.fresh();
        }
        let down = dims.add(dims.floor_div(span, stride), 1.into());
        let up = dims.add(dims.ceil_div(span, stride), 1.into());
        let count = match (ceil, up.known(), start.known(), extent.known()) {
            (false, ..) => down,
            (true, ..) if auto_pad == "VALID" && up != down => return dims.fresh(),
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
fn kernel(c: &Context, weight: Option<usize>) -> Option<Vec<Dim>> {
    match (c.ints("kernel_shape"), weight.and_then(|w| c.shape(w))) {
        (Some(sizes), _) if !sizes.is_empty() => Some(sizes.iter().map(|&n| n.into()).collect()),
        (_, weight) => weight?.get(2..).map(<[Dim]>::to_vec),
    }
}

/// Batch and channels of an image, and its sizes.
fn image<'a>(c: &Context<'a>, i: usize) -> Result<Option<(Dim, Dim, &'a [Dim])>> {
    let Some(shape) = c.shape(i) else { return Ok(None) };
    match shape {
        [batch, channels, sizes @ ..] => Ok(Some((*batch, *channels, sizes))),
        _ => anyhow::bail!("an image needs batch and channels, its shape is {}", c.dims().display(shape)),
    }
}

pub fn convolution(c: &Context, x: usize, w: usize, element: Option<ElementType>) -> Result<Vec<Fact>> {
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

fn windows(c: &Context, sizes: &[Dim], kernel: Option<&[Dim]>) -> Vec<Dim> {
    let count = |(i, &size): (usize, &Dim)| match kernel.and_then(|k| k.get(i)) {
        Some(&kernel) => Window::new(c, i, sizes.len(), kernel).count(c, size),
        None => c.dims().fresh(),
    };
    sizes.iter().enumerate().map(count).collect()
}

/// MaxPool has the indices of the maxima for a second output.
pub fn pool(c: &Context) -> Result<Vec<Fact>> {
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

pub fn global(c: &Context) -> Result<Vec<Fact>> {
    let shape = image(c, 0)?.map(|(batch, channels, sizes)| {
        let mut shape = vec![batch, channels];
        shape.resize(sizes.len() + 2, Dim::Known(1));
        shape
    });
    Ok(vec![tensor(c.element(0), shape)])
}

fn transposed(c: &Context) -> Result<Vec<Fact>> {
    let element = c.element(0).or(c.element(1));
    let dims = c.dims();
    let Some((batch, channels, sizes)) = image(c, 0)? else { return Ok(vec![tensor(element, None)]) };
    let out = match c.shape(1) {
        Some([input, group, ..]) => {
            agree("channels of the image and the weight", channels, *input)?;
            dims.mul(*group, c.int("group", 1).into())
        }
        _ => dims.fresh(),
    };
    let given = c.ints("output_shape").filter(|s| !s.is_empty());
    // Some exporters write batch and channels too.
    let given = given.and_then(|s| s.get(s.len().checked_sub(sizes.len())?..));
    let auto_pad = c.string("auto_pad").unwrap_or("NOTSET");
    let kernel = kernel(c, Some(1));
    let size = |(i, &size): (usize, &Dim)| {
        if let Some(&given) = given.and_then(|s| s.get(i)) {
            return given.into();
        }
        let Some(&kernel) = kernel.as_ref().and_then(|k| k.get(i)) else { return dims.fresh() };
        let window = Window::new(c, i, sizes.len(), kernel);
        let extra = c.ints("output_padding").and_then(|p| p.get(i).copied()).unwrap_or(0);
        let pads = match auto_pad {
            "SAME_UPPER" | "SAME_LOWER" => {
                // Pads only take away: windows with gaps between them do not fill the whole.
                let full = extra == 0 && window.extent(dims).known().is_some_and(|n| n >= window.stride);
                return if full { dims.mul(size, window.stride.into()) } else { dims.fresh() };
            }
            "VALID" => 0,
            _ => window.before.saturating_add(window.after),
        };
        let last = dims.mul(dims.sub(size, 1.into()), window.stride.into());
        let all = dims.add(dims.add(last, window.extent(dims)), extra.into());
        let result = dims.sub(all, pads.into());
        if result.known().is_some_and(|n| n < 0) { dims.fresh() } else { result }
    };
    let mut shape = vec![batch, out];
    shape.extend(sizes.iter().enumerate().map(size));
    Ok(vec![tensor(element, Some(shape))])
}

fn max_unpool(c: &Context) -> Result<Vec<Fact>> {
    let Some((batch, channels, sizes)) = image(c, 0)? else { return Ok(vec![tensor(c.element(0), None)]) };
    let shape = match c.sizes(2, "output_shape") {
        Parameter::Known(shape) if shape.len() == sizes.len() + 2 => shape,
        Parameter::Absent => {
            let dims = c.dims();
            let kernel = kernel(c, None);
            let size = |(i, &size): (usize, &Dim)| match kernel.as_ref().and_then(|k| k.get(i)) {
                Some(&kernel) => {
                    let window = Window::new(c, i, sizes.len(), kernel);
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
fn col2im(c: &Context) -> Result<Vec<Fact>> {
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

fn grid_sample(c: &Context) -> Result<Vec<Fact>> {
    let shape = match (image(c, 0)?, c.shape(1)) {
        (Some((batch, channels, _)), Some([_, sizes @ .., _])) => Some([&[batch, channels], sizes].concat()),
        (Some((batch, channels, sizes)), _) => Some([&[batch, channels][..], &c.fresh(sizes.len())].concat()),
        (None, Some(grid)) => Some(c.fresh(grid.len())),
        (None, None) => None,
    };
    Ok(vec![tensor(c.element(0), shape)])
}

/// The size is that of the image to be sampled: `[N, C, H, W]` or `[N, C, D, H, W]`.
fn affine_grid(c: &Context) -> Result<Vec<Fact>> {
    let sizes = match c.sizes(1, "size") {
        Parameter::Known(sizes) => Some(sizes),
        Parameter::Unknown(rank) => rank.map(|rank| c.fresh(rank)),
        Parameter::Absent => None,
    };
    let shape = sizes.as_deref().and_then(|sizes| match sizes {
        [batch, _, sizes @ ..] => Some([&[*batch], sizes, &[Dim::Known(sizes.len() as i64)]].concat()),
        _ => None,
    });
    Ok(vec![tensor(c.element(0), shape)])
}

fn roi_align(c: &Context) -> Result<Vec<Fact>> {
    let pooled = [c.int("output_height", 1), c.int("output_width", 1)];
    Ok(vec![tensor(c.element(0), Some(pooled_rois(c, &pooled)))])
}

fn max_roi_pool(c: &Context) -> Result<Vec<Fact>> {
    Ok(vec![tensor(c.element(0), c.ints("pooled_shape").map(|pooled| pooled_rois(c, pooled)))])
}

fn pooled_rois(c: &Context, pooled: &[i64]) -> Vec<Dim> {
    let of = |i: usize, axis: usize| c.shape(i).and_then(|s| s.get(axis).copied()).unwrap_or_else(|| c.dims().fresh());
    [of(1, 0), of(0, 1)].into_iter().chain(pooled.iter().map(|&n| n.into())).collect()
}

/// `⌊size · scale⌋`
fn scaled(dims: &Dims, size: Dim, scale: f64) -> Dim {
    match size {
        Dim::Known(size) => {
            // Runtimes multiply in 32 bits or in 64.
            let (narrow, wide) = ((size as f32 * scale as f32).floor() as i64, (size as f64 * scale).floor() as i64);
            if narrow == wide && wide >= 0 { Dim::Known(wide) } else { dims.fresh() }
        }
        Dim::Symbol(_) => {
            let denominator = (0..=10).map(|bits| 1i64 << bits).find(|&d| (scale * d as f64).fract() == 0.0);
            match denominator {
                Some(d) if scale > 0.0 && scale < 1e6 => {
                    dims.floor_div(dims.mul(size, ((scale * d as f64) as i64).into()), d.into())
                }
                _ => dims.fresh(),
            }
        }
    }
}

/// The scales are an attribute before opset 9, an input since.
fn upsample(c: &Context) -> Result<Vec<Fact>> {
    let scales = match attribute::find(c.op.attributes, "scales") {
        Some(scales) => Some(scales.floats.iter().map(|&s| s.into()).collect()),
        None => c.input(1).and_then(Fact::floats),
    };
    Ok(vec![tensor(c.element(0), c.shape(0).map(|shape| rescaled(c, shape, None, scales)))])
}

fn rescaled(c: &Context, shape: &[Dim], axes: Option<&[usize]>, scales: Option<Vec<f64>>) -> Vec<Dim> {
    let Some(scales) = scales.filter(|s| s.len() == axes.map_or(shape.len(), <[usize]>::len)) else {
        return c.fresh(shape.len());
    };
    let mut result = shape.to_vec();
    for (i, scale) in scales.into_iter().enumerate() {
        let axis = axes.map_or(Some(i), |axes| axes.get(i).copied());
        if let Some(dim) = axis.and_then(|axis| result.get_mut(axis)) {
            *dim = scaled(c.dims(), *dim, scale);
        }
    }
    result
}

/// Inputs are `X, scales` in opset 10 and `X, roi, scales, sizes` since; an empty list counts as absent.
fn resize(c: &Context) -> Result<Vec<Fact>> {
    let element = c.element(0);
    let Some(shape) = c.shape(0) else { return Ok(vec![tensor(element, None)]) };
    let axes = c.ints("axes").map(|axes| super::context::axes(axes, shape.len())).transpose()?;
    let listed = |i: usize| c.input(i).filter(|f| f.shape.as_deref() != Some(&[Dim::Known(0)]));
    let (scales, sizes) = if c.op.version < 11 { (listed(1), None) } else { (listed(2), listed(3)) };
    let result = match (scales, sizes) {
        (_, Some(sizes)) => resized(c, shape, axes.as_deref(), sizes),
        (Some(_), None) if c.string("coordinate_transformation_mode") == Some("tf_crop_and_resize") => None,
        (Some(scales), None) => Some(rescaled(c, shape, axes.as_deref(), scales.floats())),
        (None, None) => None,
    };
    Ok(vec![tensor(element, Some(result.unwrap_or_else(|| c.fresh(shape.len()))))])
}

fn resized(c: &Context, shape: &[Dim], axes: Option<&[usize]>, sizes: &Fact) -> Option<Vec<Dim>> {
    let sizes = sizes.dims()?;
    let all: Vec<usize> = (0..shape.len()).collect();
    let axes = axes.unwrap_or(&all);
    if axes.len() != sizes.len() {
        return None;
    }
    let policy = c.string("keep_aspect_ratio_policy").unwrap_or("stretch");
    if policy == "stretch" {
        return Some(axes.iter().zip(&sizes).fold(shape.to_vec(), |s, (&axis, &size)| with_axis(&s, axis, size)));
    }
    let from: Vec<i64> = axes.iter().map(|&a| shape.get(a)?.known().filter(|&n| n > 0)).collect::<Option<_>>()?;
    let ratios =
        from.iter().zip(&sizes).map(|(&from, size)| Some((size.known()?, from))).collect::<Option<Vec<_>>>()?;
    let larger = |a: (i64, i64), b: (i64, i64)| i128::from(a.0) * i128::from(b.1) > i128::from(b.0) * i128::from(a.1);
    let smallest = policy == "not_larger";
    let scale = ratios.into_iter().reduce(|a, b| if larger(a, b) == smallest { b } else { a })?;
    let mut result = shape.to_vec();
    for (&axis, &from) in axes.iter().zip(&from) {
        // Halves are rounded up.
        let doubled = i128::from(scale.0) * i128::from(from) * 2 + i128::from(scale.1);
        *result.get_mut(axis)? = Dim::Known(i64::try_from(doubled.div_euclid(i128::from(scale.1) * 2)).ok()?);
    }
    Some(result)
}
