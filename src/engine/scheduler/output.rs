//! A step's work, as the model runner gets it.

use super::step_cost::Work;
use crate::kv_cache::BlockCopy;
use crate::request::{FinishReason, RequestId};

/// The work of one request in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    pub id: RequestId,
    /// The number of tokens to compute, after those already computed.
    pub num_tokens: usize,
    /// Whether these are its last tokens, so that the next token can be sampled.
    pub samples: bool,
    /// The number of proposed tokens computed after these.
    pub drafts: usize,
    /// The number of its siblings that become separate sequences with this step, and sample too.
    pub forks: usize,
}

/// A sequence's next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextToken {
    pub id: RequestId,
    pub token: u32,
    /// Whether the grammar allows no continuation.
    pub complete: bool,
}

/// A sequence that has ended with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    pub id: RequestId,
    /// The index of its last token among the sampled tokens.
    pub at: usize,
    pub reason: FinishReason,
}

/// A step's work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SchedulerOutput {
    pub scheduled: Vec<Scheduled>,
    /// Block copies, to be made in this order before anything is computed.
    pub copies: Vec<BlockCopy>,
    pub preempted: Vec<RequestId>,
    /// The tokens and positions of the step, which determine its cost.
    pub work: Work,
}

impl SchedulerOutput {
    pub fn num_tokens(&self) -> usize {
        self.scheduled.iter().map(|s| s.num_tokens + s.drafts).sum()
    }
}
