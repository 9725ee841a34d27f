//! The places of open connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Tenant, TenantShare};

/// A bounded number of places, of which one tenant may have a share. Clones share them.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    share: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Tenant, usize>,
}

/// A place, released when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Shared>,
    tenant: Option<Tenant>,
}

impl Places {
    pub fn new(max: usize, share: TenantShare) -> Self {
        Self(Arc::new(Shared {
            max,
            share: share.of(max),
            taken: Mutex::default(),
        }))
    }

    /// Takes a place for a tenant, or for a proxy, which has no share; none if all places or the tenant's are taken.
    pub fn take(&self, tenant: Option<Tenant>) -> Option<Place> {
        let mut taken = self.0.lock();
        let of_tenant = |tenant| taken.by_tenant.get(&tenant).copied().unwrap_or(0);
        if taken.all >= self.0.max || tenant.is_some_and(|tenant| of_tenant(tenant) >= self.0.share)
        {
            return None;
        }
        taken.all += 1;
        if let Some(tenant) = tenant {
            *taken.by_tenant.entry(tenant).or_default() += 1;
        }
        Some(Place {
            places: Arc::clone(&self.0),
            tenant,
        })
    }
}

impl Shared {
    /// Locks the counts, which are consistent after every change.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        if let Some(tenant) = self.tenant
            && let Some(count) = taken.by_tenant.get_mut(&tenant)
        {
            *count -= 1;
            if *count == 0 {
                taken.by_tenant.remove(&tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_cannot_take_all_places() {
        let places = Places::new(4, TenantShare::default());
        let [alice, bob] = [1, 2].map(|name| Tenant::of_key(&[name; 32]));
        let alices = [places.take(Some(alice)), places.take(Some(alice))];
        assert!(alices.iter().all(Option::is_some));
        assert!(places.take(Some(alice)).is_none());
        let bobs = places.take(Some(bob));
        // A proxy has no share of its own, but the total limit applies to it.
        let proxys = places.take(None);
        assert!(bobs.is_some() && proxys.is_some() && places.take(None).is_none());
        drop(alices);
        assert!(places.take(Some(alice)).is_some());
        drop((bobs, proxys));
        assert!(places.0.lock().by_tenant.is_empty());
    }
}
