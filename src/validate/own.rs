//! The run in the model's own element types: which inputs it takes, and that its outputs are the same with the gradients.

use super::double::{doubled, feed_weights};
use super::engine::Trouble;
use super::engine::{Engine, Precision};
use super::tensors::{Tensor, Tensors};
use super::{Check, OutputCheck, Stop, edit, failed, float64, inputs, skipped};
use crate::onnx::{ElementType, GraphProto, ModelProto};
use crate::record::Record;
use std::collections::HashSet;
use std::sync::Arc;

/// A run in the model's own element types.
pub struct Own {
    /// The inputs.
    pub feeds: Tensors,
    /// The outputs and gradients; `None` where tract has not the element type.
    pub tensors: Option<Tensors>,
}

impl Check<'_> {
    /// Runs the model in its own element types, without its gradients and with them.
    pub(super) fn run_own(&mut self) -> Result<Own, Stop> {
        let forward = self.forward();
        let typed = !uses(self.model.graph.as_ref(), ElementType::Bfloat16);
        let mut trouble = None;
        for &attempt in inputs::ATTEMPTS {
            let dims = inputs::bind(self.model, self.record, self.options, attempt);
            let feeds = inputs::make(self.model, self.options, &dims, attempt.positive)?;
            let feeds = self.fit_earlier_seeds(feeds, typed)?;
            match self.run_part(&forward, &feeds, typed) {
                Err(trouble) if trouble.is_unsupported() => return Err(trouble.into()),
                // The first one is of the sizes that are tried first.
                Err(other) => trouble = trouble.or(Some(skipped(other))),
                Ok(outputs) => {
                    let finite = outputs.values().all(|t| t.is_finite());
                    if !finite && trouble.is_none() {
                        trouble = Some(skipped("the model's outputs are not finite for random inputs; give --input"));
                    }
                    if finite {
                        self.validation.dims = dims;
                        let feeds = self.fit_seeds(self.record, feeds, &outputs)?;
                        return self.run_with_gradients(feeds, outputs, typed);
                    }
                }
            }
        }
        Err(trouble.unwrap_or_else(|| skipped("the model does not run")))
    }

    /// Runs what some tensors need of the model.
    fn run_part(&self, names: &[String], feeds: &Tensors, typed: bool) -> Result<Tensors, Trouble> {
        let mut part = self.model.clone();
        edit::prune(&mut part, names);
        match typed {
            true => self.engine.prepare(&part, feeds, Precision::Own)?.run(feeds),
            false => double_run(self.engine, part, feeds),
        }
    }

    /// The seeds of earlier calls, which this one's gradients may depend on, get the shapes of their ys, one call after the other.
    fn fit_earlier_seeds(&self, mut feeds: Tensors, typed: bool) -> Result<Tensors, Stop> {
        let records = Record::all(self.model)?;
        for record in records.iter().take_while(|r| r.name != self.record.name) {
            let ys: Vec<String> = record.seeds.iter().filter(|s| s.seed.is_some()).map(|s| s.y.clone()).collect();
            if ys.is_empty() {
                continue;
            }
            // What does not run says so in the run of the whole.
            if let Ok(outputs) = self.run_part(&ys, &feeds, typed) {
                feeds = self.fit_seeds(record, feeds, &outputs)?;
            }
        }
        Ok(feeds)
    }

    /// Seeds that are inputs get the shapes of their ys, which their symbols alone do not tell.
    fn fit_seeds(&self, record: &Record, mut feeds: Tensors, outputs: &Tensors) -> Result<Tensors, Stop> {
        for seed in &record.seeds {
            let Some(name) = seed.seed.as_ref().filter(|name| !self.options.inputs.contains_key(*name)) else {
                continue;
            };
            let (Some(given), Some(y)) = (feeds.get(name), outputs.get(&seed.y)) else { continue };
            if given.dims() != y.dims() {
                let fitting = inputs::random(y.dims(), self.options.seed)?;
                feeds.insert(name.clone(), Arc::new(fitting.cast(given.element())?));
            }
        }
        Ok(feeds)
    }

    fn run_with_gradients(&mut self, feeds: Tensors, bare: Tensors, typed: bool) -> Result<Own, Stop> {
        if !typed {
            return Ok(Own { feeds, tensors: None });
        }
        let mut names: Vec<String> = bare.keys().cloned().collect();
        names.extend(self.gradients());
        let mut full = self.model.clone();
        edit::prune(&mut full, &names);
        let tensors =
            self.engine.prepare(&full, &feeds, Precision::Own).and_then(|p| p.run(&feeds)).map_err(|t| match t {
                t if t.is_unsupported() => Stop::from(t),
                other => failed(format!("the model runs, but not with its gradients: {other}")),
            })?;
        for (name, expected) in &bare {
            let difference = tensors.get(name).and_then(|t| difference(expected, t));
            self.validation.outputs.push(OutputCheck { name: name.clone(), max_difference: difference });
            let same = tensors.get(name).is_some_and(|t| t == expected);
            if !same {
                return Err(failed(format!("output '{name}' is another one with the gradients than without")));
            }
        }
        Ok(Own { feeds, tensors: Some(tensors) })
    }
}

fn double_run(engine: &dyn Engine, mut model: ModelProto, feeds: &Tensors) -> Result<Tensors, Trouble> {
    float64::to_double(&mut model)?;
    let mut feeds = doubled(feeds)?;
    feed_weights(&mut model, &HashSet::new(), &mut feeds)?;
    engine.prepare(&model, &feeds, Precision::Double)?.run(&feeds)
}

fn difference(a: &Tensor, b: &Tensor) -> Option<f64> {
    if a.dims() != b.dims() {
        return None;
    }
    let (a, b) = (a.values(), b.values());
    Some(a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
}

/// Whether a graph, or a body in it, names this element type.
pub fn uses(graph: Option<&GraphProto>, element: ElementType) -> bool {
    let Some(graph) = graph else { return false };
    let number = element as i32;
    let typed = |v: &crate::onnx::ValueInfoProto| edit::element_type(v.r#type.as_ref()) == Some(element);
    graph.initializer.iter().any(|t| t.data_type() == number)
        || graph.input.iter().any(typed)
        || graph.node.iter().any(|n| {
            n.attribute.iter().any(|a| {
                a.t.as_ref().is_some_and(|t| t.data_type() == number)
                    || (matches!(a.name(), "to" | "dtype" | "output_datatype") && a.i() == i64::from(number))
            }) || edit::bodies(n).any(|b| uses(Some(b), element))
        })
}
