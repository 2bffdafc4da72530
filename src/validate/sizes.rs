//! Sizes for the symbolic dimensions of a model's inputs: those that it can run with.
//!
//! What is inferred of the model's tensors says which sizes have to be equal (a product contracts them) and which are
//! too small (a window does not fit, and some tensor would have a negative size).

use super::{Options, edit};
use crate::graph::facts::opposite;
use crate::graph::{Bodies, Dim, Dims, Graph, Loaded, NodeId, Shape};
use crate::onnx::ModelProto;
use crate::onnx::proto::tensor_shape_proto::dimension::Value::DimParam;
use crate::record::Record;
use crate::rules::{self, Slot};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Which sizes symbols get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The first symbol's size; usually that is the batch.
    pub first: i64,
    /// The second symbol's.
    pub next: i64,
    /// Whether every symbol after the second has a size of its own: that tells axes apart.
    pub distinct: bool,
}

/// The sizes of all symbols from those of the first of each class.
type Spread<'s> = dyn Fn(&BTreeMap<String, i64>) -> BTreeMap<String, i64> + 's;

/// Larger sizes are not tried where windows do not fit.
const LARGEST: i64 = 1 << 17;
/// So many times sizes that are too small grow.
const GROWTH: usize = 64;

/// What is known of the sizes of a model.
pub struct Sizes {
    /// The symbols of the inputs, in order.
    symbols: Vec<String>,
    /// Sizes that are given.
    fixed: BTreeMap<String, i64>,
    /// What is inferred of the model; `None` where it contradicts itself.
    loaded: Option<Loaded>,
    /// Sizes that have to be equal.
    equal: Vec<(Dim, Dim)>,
    /// Sizes of tensors, each once.
    sizes: Vec<Dim>,
}

impl Sizes {
    /// Looks at a model whose inputs name their sizes.
    pub fn new(model: &ModelProto, record: &Record, options: &Options) -> Self {
        let mut fixed = options.dims.clone();
        for (symbol, size) in sizes_of_seeds(model, record) {
            fixed.entry(symbol).or_insert(size);
        }
        let (mut symbols, mut seen) = (Vec::new(), HashSet::new());
        for input in edit::free_inputs(model) {
            // What is given binds its symbols.
            let given = options.inputs.get(input.name());
            for (i, dim) in edit::declared(input).into_iter().flatten().enumerate() {
                let Some(DimParam(symbol)) = &dim.value else { continue };
                if let Some(&size) = given.and_then(|t| t.dims.get(i)) {
                    fixed.entry(symbol.clone()).or_insert(size);
                }
                if seen.insert(symbol) {
                    symbols.push(symbol.clone());
                }
            }
        }
        let loaded = rules::load(model).ok();
        let graph = loaded.as_ref().map(|l| &l.graph);
        let equal = graph.map(equalities).unwrap_or_default();
        let sizes = graph.map(sizes).unwrap_or_default();
        Sizes { symbols, fixed, loaded, equal, sizes }
    }

    /// What is inferred of the model.
    pub fn loaded(&self) -> Option<&Loaded> {
        self.loaded.as_ref()
    }

    /// Whether there are sizes to choose.
    pub fn are_free(&self) -> bool {
        self.symbols.iter().any(|s| !self.fixed.contains_key(s))
    }

    /// How many elements the tensors of the model have together, as far as their shapes are known.
    pub fn elements(&self, bound: &BTreeMap<String, i64>) -> usize {
        let Some(graph) = self.loaded.as_ref().map(|l| &l.graph) else { return 0 };
        let size = |&d: &Dim| self.evaluate(d, bound).and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
        let count = |shape: &Shape| shape.iter().map(size).fold(1, usize::saturating_mul);
        let nodes = computed(graph).into_iter().map(|n| graph.node(n));
        let shapes = nodes.flat_map(|n| n.outputs.iter().flatten()).filter_map(|&v| graph.fact(v).shape.as_ref());
        shapes.map(count).fold(0, usize::saturating_add)
    }

    /// The number that a size is, once the symbols have theirs.
    pub fn evaluate(&self, dim: Dim, bound: &BTreeMap<String, i64>) -> Option<i64> {
        self.dims()?.evaluate(dim, &|name| bound.get(name).copied())
    }

    /// The sizes of all symbols of the inputs.
    pub fn bind(&self, scale: Scale) -> BTreeMap<String, i64> {
        let same = self.classes();
        let class = |symbol: &str| same.get(symbol).cloned().unwrap_or_else(|| symbol.to_owned());
        let mut sizes: BTreeMap<String, i64> = BTreeMap::new();
        // A size that is given holds for all that have to be equal to it.
        for (symbol, &size) in &self.fixed {
            sizes.entry(class(symbol)).or_insert(size);
        }
        let given: BTreeSet<String> = sizes.keys().cloned().collect();
        let mut count = 0;
        for symbol in &self.symbols {
            sizes.entry(class(symbol)).or_insert_with(|| {
                count += 1;
                match count - 1 {
                    0 => scale.first,
                    n if scale.distinct => scale.next + n - 1,
                    _ => scale.next,
                }
            });
        }
        let spread = |sizes: &BTreeMap<String, i64>| -> BTreeMap<String, i64> {
            let mut all: BTreeMap<String, i64> =
                self.symbols.iter().filter_map(|s| Some((s.clone(), *sizes.get(&class(s))?))).collect();
            all.extend(self.fixed.clone());
            all
        };
        if let Some(dims) = self.dims() {
            self.settle(dims, &mut sizes, &given, &class, &spread);
            self.grow(&mut sizes, &given, &spread);
            self.settle(dims, &mut sizes, &given, &class, &spread);
        }
        spread(&sizes)
    }

    fn dims(&self) -> Option<&Dims> {
        self.loaded.as_ref().map(|l| &l.graph.dims)
    }

    /// For each symbol that has to be equal to another one the first of those.
    fn classes(&self) -> HashMap<String, String> {
        let Some(dims) = self.dims() else { return HashMap::new() };
        let mut first: HashMap<String, String> = HashMap::new();
        let root = |first: &mut HashMap<String, String>, name: String| {
            let (mut name, mut passed) = (name, Vec::new());
            while let Some(next) = first.get(&name).filter(|n| **n != name) {
                let next = next.clone();
                passed.push(std::mem::replace(&mut name, next));
            }
            // Who asks again is there at once.
            passed.into_iter().for_each(|other| drop(first.insert(other, name.clone())));
            name
        };
        for &(a, b) in &self.equal {
            if let (Some(a), Some(b)) = (dims.name(a), dims.name(b)) {
                let (a, b) = (root(&mut first, a), root(&mut first, b));
                if a != b {
                    first.insert(b, a);
                }
            }
        }
        self.symbols.iter().map(|s| (s.clone(), root(&mut first, s.clone()))).collect()
    }

    /// A symbol that has to be equal to a sum or a product of others gets their value.
    fn settle(
        &self,
        dims: &Dims,
        sizes: &mut BTreeMap<String, i64>,
        given: &BTreeSet<String>,
        class: &dyn Fn(&str) -> String,
        spread: &Spread,
    ) {
        let mut bound = spread(sizes);
        for _ in 0..4 {
            for &(a, b) in &self.equal {
                let both = (self.evaluate(a, &bound), self.evaluate(b, &bound));
                if both.0.is_some() && both.0 == both.1 {
                    continue;
                }
                if self.holds_with_one(a, b, sizes, given, spread) {
                    bound = spread(sizes);
                    continue;
                }
                for (symbol, other) in [(a, b), (b, a)] {
                    let name = dims.name(symbol).map(|n| class(&n)).filter(|n| !given.contains(n));
                    let size = self.evaluate(other, &bound).filter(|&n| n > 0);
                    if let (Some(name), Some(size), None) = (name, size, dims.name(other)) {
                        sizes.insert(name, size);
                        bound = spread(sizes);
                        break;
                    }
                }
            }
        }
    }

    /// Whether a size that has to be equal to a multiple of itself is so now: what it is multiplied with is 1.
    fn holds_with_one(
        &self,
        a: Dim,
        b: Dim,
        sizes: &mut BTreeMap<String, i64>,
        given: &BTreeSet<String>,
        spread: &Spread,
    ) -> bool {
        let both = |sizes: &BTreeMap<String, i64>| {
            let bound = spread(sizes);
            Some((self.evaluate(a, &bound)?, self.evaluate(b, &bound)?))
        };
        let holds = |sizes: &BTreeMap<String, i64>| both(sizes).is_some_and(|(a, b)| a == b);
        // One of the two sizes is made a multiple of the other.
        let Some((small, large)) = both(sizes).filter(|(a, b)| a != b && *a > 0 && *b > 0) else { return false };
        if small.max(large) % small.min(large) != 0 {
            return false;
        }
        for name in sizes.keys().filter(|n| !given.contains(*n)).cloned().collect::<Vec<_>>() {
            let mut one = sizes.clone();
            one.insert(name, 1);
            let grown: BTreeMap<String, i64> =
                one.iter().map(|(n, &s)| (n.clone(), if s > 1 { s + 1 } else { s })).collect();
            if holds(&one) && holds(&grown) {
                *sizes = one;
                return true;
            }
        }
        false
    }

    /// Makes sizes larger until no tensor has a size below one, or it is clear that it does not help.
    fn grow(&self, sizes: &mut BTreeMap<String, i64>, given: &BTreeSet<String>, spread: &Spread) {
        let mut hopeless = BTreeSet::new();
        for _ in 0..GROWTH {
            let bound = spread(sizes);
            let small = (self.sizes.iter().enumerate())
                .find(|(i, d)| !hopeless.contains(i) && self.evaluate(**d, &bound).is_some_and(|n| n < 1));
            let Some((i, &dim)) = small else { return };
            let before = self.evaluate(dim, &bound);
            let mut grown = sizes.clone();
            for name in sizes.keys().filter(|n| !given.contains(*n)) {
                let mut larger = sizes.clone();
                larger.entry(name.clone()).and_modify(|n| *n = *n * 2 + 64);
                if self.evaluate(dim, &spread(&larger)) > before
                    && let Some(size) = grown.get_mut(name).filter(|n| **n < LARGEST)
                {
                    *size += *size / 2 + 1;
                }
            }
            if grown == *sizes {
                hopeless.insert(i);
            }
            *sizes = grown;
        }
    }
}

/// The symbols of ys whose seeds are constants, with the sizes that those have.
fn sizes_of_seeds(model: &ModelProto, record: &Record) -> Vec<(String, i64)> {
    let Some(graph) = &model.graph else { return vec![] };
    let constants: HashMap<&str, _> = graph.constants().collect();
    let outputs: HashMap<&str, _> = graph.output.iter().map(|o| (o.name(), o)).collect();
    let mut sizes = Vec::new();
    for seed in &record.seeds {
        let dims = seed.seed.as_deref().and_then(|s| constants.get(s)).map_or(&[][..], |seed| &seed.dims);
        let declared = outputs.get(seed.y.as_str()).and_then(|y| edit::declared(y)).unwrap_or_default();
        for (dim, &size) in declared.iter().zip(dims) {
            if let Some(DimParam(symbol)) = &dim.value {
                sizes.push((symbol.clone(), size));
            }
        }
    }
    sizes
}

/// The nodes of the main graph and of the bodies in it, but for branches that no run takes.
fn computed(graph: &Graph) -> Vec<NodeId> {
    let (mut found, mut scopes) = (Vec::new(), vec![Graph::MAIN]);
    while let Some(scope) = scopes.pop() {
        for &id in &graph.scope(scope).nodes {
            found.push(id);
            let node = graph.node(id);
            let taken = match graph.traits(node).bodies {
                Bodies::Branches => graph.taken(node.inputs.first().copied().flatten(), &node.bodies),
                Bodies::None | Bodies::Protocol(_) => None,
            };
            let bodies = node.bodies.iter().map(|&(_, body)| body);
            scopes.extend(bodies.filter(|&b| !graph.is_broken(b) && taken.is_none_or(|taken| taken == b)));
        }
    }
    found
}

/// The sizes of the tensors that depend on symbols, each once.
fn sizes(graph: &Graph) -> Vec<Dim> {
    let nodes = computed(graph);
    let outputs = nodes.iter().flat_map(|&n| graph.node(n).outputs.iter().flatten());
    let mut seen = BTreeSet::new();
    let sizes = outputs.filter_map(|&v| graph.fact(v).shape.clone()).flat_map(|s| s.to_vec());
    sizes.filter(|d| matches!(d, Dim::Symbol(symbol) if seen.insert(*symbol))).collect()
}

/// Sizes that operators take for equal.
fn equalities(graph: &Graph) -> Vec<(Dim, Dim)> {
    let mut equal = Vec::new();
    for node in computed(graph) {
        equal_in(graph, node, &mut equal);
    }
    equal.retain(|(a, b)| a != b && (a.known().is_none() || b.known().is_none()));
    equal
}

fn equal_in(graph: &Graph, id: NodeId, equal: &mut Vec<(Dim, Dim)>) {
    let node = graph.node(id);
    let shape = |i: usize| graph.fact(node.inputs.get(i).copied().flatten()?).shape.clone();
    let Some(rule) = rules::row(graph, node) else { return };
    let shapes: Vec<Option<Shape>> = (0..node.inputs.len()).map(shape).collect();
    let shapes: Vec<Option<&[Dim]>> = shapes.iter().map(Option::as_deref).collect();
    let broadcasts = |s: &Slot| matches!(s, Slot::Binary(_) | Slot::Broadcast(_) | Slot::EachBroadcast(_));
    if let Some(pairs) = rule.equal {
        equal.extend(pairs(&node.attributes, &shapes));
    } else if rule.slots.iter().any(broadcasts) {
        let known: Vec<&[Dim]> = shapes.into_iter().flatten().collect();
        equal.extend(known.windows(2).flat_map(|pair| opposite(pair[0], pair[1])));
    }
}
