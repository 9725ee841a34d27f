//! A scheduler with a simulated cache, in which every step's work is carried out and checked.

use std::collections::HashSet;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::kv_cache::{BlockHash, HashedTokens, KvCacheManager};
use crate::request::{Class, FinishReason, Request, RequestId, StopCriteria};
use crate::scheduler::{
    BackgroundLimits, Finished, NextToken, Scheduler, SchedulerConfig, SchedulerOutput,
};
use crate::tenant::Tenant;

const BLOCK_SIZE: usize = 4;
/// The token after which every sequence stops.
const STOP: u32 = 0;
/// The token after which a grammar would allow no continuation.
const COMPLETE: u32 = 8;

/// A scheduler with a simulated cache: each slot holds the hash of its token and all tokens before it.
pub struct World {
    pub scheduler: Scheduler,
    config: SchedulerConfig,
    slots: Vec<[u64; BLOCK_SIZE]>,
    pub next_id: u64,
    /// Sequences that have arrived and not ended.
    alive: HashSet<RequestId>,
    pub computed: usize,
    /// The number of accepted drafts.
    pub accepted: usize,
}

fn prefix_hashes(tokens: &[u32]) -> impl Iterator<Item = u64> {
    tokens.iter().scan(1u64, |hash, &token| {
        *hash = hash
            .wrapping_mul(0x100_0000_01b3)
            .wrapping_add(u64::from(token) + 1);
        Some(*hash)
    })
}

impl World {
    pub fn new(num_blocks: u32, config: SchedulerConfig, prefix_caching: bool) -> Self {
        let kv = KvCacheManager::new(num_blocks, BLOCK_SIZE, prefix_caching);
        Self {
            scheduler: Scheduler::new(config, kv),
            config,
            slots: vec![[0; BLOCK_SIZE]; num_blocks as usize],
            next_id: 0,
            alive: HashSet::new(),
            computed: 0,
            accepted: 0,
        }
    }

    fn id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id)
    }

    pub fn add(&mut self, prompt: &[u32], max_tokens: usize, samples: usize) -> RequestId {
        self.add_with_priority(prompt, max_tokens, samples, 0)
    }

    pub fn add_background(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        samples: usize,
    ) -> RequestId {
        self.add_as(Class::Background, prompt, max_tokens, samples, 0)
    }

    pub fn add_with_priority(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        samples: usize,
        priority: i32,
    ) -> RequestId {
        self.add_as(Class::Foreground, prompt, max_tokens, samples, priority)
    }

    fn add_as(
        &mut self,
        class: Class,
        prompt: &[u32],
        max_tokens: usize,
        samples: usize,
        priority: i32,
    ) -> RequestId {
        self.add_for(
            Tenant::default(),
            class,
            prompt,
            max_tokens,
            samples,
            priority,
        )
    }

    pub fn add_for(
        &mut self,
        tenant: Tenant,
        class: Class,
        prompt: &[u32],
        max_tokens: usize,
        samples: usize,
        priority: i32,
    ) -> RequestId {
        let longest = (prompt.len() + max_tokens).div_ceil(BLOCK_SIZE);
        assert!(longest <= self.slots.len() && samples <= self.config.max_sequences);
        let stop = StopCriteria {
            max_tokens,
            min_tokens: 0,
            stop_ids: vec![STOP].into(),
        };
        let tokens = HashedTokens::new(prompt.to_vec(), BLOCK_SIZE, BlockHash::test_root(1));
        let id = self.id();
        let mut request = Request::new(id, tokens, stop);
        request.siblings = (1..samples).map(|_| self.id()).collect();
        self.alive.insert(id);
        self.alive.extend(&request.siblings);
        request.priority = priority;
        request.class = class;
        request.tenant = tenant;
        request.speculates = true;
        self.scheduler.add(request);
        id
    }

    /// Removes a sequence in any state and returns whether it was alive.
    pub fn remove(&mut self, id: RequestId) -> bool {
        let was_alive = self.alive.remove(&id);
        let successor = self.scheduler.remove(id);
        assert!(successor.is_none_or(|successor| was_alive && self.alive.contains(&successor)));
        self.check();
        was_alive
    }

    /// Panics unless the scheduler's state contains exactly the sequences that are alive.
    fn check(&self) {
        self.scheduler.kv().check();
        let mut known = HashSet::new();
        for &id in &self.alive {
            if let Some(request) = self.scheduler.request(id) {
                for id in std::iter::once(id).chain(request.siblings.iter().copied()) {
                    assert!(known.insert(id), "{id:?} is known twice");
                }
            }
        }
        assert_eq!(known, self.alive);
        assert_eq!(self.scheduler.is_idle(), self.alive.is_empty());
    }

    /// Runs one step: checks the plan, carries it out in the simulation, and samples with `sample`.
    pub fn step(
        &mut self,
        mut sample: impl FnMut(RequestId) -> u32,
    ) -> (SchedulerOutput, Vec<(RequestId, FinishReason)>) {
        let output = self.scheduler.schedule();
        self.check();
        assert!(output.num_tokens() <= self.config.max_batch_tokens);
        assert!(self.scheduler.num_running() <= self.config.max_sequences);
        let limits = self.config.background;
        let computes_prompt = output.scheduled.iter().any(|scheduled| {
            let request = self.scheduler.request(scheduled.id).unwrap();
            request.class == Class::Foreground && scheduled.num_tokens > 1
        });
        let limit = match self.scheduler.has_foreground() {
            true if computes_prompt => 0,
            true => limits.beside(self.tokens_of(Class::Foreground, &output)),
            false => limits.tokens_alone,
        };
        assert!(self.tokens_of(Class::Background, &output) <= limit);
        for copy in &output.copies {
            self.slots[copy.to.0 as usize] = self.slots[copy.from.0 as usize];
        }
        let mut sampled = Vec::new();
        let mut written = HashSet::new();
        for scheduled in &output.scheduled {
            assert!(scheduled.num_tokens > 0);
            let request = self.scheduler.request(scheduled.id).unwrap();
            let table = self.scheduler.kv().block_table(scheduled.id);
            let end = request.num_computed_tokens + scheduled.num_tokens;
            assert_eq!(scheduled.samples, end == request.tokens.len());
            let drafts = &request.drafts.tokens[..scheduled.drafts];
            assert!(drafts.is_empty() || scheduled.samples);
            let tokens = [&request.tokens.tokens()[..end], drafts].concat();
            for (position, hash) in prefix_hashes(&tokens).enumerate() {
                let block = table[position / BLOCK_SIZE].0 as usize;
                let slot = &mut self.slots[block][position % BLOCK_SIZE];
                if position < request.num_computed_tokens {
                    assert_eq!(*slot, hash, "{:?} lost token {position}", scheduled.id);
                } else {
                    *slot = hash;
                    let alone = written.insert((block, position % BLOCK_SIZE));
                    assert!(alone, "two requests write into one slot");
                }
            }
            self.computed += scheduled.num_tokens;
            if scheduled.samples {
                let forks = request.siblings.iter().take(scheduled.forks);
                for &id in std::iter::once(&scheduled.id).chain(forks) {
                    let drawn = drafts.iter().map(Some).chain([None]);
                    for draft in drawn {
                        let token = sample(id);
                        sampled.push(NextToken {
                            id,
                            token,
                            complete: token == COMPLETE,
                        });
                        if draft != Some(&token) {
                            break;
                        }
                        self.accepted += 1;
                    }
                }
            }
        }
        let finished = self.scheduler.update(&output, &sampled);
        for Finished { id, at, reason } in &finished {
            assert!(self.alive.remove(id));
            assert_eq!(sampled[*at].id, *id);
            let last = sampled[*at].token;
            match reason {
                FinishReason::Stop => assert_eq!(last, STOP),
                FinishReason::Complete => assert_eq!(last, COMPLETE),
                FinishReason::Length => assert!(last != STOP && last != COMPLETE),
            }
        }
        self.check();
        let finished = finished.into_iter().map(|ended| (ended.id, ended.reason));
        (output, finished.collect())
    }

    fn tokens_of(&self, class: Class, output: &SchedulerOutput) -> usize {
        let of_class = output.scheduled.iter().filter(|scheduled| {
            let request = self.scheduler.request(scheduled.id);
            request.is_some_and(|request| request.class == class)
        });
        of_class
            .map(|scheduled| scheduled.num_tokens + scheduled.drafts)
            .sum()
    }

    pub fn drain(&mut self, rng: &mut ChaCha8Rng) -> usize {
        let mut finished = 0;
        let mut idle = 0;
        while !self.scheduler.is_idle() {
            let (output, ended) = self.step(|_| rng.random_range(0..9));
            finished += ended.len();
            idle = if output.scheduled.is_empty() {
                idle + 1
            } else {
                0
            };
            assert!(idle < 2, "nothing moves");
        }
        assert_eq!(
            self.scheduler.kv().num_free_blocks(),
            self.scheduler.kv().num_blocks()
        );
        assert_eq!(self.scheduler.kv().holders(), 0);
        finished
    }
}

pub fn config(max_batch_tokens: usize, max_sequences: usize) -> SchedulerConfig {
    SchedulerConfig {
        max_batch_tokens,
        max_sequences,
        target_itl: None,
        max_drafts: 0,
        background: BackgroundLimits {
            fill_beside: 3,
            tokens_alone: 10,
        },
    }
}

pub fn tenant(name: u8) -> Tenant {
    Tenant::of_key(&[name; 32])
}
