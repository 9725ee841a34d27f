//! The roles of versions, and the principals that the canary answers.

use std::fmt;

use sha2::{Digest, Sha256};

use super::WeightsLease;

/// The role of a version of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Answering; some principals are answered by the canary instead.
    Policy,
    /// Judging: pinned, so that verdicts of different days are comparable.
    Judge,
}

/// The versions that serve each role.
#[derive(Debug, Clone, PartialEq)]
pub struct Roles {
    pub policy: WeightsLease,
    pub canary: Option<Canary>,
    pub judge: WeightsLease,
}

/// A version that answers a fraction of the principals.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    pub weights: WeightsLease,
    /// The fraction of all principals, 0 to 1.
    pub share: f64,
}

impl Roles {
    /// Returns roles that are all served by one version.
    pub fn all(weights: &WeightsLease) -> Self {
        Self {
            policy: weights.clone(),
            canary: None,
            judge: weights.clone(),
        }
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = &WeightsLease> {
        let canary = self.canary.iter().map(|canary| &canary.weights);
        [&self.policy, &self.judge].into_iter().chain(canary)
    }

    /// Returns the version for a role. An unknown principal gets the policy, never the canary.
    pub(super) fn of(&self, role: Role, principal: Option<PrincipalHash>) -> &WeightsLease {
        match (role, &self.canary, principal) {
            (Role::Judge, ..) => &self.judge,
            (Role::Policy, Some(canary), Some(principal)) if canary.answers(principal) => {
                &canary.weights
            }
            (Role::Policy, ..) => &self.policy,
        }
    }
}

impl Canary {
    /// Returns whether the canary answers this principal. Each canary draws its own principals, so the first ones differ between canaries;
    /// as its share grows, a canary keeps the principals that it already answers.
    fn answers(&self, principal: PrincipalHash) -> bool {
        let lot = Sha256::new()
            .chain_update(principal.0.to_le_bytes())
            .chain_update(self.weights.name().as_str())
            .finalize();
        first_eight(&lot) as f64 / (u64::MAX as f64 + 1.0) < self.share
    }
}

/// A caller's identity as a hash that reveals nothing else about the caller.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrincipalHash(pub u64);

impl PrincipalHash {
    pub fn of(principal: &str) -> Self {
        Self(first_eight(&Sha256::digest(principal)))
    }
}

impl fmt::Debug for PrincipalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrincipalHash({:016x})", self.0)
    }
}

fn first_eight(digest: &[u8]) -> u64 {
    let (first, _) = digest
        .split_first_chunk()
        .expect("a digest has 32 bytes; this is a bug");
    u64::from_le_bytes(*first)
}
