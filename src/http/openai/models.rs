//! `GET /v1/models`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::wording::created;
use crate::http::AppState;

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelEntry>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelEntry {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Tokens that prompt and answer may have together.
    max_model_len: usize,
}

/// The one model that is served.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = ModelList)))]
pub async fn models(State(state): State<AppState>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: vec![ModelEntry {
            id: state.model_name.to_string(),
            object: "model",
            created: created(),
            owned_by: "selfjudge",
            max_model_len: state.service.engine().capacity().max_context,
        }],
    })
}
