//! Stages: the trainer's work on one disjoint set of rows, from opening to outcome.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sql::{Connection, Row, locking, query};

use super::abandon::Abandoned;
use super::columns::to_json;
use super::database::Database;
use super::lease::ACTOR;
use super::record::stored_words;
use super::{
    GenerationId, LogError, RecordId, Result, StageId, UnixMillis, abandon, columns, events, now,
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

/// The stages of training, and the rows that they have claimed.
#[derive(Debug)]
pub struct Stages {
    pub(super) database: Arc<Database>,
}

impl Stages {
    /// Returns all stages, newest first.
    pub async fn all(&self) -> Result<Vec<Stage>> {
        let found = query(
            "SELECT id, epoch, reference, state, COALESCE(progress, state) AS progress, outcome, opened_at, closed_at, \
             (SELECT COUNT(*) FROM stage_rows WHERE stage = stages.id) AS claimed FROM stages ORDER BY id DESC",
        )
        .fetch_all(&mut self.database.reader().await?)
        .await?;
        found.iter().map(read).collect()
    }

    /// Returns the open stage, which a restarted trainer resumes.
    pub async fn current(&self) -> Result<Option<Stage>> {
        let found = query(
            "SELECT id, epoch, reference, state, COALESCE(progress, state) AS progress, outcome, opened_at, closed_at, \
             (SELECT COUNT(*) FROM stage_rows WHERE stage = stages.id) AS claimed \
             FROM stages WHERE outcome IS NULL ORDER BY id DESC",
        )
        .fetch_optional(&mut self.database.reader().await?)
        .await?;
        found.as_ref().map(read).transpose()
    }

    /// Returns the stage that was opened last, open or closed.
    pub async fn last(&self) -> Result<Option<Stage>> {
        let found = query(
            "SELECT id, epoch, reference, state, COALESCE(progress, state) AS progress, outcome, opened_at, closed_at, \
             (SELECT COUNT(*) FROM stage_rows WHERE stage = stages.id) AS claimed \
             FROM stages ORDER BY id DESC LIMIT 1",
        )
        .fetch_optional(&mut self.database.reader().await?)
        .await?;
        found.as_ref().map(read).transpose()
    }

    /// Returns the outcome and the progress of every stage, newest first, without the larger part of their states.
    pub async fn summaries(&self) -> Result<Vec<StageSummary>> {
        let found = query(
            "SELECT id, outcome, COALESCE(progress, state) AS progress FROM stages ORDER BY id DESC",
        )
        .fetch_all(&mut self.database.reader().await?)
        .await?;
        let summary = |row: &Row| {
            Ok(StageSummary {
                id: StageId(row.get("id")?),
                outcome: read_outcome(row)?,
                progress: columns::from_json(row.get("progress")?)?,
            })
        };
        found.iter().map(summary).collect()
    }

    /// Returns the outcome of a stage; none if it is open or does not exist.
    pub async fn outcome_of(&self, stage: StageId) -> Result<Option<StageOutcome>> {
        let found = query("SELECT outcome FROM stages WHERE id = $1")
            .bind(stage.0)
            .fetch_optional(&mut self.database.reader().await?)
            .await?;
        found.as_ref().map_or(Ok(None), read_outcome)
    }

    /// Returns the ids of the rows that a stage has claimed, including deleted ones, ordered by id.
    pub async fn rows_of(&self, stage: StageId) -> Result<Vec<RecordId>> {
        let found: Vec<String> =
            query("SELECT record_id FROM stage_rows WHERE stage = $1 ORDER BY record_id")
                .bind(stage.0)
                .fetch_values(&mut self.database.reader().await?)
                .await?;
        found.into_iter().map(columns::stored_id).collect()
    }

    /// Returns the rows that stages before `stage` have claimed, including deleted ones, ordered by stage. Later stages do not change the
    /// result.
    pub async fn rows_before(&self, stage: StageId) -> Result<Vec<RecordId>> {
        let found: Vec<String> =
            query("SELECT record_id FROM stage_rows WHERE stage < $1 ORDER BY stage, record_id")
                .bind(stage.0)
                .fetch_values(&mut self.database.reader().await?)
                .await?;
        found.into_iter().map(columns::stored_id).collect()
    }

    /// Returns the generations whose stages read a record, also after the record was deleted.
    pub async fn lineage(&self, record: &RecordId) -> Result<Vec<GenerationId>> {
        let found: Vec<String> = query(
            "SELECT generations.id FROM generations WHERE generations.stage IN (\
             SELECT stage FROM stage_rows WHERE record_id = $1 UNION SELECT stage FROM stage_feedback WHERE record_id = $1) \
             ORDER BY generations.created_at, generations.id",
        )
        .bind(record.as_str())
        .fetch_values(&mut self.database.reader().await?)
        .await?;
        Ok(found.into_iter().map(GenerationId::new).collect())
    }

    /// Records a crash of the learner in a stage, with its error, in the audit trail. Returns the number of crashes in the stage. This
    /// needs no lease, because the crashed learner's lease may not have expired.
    pub async fn count_death(&self, stage: StageId, error: &str) -> Result<u64> {
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        let deaths: i64 = query(
            "INSERT INTO stage_deaths (stage, deaths) VALUES ($1, 1) \
             ON CONFLICT (stage) DO UPDATE SET deaths = stage_deaths.deaths + 1 RETURNING deaths",
        )
        .bind(stage.0)
        .fetch_value(connection)
        .await?;
        let detail = json!({ "stage": stage, "deaths": deaths, "error": error });
        events::append(connection, ACTOR, "trainer.died", detail).await?;
        transaction.commit().await?;
        Ok(deaths.unsigned_abs())
    }

    /// Returns the number of the learner's crashes in a stage.
    pub async fn deaths(&self, stage: StageId) -> Result<u64> {
        let mut connection = self.database.reader().await?;
        abandon::deaths(&mut connection, stage).await
    }

    /// Closes the open stage as failed on behalf of `actor`, whichever trainer works on it: that trainer can save nothing more for the
    /// stage. Returns none if no stage is open.
    ///
    /// Its prompts and feedback become available to other stages, unless a generation was trained on them, or the learner crashed in the
    /// stage: one of its prompts may be the cause.
    pub async fn abandon_open(&self, actor: &str, reason: &str) -> Result<Option<Abandoned>> {
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        // Locks the lease as every write of a trainer does, so that none of them is between its check and its commit.
        query(locking!("SELECT epoch FROM trainer WHERE one = 1"))
            .fetch_one(connection)
            .await?;
        let open: Option<i64> = query("SELECT id FROM stages WHERE outcome IS NULL")
            .fetch_optional_value(connection)
            .await?;
        let Some(stage) = open.map(StageId) else {
            return Ok(None);
        };
        let release = abandon::deaths(connection, stage).await? == 0;
        let abandoned = abandon::abandon(connection, stage, actor, reason, release).await?;
        transaction.commit().await?;
        Ok(Some(abandoned))
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
pub(super) async fn require_open(connection: &mut Connection, stage: StageId) -> Result<()> {
    let open: Option<i64> = query("SELECT id FROM stages WHERE id = $1 AND outcome IS NULL")
        .bind(stage.0)
        .fetch_optional_value(connection)
        .await?;
    open.map(drop).ok_or_else(|| not_open(stage))
}

/// Opens a stage under the lease of an epoch; see [`super::TrainerLease::open_stage`].
pub(super) async fn open(
    connection: &mut Connection,
    epoch: i64,
    stage: &NewStage,
) -> Result<StageId> {
    let open: Option<i64> = query("SELECT id FROM stages WHERE outcome IS NULL")
        .fetch_optional_value(connection)
        .await?;
    if let Some(open) = open {
        return Err(LogError::StageOpen(StageId(open)));
    }
    let id: i64 = query("SELECT COALESCE(MAX(id) + 1, 1) FROM stages")
        .fetch_value(connection)
        .await?;
    query(
        "INSERT INTO stages (id, epoch, reference, state, opened_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(id)
    .bind(epoch)
    .bind(stage.reference.as_str())
    .bind(to_json(&stage.state)?)
    .bind(now())
    .execute(connection)
    .await?;
    let detail = json!({ "stage": id, "reference": stage.reference, "epoch": epoch });
    events::append(connection, ACTOR, "stage.opened", detail).await?;
    Ok(StageId(id))
}

/// Saves both parts of a stage's state; see [`super::TrainerLease::save_stage`].
pub(super) async fn save(
    connection: &mut Connection,
    stage: StageId,
    state: &Value,
    progress: &Value,
) -> Result<()> {
    let saved =
        query("UPDATE stages SET state = $1, progress = $2 WHERE id = $3 AND outcome IS NULL")
            .bind(to_json(state)?)
            .bind(to_json(progress)?)
            .bind(stage.0)
            .execute(connection)
            .await?;
    match saved {
        0 => Err(not_open(stage)),
        _ => Ok(()),
    }
}

/// Saves the progress of a stage; see [`super::TrainerLease::save_progress`].
pub(super) async fn save_progress(
    connection: &mut Connection,
    stage: StageId,
    progress: &Value,
) -> Result<()> {
    let saved = query("UPDATE stages SET progress = $1 WHERE id = $2 AND outcome IS NULL")
        .bind(to_json(progress)?)
        .bind(stage.0)
        .execute(connection)
        .await?;
    match saved {
        0 => Err(not_open(stage)),
        _ => Ok(()),
    }
}

/// Closes a stage; see [`super::TrainerLease::close_stage`].
pub(super) async fn close(
    connection: &mut Connection,
    stage: StageId,
    outcome: StageOutcome,
    progress: &Value,
) -> Result<()> {
    let closed = query(
        "UPDATE stages SET outcome = $1, progress = $2, closed_at = $3 WHERE id = $4 AND outcome IS NULL",
    )
    .bind(outcome.as_str())
    .bind(to_json(progress)?)
    .bind(now())
    .bind(stage.0)
    .execute(connection)
    .await?;
    if closed == 0 {
        return Err(not_open(stage));
    }
    if matches!(outcome, StageOutcome::Promoted | StageOutcome::Passed) {
        switch::count_unattended(connection).await?;
    }
    let detail = json!({ "stage": stage, "outcome": outcome });
    events::append(connection, ACTOR, "stage.closed", detail).await
}

fn read_outcome(row: &Row) -> Result<Option<StageOutcome>> {
    let outcome: Option<String> = row.get("outcome")?;
    outcome
        .map(|outcome| StageOutcome::stored(&outcome))
        .transpose()
}

fn read(row: &Row) -> Result<Stage> {
    Ok(Stage {
        id: StageId(row.get("id")?),
        epoch: row.get("epoch")?,
        reference: GenerationId::new(row.get::<String>("reference")?),
        state: columns::from_json(row.get("state")?)?,
        progress: columns::from_json(row.get("progress")?)?,
        outcome: read_outcome(row)?,
        rows: row.get::<i64>("claimed")?.unsigned_abs(),
        opened_at: row.get("opened_at")?,
        closed_at: row.get("closed_at")?,
    })
}
