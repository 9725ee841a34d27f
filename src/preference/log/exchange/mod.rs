//! Pairs out and in: TRL's JSON lines, JSON array and Parquet.

mod export;
mod import;
mod parquet_pairs;

pub use export::{ExportFilter, PromptKind};
pub use import::Imported;

/// The file's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairFormat {
    /// One object a line: `prompt`, `chosen`, `rejected`, `margin`, `source`; conversations as lists of messages.
    Jsonl,
    /// The same objects in one array.
    Json,
    /// The same as columns, conversations as lists of structs; one file has plain prompts or conversations.
    Parquet,
}
