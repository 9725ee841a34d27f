//! Stages: the trainer's work on one disjoint set of rows, from opening to outcome.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::record::stored_words;
use super::rows::to_json;
use super::{
    GenerationId, LogError, RecordId, Result, StageId, TrafficLog, UnixMillis, events, now, rows,
    switch,
};

/// A stage to open.
#[derive(Debug, Clone, PartialEq)]
pub struct NewStage {
    /// The reference policy of its loss.
    pub reference: GenerationId,
    /// The initial state: prompts, settings, generations.
    pub state: Value,
}

/// A stage as it is stored. Its state has two parts, so that an update of the stage rewrites only the small one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    pub id: StageId,
    /// The epoch of the lease under which it was opened.
    pub epoch: i64,
    pub reference: GenerationId,
    /// The part that is settled before the first update: prompts, settings, generations.
    pub state: Value,
    /// The part that the updates change: phase, counts, candidate. The same as `state` if none has been saved: stages of earlier versions
    /// have both parts there.
    pub progress: Value,
    /// None while the stage is open.
    pub outcome: Option<StageOutcome>,
    /// The number of rows it has claimed, including deleted ones.
    pub rows: u64,
    pub opened_at: UnixMillis,
    pub closed_at: Option<UnixMillis>,
}

/// The progress of a stage and its outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct StageSummary {
    pub id: StageId,
    /// None while the stage is open.
    pub outcome: Option<StageOutcome>,
    /// See [`Stage::progress`].
    pub progress: Value,
}

/// The outcome of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageOutcome {
    /// Its generation became the policy.
    Promoted,
    /// Its generation passed all gates and waits for an operator's decision.
    Passed,
    /// A gate rejected its generation.
    Rejected,
    /// It could not be completed, or it was abandoned.
    Failed,
}

impl StageOutcome {
    pub const ALL: [Self; 4] = [Self::Promoted, Self::Passed, Self::Rejected, Self::Failed];
}

stored_words!(
    StageOutcome, "stage outcome",
    Promoted => "promoted", Passed => "passed", Rejected => "rejected", Failed => "failed",
);

impl TrafficLog {
    /// Returns all stages, newest first.
    pub async fn stages(&self) -> Result<Vec<Stage>> {
        let found = sqlx::query(
            "SELECT id, epoch, reference, state, COALESCE(progress, state) AS progress, outcome, opened_at, closed_at, \
             (SELECT COUNT(*) FROM stage_rows WHERE stage = stages.id) AS claimed FROM stages ORDER BY id DESC",
        )
        .fetch_all(self.database().readers())
        .await?;
        found.iter().map(read).collect()
    }

    /// Returns the open stage, which a restarted trainer resumes.
    pub async fn current_stage(&self) -> Result<Option<Stage>> {
        let found = sqlx::query(
            "SELECT id, epoch, reference, state, COALESCE(progress, state) AS progress, outcome, opened_at, closed_at, \
             (SELECT COUNT(*) FROM stage_rows WHERE stage = stages.id) AS claimed \
             FROM stages WHERE outcome IS NULL ORDER BY id DESC",
        )
        .fetch_optional(self.database().readers())
        .await?;
        found.as_ref().map(read).transpose()
    }

    /// Returns the stage that was opened last, open or closed.
    pub async fn last_stage(&self) -> Result<Option<Stage>> {
        let found = sqlx::query(
            "SELECT id, epoch, reference, state, COALESCE(progress, state) AS progress, outcome, opened_at, closed_at, \
             (SELECT COUNT(*) FROM stage_rows WHERE stage = stages.id) AS claimed \
             FROM stages ORDER BY id DESC LIMIT 1",
        )
        .fetch_optional(self.database().readers())
        .await?;
        found.as_ref().map(read).transpose()
    }

    /// Returns the outcome and the progress of every stage, newest first, without the larger part of their states.
    pub async fn stage_summaries(&self) -> Result<Vec<StageSummary>> {
        let found = sqlx::query(
            "SELECT id, outcome, COALESCE(progress, state) AS progress FROM stages ORDER BY id DESC",
        )
        .fetch_all(self.database().readers())
        .await?;
        let summary = |row: &AnyRow| {
            Ok(StageSummary {
                id: StageId(row.try_get("id")?),
                outcome: read_outcome(row)?,
                progress: rows::from_json(row.try_get("progress")?)?,
            })
        };
        found.iter().map(summary).collect()
    }

    /// Returns the outcome of a stage; none if it is open or does not exist.
    pub async fn stage_outcome(&self, stage: StageId) -> Result<Option<StageOutcome>> {
        let found = sqlx::query("SELECT outcome FROM stages WHERE id = $1")
            .bind(stage.0)
            .fetch_optional(self.database().readers())
            .await?;
        found.as_ref().map_or(Ok(None), read_outcome)
    }

    /// Returns the ids of the rows that a stage has claimed, including deleted ones, ordered by id.
    pub async fn stage_rows(&self, stage: StageId) -> Result<Vec<RecordId>> {
        let found: Vec<String> = sqlx::query_scalar(
            "SELECT record_id FROM stage_rows WHERE stage = $1 ORDER BY record_id",
        )
        .bind(stage.0)
        .fetch_all(self.database().readers())
        .await?;
        found.into_iter().map(rows::stored_id).collect()
    }

    /// Returns the rows that stages before `stage` have claimed, including deleted ones, ordered by stage. Later stages do not change the
    /// result.
    pub async fn rows_before(&self, stage: StageId) -> Result<Vec<RecordId>> {
        let found: Vec<String> = sqlx::query_scalar(
            "SELECT record_id FROM stage_rows WHERE stage < $1 ORDER BY stage, record_id",
        )
        .bind(stage.0)
        .fetch_all(self.database().readers())
        .await?;
        found.into_iter().map(rows::stored_id).collect()
    }

    /// Returns the generations whose stages read a record, also after the record was deleted.
    pub async fn lineage(&self, record: &RecordId) -> Result<Vec<GenerationId>> {
        let found: Vec<String> = sqlx::query_scalar(
            "SELECT generations.id FROM generations WHERE generations.stage IN (\
             SELECT stage FROM stage_rows WHERE record_id = $1 UNION SELECT stage FROM stage_feedback WHERE record_id = $1) \
             ORDER BY generations.created_at, generations.id",
        )
        .bind(record.as_str())
        .fetch_all(self.database().readers())
        .await?;
        Ok(found.into_iter().map(GenerationId::new).collect())
    }
}

/// Returns the error for a stage that is closed or does not exist.
pub(super) fn not_open(stage: StageId) -> LogError {
    LogError::NotFound {
        what: "open stage",
        id: stage.to_string(),
    }
}

/// Fails unless the stage is open.
pub(super) async fn require_open(connection: &mut AnyConnection, stage: StageId) -> Result<()> {
    let open: Option<i64> =
        sqlx::query_scalar("SELECT id FROM stages WHERE id = $1 AND outcome IS NULL")
            .bind(stage.0)
            .fetch_optional(connection)
            .await?;
    open.map(drop).ok_or_else(|| not_open(stage))
}

/// Saves the progress of a stage; see [`super::TrainerLease::save_progress`].
pub(super) async fn save_progress(
    connection: &mut AnyConnection,
    stage: StageId,
    progress: &Value,
) -> Result<()> {
    let saved = sqlx::query("UPDATE stages SET progress = $1 WHERE id = $2 AND outcome IS NULL")
        .bind(to_json(progress)?)
        .bind(stage.0)
        .execute(connection)
        .await?;
    match saved.rows_affected() {
        0 => Err(not_open(stage)),
        _ => Ok(()),
    }
}

/// Closes a stage; see [`super::TrainerLease::close_stage`].
pub(super) async fn close(
    connection: &mut AnyConnection,
    stage: StageId,
    outcome: StageOutcome,
    progress: &Value,
) -> Result<()> {
    let closed = sqlx::query(
        "UPDATE stages SET outcome = $1, progress = $2, closed_at = $3 WHERE id = $4 AND outcome IS NULL",
    )
    .bind(outcome.as_str())
    .bind(to_json(progress)?)
    .bind(now())
    .bind(stage.0)
    .execute(&mut *connection)
    .await?;
    if closed.rows_affected() == 0 {
        return Err(not_open(stage));
    }
    if matches!(outcome, StageOutcome::Promoted | StageOutcome::Passed) {
        switch::count_unattended(connection).await?;
    }
    let detail = json!({ "stage": stage, "outcome": outcome });
    events::append(connection, super::lease::ACTOR, "stage.closed", detail).await
}

fn read_outcome(row: &AnyRow) -> Result<Option<StageOutcome>> {
    let outcome: Option<String> = row.try_get("outcome")?;
    outcome
        .map(|outcome| StageOutcome::stored(&outcome))
        .transpose()
}

fn read(row: &AnyRow) -> Result<Stage> {
    Ok(Stage {
        id: StageId(row.try_get("id")?),
        epoch: row.try_get("epoch")?,
        reference: GenerationId::new(row.try_get::<String, _>("reference")?),
        state: rows::from_json(row.try_get("state")?)?,
        progress: rows::from_json(row.try_get("progress")?)?,
        outcome: read_outcome(row)?,
        rows: row.try_get::<i64, _>("claimed")?.unsigned_abs(),
        opened_at: row.try_get("opened_at")?,
        closed_at: row.try_get("closed_at")?,
    })
}
