//! The open stage: its state in memory, and what is saved of it in the log.

use super::LearnError;
use super::phase::{Phase, StageEvent};
use super::stage::{StagePlan, StageProgress};
use traffic_log::{Addition, PointerMove, RecordId, StageId, TrainerLease};

/// The open stage of a trainer.
pub(super) struct OpenStage<'a> {
    pub lease: &'a TrainerLease,
    pub id: StageId,
    pub plan: StagePlan,
    pub progress: StageProgress,
}

impl OpenStage<'_> {
    /// Enters the phase that follows an event, and saves the progress; closes the stage if that phase is its last.
    ///
    /// # Errors
    /// Errors from the log; an event that cannot happen in the stage's phase.
    pub async fn advance(&mut self, event: StageEvent) -> Result<(), LearnError> {
        self.enter(event)?;
        let progress = serde_json::to_value(&self.progress)?;
        match self.progress.phase {
            Phase::Closed(outcome) => self.lease.close_stage(self.id, outcome, &progress).await?,
            _ => self.lease.save_progress(self.id, &progress).await?,
        }
        Ok(())
    }

    /// Enters the phase that follows an event, and saves the plan and the progress.
    ///
    /// # Errors
    /// Errors as [`Self::advance`].
    pub async fn advance_with_plan(&mut self, event: StageEvent) -> Result<(), LearnError> {
        self.enter(event)?;
        self.save().await
    }

    /// Saves the plan and the progress.
    ///
    /// # Errors
    /// Errors from the log.
    pub async fn save(&self) -> Result<(), LearnError> {
        let plan = serde_json::to_value(&self.plan)?;
        let progress = serde_json::to_value(&self.progress)?;
        Ok(self.lease.save_stage(self.id, &plan, &progress).await?)
    }

    /// Saves the progress after an update, with what the update adds to the log's records.
    ///
    /// # Errors
    /// Errors as [`Self::advance`].
    pub async fn record_update(
        &mut self,
        additions: &[(RecordId, Addition)],
    ) -> Result<(), LearnError> {
        self.enter(StageEvent::Updated)?;
        let progress = serde_json::to_value(&self.progress)?;
        let lease = self.lease;
        lease.record_update(self.id, &progress, additions).await?;
        Ok(())
    }

    /// Moves the pointers to the candidate and closes the stage.
    ///
    /// # Errors
    /// Errors from the log, in particular [`traffic_log::LogError::Conflict`]; the stage then stays in its phase.
    pub async fn promote(&mut self, moves: &[PointerMove]) -> Result<(), LearnError> {
        let phase = self.progress.phase.after(StageEvent::Served)?;
        let progress = StageProgress {
            phase,
            ..self.progress.clone()
        };
        let saved = serde_json::to_value(&progress)?;
        let reason = "passed all gates";
        self.lease.promote(self.id, moves, reason, &saved).await?;
        self.progress = progress;
        Ok(())
    }

    fn enter(&mut self, event: StageEvent) -> Result<(), LearnError> {
        self.progress.phase = self.progress.phase.after(event)?;
        Ok(())
    }
}
