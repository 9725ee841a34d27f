//! Training: what turns preference data into better weights.

pub mod batch;
pub mod checkpoint;
pub mod digest;
mod error;
pub mod manifest;
pub mod metrics;
pub mod mixture;
pub mod optim;
pub mod schedule;
pub mod step;

pub use error::TrainError;
