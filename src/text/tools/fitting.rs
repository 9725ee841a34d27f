//! Adaptation of conversations to the templates of some model families.

use std::borrow::Cow;

use super::{ToolCall, ToolChat, ToolTurn};

/// Length of an id in characters, which Mistral's templates require.
const SHORT_ID: usize = 9;

/// Returns the conversation with one call per turn, each followed by its result: Llama's templates reject several.
pub(super) fn one_at_a_time(chat: &ToolChat) -> Cow<'_, ToolChat> {
    let several =
        |turn: &ToolTurn| matches!(turn, ToolTurn::Called { calls, .. } if calls.len() > 1);
    if !chat.turns.iter().any(several) {
        return Cow::Borrowed(chat);
    }
    let mut turns: Vec<ToolTurn> = Vec::with_capacity(chat.turns.len() + 1);
    let mut rest = chat.turns.as_slice();
    while let Some((turn, behind)) = rest.split_first() {
        rest = behind;
        let ToolTurn::Called { content, calls } = turn else {
            turns.push(turn.clone());
            continue;
        };
        let results = rest
            .iter()
            .take_while(|turn| matches!(turn, ToolTurn::Answered { .. }));
        let (results, behind) = rest.split_at(results.count());
        rest = behind;
        for (at, call) in calls.iter().enumerate() {
            turns.push(ToolTurn::Called {
                content: if at == 0 {
                    content.clone()
                } else {
                    String::new()
                },
                calls: vec![call.clone()],
            });
            let of_call = |turn: &&ToolTurn| matches!(turn, ToolTurn::Answered { call: of, .. } if of.id == call.id);
            turns.extend(results.iter().filter(of_call).cloned());
        }
        let known = |turn: &ToolTurn| matches!(turn, ToolTurn::Answered { call: of, .. } if calls.iter().any(|call| call.id == of.id));
        turns.extend(results.iter().filter(|turn| !known(turn)).cloned());
    }
    Cow::Owned(ToolChat {
        turns,
        tools: chat.tools.clone(),
    })
}

/// Returns the conversation with ids of nine letters and digits.
pub(super) fn with_short_ids(chat: &ToolChat) -> Cow<'_, ToolChat> {
    if !chat
        .turns
        .iter()
        .any(|turn| !matches!(turn, ToolTurn::Message(_)))
    {
        return Cow::Borrowed(chat);
    }
    let mut chat = chat.clone();
    for turn in &mut chat.turns {
        match turn {
            ToolTurn::Message(_) => {}
            ToolTurn::Called { calls, .. } => calls.iter_mut().for_each(shorten),
            ToolTurn::Answered { call, .. } => shorten(call),
        }
    }
    Cow::Owned(chat)
}

/// Keeps the end of an id, which is its random part.
fn shorten(call: &mut ToolCall) {
    let letters: Vec<char> = call
        .id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let end = letters[letters.len().saturating_sub(SHORT_ID)..].iter();
    call.id = format!("{:0>SHORT_ID$}", end.collect::<String>());
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn call(id: &str) -> ToolCall {
        ToolCall {
            id: id.into(),
            name: "f".into(),
            arguments: Map::new(),
        }
    }

    fn chat() -> ToolChat {
        let answered = |id: &str| ToolTurn::Answered {
            call: call(id),
            content: id.into(),
        };
        ToolChat {
            turns: vec![
                ToolTurn::Called {
                    content: "x".into(),
                    calls: vec![call("call_a"), call("call_0123456789")],
                },
                answered("call_0123456789"),
                answered("call_a"),
            ],
            tools: Vec::new(),
        }
    }

    #[test]
    fn calls_come_one_at_a_time_with_their_results() {
        let chat = chat();
        let turns = &one_at_a_time(&chat).turns;
        let contents: Vec<String> = turns
            .iter()
            .map(|turn| match turn {
                ToolTurn::Called { content, calls } => format!("{content}+{}", calls[0].id),
                ToolTurn::Answered { content, .. } => content.clone(),
                ToolTurn::Message(message) => message.content.clone(),
            })
            .collect();
        assert_eq!(
            contents,
            ["x+call_a", "call_a", "+call_0123456789", "call_0123456789"]
        );
    }

    #[test]
    fn ids_get_nine_letters() {
        let chat = chat();
        let short = with_short_ids(&chat);
        let ToolTurn::Called { calls, .. } = &short.turns[0] else {
            panic!("{short:?}");
        };
        assert_eq!((&*calls[0].id, &*calls[1].id), ("0000calla", "123456789"));
        assert!(
            matches!(&short.turns[2], ToolTurn::Answered { call, .. } if call.id == calls[0].id)
        );
    }
}
