//! What the attributes of convolutions and pools say of their windows.

use crate::onnx::{AttributeProto, attribute};
use anyhow::{Result, bail, ensure};

/// How windows lie, axis by axis.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// The window's sizes, where an attribute says them: else the weights do.
    pub kernel: Option<Vec<i64>>,
    pub strides: Vec<i64>,
    pub dilations: Vec<i64>,
    /// Zeros before the image, where attributes say it. Those of `auto_pad` follow from the sizes.
    pub before: Vec<i64>,
    /// Zeros behind it.
    pub behind: Vec<i64>,
    pub auto_pad: AutoPad,
    /// Whether a last window may hang over the image.
    pub ceil: bool,
    /// What the result of a transposed convolution has behind its last window.
    pub extra: Vec<i64>,
    /// The sizes of the result of a transposed convolution, where they are given; some write batch and channels, too.
    pub output: Option<Vec<i64>>,
}

/// Who says how much padding there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoPad {
    /// The attribute `pads`.
    NotSet,
    /// There is none.
    Valid,
    /// As much as it takes for a window every stride, half of it on either side, an odd zero behind the image.
    SameUpper,
    /// As [`Self::SameUpper`], with an odd zero before the image.
    SameLower,
}

impl AutoPad {
    /// Whether the sizes say how much there is.
    pub fn is_same(self) -> bool {
        matches!(self, AutoPad::SameUpper | AutoPad::SameLower)
    }
}

impl Geometry {
    /// From the attributes of an operator on images of `rank` axes behind batch and channels.
    ///
    /// # Errors
    /// A list has not a number for each axis, or `auto_pad` is not known.
    pub fn read(attributes: &[AttributeProto], rank: usize) -> Result<Self> {
        let list = |name: &str| attribute::get_ints(attributes, name).filter(|v| !v.is_empty()).map(<[i64]>::to_vec);
        let numbers = |name: &str, length: usize, default: i64| {
            let values = list(name).unwrap_or_else(|| vec![default; length]);
            ensure!(values.len() == length, "{name} has {} entries, where {length} are needed", values.len());
            Ok(values)
        };
        let auto_pad = match attribute::get_string(attributes, "auto_pad").unwrap_or("NOTSET") {
            "NOTSET" => AutoPad::NotSet,
            "VALID" => AutoPad::Valid,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            other => bail!("auto_pad = '{other}' is not one of NOTSET, VALID, SAME_UPPER, SAME_LOWER"),
        };
        let mut before = match auto_pad {
            AutoPad::NotSet => numbers("pads", 2 * rank, 0)?,
            _ => vec![0; 2 * rank],
        };
        let behind = before.split_off(rank);
        Ok(Geometry {
            kernel: list("kernel_shape"),
            strides: numbers("strides", rank, 1)?,
            dilations: numbers("dilations", rank, 1)?,
            before,
            behind,
            auto_pad,
            ceil: attribute::get_int(attributes, "ceil_mode").unwrap_or(0) != 0,
            extra: numbers("output_padding", rank, 0)?,
            output: list("output_shape"),
        })
    }

    /// This geometry, if formulas can compute with its numbers.
    ///
    /// # Errors
    /// One is negative, zero where that means nothing, or beyond 31 bits.
    pub fn in_range(self) -> Result<Self> {
        let kernel = self.kernel.as_deref().unwrap_or_default();
        let lists = [
            ("kernel_shape", kernel, 1),
            ("strides", &self.strides, 1),
            ("dilations", &self.dilations, 1),
            ("pads", &self.before, 0),
            ("pads", &self.behind, 0),
            ("output_padding", &self.extra, 0),
        ];
        for (name, values, least) in lists {
            let limit = i64::from(i32::MAX);
            ensure!(values.iter().all(|v| (least..=limit).contains(v)), "{name} = {values:?} is out of range");
        }
        Ok(self)
    }

    /// Whether there is a window in each place.
    pub fn is_dense(&self) -> bool {
        self.strides.iter().all(|&s| s == 1)
    }
}
