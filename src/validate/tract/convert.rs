//! Tensors, element types and errors in tract's terms and in ours.

use crate::error;
use crate::onnx::ElementType;
use crate::validate::tensors::{self, elements};
use anyhow::{Result, anyhow, bail};
use std::sync::Arc;
use tract_onnx::prelude::*;

/// Calls a macro with each element type that tract computes with, as ONNX, as tract and as Rust name it.
macro_rules! element_types {
    ($apply:ident) => {
        $apply! {
            Double: F64: f64, Float: F32: f32, Float16: F16: half::f16, Int64: I64: i64, Int32: I32: i32, Int16: I16: i16,
            Int8: I8: i8, Uint64: U64: u64, Uint32: U32: u32, Uint16: U16: u16, Uint8: U8: u8
        }
    };
}

/// The element type in tract's terms.
pub fn datum_type(element: ElementType) -> Result<DatumType> {
    macro_rules! datum {
        ($($name:ident: $datum:ident: $t:ty),*) => {
            match element {
                $(ElementType::$name => Ok(DatumType::$datum),)*
                ElementType::Bool => Ok(DatumType::Bool),
                other => bail!("tract has no {} tensors", other.name()),
            }
        };
    }
    element_types!(datum)
}

/// The element type in ONNX's terms; `None` for what only tract has.
pub fn element_type(datum: DatumType) -> Option<ElementType> {
    macro_rules! element {
        ($($name:ident: $datum:ident: $t:ty),*) => {
            match datum {
                $(DatumType::$datum => Some(ElementType::$name),)*
                DatumType::Bool => Some(ElementType::Bool),
                DatumType::TDim => Some(ElementType::Int64),
                _ => None,
            }
        };
    }
    element_types!(element)
}

pub fn to_tract(tensor: &tensors::Tensor) -> Result<Tensor> {
    macro_rules! convert {
        ($($name:ident: $datum:ident: $t:ty),*) => {
            match tensor.element() {
                $(ElementType::$name => {
                    let elements: Vec<$t> = collected(elements(tensor.bytes(), <$t>::from_le_bytes))?;
                    Tensor::from_shape(tensor.dims(), &elements)
                })*
                ElementType::Bool => {
                    Tensor::from_shape(tensor.dims(), &tensor.bytes().iter().map(|&b| b != 0).collect::<Vec<bool>>())
                }
                other => bail!("tract has no {} tensors", other.name()),
            }
        };
    }
    element_types!(convert).map_err(shown)
}

pub fn from_tract(tensor: Arc<Tensor>) -> Result<tensors::Tensor> {
    let tensor = sized(tensor)?;
    let Some(element) = element_type(tensor.datum_type()) else {
        bail!("tensors of type {:?} are not handed out", tensor.datum_type())
    };
    tensors::Tensor::new(element, tensor.shape(), collected(tensor.as_bytes().iter().copied())?)
}

/// Sizes, which may come as symbolic dimensions, as the integers that they are; any other tensor as it is.
pub fn sized(tensor: Arc<Tensor>) -> Result<Arc<Tensor>> {
    match tensor.datum_type() {
        DatumType::TDim => Ok(Arc::new(tensor.cast_to_dt(DatumType::I64).map_err(shown)?.into_owned())),
        _ => Ok(tensor),
    }
}

/// The elements as float64, whatever the element type.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let wide = tensor.cast_to_dt(DatumType::F64).map_err(shown)?;
    collected(wide.try_as_plain_ram().map_err(shown)?.as_slice::<f64>().map_err(shown)?.iter().copied())
}

/// The elements of a tensor, for which there may be no room.
fn collected<T>(elements: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>> {
    let mut own = Vec::new();
    error::reserve(&mut own, elements.len())?;
    own.extend(elements);
    Ok(own)
}

/// An error of tract's as one of ours.
pub fn shown(e: impl std::fmt::Debug + std::fmt::Display) -> anyhow::Error {
    anyhow!("{e:#}")
}
