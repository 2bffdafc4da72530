//! Model files: read once into one buffer that the weights share, and written in pieces, so that a model is in memory
//! once.

mod census;
mod check;
mod diff;
mod encode;
mod external;
mod pieces;
mod splice;
#[cfg(test)]
mod tests;
pub(crate) mod unfinished;
mod visit;
pub mod wire;

pub use census::operators;
pub use diff::{Change, Difference, diff};
pub(crate) use external::{forget_external, load_external_kept, unload_external};
pub use external::{is_inside, load_external, locations, rebase_external};
pub use pieces::Appended;

use super::proto::TensorProto;
use super::{ModelProto, order};
use crate::error::{self, Error, InFile, OrKind};
use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use encode::Encoded;
use prost::Message;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// No protobuf message is larger: lengths are 32-bit numbers with a sign.
const LARGEST: u64 = i32::MAX as u64;

/// Reads a model file and checks that what it says of its tensors is consistent. External data stay where they are.
///
/// # Errors
/// A file that cannot be read or is no ONNX model; tensors whose elements contradict their dimensions; initializers of
/// equal names; external data outside the model's folder. The message starts with the path.
pub fn read(path: &Path) -> Result<ModelProto> {
    read_with_source(path).map(|(model, _)| model)
}

/// Reads a model file as [`read`] does, and keeps its bytes, which the model's weights share: for
/// [`Ready::source`].
///
/// # Errors
/// As [`read`].
pub fn read_with_source(path: &Path) -> Result<(ModelProto, Bytes)> {
    let read = || {
        let bytes = read_whole(path)?;
        anyhow::Ok((read_bytes(bytes.clone())?, bytes))
    };
    read().in_file(path)
}

/// Reads a model from the bytes of a file, as [`read`] does. The raw data of tensors share the bytes.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(bytes: Bytes) -> Result<ModelProto> {
    let read = || {
        ensure!(!bytes.is_empty(), "not an ONNX model: it is empty");
        let mut model = ModelProto::decode(bytes).map_err(not_a_model)?;
        check::model(&model)?;
        model.graph.iter_mut().for_each(order::sort);
        Ok(model)
    };
    Ok(read().or_kind(Error::invalid_model)?)
}

/// A file's bytes; one that could not be a protobuf message, because it is too large, is not read.
///
/// # Errors
/// The file cannot be read, or is larger.
pub fn read_whole(path: &Path) -> Result<Bytes> {
    let found = read_file(path, LARGEST)?;
    found.context("it is larger than 2 GB, the limit of protobuf: its weights belong into external data")
}

/// No list, settings, manifest or report is longer.
const LONGEST_TEXT: u64 = 1 << 28;

/// A file's text.
///
/// # Errors
/// The file cannot be read, is far too large, or is no text.
pub fn read_text(path: &Path) -> Result<String> {
    let found = read_file(path, LONGEST_TEXT)?.context("it is larger than 256 MB, too large for a text")?;
    String::from_utf8(found.into()).ok().context("it is no text")
}

/// A file's bytes; `None` for one of more than `limit`, of which nothing is kept. Devices and pipes, which tell no size
/// and may never end, are held to protobuf's limit as well.
///
/// # Errors
/// The file cannot be read, or there is no memory for it.
pub(crate) fn read_file(path: &Path, limit: u64) -> Result<Option<Bytes>> {
    let file = open_at_once(path).map_err(plain)?;
    let metadata = file.metadata().map_err(plain)?;
    if metadata.is_dir() {
        return Err(Error::io("it is a directory, not a file").into());
    }
    let limit = if metadata.is_file() { limit } else { limit.min(LARGEST) };
    if metadata.len() > limit {
        return Ok(None);
    }
    let (mut buffer, size) = (Vec::new(), usize::try_from(metadata.len()).unwrap_or(0));
    error::reserve(&mut buffer, size)?;
    if !metadata.is_file() {
        buffer.extend(await_writer(&file)?);
    }
    let most = limit.saturating_add(1).saturating_sub(buffer.len() as u64);
    file.take(most).read_to_end(&mut buffer).map_err(plain)?;
    Ok((buffer.len() as u64 <= limit).then(|| buffer.into()))
}

/// Opens a file, also a pipe that nobody writes to yet: to open that one otherwise would wait for a writer, for ever.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn open_at_once(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let at_once = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    File::options().read(true).custom_flags(at_once).open(path)
}

/// Waits until somebody writes to a pipe, and lets reading wait from there on. Returns what has been read meanwhile.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn await_writer(mut file: &File) -> Result<Option<u8>> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use std::io::ErrorKind;
    use std::os::unix::fs::FileTypeExt;
    use std::time::{Duration, Instant};
    const PATIENCE: Duration = Duration::from_secs(10);
    let (start, mut first) = (Instant::now(), [0]);
    let is_pipe = file.metadata().map_err(plain)?.file_type().is_fifo();
    let found = loop {
        match file.read(&mut first) {
            Ok(0) if !is_pipe => break None,
            Ok(0) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            Ok(0) => return Err(Error::io("it is a pipe, and nobody writes to it").into()),
            Ok(_) => break Some(first[0]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Err(error) => return Err(plain(error)),
        }
    };
    let flags = fcntl_getfl(file).map_err(|e| plain(e.into()))?;
    fcntl_setfl(file, flags - OFlags::NONBLOCK).map_err(|e| plain(e.into()))?;
    Ok(found)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn open_at_once(path: &Path) -> std::io::Result<File> {
    File::open(path)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn await_writer(_: &File) -> Result<Option<u8>> {
    Ok(None)
}

/// The bytes of a stream that is to hold a protobuf message, such as stdin.
///
/// # Errors
/// The stream cannot be read, or does not end where a message must have.
pub fn read_stream(stream: impl Read) -> Result<Bytes> {
    let mut buffer = Vec::new();
    stream.take(LARGEST + 1).read_to_end(&mut buffer).map_err(plain)?;
    within_limit(buffer.into())
}

/// The bytes, unless they are more than a protobuf message can have.
///
/// # Errors
/// They are.
pub(crate) fn within_limit(bytes: Bytes) -> Result<Bytes> {
    ensure!(bytes.len() as u64 <= LARGEST, "it is larger than 2 GB, the limit of protobuf");
    Ok(bytes)
}

fn not_a_model(error: prost::DecodeError) -> anyhow::Error {
    let text = error.to_string();
    let reason = text.strip_prefix("failed to decode Protobuf message: ").unwrap_or(&text);
    if reason.contains("recursion limit") {
        anyhow!("its graphs nest too deeply")
    } else if reason.contains("underflow") {
        anyhow!("not an ONNX model: it is cut off, or no protobuf file ({reason})")
    } else {
        anyhow!("not an ONNX model: {reason}")
    }
}

/// What the operating system says, in words without the error number.
pub(crate) fn plain(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::io("there is no such file").into(),
        std::io::ErrorKind::PermissionDenied => Error::io("permission denied").into(),
        std::io::ErrorKind::NotADirectory => Error::io("a part of its path is no folder").into(),
        _ => error.into(),
    }
}

/// What there is in bytes of a file that is to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready<'a> {
    /// The bytes of the file that the model was read from. What the model has in common with it is written as there,
    /// byte for byte, and fields of a newer version of the format, of which nothing is known here, stay.
    pub source: Option<&'a Bytes>,
    /// Nodes that come behind those of the model's graph.
    pub appended: Option<&'a Appended>,
}

/// How [`write()`] writes.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions<'a> {
    /// What there is already.
    pub ready: Ready<'a>,
    /// Whether an existing file is replaced.
    pub force: bool,
    /// The size in bytes above which initializers go into an external data file. At most, and by default, protobuf's
    /// own.
    pub limit: u64,
}

impl Default for WriteOptions<'_> {
    fn default() -> Self {
        WriteOptions { ready: Ready::default(), force: false, limit: LARGEST }
    }
}

/// Writes a model file: beside its place first, then renamed, so that a failure leaves nothing behind.
///
/// A model above the limit gets a second file, `<file name>.data`, with the elements of its initializers. Devices and
/// pipes are written to directly.
///
/// # Errors
/// An existing file without `force`; a folder that is not there; references to external data in the very files to be
/// written; a model that is too large even without its initializers.
pub fn write(model: &ModelProto, path: &Path, options: WriteOptions<'_>) -> Result<()> {
    ensure_writable(path, options.force)?;
    write_files(model, path, options).in_file(path)
}

/// Checks that [`write()`] may write to a path, before there is anything to be written.
///
/// # Errors
/// A directory, an existing file without `force`, a folder that is not there.
pub fn ensure_writable(path: &Path, force: bool) -> Result<()> {
    let problem = match fs::metadata(path) {
        Ok(found) if found.is_dir() => "it is a directory".to_owned(),
        Ok(found) if found.is_file() && !force => "it exists already; --force replaces it".to_owned(),
        Err(_) if !folder(path).is_dir() => format!("there is no folder '{}'", folder(path).display()),
        _ => return Ok(()),
    };
    Err(Error::io(problem)).in_file(path)
}

fn write_files(model: &ModelProto, path: &Path, options: WriteOptions<'_>) -> Result<()> {
    let ready = options.ready;
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return write_stream(model, ready, File::options().write(true).open(path).map_err(plain)?);
    }
    let name = path.file_name().and_then(|n| n.to_str()).context("its name is not valid text")?;
    let data_name = format!("{name}.data");
    for location in locations(model) {
        let overwritten = location == name || location == data_name;
        ensure!(!overwritten, "the model has external data in '{location}': choose another name");
    }
    let limit = options.limit.min(LARGEST);
    let encoded = Encoded::new(model, None, ready);
    if encoded.len() <= limit {
        return replace(path, options.force, |file| encoded.write(file));
    }
    let encoded = Encoded::new(model, Some(&data_name), ready);
    ensure!(
        encoded.len() <= LARGEST,
        "the model is larger than 2 GB, the limit of protobuf, even without its initializers"
    );
    let data_path = path.with_file_name(&data_name);
    replace(&data_path, options.force, |file| encoded.write_external(file)).with_context(|| data_name.clone())?;
    replace(path, options.force, |file| encoded.write(file)).inspect_err(|_| {
        let _ = fs::remove_file(&data_path);
    })
}

/// Writes a model to a stream, what it has in common with its source as there; see [`Ready::source`].
///
/// # Errors
/// The stream fails; a model above protobuf's limit of 2 GB.
pub fn write_stream(model: &ModelProto, ready: Ready<'_>, mut out: impl Write) -> Result<()> {
    encoded(model, ready)?.write(&mut out)?;
    Ok(out.flush()?)
}

/// The bytes of a model's file in pieces; those with weights share what the model holds.
///
/// # Errors
/// A model above protobuf's limit of 2 GB.
pub(crate) fn pieces(model: &ModelProto, ready: Ready<'_>) -> Result<Vec<Bytes>> {
    Ok(encoded(model, ready)?.into_pieces())
}

fn encoded<'a>(model: &'a ModelProto, ready: Ready<'_>) -> Result<Encoded<'a>> {
    let encoded = Encoded::new(model, None, ready);
    ensure!(encoded.len() <= LARGEST, "the model is larger than 2 GB, the limit of protobuf: write it to a file");
    Ok(encoded)
}

/// Writes a text as [`replace`] does; into a device or a pipe directly.
pub(crate) fn write_text(path: &Path, force: bool, text: &str) -> Result<()> {
    let written = match fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        true => {
            File::options().write(true).open(path).and_then(|mut out| out.write_all(text.as_bytes())).map_err(plain)
        }
        false => replace(path, force, |out| out.write_all(text.as_bytes())),
    };
    written.in_file(path)
}

/// Writes a file beside its place and renames it; nobody sees half of it.
pub(crate) fn replace(
    path: &Path,
    force: bool,
    write: impl FnOnce(&mut BufWriter<&mut NamedTempFile>) -> std::io::Result<()>,
) -> Result<()> {
    let folder = folder(path);
    let mut file =
        unfinished::file(folder).with_context(|| format!("cannot write into the folder '{}'", folder.display()))?;
    let mut out = BufWriter::new(&mut file);
    write(&mut out)?;
    out.flush()?;
    drop(out);
    let renamed = if force { file.persist(path) } else { file.persist_noclobber(path) };
    match renamed {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::io("it exists already; --force replaces it").into())
        }
        Err(error) => Err(plain(error.error)),
    }
}

/// The folder of a file, to be read from or written into.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether two paths lead to the same file, by whatever links. Files that do not exist are not the same.
pub fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (fs::metadata(a), fs::metadata(b)) {
        use std::os::unix::fs::MetadataExt;
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Whether what a tensor holds fits its dimensions; see [`read`].
pub(super) fn check_tensor(tensor: &TensorProto) -> Result<()> {
    check::tensor(tensor)
}
