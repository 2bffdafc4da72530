//! Floating-point inputs that a model only compares with numbers of its own: limits, thresholds, rates. They decide
//! what is computed, and random numbers of a size that is none of theirs decide it all in one way.

use super::edit;
use crate::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto, canonical_domain};
use crate::rules::newest;
use crate::rules::properties::Arithmetic;
use std::collections::HashMap;

/// Constants of more elements are not looked into.
const MAX_ELEMENTS: usize = 1 << 16;

/// By input, in their order, the least and the largest number that it is compared with.
#[derive(Default)]
pub struct Thresholds {
    ranges: Vec<(String, (f64, f64))>,
}

struct Walk<'a> {
    /// The numbers of constants, from the least to the largest.
    constants: HashMap<String, (f64, f64)>,
    /// For each tensor that holds elements of one input, and of nothing else, that input.
    carried: HashMap<&'a str, &'a str>,
    /// What is found of each input; `None` where it is used in another way, too.
    found: HashMap<&'a str, Option<(f64, f64)>>,
}

impl Thresholds {
    /// Looks at all nodes, those in bodies too.
    pub fn new(model: &ModelProto) -> Self {
        let Some(graph) = &model.graph else { return Thresholds::default() };
        let is_float = |i: &&ValueInfoProto| edit::element_type(i.r#type.as_ref()).is_some_and(|e| e.is_float());
        let inputs: Vec<&str> = edit::free_inputs(model).filter(is_float).map(|i| i.name()).collect();
        if inputs.is_empty() {
            return Thresholds::default();
        }
        let carried = inputs.iter().map(|&name| (name, name)).collect();
        let mut walk = Walk { constants: HashMap::new(), carried, found: HashMap::new() };
        walk.graph(graph);
        let range = |name: &str| Some((name.to_owned(), walk.found.get(name).copied().flatten()?));
        Thresholds { ranges: inputs.into_iter().filter_map(range).collect() }
    }

    /// Whether an input is one.
    pub fn has(&self, input: &str) -> bool {
        self.ranges.iter().any(|(name, _)| name == input)
    }

    /// Numbers around those that an input is compared with. Of several such inputs the first is below all of them at
    /// one turn and the last above, so that whatever lies between the two is taken; then each is a little above the one
    /// before it; then it is below; then nothing is between.
    pub fn range(&self, input: &str, turn: u64) -> Option<(f64, f64)> {
        let i = self.ranges.iter().position(|(name, _)| name == input)?;
        let (_, (low, high)) = self.ranges.get(i)?;
        let margin = (0.1 * (high - low)).max(0.1 * low.abs().max(high.abs())).max(0.1);
        let (below, above) = ((low - margin, low - 0.1 * margin), (high + 0.1 * margin, high + margin));
        let count = self.ranges.len();
        let place = match turn % 4 {
            0 | 1 => i,
            _ => count - 1 - i,
        };
        Some(match (place, turn % 4) {
            (_, 1) if count == 1 => below,
            (_, 2) if count == 1 => above,
            (0, 0 | 3) if count > 1 => below,
            (_, 0 | 3) if count > 1 && place + 1 == count => above,
            _ => {
                let step = (above.1 - below.0) / count as f64;
                (below.0 + step * (place as f64 + 0.1), below.0 + step * (place as f64 + 0.9))
            }
        })
    }
}

impl<'a> Walk<'a> {
    fn graph(&mut self, graph: &'a GraphProto) {
        for (name, tensor) in graph.constants() {
            let few = tensor.element_count().is_some_and(|n| n <= MAX_ELEMENTS);
            let Some(values) =
                tensor.floats().ok().filter(|v| few && tensor.element_type().is_float() && !v.is_empty())
            else {
                continue;
            };
            if values.iter().all(|v| v.is_finite()) {
                let (least, largest) = (f64::INFINITY, f64::NEG_INFINITY);
                let range = values.iter().fold((least, largest), |(low, high), &v| (v.min(low), v.max(high)));
                self.constants.insert(name.to_owned(), range);
            }
        }
        for node in &graph.node {
            self.node(node);
            node.bodies().for_each(|body| self.graph(body));
        }
        graph.output.iter().for_each(|output| self.spoil(output.name()));
    }

    fn node(&mut self, node: &'a NodeProto) {
        let rule = newest(canonical_domain(node.domain()), node.op_type());
        let carried = |i: usize| node.input.get(i).and_then(|name| self.carried.get(name.as_str())).copied();
        let (moves, compares) = (
            rule.is_some_and(|r| r.keeps_all() && r.moved(node.input.len()) == (0..1)),
            rule.is_some_and(|r| matches!(r.arithmetic, Arithmetic::Order | Arithmetic::Equal)),
        );
        if let (true, Some(input)) = (moves, carried(0)) {
            self.carried.extend(node.output.first().map(|output| (output.as_str(), input)));
            return;
        }
        let constant = |i: usize| node.input.get(i).and_then(|name| self.constants.get(name)).copied();
        let compared = [(carried(0), constant(1)), (carried(1), constant(0))];
        if let (true, Some((input, range))) =
            (compares, compared.into_iter().find_map(|(input, range)| Some((input?, range?))))
        {
            let (low, high) = range;
            let known = self.found.entry(input).or_insert(Some(range));
            *known = known.map(|(least, largest)| (low.min(least), high.max(largest)));
            return;
        }
        node.input.iter().for_each(|name| self.spoil(name));
    }

    /// A tensor is used in another way than to be compared with constants.
    fn spoil(&mut self, name: &str) {
        if let Some(input) = self.carried.get(name) {
            self.found.insert(input, None);
        }
    }
}
