//! TRL's preference records: strings or message lists, with an explicit prompt or with the prompt at the beginning of both sides.

use serde_json::{Map, Value};

use super::{Parts, ShapeError, columns, field, messages};
use text::{Message, Role};

/// Reads TRL's preference type. The prompt is explicit (plain or conversational) or implicit: the longest common beginning of both sides.
/// A plain prompt beside two conversations that contain it is ignored, as in TRL.
pub(super) fn read(record: &mut Map<String, Value>) -> Result<Parts, ShapeError> {
    let prompt = record.remove("prompt").filter(|value| !value.is_null());
    let chosen = Side::take(record, "chosen")?;
    let rejected = Side::take(record, "rejected")?;
    match (prompt, chosen, rejected) {
        (Some(Value::String(prompt)), Side::Text(chosen), Side::Text(rejected)) => Ok(Parts {
            messages: vec![Message::new(Role::User, prompt)],
            chosen,
            rejected,
            plain: true,
            guessed: false,
        }),
        (Some(Value::String(prompt)), Side::Turns(chosen), Side::Turns(rejected)) => {
            if chosen.len() == 1 && rejected.len() == 1 {
                return explicit(vec![Message::new(Role::User, prompt)], &chosen, &rejected);
            }
            let parts = implicit(&chosen, &rejected)?;
            match columns::is_told(&prompt, &parts.messages) {
                true => Ok(parts),
                false => Err(field(
                    "prompt",
                    "does not occur in the conversations of the answers",
                )),
            }
        }
        (Some(list), chosen, rejected) => {
            let context = messages::read(list, "prompt")?;
            if context.is_empty() {
                return Err(field("prompt", "is empty"));
            }
            explicit(context, &chosen.turns(), &rejected.turns())
        }
        (None, Side::Text(chosen), Side::Text(rejected)) => implicit_text(&chosen, &rejected),
        (None, Side::Turns(chosen), Side::Turns(rejected)) => implicit(&chosen, &rejected),
        (None, ..) => Err(field("rejected", "has a different type from `chosen`")),
    }
}

/// Returns the parts of a record with an explicit prompt. Some sets repeat the prompt at the beginning of both sides.
fn explicit(
    context: Vec<Message>,
    chosen: &[Message],
    rejected: &[Message],
) -> Result<Parts, ShapeError> {
    let rest = |turns| <[Message]>::strip_prefix(turns, context.as_slice()).unwrap_or(turns);
    let answers = (
        answer(rest(chosen), "chosen")?,
        answer(rest(rejected), "rejected")?,
    );
    Ok(conversation(context, answers))
}

/// Returns the parts of a record whose prompt is the common beginning of both conversations.
fn implicit(chosen: &[Message], rejected: &[Message]) -> Result<Parts, ShapeError> {
    let shared = common(chosen, rejected);
    if shared == 0 {
        return Err(ShapeError::ContextsDiffer);
    }
    let answers = (
        answer(&chosen[shared..], "chosen")?,
        answer(&rejected[shared..], "rejected")?,
    );
    Ok(conversation(chosen[..shared].to_vec(), answers))
}

fn conversation(messages: Vec<Message>, (chosen, rejected): (String, String)) -> Parts {
    Parts {
        messages,
        chosen,
        rejected,
        plain: false,
        guessed: false,
    }
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
            Some(list @ Value::Array(_)) => Ok(Side::Turns(messages::read(list, key)?)),
            other => Err(field(key, columns::missing_answer(other.as_ref()))),
        }
    }

    /// Returns the side as turns: a plain text becomes one assistant turn.
    fn turns(self) -> Vec<Message> {
        match self {
            Side::Text(text) => vec![Message::new(Role::Assistant, text)],
            Side::Turns(turns) => turns,
        }
    }
}

/// Returns the number of leading turns that two conversations share. Each keeps at least its last turn.
fn common(a: &[Message], b: &[Message]) -> usize {
    let most = a.len().min(b.len()).saturating_sub(1);
    (0..most).take_while(|&turn| a[turn] == b[turn]).count()
}

/// Returns the answer of a side, which must be exactly one assistant turn.
fn answer(turns: &[Message], key: &'static str) -> Result<String, ShapeError> {
    match turns {
        [turn] if turn.role == Role::Assistant => Ok(turn.content.clone()),
        [_] => Err(field(key, "does not end with an assistant turn")),
        [] => Err(field(key, "contains no answer")),
        // More than one turn after the common ones: the two conversations differ before their last answer.
        _ => Err(ShapeError::ContextsDiffer),
    }
}

/// Splits two plain texts at the end of their common beginning, moved back to a space so that no word is cut. As in TRL, the space
/// belongs to the answers.
fn implicit_text(chosen: &str, rejected: &str) -> Result<Parts, ShapeError> {
    let mut end = 0;
    for ((at, a), b) in chosen.char_indices().zip(rejected.chars()) {
        if a != b {
            break;
        }
        end = at + a.len_utf8();
    }
    let shared = &chosen[..end];
    let cut = shared
        .rfind(char::is_whitespace)
        .map(|space| shared[..space].trim_end().len())
        .ok_or(ShapeError::ContextsDiffer)?;
    let prompt = &chosen[..cut];
    if prompt.trim().is_empty() {
        return Err(ShapeError::ContextsDiffer);
    }
    Ok(Parts {
        messages: vec![Message::new(Role::User, prompt)],
        chosen: chosen[cut..].to_owned(),
        rejected: rejected[cut..].to_owned(),
        plain: true,
        guessed: true,
    })
}
