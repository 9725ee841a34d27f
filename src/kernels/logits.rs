//! The operations of sampling on one row of logits: check for finite values, maximum, and relative weights.
//!
//! A row is read in one fixed order, so a result depends on the row alone. Vocabularies are large (49,152 is common) and
//! every sequence needs these at every step, so they are vector code.

use super::cpu::{exp, multiversioned};

/// The number of values whose maximum is computed together.
const BLOCK: usize = 512;

/// Below this exponent, e^x is negligible beside the 1 of the largest logit, and counts as 0.
const LEAST_EXPONENT: f32 = -87.0;

multiversioned! {
    /// Returns whether all values are finite.
    pub fn all_finite(row: &[f32]) -> bool {
        const EXPONENT: u32 = 0x7f80_0000;
        // No early return: that would be a branch for every value.
        row.iter().fold(0u32, |bad, x| bad | u32::from(x.to_bits() & EXPONENT == EXPONENT)) == 0
    }
}

multiversioned! {
    fn block_max(block: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 32];
        let (whole, rest) = block.as_chunks::<32>();
        for values in whole {
            for (lane, x) in lanes.iter_mut().zip(values) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Returns the largest value; -inf for an empty row.
pub fn max(row: &[f32]) -> f32 {
    row.chunks(BLOCK)
        .map(block_max)
        .fold(f32::NEG_INFINITY, f32::max)
}

/// Returns the index of the first of the largest values; 0 for an empty row.
pub fn argmax(row: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, block) in row.chunks(BLOCK).enumerate() {
        let max = block_max(block);
        if max > best.1 {
            best = (index * BLOCK, max);
        }
    }
    let within = row[best.0.min(row.len())..].iter();
    best.0 + within.take(BLOCK).position(|&x| x == best.1).unwrap_or(0)
}

multiversioned! {
    fn weigh(row: &[f32], max: f32, temperature: f32, weights: &mut [f32]) {
        for (weight, &x) in weights.iter_mut().zip(row) {
            let exponent = (x - max) / temperature;
            *weight = if exponent < LEAST_EXPONENT { 0.0 } else { exp(exponent) };
        }
    }
}

/// Returns `e^((x - max) / temperature)` of every value: probabilities up to a common factor. The largest value has weight 1, and -inf
/// has weight 0.
pub fn weights(row: &[f32], temperature: f32) -> Vec<f32> {
    let mut weights = vec![0f32; row.len()];
    weigh(row, max(row), temperature, &mut weights);
    weights
}

multiversioned! {
    /// Returns the sum, in f64.
    pub fn sum(values: &[f32]) -> f64 {
        let mut lanes = [0f64; 16];
        let (whole, rest) = values.as_chunks::<16>();
        for values in whole {
            for (lane, x) in lanes.iter_mut().zip(values) {
                *lane += f64::from(*x);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn row(len: usize) -> Vec<f32> {
        random(&[len], len as u64)
            .to_vec1()
            .expect("f32 on the CPU")
    }

    #[test]
    fn they_are_what_plain_loops_say_on_odd_lengths() {
        for len in [1, 31, 32, 33, 511, 512, 513, 2000] {
            let mut row = row(len);
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&row), largest);
            assert_eq!(
                Some(argmax(&row)),
                row.iter().position(|&x| x == largest),
                "{len}"
            );
            for (weight, x) in weights(&row, 0.5).iter().zip(&row) {
                let want = (f64::from(x - largest) / 0.5).exp();
                assert!((f64::from(*weight) - want).abs() < 1e-6 * want, "{len}");
            }
            let total: f64 = row.iter().map(|&x| f64::from(x)).sum();
            assert!((sum(&row) - total).abs() < 1e-9);
            assert!(all_finite(&row));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                row[len - 1] = bad;
                assert!(!all_finite(&row));
            }
        }
    }

    #[test]
    fn ties_fall_to_the_first_and_impossible_values_weigh_nothing() {
        let mut row = vec![1.0; 1200];
        assert_eq!(argmax(&row), 0);
        row[700] = 2.0;
        row[1100] = 2.0;
        row[3] = f32::NEG_INFINITY;
        row[4] = -1e30;
        assert_eq!(argmax(&row), 700);
        let weights = weights(&row, 1e-3);
        assert_eq!((weights[3], weights[4], weights[700]), (0.0, 0.0, 1.0));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), 0);
        assert_eq!(argmax(&[]), 0);
    }
}
