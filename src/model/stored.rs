//! A tensor in a mapped file: its place, how its numbers are stored, and their conversion to the type that is asked for.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{CpuStorage, DType};
use half::{bf16, f16};
use rayon::prelude::*;

use super::gguf::BlockFormat;
use super::safetensors::Entry;

/// The number of values that a thread converts at a time: a multiple of every block's values.
const CHUNK: usize = 1 << 16;

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    /// F32, F16 or BF16, little-endian.
    Plain(DType),
    /// Quantised, in blocks of a GGUF file.
    Blocks(BlockFormat),
    /// A type that only a header names; such a tensor cannot be read.
    Other(String),
}

impl Format {
    /// Returns the format of a safetensors header's dtype.
    pub fn of_safetensors(dtype: String) -> Self {
        match dtype.as_str() {
            "F32" => Self::Plain(DType::F32),
            "F16" => Self::Plain(DType::F16),
            "BF16" => Self::Plain(DType::BF16),
            _ => Self::Other(dtype),
        }
    }

    /// Returns the narrowest dtype that holds every number of the format; none for an unreadable one.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Self::Plain(dtype) => Some(*dtype),
            // A scale of 11 bits times a number of up to 8 bits.
            Self::Blocks(_) => Some(DType::F32),
            Self::Other(_) => None,
        }
    }

    /// Returns the bytes that `values` numbers take; of blocks, those of whole ones.
    fn bytes(&self, values: usize) -> usize {
        match self {
            Self::Plain(dtype) => values * dtype.size_in_bytes(),
            Self::Blocks(blocks) => values / blocks.values * blocks.bytes,
            Self::Other(_) => 0,
        }
    }
}

/// The order in which a file has the rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The model's own.
    Plain,
    /// That of llama.cpp's rotary embedding: within each of `heads` heads, rows `i` and `i + dim / 2` lie side by side.
    Paired { heads: usize },
}

impl RowOrder {
    /// Returns the file's row of the model's row `row`, of `rows` rows.
    pub fn source(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Paired { heads } => {
                let dim = rows / heads;
                let (head, within) = (row / dim, row % dim);
                let (half, pair) = (within / (dim / 2), within % (dim / 2));
                head * dim + 2 * pair + half
            }
        }
    }
}

/// A mapped file.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    pub map: memmap2::Mmap,
}

impl Shard {
    /// Releases pages that have been read.
    fn release(&self, bytes: &Range<usize>) {
        // SAFETY: the mapping is of a file and is only read: a released page is loaded from the file again when it is touched.
        let released = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.map
                .unchecked_advise_range(advice, bytes.start, bytes.len())
        };
        if let Err(error) = released {
            tracing::debug!(
                "cannot release read pages of {}: {error}",
                self.path.display()
            );
        }
    }
}

/// A tensor of a checkpoint.
#[derive(Debug)]
pub(super) struct Stored {
    pub file: Arc<Shard>,
    pub format: Format,
    pub shape: Vec<usize>,
    /// The byte range in the file.
    pub bytes: Range<usize>,
    /// The order of rows; of a vector, of its numbers.
    pub order: RowOrder,
    /// What the file's numbers have more than the model's.
    pub shift: f32,
    /// Whether the tensor has been read.
    read: AtomicBool,
}

impl Stored {
    /// Returns a tensor of a safetensors file.
    pub fn of_safetensors(file: &Arc<Shard>, entry: Entry) -> Self {
        let Entry {
            dtype,
            shape,
            bytes,
        } = entry;
        let format = Format::of_safetensors(dtype);
        Self::new(file, format, shape, bytes, RowOrder::Plain)
    }

    pub fn new(
        file: &Arc<Shard>,
        format: Format,
        shape: Vec<usize>,
        bytes: Range<usize>,
        order: RowOrder,
    ) -> Self {
        Self {
            file: file.clone(),
            format,
            shape,
            bytes,
            order,
            shift: 0.0,
            read: AtomicBool::new(false),
        }
    }

    pub fn mark_read(&self) {
        self.read.store(true, Ordering::Relaxed);
    }

    pub fn is_read(&self) -> bool {
        self.read.load(Ordering::Relaxed)
    }

    /// Returns the bytes as they are stored.
    pub fn raw(&self) -> &[u8] {
        &self.file.map[self.bytes.clone()]
    }

    /// Returns all numbers in the model's order, converted through f32, which represents each of them exactly. The file's pages are
    /// released.
    pub fn values<T: Send + Copy + Default>(&self, to: impl Fn(f32) -> T + Sync) -> Vec<T> {
        let shift = self.shift;
        let to = |number: f32| to(if shift == 0.0 { number } else { number - shift });
        let values = match self.order {
            RowOrder::Plain => convert(self.raw(), &self.format, self.count(), to),
            RowOrder::Paired { .. } => self.reordered(to),
        };
        self.release();
        values
    }

    /// Releases the file's pages.
    pub fn release(&self) {
        self.file.release(&self.bytes);
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns [`Self::values`] of a tensor with another order of rows.
    fn reordered<T: Send + Copy + Default>(&self, to: impl Fn(f32) -> T + Sync) -> Vec<T> {
        let rows = self.shape.first().copied().unwrap_or_default();
        let row = self.count().checked_div(rows).unwrap_or_default();
        let raw = self.raw();
        let bytes = self.format.bytes(row);
        let mut values = vec![T::default(); self.count()];
        values
            .par_chunks_mut(row.max(1))
            .enumerate()
            .for_each(|(at, values)| {
                let start = self.order.source(at, rows) * bytes;
                fill(values, &raw[start..start + bytes], &self.format, &to);
            });
        values
    }

    /// Returns whether both hold the same numbers.
    pub fn equals(&self, other: &Self) -> bool {
        let dtypes = (self.format.dtype(), other.format.dtype());
        let (Some(_), Some(_)) = dtypes else {
            return false;
        };
        let alike = self.format == other.format && self.order == other.order;
        let (size, other_size) = (self.format.bytes(CHUNK), other.format.bytes(CHUNK));
        let chunk = |format: &Format, bytes: &[u8]| {
            let count = bytes.len() * CHUNK / format.bytes(CHUNK);
            convert(bytes, format, count, |x| x)
        };
        let equal = self.shape == other.shape
            && self.order == other.order
            && self.shift == other.shift
            && self
                .raw()
                .chunks(size)
                .zip(other.raw().chunks(other_size))
                .all(|(own, others)| match alike {
                    true => own == others,
                    false => chunk(&self.format, own) == chunk(&other.format, others),
                });
        self.release();
        other.release();
        equal
    }
}

/// Converts `count` numbers.
fn convert<T: Send + Copy + Default>(
    bytes: &[u8],
    format: &Format,
    count: usize,
    to: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let mut values = vec![T::default(); count];
    values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(format.bytes(CHUNK).max(1)))
        .for_each(|(values, bytes)| fill(values, bytes, format, &to));
    values
}

/// Converts consecutive numbers; of blocks, whole ones.
fn fill<T>(values: &mut [T], bytes: &[u8], format: &Format, to: &impl Fn(f32) -> T) {
    match format {
        Format::Plain(DType::F32) => {
            for (value, b) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = to(f32::from_le_bytes(*b));
            }
        }
        Format::Plain(DType::F16) => {
            for (value, b) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = to(f16::from_le_bytes(*b).to_f32());
            }
        }
        Format::Plain(_) => {
            for (value, b) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = to(bf16::from_le_bytes(*b).to_f32());
            }
        }
        Format::Blocks(blocks) => {
            // Tensors begin at a multiple of 8 and blocks have an even number of bytes: they are aligned for candle.
            let read = blocks.dtype.from_data(Cow::Borrowed(bytes));
            let Ok(CpuStorage::F32(numbers)) = read.dequantize(values.len()) else {
                unreachable!("candle dequantises blocks to f32; this is a bug");
            };
            for (value, number) in values.iter_mut().zip(numbers) {
                *value = to(number);
            }
        }
        Format::Other(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_rows_are_put_back_into_halves() {
        // Two heads of four rows, as llama.cpp stores them: the halves of each head alternate.
        let file = [0, 2, 1, 3, 4, 6, 5, 7];
        let order = RowOrder::Paired { heads: 2 };
        let own: Vec<usize> = (0..8).map(|row| file[order.source(row, 8)]).collect();
        assert_eq!(own, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(RowOrder::Plain.source(5, 8), 5);
    }
}
