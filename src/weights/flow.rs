//! What flows where: which values depend on data, which are made of constants alone, and as what a constant would be
//! used if it stood in the place of a value.
//!
//! Each is one walk over the nodes, forwards or backwards, so that all of it takes time in proportion to the graph.

use super::filters;
use crate::graph::{EachValue, Graph, IdMap, IdSet, Linear, Node, NodeId, ScopeId, ValueId, ValueSet};
use crate::onnx::{ElementType, TensorProto};
use crate::rules::properties::{Apart, Gives};
use crate::rules::{self, Moves, Rule, Slot};

/// What a value depends on, beside constants and shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Nothing else: it is a constant, a size, a position.
    #[default]
    Nothing,
    /// Integers that the graph is given: of words, of positions, of kinds.
    Integers,
    /// Floating-point data that the graph is given, or what a weight has made of integers.
    Signal,
}

/// What a node does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It takes it where the operator takes weights.
    Place,
    /// As [`Use::Place`], and it is the matrix or kernel of a bank of fixed filters, or their bias of zeros.
    Filter,
    /// It looks it up: a table of rows.
    Table,
    /// As [`Use::Table`], and what is found multiplies something, element by element, and does nothing else.
    ScalingTable,
    /// It joins it to data: a class token.
    Token,
    /// It adds it to data.
    Sum,
    /// It multiplies data by it, element by element.
    Scale,
    /// It adds it to the one number that a layer gives out.
    OneSum,
    /// It multiplies the one number that a layer gives out by it.
    OneScale,
    /// It adds or multiplies an input of the graph, before the first layer.
    Input,
    /// As [`Use::Input`], adding.
    InputSum,
    /// It scales or shifts what a layer with a bias gives out, on the way to an output of the graph and nowhere else.
    Rescale,
    /// Nothing but positions meets it.
    Positions,
    /// It is a statistic of a normalization.
    Statistic,
    /// It does something else with it.
    Other,
}

const USES: usize = Use::Other as usize + 1;

/// A node and the number of one of its inputs.
pub type Operand = (NodeId, usize);

/// Every way in which a value is used, of each the first operand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Role([Option<Operand>; USES]);

impl Role {
    /// The first operand that is used so.
    pub fn used(&self, how: Use) -> Option<Operand> {
        self.0.get(how as usize).copied().flatten()
    }

    /// Whether it is used in one of these ways, and in no other.
    fn only(&self, ways: &[Use]) -> bool {
        let among = |k: usize| ways.iter().any(|w| *w as usize == k);
        self.0.iter().any(Option::is_some) && self.0.iter().enumerate().all(|(k, used)| used.is_none() || among(k))
    }

    /// The first operand of all.
    pub fn first(&self) -> Option<Operand> {
        self.0.iter().flatten().min().copied()
    }

    fn note(&mut self, how: Use, operand: Operand) {
        let slot = &mut self.0[how as usize];
        *slot = Some(slot.map_or(operand, |known| known.min(operand)));
    }

    fn merge(&mut self, other: &Role) {
        for (own, new) in self.0.iter_mut().zip(other.0) {
            *own = match (*own, new) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }
}

/// What a layer with one number for each place gives out, on its way through operators that move, add or scale it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Narrow {
    /// It has no bias yet.
    Bare,
    Biased,
}

/// What a layer gives out, on its way through operators that move, shift or scale it by constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Bare,
    Biased,
    /// It has a bias, and a scale behind that.
    Scaled,
}

/// What is known of the values of a graph while its nodes are gone through backwards.
#[derive(Default)]
struct Behind {
    /// Outputs of the graph.
    leaving: ValueSet,
    /// Values that nodes take, and those that are taken a second time.
    used: ValueSet,
    again: ValueSet,
    /// Values that something takes which is no way to a sine or cosine.
    aperiodic: ValueSet,
    /// Values that something takes which does not square them.
    unsquared: ValueSet,
}

impl Behind {
    /// Whether every output of a node is taken, and by nothing that puts it into `other`.
    fn all_but(&self, node: &Node, other: &ValueSet) -> bool {
        node.outputs.iter().flatten().all(|o| self.used.contains(o) && !other.contains(o))
    }

    /// Whether a node is a sine or cosine, or on the way to such and nowhere else.
    fn is_periodic(&self, row: Option<&Rule>, node: &Node) -> bool {
        let passes =
            |r: &Rule| r.moves != Moves::Nothing || matches!(r.slots.first(), Some(Slot::Binary(_))) || r.layer;
        row.is_some_and(|r| r.periodic || (passes(r) && self.all_but(node, &self.aperiodic)))
    }

    /// Whether a node squares what it takes, or moves it to where it is squared.
    fn is_squared(&self, row: Option<&Rule>, node: &Node) -> bool {
        let moves = |r: &Rule| r.moves != Moves::Nothing && self.all_but(node, &self.unsquared);
        row.is_some_and(|r| raises(node, r.squares) || moves(r))
    }

    /// Whether a node moves, shifts or scales what an output of the graph is made of and nothing else; `closing` are
    /// the values that are known to be that.
    fn closes(&self, row: Option<&Rule>, node: &Node, closing: &ValueSet) -> bool {
        let closed = |o: &ValueId| match self.used.contains(o) {
            true => closing.contains(o) && !self.again.contains(o) && !self.leaving.contains(o),
            false => self.leaving.contains(o),
        };
        node.outputs.len() == 1
            && node.outputs.iter().flatten().all(closed)
            && row.is_some_and(|r| matches!(r.moves, Moves::InOrder | Moves::Transposed) || Flow::pairs(r))
    }
}

/// What is known of all values of a graph.
pub struct Flow<'a> {
    graph: &'a Graph,
    /// The nodes of all scopes, in topological order.
    nodes: Vec<NodeId>,
    /// The rows of their operators, by the number of the node.
    rows: Vec<Option<&'static Rule>>,
    /// The node in whose body a scope is.
    owners: IdMap<ScopeId, NodeId>,
    /// The tensors of constants.
    constants: IdMap<ValueId, &'a TensorProto>,
    /// Values that are made of constants by moving elements.
    held: ValueSet,
    /// Of these the constant whose elements they hold, where it is another value.
    origins: EachValue<ValueId>,
    /// Layers whose matrix or kernel is a bank of fixed filters, as its numbers say, and what they are.
    filters: IdMap<NodeId, &'static str>,
    /// Values of which functions that weights are written as make what is used.
    parameters: ValueSet,
    /// Values that go into a softmax.
    scores: ValueSet,
    /// What a softmax gives out, on its way through operators that move it or scale it.
    chances: ValueSet,
    /// Values that end in sines and cosines, whatever comes between.
    periodic: ValueSet,
    /// Values that are squared, and nothing else, whatever moves their elements before that.
    squared: ValueSet,
    /// Values of which an output of the graph is made by moving, shifting and scaling by constants, and nothing else.
    closing: ValueSet,
    stages: EachValue<Stage>,
    /// Values that depend on inputs of the graph, and on no weight: on banks of filters at most, whose result is
    /// squared. Whether they do that.
    unlearned: EachValue<bool>,
    /// Values from which a path leads to a layer.
    before_layers: ValueSet,
    reach: EachValue<Reach>,
    /// Inputs of the graph, moved, shifted and scaled by constants.
    raw: ValueSet,
    narrow: EachValue<Narrow>,
    roles: EachValue<Role>,
    /// How many layers lie behind a value, on the longest path.
    depth: EachValue<usize>,
}

impl<'a> Flow<'a> {
    /// Looks at a graph, of which `constants` are the tensors that are constant: initializers, and what stands for
    /// them. `inner` are those in bodies.
    pub fn new(graph: &'a Graph, constants: IdMap<ValueId, &'a TensorProto>, inner: &[ValueId]) -> Self {
        let (mut nodes, mut owners) = (Vec::new(), IdMap::default());
        let mut open = vec![Graph::MAIN];
        while let Some(scope) = open.pop() {
            for &id in &graph.scope(scope).nodes {
                nodes.push(id);
                for &(_, body) in &graph.node(id).bodies {
                    owners.insert(body, id);
                    open.push(body);
                }
            }
        }
        nodes.sort_unstable();
        let mut rows = vec![None; graph.node_count()];
        for &id in &nodes {
            rows[id.number()] = rules::row(graph, graph.node(id));
        }
        let mut flow = Flow {
            graph,
            nodes,
            rows,
            owners,
            held: constants.keys().chain(inner).copied().collect(),
            constants,
            origins: EachValue::default(),
            filters: IdMap::default(),
            parameters: ValueSet::default(),
            scores: ValueSet::default(),
            chances: ValueSet::default(),
            periodic: ValueSet::default(),
            squared: ValueSet::default(),
            closing: ValueSet::default(),
            stages: EachValue::default(),
            unlearned: EachValue::default(),
            before_layers: ValueSet::default(),
            reach: EachValue::default(),
            raw: ValueSet::default(),
            narrow: EachValue::default(),
            roles: EachValue::default(),
            depth: EachValue::default(),
        };
        flow.find_held();
        flow.look_behind();
        flow.look_before();
        flow.find_roles();
        flow
    }

    /// As what a value is used, behind all operators that only move its elements.
    pub fn role(&self, value: ValueId) -> Role {
        self.roles.get(&value).copied().unwrap_or_default()
    }

    /// The node that scales, element by element and by constants, what a normalization with this operand gives out,
    /// where there is one: then the normalization's own scale and bias are ones and zeros. So groups are normalized as
    /// instances.
    pub fn scaled_behind(&self, (node, _): Operand) -> Option<Operand> {
        self.row(node).filter(|r| r.weights == [1, 2] && !r.layer)?;
        let node = self.graph.node(node);
        let (scale, input) = self.role(node.outputs.first().copied().flatten()?).used(Use::Positions)?;
        let scales = self.row(scale).is_some_and(|r| r.scales() && Self::pairs(r));
        let other = self.graph.node(scale).inputs.get(1 - input.min(1)).copied().flatten()?;
        (scales && self.held.contains(&other)).then_some((scale, input))
    }

    /// Whether what an operand meets depends on nothing learned, or nothing learned lies behind: there stands what cuts
    /// a signal into frames or puts it together again.
    pub fn is_at_an_end(&self, (node, input): Operand) -> bool {
        let node = self.graph.node(node);
        let other = node.inputs.get(1 - input.min(1)).copied().flatten();
        other.is_some_and(|v| self.unlearned.contains_key(&v)) || !self.leads_to_a_layer(node)
    }

    /// Whether no layer takes what becomes of an operand.
    pub fn is_at_the_end(&self, (node, _): Operand) -> bool {
        !self.leads_to_a_layer(self.graph.node(node))
    }

    fn leads_to_a_layer(&self, node: &Node) -> bool {
        node.outputs.iter().flatten().any(|o| self.before_layers.contains(o))
    }

    /// Whether an operand multiplies chances, what a softmax gives out.
    pub fn is_of_chances(&self, (node, input): Operand) -> bool {
        let other = self.graph.node(node).inputs.get(1 - input.min(1)).copied().flatten();
        other.is_some_and(|v| self.chances.contains(&v))
    }

    /// Whether what a table is looked up by is computed of floating-point data: what a model has chosen.
    pub fn is_chosen(&self, (node, _): Operand) -> bool {
        let mut indices = self.graph.node(node).inputs.iter().flatten().skip(1);
        indices.any(|v| self.reach_of(*v) == Reach::Signal)
    }

    /// Of one number that scales, the one that is added to the result; of one that is added, the one that scales
    /// before: both are constants with an axis.
    pub fn affine(&self, (id, input): Operand) -> Option<&'a TensorProto> {
        let node = self.graph.node(id);
        let row = self.row(id).filter(|r| Self::pairs(r))?;
        let (pair, at) = match row.scales() {
            true => self.role(node.outputs.first().copied().flatten()?).used(Use::Positions)?,
            false => {
                let scaled = node.inputs.get(1 - input.min(1)).copied().flatten()?;
                let (scale, _) = self.graph.producer(scaled)?;
                let other = self.graph.node(scale).inputs.iter().flatten().find(|v| !self.held.contains(v))?;
                (scale, self.graph.node(scale).inputs.iter().position(|v| *v == Some(*other))?)
            }
        };
        let other = self.row(pair).filter(|r| Self::pairs(r) && r.scales() != row.scales());
        let number = self.graph.node(pair).inputs.get(1 - at.min(1)).copied().flatten().filter(|_| other.is_some())?;
        self.tensor(number).filter(|t| t.element_count() == Some(1) && !t.dims.is_empty())
    }

    /// Whether what an operand multiplies is a deviation, e.g. exp(s / 2), and the product is added to a mean, where a
    /// layer gives out both s and the mean, or two layers of one input do: then it is noise.
    pub fn is_noise(&self, (id, input): Operand) -> bool {
        let found = || {
            let node = self.graph.node(id);
            let positive = self.back_to(node.inputs.get(1 - input.min(1)).copied().flatten()?, |r| {
                r.parametrizes && r.linear == Linear::Never
            })?;
            let first = self.back_to(self.graph.node(positive).inputs.first().copied().flatten()?, |r| r.layer)?;
            let product = node.outputs.first().copied().flatten()?;
            let (sum, at) = self.role(product).used(Use::Sum).or(self.role(product).used(Use::OneSum))?;
            let mean = self.graph.node(sum).inputs.get(1 - at.min(1)).copied().flatten()?;
            let second = self.back_to(mean, |r| r.layer)?;
            let given = |layer: NodeId| self.graph.node(layer).inputs.first().copied().flatten();
            Some(first == second || given(first) == given(second))
        };
        found() == Some(true)
    }

    /// The node of such an operator from which a value comes, through operators that move, shift or scale it by
    /// constants, or take it element by element; a few of them at most.
    fn back_to(&self, mut value: ValueId, is_it: impl Fn(&Rule) -> bool) -> Option<NodeId> {
        /// No formula between two layers has more.
        const MOST: usize = 12;
        for _ in 0..MOST {
            let (id, _) = self.graph.producer(value)?;
            let (node, row) = (self.graph.node(id), self.row(id)?);
            if is_it(row) {
                return Some(id);
            }
            let alone = || node.inputs.iter().skip(1).flatten().all(|v| self.held.contains(v));
            let clipped = || node.inputs.first().copied().flatten().filter(|_| !row.layer && alone());
            value = self.source(Some(row), node).or_else(clipped)?;
        }
        None
    }

    /// Whether what is used of a value is what a function makes of it that weights are written as.
    pub fn is_parameter(&self, value: ValueId) -> bool {
        self.parameters.contains(&value)
    }

    /// Whether what an operand is added to goes into a softmax: it is a mask of scores, or a bias of theirs.
    pub fn is_of_scores(&self, (node, _): Operand) -> bool {
        self.graph.node(node).outputs.iter().flatten().any(|o| self.scores.contains(o))
    }

    /// Whether an operand is what a layer multiplies with its weight, which is constant, too.
    pub fn is_data(&self, (node, input): Operand) -> bool {
        let operands = &self.graph.node(node).inputs;
        let other = operands.get(1).copied().flatten();
        input == 0 && self.row(node).is_some_and(|r| r.layer) && other.is_some_and(|v| self.held.contains(&v))
    }

    /// The node that adds positions, a constant of several axes, to what a node joins.
    pub fn positions_behind(&self, (node, _): Operand) -> Option<Operand> {
        let joined = self.graph.node(node).outputs.first().copied().flatten()?;
        let (sum, input) = self.role(joined).used(Use::Positions)?;
        let adds = self.row(sum).is_some_and(|r| Self::pairs(r) && !r.scales());
        let added = self.graph.node(sum).inputs.get(1 - input.min(1)).copied().flatten()?;
        let shape = self.graph.fact(added).shape.clone()?;
        let wide = shape.iter().filter(|d| d.known() != Some(1)).count() > 1;
        (adds && wide && self.held.contains(&added)).then_some((sum, input))
    }

    /// Whether what a layer computes of an input of the graph is squared, and nothing learned lies before: a spectrum,
    /// if another layer takes it.
    pub fn is_spectrum(&self, (node, _): Operand) -> bool {
        let mut outputs = self.graph.node(node).outputs.iter().flatten();
        let squared = self.is_before_learning((node, 0)) && outputs.all(|o| self.squared.contains(o));
        squared && self.layer((node, 0)) > 0
    }

    /// Whether a layer takes what depends on an input of the graph and on nothing learned.
    pub fn is_before_learning(&self, (node, _): Operand) -> bool {
        let mut data = self.graph.node(node).inputs.iter().flatten().filter(|v| !self.held.contains(v));
        data.next().is_some_and(|v| self.unlearned.contains_key(v)) && data.next().is_none()
    }

    /// What the fixed filters of a layer are, as their numbers say.
    pub fn filters(&self, (node, _): Operand) -> Option<&'static str> {
        self.filters.get(&node).copied()
    }

    /// The number of layers, counted from the end, in which an operand is: 0 in the last one.
    pub fn layer(&self, (node, _): Operand) -> usize {
        self.depth_behind(self.graph.node(node))
    }

    /// The constant whose elements a value holds, the first of several; the value itself where it is none of these.
    fn origin(&self, value: ValueId) -> ValueId {
        self.origins.get(&value).copied().unwrap_or(value)
    }

    /// The tensor of a constant, or of what moves its elements.
    fn tensor(&self, value: ValueId) -> Option<&'a TensorProto> {
        self.constants.get(&self.origin(value)).copied()
    }

    fn row(&self, id: NodeId) -> Option<&'static Rule> {
        self.rows[id.number()]
    }

    /// The numbers of the inputs whose elements the first output holds.
    fn moved(row: Option<&Rule>, node: &Node) -> std::ops::Range<usize> {
        row.map_or(0..0, |r| r.moved(node.inputs.len()))
    }

    fn find_held(&mut self) {
        for &id in &self.nodes {
            let node = self.graph.node(id);
            let moved = Self::moved(self.row(id), node);
            let whole = self.row(id).is_some_and(|r| r.parametrizes);
            let sources = if whole { &node.inputs[..] } else { node.inputs.get(moved).unwrap_or_default() };
            if !sources.is_empty() && sources.iter().flatten().all(|v| self.held.contains(v)) {
                self.held.extend(node.outputs.iter().flatten());
                if let Some(first) = sources.iter().flatten().next() {
                    let origin = self.origin(*first);
                    node.outputs.iter().flatten().for_each(|o| self.origins.insert(*o, origin));
                }
            }
        }
    }

    /// Whether a node is a layer: an operator that has weights, with one of them, or with all as attributes.
    fn is_layer(&self, row: Option<&Rule>, node: &Node) -> bool {
        let held = |&i: &usize| node.inputs.get(i).copied().flatten().is_some_and(|v| self.held.contains(&v));
        row.is_some_and(|r| r.layer && (r.weights.is_empty() || r.weights.iter().any(held)))
    }

    /// Whether a row adds or multiplies two operands of equal rank, element by element, of which either may be a
    /// weight.
    fn pairs(row: &Rule) -> bool {
        !row.layer && row.weights == [0, 1]
    }

    fn depth_behind(&self, node: &Node) -> usize {
        let depth = |o: &ValueId| self.depth.get(o).copied().unwrap_or(0);
        node.outputs.iter().flatten().map(depth).max().unwrap_or(0)
    }

    /// For each node with bodies, how many layers lie in them.
    fn layers_inside(&self) -> IdMap<NodeId, usize> {
        let mut inside: IdMap<NodeId, usize> = IdMap::default();
        for &id in &self.nodes {
            let node = self.graph.node(id);
            if self.is_layer(self.row(id), node) {
                let owner = |&scope: &ScopeId| self.graph.scope(scope).parent;
                let around = std::iter::successors(Some(node.scope), owner);
                around.filter_map(|s| self.owners.get(&s)).for_each(|o| *inside.entry(*o).or_default() += 1);
            }
        }
        inside
    }

    /// From the end to the beginning: what lies behind each value.
    fn look_behind(&mut self) {
        let inside = self.layers_inside();
        let leaving: ValueSet = self.graph.scope(Graph::MAIN).outputs.iter().copied().collect();
        let mut behind =
            Behind { aperiodic: leaving.clone(), unsquared: leaving.clone(), leaving, ..Behind::default() };
        for id in self.nodes.clone().into_iter().rev() {
            let node = self.graph.node(id);
            let row = self.row(id);
            let depth = self.depth_behind(node);
            // What a loop begins with runs through its layers.
            let layers = usize::from(self.is_layer(row, node)) + inside.get(&id).copied().unwrap_or(0);
            let leads = layers > 0 || node.outputs.iter().flatten().any(|o| self.before_layers.contains(o));
            let ends = behind.is_periodic(row, node);
            let squares = behind.is_squared(row, node);
            let closes = behind.closes(row, node, &self.closing);
            for &(_, body) in &node.bodies {
                for &output in &self.graph.scope(body).outputs {
                    let known = self.depth.or_default(output);
                    *known = depth.max(*known);
                    behind.aperiodic.insert(output);
                    behind.unsquared.insert(output);
                    if leads {
                        self.before_layers.insert(output);
                    }
                }
            }
            if row.is_some_and(|r| matches!(r.gives, Gives::AlongAxis | Gives::FromAxis)) {
                self.scores.extend(node.inputs.first().copied().flatten());
            }
            let captured = self.graph.captures(id);
            let direct = node.inputs.len();
            for (k, &input) in node.inputs.iter().flatten().chain(&captured).enumerate() {
                // What a body uses from outside is counted where the body uses it.
                if k < direct {
                    let known = self.depth.or_default(input);
                    *known = (depth + layers).max(*known);
                }
                if !behind.used.insert(input) {
                    behind.again.insert(input);
                }
                for (is_so, set) in [
                    (closes, &mut self.closing),
                    (!squares, &mut behind.unsquared),
                    (leads, &mut self.before_layers),
                    (!ends, &mut behind.aperiodic),
                ] {
                    if is_so {
                        set.insert(input);
                    }
                }
            }
        }
        let Behind { leaving, used, again, aperiodic, unsquared } = behind;
        self.squared = used.clone().without(&unsquared);
        self.closing = std::mem::take(&mut self.closing).without(&again).without(&leaving);
        self.periodic = used.without(&aperiodic);
    }

    /// From the beginning to the end: what each value depends on.
    fn look_before(&mut self) {
        let scope = self.graph.scope(Graph::MAIN);
        for &input in scope.inputs.iter().filter(|&v| !self.held.contains(v)) {
            let fact = self.graph.fact(input);
            let float = fact.element.is_none_or(ElementType::is_float);
            self.reach.insert(input, if float { Reach::Signal } else { Reach::Integers });
            self.raw.insert(input);
            if float {
                self.unlearned.insert(input, false);
            }
            if fact.shape.as_ref().and_then(|s| s.last()?.known()) == Some(1) {
                self.narrow.insert(input, Narrow::Bare);
            }
        }
        let mut entered: IdSet<ScopeId> = IdSet::default();
        for id in self.nodes.clone() {
            let node = self.graph.node(id);
            if node.scope != Graph::MAIN && entered.insert(node.scope) {
                self.enter(node.scope);
            }
            self.look_at(id);
        }
    }

    /// What a body is given depends on what its node is given.
    fn enter(&mut self, scope: ScopeId) {
        let Some(&owner) = self.owners.get(&scope) else { return };
        let owner = self.graph.node(owner);
        let given = owner.inputs.iter().flatten().map(|v| self.reach_of(*v)).max().unwrap_or_default();
        for &input in &self.graph.scope(scope).inputs {
            let float = self.graph.fact(input).element.is_none_or(ElementType::is_float);
            self.reach.insert(input, if float { given } else { given.min(Reach::Integers) });
        }
    }

    fn reach_of(&self, value: ValueId) -> Reach {
        self.reach.get(&value).copied().unwrap_or_default()
    }

    fn look_at(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let row = self.row(id);
        let layer = self.is_layer(row, node);
        if let Some(filters) = self.filters_of(id).filter(|_| layer) {
            self.filters.insert(id, filters);
        }
        let reach = self.reach_behind(row, node, layer);
        let source = self.source(row, node);
        let narrow = self.narrow_behind(row, node, layer, source);
        let stage = self.stage_behind(row, node, layer, source);
        let raw = source.is_some_and(|s| self.raw.contains(&s));
        let measured = self.measured_behind(id, layer).filter(|_| reach == Reach::Signal);
        let gives = row.is_some_and(|r| matches!(r.gives, Gives::AlongAxis | Gives::FromAxis));
        let chances = gives || source.is_some_and(|s| self.chances.contains(&s));
        for &output in node.outputs.iter().flatten() {
            self.reach.insert(output, reach);
            if chances {
                self.chances.insert(output);
            }
            if let Some(measured) = measured {
                self.unlearned.insert(output, measured);
            }
            if let Some(stage) = stage {
                self.stages.insert(output, stage);
            }
            if raw {
                self.raw.insert(output);
            }
            if let Some(state) = narrow {
                self.narrow.insert(output, state);
            }
        }
    }

    /// What the outputs of a node depend on.
    fn reach_behind(&self, row: Option<&Rule>, node: &Node, layer: bool) -> Reach {
        let inner = node.bodies.iter().flat_map(|&(_, body)| &self.graph.scope(body).outputs);
        let all = node.inputs.iter().flatten().chain(inner).map(|v| self.reach_of(*v)).max().unwrap_or_default();
        let reach = if row.is_some_and(|r| r.shapes_only) { Reach::Nothing } else { all };
        let periodic = node.outputs.iter().flatten().all(|o| self.periodic.contains(o));
        // A table that positions alone look up depends on nothing else; what other layers make of integers is a signal.
        let looked_up = row.is_some_and(|r| r.moves != Moves::Nothing) && reach == Reach::Nothing;
        if layer && !periodic && !looked_up { Reach::Signal } else { reach }
    }

    /// The input that stays what it is in a node which moves it, or shifts or scales it by constants.
    fn source(&self, row: Option<&Rule>, node: &Node) -> Option<ValueId> {
        let mut others = node.inputs.iter().flatten().filter(|v| !self.held.contains(v));
        let (only, more) = (others.next().copied(), others.next().is_some());
        match row {
            Some(r) if r.moves != Moves::Nothing && Self::moved(row, node).len() == 1 => {
                node.inputs.first().copied()?
            }
            Some(r) if matches!(r.slots, [Slot::Binary(_), Slot::Binary(_)]) && !more => only,
            _ => None,
        }
    }

    /// What becomes of the one number that a layer gives out.
    fn narrow_behind(&self, row: Option<&Rule>, node: &Node, layer: bool, source: Option<ValueId>) -> Option<Narrow> {
        let first = node.inputs.first().copied().flatten();
        match source.and_then(|s| self.narrow.get(&s).copied()) {
            Some(_) if row.is_some_and(|r| Self::pairs(r) && !r.scales()) => Some(Narrow::Biased),
            Some(state) => Some(state),
            None if layer => self.layer_output(row, node),
            None if row.is_some_and(|r| r.sums) => first.and_then(|f| self.narrow.get(&f).copied()),
            None => None,
        }
    }

    /// How far what a layer gives out has come.
    fn stage_behind(&self, row: Option<&Rule>, node: &Node, layer: bool, source: Option<ValueId>) -> Option<Stage> {
        match source.and_then(|s| self.stages.get(&s).copied()) {
            Some(stage) if row.is_some_and(Self::pairs) => match (stage, row.is_some_and(Rule::scales)) {
                (Stage::Bare, false) => Some(Stage::Biased),
                (Stage::Biased, true) => Some(Stage::Scaled),
                (Stage::Bare, true) => Some(Stage::Bare),
                _ => None,
            },
            Some(stage) => Some(stage),
            None if layer => Some(if self.has_bias(row, node) { Stage::Biased } else { Stage::Bare }),
            None => None,
        }
    }

    /// What the matrix or kernel of a node is, where it holds what a formula gives and training does not.
    fn filters_of(&self, id: NodeId) -> Option<&'static str> {
        /// More numbers than any transform has.
        const MOST: usize = 1 << 24;
        let node = self.graph.node(id);
        let rule = self.row(id).filter(|r| r.convolves || matches!(r.apart, Apart::Rows(_)))?;
        let factors = || node.inputs.iter().take(2).flatten();
        let mut held = factors().filter(|v| self.held.contains(v));
        let (Some(kernel), None) = (held.next(), held.next()) else { return None };
        let tensor = self.tensor(*kernel).filter(|t| t.element_count().is_some_and(|n| n <= MOST))?;
        let values = tensor.floats().ok()?;
        if filters::are_waves(&tensor.dims, &values) {
            return Some("waves of several frequencies, as a formula gives them and training does not");
        }
        if filters::are_steps(&tensor.dims, &values) && factors().any(|v| self.chances.contains(v)) {
            return Some("places in equal steps, of which it takes the mean by what a softmax gives");
        }
        let begins = rule.convolves && self.is_before_learning((id, 0)) && self.depth_behind(node) > 0;
        (begins && filters::is_mirrored(&tensor.dims, &values))
            .then_some("a kernel that is its own mirror image, with nothing learned before")
    }

    /// Whether an input of a layer with fixed filters belongs to these: the filters, or a bias of zeros.
    fn is_of_filters(&self, node: &Node, i: usize) -> bool {
        let zeros = |v: ValueId| {
            self.tensor(v).and_then(|t| t.floats().ok()).is_some_and(|values| values.iter().all(|&v| v == 0.0))
        };
        i < 2 || node.inputs.get(i).copied().flatten().is_some_and(zeros)
    }

    /// Whether what a node makes of inputs is the result of a bank of filters; `None` where something learned has a
    /// part in it: a layer, but for those of spectra, or what stands in a place of its weights.
    fn measured_behind(&self, id: NodeId, layer: bool) -> Option<bool> {
        let node = self.graph.node(id);
        let mut data = node.inputs.iter().flatten().filter(|v| !self.held.contains(v)).peekable();
        let unlearned = data.peek().is_some()
            && node.bodies.is_empty()
            && (!layer || self.is_spectrum((id, 0)) || self.filters.contains_key(&id))
            && data.clone().all(|v| self.unlearned.contains_key(v) || self.reach_of(*v) == Reach::Nothing);
        let spectral = self.row(id).is_some_and(|r| r.spectral);
        unlearned.then(|| layer || spectral || data.any(|v| self.unlearned.get(v) == Some(&true)))
    }

    /// Whether a layer has more weights than one, of which one is a bias.
    fn has_bias(&self, row: Option<&Rule>, node: &Node) -> bool {
        let weights = row.map_or(&[][..], |r| r.weights).iter();
        let held = weights.filter_map(|&i| node.inputs.get(i).copied().flatten()).filter(|v| self.held.contains(v));
        held.count() > 1
    }

    /// Whether a layer gives out one number for each place, and whether it has a bias of its own.
    fn layer_output(&self, row: Option<&Rule>, node: &Node) -> Option<Narrow> {
        let rank = |v: ValueId| self.graph.fact(v).rank();
        let y = node.outputs.iter().flatten().next()?;
        let weights = row?.weights.iter().filter_map(|&i| node.inputs.get(i).copied().flatten());
        let held: Vec<ValueId> = weights.filter(|v| self.held.contains(v)).collect();
        let (input, weight) = (node.inputs.first().copied().flatten()?, *held.first()?);
        let shape = self.graph.fact(*y).shape.clone()?;
        // Images have their channels behind the batch, everything else has them last.
        let image = rank(weight)? >= 3 && rank(weight) == rank(input);
        let size = if image { shape.get(1) } else { shape.last() };
        let one = size.is_some_and(|d| d.known() == Some(1)) || rank(weight) == Some(1);
        one.then_some(if held.len() > 1 { Narrow::Biased } else { Narrow::Bare })
    }

    /// Whether a value is an input, or its spectrum, shifted and scaled.
    fn is_input(&self, value: ValueId) -> bool {
        self.raw.contains(&value) || self.unlearned.get(&value) == Some(&true)
    }

    /// Whether a scale or what is added behind it gives an output the unit that it is measured in.
    fn rescales(&self, scales: bool, other: ValueId, output: ValueId, behind: &Role) -> bool {
        let ends = self.graph.scope(Graph::MAIN).outputs.contains(&output) || self.closing.contains(&output);
        let shifted = |(sum, _): Operand| self.row(sum).is_some_and(|r| Self::pairs(r) && !r.scales());
        let stage = if scales { Stage::Biased } else { Stage::Scaled };
        let shift = !scales || behind.used(Use::Positions).is_some_and(shifted);
        self.closing.contains(&other) && ends && shift && self.stages.get(&other) == Some(&stage)
    }

    /// From the end to the beginning: as what each value is used.
    fn find_roles(&mut self) {
        for id in self.nodes.clone().into_iter().rev() {
            let node = self.graph.node(id);
            let row = self.row(id);
            let behind = node.outputs.first().copied().flatten().map(|o| self.role(o)).unwrap_or_default();
            let moved = Self::moved(row, node);
            for (i, input) in node.inputs.iter().enumerate() {
                let Some(input) = *input else { continue };
                let how = self.used(id, i, &behind);
                let role = self.roles.or_default(input);
                let parametrizes = row.is_some_and(|r| r.parametrizes) && self.held.contains(&input);
                let of_parameter = node.outputs.iter().flatten().any(|o| self.parameters.contains(o));
                let bounds = row.is_some_and(|r| r.linear == Linear::Never);
                if (parametrizes && bounds) || (of_parameter && (parametrizes || moved.contains(&i))) {
                    self.parameters.insert(input);
                }
                match how {
                    Some(how) => role.note(how, (id, i)),
                    None if moved.contains(&i) || parametrizes => role.merge(&behind),
                    None => role.note(Use::Other, (id, i)),
                }
            }
        }
    }

    /// What a node does with an input; `None` where it moves its elements, or does nothing that has a name.
    fn used(&self, id: NodeId, i: usize, behind: &Role) -> Option<Use> {
        let (node, row) = (self.graph.node(id), self.row(id)?);
        let output = node.outputs.iter().flatten().next().copied()?;
        let value = |i: usize| node.inputs.get(i).copied().flatten();
        if row.statistics.contains(&i) {
            return Some(Use::Statistic);
        }
        let joins =
            matches!(row.moves, Moves::Joined(_) | Moves::Chosen(_)) && row.moved(node.inputs.len()).contains(&i);
        if joins && !self.held.contains(&output) {
            return Some(if self.reach_of(output) == Reach::Signal { Use::Token } else { Use::Positions });
        }
        if !row.weights.contains(&i) {
            return None;
        }
        if row.moves != Moves::Nothing {
            // A table. What looks positions up and then only multiplies is computed once for all, as sines of positions
            // are.
            let only_scales = behind.only(&[Use::Scale, Use::OneScale, Use::Positions]);
            let index = node.inputs.iter().flatten().skip(1).map(|v| self.reach_of(*v)).max().unwrap_or_default();
            return Some(match (only_scales, index) {
                (true, Reach::Nothing) => Use::Positions,
                (true, _) => Use::ScalingTable,
                (false, _) => Use::Table,
            });
        }
        if !Self::pairs(row) {
            let others = node.inputs.iter().enumerate().filter(|(k, _)| *k != i).filter_map(|(_, v)| *v);
            let signal = others.map(|v| self.reach_of(v)).max().unwrap_or_default() == Reach::Signal;
            let periodic = self.periodic.contains(&output);
            return Some(match periodic && !signal {
                true => Use::Positions,
                false if self.filters.contains_key(&id) && self.is_of_filters(node, i) => Use::Filter,
                false => Use::Place,
            });
        }
        let other = value(1 - i.min(1))?;
        Some(match (self.reach_of(other), row.scales()) {
            (Reach::Nothing | Reach::Integers, _) => Use::Positions,
            (_, scales) if self.rescales(scales, other, output, behind) => Use::Rescale,
            _ if self.is_input(other) && self.before_layers.contains(&output) => match row.scales() {
                true => Use::Input,
                false => Use::InputSum,
            },
            (_, false) if self.narrow.get(&other) == Some(&Narrow::Bare) => Use::OneSum,
            (_, true) if self.narrow.contains_key(&other) => Use::OneScale,
            (_, false) => Use::Sum,
            (_, true) => Use::Scale,
        })
    }
}

/// Whether the first operands of a node, so many, are one value.
fn raises(node: &Node, times: usize) -> bool {
    let mut operands = node.inputs.iter().take(times);
    operands.next().is_some_and(|first| first.is_some() && operands.all(|v| v == first))
}
