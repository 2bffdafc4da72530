//! Which weights of a model are trained.

use crate::Error;

use crate::graph::{Loaded, ValueId};
use crate::onnx::did_you_mean;
use crate::onnx::{ElementType, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::weights::{self, Grid, Kind, Product, Quantized, Source, Tensor, listed};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

/// A layer with integers for a weight: `output + scale (input · left) · right`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Beside {
    /// What goes in: floating-point numbers before they are quantized, or the numbers of rows that are looked up.
    pub input: String,
    /// What comes out, as floating-point numbers.
    pub output: String,
    /// Whether rows are looked up.
    pub lookup: bool,
}

/// A tensor of constants of floating-point numbers that can be trained.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Its name in the model.
    pub name: String,
    /// Where it lies.
    pub source: Source,
    /// Its value, in real numbers.
    pub value: TensorProto,
    /// The first matrix product or convolution that takes it.
    pub product: Option<Product>,
    /// Its rounding to integers, where it lies in the file as such.
    pub grid: Option<Grid>,
    /// The layer that has it for a weight, with rows and columns, where it holds integers beside which a product is
    /// trained.
    pub beside: Option<(Beside, [i64; 2])>,
}

/// What stands beside the integers of a name; see [`super::lora::beside`].
pub type FindBeside<'a> = dyn Fn(&str) -> Option<(Beside, [i64; 2], ElementType)> + 'a;

/// What becomes of a constant tensor of the model, for the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The element type.
    pub r#type: String,
    /// The sizes.
    pub shape: Vec<i64>,
    /// What it is.
    pub kind: Kind,
    /// Whether it is trained.
    pub trained: bool,
    /// Why it is what it is, and why it is trained or not where that does not follow.
    pub why: String,
}

/// What is trained, as it is asked for: by default all weights.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Choice {
    /// Patterns of names, in the place of all weights; with `+` in front in addition to them, with `-` in front without
    /// them.
    pub train: Vec<String>,
    /// Patterns of names that are not trained; with `-` in front of names that are none of them.
    pub freeze: Vec<String>,
    /// How many layers, counted from the last.
    pub last: Option<usize>,
}

setters!(Choice { train: Vec<String>, freeze: Vec<String>, last: Option<usize> });

/// A pattern, and what it does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Plain,
    Plus,
    Minus,
}

/// What a choice leaves.
pub struct Chosen {
    /// What is trained.
    pub weights: Vec<Weight>,
    /// What becomes of every constant tensor.
    pub entries: Vec<Entry>,
}

impl Choice {
    /// The tensors that are trained, and what becomes of the others. `beside` says of integers which layer has them.
    ///
    /// # Errors
    /// Patterns that match nothing; nothing is left; integers that cannot be read.
    pub(crate) fn select(&self, model: &ModelProto, tensors: Vec<Tensor<'_>>, find: &FindBeside<'_>) -> Result<Chosen> {
        let (named, sign) = self.asked(&tensors)?;
        let layers: BTreeSet<usize> = tensors.iter().filter(|t| t.kind == Kind::Weight).map(|t| t.layer).collect();
        let last = self.last.map(|n| layers.into_iter().take(n).collect::<BTreeSet<_>>());
        let constants: HashMap<&str, Cow<'_, TensorProto>> =
            model.graph.iter().flat_map(GraphProto::constants).collect();
        let nodes = model.graph.iter().flat_map(|g| &g.node);
        let nodes: HashMap<&str, _> = nodes.filter_map(|n| Some((n.output.first()?.as_str(), n))).collect();
        let mut chosen = Chosen { weights: Vec::new(), entries: Vec::new() };
        for tensor in &tensors {
            // Integers of two bits are neither read nor written here.
            let whole = tensor.source != Source::Dequantized || tensor.value.element_type().bits() >= Some(4);
            let beside = if tensor.kind == Kind::Integers { find(&tensor.name) } else { None };
            let can = beside.is_some() || (tensor.element.is_float() && tensor.kind != Kind::Inside && whole);
            let frozen = self.frozen(&tensor.name);
            let late = last.as_ref().is_none_or(|last| last.contains(&tensor.layer));
            let mut wanted = can && !named && (tensor.kind == Kind::Weight || beside.is_some());
            for (pattern, how) in &sign {
                if can && means(pattern, tensor, &tensors) {
                    wanted = *how != Sign::Minus;
                }
            }
            let trained = wanted && !frozen && late;
            let but = match (wanted, frozen, late) {
                _ if trained && beside.is_some() => "; they stay, and a product is trained beside them",
                _ if trained && tensor.kind != Kind::Weight => "; trained because --train names it",
                (true, true, _) => "; frozen by --freeze",
                (true, false, false) => "; not in the last layers",
                (false, ..) if !whole => "; integers of less than four bits, which are not trained",
                (false, ..) if tensor.kind == Kind::Weight => "; not named by --train",
                _ => "",
            };
            chosen.entries.push(Entry {
                name: tensor.name.clone(),
                r#type: tensor.element.name(),
                shape: tensor.value.dims.clone(),
                kind: tensor.kind,
                trained,
                why: format!("{}{but}", tensor.why),
            });
            if trained {
                let node = nodes.get(tensor.name.as_str()).filter(|_| tensor.source == Source::Dequantized);
                let quantized = node.and_then(|n| Some((*n, Quantized::of(n, &constants)?)));
                chosen.weights.push(weight(tensor, beside, quantized)?);
            }
        }
        ensure!(!chosen.weights.is_empty(), "{}", nothing(model, &chosen.entries));
        Ok(chosen)
    }

    /// Whether `--train` replaces the default, and its patterns with what they do.
    fn asked(&self, tensors: &[Tensor<'_>]) -> Result<(bool, Vec<(String, Sign)>)> {
        let mut signs = Vec::new();
        for (option, patterns) in [("--train", &self.train), ("--freeze", &self.freeze)] {
            for text in patterns {
                let (pattern, sign) = signed(text, tensors);
                if !tensors.iter().any(|t| means(pattern, t, tensors)) {
                    let hint = did_you_mean(pattern, tensors.iter().map(|t| t.name.as_str()));
                    let what = format_args!("{option} '{text}' matches no weight that the loss depends on{hint}");
                    return Err(Error::name(what).with_tensor(text).into());
                }
                if option == "--train" {
                    signs.push((pattern.to_owned(), sign));
                }
            }
        }
        Ok((signs.iter().any(|(_, sign)| *sign == Sign::Plain), signs))
    }

    fn frozen(&self, name: &str) -> bool {
        let mut frozen = false;
        for text in &self.freeze {
            let (pattern, keeps) = match text.strip_prefix('-') {
                Some(pattern) if text != name => (pattern, true),
                _ => (text.strip_prefix('+').filter(|_| text != name).unwrap_or(text), false),
            };
            if is_match(pattern, name) {
                frozen = !keeps;
            }
        }
        frozen
    }
}

/// A pattern without the sign in front of it. What is a name with that sign is a name.
fn signed<'t>(text: &'t str, tensors: &[Tensor<'_>]) -> (&'t str, Sign) {
    if tensors.iter().any(|t| t.name == text) {
        return (text, Sign::Plain);
    }
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(pattern), _) => (pattern, Sign::Plus),
        (_, Some(pattern)) => (pattern, Sign::Minus),
        _ => (text, Sign::Plain),
    }
}

/// Whether a pattern means a tensor. One with wildcards means weights, and constants where no weight matches.
fn means(pattern: &str, tensor: &Tensor<'_>, tensors: &[Tensor<'_>]) -> bool {
    if pattern == tensor.name {
        return true;
    }
    let weight = |t: &Tensor<'_>| t.kind == Kind::Weight && is_match(pattern, &t.name);
    is_match(pattern, &tensor.name) && (weight(tensor) || !tensors.iter().any(weight))
}

/// Why nothing is trained.
fn nothing(model: &ModelProto, entries: &[Entry]) -> String {
    let weights: Vec<&str> = entries.iter().filter(|e| e.kind == Kind::Weight).map(|e| e.name.as_str()).collect();
    if !weights.is_empty() {
        return format!(
            "nothing is left to train: of the weights that the loss depends on, {}, none is chosen",
            listed(&weights)
        );
    }
    let looked = weights::none_found(model, entries.iter().map(|e| (e.name.as_str(), e.kind)));
    let named = entries.iter().any(|e| matches!(e.kind, Kind::Constant | Kind::Statistic));
    let advice = if named { "; --train NAME trains a constant nevertheless" } else { "" };
    format!("there is nothing to train: {looked}{advice}")
}

/// The constant tensors of a model, and what they are.
pub fn tensors<'m>(model: &'m ModelProto, loaded: &Loaded, ys: &[ValueId]) -> Vec<Tensor<'m>> {
    weights::tensors(model, loaded, ys)
}

/// Whether a name is, or matches, a pattern of `*` and `?`.
pub fn is_match(pattern: &str, name: &str) -> bool {
    pattern == name || crate::backward::matches(pattern, name)
}

/// A weight that is trained: its numbers, or those that its integers stand for; of integers beside which a product is
/// trained only the type of what comes out of the layer.
fn weight(
    tensor: &Tensor<'_>,
    beside: Option<(Beside, [i64; 2], ElementType)>,
    quantized: Option<(&NodeProto, Quantized<'_>)>,
) -> Result<Weight> {
    let (name, source, product) = (tensor.name.clone(), tensor.source.clone(), tensor.product.clone());
    if let Some((beside, shape, element)) = beside {
        let value = TensorProto::from_raw(element, &[0], Vec::new());
        return Ok(Weight { name, source, value, product: None, grid: None, beside: Some((beside, shape)) });
    }
    let (value, grid) = match quantized {
        Some((node, q)) => (q.real().with_context(|| format!("'{name}'"))?, Some(q.grid(node))),
        None => (tensor.value.clone().into_owned(), None),
    };
    Ok(Weight { name, source, value, product, grid, beside: None })
}
