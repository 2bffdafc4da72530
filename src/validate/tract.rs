//! Runs models in tract, in the way that runs most of them: node by node on the inference model, each with the shapes
//! that its inputs have at that moment.

use super::engine::{Engine, Precision, Run};
use super::{kernels, normalize};
use crate::onnx::{ElementType, ModelProto, TensorProto, TypeProto};
use anyhow::{Result, anyhow, bail, ensure};
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::SimplePlan;
use tract_onnx::tract_hir::internal::InferenceOp;

pub use tract_onnx::prelude::Tensor;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Arc<Tensor>>;

/// Why a model does not run.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// tract has no such operator, or is known to compute another function for it.
    Unsupported(Vec<String>),
    /// tract says why.
    Failed(String),
    /// tract crashed.
    Panicked(String),
    /// Another engine says why, its name in front.
    Elsewhere {
        /// What it says.
        message: String,
        /// Whether it lacks what the model needs, rather than that the model is wrong.
        unsupported: bool,
    },
}

impl Trouble {
    /// Whether the engine lacks what the model needs.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Trouble::Unsupported(_) | Trouble::Elsewhere { unsupported: true, .. })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Unsupported(operators) => write!(f, "tract has no {}", operators.join(", ")),
            Trouble::Failed(message) => write!(f, "tract: {message}"),
            Trouble::Panicked(message) => write!(f, "tract crashed: {message}"),
            Trouble::Elsewhere { message, .. } => f.write_str(message),
        }
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(e: anyhow::Error) -> Self {
        Trouble::Failed(one_line(&format!("{e:#}")))
    }
}

/// tract repeats itself in its messages, with dumps of nodes; the first words and the innermost cause say it.
pub(super) fn one_line(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let count = message.chars().count();
    if count <= 300 {
        return message;
    }
    let head: String = message.chars().take(140).collect();
    let tail: String = message.chars().skip(count - 140).collect();
    format!("{head} ... {tail}")
}

type Runnable = Arc<SimplePlan<InferenceFact, Box<dyn InferenceOp>>>;

/// A model with the shapes of its inputs fixed, ready to run many times.
pub struct Plan {
    plan: Runnable,
    /// The same without the analyser, which in some models contradicts what the nodes then compute.
    unanalysed: Option<Runnable>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

/// tract itself.
pub struct Tract;

impl Engine for Tract {
    fn prepare(&self, model: &ModelProto, feeds: &Tensors, precision: Precision) -> Result<Box<dyn Run>, Trouble> {
        Ok(Box::new(Plan::new(model, feeds, precision)?))
    }
}

impl Run for Plan {
    fn run(&self, feeds: &Tensors) -> Result<Tensors, Trouble> {
        Plan::run(self, feeds)
    }
}

impl Plan {
    /// Prepares a model for inputs of the shapes and types of `feeds`, which may hold more tensors than the model takes.
    pub fn new(model: &ModelProto, feeds: &Tensors, precision: Precision) -> Result<Plan, Trouble> {
        let copy = normalize::normalize(model)?;
        let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
        kernels::register(&mut onnx.op_register, precision == Precision::Double);
        let missing = normalize::unsupported(&copy, &|op| onnx.op_register.0.contains_key(op));
        if !missing.is_empty() {
            return Err(Trouble::Unsupported(missing));
        }
        let graph = copy.graph.as_ref().ok_or_else(|| Trouble::Failed("the model has no graph".to_owned()))?;
        let inputs: Vec<String> = graph.input.iter().map(|i| i.name().to_owned()).collect();
        let outputs: Vec<String> = (model.graph.iter().flat_map(|g| &g.output)).map(|o| o.name().to_owned()).collect();
        let (plan, unanalysed) = guarded(|| {
            let proto = tract_onnx::pb::ModelProto::decode(bytes::Bytes::from(copy.encode_to_vec()))?;
            let parsed = onnx.parse(&proto, None).map_err(shown)?;
            ensure!(
                parsed.unresolved_inputs.is_empty(),
                "nothing computes {}",
                parsed.unresolved_inputs.iter().map(|i| format!("'{i}'")).collect::<Vec<_>>().join(", ")
            );
            let mut model = parsed.model;
            let missing: Vec<String> = (model.nodes().iter().map(|n| n.op().name()))
                .filter(|op| op.starts_with("Unimplemented"))
                .map(|op| op.into_owned())
                .collect();
            ensure!(missing.is_empty(), "tract has no {}", missing.join(", "));
            for (i, name) in inputs.iter().enumerate() {
                let tensor = feeds.get(name).ok_or_else(|| anyhow!("input '{name}' has no value"))?;
                model.set_input_fact(i, InferenceFact::dt_shape(tensor.datum_type(), tensor.shape())).map_err(shown)?;
            }
            let unanalysed = SimplePlan::new(model.clone()).ok();
            let analysed = catch_unwind(AssertUnwindSafe(|| {
                // Its error is not the model's: nodes that need no more than concrete inputs run all the same.
                let _ = model.analyse(true);
                model
            }));
            let plan = match analysed {
                Ok(model) => SimplePlan::new(model).map_err(shown).ok(),
                Err(_) => None,
            };
            Ok((plan, unanalysed))
        })?;
        match (plan, unanalysed) {
            (Some(plan), unanalysed) => Ok(Plan { plan, unanalysed, inputs, outputs }),
            (None, Some(plan)) => Ok(Plan { plan, unanalysed: None, inputs, outputs }),
            (None, None) => Err(Trouble::Failed("the graph has no order to run in".to_owned())),
        }
    }

    /// Runs the model once. The outputs are those of the graph, by name.
    pub fn run(&self, feeds: &Tensors) -> Result<Tensors, Trouble> {
        match (self.run_plan(&self.plan, feeds), &self.unanalysed) {
            (Err(trouble), Some(plan)) => self.run_plan(plan, feeds).map_err(|_| trouble),
            (result, _) => result,
        }
    }

    fn run_plan(&self, plan: &Runnable, feeds: &Tensors) -> Result<Tensors, Trouble> {
        guarded(|| {
            let inputs = self.inputs.iter().map(|name| {
                feeds.get(name).map(|t| t.clone().into_tvalue()).ok_or_else(|| anyhow!("input '{name}' has no value"))
            });
            let values = plan.run(inputs.collect::<Result<TVec<_>>>()?).map_err(shown)?;
            let tensors = self.outputs.iter().zip(values).map(|(name, value)| {
                let tensor = value.into_arc_tensor();
                // Sizes come out as symbolic dimensions.
                let tensor = match tensor.datum_type() {
                    DatumType::TDim => Arc::new(tensor.cast_to_dt(DatumType::I64).map_err(shown)?.into_owned()),
                    _ => tensor,
                };
                Ok((name.clone(), tensor))
            });
            tensors.collect()
        })
    }
}

fn shown(e: impl fmt::Debug + fmt::Display) -> anyhow::Error {
    anyhow!("{e:#}")
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `f`; a panic in it prints nothing and is an error.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T, Trouble> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match QUIET.get() {
            true => MESSAGE.with_borrow_mut(|m| *m = info.to_string()),
            false => before(info),
        }));
    });
    let outer = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(outer);
    match result {
        Ok(result) => Ok(result?),
        Err(_) => Err(Trouble::Panicked(one_line(&MESSAGE.take()))),
    }
}

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

/// Whether the elements are numbers that carry gradients.
pub fn is_float(tensor: &Tensor) -> bool {
    tensor.datum_type().is_float()
}

/// Whether two tensors have the same type, shape and elements, NaN equal to NaN.
pub fn identical(a: &Tensor, b: &Tensor) -> bool {
    a.datum_type() == b.datum_type() && a.shape() == b.shape() && a.as_bytes() == b.as_bytes()
}

/// The element type of a value that is a tensor.
pub fn element_type(r#type: Option<&TypeProto>) -> Option<ElementType> {
    use crate::onnx::proto::type_proto::Value;
    match r#type?.value.as_ref()? {
        Value::TensorType(t) => Some(ElementType::from_number(t.elem_type())),
        _ => None,
    }
}

/// The names that nodes of the main graph compute.
pub fn computed(model: &ModelProto) -> HashSet<&str> {
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    nodes.flat_map(|n| &n.output).map(String::as_str).filter(|o| !o.is_empty()).collect()
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
