//! Loads a model into a [`Graph`], with the bodies of its control flow.

use super::fact::{Container, Fact};
use super::{
    Bodies, Dim, Dims, Graph, NewNode, Operators, Origin, OutputName, Protocol, ScopeId, ValueId, control, facts, ranks,
};
use crate::error::{At, Error, OrKind};
use crate::onnx::attribute;
use crate::onnx::inline::inline_functions;
use crate::onnx::proto::{self, TensorShapeProto, type_proto};
use crate::onnx::{
    AttributeProto, CONSTANT, ElementType, GraphProto, ModelProto, NEWEST_OPSET, NodeProto, TensorProto, TypeProto,
    ValueInfoProto, canonical_domain, is_given,
};
use crate::record::Record;
use anyhow::{Context, Result, anyhow, bail, ensure};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// A model in the form that the backward pass works on.
#[derive(Debug)]
pub struct Loaded {
    /// The values and nodes.
    pub graph: Graph,
    /// The tensors of the main graph by name.
    pub names: HashMap<Rc<str>, ValueId>,
    /// The names of tensors inside bodies, which cannot be addressed from outside.
    pub inner_names: HashSet<Rc<str>>,
    /// Where the model's own type annotations contradict what its nodes compute.
    pub warnings: Vec<String>,
}

/// Loads a model. `operators` is what is known of operators: [`crate::rules::OPERATORS`].
///
/// # Errors
/// A graph that is cyclic or not in topological order, tensors without a producer, names that are given twice, and
/// nodes whose inputs contradict each other.
pub fn load(model: &ModelProto, operators: Operators) -> Result<Loaded> {
    let whole = |declared| load_whole(model, operators.clone(), declared, &mut ());
    Ok(believing(model, whole).or_kind(Error::invalid_model)?)
}

/// Where the loader stands.
pub struct Place<'p> {
    /// What is loaded by then.
    pub graph: &'p mut Graph,
    /// The scope that is being loaded.
    pub scope: ScopeId,
    /// The tensors by name of that scope and of those around it, the outermost first.
    pub scopes: &'p [HashMap<Rc<str>, ValueId>],
}

/// What stands for a node that is not loaded: of each output that there is, the name and the value.
pub type Replacement = Vec<(Rc<str>, ValueId)>;

/// What is asked while a model is loaded: whether something else stands for what is come to.
pub trait Replace {
    /// What stands for a node, which is number `index` of its graph, and is not loaded then. A body may be loaded more
    /// than once: what is known of its inputs is tried out.
    ///
    /// # Errors
    /// Nothing can stand for it.
    fn node(&mut self, place: Place<'_>, index: usize, node: &NodeProto) -> Result<Option<Replacement>>;

    /// What nodes to come take in the place of a tensor of the main graph.
    ///
    /// # Errors
    /// Nothing can stand for it.
    fn tensor(&mut self, place: Place<'_>, name: &str) -> Result<Option<ValueId>>;
}

/// Everything is loaded as it is.
impl Replace for () {
    fn node(&mut self, _: Place<'_>, _: usize, _: &NodeProto) -> Result<Option<Replacement>> {
        Ok(None)
    }

    fn tensor(&mut self, _: Place<'_>, _: &str) -> Result<Option<ValueId>> {
        Ok(None)
    }
}

/// Loads a model in which others may stand for nodes and tensors.
///
/// # Errors
/// The errors of [`load`], and of `replace`.
pub fn load_replacing(model: &ModelProto, operators: Operators, replace: &mut dyn Replace) -> Result<Loaded> {
    load_whole(model, operators, Declared::Believed, replace)
}

fn load_whole(
    model: &ModelProto,
    operators: Operators,
    declared: Declared,
    replace: &mut dyn Replace,
) -> Result<Loaded> {
    if !calls_functions(model) {
        return load_with(model, operators, Known::default(), declared, replace);
    }
    // What calls of functions compute is known from a copy in which they are inlined.
    let inlined = inline_functions(model, &|_| true)?;
    let whole = load_with(&inlined, operators.clone(), Known::default(), declared, &mut ())?;
    load_with(model, operators, known(whole), declared, replace)
}

/// Loads a model of which the same with all calls of functions written out is loaded already.
///
/// # Errors
/// The errors of [`load`].
pub fn load_beside(model: &ModelProto, operators: Operators, whole: Loaded) -> Result<Loaded> {
    let known = known(whole);
    let beside = |declared| load_with(model, operators.clone(), known.clone(), declared, &mut ());
    Ok(believing(model, beside).or_kind(Error::invalid_model)?)
}

/// What a model says of the types of the tensors that its nodes compute.
#[derive(Clone, Copy, PartialEq)]
enum Declared {
    /// Knowledge where inference has none.
    Believed,
    /// Nothing.
    Ignored,
}

/// Loads a model; where its nodes cannot take what the model declares of their inputs, by what its nodes say alone,
/// with a warning.
fn believing(model: &ModelProto, load: impl Fn(Declared) -> Result<Loaded>) -> Result<Loaded> {
    let error = match load(Declared::Believed) {
        Err(error) if declares(model) => error,
        answer => return answer,
    };
    // Where that is not the reason, it is the first error that says what the reason is.
    let Ok(mut loaded) = load(Declared::Ignored) else { return Err(error) };
    let why = "what the model declares of computed tensors contradicts its nodes and is not believed; if it were";
    loaded.warnings.push(format!("{why}: {error:#}"));
    Ok(loaded)
}

/// Whether a model says of tensors what they are that its nodes compute.
fn declares(model: &ModelProto) -> bool {
    model.graph.iter().any(|g| !g.value_info.is_empty() || g.output.iter().any(|o| o.r#type.is_some()))
}

/// Whether nodes of the main graph may call functions of the model: those in bodies are not looked for.
pub fn calls_functions(model: &ModelProto) -> bool {
    let functions: HashSet<(&str, &str)> =
        model.functions.iter().map(|f| (canonical_domain(f.domain()), f.name())).collect();
    let called = |node: &NodeProto| functions.contains(&(canonical_domain(node.domain()), node.op_type()));
    let calls = |node: &NodeProto| called(node) || node.bodies().next().is_some();
    !functions.is_empty() && model.graph.iter().flat_map(|g| &g.node).any(calls)
}

/// What is known of the tensors of the main graph by name, and the symbols in which it is said.
#[derive(Clone, Default)]
struct Known {
    dims: Dims,
    facts: HashMap<Rc<str>, Fact>,
}

fn known(loaded: Loaded) -> Known {
    let Loaded { mut graph, names, .. } = loaded;
    let facts = names.into_iter().map(|(name, id)| (name, graph.fact(id).clone())).collect();
    Known { dims: std::mem::take(&mut graph.dims), facts }
}

fn load_with(
    model: &ModelProto,
    operators: Operators,
    known: Known,
    declared: Declared,
    replace: &mut dyn Replace,
) -> Result<Loaded> {
    let proto = model.graph.as_ref().context("the model holds no graph")?;
    let opsets = model.opset_import.iter().map(|o| (Rc::from(o.domain()), o.version()));
    let opsets = opsets.chain(std::iter::once((Rc::from(""), model.opset_or_default())));
    let mut loader = Loader {
        graph: Graph { dims: known.dims, ..Graph::new(opsets, operators) },
        known: known.facts,
        declared,
        twins: twins(model),
        scopes: Vec::new(),
        inner_names: HashSet::new(),
        warnings: Vec::new(),
        strings: HashSet::new(),
        empty: "".into(),
        no_attributes: [].into(),
        // Files older than this list every initializer among the inputs, where it cannot mean "to be overridden".
        overridable: model.ir_version() >= 4,
        free: has_free_sizes(proto),
        branches: 0,
        broken: None,
        replace,
    };
    let opset = model.opset_or_default();
    if opset > NEWEST_OPSET {
        loader.warnings.push(format!(
            "the model is at opset {opset}; operators that have changed since {NEWEST_OPSET} are read as they were"
        ));
    }
    let scope = loader.scope(proto, Graph::MAIN, None);
    scope.map_err(|error| match opset {
        ..7 => error
            .context(format!("the model is of opset {opset}, and most operators are other ones before 7; {CONVERT}")),
        _ => error,
    })?;
    ranks::complete(&mut loader.graph);
    let names = loader.scopes.pop().unwrap_or_default();
    Ok(Loaded { graph: loader.graph, names, inner_names: loader.inner_names, warnings: loader.warnings })
}

/// What helps where operators are too old to be read.
const CONVERT: &str = "onnx.version_converter brings a model to a newer opset";

/// A node that is not loaded yet, for errors.
fn at(index: usize, node: &NodeProto) -> At {
    let op = node.op_type();
    let text = match node.name() {
        "" => format!("node number {index} ({op})"),
        name => format!("node '{name}' ({op})"),
    };
    let name = [node.name()].into_iter().chain(node.output.iter().map(String::as_str)).find(|n| !n.is_empty());
    At { text, node: name.map(str::to_owned), operator: Some(op.to_owned()), input: None }
}

/// The gradients of earlier calls, each with its x. What a record says of tensors outside of its call's scope is not
/// ours.
fn twins(model: &ModelProto) -> HashMap<String, String> {
    // Metadata that are not ours to read say nothing.
    let records = Record::all(model).unwrap_or_default();
    let own = |r: &Record, name: &str| name.strip_prefix(&*r.name).is_some_and(|rest| rest.starts_with('/'));
    let gradients = records.into_iter().flat_map(|r| {
        let named = r.gradients.iter().filter_map(|g| Some((g.name.clone()?, g.x.clone())));
        named.filter(|(name, _)| own(&r, name)).collect::<Vec<_>>()
    });
    gradients.collect()
}

/// Loads a graph into a scope of its own inside the main graph, with facts of its inputs: for
/// [`splice`](crate::expr::Builder::splice).
///
/// # Errors
/// As [`load`].
pub fn load_body(graph: &mut Graph, proto: &GraphProto, inputs: &[Fact]) -> Result<ScopeId> {
    let scope = graph.open_scope(Graph::MAIN);
    let mut loader = Loader {
        graph: graph.take(),
        known: HashMap::new(),
        declared: Declared::Believed,
        twins: HashMap::new(),
        scopes: Vec::new(),
        inner_names: HashSet::new(),
        warnings: Vec::new(),
        strings: HashSet::new(),
        empty: "".into(),
        no_attributes: [].into(),
        overridable: true,
        free: false,
        branches: 0,
        broken: None,
        replace: &mut (),
    };
    let result = loader.scope(proto, scope, Some(inputs));
    *graph = loader.graph;
    result.map(|()| scope)
}

struct Loader<'r> {
    graph: Graph,
    /// The names visible where the loader stands, outermost scope first.
    scopes: Vec<HashMap<Rc<str>, ValueId>>,
    inner_names: HashSet<Rc<str>>,
    /// For each gradient of an earlier call its x, whose sizes it has where inference knows none of its own.
    twins: HashMap<String, String>,
    /// Facts by name, for outputs of nodes of which inference knows nothing.
    known: HashMap<Rc<str>, Fact>,
    /// Whether what graphs declare of outputs of nodes is believed.
    declared: Declared,
    warnings: Vec<String>,
    /// Operators, domains and names of attributes, each kept once.
    strings: HashSet<Rc<str>>,
    /// The standard's domain, which nearly every node has.
    empty: Rc<str>,
    /// What nodes without attributes have.
    no_attributes: Rc<[AttributeProto]>,
    overridable: bool,
    /// Whether inputs have sizes that only the run knows.
    free: bool,
    /// In how many branches of an If the loader stands.
    branches: usize,
    /// Why the innermost of them cannot be computed, where it cannot.
    broken: Option<anyhow::Error>,
    replace: &'r mut dyn Replace,
}

impl Loader<'_> {
    /// Loads the contents of a graph into an empty scope and leaves its names on the stack. `input_facts` is what a
    /// control-flow node knows of the inputs of its body.
    fn scope(&mut self, proto: &GraphProto, scope: ScopeId, input_facts: Option<&[Fact]>) -> Result<()> {
        let count = proto.node.len() + proto.input.len() + proto.initializer.len();
        self.scopes.push(HashMap::with_capacity(count));
        let inputs: HashSet<&str> = proto.input.iter().map(|i| i.name()).collect();
        let mut initializers: HashMap<&str, Fact> = HashMap::new();
        for tensor in &proto.initializer {
            let mut fact = facts::constant(tensor);
            if self.overridable && inputs.contains(tensor.name()) {
                fact.value = None;
            }
            ensure!(
                initializers.insert(tensor.name(), fact).is_none(),
                "two initializers are called '{}'",
                tensor.name()
            );
        }
        for (i, input) in proto.input.iter().enumerate() {
            let declared = fact_of_type(input.r#type.as_ref(), &self.graph.dims);
            let name: Rc<str> = input.name().into();
            let fact = match (initializers.get(input.name()), input_facts.and_then(|f| f.get(i))) {
                (Some(initial), _) => initial.clone(),
                (None, Some(known)) => merge_declared(known.clone(), &declared),
                (None, None) => declared,
            };
            let id = self.graph.push_input(scope, Some(name.clone()), fact);
            self.bind(name, id)?;
        }
        for tensor in &proto.initializer {
            if !inputs.contains(tensor.name()) {
                let fact = initializers.remove(tensor.name()).unwrap_or_default();
                match self.graph.scope(scope).parent {
                    None => self.initializer(scope, tensor.name(), fact)?,
                    Some(_) => self.constant(scope, tensor, fact)?,
                }
            }
        }
        for sparse in &proto.sparse_initializer {
            let values = sparse.values.as_ref().context("a sparse initializer without values")?;
            let shape = sparse.dims.iter().map(|&d| Dim::Known(d)).collect();
            self.initializer(scope, values.name(), Fact::tensor(Some(values.element_type()), Some(shape)))?;
        }
        let declared: HashMap<&str, &ValueInfoProto> = match self.declared {
            Declared::Believed => proto.value_info.iter().chain(&proto.output).map(|v| (v.name(), v)).collect(),
            Declared::Ignored => HashMap::new(),
        };
        for name in proto.input.iter().map(|i| i.name()).chain(proto.initializer.iter().map(|t| t.name())) {
            self.stand_in(name)?;
        }
        for (index, node) in proto.node.iter().enumerate() {
            self.node(node, index, scope, &declared).with_context(|| at(index, node))?;
        }
        let mut outputs = Vec::with_capacity(proto.output.len());
        for output in &proto.output {
            let id = self.lookup(output.name());
            outputs.push(id.ok_or_else(|| anyhow!("graph output '{}' is computed by no node", output.name()))?);
        }
        self.graph.set_outputs(scope, outputs);
        Ok(())
    }

    fn initializer(&mut self, scope: ScopeId, name: &str, fact: Fact) -> Result<()> {
        let name: Rc<str> = name.into();
        let id = self.graph.push_initializer(scope, Some(name.clone()), fact);
        self.bind(name, id)
    }

    /// An initializer of a body, as a node: the backward pass may have to write the body again, with its constants.
    fn constant(&mut self, scope: ScopeId, tensor: &TensorProto, fact: Fact) -> Result<()> {
        let name: Rc<str> = tensor.name().into();
        let new = NewNode {
            op_type: self.string(CONSTANT),
            outputs: [Some(Some(name.clone()))].into_iter().collect(),
            attributes: [attribute::tensor("value", tensor.clone())].into(),
            ..NewNode::default()
        };
        let node = self.graph.push(scope, new, vec![fact]);
        self.graph.note_constant(scope);
        self.graph.node(node).outputs.clone().into_iter().flatten().try_for_each(|id| self.bind(name.clone(), id))
    }

    /// The tensors that a node takes, all of which have been come to.
    fn inputs(&self, proto: &NodeProto) -> Result<SmallVec<[Option<ValueId>; 4]>> {
        let input = |name: &String| {
            match name.as_str() {
            "" => Ok(None),
            name => self.lookup(name).map(Some).ok_or_else(|| {
                anyhow!("its input '{name}' is no tensor computed before it: the graph is cyclic, out of order or incomplete")
            }),
        }
        };
        proto.input.iter().map(input).collect()
    }

    fn node(
        &mut self,
        proto: &NodeProto,
        index: usize,
        scope: ScopeId,
        declared: &HashMap<&str, &ValueInfoProto>,
    ) -> Result<()> {
        let place = Place { graph: &mut self.graph, scope, scopes: &self.scopes };
        if let Some(outputs) = self.replace.node(place, index, proto)? {
            return outputs.into_iter().try_for_each(|(name, value)| {
                self.define(name.clone(), value, declared)?;
                self.stand_in(&name)
            });
        }
        let mut new = self.without_bodies(proto)?;
        let mut broken = Vec::new();
        for attribute in &proto.attribute {
            let Some(body) = &attribute.g else { continue };
            let id = match self.graph.traits_of(&new.domain, &new.op_type).bodies {
                Bodies::Branches => self.branch(body, scope, &mut broken)?,
                Bodies::Protocol(protocol) => self.body(body, scope, protocol, &new)?,
                Bodies::None => self.scoped(body, scope, &[])?,
            };
            new.bodies.push((self.string(attribute.name()), id));
        }
        self.judge(&new.inputs, &new.bodies, broken)?;
        let facts = match self.graph.infer(&new) {
            Err(error) if self.branches > 0 => {
                let error = error.context(format!("{} ({})", proto.name(), new.op_type));
                self.broken.get_or_insert(error);
                Vec::new()
            }
            facts => facts?,
        };
        let id = self.graph.push(scope, new, facts);
        for output in self.graph.node(id).outputs.clone().into_iter().flatten() {
            if let Some(name) = self.graph.value(output).name.clone() {
                self.define(name.clone(), output, declared)?;
                self.stand_in(&name)?;
            }
        }
        Ok(())
    }

    /// A node without the bodies that it has.
    fn without_bodies(&mut self, proto: &NodeProto) -> Result<NewNode> {
        let inputs = self.inputs(proto)?;
        ensure!(
            self.graph.opset("") >= 7 || !proto.attribute.iter().any(|a| a.name() == "broadcast" && a.i() != 0),
            "it broadcasts by attributes, which operators do in opset 6 and before only"
        );
        if proto.attribute.iter().any(|a| !a.graphs.is_empty()) {
            return Err(Error::unsupported("an attribute that is a list of graphs is not supported").into());
        }
        let mut attributes = proto.attribute.iter().filter(|a| a.g.is_none()).peekable();
        let attributes = match attributes.peek() {
            None => self.no_attributes.clone(),
            Some(_) => attributes.cloned().collect(),
        };
        let outputs: SmallVec<[Option<OutputName>; 1]> =
            proto.output.iter().map(|o| (!o.is_empty()).then(|| Some(o.as_str().into()))).collect();
        // Many nodes are called like what they compute.
        let like_output = || outputs.iter().flatten().flatten().find(|o| ***o == *proto.name()).cloned();
        let name = Some(proto.name()).filter(|name| !name.is_empty());
        let name = name.map(|name| like_output().unwrap_or_else(|| name.into()));
        Ok(NewNode {
            op_type: self.string(proto.op_type()),
            domain: self.string(canonical_domain(proto.domain())),
            inputs,
            outputs,
            attributes,
            bodies: Vec::new(),
            name,
            origin: Origin::Model,
            stop: stops(proto),
        })
    }

    /// Lets what is come to from now on take something else in the place of a tensor of the main graph, if it is to.
    fn stand_in(&mut self, name: &str) -> Result<()> {
        if self.scopes.len() > 1 {
            return Ok(());
        }
        let place = Place { graph: &mut self.graph, scope: Graph::MAIN, scopes: &self.scopes };
        if let Some(new) = self.replace.tensor(place, name)?
            && let Some(names) = self.scopes.last_mut()
        {
            names.insert(name.into(), new);
        }
        Ok(())
    }

    fn define(&mut self, name: Rc<str>, output: ValueId, declared: &HashMap<&str, &ValueInfoProto>) -> Result<()> {
        if *self.graph.fact(output) == Fact::default()
            && let Some(fact) = self.known.get(&name)
        {
            *self.graph.fact_mut(output) = fact.clone();
        }
        if let Some(info) = declared.get(&*name)
            && let Some(r#type) = &info.r#type
        {
            self.annotate(output, &name, r#type, is_given(info));
        }
        if let Some(shape) = self.twins.get(&*name).and_then(|x| self.graph.fact(self.lookup(x)?).shape.clone()) {
            self.complete(output, shape);
        }
        self.bind(name, output)
    }

    /// Takes over those sizes of a shape of which inference knows nothing. The shape is what a file says of an earlier
    /// call: where it contradicts what is known, nothing of it is believed.
    fn complete(&mut self, output: ValueId, shape: super::Shape) {
        let known = match &self.graph.fact(output).shape {
            None => shape,
            Some(own) => {
                let contradict = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
                if own.len() != shape.len() || own.iter().zip(shape.iter()).any(contradict) {
                    return;
                }
                let dims = &self.graph.dims;
                own.iter().zip(shape.iter()).map(|(&own, &x)| if dims.is_fresh(own) { x } else { own }).collect()
            }
        };
        self.graph.fact_mut(output).shape = Some(known);
    }

    /// Loads a branch of an If. That a node in it cannot take what it gets is an error only if the branch is taken:
    /// exporters write branches for ranks that a tensor does not have.
    fn branch(
        &mut self,
        body: &GraphProto,
        parent: ScopeId,
        broken: &mut Vec<(ScopeId, anyhow::Error)>,
    ) -> Result<ScopeId> {
        let outside = self.broken.take();
        self.branches += 1;
        let id = self.scoped(body, parent, &[]);
        self.branches -= 1;
        let found = std::mem::replace(&mut self.broken, outside);
        let id = id?;
        if let Some(error) = found {
            self.graph.note_broken(id);
            broken.push((id, error.context(format!("in the body '{}'", body.name()))));
        }
        Ok(id)
    }

    /// Whether an If can be computed though branches cannot.
    ///
    /// # Errors
    /// The branch that is taken cannot be computed, or none can.
    fn judge(
        &mut self,
        inputs: &[Option<ValueId>],
        bodies: &[(Rc<str>, ScopeId)],
        broken: Vec<(ScopeId, anyhow::Error)>,
    ) -> Result<()> {
        let taken = self.graph.taken(inputs.first().copied().flatten(), bodies);
        let dead = |id: ScopeId| taken.is_some_and(|taken| taken != id);
        match broken.into_iter().find(|(id, _)| !dead(*id)) {
            Some((_, error)) if self.branches > 0 => {
                self.broken.get_or_insert(error);
                Ok(())
            }
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Loads a body of which a row says how its inputs follow from the node's. The shapes of carried states are those
    /// of their initial values unless the body changes them; what it changes is unknown.
    fn body(&mut self, body: &GraphProto, parent: ScopeId, protocol: &Protocol, new: &NewNode) -> Result<ScopeId> {
        let mut known = {
            let graph = &self.graph;
            let declared: Vec<Fact> = body.input.iter().map(|i| fact_of_type(i.r#type.as_ref(), &graph.dims)).collect();
            let inputs: Vec<Option<&Fact>> = new.inputs.iter().map(|i| i.map(|i| graph.fact(i))).collect();
            (protocol.inputs)(&facts::Known { op: &graph.op(new), inputs: &inputs }, &declared)
        };
        known.resize_with(body.input.len(), Fact::default);
        let mut free = HashSet::new();
        // Every attempt loads all that is nested inside again, so only shallow bodies get more than the safe one.
        let attempts = if self.scopes.len() <= 4 { 3 } else { 1 };
        for attempt in 1.. {
            let safe = attempt >= attempts;
            if safe {
                control::forget_states(protocol, &self.graph.op(new), &mut known);
            }
            let warnings = self.warnings.len();
            let scope = self.scoped(body, parent, &known)?;
            if safe || !control::weaken_states(&self.graph, protocol, &self.graph.op(new), scope, &mut known, &mut free)
            {
                return Ok(scope);
            }
            self.warnings.truncate(warnings);
        }
        bail!("a body that cannot be loaded")
    }

    /// Loads a body of whose inputs, the first of them, this is known.
    fn scoped(&mut self, body: &GraphProto, parent: ScopeId, known: &[Fact]) -> Result<ScopeId> {
        let scope = self.graph.open_scope(parent);
        self.scope(body, scope, Some(known)).with_context(|| format!("in the body '{}'", body.name()))?;
        let names = self.scopes.pop().unwrap_or_default();
        self.inner_names.extend(names.into_keys());
        Ok(scope)
    }

    /// Takes a declared type for knowledge where inference has none, and reports it where the two contradict. Of a node
    /// whose rank only the run knows numbers are not believed where inputs have free sizes, unless they are `given`.
    fn annotate(&mut self, id: ValueId, name: &str, r#type: &TypeProto, given: bool) {
        let mut declared = fact_of_type(Some(r#type), &self.graph.dims);
        let inferred = self.graph.fact(id).clone();
        if let (Some(a), Some(b)) = (inferred.element, declared.element)
            && a != b
        {
            self.warnings.push(format!("'{name}' is declared as {}, its node computes {}", b.name(), a.name()));
        } else if r#type.value.is_some() && inferred != Fact::default() && inferred.container != declared.container {
            let (a, b) = (inferred.container.name(), declared.container.name());
            self.warnings.push(format!("'{name}' is declared as {b}, its node computes {a}"));
        } else if let (Some(a), Some(b)) = (&inferred.shape, &declared.shape)
            && (a.len() != b.len()
                || a.iter().zip(b.iter()).any(|(a, b)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b)))
        {
            let (a, b) = (self.graph.dims.display(a), self.graph.dims.display(b));
            self.warnings.push(format!("'{name}' is declared with shape {b}, its node computes {a}"));
        } else {
            if self.free && !given && inferred.element.is_some() {
                let dims = &self.graph.dims;
                let size = |d: &Dim| if d.known().is_some() { dims.fresh() } else { *d };
                declared.shape = declared.shape.map(|s| s.iter().map(size).collect());
            }
            *self.graph.fact_mut(id) = merge_declared(inferred, &declared);
        }
    }

    fn bind(&mut self, name: Rc<str>, id: ValueId) -> Result<()> {
        let scope = self.scopes.last_mut().context("no scope is open")?;
        match scope.insert(name.clone(), id) {
            None => Ok(()),
            Some(_) => bail!("'{name}' is the name of two tensors"),
        }
    }

    fn lookup(&self, name: &str) -> Option<ValueId> {
        self.scopes.iter().rev().find_map(|names| names.get(name)).copied()
    }

    fn string(&mut self, text: &str) -> Rc<str> {
        match self.strings.get(text) {
            _ if text.is_empty() => self.empty.clone(),
            Some(string) => string.clone(),
            None => {
                let string: Rc<str> = text.into();
                self.strings.insert(string.clone());
                string
            }
        }
    }
}

/// Whether the metadata of a node say that no gradient passes above it.
fn stops(node: &NodeProto) -> bool {
    node.metadata_props.iter().any(|p| p.key() == "stop_gradient" && p.value().eq_ignore_ascii_case("true"))
}

/// Whether a graph takes tensors whose sizes, or whose rank, only the run knows.
fn has_free_sizes(graph: &GraphProto) -> bool {
    let dims = Dims::default();
    let free = |input: &ValueInfoProto| {
        let fact = fact_of_type(input.r#type.as_ref(), &dims);
        fact.container == Container::Tensor && fact.shape.is_none_or(|s| s.iter().any(|d| d.known().is_none()))
    };
    graph.input.iter().any(free)
}

/// What inference knows, completed by what a declaration says where inference says nothing.
///
/// A declared number does not replace a symbol: exporters trace with one batch size and declare it for every tensor,
/// also where the inputs are free.
fn merge_declared(inferred: Fact, declared: &Fact) -> Fact {
    let unknown = inferred == Fact::default();
    Fact {
        container: if unknown { declared.container } else { inferred.container },
        element: inferred.element.or(declared.element),
        shape: inferred.shape.or_else(|| declared.shape.clone()),
        value: inferred.value,
    }
}

/// What a type says. A dimension that is negative, or zero as old exporters write what they do not know, is unknown.
pub fn fact_of_type(r#type: Option<&TypeProto>, dims: &Dims) -> Fact {
    use type_proto::Value as V;
    match r#type.and_then(|t| t.value.as_ref()) {
        None => Fact::default(),
        Some(V::TensorType(t)) => tensor_fact(t, dims),
        Some(V::SequenceType(t)) => {
            Fact { container: Container::Sequence, ..fact_of_type(t.elem_type.as_deref(), dims) }
        }
        Some(V::OptionalType(t)) => {
            Fact { container: Container::Optional, ..fact_of_type(t.elem_type.as_deref(), dims) }
        }
        Some(V::MapType(_) | V::SparseTensorType(_) | V::OpaqueType(_)) => {
            Fact { container: Container::Other, ..Fact::default() }
        }
    }
}

fn tensor_fact(t: &type_proto::Tensor, dims: &Dims) -> Fact {
    let element = match ElementType::from_number(t.elem_type()) {
        ElementType::Undefined => None,
        element => Some(element),
    };
    Fact::tensor(element, t.shape.as_ref().map(|shape| shape_of_proto(shape, dims)))
}

fn shape_of_proto(shape: &TensorShapeProto, dims: &Dims) -> super::Shape {
    use proto::tensor_shape_proto::dimension::Value as V;
    let dim = |d: &proto::tensor_shape_proto::Dimension| match &d.value {
        Some(V::DimValue(n)) if *n > 0 => Dim::Known(*n),
        Some(V::DimParam(name)) if !name.is_empty() => dims.named(name),
        _ => dims.fresh(),
    };
    shape.dim.iter().map(dim).collect()
}
