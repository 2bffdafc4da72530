//! What a request is about, before there is a model: names, patterns, and what stands for all tensors of a kind.

use super::select::Selection;
use crate::graph::{Graph, ValueId};
use crate::onnx::ModelProto;
use crate::weights::{self, Kind};
use anyhow::{Result, bail};
use std::collections::HashSet;

/// Tensors of the main graph that a request is about: one by its name, or several at once.
///
/// Which ones they are follows from the model that the request is built for. A text is a [`Wanted::Named`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// The tensor of that name. Where there is none: the tensors that match the name as a pattern (`*` for anything,
    /// `?` for one character), in the order of the model; or, of `NODE:k`, the k-th output of the node of that name,
    /// counted from 0.
    Named(String),
    /// Every weight that a y depends on, in the order in which nodes use them: the initializers, constants and
    /// dequantized integers that stand where operators have weights (docs/weights.md).
    Parameters,
    /// Every graph input of floating-point numbers that has no initializer as its default.
    Inputs,
    /// Every graph output of floating-point numbers.
    Outputs,
    /// The graph input of floating-point numbers with the most axes that a y depends on: the image, the embedded text.
    MainInput,
}

impl From<&str> for Wanted {
    fn from(name: &str) -> Self {
        Wanted::Named(name.to_owned())
    }
}

impl From<String> for Wanted {
    fn from(name: String) -> Self {
        Wanted::Named(name)
    }
}

impl From<&String> for Wanted {
    fn from(name: &String) -> Self {
        Wanted::Named(name.clone())
    }
}

/// A tensor that a request is about, and its name in the model.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub id: ValueId,
    pub name: String,
}

pub(super) fn ids(tensors: &[Chosen]) -> Vec<ValueId> {
    tensors.iter().map(|t| t.id).collect()
}

const NO_INPUT: &str = "--inputs finds no graph input of floating-point numbers";
const NO_OUTPUT: &str =
    "the model has no output of floating-point numbers to differentiate; name a tensor of it (--ys)";

impl Selection<'_> {
    /// The tensors that are wanted, in the order in which they are. `model` is what is loaded, `ys` are those of the
    /// request, where they are known already. That there are no weights or inputs is no error where something else is
    /// wanted, and said in `notes`.
    ///
    /// # Errors
    /// Names of no tensor, all of them in one message; nothing at all that is asked for by its kind; no one main input.
    pub(super) fn resolve(
        &self,
        what: &str,
        wanted: &[Wanted],
        ys: &[Chosen],
        model: &ModelProto,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Chosen>> {
        let named: Vec<&str> = wanted.iter().filter_map(Wanted::name).collect();
        let mut named = self.find_all(what, &named)?.into_iter();
        let (mut found, mut missing) = (Vec::with_capacity(wanted.len()), Vec::new());
        for wanted in wanted {
            let ids = match wanted {
                Wanted::Named(_) => named.next().unwrap_or_default(),
                Wanted::Parameters => self.weights(ys, model).unwrap_or_else(|none| {
                    missing.push(none);
                    vec![]
                }),
                Wanted::Inputs => self.inputs_without_default(model),
                Wanted::Outputs => self.outputs(),
                Wanted::MainInput => vec![self.main_input(ys)?],
            };
            match wanted {
                Wanted::Inputs if ids.is_empty() => missing.insert(0, NO_INPUT.to_owned()),
                Wanted::Outputs if ids.is_empty() => missing.push(self.no_output()),
                _ => {}
            }
            found.extend(ids.into_iter().map(|id| Chosen { id, name: self.name(id) }));
        }
        match &missing[..] {
            [only] if found.is_empty() && only == NO_INPUT => bail!("{only}; name tensors with --xs, or take --params"),
            [_, ..] if found.is_empty() => bail!("{}", missing.join(", and ")),
            _ => notes.append(&mut missing),
        }
        Ok(found)
    }

    /// That no output can be differentiated, and what could be: the numbers that an output was made of.
    fn no_output(&self) -> String {
        let graph = &self.loaded().graph;
        let of = |y: &ValueId| Some((self.name(*y), self.name(graph.numbers_behind(*y)?)));
        match graph.scope(Graph::MAIN).outputs.iter().find_map(of) {
            Some((y, x)) => format!("{NO_OUTPUT}: '{y}' is made of '{x}' (--ys {x})"),
            None => NO_OUTPUT.to_owned(),
        }
    }

    /// The weights, or why there are none.
    fn weights(&self, ys: &[Chosen], model: &ModelProto) -> Result<Vec<ValueId>, String> {
        let tensors = weights::tensors(model, self.loaded(), &ids(ys));
        let of_kind = tensors.iter().filter(|t| t.kind == Kind::Weight);
        let found: Vec<ValueId> = of_kind.filter_map(|t| self.by_name(&t.name)).collect();
        let names: Vec<&str> = ys.iter().map(|y| y.name.as_str()).collect();
        if found.is_empty() {
            let looked = weights::none_found(model, tensors.iter().map(|t| (t.name.as_str(), t.kind)));
            return Err(format!("--params finds no weight that {} depends on: {looked}", weights::listed(&names)));
        }
        Ok(found)
    }

    fn inputs_without_default(&self, model: &ModelProto) -> Vec<ValueId> {
        let defaults: HashSet<&str> = model.graph.iter().flat_map(|g| &g.initializer).map(|t| t.name()).collect();
        self.inputs().into_iter().filter(|&x| !defaults.contains(self.name(x).as_str())).collect()
    }

    fn main_input(&self, ys: &[Chosen]) -> Result<ValueId> {
        let inputs = self.reaching(&self.inputs(), &ids(ys));
        let axes = |&x: &ValueId| self.loaded().graph.fact(x).rank();
        let most = inputs.iter().map(axes).max().flatten();
        let largest: Vec<ValueId> = inputs.into_iter().filter(|x| axes(x) == most).collect();
        match largest[..] {
            [] => bail!("the scores depend on no input of floating-point numbers; name a tensor behind it (--xs)"),
            [x] => Ok(x),
            _ => {
                let names: Vec<String> = largest.iter().map(|&x| self.name(x)).collect();
                bail!("which input is meant: {}? Name it (--xs)", names.join(", "))
            }
        }
    }
}

impl Wanted {
    fn name(&self) -> Option<&str> {
        match self {
            Wanted::Named(name) => Some(name),
            _ => None,
        }
    }
}
