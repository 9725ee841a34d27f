//! One sequence on its way through the engine.
//!
//! There is no prefill phase and no decode phase: a request has tokens, of which the first `num_computed_tokens` lie in the KV
//! cache, and every step lets that number catch up by some.

use std::ops::Range;

use super::StopIds;
use super::kv_cache::HashedTokens;
use super::tenant::Tenant;

/// Names a request for as long as the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl RequestId {
    /// Of a submission whose first sample this is, another.
    pub fn sample(self, index: usize) -> Self {
        Self(self.0 + index as u64)
    }
}

/// Whose work a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Class {
    /// Somebody waits for it.
    #[default]
    Foreground,
    /// Done with what the foreground leaves: see [`Scheduler`](super::scheduler::Scheduler).
    Background,
}

/// Why a request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// It produced a token that ends it.
    Stop,
    /// What it produced is whole by its grammar, and nothing more may come.
    Complete,
    /// It produced as many tokens as it may.
    Length,
}

/// When a request ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopCriteria {
    /// Tokens it may produce, at least one.
    pub max_tokens: usize,
    /// Stop ids before this many tokens do not end it. A grammar that is complete does.
    pub min_tokens: usize,
    pub stop_ids: StopIds,
}

/// A sequence, as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: RequestId,
    /// The prompt, and what has been produced.
    pub tokens: HashedTokens,
    pub num_prompt_tokens: usize,
    /// Of its first tokens, how many others may begin with as well.
    pub num_reusable_tokens: usize,
    /// Tokens whose keys and values are in the cache.
    pub num_computed_tokens: usize,
    /// Whether the log-probabilities of the prompt's tokens are still to be found: every token of it then has to be computed.
    pub scores_prompt: bool,
    /// Tokens that the cache held when the request was first scheduled.
    pub num_cached_tokens: Option<usize>,
    pub stop: StopCriteria,
    /// Further samples of the same prompt: they become requests of their own once it is computed, as far as there are places.
    pub siblings: Vec<RequestId>,
    /// Lower is served first; see [`Scheduler::add`](super::scheduler::Scheduler::add).
    pub priority: i32,
    pub class: Class,
    /// Whose request it is, for fairness.
    pub tenant: Tenant,
    /// The last step that computed something of it: where a tenant gets fewer tokens than it has sequences, these take turns.
    pub last_step: u64,
}

impl Request {
    pub fn new(id: RequestId, prompt: HashedTokens, stop: StopCriteria) -> Self {
        Self {
            id,
            num_prompt_tokens: prompt.len(),
            num_reusable_tokens: usize::MAX,
            tokens: prompt,
            num_computed_tokens: 0,
            scores_prompt: false,
            num_cached_tokens: None,
            stop,
            siblings: Vec::new(),
            priority: 0,
            class: Class::default(),
            tenant: Tenant::default(),
            last_step: 0,
        }
    }

    pub fn num_output_tokens(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// Tokens that are still to be computed; after the last of them the next token can be sampled.
    pub fn num_missing_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Of the next `num_tokens` tokens to be computed, those whose logits say how probable the prompt's next token is.
    pub fn scored(&self, num_tokens: usize) -> Range<usize> {
        let from = self.num_computed_tokens;
        let most = match self.scores_prompt {
            true => self.num_prompt_tokens.saturating_sub(1),
            false => 0,
        };
        from..(from + num_tokens).min(most).max(from)
    }

    /// Takes a sampled token, and whether nothing may follow it; whether it was the last.
    pub(super) fn push(&mut self, token: u32, complete: bool) -> Option<FinishReason> {
        self.tokens.push(token);
        let produced = self.num_output_tokens();
        if produced >= self.stop.min_tokens && self.stop.stop_ids.contains(token) {
            Some(FinishReason::Stop)
        } else if complete {
            Some(FinishReason::Complete)
        } else if produced >= self.stop.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}
