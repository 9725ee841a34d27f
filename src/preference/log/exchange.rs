//! Pairs out and in: TRL's JSONL and Parquet.

use std::io::Write;
use std::path::Path;

use super::{Consent, PairSource, Principal, Result, TrafficLog};

/// The file's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairFormat {
    /// One object a line: `prompt`, `chosen`, `rejected`, `margin`, `source`; conversations as lists of messages.
    Jsonl,
    /// The same as columns; a conversation's prompt is its list of messages as JSON text.
    Parquet,
}

/// Which pairs leave.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ExportFilter {
    /// None: all sources.
    pub source: Option<PairSource>,
    /// The smallest probability that `chosen` is better.
    pub min_margin: f32,
}

impl TrafficLog {
    /// Writes the pairs of records that may be trained on, a page at a time. Returns how many.
    pub async fn export_pairs(
        &self,
        format: PairFormat,
        filter: &ExportFilter,
        out: impl Write + Send + 'static,
    ) -> Result<u64> {
        let _ = (format, filter, out);
        todo!()
    }

    /// Reads a preference file, each pair a record of `principal`. Returns how many.
    pub async fn import_pairs(
        &self,
        format: PairFormat,
        file: &Path,
        principal: &Principal,
        consent: Consent,
    ) -> Result<u64> {
        let _ = (format, file, principal, consent);
        todo!()
    }
}
