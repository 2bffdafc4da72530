//! Tensors in files of their own: NumPy's `.npy`, and ONNX's `.pb`, which holds a TensorProto.

use super::file::{check_tensor, read_whole, replace};
use super::{ElementType, TensorProto};
use crate::error::{self, Error, InFile, OrKind};
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};
use prost::Message;
use std::io::Write;
use std::path::Path;

/// Reads a tensor from a `.npy` or `.pb` file, told apart by their first bytes.
///
/// # Errors
/// A file that cannot be read, is neither, or has elements of no ONNX type; the message starts with the path.
pub fn read_tensor(path: &Path) -> Result<TensorProto> {
    let read = || {
        let bytes = read_whole(path)?;
        if bytes.starts_with(b"\x93NUMPY") {
            return from_npy(bytes);
        }
        let tensor = TensorProto::decode(bytes).ok().filter(|t| t.element_type() != ElementType::Undefined);
        let tensor = tensor.context("neither a .npy file nor a TensorProto (.pb)")?;
        ensure!(!tensor.is_external(), "its elements are in another file");
        check_tensor(&tensor)?;
        Ok(tensor)
    };
    let read = read().or_kind(Error::invalid_data);
    read.in_file(path)
}

/// Writes a tensor as a `.npy` file; strings and types that NumPy does not have are an error. An existing file is
/// replaced with `force` only.
///
/// # Errors
/// Element types without a counterpart in NumPy; elements that do not fit the dimensions; a file that cannot be
/// written.
pub fn write_npy(tensor: &TensorProto, path: &Path, force: bool) -> Result<()> {
    let write = || {
        let bytes = to_npy(tensor)?;
        replace(path, force, |out| out.write_all(&bytes))
    };
    write().in_file(path)
}

/// The element types that NumPy has, with its names for them; integers and floats in ONNX's, little-endian, byte order.
const TYPES: [(ElementType, TypeChar, u64, &str); 14] = [
    (ElementType::Float, TypeChar::Float, 4, "<f4"),
    (ElementType::Double, TypeChar::Float, 8, "<f8"),
    (ElementType::Float16, TypeChar::Float, 2, "<f2"),
    (ElementType::Int8, TypeChar::Int, 1, "|i1"),
    (ElementType::Int16, TypeChar::Int, 2, "<i2"),
    (ElementType::Int32, TypeChar::Int, 4, "<i4"),
    (ElementType::Int64, TypeChar::Int, 8, "<i8"),
    (ElementType::Uint8, TypeChar::Uint, 1, "|u1"),
    (ElementType::Uint16, TypeChar::Uint, 2, "<u2"),
    (ElementType::Uint32, TypeChar::Uint, 4, "<u4"),
    (ElementType::Uint64, TypeChar::Uint, 8, "<u8"),
    (ElementType::Bool, TypeChar::Bool, 1, "|b1"),
    (ElementType::Complex64, TypeChar::Complex, 8, "<c8"),
    (ElementType::Complex128, TypeChar::Complex, 16, "<c16"),
];

/// No header of a tensor is longer: its three entries take some 60 bytes and a number a dimension.
pub(crate) const LONGEST_HEADER: usize = 4096;

/// No memory holds more, and the bytes of so many are still a number.
const MOST_ELEMENTS: u64 = 1 << 48;

/// Checks that the header of a `.npy` file has the form that NumPy gives to those of tensors: one dictionary with one
/// tuple in it. What nests more deeply is not shown to the parser, whose time grows with every level by a factor.
fn check_header(bytes: &[u8]) -> Result<()> {
    let length = match bytes.get(6) {
        Some(1) => bytes.get(8..10).and_then(|n| n.try_into().ok()).map(|n| (10, usize::from(u16::from_le_bytes(n)))),
        _ => (bytes.get(8..12).and_then(|n| n.try_into().ok()))
            .and_then(|n| Some((12, usize::try_from(u32::from_le_bytes(n)).ok()?))),
    };
    let (start, length) = length.context("its header is cut off")?;
    ensure!(length <= LONGEST_HEADER, "its header has {length} bytes, no tensor's has more than {LONGEST_HEADER}");
    let header = bytes.get(start..start + length).context("its header is cut off")?;
    let brackets: Vec<u8> = header.iter().copied().filter(|b| b"[](){}".contains(b)).collect();
    ensure!(!brackets.starts_with(b"{["), "records are not tensors");
    ensure!(brackets == b"{()}", "its header is not that of a tensor");
    // The parser multiplies the sizes, and those of elements, without looking.
    let sizes = header.split(|&b| b == b'(').nth(1).and_then(|rest| rest.split(|&b| b == b')').next());
    let mut sizes = sizes.unwrap_or_default().split(|&b| b == b',').map(std::str::from_utf8);
    // What is no number is the parser's to refuse.
    let count = sizes.try_fold(1u64, |n, size| match size.unwrap_or_default().trim() {
        digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            n.checked_mul(digits.parse::<u64>().ok()?.max(1))
        }
        _ => Some(n),
    });
    ensure!(count.is_some_and(|n| n <= MOST_ELEMENTS), "its shape is too large");
    Ok(())
}

/// What the header of a `.npy` file says.
pub(crate) struct Header {
    /// The element type.
    pub element: ElementType,
    /// How many bytes precede the elements.
    pub length: usize,
    char: TypeChar,
    /// The bytes of an element.
    size: usize,
    shape: Vec<usize>,
    fortran: bool,
    big: bool,
}

impl Header {
    /// Reads the header that a file begins with. What follows need not be there.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        check_header(bytes).context("not a valid .npy file")?;
        let mut rest = bytes;
        let header = NpyHeader::from_reader(&mut rest).map_err(|e| anyhow!("not a valid .npy file: {e}"))?;
        let DType::Plain(dtype) = header.dtype() else { bail!("records are not tensors") };
        let known = TYPES.iter().find(|t| t.1 == dtype.type_char() && t.2 == dtype.size_field());
        let &(element, char, size, _) = known.with_context(|| format!("elements of type {dtype} have no ONNX type"))?;
        let shape: Option<Vec<usize>> = header.shape().iter().map(|&d| usize::try_from(d).ok()).collect();
        Ok(Header {
            element,
            length: bytes.len() - rest.len(),
            char,
            size: usize::try_from(size)?,
            shape: shape.context("its shape is too large")?,
            fortran: header.order() == Order::Fortran,
            big: dtype.endianness() == Endianness::Big,
        })
    }

    /// Whether the elements lie as ONNX has them.
    pub(crate) fn is_plain(&self) -> bool {
        !self.fortran && !self.big
    }

    pub(crate) fn dims(&self) -> Result<Vec<i64>> {
        Ok(self.shape.iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>()?)
    }

    /// Brings the elements into ONNX's order, some of the first dimension at a time: `take` reads bytes from a position
    /// behind the header on, `give` gets what comes next. A block has about `most` bytes.
    pub(crate) fn rearranged(
        &self,
        most: usize,
        mut take: impl FnMut(usize, &mut [u8]) -> Result<()>,
        mut give: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (count, rest) = self.shape.split_first().map_or((1, &[][..]), |(&n, rest)| (n, rest));
        if count == 0 || rest.contains(&0) {
            return Ok(());
        }
        let inner: usize = rest.iter().product();
        let sample = inner * self.size;
        let step = (most / sample).clamp(1, count);
        let word = if self.char == TypeChar::Complex { self.size / 2 } else { self.size };
        let buffer = |bytes: usize| -> Result<Vec<u8>> {
            let mut buffer = Vec::new();
            error::reserve(&mut buffer, bytes)?;
            buffer.resize(bytes, 0);
            Ok(buffer)
        };
        let mut block = buffer(step * sample)?;
        let mut column = if self.fortran { buffer(step * self.size)? } else { Vec::new() };
        for first in (0..count).step_by(step) {
            let samples = step.min(count - first);
            let block = block.get_mut(..samples * sample).context("a block is too small")?;
            if self.fortran {
                let column = column.get_mut(..samples * self.size).context("a column is too small")?;
                // In the file the first dimension is the fastest; so a column is an element of each sample.
                for (k, place) in columns(rest).enumerate() {
                    take((k * count + first) * self.size, column)?;
                    let places = block.chunks_exact_mut(self.size).skip(place).step_by(inner);
                    places.zip(column.chunks_exact(self.size)).for_each(|(to, from)| to.copy_from_slice(from));
                }
            } else {
                take(first * sample, block)?;
            }
            if self.big {
                block.chunks_exact_mut(word).for_each(<[u8]>::reverse);
            }
            give(block)?;
        }
        Ok(())
    }

    /// Checks that as many bytes follow as the shape asks for.
    pub(crate) fn ensure_length(&self, bytes: u64) -> Result<()> {
        let count = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).context("its shape is too large")?;
        let wanted = count.checked_mul(self.size).map(|n| n as u64);
        ensure!(Some(bytes) == wanted, "{bytes} bytes for shape {:?}", self.shape);
        Ok(())
    }
}

/// The elements of a shape as they come with the first dimension fastest: for each where it lies with the last one
/// fastest.
fn columns(shape: &[usize]) -> impl Iterator<Item = usize> {
    let strides = shape.iter().rev().scan(1, |next, &d| Some(std::mem::replace(next, *next * d)));
    let strides: Vec<usize> = strides.collect::<Vec<_>>().into_iter().rev().collect();
    let mut index = vec![0; shape.len()];
    (0..shape.iter().product()).scan(0, move |place, _| {
        let now = *place;
        for ((i, &d), &stride) in index.iter_mut().zip(shape).zip(&strides) {
            *i += 1;
            *place += stride;
            if *i < d {
                break;
            }
            *place -= stride * d;
            *i = 0;
        }
        Some(now)
    })
}

/// The tensor of a `.npy` file, whose elements stay where they are if they lie as ONNX has them.
pub(crate) fn from_npy(bytes: Bytes) -> Result<TensorProto> {
    let header = Header::read(&bytes)?;
    let rest = bytes.slice(header.length..);
    header.ensure_length(rest.len() as u64)?;
    let (element, dims) = (header.element, header.dims()?);
    if header.is_plain() {
        return Ok(TensorProto { raw_data: Some(rest), ..TensorProto::from_raw(element, &dims, Vec::new()) });
    }
    let mut raw = Vec::with_capacity(rest.len());
    let take = |from: usize, into: &mut [u8]| {
        into.copy_from_slice(rest.get(from..from + into.len()).context("it is cut off")?);
        Ok(())
    };
    header.rearranged(usize::MAX, take, |block| {
        raw.extend_from_slice(block);
        Ok(())
    })?;
    Ok(TensorProto::from_raw(element, &dims, raw))
}

fn to_npy(tensor: &TensorProto) -> Result<Vec<u8>> {
    let element = tensor.element_type();
    let known = TYPES.iter().find(|t| t.0 == element);
    let &(.., descr) = known.with_context(|| format!("NumPy has no elements of type {}", element.name()))?;
    check_tensor(tensor)?;
    let shape: String = tensor.dims.iter().map(|d| format!("{d}, ")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    // The elements start at a multiple of 64; 10 bytes precede the header and a line feed ends it.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(padded).context("too many dimensions")?.to_le_bytes());
    bytes.extend(format!("{header:<0$}\n", padded - 1).bytes());
    bytes.extend(raw(tensor)?);
    Ok(bytes)
}

/// The elements as little-endian bytes, from whatever field holds them.
pub(crate) fn raw(tensor: &TensorProto) -> Result<Vec<u8>> {
    use ElementType as E;
    ensure!(!tensor.is_external(), "its elements are in another file");
    if let Some(raw) = &tensor.raw_data {
        return Ok(raw.to_vec());
    }
    Ok(match tensor.element_type() {
        E::Float | E::Complex64 => tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        E::Double | E::Complex128 => tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        E::Float16 => tensor.int32_data.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect(),
        element => {
            let values = tensor.integers()?;
            TensorProto::from_ints(element, &tensor.dims, &values)?.raw_data.unwrap_or_default().to_vec()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `.npy` file of the numbers that `of` gives to each index, in an order of dimensions and bytes.
    fn file(shape: [usize; 3], descr: &str, fortran: bool, of: impl Fn([usize; 3]) -> f32) -> Vec<u8> {
        let flag = if fortran { "True" } else { "False" };
        let [a, b, c] = shape;
        let header = format!("{{'descr': '{descr}', 'fortran_order': {flag}, 'shape': ({a}, {b}, {c}), }}\n");
        let mut bytes = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat();
        for n in 0..a * b * c {
            let index = match fortran {
                true => [n % a, n / a % b, n / a / b],
                false => [n / c / b, n / c % b, n % c],
            };
            let number = of(index);
            bytes.extend(if descr == ">f4" { number.to_be_bytes() } else { number.to_le_bytes() });
        }
        bytes
    }

    #[test]
    fn elements_come_in_one_order_however_many_at_a_time() {
        let number = |[i, j, k]: [usize; 3]| (100 * i + 10 * j + k) as f32;
        for shape in [[5, 3, 4], [1, 3, 1], [7, 1, 2], [0, 3, 4], [3, 0, 4]] {
            let plain = from_npy(file(shape, "<f4", false, number).into()).unwrap().raw_data.unwrap();
            for (descr, fortran) in [("<f4", true), (">f4", true), (">f4", false), ("<f4", false)] {
                let bytes = file(shape, descr, fortran, number);
                let tensor = from_npy(bytes.clone().into()).unwrap();
                assert_eq!(tensor.dims, shape.map(|d| d as i64));
                assert_eq!(tensor.raw_data.unwrap(), plain, "{shape:?} {descr} {fortran}");
                let header = Header::read(&bytes).unwrap();
                for most in [1, 100, 1000] {
                    let mut blocks = Vec::new();
                    let take = |from: usize, into: &mut [u8]| {
                        let from = header.length + from;
                        into.copy_from_slice(&bytes[from..from + into.len()]);
                        Ok(())
                    };
                    let give = |block: &[u8]| {
                        blocks.push(block.to_vec());
                        Ok(())
                    };
                    header.rearranged(most, take, give).unwrap();
                    assert_eq!(blocks.concat(), plain, "{shape:?} {descr} {fortran} {most}");
                }
            }
        }
    }
}
