//! What is computed again instead of kept, so that a model holds no more than a budget.
//!
//! Backward nodes, in their order, are divided into windows. In a window a least cut through the forward nodes decides
//! what is kept for it and what is computed again from that, as the min-cut partitioner of functorch does it for a
//! whole graph (Horace He et al., Min-cut optimal recomputation, 2022): what is kept costs its bytes, what is computed
//! again its time at a price. Between windows nothing is handed on but what is kept, which is Chen's checkpointing of
//! segments (Training deep nets with sublinear memory cost, 2016) with the checkpoints where the cuts are: a recomputed
//! tensor stands immediately before the first node of its window that takes it and goes after the last. Several numbers
//! of windows and prices are tried, what each plan holds is counted node by node, and the cheapest that meets the
//! budget is taken.

use super::flow::{ENDLESS, Network, Vertex};
use super::ledger::{self, Ledger, Numbers};
use super::order::Tried;
use super::{LARGE, MOST, Sizes, order};
use crate::error::Error;
use crate::expr::{Builder, Zeros};
use crate::graph::write::Step;
use crate::graph::{Graph, IdMap, NodeId, Producer, ValueId};
use crate::rules::{self, Slot};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

/// How much a model may hold at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Limit {
    /// That share of what it holds when nothing is computed again.
    Share(f64),
    /// So many bytes.
    Bytes(u64),
}

/// A limit, and the sizes that symbols have where it is to be met.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Budget {
    /// The limit.
    pub limit: Limit,
    /// Sizes by name. Those that are missing count as 32 where the limit is a share, and are an error where it is a
    /// number.
    pub sizes: BTreeMap<String, i64>,
}

impl Budget {
    /// A limit, for symbols of those sizes.
    pub fn new(limit: Limit, sizes: BTreeMap<String, i64>) -> Self {
        Budget { limit, sizes }
    }
}

/// What is computed again of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recomputed {
    /// The tensor, or the node's first output where it has several.
    pub tensor: String,
    /// What computes it.
    pub operator: String,
    /// The bytes that are not kept for it.
    pub bytes: u64,
    /// How often it is computed again.
    pub times: usize,
    /// What that takes, as a share of the whole step by an estimate.
    pub cost: f64,
}

/// What a budget has led to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The most bytes that may be held at a time.
    pub budget: u64,
    /// The most that are, nodes running in the order of the file: inputs and weights do not count, results do.
    pub peak: u64,
    /// The same without recomputation.
    pub peak_without: u64,
    /// The bytes that the forward nodes leave for the backward nodes.
    pub kept: u64,
    /// The same without recomputation.
    pub kept_without: u64,
    /// What recomputation takes, as a share of the whole step by an estimate.
    pub cost: f64,
    /// What is computed again, what saves most first.
    pub recomputed: Vec<Recomputed>,
    /// Sizes that were made up, since nobody has said them.
    pub assumed: BTreeMap<String, i64>,
}

/// How much a kernel's start counts, in bytes moved.
const START: u64 = 16_384;
/// How many multiplications take as long as moving a byte.
const PRODUCTS: f64 = 3.0;
/// How many nodes make a zero that others wait for.
const NODES_OF_ZERO: u64 = 5;
/// Into how many windows the backward nodes are divided.
const WINDOWS: [usize; 11] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48];
/// What moving a byte again costs against keeping one.
const PRICES: [f64; 9] = [16.0, 4.0, 1.0, 0.4, 0.15, 0.06, 0.02, 0.005, 0.0];
/// How many plans are freed of what they need not compute again.
const REFINED: usize = 4;
/// How often a price is sought between one at which a limit is met and one at which it is not.
const BISECTED: usize = 3;
/// How many plans are tried for that, times the nodes that each has.
const TRIES: usize = 2_000_000;
/// What a zero that tells a runtime when to begin takes, with all that leads to it.
const ZERO: u64 = 64;

/// What recomputation element by element may take where nobody has asked for it, as a share of a step by the estimate,
/// which does not count that runtimes then fuse the forward nodes.
const FREE: f64 = 0.06;
/// The same of all other recomputation.
const UNFUSED: f64 = 0.012;
/// What moving a byte again costs there against keeping one.
const CHEAP: [f64; 6] = [1.0, 0.4, 0.3, 0.25, 0.2, 0.15];
/// Into how many windows the backward nodes are divided there.
const FEW: [usize; 4] = [1, 2, 4, 8];
/// To which share of what is held it must come.
const WORTH: f64 = 0.97;
/// What holds less at a time is left as it is.
const LITTLE: u64 = 2 << 20;

/// One thing to do.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// A new node as it is.
    Own(u32),
    /// A forward node again, its input of that number, if any, delayed until a value is known.
    Again { node: u32, delayed: Option<(usize, ValueId)> },
}

/// For each window the forward nodes that are computed again in it.
type Plan = Vec<Vec<u32>>;

/// What a plan comes to.
struct Outcome {
    plan: Plan,
    /// The places of the new nodes at which its windows begin.
    begins: Rc<[usize]>,
    peak: u64,
    cost: u64,
}

impl Limit {
    /// The bytes that may be held, where so many are held without recomputation; `open` are sizes that nobody has said.
    ///
    /// # Errors
    /// Bytes are counted for sizes that nobody has said.
    fn bytes(&self, before: u64, open: &[String]) -> Result<u64> {
        match (*self, open.first()) {
            (Limit::Share(share), _) => Ok((share * before as f64) as u64),
            (Limit::Bytes(bytes), None) => Ok(bytes),
            (Limit::Bytes(_), Some(first)) => {
                let message = format!("a budget in bytes asks for the sizes of {}", open.join(", "));
                Err(Error::usage(message).with_remedy(Some(format!("--dim {first}=SIZE"))).into())
            }
        }
    }
}

/// That a budget cannot be met, and which one can.
fn unmet(limit: u64, least: u64, before: u64) -> Error {
    let message = format!(
        "the budget of {limit} bytes cannot be met: {least} bytes is the least that recomputation comes to, {before} are \
         held without it"
    );
    let share = least as f64 / before.max(1) as f64;
    let remedy =
        format!("--memory-budget {least}, or {:.3} of what is held without it", (share * 1000.0).ceil() / 1000.0);
    Error::out_of_memory(message).with_remedy(Some(remedy))
}

/// The new nodes with what is computed again, in their order; what has come of the budget, and what users should know.
///
/// # Errors
/// The budget cannot be met; sizes that it depends on are not known.
pub fn recompute(
    builder: &Builder,
    new: Vec<NodeId>,
    ends: &[ValueId],
    budget: &Budget,
) -> Result<(Vec<Step>, Report)> {
    let (net, limit, before, assumed) = {
        let graph = builder.graph();
        let sizes = Sizes::new(&graph, &budget.sizes);
        let net = Net::new(&graph, &sizes, new.clone(), ends, Tried::Moves);
        let before = net.ledger.peak(0..net.ledger.entries.len() as u32).0;
        let open = sizes.open();
        let limit = budget.limit.bytes(before, &open)?;
        (net, limit, before, open.into_iter().map(|name| (name, super::sizes::USUAL)).collect())
    };
    // Recomputation lets other tensors go in other orders.
    let others: &[Tried] = if net.nodes.len() <= LARGE { &[Tried::Nothing, Tried::Needed] } else { &[] };
    let mut nets = vec![net];
    nets.extend(others.iter().map(|&tried| {
        let graph = builder.graph();
        Net::new(&graph, &Sizes::new(&graph, &budget.sizes), new.clone(), ends, tried)
    }));
    let (mut plans, mut least) = (Vec::new(), u64::MAX);
    for (i, net) in nets.iter().enumerate() {
        let (found, reached) = net.search(limit);
        least = least.min(reached);
        plans.extend(found.into_iter().map(|plan| (i, plan)));
    }
    // Of all orders together those few are refined that cost least.
    plans.sort_by_key(|(_, plan)| (plan.cost, plan.peak));
    let refined = plans.into_iter().take(REFINED).map(|(i, plan)| (i, nets[i].refined(plan, limit)));
    let best = refined.min_by_key(|(_, plan)| (plan.cost, plan.peak));
    let (i, best) = best.ok_or_else(|| unmet(limit, least, before))?;
    let net = nets.swap_remove(i);
    let steps = net.write(builder, &best)?;
    let graph = builder.graph();
    let sizes = Sizes::new(&graph, &budget.sizes);
    let forward = net.nodes[..net.first].iter().map(|&node| Step::of(node));
    let all: Vec<Step> = forward.chain(steps.iter().cloned()).collect();
    let written = Ledger::new(&graph, &sizes, &all, ends.iter().copied());
    let report = Report {
        budget: limit,
        peak: written.peak(0..written.entries.len() as u32).0,
        peak_without: before,
        kept: written.kept(net.first),
        kept_without: net.ledger.kept(net.first),
        cost: best.cost as f64 / net.whole as f64,
        recomputed: net.recomputed(&graph, &best),
        assumed,
    };
    Ok((steps, report))
}

/// The new nodes in their order, with what is computed again where that takes next to no time: what is computed element
/// by element from tensors that are kept anyway (the inner tensors of a GELU that is spelled out, say). A runtime may
/// then also fuse the forward nodes of which nothing else is taken any more.
///
/// # Errors
/// Nodes cannot be written.
pub fn freely(builder: &Builder, new: Vec<NodeId>, ends: &[ValueId]) -> Result<Vec<Step>> {
    let bound = BTreeMap::new();
    let net = |tried| {
        let graph = builder.graph();
        Net::new(&graph, &Sizes::new(&graph, &bound), new.clone(), ends, tried)
    };
    let first = net(Tried::Moves);
    let plain = first.outcome(Vec::new(), &[0].into()).peak;
    // Recomputation lets other tensors go in other orders.
    let others = if plain < LITTLE { vec![] } else { vec![net(Tried::Nothing), net(Tried::Needed)] };
    let mut nets: Vec<Net> = [first].into_iter().chain(others).collect();
    let kinds = [(true, FREE, &FEW[..1], nets.len()), (false, UNFUSED, &FEW[..], 1)];
    for (only_simple, share, windows, tried) in kinds.into_iter().filter(|_| plain >= LITTLE) {
        let found = nets.iter_mut().take(tried).filter_map(|net| {
            net.only_simple = only_simple;
            Some((net.free(share, windows)?, net))
        });
        let best = found.min_by_key(|(plan, _)| (plan.peak, plan.cost));
        if let Some((best, net)) = best.filter(|(best, _)| (best.peak as f64) < WORTH * plain as f64) {
            return net.write(builder, &best);
        }
    }
    let steps = nets.first().into_iter().flat_map(|net| &net.nodes[net.first..]).map(|&node| Step::of(node));
    Ok(steps.collect())
}

/// What is known of the nodes.
struct Net {
    nodes: Vec<NodeId>,
    /// How many of them are forward nodes.
    first: usize,
    ledger: Ledger,
    /// How many tensors the forward nodes compute: those with the lowest numbers.
    forward: u32,
    /// The node that computes each tensor.
    maker: Vec<u32>,
    /// What a forward node takes, in bytes moved.
    cost: Vec<u64>,
    /// The same of all nodes together.
    whole: u64,
    /// Whether a forward node must not run twice.
    once: Vec<bool>,
    /// Whether a forward node is the main one of a layer.
    heavy: Vec<bool>,
    /// Whether a forward node computes element by element.
    simple: Vec<bool>,
    /// Whether the gradient of a forward node asks where elements of its inputs are those of its output.
    compares: Vec<bool>,
    /// Whether only such nodes may run twice.
    only_simple: bool,
    /// The input of a forward node that can be delayed with the least bytes, and these.
    gate: Vec<Option<(usize, u64)>>,
    /// For new nodes what they can make others wait for: inputs of their own, in order.
    signals: Vec<Option<ValueId>>,
    /// What is known once the forward nodes have run.
    last: Option<ValueId>,
}

/// What a node costs: the bytes that it moves, and what it computes.
fn cost(graph: &Graph, sizes: &Sizes<'_>, id: NodeId, heavy: bool) -> u64 {
    let node = graph.node(id);
    if ledger::is_view(graph, id) || (node.inputs.is_empty() && node.bodies.is_empty()) {
        return 0;
    }
    let bytes = |v: &ValueId| sizes.bytes(*v);
    let moved: u64 = node.inputs.iter().flatten().chain(node.outputs.iter().flatten()).map(bytes).sum();
    // A product of matrices of M x K and K x N elements takes MKN multiplications: the root of MK, KN and MN.
    // Of windows with k places each it takes the root of k times that.
    let factors = node.inputs.iter().take(2).flatten().chain(node.outputs.iter().take(1).flatten());
    let product = factors.map(|v| bytes(v) as f64 / 4.0).product::<f64>().sqrt();
    let window = node.inputs.get(1).copied().flatten().and_then(|w| graph.fact(w).known_shape());
    let window: f64 = window.iter().flat_map(|shape| shape.iter().skip(2)).map(|&n| n as f64).product();
    let product = match rules::row(graph, node).is_some_and(|r| r.weights.contains(&1)) {
        true => product * window.sqrt(),
        false => product,
    };
    let flops = if heavy || !node.bodies.is_empty() { product / PRODUCTS } else { 0.0 };
    moved + START + (flops as u64).min(MOST)
}

/// The input of a forward node that can be delayed with the least bytes, and these.
fn gate(graph: &Graph, sizes: &Sizes<'_>, id: NodeId) -> Option<(usize, u64)> {
    let node = graph.node(id);
    let rule = rules::row(graph, node)?;
    let data = |(i, v): (usize, &Option<ValueId>)| {
        let v = (*v)?;
        let fact = graph.fact(v);
        let element = fact.element.filter(|e| e.is_float() || e.is_integer())?;
        let stopped = matches!(rule.slot(i), None | Some(Slot::Stop(_) | Slot::Zero | Slot::Rounding(_)));
        // Numbers that say how to compute stay constants; what is looked up comes with the data.
        let given = !matches!(graph.value(v).producer, Producer::Initializer) && fact.value.is_none();
        let fits = fact.shape.is_some() && (if element.is_float() { !stopped } else { given });
        fits.then(|| (i, sizes.bytes(v)))
    };
    node.inputs.iter().enumerate().filter_map(data).min_by_key(|(_, bytes)| *bytes)
}

impl Net {
    fn new(graph: &Graph, sizes: &Sizes<'_>, new: Vec<NodeId>, ends: &[ValueId], tried: Tried) -> Self {
        let mut nodes = super::forward(graph, &new);
        let first = nodes.len();
        nodes.extend(order::ordered(graph, sizes, new, ends, tried));
        let steps: Vec<Step> = nodes.iter().map(|&node| Step::of(node)).collect();
        let ledger = Ledger::new(graph, sizes, &steps, ends.iter().copied());
        let mut maker = vec![0; ledger.bytes.len()];
        for (n, entry) in ledger.entries.iter().enumerate() {
            entry.writes.iter().for_each(|&t| maker[t as usize] = n as u32);
        }
        let forward = maker.iter().take_while(|&&n| (n as usize) < first).count() as u32;
        let row = |id: NodeId| rules::row(graph, graph.node(id));
        let heavy: Vec<bool> = nodes.iter().map(|&id| row(id).is_some_and(|rule| rule.layer)).collect();
        let cost: Vec<u64> = nodes.iter().zip(&heavy).map(|(&id, &heavy)| cost(graph, sizes, id, heavy)).collect();
        let waitable = |v: &ValueId| {
            let fact = graph.fact(*v);
            let some = fact.shape.as_ref().is_some_and(|s| s.iter().all(|d| d.known() != Some(0)));
            fact.element.is_some_and(|e| e.is_float()) && some && fact.value.is_none()
        };
        let is_new = |v: &ValueId| ledger.makers[v.number()].is_some_and(|n| n as usize >= first);
        let signal = |&id: &NodeId| graph.node(id).inputs.iter().flatten().copied().find(|v| is_new(v) && waitable(v));
        let is_forward = |v: &ValueId| ledger.makers[v.number()].is_some_and(|n| (n as usize) < first);
        Net {
            whole: cost.iter().sum::<u64>().max(1),
            once: nodes[..first].iter().map(|&id| rules::drawing(graph, id).is_some()).collect(),
            simple: nodes[..first].iter().map(|&id| graph.traits(graph.node(id)).elementwise).collect(),
            compares: nodes[..first].iter().map(|&id| graph.traits(graph.node(id)).compares).collect(),
            only_simple: false,
            gate: nodes[..first].iter().map(|&id| gate(graph, sizes, id)).collect(),
            signals: nodes.iter().map(signal).collect(),
            last: ends.iter().copied().rfind(|v| is_forward(v) && waitable(v)),
            nodes,
            first,
            ledger,
            forward,
            maker,
            cost,
            heavy,
        }
    }

    /// The plan that holds least of those that take at most that share of a step.
    fn free(&self, share: f64, windows: &[usize]) -> Option<Outcome> {
        let dear = (share * self.whole as f64) as u64;
        let mut plans = Vec::new();
        for &windows in windows {
            let begins: Rc<[usize]> = self.windows(windows, false).into();
            plans.extend(CHEAP.iter().map(|&price| self.outcome(self.plan(&begins, price), &begins)));
        }
        plans.into_iter().filter(|plan| plan.cost <= dear).min_by_key(|plan| (plan.peak, plan.cost))
    }

    /// The cheapest plans that meet a limit, and the least that any comes to.
    fn search(&self, limit: u64) -> (Vec<Outcome>, u64) {
        let (mut best, mut least): (Vec<Outcome>, u64) = (Vec::new(), u64::MAX);
        // Returns whether the plan meets the limit.
        let mut consider = |outcome: Outcome| {
            least = least.min(outcome.peak);
            let meets = outcome.peak <= limit;
            if meets {
                let place = best.partition_point(|b| (b.cost, b.peak) <= (outcome.cost, outcome.peak));
                best.insert(place, outcome);
                best.truncate(REFINED);
            }
            meets
        };
        let every = if self.nodes.len() > LARGE { 3 } else { 1 };
        consider(self.outcome(Vec::new(), &[0].into()));
        for &windows in WINDOWS.iter().step_by(every) {
            for growing in [false, true].into_iter().take(if windows > 2 { 2 } else { 1 }) {
                let begins: Rc<[usize]> = self.windows(windows, growing).into();
                let mut at = |price: f64| consider(self.outcome(self.plan(&begins, price), &begins));
                let mut dear = None;
                for &price in PRICES.iter().step_by(every) {
                    if !at(price) {
                        dear = Some(price);
                    } else if let (Some(mut dear), true) = (dear.take(), price > 0.0) {
                        // The highest price at which the limit is met asks for the least recomputation.
                        let mut met = price;
                        for _ in 0..BISECTED {
                            let between = (dear * met).sqrt();
                            if at(between) { met = between } else { dear = between }
                        }
                    }
                }
            }
        }
        (best, least)
    }

    /// A plan without what it need not compute again to meet the limit: cuts are made window by window, and what each
    /// of them saves may be more than is asked for.
    fn refined(&self, mut best: Outcome, limit: u64) -> Outcome {
        let mut tries = TRIES / self.nodes.len().max(1);
        loop {
            let before = best.cost;
            // What is kept for a window is there in all that come before it.
            let mut ends: Vec<(u32, usize)> =
                best.plan.iter().enumerate().flat_map(|(w, nodes)| nodes.iter().map(move |&n| (n, w))).collect();
            ends.sort_by_key(|&(n, w)| Reverse((self.cost[n as usize], w)));
            for (node, last) in ends {
                let windows = best.plan.iter().take(last + 1);
                if tries == 0 || !windows.flatten().any(|&n| n == node) {
                    continue;
                }
                tries -= 1;
                let mut plan = best.plan.clone();
                plan.iter_mut().take(last + 1).for_each(|nodes| nodes.retain(|&n| n != node));
                let less = self.outcome(plan, &best.begins);
                if less.peak <= limit && (less.cost, less.peak) < (best.cost, best.peak) {
                    best = less;
                }
            }
            if best.cost == before {
                return best;
            }
        }
    }

    /// Computes again what is held against its inputs, where these are computed again in the same window: a runtime may
    /// fuse, and so round, the nodes before them in another way, and no element would be found that is the maximum.
    fn consistent(&self, plan: &mut Plan, begins: &[usize]) {
        let mut again = vec![usize::MAX; self.first];
        for (w, nodes) in plan.iter_mut().enumerate() {
            nodes.iter().for_each(|&n| again[n as usize] = w);
            let begin = begins.get(w).copied().unwrap_or_default();
            let end = begins.get(w + 1).copied().unwrap_or(self.nodes.len() - self.first);
            let taken = self.ledger.entries[self.first + begin..self.first + end].iter().flat_map(|entry| &entry.reads);
            let makers = taken.filter(|&&t| t < self.forward).map(|&t| self.maker[t as usize]);
            let mut compared: Vec<u32> = makers.filter(|&n| self.compares[n as usize]).collect();
            compared.sort_unstable();
            for n in compared {
                let reads = &self.ledger.entries[n as usize].reads;
                let anew = reads.iter().any(|&t| t < self.forward && again[self.maker[t as usize] as usize] == w);
                if anew && again[n as usize] != w {
                    again[n as usize] = w;
                    nodes.push(n);
                }
            }
            nodes.sort_unstable();
        }
    }

    fn outcome(&self, mut plan: Plan, begins: &Rc<[usize]>) -> Outcome {
        self.consistent(&mut plan, begins);
        let (actions, starts) = self.actions(&plan, begins);
        let cost = |action: &Action| match *action {
            Action::Own(_) => 0,
            Action::Again { node, delayed: None } => self.cost[node as usize],
            Action::Again { node, delayed: Some(_) } => {
                let size = self.gate[node as usize].map_or(0, |(_, size)| size);
                self.cost[node as usize] + 2 * size + (NODES_OF_ZERO + 1) * START
            }
        };
        let cost = actions.iter().map(cost).sum();
        // Of what may be computed again some is not taken.
        let mut written: Plan = vec![Vec::new(); plan.len()];
        for (w, &start) in starts.iter().enumerate().take(plan.len()) {
            let end = starts.get(w + 1).copied().unwrap_or(actions.len());
            written[w].extend(actions[start..end].iter().filter_map(|action| match *action {
                Action::Again { node, .. } => Some(node),
                Action::Own(_) => None,
            }));
        }
        Outcome { peak: self.held(&actions, &starts), plan: written, begins: begins.clone(), cost }
    }

    /// The places of the new nodes at which windows begin, so that each one asks for as many bytes for the first time;
    /// or each for more than the one before, since less and less is held for those that follow.
    fn windows(&self, count: usize, growing: bool) -> Vec<usize> {
        let mut seen = vec![false; self.forward as usize];
        let mut asked = Vec::with_capacity(self.nodes.len() - self.first);
        let mut sum = 0u64;
        for entry in &self.ledger.entries[self.first..] {
            asked.push(sum);
            for &t in entry.reads.iter().filter(|&&t| t < self.forward) {
                if !std::mem::replace(&mut seen[t as usize], true) {
                    sum += self.ledger.bytes[t as usize];
                }
            }
        }
        let share = |k: usize| match growing {
            true => (k * (k + 1)) as f64 / (count * (count + 1)) as f64,
            false => k as f64 / count as f64,
        };
        let begin = |k: usize| asked.partition_point(|&before| (before as f64) < share(k) * sum as f64);
        let mut begins: Vec<usize> = (0..count).map(begin).collect();
        begins.dedup();
        begins
    }

    /// What is computed again in windows at a price. What a later window wants to be kept is not computed again in an
    /// earlier one.
    fn plan(&self, begins: &[usize], price: f64) -> Plan {
        let mut kept: Vec<bool> = self.ledger.stays[..self.forward as usize].to_vec();
        self.cuts(begins, price, &mut kept);
        self.cuts(begins, price, &mut kept)
    }

    /// What is computed again at a price, cut window by window. `kept` says what is kept already, and what is to be
    /// kept is marked in it.
    fn cuts(&self, begins: &[usize], price: f64, kept: &mut [bool]) -> Plan {
        let mut seen = vec![usize::MAX; self.forward as usize];
        let mut scratch = Scratch::new(self);
        let plan = begins.iter().enumerate().map(|(w, &begin)| {
            let end = begins.get(w + 1).copied().unwrap_or(self.nodes.len() - self.first);
            let mut asked: Vec<u32> = Vec::new();
            for entry in &self.ledger.entries[self.first + begin..self.first + end] {
                for &t in entry.reads.iter().filter(|&&t| t < self.forward && !kept[t as usize]) {
                    if std::mem::replace(&mut seen[t as usize], w) != w {
                        asked.push(t);
                    }
                }
            }
            // What has only just been computed when the backward nodes begin is not worth a layer.
            self.cut(&asked, kept, price, w > 0, &mut scratch)
        });
        plan.collect()
    }

    /// The nodes that are computed again for what is asked for; what they and others need is marked as kept.
    fn cut(&self, asked: &[u32], kept: &mut [bool], price: f64, layers: bool, scratch: &mut Scratch) -> Vec<u32> {
        const FINE: f64 = 1024.0;
        let mut network = Network::new();
        let mut open: BinaryHeap<u32> = BinaryHeap::new();
        for &t in asked {
            let vertex = scratch.tensor(&mut network, t);
            network.edge(vertex, Network::SINK, ENDLESS);
            if scratch.meet(self.maker[t as usize]) {
                open.push(self.maker[t as usize]);
            }
        }
        // The latest nodes come first; those far before what is asked for are not looked at.
        let mut room = 4 * asked.len() + 64;
        let mut nodes: Vec<(u32, Vertex)> = Vec::new();
        while let Some(node) = open.pop() {
            let vertex = network.vertex();
            nodes.push((node, vertex));
            let n = node as usize;
            let unfit = self.once[n] || self.gate[n].is_none() || (self.only_simple && !self.simple[n]);
            let barred = unfit || room == 0 || (self.heavy[n] && !layers);
            room = room.saturating_sub(1);
            let cost = if barred { ENDLESS } else { (price * self.cost[n] as f64 * FINE) as u64 };
            network.edge(Network::SOURCE, vertex, cost);
            if barred {
                continue;
            }
            for &t in self.ledger.entries[n].reads.iter().filter(|&&t| !kept[t as usize]) {
                let input = scratch.tensor(&mut network, t);
                network.edge(input, vertex, ENDLESS);
                if scratch.meet(self.maker[t as usize]) {
                    open.push(self.maker[t as usize]);
                }
            }
        }
        for &(node, vertex) in &nodes {
            for &t in &self.ledger.entries[node as usize].writes {
                if let Some(tensor) = scratch.known(t) {
                    network.edge(vertex, tensor, (self.ledger.bytes[t as usize] as f64 * FINE) as u64 + 1);
                }
            }
        }
        let behind = network.cut();
        let mut again = Vec::new();
        for &(node, vertex) in &nodes {
            if behind[vertex as usize] {
                again.push(node);
                continue;
            }
            for &t in &self.ledger.entries[node as usize].writes {
                if scratch.known(t).is_some_and(|v| behind[v as usize]) {
                    kept[t as usize] = true;
                }
            }
        }
        scratch.forget();
        again.sort_unstable();
        again
    }

    /// What is done in which order, and at which action each window begins.
    fn actions(&self, plan: &Plan, begins: &[usize]) -> (Vec<Action>, Vec<usize>) {
        let mut actions = Vec::with_capacity(self.nodes.len());
        let mut starts = Vec::new();
        // For each forward node the window in which it is computed again, and in which it has been.
        let (mut again, mut done) = (vec![usize::MAX; self.first], vec![usize::MAX; self.first]);
        let mut signal = self.last;
        for (w, &begin) in begins.iter().enumerate() {
            starts.push(actions.len());
            plan.get(w).into_iter().flatten().for_each(|&n| again[n as usize] = w);
            let end = begins.get(w + 1).copied().unwrap_or(self.nodes.len() - self.first);
            for n in self.first + begin..self.first + end {
                signal = self.signals[n].or(signal);
                let mut open: Vec<(u32, usize)> = vec![(n as u32, 0)];
                while let Some((node, next)) = open.pop() {
                    if let Some(&t) = self.ledger.entries[node as usize].reads.get(next) {
                        open.push((node, next + 1));
                        let maker = self.maker[t as usize];
                        if t < self.forward && again[maker as usize] == w && done[maker as usize] != w {
                            open.push((maker, 0));
                        }
                    } else if node as usize >= self.first {
                        actions.push(Action::Own(node));
                    } else if done[node as usize] != w {
                        done[node as usize] = w;
                        // What takes a recomputed tensor waits with it.
                        let mut reads = self.ledger.entries[node as usize].reads.iter();
                        let waits = reads.any(|&t| again[self.maker[t as usize] as usize] == w);
                        let gate = self.gate[node as usize].filter(|_| !waits);
                        let delayed = gate.and_then(|(input, _)| Some((input, signal?)));
                        actions.push(Action::Again { node, delayed });
                    }
                }
            }
        }
        (actions, starts)
    }

    /// The most bytes that are held at a time when the forward nodes run, and then the actions, of which windows begin
    /// at those places.
    fn held(&self, actions: &[Action], starts: &[usize]) -> u64 {
        // Tensors that are computed again have numbers of their own behind the others.
        let mut bytes = self.ledger.bytes.clone();
        let mut now: IdMap<u32, u32> = IdMap::default();
        let mut entries: Vec<(Numbers, Numbers)> = Vec::with_capacity(actions.len());
        let mut starts = starts.iter().peekable();
        for (place, action) in actions.iter().enumerate() {
            while starts.next_if(|start| **start == place).is_some() {
                now.clear();
            }
            match *action {
                Action::Own(node) => {
                    let entry = &self.ledger.entries[node as usize];
                    let reads = entry.reads.iter().map(|t| *now.get(t).unwrap_or(t)).collect();
                    entries.push((reads, entry.writes.clone()));
                }
                Action::Again { node, delayed } => {
                    let entry = &self.ledger.entries[node as usize];
                    let mut reads: Numbers = entry.reads.iter().map(|t| *now.get(t).unwrap_or(t)).collect();
                    if delayed.is_some() {
                        let size = self.gate[node as usize].map_or(0, |(_, size)| size) + ZERO;
                        let copy = bytes.len() as u32;
                        bytes.push(size);
                        entries.push((reads.clone(), [copy].into_iter().collect()));
                        reads.push(copy);
                    }
                    let writes: Numbers = entry
                        .writes
                        .iter()
                        .map(|&t| {
                            let copy = bytes.len() as u32;
                            bytes.push(self.ledger.bytes[t as usize]);
                            now.insert(t, copy);
                            copy
                        })
                        .collect();
                    entries.push((reads, writes));
                }
            }
        }
        let mut stays = self.ledger.stays.clone();
        stays.resize(bytes.len(), false);
        let forward = self.ledger.entries[..self.first].iter().map(|e| (&e.reads, &e.writes));
        ledger::peak(forward.chain(entries.iter().map(|(r, w)| (r, w))), &bytes, &stays).0
    }

    /// Writes the nodes of a plan.
    fn write(&self, builder: &Builder, outcome: &Outcome) -> Result<Vec<Step>> {
        let (actions, starts) = self.actions(&outcome.plan, &outcome.begins);
        let mut steps: Vec<Step> = Vec::with_capacity(actions.len());
        let mut zeros = Zeros::default();
        for (w, &start) in starts.iter().enumerate() {
            let end = starts.get(w + 1).copied().unwrap_or(actions.len());
            let mut map: IdMap<ValueId, ValueId> = IdMap::default();
            let from = steps.len();
            for action in &actions[start..end] {
                let (node, delayed) = match *action {
                    Action::Own(node) => (node, None),
                    Action::Again { node, delayed } => (node, delayed),
                };
                let id = self.nodes[node as usize];
                let before = builder.graph().node_count();
                let outside = builder.set_forward(Some(id));
                self.views(builder, id, &mut map);
                if let Action::Again { .. } = action {
                    let value = delayed.and_then(|(input, _)| *builder.graph().node(id).inputs.get(input)?);
                    let later = value.zip(delayed).and_then(|(v, (_, after))| {
                        let later = builder.delayed(v, after, &mut zeros)?;
                        Some((v, map.insert(v, later)))
                    });
                    builder.copy_all(&[id], &mut map);
                    // Only this node takes the delayed one.
                    match later {
                        Some((v, Some(before))) => drop(map.insert(v, before)),
                        Some((v, None)) => drop(map.remove(&v)),
                        None => (),
                    }
                }
                builder.set_forward(outside);
                steps.extend(added(builder, before));
                if let Action::Own(_) = action {
                    steps.push(Step::of(id));
                }
            }
            let map = Rc::new(map);
            if !map.is_empty() {
                steps[from..].iter_mut().for_each(|step| step.instead = Some(map.clone()));
            }
        }
        match builder.take_error() {
            Some(error) => Err(error),
            None => Ok(steps),
        }
    }
}

impl Net {
    /// Copies of those views of recomputed tensors that a node takes.
    fn views(&self, builder: &Builder, id: NodeId, map: &mut IdMap<ValueId, ValueId>) {
        let taken: Vec<ValueId> = {
            let graph = builder.graph();
            graph.node(id).inputs.iter().flatten().copied().chain(graph.captures(id)).collect()
        };
        for value in taken {
            let mut chain = Vec::new();
            let mut source = value;
            while !map.contains_key(&source) {
                let graph = builder.graph();
                let forward = |n: &u32| (*n as usize) < self.first;
                let maker = self.ledger.makers.get(source.number()).copied().flatten().filter(forward);
                let view = maker.map(|n| self.nodes[n as usize]).filter(|&n| ledger::is_view(&graph, n));
                let Some((view, Some(&Some(before)))) = view.map(|n| (n, graph.node(n).inputs.first())) else { break };
                chain.push(view);
                source = before;
            }
            if map.contains_key(&source) && !chain.is_empty() {
                chain.reverse();
                builder.copy_all(&chain, map);
            }
        }
    }

    /// What is computed again, what saves most first.
    fn recomputed(&self, graph: &Graph, outcome: &Outcome) -> Vec<Recomputed> {
        let mut times: BTreeMap<u32, usize> = BTreeMap::new();
        outcome.plan.iter().flatten().for_each(|&n| *times.entry(n).or_default() += 1);
        let asked = self.ledger.readers(self.first as u32..self.nodes.len() as u32);
        let entry = |(n, times): (u32, usize)| {
            let node = graph.node(self.nodes[n as usize]);
            let name = node.outputs.iter().flatten().find_map(|&o| graph.value(o).name.as_deref());
            let kept = self.ledger.entries[n as usize].writes.iter().filter(|&&t| asked[t as usize] > 0);
            Recomputed {
                tensor: name.unwrap_or_default().to_owned(),
                operator: node.op_type.to_string(),
                bytes: kept.map(|&t| self.ledger.bytes[t as usize]).sum(),
                times,
                cost: (times as u64 * self.cost[n as usize]) as f64 / self.whole as f64,
            }
        };
        let mut found: Vec<Recomputed> = times.into_iter().map(entry).collect();
        found.sort_by_key(|r| std::cmp::Reverse(r.bytes));
        found
    }
}

/// The nodes that have been appended to the main graph.
fn added(builder: &Builder, before: usize) -> Vec<Step> {
    let graph = builder.graph();
    let nodes = graph.scope(Graph::MAIN).nodes.iter().rev().copied();
    let mut steps: Vec<Step> = nodes.take_while(|id| id.number() >= before).map(Step::of).collect();
    steps.reverse();
    steps
}

/// Which vertices stand for what in one network; each use leaves it empty.
struct Scratch {
    vertices: Vec<Vertex>,
    met: Vec<bool>,
    tensors: Vec<u32>,
    nodes: Vec<u32>,
}

impl Scratch {
    fn new(net: &Net) -> Self {
        let (tensors, nodes) = (Vec::new(), Vec::new());
        Scratch { vertices: vec![0; net.forward as usize], met: vec![false; net.first], tensors, nodes }
    }

    /// The vertex of a tensor, a new one where it has none.
    fn tensor(&mut self, network: &mut Network, t: u32) -> Vertex {
        if self.vertices[t as usize] == 0 {
            self.vertices[t as usize] = network.vertex();
            self.tensors.push(t);
        }
        self.vertices[t as usize]
    }

    fn known(&self, t: u32) -> Option<Vertex> {
        self.vertices.get(t as usize).copied().filter(|&v| v != 0)
    }

    /// Whether a node is met for the first time.
    fn meet(&mut self, n: u32) -> bool {
        self.nodes.push(n);
        !std::mem::replace(&mut self.met[n as usize], true)
    }

    fn forget(&mut self) {
        self.tensors.drain(..).for_each(|t| self.vertices[t as usize] = 0);
        self.nodes.drain(..).for_each(|n| self.met[n as usize] = false);
    }
}
