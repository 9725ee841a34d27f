//! Sources of records: JSON lines, a JSON array or the rows of a Parquet file.
//!
//! The kind of a file, and whether it is compressed with gzip, is determined by its first bytes and not by its name. Memory is bounded by
//! the longest record (at most [`MAX_RECORD_BYTES`] of JSON), for a Parquet file by its pages.

mod array;
#[cfg_attr(not(feature = "parquet"), path = "no_parquet.rs")]
mod parquet;

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Seek};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use serde_json::Value;

use self::array::ArrayElements;
use self::parquet::ParquetRows;

/// The maximum length of a record in bytes of JSON. A longer record is an error, so that it cannot exhaust memory.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// The first bytes of every Parquet file.
const PARQUET_MAGIC: &[u8] = b"PAR1";

/// The position of a record in its file, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Line(usize),
    /// An element of an array, or a row of a table.
    Record(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, ":{line}"),
            Self::Record(record) => write!(f, ": record {record}"),
        }
    }
}

/// The format of a file of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    JsonLines,
    JsonArray,
    Parquet,
}

/// The reason why a record cannot be read as JSON.
#[derive(Debug)]
pub(super) enum SourceError {
    Io(Error),
    TooLong,
    Json(serde_json::Error),
}

impl From<Error> for SourceError {
    fn from(error: Error) -> Self {
        Self::Io(error)
    }
}

/// An open file of records.
pub(super) enum Source {
    Lines {
        lines: Box<dyn BufRead + Send>,
        line: usize,
        buffer: Vec<u8>,
    },
    Array(ArrayElements),
    Parquet(ParquetRows),
}

impl Source {
    /// Opens a file.
    ///
    /// # Errors
    /// Errors if the file cannot be opened, or is a Parquet file whose footer cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path)?;
        let mut magic = Vec::with_capacity(PARQUET_MAGIC.len());
        (&mut file)
            .take(PARQUET_MAGIC.len() as u64)
            .read_to_end(&mut magic)?;
        if magic == PARQUET_MAGIC {
            return Ok(Self::Parquet(ParquetRows::open(file)?));
        }
        let mut raw: Box<dyn BufRead + Send> = match magic.starts_with(&[0x1f, 0x8b]) {
            // Pipes cannot be rewound; `rewound` puts the bytes already read in front of the rest.
            true => Box::new(buffered(MultiGzDecoder::new(rewound(file, magic)?))),
            false => rewound(file, magic)?,
        };
        skip_mark(&mut raw)?;
        Ok(match first_of(&mut raw)? {
            Some(b'[') => Self::Array(ArrayElements::new(raw)),
            _ => Self::Lines {
                lines: raw,
                line: 0,
                buffer: Vec::new(),
            },
        })
    }

    pub fn kind(&self) -> FileKind {
        match self {
            Self::Lines { .. } => FileKind::JsonLines,
            Self::Array(_) => FileKind::JsonArray,
            Self::Parquet(_) => FileKind::Parquet,
        }
    }

    /// Returns the place of the record that was read last.
    pub fn place(&self) -> Place {
        match self {
            Self::Lines { line, .. } => Place::Line(*line),
            Self::Array(elements) => Place::Record(elements.read()),
            Self::Parquet(rows) => Place::Record(rows.read()),
        }
    }

    /// Returns the next record's JSON; none at the end of the file.
    ///
    /// # Errors
    /// Errors if the file is damaged at this place, or the record is too long or not JSON. Nothing can be read after an error.
    pub fn next(&mut self) -> Result<Option<Value>, SourceError> {
        match self {
            Self::Lines {
                lines,
                line,
                buffer,
            } => loop {
                if !read_line(lines, line, buffer)? {
                    return Ok(None);
                }
                let bytes = buffer.trim_ascii();
                if !bytes.is_empty() {
                    let value = serde_json::from_slice(bytes).map_err(SourceError::Json)?;
                    return Ok(Some(value));
                }
            },
            Self::Array(elements) => elements.next(),
            Self::Parquet(rows) => rows.next(),
        }
    }
}

/// Reads the next line into the buffer; returns false at the end of the file.
fn read_line(
    lines: &mut Box<dyn BufRead + Send>,
    line: &mut usize,
    buffer: &mut Vec<u8>,
) -> Result<bool, SourceError> {
    buffer.clear();
    let limit = MAX_RECORD_BYTES as u64 + 1;
    *line += 1;
    match lines.take(limit).read_until(b'\n', buffer)? {
        0 => Ok(false),
        _ if buffer.len() > MAX_RECORD_BYTES => Err(SourceError::TooLong),
        _ => Ok(true),
    }
}

fn buffered(reader: impl Read + Send) -> BufReader<impl Read + Send> {
    BufReader::with_capacity(1 << 16, reader)
}

/// Returns the file from its beginning, of which `taken` has been read already.
fn rewound(mut file: File, taken: Vec<u8>) -> Result<Box<dyn BufRead + Send>, Error> {
    Ok(match file.rewind() {
        Ok(()) => Box::new(buffered(file)),
        Err(_) => Box::new(buffered(std::io::Cursor::new(taken).chain(file))),
    })
}

/// Skips a byte order mark.
fn skip_mark(reader: &mut impl BufRead) -> Result<(), Error> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    if reader.fill_buf()?.starts_with(MARK) {
        reader.consume(MARK.len());
    }
    Ok(())
}

/// Returns the first byte that is not white space, without consuming it.
fn first_of(reader: &mut impl BufRead) -> Result<Option<u8>, Error> {
    // A file with more leading white space than one buffer is treated as JSON lines.
    let first = reader.fill_buf()?.trim_ascii_start().first().copied();
    Ok(first)
}

/// Returns an error with a description of the damage to a file.
fn damaged(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}
