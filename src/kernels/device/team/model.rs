//! A model of the team, which loom explores: every interleaving of its threads up to a number of preemptions, and every value that the
//! memory orderings let an atomic load return.
//!
//! Run by `.ci/full loom`. `LOOM_MAX_PREEMPTIONS` sets another number of preemptions, `LOOM_LOG=trace` and `LOOM_LOCATION=1` show the
//! execution that fails. Each test prints how many executions it explored.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use loom::sync::Condvar;

use super::sync::{Mutex, UnsafeCell, lock};
use super::{Team, run};

/// Explores the executions of `scene` with at most this many preemptions.
fn explore(name: &str, preemptions: usize, scene: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    let preemptions = *model.preemption_bound.get_or_insert(preemptions);
    model.max_branches = 10_000;
    let executions = Arc::new(AtomicUsize::new(0));
    let (count, began) = (Arc::clone(&executions), Instant::now());
    model.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        scene();
    });
    println!(
        "{name}: {} executions with at most {preemptions} preemptions, {:.1} s",
        executions.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64(),
    );
}

/// The number of calls of each task. Loom fails an execution in which two accesses to one of them are not ordered.
struct Calls(Vec<UnsafeCell<usize>>);

// SAFETY: a task is called by one thread, and the leader reads after the loop; loom checks both.
unsafe impl Sync for Calls {}

impl Calls {
    fn new(tasks: usize) -> Self {
        Self((0..tasks).map(|_| UnsafeCell::new(0)).collect())
    }

    fn add(&self, task: usize) {
        // SAFETY: loom checks that no other access is concurrent.
        self.0[task].with_mut(|calls| unsafe { *calls += 1 });
    }

    fn all(&self) -> Vec<usize> {
        // SAFETY: as above.
        let read = |calls: &UnsafeCell<usize>| calls.with(|calls| unsafe { *calls });
        self.0.iter().map(read).collect()
    }
}

/// Runs a loop on the team of this thread, and checks that each task was called once.
fn loop_of(tasks: usize) {
    let calls = Calls::new(tasks);
    run(tasks, |task| calls.add(task));
    assert_eq!(calls.all(), vec![1; tasks]);
}

/// A point that threads leave together.
struct Meeting {
    missing: Mutex<usize>,
    complete: Condvar,
}

impl Meeting {
    fn of(threads: usize) -> Self {
        Self {
            missing: Mutex::new(threads),
            complete: Condvar::new(),
        }
    }

    fn wait(&self) {
        let mut missing = lock(&self.missing);
        *missing -= 1;
        if *missing == 0 {
            self.complete.notify_all();
        }
        while *missing > 0 {
            missing = self.complete.wait(missing).unwrap();
        }
    }
}

#[test]
fn each_task_of_consecutive_loops_is_called_once() {
    explore("two loops, two threads", 3, || {
        let mut team = Team::new(2).unwrap();
        team.lead(|| {
            loop_of(3);
            loop_of(2);
        });
    });
    explore("two loops, three threads", 2, || {
        let mut team = Team::new(3).unwrap();
        team.lead(|| {
            loop_of(2);
            loop_of(3);
        });
    });
}

#[test]
fn members_that_sleep_are_woken() {
    // The tasks of a loop leave the meeting together: an execution in which a member sleeps on is a deadlock.
    explore("all threads meet, two threads", 3, || {
        let mut team = Team::new(2).unwrap();
        team.lead(|| {
            for _ in 0..2 {
                let meeting = Meeting::of(2);
                run(2, |_| meeting.wait());
            }
        });
    });
    explore("all threads meet, three threads", 2, || {
        let mut team = Team::new(3).unwrap();
        team.lead(|| {
            let meeting = Meeting::of(3);
            run(3, |_| meeting.wait());
        });
    });
}

#[test]
fn a_panic_of_any_thread_reaches_the_leader_and_the_team_goes_on() {
    for panics in [&[0][..], &[1], &[0, 1, 2]] {
        explore(&format!("tasks {panics:?} panic"), 3, move || {
            let mut team = Team::new(2).unwrap();
            team.lead(|| {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    run(3, |task| {
                        if panics.contains(&task) {
                            // Without the message of a panic in every execution.
                            resume_unwind(Box::new("as told"));
                        }
                    });
                }));
                let panic = outcome.unwrap_err();
                assert_eq!(panic.downcast_ref::<&str>(), Some(&"as told"));
                loop_of(2);
            });
        });
    }
}

#[test]
fn a_team_ends_wherever_its_members_are() {
    explore("no loop, three threads", 3, || {
        drop(Team::new(3).unwrap());
    });
    explore("after a loop, three threads", 2, || {
        let mut team = Team::new(3).unwrap();
        team.lead(|| loop_of(2));
    });
}
