//! The shapes of preference records, and their conversion to a [`Record`].
//!
//! | shape | keys |
//! |---|---|
//! | [`Format::Pair`] | `messages`, `chosen`, `rejected` |
//! | [`Format::Judge`] | `messages`, `a`, `b`, `label` (`a`, `b`, `tie`) |
//! | [`Format::Trl`] | `prompt`, `chosen`, `rejected`: strings or message lists; or `chosen`, `rejected` with the prompt in both |
//! | [`Format::Hh`] | `chosen`, `rejected`: transcripts of `\n\nHuman:` and `\n\nAssistant:` turns |
//! | [`Format::UltraFeedback`] | `instruction`, `completions`: responses with ratings, from which pairs are drawn |
//!
//! Every shape may have `id`; every shape but the last may have `principles` (a string or a list), `rationale`, `sft` and `judge`; pairs
//! may have `margin` and `source`. [`columns`] defines which other keys are ignored and which are refused by name.

mod columns;
mod hh;
mod messages;
#[cfg(test)]
mod tests;
mod trl;
mod ultrafeedback;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::reader::Record;
use super::{JudgeItem, PreferencePair};
use text::{Message, Role};

/// The shape in which records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Determined by the keys of each record.
    #[default]
    Auto,
    Pair,
    Judge,
    Trl,
    Hh,
    #[serde(rename = "ultrafeedback")]
    UltraFeedback,
}

/// The reason why a JSON object is not a preference record.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    #[error("a record must be a JSON object")]
    NotAnObject,
    #[error(
        "unknown record shape with keys [{keys}]: expected messages/chosen/rejected, messages/a/b/label, \
         prompt/chosen/rejected, chosen/rejected or instruction/completions"
    )]
    Unknown { keys: String },
    #[error("`{key}` {problem}")]
    Field { key: &'static str, problem: String },
    /// A column that no shape reads, and that would change the record's meaning.
    #[error("the column `{name}` {problem}")]
    Column { name: String, problem: String },
    #[error("the chosen and the rejected answer follow different conversations")]
    ContextsDiffer,
    #[error("transcript in `{key}`: {problem}")]
    Transcript {
        key: &'static str,
        problem: &'static str,
    },
}

/// Converts one JSON value to a record of shape `format`.
pub(super) fn read(value: Value, format: Format) -> Result<Record, ShapeError> {
    let Value::Object(mut record) = value else {
        return Err(ShapeError::NotAnObject);
    };
    let has = |key: &str| record.get(key).is_some_and(|value| !value.is_null());
    let format = match format {
        Format::Auto if has("chosen") != has("rejected") => {
            let key = if has("chosen") { "rejected" } else { "chosen" };
            return Err(field(key, columns::missing_answer(record.get(key))));
        }
        // If the answers are conversations themselves, `messages` repeats one of them.
        Format::Auto if has("messages") && has("chosen") && has("rejected") => {
            match record["chosen"] {
                Value::String(_) => Format::Pair,
                _ => Format::Trl,
            }
        }
        Format::Auto if has("messages") && has("a") && has("b") && has("label") => Format::Judge,
        Format::Auto if has("prompt") && has("chosen") && has("rejected") => Format::Trl,
        Format::Auto if has("chosen") && has("rejected") => {
            let transcript = |key: &str| record[key].as_str().is_some_and(hh::is_transcript);
            if transcript("chosen") && transcript("rejected") {
                Format::Hh
            } else {
                Format::Trl
            }
        }
        Format::Auto if has("instruction") && has("completions") => Format::UltraFeedback,
        Format::Auto => {
            let keys: Vec<&str> = record.keys().map(String::as_str).collect();
            return Err(ShapeError::Unknown {
                keys: keys.join(", "),
            });
        }
        named => named,
    };
    match format {
        Format::Judge => read_item(&mut record).map(Record::Item),
        Format::UltraFeedback => {
            let prompt = ultrafeedback::read(&mut record)?;
            let asked = [Message::new(Role::User, prompt.instruction.as_str())];
            columns::check(record.iter(), &asked, ["", ""], false)?;
            Ok(Record::Ranked(prompt))
        }
        _ => read_pair(&mut record, format).map(Record::Pair),
    }
}

fn read_item(record: &mut Map<String, Value>) -> Result<JudgeItem, ShapeError> {
    let item = JudgeItem {
        id: id(record),
        messages: messages(record, "messages")?,
        a: take(record, "a")?,
        b: take(record, "b")?,
        label: take(record, "label")?,
        principles: principles(record)?,
        rationale: optional(record, "rationale")?,
    };
    columns::check(record.iter(), &item.messages, [&item.a, &item.b], false)?;
    Ok(item)
}

fn read_pair(
    record: &mut Map<String, Value>,
    format: Format,
) -> Result<PreferencePair, ShapeError> {
    let parts = match format {
        Format::Pair => Parts {
            messages: messages(record, "messages")?,
            chosen: take(record, "chosen")?,
            rejected: take(record, "rejected")?,
            plain: false,
            guessed: false,
        },
        Format::Hh => hh::read(record)?,
        _ => trl::read(record)?,
    };
    let pair = PreferencePair {
        id: id(record),
        messages: parts.messages,
        chosen: parts.chosen,
        rejected: parts.rejected,
        principles: principles(record)?,
        rationale: optional(record, "rationale")?,
        sft: optional(record, "sft")?.unwrap_or(true),
        judge: optional(record, "judge")?.unwrap_or(true),
        plain: parts.plain,
        margin: record.remove("margin").and_then(|margin| margin.as_f64()),
        source: record.remove("source").and_then(|source| match source {
            Value::String(source) => Some(source),
            _ => None,
        }),
    };
    let answers = [pair.chosen.as_str(), pair.rejected.as_str()];
    columns::check(record.iter(), &pair.messages, answers, parts.guessed)?;
    Ok(pair)
}

/// The parts of a pair's record that its shape determines.
struct Parts {
    messages: Vec<Message>,
    chosen: String,
    rejected: String,
    /// Whether prompt and answers are plain strings; see [`PreferencePair::plain`].
    plain: bool,
    /// Whether the prompt is the common beginning of two plain answers.
    guessed: bool,
}

fn field(key: &'static str, problem: impl Into<String>) -> ShapeError {
    ShapeError::Field {
        key,
        problem: problem.into(),
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: Value, key: &'static str) -> Result<T, ShapeError> {
    serde_json::from_value(value).map_err(|error| field(key, format!("cannot be read: {error}")))
}

fn take<T: serde::de::DeserializeOwned>(
    record: &mut Map<String, Value>,
    key: &'static str,
) -> Result<T, ShapeError> {
    match record.remove(key) {
        Some(Value::Null) => Err(field(key, "is null")),
        Some(value) => parse(value, key),
        None => Err(field(key, "is missing")),
    }
}

fn optional<T: serde::de::DeserializeOwned>(
    record: &mut Map<String, Value>,
    key: &'static str,
) -> Result<Option<T>, ShapeError> {
    match record.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => parse(value, key).map(Some),
    }
}

fn messages(
    record: &mut Map<String, Value>,
    key: &'static str,
) -> Result<Vec<Message>, ShapeError> {
    let messages = messages::read(record.remove(key).unwrap_or(Value::Null), key)?;
    if messages.is_empty() {
        return Err(field(key, "is empty"));
    }
    Ok(messages)
}

/// Reads the id as a string; some sets have numbers.
fn id(record: &mut Map<String, Value>) -> Option<String> {
    match record.remove("id")? {
        Value::String(id) => Some(id),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

fn principles(record: &mut Map<String, Value>) -> Result<Vec<String>, ShapeError> {
    match record.remove("principles") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(list) => parse(list, "principles"),
    }
}
