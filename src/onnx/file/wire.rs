//! Protobuf as it is written: fields with their bytes, whatever they mean, and what the schema says of them.

use bytes::Bytes;

/// A kind of message.
pub struct Message {
    /// `NodeProto`, `TypeProto.Tensor`
    pub name: &'static str,
    /// Its fields.
    pub fields: &'static [Known],
}

/// A field that the schema knows.
pub struct Known {
    /// Its number.
    pub tag: u32,
    /// Its name.
    pub name: &'static str,
    /// Whether there may be several.
    pub repeated: bool,
    /// The kind of message that it holds, if it holds one: a place in [`MESSAGES`].
    pub message: Option<usize>,
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

impl Message {
    /// The message of that name.
    pub fn named(name: &str) -> Option<&'static Message> {
        MESSAGES.iter().find(|m| m.name == name)
    }

    /// The field of a number.
    pub fn field(&self, tag: u32) -> Option<&'static Known> {
        self.fields.iter().find(|f| f.tag == tag)
    }

    /// The field whose value tells messages of a kind apart in a list.
    pub fn key(&self) -> Option<u32> {
        let name = match self.name {
            "NodeProto" => "output",
            "OperatorSetIdProto" => "domain",
            "StringStringEntryProto" => "key",
            "TensorAnnotation" => "tensor_name",
            "SparseTensorProto" => "values",
            _ => "name",
        };
        self.fields.iter().find(|f| f.name == name).map(|f| f.tag)
    }
}

impl Known {
    /// What a field holds that holds messages.
    pub fn message(&self) -> Option<&'static Message> {
        MESSAGES.get(self.message?)
    }
}

/// One field of a message.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its number.
    pub tag: u32,
    /// How it is written: 0 for a number of variable length, 1 and 5 for eight and four bytes, 2 for bytes with their
    /// length.
    pub wire: u8,
    /// All of it.
    pub whole: Bytes,
    /// Without its number and length.
    pub payload: Bytes,
}

/// The fields of a message one by one, up to its end or to where it is no message any more.
pub fn each(bytes: &Bytes) -> impl Iterator<Item = Field> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let field = (at < bytes.len()).then(|| field(bytes, at)).flatten()?;
        at += field.whole.len();
        Some(field)
    })
}

/// The fields of a message, in the order in which they are written; `None` where the bytes are no message.
pub fn fields(bytes: &Bytes) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let field = field(bytes, at)?;
        at += field.whole.len();
        fields.push(field);
    }
    Some(fields)
}

fn field(bytes: &Bytes, start: usize) -> Option<Field> {
    let mut at = start;
    let key = varint(bytes, &mut at)?;
    let (tag, wire) = (u32::try_from(key >> 3).ok().filter(|&t| t > 0)?, (key & 7) as u8);
    let length = match wire {
        0 => {
            let mut end = at;
            varint(bytes, &mut end)?;
            end - at
        }
        1 => 8,
        2 => usize::try_from(varint(bytes, &mut at)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let end = at.checked_add(length).filter(|&end| end <= bytes.len())?;
    Some(Field { tag, wire, whole: bytes.slice(start..end), payload: bytes.slice(at..end) })
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The payload of the first field of a number. What follows it need not be whole.
pub fn first(bytes: &Bytes, tag: u32) -> Option<Bytes> {
    let mut at = 0;
    while at < bytes.len() {
        let field = field(bytes, at)?;
        if field.tag == tag {
            return Some(field.payload);
        }
        at += field.whole.len();
    }
    None
}
