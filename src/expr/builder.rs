//! The graph under construction: one node for each distinct computation, errors kept until somebody asks.

use super::Expr;
use super::zero::Zero;
use crate::graph::{
    Dims, Fact, Graph, IdMap, IdSet, NewNode, NodeId, Origin, Producer, Scalar, ScopeId, Traits, ValueId,
};
use crate::onnx::{AttributeProto, ElementType, TensorProto};
use anyhow::{Error, Result, anyhow};
use prost::Message;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;
use std::cell::{Cell, OnceCell, Ref, RefCell, RefMut};
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::rc::Rc;

/// Results of constant folding are written into the graph up to this many elements: shapes, axes, scales.
const MAX_FOLDED: usize = 64;

/// Nodes are written for this opset and later ones: in earlier ones operators broadcast by attributes, and no other
/// way.
const OLDEST: i64 = 7;

/// The attributes of a node, and their number.
type Numbered = (usize, Rc<[AttributeProto]>);

/// Appends nodes to a graph.
pub struct Builder {
    graph: RefCell<Graph>,
    /// By a hash of what they compute the nodes that do; what they are in the graph says whether two compute the same.
    nodes: RefCell<IdMap<u64, SmallVec<[NodeId; 2]>>>,
    /// By how they are encoded the attributes of nodes, numbered: those that are equal are one.
    attributes: RefCell<HashMap<Vec<u8>, Numbered>>,
    /// What nodes without attributes have; its number is 0.
    no_attributes: Rc<[AttributeProto]>,
    strings: RefCell<FxHashMap<&'static str, Rc<str>>>,
    /// The standard's domain, which nearly every node has.
    empty: Rc<str>,
    error: RefCell<Option<Error>>,
    /// The input of the node at hand that the recorded error is about.
    blamed: Cell<Option<usize>>,
    /// Values in which single elements may be infinite although all that the model computes is finite.
    pub(super) wild: RefCell<IdSet<ValueId>>,
    /// Gradients that are zero where these values are not above 0.
    pub(super) shut: RefCell<IdMap<ValueId, ValueId>>,
    /// How many nodes of the model take each value, where somebody has asked.
    pub(super) takers: OnceCell<Vec<u32>>,
    /// Values at which somebody asks for a gradient, or stops it.
    leaves: RefCell<IdSet<ValueId>>,
    pub(super) scope: Cell<ScopeId>,
    pub(super) forward: Cell<Option<NodeId>>,
    /// Whether what is written is a copy of a branch that no run takes, whose nodes need not fit.
    pub(super) in_broken: Cell<bool>,
    /// What operators return once an error is recorded.
    nothing: ValueId,
    /// A scope that no node is in, for what is not written.
    pub(super) orphan: ScopeId,
    pub(super) zeros: RefCell<IdMap<ValueId, Zero>>,
    /// What is computed already of outputs of nodes that are written to be differentiated.
    pub(super) computed: RefCell<IdMap<ValueId, ValueId>>,
}

impl Builder {
    /// A builder that appends to the main graph.
    pub(crate) fn new(mut graph: Graph) -> Self {
        let orphan = graph.open_scope(Graph::MAIN);
        let nothing = graph.push_input(orphan, None, Fact::default());
        Builder {
            graph: RefCell::new(graph),
            nodes: RefCell::default(),
            attributes: RefCell::default(),
            no_attributes: [].into(),
            strings: RefCell::default(),
            empty: "".into(),
            error: RefCell::default(),
            blamed: Cell::new(None),
            wild: RefCell::default(),
            shut: RefCell::default(),
            takers: OnceCell::new(),
            leaves: RefCell::default(),
            scope: Cell::new(Graph::MAIN),
            forward: Cell::new(None),
            in_broken: Cell::new(false),
            nothing,
            orphan,
            zeros: RefCell::default(),
            computed: RefCell::default(),
        }
    }

    /// The graph, to look at. The borrow ends before anything is appended.
    pub(crate) fn graph(&self) -> Ref<'_, Graph> {
        self.graph.borrow()
    }

    /// The graph, to change. The borrow ends before anything else is asked.
    pub(crate) fn graph_mut(&self) -> RefMut<'_, Graph> {
        self.graph.borrow_mut()
    }

    /// The finished graph.
    pub(crate) fn into_graph(self) -> Graph {
        self.graph.into_inner()
    }

    /// Applies `f` to the symbolic sizes.
    pub fn dims<T>(&self, f: impl FnOnce(&Dims) -> T) -> T {
        f(&self.graph().dims)
    }

    /// The value as an expression.
    pub(crate) fn expr(&self, id: ValueId) -> Expr<'_> {
        Expr { builder: self, id }
    }

    pub(in crate::expr) fn fact(&self, id: ValueId) -> Fact {
        self.graph().fact(id).clone()
    }

    /// The version of the standard's operators that the model is written in.
    pub(in crate::expr) fn opset(&self) -> i64 {
        self.graph().opset("")
    }

    /// The scope that nodes are appended to.
    pub(crate) fn scope(&self) -> ScopeId {
        self.scope.get()
    }

    /// Says which node's gradient the nodes to come help to compute; returns the one that was said before.
    pub(crate) fn set_forward(&self, forward: Option<NodeId>) -> Option<NodeId> {
        self.forward.replace(forward)
    }

    /// Notes values at which somebody asks for a gradient, or stops it: what is computed from them must go on to be.
    pub fn note_leaves(&self, values: impl IntoIterator<Item = ValueId>) {
        self.leaves.borrow_mut().extend(values);
    }

    /// Whether somebody asks for the gradient at a value, or stops it there.
    pub(super) fn is_leaf(&self, value: ValueId) -> bool {
        self.leaves.borrow().contains(&value)
    }

    /// Records what cannot be built. The first error counts: what comes after follows from it.
    pub fn fail(&self, error: Error) -> Expr<'_> {
        self.error.borrow_mut().get_or_insert(error);
        self.expr(self.nothing)
    }

    /// What helps where the shapes do not go together that the gradient of the node at hand has to do with.
    pub(crate) fn why_shapes_contradict(&self) -> String {
        self.graph().why_shapes_contradict(self.forward_node())
    }

    /// The node whose gradient is being written.
    pub(crate) fn forward_node(&self) -> Option<NodeId> {
        self.forward.get()
    }

    /// What could not be built since the last time that somebody asked.
    pub(crate) fn take_error(&self) -> Option<Error> {
        Some(self.take_blame()?.0)
    }

    /// As [`Builder::take_error`], with the input of the node at hand that it was for, where that is known.
    pub(crate) fn take_blame(&self) -> Option<(Error, Option<usize>)> {
        let input = self.blamed.take();
        Some((self.error.take()?, input))
    }

    /// What is built for an input of the node at hand: an error that is recorded meanwhile is about that input.
    pub(crate) fn for_input<'g>(&'g self, input: usize, formula: impl FnOnce() -> Expr<'g>) -> Expr<'g> {
        let failed = self.error.borrow().is_some();
        let result = formula();
        if !failed && self.error.borrow().is_some() {
            self.blamed.set(Some(input));
        }
        result
    }

    /// Takes the value of a question inside a formula; where it has none, records why.
    pub(crate) fn attempt<'g>(&'g self, formula: impl FnOnce() -> Result<Expr<'g>>) -> Expr<'g> {
        formula().unwrap_or_else(|error| self.fail(error))
    }

    /// The node's only output.
    pub(in crate::expr) fn emit<'g>(
        &'g self,
        op: &'static str,
        inputs: &[Option<Expr<'g>>],
        attributes: Vec<AttributeProto>,
    ) -> Expr<'g> {
        self.emit_many(op, inputs, attributes, Vec::new(), 1).into_iter().next().unwrap_or(self.expr(self.nothing))
    }

    /// The outputs of one node: of an earlier one that computes the same, of a constant where all is known, or of a new
    /// one.
    pub(in crate::expr) fn emit_many<'g>(
        &'g self,
        op: &'static str,
        inputs: &[Option<Expr<'g>>],
        attributes: Vec<AttributeProto>,
        bodies: Vec<(&'static str, ScopeId)>,
        outputs: usize,
    ) -> Vec<Expr<'g>> {
        self.emit_of("", op, inputs, attributes, bodies, outputs)
    }

    /// As [`Builder::emit_many`], of an operator of any domain.
    pub(in crate::expr) fn emit_of<'g>(
        &'g self,
        domain: &'static str,
        op: &'static str,
        inputs: &[Option<Expr<'g>>],
        attributes: Vec<AttributeProto>,
        bodies: Vec<(&'static str, ScopeId)>,
        outputs: usize,
    ) -> Vec<Expr<'g>> {
        if self.error.borrow().is_some() {
            return vec![self.expr(self.nothing); outputs];
        }
        if self.opset() < OLDEST {
            return vec![self.too_old("a gradient", OLDEST); outputs];
        }
        if !inputs.iter().flatten().all(|e| std::ptr::eq(e.builder(), self)) {
            return vec![self.fail(anyhow!("tensors of two graphs meet in {op}")); outputs];
        }
        if inputs.iter().flatten().any(|e| e.is_zero()) {
            return self.with_zeros(op, inputs, &attributes, outputs).unwrap_or_else(|| {
                let written: Vec<_> = inputs.iter().map(|e| e.map(|e| self.written(e))).collect();
                self.emit_of(domain, op, &written, attributes, bodies, outputs)
            });
        }
        let traits = self.graph().traits_of(domain, op);
        let (number, attributes) = self.shared(attributes);
        let new = self.described((op, domain), inputs, attributes, bodies, outputs);
        // What a formula rounds stays rounded, also for who counts the model's own rounding as the identity.
        self.computed(op, NewNode { stop: traits.rounds, ..new }, number, &traits)
    }

    /// A node as it is to be written.
    fn described(
        &self,
        (op, domain): (&'static str, &'static str),
        inputs: &[Option<Expr<'_>>],
        attributes: Rc<[AttributeProto]>,
        bodies: Vec<(&'static str, ScopeId)>,
        outputs: usize,
    ) -> NewNode {
        let mut inputs: SmallVec<[Option<ValueId>; 4]> = inputs.iter().map(|e| e.map(|e| e.id)).collect();
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        NewNode {
            op_type: self.string(op),
            domain: self.string(domain),
            inputs,
            outputs: (0..outputs).map(|_| Some(None)).collect(),
            attributes,
            bodies: bodies.into_iter().map(|(name, scope)| (self.string(name), scope)).collect(),
            name: None,
            origin: Origin::Backward(self.forward.get()),
            stop: false,
        }
    }

    /// The outputs of a node: of one that computes the same, where there is one, a number, where its value is known,
    /// else of a new one. `attributes` is the number of its attributes.
    fn computed<'g>(&'g self, op: &'static str, new: NewNode, attributes: usize, traits: &Traits) -> Vec<Expr<'g>> {
        let outputs = new.outputs.len();
        let hash = new.bodies.is_empty().then(|| FxBuildHasher.hash_one((op, &new.inputs, attributes, outputs)));
        let known = hash.and_then(|hash| self.same(hash, &new));
        if let Some(known) = known
            && self.graph().is_visible(self.graph().node(known).scope, self.scope())
        {
            let mut found = self.outputs(known);
            found.truncate(outputs);
            return found;
        }
        let facts = match self.infer(&new) {
            Ok(facts) => facts,
            Err(error) => {
                let error = error.context(format!("the gradient's own {op} cannot be built"));
                return vec![self.fail(error); outputs];
            }
        };
        if !self.writes_constant(op, &new.inputs)
            && let [fact] = facts.as_slice()
            && let Some(folded) = self.fold(fact)
        {
            return vec![folded];
        }
        let scope = self.scope();
        let node = self.graph_mut().push(scope, new, facts);
        self.note_wild(node, traits);
        if let Some(hash) = hash {
            let mut nodes = self.nodes.borrow_mut();
            let list = nodes.entry(hash).or_default();
            // Where two nodes compute the same, the later one is visible where the earlier one is not.
            if known.is_some() {
                list.retain(|id| Some(*id) != known);
            }
            list.push(node);
        }
        self.outputs(node)
    }

    /// The node that has been written for what a new one computes.
    fn same(&self, hash: u64, new: &NewNode) -> Option<NodeId> {
        let (nodes, graph) = (self.nodes.borrow(), self.graph());
        let same = |id: &NodeId| {
            let node = graph.node(*id);
            (&node.op_type, &node.domain, &node.inputs) == (&new.op_type, &new.domain, &new.inputs)
                && Rc::ptr_eq(&node.attributes, &new.attributes)
                && node.outputs.len() >= new.outputs.len()
        };
        nodes.get(&hash)?.iter().copied().find(same)
    }

    /// The attributes, of which equal ones are kept once and have one number.
    fn shared(&self, attributes: Vec<AttributeProto>) -> Numbered {
        if attributes.is_empty() {
            return (0, self.no_attributes.clone());
        }
        let mut encoded = Vec::with_capacity(attributes.iter().map(|a| a.encoded_len() + 2).sum());
        for attribute in &attributes {
            // Encoding into a vector, which grows, does not fail.
            let _ = attribute.encode_length_delimited(&mut encoded);
        }
        let mut known = self.attributes.borrow_mut();
        let next = known.len() + 1;
        known.entry(encoded).or_insert_with(|| (next, attributes.into())).clone()
    }

    /// The facts of a node's outputs. Values in them follow from literals and from shapes alone.
    fn infer(&self, new: &NewNode) -> Result<Vec<Fact>> {
        let graph = self.graph();
        let mut facts = graph.infer(new)?;
        if facts.iter().any(|f| f.value.is_some()) && !new.inputs.iter().flatten().all(|&i| self.is_literal(i)) {
            let hide = |i: ValueId| match self.is_literal(i) {
                true => graph.fact(i).clone(),
                false => Fact { value: None, ..graph.fact(i).clone() },
            };
            let inputs: Vec<Option<Fact>> = new.inputs.iter().map(|i| i.map(hide)).collect();
            let inputs: Vec<Option<&Fact>> = inputs.iter().map(Option::as_ref).collect();
            for (fact, literal) in facts.iter_mut().zip(graph.infer_from(new, &inputs)?) {
                fact.value = literal.value;
            }
        }
        Ok(facts)
    }

    /// Appends a node of its own, whatever others compute.
    pub(super) fn append(&self, new: NewNode) -> NodeId {
        let scope = self.scope();
        let facts = self.graph().infer(&new);
        let facts = facts.unwrap_or_else(|error| {
            if !self.in_broken.get() {
                self.fail(error);
            }
            Vec::new()
        });
        let traits = self.graph().traits_of(&new.domain, &new.op_type);
        let node = self.graph_mut().push(scope, new, facts);
        self.note_wild(node, &traits);
        node
    }

    fn outputs(&self, node: NodeId) -> Vec<Expr<'_>> {
        let outputs = self.graph().node(node).outputs.clone();
        outputs.into_iter().map(|o| self.expr(o.unwrap_or(self.nothing))).collect()
    }

    /// Whether a value was written for the gradient of the node that is differentiated now.
    pub(super) fn is_of_this_node(&self, id: ValueId) -> bool {
        let graph = self.graph();
        let current = self.forward.get().map(|node| Origin::Backward(Some(node)));
        graph.producer(id).is_some_and(|(node, _)| current == Some(graph.node(node).origin))
    }

    /// Whether what is known of a value's elements may be written into the graph in place of the value.
    ///
    /// Weights may not: whoever differentiates again, or trains, means the tensors and not the numbers that they hold
    /// today. Integers (shapes, axes, indices) and what the backward pass has written itself may, and so may single
    /// numbers that the model holds in a Constant node.
    pub(super) fn is_literal(&self, id: ValueId) -> bool {
        let graph = self.graph();
        let value = graph.value(id);
        if !value.fact.element.is_some_and(ElementType::is_float) {
            return true;
        }
        match value.producer {
            Producer::Input | Producer::Initializer => false,
            Producer::Node(node, _) => {
                let node = graph.node(node);
                node.origin != Origin::Model || (node.is_constant() && value.fact.element_count() == Some(1))
            }
        }
    }

    /// A constant in place of a small tensor of which everything is known.
    fn fold(&self, fact: &Fact) -> Option<Expr<'_>> {
        let element = fact.element?;
        let dims = fact.known_shape()?;
        let elements = fact.elements().filter(|e| e.len() <= MAX_FOLDED)?;
        if element.is_float() {
            Some(self.tensor(TensorProto::from_floats(element, &dims, &fact.floats()?)))
        } else if element.bits()? >= 8 && (element.is_integer() || element == ElementType::Bool) {
            let int = |s: &Scalar| match s {
                Scalar::Int(d) => d.known(),
                Scalar::Float(_) => None,
            };
            let ints: Option<Vec<i64>> = elements.iter().map(int).collect();
            Some(self.whole(element, &dims, &ints?))
        } else {
            None
        }
    }

    pub(super) fn string(&self, text: &'static str) -> Rc<str> {
        if text.is_empty() {
            return self.empty.clone();
        }
        self.strings.borrow_mut().entry(text).or_insert_with(|| text.into()).clone()
    }
}
