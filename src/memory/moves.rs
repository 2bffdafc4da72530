//! Single nodes of an order moved away from the place where most is held, as long as that makes it less: what lets a
//! large tensor go for a small one (the mask of a Relu) before it, what only replaces a tensor by another behind it.

use super::Ledger;
use std::cmp::Reverse;

/// From how many bytes on another order than that in which nodes were written is worth being read.
pub const WORTH: u64 = 4096;
/// How often nodes are moved, and how many moves of a kind are tried for that.
const MOVES: usize = 16;
/// A tensor that more nodes take is left where it is.
const WIDE: usize = 64;

/// Nodes and the place behind which they are to stand.
struct Move {
    nodes: Vec<u32>,
    behind: usize,
    /// The bytes by which less is held where most is, if nothing else stands in the way.
    gain: u64,
}

/// An order of the nodes from `first` on that holds no more than the given one, of which it is known how much that is.
pub fn improved(ledger: &Ledger, first: usize, (mut most, mut order): (u64, Vec<u32>)) -> Vec<u32> {
    let mut readers: Vec<Vec<u32>> = vec![Vec::new(); ledger.bytes.len()];
    for (n, entry) in ledger.entries.iter().enumerate() {
        entry.reads.iter().for_each(|&t| readers[t as usize].push(n as u32));
    }
    let peak = |order: &[u32]| ledger.peak((0..first as u32).chain(order.iter().copied()));
    for _ in 0..MOVES {
        let place = peak(&order).1;
        let mut places: Vec<usize> = (0..ledger.entries.len()).collect();
        order.iter().enumerate().for_each(|(i, &n)| places[n as usize] = first + i);
        let around = Around { ledger, first, readers: &readers, places: &places, place };
        let best = |mut moves: Vec<Move>| {
            moves.sort_by_key(|m| Reverse(m.gain));
            moves.truncate(MOVES);
            moves
        };
        let earlier = best((0..ledger.bytes.len()).filter_map(|t| around.earlier(t)).collect());
        let later = best(order.iter().filter_map(|&n| around.later(n)).collect());
        let better = earlier.into_iter().chain(later).find_map(|m| {
            let moved = around.moved(&order, m);
            let held = peak(&moved).0;
            (held < most).then_some((held, moved))
        });
        match better {
            Some(better) => (most, order) = better,
            None => break,
        }
    }
    order
}

/// An order, and the place in it where most is held.
struct Around<'a> {
    ledger: &'a Ledger,
    first: usize,
    /// The nodes that take each tensor.
    readers: &'a [Vec<u32>],
    /// Where each node stands.
    places: &'a [usize],
    place: usize,
}

impl Around<'_> {
    fn at(&self, node: &u32) -> usize {
        self.places[*node as usize]
    }

    fn written(&self, node: u32) -> u64 {
        self.ledger.entries[node as usize].writes.iter().map(|&t| self.ledger.bytes[t as usize]).sum()
    }

    /// All that takes a tensor behind the place, moved to where its inputs are there.
    fn earlier(&self, tensor: usize) -> Option<Move> {
        if self.ledger.stays[tensor] || self.readers[tensor].len() > WIDE {
            return None;
        }
        let (mut late, early): (Vec<u32>, Vec<u32>) =
            self.readers[tensor].iter().partition(|n| self.at(n) > self.place);
        if late.is_empty() {
            return None;
        }
        let needed = late.iter().flat_map(|&n| &self.ledger.entries[n as usize].after).chain(&early);
        let behind = needed.map(|n| self.at(n)).max()?;
        let gain = self.ledger.bytes[tensor].saturating_sub(late.iter().map(|&n| self.written(n)).sum());
        late.sort_unstable_by_key(|n| self.at(n));
        (behind < self.place && gain > WORTH).then_some(Move { nodes: late, behind, gain })
    }

    /// A node whose outputs are taken behind the place, moved to where the first of them is.
    fn later(&self, node: u32) -> Option<Move> {
        let entry = &self.ledger.entries[node as usize];
        if self.at(&node) > self.place || entry.writes.iter().any(|&t| self.ledger.stays[t as usize]) {
            return None;
        }
        let takers = entry.writes.iter().flat_map(|&t| &self.readers[t as usize]);
        let taken = takers.map(|n| self.at(n)).min().filter(|&taken| taken > self.place + 1)?;
        let few = |t: &u32| self.readers[*t as usize].len() <= WIDE;
        let last = |t: &&u32| few(t) && self.readers[**t as usize].iter().all(|n| self.at(n) <= self.at(&node));
        let frees = |t: &u32| if self.ledger.stays[*t as usize] { 0 } else { self.ledger.bytes[*t as usize] };
        let kept: u64 = match self.at(&node) == self.place {
            true => 0,
            false => entry.reads.iter().filter(last).map(frees).sum(),
        };
        let gain = self.written(node).saturating_sub(kept);
        (gain > WORTH).then_some(Move { nodes: vec![node], behind: taken - 1, gain })
    }

    fn moved(&self, order: &[u32], m: Move) -> Vec<u32> {
        let split = (m.behind + 1).saturating_sub(self.first).min(order.len());
        let stays = |n: &&u32| !m.nodes.contains(n);
        let (before, behind) = order.split_at(split);
        before.iter().filter(stays).chain(&m.nodes).chain(behind.iter().filter(stays)).copied().collect()
    }
}
