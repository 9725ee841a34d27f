//! Stages: what the trainer does with one disjoint set of rows, from opening to outcome.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::stored_words;
use super::{GenerationId, LogError, Result, StageId, TrafficLog, UnixMillis};

/// A stage to be opened.
#[derive(Debug, Clone, PartialEq)]
pub struct NewStage {
    /// The reference of its loss.
    pub reference: GenerationId,
    /// What it starts from: budget, loss, thresholds. The first saved state.
    pub state: Value,
}

/// A stage as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    pub id: StageId,
    /// The lease under which it was opened.
    pub epoch: i64,
    pub reference: GenerationId,
    /// What the trainer last saved: step, cursor, counts.
    pub state: Value,
    /// None while it is open.
    pub outcome: Option<StageOutcome>,
    /// Rows it has claimed, deleted ones included.
    pub rows: u64,
    pub opened_at: UnixMillis,
    pub closed_at: Option<UnixMillis>,
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageOutcome {
    /// Its generation became the policy.
    Promoted,
    /// A gate refused its generation.
    Rejected,
    /// It could not be finished.
    Failed,
}

stored_words!(
    StageOutcome, "outcome of a stage",
    Promoted => "promoted", Rejected => "rejected", Failed => "failed",
);

impl TrafficLog {
    /// All stages, the newest first.
    pub async fn stages(&self) -> Result<Vec<Stage>> {
        todo!()
    }

    /// The open stage, which a trainer that comes back resumes.
    pub async fn current_stage(&self) -> Result<Option<Stage>> {
        todo!()
    }

    /// The generations whose stages read a record, also after the record was deleted.
    pub async fn lineage(&self, record: &super::RecordId) -> Result<Vec<GenerationId>> {
        let _ = (record, LogError::Overloaded);
        todo!()
    }
}
