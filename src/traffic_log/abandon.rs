//! Stages that end without a result: the trainer leaves a stage in which it crashes again and again or that it cannot continue, and an
//! operator may leave any stage.

use serde_json::json;
use sqlx::AnyConnection;

use super::lease::ACTOR;
use super::stage::not_open;
use super::{
    GenerationState, Result, StageId, StageOutcome, TrafficLog, TrainerLease, events, now,
};

/// The number of the learner's crashes in one stage after which the stage is abandoned.
pub const MAX_DEATHS: u64 = 3;

/// An abandoned stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned {
    pub stage: StageId,
    /// The number of prompts and feedback that other stages may use again.
    pub released: u64,
    /// The number of prompts and feedback that stay used.
    pub kept: u64,
}

impl TrafficLog {
    /// Records a crash of the learner in a stage, with its error, in the audit trail. Returns the number of crashes in the stage. This
    /// needs no lease, because the crashed learner's lease may not have expired.
    pub async fn count_death(&self, stage: StageId, error: &str) -> Result<u64> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        let deaths: i64 = sqlx::query_scalar(
            "INSERT INTO stage_deaths (stage, deaths) VALUES ($1, 1) \
             ON CONFLICT (stage) DO UPDATE SET deaths = stage_deaths.deaths + 1 RETURNING deaths",
        )
        .bind(stage.0)
        .fetch_one(&mut *connection)
        .await?;
        let detail = json!({ "stage": stage, "deaths": deaths, "error": error });
        events::append(connection, ACTOR, "trainer.died", detail).await?;
        transaction.commit().await?;
        Ok(deaths.unsigned_abs())
    }

    /// Returns the number of the learner's crashes in a stage.
    pub async fn deaths(&self, stage: StageId) -> Result<u64> {
        let mut connection = self.database().readers().acquire().await?;
        deaths(&mut connection, stage).await
    }

    /// Closes the open stage as failed on behalf of `actor`, whichever trainer works on it: that trainer can save nothing more for the
    /// stage. Returns none if no stage is open.
    ///
    /// Its prompts and feedback become available to other stages, unless a generation was trained on them, or the learner crashed in the
    /// stage: one of its prompts may be the cause.
    pub async fn abandon_open_stage(&self, actor: &str, reason: &str) -> Result<Option<Abandoned>> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        // Locks the lease as every write of a trainer does, so that none of them is between its check and its commit.
        sqlx::query("UPDATE trainer SET expires_at = expires_at WHERE one = 1")
            .execute(&mut *connection)
            .await?;
        let open: Option<i64> = sqlx::query_scalar("SELECT id FROM stages WHERE outcome IS NULL")
            .fetch_optional(&mut *connection)
            .await?;
        let Some(stage) = open.map(StageId) else {
            return Ok(None);
        };
        let release = deaths(connection, stage).await? == 0;
        let abandoned = abandon(connection, stage, actor, reason, release).await?;
        transaction.commit().await?;
        Ok(Some(abandoned))
    }
}

impl TrainerLease {
    /// Closes the open stage as failed, whatever its state, with the reason in the audit trail. With `release` its prompts and feedback
    /// become available to other stages, unless a generation was trained on them. Otherwise they stay used, because one of them may be
    /// the cause of the failure.
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] if the stage is not open, and with [`LogError::Fenced`].
    ///
    /// [`LogError::NotFound`]: super::LogError::NotFound
    /// [`LogError::Fenced`]: super::LogError::Fenced
    pub async fn abandon_stage(&self, stage: StageId, reason: &str, release: bool) -> Result<()> {
        let mut transaction = self.begin().await?;
        abandon(transaction.connection(), stage, ACTOR, reason, release).await?;
        transaction.commit().await
    }
}

async fn deaths(connection: &mut AnyConnection, stage: StageId) -> Result<u64> {
    let deaths: Option<i64> =
        sqlx::query_scalar("SELECT deaths FROM stage_deaths WHERE stage = $1")
            .bind(stage.0)
            .fetch_optional(connection)
            .await?;
    Ok(deaths.unwrap_or(0).unsigned_abs())
}

/// Abandons a stage in a transaction that holds the lock of the lease. A generation that the stage trained is rejected, unless it serves
/// already.
async fn abandon(
    connection: &mut AnyConnection,
    stage: StageId,
    actor: &str,
    reason: &str,
    release: bool,
) -> Result<Abandoned> {
    let closed = sqlx::query(
        "UPDATE stages SET outcome = $1, closed_at = $2 WHERE id = $3 AND outcome IS NULL",
    )
    .bind(StageOutcome::Failed.as_str())
    .bind(now())
    .bind(stage.0)
    .execute(&mut *connection)
    .await?;
    if closed.rows_affected() == 0 {
        return Err(not_open(stage));
    }
    sqlx::query("UPDATE generations SET state = $1 WHERE stage = $2 AND state = $3")
        .bind(GenerationState::Rejected.as_str())
        .bind(stage.0)
        .bind(GenerationState::Candidate.as_str())
        .execute(&mut *connection)
        .await?;
    let mut released = 0;
    if release {
        for claims in [
            "DELETE FROM stage_rows WHERE stage = $1 \
             AND NOT EXISTS (SELECT 1 FROM generations WHERE generations.stage = $1)",
            "DELETE FROM stage_feedback WHERE stage = $1 \
             AND NOT EXISTS (SELECT 1 FROM generations WHERE generations.stage = $1)",
        ] {
            let freed = sqlx::query(claims).bind(stage.0);
            released += freed.execute(&mut *connection).await?.rows_affected();
        }
    }
    let kept: i64 = sqlx::query_scalar(
        "SELECT (SELECT COUNT(*) FROM stage_rows WHERE stage = $1) \
         + (SELECT COUNT(*) FROM stage_feedback WHERE stage = $1)",
    )
    .bind(stage.0)
    .fetch_one(&mut *connection)
    .await?;
    let detail = json!({ "stage": stage, "reason": reason, "released": released });
    events::append(connection, actor, "stage.abandoned", detail).await?;
    Ok(Abandoned {
        stage,
        released,
        kept: kept.unsigned_abs(),
    })
}
