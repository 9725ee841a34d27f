//! The records of preference data: pairs and judge items, the shapes in which files hold them, and the files' readers.

mod pair;
mod reader;
mod shapes;
mod source;
mod ultrafeedback;

pub use pair::{JudgeItem, Label, PlainText, PreferencePair};
pub use reader::{
    OnUnusable, Record, RecordError, RecordReader, Skipped, read_pairs, read_records,
};
pub use shapes::{Format, ShapeError};
pub use source::FileKind;
pub use ultrafeedback::{RankedDraw, RankedPrompt, RankedResponse, RankedSet, Rating};
