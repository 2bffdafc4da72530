//! Attributes of nodes: making them, and reading their values.

use super::proto::attribute_proto::AttributeType;
use super::{AttributeProto, GraphProto, TensorProto};
use bytes::Bytes;

fn new(name: &str, r#type: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(r#type as i32), ..Default::default() }
}

/// An attribute that holds an integer.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..new(name, AttributeType::Int) }
}

/// An attribute that holds a list of integers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..new(name, AttributeType::Ints) }
}

/// An attribute that holds a number; attributes have 32 bits, whatever the element type of the tensors is.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..new(name, AttributeType::Float) }
}

/// An attribute that holds a list of numbers.
pub fn floats(name: &str, values: &[f32]) -> AttributeProto {
    AttributeProto { floats: values.to_vec(), ..new(name, AttributeType::Floats) }
}

/// An attribute that holds a string.
pub fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(Bytes::copy_from_slice(value.as_bytes())), ..new(name, AttributeType::String) }
}

/// An attribute that holds a list of strings.
pub fn strings(name: &str, values: &[&str]) -> AttributeProto {
    let strings = values.iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect();
    AttributeProto { strings, ..new(name, AttributeType::Strings) }
}

/// An attribute that holds a tensor.
pub fn tensor(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(Box::new(value)), ..new(name, AttributeType::Tensor) }
}

/// An attribute that holds a graph: a branch of If, the body of a Loop or Scan.
pub fn graph(name: &str, value: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(Box::new(value)), ..new(name, AttributeType::Graph) }
}

/// The attribute of that name.
pub fn find<'a>(attributes: &'a [AttributeProto], name: &str) -> Option<&'a AttributeProto> {
    attributes.iter().find(|a| a.name() == name)
}

/// The value of an integer attribute.
pub fn get_int(attributes: &[AttributeProto], name: &str) -> Option<i64> {
    find(attributes, name).and_then(|a| a.i)
}

/// The value of a number attribute.
pub fn get_float(attributes: &[AttributeProto], name: &str) -> Option<f32> {
    find(attributes, name).and_then(|a| a.f)
}

/// The value of an attribute that is a list of integers. An empty list is a value, an absent attribute is not.
pub fn get_ints<'a>(attributes: &'a [AttributeProto], name: &str) -> Option<&'a [i64]> {
    find(attributes, name).map(|a| a.ints.as_slice())
}

/// The value of a string attribute; text that is not UTF-8 counts as absent.
pub fn get_string<'a>(attributes: &'a [AttributeProto], name: &str) -> Option<&'a str> {
    find(attributes, name).and_then(|a| a.s.as_ref()).and_then(|s| std::str::from_utf8(s).ok())
}

/// The value of an attribute that is a list of strings; `None` where one of them is not UTF-8.
pub fn get_strings<'a>(attributes: &'a [AttributeProto], name: &str) -> Option<Vec<&'a str>> {
    find(attributes, name)?.strings.iter().map(|s| std::str::from_utf8(s).ok()).collect()
}

/// The value of a tensor attribute.
pub fn get_tensor<'a>(attributes: &'a [AttributeProto], name: &str) -> Option<&'a TensorProto> {
    find(attributes, name).and_then(|a| a.t.as_deref())
}
