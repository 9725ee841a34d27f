//! Messages of a chat, including tool calls and their results.

use std::collections::HashMap;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::definitions::{ToolKind, check_name};
use crate::http::calls::Calls;
use crate::http::conversation::ContentBody;
use crate::http::error::{ApiError, shortened};
use text::{Message, Role, ToolCall, ToolChat, ToolTurn};

/// Maximum bytes of a tool call's id.
const MOST_ID: usize = 256;

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChatRoleBody {
    System,
    /// A synonym of `system`.
    Developer,
    User,
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// One message of a conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatMessageBody {
    /// The author of the message.
    role: ChatRoleBody,
    /// The text. Null is allowed only in a message of the assistant and means an empty text; with tool calls the field may be absent.
    content: Option<ContentBody>,
    /// The tool calls of a message of the assistant.
    tool_calls: Option<Vec<ToolCallBody>>,
    /// In a message of the role `tool`: the id of the answered call.
    tool_call_id: Option<String>,
    /// In a message of the role `tool`: the name of the called function.
    name: Option<String>,
}

/// An earlier tool call.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolCallBody {
    /// The id of the call, for the message with its result.
    #[schema(max_length = 256)]
    id: String,
    /// `function`, the default.
    #[serde(rename = "type")]
    _kind: Option<ToolKind>,
    /// The function and its arguments.
    function: CalledBody,
}

/// The function of an earlier tool call.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CalledBody {
    /// The name of the function.
    name: String,
    /// A JSON object, serialized as a string.
    arguments: String,
}

/// A conversation, with or without tools.
pub enum Conversation {
    Plain(Vec<Message>),
    /// It contains tool calls or their results.
    Tools(Vec<ToolTurn>),
}

/// Converts `messages` to a conversation.
///
/// # Errors
/// Fails if there are no messages, if a field does not belong to a message's role, or if a result has no earlier call.
pub fn conversation(messages: Vec<ChatMessageBody>) -> Result<Conversation, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "must not be empty"));
    }
    let mut turns = Vec::with_capacity(messages.len());
    let mut made: HashMap<String, ToolCall> = HashMap::new();
    for (at, message) in messages.into_iter().enumerate() {
        let turn = message.turn(&format!("messages[{at}]"), &made)?;
        if let ToolTurn::Called { calls, .. } = &turn {
            made.extend(calls.iter().map(|call| (call.id.clone(), call.clone())));
        }
        turns.push(turn);
    }
    let messages = turns.iter().map(|turn| match turn {
        ToolTurn::Message(message) => Some(message.clone()),
        ToolTurn::Called { .. } | ToolTurn::Answered { .. } => None,
    });
    Ok(match messages.collect() {
        Some(messages) => Conversation::Plain(messages),
        None => Conversation::Tools(turns),
    })
}

impl Conversation {
    /// Returns the conversation with the tools that its next answer may call.
    pub fn with_tools(self, calls: Option<&Calls>) -> ToolChat {
        ToolChat {
            turns: match self {
                Self::Plain(messages) => messages.into_iter().map(ToolTurn::Message).collect(),
                Self::Tools(turns) => turns,
            },
            tools: calls.map(|calls| calls.tools.clone()).unwrap_or_default(),
        }
    }
}

impl ChatMessageBody {
    fn turn(self, place: &str, made: &HashMap<String, ToolCall>) -> Result<ToolTurn, ApiError> {
        let unknown = |field: &str| {
            let name = format!("{place}.{field}");
            let message = format!("`{name}` is not a parameter of messages of this role");
            Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(name))
        };
        let must_be_given = |field: &str| {
            Err(ApiError::invalid(
                format!("{place}.{field}"),
                "must be given",
            ))
        };
        let role = match self.role {
            ChatRoleBody::System | ChatRoleBody::Developer => Role::System,
            ChatRoleBody::User => Role::User,
            ChatRoleBody::Assistant => Role::Assistant,
            ChatRoleBody::Tool => {
                if self.tool_calls.is_some() {
                    return unknown("tool_calls");
                }
                let Some(id) = self.tool_call_id else {
                    return must_be_given("tool_call_id");
                };
                let Some(content) = self.content else {
                    return must_be_given("content");
                };
                return answered(id, self.name, content, place, made);
            }
        };
        if self.tool_call_id.is_some() {
            return unknown("tool_call_id");
        }
        if self.name.is_some() {
            return unknown("name");
        }
        match (self.tool_calls, self.content) {
            (Some(_), _) if role != Role::Assistant => unknown("tool_calls"),
            (Some(calls), content) => Ok(ToolTurn::Called {
                content: content.map(ContentBody::into_text).unwrap_or_default(),
                calls: called(calls, place)?,
            }),
            (None, Some(content)) => Ok(ToolTurn::Message(Message::new(role, content.into_text()))),
            (None, None) => must_be_given("content"),
        }
    }
}

/// Returns the result of an earlier tool call.
fn answered(
    id: String,
    name: Option<String>,
    content: ContentBody,
    place: &str,
    made: &HashMap<String, ToolCall>,
) -> Result<ToolTurn, ApiError> {
    let Some(call) = made.get(&id) else {
        let message = format!(
            "names the call {}, which is in no earlier message",
            shortened(&id)
        );
        return Err(ApiError::invalid(format!("{place}.tool_call_id"), message));
    };
    if let Some(name) = name.filter(|name| *name != call.name) {
        let message = format!(
            "is {}, and the call {} is one of {:?}",
            shortened(&name),
            shortened(&id),
            call.name
        );
        return Err(ApiError::invalid(format!("{place}.name"), message));
    }
    Ok(ToolTurn::Answered {
        call: call.clone(),
        content: content.into_text(),
    })
}

/// Returns the tool calls of a message.
fn called(calls: Vec<ToolCallBody>, place: &str) -> Result<Vec<ToolCall>, ApiError> {
    let mut read: Vec<ToolCall> = Vec::with_capacity(calls.len());
    for (at, call) in calls.into_iter().enumerate() {
        let place = format!("{place}.tool_calls[{at}]");
        let invalid = |field: &str, message: String| {
            Err(ApiError::invalid(format!("{place}.{field}"), message))
        };
        if call.id.is_empty() || call.id.len() > MOST_ID {
            let message = format!("must have from 1 to {MOST_ID} bytes, not {}", call.id.len());
            return invalid("id", message);
        }
        if read.iter().any(|other| other.id == call.id) {
            return invalid(
                "id",
                format!("is {}, which names two calls", shortened(&call.id)),
            );
        }
        check_name(&call.function.name, &format!("{place}.function"))?;
        let written = call.function.arguments.trim();
        let arguments = match written.is_empty() {
            true => Ok(Map::new()),
            false => serde_json::from_str::<Map<String, Value>>(written),
        };
        let Ok(arguments) = arguments else {
            let message = "must be a JSON object, written as a string".to_owned();
            return invalid("function.arguments", message);
        };
        read.push(ToolCall {
            id: call.id,
            name: call.function.name,
            arguments,
        });
    }
    Ok(read)
}
