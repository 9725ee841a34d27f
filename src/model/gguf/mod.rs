//! GGUF files: one file with metadata, tokenizer and quantised weights, as llama.cpp reads and writes them.
//!
//! The format (versions 2 and 3, little-endian) is a header, metadata by key, a table of tensors, then their bytes. It is read here rather
//! than by `candle`, whose reader allocates what a file claims: here every count, length, offset and depth is compared with the file or a
//! limit before anything is allocated, and an error names what is at fault. Strings, arrays and tensors stay in the mapped file.
//!
//! | file | concept |
//! |---|---|
//! | `cursor` | numbers and strings at a position of the file |
//! | `metadata` | values by key |
//! | `kinds` | types of tensors and their blocks |
//! | `tensors` | the table of tensors |
//! | `groups` | blocks as groups of integers |
//! | `names` | the tensors as those of a checkpoint |
//! | `config`, `rope`, `families` | the configuration |
//! | `vocabulary` | the tokenizer and its chat template |
//! | `unpack` | the model's directory in Hugging Face layout |

mod config;
mod cursor;
mod experts;
mod families;
mod groups;
mod kinds;
mod metadata;
mod names;
mod rope;
mod tensors;
mod unpack;
mod vocabulary;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use memmap2::Mmap;

use self::cursor::Cursor;
pub use self::kinds::BlockFormat;
use self::metadata::{Kind, Place, Scalar};
pub(crate) use self::names::stored_tensors;
use self::tensors::TensorPlace;
pub use self::unpack::unpack;
use super::error::ModelError;

/// The bytes at the start of every file.
const MAGIC: [u8; 4] = *b"GGUF";

/// A mapped GGUF file: its metadata by key, and its tensors by name.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Place>,
    tensors: BTreeMap<String, TensorPlace>,
}

impl GgufFile {
    /// Opens a file and checks its header, metadata and table of tensors. No tensor is read.
    ///
    /// # Errors
    /// Errors with [`ModelError::Io`], or with [`ModelError::Checkpoint`] if the file is not a whole GGUF file of version 2 or 3, exceeds a
    /// limit, is part of a split model, or has a tensor of a type that is not supported.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io {
            path: path.to_owned(),
            source,
        };
        let corrupt = |message: String| ModelError::Checkpoint {
            path: path.to_owned(),
            message,
        };
        let file = files::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() < MAGIC.len() as u64 {
            // Mapping an empty file is itself an error on some systems.
            return Err(corrupt(
                "GGUF: truncated: shorter than the header".to_owned(),
            ));
        }
        // SAFETY: the mapping is only read, through slices whose bounds were checked when it was made. A file that another process
        // truncates in the meantime would fault, as a safetensors file does.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let parsed = parse(&map).map_err(|message| corrupt(format!("GGUF: {message}")));
        let (metadata, tensors) = parsed?;
        let opened = Self {
            path: path.to_owned(),
            map,
            metadata,
            tensors,
        };
        match opened.count("split.count")? {
            Some(parts) if parts > 1 => Err(corrupt(format!(
                "it is one of {parts} parts of a split model, which is not supported: join them with llama.cpp's `llama-gguf-split --merge`"
            ))),
            _ => Ok(opened),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the keys of the metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    pub fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// Returns the names of the tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// Returns a string.
    ///
    /// # Errors
    /// Errors if the value is not a string, or not UTF-8. The same holds for the other types of values below.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Place::One(Kind::String, bytes)) => self.utf8(key, bytes).map(Some),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// Returns a number that is whole and at least 0.
    pub fn count(&self, key: &str) -> Result<Option<u64>, ModelError> {
        let expected = "a whole number of at least 0";
        match self.scalar(key, expected)? {
            None => Ok(None),
            Some(Scalar::Whole(number)) => u64::try_from(number)
                .map(Some)
                .map_err(|_| self.wrong(key, expected)),
            Some(_) => Err(self.wrong(key, expected)),
        }
    }

    /// Returns a finite number. Of an f32 it is the shortest decimal that rounds to it.
    pub fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let expected = "a finite number";
        match self.scalar(key, expected)? {
            None => Ok(None),
            Some(Scalar::Whole(number)) => Ok(Some(number as f64)),
            Some(Scalar::Real(number)) if number.is_finite() => Ok(Some(number)),
            Some(_) => Err(self.wrong(key, expected)),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.scalar(key, "a boolean")? {
            None => Ok(None),
            Some(Scalar::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(key, "a boolean")),
        }
    }

    /// Returns an array of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Place::Array {
                kind: Kind::String,
                len,
                bytes,
            }) => {
                let places = metadata::strings(&self.map, *len, bytes);
                let places = places.map_err(|message| self.error(message))?;
                let texts = places.iter().map(|bytes| self.utf8(key, bytes));
                texts.collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(self.wrong(key, "an array of strings")),
        }
    }

    /// Returns an array of whole numbers of 32 bits.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, ModelError> {
        self.array(
            key,
            "an array of whole numbers of 32 bits",
            |scalar| match scalar {
                Scalar::Whole(number) => i32::try_from(number).ok(),
                Scalar::Real(_) | Scalar::Bool(_) => None,
            },
        )
    }

    /// Returns an array of finite numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        self.array(key, "an array of finite numbers", |scalar| match scalar {
            Scalar::Real(number) if number.is_finite() => Some(number as f32),
            Scalar::Real(_) | Scalar::Whole(_) | Scalar::Bool(_) => None,
        })
    }

    /// Returns the numbers of a vector of f32.
    pub fn vector(&self, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(place) = self.tensors.get(name) else {
            return Ok(None);
        };
        if place.format.dtype != GgmlDType::F32 || place.shape.len() != 1 {
            return Err(self.error(format!("tensor `{name}` is not a vector of F32")));
        }
        let (numbers, _) = self.map[place.bytes.clone()].as_chunks::<4>();
        Ok(Some(
            numbers
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect(),
        ))
    }

    fn array<T>(
        &self,
        key: &str,
        expected: &str,
        item: impl Fn(Scalar) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let wrong = || self.wrong(key, expected);
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Place::Array { kind, len, bytes }) => {
                let Some(size) = bytes.len().checked_div(*len) else {
                    return Ok(Some(Vec::new()));
                };
                let elements = self.map[bytes.clone()].chunks(size.max(1));
                elements
                    .map(|bytes| metadata::scalar(*kind, bytes).ok().and_then(&item))
                    .collect::<Option<_>>()
                    .map(Some)
                    .ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    fn scalar(&self, key: &str, expected: &str) -> Result<Option<Scalar>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Place::One(kind, bytes)) => metadata::scalar(*kind, &self.map[bytes.clone()])
                .map(Some)
                .map_err(|_| self.wrong(key, expected)),
            Some(Place::Array { .. }) => Err(self.wrong(key, expected)),
        }
    }

    fn utf8(&self, key: &str, bytes: &Range<usize>) -> Result<&str, ModelError> {
        std::str::from_utf8(&self.map[bytes.clone()])
            .map_err(|_| self.error(format!("metadata `{key}` is not UTF-8")))
    }

    fn wrong(&self, key: &str, expected: &str) -> ModelError {
        self.error(format!("metadata `{key}` is not {expected}"))
    }

    /// Returns an error that names the file.
    pub(crate) fn error(&self, message: impl Into<String>) -> ModelError {
        ModelError::Checkpoint {
            path: self.path.clone(),
            message: message.into(),
        }
    }
}

type Parsed = (BTreeMap<String, Place>, BTreeMap<String, TensorPlace>);

/// Reads and checks everything before the tensors' bytes.
fn parse(file: &[u8]) -> Result<Parsed, String> {
    if files::is_lfs_pointer(file) {
        return Err(files::LFS_POINTER.into());
    }
    if !file.starts_with(&MAGIC) {
        return Err("not a GGUF file: it does not begin with `GGUF`".to_owned());
    }
    let mut cursor = Cursor::new(file);
    cursor.skip(MAGIC.len() as u64, "the header")?;
    match cursor.u32("the header")? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(
                "it is a big-endian GGUF file; only little-endian ones are read".to_owned(),
            );
        }
        version => {
            return Err(format!(
                "it is a GGUF file of version {version}; only versions 2 and 3 are read"
            ));
        }
    }
    let tensors = cursor.u64("the header")?;
    let keys = cursor.u64("the header")?;
    let metadata = metadata::read(&mut cursor, keys)?;
    let alignment = match metadata.get("general.alignment") {
        None => tensors::DEFAULT_ALIGNMENT,
        Some(Place::One(Kind::U32, bytes)) => {
            let mut at = Cursor::new(file);
            at.skip(bytes.start as u64, "general.alignment")?;
            u64::from(at.u32("general.alignment")?)
        }
        Some(_) => return Err("general.alignment is not a whole number of 32 bits".to_owned()),
    };
    tensors::check_alignment(alignment)?;
    let tensors = tensors::read(&mut cursor, tensors, alignment, file.len())?;
    Ok((metadata, tensors))
}
