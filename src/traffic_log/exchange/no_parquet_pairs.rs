//! Parquet files in a program that was built without their writer.

use std::convert::Infallible;
use std::io::Write;
use std::marker::PhantomData;

use super::PromptKind;
use super::export::PairRow;
use crate::{LogError, Result};

/// A file that cannot be written: it does not exist as a value.
pub(super) struct ParquetPairs<W: Write + Send> {
    never: Infallible,
    out: PhantomData<W>,
}

impl<W: Write + Send> ParquetPairs<W> {
    /// # Errors
    /// Errors always.
    pub fn new(_out: W, _kind: PromptKind) -> Result<Self> {
        let message = "this program was built without Parquet (feature `parquet`)";
        Err(LogError::File(message.to_owned()))
    }

    pub fn write(&mut self, _pairs: &[PairRow]) -> Result<()> {
        match self.never {}
    }

    pub fn finish(self) -> Result<()> {
        match self.never {}
    }
}
