//! Compares the gradients with differences, all together first, then each.

use super::differences::{self, Function, Outcome, Rounding, Target};
use super::double::Double;
use super::engine::Precision;
use super::own::uses;
use super::tensors;
use super::{Check, Stop, edit, failed, listed, not_compared, unique};
use crate::onnx::{ElementType, GraphProto, canonical_domain};
use crate::rules::{Rule, newest};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

impl Double {
    /// Compares every gradient with differences, all together first, then each.
    pub fn compare(self, check: &mut Check) -> Result<(), Stop> {
        let seeds = self.seeds(check.record)?;
        if seeds.is_empty() {
            return Ok(());
        }
        let mut model = self.model.clone();
        let xs: HashSet<String> = (check.record.gradients.iter())
            .filter(|g| self.value_of(&g.x).is_some_and(|t| t.is_float()))
            .map(|g| g.x.clone())
            .collect();
        edit::open(&mut model, &xs, &self.cut);
        let ys = unique(seeds.iter().map(|(y, _)| y.clone()));
        edit::prune(&mut model, &ys);
        let inputs: HashSet<String> = model.graph.iter().flat_map(|g| &g.input).map(|i| i.name().to_owned()).collect();
        let mut feeds = self.feeds.clone();
        let mut targets = BTreeMap::new();
        for x in &xs {
            let Some(value) = self.value_of(x) else { continue };
            let values = value.values();
            let reach = differences::reach(&values);
            let (input, base) = match inputs.contains(&edit::delta(x)) {
                true => (edit::delta(x), vec![0.0; values.len()]),
                false => (x.clone(), values),
            };
            feeds.insert(input.clone(), Arc::new(tensors::double(value.dims(), &base)?));
            if inputs.contains(&input) {
                let dims = value.dims().to_vec();
                targets.insert(x.clone(), Target { input, base: Arc::new(base), dims, gradient: vec![], reach });
            }
        }
        for name in &self.cut {
            if let Some(value) = self.values.get(name) {
                feeds.insert(name.clone(), value.clone());
            }
        }
        let plan = check.engine.prepare(&model, &feeds, Precision::Double).map_err(|t| not_compared(&t))?;
        let function = Function::new(&*plan, feeds, seeds, Instant::now() + check.options.budget);
        let function = function.map_err(|t| not_compared(&t))?;
        let paths = Paths::new(model.graph.as_ref());
        let half = [ElementType::Float16, ElementType::Bfloat16].iter().any(|&e| uses(check.model.graph.as_ref(), e));
        let rounding = if half { Rounding::Half } else { Rounding::Double };
        Comparison { function, targets, paths, double: &self, rounding }.run(check)
    }
}

struct Comparison<'a> {
    function: Function<'a>,
    /// For each x that reaches a y, what is perturbed.
    targets: BTreeMap<String, Target>,
    paths: Paths,
    double: &'a Double,
    /// That of the model, no operator computing in float32.
    rounding: Rounding,
}

impl Comparison<'_> {
    fn run(mut self, check: &mut Check) -> Result<(), Stop> {
        let options = check.options;
        let mut problems = Vec::new();
        let checks = &mut check.validation.gradients;
        let mut worst = self.rounding;
        let mut roundings = vec![self.rounding; checks.len()];
        let mut joint = Vec::new();
        for (i, c) in checks.iter_mut().enumerate() {
            let gradient = c.gradient.as_ref().and_then(|g| self.double.value_of(g));
            let values = gradient.map(|g| g.values());
            let Some(target) = self.targets.get_mut(&c.x) else {
                // No y depends on x any more: whatever is not zero is wrong.
                match values {
                    Some(values) if values.iter().any(|&v| v != 0.0) => {
                        problems.push(format!(
                            "the gradient with respect to '{}' is not zero, but no y depends on it",
                            c.x
                        ));
                    }
                    Some(_) => (c.compared, c.error) = (true, Some(0.0)),
                    None => (),
                }
                continue;
            };
            let path = self.paths.from(&target.input);
            if let Some(Rule { op, .. }) = path.iter().find(|r| r.is_conventional(check.record.straight_through)) {
                c.note = Some(match check.record.straight_through {
                    true => format!("not compared: straight-through: the gradient passes the rounding of {op}"),
                    false => format!("not compared: the gradient of {op} is a convention, not a slope"),
                });
                continue;
            }
            if self.function.plan.is_single() {
                roundings[i] = Rounding::Single;
            }
            worst = worst.max(roundings[i]);
            c.bound = roundings[i].bound();
            if let Some(values) = values {
                target.gradient = values;
                joint.push(i);
            }
        }
        let mut random = fastrand::Rng::with_seed(options.seed ^ 0x9e37_79b9_7f4a_7c15);
        // One direction over all xs, to which each contributes alike: it finds an error in any of them.
        let mut together = None;
        if joint.len() > 1 {
            let names: BTreeSet<&String> = joint.iter().map(|&i| &checks[i].x).collect();
            let targets: Vec<&Target> = names.iter().filter_map(|&x| self.targets.get(x)).collect();
            let largest = targets.iter().map(|t| t.typical()).fold(0.0, f64::max);
            let direction: Vec<_> = (targets.into_iter())
                .map(|t| {
                    let weight = if t.typical() > 0.0 { (largest / t.typical()).min(100.0) } else { 1.0 };
                    (t, t.direction(&mut random).into_iter().map(|v| v * weight).collect::<Vec<f64>>())
                })
                .collect();
            together = Some(self.function.compare(&direction, worst).map_err(|t| not_compared(&t))?);
        }
        for (c, rounding) in checks.iter_mut().zip(roundings).filter(|(c, _)| c.note.is_none()) {
            let Some(target) = self.targets.get(&c.x) else { continue };
            let zeros;
            let target = match c.gradient {
                Some(_) => target,
                None => {
                    zeros = Target {
                        gradient: vec![0.0; target.base.len()],
                        base: target.base.clone(),
                        dims: target.dims.clone(),
                        input: target.input.clone(),
                        reach: target.reach,
                    };
                    &zeros
                }
            };
            if self.function.is_late() && !matches!(together, Some(Outcome::Differs(_))) {
                if let (Some(Outcome::Agrees(error)), true) = (together, c.gradient.is_some()) {
                    (c.compared, c.error) = (true, Some(error));
                    c.note = Some("compared together with the other xs, not alone: the time was over".to_owned());
                } else {
                    c.note = Some("not compared: the time was over".to_owned());
                }
                continue;
            }
            let (mut agreed, mut rough) = (0, 0);
            while agreed < options.directions.max(1) && rough < 3 {
                let direction = [(target, target.direction(&mut random))];
                let outcome = match self.function.compare(&direction, rounding) {
                    // Scales or boxes that are no xs of a slope need not be valid anywhere else.
                    Err(_) if c.gradient.is_none() => {
                        c.note = Some("no gradient, and the model does not run where it is another".to_owned());
                        break;
                    }
                    outcome => outcome.map_err(|t| not_compared(&t))?,
                };
                match outcome {
                    Outcome::Agrees(error) => {
                        agreed += 1;
                        c.compared = true;
                        c.error = Some(c.error.map_or(error, |e| e.max(error)));
                    }
                    Outcome::Differs(error) => {
                        c.compared = true;
                        c.error = Some(error);
                        break;
                    }
                    Outcome::Rough => rough += 1,
                }
            }
            let differs = c.note.is_none() && agreed < options.directions.max(1) && rough < 3;
            match (&c.gradient, differs) {
                (Some(g), true) => problems.push(format!(
                    "gradient '{g}' with respect to '{}' is not the slope: relative error {:.1e}, bound {:.0e}",
                    c.x,
                    c.error.unwrap_or(f64::NAN),
                    c.bound
                )),
                (None, true) => {
                    (c.compared, c.error) = (false, None);
                    c.note = Some(
                        "no gradient, yet the ys change with it: an operator on the way stops it by convention"
                            .to_owned(),
                    );
                }
                _ if rough >= 3 && !c.compared => {
                    c.note = Some("not compared: the function is not smooth here".to_owned())
                }
                _ => (),
            }
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(failed(listed(&problems))),
        }
    }
}

/// Which operators stand between an input and the ys.
struct Paths {
    nodes: Vec<(Option<&'static Rule>, Vec<String>, Vec<String>)>,
}

impl Paths {
    fn new(graph: Option<&GraphProto>) -> Self {
        let nodes = graph.into_iter().flat_map(|g| &g.node).map(|node| {
            let mut used = Vec::new();
            edit::uses(node, &mut |name| used.push(name.to_owned()));
            (newest(canonical_domain(node.domain()), node.op_type()), used, node.output.clone())
        });
        Paths { nodes: nodes.collect() }
    }

    fn from(&self, input: &str) -> Vec<&'static Rule> {
        let mut reached: HashSet<&str> = HashSet::from([input]);
        let mut operators = Vec::new();
        for (rule, used, outputs) in &self.nodes {
            if !rule.is_some_and(|r| r.shapes_only) && used.iter().any(|u| reached.contains(u.as_str())) {
                operators.extend(*rule);
                reached.extend(outputs.iter().map(String::as_str));
            }
        }
        operators
    }
}
