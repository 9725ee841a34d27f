//! `GET /events`: the audit trail.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::error::{ApiError, ErrorBody};
use super::extract::Query;
use traffic_log::{Event, LogError};

/// Default number of events in an answer.
const DEFAULT_EVENTS: usize = 100;
/// Maximum number of events in an answer.
const MAX_EVENTS: usize = 1000;

/// The selection of events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only events after this sequence number; by default from the first.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Maximum number of events; by default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Whether to verify the whole trail, from its first event.
    #[serde(default)]
    verify: bool,
}

/// A part of the trail, the oldest event first.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventsBody {
    /// The events.
    events: Vec<Event>,
    /// Whether every event of the trail has the expected hash; null unless requested.
    valid: Option<bool>,
}

/// Lists the audit trail.
///
/// Each event's hash includes the previous one, so that changes and removals are detected. `verify=true` checks the whole trail.
#[utoipa::path(
    get,
    path = "/events",
    tag = "admin",
    params(EventsQuery),
    responses(
        (status = 200, body = EventsBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn events(
    State(state): State<AppState>,
    Query(query): Query<EventsQuery>,
) -> Result<Json<EventsBody>, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_EVENTS);
    if !(1..=MAX_EVENTS).contains(&limit) {
        let message = format!("must be from 1 to {MAX_EVENTS}");
        return Err(ApiError::invalid("limit", message));
    }
    let after = query.after.unwrap_or(0);
    if after < 0 {
        return Err(ApiError::invalid("after", "must not be negative"));
    }
    let log = state.traffic().log()?;
    let valid = match query.verify {
        true => match log.audit.verify().await {
            Ok(_) => Some(true),
            Err(LogError::Corrupt(_)) => Some(false),
            Err(error) => return Err(error.into()),
        },
        false => None,
    };
    let events = log.audit.after(after, limit).await?;
    Ok(Json(EventsBody { events, valid }))
}
