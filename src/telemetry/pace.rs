//! The rate at which a queue moves, and from it the time after which a rejected caller should retry.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Seconds after which a departure counts 1/e of a new one.
const MEMORY: f64 = 10.0;

/// The bounds of the retry time for a rejected caller, in seconds.
const LEAST: f64 = 1.0;
const MOST: f64 = 60.0;

/// Counts arrivals and departures. Cloning shares the count.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Mutex<Departures>>);

/// An entry in the queue, which leaves it when dropped.
#[derive(Debug)]
pub struct InQueue(Pace);

/// Departures while the queue was not empty, with decaying weights: an empty queue does not show how fast a full one moves.
#[derive(Debug, Clone)]
struct Departures {
    inside: usize,
    at: Instant,
    /// Seconds in which the queue was not empty.
    busy: f64,
    weight: f64,
}

impl Departures {
    fn new(now: Instant) -> Self {
        Self {
            inside: 0,
            at: now,
            busy: 0.0,
            weight: 0.0,
        }
    }

    fn advance(&mut self, now: Instant) {
        if self.inside > 0 {
            let passed = now.saturating_duration_since(self.at).as_secs_f64();
            self.weight *= (-passed / MEMORY).exp();
            self.busy += passed;
        }
        self.at = now;
    }

    fn enter(&mut self, now: Instant) {
        self.advance(now);
        self.inside += 1;
    }

    fn leave(&mut self, now: Instant) {
        self.advance(now);
        self.inside -= 1;
        self.weight += 1.0;
    }

    /// Returns the departures per second; `None` before the first.
    fn per_second(&self) -> Option<f64> {
        // The total weight of a steady departure per second over the observed time.
        let seen = MEMORY * (1.0 - (-self.busy / MEMORY).exp());
        (self.weight > 0.0 && seen > 0.0).then(|| self.weight / seen)
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Departures::new(Instant::now()))))
    }
}

impl Pace {
    fn with<T>(&self, what: impl FnOnce(&mut Departures, Instant) -> T) -> T {
        let mut departures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        what(&mut departures, Instant::now())
    }

    pub fn enter(&self) -> InQueue {
        self.with(Departures::enter);
        InQueue(self.clone())
    }

    /// Returns the seconds after which all current entries will have left, see [`retry_after`].
    pub fn retry_after(&self) -> u64 {
        self.with(|departures, now| {
            departures.advance(now);
            retry_after(departures.inside, departures.per_second())
        })
    }
}

impl Drop for InQueue {
    fn drop(&mut self) {
        self.0.with(Departures::leave);
    }
}

/// Returns the seconds until `waiting` entries have left at `per_second`, rounded up, from 1 to 60; 1 before the first measurement.
pub fn retry_after(waiting: usize, per_second: Option<f64>) -> u64 {
    let seconds = per_second.map_or(LEAST, |pace| waiting as f64 / pace);
    // A rate of 0 gives infinity, or NaN if there is no entry.
    let seconds = if seconds.is_nan() { LEAST } else { seconds };
    Duration::from_secs_f64(seconds.ceil().clamp(LEAST, MOST)).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_queue_over_its_pace_within_bounds() {
        for (waiting, pace, seconds) in [
            (0, None, 1),
            (500, None, 1),
            (0, Some(5.0), 1),
            (3, Some(5.0), 1),
            (11, Some(5.0), 3),
            (1024, Some(100.0), 11),
            (1024, Some(0.1), 60),
            (1, Some(0.0), 60),
            (0, Some(0.0), 1),
            (usize::MAX, Some(f64::MIN_POSITIVE), 60),
        ] {
            assert_eq!(retry_after(waiting, pace), seconds, "{waiting} at {pace:?}");
        }
    }

    #[test]
    fn the_pace_is_that_of_the_last_seconds_in_which_somebody_waited() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut departures = Departures::new(start);
        assert_eq!(departures.per_second(), None);
        // An hour without arrivals changes nothing.
        let hour = 3600.0;
        for _ in 0..1000 {
            departures.enter(at(hour));
        }
        let mut now = hour;
        for _ in 0..200 {
            now += 0.25;
            departures.leave(at(now));
        }
        let pace = departures.per_second().unwrap();
        assert!((pace - 4.0).abs() < 0.2, "{pace}");
        // Ten times as slow: after a while the old rate no longer counts.
        for _ in 0..30 {
            now += 2.5;
            departures.leave(at(now));
        }
        let pace = departures.per_second().unwrap();
        assert!((0.3..0.5).contains(&pace), "{pace}");
        // No entry leaves any more.
        departures.advance(at(now + 600.0));
        assert_eq!(
            retry_after(departures.inside, departures.per_second()),
            MOST as u64
        );
    }

    #[test]
    fn who_is_dropped_has_left() {
        let pace = Pace::default();
        let inside = [pace.enter(), pace.enter()];
        assert_eq!(pace.with(|departures, _| departures.inside), 2);
        drop(inside);
        let (inside, weight) = pace.with(|departures, _| (departures.inside, departures.weight));
        assert_eq!(inside, 0);
        assert!(weight > 0.0 && weight <= 2.0, "{weight}");
    }
}
