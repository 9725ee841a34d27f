//! Transcripts of Anthropic's HH sets.

use serde_json::{Map, Value};

use super::{Parts, ShapeError, take};
use text::{Message, Role};

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

pub(super) fn is_transcript(text: &str) -> bool {
    let start = text.trim_start();
    (start.starts_with("Human:") || start.starts_with("Assistant:")) && text.contains(ASSISTANT)
}

/// Reads a pair of transcripts. The answer is the text after the last assistant marker.
pub(super) fn read(record: &mut Map<String, Value>) -> Result<Parts, ShapeError> {
    let (context, chosen) = side(record, "chosen")?;
    let (other, rejected) = side(record, "rejected")?;
    if context != other {
        return Err(ShapeError::ContextsDiffer);
    }
    Ok(Parts {
        messages: context,
        chosen,
        rejected,
        plain: false,
        guessed: false,
    })
}

fn side(
    record: &mut Map<String, Value>,
    key: &'static str,
) -> Result<(Vec<Message>, String), ShapeError> {
    let text: String = take(record, key)?;
    let wrong = |problem| ShapeError::Transcript { key, problem };
    // Markers differ from ordinary text by the blank line before them; the first marker may have lost it to trimming.
    let text = format!("\n\n{}", text.trim_start());
    let mut turns = split(&text).ok_or(wrong("does not start with a Human or Assistant turn"))?;
    let last = turns.pop().ok_or(wrong("is empty"))?;
    if last.role != Role::Assistant {
        return Err(wrong("does not end with an Assistant turn"));
    }
    if turns.last().is_none_or(|turn| turn.role != Role::User) {
        return Err(wrong("has no Human turn before the last answer"));
    }
    Ok((turns, last.content))
}

/// Splits a transcript at its markers. Consecutive turns of one speaker are joined, because chat templates require alternating roles.
fn split(text: &str) -> Option<Vec<Message>> {
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
