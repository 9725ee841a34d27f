//! `GET` and `PUT /principles`: the table of principles that answers are judged by.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::AppState;
use super::error::{ApiError, ErrorBody};
use super::extract::JsonBody;
use super::identity::Identity;
use crate::principles::VersionedTable;
use judge::{Principle, PrincipleTable};

/// Maximum number of principles in a table; each costs a forward pass per pair and order.
const MAX_PRINCIPLES: usize = 256;

/// The table and its version.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TableBody {
    /// The version of the table. In a replacement, the version that is replaced: 409 if another is current.
    pub version: u64,
    /// All principles, at most 256.
    #[schema(max_items = 256)]
    pub principles: Vec<Principle>,
}

impl From<&VersionedTable> for TableBody {
    fn from(table: &VersionedTable) -> Self {
        Self {
            version: table.version,
            principles: table.table.iter().cloned().collect(),
        }
    }
}

/// Lists the principles in force.
///
/// `"principles": "table"` judges by all of them, and a call may name some of them by id.
#[utoipa::path(
    get,
    path = "/principles",
    tag = "selfjudge",
    responses((status = 200, body = TableBody), (status = "4XX", body = ErrorBody))
)]
pub async fn principles(State(state): State<AppState>) -> Json<TableBody> {
    Json(TableBody::from(&*state.principles.current()))
}

/// Replaces the table of principles.
///
/// Verdicts change with the next call, and training with its next stage; the judge is not retrained. `version` must be the current
/// one.
#[utoipa::path(
    put,
    path = "/principles",
    tag = "admin",
    request_body(content = TableBody, examples(
        ("weights" = (value = json!({
            "version": 1,
            "principles": [
                {"id": "correct", "text": "correct", "weight": 3},
                {"id": "brief", "text": "brief", "weight": 0},
                {"id": "polite", "text": "polite", "weight": 0.5, "polarity": "forbid"}
            ]
        })))
    )),
    responses(
        (status = 200, description = "The table, with its new version", body = TableBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn replace(
    State(state): State<AppState>,
    identity: Identity,
    JsonBody(body): JsonBody<TableBody>,
) -> Result<Json<TableBody>, ApiError> {
    if body.principles.len() > MAX_PRINCIPLES {
        let message = format!("must be at most {MAX_PRINCIPLES}");
        return Err(ApiError::invalid("principles", message));
    }
    let table = PrincipleTable::new(body.principles)
        .map_err(|error| ApiError::invalid("principles", error.to_string()))?;
    let current = state.principles.clone();
    let replaced = tokio::task::spawn_blocking(move || current.replace(body.version, table));
    let table = replaced.await.map_err(|_| ApiError::shutting_down())??;
    if let Some(log) = &state.traffic().log {
        let detail = json!({"version": table.version, "weights": weights(&table)});
        let actor = identity.actor();
        // The table is in force already, so a failure to write the audit trail must not look like a failure of the replacement.
        if let Err(error) = log
            .audit
            .append(&actor, "principles.replaced", detail)
            .await
        {
            tracing::error!(%error, version = table.version, "the event principles.replaced could not be written to the audit trail");
        }
    }
    Ok(Json(TableBody::from(&*table)))
}

fn weights(table: &VersionedTable) -> serde_json::Map<String, serde_json::Value> {
    let weight = |principle: &Principle| (principle.id.clone(), json!(principle.weight));
    table.table.iter().map(weight).collect()
}
