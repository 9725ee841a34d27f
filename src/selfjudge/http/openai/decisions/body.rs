//! The body of a call: its input and its questions.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::http::conversation::{ContentBody, RoleBody};
use crate::http::one_or_many::{Given, one_or_many};

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionsBody {
    /// The name of the served model; optional.
    pub model: Option<String>,
    /// The subject of the questions: a text or a conversation.
    pub input: InputBody,
    /// The questions, from 1 to 400.
    #[schema(min_items = 1, max_items = 400)]
    pub questions: Vec<QuestionBody>,
    /// Lower is served first; each level is worth a bounded head start.
    #[schema(minimum = -100, maximum = 100)]
    pub priority: Option<i32>,
    /// Maximum duration of the call in seconds.
    #[schema(exclusive_minimum = 0)]
    pub timeout: Option<f64>,
    /// Only calls of the same key (without keys: address) with the same salt share the prefix cache; at least one character.
    #[schema(min_length = 1)]
    pub cache_salt: Option<String>,
}

/// Text, or messages of text.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum InputBody {
    Text(String),
    Messages(Vec<InputMessage>),
}

impl<'de> Deserialize<'de> for InputBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = one_or_many(deserializer, "a string or a list of messages of text");
        read.map(|read| match read {
            Given::Text(text) => Self::Text(text),
            Given::List(messages) => Self::Messages(messages),
        })
    }
}

/// A message of a conversation.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputMessage {
    /// The author of the message.
    pub role: RoleBody,
    /// The text, as a string or in parts.
    pub content: ContentBody,
    /// `message`, the default.
    #[serde(rename = "type")]
    _kind: Option<MessageKind>,
}

/// The kind of an item.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessageKind {
    Message,
}

/// A question of one of three types.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    tag = "type",
    rename_all = "lowercase",
    deny_unknown_fields,
    try_from = "QuestionFields"
)]
pub enum QuestionBody {
    /// The probability that a statement is true.
    Predicate {
        /// The statement or question.
        instructions: String,
        /// The name of the answer; null by default.
        name: Option<String>,
    },
    /// The most probable of several options.
    Choice {
        /// The question.
        instructions: String,
        /// The name of the answer; null by default.
        name: Option<String>,
        /// Two or more distinct options.
        choices: Vec<ChoiceOption>,
    },
    /// The position on a scale of ordered levels.
    Score {
        /// The question.
        instructions: String,
        /// The name of the answer; null by default.
        name: Option<String>,
        /// Two or more, the lowest first.
        levels: Vec<ScoreLevel>,
    },
}

/// A question's raw fields. For a wrong field, serde's tagged enums reject the whole question; this type names the field.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuestionFields {
    #[serde(rename = "type")]
    kind: QuestionKind,
    instructions: String,
    name: Option<String>,
    choices: Option<Vec<ChoiceOption>>,
    levels: Option<Vec<ScoreLevel>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum QuestionKind {
    Predicate,
    Choice,
    Score,
}

impl TryFrom<QuestionFields> for QuestionBody {
    type Error = serde::de::value::Error;

    /// Converts the raw fields.
    ///
    /// # Errors
    /// Fails if a field is missing, or does not belong to the type.
    fn try_from(fields: QuestionFields) -> Result<Self, Self::Error> {
        const COMMON: [&str; 3] = ["type", "instructions", "name"];
        let QuestionFields {
            kind,
            instructions,
            name,
            choices,
            levels,
        } = fields;
        let foreign = match kind {
            QuestionKind::Predicate => {
                [("choices", choices.is_some()), ("levels", levels.is_some())]
            }
            QuestionKind::Choice => [("levels", levels.is_some()), ("", false)],
            QuestionKind::Score => [("choices", choices.is_some()), ("", false)],
        };
        if let Some((field, _)) = foreign.into_iter().find(|(_, given)| *given) {
            return Err(Self::Error::unknown_field(field, &COMMON));
        }
        Ok(match kind {
            QuestionKind::Predicate => Self::Predicate { instructions, name },
            QuestionKind::Choice => Self::Choice {
                instructions,
                name,
                choices: choices.ok_or_else(|| Self::Error::missing_field("choices"))?,
            },
            QuestionKind::Score => Self::Score {
                instructions,
                name,
                levels: levels.ok_or_else(|| Self::Error::missing_field("levels"))?,
            },
        })
    }
}

/// An option of a choice.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChoiceOption {
    /// The value in the answer if this option is chosen.
    pub value: ChoiceValue,
    /// A description of the option for the model, besides its value.
    pub description: Option<String>,
}

/// A text or a truth value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a boolean")]
pub enum ChoiceValue {
    Text(String),
    Bool(bool),
}

/// A level of a scale.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreLevel {
    /// The name of the level.
    pub label: String,
    /// A description of the level for the model, besides its name.
    pub description: Option<String>,
}

impl QuestionBody {
    /// Returns the name of the answer.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Predicate { name, .. } | Self::Choice { name, .. } | Self::Score { name, .. } => {
                name.as_deref()
            }
        }
    }

    pub fn instructions(&self) -> &str {
        match self {
            Self::Predicate { instructions, .. }
            | Self::Choice { instructions, .. }
            | Self::Score { instructions, .. } => instructions,
        }
    }
}
