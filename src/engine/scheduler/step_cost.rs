//! The cost of a step by its tokens and their contexts, as measured. With it the scheduler decides how many tokens of one tenant it can
//! add to a step without making it much longer for another.
//!
//! On a CPU a step of 100 tokens takes many times as long as one of a single token, on a GPU hardly longer. The curve is
//! measured instead of assumed: one running mean for each power of two, with linear interpolation between them. The additional cost of a
//! position of context is measured as well, as the slope of the steps' times around those means.

use std::ops::Add;
use std::time::Duration;

/// The number of powers of two that are distinguished: steps of up to 2^16 tokens, and longer ones.
const POINTS: usize = 18;

/// The weight of a new measurement in a running mean.
const WEIGHT: f64 = 0.1;

/// The weight of a new measurement of the slope: it is one of differences, which are noisier.
const SLOPE_WEIGHT: f64 = 0.01;

/// A step that takes more than this many times the mean was delayed by something else; it counts as this many times the mean.
const OUTLIER: f64 = 4.0;

/// Short contexts make a step cheaper than the mean of its length, but not below this fraction of it.
const CHEAPEST: f64 = 0.25;

/// The work of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// The number of computed tokens.
    pub tokens: usize,
    /// The number of positions that they attend to, summed over the tokens.
    pub positions: usize,
}

/// Mean tokens, positions and seconds of the steps of similar length.
#[derive(Debug, Clone, Copy)]
struct Point {
    tokens: f64,
    positions: f64,
    seconds: f64,
}

/// The measured curve.
#[derive(Debug, Clone, Default)]
pub struct StepCost {
    points: [Option<Point>; POINTS],
    /// Statistics of positions per token and seconds per token, about the means of their length: covariance, and variance of the positions.
    covariance: f64,
    variance: f64,
}

impl Work {
    /// Returns the work of computing `tokens` after `context` positions.
    pub fn after(context: usize, tokens: usize) -> Self {
        let positions = tokens * context + tokens * (tokens + 1) / 2;
        Self { tokens, positions }
    }

    /// Returns the work of `tokens` tokens with contexts of the same mean length.
    pub fn part(self, tokens: usize) -> Self {
        let positions = (tokens as f64 * self.positions_a_token()) as usize;
        Self { tokens, positions }
    }

    /// Returns the work of `count` requests of this work each.
    pub fn times(self, count: usize) -> Self {
        Self {
            tokens: count * self.tokens,
            positions: count * self.positions,
        }
    }

    fn positions_a_token(self) -> f64 {
        self.positions as f64 / self.tokens.max(1) as f64
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            positions: self.positions + other.positions,
        }
    }
}

impl StepCost {
    /// Records the duration of a step.
    pub fn observe(&mut self, work: Work, took: Duration) {
        if work.tokens == 0 {
            return;
        }
        let at = (usize::BITS - (work.tokens - 1).leading_zeros()) as usize;
        let (tokens, positions) = (work.tokens as f64, work.positions as f64);
        let seconds = took.as_secs_f64();
        let point = self.points[at.min(POINTS - 1)].get_or_insert(Point {
            tokens,
            positions,
            seconds,
        });
        let seconds = seconds.min(OUTLIER * point.seconds);
        let more_positions = (positions - point.positions) / tokens;
        let more_seconds = (seconds - point.seconds) / tokens;
        self.covariance += SLOPE_WEIGHT * (more_positions * more_seconds - self.covariance);
        self.variance += SLOPE_WEIGHT * (more_positions * more_positions - self.variance);
        point.tokens += WEIGHT * (tokens - point.tokens);
        point.positions += WEIGHT * (positions - point.positions);
        point.seconds += WEIGHT * (seconds - point.seconds);
    }

    /// Returns whether a step has been measured.
    pub fn is_measured(&self) -> bool {
        self.points.iter().any(Option::is_some)
    }

    /// Returns the seconds that one position adds to a step.
    fn seconds_a_position(&self) -> f64 {
        match self.variance > 0.0 {
            true => (self.covariance / self.variance).max(0.0),
            false => 0.0,
        }
    }

    /// Returns the seconds that a step takes.
    fn seconds(&self, tokens: f64, positions: f64) -> f64 {
        let mean = self.mean(tokens);
        let more = self.seconds_a_position() * (positions - mean.positions);
        (mean.seconds + more).max(CHEAPEST * mean.seconds)
    }

    /// Returns the mean of steps of this many tokens: between two measured lengths by linear interpolation, below all of them on the line
    /// through the two shortest, above all of them in proportion to the longest. Before the first measurement, a step costs as
    /// much as eight tokens and each token as much as one.
    fn mean(&self, tokens: f64) -> Point {
        let mut before: Option<Point> = None;
        let mut measured = self.points.iter().flatten().map(|&point| {
            // The curve never falls: a longer step counts as at least as expensive as a shorter one.
            let seconds = before.map_or(point.seconds, |b| b.seconds.max(point.seconds));
            let point = Point { seconds, ..point };
            before = Some(point);
            point
        });
        let Some(mut low) = measured.next() else {
            return Point {
                tokens,
                positions: 0.0,
                seconds: 8.0 + tokens,
            };
        };
        let Some(mut high) = measured.next() else {
            return low.times(tokens / low.tokens);
        };
        for next in measured {
            if high.tokens >= tokens {
                break;
            }
            (low, high) = (high, next);
        }
        if high.tokens < tokens {
            return high.times(tokens / high.tokens);
        }
        let part = (tokens - low.tokens) / (high.tokens - low.tokens).max(1e-9);
        let on_line = |low: f64, high: f64| low + part * (high - low);
        // A step of a fraction of the tokens takes at least that fraction of the time, and of the positions.
        let least = low.times((tokens / low.tokens).min(1.0));
        Point {
            tokens,
            positions: on_line(low.positions, high.positions).max(least.positions),
            seconds: on_line(low.seconds, high.seconds).max(least.seconds),
        }
    }

    /// Returns the largest number of tokens, up to `most`, of a step that takes at most `times` as long as one of `own` work, where the
    /// tokens beyond `own` are like those of `others`; at least the tokens of `own`.
    pub fn tokens_within(&self, times: f64, own: Work, others: Work, most: usize) -> usize {
        self.tokens_in(Duration::ZERO, times, own, others, most)
    }

    /// Works as [`Self::tokens_within`] for a step that takes at most `limit`, if that is longer than `times` the duration of `own`.
    pub fn tokens_in(
        &self,
        limit: Duration,
        times: f64,
        own: Work,
        others: Work,
        most: usize,
    ) -> usize {
        let (tokens, positions) = (own.tokens as f64, own.positions as f64);
        let limit = limit
            .as_secs_f64()
            .max(times * self.seconds(tokens, positions));
        let each = others.positions_a_token();
        let takes = |all: usize| self.seconds(all as f64, positions + each * (all as f64 - tokens));
        let (mut fits, mut too_many) = (own.tokens, most + 1);
        while fits + 1 < too_many {
            let middle = fits + (too_many - fits) / 2;
            match takes(middle) <= limit {
                true => fits = middle,
                false => too_many = middle,
            }
        }
        fits.min(most)
    }

    /// Returns the number of drafts, up to `most`, with which a sequence of `own` work gets its tokens fastest; 0 unless the drafts save at
    /// least the part `margin` of the time. A draft that follows accepted ones is accepted with the probability `accepted`.
    pub fn drafts_that_pay(&self, own: Work, accepted: f64, most: usize, margin: f64) -> usize {
        let alone = self.seconds(own.tokens as f64, own.positions as f64);
        let (mut best, mut least) = (0, (1.0 - margin) * alone);
        // The expected number of tokens of a step with `drafts` drafts is 1 + accepted + ... + accepted^drafts.
        let (mut tokens, mut chance) = (1.0, 1.0);
        for drafts in 1..=most {
            chance *= accepted;
            tokens += chance;
            let work = own.part(own.tokens + drafts);
            let a_token = self.seconds(work.tokens as f64, work.positions as f64) / tokens;
            if a_token < least {
                (best, least) = (drafts, a_token);
            }
        }
        best
    }
}

impl Point {
    fn times(self, factor: f64) -> Self {
        Self {
            tokens: factor * self.tokens,
            positions: factor * self.positions,
            seconds: factor * self.seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the work of tokens without contexts.
    fn bare(tokens: usize) -> Work {
        Work {
            tokens,
            positions: 0,
        }
    }

    fn measured(cost: impl Fn(usize) -> f64, tokens: &[usize]) -> StepCost {
        let mut curve = StepCost::default();
        for _ in 0..100 {
            for &tokens in tokens {
                curve.observe(bare(tokens), Duration::from_secs_f64(cost(tokens)));
            }
        }
        curve
    }

    /// Returns the tokens that fit into `times` the duration of one token, without contexts.
    fn within(curve: &StepCost, times: f64, most: usize) -> usize {
        curve.tokens_within(times, bare(1), bare(1), most)
    }

    #[test]
    fn a_cpu_has_few_tokens_to_spare_and_a_gpu_many() {
        let lengths = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
        let cpu = measured(|tokens| 0.31e-3 + 0.1e-3 * tokens as f64, &lengths);
        assert_eq!(within(&cpu, 2.0, 512), 5);
        let gpu = measured(|tokens| 10e-3 + 0.05e-3 * tokens as f64, &lengths);
        assert!((195..=210).contains(&within(&gpu, 2.0, 512)));
        assert_eq!(within(&gpu, 4.0, 512), 512);
    }

    #[test]
    fn what_was_not_measured_is_estimated_from_its_neighbours() {
        let curve = measured(|tokens| tokens as f64, &[10, 100]);
        assert!((curve.seconds(1.0, 0.0) - 1.0).abs() < 1e-6);
        assert!((curve.seconds(55.0, 0.0) - 55.0).abs() < 1e-6);
        assert!((curve.seconds(1000.0, 0.0) - 1000.0).abs() < 1e-6);
        assert_eq!(within(&StepCost::default(), 2.0, 512), 10);
        assert_eq!(within(&StepCost::default(), 2.0, 4), 4);
    }

    #[test]
    fn one_step_that_was_held_up_changes_little() {
        let mut curve = measured(|_| 1.0, &[1]);
        curve.observe(bare(1), Duration::from_secs(1000));
        assert!(curve.seconds(1.0, 0.0) < 1.5);
    }

    #[test]
    fn drafts_pay_where_a_longer_step_costs_little_and_they_are_accepted() {
        let lengths = [1, 2, 4, 8, 16];
        let bound_by_memory = measured(|tokens| 20e-3 + 0.5e-3 * tokens as f64, &lengths);
        let pay = |curve: &StepCost, accepted| curve.drafts_that_pay(bare(1), accepted, 8, 0.05);
        assert_eq!(pay(&bound_by_memory, 0.95), 8);
        assert_eq!(pay(&bound_by_memory, 0.02), 0);
        assert!((1..8).contains(&pay(&bound_by_memory, 0.3)));
        let bound_by_arithmetic = measured(|tokens| 1e-3 * tokens as f64, &lengths);
        assert_eq!(pay(&bound_by_arithmetic, 0.95), 0);
    }

    #[test]
    fn long_contexts_cost_what_they_have_cost() {
        // A position costs a hundredth of a token.
        let cost = |work: Work| 10.0 + work.tokens as f64 + 0.01 * work.positions as f64;
        let mut curve = StepCost::default();
        for round in 0..2000 {
            for tokens in [1, 2, 4, 8, 16, 32] {
                let work = Work::after(round * 37 % 400, tokens);
                curve.observe(work, Duration::from_secs_f64(cost(work)));
            }
        }
        let a_position = curve.seconds_a_position();
        assert!((a_position - 0.01).abs() < 0.001, "{a_position}");
        let (short, long) = (Work::after(20, 1), Work::after(399, 1));
        let among = |others| curve.tokens_within(1.5, short, others, 512);
        // 5.6 seconds more: five tokens of short contexts, or one of long ones.
        assert_eq!(among(long), 2);
        assert!((4..=6).contains(&among(short)), "{}", among(short));
    }

    #[test]
    fn a_chunk_attends_to_what_is_before_it_and_to_itself() {
        assert_eq!(Work::after(10, 3).positions, 11 + 12 + 13);
        let both = Work::after(0, 1) + Work::after(5, 2);
        assert_eq!((both.tokens, both.positions), (3, 1 + 6 + 7));
    }
}
