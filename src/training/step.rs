//! Assembles the models of a training: the step, its halves, the evaluation.

use super::losses::{self, LossSpec};
use super::manifest::Input;
use super::optimizers::{Hyper, Update};
use super::plan::{GROWTH_INTERVAL, PREVIEW, Plan, Slot};
use crate::backward::{Aggregation, Flow, Pass};
use crate::expr::{Builder, Expr};
use crate::graph::write::{self, Request};
use crate::graph::{Fact, Graph, IdSet, Loaded, Origin, Producer, ValueId};
use crate::memory::{self, Budget};
use crate::onnx::{ElementType, ModelProto, Names};
use crate::rules::load;
use anyhow::{Context, Result, bail, ensure};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Parameters of at most so many elements are updated as one vector.
const SMALL: i64 = 4096;

/// A model with the loss, and what has been built of it.
pub struct Forward {
    model: ModelProto,
    builder: Builder,
    names: HashMap<Rc<str>, ValueId>,
    taken: Names,
    inputs: RefCell<Vec<(ValueId, String)>>,
    budget: Option<Budget>,
}

/// What losses bring with them.
struct Measured<'g> {
    /// The inputs that hold targets.
    labels: Vec<Input>,
    decisions: Vec<String>,
    metrics: Named<'g>,
}

/// The loss, its metrics, and the inputs that it wants.
pub struct Total<'g> {
    /// The weighted sum of all losses.
    pub loss: Expr<'g>,
    /// Metrics with their names.
    pub metrics: Vec<(Expr<'g>, String)>,
    /// The targets.
    pub labels: Vec<Input>,
    /// What has been decided.
    pub decisions: Vec<String>,
}

/// A parameter with its gradient and its states.
struct Part<'g, 'p> {
    slot: &'p Slot,
    w: Expr<'g>,
    g: Expr<'g>,
    states: Vec<Expr<'g>>,
}

/// What the updates of all parameters have in common.
struct Updating<'g, 'p> {
    forward: &'g Forward,
    plan: &'p Plan,
    rate: Expr<'g>,
    /// The number of the step, from 1 on.
    t: Expr<'g>,
    /// What brings the norm of all gradients down to its bound.
    clip: Option<Expr<'g>>,
    /// Whether no gradient is infinite, where the loss is scaled: else the step does not count.
    fine: Option<Expr<'g>>,
}

impl<'g> Updating<'g, '_> {
    fn guarded(&self, new: Expr<'g>, old: Expr<'g>) -> Expr<'g> {
        self.fine.map_or(new, |fine| fine.select(new, old))
    }

    /// The updated parameter and its updated states.
    fn one(&self, slot: &Slot, w: Expr<'g>, g: Expr<'g>, states: Vec<Expr<'g>>) -> Result<Vec<Expr<'g>>> {
        let plan = self.plan;
        let g = self.clip.map_or(g, |c| g * c.cast_like(g));
        let g = plan.clip_value.map_or(g, |bound| g.clamp(-bound, bound));
        let update = Update {
            w,
            g,
            states: states.clone(),
            lr: self.rate.cast_like(w) * slot.rate,
            t: self.t.cast_like(w),
            hyper: Hyper { weight_decay: slot.decay, ..plan.hyper },
        };
        let (new, new_states) = match plan.preview {
            true => self.forward.preview(plan.optimizer.name, &update, self.t)?,
            false => plan.optimizer.update(&update)?,
        };
        if let Some(error) = self.forward.builder.take_error() {
            return Err(error.context(format!("the update of '{}'", slot.name)));
        }
        let new = [new].into_iter().chain(new_states).zip([w].into_iter().chain(states));
        Ok(new.map(|(new, old)| self.guarded(new, old)).collect())
    }

    /// The new parameters and states of several parameters, which are updated as one vector.
    fn all(&self, parts: &[Part<'g, '_>]) -> Result<Vec<Vec<Expr<'g>>>> {
        let first = match parts {
            [] => return Ok(vec![]),
            [only] => return Ok(vec![self.one(only.slot, only.w, only.g, only.states.clone())?]),
            [first, ..] => first,
        };
        let joined = |of: &dyn Fn(&Part<'g, '_>) -> Expr<'g>| {
            Expr::concat(&parts.iter().map(|part| of(part).flattened()).collect::<Vec<_>>(), 0)
        };
        let states = (0..first.states.len()).map(|s| joined(&|part| part.states[s])).collect();
        let new = self.one(first.slot, joined(&|part| part.w), joined(&|part| part.g), states)?;
        let sizes: Vec<i64> = parts.iter().map(|part| part.slot.dims.iter().product()).collect();
        let new: Vec<Vec<Expr<'g>>> = new.into_iter().map(|e| e.split(0, &sizes)).collect();
        let part = |(i, part): (usize, &Part<'g, '_>)| new.iter().map(|e| e[i].reshape_like(part.w)).collect();
        Ok(parts.iter().enumerate().map(part).collect())
    }

    /// The factor of the loss, and how many steps in a row have been fine with it.
    fn scaling(&self) -> Named<'g> {
        let (Some(scaling), Some(fine)) = (&self.plan.scaling, self.fine) else { return vec![] };
        let scale = self.forward.scalar(&scaling.scale[0], ElementType::Float);
        let good = self.forward.scalar(&scaling.good[0], ElementType::Int64);
        let due = (good + 1).greater_or_equal(good.like(GROWTH_INTERVAL as f64));
        let grown = due.select((scale * 2.0).min(scale.like(f64::from(1u32 << 24))), scale);
        let shrunk = (scale * 0.5).max(scale.like(1.0));
        let zero = good.like(0.0);
        vec![
            (fine.select(grown, shrunk), scaling.scale[1].clone()),
            (fine.select(due.select(zero, good + 1), zero), scaling.good[1].clone()),
        ]
    }
}

/// The updated state, in any order, with names.
type Named<'g> = Vec<(Expr<'g>, String)>;

impl Forward {
    /// A model to be extended. New names are in the scope `training`; `reserved` are those that the plan has.
    ///
    /// # Errors
    /// The model cannot be loaded.
    pub fn new(model: ModelProto, reserved: impl IntoIterator<Item = String>) -> Result<Self> {
        let Loaded { graph, names, inner_names, .. } = load(&model)?;
        let mut taken: Names = names.keys().chain(&inner_names).cloned().collect();
        taken.extend(model.graph.iter().flat_map(|g| &g.node).map(|n| n.name()));
        taken.extend(reserved);
        Ok(Forward { model, builder: Builder::new(graph), names, taken, inputs: RefCell::default(), budget: None })
    }

    /// With a bound on what is held at a time.
    pub fn within(self, budget: Option<Budget>) -> Self {
        Forward { budget, ..self }
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn value(&self, name: &str) -> Result<Expr<'_>> {
        let id = self.names.get(name).with_context(|| {
            let hint = crate::onnx::did_you_mean(name, self.names.keys().map(|n| &**n));
            format!("no tensor is called '{name}'{hint}")
        })?;
        Ok(self.builder.expr(*id))
    }

    /// An input: the model's own of that name, or a new one.
    pub fn input(&self, name: &str, fact: Fact) -> Expr<'_> {
        let known = self.inputs.borrow().iter().find(|(_, n)| n == name).map(|(id, _)| *id);
        let id = known.or_else(|| self.names.get(name).copied()).unwrap_or_else(|| {
            let id = self.builder.graph_mut().push_input(Graph::MAIN, None, fact);
            self.inputs.borrow_mut().push((id, name.to_owned()));
            id
        });
        self.builder.expr(id)
    }

    fn scalar(&self, name: &str, element: ElementType) -> Expr<'_> {
        self.input(name, Fact::tensor(Some(element), Some([].into())))
    }

    fn tensor(&self, name: &str, like: &Slot) -> Expr<'_> {
        let shape = like.dims.iter().map(|&d| crate::graph::Dim::Known(d)).collect();
        self.input(name, Fact::tensor(Some(like.element), Some(shape)))
    }

    /// Builds the losses.
    ///
    /// # Errors
    /// Outputs that a loss cannot be computed from.
    pub fn total<'g>(&'g self, plan: &'g Plan, outputs: &[String]) -> Result<Total<'g>> {
        let mut found = Measured { labels: Vec::new(), decisions: Vec::new(), metrics: Vec::new() };
        let mut total: Option<Expr<'g>> = None;
        for spec in &plan.losses {
            let own = losses::find(&spec.kind).is_none() && self.names.contains_key(spec.kind.as_str());
            let loss = if own { self.own_loss(&spec.kind)? } else { self.loss(plan, spec, outputs, &mut found)? };
            let loss = loss * spec.weight;
            total = Some(match total {
                None => loss,
                Some(sum) if sum.fact().element == loss.fact().element => sum + loss,
                Some(sum) => sum + loss.cast_like(sum),
            });
        }
        let loss = total.context("no loss is given")?;
        self.check()?;
        let Measured { labels, decisions, metrics } = found;
        Ok(Total { loss, metrics, labels, decisions })
    }

    /// A tensor of the model that is a loss already.
    fn own_loss<'g>(&'g self, name: &str) -> Result<Expr<'g>> {
        let loss = self.value(name)?.widened();
        let one = loss.fact().shape.is_none_or(|s| s.iter().all(|d| d.known() == Some(1)));
        ensure!(one && loss.is_float(), "'{name}' is no scalar of floating-point type, so it is no loss");
        Ok(loss.reshape_to(&[]))
    }

    /// A loss of an output, with its targets as inputs of the model, and the metrics of that output.
    fn loss<'g>(
        &'g self,
        plan: &'g Plan,
        spec: &'g LossSpec,
        outputs: &[String],
        found: &mut Measured<'g>,
    ) -> Result<Expr<'g>> {
        let name = output_of(spec, outputs)?;
        let id = self.value(name)?.id();
        let other = spec.other.as_ref().map(|o| self.value(o).map(Expr::id)).transpose()?;
        let labels = &mut found.labels;
        let built = losses::build(&self.builder, spec, (name, id), other, |wanted| {
            let input = self.input(&wanted.name, wanted.fact.clone());
            let (fact, own) = (input.fact(), wanted.fact.shape.as_deref().unwrap_or_default());
            let fits = fact.element == wanted.fact.element && fact.shape.is_none_or(|s| s.len() == own.len());
            ensure!(fits, "the input '{}' does not fit the loss {} of '{name}'", wanted.name, spec.kind);
            if !labels.iter().any(|l| l.name == wanted.name) {
                labels.push(Input {
                    name: wanted.name,
                    r#type: wanted.fact.element.map(ElementType::name).unwrap_or_default(),
                    shape: own.iter().map(|d| d.known()).collect(),
                    classes: wanted.classes,
                    ignore: wanted.ignore,
                });
            }
            Ok(input)
        });
        let built = built.with_context(|| format!("the loss {} of '{name}'", spec.kind))?;
        found.decisions.extend(built.decisions.iter().cloned());
        let (before, metrics) = (found.metrics.len(), &mut found.metrics);
        for (metric, own) in &plan.metrics {
            let suffix = if plan.losses.len() > 1 { format!("/{name}") } else { String::new() };
            let full = format!("{own}{suffix}");
            let twice = metrics.iter().skip(before).any(|(_, n)| *n == full);
            if twice || metric.output.as_deref().is_some_and(|o| o != name) {
                continue;
            }
            if let Some(value) = metric.of(&built)? {
                // Several losses of one output have targets of their own.
                let others = metrics.iter().take(before).filter(|(_, n)| n.starts_with(&full)).count();
                metrics.push((value, if others > 0 { format!("{full}_{others}") } else { full }));
            }
        }
        Ok(built.loss)
    }

    fn check(&self) -> Result<()> {
        self.builder.take_error().map_or(Ok(()), Err)
    }

    /// The gradients of the loss, each of its parameter's type and not scaled any more. A parameter that the loss does
    /// not depend on gets zeros.
    ///
    /// # Errors
    /// An operator on the way has no gradient.
    pub fn gradients<'g>(&'g self, plan: &Plan, loss: Expr<'g>) -> Result<Vec<Expr<'g>>> {
        let b = &self.builder;
        let scale = plan.scaling.as_ref().map(|s| self.scalar(&s.scale[0], ElementType::Float));
        let seed = scale.map_or_else(|| loss.like(1.0), |s| s.cast_like(loss));
        let nodes: Vec<_> = b.graph().scope(Graph::MAIN).nodes.clone();
        let xs = plan.slots.iter().map(|s| Ok(self.value(&s.name)?.id())).collect::<Result<Vec<_>>>()?;
        let ids: Vec<Option<ValueId>> = {
            let stops = plan.stops.iter().map(|s| Ok(self.value(s)?.id())).collect::<Result<IdSet<_>>>()?;
            let pass = Pass::new(b, Aggregation::AddN, stops, &[]);
            let pass = pass.with_straight_through(plan.straight_through).with_functions(&plan.functions);
            let flows = pass.differentiate(&nodes, &[(loss.id(), seed)], &xs)?;
            let id = |f: Option<Flow<'_>>| match f {
                Some(Flow::Value(dx)) => Some(dx.id()),
                Some(Flow::Zero) | None => None,
            };
            flows.into_iter().map(id).collect()
        };
        let gradients = xs.iter().zip(ids).map(|(&x, id)| match id {
            None => b.expr(x).zeros_like(),
            Some(id) => {
                let dx = b.expr(id);
                scale.map_or(dx, |s| dx / s.cast_like(dx))
            }
        });
        let gradients = gradients.collect();
        self.check()?;
        Ok(gradients)
    }

    /// The parameters and states after a step with these gradients, and the norm of all gradients.
    ///
    /// # Errors
    /// The optimizer's formula cannot be written at the model's opset.
    pub fn update<'g>(&'g self, plan: &Plan, gradients: &[Expr<'g>]) -> Result<(Named<'g>, Expr<'g>)> {
        let step = self.scalar(&plan.step[0], ElementType::Int64);
        let squares = squares(plan, gradients).context("there are no gradients")?;
        let norm = squares.sqrt();
        let updating = Updating {
            forward: self,
            plan,
            rate: self.scalar(&plan.rate.0, plan.rate.1),
            t: step + 1,
            clip: plan.clip_norm.map(|bound| (bound / (norm + 1e-6)).min(norm.like(1.0))),
            fine: plan.scaling.is_some().then(|| squares.below(f32::MAX.into())),
        };
        let mut next: Named<'g> = Vec::new();
        for group in groups(plan) {
            let parts = group.iter().map(|&i| {
                let slot = &plan.slots[i];
                let states = slot.states.iter().map(|[name, _]| self.tensor(name, slot)).collect();
                Part { slot, w: self.tensor(&slot.name, slot), g: gradients[i], states }
            });
            let parts: Vec<Part<'g, '_>> = parts.collect();
            for (part, new) in parts.iter().zip(updating.all(&parts)?) {
                let names = [&part.slot.next].into_iter().chain(part.slot.states.iter().map(|[_, name]| name));
                next.extend(new.into_iter().zip(names.cloned()));
            }
        }
        next.push((updating.guarded(updating.t, step), plan.step[1].clone()));
        next.extend(updating.scaling());
        self.check()?;
        Ok((next, norm))
    }

    /// The update as one operator of [`PREVIEW`], where that has it; `t` is the number of the step.
    fn preview<'g>(&'g self, optimizer: &str, u: &Update<'g>, t: Expr<'g>) -> Result<(Expr<'g>, Vec<Expr<'g>>)> {
        let Hyper { momentum, beta1, beta2, epsilon, weight_decay } = u.hyper;
        let b = &self.builder;
        let (tensors, decay) = ([&[u.w, u.g], u.states.as_slice()].concat(), weight_decay);
        let mut outputs = match optimizer {
            "momentum" => b.momentum(u.lr, t, &tensors, momentum, decay, false),
            "nesterov" => b.momentum(u.lr, t, &tensors, momentum, decay, true),
            "adagrad" => b.adagrad(u.lr, t, &tensors, epsilon, decay),
            "adam" => b.adam(u.lr, t, &tensors, [beta1, beta2], epsilon, decay),
            other => bail!("{PREVIEW} has no {other}; it has momentum, nesterov, adagrad, adam"),
        }
        .into_iter();
        Ok((outputs.next().context("an operator without outputs")?, outputs.collect()))
    }

    /// The sums of gradients after a micro-batch: each counts as its share of the step.
    pub fn accumulated<'g>(&'g self, plan: &Plan, gradients: &[Expr<'g>]) -> Named<'g> {
        let share = |(slot, &g): (&Slot, &Expr<'g>)| {
            let sum = self.tensor(&slot.sum[0], slot);
            (sum + g / plan.accumulate as f64, slot.sum[1].clone())
        };
        plan.slots.iter().zip(gradients).map(share).collect()
    }

    /// The gradients as inputs: what the half of a step that applies them takes.
    pub fn given(&self, plan: &Plan) -> Vec<Expr<'_>> {
        plan.slots.iter().map(|s| self.tensor(&s.gradient, s)).collect()
    }

    /// The updated statistics; where the loss is scaled and they or the gradients overflow, the statistics as they
    /// were.
    ///
    /// # Errors
    /// The model does not hold them.
    pub fn statistics<'g>(&'g self, plan: &Plan, gradients: &[Expr<'g>]) -> Result<Named<'g>> {
        let mut updated = Vec::new();
        for [old, inner, next] in &plan.statistics {
            updated.push((self.value(old)?, self.value(inner)?, next.clone()));
        }
        let all: Vec<Expr<'g>> = gradients.iter().copied().chain(updated.iter().map(|(_, new, _)| *new)).collect();
        let fine = plan.scaling.as_ref().and_then(|_| Some(squares(plan, &all)?.below(f32::MAX.into())));
        let guarded = |(old, new, next): (Expr<'g>, Expr<'g>, String)| (fine.map_or(new, |f| f.select(new, old)), next);
        Ok(updated.into_iter().map(guarded).collect())
    }

    /// The model with the outputs, in their order, and behind them those of its own that are `kept`. Inputs come in the
    /// order of `order`, before them those that it does not name. With it what has come of the budget.
    ///
    /// # Errors
    /// Something could not be built.
    pub fn write(
        &self,
        outputs: Named<'_>,
        kept: &[String],
        order: &[String],
    ) -> Result<(ModelProto, Option<memory::Report>)> {
        let mut used = HashSet::new();
        let outputs: Vec<(ValueId, String)> = outputs
            .into_iter()
            .map(|(e, name)| {
                let own = {
                    let graph = self.builder.graph();
                    match graph.value(e.id()).producer {
                        Producer::Node(n, _) => graph.node(n).origin != Origin::Model,
                        _ => false,
                    }
                };
                (if own && used.insert(e.id()) { e.id() } else { self.builder.copy(e.id()) }, name)
            })
            .collect();
        self.check()?;
        let mut model = self.model.clone();
        model.metadata_props.clear();
        let graph = model.graph.as_mut().context("the model holds no graph")?;
        let own: Vec<_> =
            std::mem::take(&mut graph.output).into_iter().filter(|o| kept.iter().any(|k| k == o.name())).collect();
        let inputs = self.inputs.borrow().clone();
        let (nodes, ends) = {
            let graph = self.builder.graph();
            let results = outputs.iter().map(|&(v, _)| v);
            let own = kept.iter().filter_map(|name| self.names.get(name.as_str()).copied());
            let ends: Vec<ValueId> = results.clone().chain(own).collect();
            (write::needed(&graph, results), ends)
        };
        let (steps, memory) =
            memory::schedule(&self.builder, nodes, &ends, memory::Again::Within(self.budget.as_ref()))?;
        let request = Request { name: "training".to_owned(), inputs, outputs, steps, colocate: false };
        write::write(&self.builder.graph(), &mut model, &request, self.taken.clone())?;
        if let Some(graph) = model.graph.as_mut() {
            graph.output.extend(own);
        }
        model.prune();
        model.import(PREVIEW, 1);
        if let Some(graph) = model.graph.as_mut() {
            let place: HashMap<&str, usize> = order.iter().enumerate().map(|(i, n)| (n.as_str(), i + 1)).collect();
            graph.input.sort_by_key(|i| place.get(i.name()).copied().unwrap_or(0));
        }
        Ok((model, memory))
    }
}

/// Which parameters are updated together, by their numbers: small ones as one vector, since an operator's call costs
/// more than to add a few hundred numbers, where the formula takes each element on its own and by the same numbers.
fn groups(plan: &Plan) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut of: HashMap<(ElementType, u64, u64), usize> = HashMap::new();
    for (i, slot) in plan.slots.iter().enumerate() {
        let small = slot.dims.iter().try_fold(1i64, |n, &d| n.checked_mul(d)).is_some_and(|n| n <= SMALL);
        if !small || plan.preview || !plan.optimizer.elementwise {
            groups.push(vec![i]);
            continue;
        }
        let kind = (slot.element, slot.rate.to_bits(), slot.decay.to_bits());
        let group = *of.entry(kind).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}

/// The sum of the squares of all elements of tensors.
fn squares<'g>(plan: &Plan, tensors: &[Expr<'g>]) -> Option<Expr<'g>> {
    tensors.iter().map(|x| x.widened().square().sum_all().cast(plan.rate.1)).reduce(|a, b| a + b)
}

/// The output that a loss is of.
///
/// # Errors
/// It is not named, and the model has several.
pub fn output_of<'a>(spec: &'a LossSpec, outputs: &'a [String]) -> Result<&'a str> {
    match (&spec.output, outputs) {
        (Some(name), _) => Ok(name),
        (None, [only]) => Ok(only),
        (None, _) => bail!(
            "the model has the outputs {}: say which one the loss {1} is of, as {1}:OUTPUT",
            outputs.join(", "),
            spec.kind
        ),
    }
}
