//! Evaluation of the default model on the pocket world: its accuracy, its reliability as its own judge, and the gain from judging.
//!
//! All measurements use held-out instructions and several sampling seeds, and are graded by the pocket world's checker. Intervals
//! are bootstrapped over instructions.

mod draw;
mod own_pairs;
mod own_samples;
mod principles;
mod report;
mod table;

use serde::{Deserialize, Serialize};

pub use draw::best_of_plot;
pub use own_pairs::{OwnPairsOptions, own_pairs};
pub use own_samples::{BestOf, OwnSamples};
pub use principles::{Following, PrincipleReport};
pub use report::{PocketReport, Threshold, measure};

/// The size of the evaluation. The defaults take a few minutes on two cores with a model of 2.5M parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PocketOptions {
    /// The seed of held-out instructions and comparisons.
    pub world_seed: u64,
    pub instructions: usize,
    /// Sampling seeds.
    pub seeds: Vec<u64>,
    /// Samples per instruction and seed: the largest N of best-of-N, a power of two.
    pub samples: usize,
    /// Comparisons per principle and per set of combinations.
    pub comparisons: usize,
    /// Instructions per sentence of a system message.
    pub following: usize,
}

impl Default for PocketOptions {
    fn default() -> Self {
        Self {
            world_seed: 2,
            instructions: 1200,
            seeds: vec![1, 2, 3],
            samples: 16,
            comparisons: 240,
            following: 80,
        }
    }
}
