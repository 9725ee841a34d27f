//! The header of a safetensors file: its tensors and their byte ranges, all checked against the file's size.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Bytes of the length field before the header.
pub(super) const LENGTH_BYTES: usize = 8;
/// The reference implementation's limit.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// The maximum number of tensors of one file; the largest known models have a few hundred per file, and 100,000 over all their files.
const MAX_TENSORS: usize = 100_000;
/// The maximum number of dimensions of a tensor; no layer has more than five.
const MAX_DIMENSIONS: usize = 16;

/// A tensor's position in its file. All values have been checked against the file's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// As in the header: `F32`, `BF16`, `I64`, ...
    pub dtype: String,
    pub shape: Vec<usize>,
    /// The byte range in the file.
    pub bytes: Range<usize>,
}

type Header = (BTreeMap<String, Entry>, BTreeMap<String, String>);

/// Reads and checks the header of a whole file.
pub(super) fn parse(file: &[u8]) -> Result<Header, String> {
    if files::is_lfs_pointer(file) {
        return Err(files::LFS_POINTER.into());
    }
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err("truncated: shorter than a safetensors header".into());
    };
    let length = u64::from_le_bytes(*length);
    let length = usize::try_from(length)
        .ok()
        .filter(|&length| length <= MAX_HEADER_BYTES)
        .ok_or_else(|| format!("not a safetensors file: its header would be {length} bytes"))?;
    let header = rest.get(..length).ok_or_else(|| {
        format!(
            "truncated: the header is {length} bytes, the file holds {}",
            rest.len()
        )
    })?;
    let Described { tensors, metadata } = serde_json::from_slice(header)
        .map_err(|e| format!("the safetensors header is not a JSON object of tensors: {e}"))?;

    let data_len = rest.len() - length;
    let mut entries = BTreeMap::new();
    for (name, described) in tensors {
        let mut entry =
            entry(described).map_err(|message| format!("tensor `{name}`: {message}"))?;
        if entry.bytes.end > data_len {
            return Err(format!(
                "truncated: tensor `{name}` ends at byte {} of {data_len}",
                entry.bytes.end
            ));
        }
        entry.bytes =
            entry.bytes.start + LENGTH_BYTES + length..entry.bytes.end + LENGTH_BYTES + length;
        entries.insert(name, entry);
    }
    tiles(&entries, LENGTH_BYTES + length..file.len())?;
    Ok((entries, metadata))
}

/// A header while it is parsed: at most [`MAX_TENSORS`] tensors are ever in memory.
struct Described {
    tensors: BTreeMap<String, DescribedTensor>,
    metadata: BTreeMap<String, String>,
}

/// A tensor's description in the header.
#[derive(Deserialize)]
struct DescribedTensor {
    dtype: Option<String>,
    shape: Option<Numbers>,
    data_offsets: Option<Numbers>,
}

/// A short list of whole numbers.
struct Numbers(Vec<usize>);

impl<'de> Deserialize<'de> for Described {
    fn deserialize<D: serde::Deserializer<'de>>(header: D) -> Result<Self, D::Error> {
        struct Header;

        impl<'de> Visitor<'de> for Header {
            type Value = Described;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Described, A::Error> {
                let mut header = Described {
                    tensors: BTreeMap::new(),
                    metadata: BTreeMap::new(),
                };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        // The metadata is free-form: values that are not strings are skipped.
                        let remarks: Value = map.next_value()?;
                        let remarks = remarks.as_object().into_iter().flatten();
                        let texts = remarks.filter_map(|(key, text)| {
                            Some((key.clone(), text.as_str()?.to_owned()))
                        });
                        header.metadata.extend(texts);
                        continue;
                    }
                    if header.tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let described = map.next_value();
                    let described = described
                        .map_err(|error| A::Error::custom(format!("tensor `{name}`: {error}")))?;
                    header.tensors.insert(name, described);
                }
                Ok(header)
            }
        }

        header.deserialize_map(Header)
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: serde::Deserializer<'de>>(numbers: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_DIMENSIONS} whole numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Numbers, A::Error> {
                let mut numbers = Vec::new();
                while numbers.len() < MAX_DIMENSIONS {
                    match seq.next_element()? {
                        Some(number) => numbers.push(number),
                        None => return Ok(Numbers(numbers)),
                    }
                }
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Numbers(numbers)),
                    Some(_) => Err(A::Error::custom(format!(
                        "more than {MAX_DIMENSIONS} numbers"
                    ))),
                }
            }
        }

        numbers.deserialize_seq(List)
    }
}

/// Converts one header entry; its byte range is still relative to the data.
fn entry(described: DescribedTensor) -> Result<Entry, String> {
    let dtype = described.dtype.ok_or("no dtype in the header")?;
    let Numbers(shape) = described.shape.ok_or("no shape in the header")?;
    let Numbers(offsets) = described
        .data_offsets
        .ok_or("no data_offsets in the header")?;
    let [start, end] = offsets[..] else {
        return Err("data_offsets must be two numbers".into());
    };
    if start > end {
        return Err(format!(
            "data_offsets [{start}, {end}]: the end is before the start"
        ));
    }
    if let Some(size) = size_of(&dtype) {
        let expected = shape
            .iter()
            .try_fold(size, |bytes: usize, &n| bytes.checked_mul(n))
            .ok_or_else(|| format!("shape {shape:?} is too large"))?;
        if end - start != expected {
            return Err(format!(
                "{dtype} of shape {shape:?} takes {expected} bytes, but data_offsets give {}",
                end - start
            ));
        }
    }
    Ok(Entry {
        dtype,
        shape,
        bytes: start..end,
    })
}

/// Returns the bytes per value of a header's dtype; a tensor of an unknown dtype is rejected when it is read.
fn size_of(dtype: &str) -> Option<usize> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => Some(1),
        "F16" | "BF16" | "U16" | "I16" => Some(2),
        "F32" | "U32" | "I32" => Some(4),
        "F64" | "U64" | "I64" => Some(8),
        _ => None,
    }
}

/// Checks that the tensors cover `data` exactly, each byte once.
fn tiles(entries: &BTreeMap<String, Entry>, data: Range<usize>) -> Result<(), String> {
    let mut by_place: Vec<_> = entries.iter().collect();
    by_place.sort_by_key(|(_, entry)| (entry.bytes.start, entry.bytes.end));
    let mut at = data.start;
    for (name, entry) in by_place {
        if entry.bytes.start < at {
            return Err(format!("tensor `{name}` overlaps another"));
        }
        if entry.bytes.start > at {
            return Err(format!(
                "{} bytes before tensor `{name}` belong to no tensor",
                entry.bytes.start - at
            ));
        }
        at = entry.bytes.end;
    }
    if at != data.end {
        return Err(format!(
            "{} bytes after the last tensor belong to no tensor",
            data.end - at
        ));
    }
    Ok(())
}
