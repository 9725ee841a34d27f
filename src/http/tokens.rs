//! `POST /tokenize` and `POST /detokenize`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::conversation::{self, MessageBody};
use super::error::{ApiError, ErrorBody};
use super::extract::JsonBody;

/// Text as it is, or a conversation through the chat template.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeBody {
    text: Option<String>,
    messages: Option<Vec<MessageBody>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeAnswer {
    tokens: Vec<u32>,
    count: usize,
    /// Tokens that prompt and answer may have together.
    max_model_len: usize,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeBody {
    tokens: Vec<u32>,
    /// Whether control tokens are left out of the text.
    #[serde(default)]
    skip_special_tokens: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeAnswer {
    text: String,
}

/// Text or a conversation as tokens.
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "selfjudge",
    request_body(content = TokenizeBody, examples(
        ("text" = (value = json!({"text": "What is 34 plus 28?"}))),
        ("conversation" = (value = json!({"messages": [{"role": "user", "content": "What is 34 plus 28?"}]})))
    )),
    responses((status = 200, body = TokenizeAnswer), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub async fn tokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<TokenizeBody>,
) -> Result<Json<TokenizeAnswer>, ApiError> {
    let tokens = match (body.text, body.messages) {
        (Some(text), None) => {
            let tokens = state.service.tokenize_text(text).await;
            tokens.map_err(|error| ApiError::from(error).renamed("prompt", "text"))?
        }
        (None, Some(messages)) => {
            let messages = conversation::messages(messages)?;
            let tokens = state.service.tokenize_chat(messages).await;
            tokens.map_err(|error| ApiError::from(error).renamed("prompt", "messages"))?
        }
        _ => {
            return Err(ApiError::invalid(
                "text",
                "or messages must be given, not both",
            ));
        }
    };
    Ok(Json(TokenizeAnswer {
        count: tokens.len(),
        tokens,
        max_model_len: state.service.engine().capacity().max_context,
    }))
}

/// Tokens as text.
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
