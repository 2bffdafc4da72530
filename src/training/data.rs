//! Data to train with: tensors by name, of which the first dimension counts the samples.

use super::manifest::{Input, Manifest};
use super::state::{self, State};
use crate::error::Error;
use crate::onnx::{ElementType, TensorProto, file, npy};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// No array in an archive is larger: what is compressed may claim anything.
const LARGEST: u64 = 1 << 33;

/// Tensors of equally many samples.
#[derive(Clone, Debug, Default)]
pub struct Data {
    tensors: BTreeMap<String, TensorProto>,
    count: usize,
    /// The names of what the file holds beside, of which nothing has been read.
    pub skipped: Vec<String>,
}

impl Data {
    /// Reads a `.npz` or `.safetensors` file, told apart by their first bytes, and takes what the model needs.
    ///
    /// # Errors
    /// A file that is neither; tensors that are missing, of other types or shapes, not finite, or no classes. The message
    /// starts with the path.
    pub fn read(path: &Path, manifest: &Manifest) -> Result<Self> {
        let read = || -> Result<Data> {
            let mut start = Vec::new();
            let file = std::fs::File::open(path).map_err(file::plain)?;
            (&file).take(2).read_to_end(&mut start)?;
            let takes = |name: &str| manifest.data.iter().chain(&manifest.labels).any(|i| i.name == name);
            let (tensors, skipped) =
                if start == b"PK" { npz(path, &takes)? } else { state::read_some(path, &takes).map_err(inner)? };
            Data::beside(tensors, skipped, manifest)
        };
        read().with_context(|| path.display().to_string())
    }

    /// Takes from tensors what the model needs.
    ///
    /// # Errors
    /// As [`Data::read`].
    pub fn new(tensors: State, manifest: &Manifest) -> Result<Self> {
        Data::beside(tensors, Vec::new(), manifest)
    }

    fn beside(tensors: State, skipped: Vec<String>, manifest: &Manifest) -> Result<Self> {
        let mut given: BTreeMap<String, TensorProto> = tensors.into_iter().collect();
        let found: Vec<String> = given.keys().chain(&skipped).map(|n| format!("'{n}'")).collect();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        let mut data = Data { skipped, ..Data::default() };
        for (i, input) in manifest.data.iter().chain(&manifest.labels).enumerate() {
            let tensor = given
                .remove(&input.name)
                .with_context(|| format!("it holds no '{}', which the model takes; it holds {found}", input.name))?;
            let tensor = checked(tensor, input).with_context(|| format!("'{}'", input.name))?;
            let count = tensor.dims.first().and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
            ensure!(
                i == 0 || count == data.count,
                "'{}' has {count} samples, the tensors before it have {}",
                input.name,
                data.count
            );
            data.count = count;
            data.tensors.insert(input.name.clone(), tensor);
        }
        ensure!(data.count > 0, "it holds no samples");
        Ok(data)
    }

    /// How many samples there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The samples of these numbers, in their order.
    pub fn batch(&self, samples: &[usize]) -> State {
        let take = |(name, tensor): (&String, &TensorProto)| {
            let raw = tensor.raw_data.as_deref().unwrap_or_default();
            let size = raw.len() / self.count.max(1);
            let rows = samples.iter().filter_map(|&i| raw.get(i * size..(i + 1) * size));
            let mut dims = tensor.dims.clone();
            if let Some(first) = dims.first_mut() {
                *first = samples.len() as i64;
            }
            (name.clone(), TensorProto::from_raw(tensor.element_type(), &dims, rows.flatten().copied().collect()))
        };
        self.tensors.iter().map(take).collect()
    }

    /// A number that other data most likely do not have (FNV-1a).
    pub fn fingerprint(&self) -> String {
        let elements =
            |(name, t): (&'_ String, &'_ TensorProto)| (name.clone(), t.raw_data.clone().unwrap_or_default());
        let elements: Vec<_> = self.tensors.iter().map(elements).collect();
        state::fingerprint(elements.iter().map(|(name, bytes)| (name.as_str(), bytes.as_ref())))
    }
}

/// An error without the path, which is said once.
fn inner(error: anyhow::Error) -> anyhow::Error {
    match error.chain().nth(1) {
        Some(cause) => anyhow::anyhow!("{cause}; data come as .npz or .safetensors"),
        None => error,
    }
}

/// Those arrays of an archive that are wanted, and the names of the others, which are not unpacked.
fn npz(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<(State, Vec<String>)> {
    let file = std::fs::File::open(path).map_err(file::plain)?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).context("not an .npz archive")?;
    let (mut tensors, mut others) = (State::new(), Vec::new());
    for i in 0..archive.len() {
        let entry = archive.by_index(i).context("a damaged archive")?;
        let name = entry.name().context("a name that is no text")?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
        if !wanted(&name) {
            others.push(name);
            continue;
        }
        let mut bytes = Vec::new();
        // What it claims to come to is asked for at once, so that nothing is moved as it grows.
        let claimed = usize::try_from(entry.size().min(LARGEST)).unwrap_or(0);
        let room = bytes.try_reserve_exact(claimed);
        room.map_err(|_| Error::out_of_memory(format_args!("there is no memory for the {claimed} bytes of '{name}'")))?;
        entry.take(LARGEST).read_to_end(&mut bytes).with_context(|| format!("'{name}' is damaged"))?;
        tensors.push((name.clone(), npy::from_npy(bytes.into()).with_context(|| format!("'{name}'"))?));
    }
    others.sort();
    Ok((tensors, others))
}

/// The tensor as the input takes it.
fn checked(tensor: TensorProto, input: &Input) -> Result<TensorProto> {
    let wanted = ElementType::from_name(&input.r#type).context("the manifest gives it no type")?;
    let shape = |s: &[Option<i64>]| {
        s.iter().map(|d| d.map_or("any".to_owned(), |d| d.to_string())).collect::<Vec<_>>().join(", ")
    };
    let fits = tensor.dims.len() == input.shape.len()
        && tensor.dims.iter().zip(&input.shape).skip(1).all(|(d, s)| s.is_none_or(|s| s == *d));
    let one_hot = input.classes.is_some_and(|n| tensor.dims.len() == input.shape.len() + 1 && tensor.dims.contains(&n));
    ensure!(
        !one_hot,
        "shape {:?} is that of a number for each class (one-hot): the model takes class numbers of shape [{}]; make it \
         trainable with the loss's option soft to give probabilities of classes",
        tensor.dims,
        shape(&input.shape)
    );
    ensure!(fits, "shape {:?} does not fit the model's [{}]", tensor.dims, shape(&input.shape));
    ensure!(!input.shape.is_empty(), "a tensor without dimensions has no samples");
    let given = tensor.element_type();
    let tensor = if given == wanted {
        let raw_data = match &tensor.raw_data {
            Some(raw) => raw.clone(),
            None => npy::raw(&tensor)?.into(),
        };
        TensorProto { raw_data: Some(raw_data), ..TensorProto::from_raw(given, &tensor.dims, Vec::new()) }
    } else if given.is_integer() && wanted == ElementType::Int64 && given != ElementType::Uint64 {
        TensorProto::from_ints(wanted, &tensor.dims, &tensor.integers()?)?
    } else {
        bail!("elements of type {}, the model takes {}", given.name(), wanted.name())
    };
    let per_sample = tensor.element_count().unwrap_or(0) / tensor.dims.first().map_or(1, |&n| n.max(1) as usize);
    let sample = |i: usize| i / per_sample.max(1);
    let raw = tensor.raw_data.as_deref().unwrap_or_default();
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
    Ok(tensor)
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
