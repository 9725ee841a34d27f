//! Training: what turns preference data into better weights.

pub mod checkpoint;
pub mod digest;
mod error;
pub mod manifest;
pub mod metrics;
pub mod optim;
pub mod schedule;

pub use error::TrainError;
