//! The metadata of a GGUF file: values by key. Strings and arrays stay in the file; only their places are kept.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cursor::Cursor;

/// The maximum number of keys; real files have fewer than a hundred.
const MAX_KEYS: u64 = 1 << 16;
/// The maximum length of a key in bytes, which the format itself sets.
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// The maximum length of a string in bytes; the longest of real files are chat templates.
const MAX_STRING_BYTES: u64 = 64 << 20;
/// The maximum number of elements of an array; the largest vocabularies have 262,144 tokens and about as many merges.
const MAX_ELEMENTS: u64 = 1 << 24;
/// The maximum depth of arrays in arrays; no known key nests them.
const MAX_DEPTH: usize = 4;

/// The type of a value or of the elements of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(id: u32) -> Option<Self> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::String,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        KINDS.get(usize::try_from(id).ok()?).copied()
    }

    /// Returns the bytes of a value; none for strings and arrays, whose length varies.
    fn bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// A value's place in the file. Its bytes lie within the file; a string's are not yet known to be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A number or a boolean, of [`Kind::bytes`] bytes; or a string without its length.
    One(Kind, Range<usize>),
    /// Elements one after the other; strings with their lengths.
    Array {
        kind: Kind,
        len: usize,
        bytes: Range<usize>,
    },
}

/// Reads the values of `count` keys.
///
/// # Errors
/// Errors if a limit is exceeded, a key occurs twice, a type is unknown, or the file ends before; the message names the key.
pub(super) fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Place>, String> {
    if count > MAX_KEYS {
        return Err(format!(
            "the metadata has {count} keys; the limit is {MAX_KEYS}"
        ));
    }
    let mut keys = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.text(MAX_KEY_BYTES, "a key of the metadata")?;
        let place = place(cursor).map_err(|error| format!("metadata `{key}`: {error}"))?;
        if keys.insert(key.to_owned(), place).is_some() {
            return Err(format!("metadata `{key}` is given twice"));
        }
    }
    Ok(keys)
}

fn kind(cursor: &mut Cursor<'_>) -> Result<Kind, String> {
    let id = cursor.u32("a type")?;
    Kind::of(id).ok_or_else(|| format!("{id} is not a type of values"))
}

fn place(cursor: &mut Cursor<'_>) -> Result<Place, String> {
    match kind(cursor)? {
        Kind::Array => array(cursor, 1),
        Kind::String => {
            let bytes = cursor.string(MAX_STRING_BYTES, "a string")?;
            Ok(Place::One(Kind::String, bytes))
        }
        kind => {
            let bytes = kind.bytes().unwrap_or_default();
            Ok(Place::One(kind, cursor.skip(bytes, "a number")?))
        }
    }
}

fn array(cursor: &mut Cursor<'_>, depth: usize) -> Result<Place, String> {
    if depth > MAX_DEPTH {
        return Err(format!("arrays are nested more than {MAX_DEPTH} deep"));
    }
    let kind = kind(cursor)?;
    let len = cursor.u64("the length of an array")?;
    let len = usize::try_from(len)
        .ok()
        .filter(|_| len <= MAX_ELEMENTS)
        .ok_or_else(|| format!("an array has {len} elements; the limit is {MAX_ELEMENTS}"))?;
    let start = cursor.at();
    match kind {
        Kind::Array => {
            for _ in 0..len {
                array(cursor, depth + 1)?;
            }
        }
        Kind::String => {
            for _ in 0..len {
                cursor.string(MAX_STRING_BYTES, "a string")?;
            }
        }
        // The product fits: at most 2^24 elements of 8 bytes.
        kind => {
            let bytes = kind.bytes().unwrap_or_default() * len as u64;
            cursor.skip(bytes, "an array")?;
        }
    }
    Ok(Place::Array {
        kind,
        len,
        bytes: start..cursor.at(),
    })
}

/// A number or a boolean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scalar {
    Whole(i128),
    Real(f64),
    Bool(bool),
}

/// Returns the number that these bytes hold.
///
/// # Errors
/// Errors if the type is not a number, or a boolean is neither 0 nor 1.
pub(super) fn scalar(kind: Kind, bytes: &[u8]) -> Result<Scalar, String> {
    let wrong = || "not a number".to_owned();
    macro_rules! number {
        ($kind:ty) => {
            <$kind>::from_le_bytes(bytes.try_into().map_err(|_| wrong())?)
        };
    }
    Ok(match kind {
        Kind::U8 => Scalar::Whole(number!(u8).into()),
        Kind::I8 => Scalar::Whole(number!(i8).into()),
        Kind::U16 => Scalar::Whole(number!(u16).into()),
        Kind::I16 => Scalar::Whole(number!(i16).into()),
        Kind::U32 => Scalar::Whole(number!(u32).into()),
        Kind::I32 => Scalar::Whole(number!(i32).into()),
        Kind::U64 => Scalar::Whole(number!(u64).into()),
        Kind::I64 => Scalar::Whole(number!(i64).into()),
        Kind::F64 => Scalar::Real(number!(f64)),
        Kind::F32 => Scalar::Real(shortest(number!(f32))),
        Kind::Bool => match bytes {
            [0] => Scalar::Bool(false),
            [1] => Scalar::Bool(true),
            _ => return Err("a boolean is neither 0 nor 1".to_owned()),
        },
        Kind::String | Kind::Array => return Err(wrong()),
    })
}

/// Returns the number with the shortest decimal that rounds to this f32: the 1e-5 that an exporter stored, not 0.00000999999975.
fn shortest(number: f32) -> f64 {
    // Rust prints the shortest decimal.
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// Returns the elements of an array of strings, as ranges of the file.
///
/// # Errors
/// Errors never for a place that [`read`] returned.
pub(super) fn strings(
    file: &[u8],
    len: usize,
    bytes: &Range<usize>,
) -> Result<Vec<Range<usize>>, String> {
    let mut cursor = Cursor::new(&file[..bytes.end]);
    cursor.skip(bytes.start as u64, "an array")?;
    (0..len)
        .map(|_| cursor.string(MAX_STRING_BYTES, "a string"))
        .collect()
}
