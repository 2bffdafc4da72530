//! The body of a Loop, Scan or SequenceMap that a rule writes, port by port.
//!
//! A port is a tensor that goes into an iteration, comes out of it, or both. It is named once, when the body is opened;
//! which ports are left when nothing reads them, and in which order inputs and outputs stand, is settled when it is
//! closed.

use super::Call;
use super::control::close;
use crate::expr::{Along, Builder, Expr};
use crate::graph::{Fact, IdSet, ScopeId, ValueId};
use crate::onnx::ElementType;
use anyhow::{Result, anyhow};

/// One of the ports of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Port(usize);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What a Loop gives each iteration: the number of the trip, and the condition, which is handed on.
    Given,
    /// Handed from each iteration to the next.
    Carried,
    /// Each iteration gets a part.
    Read,
    /// Each iteration puts out a part.
    Stacked,
}

struct Entry<'g> {
    kind: Kind,
    /// The input in the body; the part of what is stacked.
    inside: Expr<'g>,
    /// What the iteration hands on.
    after: Option<Expr<'g>>,
    /// The first value of what is carried, all of what is read.
    outside: Option<Expr<'g>>,
    /// What comes out in the end: the last value of what is carried, all of what is stacked.
    result: Option<Expr<'g>>,
    /// The axis along which parts lie, and whether the last comes first.
    along: (i64, bool),
    /// Whether it is an input or an output of the finished body.
    stays: bool,
}

/// A body that is being written.
pub struct Ports<'g> {
    builder: &'g Builder,
    scope: ScopeId,
    entries: Vec<Entry<'g>>,
}

impl<'g> Ports<'g> {
    /// A body without ports, inside the current scope.
    pub fn open(builder: &'g Builder) -> Self {
        Ports { builder, scope: builder.open(vec![]).0, entries: Vec::new() }
    }

    fn add(&mut self, kind: Kind, inside: Expr<'g>, outside: Option<Expr<'g>>, along: (i64, bool)) -> Port {
        let stays = kind != Kind::Read;
        self.entries.push(Entry { kind, inside, after: None, outside, result: None, along, stays });
        Port(self.entries.len() - 1)
    }

    /// What a Loop gives each iteration.
    pub fn given(&mut self, fact: Fact) -> Port {
        self.add(Kind::Given, self.builder.add_input(self.scope, fact), None, (0, false))
    }

    /// What each iteration takes from the one before it, the first of them `first`. It goes where nothing is handed on.
    pub fn carried(&mut self, fact: Fact, first: Expr<'g>) -> Port {
        self.add(Kind::Carried, self.builder.add_input(self.scope, fact), Some(first), (0, false))
    }

    /// What each iteration reads a part of, along an axis and maybe from the end; what all of it is may be said later.
    /// It goes where no node reads it.
    pub fn read(&mut self, fact: Fact, all: Option<Expr<'g>>, along: (i64, bool)) -> Port {
        self.add(Kind::Read, self.builder.add_input(self.scope, fact), all, along)
    }

    /// What each iteration puts out a part of.
    pub fn stacked(&mut self, part: Expr<'g>, along: (i64, bool)) -> Port {
        self.add(Kind::Stacked, part, None, along)
    }

    /// The port that reads or stacks a tensor of each iteration along an axis; a new one where there is none.
    pub fn holding(&mut self, part: Expr<'g>, along: (i64, bool)) -> Port {
        let holds =
            |e: &Entry<'g>| matches!(e.kind, Kind::Read | Kind::Stacked) && e.inside == part && e.along == along;
        match self.entries.iter().position(holds) {
            Some(at) => Port(at),
            None => self.stacked(part, along),
        }
    }

    /// The tensor of one iteration, in the body.
    pub fn inside(&self, port: Port) -> Expr<'g> {
        self.entries[port.0].inside
    }

    /// The tensors of one iteration, in the body.
    pub fn all_inside(&self, ports: &[Port]) -> Vec<Expr<'g>> {
        ports.iter().map(|&p| self.inside(p)).collect()
    }

    /// Says what all of it is that a port reads parts of.
    pub fn from(&mut self, port: Port, all: Expr<'g>) {
        self.entries[port.0].outside = Some(all);
    }

    /// Says what an iteration hands on to the next.
    pub fn hand_on(&mut self, port: Port, after: Expr<'g>) {
        self.entries[port.0].after = Some(after);
    }

    /// An input stays whether a node reads it or not.
    pub fn keep(&mut self, port: Port) {
        self.entries[port.0].stays = true;
    }

    /// Whether an input has stayed.
    pub fn stays(&self, port: Port) -> bool {
        self.entries[port.0].stays
    }

    /// Whether a value is computed in the body, or is one of its inputs.
    pub fn holds(&self, e: Expr<'g>) -> bool {
        self.builder.graph().value(e.id()).scope == self.scope
    }

    /// Appends what `write` builds to the body.
    pub fn within<T>(&self, write: impl FnOnce() -> T) -> T {
        self.builder.within(self.scope, write)
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Entry<'g>> {
        self.entries.iter().filter(move |e| e.kind == kind && e.stays)
    }

    /// Whether no iteration would hand on or put out anything.
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(|e| e.kind != Kind::Stacked && e.after.is_none())
    }

    /// Finishes the body: outputs are the condition, what is carried, and what is stacked. What is not read goes, but
    /// for `counting`, which stays where nothing else would say how many iterations there are.
    ///
    /// # Errors
    /// What the body computes again is random.
    pub fn close(&mut self, c: &Call<'g>, counting: Option<Port>) -> Result<()> {
        self.entries.iter_mut().filter(|e| e.kind == Kind::Carried).for_each(|e| e.stays = e.after.is_some());
        let after = |kind: Kind| self.of(kind).filter_map(|e| e.after);
        let stacked = self.of(Kind::Stacked).map(|e| e.inside);
        let outputs: Vec<_> = after(Kind::Given).chain(after(Kind::Carried)).chain(stacked).collect();
        close(c, self.scope, &outputs, 0)?;
        let used: IdSet<ValueId> = self.builder.graph().scope(self.scope).inputs.iter().copied().collect();
        let read = |e: &&mut Entry<'g>| e.kind == Kind::Read && used.contains(&e.inside.id());
        self.entries.iter_mut().filter(read).for_each(|e| e.stays = true);
        if let Some(port) = counting.filter(|_| self.of(Kind::Read).next().is_none()) {
            self.keep(port);
        }
        let inputs = self.inputs().map(|e| e.inside.id()).collect();
        self.builder.graph_mut().set_inputs(self.scope, inputs);
        Ok(())
    }

    /// The inputs of the finished body, in their order.
    fn inputs(&self) -> impl Iterator<Item = &Entry<'g>> {
        self.of(Kind::Given).chain(self.of(Kind::Carried)).chain(self.of(Kind::Read))
    }

    /// What stands outside for the ports of a kind.
    fn outside(&self, kind: Kind) -> Vec<Expr<'g>> {
        let missing = || self.builder.fail(anyhow!("what an iteration takes is not known"));
        self.of(kind).map(|e| e.outside.unwrap_or_else(missing)).collect()
    }

    fn set_results(&mut self, results: Vec<Expr<'g>>) {
        let mut results = results.into_iter();
        for kind in [Kind::Carried, Kind::Stacked] {
            self.entries.iter_mut().filter(|e| e.kind == kind && e.stays).for_each(|e| e.result = results.next());
        }
    }

    /// Writes the finished body as a Scan.
    pub fn scan(&mut self) {
        let parts = self.of(Kind::Read).map(|e| e.along).zip(self.outside(Kind::Read));
        let along: Vec<_> = parts.map(|((axis, reverse), tensor)| Along { tensor, axis, reverse }).collect();
        let stacked: Vec<_> = self.of(Kind::Stacked).map(|e| e.along).collect();
        self.set_results(self.builder.scan(&self.outside(Kind::Carried), &along, &stacked, self.scope));
    }

    /// Writes the finished body as a Loop. Nothing is read part by part.
    pub fn repeat(&mut self, limit: Option<Expr<'g>>, condition: Option<Expr<'g>>) {
        self.set_results(self.builder.loop_(limit, condition, &self.outside(Kind::Carried), self.scope));
    }

    /// Writes the finished body as a Loop from the last of so many trips to the first: what is given is the number of
    /// the trip, what is read is read at it, or what `at` makes of the number, for ports of which nothing else is said.
    ///
    /// # Errors
    /// What the body computes again is random; what `at` fails with.
    pub fn repeat_backward(
        &mut self,
        c: &Call<'g>,
        trips: Expr<'g>,
        at: impl FnOnce(Expr<'g>) -> Result<Vec<(Port, Expr<'g>)>>,
    ) -> Result<()> {
        let b = self.builder;
        let last = trips - 1;
        let scalar = |element| Fact::tensor(Some(element), Some([].into()));
        let head = [scalar(ElementType::Int64), scalar(ElementType::Bool)];
        let (scope, inputs) = b.open(head.into_iter().chain(self.of(Kind::Carried).map(|e| e.inside.fact())).collect());
        let outputs = b.within(scope, || {
            let i = last - inputs[0];
            let given = self.of(Kind::Given).map(|e| as_declared(i, e.inside));
            let made: Vec<(ValueId, Expr<'g>)> =
                at(i)?.into_iter().map(|(port, e)| (self.inside(port).id(), e)).collect();
            let missing = || b.fail(anyhow!("what an iteration takes is not known"));
            let read = self.of(Kind::Read).map(|e| match e.outside {
                Some(all) => all.gather(i, 0),
                None => made.iter().find(|(id, _)| *id == e.inside.id()).map_or_else(missing, |(_, e)| *e),
            });
            let arguments: Vec<_> = given.chain(inputs[2..].iter().copied()).chain(read).collect();
            anyhow::Ok([vec![inputs[1]], b.splice(self.scope, &arguments).0].concat())
        })?;
        close(c, scope, &outputs, inputs.len())?;
        self.set_results(b.loop_(Some(trips), None, &self.outside(Kind::Carried), scope));
        Ok(())
    }

    /// Writes the finished body as a SequenceMap over the elements of what it reads.
    pub fn map(&mut self) {
        self.set_results(self.builder.sequence_map(&self.outside(Kind::Read), self.scope));
    }

    /// What has come out in the end, of a port that has stayed.
    pub fn result(&self, port: Port) -> Option<Expr<'g>> {
        self.entries[port.0].result
    }

    /// The parts of all iterations: of what is read, or of what has been stacked.
    pub fn all(&self, port: Port) -> Expr<'g> {
        let entry = &self.entries[port.0];
        let all = if entry.kind == Kind::Read { entry.outside } else { entry.result };
        all.unwrap_or_else(|| self.builder.fail(anyhow!("the parts of all iterations are not known")))
    }
}

/// A number without dimensions in the rank that a body declares of it: runtimes take one element of rank 1 for it, too.
pub fn as_declared<'g>(number: Expr<'g>, input: Expr<'g>) -> Expr<'g> {
    if input.fact().rank() == Some(1) { number.reshape_to(&[1]) } else { number }
}
