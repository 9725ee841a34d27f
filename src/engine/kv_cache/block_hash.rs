//! The hash that names the contents of a full KV cache block: its tokens, all tokens before them, the weights version that computed
//! them, and the domain within which the block can be found.
//!
//! The hash is SHA-256, because a collision would give one caller's context to another. The domain separates equal contexts of different
//! tenants: a cache hit would otherwise reveal to one tenant which prompts another has sent.

use sha2::{Digest, Sha256};

use crate::tenant::Tenant;

/// A set of callers that share cached blocks: one tenant, or the callers of one tenant that use the same salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheDomain([u8; 32]);

impl CacheDomain {
    /// Creates the domain of a tenant and a salt. `None` as tenant means all tenants of a server that shares its cache between them.
    pub fn new(tenant: Option<Tenant>, salt: Option<&CacheSalt>) -> Self {
        let mut hasher = Sha256::new();
        match &tenant {
            Some(tenant) => hasher.update(tenant.as_bytes()),
            None => hasher.update(b"shared"),
        }
        if let Some(CacheSalt(salt)) = salt {
            hasher.update(salt);
        }
        Self(hasher.finalize().into())
    }
}

/// A salt chosen by a caller: only requests of the same tenant with the same salt share prefixes with its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheSalt([u8; 32]);

impl CacheSalt {
    pub fn new(salt: &str) -> Self {
        Self(Sha256::digest(salt).into())
    }
}

/// The hash of a block's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// Returns the parent of every first block computed with these weights in this domain: blocks of other weights or domains are never
    /// found.
    pub fn root(weights_version: u64, domain: &CacheDomain) -> Self {
        let mut hasher = Sha256::new_with_prefix(weights_version.to_le_bytes());
        hasher.update(domain.0);
        Self(hasher.finalize().into())
    }

    /// Returns the root for prompts of exactly `prompt_len` tokens: for a model whose rotation of keys depends on the prompt's length.
    pub fn of_length(self, prompt_len: usize) -> Self {
        let mut hasher = Sha256::new_with_prefix(b"prompts of one length");
        hasher.update(self.0);
        hasher.update((prompt_len as u64).to_le_bytes());
        Self(hasher.finalize().into())
    }

    /// Returns the hash of the block that holds these tokens and follows the block `self`.
    pub fn child(&self, tokens: &[u32]) -> Self {
        let mut hasher = Sha256::new_with_prefix(self.0);
        for token in tokens {
            hasher.update(token.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// A request's tokens with the hashes of their full blocks, updated as tokens are appended.
#[derive(Debug, Clone)]
pub struct HashedTokens {
    tokens: Vec<u32>,
    block_size: usize,
    /// The root, then one hash per full block: block `i` has `hashes[i + 1]` and the parent `hashes[i]`.
    hashes: Vec<BlockHash>,
}

impl HashedTokens {
    /// Hashes `tokens`, which follow `root`; see [`BlockHash::root`].
    pub fn new(tokens: Vec<u32>, block_size: usize, root: BlockHash) -> Self {
        let mut hashed = Self {
            tokens,
            block_size,
            hashes: vec![root],
        };
        hashed.hash_full_blocks();
        hashed
    }

    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.hash_full_blocks();
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub fn num_full_blocks(&self) -> usize {
        self.hashes.len() - 1
    }

    /// Returns the hash of full block `index`.
    pub fn hash(&self, index: usize) -> BlockHash {
        self.hashes[index + 1]
    }

    /// Returns the hash of the contents before block `index`.
    pub fn parent(&self, index: usize) -> BlockHash {
        self.hashes[index]
    }

    /// Returns the tokens of full block `index`.
    pub fn block(&self, index: usize) -> &[u32] {
        &self.tokens[index * self.block_size..(index + 1) * self.block_size]
    }

    /// Returns the hashes of the full blocks that hold tokens from `from` on.
    pub fn full_blocks_from(&self, from: usize) -> impl Iterator<Item = BlockHash> {
        let first = (from / self.block_size).min(self.num_full_blocks());
        self.hashes[first + 1..].iter().copied()
    }

    fn hash_full_blocks(&mut self) {
        while (self.num_full_blocks() + 1) * self.block_size <= self.tokens.len() {
            let index = self.num_full_blocks();
            self.hashes
                .push(self.hashes[index].child(self.block(index)));
        }
    }
}

#[cfg(test)]
impl BlockHash {
    /// Returns the root for a test with one domain.
    pub fn test_root(weights_version: u64) -> Self {
        Self::root(weights_version, &CacheDomain::new(None, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_what_came_before_the_weights_and_the_domain_all_count() {
        let domain = CacheDomain::new(None, None);
        let root = BlockHash::root(1, &domain);
        let block = root.child(&[1, 2]);
        assert_eq!(block, BlockHash::root(1, &domain).child(&[1, 2]));
        assert_ne!(block, root.child(&[2, 1]));
        assert_ne!(block, BlockHash::root(2, &domain).child(&[1, 2]));
        assert_ne!(block.child(&[1, 2]), block);
        let (alice, bob) = (Tenant::of_key(&[1; 32]), Tenant::of_key(&[2; 32]));
        let salt = CacheSalt::new("s");
        let domains = [
            domain,
            CacheDomain::new(Some(alice), None),
            CacheDomain::new(Some(bob), None),
            CacheDomain::new(Some(alice), Some(&salt)),
            CacheDomain::new(Some(alice), Some(&CacheSalt::new("t"))),
            CacheDomain::new(None, Some(&salt)),
        ];
        for (at, one) in domains.iter().enumerate() {
            for other in &domains[at + 1..] {
                assert_ne!(BlockHash::root(1, one), BlockHash::root(1, other));
            }
        }
    }

    #[test]
    fn tokens_that_grow_are_hashed_as_if_they_came_at_once() {
        let root = BlockHash::root(7, &CacheDomain::new(None, None));
        let mut grown = HashedTokens::new(vec![1, 2], 3, root);
        assert_eq!(grown.num_full_blocks(), 0);
        for token in 3..=7 {
            grown.push(token);
        }
        let whole = HashedTokens::new((1..=7).collect(), 3, root);
        assert_eq!(grown.hashes, whole.hashes);
        assert_eq!(grown.num_full_blocks(), 2);
        assert_eq!(grown.hash(0), grown.parent(1));
        assert_eq!(grown.block(1), [4, 5, 6]);
    }
}
