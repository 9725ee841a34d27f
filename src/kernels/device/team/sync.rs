//! The threads, locks and atomics of a team: the standard library's, or loom's in the model of the team (`model`, built with `cfg(loom)`).

#[cfg(all(test, loom))]
pub use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence},
    sync::{Mutex, MutexGuard},
    thread::{Builder, JoinHandle, Thread, current, park},
};
#[cfg(not(all(test, loom)))]
pub use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence},
    sync::{Mutex, MutexGuard},
    thread::{Builder, JoinHandle, Thread, current, park},
};

#[cfg(not(all(test, loom)))]
pub use real::*;

use std::sync::PoisonError;

#[cfg(not(all(test, loom)))]
mod real {
    pub use std::hint::spin_loop;
    use std::time::{Duration, Instant};

    /// The time that a thread spins before it sleeps: several loops of a decode step. Waking a thread takes a tenth of that at best.
    pub const SPIN: Duration = Duration::from_micros(50);

    /// The number of checks of the awaited condition between two reads of the clock.
    const CHECKS_PER_CLOCK_READ: usize = 16;

    /// Returns whether the condition became true while spinning.
    pub fn spin_until(is_so: impl Fn() -> bool) -> bool {
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

    /// The standard library's cell, with the accessors of loom's, which check that accesses are ordered.
    pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

/// Returns whether the condition is true. A single check stands for all of a spin's: the model explores every moment for it.
#[cfg(all(test, loom))]
pub fn spin_until(is_so: impl Fn() -> bool) -> bool {
    is_so()
}

/// Locks a mutex; a poisoned lock is safe to use, because the data is consistent whatever a holder did.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
