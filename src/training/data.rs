//! Data to train with: tensors by name, of which the first dimension counts the samples.

use super::manifest::{Input, Manifest};
use super::state::{self, State};
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
            let tensors = if start == b"PK" { npz(path)? } else { state::read(path).map(|(t, _)| t).map_err(inner)? };
            Data::new(tensors, manifest)
        };
        read().with_context(|| path.display().to_string())
    }

    /// Takes from tensors what the model needs.
    ///
    /// # Errors
    /// Those of [`Data::read`].
    pub fn new(tensors: State, manifest: &Manifest) -> Result<Self> {
        let mut given: BTreeMap<String, TensorProto> = tensors.into_iter().collect();
        let mut data = Data::default();
        for (i, input) in manifest.data.iter().chain(&manifest.labels).enumerate() {
            let found = given.keys().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
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
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for (name, tensor) in &self.tensors {
            for byte in name.bytes().chain(tensor.raw_data.iter().flatten().copied()) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        format!("{hash:016x}")
    }
}

/// An error without the path, which is said once.
fn inner(error: anyhow::Error) -> anyhow::Error {
    match error.chain().nth(1) {
        Some(cause) => anyhow::anyhow!("{cause}; data come as .npz or .safetensors"),
        None => error,
    }
}

fn npz(path: &Path) -> Result<State> {
    let file = std::fs::File::open(path).map_err(file::plain)?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).context("not an .npz archive")?;
    let mut tensors = State::new();
    for i in 0..archive.len() {
        let entry = archive.by_index(i).context("a damaged archive")?;
        let name = entry.name().context("a name that is no text")?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
        let mut bytes = Vec::new();
        entry.take(LARGEST).read_to_end(&mut bytes).with_context(|| format!("'{name}' is damaged"))?;
        tensors.push((name.clone(), npy::from_npy(&bytes).with_context(|| format!("'{name}'"))?));
    }
    Ok(tensors)
}

/// The tensor as the input takes it.
fn checked(tensor: TensorProto, input: &Input) -> Result<TensorProto> {
    let wanted = ElementType::from_name(&input.r#type).context("the manifest gives it no type")?;
    let shape = |s: &[Option<i64>]| {
        s.iter().map(|d| d.map_or("any".to_owned(), |d| d.to_string())).collect::<Vec<_>>().join(", ")
    };
    let fits = tensor.dims.len() == input.shape.len()
        && tensor.dims.iter().zip(&input.shape).skip(1).all(|(d, s)| s.is_none_or(|s| s == *d));
    ensure!(fits, "shape {:?} does not fit the model's [{}]", tensor.dims, shape(&input.shape));
    ensure!(!input.shape.is_empty(), "a tensor without dimensions has no samples");
    let given = tensor.element_type();
    let tensor = if given == wanted {
        let mut whole = TensorProto::from_raw(given, &tensor.dims, npy::raw(&tensor)?);
        whole.name = None;
        whole
    } else if given.is_integer() && wanted == ElementType::Int64 && given != ElementType::Uint64 {
        TensorProto::from_ints(wanted, &tensor.dims, &tensor.integers()?)?
    } else {
        bail!("elements of type {}, the model takes {}", given.name(), wanted.name())
    };
    let per_sample = tensor.element_count().unwrap_or(0) / tensor.dims.first().map_or(1, |&n| n.max(1) as usize);
    let sample = |i: usize| i / per_sample.max(1);
    if wanted.is_float() {
        if let Some(i) = tensor.floats()?.iter().position(|v| !v.is_finite()) {
            bail!("sample {} holds a value that is no finite number", sample(i));
        }
    } else if let Some(classes) = input.classes {
        let wrong = |v: &i64| !(0..classes).contains(v) && Some(*v) != input.ignore;
        let values = tensor.integers()?;
        if let Some((i, v)) = values.iter().enumerate().find(|(_, v)| wrong(v)) {
            bail!("sample {} has the label {v}; the model has classes 0 to {}", sample(i), classes - 1);
        }
    }
    Ok(tensor)
}
