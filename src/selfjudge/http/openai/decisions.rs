//! `POST /v1/decisions`: questions about an input, answered with probabilities instead of text.
//!
//! The format is that of OpenAI's Decisions API. Numbers that it leaves open are defined as follows: `confidence` is the probability of
//! the chosen option or level, and `score` the expected position among the levels, the lowest being 0. In addition every answer has its
//! `label_mass`.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::usage::ItemUsage;
use crate::http::AppState;
use crate::http::conversation::{self, ContentBody, RoleBody};
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::{Beside, Shared};
use crate::http::identity::Identity;
use crate::http::neutral;
use crate::http::one_or_many::{Given, one_or_many};
use crate::http::sampling::{SamplingBody, cache_salt, turn};
use crate::service::{Decision, Question, Turn};
use text::{Message, Role};

/// Maximum number of questions per call.
const MAX_QUESTIONS: usize = 400;

/// Maximum bytes of a question's name, which the answer repeats.
const MAX_NAME: usize = 1024;

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionsBody {
    /// The name of the served model; optional.
    model: Option<String>,
    /// The subject of the questions: a text or a conversation.
    input: InputBody,
    /// The questions, from 1 to 400.
    #[schema(min_items = 1, max_items = 400)]
    questions: Vec<QuestionBody>,
    /// Lower is served first; each level is worth a bounded head start.
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i32>,
    /// Maximum duration of the call in seconds.
    #[schema(exclusive_minimum = 0)]
    timeout: Option<f64>,
    /// Only calls of the same key (without keys: address) with the same salt share the prefix cache; at least one character.
    #[schema(min_length = 1)]
    cache_salt: Option<String>,
}

/// The shared parameters of this route: none, only fields without effect.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Nothing {}

impl Shared for Nothing {
    fn names() -> &'static BTreeSet<String> {
        static NAMES: BTreeSet<String> = BTreeSet::new();
        &NAMES
    }

    fn strip(body: &mut Map<String, Value>) {
        neutral::strip_decisions(body, SamplingBody::names());
    }
}

type DecisionsRequest = Beside<DecisionsBody, Nothing>;

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
    role: RoleBody,
    /// The text, as a string or in parts.
    content: ContentBody,
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
    value: ChoiceValue,
    /// A description of the option for the model, besides its value.
    description: Option<String>,
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
    label: String,
    /// A description of the level for the model, besides its name.
    description: Option<String>,
}

/// The answers to all questions.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionsAnswer {
    /// The id of the call.
    id: String,
    /// The name of the model.
    model: String,
    /// The answers, in the order of the questions.
    answers: Vec<AnswerBody>,
    /// The tokens of the call.
    usage: ItemUsage,
}

/// The answer to a question of one of three types.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AnswerBody {
    Predicate {
        /// The name of the question.
        name: Option<String>,
        /// The probability that the statement is true.
        probability: f32,
        /// Probability of the options' letters among all tokens. Near 0 the answer is meaningless.
        label_mass: f32,
    },
    Choice {
        /// The name of the question.
        name: Option<String>,
        /// The value of the most probable option.
        choice: ChoiceValue,
        /// The probability of the most probable option or level.
        confidence: f32,
        /// The probabilities of all options or levels, in the question's order. Their sum is 1.
        probabilities: Vec<ChoiceProbability>,
        /// Probability of the options' letters among all tokens. Near 0 the answer is meaningless.
        label_mass: f32,
    },
    Score {
        /// The name of the question.
        name: Option<String>,
        /// The mean position among the levels, weighted by their probabilities; the lowest level's is 0.
        score: f32,
        /// The probability of the most probable option or level.
        confidence: f32,
        /// The probabilities of all options or levels, in the question's order. Their sum is 1.
        probabilities: Vec<ScoreProbability>,
        /// Probability of the options' letters among all tokens. Near 0 the answer is meaningless.
        label_mass: f32,
    },
}

/// An option and its probability.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChoiceProbability {
    /// The value of the option.
    value: ChoiceValue,
    /// The probability of the option, from 0 to 1.
    probability: f32,
}

/// A level and its probability.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScoreProbability {
    /// The level's position; the lowest level's is 0.
    value: usize,
    /// The name of the level.
    label: String,
    /// The probability of the level, from 0 to 1.
    probability: f32,
}

/// Returns an option's text for the prompt.
fn shown(value: &str, description: Option<&String>) -> String {
    match description {
        Some(description) => format!("{value}: {description}"),
        None => value.to_owned(),
    }
}

impl QuestionBody {
    /// Returns the question for the model; `at` is its number, `max_options` the number of available letters.
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
    /// Returns the input as one text; a conversation is written out.
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

/// Answers questions about an input by the probabilities of their options.
///
/// No text is generated or parsed.
///
/// `label_mass` is the probability of the options' letters. It is near 0 if the model does not answer in letters, as with the pocket
/// model: its probabilities are then meaningless. Use a chat model.
#[utoipa::path(
    post,
    path = "/v1/decisions",
    tag = "OpenAI",
    request_body(content = DecisionsRequest, example = json!({
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
    Beside { own: body, .. }: DecisionsRequest,
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
