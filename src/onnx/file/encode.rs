//! A model as the bytes of its file: those of the file that it was read from where it says the same, and the elements
//! of tensors from where they lie.

use super::super::ModelProto;
use super::pieces::{Appended, External, Piece, Pieces, function_pieces, graph_pieces, node_pieces, tensor_pieces};
use super::splice::{self, Content, Item, Items};
use super::{Ready, wire};
use bytes::Bytes;
use prost::Message;
use std::io::{self, Write};

/// A model that is ready to be written, with its length known.
pub struct Encoded<'a> {
    pieces: Pieces<'a>,
    external: External<'a>,
}

impl<'a> Encoded<'a> {
    /// Prepares a model; with the name of a data file, without the elements of its larger initializers. What it has in
    /// common with its `source`, the file that it was read from, is written as there.
    pub fn new(model: &'a ModelProto, data_file: Option<&'a str>, ready: Ready<'_>) -> Self {
        let mut external = External::to(data_file);
        // All fields are named, so that one that is added to the schema cannot be forgotten here.
        let frame = ModelProto {
            ir_version: model.ir_version,
            opset_import: model.opset_import.clone(),
            producer_name: model.producer_name.clone(),
            producer_version: model.producer_version.clone(),
            domain: model.domain.clone(),
            model_version: model.model_version,
            doc_string: model.doc_string.clone(),
            graph: None,
            metadata_props: model.metadata_props.clone(),
            training_info: model.training_info.clone(),
            functions: Vec::new(),
            configuration: model.configuration.clone(),
        };
        if let Some(source) = ready.source
            && let Some(pieces) = spliced(&frame, model, source, ready.appended, &mut external)
        {
            return Encoded { pieces, external };
        }
        let mut external = External::to(data_file);
        let mut pieces = Pieces::default();
        pieces.message(&frame);
        if let Some(graph) = &model.graph {
            pieces.nested(7, graph_pieces(graph, ready.appended, &mut external));
        }
        for function in &model.functions {
            pieces.nested(25, function_pieces(function));
        }
        Encoded { pieces, external }
    }

    /// The bytes of the model file.
    pub fn len(&self) -> u64 {
        self.pieces.len
    }

    /// Writes the model file.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.pieces.list.iter().try_for_each(|piece| piece.write(out))
    }

    /// The bytes of the model file, in pieces.
    pub fn into_pieces(self) -> Vec<Bytes> {
        self.pieces.list.into_iter().map(Piece::into_bytes).collect()
    }

    /// Writes the data file.
    pub fn write_external(&self, out: &mut impl Write) -> io::Result<()> {
        self.external.write(out)
    }
}

/// The model as changes of its source; `None` where that is none.
fn spliced<'a>(
    frame: &ModelProto,
    model: &'a ModelProto,
    source: &Bytes,
    appended: Option<&Appended>,
    external: &mut External<'a>,
) -> Option<Pieces<'a>> {
    let mut items = Items::of(&frame.encode_to_vec().into())?;
    if let Some(graph) = &model.graph {
        let mut fields = Items::of(&graph.frame().encode_to_vec().into())?;
        for node in &graph.node {
            // What bodies hold may go out, and it is found out now where to.
            let content = match node.bodies().next() {
                None => Content::Node(node),
                Some(_) => Content::Pieces(node_pieces(node, external)),
            };
            fields.push(Item { tag: 1, content });
        }
        for piece in appended.iter().flat_map(|a| a.pieces()) {
            fields.push(Item { tag: 1, content: Content::Written(piece) });
        }
        for tensor in &graph.initializer {
            fields.push(Item { tag: 5, content: Content::Pieces(tensor_pieces(tensor, Some(&mut *external))) });
        }
        items.push(Item { tag: 7, content: Content::Items(fields) });
    }
    for function in &model.functions {
        items.push(Item { tag: 25, content: Content::Pieces(function_pieces(function)) });
    }
    splice::message(wire::Message::named("ModelProto")?, source, items)
}
