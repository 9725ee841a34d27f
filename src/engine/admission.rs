//! Admission: a bounded queue of requests and of prompt tokens. A request is counted before it is sent to the engine.
//!
//! One tenant can hold at most its share of the queue, so there is room for the others. Parts of work that was already accepted wait for
//! a place ([`Admission::enter`]); tenants with waiting work receive places in turn, one each.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::tenant::Tenant;
use telemetry::{InQueue, Pace};

/// Limits on the requests that wait at once. Running requests do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    pub max_requests: usize,
    pub max_tokens: usize,
}

/// The current length of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueLoad {
    pub requests: usize,
    pub tokens: usize,
    /// Estimated seconds until the waiting requests have left the queue, at the recent pace; from 1 to 60.
    pub retry_after: u64,
}

/// The fraction of every limit that one tenant can hold; from 0 (exclusive) to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TenantShare(f64);

impl TenantShare {
    /// The whole of every limit: tenants have no limit of their own.
    pub const WHOLE: Self = Self(1.0);

    /// Returns `None` unless `share` is above 0 and at most 1.
    pub fn new(share: f64) -> Option<Self> {
        (share > 0.0 && share <= 1.0).then_some(Self(share))
    }

    /// Returns this share of a limit, at least 1.
    pub fn of(self, limit: usize) -> usize {
        ((limit as f64 * self.0) as usize).clamp(1, limit.max(1))
    }
}

/// One half: one tenant alone cannot fill a limit.
impl Default for TenantShare {
    fn default() -> Self {
        Self(0.5)
    }
}

/// The state of the queue. Clones share it.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    limits: QueueLimits,
    /// The part of `limits` that one tenant can hold.
    shares: QueueLimits,
    state: Mutex<State>,
    pace: Pace,
}

#[derive(Debug, Default)]
struct State {
    held: Held,
    tenants: HashMap<Tenant, Entry>,
    /// Tenants with waiters, in the order in which they get the next places.
    turns: VecDeque<Tenant>,
}

#[derive(Debug, Default)]
struct Entry {
    held: Held,
    waiters: VecDeque<Waiter>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    requests: usize,
    tokens: usize,
}

#[derive(Debug)]
struct Waiter {
    tokens: usize,
    granted: oneshot::Sender<QueuePlace>,
}

/// A place in the queue, released when dropped.
#[derive(Debug)]
pub struct QueuePlace {
    queue: Arc<Queue>,
    tenant: Tenant,
    tokens: usize,
    _inside: InQueue,
}

impl Held {
    fn fits(self, tokens: usize, limits: QueueLimits) -> bool {
        self.requests < limits.max_requests && self.tokens + tokens <= limits.max_tokens
    }

    fn add(&mut self, tokens: usize) {
        self.requests += 1;
        self.tokens += tokens;
    }

    fn release(&mut self, tokens: usize) {
        self.requests -= 1;
        self.tokens -= tokens;
    }
}

impl Admission {
    pub fn new(limits: QueueLimits, share: TenantShare) -> Self {
        let limits = QueueLimits {
            max_requests: limits.max_requests.max(1),
            max_tokens: limits.max_tokens.max(1),
        };
        Self(Arc::new(Queue {
            limits,
            shares: QueueLimits {
                max_requests: share.of(limits.max_requests),
                max_tokens: share.of(limits.max_tokens),
            },
            state: Mutex::default(),
            pace: Pace::default(),
        }))
    }

    pub fn load(&self) -> QueueLoad {
        let Held { requests, tokens } = self.0.lock().held;
        QueueLoad {
            requests,
            tokens,
            retry_after: self.0.pace.retry_after(),
        }
    }

    /// Returns the number of a tenant's waiters.
    pub fn num_waiting(&self, tenant: Tenant) -> usize {
        let state = self.0.lock();
        let entry = state.tenants.get(&tenant);
        entry.map_or(0, |entry| entry.waiters.len())
    }

    /// Returns the tokens that a prompt counts against the limits: at most a tenant's whole share, so a tenant with an empty queue can
    /// submit a prompt of any length.
    fn counted(&self, tokens: usize) -> usize {
        tokens.min(self.0.shares.max_tokens)
    }

    /// Returns a place for a tenant's prompt of `tokens`, or `None` if the queue or the tenant's share of it is full.
    pub fn try_enter(&self, tenant: Tenant, tokens: usize) -> Option<QueuePlace> {
        let tokens = self.counted(tokens);
        let mut state = self.0.lock();
        self.0
            .has_room(&state, tenant, tokens)
            .then(|| self.0.grant(&mut state, tenant, tokens))
    }

    /// Waits for a place. Waiting tenants receive places in turn; within a tenant the order is first come, first served.
    pub async fn enter(&self, tenant: Tenant, tokens: usize) -> QueuePlace {
        let tokens = self.counted(tokens);
        let place = {
            let mut state = self.0.lock();
            let waits = state
                .tenants
                .get(&tenant)
                .is_some_and(|entry| !entry.waiters.is_empty());
            if !waits && self.0.has_room(&state, tenant, tokens) {
                return self.0.grant(&mut state, tenant, tokens);
            }
            let (granted, place) = oneshot::channel();
            let entry = state.tenants.entry(tenant).or_default();
            entry.waiters.push_back(Waiter { tokens, granted });
            if !state.turns.contains(&tenant) {
                state.turns.push_back(tenant);
            }
            place
        };
        place
            .await
            .expect("a waiter is granted its place before it is forgotten; this is a bug")
    }
}

impl Queue {
    /// Locks the state; a poisoned lock is safe to use, because the state is consistent after every change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, state: &State, tenant: Tenant, tokens: usize) -> bool {
        let own = state
            .tenants
            .get(&tenant)
            .map_or(Held::default(), |e| e.held);
        state.held.fits(tokens, self.limits) && own.fits(tokens, self.shares)
    }

    fn grant(self: &Arc<Self>, state: &mut State, tenant: Tenant, tokens: usize) -> QueuePlace {
        state.held.add(tokens);
        state.tenants.entry(tenant).or_default().held.add(tokens);
        QueuePlace {
            queue: Arc::clone(self),
            tenant,
            tokens,
            _inside: self.pace.enter(),
        }
    }

    /// Gives places to waiters while there is room, to one tenant after another.
    fn serve(
        self: &Arc<Self>,
        state: &mut State,
    ) -> Vec<(oneshot::Sender<QueuePlace>, QueuePlace)> {
        let mut granted = Vec::new();
        let mut refused = 0;
        while refused < state.turns.len() {
            let tenant = state.turns[0];
            let entry = state.tenants.entry(tenant).or_default();
            // Waiters that were cancelled leave no gap.
            while entry.waiters.front().is_some_and(|w| w.granted.is_closed()) {
                entry.waiters.pop_front();
            }
            let Some(tokens) = entry.waiters.front().map(|waiter| waiter.tokens) else {
                state.turns.pop_front();
                state.forget(tenant);
                continue;
            };
            state.turns.rotate_left(1);
            if !self.has_room(state, tenant, tokens) {
                refused += 1;
                continue;
            }
            refused = 0;
            let place = self.grant(state, tenant, tokens);
            let entry = state.tenants.entry(tenant).or_default();
            granted.extend(entry.waiters.pop_front().map(|w| (w.granted, place)));
        }
        granted
    }
}

impl State {
    /// Removes the entry of a tenant that holds no place and has no waiter.
    fn forget(&mut self, tenant: Tenant) {
        let idle = |entry: &Entry| entry.held.requests == 0 && entry.waiters.is_empty();
        if self.tenants.get(&tenant).is_some_and(idle) {
            self.tenants.remove(&tenant);
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let granted = {
            let mut state = self.queue.lock();
            state.held.release(self.tokens);
            if let Some(entry) = state.tenants.get_mut(&self.tenant) {
                entry.held.release(self.tokens);
            }
            let granted = self.queue.serve(&mut state);
            state.forget(self.tenant);
            granted
        };
        for (waiter, place) in granted {
            // A waiter cancelled in the meantime releases its place here, while the state is unlocked.
            let _ = waiter.send(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn tenant(name: u8) -> Tenant {
        Tenant::of_key(&[name; 32])
    }

    fn admission(max_requests: usize, max_tokens: usize, share: f64) -> Admission {
        let limits = QueueLimits {
            max_requests,
            max_tokens,
        };
        Admission::new(limits, TenantShare::new(share).unwrap())
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let admission = admission(2, 10, 1.0);
        let enter = |tokens| admission.try_enter(tenant(1), tokens);
        let long = enter(50).unwrap();
        assert!(enter(1).is_none(), "too many tokens wait");
        drop(long);
        let one = enter(5).unwrap();
        let _two = enter(5).unwrap();
        assert!(enter(0).is_none(), "too many requests wait");
        drop(one);
        let load = admission.load();
        assert_eq!((load.requests, load.tokens), (1, 5));
        assert!((1..=60).contains(&load.retry_after));
    }

    #[test]
    fn a_share_is_at_least_one_and_never_more_than_all() {
        for (share, limit, of) in [
            (0.5, 1024, 512),
            (0.5, 3, 1),
            (0.5, 1, 1),
            (0.01, 10, 1),
            (1.0, 7, 7),
        ] {
            assert_eq!(TenantShare::new(share).unwrap().of(limit), of, "{share}");
        }
        for no_share in [0.0, -1.0, 1.1, f64::NAN] {
            assert_eq!(TenantShare::new(no_share), None);
        }
    }

    #[test]
    fn one_tenant_leaves_room_for_another_by_requests_and_by_tokens() {
        let admission = admission(4, 100, 0.5);
        let (alice, bob) = (tenant(1), tenant(2));
        let _alices = [admission.try_enter(alice, 1), admission.try_enter(alice, 1)];
        assert!(admission.try_enter(alice, 1).is_none());
        let bobs = admission.try_enter(bob, 40).unwrap();
        assert!(
            admission.try_enter(bob, 11).is_none(),
            "more than half of the tokens"
        );
        assert!(admission.try_enter(bob, 10).is_some());
        drop(bobs);
        assert!(
            admission.try_enter(bob, 1000).is_some(),
            "nothing of bob's waits"
        );
    }

    #[test]
    fn waiting_tenants_get_places_in_turn() {
        let admission = admission(2, 100, 1.0);
        let (alice, bob) = (tenant(1), tenant(2));
        let mut held = vec![
            admission.try_enter(alice, 1).unwrap(),
            admission.try_enter(alice, 1).unwrap(),
        ];
        let mut alices: VecDeque<_> = (0..4)
            .map(|_| Box::pin(admission.enter(alice, 1)))
            .collect();
        for waiting in &mut alices {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        let mut bobs: VecDeque<_> = (0..2).map(|_| Box::pin(admission.enter(bob, 1))).collect();
        for waiting in &mut bobs {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        let mut order = Vec::new();
        while !(alices.is_empty() && bobs.is_empty()) {
            held.remove(0);
            for (name, waiting) in [("alice", &mut alices), ("bob", &mut bobs)] {
                let granted = waiting.front_mut().and_then(|w| w.as_mut().now_or_never());
                if let Some(place) = granted {
                    waiting.pop_front();
                    held.push(place);
                    order.push(name);
                }
            }
        }
        assert_eq!(order, ["alice", "bob", "alice", "bob", "alice", "alice"]);
    }

    #[test]
    fn a_waiter_that_goes_away_leaves_no_gap_and_no_books() {
        let admission = admission(1, 100, 1.0);
        let held = admission.try_enter(tenant(1), 1).unwrap();
        let mut gone = Box::pin(admission.enter(tenant(2), 1));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut stays = Box::pin(admission.enter(tenant(3), 1));
        assert!(stays.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        let place = stays.now_or_never().expect("its turn has come");
        drop(place);
        assert_eq!(admission.load().requests, 0);
        let state = admission.0.lock();
        assert!(state.tenants.is_empty() && state.turns.is_empty());
    }

    #[test]
    fn a_place_that_was_granted_and_not_taken_is_given_on() {
        let admission = admission(1, 100, 1.0);
        let held = admission.try_enter(tenant(1), 1).unwrap();
        let mut first = Box::pin(admission.enter(tenant(2), 1));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(admission.enter(tenant(3), 1));
        assert!(second.as_mut().now_or_never().is_none());
        drop(held);
        // The first waiter has been granted its place but is dropped before it polls.
        drop(first);
        assert!(second.now_or_never().is_some());
        assert_eq!(admission.load().requests, 0);
    }
}
