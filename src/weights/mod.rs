//! What a weight is: which constants of a model are learned, and which are constants of its formulas.
//!
//! Files do not say it: a weight, a mask, the frequencies of positions and the 0.5 of a formula are all tensors that do
//! not change. The answer here follows from what the rows of operators say of their inputs
//! ([`crate::rules::Rule::weights`]) and from where a tensor stands, through all operators that only move elements.
//! `inspect`, `grad --params` and `trainable` ask nobody else; docs/weights.md says the same in words.

mod flow;
mod quantized;
#[cfg(test)]
mod tests;

pub use quantized::{Grid, Quantized};

use crate::expr::is_gradient;
use crate::graph::{Graph, IdSet, Loaded, ValueId};
use crate::onnx::{ElementType, ModelProto, NodeProto, TensorProto, attribute};
use crate::record::Record;
use crate::rules::{self, properties::Apart};
use flow::{Flow, Operand, Use};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;

/// Where a weight lies in the model's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// It is an initializer.
    Initializer,
    /// It is the value of a Constant node.
    Constant,
    /// It is what a DequantizeLinear node makes of integers that are constant.
    Dequantized,
    /// It is one of the two matrices whose product is added to a weight; the weight's name.
    Lora {
        /// The weight that the product is added to.
        of: String,
    },
    /// It is a statistic of BatchNormalization, which is not trained but follows the data.
    Statistic,
}

/// What a constant tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// It is learned.
    Weight,
    /// It is a weight, and inside a body of control flow, where it has no name that anything outside could use.
    Inside,
    /// It holds the integers of a quantized weight that no DequantizeLinear node makes real numbers of.
    Integers,
    /// It is a statistic of data.
    Statistic,
    /// It is a constant: of a formula, of positions, a mask.
    Constant,
}

/// A constant tensor, and what it is.
#[derive(Clone, Debug)]
pub struct Tensor<'m> {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub source: Source,
    /// What it is.
    pub kind: Kind,
    /// Why it is that.
    pub why: String,
    /// The element type of its numbers.
    pub element: ElementType,
    /// Its value; of a tensor that is [`Source::Dequantized`] that of its integers.
    pub value: Cow<'m, TensorProto>,
    /// The number of layers behind its own.
    pub layer: usize,
    /// Where it stands: the node that says what it is.
    pub place: Option<Place>,
    /// The first layer that takes it: the operator, the input, and the attributes of its node.
    pub product: Option<Product>,
}

/// An input of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The node, by its name or its first output's.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// The number of the input.
    pub input: usize,
}

/// What a weight is in the layer that takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A matrix that multiplies rows.
    Matrix,
    /// The kernel of a convolution.
    Kernel,
    /// Something else.
    Other,
}

/// A matrix product, convolution or other layer that takes a weight.
#[derive(Clone, Debug)]
pub struct Product {
    /// What the weight is in it.
    pub form: Form,
    /// Whether the weight is the second factor.
    pub second: bool,
    /// Whether it transposes the weight.
    pub transposes: bool,
}

/// Every constant tensor of floating-point numbers, or of integers that are quantized numbers, from which a path leads
/// to one of `ys`, in the order in which nodes use them. `loaded` is the model, which calls no functions any more.
pub fn tensors<'m>(model: &'m ModelProto, loaded: &Loaded, ys: &[ValueId]) -> Vec<Tensor<'m>> {
    let Some(proto) = &model.graph else { return vec![] };
    let graph = &loaded.graph;
    let sources = graph.sources(ys);
    let mut found: Vec<Candidate<'m>> = Vec::new();
    let constants: HashMap<&str, Cow<'m, TensorProto>> = proto.constants().collect();
    let computed: HashMap<&str, &NodeProto> =
        proto.node.iter().filter_map(|n| Some((n.output.first()?.as_str(), n))).collect();
    for (name, value) in proto.constants() {
        let source = if computed.contains_key(name) { Source::Constant } else { Source::Initializer };
        found.extend(loaded.names.get(name).map(|&id| Candidate { id, name: name.to_owned(), source, value }));
    }
    for node in &proto.node {
        let (Some(y), Some(quantized)) = (node.output.first(), Quantized::of(node, &constants)) else { continue };
        let Some(&id) = loaded.names.get(y.as_str()) else { continue };
        found.push(Candidate { id, name: y.clone(), source: Source::Dequantized, value: quantized.integers });
    }
    let inner = inner_constants(graph);
    let flow = Flow::new(graph, found.iter().map(|c| c.id).chain(inner.iter().copied()));
    let written = written(model);
    let stands: IdSet<ValueId> = found.iter().map(|c| c.id).collect();
    let asks = Asks { graph, flow: &flow, written: &written, stands: &stands };
    let mut tensors: Vec<(Option<Operand>, Tensor<'m>)> = Vec::new();
    tensors.extend(found.into_iter().filter(|c| sources.contains(&c.id)).filter_map(|c| asks.tensor(c)));
    tensors.extend(inner.into_iter().filter_map(|id| asks.inner(id)));
    tensors.sort_by_key(|(first, _)| *first);
    tensors.into_iter().map(|(_, tensor)| tensor).collect()
}

/// Names in quotes, no more than five of them.
pub fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let first: Vec<String> = names.iter().take(5).map(|n| format!("'{}'", n.as_ref())).collect();
    let more = names.len().saturating_sub(first.len());
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// What could be a weight.
struct Candidate<'m> {
    id: ValueId,
    name: String,
    source: Source,
    value: Cow<'m, TensorProto>,
}

/// The scopes of the names that earlier calls of `grad` have written.
fn written(model: &ModelProto) -> Vec<String> {
    let records = Record::all(model).unwrap_or_default();
    records.into_iter().filter(|r| !r.name.is_empty()).map(|r| format!("{}/", r.name)).collect()
}

/// The constants of the bodies of control flow.
fn inner_constants(graph: &Graph) -> Vec<ValueId> {
    let mut found = Vec::new();
    let mut open: Vec<_> = graph.scope(Graph::MAIN).nodes.clone();
    while let Some(id) = open.pop() {
        for &(_, body) in &graph.node(id).bodies {
            for &inner in &graph.scope(body).nodes {
                open.push(inner);
                let node = graph.node(inner);
                if node.is_constant() {
                    found.extend(node.outputs.iter().flatten());
                }
            }
        }
    }
    found
}

/// How elements that are no weights look.
struct Look {
    /// They hold infinities, or numbers that no weight has.
    huge: bool,
    /// They are zero, or so far below that nothing is left of what they are added to.
    hides: bool,
    /// They are zeros and ones, both.
    bits: bool,
    /// They are one whole number.
    filling: bool,
    /// They are zero.
    zeros: bool,
    /// Along each row the numbers grow or fall by equal steps.
    lines: bool,
    /// Along the rows stand sines and cosines of the same angles, beside one another or one half behind the other.
    circles: bool,
    /// They change nothing as a scale, all ones, or as a bias, all zeros.
    neutral: bool,
    /// The first of the rows is all ones or all zeros, as that of position 0, and the others are sines or cosines.
    sines: bool,
}

impl Look {
    /// `None` where the elements lie elsewhere or cannot be read.
    fn at(tensor: &TensorProto) -> Option<Look> {
        let values = tensor.floats().ok().filter(|v| !v.is_empty())?;
        let all = |f: &dyn Fn(f64) -> bool| values.iter().all(|&v| f(v));
        let any = |f: &dyn Fn(f64) -> bool| values.iter().any(|&v| f(v));
        let columns = tensor.dims.last().and_then(|&d| usize::try_from(d).ok()).unwrap_or(1).clamp(1, values.len());
        let row = |number: f64| values.iter().take(columns).all(|&v| v == number);
        Some(Look {
            huge: any(&|v| !v.is_finite() || v.abs() >= 1e30),
            hides: all(&|v| v == 0.0 || v <= -1e3) && any(&|v| v != 0.0),
            bits: all(&|v| v == 0.0 || v == 1.0) && any(&|v| v == 0.0) && any(&|v| v == 1.0),
            filling: all(&|v| values.first() == Some(&v) && v.fract() == 0.0),
            zeros: all(&|v| v == 0.0),
            lines: are_lines(&values, columns),
            circles: are_circles(&values, columns),
            neutral: all(&|v| v == 1.0) || all(&|v| v == 0.0),
            sines: all(&|v| v.abs() <= 1.0)
                && (row(0.0) || row(1.0))
                && values.len() > columns
                && doubles(&values, columns),
        })
    }
}

/// Whether rows, of three numbers at least, grow or fall by equal steps, as what is added for distances does.
fn are_lines(values: &[f64], columns: usize) -> bool {
    /// Of a step, for numbers in half precision.
    const ROUNDING: f64 = 1e-2;
    let line = |row: &[f64]| {
        let step = row[1] - row[0];
        let even = |pair: &[f64]| (pair[1] - pair[0] - step).abs() <= ROUNDING * step.abs();
        step != 0.0 && row.windows(2).all(even)
    };
    columns >= 3 && values.chunks_exact(columns).all(line)
}

/// Whether rows, of four numbers at least, hold sines and cosines of angles, which are not all the same.
fn are_circles(values: &[f64], columns: usize) -> bool {
    /// Tables may be rounded to half precision.
    const ROUNDING: f64 = 5e-3;
    if columns < 4 || !columns.is_multiple_of(2) || values.len() <= columns {
        return false;
    }
    let circle = |a: f64, b: f64| (a * a + b * b - 1.0).abs() < ROUNDING;
    let half = columns / 2;
    let beside = |row: &[f64]| row.chunks_exact(2).all(|pair| circle(pair[0], pair[1]));
    let behind = |row: &[f64]| row.iter().zip(&row[half..]).all(|(&a, &b)| circle(a, b));
    let rows = || values.chunks_exact(columns);
    let varied = rows().any(|row| row != &values[..columns]);
    varied && (rows().all(beside) || rows().all(behind))
}

/// Whether the row of position 2 has the sines or cosines of the doubled angles of position 1, if there are so many
/// rows. A table of words whose first one is padding begins with zeros as well.
fn doubles(values: &[f64], columns: usize) -> bool {
    /// Tables may be rounded to half precision.
    const ROUNDING: f64 = 2e-2;
    let mut rows = values.chunks_exact(columns).skip(1);
    let (Some(first), Some(second)) = (rows.next(), rows.next()) else { return true };
    first.iter().zip(second).all(|(&s, &t)| {
        let sine = (t * t - 4.0 * s * s * (1.0 - s * s)).abs() < ROUNDING;
        sine || (t - (2.0 * s * s - 1.0)).abs() < ROUNDING
    })
}

/// What is asked of a candidate.
struct Asks<'a> {
    graph: &'a Graph,
    flow: &'a Flow<'a>,
    written: &'a [String],
    /// The candidates.
    stands: &'a IdSet<ValueId>,
}

impl Asks<'_> {
    fn tensor<'m>(&self, c: Candidate<'m>) -> Option<(Option<Operand>, Tensor<'m>)> {
        let element = match &c.source {
            Source::Dequantized => self.graph.fact(c.id).element?,
            _ => c.value.element_type(),
        };
        let (kind, why) = match element.is_float() {
            true => self.judge(c.id, &c.name, &c.value, &c.source),
            false => (Kind::Integers, self.integers(c.id, element, &c.value)?),
        };
        let role = self.flow.role(c.id);
        let place = role.used(Use::Place).or(role.used(Use::Table));
        Some((
            role.first(),
            Tensor {
                name: c.name,
                source: c.source,
                kind,
                why,
                element,
                value: c.value,
                layer: place.or(role.first()).map_or(0, |first| self.flow.layer(first)),
                place: place.or(role.first()).map(|first| self.place(first)),
                product: role.used(Use::Place).and_then(|place| self.product(place)),
            },
        ))
    }

    /// A constant inside a body, if it would be a weight outside.
    fn inner(&self, id: ValueId) -> Option<(Option<Operand>, Tensor<'static>)> {
        let name = self.graph.value(id).name.as_deref().unwrap_or_default();
        let (node, _) = self.graph.producer(id)?;
        let value = crate::onnx::constant_value(&self.graph.node(node).attributes).ok().flatten()?.into_owned();
        let element = Some(value.element_type()).filter(|e| e.is_float())?;
        let (kind, why) = self.judge(id, name, &value, &Source::Constant);
        let role = self.flow.role(id);
        (kind == Kind::Weight).then(|| {
            let why = format!("{why}, inside a body, where nothing outside can reach it");
            let tensor = Tensor {
                name: name.to_owned(),
                source: Source::Constant,
                kind: Kind::Inside,
                why,
                element,
                value: Cow::Owned(value),
                layer: 0,
                place: role.first().map(|first| self.place(first)),
                product: None,
            };
            (role.first(), tensor)
        })
    }

    /// What a tensor of floating-point numbers is, and why.
    fn judge(&self, id: ValueId, name: &str, value: &TensorProto, source: &Source) -> (Kind, String) {
        let constant = |why: String| (Kind::Constant, why);
        if let Some(scope) = self.written.iter().find(|scope| name.starts_with(scope.as_str())) {
            return constant(format!("written by an earlier call of grad, which calls its tensors {scope}…"));
        }
        let role = self.flow.role(id);
        let weight = |operand: Operand, what: &str| (Kind::Weight, format!("{what} {}", self.describe(operand)));
        if let Some(place) = role.used(Use::Place) {
            if self.flow.is_data(place)
                && let Some(look) = Look::at(value)
                && (look.circles || look.zeros)
            {
                let what =
                    if look.circles { "sines and cosines of positions" } else { "zeros that a layer begins with" };
                return constant(format!("{what}, in {}", self.describe(place)));
            }
            if let Some(scale) = self.flow.scaled_behind(place)
                && Look::at(value).is_some_and(|l| l.neutral)
            {
                let scale = self.describe(scale);
                return constant(format!(
                    "nothing but ones or zeros, where the result is scaled behind it, in {scale}"
                ));
            }
            if let Some(why) = self.filters(place, value) {
                return constant(why.to_owned());
            }
            return weight(place, "weight of");
        }
        if let Some(statistic) = role.used(Use::Statistic) {
            return (Kind::Statistic, format!("statistic of {}", self.describe(statistic)));
        }
        let look = if matches!(source, Source::Dequantized) { None } else { Look::at(value) };
        let looks = |f: fn(&Look) -> bool| look.as_ref().is_some_and(f);
        let (single, wide) = (value.element_count() == Some(1), value.dims.iter().filter(|&&d| d != 1).count());
        let scalar = single && value.dims.is_empty();
        if !single && looks(|l| l.huge || l.hides) {
            return constant("a mask: it hides what it is added to, by numbers that no weight has".to_owned());
        }
        if looks(|l| l.circles)
            && let Some(positions) = [Use::Table, Use::Sum, Use::InputSum].iter().find_map(|&how| role.used(how))
        {
            return constant(format!("sines and cosines of positions, in {}", self.describe(positions)));
        }
        if let Some(table) = role.used(Use::Table) {
            return weight(table, "table of");
        }
        if let Some(table) = role.used(Use::ScalingTable) {
            return match looks(|l| l.sines) {
                true => constant(format!("sines or cosines of positions, looked up by {}", self.describe(table))),
                false => weight(table, "table of"),
            };
        }
        // A grid of places that is joined to an image spreads over two axes of it.
        let grid = value.dims.len() == 4 && value.dims.iter().skip(2).all(|&d| d > 1);
        // Zeros and other whole numbers fill up; a token that training begins with may be zero, and gets a position.
        if let Some(token) = role.used(Use::Token).filter(|_| !single && !grid)
            && (!looks(|l| l.filling) || self.flow.positions_behind(token).is_some())
        {
            return weight(token, "joined to data by");
        }
        if let Some(scale) = role.used(Use::Rescale) {
            return constant(format!("gives an output its unit, in {}", self.describe(scale)));
        }
        let heads = value.dims.iter().rev().skip(2).any(|&d| d > 1);
        if let Some(sum) = role.used(Use::Sum).filter(|&sum| wide > 1 && !heads && self.flow.is_of_scores(sum))
            && looks(|l| l.zeros)
        {
            return constant(format!("a mask that hides nothing, in {}", self.describe(sum)));
        }
        if let Some(sum) = role.used(Use::Sum).filter(|&sum| self.flow.is_of_scores(sum))
            && looks(|l| l.lines)
        {
            return constant(format!("distances of positions, in {}", self.describe(sum)));
        }
        if !single && let Some(sum) = role.used(Use::Sum).or(role.used(Use::OneSum)) {
            return weight(sum, "added by");
        }
        if !single && let Some(scale) = role.used(Use::Scale).or(role.used(Use::OneScale)) {
            return match (looks(|l| l.bits), wide > 1 && looks(|l| l.sines)) {
                (true, _) => constant("a mask of zeros and ones".to_owned()),
                (_, true) => constant("sines or cosines of positions".to_owned()),
                _ => weight(scale, "multiplied by"),
            };
        }
        if single && let Some(sum) = role.used(Use::OneSum) {
            return weight(sum, "the one bias, added by");
        }
        if single
            && !scalar
            && let Some(scale) = role.used(Use::OneScale)
        {
            return weight(scale, "the one scale, of");
        }
        // A number of a formula is written as it is; one that a function keeps positive or bounded was learned.
        if single
            && self.flow.is_parameter(id)
            && let Some(used) = [Use::Scale, Use::OneScale, Use::Sum].iter().find_map(|&how| role.used(how))
        {
            return weight(used, "made positive or bounded, for");
        }
        if let Some(sum) = role.used(Use::InputSum).filter(|_| wide > 1) {
            return weight(sum, "positions, added by");
        }
        self.constant(id, scalar || single)
    }

    /// Why the matrix or kernel of a layer is a bank of fixed filters, where it is one.
    fn filters(&self, place: Operand, value: &TensorProto) -> Option<&'static str> {
        let [first, .., _] = *value.dims else { return None };
        if self.flow.is_spectrum(place) {
            return Some(
                "filters of a spectrum: what they make of an input is squared, and nothing learned lies before",
            );
        }
        let node = self.graph.node(place.0);
        let values = value.floats().ok()?;
        let rule = rules::row(self.graph, node)?;
        let groups = attribute::get_int(&node.attributes, "group").unwrap_or(1);
        if rule.convolves && groups > 1 && groups == first && place.1 == 1 {
            let size = values.len() / usize::try_from(groups).ok()?;
            let mut kernels = values.chunks_exact(size.max(1));
            let one = kernels.next()?;
            let same = size > 1 && one.iter().any(|&v| v != 0.0) && kernels.all(|k| k == one);
            return same.then_some("a fixed filter: the same kernel for every channel");
        }
        let zeros = values.iter().filter(|&&v| v == 0.0).count();
        let weights =
            matches!(rule.apart, Apart::Rows(_)) && values.iter().all(|&v| v >= 0.0) && 2 * zeros >= values.len();
        let bank = weights && values.iter().any(|&v| v != 0.0 && v != 1.0) && self.flow.is_before_learning(place);
        bank.then_some("a bank of filters: most of it is zero, nothing negative, and nothing learned lies before")
    }

    /// Why a tensor that stands where no weight stands is a constant.
    fn constant(&self, id: ValueId, single: bool) -> (Kind, String) {
        let role = self.flow.role(id);
        let reasons = [
            (Use::Input, "normalizes an input, in"),
            (Use::InputSum, "normalizes an input, in"),
            (Use::Positions, "meets positions, sizes or integers alone, in"),
            (Use::Token, "fills up what it is joined to, in"),
            (Use::Scale, "a number of a formula, in"),
            (Use::Sum, "a number of a formula, in"),
            (Use::OneScale, "a number of a formula, in"),
        ];
        let found = reasons.iter().find_map(|(how, why)| Some((role.used(*how)?, *why)));
        let why = match (found.or(role.used(Use::Other).map(|o| (o, ""))), single) {
            (Some((operand, "")), _) => format!("no place of a weight: {}", self.describe(operand)),
            (Some((operand, why)), _) => format!("{why} {}", self.describe(operand)),
            (None, _) => "no node computes with it".to_owned(),
        };
        (Kind::Constant, why)
    }

    /// What a tensor of integers is, if it is a quantized weight.
    fn integers(&self, id: ValueId, element: ElementType, value: &TensorProto) -> Option<String> {
        let small = element.bits().is_some_and(|bits| bits <= 8) && element.is_integer();
        let (node, i) = self.flow.role(id).first()?;
        // What DequantizeLinear makes of integers is a tensor of its own. Zero points are lists.
        let own = self.graph.node(node).outputs.iter().flatten().any(|o| self.stands.contains(o));
        let matrix = small && value.dims.len() >= 2 && value.element_count().is_some_and(|n| n > 1);
        (matrix && !own).then(|| format!("integers of type {}, of {}", element.name(), self.describe((node, i))))
    }

    /// The product of which an operand is a factor; a third operand is a bias.
    fn product(&self, (node, i): Operand) -> Option<Product> {
        let node = Some(self.graph.node(node)).filter(|_| i < 2)?;
        let transposes = attribute::get_int(&node.attributes, if i == 0 { "transA" } else { "transB" });
        let rule = rules::row(self.graph, node);
        let form = match rule {
            Some(rule) if rule.convolves => Form::Kernel,
            Some(rule) if matches!(rule.apart, Apart::Rows(_)) => Form::Matrix,
            _ => Form::Other,
        };
        Some(Product { form, second: i == 1, transposes: transposes.unwrap_or(0) != 0 })
    }

    fn place(&self, (node, input): Operand) -> Place {
        let place = self.graph.place(node);
        let (node, operator) = (place.node.unwrap_or_default(), place.operator.unwrap_or_default());
        Place { node, operator, input }
    }

    fn describe(&self, (node, i): Operand) -> String {
        format!("{} (input {i})", self.graph.describe(node))
    }
}

/// What to say where no weight is found: what was looked at, and what may be done about it.
pub fn none_found<'t>(model: &ModelProto, tensors: impl Iterator<Item = (&'t str, Kind)> + Clone) -> String {
    let mut looked = Vec::new();
    for (kind, what) in [
        (Kind::Inside, "inside bodies of control flow (branches, loops), where nothing outside can reach them"),
        (Kind::Integers, "integers of quantized weights"),
        (Kind::Constant, "constants by their place, not weights"),
        (Kind::Statistic, "statistics of BatchNormalization"),
    ] {
        let names: Vec<&str> = tensors.clone().filter(|(_, k)| *k == kind).map(|(name, _)| name).collect();
        if !names.is_empty() {
            looked.push(format!("{}: {what}", listed(&names)));
        }
    }
    if looked.is_empty() {
        looked.push("it depends on no initializer and on no Constant node of floating-point numbers".to_owned());
    }
    let mut nodes = model.graph.iter().flat_map(|g| &g.node);
    let numbers = |n: &&NodeProto| n.domain() == "ai.onnx.ml" && n.attribute.iter().any(|a| a.floats.len() > 1);
    if let Some(node) = nodes.clone().find(numbers) {
        let name = Some(node.name()).filter(|name| !name.is_empty());
        let name = name.or(node.output.first().map(String::as_str)).unwrap_or_default();
        looked.push(format!(
            "node '{name}' ({}) holds its numbers as attributes, which are no tensors: a linear model is trained where it is written as a \
             MatMul and an Add",
            node.op_type()
        ));
    }
    if nodes.any(|n| is_gradient(n)) {
        looked.push("a Gradient node hides what it differentiates: write it out first (grad --lower)".to_owned());
    }
    looked.join("; ")
}
