//! What is validated: a model with the record of a call, the engine that runs it, and what is known of its inputs.

use super::engine::{Engine, Precision, Run, Trouble};
use super::integers::Integers;
use super::sizes::Sizes;
use super::tensors::Tensors;
use super::thresholds::Thresholds;
use super::{Options, edit};
use crate::onnx::file::load_external;
use crate::onnx::inline::inline_functions;
use crate::onnx::proto::tensor_shape_proto::Dimension;
use crate::onnx::proto::tensor_shape_proto::dimension::Value::DimValue;
use crate::onnx::{ElementType, GraphProto, ModelProto, ValueInfoProto, is_given};
use crate::record::Record;
use crate::rules;
use anyhow::Result;
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

/// One call to validate. The phases (a run in the model's own types, one in float64, the slopes, the verdict) are
/// functions of it.
pub struct Case<'a> {
    /// The model, its tensors in memory, its functions written out, every size of an input named.
    pub model: ModelProto,
    /// What the call made.
    pub record: &'a Record,
    /// How to validate.
    pub options: &'a Options,
    /// What runs the model.
    pub engine: &'a dyn Engine,
    /// What sizes its inputs can have.
    pub sizes: Sizes,
    /// What its integer inputs count.
    pub integers: Integers,
    /// What some of its inputs are compared with.
    pub thresholds: Thresholds,
    /// Whether it holds floating-point numbers of 16 bits.
    pub half: bool,
    /// The shapes of tensors whose rank is declared and follows from no node, without what is symbolic of them: a run
    /// in which they have others is not one of the model's.
    pub claims: Vec<(String, Vec<Option<i64>>)>,
    /// Whether engines have all of its element types.
    pub typed: bool,
    /// When to begin nothing more.
    pub deadline: Instant,
}

impl<'a> Case<'a> {
    /// Prepares a model; `base` is the folder of its external data.
    ///
    /// # Errors
    /// External data that are not there, functions that cannot be written out.
    pub fn new(
        model: &ModelProto,
        base: Option<&Path>,
        record: &'a Record,
        options: &'a Options,
        engine: &'a dyn Engine,
    ) -> Result<Self> {
        let deadline = Instant::now() + options.budget;
        let mut model = inline_functions(model, &|_| true)?;
        model.functions.clear();
        if let Some(base) = base {
            load_external(&mut model, base)?;
        }
        edit::name_sizes(&mut model);
        let sizes = Sizes::new(&model, record, options);
        // What gradients do with indices follows from what the model does.
        let mut forward = model.clone();
        edit::prune(&mut forward, &outputs(&model, record));
        let integers = Integers::new(&forward, &sizes);
        let thresholds = Thresholds::new(&forward);
        let claims = claims(&forward);
        let bfloat16 = uses(model.graph.as_ref(), ElementType::Bfloat16);
        let half = bfloat16 || uses(model.graph.as_ref(), ElementType::Float16);
        Ok(Case {
            model,
            record,
            options,
            engine,
            sizes,
            integers,
            thresholds,
            half,
            claims,
            typed: !bfloat16,
            deadline,
        })
    }

    /// The names of the gradients that there are.
    pub fn gradients(&self) -> Vec<String> {
        unique(self.record.gradients.iter().filter_map(|g| g.name.clone()))
    }

    /// What the model computes besides the gradients.
    pub fn outputs(&self) -> Vec<String> {
        outputs(&self.model, self.record)
    }

    /// Whether all inputs are given, so that there are no others to try.
    pub fn is_given(&self) -> bool {
        edit::free_inputs(&self.model).all(|i| self.options.inputs.contains_key(i.name()))
    }

    /// Whether some input decides by its value what is computed.
    pub fn takes_turns(&self) -> bool {
        let turns = |e: ElementType| e == ElementType::Bool || e.is_integer();
        let mut inputs = edit::free_inputs(&self.model);
        inputs.any(|i| edit::element_type(i.r#type.as_ref()).is_some_and(turns) || self.thresholds.has(i.name()))
    }

    /// Whether the time that was given is over.
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// A model, ready to run.
    pub fn prepare(&self, model: &ModelProto, feeds: &Tensors, precision: Precision) -> Result<Box<dyn Run>, Trouble> {
        self.engine.prepare(model, feeds, precision)
    }
}

fn outputs(model: &ModelProto, record: &Record) -> Vec<String> {
    let gradients: HashSet<&str> = record.gradients.iter().filter_map(|g| g.name.as_deref()).collect();
    let outputs = model.graph.iter().flat_map(|g| &g.output).map(|o| o.name());
    let ys = record.seeds.iter().map(|s| s.y.as_str());
    unique(outputs.chain(ys).filter(|o| !gradients.contains(o)).map(str::to_owned))
}

/// Each name once, in the order in which it comes first.
pub fn unique(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    names.into_iter().filter(|n| seen.insert(n.clone())).collect()
}

/// Whether a graph, or a body in it, names this element type.
fn uses(graph: Option<&GraphProto>, element: ElementType) -> bool {
    let Some(graph) = graph else { return false };
    let number = element as i32;
    let typed = |v: &crate::onnx::ValueInfoProto| edit::element_type(v.r#type.as_ref()) == Some(element);
    graph.initializer.iter().any(|t| t.data_type() == number)
        || graph.input.iter().any(typed)
        || graph.node.iter().any(|n| {
            n.attribute.iter().any(|a| {
                a.t.as_ref().is_some_and(|t| t.data_type() == number)
                    || (matches!(a.name(), "to" | "dtype" | "output_datatype") && a.i() == i64::from(number))
            }) || n.bodies().any(|b| uses(Some(b), element))
        })
}

/// What a model says of the shapes of tensors of which inference knows nothing.
fn claims(model: &ModelProto) -> Vec<(String, Vec<Option<i64>>)> {
    let Some(graph) = &model.graph else { return vec![] };
    let computed = edit::computed(model);
    let declared = |v: &ValueInfoProto| computed.contains(v.name()) && edit::declared(v).is_some();
    if !graph.value_info.iter().chain(&graph.output).any(declared) {
        return vec![];
    }
    let mut silent = model.clone();
    if let Some(graph) = &mut silent.graph {
        graph.value_info.clear();
        graph.output.iter_mut().for_each(|o| o.r#type = None);
    }
    let Ok(known) = rules::load(&silent) else { return vec![] };
    let unknown = |name: &str| known.names.get(name).is_some_and(|&id| known.graph.fact(id).rank().is_none());
    let numbers = |v: &ValueInfoProto| {
        // Exporters declare the sizes that they have traced with.
        let given = is_given(v);
        let number = |d: &Dimension| match d.value {
            Some(DimValue(n)) if n > 0 && given => Some(n),
            _ => None,
        };
        Some(edit::declared(v)?.iter().map(number).collect())
    };
    let infos = graph.value_info.iter().chain(&graph.output).filter(|v| unknown(v.name()));
    infos.filter_map(|v| Some((v.name().to_owned(), numbers(v)?))).collect()
}
