//! `GET /train`, `POST /train/pause`, `/train/resume` and `/train/abandon`: status and control of learning for operators.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::error::{ApiError, ErrorBody};
use super::identity::Identity;
use super::{AppState, Learning};
use crate::learn::{AbandonedStage, LearnControl, LearnStatus, Staleness, Swaps, Waiting};
use traffic_log::Abandoned;

/// The status of learning.
// A type of its own: it joins what the learner, the publisher and the log report.
#[derive(Debug, Serialize, ToSchema)]
pub struct TrainBody {
    /// `standby` (another process trains), `waiting` (for prompts), `paused`, `sampling`, `judging`, `updating`, `gating` or `failed`.
    state: String,
    /// Whether learning is paused.
    paused: bool,
    /// The running stage, or the last one.
    stage: i64,
    /// Updates of the stage so far.
    update: u64,
    /// Planned updates of the stage.
    planned: u64,
    /// Prompts of the log that the next stage could use.
    prompts_waiting: u64,
    /// Prompts that a stage needs.
    prompts_needed: u64,
    /// Updates since the program started.
    updates: u64,
    /// Preference pairs made since the program started.
    pairs: u64,
    /// Pairs that were not made, by reason.
    #[schema(value_type = Object)]
    dropped: Value,
    /// Stages that passed their gates since learning was last resumed; learning pauses at the configured number.
    unattended: u64,
    /// Loss, rewards, log-probabilities, gradient norm and lengths of the last update.
    #[schema(value_type = Option<Object>)]
    last_update: Value,
    /// Mean KL divergence of an answer from generation 0, nats, estimated on the policy's own answers; with nucleus sampling the
    /// difference in the tail is left out.
    kl: Option<f64>,
    /// Age of the policies that wrote the last update's pairs.
    staleness: Option<Staleness>,
    /// Swaps of the served weights.
    swaps: Swaps,
    /// The traffic log.
    log: TrafficLogBody,
    /// The gates of the last candidate.
    #[schema(value_type = Vec<Object>)]
    gates: Value,
    /// The outcome of the last stage; null before the first.
    last_outcome: Option<String>,
    /// The last stage that was abandoned since the program started; null if none was.
    abandoned: Option<AbandonedStage>,
    /// Why no stage runs; null while one does.
    waiting_reason: Option<Waiting>,
    /// How often the learner died since the program started; it is restarted, and abandons a stage in which it dies three times.
    deaths: u64,
    /// Records that are left out because their token ids belong to another tokenizer.
    records_of_other_tokenizers: u64,
    /// Why learning failed; null if it did not.
    error: Option<String>,
    /// Why the pointers are not followed, if they are not.
    serving_problem: Option<String>,
    /// Time of the last change in seconds since 1970.
    changed: u64,
}

/// The traffic log as written by this process.
#[derive(Debug, Serialize, ToSchema)]
pub struct TrafficLogBody {
    /// Seconds from queue to commit, for the slowest record of the last batch.
    commit_lag_seconds: f64,
    /// Records that wait for the writer.
    queue_depth: usize,
}

impl TrainBody {
    fn new(status: LearnStatus, learning: &Learning) -> Self {
        let log = learning.log.stats();
        Self {
            state: status.state.name().to_owned(),
            paused: status.paused,
            stage: status.stage,
            update: status.update,
            planned: status.planned,
            prompts_waiting: status.prompts_waiting,
            prompts_needed: status.prompts_needed,
            updates: status.updates,
            pairs: status.pairs,
            dropped: json!(status.dropped),
            unattended: status.unattended,
            last_update: json!(status.last_update),
            kl: status.kl,
            staleness: status.staleness,
            swaps: learning.publisher.swaps(),
            log: TrafficLogBody {
                commit_lag_seconds: log.commit_lag_seconds,
                queue_depth: log.queue_depth,
            },
            gates: json!(status.gates),
            last_outcome: status.last_outcome,
            abandoned: status.abandoned,
            waiting_reason: status.waiting,
            deaths: status.deaths,
            records_of_other_tokenizers: status.of_other_tokenizers,
            error: status.error,
            serving_problem: learning.publisher.problem(),
            changed: status.changed,
        }
    }
}

/// Returns learning and its controls, or an error that explains their absence.
fn learning(state: &AppState) -> Result<(&Learning, &LearnControl), ApiError> {
    let none = || {
        let message = "this server does not learn";
        ApiError::new(StatusCode::NOT_FOUND, "not_learning", message)
    };
    let learning = state.learning.as_ref().ok_or_else(none)?;
    let control = learning.control.as_ref().ok_or_else(none)?;
    Ok((learning, control))
}

fn body(learning: &Learning, control: &LearnControl) -> Json<TrainBody> {
    Json(TrainBody::new(control.status(), learning))
}

/// Returns the status of learning.
///
/// The answer has the progress of the stage, the reason if none runs, the last gates' results and the numbers of the last update.
#[utoipa::path(
    get,
    path = "/train",
    tag = "admin",
    responses((status = 200, body = TrainBody), (status = "4XX", body = ErrorBody))
)]
pub async fn train(State(state): State<AppState>) -> Result<Json<TrainBody>, ApiError> {
    let (learning, control) = learning(&state)?;
    Ok(body(learning, control))
}

/// Pauses learning.
///
/// The process that learns from this log stops after the current update, until learning is resumed. Serving continues.
#[utoipa::path(
    post,
    path = "/train/pause",
    tag = "admin",
    responses(
        (status = 200, body = TrainBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn pause(
    State(state): State<AppState>,
    identity: Identity,
) -> Result<Json<TrainBody>, ApiError> {
    let (learning, control) = learning(&state)?;
    learning.log.switch.pause(&identity.actor()).await?;
    control.follow(learning.log.switch.get().await?);
    Ok(body(learning, control))
}

/// Resumes learning.
///
/// A paused stage continues where it stopped. The count of unattended stages restarts at 0.
#[utoipa::path(
    post,
    path = "/train/resume",
    tag = "admin",
    responses(
        (status = 200, body = TrainBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn resume(
    State(state): State<AppState>,
    identity: Identity,
) -> Result<Json<TrainBody>, ApiError> {
    let (learning, control) = learning(&state)?;
    learning.log.switch.resume(&identity.actor()).await?;
    control.follow(learning.log.switch.get().await?);
    Ok(body(learning, control))
}

/// Abandons the open stage.
///
/// The stage is closed as failed, whichever process learns from this log and whichever version of the program opened it. Its candidate is
/// rejected. The learner goes on with a new stage; pause learning first if it should not.
#[utoipa::path(
    post,
    path = "/train/abandon",
    tag = "admin",
    responses(
        (status = 200, body = Abandoned),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn abandon(
    State(state): State<AppState>,
    identity: Identity,
) -> Result<Json<Abandoned>, ApiError> {
    let (learning, _) = learning(&state)?;
    let reason = "abandoned by an operator";
    let abandoned = learning
        .log
        .stages
        .abandon_open(&identity.actor(), reason)
        .await?;
    let none_open = || {
        let message = "no stage is open";
        ApiError::new(StatusCode::CONFLICT, "no_open_stage", message)
    };
    abandoned.map(Json).ok_or_else(none_open)
}
