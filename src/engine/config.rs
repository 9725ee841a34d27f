//! How much the engine may use.

use super::{BackgroundLimits, EngineError, KvCacheDtype, QueueLimits, TenantShare};

/// How much the engine may use.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Bytes of keys and values, reserved and written over at the start.
    pub kv_cache_memory: usize,
    pub kv_cache_dtype: KvCacheDtype,
    /// The longest sequence, prompt and answer together; by default what the model has positions for.
    pub max_model_len: Option<usize>,
    /// Tokens of a block.
    pub block_size: usize,
    /// Tokens computed in a step: its activations are the largest thing beside the weights and the cache, and it is the longest
    /// that a sequence waits for its next token. A CPU is as fast with 512 as with more; a GPU wants thousands.
    pub max_batch_tokens: usize,
    /// Sequences that run at once.
    pub max_concurrent: usize,
    /// Whether requests share what their prompts have in common.
    pub prefix_caching: bool,
    /// Whether tenants find each other's prefixes in the cache, which tells them what others have asked: for a server with one tenant.
    pub shared_prefix_cache: bool,
    pub queue: QueueLimits,
    /// What one tenant may hold of `queue`.
    pub tenant_share: TenantShare,
    pub background: BackgroundConfig,
}

/// How much requests of [`Class::Background`] may use of what the others leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackgroundConfig {
    pub limits: BackgroundLimits,
    /// A queue of their own: they never take a place that a foreground request could have had.
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
    /// Whether its sizes make sense together, whatever the model.
    ///
    /// # Errors
    /// [`EngineError::Zero`] and [`EngineError::Sizes`].
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
                "the background's number of waiting requests",
            ),
            (
                background.limits.tokens_alone,
                "the background's number of tokens a step",
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
