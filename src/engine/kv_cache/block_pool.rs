//! The blocks of the KV cache: their reference counts, the order in which free blocks are allocated, and the index that finds blocks by
//! their contents.
//!
//! A block is *held* (references > 0) or *free*. A free block keeps its contents, and can be found and held again, until it is
//! allocated anew; the block that has been free the longest is allocated first (LRU). A *published* block is full and is never written to.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::block_hash::BlockHash;

/// The index of a block in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// The contents of a published block.
#[derive(Debug, Clone)]
struct Contents {
    hash: BlockHash,
    parent: BlockHash,
    tokens: Arc<[u32]>,
}

#[derive(Debug, Default)]
struct Block {
    references: u32,
    contents: Option<Contents>,
    /// Neighbours in the free list.
    before: Option<BlockId>,
    after: Option<BlockId>,
}

/// The pool of the KV cache's blocks.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Head and tail of the free list: the next block to be allocated, and the last.
    next: Option<BlockId>,
    last: Option<BlockId>,
    free: usize,
    published: HashMap<BlockHash, BlockId>,
    /// Published blocks by the hash of the block before them, ordered by their tokens: the block with the longest common prefix with given
    /// tokens is a neighbour of the position at which these would be inserted.
    followers: HashMap<BlockHash, BTreeMap<Arc<[u32]>, BlockId>>,
}

impl BlockPool {
    pub fn new(num_blocks: u32) -> Self {
        let mut pool = Self {
            blocks: (0..num_blocks).map(|_| Block::default()).collect(),
            next: None,
            last: None,
            free: 0,
            published: HashMap::new(),
            followers: HashMap::new(),
        };
        for id in (0..num_blocks).map(BlockId) {
            pool.push_last(id);
        }
        pool
    }

    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    pub fn num_free(&self) -> usize {
        self.free
    }

    /// Allocates the block that has been free the longest, with one reference; its former contents can no longer be found.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.next?;
        self.unlink(id);
        self.forget(id);
        self.blocks[id.index()].references = 1;
        Some(id)
    }

    /// Adds a reference to a block that is held or was found.
    pub fn hold(&mut self, id: BlockId) {
        if self.blocks[id.index()].references == 0 {
            self.unlink(id);
        }
        self.blocks[id.index()].references += 1;
    }

    /// Removes a reference. A block without references is free: it goes to the tail of the free list if it can be found by its contents, to
    /// the head if it cannot.
    pub fn release(&mut self, id: BlockId) {
        if self.let_go(id) {
            match self.blocks[id.index()].contents {
                Some(_) => self.push_last(id),
                None => self.push_next(id),
            }
        }
    }

    /// Works as [`Self::release`] for contents that are unlikely to be used again: a block without references goes to the head of the free
    /// list. Until it is allocated it can be found as any other block.
    pub fn discard(&mut self, id: BlockId) {
        if self.let_go(id) {
            self.push_next(id);
        }
    }

    /// Removes a reference and returns whether it was the last.
    fn let_go(&mut self, id: BlockId) -> bool {
        let block = &mut self.blocks[id.index()];
        block.references = block
            .references
            .checked_sub(1)
            .expect("released more often than held; this is a bug");
        block.references == 0
    }

    pub fn is_free(&self, id: BlockId) -> bool {
        self.blocks[id.index()].references == 0
    }

    /// Returns whether a holder can write into the block: it has one reference and is not published.
    pub fn is_writable(&self, id: BlockId) -> bool {
        let block = &self.blocks[id.index()];
        block.references == 1 && block.contents.is_none()
    }

    /// Publishes a held, full block of `tokens` with the parent `parent`, so that it can be found. Does nothing if a
    /// block with the same contents is already published.
    pub fn publish(&mut self, id: BlockId, hash: BlockHash, parent: BlockHash, tokens: &[u32]) {
        if self.published.contains_key(&hash) || self.blocks[id.index()].contents.is_some() {
            return;
        }
        let tokens: Arc<[u32]> = tokens.into();
        self.published.insert(hash, id);
        let followers = self.followers.entry(parent).or_default();
        followers.insert(Arc::clone(&tokens), id);
        self.blocks[id.index()].contents = Some(Contents {
            hash,
            parent,
            tokens,
        });
    }

    /// Returns the block with these contents.
    pub fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        self.published.get(hash).copied()
    }

    /// Returns, of the blocks with the parent `parent`, the one with the longest common prefix with `tokens`, and that prefix's length.
    pub fn find_partial(&self, parent: &BlockHash, tokens: &[u32]) -> Option<(BlockId, usize)> {
        let followers = self.followers.get(parent)?;
        let from = followers.range::<[u32], _>((Bound::Included(tokens), Bound::Unbounded));
        let before = followers.range::<[u32], _>((Bound::Unbounded, Bound::Excluded(tokens)));
        let neighbours = from.take(1).chain(before.rev().take(1));
        let common = |held: &[u32]| held.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        neighbours
            .map(|(held, &id)| (id, common(held)))
            .max_by_key(|&(_, common)| common)
            .filter(|&(_, common)| common > 0)
    }

    fn forget(&mut self, id: BlockId) {
        let Some(contents) = self.blocks[id.index()].contents.take() else {
            return;
        };
        self.published.remove(&contents.hash);
        if let Some(followers) = self.followers.get_mut(&contents.parent) {
            followers.remove(&contents.tokens);
            if followers.is_empty() {
                self.followers.remove(&contents.parent);
            }
        }
    }

    fn unlink(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        let (before, after) = (block.before.take(), block.after.take());
        match before {
            Some(before) => self.blocks[before.index()].after = after,
            None => self.next = after,
        }
        match after {
            Some(after) => self.blocks[after.index()].before = before,
            None => self.last = before,
        }
        self.free -= 1;
    }

    fn push_last(&mut self, id: BlockId) {
        let before = self.last.replace(id);
        self.blocks[id.index()].before = before;
        match before {
            Some(before) => self.blocks[before.index()].after = Some(id),
            None => self.next = Some(id),
        }
        self.free += 1;
    }

    fn push_next(&mut self, id: BlockId) {
        let after = self.next.replace(id);
        self.blocks[id.index()].after = after;
        match after {
            Some(after) => self.blocks[after.index()].before = Some(id),
            None => self.last = Some(id),
        }
        self.free += 1;
    }
}

#[cfg(test)]
impl BlockPool {
    /// Panics unless the pool's data structures are consistent with each other and with the holders' `references`.
    pub fn check(&self, references: &HashMap<BlockId, u32>) {
        let mut listed = Vec::new();
        let mut at = self.next;
        while let Some(id) = at {
            assert_eq!(self.blocks[id.index()].before, listed.last().copied());
            listed.push(id);
            at = self.blocks[id.index()].after;
        }
        assert_eq!(self.last, listed.last().copied());
        assert_eq!(listed.len(), self.free, "the free list has lost blocks");
        for (index, block) in self.blocks.iter().enumerate() {
            let id = BlockId(index as u32);
            let held = references.get(&id).copied().unwrap_or(0);
            assert_eq!(block.references, held, "{id:?}");
            assert_eq!(listed.contains(&id), held == 0, "{id:?}");
            if let Some(contents) = &block.contents {
                assert_eq!(self.published[&contents.hash], id);
                assert_eq!(self.followers[&contents.parent][&contents.tokens], id);
            }
        }
        let known = self.blocks.iter().filter(|b| b.contents.is_some()).count();
        assert_eq!(self.published.len(), known);
        assert_eq!(
            self.followers.values().map(BTreeMap::len).sum::<usize>(),
            known
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_block_free_the_longest_goes_first_and_nameless_ones_before_all() {
        let mut pool = BlockPool::new(4);
        let root = BlockHash::test_root(0);
        let held: Vec<BlockId> = (0..4).filter_map(|_| pool.allocate()).collect();
        assert_eq!(pool.allocate(), None);
        for &id in &held[..3] {
            pool.publish(id, root.child(&[id.0]), root, &[id.0]);
        }
        for &id in &[held[1], held[0], held[3], held[2]] {
            pool.release(id);
        }
        // Block 3 is not published, so no reusable contents are lost with it.
        let order: Vec<Option<BlockId>> = (0..5).map(|_| pool.allocate()).collect();
        let of = |i: usize| Some(held[i]);
        assert_eq!(order, [of(3), of(1), of(0), of(2), None]);
        assert!(pool.published.is_empty() && pool.followers.is_empty());
    }

    #[test]
    fn discarded_blocks_go_first_but_can_be_found_until_then() {
        let mut pool = BlockPool::new(3);
        let root = BlockHash::test_root(0);
        let held: Vec<BlockId> = (0..3).filter_map(|_| pool.allocate()).collect();
        for &id in &held {
            pool.publish(id, root.child(&[id.0]), root, &[id.0]);
        }
        pool.release(held[0]);
        pool.discard(held[1]);
        pool.hold(held[2]);
        pool.discard(held[2]);
        // The third block still has a holder.
        assert_eq!(pool.num_free(), 2);
        let hash = root.child(&[held[1].0]);
        assert_eq!(pool.find(&hash), Some(held[1]));
        assert_eq!(pool.allocate(), Some(held[1]));
        assert_eq!(pool.find(&hash), None);
        assert_eq!(pool.allocate(), Some(held[0]));
    }

    #[test]
    fn a_free_block_is_found_and_held_again() {
        let mut pool = BlockPool::new(2);
        let root = BlockHash::test_root(0);
        let id = pool.allocate().unwrap();
        let hash = root.child(&[7, 8, 9]);
        pool.publish(id, hash, root, &[7, 8, 9]);
        assert!(!pool.is_writable(id));
        pool.release(id);
        assert_eq!(pool.find(&hash), Some(id));
        assert_eq!(pool.find_partial(&root, &[7, 8, 1]), Some((id, 2)));
        assert_eq!(pool.find_partial(&root, &[8]), None);
        pool.hold(id);
        assert_eq!((pool.num_free(), pool.is_free(id)), (1, false));
    }

    #[test]
    fn the_block_that_shares_the_most_is_found_among_many() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for _ in 0..300 {
            let mut pool = BlockPool::new(24);
            let root = BlockHash::test_root(0);
            let mut held: Vec<Vec<u32>> = Vec::new();
            for _ in 0..rng.random_range(1..24) {
                let tokens: Vec<u32> = (0..4).map(|_| rng.random_range(0..3)).collect();
                let id = pool.allocate().unwrap();
                pool.publish(id, root.child(&tokens), root, &tokens);
                held.push(tokens);
            }
            let wanted: Vec<u32> = (0..rng.random_range(0..5))
                .map(|_| rng.random_range(0..3))
                .collect();
            let common =
                |held: &Vec<u32>| held.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
            let most = held.iter().map(common).max().unwrap();
            let found = pool.find_partial(&root, &wanted);
            assert_eq!(found.map_or(0, |(_, common)| common), most);
        }
    }

    #[test]
    fn the_books_balance_after_any_operations() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for round in 0..2000 {
            let mut pool = BlockPool::new(rng.random_range(1..12));
            let mut held: Vec<BlockId> = Vec::new();
            let mut hashes = vec![BlockHash::test_root(round)];
            for _ in 0..60 {
                match rng.random_range(0..5) {
                    0 | 1 => held.extend(pool.allocate()),
                    2 if !held.is_empty() => {
                        let id = held.swap_remove(rng.random_range(0..held.len()));
                        match rng.random() {
                            true => pool.release(id),
                            false => pool.discard(id),
                        }
                    }
                    3 if !held.is_empty() => {
                        let id = held[rng.random_range(0..held.len())];
                        let parent = hashes[rng.random_range(0..hashes.len())];
                        let tokens = [rng.random_range(0..3)];
                        hashes.push(parent.child(&tokens));
                        pool.publish(id, parent.child(&tokens), parent, &tokens);
                    }
                    _ => {
                        let hash = hashes[rng.random_range(0..hashes.len())];
                        if let Some(id) = pool.find(&hash) {
                            pool.hold(id);
                            held.push(id);
                        }
                    }
                }
                let mut references = HashMap::new();
                for &id in &held {
                    *references.entry(id).or_default() += 1;
                }
                pool.check(&references);
            }
        }
    }
}
