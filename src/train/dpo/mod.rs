//! Direct preference optimisation (SELF-JUDGE's update): training of a LoRA adapter over the frozen model from preference pairs.
//!
//! [`DpoTrainer::update`] is one step on one batch of pairs from any source: the online learner samples them from the current policy,
//! [`run`] reads them from files. The order of the files follows the algorithm: [`loss`] (of a pair), `pair` and `pack` (layout in
//! tokens), `objective` (of a batch, and each token's share), `trainer` (one step), `state` (save and resume), `data` and `run` (offline,
//! over files).
//!
//! Deviations from SELF-JUDGE's released code, numbered:
//!
//! 1. Samples are trained on exactly as they were sampled: they are never tokenised again, and a truncated one gets no end-of-sequence
//!    token.
//! 2. Log-probabilities are sums in f64 over f32 values, computed by the same forward pass for policy and reference, so that a policy
//!    equal to the reference has a loss of exactly ln 2.
//! 3. A pair may carry a soft label, the judge's probability, instead of only its winner.
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
