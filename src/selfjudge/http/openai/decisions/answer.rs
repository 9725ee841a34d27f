//! The answer to a call: the probabilities of each question's options.

use serde::Serialize;
use utoipa::ToSchema;

use super::body::{ChoiceValue, QuestionBody};
use crate::http::openai::usage::ItemUsage;
use crate::service::Decision;

/// The answers to all questions.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionsAnswer {
    /// The id of the call.
    pub id: String,
    /// The name of the model.
    pub model: String,
    /// The answers, in the order of the questions.
    pub answers: Vec<AnswerBody>,
    /// The tokens of the call.
    pub usage: ItemUsage,
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

impl QuestionBody {
    /// Returns the answer by the probabilities of the options.
    pub fn answer(self, decision: Decision) -> AnswerBody {
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
