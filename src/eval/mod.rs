//! Measuring policy and judge.

pub mod judge;
pub mod metrics;
