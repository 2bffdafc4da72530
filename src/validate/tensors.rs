//! The tensors that engines take and give: tract's, whichever engine runs.

use crate::onnx::{ElementType, TensorProto};
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use tract_onnx::prelude::DatumType;

pub use tract_onnx::prelude::Tensor;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Arc<Tensor>>;

/// The tensor that tract computes with.
///
/// # Errors
/// Element types that tract has not; elements in another file; elements that do not fit the dimensions.
pub fn tensor(proto: &TensorProto) -> Result<Tensor> {
    let dims: Vec<usize> = proto.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>()?;
    let element = proto.element_type();
    let wide = match element {
        e if e.is_float() => Tensor::from_shape(&dims, &proto.floats()?),
        _ => Tensor::from_shape(&dims, &proto.integers()?),
    };
    let datum = datum_type(element)?;
    Ok(wide.map_err(shown)?.cast_to_dt(datum).map_err(shown)?.into_owned())
}

/// The element type in tract's terms.
pub fn datum_type(element: ElementType) -> Result<DatumType> {
    use ElementType as E;
    Ok(match element {
        E::Bool => DatumType::Bool,
        E::Uint8 => DatumType::U8,
        E::Uint16 => DatumType::U16,
        E::Uint32 => DatumType::U32,
        E::Uint64 => DatumType::U64,
        E::Int8 => DatumType::I8,
        E::Int16 => DatumType::I16,
        E::Int32 => DatumType::I32,
        E::Int64 => DatumType::I64,
        E::Float16 => DatumType::F16,
        E::Float => DatumType::F32,
        E::Double => DatumType::F64,
        other => bail!("tract has no {} tensors", other.name()),
    })
}

/// A float64 tensor.
pub fn double(dims: &[usize], values: &[f64]) -> Result<Tensor> {
    Tensor::from_shape(dims, values).map_err(shown)
}

/// The elements as float64, whatever the element type.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let wide = tensor.cast_to_dt(DatumType::F64).map_err(shown)?;
    Ok(wide.try_as_plain_ram().map_err(shown)?.as_slice::<f64>().map_err(shown)?.to_vec())
}

/// Sizes, which may come as symbolic dimensions, as the integers that they are; any other tensor as it is.
///
/// # Errors
/// A size that is not known.
pub fn sized(tensor: Arc<Tensor>) -> Result<Arc<Tensor>> {
    match tensor.datum_type() {
        DatumType::TDim => Ok(Arc::new(tensor.cast_to_dt(DatumType::I64).map_err(shown)?.into_owned())),
        _ => Ok(tensor),
    }
}

/// Whether the elements are numbers that carry gradients.
pub fn is_float(tensor: &Tensor) -> bool {
    tensor.datum_type().is_float()
}

/// Whether two tensors have the same type, shape and elements, NaN equal to NaN.
pub fn identical(a: &Tensor, b: &Tensor) -> bool {
    a.datum_type() == b.datum_type() && a.shape() == b.shape() && a.as_bytes() == b.as_bytes()
}

/// The tensor, or the float64 one of the same numbers where tract has no such element type.
///
/// # Errors
/// As [`tensor`].
pub fn tensor_or_double(proto: &TensorProto) -> Result<Tensor> {
    match proto.element_type() {
        ElementType::Bfloat16 => double(&proto.dims.iter().map(|&d| d as usize).collect::<Vec<_>>(), &proto.floats()?),
        _ => tensor(proto),
    }
}

/// The same numbers in another element type; bfloat16, which tract has not, is float64.
///
/// # Errors
/// Element types that tract has not.
pub fn cast(tensor: Tensor, element: ElementType) -> Result<Tensor> {
    let datum = match element {
        ElementType::Bfloat16 => DatumType::F64,
        other => datum_type(other)?,
    };
    Ok(tensor.cast_to_dt(datum).map_err(shown)?.into_owned())
}

/// An error of tract's as one of ours.
pub(super) fn shown(e: impl fmt::Debug + fmt::Display) -> anyhow::Error {
    anyhow!("{e:#}")
}
