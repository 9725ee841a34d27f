//! Conversations, as callers write them down.

use serde::Deserialize;
use utoipa::ToSchema;

use super::error::ApiError;
use crate::preference::{Message, Role};

/// Who speaks.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RoleBody {
    System,
    /// Another name of `system`.
    Developer,
    User,
    Assistant,
}

/// A message's text, whole or in parts.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of text parts")]
pub enum ContentBody {
    Text(String),
    Parts(Vec<TextPart>),
}

/// A part of a message. There are no other parts than text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextPart {
    #[serde(rename = "type")]
    pub kind: TextKind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
pub enum TextKind {
    #[serde(rename = "text")]
    Text,
    #[serde(rename = "input_text")]
    InputText,
    #[serde(rename = "output_text")]
    OutputText,
}

impl ContentBody {
    fn into_text(self) -> String {
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
    pub role: RoleBody,
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

/// The conversation of `messages`.
pub fn messages(messages: Vec<MessageBody>) -> Result<Vec<Message>, ApiError> {
    match messages.is_empty() {
        true => Err(ApiError::invalid("messages", "must not be empty")),
        false => Ok(messages.into_iter().map(Message::from).collect()),
    }
}

/// The conversation that `prompt` or `messages` stands for: a prompt is one message of the user.
pub fn conversation(
    prompt: Option<String>,
    said: Option<Vec<MessageBody>>,
) -> Result<Vec<Message>, ApiError> {
    match (prompt, said) {
        (Some(prompt), None) if prompt.is_empty() => {
            Err(ApiError::invalid("prompt", "must not be empty"))
        }
        (Some(prompt), None) => Ok(vec![Message::new(Role::User, prompt)]),
        (None, Some(said)) => messages(said),
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "prompt",
            "cannot be given together with messages",
        )),
        (None, None) => Err(ApiError::invalid("prompt", "or messages must be given")),
    }
}
