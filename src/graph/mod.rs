//! A model's graph as numbers instead of names: values and nodes, with what is known of each value.
//!
//! One arena holds the nodes of the model, those of the bodies of its control flow, and those that the backward pass
//! emits. [`Graph::infer`] finds the facts of every node's outputs from those of its inputs, so that what is known of a
//! forward tensor and of a gradient is known in the same way. Nodes are only ever appended, inputs before the nodes
//! that use them: the order of the arena is a topological order.

mod control;
pub mod dim;
mod each;
pub mod fact;
pub mod facts;
mod load;
mod operators;
mod ranks;
pub mod write;

pub use dim::{Dim, Dims, Symbol};
pub use each::{EachValue, ValueSet};
pub use fact::{Container, Fact, Scalar, Shape, Value};
pub use load::{
    Loaded, Place, Replace, Replacement, calls_functions, fact_of_type, load, load_beside, load_body, load_replacing,
};
pub use operators::{Bodies, Linear, Operators, Poles, Protocol, Traits};

use crate::error::At;
use crate::onnx::{AttributeProto, CONSTANT, canonical_domain};
use anyhow::Result;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::rc::Rc;

/// A tensor, sequence or optional of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(Number);

impl ValueId {
    /// Its number: values are counted from 0.
    pub fn number(self) -> usize {
        self.0.index()
    }
}

/// A node of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Number);

impl NodeId {
    /// Its number: nodes are counted from 0.
    pub fn number(self) -> usize {
        self.0.index()
    }
}

/// What is counted from 0; stored from 1, so that one that may be absent takes no more room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Number(NonZeroU32);

impl Number {
    fn new(index: usize) -> Self {
        Number(NonZeroU32::MIN.saturating_add(index as u32))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// A scope of a [`Graph`]: the main graph, or the body of a control-flow node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeId(u32);

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Producer {
    /// It is an input of its scope.
    Input,
    /// It is an initializer of its scope, maybe an input at the same time.
    Initializer,
    /// It is an output of a node, which one of them by number.
    Node(NodeId, usize),
}

/// A value: its name, where it has one yet, its origin, and what is known of it.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    /// The name in the model; `None` for what the pass emits.
    pub name: Option<Rc<str>>,
    /// The scope in which it is visible, with those inside.
    pub scope: ScopeId,
    /// Where it comes from.
    pub producer: Producer,
    /// What is known of it.
    pub fact: Fact,
}

/// A node: an operator applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operator.
    pub op_type: Rc<str>,
    /// Its domain, in canonical spelling: empty for the standard's.
    pub domain: Rc<str>,
    /// The inputs; `None` for an optional one that is left out.
    pub inputs: SmallVec<[Option<ValueId>; 4]>,
    /// The outputs; `None` for an optional one that is left out.
    pub outputs: SmallVec<[Option<ValueId>; 1]>,
    /// The attributes but for those that hold graphs.
    pub attributes: Rc<[AttributeProto]>,
    /// The attributes that hold graphs.
    pub bodies: Vec<(Rc<str>, ScopeId)>,
    /// The scope in which it stands.
    pub scope: ScopeId,
    /// Its name in the model; `None` for what has none and for what the pass emits.
    pub name: Option<Rc<str>>,
    /// Who wrote it.
    pub origin: Origin,
    /// Whether no gradient passes above it: what its metadata say, since no operator of the standard does.
    pub stop: bool,
}

impl Node {
    /// Whether it holds a tensor, and computes nothing.
    pub fn is_constant(&self) -> bool {
        &*self.op_type == CONSTANT && self.domain.is_empty()
    }
}

/// Who wrote a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// It is one of the model.
    #[default]
    Model,
    /// The backward pass, for the gradient of that node of the model; of none in particular for seeds and zeros.
    Backward(Option<NodeId>),
}

/// The main graph, or a body of a control-flow node.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The scope around it; `None` for the main graph.
    pub parent: Option<ScopeId>,
    /// The inputs.
    pub inputs: Vec<ValueId>,
    /// The initializers, those among them that are inputs too.
    pub initializers: Vec<ValueId>,
    /// How many of the first nodes stand for initializers: those of a body are loaded as Constants.
    pub constants: usize,
    /// The nodes, in topological order.
    pub nodes: Vec<NodeId>,
    /// The outputs.
    pub outputs: Vec<ValueId>,
}

/// What [`Graph::push`] appends.
#[derive(Clone, Debug, Default)]
pub struct NewNode {
    /// The operator.
    pub op_type: Rc<str>,
    /// Its domain, in canonical spelling.
    pub domain: Rc<str>,
    /// The inputs.
    pub inputs: SmallVec<[Option<ValueId>; 4]>,
    /// For each output its name, or that it has none; `None` for one that is left out.
    pub outputs: SmallVec<[Option<OutputName>; 1]>,
    /// The attributes but for those that hold graphs.
    pub attributes: Rc<[AttributeProto]>,
    /// The attributes that hold graphs.
    pub bodies: Vec<(Rc<str>, ScopeId)>,
    /// Its name.
    pub name: Option<Rc<str>>,
    /// Who writes it.
    pub origin: Origin,
    /// Whether no gradient passes above it.
    pub stop: bool,
}

/// The name of an output in the model; `None` for what the pass emits, which is named when it is written.
pub type OutputName = Option<Rc<str>>;

/// A map by ids. Its hash is fast because ids are counted: no file can choose keys that collide.
pub type IdMap<K, V> = FxHashMap<K, V>;

/// A set of ids; see [`IdMap`].
pub type IdSet<K> = FxHashSet<K>;

/// The arena of values, nodes and scopes.
#[derive(Debug)]
pub struct Graph {
    values: Vec<ValueInfo>,
    nodes: Vec<Node>,
    scopes: Vec<Scope>,
    /// The symbolic sizes.
    pub dims: Dims,
    /// The version of the standard's operators, which is asked for with every node.
    standard: i64,
    /// The versions of other domains.
    opsets: HashMap<Rc<str>, i64>,
    operators: Operators,
    /// What nodes choose, or leave.
    alternatives: IdSet<ValueId>,
    /// For tensors of which not even the rank is known another one that has the same shape, always the same one.
    like: IdMap<ValueId, ValueId>,
    /// Branches in which a node cannot take what it gets: no run that comes to an end takes them.
    broken: IdSet<ScopeId>,
}

/// How errors call a tensor without a name.
const UNNAMED: &str = "an intermediate tensor";

/// How a user says the shape of a tensor.
const SAID: &str = "(--shape NAME=1x64xT, or value_info in the model)";

impl Graph {
    /// The main graph.
    pub const MAIN: ScopeId = ScopeId(0);

    /// An empty main graph, whose operators are those of the given versions of domains.
    pub fn new(opsets: impl IntoIterator<Item = (Rc<str>, i64)>, operators: Operators) -> Self {
        let mut opsets: HashMap<Rc<str>, i64> =
            opsets.into_iter().map(|(domain, version)| (canonical_domain(&domain).into(), version)).collect();
        Graph {
            values: Vec::new(),
            nodes: Vec::new(),
            scopes: vec![Scope::default()],
            dims: Dims::default(),
            standard: opsets.remove("").unwrap_or(1),
            opsets,
            operators,
            alternatives: IdSet::default(),
            like: IdMap::default(),
            broken: IdSet::default(),
        }
    }

    /// The version of the standard's operators, or of another domain's; 1 where the model does not say.
    pub fn opset(&self, domain: &str) -> i64 {
        match domain {
            "" => self.standard,
            domain => self.opsets.get(domain).copied().unwrap_or(1),
        }
    }

    /// An empty graph in place of this one, which is given out.
    pub fn take(&mut self) -> Self {
        let empty = Graph::new([], self.operators.clone());
        std::mem::replace(self, empty)
    }

    /// The value.
    pub fn value(&self, id: ValueId) -> &ValueInfo {
        &self.values[id.0.index()]
    }

    /// What is known of the value.
    pub fn fact(&self, id: ValueId) -> &Fact {
        &self.value(id).fact
    }

    /// Forgets the known elements of tensors, for good: they are those of the model as it stands, and these tensors are
    /// asked how they change. A formula that was folded to what it computes has no gradient. It stays so behind the
    /// pass that asks, since formulas that are written later may be differentiated with respect to the same tensors, as
    /// those of Hessians are; types and shapes stay known.
    pub fn count_as_variable(&mut self, values: impl IntoIterator<Item = ValueId>) {
        for value in values {
            self.fact_mut(value).value = None;
        }
    }

    /// What is known of the value, to be made more precise by who knows.
    pub fn fact_mut(&mut self, id: ValueId) -> &mut Fact {
        &mut self.values[id.0.index()].fact
    }

    /// The node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0.index()]
    }

    /// The scope.
    pub fn scope(&self, id: ScopeId) -> &Scope {
        &self.scopes[id.0 as usize]
    }

    /// The node that computes the value, and as which of its outputs.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, usize)> {
        match self.value(id).producer {
            Producer::Node(node, output) => Some((node, output)),
            Producer::Input | Producer::Initializer => None,
        }
    }

    /// The nodes of all scopes, in the order in which they were appended.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// How many nodes there are, in all scopes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Puts a scope inside another one, which sees all that it has taken from around it.
    pub fn move_scope(&mut self, scope: ScopeId, parent: ScopeId) {
        self.scopes[scope.0 as usize].parent = Some(parent);
    }

    /// Opens a scope inside `parent`.
    pub fn open_scope(&mut self, parent: ScopeId) -> ScopeId {
        self.scopes.push(Scope { parent: Some(parent), ..Scope::default() });
        ScopeId(self.scopes.len() as u32 - 1)
    }

    /// Whether a value of scope `outer` can be used in scope `inner`: whether one is, or surrounds, the other.
    pub fn is_visible(&self, outer: ScopeId, inner: ScopeId) -> bool {
        std::iter::successors(Some(inner), |&s| self.scope(s).parent).any(|s| s == outer)
    }

    /// Adds an input to a scope.
    pub fn push_input(&mut self, scope: ScopeId, name: Option<Rc<str>>, fact: Fact) -> ValueId {
        let id = self.push_value(ValueInfo { name, scope, producer: Producer::Input, fact });
        self.scopes[scope.0 as usize].inputs.push(id);
        id
    }

    /// Adds an initializer to a scope.
    pub fn push_initializer(&mut self, scope: ScopeId, name: Option<Rc<str>>, fact: Fact) -> ValueId {
        let id = self.push_value(ValueInfo { name, scope, producer: Producer::Initializer, fact });
        self.scopes[scope.0 as usize].initializers.push(id);
        id
    }

    /// Says that one more of the first nodes of a scope, the body of a control-flow node, holds an initializer of it.
    pub fn note_constant(&mut self, scope: ScopeId) {
        self.scopes[scope.0 as usize].constants += 1;
    }

    /// Says what a scope's outputs are.
    pub fn set_outputs(&mut self, scope: ScopeId, outputs: Vec<ValueId>) {
        self.scopes[scope.0 as usize].outputs = outputs;
    }

    /// Says which of a scope's inputs remain, and in which order.
    pub fn set_inputs(&mut self, scope: ScopeId, inputs: Vec<ValueId>) {
        self.scopes[scope.0 as usize].inputs = inputs;
    }

    /// Drops the nodes of a scope of which none of its outputs depends, and the inputs after the first `kept` that no
    /// node uses.
    pub fn prune(&mut self, scope: ScopeId, kept: usize) {
        let mut live: IdSet<ValueId> = self.scope(scope).outputs.iter().copied().collect();
        let mut nodes = std::mem::take(&mut self.scopes[scope.0 as usize].nodes);
        nodes.reverse();
        nodes.retain(|&id| {
            let node = self.node(id);
            let needed = node.outputs.iter().flatten().any(|o| live.contains(o));
            if needed {
                live.extend(node.inputs.iter().flatten());
                live.extend(self.captures(id));
            }
            needed
        });
        nodes.reverse();
        let scope = &mut self.scopes[scope.0 as usize];
        scope.nodes = nodes;
        let mut place = 0;
        scope.inputs.retain(|input| {
            place += 1;
            place <= kept || live.contains(input)
        });
    }

    /// The facts of the outputs that a node would have.
    ///
    /// # Errors
    /// Inputs that the operator cannot take: dimensions that contradict each other, a rank that it does not have. The
    /// message says what, not where: who calls knows the node's name.
    pub fn infer(&self, new: &NewNode) -> Result<Vec<Fact>> {
        let inputs: SmallVec<[Option<&Fact>; 4]> = new.inputs.iter().map(|i| i.map(|i| self.fact(i))).collect();
        self.infer_from(new, &inputs)
    }

    /// The facts of the outputs that a node would have if no more were known of its inputs than this.
    ///
    /// # Errors
    /// As [`Graph::infer`].
    pub fn infer_from(&self, new: &NewNode, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let op = self.op(new);
        if !new.bodies.is_empty()
            && let Some(facts) = control::infer(self, new, &op, inputs)
        {
            return Ok(facts);
        }
        let own = self.operators.own_facts.as_ref().and_then(|facts| facts(&op, inputs));
        own.unwrap_or_else(|| (self.operators.facts)(&op, inputs))
    }

    /// The operator of a node, as rows are asked about it.
    fn op<'a>(&'a self, new: &'a NewNode) -> facts::Op<'a> {
        facts::Op {
            op_type: &new.op_type,
            domain: &new.domain,
            version: self.opset(&new.domain),
            attributes: &new.attributes,
            outputs: new.outputs.len(),
            dims: &self.dims,
        }
    }

    /// The ranks that those inputs of a node may have of which they are not known, one list for each way; none where
    /// they are many.
    pub fn possible_ranks(&self, node: &Node) -> Vec<Vec<(ValueId, usize)>> {
        ranks::possible(self, node)
    }

    /// Why the rank of a tensor is not known, and what helps.
    pub fn why_no_rank(&self, id: ValueId) -> String {
        let (first, node) = ranks::cause(self, id);
        let name = |id: ValueId| self.value(id).name.as_deref().map(|n| format!("'{n}'"));
        let (own, source) = (name(id), name(first));
        let cause = match (node, &source) {
            (Some(node), _) => format!("{} leaves it to the run", self.describe(node)),
            (None, Some(source)) => format!("the model does not say that of {source}"),
            (None, None) => "the model does not say it".to_owned(),
        };
        let own = own.unwrap_or_else(|| UNNAMED.to_owned());
        let source = source.unwrap_or_else(|| own.clone());
        format!("the rank of {own} is not known: {cause}; say the shape of {source} {SAID}")
    }

    /// What helps where the gradient of a node does not get the shape of its input. Formulas, and what they are made
    /// of, agree about shapes unless the model says one that its nodes do not.
    pub fn why_shapes_contradict(&self, node: Option<NodeId>) -> String {
        match node.and_then(|node| self.declared_output(node)) {
            Some(declared) => {
                format!("{declared}, which does not go with that: correct it (--shape, or value_info in the model)")
            }
            None => "please report this".to_owned(),
        }
    }

    /// The named tensor of floating-point numbers that a tensor without any was made of: the probabilities behind a map
    /// from names to them, the scores behind the place of the largest. The nearest one that a node computes.
    pub fn numbers_behind(&self, y: ValueId) -> Option<ValueId> {
        let (mut open, mut seen) = (VecDeque::from([y]), IdSet::default());
        while let Some(next) = open.pop_front() {
            let Some((node, _)) = self.producer(next).filter(|_| seen.insert(next)) else { continue };
            for &input in self.node(node).inputs.iter().flatten() {
                let fact = self.fact(input);
                if !fact.may_carry_gradient() || fact.element.is_none() {
                    open.push_back(input);
                } else if self.producer(input).is_some() && self.value(input).name.is_some() {
                    return Some(input);
                }
            }
        }
        None
    }

    /// What helps where the gradient of a node does not get the element type of its input: operators of the standard
    /// take their tensors in one type, and a model may hold a node with two.
    pub fn why_types_differ(&self, node: Option<NodeId>) -> String {
        let inputs = node.into_iter().flat_map(|node| self.node(node).inputs.iter().flatten());
        let mut types: Vec<String> =
            inputs.filter_map(|&i| self.fact(i).element).map(|element| element.name()).collect();
        types.sort_unstable();
        types.dedup();
        match types.len() {
            0 | 1 => "please report this".to_owned(),
            _ => format!("its inputs are of types {}: convert them to one (Cast)", types.join(" and ")),
        }
    }

    /// What the model or its user declares of an output of a node, where that is all that is known of its shape.
    fn declared_output(&self, id: NodeId) -> Option<String> {
        let node = self.node(id);
        let inferred = self.infer(&ranks::as_new(node)).unwrap_or_default();
        let known = |i: usize| inferred.get(i).is_some_and(|f| f.shape.is_some());
        let declared = |(i, output): (usize, &Option<ValueId>)| {
            let value = self.value((*output)?);
            let (name, shape) = (value.name.as_deref()?, value.fact.shape.as_ref()?);
            (!known(i)).then(|| format!("'{name}' is declared to be {}", self.dims.display(shape)))
        };
        node.outputs.iter().enumerate().find_map(declared)
    }

    /// Why the size of an axis of a tensor is no number, and what helps.
    pub fn why_no_size(&self, id: ValueId, axis: usize) -> String {
        let Some(shape) = &self.fact(id).shape else { return self.why_no_rank(id) };
        let own = self.value(id).name.as_deref().map_or_else(|| UNNAMED.to_owned(), |n| format!("'{n}'"));
        let shape = self.dims.display(shape);
        format!("the size of axis {axis} of {own}, which is {shape}, has to be a number; say its shape {SAID}")
    }

    /// Whether two tensors have the same shape in every run, also such of which not even the rank is known.
    pub fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        match (&self.fact(a).shape, &self.fact(b).shape) {
            (Some(a), Some(b)) => a == b,
            (None, None) => self.root(a) == self.root(b),
            _ => false,
        }
    }

    /// Notes that a tensor of which not even the rank is known has the shape of another.
    pub fn note_like(&mut self, id: ValueId, other: ValueId) {
        let root = self.root(other);
        if root != id && self.fact(id).shape.is_none() {
            self.like.entry(id).or_insert(root);
        }
    }

    fn root(&self, id: ValueId) -> ValueId {
        self.like.get(&id).copied().unwrap_or(id)
    }

    /// What is said of the operator of a node.
    pub fn traits(&self, node: &Node) -> Traits {
        self.traits_of(&node.domain, &node.op_type)
    }

    /// What is said of an operator, by its domain and name.
    pub fn traits_of(&self, domain: &str, op_type: &str) -> Traits {
        (self.operators.traits)(domain, op_type, self.opset(domain))
    }

    /// Whether what a node computes does not depend on the elements of its inputs.
    fn reads_shapes_only(&self, id: NodeId) -> bool {
        self.traits(self.node(id)).shapes_only
    }

    /// Whether the value is one of those between which a node chooses, such as a Where's: that it is not finite in some
    /// places may not matter.
    pub fn is_alternative(&self, id: ValueId) -> bool {
        self.alternatives.contains(&id)
    }

    /// Notes what a node chooses or leaves, and what that is a copy of. What is noted already is not walked again.
    fn note_alternative(&mut self, mut id: ValueId) {
        while self.alternatives.insert(id)
            && let Some((node, _)) = self.producer(id)
            && let node = self.node(node)
            && self.traits(node).keeps_all
            && let Some(&Some(source)) = node.inputs.first()
        {
            id = source;
        }
    }

    /// The branch that an If takes in every run, of those that `bodies` are; `None` where that depends on the run.
    pub fn taken(&self, condition: Option<ValueId>, bodies: &[(Rc<str>, ScopeId)]) -> Option<ScopeId> {
        control::taken(self, condition, bodies)
    }

    /// Notes a branch in which a node cannot take what it gets.
    pub fn note_broken(&mut self, branch: ScopeId) {
        self.broken.insert(branch);
    }

    /// Whether a branch holds a node that cannot take what it gets.
    pub fn is_broken(&self, branch: ScopeId) -> bool {
        self.broken.contains(&branch)
    }

    /// Whether a scope is a branch of an If that cannot be computed, or lies in one.
    pub fn is_dead(&self, scope: ScopeId) -> bool {
        let mut around = std::iter::successors(Some(scope), |&s| self.scope(s).parent);
        !self.broken.is_empty() && around.any(|s| self.is_broken(s))
    }

    /// Appends a node, the facts of whose outputs are [`Graph::infer`]red, to a scope.
    pub fn push(&mut self, scope: ScopeId, new: NewNode, facts: Vec<Fact>) -> NodeId {
        let id = NodeId(Number::new(self.nodes.len()));
        if let Some(first) = self.traits_of(&new.domain, &new.op_type).chooses {
            new.inputs.iter().skip(first).flatten().for_each(|&input| self.note_alternative(input));
        }
        let like = if facts.iter().any(|f| f.shape.is_none()) { ranks::like(self, &new) } else { vec![] };
        let mut facts = facts.into_iter();
        let outputs = new.outputs.into_iter().enumerate().map(|(i, output)| {
            let fact = facts.next().unwrap_or_default();
            output.map(|name| self.push_value(ValueInfo { name, scope, producer: Producer::Node(id, i), fact }))
        });
        let outputs: SmallVec<[Option<ValueId>; 1]> = outputs.collect();
        for (output, like) in outputs.iter().zip(like) {
            if let (&Some(output), Some(like)) = (output, like) {
                self.note_like(output, like);
            }
        }
        self.nodes.push(Node {
            op_type: new.op_type,
            domain: new.domain,
            inputs: new.inputs,
            outputs,
            attributes: new.attributes,
            bodies: new.bodies,
            scope,
            name: new.name,
            origin: new.origin,
            stop: new.stop,
        });
        self.scopes[scope.0 as usize].nodes.push(id);
        id
    }

    /// The output of a node, added to it where the model leaves it out: a mask that only the node itself knows.
    pub fn demand_output(&mut self, node: NodeId, output: usize, fact: Fact) -> ValueId {
        if let Some(Some(id)) = self.node(node).outputs.get(output) {
            return *id;
        }
        let scope = self.node(node).scope;
        let id = self.push_value(ValueInfo { name: None, scope, producer: Producer::Node(node, output), fact });
        let outputs = &mut self.nodes[node.0.index()].outputs;
        if outputs.len() <= output {
            outputs.resize(output + 1, None);
        }
        outputs[output] = Some(id);
        id
    }

    /// Makes what has been written the model's own, as if it had been loaded: the nodes from `first` on in the arena.
    /// The scope had `kept` nodes before; of the new ones in it the given ones stay, under their names.
    pub fn adopt(
        &mut self,
        scope: ScopeId,
        first: usize,
        kept: usize,
        nodes: impl IntoIterator<Item = (NodeId, Rc<str>)>,
        values: impl IntoIterator<Item = (ValueId, Rc<str>)>,
    ) {
        for node in self.nodes.iter_mut().skip(first) {
            node.origin = Origin::Model;
        }
        let stay = &mut self.scopes[scope.0 as usize].nodes;
        stay.truncate(kept);
        for (id, name) in nodes {
            self.nodes[id.0.index()].name = Some(name);
            stay.push(id);
        }
        for (value, name) in values {
            self.values[value.0.index()].name = Some(name);
        }
    }

    /// The outputs that nodes before `first` have got by [`Graph::demand_output`] and that have no name yet, among the
    /// values from `value` on.
    pub fn demanded(&self, first: usize, value: usize) -> impl Iterator<Item = (ValueId, NodeId)> {
        let numbered = self.values.iter().enumerate().skip(value);
        numbered.filter_map(move |(i, v)| match v.producer {
            Producer::Node(node, _) if v.name.is_none() && node.number() < first => {
                Some((ValueId(Number::new(i)), node))
            }
            _ => None,
        })
    }

    /// The values that have names, in all scopes.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Fact)> {
        self.values.iter().filter_map(|v| Some((v.name.as_deref()?, &v.fact)))
    }

    /// How many values there are, in all scopes.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// Every value that the bodies of a node use from outside, each once, in order of first use.
    pub fn captures(&self, node: NodeId) -> Vec<ValueId> {
        let mut found = Vec::new();
        let mut seen = IdSet::default();
        for &(_, body) in &self.node(node).bodies {
            self.collect_captures(body, body, &mut |v| {
                if seen.insert(v) {
                    found.push(v);
                }
            });
        }
        found
    }

    /// The values from which a path leads to one of `ys`, those among them.
    pub fn sources(&self, ys: &[ValueId]) -> IdSet<ValueId> {
        let mut seen: IdSet<ValueId> = ys.iter().copied().collect();
        let mut open: Vec<ValueId> = ys.to_vec();
        while let Some(value) = open.pop() {
            let Producer::Node(node, _) = self.value(value).producer else { continue };
            let inputs = self.node(node).inputs.iter().flatten().copied().chain(self.captures(node));
            open.extend(inputs.filter(|v| seen.insert(*v)));
        }
        seen
    }

    /// Calls `found` for what `scope`, which lies in `body`, uses from outside `body`. Nesting is as deep as protobuf
    /// allows.
    fn collect_captures(&self, scope: ScopeId, body: ScopeId, found: &mut impl FnMut(ValueId)) {
        let mut check = |v: ValueId| {
            if !self.is_visible(body, self.value(v).scope) {
                found(v);
            }
        };
        for &node in &self.scope(scope).nodes {
            self.node(node).inputs.iter().flatten().for_each(|&v| check(v));
        }
        self.scope(scope).outputs.iter().for_each(|&v| check(v));
        for &node in &self.scope(scope).nodes {
            for &(_, inner) in &self.node(node).bodies {
                self.collect_captures(inner, body, found);
            }
        }
    }

    /// How messages name a node: `node 'conv1' (Conv)`, or by its first output where it has no name.
    pub fn describe(&self, id: NodeId) -> String {
        self.place(id).text
    }

    /// A node for errors: by its name, or its first output's.
    pub(crate) fn place(&self, id: NodeId) -> At {
        let node = self.node(id);
        let op =
            if node.domain.is_empty() { node.op_type.to_string() } else { format!("{}.{}", node.domain, node.op_type) };
        let name = node.name.as_deref().filter(|name| !name.is_empty());
        let output = || node.outputs.iter().flatten().find_map(|&o| self.value(o).name.as_deref());
        let text = match name {
            Some(name) => format!("node '{name}' ({op})"),
            None => format!("node of '{}' ({op})", output().unwrap_or("an unnamed output")),
        };
        let node = name.or_else(output).map(str::to_owned);
        At { text, node, operator: Some(op), input: None }
    }

    fn push_value(&mut self, value: ValueInfo) -> ValueId {
        let id = ValueId(Number::new(self.values.len()));
        self.values.push(value);
        id
    }
}
