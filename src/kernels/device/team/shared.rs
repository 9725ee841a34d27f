//! What the threads of a team share: the state of the current loop, the hand-out of its tasks, and the sleep of those that wait.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::role::Role;
use super::sync::{
    AtomicBool, AtomicU64, AtomicUsize, Mutex, Thread, UnsafeCell, current, fence, lock, park,
    spin_until,
};

/// The bit that is set while members can enter the loop.
const OPEN: u64 = 1 << 31;
/// The increment of the loop's number; the bits below it are [`OPEN`] and the number of members inside the loop.
const LOOP: u64 = 1 << 32;

#[repr(align(128))]
struct CacheAligned<T>(T);

pub struct Shared {
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

impl Shared {
    pub fn new() -> Self {
        /// # Safety
        /// Requires nothing: it is never called, because a loop without tasks calls nothing.
        unsafe fn nothing(_: *const (), _: usize) {}
        Self {
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
        }
    }

    /// Runs a loop as its leader, which takes part: `wake` wakes members when the loop is open. Returns the payload of the first panic of a
    /// task. One thread leads, and it runs one loop at a time.
    pub fn run_loop<F: Fn(usize) + Sync>(
        &self,
        tasks: usize,
        body: &F,
        wake: impl FnOnce(),
    ) -> Option<Box<dyn Any + Send>> {
        /// # Safety
        /// `body` points to a live `F`.
        unsafe fn call<F: Fn(usize)>(body: *const (), task: usize) {
            // SAFETY: the caller's promise.
            unsafe { (*body.cast::<F>())(task) }
        }
        let work = Work {
            tasks,
            body: std::ptr::from_ref(body).cast(),
            call: call::<F>,
        };
        // SAFETY: the loop is closed and no member is inside: only this thread opens loops, and it left the last one in that state.
        self.work.with_mut(|to| unsafe { *to = work });
        self.next.0.store(0, Ordering::Relaxed);
        let number = self.state.0.load(Ordering::Relaxed) / LOOP;
        let open = number.wrapping_add(1).wrapping_mul(LOOP) | OPEN;
        self.state.0.store(open, Ordering::Release);
        wake();
        {
            let _role = Role::Within.begin();
            // SAFETY: `body` lives until this returns, which happens after all members have left.
            unsafe { self.run_tasks() };
        }
        self.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        self.wait_until_left();
        lock(&self.panic).take()
    }

    /// Tells the members to end; each has to be unparked afterwards.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Runs the main loop of a member.
    pub fn follow(&self, asleep: &AtomicBool) {
        let _role = Role::Within.begin();
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
                    park();
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
        let work = self.work.with(|work| unsafe { *work });
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
            *lock(&self.waiting) = Some(current());
            if left() {
                break;
            }
            park();
        }
        lock(&self.waiting).take();
    }
}
