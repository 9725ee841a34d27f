//! The scheduler against a model of its guarantees: every step's work is carried out in a simulation.

mod world;

use std::collections::HashMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::request::{Class, RequestId};
use super::scheduler::{BackgroundLimits, PRIORITY_STEP};
use super::tenant::Tenant;
pub(super) use world::{World, config, tenant};

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
    let mut accepted = 0;
    for round in 0..2500 {
        let sequences = rng.random_range(1..10);
        let mut config = config(sequences + rng.random_range(1..30), sequences);
        config.background.fill_beside = rng.random_range(0..6);
        config.background.tokens_alone = rng.random_range(1..20);
        config.max_drafts = rng.random_range(0..5);
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
            // Few different tokens, so that some drafts are right.
            let (output, finished) =
                world.step(|_| [0, 1, 1, 1, 2, 2, 2, 2, 8][rng.random_range(0..9)]);
            ended += finished.len();
            // Steps of equal cost: drafts pay.
            world
                .scheduler
                .observe(output.work, Duration::from_millis(1));
        }
        accepted += world.accepted;
        ended += world.drain(&mut rng);
        assert_eq!(begun, ended + removed);
    }
    assert!(removals.iter().all(|&count| count > 200), "{removals:?}");
    assert!(accepted > 200, "{accepted} drafts were accepted");
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
