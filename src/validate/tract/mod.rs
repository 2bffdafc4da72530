//! Runs models in tract, in the way that runs most of them: node by node on the inference model, each with the shapes
//! that its inputs have at that moment.

mod control;
mod convert;
mod dense;
mod kernels;
mod normalize;
mod operator;

use super::engine::{Engine, Precision, Run, Trouble, one_line};
use super::tensors::{self, Tensors};
use crate::onnx::ModelProto;
use anyhow::{Context, Result, anyhow, ensure};
use convert::{datum_type, from_tract, shown, to_tract};
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::SimplePlan;
use tract_onnx::tract_hir::internal::InferenceOp;

type Runnable = Arc<SimplePlan<InferenceFact, Box<dyn InferenceOp>>>;

/// A model with the shapes of its inputs fixed, ready to run many times.
struct Plan {
    plan: Runnable,
    /// The plan without the analyser, which in some models contradicts what the nodes then compute.
    unanalysed: Option<Runnable>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// What was fed last, in tract's form: most inputs are the same in every run.
    fed: RefCell<HashMap<String, Fed>>,
}

/// A tensor, and the same in tract's form.
type Fed = (Arc<tensors::Tensor>, Arc<Tensor>);

/// tract itself.
pub struct Tract;

impl Engine for Tract {
    fn prepare(&self, model: &ModelProto, feeds: &Tensors, precision: Precision) -> Result<Box<dyn Run>, Trouble> {
        Ok(Box::new(Plan::new(model, feeds, precision)?))
    }
}

impl Run for Plan {
    fn run(&self, feeds: &Tensors) -> Result<Tensors, Trouble> {
        match (self.run_plan(&self.plan, feeds), &self.unanalysed) {
            // What memory does not suffice for is not tried twice.
            (Err(trouble), Some(plan)) if !matches!(trouble, Trouble::OutOfMemory) => {
                self.run_plan(plan, feeds).map_err(|_| trouble)
            }
            (result, _) => result,
        }
    }
}

impl Plan {
    fn new(model: &ModelProto, feeds: &Tensors, precision: Precision) -> Result<Plan, Trouble> {
        let ordered = in_order(model);
        let (model, copy) = (&ordered, normalize::normalize(&ordered, precision)?);
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
                model
                    .set_input_fact(i, InferenceFact::dt_shape(datum_type(tensor.element())?, tensor.dims()))
                    .map_err(shown)?;
            }
            // Each output in turn with what it needs: tract's own search for an order that holds little waits with what
            // takes a constant, and takes time that grows with the square of the nodes.
            let options = RunOptions { skip_order_opt_ram: true, ..RunOptions::default() };
            let unanalysed = SimplePlan::new_with_options(model.clone(), &options).ok();
            let analysed = catch_unwind(AssertUnwindSafe(|| {
                // Its error is not the model's: nodes that need no more than concrete inputs run all the same.
                let _ = model.analyse(true);
                model
            }));
            let plan = match analysed {
                Ok(model) => SimplePlan::new_with_options(model, &options).map_err(shown).ok(),
                Err(_) => None,
            };
            Ok((plan, unanalysed))
        })?;
        let fed = RefCell::default();
        match (plan, unanalysed) {
            (Some(plan), unanalysed) => Ok(Plan { plan, unanalysed, inputs, outputs, fed }),
            (None, Some(plan)) => Ok(Plan { plan, unanalysed: None, inputs, outputs, fed }),
            (None, None) => Err(Trouble::Failed("the graph has no order to run in".to_owned())),
        }
    }

    fn run_plan(&self, plan: &Runnable, feeds: &Tensors) -> Result<Tensors, Trouble> {
        guarded(|| {
            let inputs = self.inputs.iter().map(|name| {
                let tensor = feeds.get(name).ok_or_else(|| anyhow!("input '{name}' has no value"))?;
                Ok(self.feed(name, tensor)?.into_tvalue())
            });
            let values = plan.run(inputs.collect::<Result<TVec<_>>>()?).map_err(shown)?;
            let tensor = |(name, value): (&String, TValue)| {
                let tensor = from_tract(value.into_arc_tensor()).with_context(|| format!("output '{name}'"))?;
                Ok((name.clone(), Arc::new(tensor)))
            };
            self.outputs.iter().zip(values).map(tensor).collect()
        })
    }

    /// An input in tract's form.
    fn feed(&self, name: &str, tensor: &Arc<tensors::Tensor>) -> Result<Arc<Tensor>> {
        let mut fed = self.fed.borrow_mut();
        if let Some((_, same)) = fed.get(name).filter(|(last, _)| Arc::ptr_eq(last, tensor)) {
            return Ok(same.clone());
        }
        let converted = Arc::new(to_tract(tensor)?);
        fed.insert(name.to_owned(), (tensor.clone(), converted.clone()));
        Ok(converted)
    }
}

/// The model with its outputs in the order in which they are computed: what is computed for one of them and for none
/// of those behind it goes early.
fn in_order(model: &ModelProto) -> ModelProto {
    let mut model = model.clone();
    let Some(graph) = &mut model.graph else { return model };
    let nodes = graph.node.iter().enumerate();
    let places: HashMap<&str, usize> = nodes.flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i))).collect();
    graph.output.sort_by_key(|o| places.get(o.name()).copied());
    model
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
            // Not where it was: that is a place on the machine that has built this.
            true => MESSAGE.with_borrow_mut(|m| {
                let text = info.payload().downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| info.payload().downcast_ref::<String>().cloned());
                *m = text.unwrap_or_else(|| "it says no reason".to_owned());
            }),
            false => before(info),
        }));
    });
    let outer = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(outer);
    match result {
        Ok(result) => Ok(result?),
        Err(_) => match MESSAGE.take() {
            text if text.contains("failed to allocate") || text.contains("capacity overflow") => {
                Err(Trouble::OutOfMemory)
            }
            text => Err(Trouble::Panicked(one_line(&text))),
        },
    }
}
