//! `POST /v1/completions`: raw continuation of one prompt or several.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::usage::OpenAiUsage;
use super::wording::Call;
use crate::http::AppState;
use crate::http::answering::{self, About, Asked, Piece, Prompt, StopReason, Wording};
use crate::http::conversation::conversation;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Generating;
use crate::http::idempotency::IDEMPOTENCY;
use crate::http::recording::KeptBody;
use crate::http::sampling::Wanted;
use crate::http::sse::EventBody;
use crate::http::traffic::Identity;
use crate::model::WeightsName;
use crate::service::{RawPrompt, ReadPrompt, TokenText};

/// Tokens of an answer where the caller names no limit (OpenAI's default).
const DEFAULT_MAX_TOKENS: usize = 16;

/// Prompts of one call.
const MAX_PROMPTS: usize = 1024;

/// One prompt or several, 1024 at most, as text or tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub enum PromptBody {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// The body. Anything else in it is refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompletionBody {
    model: Option<String>,
    prompt: PromptBody,
    /// Tokens of an answer at most: 16 unless said otherwise.
    #[schema(minimum = 1)]
    max_tokens: Option<usize>,
    /// With every token its log-probability and those of this many most probable ones.
    #[schema(maximum = 20)]
    logprobs: Option<usize>,
}

type CompletionRequest = Generating<CompletionBody>;

/// The answer, or an event of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionAnswer {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    /// Which weights answered: `base`, or the digest of a generation.
    #[schema(value_type = Option<String>)]
    system_fingerprint: Option<WeightsName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<OpenAiUsage>,
    #[serde(flatten)]
    kept: KeptBody,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

/// OpenAI's legacy shape: parallel lists.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

struct Words(Call);

impl Words {
    /// `offset`: characters of the choice's text before these tokens.
    fn logprobs(&self, tokens: &[TokenText], mut offset: usize) -> Option<CompletionLogprobs> {
        let mut list = CompletionLogprobs::default();
        for token in tokens {
            let logprobs = token.logprobs.as_ref()?;
            let text = self.0.word(token.id);
            list.text_offset.push(offset);
            offset += text.chars().count();
            list.tokens.push(text);
            list.token_logprobs.push(logprobs.token);
            let top = logprobs.top.iter().map(|&(id, p)| (self.0.word(id), p));
            list.top_logprobs.push(top.collect());
        }
        Some(list)
    }
}

impl Wording for Words {
    type Choice = CompletionChoice;
    type Answer = CompletionAnswer;

    const USAGE_LAST: bool = false;

    fn choice(&self, piece: Piece<'_>) -> CompletionChoice {
        let (finish_reason, stop_reason) = self.0.ends.reasons(piece.finish);
        CompletionChoice {
            index: piece.index,
            text: piece.text,
            logprobs: self.logprobs(piece.tokens, piece.offset),
            finish_reason,
            stop_reason,
        }
    }

    fn answer(&self, choices: Vec<CompletionChoice>, about: About) -> CompletionAnswer {
        CompletionAnswer {
            id: self.0.id.clone(),
            object: "text_completion",
            created: self.0.created,
            model: self.0.model.clone(),
            choices,
            system_fingerprint: about.weights,
            usage: about.usage.map(OpenAiUsage::from),
            kept: about.kept.into(),
        }
    }
}

impl PromptBody {
    /// How many there are.
    fn check(&self) -> Result<usize, ApiError> {
        let count = match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        };
        match count {
            0 => Err(ApiError::invalid("prompt", "must not be empty")),
            1..=MAX_PROMPTS => Ok(count),
            _ => Err(ApiError::invalid(
                "prompt",
                format!("must be at most {MAX_PROMPTS} prompts, not {count}"),
            )),
        }
    }
}

impl From<PromptBody> for Vec<RawPrompt> {
    fn from(prompt: PromptBody) -> Self {
        match prompt {
            PromptBody::Text(text) => vec![RawPrompt::Text(text)],
            PromptBody::Texts(texts) => texts.into_iter().map(RawPrompt::Text).collect(),
            PromptBody::Tokens(tokens) => vec![RawPrompt::Tokens(tokens)],
            PromptBody::TokenLists(lists) => lists.into_iter().map(RawPrompt::Tokens).collect(),
        }
    }
}

/// Prompts of a call that are read at once: others' prompts come between those of a call that has many.
const READ_AT_ONCE: usize = 2;

/// Continues one prompt or several as they are. With `best_of` the candidates are judged as answers to the prompt's text.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "OpenAI",
    request_body(content = CompletionRequest, examples(
        ("text" = (value = json!({"model": "pocket", "prompt": "2 plus", "max_tokens": 8, "seed": 1}))),
        ("best of" = (value = json!({"prompt": ["2 plus", "3 plus"], "best_of": 4, "n": 2}))),
        ("streamed" = (value = json!({
            "prompt": [50, 32, 43], "stream": true, "stream_options": {"include_usage": true}, "logprobs": 1
        })))
    )),
    params(("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY)),
    responses(
        (
            status = 200,
            description = "The answer; with `stream`, server-sent events that hold one of the same shape each, and `[DONE]` after the last",
            content((CompletionAnswer = "application/json"), (EventBody = "text/event-stream"))
        ),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn completions(
    State(state): State<AppState>,
    identity: Identity,
    body: Generating<CompletionBody>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let Generating {
        own,
        shared: sampling,
    } = body;
    let service = &state.service;
    state.check_model(own.model.as_deref())?;
    let count = own.prompt.check()?;
    let wanted = Wanted {
        prompts: count,
        max_tokens: own.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
        logprobs: own.logprobs,
        logprob_ids: Vec::new(),
    };
    let limited = own.max_tokens.is_some();
    let sampling = sampling
        .check(arrival, identity.tenant, wanted, &state)
        .await?
        .limited(limited);
    let judged = sampling.judging(&state.principles.current(), count)?;
    let read = stream::iter(Vec::from(own.prompt))
        .map(|prompt| service.read_prompt(prompt))
        .buffered(READ_AT_ONCE)
        .try_collect::<Vec<ReadPrompt>>()
        .await
        .map_err(|error| ApiError::from(error).renamed("messages", "prompt"))?;
    let mut prompts = Vec::with_capacity(count);
    for ReadPrompt {
        tokens,
        text,
        spoken,
    } in read
    {
        let judging = match &judged {
            Some(judging) => Some(judging.of(conversation(Some(spoken), None)?)),
            None => None,
        };
        prompts.push(Prompt {
            tokens,
            asked: Asked::Text(text),
            judging,
        });
    }
    let words = Words(state.call("cmpl", &sampling));
    answering::answer(&state, &identity, &sampling, prompts, words).await
}
