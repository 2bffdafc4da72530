//! What a row says of its operator beside what each input gets: what training, validation and the graph ask it.
//!
//! Each property is said where the operator stands, and nowhere else. Who asks looks the row up by [`super::find`], or
//! by [`super::newest`] where the version does not matter.

use super::{Integers, Rule};
use crate::expr::View;
use crate::graph::{Dim, Linear, Node, Poles, Traits};
use crate::onnx::{AttributeProto, ElementType, attribute};

/// How the elements of the first output follow from those of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Moves {
    /// They are computed.
    #[default]
    Nothing,
    /// They are the elements of the first input, each once and in the same order of memory; the shape or the element
    /// type may be another.
    InOrder,
    /// They are the elements of the first input, each once, its axes permuted as the attribute `perm` says.
    Transposed,
    /// They are some elements of the first input, maybe several times, maybe in other places, with constants between
    /// them.
    Parts,
    /// They are elements of every input from this one on.
    Joined(usize),
    /// Each is the element in the same place of one of the inputs from this one on.
    Chosen(usize),
}

/// Whether an operator draws random numbers: computed again, it draws others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Random {
    /// It draws none.
    #[default]
    Never,
    /// It always draws some.
    Always,
    /// It draws some where the input with that number is there and true.
    Where(usize),
}

/// Along which axes of its inputs an operator computes each place by itself, so that samples that lie along one do not
/// mix.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Apart {
    /// As its slots and what it moves say it: along every axis where its inputs broadcast element by element, along the
    /// first where it keeps elements in their order and the size of that axis, along none else.
    #[default]
    BySlots,
    /// Along none.
    Nowhere,
    /// The last axis of the first input is multiplied by the matrix that the second is, and the third, where there is
    /// one, added: along every axis of the first but its last. Of a node for which the function says nothing along
    /// none.
    Rows(fn(&Node) -> Option<Rows>),
}

/// How rows `x` are multiplied: `y = α x op(W) + β c`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rows {
    /// α.
    pub alpha: f64,
    /// β.
    pub beta: f64,
    /// Whether op transposes.
    pub transposed: bool,
}

/// An axis of a tensor, counted from the end where it is negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// This one, for every node.
    At(i64),
    /// What an attribute says, and what holds without it.
    Named(&'static str, i64),
}

impl Axis {
    /// The axis of a tensor of that rank that a node with these attributes means, counted from the front; `None` where
    /// the tensor has no such axis.
    pub(crate) fn of(self, attributes: &[AttributeProto], rank: usize) -> Option<usize> {
        let axis = match self {
            Axis::At(axis) => axis,
            Axis::Named(name, default) => attribute::get_int(attributes, name).unwrap_or(default),
        };
        let from_front = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(from_front).ok().filter(|&axis| axis < rank)
    }
}

/// What the integers of an input count, so that valid ones can be made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Counts {
    /// Each is an index into that axis of that input.
    Along(usize, Axis),
    /// The integers along the last axis are together one place of that input: the first is an index into the axis that
    /// the attribute says, 0 without one, the next into the axis behind it, and so on.
    Tuples(usize, &'static str),
    /// Each is a number of elements of that axis of that input, from 1 to all of them.
    Length(usize, Axis),
    /// Each is not negative and below the number that that input holds.
    Below(usize),
    /// Each is an index into the first output, whose elements are counted through all axes.
    Flat,
    /// Each is an index into the sequence that is that input.
    Item(usize),
    /// Each is an axis of that input.
    AxisOf(usize),
    /// Each says how often something is done.
    Times,
}

/// What the first output of an operator is to a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gives {
    /// Numbers.
    #[default]
    Numbers,
    /// A probability in each place, of a sigmoid.
    Chances,
    /// Probabilities that add up to one along the axis that the attribute `axis` says, or their logarithms, of a
    /// softmax.
    AlongAxis,
    /// Probabilities, or logarithms, as for [`Gives::AlongAxis`], over all axes from that one on.
    FromAxis,
    /// Powers of e: divided by their sum they are probabilities, and the softmax is spelled out.
    Powers,
}

/// What stands around an operator that has a matrix of integers for a weight, rows and columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IntegerLayer {
    /// It is no such operator.
    #[default]
    No,
    /// Its first input has been quantized, and its output is cast and scaled by the nodes behind it.
    Bare,
    /// Its first input has been quantized; its output is what it stands for.
    Scaled,
    /// Floating-point numbers go in and come out.
    Whole,
    /// The weight is its first input, a table: the floating-point numbers of those places along that axis come out that
    /// the second input names.
    Table(Axis),
}

/// What an operator computes of integers, as far as it tells where an index comes from and how large it may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Something else.
    #[default]
    None,
    /// The first input and the second, which is taken away if the factor is -1.
    Sum(i64),
    /// The product of two inputs.
    Product,
    /// A number about as large as an input.
    Within,
    /// Whether two inputs are equal.
    Equal,
    /// Which of two inputs is larger.
    Order,
}

/// Pairs of sizes of its inputs that an operator takes for equal, from its attributes and the shapes of its inputs.
pub type EqualSizes = fn(&[AttributeProto], &[Option<&[Dim]>]) -> Vec<(Dim, Dim)>;

/// What the integers of one input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// The number of the input.
    pub input: usize,
    /// What its elements count.
    pub counts: Counts,
    /// Whether they name the places that something is written to: two that are equal have no order, and the result none
    /// either.
    pub written: bool,
    /// Whether negative ones count from the end.
    pub from_end: bool,
}

impl Index {
    /// Negative ones count from the end.
    pub const fn from_end(mut self) -> Self {
        self.from_end = true;
        self
    }
}

/// The integers of an input, which are read from the places that they name.
pub const fn read(input: usize, counts: Counts) -> Index {
    Index { input, counts, written: false, from_end: false }
}

/// The integers of an input, which name the places that something is written to.
pub const fn written(input: usize, counts: Counts) -> Index {
    Index { input, counts, written: true, from_end: false }
}

/// The properties of a row that are one field each: what calls the method gives the field that value.
macro_rules! properties {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),*) = $value:expr;)*) => {
        impl Rule {
            $(
                $(#[$doc])*
                $vis const fn $name(mut self $(, $argument: $type)*) -> Self {
                    self.$name = $value;
                    self
                }
            )*
        }
    };
}

properties! {
    /// The attributes that the rule reads, or that do not change the formula. Any other on a node is an error.
    pub fn attributes(names: &'static str) = names;
    /// For an operator of another domain.
    pub fn domain(domain: &'static str) = domain;
    /// Holds up to that version of the domain; a later meaning has a row of its own.
    pub fn until(version: i64) = version;
    /// Holds from that version of the domain on.
    pub fn since(version: i64) = version;
    /// Computes in one type: that of the first floating-point input, float32 in place of half precision, in which sums
    /// and roots lose too much. The formula finds all floating-point inputs, outputs and gradients in that type, and
    /// what it returns is rounded to the type of each input.
    pub fn in_float32() = true;
    /// A convention or a limit that users should know.
    pub fn note(note: &'static str) = note;
    /// It draws random numbers.
    pub fn random(when: Random) = when;
    /// Its gradient is a convention, and not the slope of what it computes.
    pub fn conventional() = true;
    /// Its inputs with these numbers count as constants, though its output moves with them: coordinates, scales.
    pub fn held(inputs: &'static [usize]) = inputs;
    /// Its inputs with these numbers are weights, where they are constants: what training changes.
    pub fn weights(inputs: &'static [usize]) = inputs;
    /// What its first output is to a loss.
    pub fn gives(gives: Gives) = gives;
    /// Its second input is a kernel that goes over the axes behind batch and channels, its third a bias.
    pub fn convolves() = true;
    /// It has a weight of integers: rows and columns, or as many as the attributes `K` and `N` say.
    pub fn integer_layer(layer: IntegerLayer) = layer;
    /// It normalizes by statistics of its input, or by such as it is given.
    pub fn normalizes() = true;
    /// It drops out elements of its first input where it is in training mode.
    pub fn drops_out() = true;
    /// Its output is the numbers that its first input, quantized integers, stands for: by the second, a scale, and the
    /// third, a zero point.
    pub fn dequantizes() = true;
    /// Its inputs with these numbers are statistics of data, which follow the data in training.
    pub fn statistics(inputs: &'static [usize]) = inputs;
    /// What it computes of the integers that go in.
    pub fn arithmetic(arithmetic: Arithmetic) = arithmetic;
    /// Which sizes of its inputs it takes for equal, where its slots do not say that they broadcast.
    pub fn equal(equal: EqualSizes) = Some(equal);
    /// It sums elements, and does nothing else.
    pub fn sums() = true;
    /// Training writes weights as it, so that they stay positive or bounded: what it takes is the weight then.
    pub fn parametrizes() = true;
    /// It raises to a power what stands among its first operands that many times.
    pub fn squares(times: usize) = times;
    /// It is a Fourier transform: filters that nothing has learned.
    pub fn spectral() = true;
    /// It is a sine or cosine, as positions are written with.
    pub fn periodic() = true;
    /// It is the main operator of a layer of a network: the biases and scales that follow it belong to the same layer.
    pub fn layer() = true;
    /// Along which axes it computes each place by itself, where its slots do not say it.
    pub(crate) fn apart(apart: Apart) = apart;
    /// It can be computed of views of few axes where the rank of its input is not known.
    pub(crate) fn view(view: View) = Some(view);
    /// How many axes its inputs have, where it takes them with no other number of axes.
    pub fn ranks(ranks: &'static [Option<usize>]) = ranks;
    /// What the integers of its inputs count.
    pub fn indices(indices: &'static [Index]) = indices;
    /// Its output is filled with what an attribute holds as a tensor, or with float32 zeros without it.
    pub fn fills(attribute: &'static str) = Some(attribute);
    /// It has no float64 form: the inputs and outputs with these numbers are float32 at most.
    pub fn single(inputs: &'static [usize], outputs: &'static [usize]) = (inputs, outputs);
    /// Only the shapes and element types of its inputs matter, whatever they hold.
    pub fn shapes_only() = true;
    /// It is linear in each of its first inputs, so many: zeros of one make zeros of all outputs. What moves elements
    /// of its first input into its first output need not say so.
    pub fn linear(inputs: usize) = Linear::InEach(inputs);
    /// The input with that number, where it is there, is added to what is linear in the others, or stands beside what
    /// is moved.
    pub fn added(input: usize) = Some(input);
    /// Where its output is infinite though its inputs are not.
    pub fn poles(poles: Poles) = poles;
    /// Its gradient asks where elements of its inputs are those of its output: both must come of one computation, since
    /// a second one may be rounded otherwise.
    pub fn compares() = true;
    /// Its gradient is dy where its output is above 0, and zero elsewhere.
    pub fn rectifies() = true;
    /// Each element of its output is a sum of products over whole axes of its inputs.
    pub fn contracts() = true;
    /// The input with that number lists the sizes of its output.
    pub fn sizes(input: usize) = Some(input);
    /// Axes of size 1 go: all of them where nothing says which.
    pub fn squeezes() = true;
}

impl Rule {
    /// The first output holds elements of inputs, as `how` says. The formula is right for quantized integers, too: they
    /// move like any elements.
    pub const fn moves(mut self, how: Moves) -> Self {
        self.moves = how;
        self.integers = Integers::Moved;
        self
    }

    /// Whether its gradient is a convention in a request that counts rounding as the identity, or not.
    pub fn is_conventional(&self, straight_through: bool) -> bool {
        self.conventional || (straight_through && self.slots.iter().any(|s| matches!(s, super::Slot::Rounding(_))))
    }

    /// Whether it multiplies its operands, element by element.
    pub fn scales(&self) -> bool {
        self.arithmetic == Arithmetic::Product
    }

    /// Its attributes that name the element type that it computes in or gives out, and the type without them: `None`
    /// where that follows from an input.
    pub const fn types(mut self, attributes: &'static [(&'static str, Option<ElementType>)]) -> Self {
        self.types = attributes;
        self
    }

    /// Its output lists the sizes of its input: all of them where no attribute says which.
    pub const fn measures(mut self) -> Self {
        self.measures = true;
        self.shapes_only()
    }

    /// What a graph and formulas ask of it.
    pub fn traits(&self) -> Traits {
        let moved = match self.moves {
            Moves::Nothing => Linear::Never,
            Moves::InOrder | Moves::Transposed | Moves::Parts => Linear::InFirst,
            Moves::Joined(first) | Moves::Chosen(first) => Linear::InAll(first),
        };
        Traits {
            keeps_all: self.keeps_all(),
            shapes_only: self.shapes_only,
            chooses: if let Moves::Chosen(first) = self.moves { Some(first) } else { None },
            rounds: self.slots.iter().any(|slot| matches!(slot, super::Slot::Rounding(_))),
            linear: if self.linear == Linear::Never { moved } else { self.linear },
            added: self.added,
            poles: self.poles,
            compares: self.compares,
            rectifies: self.rectifies,
            elementwise: self.is_elementwise(),
            contracts: self.contracts,
            sizes: self.sizes,
            measures: self.measures,
            squeezes: self.squeezes,
            bodies: self.bodies,
            ranks: self.ranks,
        }
    }

    /// What the integers of an input count, where they count something.
    pub fn index(&self, input: usize) -> Option<&'static Index> {
        self.indices.iter().find(|index| index.input == input)
    }

    /// The inputs whose elements the first output holds, of a node of that many inputs.
    pub fn moved(&self, inputs: usize) -> std::ops::Range<usize> {
        match self.moves {
            Moves::Nothing => 0..0,
            Moves::InOrder | Moves::Transposed | Moves::Parts => 0..inputs.min(1),
            Moves::Joined(first) | Moves::Chosen(first) => first.min(inputs)..inputs,
        }
    }

    /// Whether the first output holds every element of the first input, each once.
    pub fn keeps_all(&self) -> bool {
        matches!(self.moves, Moves::InOrder | Moves::Transposed)
    }
}
