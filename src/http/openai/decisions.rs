//! `POST /v1/decisions`: questions about an input, answered by probabilities instead of text.
//!
//! The shapes are those of OpenAI's Decisions API. Where it leaves a number open: `confidence` is the probability of the chosen
//! option or level, `score` the expected position among the levels, the lowest being 0. Beside them every answer has its
//! `label_mass`.

use std::collections::HashSet;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::http::AppState;
use crate::http::conversation::{self, ContentBody, RoleBody};
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::JsonBody;
use crate::http::one_or_many::{Given, one_or_many};
use crate::http::sampling::{cache_salt, turn};
use crate::http::traffic::Identity;
use crate::preference::{Message, Role};
use crate::service::{Decision, Question, Turn, Usage};

/// Questions of one call.
const MAX_QUESTIONS: usize = 400;

/// Bytes of a question's name, which the answer repeats.
const MAX_NAME: usize = 1024;

/// The body. Anything else in it is refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionsBody {
    model: Option<String>,
    input: InputBody,
    /// 1 to 400.
    #[schema(min_items = 1, max_items = 400)]
    questions: Vec<QuestionBody>,
    /// Lower is served first; a level is worth a bounded head start.
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i32>,
    /// Seconds the call may take.
    #[schema(exclusive_minimum = 0)]
    timeout: Option<f64>,
    /// Only calls of the same key (without keys: address) that give the same salt share the prefix cache; at least one character.
    #[schema(min_length = 1)]
    cache_salt: Option<String>,
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

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputMessage {
    role: RoleBody,
    content: ContentBody,
    #[serde(rename = "type")]
    _kind: Option<MessageKind>,
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessageKind {
    Message,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum QuestionBody {
    /// How likely is it that this is true?
    Predicate {
        instructions: String,
        name: Option<String>,
    },
    /// Which of these is it?
    Choice {
        instructions: String,
        name: Option<String>,
        /// Two or more, each of them once.
        choices: Vec<ChoiceOption>,
    },
    /// How much of it is there, on a scale of ordered levels?
    Score {
        instructions: String,
        name: Option<String>,
        /// Two or more, the lowest first.
        levels: Vec<ScoreLevel>,
    },
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChoiceOption {
    value: ChoiceValue,
    description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a boolean")]
pub enum ChoiceValue {
    Text(String),
    Bool(bool),
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreLevel {
    label: String,
    description: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionsAnswer {
    id: String,
    model: String,
    /// In the order of the questions.
    answers: Vec<AnswerBody>,
    usage: DecisionsUsage,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AnswerBody {
    Predicate {
        name: Option<String>,
        probability: f32,
        label_mass: f32,
    },
    Choice {
        name: Option<String>,
        choice: ChoiceValue,
        confidence: f32,
        probabilities: Vec<ChoiceProbability>,
        label_mass: f32,
    },
    Score {
        name: Option<String>,
        score: f32,
        confidence: f32,
        probabilities: Vec<ScoreProbability>,
        label_mass: f32,
    },
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChoiceProbability {
    value: ChoiceValue,
    probability: f32,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ScoreProbability {
    /// Its position, the lowest level's being 0.
    value: usize,
    label: String,
    probability: f32,
}

/// Token counts, by the names of this API.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionsUsage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct InputDetails {
    cached_tokens: usize,
    cache_write_tokens: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct OutputDetails {
    reasoning_tokens: usize,
}

impl From<Usage> for DecisionsUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails {
                cached_tokens: usage.cached_tokens,
                cache_write_tokens: usage.prompt_tokens - usage.cached_tokens,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails {
                reasoning_tokens: 0,
            },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}

/// An option as it is shown.
fn shown(value: &str, description: Option<&String>) -> String {
    match description {
        Some(description) => format!("{value}: {description}"),
        None => value.to_owned(),
    }
}

impl QuestionBody {
    /// As it is asked; `at` is its number, `max_options` what can be lettered.
    fn ask(&self, at: usize, max_options: usize) -> Result<Question, ApiError> {
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

    fn name(&self) -> Option<&str> {
        match self {
            Self::Predicate { name, .. } | Self::Choice { name, .. } | Self::Score { name, .. } => {
                name.as_deref()
            }
        }
    }

    fn instructions(&self) -> &str {
        match self {
            Self::Predicate { instructions, .. }
            | Self::Choice { instructions, .. }
            | Self::Score { instructions, .. } => instructions,
        }
    }

    fn answer(self, decision: Decision) -> AnswerBody {
        let Decision {
            probabilities,
            label_mass,
        } = decision;
        let best = (0..probabilities.len())
            .max_by(|&a, &b| {
                probabilities[a]
                    .total_cmp(&probabilities[b])
                    .then(b.cmp(&a))
            })
            .unwrap_or(0);
        let confidence = probabilities[best];
        match self {
            Self::Predicate { name, .. } => AnswerBody::Predicate {
                name,
                probability: probabilities[0],
                label_mass,
            },
            Self::Choice { name, choices, .. } => AnswerBody::Choice {
                name,
                choice: choices[best].value.clone(),
                confidence,
                probabilities: choices
                    .into_iter()
                    .zip(probabilities)
                    .map(|(choice, probability)| ChoiceProbability {
                        value: choice.value,
                        probability,
                    })
                    .collect(),
                label_mass,
            },
            Self::Score { name, levels, .. } => AnswerBody::Score {
                name,
                score: probabilities
                    .iter()
                    .zip(0u16..)
                    .map(|(p, at)| p * f32::from(at))
                    .sum(),
                confidence,
                probabilities: levels
                    .into_iter()
                    .zip(probabilities)
                    .enumerate()
                    .map(|(value, (level, probability))| ScoreProbability {
                        value,
                        label: level.label,
                        probability,
                    })
                    .collect(),
                label_mass,
            },
        }
    }
}

impl InputBody {
    /// One text: a conversation is written out.
    fn into_text(self) -> Result<String, ApiError> {
        let text = match self {
            Self::Text(text) => text,
            Self::Messages(said) => {
                let said = said.into_iter().map(|message| conversation::MessageBody {
                    role: message.role,
                    content: message.content,
                });
                let lines = said.map(|message| {
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

/// Questions about an input, each answered by the probabilities of its options: no text is written or parsed.
///
/// `label_mass` says how much of the probability is on the options' letters. It is near 0 where the model does not answer in letters, as
/// the pocket model does not: its probabilities mean nothing then. Ask a chat model.
#[utoipa::path(
    post,
    path = "/v1/decisions",
    tag = "OpenAI",
    request_body(content = DecisionsBody, example = json!({
        "model": "pocket",
        "input": "The delivery was late, but the staff were very kind.",
        "questions": [
            {"type": "predicate", "name": "late", "instructions": "The delivery was late."},
            {"type": "choice", "instructions": "What is praised?", "choices": [
                {"value": "staff"}, {"value": "delivery", "description": "or its speed"}
            ]},
            {"type": "score", "instructions": "How polite is it?", "levels": [
                {"label": "blunt"}, {"label": "neutral"}, {"label": "polite"}
            ]}
        ]
    })),
    responses(
        (status = 200, body = DecisionsAnswer),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn decisions(
    State(state): State<AppState>,
    identity: Identity,
    JsonBody(body): JsonBody<DecisionsBody>,
) -> Result<Json<DecisionsAnswer>, ApiError> {
    let turn = Turn {
        tenant: identity.tenant,
        cache_salt: cache_salt(body.cache_salt.as_deref())?,
        ..turn(Instant::now(), body.priority, body.timeout)?
    };
    state.check_model(body.model.as_deref())?;
    if !(1..=MAX_QUESTIONS).contains(&body.questions.len()) {
        let message = format!("must be from 1 to {MAX_QUESTIONS} questions");
        return Err(ApiError::invalid("questions", message));
    }
    let max_options = state.service.max_options()?;
    let questions = body.questions.iter().enumerate();
    let asked = questions
        .map(|(at, question)| question.ask(at, max_options))
        .collect::<Result<Vec<Question>, _>>()?;
    let input = body.input.into_text()?;
    let decided = state.service.decide(input, asked, turn).await;
    let decided = decided.map_err(|error| ApiError::from(error).renamed("prompt", "input"))?;
    let answers = body.questions.into_iter().zip(decided.result);
    Ok(Json(DecisionsAnswer {
        id: state.next_id("decision"),
        model: state.model_name.to_string(),
        answers: answers
            .map(|(question, decision)| question.answer(decision))
            .collect(),
        usage: decided.usage.into(),
    }))
}
