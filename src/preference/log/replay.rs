//! Which rows may train: consented, out of quarantine, unused, capped for each principal.

use std::time::Duration;

use super::{Principal, Prompt, RecordId, Result, StageId, TrafficLog, UnixMillis};

/// Which rows are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawSpec {
    /// Rows at most.
    pub limit: usize,
    /// The stage they are for: what it has claimed already counts towards the caps.
    pub stage: Option<StageId>,
    /// The age below which a row may not train yet.
    pub quarantine: Duration,
    /// One principal's largest share of the stage, in (0, 1]. A principal always may have one row.
    pub max_share: f64,
    /// One principal's largest number of rows in the stage.
    pub max_per_principal: usize,
    pub split: Split,
    /// Rows of 1000 that are held out from training, chosen by a hash of their id.
    pub held_out_per_mille: u16,
    /// The moment quarantine is counted to.
    pub now: UnixMillis,
}

impl DrawSpec {
    /// Training rows without caps, quarantine and held-out rows.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            stage: None,
            quarantine: Duration::ZERO,
            max_share: 1.0,
            max_per_principal: usize::MAX,
            split: Split::Train,
            held_out_per_mille: 0,
            now: super::now(),
        }
    }
}

/// Which side of the held-out split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    Train,
    /// What gates measure on. Never claimed by a stage.
    HeldOut,
}

/// A prompt to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    pub id: RecordId,
    pub principal: Principal,
    pub created_at: UnixMillis,
    pub prompt: Prompt,
    /// Empty if redaction changed the prompt: it must be encoded anew then.
    pub prompt_token_ids: Vec<u32>,
    /// The weights that answered when it was logged.
    pub version: String,
}

impl TrafficLog {
    /// Rows to train on, the oldest first.
    ///
    /// # Errors
    /// [`LogError::Invalid`](super::LogError::Invalid) for a share outside (0, 1] or more than 1000 held-out rows of 1000.
    pub async fn draw(&self, spec: &DrawSpec) -> Result<Vec<PromptRow>> {
        let _ = spec;
        todo!()
    }

    /// What [`TrafficLog::draw`] would return, without reading the prompts.
    pub async fn draw_ids(&self, spec: &DrawSpec) -> Result<Vec<RecordId>> {
        let _ = spec;
        todo!()
    }
}
