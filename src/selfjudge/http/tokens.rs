//! `POST /tokenize` and `POST /detokenize`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::conversation::{self, MessageBody};
use super::error::{ApiError, ErrorBody};
use super::extract::{JsonBody, null_is_absent};
use text::Variables;

/// A text, or a conversation for the chat template.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeBody {
    /// A text, encoded without a template. Exactly one of `text` and `messages` must be given.
    text: Option<String>,
    /// A conversation, rendered by the chat template.
    messages: Option<Vec<MessageBody>>,
    /// Whether the tokenizer's post-processor adds its tokens, such as BOS. By default true with `text`, as in /v1/completions, and false
    /// with `messages`, because chat templates write them.
    add_special_tokens: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`; for `messages` only.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Variables>,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeAnswer {
    /// The ids of the tokens.
    tokens: Vec<u32>,
    /// The number of tokens.
    count: usize,
    /// Whether the tokenizer's post-processor added its tokens.
    add_special_tokens: bool,
    /// Maximum tokens of prompt and answer together.
    max_model_len: usize,
}

/// The tokens to decode.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeBody {
    /// The ids of the tokens.
    tokens: Vec<u32>,
    /// Whether control tokens are left out of the text.
    #[serde(default, deserialize_with = "null_is_absent")]
    #[schema(value_type = Option<bool>)]
    skip_special_tokens: bool,
}

/// The decoded text.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeAnswer {
    /// The text.
    text: String,
}

/// Encodes a text or a conversation as tokens.
///
/// A conversation is rendered by the chat template, as in a chat. The answer also has the number of tokens and the maximum length of
/// the context.
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "selfjudge",
    request_body(content = TokenizeBody, examples(
        ("1. a text" = (value = json!({"text": "What is 45 plus 17?"}))),
        ("2. a conversation" = (value = json!({"messages": [{"role": "user", "content": "What is 45 plus 17?"}]})))
    )),
    responses((status = 200, body = TokenizeAnswer), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub async fn tokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<TokenizeBody>,
) -> Result<Json<TokenizeAnswer>, ApiError> {
    let add_special_tokens = body.add_special_tokens.unwrap_or(body.text.is_some());
    let tokens = match (body.text, body.messages) {
        (Some(_), None) if body.chat_template_kwargs.is_some() => {
            return Err(ApiError::invalid(
                "chat_template_kwargs",
                "has no meaning without messages",
            ));
        }
        (Some(text), None) => {
            let tokens = state.service.tokenize_text(text, add_special_tokens).await;
            tokens.map_err(|error| ApiError::from(error).renamed("prompt", "text"))?
        }
        (None, Some(messages)) => {
            let messages = conversation::messages(messages)?;
            let variables = body.chat_template_kwargs.unwrap_or_default();
            let tokens = state
                .service
                .tokenize_chat(messages, variables, add_special_tokens);
            let tokens = tokens.await;
            tokens.map_err(|error| ApiError::from(error).renamed("prompt", "messages"))?
        }
        _ => {
            return Err(ApiError::invalid(
                "text",
                "either `text` or `messages` must be given",
            ));
        }
    };
    Ok(Json(TokenizeAnswer {
        count: tokens.len(),
        tokens,
        add_special_tokens,
        max_model_len: state.service.engine().capacity().max_context,
    }))
}

/// Decodes tokens to a text.
///
/// Control tokens are written by their names, or left out with `skip_special_tokens`.
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "selfjudge",
    request_body(content = DetokenizeBody, example = json!({"tokens": [51, 52, 32, 43]})),
    responses((status = 200, body = DetokenizeAnswer), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub async fn detokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<DetokenizeBody>,
) -> Result<Json<DetokenizeAnswer>, ApiError> {
    let text = state
        .service
        .detokenize(body.tokens, body.skip_special_tokens)
        .await?;
    Ok(Json(DetokenizeAnswer { text }))
}
