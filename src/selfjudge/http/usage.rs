//! Token counts.

use serde::Serialize;
use utoipa::ToSchema;

use crate::call::Usage;

/// Token counts of a call, including judging.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct UsageBody {
    /// Tokens of the prompts, and of the texts that the judge read.
    pub prompt_tokens: usize,
    /// Generated tokens, including those of all candidates.
    pub completion_tokens: usize,
    /// Prompt tokens that were in the prefix cache.
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
