//! Stages: the trainer's work on one disjoint set of rows, from opening to outcome.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::record::stored_words;
use super::{GenerationId, RecordId, Result, StageId, TrafficLog, UnixMillis, rows};

/// A stage to open.
#[derive(Debug, Clone, PartialEq)]
pub struct NewStage {
    /// The reference policy of its loss.
    pub reference: GenerationId,
    /// The initial state: budget, loss, thresholds.
    pub state: Value,
}

/// A stage as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    pub id: StageId,
    /// The epoch of the lease under which it was opened.
    pub epoch: i64,
    pub reference: GenerationId,
    /// The state that the trainer saved last: step, cursor, counts.
    pub state: Value,
    /// None while the stage is open.
    pub outcome: Option<StageOutcome>,
    /// The number of rows it has claimed, including deleted ones.
    pub rows: u64,
    pub opened_at: UnixMillis,
    pub closed_at: Option<UnixMillis>,
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
    /// It could not be completed.
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
            "SELECT id, epoch, reference, state, outcome, opened_at, closed_at, \
             (SELECT COUNT(*) FROM stage_rows WHERE stage = stages.id) AS claimed FROM stages ORDER BY id DESC",
        )
        .fetch_all(self.database().readers())
        .await?;
        found.iter().map(read).collect()
    }

    /// Returns the open stage, which a restarted trainer resumes.
    pub async fn current_stage(&self) -> Result<Option<Stage>> {
        let found = sqlx::query(
            "SELECT id, epoch, reference, state, outcome, opened_at, closed_at, \
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
            "SELECT id, epoch, reference, state, outcome, opened_at, closed_at, \
             (SELECT COUNT(*) FROM stage_rows WHERE stage = stages.id) AS claimed \
             FROM stages ORDER BY id DESC LIMIT 1",
        )
        .fetch_optional(self.database().readers())
        .await?;
        found.as_ref().map(read).transpose()
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

fn read(row: &AnyRow) -> Result<Stage> {
    let outcome: Option<String> = row.try_get("outcome")?;
    Ok(Stage {
        id: StageId(row.try_get("id")?),
        epoch: row.try_get("epoch")?,
        reference: GenerationId::new(row.try_get::<String, _>("reference")?),
        state: rows::from_json(row.try_get("state")?)?,
        outcome: outcome
            .map(|outcome| StageOutcome::stored(&outcome))
            .transpose()?,
        rows: row.try_get::<i64, _>("claimed")?.unsigned_abs(),
        opened_at: row.try_get("opened_at")?,
        closed_at: row.try_get("closed_at")?,
    })
}
