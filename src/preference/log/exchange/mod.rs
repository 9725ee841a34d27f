//! Pairs out and in: TRL's JSONL and Parquet.

mod export;
mod import;
mod parquet_rows;

pub use export::ExportFilter;

/// The file's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairFormat {
    /// One object a line: `prompt`, `chosen`, `rejected`, `margin`, `source`; conversations as lists of messages.
    Jsonl,
    /// The same as columns; a conversation's prompt is its list of messages as JSON text.
    Parquet,
}
