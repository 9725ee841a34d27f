//! `POST /tokenize` and `POST /detokenize`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::body::{MessageBody, conversation};
use super::error::ApiError;
use super::extract::JsonBody;
use crate::service::ServiceError;

/// Text as it is, or a conversation through the chat template.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizeBody {
    text: Option<String>,
    messages: Option<Vec<MessageBody>>,
}

#[derive(Debug, Serialize)]
pub struct TokenizeAnswer {
    tokens: Vec<u32>,
    count: usize,
    max_model_len: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeBody {
    tokens: Vec<u32>,
    #[serde(default)]
    skip_special_tokens: bool,
}

#[derive(Debug, Serialize)]
pub struct DetokenizeAnswer {
    text: String,
}

pub async fn tokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<TokenizeBody>,
) -> Result<Json<TokenizeAnswer>, ApiError> {
    let tokens = match (body.text, body.messages) {
        (Some(text), None) => state.service.encode_text(text).await?,
        (None, messages @ Some(_)) => {
            let messages = conversation(None, messages)?;
            state.service.encode_chat(&messages).await?
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

pub async fn detokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<DetokenizeBody>,
) -> Result<Json<DetokenizeAnswer>, ApiError> {
    let vocab_size = state.service.engine().capacity().vocab_size;
    if let Some(id) = body.tokens.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(ApiError::invalid(
            "tokens",
            format!("{id} is outside the vocabulary"),
        ));
    }
    let decoded = state
        .service
        .tokenizer()
        .decode(&body.tokens, body.skip_special_tokens);
    let text = decoded.map_err(ServiceError::from)?;
    Ok(Json(DetokenizeAnswer { text }))
}
