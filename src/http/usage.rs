//! Token counts.

use serde::Serialize;
use utoipa::ToSchema;

use crate::service::Usage;

/// Token counts of a call, judging included.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct UsageBody {
    /// Tokens of the prompts, and of what the judge read.
    pub prompt_tokens: usize,
    /// Tokens that were drawn, those of all candidates included.
    pub completion_tokens: usize,
    /// Prompt tokens that did not have to be computed again.
    pub cached_tokens: usize,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
        }
    }
}
