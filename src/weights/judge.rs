//! What a constant tensor is: questions about where it stands and what it holds, of which the first that has an answer
//! decides.

use super::flow::{Flow, Operand, Role, Use};
use super::look::{self, Look};
use super::{Candidate, Form, Kind, Place, Product, Source, Tensor};
use crate::graph::{Graph, IdSet, ValueId};
use crate::onnx::{ElementType, TensorProto, attribute};
use crate::rules::{self, properties::Apart};
use std::borrow::Cow;
use std::cell::OnceCell;

/// What is asked of a candidate.
pub struct Asks<'a> {
    /// The model.
    pub graph: &'a Graph,
    /// Where its constants stand.
    pub flow: &'a Flow<'a>,
    /// The scopes of the names that earlier calls of `grad` have written.
    pub written: &'a [String],
    /// The candidates.
    pub stands: &'a IdSet<ValueId>,
}

/// A tensor of floating-point numbers, as the questions about it see it.
struct Numbers<'a> {
    id: ValueId,
    value: &'a TensorProto,
    role: Role,
    look: OnceCell<Option<Look>>,
    /// Whether it is one number.
    single: bool,
    /// Whether it is longer than 1 along several axes.
    wide: bool,
}

impl Numbers<'_> {
    fn looks(&self, f: fn(&Look) -> bool) -> bool {
        self.look.get_or_init(|| Look::at(self.value)).as_ref().is_some_and(f)
    }

    /// The first of these uses that it has.
    fn any_use(&self, uses: &[Use]) -> Option<Operand> {
        uses.iter().find_map(|&how| self.role.used(how))
    }
}

/// What a tensor is, and why, where a question has an answer.
type Answer = Option<(Kind, String)>;

fn constant(why: String) -> (Kind, String) {
    (Kind::Constant, why)
}

impl Asks<'_> {
    /// What it is, and the first operand that it is; `None` for integers that are no weight.
    pub fn tensor<'m>(&self, c: &Candidate<'m>) -> Option<(Option<Operand>, Tensor<'m>)> {
        let element = match &c.source {
            Source::Dequantized => self.graph.fact(c.id).element?,
            _ => c.value.element_type(),
        };
        let (kind, why) = match element.is_float() {
            true => self.judge(c.id, &c.name, &c.value),
            false => (Kind::Integers, self.integers(c.id, element, &c.value)?),
        };
        let role = self.flow.role(c.id);
        let place = role.used(Use::Place).or(role.used(Use::Table));
        Some((
            role.first(),
            Tensor {
                name: c.name.clone(),
                source: c.source.clone(),
                kind,
                why,
                element,
                value: c.value.clone(),
                layer: place.or(role.first()).map_or(0, |first| self.flow.layer(first)),
                place: place.or(role.first()).map(|first| self.place(first)),
                product: role.used(Use::Place).and_then(|place| self.product(place)),
            },
        ))
    }

    /// A constant inside a body, if it would be a weight outside.
    pub fn inner(&self, id: ValueId) -> Option<(Option<Operand>, Tensor<'static>)> {
        let name = self.graph.value(id).name.as_deref().unwrap_or_default();
        let (node, _) = self.graph.producer(id)?;
        let value = crate::onnx::constant_value(&self.graph.node(node).attributes).ok().flatten()?.into_owned();
        let element = Some(value.element_type()).filter(|e| e.is_float())?;
        let (kind, why) = self.judge(id, name, &value);
        let role = self.flow.role(id);
        (kind == Kind::Weight).then(|| {
            let why = format!("{why}, inside a body of control flow, from which trainable takes it out");
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

    /// What a tensor of floating-point numbers is, and why: the first question that has an answer decides.
    fn judge(&self, id: ValueId, name: &str, value: &TensorProto) -> (Kind, String) {
        let questions: [fn(&Self, &Numbers<'_>) -> Answer; 10] = [
            Self::of_a_layer,
            Self::of_filters,
            Self::of_a_statistic,
            Self::told_by_values,
            Self::of_a_table,
            Self::joined,
            Self::added,
            Self::multiplied,
            Self::one_number,
            Self::added_to_an_input,
        ];
        if let Some(scope) = self.written.iter().find(|scope| name.starts_with(scope.as_str())) {
            return constant(format!("written by an earlier call of grad, which calls its tensors {scope}…"));
        }
        let numbers = Numbers {
            id,
            value,
            role: self.flow.role(id),
            look: OnceCell::new(),
            single: value.element_count() == Some(1),
            wide: value.dims.iter().filter(|&&d| d != 1).count() > 1,
        };
        questions.iter().find_map(|question| question(self, &numbers)).unwrap_or_else(|| self.constant(id))
    }

    fn weight(&self, operand: Operand, what: &str) -> Answer {
        Some((Kind::Weight, format!("{what} {}", self.describe(operand))))
    }

    /// It stands where a layer has its weight, unless its values are none that are learned.
    fn of_a_layer(&self, c: &Numbers<'_>) -> Answer {
        let place = c.role.used(Use::Place)?;
        if self.flow.is_data(place) && c.looks(|l| l.circles || l.zeros) {
            let circles = c.looks(|l| l.circles);
            let what = if circles { "sines and cosines of positions" } else { "zeros that a layer begins with" };
            return Some(constant(format!("{what}, in {}", self.describe(place))));
        }
        if let Some(scale) = self.flow.scaled_behind(place).filter(|_| c.looks(|l| l.neutral)) {
            let scale = self.describe(scale);
            return Some(constant(format!(
                "nothing but ones or zeros, where the result is scaled behind it, in {scale}"
            )));
        }
        match self.filters(place, c.value) {
            Some(why) => Some(constant(why.to_owned())),
            None => self.weight(place, "weight of"),
        }
    }

    /// It stands where a layer has its weight, and nowhere where that was learned.
    fn of_filters(&self, c: &Numbers<'_>) -> Answer {
        let place = c.role.used(Use::Filter)?;
        let what = if c.looks(|l| l.zeros) { None } else { self.flow.filters(place) };
        Some(constant(format!("{}, in {}", what.unwrap_or("zeros beside fixed filters"), self.describe(place))))
    }

    fn of_a_statistic(&self, c: &Numbers<'_>) -> Answer {
        let statistic = c.role.used(Use::Statistic)?;
        Some((Kind::Statistic, format!("statistic of {}", self.describe(statistic))))
    }

    /// Its values say what it is: a mask, or a table of positions.
    fn told_by_values(&self, c: &Numbers<'_>) -> Answer {
        if !c.single && c.looks(|l| l.huge || l.hides) {
            return Some(constant("a mask: it hides what it is added to, by numbers that no weight has".to_owned()));
        }
        if let Some(end) = c.any_use(&[Use::Scale, Use::OneScale]).filter(|&end| self.flow.is_at_an_end(end))
            && c.looks(|l| l.window)
        {
            return Some(constant(format!("a window of frames, in {}", self.describe(end))));
        }
        let decodes = c.any_use(&[Use::Sum, Use::Scale]).filter(|&end| self.flow.is_at_the_end(end));
        if let Some(end) = decodes.filter(|&end| !self.flow.is_of_scores(end) && c.looks(|l| l.grid)) {
            return Some(constant(format!(
                "places and sizes of pixels, which make an output, in {}",
                self.describe(end)
            )));
        }
        let positions = c.any_use(&[Use::Table, Use::Sum, Use::InputSum]).filter(|_| c.looks(|l| l.circles))?;
        Some(constant(format!("sines and cosines of positions, in {}", self.describe(positions))))
    }

    /// It is a table whose rows are looked up.
    fn of_a_table(&self, c: &Numbers<'_>) -> Answer {
        let found = c.any_use(&[Use::Table, Use::ScalingTable])?;
        if self.flow.is_chosen(found) && c.looks(|l| l.ordered) {
            let found = self.describe(found);
            return Some(constant(format!(
                "what the places stand for among which a model chooses, looked up by {found}"
            )));
        }
        if let Some(table) = c.role.used(Use::Table) {
            return self.weight(table, "table of");
        }
        let table = c.role.used(Use::ScalingTable)?;
        match c.looks(|l| l.sines) {
            true => Some(constant(format!("sines or cosines of positions, looked up by {}", self.describe(table)))),
            false => self.weight(table, "table of"),
        }
    }

    /// It is joined to data, as the token that stands for a class; or it gives an output its unit.
    fn joined(&self, c: &Numbers<'_>) -> Answer {
        // A grid of places that is joined to an image spreads over two axes of it.
        let grid = c.value.dims.len() == 4 && c.value.dims.iter().skip(2).all(|&d| d > 1);
        // Zeros and other whole numbers fill up; a token that training begins with may be zero, and gets a position.
        if let Some(token) = c.role.used(Use::Token).filter(|_| !c.single && !grid)
            && (!c.looks(|l| l.filling) || self.flow.positions_behind(token).is_some())
        {
            return self.weight(token, "joined to data by");
        }
        let scale = c.role.used(Use::Rescale)?;
        Some(constant(format!("gives an output its unit, in {}", self.describe(scale))))
    }

    /// It is added to what goes on, as a bias is, and as masks and distances are to the scores of an attention.
    fn added(&self, c: &Numbers<'_>) -> Answer {
        let heads = c.value.dims.iter().rev().skip(2).any(|&d| d > 1);
        if let Some(sum) = c.role.used(Use::Sum).filter(|&sum| self.flow.is_of_scores(sum)) {
            if c.wide && !heads && c.looks(|l| l.zeros) {
                return Some(constant(format!("a mask that hides nothing, in {}", self.describe(sum))));
            }
            if c.looks(|l| l.lines) {
                return Some(constant(format!("distances of positions, in {}", self.describe(sum))));
            }
        }
        self.weight(c.any_use(&[Use::Sum, Use::OneSum]).filter(|_| !c.single)?, "added by")
    }

    /// What goes on is multiplied by it, as by a scale, and as by masks and positions.
    fn multiplied(&self, c: &Numbers<'_>) -> Answer {
        let scale = c.any_use(&[Use::Scale, Use::OneScale]).filter(|_| !c.single)?;
        if c.looks(|l| l.bits) {
            return Some(constant("a mask of zeros and ones".to_owned()));
        }
        if c.wide && c.looks(|l| l.sines) {
            return Some(constant("sines or cosines of positions".to_owned()));
        }
        if self.flow.is_of_chances(scale) && c.looks(|l| l.steps) {
            return Some(constant(format!("places, of which {} takes the mean", self.describe(scale))));
        }
        if self.flow.is_noise(scale) && c.looks(|l| l.signs) {
            let noise = self.describe(scale);
            return Some(constant(format!(
                "noise of when the model was traced: it multiplies a deviation, in {noise}"
            )));
        }
        self.weight(scale, "scale, in")
    }

    /// It is one number, where a layer has a bias or scale for all, or where a function keeps it positive or bounded: a
    /// number of a formula is written as it is.
    fn one_number(&self, c: &Numbers<'_>) -> Answer {
        if !c.single {
            return None;
        }
        if let Some(sum) = c.role.used(Use::OneSum) {
            return self.weight(sum, "the one bias, added by");
        }
        let affine = c.any_use(&[Use::Scale, Use::OneScale, Use::Sum]).filter(|_| !c.value.dims.is_empty());
        if let Some(pair) = affine
            && let Some(other) = self.flow.affine(pair)
            && look::are_learned(c.value, other)
        {
            return self.weight(pair, "one number of a scale and a shift that no formula has, in");
        }
        if let Some(scale) = c.role.used(Use::OneScale).filter(|_| !c.value.dims.is_empty()) {
            return self.weight(scale, "the one scale, of");
        }
        let used = c.any_use(&[Use::Scale, Use::OneScale, Use::Sum]).filter(|_| self.flow.is_parameter(c.id))?;
        self.weight(used, "made positive or bounded, for")
    }

    /// It is added to an input, as positions are to what comes out of a table.
    fn added_to_an_input(&self, c: &Numbers<'_>) -> Answer {
        self.weight(c.role.used(Use::InputSum).filter(|_| c.wide)?, "positions, added by")
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
    fn constant(&self, id: ValueId) -> (Kind, String) {
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
        let found = found.or_else(|| Some((role.used(Use::Other)?, "no place of a weight:")));
        constant(match found {
            Some((operand, why)) => format!("{why} {}", self.describe(operand)),
            None => "no node computes with it".to_owned(),
        })
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
