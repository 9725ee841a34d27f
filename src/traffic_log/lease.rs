//! The trainer's lease: only one trainer holds it at a time, and a trainer that lost it can write nothing.
//!
//! Every acquisition increments the epoch. Each write of a trainer checks its epoch in the same transaction, so a trainer that hung
//! beyond its lease gets [`LogError::Fenced`] and cannot damage the stage of its successor.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sql::{Connection, locking, query};

use super::claim::{Claimed, claim};
use super::database::{Database, WriteTransaction};
use super::redact::Redactor;
use super::writer::Counters;
use super::{
    Addition, FeedbackTrust, GenerationId, GenerationState, LogError, NewGeneration, NewStage,
    PointerMove, RecordId, Result, StageId, StageOutcome, abandon, addition, events, generation,
    now, stage, switch,
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
        .bind(expiry(ttl))
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

fn expiry(ttl: Duration) -> i64 {
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
        self.set_expiry(transaction.connection(), expiry(self.ttl))
            .await?;
        transaction.commit().await
    }

    /// Releases the lease. Another trainer's lease is not affected.
    pub async fn release(self) -> Result<()> {
        let mut transaction = self.log.database.begin().await?;
        self.set_expiry(transaction.connection(), 0).await?;
        transaction.commit().await
    }

    /// Opens the next stage.
    ///
    /// # Errors
    /// Errors with [`LogError::StageOpen`] if a stage is open.
    pub async fn open_stage(&self, stage: NewStage) -> Result<StageId> {
        let mut transaction = self.begin().await?;
        let id = stage::open(transaction.connection(), self.epoch, &stage).await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// Replaces both parts of the stage's saved state; see [`Stage`].
    ///
    /// [`Stage`]: super::Stage
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] if the stage is not open.
    pub async fn save_stage(&self, stage: StageId, state: &Value, progress: &Value) -> Result<()> {
        let mut transaction = self.begin().await?;
        stage::save(transaction.connection(), stage, state, progress).await?;
        transaction.commit().await
    }

    /// Replaces the stage's progress.
    ///
    /// # Errors
    /// Errors as [`Self::save_stage`] does.
    pub async fn save_progress(&self, stage: StageId, progress: &Value) -> Result<()> {
        let mut transaction = self.begin().await?;
        stage::save_progress(transaction.connection(), stage, progress).await?;
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
        part: Claimed,
    ) -> Result<Vec<RecordId>> {
        let mut transaction = self.begin().await?;
        let claimed = claim(transaction.connection(), stage, ids, part).await?;
        transaction.commit().await?;
        Ok(claimed)
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
        let (redactor, counters) = (&self.log.redactor, &self.log.counters);
        let additions = addition::redact(redactor, counters, additions).await?;
        let mut transaction = self.begin().await?;
        let trust = self.log.trust;
        let written = addition::append(transaction.connection(), &additions, trust).await?;
        stage::save_progress(transaction.connection(), stage, progress).await?;
        transaction.commit().await?;
        Ok(written)
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
        stage::close(transaction.connection(), stage, outcome, progress).await?;
        transaction.commit().await
    }

    /// Records in the audit trail that the files of generations are deleted.
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
        let mut transaction = self.begin().await?;
        generation::insert(transaction.connection(), &new).await?;
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
        generation::record_gates(transaction.connection(), id, gates, state).await?;
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
        stage::close(connection, stage, StageOutcome::Promoted, progress).await?;
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

    async fn set_expiry(&self, connection: &mut Connection, at: i64) -> Result<()> {
        query("UPDATE trainer SET expires_at = $1 WHERE one = 1 AND epoch = $2")
            .bind(at)
            .bind(self.epoch)
            .execute(connection)
            .await?;
        Ok(())
    }
}
