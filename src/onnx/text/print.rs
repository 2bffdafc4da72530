//! Models as text.

use super::super::proto::{
    OperatorSetIdProto, StringStringEntryProto, TensorShapeProto, tensor_shape_proto::dimension::Value as Dimension,
    type_proto::Value as Type,
};
use super::super::{
    AttributeProto, ElementType, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto,
    ValueInfoProto,
};
use super::{ATTRIBUTE_TYPES, continues_identifier, is_special_number, is_type_name, starts_identifier};
use crate::onnx::proto::attribute_proto::AttributeType;
use std::fmt::{Debug, Display, Write};

/// Tensors of more elements are abbreviated.
const WHOLE: usize = 16;
/// How many elements an abbreviated tensor shows.
const SHOWN: usize = 8;

/// A model as text; of tensors with more than 16 elements the first 8, then `...`.
///
/// Equal models give equal texts. Metadata, for which the syntax has no place, are comments.
pub fn print(model: &ModelProto) -> String {
    Printer { limit: WHOLE, ..Printer::default() }.model(model)
}

/// A model as text with all elements of all tensors, which [`parse`](super::parse) reads back.
pub fn print_whole(model: &ModelProto) -> String {
    Printer::default().model(model)
}

/// A type as text: `float[batch,10]`.
pub fn print_type(r#type: &TypeProto) -> String {
    let mut printer = Printer::default();
    printer.r#type(r#type);
    printer.text
}

/// A graph as text, abbreviated like [`print()`].
pub fn print_graph(graph: &GraphProto) -> String {
    let mut printer = Printer { limit: WHOLE, ..Printer::default() };
    printer.graph(graph);
    printer.text + "\n"
}

/// Nodes as text, one a line, abbreviated like [`print()`].
pub fn print_nodes(nodes: &[NodeProto]) -> String {
    let mut printer = Printer { limit: WHOLE, ..Printer::default() };
    nodes.iter().for_each(|node| printer.node(node));
    printer.text
}

struct Printer {
    text: String,
    depth: usize,
    limit: usize,
}

impl Default for Printer {
    fn default() -> Self {
        Printer { text: String::new(), depth: 0, limit: usize::MAX }
    }
}

impl Printer {
    fn model(mut self, model: &ModelProto) -> String {
        let mut header = vec![
            format!("ir_version: {}", model.ir_version()),
            format!("opset_import: {}", opsets(&model.opset_import)),
        ];
        let texts = [
            ("producer_name", &model.producer_name),
            ("producer_version", &model.producer_version),
            ("domain", &model.domain),
            ("doc_string", &model.doc_string),
        ];
        header.extend(texts.iter().filter_map(|(key, value)| Some(format!("{key}: {}", quoted(value.as_deref()?)))));
        header.extend(model.model_version.map(|v| format!("model_version: {v}")));
        if !model.metadata_props.is_empty() {
            header.push(format!("metadata_props: {}", entries(&model.metadata_props)));
        }
        self.line(&format!("<{}>", header.join(", ")));
        if let Some(graph) = &model.graph {
            self.graph(graph);
            self.put("\n");
        }
        model.functions.iter().for_each(|f| self.function(f));
        self.text
    }

    fn function(&mut self, f: &FunctionProto) {
        let mut header = vec![format!("domain: {}", quoted(f.domain()))];
        if !f.overload().is_empty() {
            header.push(format!("overload: {}", quoted(f.overload())));
        }
        header.push(format!("opset_import: {}", opsets(&f.opset_import)));
        self.line(&format!("<{}>", header.join(", ")));
        self.put(&identifier(f.name()));
        if !f.attribute.is_empty() || !f.attribute_proto.is_empty() {
            self.put(" <");
            self.list(&f.attribute, |p, name| p.put(&identifier(name)));
            if !f.attribute.is_empty() && !f.attribute_proto.is_empty() {
                self.put(", ");
            }
            self.list(&f.attribute_proto, Self::attribute);
            self.put(">");
        }
        for (before, names) in [(" (", &f.input), (") => (", &f.output)] {
            self.put(before);
            self.list(names, |p, name| p.put(&identifier(name)));
        }
        self.put(")");
        if !f.value_info.is_empty() {
            self.put(" <");
            self.list(&f.value_info, Self::value_info);
            self.put(">");
        }
        self.nodes(&f.node, &f.metadata_props);
        self.put("\n");
    }

    fn graph(&mut self, graph: &GraphProto) {
        self.put(&identifier(graph.name()));
        for (before, values) in [(" (", &graph.input), (") => (", &graph.output)] {
            self.put(before);
            self.list(values, Self::value_info);
        }
        self.put(")");
        if !graph.initializer.is_empty() || !graph.value_info.is_empty() {
            self.put(" <\n");
            let mut separator = "";
            self.depth += 1;
            for tensor in &graph.initializer {
                self.put(separator);
                self.indent();
                self.tensor(tensor, " =");
                separator = ",\n";
            }
            for value in &graph.value_info {
                self.put(separator);
                self.indent();
                self.value_info(value);
                separator = ",\n";
            }
            self.depth -= 1;
            self.put("\n");
            self.indent();
            self.put(">");
        }
        self.nodes(&graph.node, &graph.metadata_props);
    }

    fn nodes(&mut self, nodes: &[NodeProto], metadata: &[StringStringEntryProto]) {
        self.put(" {");
        self.comment(metadata);
        self.put("\n");
        self.depth += 1;
        nodes.iter().for_each(|node| self.node(node));
        self.depth -= 1;
        self.indent();
        self.put("}");
    }

    fn node(&mut self, node: &NodeProto) {
        self.indent();
        if !node.name().is_empty() {
            self.put(&format!("[{}] ", identifier(node.name())));
        }
        self.list(&node.output, |p, name| p.put(&identifier(name)));
        self.put(" = ");
        if !node.domain().is_empty() {
            let plain = node.domain().split('.').all(|part| identifier(part) == part);
            self.put(&if plain { node.domain().to_owned() } else { quoted(node.domain()) });
            self.put(".");
        }
        self.put(&identifier(node.op_type()));
        if !node.overload().is_empty() {
            self.put(&format!(":{}", identifier(node.overload())));
        }
        // Subgraphs span lines: the inputs come before them, to stay beside the operator.
        let nested = node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
        if !nested {
            self.attributes(&node.attribute);
        }
        self.put(" (");
        self.list(&node.input, |p, name| p.put(&identifier(name)));
        self.put(")");
        if nested {
            self.attributes(&node.attribute);
        }
        self.comment(&node.metadata_props);
        self.put("\n");
    }

    fn attributes(&mut self, attributes: &[AttributeProto]) {
        if !attributes.is_empty() {
            self.put(" <");
            self.list(attributes, Self::attribute);
            self.put(">");
        }
    }

    fn attribute(&mut self, a: &AttributeProto) {
        use AttributeType as T;
        let kind = kind(a);
        let named = ATTRIBUTE_TYPES.get(kind as usize).copied().unwrap_or("undefined");
        let name = if bare(a.name()) { a.name().to_owned() } else { quoted(a.name()) };
        if !a.ref_attr_name().is_empty() {
            return self.put(&format!("{name}: {named} = @{}", identifier(a.ref_attr_name())));
        }
        let empty = match kind {
            T::Ints => a.ints.is_empty(),
            T::Floats => a.floats.is_empty(),
            T::Strings => a.strings.is_empty(),
            T::Tensors => a.tensors.is_empty(),
            T::Graphs => a.graphs.is_empty(),
            T::TypeProtos => a.type_protos.is_empty(),
            _ => false,
        };
        self.put(&name);
        if empty {
            return self.put(&format!(": {named} = []"));
        }
        self.put(" = ");
        match kind {
            T::Int => self.put(&a.i().to_string()),
            T::Float => self.put(&number(a.f())),
            T::String => self.put(&quoted(&String::from_utf8_lossy(a.s()))),
            T::Tensor => self.tensor(a.t.as_deref().unwrap_or(&TensorProto::default()), ""),
            T::Graph => self.graph(a.g.as_deref().unwrap_or(&GraphProto::default())),
            T::TypeProto => self.r#type(a.tp.as_deref().unwrap_or(&TypeProto::default())),
            T::Ints => self.listed(&a.ints, |p, i| p.put(&i.to_string())),
            T::Floats => self.listed(&a.floats, |p, &f| p.put(&number(f))),
            T::Strings => self.listed(&a.strings, |p, s| p.put(&quoted(&String::from_utf8_lossy(s)))),
            T::Tensors => self.listed(&a.tensors, |p, t| p.tensor(t, "")),
            T::Graphs => self.listed(&a.graphs, Self::graph),
            T::TypeProtos => self.listed(&a.type_protos, Self::r#type),
            T::Undefined | T::SparseTensor | T::SparseTensors => self.put("..."),
        }
    }

    fn value_info(&mut self, value: &ValueInfoProto) {
        if let Some(r#type) = value.r#type.as_ref().filter(|t| t.value.is_some()) {
            self.r#type(r#type);
            self.put(" ");
        }
        self.put(&identifier(value.name()));
    }

    fn r#type(&mut self, r#type: &TypeProto) {
        // A type that is left out is as one that says nothing.
        let own = |p: &mut Self, t: &Option<Box<TypeProto>>| p.r#type(t.as_deref().unwrap_or(&TypeProto::default()));
        let inner = |p: &mut Self, t: &Option<Box<TypeProto>>| {
            p.put("(");
            own(p, t);
            p.put(")");
        };
        match &r#type.value {
            None => self.put("undefined"),
            Some(Type::TensorType(t)) => self.shaped(t.elem_type(), &t.shape),
            Some(Type::SequenceType(t)) => {
                self.put("seq");
                inner(self, &t.elem_type);
            }
            Some(Type::OptionalType(t)) => {
                self.put("optional");
                inner(self, &t.elem_type);
            }
            Some(Type::MapType(t)) => {
                self.put(&format!("map({}, ", ElementType::from_number(t.key_type()).name()));
                own(self, &t.value_type);
                self.put(")");
            }
            Some(Type::SparseTensorType(t)) => {
                self.put("sparse_tensor(");
                self.shaped(t.elem_type(), &t.shape);
                self.put(")");
            }
            Some(Type::OpaqueType(t)) => {
                let separator = if t.domain().is_empty() { "" } else { "," };
                self.put(&format!("opaque({}{separator}{})", t.domain(), t.name()));
            }
        }
    }

    fn shaped(&mut self, element: i32, shape: &Option<TensorShapeProto>) {
        self.put(&ElementType::from_number(element).name());
        let Some(shape) = shape else { return self.put("[]") };
        if !shape.dim.is_empty() {
            let dims = shape.dim.iter().map(|d| match &d.value {
                Some(Dimension::DimValue(n)) => n.to_string(),
                Some(Dimension::DimParam(name)) if bare(name) => name.clone(),
                Some(Dimension::DimParam(name)) => quoted(name),
                None => "?".to_owned(),
            });
            self.put(&format!("[{}]", dims.collect::<Vec<_>>().join(",")));
        }
    }

    fn tensor(&mut self, tensor: &TensorProto, equals: &str) {
        self.put(&tensor.element_type().name());
        if !tensor.dims.is_empty() {
            self.put(&format!("[{}]", joined(&tensor.dims, ",")));
        }
        // A declaration has a name, be it an empty one; a value need not have one.
        if !tensor.name().is_empty() || !equals.is_empty() {
            self.put(&format!(" {}", identifier(tensor.name())));
        }
        self.put(equals);
        if tensor.is_external() {
            return self.put(&format!(" {}", entries(&tensor.external_data)));
        }
        let count = tensor.element_count().unwrap_or(0);
        let shown = if count > self.limit { SHOWN } else { count };
        let Some(elements) = elements(tensor, shown) else { return self.put(" {...}") };
        self.put(&format!(" {{{}{}}}", elements.join(", "), if shown < count { ", ..." } else { "" }));
    }

    fn comment(&mut self, metadata: &[StringStringEntryProto]) {
        if !metadata.is_empty() {
            let entries = metadata.iter().map(|e| format!("{:?}: {:?}", e.key(), e.value()));
            self.put(&format!(" # {}", entries.collect::<Vec<_>>().join(", ")));
        }
    }

    fn list<T>(&mut self, items: &[T], print: impl Fn(&mut Self, &T)) {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.put(", ");
            }
            print(self, item);
        }
    }

    fn listed<T>(&mut self, items: &[T], print: impl Fn(&mut Self, &T)) {
        self.put("[");
        self.list(items, print);
        self.put("]");
    }

    fn indent(&mut self) {
        self.put(&"   ".repeat(self.depth));
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.text, "{text}");
    }

    fn put(&mut self, text: &str) {
        self.text.push_str(text);
    }
}

/// The type of an attribute; where the field is absent, as IR version 1 allows, told from the value.
fn kind(a: &AttributeProto) -> AttributeType {
    use AttributeType as T;
    match AttributeType::try_from(a.r#type.unwrap_or_default()) {
        Ok(kind) if kind != T::Undefined => kind,
        _ if a.f.is_some() => T::Float,
        _ if a.i.is_some() => T::Int,
        _ if a.s.is_some() => T::String,
        _ if a.t.is_some() => T::Tensor,
        _ if a.g.is_some() => T::Graph,
        _ if a.tp.is_some() => T::TypeProto,
        _ if !a.floats.is_empty() => T::Floats,
        _ if !a.ints.is_empty() => T::Ints,
        _ if !a.strings.is_empty() => T::Strings,
        _ if !a.tensors.is_empty() => T::Tensors,
        _ if !a.graphs.is_empty() => T::Graphs,
        _ if !a.type_protos.is_empty() => T::TypeProtos,
        _ => T::Undefined,
    }
}

/// The first elements of a tensor as text; `None` where they cannot be told.
fn elements(tensor: &TensorProto, count: usize) -> Option<Vec<String>> {
    use ElementType as E;
    let (element, count) = match tensor.element_type() {
        E::Complex64 => (E::Float, count.checked_mul(2)?),
        E::Complex128 => (E::Double, count.checked_mul(2)?),
        element => (element, count),
    };
    if element == E::String {
        let strings = tensor.string_data.get(..count)?;
        return Some(strings.iter().map(|s| quoted(&String::from_utf8_lossy(s))).collect());
    }
    // Only the elements that are shown are converted: a small tensor that shares the large one's bytes.
    let size = element.bits().filter(|bits| bits % 8 == 0)? / 8;
    let part = match &tensor.raw_data {
        Some(raw) => TensorProto {
            raw_data: Some(raw.get(..count.checked_mul(size)?).map(|s| raw.slice_ref(s))?),
            ..header(element, count)
        },
        None => TensorProto {
            float_data: first(&tensor.float_data, count),
            int32_data: first(&tensor.int32_data, count),
            int64_data: first(&tensor.int64_data, count),
            double_data: first(&tensor.double_data, count),
            uint64_data: first(&tensor.uint64_data, count),
            ..header(element, count)
        },
    };
    Some(match element {
        E::Float => part.floats().ok()?.into_iter().map(|v| short(v as f32)).collect(),
        E::Double => part.floats().ok()?.into_iter().map(short).collect(),
        // With a point, since a whole number is a bit pattern here.
        E::Float16 | E::Bfloat16 => part.floats().ok()?.into_iter().map(|v| number(v as f32)).collect(),
        E::Uint64 => part.integers().ok()?.into_iter().map(|v| (v as u64).to_string()).collect(),
        _ if element.is_integer() || element == E::Bool => texts(&part.integers().ok()?),
        // Eight-bit floating-point numbers are shown as their bit patterns.
        _ if size == 1 => match &part.raw_data {
            Some(raw) => texts(raw),
            None => texts(&part.int32_data),
        },
        _ => return None,
    })
}

fn header(element: ElementType, count: usize) -> TensorProto {
    TensorProto { data_type: Some(element as i32), dims: vec![count as i64], ..Default::default() }
}

fn first<T: Clone>(values: &[T], count: usize) -> Vec<T> {
    values.iter().take(count).cloned().collect()
}

fn texts<T: Display>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

fn joined<T: Display>(values: &[T], separator: &str) -> String {
    texts(values).join(separator)
}

/// A number that reads as one with a point.
fn number(value: f32) -> String {
    format!("{value:?}").to_lowercase()
}

/// A number in the fewest characters.
fn short(value: impl Debug) -> String {
    let text = format!("{value:?}").to_lowercase();
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn opsets(opsets: &[OperatorSetIdProto]) -> String {
    let texts: Vec<_> = opsets.iter().map(|o| format!("{} : {}", quoted(o.domain()), o.version())).collect();
    format!("[{}]", texts.join(", "))
}

fn entries(entries: &[StringStringEntryProto]) -> String {
    let texts: Vec<_> = entries.iter().map(|e| format!("{}: {}", quoted(e.key()), quoted(e.value()))).collect();
    format!("[{}]", texts.join(", "))
}

fn bare(name: &str) -> bool {
    name.bytes().next().is_some_and(starts_identifier) && name.bytes().all(continues_identifier)
}

/// A name, in quotes where it would not read as one.
fn identifier(name: &str) -> String {
    if bare(name) && !is_type_name(name) && !is_special_number(name) { name.to_owned() } else { quoted(name) }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
