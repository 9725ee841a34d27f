//! `POST /v1/responses`: OpenAI's newer API, with text and JSON answers. Answers are not stored for later calls.

mod answer;
mod body;
mod events;
mod format;
mod input;
mod neutral;

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;

use crate::http::AppState;
use crate::http::answering;
use crate::http::beside::Beside;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::idempotency::IDEMPOTENCY;
use crate::http::identity::Identity;
use crate::http::reading::Chat;
use crate::http::sampling::Wanted;
use crate::http::sse::EventBody;
use answer::{Echo, ResponseAnswer};
use body::{ResponsesBody, ResponsesSampling};
use format::Format;

type ResponsesRequest = Beside<ResponsesBody, ResponsesSampling>;

/// Answers a text or a conversation, and with `best_of` chooses the best of several answers.
///
/// The answer is an object with one message. With `stream` it comes as typed events: `response.created`, `response.in_progress`,
/// `response.output_item.added`, `response.content_part.added`, `response.output_text.delta` for every piece,
/// `response.output_text.done`, `response.content_part.done`, `response.output_item.done`, and `response.completed` or
/// `response.incomplete` at the end. A failure is `error`, then `response.failed`. Responses are not stored: references to an
/// earlier one are refused.
#[utoipa::path(
    post,
    path = "/v1/responses",
    tag = "OpenAI",
    request_body(content = ResponsesRequest, examples(
        ("1. a text" = (value = json!({"model": "pocket", "input": "What is 45 plus 17?", "seed": 1}))),
        ("2. a conversation, the best of four" = (value = json!({
            "instructions": "Be brief.",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "What is 45 plus 17?"}]}],
            "best_of": 4, "seed": 5
        }))),
        ("3. JSON, streamed" = (value = json!({
            "input": "What is 45 plus 17?", "max_output_tokens": 60, "stream": true,
            "text": {"format": {"type": "json_schema", "name": "sum", "strict": true, "schema": {
                "type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": false
            }}}
        })))
    )),
    params(("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY)),
    responses(
        (
            status = 200,
            description = "The response; with `stream`, server-sent events with the names above",
            content((ResponseAnswer = "application/json"), (EventBody = "text/event-stream"))
        ),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn responses(
    State(state): State<AppState>,
    identity: Identity,
    body: ResponsesRequest,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    state.check_model(body.own.model.as_deref())?;
    body.own.refuse_what_is_not_served()?;
    // Errors name shared parameters by this route's names.
    answer(&state, &identity, body, arrival)
        .await
        .map_err(|error| {
            error
                .renamed("prompt", "input")
                .renamed("messages", "input")
                .renamed("max_tokens", "max_output_tokens")
                .renamed("logprobs", "top_logprobs")
        })
}

async fn answer(
    state: &AppState,
    identity: &Identity,
    body: ResponsesRequest,
    arrival: Instant,
) -> Result<Response, ApiError> {
    let Beside { mut own, shared } = body;
    let logprobs = own.logprobs()?;
    let (messages, ending) = own.conversation()?;
    let wanted = Wanted {
        prompts: 1,
        // The engine bounds this by the room in the context.
        max_tokens: own.max_output_tokens.unwrap_or(usize::MAX),
        logprobs,
        format: own.grammar()?,
        ..Wanted::default()
    };
    let sampling = shared
        .into_sampling()?
        .check(arrival, identity.tenant, wanted, state)
        .await?
        .limited(own.max_output_tokens.is_some());
    let mut sampling = sampling.ending(ending)?;
    sampling.warnings.extend(own.store_warning());
    let chat = Chat {
        messages,
        variables: own.chat_template_kwargs.take().unwrap_or_default(),
    };
    let prompt = chat.read(state, &sampling).await?;
    let call = state.call("resp", &sampling);
    let echo = Echo::new(own, &sampling);
    let format = Format::new(call, echo, sampling.warnings.clone());
    answering::answer(state, identity, &sampling, vec![prompt], format).await
}
