//! Token counts in OpenAI's shape.

use serde::Serialize;
use utoipa::ToSchema;

use crate::service::Usage;

/// Token counts of a call, judging included.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct OpenAiUsage {
    /// Tokens of the prompts, and of what the judge read.
    prompt_tokens: usize,
    /// Tokens that were drawn, those of all candidates included.
    completion_tokens: usize,
    /// The sum of both.
    total_tokens: usize,
    /// What is known of the tokens of the prompts.
    prompt_tokens_details: PromptDetails,
}

/// What is known of the tokens of prompts.
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

/// Token counts of the calls that have an input and an output.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct ItemUsage {
    /// Tokens of the prompt; with `best_of` those that the judge read as well.
    input_tokens: usize,
    /// What is known of the tokens of the prompt.
    input_tokens_details: InputDetails,
    /// Tokens that were drawn; with `best_of` those of all candidates and of the judge.
    output_tokens: usize,
    /// What is known of the tokens that were drawn.
    output_tokens_details: OutputDetails,
    /// The sum of both.
    total_tokens: usize,
}

/// What is known of the tokens of a prompt.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct InputDetails {
    /// Tokens that did not have to be computed again.
    cached_tokens: usize,
    /// Tokens that were computed, and can be found by the next call.
    cache_write_tokens: usize,
}

/// What is known of the tokens that were drawn.
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
