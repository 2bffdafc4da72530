//! Elements of tensors that lie in files beside the model.
//!
//! A model is not trusted: its data may lie in its own folder and below, nowhere else, not by a symbolic link either.

use super::super::proto::{StringStringEntryProto, tensor_proto::DataLocation};
use super::super::{ModelProto, TensorProto};
use super::{plain, read_file, replace, visit};
use crate::error::InFile;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

/// Brings external data in: every tensor has its elements afterwards. `base` is the model's folder.
///
/// Each data file is read once; the tensors in it share its bytes.
///
/// # Errors
/// A data file that is missing or lies outside `base`; offsets and lengths outside the file, or that contradict the
/// tensor's dimensions.
pub fn load_external(model: &mut ModelProto, base: &Path) -> Result<()> {
    load_external_kept(model, base)?;
    forget_external(model);
    Ok(())
}

/// Forgets where elements lay that have been brought in.
pub fn forget_external(model: &mut ModelProto) {
    let forgotten = visit::tensors_mut(model, &mut |tensor| {
        if !tensor.is_external() {
            tensor.external_data.clear();
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let Ok(()) = forgotten;
}

/// Reads the elements of external tensors, which keep in mind where these lay: [`unload_external`] puts them there
/// again.
///
/// # Errors
/// The errors of [`load_external`].
pub fn load_external_kept(model: &mut ModelProto, base: &Path) -> Result<()> {
    let mut files: HashMap<String, Bytes> = HashMap::new();
    visit::tensors_mut(model, &mut |tensor| {
        if !tensor.is_external() {
            return Ok(());
        }
        let location = location(tensor)?.to_owned();
        let bytes = match files.get(&location) {
            Some(bytes) => bytes.clone(),
            None => {
                let path = resolve(base, &location)?;
                let bytes = read_file(&path, u64::MAX).and_then(|found| found.context("it is too large"));
                let bytes = bytes.with_context(|| location.clone())?;
                files.insert(location.clone(), bytes.clone());
                bytes
            }
        };
        let raw = part(tensor, &bytes).with_context(|| format!("tensor '{}' in '{location}'", tensor.name()))?;
        tensor.raw_data = Some(raw);
        tensor.data_location = None;
        Ok(())
    })
}

/// A file of elements that is to be written: what stands where, and where it ends.
#[derive(Default)]
struct Data {
    parts: BTreeMap<u64, Bytes>,
    end: u64,
}

impl Data {
    /// The place of elements: their own one, unless something else is there already.
    fn place(&mut self, offset: u64, bytes: &Bytes) -> u64 {
        /// Files are mapped into memory by pages.
        const PAGE: u64 = 4096;
        let end = |at: u64, b: &Bytes| at.saturating_add(b.len() as u64);
        if self.parts.get(&offset) == Some(bytes) {
            return offset;
        }
        let before = self.parts.range(..=offset).next_back().is_some_and(|(&at, b)| end(at, b) > offset);
        let behind = self.parts.range(offset..).next().is_some_and(|(&at, _)| at < end(offset, bytes));
        let at = if before || behind { self.end.next_multiple_of(PAGE) } else { offset };
        self.parts.insert(at, bytes.clone());
        self.end = self.end.max(end(at, bytes));
        at
    }

    fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut at = 0;
        for (&offset, bytes) in &self.parts {
            io::copy(&mut io::repeat(0).take(offset - at), out)?;
            out.write_all(bytes)?;
            at = offset + bytes.len() as u64;
        }
        Ok(())
    }
}

/// Puts the elements of tensors that [`load_external_kept`] has brought in into files again, at the offsets that they
/// had, in the folder of the model that is to be written; `name` says what the file of a location is called now. What
/// else the tensors say of their data stays, but for the checksum of a file that is called something else: it holds
/// something else.
///
/// # Errors
/// A file that exists already, without `force`, or cannot be written.
pub fn unload_external(
    model: &mut ModelProto,
    folder: &Path,
    name: &dyn Fn(&str) -> String,
    force: bool,
) -> Result<()> {
    let mut files: BTreeMap<String, Data> = BTreeMap::new();
    visit::tensors_mut(model, &mut |tensor| {
        if tensor.is_external() || tensor.external_data.is_empty() {
            return Ok::<(), anyhow::Error>(());
        }
        let old = location(tensor)?.to_owned();
        let new = name(&old);
        let Some(bytes) = tensor.raw_data.take() else {
            // It holds its elements in another form by now.
            tensor.external_data.clear();
            return Ok(());
        };
        let offset = entry(tensor, "offset").and_then(|text| text.parse().ok()).unwrap_or(0);
        let at = files.entry(new.clone()).or_default().place(offset, &bytes);
        tensor.external_data.retain(|e| e.key() != "checksum" || new == old);
        let mut say =
            |key: &str, value: String, anyway: bool| match tensor.external_data.iter_mut().find(|e| e.key() == key) {
                Some(entry) => entry.value = Some(value),
                None if anyway => {
                    tensor.external_data.push(StringStringEntryProto { key: Some(key.into()), value: Some(value) })
                }
                None => (),
            };
        say("location", new, true);
        say("offset", at.to_string(), at != offset);
        say("length", bytes.len().to_string(), false);
        tensor.data_location = Some(DataLocation::External as i32);
        Ok(())
    })?;
    if files.is_empty() {
        return Ok(());
    }
    let folder = fs::canonicalize(folder).map_err(plain).in_file(folder)?;
    for (name, data) in files {
        let written = place(&folder, &name).and_then(|path| replace(&path, force, |out| data.write(out)));
        written.with_context(|| format!("external data '{name}'"))?;
    }
    Ok(())
}

/// The bytes of a tensor in its data file.
fn part(tensor: &TensorProto, file: &Bytes) -> Result<Bytes> {
    let (offset, length) = extent(tensor)?;
    let end = offset.checked_add(length).filter(|&end| end <= file.len());
    let end =
        end.with_context(|| format!("{length} bytes at {offset} are not in the file, which has {}", file.len()))?;
    Ok(file.slice(offset..end))
}

/// Where the elements of an external tensor begin in their file, and how many bytes they take.
pub fn extent(tensor: &TensorProto) -> Result<(usize, usize)> {
    let number = |key| match entry(tensor, key) {
        Some(text) => text.parse().map(Some).map_err(|_| anyhow::anyhow!("its {key} '{text}' is not a number")),
        None => Ok(None),
    };
    let size = tensor.byte_size()?;
    let (offset, length): (usize, usize) = (number("offset")?.unwrap_or(0), number("length")?.unwrap_or(size));
    ensure!(length == size, "{length} bytes for {} of dimensions {:?}", tensor.element_type().name(), tensor.dims);
    Ok((offset, length))
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    tensor.external_data.iter().find(|e| e.key() == key).map(|e| e.value())
}

/// Whether a path that a file names stays in the folder that the file is in, by its words alone.
pub fn is_inside(path: &str) -> bool {
    let stays = Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    !path.is_empty() && stays && !path.contains('\\')
}

/// Where the elements of an external tensor lie, if that is a path that stays in the model's folder.
pub fn location(tensor: &TensorProto) -> Result<&str> {
    let location = entry(tensor, "location").unwrap_or_default();
    ensure!(!location.is_empty(), "external data without location");
    ensure!(is_inside(location), "external data outside the model's folder: '{location}'");
    Ok(location)
}

/// The external data files of a model.
pub fn locations(model: &ModelProto) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let walked = visit::tensors(model, &mut |tensor| {
        if tensor.is_external() {
            found.extend(entry(tensor, "location").map(str::to_owned));
        }
        Ok::<(), anyhow::Error>(())
    });
    debug_assert!(walked.is_ok());
    found
}

/// The data file of a location, links followed.
fn resolve(base: &Path, location: &str) -> Result<PathBuf> {
    let found = || -> Result<PathBuf> {
        let base = fs::canonicalize(base).map_err(plain)?;
        let path = fs::canonicalize(base.join(location)).map_err(plain)?;
        ensure!(path.starts_with(&base), "it leads out of the model's folder");
        let metadata = fs::metadata(&path).map_err(plain)?;
        ensure!(metadata.is_file(), "it is not a file");
        #[cfg(unix)]
        ensure!(
            std::os::unix::fs::MetadataExt::nlink(&metadata) <= 1,
            "it is a hard link, of which nobody can say what else it is; a copy of it in its place is taken"
        );
        Ok(path)
    };
    found().with_context(|| format!("external data '{location}'"))
}

/// Makes the references to external data right for a model that moves from folder `from` into folder `to`.
///
/// Where the data lie in `to` or below, only the references change. Otherwise the data files are copied, since
/// references must not lead out of a model's folder; what is copied is returned, in words.
///
/// # Errors
/// Data files that are missing or lie outside `from`; a different file in the place of a copy, without `force`.
pub fn rebase_external(model: &mut ModelProto, from: &Path, to: &Path, force: bool) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let locations = locations(model);
    if locations.is_empty() {
        return Ok(notes);
    }
    let to = fs::canonicalize(to).map_err(plain).in_file(to)?;
    if fs::canonicalize(from).is_ok_and(|from| from == to) {
        return Ok(notes);
    }
    let mut moved = HashMap::new();
    for old in locations {
        let source = resolve(from, &old)?;
        if let Ok(below) = source.strip_prefix(&to) {
            let parts: Option<Vec<&str>> = below.iter().map(|part| part.to_str()).collect();
            moved.insert(old, parts.context("the path of external data is not valid text")?.join("/"));
            continue;
        }
        let copied = place(&to, &old).and_then(|target| copy(&source, &target, force));
        if copied.with_context(|| format!("cannot copy external data '{old}'"))? {
            notes.push(format!("copied the external data '{old}' into '{}'", to.display()));
        }
    }
    visit::tensors_mut(model, &mut |tensor| {
        if tensor.is_external() {
            for entry in tensor.external_data.iter_mut().filter(|e| e.key() == "location") {
                if let Some(new) = moved.get(entry.value()) {
                    entry.value = Some(new.clone());
                }
            }
        }
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(notes)
}

/// Where a copy of external data goes: into `to` or below, not where a link leads out of it. Folders that are missing
/// are made.
fn place(to: &Path, location: &str) -> Result<PathBuf> {
    let inside = |folder: &Path| fs::canonicalize(folder).is_ok_and(|found| found.starts_with(to));
    let target = to.join(location);
    let mut folder = to.to_owned();
    for part in Path::new(location).parent().into_iter().flat_map(Path::components) {
        folder.push(part);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(plain(error)),
            _ => ensure!(inside(&folder), "'{}' leads out of the folder of OUT", folder.display()),
        }
    }
    let link = fs::symlink_metadata(&target).is_ok_and(|found| found.is_symlink());
    ensure!(!link, "'{}' is a link, which is not followed in writing", target.display());
    Ok(target)
}

/// Copies a file unless an equal one is there; says whether it did.
fn copy(source: &Path, target: &Path, force: bool) -> Result<bool> {
    if target.exists() {
        if equal(source, target)? {
            return Ok(false);
        }
        if !force {
            bail!("a different '{}' exists already; --force replaces it", target.display());
        }
    }
    let mut source = File::open(source).map_err(plain)?;
    replace(target, force, |out| io::copy(&mut source, out).map(|_| ()))?;
    Ok(true)
}

fn equal(a: &Path, b: &Path) -> Result<bool> {
    if super::same_file(a, b) {
        return Ok(true);
    }
    let (a, b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (BufReader::new(a).bytes(), BufReader::new(b).bytes());
    loop {
        match (a.next().transpose()?, b.next().transpose()?) {
            (None, None) => return Ok(true),
            (x, y) if x != y => return Ok(false),
            _ => {}
        }
    }
}
