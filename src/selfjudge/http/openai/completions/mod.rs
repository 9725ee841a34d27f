//! `POST /v1/completions`: raw continuation of one or several prompts.

mod answer;
mod format;
mod prompt;

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use utoipa::ToSchema;

use answer::CompletionAnswer;
use format::{Format, ShownPrompt};
use prompt::PromptBody;

use crate::http::AppState;
use crate::http::answering;
use crate::http::beside::Generating;
use crate::http::conversation::conversation;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::idempotency::IDEMPOTENCY;
use crate::http::identity::Identity;
use crate::http::sampling::Wanted;
use crate::http::sse::EventBody;
use crate::judging::JudgeTask;
use crate::service::{PromptTask, ReadPrompt, TextTask};
use traffic_log::Prompt;

/// Default maximum of tokens per answer (OpenAI's default).
const DEFAULT_MAX_TOKENS: usize = 16;

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompletionBody {
    /// The name of the served model; optional.
    model: Option<String>,
    /// One or several prompts to continue.
    prompt: PromptBody,
    /// Maximum tokens per answer; by default 16. With 0 there is no answer, only the requested data about the prompt.
    max_tokens: Option<usize>,
    /// Return each token's log-probability and those of this many most probable tokens.
    #[schema(maximum = 20)]
    logprobs: Option<usize>,
    /// Whether choices begin with the prompt, and `logprobs` with its tokens. The first token has no log-probability.
    echo: Option<bool>,
    /// Return the log-probabilities of the prompt's tokens and of this many most probable ones with every choice, as in vLLM.
    #[schema(maximum = 20)]
    prompt_logprobs: Option<usize>,
    /// Whether the tokenizer's post-processor adds its tokens, such as BOS, to a text; by default true.
    add_special_tokens: Option<bool>,
}

type CompletionRequest = Generating<CompletionBody>;

/// Number of a call's prompts that are encoded concurrently, so that other calls' prompts come in between.
const READ_AT_ONCE: usize = 2;

/// Continues one or several prompts without a chat template.
///
/// `echo`, `prompt_logprobs` and `max_tokens: 0` return the data about prompts that lm-eval needs. With `best_of` the candidates are
/// judged as answers to the prompt's text.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "OpenAI",
    request_body(content = CompletionRequest, examples(
        ("1. a text" = (value = json!({"model": "pocket", "prompt": "5+7=12, 4+1+1=", "max_tokens": 8, "temperature": 0}))),
        ("2. the best two of four, twice" = (value = json!({
            "prompt": ["5+7=12, 4+1+1=", "12-5=7, 9-2="], "best_of": 4, "n": 2, "max_tokens": 4
        }))),
        ("3. streamed, by token ids" = (value = json!({
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
    let echo = own.echo.unwrap_or(false);
    // The log-probabilities of the prompt that either parameter needs.
    let echoed = own.logprobs.filter(|_| echo);
    let prompt_logprobs = own.prompt_logprobs.max(echoed);
    let prompt_param = match own.prompt_logprobs {
        Some(_) => "prompt_logprobs",
        None => "logprobs",
    };
    let wanted = Wanted {
        prompts: count,
        max_tokens: own.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).max(1),
        logprobs: own.logprobs,
        logprob_ids: Vec::new(),
        prompt_logprobs,
        silent: own.max_tokens == Some(0),
        ..Wanted::default()
    };
    let limited = own.max_tokens.is_some();
    let sampling = sampling
        .check(arrival, identity.tenant, wanted, &state)
        .await?
        .limited(limited);
    let judged = sampling.judging(&state, count)?;
    let add_special = own.add_special_tokens.unwrap_or(true);
    let read = stream::iter(Vec::from(own.prompt))
        .map(|prompt| service.read_prompt(prompt, add_special))
        .buffered(READ_AT_ONCE)
        .try_collect::<Vec<ReadPrompt>>()
        .await
        .map_err(|error| ApiError::from(error).renamed("messages", "prompt"))?;
    let mut prompts = Vec::with_capacity(count);
    let mut shown = Vec::new();
    if let Some(top) = prompt_logprobs {
        let tokens = read.iter().map(|prompt| prompt.tokens.len()).sum();
        state
            .limits
            .check_prompts(tokens, top.saturating_add(1), prompt_param)?;
    }
    for ReadPrompt {
        tokens,
        text,
        spoken,
    } in read
    {
        let spoken_text = match echo {
            true => spoken.clone(),
            false => String::new(),
        };
        let judging = match &judged {
            Some((task, how)) => {
                let context = conversation(Some(spoken), None)?;
                let task = task.clone();
                Some((JudgeTask { context, ..task }, *how))
            }
            None => None,
        };
        if echo || own.prompt_logprobs.is_some() {
            shown.push(ShownPrompt {
                text: spoken_text,
                tokens: tokens.clone(),
            });
        }
        prompts.push(PromptTask {
            text: TextTask {
                continues: true,
                ..sampling.task(tokens)
            },
            asked: Prompt::Text(text),
            judging,
        });
    }
    let format = Format {
        call: state.call("cmpl", &sampling),
        n: sampling.n,
        prompts: shown,
        echo,
        logprobs: own.logprobs,
        prompt_logprobs: own.prompt_logprobs,
    };
    answering::answer(&state, &identity, &sampling, prompts, format).await
}
