//! The kernels as operators of tract: those that it lacks, computes wrongly, or has in float32 only.

use super::convert::{datum_type, element_type, sized, values};
use super::operator::{Built, operator};
use super::{control, dense};
use crate::onnx::proto::attribute_proto;
use crate::onnx::{ElementType, NodeProto, attribute, canonical_domain};
use crate::validate::kernels::{self, Array, Call, Element, Row};
use anyhow::{Context, Result, ensure};
use prost::Message;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::LazyLock;
use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb;
use tract_onnx::tract_core::broadcast::multi_broadcast;
use tract_onnx::tract_hir::internal::*;

/// When the kernel stands in for tract's.
#[derive(Clone, Copy)]
enum When {
    /// In float64 only: tract has it in float32.
    Double,
    /// Where tract does not compute this node, or computes it wrongly.
    Node(fn(&Call) -> bool),
    /// Where tract does not compute inputs of these shapes.
    Shapes(fn(&[&[usize]]) -> bool),
}

/// The operators that tract computes, but not always. What stands neither here nor in tract is the kernel's alone.
const SHARED: &[(&str, When)] = &[
    ("BatchNormalization", When::Node(|c| c.int("training_mode", 0) != 0 || (c.opset < 14 && c.has_output(1)))),
    ("DFT", When::Double),
    ("Einsum", When::Node(einsum)),
    ("GroupNormalization", When::Double),
    ("LayerNormalization", When::Double),
    ("MatMul", When::Shapes(|shapes| empty(shapes) || shapes.iter().all(|s| s.len() == 1))),
    // tract knows no cyclic borders, reflects an image once only, and crops by no computed amounts.
    ("Pad", When::Node(|c| matches!(c.string("mode", ""), "reflect" | "wrap") || c.int(COMPUTED, 0) != 0)),
    ("RMSNormalization", When::Double),
    // It divides by the number of elements, which may be zero.
    ("ReduceL1", When::Shapes(empty)),
    ("ReduceL2", When::Shapes(empty)),
    ("ReduceLogSum", When::Shapes(empty)),
    ("ReduceLogSumExp", When::Shapes(empty)),
    ("ReduceMax", When::Shapes(empty)),
    ("ReduceMean", When::Shapes(empty)),
    ("ReduceMin", When::Shapes(empty)),
    ("ReduceProd", When::Shapes(empty)),
    ("ReduceSum", When::Shapes(empty)),
    ("ReduceSumSquare", When::Shapes(empty)),
    ("STFT", When::Double),
    // tract takes the axes for granted while they are an attribute.
    ("Squeeze", When::Node(|c| c.opset < 13 && c.ints("axes").is_none())),
    ("SimplifiedLayerNormalization", When::Double),
];

/// The attribute of a copy's Pad that says that its amounts are computed.
pub const COMPUTED: &str = "computed";

/// Whether an input has no elements.
fn empty(shapes: &[&[usize]]) -> bool {
    shapes.iter().any(|s| s.contains(&0))
}

/// tract takes an index that a term has twice for two.
fn einsum(call: &Call) -> bool {
    let equation = call.string("equation", "");
    let repeated = equation.split("->").flat_map(|side| side.split(',')).any(|term| {
        let term = term.replace(' ', "");
        term.char_indices().any(|(i, c)| term[..i].contains(c))
    });
    repeated || equation.contains('.') || equation.trim_end().ends_with("->")
}

fn when(row: &Row) -> Option<When> {
    SHARED.iter().find(|(op, _)| row.domain.is_empty() && *op == row.op).map(|&(_, when)| when)
}

/// The operators of tract.
static ENGINE: LazyLock<OnnxOpRegister> = LazyLock::new(|| tract_onnx::onnx().op_register);

/// Puts kernels in the place of those of tract that are missing or wrong; in float64 of those in float32, too.
pub fn register(operators: &mut OnnxOpRegister, double: bool) {
    operators.insert("Cast", cast);
    operators.insert("Shape", |_, node| extent(node, true));
    operators.insert("Size", |_, node| extent(node, false));
    for op in COMPARISONS {
        operators.insert(op, compare);
    }
    operators.insert("GatherND", tuples);
    operators.insert("ScatterND", tuples);
    operators.insert("Loop", control::loop_);
    operators.insert("Scan", control::scan);
    for row in kernels::rows() {
        match when(row) {
            Some(When::Double) if !double => (),
            _ => operators.insert(row.op, build),
        }
    }
    for op in PRODUCTS {
        operators.insert(op, if double { product::<true> } else { product::<false> });
    }
}

/// What is a product of matrices in the end.
const PRODUCTS: [&str; 3] = ["Conv", "Gemm", "MatMul"];

fn product<const DOUBLE: bool>(context: &ParsingContext, node: &pb::NodeProto) -> Built {
    let built = build(context, node)?;
    match canonical_domain(&node.domain) {
        "" => dense::product(&plain(node)?, DOUBLE, built),
        _ => Ok(built),
    }
}

fn build(context: &ParsingContext, node: &pb::NodeProto) -> Built {
    let engine = ENGINE.0.get(&node.op_type);
    let theirs =
        || engine.with_context(|| format!("tract has no {}", node.op_type)).and_then(|build| build(context, node));
    // tract looks operators up by their names alone.
    let domain = canonical_domain(&node.domain);
    let Some(row) = kernels::find(domain, &node.op_type) else { return theirs() };
    let opset = if domain.is_empty() { context.onnx_operator_set_version } else { 1 };
    let mut kernel = Kernel { row, node: plain(node)?, opset, bodies: vec![], otherwise: None };
    match when(row) {
        Some(When::Node(is_ours)) => {
            let nothing = |_: &str, _: &Array| Ok(None);
            let call = Call { node: &kernel.node, opset, inputs: vec![], types: vec![], body: &nothing };
            if !is_ours(&call) {
                return theirs();
            }
        }
        Some(When::Shapes(_)) => {
            let (otherwise, names) = theirs()?;
            kernel.otherwise = Some(otherwise);
            return Ok((Box::new(kernel), names));
        }
        Some(When::Double) | None => (),
    }
    let mut names = Vec::new();
    for (name, graph) in node.attribute.iter().filter_map(|a| Some((&a.name, a.g.as_ref()?))) {
        let (plan, captures) = control::plan(context, graph)?;
        let first = names.len();
        names.extend(captures);
        kernel.bodies.push(Body { name: name.clone(), plan, captures: first..names.len() });
    }
    Ok((Box::new(kernel), names))
}

/// tract casts to int64 by making sizes, which many operators do not take for numbers.
fn cast(context: &ParsingContext, node: &pb::NodeProto) -> Built {
    let theirs = ENGINE.0.get("Cast").context("tract has no Cast")?;
    let (op, names) = theirs(context, node)?;
    let integers = node.attribute.iter().any(|a| a.name == "to" && a.i == ElementType::Int64 as i64);
    Ok(if integers { (Box::new(Integers(op)), names) } else { (op, names) })
}

/// An operator whose result is of int64, and not of sizes.
#[derive(Clone, Debug)]
struct Integers(Box<dyn InferenceOp>);

operator!(
    Integers,
    name: |op| format!("{} to integers", op.0.name()),
    outputs: |_| 1,
    facts: |_, x, y| (y.datum_type, y.shape) = (i64::datum_type().into(), x.shape.clone())
);

impl EvalOp for Integers {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, tensors: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let results = self.0.eval(context, tensors)?.into_iter();
        results.map(|t| Ok(sized(t.into_arc_tensor())?.into_tvalue())).collect()
    }
}

/// The sizes of a tensor, or how many elements it has, in int64. tract's are symbolic, and int64 numbers that meet them
/// lose all but 32 bits: of the largest one, which stands for "to the end", -1 is left.
#[derive(Clone, Debug)]
struct Extent {
    /// From which axis on, and up to which one, for the sizes; `None` for the number of elements.
    axes: Option<(i64, Option<i64>)>,
}

fn extent(node: &pb::NodeProto, sizes: bool) -> Built {
    let attributes = plain(node)?.attribute;
    let get = |name: &str| attribute::get_int(&attributes, name);
    let axes = sizes.then(|| (get("start").unwrap_or(0), get("end")));
    Ok((Box::new(Extent { axes }), vec![]))
}

impl Extent {
    fn of(&self, dims: &[i64]) -> Tensor {
        let Some((start, end)) = self.axes else { return tensor0(dims.iter().product::<i64>()) };
        let rank = dims.len() as i64;
        let from_front = |axis: i64| (if axis < 0 { axis + rank } else { axis }).clamp(0, rank) as usize;
        let (start, end) = (from_front(start), end.map_or(dims.len(), from_front));
        tensor1(dims.get(start..end).unwrap_or_default())
    }

    fn facts(&self, x: &InferenceFact, y: &mut InferenceFact) {
        y.datum_type = i64::datum_type().into();
        let sizes =
            x.shape.concretize().and_then(|dims| dims.iter().map(|d| d.to_i64().ok()).collect::<Option<Vec<_>>>());
        if let Some(value) = sizes.map(|sizes| self.of(&sizes)) {
            y.shape = value.shape().into();
            y.value = value.into_arc_tensor().into();
        }
    }
}

operator!(
    Extent,
    name: |op| if op.axes.is_some() { "Shape".to_owned() } else { "Size".to_owned() },
    outputs: |_| 1,
    facts: Extent::facts
);

impl EvalOp for Extent {
    not_out_of_plan!();

    fn eval(&self, _: &EvalContext, tensors: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = tensors.first().context("it has no input")?;
        let sizes: Vec<i64> = x.shape().iter().map(|&n| n as i64).collect();
        Ok(tvec![self.of(&sizes).into_tvalue()])
    }
}

const COMPARISONS: &[&str] = &["Less", "LessOrEqual", "Greater", "GreaterOrEqual"];

/// tract compares an integer as a size, with one added to it: the largest becomes the smallest.
#[derive(Clone, Debug)]
struct Comparison {
    holds: fn(Ordering) -> bool,
    /// What compares numbers that are no integers.
    otherwise: Box<dyn InferenceOp>,
}

fn compare(context: &ParsingContext, node: &pb::NodeProto) -> Built {
    let theirs = ENGINE.0.get(&node.op_type).with_context(|| format!("tract has no {}", node.op_type))?;
    let (otherwise, names) = theirs(context, node)?;
    let holds: fn(Ordering) -> bool = match &*node.op_type {
        "Less" => Ordering::is_lt,
        "LessOrEqual" => Ordering::is_le,
        "Greater" => Ordering::is_gt,
        _ => Ordering::is_ge,
    };
    Ok((Box::new(Comparison { holds, otherwise }), names))
}

operator!(
    Comparison,
    name: |op| op.otherwise.name().into_owned(),
    outputs: |_| 1,
    facts: |_, _, y| y.datum_type = bool::datum_type().into()
);

impl EvalOp for Comparison {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, tensors: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [a, b] = &*tensors else { return self.otherwise.eval(context, tensors) };
        let counts = |t: &TValue| t.datum_type().is_integer() && t.datum_type() != DatumType::U64;
        if !counts(a) || !counts(b) {
            return self.otherwise.eval(context, tensors);
        }
        let (a, b) = (a.cast_to::<i64>()?, b.cast_to::<i64>()?);
        let shape = multi_broadcast(&[a.shape(), b.shape()])?;
        let (a, b) = (a.to_plain_array_view::<i64>()?, b.to_plain_array_view::<i64>()?);
        let views = a.broadcast(&*shape).zip(b.broadcast(&*shape));
        let (a, b) = views.context("shapes that do not broadcast")?;
        let values: Vec<bool> = a.iter().zip(b.iter()).map(|(a, b)| (self.holds)(a.cmp(b))).collect();
        Ok(tvec![Tensor::from_shape(&shape, &values)?.into_tvalue()])
    }
}

/// tract takes no tuples of indices that count from the end.
fn tuples(context: &ParsingContext, node: &pb::NodeProto) -> Built {
    let theirs = ENGINE.0.get(&node.op_type).with_context(|| format!("tract has no {}", node.op_type))?;
    let (op, names) = theirs(context, node)?;
    let skipped = attribute::get_int(&plain(node)?.attribute, "batch_dims").and_then(|n| usize::try_from(n).ok());
    Ok((Box::new(FromFront { op, skipped: skipped.unwrap_or(0), alike: node.op_type == "ScatterND" }), names))
}

/// An operator whose second input holds tuples of indices, all of which count from the front.
#[derive(Clone, Debug)]
struct FromFront {
    op: Box<dyn InferenceOp>,
    /// The axes of the first input that come before those that are indexed.
    skipped: usize,
    /// Whether the output has the shape of the first input.
    alike: bool,
}

operator!(
    FromFront,
    name: |op| format!("{} from the front", op.op.name()),
    outputs: |_| 1,
    facts: |op, x, y| {
        y.datum_type = x.datum_type;
        if op.alike {
            y.shape = x.shape.clone();
        }
    }
);

impl EvalOp for FromFront {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, mut tensors: TVec<TValue>) -> TractResult<TVec<TValue>> {
        if let [x, indices, ..] = &*tensors
            && indices.datum_type() == i64::datum_type()
        {
            let sizes = x.shape().get(self.skipped..).unwrap_or_default();
            let width = indices.shape().last().copied().unwrap_or(1).max(1);
            let mut turned = indices.clone().into_tensor();
            for (i, index) in turned.try_as_plain_ram_mut()?.as_slice_mut::<i64>()?.iter_mut().enumerate() {
                if let (true, Some(&size)) = (*index < 0, sizes.get(i % width)) {
                    *index += size as i64;
                }
            }
            tensors[1] = turned.into_tvalue();
        }
        self.op.eval(context, tensors)
    }
}

/// The node in our protobuf types; tract's do not write zeros.
fn plain(node: &pb::NodeProto) -> Result<NodeProto> {
    let mut node = NodeProto::decode(node.encode_to_vec().as_slice())?;
    for a in &mut node.attribute {
        match a.r#type() {
            attribute_proto::AttributeType::Int => a.i = a.i.or(Some(0)),
            attribute_proto::AttributeType::Float => a.f = a.f.or(Some(0.0)),
            attribute_proto::AttributeType::String => a.s = a.s.take().or(Some(Default::default())),
            _ => (),
        }
    }
    Ok(node)
}

/// A body of a node.
#[derive(Clone)]
struct Body {
    name: String,
    plan: control::Body,
    /// What it takes from around the node, of all that bodies of the node take.
    captures: Range<usize>,
}

/// A node that is computed by its row.
#[derive(Clone)]
struct Kernel {
    row: &'static Row,
    node: NodeProto,
    opset: i64,
    bodies: Vec<Body>,
    /// What computes the inputs that are not for the row.
    otherwise: Option<Box<dyn InferenceOp>>,
}

fn array(tensor: &Tensor) -> Result<Array> {
    Ok(Array { dims: tensor.shape().to_vec(), values: values(tensor)?, element: Element::Like(0) })
}

fn tensor(array: &Array, datum: DatumType) -> Result<Tensor> {
    let wide = Tensor::from_shape(&array.dims, &array.values)?;
    Ok(if datum == DatumType::F64 { wide } else { wide.cast_to_dt(datum)?.into_owned() })
}

impl Kernel {
    /// What a body makes of a tensor; `captured` is what all bodies take from around the node.
    fn run_body(&self, name: &str, x: &Array, captured: &[TValue]) -> Result<Option<Array>> {
        let Some(body) = self.bodies.iter().find(|b| b.name == name) else { return Ok(None) };
        let declared = body.plan.model().input_fact(0)?.datum_type.concretize();
        let mut feeds = tvec![tensor(x, declared.unwrap_or(DatumType::F64))?.into_tvalue()];
        feeds.extend(captured.get(body.captures.clone()).unwrap_or_default().iter().cloned());
        let results = body.plan.run(feeds)?;
        results.first().context("the body has no output").and_then(|y| array(y)).map(Some)
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.row.op)
    }
}

operator!(
    Kernel,
    name: |op| format!("{} of the validation", op.row.op),
    outputs: |op| op.node.output.iter().filter(|o| !o.is_empty()).count(),
    facts: |op, x, y| {
        if op.row.alike {
            (y.datum_type, y.shape) = (x.datum_type, x.shape.clone());
        }
    }
);

impl EvalOp for Kernel {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, tensors: TVec<TValue>) -> TractResult<TVec<TValue>> {
        if let (Some(When::Shapes(ours)), Some(otherwise)) = (when(self.row), &self.otherwise)
            && !ours(&tensors.iter().map(|t| t.shape()).collect::<Vec<_>>())
        {
            return otherwise.eval(context, tensors);
        }
        let mut given = tensors.iter();
        let (mut inputs, mut types, mut datums) = (vec![], vec![], vec![]);
        for name in &self.node.input {
            let tensor = if name.is_empty() { None } else { given.next() };
            datums.push(tensor.map(|t| t.datum_type()));
            types.push(tensor.and_then(|t| element_type(t.datum_type())));
            inputs.push(tensor.map(|t| array(t)).transpose()?);
        }
        let captured = given.as_slice();
        let body = |name: &str, x: &Array| self.run_body(name, x, captured);
        let call = Call { node: &self.node, opset: self.opset, inputs, types, body: &body };
        let mut results = (self.row.run)(&call).with_context(|| self.row.op)?.into_iter();
        let mut outputs = tvec![];
        for name in &self.node.output {
            let Some(result) = results.next() else { break };
            if name.is_empty() {
                continue;
            }
            let datum = match result.element {
                Element::Is(element) => datum_type(element)?,
                Element::Like(i) => datums.get(i).copied().flatten().context("the input whose type an output has")?,
            };
            outputs.push(tensor(&result, datum)?.into_tvalue());
        }
        ensure!(
            outputs.len() == self.node.output.iter().filter(|o| !o.is_empty()).count(),
            "{} has more outputs than are computed",
            self.row.op
        );
        Ok(outputs)
    }
}
