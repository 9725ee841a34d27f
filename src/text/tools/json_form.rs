//! Tools for models whose chat template has no known tool format: as plain turns.
//!
//! A system message lists the tools and explains how to call one; earlier calls and their results are written as turns of the assistant
//! and the user.

use serde_json::{Map, Value, json};

use super::{Tool, ToolCall, ToolChat, ToolTurn};
use crate::python_json::{JsonStyle, dumps};
use crate::{Message, Role};

/// The place of the instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the system message, which is created if there is none.
    System,
    /// Before the first message of the user: some templates do not accept a system message.
    User,
}

/// Returns a conversation with tools as plain turns.
pub(crate) fn plain(chat: &ToolChat, place: Place) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::with_capacity(chat.turns.len() + 1);
    // Whether the last message holds results, which are joined with the next user turn: many templates require turns to alternate.
    let mut results = false;
    for turn in &chat.turns {
        let (message, is_result) = match turn {
            ToolTurn::Message(message) => (message.clone(), false),
            ToolTurn::Called { content, calls } => {
                let lines = calls.iter().map(written);
                let text = (!content.trim().is_empty()).then(|| content.clone());
                let lines: Vec<String> = text.into_iter().chain(lines).collect();
                (Message::new(Role::Assistant, lines.join("\n")), false)
            }
            ToolTurn::Answered { call, content } => {
                (Message::new(Role::User, result(call, content)), true)
            }
        };
        match messages.last_mut() {
            Some(last) if results && message.role == Role::User => {
                last.content.push_str("\n\n");
                last.content.push_str(&message.content);
            }
            _ => messages.push(message),
        }
        results = is_result;
    }
    if !chat.tools.is_empty() {
        instruct(&mut messages, &instruction(&chat.tools), place);
    }
    messages
}

/// Returns whether the instruction can be put in another place: if the conversation has no system message of its own.
pub(crate) fn can_move(chat: &ToolChat) -> bool {
    let mut turns = chat.turns.iter();
    let system = |turn: &ToolTurn| matches!(turn, ToolTurn::Message(message) if message.role == Role::System);
    !chat.tools.is_empty() && !turns.any(system)
}

/// Writes the instruction into the conversation.
fn instruct(messages: &mut Vec<Message>, instruction: &str, place: Place) {
    match place {
        Place::System => match messages.first_mut() {
            Some(first) if first.role == Role::System => {
                first.content.push_str("\n\n");
                first.content.push_str(instruction);
            }
            _ => messages.insert(0, Message::new(Role::System, instruction)),
        },
        Place::User => match messages
            .iter_mut()
            .find(|message| message.role == Role::User)
        {
            Some(first) => first.content = format!("{instruction}\n\n{}", first.content),
            None => messages.insert(0, Message::new(Role::User, instruction)),
        },
    }
}

/// Returns the model's instruction for its tools. It is short: small models have short contexts.
fn instruction(tools: &[Tool]) -> String {
    let mut text = "You can call these tools:\n".to_owned();
    for tool in tools {
        text.push_str(&tool.function().to_string());
        text.push('\n');
    }
    text.push_str(
        "To call a tool, answer only with a line {\"name\": ..., \"arguments\": {...}} for each call.",
    );
    text
}

/// Returns a call as a model writes it in this format.
fn written(call: &ToolCall) -> String {
    let (name, arguments) = (json!(call.name), spaced(&call.arguments));
    format!("{{\"name\": {name}, \"arguments\": {arguments}}}")
}

/// Returns arguments with a space after commas and colons, as grammars require and as most models write JSON.
fn spaced(arguments: &Map<String, Value>) -> String {
    dumps(&Value::Object(arguments.clone()), &JsonStyle::default())
}

/// Returns a result, with the call that it belongs to.
fn result(call: &ToolCall, content: &str) -> String {
    let arguments = spaced(&call.arguments);
    format!("Result of {}({arguments}):\n{content}", call.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, city: &str) -> ToolCall {
        let arguments = json!({"city": city});
        ToolCall {
            id: id.into(),
            name: "weather".into(),
            arguments: arguments.as_object().unwrap().clone(),
        }
    }

    fn chat(system: Option<&str>) -> ToolChat {
        let (a, b) = (call("1", "Bonn"), call("2", "Köln"));
        let message = |role, text: &str| ToolTurn::Message(Message::new(role, text));
        let answered = |call: &ToolCall, text: &str| ToolTurn::Answered {
            call: call.clone(),
            content: text.into(),
        };
        let turns = [
            message(Role::User, "Weather?"),
            ToolTurn::Called {
                content: "I look.".into(),
                calls: vec![a.clone(), b.clone()],
            },
            answered(&a, "18"),
            answered(&b, "19"),
            message(Role::User, "Short, please."),
            message(Role::Assistant, "18 and 19."),
            message(Role::User, "Thanks."),
        ];
        let system = system.map(|text| message(Role::System, text));
        ToolChat {
            turns: system.into_iter().chain(turns).collect(),
            tools: vec![Tool {
                name: "weather".into(),
                description: Some("Tells it.".into()),
                parameters: json!({"type": "object"}),
                strict: true,
            }],
        }
    }

    const INSTRUCTION: &str = "You can call these tools:\n{\"name\":\"weather\",\"description\":\"Tells it.\",\"parameters\":{\"type\":\"object\"}}\n\
        To call a tool, answer only with a line {\"name\": ..., \"arguments\": {...}} for each call.";

    #[test]
    fn calls_and_results_become_turns_that_alternate() {
        let rendered: Vec<(Role, String)> = plain(&chat(None), Place::System)
            .into_iter()
            .map(|message| (message.role, message.content))
            .collect();
        let expected = [
            (Role::System, INSTRUCTION),
            (Role::User, "Weather?"),
            (
                Role::Assistant,
                "I look.\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}",
            ),
            (
                Role::User,
                "Result of weather({\"city\": \"Bonn\"}):\n18\n\nResult of weather({\"city\": \"Köln\"}):\n19\n\nShort, please.",
            ),
            (Role::Assistant, "18 and 19."),
            (Role::User, "Thanks."),
        ];
        assert_eq!(
            rendered,
            expected.map(|(role, text)| (role, text.to_owned()))
        );
    }

    #[test]
    fn the_instruction_joins_a_system_message_or_the_first_of_the_user() {
        let with_system = plain(&chat(Some("Be brief.")), Place::System);
        assert_eq!(
            with_system[0].content,
            format!("Be brief.\n\n{INSTRUCTION}")
        );
        assert_eq!(with_system.len(), 6);
        let with_user = plain(&chat(None), Place::User);
        assert_eq!(with_user[0].content, format!("{INSTRUCTION}\n\nWeather?"));
        let untold = ToolChat {
            tools: Vec::new(),
            ..chat(None)
        };
        assert_eq!(plain(&untold, Place::System)[0].content, "Weather?");
    }
}
