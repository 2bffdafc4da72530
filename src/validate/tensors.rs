//! The tensors that engines take and give: an element type, dimensions, and the elements as little-endian bytes.

use crate::onnx::{ElementType, TensorProto};
use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Arc<Tensor>>;

/// A tensor that no engine owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    element: ElementType,
    dims: Vec<usize>,
    bytes: Bytes,
}

impl Tensor {
    /// A tensor of elements that are given as little-endian bytes.
    ///
    /// # Errors
    /// Another number of bytes than the dimensions say; elements of less than a byte.
    pub fn new(element: ElementType, dims: &[usize], bytes: impl Into<Bytes>) -> Result<Tensor> {
        let bytes = bytes.into();
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let size = count.and_then(|n| n.checked_mul(size_of(element)?));
        ensure!(size == Some(bytes.len()), "{} bytes for a {} tensor of {dims:?}", bytes.len(), element.name());
        Ok(Tensor { element, dims: dims.to_vec(), bytes })
    }

    /// A tensor of these numbers, rounded to the element type.
    ///
    /// # Errors
    /// Another number of elements than the dimensions say; element types without numbers of whole bytes.
    pub fn from_values(element: ElementType, dims: &[usize], values: &[f64]) -> Result<Tensor> {
        use ElementType as E;
        macro_rules! bytes {
            ($convert:expr) => {{
                let mut bytes = Vec::with_capacity(values.len() * size_of(element).unwrap_or(0));
                for &v in values {
                    bytes.extend_from_slice(&$convert(v).to_le_bytes());
                }
                bytes
            }};
        }
        let bytes = match element {
            E::Double => bytes!(|v: f64| v),
            E::Float => bytes!(|v: f64| v as f32),
            E::Float16 => bytes!(f16::from_f64),
            E::Bfloat16 => bytes!(bf16::from_f64),
            E::Int64 => bytes!(|v: f64| v as i64),
            E::Int32 => bytes!(|v: f64| v as i32),
            E::Int16 => bytes!(|v: f64| v as i16),
            E::Int8 => bytes!(|v: f64| v as i8),
            E::Uint64 => bytes!(|v: f64| v as u64),
            E::Uint32 => bytes!(|v: f64| v as u32),
            E::Uint16 => bytes!(|v: f64| v as u16),
            E::Uint8 => bytes!(|v: f64| v as u8),
            E::Bool => bytes!(|v: f64| u8::from(v != 0.0)),
            other => bail!("no engine has {} tensors", other.name()),
        };
        Tensor::new(element, dims, bytes)
    }

    /// The element type.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The elements as little-endian bytes, in row-major order.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The number of elements.
    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// The elements as float64, whatever the element type.
    pub fn values(&self) -> Vec<f64> {
        use ElementType as E;
        macro_rules! read {
            ($t:ty, $convert:expr) => {
                elements(&self.bytes, <$t>::from_le_bytes).map($convert).collect()
            };
        }
        match self.element {
            E::Double => read!(f64, |v| v),
            E::Float => read!(f32, f64::from),
            E::Float16 => read!(f16, f64::from),
            E::Bfloat16 => read!(bf16, f64::from),
            E::Int64 => read!(i64, |v| v as f64),
            E::Int32 => read!(i32, f64::from),
            E::Int16 => read!(i16, f64::from),
            E::Int8 => read!(i8, f64::from),
            E::Uint64 => read!(u64, |v| v as f64),
            E::Uint32 => read!(u32, f64::from),
            E::Uint16 => read!(u16, f64::from),
            // Types of one byte; `new` lets no other in.
            _ => self.bytes.iter().map(|&v| v.into()).collect(),
        }
    }

    /// Whether the elements are numbers that carry gradients.
    pub fn is_float(&self) -> bool {
        self.element.is_float()
    }

    /// Whether every element is a finite number.
    pub fn is_finite(&self) -> bool {
        !self.is_float() || self.values().iter().all(|v| v.is_finite())
    }

    /// These numbers in another element type.
    ///
    /// # Errors
    /// As [`Tensor::from_values`].
    pub fn cast(&self, element: ElementType) -> Result<Tensor> {
        match element == self.element {
            true => Ok(self.clone()),
            false => Tensor::from_values(element, &self.dims, &self.values()),
        }
    }

    /// This tensor as protobuf has it.
    pub fn to_proto(&self) -> TensorProto {
        let dims: Vec<i64> = self.dims.iter().map(|&d| d as i64).collect();
        TensorProto::from_raw(self.element, &dims, self.bytes.to_vec())
    }
}

/// The elements of little-endian bytes.
pub(super) fn elements<const N: usize, T>(
    bytes: &[u8],
    read: impl Fn([u8; N]) -> T,
) -> impl ExactSizeIterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |&bytes| read(bytes))
}

/// The bytes of an element; `None` where it is no number, or has no whole bytes.
fn size_of(element: ElementType) -> Option<usize> {
    let plain = element.is_float() || element.is_integer() || element == ElementType::Bool;
    element.bits().filter(|bits| plain && bits.is_multiple_of(8)).map(|bits| bits / 8)
}

/// The tensor of a protobuf.
///
/// # Errors
/// Element types that no engine has; elements in another file; elements that do not fit the dimensions.
pub fn tensor(proto: &TensorProto) -> Result<Tensor> {
    let dims: Vec<usize> = proto.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>()?;
    let element = proto.element_type();
    if let (Some(raw), false) = (&proto.raw_data, proto.is_external())
        && size_of(element).is_some()
    {
        return Tensor::new(element, &dims, raw.clone());
    }
    match element.is_float() {
        true => Tensor::from_values(element, &dims, &proto.floats()?),
        false => {
            let integers = proto.integers()?;
            let proto = TensorProto::from_ints(element, &proto.dims, &integers)?;
            Tensor::new(element, &dims, proto.raw_data.unwrap_or_default())
        }
    }
}

/// A float64 tensor.
///
/// # Errors
/// Another number of elements than the dimensions say.
pub fn double(dims: &[usize], values: &[f64]) -> Result<Tensor> {
    Tensor::from_values(ElementType::Double, dims, values)
}
