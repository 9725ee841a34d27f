//! `GET /generations` and the operations on their pointers: promotion, canary, rollback.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::error::{ApiError, ErrorBody};
use super::extract::{JsonBody, Named, Query};
use super::identity::Identity;
use super::records::record_id;
use super::{AppState, Learning};
use crate::learn::{CanaryHealth, Vitals};
use traffic_log::{GenerationId, LogError, Pointer, PointerMove, Pointers};

/// The pointers. Each is a generation's id, or `base`: the model without an adapter.
#[derive(Debug, Serialize, ToSchema)]
pub struct PointersBody {
    /// The version that serves.
    policy: String,
    /// The version from which the next stage starts. It moves with the policy.
    train: String,
    /// The reference policy of the next stage. It moves with the policy.
    reference: String,
    /// The version that judges calls and pairs. It moves only when an operator promotes a generation as judge.
    judge: String,
    /// The version that a share of the callers is served; the policy if there is no canary.
    canary: String,
}

impl From<Pointers> for PointersBody {
    fn from(pointers: Pointers) -> Self {
        Self {
            policy: pointers.policy.to_string(),
            train: pointers.train.to_string(),
            reference: pointers.reference.to_string(),
            judge: pointers.judge.to_string(),
            canary: pointers.canary.to_string(),
        }
    }
}

/// One generation.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerationBody {
    /// The digest of its manifest.
    id: String,
    /// The generation from which its training started.
    parent: String,
    /// The reference policy of its training.
    reference: String,
    /// The number of the stage that made it; null for an imported one.
    stage: Option<i64>,
    /// `candidate`, `promoted`, `rejected`, `rolled_back` or `failed`.
    state: String,
    /// Every gate's number, bound and verdict; null until they have been measured.
    #[schema(value_type = Option<Vec<Object>>)]
    gates: Value,
    /// Its lineage, and its files.
    #[schema(value_type = Object)]
    manifest: Value,
    /// Time in milliseconds since 1970.
    created_at: i64,
}

/// One version's numbers since the canary started, as counted by this server.
#[derive(Debug, Serialize, ToSchema)]
pub struct VitalsBody {
    /// Weighted number of answers: those that ended because of their caller are left out, and answers of a principal above its share count
    /// for less than one each.
    answers: f64,
    /// Share of answers that failed.
    errors: f64,
    /// Share of answers that were cut off by the length limit.
    truncated: f64,
    /// Mean number of tokens per answer.
    length: f64,
}

impl From<Vitals> for VitalsBody {
    fn from(vitals: Vitals) -> Self {
        Self {
            answers: vitals.answers,
            errors: vitals.errors,
            truncated: vitals.truncated,
            length: vitals.length,
        }
    }
}

/// The health of the current canary.
#[derive(Debug, Serialize, ToSchema)]
pub struct CanaryBody {
    /// The numbers of the canary.
    canary: VitalsBody,
    /// The numbers of the version that serves the other callers.
    live: VitalsBody,
    /// `too_early`, `keep` or `withdraw`.
    verdict: &'static str,
}

impl From<CanaryHealth> for CanaryBody {
    fn from(health: CanaryHealth) -> Self {
        Self {
            canary: health.canary.into(),
            live: health.live.into(),
            verdict: health.verdict.as_str(),
        }
    }
}

/// All generations, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerationsBody {
    /// The pointers.
    pointers: PointersBody,
    /// The version that answers on this server: the policy pointer's, unless that cannot serve here.
    serving: String,
    /// Why the pointers are not followed, if they are not: a generation of another base, a damaged or a missing one.
    serving_problem: Option<String>,
    /// The health of the canary; null if none serves on this server.
    canary: Option<CanaryBody>,
    /// The last canary that this server withdrew automatically, and why.
    withdrawn: Option<String>,
    /// The generations, the newest first.
    generations: Vec<GenerationBody>,
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
    pointers: PointersBody,
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
    let pointers = log.generations.pointers().await?.into();
    let (canary, withdrawn) = learning.publisher.canary();
    let generations = log.generations.all().await?.into_iter();
    let generations = generations.filter(|generation| {
        let readers = readers.as_ref();
        readers.is_none_or(|readers| readers.contains(&generation.id))
    });
    let generations = generations.map(|generation| GenerationBody {
        id: generation.id.to_string(),
        parent: generation.parent.to_string(),
        reference: generation.reference.to_string(),
        stage: generation.stage.map(|stage| stage.0),
        state: generation.state.to_string(),
        gates: generation.gates,
        manifest: generation.manifest,
        created_at: generation.created_at,
    });
    Ok(Json(GenerationsBody {
        pointers,
        serving: learning.publisher.serving(),
        serving_problem: learning.publisher.problem(),
        canary: canary.map(CanaryBody::from),
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
        Err(ApiError::new(
            StatusCode::CONFLICT,
            "no_canary_callers",
            message,
        ))
    };
    if learning(state)?.publisher.canary_share() == 0.0 {
        return refused("a canary would have no callers; set --learn and --canary-share");
    }
    if !state.keyed && !state.traffic().trust_user {
        return refused("callers cannot be distinguished; set --api-key-file or --trust-user");
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
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "unusable_generation",
            message,
        ));
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
    let pointers = pointers.into();
    Ok(Json(MovedBody { pointers }))
}
