//! Settings of the engine: limits on memory, steps and queues.

use std::time::Duration;

use super::scheduler::TARGET_ITL;
use super::{BackgroundLimits, EngineError, KvCacheDtype, QueueLimits, TenantShare};

/// Settings of the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Bytes of the KV cache, reserved and written over at the start.
    pub kv_cache_memory: usize,
    pub kv_cache_dtype: KvCacheDtype,
    /// The maximum length of a sequence, prompt and answer together; by default the model's number of positions.
    pub max_model_len: Option<usize>,
    /// Tokens per block.
    pub block_size: usize,
    /// The maximum number of tokens computed in a step. It bounds the activations, the largest memory beside the weights and the cache, and
    /// the longest time that a sequence waits for its next token. A CPU is as fast with 512 as with more; a GPU needs thousands.
    pub max_batch_tokens: usize,
    /// The time between two tokens of a sequence that prompts beside it should not exceed. Steps are shortened to it by their measured cost,
    /// though prompts get at least half of the time. None if only `max_batch_tokens` limits a step.
    pub target_itl: Option<Duration>,
    /// The maximum number of tokens proposed ahead of a sequence that runs alone, from what followed its last tokens before; 0 proposes none.
    /// The answer stays the same to the bit. Tokens are proposed where the measured costs of steps show that this is faster.
    pub max_drafts: usize,
    /// The maximum number of sequences that run at once.
    pub max_concurrent: usize,
    /// Whether requests share the KV cache blocks of common prefixes.
    pub prefix_caching: bool,
    /// Whether tenants share cached prefixes. Cache hits then reveal to one tenant which prompts others have sent: for a server with one
    /// tenant only.
    pub shared_prefix_cache: bool,
    pub queue: QueueLimits,
    /// The share of `queue` that one tenant can hold.
    pub tenant_share: TenantShare,
    pub background: BackgroundConfig,
}

/// Limits on requests of [`Class::Background`], within the capacity that foreground requests do not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackgroundConfig {
    pub limits: BackgroundLimits,
    /// The queue of background requests. It is separate, so they never take a place from a foreground request.
    pub queue: QueueLimits,
}

impl Default for BackgroundConfig {
    fn default() -> Self {
        Self {
            limits: BackgroundLimits {
                // The rows of an AMX tile.
                fill_beside: 16,
                tokens_alone: 256,
            },
            queue: QueueLimits {
                max_requests: 1024,
                max_tokens: 1 << 20,
            },
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            kv_cache_memory: 256 << 20,
            kv_cache_dtype: KvCacheDtype::default(),
            max_model_len: None,
            block_size: 16,
            max_batch_tokens: 512,
            target_itl: Some(TARGET_ITL),
            max_drafts: 8,
            max_concurrent: 128,
            prefix_caching: true,
            shared_prefix_cache: false,
            queue: QueueLimits {
                max_requests: 1024,
                max_tokens: 1 << 20,
            },
            tenant_share: TenantShare::default(),
            background: BackgroundConfig::default(),
        }
    }
}

impl EngineConfig {
    /// Checks that the sizes are consistent with each other; the model is not considered.
    ///
    /// # Errors
    /// Errors with [`EngineError::Zero`] or [`EngineError::Sizes`].
    pub fn check(&self) -> Result<(), EngineError> {
        let background = &self.background;
        let sizes = [
            (self.block_size, "--block-size"),
            (self.max_batch_tokens, "--max-batch-tokens"),
            (self.max_concurrent, "--max-concurrent"),
            (self.queue.max_requests, "--max-queued-requests"),
            (self.queue.max_tokens, "--max-queued-tokens"),
            (
                background.queue.max_requests,
                "the background tenant's limit of waiting requests",
            ),
            (
                background.limits.tokens_alone,
                "the background tenant's limit of tokens per step",
            ),
        ];
        if let Some((_, name)) = sizes.into_iter().find(|(size, _)| *size == 0) {
            return Err(EngineError::Zero(name));
        }
        if self.max_batch_tokens <= self.max_concurrent {
            return Err(EngineError::Sizes {
                max_batch_tokens: self.max_batch_tokens,
                max_concurrent: self.max_concurrent,
            });
        }
        Ok(())
    }
}
