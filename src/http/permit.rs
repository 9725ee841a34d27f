//! How many calls are answered at once, how many of them are one tenant's, and what those beyond are told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::AppState;
use super::error::ApiError;
use super::held::Held;
use super::keys::tenant_of;
use crate::engine::{Tenant, TenantShare};
use crate::telemetry::{InQueue, Pace};

/// The places of calls that are being answered. Cloning shares them.
#[derive(Clone)]
pub struct Permits(Arc<Shared>);

struct Shared {
    max: usize,
    /// What one tenant may have of them.
    share: usize,
    taken: Mutex<Taken>,
    pace: Pace,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Tenant, usize>,
}

/// A place, until dropped.
pub struct Permit {
    permits: Arc<Shared>,
    tenant: Tenant,
    _inside: InQueue,
}

impl Permits {
    pub fn new(max: usize, share: TenantShare) -> Self {
        Self(Arc::new(Shared {
            max,
            share: share.of(max),
            taken: Mutex::default(),
            pace: Pace::default(),
        }))
    }

    /// A place for a call of a tenant.
    ///
    /// # Errors
    /// 429 where all places, or the tenant's share of them, are taken, with the time in which those who have one will be done.
    pub fn take(&self, tenant: Tenant) -> Result<Permit, ApiError> {
        let mut taken = self.0.lock();
        let own = taken.by_tenant.get(&tenant).copied().unwrap_or(0);
        let full = match (taken.all >= self.0.max, own >= self.0.share) {
            (true, _) => Some("too many requests are being answered"),
            (false, true) => Some("too many of your requests are being answered"),
            (false, false) => None,
        };
        if let Some(message) = full {
            return Err(ApiError::overloaded(message, self.0.pace.retry_after()));
        }
        taken.all += 1;
        *taken.by_tenant.entry(tenant).or_default() += 1;
        Ok(Permit {
            permits: Arc::clone(&self.0),
            tenant,
            _inside: self.0.pace.enter(),
        })
    }
}

impl Shared {
    /// Counts are whole after every change.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.permits.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_tenant.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                taken.by_tenant.remove(&self.tenant);
            }
        }
    }
}

/// The middleware: a call has its place before anything of its body is read, so bodies in memory are no more than places, and
/// until its answer is sent.
pub async fn hold(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let permit = state.permits.take(tenant_of(request.extensions()))?;
    request.extensions_mut().insert(state.body_timeouts);
    let response = next.run(request).await;
    Ok(response.map(|body| Held::around(body, permit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_cannot_take_all_places() {
        let permits = Permits::new(5, TenantShare::default());
        let [alice, bob, carol] = [1, 2, 3].map(|name| Tenant::of_key(&[name; 32]));
        let alices = [permits.take(alice), permits.take(alice)];
        assert!(alices.iter().all(Result::is_ok) && permits.take(alice).is_err());
        let bobs = [permits.take(bob), permits.take(bob)];
        let carols = [permits.take(carol), permits.take(carol)];
        assert!(bobs.iter().all(Result::is_ok));
        assert!(carols[0].is_ok() && carols[1].is_err(), "all are taken");
        drop(alices);
        assert!(permits.take(alice).is_ok());
        drop((bobs, carols));
        assert!(permits.0.lock().by_tenant.is_empty());
    }
}
