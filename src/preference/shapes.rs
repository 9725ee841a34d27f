//! The shapes a preference record comes in, and how each becomes a [`Record`].
//!
//! | shape | keys |
//! |---|---|
//! | [`Format::Pair`] | `messages`, `chosen`, `rejected` |
//! | [`Format::Judge`] | `messages`, `a`, `b`, `label` (`a`, `b`, `tie`) |
//! | [`Format::Trl`] | `prompt`, `chosen`, `rejected`: strings or message lists; or `chosen`, `rejected` with the prompt in both |
//! | [`Format::Hh`] | `chosen`, `rejected`: transcripts of `\n\nHuman:` and `\n\nAssistant:` turns |
//!
//! All may carry `id`, `principles` (a string or a list), `rationale`, `sft` and `judge`; other keys are ignored.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::records::Record;
use super::{JudgeItem, Message, PreferencePair, Role};

/// How records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// By the keys of each record.
    #[default]
    Auto,
    Pair,
    Judge,
    Trl,
    Hh,
}

/// Why a JSON object is not a preference record.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    #[error("a record must be a JSON object")]
    NotAnObject,
    #[error(
        "unknown record shape with keys [{keys}]: expected messages/chosen/rejected, messages/a/b/label, \
         prompt/chosen/rejected or chosen/rejected"
    )]
    Unknown { keys: String },
    #[error("`{key}` {problem}")]
    Field { key: &'static str, problem: String },
    #[error("the chosen and the rejected answer follow different conversations")]
    ContextsDiffer,
    #[error("transcript in `{key}`: {problem}")]
    Transcript {
        key: &'static str,
        problem: &'static str,
    },
}

/// Reads one JSON value as `format` says.
pub(super) fn read(value: Value, format: Format) -> Result<Record, ShapeError> {
    let Value::Object(mut record) = value else {
        return Err(ShapeError::NotAnObject);
    };
    let has = |key: &str| record.get(key).is_some_and(|value| !value.is_null());
    let format = match format {
        Format::Auto if has("messages") && has("chosen") && has("rejected") => Format::Pair,
        Format::Auto if has("messages") && has("a") && has("b") && has("label") => Format::Judge,
        Format::Auto if has("prompt") && has("chosen") && has("rejected") => Format::Trl,
        Format::Auto if has("chosen") && has("rejected") => {
            let transcript = |key: &str| record[key].as_str().is_some_and(is_transcript);
            if transcript("chosen") && transcript("rejected") {
                Format::Hh
            } else {
                Format::Trl
            }
        }
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
        _ => read_pair(&mut record, format).map(Record::Pair),
    }
}

fn read_item(record: &mut Map<String, Value>) -> Result<JudgeItem, ShapeError> {
    Ok(JudgeItem {
        id: id(record),
        messages: messages(record, "messages")?,
        a: take(record, "a")?,
        b: take(record, "b")?,
        label: take(record, "label")?,
        principles: principles(record)?,
        rationale: optional(record, "rationale")?,
    })
}

fn read_pair(
    record: &mut Map<String, Value>,
    format: Format,
) -> Result<PreferencePair, ShapeError> {
    let (messages, chosen, rejected) = match format {
        Format::Pair => (
            messages(record, "messages")?,
            take(record, "chosen")?,
            take(record, "rejected")?,
        ),
        Format::Hh => hh(take(record, "chosen")?, take(record, "rejected")?)?,
        _ => trl(record)?,
    };
    Ok(PreferencePair {
        id: id(record),
        messages,
        chosen,
        rejected,
        principles: principles(record)?,
        rationale: optional(record, "rationale")?,
        sft: optional(record, "sft")?.unwrap_or(true),
        judge: optional(record, "judge")?.unwrap_or(true),
    })
}

type Parts = (Vec<Message>, String, String);

/// TRL's preference type: explicit prompt (plain or conversational) or implicit prompt, which is the longest common
/// beginning of both sides.
fn trl(record: &mut Map<String, Value>) -> Result<Parts, ShapeError> {
    let prompt = record.remove("prompt").filter(|value| !value.is_null());
    let chosen = Side::take(record, "chosen")?;
    let rejected = Side::take(record, "rejected")?;
    let mut context = match prompt {
        Some(Value::String(text)) => vec![Message::new(Role::User, text)],
        Some(list) => parse(list, "prompt")?,
        None => {
            return match (chosen, rejected) {
                (Side::Text(chosen), Side::Text(rejected)) => implicit_text(&chosen, &rejected),
                (Side::Turns(chosen), Side::Turns(rejected)) => {
                    let shared = common(&chosen, &rejected);
                    if shared == 0 {
                        return Err(ShapeError::ContextsDiffer);
                    }
                    let context = chosen[..shared].to_vec();
                    Ok((
                        context,
                        answer(&chosen[shared..], "chosen")?,
                        answer(&rejected[shared..], "rejected")?,
                    ))
                }
                _ => Err(field("rejected", "has another type than `chosen`")),
            };
        }
    };
    if context.is_empty() {
        return Err(field("prompt", "is empty"));
    }
    // Some sets repeat the prompt at the head of both answers.
    let side = |side: Side, key: &'static str| match side {
        Side::Text(text) => Ok(text),
        Side::Turns(turns) => {
            let rest = turns.strip_prefix(context.as_slice()).unwrap_or(&turns);
            answer(rest, key)
        }
    };
    let answers = (side(chosen, "chosen")?, side(rejected, "rejected")?);
    context.shrink_to_fit();
    Ok((context, answers.0, answers.1))
}

/// One side of a TRL comparison.
enum Side {
    Text(String),
    Turns(Vec<Message>),
}

impl Side {
    fn take(record: &mut Map<String, Value>, key: &'static str) -> Result<Self, ShapeError> {
        match record.remove(key) {
            Some(Value::String(text)) => Ok(Side::Text(text)),
            Some(list) => Ok(Side::Turns(parse(list, key)?)),
            None => Err(field(key, "is missing")),
        }
    }
}

/// How many leading turns two conversations share, leaving each at least its last turn.
fn common(a: &[Message], b: &[Message]) -> usize {
    let most = a.len().min(b.len()).saturating_sub(1);
    (0..most).take_while(|&turn| a[turn] == b[turn]).count()
}

/// The one assistant turn a side must consist of.
fn answer(turns: &[Message], key: &'static str) -> Result<String, ShapeError> {
    match turns {
        [turn] if turn.role == Role::Assistant => Ok(turn.content.clone()),
        [_] => Err(field(key, "does not end with an assistant turn")),
        [] => Err(field(key, "holds no answer")),
        // More than one turn after the shared ones: the two conversations parted before the last answer.
        _ => Err(ShapeError::ContextsDiffer),
    }
}

/// Splits two plain texts at the end of their common beginning, moved back to a space so that no word is cut.
fn implicit_text(chosen: &str, rejected: &str) -> Result<Parts, ShapeError> {
    let mut end = 0;
    for ((at, a), b) in chosen.char_indices().zip(rejected.chars()) {
        if a != b {
            break;
        }
        end = at + a.len_utf8();
    }
    let cut = chosen[..end]
        .rfind(char::is_whitespace)
        .ok_or(ShapeError::ContextsDiffer)?;
    let prompt = &chosen[..cut];
    if prompt.trim().is_empty() {
        return Err(ShapeError::ContextsDiffer);
    }
    let tail = |side: &str| side[cut..].trim_start().to_owned();
    Ok((
        vec![Message::new(Role::User, prompt)],
        tail(chosen),
        tail(rejected),
    ))
}

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

fn is_transcript(text: &str) -> bool {
    let start = text.trim_start();
    (start.starts_with("Human:") || start.starts_with("Assistant:")) && text.contains(ASSISTANT)
}

/// Anthropic's HH transcripts: the answer is what follows the last assistant marker.
fn hh(chosen: String, rejected: String) -> Result<Parts, ShapeError> {
    let (context, chosen) = hh_side(&chosen, "chosen")?;
    let (other, rejected) = hh_side(&rejected, "rejected")?;
    if context != other {
        return Err(ShapeError::ContextsDiffer);
    }
    Ok((context, chosen, rejected))
}

fn hh_side(text: &str, key: &'static str) -> Result<(Vec<Message>, String), ShapeError> {
    let wrong = |problem| ShapeError::Transcript { key, problem };
    // A marker is told from ordinary text by its blank line; the first may have lost it to trimming.
    let text = format!("\n\n{}", text.trim_start());
    let mut turns =
        hh_turns(&text).ok_or(wrong("does not start with a Human or Assistant turn"))?;
    let last = turns.pop().ok_or(wrong("is empty"))?;
    if last.role != Role::Assistant {
        return Err(wrong("does not end with an Assistant turn"));
    }
    if turns.last().is_none_or(|turn| turn.role != Role::User) {
        return Err(wrong("has no Human turn before the last answer"));
    }
    Ok((turns, last.content))
}

/// Splits at the markers; turns of one speaker in a row are joined, as chat templates want roles to alternate.
fn hh_turns(text: &str) -> Option<Vec<Message>> {
    let marker = |rest: &str| {
        let human = rest.find(HUMAN).map(|at| (at, HUMAN.len(), Role::User));
        let other = rest
            .find(ASSISTANT)
            .map(|at| (at, ASSISTANT.len(), Role::Assistant));
        [human, other]
            .into_iter()
            .flatten()
            .min_by_key(|found| found.0)
    };
    let (at, length, mut role) = marker(text)?;
    if at != 0 {
        return None;
    }
    let mut rest = &text[length..];
    let mut turns: Vec<Message> = Vec::new();
    loop {
        let next = marker(rest);
        let content = rest[..next.map_or(rest.len(), |found| found.0)].trim();
        match turns.last_mut() {
            Some(turn) if turn.role == role => {
                turn.content.push_str("\n\n");
                turn.content.push_str(content);
            }
            _ => turns.push(Message::new(role, content)),
        }
        let Some((at, length, speaker)) = next else {
            return Some(turns);
        };
        rest = &rest[at + length..];
        role = speaker;
    }
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
    let messages: Vec<Message> = take(record, key)?;
    if messages.is_empty() {
        return Err(field(key, "is empty"));
    }
    Ok(messages)
}

/// Ids are strings here and numbers in some sets.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pair(value: Value, format: Format) -> PreferencePair {
        match read(value, format).unwrap() {
            Record::Pair(pair) => pair,
            Record::Item(item) => panic!("read as an item: {item:?}"),
        }
    }

    fn turns(turns: &[(&str, &str)]) -> Value {
        turns
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content}))
            .collect()
    }

    #[test]
    fn trl_plain_and_conversational() {
        let plain = pair(
            json!({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}),
            Format::Auto,
        );
        assert_eq!(plain.messages, [Message::new(Role::User, "The sky is")]);
        assert_eq!(
            (plain.chosen.as_str(), plain.rejected.as_str()),
            (" blue.", " green.")
        );
        assert!(plain.sft && plain.judge);

        let talk = pair(
            json!({
                "prompt": turns(&[("system", "s"), ("user", "q")]),
                "chosen": turns(&[("assistant", "x")]),
                "rejected": turns(&[("system", "s"), ("user", "q"), ("assistant", "y")]),
            }),
            Format::Auto,
        );
        assert_eq!(talk.messages.len(), 2);
        assert_eq!((talk.chosen.as_str(), talk.rejected.as_str()), ("x", "y"));
    }

    #[test]
    fn trl_implicit_prompt() {
        let talk = pair(
            json!({
                "chosen": turns(&[("user", "q"), ("assistant", "x"), ("user", "r"), ("assistant", "y")]),
                "rejected": turns(&[("user", "q"), ("assistant", "x"), ("user", "r"), ("assistant", "z")]),
            }),
            Format::Auto,
        );
        assert_eq!(talk.messages.len(), 3);
        assert_eq!((talk.chosen.as_str(), talk.rejected.as_str()), ("y", "z"));

        let same = pair(
            json!({
                "chosen": turns(&[("user", "q"), ("assistant", "x")]),
                "rejected": turns(&[("user", "q"), ("assistant", "x")]),
            }),
            Format::Auto,
        );
        assert_eq!((same.chosen, same.rejected), ("x".into(), "x".into()));

        let text = pair(
            json!({"chosen": "The sky is blue.", "rejected": "The sky is black."}),
            Format::Auto,
        );
        assert_eq!(text.messages[0].content, "The sky is");
        assert_eq!(
            (text.chosen.as_str(), text.rejected.as_str()),
            ("blue.", "black.")
        );

        for unlike in [
            json!({"chosen": "yes", "rejected": "no"}),
            json!({"chosen": turns(&[("user", "q"), ("assistant", "x")]), "rejected": turns(&[("user", "r"), ("assistant", "x")])}),
            json!({
                "chosen": turns(&[("user", "q"), ("assistant", "1"), ("user", "r"), ("assistant", "x")]),
                "rejected": turns(&[("user", "q"), ("assistant", "2"), ("user", "r"), ("assistant", "y")])
            }),
        ] {
            let error = read(unlike, Format::Auto).unwrap_err();
            assert!(matches!(error, ShapeError::ContextsDiffer), "{error}");
        }
    }

    #[test]
    fn hh_transcripts() {
        let chosen = "\n\nHuman: Hi\n\nAssistant: Hello. A list:\n\n1. one\n\nHuman: More\nplease\n\nAssistant: Sure\n\nand on";
        let rejected = "\n\nHuman: Hi\n\nAssistant: Hello. A list:\n\n1. one\n\nHuman: More\nplease\n\nAssistant: No";
        let pair = pair(
            json!({"chosen": chosen, "rejected": rejected}),
            Format::Auto,
        );
        assert_eq!(
            pair.messages,
            [
                Message::new(Role::User, "Hi"),
                Message::new(Role::Assistant, "Hello. A list:\n\n1. one"),
                Message::new(Role::User, "More\nplease"),
            ]
        );
        assert_eq!(pair.chosen, "Sure\n\nand on");
        assert_eq!(pair.rejected, "No");
    }

    #[test]
    fn hh_oddities() {
        let doubled = pair(
            json!({
                "chosen": "Human: a\n\nHuman: b\n\nAssistant: x",
                "rejected": "Human: a\n\nHuman: b\n\nAssistant: y",
            }),
            Format::Auto,
        );
        assert_eq!(doubled.messages, [Message::new(Role::User, "a\n\nb")]);
        // An empty answer is still an answer.
        let empty = pair(
            json!({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: y"}),
            Format::Hh,
        );
        assert_eq!(empty.chosen, "");
        for broken in [
            "no marker",
            "\n\nHuman: a\n\nAssistant: x\n\nHuman: b",
            "\n\nAssistant: x",
            "",
        ] {
            let error =
                read(json!({"chosen": broken, "rejected": broken}), Format::Hh).unwrap_err();
            assert!(
                matches!(error, ShapeError::Transcript { .. }),
                "{broken:?}: {error}"
            );
        }
    }

    #[test]
    fn extra_fields_and_their_types() {
        let pair = pair(
            json!({
                "id": 7, "messages": turns(&[("user", "q")]), "chosen": "x", "rejected": "y",
                "principles": "brief", "rationale": null, "sft": false, "judge": true, "rank_chosen": 0,
            }),
            Format::Auto,
        );
        assert_eq!(pair.id.as_deref(), Some("7"));
        assert_eq!(pair.principles, ["brief"]);
        assert!(!pair.sft && pair.judge && pair.rationale.is_none());
        for (wrong, name) in [
            (
                json!({"messages": [], "chosen": "x", "rejected": "y"}),
                "messages",
            ),
            (
                json!({"messages": turns(&[("robot", "q")]), "chosen": "x", "rejected": "y"}),
                "robot",
            ),
            (
                json!({"messages": turns(&[("user", "q")]), "chosen": 1, "rejected": "y"}),
                "chosen",
            ),
            (
                json!({"messages": turns(&[("user", "q")]), "a": "x", "b": "y", "label": "c"}),
                "label",
            ),
            (
                json!({"prompt": "q", "completion": "x", "label": true}),
                "prompt, completion, label",
            ),
            (json!([1]), "object"),
        ] {
            let error = read(wrong, Format::Auto).unwrap_err().to_string();
            assert!(error.contains(name), "{error} does not name {name}");
        }
        assert!(read(json!({"chosen": "x", "rejected": "y"}), Format::Judge).is_err());
    }
}
