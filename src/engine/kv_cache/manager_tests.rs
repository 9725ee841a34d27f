//! The manager alone, under random operations: a model of every slot shows that no request ever loses a token.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{BlockHash, HashedTokens, KvCacheManager};
use crate::request::RequestId;

/// A model of the cache, and of the requests that hold parts of it.
struct Paper {
    kv: KvCacheManager,
    /// For each slot, the token it holds and all tokens before that one.
    slots: Vec<Vec<u32>>,
    /// Each request's tokens, and how many of them are computed.
    requests: HashMap<u64, (HashedTokens, usize)>,
    next_id: u64,
}

/// Counts of the cases that occurred.
#[derive(Debug, Default)]
struct Counts {
    partial_hits: usize,
    full_hits: usize,
    copies: usize,
    forks: usize,
    refused: usize,
    renamed: usize,
}

impl Paper {
    fn new(num_blocks: u32, block_size: usize, prefix_caching: bool) -> Self {
        Self {
            kv: KvCacheManager::new(num_blocks, block_size, prefix_caching),
            slots: vec![Vec::new(); num_blocks as usize * block_size],
            requests: HashMap::new(),
            next_id: 0,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Panics unless the pool is consistent and every computed token lies in the slot that its request reads.
    fn check(&self) {
        self.kv.check();
        assert_eq!(self.kv.holders(), self.requests.len());
        for (&id, (tokens, computed)) in &self.requests {
            for at in 0..*computed {
                assert_eq!(self.slots[self.slot(id, at)], tokens.tokens()[..=at]);
            }
        }
    }

    fn slot(&self, id: u64, at: usize) -> usize {
        let (block, offset) = (at / self.kv.block_size(), at % self.kv.block_size());
        let table = self.kv.block_table(RequestId(id));
        table[block].0 as usize * self.kv.block_size() + offset
    }

    /// Computes the request's tokens up to `to`, if there is room; otherwise nothing changes.
    fn compute(&mut self, id: u64, to: usize, counts: &mut Counts) -> bool {
        let from = self.requests[&id].1;
        let before = (
            self.kv.num_free_blocks(),
            self.kv.block_table(RequestId(id)).to_vec(),
        );
        let Ok(copy) = self.kv.allocate(RequestId(id), from, to) else {
            counts.refused += 1;
            let after = (
                self.kv.num_free_blocks(),
                self.kv.block_table(RequestId(id)).to_vec(),
            );
            assert_eq!(after, before);
            return false;
        };
        if let Some(copy) = copy {
            counts.copies += 1;
            for offset in 0..self.kv.block_size() {
                let at = |block: u32| block as usize * self.kv.block_size() + offset;
                self.slots[at(copy.to.0)] = self.slots[at(copy.from.0)].clone();
            }
        }
        for at in from..to {
            let slot = self.slot(id, at);
            self.slots[slot] = self.requests[&id].0.tokens()[..=at].to_vec();
        }
        let Some((tokens, computed)) = self.requests.get_mut(&id) else {
            panic!("{id} is known");
        };
        *computed = to;
        self.kv.computed(RequestId(id), tokens, to);
        true
    }

    fn begin(&mut self, tokens: Vec<u32>, reusable: usize, counts: &mut Counts) {
        let tokens = HashedTokens::new(tokens, self.kv.block_size(), BlockHash::test_root(1));
        let prefix = self.kv.cached_prefix(&tokens);
        let (cached, id) = (prefix.num_tokens, self.id());
        assert!(cached < tokens.len());
        counts.partial_hits += usize::from(!cached.is_multiple_of(self.kv.block_size()));
        counts.full_hits += usize::from(cached >= self.kv.block_size());
        let (fits, len) = (self.kv.has_room(tokens.len(), &prefix), tokens.len());
        self.kv.begin(RequestId(id), prefix, reusable);
        self.requests.insert(id, (tokens, cached));
        assert_eq!(
            self.compute(id, len, counts),
            fits,
            "what has room fits, and nothing else"
        );
    }

    fn free(&mut self, id: u64) {
        self.requests.remove(&id);
        self.kv.free(RequestId(id));
    }
}

#[test]
fn no_token_is_lost_whatever_happens() {
    let mut rng = ChaCha8Rng::seed_from_u64(23);
    let mut counts = Counts::default();
    for round in 0..2000 {
        let block_size = rng.random_range(1..6);
        let mut paper = Paper::new(rng.random_range(1..16), block_size, round % 7 != 0);
        for _ in 0..40 {
            let mut ids: Vec<u64> = paper.requests.keys().copied().collect();
            ids.sort_unstable();
            let some = (!ids.is_empty()).then(|| ids[rng.random_range(0..ids.len())]);
            match (rng.random_range(0..9), some) {
                (0..3, _) | (_, None) => {
                    let len = rng.random_range(1..16);
                    let tokens = (0..len).map(|_| rng.random_range(1..3)).collect();
                    paper.begin(tokens, rng.random_range(0..20), &mut counts);
                }
                (3..5, Some(id)) => {
                    // The next token of an answer, and every token before it that is not computed yet.
                    if let Some((tokens, _)) = paper.requests.get_mut(&id) {
                        tokens.push(rng.random_range(1..3));
                        let to = tokens.len();
                        paper.compute(id, to, &mut counts);
                    }
                }
                (5, Some(parent)) => {
                    let (child, request) = (paper.id(), paper.requests[&parent].clone());
                    paper.kv.fork(RequestId(parent), RequestId(child));
                    paper.requests.insert(child, request);
                    counts.forks += 1;
                }
                (6, Some(from)) => {
                    let to = paper.id();
                    paper.kv.rename(RequestId(from), RequestId(to));
                    let request = paper.requests.remove(&from);
                    paper.requests.extend(request.map(|request| (to, request)));
                    counts.renamed += 1;
                }
                (_, Some(id)) => paper.free(id),
            }
            paper.check();
        }
        let ids: Vec<u64> = paper.requests.keys().copied().collect();
        ids.into_iter().for_each(|id| paper.free(id));
        paper.check();
        assert_eq!(paper.kv.num_free_blocks(), paper.kv.num_blocks());
    }
    let Counts {
        partial_hits,
        full_hits,
        copies,
        forks,
        refused,
        renamed,
    } = counts;
    for happened in [partial_hits, full_hits, copies, forks, refused, renamed] {
        assert!(happened > 500, "{counts:?}");
    }
}
