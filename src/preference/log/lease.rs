//! The trainer's lease: one trainer at a time, and a trainer that lost it can write nothing.
//!
//! Every acquisition raises the epoch. Each write of a trainer checks its epoch in the transaction it writes in, so a trainer that
//! hung past its lease finds [`LogError::Fenced`](super::LogError::Fenced) and not somebody else's half-trained stage.

use std::time::Duration;

use serde_json::Value;

use super::{
    Addition, GenerationId, GenerationState, NewGeneration, NewStage, PointerMove, RecordId,
    Result, StageId, StageOutcome, TrafficLog,
};

/// The right to train. Dropping it does not release it: it runs out, or [`TrainerLease::release`] gives it back.
#[derive(Debug, Clone)]
pub struct TrainerLease {
    log: TrafficLog,
    holder: String,
    epoch: i64,
    ttl: Duration,
}

impl TrafficLog {
    /// Takes the lease for `ttl` if nobody holds it, or if `holder` itself does, with a new epoch: a restarted trainer need not
    /// wait for its own lease to run out.
    pub async fn acquire_trainer(
        &self,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<TrainerLease>> {
        let _ = (holder, ttl);
        todo!()
    }
}

// Every method may fail with `LogError::Fenced`.
impl TrainerLease {
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The log it was taken from.
    pub fn log(&self) -> &TrafficLog {
        &self.log
    }

    /// Holds it for another `ttl` from now.
    pub async fn renew(&self) -> Result<()> {
        let _ = (&self.holder, self.ttl);
        todo!()
    }

    /// Gives it back. Somebody else's lease is left alone.
    pub async fn release(self) -> Result<()> {
        todo!()
    }

    /// Opens the next stage.
    ///
    /// # Errors
    /// [`LogError::StageOpen`](super::LogError::StageOpen) if one is open.
    pub async fn open_stage(&self, stage: NewStage) -> Result<StageId> {
        let _ = stage;
        todo!()
    }

    /// Replaces the stage's state.
    pub async fn save_stage(&self, stage: StageId, state: &Value) -> Result<()> {
        let _ = (stage, state);
        todo!()
    }

    /// Claims rows for the stage, for good: no later stage will draw them. Returns those that are the stage's, in the order asked
    /// for; rows of another stage, deleted ones and ones without consent are left out.
    pub async fn claim_rows(&self, stage: StageId, rows: &[RecordId]) -> Result<Vec<RecordId>> {
        let _ = (stage, rows);
        todo!()
    }

    /// Adds what an update made to its records, all in one transaction. A record deleted meanwhile is skipped. Returns how many
    /// were written.
    pub async fn append_all(&self, additions: &[(RecordId, Addition)]) -> Result<usize> {
        let _ = additions;
        todo!()
    }

    /// Closes the stage; its rows stay used.
    pub async fn close_stage(
        &self,
        stage: StageId,
        outcome: StageOutcome,
        state: &Value,
    ) -> Result<()> {
        let _ = (stage, outcome, state);
        todo!()
    }

    /// Makes a generation known as a candidate. Known already (the trainer died after this), it stays as it is.
    pub async fn insert_generation(&self, generation: NewGeneration) -> Result<()> {
        let _ = generation;
        todo!()
    }

    /// Stores the gates' results. With `state` the candidate is also put into it (`Rejected` or `Failed`).
    pub async fn record_gates(
        &self,
        id: &GenerationId,
        gates: &Value,
        state: Option<GenerationState>,
    ) -> Result<()> {
        let _ = (id, gates, state);
        todo!()
    }

    /// [`TrafficLog::move_pointers`], fenced: what the trainer does with a candidate that passed.
    pub async fn promote(&self, moves: &[PointerMove], reason: &str) -> Result<()> {
        let _ = (moves, reason);
        todo!()
    }
}
