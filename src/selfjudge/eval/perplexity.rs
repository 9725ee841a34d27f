//! Perplexity of a model on a text, and the agreement of its most probable tokens with those of another one.

use std::fmt;

use serde::Serialize;

use super::EvalError;
use engine::InlineEngine;

/// The readings of a text: for each token but the first of its window, its log-probability and the most probable token instead.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readings(Vec<(f32, u32)>);

impl Readings {
    /// Reads windows of tokens, each without the tokens before it. `progress` is called with the number of windows read since its last call.
    ///
    /// # Errors
    /// Errors of the engine.
    pub fn of(
        engine: &mut InlineEngine,
        windows: &[Vec<u32>],
        mut progress: impl FnMut(usize),
    ) -> Result<Self, EvalError> {
        let mut readings = Vec::new();
        for some in windows.chunks(8) {
            for window in engine.prompt_logprobs(some, 1)? {
                readings.extend(window.into_iter().map(|token| {
                    let logprobs = token.logprobs;
                    let best = logprobs.top.first().map_or(u32::MAX, |(id, _)| *id);
                    (logprobs.token, best)
                }));
            }
            progress(some.len());
        }
        Ok(Self(readings))
    }

    /// Returns `exp` of the negative mean log-probability.
    pub fn perplexity(&self) -> f64 {
        let sum: f64 = self.0.iter().map(|(token, _)| f64::from(*token)).sum();
        (-sum / self.0.len().max(1) as f64).exp()
    }

    /// Returns the share of tokens in whose place both find the same token the most probable, as in a greedy answer.
    pub fn agreement(&self, other: &Self) -> f64 {
        let pairs = self.0.iter().zip(&other.0);
        let equal = pairs.filter(|((_, one), (_, other))| one == other).count();
        equal as f64 / self.0.len().max(1) as f64
    }
}

/// Cuts tokens into windows of `length`, each after the tokens in `start`. A rest of one token has nothing to read and is left out.
pub fn windows(ids: &[u32], start: &[u32], length: usize) -> Vec<Vec<u32>> {
    let own = length.saturating_sub(start.len()).max(1);
    ids.chunks(own)
        .map(|chunk| [start, chunk].concat())
        .filter(|window| window.len() > 1)
        .collect()
}

/// One row of the report.
#[derive(Debug, Clone, Serialize)]
pub struct PerplexityRow {
    /// The type of the weights.
    pub weights: String,
    /// Bytes of the weight matrices.
    pub bytes: usize,
    pub perplexity: f64,
    /// The share of most probable tokens that are those of the first row.
    pub agreement: f64,
}

/// The report: one row for each type of weights.
#[derive(Debug, Clone, Serialize)]
pub struct PerplexityTable {
    /// Number of tokens with a log-probability.
    pub tokens: usize,
    /// Number of tokens of a window.
    pub window: usize,
    pub rows: Vec<PerplexityRow>,
}

impl PerplexityTable {
    /// Starts a report on these windows.
    pub fn of(windows: &[Vec<u32>], window: usize) -> Self {
        Self {
            tokens: windows.iter().map(|window| window.len() - 1).sum(),
            window,
            rows: Vec::new(),
        }
    }
}

impl fmt::Display for PerplexityTable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{} tokens in windows of at most {}",
            self.tokens, self.window
        )?;
        write!(
            f,
            "{:<12} {:>9} {:>11} {:>21}",
            "weights", "MiB", "perplexity", "same most probable"
        )?;
        for row in &self.rows {
            write!(
                f,
                "\n{:<12} {:>9.1} {:>11.4} {:>19.2} %",
                row.weights,
                row.bytes as f64 / f64::from(1 << 20),
                row.perplexity,
                100.0 * row.agreement
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_windows_with_their_own_start() {
        assert_eq!(windows(&[1, 2, 3, 4, 5], &[], 2), [vec![1, 2], vec![3, 4]]);
        assert_eq!(windows(&[1, 2, 3], &[9], 3), [vec![9, 1, 2], vec![9, 3]]);
        assert!(windows(&[1], &[], 8).is_empty() && windows(&[], &[9], 8).is_empty());
    }

    #[test]
    fn perplexity_is_the_inverse_of_the_mean_probability() {
        let half = 0.5f32.ln();
        let one = Readings(vec![(half, 1), (half, 2), (half, 3), (half, 4)]);
        let other = Readings(vec![(half, 1), (half, 2), (0.25f32.ln(), 3), (0.0, 5)]);
        assert!((one.perplexity() - 2.0).abs() < 1e-6);
        assert!((other.perplexity() - 2.0).abs() < 1e-6);
        assert_eq!(one.agreement(&other), 0.75);
        assert_eq!(Readings::default().perplexity(), 1.0);
    }
}
