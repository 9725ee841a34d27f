//! `GET /train`, `POST /train/pause` and `/train/resume`: learning, for its operators.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::error::{ApiError, ErrorBody};
use super::traffic::Identity;
use super::{AppState, Learning};
use crate::learn::{LearnControl, LearnStatus, Staleness, Waiting};

/// What learning does at the moment.
#[derive(Debug, Serialize, ToSchema)]
pub struct TrainBody {
    /// `standby` (another process trains), `waiting` (for prompts), `paused`, `sampling`, `judging`, `updating`, `gating` or `failed`.
    state: String,
    /// Whether learning is paused.
    paused: bool,
    /// The running stage, or the last one.
    stage: i64,
    /// Its updates so far, and as planned.
    update: u64,
    /// The updates that the stage plans.
    planned: u64,
    /// Prompts of the log that the next stage could read.
    prompts_waiting: u64,
    /// Prompts that a stage needs.
    prompts_needed: u64,
    /// Since the program started.
    updates: u64,
    /// Preference pairs that were made since the program started.
    pairs: u64,
    /// Pairs that were not made, by reason.
    #[schema(value_type = Object)]
    dropped: Value,
    /// Stages that passed their gates since learning was last resumed; it pauses at the configured number.
    unattended: u64,
    /// Loss, rewards, log-probabilities, gradient norm and lengths of the last update.
    #[schema(value_type = Option<Object>)]
    last_update: Value,
    /// Mean KL divergence of an answer from generation 0, nats, estimated on the policy's own answers; with nucleus sampling that leaves out
    /// what the tail differs by.
    kl: Option<f64>,
    /// How old the policies were that wrote the last update's pairs.
    staleness: Option<StalenessBody>,
    /// Swaps of what serves.
    swaps: SwapsBody,
    /// The traffic log.
    log: TrafficLogBody,
    /// The last candidate's.
    #[schema(value_type = Vec<Object>)]
    gates: Value,
    /// What became of the last stage; null before there was one.
    last_outcome: Option<String>,
    /// Why no stage runs; null while one does.
    waiting_reason: Option<WaitingBody>,
    /// How often the learner died since the program started; it is started again, and leaves a stage in which it dies three times.
    deaths: u64,
    /// Records that are left out because their token ids are of another tokenizer than the model's.
    records_of_other_tokenizers: u64,
    /// Why learning failed; null where it did not.
    error: Option<String>,
    /// Why the pointers are not served, if they are not.
    serving_problem: Option<String>,
    /// Seconds since 1970 at the last change.
    changed: u64,
}

/// What holds learning back.
#[derive(Debug, Serialize, ToSchema)]
pub struct WaitingBody {
    /// `too_few_prompts`, `principal_share`, `held_out`, `other_tokenizer`, `other_base`, `other_version`, `paused`, `unattended`,
    /// `another_trainer`, `died` or `failed`.
    code: &'static str,
    /// One sentence with the numbers.
    message: String,
}

impl From<Waiting> for WaitingBody {
    fn from(waiting: Waiting) -> Self {
        Self {
            code: waiting.reason.name(),
            message: waiting.message,
        }
    }
}

/// Means over the answers of the last update's pairs.
#[derive(Debug, Serialize, ToSchema)]
pub struct StalenessBody {
    /// Versions promoted since: 0 of fresh pairs, above it by replay and feedback.
    versions: f64,
    /// Updates of the stage since, of the pairs it drew itself: 0 where they are on-policy.
    updates: f64,
}

impl From<Staleness> for StalenessBody {
    fn from(Staleness { versions, updates }: Staleness) -> Self {
        Self { versions, updates }
    }
}

/// Swaps of what serves, in this process.
#[derive(Debug, Serialize, ToSchema)]
pub struct SwapsBody {
    /// The number of swaps since the program started.
    count: u64,
    /// Of the last one, loading not included; `weights_swap_seconds` among the metrics has all.
    last_seconds: Option<f64>,
}

/// The traffic log, as this process writes it.
#[derive(Debug, Serialize, ToSchema)]
pub struct TrafficLogBody {
    /// Seconds from queue to commit, of the slowest record of the last batch.
    commit_lag_seconds: f64,
    /// Records that wait for the writer.
    queue_depth: usize,
}

impl TrainBody {
    fn new(status: LearnStatus, learning: &Learning) -> Self {
        let swaps = learning.publisher.swaps();
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
            staleness: status.staleness.map(StalenessBody::from),
            swaps: SwapsBody {
                count: swaps.count,
                last_seconds: swaps.last_seconds,
            },
            log: TrafficLogBody {
                commit_lag_seconds: log.commit_lag_seconds,
                queue_depth: log.queue_depth,
            },
            gates: json!(status.gates),
            last_outcome: status.last_outcome,
            waiting_reason: status.waiting.map(WaitingBody::from),
            deaths: status.deaths,
            records_of_other_tokenizers: status.of_other_tokenizers,
            error: status.error,
            serving_problem: learning.publisher.problem(),
            changed: status.changed,
        }
    }
}

/// Learning and its switch, or a clear refusal.
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

/// Says what learning does at the moment.
///
/// It says how far the stage is, why none runs, what the gates of the last one measured, and what its last update was like.
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
/// Whichever process learns from this log stops after the update that runs, until learning is resumed. Serving goes on.
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
    learning.log.pause_learning(&identity.actor()).await?;
    control.follow(learning.log.learning_switch().await?);
    Ok(body(learning, control))
}

/// Goes on with learning.
///
/// The stage that was paused goes on where it was. The count of unattended stages begins at 0 again.
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
    learning.log.resume_learning(&identity.actor()).await?;
    control.follow(learning.log.learning_switch().await?);
    Ok(body(learning, control))
}
