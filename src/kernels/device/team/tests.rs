use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::sync::{SPIN, spin_loop};
use super::{Team, each, run, threads};

/// Returns how often each task of a loop was called.
fn calls(tasks: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    run(tasks, |task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_is_called_once_by_teams_of_any_size_and_without_one() {
    for size in [1, 2, 3, 8] {
        let mut team = Team::new(size).unwrap();
        team.lead(|| {
            assert_eq!(threads(), size);
            for round in 0..2000 {
                let tasks = round % 37;
                assert_eq!(calls(tasks), vec![1; tasks], "{size} threads");
            }
        });
    }
    assert_eq!(calls(100), vec![1; 100]);
    assert_eq!(threads(), rayon::current_num_threads());
}

#[test]
fn members_that_fell_asleep_wake_up() {
    let mut team = Team::new(4).unwrap();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(2));
        assert_eq!(team.lead(|| calls(64)), vec![1; 64]);
    }
}

#[test]
fn members_take_part() {
    let mut team = Team::new(2).unwrap();
    let both = std::sync::Barrier::new(2);
    // This would hang if the leader ran both tasks.
    team.lead(|| {
        run(2, |_| {
            both.wait();
        });
    });
}

/// Uses more threads than cores, and tasks about as long as the spin time: members leave late, and the leader sometimes sleeps.
#[test]
fn loops_end_whoever_is_late() {
    let mut team = Team::new(6).unwrap();
    team.lead(|| {
        for round in 0..1000_u32 {
            run(8, |task| {
                let began = Instant::now();
                let long = (round * 7 + task as u32 * 13) % 5;
                while began.elapsed() < SPIN / 2 * long {
                    spin_loop();
                }
            });
        }
    });
}

#[test]
fn items_are_moved_into_tasks() {
    let sum = AtomicUsize::new(0);
    let add = |item: Box<usize>| {
        sum.fetch_add(*item, Ordering::Relaxed);
    };
    let items = || (0..100).map(Box::new);
    Team::new(3).unwrap().lead(|| each(items(), add));
    each(items(), add);
    each(items().take(1), add);
    assert_eq!(sum.into_inner(), 2 * 4950);
    let mut values = [0; 10];
    let parts = values.chunks_mut(3).enumerate();
    Team::new(2)
        .unwrap()
        .lead(|| each(parts, |(at, part)| part.fill(at)));
    assert_eq!(values, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]);
}

#[test]
fn a_loop_within_a_task_is_computed_there() {
    let mut team = Team::new(2).unwrap();
    let counts = AtomicUsize::new(0);
    team.lead(|| {
        run(8, |_| {
            assert_eq!(threads(), 1);
            let here = thread::current().id();
            run(5, |_| {
                assert_eq!(thread::current().id(), here);
                counts.fetch_add(1, Ordering::Relaxed);
            });
        });
    });
    assert_eq!(counts.into_inner(), 40);
}

#[test]
fn a_panic_reaches_the_leader_and_the_team_goes_on() {
    let mut team = Team::new(3).unwrap();
    for at in [0, 5, 63] {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            team.lead(|| run(64, |task| assert_ne!(task, at, "as told")));
        }));
        let panic = outcome.unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("as told"));
        // The role ended with the panic.
        assert_eq!(threads(), rayon::current_num_threads());
        assert_eq!(team.lead(|| calls(64)), vec![1; 64]);
    }
}
