//! Writes a model into the bytes of the file that it was read from: what is as it was keeps its own bytes, fields that
//! no schema of today knows stay where they stand, and what is new comes behind what there was of its kind.
//!
//! A message is held against what the file has in its place. If both say the same it is written as in the file, in
//! whatever order and spelling of fields that has; if not, the same is done for its fields.

use super::super::proto::{
    DeviceConfigurationProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto, TensorAnnotation,
    TrainingInfoProto,
};
use super::super::{AttributeProto, FunctionProto, NodeProto, TensorProto, TypeProto, ValueInfoProto};
use super::pieces::{External, Piece, Pieces, function_pieces, node_pieces, tensor_pieces};
use super::wire::{self, Field, Message};
use bytes::Bytes;
use prost::Message as _;
use rustc_hash::FxHashMap;
use std::collections::HashMap;

/// A field that is to be written.
pub struct Item<'a> {
    /// Its number.
    pub tag: u32,
    /// What it holds.
    pub content: Content<'a>,
}

/// What a field holds.
pub enum Content<'a> {
    /// A message in pieces.
    Pieces(Pieces<'a>),
    /// A node without bodies, which is put into pieces where it is written: a model has many.
    Node(&'a NodeProto),
    /// Fields of that number, written one behind the other: new ones, which stand for none of the file.
    Written(Bytes),
    /// A message by its fields.
    Items(Items<'a>),
    /// A field that is written already, with its number.
    Field(Box<Field>),
}

/// The fields that a message is to have.
#[derive(Default)]
pub struct Items<'a> {
    of_tag: FxHashMap<u32, Vec<Option<Item<'a>>>>,
    /// The numbers in the order in which they came.
    order: Vec<u32>,
}

impl<'a> Items<'a> {
    /// The fields of a message that is written already; `None` where the bytes are none.
    pub fn of(bytes: &Bytes) -> Option<Self> {
        let mut items = Items::default();
        let item = |field: Field| Item { tag: field.tag, content: Content::Field(Box::new(field)) };
        wire::fields(bytes)?.into_iter().map(item).for_each(|item| items.push(item));
        Some(items)
    }

    /// One more.
    pub fn push(&mut self, item: Item<'a>) {
        let list = self.of_tag.entry(item.tag).or_insert_with(|| {
            self.order.push(item.tag);
            Vec::new()
        });
        list.push(Some(item));
    }

    /// All of them, those of a number behind each other.
    fn into_all(mut self) -> impl Iterator<Item = Item<'a>> {
        self.order.into_iter().flat_map(move |tag| self.of_tag.remove(&tag).into_iter().flatten().flatten())
    }
}

/// A message of the given fields in the place of `old`; `None` where that is no message.
pub fn message<'a>(kind: &Message, old: &Bytes, new: Items<'a>) -> Option<Pieces<'a>> {
    let old = wire::fields(old)?;
    let Items { mut of_tag, order } = new;
    // The new content of each field, in the place of the old.
    let mut places: FxHashMap<u32, Vec<usize>> = FxHashMap::default();
    old.iter().enumerate().for_each(|(i, field)| places.entry(field.tag).or_default().push(i));
    let mut matched: Vec<Option<(usize, bool)>> = vec![None; old.len()];
    for (tag, new) in &of_tag {
        let known = kind.field(*tag)?;
        let places = places.get(tag).map(Vec::as_slice).unwrap_or_default();
        for (i, place, same) in matching(known, &old, places, new) {
            matched[place] = Some((i, same));
        }
    }
    let mut out = Pieces::default();
    let mut written: FxHashMap<u32, usize> = FxHashMap::default();
    for (at, field) in old.iter().enumerate() {
        let Some(known) = kind.field(field.tag) else {
            out.push(Piece::Raw(field.whole.clone()));
            continue;
        };
        let Some(new) = of_tag.get_mut(&field.tag) else { continue };
        let next = written.entry(field.tag).or_default();
        if let Some((index, same)) = matched[at] {
            while *next < index {
                new[*next].take().into_iter().for_each(|item| write(&mut out, item));
                *next += 1;
            }
            let item = new[index].take();
            *next = index + 1;
            match item {
                Some(_) if same => out.push(Piece::Raw(field.whole.clone())),
                Some(item) => changed(&mut out, known, field, item),
                None => (),
            }
        }
        let last = places.get(&field.tag).and_then(|places| places.last()) == Some(&at);
        while last && *next < new.len() {
            new[*next].take().into_iter().for_each(|item| write(&mut out, item));
            *next += 1;
        }
    }
    for tag in order {
        let rest = of_tag.get_mut(&tag).into_iter().flatten();
        rest.filter_map(Option::take).for_each(|item| write(&mut out, item));
    }
    Some(out)
}

/// The new fields of a number that stand for ones of the file, in the order of both: which, for which, and whether both
/// are the same.
fn matching(
    known: &wire::Known,
    old: &[Field],
    places: &[usize],
    new: &[Option<Item<'_>>],
) -> Vec<(usize, usize, bool)> {
    let mut found = Vec::new();
    let mut next = 0;
    let mut by_key: Option<HashMap<Bytes, Vec<usize>>> = None;
    for (i, item) in new.iter().enumerate().filter_map(|(i, item)| Some((i, item.as_ref()?))) {
        // All that the file has stands for something, and the rest is new.
        if next == places.len() {
            break;
        }
        if let Some(&place) = places.get(next)
            && is_same(known, &old[place], item)
        {
            found.push((i, place, true));
            next += 1;
            continue;
        }
        let by_key = by_key.get_or_insert_with(|| {
            let mut map: HashMap<Bytes, Vec<usize>> = HashMap::new();
            for (n, &place) in places.iter().enumerate() {
                let message = known.message().and_then(Message::key);
                let key = match (known.message(), message) {
                    (Some(_), Some(key)) => wire::first(&old[place].payload, key).unwrap_or_default(),
                    _ => old[place].payload.clone(),
                };
                map.entry(key).or_default().push(n);
            }
            map
        });
        let place = match known.repeated {
            false => places.get(next).map(|_| next),
            true => key(known, item).and_then(|key| by_key.get(&key)?.iter().copied().find(|&n| n >= next)),
        };
        if let Some(n) = place {
            found.push((i, places[n], is_same(known, &old[places[n]], item)));
            next = n + 1;
        }
    }
    found
}

/// What tells a field apart from others of its number.
fn key(known: &wire::Known, item: &Item<'_>) -> Option<Bytes> {
    let key = known.message().map(|m| m.key());
    match (&item.content, key) {
        (Content::Field(field), None) => Some(field.payload.clone()),
        (Content::Field(field), Some(key)) => Some(wire::first(&field.payload, key?).unwrap_or_default()),
        (Content::Node(node), _) => {
            Some(node.output.first().map(|name| Bytes::copy_from_slice(name.as_bytes())).unwrap_or_default())
        }
        (Content::Pieces(pieces), Some(key)) => match pieces.list.first() {
            Some(Piece::Own(bytes)) => Some(wire::first(&Bytes::copy_from_slice(bytes), key?).unwrap_or_default()),
            Some(Piece::Raw(bytes)) => Some(wire::first(bytes, key?).unwrap_or_default()),
            Some(Piece::Tensor(tensor)) => Some(Bytes::copy_from_slice(tensor.name().as_bytes())),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a field of the file says what the new one says.
fn is_same(known: &wire::Known, old: &Field, item: &Item<'_>) -> bool {
    match &item.content {
        Content::Items(_) | Content::Written(_) => false,
        Content::Field(field) if field.whole == old.whole => true,
        Content::Field(field) => match known.message() {
            Some(kind) => respelled(kind.name, &old.payload).is_some_and(|bytes| bytes == field.payload),
            None => false,
        },
        Content::Node(node) => {
            let pieces = node_pieces(node, &mut External::default());
            pieces.is(&old.payload) || is_same(known, old, &Item { tag: item.tag, content: Content::Pieces(pieces) })
        }
        Content::Pieces(pieces) => {
            let payload = || old.payload.clone();
            known.message().is_some_and(|kind| match kind.name {
                "NodeProto" => {
                    NodeProto::decode(payload()).is_ok_and(|m| *pieces == node_pieces(&m, &mut External::default()))
                }
                "TensorProto" => TensorProto::decode(payload()).is_ok_and(|m| *pieces == tensor_pieces(&m, None)),
                "FunctionProto" => FunctionProto::decode(payload()).is_ok_and(|m| *pieces == function_pieces(&m)),
                _ => false,
            })
        }
    }
}

/// A small message as this library writes it, without what it does not know.
fn respelled(kind: &str, bytes: &Bytes) -> Option<Vec<u8>> {
    let bytes = bytes.clone();
    Some(match kind {
        "AttributeProto" => AttributeProto::decode(bytes).ok()?.encode_to_vec(),
        "DeviceConfigurationProto" => DeviceConfigurationProto::decode(bytes).ok()?.encode_to_vec(),
        "FunctionProto" => FunctionProto::decode(bytes).ok()?.encode_to_vec(),
        "NodeProto" => NodeProto::decode(bytes).ok()?.encode_to_vec(),
        "OperatorSetIdProto" => OperatorSetIdProto::decode(bytes).ok()?.encode_to_vec(),
        "SparseTensorProto" => SparseTensorProto::decode(bytes).ok()?.encode_to_vec(),
        "StringStringEntryProto" => StringStringEntryProto::decode(bytes).ok()?.encode_to_vec(),
        "TensorAnnotation" => TensorAnnotation::decode(bytes).ok()?.encode_to_vec(),
        "TensorProto" => TensorProto::decode(bytes).ok()?.encode_to_vec(),
        "TrainingInfoProto" => TrainingInfoProto::decode(bytes).ok()?.encode_to_vec(),
        "TypeProto" => TypeProto::decode(bytes).ok()?.encode_to_vec(),
        "ValueInfoProto" => ValueInfoProto::decode(bytes).ok()?.encode_to_vec(),
        _ => return None,
    })
}

/// Writes a new field in the place of one that says something else.
fn changed<'a>(out: &mut Pieces<'a>, known: &wire::Known, old: &Field, item: Item<'a>) {
    let Some(kind) = known.message() else { return write(out, item) };
    let (whole, fields) = match item.content {
        Content::Items(items) => {
            return match wire::fields(&old.payload).is_some() {
                true => message(kind, &old.payload, items).into_iter().for_each(|m| out.nested(item.tag, m)),
                false => write(out, Item { tag: item.tag, content: Content::Items(items) }),
            };
        }
        Content::Field(field) => (field.whole.clone(), Items::of(&field.payload)),
        Content::Written(bytes) => return out.push(Piece::Raw(bytes)),
        Content::Node(node) => {
            let content = Content::Pieces(node_pieces(node, &mut External::default()));
            return changed(out, known, old, Item { tag: item.tag, content });
        }
        Content::Pieces(pieces) => {
            let payload: Bytes = pieces.to_vec().into();
            let mut whole = Pieces::default();
            whole.nested(item.tag, Pieces { len: payload.len() as u64, list: vec![Piece::Raw(payload.clone())] });
            (whole.to_vec().into(), Items::of(&payload))
        }
    };
    match fields.and_then(|fields| message(kind, &old.payload, fields)) {
        Some(merged) => out.nested(item.tag, merged),
        None => out.push(Piece::Raw(whole)),
    }
}

/// Writes a new field.
fn write<'a>(out: &mut Pieces<'a>, item: Item<'a>) {
    match item.content {
        Content::Field(field) => out.push(Piece::Raw(field.whole)),
        Content::Pieces(pieces) => out.nested(item.tag, pieces),
        Content::Node(node) => out.node(item.tag, node),
        Content::Written(bytes) => out.push(Piece::Raw(bytes)),
        Content::Items(items) => {
            let mut pieces = Pieces::default();
            items.into_all().for_each(|item| write(&mut pieces, item));
            out.nested(item.tag, pieces);
        }
    }
}
