//! Samples that stay in their files: of each tensor where its elements lie, of which a batch is read at a time.

use super::state::{self, State};
use crate::error::{self, InFile};
use crate::onnx::{ElementType, TensorProto, file, npy};
use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No array in an archive is larger: what is compressed may claim anything.
const LARGEST: u64 = 1 << 33;

/// The samples of one tensor; its first dimension counts them.
#[derive(Clone, Debug)]
pub struct Column {
    /// The type of its elements.
    pub element: ElementType,
    /// Its dimensions.
    pub dims: Vec<i64>,
    /// The bytes of a sample.
    size: usize,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// In a file, from a position on.
    File(Arc<File>, u64),
    /// In memory, where they were given.
    Memory(Bytes),
    /// Compressed in an archive, the entry of this number.
    Packed(Arc<File>, usize),
}

/// What a file holds: the tensors that are wanted, and the names of the others, of which nothing is read.
pub type Held = (Vec<(String, Column)>, Vec<String>);

impl Column {
    /// The samples of a tensor.
    ///
    /// # Errors
    /// Its elements are elsewhere.
    pub fn of(tensor: TensorProto) -> Result<Self> {
        let bytes = match &tensor.raw_data {
            Some(raw) => raw.clone(),
            None => npy::raw(&tensor)?.into(),
        };
        Column::at(tensor.element_type(), tensor.dims, bytes.len() as u64, Place::Memory(bytes))
    }

    fn at(element: ElementType, dims: Vec<i64>, length: u64, place: Place) -> Result<Self> {
        let samples = dims.first().map_or(1, |&n| n.max(1) as u64);
        Ok(Column { element, dims, size: usize::try_from(length / samples)?, place })
    }

    /// How many samples there are; none of a tensor without dimensions.
    pub fn count(&self) -> usize {
        self.dims.first().and_then(|&n| usize::try_from(n).ok()).unwrap_or(0)
    }

    /// How many samples come to about a megabyte.
    pub fn handful(&self) -> usize {
        ((1 << 20) / self.size.max(1)).max(1)
    }

    /// Reads samples that lie behind each other, and appends their bytes.
    ///
    /// # Errors
    /// The file cannot be read, or has become shorter.
    pub fn read(&self, first: usize, count: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let (from, length) = (first * self.size, count * self.size);
        let short = || format!("samples {first} to {} are not there", first + count - 1);
        match &self.place {
            Place::Packed(..) => return Err(anyhow!("its elements are still packed")),
            Place::Memory(all) => bytes.extend_from_slice(all.get(from..from + length).with_context(short)?),
            Place::File(file, start) => {
                let read = read_at(file, start + from as u64, length as u64, bytes)?;
                ensure!(read == length, short());
            }
        }
        Ok(())
    }
}

impl Column {
    /// Unpacks the samples, where they are compressed, into a file that no folder shows: what has been seen of them
    /// until now is their header.
    ///
    /// # Errors
    /// They are damaged, are others than the header says, or there is no room for them.
    pub fn unpack(&mut self) -> Result<()> {
        let Place::Packed(file, number) = self.place.clone() else { return Ok(()) };
        let mut archive = zip::ZipArchive::new(BufReader::new(&*file)).context("not an .npz archive")?;
        let entry = archive.by_index(number).context("a damaged archive")?;
        // One byte more than it claims, so that its checksum is compared and what is longer than it claims is noticed.
        let claimed = entry.size().min(LARGEST);
        let mut entry = entry.take(claimed + 1);
        let (mut copy, mut block, mut size) = (unnamed()?, vec![0; 1 << 16], 0);
        loop {
            let read = entry.read(&mut block).context("it is damaged")?;
            if read == 0 {
                break;
            }
            size += read as u64;
            copy.write_all(block.get(..read).unwrap_or_default()).context(NO_ROOM)?;
        }
        *self = array(&Arc::new(copy), 0, size)?;
        Ok(())
    }
}

/// What a file holds, told apart by its first bytes: an `.npz` archive, or a `.safetensors` file.
///
/// # Errors
/// It cannot be read, is damaged, or is neither.
pub fn open(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Held> {
    let mut start = Vec::new();
    // A batch is read from where it lies, which a pipe does not have.
    ensure!(!path.exists() || path.is_file(), "it is not a file");
    File::open(path).map_err(file::plain)?.take(2).read_to_end(&mut start).map_err(file::plain)?;
    match start == b"PK" {
        true => npz(path, wanted),
        false => safetensors(path, wanted),
    }
}

/// What the `.npy` files of a folder hold, each the tensor of its name.
///
/// # Errors
/// As [`open`].
pub fn open_arrays(files: &[PathBuf], wanted: &dyn Fn(&str) -> bool) -> Result<Held> {
    let (mut columns, mut others) = (Vec::new(), Vec::new());
    for path in files {
        let name = path.file_stem().and_then(|n| n.to_str()).context("a name that is no text")?.to_owned();
        if !wanted(&name) {
            others.push(name);
            continue;
        }
        let read = || {
            let file = Arc::new(File::open(path).map_err(file::plain)?);
            let size = file.metadata().map_err(file::plain)?.len();
            array(&file, 0, size)
        };
        columns.push((name, read().in_file(path)?));
    }
    Ok((columns, others))
}

/// Appends up to so many bytes of a file, from a place on; returns how many there are.
fn read_at(mut file: &File, start: u64, length: u64, bytes: &mut Vec<u8>) -> Result<usize> {
    error::reserve(bytes, usize::try_from(length)?)?;
    file.seek(SeekFrom::Start(start)).map_err(file::plain)?;
    file.take(length).read_to_end(bytes).map_err(file::plain)
}

/// About how many bytes are rearranged or unpacked at a time.
const BLOCK: usize = 16 << 20;

/// The tensor that lies as an `.npy` file does in `size` bytes of a file from `start` on. Where its elements lie in
/// another order than ONNX's it is copied into a file that no folder shows.
fn array(file: &Arc<File>, start: u64, size: u64) -> Result<Column> {
    let at = |position: u64| -> Result<&File> {
        let mut file = &**file;
        file.seek(SeekFrom::Start(position)).map_err(file::plain)?;
        Ok(file)
    };
    let mut bytes = Vec::new();
    read_at(file, start, size.min(npy::LONGEST_HEADER as u64 + 12), &mut bytes)?;
    let header = npy::Header::read(&bytes)?;
    let (first, length) = (start + header.length as u64, size - header.length as u64);
    header.ensure_length(length)?;
    let place = if header.is_plain() {
        Place::File(file.clone(), first)
    } else {
        let mut copy = unnamed()?;
        header.rearranged(
            BLOCK,
            |from, into| at(first + from as u64)?.read_exact(into).map_err(file::plain),
            |block| copy.write_all(block).context(NO_ROOM),
        )?;
        Place::File(Arc::new(copy), 0)
    };
    Column::at(header.element, header.dims()?, length, place)
}

const NO_ROOM: &str = "its copy cannot be written; TMPDIR says where there is room";

/// A file that goes when it is closed.
fn unnamed() -> Result<File> {
    tempfile::tempfile().context(NO_ROOM)
}

/// The arrays of an archive that are wanted. What is not compressed stays where it is.
fn npz(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Held> {
    let shared = Arc::new(File::open(path).map_err(file::plain)?);
    let mut archive = zip::ZipArchive::new(BufReader::new(&*shared)).context("not an .npz archive")?;
    let (mut columns, mut others) = (Vec::new(), Vec::new());
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).context("a damaged archive")?;
        let name = entry.name().context("a name that is no text")?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
        if !wanted(&name) {
            others.push(name);
            continue;
        }
        let damaged = || format!("'{name}' is damaged");
        let stored = entry.compression() == zip::CompressionMethod::Stored;
        let column = match entry.data_start().filter(|_| stored) {
            Some(start) => {
                // To read it through is to compare its checksum.
                let size = io::copy(&mut entry, &mut io::sink()).with_context(damaged)?;
                drop(entry);
                array(&shared, start, size)
            }
            None => {
                let (size, mut start) = (entry.size(), Vec::new());
                entry.take(npy::LONGEST_HEADER as u64 + 12).read_to_end(&mut start).with_context(damaged)?;
                packed(&start, size, Place::Packed(shared.clone(), i))
            }
        };
        let column = column.with_context(|| format!("'{name}'"))?;
        columns.push((name, column));
    }
    others.sort();
    Ok((columns, others))
}

/// A compressed array of so many bytes, by what it starts with.
fn packed(start: &[u8], size: u64, place: Place) -> Result<Column> {
    ensure!(size <= LARGEST, "it comes to {size} bytes: no array in an archive is larger than {LARGEST}");
    let header = npy::Header::read(start)?;
    let length = size.checked_sub(header.length as u64).context("it is cut off")?;
    header.ensure_length(length)?;
    Column::at(header.element, header.dims()?, length, place)
}

fn safetensors(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Held> {
    let file = Arc::new(File::open(path).map_err(file::plain)?);
    let (found, others) =
        state::layout(&file, wanted).map_err(|error| anyhow::anyhow!("{error}; data come as .npz or .safetensors"))?;
    let column = |t: state::Lies| {
        let place = Place::File(file.clone(), t.start);
        Ok((t.name, Column::at(t.element, t.dims, t.length, place)?))
    };
    Ok((found.into_iter().map(column).collect::<Result<_>>()?, others))
}

/// The samples of tensors that are in memory.
///
/// # Errors
/// As [`Column::of`].
pub fn of_state(tensors: State) -> Result<Held> {
    let column = |(name, tensor): (String, TensorProto)| Ok((name, Column::of(tensor)?));
    Ok((tensors.into_iter().map(column).collect::<Result<_>>()?, Vec::new()))
}
