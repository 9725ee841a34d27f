//! The arbiter between serving and training on one device: serving has priority.
//!
//! The trainer divides its work into quanta and calls [`DeviceArbiter::pace`] between them, at every layer's forward or backward pass,
//! and [`yield_to_serving`] at every kernel within a layer. While no foreground step needs the device, the trainer continues at once.
//! While one does, the trainer waits, except for a guaranteed share of that time, so that a busy server still learns. Running work is
//! never interrupted: a foreground step is delayed by one kernel at most.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Device;

use super::DeviceError;
use super::pacing::{ArbiterConfig, ArbiterUsage, Pacing, Wait};

/// The arbiter. A handle: clones share it.
#[derive(Debug, Clone)]
pub struct DeviceArbiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pacing: Mutex<Pacing>,
    changed: Condvar,
    /// The last value set by the engine, so that setting the same value again costs nothing.
    foreground: AtomicBool,
    started: Instant,
    device: Device,
}

impl Default for DeviceArbiter {
    fn default() -> Self {
        Self::with(ArbiterConfig::default(), Device::Cpu)
    }
}

impl DeviceArbiter {
    /// # Errors
    /// Errors if `min_share` is not from 0 to 1.
    pub fn new(config: ArbiterConfig, device: Device) -> Result<Self, DeviceError> {
        match (0.0..=1.0).contains(&config.min_share) {
            true => Ok(Self::with(config, device)),
            false => Err(DeviceError::Share(config.min_share)),
        }
    }

    fn with(config: ArbiterConfig, device: Device) -> Self {
        Self(Arc::new(Shared {
            pacing: Mutex::new(Pacing::new(config)),
            changed: Condvar::new(),
            foreground: AtomicBool::new(false),
            started: Instant::now(),
            device,
        }))
    }

    /// Sets whether a foreground request waits for a step that uses the whole device. The engine calls this before each step and before it
    /// sleeps.
    pub fn foreground(&self, due: bool) {
        if self.0.foreground.load(Ordering::Relaxed) == due {
            return;
        }
        {
            // Both values change under the lock: two callers leave them equal.
            let mut pacing = self.lock();
            self.0.foreground.store(due, Ordering::Relaxed);
            pacing.set_due(due, self.now());
        }
        if !due {
            self.0.changed.notify_all();
        }
    }

    /// Ends the trainer's last quantum and waits until the next can start. The trainer calls this before its first quantum and between any
    /// two.
    pub fn pace(&self) {
        self.finish_queued();
        let mut pacing = self.lock();
        pacing.rest(self.now());
        loop {
            match pacing.wait(self.now()) {
                Wait::No => break,
                Wait::UntilIdle => {
                    let woken = self.0.changed.wait(pacing);
                    pacing = woken.unwrap_or_else(PoisonError::into_inner);
                }
                Wait::For(time) => {
                    let woken = self.0.changed.wait_timeout(pacing, time);
                    (pacing, _) = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        pacing.begin(self.now());
    }

    /// Runs `work`, in which this thread computes for the trainer: see [`yield_to_serving`].
    pub fn yielding_to_serving<R>(&self, work: impl FnOnce() -> R) -> R {
        /// Restores the previous value, also if the work panics.
        struct Restore(Option<DeviceArbiter>);
        impl Drop for Restore {
            fn drop(&mut self) {
                YIELDS_TO.replace(self.0.take());
            }
        }
        let _restore = Restore(YIELDS_TO.replace(Some(self.clone())));
        work()
    }

    /// Ends the trainer's last quantum without starting another: it has nothing to compute for now.
    pub fn rest(&self) {
        self.finish_queued();
        self.lock().rest(self.now());
    }

    /// Stops all waiting of the trainer from now on, so that it does not delay a shutdown.
    pub fn shut_down(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }

    pub fn usage(&self) -> ArbiterUsage {
        let mut pacing = self.lock();
        pacing.advance(self.now());
        pacing.usage
    }

    /// Waits for the GPU's queue: a quantum has ended only when its queued work is done.
    fn finish_queued(&self) {
        if let Err(error) = self.0.device.synchronize() {
            // The next computation gets the same error, and handles it.
            tracing::warn!(%error, "waiting for the device failed");
        }
    }

    fn now(&self) -> Duration {
        self.0.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Pacing> {
        let pacing = self.0.pacing.lock();
        pacing.unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    /// The arbiter that this thread waits for in [`yield_to_serving`], if it computes for a trainer.
    static YIELDS_TO: RefCell<Option<DeviceArbiter>> = const { RefCell::new(None) };
}

/// Waits as [`DeviceArbiter::pace`] does, if the thread computes for a trainer and the foreground needs the device; otherwise it costs next
/// to nothing. Kernels that a trainer computes call it at their start.
///
/// A backward pass is a single call from outside, and a layer of a micro-batch takes longer than a token, so the kernels
/// themselves are the places at which to stop.
pub fn yield_to_serving() {
    YIELDS_TO.with_borrow(|arbiter| {
        if let Some(arbiter) = arbiter
            && arbiter.0.foreground.load(Ordering::Relaxed)
        {
            arbiter.pace();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::pacing::Trainer;
    use super::*;

    /// Returns an arbiter in debt, whose trainer has to wait while the foreground needs the device, which is the case.
    fn in_debt() -> DeviceArbiter {
        let config = ArbiterConfig { min_share: 0.0 };
        let arbiter = DeviceArbiter::new(config, Device::Cpu).unwrap();
        arbiter.pace();
        arbiter.foreground(true);
        // A quantum of zero duration leaves no debt.
        while arbiter.lock().debt == 0.0 {
            arbiter.usage();
        }
        arbiter
    }

    #[test]
    fn a_waiting_trainer_is_woken() {
        for wake in [
            (|arbiter: &DeviceArbiter| arbiter.foreground(false)) as fn(&DeviceArbiter),
            DeviceArbiter::shut_down,
        ] {
            let arbiter = in_debt();
            let trainer = std::thread::spawn({
                let arbiter = arbiter.clone();
                move || arbiter.pace()
            });
            wake(&arbiter);
            trainer.join().unwrap();
            arbiter.rest();
        }
    }

    #[test]
    fn a_trainer_s_kernels_wait_and_others_do_not() {
        let arbiter = in_debt();
        // This thread does not compute for a trainer.
        yield_to_serving();
        let trainer = std::thread::spawn({
            let arbiter = arbiter.clone();
            move || {
                arbiter.yielding_to_serving(yield_to_serving);
                yield_to_serving();
            }
        });
        while arbiter.lock().trainer != Trainer::Waiting {
            std::thread::yield_now();
        }
        assert!(!trainer.is_finished());
        arbiter.foreground(false);
        trainer.join().unwrap();
    }

    #[test]
    fn a_share_is_a_share() {
        for min_share in [-0.1, 1.5, f64::NAN] {
            let config = ArbiterConfig { min_share };
            assert!(DeviceArbiter::new(config, Device::Cpu).is_err());
        }
    }
}
