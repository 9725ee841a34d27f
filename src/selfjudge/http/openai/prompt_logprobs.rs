//! Log-probabilities of a prompt's tokens, in vLLM's format.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use engine::PromptLogprobs;
use text::{TokenPlaces, TokenTexts};

/// One entry per token of a prompt, by token id; null for the first.
pub type PromptEntries = Vec<Option<BTreeMap<u32, PromptLogprob>>>;

/// A token at a position of the prompt, in vLLM's format.
#[derive(Debug, Serialize, ToSchema)]
pub struct PromptLogprob {
    /// The natural logarithm of the token's probability.
    logprob: f32,
    /// The token's rank among all tokens: 1 for the most probable one.
    rank: usize,
    /// The token's text; `bytes:\xe2\x82` for a part of a character.
    decoded_token: String,
}

/// Returns the entries for the `tokens` of a prompt: each token and the `top` most probable ones at its position. `scores` holds those of
/// all tokens except the first.
pub fn prompt_entries(
    tokens: &[u32],
    scores: &[PromptLogprobs],
    top: usize,
    texts: &TokenTexts,
) -> PromptEntries {
    let mut places = TokenPlaces::default();
    let scores = std::iter::once(None).chain(scores.iter().map(Some));
    let entries = tokens.iter().zip(scores).map(|(&id, score)| {
        let first = places.next(id, texts).first;
        let PromptLogprobs { logprobs, rank } = score?;
        let named = |id: u32, logprob: f32, rank: usize| {
            let decoded_token = texts.name(id, first);
            let entry = PromptLogprob {
                logprob,
                rank,
                decoded_token,
            };
            (id, entry)
        };
        let likely = logprobs.top.iter().take(top).zip(1..);
        let mut entry: BTreeMap<u32, PromptLogprob> = likely
            .map(|(&(id, logprob), rank)| named(id, logprob, rank))
            .collect();
        entry.extend([named(id, logprobs.token, *rank)]);
        Some(entry)
    });
    entries.collect()
}
