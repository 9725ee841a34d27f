//! How fast a queue moves, and so when it is worth coming back to one that is full.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Seconds after which a departure counts for 1/e of a fresh one.
const MEMORY: f64 = 10.0;

/// What a caller who is turned away is told at least and at most, in seconds.
const LEAST: f64 = 1.0;
const MOST: f64 = 60.0;

/// Counts who comes and goes. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Mutex<Departures>>);

/// Somebody in the queue, until dropped.
#[derive(Debug)]
pub struct InQueue(Pace);

/// Departures while somebody was there, the older the lighter: an empty queue says nothing about how fast a full one moves.
#[derive(Debug, Clone)]
struct Departures {
    inside: usize,
    at: Instant,
    /// Seconds in which somebody was inside.
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

    /// Departures a second; `None` before the first.
    fn per_second(&self) -> Option<f64> {
        // What the weights of a steady departure a second add up to in the time that has been seen.
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

    /// Seconds after which those who are inside now will have left, see [`retry_after`].
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

/// Seconds until `waiting` have left at `per_second`, rounded up, from 1 to 60. Before anything was measured it is 1.
pub fn retry_after(waiting: usize, per_second: Option<f64>) -> u64 {
    let seconds = per_second.map_or(LEAST, |pace| waiting as f64 / pace);
    // A pace of 0 gives infinity, or no number where nobody waits.
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
        // An hour in which nobody comes changes nothing.
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
        // Ten times as slow: after a while the old pace is forgotten.
        for _ in 0..30 {
            now += 2.5;
            departures.leave(at(now));
        }
        let pace = departures.per_second().unwrap();
        assert!((0.3..0.5).contains(&pace), "{pace}");
        // Nothing moves any more.
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
