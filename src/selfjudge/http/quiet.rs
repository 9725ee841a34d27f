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
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    /// Start of the current interval.
    begun: Option<Instant>,
    said: u64,
    unsaid: u64,
}

impl Quiet {
    pub fn new(every: Duration, burst: u64) -> Self {
        Self {
            every,
            burst,
            said: Mutex::default(),
        }
    }

    /// Returns the number of lines omitted since the last logged one if the next line may be logged, and otherwise none.
    pub fn say(&self) -> Option<u64> {
        self.say_at(Instant::now())
    }

    fn say_at(&self, now: Instant) -> Option<u64> {
        // Consistent after every change.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |begun: Instant| now.saturating_duration_since(begun) < self.every;
        if !said.begun.is_some_and(within) {
            (said.begun, said.said) = (Some(now), 0);
        }
        if said.said >= self.burst {
            said.unsaid += 1;
            return None;
        }
        said.said += 1;
        Some(std::mem::take(&mut said.unsaid))
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
    pub fn say(&self, reason: &'static str) -> Option<u64> {
        // Consistent after every change.
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = reasons
            .entry(reason)
            .or_insert_with(|| Quiet::new(self.every, self.burst));
        quiet.say()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_in_a_while_are_said_with_the_number_of_the_others() {
        let quiet = Quiet::new(Duration::from_secs(1), 1);
        let start = Instant::now();
        let said = [0, 10, 999, 1000, 1500, 9000]
            .map(|ms| quiet.say_at(start + Duration::from_millis(ms)));
        assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1)]);
        let few = Quiet::new(Duration::from_secs(1), 2);
        let said = [0, 10, 20, 999, 1000, 1001, 1002]
            .map(|ms| few.say_at(start + Duration::from_millis(ms)));
        let expected = [Some(0), Some(0), None, None, Some(2), Some(0), None];
        assert_eq!(said, expected);
    }
}
