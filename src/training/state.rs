//! Tensors in safetensors files: the initial state, checkpoints.

use crate::error::InFile;
use crate::error::{Error, OrKind};
use crate::onnx::file::{plain, read_file, replace};
use crate::onnx::{ElementType, TensorProto};
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Tensors by name, in an order.
pub type State = Vec<(String, TensorProto)>;

/// The one key of a file's metadata.
const KEY: &str = "onnx-gradients";

/// Writes tensors to a file, all or nothing: beside its place first, then renamed.
///
/// # Errors
/// Element types that safetensors does not have; a file that cannot be written.
pub fn write(path: &Path, state: &State, metadata: Option<&str>, force: bool) -> Result<(), Error> {
    written(path, state, metadata, force).or_kind(Error::io)
}

fn written(path: &Path, state: &State, metadata: Option<&str>, force: bool) -> Result<()> {
    let views = state.iter().map(|(name, t)| {
        let shape: Vec<usize> = t.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>()?;
        let bytes = t.raw_data.as_deref().with_context(|| format!("'{name}' holds no raw elements"))?;
        let view = TensorView::new(dtype(t.element_type())?, shape, bytes);
        Ok((name.as_str(), view.with_context(|| format!("'{name}'"))?))
    });
    let views: Vec<_> = views.collect::<Result<_>>()?;
    let metadata = metadata.map(|m| HashMap::from([(KEY.to_owned(), m.to_owned())]));
    let bytes = safetensors::serialize(views, metadata).context("the state cannot be written as safetensors")?;
    replace(path, force, |out| out.write_all(&bytes)).in_file(path)
}

/// Reads the tensors of a file, in the order of their names, and its metadata.
///
/// # Errors
/// A file that cannot be read, or is no safetensors file.
pub fn read(path: &Path) -> Result<(State, Option<String>), Error> {
    read_all(path).or_kind(Error::invalid_data)
}

fn read_all(path: &Path) -> Result<(State, Option<String>)> {
    let load = || -> Result<(State, Option<String>)> {
        let bytes = read_file(path, u64::MAX)?.context("it is no file of a known size, and too large")?;
        let (_, header) = SafeTensors::read_metadata(&bytes).context("not a safetensors file")?;
        let metadata = header.metadata().as_ref().and_then(|m| m.get(KEY).cloned());
        let file = SafeTensors::deserialize(&bytes).context("not a safetensors file")?;
        let state = file.iter().map(|(name, view)| {
            let dims: Vec<i64> = view.shape().iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>()?;
            let element = element(view.dtype()).with_context(|| format!("tensor '{name}'"))?;
            // The elements stay where the file has been read to.
            let raw_data = Some(bytes.slice_ref(view.data()));
            Ok((name.to_owned(), TensorProto { raw_data, ..TensorProto::from_raw(element, &dims, Vec::new()) }))
        });
        let mut state = state.collect::<Result<State>>()?;
        state.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((state, metadata))
    };
    load().in_file(path)
}

/// Where a tensor lies in a file.
pub struct Lies {
    /// What it is called.
    pub name: String,
    /// The type of its elements.
    pub element: ElementType,
    /// Its dimensions.
    pub dims: Vec<i64>,
    /// Where its elements begin.
    pub start: u64,
    /// The bytes of all elements.
    pub length: u64,
}

/// Where those tensors of a file lie that are `wanted`, in the order of their names, and the names of the others.
///
/// # Errors
/// A file that cannot be read, or is no safetensors file.
pub fn layout(mut file: &File, wanted: &dyn Fn(&str) -> bool) -> Result<(Vec<Lies>, Vec<String>)> {
    let size = file.metadata().map_err(plain)?.len();
    let mut start = [0; 8];
    file.read_exact(&mut start).context("not a safetensors file")?;
    let header = u64::from_le_bytes(start);
    ensure!(header.checked_add(8).is_some_and(|n| n <= size && n <= LONGEST_HEADER), "not a safetensors file");
    let mut bytes = Vec::new();
    file.take(header).read_to_end(&mut bytes).map_err(plain)?;
    // The crate reads headers of files that are in memory as a whole.
    let metadata: Metadata = serde_json::from_slice(&bytes).context("not a safetensors file")?;
    let base = header + 8;
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for (name, info) in metadata.tensors() {
        if !wanted(&name) {
            others.push(name);
            continue;
        }
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        ensure!(from <= to && base.checked_add(to).is_some_and(|n| n <= size), "'{name}' is cut off");
        let dims: Vec<i64> = info.shape.iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>()?;
        let element = element(info.dtype).with_context(|| format!("tensor '{name}'"))?;
        let wanted = TensorProto::from_raw(element, &dims, Vec::new()).byte_size()?;
        ensure!(to - from == wanted as u64, "'{name}' has {} bytes for dimensions {dims:?}", to - from);
        found.push(Lies { name, element, dims, start: base + from, length: to - from });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    others.sort();
    Ok((found, others))
}

/// A number that other bytes most likely do not have (FNV-1a).
pub struct Fingerprint(u64);

impl Fingerprint {
    /// The fingerprint of no bytes, to which others are added.
    pub fn new() -> Self {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }

    /// That with more bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// As text.
    pub fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// The [`Fingerprint`] of names and elements, in their order.
pub fn fingerprint<'t>(tensors: impl IntoIterator<Item = (&'t str, &'t [u8])>) -> String {
    let mut found = Fingerprint::new();
    for (name, elements) in tensors {
        found.add(name.as_bytes());
        found.add(elements);
    }
    found.text()
}

/// No header of a safetensors file is longer.
const LONGEST_HEADER: u64 = 100_000_000;

const TYPES: &[(ElementType, Dtype)] = &[
    (ElementType::Float, Dtype::F32),
    (ElementType::Double, Dtype::F64),
    (ElementType::Float16, Dtype::F16),
    (ElementType::Bfloat16, Dtype::BF16),
    (ElementType::Int64, Dtype::I64),
    (ElementType::Int32, Dtype::I32),
    (ElementType::Int16, Dtype::I16),
    (ElementType::Int8, Dtype::I8),
    (ElementType::Uint64, Dtype::U64),
    (ElementType::Uint32, Dtype::U32),
    (ElementType::Uint16, Dtype::U16),
    (ElementType::Uint8, Dtype::U8),
    (ElementType::Bool, Dtype::BOOL),
];

fn dtype(element: ElementType) -> Result<Dtype> {
    let found = TYPES.iter().find(|t| t.0 == element).map(|t| t.1);
    found.with_context(|| format!("safetensors has no elements of type {}", element.name()))
}

fn element(dtype: Dtype) -> Result<ElementType> {
    match TYPES.iter().find(|t| t.1 == dtype) {
        Some(t) => Ok(t.0),
        None => bail!("elements of type {dtype:?} have no place in a model"),
    }
}

/// Pseudo-random numbers that are the same everywhere: splitmix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers that follow from a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The numbers below `n` in a random order.
    pub fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, (self.bits() % (i as u64 + 1)) as usize);
        }
        order
    }
}
