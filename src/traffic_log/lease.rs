//! The trainer's lease: only one trainer holds it at a time, and a trainer that lost it can write nothing.
//!
//! Every acquisition increments the epoch. Each write of a trainer checks its epoch in the same transaction, so a trainer that hung
//! beyond its lease gets [`LogError::Fenced`] and cannot damage the stage of its successor.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use sql::{Connection, Sql, locking, query, with_list};

use super::database::{Database, WriteTransaction};
use super::redact::Redactor;
use super::rows::{self, Asked, to_json};
use super::stage::{close, not_open, require_open, save_progress};
use super::writer::Counters;
use super::{
    Addition, FeedbackTrust, GenerationId, GenerationState, LogError, NewGeneration, NewStage,
    PointerMove, RecordId, Result, StageId, StageOutcome, abandon, events, feedback, generation,
    now, switch,
};

/// The trainer's name in the audit trail.
pub(super) const ACTOR: &str = "trainer";

/// The trainers' leases.
#[derive(Debug, Clone)]
pub struct Leases {
    pub(super) database: Arc<Database>,
    pub(super) redactor: Arc<Redactor>,
    pub(super) counters: Arc<Counters>,
    pub(super) trust: FeedbackTrust,
}

/// The exclusive right to train. Dropping it does not release it: it expires, or [`TrainerLease::release`] ends it.
#[derive(Debug, Clone)]
pub struct TrainerLease {
    log: Leases,
    epoch: i64,
    ttl: Duration,
}

impl Leases {
    /// Takes the lease for `ttl` with a new epoch, if it is free or held by `holder` itself: a restarted trainer need not wait for its
    /// own lease to expire. Returns none if another trainer holds it.
    pub async fn acquire(&self, holder: &str, ttl: Duration) -> Result<Option<TrainerLease>> {
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        let epoch: Option<i64> = query(
            "UPDATE trainer SET holder = $1, epoch = epoch + 1, expires_at = $2 \
             WHERE one = 1 AND (expires_at <= $3 OR holder = $1) RETURNING epoch",
        )
        .bind(holder)
        .bind(until(ttl))
        .bind(now())
        .fetch_optional_value(connection)
        .await?;
        let lease = epoch.map(|epoch| TrainerLease {
            log: self.clone(),
            epoch,
            ttl,
        });
        if let Some(lease) = &lease {
            let detail = json!({ "holder": holder, "epoch": lease.epoch });
            events::append(connection, ACTOR, "trainer.acquired", detail).await?;
        }
        transaction.commit().await?;
        Ok(lease)
    }
}

fn until(ttl: Duration) -> i64 {
    now().saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
}

// Every method may fail with `LogError::Fenced`.
impl TrainerLease {
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Extends the lease to `ttl` from now.
    pub async fn renew(&self) -> Result<()> {
        let mut transaction = self.begin().await?;
        self.set_end(transaction.connection(), until(self.ttl))
            .await?;
        transaction.commit().await
    }

    /// Releases the lease. Another trainer's lease is not affected.
    pub async fn release(self) -> Result<()> {
        let mut transaction = self.log.database.begin().await?;
        self.set_end(transaction.connection(), 0).await?;
        transaction.commit().await
    }

    /// Opens the next stage.
    ///
    /// # Errors
    /// Errors with [`LogError::StageOpen`] if a stage is open.
    pub async fn open_stage(&self, stage: NewStage) -> Result<StageId> {
        let mut transaction = self.begin().await?;
        let connection = transaction.connection();
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
        .bind(self.epoch)
        .bind(stage.reference.as_str())
        .bind(to_json(&stage.state)?)
        .bind(now())
        .execute(connection)
        .await?;
        let detail = json!({ "stage": id, "reference": stage.reference, "epoch": self.epoch });
        events::append(connection, ACTOR, "stage.opened", detail).await?;
        transaction.commit().await?;
        Ok(StageId(id))
    }

    /// Replaces both parts of the stage's saved state; see [`Stage`].
    ///
    /// [`Stage`]: super::Stage
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] if the stage is not open.
    pub async fn save_stage(&self, stage: StageId, state: &Value, progress: &Value) -> Result<()> {
        let mut transaction = self.begin().await?;
        let saved =
            query("UPDATE stages SET state = $1, progress = $2 WHERE id = $3 AND outcome IS NULL")
                .bind(to_json(state)?)
                .bind(to_json(progress)?)
                .bind(stage.0)
                .execute(transaction.connection())
                .await?;
        if saved == 0 {
            return Err(not_open(stage));
        }
        transaction.commit().await
    }

    /// Replaces the stage's progress.
    ///
    /// # Errors
    /// Errors as [`Self::save_stage`] does.
    pub async fn save_progress(&self, stage: StageId, progress: &Value) -> Result<()> {
        let mut transaction = self.begin().await?;
        save_progress(transaction.connection(), stage, progress).await?;
        transaction.commit().await
    }

    /// Claims rows for the stage permanently: no later stage draws them. Returns the rows that belong to the stage, in the given order.
    /// Rows of another stage, deleted rows and rows without consent are left out.
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] if the stage is not open.
    pub async fn claim_rows(&self, stage: StageId, ids: &[RecordId]) -> Result<Vec<RecordId>> {
        self.claim(stage, ids, Claimed::Prompt).await
    }

    /// Claims the feedback on records for the stage permanently: no later stage learns from it. Returns the records whose feedback
    /// belongs to the stage, in the given order.
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] if the stage is not open.
    pub async fn claim_feedback(
        &self,
        stage: StageId,
        records: &[RecordId],
    ) -> Result<Vec<RecordId>> {
        self.claim(stage, records, Claimed::Feedback).await
    }

    async fn claim(
        &self,
        stage: StageId,
        ids: &[RecordId],
        what: Claimed,
    ) -> Result<Vec<RecordId>> {
        let mut transaction = self.begin().await?;
        let connection = transaction.connection();
        require_open(connection, stage).await?;
        let (claim, own) = what.statements();
        query(claim)
            .bind(rows::texts(ids))
            .bind(stage.0)
            .execute(connection)
            .await?;
        let own: Vec<String> = query(own)
            .bind(rows::texts(ids))
            .bind(stage.0)
            .fetch_values(connection)
            .await?;
        transaction.commit().await?;
        let own: HashSet<String> = own.into_iter().collect();
        let claimed = ids.iter().filter(|id| own.contains(id.as_str()));
        Ok(claimed.cloned().collect())
    }

    /// Adds the samples, verdicts and pairs of an update to their records, redacted like the records, and saves the stage's progress. All
    /// this is one transaction, so that a stage's progress always matches the updates in the log. Records that were deleted or whose consent
    /// was withdrawn are skipped, as are additions that cannot be redacted. Returns the number of additions written.
    ///
    /// # Errors
    /// Errors with [`LogError::Invalid`] for indices out of range, and as [`Self::save_stage`] does.
    pub async fn record_update(
        &self,
        stage: StageId,
        progress: &Value,
        additions: &[(RecordId, Addition)],
    ) -> Result<usize> {
        let additions = &self.redacted(additions).await?;
        let mut transaction = self.begin().await?;
        let trust = self.log.trust;
        let written = append(transaction.connection(), additions, trust).await?;
        save_progress(transaction.connection(), stage, progress).await?;
        transaction.commit().await?;
        Ok(written)
    }

    /// Redacts additions. One that cannot be redacted is left out: a single text on which redaction fails must not end a stage.
    async fn redacted(&self, additions: &[(RecordId, Addition)]) -> Result<Vec<Redacted>> {
        let mut redacted = Vec::with_capacity(additions.len());
        for (id, addition) in additions {
            addition.check()?;
            let (id, mut addition) = (id.clone(), addition.clone());
            match self.log.redactor.redact_addition(&mut addition).await {
                Ok(changed) => redacted.push(Redacted {
                    id,
                    addition,
                    changed,
                }),
                Err(error) => {
                    self.log.counters.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("the update's additions to record {id} are not stored: {error}");
                }
            }
        }
        Ok(redacted)
    }

    /// Closes the stage. Its rows stay used.
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] if the stage is not open.
    pub async fn close_stage(
        &self,
        stage: StageId,
        outcome: StageOutcome,
        progress: &Value,
    ) -> Result<()> {
        let mut transaction = self.begin().await?;
        close(transaction.connection(), stage, outcome, progress).await?;
        transaction.commit().await
    }

    /// Records in the audit trail that the files of generations that never served were deleted.
    pub async fn note_pruned(&self, generations: &[GenerationId]) -> Result<()> {
        let mut transaction = self.begin().await?;
        let detail = json!({ "generations": generations });
        events::append(
            transaction.connection(),
            ACTOR,
            "generations.pruned",
            detail,
        )
        .await?;
        transaction.commit().await
    }

    /// Pauses learning as [`SwitchStore::pause`](super::SwitchStore::pause) does, with the trainer as actor.
    pub async fn pause_learning(&self) -> Result<()> {
        switch::pause(&self.log.database, ACTOR).await
    }

    /// Stores a generation as a candidate. If it is already stored (the trainer crashed after this), it stays unchanged.
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] if its stage is not open.
    pub async fn insert_generation(&self, new: NewGeneration) -> Result<()> {
        if new.id.is_base() {
            return Err(LogError::Invalid(
                "the base model cannot be stored as a trained generation".to_owned(),
            ));
        }
        let mut transaction = self.begin().await?;
        let connection = transaction.connection();
        if let Some(stage) = new.stage {
            require_open(connection, stage).await?;
        }
        let made = query(
            "INSERT INTO generations (id, parent, reference, stage, manifest, gates, state, created_at) \
             VALUES ($1, $2, $3, $4, $5, 'null', $6, $7) ON CONFLICT (id) DO NOTHING",
        )
        .bind(new.id.as_str())
        .bind(new.parent.as_str())
        .bind(new.reference.as_str())
        .bind(new.stage.map(|stage| stage.0))
        .bind(to_json(&new.manifest)?)
        .bind(GenerationState::Candidate.as_str())
        .bind(now())
        .execute(connection)
        .await?;
        if made > 0 {
            let detail = json!({ "generation": new.id, "parent": new.parent, "stage": new.stage });
            events::append(connection, ACTOR, "generation.trained", detail).await?;
        }
        transaction.commit().await
    }

    /// Stores the gates' results. With `state` the candidate is also set to that state (`Rejected` or `Failed`).
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] for an unknown generation.
    pub async fn record_gates(
        &self,
        id: &GenerationId,
        gates: &Value,
        state: Option<GenerationState>,
    ) -> Result<()> {
        let mut transaction = self.begin().await?;
        let connection = transaction.connection();
        let stored = query("UPDATE generations SET gates = $1 WHERE id = $2")
            .bind(to_json(gates)?)
            .bind(id.as_str())
            .execute(connection)
            .await?;
        if stored == 0 {
            return Err(generation::unknown(id));
        }
        if let Some(state) = state {
            generation::set_state(connection, id, state).await?;
        }
        let detail = json!({ "generation": id, "gates": gates, "state": state });
        events::append(connection, ACTOR, "generation.gated", detail).await?;
        transaction.commit().await
    }

    /// Moves pointers to the candidate of a stage, as [`GenerationStore::move_pointers`](super::GenerationStore::move_pointers) does, and closes the stage as promoted, in one
    /// transaction.
    ///
    /// # Errors
    /// Errors as [`GenerationStore::move_pointers`](super::GenerationStore::move_pointers) and [`Self::close_stage`] do.
    pub async fn promote(
        &self,
        stage: StageId,
        moves: &[PointerMove],
        reason: &str,
        progress: &Value,
    ) -> Result<()> {
        let mut transaction = self.begin().await?;
        let connection = transaction.connection();
        generation::move_within(connection, moves, ACTOR, reason).await?;
        close(connection, stage, StageOutcome::Promoted, progress).await?;
        generation::commit_move(transaction).await
    }

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
        abandon::abandon(transaction.connection(), stage, ACTOR, reason, release).await?;
        transaction.commit().await
    }

    /// Begins a transaction in which the lease is valid: its row is locked until the commit.
    async fn begin(&self) -> Result<WriteTransaction> {
        let mut transaction = self.log.database.begin().await?;
        let valid: Option<i64> = query(locking!(
            "SELECT epoch FROM trainer WHERE one = 1 AND epoch = $1"
        ))
        .bind(self.epoch)
        .fetch_optional_value(transaction.connection())
        .await?;
        match valid {
            Some(_) => Ok(transaction),
            None => Err(LogError::Fenced { epoch: self.epoch }),
        }
    }

    async fn set_end(&self, connection: &mut Connection, at: i64) -> Result<()> {
        query("UPDATE trainer SET expires_at = $1 WHERE one = 1 AND epoch = $2")
            .bind(at)
            .bind(self.epoch)
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// An addition to a record, and whether redaction changed it.
struct Redacted {
    id: RecordId,
    addition: Addition,
    changed: bool,
}

/// The part of a record that a stage claims.
#[derive(Clone, Copy)]
enum Claimed {
    Prompt,
    Feedback,
}

impl Claimed {
    /// Returns the statement that claims records, and the one that finds the claimed ones.
    fn statements(self) -> (Sql, Sql) {
        match self {
            Self::Prompt => (
                with_list!(
                    "INSERT INTO stage_rows (record_id, stage) SELECT id, $2 FROM trainable WHERE id",
                    "$1",
                    "ON CONFLICT (record_id) DO NOTHING"
                ),
                with_list!(
                    "SELECT trainable.id FROM stage_rows JOIN trainable ON trainable.id = stage_rows.record_id WHERE trainable.id",
                    "$1",
                    "AND stage_rows.stage = $2"
                ),
            ),
            Self::Feedback => (
                with_list!(
                    "INSERT INTO stage_feedback (record_id, stage) SELECT id, $2 FROM trainable WHERE id",
                    "$1",
                    "ON CONFLICT (record_id) DO NOTHING"
                ),
                with_list!(
                    "SELECT trainable.id FROM stage_feedback JOIN trainable ON trainable.id = stage_feedback.record_id WHERE trainable.id",
                    "$1",
                    "AND stage_feedback.stage = $2"
                ),
            ),
        }
    }
}

/// Writes an update's additions record by record; see [`TrainerLease::record_update`].
async fn append(
    connection: &mut Connection,
    additions: &[Redacted],
    trust: FeedbackTrust,
) -> Result<usize> {
    let mut written = 0;
    for Redacted {
        id,
        addition,
        changed,
    } in additions
    {
        if rows::lock(connection, id, *changed).await? != Some(true) {
            continue;
        }
        let [samples, verdicts, pairs] = rows::free_places(connection, id).await?;
        rows::insert_samples(connection, id, samples, &addition.samples).await?;
        let places = [verdicts, samples];
        rows::insert_verdicts(connection, id, places, Asked::ByLearner, &addition.verdicts).await?;
        rows::insert_pairs(connection, id, pairs, samples, &addition.pairs).await?;
        if !addition.corroborating.is_empty() {
            let next = verdicts + rows::index(addition.verdicts.len());
            let read = &addition.corroborating;
            rows::insert_verdicts(connection, id, [next, 0], Asked::ByLearner, read).await?;
            feedback::derive_again(connection, id, trust).await?;
        }
        written += 1;
    }
    Ok(written)
}
