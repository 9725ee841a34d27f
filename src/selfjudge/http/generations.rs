//! `GET /generations` and the operations on their pointers: promotion, canary, rollback.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::{ApiError, ErrorBody};
use super::extract::{JsonBody, Named, Query};
use super::identity::Identity;
use super::records::record_id;
use super::{AppState, Learning};
use crate::learn::CanaryHealth;
use traffic_log::{Generation, GenerationId, LogError, Pointer, PointerMove, Pointers};

/// All generations, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerationsBody {
    /// The pointers.
    pointers: Pointers,
    /// The version that answers on this server: the policy pointer's, unless that cannot serve here.
    serving: String,
    /// Why the pointers are not followed, if they are not: a generation of another base, a damaged or a missing one.
    serving_problem: Option<String>,
    /// The health of the canary; null if none serves on this server.
    canary: Option<CanaryHealth>,
    /// The last canary that this server withdrew automatically, and why.
    withdrawn: Option<String>,
    /// The generations, the newest first.
    generations: Vec<Generation>,
}

/// The role to which a generation is promoted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PromotedAs {
    /// It serves, and training continues from it.
    #[default]
    Policy,
    /// It judges. Refused while a stage runs, whose pairs must have a single judge.
    Judge,
}

/// A move of the policy pointer, or of the judge's.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveBody {
    /// The current policy (or judge) as known to the caller: the generation's id or its first digits (8 or more). Answered with 409 if
    /// the pointer is elsewhere.
    #[schema(min_length = 1)]
    expected: String,
    /// Serve a share of the callers first (`--canary-share`) instead of all.
    #[serde(default)]
    canary: bool,
    /// The role; only for promotions. To restore an earlier judge, promote it.
    #[serde(default, rename = "as")]
    role: PromotedAs,
}

/// The result of a move.
#[derive(Debug, Serialize, ToSchema)]
pub struct MovedBody {
    /// The pointers after the move.
    pointers: Pointers,
}

fn learning(state: &AppState) -> Result<&Learning, ApiError> {
    let message = "this server keeps no generations";
    let none = || ApiError::new(StatusCode::NOT_FOUND, "no_generations", message);
    state.learning.as_ref().ok_or_else(none)
}

/// The selection of generations.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only those whose stages read this record, its prompt or the feedback on it; also after its deletion.
    record: Option<String>,
}

/// Lists the generations, their gates, and which of them serves.
///
/// A generation is the result of a stage of learning. The newest comes first. `record` lists only those whose training read a given
/// record.
#[utoipa::path(
    get,
    path = "/generations",
    tag = "admin",
    params(ListQuery),
    responses(
        (status = 200, body = GenerationsBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn generations(
    State(state): State<AppState>,
    Query(listed): Query<ListQuery>,
) -> Result<Json<GenerationsBody>, ApiError> {
    let learning = learning(&state)?;
    let log = &learning.log;
    let readers = match &listed.record {
        Some(record) => Some(log.stages.lineage(&record_id(record)?).await?),
        None => None,
    };
    let pointers = log.generations.pointers().await?;
    let (canary, withdrawn) = learning.publisher.canary();
    let generations = log.generations.all().await?.into_iter();
    let generations = generations.filter(|generation| {
        let readers = readers.as_ref();
        readers.is_none_or(|readers| readers.contains(&generation.id))
    });
    Ok(Json(GenerationsBody {
        pointers,
        serving: learning.publisher.serving(),
        serving_problem: learning.publisher.problem(),
        canary,
        withdrawn,
        generations: generations.collect(),
    }))
}

/// Promotes a generation, regardless of its gates.
///
/// The generation is loaded and verified first. `canary` serves it to a share of the callers, and `as: judge` makes it the judge.
#[utoipa::path(
    post,
    path = "/generations/{id}/promote",
    tag = "admin",
    params(("id" = String, Path, description = "A generation's id or its first digits (8 or more), or `base`")),
    request_body(content = MoveBody, examples(
        ("all" = (value = json!({"expected": "base"}))),
        ("share" = (value = json!({"expected": "base", "canary": true}))),
        ("judge" = (value = json!({"expected": "base", "as": "judge"})))
    )),
    responses(
        (status = 200, body = MovedBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn promote(
    State(state): State<AppState>,
    identity: Identity,
    Named(id): Named,
    JsonBody(body): JsonBody<MoveBody>,
) -> Result<Json<MovedBody>, ApiError> {
    let reason = match (body.role, body.canary) {
        (PromotedAs::Judge, true) => {
            let message = "cannot be true for a judge, which applies to all callers";
            return Err(ApiError::invalid("canary", message));
        }
        (PromotedAs::Judge, false) => "promoted as judge",
        (PromotedAs::Policy, true) => {
            canary_has_callers(&state)?;
            "canary"
        }
        (PromotedAs::Policy, false) => "promoted",
    };
    shift(&state, &identity, &id, &body, reason).await
}

/// Restores a generation that served before, or the base.
///
/// It serves all callers, and training continues from there.
#[utoipa::path(
    post,
    path = "/generations/{id}/rollback",
    tag = "admin",
    params(("id" = String, Path, description = "The generation to go back to, by its id or its first digits (8 or more), or `base`")),
    request_body(content = MoveBody, example = json!({"expected": "base"})),
    responses(
        (status = 200, body = MovedBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn rollback(
    State(state): State<AppState>,
    identity: Identity,
    Named(id): Named,
    JsonBody(body): JsonBody<MoveBody>,
) -> Result<Json<MovedBody>, ApiError> {
    if body.canary {
        let message = "cannot be true for a rollback, which applies to all callers";
        return Err(ApiError::invalid("canary", message));
    }
    if body.role == PromotedAs::Judge {
        let message = "cannot be `judge` in a rollback: promote the earlier judge instead";
        return Err(ApiError::invalid("as", message));
    }
    shift(&state, &identity, &id, &body, "rolled back").await
}

/// Checks that a canary would have callers: it answers a share of them by identity.
fn canary_has_callers(state: &AppState) -> Result<(), ApiError> {
    let refused = |message| {
        Err(ApiError::new(StatusCode::CONFLICT, "no_canary_callers", message).about("canary"))
    };
    if learning(state)?.publisher.canary_share() == 0.0 {
        return refused(
            "a canary would have no callers, because this server gives it no share of them: promote for all callers without `canary`, or \
             start the server with --learn and a --canary-share above 0",
        );
    }
    if !state.keyed && !state.traffic().trust_user {
        return refused(
            "a canary would have no callers, because this server cannot tell them apart: promote for all callers without `canary`, or \
             start the server with --api-key-file or --trust-user",
        );
    }
    Ok(())
}

/// Minimum number of leading digits that abbreviate a generation's id.
const SHORT_ID: usize = 8;

/// Returns the generation with the given id, or with the given unique prefix of an id.
async fn whole_id(learning: &Learning, text: &str) -> Result<GenerationId, ApiError> {
    let named = GenerationId::new(text);
    if text.len() < SHORT_ID
        || named.is_base()
        || learning.log.generations.get(&named).await?.is_some()
    {
        return Ok(named);
    }
    let all = learning.log.generations.all().await?;
    let mut found = all
        .into_iter()
        .map(|generation| generation.id)
        .filter(|id| id.as_str().starts_with(text));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(ApiError::new(
            StatusCode::CONFLICT,
            "ambiguous_generation",
            format!("several generations' ids begin with `{text}`: give more digits"),
        )),
        // The caller's use of the id reports that there is no such generation.
        (None, _) => Ok(named),
    }
}

/// Moves the pointers by compare-and-swap, and serves the result before answering.
async fn shift(
    state: &AppState,
    identity: &Identity,
    id: &str,
    body: &MoveBody,
    reason: &str,
) -> Result<Json<MovedBody>, ApiError> {
    let learning = learning(state)?;
    let to = whole_id(learning, id).await?;
    if let Err(error) = learning.publisher.check(&to).await {
        if learning.log.generations.get(&to).await?.is_none() {
            let id = id.to_owned();
            let what = "generation";
            return Err(LogError::NotFound { what, id }.into());
        }
        let message = format!("it cannot serve: {error}");
        return Err(
            ApiError::new(StatusCode::CONFLICT, "unusable_generation", message).about("id"),
        );
    }
    let now = learning.log.generations.pointers().await?;
    let expected = whole_id(learning, &body.expected).await?;
    let step = |pointer, from: &GenerationId, to: &GenerationId| PointerMove {
        pointer,
        from: from.clone(),
        to: to.clone(),
    };
    let moves = if body.role == PromotedAs::Judge {
        if let Some(stage) = learning.log.stages.current().await? {
            let message = format!(
                "stage {} is running, and all its pairs must have the same judge",
                stage.id
            );
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "stage_running",
                message,
            ));
        }
        vec![step(Pointer::Judge, &expected, &to)]
    } else if body.canary {
        vec![
            step(Pointer::Policy, &expected, &expected),
            step(Pointer::Canary, &now.canary, &to),
        ]
    } else {
        vec![
            step(Pointer::Policy, &expected, &to),
            step(Pointer::Canary, &now.canary, &to),
            step(Pointer::Train, &now.train, &to),
            step(Pointer::Reference, &now.reference, &to),
        ]
    };
    learning
        .log
        .generations
        .move_pointers(&moves, &identity.actor(), reason)
        .await?;
    let pointers = match learning.publisher.follow().await {
        Ok(pointers) => pointers,
        Err(error) => {
            tracing::error!("the pointers moved, but the served weights are unchanged: {error}");
            learning.log.generations.pointers().await?
        }
    };
    Ok(Json(MovedBody { pointers }))
}
