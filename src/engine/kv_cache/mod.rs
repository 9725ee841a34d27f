//! Block allocation for the paged KV cache: policy ([`KvCacheManager`]) over mechanism (`BlockPool`). The tensors are elsewhere.

mod block_hash;
mod block_pool;
mod manager;
#[cfg(test)]
mod manager_tests;

pub use block_hash::{BlockHash, CacheDomain, CacheSalt, HashedTokens};
pub use manager::{BlockCopy, CachedPrefix, KvCacheManager};
