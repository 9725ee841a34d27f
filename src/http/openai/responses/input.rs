//! What is answered: a text, or the items of a conversation.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::http::conversation::ContentBody;
use crate::http::error::ApiError;
use crate::http::one_or_many::{Given, one_or_many};
use crate::preference::{Message, Role};
use crate::service::Ending;

/// A text of the user, or the items of a conversation.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum InputBody {
    Text(String),
    Items(Vec<ItemBody>),
}

impl Default for InputBody {
    fn default() -> Self {
        Self::Items(Vec::new())
    }
}

impl<'de> Deserialize<'de> for InputBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = one_or_many(deserializer, "a string or a list of messages");
        read.map(|read| match read {
            Given::Text(text) => Self::Text(text),
            Given::List(items) => Self::Items(items),
        })
    }
}

/// A message of a conversation. There are no other items than messages.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemBody {
    /// `message`, the default.
    #[serde(rename = "type")]
    kind: Option<ItemKind>,
    /// Who speaks.
    role: InputRole,
    /// The text, whole or in parts.
    content: ContentBody,
    /// Whether the message is whole. In a last message of the assistant that is `incomplete` or `in_progress` the answer goes on.
    status: Option<ItemStatus>,
}

/// The kind of an item.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    Message,
}

/// Who speaks; `developer` is another name of `system`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InputRole {
    User,
    Assistant,
    System,
    Developer,
}

/// How far a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

impl ItemBody {
    /// Whether the answer goes on in this message, if it is the last.
    fn is_open(&self) -> bool {
        let unfinished = [Some(ItemStatus::InProgress), Some(ItemStatus::Incomplete)];
        self.role == InputRole::Assistant && unfinished.contains(&self.status)
    }
}

impl From<ItemBody> for Message {
    fn from(item: ItemBody) -> Self {
        let role = match item.role {
            InputRole::System | InputRole::Developer => Role::System,
            InputRole::User => Role::User,
            InputRole::Assistant => Role::Assistant,
        };
        Self::new(role, item.content.into_text())
    }
}

impl InputBody {
    /// Returns the messages, and how the prompt ends where the answer goes on in the last of them.
    ///
    /// # Errors
    /// An input without a text or a message.
    pub fn into_messages(self) -> Result<(Vec<Message>, Option<Ending>), ApiError> {
        match self {
            Self::Text(text) if !text.is_empty() => {
                Ok((vec![Message::new(Role::User, text)], None))
            }
            Self::Items(items) if !items.is_empty() => {
                let open = items.last().is_some_and(ItemBody::is_open);
                let messages = items.into_iter().map(Message::from).collect();
                Ok((messages, open.then_some(Ending::Continued)))
            }
            _ => Err(ApiError::invalid("input", "must not be empty")),
        }
    }
}
