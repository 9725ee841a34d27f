//! Stages that end without a result: the trainer leaves a stage in which it crashes again and again or that it cannot continue, and an
//! operator may leave any stage.

use serde::Serialize;
use serde_json::json;
use sql::{Connection, query};
use utoipa::ToSchema;

use super::stage::not_open;
use super::{GenerationState, Result, StageId, StageOutcome, events, now};

/// The number of the learner's crashes in one stage after which the stage is abandoned.
pub const MAX_DEATHS: u64 = 3;

/// The result of abandoning a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = AbandonBody)]
pub struct Abandoned {
    /// The stage that was open.
    #[schema(value_type = i64)]
    pub stage: StageId,
    /// Prompts and feedback of the stage that later stages may use again.
    pub released: u64,
    /// Prompts and feedback of the stage that stay used: a generation was trained on them, or the learner died in the stage and one of
    /// them may be the cause.
    pub kept: u64,
}

/// Returns the number of the learner's crashes in a stage.
pub(super) async fn deaths(connection: &mut Connection, stage: StageId) -> Result<u64> {
    let deaths: Option<i64> = query("SELECT deaths FROM stage_deaths WHERE stage = $1")
        .bind(stage.0)
        .fetch_optional_value(connection)
        .await?;
    Ok(deaths.unwrap_or(0).unsigned_abs())
}

/// Abandons a stage in a transaction that holds the lock of the lease. A generation that the stage trained is rejected, unless it serves
/// already.
pub(super) async fn abandon(
    connection: &mut Connection,
    stage: StageId,
    actor: &str,
    reason: &str,
    release: bool,
) -> Result<Abandoned> {
    let closed =
        query("UPDATE stages SET outcome = $1, closed_at = $2 WHERE id = $3 AND outcome IS NULL")
            .bind(StageOutcome::Failed.as_str())
            .bind(now())
            .bind(stage.0)
            .execute(connection)
            .await?;
    if closed == 0 {
        return Err(not_open(stage));
    }
    query("UPDATE generations SET state = $1 WHERE stage = $2 AND state = $3")
        .bind(GenerationState::Rejected.as_str())
        .bind(stage.0)
        .bind(GenerationState::Candidate.as_str())
        .execute(connection)
        .await?;
    let mut released = 0;
    if release {
        for claims in [
            "DELETE FROM stage_rows WHERE stage = $1 \
             AND NOT EXISTS (SELECT 1 FROM generations WHERE generations.stage = $1)",
            "DELETE FROM stage_feedback WHERE stage = $1 \
             AND NOT EXISTS (SELECT 1 FROM generations WHERE generations.stage = $1)",
        ] {
            let freed = query(claims).bind(stage.0);
            released += freed.execute(connection).await?;
        }
    }
    let kept: i64 = query(
        "SELECT (SELECT COUNT(*) FROM stage_rows WHERE stage = $1) \
         + (SELECT COUNT(*) FROM stage_feedback WHERE stage = $1)",
    )
    .bind(stage.0)
    .fetch_value(connection)
    .await?;
    let detail = json!({ "stage": stage, "reason": reason, "released": released });
    events::append(connection, actor, "stage.abandoned", detail).await?;
    Ok(Abandoned {
        stage,
        released,
        kept: kept.unsigned_abs(),
    })
}
