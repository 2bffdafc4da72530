//! What a graph, and the formulas that write into it, have to know of operators. The rows of the table say it
//! ([`crate::rules`]); they stand above the graph, so a graph is given it when it is made ([`Operators`]).

use super::Fact;
use super::facts::{self, Known, Op};
use std::rc::Rc;

/// The table, as a graph asks it.
#[derive(Clone)]
pub struct Operators {
    /// The facts of the outputs of an operator from those of its inputs.
    pub facts: facts::InferAny,
    /// The facts of the outputs of an operator that a request has a row of its own for; `None` where it has none.
    pub own_facts: Option<Rc<facts::InferOwn>>,
    /// What else is said of an operator, by its domain, its name and the version of the domain.
    pub traits: fn(&str, &str, i64) -> Traits,
}

impl std::fmt::Debug for Operators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Operators")
    }
}

/// What is said of an operator beside the facts of its outputs. The default is what holds of any operator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traits {
    /// Whether its first output holds every element of its first input, each once.
    pub keeps_all: bool,
    /// Whether only the shapes and element types of its inputs matter, whatever they hold.
    pub shapes_only: bool,
    /// The first of the inputs between which it chooses: what it does not choose has no part in the result.
    pub chooses: Option<usize>,
    /// Whether it rounds.
    pub rounds: bool,
    /// Which of its inputs make its outputs zero where they are zero.
    pub linear: Linear,
    /// The input that is added to what is linear in the others, where it is there.
    pub added: Option<usize>,
    /// Whether its gradient is dy where its output is above 0, and zero elsewhere.
    pub rectifies: bool,
    /// Whether its gradient asks where elements of its inputs are those of its output.
    pub compares: bool,
    /// Where its output is infinite though its inputs are not.
    pub poles: Poles,
    /// Whether each element of its output depends on those of its inputs in the same place, which broadcast, and on no
    /// others.
    pub elementwise: bool,
    /// Whether each element of its output is a sum of products over whole axes of its inputs.
    pub contracts: bool,
    /// The input that lists the sizes of its output.
    pub sizes: Option<usize>,
    /// Whether its output lists the sizes of its input: all of them where no attribute says which.
    pub measures: bool,
    /// Whether its output has the elements of its input without axes of size 1: without all of them where no input and
    /// no attribute says which.
    pub squeezes: bool,
    /// What it does with its bodies.
    pub bodies: Bodies,
    /// How many axes its inputs have, where it takes no others.
    pub ranks: &'static [Option<usize>],
}

/// What an operator does with its bodies.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bodies {
    /// It has none.
    #[default]
    None,
    /// It computes one of two, as its first input says.
    Branches,
    /// It computes them for parts of its inputs, or as often as these say.
    Protocol(&'static Protocol),
}

/// What is known of the outputs of a node, from the node, from the number of inputs of its body and from the body's
/// outputs.
pub type OfBody = fn(&Known, usize, &[&Fact]) -> Vec<Fact>;

/// How the inputs of a body follow from those of its node, and the outputs of the node from those of the body.
#[derive(Debug)]
pub struct Protocol {
    /// What is known of the inputs of the body, from the node and from what the body declares of them, supposing that
    /// carried states keep the shapes of their initial values.
    pub inputs: fn(&Known, &[Fact]) -> Vec<Fact>,
    /// The places of the carried states among the inputs of a body that has so many, and among its outputs.
    pub states: fn(&Op, usize) -> Vec<(usize, usize)>,
    /// What is known of the outputs of the node; `None` where the row says it without looking into bodies.
    pub outputs: Option<OfBody>,
}

/// Which inputs of an operator make its outputs zero where they are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Linear {
    /// None.
    #[default]
    Never,
    /// Each of its first inputs, as many as this says.
    InEach(usize),
    /// The first input, whose elements make up the first output. Other outputs may not be zero.
    InFirst,
    /// The inputs from this one on, where all of them are zero.
    InAll(usize),
}

/// Where an operator has poles: finite inputs for which single elements of its output are infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poles {
    /// Nowhere.
    #[default]
    Nowhere,
    /// Somewhere.
    Somewhere,
    /// Where the second input, by which it divides, is zero.
    Divided,
    /// Where the second input, an exponent, is negative.
    Powers,
}
