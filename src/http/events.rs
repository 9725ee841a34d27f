//! `GET /events`: the audit trail.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::error::{ApiError, ErrorBody};
use super::extract::Query;
use crate::preference::log::{Event, LogError};

/// Events of an answer, unless it is said how many.
const DEFAULT_EVENTS: usize = 100;
/// And the most.
const MAX_EVENTS: usize = 1000;

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Those after this one; from the first by default.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// How many at most: 100 unless said otherwise.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Whether to check the whole trail, from its first event on.
    #[serde(default)]
    verify: bool,
}

/// Some of the trail, the oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventsBody {
    /// The events.
    events: Vec<AuditEvent>,
    /// Whether every event of the trail has the hash that it should have; null where it was not asked.
    valid: Option<bool>,
}

/// Something that happened to data, weights or principles.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditEvent {
    /// Counted from 1, without gaps.
    sequence: i64,
    /// Milliseconds since 1970.
    at: i64,
    /// Who did it: an operator's key, or a part of the server.
    actor: String,
    /// What was done, such as `principles.replaced`.
    action: String,
    /// What is known of it, by the kind of action.
    detail: Value,
    /// Hex SHA-256 of the event before.
    previous: String,
    /// Hex SHA-256 over `previous` and this event.
    hash: String,
}

impl From<Event> for AuditEvent {
    fn from(event: Event) -> Self {
        Self {
            sequence: event.sequence,
            at: event.at,
            actor: event.actor,
            action: event.action,
            detail: event.detail,
            previous: event.previous,
            hash: event.hash,
        }
    }
}

/// Lists the audit trail.
///
/// Each event is hashed over the one before, so that none can be changed or taken out unseen. `verify=true` checks the whole trail.
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
    let log = state.traffic.log()?;
    let valid = match query.verify {
        true => match log.verify_chain().await {
            Ok(_) => Some(true),
            Err(LogError::Corrupt(_)) => Some(false),
            Err(error) => return Err(error.into()),
        },
        false => None,
    };
    let events = log.events(after, limit).await?;
    let events = events.into_iter().map(AuditEvent::from).collect();
    Ok(Json(EventsBody { events, valid }))
}
