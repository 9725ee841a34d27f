//! The scheduler against a model of its guarantees: every step's work is carried out in a simulation.

use std::collections::{HashMap, HashSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::kv_cache::{BlockHash, HashedTokens, KvCacheManager};
use super::request::{Class, FinishReason, Request, RequestId, StopCriteria};
use super::scheduler::{
    BackgroundLimits, NextToken, PRIORITY_STEP, Scheduler, SchedulerConfig, SchedulerOutput,
};
use super::tenant::Tenant;

const BLOCK_SIZE: usize = 4;
/// The token after which every sequence stops.
const STOP: u32 = 0;
/// The token after which a grammar would allow no continuation.
const COMPLETE: u32 = 8;

/// A scheduler with a simulated cache: each slot holds the hash of its token and all tokens before it.
pub(super) struct World {
    pub(super) scheduler: Scheduler,
    config: SchedulerConfig,
    slots: Vec<[u64; BLOCK_SIZE]>,
    next_id: u64,
    /// Sequences that have arrived and not ended.
    alive: HashSet<RequestId>,
    computed: usize,
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
    pub(super) fn new(num_blocks: u32, config: SchedulerConfig, prefix_caching: bool) -> Self {
        let kv = KvCacheManager::new(num_blocks, BLOCK_SIZE, prefix_caching);
        Self {
            scheduler: Scheduler::new(config, kv),
            config,
            slots: vec![[0; BLOCK_SIZE]; num_blocks as usize],
            next_id: 0,
            alive: HashSet::new(),
            computed: 0,
        }
    }

    fn id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id)
    }

    pub(super) fn add(&mut self, prompt: &[u32], max_tokens: usize, samples: usize) -> RequestId {
        self.add_with_priority(prompt, max_tokens, samples, 0)
    }

    fn add_background(&mut self, prompt: &[u32], max_tokens: usize, samples: usize) -> RequestId {
        self.add_as(Class::Background, prompt, max_tokens, samples, 0)
    }

    fn add_with_priority(
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

    pub(super) fn add_for(
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
        self.scheduler.add(request);
        id
    }

    /// Removes a sequence in any state and returns whether it was alive.
    fn remove(&mut self, id: RequestId) -> bool {
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
    pub(super) fn step(
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
            let hashes = prefix_hashes(&request.tokens.tokens()[..end]);
            for (position, hash) in hashes.enumerate() {
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
                    let token = sample(id);
                    sampled.push(NextToken {
                        id,
                        token,
                        complete: token == COMPLETE,
                    });
                }
            }
        }
        let finished = self.scheduler.update(&output, &sampled);
        for (id, reason) in &finished {
            assert!(self.alive.remove(id));
            let last = sampled.iter().find(|next| next.id == *id).unwrap().token;
            match reason {
                FinishReason::Stop => assert_eq!(last, STOP),
                FinishReason::Complete => assert_eq!(last, COMPLETE),
                FinishReason::Length => assert!(last != STOP && last != COMPLETE),
            }
        }
        self.check();
        (output, finished)
    }

    fn tokens_of(&self, class: Class, output: &SchedulerOutput) -> usize {
        let of_class = output.scheduled.iter().filter(|scheduled| {
            let request = self.scheduler.request(scheduled.id);
            request.is_some_and(|request| request.class == class)
        });
        of_class.map(|scheduled| scheduled.num_tokens).sum()
    }

    pub(super) fn drain(&mut self, rng: &mut ChaCha8Rng) -> usize {
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

pub(super) fn config(max_batch_tokens: usize, max_sequences: usize) -> SchedulerConfig {
    SchedulerConfig {
        max_batch_tokens,
        max_sequences,
        background: BackgroundLimits {
            fill_beside: 3,
            tokens_alone: 10,
        },
    }
}

pub(super) fn tenant(name: u8) -> Tenant {
    Tenant::of_key(&[name; 32])
}

#[test]
fn background_tokens_fill_a_tile() {
    let limits = BackgroundLimits {
        fill_beside: 16,
        tokens_alone: 10,
    };
    let beside = [0, 3, 15, 16, 17].map(|decoding| limits.beside(decoding));
    assert_eq!(beside, [16, 13, 1, 16, 15]);
    let none = BackgroundLimits {
        fill_beside: 0,
        ..limits
    };
    assert_eq!(none.beside(3), 0);
}

#[test]
fn whatever_happens_every_token_is_where_it_belongs_and_every_request_ends() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    // Sequences removed as a request, as a sibling, and as a request whose siblings continue.
    let mut removals = [0; 3];
    for round in 0..2500 {
        let sequences = rng.random_range(1..10);
        let mut config = config(sequences + rng.random_range(1..30), sequences);
        config.background.fill_beside = rng.random_range(0..6);
        config.background.tokens_alone = rng.random_range(1..20);
        let num_blocks = rng.random_range(8..40);
        let mut world = World::new(num_blocks, config, round % 5 != 0);
        let (mut begun, mut ended, mut removed) = (0, 0, 0);
        for _ in 0..rng.random_range(5..60) {
            if rng.random_bool(0.4) {
                // Prompts of few different tokens share prefixes of all lengths.
                let len = rng.random_range(1..24);
                let prompt: Vec<u32> = (0..len).map(|_| rng.random_range(1..3)).collect();
                let samples = rng.random_range(1..=sequences.min(4));
                let priority = rng.random_range(-1..=1);
                let max_tokens = rng.random_range(1..9);
                let class = [Class::Foreground, Class::Background][rng.random_range(0..2)];
                let tenant = match class {
                    Class::Foreground => tenant(rng.random_range(0..=round % 4) as u8),
                    Class::Background => Tenant::server(),
                };
                world.add_for(tenant, class, &prompt, max_tokens, samples, priority);
                begun += samples;
            }
            if rng.random_bool(0.15) {
                // One of the most recent sequences: alive or not.
                let last = world.next_id.max(1);
                let id = RequestId(rng.random_range(last.saturating_sub(8).max(1)..=last));
                let request = world.scheduler.request(id);
                let kind = request.map_or(1, |request| 2 * request.siblings.len().min(1));
                if world.remove(id) {
                    removed += 1;
                    removals[kind] += 1;
                }
            }
            ended += world.step(|_| rng.random_range(0..9)).1.len();
        }
        ended += world.drain(&mut rng);
        assert_eq!(begun, ended + removed);
    }
    assert!(removals.iter().all(|&count| count > 200), "{removals:?}");
}

#[test]
fn a_request_does_not_notice_who_runs_beside_it() {
    // The token sampled for a sequence depends on its length: a substitute for a seeded generator.
    let mut outputs: Vec<HashMap<u64, usize>> = Vec::new();
    for (batch, sequences, blocks) in [(100, 16, 64), (9, 8, 12), (5, 4, 9)] {
        let mut world = World::new(blocks, config(batch, sequences), true);
        for i in 0..12u32 {
            world.add(
                &[1, 2, 3, 4, 1 + i % 3, 5],
                6 + i as usize % 5,
                1 + i as usize % 2,
            );
        }
        let mut produced: HashMap<u64, usize> = HashMap::new();
        while !world.scheduler.is_idle() {
            world.step(|id| {
                *produced.entry(id.0).or_default() += 1;
                7
            });
        }
        outputs.push(produced);
    }
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0], outputs[2]);
}

#[test]
fn samples_of_one_prompt_compute_it_once() {
    let mut world = World::new(64, config(64, 16), true);
    let prompt: Vec<u32> = (1..=21).collect();
    world.add(&prompt, 2, 8);
    while !world.scheduler.is_idle() {
        world.step(|_| 7);
    }
    // The prompt, and the first token of each sample; the second is sampled but not computed.
    assert_eq!(world.computed, 21 + 8);
}

#[test]
fn prompts_that_arrive_together_compute_what_they_share_once() {
    let mut world = World::new(64, config(64, 16), true);
    for i in 0..8 {
        let mut prompt: Vec<u32> = (1..=16).collect();
        prompt.extend([100 + i, 200 + i]);
        world.add(&prompt, 1, 1);
    }
    while !world.scheduler.is_idle() {
        world.step(|_| 7);
    }
    assert_eq!(world.computed, 16 + 8 * 2);
}

#[test]
fn decoding_goes_on_while_a_long_prompt_is_computed() {
    let mut world = World::new(64, config(8, 4), false);
    world.add(&[1, 2, 3], 40, 1);
    world.step(|_| 7);
    let prompt: Vec<u32> = (1..=50).collect();
    world.add(&prompt, 1, 1);
    for _ in 0..7 {
        let (output, _) = world.step(|_| 7);
        assert_eq!(output.num_tokens(), 8, "prompt and decode share every step");
        assert!(output.scheduled[0].samples);
    }
}

#[test]
fn nobody_is_overtaken_for_long() {
    // A pool for two requests, a flood of newer and more urgent requests, and one request of the lowest priority.
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut world = World::new(12, config(16, 8), true);
    let prompt =
        |rng: &mut ChaCha8Rng| -> Vec<u32> { (0..20).map(|_| rng.random_range(1..1000)).collect() };
    for _ in 0..6 {
        let prompt = prompt(&mut rng);
        world.add_with_priority(&prompt, 8, 1, -1);
    }
    let unloved_prompt = prompt(&mut rng);
    let unloved = world.add(&unloved_prompt, 8, 1);
    let mut overtook = 0;
    for _ in 0..100_000 {
        let flood = prompt(&mut rng);
        world.add_with_priority(&flood, 8, 1, -1);
        let (_, finished) = world.step(|_| 7);
        if finished.iter().any(|(id, _)| *id == unloved) {
            assert!(overtook > 50, "priorities did nothing: {overtook}");
            return;
        }
        overtook += finished.len();
        assert!(
            overtook as i64 <= PRIORITY_STEP + 16,
            "overtaken {overtook} times"
        );
    }
    panic!("it starved");
}

#[test]
fn preempted_requests_come_back_and_cost_nothing_that_is_still_cached() {
    let mut world = World::new(9, config(40, 4), true);
    let first = world.add(&[1; 12], 12, 1);
    let second = world.add(&[2; 12], 12, 1);
    let mut preempted = 0;
    let mut ended = Vec::new();
    while !world.scheduler.is_idle() {
        let (output, finished) = world.step(|_| 7);
        preempted += output.preempted.len();
        assert!(
            !output.preempted.contains(&first),
            "the first in line gives nothing up"
        );
        ended.extend(finished.into_iter().map(|(id, _)| id));
    }
    assert!(preempted > 0, "the pool was meant to be too small");
    assert_eq!(ended, [first, second]);
}

#[test]
fn whoever_needs_the_whole_pool_gets_it_even_where_it_shares_a_part_of_a_block() {
    let mut world = World::new(8, config(40, 4), true);
    let mut prompt: Vec<u32> = (1..=31).collect();
    for parts_at in [31, 2, 18] {
        // All its blocks are free and can be found; the new prompt differs from them from the middle of a block on.
        for token in &mut prompt[parts_at..] {
            *token += 100;
        }
        world.add(&prompt, 1, 1);
        world.drain(&mut ChaCha8Rng::seed_from_u64(1));
    }
}

#[test]
fn the_foreground_does_not_notice_the_background() {
    // Without shared prefixes, which would only save the foreground work. Both simulations get the same foreground; one has a background
    // too.
    const BACKGROUND: u64 = 1_000_000;
    fn is_foreground(id: &RequestId) -> bool {
        id.0 < BACKGROUND
    }
    /// Returns a token that depends on the sequence and its length only, and sometimes ends an answer.
    fn token(produced: &mut HashMap<u64, u32>, id: RequestId) -> u32 {
        let count = produced.entry(id.0).or_default();
        *count += 1;
        let hash = (id.0 as u32).wrapping_mul(2_654_435_761);
        hash.wrapping_add(*count) % 7
    }
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let (mut background_done, mut preempted) = (0, 0);
    for _ in 0..1000 {
        let sequences = rng.random_range(1..8);
        let config = config(sequences + rng.random_range(1..20), sequences);
        let num_blocks = rng.random_range(8..30);
        let mut alone = World::new(num_blocks, config, false);
        let mut beside = World::new(num_blocks, config, false);
        let mut next_background = BACKGROUND;
        let mut produced: [HashMap<u64, u32>; 2] = Default::default();
        for _ in 0..60 {
            let prompt = |rng: &mut ChaCha8Rng| -> Vec<u32> {
                (0..rng.random_range(1..20))
                    .map(|_| rng.random_range(1..9))
                    .collect()
            };
            if rng.random_bool(0.15) {
                let (prompt, max_tokens) = (prompt(&mut rng), rng.random_range(1..9));
                let samples = rng.random_range(1..=sequences.min(3));
                let priority = rng.random_range(-1..=1);
                for world in [&mut alone, &mut beside] {
                    world.add_with_priority(&prompt, max_tokens, samples, priority);
                }
            }
            if rng.random_bool(0.3) {
                let foreground_id = std::mem::replace(&mut beside.next_id, next_background);
                let (prompt, max_tokens) = (prompt(&mut rng), rng.random_range(1..9));
                beside.add_background(&prompt, max_tokens, rng.random_range(1..=sequences.min(3)));
                next_background = std::mem::replace(&mut beside.next_id, foreground_id);
            }
            let [of_alone, of_beside] = &mut produced;
            let (want, finished) = alone.step(|id| token(of_alone, id));
            let (got, mut ended) = beside.step(|id| token(of_beside, id));
            let mut scheduled = got.scheduled;
            scheduled.retain(|scheduled| is_foreground(&scheduled.id));
            assert_eq!(scheduled, want.scheduled);
            let mut given_up = got.preempted;
            preempted += given_up.iter().filter(|id| !is_foreground(id)).count();
            given_up.retain(is_foreground);
            assert_eq!(given_up, want.preempted);
            background_done += ended.iter().filter(|(id, _)| !is_foreground(id)).count();
            ended.retain(|(id, _)| is_foreground(id));
            assert_eq!(ended, finished);
        }
    }
    assert!(
        background_done > 500 && preempted > 50,
        "{background_done} {preempted}"
    );
}

#[test]
fn the_background_yields_its_places_and_blocks_at_once() {
    for (places, blocks) in [(4, 64), (16, 12)] {
        let mut world = World::new(blocks, config(32, places), true);
        for i in 0..4 {
            world.add_background(&[10 + i; 6], 6, 1);
        }
        for _ in 0..4 {
            world.step(|_| 7);
        }
        assert_eq!(world.scheduler.num_running(), 4);
        let id = world.add(&[3; 26], 2, 1);
        let (output, _) = world.step(|_| 7);
        assert_eq!(
            (output.scheduled[0].id, output.scheduled[0].samples),
            (id, true)
        );
        assert!(!output.preempted.is_empty());
        world.drain(&mut ChaCha8Rng::seed_from_u64(1));
    }
}

#[test]
fn the_foreground_does_not_wait_for_a_prefix_that_the_background_computes() {
    let mut world = World::new(64, config(64, 8), true);
    let prompt: Vec<u32> = (1..=30).collect();
    world.add(&[9; 3], 40, 1);
    world.add_background(&prompt, 1, 1);
    world.step(|_| 7);
    world.step(|_| 7);
    // The background request has most of its prompt left, and computes a little of it in each step.
    let id = world.add(&prompt, 1, 1);
    let (output, _) = world.step(|_| 7);
    assert!(output.scheduled.iter().any(|s| s.id == id && s.samples));
}
