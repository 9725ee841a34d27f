//! The limit on concurrent calls, in total and per tenant, and the refusal of calls beyond it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::Response;

use super::AppState;
use super::error::ApiError;
use super::held::Held;
use super::identity::OfAnotherPage;
use super::keys::tenant_of;
use super::memory::CallMemory;
use super::pages::is_of_another_page;
use engine::{Tenant, TenantShare};
use telemetry::{InQueue, Pace};

/// The places for concurrent calls. Clones share them.
#[derive(Clone)]
pub struct Permits(Arc<Shared>);

struct Shared {
    max: usize,
    /// Maximum places of one tenant.
    share: usize,
    taken: Mutex<Taken>,
    pace: Pace,
    memory: CallMemory,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Tenant, usize>,
}

/// A place, held until dropped.
pub struct Permit {
    permits: Arc<Shared>,
    tenant: Tenant,
    _inside: InQueue,
}

impl Permits {
    /// Creates places for `max` calls, which may hold `memory` bytes together.
    pub fn new(max: usize, memory: usize, share: TenantShare) -> Self {
        let pace = Pace::default();
        Self(Arc::new(Shared {
            max,
            share: share.of(max),
            taken: Mutex::default(),
            memory: CallMemory::new(memory, share, pace.clone()),
            pace,
        }))
    }

    /// Takes a place for a call of a tenant.
    ///
    /// # Errors
    /// 429 if all places or the tenant's share of them are taken, with an estimate of when places become free.
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
    /// Locks the counts, which are consistent after every change.
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

/// Holds a place for a call from before its body is read until its answer is sent. During that time the call's memory
/// is charged; an answer for which there is no memory becomes a refusal.
pub async fn hold(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let tenant = tenant_of(request.extensions());
    let permit = state.permits.take(tenant)?;
    let holding = state.permits.0.memory.open(tenant);
    request.extensions_mut().insert(state.body_timeouts);
    request.extensions_mut().insert(holding.clone());
    // Without keys every client that reaches the listener may call, and a browser reaches everything that its user does.
    let authority = request.uri().authority().map(Authority::as_str);
    if !state.keyed && is_of_another_page(request.headers(), authority, &state.cors) {
        request.extensions_mut().insert(OfAnotherPage);
    }
    let response = next.run(request).await;
    // A stream has no length, and is never in memory as a whole.
    if let Some(answer) = response.body().size_hint().exact() {
        holding.only_answer(usize::try_from(answer).unwrap_or(usize::MAX))?;
    }
    Ok(response.map(|body| Held::around(body, (permit, holding))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_cannot_take_all_places() {
        let permits = Permits::new(5, 1 << 20, TenantShare::default());
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
