//! Which version serves as what, and whom the canary answers.

use std::fmt;

use sha2::{Digest, Sha256};

use super::WeightsLease;

/// What weights are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Answering; for some principals that is the canary.
    Policy,
    /// Judging: pinned, so that verdicts of different days can be compared.
    Judge,
}

/// Who serves as what.
#[derive(Debug, Clone, PartialEq)]
pub struct Roles {
    pub policy: WeightsLease,
    pub canary: Option<Canary>,
    pub judge: WeightsLease,
}

/// A version that answers some of the principals.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    pub weights: WeightsLease,
    /// Of all principals, 0 to 1.
    pub share: f64,
}

impl Roles {
    /// One version as everything.
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

    /// Who is unknown gets the policy and never the canary.
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
    /// A principal's lot is its own for each canary, so that it is not always the same who go first; with a growing share,
    /// whom the canary answers it goes on answering.
    fn answers(&self, principal: PrincipalHash) -> bool {
        let lot = Sha256::new()
            .chain_update(principal.0.to_le_bytes())
            .chain_update(self.weights.name().as_str())
            .finalize();
        first_eight(&lot) as f64 / (u64::MAX as f64 + 1.0) < self.share
    }
}

/// Who calls, as a number that tells nothing else of them.
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
