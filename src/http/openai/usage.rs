//! Token counts in OpenAI's shape.

use serde::Serialize;
use utoipa::ToSchema;

use crate::service::Usage;

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct OpenAiUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Those that did not have to be computed again.
    cached_tokens: usize,
}

impl From<Usage> for OpenAiUsage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails {
                cached_tokens: usage.cached_tokens,
            },
        }
    }
}
