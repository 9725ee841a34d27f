//! The effect on one tenant of another tenant that asks for more than the engine's capacity.

use std::collections::HashMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::request::{Class, RequestId};
use super::scheduler::SchedulerOutput;
use super::scheduler_tests::{World, config, tenant};
use super::tenant::Tenant;

/// Returns a prompt of random tokens, so that no prefix is shared.
fn prompt(rng: &mut ChaCha8Rng, len: usize) -> Vec<u32> {
    (0..len).map(|_| rng.random_range(10..1_000_000)).collect()
}

/// Returns the duration of a step on a simulated processor: a fixed part, and the same again for every three tokens.
fn took(output: &SchedulerOutput) -> Duration {
    Duration::from_micros(300 + 100 * output.num_tokens() as u64)
}

/// Simulated requests of several tenants, with a simulated clock.
struct Server {
    world: World,
    rng: ChaCha8Rng,
    owners: HashMap<RequestId, Tenant>,
    clock: Duration,
    /// Tokens computed for each tenant.
    computed: HashMap<Tenant, usize>,
}

impl Server {
    fn new(blocks: u32, batch: usize, sequences: usize) -> Self {
        Self {
            world: World::new(blocks, config(batch, sequences), true),
            rng: ChaCha8Rng::seed_from_u64(5),
            owners: HashMap::new(),
            clock: Duration::ZERO,
            computed: HashMap::new(),
        }
    }

    fn ask(&mut self, whose: Tenant, len: usize, tokens: usize, samples: usize) -> RequestId {
        self.ask_urgently(whose, len, tokens, samples, 0)
    }

    fn ask_urgently(
        &mut self,
        whose: Tenant,
        len: usize,
        tokens: usize,
        samples: usize,
        priority: i32,
    ) -> RequestId {
        let prompt = prompt(&mut self.rng, len);
        let class = Class::Foreground;
        let id = self
            .world
            .add_for(whose, class, &prompt, tokens, samples, priority);
        // The samples of a request have consecutive ids.
        let ids = (0..samples).map(|index| id.sample(index));
        self.owners.extend(ids.map(|id| (id, whose)));
        id
    }

    /// Runs one step in which no request stops before its length limit; returns the finished requests and the schedule.
    fn step(&mut self) -> (Vec<RequestId>, SchedulerOutput) {
        let (output, finished) = self.world.step(|_| 7);
        self.clock += took(&output);
        self.world.scheduler.observe(output.work, took(&output));
        for scheduled in &output.scheduled {
            let whose = self.owners[&scheduled.id];
            *self.computed.entry(whose).or_default() += scheduled.num_tokens;
        }
        (finished.into_iter().map(|(id, _)| id).collect(), output)
    }

    /// Returns the time until a request has ended.
    fn until_ended(&mut self, id: RequestId) -> Duration {
        let begun = self.clock;
        for _ in 0..100_000 {
            if self.step().0.contains(&id) {
                return self.clock - begun;
            }
        }
        panic!("{id:?} does not end");
    }

    fn running(&self, whose: Tenant) -> usize {
        let ids = self.owners.iter().filter(|(_, owner)| **owner == whose);
        ids.filter(|(id, _)| !self.world.scheduler.kv().block_table(**id).is_empty())
            .count()
    }
}

#[test]
fn a_flood_of_one_tenant_leaves_another_a_third_of_its_pace_at_least() {
    let (alice, bob) = (tenant(1), tenant(2));
    let bobs_time = |floods: bool| {
        let mut server = Server::new(4096, 512, 128);
        let mut longest = Duration::ZERO;
        let begun = server.clock;
        for call in 0..60 {
            if floods && call < 2 {
                // One request of many samples, and many requests of one sample.
                server.ask(alice, 30, 400, 128);
                for _ in 0..300 {
                    server.ask(alice, 400, 300, 1);
                }
                for _ in 0..20 {
                    server.step();
                }
            }
            let before = server.clock;
            let id = server.ask(bob, 12, 20, 1);
            server.until_ended(id);
            longest = longest.max(server.clock - before);
        }
        (server.clock - begun, longest)
    };
    let (quiet, _) = bobs_time(false);
    let (beside, longest) = bobs_time(true);
    // The first twenty steps belong to the flood alone; bob is not there yet.
    let warm = Duration::from_millis(40 * 52);
    assert!(beside < 3 * quiet + warm, "{beside:?} instead of {quiet:?}");
    assert!(longest < Duration::from_millis(500), "{longest:?}");
}

#[test]
fn a_flood_of_cached_prompts_leaves_another_half_of_its_pace_at_least() {
    // The reads of a judge with many principles: each computes the few tokens in which it differs, and all of them wait at once.
    let (alice, bob) = (tenant(1), tenant(2));
    let bobs_time = |reads: bool| {
        let mut server = Server::new(4096, 512, 128);
        let shared = prompt(&mut server.rng, 400);
        let read = |server: &mut Server| {
            // Equal prompts would wait for the first of them.
            let mut prompt = shared.clone();
            prompt.push(server.rng.random_range(10..1_000_000));
            let class = Class::Foreground;
            let id = server.world.add_for(alice, class, &prompt, 1, 1, 0);
            server.owners.insert(id, alice);
            id
        };
        let first = read(&mut server);
        server.until_ended(first);
        let begun = server.clock;
        for _ in 0..20 {
            let id = server.ask(bob, 12, 20, 1);
            loop {
                while reads && server.world.scheduler.num_waiting() < 128 {
                    read(&mut server);
                }
                if server.step().0.contains(&id) {
                    break;
                }
            }
        }
        server.clock - begun
    };
    let (quiet, beside) = (bobs_time(false), bobs_time(true));
    assert!(beside < 2 * quiet, "{beside:?} instead of {quiet:?}");
}

#[test]
fn tenants_that_ask_for_enough_get_equal_tokens() {
    let tenants = [1, 2, 3].map(tenant);
    let mut server = Server::new(4096, 256, 32);
    // The same work in different pieces; the third tenant comes last.
    for _ in 0..200 {
        server.ask(tenants[0], 10, 400, 1);
    }
    for _ in 0..20 {
        server.ask(tenants[1], 10, 300, 16);
    }
    for _ in 0..200 {
        server.step();
    }
    for _ in 0..900 {
        server.ask(tenants[2], 10, 30, 1);
    }
    server.computed.clear();
    for _ in 0..600 {
        server.step();
    }
    let mut tokens = tenants.map(|tenant| server.computed[&tenant]);
    tokens.sort_unstable();
    assert!(tokens[2] * 10 < tokens[0] * 13, "{tokens:?}");
    let running = tenants.map(|tenant| server.running(tenant));
    // A tenant of short requests briefly has fewer places while its next requests start.
    assert!(
        running.iter().all(|&places| (9..=12).contains(&places)),
        "{running:?}"
    );
}

#[test]
fn a_tenant_that_comes_gets_its_places_within_steps_whatever_the_priorities() {
    let (alice, bob) = (tenant(1), tenant(2));
    let mut server = Server::new(1024, 64, 16);
    for _ in 0..50 {
        server.ask_urgently(alice, 10, 400, 1, -100);
    }
    for _ in 0..50 {
        server.step();
    }
    assert_eq!(server.running(alice), 16);
    let first = server.ask_urgently(bob, 10, 50, 1, 100);
    let (_, output) = server.step();
    assert!(
        output.scheduled.iter().any(|s| s.id == first),
        "it begins at once"
    );
    for _ in 0..20 {
        server.ask(bob, 10, 400, 1);
    }
    for _ in 0..20 {
        server.step();
    }
    assert_eq!((server.running(alice), server.running(bob)), (8, 8));
    // The places are stable: a place that was taken once is not exchanged repeatedly.
    let mut preempted = 0;
    for _ in 0..20 {
        preempted += server.step().1.preempted.len();
    }
    assert_eq!(preempted, 0);
}

#[test]
fn a_lone_tenant_gets_everything_again_once_the_other_has_what_it_wanted() {
    let (alice, bob) = (tenant(1), tenant(2));
    let mut server = Server::new(1024, 64, 16);
    for _ in 0..400 {
        server.ask(alice, 10, 200, 1);
    }
    let id = server.ask(bob, 10, 20, 1);
    server.until_ended(id);
    // After one second of steps bob is no longer remembered.
    let until = server.clock + Duration::from_secs(2);
    while server.clock < until {
        server.step();
    }
    assert_eq!(server.running(alice), 16);
    let (_, output) = server.step();
    assert!(
        output.num_tokens() >= 16,
        "all of them get on in every step"
    );
}

#[test]
fn samples_begin_with_the_places_there_are_and_the_others_follow() {
    let (alice, bob) = (tenant(1), tenant(2));
    let mut server = Server::new(256, 64, 8);
    for _ in 0..6 {
        server.ask(bob, 10, 100, 1);
    }
    server.step();
    let first = server.ask(alice, 21, 10, 8);
    let mut ended = Vec::new();
    let mut most = 0;
    for _ in 0..2000 {
        let (finished, _) = server.step();
        most = most.max(server.running(alice));
        ended.extend(finished.into_iter().filter(|id| server.owners[id] == alice));
        if ended.len() == 8 {
            break;
        }
    }
    ended.sort_unstable();
    let all: Vec<RequestId> = (0..8).map(|index| first.sample(index)).collect();
    assert_eq!(ended, all);
    assert!((4..8).contains(&most), "{most} of 8 places");
}

#[test]
fn nothing_starves_among_many_tenants_on_a_small_pool() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for round in 0..60 {
        let sequences = 1 + round % 5;
        let mut server = Server::new(14, sequences + 1 + round % 9, sequences);
        server.world = World::new(
            14,
            config(sequences + 1 + round % 9, sequences),
            round % 3 != 0,
        );
        let mut waits: HashMap<RequestId, usize> = HashMap::new();
        for step in 0..1500 {
            // Two tenants that send requests all the time, and ten that send some now and then.
            let whose = match rng.random_range(0..4) {
                0..3 => tenant(rng.random_range(0..2)),
                _ => tenant(rng.random_range(2..12)),
            };
            if step < 600 && server.world.scheduler.num_waiting() < 60 {
                let samples = rng.random_range(1..=sequences);
                let len = rng.random_range(1..30);
                let id = server.ask(whose, len, rng.random_range(1..20), samples);
                waits.extend((0..samples).map(|index| (id.sample(index), step)));
            }
            for id in server.step().0 {
                let begun = waits.remove(&id).unwrap();
                assert!(
                    step - begun < 3000,
                    "{id:?} has waited for {} steps",
                    step - begun
                );
            }
        }
        let mut left = 0;
        while !server.world.scheduler.is_idle() {
            left += 1;
            assert!(left < 20_000, "{} do not end", waits.len());
            for id in server.step().0 {
                waits.remove(&id);
            }
        }
        assert!(waits.is_empty());
    }
}

#[test]
fn a_thousand_that_wait_for_one_prefix_are_not_all_looked_up_in_every_step() {
    // Bob's request comes after a thousand of alice's, which all wait for the prefix that the first of them computes.
    let (alice, bob) = (tenant(1), tenant(2));
    let mut server = Server::new(1024, 32, 8);
    let shared = prompt(&mut server.rng, 200);
    for _ in 0..1000 {
        let class = Class::Foreground;
        let id = server.world.add_for(alice, class, &shared, 1, 1, 0);
        server.owners.insert(id, alice);
    }
    let id = server.ask(bob, 5, 1, 1);
    let (finished, _) = server.step();
    assert!(finished.contains(&id), "it is answered in the first step");
}
