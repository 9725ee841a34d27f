//! Generations of weights, and the pointers that say which of them serves, trains, anchors and judges.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::stored_words;
use super::{GenerationId, LogError, Result, StageId, TrafficLog, UnixMillis};

/// A finished stage's weights, before anybody has judged them.
#[derive(Debug, Clone, PartialEq)]
pub struct NewGeneration {
    /// The digest of its directory.
    pub id: GenerationId,
    /// What it was trained from.
    pub parent: GenerationId,
    /// The reference of its stage's loss.
    pub reference: GenerationId,
    /// None for weights that were brought in from outside.
    pub stage: Option<StageId>,
    pub manifest: Value,
}

/// A generation as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generation {
    pub id: GenerationId,
    pub parent: GenerationId,
    pub reference: GenerationId,
    pub stage: Option<StageId>,
    pub manifest: Value,
    /// Null until the gates have been run.
    pub gates: Value,
    pub state: GenerationState,
    pub created_at: UnixMillis,
}

/// Where a generation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationState {
    Candidate,
    /// The policy pointer has pointed at it and nobody has taken it back.
    Promoted,
    /// A gate refused it.
    Rejected,
    /// It was the policy, and the policy went back to an earlier one.
    RolledBack,
    /// Its files cannot be used.
    Failed,
}

stored_words!(
    GenerationState, "state of a generation",
    Candidate => "candidate", Promoted => "promoted", Rejected => "rejected", RolledBack => "rolled_back", Failed => "failed",
);

/// A role a generation can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pointer {
    /// What is served.
    Policy,
    /// What the trainer goes on from.
    Train,
    /// What the loss is measured against.
    Reference,
    /// What judges.
    Judge,
    /// What a share of the principals is served; the policy itself when nothing is tried out.
    Canary,
}

stored_words!(
    Pointer, "pointer",
    Policy => "policy", Train => "train", Reference => "reference", Judge => "judge", Canary => "canary",
);

/// All pointers at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pointers {
    pub policy: GenerationId,
    pub train: GenerationId,
    pub reference: GenerationId,
    pub judge: GenerationId,
    pub canary: GenerationId,
}

/// One pointer's move, which happens only if it stands at `from`. With `to` = `from` it is a condition and no move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointerMove {
    pub pointer: Pointer,
    pub from: GenerationId,
    pub to: GenerationId,
}

impl TrafficLog {
    /// All generations, the newest first.
    pub async fn generations(&self) -> Result<Vec<Generation>> {
        todo!()
    }

    pub async fn generation(&self, id: &GenerationId) -> Result<Option<Generation>> {
        let _ = id;
        todo!()
    }

    /// Where the pointers stand; before anything was trained all of them stand at the base.
    pub async fn pointers(&self) -> Result<Pointers> {
        todo!()
    }

    /// Moves pointers by compare-and-swap: all of them and an audit event in one transaction, or none.
    ///
    /// A generation the policy comes to is promoted. If the policy goes back, to the base or to one that had been promoted before,
    /// the one it left is rolled back.
    ///
    /// # Errors
    /// [`LogError::Conflict`] if a pointer does not stand at `from`, [`LogError::NotFound`] if a generation is unknown.
    pub async fn move_pointers(
        &self,
        moves: &[PointerMove],
        actor: &str,
        reason: &str,
    ) -> Result<()> {
        let _ = (moves, actor, reason, LogError::Overloaded);
        todo!()
    }
}
