//! The origin of a call: the caller, its user and the call's name, from which the principal of its record follows.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use engine::Tenant;
use traffic_log::{Consent, IdempotencyKey, Principal};

/// A caller with a key, or the operator at its own listener.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The name of the key.
    pub name: Arc<str>,
    /// The permitted use of the key's traffic.
    pub allowed: Consent,
    /// Whether the key is an operator's.
    pub admin: bool,
    /// Whether a caller's key has the same name as this operator's key.
    pub namesake: bool,
    /// The tenant of the key; none without a key.
    pub tenant: Option<Tenant>,
}

/// The origin of a call.
#[derive(Debug, Clone, Default)]
pub struct CallOrigin {
    /// The caller; none without a key.
    pub caller: Option<Caller>,
    /// The end user that the call names; it has an effect only if the server trusts it.
    pub user: Option<String>,
    /// Whether the call comes from a web page whose origin is not allowed.
    pub of_another_page: bool,
    /// The idempotency key: the same name of the same principal stands for the same record.
    pub name: Option<CallName>,
}

/// The name of a call, by which a repeated call is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallName {
    pub name: String,
    /// The digest of the call's content. The same name with another content is refused.
    pub request: [u8; 32],
}

impl CallName {
    /// Returns the key of the record of prompt `index`; each prompt of a call has its own record.
    pub(super) fn key(&self, index: usize) -> IdempotencyKey {
        IdempotencyKey {
            name: match index {
                0 => self.name.clone(),
                // Headers cannot contain line breaks, so the key is unambiguous.
                index => format!("{}\n{index}", self.name),
            },
            request: self.request,
        }
    }
}

impl CallOrigin {
    /// Returns the seed for the samples of the prompt with this index, if the caller gives none: a repeated call with a name gets the
    /// same answer.
    pub(super) fn seed(&self, principal: &Principal, index: usize) -> u64 {
        let Some(name) = &self.name else {
            return exact(rand::random());
        };
        let digest = Sha256::digest(format!("{principal}\n{index}\n{}", name.name));
        let (first, _) = digest.split_at(size_of::<u64>());
        let digest = first.iter();
        exact(digest.fold(0, |seed, &byte| seed << 8 | u64::from(byte)))
    }
}

/// Shortens a seed to 53 bits, because many JSON clients read larger numbers inexactly.
fn exact(seed: u64) -> u64 {
    seed >> 11
}
