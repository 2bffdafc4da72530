//! What a rule has returned is held against its input, and what went wrong is said of the node and the input that it is
//! about.

use super::{Flow, IntoFlow, Pass};
use crate::graph::{Dim, Node, NodeId, Origin, ValueId};
use crate::rules::{Differentiate, Rule};
use anyhow::{Context, Error, Result, anyhow, ensure};

impl<'g> Pass<'g> {
    /// The gradients as flows, each held against its input. That of quantized integers has one type, whichever their
    /// consumers compute in; `rounded`: what a row returns that computes in a type of its own gets the type of its
    /// input.
    pub(super) fn checked<T: IntoFlow<'g>>(
        &self,
        gradients: Vec<(ValueId, T)>,
        rounded: bool,
    ) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let own = |x: ValueId| self.builder.graph().fact(x).element.filter(|_| rounded);
        let check = |(x, flow): (ValueId, T)| {
            let flow = match (flow.into_flow(), self.cotangent(x).or_else(|| own(x))) {
                (Flow::Value(dx), Some(element)) => Flow::Value(dx.cast(element)),
                (flow, _) => flow,
            };
            if let Flow::Value(dx) = flow {
                self.hold_against(x, dx.id())?;
            }
            Ok((x, flow))
        };
        gradients.into_iter().map(check).collect()
    }

    /// Checks what a formula for all inputs has found; what is wrong is said of the input that it is about.
    pub(super) fn checked_each<T: IntoFlow<'g>>(
        &self,
        found: Result<Vec<(ValueId, T)>>,
        id: NodeId,
        node: &Node,
        rounded: bool,
    ) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let mut checked = Vec::new();
        for (x, dx) in self.blame(found, id, None)? {
            let input = node.inputs.iter().position(|&i| i == Some(x));
            checked.extend(self.blame(self.checked(vec![(x, dx)], rounded), id, input)?);
        }
        Ok(checked)
    }

    /// A gradient has the shape and the element type of its input, or its rule is wrong. What inference does not know
    /// of it is known of the input.
    fn hold_against(&self, x: ValueId, dx: ValueId) -> Result<()> {
        let mut graph = self.builder.graph_mut();
        let (of_x, of_dx) = (graph.fact(x), graph.fact(dx));
        let element = self.cotangent(x).or(of_x.element);
        if let (Some(element), Some(found)) = (element, of_dx.element) {
            let (a, b) = (found.name(), element.name());
            ensure!(
                found == element,
                "its rule gives a gradient of type {a} for {b}; {}",
                graph.why_types_differ(self.builder.forward_node())
            );
        }
        let Some(shape) = &of_x.shape else {
            graph.note_like(dx, x);
            return Ok(());
        };
        let known = match &of_dx.shape {
            None => shape.clone(),
            Some(own) if own == shape => return Ok(()),
            Some(own) => {
                let contradict = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
                ensure!(
                    own.len() == shape.len() && !own.iter().zip(shape.iter()).any(contradict),
                    "its rule gives a gradient of shape {} for {}; {}",
                    graph.dims.display(own),
                    graph.dims.display(shape),
                    graph.why_shapes_contradict(self.builder.forward_node())
                );
                own.iter().zip(shape.iter()).map(|(&own, &dim)| if own.known().is_some() { own } else { dim }).collect()
            }
        };
        graph.fact_mut(dx).shape = Some(known);
        Ok(())
    }

    /// Adds to an error, returned or recorded by the builder, which node and input it is about.
    pub(super) fn blame<T>(&self, result: Result<T>, id: NodeId, input: Option<usize>) -> Result<T> {
        let (result, input) = match self.builder.take_blame() {
            Some((error, blamed)) => (Err(error), input.or(blamed)),
            None => (result, input),
        };
        result.map_err(|error: Error| {
            let graph = self.builder.graph();
            let mut place = graph.place(self.origin(id));
            let value = input.and_then(|i| Some((i, graph.node(id).inputs.get(i).copied().flatten()?)));
            if let Some((i, value)) = value {
                let name = graph.value(value).name.as_deref().unwrap_or("");
                place.text.push_str(&format!(", input {i} '{name}'"));
                place.input = Some(name.to_owned());
            }
            error.context(place)
        })
    }

    /// The model's own node behind a node that the pass has written, which is the one that users know.
    pub(super) fn origin(&self, id: NodeId) -> NodeId {
        let graph = self.builder.graph();
        match graph.node(id).origin {
            Origin::Backward(Some(forward)) => forward,
            _ => id,
        }
    }

    /// An attribute of which the rule does not know may change the formula.
    pub(super) fn check_attributes(&self, id: NodeId, node: &Node, rule: &Rule) -> Result<()> {
        let bodies = node.bodies.iter().map(|(name, _)| &**name);
        let unknown = node.attributes.iter().map(|a| a.name()).chain(bodies).find(|name| !rule.knows(name));
        match unknown {
            Some(name) => {
                Err(anyhow!("attribute '{name}' is not known to the operator's gradient, which might be wrong with it"))
                    .with_context(|| self.builder.graph().describe(self.origin(id)))
            }
            None => Ok(()),
        }
    }
}
