//! Runs models in an ONNX Runtime that is installed, for those that tract has no operators for.
//!
//! Its graph optimizations are off: a model with gradients and the same model without are to compute the same numbers.
//! Many of its kernels are missing in float64; a float64 model that it refuses runs in float32 instead.

use super::engine::{Engine, Precision, Run, Trouble, one_line};
use super::tensors::{Tensor, Tensors, elements};
use crate::onnx::proto::type_proto;
use crate::onnx::{ElementType, GraphProto, ModelProto, TensorProto, TypeProto};
use anyhow::{Context, Result, bail};
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Outlet, Tensor as OrtTensor, TensorElementType, ValueType};
use prost::Message;
use std::cell::RefCell;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The library, loaded into this process.
pub struct OnnxRuntime;

impl OnnxRuntime {
    /// Loads the library at the path, or else the one that `ORT_DYLIB_PATH` names, or else the one that the system
    /// finds.
    pub fn load(path: Option<&Path>) -> Result<Self, Trouble> {
        let named = path.map(Path::to_owned).or_else(|| std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from));
        let path = named.unwrap_or_else(|| format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}").into());
        // A relative path counts from where we are; a mere name is looked for by the system.
        let path = if path.exists() { path.canonicalize().unwrap_or(path) } else { path };
        let environment = ort::init_from(&path).map_err(|e| {
            elsewhere(format!("{e}; give the path of its shared library by --engine-library or ORT_DYLIB_PATH"), true)
        })?;
        environment.with_name("onnx-gradients").with_telemetry(false).commit();
        Ok(OnnxRuntime)
    }
}

fn elsewhere(message: impl std::fmt::Display, unsupported: bool) -> Trouble {
    Trouble::Elsewhere { message: format!("ONNX Runtime: {}", one_line(&message.to_string())), unsupported }
}

fn trouble<T>(error: ort::Error<T>) -> Trouble {
    let unsupported = error.code() == ort::ErrorCode::NotImplemented;
    elsewhere(error, unsupported)
}

fn failed(error: anyhow::Error) -> Trouble {
    elsewhere(format!("{error:#}"), false)
}

impl Engine for OnnxRuntime {
    fn prepare(&self, model: &ModelProto, _: &Tensors, precision: Precision) -> Result<Box<dyn Run>, Trouble> {
        let double = session(model);
        let (session, single) = match (double, precision) {
            (Err(_), Precision::Double) => {
                let mut model = model.clone();
                model.graph.as_mut().map_or(Ok(()), to_single).map_err(failed)?;
                (session(&model)?, true)
            }
            (session, _) => (session?, false),
        };
        Ok(Box::new(Prepared { session: RefCell::new(session), single }))
    }
}

fn session(model: &ModelProto) -> Result<Session, Trouble> {
    let builder = Session::builder().map_err(trouble)?.with_optimization_level(GraphOptimizationLevel::Disable);
    let builder = builder.map_err(trouble)?.with_intra_threads(1).map_err(trouble)?;
    let mut builder = builder.with_log_level(LogLevel::Fatal).map_err(trouble)?;
    builder.commit_from_memory(&model.encode_to_vec()).map_err(trouble)
}

struct Prepared {
    session: RefCell<Session>,
    single: bool,
}

impl Run for Prepared {
    fn run(&self, feeds: &Tensors) -> Result<Tensors, Trouble> {
        let mut session = self.session.borrow_mut();
        let value = |input: &Outlet| {
            let name = input.name();
            let tensor = feeds.get(name).with_context(|| format!("input '{name}' has no value"))?;
            let value = to_value(tensor, input.dtype()).with_context(|| format!("input '{name}'"))?;
            Ok(SessionInputValue::from(value))
        };
        // They outlive the outputs: an output that is an input, too, has the same memory.
        let inputs: Vec<_> = session.inputs().iter().map(value).collect::<Result<_>>().map_err(failed)?;
        let outputs = session.run(inputs.as_slice()).map_err(trouble)?;
        let tensor = |name: &str, value: &DynValue| {
            let tensor = from_value(value).with_context(|| format!("output '{name}'"))?;
            let single = self.single && tensor.element() == ElementType::Float;
            let tensor = if single { tensor.cast(ElementType::Double)? } else { tensor };
            Ok((name.to_owned(), Arc::new(tensor)))
        };
        outputs.iter().map(|(name, value)| tensor(name, &value)).collect::<Result<_>>().map_err(failed)
    }

    fn is_single(&self) -> bool {
        self.single
    }
}

/// Calls a macro with each element type as ONNX Runtime, as ONNX and as Rust name it.
macro_rules! element_types {
    ($apply:ident) => {
        $apply! {
            Float32: Float: f32, Float64: Double: f64, Float16: Float16: half::f16, Int64: Int64: i64, Int32: Int32: i32,
            Int16: Int16: i16, Int8: Int8: i8, Uint64: Uint64: u64, Uint32: Uint32: u32, Uint16: Uint16: u16,
            Uint8: Uint8: u8
        }
    };
}

fn to_value(tensor: &Tensor, r#type: &ValueType) -> Result<DynValue> {
    let element = r#type.tensor_type().context("it is no tensor")?;
    let dims = tensor.dims().to_vec();
    macro_rules! convert {
        ($($name:ident: $onnx:ident: $t:ty),*) => {
            match element {
                $(TensorElementType::$name => {
                    let cast = tensor.cast(ElementType::$onnx)?;
                    let elements: Vec<$t> = elements(cast.bytes(), <$t>::from_le_bytes).collect();
                    Ok(OrtTensor::from_array((dims, elements))?.into_dyn())
                })*
                TensorElementType::Bool => {
                    let elements: Vec<bool> = tensor.values().iter().map(|&v| v != 0.0).collect();
                    Ok(OrtTensor::from_array((dims, elements))?.into_dyn())
                }
                other => bail!("tensors of {other} are not handed over"),
            }
        };
    }
    element_types!(convert)
}

fn from_value(value: &DynValue) -> Result<Tensor> {
    let element = value.dtype().tensor_type().context("it is no tensor")?;
    let dims = |shape: &[i64]| shape.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    macro_rules! convert {
        ($($name:ident: $onnx:ident: $t:ty),*) => {
            match element {
                $(TensorElementType::$name => {
                    let (shape, elements) = value.try_extract_tensor::<$t>()?;
                    let bytes: Vec<u8> = elements.iter().flat_map(|v| v.to_le_bytes()).collect();
                    Tensor::new(ElementType::$onnx, &dims(shape)?, bytes)
                })*
                TensorElementType::Bool => {
                    let (shape, elements) = value.try_extract_tensor::<bool>()?;
                    let bytes: Vec<u8> = elements.iter().map(|&v| v.into()).collect();
                    Tensor::new(ElementType::Bool, &dims(shape)?, bytes)
                }
                other => bail!("tensors of {other} are not handed over"),
            }
        };
    }
    element_types!(convert)
}

/// Rewrites a model from float64 to float32, in place.
fn to_single(graph: &mut GraphProto) -> Result<()> {
    let sparse = graph.sparse_initializer.iter_mut().filter_map(|s| s.values.as_mut());
    graph.initializer.iter_mut().chain(sparse).try_for_each(narrow)?;
    let values = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
    values.filter_map(|v| v.r#type.as_mut()).for_each(retype);
    for node in &mut graph.node {
        node.bodies_mut().try_for_each(to_single)?;
        for attribute in &mut node.attribute {
            attribute.t.as_deref_mut().into_iter().try_for_each(narrow)?;
            attribute.sparse_tensor.iter_mut().filter_map(|s| s.values.as_mut()).try_for_each(narrow)?;
            let names_type = matches!(attribute.name(), "to" | "dtype" | "output_datatype" | "stash_type");
            if names_type && attribute.i == Some(ElementType::Double as i64) {
                attribute.i = Some(ElementType::Float as i64);
            }
        }
    }
    Ok(())
}

fn narrow(tensor: &mut TensorProto) -> Result<()> {
    if tensor.element_type() == ElementType::Double {
        let narrow = TensorProto::from_floats(ElementType::Float, &tensor.dims, &tensor.floats()?)?;
        *tensor = TensorProto { name: tensor.name.take(), ..narrow };
    }
    Ok(())
}

fn retype(r#type: &mut TypeProto) {
    match &mut r#type.value {
        Some(type_proto::Value::TensorType(t)) if t.elem_type() == ElementType::Double as i32 => {
            t.elem_type = Some(ElementType::Float as i32);
        }
        Some(type_proto::Value::SequenceType(s)) => s.elem_type.as_deref_mut().into_iter().for_each(retype),
        Some(type_proto::Value::OptionalType(o)) => o.elem_type.as_deref_mut().into_iter().for_each(retype),
        _ => (),
    }
}
