//! What several endpoints' bodies have in common.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::ApiError;
use crate::judge::Method;
use crate::preference::{Message, Role};
use crate::service::{Finish, JudgeTask, Orders, TournamentTask, Usage, WeightedPrinciple};

/// One message of a conversation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageBody {
    pub role: Role,
    pub content: String,
}

/// The conversation that `prompt` or `messages` stands for: a prompt is one message of the user.
pub fn conversation(
    prompt: Option<String>,
    messages: Option<Vec<MessageBody>>,
) -> Result<Vec<Message>, ApiError> {
    match (prompt, messages) {
        (Some(prompt), None) if prompt.is_empty() => {
            Err(ApiError::invalid("prompt", "must not be empty"))
        }
        (Some(prompt), None) => Ok(vec![Message::new(Role::User, prompt)]),
        (None, Some(messages)) if messages.is_empty() => {
            Err(ApiError::invalid("messages", "must not be empty"))
        }
        (None, Some(messages)) => Ok(messages
            .into_iter()
            .map(|m| Message::new(m.role, m.content))
            .collect()),
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "prompt",
            "cannot be given together with messages",
        )),
        (None, None) => Err(ApiError::invalid("prompt", "or messages must be given")),
    }
}

/// One string or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(strings: OneOrMany) -> Self {
        match strings {
            OneOrMany::One(string) => vec![string],
            OneOrMany::Many(strings) => strings,
        }
    }
}

/// A principle by name or text, or with a weight.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PrincipleBody {
    Plain(String),
    Weighted(WeightedBody),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedBody {
    pub principle: String,
    pub weight: f32,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrdersBody {
    #[default]
    Both,
    Given,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BracketBody {
    #[default]
    SingleElimination,
    RoundRobin,
    /// A ring, then everyone against its strongest: ranked by Bradley-Terry strength.
    Ring,
}

/// Candidates of the ring that everyone else meets.
const PIVOTS: usize = 3;

impl From<BracketBody> for Method {
    fn from(bracket: BracketBody) -> Self {
        match bracket {
            BracketBody::SingleElimination => Self::Knockout,
            BracketBody::RoundRobin => Self::RoundRobin,
            BracketBody::Ring => Self::Ring { pivots: PIVOTS },
        }
    }
}

/// How judging is asked for, in `/judge` and beside `best_of`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgingBody {
    pub principles: Vec<PrincipleBody>,
    pub orders: OrdersBody,
    pub bracket: BracketBody,
    pub seed: u64,
}

impl JudgingBody {
    pub fn tournament(&self) -> TournamentTask {
        TournamentTask {
            method: self.bracket.into(),
            seed: self.seed,
        }
    }

    pub fn task(
        &self,
        context: Vec<Message>,
        arrival: Instant,
        deadline: Option<Instant>,
        priority: i32,
    ) -> Result<JudgeTask, ApiError> {
        let principles = self.principles.iter().map(|principle| {
            let (name, weight) = match principle {
                PrincipleBody::Plain(name) => (name, 1.0),
                PrincipleBody::Weighted(body) => (&body.principle, body.weight),
            };
            if name.trim().is_empty() {
                return Err(ApiError::invalid("principles", "must not be empty"));
            }
            if !(weight > 0.0 && weight.is_finite()) {
                return Err(ApiError::invalid("principles", "weights must be above 0"));
            }
            Ok(WeightedPrinciple {
                name_or_text: name.clone(),
                weight,
            })
        });
        Ok(JudgeTask {
            context,
            principles: principles.collect::<Result<_, _>>()?,
            orders: match self.orders {
                OrdersBody::Both => Orders::Both,
                OrdersBody::Given => Orders::Given,
            },
            priority,
            arrival,
            deadline,
        })
    }
}

/// When a request that may take `seconds` must be done.
pub fn deadline(arrival: Instant, seconds: Option<f64>) -> Result<Option<Instant>, ApiError> {
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
        .and_then(|duration| arrival.checked_add(duration))
        .map(Some)
        .ok_or_else(|| ApiError::invalid("timeout", "must be a number of seconds above 0"))
}

/// Token counts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct UsageBody {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub cached_tokens: usize,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
        }
    }
}

/// The stop string or token that ended an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    String(String),
    Token(u32),
}

/// Why an answer ended, and by what, where that was not one of `ends`: the model's own end of an answer.
pub fn finish_reasons(
    finish: Option<Finish>,
    stop: &[String],
    ends: &[u32],
) -> (Option<&'static str>, Option<StopReason>) {
    match finish {
        None => (None, None),
        Some(Finish::Length) => (Some("length"), None),
        Some(Finish::EndToken(id)) if ends.contains(&id) => (Some("stop"), None),
        Some(Finish::EndToken(id)) => (Some("stop"), Some(StopReason::Token(id))),
        Some(Finish::StopString(at)) => (Some("stop"), Some(StopReason::String(stop[at].clone()))),
    }
}

/// Answers wanted, and candidates drawn for them.
pub fn samples(n: Option<usize>, best_of: Option<usize>) -> Result<(usize, usize), ApiError> {
    let n = n.unwrap_or(1);
    let samples = best_of.unwrap_or(n);
    if n == 0 {
        Err(ApiError::invalid("n", "must be at least 1"))
    } else if samples < n {
        Err(ApiError::invalid("best_of", "must be at least n"))
    } else {
        Ok((n, samples))
    }
}

/// Biases by token id, which JSON only has as strings.
pub fn logit_bias(biases: &BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let bias = |(id, &bias): (&String, &f32)| match id.parse() {
        Ok(id) => Ok((id, bias)),
        Err(_) => Err(ApiError::invalid(
            "logit_bias",
            format!("{id:?} is no token id"),
        )),
    };
    biases.iter().map(bias).collect()
}
