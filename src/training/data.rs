//! Data to train with: tensors by name, of which the first dimension counts the samples.

use super::manifest::{Input, Manifest};
use super::samples::{self, Column, Held};
use super::state::{Fingerprint, State};
use crate::error::InFile;
use crate::error::{Error, OrKind};
use crate::onnx::{ElementType, TensorProto, file};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Samples of equally many tensors, which stay in their files: a batch is read at a time.
#[derive(Clone, Debug, Default)]
pub struct Data {
    shards: Vec<Shard>,
    /// The type in which the model takes each tensor.
    types: BTreeMap<String, ElementType>,
    count: usize,
    fingerprint: String,
    /// The names of what the files hold beside, of which nothing has been read.
    pub skipped: Vec<String>,
}

/// The samples of one file.
#[derive(Clone, Debug)]
struct Shard {
    /// The number of its first sample.
    first: usize,
    columns: BTreeMap<String, Column>,
}

impl Data {
    /// Opens samples and looks through them once: an `.npz` or `.safetensors` file, told apart by their first bytes; a
    /// folder of such files, which are taken one after the other in the order of their names (shards); or a folder of
    /// `.npy` files, of which each holds the tensor of its name.
    ///
    /// # Errors
    /// A file that is none of these; tensors that are missing, of other types or shapes, not finite, or no classes. The
    /// message starts with the path.
    pub fn read(path: &Path, manifest: &Manifest) -> Result<Self, Error> {
        Self::read_from(path, manifest).or_kind(Error::invalid_data)
    }

    fn read_from(path: &Path, manifest: &Manifest) -> Result<Self> {
        let takes = |name: &str| inputs(manifest).any(|i| i.name == name);
        let read = || -> Result<Data> {
            if !path.is_dir() {
                return Data::of([(path.to_owned(), samples::open(path, &takes)?)], manifest);
            }
            let arrays = files(path, &["npy"])?;
            if !arrays.is_empty() {
                return Data::of([(path.to_owned(), samples::open_arrays(&arrays, &takes)?)], manifest);
            }
            let shards = files(path, &["npz", "safetensors"])?;
            ensure!(!shards.is_empty(), "it holds no .npy files and no shards (.npz, .safetensors)");
            let open = |shard: &PathBuf| {
                let held = samples::open(shard, &takes).in_file(shard)?;
                Ok((shard.clone(), held))
            };
            Data::of(shards.iter().map(open).collect::<Result<Vec<_>>>()?, manifest)
        };
        read().in_file(path)
    }

    /// Takes from tensors what the model needs.
    ///
    /// # Errors
    /// As [`Data::read`].
    pub fn new(tensors: State, manifest: &Manifest) -> Result<Self, Error> {
        let held = || Data::of([(PathBuf::new(), samples::of_state(tensors)?)], manifest);
        held().or_kind(Error::invalid_data)
    }

    fn of(files: impl IntoIterator<Item = (PathBuf, Held)>, manifest: &Manifest) -> Result<Self> {
        let files: Vec<_> = files.into_iter().collect();
        let mut data = Data::default();
        let several = files.len() > 1;
        for (path, held) in files {
            let shard = data.shard(held, manifest);
            let shard = if several { shard.in_file(&path) } else { shard };
            data.shards.extend(shard?);
        }
        ensure!(data.count > 0, "it holds no samples");
        data.skipped.sort();
        data.skipped.dedup();
        for input in inputs(manifest) {
            let wanted = ElementType::from_name(&input.r#type).context("the manifest gives it no type")?;
            data.types.insert(input.name.clone(), wanted);
        }
        data.look_through(manifest)?;
        Ok(data)
    }

    /// The samples of a file as they come behind those before; `None` where there are none.
    fn shard(&mut self, (columns, skipped): Held, manifest: &Manifest) -> Result<Option<Shard>> {
        let mut given: BTreeMap<String, Column> = columns.into_iter().collect();
        let found: Vec<String> = given.keys().chain(&skipped).map(|n| format!("'{n}'")).collect();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        self.skipped.extend(skipped);
        let mut shard = Shard { first: self.count, columns: BTreeMap::new() };
        let mut count = None;
        for input in inputs(manifest) {
            let column = given
                .remove(&input.name)
                .with_context(|| format!("it holds no '{}', which the model takes; it holds {found}", input.name))?;
            fits(&column, input).with_context(|| format!("'{}'", input.name))?;
            let (own, before) = (column.count(), *count.get_or_insert(column.count()));
            ensure!(own == before, "'{}' has {own} samples, the tensors before it have {before}", input.name);
            shard.columns.insert(input.name.clone(), column);
        }
        for (name, column) in &mut shard.columns {
            column.unpack().with_context(|| format!("'{name}'"))?;
        }
        let count = count.unwrap_or(0);
        self.count += count;
        Ok((count > 0).then_some(shard))
    }

    /// Reads all samples once, some at a time: whether the model can take each, and the fingerprint.
    fn look_through(&mut self, manifest: &Manifest) -> Result<()> {
        let mut fingerprint = Fingerprint::new();
        for (name, &wanted) in &self.types {
            let input = inputs(manifest).find(|i| i.name == *name).context("an input has gone")?;
            fingerprint.add(name.as_bytes());
            for shard in &self.shards {
                let column = shard.columns.get(name).context("a tensor has gone")?;
                let (count, some) = (column.count(), column.handful());
                for first in (0..count).step_by(some) {
                    let samples = some.min(count - first);
                    let look = || {
                        let mut raw = Vec::new();
                        column.read(first, samples, &mut raw)?;
                        let tensor = taken(column, samples, raw, wanted)?;
                        let raw = tensor.raw_data.unwrap_or_default();
                        ensure_values(&raw, wanted, input, (shard.first + first, samples))?;
                        anyhow::Ok(raw)
                    };
                    fingerprint.add(&look().with_context(|| format!("'{name}'"))?);
                }
            }
        }
        self.fingerprint = fingerprint.text();
        Ok(())
    }

    /// How many samples there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The samples of these numbers, in their order.
    ///
    /// # Errors
    /// A number of no sample; a file that can no longer be read.
    pub fn batch(&self, samples: &[usize]) -> Result<State> {
        let take = |(name, &wanted): (&String, &ElementType)| {
            let (mut raw, mut like) = (Vec::new(), None);
            for &sample in samples {
                let shard = self.shards.partition_point(|s| s.first <= sample).checked_sub(1);
                let shard = shard.and_then(|k| self.shards.get(k)).with_context(|| format!("no sample {sample}"))?;
                let column = shard.columns.get(name).context("a tensor has gone")?;
                let kind: &Column = like.get_or_insert(column);
                ensure!(kind.element == column.element, "'{name}' is of several types");
                column.read(sample - shard.first, 1, &mut raw)?;
            }
            let column = like.or_else(|| self.shards.first()?.columns.get(name)).context("no samples")?;
            Ok((name.clone(), taken(column, samples.len(), raw, wanted)?))
        };
        self.types.iter().map(take).collect()
    }

    /// A number that other data most likely do not have.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

fn inputs(manifest: &Manifest) -> impl Iterator<Item = &Input> {
    manifest.data.iter().chain(&manifest.labels)
}

/// The files of a folder with one of these endings, in the order of their names.
fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(file::plain)? {
        let path = entry.map_err(file::plain)?.path();
        if path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a tensor has the dimensions and a type that the input takes.
fn fits(column: &Column, input: &Input) -> Result<()> {
    let wanted = ElementType::from_name(&input.r#type).context("the manifest gives it no type")?;
    let shape = |s: &[Option<i64>]| {
        s.iter().map(|d| d.map_or("any".to_owned(), |d| d.to_string())).collect::<Vec<_>>().join(", ")
    };
    let dims = &column.dims;
    let fits = dims.len() == input.shape.len()
        && dims.iter().zip(&input.shape).skip(1).all(|(d, s)| s.is_none_or(|s| s == *d));
    let one_hot = input.classes.is_some_and(|n| dims.len() == input.shape.len() + 1 && dims.contains(&n));
    ensure!(
        !one_hot,
        "shape {dims:?} is that of a number for each class (one-hot): the model takes class numbers of shape [{}]; make it \
         trainable with the loss's option soft to give probabilities of classes",
        shape(&input.shape)
    );
    ensure!(fits, "shape {dims:?} does not fit the model's [{}]", shape(&input.shape));
    ensure!(!input.shape.is_empty(), "a tensor without dimensions has no samples");
    ensure!(
        column.element == wanted || is_widened(column.element, wanted),
        "elements of type {}, the model takes {}",
        column.element.name(),
        wanted.name()
    );
    Ok(())
}

/// Whether integers of one type are taken for those of another.
fn is_widened(given: ElementType, wanted: ElementType) -> bool {
    given.is_integer() && wanted == ElementType::Int64 && given != ElementType::Uint64
}

/// So many samples of a tensor, in the type that the model takes.
fn taken(column: &Column, samples: usize, raw: Vec<u8>, wanted: ElementType) -> Result<TensorProto> {
    let mut dims = column.dims.clone();
    if let Some(first) = dims.first_mut() {
        *first = samples as i64;
    }
    let tensor = TensorProto::from_raw(column.element, &dims, raw);
    match column.element == wanted {
        true => Ok(tensor),
        false => TensorProto::from_ints(wanted, &dims, &tensor.integers()?),
    }
}

/// Whether the model can take the values of so many samples from a number on.
fn ensure_values(raw: &[u8], wanted: ElementType, input: &Input, (first, samples): (usize, usize)) -> Result<()> {
    let elements = wanted.bits().map_or(0, |bits| raw.len() * 8 / bits);
    let sample = |i: usize| first + i / (elements / samples.max(1)).max(1);
    if wanted.is_float() {
        if let Some(i) = non_finite(wanted, raw) {
            bail!("sample {} holds a value that is no finite number", sample(i));
        }
    } else if let Some(classes) = input.classes.filter(|_| wanted == ElementType::Int64) {
        let labels = raw.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b));
        let wrong = |v: i64| !(0..classes).contains(&v) && Some(v) != input.ignore;
        if let Some((i, v)) = labels.enumerate().find(|&(_, v)| wrong(v)) {
            bail!("sample {} has the label {v}; the model has classes 0 to {}", sample(i), classes - 1);
        }
    }
    Ok(())
}

/// The first element that is infinite or no number. Nothing is copied: data may fill most of the memory.
fn non_finite(element: ElementType, raw: &[u8]) -> Option<usize> {
    let words = |ones: u16| raw.as_chunks::<2>().0.iter().position(|&b| u16::from_le_bytes(b) & ones == ones);
    match element {
        ElementType::Float => raw.as_chunks::<4>().0.iter().position(|&b| !f32::from_le_bytes(b).is_finite()),
        ElementType::Double => raw.as_chunks::<8>().0.iter().position(|&b| !f64::from_le_bytes(b).is_finite()),
        // All bits of the exponent are ones.
        ElementType::Float16 => words(0x7c00),
        ElementType::Bfloat16 => words(0x7f80),
        _ => None,
    }
}
