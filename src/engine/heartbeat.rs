//! Liveness of the engine's thread: it records a mark at every step, and replies to probes when it is idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest duration of a step before the engine counts as stuck. The longest step of a large model on a slow processor takes a
/// fraction of it.
pub const STUCK: Duration = Duration::from_secs(60);

/// The marks that the engine's thread records. Clones share them.
#[derive(Debug, Clone)]
pub struct Heartbeat(Arc<Marks>);

#[derive(Debug)]
struct Marks {
    start: Instant,
    /// The last mark: milliseconds from the start, and whether the thread sleeps next in the lowest bit. One number, so that no reader
    /// combines the time of one mark with the state of the next: a thread that wakes after a long sleep would look stuck.
    last: AtomicU64,
}

/// The bit of [`Marks::last`] that is set if the thread sleeps next.
const IDLE: u64 = 1;

/// The state of the engine's thread according to its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// The thread finished a step recently.
    Beating,
    /// The thread was idle at its last mark; only a probe can show whether it is alive.
    Idle,
    /// The thread has been in one step for longer than [`STUCK`].
    Stuck,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self(Arc::new(Marks {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }))
    }
}

impl Heartbeat {
    /// Records a mark; `idle` if the thread sleeps next.
    pub fn beat(&self, idle: bool) {
        let mark = self.now() << 1 | if idle { IDLE } else { 0 };
        self.0.last.store(mark, Ordering::Relaxed);
    }

    /// Returns the thread's state now.
    pub fn pulse(&self) -> Pulse {
        self.pulse_at(self.now())
    }

    /// Returns the thread's state at `now`, in milliseconds from the start.
    fn pulse_at(&self, now: u64) -> Pulse {
        let mark = self.0.last.load(Ordering::Relaxed);
        let silent = now.saturating_sub(mark >> 1);
        if mark & IDLE != 0 {
            Pulse::Idle
        } else if u128::from(silent) > STUCK.as_millis() {
            Pulse::Stuck
        } else {
            Pulse::Beating
        }
    }

    /// Returns the milliseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_silent_in_a_step_is_stuck_and_one_that_sleeps_is_not() {
        let marks = Heartbeat::default();
        assert_eq!(marks.pulse(), Pulse::Beating);
        marks.beat(true);
        assert_eq!(marks.pulse(), Pulse::Idle);
        let later = |seconds: u64| marks.now() + 1000 * seconds;
        assert_eq!(marks.pulse_at(later(3600)), Pulse::Idle);
        marks.beat(false);
        assert_eq!(marks.pulse(), Pulse::Beating);
        assert_eq!(marks.pulse_at(later(STUCK.as_secs() + 1)), Pulse::Stuck);
    }
}
