//! Parquet files in a program that was built without their reader.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Error, ErrorKind};

use serde_json::Value;

use super::SourceError;

/// A file that cannot be read: it does not exist as a value.
pub(crate) struct ParquetRows(Infallible);

impl ParquetRows {
    /// # Errors
    /// Errors always.
    pub fn open(_file: File) -> Result<Self, Error> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "this program was built without Parquet (feature `parquet`)",
        ))
    }

    pub fn read(&self) -> usize {
        match self.0 {}
    }

    pub fn next(&mut self) -> Result<Option<Value>, SourceError> {
        match self.0 {}
    }
}
