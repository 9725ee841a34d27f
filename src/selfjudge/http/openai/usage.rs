//! Token counts in OpenAI's format.

use serde::Serialize;
use utoipa::ToSchema;

use crate::call::Usage;

/// Token counts of a call, including judging.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct OpenAiUsage {
    /// Tokens of the prompts, and of the texts that the judge read.
    prompt_tokens: usize,
    /// Generated tokens, including those of all candidates.
    completion_tokens: usize,
    /// The sum of both.
    total_tokens: usize,
    /// Details of the prompt tokens.
    prompt_tokens_details: PromptDetails,
}

/// Details of the prompt tokens.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Prompt tokens that were in the prefix cache.
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

/// Token counts of the calls that have an input and an output.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct ItemUsage {
    /// Tokens of the prompt; with `best_of` including those that the judge read.
    input_tokens: usize,
    /// Details of the input tokens.
    input_tokens_details: InputDetails,
    /// Generated tokens; with `best_of` including those of all candidates and of the judge.
    output_tokens: usize,
    /// Details of the output tokens.
    output_tokens_details: OutputDetails,
    /// The sum of both.
    total_tokens: usize,
}

/// Details of the input tokens.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct InputDetails {
    /// Tokens that were in the prefix cache.
    cached_tokens: usize,
    /// Tokens that were computed and added to the prefix cache.
    cache_write_tokens: usize,
}

/// Details of the output tokens.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct OutputDetails {
    /// Always 0: reasoning is part of the text.
    reasoning_tokens: usize,
}

impl From<Usage> for ItemUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails {
                cached_tokens: usage.cached_tokens,
                cache_write_tokens: usage.prompt_tokens - usage.cached_tokens,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails {
                reasoning_tokens: 0,
            },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}
