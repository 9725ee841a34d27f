//! `GET /v1/models`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::wording::created;
use crate::http::AppState;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Named;
use crate::http::status::SelfTestBody;

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
    /// The model's newest self-test as a judge; null where it had none.
    judge: Option<SelfTestBody>,
}

impl AppState {
    fn model_entry(&self) -> ModelEntry {
        ModelEntry {
            id: self.model_name.to_string(),
            object: "model",
            created: created(),
            owned_by: "selfjudge",
            max_model_len: self.service.engine().capacity().max_context,
            judge: self.service.self_test().map(SelfTestBody::from),
        }
    }
}

/// The model of this name, if it is the one that is served.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    params(("id" = String, Path, description = "The model's name; a slash in it may be written as it is")),
    responses((status = 200, body = ModelEntry), (status = "4XX", body = ErrorBody))
)]
pub async fn model(
    State(state): State<AppState>,
    Named(id): Named,
) -> Result<Json<ModelEntry>, ApiError> {
    state.check_model(Some(&id))?;
    Ok(Json(state.model_entry()))
}

/// The one model that is served.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = ModelList)))]
pub async fn models(State(state): State<AppState>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: vec![state.model_entry()],
    })
}
