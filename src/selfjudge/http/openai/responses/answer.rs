//! The format of a response.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::body::{ResponsesBody, TextFormat};
use super::input::ItemStatus;
use crate::http::error::ErrorFields;
use crate::http::kept::KeptBody;
use crate::http::openai::usage::ItemUsage;
use crate::http::sampling::Sampling;
use crate::judging::Tournament;
use model::WeightsName;

/// A response of the model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResponseAnswer {
    /// The id of the response: `resp_` and 32 hexadecimal digits.
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// Time of the call in seconds since 1970.
    pub created_at: u64,
    /// Time of completion in seconds since 1970; null before.
    pub completed_at: Option<u64>,
    /// The status of the response.
    pub status: ResponseStatus,
    /// Why the response failed; null if it did not.
    pub error: Option<ResponseError>,
    /// Why the response is incomplete; null if it is not.
    pub incomplete_details: Option<IncompleteDetails>,
    /// One message of the assistant; empty before the response is complete.
    pub output: Vec<OutputMessage>,
    /// The tokens of the call, including judging; null before the response is complete.
    pub usage: Option<ItemUsage>,
    /// The name of the model.
    pub model: String,
    /// The weights that answered: `base`, or the digest of a generation.
    #[schema(value_type = Option<String>)]
    pub system_fingerprint: Option<WeightsName>,
    /// The tournament, with `best_of`. Candidates are numbered in the order of sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tournament: Option<Tournament>,
    /// Requests that are fulfilled only in part, as whole sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    #[serde(flatten)]
    pub kept: KeptBody,
    #[serde(flatten)]
    pub echo: Echo,
}

/// The status of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

/// Why a response failed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ResponseError {
    /// `server_error`, `rate_limit_exceeded` or `invalid_prompt`.
    code: &'static str,
    /// The error as a whole sentence.
    message: String,
}

impl From<&ErrorFields> for ResponseError {
    fn from(error: &ErrorFields) -> Self {
        Self {
            code: match error.kind {
                "rate_limit_error" => "rate_limit_exceeded",
                "invalid_request_error" => "invalid_prompt",
                _ => "server_error",
            },
            message: error.message.clone(),
        }
    }
}

/// Why a response is incomplete.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`: the answer reached its maximum length, or the context was full.
    pub reason: &'static str,
}

/// The message of the answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OutputMessage {
    /// The id of the message: `msg_` and 32 hexadecimal digits.
    pub id: String,
    /// Always `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The status of the message.
    pub status: ItemStatus,
    /// Always `assistant`.
    pub role: &'static str,
    /// One part with the text.
    pub content: Vec<OutputText>,
}

/// The text of the message.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OutputText {
    /// Always `output_text`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The answer.
    pub text: String,
    /// Always empty: no answer cites a source.
    #[schema(value_type = Vec<Object>)]
    pub annotations: [Value; 0],
    /// One entry per token of the answer, with `include: ["message.output_text.logprobs"]`; otherwise empty.
    pub logprobs: Vec<OutputLogprob>,
}

/// A token of the answer, and the most probable alternatives.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OutputLogprob {
    #[serde(flatten)]
    pub token: OutputToken,
    /// The most probable tokens, `top_logprobs` of them.
    pub top_logprobs: Vec<OutputToken>,
}

/// A token and its log-probability.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OutputToken {
    /// The token's text; `bytes:\xe2\x82` for a part of a character.
    pub token: String,
    /// The natural logarithm of the token's probability, before temperature and truncation.
    pub logprob: f32,
    /// The bytes that the token adds to the text; empty for a special token.
    pub bytes: Vec<u8>,
}

/// The effective parameters of the call.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Echo {
    /// The system message before those of the input.
    instructions: Option<String>,
    /// The requested maximum of tokens per answer.
    max_output_tokens: Option<usize>,
    /// The caller's metadata.
    metadata: BTreeMap<String, String>,
    /// The temperature of the call.
    temperature: f32,
    /// The nucleus: only the most probable tokens whose probabilities add up to this are sampled.
    top_p: f32,
    /// The number of most probable tokens returned with each token.
    pub top_logprobs: usize,
    /// The format of the answer.
    text: EchoedText,
    /// Always false: responses are not stored.
    store: bool,
    /// Always false: calls are answered synchronously.
    background: bool,
    /// Always `disabled`: inputs are never cut.
    truncation: &'static str,
    /// Whether tools may be called in parallel, as given in the call; there are no tools.
    parallel_tool_calls: bool,
    /// `auto` or `none`, as given in the call.
    #[schema(value_type = String)]
    tool_choice: Value,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    tools: [Value; 0],
    /// Always null: responses are not stored.
    previous_response_id: Option<String>,
    /// Always null in both fields: the model has no adjustable reasoning.
    reasoning: EchoedReasoning,
    /// Always `default`.
    service_tier: &'static str,
    /// The end user, as given in the call.
    user: Option<String>,
    /// The end user's surrogate, as given in the call.
    safety_identifier: Option<String>,
    /// The cache key, as given in the call.
    prompt_cache_key: Option<String>,
}

/// The requested format of the answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EchoedText {
    /// The format of the text.
    format: TextFormat,
    /// Always `medium`.
    verbosity: &'static str,
}

/// The settings of adjustable reasoning.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct EchoedReasoning {
    /// Always null.
    effort: Option<&'static str>,
    /// Always null.
    summary: Option<&'static str>,
}

impl Echo {
    /// Returns the parameters of a body, with the effective sampling settings.
    pub fn new(body: ResponsesBody, sampling: &Sampling) -> Self {
        let (temperature, top_p) = sampling.drawn_by();
        Self {
            instructions: body.instructions,
            max_output_tokens: body.max_output_tokens,
            metadata: body.metadata.unwrap_or_default(),
            temperature,
            top_p,
            top_logprobs: body.top_logprobs.unwrap_or(0),
            text: EchoedText {
                format: body.text.and_then(|text| text.format).unwrap_or_default(),
                verbosity: "medium",
            },
            store: false,
            background: false,
            truncation: "disabled",
            parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
            tool_choice: body.tool_choice.unwrap_or_else(|| "auto".into()),
            tools: [],
            previous_response_id: None,
            reasoning: EchoedReasoning {
                effort: None,
                summary: None,
            },
            service_tier: "default",
            user: sampling.user.clone(),
            safety_identifier: body.safety_identifier,
            prompt_cache_key: body.prompt_cache_key,
        }
    }
}
