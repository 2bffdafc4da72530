//! The last phase: gradients held against slopes at several inputs, and what follows.
//!
//! A gradient *fails* where it is not the slope at one input and, in the same way, not at another; it is *compared*
//! where it agreed with a slope that is not zero; else nothing is known of it.

use super::case::Case;
use super::draw::{self, Draw, Floats};
use super::engine::Trouble;
use super::forward::{self, Point};
use super::sizes::Scale;
use super::slopes::{Direction, Function, Measured, Outcome, Rounding, Target, Tolerance};
use super::tensors::{Tensor, Tensors};
use super::wide::{self, Opened, Wide, not_compared};
use super::{GradientCheck, Stop, Tell, Validation, failed, listed, skipped};
use crate::onnx::{GraphProto, canonical_domain};
use crate::rules::{Rule, newest};
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Elements that are looked at together, at least.
const TOGETHER: usize = 512;
/// Elements of a large gradient that are looked at together, at most; it is looked at in [`PARTS`] parts, and a part
/// where kinks hide the slope is halved.
const MOST_TOGETHER: usize = 8192;
const PARTS: usize = 32;
/// Inputs that are tried to confirm a difference.
const CONFIRMATIONS: u64 = 8;
/// The share of the time that the opening of a place takes which is quick.
const QUICK: f64 = 0.05;

/// What is said of a gradient against which one input speaks.
const DOUBT: &str = "not compared: it is not the slope at one input, and no other one could be tried";

/// An input with all that is known there.
struct Place {
    point: Point,
    wide: Wide,
    opened: Opened,
    /// The run in the model's own types with the gradients, once it has been asked for.
    own: OnceCell<Option<Tensors>>,
    /// Whether the model is finite on the way to its ys, once it has been asked for.
    defined: OnceCell<bool>,
}

impl Place {
    fn new(point: Point, wide: Wide, opened: Opened) -> Place {
        Place { point, wide, opened, own: OnceCell::new(), defined: OnceCell::new() }
    }

    /// What a gradient is in the model's own types.
    fn own(&self, case: &Case, gradient: &str) -> Option<&Arc<Tensor>> {
        let run = || Some(forward::with_gradients(case, &self.point).ok()??.0);
        self.own.get_or_init(run).as_ref()?.get(gradient)
    }

    /// Whether the model is finite on the way to its ys.
    fn is_defined(&self, case: &Case) -> bool {
        *self.defined.get_or_init(|| self.opened.is_defined(case))
    }

    fn at(case: &Case, draw: Draw) -> Option<Place> {
        let point = forward::at(case, draw).ok()?;
        let wide = wide::run(case, &point).ok()?;
        let opened = wide.open(case).ok()?;
        Some(Place::new(point, wide, opened))
    }

    fn function(&self) -> Result<Function<'_>, Stop> {
        let Opened { plan, feeds, seeds, .. } = &self.opened;
        Function::new(&**plan, feeds.clone(), seeds.clone()).map_err(|t| not_compared(&t))
    }

    fn rounding(&self, case: &Case) -> Rounding {
        match case.half {
            _ if self.opened.plan.is_single() => Rounding::Single,
            true => Rounding::Half,
            false => Rounding::Double,
        }
    }
}

/// What has been found of one gradient.
#[derive(Default)]
struct Ledger {
    /// How often it agreed with a slope that is not zero.
    agreed: usize,
    /// The largest error of those.
    error: f64,
    /// Why it could not be compared, by what the places said.
    zero: usize,
    hidden: usize,
    rough: usize,
    /// Where the model did not run for another x, why; it may have run for others elsewhere.
    refused: Option<String>,
    /// What else there is to say; such a gradient is not compared at all.
    note: Option<String>,
    /// What speaks against it, once it is sure.
    wrong: Option<String>,
    /// Whether something speaks against it that could not be made sure.
    doubted: bool,
    /// For each element whether it has been looked at by itself.
    seen: Vec<bool>,
    /// The size of an element at the first place.
    usual: f64,
    /// Whether it has agreed alone, not only with others.
    alone: bool,
}

impl Ledger {
    fn is_open(&self) -> bool {
        self.note.is_none() && self.wrong.is_none()
    }

    fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Agrees(m) => {
                self.agreed += 1;
                self.error = self.error.max(m.error);
            }
            Outcome::Zero => self.zero += 1,
            Outcome::Hidden => self.hidden += 1,
            Outcome::Rough => self.rough += 1,
            Outcome::Differs(_) => (),
        }
    }
}

/// What speaks against a gradient at one input.
#[derive(Clone, Debug)]
enum Doubt {
    /// Another slope, of one element alone where it is said.
    Slope(Measured, Option<usize>),
    /// Another shape than its x has.
    Shape(Vec<usize>, Vec<usize>),
    /// No y depends on x, and it is not zero.
    NotZero,
}

struct Suspect {
    gradient: usize,
    doubt: Doubt,
}

/// How closely a place is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Every gradient alone.
    Each,
    /// All together, and alone those that have not been compared yet.
    Together,
}

struct Verdict<'a> {
    case: &'a Case<'a>,
    ledgers: Vec<Ledger>,
    /// What is known of each gradient beside its ledger.
    checks: Vec<GradientCheck>,
    tell: Tell<'a>,
    random: fastrand::Rng,
    start: Instant,
    /// The numbers of the first place.
    usual: Floats,
    /// How long it took to get to the first place: another is opened only where as much time is left, so that what has
    /// been compared is not lost with it.
    opening: Duration,
    /// When to begin nothing more.
    deadline: Instant,
}

/// Finds inputs, compares, and decides. `tell` hears of a gradient when it is compared for the first time, and when it
/// is found to be wrong.
///
/// # Errors
/// A gradient is wrong, or nothing could be compared: why.
pub fn run(case: &Case, validation: &mut Validation, tell: Tell) -> Result<(), Stop> {
    let start = Instant::now();
    let (mut outputs, mut own) = (vec![], None);
    let (point, (wide, opened)) = forward::find(case, |point| {
        let ran = forward::with_gradients(case, point)?;
        let wide = wide::run(case, point)?;
        let opened = wide.open(case)?;
        if let Some((tensors, checks)) = ran {
            (outputs, own) = (checks, Some(tensors));
        }
        Ok((wide, opened))
    })?;
    validation.outputs = outputs;
    validation.dims = point.dims.clone();
    let place = Place::new(point, wide, opened);
    let random = fastrand::Rng::with_seed(case.options.seed ^ 0x9e37_79b9_7f4a_7c15);
    let ledgers = case.record.gradients.iter().map(|_| Ledger::default()).collect();
    let opening = start.elapsed();
    let usual = place.point.draw.floats;
    let deadline = case.deadline;
    let mut verdict = Verdict { case, ledgers, checks: vec![], tell, random, start, usual, opening, deadline };
    verdict.main(&place, validation)?;
    if let Some(own) = own {
        for check in &mut validation.gradients {
            let narrow = check.gradient.as_ref().and_then(|g| own.get(g));
            check.finite &= narrow.is_none_or(|t| t.is_finite());
        }
    }
    validation.inputs = 1 + verdict.further(&place)?;
    verdict.conclude(validation)
}

/// What is wrong with a gradient, by what was measured at two inputs: of one element, or along a random direction.
fn wrong(first: &Measured, second: &Measured, element: Option<usize>, rounding: Rounding) -> String {
    if !first.claimed.is_finite() || !second.claimed.is_finite() {
        let (first, second) = (first.slope, second.slope);
        return format!("is not finite, where the slope is: {first:.5e}, and {second:.5e} at another input");
    }
    let (place, bound) = match element {
        Some(element) => (format!("in element {element}"), rounding.element_bound().unwrap_or_default()),
        None => ("along a random direction".to_owned(), rounding.bound()),
    };
    let error = first.error.max(second.error);
    format!(
        "is not the slope: relative error {error:.1e}, bound {bound:.0e}; {place} it says {:.6e}, the slope is {:.6e}; at \
         another input {:.6e} and {:.6e}",
        first.claimed, first.slope, second.claimed, second.slope
    )
}

impl Verdict<'_> {
    /// Takes down what a direction says of a gradient.
    fn take(&mut self, i: usize, outcome: Outcome) {
        self.ledgers[i].take(outcome);
        if self.ledgers[i].agreed == 1 && matches!(outcome, Outcome::Agrees(_)) {
            self.report(i);
        }
    }

    /// Tells what is known of a gradient by now.
    fn report(&self, i: usize) {
        let (Some(check), Some(ledger)) = (self.checks.get(i), self.ledgers.get(i)) else { return };
        let check = match ledger.doubted {
            true => GradientCheck { note: Some(DOUBT.to_owned()), ..check.clone() },
            false => GradientCheck { compared: true, error: Some(ledger.error), ..check.clone() },
        };
        (self.tell)(i, &check, ledger.wrong.as_deref());
    }

    /// Whether this share of the time is over.
    fn has_used(&self, share: f64) -> bool {
        self.start.elapsed() >= self.share(share)
    }

    /// A share of the time.
    fn share(&self, share: f64) -> Duration {
        self.deadline.saturating_duration_since(self.start).mul_f64(share)
    }

    /// How long another place takes to open, about: as much longer as its inputs hold more elements.
    fn costs(&self, main: Draw, draw: Draw) -> Duration {
        let count = |draw: Draw| draw::count(self.case, &self.case.sizes.bind(draw.scale)).max(1) as f64;
        self.opening.mul_f64((count(draw) / count(main)).clamp(1.0, 1e6))
    }

    /// Whether there is time for another place.
    fn can_open(&self) -> bool {
        Instant::now() + self.opening < self.deadline
    }

    /// Whether the time is over.
    fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// The gradients of which nothing is known yet.
    fn unknown(&self) -> impl Iterator<Item = &Ledger> {
        let claimed = self.case.record.gradients.iter().zip(&self.ledgers).filter(|(g, _)| g.name.is_some());
        claimed.map(|(_, ledger)| ledger).filter(|ledger| ledger.is_open() && ledger.agreed == 0)
    }

    /// Compares all gradients at the first place.
    fn main(&mut self, place: &Place, validation: &mut Validation) -> Result<(), Stop> {
        for (check, ledger) in validation.gradients.iter_mut().zip(&mut self.ledgers) {
            let gradient = check.gradient.as_ref().and_then(|g| place.wide.value_of(g));
            check.finite = gradient.is_none_or(|g| g.is_finite());
            let norm = gradient.map(|g| g.values().iter().map(|v| v * v).sum::<f64>().sqrt());
            check.norm = norm.filter(|norm| norm.is_finite());
            let x = place.wide.value_of(&check.x);
            check.shape = gradient.is_none_or(|g| x.is_some_and(|x| x.dims() == g.dims()));
            check.bound = place.rounding(self.case).bound();
            ledger.seen = vec![false; gradient.map_or(0, |g| g.count())];
            ledger.usual = check.norm.unwrap_or(0.0) / f64::sqrt(ledger.seen.len().max(1) as f64);
        }
        let straight_through = self.case.record.straight_through;
        let graph = place.opened.model.graph.as_ref();
        let conventions = graph.map(|graph| conventions(graph, straight_through)).unwrap_or_default();
        for (g, ledger) in self.case.record.gradients.iter().zip(&mut self.ledgers) {
            let Some(target) = place.opened.targets.get(&g.x) else { continue };
            if let Some(op) = conventions.get(&target.input) {
                ledger.note = Some(match straight_through {
                    true => format!("not compared: straight-through: the gradient passes the rounding of {op}"),
                    false => format!("not compared: the gradient of {op} is a convention, not a slope"),
                });
            }
        }
        self.checks.clone_from(&validation.gradients);
        let suspects = self.look(place, Look::Each)?;
        self.confirm(place.point.draw, suspects);
        Ok(())
    }

    /// Looks more closely, and elsewhere: first for those gradients of which nothing is known yet. Returns at how many
    /// other inputs.
    fn further(&mut self, place: &Place) -> Result<usize, Stop> {
        if self.case.options.reseeded && self.unknown().any(|ledger| ledger.zero > 0) {
            // With other seeds more of them can be compared than at other inputs.
            if self.ledgers.iter().all(|ledger| ledger.agreed == 0) {
                return Ok(0);
            }
            self.deadline = self.start + self.share(0.5);
        }
        let unknown = self.unknown().next().is_some();
        let visited = if unknown { self.elsewhere(place.point.draw, false)? } else { 0 };
        // What the engine refuses of single elements says nothing about what has been compared.
        let suspects = self.elements(place, 0.5).unwrap_or_default();
        self.confirm(place.point.draw, suspects);
        Ok(visited.max(self.elsewhere(place.point.draw, true)?))
    }

    /// Looks at other inputs, as long as there is time; returns at how many. If not closely, at few, until something is
    /// known of every gradient.
    fn elsewhere(&mut self, main: Draw, closely: bool) -> Result<usize, Stop> {
        let mut visited = 0;
        if self.case.is_given() {
            return Ok(0);
        }
        for (i, draws) in draw::others(main, self.case.sizes.are_free()).into_iter().enumerate() {
            let share = match i {
                _ if !closely => 0.45,
                ..draw::IN_ANY_CASE => 0.9,
                _ => 0.5,
            };
            let over = self.has_used(share) || !self.can_open();
            let done = !closely && (i >= draw::IN_ANY_CASE || self.unknown().next().is_none());
            if visited >= self.case.options.others || over || done || !self.ledgers.iter().any(Ledger::is_open) {
                break;
            }
            let quick = |draw: &Draw| {
                let costs = self.costs(main, *draw);
                let fits = Instant::now() + costs < self.case.deadline;
                fits && (i < draw::IN_ANY_CASE || costs < self.share(QUICK))
            };
            let small = |draw: &Draw| !draw::is_too_costly(&self.case.sizes, draw.scale, main.scale);
            let mut draws = draws.into_iter().filter(quick).filter(small);
            let Some((draw, place)) = draws.find_map(|draw| Some((draw, Place::at(self.case, draw)?))) else {
                continue;
            };
            visited += 1;
            // What does not run beside this input says nothing about the others.
            let Ok(mut suspects) = self.look(&place, Look::Together) else { continue };
            if closely && suspects.is_empty() {
                suspects = self.elements(&place, 0.9).unwrap_or_default();
            }
            self.confirm(draw, suspects);
        }
        Ok(visited)
    }

    /// Compares at a place. What disagrees is returned.
    fn look(&mut self, place: &Place, look: Look) -> Result<Vec<Suspect>, Stop> {
        let case = self.case;
        let function = place.function()?;
        if !function.is_finite() {
            return Err(skipped("the ys are not finite in float64 for random inputs; give --input or --range"));
        }
        let rounding = place.rounding(case);
        let mut suspects = Vec::new();
        let targets = self.targets(place, &mut suspects);
        let together = self.jointly(&function, &targets, rounding);
        // Gradients of which nothing is known yet come first: the time may be over before all have been looked at.
        let mut order: Vec<usize> = (0..targets.len()).collect();
        order.sort_by_key(|&i| self.ledgers[i].agreed > 0);
        for i in order {
            let Some(target) = &targets[i] else { continue };
            let alone = match look {
                Look::Each => true,
                Look::Together => {
                    let has_gradient = case.record.gradients[i].name.is_some();
                    let open = self.ledgers[i].agreed == 0 && has_gradient;
                    open || matches!((together[i], has_gradient), (None, true) | (Some(Outcome::Differs(_)), _))
                }
            };
            let late = self.has_used(if look == Look::Each { 0.35 } else { 0.95 });
            let zero = together[i] == Some(Outcome::Zero);
            if !alone || zero || (late && self.ledgers[i].agreed > 0) || self.is_late() {
                continue;
            }
            if let Some(suspect) = self.alone(&function, i, target, rounding)? {
                if let Doubt::Slope(m, None) = suspect.doubt
                    && self.says_nothing(place, i, target, &m, None)
                {
                    self.ledgers[i].hidden += 1;
                    continue;
                }
                self.ledgers[i].doubted = true;
                self.report(i);
                suspects.push(suspect);
            }
        }
        Ok(suspects)
    }

    /// What each gradient is compared with; one that has nothing to be compared with agrees, or is a suspect.
    fn targets(&mut self, place: &Place, suspects: &mut Vec<Suspect>) -> Vec<Option<Target>> {
        let mut targets = Vec::new();
        for (i, g) in self.case.record.gradients.iter().enumerate() {
            targets.push(None);
            if !self.ledgers[i].is_open() {
                continue;
            }
            let gradient = g.name.as_ref().and_then(|name| place.wide.value_of(name));
            let Some(target) = place.opened.targets.get(&g.x) else {
                match gradient {
                    // What no y depends on has no slope, anywhere.
                    Some(g) if g.values().iter().any(|&v| v != 0.0) => {
                        suspects.push(Suspect { gradient: i, doubt: Doubt::NotZero });
                    }
                    _ => self.ledgers[i].agreed += 1,
                }
                continue;
            };
            targets[i] = match gradient {
                None if g.name.is_some() => None,
                None => Some(target.without_gradient()),
                Some(gradient) if gradient.dims() != target.dims => {
                    let doubt = Doubt::Shape(gradient.dims().to_vec(), target.dims.clone());
                    suspects.push(Suspect { gradient: i, doubt });
                    None
                }
                Some(gradient) => Some(Target { gradient: Arc::new(gradient.values()), ..target.clone() }),
            };
        }
        targets
    }

    /// Compares along one direction over all xs of a group, to which each contributes alike: it finds an error in any
    /// of them. What comes of it, for each that stands in a group of several.
    fn jointly(&mut self, function: &Function, targets: &[Option<Target>], rounding: Rounding) -> Vec<Option<Outcome>> {
        let gradients = &self.case.record.gradients;
        let mut names = HashSet::new();
        let joint: Vec<(usize, &Target)> = (targets.iter().enumerate())
            .filter_map(|(i, target)| Some((i, target.as_ref()?)))
            .filter(|&(i, _)| gradients[i].name.is_some() && names.insert(&gradients[i].x))
            .collect();
        let mut together: Vec<Option<Outcome>> = vec![None; targets.len()];
        let mut open = groups(&joint);
        open.reverse();
        while let Some(mut group) = open.pop() {
            if group.len() < 2 {
                continue;
            }
            let all: Vec<&Target> = group.iter().map(|&(_, target)| target).collect();
            let tolerance = Tolerance::Relative(rounding.bound());
            // Where it does not run at all, some x need not be valid beside its value: each alone says which.
            let outcome = function.compare(&alike(&all, &mut self.random), rounding, tolerance);
            let outcome = outcome.unwrap_or(Outcome::Rough);
            for &(i, target) in &group {
                match outcome {
                    Outcome::Agrees(_) if target.typical() > 0.0 => self.take(i, outcome),
                    Outcome::Zero => self.take(i, outcome),
                    _ => (),
                }
                together[i] = Some(outcome);
            }
            // There are fewer kinks along fewer xs, and one that is wrong hides not all.
            let known = |&(i, _): &(usize, &Target)| self.ledgers[i].agreed > 0;
            let clear = matches!(outcome, Outcome::Agrees(_) | Outcome::Zero) || group.iter().all(known);
            if !clear && group.len() > 3 && !self.is_late() {
                let rest = group.split_off(group.len() / 2);
                open.extend([rest, group]);
            }
        }
        together
    }

    /// Compares one gradient along directions of its own.
    fn alone(
        &mut self,
        function: &Function,
        i: usize,
        target: &Target,
        rounding: Rounding,
    ) -> Result<Option<Suspect>, Stop> {
        let directions = self.case.options.directions.max(1);
        let without = self.case.record.gradients[i].name.is_none();
        let (mut agreed, mut tries) = (0, 0);
        while agreed < directions && tries < directions + 2 {
            tries += 1;
            let direction = vec![(target, target.direction(&mut self.random))];
            let outcome = match function.compare(&direction, rounding, Tolerance::Relative(rounding.bound())) {
                // Scales or boxes that are no xs of a slope need not be valid anywhere else.
                Err(_) if without => {
                    self.ledgers[i].note =
                        Some("no gradient, and the model does not run where it is another".to_owned());
                    return Ok(None);
                }
                // Nor need a bound of a range, or a number of trips.
                Err(Trouble::Failed(reason) | Trouble::Panicked(reason)) => {
                    self.ledgers[i].refused = Some(format!("the model does not run where it is another: {reason}"));
                    return Ok(None);
                }
                outcome => outcome.map_err(|t| not_compared(&t))?,
            };
            self.take(i, outcome);
            match outcome {
                Outcome::Agrees(_) => {
                    agreed += 1;
                    self.ledgers[i].alone = true;
                }
                // That the ys do not change is what no gradient says.
                Outcome::Zero if without => {
                    self.ledgers[i].agreed += 1;
                    return Ok(None);
                }
                Outcome::Zero | Outcome::Hidden => return Ok(None),
                Outcome::Differs(_) if without => {
                    self.ledgers[i].note = Some(
                        "no gradient, yet the ys change with it: an operator on the way stops it by convention"
                            .to_owned(),
                    );
                    return Ok(None);
                }
                Outcome::Differs(m) => return Ok(Some(Suspect { gradient: i, doubt: Doubt::Slope(m, None) })),
                Outcome::Rough => (),
            }
        }
        Ok(None)
    }

    /// Looks at elements by themselves, those that have not been looked at: a few hundred at once, each with the same
    /// part in the slope, and where those disagree at fewer and fewer.
    fn elements(&mut self, place: &Place, share: f64) -> Result<Vec<Suspect>, Stop> {
        let rounding = place.rounding(self.case);
        let bound = rounding.element_bound().filter(|_| self.case.options.closely);
        let Some(bound) = bound else { return Ok(vec![]) };
        let function = place.function()?;
        let mut suspects = Vec::new();
        for (i, g) in self.case.record.gradients.iter().enumerate() {
            let gradient = g.name.as_ref().and_then(|name| place.wide.value_of(name));
            let (Some(gradient), Some(target)) = (gradient, place.opened.targets.get(&g.x)) else { continue };
            let ledger = &self.ledgers[i];
            if !ledger.is_open() || ledger.agreed == 0 || gradient.dims() != target.dims || !gradient.is_finite() {
                continue;
            }
            let target = Target { gradient: Arc::new(gradient.values()), ..target.clone() };
            let part = target.part();
            if part == 0.0 {
                continue;
            }
            let counted = ledger.seen.len() == target.base.len();
            let mut open: Vec<usize> = (0..target.base.len()).filter(|&e| !counted || !ledger.seen[e]).collect();
            self.random.shuffle(&mut open);
            let size = (open.len() / PARTS).clamp(TOGETHER, MOST_TOGETHER);
            let mut parts: Vec<&[usize]> = open.chunks(size).rev().collect();
            while let Some(chunk) = parts.pop() {
                if self.has_used(share) {
                    return Ok(suspects);
                }
                let tolerance = Tolerance::Part(bound * part, part);
                let direction = vec![(&target, target.balanced(chunk, &mut self.random))];
                let Ok(outcome) = function.compare(&direction, rounding, tolerance) else { break };
                match outcome {
                    Outcome::Agrees(_) if counted => {
                        let used = |e: &&usize| target.gradient[**e].abs() * target.reach * 100.0 >= part;
                        chunk.iter().filter(used).for_each(|&e| self.ledgers[i].seen[e] = true);
                    }
                    Outcome::Differs(_) => {
                        if let Some((element, m)) = self.locate(&function, &target, chunk, rounding, bound)?
                            && !self.says_nothing(place, i, &target, &m, Some(element))
                        {
                            suspects.push(Suspect { gradient: i, doubt: Doubt::Slope(m, Some(element)) });
                            break;
                        }
                    }
                    Outcome::Rough | Outcome::Hidden if chunk.len() > TOGETHER => {
                        let (first, second) = chunk.split_at(chunk.len() / 2);
                        parts.extend([second, first]);
                    }
                    _ => (),
                }
            }
        }
        Ok(suspects)
    }

    /// The element among several that is not the slope.
    fn locate(
        &mut self,
        function: &Function,
        target: &Target,
        elements: &[usize],
        rounding: Rounding,
        bound: f64,
    ) -> Result<Option<(usize, Measured)>, Stop> {
        let part = target.part();
        let tolerance = Tolerance::Part(bound * part, part);
        let mut elements = elements.to_vec();
        while elements.len() > 1 {
            let (left, right) = elements.split_at(elements.len() / 2);
            let mut next = None;
            for half in [left, right] {
                let direction = vec![(target, target.balanced(half, &mut self.random))];
                let outcome = function.compare(&direction, rounding, tolerance).map_err(|t| not_compared(&t))?;
                if matches!(outcome, Outcome::Differs(_)) {
                    next = Some(half.to_vec());
                    break;
                }
            }
            // Many small errors that add up are no wrong element.
            let Some(next) = next else { return Ok(None) };
            elements = next;
        }
        let Some(&element) = elements.first() else { return Ok(None) };
        Ok(self.element(function, target, element, rounding, bound)?.map(|m| (element, m)))
    }

    /// What one element says, if it is not the slope.
    fn element(
        &mut self,
        function: &Function,
        target: &Target,
        element: usize,
        rounding: Rounding,
        bound: f64,
    ) -> Result<Option<Measured>, Stop> {
        let part = target.part();
        let direction = vec![(target, target.balanced(&[element], &mut self.random))];
        let tolerance = Tolerance::Part(bound * part, part);
        let outcome = function.compare(&direction, rounding, tolerance).map_err(|t| not_compared(&t))?;
        Ok(match outcome {
            Outcome::Differs(m) if (m.slope - m.claimed).abs() > bound * m.claimed.abs().max(m.slope.abs()) => Some(m),
            _ => None,
        })
    }

    /// Whether a difference says nothing, since the numbers are far from those that models are made for: where the
    /// model itself has infinite ones on the way, `log(exp(x))` of -800, no gradient is asked for; and all that is left
    /// of some gradients is what two roundings differ by, so that a difference may be no larger than what rounding to
    /// the model's own types makes of the gradient.
    fn says_nothing(&self, place: &Place, i: usize, target: &Target, m: &Measured, element: Option<usize>) -> bool {
        if place.point.draw.floats == self.usual {
            return false;
        }
        if !m.claimed.is_finite() {
            return !place.is_defined(self.case);
        }
        // So small are differences of equal numbers in float64.
        if m.claimed.abs().max(m.slope.abs()) <= 1e-12 * self.ledgers[i].usual * target.reach {
            return true;
        }
        let name = self.case.record.gradients[i].name.as_deref().unwrap_or_default();
        let Some(own) = place.own(self.case, name) else { return false };
        if own.dims() != target.dims || !own.is_finite() {
            return !own.is_finite();
        }
        let apart: Vec<f64> = own.values().iter().zip(&*target.gradient).map(|(a, b)| (a - b).abs()).collect();
        let rounding = match element {
            Some(e) if target.gradient[e] == 0.0 => apart[e] * target.reach,
            Some(e) => apart[e] * (m.claimed / target.gradient[e]).abs(),
            None => apart.iter().map(|a| a * a).sum::<f64>().sqrt() * target.reach,
        };
        (m.claimed - m.slope).abs() <= 16.0 * rounding
    }

    /// Looks at other inputs of the same kind: what disagrees at one of those, too, is wrong.
    fn confirm(&mut self, draw: Draw, suspects: Vec<Suspect>) {
        let mut open = suspects;
        for suspect in &open {
            self.ledgers[suspect.gradient].doubted = true;
            self.report(suspect.gradient);
        }
        for try_ in 1..=CONFIRMATIONS {
            if open.is_empty() || !self.can_open() {
                break;
            }
            // A shape that depends on sizes which should have been equal is no wrong one.
            let scale = match open.iter().any(|s| matches!(s.doubt, Doubt::Shape(..))) {
                true => Scale { first: 2 + try_ as i64, next: 2 + try_ as i64, distinct: false },
                false => draw.scale,
            };
            let seed = draw.seed.wrapping_add(1000 * try_);
            let Some(place) = Place::at(self.case, Draw { seed, scale, ..draw }) else { continue };
            for suspect in &open {
                self.ledgers[suspect.gradient].doubted = false;
            }
            open.retain(|suspect| match self.again(&place, suspect) {
                Ok(Some(reason)) => {
                    self.ledgers[suspect.gradient].wrong.get_or_insert(reason);
                    self.report(suspect.gradient);
                    false
                }
                _ => true,
            });
        }
        for suspect in open {
            self.ledgers[suspect.gradient].rough += 1;
            if self.ledgers[suspect.gradient].agreed > 0 {
                self.report(suspect.gradient);
            }
        }
    }

    /// What speaks against a gradient at another place as well, in words.
    fn again(&mut self, place: &Place, suspect: &Suspect) -> Result<Option<String>, Stop> {
        let g = &self.case.record.gradients[suspect.gradient];
        let name = g.name.clone().unwrap_or_default();
        let Some(gradient) = place.wide.value_of(&name) else { return Ok(None) };
        let target = place.opened.targets.get(&g.x);
        let says = |what: String| Ok(Some(format!("gradient '{name}' with respect to '{}' {what}", g.x)));
        match (&suspect.doubt, target) {
            (Doubt::NotZero, None) if gradient.values().iter().any(|&v| v != 0.0) => {
                says("is not zero, but no y depends on it".to_owned())
            }
            (Doubt::Shape(shape, x), Some(target)) if gradient.dims() != target.dims => {
                says(format!("has shape {shape:?}, its x {x:?}"))
            }
            (Doubt::Slope(first, element), Some(target)) if gradient.dims() == target.dims => {
                let function = place.function()?;
                if !function.is_finite() {
                    return Ok(None);
                }
                let target = Target { gradient: Arc::new(gradient.values()), ..target.clone() };
                let rounding = place.rounding(self.case);
                let second = match *element {
                    Some(element) if element < target.base.len() => {
                        let bound = rounding.element_bound().unwrap_or(1.0);
                        self.element(&function, &target, element, rounding, bound)?
                    }
                    Some(_) => None,
                    None => {
                        let direction = vec![(&target, target.direction(&mut self.random))];
                        let tolerance = Tolerance::Relative(rounding.bound());
                        let outcome = function.compare(&direction, rounding, tolerance);
                        match outcome.map_err(|t| not_compared(&t))? {
                            Outcome::Differs(m) => Some(m),
                            _ => None,
                        }
                    }
                };
                let Some(second) = second else { return Ok(None) };
                if self.says_nothing(place, suspect.gradient, &target, &second, *element) {
                    return Ok(None);
                }
                self.ledgers[suspect.gradient].error = first.error.max(second.error);
                says(wrong(first, &second, *element, rounding))
            }
            _ => Ok(None),
        }
    }

    /// Writes down what is known, and decides.
    fn conclude(self, validation: &mut Validation) -> Result<(), Stop> {
        let mut problems = Vec::new();
        let places = validation.inputs;
        let late = self.is_late();
        for (check, ledger) in validation.gradients.iter_mut().zip(self.ledgers) {
            let note = ledger.note.or_else(|| ledger.doubted.then(|| DOUBT.to_owned()));
            check.compared = ledger.agreed > 0 && note.is_none();
            check.error = (ledger.agreed > 0 || ledger.wrong.is_some()).then_some(ledger.error);
            check.note = note;
            if let Some(reason) = ledger.wrong {
                check.compared = true;
                problems.push(reason);
                continue;
            }
            if !check.compared {
                check.error = None;
                let others = ledger.hidden.max(ledger.rough);
                let is_silent = check.note.is_none() && ledger.refused.is_none();
                check.zero = check.gradient.is_some() && ledger.zero > 0 && ledger.zero >= others && is_silent;
                let why = || match (ledger.zero, ledger.hidden, ledger.rough) {
                    (0, 0, 0) if late => "the time was over".to_owned(),
                    (0, 0, 0) => "it was not reached".to_owned(),
                    (zero, hidden, rough) if zero >= hidden.max(rough) => {
                        let tried = match places {
                            1 => "the input that was tried".to_owned(),
                            n => format!("each of the {n} inputs that were tried"),
                        };
                        format!("it is zero, or as small as rounding, at {tried}")
                    }
                    (_, hidden, rough) if hidden >= rough => "rounding hides the slope".to_owned(),
                    _ => "the function is not smooth here".to_owned(),
                };
                let why = ledger.refused.unwrap_or_else(why);
                check.note.get_or_insert_with(|| format!("not compared: {why}"));
            } else if !ledger.alone && check.gradient.is_some() && late {
                check.note = Some("compared together with the other xs, not alone: the time was over".to_owned());
            }
        }
        if !problems.is_empty() {
            return Err(failed(listed(&problems)));
        }
        let claimed = || validation.gradients.iter().filter(|g| g.gradient.is_some());
        if claimed().any(|g| g.compared) {
            return Ok(());
        }
        Err(skipped(match claimed().next() {
            None if validation.gradients.is_empty() => "it runs, and claims no gradient to compare".to_owned(),
            None => "no x has a gradient that could be compared".to_owned(),
            Some(first) => {
                let note = first.note.clone().unwrap_or_default();
                format!("nothing was compared: '{}': {}", first.x, note.trim_start_matches("not compared: "))
            }
        }))
    }
}

/// The xs whose slopes are of one size, so that each is seen among the others: within a factor of 100.
fn groups<'t>(targets: &[(usize, &'t Target)]) -> Vec<Vec<(usize, &'t Target)>> {
    let mut sorted: Vec<(f64, (usize, &Target))> = targets.iter().map(|&(i, t)| (t.typical(), (i, t))).collect();
    sorted.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut groups: Vec<Vec<(usize, &Target)>> = Vec::new();
    let mut largest = f64::NAN;
    for (typical, target) in sorted {
        match groups.last_mut() {
            Some(group) if typical * 100.0 >= largest => group.push(target),
            _ => {
                groups.push(vec![target]);
                largest = typical;
            }
        }
    }
    groups
}

/// A direction over several xs, to whose slope each contributes alike.
fn alike<'t>(targets: &[&'t Target], random: &mut fastrand::Rng) -> Direction<'t> {
    let largest = targets.iter().map(|t| t.typical()).fold(0.0, f64::max);
    let direction = targets.iter().map(|&t| {
        let weight = if t.typical() > 0.0 { (largest / t.typical()).min(100.0) } else { 1.0 };
        (t, t.direction(random).into_iter().map(|v| v * weight).collect())
    });
    direction.collect()
}

/// For each tensor the first operator on its ways to the ys whose gradient is a convention.
fn conventions(graph: &GraphProto, straight_through: bool) -> HashMap<String, &'static str> {
    let mut first: HashMap<String, usize> = HashMap::new();
    let rules: Vec<Option<&'static Rule>> =
        graph.node.iter().map(|n| newest(canonical_domain(n.domain()), n.op_type())).collect();
    for (i, (node, rule)) in graph.node.iter().zip(&rules).enumerate().rev() {
        if rule.is_some_and(|r| r.shapes_only) {
            continue;
        }
        let own = rule.filter(|r| r.is_conventional(straight_through)).map(|_| i);
        let behind = node.output.iter().filter_map(|o| first.get(o).copied());
        let Some(found) = own.into_iter().chain(behind).min() else { continue };
        node.uses(&mut |name| {
            first.entry(name.to_owned()).and_modify(|f| *f = found.min(*f)).or_insert(found);
        });
    }
    first.into_iter().filter_map(|(name, i)| Some((name, rules[i]?.op))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_slopes_of_one_size() {
        let target = |g: f64| Target {
            input: "x".to_owned(),
            base: Arc::new(vec![1.0]),
            dims: vec![1],
            gradient: Arc::new(vec![g]),
            reach: 1.0,
        };
        let targets: Vec<Target> = [1e-3, 1.0, 0.0, f64::NAN, -0.1, 2e-5].into_iter().map(target).collect();
        let numbered: Vec<(usize, &Target)> = targets.iter().enumerate().collect();
        let found: Vec<Vec<usize>> = groups(&numbered).iter().map(|g| g.iter().map(|&(i, _)| i).collect()).collect();
        assert_eq!(found, [vec![3], vec![1, 4], vec![0, 5], vec![2]]);
    }
}
