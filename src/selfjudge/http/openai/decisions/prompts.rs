//! The texts for the model: the input and the questions with their options.

use std::collections::HashSet;

use super::body::{ChoiceValue, InputBody, QuestionBody};
use crate::http::conversation::MessageBody;
use crate::http::error::ApiError;
use crate::service::Question;
use text::{Message, Role};

/// Maximum bytes of a question's name, which the answer repeats.
const MAX_NAME: usize = 1024;

impl QuestionBody {
    /// Returns the question for the model; `at` is its number, `max_options` the number of available letters.
    pub fn ask(&self, at: usize, max_options: usize) -> Result<Question, ApiError> {
        let invalid = |field: &str, message: String| {
            Err(ApiError::invalid(
                format!("questions[{at}].{field}"),
                message,
            ))
        };
        let (text, options, field) = match self {
            Self::Predicate { instructions, .. } => {
                let options = vec!["Yes".to_owned(), "No".to_owned()];
                (
                    format!("Is this true? {instructions}"),
                    options,
                    "instructions",
                )
            }
            Self::Choice {
                instructions,
                choices,
                ..
            } => {
                let mut seen = HashSet::new();
                if !choices.iter().all(|choice| seen.insert(&choice.value)) {
                    return invalid("choices", "must have each value once".into());
                }
                let options = choices.iter().map(|choice| {
                    let value = match &choice.value {
                        ChoiceValue::Text(text) => text,
                        ChoiceValue::Bool(true) => "true",
                        ChoiceValue::Bool(false) => "false",
                    };
                    shown(value, choice.description.as_ref())
                });
                (instructions.clone(), options.collect(), "choices")
            }
            Self::Score {
                instructions,
                levels,
                ..
            } => {
                let options = levels
                    .iter()
                    .map(|level| shown(&level.label, level.description.as_ref()));
                (instructions.clone(), options.collect(), "levels")
            }
        };
        let name = self.name().map_or(0, str::len);
        if name > MAX_NAME {
            return invalid(
                "name",
                format!("must be at most {MAX_NAME} bytes, not {name}"),
            );
        }
        if self.instructions().trim().is_empty() {
            return invalid("instructions", "must not be empty".into());
        }
        if !(2..=max_options).contains(&options.len()) {
            let count = options.len();
            let message = format!("must be from 2 to {max_options} with this model, not {count}");
            return invalid(field, message);
        }
        Ok(Question { text, options })
    }
}

/// Returns an option's text for the prompt.
fn shown(value: &str, description: Option<&String>) -> String {
    match description {
        Some(description) => format!("{value}: {description}"),
        None => value.to_owned(),
    }
}

impl InputBody {
    /// Returns the input as one text; a conversation is written out.
    pub fn into_text(self) -> Result<String, ApiError> {
        let text = match self {
            Self::Text(text) => text,
            Self::Messages(messages) => {
                let messages = messages.into_iter().map(|message| MessageBody {
                    role: message.role,
                    content: message.content,
                });
                let lines = messages.map(|message| {
                    let Message { role, content } = message.into();
                    let who = match role {
                        Role::System => "System",
                        Role::User => "User",
                        Role::Assistant => "Assistant",
                    };
                    format!("{who}: {content}")
                });
                lines.collect::<Vec<_>>().join("\n\n")
            }
        };
        match text.is_empty() {
            true => Err(ApiError::invalid("input", "must not be empty")),
            false => Ok(text),
        }
    }
}
