//! Training: what turns preference data into better weights.

pub mod base;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod digest;
pub mod dpo;
mod error;
pub mod jsft;
pub mod lanes;
pub mod manifest;
pub mod metrics;
pub mod mixture;
pub mod optim;
pub mod pass;
mod records;
mod run;
pub mod schedule;
pub mod step;
pub mod trainable;
mod turn;

pub use error::TrainError;
pub use run::RunOptions;
