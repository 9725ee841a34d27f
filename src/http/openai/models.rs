//! `GET /v1/models`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::created;
use crate::http::AppState;

pub async fn models(State(state): State<AppState>) -> Json<Value> {
    let max_model_len = state.service.engine().capacity().max_context;
    Json(json!({
        "object": "list",
        "data": [{
            "id": *state.model_name,
            "object": "model",
            "created": created(),
            "owned_by": "selfjudge",
            "max_model_len": max_model_len,
        }],
    }))
}
