//! ONNX's text syntax, as `onnx.printer` and `onnx.parser` have it: for tests, snapshots and debugging.
//!
//! ```text
//! <ir_version: 10, opset_import: ["" : 18]>
//! mlp (float[N,4] x) => (float[N] y) <float[4] w = {1, 2, 3, 4}> {
//!    [dense] h = MatMul (x, w)
//!    y = LeakyRelu <alpha = 0.5> (h)
//! }
//! ```
//!
//! Beyond ONNX's own parser: comments may also start with `//`, elements of float16 and bfloat16 tensors may be numbers
//! with a point (whole numbers stand for bit patterns), subgraphs and domains may have quoted names, and the header may
//! be absent.

mod parse;
mod print;

pub use parse::parse;
pub use print::{print, print_graph, print_nodes, print_type, print_whole};

use super::ElementType;

/// The names of attribute types, by their numbers in the schema.
const ATTRIBUTE_TYPES: [&str; 15] = [
    "undefined",
    "float",
    "int",
    "string",
    "tensor",
    "graph",
    "floats",
    "ints",
    "strings",
    "tensors",
    "graphs",
    "sparse_tensor",
    "sparse_tensors",
    "type_proto",
    "type_protos",
];

/// Whether a word starts a type.
fn is_type_name(word: &str) -> bool {
    matches!(word, "seq" | "map" | "optional" | "sparse_tensor" | "opaque")
        || word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) && ElementType::from_name(word).is_some()
}

/// Whether a word reads as a special number where a value is expected.
fn is_special_number(word: &str) -> bool {
    ["inf", "infinity", "nan"].iter().any(|n| word.eq_ignore_ascii_case(n))
}

fn starts_identifier(c: u8) -> bool {
    c.is_ascii_alphabetic() || c == b'_'
}

fn continues_identifier(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_'
}
