//! Operators that tract has not, computes wrongly, or has in float32 only: computed here, in float64, by the words of
//! their specification. They are slow and plain on purpose; they share nothing with the formulas of the gradients.

mod array;
mod attention;
mod control;
mod elementwise;
mod linear;
mod losses;
mod movement;
mod normalization;
mod random;
mod recurrent;
mod resampling;

pub use array::{Array, Element, broadcast, each_index};

use super::tensors::{datum_type, double, values};
use crate::onnx::proto::attribute_proto;
use crate::onnx::{ElementType, NodeProto, attribute, canonical_domain};
use anyhow::{Context, Result, ensure};
use prost::Message;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb;
use tract_onnx::tract_hir::internal::*;

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// When the kernel stands in for tract's.
#[derive(Clone, Copy)]
enum When {
    /// Always.
    Always,
    /// In float64 only: tract has it in float32.
    Double,
    /// Where tract does not compute this node, or computes it wrongly.
    Node(fn(&Call) -> bool),
    /// Where tract does not compute inputs of these ranks.
    Ranks(fn(&[usize]) -> bool),
}

/// An operator, its domain, and how it is computed.
struct Row {
    op: &'static str,
    domain: &'static str,
    when: When,
    run: fn(&Call) -> Result<Vec<Array>>,
}

const fn row(op: &'static str, run: fn(&Call) -> Result<Vec<Array>>) -> Row {
    Row { op, domain: "", when: When::Always, run }
}

impl Row {
    const fn domain(mut self, domain: &'static str) -> Self {
        self.domain = domain;
        self
    }

    const fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }
}

const FAMILIES: &[&[Row]] = &[
    attention::ROWS,
    elementwise::SUMS,
    linear::ROWS,
    losses::ROWS,
    movement::ROWS,
    normalization::ROWS,
    random::ROWS,
    recurrent::ROWS,
    resampling::ROWS,
];

/// The rows by domain and operator.
static TABLE: LazyLock<HashMap<(&str, &str), &Row>> =
    LazyLock::new(|| FAMILIES.iter().copied().flatten().map(|row| ((row.domain, row.op), row)).collect());
/// The operators of tract.
static ENGINE: LazyLock<OnnxOpRegister> = LazyLock::new(|| tract_onnx::onnx().op_register);

/// Whether an operator of a domain that is not the standard's is computed here.
pub fn is_ours(domain: &str, op: &str) -> bool {
    TABLE.contains_key(&(domain, op))
}

/// Puts kernels in the place of those of tract that are missing or wrong; in float64 of those in float32, too.
pub fn register(operators: &mut OnnxOpRegister, double: bool) {
    elementwise::register(operators);
    operators.insert("Loop", control::loop_);
    operators.insert("Scan", control::scan);
    for row in FAMILIES.iter().copied().flatten() {
        match row.when {
            When::Double if !double => (),
            _ => operators.insert(row.op, build),
        }
    }
}

fn build(context: &ParsingContext, node: &pb::NodeProto) -> Built {
    let call = Call::new(node, context.onnx_operator_set_version)?;
    let engine = ENGINE.0.get(&node.op_type);
    let theirs =
        || engine.with_context(|| format!("tract has no {}", node.op_type)).and_then(|build| build(context, node));
    // tract looks operators up by their names alone.
    let Some(&row) = TABLE.get(&(canonical_domain(&node.domain), node.op_type.as_str())) else { return theirs() };
    match row.when {
        When::Node(is_ours) if !is_ours(&call) => theirs(),
        When::Ranks(_) => {
            let (otherwise, names) = theirs()?;
            Ok((Box::new(Kernel { row, call, otherwise: Some(otherwise) }), names))
        }
        _ => Ok((Box::new(Kernel { row, call, otherwise: None }), vec![])),
    }
}

/// A node as a kernel sees it.
#[derive(Clone, Debug)]
pub struct Call {
    node: NodeProto,
    opset: i64,
    inputs: Vec<Option<Arc<Array>>>,
    /// Which inputs are truth values.
    booleans: Vec<bool>,
}

impl Call {
    fn new(node: &pb::NodeProto, opset: i64) -> Result<Call> {
        let mut node = NodeProto::decode(node.encode_to_vec().as_slice())?;
        // tract's protobuf types do not write zeros.
        for a in &mut node.attribute {
            match a.r#type() {
                attribute_proto::AttributeType::Int => a.i = a.i.or(Some(0)),
                attribute_proto::AttributeType::Float => a.f = a.f.or(Some(0.0)),
                attribute_proto::AttributeType::String => a.s = a.s.take().or(Some(Default::default())),
                _ => (),
            }
        }
        let opset = if canonical_domain(node.domain()).is_empty() { opset } else { 1 };
        Ok(Call { node, opset, inputs: vec![], booleans: vec![] })
    }

    fn input(&self, i: usize) -> Result<&Array> {
        self.opt(i).with_context(|| format!("input {i} is missing"))
    }

    fn opt(&self, i: usize) -> Option<&Array> {
        self.inputs.get(i)?.as_deref()
    }

    fn x(&self) -> Result<&Array> {
        self.input(0)
    }

    /// Whether an input holds truth values.
    fn is_bool(&self, i: usize) -> bool {
        self.booleans.get(i) == Some(&true)
    }

    /// Whether the node has an output of that number.
    fn has_output(&self, i: usize) -> bool {
        self.node.output.get(i).is_some_and(|o| !o.is_empty())
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        attribute::get_int(&self.node.attribute, name).unwrap_or(default)
    }

    fn float(&self, name: &str, default: f32) -> f64 {
        attribute::get_float(&self.node.attribute, name).unwrap_or(default).into()
    }

    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        attribute::get_ints(&self.node.attribute, name).map(<[i64]>::to_vec)
    }

    fn string(&self, name: &str, default: &'static str) -> &str {
        attribute::get_string(&self.node.attribute, name).unwrap_or(default)
    }

    /// The element type that an attribute names.
    fn element(&self, name: &str, default: Element) -> Element {
        let number = attribute::get_int(&self.node.attribute, name).and_then(|n| i32::try_from(n).ok());
        number.map_or(default, |n| Element::Is(ElementType::from_number(n)))
    }

    /// An axis, counted from the front.
    fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let from_front = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(from_front)
            .ok()
            .filter(|&a| a < rank)
            .with_context(|| format!("rank {rank} has no axis {axis}"))
    }
}

/// A node that is computed by its row.
#[derive(Clone)]
struct Kernel {
    row: &'static Row,
    call: Call,
    /// What computes the inputs that are not for the row.
    otherwise: Option<Box<dyn InferenceOp>>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.row.op)
    }
}

impl PartialEq for Kernel {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}
impl Eq for Kernel {}

impl Op for Kernel {
    fn name(&self) -> StaticName {
        format!("{} of the validation", self.row.op).into()
    }

    not_a_typed_op!();
}

impl EvalOp for Kernel {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, tensors: TVec<TValue>) -> TractResult<TVec<TValue>> {
        if let (When::Ranks(ours), Some(otherwise)) = (self.row.when, &self.otherwise)
            && !ours(&tensors.iter().map(|t| t.rank()).collect::<Vec<_>>())
        {
            return otherwise.eval(context, tensors);
        }
        let mut call = self.call.clone();
        let mut types = Vec::new();
        let mut given = tensors.iter();
        for name in &self.call.node.input {
            let tensor = if name.is_empty() { None } else { given.next() };
            types.push(tensor.map(|t| t.datum_type()));
            call.booleans.push(tensor.is_some_and(|t| t.datum_type() == DatumType::Bool));
            let array = |t: &TValue| {
                anyhow::Ok(Arc::new(Array { dims: t.shape().to_vec(), values: values(t)?, element: Element::Like(0) }))
            };
            call.inputs.push(tensor.map(array).transpose()?);
        }
        let mut results = (self.row.run)(&call).with_context(|| self.row.op)?.into_iter();
        let mut outputs = tvec![];
        for name in &self.call.node.output {
            let Some(result) = results.next() else { break };
            if name.is_empty() {
                continue;
            }
            let datum = match result.element {
                Element::Is(element) => datum_type(element)?,
                Element::Like(i) => types.get(i).copied().flatten().context("the input whose type an output has")?,
            };
            let wide = double(&result.dims, &result.values)?;
            outputs.push(wide.cast_to_dt(datum)?.into_owned().into_tvalue());
        }
        ensure!(
            outputs.len() == self.call.node.output.iter().filter(|o| !o.is_empty()).count(),
            "{} has more outputs than are computed",
            self.row.op
        );
        Ok(outputs)
    }
}

type Facts = (TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>);

/// Nothing is known of the outputs before they are computed.
fn unknown(inputs: TVec<&InferenceFact>, outputs: TVec<&InferenceFact>, observed: TVec<&InferenceFact>) -> Facts {
    let owned = |facts: TVec<&InferenceFact>| facts.into_iter().cloned().collect();
    (owned(inputs), owned(outputs), owned(observed))
}

impl InferenceOp for Kernel {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<Facts> {
        Ok(unknown(inputs, outputs, observed))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.call.node.output.iter().filter(|o| !o.is_empty()).count())
    }

    as_op!();
}
