//! Preference data: what is compared, where comparisons are read from, and the principles they are made under.

pub mod log;
mod pair;
mod principle;
mod principles;
mod records;
mod shapes;
mod ultrafeedback;

pub use pair::{JudgeItem, Label, Message, PreferencePair, Role};
pub use principle::{Polarity, Principle, PrincipleError, PrincipleTable, WEIGHTS};
pub use principles::{PRINCIPLES_FILE, Principles, PrinciplesError, VersionedTable};
pub use records::{OnMismatch, Record, RecordError, RecordReader, read_pairs, read_records};
pub use shapes::{Format, ShapeError};
pub use ultrafeedback::{RankedDraw, RankedPrompt, RankedResponse, RankedSet, Rating};
