//! Whether one file holds what another does, field by field as they are written, whatever the fields mean.

use super::wire::{self, Field, Known, Message};
use bytes::Bytes;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// What a second file has of a first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What the first has and the second has not.
    pub lost: Vec<String>,
    /// What both have, in another way or another order.
    pub changed: Vec<Change>,
    /// What the second has beside it, by the list or field that it stands in.
    pub added: BTreeMap<String, Vec<String>>,
}

/// A field that says something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where it stands.
    pub path: String,
    /// What it is in the first file.
    pub from: String,
    /// What it is in the second.
    pub to: String,
}

impl Difference {
    /// Whether the second file is the first, with additions or without.
    pub fn only_adds(&self) -> bool {
        self.lost.is_empty() && self.changed.is_empty()
    }
}

/// Compares two model files. The order of different fields does not count, that within a list does. What a list of the
/// model or of its main graph has in addition, the metadata of anything, or the outputs of a node, is an addition;
/// whatever else is new in something that there was is a change of it.
///
/// `None` where one of them is no protobuf message.
pub fn diff(a: &Bytes, b: &Bytes) -> Option<Difference> {
    let mut difference = Difference::default();
    message(Message::named("ModelProto")?, "", a, b, &mut difference)?;
    Some(difference)
}

fn message(kind: &Message, path: &str, a: &Bytes, b: &Bytes, out: &mut Difference) -> Option<()> {
    if a == b {
        return Some(());
    }
    let by_tag = |bytes: &Bytes| {
        let mut tags: BTreeMap<u32, Vec<Field>> = BTreeMap::new();
        wire::fields(bytes)?.into_iter().for_each(|field| tags.entry(field.tag).or_default().push(field));
        Some(tags)
    };
    let (mut a, mut b) = (by_tag(a)?, by_tag(b)?);
    let mut tags: Vec<u32> = a.keys().chain(b.keys()).copied().collect();
    tags.sort_unstable();
    tags.dedup();
    for tag in tags {
        let (a, b) = (a.remove(&tag).unwrap_or_default(), b.remove(&tag).unwrap_or_default());
        let known = kind.field(tag);
        let name = known.map_or_else(|| format!("#{tag}"), |k| k.name.to_owned());
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let fills = kind.name == "NodeProto" && name == "output";
        let may_add = kind.name == "ModelProto"
            || (kind.name == "GraphProto" && path == "graph")
            || name == "metadata_props"
            || fills;
        let key = known.and_then(Known::message).and_then(Message::key);
        let list = List { known, at: &at, may_add, fills };
        match key {
            Some(key) if known.is_some_and(|k| k.repeated) => list.keyed(key, &a, &b, out)?,
            _ => list.placed(&a, &b, out)?,
        }
    }
    Some(())
}

/// The fields of one number in a message.
struct List<'a> {
    known: Option<&'a Known>,
    at: &'a str,
    may_add: bool,
    /// Whether a name that is empty stands for one that is left out: to fill it in is an addition.
    fills: bool,
}

impl List<'_> {
    /// Messages that are found by what they are called.
    fn keyed(&self, key: u32, a: &[Field], b: &[Field], out: &mut Difference) -> Option<()> {
        // A node is called by any of its outputs: one that was left out may have got a name.
        let keys_of = |field: &Field| {
            let named =
                wire::each(&field.payload).filter(|f| f.tag == key).map(|f| f.payload).filter(|k| !k.is_empty());
            named.collect::<Vec<Bytes>>()
        };
        let key_of = |field: &Field| keys_of(field).into_iter().next().unwrap_or_default();
        let mut places: HashMap<Bytes, Vec<usize>> = HashMap::new();
        for (i, field) in b.iter().enumerate() {
            let mut keys = keys_of(field);
            keys.dedup();
            if keys.is_empty() {
                keys.push(Bytes::new());
            }
            keys.into_iter().for_each(|key| places.entry(key).or_default().push(i));
        }
        let mut used = vec![false; b.len()];
        let mut next = 0;
        for (i, old) in a.iter().enumerate() {
            let path = format!("{}[{}]", self.at, label(&key_of(old), i));
            let same = places.get(&key_of(old)).map(Vec::as_slice).unwrap_or_default();
            let later = same.iter().copied().find(|&n| n >= next && !used[n]);
            match later.or_else(|| same.iter().copied().find(|&n| !used[n])) {
                Some(n) => {
                    used[n] = true;
                    if n < next {
                        let (from, to) = (format!("place {i}"), format!("place {n}, before what was before it"));
                        out.changed.push(Change { path: path.clone(), from, to });
                    }
                    next = next.max(n + 1);
                    self.pair(&path, old, &b[n], out)?;
                }
                None => out.lost.push(path),
            }
        }
        for (n, new) in b.iter().enumerate().filter(|(n, _)| !used[*n]) {
            self.added(&label(&key_of(new), n), new, out);
        }
        Some(())
    }

    /// Fields that are found by their place.
    fn placed(&self, a: &[Field], b: &[Field], out: &mut Difference) -> Option<()> {
        let single = self.known.is_none_or(|k| !k.repeated) && a.len() < 2 && b.len() < 2;
        for (i, old) in a.iter().enumerate() {
            let path = if single { self.at.to_owned() } else { format!("{}[{i}]", self.at) };
            match b.get(i) {
                Some(new) if self.fills && old.payload.is_empty() && !new.payload.is_empty() => {
                    self.added(&i.to_string(), new, out);
                }
                Some(new) => self.pair(&path, old, new, out)?,
                None => out.lost.push(path),
            }
        }
        for (i, new) in b.iter().enumerate().skip(a.len()) {
            self.added(&i.to_string(), new, out);
        }
        Some(())
    }

    fn pair(&self, path: &str, old: &Field, new: &Field, out: &mut Difference) -> Option<()> {
        if old.whole == new.whole || (old.wire == new.wire && old.payload == new.payload) {
            return Some(());
        }
        match self.known.and_then(Known::message).filter(|_| old.wire == 2 && new.wire == 2) {
            Some(kind) => message(kind, path, &old.payload, &new.payload, out),
            None => {
                out.changed.push(Change { path: path.to_owned(), from: shown(old), to: shown(new) });
                Some(())
            }
        }
    }

    fn added(&self, label: &str, new: &Field, out: &mut Difference) {
        if self.may_add {
            out.added.entry(self.at.to_owned()).or_default().push(label.to_owned());
        } else {
            let path = format!("{}[{label}]", self.at);
            out.changed.push(Change { path, from: "nothing".to_owned(), to: shown(new) });
        }
    }
}

/// What something in a list is called, or else its place.
fn label(key: &Bytes, place: usize) -> String {
    match std::str::from_utf8(key) {
        Ok(name) if !name.is_empty() && name.chars().all(|c| !c.is_control()) => format!("'{}'", shortened(name)),
        _ => place.to_string(),
    }
}

/// A value for people: a number, a text, or how many bytes there are.
fn shown(field: &Field) -> String {
    let number = |n: &[u8]| n.iter().rev().fold(0u64, |all, &b| all << 8 | u64::from(b));
    match field.wire {
        0 => field.payload.iter().rev().fold(0u64, |all, &b| all << 7 | u64::from(b & 0x7f)).cast_signed().to_string(),
        5 => f32::from_bits(number(&field.payload) as u32).to_string(),
        1 => f64::from_bits(number(&field.payload)).to_string(),
        _ => match std::str::from_utf8(&field.payload) {
            Ok(text) if text.chars().all(|c| !c.is_control()) => format!("'{}'", shortened(text)),
            _ => format!("{} bytes", field.payload.len()),
        },
    }
}

fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
