//! Sampling of a token from logits, and the log-probability of a token.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The random draws of one sequence: each has its own stream, so other sequences do not affect it.
pub(super) struct Draws(ChaCha8Rng);

impl Draws {
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Draws a token from `softmax(logits / temperature)`; returns the most probable one at temperature 0.
    pub fn draw(&mut self, logits: &[f32], temperature: f32) -> u32 {
        let (best, max) =
            logits
                .iter()
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |best, (i, &z)| {
                    if z > best.1 { (i, z) } else { best }
                });
        if temperature <= 0.0 {
            return best as u32;
        }
        let weights: Vec<f64> = logits
            .iter()
            .map(|&z| (f64::from(z - max) / f64::from(temperature)).exp())
            .collect();
        let mut left = self.0.random::<f64>() * weights.iter().sum::<f64>();
        for (i, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return i as u32;
            }
        }
        best as u32
    }
}

/// Returns `log softmax(logits)[at]`, summed in f64.
pub(super) fn log_softmax_at(logits: &[f32], at: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - max).exp()).sum();
    (f64::from(logits[at] - max) - sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_zero_is_the_argmax() {
        assert_eq!(Draws::new(1, 0).draw(&[0.0, 3.0, 2.0], 0.0), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0, 2f32.ln(), f32::NEG_INFINITY];
        let mut draws = Draws::new(7, 3);
        let n = 30_000;
        let ones = (0..n).filter(|_| draws.draw(&logits, 1.0) == 1).count();
        let share = ones as f64 / f64::from(n);
        assert!((share - 2.0 / 3.0).abs() < 0.01, "{share}");
        // At half the temperature the odds are squared.
        let ones = (0..n).filter(|_| draws.draw(&logits, 0.5) == 1).count();
        let share = ones as f64 / f64::from(n);
        assert!((share - 0.8).abs() < 0.01, "{share}");
    }

    #[test]
    fn log_softmax_sums_to_one() {
        let logits = [1.0, -2.0, 30.0, 0.5];
        let sum: f32 = (0..4).map(|i| log_softmax_at(&logits, i).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }
}
