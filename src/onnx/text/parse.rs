//! Text as models: recursive descent, one function a rule of the grammar.

use super::super::proto::{
    OperatorSetIdProto, StringStringEntryProto, TensorShapeProto,
    attribute_proto::AttributeType,
    tensor_proto::DataLocation,
    tensor_shape_proto::{Dimension, dimension::Value as DimensionValue},
    type_proto::{self, Value as Type},
};
use super::super::{
    AttributeProto, ElementType, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto,
    ValueInfoProto,
};
use super::{ATTRIBUTE_TYPES, continues_identifier, is_special_number, is_type_name, starts_identifier};
use anyhow::{Result, anyhow, bail, ensure};
use bytes::Bytes;
use half::{bf16, f16};
use std::str::FromStr;

/// Graphs in attributes and types in types nest no deeper: the stack of a thread in a debug build is small.
const DEEPEST: usize = 16;

/// Reads a model from text.
///
/// Without the header in `<>`, it has IR version 10 and opset 18. Tensors keep their elements as raw bytes; of types of
/// less than a byte, only empty or external ones can be written.
///
/// # Errors
/// Text that is not a model, with the line and column where reading ends.
pub fn parse(text: &str) -> Result<ModelProto> {
    let mut parser = Parser { text, position: 0, depth: 0 };
    parser.model().map_err(|error| {
        let before = text.get(..parser.position).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        anyhow!("line {line}, column {column}: {error}")
    })
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
}

enum Literal<'a> {
    Int(&'a str),
    Float(&'a str),
    String(String),
}

impl<'a> Parser<'a> {
    fn model(&mut self) -> Result<ModelProto> {
        let mut model = ModelProto::default();
        if self.peek() == Some(b'<') {
            self.list(b'<', b'>', |p| {
                let key = p.identifier()?;
                p.demand(b':')?;
                match key.as_str() {
                    "ir_version" => model.ir_version = Some(p.int()?),
                    "model_version" => model.model_version = Some(p.int()?),
                    "opset_import" => model.opset_import = p.opsets()?,
                    "producer_name" => model.producer_name = Some(p.string()?),
                    "producer_version" => model.producer_version = Some(p.string()?),
                    "domain" => model.domain = Some(p.string()?),
                    "doc_string" => model.doc_string = Some(p.string()?),
                    "metadata_props" => model.metadata_props = p.entries()?,
                    _ => bail!("a model has no '{key}'"),
                }
                Ok(())
            })?;
        } else {
            model.ir_version = Some(10);
            model.opset_import = vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(18) }];
        }
        let name = self.name()?;
        model.graph = Some(self.graph(name)?);
        while self.peek().is_some() {
            model.functions.push(self.function()?);
        }
        Ok(model)
    }

    fn function(&mut self) -> Result<FunctionProto> {
        let mut f = FunctionProto::default();
        if self.peek() == Some(b'<') {
            self.list(b'<', b'>', |p| {
                let key = p.identifier()?;
                p.demand(b':')?;
                match key.as_str() {
                    "opset_import" => f.opset_import = p.opsets()?,
                    "domain" => f.domain = Some(p.string()?),
                    "overload" => f.overload = Some(p.string()?),
                    "doc_string" => f.doc_string = Some(p.string()?),
                    _ => bail!("a function has no '{key}'"),
                }
                Ok(())
            })?;
        }
        f.name = Some(self.name()?);
        if self.peek() == Some(b'<') {
            self.list(b'<', b'>', |p| {
                let name = p.name()?;
                if matches!(p.peek(), Some(b':' | b'=')) {
                    f.attribute_proto.push(p.attribute(name)?);
                } else {
                    f.attribute.push(name);
                }
                Ok(())
            })?;
        }
        for outputs in [false, true] {
            if outputs {
                self.demand(b'=')?;
                self.demand(b'>')?;
            }
            self.list(b'(', b')', |p| {
                let value = p.value_info()?;
                let names = if outputs { &mut f.output } else { &mut f.input };
                names.push(value.name().to_owned());
                f.value_info.extend(Some(value).filter(|v| v.r#type.is_some()));
                Ok(())
            })?;
        }
        if self.peek() == Some(b'<') {
            self.list(b'<', b'>', |p| {
                f.value_info.push(p.value_info()?);
                Ok(())
            })?;
        }
        f.node = self.nodes()?;
        Ok(f)
    }

    fn graph(&mut self, name: String) -> Result<GraphProto> {
        self.enter()?;
        let mut graph = GraphProto { name: Some(name), ..Default::default() };
        self.list(b'(', b')', |p| {
            let value = p.value_info()?;
            if p.accept(b'=') {
                graph.initializer.push(p.initializer(&value)?);
            }
            graph.input.push(value);
            Ok(())
        })?;
        self.demand(b'=')?;
        self.demand(b'>')?;
        self.list(b'(', b')', |p| {
            graph.output.push(p.value_info()?);
            Ok(())
        })?;
        if self.peek() == Some(b'<') {
            self.list(b'<', b'>', |p| {
                let value = p.value_info()?;
                if p.accept(b'=') {
                    graph.initializer.push(p.initializer(&value)?);
                } else {
                    graph.value_info.push(value);
                }
                Ok(())
            })?;
        }
        graph.node = self.nodes()?;
        self.depth -= 1;
        Ok(graph)
    }

    fn nodes(&mut self) -> Result<Vec<NodeProto>> {
        let mut nodes = Vec::new();
        self.demand(b'{')?;
        while !self.accept(b'}') {
            nodes.push(self.node()?);
        }
        Ok(nodes)
    }

    fn node(&mut self) -> Result<NodeProto> {
        let mut node = NodeProto::default();
        if self.accept(b'[') {
            node.name = Some(self.name()?);
            self.demand(b']')?;
        }
        node.output = self.names()?;
        self.demand(b'=')?;
        let mut operator = self.name()?;
        let mut domain = Vec::new();
        while self.accept(b'.') {
            domain.push(std::mem::replace(&mut operator, self.name()?));
        }
        node.domain = Some(domain.join(".")).filter(|d| !d.is_empty());
        node.op_type = Some(operator);
        if self.accept(b':') {
            node.overload = Some(self.name()?);
        }
        node.attribute = self.attributes()?;
        self.demand(b'(')?;
        node.input = self.names()?;
        self.demand(b')')?;
        if node.attribute.is_empty() {
            node.attribute = self.attributes()?;
        }
        Ok(node)
    }

    /// Names between commas, where nothing before a comma is an empty name.
    fn names(&mut self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        loop {
            match self.peek() {
                Some(b',') => names.push(String::new()),
                Some(c) if c == b'"' || starts_identifier(c) => names.push(self.name()?),
                _ => return Ok(names),
            }
            if !self.accept(b',') {
                return Ok(names);
            }
        }
    }

    fn attributes(&mut self) -> Result<Vec<AttributeProto>> {
        let mut attributes = Vec::new();
        if self.peek() == Some(b'<') {
            self.list(b'<', b'>', |p| {
                let name = p.name()?;
                attributes.push(p.attribute(name)?);
                Ok(())
            })?;
        }
        Ok(attributes)
    }

    fn attribute(&mut self, name: String) -> Result<AttributeProto> {
        let mut wanted = AttributeType::Undefined;
        if self.accept(b':') {
            let r#type = self.identifier()?;
            wanted = attribute_type(&r#type).ok_or_else(|| anyhow!("there is no attribute type '{type}'"))?;
        }
        self.demand(b'=')?;
        let mut a = AttributeProto::default();
        if self.accept(b'@') {
            ensure!(wanted != AttributeType::Undefined, "a reference needs a type: {name}: float = @...");
            a = AttributeProto { ref_attr_name: Some(self.name()?), r#type: Some(wanted as i32), ..a };
        } else if self.peek() == Some(b'[') {
            let single = element_of(wanted);
            let mut kind = None;
            self.list(b'[', b']', |p| {
                let value = p.value(single)?;
                let is = value.r#type();
                ensure!(
                    kind.is_none_or(|k| k == is),
                    "a list has elements of one type; give it, like '{name}: floats = ...'"
                );
                kind = Some(is);
                a.ints.extend(value.i);
                a.floats.extend(value.f);
                a.strings.extend(value.s);
                a.tensors.extend(value.t.map(|t| *t));
                a.graphs.extend(value.g.map(|g| *g));
                a.type_protos.extend(value.tp.map(|t| *t));
                Ok(())
            })?;
            let list = match kind {
                Some(kind) => list_of(kind),
                None => wanted,
            };
            ensure!(list != AttributeType::Undefined, "an empty list needs its type: {name}: ints = []");
            ensure!(
                wanted == AttributeType::Undefined || wanted == list,
                "attribute '{name}' is a list, not what its type says"
            );
            ensure!(element_of(list) != list, "attribute '{name}' is a list, not what its type says");
            a.r#type = Some(list as i32);
        } else {
            a = self.value(wanted)?;
        }
        a.name = Some(name);
        Ok(a)
    }

    /// One value of an attribute, of the wanted type unless that is undefined.
    fn value(&mut self, wanted: AttributeType) -> Result<AttributeProto> {
        use AttributeType as T;
        let word = self.peek_identifier();
        let (kind, a) = if is_type_name(word) {
            let r#type = self.r#type()?;
            let (name, tensor) = match self.peek() {
                Some(b'{' | b'=' | b'[') => (None, true),
                Some(c) if c == b'"' || starts_identifier(c) => (Some(self.name()?), true),
                _ => (None, false),
            };
            if tensor {
                self.accept(b'=');
                let t = self.tensor(&r#type, name)?;
                (T::Tensor, AttributeProto { t: Some(Box::new(t)), ..Default::default() })
            } else {
                (T::TypeProto, AttributeProto { tp: Some(Box::new(r#type)), ..Default::default() })
            }
        } else if !word.is_empty() && !is_special_number(word) {
            let name = self.identifier()?;
            (T::Graph, AttributeProto { g: Some(Box::new(self.graph(name)?)), ..Default::default() })
        } else {
            match self.literal()? {
                Literal::String(name) if self.peek() == Some(b'(') => {
                    (T::Graph, AttributeProto { g: Some(Box::new(self.graph(name)?)), ..Default::default() })
                }
                Literal::String(s) => (T::String, AttributeProto { s: Some(Bytes::from(s)), ..Default::default() }),
                Literal::Int(text) if wanted != T::Float => {
                    (T::Int, AttributeProto { i: Some(number(text)?), ..Default::default() })
                }
                Literal::Int(text) | Literal::Float(text) => {
                    (T::Float, AttributeProto { f: Some(number(text)?), ..Default::default() })
                }
            }
        };
        ensure!(
            wanted == T::Undefined || wanted == kind,
            "expected a value of type {}, not {}",
            ATTRIBUTE_TYPES.get(wanted as usize).copied().unwrap_or_default(),
            ATTRIBUTE_TYPES.get(kind as usize).copied().unwrap_or_default()
        );
        Ok(AttributeProto { r#type: Some(kind as i32), ..a })
    }

    fn value_info(&mut self) -> Result<ValueInfoProto> {
        let r#type = if is_type_name(self.peek_identifier()) { Some(self.r#type()?) } else { None };
        Ok(ValueInfoProto { name: Some(self.name()?), r#type, ..Default::default() })
    }

    fn r#type(&mut self) -> Result<TypeProto> {
        self.enter()?;
        let word = self.identifier()?;
        let value = match word.as_str() {
            "seq" => Type::SequenceType(Box::new(type_proto::Sequence { elem_type: self.inner_type()? })),
            "optional" => Type::OptionalType(Box::new(type_proto::Optional { elem_type: self.inner_type()? })),
            "map" => {
                self.demand(b'(')?;
                let key_type = Some(self.element_type()? as i32);
                self.demand(b',')?;
                let value_type = Some(Box::new(self.r#type()?));
                self.demand(b')')?;
                Type::MapType(Box::new(type_proto::Map { key_type, value_type }))
            }
            "sparse_tensor" => {
                self.demand(b'(')?;
                let elem_type = Some(self.element_type()? as i32);
                let shape = self.shape()?;
                self.demand(b')')?;
                Type::SparseTensorType(type_proto::SparseTensor { elem_type, shape })
            }
            "opaque" => {
                let mut names = Vec::new();
                self.list(b'(', b')', |p| {
                    let mut name = p.identifier()?;
                    while p.accept(b'.') {
                        name = name + "." + &p.identifier()?;
                    }
                    names.push(name);
                    Ok(())
                })?;
                ensure!(names.len() <= 2, "an opaque type has a domain and a name");
                let name = names.pop();
                Type::OpaqueType(type_proto::Opaque { domain: names.pop(), name })
            }
            _ => {
                let element =
                    ElementType::from_name(&word).ok_or_else(|| anyhow!("there is no element type '{word}'"))?;
                Type::TensorType(type_proto::Tensor { elem_type: Some(element as i32), shape: self.shape()? })
            }
        };
        self.depth -= 1;
        Ok(TypeProto { value: Some(value), ..Default::default() })
    }

    fn inner_type(&mut self) -> Result<Option<Box<TypeProto>>> {
        self.demand(b'(')?;
        let inner = self.r#type()?;
        self.demand(b')')?;
        Ok(Some(Box::new(inner)))
    }

    fn element_type(&mut self) -> Result<ElementType> {
        let word = self.identifier()?;
        ElementType::from_name(&word).ok_or_else(|| anyhow!("there is no element type '{word}'"))
    }

    /// No brackets are rank 0, empty ones an unknown rank.
    fn shape(&mut self) -> Result<Option<TensorShapeProto>> {
        let mut dim = Vec::new();
        if self.peek() == Some(b'[') {
            self.list(b'[', b']', |p| {
                let value = match p.peek() {
                    Some(b'?') => {
                        p.position += 1;
                        None
                    }
                    Some(c) if c == b'"' || starts_identifier(c) => Some(DimensionValue::DimParam(p.name()?)),
                    _ => Some(DimensionValue::DimValue(p.int()?)),
                };
                dim.push(Dimension { value, ..Default::default() });
                Ok(())
            })?;
            if dim.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(TensorShapeProto { dim }))
    }

    fn initializer(&mut self, value: &ValueInfoProto) -> Result<TensorProto> {
        let r#type = value.r#type.as_ref().ok_or_else(|| anyhow!("initializer '{}' needs a type", value.name()))?;
        self.tensor(r#type, value.name.clone())
    }

    /// What follows a tensor's type and name: its elements in braces, or where they lie in brackets.
    fn tensor(&mut self, r#type: &TypeProto, name: Option<String>) -> Result<TensorProto> {
        let Some(Type::TensorType(type_proto::Tensor { elem_type, shape: Some(shape) })) = &r#type.value else {
            bail!("a tensor with elements has an element type and dimensions");
        };
        let dims = shape.dim.iter().map(|d| match d.value {
            Some(DimensionValue::DimValue(n)) => Ok(n),
            _ => bail!("the dimensions of a tensor with elements are numbers"),
        });
        let mut tensor =
            TensorProto { dims: dims.collect::<Result<_>>()?, data_type: *elem_type, name, ..Default::default() };
        if self.peek() == Some(b'[') {
            tensor.external_data = self.entries()?;
            tensor.data_location = Some(DataLocation::External as i32);
            return Ok(tensor);
        }
        let mut raw = Vec::new();
        let mut count = 0usize;
        let element = tensor.element_type();
        self.list(b'{', b'}', |p| {
            count += 1;
            p.element(element, &mut raw, &mut tensor)
        })?;
        let wanted = match element {
            ElementType::Complex64 | ElementType::Complex128 => tensor.element_count().and_then(|n| n.checked_mul(2)),
            _ => tensor.element_count(),
        };
        ensure!(wanted == Some(count), "{count} elements for dimensions {:?}", tensor.dims);
        if element != ElementType::String {
            tensor.raw_data = Some(Bytes::from(raw));
        }
        Ok(tensor)
    }

    fn element(&mut self, element: ElementType, raw: &mut Vec<u8>, tensor: &mut TensorProto) -> Result<()> {
        use ElementType as E;
        if self.text.get(self.position..).is_some_and(|rest| rest.starts_with("...")) {
            bail!("the elements are abbreviated: they cannot be read back");
        }
        if element == E::Bool && matches!(self.peek_identifier(), "true" | "false") {
            raw.push((self.identifier()? == "true").into());
            return Ok(());
        }
        match (element, self.literal()?) {
            (E::String, Literal::String(text)) => tensor.string_data.push(Bytes::from(text)),
            (E::Float | E::Complex64, Literal::Int(t) | Literal::Float(t)) => {
                raw.extend(number::<f32>(t)?.to_le_bytes());
            }
            (E::Double | E::Complex128, Literal::Int(t) | Literal::Float(t)) => {
                raw.extend(number::<f64>(t)?.to_le_bytes());
            }
            (E::Float16, Literal::Float(t)) => raw.extend(f16::from_f64(number(t)?).to_le_bytes()),
            (E::Bfloat16, Literal::Float(t)) => raw.extend(bf16::from_f64(number(t)?).to_le_bytes()),
            (E::Float16 | E::Bfloat16 | E::Uint16, Literal::Int(t)) => raw.extend(number::<u16>(t)?.to_le_bytes()),
            (E::Int64, Literal::Int(t)) => raw.extend(number::<i64>(t)?.to_le_bytes()),
            (E::Uint64, Literal::Int(t)) => raw.extend(number::<u64>(t)?.to_le_bytes()),
            (E::Int32, Literal::Int(t)) => raw.extend(number::<i32>(t)?.to_le_bytes()),
            (E::Uint32, Literal::Int(t)) => raw.extend(number::<u32>(t)?.to_le_bytes()),
            (E::Int16, Literal::Int(t)) => raw.extend(number::<i16>(t)?.to_le_bytes()),
            (E::Int8, Literal::Int(t)) => raw.extend(number::<i8>(t)?.to_le_bytes()),
            (_, Literal::Int(t)) if element.bits() == Some(8) => raw.push(number(t)?),
            _ => bail!("that is not an element of a {} tensor", element.name()),
        }
        Ok(())
    }

    fn opsets(&mut self) -> Result<Vec<OperatorSetIdProto>> {
        let mut opsets = Vec::new();
        self.list(b'[', b']', |p| {
            let domain = Some(p.string()?);
            p.demand(b':')?;
            opsets.push(OperatorSetIdProto { domain, version: Some(p.int()?) });
            Ok(())
        })?;
        Ok(opsets)
    }

    fn entries(&mut self) -> Result<Vec<StringStringEntryProto>> {
        let mut entries = Vec::new();
        self.list(b'[', b']', |p| {
            let key = Some(p.string()?);
            p.demand(b':')?;
            entries.push(StringStringEntryProto { key, value: Some(p.string()?) });
            Ok(())
        })?;
        Ok(entries)
    }

    fn int(&mut self) -> Result<i64> {
        match self.literal()? {
            Literal::Int(text) => number(text),
            _ => bail!("expected a whole number"),
        }
    }

    fn string(&mut self) -> Result<String> {
        match self.literal()? {
            Literal::String(text) => Ok(text),
            _ => bail!("expected a string in quotes"),
        }
    }

    /// An identifier, or any name in quotes.
    fn name(&mut self) -> Result<String> {
        if self.peek() == Some(b'"') { self.string() } else { self.identifier() }
    }

    fn identifier(&mut self) -> Result<String> {
        let word = self.peek_identifier().to_owned();
        if word.is_empty() {
            bail!("expected a name, found {}", self.found());
        }
        self.position += word.len();
        Ok(word)
    }

    fn literal(&mut self) -> Result<Literal<'a>> {
        let first = self.peek();
        let rest = self.text.get(self.position..).unwrap_or_default();
        if first == Some(b'"') {
            let mut text = String::new();
            let mut characters = rest.char_indices().skip(1);
            while let Some((at, c)) = characters.next() {
                match c {
                    '"' => {
                        self.position += at + 1;
                        return Ok(Literal::String(text));
                    }
                    '\\' => text.extend(characters.next().map(|(_, c)| c)),
                    c => text.push(c),
                }
            }
            bail!("a string without closing quote");
        }
        let sign = usize::from(first == Some(b'-'));
        let word: &str = prefix(rest.get(sign..).unwrap_or_default(), |c| c.is_ascii_alphabetic());
        let length = if is_special_number(word) {
            sign + word.len()
        } else {
            let bytes = rest.as_bytes();
            let digits = |from: usize| bytes.iter().skip(from).take_while(|c| c.is_ascii_digit()).count();
            let mut end = sign + digits(sign);
            if end == sign {
                bail!("expected a value, found {}", self.found());
            }
            if bytes.get(end) == Some(&b'.') {
                end += 1 + digits(end + 1);
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let signed = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                end += 1 + signed + digits(end + 1 + signed);
            }
            end
        };
        self.position += length;
        let text = rest.get(..length).unwrap_or_default();
        let whole = text.bytes().all(|c| c == b'-' || c.is_ascii_digit());
        Ok(if whole { Literal::Int(text) } else { Literal::Float(text) })
    }

    /// What stands between brackets, divided by commas.
    fn list(&mut self, open: u8, close: u8, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.demand(open)?;
        if self.accept(close) {
            return Ok(());
        }
        loop {
            self.peek();
            item(self)?;
            if self.accept(close) {
                return Ok(());
            }
            if !self.accept(b',') {
                bail!("expected ',' or '{}', found {}", char::from(close), self.found());
            }
        }
    }

    fn demand(&mut self, wanted: u8) -> Result<()> {
        ensure!(self.accept(wanted), "expected '{}', found {}", char::from(wanted), self.found());
        Ok(())
    }

    fn accept(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.position += usize::from(found);
        found
    }

    fn peek_identifier(&mut self) -> &'a str {
        let starts = self.peek().is_some_and(starts_identifier);
        let rest = self.text.get(self.position..).filter(|_| starts).unwrap_or_default();
        prefix(rest, continues_identifier)
    }

    /// The next byte that is neither space nor comment.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let rest = self.text.get(self.position..)?;
            let trimmed = rest.trim_start();
            self.position += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') && !trimmed.starts_with("//") {
                return trimmed.bytes().next();
            }
            self.position += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn found(&self) -> String {
        let next = self.text.get(self.position..).and_then(|rest| rest.chars().next());
        next.map_or("the end".to_owned(), |c| format!("'{c}'"))
    }

    fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        ensure!(self.depth <= DEEPEST, "graphs or types nest deeper than {DEEPEST}");
        Ok(())
    }
}

fn prefix(text: &str, belongs: impl Fn(u8) -> bool) -> &str {
    let length = text.bytes().take_while(|&c| belongs(c)).count();
    text.get(..length).unwrap_or_default()
}

fn number<T: FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| anyhow!("the number {text} is out of range here"))
}

fn attribute_type(name: &str) -> Option<AttributeType> {
    ATTRIBUTE_TYPES.iter().position(|&n| n == name).and_then(|i| AttributeType::try_from(i as i32).ok())
}

/// Single attribute types, and those of lists of them.
const LISTS: [(AttributeType, AttributeType); 6] = [
    (AttributeType::Int, AttributeType::Ints),
    (AttributeType::Float, AttributeType::Floats),
    (AttributeType::String, AttributeType::Strings),
    (AttributeType::Tensor, AttributeType::Tensors),
    (AttributeType::Graph, AttributeType::Graphs),
    (AttributeType::TypeProto, AttributeType::TypeProtos),
];

fn list_of(single: AttributeType) -> AttributeType {
    LISTS.iter().find(|l| l.0 == single).map_or(single, |l| l.1)
}

fn element_of(list: AttributeType) -> AttributeType {
    LISTS.iter().find(|l| l.1 == list).map_or(list, |l| l.0)
}
