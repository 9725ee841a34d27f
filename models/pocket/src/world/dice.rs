//! Reproducible randomness: a numbered ChaCha stream, and the kinds of draws that the pocket world needs.
//!
//! The draws are implemented here, over raw words of the stream, so that a seed keeps its meaning if
//! `rand` changes how it samples ranges.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// One random stream of a seed.
#[derive(Debug, Clone)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// Creates stream `stream` of `seed`; streams of one seed are independent, so records can be made in any order.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Returns a number in `0..n`. `n` must not be zero.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias of the multiply-shift is below n / 2^32, far below the resolution of any table here.
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// Returns a number in `low..=high`.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below((high - low + 1) as usize) as u32
    }

    /// Returns a number in `0..1`.
    pub fn unit(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / 4_294_967_296.0
    }

    /// Returns true with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Returns an element of a slice, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Returns an index with probability proportional to its weight.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        for (index, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return index;
            }
        }
        weights.len() - 1
    }

    /// Shuffles a slice.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_keeps_its_meaning() {
        let mut dice = Dice::new(7, 3);
        let drawn: Vec<usize> = (0..8).map(|_| dice.below(100)).collect();
        assert_eq!(drawn, {
            let mut again = Dice::new(7, 3);
            (0..8).map(|_| again.below(100)).collect::<Vec<_>>()
        });
        let mut other = Dice::new(7, 4);
        assert_ne!(drawn, (0..8).map(|_| other.below(100)).collect::<Vec<_>>());
    }

    #[test]
    fn draws_cover_their_range_evenly() {
        let mut dice = Dice::new(1, 0);
        let mut counts = [0usize; 5];
        for _ in 0..10_000 {
            counts[dice.below(5)] += 1;
        }
        assert!(
            counts.iter().all(|&c| (1800..2200).contains(&c)),
            "{counts:?}"
        );
        let share = (0..10_000)
            .filter(|_| dice.weighted(&[1.0, 3.0]) == 1)
            .count();
        assert!((7300..7700).contains(&share), "{share}");
    }
}
