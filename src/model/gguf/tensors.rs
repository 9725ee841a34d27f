//! The table of tensors in a GGUF file: shapes, types and places, all checked against the file's size.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cursor::Cursor;
use super::kinds::BlockFormat;

/// The maximum number of tensors; the largest known models have a few thousand.
const MAX_TENSORS: u64 = 100_000;
/// The maximum length of a name in bytes; llama.cpp's is 64.
const MAX_NAME_BYTES: u64 = 1024;
/// The maximum number of dimensions, which the format itself sets.
const MAX_DIMENSIONS: u32 = 4;
/// The largest alignment of tensors, in bytes. Files have 32.
const MAX_ALIGNMENT: u64 = 1 << 16;

/// The alignment of tensors without `general.alignment`, in bytes.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// A tensor's place in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorPlace {
    pub format: BlockFormat,
    /// Outermost dimension first, as in checkpoints: `[out, in]` of a linear layer. Rows are whole blocks.
    pub shape: Vec<usize>,
    /// The byte range in the file; its start is a multiple of 8.
    pub bytes: Range<usize>,
}

/// Checks the alignment that a file gives.
///
/// # Errors
/// Errors unless it is a power of two between 8 and 65,536: the format requires a multiple of 8.
pub(super) fn check_alignment(alignment: u64) -> Result<(), String> {
    match alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) {
        true => Ok(()),
        false => Err(format!(
            "general.alignment is {alignment}; it must be a power of two from 8 to {MAX_ALIGNMENT}"
        )),
    }
}

/// Reads the table of `count` tensors, at whose end the data begins. `file_len` is the file's length in bytes.
///
/// # Errors
/// Errors if a limit is exceeded, a name occurs twice, a type is not supported, or tensors lie outside the file or over each other; the
/// message names the tensor.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
    file_len: usize,
) -> Result<BTreeMap<String, TensorPlace>, String> {
    if count > MAX_TENSORS {
        return Err(format!(
            "the file has {count} tensors; the limit is {MAX_TENSORS}"
        ));
    }
    let mut described = BTreeMap::new();
    for _ in 0..count {
        let name = cursor.text(MAX_NAME_BYTES, "a tensor's name")?;
        let one = Described::read(cursor).map_err(|error| format!("tensor `{name}`: {error}"))?;
        if described.insert(name.to_owned(), one).is_some() {
            return Err(format!("tensor `{name}` is listed twice"));
        }
    }
    let start = (cursor.at() as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, one) in described {
        let place = one
            .place(start, alignment, file_len)
            .map_err(|error| format!("tensor `{name}`: {error}"))?;
        tensors.insert(name, place);
    }
    refuse_overlaps(&tensors)?;
    Ok(tensors)
}

/// A tensor as the table describes it.
struct Described {
    shape: Vec<u64>,
    format: BlockFormat,
    /// From the start of the data, in bytes.
    offset: u64,
}

impl Described {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let dimensions = cursor.u32("the number of dimensions")?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!(
                "it has {dimensions} dimensions; the limit is {MAX_DIMENSIONS}"
            ));
        }
        // The file has the innermost dimension first.
        let mut shape = (0..dimensions)
            .map(|_| cursor.u64("a dimension"))
            .collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok(Self {
            shape,
            format: BlockFormat::of(cursor.u32("the type")?)?,
            offset: cursor.u64("the offset")?,
        })
    }

    /// Returns the place in a file of `file_len` bytes, whose data begins at `start`.
    fn place(&self, start: u64, alignment: u64, file_len: usize) -> Result<TensorPlace, String> {
        let Self {
            shape,
            format,
            offset,
        } = self;
        let too_large = || format!("shape {shape:?} is too large");
        let row = shape.last().copied().unwrap_or_default();
        if shape.contains(&0) || row % format.values as u64 != 0 {
            return Err(format!(
                "shape {shape:?} is not one of {}, whose rows are blocks of {} values",
                format.name, format.values
            ));
        }
        let blocks = shape
            .iter()
            .rev()
            .skip(1)
            .try_fold(row / format.values as u64, |all, &n| all.checked_mul(n))
            .ok_or_else(too_large)?;
        let bytes = blocks
            .checked_mul(format.bytes as u64)
            .ok_or_else(too_large)?;
        // The number of values must be a number, too: it is at most 256 times the number of blocks.
        blocks
            .checked_mul(format.values as u64)
            .ok_or_else(too_large)?;
        if offset % alignment != 0 {
            return Err(format!(
                "its offset {offset} is not a multiple of the alignment {alignment}"
            ));
        }
        let first = start.checked_add(*offset);
        let end = first.and_then(|first| first.checked_add(bytes));
        let (Some(first), Some(end)) = (first, end.filter(|&end| end <= file_len as u64)) else {
            return Err(format!(
                "truncated: it takes {bytes} bytes at offset {offset} of the data, which begins at byte {start} of {file_len}"
            ));
        };
        // Both are at most the file's length, and a dimension at most the number of bits in the file.
        let narrow = |number: u64| usize::try_from(number).map_err(|_| too_large());
        Ok(TensorPlace {
            format: *format,
            shape: shape.iter().map(|&n| narrow(n)).collect::<Result<_, _>>()?,
            bytes: narrow(first)?..narrow(end)?,
        })
    }
}

/// Errors if two tensors share bytes.
fn refuse_overlaps(tensors: &BTreeMap<String, TensorPlace>) -> Result<(), String> {
    let mut by_place: Vec<_> = tensors.iter().collect();
    by_place.sort_by_key(|(_, place)| (place.bytes.start, place.bytes.end));
    for pair in by_place.windows(2) {
        let [(name, place), (other, behind)] = pair else {
            continue;
        };
        if behind.bytes.start < place.bytes.end {
            return Err(format!("tensors `{name}` and `{other}` overlap"));
        }
    }
    Ok(())
}
