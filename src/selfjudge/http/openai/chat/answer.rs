//! The answers of `POST /v1/chat/completions`.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::answering::StopReason;
use crate::http::kept::KeptBody;
use crate::http::openai::prompt_logprobs::{PromptEntries, PromptLogprob};
use crate::http::openai::tools::CallBody;
use crate::http::openai::usage::OpenAiUsage;
use crate::judging::Tournament;
use model::WeightsName;

/// The answer, or an event of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatAnswer {
    /// The id of the call.
    pub id: String,
    /// `chat.completion`, in a stream `chat.completion.chunk`.
    pub object: &'static str,
    /// Time of the call in seconds since 1970.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// The answers: `n` of them, or in a stream one token's increment of one.
    pub choices: Vec<ChatChoice>,
    /// The weights that answered: `base`, or the digest of a generation.
    #[schema(value_type = Option<String>)]
    pub system_fingerprint: Option<WeightsName>,
    /// The tokens of the call, including judging; in a stream in the last event, with `include_usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<OpenAiUsage>,
    /// With `prompt_logprobs`, in a stream in the first event: one entry per token of the prompt, by token id; null for the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<BTreeMap<String, PromptLogprob>>>>)]
    pub prompt_logprobs: Option<PromptEntries>,
    /// The tournament, with `best_of`. Candidates are numbered in the order of sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tournament: Option<Tournament>,
    /// Requests that are fulfilled only in part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    #[serde(flatten)]
    pub kept: KeptBody,
}

/// One answer, or its increment by a token.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// The answer's number, from 0.
    pub index: usize,
    #[serde(flatten)]
    pub message: MessageOrDelta,
    /// The log-probabilities of the answer's tokens, with `logprobs`; otherwise null.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`; in a stream null before the end.
    pub finish_reason: Option<&'static str>,
    /// The stop string or token that ended the answer; null if the model itself ended it.
    pub stop_reason: Option<StopReason>,
    /// The prompt's log-probabilities, with the first choice; they are serialized beside the choices.
    #[serde(skip)]
    pub prompt: Option<PromptEntries>,
}

/// A whole message, or its increment by an event.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessageOrDelta {
    /// The whole message.
    Message(ChatMessage),
    /// In a stream: the increment of the message.
    Delta(ChatDelta),
}

/// The message of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text of the message; null if the message has only tool calls.
    #[schema(required)]
    pub content: Option<String>,
    /// The tool calls of the message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallBody>,
}

/// The increment of a message by an event.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatDelta {
    /// `assistant`, with the first event of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// The text that the event adds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The tool calls that the event begins or continues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallBody>,
}

/// The log-probabilities of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry for each token.
    pub content: Vec<ChatLogprob>,
}

/// The log-probability of a token, and of the most probable alternatives.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprob {
    #[serde(flatten)]
    pub token: ChatToken,
    /// The most probable tokens, `top_logprobs` of them.
    pub top_logprobs: Vec<ChatToken>,
}

/// A token and its log-probability.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatToken {
    /// Its text; `bytes:\xe2\x82` for a part of a character.
    pub token: String,
    /// The natural logarithm of the token's probability, before temperature and truncation.
    pub logprob: f32,
    /// The bytes that it adds to the content; null for a special token, which adds none.
    pub bytes: Option<Vec<u8>>,
}
