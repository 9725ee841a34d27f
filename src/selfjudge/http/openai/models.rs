//! `GET /v1/models`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::call::created;
use crate::http::AppState;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Named;
use crate::http::status::SelfTestBody;

/// The list of served models, which has one entry.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    object: &'static str,
    /// The served model.
    data: Vec<ModelEntry>,
}

/// The served model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelEntry {
    /// The name of the model.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// The time of the call, in seconds since 1970.
    created: u64,
    /// Always `selfjudge`.
    owned_by: &'static str,
    /// Maximum tokens of prompt and answer together.
    max_model_len: usize,
    /// The model's newest self-test as a judge; null without one.
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
            judge: self.service.judge().self_test().map(SelfTestBody::from),
        }
    }
}

/// Describes the model of this name.
///
/// 404 if it is not the served one.
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

/// Lists the models that are served.
///
/// The list has one entry.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = ModelList)))]
pub async fn models(State(state): State<AppState>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: vec![state.model_entry()],
    })
}
