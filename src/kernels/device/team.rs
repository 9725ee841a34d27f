//! Parallel loops of the serving thread: a leader thread with a small team of threads.
//!
//! A decode step has hundreds of loops of about ten microseconds each. A work-stealing pool costs several microseconds per loop, and
//! its idle threads call `sched_yield`, with which Linux gives the core away for a whole tick (milliseconds) if any other thread
//! is ready, however low its priority. In a team an idle thread spins for a moment, because the next loop usually starts soon,
//! and then sleeps. No thread waits for a member that is late: the others do its tasks.
//!
//! [`run`] and [`each`] are the loops used by kernels. On a thread that leads a [`Team`] they run on the team; on
//! every other thread they run on rayon, in the thread's pool. The results are the same.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// The time that a thread spins before it sleeps: several loops of a decode step. Waking a thread takes a tenth of that at best.
const SPIN: Duration = Duration::from_micros(50);

/// The number of checks of the awaited condition between two reads of the clock.
const CHECKS_PER_CLOCK_READ: usize = 16;

/// The bit that is set while members can enter the loop.
const OPEN: u64 = 1 << 31;
/// The increment of the loop's number; the bits below it are [`OPEN`] and the number of members inside the loop.
const LOOP: u64 = 1 << 32;

/// Threads that compute the loops of their leader.
pub struct Team {
    shared: Arc<Shared>,
    members: Vec<Member>,
}

struct Member {
    thread: JoinHandle<()>,
    asleep: Arc<AtomicBool>,
}

#[repr(align(128))]
struct CacheAligned<T>(T);

struct Shared {
    /// The number of the loop, [`OPEN`], and the number of members inside the loop.
    state: CacheAligned<AtomicU64>,
    /// The next task that is not taken.
    next: CacheAligned<AtomicUsize>,
    /// Written by the leader alone, while the loop is closed and no member is inside.
    work: UnsafeCell<Work>,
    /// The leader, while it sleeps until the last member has left.
    waiting: Mutex<Option<Thread>>,
    /// The payload of the first panic of a task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    ended: AtomicBool,
}

// SAFETY: `work` is the only field that is not `Sync`. It is written while no member is inside, and a member enters
// only by a successful exchange of `state` from a value that was stored after the write.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `work` is to a `Sync` value.
unsafe impl Send for Shared {}

/// A loop's body without its type and lifetime.
#[derive(Clone, Copy)]
struct Work {
    tasks: usize,
    body: *const (),
    /// Calls `body` with the index of a task.
    ///
    /// # Safety
    /// Requires the `body` stored with it, alive: only `call` has the pointer's type.
    call: unsafe fn(*const (), usize),
}

#[derive(Clone, Copy)]
enum Role {
    /// Computes loops in rayon's pool.
    Free,
    /// Computes loops with this team.
    Leader(*const Team),
    /// Runs inside a task: a nested loop is computed on this thread.
    Within,
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Free) };
}

/// Sets the thread's role, and restores the previous one when dropped.
struct RoleGuard(Role);

impl RoleGuard {
    fn begin(role: Role) -> Self {
        Self(ROLE.replace(role))
    }
}

impl Drop for RoleGuard {
    fn drop(&mut self) {
        ROLE.set(self.0);
    }
}

/// Returns the maximum number of threads that compute a loop of this thread.
pub fn threads() -> usize {
    match ROLE.get() {
        Role::Free => rayon::current_num_threads(),
        // SAFETY: the team outlives the role; see `Team::lead`.
        Role::Leader(team) => unsafe { &*team }.members.len() + 1,
        Role::Within => 1,
    }
}

/// Calls `task` with every index below `tasks`, on several threads at once.
///
/// # Panics
/// Panics if a task does, after all others have finished or were abandoned.
pub fn run(tasks: usize, task: impl Fn(usize) + Sync) {
    match ROLE.get() {
        _ if tasks <= 1 => (0..tasks).for_each(task),
        Role::Within => (0..tasks).for_each(task),
        Role::Free => (0..tasks).into_par_iter().with_max_len(1).for_each(&task),
        // SAFETY: the team outlives the role; see `Team::lead`.
        Role::Leader(team) => unsafe { &*team }.run(tasks, &task),
    }
}

/// Calls `task` with every item, on several threads at once.
///
/// # Panics
/// Same as [`run`].
pub fn each<I>(items: I, task: impl Fn(I::Item) + Sync)
where
    I: IntoIterator<IntoIter: ExactSizeIterator>,
    I::Item: Send,
{
    let items = items.into_iter();
    if items.len() <= 1 || threads() == 1 {
        return items.for_each(task);
    }
    let items: Vec<Mutex<Option<I::Item>>> = items.map(|item| Mutex::new(Some(item))).collect();
    run(items.len(), |at| {
        let item = lock(&items[at]).take();
        item.into_iter().for_each(&task);
    });
}

impl Team {
    /// Starts a team of `threads` threads, the leader included.
    ///
    /// # Errors
    /// Errors if a thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        /// # Safety
        /// Requires nothing: it is never called, because a loop without tasks calls nothing.
        unsafe fn nothing(_: *const (), _: usize) {}
        let shared = Arc::new(Shared {
            state: CacheAligned(AtomicU64::new(0)),
            next: CacheAligned(AtomicUsize::new(0)),
            work: UnsafeCell::new(Work {
                tasks: 0,
                body: std::ptr::null(),
                call: nothing,
            }),
            waiting: Mutex::new(None),
            panic: Mutex::new(None),
            ended: AtomicBool::new(false),
        });
        // If a later member fails to start, the team ends and with it the members that were started.
        let mut team = Self {
            shared,
            members: Vec::new(),
        };
        for at in 1..threads {
            let asleep = Arc::new(AtomicBool::new(false));
            let (shared, theirs) = (team.shared.clone(), asleep.clone());
            let thread = thread::Builder::new()
                .name(format!("team-{at}"))
                .spawn(move || shared.follow(&theirs))?;
            team.members.push(Member { thread, asleep });
        }
        Ok(team)
    }

    /// Runs `work`, with the team computing its loops.
    pub fn lead<R>(&mut self, work: impl FnOnce() -> R) -> R {
        // The team is borrowed, and therefore alive, until the role ends.
        let _role = RoleGuard::begin(Role::Leader(self));
        work()
    }

    fn run<F: Fn(usize) + Sync>(&self, tasks: usize, body: &F) {
        /// # Safety
        /// `body` points to a live `F`.
        unsafe fn call<F: Fn(usize)>(body: *const (), task: usize) {
            // SAFETY: the caller's promise.
            unsafe { (*body.cast::<F>())(task) }
        }
        if self.members.is_empty() {
            return (0..tasks).for_each(body);
        }
        let shared = &*self.shared;
        // SAFETY: the loop is closed and no member is inside: only this thread opens loops, and it left the last one in that state.
        unsafe {
            *shared.work.get() = Work {
                tasks,
                body: std::ptr::from_ref(body).cast(),
                call: call::<F>,
            };
        }
        shared.next.0.store(0, Ordering::Relaxed);
        let number = shared.state.0.load(Ordering::Relaxed) / LOOP;
        let open = number.wrapping_add(1).wrapping_mul(LOOP) | OPEN;
        shared.state.0.store(open, Ordering::Release);
        self.wake(tasks - 1);
        {
            let _role = RoleGuard::begin(Role::Within);
            // SAFETY: `body` lives until this returns, which happens after all members have left.
            unsafe { shared.run_tasks() };
        }
        shared.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        shared.wait_until_left();
        let panic = lock(&shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Wakes sleeping members, at most as many as there are tasks for.
    fn wake(&self, most: usize) {
        // Either a member sees the loop, or this thread sees that it sleeps: both store, then load.
        fence(Ordering::SeqCst);
        for member in self.members.iter().take(most) {
            if member.asleep.load(Ordering::Relaxed) && member.asleep.swap(false, Ordering::Relaxed)
            {
                member.thread.thread().unpark();
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for member in self.members.drain(..) {
            member.thread.thread().unpark();
            if member.thread.join().is_err() {
                tracing::error!("a thread of the team panicked");
            }
        }
    }
}

impl Shared {
    /// Runs the main loop of a member.
    fn follow(&self, asleep: &AtomicBool) {
        ROLE.set(Role::Within);
        let mut seen = 0;
        while let Some(number) = self.enter(seen, asleep) {
            seen = number;
            // SAFETY: this member is inside, and the leader waits until it has left.
            unsafe { self.run_tasks() };
            let before = self.state.0.fetch_sub(1, Ordering::AcqRel);
            if before & (LOOP - 1) == 1 {
                // The last member to leave a closed loop: the leader may sleep.
                let leader = lock(&self.waiting).take();
                leader.iter().for_each(Thread::unpark);
            }
        }
    }

    /// Waits for a loop after number `seen` and enters it; returns `None` when the team ends.
    fn enter(&self, seen: u64, asleep: &AtomicBool) -> Option<u64> {
        let opened = || {
            let state = self.state.0.load(Ordering::Acquire);
            state & OPEN != 0 && state / LOOP != seen || self.ended.load(Ordering::Relaxed)
        };
        loop {
            if !spin_until(opened) {
                asleep.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                while asleep.load(Ordering::Relaxed) && !opened() {
                    thread::park();
                }
                asleep.store(false, Ordering::Relaxed);
            }
            if self.ended.load(Ordering::Relaxed) {
                return None;
            }
            let state = self.state.0.load(Ordering::Relaxed);
            if state & OPEN == 0 || state / LOOP == seen {
                continue;
            }
            let joined = self.state.0.compare_exchange(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if joined.is_ok() {
                return Some(state / LOOP);
            }
        }
    }

    /// Takes tasks until there are none left.
    ///
    /// # Safety
    /// The loop's body is alive.
    unsafe fn run_tasks(&self) {
        // SAFETY: `work` is not written while a member is inside.
        let work = unsafe { *self.work.get() };
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.0.fetch_add(1, Ordering::Relaxed);
                if task >= work.tasks {
                    break;
                }
                // SAFETY: `call` matches the type of `body`, which is alive.
                unsafe { (work.call)(work.body, task) };
            }
        }));
        if let Err(panic) = done {
            self.next.0.store(work.tasks, Ordering::Relaxed);
            let mut first = lock(&self.panic);
            match &*first {
                None => *first = Some(panic),
                // Dropping it could panic again, while members are inside.
                Some(_) => std::mem::forget(panic),
            }
        }
    }

    /// Waits until all members have left the loop.
    fn wait_until_left(&self) {
        let left = || self.state.0.load(Ordering::Acquire) & (LOOP - 1) == 0;
        if spin_until(left) {
            return;
        }
        // A member is delayed, probably by another thread on its core: the leader sleeps, to leave the core free.
        while !left() {
            // Stored again in each round: a late member of an earlier loop can take the handle that was stored for this one.
            *lock(&self.waiting) = Some(thread::current());
            if left() {
                break;
            }
            thread::park();
        }
        lock(&self.waiting).take();
    }
}

/// Returns whether the condition became true while spinning.
fn spin_until(is_so: impl Fn() -> bool) -> bool {
    let mut began = None;
    loop {
        for _ in 0..CHECKS_PER_CLOCK_READ {
            if is_so() {
                return true;
            }
            spin_loop();
        }
        if began.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return false;
        }
    }
}

/// Locks a mutex; a poisoned lock is safe to use, because the data is consistent whatever a holder did.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
