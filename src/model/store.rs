//! Weights as a versioned, immutable value: nothing that is served is ever written to.

use super::Decoder;

/// Counts the weights a process has served, from 1: what a cache or an answer came from.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct WeightsVersion(pub u64);

impl std::fmt::Display for WeightsVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A decoder and which one it is.
#[derive(Debug, Clone)]
pub struct Weights {
    pub version: WeightsVersion,
    pub decoder: Decoder,
}
