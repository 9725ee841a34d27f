//! Export and import of pairs in TRL's format: JSON lines, JSON array and Parquet.

mod export;
mod import;
#[cfg_attr(not(feature = "parquet"), path = "no_parquet_pairs.rs")]
mod parquet_pairs;

pub use export::{ExportFilter, PromptKind, export_pairs};
pub use import::{Imported, import_pairs};

/// The file format of exported or imported pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairFormat {
    /// JSON lines: one object per line with `prompt`, `chosen`, `rejected`, `margin`, `source`; conversations are lists of messages.
    Jsonl,
    /// The same objects in one JSON array.
    Json,
    /// The same fields as columns, conversations as lists of structs. One file has either plain prompts or conversations.
    Parquet,
}
