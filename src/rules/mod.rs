//! The table of rules: for each operator what each of its inputs gets.
//!
//! A rule is a row. Its formula is text for the reader; its slots, one an input, are the same formula for the builder.
//! All else that is said of operators (docs/operators.md, `onnx-gradients ops`, the tests over the table) derives from
//! the rows.

mod activation;
mod attention;
mod call;
mod contributed;
mod control;
mod convolution;
mod dropout;
mod elementwise;
pub(crate) mod facts;
mod indexing;
mod iteration;
mod linear;
mod losses;
mod ml;
mod normalization;
mod opaque;
mod optimizers;
mod packed;
mod pooling;
mod ports;
pub(crate) mod properties;
mod quantization;
mod quantized;
mod recurrent;
mod reduction;
pub(crate) mod reference;
mod regions;
mod resampling;
mod sequence;
mod shape;
mod signal;
mod softmax;
mod source;
mod text;
mod window;

pub use call::{Call, Cotangents};
pub(crate) use call::{Differentiate, Replay};
pub use properties::Moves;

use crate::expr::{Expr, View};
use crate::graph::{self, Bodies, Graph, Linear, Loaded, Node, NodeId, Operators, Poles};
use crate::onnx::{ElementType, ModelProto};
use anyhow::Result;
use facts::Facts;
use properties::{Apart, Arithmetic, EqualSizes, Gives, Index, IntegerLayer, Random};
use rustc_hash::FxHashMap;
use std::rc::Rc;
use std::sync::LazyLock;

/// `dx` of an operator with one input, from x, y and dy.
pub type UnaryFormula = for<'g> fn(Expr<'g>, Expr<'g>, Expr<'g>) -> Expr<'g>;
/// `da` or `db` of an operator with two, from a, b, y and dy.
pub type BinaryFormula = for<'g> fn(Expr<'g>, Expr<'g>, Expr<'g>, Expr<'g>) -> Expr<'g>;
/// The gradient of one input, from all that the call knows.
pub type Formula = for<'g> fn(&Call<'g>) -> Expr<'g>;
/// The gradient of one input, from a formula that asks questions which may have no answer: a rank, an axis, what an
/// attribute says.
pub type Asking = for<'g> fn(&Call<'g>) -> Result<Expr<'g>>;
/// The gradient of the input with that number.
pub type NumberedFormula = for<'g> fn(&Call<'g>, usize) -> Expr<'g>;
/// The gradient of the input with that number, from a formula that asks questions.
pub type NumberedAsking = for<'g> fn(&Call<'g>, usize) -> Result<Expr<'g>>;
/// The operator's outputs, built of other operators; the pass differentiates those.
pub type Forward = for<'g> fn(&Call<'g>) -> Result<Vec<Option<Expr<'g>>>>;
/// The gradients of all inputs and captured values.
pub type Together = for<'g> fn(&Call<'g>) -> Result<Cotangents<'g>>;

/// What an input of an operator gets.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Slot {
    /// A value, of an operator with one input and one output.
    Unary(UnaryFormula),
    /// A value, of an operator with two inputs that broadcast: summed to the shape of its own one afterwards.
    Binary(BinaryFormula),
    /// A value.
    Formula(Formula),
    /// A value, of a formula that asks questions and has no gradient where one has no answer.
    Try(Asking),
    /// A value of the shape that the inputs broadcast to: summed to the shape of its own input afterwards.
    Broadcast(Formula),
    /// A value for this input and for each that follows.
    Each(NumberedFormula),
    /// As [`Slot::Each`], of a formula that asks questions.
    TryEach(NumberedAsking),
    /// As [`Slot::Each`], summed to the shape of its own input afterwards.
    EachBroadcast(NumberedFormula),
    /// Zero: the input matters, its derivative is zero almost everywhere.
    Zero,
    /// Nothing: no gradient passes here, for the reason given. It holds for the inputs that follow, too, if it is the
    /// last.
    Stop(&'static str),
    /// Nothing, for the reason given; dy where a request counts rounding as the identity.
    Rounding(&'static str),
    /// For all inputs and captured values: the gradients of the formula that computes the outputs.
    Through(Forward),
    /// For all inputs, and what bodies capture: a formula that has something in common for them.
    Together(Together),
}

/// What a rule makes of quantized integers. They carry gradients, floating-point ones, only where a request says so
/// ([`crate::Gradients::straight_through`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Integers {
    /// Nothing: no gradient passes from them or to them.
    #[default]
    Ignored,
    /// The formula is right for them as for any elements: outputs of their type carry what they carry.
    Moved,
    /// The formula counts them as the numbers that they are rounded from: every output carries a gradient.
    Rounded,
}

/// What the inputs of an operator get, from version `since` of its domain to `until`.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Rule {
    /// The operator.
    pub op: &'static str,
    /// Its domain; empty for the standard's.
    pub domain: &'static str,
    /// The formula as text.
    pub formula: &'static str,
    /// What each input gets.
    pub slots: &'static [Slot],
    /// The attributes that the rule accounts for, separated by spaces.
    pub attributes: &'static str,
    /// The first version of the domain at which it holds.
    pub since: i64,
    /// The last version of the domain at which it holds.
    pub until: i64,
    /// What it makes of quantized integers.
    pub integers: Integers,
    /// Whether the formula computes half precision in float32.
    pub in_float32: bool,
    /// Where the facts of its outputs come from.
    pub(crate) facts: Facts,
    /// How the elements of its first output follow from those of an input.
    pub moves: Moves,
    /// Whether it draws random numbers.
    pub random: Random,
    /// Whether its gradient is a convention, and not the slope of what it computes.
    pub conventional: bool,
    /// The inputs that count as constants though the output moves with them.
    pub held: &'static [usize],
    /// The inputs that are weights where they are constants.
    pub weights: &'static [usize],
    /// The inputs that are statistics of data: what follows the data in training, and is no weight.
    pub statistics: &'static [usize],
    /// What its first output is to a loss.
    pub gives: Gives,
    /// Whether its second input is a kernel.
    pub convolves: bool,
    /// Whether it has a weight of integers, and what stands around it.
    pub integer_layer: IntegerLayer,
    /// Whether it normalizes by statistics.
    pub normalizes: bool,
    /// Whether it drops out elements where it is in training mode.
    pub drops_out: bool,
    /// Whether it gives the numbers that quantized integers stand for.
    pub dequantizes: bool,
    /// What it computes of the integers that go in.
    pub arithmetic: Arithmetic,
    /// Which sizes of its inputs it takes for equal, where its slots do not say that they broadcast.
    pub equal: Option<EqualSizes>,
    /// Whether it sums elements, and does nothing else.
    pub sums: bool,
    /// Whether training writes weights as it, so that they stay positive or bounded.
    pub parametrizes: bool,
    /// How often what it raises to a power stands among its operands; 0 where it does not.
    pub squares: usize,
    /// Whether it is a Fourier transform.
    pub spectral: bool,
    /// Whether it is a sine or cosine, as positions are written with.
    pub periodic: bool,
    /// Whether it is the main operator of a layer, which its biases and scales follow.
    pub layer: bool,
    /// Along which axes it computes each place by itself.
    pub(crate) apart: Apart,
    /// How it is computed where the rank of its input is not known.
    pub(crate) view: Option<View>,
    /// How many axes its inputs have, where it takes no others.
    pub ranks: &'static [Option<usize>],
    /// What the integers of its inputs count.
    pub indices: &'static [Index],
    /// The attributes that name element types, and the types without them.
    pub types: &'static [(&'static str, Option<ElementType>)],
    /// The attribute that holds, as a tensor, what the output is filled with: float32 zeros without it.
    pub fills: Option<&'static str>,
    /// The inputs and outputs that have no float64 form.
    pub single: (&'static [usize], &'static [usize]),
    /// Whether only the shapes and element types of its inputs matter.
    pub shapes_only: bool,
    /// Which inputs make its outputs zero where they are zero, beside those that it moves.
    pub linear: Linear,
    /// The input that is added to what is linear in the others.
    pub added: Option<usize>,
    /// Where its output is infinite though its inputs are not.
    pub poles: Poles,
    /// Whether its gradient asks where elements of its inputs are those of its output.
    pub compares: bool,
    /// Whether its gradient is dy where its output is above 0, and zero elsewhere.
    pub rectifies: bool,
    /// Whether each element of its output is a sum of products over whole axes of its inputs.
    pub contracts: bool,
    /// The input that lists the sizes of its output.
    pub sizes: Option<usize>,
    /// Whether its output lists the sizes of its input.
    pub measures: bool,
    /// Whether axes of size 1 go.
    pub squeezes: bool,
    /// What it does with its bodies.
    pub bodies: Bodies,
    /// Conventions and limits, for the reader.
    pub note: &'static str,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.op, self.formula)
    }
}

/// A row for an operator of the standard without attributes.
pub const fn rule(op: &'static str, formula: &'static str, slots: &'static [Slot]) -> Rule {
    Rule {
        op,
        domain: "",
        formula,
        slots,
        attributes: "",
        since: 1,
        until: i64::MAX,
        integers: Integers::Ignored,
        in_float32: false,
        moves: Moves::Nothing,
        random: Random::Never,
        conventional: false,
        held: &[],
        weights: &[],
        statistics: &[],
        gives: Gives::Numbers,
        convolves: false,
        integer_layer: IntegerLayer::No,
        normalizes: false,
        drops_out: false,
        dequantizes: false,
        arithmetic: Arithmetic::None,
        equal: None,
        sums: false,
        parametrizes: false,
        squares: 0,
        spectral: false,
        periodic: false,
        layer: false,
        apart: Apart::BySlots,
        view: None,
        ranks: &[],
        indices: &[],
        types: &[],
        fills: None,
        single: (&[], &[]),
        shapes_only: false,
        linear: Linear::Never,
        added: None,
        poles: Poles::Nowhere,
        compares: false,
        rectifies: false,
        contracts: false,
        sizes: None,
        measures: false,
        squeezes: false,
        bodies: Bodies::None,
        facts: Facts::BySlots(None),
        note: "",
    }
}

/// A row for an operator through which no gradient passes by nature, for the reason that its slots give.
pub const fn opaque(op: &'static str, slots: &'static [Slot]) -> Rule {
    rule(op, "none", slots)
}

impl Rule {
    /// Right for quantized integers as for any elements.
    pub const fn moves_integers(mut self) -> Self {
        self.integers = Integers::Moved;
        self
    }

    /// Counts quantized integers as the numbers that they are rounded from.
    pub const fn rounds(mut self) -> Self {
        self.integers = Integers::Rounded;
        self
    }

    /// What an input gets, by its number.
    pub fn slot(&self, input: usize) -> Option<&Slot> {
        let repeats = |s: &&Slot| {
            use Slot::{Binary, Broadcast, Formula, Try, Unary, Zero};
            !matches!(s, Unary(_) | Binary(_) | Formula(_) | Try(_) | Broadcast(_) | Zero)
        };
        self.slots.get(input).or_else(|| self.slots.last().filter(repeats))
    }

    /// The slot that holds for all inputs but those at which no gradient passes, if there is one.
    pub(crate) fn common_slot(&self) -> Option<&'static Slot> {
        self.slots.iter().find(|s| matches!(s, Slot::Through(_) | Slot::Together(_)))
    }

    /// Whether an attribute is accounted for.
    pub fn knows(&self, attribute: &str) -> bool {
        self.attributes.split(' ').any(|a| a == attribute)
    }
}

/// Every row, family by family.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    const FAMILIES: &[&[Rule]] = &[
        attention::RULES,
        attention::contributed::RULES,
        attention::flex::RULES,
        attention::linear::RULES,
        attention::position::RULES,
        attention::rotary::RULES,
        contributed::RULES,
        control::RULES,
        convolution::RULES,
        dropout::RULES,
        elementwise::RULES,
        indexing::RULES,
        iteration::RULES,
        linear::RULES,
        losses::RULES,
        ml::RULES,
        normalization::RULES,
        opaque::RULES,
        optimizers::RULES,
        packed::RULES,
        pooling::RULES,
        quantization::RULES,
        quantized::RULES,
        recurrent::RULES,
        reduction::RULES,
        regions::RULES,
        resampling::RULES,
        sequence::RULES,
        shape::RULES,
        signal::RULES,
        softmax::RULES,
        source::RULES,
        text::RULES,
    ];
    FAMILIES.iter().copied().flatten()
}

/// The rows by operator, whatever its domain, in the order of the families.
static TABLE: LazyLock<FxHashMap<&str, Vec<&'static Rule>>> = LazyLock::new(|| {
    let mut table: FxHashMap<_, Vec<_>> = FxHashMap::default();
    for rule in all() {
        table.entry(rule.op).or_default().push(rule);
    }
    table
});

/// The rows for an operator, in the order of the families.
fn rows(domain: &str, op: &str) -> impl Iterator<Item = &'static Rule> {
    // The standard's domain is empty. To compare empty texts takes some processors as long as all the rest: they may
    // lie where there is no memory.
    let of_domain = move |r: &&Rule| match domain {
        "" => r.domain.is_empty(),
        domain => r.domain == domain,
    };
    TABLE.get(op).into_iter().flatten().copied().filter(of_domain)
}

/// The row for an operator at a version of its domain.
pub fn find(domain: &str, op: &str, version: i64) -> Option<&'static Rule> {
    rows(domain, op).find(|r| (r.since..=r.until).contains(&version))
}

/// The row for a node's operator, at the version that its model imports.
pub fn row(graph: &Graph, node: &Node) -> Option<&'static Rule> {
    find(&node.domain, &node.op_type, graph.opset(&node.domain))
}

/// The operator in a node, the node's own or one in its bodies, that draws random numbers: computed again, it draws
/// others. Nesting is as deep as protobuf allows.
pub fn drawing(graph: &Graph, id: NodeId) -> Option<String> {
    let node = graph.node(id);
    let draws = match row(graph, node).map_or(Random::Never, |r| r.random) {
        Random::Never => false,
        Random::Always => true,
        Random::Where(i) => {
            let asked = node.inputs.get(i).copied().flatten();
            asked.is_some_and(|v| graph.fact(v).uniform() != Some(graph::Scalar::Int(0.into())))
        }
    };
    let mut inside = node.bodies.iter().flat_map(|&(_, body)| &graph.scope(body).nodes);
    if draws { Some(node.op_type.to_string()) } else { inside.find_map(|&id| drawing(graph, id)) }
}

/// The row for the newest version of an operator: for what does not change from version to version.
pub fn newest(domain: &str, op: &str) -> Option<&'static Rule> {
    rows(domain, op).max_by_key(|r| r.since)
}

/// Loads a model whose operators are those of the table.
///
/// # Errors
/// The model cannot be loaded: what is wrong with it, and where.
pub fn load(model: &ModelProto) -> Result<Loaded> {
    graph::load(model, OPERATORS)
}

/// What a graph asks the table.
pub const OPERATORS: Operators = Operators {
    facts: facts::infer,
    own_facts: None,
    traits: |domain, op, version| {
        // Gradients may have a first version; the rest holds of what came before, too.
        find(domain, op, version).or_else(|| newest(domain, op)).map(Rule::traits).unwrap_or_default()
    },
};

/// What a graph asks of the table and of rows beside it, which come first.
pub fn operators_with(own: &[Rule]) -> Operators {
    if own.is_empty() {
        return OPERATORS;
    }
    let own = own.to_vec();
    Operators { own_facts: Some(Rc::new(move |op, inputs| facts::infer_own(&own, op, inputs))), ..OPERATORS }
}
