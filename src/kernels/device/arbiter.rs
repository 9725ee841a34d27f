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

/// Settings of the sharing between serving and training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArbiterConfig {
    /// The trainer's guaranteed fraction of the time in which the foreground needs the device: 0 to 1.
    pub min_share: f64,
}

impl Default for ArbiterConfig {
    /// Returns a quarter of the time of the steps that use the whole device, which are few under a moderate load: as measured,
    /// the 99th percentile of the gaps between tokens grows by less than a fifth (`loadtest/RESULTS.md`).
    fn default() -> Self {
        Self { min_share: 0.25 }
    }
}

/// The trainer's use of the device so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArbiterUsage {
    pub trained: Duration,
    pub waited: Duration,
}

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
        if self.0.foreground.swap(due, Ordering::Relaxed) == due {
            return;
        }
        self.lock().set_due(due, self.now());
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

/// The time that the trainer has to wait before a quantum can start.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wait {
    No,
    /// For this time, or until the foreground no longer needs the device.
    For(Duration),
    UntilIdle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trainer {
    Resting,
    /// Between the end of one quantum and the start of the next.
    Waiting,
    Computing,
}

/// The policy alone. Times are of any monotonic clock.
///
/// A quantum adds to the *debt* the time that it takes while the foreground needs the device, and that time repays the debt at the rate
/// of the trainer's share. No quantum starts in debt while the foreground needs the device.
#[derive(Debug)]
struct Pacing {
    config: ArbiterConfig,
    due: bool,
    trainer: Trainer,
    closed: bool,
    /// The debt in seconds.
    debt: f64,
    /// The time up to which everything is accounted for.
    now: Duration,
    usage: ArbiterUsage,
}

impl Pacing {
    fn new(config: ArbiterConfig) -> Self {
        Self {
            config,
            due: false,
            trainer: Trainer::Resting,
            closed: false,
            debt: 0.0,
            now: Duration::ZERO,
            usage: ArbiterUsage::default(),
        }
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        match self.trainer {
            Trainer::Computing => self.usage.trained += passed,
            Trainer::Waiting => self.usage.waited += passed,
            Trainer::Resting => {}
        }
        if self.due {
            let taken = f64::from(u8::from(self.trainer == Trainer::Computing));
            let change = passed.as_secs_f64() * (taken - self.config.min_share);
            self.debt = (self.debt + change).max(0.0);
        }
    }

    fn set_due(&mut self, due: bool, now: Duration) {
        self.advance(now);
        self.due = due;
    }

    fn rest(&mut self, now: Duration) {
        self.advance(now);
        self.trainer = Trainer::Resting;
    }

    fn begin(&mut self, now: Duration) {
        self.advance(now);
        self.trainer = Trainer::Computing;
    }

    /// Returns the wait of a trainer that is ready to start a quantum.
    fn wait(&mut self, now: Duration) -> Wait {
        self.advance(now);
        self.trainer = Trainer::Waiting;
        if self.closed || !self.due || self.debt <= 0.0 {
            return Wait::No;
        }
        // A wait of more than a day is unbounded.
        let seconds = self.debt / self.config.min_share;
        match Duration::try_from_secs_f64(seconds) {
            Ok(time) if time < Duration::from_secs(86_400) => {
                // Rounded up to the next whole nanosecond: a wait of zero would not repay the rest.
                Wait::For(time + Duration::from_nanos(1))
            }
            _ => Wait::UntilIdle,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn pacing(min_share: f64) -> Pacing {
        Pacing::new(ArbiterConfig { min_share })
    }

    #[test]
    fn an_idle_server_leaves_the_trainer_everything() {
        let mut pacing = pacing(0.0);
        for quantum in 0..100 {
            assert_eq!(pacing.wait(ms(quantum)), Wait::No);
            pacing.begin(ms(quantum));
        }
        pacing.rest(ms(100));
        assert_eq!(pacing.usage.trained, ms(100));
        assert_eq!(pacing.usage.waited, Duration::ZERO);
    }

    #[test]
    fn a_quantum_that_meets_the_foreground_is_the_last_until_the_debt_is_paid() {
        let mut pacing = pacing(0.1);
        pacing.begin(ms(0));
        pacing.set_due(true, ms(4));
        // The foreground needed two of six milliseconds, and a tenth of those was the trainer's share.
        pacing.rest(ms(6));
        let Wait::For(time) = pacing.wait(ms(6)) else {
            panic!("it does not wait");
        };
        assert!((time.as_secs_f64() - 0.018).abs() < 1e-6, "{time:?}");
        assert!(matches!(pacing.wait(ms(23)), Wait::For(_)));
        assert_eq!(pacing.wait(ms(6) + time), Wait::No);
    }

    #[test]
    fn the_foreground_s_end_lets_the_trainer_go_and_so_does_the_end_of_all() {
        let mut pacing = pacing(0.0);
        pacing.set_due(true, ms(0));
        pacing.begin(ms(0));
        pacing.rest(ms(5));
        assert_eq!(pacing.wait(ms(1_000_000)), Wait::UntilIdle);
        pacing.set_due(false, ms(1_000_001));
        assert_eq!(pacing.wait(ms(1_000_001)), Wait::No);
        pacing.set_due(true, ms(1_000_002));
        assert_eq!(pacing.wait(ms(1_000_003)), Wait::UntilIdle);
        pacing.closed = true;
        assert_eq!(pacing.wait(ms(1_000_003)), Wait::No);
    }

    #[test]
    fn a_busy_server_leaves_the_trainer_its_share_in_small_pieces() {
        for (share, quantum) in [(0.1, 2), (0.25, 1), (0.02, 3), (1.0, 5)] {
            let mut pacing = pacing(share);
            pacing.set_due(true, ms(0));
            let mut now = ms(0);
            while now < ms(100_000) {
                match pacing.wait(now) {
                    Wait::No => {
                        pacing.begin(now);
                        now += ms(quantum);
                        pacing.rest(now);
                    }
                    Wait::For(time) => now += time,
                    Wait::UntilIdle => panic!("it would starve"),
                }
            }
            let had = pacing.usage.trained.as_secs_f64() / now.as_secs_f64();
            assert!((had - share).abs() < 0.001, "{had} of {share}");
        }
    }

    #[test]
    fn whatever_comes_the_trainer_takes_no_more_than_its_share_and_a_quantum_an_arrival() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for _ in 0..50 {
            let share = rng.random_range(0.01..0.5);
            let mut pacing = pacing(share);
            // An independent account: the foreground's time, and the part of it that the trainer took.
            let (mut due, mut due_time, mut taken, mut longest) = (false, 0.0, 0.0, 0.0f64);
            // A request that arrives while the trainer computes waits for its quantum.
            let mut arrivals = 0.0;
            let mut now = Duration::ZERO;
            for _ in 0..2000 {
                let quantum = Duration::from_micros(rng.random_range(100..6000));
                longest = longest.max(quantum.as_secs_f64());
                let computes = pacing.wait(now) == Wait::No;
                if computes {
                    pacing.begin(now);
                }
                // The foreground starts and ends in the middle of a quantum.
                for _ in 0..2 {
                    now += quantum / 2;
                    if due {
                        due_time += quantum.as_secs_f64() / 2.0;
                        taken += f64::from(u8::from(computes)) * quantum.as_secs_f64() / 2.0;
                    }
                    if rng.random_bool(0.2) {
                        due = !due;
                        arrivals += f64::from(u8::from(due));
                        pacing.set_due(due, now);
                    }
                }
                pacing.rest(now);
                assert!(
                    taken <= share * due_time + (arrivals + 1.0) * longest + 1e-6,
                    "{taken} of {due_time} at {share}"
                );
            }
            assert!(taken > 0.0);
        }
    }

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
