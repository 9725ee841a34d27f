//! TRL's preference records: strings or message lists, with the prompt of its own or at the head of both sides.

use serde_json::{Map, Value};

use super::{Parts, ShapeError, field, parse};
use crate::preference::{Message, Role};

/// TRL's preference type: explicit prompt (plain or conversational) or implicit prompt, which is the longest common
/// beginning of both sides.
pub(super) fn read(record: &mut Map<String, Value>) -> Result<Parts, ShapeError> {
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
