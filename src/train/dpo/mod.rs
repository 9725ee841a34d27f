//! Direct preference optimisation (SELF-JUDGE's update): a LoRA adapter over the frozen model learns from pairs.
//!
//! [`DpoTrainer::update`] is one step on one batch of pairs, wherever they come from: the online learner draws them from the
//! current policy, [`run`] reads them from files. The order of the files is the algorithm: [`loss`] (what a pair costs), `pair`
//! and `pack` (how it is laid out), `objective` (what the batch costs, and each token's share), `trainer` (one step), `state`
//! (kept and taken up again), `data` and `run` (offline, over files).
//!
//! Deviations from SELF-JUDGE's released code, numbered:
//!
//! 1. Samples are trained on as they were sampled: never tokenised again, and no end of sequence is appended to one that was
//!    cut off.
//! 2. Log-probabilities are summed in f64 of f32 values, for policy and reference by the same forward pass, so that a policy
//!    which is the reference has a loss of exactly ln 2.
//! 3. A pair may carry a soft label, the judge's probability, instead of its winner only.
//! 4. Chosen and rejected share one copy of their prompt.

mod config;
mod data;
pub mod loss;
mod metrics;
mod objective;
mod pack;
mod pair;
#[cfg(test)]
mod plain_tests;
mod report;
pub mod run;
mod state;
#[cfg(test)]
mod tests;
mod trainer;

pub use config::DpoConfig;
pub use loss::PreferenceLoss;
pub use metrics::DpoMetrics;
pub use pair::{PairError, PairExample};
pub use report::StepReport;
pub use state::DpoState;
pub use trainer::{DpoTrainer, Scorer};
