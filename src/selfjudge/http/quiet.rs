//! Rate-limited log lines, so that no client can flood the log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Limits the number of equal log lines per interval.
#[derive(Debug)]
pub struct Quiet {
    every: Duration,
    /// Maximum lines per interval.
    burst: u64,
    interval: Mutex<Interval>,
}

/// The current interval.
#[derive(Debug, Default)]
struct Interval {
    begun: Option<Instant>,
    /// Lines that were logged.
    logged: u64,
    /// Lines that were omitted since the last logged one, also in earlier intervals.
    omitted: u64,
}

impl Quiet {
    pub fn new(every: Duration, burst: u64) -> Self {
        Self {
            every,
            burst,
            interval: Mutex::default(),
        }
    }

    /// Returns the number of lines omitted since the last logged one if the next line may be logged, and otherwise none.
    pub fn next_line(&self) -> Option<u64> {
        self.omitted_at(Instant::now())
    }

    fn omitted_at(&self, now: Instant) -> Option<u64> {
        // Consistent after every change.
        let mut interval = self.interval.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |begun: Instant| now.saturating_duration_since(begun) < self.every;
        if !interval.begun.is_some_and(within) {
            (interval.begun, interval.logged) = (Some(now), 0);
        }
        if interval.logged >= self.burst {
            interval.omitted += 1;
            return None;
        }
        interval.logged += 1;
        Some(std::mem::take(&mut interval.omitted))
    }
}

/// One [`Quiet`] for each of a few reasons.
#[derive(Debug)]
pub struct QuietByReason {
    every: Duration,
    burst: u64,
    reasons: Mutex<HashMap<&'static str, Quiet>>,
}

impl QuietByReason {
    pub fn new(every: Duration, burst: u64) -> Self {
        Self {
            every,
            burst,
            reasons: Mutex::default(),
        }
    }

    /// Applies [`Quiet::say`] to this reason.
    pub fn next_line(&self, reason: &'static str) -> Option<u64> {
        // Consistent after every change.
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = reasons
            .entry(reason)
            .or_insert_with(|| Quiet::new(self.every, self.burst));
        quiet.next_line()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_in_a_while_are_said_with_the_number_of_the_others() {
        let quiet = Quiet::new(Duration::from_secs(1), 1);
        let start = Instant::now();
        let logged = [0, 10, 999, 1000, 1500, 9000]
            .map(|ms| quiet.omitted_at(start + Duration::from_millis(ms)));
        assert_eq!(logged, [Some(0), None, None, Some(2), None, Some(1)]);
        let few = Quiet::new(Duration::from_secs(1), 2);
        let logged = [0, 10, 20, 999, 1000, 1001, 1002]
            .map(|ms| few.omitted_at(start + Duration::from_millis(ms)));
        let expected = [Some(0), Some(0), None, None, Some(2), Some(0), None];
        assert_eq!(logged, expected);
    }
}
