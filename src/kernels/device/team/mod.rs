//! Parallel loops of the serving thread: a leader thread with a small team of threads.
//!
//! A decode step has hundreds of loops of about ten microseconds each. A work-stealing pool costs several microseconds per loop, and
//! its idle threads call `sched_yield`, with which Linux gives the core away for a whole tick (milliseconds) if any other thread
//! is ready, however low its priority. In a team an idle thread spins for a moment, because the next loop usually starts soon,
//! and then sleeps. No thread waits for a member that is late: the others do its tasks.
//!
//! [`run`] and [`each`] are the loops used by kernels. On a thread that leads a [`Team`] they run on the team; on
//! every other thread they run on rayon, in the thread's pool. The results are the same.
//!
//! | file | content |
//! |---|---|
//! | `shared` | the protocol between the leader and its members |
//! | `role` | what a thread is to a team |
//! | `sync` | threads and atomics: the standard library's, or loom's |
//! | `model` | a model of the protocol that loom explores (`.ci/full loom`) |

#[cfg(all(test, loom))]
mod model;
mod role;
mod shared;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use role::Role;
use shared::Shared;
use sync::{AtomicBool, Builder, JoinHandle, Mutex, fence, lock};

/// Threads that compute the loops of their leader.
pub struct Team {
    shared: Arc<Shared>,
    members: Vec<Member>,
}

struct Member {
    thread: JoinHandle<()>,
    asleep: Arc<AtomicBool>,
}

/// Returns the maximum number of threads that compute a loop of this thread.
pub fn threads() -> usize {
    match Role::current() {
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
    match Role::current() {
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
        // If a later member fails to start, the team ends and with it the members that were started.
        let mut team = Self {
            shared: Arc::new(Shared::new()),
            members: Vec::new(),
        };
        for at in 1..threads {
            let asleep = Arc::new(AtomicBool::new(false));
            let (shared, theirs) = (team.shared.clone(), asleep.clone());
            let thread = Builder::new()
                .name(format!("team-{at}"))
                .spawn(move || shared.follow(&theirs))?;
            team.members.push(Member { thread, asleep });
        }
        Ok(team)
    }

    /// Runs `work`, with the team computing its loops.
    pub fn lead<R>(&mut self, work: impl FnOnce() -> R) -> R {
        // The team is borrowed, and therefore alive, until the role ends.
        let _role = Role::Leader(self).begin();
        work()
    }

    fn run<F: Fn(usize) + Sync>(&self, tasks: usize, body: &F) {
        if self.members.is_empty() {
            return (0..tasks).for_each(body);
        }
        let panic = self.shared.run_loop(tasks, body, || self.wake(tasks - 1));
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
        self.shared.end();
        for member in self.members.drain(..) {
            member.thread.thread().unpark();
            if member.thread.join().is_err() {
                tracing::error!("a thread of the team panicked");
            }
        }
    }
}
