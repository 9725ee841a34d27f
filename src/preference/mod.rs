//! Preference data: the record types, the readers of preference files, the table of principles, and the preference log.

pub mod log;
mod pair;
mod principle;
mod principles;
mod records;
mod shapes;
mod source;
mod ultrafeedback;

pub use pair::{JudgeItem, Label, Message, PlainText, PreferencePair, Role};
pub use principle::{Polarity, Principle, PrincipleError, PrincipleTable, WEIGHTS};
pub use principles::{PRINCIPLES_FILE, Principles, PrinciplesError, VersionedTable};
pub use records::{
    OnUnusable, Record, RecordError, RecordReader, Skipped, read_pairs, read_records,
};
pub use shapes::{Format, ShapeError};
pub use source::FileKind;
pub use ultrafeedback::{RankedDraw, RankedPrompt, RankedResponse, RankedSet, Rating};
