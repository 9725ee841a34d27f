//! Log lines that whoever causes them cannot flood the log with.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Says one of many equal things in a while.
#[derive(Debug)]
pub struct Quiet {
    every: Duration,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    unsaid: u64,
}

impl Quiet {
    pub fn new(every: Duration) -> Self {
        Self {
            every,
            said: Mutex::default(),
        }
    }

    /// Returns how many were left out since the last that was said if this one is to be said, and otherwise nothing.
    pub fn say(&self) -> Option<u64> {
        self.say_at(Instant::now())
    }

    fn say_at(&self, now: Instant) -> Option<u64> {
        // Whole after every change.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let early = |last: Instant| now.saturating_duration_since(last) < self.every;
        if said.last.is_some_and(early) {
            said.unsaid += 1;
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.unsaid))
    }
}

/// One [`Quiet`] for each of a few reasons.
#[derive(Debug)]
pub struct QuietByReason {
    every: Duration,
    reasons: Mutex<HashMap<&'static str, Quiet>>,
}

impl QuietByReason {
    pub fn new(every: Duration) -> Self {
        Self {
            every,
            reasons: Mutex::default(),
        }
    }

    /// [`Quiet::say`] for this reason.
    pub fn say(&self, reason: &'static str) -> Option<u64> {
        // Whole after every change.
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = reasons
            .entry(reason)
            .or_insert_with(|| Quiet::new(self.every));
        quiet.say()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_while_is_said_with_the_number_of_the_others() {
        let quiet = Quiet::new(Duration::from_secs(1));
        let start = Instant::now();
        let said = [0, 10, 999, 1000, 1500, 9000]
            .map(|ms| quiet.say_at(start + Duration::from_millis(ms)));
        assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
