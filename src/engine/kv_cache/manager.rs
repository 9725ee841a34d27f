//! The KV cache blocks of each request: sharing by content, copy on write, and release.
//!
//! Requests share every block they have in common, to the token: a block of which only the first tokens match is shared too, and copied
//! when its new holder writes behind those tokens. Forks work the same way. Copies are returned by the allocation that needs them and must
//! be made, in order, before anything is written.

use std::collections::HashMap;

use super::block_hash::{BlockHash, HashedTokens};
use super::block_pool::{BlockId, BlockPool};
use crate::request::RequestId;

/// A block whose contents must be copied before the step's tokens are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    pub from: BlockId,
    pub to: BlockId,
}

/// The allocation needs more blocks than are free; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfBlocks;

/// The blocks of one request.
#[derive(Debug, Clone, Default)]
struct BlockTable {
    blocks: Vec<BlockId>,
    /// The number of blocks, from the first, that have been published.
    published: usize,
    /// The number of blocks, from the first, that other requests are likely to look up.
    reusable: usize,
}

/// The cached blocks that hold a request's first tokens.
#[derive(Debug, Clone, Default)]
pub struct CachedPrefix {
    /// Full blocks, and possibly one more block of which only the first tokens match.
    blocks: Vec<BlockId>,
    full: usize,
    pub num_tokens: usize,
}

/// The manager of the KV cache's blocks.
#[derive(Debug)]
pub struct KvCacheManager {
    pool: BlockPool,
    block_size: usize,
    prefix_caching: bool,
    tables: HashMap<RequestId, BlockTable>,
}

impl KvCacheManager {
    pub fn new(num_blocks: u32, block_size: usize, prefix_caching: bool) -> Self {
        Self {
            pool: BlockPool::new(num_blocks),
            block_size,
            prefix_caching,
            tables: HashMap::new(),
        }
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn num_blocks(&self) -> usize {
        self.pool.num_blocks()
    }

    pub fn num_free_blocks(&self) -> usize {
        self.pool.num_free()
    }

    /// Returns the request's blocks, in the order of its tokens.
    pub fn block_table(&self, id: RequestId) -> &[BlockId] {
        self.tables.get(&id).map_or(&[], |table| &table.blocks)
    }

    /// Returns the longest cached prefix of `tokens`, always shorter than `tokens`: the last token has to be computed for its logits.
    pub fn cached_prefix(&self, tokens: &HashedTokens) -> CachedPrefix {
        let mut prefix = CachedPrefix::default();
        if !self.prefix_caching || tokens.is_empty() {
            return prefix;
        }
        let reusable = &tokens.tokens()[..tokens.len() - 1];
        while (prefix.full + 1) * self.block_size <= reusable.len()
            && let Some(block) = self.pool.find(&tokens.hash(prefix.full))
        {
            prefix.blocks.push(block);
            prefix.full += 1;
        }
        prefix.num_tokens = prefix.full * self.block_size;
        let parent = tokens.parent(prefix.full);
        let rest = &reusable[prefix.num_tokens..];
        if let Some((block, common)) = self.pool.find_partial(&parent, rest) {
            prefix.blocks.push(block);
            prefix.num_tokens += common;
        }
        prefix
    }

    /// Drops the partly matching block from `prefix` and returns whether there was one.
    pub fn forgo_partial(&self, prefix: &mut CachedPrefix) -> bool {
        let partial = prefix.blocks.len() > prefix.full;
        prefix.blocks.truncate(prefix.full);
        prefix.num_tokens = prefix.full * self.block_size;
        partial
    }

    /// Returns the hash of the first full block of `tokens` after `prefix`: another request may be computing that block now.
    pub fn next_hash(&self, tokens: &HashedTokens, prefix: &CachedPrefix) -> Option<BlockHash> {
        let missing = self.prefix_caching && prefix.full < tokens.num_full_blocks();
        missing.then(|| tokens.hash(prefix.full))
    }

    /// Returns whether blocks for `num_tokens` tokens, of which `prefix` covers the first, can be allocated now.
    pub fn has_room(&self, num_tokens: usize, prefix: &CachedPrefix) -> bool {
        let revived = prefix
            .blocks
            .iter()
            .filter(|&&block| self.pool.is_free(block))
            .count();
        let new = num_tokens.div_ceil(self.block_size) - prefix.full;
        revived + new <= self.pool.num_free()
    }

    /// Starts the block table of a request with its cached prefix. Other requests are likely to look up its first `num_reusable` tokens:
    /// once the table is freed, the blocks after those tokens are allocated first.
    pub fn begin(&mut self, id: RequestId, prefix: CachedPrefix, num_reusable: usize) {
        for &block in &prefix.blocks {
            self.pool.hold(block);
        }
        let table = BlockTable {
            blocks: prefix.blocks,
            published: prefix.full,
            reusable: num_reusable.div_ceil(self.block_size),
        };
        let before = self.tables.insert(id, table);
        assert!(before.is_none(), "{id:?} already has blocks; this is a bug");
    }

    /// Allocates blocks for tokens `from..to` of the request, all or none. Tokens before `from` stay as they are.
    ///
    /// # Errors
    /// Errors with [`OutOfBlocks`].
    pub fn allocate(
        &mut self,
        id: RequestId,
        from: usize,
        to: usize,
    ) -> Result<Option<BlockCopy>, OutOfBlocks> {
        let table = self
            .tables
            .get_mut(&id)
            .expect("allocation for a request without a table; this is a bug");
        let first = from / self.block_size;
        // The tokens go into a block that other requests can read: it has to be copied first.
        let shared = table
            .blocks
            .get(first)
            .copied()
            .filter(|&block| from < to && !self.pool.is_writable(block));
        let new = to
            .div_ceil(self.block_size)
            .saturating_sub(table.blocks.len());
        if new + usize::from(shared.is_some()) > self.pool.num_free() {
            return Err(OutOfBlocks);
        }
        let mut take = || {
            self.pool
                .allocate()
                .expect("free blocks were counted; this is a bug")
        };
        let copy = shared.map(|shared| {
            let own = take();
            table.blocks[first] = own;
            BlockCopy {
                from: shared,
                to: own,
            }
        });
        table.blocks.extend((0..new).map(|_| take()));
        if let Some(copy) = copy {
            // Released only now, so that it was not allocated above; copies run in order before any token is written.
            self.pool.release(copy.from);
        }
        Ok(copy)
    }

    /// Records that the first `num_computed` of the request's tokens are in its blocks, and publishes the full blocks.
    pub fn computed(&mut self, id: RequestId, tokens: &HashedTokens, num_computed: usize) {
        if !self.prefix_caching {
            return;
        }
        let Some(table) = self.tables.get_mut(&id) else {
            return;
        };
        for index in table.published..num_computed / self.block_size {
            let (hash, parent) = (tokens.hash(index), tokens.parent(index));
            self.pool
                .publish(table.blocks[index], hash, parent, tokens.block(index));
            table.published = index + 1;
        }
    }

    /// Gives `child` references to the blocks of `parent`.
    pub fn fork(&mut self, parent: RequestId, child: RequestId) {
        let table = self
            .tables
            .get(&parent)
            .expect("fork of a request without blocks; this is a bug")
            .clone();
        for &block in &table.blocks {
            self.pool.hold(block);
        }
        let before = self.tables.insert(child, table);
        assert!(
            before.is_none(),
            "{child:?} already has blocks; this is a bug"
        );
    }

    /// Moves the blocks of `from`, if there are any, to `to`.
    pub fn rename(&mut self, from: RequestId, to: RequestId) {
        if let Some(table) = self.tables.remove(&from) {
            let before = self.tables.insert(to, table);
            assert!(before.is_none(), "{to:?} already has blocks; this is a bug");
        }
    }

    /// Releases the request's blocks. The last blocks are reused first, so a prefix outlives the tokens that follow it.
    pub fn free(&mut self, id: RequestId) {
        let Some(table) = self.tables.remove(&id) else {
            return;
        };
        let reusable = table.reusable.min(table.blocks.len());
        let (reusable, rest) = table.blocks.split_at(reusable);
        for &block in rest {
            self.pool.discard(block);
        }
        for &block in reusable.iter().rev() {
            self.pool.release(block);
        }
    }
}

#[cfg(test)]
impl KvCacheManager {
    /// Panics unless the pool's reference counts are those of the tables.
    pub fn check(&self) {
        let mut references = HashMap::new();
        for table in self.tables.values() {
            for &block in &table.blocks {
                *references.entry(block).or_default() += 1;
            }
        }
        self.pool.check(&references);
    }

    pub fn holders(&self) -> usize {
        self.tables.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kv: &mut KvCacheManager, id: u64, tokens: &[u32]) -> (usize, Vec<BlockCopy>) {
        let tokens = HashedTokens::new(tokens.to_vec(), kv.block_size(), BlockHash::test_root(3));
        let prefix = kv.cached_prefix(&tokens);
        let cached = prefix.num_tokens;
        kv.begin(RequestId(id), prefix, tokens.len());
        let copy = kv.allocate(RequestId(id), cached, tokens.len()).unwrap();
        kv.computed(RequestId(id), &tokens, tokens.len());
        kv.check();
        (cached, copy.into_iter().collect())
    }

    #[test]
    fn a_prefix_is_shared_to_the_token_and_copied_where_it_parts() {
        let mut kv = KvCacheManager::new(16, 4, true);
        let tokens: Vec<u32> = (0..11).collect();
        assert_eq!(run(&mut kv, 1, &tokens), (0, vec![]));
        // Two full blocks match, and one token of the third.
        let mut other = tokens[..8].to_vec();
        other[5] = 99;
        let (cached, copies) = run(&mut kv, 2, &other);
        assert_eq!(cached, 5);
        let first = kv.block_table(RequestId(1)).to_vec();
        let second = kv.block_table(RequestId(2)).to_vec();
        assert_eq!(
            copies,
            [BlockCopy {
                from: first[1],
                to: second[1]
            }]
        );
        assert_eq!(first[0], second[0]);
        assert_ne!(first[1], second[1]);
        // The same tokens again: all but the last are cached.
        let (cached, copies) = run(&mut kv, 3, &tokens[..8]);
        assert_eq!((cached, copies.len()), (7, 1));
        // Other weights share nothing.
        let elsewhere = HashedTokens::new(tokens, 4, BlockHash::test_root(4));
        assert_eq!(kv.cached_prefix(&elsewhere).num_tokens, 0);
    }

    #[test]
    fn forks_share_everything_until_they_write() {
        let mut kv = KvCacheManager::new(8, 4, true);
        let tokens: Vec<u32> = (0..6).collect();
        run(&mut kv, 1, &tokens);
        kv.fork(RequestId(1), RequestId(2));
        kv.fork(RequestId(1), RequestId(3));
        assert_eq!(kv.num_free_blocks(), 6);
        // The first two writers copy the half-full block, the last keeps it.
        let copy = |kv: &mut KvCacheManager, id| kv.allocate(RequestId(id), 6, 7).unwrap();
        assert!(copy(&mut kv, 2).is_some());
        assert!(copy(&mut kv, 1).is_some());
        assert!(copy(&mut kv, 3).is_none());
        kv.check();
        let last: std::collections::HashSet<BlockId> =
            (1..=3).map(|id| kv.block_table(RequestId(id))[1]).collect();
        assert_eq!(last.len(), 3);
        for id in 1..=3 {
            kv.free(RequestId(id));
        }
        kv.check();
        assert_eq!(kv.num_free_blocks(), 8);
    }

    #[test]
    fn an_allocation_that_does_not_fit_changes_nothing() {
        let mut kv = KvCacheManager::new(2, 4, true);
        let tokens: Vec<u32> = (0..6).collect();
        run(&mut kv, 1, &tokens);
        assert_eq!(kv.allocate(RequestId(1), 6, 9), Err(OutOfBlocks));
        kv.fork(RequestId(1), RequestId(2));
        assert_eq!(kv.allocate(RequestId(2), 6, 7), Err(OutOfBlocks));
        kv.check();
        assert_eq!(kv.block_table(RequestId(1)), kv.block_table(RequestId(2)));
    }

    #[test]
    fn what_nobody_will_look_for_makes_room_before_what_others_may() {
        let mut kv = KvCacheManager::new(4, 4, true);
        let pair = HashedTokens::new((0..16).collect(), 4, BlockHash::test_root(3));
        let prefix = kv.cached_prefix(&pair);
        kv.begin(RequestId(1), prefix, 6);
        kv.allocate(RequestId(1), 0, 16).unwrap();
        kv.computed(RequestId(1), &pair, 16);
        kv.free(RequestId(1));
        assert_eq!(kv.cached_prefix(&pair).num_tokens, 15);
        // Another request takes two blocks: six tokens lie in the first two, which stay.
        run(&mut kv, 2, &[99; 8]);
        assert_eq!(kv.cached_prefix(&pair).num_tokens, 8);
        kv.check();
    }

    #[test]
    fn without_prefix_caching_nothing_is_found() {
        let mut kv = KvCacheManager::new(8, 4, false);
        let tokens: Vec<u32> = (0..8).collect();
        run(&mut kv, 1, &tokens);
        assert_eq!(run(&mut kv, 2, &tokens).0, 0);
    }
}
