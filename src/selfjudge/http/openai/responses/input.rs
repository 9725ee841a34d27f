//! The input: a text, or the items of a conversation.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::http::conversation::ContentBody;
use crate::http::error::ApiError;
use crate::http::one_or_many::{Given, one_or_many};
use crate::service::Ending;
use text::{Message, Role};

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

/// A message of a conversation. Only message items exist.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ItemBody {
    /// `message`, the default.
    #[serde(rename = "type")]
    kind: Option<ItemKind>,
    /// The author of the message.
    role: InputRole,
    /// The text, as a string or in parts.
    content: ContentBody,
    /// The status of the message. The answer continues a last message of the assistant that is `incomplete` or `in_progress`.
    status: Option<ItemStatus>,
}

/// The kind of an item.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    Message,
}

/// The author of a message; `developer` is a synonym of `system`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InputRole {
    User,
    Assistant,
    System,
    Developer,
}

/// The status of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

impl ItemBody {
    /// Returns whether the answer continues this message if it is the last.
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
    /// Returns the messages, and the ending of the prompt if the answer continues the last message.
    ///
    /// # Errors
    /// Fails for an input without a text or a message.
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
