//! How the answers that callers got ended, by the weights that wrote them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::WeightsName;

/// Counts of one version's answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    /// Answers that came to an end.
    pub answers: u64,
    /// Those of them that were cut off by their length.
    pub truncated: u64,
    /// Answers that were begun and failed.
    pub errors: u64,
    /// Tokens of the ended answers, and the sum of their squares.
    pub tokens: f64,
    pub tokens_squared: f64,
}

impl Tally {
    fn ended(&mut self, tokens: usize, truncated: bool) {
        let tokens = tokens as f64;
        self.answers += 1;
        self.truncated += u64::from(truncated);
        self.tokens += tokens;
        self.tokens_squared += tokens * tokens;
    }
}

/// The tallies of a service. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tallies(Arc<Mutex<HashMap<WeightsName, Tally>>>);

impl Tallies {
    /// Since the last [`Self::clear`].
    pub fn of(&self, weights: &WeightsName) -> Tally {
        self.lock().get(weights).copied().unwrap_or_default()
    }

    /// Begins to count anew.
    pub fn clear(&self) {
        self.lock().clear();
    }

    pub(super) fn ended(&self, weights: &WeightsName, tokens: usize, truncated: bool) {
        let mut tallies = self.lock();
        let tally = tallies.entry(weights.clone()).or_default();
        tally.ended(tokens, truncated);
    }

    pub(super) fn failed(&self, weights: &WeightsName, answers: usize) {
        let mut tallies = self.lock();
        tallies.entry(weights.clone()).or_default().errors += answers as u64;
    }

    /// Counts are whole after every change.
    fn lock(&self) -> MutexGuard<'_, HashMap<WeightsName, Tally>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
