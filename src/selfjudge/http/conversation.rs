//! Conversations in request bodies.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::one_or_many::{Given, one_or_many};
use crate::service::Ending;
use text::{Message, Role};

/// The author of a message.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RoleBody {
    System,
    /// A synonym of `system`.
    Developer,
    User,
    Assistant,
}

/// The text of a message, as a string or in parts.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ContentBody {
    Text(String),
    Parts(Vec<TextPart>),
}

impl<'de> Deserialize<'de> for ContentBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = one_or_many(deserializer, "a string or a list of text parts");
        read.map(|read| match read {
            Given::Text(text) => Self::Text(text),
            Given::List(parts) => Self::Parts(parts),
        })
    }
}

/// A part of a message. Only text parts exist.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextPart {
    /// The kind of the part.
    #[serde(rename = "type")]
    pub kind: TextKind,
    /// The text of the part.
    pub text: String,
}

/// The kind of a part, always text.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
pub enum TextKind {
    #[serde(rename = "text")]
    Text,
    #[serde(rename = "input_text")]
    InputText,
    #[serde(rename = "output_text")]
    OutputText,
}

impl ContentBody {
    /// Returns the text, with its parts joined.
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageBody {
    /// The author of the message.
    pub role: RoleBody,
    /// The text. Null is allowed only in a message of the assistant and means an empty text.
    #[schema(value_type = Option<ContentBody>, required)]
    pub content: ContentBody,
}

impl From<MessageBody> for Message {
    fn from(message: MessageBody) -> Self {
        let role = match message.role {
            RoleBody::System | RoleBody::Developer => Role::System,
            RoleBody::User => Role::User,
            RoleBody::Assistant => Role::Assistant,
        };
        Self::new(role, message.content.into_text())
    }
}

/// Converts `messages` to a conversation.
pub fn messages(messages: Vec<MessageBody>) -> Result<Vec<Message>, ApiError> {
    match messages.is_empty() {
        true => Err(ApiError::invalid("messages", "must not be empty")),
        false => Ok(messages.into_iter().map(Message::from).collect()),
    }
}

/// Converts `prompt` or `messages` to a conversation; a prompt is one message of the user.
pub fn conversation(
    prompt: Option<String>,
    given: Option<Vec<MessageBody>>,
) -> Result<Vec<Message>, ApiError> {
    match (prompt, given) {
        (Some(prompt), None) if prompt.is_empty() => {
            Err(ApiError::invalid("prompt", "must not be empty"))
        }
        (Some(prompt), None) => Ok(vec![Message::new(Role::User, prompt)]),
        (None, Some(given)) => messages(given),
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "prompt",
            "cannot be given together with `messages`",
        )),
        (None, None) => Err(ApiError::invalid(
            "prompt",
            "`prompt` or `messages` must be given",
        )),
    }
}

/// Returns how the caller wants a conversation's prompt to end, unless it opens the next answer. Both parameters come from vLLM.
///
/// # Errors
/// Fails if both are set.
pub fn ending(
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
) -> Result<Option<Ending>, ApiError> {
    match (add_generation_prompt, continue_final_message) {
        (Some(true), Some(true)) => Err(ApiError::invalid(
            "continue_final_message",
            "cannot be combined with add_generation_prompt: the answer goes on in the last message, or begins a new one",
        )),
        (_, Some(true)) => Ok(Some(Ending::Continued)),
        (Some(false), _) => Ok(Some(Ending::Closed)),
        _ => Ok(None),
    }
}
