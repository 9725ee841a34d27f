//! Weights as versioned, immutable values: one base, any number of adapters over it, and the roles that versions serve.
//!
//! Served tensors are never written to. A version is *published* once its tensors are in their own memory, and can be
//! found from then on while any [`WeightsLease`] of it exists: of a role, of a request in progress, of a gate that
//! compares a candidate. Its memory is freed with the last lease. A swap is one atomic store of three leases: requests in progress
//! keep theirs, later requests get the new ones.

mod roles;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use serde::{Deserialize, Serialize};

use super::adapter::{self, AdapterWeights, LoraConfig};
use super::{Decoder, ModelError};
use kernels::nn::Adapter;
pub use roles::{Canary, PrincipalHash, Role, Roles};

/// The version number of weights in a store, counted from 1, which is the base; no number is used twice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct WeightsVersion(pub u64);

impl fmt::Display for WeightsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of weights outside this process: `base`, or the digest of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WeightsName(Arc<str>);

impl WeightsName {
    /// The name of the weights without an adapter.
    pub const BASE: &str = "base";

    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WeightsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The reason for which weights were not published, or cannot serve a role.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("invalid adapter name `{0}`: it must not be empty or the base's name")]
    Name(String),
    #[error("weights `{0}` belong to another weight store")]
    Foreign(WeightsName),
    #[error("a canary's share must be between 0 and 1, not {0}")]
    Share(f64),
}

/// One version.
#[derive(Debug)]
struct Weights {
    version: WeightsVersion,
    name: WeightsName,
    /// The base has none, unless it was created with one.
    adapter: Option<Adapter>,
    bytes: usize,
    /// The identity of the store.
    store: Arc<()>,
}

/// A lease that keeps one version of the weights in memory. Clones are leases of the same version.
#[derive(Debug, Clone)]
pub struct WeightsLease(Arc<Weights>);

impl WeightsLease {
    pub fn version(&self) -> WeightsVersion {
        self.0.version
    }

    pub fn name(&self) -> &WeightsName {
        &self.0.name
    }

    /// Returns the adapter that is computed with the base.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.0.adapter.as_ref()
    }
}

impl PartialEq for WeightsLease {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A version that is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionStatus {
    pub version: WeightsVersion,
    pub name: WeightsName,
    /// The number of leases not counting the roles: of requests in progress, and of its publisher or a gate.
    pub leases: usize,
    /// Bytes of the factors of its adapter; for the base, of its matrices.
    pub bytes: usize,
}

/// A store of weights. A handle: clones share the store.
#[derive(Debug, Clone)]
pub struct WeightStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    decoder: Decoder,
    base: WeightsLease,
    roles: RwLock<Roles>,
    published: Mutex<Published>,
}

#[derive(Debug)]
struct Published {
    last: WeightsVersion,
    /// Versions that may still be leased; freed ones are removed whenever a version is published or listed.
    adapters: HashMap<WeightsName, Weak<Weights>>,
}

impl WeightStore {
    /// Creates a store in which the base serves all roles.
    pub fn new(base: Decoder) -> Self {
        Self::over(base, None)
    }

    /// Creates a store whose base is a decoder with a fixed adapter. Published adapters are applied to the bare decoder, in place of that
    /// adapter.
    ///
    /// # Errors
    /// Errors if factors do not fit the decoder or contain a NaN or infinity.
    pub fn with_adapter(
        decoder: Decoder,
        config: &LoraConfig,
        weights: &AdapterWeights,
    ) -> Result<Self, ModelError> {
        let adapter = adapter::for_serving(config, weights, &decoder)?;
        Ok(Self::over(decoder, Some(adapter)))
    }

    /// Creates a store whose base is a decoder with the adapter of a PEFT directory, or the decoder alone.
    ///
    /// # Errors
    /// Errors if the directory cannot be read, or as [`Self::with_adapter`].
    pub fn with_adapter_dir(decoder: Decoder, dir: Option<&Path>) -> Result<Self, ModelError> {
        let Some(dir) = dir else {
            return Ok(Self::new(decoder));
        };
        let (config, weights) = adapter::load(dir)?;
        Self::with_adapter(decoder, &config, &weights)
    }

    fn over(base: Decoder, adapter: Option<Adapter>) -> Self {
        let lease = WeightsLease(Arc::new(Weights {
            version: WeightsVersion(1),
            name: WeightsName::new(WeightsName::BASE),
            bytes: base.bytes() + adapter.as_ref().map_or(0, Adapter::bytes),
            adapter,
            store: Arc::default(),
        }));
        Self(Arc::new(Shared {
            roles: RwLock::new(Roles::all(&lease)),
            published: Mutex::new(Published {
                last: lease.version(),
                adapters: HashMap::new(),
            }),
            base: lease,
            decoder: base,
        }))
    }

    /// Returns the decoder that all versions share.
    pub fn decoder(&self) -> &Decoder {
        &self.0.decoder
    }

    /// Returns the weights without a generation: the decoder alone, or with the adapter with which it was created.
    pub fn base(&self) -> &WeightsLease {
        &self.0.base
    }

    /// Publishes a PEFT directory; see [`Self::publish`].
    ///
    /// # Errors
    /// Errors as [`Self::publish`] and [`adapter::load`] do.
    pub fn publish_dir(&self, name: &str, dir: &Path) -> Result<WeightsLease, ModelError> {
        let (config, weights) = adapter::load(dir)?;
        self.publish(name, &config, &weights)
    }

    /// Publishes an adapter, copied into its own memory: the given tensors may continue to change. The version serves no role yet, and is
    /// freed with its leases. The call takes too long for a thread that serves requests.
    ///
    /// A name stands for contents: if a version of that name is in memory already, it is returned.
    ///
    /// # Errors
    /// Errors if the name is invalid, or if factors do not fit the base or contain a NaN or infinity.
    pub fn publish(
        &self,
        name: &str,
        config: &LoraConfig,
        weights: &AdapterWeights,
    ) -> Result<WeightsLease, ModelError> {
        if name.is_empty() || name == WeightsName::BASE {
            return Err(StoreError::Name(name.to_owned()).into());
        }
        if let Some(lease) = self.find(name) {
            return Ok(lease);
        }
        let adapter = adapter::for_serving(config, weights, self.decoder())?;
        let name = WeightsName::new(name);
        let mut published = self.published();
        // Another thread may have published the name first.
        if let Some(weights) = published.adapters.get(&name).and_then(Weak::upgrade) {
            return Ok(WeightsLease(weights));
        }
        published.last.0 += 1;
        let weights = Arc::new(Weights {
            version: published.last,
            name: name.clone(),
            bytes: adapter.bytes(),
            adapter: Some(adapter),
            store: Arc::clone(&self.0.base.0.store),
        });
        published.adapters.retain(|_, held| held.strong_count() > 0);
        published.adapters.insert(name, Arc::downgrade(&weights));
        Ok(WeightsLease(weights))
    }

    /// Returns the version of this name, if it is in memory.
    pub fn find(&self, name: &str) -> Option<WeightsLease> {
        if name == WeightsName::BASE {
            return Some(self.0.base.clone());
        }
        let published = self.published();
        let held = published.adapters.get(&WeightsName::new(name))?;
        held.upgrade().map(WeightsLease)
    }

    /// Returns whether the lease belongs to this store.
    pub fn owns(&self, lease: &WeightsLease) -> bool {
        Arc::ptr_eq(&lease.0.store, &self.0.base.0.store)
    }

    /// Assigns versions to roles, all at once.
    ///
    /// # Errors
    /// Errors if the canary's share is invalid or the weights belong to another store. The roles are unchanged then.
    pub fn set_roles(&self, roles: Roles) -> Result<(), ModelError> {
        if let Some(foreign) = roles.leases().find(|lease| !self.owns(lease)) {
            return Err(StoreError::Foreign(foreign.name().clone()).into());
        }
        if let Some(canary) = &roles.canary
            && !(0.0..=1.0).contains(&canary.share)
        {
            return Err(StoreError::Share(canary.share).into());
        }
        let mut current = self.0.roles.write().unwrap_or_else(PoisonError::into_inner);
        // The old roles are dropped after the lock is released, because that can free tensors.
        let before = std::mem::replace(&mut *current, roles);
        drop(current);
        drop(before);
        Ok(())
    }

    pub fn roles(&self) -> Roles {
        let roles = self.0.roles.read();
        roles.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the weights that serve `role` now; for the policy role, those that answer this principal.
    pub fn lease(&self, role: Role, principal: Option<PrincipalHash>) -> WeightsLease {
        let roles = self.0.roles.read().unwrap_or_else(PoisonError::into_inner);
        roles.of(role, principal).clone()
    }

    /// Returns the versions in memory, the oldest first.
    pub fn versions(&self) -> Vec<VersionStatus> {
        let roles = self.roles();
        let adapters: Vec<WeightsLease> = {
            let mut published = self.published();
            published.adapters.retain(|_, held| held.strong_count() > 0);
            let held = published.adapters.values().filter_map(Weak::upgrade);
            held.map(WeightsLease).collect()
        };
        let status = |lease: &WeightsLease, own: usize| {
            let serving = roles.leases().filter(|role| *role == lease).count();
            // The leases of the roles in the store, of their copies here, and of this call.
            let known = 2 * serving + own;
            VersionStatus {
                version: lease.version(),
                name: lease.name().clone(),
                leases: Arc::strong_count(&lease.0).saturating_sub(known),
                bytes: lease.0.bytes,
            }
        };
        let mut versions = vec![status(&self.0.base, 1)];
        versions.extend(adapters.iter().map(|lease| status(lease, 1)));
        versions.sort_by_key(|status| status.version);
        versions
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        let published = self.0.published.lock();
        published.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
