//! Protobuf in pieces: small ones hold everything but the elements of tensors, which are written from where they lie.

use super::super::proto::{StringStringEntryProto, tensor_proto::DataLocation};
use super::super::{AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto};
use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::io::{self, Write};

/// Initializers of fewer bytes stay in the model when the others go out.
const SMALLEST_EXTERNAL: u64 = 1024;
/// External data start at multiples of this, so that they can be memory-mapped.
const ALIGNMENT: u64 = 4096;

/// A message, or a part of one.
#[derive(Default, PartialEq)]
pub struct Pieces<'a> {
    /// What is written, one after the other.
    pub list: Vec<Piece<'a>>,
    /// The bytes of all.
    pub len: u64,
}

/// Some bytes of a file, and where they lie.
pub enum Piece<'a> {
    /// Made here.
    Own(Vec<u8>),
    /// In a buffer that others share.
    Raw(Bytes),
    /// Little-endian numbers.
    Floats(&'a [f32]),
    /// A tensor without long lists of bytes or floats.
    Tensor(&'a TensorProto),
}

/// Nodes as they stand in a file, behind the others of a graph.
#[derive(Clone, Debug, Default)]
pub struct Appended {
    full: Vec<Bytes>,
    last: Vec<u8>,
}

impl Appended {
    /// One more node.
    #[cfg(feature = "cli")]
    pub fn push(&mut self, node: &NodeProto) {
        /// The bytes that one piece of memory holds.
        const PIECE: usize = 1 << 20;
        if self.last.len() >= PIECE {
            let full = std::mem::replace(&mut self.last, Vec::with_capacity(PIECE + PIECE / 8));
            self.full.push(full.into());
        }
        if holds_messages(node) {
            let mut pieces = Pieces::default();
            pieces.node(1, node);
            self.last.extend(pieces.to_vec());
        } else {
            encode_key(1, WireType::LengthDelimited, &mut self.last);
            encode_varint(node.encoded_len() as u64, &mut self.last);
            node.encode_raw(&mut self.last);
        }
    }

    /// All that there are, in pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Bytes> {
        let last = Some(&self.last).filter(|last| !last.is_empty()).map(|last| Bytes::copy_from_slice(last));
        self.full.iter().cloned().chain(last)
    }
}

/// What goes out into the data file of that name, each with its offset.
#[derive(Default)]
pub struct External<'a> {
    location: Option<&'a str>,
    list: Vec<(u64, Piece<'a>)>,
    len: u64,
}

impl<'a> External<'a> {
    /// For the data file of that name; without one nothing goes out.
    pub fn to(location: Option<&'a str>) -> Self {
        External { location, ..External::default() }
    }

    /// Writes the data file.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut position = 0;
        for (offset, piece) in &self.list {
            io::copy(&mut io::Read::take(io::repeat(0), offset - position), out)?;
            piece.write(out)?;
            position = offset + piece.len();
        }
        Ok(())
    }

    /// Takes the elements, and returns where they will lie.
    fn push(&mut self, piece: Piece<'a>, location: &str) -> Vec<StringStringEntryProto> {
        let (offset, length) = (self.len.next_multiple_of(ALIGNMENT), piece.len());
        self.len = offset + length;
        self.list.push((offset, piece));
        let entries =
            [("location", location.to_owned()), ("offset", offset.to_string()), ("length", length.to_string())];
        let entry =
            |(key, value): (&str, String)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
        entries.map(entry).into()
    }
}

impl<'a> Pieces<'a> {
    /// The bytes that the next fields go to.
    fn own(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if !matches!(self.list.last(), Some(Piece::Own(_))) {
            self.list.push(Piece::Own(Vec::new()));
        }
        if let Some(Piece::Own(bytes)) = self.list.last_mut() {
            let before = bytes.len();
            write(bytes);
            self.len += (bytes.len() - before) as u64;
        }
    }

    /// The fields of a message, beside those that are already there.
    pub fn message(&mut self, message: &impl Message) {
        self.own(|bytes| {
            // Writing into a vector fails only where memory ends.
            bytes.reserve(message.encoded_len());
            message.encode_raw(bytes);
        });
    }

    fn key(&mut self, tag: u32, len: u64) {
        self.own(|bytes| {
            encode_key(tag, WireType::LengthDelimited, bytes);
            encode_varint(len, bytes);
        });
    }

    /// A field that holds a message.
    pub fn nested(&mut self, tag: u32, pieces: Pieces<'a>) {
        self.key(tag, pieces.len);
        pieces.list.into_iter().for_each(|piece| self.push(piece));
    }

    /// A field that holds a node without bodies.
    pub fn node(&mut self, tag: u32, node: &'a NodeProto) {
        if holds_messages(node) {
            return self.nested(tag, node_pieces(node, &mut External::default()));
        }
        self.key(tag, node.encoded_len() as u64);
        self.message(node);
    }

    /// Whether these are the bytes.
    pub fn is(&self, bytes: &Bytes) -> bool {
        let mut rest: &[u8] = bytes;
        self.len == rest.len() as u64
            && self.list.iter().all(|piece| {
                let (next, behind) = rest.split_at(piece.len() as usize);
                rest = behind;
                piece.is(next)
            })
    }

    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing into a vector fails only where memory ends.
        let _ = self.list.iter().try_for_each(|piece| piece.write(&mut bytes));
        bytes
    }

    /// The next bytes.
    pub fn push(&mut self, piece: Piece<'a>) {
        match piece {
            Piece::Own(more) => self.own(|bytes| bytes.extend(more)),
            piece => {
                self.len += piece.len();
                self.list.push(piece);
            }
        }
    }
}

/// By their bytes: zeros of both signs differ, and what is no number equals itself.
impl PartialEq for Piece<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Piece::Own(a), Piece::Own(b)) => a == b,
            (Piece::Raw(a), Piece::Raw(b)) => (a.as_ptr() == b.as_ptr() && a.len() == b.len()) || a == b,
            (Piece::Floats(a), Piece::Floats(b)) => a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits())),
            (Piece::Tensor(a), Piece::Tensor(b)) => a.encode_to_vec() == b.encode_to_vec(),
            _ => false,
        }
    }
}

impl Piece<'_> {
    /// How many there are.
    pub fn len(&self) -> u64 {
        match self {
            Piece::Own(bytes) => bytes.len() as u64,
            Piece::Raw(bytes) => bytes.len() as u64,
            Piece::Floats(values) => values.len() as u64 * 4,
            Piece::Tensor(tensor) => tensor.encoded_len() as u64,
        }
    }

    /// The bytes, in a buffer of their own where they are in none.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Piece::Own(bytes) => bytes.into(),
            Piece::Raw(bytes) => bytes,
            Piece::Floats(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Piece::Tensor(tensor) => tensor.encode_to_vec().into(),
        }
    }

    fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Piece::Own(own) => own == bytes,
            // Weights that are still where they were read are not looked at.
            Piece::Raw(own) => own.as_ptr() == bytes.as_ptr() || own == bytes,
            Piece::Floats(values) => values.iter().flat_map(|v| v.to_le_bytes()).eq(bytes.iter().copied()),
            Piece::Tensor(tensor) => tensor.encode_to_vec() == bytes,
        }
    }

    /// Writes them.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Piece::Own(bytes) => out.write_all(bytes),
            Piece::Raw(bytes) => out.write_all(bytes),
            Piece::Floats(values) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes())),
            Piece::Tensor(tensor) => out.write_all(&tensor.encode_to_vec()),
        }
    }
}

/// A graph, with the nodes that are written already behind its own.
pub fn graph_pieces<'a>(graph: &'a GraphProto, appended: Option<&Appended>, external: &mut External<'a>) -> Pieces<'a> {
    let mut pieces = Pieces::default();
    pieces.message(&graph.frame());
    for node in &graph.node {
        pieces.nested(1, node_pieces(node, external));
    }
    appended.iter().flat_map(|a| a.pieces()).for_each(|piece| pieces.push(Piece::Raw(piece)));
    for tensor in &graph.initializer {
        pieces.nested(5, tensor_pieces(tensor, Some(&mut *external)));
    }
    pieces
}

/// A function.
pub fn function_pieces(function: &FunctionProto) -> Pieces<'_> {
    let mut pieces = Pieces::default();
    pieces.message(&FunctionProto {
        name: function.name.clone(),
        input: function.input.clone(),
        output: function.output.clone(),
        attribute: function.attribute.clone(),
        attribute_proto: function.attribute_proto.clone(),
        node: Vec::new(),
        doc_string: function.doc_string.clone(),
        opset_import: function.opset_import.clone(),
        domain: function.domain.clone(),
        overload: function.overload.clone(),
        value_info: function.value_info.clone(),
        metadata_props: function.metadata_props.clone(),
    });
    for node in &function.node {
        pieces.nested(7, node_pieces(node, &mut External::default()));
    }
    pieces
}

/// A node.
pub fn node_pieces<'a>(node: &'a NodeProto, external: &mut External<'a>) -> Pieces<'a> {
    let mut pieces = Pieces::default();
    if !holds_messages(node) {
        pieces.message(node);
        return pieces;
    }
    pieces.message(&NodeProto {
        input: node.input.clone(),
        output: node.output.clone(),
        name: node.name.clone(),
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        overload: node.overload.clone(),
        attribute: Vec::new(),
        doc_string: node.doc_string.clone(),
        metadata_props: node.metadata_props.clone(),
        device_configurations: node.device_configurations.clone(),
    });
    for attribute in &node.attribute {
        pieces.nested(5, attribute_pieces(attribute, external));
    }
    pieces
}

/// Whether an attribute of a node holds tensors or graphs.
fn holds_messages(node: &NodeProto) -> bool {
    node.attribute.iter().any(|a| a.t.is_some() || a.g.is_some() || !a.tensors.is_empty() || !a.graphs.is_empty())
}

fn attribute_pieces<'a>(a: &'a AttributeProto, external: &mut External<'a>) -> Pieces<'a> {
    let mut pieces = Pieces::default();
    pieces.message(&AttributeProto {
        name: a.name.clone(),
        ref_attr_name: a.ref_attr_name.clone(),
        doc_string: a.doc_string.clone(),
        r#type: a.r#type,
        f: a.f,
        i: a.i,
        s: a.s.clone(),
        t: None,
        g: None,
        sparse_tensor: a.sparse_tensor.clone(),
        tp: a.tp.clone(),
        floats: a.floats.clone(),
        ints: a.ints.clone(),
        strings: a.strings.clone(),
        tensors: Vec::new(),
        graphs: Vec::new(),
        sparse_tensors: a.sparse_tensors.clone(),
        type_protos: a.type_protos.clone(),
    });
    a.t.iter().for_each(|t| pieces.nested(5, tensor_pieces(t, None)));
    a.tensors.iter().for_each(|t| pieces.nested(10, tensor_pieces(t, None)));
    a.g.iter().for_each(|g| pieces.nested(6, graph_pieces(g, None, external)));
    a.graphs.iter().for_each(|g| pieces.nested(11, graph_pieces(g, None, external)));
    pieces
}

/// A tensor, its elements in their own place.
pub fn tensor_pieces<'a>(tensor: &'a TensorProto, external: Option<&mut External<'a>>) -> Pieces<'a> {
    let mut pieces = Pieces::default();
    let (tag, elements) = match &tensor.raw_data {
        Some(raw) => (9, Piece::Raw(raw.clone())),
        None if !tensor.float_data.is_empty() => (4, Piece::Floats(&tensor.float_data)),
        None => {
            pieces.push(Piece::Tensor(tensor));
            return pieces;
        }
    };
    let mut rest = TensorProto {
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        segment: tensor.segment,
        float_data: Vec::new(),
        int32_data: tensor.int32_data.clone(),
        string_data: tensor.string_data.clone(),
        int64_data: tensor.int64_data.clone(),
        name: tensor.name.clone(),
        doc_string: tensor.doc_string.clone(),
        raw_data: None,
        external_data: tensor.external_data.clone(),
        data_location: tensor.data_location,
        double_data: tensor.double_data.clone(),
        uint64_data: tensor.uint64_data.clone(),
        metadata_props: tensor.metadata_props.clone(),
    };
    match external.and_then(|e| Some((e.location?, e))) {
        Some((location, external)) if elements.len() >= SMALLEST_EXTERNAL => {
            rest.external_data = external.push(elements, location);
            rest.data_location = Some(DataLocation::External as i32);
            pieces.message(&rest);
        }
        _ => {
            pieces.message(&rest);
            pieces.key(tag, elements.len());
            pieces.push(elements);
        }
    }
    pieces
}
