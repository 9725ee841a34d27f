//! Preference data: what is compared, and where comparisons are read from.

mod pair;

pub use pair::{JudgeItem, Label, Message, PreferencePair, Role};
