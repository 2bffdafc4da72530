//! What the integer inputs of a model count: indices into which sizes, places that must differ, values that are
//! compared with.
//!
//! Rows say which inputs of their operators are indices (`rules::properties`), and what only moves elements. An input's
//! integers are followed through those, and through sums and products with constants.

use super::edit;
use super::sizes::Sizes;
use crate::graph::{Dim, Graph, Loaded, ValueId};
use crate::onnx::{GraphProto, ModelProto, NodeProto, attribute, canonical_domain};
use crate::rules::newest;
use crate::rules::properties::{Arithmetic, Axis, Counts, Index};
use std::collections::{BTreeMap, HashMap};

/// What is known of the integers of one input.
#[derive(Clone, Debug, Default)]
pub struct Kind {
    /// They are indices into each of these sizes; `None` for one of which nothing is known.
    pub bounds: Vec<Bound>,
    /// Sizes that the integers along the last axis, one after the other, index.
    pub tuples: Vec<Option<Dim>>,
    /// Whether they name places that are written to, and the axis along which those lie.
    pub written: Option<i64>,
    /// Values that they are equal to, or not.
    pub choices: Vec<i64>,
    /// Values that they are larger or smaller than.
    pub near: Vec<i64>,
    /// Whether they are lengths, counts or numbers of trips: from one on.
    pub counts: bool,
}

/// `scale x + offset` is an index into a size; sums of several inputs share it.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// The size.
    pub size: Option<Dim>,
    /// Whether negative ones count from the end.
    pub from_end: bool,
    scale: i64,
    offset: i64,
    share: i64,
}

impl Bound {
    /// The values that x can have, once the size is known: from the first, below the second.
    pub fn range(&self, size: i64) -> (i64, i64) {
        let reach = (size / self.share.max(1)).max(1);
        match self.scale {
            ..=0 => (0, 1),
            scale => {
                let low = (-self.offset).div_euclid(scale) + i64::from((-self.offset).rem_euclid(scale) != 0);
                let high = (reach - 1 - self.offset).div_euclid(scale) + 1;
                (low.max(0), high.max(low.max(0) + 1))
            }
        }
    }
}

/// An input whose elements a tensor holds.
#[derive(Clone, Debug)]
struct Carried {
    input: String,
    scale: i64,
    offset: i64,
    share: i64,
}

/// What is known of the integer inputs.
#[derive(Default)]
pub struct Integers {
    kinds: BTreeMap<String, Kind>,
}

/// Constants of more elements are not looked into for values.
const MAX_CHOICES: usize = 256;
/// So many places that a tensor's elements come from are followed.
const MAX_CARRIED: usize = 8;

struct Walk<'a> {
    loaded: Option<&'a Loaded>,
    carried: HashMap<String, Vec<Carried>>,
    kinds: BTreeMap<String, Kind>,
}

impl Integers {
    /// Looks at all nodes, those in bodies too.
    pub fn new(model: &ModelProto, sizes: &Sizes) -> Self {
        let mut walk = Walk { loaded: sizes.loaded(), carried: HashMap::new(), kinds: BTreeMap::new() };
        if let Some(graph) = &model.graph {
            for input in &graph.input {
                let element = edit::element_type(input.r#type.as_ref());
                if element.is_some_and(|e| e.is_integer()) {
                    let name = input.name().to_owned();
                    let carried = Carried { input: name.clone(), scale: 1, offset: 0, share: 1 };
                    walk.carried.insert(name, vec![carried]);
                }
            }
            walk.graph(graph);
        }
        Integers { kinds: walk.kinds }
    }

    /// What is known of an input.
    pub fn kind(&self, input: &str) -> Option<&Kind> {
        self.kinds.get(input)
    }
}

impl Walk<'_> {
    fn graph(&mut self, graph: &GraphProto) {
        for node in &graph.node {
            self.node(node);
            node.bodies().for_each(|body| self.graph(body));
        }
    }

    fn value(&self, name: &str) -> Option<(&Graph, ValueId)> {
        let loaded = self.loaded?;
        Some((&loaded.graph, *loaded.names.get(name)?))
    }

    fn shape(&self, name: &str) -> Option<Vec<Dim>> {
        let (graph, id) = self.value(name)?;
        graph.fact(id).shape.as_ref().map(|s| s.to_vec())
    }

    fn constants(&self, name: &str) -> Option<Vec<i64>> {
        let (graph, id) = self.value(name)?;
        graph.fact(id).ints()
    }

    fn carried(&self, node: &NodeProto, i: usize) -> Vec<Carried> {
        node.input.get(i).and_then(|name| self.carried.get(name)).cloned().unwrap_or_default()
    }

    fn node(&mut self, node: &NodeProto) {
        let Some(rule) = newest(canonical_domain(node.domain()), node.op_type()) else { return };
        for index in rule.indices {
            for carried in self.carried(node, index.input) {
                self.index(node, index, carried);
            }
        }
        let mut result: Vec<Carried> = Vec::new();
        for i in rule.moved(node.input.len()) {
            result.extend(self.carried(node, i));
        }
        if result.is_empty() {
            result = self.arithmetic(node, rule.arithmetic);
        }
        result.truncate(MAX_CARRIED);
        if !result.is_empty() {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                self.carried.insert(output.clone(), result.clone());
            }
        }
    }

    /// What an operator computes of the integers of inputs, and what they are compared with.
    fn arithmetic(&mut self, node: &NodeProto, arithmetic: Arithmetic) -> Vec<Carried> {
        let (a, b) = (self.carried(node, 0), self.carried(node, 1));
        let constant = |i: usize| node.input.get(i).and_then(|name| self.constants(name));
        let single = |values: Option<Vec<i64>>| values.filter(|v| !v.is_empty());
        let largest = |values: &[i64]| values.iter().copied().max().unwrap_or(0);
        match arithmetic {
            Arithmetic::Equal | Arithmetic::Order => {
                for (carried, values) in [(a, constant(1)), (b, constant(0))] {
                    let values = values.unwrap_or_default();
                    for c in carried.into_iter().filter(|c| c.scale != 0) {
                        let compared = values.iter().take(MAX_CHOICES).map(|v| v.saturating_sub(c.offset) / c.scale);
                        let kind = self.kinds.entry(c.input).or_default();
                        let known = if arithmetic == Arithmetic::Equal { &mut kind.choices } else { &mut kind.near };
                        for value in compared {
                            if known.len() < MAX_CHOICES && !known.contains(&value) {
                                known.push(value);
                            }
                        }
                    }
                }
                vec![]
            }
            Arithmetic::Sum(_) if !a.is_empty() && !b.is_empty() => {
                let both = a.into_iter().chain(b);
                both.map(|c| Carried { share: c.share.saturating_mul(2), ..c }).collect()
            }
            Arithmetic::Sum(sign) => {
                // Where the other operand is not known, it may be as large as half of what is indexed.
                let with = |c: Carried, values: Option<Vec<i64>>| match single(values) {
                    Some(values) => Carried { offset: c.offset.saturating_add(sign * largest(&values)), ..c },
                    None => Carried { share: c.share.saturating_mul(2), ..c },
                };
                let first: Vec<_> = a.into_iter().map(|c| with(c, constant(1))).collect();
                let second = b.into_iter().filter(|_| sign == 1).map(|c| with(c, constant(0)));
                first.into_iter().chain(second).collect()
            }
            Arithmetic::Product => {
                let scaled = |c: Carried, values: Option<Vec<i64>>| {
                    let by = largest(&single(values)?);
                    Some(Carried { scale: c.scale.saturating_mul(by), offset: c.offset.saturating_mul(by), ..c })
                };
                let first: Vec<_> = a.into_iter().filter_map(|c| scaled(c, constant(1))).collect();
                let second = b.into_iter().filter_map(|c| scaled(c, constant(0)));
                first.into_iter().chain(second).collect()
            }
            Arithmetic::Within => [a, b].concat(),
            Arithmetic::None => vec![],
        }
    }

    fn index(&mut self, node: &NodeProto, index: &Index, carried: Carried) {
        let &Index { input, counts, written, from_end } = index;
        let Carried { scale, offset, share, .. } = carried;
        let from_end = from_end && (scale, offset, share) == (1, 0, 1);
        let bound = |size| Bound { size, from_end, scale, offset, share };
        let table = |i: usize| node.input.get(i).and_then(|name| self.shape(name));
        let along = |i: usize, axis: Axis| {
            let shape = table(i)?;
            shape.get(axis.of(&node.attribute, shape.len())?).copied()
        };
        let (mut found, mut tuples, mut spread) = (None, vec![], vec![]);
        match counts {
            Counts::Along(i, axis) => found = Some(bound(along(i, axis))),
            Counts::Tuples(i, attribute) => {
                let skipped = attribute::get_int(&node.attribute, attribute).unwrap_or(0).max(0) as usize;
                let sizes: Vec<Dim> = table(i).unwrap_or_default().into_iter().skip(skipped).collect();
                let last = |name: &str| self.shape(name).and_then(|s| s.last().copied());
                let (width, of_input) = (node.input.get(input).and_then(|n| last(n)), last(&carried.input));
                // The last axis of the input is that of the tuples where it is as long; else a tuple was put together
                // of parts (Unsqueeze, Concat, Transpose), and an element of the input may be any of its numbers.
                if width.is_none() || of_input.is_none() || width == of_input {
                    tuples = sizes.into_iter().map(Some).collect();
                } else {
                    let width = width.and_then(|w| usize::try_from(w.known()?).ok()).unwrap_or(sizes.len());
                    spread = sizes.into_iter().take(width).map(|size| bound(Some(size))).collect();
                }
            }
            Counts::Below(i) => {
                let depth = node.input.get(i).and_then(|name| self.constants(name));
                found = Some(bound(depth.and_then(|d| d.first().copied()).map(Dim::Known)));
            }
            Counts::Length(i, axis) => {
                found = Some(bound(along(i, axis)));
            }
            Counts::AxisOf(i) => found = Some(bound(table(i).map(|s| Dim::Known(s.len() as i64)))),
            Counts::Item(_) => found = Some(bound(Some(Dim::Known(1)))),
            Counts::Flat => found = Some(bound(None)),
            Counts::Times => (),
        }
        let axis = match counts {
            Counts::Along(_, Axis::Named(attribute, default)) => {
                attribute::get_int(&node.attribute, attribute).unwrap_or(default)
            }
            Counts::Along(_, Axis::At(axis)) => axis,
            _ => 0,
        };
        let kind = self.kinds.entry(carried.input).or_default();
        kind.bounds.extend(found.into_iter().chain(spread));
        kind.counts |= matches!(counts, Counts::Length(..) | Counts::Times);
        if kind.tuples.is_empty() {
            kind.tuples = tuples;
        }
        if written {
            kind.written = Some(axis);
        }
    }
}
