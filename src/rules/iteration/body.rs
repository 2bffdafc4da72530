//! The body of a Loop or Scan as its gradient sees it: what depends on what, through any number of iterations.

use crate::expr::Expr;
use crate::graph::{Graph, IdSet, NodeId, ScopeId, ValueId};
use crate::rules::Call;
use crate::rules::ports::{Port, Ports};
use anyhow::{Result, ensure};

/// The body of a Loop or Scan, and what its gradient is about.
pub struct Body<'g> {
    pub scope: ScopeId,
    pub inputs: Vec<Expr<'g>>,
    pub outputs: Vec<ValueId>,
    nodes: Vec<NodeId>,
    /// The place of the first state among the inputs and among the outputs.
    pub first: (usize, usize),
    pub states: usize,
    /// The inputs behind the states of which each iteration gets a part: the axis, and whether the last comes first.
    pub slices: Vec<(i64, bool)>,
    /// The captured values that get a gradient.
    pub captures: Vec<Expr<'g>>,
    /// The states through which a gradient flows back.
    pub active: Vec<usize>,
}

impl<'g> Body<'g> {
    pub fn new(c: &Call<'g>, states: usize, first: (usize, usize), slices: Vec<(i64, bool)>) -> Result<Self> {
        let scope = c.body("body")?;
        let graph = c.builder().graph();
        let body = graph.scope(scope);
        let (inputs, outputs) = (first.0 + states, first.1 + states);
        ensure!(
            body.inputs.len() >= inputs && body.outputs.len() >= outputs,
            "its body has {} inputs and {} outputs, which do not fit {states} carried states",
            body.inputs.len(),
            body.outputs.len()
        );
        let inputs = body.inputs.iter().map(|&i| c.builder().expr(i)).collect();
        let (outputs, nodes) = (body.outputs.clone(), body.nodes.clone());
        drop(graph);
        let mut this = Body { scope, inputs, outputs, nodes, first, states, slices, captures: vec![], active: vec![] };
        this.find_active(c);
        Ok(this)
    }

    pub fn state_input(&self, i: usize) -> Expr<'g> {
        self.inputs[self.first.0 + i]
    }

    pub fn state_output(&self, i: usize) -> ValueId {
        self.outputs[self.first.1 + i]
    }

    /// Reads the parts of the inputs, in the order of the node or from its end.
    pub fn read(&self, c: &Call<'g>, ports: &mut Ports<'g>, backward: bool) -> Vec<Port> {
        let mut read = Vec::new();
        for (j, &(axis, last_first)) in self.slices.iter().enumerate() {
            let i = self.first.0 + self.states + j;
            read.push(ports.read(self.inputs[i].fact(), Some(c.input(i)), (axis, last_first != backward)));
        }
        read
    }

    /// A state is active if it depends on something that is asked for, in this or an earlier iteration, and something
    /// that has a gradient depends on it.
    fn find_active(&mut self, c: &Call<'g>) {
        let captures = c.wanted_captures();
        let wanted = |i: usize| c.opt(i).is_some_and(|x| c.wants(x.id()));
        // In Loop and Scan alike, inputs of the node and of the body are in the same places.
        let mut sources: IdSet<ValueId> = captures.iter().map(|e| e.id()).collect();
        let places = self.first.0..self.first.0 + self.states + self.slices.len();
        sources.extend(places.filter(|&i| wanted(i)).filter_map(|i| self.inputs.get(i)).map(|e| e.id()));
        until_whole(&mut sources, |sources| {
            let live = c.live(&self.nodes, &sources.iter().copied().collect::<Vec<_>>());
            let reached = (0..self.states).filter(|&s| live.contains(&self.state_output(s)));
            sources.extend(reached.map(|s| self.state_input(s).id()));
        });
        let graph = c.builder().graph();
        let seeded = c.dys().iter().enumerate().filter(|(_, dy)| dy.is_some());
        let mut targets = seeded.filter_map(|(i, _)| self.outputs.get(self.first.1 + i).copied()).collect();
        self.close_over(&graph, &mut targets);
        let is_active = |&s: &usize| {
            let state = self.state_input(s).id();
            let counts = c.has_dy(s) || targets.contains(&state);
            counts && sources.contains(&state) && graph.fact(state).may_carry_gradient()
        };
        self.active = (0..self.states).filter(is_active).collect();
        self.captures = captures.into_iter().filter(|e| targets.contains(&e.id())).collect();
    }

    /// Adds to a set of values all that they depend on, through any number of iterations.
    fn close_over(&self, graph: &Graph, values: &mut IdSet<ValueId>) {
        until_whole(values, |values| {
            for &id in self.nodes.iter().rev() {
                let node = graph.node(id);
                if node.outputs.iter().flatten().any(|o| values.contains(o)) {
                    values.extend(node.inputs.iter().flatten());
                    values.extend(graph.captures(id));
                }
            }
            let carried = (0..self.states).filter(|&s| values.contains(&self.state_input(s).id()));
            values.extend(carried.map(|s| self.state_output(s)).collect::<Vec<_>>());
        });
    }

    /// The states on which some values depend.
    pub fn states_behind(&self, graph: &Graph, values: impl IntoIterator<Item = ValueId>) -> Vec<usize> {
        let mut values: IdSet<ValueId> = values.into_iter().collect();
        self.close_over(graph, &mut values);
        (0..self.states).filter(|&s| values.contains(&self.state_input(s).id())).collect()
    }
}

/// Adds to a set until there is nothing left to add.
fn until_whole(values: &mut IdSet<ValueId>, mut add: impl FnMut(&mut IdSet<ValueId>)) {
    let mut before = None;
    while before.replace(values.len()) != Some(values.len()) {
        add(values);
    }
}

/// How many inputs of a Scan, the last of so many, are scanned.
pub fn scanned(c: &Call<'_>, inputs: usize) -> Result<usize> {
    let scanned = usize::try_from(c.int("num_scan_inputs", 0)).unwrap_or(0);
    ensure!((1..=inputs).contains(&scanned), "num_scan_inputs is {scanned}, of {inputs} inputs");
    Ok(scanned)
}

/// Axes and directions of a Scan's inputs or outputs: whether the last part comes first.
fn laid(c: &Call<'_>, axes: &str, directions: &str, count: usize) -> Result<Vec<(i64, bool)>> {
    let (axes, directions) = (list(c, axes, count)?, list(c, directions, count)?);
    Ok(axes.into_iter().zip(directions.into_iter().map(|d| d != 0)).collect())
}

/// The body of a Scan, and how what it stacks is laid.
pub fn scan_body<'g>(c: &Call<'g>) -> Result<(Body<'g>, Vec<(i64, bool)>)> {
    let scanned = scanned(c, c.input_count())?;
    let states = c.input_count() - scanned;
    let slices = laid(c, "scan_input_axes", "scan_input_directions", scanned)?;
    let body = Body::new(c, states, (0, 0), slices)?;
    let inputs = body.inputs.len();
    ensure!(inputs == states + scanned, "its body has {inputs} inputs for {}", states + scanned);
    let outputs = laid(c, "scan_output_axes", "scan_output_directions", body.outputs.len() - states)?;
    Ok((body, outputs))
}

/// Axes or directions of a Scan, one for each scan input or output.
pub fn list(c: &Call<'_>, name: &str, count: usize) -> Result<Vec<i64>> {
    let given = c.ints(name).unwrap_or_else(|| vec![0; count]);
    ensure!(given.len() == count, "{name} has {} entries for {count} tensors", given.len());
    Ok(given)
}
