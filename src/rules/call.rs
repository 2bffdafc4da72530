//! One forward node as a rule sees it: its inputs, outputs and attributes, in their newest form, and the gradients of
//! its outputs.

use crate::expr::{Builder, Expr, normalize_axis};
use crate::graph::{Fact, IdMap, IdSet, NewNode, Node, NodeId, ScopeId, ValueId};
use crate::onnx::{AttributeProto, ElementType, attribute};
use anyhow::{Context, Result, anyhow, bail, ensure};

/// The pass that calls a rule, as the rule asks it for gradients of what it has written itself.
pub(crate) trait Differentiate<'g> {
    /// Where gradients are written to.
    fn builder(&self) -> &'g Builder;

    /// The gradients that arrive at `xs` from the seeds of ys, through `nodes`, which are in topological order; `None`
    /// for an x that is not connected.
    ///
    /// # Errors
    /// An operator on a path has no gradient, or its rule cannot be applied.
    fn through_nodes(
        &'g self,
        nodes: &[NodeId],
        seeds: &[(Expr<'g>, Expr<'g>)],
        xs: &[Expr<'g>],
    ) -> Result<Vec<Option<Expr<'g>>>>;

    /// The gradients of `xs`, of which a rule has built the ys by a formula, from the seeds of those; an x to which
    /// nothing but zeros leads is left out.
    ///
    /// # Errors
    /// As for nodes.
    fn through_formula(&'g self, seeds: &[(Expr<'g>, Expr<'g>)], xs: &[Expr<'g>]) -> Result<IdMap<ValueId, Expr<'g>>>;

    /// The tensors through which a gradient can reach one of `xs`, of those that `nodes` compute from them.
    fn live(&self, nodes: &[NodeId], xs: &[ValueId]) -> IdSet<ValueId>;

    /// The element type of the gradient of a tensor of quantized integers that depends on an x.
    fn cotangent(&self, value: ValueId) -> Option<ElementType>;
}

/// A body that is computed again.
pub(crate) struct Replay<'g> {
    pass: &'g dyn Differentiate<'g>,
    /// Its outputs.
    pub outputs: Vec<Expr<'g>>,
    nodes: Vec<NodeId>,
}

impl<'g> Replay<'g> {
    /// What arrives at `xs` from the gradients of outputs, in the current scope; `None` where nothing does.
    ///
    /// # Errors
    /// An operator between them has no gradient, or its rule cannot be applied.
    pub fn gradients(&self, seeds: &[(Expr<'g>, Expr<'g>)], xs: &[Expr<'g>]) -> Result<Vec<Option<Expr<'g>>>> {
        self.pass.through_nodes(&self.nodes, seeds, xs)
    }
}

/// A forward node and the gradients of its outputs.
pub struct Call<'g> {
    pass: &'g dyn Differentiate<'g>,
    id: NodeId,
    node: Node,
    dys: Vec<Option<Expr<'g>>>,
    /// Sorted.
    wanted: Vec<ValueId>,
    /// The floating-point type that the formula computes in, where its row says that it is one.
    precision: Option<ElementType>,
}

/// What a rule finds for the inputs of a node, and for what its bodies capture.
pub struct Cotangents<'g> {
    builder: &'g Builder,
    /// The inputs that lead to an x, by number.
    wanted: Vec<Option<ValueId>>,
    /// All inputs.
    inputs: Vec<Expr<'g>>,
    found: Vec<(ValueId, Expr<'g>)>,
}

impl<'g> Cotangents<'g> {
    /// The gradient of an input, in its shape. It is computed only where the input leads to an x.
    pub fn input(self, i: usize, dx: impl FnOnce() -> Expr<'g>) -> Self {
        match self.wanted.get(i) {
            Some(&Some(x)) => {
                let dx = self.builder.for_input(i, dx);
                self.values([(x, dx)])
            }
            _ => self,
        }
    }

    /// The gradient of an input in the shape that it is broadcast to: summed to its own.
    pub fn broadcast(self, i: usize, dx: impl FnOnce() -> Expr<'g>) -> Self {
        match self.wanted.get(i) {
            Some(&Some(x)) => {
                let b = self.builder;
                let dx = b.for_input(i, || dx().unbroadcast_beside(b.expr(x), || self.inputs.clone()));
                self.values([(x, dx)])
            }
            _ => self,
        }
    }

    /// The gradients of values, inputs or such that a body captures, which lead to an x.
    pub(crate) fn values(mut self, pairs: impl IntoIterator<Item = (ValueId, Expr<'g>)>) -> Self {
        self.found.extend(pairs);
        self
    }

    /// All of them, by value.
    pub(crate) fn into_found(self) -> Vec<(ValueId, Expr<'g>)> {
        self.found
    }
}

impl<'g> Call<'g> {
    /// The node, with the gradients of its outputs where they have any, for the gradients of the `wanted` inputs and
    /// captures, which are sorted; `in_float32` is the mark of the row ([`crate::rules::Rule::in_float32`]).
    pub(crate) fn new(
        pass: &'g dyn Differentiate<'g>,
        id: NodeId,
        dys: Vec<Option<Expr<'g>>>,
        wanted: Vec<ValueId>,
        in_float32: bool,
    ) -> Self {
        let node = pass.builder().graph().node(id).clone();
        let mut call = Call { pass, id, node, dys, wanted, precision: None };
        if in_float32 {
            let element = |&i: &ValueId| pass.builder().graph().fact(i).element.filter(|e| e.is_float());
            call.precision = call.node.inputs.iter().flatten().find_map(element).map(ElementType::widened);
            call.dys = call.dys.iter().map(|dy| dy.map(|dy| call.precise(dy))).collect();
        }
        call
    }

    /// A value of the node, or its gradient, in the type that the formula computes in.
    fn precise(&self, e: Expr<'g>) -> Expr<'g> {
        match self.precision {
            Some(element) if e.is_float() && !e.is_sequence() => e.widened().cast(element),
            _ => e,
        }
    }

    /// What the formulas write to: what makes constants, ranges and bodies.
    pub fn builder(&self) -> &'g Builder {
        self.pass.builder()
    }

    /// For what is found for all inputs together: nothing yet. What is found of an input is added by its number.
    pub fn cotangents(&self) -> Cotangents<'g> {
        let wanted = self.node.inputs.iter().map(|i| i.filter(|&i| self.wants(i))).collect();
        Cotangents { builder: self.builder(), wanted, inputs: self.inputs(), found: Vec::new() }
    }

    /// The inputs that there are, as the model has them: in their own types, whatever the formula computes in.
    pub fn inputs(&self) -> Vec<Expr<'g>> {
        self.node.inputs.iter().flatten().map(|&i| self.builder().expr(i)).collect()
    }

    /// How many inputs the node has, those that are left out at the end not counted.
    pub fn input_count(&self) -> usize {
        self.node.inputs.len()
    }

    /// An input. That the node does not have it is an error on record, as with all that cannot be built.
    pub fn input(&self, i: usize) -> Expr<'g> {
        self.recorded(self.opt(i).with_context(|| format!("input {i} is missing")))
    }

    /// A value, or what stands for it once the builder has recorded why there is none.
    fn recorded(&self, value: Result<Expr<'g>>) -> Expr<'g> {
        self.builder().attempt(|| value)
    }

    /// An optional input, in the type that the formula computes in; `None` where the node leaves it out.
    pub fn opt(&self, i: usize) -> Option<Expr<'g>> {
        Some(self.precise(self.builder().expr((*self.node.inputs.get(i)?)?)))
    }

    /// The first input. That the node leaves it out is an error on record.
    pub fn x(&self) -> Expr<'g> {
        self.input(0)
    }

    /// The inputs from a number on, of an operator that takes any number of them: none may be left out.
    pub fn inputs_from(&self, first: usize) -> Vec<Expr<'g>> {
        (first..self.input_count()).map(|i| self.input(i)).collect()
    }

    /// The first output. That the node leaves it out is an error on record.
    pub fn y(&self) -> Expr<'g> {
        self.recorded(self.output(0).context("output 0 is left out"))
    }

    /// An output, as the forward node has computed it; `None` where the node leaves it out.
    pub fn output(&self, i: usize) -> Option<Expr<'g>> {
        Some(self.precise(self.builder().output_of((*self.node.outputs.get(i)?)?)))
    }

    /// Whether the model may put the first output aside where it is not finite, for what a Where takes in its place.
    pub fn is_alternative(&self) -> bool {
        self.node.outputs.first().copied().flatten().is_some_and(|y| self.builder().graph().is_alternative(y))
    }

    /// How many outputs the node has, those that are left out before the last one counted.
    pub fn output_count(&self) -> usize {
        self.node.outputs.len()
    }

    /// An output that the forward node computes but may leave out: it is added to the node then, and the report says
    /// so.
    pub fn demand_output(&self, i: usize, element: ElementType) -> Expr<'g> {
        self.recorded(self.added_output(i, element))
    }

    fn added_output(&self, i: usize, element: ElementType) -> Result<Expr<'g>> {
        let node = self.node.clone();
        let mut outputs: smallvec::SmallVec<_> = node.outputs.iter().map(|o| o.map(|_| None)).collect();
        outputs.resize(outputs.len().max(i + 1), None);
        outputs[i] = Some(None);
        let whole = NewNode {
            op_type: node.op_type,
            domain: node.domain,
            inputs: node.inputs,
            outputs,
            attributes: node.attributes,
            bodies: node.bodies,
            ..NewNode::default()
        };
        let facts = self.builder().graph().infer(&whole)?;
        let fact = Fact { element: Some(element), ..facts.into_iter().nth(i).unwrap_or_default() };
        Ok(self.builder().expr(self.builder().graph_mut().demand_output(self.id, i, fact)))
    }

    /// The gradient of the first output, of its shape and floating-point type; a zero where none arrives.
    pub fn dy(&self) -> Expr<'g> {
        self.dy_of(0)
    }

    /// The gradient of an output; where none arrives, a zero that sums drop ([`Expr::is_zero`]), also of an output that
    /// the node leaves out.
    pub fn dy_of(&self, i: usize) -> Expr<'g> {
        let b = self.builder();
        match (self.opt_dy(i), self.node.outputs.get(i).copied().flatten()) {
            (Some(dy), _) => dy,
            (None, Some(id)) => {
                let y = b.output_of(id);
                self.precise(self.pass.cotangent(id).map_or_else(|| y.zero(), |element| b.zero_like(y, element)))
            }
            (None, None) => b.zero_left_out(i, self.precision.or(self.opt(0).and_then(|x| x.fact().element))),
        }
    }

    /// The gradient of an output, of its shape and floating-point type; `None` where none arrives.
    pub fn opt_dy(&self, i: usize) -> Option<Expr<'g>> {
        *self.dys.get(i)?
    }

    /// Whether a gradient arrives at an output.
    pub fn has_dy(&self, i: usize) -> bool {
        self.opt_dy(i).is_some()
    }

    /// Whether an input, or a value that a body captures, leads to an x.
    pub(crate) fn wants(&self, value: ValueId) -> bool {
        self.wanted.binary_search(&value).is_ok()
    }

    /// The element type of an input's gradient: that of the input, but for quantized integers.
    ///
    /// # Errors
    /// The node does not have the input, or its type is not known.
    pub fn gradient_element(&self, i: usize) -> Result<ElementType> {
        let id = self.node.inputs.get(i).copied().flatten().with_context(|| format!("input {i} is missing"))?;
        self.pass.cotangent(id).map_or_else(|| self.builder().expr(id).element(), Ok)
    }

    /// Whether an input leads to an x: the gradient of any other is not asked for.
    pub fn wants_input(&self, i: usize) -> bool {
        self.node.inputs.get(i).copied().flatten().is_some_and(|id| self.wants(id))
    }

    /// An integer attribute, or the default where the node leaves it out.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.opt_int(name).unwrap_or(default)
    }

    /// An integer attribute; `None` where the node leaves it out.
    pub fn opt_int(&self, name: &str) -> Option<i64> {
        attribute::get_int(&self.node.attributes, name)
    }

    /// An integer attribute that is a yes or a no, every number but 0 a yes; the default where the node leaves it out.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.int(name, default.into()) != 0
    }

    /// A number attribute, or the default where the node leaves it out: the float32 that it is.
    pub fn float(&self, name: &str, default: f32) -> f64 {
        attribute::get_float(&self.node.attributes, name).unwrap_or(default).into()
    }

    /// A number attribute; `None` where the node leaves it out.
    pub fn opt_float(&self, name: &str) -> Option<f64> {
        attribute::get_float(&self.node.attributes, name).map(f64::from)
    }

    /// An attribute that is a list of integers; `None` where the node leaves it out.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        attribute::get_ints(&self.node.attributes, name).map(<[i64]>::to_vec)
    }

    /// An attribute that is a list of numbers; `None` where the node leaves it out.
    pub fn floats(&self, name: &str) -> Option<Vec<f64>> {
        let found = attribute::find(&self.node.attributes, name)?;
        Some(found.floats.iter().map(|&f| f.into()).collect())
    }

    /// An attribute that is a list of texts; `None` where the node leaves it out. What is no UTF-8 is replaced.
    pub fn strings(&self, name: &str) -> Option<Vec<String>> {
        let found = attribute::find(&self.node.attributes, name)?;
        Some(found.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
    }

    /// An attribute that is a text, or the default where the node leaves it out.
    pub fn string(&self, name: &str, default: &str) -> String {
        attribute::get_string(&self.node.attributes, name).unwrap_or(default).to_owned()
    }

    /// The attributes that the node has.
    pub(crate) fn own_attributes(&self) -> &[AttributeProto] {
        &self.node.attributes
    }

    /// The attributes of these names that the node has, for a node of the same kind.
    pub fn attributes(&self, names: &[&str]) -> Vec<AttributeProto> {
        self.node.attributes.iter().filter(|a| names.contains(&a.name())).cloned().collect()
    }

    /// The attribute `axis` as an axis of the first input, counted from the front.
    ///
    /// # Errors
    /// The rank is not known, or has no such axis.
    pub fn axis(&self, default: i64) -> Result<usize> {
        self.x().axis(self.int("axis", default))
    }

    /// A list of integers that is an attribute in old versions and an input in new ones; `None` where it is left out.
    ///
    /// # Errors
    /// It is computed at run time, where the formula needs to know it.
    pub fn ints_at(&self, input: usize, name: &str) -> Result<Option<Vec<i64>>> {
        match (self.opt(input), self.ints(name)) {
            (Some(e), _) => match e.ints() {
                Some(values) => Ok(Some(values)),
                None => bail!("{name}, input {input}, is computed at run time, where the gradient needs a constant"),
            },
            (None, attribute) => Ok(attribute),
        }
    }

    /// A list of integers, known or computed, that is an attribute in old versions and an input in new ones.
    pub fn list_at(&self, input: usize, name: &str) -> Option<Expr<'g>> {
        self.opt(input).or_else(|| self.ints(name).map(|values| self.builder().ints(&values)))
    }

    /// The axes of the first input that a reduction is over: all where none are named.
    ///
    /// # Errors
    /// The rank is not known, the axes are computed at run time, or the rank has no such axis.
    pub fn axes(&self) -> Result<Vec<usize>> {
        let rank = self.x().rank()?;
        match self.ints_at(1, "axes")? {
            Some(axes) if !axes.is_empty() => {
                let mut axes = axes.iter().map(|&a| normalize_axis(a, rank)).collect::<Result<Vec<_>>>()?;
                axes.sort_unstable();
                axes.dedup();
                Ok(axes)
            }
            _ if self.flag("noop_with_empty_axes", false) => Ok(vec![]),
            _ => Ok((0..rank).collect()),
        }
    }

    // ---------------------------------------------------------------- structure

    /// A body.
    ///
    /// # Errors
    /// The node has no such attribute.
    pub(crate) fn body(&self, name: &str) -> Result<ScopeId> {
        self.opt_body(name).with_context(|| format!("attribute {name} is missing"))
    }

    /// A body, where the node has that attribute.
    pub(crate) fn opt_body(&self, name: &str) -> Option<ScopeId> {
        self.node.bodies.iter().find(|(n, _)| &**n == name).map(|(_, body)| *body)
    }

    /// The gradients of the outputs, where they have any, in their order.
    pub fn dys(&self) -> &[Option<Expr<'g>>] {
        &self.dys
    }

    /// The values that bodies capture and that lead to an x, each once.
    pub(crate) fn wanted_captures(&self) -> Vec<Expr<'g>> {
        let captures = self.builder().graph().captures(self.id);
        captures.into_iter().filter(|&v| self.wants(v)).map(|v| self.builder().expr(v)).collect()
    }

    /// The tensors through which a gradient can reach one of `xs`, of those that `nodes` compute from them.
    pub(crate) fn live(&self, nodes: &[NodeId], xs: &[ValueId]) -> IdSet<ValueId> {
        self.pass.live(nodes, xs)
    }

    /// Computes a body again, in the current scope.
    ///
    /// # Errors
    /// It has not as many inputs, or a sparse initializer.
    pub(crate) fn replay(&self, body: ScopeId, inputs: &[Expr<'g>]) -> Result<Replay<'g>> {
        let (count, sparse) = {
            let graph = self.builder().graph();
            let scope = graph.scope(body);
            (scope.inputs.len(), !scope.initializers.is_empty())
        };
        ensure!(count == inputs.len(), "a body of {count} inputs gets {}", inputs.len());
        ensure!(!sparse, "a sparse initializer in a body is not supported");
        let (outputs, nodes) = self.builder().splice(body, inputs);
        Ok(Replay { pass: self.pass, outputs, nodes })
    }

    /// The gradients of `xs`, with respect to which `ys` are computed by nodes that the rule has written: of each y the
    /// seed.
    ///
    /// # Errors
    /// An operator between them without a gradient.
    pub(crate) fn differentiate(
        &self,
        ys: &[(Expr<'g>, Expr<'g>)],
        xs: &[Expr<'g>],
    ) -> Result<IdMap<ValueId, Expr<'g>>> {
        self.pass.through_formula(ys, xs)
    }

    /// Records an error unless an attribute has one of the values that the formula is right for.
    pub fn ensure_known(&self, name: &str, value: &str, known: &[&str]) {
        if !known.contains(&value) {
            self.builder().fail(anyhow!("{name} = '{value}' is not one of {}", known.join(", ")));
        }
    }
}
