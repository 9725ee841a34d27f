//! `POST /generate`: answers to a prompt, or the best of several.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::answering::{self, About, AnswerFormat, Ends, Piece, StopReason};
use super::beside::Generating;
use super::conversation::{MessageBody, conversation, ending};
use super::error::{ApiError, ErrorBody};
use super::idempotency::IDEMPOTENCY;
use super::identity::Identity;
use super::kept::KeptBody;
use super::reading::Chat;
use super::sampling::Wanted;
use super::sse::EventBody;
use crate::call::Usage;
use crate::judging::Tournament;
use crate::service::TokenText;
use engine::TokenLogprobs;
use model::WeightsName;
use text::Variables;

/// Default maximum of tokens per answer.
const DEFAULT_MAX_TOKENS: usize = 256;

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateBody {
    /// One message of the user; for a conversation, `messages`.
    prompt: Option<String>,
    /// A conversation; for one message of the user, `prompt`. Exactly one of both must be given.
    messages: Option<Vec<MessageBody>>,
    /// Maximum tokens per answer; by default 256, and never more than fit into the context.
    #[schema(minimum = 1, default = 256)]
    max_tokens: Option<usize>,
    /// Return each token's log-probability and those of this many most probable tokens.
    #[schema(maximum = 20)]
    logprobs: Option<usize>,
    /// Return the log-probabilities of these tokens with every token; at most 128.
    #[schema(max_items = 128)]
    logprob_token_ids: Option<Vec<u32>>,
    /// Whether the answer begins a message of the assistant; by default true. With `false` it continues after the last turn.
    add_generation_prompt: Option<bool>,
    /// Whether the answer continues the last message, which is then not closed. Such calls are not recorded.
    continue_final_message: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Variables>,
}

type GenerateRequest = Generating<GenerateBody>;

/// The answer, or an event of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerateAnswer {
    /// The id of the call.
    #[schema(value_type = String)]
    id: Arc<str>,
    /// The name of the model.
    #[schema(value_type = String)]
    model: Arc<str>,
    /// The weights that answered: `base`, or the digest of a generation.
    #[schema(value_type = Option<String>)]
    version: Option<WeightsName>,
    /// The answers: `n` of them, or in a stream one token's increment of one.
    outputs: Vec<OutputBody>,
    /// Usage of the whole call; in the last event of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    /// The tournament, with `best_of`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tournament: Option<Tournament>,
    /// Requests that are fulfilled only in part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(flatten)]
    kept: KeptBody,
}

/// One answer, or its increment by a token.
#[derive(Debug, Serialize, ToSchema)]
pub struct OutputBody {
    /// Index of the answer; with `best_of`, the candidate's number in the tournament.
    index: usize,
    /// The text of the answer.
    text: String,
    /// The ids of the answer's tokens, including the token that ended it.
    token_ids: Vec<u32>,
    /// `stop` or `length`.
    finish_reason: Option<&'static str>,
    /// The stop string or token that ended the answer, unless the model itself ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
    /// One entry per token, with `logprobs` or `logprob_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<LogprobBody>>,
}

/// Raw log-probabilities at one token: over the full vocabulary, before temperature, penalties and truncation.
#[derive(Debug, Serialize, ToSchema)]
pub struct LogprobBody {
    /// The token's id.
    token_id: u32,
    /// The natural logarithm of the token's probability.
    logprob: f32,
    /// The most probable tokens, `logprobs` of them.
    top: Vec<TokenLogprobBody>,
    /// The tokens of `logprob_token_ids`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chosen: Vec<TokenLogprobBody>,
}

/// A token and its log-probability.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenLogprobBody {
    /// The token's id.
    token_id: u32,
    /// The natural logarithm of the token's probability.
    logprob: f32,
}

struct Format {
    id: Arc<str>,
    model: Arc<str>,
    ends: Ends,
    chosen: Vec<u32>,
}

impl Format {
    fn logprob(&self, token_id: u32, logprobs: &TokenLogprobs) -> LogprobBody {
        let body = |(token_id, logprob)| TokenLogprobBody { token_id, logprob };
        let chosen = self.chosen.iter().copied().zip(logprobs.chosen.clone());
        LogprobBody {
            token_id,
            logprob: logprobs.token,
            top: logprobs.top.iter().copied().map(body).collect(),
            chosen: chosen.map(body).collect(),
        }
    }
}

impl AnswerFormat for Format {
    type Choice = OutputBody;
    type Answer = GenerateAnswer;

    const USAGE_LAST: bool = true;

    fn choice(&self, piece: Piece<'_>) -> OutputBody {
        let output = piece.output;
        let (finish_reason, stop_reason) = self.ends.reasons(output.finish);
        let logprob = |token: &TokenText| Some(self.logprob(token.id, token.logprobs.as_ref()?));
        OutputBody {
            index: output.index,
            text: output.text,
            token_ids: output.tokens.iter().map(|token| token.id).collect(),
            finish_reason,
            stop_reason,
            logprobs: output.tokens.iter().map(logprob).collect(),
        }
    }

    fn answer(&self, outputs: Vec<OutputBody>, about: About) -> GenerateAnswer {
        GenerateAnswer {
            id: Arc::clone(&self.id),
            model: Arc::clone(&self.model),
            version: about.weights,
            outputs,
            usage: about.usage,
            tournament: about.tournaments.into_iter().next(),
            warnings: about.warnings,
            kept: about.records.into(),
        }
    }
}

/// Answers a prompt, and with `best_of` chooses the best of several answers by a tournament.
///
/// The answers have token ids and log-probabilities by id. With `stream` every token is an event, and the last event has the usage.
#[utoipa::path(
    post,
    path = "/generate",
    tag = "selfjudge",
    request_body(content = GenerateRequest, examples(
        ("1. one answer" = (value = json!({"prompt": "What is 45 plus 17?", "seed": 1}))),
        ("2. the best of four" = (value = json!({"prompt": "What is 45 plus 17?", "best_of": 4, "seed": 5}))),
        ("3. a conversation" = (value = json!({
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Spell planet with hyphens."}
            ],
            "temperature": 0, "max_tokens": 32, "logprobs": 2
        }))),
        ("4. streamed" = (value = json!({"prompt": "Reverse the word car.", "stream": true, "n": 2, "seed": 1})))
    )),
    params(("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY)),
    responses(
        (
            status = 200,
            description = "The answer; with `stream`, server-sent events that hold one of the same shape each, and `[DONE]` after the last",
            content((GenerateAnswer = "application/json"), (EventBody = "text/event-stream"))
        ),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn generate(
    State(state): State<AppState>,
    identity: Identity,
    body: Generating<GenerateBody>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let Generating {
        own,
        shared: sampling,
    } = body;
    let ending = ending(own.add_generation_prompt, own.continue_final_message)?;
    if ending.is_some() && own.messages.is_none() {
        return Err(ApiError::invalid(
            "messages",
            "must be given if `add_generation_prompt` or `continue_final_message` changes how the prompt ends",
        ));
    }
    let messages = conversation(own.prompt, own.messages)?;
    let variables = own.chat_template_kwargs.unwrap_or_default();
    let chosen = own.logprob_token_ids.unwrap_or_default();
    let max_tokens = own.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let wanted = Wanted {
        prompts: 1,
        max_tokens,
        logprobs: own.logprobs,
        logprob_ids: chosen.clone(),
        ..Wanted::default()
    };
    let sampling = sampling
        .check(arrival, identity.tenant, wanted, &state)
        .await?
        .limited(own.max_tokens.is_some())
        .ending(ending)?;
    let chat = Chat {
        messages,
        variables,
    };
    let prompt = chat.read(&state, &sampling).await?;
    let format = Format {
        id: state.next_id("gen").into(),
        model: Arc::clone(&state.model_name),
        ends: Ends {
            stop: Arc::clone(&sampling.stop),
            ids: state.service.stop_ids().into(),
        },
        chosen,
    };
    answering::answer(&state, &identity, &sampling, vec![prompt], format).await
}
