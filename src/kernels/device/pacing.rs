//! The policy of sharing a device between serving and training: when the trainer's next quantum can start.

use std::time::Duration;

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

/// The time that the trainer has to wait before a quantum can start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wait {
    No,
    /// For this time, or until the foreground no longer needs the device.
    For(Duration),
    UntilIdle,
}

/// What the trainer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainer {
    Resting,
    /// Between the end of one quantum and the start of the next.
    Waiting,
    Computing,
}

/// The policy. Times are of any monotonic clock.
///
/// A quantum adds to the *debt* the time that it takes while the foreground needs the device, and that time repays the debt at the rate
/// of the trainer's share. No quantum starts in debt while the foreground needs the device.
#[derive(Debug)]
pub struct Pacing {
    config: ArbiterConfig,
    due: bool,
    pub trainer: Trainer,
    pub closed: bool,
    /// The debt in seconds.
    pub debt: f64,
    /// The time up to which everything is accounted for.
    now: Duration,
    pub usage: ArbiterUsage,
}

impl Pacing {
    pub fn new(config: ArbiterConfig) -> Self {
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

    pub fn advance(&mut self, now: Duration) {
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

    pub fn set_due(&mut self, due: bool, now: Duration) {
        self.advance(now);
        self.due = due;
    }

    pub fn rest(&mut self, now: Duration) {
        self.advance(now);
        self.trainer = Trainer::Resting;
    }

    pub fn begin(&mut self, now: Duration) {
        self.advance(now);
        self.trainer = Trainer::Computing;
    }

    /// Returns the wait of a trainer that is ready to start a quantum.
    pub fn wait(&mut self, now: Duration) -> Wait {
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
}
