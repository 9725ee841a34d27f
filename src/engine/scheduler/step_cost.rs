//! What a step costs by its number of tokens, as measured: so the scheduler knows how many tokens of one tenant it may add to a
//! step without making it much longer for another.
//!
//! On a CPU a step of 100 tokens takes many times as long as one of a single token, on a GPU hardly longer. The curve is
//! measured instead of assumed: one running mean for each power of two, and straight lines between them.

use std::time::Duration;

/// Powers of two that are told apart: steps of up to 2^16 tokens and longer ones.
const POINTS: usize = 18;

/// How much a new measurement counts beside those before it.
const WEIGHT: f64 = 0.1;

/// A step that takes this many times the mean was held up by something else and counts as this much.
const OUTLIER: f64 = 4.0;

/// Mean tokens and seconds of the steps of about one length.
#[derive(Debug, Clone, Copy)]
struct Point {
    tokens: f64,
    seconds: f64,
}

/// The measured curve.
#[derive(Debug, Clone, Default)]
pub struct StepCost {
    points: [Option<Point>; POINTS],
}

impl StepCost {
    /// Notes that a step of so many tokens took so long.
    pub fn observe(&mut self, tokens: usize, took: Duration) {
        if tokens == 0 {
            return;
        }
        let at = (usize::BITS - (tokens - 1).leading_zeros()) as usize;
        let (tokens, seconds) = (tokens as f64, took.as_secs_f64());
        let point = self.points[at.min(POINTS - 1)].get_or_insert(Point { tokens, seconds });
        point.tokens += WEIGHT * (tokens - point.tokens);
        point.seconds += WEIGHT * (seconds.min(OUTLIER * point.seconds) - point.seconds);
    }

    /// Returns the seconds that a step of so many tokens takes: between two lengths that were measured on the line between them, below
    /// all of them on the line of the two shortest, above all of them in proportion to the longest. Before anything has been
    /// measured, a step costs as much as eight tokens and each token as much as one.
    fn seconds(&self, tokens: f64) -> f64 {
        let mut before: Option<Point> = None;
        let mut measured = self.points.iter().flatten().map(|&point| {
            // Longer steps never count as cheaper.
            let seconds = before.map_or(point.seconds, |b| b.seconds.max(point.seconds));
            let point = Point { seconds, ..point };
            before = Some(point);
            point
        });
        let Some(mut low) = measured.next() else {
            return 8.0 + tokens;
        };
        let Some(mut high) = measured.next() else {
            return low.seconds * tokens / low.tokens;
        };
        for next in measured {
            if high.tokens >= tokens {
                break;
            }
            (low, high) = (high, next);
        }
        if high.tokens < tokens {
            return high.seconds * tokens / high.tokens;
        }
        let slope = (high.seconds - low.seconds) / (high.tokens - low.tokens).max(1e-9);
        let on_line = low.seconds + slope * (tokens - low.tokens);
        // A step of a part of the tokens takes that part of the time at least.
        on_line.max(low.seconds * (tokens / low.tokens).min(1.0))
    }

    /// Returns the most tokens, up to `most`, of a step that takes at most `times` as long as one of `tokens`; at least `tokens`.
    pub fn tokens_within(&self, times: f64, tokens: usize, most: usize) -> usize {
        let limit = times * self.seconds(tokens as f64);
        let (mut fits, mut too_many) = (tokens, most + 1);
        while fits + 1 < too_many {
            let middle = fits + (too_many - fits) / 2;
            match self.seconds(middle as f64) <= limit {
                true => fits = middle,
                false => too_many = middle,
            }
        }
        fits.min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(cost: impl Fn(usize) -> f64, tokens: &[usize]) -> StepCost {
        let mut curve = StepCost::default();
        for _ in 0..100 {
            for &tokens in tokens {
                curve.observe(tokens, Duration::from_secs_f64(cost(tokens)));
            }
        }
        curve
    }

    #[test]
    fn a_cpu_has_few_tokens_to_spare_and_a_gpu_many() {
        let lengths = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
        let cpu = measured(|tokens| 0.31e-3 + 0.1e-3 * tokens as f64, &lengths);
        assert_eq!(cpu.tokens_within(2.0, 1, 512), 5);
        let gpu = measured(|tokens| 10e-3 + 0.05e-3 * tokens as f64, &lengths);
        assert!((195..=210).contains(&gpu.tokens_within(2.0, 1, 512)));
        assert_eq!(gpu.tokens_within(4.0, 1, 512), 512);
    }

    #[test]
    fn what_was_not_measured_is_estimated_from_its_neighbours() {
        let curve = measured(|tokens| tokens as f64, &[10, 100]);
        assert!((curve.seconds(1.0) - 1.0).abs() < 1e-6);
        assert!((curve.seconds(55.0) - 55.0).abs() < 1e-6);
        assert!((curve.seconds(1000.0) - 1000.0).abs() < 1e-6);
        assert_eq!(StepCost::default().tokens_within(2.0, 1, 512), 10);
        assert_eq!(StepCost::default().tokens_within(2.0, 1, 4), 4);
    }

    #[test]
    fn one_step_that_was_held_up_changes_little() {
        let mut curve = measured(|_| 1.0, &[1]);
        curve.observe(1, Duration::from_secs(1000));
        assert!(curve.seconds(1.0) < 1.5);
    }
}
