//! In which order new nodes hold least.
//!
//! The order of least memory is NP-hard to find (Sethi 1975). For trees Liu's rule is the best one (An application of
//! generalized tree pebbling to sparse matrix factorization, 1987): what frees more than it takes goes first, the least
//! demanding of that first; of the rest, what gives back most of what it needs in between. Here it chooses among all
//! nodes that are ready, each looked at together with what follows from it alone. Beside that stand the order in which
//! nodes were written, and each output with what it needs; the best one is taken, and what was written first where it
//! makes no difference.

use super::moves::{self, WORTH};
use super::{LARGE, Ledger, Sizes, ledger};
use crate::graph::write::Step;
use crate::graph::{Graph, NodeId, ValueId};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How many nodes that follow from a node alone are looked at with it.
const AHEAD: usize = 12;
/// Of how many nodes that take a tensor it is looked which one follows.
const WIDE: usize = 16;

/// What is tried for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The rules alone. What recomputation lets go, it lets go best in an order that knows nothing of the place where
    /// most is held without it.
    Nothing,
    /// Nothing either, each output comes with what it needs: what follows from the forward pass alone stands where it
    /// is taken, and what it takes can be computed again there.
    Needed,
    /// Also to move single nodes away from the place where most is held.
    Moves,
}

/// New nodes, which stand behind all others of the main graph, in the order in which least is held at a time. `ends`
/// are held to the end.
pub fn ordered(graph: &Graph, sizes: &Sizes<'_>, new: Vec<NodeId>, ends: &[ValueId], tried: Tried) -> Vec<NodeId> {
    let mut nodes = super::forward(graph, &new);
    let first = nodes.len();
    nodes.extend(new);
    let steps: Vec<Step> = nodes.iter().map(|&node| Step::of(node)).collect();
    let ledger = Ledger::new(graph, sizes, &steps, ends.iter().copied());
    let order = least(&ledger, first, tried);
    if order.is_sorted() {
        return nodes.split_off(first);
    }
    // Constants stand where they are needed first.
    let mut done = vec![false; nodes.len()];
    let mut written = Vec::with_capacity(order.len());
    let constant = |n: u32| ledger.entries[n as usize].is_constant();
    let needed = order.iter().filter(|&&n| !constant(n)).flat_map(|&n| {
        let before = ledger.entries[n as usize].after.iter().copied();
        before.filter(|&before| constant(before)).chain([n])
    });
    for n in needed.chain(order.iter().copied()) {
        if n as usize >= first && !std::mem::replace(&mut done[n as usize], true) {
            written.push(nodes[n as usize]);
        }
    }
    written
}

/// The nodes from `first` on in the order that holds least.
fn least(ledger: &Ledger, first: usize, tried: Tried) -> Vec<u32> {
    let moved = tried == Tried::Moves && ledger.entries.len() <= LARGE;
    let all = ledger.entries.len() as u32;
    let (before, written) = (0..first as u32, first as u32..all);
    if tried == Tried::Needed {
        return as_needed(ledger, first);
    }
    let peak = |order: &[u32]| ledger.peak(before.clone().chain(order.iter().copied())).0;
    let as_written: Vec<u32> = written.collect();
    // Nothing holds less than the nodes before hold together with what they leave for others, nor less than the
    // results.
    let floor = ledger.floor(first);
    let mut best = (peak(&as_written), as_written);
    if best.0 <= floor + WORTH {
        return best.1;
    }
    let needed = as_needed(ledger, first);
    let mut candidates =
        vec![greedy(ledger, first, &needed, Even::First), needed.clone(), greedy(ledger, first, &best.1, Even::First)];
    if moved {
        candidates.push(greedy(ledger, first, &needed, Even::Last));
    }
    for order in candidates {
        let most = peak(&order);
        if most + WORTH < best.0 {
            best = (most, order);
        }
    }
    if moved { moves::improved(ledger, first, best) } else { best.1 }
}

impl Ledger {
    /// What is held at least, in whatever order the nodes from `first` on run.
    fn floor(&self, first: usize) -> u64 {
        let before = self.entries[..first].iter().map(|e| (&e.reads, &e.writes));
        let readers = self.readers(0..self.entries.len() as u32);
        let (most, _) = ledger::peak_before(before, readers, &self.bytes, &self.stays);
        most.max(self.bytes.iter().zip(&self.stays).filter(|(_, stays)| **stays).map(|(bytes, _)| bytes).sum())
    }
}

/// Each output in the order in which they were written, what it needs and is not there yet before it.
fn as_needed(ledger: &Ledger, first: usize) -> Vec<u32> {
    let mut wanted = vec![false; ledger.entries.len()];
    for entry in &ledger.entries[first..] {
        entry.after.iter().for_each(|&n| wanted[n as usize] = true);
    }
    let mut done = vec![false; ledger.entries.len()];
    done[..first].fill(true);
    let mut order = Vec::with_capacity(ledger.entries.len() - first);
    for last in (first..ledger.entries.len()).filter(|&n| !wanted[n]) {
        let mut open = vec![(last as u32, 0)];
        while let Some((node, next)) = open.pop() {
            match ledger.entries[node as usize].after.get(next) {
                Some(&before) => {
                    open.push((node, next + 1));
                    if !done[before as usize] {
                        open.push((before, 0));
                    }
                }
                None if !done[node as usize] => {
                    done[node as usize] = true;
                    order.push(node);
                }
                None => (),
            }
        }
    }
    order
}

/// How early a node goes: smaller is earlier.
type Key = (u8, i128, usize);

/// When a node goes that frees as much as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Even {
    /// By what it gives back of what it needs in between.
    First,
    /// After all others: less and less is held.
    Last,
}

struct Greedy<'a> {
    ledger: &'a Ledger,
    /// The place of each node in the order that decides between equals.
    place: Vec<usize>,
    /// How many nodes that have not run take each tensor.
    left: Vec<u32>,
    /// How many nodes each one waits for.
    waits: Vec<u32>,
    /// The nodes that wait for each one.
    followers: Vec<Vec<u32>>,
    even: Even,
}

impl Greedy<'_> {
    /// A node with those that follow from it alone, up to where least is held.
    fn key(&self, node: u32) -> Key {
        let bytes = |t: u32| i128::from(self.ledger.bytes[t as usize]);
        let frees = |t: u32| if self.ledger.stays[t as usize] { 0 } else { bytes(t) };
        let mut taken: Vec<u32> = Vec::new();
        let mut waited: Vec<u32> = Vec::new();
        let (mut net, mut high, mut best, mut current) = (0i128, 0i128, None, node);
        for _ in 0..AHEAD {
            let entry = &self.ledger.entries[current as usize];
            net += entry.writes.iter().map(|&t| bytes(t)).sum::<i128>();
            high = high.max(net);
            if entry.reads.len() > WIDE {
                // It is the first: what takes very much is no step of a chain.
                taken.extend(&entry.reads);
                taken.sort_unstable();
                let last = |same: &&[u32]| same.len() as u32 == self.left[same[0] as usize];
                net -= taken.chunk_by(u32::eq).filter(last).map(|same| frees(same[0])).sum::<i128>();
            } else {
                for &t in &entry.reads {
                    taken.push(t);
                    if taken.iter().filter(|&&other| other == t).count() as u32 == self.left[t as usize] {
                        net -= frees(t);
                    }
                }
            }
            net -= entry.writes.iter().filter(|&&t| self.left[t as usize] == 0).map(|&t| frees(t)).sum::<i128>();
            if best.is_none_or(|(least, _)| net < least) {
                best = Some((net, high));
            }
            let mut next: Option<u32> = None;
            for &follower in self.followers[current as usize].iter().take(WIDE) {
                waited.push(follower);
                let met = waited.iter().filter(|&&other| other == follower).count() as u32;
                let earlier = next.is_none_or(|n| self.place[follower as usize] < self.place[n as usize]);
                if met == self.waits[follower as usize] && earlier {
                    next = Some(follower);
                }
            }
            // What takes very much costs as much to look at.
            match next.filter(|&n| self.ledger.entries[n as usize].reads.len() <= WIDE) {
                Some(n) => current = n,
                None => break,
            }
        }
        let (net, high) = best.unwrap_or_default();
        let place = self.place[node as usize];
        match net {
            _ if net < 0 || high <= 0 => (0, high, place),
            0 if self.even == Even::Last => (2, high, place),
            _ => (1, net - high, place),
        }
    }
}

/// Always the best of the nodes that are ready; `written` decides between equals.
fn greedy(ledger: &Ledger, first: usize, written: &[u32], even: Even) -> Vec<u32> {
    let all = ledger.entries.len();
    let mut state = Greedy {
        ledger,
        place: vec![0; all],
        left: ledger.readers(first as u32..all as u32),
        waits: vec![0; all],
        followers: vec![Vec::new(); all],
        even,
    };
    let mut readers: Vec<Vec<u32>> = vec![Vec::new(); ledger.bytes.len()];
    for (place, &node) in written.iter().enumerate() {
        state.place[node as usize] = place;
        for &before in ledger.entries[node as usize].after.iter().filter(|&&n| n as usize >= first) {
            state.waits[node as usize] += 1;
            state.followers[before as usize].push(node);
        }
        ledger.entries[node as usize].reads.iter().for_each(|&t| readers[t as usize].push(node));
    }
    let mut heap: BinaryHeap<Reverse<(Key, u32)>> = BinaryHeap::new();
    heap.extend(written.iter().filter(|&&n| state.waits[n as usize] == 0).map(|&n| Reverse((state.key(n), n))));
    let mut done = vec![false; all];
    let mut order = Vec::with_capacity(all - first);
    while let Some(Reverse((key, node))) = heap.pop() {
        if done[node as usize] {
            continue;
        }
        let entry = &ledger.entries[node as usize];
        // What follows may have become dearer since; of a node that takes very much it is not asked again.
        let now = if entry.reads.len() <= WIDE { state.key(node) } else { key };
        if now > key {
            heap.push(Reverse((now, node)));
            continue;
        }
        done[node as usize] = true;
        order.push(node);
        for &t in &entry.reads {
            state.left[t as usize] -= 1;
            // Who is the only one left to take it frees it.
            if state.left[t as usize] == 1 {
                let only = readers[t as usize].iter().find(|&&n| !done[n as usize]);
                if let Some(&only) = only.filter(|&&n| state.waits[n as usize] == 0) {
                    heap.push(Reverse((state.key(only), only)));
                }
            }
        }
        for i in 0..state.followers[node as usize].len() {
            let follower = state.followers[node as usize][i];
            state.waits[follower as usize] -= 1;
            if state.waits[follower as usize] == 0 {
                heap.push(Reverse((state.key(follower), follower)));
            }
        }
    }
    order
}
