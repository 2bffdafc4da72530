//! Nodes and graphs in protobuf: making a node, the graphs in its attributes, the names that it uses, the value that it
//! holds.

use super::proto::SparseTensorProto;
use super::{
    AttributeProto, ElementType, GraphProto, ModelProto, Names, NodeProto, TensorProto, attribute, canonical_domain,
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// A sparse tensor of more elements is not written out: a few bytes of a file must not become gigabytes.
const LARGEST_DENSE: usize = 1 << 28;

/// The operator of the standard that holds a tensor.
pub(crate) const CONSTANT: &str = "Constant";

/// The operator of the standard that gives a tensor another name.
pub(crate) const IDENTITY: &str = "Identity";

impl NodeProto {
    /// A node of an operator of the standard with one output, as which it is called.
    pub(crate) fn new(op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> Self {
        NodeProto {
            op_type: Some(op.to_owned()),
            name: Some(output.to_owned()),
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attributes,
            ..NodeProto::default()
        }
    }

    /// A Constant node that holds a tensor.
    pub(crate) fn constant(output: &str, value: TensorProto) -> Self {
        NodeProto::new(CONSTANT, &[], output, vec![attribute::tensor("value", value)])
    }

    /// A node that gives a tensor another name, as which it is called.
    pub(crate) fn identity(input: &str, output: &str) -> Self {
        NodeProto::new(IDENTITY, &[input], output, vec![])
    }

    /// A node that converts a tensor, as what it is called then.
    pub fn cast(input: &str, output: &str, element: ElementType) -> Self {
        NodeProto::new("Cast", &[input], output, vec![attribute::int("to", element as i64)])
    }

    /// A node that adds two tensors.
    pub fn sum(a: &str, b: &str, output: &str) -> Self {
        NodeProto::new("Add", &[a, b], output, vec![])
    }

    /// Whether the node is this operator of the standard.
    pub(crate) fn is(&self, op: &str) -> bool {
        self.op_type() == op && canonical_domain(self.domain()).is_empty()
    }

    /// The tensor that a Constant node holds, in whichever of its attributes; `None` for other nodes and for strings.
    ///
    /// # Errors
    /// A sparse tensor whose parts contradict each other, or that is too large to be written out.
    pub(crate) fn constant_value(&self) -> Result<Option<Cow<'_, TensorProto>>> {
        if self.is(CONSTANT) { constant_value(&self.attribute) } else { Ok(None) }
    }

    /// The graphs in the node's attributes: branches, bodies.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &GraphProto> {
        self.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs))
    }

    /// The graphs in the node's attributes, to be changed.
    pub(crate) fn bodies_mut(&mut self) -> impl Iterator<Item = &mut GraphProto> {
        self.attribute.iter_mut().flat_map(|a| a.g.as_deref_mut().into_iter().chain(&mut a.graphs))
    }

    /// Calls `found` with every name that the node uses: its inputs, and what its bodies use, also what only they know.
    pub(crate) fn uses<'a>(&'a self, found: &mut dyn FnMut(&'a str)) {
        self.input.iter().filter(|i| !i.is_empty()).for_each(|i| found(i));
        self.bodies().for_each(|body| body.uses(found));
    }

    /// Whether the node, or one in its bodies, takes a tensor.
    pub(crate) fn takes(&self, name: &str) -> bool {
        let mut taken = false;
        self.uses(&mut |used| taken |= used == name);
        taken
    }

    /// Lets the node and its bodies take other tensors in the place of those that `names` maps.
    pub(crate) fn redirect(&mut self, names: &HashMap<String, String>) {
        let rename = |name: &mut String| {
            if let Some(new) = names.get(name) {
                name.clone_from(new);
            }
        };
        self.input.iter_mut().for_each(rename);
        for body in self.bodies_mut() {
            body.node.iter_mut().for_each(|n| n.redirect(names));
            body.output.iter_mut().filter_map(|o| o.name.as_mut()).for_each(rename);
        }
    }
}

/// The tensor that the attributes of a Constant hold: `value`, `sparse_value`, `value_float`, `value_floats`,
/// `value_int` or `value_ints`; `None` for strings, and where there is none of these.
///
/// # Errors
/// A sparse tensor whose parts contradict each other, or that is too large to be written out.
pub(crate) fn constant_value(attributes: &[AttributeProto]) -> Result<Option<Cow<'_, TensorProto>>> {
    for a in attributes {
        let owned = match a.name() {
            "value" => return Ok(a.t.as_deref().map(Cow::Borrowed)),
            "value_float" => TensorProto::from_float32(&[], &[a.f()]),
            "value_floats" => TensorProto::from_float32(&[a.floats.len() as i64], &a.floats),
            "value_int" => TensorProto::from_int64(&[], &[a.i()]),
            "value_ints" => TensorProto::from_int64(&[a.ints.len() as i64], &a.ints),
            "sparse_value" => a.sparse_tensor.as_ref().context("sparse_value holds no tensor")?.dense()?,
            _ => continue,
        };
        return Ok(Some(Cow::Owned(owned)));
    }
    Ok(None)
}

impl GraphProto {
    /// Calls `found` with every name that nodes and outputs of the graph, or of the bodies in it, use.
    pub(crate) fn uses<'a>(&'a self, found: &mut dyn FnMut(&'a str)) {
        self.node.iter().for_each(|node| node.uses(found));
        self.output.iter().for_each(|o| found(o.name()));
    }

    /// Calls `found` with every name that the graph, or a body in it, gives to a tensor or a node.
    pub(crate) fn defines<'a>(&'a self, found: &mut dyn FnMut(&'a str)) {
        self.input.iter().chain(&self.output).chain(&self.value_info).for_each(|v| found(v.name()));
        let sparse = self.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
        self.initializer.iter().chain(sparse).for_each(|t| found(t.name()));
        for node in &self.node {
            node.output.iter().for_each(|o| found(o));
            found(node.name());
            node.bodies().for_each(|body| body.defines(found));
        }
    }

    /// The tensors of constants by name, in order: initializers, then what Constant nodes hold. Those of bodies are not
    /// among them, nor strings, nor sparse tensors that cannot be read.
    pub(crate) fn constants(&self) -> impl Iterator<Item = (&str, Cow<'_, TensorProto>)> {
        let nodes = self.node.iter().filter_map(|node| {
            let value = node.constant_value().ok().flatten()?;
            Some((node.output.first()?.as_str(), value))
        });
        self.initializer.iter().map(|t| (t.name(), Cow::Borrowed(t))).chain(nodes)
    }

    /// Lets no input be given that has a default: an initializer of its name.
    pub(crate) fn close_defaults(&mut self) {
        let defaults: HashSet<&str> = self.initializer.iter().map(|t| t.name()).collect();
        self.input.retain(|i| !defaults.contains(i.name()));
    }

    /// Takes out what gives tensors of the graph these names: initializers, inputs, nodes.
    pub(crate) fn remove(&mut self, names: &HashSet<&str>) {
        self.initializer.retain(|t| !names.contains(t.name()));
        self.input.retain(|i| !names.contains(i.name()));
        self.node.retain(|n| !n.output.iter().any(|o| names.contains(o.as_str())));
    }

    /// Drops outputs, and what only they need. What others need is still declared as it was.
    pub(crate) fn keep_outputs(&mut self, kept: impl Fn(&str) -> bool) {
        let (kept, dropped): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.output).into_iter().partition(|o| kept(o.name()));
        self.output = kept;
        let names: HashSet<&str> = dropped.iter().map(|o| o.name()).collect();
        self.value_info.retain(|v| !names.contains(v.name()));
        self.value_info.extend(dropped);
        self.prune();
    }

    /// Drops the nodes, initializers, inputs and declarations that no output needs.
    pub(crate) fn prune(&mut self) {
        let mut needed: HashSet<String> = self.output.iter().map(|o| o.name().to_owned()).collect();
        let mut nodes = Vec::with_capacity(self.node.len());
        for node in std::mem::take(&mut self.node).into_iter().rev() {
            if node.output.iter().any(|o| needed.contains(o)) {
                node.uses(&mut |name| {
                    if !needed.contains(name) {
                        needed.insert(name.to_owned());
                    }
                });
                nodes.push(node);
            }
        }
        nodes.reverse();
        self.node = nodes;
        self.initializer.retain(|t| needed.contains(t.name()));
        self.sparse_initializer.retain(|t| t.values.as_ref().is_some_and(|v| needed.contains(v.name())));
        self.input.retain(|i| needed.contains(i.name()));
        let produced: HashSet<&str> = self.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        self.value_info.retain(|v| produced.contains(v.name()));
    }
}

impl ModelProto {
    /// Drops what no output of the main graph needs; see [`GraphProto::prune`].
    pub(crate) fn prune(&mut self) {
        if let Some(graph) = &mut self.graph {
            graph.prune();
        }
    }

    /// Every name that something in the model's graph has, in bodies too.
    pub(crate) fn names(&self) -> Names {
        let mut names = Names::default();
        if let Some(graph) = &self.graph {
            graph.defines(&mut |name| names.extend([name]));
        }
        names
    }
}

impl SparseTensorProto {
    /// The tensor with its zeros written out. Indices are numbers of places, or a row of coordinates for each element.
    ///
    /// # Errors
    /// Parts that are missing or contradict each other; elements of less than a byte; a tensor that is too large.
    pub(crate) fn dense(&self) -> Result<TensorProto> {
        let values = self.values.as_ref().context("it has no values")?;
        let mut tensor = TensorProto { dims: self.dims.clone(), ..Default::default() };
        let count = tensor.element_count().filter(|&n| n <= LARGEST_DENSE);
        let count = count.with_context(|| format!("sparse tensor '{}' is too large", values.name()))?;
        let places = self.places()?;
        let element = values.element_type();
        tensor = if element.is_float() {
            TensorProto::from_floats(element, &self.dims, &spread(count, &places, &values.floats()?)?)?
        } else {
            ensure!(element.bits().is_some_and(|b| (8..=64).contains(&b)), "a sparse tensor of {}", element.name());
            TensorProto::from_ints(element, &self.dims, &spread(count, &places, &values.integers()?)?)?
        };
        tensor.name = values.name.clone();
        Ok(tensor)
    }
}

impl SparseTensorProto {
    /// Checks that the parts belong together, as far as they are in the file itself.
    ///
    /// # Errors
    /// Parts that are missing or contradict each other, places outside the tensor, two values at one place.
    pub(crate) fn check(&self) -> Result<()> {
        let (Some(values), Some(indices)) = (&self.values, &self.indices) else {
            bail!("it has no {}", if self.values.is_none() { "values" } else { "indices" })
        };
        if indices.is_external() {
            return Ok(());
        }
        let mut places = self.places()?;
        let count = values.element_count();
        ensure!(count == Some(places.len()), "{} indices for values of dimensions {:?}", places.len(), values.dims);
        places.sort_unstable();
        let twice = places.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "it has two values at place {}", twice.map_or(0, |pair| pair[0]));
        Ok(())
    }

    /// The places of the values among all elements. Indices are numbers of places, or a row of coordinates for each.
    fn places(&self) -> Result<Vec<usize>> {
        let indices = self.indices.as_ref().context("it has no indices")?;
        ensure!(!self.dims.is_empty(), "it has no dimensions");
        let (dims, rank) = (&self.dims, self.dims.len());
        let count = dims.iter().try_fold(1i64, |n, &d| n.checked_mul(d).filter(|_| d >= 0));
        let count = count.with_context(|| format!("no tensor can have the dimensions {dims:?}"))?;
        let coordinates = indices.integers()?;
        let outside = |index: &[i64]| anyhow!("index {index:?} is outside of dimensions {dims:?}");
        match *indices.dims {
            [] | [_] => {
                let place = |&i: &i64| usize::try_from(i).ok().filter(|_| i < count).ok_or_else(|| outside(&[i]));
                coordinates.iter().map(place).collect()
            }
            [_, width] if usize::try_from(width) == Ok(rank) => {
                let place = |row: &[i64]| {
                    let within = row.iter().zip(dims).all(|(i, d)| (0..*d).contains(i));
                    // Within the dimensions, whose product is a number.
                    let place =
                        row.iter().zip(dims).fold(0, |place: i64, (i, d)| place.wrapping_mul(*d).wrapping_add(*i));
                    usize::try_from(place).ok().filter(|_| within).ok_or_else(|| outside(row))
                };
                coordinates.chunks_exact(rank).map(place).collect()
            }
            _ => bail!("indices of dimensions {:?} for {rank} axes", indices.dims),
        }
    }
}

/// Zeros, but for the values at their places.
fn spread<T: Copy + Default>(count: usize, places: &[usize], values: &[T]) -> Result<Vec<T>> {
    let mut all = vec![T::default(); count];
    for (&place, &value) in places.iter().zip(values) {
        *all.get_mut(place).context("an index of a sparse tensor is out of range")? = value;
    }
    Ok(all)
}
