//! Training: what turns preference data into better weights.

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod digest;
mod error;
pub mod jsft;
pub mod lanes;
pub mod manifest;
pub mod metrics;
pub mod mixture;
pub mod optim;
pub mod schedule;
pub mod step;
pub mod trainable;

pub use error::TrainError;
