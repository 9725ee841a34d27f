//! Lists of messages. No key that would change what a model reads is ignored.

use serde_json::{Map, Value};

use super::{ShapeError, columns, field};
use text::{Message, Role};

/// Reads the conversation of a list of messages.
///
/// # Errors
/// Errors with the message's number and its unsupported part: another role, content that is not text, tool calls, reasoning, and every
/// other key that is not known to be metadata.
pub(super) fn read(value: Value, key: &'static str) -> Result<Vec<Message>, ShapeError> {
    let Value::Array(list) = value else {
        return Err(field(
            key,
            format!(
                "cannot be read: it is {}, not a list of messages",
                of(&value)
            ),
        ));
    };
    let read = list.into_iter().enumerate();
    read.map(|(at, message)| {
        one(message).map_err(|problem| {
            field(
                key,
                format!("cannot be read at message {}: {problem}", at + 1),
            )
        })
    })
    .collect()
}

fn one(message: Value) -> Result<Message, String> {
    let Value::Object(mut message) = message else {
        return Err(format!("it is {}, not an object", of(&message)));
    };
    let role = match text(&mut message, "role")?.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => {
            return Err(format!(
                "the role `{other}` is not supported, only system, user and assistant"
            ));
        }
    };
    // Checked before the content, because a turn that only calls tools has none.
    let unknown = message
        .iter()
        .filter(|(key, _)| *key != "content")
        .find(|(key, value)| !columns::is_empty(value) && !columns::is_about_a_message(key, value));
    if let Some((key, _)) = unknown {
        return Err(format!("`{key}` is not supported"));
    }
    Ok(Message::new(role, text(&mut message, "content")?))
}

fn text(message: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match message.remove(key) {
        Some(Value::String(text)) => Ok(text),
        None => Err(format!("it has no `{key}`")),
        Some(Value::Null) => Err(format!("its `{key}` is null")),
        Some(other) => Err(format!("its `{key}` is {}, not text", of(&other))),
    }
}

/// Returns the type of a JSON value in words.
pub(super) fn of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
