//! Least cuts of networks, by Dinic's algorithm (Algorithm for solution of a problem of maximum flow in networks with
//! power estimation, 1970).

/// A capacity that no cut goes through.
pub const ENDLESS: u64 = u64::MAX / 4;

/// A vertex.
pub type Vertex = u32;

struct Edge {
    to: Vertex,
    /// What may still flow.
    left: u64,
}

/// A network between a source and a sink.
pub struct Network {
    /// Each edge stands beside the one that takes its flow back: their numbers differ in the last bit.
    edges: Vec<Edge>,
    of: Vec<Vec<u32>>,
}

impl Network {
    /// Where the flow comes from.
    pub const SOURCE: Vertex = 0;
    /// Where it goes.
    pub const SINK: Vertex = 1;

    /// One of source and sink alone.
    pub fn new() -> Self {
        Network { edges: Vec::new(), of: vec![Vec::new(), Vec::new()] }
    }

    /// One more vertex.
    pub fn vertex(&mut self) -> Vertex {
        self.of.push(Vec::new());
        self.of.len() as Vertex - 1
    }

    /// One more edge.
    pub fn edge(&mut self, from: Vertex, to: Vertex, capacity: u64) {
        for (from, to, left) in [(from, to, capacity), (to, from, 0)] {
            self.of[from as usize].push(self.edges.len() as u32);
            self.edges.push(Edge { to, left });
        }
    }

    /// For each vertex whether it lies on the sink's side of a least cut; of all least cuts that with the fewest there.
    pub fn cut(mut self) -> Vec<bool> {
        while let Some(level) = self.levels() {
            let mut next = vec![0usize; self.of.len()];
            while self.push(&level, &mut next) {}
        }
        let mut behind = vec![false; self.of.len()];
        let mut open = vec![Self::SINK];
        behind[Self::SINK as usize] = true;
        while let Some(vertex) = open.pop() {
            for &e in &self.of[vertex as usize] {
                let from = self.edges[e as usize].to;
                if self.edges[(e ^ 1) as usize].left > 0 && !behind[from as usize] {
                    behind[from as usize] = true;
                    open.push(from);
                }
            }
        }
        behind
    }

    /// How many edges each vertex is away from the source, unless none of them leads to the sink any more.
    fn levels(&self) -> Option<Vec<u32>> {
        let mut level = vec![u32::MAX; self.of.len()];
        level[Self::SOURCE as usize] = 0;
        let mut open = std::collections::VecDeque::from([Self::SOURCE]);
        while let Some(vertex) = open.pop_front() {
            for edge in self.of[vertex as usize].iter().map(|&e| &self.edges[e as usize]) {
                if edge.left > 0 && level[edge.to as usize] == u32::MAX {
                    level[edge.to as usize] = level[vertex as usize] + 1;
                    open.push_back(edge.to);
                }
            }
        }
        (level[Self::SINK as usize] != u32::MAX).then_some(level)
    }

    /// Sends what fits along one path that leads a level further with each edge; `next` is the first edge of each
    /// vertex that has not turned out to lead nowhere.
    fn push(&mut self, level: &[u32], next: &mut [usize]) -> bool {
        let mut path: Vec<u32> = Vec::new();
        let mut vertex = Self::SOURCE;
        while vertex != Self::SINK {
            match self.of[vertex as usize].get(next[vertex as usize]) {
                Some(&e) => {
                    let edge = &self.edges[e as usize];
                    if edge.left > 0 && level[edge.to as usize] == level[vertex as usize] + 1 {
                        path.push(e);
                        vertex = edge.to;
                    } else {
                        next[vertex as usize] += 1;
                    }
                }
                None => match path.pop() {
                    Some(e) => {
                        vertex = self.edges[(e ^ 1) as usize].to;
                        next[vertex as usize] += 1;
                    }
                    None => return false,
                },
            }
        }
        let flow = path.iter().map(|&e| self.edges[e as usize].left).min().unwrap_or(0);
        for e in path {
            self.edges[e as usize].left -= flow;
            let back = &mut self.edges[(e ^ 1) as usize].left;
            *back = back.saturating_add(flow);
        }
        flow > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every cut of a small network, tried one by one.
    #[test]
    fn the_cut_is_the_least_of_all() {
        let mut state = 1u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let vertices = 2 + draw(6) as u32;
            let edges: Vec<(u32, u32, u64)> = (0..draw(20))
                .map(|_| (draw(vertices.into()) as u32, draw(vertices.into()) as u32, draw(10)))
                .filter(|(a, b, _)| a != b)
                .collect();
            let mut network = Network::new();
            for _ in 2..vertices {
                network.vertex();
            }
            edges.iter().for_each(|&(a, b, c)| network.edge(a, b, c));
            let behind = network.cut();
            let crossing = |behind: &dyn Fn(u32) -> bool| -> u64 {
                edges.iter().filter(|(a, b, _)| !behind(*a) && behind(*b)).map(|(.., c)| c).sum()
            };
            let least = (0..1u32 << vertices)
                .filter(|set| set & 1 == 0 && set & 2 != 0)
                .map(|set| crossing(&|v| set >> v & 1 == 1))
                .min();
            assert!(!behind[0] && behind[1]);
            assert_eq!(Some(crossing(&|v| behind[v as usize])), least, "{edges:?}");
        }
    }
}
