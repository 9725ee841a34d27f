//! One sequence in the engine.
//!
//! There are no separate prefill and decode phases: a request has tokens, of which the first `num_computed_tokens` are in the KV cache,
//! and every step computes some of the missing ones.

use std::ops::Range;

use super::StopIds;
use super::kv_cache::HashedTokens;
use super::scheduler::Drafts;
use super::tenant::Tenant;

/// The id of a request, unique during the life of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl RequestId {
    /// Returns the id of sample `index` of the submission whose first sample has this id.
    pub fn sample(self, index: usize) -> Self {
        Self(self.0 + index as u64)
    }
}

/// The class of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Class {
    /// A caller waits for the result.
    #[default]
    Foreground,
    /// Work that uses the capacity left by the foreground: see [`Scheduler`](super::scheduler::Scheduler).
    Background,
}

/// The reason for which a request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// It produced a stop token.
    Stop,
    /// Its output matches the grammar and no continuation is allowed.
    Complete,
    /// It produced the maximum number of tokens.
    Length,
}

/// The conditions under which a request ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopCriteria {
    /// The maximum number of produced tokens, at least one.
    pub max_tokens: usize,
    /// Stop ids within the first `min_tokens` tokens do not end the request. A complete grammar does.
    pub min_tokens: usize,
    pub stop_ids: StopIds,
}

/// A request in the scheduler's queues: one sequence.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: RequestId,
    /// The tokens of the prompt and the produced tokens.
    pub tokens: HashedTokens,
    pub num_prompt_tokens: usize,
    /// The number of its first tokens that other requests are likely to start with.
    pub num_reusable_tokens: usize,
    /// The number of tokens whose keys and values are in the cache.
    pub num_computed_tokens: usize,
    /// Whether log-probabilities of the prompt's tokens are still missing: every token of the prompt then has to be computed.
    pub scores_prompt: bool,
    /// The number of tokens that the cache held when the request was first scheduled.
    pub num_cached_tokens: Option<usize>,
    pub stop: StopCriteria,
    /// Further samples of the same prompt: they become separate requests once the prompt is computed, as far as there are places.
    pub siblings: Vec<RequestId>,
    /// Lower is served first; see [`Scheduler::add`](super::scheduler::Scheduler::add).
    pub priority: i32,
    pub class: Class,
    /// The tenant of the request, for fairness.
    pub tenant: Tenant,
    /// The last step that computed a token of it: where a tenant gets fewer tokens than it has sequences, these take turns.
    pub last_step: u64,
    /// Whether tokens may be proposed ahead of it.
    pub speculates: bool,
    pub drafts: Drafts,
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
            speculates: false,
            drafts: Drafts::default(),
        }
    }

    pub fn num_output_tokens(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// Returns the number of tokens still to be computed; after the last of them the next token can be sampled.
    pub fn num_missing_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Returns the subrange of the next `num_tokens` tokens whose logits give log-probabilities of prompt tokens.
    pub fn scored(&self, num_tokens: usize) -> Range<usize> {
        let from = self.num_computed_tokens;
        let most = match self.scores_prompt {
            true => self.num_prompt_tokens.saturating_sub(1),
            false => 0,
        };
        from..(from + num_tokens).min(most).max(from)
    }

    /// Appends a sampled token; `complete` means that the grammar allows no continuation. Returns the reason if this was the last token.
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
