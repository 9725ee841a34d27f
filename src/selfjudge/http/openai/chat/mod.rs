//! `POST /v1/chat/completions`: the next message of a conversation.

mod answer;
mod format;

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use answer::ChatAnswer;
use format::Format;

use super::tools::{self, ChatMessageBody, Conversation, Reading, ToolBody, ToolChoiceBody};
use crate::http::AppState;
use crate::http::answering;
use crate::http::beside::Generating;
use crate::http::conversation;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::idempotency::IDEMPOTENCY;
use crate::http::identity::Identity;
use crate::http::reading;
use crate::http::sampling::Wanted;
use crate::http::sse::EventBody;
use crate::service::PromptTask;
use engine::MAX_LOGPROBS;
use text::{Message, ToolChat, Variables};
use traffic_log::Prompt;

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatBody {
    /// The name of the served model; optional.
    model: Option<String>,
    /// The conversation, the oldest message first.
    messages: Vec<ChatMessageBody>,
    /// The functions that the model may call: at most 128, of 128 KiB together.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolBody>>,
    /// Whether the model calls tools; by default `auto`. `required` and a named function are enforced by a grammar, with every model.
    tool_choice: Option<ToolChoiceBody>,
    /// Whether an answer may contain several tool calls; by default true.
    parallel_tool_calls: Option<bool>,
    /// Maximum tokens per answer; by default as many as fit into the context.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<usize>,
    /// The old name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<usize>,
    /// Return each token's log-probability.
    logprobs: Option<bool>,
    /// Return also those of this many most probable tokens.
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    /// Return the log-probabilities of the prompt's tokens and of this many most probable ones, as in vLLM. The prompt is the
    /// messages as rendered by the chat template.
    #[schema(maximum = 20)]
    prompt_logprobs: Option<usize>,
    /// Whether the answer begins a message of the assistant; by default true. With `false` it continues after the last turn.
    add_generation_prompt: Option<bool>,
    /// Whether the answer continues the last message, which is then not closed. Such calls are not recorded.
    continue_final_message: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Variables>,
}

type ChatRequest = Generating<ChatBody>;

impl ChatBody {
    fn max_tokens(&self) -> Result<usize, ApiError> {
        match (self.max_completion_tokens, self.max_tokens) {
            (Some(new), Some(old)) if new != old => Err(ApiError::invalid(
                "max_tokens",
                "is the old name of `max_completion_tokens` and contradicts it",
            )),
            // The engine bounds this by the room in the context.
            (new, old) => Ok(new.or(old).unwrap_or(usize::MAX)),
        }
    }

    /// Returns how many most probable tokens are returned with every token; none if log-probabilities were not requested.
    fn top_logprobs(&self) -> Result<Option<usize>, ApiError> {
        let top = self.top_logprobs.unwrap_or(0);
        if top > MAX_LOGPROBS {
            let message = format!("must be at most {MAX_LOGPROBS}");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        match self.logprobs.unwrap_or(false) {
            true => Ok(Some(top)),
            false if top > 0 => Err(ApiError::invalid(
                "top_logprobs",
                "has no meaning without `\"logprobs\": true`",
            )),
            false => Ok(None),
        }
    }
}

/// The prompt, with or without tools.
enum Chat {
    Plain(Vec<Message>),
    Tools(ToolChat),
}

/// Answers with the next message of a conversation, and with `best_of` chooses the best of several.
///
/// The format is OpenAI's, and clients of OpenAI's and vLLM's servers work unchanged: fields without effect are accepted, and unsupported
/// ones are refused by name.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "OpenAI",
    request_body(content = ChatRequest, examples(
        ("1. a message" = (value = json!({
            "model": "pocket", "messages": [{"role": "user", "content": "What is 45 plus 17?"}], "seed": 1
        }))),
        ("2. the best of four" = (value = json!({
            "messages": [{"role": "user", "content": "What is 45 plus 17?"}], "best_of": 4, "seed": 5
        }))),
        ("3. a tool" = (value = json!({
            "messages": [{"role": "user", "content": "Weather in Bonn?"}],
            "tools": [{"type": "function", "function": {
                "name": "weather", "parameters": {
                    "type": "object", "properties": {"city": {"enum": ["Bonn", "Paris"]}}, "required": ["city"]
                }
            }}],
            "tool_choice": "required", "seed": 1
        }))),
        ("4. streamed" = (value = json!({
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Write planet backwards."}]}],
            "stream": true, "logprobs": true, "top_logprobs": 2, "stream_options": {"include_usage": true}
        })))
    )),
    params(("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY)),
    responses(
        (
            status = 200,
            description = "The answer; with `stream`, server-sent events that hold one of the same shape each, and `[DONE]` after the last",
            content((ChatAnswer = "application/json"), (EventBody = "text/event-stream"))
        ),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn chat(
    State(state): State<AppState>,
    identity: Identity,
    body: Generating<ChatBody>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let Generating {
        own,
        shared: sampling,
    } = body;
    let service = &state.service;
    state.check_model(own.model.as_deref())?;
    let ending = conversation::ending(own.add_generation_prompt, own.continue_final_message)?;
    let limited = own.max_completion_tokens.or(own.max_tokens).is_some();
    let (max_tokens, logprobs) = (own.max_tokens()?, own.top_logprobs()?);
    let calls = tools::calls(own.tools, own.tool_choice, own.parallel_tool_calls)?;
    let asked = match (tools::conversation(own.messages)?, &calls) {
        (Conversation::Plain(messages), None) => Chat::Plain(messages),
        (conversation, _) => Chat::Tools(conversation.with_tools(calls.as_ref())),
    };
    if matches!(asked, Chat::Tools(_)) && ending.is_some() {
        let param = match own.continue_final_message {
            Some(true) => "continue_final_message",
            _ => "add_generation_prompt",
        };
        return Err(ApiError::invalid(param, "cannot be combined with tools"));
    }
    let wanted = Wanted {
        prompts: 1,
        max_tokens,
        logprobs,
        prompt_logprobs: own.prompt_logprobs,
        calls: calls.as_ref(),
        tools: matches!(asked, Chat::Tools(_)),
        ..Wanted::default()
    };
    let sampling = sampling
        .check(arrival, identity.tenant, wanted, &state)
        .await?
        .limited(limited)
        .ending(ending)?;
    let variables = own.chat_template_kwargs.unwrap_or_default();
    let read = match asked {
        Chat::Tools(chat) => {
            let judging = sampling.judging(&state, 1)?;
            let tokens = service.read_tool_chat(chat, variables).await;
            tokens.map_err(ApiError::from).map(|tokens| PromptTask {
                text: sampling.task(tokens),
                // A conversation with tools is not recorded.
                asked: Prompt::Messages(Vec::new()),
                judging,
            })
        }
        Chat::Plain(messages) => {
            let chat = reading::Chat {
                messages,
                variables,
            };
            chat.read(&state, &sampling).await
        }
    };
    let prompt = read.map_err(|error| error.renamed("prompt", "messages"))?;
    if let Some(top) = own.prompt_logprobs {
        let tokens = prompt.text.prompt.len();
        state
            .limits
            .check_prompts(tokens, top.saturating_add(1), "prompt_logprobs")?;
    }
    let format = Format {
        call: state.call("chatcmpl", &sampling),
        prompt: own
            .prompt_logprobs
            .map(|top| (prompt.text.prompt.clone(), top)),
        reading: calls
            .as_ref()
            .map(|calls| Reading::new(service.tool_format(), calls, sampling.is_bound())),
    };
    let answer = answering::answer(&state, &identity, &sampling, vec![prompt], format);
    answer
        .await
        .map_err(|error| error.renamed("prompt", "messages"))
}
