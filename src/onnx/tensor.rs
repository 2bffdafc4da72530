//! Elements of tensors in protobuf, of any type, in any of the fields that may hold them.

use super::proto::tensor_proto::DataLocation;
use super::{ElementType, TensorProto};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use half::{bf16, f16};

impl TensorProto {
    /// The element type.
    pub fn element_type(&self) -> ElementType {
        ElementType::from_number(self.data_type())
    }

    /// The number of elements; `None` where a dimension is negative or the product overflows.
    pub fn element_count(&self) -> Option<usize> {
        self.dims.iter().try_fold(1usize, |n, &d| usize::try_from(d).ok().and_then(|d| n.checked_mul(d)))
    }

    /// The bytes that the elements take, the last one filled up.
    ///
    /// # Errors
    /// Dimensions that no tensor can have, elements that are no numbers.
    pub fn byte_size(&self) -> Result<usize> {
        let size = || self.element_count()?.checked_mul(self.element_type().bits()?).map(|bits| bits.div_ceil(8));
        size().with_context(|| {
            format!("no {} tensor can have the dimensions {:?}", self.element_type().name(), self.dims)
        })
    }

    /// Whether the elements lie in a file beside the model.
    pub fn is_external(&self) -> bool {
        self.data_location() == DataLocation::External
    }

    /// A tensor of floating-point elements, rounded to `element`.
    ///
    /// # Errors
    /// `element` is not a floating-point type of 16 bits or more.
    pub fn from_floats(element: ElementType, dims: &[i64], values: &[f64]) -> Result<Self> {
        let raw: Vec<u8> = match element {
            ElementType::Double => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ElementType::Float => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
            ElementType::Float16 => values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect(),
            ElementType::Bfloat16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect(),
            other => bail!("floating-point numbers cannot be written as a tensor of type {}", other.name()),
        };
        Ok(Self::from_raw(element, dims, raw))
    }

    /// A tensor of integer or boolean elements.
    ///
    /// # Errors
    /// `element` is not a boolean type, nor an integer type of 4 bits or more.
    pub fn from_ints(element: ElementType, dims: &[i64], values: &[i64]) -> Result<Self> {
        if matches!(element, ElementType::Int4 | ElementType::Uint4) {
            let nibble = |v: Option<&i64>| v.map_or(0, |v| *v as u8 & 15);
            let pack = |pair: &[i64]| nibble(pair.first()) | nibble(pair.get(1)) << 4;
            return Ok(Self::from_raw(element, dims, values.chunks(2).map(pack).collect()));
        }
        let bytes = match element {
            ElementType::Int64 | ElementType::Uint64 => 8,
            ElementType::Int32 | ElementType::Uint32 => 4,
            ElementType::Int16 | ElementType::Uint16 => 2,
            ElementType::Int8 | ElementType::Uint8 | ElementType::Bool => 1,
            other => bail!("integers cannot be written as a tensor of type {}", other.name()),
        };
        let raw = values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(bytes)).collect();
        Ok(Self::from_raw(element, dims, raw))
    }

    /// A tensor of numbers of any real floating-point, integer or boolean type of whole bytes.
    ///
    /// # Errors
    /// Another element type.
    pub fn from_numbers(element: ElementType, dims: &[i64], values: &[f64]) -> Result<Self> {
        if element.is_float() {
            return Self::from_floats(element, dims, values);
        }
        Self::from_ints(element, dims, &values.iter().map(|&v| v as i64).collect::<Vec<_>>())
    }

    /// A tensor of int64: sizes, axes, indices.
    pub fn from_int64(dims: &[i64], values: &[i64]) -> Self {
        Self::from_raw(ElementType::Int64, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A tensor of float32.
    pub fn from_float32(dims: &[i64], values: &[f32]) -> Self {
        Self::from_raw(ElementType::Float, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A tensor of elements that are given as little-endian bytes.
    pub fn from_raw(element: ElementType, dims: &[i64], raw: Vec<u8>) -> Self {
        Self {
            dims: dims.to_vec(),
            data_type: Some(element as i32),
            raw_data: Some(Bytes::from(raw)),
            ..Default::default()
        }
    }

    /// The elements of an integer or boolean tensor.
    ///
    /// # Errors
    /// Another element type, external data, or fewer or more elements than the dimensions say.
    pub fn integers(&self) -> Result<Vec<i64>> {
        use ElementType as E;
        let element = self.element_type();
        // Two numbers lie in a byte, the first one in its lower half.
        let nibbles = |bytes: &mut dyn Iterator<Item = u8>| -> Vec<i64> {
            let sign = |n: u8| if element == E::Int4 && n > 7 { i64::from(n) - 16 } else { n.into() };
            let mut values: Vec<i64> = bytes.flat_map(|b| [sign(b & 15), sign(b >> 4)]).collect();
            if self.element_count().is_some_and(|n| n + 1 == values.len()) {
                values.pop();
            }
            values
        };
        let values: Vec<i64> = match (self.raw(), element) {
            (Some(raw), E::Int4 | E::Uint4) => nibbles(&mut raw.iter().copied()),
            (None, E::Int4 | E::Uint4) => nibbles(&mut self.int32_data.iter().map(|&v| v as u8)),
            (Some(raw), E::Int64) => chunks(raw, i64::from_le_bytes),
            (Some(raw), E::Uint64) => chunks(raw, |b| u64::from_le_bytes(b) as i64),
            (Some(raw), E::Int32) => chunks(raw, |b| i32::from_le_bytes(b).into()),
            (Some(raw), E::Uint32) => chunks(raw, |b| u32::from_le_bytes(b).into()),
            (Some(raw), E::Int16) => chunks(raw, |b| i16::from_le_bytes(b).into()),
            (Some(raw), E::Uint16) => chunks(raw, |b| u16::from_le_bytes(b).into()),
            (Some(raw), E::Int8) => chunks(raw, |b| i8::from_le_bytes(b).into()),
            (Some(raw), E::Uint8 | E::Bool) => chunks(raw, |[b]| b.into()),
            (None, E::Int64) => self.int64_data.clone(),
            (None, E::Uint64 | E::Uint32) => self.uint64_data.iter().map(|&v| v as i64).collect(),
            (None, E::Int32 | E::Int16 | E::Uint16 | E::Int8 | E::Uint8 | E::Bool) => {
                self.int32_data.iter().map(|&v| v.into()).collect()
            }
            (_, other) => bail!("the elements of a {} tensor cannot be read as integers", other.name()),
        };
        self.counted(values)
    }

    /// The elements of a floating-point tensor.
    ///
    /// # Errors
    /// Another element type, external data, or fewer or more elements than the dimensions say.
    pub fn floats(&self) -> Result<Vec<f64>> {
        use ElementType as E;
        let values: Vec<f64> = match (self.raw(), self.element_type()) {
            (Some(raw), E::Double) => chunks(raw, f64::from_le_bytes),
            (Some(raw), E::Float) => chunks(raw, |b| f32::from_le_bytes(b).into()),
            (Some(raw), E::Float16) => chunks(raw, |b| f16::from_le_bytes(b).into()),
            (Some(raw), E::Bfloat16) => chunks(raw, |b| bf16::from_le_bytes(b).into()),
            (None, E::Double) => self.double_data.clone(),
            (None, E::Float) => self.float_data.iter().map(|&v| v.into()).collect(),
            (None, E::Float16) => self.int32_data.iter().map(|&v| f16::from_bits(v as u16).into()).collect(),
            (None, E::Bfloat16) => self.int32_data.iter().map(|&v| bf16::from_bits(v as u16).into()).collect(),
            (_, other) => bail!("the elements of a {} tensor cannot be read as numbers", other.name()),
        };
        self.counted(values)
    }

    fn raw(&self) -> Option<&[u8]> {
        self.raw_data.as_deref()
    }

    fn counted<T>(&self, values: Vec<T>) -> Result<Vec<T>> {
        ensure!(!self.is_external(), "tensor '{}' has its elements in another file", self.name());
        ensure!(
            Some(values.len()) == self.element_count(),
            "tensor '{}' has {} elements for dimensions {:?}",
            self.name(),
            values.len(),
            self.dims
        );
        Ok(values)
    }
}

fn chunks<const N: usize, T>(raw: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    raw.as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect()
}
